//! ctnetlink's messages (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Endpoint, Translation, Tuple};
use crate::netlink::{Attributes, push_u32};

/// Multicast groups (include/uapi/linux/netfilter/nfnetlink_compat.h, nfnetlink.h).
pub(super) const GROUP_NEW: u32 = 1;
pub(super) const GROUP_DESTROY: u32 = 3;

/// `NFNL_SUBSYS_CTNETLINK`, in the upper byte of a message's type.
const SUBSYSTEM: u16 = 1 << 8;
/// Also the type of answers.
pub(super) const NEW: u16 = SUBSYSTEM;
pub(super) const GET: u16 = SUBSYSTEM | 1;
pub(super) const DELETE: u16 = SUBSYSTEM | 2;

/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
pub(super) const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;

/// `IPS_SRC_NAT`, `IPS_DST_NAT` (`nf_conntrack_common.h`): the connection's source, destination is translated.
pub(super) const SRC_NAT: u32 = 1 << 4;
pub(super) const DST_NAT: u32 = 1 << 5;

/// Protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
pub(super) const PROTOCOLS: [u8; 5] = [6, 17, 33, 132, 136];

/// A translated connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Connection {
    pub(super) protocol: u8,
    pub(super) client: Endpoint,
    pub(super) asked: Endpoint,
    pub(super) backend: Endpoint,
    pub(super) reply_to: Endpoint,
    /// `CTA_ID`: differs between connections of the same addresses, mostly.
    pub(super) id: u32,
    pub(super) status: u32,
}

impl Connection {
    /// Before any translation, as the client sees it.
    pub(super) fn original(&self) -> (Endpoint, Endpoint) {
        (self.client, self.asked)
    }

    /// Behind all translations, as the backend sees it.
    pub(super) fn last(&self) -> (Endpoint, Endpoint) {
        (self.reply_to, self.backend)
    }

    /// The destination is translated, the source is not yet.
    pub(super) fn middle(&self) -> (Endpoint, Endpoint) {
        (self.client, self.backend)
    }

    /// What a packet with `tuple` is in this connection; `None` if it is not of this connection.
    pub(super) fn translation(&self, tuple: &Tuple) -> Option<Translation> {
        let packet = ((tuple.src, tuple.sport), (tuple.dst, tuple.dport));
        let towards_backend = [self.original(), self.last(), self.middle()]
            .into_iter()
            .find_map(|(from, to)| match packet {
                _ if packet == (from, to) => Some(true),
                _ if packet == (to, from) => Some(false),
                _ => None,
            })?;
        Some(Translation {
            client: self.client,
            asked: self.asked,
            backend: self.backend,
            reply_to: self.reply_to,
            towards_backend,
        })
    }
}

/// What a message holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    Translated(Connection),
    /// Not translated, or of a protocol without ports.
    Untranslated,
    Malformed,
}

/// Reads a connection out of a message's payload. Allocates nothing.
pub(super) fn read(payload: &[u8]) -> Reading {
    let (mut original, mut reply, mut status, mut id) = (None, None, None, 0);
    for (kind, value) in Attributes::at(payload, HEADER) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(value),
            CTA_TUPLE_REPLY => reply = Some(value),
            CTA_STATUS => status = be32(value),
            CTA_ID => id = be32(value).unwrap_or_default(),
            _ => {}
        }
    }
    let Some(status) = status else {
        return Reading::Malformed;
    };
    if status & (SRC_NAT | DST_NAT) == 0 {
        return Reading::Untranslated;
    }
    let (Some(original), Some(reply)) = (original.and_then(tuple), reply.and_then(tuple)) else {
        return Reading::Malformed;
    };
    match (original, reply) {
        (Direction::Ports(original), Direction::Ports(reply)) if original.protocol == reply.protocol => {
            Reading::Translated(Connection {
                protocol: original.protocol,
                client: (original.src, original.sport),
                asked: (original.dst, original.dport),
                backend: (reply.src, reply.sport),
                reply_to: (reply.dst, reply.dport),
                id,
                status,
            })
        }
        (Direction::NoPorts, Direction::NoPorts) => Reading::Untranslated,
        _ => Reading::Malformed,
    }
}

enum Direction {
    Ports(Tuple),
    NoPorts,
}

fn tuple(attribute: &[u8]) -> Option<Direction> {
    let (mut src, mut dst) = (None, None);
    let (mut protocol, mut sport, mut dport) = (None, None, None);
    for (kind, value) in Attributes::at(attribute, 0) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in Attributes::at(value, 0) {
                    match kind {
                        CTA_IP_V4_SRC => src = v4(value),
                        CTA_IP_V4_DST => dst = v4(value),
                        CTA_IP_V6_SRC => src = v6(value),
                        CTA_IP_V6_DST => dst = v6(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in Attributes::at(value, 0) {
                    match kind {
                        CTA_PROTO_NUM => protocol = value.first().copied(),
                        CTA_PROTO_SRC_PORT => sport = be16(value),
                        CTA_PROTO_DST_PORT => dport = be16(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let protocol = protocol?;
    if !PROTOCOLS.contains(&protocol) {
        return Some(Direction::NoPorts);
    }
    Some(Direction::Ports(Tuple {
        protocol,
        src: src?,
        dst: dst?,
        sport: sport?,
        dport: dport?,
    }))
}

fn v4(value: &[u8]) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into())
}

fn v6(value: &[u8]) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into())
}

fn be16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// The body of a request for all connections whose status under `mask` is `wanted`.
pub(super) fn list(wanted: u32, mask: u32) -> Vec<u8> {
    let mut body = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    push_u32(&mut body, CTA_STATUS, wanted.to_be());
    push_u32(&mut body, CTA_STATUS_MASK, mask.to_be());
    body
}

/// The body of a request for one connection; `None` for a mixture of IPv4 and IPv6.
pub(super) fn lookup(tuple: &Tuple) -> Option<Vec<u8>> {
    let mut addresses = Vec::with_capacity(40);
    let family = match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            push(&mut addresses, CTA_IP_V4_SRC, &src.octets());
            push(&mut addresses, CTA_IP_V4_DST, &dst.octets());
            libc::AF_INET
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            push(&mut addresses, CTA_IP_V6_SRC, &src.octets());
            push(&mut addresses, CTA_IP_V6_DST, &dst.octets());
            libc::AF_INET6
        }
        _ => return None,
    };
    let mut ports = Vec::with_capacity(24);
    push(&mut ports, CTA_PROTO_NUM, &[tuple.protocol]);
    push(&mut ports, CTA_PROTO_SRC_PORT, &tuple.sport.to_be_bytes());
    push(&mut ports, CTA_PROTO_DST_PORT, &tuple.dport.to_be_bytes());
    let mut parts = Vec::with_capacity(72);
    push(&mut parts, CTA_TUPLE_IP | NLA_F_NESTED, &addresses);
    push(&mut parts, CTA_TUPLE_PROTO | NLA_F_NESTED, &ports);
    let mut body = Vec::with_capacity(80);
    body.extend_from_slice(&[family as u8, 0, 0, 0]);
    push(&mut body, CTA_TUPLE_ORIG | NLA_F_NESTED, &parts);
    Some(body)
}

/// Appends an attribute, padded.
fn push(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hexadecimal: &str) -> Vec<u8> {
        let digits: Vec<u8> = hexadecimal.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// A notification as `ctnetlink_conntrack_event` lays it out (little-endian): TCP from 10.9.1.2:40000 to 10.96.0.10:80, which nftables sent to
    /// 10.9.2.2:8080.
    fn notification() -> Vec<u8> {
        bytes(
            "02000000
             34000180 14000180 08000100 0a090102 08000200 0a60000a
                      1c000280 05000100 06000000 06000200 9c400000 06000300 00500000
             34000280 14000180 08000100 0a090202 08000200 0a090102
                      1c000280 05000100 06000000 06000200 1f900000 06000300 9c400000
             08000c00 deadbeef
             08000300 000001a8
             08000700 00000078
             30000480 2c000180 05000100 01000000 05000200 00000000 05000300 00000000
                      06000400 03000000 06000500 00000000",
        )
    }

    fn end(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().unwrap();
        (address.ip(), address.port())
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn reads_a_notification() {
        let Reading::Translated(connection) = read(&notification()) else {
            panic!("not read")
        };
        assert_eq!(connection.client, end("10.9.1.2:40000"));
        assert_eq!(connection.asked, end("10.96.0.10:80"));
        assert_eq!(connection.backend, end("10.9.2.2:8080"));
        assert_eq!(connection.reply_to, end("10.9.1.2:40000"));
        assert_eq!(
            (connection.protocol, connection.id, connection.status),
            (6, 0xdead_beef, 0x1a8)
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn passes_over_what_is_not_translated_or_has_no_ports() {
        let status = notification()
            .windows(4)
            .position(|bytes| bytes == [0, 0, 1, 0xa8])
            .unwrap();
        let mut untranslated = notification();
        untranslated[status + 3] = 0x88;
        assert_eq!(read(&untranslated), Reading::Untranslated);
        // As ICMP: no port, but an id.
        let mut icmp = notification();
        for i in 0..icmp.len() - 8 {
            if icmp[i..i + 8] == [5, 0, 1, 0, 6, 0, 0, 0] {
                icmp[i + 4] = 1;
            }
        }
        assert_eq!(read(&icmp), Reading::Untranslated);
        // Without a status, a destination, or an address of the right length.
        assert_eq!(read(&notification()[..4]), Reading::Malformed);
        let mut nameless = notification();
        nameless[6] = 99;
        assert_eq!(read(&nameless), Reading::Malformed);
    }

    #[test]
    fn a_request_repeats_the_tuple() {
        for (src, dst) in [("10.0.0.1:5", "10.0.0.2:6"), ("[fd00::1]:5", "[fd00::2]:6")] {
            let (src, dst) = (end(src), end(dst));
            let asked = Tuple {
                protocol: 17,
                src: src.0,
                dst: dst.0,
                sport: src.1,
                dport: dst.1,
            };
            let body = lookup(&asked).unwrap();
            let (kind, value) = Attributes::at(&body, HEADER).next().unwrap();
            assert_eq!(kind, CTA_TUPLE_ORIG);
            let Some(Direction::Ports(read)) = tuple(value) else {
                panic!("not read")
            };
            assert_eq!(read, asked);
            let mixed = Tuple {
                dst: if dst.0.is_ipv4() {
                    end("[::1]:1").0
                } else {
                    end("127.0.0.1:1").0
                },
                ..asked
            };
            assert_eq!(lookup(&mixed), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            read(&bytes);
            tuple(&bytes);
        }

        #[test]
        #[cfg(target_endian = "little")]
        fn a_real_message_cut_or_damaged_is_read_or_refused(
            length in 0usize..212,
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let whole = notification();
            let cut = &whole[..length.min(whole.len())];
            if let Reading::Translated(connection) = read(cut) {
                // Nothing is made up of half a message.
                prop_assert_eq!(Reading::Translated(connection), read(&whole));
            }
            let mut damaged = cut.to_vec();
            for (index, byte) in damage {
                if !damaged.is_empty() {
                    let at = index.index(damaged.len());
                    damaged[at] = byte;
                }
            }
            if let Reading::Translated(connection) = read(&damaged) {
                prop_assert!(PROTOCOLS.contains(&connection.protocol));
                prop_assert!(connection.status & (SRC_NAT | DST_NAT) != 0);
            }
        }
    }
}
