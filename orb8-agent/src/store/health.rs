//! TCP health whose flow is not known yet.

use std::collections::HashMap;

use orb8_common::network::{FlowKey, TcpHealth, TcpKey};

/// Addresses and ports, as the socket sees them.
type Tuple = ([u8; 16], [u8; 16], u16, u16);

/// Health records waiting for their flow, for this interval and the next.
#[derive(Debug)]
pub(crate) struct PendingHealth {
    records: HashMap<Tuple, Waiting>,
    max: usize,
    /// Records that never met a flow.
    unmatched: u64,
}

#[derive(Debug)]
struct Waiting {
    health: TcpHealth,
    records: u64,
    seq: u32,
}

/// Sums two epochs' health of one connection; of gauges, the later.
pub(crate) fn add(to: &mut TcpHealth, later: &TcpHealth) {
    to.retransmits = to.retransmits.saturating_add(later.retransmits);
    to.failed_connects = to.failed_connects.saturating_add(later.failed_connects);
    to.established = to.established.saturating_add(later.established);
    if later.srtt_us != 0 {
        to.srtt_us = later.srtt_us;
    }
    if later.connect_us != 0 {
        to.connect_us = later.connect_us;
    }
}

impl PendingHealth {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            records: HashMap::new(),
            max,
            unmatched: 0,
        }
    }

    pub(crate) fn wait(&mut self, key: &TcpKey, health: &TcpHealth, seq: u32) {
        let tuple = (key.local, key.remote, key.local_port, key.remote_port);
        if let Some(waiting) = self.records.get_mut(&tuple) {
            add(&mut waiting.health, health);
            waiting.records += 1;
            waiting.seq = seq;
        } else if self.records.len() < self.max {
            self.records.insert(
                tuple,
                Waiting {
                    health: *health,
                    records: 1,
                    seq,
                },
            );
        } else {
            self.unmatched += 1;
        }
    }

    /// Takes what waits for what a socket sends; with the number of records.
    #[inline]
    pub(crate) fn take(&mut self, key: &FlowKey) -> Option<(TcpHealth, u64)> {
        if self.records.is_empty() {
            return None;
        }
        let waiting = self.records.remove(&(key.src, key.dst, key.sport, key.dport))?;
        Some((waiting.health, waiting.records))
    }

    /// Ends the interval `seq`: what came before it has waited long enough.
    pub(crate) fn end_interval(&mut self, seq: u32) {
        let unmatched = &mut self.unmatched;
        self.records.retain(|_, waiting| {
            let keep = waiting.seq >= seq;
            if !keep {
                *unmatched += waiting.records;
            }
            keep
        });
        if self.records.is_empty() {
            self.records.shrink_to(64);
        }
    }

    pub(crate) const fn unmatched(&self) -> u64 {
        self.unmatched
    }

    pub(crate) fn memory(&self) -> usize {
        self.records.capacity() * (size_of::<Tuple>() + size_of::<Waiting>() + 1)
    }
}
