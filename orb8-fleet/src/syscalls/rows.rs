//! Rows of many nodes: summed where they are of the same, and sorted.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
};

use hashbrown::hash_table::{Entry, HashTable};
use orb8_proto::v1::{
    Endpoint, LatencyBucket, SyscallGroup, SyscallKind, SyscallQuery, SyscallRow, SyscallSort, SyscallWait,
};

use crate::times::{earliest, latest};

/// A bound that is longer than all others, for the order; the protocol says 0.
const UNBOUNDED: u64 = u64::MAX;

/// Whether a row may be a sum over nodes.
pub(super) fn sums_over_nodes(query: &SyscallQuery) -> bool {
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
pub(super) enum Rows {
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
    pub(super) fn new(summed: bool, max: usize) -> Self {
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
    pub(super) fn add(&mut self, more: Vec<SyscallRow>) -> bool {
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
    pub(super) fn sorted(self, sort: SyscallSort, limit: usize) -> (Vec<SyscallRow>, u64) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_types::Timestamp;

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
