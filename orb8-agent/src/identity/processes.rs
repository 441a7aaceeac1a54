//! Names of processes, and which process has which socket.
//!
//! Needed where a cgroup names nothing (the root cgroup of a machine without systemd). For sockets made while the
//! probe runs the kernel tells the process; for those made before, and for those that no process made (accepted TCP
//! connections), sockets are listed by `NETLINK_SOCK_DIAG` and joined with `/proc/PID/fd`.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{IdentityError, Limit, pace::Pace};
use crate::netlink::{Message, Socket, read_u16, read_u32};

/// `SOCK_DIAG_BY_FAMILY` (include/uapi/linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// State number of a listening TCP socket (include/net/tcp_states.h).
const TCP_LISTEN: u8 = 10;
const PROTOCOLS: [u8; 5] = [
    libc::IPPROTO_TCP as u8,
    libc::IPPROTO_UDP as u8,
    libc::IPPROTO_UDPLITE as u8,
    libc::IPPROTO_SCTP as u8,
    libc::IPPROTO_RAW as u8,
];
/// A process' name is read again after this long: it may have called exec, or its number may be another's.
const NAME_AGE: Duration = Duration::from_secs(10);
/// The table of ports is made again, when asked, after this long.
const PORTS_AGE: Duration = Duration::from_secs(5);
/// The inode of the first pid namespace (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A process' name as the kernel keeps it: at most 15 bytes, then zeros.
pub type Comm = [u8; 16];

/// A socket that existed when it was asked for, and its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketProcess {
    /// Socket cookie (`SO_COOKIE`, `bpf_get_socket_cookie`).
    pub cookie: u64,
    /// Process that holds it.
    pub tgid: u32,
    /// The process' name.
    pub comm: Comm,
}

/// One socket of this network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Listed {
    protocol: u8,
    local: IpAddr,
    port: u16,
    /// Waits for whoever comes: listening, or without a peer.
    bound: bool,
    cookie: u64,
    inode: u32,
}

/// Names and sockets of processes.
#[derive(Debug)]
pub(crate) struct Processes {
    proc_root: PathBuf,
    /// Whether process numbers of the kernel are those of `proc_root`.
    numbers_agree: bool,
    names: HashMap<u32, Name>,
    max_names: usize,
    names_turned_away: u64,
    ports: HashMap<(u8, IpAddr, u16), (bool, u32)>,
    ports_listed: Option<Instant>,
    max_sockets: usize,
    sockets_turned_away: u64,
    pace: Pace,
}

#[derive(Debug)]
struct Name {
    name: String,
    read: Instant,
}

impl Processes {
    pub(crate) fn new(proc_root: &Path, max_names: usize, max_sockets: usize) -> Self {
        let namespace = fs::read_link(proc_root.join("self/ns/pid"));
        Self {
            numbers_agree: namespace.is_ok_and(|link| link == Path::new(INITIAL_PID_NAMESPACE)),
            proc_root: proc_root.to_owned(),
            names: HashMap::new(),
            max_names,
            names_turned_away: 0,
            ports: HashMap::new(),
            ports_listed: None,
            max_sockets,
            sockets_turned_away: 0,
            pace: Pace::new(Duration::from_secs(1)),
        }
    }

    /// Name and number of the process that the kernel calls `tgid`. The number is 0 if the agent's `/proc` shows
    /// another pid namespace. `None` if nothing is known.
    pub(crate) fn name(&mut self, tgid: u32, comm: Option<Comm>) -> Option<(String, u32)> {
        let told = comm.map(|comm| printable(&comm)).filter(|name| !name.is_empty());
        if !self.numbers_agree {
            return told.map(|name| (name, 0));
        }
        self.local_name(tgid, told).map(|name| (name, tgid))
    }

    /// As [`Processes::name`], for a process found in `/proc`.
    fn local_name(&mut self, pid: u32, told: Option<String>) -> Option<String> {
        if let Some(known) = self.names.get(&pid)
            && known.read.elapsed() < NAME_AGE
        {
            return Some(known.name.clone());
        }
        // What /proc says goes first: the kernel tells the name of the thread.
        let now = read_comm(&self.proc_root, pid);
        let before = self.names.remove(&pid).map(|known| known.name);
        let name = now.or(told).or(before)?;
        if self.names.len() >= self.max_names {
            self.names.retain(|_, known| known.read.elapsed() < NAME_AGE);
        }
        if self.names.len() < self.max_names {
            let read = Instant::now();
            self.names.insert(
                pid,
                Name {
                    name: name.clone(),
                    read,
                },
            );
        } else {
            self.names_turned_away += 1;
        }
        Some(name)
    }

    /// The process whose socket has this local address: one bound to exactly it, else one bound to the port on any
    /// address. Lists all sockets if it is not known, but not more than once a second and, on large machines, not
    /// for more than a twentieth of the time.
    pub(crate) fn by_address(&mut self, protocol: u8, address: IpAddr, port: u16) -> Option<(String, u32)> {
        if port == 0 {
            return None;
        }
        let outdated = self
            .ports_listed
            .is_none_or(|listed| listed.elapsed() > PORTS_AGE);
        let mut holder = self.holder(protocol, address, port);
        if (holder.is_none() || outdated) && self.pace.allows() {
            self.list_ports();
            holder = self.holder(protocol, address, port);
        }
        let pid = holder?;
        self.local_name(pid, None).map(|name| (name, pid))
    }

    fn holder(&self, protocol: u8, address: IpAddr, port: u16) -> Option<u32> {
        let any: [IpAddr; 2] = match address {
            IpAddr::V4(_) => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            // The second has no other use than to fill the array.
            IpAddr::V6(_) => [Ipv6Addr::UNSPECIFIED.into(); 2],
        };
        let candidates = [address, any[0], any[1]];
        candidates
            .iter()
            .find_map(|address| self.ports.get(&(protocol, *address, port)))
            .map(|&(_, pid)| pid)
    }

    fn list_ports(&mut self) {
        let started = Instant::now();
        if let Ok(listed) = self.list() {
            let holders = holders(
                &self.proc_root,
                listed.iter().map(|socket| socket.inode).collect(),
            );
            self.ports.clear();
            self.ports_listed = Some(started);
            for socket in listed {
                let Some(&pid) = holders.get(&socket.inode) else {
                    continue;
                };
                let key = (socket.protocol, socket.local, socket.port);
                let known = self.ports.entry(key).or_insert((socket.bound, pid));
                if socket.bound && !known.0 {
                    *known = (true, pid);
                }
            }
        }
        self.pace.took(started.elapsed());
    }

    fn list(&mut self) -> Result<Vec<Listed>, IdentityError> {
        let (listed, more) = list_sockets(self.max_sockets).map_err(|source| IdentityError::Netlink {
            action: "list sockets",
            source,
        })?;
        self.sockets_turned_away += more;
        Ok(listed)
    }

    /// The processes of all sockets that exist now. Numbers are the kernel's; nothing is returned where the agent
    /// cannot know them (its `/proc` shows another pid namespace): those sockets are then resolved by address.
    pub(crate) fn existing_sockets(&mut self) -> Result<Vec<SocketProcess>, IdentityError> {
        if !self.numbers_agree {
            return Ok(Vec::new());
        }
        let listed = self.list()?;
        let holders = holders(
            &self.proc_root,
            listed.iter().map(|socket| socket.inode).collect(),
        );
        let mut sockets = Vec::with_capacity(listed.len());
        for socket in listed {
            if let Some(&tgid) = holders.get(&socket.inode)
                && let Some(name) = self.local_name(tgid, None)
            {
                sockets.push(SocketProcess {
                    cookie: socket.cookie,
                    tgid,
                    comm: to_comm(&name),
                });
            }
        }
        Ok(sockets)
    }

    pub(crate) fn limits(&self) -> [Limit; 2] {
        [
            Limit {
                name: "process_names",
                used: self.names.len(),
                max: self.max_names,
                turned_away: self.names_turned_away,
            },
            Limit {
                name: "listed_sockets",
                used: self.ports.len(),
                max: self.max_sockets,
                turned_away: self.sockets_turned_away,
            },
        ]
    }
}

/// `/proc/PID/comm`.
pub(super) fn read_comm(proc_root: &Path, pid: u32) -> Option<String> {
    let comm = fs::read(proc_root.join(format!("{pid}/comm"))).ok()?;
    let name = printable(comm.strip_suffix(b"\n").unwrap_or(&comm));
    (!name.is_empty()).then_some(name)
}

/// Process names are any bytes that the process likes; control characters would garble a terminal.
fn printable(comm: &[u8]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end])
        .chars()
        .map(|char| if char.is_control() { '?' } else { char })
        .collect()
}

fn to_comm(name: &str) -> Comm {
    let mut comm = Comm::default();
    let length = name.floor_char_boundary(15);
    comm[..length].copy_from_slice(&name.as_bytes()[..length]);
    comm
}

/// Numbers of all processes, in ascending order.
pub(super) fn pids(proc_root: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc_root).into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// Which process holds the sockets with these inodes. A socket that several hold is the lowest number's, but process
/// 1 comes last: it hands listening sockets to those that it starts.
fn holders(proc_root: &Path, mut wanted: HashSet<u32>) -> HashMap<u32, u32> {
    let mut found = HashMap::with_capacity(wanted.len());
    let mut pids = pids(proc_root);
    if pids.first() == Some(&1) {
        pids.rotate_left(1);
    }
    for pid in pids {
        if wanted.is_empty() {
            break;
        }
        let descriptors = fs::read_dir(proc_root.join(format!("{pid}/fd")));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let Ok(link) = fs::read_link(descriptor.path()) else {
                continue;
            };
            if let Some(inode) = link.to_str().and_then(socket_inode)
                && wanted.remove(&inode)
            {
                found.insert(inode, pid);
            }
        }
    }
    found
}

/// The number in `socket:[NUMBER]`.
fn socket_inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// All sockets with a holder, at most `max`; and how many there were beyond.
fn list_sockets(max: usize) -> io::Result<(Vec<Listed>, u64)> {
    let mut netlink = Socket::open(libc::NETLINK_SOCK_DIAG)?;
    let mut sockets = Vec::new();
    let (mut count, mut more) = (0, 0);
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in PROTOCOLS {
            // struct inet_diag_req_v2: family, protocol, extensions, pad (for raw sockets: the protocol), states,
            // and a socket id of 48 bytes that selects nothing.
            let mut request = vec![family as u8, protocol, 0, protocol];
            request.extend_from_slice(&u32::MAX.to_ne_bytes());
            request.resize(56, 0);
            let answer = netlink.dump(SOCK_DIAG_BY_FAMILY, &request, |message| {
                let socket = listed(message, protocol)?;
                if count >= max {
                    more += 1;
                    return None;
                }
                count += 1;
                Some(socket)
            });
            match answer {
                Ok(answer) => sockets.extend(answer),
                // No such protocol in this kernel (its diag module is not loaded).
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok((sockets, more))
}

/// `struct inet_diag_msg`: family, state, timer, retransmits; ports (network order), addresses, interface, cookie;
/// expiry, queues, uid, inode.
fn listed(message: Message<'_>, protocol: u8) -> Option<Listed> {
    let payload = message.payload;
    let (family, state) = (*payload.first()?, *payload.get(1)?);
    let port = u16::from_be(read_u16(payload, 4)?);
    let peer_port = read_u16(payload, 6)?;
    let address: [u8; 16] = payload.get(8..24)?.try_into().ok()?;
    let local = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::from([address[0], address[1], address[2], address[3]]).into(),
        libc::AF_INET6 => Ipv6Addr::from(address).to_canonical(),
        _ => return None,
    };
    let cookie = u64::from(read_u32(payload, 44)?) | u64::from(read_u32(payload, 48)?) << 32;
    let inode = read_u32(payload, 68)?;
    // Connections that nobody holds any more (TIME_WAIT), or not yet (SYN_RECV).
    (inode != 0).then_some(Listed {
        protocol,
        local,
        port,
        bound: state == TCP_LISTEN || peer_port == 0,
        cookie,
        inode,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_links_and_names() {
        assert_eq!(socket_inode("socket:[123]"), Some(123));
        for link in [
            "socket:[]",
            "socket:[12",
            "pipe:[3]",
            "socket:[99999999999]",
            "/dev/null",
        ] {
            assert_eq!(socket_inode(link), None, "{link}");
        }
        assert_eq!(printable(b"a\x1b[2Jb\0rest"), "a?[2Jb");
        assert_eq!(to_comm("0123456789abcdefgh"), *b"0123456789abcde\0");
        assert_eq!(&to_comm("0123456789abcdé")[..], b"0123456789abcd\0\0");
    }

    #[test]
    fn finds_the_processes_of_this_test() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(local).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let datagrams = std::net::UdpSocket::bind("[::]:0").unwrap();
        let mut processes = Processes::new(Path::new("/proc"), 10, 100_000);
        let me = std::process::id();
        let (name, pid) = processes
            .by_address(libc::IPPROTO_TCP as u8, local.ip(), local.port())
            .expect("a listening socket");
        assert_eq!(pid, me);
        assert_eq!(Some(name), read_comm(Path::new("/proc"), me));
        drop(listener);
        processes.pace = Pace::new(Duration::ZERO);
        processes.ports.clear();
        let port = accepted.local_addr().unwrap().port();
        let found = processes.by_address(libc::IPPROTO_TCP as u8, local.ip(), port);
        assert_eq!(
            found.map(|(_, pid)| pid),
            Some(me),
            "an accepted socket whose listener is gone"
        );
        let port = datagrams.local_addr().unwrap().port();
        let found = processes.by_address(libc::IPPROTO_UDP as u8, local.ip(), port);
        assert_eq!(found.map(|(_, pid)| pid), Some(me), "IPv4 to a dual-stack socket");
        assert_eq!(processes.by_address(libc::IPPROTO_TCP as u8, local.ip(), 1), None);

        let mut cookie = 0u64;
        let mut length = 8;
        // SAFETY: SO_COOKIE writes 8 bytes.
        let result = unsafe {
            libc::getsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&client),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        if processes.numbers_agree {
            let existing = processes.existing_sockets().unwrap();
            let mine = existing.iter().find(|socket| socket.cookie == cookie);
            assert_eq!(mine.map(|socket| socket.tgid), Some(me));
        }
    }

    #[test]
    fn names_are_bounded() {
        let mut processes = Processes::new(Path::new("/nonexistent"), 1, 1);
        processes.numbers_agree = true;
        let comm = Some(to_comm("web"));
        assert_eq!(processes.name(7, comm), Some(("web".to_owned(), 7)));
        assert_eq!(processes.name(7, None), Some(("web".to_owned(), 7)), "remembered");
        assert_eq!(processes.name(8, comm), Some(("web".to_owned(), 8)));
        assert_eq!(processes.limits()[0].turned_away, 1);
        assert_eq!(processes.name(9, None), None);
        processes.numbers_agree = false;
        assert_eq!(processes.name(8, comm), Some(("web".to_owned(), 0)));
    }

    proptest! {
        #[test]
        fn any_answer(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let message = Message { kind: SOCK_DIAG_BY_FAMILY, flags: 0, sequence: 0, payload: &payload };
            if let Some(socket) = listed(message, 6) {
                prop_assert!(payload.len() >= 72 && socket.inode != 0);
            }
        }

        #[test]
        fn any_name(comm in any::<[u8; 16]>()) {
            prop_assert!(!printable(&comm).chars().any(char::is_control));
            let name = printable(&comm);
            prop_assert!(name.starts_with(&printable(&to_comm(&name))));
        }
    }
}
