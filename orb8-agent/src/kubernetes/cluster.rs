//! What is known of the cluster: a view that watches feed, and everything else asks.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use super::{
    objects::{NodeObject, PodObject, ServiceObject, SliceObject},
    pod::{Lifetime, Pod},
    services::Services,
    spans::Spans,
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
        if let Some((uid, claim)) = state.spans.at(address, time_ns)
            && let Some(pod) = state.pod(uid)
        {
            return Some(Holder::Pod(pod.clone(), claim));
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

    /// A pod of this node has the address since `now_ns` at the latest, as its network namespace says, which knows it before
    /// the API does. Only for pods that the API knows: who else is found by namespace does not need it.
    pub fn claim_local(&self, address: IpAddr, uid: &str, now_ns: u64) {
        let uid = {
            let state = self.read();
            let Some(pod) = state.pod(uid) else {
                return;
            };
            // Its namespace may outlive a pod for a moment.
            let over = pod.deleted || matches!(pod.phase.as_str(), "Succeeded" | "Failed");
            let own = pod.node == self.node && !pod.host_network && !over;
            let plausible = pod.ips.is_empty() || pod.ips.contains(&address);
            if !own || !plausible || state.spans.has(address, &pod.uid) {
                return;
            }
            pod.uid.clone()
        };
        let mut state = self.write();
        if state.spans.len() < self.limits.pods && state.spans.claim(address, &uid, now_ns) {
            state.news(address);
        }
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

    pub(crate) fn apply_pod(&self, object: PodObject, now_ns: u64) {
        let Some((pod, lifetime)) = Pod::new(object) else {
            self.malformed(Resource::Pods);
            return;
        };
        let mut state = self.write();
        let own = pod.node == self.node;
        if !own && state.pods.len() >= self.limits.pods && !state.pods.contains_key(&pod.uid) {
            state.pods_turned_away += 1;
            return;
        }
        state.apply_pod(pod, lifetime, now_ns);
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
        let name: Arc<str> = object.metadata.name.as_deref()?.into();
        let mut ips: Vec<IpAddr> = object
            .status
            .addresses
            .iter()
            .filter_map(|address| address.address.parse().ok())
            .map(|address: IpAddr| address.to_canonical())
            .collect();
        ips.sort_unstable();
        ips.dedup();
        let mut state = self.write();
        let unchanged = state.nodes.get(&name).is_some_and(|node| node.ips == ips);
        // Kubelets say that they live every few seconds.
        if unchanged || state.nodes.len() >= self.limits.services {
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

    pub(crate) fn malformed(&self, resource: Resource) {
        self.watch(resource, |watch| watch.malformed += 1);
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
            for &address in &pod.ips {
                let from = lifetime.from.unwrap_or(now_ns).min(now_ns);
                if self.spans.claim(address, &uid, from) {
                    self.news(address);
                }
                if let Some(to) = lifetime.to {
                    self.spans.end(address, &uid, to.min(now_ns));
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
