//! What is known of the cluster: a view that watches feed, and everything else asks.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use super::{
    objects::{self, NodeObject, PodObject, ServiceObject, SliceObject},
    pod::{Lifetime, Pod},
    services::Services,
    spans::{Certainty, Spans},
};
use crate::identity::Limit;

/// Bounds of a [`Cluster`].
#[derive(Clone, Copy, Debug)]
pub struct ClusterLimits {
    /// Pods, those that ended not long ago included. Those of the own node always have room.
    pub pods: usize,
    /// Services, and as many EndpointSlices and nodes.
    pub services: usize,
    /// How long a pod that has ended keeps its name and its past addresses.
    pub retention: Duration,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        Self {
            pods: 200_000,
            services: 50_000,
            retention: Duration::from_secs(600),
        }
    }
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
}

/// Who holds an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A pod; the number stands for this ownership, and no other has it.
    Pod(Arc<Pod>, u64),
    /// A pod of this node of which the API has not told yet: what its cgroups call it, and the number of the ownership.
    Resident(Arc<str>, u64),
    /// A node.
    Node(Arc<Node>),
    /// A Service: which one depends on the port.
    Service,
}

/// A kind of object that is watched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Resource {
    /// Pods: of the own node, or all.
    Pods,
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Nodes.
    Nodes,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pods, Self::Services, Self::EndpointSlices, Self::Nodes];

    /// As the API calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
        }
    }
}

/// How the watch of one resource does.
#[derive(Clone, Debug, Default)]
pub struct WatchState {
    /// Why it does not run; what was known last serves meanwhile. `None`: it runs.
    pub failure: Option<String>,
    /// Whether everything was listed once.
    pub listed: bool,
    /// Since when nothing has been heard from the API server, while it fails.
    pub stale_since: Option<Instant>,
    /// Changes that were taken in.
    pub events: u64,
    /// Times that everything was listed anew, or the connection was lost.
    pub restarts: u64,
    /// Objects that could not be read.
    pub malformed: u64,
}

#[derive(Debug)]
struct State {
    pods: HashMap<Arc<str>, Arc<Pod>>,
    by_name: HashMap<(Arc<str>, Arc<str>), Arc<str>>,
    by_hash: HashMap<Arc<str>, Arc<str>>,
    spans: Spans,
    /// Pods of this node by the addresses that their network namespaces have.
    residents: HashMap<IpAddr, Resident>,
    /// How often they were looked at.
    looks: u64,
    /// Pods that have ended, in that order, with the Unix time at which that was learnt.
    ended: VecDeque<(Arc<str>, u64)>,
    services: Services,
    nodes: HashMap<Arc<str>, Arc<Node>>,
    node_of: HashMap<IpAddr, Arc<str>>,
    generation: u64,
    /// Addresses that got a holder, with the generation at which they did.
    news: VecDeque<(u64, IpAddr)>,
    watches: BTreeMap<Resource, WatchState>,
    pods_turned_away: u64,
}

/// Who was seen to have an address.
#[derive(Debug)]
struct Resident {
    uid: Arc<str>,
    /// When it was seen last.
    look: u64,
}

/// News that are remembered for those who ask what is new.
const NEWS: usize = 8192;

/// What is known of the cluster. All look-ups take a read lock for some hash look-ups.
#[derive(Debug)]
pub struct Cluster {
    state: RwLock<State>,
    limits: ClusterLimits,
    node: Arc<str>,
    server: String,
    source: String,
}

impl Cluster {
    /// Nothing is known yet. `node` is our own node's name; `server` and `source` say whom we ask, and who told us to.
    #[must_use]
    pub fn new(node: &str, server: String, source: String, limits: ClusterLimits) -> Self {
        Self {
            state: RwLock::new(State {
                pods: HashMap::new(),
                by_name: HashMap::new(),
                by_hash: HashMap::new(),
                spans: Spans::default(),
                residents: HashMap::new(),
                looks: 0,
                ended: VecDeque::new(),
                services: Services::new(limits.services),
                nodes: HashMap::new(),
                node_of: HashMap::new(),
                generation: 1,
                news: VecDeque::new(),
                watches: BTreeMap::new(),
                pods_turned_away: 0,
            }),
            limits,
            node: node.into(),
            server,
            source,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our own node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// URL of the API server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Where the configuration came from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Changes whenever an answer may.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.read().generation
    }

    /// The pod that the API calls by this uid, or cgroups by this hash.
    #[must_use]
    pub fn pod_by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().pod(uid).cloned()
    }

    /// The newest pod of this name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let state = self.read();
        let uid = state.by_name.get(&(namespace.into(), name.into()))?;
        state.pods.get(uid).cloned()
    }

    /// Who held an address at a Unix time in nanoseconds.
    #[must_use]
    pub fn holder(&self, address: IpAddr, time_ns: u64) -> Option<Holder> {
        let state = self.read();
        if let Some((uid, claim)) = state.spans.at(address, time_ns) {
            return Some(match state.pod(uid) {
                Some(pod) => Holder::Pod(pod.clone(), claim),
                None => Holder::Resident(uid.clone(), claim),
            });
        }
        if state.services.has_address(address) {
            return Some(Holder::Service);
        }
        let node = state.nodes.get(state.node_of.get(&address)?)?;
        Some(Holder::Node(node.clone()))
    }

    /// Addresses that got a holder since a generation.
    #[must_use]
    pub fn new_addresses(&self, since: u64) -> Vec<IpAddr> {
        let state = self.read();
        let news = state.news.iter().rev();
        news.take_while(|(generation, _)| *generation > since)
            .map(|&(_, address)| address)
            .collect()
    }

    /// The Service (`namespace/name`) that is reached at an address and port: its own, or a node's.
    #[must_use]
    pub fn service_at(&self, address: IpAddr, port: u16, protocol: u8) -> Option<Arc<str>> {
        let state = self.read();
        if let Some(service) = state.services.at(address, port, protocol) {
            return Some(service.clone());
        }
        let service = state.services.at_node_port(port, protocol)?;
        state.node_of.contains_key(&address).then(|| service.clone())
    }

    /// The Service that is reached at this port of every node.
    #[must_use]
    pub fn service_at_node_port(&self, port: u16, protocol: u8) -> Option<Arc<str>> {
        self.read().services.at_node_port(port, protocol).cloned()
    }

    /// The headless Service whose endpoint this is, if it is exactly one's.
    #[must_use]
    pub fn service_of_endpoint(&self, address: IpAddr, port: u16, protocol: u8) -> Option<Arc<str>> {
        self.read().services.of_endpoint(address, port, protocol).cloned()
    }

    /// Whether a Service has the address.
    #[must_use]
    pub fn is_service_ip(&self, address: IpAddr) -> bool {
        self.read().services.has_address(address)
    }

    /// Whether the API server answers at an address and port.
    #[must_use]
    pub fn is_api_server(&self, address: IpAddr, port: u16) -> bool {
        self.read().services.is_api_server(address, port)
    }

    /// Whether the API server answers at some port of an address.
    #[must_use]
    pub fn has_api_server(&self, address: IpAddr) -> bool {
        self.read().services.has_api_server(address)
    }

    /// Whether the API knows our own node.
    #[must_use]
    pub fn knows_own_node(&self) -> bool {
        self.read().nodes.contains_key(&self.node)
    }

    /// Whether a host name is for certain another node's, or that of pods that all run on others. Cost: linear in pods.
    #[must_use]
    pub fn is_elsewhere(&self, host: &str) -> bool {
        let state = self.read();
        if *host == *self.node {
            return false;
        }
        if state.nodes.contains_key(host) {
            return true;
        }
        let mut pods = state.pods.values().filter(|pod| *pod.name == *host).peekable();
        pods.peek().is_some() && pods.all(|pod| !pod.node.is_empty() && pod.node != self.node)
    }

    /// Pods of our own node, those that ended not long ago included.
    #[must_use]
    pub fn own_pods(&self) -> Vec<Arc<Pod>> {
        let state = self.read();
        let own = state.pods.values().filter(|pod| pod.node == self.node);
        own.cloned().collect()
    }

    /// Uids of the pods whose labels `match`.
    pub fn pods_matching(&self, mut matches: impl FnMut(&BTreeMap<String, String>) -> bool) -> Vec<Arc<str>> {
        let state = self.read();
        let found = state.pods.values().filter(|pod| matches(&pod.labels));
        found.map(|pod| pod.uid.clone()).collect()
    }

    /// Takes in all addresses of the pods of this node, as their network namespaces have them: with the pod's uid (as its
    /// cgroups have it) and since when at the latest (Unix time in nanoseconds). This machine knows all of that before the
    /// API tells, and exactly. Cost: a hash look-up an address, if nothing has changed.
    pub fn see_residents<'a>(&self, residents: impl Iterator<Item = (IpAddr, &'a str, u64)>, now_ns: u64) {
        let mut state = self.write();
        state.looks += 1;
        let look = state.looks;
        for (address, uid, since) in residents {
            let pod = state.pod(uid).cloned();
            if pod.as_ref().is_some_and(|pod| !self.may_hold(pod, address)) {
                continue;
            }
            // Of a static pod the API has another uid.
            let uid = pod.as_ref().map_or(uid, |pod| &*pod.uid);
            if let Some(known) = state.residents.get_mut(&address)
                && *known.uid == *uid
            {
                known.look = look;
                continue;
            }
            if state.spans.len() < self.limits.pods {
                let uid: Arc<str> = uid.into();
                let resident = Resident {
                    uid: uid.clone(),
                    look,
                };
                if let Some(before) = state.residents.insert(address, resident) {
                    state.spans.end(address, &before.uid, now_ns);
                }
                if state.spans.claim(address, &uid, since, Certainty::Seen) {
                    state.news(address);
                }
            }
        }
        let State { residents, spans, .. } = &mut *state;
        residents.retain(|address, resident| {
            let is_there = resident.look == look;
            if !is_there {
                spans.end(*address, &resident.uid, now_ns);
            }
            is_there
        });
    }

    /// Whether what the API says of a pod allows that it has an address here.
    fn may_hold(&self, pod: &Pod, address: IpAddr) -> bool {
        // Its namespace may outlive a pod for a moment.
        let over = pod.deleted || matches!(pod.phase.as_str(), "Succeeded" | "Failed");
        let own = pod.node == self.node && !pod.host_network && !over;
        own && (pod.ips.is_empty() || pod.ips.contains(&address))
    }

    /// Forgets what ended longer ago than is kept.
    pub fn expire(&self, now_ns: u64) {
        let keep = u64::try_from(self.limits.retention.as_nanos()).unwrap_or(u64::MAX);
        let before = now_ns.saturating_sub(keep);
        if self
            .read()
            .ended
            .front()
            .is_none_or(|(_, ended)| *ended >= before)
        {
            return;
        }
        let mut state = self.write();
        while let Some((uid, _)) = state.ended.pop_front_if(|(_, ended)| *ended < before) {
            state.forget(&uid);
        }
        state.spans.forget(before);
    }

    /// Takes a pod in; returns its uid, or `None` if the object lacks what every pod has.
    pub(crate) fn apply_pod(&self, object: PodObject, now_ns: u64) -> Option<Arc<str>> {
        let (pod, lifetime) = Pod::new(object)?;
        Some(self.apply(pod, lifetime, now_ns))
    }

    /// Takes in what a pod was when it was deleted.
    pub(crate) fn apply_last_of_pod(&self, object: PodObject, now_ns: u64) {
        if let Some((pod, lifetime)) = Pod::new(object) {
            let lifetime = Lifetime {
                over: true,
                ..lifetime
            };
            self.apply(pod, lifetime, now_ns);
        }
    }

    fn apply(&self, pod: Pod, lifetime: Lifetime, now_ns: u64) -> Arc<str> {
        let uid = pod.uid.clone();
        let mut state = self.write();
        let own = pod.node == self.node;
        if !own && state.pods.len() >= self.limits.pods && !state.pods.contains_key(&uid) {
            state.pods_turned_away += 1;
        } else {
            state.apply_pod(pod, lifetime, now_ns);
        }
        uid
    }

    pub(crate) fn delete_pod(&self, uid: &str, now_ns: u64) {
        self.write().delete_pod(uid, now_ns);
    }

    /// Everything has been listed: pods that were not are gone.
    pub(crate) fn keep_pods(&self, listed: &HashSet<Arc<str>>, now_ns: u64) {
        let mut state = self.write();
        let gone: Vec<Arc<str>> = state
            .pods
            .values()
            .filter(|pod| !pod.deleted && !listed.contains(&pod.uid))
            .map(|pod| pod.uid.clone())
            .collect();
        for uid in gone {
            state.delete_pod(&uid, now_ns);
        }
    }

    pub(crate) fn apply_service(&self, object: &ServiceObject) -> Option<Arc<str>> {
        let mut state = self.write();
        state.generation += 1;
        state.services.apply(object)
    }

    pub(crate) fn delete_service(&self, key: &str) {
        let mut state = self.write();
        state.generation += 1;
        state.services.remove(key);
    }

    pub(crate) fn keep_services(&self, listed: &HashSet<Arc<str>>) {
        let mut state = self.write();
        let gone: Vec<Arc<str>> = state
            .services
            .names()
            .filter(|name| !listed.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            state.services.remove(&name);
        }
        state.generation += 1;
    }

    pub(crate) fn apply_slice(&self, object: &SliceObject) -> Option<Arc<str>> {
        let mut state = self.write();
        state.generation += 1;
        state.services.apply_slice(object)
    }

    pub(crate) fn delete_slice(&self, key: &str) {
        let mut state = self.write();
        state.generation += 1;
        state.services.remove_slice(key);
    }

    pub(crate) fn keep_slices(&self, listed: &HashSet<Arc<str>>) {
        let mut state = self.write();
        let gone: Vec<Arc<str>> = state
            .services
            .slice_keys()
            .filter(|key| !listed.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            state.services.remove_slice(&key);
        }
        state.generation += 1;
    }

    pub(crate) fn apply_node(&self, object: &NodeObject) -> Option<Arc<str>> {
        let name: Arc<str> = objects::name(object.metadata.name.as_deref())?.into();
        let texts = object.status.addresses.iter();
        let ips = objects::addresses(texts.map(|address| address.address.as_str()));
        let mut state = self.write();
        let known = state.nodes.get(&name);
        let no_room = known.is_none() && state.nodes.len() >= self.limits.services && name != self.node;
        // Kubelets say that they live every few seconds.
        if no_room || known.is_some_and(|node| node.ips == ips) {
            return Some(name);
        }
        state.remove_node(&name);
        for &address in &ips {
            state.node_of.insert(address, name.clone());
            state.news(address);
        }
        let node = Node {
            name: name.clone(),
            ips,
        };
        state.nodes.insert(name.clone(), Arc::new(node));
        state.generation += 1;
        Some(name)
    }

    pub(crate) fn delete_node(&self, name: &str) {
        self.write().remove_node(name);
    }

    pub(crate) fn keep_nodes(&self, listed: &HashSet<Arc<str>>) {
        let mut state = self.write();
        let gone: Vec<Arc<str>> = state
            .nodes
            .keys()
            .filter(|name| !listed.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            state.remove_node(&name);
        }
    }

    /// Changes the state of a watch.
    pub(crate) fn watch<T>(&self, resource: Resource, change: impl FnOnce(&mut WatchState) -> T) -> T {
        change(self.write().watches.entry(resource).or_default())
    }

    /// How each watch does, with the number of its objects.
    #[must_use]
    pub fn watches(&self) -> Vec<(Resource, WatchState, usize)> {
        let state = self.read();
        Resource::ALL
            .into_iter()
            .map(|resource| {
                let objects = match resource {
                    Resource::Pods => state.pods.len() - state.ended.len().min(state.pods.len()),
                    Resource::Services => state.services.len(),
                    Resource::EndpointSlices => state.services.slice_keys().count(),
                    Resource::Nodes => state.nodes.len(),
                };
                let watch = state.watches.get(&resource).cloned().unwrap_or_default();
                (resource, watch, objects)
            })
            .collect()
    }

    /// Use of the bounds.
    #[must_use]
    pub fn limits(&self) -> [Limit; 2] {
        let state = self.read();
        [
            Limit {
                name: "cluster_pods",
                used: state.pods.len(),
                max: self.limits.pods,
                turned_away: state.pods_turned_away,
            },
            Limit {
                name: "cluster_services",
                used: state.services.len(),
                max: state.services.max(),
                turned_away: state.services.turned_away(),
            },
        ]
    }
}

impl State {
    fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.pods
            .get(uid)
            .or_else(|| self.pods.get(self.by_hash.get(uid)?))
    }

    fn news(&mut self, address: IpAddr) {
        self.generation += 1;
        if self.news.len() >= NEWS {
            self.news.pop_front();
        }
        self.news.push_back((self.generation, address));
    }

    fn apply_pod(&mut self, mut pod: Pod, lifetime: Lifetime, now_ns: u64) {
        let uid = pod.uid.clone();
        let before = self.pods.get(&uid);
        // Events of one watch come in order: after its end a pod does not come back.
        pod.deleted = before.is_some_and(|before| before.deleted);
        if before.is_some_and(|before| **before == pod) {
            return;
        }
        let lost: Vec<IpAddr> = before
            .map(|before| {
                let lost = before.ips.iter().filter(|ip| !pod.ips.contains(ip));
                lost.copied().collect()
            })
            .unwrap_or_default();
        for address in lost {
            self.spans.end(address, &uid, now_ns);
        }
        if !pod.host_network && !pod.deleted {
            let had: Vec<IpAddr> = before.map(|before| before.ips.clone()).unwrap_or_default();
            for &address in &pod.ips {
                let had_it = had.contains(&address);
                // Of an address that took another's place, the time of the pod's own beginning says nothing.
                let from = lifetime.from.or(lifetime.to).filter(|_| had.is_empty() || had_it);
                let from = match from {
                    // It may have ended long ago, and its address be another's since.
                    None if lifetime.over => None,
                    from => Some(from.unwrap_or(now_ns).min(now_ns)),
                };
                if let Some(from) = from.filter(|_| !lifetime.over || !had_it)
                    && self.spans.claim(address, &uid, from, Certainty::Told)
                {
                    self.news(address);
                }
                if lifetime.over {
                    self.spans
                        .end(address, &uid, lifetime.to.unwrap_or(now_ns).min(now_ns));
                }
            }
        }
        let name = (pod.namespace.clone(), pod.name.clone());
        // A pod of the same name that is being deleted may still send events.
        let newest = self
            .by_name
            .get(&name)
            .and_then(|other| self.pods.get(other))
            .is_none_or(|other| other.uid == uid || other.deleted || other.started_ns <= pod.started_ns);
        if newest {
            self.by_name.insert(name, uid.clone());
        }
        if let Some(hash) = &pod.config_hash {
            self.by_hash.insert(hash.clone(), uid.clone());
        }
        self.pods.insert(uid, Arc::new(pod));
        self.generation += 1;
    }

    fn delete_pod(&mut self, uid: &str, now_ns: u64) {
        let Some(pod) = self.pods.get_mut(uid).filter(|pod| !pod.deleted) else {
            return;
        };
        let pod = Arc::make_mut(pod);
        pod.deleted = true;
        let (uid, ips) = (pod.uid.clone(), pod.ips.clone());
        for address in ips {
            self.spans.end(address, &uid, now_ns);
        }
        self.ended.push_back((uid, now_ns));
        self.generation += 1;
    }

    fn forget(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        let name = (pod.namespace.clone(), pod.name.clone());
        if self.by_name.get(&name).is_some_and(|newest| **newest == *uid) {
            self.by_name.remove(&name);
        }
        if let Some(hash) = &pod.config_hash
            && self.by_hash.get(hash).is_some_and(|of| **of == *uid)
        {
            self.by_hash.remove(hash);
        }
    }

    fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            for address in &node.ips {
                if self.node_of.get(address).is_some_and(|of| **of == *name) {
                    self.node_of.remove(address);
                }
            }
            self.generation += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// Later than all that pods may say of their beginning.
    const BEGIN: u64 = 1_000_000;

    fn address(index: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(index).expect("few addresses") + 1])
    }

    fn time(second: u64) -> Value {
        let time = std::time::UNIX_EPOCH + Duration::from_secs(second);
        json!(humantime::format_rfc3339_seconds(time).to_string())
    }

    fn node(name: &str, address: &str) -> NodeObject {
        let object = json!({"metadata": {"name": name}, "status": {"addresses": [{"address": address}]}});
        serde_json::from_value(object).expect("a node")
    }

    #[test]
    fn the_own_node_has_room_and_known_nodes_may_change_where_there_is_none() {
        let limits = ClusterLimits {
            services: 1,
            ..ClusterLimits::default()
        };
        let cluster = Cluster::new("own", String::new(), String::new(), limits);
        let is_node = |address: &str| {
            let holder = cluster.holder(address.parse().expect("an address"), SECOND);
            matches!(holder, Some(Holder::Node(_)))
        };
        cluster.apply_node(&node("a", "192.0.2.1"));
        cluster.apply_node(&node("b", "192.0.2.2"));
        assert!(is_node("192.0.2.1") && !is_node("192.0.2.2"));
        cluster.apply_node(&node("a", "192.0.2.3"));
        assert!(is_node("192.0.2.3") && !is_node("192.0.2.1"));
        cluster.apply_node(&node("own", "192.0.2.4"));
        assert!(cluster.knows_own_node() && is_node("192.0.2.4"));
    }

    #[test]
    fn a_host_is_elsewhere_if_it_is_another_node_or_a_pod_on_one() {
        let cluster = Cluster::new("own", String::new(), String::new(), ClusterLimits::default());
        for name in ["own", "other"] {
            cluster.apply_node(&node(name, "192.0.2.1"));
        }
        let pod = |namespace: &str, name: &str, node: &str| {
            let object = json!({
                "metadata": {"uid": format!("{namespace}-{name}"), "namespace": namespace, "name": name},
                "spec": {"nodeName": node},
            });
            let object: PodObject = serde_json::from_value(object).expect("a pod");
            cluster.apply_pod(object, SECOND);
        };
        pod("gpu", "exporter-here", "own");
        pod("gpu", "exporter-there", "other");
        pod("a", "both", "own");
        pod("b", "both", "other");
        pod("gpu", "not-yet", "");
        for host in ["other", "exporter-there"] {
            assert!(cluster.is_elsewhere(host), "{host}");
        }
        for host in ["own", "exporter-here", "both", "not-yet", "localhost", ""] {
            assert!(!cluster.is_elsewhere(host), "{host}");
        }
    }

    /// What happens to a pod, one after the other.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// It has this address, since so many seconds.
        Has(usize, u64),
        /// It has no address any more.
        Loses,
        /// It ends, with its address still in the API, and says when.
        Finishes,
        /// The same without saying when.
        Fails,
        Deleted,
        /// It is missing when everything is listed.
        Vanishes,
        /// Nothing new: the last event comes again.
        Again,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0usize..3, 0u64..3).prop_map(|(address, since)| Step::Has(address, since)),
            1 => Just(Step::Loses),
            1 => Just(Step::Finishes),
            1 => Just(Step::Fails),
            1 => Just(Step::Deleted),
            1 => Just(Step::Vanishes),
            2 => Just(Step::Again),
        ]
    }

    /// Of a pod, what a reader of its events knows.
    #[derive(Clone, Debug, Default)]
    struct Known {
        address: Option<usize>,
        started: Option<u64>,
        finished: Option<u64>,
        phase: &'static str,
        gone: bool,
    }

    impl Known {
        fn object(&self, uid: usize) -> PodObject {
            let mut object = json!({
                "metadata": {"namespace": "n", "name": format!("p{uid}"), "uid": format!("u{uid}")},
                "spec": {"containers": [{"name": "c"}]},
                "status": {"phase": self.phase},
            });
            if let Some(index) = self.address {
                object["status"]["podIP"] = json!(address(index).to_string());
            }
            let started = self.started.map(time);
            object["status"]["containerStatuses"] = match self.finished.map(time) {
                Some(finished) => json!([{"name": "c", "state": {"terminated":
                    {"startedAt": started, "finishedAt": finished}}}]),
                None if started.is_some() => {
                    json!([{"name": "c", "state": {"running": {"startedAt": started}}}])
                }
                None => json!([]),
            };
            serde_json::from_value(object).expect("a pod")
        }
    }

    /// An address's history: who began when, and ended when, in the order of the beginnings.
    type History = Vec<(String, u64, Option<u64>)>;

    /// Who has it: who began last, until its end, but for the second in which the one before has not ended yet; or who
    /// begins within three seconds, if nobody has it.
    fn expected(history: &History, second: u64) -> Option<&str> {
        let begun = history.iter().filter(|(_, from, _)| *from <= second).count();
        let has = |(_, _, to): &(String, u64, Option<u64>)| to.is_none_or(|to| second < to);
        match &history[..begun] {
            [.., other, (_, from, _)] if *from == second && has(other) => None,
            [.., last] if has(last) => Some(&last.0),
            _ => {
                let next = history.get(begun).filter(|(_, from, _)| from - second <= 3)?;
                Some(&next.0)
            }
        }
    }

    proptest! {
        #[test]
        fn each_address_has_at_each_time_the_pod_that_a_simple_history_names(
            steps in prop::collection::vec((0usize..5, step(), 4u64..30), 1..60),
        ) {
            let cluster = Cluster::new("own", String::new(), String::new(), ClusterLimits::default());
            let mut pods = vec![Known { phase: "Running", ..Known::default() }; 5];
            // Uids are never used again: a pod that is gone is replaced by one with another.
            let mut uids: Vec<usize> = (0..5).collect();
            let mut histories: [History; 3] = Default::default();
            let mut now = BEGIN;
            for (index, step, wait) in steps {
                now += wait;
                if pods[index].gone {
                    pods[index] = Known { phase: "Running", ..Known::default() };
                    uids[index] += 5;
                }
                let (uid, pod) = (uids[index], &mut pods[index]);
                let name = format!("u{uid}");
                let mut end = |address: Option<usize>, at: u64| {
                    let Some(address) = address else { return };
                    let last = histories[address].iter_mut().rev().find(|(uid, ..)| *uid == name);
                    if let Some((_, from, to @ None)) = last {
                        *to = Some(at.max(*from));
                    }
                };
                let is_over = pod.phase != "Running";
                match step {
                    Step::Has(address, since) if !is_over && pod.address != Some(address) => {
                        end(pod.address, now);
                        // Only of the first address the beginning is the pod's.
                        let from = if pod.address.is_none() { now - since } else { now };
                        pod.started = Some(now - since);
                        pod.address = Some(address);
                        histories[address].push((name, from, None));
                    }
                    Step::Loses if !is_over => {
                        end(pod.address.take(), now);
                        pod.started = None;
                    }
                    Step::Finishes if !is_over && pod.address.is_some() => {
                        pod.phase = "Succeeded";
                        pod.finished = Some(now - 2);
                        // Rounded down.
                        end(pod.address, now - 1);
                    }
                    Step::Fails if !is_over => {
                        pod.phase = "Failed";
                        pod.started = None;
                        end(pod.address, now);
                    }
                    Step::Deleted | Step::Vanishes => {
                        pod.gone = true;
                        end(pod.address, now);
                    }
                    _ => {}
                }
                let object = pods[index].object(uid);
                match step {
                    Step::Deleted => {
                        cluster.apply_last_of_pod(object, now * SECOND);
                        cluster.delete_pod(&format!("u{uid}"), now * SECOND);
                    }
                    Step::Vanishes => {
                        let there = (0..5).filter(|other| !pods[*other].gone);
                        let listed = there.map(|other| format!("u{}", uids[other]).into()).collect();
                        cluster.keep_pods(&listed, now * SECOND);
                    }
                    _ => prop_assert!(cluster.apply_pod(object, now * SECOND).is_some()),
                }
                for (index, history) in histories.iter().enumerate() {
                    for second in (now.saturating_sub(60)..=now).chain([now + 5, now + 15]) {
                        let found = match cluster.holder(address(index), second * SECOND) {
                            Some(Holder::Pod(pod, _)) => Some(pod.uid.to_string()),
                            _ => None,
                        };
                        let expected = expected(history, second).map(str::to_owned);
                        prop_assert_eq!(found, expected, "{} at {}: {:?}", address(index), second, history);
                    }
                }
            }
        }
    }
}
