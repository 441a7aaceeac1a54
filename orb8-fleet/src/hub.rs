//! The service over all members.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use orb8_proto::v1::FlowFilter;
use prost_types::Timestamp;

use crate::member::{DEADLINE, Members};

/// Which workloads a question is about: the conditions that say on which nodes they can be. All empty: any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// As in [`FlowFilter`].
    pub namespaces: Vec<String>,
    /// As in [`FlowFilter`].
    pub pods: Vec<String>,
    /// As in [`FlowFilter`].
    pub workloads: Vec<String>,
    /// From when on; `None`: all that agents keep.
    pub since: Option<Timestamp>,
}

impl Wanted {
    /// Of a filter whose conditions must be met by the reporter's own end.
    #[must_use]
    pub fn of_flows(filter: &FlowFilter, since: Option<Timestamp>) -> Self {
        Self {
            namespaces: filter.namespaces.clone(),
            pods: filter.pods.clone(),
            workloads: filter.workloads.clone(),
            since,
        }
    }
}

/// Where pods are, and were.
pub trait PodNodes: Send + Sync + 'static {
    /// The nodes that can hold answers about these workloads; `None`: that is not known for certain, ask all.
    fn nodes_of(&self, wanted: &Wanted) -> Option<BTreeSet<String>>;
}

/// Bounds of a hub.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a member may keep the others waiting: for its first message, and for each after it.
    pub deadline: Duration,
    /// Members that one question is put to at the same time.
    pub concurrency: usize,
    /// Questions answered at the same time; more are refused.
    pub queries: usize,
    /// Streams of events at the same time; more are refused.
    pub streams: usize,
    /// A client that takes no message for so long is cut off, and counted.
    pub patience: Duration,
    /// Largest message that is taken from an agent, bytes.
    pub max_message: usize,
    /// Flows that are joined into edges at most, and rows that are summed: bounds memory.
    pub max_rows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: DEADLINE,
            concurrency: 64,
            queries: 64,
            streams: 64,
            patience: Duration::from_secs(30),
            max_message: 16 << 20,
            max_rows: 1 << 20,
        }
    }
}

/// Asks all members as one.
#[derive(Clone)]
pub struct Hub {
    pub(crate) members: Members,
    pub(crate) pods: Option<Arc<dyn PodNodes>>,
    pub(crate) limits: Limits,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Over these members. Without `pods`, every question goes to all of them.
    #[must_use]
    pub fn new(members: Members, pods: Option<Arc<dyn PodNodes>>, limits: Limits) -> Self {
        Self {
            members,
            pods,
            limits,
        }
    }
}
