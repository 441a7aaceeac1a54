//! Placeholder of the loader of the syscall programs, with the interface that the rest of the agent uses.

use orb8_common::syscall::{CallerKey, LATENCY_BUCKETS};
use orb8_proto::v1;

use super::network::load::{EventRing, LoadError};
use crate::{bpf::fd_info::FdInfo, preflight::Features};

/// What the programs do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Nothing.
    Off,
    /// They count calls.
    #[default]
    Counts,
    /// Also how each ended.
    Latency,
}

/// Sizes.
#[derive(Clone, Copy, Debug)]
pub struct SyscallOptions {
    /// Rows.
    pub callers: u32,
    /// Entries of the latency map.
    pub latencies: u32,
    /// Ring.
    pub ring_bytes: u32,
    /// Mode.
    pub mode: Mode,
}

/// The loaded object.
#[derive(Debug)]
pub struct SyscallProbe {
    mode: Mode,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "placeholder")]
pub struct SyscallStats {
    pub seen: u64,
    pub counted: u64,
    pub remainder: u64,
    pub lost: u64,
    pub events_wanted: u64,
    pub events_sampled_out: u64,
    pub events_lost: u64,
    pub started: u64,
    pub measured: u64,
    pub unmeasured: u64,
    pub errors_lost: u64,
    pub rows: u32,
    pub latencies: u32,
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
#[error("not read")]
pub struct ReadError;

impl SyscallProbe {
    /// Loads.
    pub fn load(options: &SyscallOptions, _features: Features) -> Result<Self, LoadError> {
        Ok(Self { mode: options.mode })
    }
    /// Mode.
    pub fn set_mode(&mut self, mode: Mode) -> Result<(), LoadError> {
        self.mode = mode;
        Ok(())
    }
    /// Mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }
    /// Status.
    pub fn programs(&self) -> Vec<(&'static str, v1::State, String, FdInfo)> {
        Vec::new()
    }
    /// Limits.
    pub fn limits(&self) -> &[String] {
        &[]
    }
    /// Bytes.
    pub fn map_bytes(&self) -> u64 {
        0
    }
    /// Ledger.
    pub fn stats(&self) -> SyscallStats {
        SyscallStats::default()
    }
    /// Reads.
    pub fn read(
        &mut self,
        _gone: &mut dyn FnMut(u64) -> bool,
        _sink: &mut dyn SyscallSink,
    ) -> Result<(), ReadError> {
        Ok(())
    }
    /// Ring.
    pub fn take_events(&mut self) -> Option<EventRing> {
        None
    }
    /// Weight.
    pub fn set_event_weight(&mut self, _abi: u32, _number: u32, _weight: u32) -> Result<(), LoadError> {
        Ok(())
    }
}

/// Takes what was read.
pub trait SyscallSink {
    /// Calls.
    fn calls(&mut self, caller: CallerKey, number: u32, count: u64);
    /// Calls without row.
    fn remainder(&mut self, cgroup: u64, count: u64);
    /// Errors.
    fn errors(&mut self, caller: CallerKey, number: u32, errno: u16, count: u64);
    /// Times.
    fn latency(
        &mut self,
        caller: CallerKey,
        number: u32,
        returned: u64,
        total_ns: u64,
        buckets: &[u64; LATENCY_BUCKETS],
    );
}
