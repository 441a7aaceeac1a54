//! The packet parser: one generic function, compiled for the kernel and for the host's tests and fuzzer.
//!
//! Nothing in a packet is trusted. A header that is cut short or contradicts itself sets
//! [`kind::MALFORMED`]; what was read until then stays in the key, and the bytes are counted all the same.
//! [`common`] reads the commonest packets, straight from the linear part of an skb, and [`ethernet`] or [`raw`] all
//! others, wherever their bytes are, for a helper call a header. Where [`common`] has an answer it is the same as
//! theirs: the tests and the fuzzer hold the two against each other.

use orb8_common::network::{FlowKey, kind, protocol};

/// A frame that headers are read from.
#[expect(clippy::len_without_is_empty, reason = "nobody asks")]
pub trait Frame {
    /// Length of the frame in bytes, link-layer header included.
    fn len(&self) -> u32;

    /// The `T` at `offset`, or `None` if the frame ends before it does. `T` is an array of integers.
    fn load<T: Header>(&self, offset: u32) -> Option<T>;
}

/// Types that any bytes are a valid value of.
///
/// # Safety
/// Every bit pattern is valid and there is no padding.
pub unsafe trait Header: Copy {}
// SAFETY: arrays of integers have neither invalid bit patterns nor padding.
unsafe impl<const N: usize> Header for [u8; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Header for [u16; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Header for [u32; N] {}

/// What is needed to find the ports of a later fragment: 40 bytes, RFC 791 §2.3 and RFC 8200 §4.5.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentKey {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Identification.
    pub id: u32,
    /// Protocol of the fragmented packet.
    pub protocol: u32,
}

/// A packet's part in fragmentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fragment {
    /// Not fragmented.
    #[default]
    None,
    /// The first fragment, with the ports.
    First,
    /// A later one, without.
    Later,
}

/// What the parser found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Packet {
    /// The flow, but for `point` and the direction and socket bits.
    pub key: FlowKey,
    /// Layer-3 bytes of the frame (of the super-packet, if it is one).
    pub l3_bytes: u32,
    /// Bytes behind the IP packet.
    pub padding: u32,
    /// Headers that each segment of a super-packet repeats: link, IP and transport.
    pub header_len: u32,
    /// Identification of the fragmented packet; 0 for others.
    pub fragment_id: u32,
    /// Part in fragmentation.
    pub fragment: Fragment,
    /// TCP flags.
    pub tcp_flags: u8,
}

impl Packet {
    /// The key that all fragments of this packet share.
    #[inline(always)]
    #[must_use]
    pub fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            src: self.key.src,
            dst: self.key.dst,
            id: self.fragment_id,
            protocol: self.key.protocol as u32,
        }
    }
}

/// `EtherType`s (IEEE 802; include/uapi/linux/if_ether.h).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad tag.
    pub const QINQ: u16 = 0x88a8;
    /// Pre-standard QinQ tag.
    pub const QINQ_OLD: u16 = 0x9100;
    /// What Linux calls a frame with a length in place of a type (`ETH_P_802_2`).
    pub const LLC: u16 = 0x0004;
    /// The least value that is a type and not a length.
    pub const FIRST: u16 = 0x0600;
}

/// Length of an Ethernet header without tags.
pub const ETHERNET: u32 = 14;
const VLAN_TAG: u32 = 4;
/// Tags that are looked through; a frame with more is counted by the next tag's `EtherType`.
const MAX_TAGS: usize = 3;
/// Extension headers that are looked through (the kernel's own flow dissector stops at 16; real packets have one
/// or two).
const MAX_EXTENSIONS: usize = 8;

/// Parses the commonest packets into `packet`, which is fresh: TCP or UDP over IPv4 without options or IPv6 without
/// extension headers, whole, nothing odd. `ip` is where the IP header begins: 14 behind an Ethernet header without tags
/// (which is checked), or 0.
///
/// False for all others; `packet` is then not to be used.
#[inline(always)]
#[must_use]
pub fn common<F: Frame>(frame: &F, packet: &mut Packet, ip: u32) -> bool {
    let available = frame.len().wrapping_sub(ip);
    if available > MAX_COMMON {
        return false;
    }
    let version = if ip == ETHERNET {
        let Some(header) = frame.load::<[u16; 7]>(0) else {
            return false;
        };
        u16::from_be(header[6])
    } else {
        match frame.load::<[u8; 2]>(0) {
            Some([first, _]) if first >> 4 == 4 => ethertype::IPV4,
            _ => ethertype::IPV6,
        }
    };
    let (l3_bytes, ip_len, protocol);
    if version == ethertype::IPV4 {
        let Some(header) = frame.load::<[u32; 5]>(ip) else {
            return false;
        };
        let [version_ihl, _, length_high, length_low] = header[0].to_ne_bytes();
        // Fragment offset and "more fragments" (RFC 791 §3.1).
        if version_ihl != 0x45 || header[1] & u32::from_ne_bytes([0, 0, 0x3f, 0xff]) != 0 {
            return false;
        }
        packet.key.src = address(0, 0, u32::from_be(0xffff), header[3]);
        packet.key.dst = address(0, 0, u32::from_be(0xffff), header[4]);
        packet.key.kind = kind::IPV4;
        [_, protocol, _, _] = header[2].to_ne_bytes();
        l3_bytes = u32::from(u16::from_be_bytes([length_high, length_low]));
        ip_len = 20;
    } else if version == ethertype::IPV6 {
        let Some(header) = frame.load::<[u32; 10]>(ip) else {
            return false;
        };
        let [version_class, _, _, _] = header[0].to_ne_bytes();
        let [length_high, length_low, next, _] = header[1].to_ne_bytes();
        if version_class >> 4 != 6 {
            return false;
        }
        packet.key.src = address(header[2], header[3], header[4], header[5]);
        packet.key.dst = address(header[6], header[7], header[8], header[9]);
        packet.key.kind = kind::IPV6;
        protocol = next;
        l3_bytes = u32::from(u16::from_be_bytes([length_high, length_low])) + IPV6;
        ip_len = IPV6;
    } else {
        return false;
    }
    if l3_bytes > available {
        return false;
    }
    let transport_len;
    if protocol == protocol::TCP {
        let Some(tcp) = frame.load::<[u16; 7]>(ip + ip_len) else {
            return false;
        };
        packet.key.sport = u16::from_be(tcp[0]);
        packet.key.dport = u16::from_be(tcp[1]);
        let [data_offset, flags] = tcp[6].to_ne_bytes();
        packet.tcp_flags = flags;
        transport_len = u32::from(data_offset >> 4) * 4;
        if transport_len < 20 {
            return false;
        }
    } else if protocol == protocol::UDP {
        let Some(udp) = frame.load::<[u16; 2]>(ip + ip_len) else {
            return false;
        };
        packet.key.sport = u16::from_be(udp[0]);
        packet.key.dport = u16::from_be(udp[1]);
        transport_len = 8;
    } else {
        return false;
    }
    if ip_len + transport_len > l3_bytes {
        return false;
    }
    packet.key.protocol = protocol;
    packet.key.link_len = ip as u8;
    packet.l3_bytes = l3_bytes;
    packet.padding = available - l3_bytes;
    packet.header_len = ip + ip_len + transport_len;
    true
}

/// Longest IP packet that [`common`] takes: longer ones are super-packets whose length field cannot tell.
const MAX_COMMON: u32 = 0xffff;

/// Parses an Ethernet frame into `packet`, which is fresh. `stripped_tag_len` is 4 if a VLAN tag of the frame is
/// kept beside it (`skb->vlan_tci`).
#[inline(always)]
pub fn ethernet<F: Frame>(frame: &F, packet: &mut Packet, stripped_tag_len: u32, gso: bool) {
    packet.l3_bytes = frame.len();
    packet.key.link_len = stripped_tag_len as u8;
    let Some(header) = frame.load::<[u16; 7]>(0) else {
        packet.key.kind |= kind::MALFORMED;
        return;
    };
    let mut ethertype = u16::from_be(header[6]);
    let mut offset = ETHERNET;
    let mut tags = 0;
    while tags < MAX_TAGS && is_tag(ethertype) {
        let Some(tag) = frame.load::<[u16; 2]>(offset) else {
            packet.key.kind |= kind::MALFORMED;
            break;
        };
        ethertype = u16::from_be(tag[1]);
        offset += VLAN_TAG;
        tags += 1;
    }
    packet.key.link_len = (offset + stripped_tag_len) as u8;
    packet.header_len = offset + stripped_tag_len;
    network_layer(frame, packet, ethertype, offset, gso);
}

/// Parses a packet without link-layer header into `packet`, which is fresh; `ethertype` says what it is.
#[inline(always)]
pub fn raw<F: Frame>(frame: &F, packet: &mut Packet, ethertype: u16, gso: bool) {
    network_layer(frame, packet, ethertype, 0, gso);
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::VLAN | ethertype::QINQ | ethertype::QINQ_OLD)
}

#[inline(always)]
fn network_layer<F: Frame>(frame: &F, packet: &mut Packet, ethertype: u16, offset: u32, gso: bool) {
    packet.l3_bytes = frame.len().saturating_sub(offset);
    match ethertype {
        ethertype::IPV4 => ipv4(frame, packet, offset, gso),
        ethertype::IPV6 => ipv6(frame, packet, offset, gso),
        _ => {
            packet.key.sport = if ethertype < ethertype::FIRST {
                ethertype::LLC
            } else {
                ethertype
            };
        }
    }
}

/// A frame that says it is IP and is not: counted by its `EtherType`, marked.
#[inline(always)]
fn not_ip_after_all(packet: &mut Packet, ethertype: u16) {
    packet.key.kind |= kind::MALFORMED;
    packet.key.sport = ethertype;
}

/// RFC 791.
#[inline(always)]
fn ipv4<F: Frame>(frame: &F, packet: &mut Packet, offset: u32, gso: bool) {
    let Some(header) = frame.load::<[u32; 5]>(offset) else {
        return not_ip_after_all(packet, ethertype::IPV4);
    };
    let [version_ihl, _, length_high, length_low] = header[0].to_ne_bytes();
    let header_len = (version_ihl & 0xf) as u32 * 4;
    if version_ihl >> 4 != 4 || header_len < 20 {
        return not_ip_after_all(packet, ethertype::IPV4);
    }
    packet.key.kind |= kind::IPV4;
    packet.key.src = address(0, 0, u32::from_be(0xffff), header[3]);
    packet.key.dst = address(0, 0, u32::from_be(0xffff), header[4]);
    let [_, next, _, _] = header[2].to_ne_bytes();
    packet.key.protocol = next;
    packet.header_len += header_len;

    let available = packet.l3_bytes;
    let total = u16::from_be_bytes([length_high, length_low]) as u32;
    if total >= header_len && total <= available {
        packet.l3_bytes = total;
        packet.padding = available - total;
    } else if !(total == 0 && gso && header_len <= available) {
        // Length 0 is how the kernel writes super-packets of more than 64 KiB (BIG TCP).
        packet.key.kind |= kind::MALFORMED;
    }

    let [id_high, id_low, flags, fragment_low] = header[1].to_ne_bytes();
    let fragment_offset = u16::from_be_bytes([flags & 0x1f, fragment_low]);
    let more = flags & 0x20 != 0;
    if fragment_offset != 0 || more {
        packet.fragment_id = u16::from_be_bytes([id_high, id_low]) as u32;
        packet.fragment = if fragment_offset == 0 {
            Fragment::First
        } else {
            Fragment::Later
        };
    }
    // Nearly every packet has no options: then all offsets are constants.
    if header_len == 20 {
        transport(frame, packet, offset + 20, offset);
    } else {
        transport(frame, packet, offset + header_len, offset);
    }
}

/// RFC 8200, with the extension headers of RFC 7045 §4.
#[inline(always)]
fn ipv6<F: Frame>(frame: &F, packet: &mut Packet, offset: u32, gso: bool) {
    let Some(header) = frame.load::<[u32; 10]>(offset) else {
        return not_ip_after_all(packet, ethertype::IPV6);
    };
    let [version_class, _, _, _] = header[0].to_ne_bytes();
    if version_class >> 4 != 6 {
        return not_ip_after_all(packet, ethertype::IPV6);
    }
    packet.key.kind |= kind::IPV6;
    packet.key.src = address(header[2], header[3], header[4], header[5]);
    packet.key.dst = address(header[6], header[7], header[8], header[9]);
    let [length_high, length_low, next, _] = header[1].to_ne_bytes();
    packet.key.protocol = next;

    let available = packet.l3_bytes;
    let payload = u16::from_be_bytes([length_high, length_low]) as u32;
    // Payload length 0 is a jumbogram (RFC 2675) behind a hop-by-hop header, or a super-packet of more than 64 KiB.
    if !(payload == 0 && (gso || next == extension::HOP_BY_HOP)) {
        if payload + IPV6 <= available {
            packet.l3_bytes = payload + IPV6;
            packet.padding = available - (payload + IPV6);
        } else {
            packet.key.kind |= kind::MALFORMED;
        }
    }
    if is_extension(next) {
        extensions(frame, packet, offset);
    } else {
        packet.header_len += IPV6;
        transport(frame, packet, offset + IPV6, offset);
    }
}

/// Length of the IPv6 header.
const IPV6: u32 = 40;

/// IPv6 extension headers (IANA registry of that name).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const HIP: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    use extension::{AUTHENTICATION, DESTINATION, FRAGMENT, HIP, HOP_BY_HOP, MOBILITY, ROUTING, SHIM6};
    matches!(
        next,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6
    )
}

/// Walks the extension headers of the IPv6 packet at `ip`, then reads the transport header behind them. The
/// packet's protocol is the first extension header's number.
#[inline(always)]
fn extensions<F: Frame>(frame: &F, packet: &mut Packet, ip: u32) {
    let end = ip + packet.l3_bytes;
    let mut at = ip + IPV6;
    let mut walked = 0;
    while walked < MAX_EXTENSIONS && is_extension(packet.key.protocol) {
        let next = packet.key.protocol;
        // All are at least 8 bytes long; padding is not read as one.
        if at + 8 > end {
            packet.key.kind |= kind::MALFORMED;
            return;
        }
        let Some(header) = frame.load::<[u16; 4]>(at) else {
            packet.key.kind |= kind::MALFORMED;
            return;
        };
        let [following, len] = header[0].to_ne_bytes();
        packet.key.protocol = following;
        at += match next {
            extension::FRAGMENT => 8,
            // RFC 4302 §2.2: the authentication header counts in 4 bytes and less 2.
            extension::AUTHENTICATION => (len as u32 + 2) * 4,
            _ => (len as u32 + 1) * 8,
        };
        if next == extension::FRAGMENT {
            let place = u16::from_be(header[1]);
            // An "atomic" fragment (RFC 6946) has neither offset nor more to come: it is whole.
            if place & 0xfff9 != 0 {
                let [high, low] = [u16::from_be(header[2]), u16::from_be(header[3])];
                packet.fragment_id = (high as u32) << 16 | low as u32;
                if place & 0xfff8 != 0 {
                    packet.fragment = Fragment::Later;
                    break;
                }
                packet.fragment = Fragment::First;
            }
        }
        walked += 1;
    }
    if at > end {
        packet.key.kind |= kind::MALFORMED;
        return;
    }
    packet.header_len += at - ip;
    transport(frame, packet, at, ip);
}

/// An IPv6 address, or an IPv4 one as `::ffff:a.b.c.d`; words as on the wire. In halves of 8 bytes, which is how the
/// kernel's hash reads them soon after: smaller stores would have to drain first.
#[inline(always)]
const fn address(a: u32, b: u32, c: u32, d: u32) -> [u8; 16] {
    let halves = if cfg!(target_endian = "little") {
        [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
    } else {
        [(a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64]
    };
    // SAFETY: the same size, and any bytes are an address.
    unsafe { core::mem::transmute(halves) }
}

/// Ports or ICMP type and code of the header at `at`, which must lie within the IP packet that begins at `ip`:
/// padding is not read as ports.
#[inline(always)]
fn transport<F: Frame>(frame: &F, packet: &mut Packet, at: u32, ip: u32) {
    if packet.fragment == Fragment::Later {
        return;
    }
    let len = match packet.key.protocol {
        protocol::TCP => 20,
        protocol::UDP | protocol::UDPLITE => 8,
        protocol::SCTP => 12,
        protocol::ICMP | protocol::ICMPV6 => 4,
        _ => return,
    };
    packet.header_len += len;
    let end = ip + packet.l3_bytes;
    if at + len > end {
        packet.key.kind |= kind::MALFORMED;
        return;
    }
    if packet.key.protocol == protocol::TCP {
        let Some(tcp) = frame.load::<[u16; 7]>(at) else {
            packet.key.kind |= kind::MALFORMED;
            return;
        };
        packet.key.sport = u16::from_be(tcp[0]);
        packet.key.dport = u16::from_be(tcp[1]);
        let [data_offset, flags] = tcp[6].to_ne_bytes();
        packet.tcp_flags = flags;
        let header_len = (data_offset >> 4) as u32 * 4;
        if header_len < 20 || at + header_len > end {
            packet.key.kind |= kind::MALFORMED;
        } else {
            packet.header_len += header_len - 20;
        }
        return;
    }
    let Some(words) = frame.load::<[u16; 2]>(at) else {
        packet.key.kind |= kind::MALFORMED;
        return;
    };
    if matches!(packet.key.protocol, protocol::ICMP | protocol::ICMPV6) {
        let [icmp_type, code] = words[0].to_ne_bytes();
        packet.key.sport = icmp_type as u16;
        packet.key.dport = code as u16;
    } else {
        packet.key.sport = u16::from_be(words[0]);
        packet.key.dport = u16::from_be(words[1]);
    }
}
