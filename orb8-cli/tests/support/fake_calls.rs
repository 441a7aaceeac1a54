//! Made-up system calls, the same ones each time.

use std::collections::BTreeMap;

use orb8_proto::v1::{
    Attribution, Endpoint, EndpointKind, EventLoss, LatencyBucket, LedgerRow, SyscallAbi, SyscallArgument,
    SyscallChange, SyscallEvent, SyscallGroup, SyscallKind, SyscallMode, SyscallQuery, SyscallRow,
    SyscallSort, SyscallSummary, SyscallWait, stream_events_response::Event,
};

use super::{START, Story, at, node};

/// What the agent measures.
pub fn mode(story: Story) -> SyscallMode {
    match story {
        Story::Lossy | Story::ClusterTwo => SyscallMode::Counts,
        _ => SyscallMode::Latency,
    }
}

fn unit(name: &str) -> Endpoint {
    Endpoint {
        kind: EndpointKind::Process.into(),
        unit: name.into(),
        process: "nginx".into(),
        cgroup: format!("/system.slice/{name}"),
        attribution: Attribution::Cgroup.into(),
        ..Endpoint::default()
    }
}

fn pod(namespace: &str, name: &str, container: &str, workload: &str) -> Endpoint {
    Endpoint {
        kind: EndpointKind::Pod.into(),
        namespace: namespace.into(),
        pod: name.into(),
        container: container.into(),
        workload: workload.into(),
        attribution: Attribution::Cgroup.into(),
        ..Endpoint::default()
    }
}

/// Name, number, category, class of its waits, calls, errors, and nanoseconds that most of them take.
type Call = (
    &'static str,
    i64,
    &'static str,
    &'static str,
    u64,
    &'static [(&'static str, u64)],
    u64,
);

const SERVER: [Call; 4] = [
    ("write", 1, "file", "network", 52_000, &[("EAGAIN", 40)], 2048),
    (
        "openat",
        257,
        "file",
        "disk",
        1200,
        &[("ENOENT", 3), ("EACCES", 1)],
        65_536,
    ),
    ("epoll_wait", 232, "event", "poll", 900, &[], 2_097_152),
    ("futex", 202, "ipc", "futex", 310, &[("EAGAIN", 9)], 131_072),
];

const GATEWAY: [Call; 3] = [
    ("read", 0, "file", "network", 40_000, &[], 1024),
    (
        "accept4",
        288,
        "network",
        "network",
        700,
        &[("EAGAIN", 350)],
        8192,
    ),
    ("mount", 165, "file", "other", 2, &[("EPERM", 2)], 4096),
];

/// A row of one container and call.
struct Base {
    row: SyscallRow,
    class: &'static str,
}

fn base(story: Story, to: i64, owner: &Endpoint, call: &Call) -> Base {
    let (name, number, category, class, count, errors, below_ns) = *call;
    let wave = if story == Story::Live {
        u64::try_from(to).unwrap() * u64::from(name.as_bytes()[0]) % 7 + 1
    } else {
        1
    };
    let count = count * wave;
    let mut row = SyscallRow {
        node: node(story).into(),
        owner: Some(owner.clone()),
        syscall: name.into(),
        abi: SyscallAbi::X8664.into(),
        number,
        category: category.into(),
        count,
        first: at(to - 5, 0),
        last: at(to - 1, 500_000_000),
        ..SyscallRow::default()
    };
    if mode(story) == SyscallMode::Latency {
        row.returned = count;
        row.failed = errors.iter().map(|(_, count)| count).sum();
        row.errors = errors
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect();
        row.total_ns = Some(count * below_ns * 3 / 4);
        let slow = count / 50;
        row.buckets = vec![
            LatencyBucket {
                below_ns,
                count: count - slow,
            },
            LatencyBucket {
                below_ns: below_ns * 1024,
                count: slow,
            },
        ];
    }
    Base { row, class }
}

fn bases(story: Story, to: i64) -> Vec<Base> {
    let of = |owner: Endpoint, calls: &[Call]| -> Vec<Base> {
        calls.iter().map(|call| base(story, to, &owner, call)).collect()
    };
    match story {
        Story::ClusterOne => [
            of(
                pod(
                    "shop",
                    "checkoutservice-7d9f8b6c5d-x2x4k",
                    "server",
                    "Deployment/checkoutservice",
                ),
                &SERVER,
            ),
            of(pod("shop", "cart-0", "server", "StatefulSet/cart"), &SERVER[2..]),
        ]
        .into_iter()
        .flatten()
        .collect(),
        Story::ClusterTwo => {
            let gateway = pod(
                "payments",
                "payment-gateway-6b8f9c7d4-q8zjw",
                "gateway",
                "Deployment/payment-gateway",
            );
            [
                of(gateway, &GATEWAY),
                of(pod("shop", "cart-1", "server", "StatefulSet/cart"), &SERVER[3..]),
            ]
            .into_iter()
            .flatten()
            .collect()
        }
        _ => {
            let container = Endpoint {
                container: "4f1d0c9e8b7a6f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6".into(),
                cgroup: "/docker/4f1d0c9e8b7a".into(),
                attribution: Attribution::Cgroup.into(),
                ..Endpoint::default()
            };
            let odd = Endpoint {
                process: "pi\x1b[31mng\u{202e}\n".into(),
                attribution: Attribution::Unknown.into(),
                ..Endpoint::default()
            };
            let mut rows = of(unit("nginx.service"), &SERVER);
            if story == Story::Live {
                for n in 0..40 {
                    rows.extend(of(unit(&format!("worker-{n}.service")), &SERVER[n % 4..]));
                }
            }
            let mut compat = base(story, to, &container, &("read", 3, "file", "disk", 12, &[], 512));
            compat.row.set_abi(SyscallAbi::I386);
            rows.push(compat);
            rows.push(base(
                story,
                to,
                &container,
                &("#999", 999, "other", "other", 2, &[("ENOSYS", 2)], 128),
            ));
            rows.push(base(
                story,
                to,
                &container,
                &("other", 0, "other", "other", 7, &[], 512),
            ));
            rows.push(base(
                story,
                to,
                &odd,
                &("sendto", 44, "network", "network", 4, &[], 16_384),
            ));
            rows
        }
    }
}

/// The verdict about a call of the payment gateway, and others.
pub fn change(name: &str) -> Option<SyscallChange> {
    let watched = Some(prost_types::Duration {
        seconds: 86_400,
        nanos: 0,
    });
    match name {
        "mount" | "openat" => Some(SyscallChange {
            kind: SyscallKind::New.into(),
            watched,
            time: at(START - 3, 0),
            rate: 0.4,
            explanation: format!(
                "cart made {name} once, which it had not made in the 1d that it was watched."
            ),
            ..SyscallChange::default()
        }),
        "accept4" | "futex" => Some(SyscallChange {
            kind: SyscallKind::Anomalies.into(),
            watched,
            time: at(START - 4, 0),
            rate: 140.0,
            mean_rate: 20.5,
            deviation: 4.25,
            score: 28.1,
            explanation: format!(
                "cart makes {name} 140 times a second, 28 deviations above its mean of 20.5."
            ),
        }),
        _ => None,
    }
}

fn kept_apart(row: &SyscallRow, by: &[SyscallGroup]) -> SyscallRow {
    use SyscallGroup as G;
    let any = |groups: &[G]| by.iter().any(|group| groups.contains(group));
    let owner = row.owner.clone().unwrap_or_default();
    let keep = |groups: &[G], value: &str| {
        if any(groups) {
            value.to_owned()
        } else {
            String::new()
        }
    };
    let kubernetes = !owner.pod.is_empty();
    let own = |value: &str| {
        keep(
            if kubernetes {
                &[]
            } else {
                &[G::Pod, G::Container, G::Workload]
            },
            value,
        )
    };
    let owner = Endpoint {
        namespace: keep(&[G::Pod, G::Container, G::Workload], &owner.namespace),
        pod: keep(&[G::Pod, G::Container], &owner.pod),
        container: if kubernetes {
            keep(&[G::Container], &owner.container)
        } else {
            own(&owner.container)
        },
        workload: keep(&[G::Pod, G::Container, G::Workload], &owner.workload),
        unit: own(&owner.unit),
        process: own(&owner.process),
        cgroup: own(&owner.cgroup),
        attribution: if any(&[G::Pod, G::Container, G::Workload]) {
            owner.attribution
        } else {
            0
        },
        ..Endpoint::default()
    };
    let call = any(&[G::Syscall]);
    let number = if row.syscall == "other" { -1 } else { row.number };
    SyscallRow {
        node: keep(&[G::Pod, G::Container, G::Node], &row.node),
        owner: (owner != Endpoint::default()).then_some(owner),
        syscall: keep(&[G::Syscall], &row.syscall),
        abi: if call { row.abi } else { 0 },
        number: if call { number } else { -1 },
        category: keep(&[G::Syscall, G::Category], &row.category),
        ..SyscallRow::default()
    }
}

/// The rows that answer `query`, before its limit, in its order.
pub fn rows(story: Story, query: &SyscallQuery, to: i64) -> Vec<SyscallRow> {
    let filter = query.filter.clone().unwrap_or_default();
    let by: Vec<SyscallGroup> = if query.by.is_empty() {
        vec![SyscallGroup::Container, SyscallGroup::Syscall]
    } else {
        query.by().collect()
    };
    let matches = |row: &SyscallRow| {
        let owner = row.owner.clone().unwrap_or_default();
        let name = format!("{}/{}", owner.namespace, owner.pod);
        (filter.namespaces.is_empty() || filter.namespaces.contains(&owner.namespace))
            && (filter.pods.is_empty()
                || filter
                    .pods
                    .iter()
                    .any(|pod| owner.pod.starts_with(pod) || name.starts_with(pod)))
            && (filter.owners.is_empty() || filter.owners.contains(&owner.unit))
            && (filter.containers.is_empty() || filter.containers.contains(&owner.container))
            && (filter.syscalls.is_empty() || filter.syscalls.contains(&row.syscall))
            && (filter.categories.is_empty() || filter.categories.contains(&row.category))
            && (filter.errnos.is_empty() || filter.errnos.iter().any(|errno| row.errors.contains_key(errno)))
    };
    let mut sums: Vec<SyscallRow> = Vec::new();
    for Base { row, class } in bases(story, to) {
        let change = change(&row.syscall);
        if !matches(&row)
            || query.kind() != SyscallKind::All
                && change.as_ref().map(SyscallChange::kind) != Some(query.kind())
        {
            continue;
        }
        let key = kept_apart(&row, &by);
        let same = |sum: &SyscallRow| kept_apart(sum, &by) == key && sum.owner == key.owner;
        let index = sums.iter().position(same).unwrap_or_else(|| {
            sums.push(key.clone());
            sums.len() - 1
        });
        let sum = &mut sums[index];
        sum.count += row.count;
        sum.returned += row.returned;
        sum.failed += row.failed;
        for (name, count) in row.errors {
            *sum.errors.entry(name).or_default() += count;
        }
        if let Some(ns) = row.total_ns {
            *sum.total_ns.get_or_insert(0) += ns;
            if key.syscall.is_empty() && key.category.is_empty() {
                match sum.waits.iter_mut().find(|wait| wait.class == class) {
                    Some(wait) => {
                        wait.total_ns += ns;
                        wait.count += row.count;
                    }
                    None => sum.waits.push(SyscallWait {
                        class: class.into(),
                        total_ns: ns,
                        count: row.count,
                    }),
                }
            }
        }
        let mut buckets: BTreeMap<u64, u64> = BTreeMap::new();
        for bucket in sum.buckets.iter().chain(&row.buckets) {
            *buckets.entry(bucket.below_ns).or_default() += bucket.count;
        }
        sum.buckets = buckets
            .into_iter()
            .map(|(below_ns, count)| LatencyBucket { below_ns, count })
            .collect();
        let percentile = |percent: u64| {
            let all: u64 = sum.buckets.iter().map(|bucket| bucket.count).sum();
            let mut below = 0;
            sum.buckets
                .iter()
                .find(|bucket| {
                    below += bucket.count;
                    below >= (all * percent).div_ceil(100).max(1)
                })
                .map(|bucket| bucket.below_ns)
        };
        let (p50, p99) = (percentile(50), percentile(99));
        (sum.p50_ns, sum.p99_ns) = (p50, p99);
        (sum.first, sum.last) = (row.first, row.last);
        sum.change = change.filter(|_| query.kind() != SyscallKind::All);
    }
    sums.sort_by_key(|row| {
        std::cmp::Reverse(match query.sort() {
            SyscallSort::Count => row.count,
            SyscallSort::Errors => row.failed,
            SyscallSort::Time => row.total_ns.unwrap_or_default(),
            SyscallSort::P99 => row.p99_ns.unwrap_or_default(),
        })
    });
    sums
}

pub fn summary(story: Story, query: &SyscallQuery, rows: &[SyscallRow], to: i64) -> SyscallSummary {
    let lost = if story == Story::Lossy { 77 } else { 0 };
    SyscallSummary {
        node: node(story).into(),
        nodes: Vec::new(),
        from: query.since.or_else(|| at(to - 5, 0)),
        to: at(to, 0),
        mode: mode(story).into(),
        measured: (mode(story) == SyscallMode::Latency)
            .then_some(prost_types::Duration { seconds: 5, nanos: 0 }),
        matched_rows: rows.len() as u64,
        matched_calls: rows.iter().map(|row| row.count).sum(),
        matched_errors: rows.iter().map(|row| row.failed).sum(),
        ledger: vec![LedgerRow {
            family: "syscall".into(),
            stage: "callers".into(),
            unit: "calls".into(),
            seen: 100_000,
            counted: 100_000 - lost,
            lost,
            advice: if lost > 0 {
                "their callers had no row; raise ORB8_SYSCALL_CALLERS".into()
            } else {
                String::new()
            },
            ..LedgerRow::default()
        }],
        notes: if story == Story::Lossy {
            vec!["history begins at 03:04:00".into()]
        } else {
            Vec::new()
        },
    }
}

pub fn events(story: Story) -> Vec<Event> {
    let argument = |name: &str, value: &str, truncated| SyscallArgument {
        name: name.into(),
        value: value.into(),
        truncated,
    };
    let event = |seconds, owner: Endpoint, comm: &str, syscall: &str, weight, arguments| {
        Event::Syscall(SyscallEvent {
            time: at(START + seconds, 250_000_000),
            node: node(story).into(),
            owner: Some(owner),
            pid: 4711,
            tid: 4711,
            comm: comm.into(),
            syscall: syscall.into(),
            abi: SyscallAbi::X8664.into(),
            arguments,
            weight,
            change: None,
        })
    };
    let cart = pod("shop", "cart-0", "server", "StatefulSet/cart");
    let mut thread = event(
        1,
        cart.clone(),
        "java",
        "read",
        100,
        vec![argument("fd", "7", false)],
    );
    if let Event::Syscall(thread) = &mut thread {
        thread.tid = 4720;
    }
    let mut events = vec![
        event(
            0,
            unit("nginx.service"),
            "sh",
            "execve",
            1,
            vec![
                argument("path", "/bin/ls", false),
                argument("argv", "[\"ls\", \"-l\", \"/very/long", true),
            ],
        ),
        event(
            0,
            cart.clone(),
            "ev\x1b[31mil",
            "mount",
            1,
            vec![argument("source", "/dev/\u{202e}sda", false)],
        ),
        thread,
    ];
    for name in ["mount", "accept4"] {
        events.push(Event::Syscall(SyscallEvent {
            time: at(START + 2, 0),
            node: node(story).into(),
            owner: Some(Endpoint {
                pod: String::new(),
                container: String::new(),
                ..cart.clone()
            }),
            syscall: name.into(),
            abi: SyscallAbi::X8664.into(),
            weight: 1,
            change: change(name),
            ..SyscallEvent::default()
        }));
    }
    if story == Story::Lossy {
        events.insert(
            1,
            Event::Loss(EventLoss {
                ring: 3,
                stream: 0,
                sampled: 0,
                ..EventLoss::default()
            }),
        );
    }
    events
}
