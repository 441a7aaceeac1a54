//! Translated connections of a real router: what the kernel tells of them against what both ends of the connections
//! themselves saw.
#![allow(missing_docs, reason = "tests")]

mod support {
    #[allow(dead_code, reason = "shared with tests that need more of it")]
    pub(crate) mod namespace;
}

use std::{
    fs,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use orb8_agent::conntrack::{Conntrack, ConntrackLimits, Endpoint, Events, Translation, Tuple};
use support::namespace::{Namespace, run};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Addresses of the client, of the router towards it, of the backend, and of the service; by IP version.
const CLIENT: [&str; 2] = ["10.9.1.2", "fd09:1::2"];
const ROUTER: [&str; 2] = ["10.9.1.1", "fd09:1::1"];
const BACKEND: [&str; 2] = ["10.9.2.2", "fd09:2::2"];
const SERVICE: [&str; 2] = ["10.96.0.10", "fd96::10"];
const SERVICE_PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const TARGET_PORT: u16 = 8080;

/// As kube-proxy does: services keep the client's address, node ports hide it.
const RULES: &str = "
table inet services {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    ip daddr 10.96.0.10 meta l4proto { tcp, udp } th dport 80 dnat ip to 10.9.2.2:8080
    ip6 daddr fd96::10 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [fd09:2::2]:8080
    ip daddr 10.9.1.1 meta l4proto { tcp, udp } th dport 30080 meta mark set 0x4000 dnat ip to 10.9.2.2:8080
    ip6 daddr fd09:1::1 meta l4proto { tcp, udp } th dport 30080 meta mark set 0x4000 dnat ip6 to [fd09:2::2]:8080
  }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    meta mark 0x4000 masquerade
  }
}
";

/// Whether the test can run; says why not. With `ORB8_REQUIRE_KERNEL=1` it panics instead.
fn can_run() -> bool {
    let found = |program: &str, question: &str| Command::new(program).arg(question).output().is_ok();
    let why = if !nix::unistd::geteuid().is_root() {
        "needs root, to make network namespaces"
    } else if !found("ip", "-V") {
        "needs ip, of iproute2"
    } else if !found("nft", "--version") {
        "needs nft, of nftables"
    } else if !Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists()
        && !Command::new("modprobe")
            .arg("nf_conntrack_netlink")
            .status()
            .is_ok_and(|status| status.success())
    {
        "the kernel has no connection tracking"
    } else {
        return true;
    };
    let required = std::env::var_os("ORB8_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    assert!(!required, "{why}");
    let _ = writeln!(io::stderr(), "skipped: {why}");
    false
}

/// A client and a backend, and between them a router that translates.
struct Site {
    client: Namespace,
    router: Namespace,
    backend: Namespace,
}

impl Site {
    fn new(name: &str) -> Self {
        let router = Namespace::new(&format!("{name}-router"));
        let ends = ["client", "backend"].map(|end| Namespace::new(&format!("{name}-{end}")));
        for (i, end) in ends.iter().enumerate() {
            let n = i + 1;
            router.batch(&format!(
                "link add v{n} type veth peer name eth0 netns {}\n\
                 addr add 10.9.{n}.1/24 dev v{n}\n\
                 addr add fd09:{n}::1/64 dev v{n} nodad\n\
                 link set v{n} up\n",
                end.name()
            ));
            end.batch(&format!(
                "addr add 10.9.{n}.2/24 dev eth0\n\
                 addr add fd09:{n}::2/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via 10.9.{n}.1\n\
                 route add ::/0 via fd09:{n}::1\n"
            ));
        }
        let [client, backend] = ends;
        let site = Self {
            client,
            router,
            backend,
        };
        site.set("ipv4/ip_forward", "1");
        site.set("ipv6/conf/all/forwarding", "1");
        site.set("netfilter/nf_conntrack_events", "2");
        let mut nft = Command::new("nsenter")
            .args([
                &format!("--net=/run/netns/{}", site.router.name()),
                "nft",
                "-f",
                "-",
            ])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin.take().unwrap().write_all(RULES.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
        site
    }

    /// Sets a sysctl of the router.
    fn set(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.router
            .inside(|| fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}")));
    }

    fn conntrack(&self, limits: ConntrackLimits) -> Conntrack {
        self.router.inside(|| Conntrack::open(limits).unwrap().unwrap())
    }

    /// Ends all connections, which is told as each one's end.
    fn end_all(&self) {
        self.router.inside(|| {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkNetFilter,
            )
            .unwrap();
            // struct nlmsghdr: IPCTNL_MSG_CT_DELETE of ctnetlink, NLM_F_REQUEST | NLM_F_ACK; struct nfgenmsg: any family.
            let mut request = Vec::new();
            request.extend_from_slice(&20u32.to_ne_bytes());
            request.extend_from_slice(&0x102u16.to_ne_bytes());
            request.extend_from_slice(&5u16.to_ne_bytes());
            request.extend_from_slice(&[0; 12]);
            let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
            sendto(fd, &request, &NetlinkAddr::new(0, 0), MsgFlags::empty()).unwrap();
            let mut answer = [0; 64];
            let length = recv(fd, &mut answer, MsgFlags::empty()).unwrap();
            assert!(length >= 20);
            assert_eq!(answer[16..20], [0; 4], "not ended");
        });
    }
}

/// A connection as both ends see it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    protocol: u8,
    client: SocketAddr,
    asked: SocketAddr,
    backend: SocketAddr,
    reply_to: SocketAddr,
}

fn endpoint(address: SocketAddr) -> Endpoint {
    (address.ip(), address.port())
}

fn tuple(protocol: u8, from: SocketAddr, to: SocketAddr) -> Tuple {
    Tuple {
        protocol,
        src: from.ip(),
        dst: to.ip(),
        sport: from.port(),
        dport: to.port(),
    }
}

impl Seen {
    /// Every form of its packets: tuple, and whether it is on the way to the backend.
    fn forms(&self) -> [(Tuple, bool); 6] {
        let there = [
            (self.client, self.asked),
            (self.client, self.backend),
            (self.reply_to, self.backend),
        ];
        let [a, b, c] = there.map(|(from, to)| (tuple(self.protocol, from, to), true));
        let [d, e, f] = there.map(|(from, to)| (tuple(self.protocol, to, from), false));
        [a, b, c, d, e, f]
    }

    fn translation(&self, towards_backend: bool) -> Translation {
        Translation {
            client: endpoint(self.client),
            asked: endpoint(self.asked),
            backend: endpoint(self.backend),
            reply_to: endpoint(self.reply_to),
            towards_backend,
        }
    }

    fn is_found_in(&self, conntrack: &mut Conntrack) {
        for (tuple, towards_backend) in self.forms() {
            assert_eq!(
                conntrack.translation(&tuple, true),
                Some(self.translation(towards_backend)),
                "{tuple:?} of {self:?}"
            );
        }
    }

    fn is_unknown_to(&self, conntrack: &mut Conntrack) {
        for (tuple, _) in self.forms() {
            assert_eq!(conntrack.translation(&tuple, true), None, "{tuple:?} of {self:?}");
        }
    }
}

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}

/// Sockets that keep connections open.
#[derive(Default)]
struct Open {
    tcp: Vec<TcpStream>,
    udp: Vec<UdpSocket>,
}

impl Open {
    /// Opens a connection and carries a message both ways.
    fn connect(&mut self, site: &Site, protocol: u8, asked: SocketAddr) -> Seen {
        let version = usize::from(asked.is_ipv6());
        let target = address(BACKEND[version], TARGET_PORT);
        let from = address(CLIENT[version], 0);
        let pause = Some(Duration::from_secs(10));
        let (client, reply_to) = if protocol == TCP {
            let listener = site.backend.inside(|| TcpListener::bind(target).unwrap());
            let client = site.client.inside(|| TcpStream::connect(asked).unwrap());
            let (server, reply_to) = listener.accept().unwrap();
            let addresses = (client.local_addr().unwrap(), reply_to);
            self.tcp.extend([client, server]);
            addresses
        } else {
            let server = site.backend.inside(|| UdpSocket::bind(target).unwrap());
            let client = site.client.inside(|| UdpSocket::bind(from).unwrap());
            server.set_read_timeout(pause).unwrap();
            client.set_read_timeout(pause).unwrap();
            client.connect(asked).unwrap();
            client.send(b"there").unwrap();
            let (_, reply_to) = server.recv_from(&mut [0; 16]).unwrap();
            server.send_to(b"back", reply_to).unwrap();
            client.recv(&mut [0; 16]).unwrap();
            let addresses = (client.local_addr().unwrap(), reply_to);
            self.udp.push(client);
            addresses
        };
        Seen {
            protocol,
            client,
            asked,
            backend: target,
            reply_to,
        }
    }

    /// One of each kind: TCP and UDP, IPv4 and IPv6, to the service and to the node port.
    fn all_kinds(&mut self, site: &Site) -> Vec<Seen> {
        let mut seen = Vec::new();
        for protocol in [TCP, UDP] {
            for version in 0..2 {
                let service = self.connect(site, protocol, address(SERVICE[version], SERVICE_PORT));
                assert_eq!(service.reply_to, service.client);
                let node_port = self.connect(site, protocol, address(ROUTER[version], NODE_PORT));
                assert_eq!(
                    node_port.reply_to.ip().to_string(),
                    ["10.9.2.1", "fd09:2::1"][version]
                );
                seen.extend([service, node_port]);
            }
        }
        seen
    }
}

#[test]
fn new_connections_are_told_and_ended_ones_stay_for_half_a_minute() {
    if !can_run() {
        return;
    }
    let site = Site::new("ct-new");
    let mut conntrack = site.conntrack(ConntrackLimits::default());
    assert_eq!(conntrack.events(), Events::Listened);
    assert_eq!(conntrack.used(), 0);
    let mut open = Open::default();
    let seen = open.all_kinds(&site);
    // Not translated: not told.
    let direct = open.connect(&site, TCP, address(BACKEND[0], TARGET_PORT));
    let start = Instant::now();
    conntrack.refresh(start).unwrap();
    assert_eq!(conntrack.used(), seen.len());
    assert_eq!(conntrack.counters().events, seen.len() as u64);
    for connection in &seen {
        connection.is_found_in(&mut conntrack);
    }
    // Only of a packet between two translations the kernel is asked, whether it is of a direct connection.
    let hidden = seen
        .iter()
        .filter(|connection| connection.client != connection.reply_to)
        .count() as u64;
    assert_eq!(conntrack.counters().lookups, hidden);
    direct.is_unknown_to(&mut conntrack);

    site.end_all();
    conntrack.refresh(start + Duration::from_secs(1)).unwrap();
    assert_eq!(conntrack.counters().events, 2 * seen.len() as u64);
    for connection in &seen {
        connection.is_found_in(&mut conntrack);
    }
    conntrack.refresh(start + Duration::from_secs(32)).unwrap();
    assert_eq!(conntrack.used(), 0);
    for connection in &seen {
        connection.is_unknown_to(&mut conntrack);
    }
    let counters = conntrack.counters();
    assert_eq!(
        (counters.malformed, counters.overruns, counters.turned_away),
        (0, 0, 0)
    );
}

#[test]
fn older_connections_are_listed_and_followed_by_listing() {
    if !can_run() {
        return;
    }
    let site = Site::new("ct-old");
    let mut open = Open::default();
    // As if nobody had listened; others on this machine may (the kernel asks whether anyone does in any namespace).
    site.set("netfilter/nf_conntrack_events", "0");
    let seen = open.all_kinds(&site);
    let _direct = open.connect(&site, UDP, address(BACKEND[1], TARGET_PORT));
    site.set("netfilter/nf_conntrack_events", "2");
    let start = Instant::now();
    let mut conntrack = site.conntrack(ConntrackLimits::default());
    assert_eq!(conntrack.used(), seen.len());
    for connection in &seen {
        connection.is_found_in(&mut conntrack);
    }
    assert_eq!(conntrack.counters().found_by_lookup, 0);
    // The kernel does not tell of their end.
    site.end_all();
    conntrack.refresh(start + Duration::from_secs(61)).unwrap();
    assert_eq!(conntrack.counters().listings, 2);
    assert_eq!(conntrack.used(), seen.len());
    conntrack.refresh(start + Duration::from_secs(92)).unwrap();
    assert_eq!(conntrack.used(), 0);
}

#[test]
fn without_events_connections_are_asked_for_singly() {
    if !can_run() {
        return;
    }
    let site = Site::new("ct-ask");
    site.set("netfilter/nf_conntrack_events", "0");
    let mut conntrack = site.conntrack(ConntrackLimits::default());
    assert_eq!(conntrack.events(), Events::Off);
    let mut open = Open::default();
    let seen = open.all_kinds(&site);
    let direct = open.connect(&site, UDP, address(BACKEND[0], TARGET_PORT));
    let mut now = Instant::now();
    conntrack.refresh(now).unwrap();
    assert_eq!(conntrack.counters().events, 0);
    for connection in &seen {
        // By the first form; one in the middle is nothing that the kernel could be asked for.
        connection.is_found_in(&mut conntrack);
    }
    assert_eq!(conntrack.counters().found_by_lookup, seen.len() as u64);
    direct.is_unknown_to(&mut conntrack);
    let asked = conntrack.counters().lookups;
    direct.is_unknown_to(&mut conntrack);
    assert_eq!(conntrack.counters().lookups, asked, "it was just answered");

    // Nothing tells of the end; it is noticed when asked for, and late records are still named.
    site.end_all();
    now += Duration::from_secs(3);
    conntrack.refresh(now).unwrap();
    for connection in &seen {
        connection.is_found_in(&mut conntrack);
    }
    now += Duration::from_secs(31);
    conntrack.refresh(now).unwrap();
    for connection in &seen {
        connection.is_unknown_to(&mut conntrack);
    }

    // No more questions than allowed.
    let mut conntrack = site.conntrack(ConntrackLimits {
        lookups: 5,
        ..ConntrackLimits::default()
    });
    for port in 1..=100 {
        let nobodys = tuple(TCP, address(CLIENT[0], port), address(BACKEND[0], 9));
        assert_eq!(conntrack.translation(&nobodys, true), None);
    }
    let counters = conntrack.counters();
    assert_eq!((counters.lookups, counters.lookups_refused), (5, 95));
    conntrack
        .refresh(Instant::now() + Duration::from_secs(1))
        .unwrap();
    let nobodys = tuple(TCP, address(CLIENT[0], 200), address(BACKEND[0], 9));
    assert_eq!(conntrack.translation(&nobodys, true), None);
    assert_eq!(conntrack.counters().lookups, 6);
}

#[test]
fn a_direct_connection_is_not_taken_for_the_middle_of_a_translated_one() {
    if !can_run() {
        return;
    }
    let site = Site::new("ct-direct");
    let mut conntrack = site.conntrack(ConntrackLimits::default());
    let mut open = Open::default();
    let hidden = open.connect(&site, UDP, address(ROUTER[0], NODE_PORT));
    conntrack.refresh(Instant::now()).unwrap();
    hidden.is_found_in(&mut conntrack);
    // The same socket now also talks to the backend itself.
    let server = site.backend.inside(|| UdpSocket::bind(hidden.backend).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let client = open.udp.pop().unwrap();
    site.client.inside(|| {
        let again = UdpSocket::from(std::os::fd::OwnedFd::from(client));
        // Unconnected by connecting anew.
        again.connect(hidden.backend).unwrap();
        again.send(b"direct").unwrap();
    });
    assert_eq!(server.recv_from(&mut [0; 16]).unwrap().1, hidden.client);
    let now = Instant::now();
    // What was answered about the tuple is trusted for a moment only.
    conntrack.refresh(now + Duration::from_secs(2)).unwrap();
    conntrack.refresh(now + Duration::from_secs(4)).unwrap();
    for (tuple, towards_backend) in hidden.forms() {
        let middle = tuple == self::tuple(UDP, hidden.client, hidden.backend)
            || tuple == self::tuple(UDP, hidden.backend, hidden.client);
        let expected = (!middle).then(|| hidden.translation(towards_backend));
        assert_eq!(conntrack.translation(&tuple, true), expected, "{tuple:?}");
    }
}

#[test]
fn live_connections_are_not_pushed_out() {
    if !can_run() {
        return;
    }
    let site = Site::new("ct-full");
    let mut conntrack = site.conntrack(ConntrackLimits {
        connections: 3,
        ..ConntrackLimits::default()
    });
    let mut open = Open::default();
    let seen = open.all_kinds(&site);
    conntrack.refresh(Instant::now()).unwrap();
    assert_eq!(conntrack.used(), 3);
    assert_eq!(conntrack.counters().turned_away, seen.len() as u64 - 3);
    for connection in &seen {
        let (tuple, towards_backend) = connection.forms()[0];
        assert_eq!(
            conntrack.translation(&tuple, true),
            Some(connection.translation(towards_backend))
        );
    }
    assert_eq!(conntrack.used(), 3);
}

#[test]
fn a_flood_that_overruns_the_queue_is_made_good() {
    const CONNECTIONS: u16 = 20_000;
    if !can_run() {
        return;
    }
    let site = Site::new("ct-flood");
    // Nothing is looked up: all has to come from notifications and from listing.
    let mut conntrack = site.conntrack(ConntrackLimits {
        lookups: 0,
        receive_buffer: 64 << 10,
        ..ConntrackLimits::default()
    });
    let asked = address(SERVICE[0], SERVICE_PORT);
    let ports = 10_000..10_000 + CONNECTIONS;
    site.set("netfilter/nf_conntrack_udp_timeout", "600");
    let server = site
        .backend
        .inside(|| UdpSocket::bind(address(BACKEND[0], TARGET_PORT)).unwrap());
    let drain = thread::spawn(move || {
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut clients = std::collections::HashSet::new();
        while let Ok((_, from)) = server.recv_from(&mut [0; 16]) {
            clients.insert(from);
        }
        clients
    });
    site.client.inside(|| {
        for port in ports.clone() {
            let socket = UdpSocket::bind(address(CLIENT[0], port)).unwrap();
            socket.send_to(b"flood", asked).unwrap();
        }
    });
    let arrived = drain.join().unwrap();
    let start = Instant::now() + Duration::from_secs(2);
    conntrack.refresh(start).unwrap();
    assert!(conntrack.counters().overruns > 0, "{:?}", conntrack.counters());
    assert_eq!(conntrack.counters().listings, 2);
    assert_eq!(conntrack.used(), usize::from(CONNECTIONS));
    let seen = |client: SocketAddr| Seen {
        protocol: UDP,
        client,
        asked,
        backend: address(BACKEND[0], TARGET_PORT),
        reply_to: client,
    };
    for port in ports.clone() {
        seen(address(CLIENT[0], port)).is_found_in(&mut conntrack);
    }
    // Also as the backend saw them (its socket may have lost some).
    assert!(!arrived.is_empty());
    for client in arrived {
        seen(client).is_found_in(&mut conntrack);
    }

    // Their ends are too many as well. The table is read again once twenty times as long has passed as reading it took.
    site.end_all();
    conntrack.refresh(start + Duration::from_secs(120)).unwrap();
    assert!(conntrack.counters().overruns > 1, "{:?}", conntrack.counters());
    assert_eq!(conntrack.counters().listings, 3);
    conntrack.refresh(start + Duration::from_secs(151)).unwrap();
    assert_eq!(conntrack.used(), 0);
    assert_eq!(conntrack.counters().malformed, 0);
}

#[test]
fn nothing_is_translated_where_nobody_translates() {
    if !can_run() {
        return;
    }
    let namespace = Namespace::new("ct-plain");
    run(&format!("ip -n {} link show lo", namespace.name()));
    let mut conntrack = namespace.inside(|| Conntrack::open(ConntrackLimits::default()).unwrap().unwrap());
    conntrack.refresh(Instant::now()).unwrap();
    assert_eq!(conntrack.used(), 0);
    let any = tuple(TCP, address(CLIENT[0], 1), address(BACKEND[0], 2));
    assert_eq!(conntrack.translation(&any, true), None);
}
