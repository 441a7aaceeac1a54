//! How the cgroups of those who hold GPUs were held up: by their CPU quota, by others on the CPUs, by I/O, and for want of
//! memory, as the kernel counts it (`cpu.stat`, `cpu.pressure`, `io.pressure` and `memory.pressure` of cgroup2;
//! Documentation/admin-guide/cgroup-v2.rst).

use std::{
    collections::{HashMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use crate::{
    core::{Core, lock},
    identity::{cgroups::Cgroups, owner::Owner},
    probe::kernel_clock::unix_now_ns,
};

/// Cgroups that are looked at.
const MAX_CGROUPS: usize = 256;
/// Times that are kept of each; older ones go.
const MAX_TIMES: usize = 768;

/// Counters of a cgroup at a moment, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    time_ns: u64,
    total: Strain,
}

/// What a cgroup went through in a span of time, in nanoseconds. None: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strain {
    /// Processor time that it had.
    pub(super) usage: Option<u64>,
    /// Time that its CPU quota kept it from running.
    pub(super) throttled: Option<u64>,
    /// Time that at least one of its threads waited for I/O.
    pub(super) io_stalled: Option<u64>,
    /// Time that at least one of its threads could run and had no CPU, also for want of quota.
    pub(super) cpu_stalled: Option<u64>,
    /// Time that at least one of its threads waited for memory to be freed or read back. Much of it is waiting for I/O, too.
    pub(super) memory_stalled: Option<u64>,
}

impl Strain {
    fn each(&self) -> [Option<u64>; 5] {
        let Self {
            usage,
            throttled,
            io_stalled,
            cpu_stalled,
            memory_stalled,
        } = *self;
        [usage, throttled, io_stalled, cpu_stalled, memory_stalled]
    }

    /// In the same order.
    fn each_mut(&mut self) -> [&mut Option<u64>; 5] {
        let Self {
            usage,
            throttled,
            io_stalled,
            cpu_stalled,
            memory_stalled,
        } = self;
        [usage, throttled, io_stalled, cpu_stalled, memory_stalled]
    }

    /// Takes the larger of both, for cgroups of one holder may lie within each other.
    pub(super) fn take_most(&mut self, other: &Self) {
        for (most, other) in self.each_mut().into_iter().zip(other.each()) {
            *most = (*most).max(other);
        }
    }
}

/// Recent counters, by path of the cgroup.
#[derive(Debug, Default)]
pub(crate) struct Strains(HashMap<String, VecDeque<Counters>>);

impl Strains {
    fn add(&mut self, path: &str, counters: Counters) {
        if !self.0.contains_key(path) {
            if self.0.len() >= MAX_CGROUPS {
                // The one that was not looked at for longest is gone, most likely.
                let oldest = self
                    .0
                    .iter()
                    .min_by_key(|(_, times)| times.back().map(|last| last.time_ns))
                    .map(|(path, _)| path.clone());
                if let Some(oldest) = oldest {
                    self.0.remove(&oldest);
                }
            }
            self.0.insert(path.to_owned(), VecDeque::new());
        }
        if let Some(times) = self.0.get_mut(path) {
            if times.len() >= MAX_TIMES {
                times.pop_front();
            }
            times.push_back(counters);
        }
    }

    /// What a cgroup went through in the part of these spans (nanoseconds since 1970, with a weight of 0 to 1 each) that was
    /// looked at. An interval counts by what it has in common with them.
    pub(super) fn during(&self, path: &str, spans: &[(u64, u64, f64)]) -> Strain {
        let Some(times) = self.0.get(path) else {
            return Strain::default();
        };
        let mut strain = Strain::default();
        for (before, after) in times.iter().zip(times.iter().skip(1)) {
            let length = after.time_ns.saturating_sub(before.time_ns);
            if length == 0 {
                continue;
            }
            let common: f64 = spans
                .iter()
                .map(|(from, to, weight)| {
                    let overlap = after.time_ns.min(*to).saturating_sub(before.time_ns.max(*from));
                    overlap as f64 * weight
                })
                .sum();
            let part = (common / length as f64).min(1.0);
            if part <= 0.0 {
                continue;
            }
            let totals = before.total.each().into_iter().zip(after.total.each());
            for (sum, (before, after)) in strain.each_mut().into_iter().zip(totals) {
                // A counter that fell is of a new cgroup of the same name.
                let Some(more) = before
                    .zip(after)
                    .and_then(|(before, after)| after.checked_sub(before))
                else {
                    continue;
                };
                *sum.get_or_insert(0) += (more as f64 * part) as u64;
            }
        }
        strain
    }
}

/// Looks at the cgroups of holders each interval, until `stop`.
pub(crate) async fn follow(core: Arc<Core>, stop: CancellationToken) {
    let root = lock(&core.names)
        .identity
        .cgroups()
        .map(|cgroups: &Cgroups| cgroups.root().to_owned());
    let Some(root) = root else {
        return;
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(core.gpus.interval()) => {}
        }
        if core.gpus.is_empty() {
            continue;
        }
        let (core, root) = (core.clone(), root.clone());
        // The task outlives its failure.
        let _ = tokio::task::spawn_blocking(move || look(&core, &root)).await;
    }
}

fn look(core: &Core, root: &Path) {
    let holders = core.gpus.holders();
    if holders.is_empty() {
        return;
    }
    let paths: Vec<String> = {
        let store = lock(&core.store);
        holders
            .iter()
            .flat_map(|holder| cgroups_of(holder, store.owners.iter()))
            .collect()
    };
    let time_ns = unix_now_ns();
    for path in paths {
        if let Some(counters) = read(root, &path, time_ns) {
            lock(&core.gpus.strains).add(&path, counters);
        }
    }
}

/// Cgroups of an owner, among those that are known.
pub(super) fn cgroups_of<'a>(
    holder: &orb8_proto::v1::Endpoint,
    owners: impl Iterator<Item = &'a Arc<Owner>>,
) -> Vec<String> {
    let mut paths: Vec<String> = owners
        .filter(|owner| !owner.cgroup.is_empty() && is_of(holder, owner))
        .map(|owner| owner.cgroup.clone())
        .collect();
    if paths.is_empty() && !holder.cgroup.is_empty() {
        paths.push(holder.cgroup.clone());
    }
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// Whether an owner of calls or flows is this holder: the container where both name one, else the pod; the unit or cgroup of
/// what is no pod's.
pub(super) fn is_of(holder: &orb8_proto::v1::Endpoint, owner: &Owner) -> bool {
    if holder.pod.is_empty() {
        return !holder.cgroup.is_empty() && owner.cgroup == holder.cgroup
            || !holder.unit.is_empty() && owner.unit == holder.unit;
    }
    let named = owner.named_pod().is_some_and(|pod| {
        let (namespace, name) = pod.parts();
        namespace == holder.namespace && name == holder.pod
    });
    let container =
        holder.container.is_empty() || owner.container.is_empty() || owner.container == holder.container;
    named && container
}

fn read(root: &Path, path: &str, time_ns: u64) -> Option<Counters> {
    let directory: PathBuf = root.join(path.trim_start_matches('/'));
    let stat = fs::read_to_string(directory.join("cpu.stat")).ok()?;
    // The kernel tells microseconds.
    let nanoseconds = |told: Option<u64>| told.map(|us| us.saturating_mul(1000));
    let pressure = |of: &str| {
        let text = fs::read_to_string(directory.join(of)).unwrap_or_default();
        nanoseconds(stalled(&text))
    };
    Some(Counters {
        time_ns,
        total: Strain {
            usage: nanoseconds(field(&stat, "usage_usec")),
            throttled: nanoseconds(field(&stat, "throttled_usec")).or_else(|| throttled_v1(root, path)),
            io_stalled: pressure("io.pressure"),
            cpu_stalled: pressure("cpu.pressure"),
            memory_stalled: pressure("memory.pressure"),
        },
    })
}

/// The same where quotas are cgroup1's, which tells nanoseconds: its hierarchies lie beside that of cgroup2, and container runtimes
/// give a container the same path in all (Documentation/scheduler/sched-bwc.rst).
fn throttled_v1(root: &Path, path: &str) -> Option<u64> {
    let beside = root.parent()?;
    ["cpu", "cpu,cpuacct"].into_iter().find_map(|controller| {
        let directory = beside.join(controller).join(path.trim_start_matches('/'));
        let stat = fs::read_to_string(directory.join("cpu.stat")).ok()?;
        field(&stat, "throttled_time")
    })
}

/// `name value` of a flat keyed file.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// `total` of the line `some` of a pressure file (Documentation/accounting/psi.rst).
fn stalled(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix("total="))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let stat = "usage_usec 12\nuser_usec 5\nnr_throttled 3\nthrottled_usec 700\n";
        assert_eq!(
            (field(stat, "usage_usec"), field(stat, "throttled_usec")),
            (Some(12), Some(700))
        );
        assert_eq!(field("", "usage_usec"), None);
        let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(stalled(pressure), Some(42));
        assert_eq!(stalled("some avg10=x"), None);
    }

    #[test]
    fn what_a_span_has_in_common_with_intervals_counts() {
        let mut strains = Strains::default();
        for (seconds, throttled) in [(0, 0), (10, 5_000_000), (20, 5_000_000), (30, 4)] {
            strains.add(
                "/a",
                Counters {
                    time_ns: seconds * 1_000_000_000,
                    total: Strain {
                        throttled: Some(throttled * 1000),
                        ..Strain::default()
                    },
                },
            );
        }
        let during = |from: u64, to: u64| {
            let spans = [(from * 1_000_000_000, to * 1_000_000_000, 1.0)];
            strains.during("/a", &spans).throttled
        };
        assert_eq!(during(0, 20), Some(5_000_000_000));
        assert_eq!(during(0, 5), Some(2_500_000_000));
        assert_eq!(during(10, 20), Some(0));
        assert_eq!(during(20, 30), None, "a new cgroup");
        assert_eq!(during(40, 50), None);
        assert_eq!(strains.during("/b", &[(0, 1, 1.0)]), Strain::default());
    }
}
