//! What is kept: a bounded ring of samples for each source and device, and who held the device when.
//!
//! All devices of a source share the times of its samples. Of a device only what it tells takes room: 4 bytes a sample for a
//! gauge, 8 for a counter or a size, 1 to say that it was there.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    owners::Owner,
    span::{Nanos, Span},
};

/// Gauges that are kept as 32-bit floats: seven significant digits, more than any sensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gauge {
    Utilization,
    MemoryCopy,
    Temperature,
    Power,
    SmClock,
    MemoryClock,
    GraphicsActive,
    SmActive,
    SmOccupancy,
    TensorActive,
    MemoryActive,
    Fp64Active,
    Fp32Active,
    Fp16Active,
}

pub(crate) const GAUGES: usize = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    Energy,
    PcieTx,
    PcieRx,
    Nvlink,
    EccCorrected,
    EccUncorrected,
}

pub(crate) const COUNTERS: usize = 6;

/// Sizes, as of the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Used,
    Free,
}

pub(crate) const LEVELS: usize = 2;

/// Whole numbers up to here are exact in what is kept; greater ones are refused.
pub(crate) const MAX_WHOLE: u64 = 1 << 53;

/// A number that may be missing.
pub(crate) trait Cell: Copy {
    const MISSING: Self;
    fn get(self) -> Option<f64>;
}

impl Cell for f32 {
    const MISSING: Self = Self::NAN;
    fn get(self) -> Option<f64> {
        (!self.is_nan()).then_some(f64::from(self))
    }
}

impl Cell for f64 {
    const MISSING: Self = Self::NAN;
    fn get(self) -> Option<f64> {
        (!self.is_nan()).then_some(self)
    }
}

/// One field's values, whose last is of the newest sample of the source. Empty until there is a first.
#[derive(Clone, Debug)]
pub(crate) struct Column<T>(VecDeque<T>);

impl<T> Default for Column<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

/// Room is made for so many values at once.
const STEP: usize = 64;

impl<T: Cell> Column<T> {
    /// Of the newest sample; at most `max` are kept.
    fn push(&mut self, value: Option<T>, max: usize) {
        if self.0.is_empty() && value.is_none() {
            return;
        }
        while self.0.len() >= max.max(1) {
            self.0.pop_front();
        }
        if self.0.len() == self.0.capacity() {
            self.0.reserve_exact(STEP.min(max));
        }
        self.0.push_back(value.unwrap_or(T::MISSING));
    }

    /// Of the sample that has so many newer ones.
    fn back(&self, newer: usize) -> Option<f64> {
        let index = self.0.len().checked_sub(newer + 1)?;
        self.0.get(index).copied()?.get()
    }

    fn is_missing(&self) -> bool {
        self.0.iter().all(|value| value.get().is_none())
    }

    fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<T>()
    }
}

/// When a source was sampled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline(VecDeque<Nanos>);

impl Timeline {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn first(&self) -> Option<Nanos> {
        self.0.front().copied()
    }

    pub(crate) fn last(&self) -> Option<Nanos> {
        self.0.back().copied()
    }

    pub(crate) fn time(&self, row: usize) -> Nanos {
        self.0.get(row).copied().unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The first row that is later.
    pub(crate) fn after(&self, time: Nanos) -> usize {
        self.0.partition_point(|row| *row <= time)
    }

    /// The first row that is not earlier.
    pub(crate) fn from(&self, time: Nanos) -> usize {
        self.0.partition_point(|row| *row < time)
    }

    /// Whether one was evicted for it.
    pub(crate) fn push(&mut self, time: Nanos, max: usize) -> bool {
        let full = self.0.len() >= max.max(1);
        if full {
            self.0.pop_front();
        }
        if self.0.len() == self.0.capacity() {
            self.0.reserve_exact(STEP.min(max));
        }
        self.0.push_back(time);
        full
    }

    /// What a gauge of this row tells of: since the row before. After a gap, and of the first row, the moment alone.
    pub(crate) fn covered(&self, row: usize, max_age: Nanos) -> Span {
        let end = self.time(row);
        let before = row.checked_sub(1).map(|before| self.time(before));
        let start = before
            .filter(|before| end.saturating_sub(*before) <= max_age)
            .unwrap_or(end);
        Span { start, end }
    }

    /// The middle of the intervals between samples.
    pub(crate) fn interval(&self) -> Option<Nanos> {
        let mut intervals: Vec<Nanos> = (1..self.len())
            .map(|row| self.time(row) - self.time(row - 1))
            .collect();
        let middle = intervals.len() / 2;
        (!intervals.is_empty()).then(|| *intervals.select_nth_unstable(middle).1)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Nanos>()
    }
}

/// Values of a sample, as they are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) gauges: [Option<f32>; GAUGES],
    pub(crate) counters: [Option<f64>; COUNTERS],
    pub(crate) levels: [Option<f64>; LEVELS],
    pub(crate) memory_total: Option<u64>,
    pub(crate) xid: Option<u32>,
    pub(crate) other: BTreeMap<String, f64>,
    pub(crate) trouble: Option<String>,
    /// None: the source can't tell.
    pub(crate) uses: Option<Vec<Use>>,
}

impl Row {
    /// How many values it has.
    pub(crate) fn values(&self) -> u64 {
        let told = self.gauges.iter().flatten().count()
            + self.counters.iter().flatten().count()
            + self.levels.iter().flatten().count()
            + usize::from(self.memory_total.is_some())
            + usize::from(self.xid.is_some())
            + self.other.len();
        told as u64
    }
}

/// What a process does on a device, as of a sample.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub(crate) pid: u32,
    /// None: nobody knows whose it is.
    pub(crate) owner: Option<Owner>,
    pub(crate) utilization: Option<f64>,
    pub(crate) memory: Option<u64>,
}

/// The device was told of.
const PRESENT: u8 = 1;
/// Its processes were.
const PROCESSES: u8 = 2;
/// One of them is nobody's, or was left out: who is not among them may yet be on the device.
const INCOMPLETE: u8 = 4;

/// What a source told of a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    flags: VecDeque<u8>,
    gauges: [Column<f32>; GAUGES],
    counters: [Column<f64>; COUNTERS],
    levels: [Column<f64>; LEVELS],
    pub(crate) users: Vec<User>,
    /// As of the last sample that told it.
    pub(crate) memory_total: Option<u64>,
    pub(crate) xid: Option<u32>,
    pub(crate) other: BTreeMap<String, f64>,
    pub(crate) trouble: Option<String>,
}

/// Someone's processes on a device.
#[derive(Clone, Debug)]
pub(crate) struct User {
    /// None: nobody knows whose this process is.
    pub(crate) owner: Option<Owner>,
    /// Missing: not on the device; negative: on it, and not measured.
    utilization: Column<f32>,
    memory: Column<f64>,
    /// Its processes: when each was seen first and last.
    pids: Vec<(u32, Nanos, Nanos)>,
}

/// On the device, how much is not known.
const UNMEASURED: f64 = -1.0;
/// Processes of a user that are remembered by number.
const MAX_PIDS: usize = 64;

/// What a user did, as of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Doing {
    /// Nobody knows.
    Unknown,
    /// It was not on the device.
    Absent,
    /// It was on the device. What is none was not measured.
    Present {
        utilization: Option<f64>,
        memory: Option<f64>,
    },
}

/// Rows by number, as in the source's [`Timeline`].
impl Series {
    /// What the newest sample tells; none: it does not tell of the device. Returns users that there was no room for.
    pub(crate) fn push(&mut self, row: Option<Row>, time: Nanos, max: usize, max_users: usize) -> u64 {
        let mut flags = 0;
        let mut refused = 0;
        let mut told = Row::default();
        if let Some(row) = row {
            flags |= PRESENT;
            told = row;
            self.memory_total = told.memory_total.or(self.memory_total);
            self.xid = told.xid;
            self.other = std::mem::take(&mut told.other);
            self.trouble = told.trouble.take();
        }
        for (column, value) in self.gauges.iter_mut().zip(told.gauges) {
            column.push(value, max);
        }
        for (column, value) in self.counters.iter_mut().zip(told.counters) {
            column.push(value, max);
        }
        for (column, value) in self.levels.iter_mut().zip(told.levels) {
            column.push(value, max);
        }
        let mut using: Vec<Option<Using>> = vec![None; self.users.len()];
        if let Some(uses) = told.uses {
            flags |= PROCESSES;
            for one in uses {
                if one.owner.is_none() {
                    flags |= INCOMPLETE;
                }
                let Some(user) = self.user(&one, max_users) else {
                    flags |= INCOMPLETE;
                    refused += 1;
                    continue;
                };
                if using.len() < self.users.len() {
                    using.resize(self.users.len(), None);
                }
                using[user].get_or_insert_with(Using::default).add(&one);
                self.users[user].seen(one.pid, time);
                if let (Some(known), Some(owner)) = (&mut self.users[user].owner, one.owner) {
                    known.learn(owner);
                }
            }
        }
        for (user, using) in self.users.iter_mut().zip(using) {
            user.push(using, max);
        }
        self.users
            .retain(|user| !(user.utilization.is_missing() && user.memory.is_missing()));
        if flags != 0 || !self.flags.is_empty() {
            while self.flags.len() >= max.max(1) {
                self.flags.pop_front();
            }
            if self.flags.len() == self.flags.capacity() {
                self.flags.reserve_exact(STEP.min(max));
            }
            self.flags.push_back(flags);
        }
        refused
    }

    fn user(&mut self, one: &Use, max: usize) -> Option<usize> {
        let found = self
            .users
            .iter()
            .position(|user| match (&user.owner, &one.owner) {
                (Some(known), Some(owner)) => known.is_same(owner),
                (None, None) => user.pids.iter().any(|(pid, ..)| *pid == one.pid),
                // It may have been named since, or be gone before it could be.
                (Some(_), None) => user.was_just_here(one.pid),
                (None, Some(_)) => false,
            });
        if found.is_some() {
            return found;
        }
        if self.users.len() >= max {
            return None;
        }
        self.users.push(User {
            owner: one.owner.clone(),
            utilization: Column::default(),
            memory: Column::default(),
            pids: Vec::new(),
        });
        Some(self.users.len() - 1)
    }

    /// Whether anything of it is still kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.flags.iter().all(|flags| *flags == 0)
    }

    fn flags(&self, row: usize, line: &Timeline) -> u8 {
        let newer = line.len().checked_sub(row + 1);
        newer
            .and_then(|newer| self.flags.len().checked_sub(newer + 1))
            .and_then(|index| self.flags.get(index).copied())
            .unwrap_or_default()
    }

    pub(crate) fn is_present(&self, row: usize, line: &Timeline) -> bool {
        self.flags(row, line) & PRESENT != 0
    }

    /// Whether the row tells of processes.
    pub(crate) fn tells_processes(&self, row: usize, line: &Timeline) -> bool {
        self.flags(row, line) & PROCESSES != 0
    }

    pub(crate) fn gauge(&self, gauge: Gauge, row: usize, line: &Timeline) -> Option<f64> {
        let newer = line.len().checked_sub(row + 1)?;
        self.gauges.get(gauge as usize)?.back(newer)
    }

    pub(crate) fn counter(&self, counter: Counter, row: usize, line: &Timeline) -> Option<f64> {
        let newer = line.len().checked_sub(row + 1)?;
        self.counters.get(counter as usize)?.back(newer)
    }

    pub(crate) fn level(&self, level: Level, row: usize, line: &Timeline) -> Option<f64> {
        let newer = line.len().checked_sub(row + 1)?;
        self.levels.get(level as usize)?.back(newer)
    }

    /// Whether it has any value of the gauge.
    pub(crate) fn has_gauge(&self, gauge: Gauge) -> bool {
        self.gauges
            .get(gauge as usize)
            .is_some_and(|column| !column.0.is_empty())
    }

    /// What a user did.
    pub(crate) fn doing(&self, user: &User, row: usize, line: &Timeline) -> Doing {
        let flags = self.flags(row, line);
        if flags & PROCESSES == 0 {
            return Doing::Unknown;
        }
        let Some(newer) = line.len().checked_sub(row + 1) else {
            return Doing::Unknown;
        };
        match user.utilization.back(newer) {
            None if flags & INCOMPLETE != 0 => Doing::Unknown,
            None => Doing::Absent,
            Some(utilization) => Doing::Present {
                utilization: (utilization >= 0.0).then_some(utilization),
                memory: user.memory.back(newer).filter(|memory| *memory >= 0.0),
            },
        }
    }

    /// Whether it is certain that somebody of whom the row tells nothing was not on the device.
    pub(crate) fn is_complete(&self, row: usize, line: &Timeline) -> bool {
        self.flags(row, line) & (PROCESSES | INCOMPLETE) == PROCESSES
    }

    pub(crate) fn bytes(&self) -> usize {
        let columns = self.gauges.iter().map(Column::bytes).sum::<usize>()
            + self.counters.iter().map(Column::bytes).sum::<usize>()
            + self.levels.iter().map(Column::bytes).sum::<usize>();
        let users: usize = self
            .users
            .iter()
            .map(|user| {
                size_of::<User>()
                    + user.utilization.bytes()
                    + user.memory.bytes()
                    + user.pids.capacity() * size_of::<(u32, Nanos, Nanos)>()
            })
            .sum();
        size_of::<Self>() + self.flags.capacity() + columns + users + self.other.len() * 64
    }
}

/// What all processes of a user do, of one sample.
#[derive(Clone, Copy, Debug, Default)]
struct Using {
    processes: u32,
    /// None once one of them was not measured: then the sum is not known.
    utilization: Option<f64>,
    memory: Option<u64>,
}

impl Using {
    fn add(&mut self, one: &Use) {
        let first = self.processes == 0;
        self.processes = self.processes.saturating_add(1);
        self.utilization = match (self.utilization, one.utilization) {
            (None, value) if first => value,
            (Some(sum), Some(value)) => Some((sum + value).min(1.0)),
            _ => None,
        };
        self.memory = match (self.memory, one.memory) {
            (None, value) if first => value,
            (Some(sum), Some(value)) => Some(sum.saturating_add(value)),
            _ => None,
        };
    }
}

impl User {
    fn push(&mut self, using: Option<Using>, max: usize) {
        let value = |value: Option<f64>| value.unwrap_or(UNMEASURED);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "a share of 0 to 1 has digits to spare; sizes were checked when they came"
        )]
        let cells = using.map(|using| {
            (
                value(using.utilization) as f32,
                value(using.memory.map(|bytes| bytes.min(MAX_WHOLE) as f64)),
            )
        });
        self.utilization.push(cells.map(|(share, _)| share), max);
        self.memory.push(cells.map(|(_, memory)| memory), max);
    }

    fn seen(&mut self, pid: u32, time: Nanos) {
        if let Some(known) = self.pids.iter_mut().find(|(known, ..)| *known == pid) {
            known.2 = time;
            return;
        }
        if self.pids.len() >= MAX_PIDS {
            let oldest = (0..self.pids.len()).min_by_key(|index| self.pids[*index].2);
            if let Some(oldest) = oldest {
                self.pids.swap_remove(oldest);
            }
        }
        self.pids.push((pid, time, time));
    }

    fn was_just_here(&self, pid: u32) -> bool {
        self.utilization.back(0).is_some() && self.pids.iter().any(|(known, ..)| *known == pid)
    }

    /// Its processes that were on the device in this span, as far as they are remembered.
    pub(crate) fn pids(&self, span: Span) -> impl Iterator<Item = u32> {
        self.pids
            .iter()
            .filter(move |(_, first, last)| *first <= span.end && *last >= span.start)
            .map(|(pid, ..)| *pid)
    }
}

/// Who says that a container holds a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Kubelet,
    /// Labels of an exporter, while the kubelet is silent.
    Exporter,
}

/// A container holds a device, or held it.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) says: Says,
    pub(crate) owner: Owner,
    pub(crate) resource: String,
    pub(crate) claim: Option<String>,
    pub(crate) device_ids: Vec<String>,
    /// When it was last known not to hold it yet; none: never.
    pub(crate) absent_before: Option<Nanos>,
    pub(crate) first: Nanos,
    pub(crate) last: Nanos,
    /// When it was known not to hold it any more; none: it does.
    pub(crate) absent_after: Option<Nanos>,
}

impl Hold {
    /// When it may have held it: the moments at both ends, at which it did not, left out.
    pub(crate) fn may_touch(&self, span: Span) -> bool {
        let begins = self.absent_before.is_none_or(|before| before < span.end);
        let ends = self.absent_after.is_none_or(|after| after > span.start);
        begins && ends
    }

    /// When it was seen to hold it. What it was last seen to hold it holds for `max_age` more.
    pub(crate) fn seen(&self, max_age: Nanos) -> Span {
        let end = if self.absent_after.is_none() {
            self.last.saturating_add(max_age)
        } else {
            self.last
        };
        Span {
            start: self.first,
            end,
        }
    }

    /// When it held it for certain; never, by an exporter's word.
    pub(crate) fn certain(&self, max_age: Nanos) -> Option<Span> {
        (self.says == Says::Kubelet).then(|| self.seen(max_age))
    }

    /// As it is shown: who has not been seen to leave is still there.
    pub(crate) fn shown(&self) -> Span {
        Span {
            start: self.first,
            end: if self.absent_after.is_none() {
                Nanos::MAX
            } else {
                self.last
            },
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        let texts = self.owner.namespace.len()
            + self.owner.pod.len()
            + self.owner.container.len()
            + self.owner.uid.len()
            + self.owner.workload.len()
            + self.resource.len()
            + self.claim.as_ref().map_or(0, String::len)
            + self
                .device_ids
                .iter()
                .map(|id| id.len() + size_of::<String>())
                .sum::<usize>();
        size_of::<Self>() + texts
    }
}
