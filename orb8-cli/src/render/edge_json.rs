//! An edge as JSON: fields are only ever added; unknown ones are left out.

use orb8_proto::edges::{Counts, Edge};
use serde::Serialize;

use super::flow_json::{self, EndRecord, ServiceRecord};
use crate::{edge, ends, names, timestamp};

/// One edge, in the order in which its fields are written.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct EdgeRecord {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sent: Option<CountsRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) received: Option<CountsRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) elsewhere: Option<CountsRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lost_packets: Option<i128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lost_bytes: Option<i128>,
    /// Whether the difference is final, as far as is known.
    pub(crate) settled: bool,
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
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) fragment: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) malformed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) remainder: bool,
}

/// What was counted at one end.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct CountsRecord {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) node: String,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) wire_bytes: u64,
}

impl From<&Counts> for CountsRecord {
    fn from(counts: &Counts) -> Self {
        Self {
            node: counts.node.clone(),
            packets: counts.packets,
            bytes: counts.bytes,
            wire_bytes: counts.wire_bytes,
        }
    }
}

impl EdgeRecord {
    /// Of an edge, whose difference is final if `settled`.
    pub(crate) fn new(edge: &Edge, settled: bool) -> Self {
        let ip = edge.ip_version != 0;
        let ports = ends::has_ports(&edge::as_flow(edge));
        Self {
            protocol: ip.then(|| names::protocol(edge.protocol).into_owned()),
            ethertype: (!ip && edge.ethertype != 0).then(|| names::ethertype_hex(edge.ethertype)),
            icmp_type: edge.icmp_type,
            icmp_code: edge.icmp_code,
            src: flow_json::end(edge.src.as_ref(), ports),
            dst: flow_json::end(edge.dst.as_ref(), ports),
            service: flow_json::service(edge.service.as_ref()),
            sent: edge.sent.as_ref().map(CountsRecord::from),
            received: edge.received.as_ref().map(CountsRecord::from),
            elsewhere: edge.elsewhere.as_ref().map(CountsRecord::from),
            lost_packets: edge.lost_packets(),
            lost_bytes: edge.lost_bytes(),
            settled,
            tcp_flags: if ip && edge.protocol == names::TCP {
                names::tcp_flags(edge.tcp_flags)
            } else {
                Vec::new()
            },
            rtt_us: edge.rtt_us,
            retransmits: edge.retransmits,
            connect_us: edge.connect_us,
            failed_connects: (edge.failed_connects > 0).then_some(edge.failed_connects),
            first: timestamp::rfc3339(edge.first.as_ref()),
            last: timestamp::rfc3339(edge.last.as_ref()),
            fragment: edge.fragment,
            malformed: edge.malformed,
            remainder: edge.remainder,
        }
    }
}
