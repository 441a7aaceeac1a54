//! Frames of every kind that the parser knows, written byte by byte, with what it has to find in them.

use orb8_common::network::{FlowKey, kind};
use orb8_probes::network::parse::{Fragment, Packet};

/// A frame and what is in it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) expected: Packet,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

const SOURCE4: [u8; 4] = [192, 0, 2, 1];
const DESTINATION4: [u8; 4] = [198, 51, 100, 2];
const SOURCE6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const DESTINATION6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

const ATOMIC: u16 = 0;
const FIRST: u16 = 1;
const MIDDLE: u16 = 8 * 8 + 1;
const LAST: u16 = 16 * 8;
const IDENTIFICATION: u32 = 0x0102_0304;

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("frames are short").to_be_bytes()
}

/// An Ethernet II frame with the tags `tags` before its `EtherType`.
fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = join(&[&[2, 0, 0, 0, 0, 1], &[2, 0, 0, 0, 0, 2]]);
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 100]);
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn tcp(options: &[u8], flags: u8) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).expect("at most 40 bytes of options");
    join(&[
        &[
            0x9c,
            0x40,
            0,
            80,
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            2,
            words << 4,
            flags,
            1,
            0,
            0,
            0,
            0,
            0,
        ],
        options,
        b"request",
    ])
}

fn udp() -> Vec<u8> {
    join(&[&[0x9c, 0x40, 0, 53, 0, 13, 0, 0], b"query"])
}

fn sctp() -> Vec<u8> {
    join(&[&[0x9c, 0x40, 0x0b, 0x80, 1, 2, 3, 4, 5, 6, 7, 8], b"chunk"])
}

fn echo(request: u8) -> Vec<u8> {
    join(&[&[request, 3, 0, 0, 0, 1, 0, 2], b"ping"])
}

/// An IPv4 packet; `fragment` is the field with the fragment's flags and its offset in 8 bytes.
fn ipv4(options: &[u8], fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let ihl = u8::try_from(header_len / 4).expect("at most 40 bytes of options");
    join(&[
        &[0x40 | ihl, 0],
        &length(header_len + payload.len()),
        &[3, 4],
        &fragment.to_be_bytes(),
        &[64, protocol, 0, 0],
        &SOURCE4,
        &DESTINATION4,
        options,
        payload,
    ])
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let length = length(payload.len());
    join(&[
        &[0x60, 0, 0, 0],
        &length,
        &[next, 64],
        &SOURCE6,
        &DESTINATION6,
        payload,
    ])
}

/// An extension header of 8-byte units before `rest`.
fn extension(next: u8, units_behind_the_first: u8, rest: &[u8]) -> Vec<u8> {
    let filling = vec![0; 6 + 8 * usize::from(units_behind_the_first)];
    join(&[&[next, units_behind_the_first], &filling, rest])
}

fn fragment(next: u8, place: u16, rest: &[u8]) -> Vec<u8> {
    join(&[
        &[next, 0],
        &place.to_be_bytes(),
        &IDENTIFICATION.to_be_bytes(),
        rest,
    ])
}

fn mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// What a whole IPv4 packet behind an untagged Ethernet header is.
fn found4(protocol: u8, ports: (u16, u16), header_len: u32, packet: &[u8]) -> Packet {
    let key = FlowKey {
        src: mapped(SOURCE4),
        dst: mapped(DESTINATION4),
        sport: ports.0,
        dport: ports.1,
        protocol,
        kind: kind::IPV4,
        link_len: 14,
        ..FlowKey::default()
    };
    let l3_bytes = u32::try_from(packet.len()).expect("frames are short");
    Packet {
        key,
        l3_bytes,
        header_len: 14 + header_len,
        ..Packet::default()
    }
}

/// What a whole IPv6 packet behind an untagged Ethernet header is.
fn found6(protocol: u8, ports: (u16, u16), header_len: u32, packet: &[u8]) -> Packet {
    let mut found = found4(protocol, ports, header_len, packet);
    found.key.src = SOURCE6;
    found.key.dst = DESTINATION6;
    found.key.kind = kind::IPV6;
    found
}

/// What a frame that is not IP is.
fn other(ethertype: u16, link_len: u8, l3_bytes: u32) -> Packet {
    let key = FlowKey {
        sport: ethertype,
        link_len,
        ..FlowKey::default()
    };
    Packet {
        key,
        l3_bytes,
        header_len: u32::from(link_len),
        ..Packet::default()
    }
}

/// Every frame of the catalogue. None is malformed.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    transports(&mut cases);
    links(&mut cases);
    extensions(&mut cases);
    fragments(&mut cases);
    others(&mut cases);
    cases
}

fn add4(cases: &mut Vec<Case>, name: &'static str, packet: &[u8], expected: Packet) {
    cases.push(Case {
        name,
        frame: ethernet(&[], 0x0800, packet),
        expected,
    });
}

fn add6(cases: &mut Vec<Case>, name: &'static str, packet: &[u8], expected: Packet) {
    cases.push(Case {
        name,
        frame: ethernet(&[], 0x86dd, packet),
        expected,
    });
}

fn transports(cases: &mut Vec<Case>) {
    let router_alert = [0x94, 4, 0, 0];
    let most_options = [1; 40];
    let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

    let packet = ipv4(&[], 0x4000, TCP, &tcp(&[], 0x02));
    add4(
        cases,
        "ipv4-tcp-syn",
        &packet,
        Packet {
            tcp_flags: 0x02,
            ..found4(TCP, (40_000, 80), 40, &packet)
        },
    );
    let packet = ipv4(&[], 0x4000, TCP, &tcp(&timestamps, 0x18));
    add4(
        cases,
        "ipv4-tcp-options",
        &packet,
        Packet {
            tcp_flags: 0x18,
            ..found4(TCP, (40_000, 80), 52, &packet)
        },
    );
    let packet = ipv4(&most_options, 0, TCP, &tcp(&[1; 40], 0xff));
    let expected = Packet {
        tcp_flags: 0xff,
        ..found4(TCP, (40_000, 80), 120, &packet)
    };
    add4(cases, "ipv4-all-options-tcp-all-options", &packet, expected);
    let packet = ipv4(&[], 0, UDP, &udp());
    add4(cases, "ipv4-udp", &packet, found4(UDP, (40_000, 53), 28, &packet));
    let packet = ipv4(&router_alert, 0, UDP, &udp());
    add4(
        cases,
        "ipv4-options-udp",
        &packet,
        found4(UDP, (40_000, 53), 32, &packet),
    );
    let packet = ipv4(&[], 0, UDPLITE, &udp());
    add4(
        cases,
        "ipv4-udplite",
        &packet,
        found4(UDPLITE, (40_000, 53), 28, &packet),
    );
    let packet = ipv4(&[], 0, SCTP, &sctp());
    add4(
        cases,
        "ipv4-sctp",
        &packet,
        found4(SCTP, (40_000, 2944), 32, &packet),
    );
    let packet = ipv4(&[], 0, ICMP, &echo(8));
    add4(cases, "ipv4-icmp", &packet, found4(ICMP, (8, 3), 24, &packet));
    for (name, protocol) in [
        ("ipv4-gre", 47),
        ("ipv4-esp", 50),
        ("ipv4-ah", 51),
        ("ipv4-ipip", 4),
        ("ipv4-253", 253),
    ] {
        let packet = ipv4(&[], 0, protocol, &udp());
        add4(cases, name, &packet, found4(protocol, (0, 0), 20, &packet));
    }
    let packet = ipv4(&[], 0, 253, &[]);
    add4(cases, "ipv4-empty", &packet, found4(253, (0, 0), 20, &packet));

    let packet = ipv6(TCP, &tcp(&timestamps, 0x12));
    add6(
        cases,
        "ipv6-tcp",
        &packet,
        Packet {
            tcp_flags: 0x12,
            ..found6(TCP, (40_000, 80), 72, &packet)
        },
    );
    let packet = ipv6(UDP, &udp());
    add6(cases, "ipv6-udp", &packet, found6(UDP, (40_000, 53), 48, &packet));
    let packet = ipv6(UDPLITE, &udp());
    add6(
        cases,
        "ipv6-udplite",
        &packet,
        found6(UDPLITE, (40_000, 53), 48, &packet),
    );
    let packet = ipv6(SCTP, &sctp());
    add6(
        cases,
        "ipv6-sctp",
        &packet,
        found6(SCTP, (40_000, 2944), 52, &packet),
    );
    let packet = ipv6(ICMPV6, &echo(128));
    add6(
        cases,
        "ipv6-icmpv6",
        &packet,
        found6(ICMPV6, (128, 3), 44, &packet),
    );
    for (name, protocol) in [
        ("ipv6-gre", 47),
        ("ipv6-esp", 50),
        ("ipv6-nothing-next", 59),
        ("ipv6-253", 253),
    ] {
        let packet = ipv6(protocol, &udp());
        add6(cases, name, &packet, found6(protocol, (0, 0), 40, &packet));
    }
}

fn links(cases: &mut Vec<Case>) {
    let packet = ipv4(&[], 0, UDP, &udp());
    let tags: [(&str, &[u16]); 4] = [
        ("802.1q", &[0x8100]),
        ("802.1ad", &[0x88a8, 0x8100]),
        ("old-qinq", &[0x9100, 0x8100]),
        ("three-tags", &[0x88a8, 0x8100, 0x8100]),
    ];
    for (name, tags) in tags {
        let link_len = u8::try_from(14 + 4 * tags.len()).expect("few tags");
        let mut expected = found4(UDP, (40_000, 53), 28, &packet);
        expected.key.link_len = link_len;
        expected.header_len = u32::from(link_len) + 28;
        cases.push(Case {
            name,
            frame: ethernet(tags, 0x0800, &packet),
            expected,
        });
    }
    let packet6 = ipv6(UDP, &udp());
    let mut expected = found6(UDP, (40_000, 53), 48, &packet6);
    expected.key.link_len = 18;
    expected.header_len = 18 + 48;
    cases.push(Case {
        name: "802.1q-ipv6",
        frame: ethernet(&[0x8100], 0x86dd, &packet6),
        expected,
    });
    // The fourth tag is payload.
    let l3_bytes = u32::try_from(packet.len()).expect("frames are short") + 4;
    let frame = ethernet(&[0x8100; 4], 0x0800, &packet);
    cases.push(Case {
        name: "four-tags",
        frame,
        expected: other(0x8100, 26, l3_bytes),
    });

    // Minimum-size frames are padded to 60 bytes.
    let mut frame = ethernet(&[], 0x0800, &packet);
    let padding = 60 - u32::try_from(frame.len()).expect("frames are short");
    frame.resize(60, 0xa5);
    let expected = Packet {
        padding,
        ..found4(UDP, (40_000, 53), 28, &packet)
    };
    cases.push(Case {
        name: "ipv4-padded",
        frame,
        expected,
    });
    let packet6 = ipv6(59, &[]);
    let mut frame = ethernet(&[], 0x86dd, &packet6);
    frame.resize(60, 0xa5);
    let expected = Packet {
        padding: 6,
        ..found6(59, (0, 0), 40, &packet6)
    };
    cases.push(Case {
        name: "ipv6-padded",
        frame,
        expected,
    });
}

fn extensions(cases: &mut Vec<Case>) {
    for (name, number) in [
        ("ipv6-hop-by-hop", 0),
        ("ipv6-routing", 43),
        ("ipv6-destination", 60),
        ("ipv6-mobility", 135),
        ("ipv6-hip", 139),
        ("ipv6-shim6", 140),
    ] {
        let packet = ipv6(number, &extension(UDP, 2, &udp()));
        add6(
            cases,
            name,
            &packet,
            found6(UDP, (40_000, 53), 40 + 24 + 8, &packet),
        );
    }
    // RFC 4302: 24 bytes are written as 4.
    let authenticated = join(&[&[UDP, 4], &[0; 22], &udp()]);
    let packet = ipv6(51, &authenticated);
    add6(
        cases,
        "ipv6-ah",
        &packet,
        found6(UDP, (40_000, 53), 40 + 24 + 8, &packet),
    );
    let packet = ipv6(44, &fragment(UDP, ATOMIC, &udp()));
    add6(
        cases,
        "ipv6-atomic-fragment",
        &packet,
        found6(UDP, (40_000, 53), 40 + 8 + 8, &packet),
    );
    let chain = extension(
        43,
        0,
        &extension(44, 1, &fragment(51, ATOMIC, &join(&[&[60, 4], &[0; 22]]))),
    );
    let packet = ipv6(0, &join(&[&chain, &extension(TCP, 0, &tcp(&[], 0x10))]));
    let expected = found6(TCP, (40_000, 80), 40 + 8 + 16 + 8 + 24 + 8 + 20, &packet);
    add6(
        cases,
        "ipv6-all-extensions",
        &packet,
        Packet {
            tcp_flags: 0x10,
            ..expected
        },
    );
    let mut chain = udp();
    for next in [UDP, 60, 60, 60, 60, 60, 60, 60] {
        chain = extension(next, 0, &chain);
    }
    let packet = ipv6(60, &chain);
    add6(
        cases,
        "ipv6-eight-extensions",
        &packet,
        found6(UDP, (40_000, 53), 40 + 64 + 8, &packet),
    );
    let packet = ipv6(60, &extension(60, 0, &chain));
    add6(
        cases,
        "ipv6-nine-extensions",
        &packet,
        found6(60, (0, 0), 40 + 64, &packet),
    );
    let packet = ipv6(60, &extension(59, 0, &[]));
    add6(
        cases,
        "ipv6-extension-and-nothing",
        &packet,
        found6(59, (0, 0), 48, &packet),
    );
    // RFC 2675: the length is in the hop-by-hop header.
    let mut packet = ipv6(0, &extension(UDP, 0, &udp()));
    packet[4..6].fill(0);
    add6(
        cases,
        "ipv6-jumbogram",
        &packet,
        found6(UDP, (40_000, 53), 56, &packet),
    );
}

fn fragments(cases: &mut Vec<Case>) {
    for (name, field, part) in [
        ("ipv4-first-fragment", 0x2000, Fragment::First),
        ("ipv4-middle-fragment", 0x2008, Fragment::Later),
        ("ipv4-last-fragment", 0x0010, Fragment::Later),
        ("ipv4-fragment-at-8", 0x0001, Fragment::Later),
        ("ipv4-fragment-at-32768", 0x1000, Fragment::Later),
    ] {
        let packet = ipv4(&[], field, UDP, &udp());
        let whole = if part == Fragment::First {
            found4(UDP, (40_000, 53), 28, &packet)
        } else {
            found4(UDP, (0, 0), 20, &packet)
        };
        add4(
            cases,
            name,
            &packet,
            Packet {
                fragment: part,
                fragment_id: 0x0304,
                ..whole
            },
        );
    }
    for (name, place, part) in [
        ("ipv6-first-fragment", FIRST, Fragment::First),
        ("ipv6-middle-fragment", MIDDLE, Fragment::Later),
        ("ipv6-last-fragment", LAST, Fragment::Later),
        ("ipv6-fragment-at-8", 8, Fragment::Later),
        ("ipv6-fragment-at-32768", 0x8000, Fragment::Later),
    ] {
        let packet = ipv6(44, &fragment(UDP, place, &udp()));
        let whole = if part == Fragment::First {
            found6(UDP, (40_000, 53), 56, &packet)
        } else {
            found6(UDP, (0, 0), 48, &packet)
        };
        add6(
            cases,
            name,
            &packet,
            Packet {
                fragment: part,
                fragment_id: IDENTIFICATION,
                ..whole
            },
        );
    }
}

fn others(cases: &mut Vec<Case>) {
    for (name, ethertype) in [
        ("arp", 0x0806),
        ("lldp", 0x88cc),
        ("mpls", 0x8847),
        ("least-ethertype", 0x0600),
    ] {
        cases.push(Case {
            name,
            frame: ethernet(&[], ethertype, &[1; 46]),
            expected: other(ethertype, 14, 46),
        });
    }
    // 802.3: a length; Linux's ETH_P_802_2 is 4.
    for (name, length) in [("llc", 38), ("greatest-length", 0x05ff), ("no-length", 0)] {
        cases.push(Case {
            name,
            frame: ethernet(&[], length, &[0x42; 46]),
            expected: other(4, 14, 46),
        });
    }
    let frame = ethernet(&[0x8100], 0x0806, &[1; 46]);
    cases.push(Case {
        name: "802.1q-arp",
        frame,
        expected: other(0x0806, 18, 46),
    });
    cases.push(Case {
        name: "header-only",
        frame: ethernet(&[], 0x88cc, &[]),
        expected: other(0x88cc, 14, 0),
    });
}
