//! One agent among many.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use orb8_proto::v1::{NodeInfo, NodeState};
use tokio::sync::watch;
use tonic::transport::Channel;

/// All who should answer, by name, as known now. A new value is sent when any of them changes.
pub type Members = watch::Receiver<Arc<[Member]>>;

/// One agent.
#[derive(Clone, Debug)]
pub struct Member {
    /// Name of its node; its address where that is all that is known. Unique among the members.
    pub name: String,
    /// Whether it can be asked.
    pub reach: Reach,
    /// How its clock differs from ours.
    pub clock: Clock,
    /// What is known of it: what [`ListNodes`](orb8_proto::v1::ListNodesRequest) tells. Name, state, reason and clock are
    /// filled in from the other fields.
    pub info: NodeInfo,
    /// Why the last connection was refused, where the transport's error does not say it.
    pub trouble: Trouble,
}

impl Member {
    /// Whether `node` is its node: by its name, or, where that is an address only, by what its agent says of itself.
    #[must_use]
    pub fn is_on(&self, node: &str) -> bool {
        self.name == node || self.name.contains(':') && self.info.name == node
    }

    /// Whether it is on one of `nodes`, or none are named.
    pub(crate) fn is_wanted(&self, nodes: &[String]) -> bool {
        nodes.is_empty() || nodes.iter().any(|node| self.is_on(node))
    }
}

/// Whether an agent can be asked.
#[derive(Clone, Debug)]
pub enum Reach {
    /// By this channel, which connects by itself, and again after the connection is lost.
    Channel(Channel),
    /// Not now: it is known to be away, and is not waited for.
    Away {
        /// UNREACHABLE or SILENT.
        state: NodeState,
        /// Why, for the user.
        reason: String,
    },
}

/// An agent's clock beside ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds that it is ahead of ours.
    pub offset_ns: i64,
    /// By how many nanoseconds that may be wrong: half of the round trip that it was measured with.
    pub error_ns: u64,
}

impl Clock {
    /// Nanoseconds to take off the agent's times. Zero where the difference may be an error of the measurement: then the
    /// times as they are can't be made better.
    #[must_use]
    pub const fn correction_ns(self) -> i64 {
        if self.offset_ns.unsigned_abs() > self.error_ns {
            self.offset_ns
        } else {
            0
        }
    }
}

/// What a connection's other end said before it was closed. Shared between a connector and its [`Member`].
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// Sets or forgets it.
    pub fn set(&self, why: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// The last that was set.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The cause of a transport error that says something: tonic's own is "transport error".
#[must_use]
pub fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// How long a member may keep the others' answer waiting, where nothing else is said.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
