//! Flows as CSV (RFC 4180): the fields of the JSON form, flat; unknown is empty. Control characters in names are
//! replaced by `?`.

use orb8_proto::v1::Flow;

use super::flow_json::{EndRecord, FlowRecord, ServiceRecord};
use crate::sanitise;

/// Columns of one end, after `src_` and `dst_`.
pub(crate) const END: [&str; 13] = [
    "ip",
    "port",
    "kind",
    "namespace",
    "pod",
    "container",
    "workload",
    "unit",
    "process",
    "pid",
    "netns",
    "cgroup",
    "attribution",
];

/// Columns of the Service.
pub(crate) const SERVICE: [&str; 5] = ["namespace", "name", "ip", "port", "attribution"];

/// Columns of one end that came later, after `src_` and `dst_`.
pub(crate) const END_MORE: [&str; 3] = ["pod_uid", "dns_name", "node"];

/// Columns with what is in front of their names.
pub(crate) fn prefixed<'a>(
    prefixes: &'a [&'a str],
    columns: &'a [&'a str],
) -> impl Iterator<Item = String> + 'a {
    prefixes
        .iter()
        .flat_map(move |prefix| columns.iter().map(move |column| format!("{prefix}{column}")))
}

/// The header line.
pub(crate) fn header() -> anyhow::Result<Vec<u8>> {
    let before = [
        "node",
        "reporter",
        "direction",
        "protocol",
        "ethertype",
        "icmp_type",
        "icmp_code",
    ];
    let after = [
        "packets",
        "bytes",
        "wire_bytes",
        "frames",
        "frame_bytes",
        "tcp_flags",
        "rtt_us",
        "retransmits",
        "connect_us",
        "failed_connects",
        "first",
        "last",
        "interface",
        "cgroup_id",
        "fragment",
        "malformed",
        "remainder",
    ];
    line(
        before
            .map(str::to_owned)
            .into_iter()
            .chain(prefixed(&["src_", "dst_"], &END))
            .chain(after.map(str::to_owned))
            .chain(prefixed(&["service_"], &SERVICE))
            .chain(prefixed(&["src_", "dst_"], &END_MORE))
            .chain(["wire_ip", "wire_port"].map(str::to_owned)),
    )
}

/// One flow's line.
pub(crate) fn row(flow: &Flow) -> anyhow::Result<Vec<u8>> {
    let r = FlowRecord::from(flow);
    let before = [
        r.node,
        r.reporter.unwrap_or_default().to_owned(),
        r.direction.unwrap_or_default().to_owned(),
        r.protocol.unwrap_or_default(),
        r.ethertype.unwrap_or_default(),
        optional(r.icmp_type),
        optional(r.icmp_code),
    ];
    let after = [
        r.packets.to_string(),
        r.bytes.to_string(),
        r.wire_bytes.to_string(),
        r.frames.to_string(),
        r.frame_bytes.to_string(),
        r.tcp_flags.join("+"),
        optional(r.rtt_us),
        optional(r.retransmits),
        optional(r.connect_us),
        optional(r.failed_connects),
        r.first.unwrap_or_default(),
        r.last.unwrap_or_default(),
        r.interface.unwrap_or_default(),
        optional(r.cgroup_id),
        r.fragment.to_string(),
        r.malformed.to_string(),
        r.remainder.to_string(),
    ];
    let more = [end_more(r.src.as_ref()), end_more(r.dst.as_ref())].concat();
    line(
        before
            .into_iter()
            .chain(end(r.src))
            .chain(end(r.dst))
            .chain(after)
            .chain(service(r.service))
            .chain(more)
            .chain([r.wire_ip, optional(r.wire_port)]),
    )
}

/// Values of [`SERVICE`].
pub(crate) fn service(record: Option<ServiceRecord>) -> [String; 5] {
    let s = record.unwrap_or_default();
    [s.namespace, s.name, s.ip, optional(s.port), s.attribution]
}

/// Values of [`END_MORE`].
pub(crate) fn end_more(record: Option<&EndRecord>) -> [String; 3] {
    record
        .map(|e| [e.pod_uid.clone(), e.dns_name.clone(), e.node.clone()])
        .unwrap_or_default()
}

/// Values of [`END`].
pub(crate) fn end(record: Option<EndRecord>) -> [String; 13] {
    let e = record.unwrap_or_default();
    [
        e.ip,
        optional(e.port),
        e.kind.unwrap_or_default(),
        e.namespace,
        e.pod,
        e.container,
        e.workload,
        e.unit,
        e.process,
        optional(e.pid),
        e.netns,
        e.cgroup,
        e.attribution,
    ]
}

/// The value, or nothing.
pub(crate) fn optional(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// One line of these fields.
pub(crate) fn line(fields: impl Iterator<Item = String>) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
    writer.write_record(fields.map(|field| sanitise::line(&field).into_owned()))?;
    writer.into_inner().map_err(|error| error.into_error().into())
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::Endpoint;

    use super::*;

    #[test]
    fn every_row_has_the_header_s_columns() {
        let src = Some(Endpoint {
            process: "a,\"b\"\n\x1b[0m".into(),
            ..Endpoint::default()
        });
        let text = [
            header().unwrap(),
            row(&Flow {
                src,
                ..Flow::default()
            })
            .unwrap(),
        ]
        .concat();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let columns = reader.headers().unwrap().clone();
        let rows: Vec<_> = reader.records().collect::<Result<_, _>>().unwrap();
        assert_eq!((columns.len(), rows.len(), rows[0].len()), (63, 1, 63));
        let process = columns.iter().position(|name| name == "src_process").unwrap();
        assert_eq!(&rows[0][process], "a,\"b\"??[0m");
    }
}
