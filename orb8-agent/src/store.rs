//! Bounded recent history.
//!
//! A *flow* is a key together with who reported it. Each drain interval is a *segment* of per-flow deltas, kept
//! as sorted varints. What does not fit is first merged in time, then freed of the detail of the flows that
//! ended longest ago (their counts move to *remainder* flows, one for each owner, direction and point), and only
//! then forgotten; each step is counted and said in every answer that it touches. Totals by owner since the
//! start are kept apart and never lose anything.

mod delta;
mod filter;
mod flows;
mod health;
mod history;
mod interned;
mod live;
mod message;
mod query;
mod segment;
mod totals;

#[cfg(test)]
mod model;

pub use delta::Delta;
pub use filter::QueryError;
pub(crate) use filter::{Filter, UID, is_called, octets};
pub use history::{Committed, Forgotten, History, HistoryLimits, Observation};
pub use interned::{PointId, Via, ViaId};
pub use live::{LiveEvent, LiveFilter};
pub(crate) use message::{endpoint, timestamp};
pub(crate) use query::nanoseconds;
pub use query::{Answer, Row, Selection};
pub(crate) use totals::OTHER;
pub use totals::{Labels, Protocol, Series, Totals, Unattributed};

/// Which way a flow goes, seen from the workload that reports it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Direction {
    /// The workload received.
    Ingress,
    /// The workload sent.
    Egress,
}

impl Direction {
    /// The direction of a packet that met the hook with these [`orb8_common::network::kind`] bits.
    ///
    /// `inverted`: the hook is at the far side of the workload's interface (the host side of a veth pair, where
    /// tc ingress is what the workload sent). Sockets and uplinks are not.
    #[must_use]
    pub const fn of(kind: u8, inverted: bool) -> Self {
        let egress = kind & orb8_common::network::kind::EGRESS != 0;
        if egress != inverted {
            Self::Egress
        } else {
            Self::Ingress
        }
    }
}
