//! Loads the network object with the sizes and variants that suit this kernel and these settings.

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, SchedClassifier, SockOps},
};
use orb8_common::network::{Comm, Control, EpochLoad, HOOKS, Hook, HookStats};

use super::OBJECT;
pub use crate::probe::object::{EventRing, LoadError};
use crate::{
    bpf::fd_info::{FdInfo, fd_info},
    preflight::Features,
    probe::{
        netns_cookie::netns_cookie,
        object::{MapFds, Shared, program, typed},
    },
};

/// Sizes and switches of the network probe.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Entries of each of the two flow maps.
    pub flow_entries: u32,
    /// Bytes of the event ring, a power of two.
    pub ring_bytes: u32,
    /// The agent's gRPC port, whose traffic is left out; 0: none.
    pub grpc_port: u16,
    /// The agent's metrics port, likewise.
    pub metrics_port: u16,
    /// Whether the agent listens on loopback only.
    pub loopback_only: bool,
    /// Whether DNS answers are copied out.
    pub dns: bool,
}

/// Settings that the programs read while they run.
#[derive(Clone)]
pub struct ControlMap(Arc<Mutex<ControlState>>);

/// The settings as last written, and the map that they are written to.
struct ControlState {
    control: Control,
    map: Array<MapData, Shared<Control>>,
}

impl std::fmt::Debug for ControlMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlMap").finish_non_exhaustive()
    }
}

impl ControlMap {
    /// Changes the settings.
    ///
    /// # Errors
    /// If the kernel refuses the write; the settings are then as before.
    pub fn update(&self, change: impl FnOnce(&mut Control)) -> Result<Control, MapError> {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut control = guard.control;
        change(&mut control);
        guard.map.set(0, Shared(control), 0)?;
        guard.control = control;
        Ok(control)
    }
}

/// Counters of the hooks, and what the kernel says of programs and maps.
#[derive(Debug)]
pub struct Counters {
    stats: StatsMap,
    maps: MapFds,
}

struct StatsMap(PerCpuArray<MapData, Shared<HookStats>>);

impl std::fmt::Debug for StatsMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatsMap").finish_non_exhaustive()
    }
}

impl Counters {
    /// A hook's counters, summed over CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    pub fn hook(&self, hook: Hook) -> Result<HookStats, MapError> {
        let mut sum = HookStats::default();
        for Shared(cpu) in self.stats.0.get(&(hook as u32), 0)?.iter() {
            sum.seen += cpu.seen;
            sum.filtered += cpu.filtered;
            sum.remainder += cpu.remainder;
            sum.lost += cpu.lost;
            sum.lost_bytes += cpu.lost_bytes;
        }
        Ok(sum)
    }

    /// Bytes that all maps of the family occupy now.
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        self.maps.bytes()
    }
}

/// Maps that the drain empties: pairs by epoch.
#[derive(Debug)]
pub struct EpochMaps {
    /// Flows.
    pub flows: [OwnedFd; 2],
    /// Totals of what had no room among the flows.
    pub remainder: [OwnedFd; 2],
    /// TCP health.
    pub tcp: [OwnedFd; 2],
    /// How full the flow maps are.
    pub(crate) load: LoadMap,
}

/// How full the flow maps are, by epoch.
pub(crate) struct LoadMap(Array<MapData, Shared<EpochLoad>>);

impl std::fmt::Debug for LoadMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadMap").finish_non_exhaustive()
    }
}

impl LoadMap {
    /// The map of this epoch is empty.
    pub(crate) fn reset(&mut self, epoch: u32) -> Result<(), MapError> {
        self.0.set(epoch, Shared(EpochLoad::default()), 0)
    }
}

/// Which process made a socket, and the names of those processes.
pub struct SocketProcesses {
    names: HashMap<MapData, u32, Shared<Comm>>,
    tgids: HashMap<MapData, u64, u32>,
}

impl std::fmt::Debug for SocketProcesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketProcesses").finish_non_exhaustive()
    }
}

impl SocketProcesses {
    /// Name of the process `tgid` when it last made a socket.
    #[must_use]
    pub fn name(&self, tgid: u32) -> Option<Comm> {
        self.names.get(&tgid, 0).ok().map(|Shared(comm)| comm)
    }

    /// Tells the programs of a socket that was there before them.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    pub fn learn(&mut self, cookie: u64, tgid: u32, comm: [u8; 16]) -> Result<(), MapError> {
        self.tgids.insert(cookie, tgid, 0)?;
        self.names.insert(tgid, Shared(Comm(comm)), 0)
    }
}

/// The loaded object, taken apart for those who use its parts.
#[derive(Debug)]
pub struct Network {
    /// Programs, to attach.
    pub programs: NetworkPrograms,
    /// Maps that the drain empties.
    pub epochs: EpochMaps,
    /// Settings that change while the programs run.
    pub control: ControlMap,
    /// Counters.
    pub counters: Counters,
    /// The event ring.
    pub events: EventRing,
    /// The ring of DNS answers.
    pub dns_answers: EventRing,
    /// Names of processes by socket.
    pub processes: SocketProcesses,
}

/// Ingress and egress classifier for interfaces with Ethernet frames.
pub(crate) const ETHERNET: [&str; 2] = ["orb8_eth_in", "orb8_eth_out"];
/// Ingress and egress classifier for interfaces without link-layer header.
pub(crate) const RAW: [&str; 2] = ["orb8_raw_in", "orb8_raw_out"];
/// Programs at the cgroup2 root.
pub(crate) const CGROUP: [&str; 4] = ["orb8_sock_in", "orb8_sock_out", "orb8_sock_new", "orb8_tcp"];

impl Network {
    /// Loads the object and its classifiers for Ethernet interfaces. Nothing is attached yet.
    ///
    /// # Errors
    /// [`LoadError`], with the end of the verifier's log where it is the verifier.
    pub fn load(options: &NetworkOptions, features: Features) -> Result<Self, LoadError> {
        let flag = u32::from;
        let cookie = netns_cookie().unwrap_or(0);
        let (skb_cookie, sock_ops_cookie) = (
            flag(features.netns_cookie_in_cgroup_skb && cookie != 0),
            flag(features.netns_cookie_in_sock_ops),
        );
        let (coarse, atomic_or) = (flag(features.coarse_clock), flag(features.atomic_or));
        let (grpc, metrics) = (u32::from(options.grpc_port), u32::from(options.metrics_port));
        let loopback = flag(options.loopback_only);
        let (pressure, dns) = (options.flow_entries / 2, flag(options.dns));
        let mut ebpf = EbpfLoader::new()
            // Nothing in the object needs the kernel's own types.
            .btf(None)
            .override_global("SKB_NETNS_COOKIE", &skb_cookie, true)
            .override_global("SOCK_OPS_NETNS_COOKIE", &sock_ops_cookie, true)
            .override_global("COARSE_CLOCK", &coarse, true)
            .override_global("ATOMIC_OR", &atomic_or, true)
            .override_global("HOST_NETNS_COOKIE", &cookie, true)
            .override_global("SELF_GRPC_PORT", &grpc, true)
            .override_global("SELF_METRICS_PORT", &metrics, true)
            .override_global("SELF_LOOPBACK", &loopback, true)
            .override_global("RING_BYTES", &options.ring_bytes, true)
            .override_global("FLOW_PRESSURE", &pressure, true)
            .override_global("DNS_WANTED", &dns, true)
            .map_max_entries("FLOWS_0", options.flow_entries)
            .map_max_entries("FLOWS_1", options.flow_entries)
            .map_max_entries("EVENTS", options.ring_bytes)
            .load(OBJECT)
            .map_err(|source| LoadError::Object {
                family: "network",
                source,
            })?;
        for name in ETHERNET {
            classifier(&mut ebpf, name)?;
        }

        let maps = MapFds::of(&ebpf);
        let fd = |name| maps.get(name);
        let epochs = EpochMaps {
            flows: [fd("FLOWS_0")?, fd("FLOWS_1")?],
            remainder: [fd("REMAINDER_0")?, fd("REMAINDER_1")?],
            tcp: [fd("TCP_0")?, fd("TCP_1")?],
            load: LoadMap(typed(&mut ebpf, "LOAD")?),
        };
        let control = typed(&mut ebpf, "CONTROL")?;
        let stats = typed(&mut ebpf, "STATS")?;
        debug_assert!(PerCpuArray::<_, Shared<HookStats>>::len(&stats) == HOOKS);
        let names = typed(&mut ebpf, "PROCESS_NAMES")?;
        let tgids = typed(&mut ebpf, "SOCKET_TGID")?;
        let events = EventRing(typed(&mut ebpf, "EVENTS")?);
        let dns_answers = EventRing(typed(&mut ebpf, "DNS_ANSWERS")?);
        Ok(Self {
            programs: NetworkPrograms { ebpf: Some(ebpf) },
            epochs,
            control: ControlMap(Arc::new(Mutex::new(ControlState {
                control: Control::default(),
                map: control,
            }))),
            counters: Counters {
                stats: StatsMap(stats),
                maps,
            },
            events,
            dns_answers,
            processes: SocketProcesses { names, tgids },
        })
    }
}

/// The classifier, loaded if it was not: those for interfaces without link-layer header are rarely needed.
fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    let classifier: &mut SchedClassifier = program(ebpf, name)?;
    if classifier.fd().is_err() {
        classifier
            .load()
            .map_err(|source| LoadError::Program { name, source })?;
    }
    Ok(classifier)
}

/// The programs, to attach and to ask about.
#[derive(Debug)]
pub struct NetworkPrograms {
    /// `None` once detached.
    ebpf: Option<Ebpf>,
}

impl NetworkPrograms {
    fn loaded(&mut self, name: &'static str) -> Result<&mut Ebpf, LoadError> {
        self.ebpf.as_mut().ok_or(LoadError::Missing(name))
    }

    /// A classifier, loaded.
    ///
    /// # Errors
    /// If the object has no such program.
    pub fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        classifier(self.loaded(name)?, name)
    }

    /// Loads and attaches one of the programs at the cgroup2 root. It is detached when the programs are dropped, or the
    /// process ends in whatever way (a bpf link).
    ///
    /// # Errors
    /// If the kernel refuses the program or the link.
    pub fn attach_to_cgroup(&mut self, name: &'static str, root: &File) -> Result<(), LoadError> {
        // A link always lets other programs run beside it: the kernel wants the mode left out.
        let mode = CgroupAttachMode::Single;
        let refused = |source| LoadError::Program { name, source };
        match name {
            "orb8_sock_in" | "orb8_sock_out" => {
                let direction = if name == "orb8_sock_in" {
                    CgroupSkbAttachType::Ingress
                } else {
                    CgroupSkbAttachType::Egress
                };
                let program: &mut CgroupSkb = program(self.loaded(name)?, name)?;
                program.load().map_err(refused)?;
                program.attach(root, direction, mode).map_err(refused)?;
            }
            "orb8_sock_new" => {
                let program: &mut CgroupSock = program(self.loaded(name)?, name)?;
                program.load().map_err(refused)?;
                program.attach(root, mode).map_err(refused)?;
            }
            _ => {
                let program: &mut SockOps = program(self.loaded(name)?, name)?;
                program.load().map_err(refused)?;
                program.attach(root, mode).map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Detaches and unloads every program that is not held elsewhere. There is no way back.
    pub fn detach(&mut self) {
        self.ebpf = None;
    }

    /// What the kernel says of each loaded program, in order of name.
    #[must_use]
    pub fn info(&self) -> Vec<(&'static str, FdInfo)> {
        ETHERNET
            .into_iter()
            .chain(RAW)
            .chain(CGROUP)
            .filter_map(|name| {
                let fd = self.ebpf.as_ref()?.program(name)?.fd().ok()?;
                Some((name, fd_info(fd).ok()?))
            })
            .collect()
    }
}
