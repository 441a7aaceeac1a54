//! What a baseline is kept for: something that outlives its pods and processes.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::identity::owner::{Kind, Owner, PodName};

/// The workload of an owner: the Deployment or the like that made its pod; without one the pod itself, the systemd unit,
/// the container or the cgroup. Exactly one kind of name is set; the others are empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `Kind/name`; of a pod that nothing made, `Pod/name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workload: String,
    /// Systemd unit.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// Id of the container.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// Path of the cgroup.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
}

impl Workload {
    /// The workload of an owner.
    #[must_use]
    pub fn of(owner: &Owner) -> Self {
        if let Some(pod) = owner.named_pod() {
            let (namespace, name) = pod.parts();
            return Self {
                namespace: namespace.to_owned(),
                workload: if pod.workload.is_empty() {
                    format!("Pod/{name}")
                } else {
                    pod.workload.clone()
                },
                ..Self::default()
            };
        }
        let mut workload = Self::default();
        if !owner.container.is_empty() {
            workload.container.clone_from(&owner.container);
        } else if !owner.unit.is_empty() {
            workload.unit.clone_from(&owner.unit);
        } else {
            workload.cgroup.clone_from(&owner.cgroup);
        }
        workload
    }

    /// An owner of which only the workload is known.
    #[must_use]
    pub fn owner(&self) -> Owner {
        let pod = (!self.workload.is_empty()).then(|| {
            let alone = self.workload.strip_prefix("Pod/");
            Arc::new(PodName {
                full: format!("{}/{}", self.namespace, alone.unwrap_or_default()),
                workload: alone.map_or_else(|| self.workload.clone(), |_| String::new()),
                ..PodName::default()
            })
        });
        let kind = match &pod {
            Some(_) => Kind::Pod,
            None if *self == Self::default() => Kind::Host,
            None => Kind::Process,
        };
        Owner {
            kind,
            pod,
            unit: self.unit.clone(),
            container: self.container.clone(),
            cgroup: self.cgroup.clone(),
            ..Owner::default()
        }
    }

    /// Bytes of its names.
    #[must_use]
    pub fn len(&self) -> usize {
        let Self {
            namespace,
            workload,
            unit,
            container,
            cgroup,
        } = self;
        namespace.len() + workload.len() + unit.len() + container.len() + cgroup.len()
    }

    /// Whether nothing is known of it: what runs in the root cgroup.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// As people call it.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.workload.is_empty() {
            return write!(f, "{}/{}", self.namespace, self.workload);
        }
        f.write_str(match self {
            _ if !self.unit.is_empty() => &self.unit,
            _ if !self.container.is_empty() => self.container.get(..12).unwrap_or(&self.container),
            _ if !self.cgroup.is_empty() => &self.cgroup,
            _ => "host",
        })
    }
}
