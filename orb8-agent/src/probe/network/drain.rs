//! Takes an epoch's records out of the kernel, without losing one.
//!
//! Two maps of each kind take turns. The drain flips the epoch, waits until no program can still be writing into the
//! old maps, and empties them.

use std::io;

use orb8_common::network::{FlowCounters, FlowKey, RemainderKey, TcpHealth, TcpKey};

use super::load::{ControlMap, EpochMaps};
use crate::{
    bpf::batch::BatchDrain,
    probe::{
        grace::wait_for_programs,
        kernel_clock::{KernelClock, unix_now_ns},
    },
};

/// Entries that one system call takes: 4096 flows are 448 KiB of buffer.
const BATCH: usize = 4096;

/// What the drain hands on. Times in the counters are Unix nanoseconds.
pub trait EpochSink {
    /// A flow of the epoch.
    fn flow(&mut self, key: &FlowKey, counters: &FlowCounters);
    /// Packets of a point whose flows had no room.
    fn remainder(&mut self, key: &RemainderKey, counters: &FlowCounters);
    /// Health of a connection.
    fn tcp(&mut self, key: &TcpKey, health: &TcpHealth);
}

/// Why an epoch could not be taken out.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The epoch could not be flipped: nothing was taken, nothing is lost.
    #[error("cannot flip the epoch: {0}")]
    Flip(#[source] aya::maps::MapError),
    /// A map could not be emptied: what is in it stays for the next time that its turn comes.
    #[error("cannot empty the {map} map: {source}")]
    Map {
        /// Which map.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Empties the maps of one epoch after another.
#[derive(Debug)]
pub struct EpochDrain {
    maps: EpochMaps,
    control: ControlMap,
    flows: BatchDrain<FlowKey, FlowCounters>,
    remainder: BatchDrain<RemainderKey, FlowCounters>,
    tcp: BatchDrain<TcpKey, TcpHealth>,
}

impl EpochDrain {
    /// A drain of `maps`.
    #[must_use]
    pub fn new(maps: EpochMaps, control: ControlMap) -> Self {
        Self {
            maps,
            control,
            flows: BatchDrain::new(BATCH),
            remainder: BatchDrain::new(256),
            tcp: BatchDrain::new(1024),
        }
    }

    /// Ends the epoch and hands its records to `sink`. Blocks for a grace period (some milliseconds). Returns the Unix
    /// time in nanoseconds at which the epoch ended.
    ///
    /// # Errors
    /// [`DrainError`]; the drain may be called again.
    pub fn drain(&mut self, sink: &mut impl EpochSink) -> Result<u64, DrainError> {
        let control = self
            .control
            .update(|control| control.epoch ^= 1)
            .map_err(DrainError::Flip)?;
        let ended = unix_now_ns();
        let old = usize::from(control.epoch & 1 == 0);
        wait_for_programs();
        let clock = KernelClock::now();
        let unix = |counters: &FlowCounters| FlowCounters {
            first_ns: clock.unix_ns(counters.first_ns),
            last_ns: clock.unix_ns(counters.last_ns),
            ..*counters
        };
        self.flows
            .drain(&self.maps.flows[old], |key, counters| {
                sink.flow(key, &unix(counters));
            })
            .map_err(|source| DrainError::Map { map: "flow", source })?;
        self.maps.load.reset(old as u32).map_err(DrainError::Flip)?;
        self.remainder
            .drain(&self.maps.remainder[old], |key, counters| {
                sink.remainder(key, &unix(counters));
            })
            .map_err(|source| DrainError::Map {
                map: "remainder",
                source,
            })?;
        // Health last: the flows that it belongs to are known by then.
        self.tcp
            .drain(&self.maps.tcp[old], |key, health| sink.tcp(key, health))
            .map_err(|source| DrainError::Map {
                map: "TCP health",
                source,
            })?;
        Ok(ended)
    }
}
