//! Edges as CSV: the fields of their JSON form, flat; unknown is empty.

use super::{
    edge_json::{CountsRecord, EdgeRecord},
    flow_csv::{END, END_MORE, SERVICE, end, end_more, line, optional, prefixed, service},
};

const BEFORE: [&str; 4] = ["protocol", "ethertype", "icmp_type", "icmp_code"];
const COUNTS: [&str; 4] = ["node", "packets", "bytes", "wire_bytes"];
const AFTER: [&str; 13] = [
    "lost_packets",
    "lost_bytes",
    "settled",
    "tcp_flags",
    "rtt_us",
    "retransmits",
    "connect_us",
    "failed_connects",
    "first",
    "last",
    "fragment",
    "malformed",
    "remainder",
];

/// The header line.
pub(crate) fn header() -> anyhow::Result<Vec<u8>> {
    let whole_end = [END.as_slice(), &END_MORE].concat();
    line(
        prefixed(&[""], &BEFORE)
            .chain(prefixed(&["src_", "dst_"], &whole_end))
            .chain(prefixed(&["service_"], &SERVICE))
            .chain(prefixed(&["sent_", "received_", "elsewhere_"], &COUNTS))
            .chain(prefixed(&[""], &AFTER)),
    )
}

/// One edge's line.
pub(crate) fn row(r: EdgeRecord) -> anyhow::Result<Vec<u8>> {
    let before = [
        r.protocol.unwrap_or_default(),
        r.ethertype.unwrap_or_default(),
        optional(r.icmp_type),
        optional(r.icmp_code),
    ];
    let after = [
        optional(r.lost_packets),
        optional(r.lost_bytes),
        r.settled.to_string(),
        r.tcp_flags.join("+"),
        optional(r.rtt_us),
        optional(r.retransmits),
        optional(r.connect_us),
        optional(r.failed_connects),
        r.first.unwrap_or_default(),
        r.last.unwrap_or_default(),
        r.fragment.to_string(),
        r.malformed.to_string(),
        r.remainder.to_string(),
    ];
    let (src_more, dst_more) = (end_more(r.src.as_ref()), end_more(r.dst.as_ref()));
    line(
        before
            .into_iter()
            .chain(end(r.src))
            .chain(src_more)
            .chain(end(r.dst))
            .chain(dst_more)
            .chain(service(r.service))
            .chain([r.sent, r.received, r.elsewhere].into_iter().flat_map(counts))
            .chain(after),
    )
}

/// Empty where that end did not report: not zero.
fn counts(record: Option<CountsRecord>) -> [String; 4] {
    record
        .map(|c| {
            [
                c.node,
                c.packets.to_string(),
                c.bytes.to_string(),
                c.wire_bytes.to_string(),
            ]
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use orb8_proto::edges::Edge;

    use super::*;

    #[test]
    fn every_row_has_the_header_s_columns() {
        let text = [
            header().unwrap(),
            row(EdgeRecord::new(&Edge::default(), true)).unwrap(),
        ]
        .concat();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        assert_eq!(reader.headers().unwrap().len(), 66);
        assert_eq!(reader.records().next().unwrap().unwrap().len(), 66);
    }
}
