//! Flows as messages of the protocol.

use orb8_common::network::{kind, protocol};
use orb8_proto::v1;
use prost_types::Timestamp;

use super::{Direction, delta::Delta, filter::display, flows::Flow, interned::Via};
use crate::identity::owner::{Attribution, Kind, Owner, PodName};

/// What is known of a flow beside its packets.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    pub(crate) reporter: &'a Owner,
    pub(crate) peer: &'a Owner,
    /// Whether the peer's own observation named it.
    pub(crate) peer_reported: bool,
    pub(crate) interface: Option<&'a str>,
    pub(crate) via: Option<&'a Via>,
    pub(crate) node: &'a str,
}

/// The message of a flow.
pub(crate) fn flow(flow: &Flow, delta: &Delta, known: &Known<'_>) -> v1::Flow {
    let &Known {
        reporter,
        peer,
        peer_reported,
        interface,
        via,
        node,
    } = known;
    let key = &flow.key;
    let egress = flow.direction() == Direction::Egress;
    let ip_version = match key.kind & (kind::IPV4 | kind::IPV6) {
        kind::IPV4 => 4,
        kind::IPV6 => 6,
        _ => 0,
    };
    let is_ip = ip_version != 0;
    let icmp =
        is_ip && key.kind & kind::FRAGMENT == 0 && matches!(key.protocol, protocol::ICMP | protocol::ICMPV6);
    let own = endpoint(reporter, true);
    let mut other = endpoint(peer, false);
    if peer_reported {
        other.attribution = v1::Attribution::PeerReport.into();
    }
    if flow.is_remainder() {
        // Many flows have many peers.
        other = v1::Endpoint::default();
    }
    let (mut src, mut dst) = if egress { (own, other) } else { (other, own) };
    if is_ip {
        src.ip = display(&key.src);
        dst.ip = display(&key.dst);
    }
    if flow.has_ports() {
        src.port = u32::from(key.sport);
        dst.port = u32::from(key.dport);
    }
    // What the packets carry at the peer's end, where that is not the peer's own address.
    let mut wire = None;
    if let Some(via) = via
        && is_ip
    {
        let real = if egress { via.dst } else { via.src };
        let carried = if egress { &dst } else { &src };
        if real.is_some() {
            wire = Some((carried.ip.clone(), carried.port));
        }
        for (end, real) in [(&mut src, via.src), (&mut dst, via.dst)] {
            if let Some((address, port)) = real {
                end.ip = address.to_string();
                end.port = u32::from(port);
            }
        }
    }
    let (wire_ip, wire_port) = wire.unwrap_or_default();
    let service = via.and_then(service).or_else(|| {
        // The backend is not known: the peer is the Service itself.
        let (namespace, name) = peer.alias.split_once('/')?;
        (peer.kind == Kind::Service).then(|| {
            let end = if egress { &dst } else { &src };
            v1::Service {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                ip: end.ip.clone(),
                port: end.port,
                attribution: v1::Attribution::ServiceIp.into(),
            }
        })
    });
    let socket = key.kind & kind::SOCKET != 0;
    let tcp = is_ip && key.protocol == protocol::TCP;
    v1::Flow {
        node: node.to_owned(),
        reporter: if egress {
            v1::Reporter::Source
        } else {
            v1::Reporter::Destination
        }
        .into(),
        direction: if egress {
            v1::Direction::Egress
        } else {
            v1::Direction::Ingress
        }
        .into(),
        ip_version,
        protocol: if is_ip { u32::from(key.protocol) } else { 0 },
        ethertype: if is_ip || flow.is_remainder() {
            0
        } else {
            u32::from(key.sport)
        },
        src: Some(src),
        dst: Some(dst),
        icmp_type: icmp.then_some(u32::from(key.sport)),
        icmp_code: icmp.then_some(u32::from(key.dport)),
        packets: delta.packets,
        bytes: delta.bytes,
        wire_bytes: delta.wire_bytes(key.link_len),
        frames: delta.frames(),
        frame_bytes: delta.frame_bytes(key.link_len),
        tcp_flags: delta.tcp_flags,
        rtt_us: (flow.rtt_us != 0).then_some(flow.rtt_us),
        // Only the sender knows what it sent again, and only a connection that was looked at has a count.
        retransmits: (tcp && egress && (flow.rtt_us != 0 || delta.retransmits != 0))
            .then_some(delta.retransmits),
        connect_us: (flow.connect_us != 0).then_some(flow.connect_us),
        failed_connects: delta.failed_connects,
        first: delta.has_packets().then(|| timestamp(delta.first_ns)),
        last: delta.has_packets().then(|| timestamp(delta.last_ns)),
        point: Some(v1::ObservationPoint {
            point: if socket {
                Some(v1::observation_point::Point::CgroupId(key.point))
            } else {
                interface.map(|name| v1::observation_point::Point::Interface(name.to_owned()))
            },
            ifindex: if socket {
                0
            } else {
                u32::try_from(key.point).unwrap_or(0)
            },
        }),
        fragment: key.kind & kind::FRAGMENT != 0,
        malformed: key.kind & kind::MALFORMED != 0,
        remainder: flow.is_remainder(),
        service,
        wire_ip,
        wire_port,
    }
}

fn service(via: &Via) -> Option<v1::Service> {
    let (namespace, name) = via.service.split_once('/')?;
    let (ip, port) = match via.asked {
        Some((address, port)) => (address.to_string(), u32::from(port)),
        None => (String::new(), 0),
    };
    Some(v1::Service {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ip,
        port,
        attribution: attribution(via.attribution).into(),
    })
}

/// An end without its address. The reporter's own end is on this machine, whatever else is known of it.
pub(crate) fn endpoint(owner: &Owner, own: bool) -> v1::Endpoint {
    let kind = match owner.kind {
        Kind::External if own => v1::EndpointKind::Host,
        Kind::External => v1::EndpointKind::External,
        Kind::Host => v1::EndpointKind::Host,
        Kind::Process => v1::EndpointKind::Process,
        Kind::Pod => v1::EndpointKind::Pod,
        Kind::Service => v1::EndpointKind::Service,
        Kind::Node => v1::EndpointKind::Node,
        Kind::ApiServer => v1::EndpointKind::KubeApiserver,
    };
    let pod = owner.pod.as_deref();
    let (namespace, name) = pod.map(PodName::parts).unwrap_or_default();
    let (mut node, mut dns_name, mut namespace) = (String::new(), String::new(), namespace.to_owned());
    match owner.kind {
        Kind::Node | Kind::ApiServer => node.clone_from(&owner.alias),
        Kind::External => dns_name.clone_from(&owner.alias),
        Kind::Service => {
            let of = owner.alias.split_once('/').unwrap_or_default().0;
            of.clone_into(&mut namespace);
        }
        _ => node = pod.map(|pod| pod.node.clone()).unwrap_or_default(),
    }
    v1::Endpoint {
        kind: kind.into(),
        namespace,
        pod: name.to_owned(),
        pod_uid: pod.map(|pod| pod.uid.clone()).unwrap_or_default(),
        workload: pod.map(|pod| pod.workload.clone()).unwrap_or_default(),
        container: owner.container.clone(),
        unit: owner.unit.clone(),
        process: owner.process.clone(),
        pid: owner.pid,
        netns: owner.netns.clone(),
        cgroup: owner.cgroup.clone(),
        attribution: attribution(owner.attribution).into(),
        node,
        dns_name,
        ..v1::Endpoint::default()
    }
}

fn attribution(attribution: Attribution) -> v1::Attribution {
    match attribution {
        Attribution::Unknown => v1::Attribution::Unknown,
        Attribution::Veth => v1::Attribution::Veth,
        Attribution::Cgroup => v1::Attribution::Cgroup,
        Attribution::HostIp => v1::Attribution::HostIp,
        Attribution::NetnsIp => v1::Attribution::NetnsIp,
        Attribution::Socket => v1::Attribution::Socket,
        Attribution::PeerReport => v1::Attribution::PeerReport,
        Attribution::PodIp => v1::Attribution::PodIp,
        Attribution::ServiceIp => v1::Attribution::ServiceIp,
        Attribution::NodeIp => v1::Attribution::NodeIp,
        Attribution::Dns => v1::Attribution::Dns,
        Attribution::Endpoint => v1::Attribution::Endpoint,
        Attribution::Conntrack => v1::Attribution::Conntrack,
    }
}

/// Unix time in nanoseconds as the protocol has it.
pub(crate) fn timestamp(ns: u64) -> Timestamp {
    Timestamp {
        seconds: (ns / 1_000_000_000).cast_signed(),
        nanos: i32::try_from(ns % 1_000_000_000).unwrap_or_default(),
    }
}
