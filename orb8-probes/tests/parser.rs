//! The packet parser, on frames of every kind, whole and broken, and on random ones.

#[path = "parser/frames.rs"]
mod frames;
#[path = "parser/invariants.rs"]
mod invariants;
#[path = "parser/reference.rs"]
mod reference;

use etherparse::{PacketBuilder, SingleVlanHeader, TcpHeader, VlanHeader, VlanId};
use frames::Case;
use invariants::{Facts, Link, check, check_common, parse_common};
use orb8_common::network::{kind, protocol};
use orb8_probes::network::{
    parse::{Fragment, Packet},
    segments::wire_segments,
};
use proptest::{collection::vec, prelude::*};

const GSO: Facts = Facts {
    gso: true,
    ..Facts::ETHERNET
};

fn malformed(packet: &Packet) -> bool {
    packet.key.kind & kind::MALFORMED != 0
}

fn is_ip(packet: &Packet) -> bool {
    packet.key.kind & (kind::IPV4 | kind::IPV6) != 0
}

/// The catalogue's frame of that name.
fn frame(name: &str) -> Vec<u8> {
    let found = frames::all().into_iter().find(|case| case.name == name);
    found.unwrap_or_else(|| panic!("no frame is named {name}")).frame
}

#[test]
fn finds_what_is_in_every_frame() {
    for Case {
        name,
        frame,
        expected,
    } in frames::all()
    {
        println!("{name}");
        assert_eq!(check(&frame, Facts::ETHERNET), expected, "{name}");
        // An IPv6 packet of length 0 is a big one if it is a super-packet.
        if expected.l3_bytes > 40 {
            assert_eq!(check(&frame, GSO), expected, "{name}");
        }
        reference::agree(&frame, &expected);
    }
}

#[test]
fn the_short_cut_agrees_with_the_whole_parser() {
    let mut taken = 0;
    for Case {
        name,
        frame,
        expected,
    } in frames::all()
    {
        println!("{name}");
        for linear in 0..=frame.len() {
            check_common(&frame, linear, Facts::ETHERNET);
        }
        // All headers in reach are enough.
        let headers = expected.header_len as usize;
        if let Some(packet) = parse_common(&frame, headers, Facts::ETHERNET) {
            assert_eq!(packet, expected, "{name}");
            taken += 1;
        }
        assert_eq!(parse_common(&frame, 13, Facts::ETHERNET), None, "{name}");
    }
    assert!(
        taken >= 4,
        "TCP and UDP over both versions take the short cut: {taken}"
    );
}

#[test]
fn frames_cut_anywhere_keep_what_was_read() {
    for Case {
        name,
        frame,
        expected,
    } in frames::all()
    {
        let end = u32::from(expected.key.link_len) + expected.l3_bytes;
        println!("{name}");
        let jumbogram = name == "ipv6-jumbogram";
        for len in 0..frame.len() {
            let packet = check(&frame[..len], Facts::ETHERNET);
            check(&frame[..len], GSO);
            let whole = len >= end as usize || (jumbogram && len >= expected.header_len as usize);
            if is_ip(&expected) {
                assert_eq!(malformed(&packet), !whole, "{name} of {len} bytes: {packet:?}");
            } else {
                assert_eq!(
                    malformed(&packet),
                    len < expected.header_len as usize,
                    "{name}: {packet:?}"
                );
            }
            // Nothing but the lengths and the mark changes while all headers are there.
            if len >= expected.header_len as usize {
                let mut known = packet;
                known.key.kind &= !kind::MALFORMED;
                known.l3_bytes = expected.l3_bytes;
                known.padding = expected.padding;
                assert_eq!(known, expected, "{name} of {len} bytes");
            }
        }
    }
}

#[test]
fn a_short_frame_is_counted_whole() {
    let packet = check(
        &[0xff; 13],
        Facts {
            stripped: true,
            ..Facts::ETHERNET
        },
    );
    assert!(malformed(&packet));
    assert_eq!(
        (packet.l3_bytes, packet.key.link_len, packet.key.sport),
        (13, 4, 0)
    );
    assert!(malformed(&check(&[], Facts::ETHERNET)));
}

#[test]
fn packets_without_link_layer_header() {
    for Case {
        name,
        frame,
        mut expected,
    } in frames::all()
    {
        if expected.key.link_len != 14 {
            continue;
        }
        let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
        expected.key.link_len = 0;
        expected.header_len -= 14;
        for stripped in [false, true] {
            let facts = Facts {
                link: Link::Raw(ethertype),
                stripped,
                gso: false,
            };
            assert_eq!(check(&frame[14..], facts), expected, "{name}");
        }
    }
}

#[test]
fn a_stripped_tag_is_part_of_the_link_header() {
    let packet = check(
        &frame("802.1q"),
        Facts {
            stripped: true,
            ..Facts::ETHERNET
        },
    );
    assert_eq!((packet.key.link_len, packet.header_len), (22, 22 + 28));
}

#[test]
fn ipv4_that_is_not() {
    for first in [0x55, 0x65, 0x44, 0x40, 0x05, 0x00, 0xff] {
        let mut frame = frame("ipv4-udp");
        frame[14] = first;
        let packet = check(&frame, Facts::ETHERNET);
        assert!(malformed(&packet) && !is_ip(&packet), "{first:#x}: {packet:?}");
        assert_eq!((packet.key.sport, packet.l3_bytes), (0x0800, 33), "{first:#x}");
    }
}

#[test]
fn ipv6_that_is_not() {
    for first in [0x40, 0x50, 0x70, 0x00, 0xff] {
        let mut frame = frame("ipv6-udp");
        frame[14] = first;
        let packet = check(&frame, Facts::ETHERNET);
        assert!(malformed(&packet) && !is_ip(&packet), "{first:#x}: {packet:?}");
        assert_eq!((packet.key.sport, packet.l3_bytes), (0x86dd, 53), "{first:#x}");
    }
}

#[test]
fn ipv4_lengths_that_contradict() {
    // 33 bytes are there; the header says otherwise. The ports are where they are.
    for total in [1_u16, 19, 34, 1500, u16::MAX] {
        let mut frame = frame("ipv4-udp");
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        for facts in [Facts::ETHERNET, GSO] {
            let packet = check(&frame, facts);
            assert!(malformed(&packet), "{total}: {packet:?}");
            assert_eq!((packet.l3_bytes, packet.padding), (33, 0), "{total}");
            assert_eq!((packet.key.sport, packet.key.dport), (40_000, 53), "{total}");
        }
    }
    // Too short for a UDP header: what follows is not read as one.
    for total in 20_u16..28 {
        let mut frame = frame("ipv4-udp");
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        let packet = check(&frame, Facts::ETHERNET);
        assert!(malformed(&packet), "{total}: {packet:?}");
        assert_eq!(
            (packet.l3_bytes, packet.padding),
            (u32::from(total), 33 - u32::from(total))
        );
        assert_eq!((packet.key.sport, packet.key.dport), (0, 0), "{total}");
    }
}

#[test]
fn ipv4_options_longer_than_the_packet() {
    for name in ["ipv4-udp", "ipv4-empty"] {
        for total in [0, 20, 33] {
            let mut frame = frame(name);
            frame[14] = 0x4f;
            frame[16..18].copy_from_slice(&u16::to_be_bytes(total));
            for facts in [Facts::ETHERNET, GSO] {
                let packet = check(&frame, facts);
                assert!(malformed(&packet), "{name} of {total}, {facts:?}: {packet:?}");
                assert_eq!((packet.key.sport, packet.key.dport), (0, 0));
            }
        }
    }
}

#[test]
fn length_0_is_a_super_packet() {
    for (name, length) in [("ipv4-tcp-options", 16..18), ("ipv6-tcp", 18..20)] {
        let mut frame = frame(name);
        let expected = check(&frame, Facts::ETHERNET);
        frame[length].fill(0);
        assert_eq!(check(&frame, GSO), expected, "{name}");
        assert!(malformed(&check(&frame, Facts::ETHERNET)), "{name}");
    }
}

#[test]
fn ipv6_lengths_that_contradict() {
    for payload in [14_u16, 1500, u16::MAX] {
        let mut frame = frame("ipv6-udp");
        frame[18..20].copy_from_slice(&payload.to_be_bytes());
        let packet = check(&frame, Facts::ETHERNET);
        assert!(malformed(&packet), "{payload}: {packet:?}");
        assert_eq!((packet.l3_bytes, packet.key.dport), (53, 53), "{payload}");
    }
    for payload in 0_u16..8 {
        let mut frame = frame("ipv6-udp");
        frame[18..20].copy_from_slice(&payload.to_be_bytes());
        let packet = check(&frame, Facts::ETHERNET);
        assert!(malformed(&packet), "{payload}: {packet:?}");
        assert_eq!(
            (packet.l3_bytes, packet.key.dport),
            (40 + u32::from(payload), 0),
            "{payload}"
        );
    }
}

#[test]
fn extension_headers_are_not_read_from_padding() {
    // The packet ends before its destination options, or within them; the frame goes on.
    for payload in 0_u16..24 {
        for (name, first) in [("ipv6-destination", 60), ("ipv6-extension-and-nothing", 60)] {
            let mut frame = frame(name);
            frame.resize(100, 59);
            let whole = if name == "ipv6-destination" { 32 } else { 8 };
            if payload >= whole {
                continue;
            }
            frame[18..20].copy_from_slice(&payload.to_be_bytes());
            let packet = check(&frame, Facts::ETHERNET);
            assert!(malformed(&packet), "{name}, {payload}: {packet:?}");
            assert_eq!(packet.l3_bytes, 40 + u32::from(payload), "{name}");
            if payload < 8 {
                assert_eq!(packet.key.protocol, first, "{name}, {payload}");
            }
        }
    }
}

#[test]
fn an_extension_header_longer_than_the_packet() {
    for protocol in [protocol::UDP, 59] {
        let mut frame = frame("ipv6-destination");
        frame[54] = protocol;
        frame[55] = 0xff;
        let packet = check(&frame, Facts::ETHERNET);
        assert!(malformed(&packet), "{packet:?}");
        assert_eq!((packet.key.sport, packet.key.dport), (0, 0));
    }
}

#[test]
fn tcp_header_length_that_contradicts() {
    for words in [0_u8, 4, 8, 15] {
        let mut frame = frame("ipv4-tcp-syn");
        frame[46] = words << 4;
        let packet = check(&frame, Facts::ETHERNET);
        assert!(malformed(&packet), "{words}: {packet:?}");
        assert_eq!(
            (packet.key.sport, packet.key.dport, packet.tcp_flags),
            (40_000, 80, 0x02),
            "{words}"
        );
    }
}

#[test]
fn fragments_of_a_packet_share_their_key() {
    for version in ["ipv4", "ipv6"] {
        let keys = ["first", "middle", "last"]
            .map(|part| check(&frame(&format!("{version}-{part}-fragment")), Facts::ETHERNET).fragment_key());
        assert_eq!((keys[0], keys[0]), (keys[1], keys[2]), "{version}");
    }
}

#[test]
fn padding_is_not_read_as_ports() {
    let mut frame = frame("ipv4-empty");
    frame[23] = protocol::UDP;
    frame.resize(60, 0xa5);
    let packet = check(&frame, Facts::ETHERNET);
    assert_eq!((packet.key.sport, packet.key.dport, packet.padding), (0, 0, 26));
    assert!(malformed(&packet));
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let link = prop_oneof![
        3 => Just(Link::Ethernet),
        1 => Just(Link::Raw(0x0800)),
        1 => Just(Link::Raw(0x86dd)),
        1 => any::<u16>().prop_map(Link::Raw),
    ];
    (link, any::<bool>(), any::<bool>()).prop_map(|(link, stripped, gso)| Facts { link, stripped, gso })
}

/// Frames of the catalogue with some bytes changed, cut or made longer.
fn broken_frame() -> impl Strategy<Value = Vec<u8>> {
    let frames: Vec<_> = frames::all().into_iter().map(|case| case.frame).collect();
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let tail = prop_oneof![Just(None), (0_usize..150).prop_map(Some)];
    (prop::sample::select(frames), vec(change, 0..5), tail).prop_map(|(mut frame, changes, len)| {
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if let Some(len) = len {
            frame.resize(len, 0x3b);
        }
        frame
    })
}

fn any_extensions() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let number = prop::sample::select(vec![0_u8, 43, 44, 51, 60, 135, 139, 140, 6, 17, 59]);
    (number.clone(), vec((number, 0_u8..4, any::<[u8; 6]>()), 0..11)).prop_map(|(first, headers)| {
        let mut bytes = Vec::new();
        for (next, units, fields) in headers {
            bytes.extend([next, units]);
            bytes.extend(fields);
            bytes.extend(vec![0; 8 * usize::from(units)]);
        }
        (first, bytes)
    })
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp { flags: u8, options: Vec<u8> },
    Udp,
    Icmp,
}

fn any_transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        (any::<u8>(), vec(Just(1_u8), 0..=40)).prop_map(|(flags, options)| Transport::Tcp { flags, options }),
        Just(Transport::Udp),
        Just(Transport::Icmp),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..200), facts in any_facts(), linear in 0_usize..200) {
        check(&bytes, facts);
        check_common(&bytes, linear, facts);
    }

    #[test]
    fn any_broken_frame(bytes in broken_frame(), facts in any_facts(), linear in 0_usize..150) {
        let packet = check(&bytes, Facts { gso: false, ..Facts::ETHERNET });
        reference::agree(&bytes, &packet);
        check(&bytes, facts);
        check_common(&bytes, linear, facts);
    }

    #[test]
    fn any_chain_of_extensions((first, chain) in any_extensions(), spare in 0_usize..64, linear in 0_usize..300) {
        let mut bytes = frame("ipv6-nothing-next");
        bytes.truncate(54);
        bytes[18..20].copy_from_slice(&u16::try_from(chain.len()).expect("short").to_be_bytes());
        bytes[20] = first;
        bytes.extend(&chain);
        bytes.resize(bytes.len() + spare, 0x2c);
        let packet = check(&bytes, Facts::ETHERNET);
        reference::agree(&bytes, &packet);
        check_common(&bytes, linear, Facts::ETHERNET);
    }

    #[test]
    fn built_frames(
        addresses in prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(Ok),
            any::<([u8; 16], [u8; 16])>().prop_map(Err),
        ],
        tags in prop::option::of(0_u16..4096),
        transport in any_transport(),
        ports in any::<(u16, u16)>(),
        payload in vec(any::<u8>(), 0..100),
        padding in 0_usize..64,
    ) {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let (src, dst, version) = match addresses {
            Ok((src, dst)) => {
                let map = |address: [u8; 4]| std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets();
                (map(src), map(dst), kind::IPV4)
            }
            Err((src, dst)) => (src, dst, kind::IPV6),
        };
        let link_len = if tags.is_some() { 18 } else { 14 };
        let ip_len = if version == kind::IPV4 { 20 } else { 40 };
        let builder = match (tags, addresses) {
            (None, Ok((src, dst))) => builder.ipv4(src, dst, 64),
            (None, Err((src, dst))) => builder.ipv6(src, dst, 64),
            (Some(tag), addresses) => {
                let vlan_id = VlanId::try_new(tag).expect("below 4096");
                let tag = VlanHeader::Single(SingleVlanHeader { vlan_id, ..Default::default() });
                let builder = builder.vlan(tag);
                match addresses {
                    Ok((src, dst)) => builder.ipv4(src, dst, 64),
                    Err((src, dst)) => builder.ipv6(src, dst, 64),
                }
            }
        };
        let mut bytes = Vec::new();
        let (sport, dport, header_len, tcp_flags, protocol) = match transport {
            Transport::Tcp { flags, options } => {
                let mut header = TcpHeader::new(ports.0, ports.1, 1, 1);
                (header.fin, header.syn) = (flags & 1 != 0, flags & 2 != 0);
                (header.rst, header.psh) = (flags & 4 != 0, flags & 8 != 0);
                (header.ack, header.urg) = (flags & 16 != 0, flags & 32 != 0);
                (header.ece, header.cwr) = (flags & 64 != 0, flags & 128 != 0);
                header.set_options_raw(&options).expect("at most 40 bytes");
                let len = header.header_len();
                builder.tcp_header(header).write(&mut bytes, &payload).expect("writes to memory");
                (ports.0, ports.1, len, flags, protocol::TCP)
            }
            Transport::Udp => {
                builder.udp(ports.0, ports.1).write(&mut bytes, &payload).expect("writes to memory");
                (ports.0, ports.1, 8, 0, protocol::UDP)
            }
            Transport::Icmp => {
                let [icmp_type, code] = ports.0.to_be_bytes();
                let numbers = (u16::from(icmp_type), u16::from(code));
                let rest = [0; 4];
                if version == kind::IPV4 {
                    let builder = builder.icmpv4_raw(icmp_type, code, rest);
                    builder.write(&mut bytes, &payload).expect("writes to memory");
                    (numbers.0, numbers.1, 4, 0, protocol::ICMP)
                } else {
                    let builder = builder.icmpv6_raw(icmp_type, code, rest);
                    builder.write(&mut bytes, &payload).expect("writes to memory");
                    (numbers.0, numbers.1, 4, 0, protocol::ICMPV6)
                }
            }
        };
        let end = bytes.len();
        bytes.resize(end + padding, 0xa5);

        let packet = check(&bytes, Facts::ETHERNET);
        prop_assert_eq!((packet.key.src, packet.key.dst), (src, dst));
        prop_assert_eq!((packet.key.sport, packet.key.dport), (sport, dport));
        prop_assert_eq!((packet.key.protocol, packet.key.kind), (protocol, version));
        prop_assert_eq!(packet.tcp_flags, tcp_flags);
        prop_assert_eq!(usize::from(packet.key.link_len), link_len);
        prop_assert_eq!(packet.l3_bytes as usize, end - link_len);
        prop_assert_eq!(packet.padding as usize, padding);
        prop_assert_eq!(packet.header_len as usize, link_len + ip_len + header_len);
        prop_assert_eq!(packet.fragment, Fragment::None);
        reference::agree(&bytes, &packet);
    }

    #[test]
    fn segments_hold_the_payload(gso_segs in any::<u32>(), gso_size in any::<u32>(), payload in any::<u32>()) {
        let gso_size = gso_size % 0x1_0001;
        let segments = wire_segments(gso_segs, gso_size, payload);
        if gso_segs > 1 {
            prop_assert_eq!(segments, gso_segs);
        }
        let counted = wire_segments(0, gso_size, payload);
        prop_assert!(counted >= 1);
        if counted > 1 {
            prop_assert!(u64::from(counted) * u64::from(gso_size) >= u64::from(payload));
            prop_assert!(u64::from(counted - 1) * u64::from(gso_size) < u64::from(payload));
        } else if gso_size != 0 && gso_size != 0xffff {
            prop_assert!(payload <= gso_size);
        }
    }
}

#[test]
fn the_short_cut_needs_its_headers_in_reach() {
    let frame = frame("ipv4-udp");
    assert_eq!(parse_common(&frame, 20, Facts::ETHERNET), None);
    assert_eq!(
        parse_common(&frame, frame.len(), Facts::ETHERNET).map(|packet| packet.key.dport),
        Some(53)
    );
}
