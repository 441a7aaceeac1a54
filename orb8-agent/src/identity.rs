//! Who owns an interface, a cgroup or an address, as far as this machine alone can tell. Names of pods come on top, in
//! `crate::naming`.
//!
//! [`Identity`] answers; it never changes the machine, enters no namespace and keeps none alive. What it cannot
//! find out has [`owner::Attribution::Unknown`]: a guess never looks like a fact.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use self::cgroup_netns::CgroupNetns;
use self::{
    addresses::HostAddresses,
    cgroup::CgroupName,
    cgroups::{CgroupLimits, Cgroups},
    netns::Namespaces,
    owner::{Attribution, Kind, Owner, PodName},
    processes::Processes,
};
pub use self::{
    error::IdentityError,
    netns::own_netns_cookie,
    processes::{Comm, SocketProcess},
};
use crate::interfaces::{Interface, Role};

mod addresses;
pub mod cgroup;
mod cgroup_netns;
pub mod cgroups;
mod error;
mod netns;
pub mod owner;
mod pace;
mod processes;

/// So long a container's cgroup may stay without a process in a namespace of its own, before it is taken to use ours.
const NEWCOMER: Duration = Duration::from_secs(2);
/// A cgroup that was not found is looked up again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// Use of a bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// What is bounded.
    pub name: &'static str,
    /// Entries now.
    pub used: usize,
    /// Most entries.
    pub max: usize,
    /// What had no room, since the start.
    pub turned_away: u64,
}

/// Where to look, and how much to remember. [`Default`] is right for a machine's own agent.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// Where the host's proc file system is mounted.
    pub proc_root: PathBuf,
    /// Mount point of cgroup2; found in `proc_root/self/mountinfo` if not given.
    pub cgroup_root: Option<PathBuf>,
    /// Directories with one file a named network namespace.
    pub netns_directories: Vec<PathBuf>,
    /// Names of cgroups, removed ones included.
    pub max_cgroups: usize,
    /// inotify watches on cgroups (each takes about 1 KiB in the kernel).
    pub max_cgroup_watches: usize,
    /// How long names of removed cgroups are kept.
    pub cgroup_retention: Duration,
    /// Names of processes.
    pub max_processes: usize,
    /// Sockets in a listing.
    pub max_sockets: usize,
    /// Network namespaces.
    pub max_namespaces: usize,
    /// Addresses in network namespaces, and addresses of the host.
    pub max_addresses: usize,
    /// Whether socket records come from all network namespaces, since this kernel's programs cannot tell them apart.
    pub sockets_of_all_namespaces: bool,
}

impl Default for IdentityOptions {
    fn default() -> Self {
        Self {
            proc_root: "/proc".into(),
            cgroup_root: None,
            netns_directories: vec!["/run/netns".into(), "/run/docker/netns".into()],
            max_cgroups: 16_384,
            max_cgroup_watches: 16_384,
            cgroup_retention: Duration::from_secs(300),
            max_processes: 4096,
            max_sockets: 65_536,
            max_namespaces: 4096,
            max_addresses: 16_384,
            sockets_of_all_namespaces: false,
        }
    }
}

/// Who owns what on this machine, seen from the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Identity {
    netns: CgroupNetns,
    cgroups: Option<Cgroups>,
    /// Why `cgroups` is missing.
    degraded: Vec<IdentityError>,
    generation: u64,
    of_cgroup: HashMap<u64, CgroupOwner>,
    /// Containers' cgroups that are not met yet, and since when they are known.
    newcomers: Vec<(Arc<str>, Instant)>,
    max_cgroups: usize,
    processes: Processes,
    namespaces: Namespaces,
    host: HostAddresses,
}

/// What a cgroup's path says.
#[derive(Debug)]
struct CgroupOwner {
    /// With unit or container if `named`, otherwise with the path alone.
    owner: Owner,
    named: bool,
    /// When to look again, if it was not found.
    retry: Option<Instant>,
}

impl Identity {
    /// Starts to follow cgroups, network namespaces and addresses. Costs some milliseconds.
    ///
    /// Without a cgroup2 hierarchy owners are named by process only, and [`Identity::degraded`] says why.
    ///
    /// # Errors
    /// If netlink or `/proc` cannot be used, or a given `cgroup_root` cannot.
    pub fn new(options: IdentityOptions) -> Result<Self, IdentityError> {
        let limits = CgroupLimits {
            cgroups: options.max_cgroups,
            watches: options.max_cgroup_watches,
            retention: options.cgroup_retention,
        };
        let mut degraded = Vec::new();
        let cgroups = match options.cgroup_root {
            Some(root) => Some(Cgroups::open(&root, limits)?),
            None => cgroups::mount_point(&options.proc_root)
                .and_then(|root| Cgroups::open(&root, limits))
                .map_err(|error| degraded.push(error))
                .ok(),
        };
        let mut namespaces = Namespaces::new(
            &options.proc_root,
            options.netns_directories,
            options.max_namespaces,
            options.max_addresses,
        )?;
        namespaces.refresh(true);
        Ok(Self {
            netns: CgroupNetns::new(&options.proc_root, options.sockets_of_all_namespaces),
            generation: cgroups.as_ref().map_or(0, Cgroups::generation),
            cgroups,
            degraded,
            of_cgroup: HashMap::new(),
            newcomers: Vec::new(),
            max_cgroups: options.max_cgroups,
            processes: Processes::new(&options.proc_root, options.max_processes, options.max_sockets),
            namespaces,
            host: HostAddresses::new(options.max_addresses)?,
        })
    }

    /// What does not work, and why.
    #[must_use]
    pub fn degraded(&self) -> &[IdentityError] {
        &self.degraded
    }

    /// The cgroup2 hierarchy, where there is one: its mount point is where cgroup programs attach.
    #[must_use]
    pub const fn cgroups(&self) -> Option<&Cgroups> {
        self.cgroups.as_ref()
    }

    /// Owner of a socket of this network namespace.
    ///
    /// `tgid` and `comm` are the process that made it, as the kernel tells (0 and `None`: not known); `local` its IP
    /// protocol, address and port. Container and unit come from the cgroup. Where the cgroup names neither, the
    /// process is named: `tgid`, or who holds the socket with that local address.
    ///
    /// Two look-ups as a rule. For an unknown local address all sockets are listed, at most once a second.
    pub fn socket_owner(
        &mut self,
        cgroup_id: u64,
        tgid: u32,
        comm: Option<Comm>,
        local: Option<(u8, IpAddr, u16)>,
    ) -> Owner {
        let (mut owner, named) = self.cgroup_owner(cgroup_id);
        if named {
            return owner;
        }
        let mut process = (tgid != 0).then(|| self.processes.name(tgid, comm)).flatten();
        if process.is_none()
            && let Some((protocol, address, port)) = local
        {
            process = self.processes.by_address(protocol, address.to_canonical(), port);
        }
        if let Some((process, pid)) = process {
            owner.attribution = Attribution::Socket;
            owner.process = process;
            owner.pid = pid;
        } else if owner.cgroup == "/" {
            // A socket of the kernel itself (it answers for closed ports), or one that nobody holds any more.
            owner.kind = Kind::Host;
            owner.cgroup.clear();
        }
        owner
    }

    /// Owner by cgroup, and whether it has a unit or container.
    fn cgroup_owner(&mut self, id: u64) -> (Owner, bool) {
        if let Some(known) = self.of_cgroup.get(&id)
            && known.retry.is_none_or(|retry| Instant::now() < retry)
        {
            return (known.owner.clone(), known.named);
        }
        let path = self.cgroups.as_ref().and_then(|cgroups| cgroups.path(id));
        let (owner, named) = owner_of_cgroup(path.as_deref());
        if self.of_cgroup.len() >= self.max_cgroups {
            // Only a cache; what is asked for comes back.
            self.of_cgroup.clear();
        }
        let known = CgroupOwner {
            owner: owner.clone(),
            named,
            retry: path.is_none().then(|| Instant::now() + RETRY),
        };
        self.of_cgroup.insert(id, known);
        (owner, named)
    }

    /// Owner of what an interface carries: of a workload's interface, who lives in the namespace at its other end;
    /// of any other, this machine.
    ///
    /// Ask when the interface appears and again each interval: who lives in a namespace often comes after its
    /// interface. A look-up; namespaces are looked at, at most once a second, if that one is not known.
    pub fn interface_owner(&mut self, interface: &Interface) -> Owner {
        if interface.role == Role::Uplink {
            return Owner {
                kind: Kind::Host,
                attribution: Attribution::HostIp,
                ..Owner::default()
            };
        }
        let resident = interface
            .peer_netnsid
            .and_then(|nsid| self.namespaces.by_nsid(nsid));
        attributed(resident, Attribution::Veth)
    }

    /// Whether what [`Identity::interface_owner`] said is certain. Ask before a name is given for good: the kernel gives
    /// the ids by which namespaces are found again, at once. Some system calls.
    pub fn confirms(&mut self, interface: &Interface) -> bool {
        interface.role == Role::Uplink
            || interface
                .peer_netnsid
                .is_some_and(|nsid| self.namespaces.confirms(nsid, interface.ifindex))
    }

    /// An interface has come: what its namespace's id meant before is past.
    pub fn interface_came(&mut self, interface: &Interface) {
        if let Some(nsid) = interface.peer_netnsid {
            self.namespaces.forget_nsid(nsid);
        }
    }

    /// Looks at containers that have just come, so that they are known before their first packet is drained. Whether
    /// any was met; and how old the youngest is of those that have no process in a namespace of its own yet: then ask
    /// again in some milliseconds. Costs some 100 µs a container.
    pub fn meet_newcomers(&mut self) -> (bool, Option<Duration>) {
        let Some(cgroups) = &self.cgroups else {
            return (false, None);
        };
        let came = cgroups.take_newcomers();
        let now = Instant::now();
        self.newcomers.extend(came.into_iter().map(|path| (path, now)));
        let root = cgroups.root().to_owned();
        let Self {
            newcomers,
            namespaces,
            ..
        } = self;
        let mut met = false;
        newcomers.retain(|(path, since)| {
            let procs = root.join(path.trim_start_matches('/')).join("cgroup.procs");
            // A cgroup that is gone is met no more; one without a process will get one.
            let Ok(processes) = std::fs::read_to_string(procs) else {
                return false;
            };
            // The runtime's own process joins first, and may still be in the host's namespace.
            if let Some(pid) = processes.lines().find_map(|pid| pid.parse().ok())
                && namespaces.meet(pid)
            {
                met = true;
                return false;
            }
            since.elapsed() < NEWCOMER
        });
        (met, newcomers.iter().map(|(_, since)| since.elapsed()).min())
    }

    /// Addresses of pods of this node as their network namespaces have them, with the pods' uids, and since when its first
    /// process that is known was there (Unix time in nanoseconds).
    pub fn pod_addresses(&self) -> impl Iterator<Item = (IpAddr, &str, u64)> {
        self.namespaces.pod_addresses()
    }

    /// Inode of the network namespace of the pod whose uid `is` wanted, and its id in ours. A look at all namespaces.
    #[must_use]
    pub fn pod_namespace(&self, is: impl FnMut(&str) -> bool) -> Option<(u64, Option<i32>)> {
        self.namespaces.of_pod(is)
    }

    /// Owner of an address: this machine's, a workload's in a network namespace of this machine, or external. An
    /// address that several namespaces have set is a workload's with [`Attribution::Unknown`]. IPv4-mapped IPv6
    /// addresses are IPv4 addresses. One or two look-ups.
    pub fn address_owner(&mut self, address: IpAddr) -> Owner {
        let address = address.to_canonical();
        if self.host.contains(address) {
            return Owner {
                kind: Kind::Host,
                attribution: Attribution::HostIp,
                ..Owner::default()
            };
        }
        match self.namespaces.by_address(address) {
            Some(resident) => attributed(resident, Attribution::NetnsIp),
            None => Owner::default(),
        }
    }

    /// Whether an address is this machine's own.
    #[must_use]
    pub fn is_host_address(&self, address: IpAddr) -> bool {
        self.host.contains(address.to_canonical())
    }

    /// Whether [`Identity::is_in_other_netns`] must be asked of each cgroup.
    #[must_use]
    pub const fn must_tell_namespaces(&self) -> bool {
        self.netns.wanted()
    }

    /// Whether the sockets of a cgroup are in another network namespace than the agent's, by its processes; where it has
    /// none any more, by its name: a container's are taken to be. Reads two files.
    #[must_use]
    pub fn is_in_other_netns(&mut self, cgroup_id: u64) -> bool {
        let path = self.cgroups.as_ref().and_then(|cgroups| {
            Some(
                cgroups
                    .root()
                    .join(cgroups.path(cgroup_id)?.trim_start_matches('/')),
            )
        });
        match path.and_then(|path| self.netns.is_other(&path)) {
            Some(other) => other,
            None => !self.cgroup_owner(cgroup_id).0.container.is_empty(),
        }
    }

    /// Follows changes of addresses and namespaces. Call once an interval, off the hot path: two system calls if
    /// nothing changed, otherwise about 10 µs a process and 50 µs a namespace, not more than a twentieth of the time.
    ///
    /// # Errors
    /// If the kernel does not list its addresses; the last known ones stay.
    pub fn refresh(&mut self) -> Result<(), IdentityError> {
        let generation = self.cgroups.as_ref().map_or(0, Cgroups::generation);
        self.namespaces.refresh(generation != self.generation);
        self.generation = generation;
        self.host.refresh()
    }

    /// The processes of all sockets of this network namespace that exist now, for sockets made before the probe.
    /// Costs one read of `/proc/PID/fd` a process; not for the hot path.
    ///
    /// # Errors
    /// If the kernel does not list its sockets.
    pub fn existing_sockets(&mut self) -> Result<Vec<SocketProcess>, IdentityError> {
        self.processes.existing_sockets()
    }

    /// Use of all bounds.
    #[must_use]
    pub fn limits(&self) -> Vec<Limit> {
        let mut limits = Vec::new();
        limits.extend(self.cgroups.iter().flat_map(Cgroups::limits));
        limits.extend(self.processes.limits());
        limits.extend(self.namespaces.limits());
        limits.push(self.host.limits());
        limits
    }
}

/// A pod of which the cgroup's path alone is known.
/// Owner by a cgroup's path, and whether it has a unit or container.
fn owner_of_cgroup(path: Option<&str>) -> (Owner, bool) {
    let name = path.map(CgroupName::parse).unwrap_or_default();
    let named = name.names_someone();
    let owner = Owner {
        kind: Kind::Process,
        attribution: match path {
            Some(_) => Attribution::Cgroup,
            None => Attribution::Unknown,
        },
        pod: name.pod_uid.map(pod_of_uid),
        unit: name.unit.unwrap_or_default(),
        container: name.container.unwrap_or_default(),
        cgroup: path.unwrap_or_default().to_owned(),
        ..Owner::default()
    };
    (owner, named)
}

/// Where /proc is.
pub(crate) const PROC: &str = "/proc";

/// Owner of a process, by its cgroup as /proc tells it; none: it is gone. Where its cgroup names nobody, the process is named.
/// Cost: two small files.
pub(crate) fn process_owner(proc_root: &Path, pid: u32) -> Option<Owner> {
    let text = std::fs::read_to_string(proc_root.join(pid.to_string()).join("cgroup")).ok()?;
    let path = path_of_cgroups(&text)?;
    let (mut owner, named) = owner_of_cgroup(Some(path));
    if !named {
        owner.attribution = Attribution::Socket;
        owner.process = processes::read_comm(proc_root, pid).unwrap_or_default();
        owner.pid = pid;
    }
    Some(owner)
}

/// The path of /proc/PID/cgroup (cgroups(7)) that says most: that of cgroup2; where only cgroup1 has controllers, that of
/// systemd or of a controller that container runtimes set.
fn path_of_cgroups(text: &str) -> Option<&str> {
    let hierarchies = || {
        text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.split_once(':')
        })
    };
    let of = |wanted: &str| {
        hierarchies()
            .find(|(controllers, _)| controllers.split(',').any(|name| name == wanted))
            .map(|(_, path)| path)
    };
    let unified = of("");
    unified
        .filter(|path| *path != "/")
        .or_else(|| ["memory", "pids", "cpu", "name=systemd"].into_iter().find_map(of))
        .or(unified)
}

pub(crate) fn pod_of_uid(uid: String) -> Arc<PodName> {
    Arc::new(PodName {
        uid,
        ..PodName::default()
    })
}

/// A resident of a namespace, found by `attribution`; not even the namespace may be known.
fn attributed(resident: Option<&Owner>, attribution: Attribution) -> Owner {
    let mut owner = resident.cloned().unwrap_or_default();
    owner.kind = Kind::Process;
    // A packet of a namespace need not be its first process's: where something better names the namespace, the process
    // would be a guess.
    if !owner.netns.is_empty() || !owner.container.is_empty() || !owner.unit.is_empty() || owner.pod.is_some()
    {
        owner.process.clear();
        owner.pid = 0;
    }
    owner.attribution = match owner.name() {
        "" => Attribution::Unknown,
        _ => attribution,
    };
    owner
}
