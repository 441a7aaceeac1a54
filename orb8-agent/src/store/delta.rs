//! What one flow did in one segment, and its compact encoding.

use integer_encoding::VarInt;
use orb8_common::network::FlowCounters;

/// Counts of one flow in one span of time. Times are nanoseconds since the Unix epoch, and mean something only
/// if packets were counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta {
    /// Wire segments.
    pub packets: u64,
    /// Layer-3 bytes.
    pub bytes: u64,
    /// As [`FlowCounters::merged_packets`].
    pub merged_packets: u64,
    /// As [`FlowCounters::merged_bytes`].
    pub merged_bytes: u64,
    /// Bytes behind the IP packets' own length; in a remainder the link headers as well.
    pub padding: u64,
    /// Time of the first packet.
    pub first_ns: u64,
    /// Time of the last packet.
    pub last_ns: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Connection attempts that failed.
    pub failed_connects: u32,
    /// Bitwise OR of TCP flags.
    pub tcp_flags: u32,
}

impl Delta {
    /// The counters of one drained record, whose times are already Unix time.
    #[must_use]
    pub fn from_counters(counters: &FlowCounters) -> Self {
        Self {
            packets: counters.packets,
            bytes: counters.bytes,
            merged_packets: counters.merged_packets,
            merged_bytes: counters.merged_bytes,
            padding: u64::from(counters.padding),
            first_ns: counters.first_ns,
            last_ns: counters.last_ns.max(counters.first_ns),
            retransmits: 0,
            failed_connects: 0,
            tcp_flags: counters.tcp_flags,
        }
    }

    /// Whether any packet was counted, so that the times mean something.
    #[must_use]
    pub const fn has_packets(&self) -> bool {
        self.packets != 0 || self.bytes != 0
    }

    /// Adds another span's counts to this one's.
    pub fn add(&mut self, other: &Self) {
        if other.has_packets() {
            if self.has_packets() {
                self.first_ns = self.first_ns.min(other.first_ns);
                self.last_ns = self.last_ns.max(other.last_ns);
            } else {
                self.first_ns = other.first_ns;
                self.last_ns = other.last_ns;
            }
        }
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.merged_packets = self.merged_packets.saturating_add(other.merged_packets);
        self.merged_bytes = self.merged_bytes.saturating_add(other.merged_bytes);
        self.padding = self.padding.saturating_add(other.padding);
        self.retransmits = self.retransmits.saturating_add(other.retransmits);
        self.failed_connects = self.failed_connects.saturating_add(other.failed_connects);
        self.tcp_flags |= other.tcp_flags;
    }

    /// The same counts with the link headers, `link_len` bytes a packet, moved to `padding`: so that flows with
    /// different link headers can be summed without changing their bytes on the wire.
    #[must_use]
    pub fn without_link(mut self, link_len: u8) -> Self {
        self.padding = self
            .padding
            .saturating_add(self.packets.saturating_mul(u64::from(link_len)));
        self
    }

    /// Layer-2 bytes.
    #[must_use]
    pub const fn wire_bytes(&self, link_len: u8) -> u64 {
        self.bytes
            .saturating_add(self.packets.saturating_mul(link_len as u64))
            .saturating_add(self.padding)
    }

    /// Frames as an interface that carries super-packets counts them.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.packets.saturating_sub(self.merged_packets)
    }

    /// Bytes of [`Delta::frames`].
    #[must_use]
    pub const fn frame_bytes(&self, link_len: u8) -> u64 {
        self.wire_bytes(link_len).saturating_sub(self.merged_bytes)
    }
}

// Bits of an entry's flag byte: which optional fields follow.
const PACKETS: u8 = 1;
const MERGED: u8 = 1 << 1;
const PADDING: u8 = 1 << 2;
const TCP_FLAGS: u8 = 1 << 3;
const RETRANSMITS: u8 = 1 << 4;
const FAILED_CONNECTS: u8 = 1 << 5;

/// Writes entries in ascending order of flow id.
#[derive(Debug)]
pub(crate) struct Writer {
    data: Vec<u8>,
    /// Time that the entries' times are relative to.
    base_ns: u64,
    /// Id that the next entry's id is relative to.
    next: u32,
    entries: u32,
}

impl Writer {
    pub(crate) fn new(base_ns: u64, capacity: usize) -> Self {
        Self {
            data: Vec::with_capacity(capacity),
            base_ns,
            next: 0,
            entries: 0,
        }
    }

    /// Appends an entry. `id` must be greater than the one before.
    pub(crate) fn push(&mut self, id: u32, delta: &Delta) {
        debug_assert!(id >= self.next, "entries in ascending order of id");
        self.number(u64::from(id.wrapping_sub(self.next)));
        self.next = id + 1;
        self.entries += 1;
        let optional = [
            (PACKETS, delta.has_packets()),
            (MERGED, delta.merged_packets != 0 || delta.merged_bytes != 0),
            (PADDING, delta.padding != 0),
            (TCP_FLAGS, delta.tcp_flags != 0),
            (RETRANSMITS, delta.retransmits != 0),
            (FAILED_CONNECTS, delta.failed_connects != 0),
        ];
        let flags = optional
            .iter()
            .fold(0, |flags, &(bit, there)| flags | if there { bit } else { 0 });
        self.data.push(flags);
        if flags & PACKETS != 0 {
            self.number(delta.packets);
            self.number(delta.bytes);
            // The first packet may be older than the segment: the clocks of kernel and agent are two.
            self.number(zigzag(delta.first_ns.wrapping_sub(self.base_ns)));
            self.number(delta.last_ns.wrapping_sub(delta.first_ns));
        }
        if flags & MERGED != 0 {
            self.number(delta.merged_packets);
            self.number(delta.merged_bytes);
        }
        if flags & PADDING != 0 {
            self.number(delta.padding);
        }
        if flags & TCP_FLAGS != 0 {
            self.number(u64::from(delta.tcp_flags));
        }
        if flags & RETRANSMITS != 0 {
            self.number(delta.retransmits);
        }
        if flags & FAILED_CONNECTS != 0 {
            self.number(u64::from(delta.failed_connects));
        }
    }

    fn number(&mut self, value: u64) {
        let mut space = [0; 10];
        let len = value.encode_var(&mut space);
        self.data.extend_from_slice(&space[..len]);
    }

    pub(crate) const fn entries(&self) -> u32 {
        self.entries
    }

    pub(crate) fn finish(self) -> Box<[u8]> {
        self.data.into_boxed_slice()
    }
}

/// Maps small distances of either sign to small numbers.
const fn zigzag(distance: u64) -> u64 {
    (distance << 1) ^ ((distance.cast_signed() >> 63).cast_unsigned())
}

const fn unzigzag(coded: u64) -> u64 {
    (coded >> 1) ^ (coded & 1).wrapping_neg()
}

/// Reads what a [`Writer`] wrote.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    data: &'a [u8],
    base_ns: u64,
    /// Id of the entry at the head of `data`, whose id was already read; `None` at the end.
    head: Option<u32>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(data: &'a [u8], base_ns: u64) -> Self {
        let mut reader = Self {
            data,
            base_ns,
            head: None,
        };
        reader.advance(0);
        reader
    }

    /// Id of the next entry.
    #[inline]
    pub(crate) const fn peek(&self) -> Option<u32> {
        self.head
    }

    fn advance(&mut self, next: u32) {
        self.head = if self.data.is_empty() {
            None
        } else {
            Some(next.wrapping_add(self.number() as u32))
        };
    }

    #[inline]
    fn number(&mut self) -> u64 {
        if let Some((&byte, rest)) = self.data.split_first()
            && byte < 0x80
        {
            self.data = rest;
            return u64::from(byte);
        }
        // The data is our own; were it cut short, the rest of the segment would read as zeroes.
        let Some((value, len)) = u64::decode_var(self.data) else {
            debug_assert!(false, "a segment is cut short");
            self.data = &[];
            return 0;
        };
        self.data = &self.data[len..];
        value
    }

    /// Takes the next entry.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<(u32, Delta)> {
        let id = self.head?;
        let (&flags, rest) = self.data.split_first()?;
        self.data = rest;
        let mut delta = Delta::default();
        if flags & PACKETS != 0 {
            delta.packets = self.number();
            delta.bytes = self.number();
            delta.first_ns = self.base_ns.wrapping_add(unzigzag(self.number()));
            delta.last_ns = delta.first_ns.wrapping_add(self.number());
        }
        if flags & MERGED != 0 {
            delta.merged_packets = self.number();
            delta.merged_bytes = self.number();
        }
        if flags & PADDING != 0 {
            delta.padding = self.number();
        }
        if flags & TCP_FLAGS != 0 {
            delta.tcp_flags = self.number() as u32;
        }
        if flags & RETRANSMITS != 0 {
            delta.retransmits = self.number();
        }
        if flags & FAILED_CONNECTS != 0 {
            delta.failed_connects = self.number() as u32;
        }
        self.advance(id.wrapping_add(1));
        Some((id, delta))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn deltas() -> impl Strategy<Value = Delta> {
        let any_size = || prop_oneof![Just(0u64), 0..200u64, any::<u64>()];
        (
            [
                any_size(),
                any_size(),
                any_size(),
                any_size(),
                any_size(),
                any_size(),
            ],
            any::<u64>(),
            any::<u64>(),
            prop_oneof![Just(0u32), any::<u32>()],
            any::<u8>(),
        )
            .prop_map(|(n, first, span, failed_connects, tcp_flags)| {
                let mut delta = Delta {
                    packets: n[0],
                    bytes: n[1],
                    merged_packets: n[2],
                    merged_bytes: n[3],
                    padding: n[4],
                    retransmits: n[5],
                    failed_connects,
                    tcp_flags: u32::from(tcp_flags),
                    ..Delta::default()
                };
                if delta.has_packets() {
                    delta.first_ns = first;
                    delta.last_ns = first.saturating_add(span);
                }
                delta
            })
    }

    proptest! {
        #[test]
        fn entries_survive_encoding(
            base in any::<u64>(),
            entries in prop::collection::btree_map(0..u32::MAX, deltas(), 0..50),
        ) {
            let mut writer = Writer::new(base, 0);
            for (id, delta) in &entries {
                writer.push(*id, delta);
            }
            prop_assert_eq!(writer.entries() as usize, entries.len());
            let data = writer.finish();
            let mut reader = Reader::new(&data, base);
            for (id, delta) in entries {
                prop_assert_eq!(reader.peek(), Some(id));
                prop_assert_eq!(reader.take(), Some((id, delta)));
            }
            prop_assert_eq!(reader.take(), None);
        }
    }

    #[test]
    fn an_ordinary_entry_is_small() {
        let base = 1_700_000_000_000_000_000;
        let mut writer = Writer::new(base, 0);
        writer.push(
            0,
            &Delta {
                packets: 120,
                bytes: 90_000,
                first_ns: base + 1_000_000,
                last_ns: base + 999_000_000,
                tcp_flags: 0x10,
                ..Delta::default()
            },
        );
        assert!(writer.finish().len() <= 20);
    }

    #[test]
    fn link_headers_in_padding_leave_the_wire_bytes_as_they_are() {
        let delta = Delta {
            packets: 3,
            bytes: 300,
            padding: 7,
            ..Delta::default()
        };
        assert_eq!(delta.without_link(14).wire_bytes(0), delta.wire_bytes(14));
    }
}
