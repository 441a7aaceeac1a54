//! The running syscall family: its probe, the switch of its mode, and the reading of what it counted.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use orb8_common::syscall::{CallerKey, LATENCY_BUCKETS, OUT_OF_RANGE};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    call::Call,
    event::CallEvent,
    live::{LiveCall, SyscallLive},
};
use crate::{
    core::{Core, lock},
    identity::owner::{Attribution, OwnerId},
    preflight::Features,
    probe::{
        kernel_clock::KernelClock,
        object::{EventRing, LoadError},
        syscall::{Mode, SyscallOptions, SyscallProbe, SyscallSink, event::decode},
    },
    ring,
};

/// Records that are given their owners under one lock.
const BATCH: usize = 4096;
/// Entries of the cache of owners.
const CACHE: usize = 65_536;

/// What the parts of the family share.
#[derive(Debug)]
pub(crate) struct Syscalls {
    pub(crate) probe: Mutex<ProbeSlot>,
    pub(crate) live: SyscallLive,
    /// Where a new ring of events goes to be read; `None` ends the reading of the last one.
    rings: mpsc::Sender<Option<EventRing>>,
    /// Reads of the programs' counts that failed.
    pub(crate) failures: AtomicU64,
}

/// The probe, or why there is none.
#[derive(Debug)]
pub(crate) struct ProbeSlot {
    pub(crate) options: SyscallOptions,
    features: Features,
    pub(crate) probe: Option<SyscallProbe>,
    pub(crate) error: String,
    /// What the programs have been told to tell.
    applied: HashMap<Call, u32>,
}

impl ProbeSlot {
    /// Nothing is loaded yet: [`SyscallReader::set_mode`] does that.
    pub(crate) fn new(options: SyscallOptions, features: Features) -> Self {
        Self {
            options,
            features,
            probe: None,
            error: String::new(),
            applied: HashMap::new(),
        }
    }

    fn try_load(&mut self, mode: Mode) -> Result<(), LoadError> {
        let options = SyscallOptions {
            mode,
            ..self.options.clone()
        };
        match SyscallProbe::load(&options, self.features) {
            Ok(probe) => {
                self.probe = Some(probe);
                self.error.clear();
                Ok(())
            }
            Err(error) => {
                self.error = error.to_string();
                Err(error)
            }
        }
    }

    /// What the programs do.
    pub(crate) fn mode(&self) -> Mode {
        self.probe.as_ref().map_or(Mode::Off, SyscallProbe::mode)
    }

    /// Tells the programs how often each call is wanted told. Cost: a write for each that has changed.
    pub(crate) fn apply_weights(&mut self, live: &SyscallLive) -> Result<(), LoadError> {
        let Some(probe) = &mut self.probe else {
            return Ok(());
        };
        let wanted = live.weights();
        let no_longer: Vec<Call> = self
            .applied
            .keys()
            .filter(|call| !wanted.contains_key(call))
            .copied()
            .collect();
        for call in no_longer {
            probe.set_event_weight(call.abi.in_record(), call.number.into(), 0)?;
            self.applied.remove(&call);
        }
        for (call, weight) in wanted {
            if self.applied.get(&call) != Some(&weight) {
                probe.set_event_weight(call.abi.in_record(), call.number.into(), weight)?;
                self.applied.insert(call, weight);
            }
        }
        Ok(())
    }
}

impl Syscalls {
    /// The rings of events come out of the receiver, for [`read_events`].
    pub(crate) fn new(slot: ProbeSlot, live: SyscallLive) -> (Self, mpsc::Receiver<Option<EventRing>>) {
        // A ring and its end, at most twice before they are looked at: more switches wait.
        let (rings, receiver) = mpsc::channel(4);
        let syscalls = Self {
            probe: Mutex::new(slot),
            live,
            rings,
            failures: AtomicU64::new(0),
        };
        (syscalls, receiver)
    }

    /// Switches the mode: what the programs did before. All that was counted until now must have been read.
    ///
    /// # Errors
    /// If the programs do not load or attach; then the mode is as before.
    fn set_mode(&self, mode: Mode) -> Result<Mode, LoadError> {
        let mut slot = lock(&self.probe);
        let before = slot.mode();
        match &mut slot.probe {
            Some(probe) => probe.set_mode(mode)?,
            // It has not been asked for, or did not load.
            None => {
                slot.try_load(mode)?;
                slot.applied.clear();
                slot.apply_weights(&self.live)?;
            }
        }
        let ring = slot.probe.as_mut().and_then(SyscallProbe::take_events);
        if mode == Mode::Off || ring.is_some() {
            // Full only if the reader has ended.
            let _ = self.rings.try_send(ring);
        }
        if before != mode {
            info!(?before, ?mode, "what the syscall programs do is switched");
        }
        Ok(before)
    }
}

/// Reads the programs' counts, interval by interval, and stores them under their owners. Part of the pipeline.
#[derive(Debug)]
pub(crate) struct SyscallReader {
    core: Arc<Core>,
    /// By cgroup; `None`: a pod of another node, whose calls are left out.
    owners: HashMap<u64, Option<OwnerId>>,
    /// How calls ended has been measured since the last interval.
    measured: bool,
    failing: bool,
}

/// One thing that was read.
#[derive(Debug)]
enum Drained {
    Calls(u64),
    Errors(u16, u64),
    Latency(u64, u64, Box<[u64; LATENCY_BUCKETS]>),
}

impl SyscallReader {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let measured = lock(&core.syscalls.probe).mode() == Mode::Latency;
        Self {
            core,
            owners: HashMap::new(),
            measured,
            failing: false,
        }
    }

    /// Owners may have got other names, or ids.
    pub(crate) fn forget_owners(&mut self) {
        self.owners.clear();
    }

    /// Reads what came since the last call, and ends the interval at `ended` (Unix time in nanoseconds). Cost: linear in the
    /// calls that were made.
    pub(crate) fn read(&mut self, ended: u64) {
        let core = self.core.clone();
        let read = {
            let mut slot = lock(&core.syscalls.probe);
            let mut sink = Sink {
                core: &core,
                owners: &mut self.owners,
                drained: Vec::new(),
            };
            let mut gone = |cgroup| {
                let names = lock(&core.names);
                names
                    .identity
                    .cgroups()
                    .is_some_and(|cgroups| cgroups.is_gone(cgroup))
            };
            let read = match &mut slot.probe {
                Some(probe) => probe.read(&mut gone, &mut sink),
                None => Ok(()),
            };
            sink.flush();
            read
        };
        match read {
            Ok(()) => self.failing = false,
            Err(error) => {
                core.syscalls.failures.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    error!(%error, "not all counts of system calls could be read; they come with the next");
                }
            }
        }
        let verdicts = {
            let mut store = lock(&core.store);
            let crate::core::Store { owners, syscalls, .. } = &mut *store;
            syscalls.commit(ended, self.measured, owners)
        };
        for verdict in verdicts {
            core.syscalls.live.send(LiveCall::Change(verdict));
        }
    }

    /// Switches the mode, between two intervals; what the programs did before.
    ///
    /// # Errors
    /// If the programs do not load or attach; then the mode is as before.
    pub(crate) fn set_mode(&mut self, mode: Mode, now_ns: u64) -> Result<Mode, LoadError> {
        self.read(now_ns);
        let before = self.core.syscalls.set_mode(mode)?;
        if before != mode {
            // What a window has counted so far is not all of it.
            lock(&self.core.store).syscalls.baseline.restart_window(now_ns);
        }
        self.measured = mode == Mode::Latency;
        Ok(before)
    }
}

/// Collects what is read, and stores it under the owners of its cgroups.
struct Sink<'a> {
    core: &'a Core,
    owners: &'a mut HashMap<u64, Option<OwnerId>>,
    drained: Vec<(u64, Call, Drained)>,
}

impl Sink<'_> {
    fn push(&mut self, cgroup: u64, call: Option<Call>, drained: Drained) {
        // Of an ABI that this machine has not: the programs are of this agent, so there is none.
        let call = call.unwrap_or(Call::unknown());
        self.drained.push((cgroup, call, drained));
        if self.drained.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.drained.is_empty() {
            return;
        }
        let mut names = lock(&self.core.names);
        let mut store = lock(&self.core.store);
        let crate::core::Store { owners, syscalls, .. } = &mut *store;
        syscalls.set_own_node(names.own_node());
        for (cgroup, call, drained) in self.drained.drain(..) {
            let owner = match self.owners.get(&cgroup) {
                Some(&owner) => owner,
                None => {
                    let owner = names.socket_owner(cgroup, 0, None, None);
                    let known = owner.attribution != Attribution::Unknown;
                    let id = (!syscalls.is_elsewhere(&owner)).then(|| owners.intern(owner));
                    if self.owners.len() >= CACHE {
                        self.owners.clear();
                    }
                    // What was not found may be, the next time.
                    if known {
                        self.owners.insert(cgroup, id);
                    }
                    id
                }
            };
            let Some(owner) = owner else {
                if let Drained::Calls(count) = drained {
                    syscalls.leave_out(count);
                }
                continue;
            };
            let record = syscalls.record(owner, call);
            match drained {
                Drained::Calls(count) => record.count = record.count.saturating_add(count),
                Drained::Errors(errno, count) => record.measured_mut().add_error(errno, count),
                Drained::Latency(returned, total_ns, buckets) => {
                    let measured = record.measured_mut();
                    measured.returned = measured.returned.saturating_add(returned);
                    measured.total_ns = measured.total_ns.saturating_add(total_ns);
                    for (sum, more) in measured.buckets.iter_mut().zip(*buckets) {
                        *sum = sum.saturating_add(more);
                    }
                }
            }
        }
    }
}

impl SyscallSink for Sink<'_> {
    fn calls(&mut self, caller: CallerKey, number: u32, count: u64) {
        let call = Call::from_record(caller.abi, number);
        self.push(caller.cgroup, call, Drained::Calls(count));
    }

    fn remainder(&mut self, cgroup: u64, count: u64) {
        self.push(cgroup, None, Drained::Calls(count));
    }

    fn errors(&mut self, caller: CallerKey, number: u32, errno: u16, count: u64) {
        let call = Call::from_record(caller.abi, number);
        self.push(caller.cgroup, call, Drained::Errors(errno, count));
    }

    fn latency(
        &mut self,
        caller: CallerKey,
        number: u32,
        returned: u64,
        total_ns: u64,
        buckets: &[u64; LATENCY_BUCKETS],
    ) {
        let call = Call::from_record(caller.abi, number);
        let latency = Drained::Latency(returned, total_ns, Box::new(*buckets));
        self.push(caller.cgroup, call, latency);
    }
}

/// Reads rings of events, one after another, until `stop`.
pub(crate) async fn read_events(
    core: Arc<Core>,
    mut rings: mpsc::Receiver<Option<EventRing>>,
    stop: CancellationToken,
) {
    let mut ring: Option<EventRing> = None;
    loop {
        let reading = ring.take();
        let read = async {
            match reading {
                Some(ring) => {
                    let each = |record: &[u8], clock: KernelClock| tell(&core, record, clock);
                    ring::follow(ring, "events of system calls", stop.clone(), each, |_| ()).await;
                }
                None => std::future::pending().await,
            }
        };
        // A new ring, or none, ends the reading of the last one.
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = rings.recv() => next,
            // It cannot be read any more.
            () = read => rings.recv().await,
        };
        match next {
            Some(next) => ring = next,
            None => return,
        }
    }
}

/// Tells listeners of a record.
fn tell(core: &Core, record: &[u8], clock: KernelClock) {
    let Some(event) = decode(record) else {
        return;
    };
    let owner = lock(&core.names).socket_owner(event.cgroup, 0, None, None);
    if lock(&core.store).syscalls.is_elsewhere(&owner) {
        return;
    }
    if let Some(event) = CallEvent::decode(&event, clock.unix_ns(event.time_ns), owner) {
        core.syscalls.live.send(LiveCall::Event(event));
    }
}

const _: () = assert!(OUT_OF_RANGE < u16::MAX as usize);
