//! The thread that takes epochs out of the kernel, gives flows their owners, and stores them.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use orb8_common::network::{FlowCounters, FlowKey, Hook, RemainderKey, TcpHealth, TcpKey, kind};
use tokio::sync::oneshot;
use tracing::{debug, error};

use crate::{
    core::{Core, Store, lock},
    identity::owner::{Kind, Owner, OwnerId, OwnerTable},
    naming::{Names, holder_peer, peer_address},
    probe::{
        kernel_clock::unix_now_ns,
        network::{
            drain::{EpochDrain, EpochSink},
            load::SocketProcesses,
            points::Points,
        },
        syscall::Mode,
    },
    store::{Direction, Labels, Observation, PointId, Via, ViaId, octets},
    syscalls::SyscallReader,
};

/// What the pipeline is asked for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Drain now; `done` hears when it is done. Unless `force`, a drain of the last [`FRESH`] will do.
    Drain {
        done: Option<oneshot::Sender<()>>,
        force: bool,
    },
    /// Switch what the syscall programs do; `done` hears what they did before, or why it stays so.
    SetSyscallMode {
        mode: Mode,
        done: oneshot::Sender<Result<Mode, String>>,
    },
    /// Drain once more and end.
    Stop,
}

/// An answer may be so old, for the sake of a machine that is asked all the time.
const FRESH: Duration = Duration::from_millis(50);
/// Records that are given their owners under one lock.
const BATCH: usize = 1024;
/// So many intervals back, peers get names that came after their packets.
const LATE_INTERVALS: u32 = 30;
/// Entries of each of the caches in front of [`Names`].
const CACHE: usize = 65_536;
/// After so long the caches are emptied, since what they say may have changed.
const CACHE_AGE: Duration = Duration::from_secs(10);

/// Takes epochs out of the kernel and stores them.
#[derive(Debug)]
pub(crate) struct Pipeline {
    core: Arc<Core>,
    drain: EpochDrain,
    enricher: Enricher,
    syscalls: SyscallReader,
    interval: Duration,
}

impl Pipeline {
    pub(crate) fn new(
        core: Arc<Core>,
        drain: EpochDrain,
        processes: SocketProcesses,
        interval: Duration,
    ) -> Self {
        let enricher = Enricher {
            core: core.clone(),
            processes,
            caches: Caches::default(),
            flows: Vec::with_capacity(BATCH),
            flushed: Instant::now(),
            generation: 0,
            epoch_ended: false,
        };
        Self {
            syscalls: SyscallReader::new(core.clone()),
            core,
            drain,
            enricher,
            interval,
        }
    }

    /// Runs until [`Command::Stop`], or until nobody can send commands any more.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        let mut last = Instant::now();
        lock(&self.core.store).history.begin(self.core.started_ns);
        loop {
            let wait = self.interval.saturating_sub(last.elapsed());
            match commands.recv_timeout(wait) {
                Ok(Command::Drain { done, force }) => {
                    if force || last.elapsed() >= FRESH {
                        last = Instant::now();
                        self.epoch();
                    }
                    if let Some(done) = done {
                        // Nobody waits any more: all the same.
                        let _ = done.send(());
                    }
                }
                Ok(Command::SetSyscallMode { mode, done }) => {
                    let result = if self.core.is_ready() {
                        let switched = self.syscalls.set_mode(mode, unix_now_ns());
                        switched.map_err(|error| error.to_string())
                    } else {
                        // Nothing is to be loaded any more.
                        Err("the agent is stopping".to_owned())
                    };
                    // Nobody waits any more: it is switched all the same.
                    let _ = done.send(result);
                }
                Err(RecvTimeoutError::Timeout) => {
                    last = Instant::now();
                    self.epoch();
                }
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.epoch();
                    return;
                }
            }
        }
    }

    /// Ends an epoch and stores it.
    fn epoch(&mut self) {
        if self.enricher.before() {
            self.syscalls.forget_owners();
        }
        let counted: u64 = [
            Hook::TcIngress,
            Hook::TcEgress,
            Hook::SocketIngress,
            Hook::SocketEgress,
        ]
        .into_iter()
        .filter_map(|hook| self.core.counters.hook(hook).ok())
        .map(|stats| stats.seen - stats.filtered - stats.lost)
        .sum();
        let ended = self.drain.drain(&mut self.enricher);
        self.enricher.flush();
        // Newcomers have been met meanwhile. What is read after that end is no less of this interval.
        self.syscalls.read(unix_now_ns());
        match ended {
            Ok(ended) => {
                self.core
                    .drains
                    .counted_in_kernel
                    .store(counted, Ordering::Relaxed);
                self.enricher.commit(ended);
            }
            Err(error) => {
                self.core.drains.failures.fetch_add(1, Ordering::Relaxed);
                error!(%error, "an epoch could not be taken out of the kernel; its counts come with the next");
            }
        }
    }
}

/// Gives flows their owners and stores them.
#[derive(Debug)]
struct Enricher {
    core: Arc<Core>,
    processes: SocketProcesses,
    caches: Caches,
    flows: Vec<(FlowKey, FlowCounters)>,
    flushed: Instant,
    /// Of the cluster, when names were last given from it.
    generation: u64,
    /// Whether this epoch's end has been seen, and what came to life in it.
    epoch_ended: bool,
}

/// Answers of [`Names`], as ids.
#[derive(Debug, Default)]
struct Caches {
    /// By cgroup and process.
    sockets: HashMap<(u64, u32), OwnerId>,
    /// By cgroup, protocol and local address, of sockets whose process the kernel does not know.
    locals: HashMap<(u64, u8, IpAddr, u16), OwnerId>,
    /// By ownership of an address.
    pods: HashMap<u64, OwnerId>,
    /// By address, and port and observation point where these matter.
    peers: HashMap<(IpAddr, u16, u64), (OwnerId, Kind)>,
    /// By cgroup: whether its sockets are in another network namespace.
    foreign: HashMap<u64, bool>,
}

impl Caches {
    fn clear(&mut self) {
        self.sockets.clear();
        self.locals.clear();
        self.pods.clear();
        self.peers.clear();
        self.foreign.clear();
    }
}

impl Enricher {
    /// Brings names up to date; whether ids of owners may have been given to others.
    fn before(&mut self) -> bool {
        let mut forget = false;
        self.epoch_ended = false;
        let core = self.core.clone();
        // Looking at the machine takes its time: interfaces that come meanwhile are not to wait for it.
        if let Err(error) = lock(&core.names).refresh(unix_now_ns()) {
            debug!(%error, "identities are not up to date");
        }
        let mut points = lock(&core.points);
        let mut names = lock(&core.names);
        let mut store = lock(&core.store);
        let Store {
            history,
            owners,
            syscalls,
        } = &mut *store;
        if self.flushed.elapsed() >= CACHE_AGE {
            self.flushed = Instant::now();
            self.caches.clear();
            let in_use = history.owners_in_use();
            owners.retain(|id| in_use(id) || syscalls.names(id));
            drop(in_use);
            forget = true;
            owners.rename_each(|owner| names.better(owner));
            if let Some(cluster) = &names.cluster {
                cluster.expire(unix_now_ns());
                let ended = |labels: &Labels| {
                    !labels.pod.is_empty()
                        && cluster
                            .pod(&labels.namespace, &labels.pod)
                            .is_none_or(|pod| pod.deleted)
                };
                history.remove_ended(ended);
                syscalls.remove_ended(ended);
            }
        }
        name_points(&mut points, &mut names, owners);
        self.heed_news(&names, &mut store);
        forget
    }

    /// The epoch has ended, and is about to be stored: what opened connections and came to life in it may be known only now.
    fn after(&mut self) {
        let core = self.core.clone();
        let met = {
            let mut names = lock(&core.names);
            let (met, _) = names.meet_newcomers(unix_now_ns());
            if let Some(conntrack) = &mut names.conntrack
                && let Err(error) = conntrack.refresh(Instant::now())
            {
                debug!(%error, "translations are not up to date");
            }
            met
        };
        let mut points = lock(&core.points);
        let mut names = lock(&core.names);
        let mut store = lock(&core.store);
        if met {
            name_points(&mut points, &mut names, &mut store.owners);
        }
        self.heed_news(&names, &mut store);
    }

    /// If the cluster's names have changed: gives the new ones, also to what was counted before.
    fn heed_news(&mut self, names: &Names, store: &mut Store) {
        let Some(cluster) = &names.cluster else {
            return;
        };
        let generation = cluster.generation();
        if generation == self.generation {
            return;
        }
        let Store { history, owners, .. } = store;
        let since = std::mem::replace(&mut self.generation, generation);
        self.caches.clear();
        owners.rename_each(|owner| names.better(owner));
        let came: HashSet<[u8; 16]> = cluster.new_addresses(since).into_iter().map(octets).collect();
        if !came.is_empty() {
            let now = unix_now_ns();
            let nameless =
                history.nameless_peers(LATE_INTERVALS, now, owners, |address| came.contains(address));
            for (flow, address, time_ns) in nameless {
                if let Some((holder, _)) = names.pod_at(ip(&address), time_ns) {
                    history.name_peer(flow, owners.intern(holder_peer(&holder)));
                }
            }
        }
    }

    /// Stores what has come.
    fn flush(&mut self) {
        if !self.epoch_ended {
            self.epoch_ended = true;
            self.after();
        }
        let core = self.core.clone();
        let mut points = lock(&core.points);
        let mut names = lock(&core.names);
        let mut store = lock(&core.store);
        let mut drained = 0;
        for (key, counters) in self.flows.drain(..) {
            drained += counters.frames();
            let mut resolver = Resolver {
                names: &mut names,
                store: &mut store,
                points: &mut points,
                processes: &self.processes,
                caches: &mut self.caches,
            };
            if key.kind & kind::SOCKET != 0 && resolver.is_foreign(key.point) {
                core.drains
                    .foreign
                    .fetch_add(counters.frames(), Ordering::Relaxed);
                continue;
            }
            let via = resolver.names.via(&key, true);
            let (owner, direction, point) = resolver.reporter(&key, &counters, via.as_ref());
            let (peer, peer_kind) = resolver.peer(&key, direction, via.as_ref(), &counters);
            let Store { history, owners, .. } = &mut *store;
            let via = via.map_or(ViaId::STRAIGHT, |via| history.via(via));
            let observation = Observation {
                key: &key,
                counters: &counters,
                owner,
                peer,
                peer_kind,
                direction,
                point,
                via,
            };
            history.add_flow(&observation, owners);
        }
        core.drains.drained.fetch_add(drained, Ordering::Relaxed);
    }

    fn commit(&mut self, ended: u64) {
        let core = self.core.clone();
        lock(&core.points).epoch_ended();
        let mut store = lock(&core.store);
        let Store { history, owners, .. } = &mut *store;
        history.commit(ended, owners);
        history.begin(ended);
    }
}

impl EpochSink for Enricher {
    fn flow(&mut self, key: &FlowKey, counters: &FlowCounters) {
        self.flows.push((*key, *counters));
        if self.flows.len() == BATCH {
            self.flush();
        }
    }

    fn remainder(&mut self, key: &RemainderKey, counters: &FlowCounters) {
        self.flush();
        let core = self.core.clone();
        let mut points = lock(&core.points);
        let mut names = lock(&core.names);
        let mut store = lock(&core.store);
        core.drains
            .drained
            .fetch_add(counters.frames(), Ordering::Relaxed);
        let at = FlowKey {
            point: key.point,
            kind: key.kind,
            link_len: key.link_len,
            ..FlowKey::default()
        };
        let mut resolver = Resolver {
            names: &mut names,
            store: &mut store,
            points: &mut points,
            processes: &self.processes,
            caches: &mut self.caches,
        };
        let (owner, direction, point) = resolver.reporter(&at, counters, None);
        store
            .history
            .add_remainder(key, counters, owner, direction, point);
    }

    fn tcp(&mut self, key: &TcpKey, health: &TcpHealth) {
        if !self.flows.is_empty() {
            self.flush();
        }
        lock(&self.core.store).history.add_tcp(key, health);
    }
}

/// Finds owners, through the caches.
struct Resolver<'a> {
    names: &'a mut Names,
    store: &'a mut Store,
    points: &'a mut Points,
    processes: &'a SocketProcesses,
    caches: &'a mut Caches,
}

impl Resolver<'_> {
    fn reporter(
        &mut self,
        key: &FlowKey,
        counters: &FlowCounters,
        via: Option<&Via>,
    ) -> (OwnerId, Direction, PointId) {
        if key.kind & kind::SOCKET != 0 {
            // The socket's own address is not what its packets carry where they are translated on the way to the hook.
            let local = if key.kind & kind::EGRESS != 0 {
                let real = via.and_then(|via| via.src);
                real.unwrap_or_else(|| (ip(&key.src), key.sport))
            } else {
                let real = via.and_then(|via| via.dst);
                real.unwrap_or_else(|| (ip(&key.dst), key.dport))
            };
            return (
                self.socket(key, counters.tgid, local),
                Direction::of(key.kind, false),
                PointId::UNNAMED,
            );
        }
        let ifindex = u32::try_from(key.point).unwrap_or(0);
        let Some(point) = self.points.get_mut(ifindex) else {
            debug!(ifindex, "packets of an interface that is not known");
            return (OwnerId::UNKNOWN, Direction::of(key.kind, false), PointId::UNNAMED);
        };
        point.seen[usize::from(key.kind & kind::EGRESS != 0)] += counters.frames();
        if point.owner_id == OwnerId::UNKNOWN {
            point.owner_id = self.store.owners.intern(point.owner.clone());
        }
        let id = self.store.history.point(&point.interface.name);
        (point.owner_id, Direction::of(key.kind, point.is_inverted()), id)
    }

    fn socket(&mut self, key: &FlowKey, tgid: u32, (address, port): (IpAddr, u16)) -> OwnerId {
        if let Some(&id) = self.caches.sockets.get(&(key.point, tgid)) {
            return id;
        }
        let local = (key.point, key.protocol, address, port);
        if tgid == 0
            && let Some(&id) = self.caches.locals.get(&local)
        {
            return id;
        }
        let comm = (tgid != 0)
            .then(|| self.processes.name(tgid))
            .flatten()
            .map(|comm| comm.0);
        let owner = self
            .names
            .socket_owner(key.point, tgid, comm, Some((key.protocol, address, port)));
        let by_cgroup = !owner.unit.is_empty() || !owner.container.is_empty() || owner.pod.is_some();
        let id = self.store.owners.intern(owner);
        if tgid != 0 || by_cgroup {
            bounded_insert(&mut self.caches.sockets, (key.point, tgid), id);
        } else {
            bounded_insert(&mut self.caches.locals, local, id);
        }
        id
    }

    /// Who is at the other end at that time, and what kind of end it is.
    fn peer(
        &mut self,
        key: &FlowKey,
        direction: Direction,
        via: Option<&Via>,
        counters: &FlowCounters,
    ) -> (OwnerId, Kind) {
        if key.kind & (kind::IPV4 | kind::IPV6) == 0 {
            return (OwnerId::UNKNOWN, Kind::External);
        }
        let (address, port) = peer_address(key, direction, via);
        let time_ns = counters.last_ns;
        // A pod that has ended meanwhile had its address when the packets began.
        let pod = self.names.pod_at(address, time_ns);
        if let Some((holder, claim)) = pod.or_else(|| self.names.pod_at(address, counters.first_ns)) {
            if let Some(&id) = self.caches.pods.get(&claim) {
                return (id, Kind::Pod);
            }
            let id = self.store.owners.intern(holder_peer(&holder));
            bounded_insert(&mut self.caches.pods, claim, id);
            return (id, Kind::Pod);
        }
        let cached = (
            address,
            if self.names.port_matters(address) { port } else { 0 },
            if self.names.dns.is_empty() { 0 } else { key.point },
        );
        if let Some(&known) = self.caches.peers.get(&cached) {
            return known;
        }
        let owner = self
            .names
            .no_pod_at(address, port, key.protocol, key.point, time_ns);
        let kind = owner.kind;
        let id = if owner == Owner::default() {
            OwnerId::UNKNOWN
        } else {
            self.store.owners.intern(owner)
        };
        bounded_insert(&mut self.caches.peers, cached, (id, kind));
        (id, kind)
    }

    /// Whether a cgroup's sockets are in another network namespace, and counted at its interface. Asked only of kernels
    /// whose programs cannot tell.
    fn is_foreign(&mut self, cgroup: u64) -> bool {
        if !self.names.identity.must_tell_namespaces() {
            return false;
        }
        if let Some(&foreign) = self.caches.foreign.get(&cgroup) {
            return foreign;
        }
        let foreign = self.names.identity.is_in_other_netns(cgroup);
        bounded_insert(&mut self.caches.foreign, cgroup, foreign);
        foreign
    }
}

/// As [`name_points`], outside of the pipeline.
pub(crate) fn name_points_of(core: &Core) {
    let mut points = lock(&core.points);
    let mut names = lock(&core.names);
    let mut store = lock(&core.store);
    name_points(&mut points, &mut names, &mut store.owners);
}

/// Gives interfaces the names of who lives at their other end, also for what was counted on them before.
fn name_points(points: &mut Points, names: &mut Names, owners: &mut OwnerTable) {
    for point in points.iter_mut() {
        if !point.is_present() {
            continue;
        }
        // Who lives in a namespace often comes after its interface.
        if let Some(owner) = names.interface_owner(&point.interface, &point.owner) {
            // The owner so far stood for this namespace alone.
            let before = &point.owner;
            let named = before.pod.is_some() || !before.netns.is_empty();
            // An id that no flow named may have been given to somebody else.
            let its_own = *owners.get(point.owner_id) == *before;
            if its_own && (before.nameless != 0 || owner.pod.is_some() && named) {
                owners.rename(point.owner_id, owner.clone());
            } else {
                point.owner_id = owners.intern(owner.clone());
            }
            point.owner = owner;
        }
        if *owners.get(point.owner_id) != point.owner {
            point.owner_id = owners.intern(point.owner.clone());
        }
    }
}

/// Only a cache: what is asked for comes back.
fn bounded_insert<K: std::hash::Hash + Eq, V>(cache: &mut HashMap<K, V>, key: K, value: V) {
    if cache.len() >= CACHE {
        cache.clear();
    }
    cache.insert(key, value);
}

/// IPv4-mapped addresses are IPv4 addresses.
pub(crate) fn ip(address: &[u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(*address)).to_canonical()
}
