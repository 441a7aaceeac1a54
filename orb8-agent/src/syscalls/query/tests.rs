use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::syscalls::{
    baseline::{Baseline, BaselineLimits},
    history::{CallHistory, CallHistoryLimits},
    totals::CallTotals,
};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000_000 * SECOND;

struct Fixture {
    store: SyscallStore,
    owners: OwnerTable,
    now: u64,
}

fn pod(name: &str, container: &str, workload: &str) -> Owner {
    Owner {
        kind: Kind::Pod,
        pod: Some(Arc::new(PodName {
            uid: name.to_owned(),
            full: format!("shop/{name}"),
            workload: workload.to_owned(),
            node: "n".to_owned(),
        })),
        container: container.to_owned(),
        cgroup: format!("/kubepods/{name}/{container}"),
        ..Owner::default()
    }
}

fn call(name: &str) -> Call {
    Call::parse(name).unwrap()[0]
}

impl Fixture {
    fn new() -> Self {
        let limits = CallHistoryLimits {
            span: Duration::from_secs(3600),
            bytes: 8 << 20,
        };
        let warmup = Duration::from_secs(20);
        Self {
            store: SyscallStore::new(
                CallHistory::new(limits, START),
                CallTotals::new(1000, 300, BTreeSet::new()),
                Baseline::new(
                    BaselineLimits {
                        warmup,
                        ..BaselineLimits::default()
                    },
                    START,
                ),
                true,
            ),
            owners: OwnerTable::new(100),
            now: START,
        }
    }

    fn interval(&mut self, calls: &[(&Owner, &str, u64)]) {
        for (owner, name, count) in calls {
            let id = self.owners.intern((*owner).clone());
            self.store.record(id, call(name)).count += count;
        }
        self.end(false);
    }

    fn end(&mut self, measured: bool) {
        self.now += SECOND;
        self.store.commit(self.now, measured, &self.owners);
    }

    fn ask(&self, query: &v1::SyscallQuery) -> (Vec<v1::SyscallRow>, v1::SyscallSummary) {
        let query = CallQuery::new(query).unwrap_or_else(|error| panic!("{error}"));
        let selection = query.select(&self.store, &self.owners, "n", self.now);
        let rows = selection.rows.iter().map(|row| row.message("n")).collect();
        (rows, selection.summary)
    }
}

fn by(groups: &[v1::SyscallGroup]) -> v1::SyscallQuery {
    v1::SyscallQuery {
        by: groups.iter().map(|&group| group.into()).collect(),
        ..v1::SyscallQuery::default()
    }
}

fn counts(rows: &[v1::SyscallRow]) -> Vec<(String, String, u64)> {
    rows.iter()
        .map(|row| {
            let owner = row.owner.clone().unwrap_or_default();
            let name = [owner.pod, owner.workload, owner.unit]
                .into_iter()
                .find(|name| !name.is_empty());
            (name.unwrap_or_default(), row.syscall.clone(), row.count)
        })
        .collect()
}

fn shop() -> Fixture {
    let mut fixture = Fixture::new();
    let (a, b) = (
        pod("cart-1", "app", "Deployment/cart"),
        pod("cart-2", "app", "Deployment/cart"),
    );
    let sidecar = pod("cart-1", "proxy", "Deployment/cart");
    let unit = Owner {
        kind: Kind::Process,
        unit: "ssh.service".to_owned(),
        cgroup: "/system.slice/ssh.service".to_owned(),
        ..Owner::default()
    };
    fixture.interval(&[(&a, "read", 5), (&a, "openat", 1), (&sidecar, "read", 2)]);
    fixture.interval(&[(&b, "read", 7), (&unit, "read", 3)]);
    fixture
}

#[test]
fn groups_sum_what_they_do_not_keep_apart() {
    use v1::SyscallGroup as By;
    let fixture = shop();
    let of = |groups: &[By]| counts(&fixture.ask(&by(groups)).0);
    let row = |owner: &str, call: &str, count| (owner.to_owned(), call.to_owned(), count);
    assert_eq!(
        of(&[]),
        [
            row("cart-2", "read", 7),
            row("cart-1", "read", 5),
            row("ssh.service", "read", 3),
            row("cart-1", "read", 2),
            row("cart-1", "openat", 1),
        ]
    );
    assert_eq!(
        of(&[By::Pod]),
        [
            row("cart-1", "", 8),
            row("cart-2", "", 7),
            row("ssh.service", "", 3)
        ]
    );
    assert_eq!(
        of(&[By::Workload]),
        [row("Deployment/cart", "", 15), row("ssh.service", "", 3)]
    );
    assert_eq!(of(&[By::Syscall]), [row("", "read", 17), row("", "openat", 1)]);
    assert_eq!(of(&[By::Category]), [row("", "", 18)]);
    assert_eq!(of(&[By::Node]), [row("", "", 18)]);
    assert_eq!(of(&[By::Pod, By::Container, By::Syscall]), of(&[]));
    let (rows, summary) = fixture.ask(&by(&[]));
    assert_eq!(
        (summary.matched_rows, summary.matched_calls),
        (5, rows.iter().map(|row| row.count).sum())
    );
    assert_eq!(summary.from, Some(timestamp(START)));
    assert_eq!(summary.to, Some(timestamp(START + 2 * SECOND)));
    let openat = &rows[4];
    assert_eq!(
        (openat.category.as_str(), openat.number),
        ("file", i64::from(call("openat").number))
    );
    assert_eq!(openat.abi, i32::from(v1::SyscallAbi::from(call("openat").abi)));
    assert_eq!(openat.owner.as_ref().unwrap().container, "app");
}

#[test]
fn filters_spans_and_limits_leave_out_the_rest() {
    let fixture = shop();
    let query = |set: fn(&mut v1::SyscallQuery)| {
        let mut query = by(&[]);
        query.filter = Some(v1::SyscallFilter::default());
        set(&mut query);
        let (rows, summary) = fixture.ask(&query);
        (counts(&rows), summary)
    };
    let sum = |(rows, _): (Vec<(String, String, u64)>, _)| rows.iter().map(|row| row.2).sum::<u64>();
    assert_eq!(
        sum(query(
            |q| q.filter.as_mut().unwrap().pods = vec!["cart-1".to_owned()]
        )),
        8
    );
    assert_eq!(
        sum(query(
            |q| q.filter.as_mut().unwrap().namespaces = vec!["shop".to_owned()]
        )),
        15
    );
    assert_eq!(
        sum(query(
            |q| q.filter.as_mut().unwrap().workloads = vec!["Deployment/cart".to_owned()]
        )),
        15
    );
    assert_eq!(
        sum(query(
            |q| q.filter.as_mut().unwrap().containers = vec!["proxy".to_owned()]
        )),
        2
    );
    assert_eq!(
        sum(query(
            |q| q.filter.as_mut().unwrap().owners = vec!["ssh".to_owned()]
        )),
        3
    );
    assert_eq!(
        sum(query(
            |q| q.filter.as_mut().unwrap().syscalls = vec!["openat".to_owned()]
        )),
        1
    );
    assert_eq!(
        sum(query(
            |q| q.filter.as_mut().unwrap().categories = vec!["network".to_owned()]
        )),
        0
    );
    assert_eq!(sum(query(|q| q.since = Some(timestamp(START + SECOND)))), 10);
    assert_eq!(sum(query(|q| q.until = Some(timestamp(START + SECOND)))), 8);
    let (rows, summary) = query(|q| q.limit = 2);
    assert_eq!(
        (rows.len(), summary.matched_rows, summary.matched_calls),
        (2, 5, 18)
    );
}

#[test]
fn calls_without_number_are_told_apart_and_never_guessed() {
    let mut fixture = shop();
    let id = fixture.owners.intern(pod("cart-1", "app", "Deployment/cart"));
    fixture.store.record(id, Call::unknown()).count += 4;
    fixture.end(false);
    let (rows, _) = fixture.ask(&by(&[v1::SyscallGroup::Syscall]));
    let other = rows.iter().find(|row| row.syscall == "other").unwrap();
    assert_eq!((other.count, other.number, other.abi), (4, -1, 0));
    let mut query = by(&[]);
    query.filter = Some(v1::SyscallFilter {
        syscalls: vec!["read".to_owned()],
        ..v1::SyscallFilter::default()
    });
    let (rows, summary) = fixture.ask(&query);
    assert!(rows.iter().all(|row| row.syscall == "read"));
    assert!(
        summary.notes[0].starts_with("4 calls are left out"),
        "{:?}",
        summary.notes
    );
}

#[test]
fn errors_and_times_are_of_what_was_measured() {
    let mut fixture = shop();
    let owner = pod("cart-1", "app", "Deployment/cart");
    let id = fixture.owners.intern(owner);
    for (name, total_ns, bucket, errors) in [
        ("openat", 900, 10, vec![(2, 3), (13, 1)]),
        ("futex", 1 << 30, 31, vec![]),
    ] {
        let record = fixture.store.record(id, call(name));
        record.count += 4;
        let measured = record.measured_mut();
        measured.returned = 4;
        measured.total_ns = total_ns;
        measured.buckets[bucket] = 4;
        measured.errors = errors;
    }
    fixture.end(true);
    let mut query = by(&[v1::SyscallGroup::Syscall]);
    query.sort = v1::SyscallSort::Time.into();
    let (rows, summary) = fixture.ask(&query);
    assert_eq!(summary.measured, Some(duration(SECOND)));
    assert_eq!(summary.matched_errors, 4);
    let names: Vec<_> = rows.iter().map(|row| row.syscall.as_str()).collect();
    assert_eq!(names, ["futex", "openat", "read"]);
    let openat = &rows[1];
    assert_eq!((openat.count, openat.returned, openat.failed), (5, 4, 4));
    assert_eq!((openat.errors["ENOENT"], openat.errors["EACCES"]), (3, 1));
    assert_eq!(
        (openat.total_ns, openat.p50_ns, openat.p99_ns),
        (Some(900), Some(1024), Some(1024))
    );
    assert_eq!(
        openat.buckets,
        [v1::LatencyBucket {
            below_ns: 1024,
            count: 4
        }]
    );
    assert_eq!((rows[2].total_ns, rows[2].p99_ns), (None, None));
    assert!(rows.iter().all(|row| row.waits.is_empty()));
    // What a pod waits for.
    let (rows, _) = fixture.ask(&by(&[v1::SyscallGroup::Pod]));
    let waits: Vec<_> = rows[0]
        .waits
        .iter()
        .map(|it| (it.class.as_str(), it.total_ns, it.count))
        .collect();
    assert_eq!(waits, [("futex", 1 << 30, 4), ("disk", 900, 4)]);
    // Only those that failed so.
    query.filter = Some(v1::SyscallFilter {
        errnos: vec!["ENOENT".to_owned()],
        ..v1::SyscallFilter::default()
    });
    let (rows, summary) = fixture.ask(&query);
    assert_eq!(
        (rows.len(), rows[0].count, rows[0].failed, rows[0].total_ns),
        (1, 3, 3, None)
    );
    assert_eq!(rows[0].errors.len(), 1);
    assert!(
        summary
            .notes
            .iter()
            .any(|note| note.contains("failed with the errors"))
    );
}

#[test]
fn changes_come_with_their_verdict() {
    let mut fixture = Fixture::new();
    let owner = pod("cart-1", "app", "Deployment/cart");
    fixture.interval(&[(&owner, "read", 5)]);
    let mut query = by(&[]);
    query.kind = v1::SyscallKind::New.into();
    let (rows, summary) = fixture.ask(&query);
    assert!(rows.is_empty());
    assert!(
        summary
            .notes
            .iter()
            .any(|note| note.contains("shop/Deployment/cart for 0 s")),
        "{:?}",
        summary.notes
    );
    for _ in 0..40 {
        fixture.interval(&[(&owner, "read", 5)]);
    }
    fixture.interval(&[(&owner, "read", 5), (&owner, "ptrace", 2)]);
    fixture.interval(&[(&owner, "ptrace", 1)]);
    let (rows, summary) = fixture.ask(&query);
    assert_eq!(
        counts(&rows),
        [("Deployment/cart".to_owned(), "ptrace".to_owned(), 3)]
    );
    let verdict = rows[0].change.as_ref().unwrap();
    assert_eq!(verdict.kind, i32::from(v1::SyscallKind::New));
    assert!(
        verdict.explanation.contains("ptrace 2 times"),
        "{}",
        verdict.explanation
    );
    assert!(verdict.watched.unwrap().seconds >= 20);
    assert!(summary.notes.is_empty(), "{:?}", summary.notes);
    // By pod as well, and long after.
    query.by = vec![v1::SyscallGroup::Pod.into(), v1::SyscallGroup::Syscall.into()];
    assert_eq!(counts(&fixture.ask(&query).0)[0].0, "cart-1");
    query.by.clear();
    for _ in 0..2 {
        fixture.now += 7200 * SECOND;
        fixture.end(false);
    }
    let (rows, _) = fixture.ask(&query);
    assert_eq!(
        counts(&rows),
        [("Deployment/cart".to_owned(), "ptrace".to_owned(), 2)]
    );
    query.kind = v1::SyscallKind::Anomalies.into();
    assert!(fixture.ask(&query).0.is_empty());
}

#[test]
fn a_query_that_makes_no_sense_is_refused() {
    let error = |set: fn(&mut v1::SyscallQuery)| {
        let mut query = by(&[]);
        set(&mut query);
        CallQuery::new(&query).unwrap_err().to_string()
    };
    assert!(error(|q| q.by = vec![0]).contains("allowed: 1 pod"));
    assert!(error(|q| q.by = vec![99]).contains("grouping 99"));
    assert!(error(|q| q.sort = 9).contains("sort order 9"));
    assert!(error(|q| q.kind = 9).contains("kind 9"));
    assert!(
        error(|q| {
            q.kind = 1;
            q.by = vec![1];
        })
        .contains("by syscall")
    );
    assert!(
        error(|q| {
            q.since = Some(timestamp(5));
            q.until = Some(timestamp(5));
        })
        .contains("not before")
    );
    assert!(
        error(|q| {
            q.kind = 2;
            q.filter = Some(v1::SyscallFilter {
                errnos: vec!["ENOENT".to_owned()],
                ..v1::SyscallFilter::default()
            });
        })
        .contains("errnos")
    );
}
