//! Pods as they are kept.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use orb8_kubernetes::workload;

use super::objects::{self, ContainerSpec, ContainerStatus, PodObject};

/// Of a static pod's mirror: what the kubelet calls the pod by, and so its cgroups.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod, as far as its flows need it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Of the API's object: a static pod's cgroups have another, [`Pod::config_hash`].
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// The node that it runs on; empty while it has none.
    pub node: Arc<str>,
    /// Whether it uses its node's network namespace, and so has no address of its own.
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// `Kind/name` of what made it.
    pub workload: Option<Arc<str>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `QoS` class.
    pub qos_class: String,
    /// Phase.
    pub phase: String,
    /// When the kubelet took it on (Unix time in nanoseconds); 0 not yet.
    pub started_ns: u64,
    /// Its containers, of all types.
    pub containers: Vec<Container>,
    /// A static pod's name among cgroups.
    pub config_hash: Option<Arc<str>>,
    /// Whether the API server has deleted it.
    pub deleted: bool,
}

/// A container of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    /// Name.
    pub name: String,
    /// Id without the runtime's prefix; empty until it was made.
    pub id: String,
    /// What it is for: container, init, sidecar or ephemeral.
    pub role: &'static str,
    /// waiting, running or terminated.
    pub state: &'static str,
}

/// When a pod can have had its addresses (Unix time in nanoseconds).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lifetime {
    pub(crate) from: Option<u64>,
    /// Set where it has ended, and it is known when.
    pub(crate) to: Option<u64>,
    /// Whether it has ended: it may have its address in the API all the same.
    pub(crate) over: bool,
}

impl Pod {
    /// `None` for an object without the names that every pod has, or with such as cannot be.
    pub(crate) fn new(object: PodObject) -> Option<(Self, Lifetime)> {
        let PodObject {
            metadata,
            spec,
            status,
        } = object;
        let annotation = |key: &str| metadata.annotations.as_ref()?.get(key).cloned();
        let config_hash = annotation(CONFIG_HASH).or_else(|| annotation(CONFIG_MIRROR));
        let workload = workload(&metadata)
            .filter(|workload| !workload.chars().any(char::is_control))
            .map(Arc::from);
        let lists: [(&[ContainerSpec], &[ContainerStatus], &'static str); 3] = [
            (&spec.init_containers, &status.init_container_statuses, "init"),
            (&spec.containers, &status.container_statuses, "container"),
            (
                &spec.ephemeral_containers,
                &status.ephemeral_container_statuses,
                "ephemeral",
            ),
        ];
        let mut containers = Vec::new();
        let (mut started, mut finished) = (None, None);
        for (specs, statuses, role) in lists {
            for spec in specs {
                let status = statuses.iter().find(|status| status.name == spec.name);
                let state = status.map(|status| &status.state);
                let running = state.and_then(|state| state.running.as_ref());
                let terminated = state.and_then(|state| state.terminated.as_ref());
                let began = running
                    .and_then(|running| running.started_at.as_ref())
                    .or_else(|| terminated.and_then(|terminated| terminated.started_at.as_ref()));
                let ended = terminated.and_then(|terminated| terminated.finished_at.as_ref());
                started = began.map(unix_ns).into_iter().chain(started).min();
                finished = ended.map(unix_ns).into_iter().chain(finished).max();
                containers.push(Container {
                    name: spec.name.clone(),
                    id: status
                        .map(|status| {
                            let id = &status.container_id;
                            id.split_once("://").map_or(id.as_str(), |(_, id)| id).to_owned()
                        })
                        .unwrap_or_default(),
                    role: if role == "init" && spec.restart_policy == "Always" {
                        "sidecar"
                    } else {
                        role
                    },
                    state: match (running, terminated) {
                        (Some(_), _) => "running",
                        (None, Some(_)) => "terminated",
                        (None, None) => "waiting",
                    },
                });
            }
        }
        let texts = status.pod_ips.iter().map(|ip| ip.ip.as_str());
        let ips = objects::addresses(texts.chain([status.pod_ip.as_str()]));
        let ready = status
            .conditions
            .iter()
            .find(|condition| condition.kind == "PodReadyToStartContainers" && condition.status == "True")
            .and_then(|condition| condition.last_transition_time.as_ref());
        let has_ended = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        let lifetime = Lifetime {
            from: ready.map(unix_ns).into_iter().chain(started).min(),
            // The API's times are whole seconds, rounded down.
            to: has_ended
                .then_some(finished)
                .flatten()
                .map(|finished| finished.saturating_add(1_000_000_000)),
            over: has_ended,
        };
        let pod = Self {
            uid: objects::name(metadata.uid.as_deref())?.into(),
            namespace: objects::name(metadata.namespace.as_deref())?.into(),
            name: objects::name(metadata.name.as_deref())?.into(),
            node: objects::name(Some(&spec.node_name)).unwrap_or_default().into(),
            host_network: spec.host_network,
            ips,
            workload,
            labels: metadata.labels.unwrap_or_default(),
            qos_class: status.qos_class,
            phase: status.phase,
            started_ns: status.start_time.as_ref().map_or(0, unix_ns),
            containers,
            config_hash: config_hash.map(Arc::from),
            deleted: false,
        };
        Some((pod, lifetime))
    }
}

fn unix_ns(time: &Time) -> u64 {
    u64::try_from(time.0.as_nanosecond()).unwrap_or(0)
}
