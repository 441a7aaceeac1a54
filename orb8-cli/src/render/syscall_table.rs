//! System calls as tables.

use orb8_proto::v1::{SyscallChange, SyscallKind, SyscallRow};
use prost_types::Timestamp;

use super::table::{Cell, Column, Table};
use crate::{
    humanise,
    query::syscall::{UNBOUNDED, seconds},
    sanitise,
    syscall::{self, WAITS},
    terminal::{Style, Tone},
    timestamp,
};

/// Errors that are named in a cell.
const ERRORS: usize = 2;
/// Columns that are left out where no row has a value.
const OPTIONAL: [&str; 5] = ["NODE", "OWNER", "SYSCALL", "CATEGORY", "CALLS/s"];

/// What is shown beside counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) errors: bool,
    pub(crate) latency: bool,
    pub(crate) waits: bool,
    pub(crate) changes: bool,
    /// Whether rows are told apart by node.
    pub(crate) node: bool,
}

/// The table that fits the terminal. `span`: what the answer covers.
pub(crate) fn narrow(
    rows: &[SyscallRow],
    view: View,
    span: Option<(Timestamp, Timestamp)>,
    style: &Style,
) -> String {
    if view.waits {
        return waits(rows, view, style);
    }
    if view.changes {
        return changes(rows, view, span.map(|(_, to)| to), style);
    }
    let span = span
        .map(|(from, to)| timestamp::seconds_between(&from, &to))
        .unwrap_or_default();
    let mut columns = vec![
        Column::name("NODE", 6),
        Column::workload("OWNER", 10),
        Column::name("SYSCALL", 8),
        Column::name("CATEGORY", 8),
        Column::number("CALLS"),
        Column::number("CALLS/s"),
    ];
    if view.errors {
        columns.extend([Column::number("FAILED"), Column::name("ERRORS", 8)]);
    }
    if view.latency {
        columns.extend([
            Column::number("TIME"),
            Column::number("P50"),
            Column::number("P99"),
        ]);
    }
    let mut table = Table::new(columns);
    let category = !view.errors && !view.latency || rows.iter().all(|row| row.syscall.is_empty());
    for row in rows {
        let mut cells = vec![
            node(row, view),
            owner(row),
            call(row),
            Cell::new(if category { &*row.category } else { "" }),
            Cell::new(humanise::count(row.count)),
            Cell::new(if span > 0.0 && !(view.errors && view.latency) {
                humanise::small_rate(row.count as f64 / span)
            } else {
                String::new()
            }),
        ];
        if view.errors {
            cells.extend([failed(row), errors(row)]);
        }
        if view.latency {
            cells.extend(latency(row, style));
        }
        table.row(cells);
    }
    table.without_empty(&OPTIONAL).render(Some(style.width), style)
}

/// The table with all columns, however wide.
pub(crate) fn wide(rows: &[SyscallRow], style: &Style) -> String {
    let mut columns = [
        "FIRST", "LAST", "NODE", "OWNER", "OWNER-BY", "WORKLOAD", "CGROUP", "SYSCALL", "CATEGORY",
    ]
    .map(Column::text)
    .to_vec();
    columns.extend(["NUMBER", "CALLS", "RETURNED", "FAILED"].map(Column::number));
    columns.push(Column::text("ERRORS"));
    columns.extend(["TIME", "P50", "P99"].map(Column::number));
    columns.extend(["NETWORK", "DISK", "FUTEX", "POLL", "SLEEP", "OTHER"].map(Column::number));
    columns.push(Column::text("CHANGE"));
    let mut table = Table::new(columns);
    for row in rows {
        let end = row.owner.clone().unwrap_or_default();
        let measured = syscall::is_measured(row);
        let all: Vec<String> = syscall::errors(row)
            .into_iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let mut cells = vec![
            Cell::new(timestamp::date_clock(row.first.as_ref())),
            Cell::new(timestamp::date_clock(row.last.as_ref())),
            Cell::new(&row.node),
            owner(row),
            Cell::new(if end == Default::default() {
                String::new()
            } else {
                super::flow_json::attribution(end.attribution())
            }),
            Cell::new(&end.workload),
            Cell::new(&end.cgroup),
            call(row),
            Cell::new(&row.category),
            Cell::new(number(row).map(|n| n.to_string()).unwrap_or_default()),
            Cell::new(row.count.to_string()),
            Cell::new(if measured {
                row.returned.to_string()
            } else {
                String::new()
            }),
            failed(row),
            Cell::new(all.join(", ")),
        ];
        cells.extend(latency(row, style));
        cells.extend(WAITS.map(|class| {
            Cell::new(
                syscall::wait(row, class)
                    .map(|(ns, _)| humanise::nanos(ns, style.utf8))
                    .unwrap_or_default(),
            )
        }));
        cells.push(Cell::new(
            row.change
                .as_ref()
                .map(|change| format!("{}: {}", kind(change).to_lowercase(), change.explanation))
                .unwrap_or_default(),
        ));
        table.row(cells);
    }
    let shown = [
        "FIRST", "LAST", "NODE", "OWNER", "OWNER-BY", "WORKLOAD", "CGROUP", "SYSCALL", "CATEGORY", "NUMBER",
        "RETURNED", "FAILED", "ERRORS", "TIME", "P50", "P99", "NETWORK", "DISK", "FUTEX", "POLL", "SLEEP",
        "OTHER", "CHANGE",
    ];
    table.without_empty(&shown).render(None, style)
}

/// What callers wait for.
fn waits(rows: &[SyscallRow], view: View, style: &Style) -> String {
    let mut columns = vec![
        Column::name("NODE", 6),
        Column::workload("OWNER", 10),
        Column::number("TIME"),
    ];
    columns.extend(["NETWORK", "DISK", "FUTEX", "POLL", "SLEEP", "OTHER"].map(Column::number));
    let mut table = Table::new(columns);
    for row in rows {
        let measured = !row.waits.is_empty();
        let times = WAITS.map(|class| syscall::wait(row, class).map_or(0, |(ns, _)| ns));
        let all = times.iter().fold(0_u64, |sum, ns| sum.saturating_add(*ns));
        let mut cells = vec![node(row, view), owner(row)];
        cells.push(Cell::new(if measured {
            humanise::nanos(all, style.utf8)
        } else {
            "-".to_owned()
        }));
        cells.extend(times.map(|ns| match ns {
            _ if !measured => Cell::new("-"),
            0 => Cell::toned("0", Tone::Dim),
            // The class that takes more than half is what it waits for.
            ns if ns > all / 2 => Cell::toned(humanise::nanos(ns, style.utf8), Tone::Strong),
            ns => Cell::new(humanise::nanos(ns, style.utf8)),
        }));
        table.row(cells);
    }
    table.without_empty(&OPTIONAL).render(Some(style.width), style)
}

/// What is new or unusual, and the numbers that say so.
fn changes(rows: &[SyscallRow], view: View, to: Option<Timestamp>, style: &Style) -> String {
    let anomalies = rows
        .iter()
        .filter_map(|row| row.change.as_ref())
        .any(|change| change.kind() == SyscallKind::Anomalies);
    let mut columns = vec![
        Column::name("NODE", 6),
        Column::workload("OWNER", 10),
        Column::name("SYSCALL", 8),
        Column::name("CATEGORY", 8),
        Column::number("CALLS"),
    ];
    if anomalies {
        columns.extend(["NOW/s", "USUAL/s", "SCORE"].map(Column::number));
    } else {
        columns.push(Column::number("FIRST"));
    }
    columns.push(Column::number("WATCHED"));
    let mut table = Table::new(columns);
    for row in rows {
        let change = row.change.clone().unwrap_or_default();
        let mut cells = vec![
            node(row, view),
            owner(row),
            call(row),
            Cell::new(if anomalies { "" } else { &*row.category }),
            Cell::new(humanise::count(row.count)),
        ];
        if anomalies {
            cells.extend([
                Cell::toned(humanise::small_rate(change.rate), Tone::Warn),
                Cell::new(usual(&change, style)),
                Cell::new(format!(
                    "{}{}",
                    if change.score < 0.0 { "-" } else { "" },
                    humanise::small_rate(change.score.abs())
                )),
            ]);
        } else {
            let since = change.time.or(row.first);
            let age = since
                .zip(to)
                .map(|(since, to)| timestamp::seconds_between(&since, &to))
                .map(|age| format!("{} ago", humanise::seconds(age)));
            cells.push(Cell::toned(age.unwrap_or_default(), Tone::Warn));
        }
        cells.push(Cell::new(
            change
                .watched
                .as_ref()
                .map(|watched| humanise::seconds(seconds(watched)))
                .unwrap_or_default(),
        ));
        table.row(cells);
    }
    table.without_empty(&OPTIONAL).render(Some(style.width), style)
}

/// Why each change is one, a sentence each, which names caller and call.
pub(crate) fn explanations(rows: &[SyscallRow]) -> Vec<String> {
    rows.iter()
        .filter_map(|row| row.change.as_ref())
        .map(|change| change.explanation.clone())
        .filter(|explanation| !explanation.is_empty())
        .collect()
}

/// `mean±deviation`.
pub(crate) fn usual(change: &SyscallChange, style: &Style) -> String {
    format!(
        "{}{}{}",
        humanise::small_rate(change.mean_rate),
        if style.utf8 { "±" } else { "+-" },
        humanise::small_rate(change.deviation)
    )
}

/// What the change is called.
pub(crate) fn kind(change: &SyscallChange) -> &'static str {
    match change.kind() {
        SyscallKind::New => "NEW",
        SyscallKind::Anomalies => "ANOMALY",
        SyscallKind::All => "CHANGE",
    }
}

fn node(row: &SyscallRow, view: View) -> Cell {
    Cell::new(if view.node { &*row.node } else { "" })
}

fn owner(row: &SyscallRow) -> Cell {
    Cell::new(syscall::owner(row.owner.as_ref()).unwrap_or_default())
}

fn call(row: &SyscallRow) -> Cell {
    let name = syscall::call(&row.syscall, row.abi());
    if row.syscall == syscall::OTHER || row.syscall.starts_with('#') {
        Cell::toned(name, Tone::Warn)
    } else {
        Cell::new(name)
    }
}

/// The call's number, where the row is of one.
pub(crate) fn number(row: &SyscallRow) -> Option<i64> {
    (!row.syscall.is_empty() && row.syscall != syscall::OTHER && row.number >= 0).then_some(row.number)
}

fn failed(row: &SyscallRow) -> Cell {
    match row.failed {
        _ if !syscall::is_measured(row) => Cell::new("-"),
        0 => Cell::new("0"),
        failed => Cell::toned(humanise::count(failed), Tone::Warn),
    }
}

/// The most frequent errors, and how many more there are.
fn errors(row: &SyscallRow) -> Cell {
    let errors = syscall::errors(row);
    let mut words: Vec<String> = errors
        .iter()
        .take(ERRORS)
        .map(|(name, count)| format!("{} {}", sanitise::line(name), humanise::count(*count)))
        .collect();
    if errors.len() > ERRORS {
        words.push(format!("+{}", errors.len() - ERRORS));
    }
    Cell::new(words.join(", "))
}

/// Total time and percentiles; `-`: not measured.
fn latency(row: &SyscallRow, style: &Style) -> [Cell; 3] {
    let bound = |ns: Option<u64>| {
        Cell::new(match ns {
            None => "-".to_owned(),
            Some(UNBOUNDED) => "long".to_owned(),
            Some(ns) => humanise::bound(ns, style.utf8),
        })
    };
    let total = row
        .total_ns
        .map_or_else(|| "-".to_owned(), |ns| humanise::nanos(ns, style.utf8));
    [Cell::new(total), bound(row.p50_ns), bound(row.p99_ns)]
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::{Endpoint, SyscallWait};
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    const STYLE: Style = Style::PIPED;
    /// Some 30 years.
    const LONG: u64 = 1 << 60;

    fn row(name: &str, call: &str, kind: SyscallKind) -> SyscallRow {
        SyscallRow {
            node: name.into(),
            owner: Some(Endpoint {
                namespace: name.into(),
                pod: name.into(),
                container: name.into(),
                ..Endpoint::default()
            }),
            syscall: call.into(),
            category: "credentials".into(),
            count: u64::MAX,
            failed: u64::MAX,
            errors: [(call.to_owned(), u64::MAX), ("EWOULDBLOCK".to_owned(), 1)].into(),
            total_ns: Some(9_999_999_999_999),
            p50_ns: Some(2_097_152),
            p99_ns: Some(LONG),
            waits: WAITS
                .map(|class| SyscallWait {
                    class: class.into(),
                    total_ns: 9_999_999_999_999,
                    count: 1,
                })
                .to_vec(),
            change: Some(SyscallChange {
                kind: kind.into(),
                watched: Some(prost_types::Duration {
                    seconds: 86_399,
                    nanos: 0,
                }),
                time: Some(Timestamp { seconds: 1, nanos: 0 }),
                rate: 1.5e9,
                mean_rate: 1e9,
                deviation: 1e9,
                score: -1e9,
                ..SyscallChange::default()
            }),
            ..SyscallRow::default()
        }
    }

    proptest! {
        #[test]
        fn every_view_fits_80_columns(name in any::<String>(), call in any::<String>(), errors: bool, latency: bool, waits: bool, changes: bool, node: bool, new: bool) {
            let kind = if new { SyscallKind::New } else { SyscallKind::Anomalies };
            let view = View { errors, latency, waits, changes, node };
            let at = |seconds| Timestamp { seconds, nanos: 0 };
            let rows = [row(&name, &call, kind), SyscallRow::default()];
            let text = narrow(&rows, view, Some((at(0), at(3600 * 24))), &STYLE);
            for line in text.lines() {
                prop_assert!(line.width() <= 80, "{} {line:?}", line.width());
                prop_assert!(!line.contains(sanitise::is_hostile));
            }
            prop_assert!(!wide(&rows, &STYLE).chars().any(|c| c != '\n' && sanitise::is_hostile(c)));
        }
    }

    #[test]
    fn a_bound_that_is_none_is_no_number() {
        let unbounded = SyscallRow {
            p99_ns: Some(UNBOUNDED),
            ..row("n", "read", SyscallKind::All)
        };
        let view = View {
            latency: true,
            ..View::default()
        };
        let text = narrow(&[unbounded], view, None, &STYLE);
        assert!(
            text.contains("≤2.1ms") && text.trim_end().ends_with("long"),
            "{text}"
        );
    }
}
