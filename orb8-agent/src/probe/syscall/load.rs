//! The object in the kernel: its maps, its programs, and what they are attached to.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering::{Acquire, Release},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, RingBuf},
    programs::{RawTracePoint, raw_trace_point::RawTracePointLink},
};
use orb8_common::syscall::{CALL_SLOTS, CLOSED, CallSlot, Cpu, NUMBERS, Watch, abi};

use super::{
    ENTER, EXIT, OBJECT, ReadError, SyscallOptions, SyscallSink, SyscallStats, TASK_EXIT, compat,
    mapped::Mapped, possible_cpus, read::Reader,
};
use crate::{
    bpf::fd_info::{FdInfo, fd_info},
    preflight::{Feature, Features},
    probe::{
        grace::wait_for_programs,
        object::{EventRing, LoadError, MapFds, Shared, needs, program, typed},
    },
};

const FAMILY: &str = "syscall";

/// Words of [`Cpu`].
mod word {
    pub(super) const CALLER: usize = 1;
    pub(super) const PHASE: usize = 2;
    pub(super) const LOST: usize = 3;
    pub(super) const WANTED: usize = 4;
    pub(super) const SAMPLED_OUT: usize = 5;
    pub(super) const EVENTS_LOST: usize = 6;
    pub(super) const STARTED: usize = 7;
    pub(super) const UNMEASURED: usize = 8;
    pub(super) const ERRORS_LOST: usize = 9;
}

const _: () = {
    assert!(std::mem::offset_of!(Cpu, caller) == 8 * word::CALLER);
    assert!(std::mem::offset_of!(Cpu, phase) == 8 * word::PHASE);
    assert!(std::mem::offset_of!(Cpu, errors_lost) == 8 * word::ERRORS_LOST);
};

/// What every CPU's programs keep.
#[derive(Debug)]
pub(super) struct Cpus(Mapped<Cpu>);

impl Cpus {
    fn sum(&self, word: usize) -> u64 {
        (0..self.0.len())
            .filter_map(|cpu| self.0.words(cpu).get(word))
            .map(|word| word.load(Acquire))
            .sum()
    }

    fn set(&self, word: usize, value: u64) {
        for cpu in 0..self.0.len() {
            if let Some(word) = self.0.words(cpu).get(word) {
                word.store(value, Release);
            }
        }
    }

    /// The next call on each CPU looks its row up.
    pub(super) fn forget_callers(&self) {
        self.set(word::CALLER, 0);
    }
}

/// Where most tasks' calls are measured.
#[derive(Debug)]
struct Slots(Mapped<CallSlot>);

impl Slots {
    /// Takes every slot from whoever has it. Only while no program looks at them.
    fn empty(&self, owner: u64) {
        for at in 0..self.0.len() {
            if let [its_owner, call @ ..] = self.0.words(at) {
                for word in call {
                    word.store(0, Release);
                }
                its_owner.store(owner, Release);
            }
        }
    }

    fn in_use(&self) -> usize {
        (0..self.0.len())
            .filter_map(|at| self.0.words(at).first())
            .filter(|owner| ![0, CLOSED].contains(&owner.load(Acquire)))
            .count()
    }
}

/// The loaded object.
pub(super) struct Loaded {
    ebpf: Ebpf,
    maps: MapFds,
    watches: Array<MapData, Shared<Watch>>,
    cpus: Cpus,
    slots: Slots,
    /// Why there are none.
    without_slots: Option<String>,
    reader: Reader,
    links: Vec<(&'static str, RawTracePointLink)>,
    /// Which phase of latency mode it is, or was.
    phase: u64,
    /// Calls that lasted longer than a phase.
    abandoned: u64,
    /// Calls that programs which are detached by now left out.
    missed: u64,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field(
                "links",
                &self.links.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

impl Loaded {
    /// Makes the maps; no program is loaded yet. Also says what cannot be told on this kernel.
    pub(super) fn new(
        options: &SyscallOptions,
        features: Features,
    ) -> Result<(Self, Vec<String>), LoadError> {
        needs(FAMILY, features.raw_tracepoint, Feature::RawTracepoint)?;
        needs(FAMILY, features.ring_buffer, Feature::RingBuffer)?;
        needs(FAMILY, features.task_storage, Feature::TaskStorage)?;
        let mut limits = Vec::new();
        let flag = compat::compat_flag().unwrap_or_else(|why| {
            limits.push(format!("32-bit calls are counted under native numbers: {why}"));
            compat::CompatFlag { offset: 0, mask: 0 }
        });
        let cpus = possible_cpus()?;
        let current_task = u32::from(features.current_task);
        let native_args = Shared(compat::NATIVE_ARGS);
        let compat_args = Shared(compat::COMPAT_ARGS);
        let (callers, latencies) = (options.callers, options.latencies);
        let mut ebpf = EbpfLoader::new()
            // Nothing in the object is relocated: the one offset that it needs is written into it.
            .btf(None)
            // Storage of tasks, which aya has no type for.
            .allow_unsupported_maps()
            .override_global("CURRENT_TASK_BTF", &current_task, true)
            .override_global("COMPAT_OFFSET", &flag.offset, true)
            .override_global("COMPAT_MASK", &flag.mask, true)
            .override_global("X32_BIT", &compat::X32_BIT, true)
            .override_global("NATIVE_ARGS", &native_args, true)
            .override_global("COMPAT_ARGS", &compat_args, true)
            .map_max_entries("ROWS", callers)
            .map_max_entries("OWNERS", callers)
            .map_max_entries("CALLERS", callers)
            .map_max_entries("FREE_ROWS", callers)
            .map_max_entries("CPUS", cpus)
            .map_max_entries("LATENCY_INDEX", callers)
            .map_max_entries("LATENCIES", latencies)
            .map_max_entries("FREE_LATENCIES", latencies)
            .map_max_entries("ERRORS", latencies)
            .map_max_entries("EVENTS", options.ring_bytes)
            .load(OBJECT)
            .map_err(|source| LoadError::Object {
                family: FAMILY,
                source,
            })?;
        let maps = MapFds::of(&ebpf);
        let loaded = Self {
            watches: typed(&mut ebpf, "WATCHES")?,
            cpus: Cpus(mapped(&maps, "CPUS", cpus)?),
            slots: Slots(mapped(&maps, "SLOTS", CALL_SLOTS)?),
            without_slots: None,
            reader: Reader::new(&mut ebpf, &maps, options)?,
            ebpf,
            maps,
            links: Vec::new(),
            phase: 0,
            abandoned: 0,
            missed: 0,
        };
        Ok((loaded, limits))
    }

    /// Writes how each number is treated.
    pub(super) fn set_watches(
        &mut self,
        weights: &BTreeMap<(u32, u32), u32>,
        flags: impl Fn(u32, u32) -> u32,
    ) -> Result<(), LoadError> {
        for abi in 0..abi::COUNT {
            for number in 0..NUMBERS as u32 {
                let flags = flags(abi, number);
                let weight = weights.get(&(abi, number)).copied().unwrap_or(0);
                if flags != 0 || weight != 0 {
                    self.set_watch(abi, number, Watch { weight, flags })?;
                }
            }
        }
        Ok(())
    }

    /// Writes how one number is treated.
    pub(super) fn set_watch(&mut self, abi: u32, number: u32, watch: Watch) -> Result<(), LoadError> {
        self.watches
            .set(abi * NUMBERS as u32 + number, Shared(watch), 0)
            .map_err(|source| LoadError::Map {
                name: "WATCHES",
                source,
            })
    }

    /// Loads and attaches the program that counts.
    pub(super) fn attach_enter(&mut self) -> Result<(), LoadError> {
        self.attach(ENTER, "sys_enter")
    }

    fn attach(&mut self, name: &'static str, tracepoint: &str) -> Result<(), LoadError> {
        let refused = |source| LoadError::Program { name, source };
        let program: &mut RawTracePoint = program(&mut self.ebpf, name)?;
        if program.fd().is_err() {
            program.load().map_err(refused)?;
        }
        let id = program.attach(tracepoint).map_err(refused)?;
        let link = program.take_link(id).map_err(refused)?;
        self.links.push((name, link));
        Ok(())
    }

    /// Measures from now on.
    pub(super) fn start_latency(&mut self) -> Result<(), LoadError> {
        self.reader.latency_starts()?;
        self.slots.empty(0);
        self.without_slots = None;
        if let Err(error) = self.attach(TASK_EXIT, "sched_process_exit") {
            // Slots would stay with tasks that have ended. All tasks have storage then: calls cost more, and nothing else.
            self.slots.empty(CLOSED);
            self.without_slots = Some(error.to_string());
        }
        if let Err(error) = self.attach(EXIT, "sys_exit") {
            self.unload(|name| name != ENTER);
            return Err(error);
        }
        self.phase += 1;
        self.cpus.set(word::PHASE, self.phase);
        Ok(())
    }

    /// Does not measure any more. Calls that still last are not measured.
    pub(super) fn stop_latency(&mut self) {
        if !self.links.iter().any(|(name, _)| *name == EXIT) {
            return;
        }
        self.cpus.set(word::PHASE, 0);
        self.unload(|name| name != ENTER);
        self.reader.latency_stopped();
        let ended = self.reader.measured_now() + self.cpus.sum(word::UNMEASURED) + self.abandoned;
        self.abandoned += self.cpus.sum(word::STARTED).saturating_sub(ended);
    }

    /// Detaches and unloads everything. The maps keep what was counted.
    pub(super) fn detach(&mut self) {
        self.unload(|_| true);
    }

    fn unload(&mut self, which: impl Fn(&str) -> bool) {
        self.links.retain(|(name, _)| !which(name));
        wait_for_programs();
        for name in [ENTER, EXIT, TASK_EXIT].into_iter().filter(|name| which(name)) {
            if name == ENTER {
                self.missed += self.info(name).map_or(0, |info| info.recursion_misses);
            }
            if let Ok(program) = program::<RawTracePoint>(&mut self.ebpf, name) {
                // It may not have been loaded.
                let _ = program.unload();
            }
        }
    }

    /// A reading end of the event ring, which goes on where the last one ended.
    pub(super) fn events(&self) -> Result<EventRing, LoadError> {
        const NAME: &str = "EVENTS";
        MapData::from_fd(self.maps.get(NAME)?)
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map(EventRing)
            .map_err(|source| LoadError::Map { name: NAME, source })
    }

    /// What the kernel says of a program, if it is loaded.
    pub(super) fn info(&self, name: &str) -> Option<FdInfo> {
        fd_info(self.ebpf.program(name)?.fd().ok()?).ok()
    }

    /// Tasks that have a slot for their calls.
    pub(super) fn slots_in_use(&self) -> usize {
        self.slots.in_use()
    }

    /// Why no task has one.
    pub(super) fn without_slots(&self) -> Option<&str> {
        self.without_slots.as_deref()
    }

    pub(super) fn map_bytes(&self) -> u64 {
        self.maps.bytes()
    }

    pub(super) fn stats(&self) -> SyscallStats {
        let mut stats = self.reader.stats();
        let missing = self.info(ENTER).map_or(0, |info| info.recursion_misses);
        stats.lost = self.cpus.sum(word::LOST) + self.missed + missing;
        stats.seen = stats.counted + stats.remainder + stats.lost;
        stats.events_wanted = self.cpus.sum(word::WANTED);
        stats.events_sampled_out = self.cpus.sum(word::SAMPLED_OUT);
        stats.events_lost = self.cpus.sum(word::EVENTS_LOST);
        stats.started = self.cpus.sum(word::STARTED);
        stats.unmeasured = self.cpus.sum(word::UNMEASURED) + self.abandoned;
        stats.outlasted = self.abandoned;
        stats.errors_lost = self.cpus.sum(word::ERRORS_LOST);
        stats
    }

    pub(super) fn read(
        &mut self,
        gone: &mut dyn FnMut(u64) -> bool,
        sink: &mut dyn SyscallSink,
    ) -> Result<(), ReadError> {
        self.reader.read(&self.cpus, gone, sink)
    }
}

/// A map in memory.
pub(super) fn mapped<T: Copy>(maps: &MapFds, name: &'static str, len: u32) -> Result<Mapped<T>, LoadError> {
    Mapped::new(maps.get(name)?, len).map_err(|source| LoadError::Memory { name, source })
}
