//! Flows as tables.

use orb8_proto::v1::{Endpoint, Flow};

use super::{
    flow_json::{self, FlowRecord},
    table::{Cell, Column, Table},
};
use crate::{
    ends, humanise, names,
    terminal::{Style, Tone},
    timestamp,
};

/// The table that fits the terminal; `many`: with the node that counted each flow.
pub(crate) fn narrow(flows: &[Flow], many: bool, style: &Style) -> String {
    let mut table = Table::new([
        Column::name("NODE", 6),
        Column::workload("OWNER", 10),
        Column::text(""),
        Column::workload("PEER", 10),
        Column::workload("SERVICE", 8),
        Column::number("BYTES"),
        Column::number("PKTS"),
        Column::number("RTT"),
        Column::number("RETX"),
    ]);
    for flow in flows {
        table.row([
            Cell::new(if many { &*flow.node } else { "" }),
            Cell::new(ends::own_name(flow)),
            Cell::toned(style.arrow(ends::sent(flow)), Tone::Dim),
            Cell::new(ends::peer_name(flow)),
            service(flow, ends::short_service(flow)),
            Cell::new(humanise::bytes(flow.bytes)),
            Cell::new(humanise::count(flow.packets)),
            Cell::new(
                flow.rtt_us
                    .map(|us| humanise::micros(us, style.utf8))
                    .unwrap_or_default(),
            ),
            retransmits(flow),
        ]);
    }
    table
        .without_empty(&["NODE", "RTT", "RETX"])
        .render(Some(style.width), style)
}

/// Columns that are shown where there is a cluster.
const KUBERNETES: [&str; 8] = [
    "OWNER-WORKLOAD",
    "PEER-WORKLOAD",
    "OWNER-NODE",
    "PEER-NODE",
    "PEER-DNS",
    "SERVICE-IP",
    "SERVICE-BY",
    "ON-WIRE",
];

/// The table with all columns, however wide.
pub(crate) fn wide(flows: &[Flow], style: &Style) -> String {
    let mut table = Table::new([
        Column::text("FIRST"),
        Column::text("LAST"),
        Column::text("NODE"),
        Column::text("OWNER"),
        Column::text("DIR"),
        Column::text("PEER"),
        Column::text("PROTO"),
        Column::text("SOURCE"),
        Column::text("DESTINATION"),
        Column::text("SERVICE"),
        Column::number("BYTES"),
        Column::number("PACKETS"),
        Column::number("WIRE-BYTES"),
        Column::number("FRAMES"),
        Column::text("FLAGS"),
        Column::number("RTT"),
        Column::number("RETX"),
        Column::number("CONNECT"),
        Column::number("FAILED"),
        Column::text("COUNTED-AT"),
        Column::text("OWNER-BY"),
        Column::text("PEER-BY"),
        Column::text("PID"),
        Column::text("OWNER-WORKLOAD"),
        Column::text("PEER-WORKLOAD"),
        Column::text("OWNER-NODE"),
        Column::text("PEER-NODE"),
        Column::text("PEER-DNS"),
        Column::text("SERVICE-IP"),
        Column::text("SERVICE-BY"),
        Column::text("ON-WIRE"),
    ]);
    for flow in flows {
        let record = FlowRecord::from(flow);
        let sent = ends::sent(flow);
        let by = |end: Option<&Endpoint>| {
            end.map(|end| flow_json::attribution(end.attribution()))
                .unwrap_or_default()
        };
        let micros = |us: Option<u32>| us.map(|us| humanise::micros(us, style.utf8)).unwrap_or_default();
        let ports = ends::has_ports(flow);
        let (own, peer) = (ends::own(flow, sent), ends::peer(flow, sent));
        let of = |end: Option<&Endpoint>, field: fn(&Endpoint) -> &str| {
            end.map(|end| field(end).to_owned()).unwrap_or_default()
        };
        let kubernetes = record.service.unwrap_or_default();
        let point = match (record.interface, record.cgroup_id) {
            (Some(interface), _) => interface,
            (None, Some(id)) => format!("cgroup {id}"),
            (None, None) => String::new(),
        };
        table.row([
            Cell::new(timestamp::date_clock(flow.first.as_ref())),
            Cell::new(timestamp::date_clock(flow.last.as_ref())),
            Cell::new(&flow.node),
            Cell::new(
                own.and_then(ends::full_name)
                    .unwrap_or_else(|| ends::own_name(flow)),
            ),
            Cell::new(record.direction.unwrap_or_default()),
            Cell::new(
                peer.filter(|peer| !peer.pod.is_empty())
                    .and_then(ends::full_name)
                    .unwrap_or_else(|| ends::peer_name(flow)),
            ),
            Cell::new(record.protocol.or(record.ethertype).unwrap_or_default()),
            Cell::new(ends::socket(flow.src.as_ref(), ports)),
            Cell::new(ends::socket(flow.dst.as_ref(), ports)),
            service(flow, ends::service(flow)),
            Cell::new(flow.bytes.to_string()),
            Cell::new(flow.packets.to_string()),
            Cell::new(flow.wire_bytes.to_string()),
            Cell::new(flow.frames.to_string()),
            Cell::new(record.tcp_flags.join(",")),
            Cell::new(micros(flow.rtt_us)),
            retransmits(flow),
            Cell::new(micros(flow.connect_us)),
            Cell::toned(
                record.failed_connects.map(|n| n.to_string()).unwrap_or_default(),
                Tone::Bad,
            ),
            Cell::new(point),
            Cell::new(by(own)),
            Cell::new(by(peer)),
            Cell::new(
                own.filter(|own| own.pid != 0)
                    .map(|own| own.pid.to_string())
                    .unwrap_or_default(),
            ),
            Cell::new(of(own, |end| &end.workload)),
            Cell::new(of(peer, |end| &end.workload)),
            Cell::new(of(own, |end| &end.node)),
            Cell::new(of(peer, |end| &end.node)),
            Cell::new(of(peer, |end| &end.dns_name)),
            Cell::new(ends::address(&kubernetes.ip, kubernetes.port.unwrap_or_default())),
            Cell::new(kubernetes.attribution),
            Cell::new(ends::address(&flow.wire_ip, flow.wire_port)),
        ]);
    }
    table.without_empty(&KUBERNETES).render(None, style)
}

fn service(flow: &Flow, name: String) -> Cell {
    let refused = flow.failed_connects > 0 && flow.protocol == names::TCP;
    Cell::toned(name, if refused { Tone::Bad } else { Tone::Plain })
}

fn retransmits(flow: &Flow) -> Cell {
    match flow.retransmits {
        None => Cell::default(),
        Some(0) => Cell::new("0"),
        Some(n) => Cell::toned(humanise::count(n), Tone::Warn),
    }
}
