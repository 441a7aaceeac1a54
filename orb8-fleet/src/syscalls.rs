//! System calls of many nodes.
//!
//! Rows of two nodes are summed only where the grouping sums over nodes: a pod, a container and a unit are of one node.
//! Then each member is asked for all of its rows, so that the sums, and which of them are the greatest, are exact. Verdicts
//! about changes rest on a node's own history, so that their rows stay apart too.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
};

use futures::StreamExt as _;
use hashbrown::hash_table::{Entry, HashTable};
use orb8_proto::{
    Responses, batches,
    v1::{
        Endpoint, LatencyBucket, NodeAnswer, QuerySyscallsResponse, SyscallBatch, SyscallGroup, SyscallKind,
        SyscallMode, SyscallQuery, SyscallRow, SyscallSort, SyscallSummary, SyscallWait,
        query_syscalls_response::Part,
    },
};
use prost_types::Timestamp;
use tonic::{Code, Status};

use crate::{
    ask::{Asked, Selection, ToldBy as _, in_order, nobody},
    hub::{Hub, Wanted},
    ledger::trimmed,
    times::{earlier_by, earliest, latest, shift, shift_row},
};

/// Rows of one message of the answer.
const BATCH: usize = 512;
/// A bound that is longer than all others, for the order; the protocol says 0.
const UNBOUNDED: u64 = u64::MAX;

/// One member's part.
#[derive(Debug)]
struct PartOf {
    asked: Asked,
    rows: Vec<SyscallRow>,
    given: u64,
    summary: Option<SyscallSummary>,
    error: Option<Status>,
}

/// All that one member says, at most `max` rows.
async fn take(asked: Asked, query: SyscallQuery, max: usize) -> PartOf {
    let mut part = PartOf {
        asked,
        rows: Vec::new(),
        given: 0,
        summary: None,
        error: None,
    };
    let opened = part
        .asked
        .try_within(|mut client| {
            let query = query.clone();
            async move {
                let mut stream = client.query_syscalls(query).await?.into_inner();
                let first = stream.message().await?;
                Ok((stream, first))
            }
        })
        .await;
    let (mut stream, mut message) = match opened {
        Ok(opened) => opened,
        Err(status) => {
            part.error = Some(status);
            return part;
        }
    };
    let correction = part.asked.member.clock.correction_ns();
    while let Some(QuerySyscallsResponse { part: some }) = message.take() {
        match some {
            Some(Part::Batch(batch)) if part.rows.len() + batch.rows.len() > max => {
                part.error = Some(too_many(max));
                return part;
            }
            Some(Part::Batch(batch)) => {
                part.given += batch.rows.len() as u64;
                part.rows.extend(batch.rows.into_iter().map(|mut row| {
                    shift_row(&mut row, correction);
                    row
                }));
            }
            Some(Part::Summary(summary)) => part.summary = Some(summary),
            None => {}
        }
        match part.asked.within(stream.message()).await {
            Ok(next) => message = next,
            Err(status) => {
                part.error = Some(status);
                return part;
            }
        }
    }
    part
}

fn too_many(max: usize) -> Status {
    Status::resource_exhausted(format!(
        "more than {max} rows: ask for fewer, by a limit, a filter or other groups"
    ))
}

impl PartOf {
    fn answer(&self) -> NodeAnswer {
        let mut answer = match &self.error {
            Some(status) => self.asked.failed(status, self.given),
            None => NodeAnswer {
                items: self.given,
                ..self.asked.answered()
            },
        };
        if self.error.is_some() && self.given > 0 {
            answer.reason = format!(
                "its answer broke off after {} rows: {}",
                self.given, answer.reason
            );
        }
        let Some(summary) = &self.summary else {
            if self.error.is_none() {
                answer
                    .notes
                    .push("the answer ended without its summary: it may be partial".to_owned());
            }
            return answer;
        };
        let correction = self.asked.member.clock.correction_ns();
        answer.from = summary.from.map(|time| earlier_by(time, correction));
        answer.to = summary.to.map(|time| earlier_by(time, correction));
        answer.cursor = summary.to;
        answer.told_by(&summary.node);
        answer.syscall_mode = summary.mode;
        answer.measured = summary.measured;
        (answer.ledger, answer.notes) = trimmed(&summary.ledger, &summary.notes);
        answer
    }
}

impl Hub {
    /// System calls of all members. The answer is held: bounded by [`Limits::max_rows`](crate::Limits::max_rows).
    pub(crate) async fn syscalls(
        &self,
        query: SyscallQuery,
    ) -> Result<Responses<QuerySyscallsResponse>, Status> {
        let permit = self.query_permit()?;
        let filter = query.filter.clone().unwrap_or_default();
        let route = self.nodes_of(&Wanted {
            namespaces: filter.namespaces,
            pods: filter.pods,
            workloads: filter.workloads,
            since: query.since,
        });
        let Selection { asked, others, order } = self.select(&query.nodes, route.as_ref())?;
        let single = asked.len() == 1;
        let sums = !single && sums_over_nodes(&query);
        let max = self.limits.max_rows;
        let own = |asked: &Asked| {
            let correction = asked.member.clock.correction_ns();
            let to_theirs = |time: Timestamp| earlier_by(time, correction.saturating_neg());
            let cursor = query
                .cursors
                .iter()
                .find(|cursor| cursor.name == asked.member.name);
            SyscallQuery {
                since: match cursor {
                    Some(cursor) => cursor.time,
                    None => query.since.map(to_theirs),
                },
                until: query.until.map(to_theirs),
                // The first of each are the first of all only where no row is a sum over nodes.
                limit: if sums { 0 } else { query.limit },
                nodes: Vec::new(),
                cursors: Vec::new(),
                ..query.clone()
            }
        };
        let mut parts = futures::stream::iter(asked)
            .map(|asked| {
                let query = own(&asked);
                take(asked, query, max)
            })
            // Summed as they come, not in the order of the members: most are done with while the slowest are waited for.
            .buffer_unordered(self.limits.concurrency);
        let mut rows = Rows::new(sums, max);
        let mut all = SyscallSummary {
            nodes: others,
            ..SyscallSummary::default()
        };
        let mut refused = None;
        let mut summaries = Vec::new();
        while let Some(mut part) = parts.next().await {
            all.nodes.push(part.answer());
            if let Some(status) = &part.error {
                self.counts.failed(status);
                if status.code() == Code::InvalidArgument {
                    refused = Some(status.clone());
                }
            }
            let node = part.summary.as_ref().map(|summary| summary.node.clone());
            if let (false, Some(node)) = (single || sums, node) {
                part.rows
                    .iter_mut()
                    .filter(|row| row.node.is_empty())
                    .for_each(|row| row.node.clone_from(&node));
            }
            if !rows.add(part.rows) {
                return Err(too_many(max));
            }
            if let Some(mut summary) = part.summary {
                let correction = part.asked.member.clock.correction_ns();
                shift(&mut summary.from, correction);
                shift(&mut summary.to, correction);
                summaries.push(summary);
            }
        }
        if let Some(error) = nobody(&all.nodes, refused.as_ref()) {
            return Err(error);
        }
        in_order(&order, &mut all.nodes);
        join(&mut all, summaries);
        let (rows, groups) = rows.sorted(query.sort(), query.limit as usize);
        if sums {
            all.matched_rows = groups;
        }
        Ok(self.deliver(permit, async move |sender| {
            for rows in batches(rows, BATCH) {
                let batch = Part::Batch(SyscallBatch { rows });
                sender.send(QuerySyscallsResponse { part: Some(batch) }).await?;
            }
            let summary = Part::Summary(all);
            sender.send(QuerySyscallsResponse { part: Some(summary) }).await
        }))
    }
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

/// The members' rows, joined as they come.
#[derive(Debug)]
enum Rows {
    Apart {
        rows: Vec<SyscallRow>,
        max: usize,
    },
    Summed {
        sums: HashTable<SyscallRow>,
        hasher: RandomState,
        max: usize,
    },
}

impl Rows {
    fn new(summed: bool, max: usize) -> Self {
        if summed {
            Self::Summed {
                sums: HashTable::new(),
                hasher: RandomState::new(),
                max,
            }
        } else {
            Self::Apart {
                rows: Vec::new(),
                max,
            }
        }
    }

    /// Whether there was room.
    fn add(&mut self, more: Vec<SyscallRow>) -> bool {
        match self {
            Self::Apart { rows, max } => {
                rows.extend(more);
                rows.len() <= *max
            }
            Self::Summed { sums, hasher, max } => {
                for mut row in more {
                    row.node.clear();
                    let hash = hasher.hash_one(key(&row));
                    match sums.entry(hash, |sum| key(sum) == key(&row), |sum| hasher.hash_one(key(sum))) {
                        Entry::Vacant(entry) => {
                            entry.insert(row);
                        }
                        Entry::Occupied(mut entry) => add(entry.get_mut(), row),
                    }
                }
                sums.len() <= *max
            }
        }
    }

    /// Sorted, no more than `limit` unless that is 0; and how many there are before the limit.
    fn sorted(self, sort: SyscallSort, limit: usize) -> (Vec<SyscallRow>, u64) {
        let mut rows: Vec<SyscallRow> = match self {
            Self::Apart { rows, .. } => rows,
            Self::Summed { sums, .. } => sums.into_iter().collect(),
        };
        let all = rows.len() as u64;
        rows.sort_by(|a, b| order(sort, a, b));
        if limit > 0 {
            rows.truncate(limit);
        }
        (rows, all)
    }
}

/// What tells rows apart that may be sums over nodes.
fn key(row: &SyscallRow) -> ([&str; 10], i32, i64) {
    (names(row), row.abi, row.number)
}

/// Adds `other` to the row of the same key.
fn add(row: &mut SyscallRow, other: SyscallRow) {
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
    add_buckets(row, other.buckets);
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

/// Adds a histogram, and finds the percentiles of both together.
fn add_buckets(row: &mut SyscallRow, others: Vec<LatencyBucket>) {
    if row.buckets.is_empty() && others.is_empty() {
        return;
    }
    let mut buckets: BTreeMap<(bool, u64), u64> = BTreeMap::new();
    for LatencyBucket { below_ns, count } in row.buckets.drain(..).chain(others) {
        let sum = buckets.entry((below_ns == 0, below_ns)).or_default();
        *sum = sum.saturating_add(count);
    }
    row.buckets = buckets
        .into_iter()
        .map(|((_, below_ns), count)| LatencyBucket { below_ns, count })
        .collect();
    row.p50_ns = percentile(&row.buckets, 50);
    row.p99_ns = percentile(&row.buckets, 99);
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
    // In the protocol, a bound of 0 is none.
    Some(bucket.below_ns)
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
        SyscallSort::P99 => row.p99_ns.map(|ns| if ns == 0 { UNBOUNDED } else { ns }),
    };
    Reverse(by(a))
        .cmp(&Reverse(by(b)))
        .then_with(|| b.count.cmp(&a.count))
        .then_with(|| names(a).cmp(&names(b)))
        .then_with(|| (a.abi, a.number).cmp(&(b.abi, b.number)))
}

/// Adds the members' summaries up. The ledgers stay apart: what was lost is told for each.
fn join(all: &mut SyscallSummary, summaries: Vec<SyscallSummary>) {
    let nodes = summaries.len();
    let mut first = true;
    for summary in summaries {
        all.from = earliest([all.from, summary.from]);
        all.to = latest([all.to, summary.to]);
        if first {
            all.node.clone_from(&summary.node);
            (all.mode, all.measured) = (summary.mode, summary.measured);
        } else {
            all.node = format!("{nodes} nodes");
            if all.mode != summary.mode {
                all.set_mode(SyscallMode::Unspecified);
            }
            all.measured = match (all.measured, summary.measured) {
                (Some(a), Some(b)) => Some(if seconds(&b) < seconds(&a) { b } else { a }),
                _ => None,
            };
        }
        first = false;
        all.matched_rows = all.matched_rows.saturating_add(summary.matched_rows);
        all.matched_calls = all.matched_calls.saturating_add(summary.matched_calls);
        all.matched_errors = all.matched_errors.saturating_add(summary.matched_errors);
    }
}

/// A duration in seconds.
fn seconds(duration: &prost_types::Duration) -> f64 {
    duration.seconds as f64 + f64::from(duration.nanos) / 1e9
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

    fn merge(query: &SyscallQuery, parts: Vec<Vec<SyscallRow>>) -> (Vec<SyscallRow>, u64) {
        let mut rows = Rows::new(sums_over_nodes(query), 1000);
        assert!(parts.into_iter().all(|part| rows.add(part)));
        rows.sorted(query.sort(), query.limit as usize)
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
        // The protocol's "longer than all others".
        assert_eq!(percentile(&[bucket(8, 1), bucket(0, 9)], 99), Some(0));
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
        let mut all = SyscallSummary::default();
        join(
            &mut all,
            vec![summary(SyscallMode::Latency, 9), summary(SyscallMode::Counts, 2)],
        );
        assert_eq!((all.mode(), all.matched_calls), (SyscallMode::Unspecified, 10));
        assert_eq!(all.measured.unwrap().seconds, 2);
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
