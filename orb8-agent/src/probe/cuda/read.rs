//! Takes the counts out: copies what the programs have counted, and hands on the difference to the last copy.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap, HashSet},
    io,
    os::fd::OwnedFd,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use orb8_common::cuda::{AllocationKey, CallKey, Calls, Holder};

use super::{CudaSink, Held, function::Function};
use crate::{
    bpf::batch::BatchDrain,
    probe::object::{LoadError, MapFds, Shared, removed, typed},
};

/// Why counts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A map could not be copied; what is in it comes the next time.
    #[error("cannot read map {map} of the CUDA programs: {source}")]
    Copy {
        /// Which map.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An entry of nobody could not be removed; it is tried again.
    #[error("cannot write map {map} of the CUDA programs: {source}")]
    Write {
        /// Which map.
        map: &'static str,
        /// Why.
        source: MapError,
    },
}

/// Entries of hash maps that one system call copies.
const BATCH: usize = 512;

/// Reads the maps.
pub(super) struct Reader {
    calls: HashMap<MapData, Shared<CallKey>, Shared<Calls>>,
    calls_fd: OwnedFd,
    holders: HashMap<MapData, u32, Shared<Holder>>,
    holders_fd: OwnedFd,
    allocations: HashMap<MapData, Shared<AllocationKey>, u64>,
    allocations_fd: OwnedFd,
    copy_calls: BatchDrain<CallKey, Calls>,
    copy_holders: BatchDrain<u32, Holder>,
    copy_allocations: BatchDrain<AllocationKey, u64>,
    last: StdHashMap<CallKey, Calls>,
    /// Processes that had ended when allocations were last gone through.
    ended: u64,
    held: BTreeMap<u64, Held>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(ebpf: &mut Ebpf, maps: &MapFds) -> Result<Self, LoadError> {
        Ok(Self {
            calls: typed(ebpf, "CALLS")?,
            calls_fd: maps.get("CALLS")?,
            holders: typed(ebpf, "HOLDERS")?,
            holders_fd: maps.get("HOLDERS")?,
            allocations: typed(ebpf, "ALLOCATIONS")?,
            allocations_fd: maps.get("ALLOCATIONS")?,
            copy_calls: BatchDrain::new(BATCH),
            copy_holders: BatchDrain::new(BATCH),
            copy_allocations: BatchDrain::new(BATCH),
            last: StdHashMap::new(),
            ended: 0,
            held: BTreeMap::new(),
        })
    }

    pub(super) const fn held(&self) -> &BTreeMap<u64, Held> {
        &self.held
    }

    /// `ended`: processes that held something and have ended, as the programs count them.
    pub(super) fn read(
        &mut self,
        ended: u64,
        gone: &mut dyn FnMut(u64) -> bool,
        sink: &mut dyn CudaSink,
    ) -> Result<(), ReadError> {
        self.read_calls(gone, sink)?;
        let mut allocations = Vec::new();
        if ended != self.ended {
            // Before the holders: a process is there before the first of its allocations.
            self.copy_allocations
                .copy(&self.allocations_fd, |key, _| allocations.push(*key))
                .map_err(|source| ReadError::Copy {
                    map: "ALLOCATIONS",
                    source,
                })?;
        }
        let mut held = BTreeMap::<u64, Held>::new();
        let mut holders = HashSet::new();
        self.copy_holders
            .copy(&self.holders_fd, |&tgid, holder| {
                holders.insert((tgid, holder.since_ns));
                if holder.bytes > 0 {
                    let sum = held.entry(holder.cgroup).or_default();
                    sum.bytes = sum.bytes.saturating_add(holder.bytes);
                    sum.processes += 1;
                }
            })
            .map_err(|source| ReadError::Copy {
                map: "HOLDERS",
                source,
            })?;
        self.held = held;
        for key in allocations {
            if !holders.contains(&(key.tgid, key.since_ns)) {
                remove(&mut self.allocations, &Shared(key), "ALLOCATIONS")?;
            }
        }
        self.ended = ended;
        Ok(())
    }

    fn read_calls(
        &mut self,
        gone: &mut dyn FnMut(u64) -> bool,
        sink: &mut dyn CudaSink,
    ) -> Result<(), ReadError> {
        let mut idle = Vec::new();
        let last = &mut self.last;
        self.copy_calls
            .copy(&self.calls_fd, |&key, &now| {
                let before = last.insert(key, now).unwrap_or_default();
                let delta = Calls {
                    count: now.count.saturating_sub(before.count),
                    errors: now.errors.saturating_sub(before.errors),
                    bytes: now.bytes.saturating_sub(before.bytes),
                    total_ns: now.total_ns.saturating_sub(before.total_ns),
                    returned: now.returned.saturating_sub(before.returned),
                };
                if delta == Calls::default() {
                    idle.push(key);
                } else if let Some(function) = Function::of_record(key.function) {
                    sink.calls(key.cgroup, function, &delta);
                }
            })
            .map_err(|source| ReadError::Copy { map: "CALLS", source })?;
        // A cgroup that is gone has no process that could add to its counts.
        for key in idle {
            if gone(key.cgroup) {
                remove(&mut self.calls, &Shared(key), "CALLS")?;
                self.last.remove(&key);
            }
        }
        Ok(())
    }

    pub(super) fn forget_holders(&mut self, mut exists: impl FnMut(u32) -> bool) {
        let missing: Vec<u32> = self
            .holders
            .keys()
            .filter_map(Result::ok)
            .filter(|&tgid| !exists(tgid))
            .collect();
        for tgid in missing {
            // It may have ended meanwhile.
            if self.holders.remove(&tgid).is_ok() {
                // Its allocations are looked for with the next read.
                self.ended = u64::MAX;
            }
        }
    }
}

fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<(), ReadError> {
    // A process frees what it holds while its allocations are gone through.
    removed(map.remove(key)).map_err(|source| ReadError::Write { map: name, source })
}
