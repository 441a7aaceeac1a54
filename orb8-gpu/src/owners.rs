//! Who a process or a pod is, as the caller knows it.

use orb8_proto::v1::{Attribution, Endpoint, EndpointKind};

/// What the caller knows of processes and pods. Asked when a sample or an allocation arrives, for later they may be gone.
pub trait Owners {
    /// Whose a process is; none: it is gone, or nothing is known of it. Asked once for each process and sample.
    fn of_pid(&self, pid: u32) -> Option<Owner>;

    /// What is known of a pod besides its names.
    fn pod(&self, namespace: &str, pod: &str, container: &str) -> Option<PodDetails>;

    /// Whether a host name is for certain that of another node, or of a pod on one.
    fn is_elsewhere(&self, _host: &str) -> bool {
        false
    }
}

/// A pod, beyond its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDetails {
    /// Its UID.
    pub uid: String,
    /// Kind and name of what made it, such as `Deployment/cart`.
    pub workload: String,
}

/// A container of a pod, or a workload that is no pod's. What is empty is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Of the pod.
    pub namespace: String,
    /// Its name; empty: no pod's.
    pub pod: String,
    /// The container's name, or its id.
    pub container: String,
    /// The pod's UID.
    pub uid: String,
    /// Such as `Deployment/cart`.
    pub workload: String,
    /// Systemd unit, of what is no pod's.
    pub unit: String,
    /// Name of the process (`comm`).
    pub process: String,
    /// Path of the cgroup.
    pub cgroup: String,
}

impl Owner {
    /// Whether it is a pod's, and nobody knows of which name.
    pub(crate) const fn is_nameless_pod(&self) -> bool {
        self.pod.is_empty() && !self.uid.is_empty()
    }

    /// Whether both are of one pod.
    pub(crate) fn is_of_pod(&self, namespace: &str, pod: &str) -> bool {
        !self.pod.is_empty() && self.pod == pod && self.namespace == namespace
    }

    /// Whether both are of the same pod.
    pub(crate) fn is_same_pod(&self, other: &Self) -> bool {
        let uid = self.uid.is_empty() || other.uid.is_empty() || self.uid == other.uid;
        uid && other.is_of_pod(&self.namespace, &self.pod)
    }

    /// Whether its container goes by its id, for the pod's status does not tell its name yet, or by nothing.
    pub(crate) fn has_nameless_container(&self) -> bool {
        const ID: usize = 64;
        let container = self.container.as_bytes();
        container.is_empty() || container.len() == ID && container.iter().all(u8::is_ascii_hexdigit)
    }

    /// Whether both are the same container, unit or cgroup, whatever else is known of them by now.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        if self.pod.is_empty() != other.pod.is_empty() {
            return false;
        }
        if !self.pod.is_empty() {
            return self.is_same_pod(other) && self.container == other.container;
        }
        self.unit == other.unit && self.container == other.container && self.cgroup == other.cgroup
    }

    /// Takes what it lacks from what is known of the same by now.
    pub(crate) fn learn(&mut self, other: Self) {
        for (field, from) in [
            (&mut self.uid, other.uid),
            (&mut self.workload, other.workload),
            (&mut self.process, other.process),
            (&mut self.cgroup, other.cgroup),
        ] {
            if field.is_empty() {
                *field = from;
            }
        }
    }

    /// For the protocol. `attribution` says how its name was found.
    #[must_use]
    pub fn endpoint(&self, node: &str, attribution: Attribution) -> Endpoint {
        let kind = if self.pod.is_empty() {
            EndpointKind::Process
        } else {
            EndpointKind::Pod
        };
        Endpoint {
            kind: kind.into(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            container: self.container.clone(),
            workload: self.workload.clone(),
            unit: self.unit.clone(),
            process: self.process.clone(),
            cgroup: self.cgroup.clone(),
            attribution: attribution.into(),
            pod_uid: self.uid.clone(),
            node: node.to_owned(),
            ..Endpoint::default()
        }
    }
}
