//! Asking the agents about system calls, and joining what they answer.
//!
//! Rows of two nodes are summed only where the grouping sums over nodes: a pod, a container and a unit are of one node.
//! Verdicts about changes rest on a node's own history, so that their rows stay apart too.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
};

use orb8_proto::v1::{
    Endpoint, LatencyBucket, QuerySyscallsResponse, SetSyscallModeRequest, SetSyscallModeResponse,
    SyscallGroup, SyscallKind, SyscallMode, SyscallQuery, SyscallRow, SyscallSort, SyscallSummary,
    SyscallWait, query_syscalls_response::Part,
};
use prost_types::Timestamp;
use tonic::Status;

use super::{Cursor, earliest, latest};
use crate::{
    fleet::{self, Fleet, Member, no_answer, nobody},
    ledger::Losses,
};

/// A percentile that is longer than all bounds.
pub(crate) const UNBOUNDED: u64 = u64::MAX;
/// Rows that are taken from an agent: bounds memory, at some hundred bytes each.
const MAX_ROWS: usize = 1 << 20;
/// How much later than asked an answer may start, and is the answer to the question all the same: agents count by
/// intervals.
const LATE: f64 = 1.5;

/// The answer of all agents.
#[derive(Debug)]
pub(crate) struct Answer {
    /// In sort order, no more than the limit.
    pub(crate) rows: Vec<SyscallRow>,
    /// Of all that answered. None: some answer came without.
    pub(crate) summary: Option<SyscallSummary>,
    /// What each agent that answered does: its name in front of others, mode, and how long of the span it measured.
    pub(crate) modes: Vec<Measured>,
    /// What the answer misses.
    pub(crate) losses: Losses,
    /// What is to be said of it though nothing is missing.
    pub(crate) notes: Vec<String>,
    /// Those of the losses that are agents which did not answer, or not to the end.
    pub(crate) missing: Vec<String>,
    /// From where to ask next.
    pub(crate) cursor: Cursor,
}

/// What one agent measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    /// The agent's name; the node's, where the agent tells it.
    pub(crate) name: String,
    pub(crate) mode: SyscallMode,
    /// Seconds of the answer's span.
    pub(crate) span: f64,
    /// Seconds of it in which errors and times were measured.
    pub(crate) seconds: f64,
}

/// One agent's part.
#[derive(Debug, Default)]
struct PartOf {
    rows: Vec<SyscallRow>,
    summary: Option<SyscallSummary>,
    error: Option<Status>,
}

/// All that one agent says.
async fn take(member: &Member, query: SyscallQuery) -> PartOf {
    let mut part = PartOf::default();
    let mut client = member.client.clone();
    let mut stream = match member.within(client.query_syscalls(query)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => {
            part.error = Some(status);
            return part;
        }
    };
    loop {
        match member.within(stream.message()).await {
            Ok(Some(QuerySyscallsResponse { part: Some(some) })) => match some {
                Part::Batch(batch) if part.rows.len() + batch.rows.len() > MAX_ROWS => {
                    part.error = Some(Status::resource_exhausted(format!(
                        "more than {MAX_ROWS} rows: ask for fewer (--limit, --by)"
                    )));
                    return part;
                }
                Part::Batch(batch) => part.rows.extend(batch.rows.into_iter().map(unbounded)),
                Part::Summary(summary) => part.summary = Some(summary),
            },
            Ok(Some(QuerySyscallsResponse { part: None })) => {}
            Ok(None) => return part,
            Err(status) => {
                part.error = Some(status);
                return part;
            }
        }
    }
}

/// In the protocol, a bound of 0 is none.
fn unbounded(mut row: SyscallRow) -> SyscallRow {
    for bound in [&mut row.p50_ns, &mut row.p99_ns] {
        *bound = bound.map(|ns| if ns == 0 { UNBOUNDED } else { ns });
    }
    row
}

/// Asks all agents of the fleet, each from where `cursor` says, else from where the query says. The answer is held in
/// memory: some hundred bytes a row.
///
/// # Errors
/// If none answers, the only agent's answer breaks off, or the query makes no sense.
pub(crate) async fn ask(fleet: &Fleet, query: &SyscallQuery, cursor: &Cursor) -> anyhow::Result<Answer> {
    let many = fleet.is_many();
    // The first of each agent are the first of all only where no row is a sum over agents.
    let limit = if many && sums_over_nodes(query) {
        0
    } else {
        query.limit
    };
    let indexed = |member: &Member| fleet.members.iter().position(|other| other.name == member.name);
    let parts: Vec<PartOf> = fleet
        .ask(|member| {
            let query = SyscallQuery {
                since: indexed(&member)
                    .and_then(|index| cursor.of(index))
                    .or(query.since),
                limit,
                ..query.clone()
            };
            async move { Ok(take(&member, query).await) }
        })
        .await
        .into_iter()
        .filter_map(Result::ok)
        .collect();
    let mut silent = fleet.missing.clone();
    let mut errors = Vec::new();
    for (member, part) in fleet.members.iter().zip(&parts) {
        // A part of the only answer is none.
        if let Some(status) = part.error.as_ref().filter(|_| part.rows.is_empty() || !many) {
            silent.push((member.name.clone(), member.why(status)));
            errors.push(member.explain(status));
        }
    }
    if let Some(error) = nobody(errors.len() == parts.len(), errors, &silent) {
        return Err(error);
    }
    let mut missing = fleet::sentences(&fleet.missing);
    let (mut losses, mut notes) = (Losses::default(), Losses::default());
    let mut cursor = cursor.clone();
    cursor.0.resize(parts.len().max(cursor.0.len()), None);
    let (mut rows, mut summaries, mut modes) = (Vec::new(), Vec::new(), Vec::new());
    let mut complete = true;
    for (index, (member, part)) in fleet.members.iter().zip(parts).enumerate() {
        let name = &member.name;
        match &part.error {
            Some(status) if part.rows.is_empty() => {
                missing.push(no_answer(name, &member.why(status)));
            }
            Some(status) => missing.push(format!(
                "the answer from {name} broke off after {} rows: {}",
                part.rows.len(),
                member.why(status)
            )),
            None => {
                complete &= part.summary.is_some();
                let of_one = Losses::of_syscalls(part.summary.as_ref());
                let said = Losses {
                    sentences: part
                        .summary
                        .as_ref()
                        .map(|summary| summary.notes.clone())
                        .unwrap_or_default(),
                };
                let late = starts_late(query.since.as_ref(), part.summary.as_ref());
                for (told, is_loss) in [(of_one, true), (said, late)] {
                    let to = if is_loss { &mut losses } else { &mut notes };
                    if many {
                        to.add(name, told);
                    } else {
                        to.sentences.extend(told.sentences);
                    }
                }
            }
        }
        if let Some(summary) = &part.summary {
            cursor.0[index] = summary.to.or(cursor.0[index]);
            modes.push(Measured::of(name, summary));
        }
        let mut told = part.rows;
        if let (true, Some(summary)) = (many && !sums_over_nodes(query), &part.summary) {
            told.iter_mut()
                .filter(|row| row.node.is_empty())
                .for_each(|row| row.node.clone_from(&summary.node));
        }
        rows.push(told);
        summaries.extend(part.summary);
    }
    losses.sentences.splice(0..0, missing.iter().cloned());
    let (rows, groups) = merge(query, rows);
    let mut summary = join(summaries).filter(|_| complete);
    if let (Some(summary), true) = (&mut summary, limit != query.limit) {
        summary.matched_rows = groups;
    }
    Ok(Answer {
        rows,
        summary,
        modes,
        losses,
        notes: notes.sentences,
        missing,
        cursor,
    })
}

/// Whether the answer does not reach back to the time asked for.
fn starts_late(since: Option<&Timestamp>, summary: Option<&SyscallSummary>) -> bool {
    let from = summary.and_then(|summary| summary.from.as_ref());
    since
        .zip(from)
        .is_some_and(|(since, from)| crate::timestamp::seconds_between(since, from) > LATE)
}

impl Measured {
    fn of(name: &str, summary: &SyscallSummary) -> Self {
        let span = match (&summary.from, &summary.to) {
            (Some(from), Some(to)) => crate::timestamp::seconds_between(from, to),
            _ => 0.0,
        };
        Self {
            name: if summary.node.is_empty() {
                name.to_owned()
            } else {
                summary.node.clone()
            },
            mode: summary.mode(),
            span,
            seconds: summary.measured.as_ref().map_or(0.0, seconds),
        }
    }
}

/// A duration in seconds.
pub(crate) fn seconds(duration: &prost_types::Duration) -> f64 {
    duration.seconds as f64 + f64::from(duration.nanos) / 1e9
}

/// Whether a row may be a sum over nodes.
fn sums_over_nodes(query: &SyscallQuery) -> bool {
    let of_one_node = |group: SyscallGroup| {
        matches!(
            group,
            SyscallGroup::Pod | SyscallGroup::Container | SyscallGroup::Node
        )
    };
    query.kind() == SyscallKind::All && !query.by.is_empty() && !query.by().any(of_one_node)
}

/// Joins the agents' rows, sorted and limited over all; and how many there are before the limit.
fn merge(query: &SyscallQuery, parts: Vec<Vec<SyscallRow>>) -> (Vec<SyscallRow>, u64) {
    let mut rows: Vec<SyscallRow> = if parts.len() > 1 && sums_over_nodes(query) {
        let mut sums: BTreeMap<Key, SyscallRow> = BTreeMap::new();
        for mut row in parts.into_iter().flatten() {
            row.node.clear();
            match sums.entry(Key::of(&row)) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(row);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => add(entry.get_mut(), row),
            }
        }
        sums.into_values().collect()
    } else {
        parts.into_iter().flatten().collect()
    };
    let all = rows.len() as u64;
    let sort = query.sort();
    rows.sort_by(|a, b| order(sort, a, b));
    if query.limit > 0 {
        rows.truncate(query.limit as usize);
    }
    (rows, all)
}

/// What tells rows apart that may be sums over nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key([String; 10], i32, i64);

impl Key {
    fn of(row: &SyscallRow) -> Self {
        Self(names(row).map(str::to_owned), row.abi, row.number)
    }
}

/// Adds `other` to the row of the same key.
pub(crate) fn add(row: &mut SyscallRow, other: SyscallRow) {
    row.count = row.count.saturating_add(other.count);
    row.returned = row.returned.saturating_add(other.returned);
    row.failed = row.failed.saturating_add(other.failed);
    for (name, count) in other.errors {
        let sum = row.errors.entry(name).or_default();
        *sum = sum.saturating_add(count);
    }
    row.total_ns = match (row.total_ns, other.total_ns) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
    };
    let mut buckets: BTreeMap<(bool, u64), u64> = BTreeMap::new();
    for LatencyBucket { below_ns, count } in row.buckets.drain(..).chain(other.buckets) {
        let sum = buckets.entry((below_ns == 0, below_ns)).or_default();
        *sum = sum.saturating_add(count);
    }
    row.buckets = buckets
        .into_iter()
        .map(|((_, below_ns), count)| LatencyBucket { below_ns, count })
        .collect();
    row.p50_ns = percentile(&row.buckets, 50);
    row.p99_ns = percentile(&row.buckets, 99);
    row.first = earliest([row.first, other.first]);
    row.last = latest([row.last, other.last]);
    for wait in other.waits {
        match row.waits.iter_mut().find(|own| own.class == wait.class) {
            Some(SyscallWait { total_ns, count, .. }) => {
                *total_ns = total_ns.saturating_add(wait.total_ns);
                *count = count.saturating_add(wait.count);
            }
            None => row.waits.push(wait),
        }
    }
    // Two ways to the same name are told as none.
    if let (Some(own), Some(others)) = (&mut row.owner, &other.owner)
        && own.attribution != others.attribution
    {
        own.attribution = Endpoint::default().attribution;
    }
}

/// Upper bound of the bucket that holds the percentile (nearest rank); none if there is no call.
fn percentile(buckets: &[LatencyBucket], percent: u64) -> Option<u64> {
    let all: u128 = buckets.iter().map(|bucket| u128::from(bucket.count)).sum();
    let rank = (all * u128::from(percent)).div_ceil(100).max(1);
    let mut below = 0;
    let bucket = buckets.iter().find(|bucket| {
        below += u128::from(bucket.count);
        below >= rank
    })?;
    Some(if bucket.below_ns > 0 {
        bucket.below_ns
    } else {
        UNBOUNDED
    })
}

/// What a row is called.
fn names(row: &SyscallRow) -> [&str; 10] {
    let owner =
        |field: fn(&Endpoint) -> &String| row.owner.as_ref().map_or("", |owner| field(owner).as_str());
    [
        owner(|owner| &owner.namespace),
        owner(|owner| &owner.pod),
        owner(|owner| &owner.workload),
        owner(|owner| &owner.unit),
        owner(|owner| &owner.container),
        owner(|owner| &owner.process),
        owner(|owner| &owner.cgroup),
        &row.syscall,
        &row.category,
        &row.node,
    ]
}

/// Which row comes first, as the agents sort; then by name, so that the order of two answers is the same.
fn order(sort: SyscallSort, a: &SyscallRow, b: &SyscallRow) -> Ordering {
    let by = |row: &SyscallRow| match sort {
        SyscallSort::Count => Some(row.count),
        SyscallSort::Errors => Some(row.failed),
        SyscallSort::Time => row.total_ns,
        SyscallSort::P99 => row.p99_ns,
    };
    Reverse(by(a))
        .cmp(&Reverse(by(b)))
        .then_with(|| b.count.cmp(&a.count))
        .then_with(|| names(a).cmp(&names(b)))
        .then_with(|| (a.abi, a.number).cmp(&(b.abi, b.number)))
}

/// One summary of all. The ledgers stay apart: what was lost is told for each.
fn join(summaries: Vec<SyscallSummary>) -> Option<SyscallSummary> {
    let nodes = summaries.len();
    let mut summaries = summaries.into_iter();
    let mut all = summaries.next()?;
    for summary in summaries {
        all.node = format!("{nodes} nodes");
        all.from = earliest([all.from, summary.from]);
        all.to = latest([all.to, summary.to]);
        if all.mode != summary.mode {
            all.set_mode(SyscallMode::Unspecified);
        }
        all.measured = match (all.measured, summary.measured) {
            (Some(a), Some(b)) => Some(if seconds(&b) < seconds(&a) { b } else { a }),
            _ => None,
        };
        all.matched_rows = all.matched_rows.saturating_add(summary.matched_rows);
        all.matched_calls = all.matched_calls.saturating_add(summary.matched_calls);
        all.matched_errors = all.matched_errors.saturating_add(summary.matched_errors);
        all.ledger.clear();
        all.notes.clear();
    }
    Some(all)
}

/// Until when the agents have counted calls, each by its own clock, and the latest of these times.
///
/// # Errors
/// As for [`ask`].
pub(crate) async fn counted_until(fleet: &Fleet) -> anyhow::Result<(Cursor, Option<Timestamp>)> {
    let query = SyscallQuery {
        by: vec![SyscallGroup::Node.into()],
        limit: 1,
        ..SyscallQuery::default()
    };
    let cursor = ask(fleet, &query, &Cursor::default()).await?.cursor;
    let to = latest(cursor.0.iter().copied());
    Ok((cursor, to))
}

/// Switches all agents to `mode`: what each answers, by its name, and name and reason of each that did not switch.
///
/// # Errors
/// If none switched.
pub(crate) async fn set_mode(
    fleet: &Fleet,
    mode: SyscallMode,
) -> anyhow::Result<(Vec<(String, SetSyscallModeResponse)>, Vec<String>)> {
    let (came, missing) = fleet
        .gather(|mut client| async move {
            client
                .set_syscall_mode(SetSyscallModeRequest {
                    mode: mode.into(),
                    ..SetSyscallModeRequest::default()
                })
                .await
        })
        .await?;
    let named = came
        .into_iter()
        .map(|(member, response)| (member.name.clone(), response))
        .collect();
    Ok((named, missing))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(workload: &str, syscall: &str, node: &str, count: u64) -> SyscallRow {
        SyscallRow {
            node: node.into(),
            owner: Some(Endpoint {
                workload: workload.into(),
                ..Endpoint::default()
            }),
            syscall: syscall.into(),
            count,
            ..SyscallRow::default()
        }
    }

    fn by(groups: &[SyscallGroup], limit: u32) -> SyscallQuery {
        SyscallQuery {
            by: groups.iter().copied().map(i32::from).collect(),
            limit,
            ..SyscallQuery::default()
        }
    }

    #[test]
    fn rows_are_summed_only_where_the_grouping_sums_over_nodes() {
        let parts = || {
            vec![
                vec![row("a", "read", "n1", 5), row("a", "write", "n1", 4)],
                vec![row("b", "read", "n2", 6), row("a", "write", "n2", 3)],
            ]
        };
        let counts = |query: &SyscallQuery| {
            let (rows, all) = merge(query, parts());
            let rows: Vec<_> = rows
                .into_iter()
                .map(|row| (row.owner.unwrap().workload, row.syscall, row.node, row.count))
                .collect();
            (rows, all)
        };
        let told = |workload: &str, syscall: &str, node: &str, count| {
            (workload.to_owned(), syscall.to_owned(), node.to_owned(), count)
        };
        // The first of all, which was the second of each.
        let sums = by(&[SyscallGroup::Workload, SyscallGroup::Syscall], 1);
        assert_eq!(counts(&sums), (vec![told("a", "write", "", 7)], 3));
        for apart in [SyscallGroup::Node, SyscallGroup::Pod, SyscallGroup::Container] {
            let (rows, all) = counts(&by(&[SyscallGroup::Workload, SyscallGroup::Syscall, apart], 1));
            assert_eq!((rows, all), (vec![told("b", "read", "n2", 6)], 4), "{apart:?}");
        }
        // Empty: container and syscall.
        assert!(!sums_over_nodes(&by(&[], 0)));
        let mut changes = sums;
        changes.set_kind(SyscallKind::Anomalies);
        assert!(!sums_over_nodes(&changes), "a verdict is of one node's history");
    }

    #[test]
    fn sums_are_exact_and_percentiles_are_of_all() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let bucket = |below_ns, count| LatencyBucket { below_ns, count };
        let wait = |class: &str, total_ns| SyscallWait {
            class: class.into(),
            total_ns,
            count: 1,
        };
        let mut a = SyscallRow {
            returned: 99,
            failed: 3,
            errors: [("ENOENT".to_owned(), 3)].into(),
            total_ns: Some(1000),
            buckets: vec![bucket(256, 98), bucket(0, 1)],
            p50_ns: Some(256),
            first: at(5),
            last: at(7),
            waits: vec![wait("disk", 5)],
            ..row("", "openat", "", 100)
        };
        let b = SyscallRow {
            returned: 200,
            failed: 2,
            errors: [("ENOENT".to_owned(), 1), ("EACCES".to_owned(), 1)].into(),
            total_ns: Some(500),
            buckets: vec![bucket(64, 200)],
            first: at(3),
            last: at(9),
            waits: vec![wait("disk", 2), wait("futex", 1)],
            ..row("", "openat", "", 200)
        };
        add(&mut a, b);
        assert_eq!(
            (a.count, a.returned, a.failed, a.total_ns),
            (300, 299, 5, Some(1500))
        );
        assert_eq!((a.errors["ENOENT"], a.errors["EACCES"]), (4, 1));
        assert_eq!((a.p50_ns, a.p99_ns), (Some(64), Some(256)));
        assert_eq!((a.first, a.last), (at(3), at(9)));
        assert_eq!(a.buckets, [bucket(64, 200), bucket(256, 98), bucket(0, 1)]);
        assert_eq!(
            a.waits,
            [
                SyscallWait {
                    count: 2,
                    ..wait("disk", 7)
                },
                wait("futex", 1)
            ]
        );
    }

    #[test]
    fn percentiles_are_bounds() {
        let bucket = |below_ns, count| LatencyBucket { below_ns, count };
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[bucket(8, 1)], 99), Some(8));
        assert_eq!(percentile(&[bucket(8, 1), bucket(0, 9)], 99), Some(UNBOUNDED));
        assert_eq!(
            unbounded(SyscallRow {
                p99_ns: Some(0),
                ..SyscallRow::default()
            })
            .p99_ns,
            Some(UNBOUNDED)
        );
        assert_eq!(percentile(&[bucket(8, 99), bucket(16, 1)], 99), Some(8));
        assert_eq!(percentile(&[bucket(8, 98), bucket(16, 2)], 99), Some(16));
        assert_eq!(
            percentile(&[bucket(8, u64::MAX), bucket(16, u64::MAX)], 99),
            Some(16)
        );
    }

    #[test]
    fn rows_sort_by_what_was_asked() {
        let a = SyscallRow {
            failed: 1,
            total_ns: Some(5),
            ..row("", "a", "", 9)
        };
        let b = SyscallRow {
            failed: 2,
            p99_ns: Some(1),
            ..row("", "b", "", 8)
        };
        for (sort, first) in [
            (SyscallSort::Count, "a"),
            (SyscallSort::Errors, "b"),
            (SyscallSort::Time, "a"),
            (SyscallSort::P99, "b"),
        ] {
            let query = SyscallQuery {
                sort: sort.into(),
                ..by(&[], 1)
            };
            let (rows, _) = merge(&query, vec![vec![b.clone()], vec![a.clone()]]);
            assert_eq!(rows[0].syscall, first, "{sort:?}");
        }
    }

    #[test]
    fn summaries_say_what_is_true_of_all() {
        let summary = |mode: SyscallMode, measured| SyscallSummary {
            mode: mode.into(),
            measured: Some(prost_types::Duration {
                seconds: measured,
                nanos: 0,
            }),
            matched_calls: 5,
            ..SyscallSummary::default()
        };
        let all = join(vec![
            summary(SyscallMode::Latency, 9),
            summary(SyscallMode::Counts, 2),
        ])
        .unwrap();
        assert_eq!((all.mode(), all.matched_calls), (SyscallMode::Unspecified, 10));
        assert_eq!(all.measured.unwrap().seconds, 2);
    }

    #[test]
    fn an_answer_that_does_not_reach_back_is_partial() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let from = |seconds| SyscallSummary {
            from: at(seconds),
            ..SyscallSummary::default()
        };
        assert!(starts_late(at(100).as_ref(), Some(&from(110))));
        assert!(!starts_late(at(100).as_ref(), Some(&from(101))));
        assert!(!starts_late(at(100).as_ref(), Some(&from(90))));
        assert!(!starts_late(None, Some(&from(110))));
    }

    proptest! {
        #[test]
        fn no_call_goes_missing(counts in proptest::collection::vec((0_u8..4, 0_u8..3, 0_u8..3, 0_u64..1000), 0..60)) {
            let mut parts = vec![Vec::new(), Vec::new(), Vec::new()];
            for (workload, syscall, node, count) in &counts {
                parts[usize::from(*node)].push(row(&workload.to_string(), &syscall.to_string(), &node.to_string(), *count));
            }
            let sum: u64 = counts.iter().map(|(.., count)| count).sum();
            for groups in [&[SyscallGroup::Syscall, SyscallGroup::Workload][..], &[SyscallGroup::Container]] {
                let (rows, _) = merge(&by(groups, 0), parts.clone());
                prop_assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), sum);
            }
        }
    }
}
