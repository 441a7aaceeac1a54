//! What the cluster's API server tells of pods, Services and nodes.
//!
//! Watches ([`watch()`]) feed a [`Cluster`], which everything else asks. While the API server is away, what was known
//! last serves, and its age is in `status`. Nothing here asks for one object at a time.

pub use self::{
    cluster::{Cluster, ClusterLimits, Holder, Node, Resource, WatchState},
    pod::{Container, Pod},
    watch::{KubernetesOptions, watch},
};
pub use orb8_kubernetes::{Configured, KubernetesError, LabelSelector, Source, configure, is_selector};

mod cluster;
mod objects;
mod pod;
mod services;
mod spans;
mod watch;
