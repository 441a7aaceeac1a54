//! On which node each pod is, and was: so that a question about a pod goes to that node alone.
//!
//! The API server tells of pods as they are; of those that ended before all pods were listed, the agents tell, once after each
//! listing: a pod can have begun and ended while the watch was broken. Only if both are known is it certain who can hold an
//! answer. An agent that is away afterwards changes nothing: what began on its node meanwhile, the API server tells.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use orb8_fleet::{PodNodes, Wanted};
use orb8_kubernetes::{LabelSelector, is_selector, means_pod, means_workload, workload};
use orb8_proto::v1::PodStatus;

use crate::{
    guard::Namespaces,
    watching::{WatchState, Watched},
};

/// So long after its end a pod is remembered: agents keep no more history than this.
const REMEMBERED: Duration = Duration::from_secs(3600 + 60);
/// Pods that ended, at most. If there are more, it is no longer certain where pods were.
const MAX_ENDED: usize = 200_000;
/// While what the API server tells is older than this, all agents are asked.
const MAX_AGE: Duration = Duration::from_secs(5);

/// Where pods are.
#[derive(Debug)]
pub(crate) struct PodMap {
    inner: Mutex<Inner>,
    pub(crate) watch: WatchState,
}

#[derive(Debug, Default)]
struct Inner {
    /// By uid.
    pods: HashMap<String, Known>,
    listing: Option<HashSet<String>>,
    /// Agents, by node, that have told of their pods since the last listing.
    told: BTreeSet<String>,
    /// How many listings there have been.
    listings: u64,
    /// All agents that there are.
    nodes: BTreeSet<String>,
    ended: usize,
}

#[derive(Debug)]
struct Known {
    namespace: String,
    name: String,
    workload: String,
    /// Empty: on none yet.
    node: String,
    /// None: not known (an agent told of it), so that no selector can leave it out.
    labels: Option<BTreeMap<String, String>>,
    ended: Option<Instant>,
}

impl PodMap {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::default(),
            watch: WatchState::new("pods"),
        }
    }

    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Which agents there are.
    pub(crate) fn set_nodes(&self, nodes: BTreeSet<String>) {
        self.with(|inner| {
            inner.told.retain(|node| nodes.contains(node));
            inner.nodes = nodes;
        });
    }

    /// Whether this node's agent has to tell of its pods, and for which listing.
    pub(crate) fn wants(&self, node: &str) -> Option<u64> {
        self.with(|inner| (inner.listings > 0 && !inner.told.contains(node)).then_some(inner.listings))
    }

    /// An agent that was asked for a listing told of all pods that it knows, also of those that ended.
    pub(crate) fn agent_told(&self, node: &str, listing: u64, pods: Vec<PodStatus>) {
        self.with(|inner| {
            if listing == inner.listings {
                inner.told.insert(node.to_owned());
            }
            for pod in pods {
                if inner.pods.contains_key(&pod.uid) {
                    continue;
                }
                let ended = Some(Instant::now());
                inner.ended += 1;
                inner.pods.insert(
                    pod.uid,
                    Known {
                        namespace: pod.namespace,
                        name: pod.name,
                        workload: pod.workload,
                        node: node.to_owned(),
                        labels: None,
                        ended,
                    },
                );
            }
            inner.forget();
        });
    }
}

impl Namespaces for PodMap {
    /// Those in which there are pods, or were; none before all pods have been listed.
    fn namespaces(&self) -> Vec<String> {
        if !self.watch.is_listed() {
            return Vec::new();
        }
        self.with(|inner| {
            let names: BTreeSet<&String> = inner.pods.values().map(|pod| &pod.namespace).collect();
            names.into_iter().cloned().collect()
        })
    }
}

impl Inner {
    fn end_of(&mut self, uid: &str) {
        if let Some(pod) = self.pods.get_mut(uid)
            && pod.ended.is_none()
        {
            pod.ended = Some(Instant::now());
            self.ended += 1;
        }
        self.forget();
    }

    /// Forgets pods that ended long ago; if there are too many, all that ended, and that agents told of them.
    fn forget(&mut self) {
        if self.ended > MAX_ENDED {
            self.pods
                .retain(|_, pod| pod.ended.is_none_or(|ended| ended.elapsed() < REMEMBERED));
            self.ended = self.pods.values().filter(|pod| pod.ended.is_some()).count();
            if self.ended > MAX_ENDED {
                self.pods.retain(|_, pod| pod.ended.is_none());
                self.ended = 0;
                self.told.clear();
            }
        }
    }
}

impl Watched<Pod> for PodMap {
    fn apply(&self, pod: Pod) {
        let made_by = workload(&pod.metadata).unwrap_or_default();
        let Some(uid) = pod.metadata.uid else { return };
        let known = Known {
            namespace: pod.metadata.namespace.unwrap_or_default(),
            name: pod.metadata.name.unwrap_or_default(),
            workload: made_by,
            node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            labels: Some(pod.metadata.labels.unwrap_or_default()),
            ended: None,
        };
        self.with(|inner| {
            if let Some(listed) = &mut inner.listing {
                listed.insert(uid.clone());
            }
            if inner
                .pods
                .insert(uid, known)
                .is_some_and(|old| old.ended.is_some())
            {
                inner.ended = inner.ended.saturating_sub(1);
            }
        });
    }

    fn delete(&self, pod: Pod) {
        if let Some(uid) = pod.metadata.uid {
            self.with(|inner| inner.end_of(&uid));
        }
    }

    fn begin(&self) {
        self.with(|inner| inner.listing = Some(HashSet::new()));
    }

    fn end(&self) {
        self.with(|inner| {
            let Some(listed) = inner.listing.take() else {
                return;
            };
            inner.listings += 1;
            inner.told.clear();
            let gone: Vec<String> = inner
                .pods
                .iter()
                .filter(|(uid, pod)| pod.ended.is_none() && !listed.contains(*uid))
                .map(|(uid, _)| uid.clone())
                .collect();
            for uid in gone {
                inner.end_of(&uid);
            }
        });
    }

    fn len(&self) -> usize {
        self.with(|inner| inner.pods.len() - inner.ended.min(inner.pods.len()))
    }
}

impl PodNodes for PodMap {
    fn nodes_of(&self, wanted: &Wanted) -> Option<BTreeSet<String>> {
        if !self.watch.is_listed() || self.watch.age() > MAX_AGE {
            return None;
        }
        let selectors: Vec<LabelSelector> = wanted
            .pods
            .iter()
            .filter(|pod| is_selector(pod))
            .map(|pod| LabelSelector::parse(pod).ok())
            // What makes no sense, an agent refuses in words.
            .collect::<Option<_>>()?;
        let names: Vec<&String> = wanted.pods.iter().filter(|pod| !is_selector(pod)).collect();
        self.with(|inner| {
            if inner.nodes.iter().any(|node| !inner.told.contains(node)) {
                return None;
            }
            let matches = |pod: &Known| {
                let namespace = &pod.namespace;
                let any_pod = wanted.pods.is_empty()
                    || names
                        .iter()
                        .any(|name| means_pod(namespace, &pod.name, name.trim()))
                    || selectors
                        .iter()
                        .any(|selector| pod.labels.as_ref().is_none_or(|labels| selector.matches(labels)));
                any_pod
                    && (wanted.namespaces.is_empty()
                        || wanted.namespaces.iter().any(|of| of.trim() == namespace))
                    && (wanted.workloads.is_empty()
                        || wanted
                            .workloads
                            .iter()
                            .any(|wanted| means_workload(namespace, &pod.workload, wanted.trim())))
            };
            let nodes = inner
                .pods
                .values()
                // Of a node without an agent, one that ended can't be told any more, and one that runs is missed.
                .filter(|pod| matches(pod) && !pod.node.is_empty())
                .filter(|pod| pod.ended.is_none() || inner.nodes.contains(&pod.node));
            Some(nodes.map(|pod| pod.node.clone()).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, name: &str, node: &str) -> Pod {
        serde_json::from_str(&format!(
            r#"{{"metadata":{{"uid":"{uid}","namespace":"shop","name":"{name}","labels":{{"app":"{name}"}}}},
                 "spec":{{"containers":[],"nodeName":"{node}"}}}}"#
        ))
        .unwrap()
    }

    fn wanted(pods: &str) -> Wanted {
        Wanted {
            pods: vec![pods.to_owned()],
            ..Wanted::default()
        }
    }

    fn listed(pods: &[Pod]) -> PodMap {
        let map = PodMap::new();
        map.set_nodes(["n1", "n2"].map(str::to_owned).into());
        map.begin();
        pods.iter().cloned().for_each(|pod| map.apply(pod));
        map.end();
        map.watch.set_listed_for_test();
        map
    }

    #[test]
    fn only_what_is_certain_is_told() {
        let map = listed(&[pod("1", "cart", "n1"), pod("2", "db", "n2"), pod("3", "new", "")]);
        // Who knows which pods ended before?
        assert_eq!(map.nodes_of(&wanted("cart")), None);
        assert_eq!(map.wants("n1"), Some(1));
        map.agent_told("n1", 1, Vec::new());
        assert_eq!(map.wants("n1"), None);
        let before = PodStatus {
            uid: "0".into(),
            namespace: "shop".into(),
            name: "cart-old".into(),
            ..PodStatus::default()
        };
        map.agent_told("n2", 1, vec![before]);
        let nodes = |pods: &str| {
            map.nodes_of(&wanted(pods))
                .unwrap()
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(nodes("cart"), ["n1", "n2"]);
        assert_eq!(nodes("shop/db"), ["n2"]);
        assert_eq!(nodes("new"), [""; 0]);
        // Of a pod whose labels are not known it is not certain that it is not meant.
        assert_eq!(nodes("app=cart"), ["n1", "n2"]);
        // One that has gone was there.
        map.delete(pod("2", "db", "n2"));
        assert_eq!(nodes("db"), ["n2"]);
        assert_eq!(map.nodes_of(&wanted("a=b=c")), None);
        assert_eq!(map.namespaces(), ["shop"]);
        assert_eq!(map.len(), 2);
        // The watch was broken: who knows what began and ended meanwhile?
        map.begin();
        map.apply(pod("1", "cart", "n1"));
        map.end();
        assert_eq!(map.nodes_of(&wanted("cart")), None);
        map.agent_told("n1", 2, Vec::new());
        // Asked before the watch was whole again.
        map.agent_told("n2", 1, Vec::new());
        assert_eq!(map.nodes_of(&wanted("cart")), None);
        let meanwhile = PodStatus {
            uid: "4".into(),
            namespace: "shop".into(),
            name: "short".into(),
            ..PodStatus::default()
        };
        map.agent_told("n2", 2, vec![meanwhile]);
        assert_eq!(map.nodes_of(&wanted("short")).unwrap(), ["n2".to_owned()].into());
    }
}
