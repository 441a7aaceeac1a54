//! What agent and server both need of Kubernetes: a way to the API server, label selectors, and who made a pod.

mod connect;
mod names;
mod selector;
mod workload;

pub use connect::{Configured, KubernetesError, Source, client, configure};
pub use names::{means_pod, means_workload};
pub use selector::{LabelSelector, is_selector};
pub use workload::workload;
