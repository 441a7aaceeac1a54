//! The network probe in the kernel: what it counts against what was sent and what the interfaces counted.
//!
//! Each test has a machine and two containers of its own, as network namespaces; the agent is the real one.
#![allow(missing_docs, reason = "tests")]

mod support {
    pub(crate) mod agent;
    pub(crate) mod namespace;
    pub(crate) mod packets;
}

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use orb8_proto::v1::{
    Direction, Flow, FlowFilter, Reporter, State, StreamEventsRequest, stream_events_response::Event,
};
use support::{
    agent::{Agent, Flows, Totals, command, eventually, is_at, is_at_socket, is_between},
    namespace::{Counters, MAC, Namespace, Network, V4, V6, can_run, run},
    packets::{ethernet, ipv4, ipv6, send_frames, send_many_flows, send_udp, udp},
};

/// What the agent and the interfaces say at one quiet moment.
type Moment = (Flows, [Counters; 2]);

/// Between two moments, the flows of a host-side interface come to what the interface counted.
fn equal_to_interfaces(before: &Moment, now: &Moment) {
    for (i, interface) in ["va", "vb"].into_iter().enumerate() {
        let (was, is) = (before.0.at_interface(interface), now.0.at_interface(interface));
        let counted = now.1[i] - before.1[i];
        assert_eq!(
            ((is.0 - was.0).as_interface(), (is.1 - was.1).as_interface()),
            (
                (counted.rx_packets, counted.rx_bytes),
                (counted.tx_packets, counted.tx_bytes)
            ),
            "{interface}: sent and received by its container"
        );
    }
}

#[test]
fn datagrams_are_counted_once_at_each_end() {
    if !can_run() {
        return;
    }
    let network = Network::new("udp");
    let agent = Agent::observing(&network, &[]);
    let before = agent.flows_at_rest(&network);
    let [a, b] = &network.containers;
    for (addresses, header) in [(V4, 28), (V6, 48)] {
        // Somebody listens, or the answer would be an ICMP message for each.
        let _listener = b.inside(|| UdpSocket::bind((addresses[1], 5000)).unwrap());
        a.inside(|| send_udp(addresses[0], addresses[1], 1000, 100));
        let flows = agent.flows_at_rest(&network).0;
        let expected = Totals::of(1000, 100 + header);
        let ours = |flow: &Flow| is_between(flow, (addresses[0], Some(4000)), (addresses[1], Some(5000)));
        let (source, destination) = (
            |flow: &Flow| ours(flow) && flow.reporter == Reporter::Source as i32,
            |flow: &Flow| ours(flow) && flow.reporter == Reporter::Destination as i32,
        );
        assert_eq!(flows.total(source), expected, "by the source");
        assert_eq!(flows.total(destination), expected, "by the destination");
        assert!(
            flows
                .matching(source)
                .all(|f| is_at(f, "va") && f.direction == Direction::Egress as i32)
        );
        assert!(
            flows
                .matching(destination)
                .all(|f| is_at(f, "vb") && f.direction == Direction::Ingress as i32)
        );
        assert_eq!(
            flows.matching(|flow| ours(flow) && is_at_socket(flow)).count(),
            0,
            "forwarded, not the host's"
        );
    }
    let now = agent.flows_at_rest(&network);
    equal_to_interfaces(&before, &now);
    agent.stop();
}

#[test]
fn tcp_with_super_packets_equals_the_interfaces() {
    if !can_run() {
        return;
    }
    const BYTES: usize = 8 << 20;
    let network = Network::new("tcp");
    let agent = Agent::observing(&network, &[]);
    let before = agent.flows_at_rest(&network);
    let [a, b] = &network.containers;
    for addresses in [V4, V6] {
        let listener = b.inside(|| TcpListener::bind((addresses[1], 5000)).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                assert_eq!(received.len(), BYTES);
            });
            a.inside(|| {
                let mut stream = TcpStream::connect((addresses[1], 5000)).unwrap();
                stream.write_all(&vec![1; BYTES]).unwrap();
            });
        });
        // Nobody listens here any more.
        drop(listener);
        a.inside(|| TcpStream::connect((addresses[1], 5001)).unwrap_err());
        let flows = eventually("the connection's end", || {
            let flows = agent.flows_at_rest(&network).0;
            let done = flows
                .matching(|f| {
                    is_at(f, "va") && is_between(f, (addresses[0], None), (addresses[1], Some(5000)))
                })
                .any(|flow| flow.tcp_flags & 1 != 0 && flow.rtt_us.is_some());
            done.then_some(flows)
        });
        let data =
            |f: &Flow| is_at(f, "va") && is_between(f, (addresses[0], None), (addresses[1], Some(5000)));
        let flow = flows.matching(data).next().unwrap();
        assert!(
            flow.bytes > BYTES as u64 && flow.packets >= (BYTES / 1460) as u64,
            "{flow:?}"
        );
        assert!(
            flow.packets > flow.frames,
            "super-packets are counted as what they stand for: {flow:?}"
        );
        assert_eq!(flow.tcp_flags & 0x12, 0x12, "SYN and ACK: {flow:?}");
        assert!(flow.connect_us.is_some_and(|us| us > 0), "{flow:?}");
        let refused = flows
            .matching(|f| is_at(f, "va") && is_between(f, (addresses[0], None), (addresses[1], Some(5001))))
            .map(|flow| flow.failed_connects)
            .sum::<u32>();
        assert_eq!(refused, 1);
    }
    let now = agent.flows_at_rest(&network);
    equal_to_interfaces(&before, &now);
    agent.stop();
}

fn v4(i: usize) -> [u8; 4] {
    [10, 8, 0, 1 + i as u8]
}

fn v6(i: usize) -> [u8; 16] {
    V6[i].parse::<std::net::Ipv6Addr>().unwrap().octets()
}

#[test]
fn every_kind_of_frame_is_counted_as_what_it_is() {
    if !can_run() {
        return;
    }
    let network = Network::new("frames");
    let agent = Agent::observing(&network, &[]);
    let before = agent.flows_at_rest(&network);
    let a = &network.containers[0];
    let frame = |ethertype, payload: &[u8]| ethernet(MAC[1], MAC[0], ethertype, payload);
    let v4_udp =
        |fragment, options: &[u8], payload: &[u8]| ipv4(17, v4(0), v4(1), fragment, options, payload);
    let tagged = |outer: u16, inner: &[u8]| frame(outer, &[&[0, 7][..], inner].concat());
    let plain = v4_udp(0, &[], &udp(1, 2001, b"plain"));
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    let frames = vec![
        frame(0x0800, &v4_udp(0, &[1, 1, 1, 1], &udp(1, 2000, b"options"))),
        tagged(0x8100, &[&[8, 0][..], &plain].concat()),
        tagged(0x88a8, &[&[0x81, 0, 0, 9, 8, 0][..], &plain].concat()),
        // A fragmented datagram, first fragment first: both on its flow. Then one of which the first never came.
        frame(0x0800, &v4_udp(0x2000, &[], &udp(1, 2002, &[0; 16]))),
        frame(0x0800, &v4_udp(3, &[], &[0; 9])),
        frame(0x0800, &ipv4(17, v4(0), [10, 8, 0, 77], 3, &[], &[0; 11])),
        frame(0x0800, &ipv4(1, v4(0), v4(1), 0, &[], &[8, 0, 0, 0, 0, 1, 0, 1])),
        frame(
            0x0800,
            &ipv4(
                132,
                v4(0),
                v4(1),
                0,
                &[],
                &[&[0, 1, 7, 211][..], &[0; 8]].concat(),
            ),
        ),
        frame(0x0800, &ipv4(47, v4(0), v4(1), 0, &[], &[0; 12])),
        // Hop-by-hop options and destination options before UDP.
        frame(
            0x86dd,
            &ipv6(
                0,
                v6(0),
                v6(1),
                &[
                    &[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0][..],
                    &udp(1, 2004, b"6"),
                ]
                .concat(),
            ),
        ),
        frame(0x86dd, &ipv6(58, v6(0), v6(1), &echo)),
        frame(0x88cc, &[0; 30]),
        // Cut in the middle of the IP header; a length that lies; a version that is none.
        frame(0x0800, &plain[..15]),
        frame(0x0800, &[&plain[..2], &[0xff, 0xff], &plain[4..]].concat()),
        frame(0x86dd, &[0x10; 60]),
    ];
    a.inside(|| assert_eq!(send_frames(&frames), frames.len() as u64));
    let now = agent.flows_at_rest(&network);
    let flows = &now.0;
    let sent = |matches: &dyn Fn(&Flow) -> bool| {
        flows.total(|f| is_at(f, "va") && f.direction == Direction::Egress as i32 && matches(f))
    };
    let port = |f: &Flow, port: u32| f.dst.as_ref().is_some_and(|dst| dst.port == port);
    let udp_with = |to: u32| sent(&|f| f.protocol == 17 && port(f, to) && !f.malformed);
    assert_eq!(
        (udp_with(2000).packets, udp_with(2000).bytes),
        (1, 39),
        "IPv4 options"
    );
    assert_eq!(
        (udp_with(2001).packets, udp_with(2001).bytes),
        (2, 66),
        "VLAN and QinQ"
    );
    assert_eq!(
        (udp_with(2002).packets, udp_with(2002).bytes),
        (2, 44 + 29),
        "a first fragment and the next"
    );
    assert_eq!(
        sent(&|f| f.fragment).bytes,
        31,
        "a later fragment without its first"
    );
    assert_eq!(
        sent(&|f| f.icmp_type == Some(8) && f.icmp_code == Some(0)).packets,
        1
    );
    assert_eq!(sent(&|f| f.protocol == 132 && port(f, 2003)).packets, 1, "SCTP");
    assert_eq!(sent(&|f| f.protocol == 47).bytes, 32, "GRE by number");
    assert_eq!(
        (udp_with(2004).packets, udp_with(2004).bytes),
        (1, 40 + 16 + 9),
        "IPv6 extension headers"
    );
    assert_eq!(sent(&|f| f.icmp_type == Some(128)).packets, 1, "ICMPv6");
    assert_eq!(sent(&|f| f.ethertype == 0x88cc).bytes, 30, "LLDP by EtherType");
    let malformed = sent(&|f| f.malformed);
    assert_eq!(
        (malformed.packets, malformed.bytes),
        (3, 15 + 33 + 60),
        "bytes of the malformed are not lost"
    );
    // Tags may be kept beside the packet, where the interface does not count them: compare packets.
    let (all, _) = flows.at_interface("va");
    let counted = now.1[0] - before.1[0];
    assert_eq!(
        all.frames - before.0.at_interface("va").0.frames,
        counted.rx_packets
    );
    agent.stop();
}

/// The shortest that reaches a program: the kernel drops tagged frames that end within the next header before that
/// (`skb_vlan_untag` in net/core/skbuff.c).
fn frame_start(frame: &[u8]) -> usize {
    if frame[12..14] == [0x81, 0] { 20 } else { 14 }
}

#[test]
fn frames_cut_at_every_length_are_all_counted() {
    if !can_run() {
        return;
    }
    let network = Network::new("cut");
    let agent = Agent::observing(&network, &[]);
    let before = agent.flows_at_rest(&network);
    let whole = [
        ethernet(
            MAC[1],
            MAC[0],
            0x0800,
            &ipv4(6, v4(0), v4(1), 0, &[1; 8], &[0; 40]),
        ),
        ethernet(
            MAC[1],
            MAC[0],
            0x86dd,
            &ipv6(43, v6(0), v6(1), &[17, 2, 0, 0, 0, 0, 0, 0].repeat(6)),
        ),
        ethernet(
            MAC[1],
            MAC[0],
            0x8100,
            &[0, 1, 0x88, 0xa8, 0, 2, 0x81, 0, 0, 3, 8, 0, 0x45, 0].repeat(4),
        ),
    ];
    let frames: Vec<Vec<u8>> = whole
        .iter()
        .flat_map(|frame| (frame_start(frame)..=frame.len()).map(|len| frame[..len].to_vec()))
        .collect();
    network.containers[0].inside(|| send_frames(&frames));
    let now = agent.flows_at_rest(&network);
    let flows = &now.0;
    let sent = flows.at_interface("va").0 - before.0.at_interface("va").0;
    assert_eq!(sent.frames, (now.1[0] - before.1[0]).rx_packets);
    assert!(sent.frames >= frames.len() as u64);
    assert_eq!(agent.ledger("interface_programs").lost, 0);
    agent.stop();
}

#[test]
fn what_has_no_room_for_detail_is_in_the_totals() {
    if !can_run() {
        return;
    }
    const FLOWS: u32 = 60_000;
    let network = Network::new("full");
    // A long interval and a small map: the drain before its time cannot always be fast enough.
    let agent = Agent::observing(&network, &["--flow-entries", "1024", "--interval", "10s"]);
    let before = agent.flows_at_rest(&network);
    let [a, b] = &network.containers;
    b.run("ip route replace blackhole 10.8.0.1/32");
    a.inside(|| send_many_flows(V4[0], V4[1], FLOWS, None));
    let now = agent.flows_at_rest(&network);
    let flows = &now.0;
    equal_to_interfaces(&before, &now);
    let without_detail = flows.total(|flow| flow.remainder).packets;
    let row = agent.ledger("flow_map");
    assert!(row.lost > 0, "the map was large enough: {row:?}");
    assert!(
        without_detail >= row.lost,
        "{without_detail} packets without detail, ledger {row:?}"
    );
    assert_eq!(agent.ledger("drain").lost, 0);
    agent.stop();
}

#[test]
fn a_hundred_thousand_flows_keep_their_detail() {
    if !can_run() {
        return;
    }
    const FLOWS: u32 = 100_000;
    let network = Network::new("many");
    let agent = Agent::observing(&network, &[]);
    let before = agent.flows_at_rest(&network);
    let [a, b] = &network.containers;
    b.run("ip route replace blackhole 10.8.0.1/32");
    // Each is seen twice: an agent that is not optimised can read some hundred thousand flows a second, on a machine that does
    // nothing else.
    a.inside(|| send_many_flows(V4[0], V4[1], FLOWS, Some(25_000)));
    let now = agent.flows_at_rest(&network);
    let flows = &now.0;
    for (interface, direction) in [("va", Direction::Egress), ("vb", Direction::Ingress)] {
        let ours = |f: &Flow| is_at(f, interface) && f.direction == direction as i32 && f.protocol == 17;
        assert_eq!(flows.total(ours), Totals::of(u64::from(FLOWS), 29), "{interface}");
        assert_eq!(
            flows.matching(ours).count(),
            FLOWS as usize,
            "{interface}: each flow by itself"
        );
    }
    equal_to_interfaces(&before, &now);
    agent.stop();
}

/// Which cgroup2 directory this machine has.
fn cgroup2() -> std::path::PathBuf {
    let root = orb8_agent::preflight::Preflight::run().cgroup2();
    root.expect("a cgroup2 hierarchy")
}

#[test]
fn sockets_of_the_host_have_unit_or_process() {
    if !can_run() {
        return;
    }
    let host = Namespace::new("sockets");
    let agent = Agent::start(&host, &[]);
    let unit = format!("orb8-test-{}.service", std::process::id());
    let cgroup = cgroup2().join("system.slice").join(&unit);
    fs::create_dir_all(&cgroup).unwrap();
    for address in ["127.0.0.1", "::1"] {
        let receiver = host.inside(|| UdpSocket::bind((address, 0)).unwrap());
        let port = receiver.local_addr().unwrap().port();
        let script = format!(
            "echo $$ > {}/cgroup.procs; for i in 1 2 3 4 5; do echo -n hello > /dev/udp/{address}/{port}; done",
            cgroup.display()
        );
        let nsenter = format!("--net=/run/netns/{}", host.name());
        let sent = std::process::Command::new("nsenter")
            .args([&nsenter, "bash", "-c", &script])
            .status()
            .unwrap();
        assert!(sent.success());
        let flows = agent.flows();
        let header = if address == "::1" { 48 } else { 28 };
        let sent = |f: &Flow| {
            is_at_socket(f)
                && f.direction == Direction::Egress as i32
                && is_between(f, (address, None), (address, Some(port)))
        };
        assert_eq!(
            (flows.total(sent).packets, flows.total(sent).bytes),
            (5, 5 * (5 + header)),
            "{address}"
        );
        for flow in flows.matching(sent) {
            assert_eq!(flow.src.as_ref().unwrap().unit, unit);
        }
        let received = |f: &Flow| {
            is_at_socket(f)
                && f.direction == Direction::Ingress as i32
                && is_between(f, (address, None), (address, Some(port)))
        };
        assert_eq!(flows.total(received).packets, 5);
        let process = flows.matching(received).next().unwrap().dst.clone().unwrap();
        // The tests' own process has made the receiving socket; it is in no unit, or in the tester's.
        assert!(
            process.pid == std::process::id() || !process.unit.is_empty() || !process.container.is_empty(),
            "{process:?}"
        );
    }
    agent.stop();
    let _ = fs::remove_dir(&cgroup);
}

#[test]
fn interfaces_that_come_and_go_are_followed() {
    if !can_run() {
        return;
    }
    let network = Network::new("churn");
    let agent = Agent::observing(&network, &[]);
    let before = agent.flows_at_rest(&network);
    let [a, b] = &network.containers;
    let _listener = b.inside(|| UdpSocket::bind((V4[1], 5000)).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..100 {
                network.host.ip(&format!(
                    "link add c{i} type veth peer name p{i} netns {}",
                    b.name()
                ));
                network.host.ip(&format!("link del c{i}"));
            }
        });
        a.inside(|| {
            for _ in 0..20 {
                send_udp(V4[0], V4[1], 100, 50);
                thread::sleep(Duration::from_millis(20));
            }
        });
    });
    // The same index for another interface, and another name for the same interface.
    let index = |name: &str| {
        let status = agent.status();
        status
            .interfaces
            .iter()
            .find(|it| it.name == name && it.state == State::Active as i32)
            .map(|it| it.ifindex)
    };
    network.host.ip(&format!(
        "link add one index 4242 type veth peer name p1 netns {}",
        b.name()
    ));
    assert_eq!(eventually("one", || index("one")), 4242);
    network.host.ip("link del one");
    network.host.ip(&format!(
        "link add two index 4242 type veth peer name p2 netns {}",
        b.name()
    ));
    assert_eq!(eventually("two", || index("two")), 4242);
    network.host.ip("link set two name three");
    assert_eq!(eventually("three", || index("three")), 4242);
    network.host.ip("link del three");
    eventually("nothing left but the containers", || {
        let mut names: Vec<String> = agent.status().interfaces.into_iter().map(|it| it.name).collect();
        names.sort();
        (names == ["va", "vb"]).then_some(())
    });
    let now = agent.flows_at_rest(&network);
    let flows = &now.0;
    let data = |f: &Flow| is_at(f, "va") && is_between(f, (V4[0], Some(4000)), (V4[1], Some(5000)));
    assert_eq!(flows.total(data).packets, 2000);
    equal_to_interfaces(&before, &now);
    agent.stop();
}

/// Programs attached to the machine's interfaces, as bpftool-net(8) lists them.
fn attached(network: &Network) -> String {
    let listed = network.host.run("bpftool net");
    listed
        .lines()
        .filter(|line| line.contains("orb8_"))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn filters_of_clsact_are_exact_and_leave_with_the_agent_or_at_the_next_start() {
    if !can_run() {
        return;
    }
    let network = Network::new("clsact");
    let agent = Agent::observing(&network, &["--attach", "clsact"]);
    assert!(
        agent
            .status()
            .interfaces
            .iter()
            .all(|it| it.mechanism == "clsact")
    );
    let before = agent.flows_at_rest(&network);
    let [a, b] = &network.containers;
    let _listener = b.inside(|| UdpSocket::bind((V4[1], 5000)).unwrap());
    a.inside(|| send_udp(V4[0], V4[1], 500, 64));
    let now = agent.flows_at_rest(&network);
    equal_to_interfaces(&before, &now);
    // A kill leaves filters; the next start does away with them.
    agent.end(Signal::SIGKILL);
    assert!(!attached(&network).is_empty(), "filters outlive their process");
    let agent = Agent::start(&network.host, &["--attach", "tcx"]);
    assert_eq!(
        attached(&network).matches("clsact").count(),
        0,
        "{}",
        attached(&network)
    );
    agent.stop();
    let agent = Agent::observing(&network, &["--attach", "clsact"]);
    agent.stop();
    assert_eq!(attached(&network), "");
}

#[test]
fn nothing_stays_attached_however_the_agent_ends() {
    if !can_run() {
        return;
    }
    let network = Network::new("end");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let agent = Agent::observing(&network, &[]);
        let links = agent.links();
        assert!(links.len() >= 8, "two a veth, four at the cgroup root: {links:?}");
        let begun = std::time::Instant::now();
        let (status, log) = agent.end(signal);
        if signal != Signal::SIGKILL {
            assert!(status.success(), "{signal}: {status}\n{log}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{signal}");
        }
        eventually("the links to go", || {
            let listed = run("bpftool link");
            let left = links
                .iter()
                .any(|id| listed.lines().any(|line| line.starts_with(&format!("{id}:"))));
            (!left).then_some(())
        });
        assert_eq!(attached(&network), "", "{signal}");
    }
}

#[test]
fn a_restart_under_load_counts_nothing_twice() {
    if !can_run() {
        return;
    }
    let network = Network::new("restart");
    let [a, b] = &network.containers;
    let _listener = b.inside(|| UdpSocket::bind((V4[1], 5000)).unwrap());
    let before = network.counters();
    let mut seen = 0;
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            a.inside(|| {
                for _ in 0..100 {
                    send_udp(V4[0], V4[1], 100, 64);
                    thread::sleep(Duration::from_millis(30));
                }
            });
        });
        for _ in 0..2 {
            let agent = Agent::observing(&network, &[]);
            thread::sleep(Duration::from_millis(500));
            seen += agent.flows().at_interface("va").0.frames;
            agent.stop();
        }
        load.join().unwrap();
    });
    let counted = network.counters()[0] - before[0];
    assert!(
        seen > 0 && seen <= counted.rx_packets,
        "{seen} of {}",
        counted.rx_packets
    );
    // At rest, a third run sees exactly what passes while it looks.
    let agent = Agent::observing(&network, &[]);
    let before = agent.flows_at_rest(&network);
    a.inside(|| send_udp(V4[0], V4[1], 100, 64));
    let now = agent.flows_at_rest(&network);
    equal_to_interfaces(&before, &now);
    agent.stop();
}

/// Another tool's classifier, which gives one verdict on every packet, at the head of an interface's chain.
fn other_program(network: &Network, interface: &str, verdict: i32) -> std::os::fd::OwnedFd {
    use orb8_agent::bpf::{ProgramType, instruction, link, load_program};
    let program = load_program(ProgramType::Classifier, &instruction::return_constant(verdict)).unwrap();
    network.host.inside(|| {
        let index = nix::net::if_::if_nametoindex(interface).unwrap();
        link::attach_tcx(std::os::fd::AsFd::as_fd(&program), index, link::TcxSide::Ingress).unwrap()
    })
}

#[test]
fn programs_of_others_run_before_and_after_ours() {
    if !can_run() {
        return;
    }
    const TCX_NEXT: i32 = -1;
    const TCX_DROP: i32 = 2;
    let network = Network::new("chain");
    // Theirs was first; ours goes before it, and lets it drop what it wants to.
    let after = other_program(&network, "va", TCX_DROP);
    let agent = Agent::observing(&network, &["--attach", "tcx"]);
    // Another one goes before ours.
    let before_ours = other_program(&network, "va", TCX_NEXT);
    let before = agent.flows_at_rest(&network);
    let [a, b] = &network.containers;
    let listener = b.inside(|| UdpSocket::bind((V4[1], 5000)).unwrap());
    listener.set_nonblocking(true).unwrap();
    a.inside(|| send_udp(V4[0], V4[1], 100, 64));
    let now = agent.flows_at_rest(&network);
    equal_to_interfaces(&before, &now);
    let sent = |f: &Flow| is_at(f, "va") && is_between(f, (V4[0], Some(4000)), (V4[1], Some(5000)));
    assert_eq!(now.0.total(sent).packets, 100, "between two programs of others");
    assert!(
        listener.recv(&mut [0; 100]).is_err(),
        "the one behind ours dropped them all"
    );
    drop(after);
    // The kernel may take the program off some time after its link was closed.
    eventually("a packet, without that program", || {
        a.inside(|| send_udp(V4[0], V4[1], 1, 64));
        listener.recv(&mut [0; 100]).ok()
    });
    agent.stop();
    drop(before_ours);
}

/// Events of flows alone.
fn of_flows() -> StreamEventsRequest {
    StreamEventsRequest {
        network: Some(FlowFilter::default()),
        ..StreamEventsRequest::default()
    }
}

#[test]
fn events_tell_of_connections_and_a_full_ring_costs_no_counts() {
    if !can_run() {
        return;
    }
    let network = Network::new("events");
    let agent = Agent::observing(&network, &["--ring-buffer-size", "4096"]);
    let [a, b] = &network.containers;
    let listener = b.inside(|| TcpListener::bind((V4[1], 5000)).unwrap());
    let before = agent.flows_at_rest(&network);
    let mut kinds = agent
        .ask(|mut client| async move {
            let mut stream = client.stream_events(of_flows()).await?.into_inner();
            let traffic = tokio::task::spawn_blocking({
                let namespace = a.open();
                move || {
                    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    drop(TcpStream::connect((V4[1], 5000)).unwrap());
                    TcpStream::connect((V4[1], 5001)).unwrap_err();
                }
            });
            let mut kinds = Vec::new();
            while let Ok(Ok(Some(response))) =
                tokio::time::timeout(Duration::from_secs(2), stream.message()).await
            {
                if let Some(Event::Network(event)) = response.event
                    && event.flow.as_ref().is_some_and(|flow| is_at(flow, "va"))
                {
                    kinds.push(event.kind);
                }
            }
            traffic.await.unwrap();
            Ok(kinds)
        })
        .unwrap();
    kinds.sort_unstable();
    kinds.dedup();
    // SYN, SYN with ACK, FIN and RST.
    assert!([2, 3, 4, 5].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    drop(listener);

    // Ten thousand new flows at once: more than the ring holds.
    b.run("ip route replace blackhole 10.8.0.1/32");
    agent
        .ask(|mut client| async move {
            let _stream = client.stream_events(of_flows()).await?.into_inner();
            let namespace = a.open();
            tokio::task::spawn_blocking(move || {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                send_many_flows(V4[0], V4[1], 10_000, None);
            })
            .await
            .unwrap();
            Ok(())
        })
        .unwrap();
    let row = agent.ledger("events");
    assert!(row.lost + row.filtered > 0, "{row:?}");
    let now = agent.flows_at_rest(&network);
    equal_to_interfaces(&before, &now);
    agent.stop();
}

#[test]
fn a_wrong_setting_stops_the_start() {
    if !can_run() {
        return;
    }
    let host = Namespace::new("settings");
    let fails = |arguments: &[&str], code: i32, says: &[&str]| {
        let output = command(&host, arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        for word in says {
            assert!(
                message.contains(word),
                "{arguments:?} says {message:?}, not {word}"
            );
        }
    };
    fails(
        &["--ring-buffer-size", "5000"],
        2,
        &["ring", "5000", "power of two", "32MiB"],
    );
    fails(&["--interval", "1ms"], 2, &["interval", "1ms", "100ms", "1m"]);
    fails(&["--flow-entries", "1"], 2, &["flow", "1024", "4194304"]);
    let _taken = host.inside(|| TcpListener::bind("127.0.0.1:9090").unwrap());
    fails(&[], 1, &["127.0.0.1:9090", "ORB8_GRPC_PORT"]);
}
