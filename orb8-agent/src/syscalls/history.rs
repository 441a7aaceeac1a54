//! Recent history of calls: what each drain interval brought, by owner and call, within a bound on memory.
//!
//! An interval is a *segment* of sorted varints. When memory runs out, neighbouring segments are merged (a query then
//! covers whole ones, and says so), and when nothing can be merged any more, the oldest goes; both are counted.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use integer_encoding::VarInt;
use orb8_common::syscall::LATENCY_BUCKETS;

use super::call::{Abi, Call};
use crate::identity::owner::OwnerId;

/// More segments than these are merged whatever their size.
const MAX_SEGMENTS: usize = 1024;
/// Segments that are merged only if nothing else can be.
const RECENT: usize = 10;
/// Beside its data: time span, pointers and its place in the queue.
const SEGMENT_OVERHEAD: usize = size_of::<Segment>() + 64;
/// Of an owner in the table of those in use.
const OWNER_OVERHEAD: usize = 24;

/// Who called what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    /// Who.
    pub owner: OwnerId,
    /// What.
    pub call: Call,
}

impl Key {
    fn pack(self) -> u64 {
        u64::from(self.owner.0) << 19 | (self.call.abi as u64) << 16 | u64::from(self.call.number)
    }

    fn unpack(packed: u64) -> Option<Self> {
        Some(Self {
            owner: OwnerId(u32::try_from(packed >> 19).ok()?),
            call: Call {
                abi: *Abi::ALL.get((packed >> 16 & 7) as usize)?,
                number: (packed & 0xffff) as u16,
            },
        })
    }
}

/// How calls ended, and how long they took; of those that returned while that was measured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measured {
    /// Calls that returned.
    pub returned: u64,
    /// Time from entry to return, in nanoseconds.
    pub total_ns: u64,
    /// Calls that failed, by errno, in its order.
    pub errors: Vec<(u16, u64)>,
    /// Calls by time: bucket `i` took less than 2^i ns, and the last one any time above that.
    pub buckets: [u64; LATENCY_BUCKETS],
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            returned: 0,
            total_ns: 0,
            errors: Vec::new(),
            buckets: [0; LATENCY_BUCKETS],
        }
    }
}

impl Measured {
    /// Calls that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors
            .iter()
            .fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Adds calls that failed with an errno.
    pub fn add_error(&mut self, errno: u16, count: u64) {
        match self.errors.binary_search_by_key(&errno, |(errno, _)| *errno) {
            Ok(at) => self.errors[at].1 = self.errors[at].1.saturating_add(count),
            Err(at) => self.errors.insert(at, (errno, count)),
        }
    }

    fn add(&mut self, other: &Self) {
        self.returned = self.returned.saturating_add(other.returned);
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
        for &(errno, count) in &other.errors {
            self.add_error(errno, count);
        }
        for (sum, more) in self.buckets.iter_mut().zip(other.buckets) {
            *sum = sum.saturating_add(more);
        }
    }

    /// Upper bound in nanoseconds of the bucket that holds the percentile (0 to 1); `None` without a call that was
    /// measured, `Some(0)` if it is the last bucket, which has no bound.
    #[must_use]
    pub fn percentile(&self, part: f64) -> Option<u64> {
        let all: u64 = self
            .buckets
            .iter()
            .fold(0, |sum, &count| sum.saturating_add(count));
        if all == 0 {
            return None;
        }
        let rank = ((all as f64 * part).ceil() as u64).clamp(1, all);
        let mut sum = 0u64;
        let bucket = self.buckets.iter().position(|&count| {
            sum = sum.saturating_add(count);
            sum >= rank
        })?;
        Some(upper_bound(bucket))
    }
}

/// What calls of a bucket took less than, in nanoseconds; 0: the last one, without a bound.
#[must_use]
pub const fn upper_bound(bucket: usize) -> u64 {
    if bucket + 1 >= LATENCY_BUCKETS || bucket >= 64 {
        0
    } else {
        1 << bucket
    }
}

/// What an owner did with a call.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// Calls.
    pub count: u64,
    /// How they ended, where that was measured.
    pub measured: Option<Box<Measured>>,
}

impl Record {
    /// How calls ended, to add to.
    pub fn measured_mut(&mut self) -> &mut Measured {
        self.measured.get_or_insert_with(Box::default)
    }

    /// Adds another one's calls.
    pub fn add(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        if let Some(more) = &other.measured {
            self.measured_mut().add(more);
        }
    }
}

/// Records of a span of time.
#[derive(Debug)]
pub struct Segment {
    /// Unix time in nanoseconds.
    pub from_ns: u64,
    /// Unix time in nanoseconds.
    pub to_ns: u64,
    /// So much of it how calls ended was measured.
    pub measured_ns: u64,
    calls: u64,
    data: Box<[u8]>,
}

impl Segment {
    fn encode((from_ns, to_ns): (u64, u64), measured_ns: u64, records: &BTreeMap<Key, Record>) -> Self {
        let mut data = Vec::with_capacity(records.len() * 6);
        let mut put = |value: u64| {
            let mut buffer = [0; 10];
            let len = value.encode_var(&mut buffer);
            data.extend_from_slice(&buffer[..len]);
        };
        let (mut before, mut calls) = (0, 0u64);
        for (key, record) in records {
            let packed = key.pack();
            put((packed - before) << 1 | u64::from(record.measured.is_some()));
            before = packed;
            put(record.count);
            calls = calls.saturating_add(record.count);
            let Some(measured) = &record.measured else {
                continue;
            };
            put(measured.returned);
            put(measured.total_ns);
            put(measured.errors.len() as u64);
            for &(errno, count) in &measured.errors {
                put(u64::from(errno));
                put(count);
            }
            let filled = measured.buckets.iter().filter(|&&count| count != 0).count();
            put(filled as u64);
            for (bucket, &count) in measured.buckets.iter().enumerate() {
                if count != 0 {
                    put(bucket as u64);
                    put(count);
                }
            }
        }
        Self {
            from_ns,
            to_ns,
            measured_ns,
            calls,
            data: data.into(),
        }
    }

    /// Its records in the order of their keys.
    pub fn records(&self) -> impl Iterator<Item = (Key, Record)> + '_ {
        let mut reader = Reader {
            data: &self.data,
            before: 0,
        };
        std::iter::from_fn(move || reader.record())
    }

    fn memory(&self) -> usize {
        self.data.len() + SEGMENT_OVERHEAD
    }

    fn duration_ns(&self) -> u64 {
        self.to_ns - self.from_ns
    }
}

struct Reader<'a> {
    data: &'a [u8],
    before: u64,
}

impl Reader<'_> {
    fn take(&mut self) -> Option<u64> {
        let (value, len) = u64::decode_var(self.data)?;
        self.data = &self.data[len..];
        Some(value)
    }

    fn record(&mut self) -> Option<(Key, Record)> {
        let head = self.take()?;
        self.before += head >> 1;
        let key = Key::unpack(self.before)?;
        let count = self.take()?;
        let measured = if head & 1 == 0 {
            None
        } else {
            let mut measured = Measured {
                returned: self.take()?,
                total_ns: self.take()?,
                ..Measured::default()
            };
            for _ in 0..self.take()? {
                let errno = u16::try_from(self.take()?).ok()?;
                measured.errors.push((errno, self.take()?));
            }
            for _ in 0..self.take()? {
                let bucket = usize::try_from(self.take()?).ok()?;
                *measured.buckets.get_mut(bucket)? = self.take()?;
            }
            Some(Box::new(measured))
        };
        Some((key, Record { count, measured }))
    }
}

/// Bounds of a [`CallHistory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallHistoryLimits {
    /// How far back it goes.
    pub span: Duration,
    /// Memory of what it keeps, in bytes.
    pub bytes: usize,
}

/// What happened to calls in a [`CallHistory`], since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CallHistoryCounts {
    /// Calls that were added.
    pub seen: u64,
    /// Calls that were forgotten before their time, for want of memory.
    pub evicted: u64,
    /// Calls whose time had come.
    pub expired: u64,
    /// Segments that were merged with their neighbour, for want of memory.
    pub merged: u64,
}

/// Recent calls of this machine.
#[derive(Debug)]
pub struct CallHistory {
    limits: CallHistoryLimits,
    segments: VecDeque<Segment>,
    /// Segments that name an owner.
    owners: HashMap<OwnerId, u32>,
    open: BTreeMap<Key, Record>,
    bytes: usize,
    last_to_ns: u64,
    counts: CallHistoryCounts,
}

impl CallHistory {
    /// An empty history that begins at `from_ns` (Unix time).
    #[must_use]
    pub fn new(limits: CallHistoryLimits, from_ns: u64) -> Self {
        Self {
            limits,
            segments: VecDeque::new(),
            owners: HashMap::new(),
            open: BTreeMap::new(),
            bytes: 0,
            last_to_ns: from_ns,
            counts: CallHistoryCounts::default(),
        }
    }

    /// The record of the open interval to add to. Cost: one look-up.
    pub fn record(&mut self, owner: OwnerId, call: Call) -> &mut Record {
        self.open.entry(Key { owner, call }).or_default()
    }

    /// Ends the interval at `to_ns` (Unix time), and hands on what it brought. `measured`: whether how calls ended was
    /// measured in it. Cost: linear in the interval's records; now and then in two segments'.
    pub fn commit(&mut self, to_ns: u64, measured: bool) -> BTreeMap<Key, Record> {
        let from_ns = self.last_to_ns;
        let to_ns = to_ns.max(from_ns.saturating_add(1));
        let open = std::mem::take(&mut self.open);
        let segment = Segment::encode(
            (from_ns, to_ns),
            if measured { to_ns - from_ns } else { 0 },
            &open,
        );
        self.counts.seen = self.counts.seen.saturating_add(segment.calls);
        self.last_to_ns = to_ns;
        self.push(self.segments.len(), segment);
        let span = u64::try_from(self.limits.span.as_nanos()).unwrap_or(u64::MAX);
        let horizon = to_ns.saturating_sub(span);
        while self.segments.len() > 1 && self.segments[0].to_ns <= horizon {
            let calls = self.drop_segment(0).calls;
            self.counts.expired = self.counts.expired.saturating_add(calls);
        }
        while self.memory() > self.limits.bytes || self.segments.len() > MAX_SEGMENTS {
            let old = self.segments.len().saturating_sub(RECENT);
            if self.merge_best(old) || self.merge_best(self.segments.len().saturating_sub(1)) {
                continue;
            }
            if self.segments.len() <= 1 {
                break;
            }
            let calls = self.drop_segment(0).calls;
            self.counts.evicted = self.counts.evicted.saturating_add(calls);
        }
        open
    }

    fn push(&mut self, at: usize, segment: Segment) {
        let mut last = None;
        for (key, _) in segment.records() {
            if last != Some(key.owner) {
                last = Some(key.owner);
                *self.owners.entry(key.owner).or_default() += 1;
            }
        }
        self.bytes += segment.memory();
        self.segments.insert(at, segment);
    }

    fn drop_segment(&mut self, at: usize) -> Segment {
        let Some(segment) = self.segments.remove(at) else {
            unreachable!("asked only for segments that there are");
        };
        self.bytes -= segment.memory();
        let mut last = None;
        for (key, _) in segment.records() {
            if last != Some(key.owner) {
                last = Some(key.owner);
                if let Some(segments) = self.owners.get_mut(&key.owner) {
                    *segments -= 1;
                    if *segments == 0 {
                        self.owners.remove(&key.owner);
                    }
                }
            }
        }
        segment
    }

    /// Merges, of the first `among` segments, the two neighbours that are shortest for their age, if that saves memory and
    /// leaves none longer than a fifth of the span.
    fn merge_best(&mut self, among: usize) -> bool {
        let longest = u64::try_from(self.limits.span.as_nanos()).unwrap_or(u64::MAX) / 5;
        let now = self.last_to_ns;
        let best = (1..among.min(self.segments.len()))
            .filter_map(|second| {
                let (a, b) = (&self.segments[second - 1], &self.segments[second]);
                let length = a.duration_ns().saturating_add(b.duration_ns());
                let age = now.saturating_sub(a.from_ns).max(1);
                (length <= longest).then_some((length as f64 / age as f64, second - 1))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, at)) = best else {
            return false;
        };
        let (first, second) = (self.drop_segment(at), self.drop_segment(at));
        let mut records: BTreeMap<Key, Record> = first.records().collect();
        for (key, record) in second.records() {
            records.entry(key).or_default().add(&record);
        }
        let measured = first.measured_ns + second.measured_ns;
        let merged = Segment::encode((first.from_ns, second.to_ns), measured, &records);
        self.push(at, merged);
        self.counts.merged += 1;
        true
    }

    /// Segments that a span of time touches, oldest first.
    pub fn segments(&self, since: Option<u64>, until: Option<u64>) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| {
            since.is_none_or(|since| segment.to_ns > since)
                && until.is_none_or(|until| segment.from_ns < until)
        })
    }

    /// Whether a segment or the open interval names an owner.
    #[must_use]
    pub fn names(&self, owner: OwnerId) -> bool {
        let first = Key {
            owner,
            call: Call {
                abi: Abi::X86_64,
                number: 0,
            },
        };
        self.owners.contains_key(&owner)
            || self
                .open
                .range(first..)
                .next()
                .is_some_and(|(key, _)| key.owner == owner)
    }

    /// The span that it covers (Unix time in nanoseconds), if it has an interval.
    #[must_use]
    pub fn covered(&self) -> Option<(u64, u64)> {
        Some((self.segments.front()?.from_ns, self.segments.back()?.to_ns))
    }

    /// What happened to calls, since the start.
    #[must_use]
    pub const fn counts(&self) -> CallHistoryCounts {
        self.counts
    }

    /// Bytes of what it keeps.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.bytes + self.owners.len() * OWNER_OVERHEAD
    }

    /// Its bound on memory, in bytes.
    #[must_use]
    pub const fn max_memory(&self) -> usize {
        self.limits.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn history(bytes: usize) -> CallHistory {
        let limits = CallHistoryLimits {
            span: Duration::from_secs(300),
            bytes,
        };
        CallHistory::new(limits, 1000 * SECOND)
    }

    fn call(number: u16) -> Call {
        Call {
            abi: Abi::native(),
            number,
        }
    }

    fn sum<'a>(segments: impl Iterator<Item = &'a Segment>) -> BTreeMap<Key, Record> {
        let mut all = BTreeMap::<_, Record>::new();
        for (key, record) in segments.flat_map(|segment| segment.records().collect::<Vec<_>>()) {
            all.entry(key).or_default().add(&record);
        }
        all
    }

    #[test]
    fn percentiles_are_bounds_of_buckets() {
        let mut measured = Measured::default();
        assert_eq!(measured.percentile(0.5), None);
        // 98 below 1024 ns, one below 4096, one longer than all.
        measured.buckets[10] = 98;
        measured.buckets[12] = 1;
        measured.buckets[LATENCY_BUCKETS - 1] = 1;
        assert_eq!(measured.percentile(0.5), Some(1024));
        assert_eq!(measured.percentile(0.99), Some(4096));
        assert_eq!(measured.percentile(1.0), Some(0));
    }

    #[test]
    fn a_span_is_answered_by_whole_intervals() {
        let mut history = history(1 << 20);
        for second in 1..=10u64 {
            history.record(OwnerId(1), call(0)).count += second;
            history.commit((1000 + second) * SECOND, second > 8);
        }
        let count = |since: u64, until: u64| {
            let segments = history.segments(Some(since * SECOND), Some(until * SECOND));
            sum(segments).values().map(|record| record.count).sum::<u64>()
        };
        assert_eq!(count(1000, 1010), 55);
        assert_eq!(count(1003, 1005), 4 + 5);
        assert_eq!(count(1010, 1020), 0);
        let measured: u64 = history.segments(None, None).map(|it| it.measured_ns).sum();
        assert_eq!(measured, 2 * SECOND);
        assert!(history.names(OwnerId(1)) && !history.names(OwnerId(2)));
        // Its time comes.
        history.commit(1400 * SECOND, false);
        assert!(!history.names(OwnerId(1)));
        assert_eq!(history.counts().expired, 55);
    }

    #[test]
    fn what_has_no_room_is_merged_then_forgotten_and_counted() {
        let mut history = history(4000);
        let mut seen = 0;
        for second in 1..=300u64 {
            for number in 0..20 {
                history.record(OwnerId(number as u32 / 5), call(number)).count += second;
                seen += second;
            }
            history.commit((1000 + second) * SECOND, false);
            assert!(history.memory() <= 4000);
        }
        let kept: u64 = sum(history.segments(None, None))
            .values()
            .map(|it| it.count)
            .sum();
        let counts = history.counts();
        assert!(counts.merged > 0);
        assert_eq!(counts.seen, seen);
        assert_eq!(kept + counts.evicted + counts.expired, seen);
        // Recent seconds stay apart.
        let last = history.segments(Some(1299 * SECOND), None);
        assert_eq!(sum(last).values().map(|it| it.count).sum::<u64>(), 20 * 300);
    }

    prop_compose! {
        fn any_record()(
            count: u32,
            errors in proptest::collection::vec((1u16..4096, 1u64..1000), 0..4),
            buckets in proptest::collection::vec((0..LATENCY_BUCKETS, 1u64..1000), 0..5),
            total_ns in 0u64..1 << 40,
            measured: bool,
        ) -> Record {
            let mut record = Record { count: count.into(), measured: None };
            if measured {
                let into = record.measured_mut();
                into.total_ns = total_ns;
                for (errno, count) in errors {
                    into.add_error(errno, count);
                }
                for (bucket, count) in buckets {
                    into.buckets[bucket] += count;
                    into.returned += count;
                }
            }
            record
        }
    }

    proptest! {
        /// Against the plainest model: a list of all that was added.
        #[test]
        fn it_agrees_with_a_list(
            intervals in proptest::collection::vec(
                proptest::collection::vec(((0u32..40, 0usize..3, prop_oneof![0u16..576, Just(Call::UNKNOWN)]), any_record()), 0..20),
                1..40,
            ),
            since in 0u64..45,
            len in 1u64..45,
        ) {
            let mut history = history(1 << 20);
            let mut model = Vec::new();
            for (second, records) in intervals.iter().enumerate() {
                for ((owner, abi, number), record) in records {
                    let call = Call { abi: Abi::HERE[*abi % Abi::HERE.len()], number: *number };
                    let owner = OwnerId(*owner);
                    history.record(owner, call).add(record);
                    model.push((second as u64, Key { owner, call }, record.clone()));
                }
                history.commit((1001 + second as u64) * SECOND, false);
            }
            let (from, to) = (since, since + len);
            let mut expected = BTreeMap::<_, Record>::new();
            for (second, key, record) in &model {
                if (from..to).contains(second) {
                    expected.entry(*key).or_default().add(record);
                }
            }
            let answer = sum(history.segments(Some((1000 + from) * SECOND), Some((1000 + to) * SECOND)));
            prop_assert_eq!(answer, expected);
            for (_, key, _) in &model {
                prop_assert!(history.names(key.owner));
            }
        }

        #[test]
        fn however_little_memory_there_is_nothing_vanishes_uncounted(
            intervals in proptest::collection::vec(proptest::collection::vec((0u32..40, 0u16..576, any_record()), 0..20), 1..60),
            bytes in 500usize..8000,
        ) {
            let mut history = history(bytes);
            let mut seen = 0u64;
            for (second, records) in intervals.iter().enumerate() {
                for (owner, number, record) in records {
                    history.record(OwnerId(*owner), call(*number)).add(record);
                    seen += record.count;
                }
                history.commit((1010 + 10 * second as u64) * SECOND, false);
            }
            let kept: u64 = sum(history.segments(None, None)).values().map(|it| it.count).sum();
            let counts = history.counts();
            prop_assert_eq!(counts.seen, seen);
            prop_assert_eq!(kept + counts.evicted + counts.expired, seen);
        }
    }
}
