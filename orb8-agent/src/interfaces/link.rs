//! Reading rtnetlink's link and route messages.

use super::{Counters, Interface, LinkLayer, Role};
use crate::netlink::{Attributes, read_u16, read_u32, read_u64};

/// Attributes of `RTM_NEWLINK` (include/uapi/linux/if_link.h).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;

/// Hardware types that libc lacks (include/uapi/linux/if_arp.h).
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_IP6GRE: u16 = 823;

/// Attributes of `RTM_NEWROUTE` (include/uapi/linux/rtnetlink.h).
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;

/// A link as a message shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Link {
    /// With [`Role::Uplink`] unless it is a pair with an end elsewhere.
    pub(super) interface: Interface,
    /// Hardware address.
    pub(super) address: Vec<u8>,
}

/// Reads the payload of `RTM_NEWLINK` or `RTM_DELLINK`: `struct ifinfomsg` (family, type, index, flags, change) and
/// attributes. `None` for messages about something else than the link as such (a bridge's view of its ports).
pub(super) fn read_link(payload: &[u8]) -> Option<Link> {
    if i32::from(*payload.first()?) != libc::AF_UNSPEC {
        return None;
    }
    let hardware = read_u16(payload, 2)?;
    let ifindex = read_u32(payload, 4)?;
    let flags = read_u32(payload, 8)?.cast_signed();
    read_u32(payload, 12)?;
    let mut link = Link {
        interface: Interface {
            ifindex,
            name: String::new(),
            link: link_layer(hardware),
            peer_netnsid: None,
            peer_ifindex: None,
            kind: String::new(),
            loopback: flags & libc::IFF_LOOPBACK != 0,
            up: flags & libc::IFF_UP != 0,
            role: Role::Uplink,
            counters: Counters::default(),
        },
        address: Vec::new(),
    };
    let interface = &mut link.interface;
    let mut lower = None;
    for (kind, value) in Attributes::at(payload, 16) {
        match kind {
            IFLA_ADDRESS => link.address = value.to_vec(),
            IFLA_IFNAME => interface.name = text(value),
            IFLA_LINK => lower = read_u32(value, 0),
            IFLA_LINK_NETNSID => interface.peer_netnsid = read_u32(value, 0).map(u32::cast_signed),
            IFLA_STATS64 => interface.counters = counters(value).unwrap_or_default(),
            IFLA_LINKINFO => {
                let kind = Attributes::at(value, 0).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                interface.kind = kind.map(|(_, kind)| text(kind)).unwrap_or_default();
            }
            _ => {}
        }
    }
    if matches!(interface.kind.as_str(), "veth" | "netkit") {
        // Kernels before 5.16 leave the peer's number out where it equals our own.
        let lower = lower.or(interface.peer_netnsid.map(|_| ifindex));
        interface.peer_ifindex = lower.filter(|index| *index != 0);
        if interface.peer_netnsid.is_some() {
            interface.role = Role::Workload;
        }
    }
    Some(link)
}

/// Reads `struct rtnl_link_stats64`.
pub(super) fn counters(value: &[u8]) -> Option<Counters> {
    let field = |index: usize| read_u64(value, index * 8);
    Some(Counters {
        rx_packets: field(0)?,
        tx_packets: field(1)?,
        rx_bytes: field(2)?,
        tx_bytes: field(3)?,
        rx_dropped: field(6)?,
        tx_dropped: field(7)?,
    })
}

/// Interfaces that a default route of the main table leads through; empty for any other route. The payload is
/// `struct rtmsg` (family, destination and source length, TOS, table, protocol, scope, type, flags) and attributes.
pub(super) fn default_route(payload: &[u8]) -> Vec<u32> {
    let &[_, 0, _, _, table, _, _, kind, ..] = payload else {
        return Vec::new();
    };
    let mut table = u32::from(table);
    let mut interfaces = Vec::new();
    for (attribute, value) in Attributes::at(payload, 12) {
        match attribute {
            RTA_TABLE => table = read_u32(value, 0).unwrap_or(table),
            RTA_OIF => interfaces.extend(read_u32(value, 0)),
            RTA_MULTIPATH => interfaces.extend(next_hops(value)),
            _ => {}
        }
    }
    if table != u32::from(libc::RT_TABLE_MAIN) || kind != libc::RTN_UNICAST {
        interfaces.clear();
    }
    interfaces
}

/// Each is a `struct rtnexthop`: length, flags, hops, ifindex; attributes.
fn next_hops(mut value: &[u8]) -> Vec<u32> {
    let mut interfaces = Vec::new();
    while let (Some(length), Some(interface)) = (read_u16(value, 0), read_u32(value, 4)) {
        interfaces.push(interface);
        let length = usize::from(length).max(8).next_multiple_of(4);
        value = value.get(length..).unwrap_or_default();
    }
    interfaces
}

fn link_layer(hardware: u16) -> LinkLayer {
    match hardware {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => LinkLayer::Ethernet,
        libc::ARPHRD_NONE
        | ARPHRD_RAWIP
        | libc::ARPHRD_PPP
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_IPGRE
        | ARPHRD_IP6GRE => LinkLayer::Raw,
        other => LinkLayer::Unsupported(other),
    }
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
        body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        body.extend_from_slice(&kind.to_ne_bytes());
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }

    fn header(family: u8, hardware: u16, ifindex: u32) -> Vec<u8> {
        let mut body = vec![family, 0];
        body.extend_from_slice(&hardware.to_ne_bytes());
        body.extend_from_slice(&ifindex.to_ne_bytes());
        body.extend_from_slice(&libc::IFF_UP.to_ne_bytes());
        body.extend_from_slice(&[0; 4]);
        body
    }

    fn pair(kind: &[u8], lower: Option<u32>, nsid: Option<i32>) -> Link {
        let mut body = header(0, libc::ARPHRD_ETHER, 7);
        attribute(&mut body, IFLA_IFNAME, b"veth0\0");
        if let Some(lower) = lower {
            attribute(&mut body, IFLA_LINK, &lower.to_ne_bytes());
        }
        if let Some(nsid) = nsid {
            attribute(&mut body, IFLA_LINK_NETNSID, &nsid.to_ne_bytes());
        }
        let mut info = Vec::new();
        attribute(&mut info, IFLA_INFO_KIND, kind);
        attribute(&mut body, IFLA_LINKINFO, &info);
        let stats: Vec<u8> = (1..=24u64).flat_map(u64::to_ne_bytes).collect();
        attribute(&mut body, IFLA_STATS64, &stats);
        read_link(&body).unwrap()
    }

    #[test]
    fn roles() {
        let veth = pair(b"veth\0", Some(2), Some(0)).interface;
        assert_eq!(
            (veth.role, veth.peer_ifindex, veth.peer_netnsid),
            (Role::Workload, Some(2), Some(0))
        );
        assert_eq!(veth.name, "veth0");
        assert!(veth.up && !veth.loopback);
        assert_eq!(
            (
                veth.counters.rx_bytes,
                veth.counters.tx_packets,
                veth.counters.tx_dropped
            ),
            (3, 2, 8)
        );
        assert_eq!(
            pair(b"veth", None, Some(3)).interface.peer_ifindex,
            Some(7),
            "the same number there"
        );
        assert_eq!(pair(b"netkit", Some(2), Some(0)).interface.role, Role::Workload);
        assert_eq!(pair(b"veth", Some(2), None).interface.role, Role::Uplink);
        let macvlan = pair(b"macvlan", Some(2), Some(0)).interface;
        assert_eq!((macvlan.role, macvlan.peer_ifindex), (Role::Uplink, None));
    }

    #[test]
    fn link_layers_and_families() {
        for (hardware, layer) in [
            (1, LinkLayer::Ethernet),
            (772, LinkLayer::Ethernet),
            (0xfffe, LinkLayer::Raw),
            (768, LinkLayer::Raw),
            (776, LinkLayer::Raw),
            (280, LinkLayer::Unsupported(280)),
        ] {
            assert_eq!(read_link(&header(0, hardware, 1)).unwrap().interface.link, layer);
        }
        assert_eq!(
            read_link(&header(libc::AF_BRIDGE as u8, 1, 1)),
            None,
            "a port leaves its bridge"
        );
    }

    #[test]
    fn default_routes() {
        let mut route = vec![2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        let plain = route.clone();
        attribute(&mut route, RTA_OIF, &5u32.to_ne_bytes());
        assert_eq!(default_route(&route), [5]);
        let mut other = route.clone();
        other[1] = 24;
        assert_eq!(default_route(&other), [0u32; 0]);
        let mut unreachable = route.clone();
        unreachable[7] = 7;
        assert_eq!(default_route(&unreachable), [0u32; 0]);
        attribute(&mut route, RTA_TABLE, &100u32.to_ne_bytes());
        assert_eq!(default_route(&route), [0u32; 0]);
        let mut multipath = plain;
        let hops: Vec<u8> = [3u32, 4]
            .iter()
            .flat_map(|index| [&[8, 0, 0, 0][..], &index.to_ne_bytes()].concat())
            .collect();
        attribute(&mut multipath, RTA_MULTIPATH, &hops);
        assert_eq!(default_route(&multipath), [3, 4]);
    }

    proptest! {
        #[test]
        fn any_bytes(mut payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = payload.first_mut() {
                *first = 0;
            }
            read_link(&payload);
            default_route(&payload);
            prop_assert!(next_hops(&payload).len() <= payload.len() / 8 + 1);
        }
    }
}
