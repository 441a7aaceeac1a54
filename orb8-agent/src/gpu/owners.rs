//! Whose a process on a GPU is, and what is known of the pods that the kubelet names.

use std::{path::PathBuf, sync::Arc};

use orb8_gpu::{Owner, Owners, PodDetails};
use orb8_proto::v1;

use crate::{
    core::{Core, lock},
    identity::{
        self,
        owner::{Kind, Owner as Named, PodName},
        process_owner,
    },
    store::{Filter, QueryError},
};

/// Owners as this agent knows them: by cgroup, under the names that the cluster gives.
#[derive(Debug)]
pub(crate) struct NodeOwners(pub(crate) Arc<Core>);

impl Owners for NodeOwners {
    fn of_pid(&self, pid: u32) -> Option<Owner> {
        let owner = process_owner(std::path::Path::new(identity::PROC), pid)?;
        let better = lock(&self.0.names).better(&owner);
        Some(of_named(better.as_ref().unwrap_or(&owner)))
    }

    fn pod(&self, namespace: &str, pod: &str, _container: &str) -> Option<PodDetails> {
        let cluster = self.0.membership.cluster()?;
        let known = cluster.pod(namespace, pod)?;
        Some(PodDetails {
            uid: known.uid.to_string(),
            workload: known.workload.as_deref().unwrap_or_default().to_owned(),
        })
    }

    fn is_elsewhere(&self, host: &str) -> bool {
        let cluster = self.0.membership.cluster();
        cluster.is_some_and(|cluster| cluster.is_elsewhere(host))
    }
}

/// Owners as a process without privileges sees them: by cgroup.
#[derive(Debug)]
pub(super) struct ProcOwners(pub(super) PathBuf);

impl Owners for ProcOwners {
    fn of_pid(&self, pid: u32) -> Option<Owner> {
        process_owner(&self.0, pid).map(|owner| of_named(&owner))
    }

    fn pod(&self, _namespace: &str, _pod: &str, _container: &str) -> Option<PodDetails> {
        None
    }
}

fn of_named(owner: &Named) -> Owner {
    let pod = owner.pod.as_deref();
    let (namespace, name) = pod.map(PodName::parts).unwrap_or_default();
    // A process is told apart by its unit or container, where it has one.
    let is_named = pod.is_some() || !owner.unit.is_empty() || !owner.container.is_empty();
    Owner {
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        container: owner.container.clone(),
        uid: pod.map(|pod| pod.uid.clone()).unwrap_or_default(),
        workload: pod.map(|pod| pod.workload.clone()).unwrap_or_default(),
        unit: owner.unit.clone(),
        process: if is_named {
            String::new()
        } else {
            owner.process.clone()
        },
        cgroup: owner.cgroup.clone(),
    }
}

/// Conditions on holders.
#[derive(Debug)]
pub(crate) struct PodSelection(Filter);

impl PodSelection {
    /// Of a filter whose label selectors are resolved; none: it has no conditions on holders.
    ///
    /// # Errors
    /// If a value is empty, or there are too many.
    pub(crate) fn new(filter: &v1::GpuFilter) -> Result<Option<Self>, QueryError> {
        let filter = Filter::new(Some(&v1::FlowFilter {
            namespaces: filter.namespaces.clone(),
            pods: filter.pods.clone(),
            workloads: filter.workloads.clone(),
            ..v1::FlowFilter::default()
        }))?;
        Ok(filter.asks_for_owners().then_some(Self(filter)))
    }

    /// Whether a holder meets them.
    pub(crate) fn matches(&self, holder: &v1::Endpoint) -> bool {
        let pod = (!holder.pod.is_empty() || !holder.pod_uid.is_empty()).then(|| {
            Arc::new(PodName {
                uid: holder.pod_uid.clone(),
                full: if holder.pod.is_empty() {
                    String::new()
                } else {
                    format!("{}/{}", holder.namespace, holder.pod)
                },
                workload: holder.workload.clone(),
                node: holder.node.clone(),
            })
        });
        self.0.matches_owner(&Named {
            kind: if pod.is_some() { Kind::Pod } else { Kind::Process },
            pod,
            unit: holder.unit.clone(),
            container: holder.container.clone(),
            process: holder.process.clone(),
            cgroup: holder.cgroup.clone(),
            ..Named::default()
        })
    }
}
