//! The two ends of a flow: which is the reporter's own, and what each is called.

use orb8_proto::v1::{Direction, Endpoint, EndpointKind, Flow, Reporter, Service, observation_point::Point};

use crate::names;

/// Digits of a container's id that are shown.
const CONTAINER_DIGITS: usize = 12;

/// Whether the reporter's own end sent the flow.
pub(crate) fn sent(flow: &Flow) -> bool {
    match (flow.direction(), flow.reporter()) {
        (Direction::Egress, _) => true,
        (Direction::Ingress, _) => false,
        (Direction::Unspecified, reporter) => reporter != Reporter::Destination,
    }
}

/// The end whose interface or socket reported the flow, if it has one.
pub(crate) const fn own(flow: &Flow, sent: bool) -> Option<&Endpoint> {
    if sent {
        flow.src.as_ref()
    } else {
        flow.dst.as_ref()
    }
}

/// The other end.
pub(crate) const fn peer(flow: &Flow, sent: bool) -> Option<&Endpoint> {
    own(flow, !sent)
}

/// Name of the reporter's own end: owner, else where it was counted, else its address.
pub(crate) fn own_name(flow: &Flow) -> String {
    let own = own(flow, sent(flow));
    own.and_then(|own| name_in(flow, own))
        .or_else(|| point(flow))
        .or_else(|| own.map(|own| own.ip.clone()))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "(unknown)".to_owned())
}

/// Name of the other end: owner, else address.
pub(crate) fn peer_name(flow: &Flow) -> String {
    if flow.remainder {
        return "(no room)".to_owned();
    }
    peer(flow, sent(flow))
        .and_then(|peer| name_in(flow, peer).or_else(|| (!peer.ip.is_empty()).then(|| peer.ip.clone())))
        .unwrap_or_else(|| {
            if flow.ip_version == 0 {
                "(not IP)".to_owned()
            } else {
                "(unknown)".to_owned()
            }
        })
}

/// [`name`]; an address of a Service is called by the Service.
fn name_in(flow: &Flow, end: &Endpoint) -> Option<String> {
    flow.service
        .as_ref()
        .filter(|_| end.kind() == EndpointKind::Service)
        .and_then(|service| service_name(service, flow.protocol))
        .map(|name| format!("service {name}"))
        .or_else(|| name(end))
}

/// `namespace/name:port`, with `/udp` and so on unless it is TCP; nothing if it has no name.
pub(crate) fn service_name(service: &Service, protocol: u32) -> Option<String> {
    if service.name.is_empty() {
        return None;
    }
    let mut text = qualified(&service.namespace, &service.name);
    if service.port != 0 {
        text.push_str(&format!(":{}", service.port));
    }
    if protocol != names::TCP {
        text.push_str(&format!("/{}", names::protocol(protocol).to_ascii_lowercase()));
    }
    Some(text)
}

/// `namespace/name`, or the name alone.
pub(crate) fn qualified(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

/// [`name`], with the container of a pod where it is known.
pub(crate) fn full_name(end: &Endpoint) -> Option<String> {
    let name = name(end)?;
    Some(if end.pod.is_empty() || end.container.is_empty() {
        name
    } else {
        format!("{name} ({})", end.container)
    })
}

/// The shortest name of an end's owner that tells it from others, if it has any.
pub(crate) fn name(end: &Endpoint) -> Option<String> {
    if !end.pod.is_empty() {
        return Some(qualified(&end.namespace, &end.pod));
    }
    if end.kind() == EndpointKind::KubeApiserver {
        return Some("kube-apiserver".to_owned());
    }
    let container = end.container.get(..CONTAINER_DIGITS).unwrap_or(&end.container);
    let known = [
        &end.workload,
        container,
        &end.unit,
        &end.process,
        &end.netns,
        &end.cgroup,
    ]
    .into_iter()
    .find(|name| !name.is_empty());
    known.map(str::to_owned).or_else(|| match end.kind() {
        // Its name has not been told.
        _ if !end.pod_uid.is_empty() => Some(format!("pod {}", end.pod_uid)),
        EndpointKind::Host | EndpointKind::Node if !end.node.is_empty() => Some(format!("node/{}", end.node)),
        EndpointKind::Host => Some("(host)".to_owned()),
        EndpointKind::Node if !end.ip.is_empty() => Some(format!("node {}", end.ip)),
        _ if !end.dns_name.is_empty() => Some(end.dns_name.clone()),
        _ => None,
    })
}

/// Where the flow was counted.
fn point(flow: &Flow) -> Option<String> {
    match flow.point.as_ref()?.point.as_ref()? {
        Point::Interface(name) if name.is_empty() => None,
        Point::Interface(name) => Some(format!("dev {name}")),
        Point::CgroupId(id) => Some(format!("cgroup {id}")),
    }
}

/// `10.0.0.5:443`, `[fd00::1]:443`, or the address alone; empty if unknown.
pub(crate) fn socket(end: Option<&Endpoint>, ports: bool) -> String {
    match end {
        Some(end) if !ports => end.ip.clone(),
        Some(end) => address(&end.ip, end.port),
        None => String::new(),
    }
}

/// As [`socket`]; without a port, the address alone.
pub(crate) fn address(ip: &str, port: u32) -> String {
    if ip.is_empty() || port == 0 {
        ip.to_owned()
    } else if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// Whether the flow's ports are ports.
pub(crate) const fn has_ports(flow: &Flow) -> bool {
    flow.ip_version != 0 && !names::is_icmp(flow.protocol)
}

/// What the flow is about: the Service `shop/db:80`, else `:443 https`, `:53/udp domain`, `ICMP echo`, `ARP`, `:9000-9001`…
pub(crate) fn service(flow: &Flow) -> String {
    if flow.remainder {
        return "remainder".to_owned();
    }
    if flow.ip_version == 0 {
        return match flow.ethertype {
            0 => "not IP".to_owned(),
            ethertype => names::ethertype(ethertype).into_owned(),
        };
    }
    let kubernetes = flow
        .service
        .as_ref()
        .and_then(|service| service_name(service, flow.protocol));
    if let Some(name) = kubernetes {
        return name;
    }
    let protocol = names::protocol(flow.protocol);
    if names::is_icmp(flow.protocol) {
        let kind = flow.icmp_type.and_then(|kind| names::icmp(flow.protocol, kind));
        return match (kind, flow.icmp_type) {
            (Some(kind), _) => format!("{protocol} {kind}"),
            (None, Some(kind)) => format!("{protocol} type {kind}"),
            (None, None) => protocol.into_owned(),
        };
    }
    if flow.malformed {
        return format!("{protocol} malformed");
    }
    if flow.fragment {
        return format!("{protocol} fragment");
    }
    let Some(port) = service_port(flow) else {
        return if protocol.parse::<u32>().is_ok() {
            format!("IP proto {protocol}")
        } else {
            protocol.into_owned()
        };
    };
    let suffix = if flow.protocol == names::TCP {
        String::new()
    } else {
        format!("/{}", protocol.to_ascii_lowercase())
    };
    match names::service(port) {
        Some(name) => format!(":{port}{suffix} {name}"),
        None => format!(":{port}{suffix}"),
    }
}

/// [`service`], for where there is little room: without the Service's namespace where a pod beside it has the same.
pub(crate) fn short_service(flow: &Flow) -> String {
    let Some(service_of) = &flow.service else {
        return service(flow);
    };
    let beside = [&flow.src, &flow.dst]
        .into_iter()
        .flatten()
        .any(|end| !end.pod.is_empty() && end.namespace == service_of.namespace);
    if beside && !flow.remainder {
        let short = Service {
            namespace: String::new(),
            ..service_of.clone()
        };
        return service_name(&short, flow.protocol).unwrap_or_else(|| service(flow));
    }
    service(flow)
}

/// The serving end's port: where a lone SYN goes, else the port that is known to serve, else the lower one.
fn service_port(flow: &Flow) -> Option<u32> {
    let src = flow.src.as_ref().map_or(0, |end| end.port);
    let dst = flow.dst.as_ref().map_or(0, |end| end.port);
    let lone_syn = flow.protocol == names::TCP && flow.tcp_flags & 0x12 == 0x02;
    let port = match (src, dst) {
        (0, 0) => return None,
        (0, port) | (port, 0) => port,
        _ if lone_syn => dst,
        _ => match (names::service(src), names::service(dst)) {
            (Some(_), None) => src,
            (None, Some(_)) => dst,
            _ => src.min(dst),
        },
    };
    Some(port)
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::ObservationPoint;

    use super::*;

    fn end(port: u32) -> Endpoint {
        Endpoint {
            ip: "10.0.0.1".into(),
            port,
            ..Endpoint::default()
        }
    }

    fn tcp(src: u32, dst: u32, tcp_flags: u32) -> Flow {
        Flow {
            ip_version: 4,
            protocol: 6,
            src: Some(end(src)),
            dst: Some(end(dst)),
            tcp_flags,
            ..Flow::default()
        }
    }

    #[test]
    fn own_end_follows_the_direction() {
        let mut flow = tcp(1, 2, 0);
        flow.set_direction(Direction::Ingress);
        assert_eq!(own(&flow, sent(&flow)).unwrap().port, 2);
        flow.set_direction(Direction::Unspecified);
        flow.set_reporter(Reporter::Destination);
        assert_eq!(own(&flow, sent(&flow)).unwrap().port, 2);
    }

    #[test]
    fn names_of_owners() {
        let id = "0123456789abcdef";
        let container = Endpoint {
            container: id.into(),
            unit: "u.service".into(),
            ..Endpoint::default()
        };
        assert_eq!(name(&container).unwrap(), "0123456789ab");
        let pod = Endpoint {
            namespace: "shop".into(),
            pod: "cart".into(),
            ..container
        };
        assert_eq!(name(&pod).unwrap(), "shop/cart");
        assert_eq!(full_name(&pod).unwrap(), format!("shop/cart ({id})"));
        for (kind, node, dns_name, expected) in [
            (EndpointKind::Node, "n2", "", "node/n2"),
            (EndpointKind::Node, "", "", "node 10.0.0.1"),
            (EndpointKind::Host, "n1", "", "node/n1"),
            (EndpointKind::External, "", "api.example.com", "api.example.com"),
            (EndpointKind::KubeApiserver, "n1", "", "kube-apiserver"),
        ] {
            let named = Endpoint {
                kind: kind.into(),
                node: node.into(),
                dns_name: dns_name.into(),
                ..end(1)
            };
            assert_eq!(name(&named).unwrap(), expected);
        }
        assert_eq!(name(&end(1)), None);
        // A name that is no ASCII may not be cut within a character.
        let odd = Endpoint {
            container: "ääääääääääää".into(),
            ..Endpoint::default()
        };
        assert!(name(&odd).is_some());
    }

    #[test]
    fn a_remainder_is_named_by_its_point() {
        let point = Some(ObservationPoint {
            point: Some(Point::Interface("veth1".into())),
            ifindex: 3,
        });
        let flow = Flow {
            remainder: true,
            point,
            ..Flow::default()
        };
        assert_eq!(
            (own_name(&flow).as_str(), peer_name(&flow).as_str()),
            ("dev veth1", "(no room)")
        );
    }

    #[test]
    fn hosts_among_others_have_their_node_s_name() {
        let mut flow = Flow {
            node: "n1".into(),
            ..tcp(40000, 80, 0x02)
        };
        flow.src.as_mut().unwrap().set_kind(EndpointKind::Host);
        assert_eq!(own_name(&flow), "(host)");
        flow.src.as_mut().unwrap().node = "n1".into();
        assert_eq!(
            (own_name(&flow).as_str(), peer_name(&flow).as_str()),
            ("node/n1", "10.0.0.1")
        );
    }

    #[test]
    fn a_service_is_called_by_its_name() {
        let mut flow = tcp(40000, 80, 0x02);
        flow.service = Some(Service {
            namespace: "shop".into(),
            name: "db".into(),
            port: 5432,
            ..Service::default()
        });
        assert_eq!(service(&flow), "shop/db:5432");
        flow.dst.as_mut().unwrap().set_kind(EndpointKind::Service);
        assert_eq!(peer_name(&flow), "service shop/db:5432");
        flow.protocol = 17;
        assert_eq!(service(&flow), "shop/db:5432/udp");
        assert_eq!(short_service(&flow), "shop/db:5432/udp");
        let client = flow.src.as_mut().unwrap();
        client.namespace = "shop".into();
        client.pod = "cart-0".into();
        assert_eq!(short_service(&flow), "db:5432/udp");
    }

    #[test]
    fn services() {
        assert_eq!(service(&tcp(50000, 443, 0x1b)), ":443 https");
        assert_eq!(service(&tcp(443, 50000, 0x1b)), ":443 https");
        assert_eq!(service(&tcp(1024, 40000, 0x02)), ":40000");
        let udp = Flow {
            protocol: 17,
            ..tcp(50000, 53, 0)
        };
        assert_eq!(service(&udp), ":53/udp domain");
        let icmp = Flow {
            ip_version: 6,
            protocol: 58,
            icmp_type: Some(128),
            ..Flow::default()
        };
        assert_eq!(service(&icmp), "ICMPv6 echo");
        assert_eq!(
            service(&Flow {
                ethertype: 0x806,
                ..Flow::default()
            }),
            "ARP"
        );
        assert_eq!(
            service(&Flow {
                ip_version: 4,
                protocol: 47,
                ..Flow::default()
            }),
            "IP proto 47"
        );
        assert_eq!(
            socket(
                Some(&Endpoint {
                    ip: "::1".into(),
                    port: 1,
                    ..Endpoint::default()
                }),
                true
            ),
            "[::1]:1"
        );
    }
}
