//! The syscall family: its eBPF object, loaded, attached and read.
//!
//! Programs, all raw tracepoints, which need neither tracefs nor perf:
//! - `orb8_sys_enter` counts each call as it is entered, and tells of those that matter one by one;
//! - `orb8_sys_exit`, only in latency mode: how long calls took and how they ended;
//! - `orb8_task_exit`, with it: what a task needed for that goes to others as it ends.
//!
//! Counts lie in maps that the agent has in its own memory: reading takes no system call, stops no program, and costs a
//! comparison of what is in use with the last copy.
//!
//! Ledger: every call that was entered is in a row, in the remainder of its cgroup, or lost, so that what was seen is the
//! sum of the three; every call of which an event was wanted was told, sampled out or lost; every call that was to be measured is
//! measured, unmeasured, or still lasts.

mod arguments;
mod compat;
pub mod event;
mod load;
mod mapped;
mod read;

use std::collections::{BTreeMap, BTreeSet};

use aya::util::nr_cpus;
use orb8_common::syscall::{CallerKey, LATENCY_BUCKETS, NUMBERS, Watch, abi, watch};
use orb8_proto::v1;

use crate::{
    bpf::fd_info::FdInfo,
    preflight::Features,
    probe::object::{EventRing, LoadError},
};
use load::Loaded;
pub use read::ReadError;

/// The object, built by `cargo xtask build-ebpf`; build.rs has checked that it is made for the records that this agent
/// knows.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/syscall.o");

/// What the programs do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Mode {
    /// Nothing is loaded or attached.
    Off,
    /// Calls are counted as they are entered.
    #[default]
    Counts,
    /// Also how each ended, and how long it took.
    Latency,
}

/// Sizes and switches of the syscall probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyscallOptions {
    /// Rows: pairs of cgroup and ABI whose calls are told apart by number. 7 KiB of map memory each.
    pub callers: u32,
    /// Latency histograms: triples of cgroup, ABI and number. 344 bytes each; errors have as many entries.
    pub latencies: u32,
    /// Bytes of the event ring, a power of two and at least a page.
    pub ring_bytes: u32,
    /// Calls that latency mode measures, by ABI and number; empty: all. Of the others it reads no clock, and they cost
    /// little more than in mode counts.
    pub measured: BTreeSet<(u32, u32)>,
    /// The mode to begin with.
    pub mode: Mode,
}

impl SyscallOptions {
    /// The flags of a number ([`watch`]): what its arguments are, and whether it is measured.
    fn flags(&self, abi: u32, number: u32) -> u32 {
        let measured = self.measured.is_empty() || self.measured.contains(&(abi, number));
        arguments::flags(abi, number) | if measured { 0 } else { watch::NOT_MEASURED }
    }
}

/// The probe's ledger, since it was first loaded. What is read from rows is as of the last [`SyscallProbe::read`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyscallStats {
    /// Calls that were entered: the sum of the next three.
    pub seen: u64,
    /// Calls in rows.
    pub counted: u64,
    /// Calls of callers that had no row.
    pub remainder: u64,
    /// Calls in neither, for the remainder was full, or the program was running on that CPU already.
    pub lost: u64,
    /// Events: calls that were to be told one by one.
    pub events_wanted: u64,
    /// Events that sampling left out.
    pub events_sampled_out: u64,
    /// Events that did not fit into the ring.
    pub events_lost: u64,
    /// Latency: calls that were to be measured.
    pub started: u64,
    /// Latency: calls that were. What is neither measured nor unmeasured still lasts.
    pub measured: u64,
    /// Latency: calls that had no room, whose row went to another caller, or that lasted longer than the mode.
    pub unmeasured: u64,
    /// Of these, the ones that lasted longer than the mode.
    pub outlasted: u64,
    /// Errors that are in no map, for it was full.
    pub errors_lost: u64,
    /// Rows in use.
    pub rows: u32,
    /// Histograms in use.
    pub latencies: u32,
}

/// What [`SyscallProbe::read`] hands on. All numbers are what came since the last time.
pub trait SyscallSink {
    /// Calls of one number; `OUT_OF_RANGE` for numbers that no table has.
    fn calls(&mut self, caller: CallerKey, number: u32, count: u64);
    /// Calls of callers that had no row.
    fn remainder(&mut self, cgroup: u64, count: u64);
    /// Calls that failed with `errno`; in latency mode. 512 to 531 are the kernel's own, of calls that a signal
    /// interrupted and that are restarted.
    fn errors(&mut self, caller: CallerKey, number: u32, errno: u16, count: u64);
    /// Calls that returned, the nanoseconds that they took together, and how many took less than 2^i ns and at least half
    /// of that (the last bucket: all that took longer); in latency mode.
    fn latency(
        &mut self,
        caller: CallerKey,
        number: u32,
        returned: u64,
        total_ns: u64,
        buckets: &[u64; LATENCY_BUCKETS],
    );
}

/// Counts what is asked of the kernel.
#[derive(Debug)]
pub struct SyscallProbe {
    options: SyscallOptions,
    features: Features,
    mode: Mode,
    /// What is in the kernel. In mode [`Mode::Off`] maps alone, until their last counts have been read.
    loaded: Option<Loaded>,
    watches: BTreeMap<(u32, u32), u32>,
    /// Of what has been unloaded.
    past: SyscallStats,
    events: Option<EventRing>,
    limits: Vec<String>,
}

/// Names of the programs.
const ENTER: &str = "orb8_sys_enter";
const EXIT: &str = "orb8_sys_exit";
const TASK_EXIT: &str = "orb8_task_exit";

impl SyscallProbe {
    /// Loads and attaches what the mode needs. Takes some ten milliseconds, most of it the verifier's.
    ///
    /// # Errors
    /// [`LoadError`]; nothing stays in the kernel then.
    pub fn load(options: &SyscallOptions, features: Features) -> Result<Self, LoadError> {
        check(options)?;
        let mut probe = Self {
            options: options.clone(),
            features,
            mode: Mode::Off,
            loaded: None,
            watches: BTreeMap::new(),
            past: SyscallStats::default(),
            events: None,
            limits: Vec::new(),
        };
        probe.set_mode(options.mode)?;
        Ok(probe)
    }

    /// Changes the mode. What has been counted stays: it is handed on by the next [`read`](Self::read), also after
    /// [`Mode::Off`]. Blocks for some milliseconds. Switching on from [`Mode::Off`] makes a new event ring, which
    /// [`take_events`](Self::take_events) gives.
    ///
    /// # Errors
    /// [`LoadError`]; the mode is then as before.
    pub fn set_mode(&mut self, mode: Mode) -> Result<(), LoadError> {
        if mode == self.mode {
            return Ok(());
        }
        if mode == Mode::Off {
            if let Some(loaded) = &mut self.loaded {
                loaded.stop_latency();
                loaded.detach();
            }
            self.mode = Mode::Off;
            self.events = None;
            return Ok(());
        }
        if self.mode == Mode::Off {
            self.switch_on(mode)?;
        } else if let Some(loaded) = &mut self.loaded {
            if mode == Mode::Latency {
                loaded.start_latency()?;
            } else {
                loaded.stop_latency();
            }
        }
        self.mode = mode;
        Ok(())
    }

    fn switch_on(&mut self, mode: Mode) -> Result<(), LoadError> {
        let mut loaded = match self.loaded.take() {
            // Their last counts have not been read yet.
            Some(loaded) => loaded,
            None => {
                let (loaded, limits) = Loaded::new(&self.options, self.features)?;
                self.limits = limits;
                loaded
            }
        };
        let attached = loaded
            .set_watches(&self.watches, |abi, number| self.options.flags(abi, number))
            .and_then(|()| loaded.attach_enter())
            .and_then(|()| {
                if mode == Mode::Latency {
                    loaded.start_latency()
                } else {
                    Ok(())
                }
            });
        let events = attached.and_then(|()| loaded.events());
        if events.is_err() {
            loaded.stop_latency();
            loaded.detach();
        }
        // What the programs may have counted before an error is read like the rest.
        self.loaded = Some(loaded);
        self.events = Some(events?);
        Ok(())
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What cannot be told on this kernel, a sentence each; empty before the first load.
    #[must_use]
    pub fn limits(&self) -> &[String] {
        &self.limits
    }

    /// State of each program, the reason where it is not active, and what the kernel says of it.
    #[must_use]
    pub fn programs(&self) -> Vec<(&'static str, v1::State, String, FdInfo)> {
        let without_slots = self.loaded.as_ref().and_then(Loaded::without_slots);
        [
            (ENTER, Mode::Counts),
            (EXIT, Mode::Latency),
            (TASK_EXIT, Mode::Latency),
        ]
        .into_iter()
        .map(|(name, since)| {
            let info = self.loaded.as_ref().and_then(|loaded| loaded.info(name));
            if self.mode >= since
                && name == TASK_EXIT
                && let Some(why) = without_slots
            {
                let reason = format!("measuring a call costs more without it: {why}");
                (name, v1::State::Off, reason, FdInfo::default())
            } else if self.mode >= since {
                (name, v1::State::Active, String::new(), info.unwrap_or_default())
            } else {
                let reason = match self.mode {
                    Mode::Off => "syscall mode is off",
                    Mode::Counts | Mode::Latency => "syscall mode is counts",
                };
                (name, v1::State::Off, reason.to_owned(), info.unwrap_or_default())
            }
        })
        .collect()
    }

    /// Tasks whose calls are measured at the least cost, in latency mode. Others find their place taken, and have storage
    /// of their own.
    #[must_use]
    pub fn slots_in_use(&self) -> usize {
        self.loaded.as_ref().map_or(0, Loaded::slots_in_use)
    }

    /// Bytes that all maps of the family occupy now.
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        self.loaded.as_ref().map_or(0, Loaded::map_bytes)
    }

    /// The ledger. Costs a look at each CPU's counters.
    #[must_use]
    pub fn stats(&self) -> SyscallStats {
        let mut stats = self.past;
        if let Some(loaded) = &self.loaded {
            add(&mut stats, &loaded.stats());
        }
        stats
    }

    /// Hands on what came since the last call, then gives the rows of cgroups for which `gone` says true to others. A
    /// cgroup that is still there loses nothing by it. Costs a comparison of the rows in use (4.6 KB each) with the last
    /// copy, and two grace periods (some milliseconds each) if rows are given to others.
    ///
    /// # Errors
    /// [`ReadError`]; what was not handed on comes the next time.
    pub fn read(
        &mut self,
        gone: &mut dyn FnMut(u64) -> bool,
        sink: &mut dyn SyscallSink,
    ) -> Result<(), ReadError> {
        let Some(loaded) = &mut self.loaded else {
            return Ok(());
        };
        loaded.read(gone, sink)?;
        if self.mode == Mode::Off {
            let mut stats = loaded.stats();
            (stats.rows, stats.latencies) = (0, 0);
            add(&mut self.past, &stats);
            self.loaded = None;
        }
        Ok(())
    }

    /// The ring of [`Event`](orb8_common::syscall::Event)s, once after each switching on; see [`event::decode`].
    #[must_use]
    pub fn take_events(&mut self) -> Option<EventRing> {
        self.events.take()
    }

    /// Which calls are told one by one: every `weight`-th of this number on each CPU (1: each, 0: none). Holds also over
    /// [`Mode::Off`]. Of clone, clone3 and unshare only those are told that make namespaces.
    ///
    /// # Errors
    /// If there is no such ABI or number, or the kernel refuses the write; nothing has changed then.
    pub fn set_event_weight(&mut self, abi: u32, number: u32, weight: u32) -> Result<(), LoadError> {
        if abi >= abi::COUNT || number as usize >= NUMBERS {
            return Err(LoadError::Setting(format!(
                "there is no system call {number} of ABI {abi}"
            )));
        }
        if let Some(loaded) = &mut self.loaded {
            let flags = self.options.flags(abi, number);
            loaded.set_watch(abi, number, Watch { weight, flags })?;
        }
        if weight == 0 {
            self.watches.remove(&(abi, number));
        } else {
            self.watches.insert((abi, number), weight);
        }
        Ok(())
    }
}

fn check(options: &SyscallOptions) -> Result<(), LoadError> {
    let page = 4096;
    let wrong = if options.callers == 0 {
        "the syscall probe needs at least one row for callers"
    } else if options.latencies == 0 {
        "the syscall probe needs at least one latency histogram"
    } else if !options.ring_bytes.is_power_of_two() || options.ring_bytes < page {
        "the ring of the syscall probe must be a power of two of at least 4096 bytes"
    } else {
        return Ok(());
    };
    Err(LoadError::Setting(wrong.to_owned()))
}

fn add(sum: &mut SyscallStats, more: &SyscallStats) {
    sum.seen += more.seen;
    sum.counted += more.counted;
    sum.remainder += more.remainder;
    sum.lost += more.lost;
    sum.events_wanted += more.events_wanted;
    sum.events_sampled_out += more.events_sampled_out;
    sum.events_lost += more.events_lost;
    sum.started += more.started;
    sum.measured += more.measured;
    sum.unmeasured += more.unmeasured;
    sum.outlasted += more.outlasted;
    sum.errors_lost += more.errors_lost;
    sum.rows += more.rows;
    sum.latencies += more.latencies;
}

/// CPUs that there can be: as many as a program can run on.
fn possible_cpus() -> Result<u32, LoadError> {
    nr_cpus()
        .ok()
        .and_then(|cpus| u32::try_from(cpus).ok())
        .ok_or_else(|| LoadError::Setting("cannot read /sys/devices/system/cpu/possible".to_owned()))
}
