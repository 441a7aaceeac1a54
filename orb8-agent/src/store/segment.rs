//! Segments of history, and the one way in which sorted runs of entries are summed.

use super::delta::{Delta, Reader, Writer};

/// Ids summed at a time: so many deltas stay in the second-level cache.
const WINDOW: u32 = 2048;

/// Calls `each` once for each flow of the sources, in ascending order of id, with its sum over the sources.
///
/// Cost: linear in entries, whatever the number of sources; memory: one window of deltas.
pub(crate) fn sum(sources: &mut [Reader<'_>], mut each: impl FnMut(u32, &Delta)) {
    let mut window = vec![Delta::default(); WINDOW as usize];
    let mut present = [0u64; WINDOW as usize / 64];
    while let Some(lowest) = sources.iter().filter_map(Reader::peek).min() {
        let base = lowest - lowest % WINDOW;
        for source in &mut *sources {
            while source.peek().is_some_and(|id| id - base < WINDOW)
                && let Some((id, delta)) = source.take()
            {
                let slot = (id - base) as usize;
                let bit = 1 << (slot % 64);
                if present[slot / 64] & bit == 0 {
                    present[slot / 64] |= bit;
                    window[slot] = delta;
                } else {
                    window[slot].add(&delta);
                }
            }
        }
        for (word, bits) in present.iter_mut().enumerate() {
            while *bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                *bits &= *bits - 1;
                each(base + slot as u32, &window[slot]);
            }
        }
    }
}

/// Deltas of all flows in `[from_ns, to_ns)`.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
    /// Sequence numbers of the first and the last drain interval in it.
    pub(crate) first_seq: u32,
    pub(crate) last_seq: u32,
    pub(crate) entries: u32,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Flows whose detail was given up in it.
    pub(crate) folded: u64,
    data: Box<[u8]>,
}

/// Bytes of a segment beside its entries.
pub(crate) const SEGMENT_OVERHEAD: usize = size_of::<Segment>();

impl Segment {
    /// Makes a segment of what `fill` writes.
    pub(crate) fn build(
        (from_ns, to_ns): (u64, u64),
        (first_seq, last_seq): (u32, u32),
        capacity: usize,
        fill: impl FnOnce(&mut dyn FnMut(u32, &Delta)),
    ) -> Self {
        let mut writer = Writer::new(from_ns, capacity);
        let (mut packets, mut bytes) = (0u64, 0u64);
        fill(&mut |id, delta| {
            packets = packets.saturating_add(delta.packets);
            bytes = bytes.saturating_add(delta.bytes);
            writer.push(id, delta);
        });
        let entries = writer.entries();
        Self {
            from_ns,
            to_ns,
            first_seq,
            last_seq,
            entries,
            packets,
            bytes,
            folded: 0,
            data: writer.finish(),
        }
    }

    /// One segment of several that follow each other. Empty for none.
    pub(crate) fn merge<'a>(parts: impl DoubleEndedIterator<Item = &'a Self> + Clone) -> Option<Self> {
        let (first, last) = (parts.clone().next()?, parts.clone().next_back()?);
        let capacity = parts.clone().map(|part| part.data.len()).max().unwrap_or(0);
        let mut readers: Vec<_> = parts.clone().map(Self::read).collect();
        let mut merged = Self::build(
            (first.from_ns, last.to_ns),
            (first.first_seq, last.last_seq),
            capacity,
            |push| sum(&mut readers, push),
        );
        merged.folded = parts.map(|part| part.folded).sum();
        Some(merged)
    }

    pub(crate) fn read(&self) -> Reader<'_> {
        Reader::new(&self.data, self.from_ns)
    }

    /// Heap and own memory, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.data.len() + SEGMENT_OVERHEAD
    }

    pub(crate) const fn duration_ns(&self) -> u64 {
        self.to_ns - self.from_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn sums_are_those_of_a_map(
            runs in prop::collection::vec(
                prop::collection::btree_map(0u32..9000, (1u64..100, 0u64..1000), 0..60), 0..6),
        ) {
            let mut expected: BTreeMap<u32, Delta> = BTreeMap::new();
            let mut encoded = Vec::new();
            for run in &runs {
                let mut writer = Writer::new(500, 0);
                for (&id, &(packets, time)) in run {
                    let delta = Delta { packets, first_ns: time, last_ns: time, ..Delta::default() };
                    expected.entry(id).or_default().add(&delta);
                    writer.push(id, &delta);
                }
                encoded.push(writer.finish());
            }
            let mut readers: Vec<_> = encoded.iter().map(|data| Reader::new(data, 500)).collect();
            let mut got = Vec::new();
            sum(&mut readers, |id, delta| got.push((id, *delta)));
            prop_assert_eq!(got, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
