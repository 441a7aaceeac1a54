//! What holds for every frame, however broken: shared by the property tests and the fuzz target.

use orb8_common::network::{kind, protocol};
use orb8_probes::network::parse::{self, Fragment, Frame, Header, Packet};

/// A frame of which the first `linear` bytes can be read, as the linear part of an skb.
struct Bytes<'a> {
    bytes: &'a [u8],
    linear: usize,
}

impl Frame for Bytes<'_> {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("frames are short")
    }

    fn load<T: Header>(&self, offset: u32) -> Option<T> {
        let start = offset as usize;
        let end = start + size_of::<T>();
        if end > self.linear.min(self.bytes.len()) {
            return None;
        }
        let header = &self.bytes[start..end];
        // SAFETY: `header` is as long as `T`, and any bytes are a `T`.
        Some(unsafe { header.as_ptr().cast::<T>().read_unaligned() })
    }
}

/// How a frame begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Link {
    Ethernet,
    /// No link-layer header; the `EtherType` of what is in it.
    Raw(u16),
}

/// What the kernel tells beside the bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) link: Link,
    /// A VLAN tag was taken out of the frame.
    pub(crate) stripped: bool,
    /// The frame is a super-packet.
    pub(crate) gso: bool,
}

impl Facts {
    pub(crate) const ETHERNET: Self = Self {
        link: Link::Ethernet,
        stripped: false,
        gso: false,
    };

    fn stripped_len(self) -> u32 {
        if self.stripped && self.link == Link::Ethernet {
            4
        } else {
            0
        }
    }
}

/// What the short cut makes of a frame of which the first `linear` bytes can be read; `None` if it leaves the frame to
/// others, or would not be asked in the kernel.
pub(crate) fn parse_common(bytes: &[u8], linear: usize, facts: Facts) -> Option<Packet> {
    let ip = match facts.link {
        Link::Ethernet if facts.stripped => return None,
        Link::Ethernet => parse::ETHERNET,
        Link::Raw(ethertype) => {
            // In the kernel the version nibble goes before the type that the skb has.
            let by_version = match bytes.first()? >> 4 {
                4 => parse::ethertype::IPV4,
                6 => parse::ethertype::IPV6,
                _ => return None,
            };
            if ethertype != by_version {
                return None;
            }
            0
        }
    };
    let mut packet = Packet::default();
    parse::common(&Bytes { bytes, linear }, &mut packet, ip).then_some(packet)
}

/// Parses a frame.
pub(crate) fn parse(bytes: &[u8], facts: Facts) -> Packet {
    let frame = Bytes {
        bytes,
        linear: bytes.len(),
    };
    let mut packet = Packet::default();
    match facts.link {
        Link::Ethernet => parse::ethernet(&frame, &mut packet, facts.stripped_len(), facts.gso),
        Link::Raw(ethertype) => parse::raw(&frame, &mut packet, ethertype, facts.gso),
    }
    packet
}

/// Parses `bytes`, and panics if the result contradicts itself or the frame.
pub(crate) fn check(bytes: &[u8], facts: Facts) -> Packet {
    let packet = parse(bytes, facts);
    lengths(bytes, facts, &packet);
    fields(&packet);
    unread(bytes, facts, &packet);
    flags(bytes, facts, &packet);
    packet
}

/// Panics if the short cut, which reaches `linear` bytes, finds anything else than the whole parser.
pub(crate) fn check_common(bytes: &[u8], linear: usize, facts: Facts) {
    if let Some(packet) = parse_common(bytes, linear, facts) {
        assert_eq!(packet, parse(bytes, facts), "{linear} bytes in reach");
    }
}

/// Every byte of the frame is counted once.
fn lengths(bytes: &[u8], facts: Facts, packet: &Packet) {
    let link = u32::from(packet.key.link_len) - facts.stripped_len();
    assert_eq!(
        (link + packet.l3_bytes + packet.padding) as usize,
        bytes.len(),
        "{packet:?}"
    );
    let whole = packet.key.kind & kind::MALFORMED == 0;
    if whole {
        assert!(
            packet.header_len <= u32::from(packet.key.link_len) + packet.l3_bytes,
            "{packet:?}"
        );
    }
    let least = match packet.key.kind & (kind::IPV4 | kind::IPV6) {
        kind::IPV4 => 20,
        kind::IPV6 => 40,
        _ => 0,
    };
    if whole {
        assert!(
            packet.header_len >= u32::from(packet.key.link_len) + least,
            "{packet:?}"
        );
    }
    assert!(packet.l3_bytes >= least, "{packet:?}");
}

/// No field holds what does not belong there.
fn fields(packet: &Packet) {
    let key = &packet.key;
    assert_eq!(
        key.kind & !(kind::IPV4 | kind::IPV6 | kind::MALFORMED),
        0,
        "{packet:?}"
    );
    assert_eq!((key.point, key.reserved), (0, 0), "{packet:?}");
    match key.kind & (kind::IPV4 | kind::IPV6) {
        0 => {
            assert_eq!(
                (key.src, key.dst, key.protocol, key.dport),
                ([0; 16], [0; 16], 0, 0),
                "{packet:?}"
            );
            assert_eq!(
                (packet.fragment, packet.padding),
                (Fragment::None, 0),
                "{packet:?}"
            );
            return assert_eq!(packet.tcp_flags, 0, "{packet:?}");
        }
        kind::IPV4 => {
            let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            assert_eq!(
                (&key.src[..12], &key.dst[..12]),
                (&mapped[..], &mapped[..]),
                "{packet:?}"
            );
        }
        kind::IPV6 => {}
        _ => panic!("two versions of IP: {packet:?}"),
    }
    match key.protocol {
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP => {}
        protocol::ICMP | protocol::ICMPV6 => assert!(key.sport <= 0xff && key.dport <= 0xff, "{packet:?}"),
        _ => assert_eq!((key.sport, key.dport), (0, 0), "{packet:?}"),
    }
    if key.protocol != protocol::TCP {
        assert_eq!(packet.tcp_flags, 0, "{packet:?}");
    }
    match packet.fragment {
        Fragment::None => assert_eq!(packet.fragment_id, 0, "{packet:?}"),
        Fragment::First => {}
        Fragment::Later => {
            assert_eq!((key.sport, key.dport, packet.tcp_flags), (0, 0, 0), "{packet:?}");
        }
    }
}

/// Neither padding nor payload is read as a header.
fn unread(bytes: &[u8], facts: Facts, packet: &Packet) {
    let link = u32::from(packet.key.link_len) - facts.stripped_len();
    let end = link + packet.l3_bytes;
    let first = if packet.key.kind & kind::MALFORMED == 0 {
        packet.header_len - facts.stripped_len()
    } else {
        end
    };
    let mut other = bytes.to_vec();
    for byte in &mut other[first as usize..] {
        *byte = !*byte;
    }
    assert_eq!(parse(&other, facts), *packet, "with other bytes from {first} on");
}

/// What the kernel tells beside the bytes changes what it is about, and nothing else.
fn flags(bytes: &[u8], facts: Facts, packet: &Packet) {
    if facts.link == Link::Ethernet && !facts.stripped {
        let mut tagged = parse(
            bytes,
            Facts {
                stripped: true,
                ..facts
            },
        );
        tagged.key.link_len -= 4;
        if tagged.header_len != 0 {
            tagged.header_len -= 4;
        }
        assert_eq!(tagged, *packet, "with a stripped tag");
    }
    if !facts.gso && packet.key.kind & kind::MALFORMED == 0 && packet.l3_bytes > 40 {
        assert_eq!(
            parse(bytes, Facts { gso: true, ..facts }),
            *packet,
            "as a super-packet"
        );
    }
}
