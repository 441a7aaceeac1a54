//! The pods of this node, and how their traffic is told apart: what `orb8 pods` shows.

use std::{collections::HashMap, sync::Arc, time::Duration};

use orb8_proto::v1;

use crate::{
    core::{Core, lock},
    identity::Identity,
    kubernetes::{Cluster, Pod},
    naming::pod_peer,
    probe::{
        kernel_clock::unix_now_ns,
        network::points::{Point, Points},
    },
    store::{Filter, Totals, timestamp},
};

/// A pod that started so short ago may still be waited for.
const YOUNG: Duration = Duration::from_secs(10);

/// Frames that may pass a new interface before the programs are on it.
const EARLY_FRAMES: u64 = 100;

/// Answers a request. Cost: a look at all cgroups and interfaces for each pod that is asked for.
pub(crate) fn list(core: &Core, filter: &Filter) -> v1::ListPodsResponse {
    let mut notes = Vec::new();
    let status = core.membership.status();
    if status.state != i32::from(v1::State::Active) {
        notes.push(format!("Kubernetes: {}", status.reason));
    }
    let mut pods = Vec::new();
    if let Some(cluster) = core.membership.cluster() {
        pods = own_pods(core, cluster, filter);
    }
    v1::ListPodsResponse {
        node: core.node.clone(),
        pods,
        notes,
    }
}

fn own_pods(core: &Core, cluster: &Cluster, filter: &Filter) -> Vec<v1::PodStatus> {
    let mut known = cluster.own_pods();
    known.retain(|pod| !filter.asks_for_owners() || filter.matches_owner(&pod_peer(pod)));
    known.sort_unstable_by(|a, b| {
        (&a.namespace, &a.name, a.started_ns).cmp(&(&b.namespace, &b.name, b.started_ns))
    });
    let points = lock(&core.points);
    let names = lock(&core.names);
    let store = lock(&core.store);
    let socket_failure = core
        .cgroup_programs
        .iter()
        .find(|(name, state, _)| name.starts_with("orb8_sock") && *state != v1::State::Active)
        .map(|(name, _, reason)| format!("{name} is not attached: {reason}"));
    known
        .iter()
        .map(|pod| {
            status(
                pod,
                &points,
                &names.identity,
                store.history.totals(),
                socket_failure.as_deref(),
            )
        })
        .collect()
}

fn status(
    pod: &Arc<Pod>,
    points: &Points,
    identity: &Identity,
    totals: &Totals,
    socket_failure: Option<&str>,
) -> v1::PodStatus {
    let is_it = |uid: &str| *uid == *pod.uid || pod.config_hash.as_deref() == Some(uid);
    let namespace = (!pod.host_network)
        .then(|| identity.pod_namespace(is_it))
        .flatten();
    let (inode, nsid) = namespace.map_or((0, None), |(inode, nsid)| (inode, nsid));
    let interfaces: Vec<v1::PodInterface> = points
        .iter()
        .filter(|point| point.is_present() && nsid.is_some() && point.interface.peer_netnsid == nsid)
        .map(|point| v1::PodInterface {
            name: point.interface.name.clone(),
            ifindex: point.interface.ifindex,
            observed: point.attachment.is_some() && !is_bypassed(point),
            reason: if is_bypassed(point) {
                format!(
                    "{} frames passed it, but not the programs on it: another program or the dataplane redirects them",
                    point.bypassed
                )
            } else {
                point.failure.clone()
            },
        })
        .collect();
    let cgroups: HashMap<&str, (u64, Arc<str>)> = pod
        .containers
        .iter()
        .filter(|container| !container.id.is_empty())
        .filter_map(|container| {
            let cgroup = identity.cgroups()?.find(|path| path.contains(&container.id))?;
            Some((container.id.as_str(), cgroup))
        })
        .collect();
    let containers = pod
        .containers
        .iter()
        .map(|container| {
            let cgroup = cgroups.get(container.id.as_str());
            v1::ContainerStatus {
                name: container.name.clone(),
                id: container.id.clone(),
                r#type: container.role.to_owned(),
                state: container.state.to_owned(),
                cgroup: cgroup.map(|(_, path)| path.to_string()).unwrap_or_default(),
                cgroup_id: cgroup.map_or(0, |&(id, _)| id),
            }
        })
        .collect();
    let (health, reason) = health(pod, inode, &interfaces, cgroups.is_empty(), socket_failure);
    let (packets, bytes) = totals.of_pod(&pod.namespace, &pod.name);
    v1::PodStatus {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        workload: pod.workload.as_deref().unwrap_or_default().to_owned(),
        phase: pod.phase.clone(),
        qos_class: pod.qos_class.clone(),
        host_network: pod.host_network,
        ips: pod.ips.iter().map(ToString::to_string).collect(),
        started: (pod.started_ns != 0).then(|| timestamp(pod.started_ns)),
        containers,
        netns_inode: inode,
        interfaces,
        health: health.into(),
        reason,
        packets,
        bytes,
    }
}

/// Whether so much passes the interface beside its programs that its pod's traffic is not told. The first frames of a new
/// interface may come before the programs are on.
fn is_bypassed(point: &Point) -> bool {
    point.bypassed > EARLY_FRAMES && point.bypassed > (point.seen[0] + point.seen[1]) / 100
}

fn health(
    pod: &Pod,
    namespace: u64,
    interfaces: &[v1::PodInterface],
    no_cgroup: bool,
    socket_failure: Option<&str>,
) -> (v1::PodHealth, String) {
    let ok = (v1::PodHealth::Ok, String::new());
    if pod.deleted || matches!(pod.phase.as_str(), "Succeeded" | "Failed") {
        return (v1::PodHealth::Ended, String::new());
    }
    let running = pod
        .containers
        .iter()
        .any(|container| container.state == "running");
    if !running {
        return (v1::PodHealth::Waiting, "no container runs yet".to_owned());
    }
    let gap = if pod.host_network {
        match socket_failure {
            Some(reason) => Some(format!("it uses the node's network, and sockets are not observed: {reason}")),
            None if no_cgroup => Some(
                "it uses the node's network, and no cgroup of its containers is known, so that its sockets cannot be \
                 told from others: is the node's cgroup2 hierarchy mounted in the agent's pod?"
                    .to_owned(),
            ),
            None => None,
        }
    } else if namespace == 0 {
        Some(
            "none of its processes was found, and so not its network namespace: does the agent see the node's processes \
             (hostPID), and may it read /proc/PID/ns (CAP_SYS_PTRACE)?"
                .to_owned(),
        )
    } else if interfaces.is_empty() {
        Some(
            "its network namespace has no interface whose other end is the node's (macvlan, ipvlan, SR-IOV?): what it \
             sends is not seen at an interface"
                .to_owned(),
        )
    } else {
        interfaces
            .iter()
            .find(|interface| !interface.observed)
            .map(|interface| format!("{} is not observed: {}", interface.name, interface.reason))
    };
    let Some(reason) = gap else {
        return ok;
    };
    let young =
        unix_now_ns().saturating_sub(pod.started_ns) < u64::try_from(YOUNG.as_nanos()).unwrap_or(u64::MAX);
    if young {
        (v1::PodHealth::Waiting, reason)
    } else {
        (v1::PodHealth::Gap, reason)
    }
}
