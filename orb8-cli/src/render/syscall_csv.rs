//! System calls as CSV (RFC 4180): the fields of the JSON form, flat; unknown is empty. Control characters in names
//! are replaced by `?`.

use orb8_proto::v1::SyscallRow;

use super::{
    flow_csv::{line, optional},
    syscall_json::SyscallRecord,
};
use crate::syscall::WAITS;

/// Columns before those of waits.
const COLUMNS: [&str; 21] = [
    "node",
    "namespace",
    "pod",
    "container",
    "workload",
    "unit",
    "process",
    "cgroup",
    "attribution",
    "syscall",
    "abi",
    "number",
    "category",
    "count",
    "returned",
    "errors",
    "total_ns",
    "p50_ns",
    "p99_ns",
    "first",
    "last",
];

/// Columns of a verdict, after `change_`.
const CHANGE: [&str; 8] = [
    "kind",
    "watched_seconds",
    "time",
    "rate",
    "mean_rate",
    "deviation",
    "score",
    "explanation",
];

/// The header line.
pub(crate) fn header() -> anyhow::Result<Vec<u8>> {
    let waits = WAITS
        .iter()
        .flat_map(|class| ["ns", "count"].map(|what| format!("wait_{class}_{what}")));
    line(
        COLUMNS
            .map(str::to_owned)
            .into_iter()
            .chain(waits)
            .chain(CHANGE.map(|column| format!("change_{column}"))),
    )
}

/// One row's line.
pub(crate) fn row(row: &SyscallRow) -> anyhow::Result<Vec<u8>> {
    let r = SyscallRecord::from(row);
    let errors: Vec<String> = r
        .errors
        .iter()
        .flatten()
        .map(|(name, count)| format!("{name}={count}"))
        .collect();
    let before = [
        r.node,
        r.owner.namespace,
        r.owner.pod,
        r.owner.container,
        r.owner.workload,
        r.owner.unit,
        r.owner.process,
        r.owner.cgroup,
        r.owner.attribution.unwrap_or_default(),
        r.syscall,
        r.abi.unwrap_or_default().to_owned(),
        optional(r.number),
        r.category,
        r.count.to_string(),
        optional(r.returned),
        errors.join("+"),
        optional(r.total_ns),
        optional(r.p50_ns),
        optional(r.p99_ns),
        r.first.unwrap_or_default(),
        r.last.unwrap_or_default(),
    ];
    let waits = WAITS.iter().flat_map(|class| {
        let wait = r.waits.get(*class);
        [
            optional(wait.map(|wait| wait.total_ns)),
            optional(wait.map(|wait| wait.count)),
        ]
    });
    let change = r.change.map_or_else(Default::default, |change| {
        [
            change.kind.to_owned(),
            optional(change.watched_seconds),
            change.time.unwrap_or_default(),
            change.rate.to_string(),
            change.mean_rate.to_string(),
            change.deviation.to_string(),
            change.score.to_string(),
            change.explanation,
        ]
    });
    line(before.into_iter().chain(waits).chain(change))
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::SyscallChange;

    use super::*;

    #[test]
    fn every_row_has_the_header_s_columns() {
        let full = SyscallRow {
            syscall: "openat".into(),
            failed: 3,
            errors: [("ENOENT".to_owned(), 2), ("EACCES".to_owned(), 1)].into(),
            change: Some(SyscallChange {
                explanation: "a,\"b\"\n".into(),
                ..SyscallChange::default()
            }),
            ..SyscallRow::default()
        };
        let text = [
            header().unwrap(),
            row(&SyscallRow::default()).unwrap(),
            row(&full).unwrap(),
        ]
        .concat();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let columns = reader.headers().unwrap().clone();
        let rows: Vec<_> = reader.records().collect::<Result<_, _>>().unwrap();
        assert_eq!((columns.len(), rows.len(), rows[0].len()), (41, 2, 41));
        assert_eq!(&rows[1][15], "EACCES=1+ENOENT=2");
        assert_eq!(&rows[1][40], "a,\"b\"?");
    }
}
