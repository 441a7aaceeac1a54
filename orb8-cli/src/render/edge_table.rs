//! Edges as tables.

use orb8_proto::{
    edges::{Counts, Edge},
    v1::{Endpoint, Flow},
};
use prost_types::Timestamp;

use super::{
    edge_json::EdgeRecord,
    table::{Cell, Column, Table},
};
use crate::{
    edge, ends, humanise,
    terminal::{Style, Tone},
    timestamp,
};

/// Where one end did not report.
const NO_REPORT: &str = "-";

/// The table that fits the terminal. `settled`: until when all agents have counted.
pub(crate) fn narrow(edges: &[Edge], settled: Option<&Timestamp>, style: &Style) -> String {
    let mut table = Table::new([
        Column::workload("SOURCE", 10),
        Column::text(""),
        Column::workload("DESTINATION", 10),
        Column::workload("SERVICE", 8),
        Column::number("SENT"),
        Column::number("RECEIVED"),
        Column::number("LOST"),
    ]);
    for edge in edges {
        let flow = edge::as_flow(edge);
        let bytes = |counts: Option<&Counts>| match counts {
            Some(counts) => Cell::new(humanise::bytes(counts.bytes)),
            None => Cell::toned(NO_REPORT, Tone::Dim),
        };
        table.row([
            Cell::new(source(edge)),
            Cell::toned(style.arrow(true), Tone::Dim),
            Cell::new(destination(edge)),
            service(&flow, edge.failed_connects),
            bytes(edge.sent.as_ref()),
            bytes(edge.received.as_ref()),
            lost(edge, edge::is_settled(edge, settled)),
        ]);
    }
    table.render(Some(style.width), style)
}

/// The table with all columns, however wide.
pub(crate) fn wide(edges: &[Edge], settled: Option<&Timestamp>, style: &Style) -> String {
    let mut table = Table::new([
        Column::text("FIRST"),
        Column::text("LAST"),
        Column::text("SOURCE"),
        Column::text("SOURCE-WORKLOAD"),
        Column::text("SOURCE-NODE"),
        Column::text("DESTINATION"),
        Column::text("DESTINATION-WORKLOAD"),
        Column::text("DESTINATION-NODE"),
        Column::text("PROTO"),
        Column::text("FROM"),
        Column::text("TO"),
        Column::text("SERVICE"),
        Column::number("SENT-PKTS"),
        Column::number("RECEIVED-PKTS"),
        Column::number("LOST-PKTS"),
        Column::number("SENT-BYTES"),
        Column::number("RECEIVED-BYTES"),
        Column::number("LOST-BYTES"),
        Column::number("ELSEWHERE-PKTS"),
        Column::text("FLAGS"),
        Column::number("RTT"),
        Column::number("RETX"),
        Column::number("CONNECT"),
        Column::number("FAILED"),
        Column::text("SOURCE-BY"),
        Column::text("DESTINATION-BY"),
    ]);
    for edge in edges {
        let flow = edge::as_flow(edge);
        let is_settled = edge::is_settled(edge, settled);
        let record = EdgeRecord::new(edge, is_settled);
        let ports = ends::has_ports(&flow);
        let number = |counts: Option<&Counts>, of: fn(&Counts) -> u64| match counts {
            Some(counts) => Cell::new(of(counts).to_string()),
            None => Cell::toned(NO_REPORT, Tone::Dim),
        };
        let micros = |us: Option<u32>| us.map(|us| humanise::micros(us, style.utf8)).unwrap_or_default();
        let (src, dst) = (record.src.unwrap_or_default(), record.dst.unwrap_or_default());
        let full = |end: Option<&Endpoint>| end.filter(|end| !end.pod.is_empty()).and_then(ends::full_name);
        let node = |known: String, counts: Option<&Counts>| {
            if known.is_empty() {
                counts.map(|counts| counts.node.clone()).unwrap_or_default()
            } else {
                known
            }
        };
        table.row([
            Cell::new(timestamp::date_clock(edge.first.as_ref())),
            Cell::new(timestamp::date_clock(edge.last.as_ref())),
            Cell::new(full(edge.src.as_ref()).unwrap_or_else(|| source(edge))),
            Cell::new(src.workload),
            Cell::new(node(src.node, edge.sent.as_ref())),
            Cell::new(full(edge.dst.as_ref()).unwrap_or_else(|| destination(edge))),
            Cell::new(dst.workload),
            Cell::new(node(dst.node, edge.received.as_ref())),
            Cell::new(record.protocol.or(record.ethertype).unwrap_or_default()),
            Cell::new(ends::socket(edge.src.as_ref(), ports)),
            Cell::new(ends::socket(edge.dst.as_ref(), ports)),
            Cell::new(ends::service(&flow)),
            number(edge.sent.as_ref(), |counts| counts.packets),
            number(edge.received.as_ref(), |counts| counts.packets),
            difference(edge.lost_packets(), is_settled, |n| n.to_string()),
            number(edge.sent.as_ref(), |counts| counts.bytes),
            number(edge.received.as_ref(), |counts| counts.bytes),
            difference(edge.lost_bytes(), is_settled, |n| n.to_string()),
            Cell::new(
                edge.elsewhere
                    .as_ref()
                    .map(|counts| counts.packets.to_string())
                    .unwrap_or_default(),
            ),
            Cell::new(record.tcp_flags.join(",")),
            Cell::new(micros(edge.rtt_us)),
            match edge.retransmits {
                Some(n) if n > 0 => Cell::toned(n.to_string(), Tone::Warn),
                n => Cell::new(n.map(|n| n.to_string()).unwrap_or_default()),
            },
            Cell::new(micros(edge.connect_us)),
            Cell::toned(
                record.failed_connects.map(|n| n.to_string()).unwrap_or_default(),
                Tone::Bad,
            ),
            Cell::new(src.attribution),
            Cell::new(dst.attribution),
        ]);
    }
    table.render(None, style)
}

/// What the reader of these edges must know: of reports that stand alone, and of flows that still run.
pub(crate) fn notes(edges: &[Edge], settled: Option<&Timestamp>) -> Vec<String> {
    let alone = edges.iter().filter(|edge| edge.lost_packets().is_none()).count();
    let running = edges
        .iter()
        .filter(|edge| edge.lost_packets().is_some_and(|lost| lost != 0) && !edge::is_settled(edge, settled))
        .count();
    let mut notes = Vec::new();
    if alone > 0 {
        notes.push(format!(
            "{} reported by one end only (-): the other is not observed, by an agent that was not asked, or \
             behind a translated address",
            if alone == 1 {
                "1 edge is".to_owned()
            } else {
                format!("{alone} edges are")
            }
        ));
    }
    if running > 0 {
        notes.push(format!(
            "{} still running (~): the difference may be on its way",
            if running == 1 {
                "1 edge was".to_owned()
            } else {
                format!("{running} edges were")
            }
        ));
    }
    notes
}

/// Name of the end that sent.
fn source(edge: &Edge) -> String {
    of_no_flow(edge, edge.src.as_ref()).unwrap_or_else(|| ends::own_name(&edge::as_flow(edge)))
}

/// Name of the end that received.
fn destination(edge: &Edge) -> String {
    of_no_flow(edge, edge.dst.as_ref()).unwrap_or_else(|| ends::peer_name(&edge::as_flow(edge)))
}

/// The name of one end of what is not one flow between two ends: only the end that reported is known.
fn of_no_flow(edge: &Edge, end: Option<&Endpoint>) -> Option<String> {
    let other = match (edge.remainder, edge.ip_version) {
        (true, _) => "(no room)",
        (false, 0) => "(not IP)",
        _ => return None,
    };
    Some(end.and_then(ends::name).unwrap_or_else(|| other.to_owned()))
}

/// What the flow is about; in the colour of trouble where connects failed.
fn service(flow: &Flow, failed_connects: u32) -> Cell {
    let tone = if failed_connects > 0 {
        Tone::Bad
    } else {
        Tone::Plain
    };
    Cell::toned(ends::short_service(flow), tone)
}

/// Packets lost: what got lost is told in packets, since a lost segment is what hurts.
fn lost(edge: &Edge, settled: bool) -> Cell {
    difference(edge.lost_packets(), settled, |n| {
        let sign = if n < 0 { "-" } else { "" };
        let size = u64::try_from(n.unsigned_abs()).unwrap_or(u64::MAX);
        format!("{sign}{}", humanise::count(size))
    })
}

fn difference(lost: Option<i128>, settled: bool, shown: impl Fn(i128) -> String) -> Cell {
    match lost {
        None => Cell::default(),
        Some(0) => Cell::new("0"),
        Some(n) if settled => Cell::toned(shown(n), Tone::Bad),
        Some(n) => Cell::toned(format!("~{}", shown(n)), Tone::Warn),
    }
}
