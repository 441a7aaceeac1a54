//! A flow as JSON: the contract with scripts. Fields are only ever added; unknown ones are left out.

use orb8_proto::v1::{
    Attribution, Direction, Endpoint, EndpointKind, Flow, Reporter, Service, observation_point::Point,
};
use serde::Serialize;

use crate::{ends, names, sanitise, timestamp};

/// One flow, in the order in which its fields are written.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct FlowRecord {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reporter: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ethertype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) icmp_type: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) icmp_code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) src: Option<EndRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dst: Option<EndRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<ServiceRecord>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) wire_ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wire_port: Option<u32>,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) wire_bytes: u64,
    pub(crate) frames: u64,
    pub(crate) frame_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tcp_flags: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rtt_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retransmits: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connect_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed_connects: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup_id: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) fragment: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) malformed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) remainder: bool,
}

/// One end of a flow.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct EndRecord {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) container: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) workload: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) unit: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) process: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) netns: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) cgroup: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) pod_uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) dns_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) node: String,
    pub(crate) attribution: String,
}

/// The Kubernetes Service that the connection was made to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ServiceRecord {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u32>,
    pub(crate) attribution: String,
}

/// A line of JSON, with its line end.
pub(crate) fn line(record: &impl Serialize) -> anyhow::Result<String> {
    let mut line = sanitise::json(serde_json::to_string(record)?);
    line.push('\n');
    Ok(line)
}

impl From<&Flow> for FlowRecord {
    fn from(flow: &Flow) -> Self {
        let ip = flow.ip_version != 0;
        let ports = ends::has_ports(flow);
        let point = flow.point.as_ref().and_then(|point| point.point.as_ref());
        Self {
            node: flow.node.clone(),
            reporter: match flow.reporter() {
                Reporter::Unspecified => None,
                Reporter::Source => Some("source"),
                Reporter::Destination => Some("destination"),
            },
            direction: match flow.direction() {
                Direction::Unspecified => None,
                Direction::Ingress => Some("ingress"),
                Direction::Egress => Some("egress"),
            },
            protocol: ip.then(|| names::protocol(flow.protocol).into_owned()),
            ethertype: (!ip && flow.ethertype != 0).then(|| names::ethertype_hex(flow.ethertype)),
            icmp_type: flow.icmp_type,
            icmp_code: flow.icmp_code,
            src: end(flow.src.as_ref(), ports),
            dst: end(flow.dst.as_ref(), ports),
            service: service(flow.service.as_ref()),
            wire_ip: flow.wire_ip.clone(),
            wire_port: (flow.wire_port != 0).then_some(flow.wire_port),
            packets: flow.packets,
            bytes: flow.bytes,
            wire_bytes: flow.wire_bytes,
            frames: flow.frames,
            frame_bytes: flow.frame_bytes,
            tcp_flags: if ip && flow.protocol == names::TCP {
                names::tcp_flags(flow.tcp_flags)
            } else {
                Vec::new()
            },
            rtt_us: flow.rtt_us,
            retransmits: flow.retransmits,
            connect_us: flow.connect_us,
            failed_connects: (flow.failed_connects > 0).then_some(flow.failed_connects),
            first: timestamp::rfc3339(flow.first.as_ref()),
            last: timestamp::rfc3339(flow.last.as_ref()),
            interface: match point {
                Some(Point::Interface(name)) if !name.is_empty() => Some(name.clone()),
                _ => None,
            },
            cgroup_id: match point {
                Some(Point::CgroupId(id)) => Some(*id),
                _ => None,
            },
            fragment: flow.fragment,
            malformed: flow.malformed,
            remainder: flow.remainder,
        }
    }
}

/// Nothing, if nothing is known of it.
pub(crate) fn service(service: Option<&Service>) -> Option<ServiceRecord> {
    let service = service.filter(|service| **service != Service::default())?;
    Some(ServiceRecord {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        ip: service.ip.clone(),
        port: (service.port != 0).then_some(service.port),
        attribution: attribution(service.attribution()),
    })
}

/// Nothing, if nothing is known of it.
pub(crate) fn end(end: Option<&Endpoint>, ports: bool) -> Option<EndRecord> {
    let end = end.filter(|end| **end != Endpoint::default())?;
    Some(EndRecord {
        ip: end.ip.clone(),
        port: (ports && end.port != 0).then_some(end.port),
        kind: match end.kind() {
            EndpointKind::Unspecified => None,
            kind => Some(short(kind.as_str_name(), "ENDPOINT_KIND_").replace('_', "-")),
        },
        namespace: end.namespace.clone(),
        pod: end.pod.clone(),
        container: end.container.clone(),
        workload: end.workload.clone(),
        unit: end.unit.clone(),
        process: end.process.clone(),
        pid: (end.pid != 0).then_some(end.pid),
        netns: end.netns.clone(),
        cgroup: end.cgroup.clone(),
        pod_uid: end.pod_uid.clone(),
        dns_name: end.dns_name.clone(),
        node: end.node.clone(),
        attribution: attribution(end.attribution()),
    })
}

/// How an end's name was found: `veth`, `cgroup`, `unknown`…
pub(crate) fn attribution(attribution: Attribution) -> String {
    short(attribution.as_str_name(), "ATTRIBUTION_")
}

/// `ENDPOINT_KIND_POD` → `pod`.
pub(crate) fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_written() {
        let empty = line(&FlowRecord::from(&Flow::default())).unwrap();
        assert_eq!(
            empty,
            "{\"packets\":0,\"bytes\":0,\"wire_bytes\":0,\"frames\":0,\"frame_bytes\":0}\n"
        );
    }

    #[test]
    fn what_is_not_ip_has_an_ethertype_and_no_protocol() {
        let arp = Flow {
            ethertype: 0x806,
            malformed: true,
            ..Flow::default()
        };
        let text = line(&FlowRecord::from(&arp)).unwrap();
        assert!(
            text.starts_with("{\"ethertype\":\"0x0806\",\"packets\"") && text.contains("\"malformed\":true")
        );
    }

    #[test]
    fn hostile_names_stay_data() {
        let src = Some(Endpoint {
            process: "\x1b[2J\u{9b}\u{202e}\"".into(),
            ..Endpoint::default()
        });
        let text = line(&FlowRecord::from(&Flow {
            src,
            ..Flow::default()
        }))
        .unwrap();
        assert!(!text.trim_end().contains(sanitise::is_hostile));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["src"]["process"], "\x1b[2J\u{9b}\u{202e}\"");
        assert_eq!(value["src"]["attribution"], "unknown");
    }
}
