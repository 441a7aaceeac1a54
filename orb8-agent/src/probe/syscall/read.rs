//! Takes the counts out: compares what the programs have counted with the last copy of it, and hands on the difference.

use std::{
    collections::HashMap as StdHashMap,
    io,
    os::fd::OwnedFd,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, Stack},
};
use orb8_common::syscall::{CallerKey, ErrorKey, LATENCY_BUCKETS, Latency, LatencyIndex, NUMBERS, Row};

use super::{
    SyscallOptions, SyscallSink, SyscallStats,
    load::{Cpus, mapped},
    mapped::Mapped,
};
use crate::{
    bpf::batch::BatchDrain,
    probe::{
        grace::wait_for_programs,
        object::{self, LoadError, MapFds, Shared, typed},
    },
};

/// Why counts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A map could not be copied; what is in it comes the next time.
    #[error("cannot read map {map} of the syscall programs: {source}")]
    Copy {
        /// Which map.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A row could not be given to others; it is out of use until the programs are loaded again.
    #[error("cannot write map {map} of the syscall programs: {source}")]
    Write {
        /// Which map.
        map: &'static str,
        /// Why.
        source: MapError,
    },
}

/// What a row was when it was last read.
#[derive(Debug)]
struct Last {
    owner: CallerKey,
    calls: Box<[u64; NUMBERS]>,
    latencies: StdHashMap<u32, [u64; 1 + LATENCY_BUCKETS]>,
}

impl Last {
    fn new(owner: CallerKey) -> Self {
        Self {
            owner,
            calls: Box::new([0; NUMBERS]),
            latencies: StdHashMap::new(),
        }
    }
}

/// Reads the maps.
pub(super) struct Reader {
    rows: Mapped<Row>,
    owners: Mapped<CallerKey>,
    index: Mapped<LatencyIndex>,
    latencies: Mapped<Latency>,
    callers: HashMap<MapData, Shared<CallerKey>, u32>,
    free_rows: Stack<MapData, u32>,
    free_latencies: Stack<MapData, u32>,
    remainder_map: HashMap<MapData, u64, u64>,
    remainder_fd: OwnedFd,
    errors_map: HashMap<MapData, Shared<ErrorKey>, u64>,
    errors_fd: OwnedFd,
    copy_remainder: BatchDrain<u64, u64>,
    copy_errors: BatchDrain<ErrorKey, u64>,

    /// By row; `None` for those that are nobody's.
    last: Vec<Option<Last>>,
    /// By cgroup: the count, and whether it has not changed since the read before.
    last_remainder: StdHashMap<u64, (u64, bool)>,
    last_errors: StdHashMap<ErrorKey, u64>,
    /// Histograms have been made available to the programs.
    has_latencies: bool,
    /// Latency is measured, or was since the last read.
    measuring: Measuring,
    stats: SyscallStats,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Measuring {
    No,
    Yes,
    /// Not any more; the last results have not been read.
    Stopped,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// Entries of hash maps that one system call copies.
const BATCH: usize = 512;

impl Reader {
    /// Of an object that nothing runs of yet.
    pub(super) fn new(ebpf: &mut Ebpf, maps: &MapFds, options: &SyscallOptions) -> Result<Self, LoadError> {
        let mut free_rows: Stack<_, u32> = typed(ebpf, "FREE_ROWS")?;
        // The last in is the first out: rows are given away from the beginning.
        for row in (0..options.callers).rev() {
            free_rows.push(row, 0).map_err(|source| LoadError::Map {
                name: "FREE_ROWS",
                source,
            })?;
        }
        Ok(Self {
            rows: mapped(maps, "ROWS", options.callers)?,
            owners: mapped(maps, "OWNERS", options.callers)?,
            index: mapped(maps, "LATENCY_INDEX", options.callers)?,
            latencies: mapped(maps, "LATENCIES", options.latencies)?,
            callers: typed(ebpf, "CALLERS")?,
            free_rows,
            free_latencies: typed(ebpf, "FREE_LATENCIES")?,
            remainder_map: typed(ebpf, "REMAINDER")?,
            remainder_fd: maps.get("REMAINDER")?,
            errors_map: typed(ebpf, "ERRORS")?,
            errors_fd: maps.get("ERRORS")?,
            copy_remainder: BatchDrain::new(BATCH),
            copy_errors: BatchDrain::new(BATCH),
            last: (0..options.callers).map(|_| None).collect(),
            last_remainder: StdHashMap::new(),
            last_errors: StdHashMap::new(),
            has_latencies: false,
            measuring: Measuring::No,
            stats: SyscallStats::default(),
        })
    }

    /// Latency is about to be measured.
    pub(super) fn latency_starts(&mut self) -> Result<(), LoadError> {
        if !self.has_latencies {
            for latency in (0..self.latencies.len()).rev() {
                self.free_latencies
                    .push(latency, 0)
                    .map_err(|source| LoadError::Map {
                        name: "FREE_LATENCIES",
                        source,
                    })?;
            }
            self.has_latencies = true;
        }
        self.measuring = Measuring::Yes;
        Ok(())
    }

    /// Latency is not measured any more.
    pub(super) fn latency_stopped(&mut self) {
        self.measuring = Measuring::Stopped;
    }

    /// As of the last read.
    pub(super) fn stats(&self) -> SyscallStats {
        self.stats
    }

    /// Calls that have been measured, also those that have not been read yet.
    pub(super) fn measured_now(&self) -> u64 {
        let mut measured = self.stats.measured;
        for row in 0..self.owners.len() {
            let known = self.last[row as usize].as_ref();
            for (number, latency) in self.indexed(row) {
                let last = known.and_then(|last| last.latencies.get(&number));
                let now = self.latencies.words(latency);
                for (bucket, word) in now.iter().enumerate().skip(1) {
                    measured += word.load(Acquire) - last.map_or(0, |last| last[bucket]);
                }
            }
        }
        measured
    }

    /// Numbers of a row that have a histogram, and which.
    fn indexed(&self, row: u32) -> impl Iterator<Item = (u32, u32)> {
        self.index
            .words(row)
            .iter()
            .enumerate()
            .flat_map(|(at, word)| {
                let word = word.load(Acquire);
                if word == 0 {
                    return [None, None];
                }
                // Two numbers in a word, in this machine's byte order.
                let halves: [u32; 2] = if cfg!(target_endian = "little") {
                    [word as u32, (word >> 32) as u32]
                } else {
                    [(word >> 32) as u32, word as u32]
                };
                let number = 2 * at as u32;
                [
                    halves[0].checked_sub(1).map(|latency| (number, latency)),
                    halves[1].checked_sub(1).map(|latency| (number + 1, latency)),
                ]
            })
            .flatten()
    }

    fn owner(&self, row: u32) -> CallerKey {
        match self.owners.words(row) {
            [cgroup, abi] => CallerKey {
                cgroup: cgroup.load(Acquire),
                abi: low_half(abi.load(Acquire)),
                reserved: 0,
            },
            _ => CallerKey::default(),
        }
    }

    /// Hands on what is new, then frees what belonged to cgroups that are gone.
    pub(super) fn read(
        &mut self,
        cpus: &Cpus,
        gone: &mut dyn FnMut(u64) -> bool,
        sink: &mut dyn SyscallSink,
    ) -> Result<(), ReadError> {
        for row in 0..self.owners.len() {
            let owner = self.owner(row);
            if owner.cgroup == 0 {
                // Of two CPUs that met a caller at once, one gives its row back; nothing was counted in it.
                self.last[row as usize] = None;
                continue;
            }
            self.calls(row, owner, sink);
        }
        let measuring = self.measuring;
        if measuring != Measuring::No {
            for row in 0..self.owners.len() {
                self.latency(row, sink);
            }
            self.errors(sink)?;
            if measuring == Measuring::Stopped {
                self.measuring = Measuring::No;
            }
        }
        if self.remainder(sink)? {
            // CPUs remember that there was no row; by now there may be one.
            cpus.forget_callers();
        }
        self.free(cpus, gone, sink)?;
        self.stats.rows = self.last.iter().flatten().count() as u32;
        self.stats.latencies = self
            .last
            .iter()
            .flatten()
            .map(|last| last.latencies.len() as u32)
            .sum();
        Ok(())
    }

    fn calls(&mut self, row: u32, owner: CallerKey, sink: &mut dyn SyscallSink) {
        let last = self.last[row as usize].get_or_insert_with(|| Last::new(owner));
        // A row that was given back may have another owner by now.
        last.owner = owner;
        for (number, (word, last)) in self.rows.words(row).iter().zip(last.calls.iter_mut()).enumerate() {
            let now = word.load(Relaxed);
            if now != *last {
                let new = now - *last;
                *last = now;
                self.stats.counted += new;
                sink.calls(owner, number as u32, new);
            }
        }
    }

    fn latency(&mut self, row: u32, sink: &mut dyn SyscallSink) {
        if self.last[row as usize].is_none() {
            return;
        }
        for (number, at) in self.indexed(row).collect::<Vec<_>>() {
            let Some(known) = &mut self.last[row as usize] else {
                return;
            };
            let last = known.latencies.entry(number).or_insert([0; 1 + LATENCY_BUCKETS]);
            let words = self.latencies.words(at);
            if words.len() != last.len() {
                continue;
            }
            let mut buckets = [0; LATENCY_BUCKETS];
            let mut returned = 0;
            // The buckets before the sum: it then has the time of all that they count.
            for ((bucket, word), last) in buckets.iter_mut().zip(&words[1..]).zip(&mut last[1..]) {
                *bucket = difference(word, last);
                returned += *bucket;
            }
            if returned == 0 {
                continue;
            }
            let total_ns = difference(&words[0], &mut last[0]);
            self.stats.measured += returned;
            sink.latency(known.owner, number, returned, total_ns, &buckets);
        }
    }

    fn errors(&mut self, sink: &mut dyn SyscallSink) -> Result<(), ReadError> {
        let (last, rows) = (&mut self.last_errors, &self.last);
        self.copy_errors
            .copy(&self.errors_fd, |key, &now| {
                let owner = rows
                    .get(key.row as usize)
                    .and_then(Option::as_ref)
                    .map(|row| row.owner);
                let Some(owner) = owner else {
                    return;
                };
                let before = last.entry(*key).or_insert(0);
                if now != *before {
                    sink.errors(owner, key.number.into(), key.errno, now.wrapping_sub(*before));
                    *before = now;
                }
            })
            .map(drop)
            .map_err(|source| ReadError::Copy {
                map: "ERRORS",
                source,
            })
    }

    /// True if there was something.
    fn remainder(&mut self, sink: &mut dyn SyscallSink) -> Result<bool, ReadError> {
        let before = self.stats.remainder;
        let (last, sum) = (&mut self.last_remainder, &mut self.stats.remainder);
        for (_, still) in last.values_mut() {
            *still = true;
        }
        self.copy_remainder
            .copy(&self.remainder_fd, |&cgroup, &now| {
                let (before, still) = last.entry(cgroup).or_insert((0, false));
                if now != *before {
                    *sum += now - *before;
                    sink.remainder(cgroup, now - *before);
                    (*before, *still) = (now, false);
                }
            })
            .map_err(|source| ReadError::Copy {
                map: "REMAINDER",
                source,
            })?;
        Ok(self.stats.remainder != before)
    }

    /// Frees the rows of cgroups that are gone. Exact even if one of them is not: its next call gets it another row, and
    /// what was counted until then is handed on.
    fn free(
        &mut self,
        cpus: &Cpus,
        gone: &mut dyn FnMut(u64) -> bool,
        sink: &mut dyn SyscallSink,
    ) -> Result<(), ReadError> {
        // Nobody makes calls in a cgroup that is gone: its remainder has not changed.
        let still: Vec<u64> = self
            .last_remainder
            .iter()
            .filter(|&(&cgroup, &(_, still))| still && gone(cgroup))
            .map(|(&cgroup, _)| cgroup)
            .collect();
        for cgroup in still {
            removed("REMAINDER", self.remainder_map.remove(&cgroup))?;
            self.last_remainder.remove(&cgroup);
        }
        let mut rows = Vec::new();
        for (row, last) in self.last.iter().enumerate() {
            let row = row as u32;
            if let Some(last) = last
                && gone(last.owner.cgroup)
                // Not one that a CPU is about to give back by itself.
                && self.callers.get(&Shared(last.owner), 0).is_ok_and(|its| its == row)
            {
                rows.push((row, last.owner));
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        for &(row, owner) in &rows {
            removed("CALLERS", self.callers.remove(&Shared(owner)))?;
            for word in self.owners.words(row) {
                word.store(0, Release);
            }
        }
        // Programs that had found the row may still add to it, and remember it for the next call on their CPU.
        wait_for_programs();
        cpus.forget_callers();
        wait_for_programs();
        for &(row, owner) in &rows {
            self.calls(row, owner, sink);
            self.latency(row, sink);
        }
        if self.has_latencies {
            self.errors(sink)?;
        }
        for (row, _) in rows {
            self.clear(row)?;
        }
        Ok(())
    }

    /// Gives a row that nobody writes any more to the next caller.
    fn clear(&mut self, row: u32) -> Result<(), ReadError> {
        let zero = |words: &[AtomicU64]| {
            for word in words {
                word.store(0, Release);
            }
        };
        zero(self.rows.words(row));
        let latencies: Vec<u32> = self.indexed(row).map(|(_, latency)| latency).collect();
        zero(self.index.words(row));
        for latency in latencies {
            zero(self.latencies.words(latency));
            self.free_latencies
                .push(latency, 0)
                .map_err(|source| ReadError::Write {
                    map: "FREE_LATENCIES",
                    source,
                })?;
        }
        if self.has_latencies {
            let keys: Vec<ErrorKey> = self
                .last_errors
                .keys()
                .filter(|key| key.row == row)
                .copied()
                .collect();
            for key in keys {
                removed("ERRORS", self.errors_map.remove(&Shared(key)))?;
                self.last_errors.remove(&key);
            }
        }
        self.last[row as usize] = None;
        self.free_rows.push(row, 0).map_err(|source| ReadError::Write {
            map: "FREE_ROWS",
            source,
        })
    }
}

/// What was added since `last`, which becomes what it is now.
fn difference(word: &AtomicU64, last: &mut u64) -> u64 {
    let now = word.load(Acquire);
    let new = now.wrapping_sub(*last);
    *last = now;
    new
}

fn low_half(word: u64) -> u32 {
    if cfg!(target_endian = "little") {
        word as u32
    } else {
        (word >> 32) as u32
    }
}

fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), ReadError> {
    object::removed(result).map_err(|source| ReadError::Write { map, source })
}
