//! Network namespaces of this machine: who lives in them, which id they have here, which addresses they hold.
//!
//! Nothing is entered and nothing is kept open: an open file of a namespace would keep it, and its interfaces,
//! alive. Ids come from `RTM_GETNSID`, addresses from `RTM_GETADDR` with `IFA_TARGET_NETNSID` (kernel ≥ 4.20), or
//! from `/proc/PID/net` where a namespace has no id here.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    IdentityError, Limit,
    addresses::{address_of, dump_request},
    cgroup::CgroupName,
    owner::{Kind, Owner},
    pace::Pace,
    pod_of_uid,
    processes::{pids, read_comm},
};
use crate::{
    netlink::{Attributes, Socket, push_u32, read_u32},
    probe::kernel_clock::unix_now_ns,
};

/// Attributes of `RTM_GETNSID` (include/uapi/linux/net_namespace.h).
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// Attributes of `RTM_GETLINK` (include/uapi/linux/if_link.h, rtnetlink.h).
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `IFA_TARGET_NETNSID` (include/uapi/linux/if_addr.h).
const IFA_TARGET_NETNSID: u16 = 10;
/// Processes looked at in one namespace.
const PROCESSES_EACH: usize = 16;
/// A namespace is looked at again every time until it is this old: processes and addresses come after it.
const YOUNG: Duration = Duration::from_secs(30);
/// Without any sign of a change, everything is looked at again after this long.
const FULL_INTERVAL: Duration = Duration::from_secs(10);
/// Names of namespaces outlive them by this long.
const RETENTION: Duration = Duration::from_secs(120);

/// The cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, `bpf_get_netns_cookie`), or `None`
/// before kernel 5.14.
#[must_use]
pub fn own_netns_cookie() -> Option<u64> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    let mut cookie = 0u64;
    let mut length = 8;
    // SAFETY: the option writes 8 bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(cookie)
}

/// Whose an address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    /// One namespace's, by inode.
    One(u64),
    /// More than one namespace has it set.
    Several,
}

#[derive(Debug)]
struct Namespace {
    nsid: Option<i32>,
    owner: Owner,
    representative: Option<Representative>,
    /// When the first known process of its pod started (clock ticks since boot).
    inhabited: Option<u64>,
    /// The file of its name, where it has one.
    path: Option<PathBuf>,
    /// Its processes at the last look.
    residents: Vec<u32>,
    addresses: Vec<IpAddr>,
    seen_first: Instant,
    seen_last: Instant,
}

/// The process that a namespace is named after: the best by rank, of those the oldest.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Representative {
    rank: Rank,
    /// Clock ticks since boot.
    started: u64,
    pid: u32,
    owner: Owner,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    Process,
    Unit,
    /// Keeps a pod's namespaces open and does nothing else.
    Sandbox,
    Container,
}

/// All network namespaces but our own.
#[derive(Debug)]
pub(crate) struct Namespaces {
    proc_root: PathBuf,
    /// Directories with one file a named namespace.
    directories: Vec<PathBuf>,
    route: Socket,
    own: u64,
    found: HashMap<u64, Namespace>,
    by_nsid: HashMap<i32, u64>,
    by_address: HashMap<IpAddr, Holder>,
    max_namespaces: usize,
    max_addresses: usize,
    namespaces_turned_away: u64,
    addresses_turned_away: u64,
    /// Something unknown was asked for.
    stale: bool,
    scanned: Option<Instant>,
    pace: Pace,
}

impl Namespaces {
    pub(crate) fn new(
        proc_root: &Path,
        directories: Vec<PathBuf>,
        max_namespaces: usize,
        max_addresses: usize,
    ) -> Result<Self, IdentityError> {
        // This thread's: it is the one whose ids the sockets opened here see.
        let path = PathBuf::from("/proc/thread-self/ns/net");
        let own = fs::metadata(&path).map_err(|source| IdentityError::File {
            action: "stat",
            path,
            source,
        })?;
        let route = Socket::open(libc::NETLINK_ROUTE).map_err(|source| IdentityError::Netlink {
            action: "open a route socket",
            source,
        })?;
        Ok(Self {
            proc_root: proc_root.to_owned(),
            directories,
            route,
            own: own.ino(),
            found: HashMap::new(),
            by_nsid: HashMap::new(),
            by_address: HashMap::new(),
            max_namespaces,
            max_addresses,
            namespaces_turned_away: 0,
            addresses_turned_away: 0,
            stale: true,
            scanned: None,
            pace: Pace::new(Duration::from_secs(1)),
        })
    }

    /// Owner of the namespace with an id, without attribution. Looks again, at most once a second, if it is unknown.
    pub(crate) fn by_nsid(&mut self, nsid: i32) -> Option<&Owner> {
        let known = |namespaces: &Self| namespaces.by_nsid.contains_key(&nsid);
        if nsid < 0 {
            return None;
        }
        if !known(self) {
            self.stale = true;
            self.refresh(false);
        }
        let inode = self.by_nsid.get(&nsid)?;
        self.found.get(inode).map(|namespace| &namespace.owner)
    }

    /// An interface with this id has just come: forgets the namespaces that had it and are gone, since the kernel gives
    /// ids again.
    pub(crate) fn forget_nsid(&mut self, id: i32) {
        let with_id: Vec<u64> = self
            .found
            .iter()
            .filter(|(_, namespace)| namespace.nsid == Some(id))
            .map(|(&inode, _)| inode)
            .collect();
        for inode in with_id {
            if !self.still_has(inode, id) {
                self.found.remove(&inode);
            }
        }
        if self
            .by_nsid
            .get(&id)
            .is_some_and(|inode| !self.found.contains_key(inode))
        {
            self.by_nsid.remove(&id);
        }
        self.stale = true;
    }

    /// Whether the namespace that is known by this inode is the one that has the id now.
    fn still_has(&mut self, inode: u64, id: i32) -> bool {
        let Some(namespace) = self.found.get(&inode) else {
            return false;
        };
        let alive = namespace
            .representative
            .as_ref()
            .filter(|representative| representative.is_alive(&self.proc_root))
            .map(|representative| self.proc_root.join(format!("{}/ns/net", representative.pid)));
        let Some(file) = alive.or_else(|| namespace.path.clone()) else {
            return false;
        };
        self.id_of(&file, inode) == Some(id)
    }

    /// The id of the namespace behind a file, if it has this inode.
    fn id_of(&mut self, file: &Path, inode: u64) -> Option<i32> {
        let file = File::open(file).ok()?;
        // The process may have gone elsewhere, or its number to another.
        (file.metadata().ok()?.ino() == inode).then_some(())?;
        nsid(&mut self.route, &file).ok()?
    }

    /// Whether what [`Namespaces::by_nsid`] says of an id is true of the interface that had it when it was last told of.
    /// The kernel takes a namespace's id away before its interfaces, and gives it to the next one. Cost: four system
    /// calls, one of which waits while others change interfaces.
    pub(crate) fn confirms(&mut self, id: i32, ifindex: u32) -> bool {
        // In this order: an id that the interface still has is nobody else's before.
        let known = self.by_nsid.get(&id).copied();
        known.is_some_and(|inode| self.still_has(inode, id)) && self.id_behind(ifindex) == Some(id)
    }

    /// The id of the namespace where an interface's other end is.
    fn id_behind(&mut self, ifindex: u32) -> Option<i32> {
        // struct ifinfomsg: family, type, index, flags, change.
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        push_u32(&mut body, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        let answer = self.route.request(libc::RTM_GETLINK, &body, |message| {
            Attributes::at(message.payload, 16)
                .find(|(kind, _)| *kind == IFLA_LINK_NETNSID)
                .and_then(|(_, value)| read_u32(value, 0))
        });
        answer.ok()?.map(u32::cast_signed)
    }

    /// Looks at the namespace of a process that has just started. Whether it is another one than ours.
    pub(crate) fn meet(&mut self, pid: u32) -> bool {
        let link = fs::read_link(self.proc_root.join(format!("{pid}/ns/net")));
        let inode = link.ok().and_then(|link| namespace_inode(link.to_str()?));
        let Some(inode) = inode.filter(|&inode| inode != self.own) else {
            return false;
        };
        // A namespace that has somebody is its own if that is its pod's; through any other it passes on its way.
        let other = self
            .found
            .get(&inode)
            .and_then(|namespace| namespace.representative.as_ref())
            .filter(|other| other.pid != pid && other.is_alive(&self.proc_root));
        if let Some(other) = other {
            let process = Representative::new(&self.proc_root, pid);
            return process.is_some_and(|process| process.pod_uid() == other.pod_uid());
        }
        self.look_at(inode, &[pid], None, true, Instant::now());
        let Some(namespace) = self.found.get(&inode) else {
            return true;
        };
        for address in namespace.addresses.clone() {
            if self.by_address.len() < self.max_addresses {
                self.by_address.insert(address, Holder::One(inode));
            }
        }
        true
    }

    /// Addresses of the namespaces that pods live in, with the pod's uid, and since when (Unix time in nanoseconds).
    pub(crate) fn pod_addresses(&self) -> impl Iterator<Item = (IpAddr, &str, u64)> {
        let boot_ns = unix_now_ns().saturating_sub(since_boot_ns());
        self.by_address.iter().filter_map(move |(&address, holder)| {
            let Holder::One(inode) = holder else {
                return None;
            };
            let namespace = self.found.get(inode)?;
            let pod = namespace.owner.pod.as_ref()?;
            let since = boot_ns.saturating_add(namespace.inhabited?.saturating_mul(TICK_NS));
            Some((address, pod.uid.as_str(), since))
        })
    }

    /// Inode and id of the namespace that a pod lives in.
    pub(crate) fn of_pod(&self, mut is: impl FnMut(&str) -> bool) -> Option<(u64, Option<i32>)> {
        self.found
            .iter()
            .filter(|(_, namespace)| namespace.owner.pod.as_ref().is_some_and(|pod| is(&pod.uid)))
            .max_by_key(|(_, namespace)| namespace.seen_last)
            .map(|(&inode, namespace)| (inode, namespace.nsid))
    }

    /// Whose an address is; never our own namespace's.
    pub(crate) fn by_address(&self, address: IpAddr) -> Option<Option<&Owner>> {
        match self.by_address.get(&address)? {
            Holder::One(inode) => Some(self.found.get(inode).map(|namespace| &namespace.owner)),
            Holder::Several => Some(None),
        }
    }

    /// Looks at all namespaces if there is a reason to: something unknown was asked for, `changed` (cgroups came or
    /// went), a namespace is new, or the last look is [`FULL_INTERVAL`] ago. Costs about 10 µs a process and 50 µs a
    /// namespace.
    pub(crate) fn refresh(&mut self, changed: bool) {
        self.stale |= changed;
        let due = self
            .scanned
            .is_none_or(|scanned| scanned.elapsed() > FULL_INTERVAL);
        let young = self
            .found
            .values()
            .any(|namespace| namespace.seen_first.elapsed() < YOUNG);
        if !(self.stale || due || young) || !self.pace.allows() {
            return;
        }
        let started = Instant::now();
        self.scan(due);
        self.stale = false;
        if due {
            self.scanned = Some(started);
        }
        self.pace.took(started.elapsed());
    }

    fn scan(&mut self, full: bool) {
        let now = Instant::now();
        let names = self.named();
        let mut residents: HashMap<u64, Vec<u32>> = HashMap::new();
        for pid in pids(&self.proc_root) {
            let link = fs::read_link(self.proc_root.join(format!("{pid}/ns/net")));
            if let Ok(link) = link
                && let Some(inode) = link.to_str().and_then(namespace_inode)
                && inode != self.own
            {
                let pids = residents.entry(inode).or_default();
                if pids.len() < PROCESSES_EACH {
                    pids.push(pid);
                }
            }
        }
        for &inode in names.keys() {
            residents.entry(inode).or_default();
        }
        self.by_nsid.clear();
        for (inode, pids) in residents {
            self.look_at(inode, &pids, names.get(&inode), full, now);
        }
        // Those that are gone stay known for a while, by their id too unless it has a new namespace.
        self.found
            .retain(|_, namespace| namespace.seen_last.elapsed() < RETENTION);
        for (&inode, namespace) in &self.found {
            if namespace.seen_last < now
                && let Some(nsid) = namespace.nsid
            {
                self.by_nsid.entry(nsid).or_insert(inode);
            }
        }
        self.by_address.clear();
        let mut turned_away = 0;
        for (&inode, namespace) in self.found.iter().filter(|(_, found)| found.seen_last == now) {
            for &address in &namespace.addresses {
                let room = self.by_address.len() < self.max_addresses;
                match self.by_address.get_mut(&address) {
                    Some(holder) if *holder == Holder::One(inode) => {}
                    Some(holder) => *holder = Holder::Several,
                    None if room => {
                        self.by_address.insert(address, Holder::One(inode));
                    }
                    None => turned_away += 1,
                }
            }
        }
        self.addresses_turned_away += turned_away;
    }

    fn look_at(&mut self, inode: u64, pids: &[u32], named: Option<&Named>, full: bool, now: Instant) {
        if !self.found.contains_key(&inode) {
            if self.found.len() >= self.max_namespaces {
                self.found.retain(|_, namespace| namespace.seen_last == now);
            }
            if self.found.len() >= self.max_namespaces {
                self.namespaces_turned_away += 1;
                return;
            }
        }
        let mut files: Vec<PathBuf> = named.iter().map(|named| named.path.clone()).collect();
        files.extend(
            pids.iter()
                .map(|pid| self.proc_root.join(format!("{pid}/ns/net"))),
        );
        let nsid = files.iter().find_map(|file| self.id_of(file, inode));
        if let Some(nsid) = nsid {
            self.by_nsid.insert(nsid, inode);
        }

        let before = self.found.remove(&inode).filter(|before| {
            // Inodes are given again, and so are ids. The same namespace has somebody or a name all the time.
            let same_name = named.is_some_and(|named| named.name == before.owner.netns);
            let same_id = before.nsid.is_none() || before.nsid == nsid;
            same_id && (same_name || before.residents.iter().any(|pid| pids.contains(pid)))
        });
        let known = before.as_ref().and_then(|before| before.representative.as_ref());
        let (representative, mut inhabited) = match known {
            Some(known)
                if known.rank == Rank::Container
                    && pids.contains(&known.pid)
                    && known.is_alive(&self.proc_root) =>
            {
                (Some(known.clone()), Some(known.started))
            }
            _ => {
                let processes: Vec<_> = pids
                    .iter()
                    .filter_map(|&pid| Representative::new(&self.proc_root, pid))
                    .collect();
                let chosen = Representative::of(&processes);
                // A process of somebody else's, who came to look, may be older than the pod.
                let uid = chosen.as_ref().and_then(Representative::pod_uid);
                let of_pod = processes.iter().filter(|process| process.pod_uid() == uid);
                let first = of_pod.map(|process| process.started).min();
                (chosen, first)
            }
        };
        if let Some(before) = &before
            && let Some(chosen) = &representative
            && known.is_some_and(|known| known.pod_uid() == chosen.pod_uid())
        {
            inhabited = inhabited.into_iter().chain(before.inhabited).min();
        }
        let mut owner = representative
            .as_ref()
            // A namespace outlives the last of its processes if it has a name.
            .or(before.as_ref().and_then(|before| before.representative.as_ref()))
            .map(|process| process.owner.clone())
            .unwrap_or_default();
        owner.kind = Kind::Process;
        owner.netns = named
            .map(|named| named.name.clone())
            .or_else(|| before.as_ref().map(|before| before.owner.netns.clone()))
            .unwrap_or_default();
        let seen_first = before.as_ref().map_or(now, |before| before.seen_first);
        let fresh = full || seen_first.elapsed() < YOUNG;
        let before_path = before.as_ref().map(|before| before.path.clone());
        let addresses = match before {
            Some(before) if !fresh => before.addresses,
            _ => self.addresses(nsid, pids),
        };
        self.found.insert(
            inode,
            Namespace {
                nsid,
                owner,
                representative,
                inhabited,
                path: named
                    .map(|named| named.path.clone())
                    .or_else(|| before_path.flatten()),
                residents: pids.to_vec(),
                addresses,
                seen_first,
                seen_last: now,
            },
        );
    }

    /// Named namespaces by inode.
    fn named(&self) -> HashMap<u64, Named> {
        let mut names = HashMap::new();
        for directory in &self.directories {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(metadata) = fs::metadata(&path) else {
                    continue;
                };
                let on_nsfs = nix::sys::statfs::statfs(&path)
                    .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC);
                if !on_nsfs || metadata.ino() == self.own {
                    continue;
                }
                let name = entry.file_name().to_string_lossy().into_owned();
                names.entry(metadata.ino()).or_insert(Named { name, path });
            }
        }
        names
    }

    fn addresses(&mut self, nsid: Option<i32>, pids: &[u32]) -> Vec<IpAddr> {
        let dumped = nsid.and_then(|nsid| addresses_by_nsid(&mut self.route, nsid).ok());
        let mut addresses = dumped.filter(|dumped| !dumped.is_empty()).unwrap_or_else(|| {
            pids.iter()
                .map(|pid| self.proc_root.join(format!("{pid}/net")))
                .find(|directory| directory.exists())
                .map(|directory| addresses_by_proc(&directory))
                .unwrap_or_default()
        });
        addresses.retain(|address| !address.is_loopback());
        addresses
    }

    pub(crate) fn limits(&self) -> [Limit; 2] {
        [
            Limit {
                name: "network_namespaces",
                used: self.found.len(),
                max: self.max_namespaces,
                turned_away: self.namespaces_turned_away,
            },
            Limit {
                name: "namespace_addresses",
                used: self.by_address.len(),
                max: self.max_addresses,
                turned_away: self.addresses_turned_away,
            },
        ]
    }
}

#[derive(Debug)]
struct Named {
    name: String,
    path: PathBuf,
}

impl Representative {
    /// Of the processes of one namespace the oldest container's. But where a plain process was there before any container,
    /// the namespace is a machine's (a node of a nested cluster), and containers only use it.
    fn of(processes: &[Self]) -> Option<Self> {
        let oldest = processes
            .iter()
            .min_by_key(|process| (process.started, process.pid))?;
        if oldest.rank < Rank::Sandbox && processes.iter().any(|process| process.rank >= Rank::Sandbox) {
            return Some(oldest.clone());
        }
        processes
            .iter()
            .min_by_key(|process| (std::cmp::Reverse(process.rank), process.started, process.pid))
            .cloned()
    }

    fn pod_uid(&self) -> Option<&str> {
        Some(&self.owner.pod.as_ref()?.uid)
    }

    fn is_alive(&self, proc_root: &Path) -> bool {
        started(proc_root, self.pid) == Some(self.started)
    }

    fn new(proc_root: &Path, pid: u32) -> Option<Self> {
        let text = fs::read_to_string(proc_root.join(format!("{pid}/cgroup"))).ok()?;
        let (path, name) = best_cgroup(&text);
        let process = read_comm(proc_root, pid)?;
        let mut owner = Owner {
            kind: Kind::Process,
            cgroup: path.to_owned(),
            ..Owner::default()
        };
        let mut rank = Rank::Process;
        owner.pod = name.pod_uid.map(pod_of_uid);
        if let Some(container) = name.container {
            rank = match process.as_str() {
                "pause" | "catatonit" => Rank::Sandbox,
                _ => Rank::Container,
            };
            owner.container = container;
            owner.unit = name.unit.unwrap_or_default();
        } else {
            // A login session did not make the namespace; who runs something in it there is a process.
            if let Some(unit) = name.unit.filter(|unit| !unit.starts_with("session-")) {
                rank = Rank::Unit;
                owner.unit = unit;
            }
            owner.process = process;
            owner.pid = pid;
        }
        Some(Self {
            rank,
            started: started(proc_root, pid)?,
            pid,
            owner,
        })
    }
}

/// The path that names a container, else the cgroup2 path, of `/proc/PID/cgroup` (`ID:CONTROLLERS:PATH` lines, id 0
/// is cgroup2; where containers use version 1 only those lines name them).
fn best_cgroup(text: &str) -> (&str, CgroupName) {
    let paths = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, _, path) = (fields.next()?, fields.next()?, fields.next()?);
        Some((id == "0", path))
    });
    let mut best = ("", CgroupName::default());
    for (unified, path) in paths {
        let name = CgroupName::parse(path);
        let better = if name.container.is_some() {
            unified || best.1.container.is_none()
        } else {
            unified && best.1.container.is_none()
        };
        if better {
            best = (path, name);
        }
    }
    best
}

/// Start time of a process in clock ticks since boot: field 22 of `/proc/PID/stat`, where field 2 is a name in
/// parentheses that can hold anything.
fn started(proc_root: &Path, pid: u32) -> Option<u64> {
    let stat = fs::read(proc_root.join(format!("{pid}/stat"))).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Nanoseconds of a clock tick as `/proc` counts them (`USER_HZ`, always 100 here).
const TICK_NS: u64 = 10_000_000;

/// Time since boot (`CLOCK_BOOTTIME`) in nanoseconds: the clock that processes' starts are given in.
fn since_boot_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec()
            .cast_unsigned()
            .saturating_mul(1_000_000_000)
            .saturating_add(time.tv_nsec().cast_unsigned())
    })
}

/// The number in `net:[NUMBER]`.
fn namespace_inode(link: &str) -> Option<u64> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The id that the namespace behind an open file has in ours, if it has one.
fn nsid(route: &mut Socket, file: &File) -> io::Result<Option<i32>> {
    // struct rtgenmsg, padded.
    let mut body = vec![0; 4];
    push_u32(&mut body, NETNSA_FD, file.as_raw_fd().cast_unsigned());
    let answer = route.request(libc::RTM_GETNSID, &body, |message| {
        Attributes::at(message.payload, 4)
            .find(|(kind, _)| *kind == NETNSA_NSID)
            .and_then(|(_, value)| read_u32(value, 0))
    })?;
    Ok(answer.map(u32::cast_signed).filter(|nsid| *nsid >= 0))
}

fn addresses_by_nsid(route: &mut Socket, nsid: i32) -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut body = dump_request(family);
        push_u32(&mut body, IFA_TARGET_NETNSID, nsid.cast_unsigned());
        addresses.extend(route.dump(libc::RTM_GETADDR, &body, |message| {
            // A kernel that does not know the attribute answers for our own namespace, and does not echo it.
            Attributes::at(message.payload, 8)
                .any(|(kind, value)| {
                    kind == IFA_TARGET_NETNSID && read_u32(value, 0) == Some(nsid.cast_unsigned())
                })
                .then(|| address_of(message.payload))?
        })?);
    }
    Ok(addresses)
}

/// Local addresses from `fib_trie` and `if_inet6` of a `/proc/PID/net`.
fn addresses_by_proc(directory: &Path) -> Vec<IpAddr> {
    let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let mut addresses = local_in_fib_trie(&read("fib_trie"));
    addresses.extend(in_if_inet6(&read("if_inet6")));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn local_in_fib_trie(text: &str) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let mut leaf = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            addresses.extend(leaf.map(|address: Ipv4Addr| IpAddr::V4(address)));
        }
    }
    addresses
}

/// Lines are `ADDRESS(32 hex digits) INDEX PREFIX SCOPE FLAGS NAME`.
fn in_if_inet6(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let digits = line
                .split_whitespace()
                .next()
                .filter(|digits| digits.len() == 32)?;
            let address = u128::from_str_radix(digits, 16).ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(address)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_proc() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 10.1.0.0/24 2 0 2\n\
                    \x20       |-- 10.1.0.0\n           /24 link UNICAST\n        |-- 10.1.0.5\n           /32 host LOCAL\n\
                    \x20       |-- 10.1.0.255\n           /32 link BROADCAST\n";
        assert_eq!(local_in_fib_trie(trie), [IpAddr::from([10, 1, 0, 5])]);
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\nfd000000000000000000000000000002 07 40 00 80 eth0\n";
        assert_eq!(
            in_if_inet6(inet6),
            ["::1".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]
        );
        assert_eq!(namespace_inode("net:[4026531840]"), Some(4_026_531_840));
        assert_eq!(namespace_inode("pid:[1]"), None);
        assert!(started(Path::new("/proc"), std::process::id()).is_some());
    }

    #[test]
    fn prefers_the_cgroup_that_names_a_container() {
        let id = "a".repeat(64);
        let hybrid = format!("9:memory:/docker/{id}\n1:name=systemd:/docker/{id}\n0::/\n");
        assert_eq!(best_cgroup(&hybrid).1.container, Some(id.clone()));
        let unified = format!("0::/system.slice/docker-{id}.scope\n");
        assert_eq!(best_cgroup(&unified).0, unified[3..].trim());
        assert_eq!(best_cgroup("2:cpu:/x\n0::/a.service\n").0, "/a.service");
        assert_eq!(best_cgroup("").0, "");
    }

    proptest! {
        #[test]
        fn any_text(text in "(.{0,50}\n){0,5}") {
            best_cgroup(&text);
            local_in_fib_trie(&text);
            in_if_inet6(&text);
            namespace_inode(&text);
        }
    }
}
