//! Flows as tables.

use orb8_proto::v1::Flow;

use super::{
    flow_json::{self, FlowRecord},
    table::{Cell, Column, Table},
};
use crate::{
    ends, humanise, names,
    terminal::{Style, Tone},
    timestamp,
};

/// The table that fits the terminal.
pub(crate) fn narrow(flows: &[Flow], style: &Style) -> String {
    let mut table = Table::new([
        Column::name("OWNER", 10),
        Column::text(""),
        Column::name("PEER", 10),
        Column::name("SERVICE", 8),
        Column::number("BYTES"),
        Column::number("PKTS"),
        Column::number("RTT"),
        Column::number("RETX"),
    ]);
    for flow in flows {
        table.row([
            Cell::new(ends::own_name(flow)),
            Cell::toned(style.arrow(ends::sent(flow)), Tone::Dim),
            Cell::new(ends::peer_name(flow)),
            service(flow),
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
    table.render(Some(style.width), style)
}

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
    ]);
    for flow in flows {
        let record = FlowRecord::from(flow);
        let sent = ends::sent(flow);
        let by = |end: Option<&orb8_proto::v1::Endpoint>| {
            end.map(|end| flow_json::attribution(end.attribution()))
                .unwrap_or_default()
        };
        let micros = |us: Option<u32>| us.map(|us| humanise::micros(us, style.utf8)).unwrap_or_default();
        let ports = ends::has_ports(flow);
        let point = match (record.interface, record.cgroup_id) {
            (Some(interface), _) => interface,
            (None, Some(id)) => format!("cgroup {id}"),
            (None, None) => String::new(),
        };
        table.row([
            Cell::new(timestamp::date_clock(flow.first.as_ref())),
            Cell::new(timestamp::date_clock(flow.last.as_ref())),
            Cell::new(&flow.node),
            Cell::new(ends::own_name(flow)),
            Cell::new(record.direction.unwrap_or_default()),
            Cell::new(ends::peer_name(flow)),
            Cell::new(record.protocol.or(record.ethertype).unwrap_or_default()),
            Cell::new(ends::socket(flow.src.as_ref(), ports)),
            Cell::new(ends::socket(flow.dst.as_ref(), ports)),
            service(flow),
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
            Cell::new(by(ends::own(flow, sent))),
            Cell::new(by(ends::peer(flow, sent))),
            Cell::new(
                ends::own(flow, sent)
                    .filter(|own| own.pid != 0)
                    .map(|own| own.pid.to_string())
                    .unwrap_or_default(),
            ),
        ]);
    }
    table.render(None, style)
}

fn service(flow: &Flow) -> Cell {
    if flow.failed_connects > 0 && flow.protocol == names::TCP {
        return Cell::toned(ends::service(flow), Tone::Bad);
    }
    Cell::new(ends::service(flow))
}

fn retransmits(flow: &Flow) -> Cell {
    match flow.retransmits {
        None => Cell::default(),
        Some(0) => Cell::new("0"),
        Some(n) => Cell::toned(humanise::count(n), Tone::Warn),
    }
}
