//! Why a GPU that is held was idle: what its holder did meanwhile, as far as orb8 knows.
//!
//! Evidence is the time of system calls by what they wait for, what cgroups were held up by, and who sent the holder data. A
//! cause is named if it took at least half of the idle time, and no other one as much within half of that again; what no
//! evidence supports is `unknown`, with what is missing.
//!
//! Threads wait side by side, so that the time in calls may be more than the idle time: a share is at most 1. A call is
//! counted where it returns; one that has not returned yet is not known.

use std::collections::{BTreeMap, HashMap};

use orb8_gpu::{Answer, IdleSpan};
use orb8_proto::v1;

use super::strain::{Strain, cgroups_of, is_of};
use crate::{
    core::{Core, lock},
    identity::owner::OwnerId,
    probe::kernel_clock::unix_now_ns,
    store::timestamp,
    syscalls::category::Waiting,
};

/// Least share of the idle time that a cause has.
const ENOUGH: f64 = 0.5;
/// So many times as much as the next one the cause has.
const CLEARLY: f64 = 1.5;
/// A share below this is not told.
const NEGLIGIBLE: f64 = 0.01;
/// A share below this is not told in a sentence about another.
const NOTABLE: f64 = 0.05;
/// Bytes received in the idle time above which waiting for readiness is waiting for a peer.
const HEARD_BYTES: u64 = 4096;
/// Flows of a span that are looked at for who sent most, the largest.
const MAX_FLOWS: usize = 1024;

/// What is known of a holder's idle time; times in nanoseconds.
#[derive(Debug, Default)]
struct Evidence {
    idle: f64,
    /// Part of it in which the time of calls was measured.
    measured: f64,
    waits: BTreeMap<&'static str, f64>,
    /// The call that took most of each class.
    calls: HashMap<&'static str, (String, f64)>,
    strain: Strain,
    /// In synchronising calls of the CUDA libraries.
    synchronising: f64,
    peer: Option<Peer>,
}

/// Who sent most.
#[derive(Debug)]
struct Peer {
    end: v1::Endpoint,
    bytes: u64,
    /// Share of packets that were sent again, if that is known.
    retransmits: Option<f64>,
}

/// A cause with its part of the idle time.
#[derive(Clone, Debug, PartialEq)]
struct Cause {
    class: &'static str,
    time: f64,
    share: f64,
    sentence: String,
}

/// Fills in what each holder of an answer did while its device was idle. Cost: linear in the records of calls and flows of
/// the span, for each holder.
pub(crate) fn explain(core: &Core, answer: &mut Answer) {
    for ((device, holder), spans) in &answer.idle {
        let Some(holder) = answer
            .devices
            .get_mut(*device)
            .and_then(|device| device.holders.get_mut(*holder))
        else {
            continue;
        };
        let (Some(owner), Some(idle)) = (&holder.owner, &mut holder.idle) else {
            continue;
        };
        let evidence = gather(core, owner, spans);
        judge(&evidence, idle);
    }
}

fn gather(core: &Core, owner: &v1::Endpoint, spans: &[IdleSpan]) -> Evidence {
    let mut evidence = Evidence {
        idle: spans
            .iter()
            .map(|span| (span.to - span.from) as f64 * span.idle)
            .sum(),
        ..Evidence::default()
    };
    let (Some(first), Some(last)) = (spans.first(), spans.last()) else {
        return evidence;
    };
    let weighted: Vec<(u64, u64, f64)> = spans.iter().map(|span| (span.from, span.to, span.idle)).collect();
    let store = lock(&core.store);
    let mut known: HashMap<OwnerId, bool> = HashMap::new();
    for segment in store.syscalls.history.segments(Some(first.from), Some(last.to)) {
        let length = segment.to_ns.saturating_sub(segment.from_ns);
        if length == 0 || segment.measured_ns == 0 {
            continue;
        }
        let common: f64 = weighted
            .iter()
            .map(|(from, to, weight)| {
                segment.to_ns.min(*to).saturating_sub(segment.from_ns.max(*from)) as f64 * weight
            })
            .sum();
        if common <= 0.0 {
            continue;
        }
        let part = (common / length as f64).min(1.0);
        evidence.measured += part * segment.measured_ns.min(length) as f64;
        for (key, record) in segment.records() {
            let Some(measured) = &record.measured else {
                continue;
            };
            let is_its = *known
                .entry(key.owner)
                .or_insert_with(|| is_of(owner, &store.owners.get(key.owner)));
            if !is_its {
                continue;
            }
            let class = Waiting::of(key.call).name();
            let time = measured.total_ns as f64 * part;
            *evidence.waits.entry(class).or_default() += time;
            let most = evidence.calls.entry(class).or_default();
            if time > most.1 {
                *most = (key.call.name().into_owned(), time);
            }
        }
    }
    let paths = cgroups_of(owner, store.owners.iter());
    drop(store);
    {
        let strains = lock(&core.gpus.strains);
        for path in paths {
            evidence.strain.take_most(&strains.during(&path, &weighted));
        }
    }
    evidence.synchronising = core.gpus.cuda.synchronising(owner, &weighted);
    evidence.peer = peer(core, owner, first.from, last.to);
    evidence
}

/// Who sent the holder most in a span of time.
fn peer(core: &Core, owner: &v1::Endpoint, from: u64, to: u64) -> Option<Peer> {
    let (mut pods, mut owners) = (Vec::new(), Vec::new());
    if !owner.pod.is_empty() {
        pods.push(format!("{}/{}", owner.namespace, owner.pod));
    } else if !owner.unit.is_empty() {
        owners.push(owner.unit.clone());
    } else if !owner.cgroup.is_empty() {
        owners.push(owner.cgroup.clone());
    } else {
        return None;
    }
    let filter = v1::FlowFilter {
        pods,
        owners,
        direction: v1::Direction::Ingress.into(),
        ..v1::FlowFilter::default()
    };
    let query = v1::FlowQuery {
        filter: Some(filter),
        since: Some(timestamp(from)),
        until: Some(timestamp(to)),
        sort: v1::FlowSort::Bytes.into(),
        ..v1::FlowQuery::default()
    };
    let store = lock(&core.store);
    let selection = store
        .history
        .select(&query, &store.owners, &core.node, unix_now_ns())
        .ok()?;
    let mut by_peer: HashMap<(String, u32), Peer> = HashMap::new();
    let flows = selection
        .rows
        .iter()
        .take(MAX_FLOWS)
        .filter_map(|row| store.history.flow(row, &store.owners, &core.node));
    // The filter is for either end, and takes beginnings of names.
    for flow in flows.filter(|flow| flow.dst.as_ref().is_some_and(|to| is_end(to, owner))) {
        let Some(end) = flow.src else { continue };
        let retransmits = flow
            .retransmits
            .filter(|_| flow.packets > 0)
            .map(|segments| segments as f64 / flow.packets as f64);
        let known = by_peer.entry((end.ip.clone(), end.port)).or_insert(Peer {
            end,
            bytes: 0,
            retransmits: None,
        });
        known.bytes += flow.bytes;
        if retransmits > known.retransmits {
            known.retransmits = retransmits;
        }
    }
    by_peer.into_values().max_by_key(|peer| peer.bytes)
}

/// Whether an end of a flow is this holder, as far as flows tell: those of a pod are of all its containers.
fn is_end(end: &v1::Endpoint, owner: &v1::Endpoint) -> bool {
    if !owner.pod.is_empty() {
        return end.pod == owner.pod && end.namespace == owner.namespace;
    }
    end.pod.is_empty()
        && if owner.unit.is_empty() {
            end.cgroup == owner.cgroup
        } else {
            end.unit == owner.unit
        }
}

/// Names the cause, if the evidence has one.
fn judge(evidence: &Evidence, idle: &mut v1::GpuIdle) {
    if evidence.idle <= 0.0 {
        return;
    }
    let mut causes = causes(evidence);
    causes.sort_by(|a, b| b.share.total_cmp(&a.share));
    idle.waits = causes
        .iter()
        .filter(|cause| cause.share >= NEGLIGIBLE)
        .map(|cause| v1::GpuWait {
            class: cause.class.to_owned(),
            time: prost_types::Duration::try_from(std::time::Duration::from_nanos(cause.time as u64)).ok(),
            share: cause.share,
            peer: match cause.class {
                "network" => evidence.peer.as_ref().map(|peer| peer.end.clone()),
                _ => None,
            },
        })
        .collect();
    let enough: Vec<&Cause> = causes.iter().filter(|cause| cause.share >= ENOUGH).collect();
    // Threads that wait for one another, or for time to pass, do so because of what others of them wait for.
    let first_hand: Vec<&&Cause> = enough
        .iter()
        .filter(|cause| !matches!(cause.class, "futex" | "sleep"))
        .collect();
    let candidates: Vec<&Cause> = match first_hand.as_slice() {
        [] => enough.clone(),
        some => some.iter().map(|cause| **cause).collect(),
    };
    let named = match candidates.as_slice() {
        [] => None,
        [only] => Some(*only),
        [first, second, ..] if first.share >= second.share * CLEARLY => Some(*first),
        // What is throttled waits in whatever call it was in.
        several => several
            .iter()
            .find(|cause| cause.class == "cpu_throttled")
            .copied(),
    };
    match named {
        Some(cause) => {
            cause.class.clone_into(&mut idle.cause);
            idle.evidence.clone_from(&cause.sentence);
        }
        None => {
            "unknown".clone_into(&mut idle.cause);
            idle.evidence = missing(evidence, &causes);
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// What each cause may be, with its share of the idle time.
fn causes(evidence: &Evidence) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut add = |class: &'static str, time: f64, of: f64, sentence: &dyn Fn(f64) -> String| {
        if of > 0.0 && time > 0.0 {
            let share = (time / of).min(1.0);
            causes.push(Cause {
                class,
                time,
                share,
                sentence: sentence(share),
            });
        }
    };
    let in_calls = |class: &str| evidence.waits.get(class).copied().unwrap_or_default();
    let call = |class: &str| evidence.calls.get(class).map_or("", |(name, _)| name.as_str());
    let heard = evidence
        .peer
        .as_ref()
        .is_some_and(|peer| peer.bytes >= HEARD_BYTES);
    let (network, asleep) = if heard {
        (in_calls("network") + in_calls("poll"), in_calls("sleep"))
    } else {
        (in_calls("network"), in_calls("sleep") + in_calls("poll"))
    };
    let longer = |a: &'static str, b: &'static str| {
        if in_calls(a) >= in_calls(b) {
            call(a)
        } else {
            call(b)
        }
    };
    add("network", network, evidence.measured, &|share| {
        let name = if heard {
            longer("network", "poll")
        } else {
            call("network")
        };
        let mut text = format!("{} of idle time in {name}", percent(share));
        if let Some(peer) = evidence.peer.as_ref().filter(|_| heard) {
            text.push_str(&format!(" from {}", address(&peer.end)));
            if let Some(retransmits) = peer.retransmits.filter(|share| *share >= 0.005) {
                text.push_str(&format!(", {} retransmits", percent(retransmits)));
            }
        }
        text
    });
    let short = evidence.strain.memory_stalled.map_or(0.0, |time| time as f64);
    add("memory", short, evidence.idle, &|share| {
        format!(
            "threads waited for memory for {} of idle time (memory.pressure)",
            percent(share)
        )
    });
    // Pages that were dropped for want of memory are read back: that is not the disk's doing.
    let stalled = evidence.strain.io_stalled.map_or(0.0, |time| time as f64);
    let stalled = (stalled - short).max(0.0);
    if stalled / evidence.idle.max(1.0) >= in_calls("disk") / evidence.measured.max(1.0) {
        add("disk", stalled, evidence.idle, &|share| {
            format!(
                "threads waited for I/O for {} of idle time (io.pressure)",
                percent(share)
            )
        });
    } else {
        add("disk", in_calls("disk"), evidence.measured, &|share| {
            format!("{} of idle time in {}", percent(share), call("disk"))
        });
    }
    add("futex", in_calls("futex"), evidence.measured, &|share| {
        format!(
            "{} of idle time in {}: threads waited for one another",
            percent(share),
            call("futex")
        )
    });
    add("sleep", asleep, evidence.measured, &|share| {
        let name = if heard {
            call("sleep")
        } else {
            longer("sleep", "poll")
        };
        let without = if name == call("poll") && !name.is_empty() {
            " without a request"
        } else {
            ""
        };
        format!("{} of idle time in {name}{without}", percent(share))
    });
    add("cuda_sync", evidence.synchronising, evidence.idle, &|share| {
        format!("{} of idle time in synchronising CUDA calls", percent(share))
    });
    let throttled = evidence.strain.throttled.map_or(0.0, |time| time as f64);
    add("cpu_throttled", throttled, evidence.idle, &|share| {
        format!(
            "its CPU quota stopped it for {} of idle time (cpu.stat)",
            percent(share)
        )
    });
    let busy = evidence.strain.usage.map_or(0.0, |time| time as f64);
    // Who would compute and has no CPU for it is busy as well; a quota has its own cause.
    let stalled = evidence.strain.cpu_stalled.map_or(0.0, |time| time as f64);
    let crowded = (stalled - throttled).max(0.0);
    add("cpu_busy", busy + crowded, evidence.idle, &|_| {
        let (cores, waited) = (busy / evidence.idle, crowded / evidence.idle);
        let mut text = if cores >= 1.0 {
            format!("it kept {cores:.1} CPUs busy meanwhile")
        } else {
            format!("it computed on a CPU for {} of idle time", percent(cores))
        };
        if waited >= NOTABLE {
            let waited = percent(waited.min(1.0));
            text.push_str(&format!(
                ", and waited for one for {waited} (cpu.stat, cpu.pressure)"
            ));
        } else {
            text.push_str(" (cpu.stat)");
        }
        text
    });
    causes
}

/// `10.0.3.7:9000 minio/data-2`.
fn address(end: &v1::Endpoint) -> String {
    let ip = if end.ip.contains(':') {
        format!("[{}]", end.ip)
    } else {
        end.ip.clone()
    };
    let mut text = format!("{ip}:{}", end.port);
    if !end.pod.is_empty() {
        text.push_str(&format!(" {}/{}", end.namespace, end.pod));
    } else if !end.dns_name.is_empty() {
        text.push_str(&format!(" {}", end.dns_name));
    }
    text
}

/// Why no cause is named.
fn missing(evidence: &Evidence, causes: &[Cause]) -> String {
    let told: Vec<String> = causes
        .iter()
        .filter(|cause| cause.share >= NOTABLE)
        .take(3)
        .map(|cause| format!("{} {}", cause.class, percent(cause.share)))
        .collect();
    let mut text = match told.as_slice() {
        [] => "nothing is known of what it did meanwhile".to_owned(),
        told => format!("no cause stands out: {}", told.join(", ")),
    };
    if evidence.measured < evidence.idle * 0.5 {
        text.push_str(
            "; the time of system calls was not measured then: `orb8 syscall-mode latency` (or syscall_mode=latency) does it",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: f64 = 1e9;

    fn evidence(waits: &[(&'static str, &str, f64)]) -> Evidence {
        Evidence {
            idle: 10.0 * SECOND,
            measured: 10.0 * SECOND,
            waits: waits
                .iter()
                .map(|(class, _, seconds)| (*class, seconds * SECOND))
                .collect(),
            calls: waits
                .iter()
                .map(|(class, call, seconds)| (*class, ((*call).to_owned(), *seconds)))
                .collect(),
            ..Evidence::default()
        }
    }

    fn verdict(evidence: &Evidence) -> v1::GpuIdle {
        let mut idle = v1::GpuIdle::default();
        judge(evidence, &mut idle);
        idle
    }

    #[test]
    fn each_cause_is_named_with_its_evidence() {
        let mut network = evidence(&[("network", "recvfrom", 6.2), ("futex", "futex", 1.2)]);
        network.peer = Some(Peer {
            end: v1::Endpoint {
                ip: "10.0.3.7".to_owned(),
                port: 9000,
                namespace: "minio".to_owned(),
                pod: "data-2".to_owned(),
                ..v1::Endpoint::default()
            },
            bytes: 1 << 20,
            retransmits: Some(0.04),
        });
        let told = verdict(&network);
        assert_eq!(told.cause, "network");
        assert_eq!(
            told.evidence,
            "62 % of idle time in recvfrom from 10.0.3.7:9000 minio/data-2, 4 % retransmits"
        );
        assert_eq!(told.waits.len(), 2);
        assert!(told.waits[0].peer.is_some() && told.waits[1].peer.is_none());

        let told = verdict(&evidence(&[("futex", "futex", 9.0)]));
        assert_eq!(told.cause, "futex", "{told:?}");
        let told = verdict(&evidence(&[("poll", "epoll_wait", 9.9)]));
        assert_eq!(
            (told.cause.as_str(), told.evidence.as_str()),
            ("sleep", "99 % of idle time in epoll_wait without a request")
        );
        let mut disk = evidence(&[("futex", "futex", 9.0)]);
        disk.strain.io_stalled = Some(7_000_000_000);
        let told = verdict(&disk);
        assert_eq!(
            told.cause, "disk",
            "threads that wait for the reader do not make futexes the cause: {told:?}"
        );
        let mut short = evidence(&[]);
        short.strain.io_stalled = Some(7_500_000_000);
        short.strain.memory_stalled = Some(7_000_000_000);
        let told = verdict(&short);
        assert_eq!(
            (told.cause.as_str(), told.evidence.as_str()),
            (
                "memory",
                "threads waited for memory for 70 % of idle time (memory.pressure)"
            )
        );
        let mut quota = evidence(&[("network", "recvfrom", 6.0)]);
        quota.strain.throttled = Some(7_000_000_000);
        let told = verdict(&quota);
        assert_eq!(told.cause, "cpu_throttled", "{told:?}");
        assert!(told.evidence.contains("cpu.stat"));
        let mut busy = evidence(&[]);
        busy.strain.usage = Some(25_000_000_000);
        let told = verdict(&busy);
        assert_eq!(told.cause, "cpu_busy");
        assert_eq!(told.evidence, "it kept 2.5 CPUs busy meanwhile (cpu.stat)");
    }

    #[test]
    fn who_has_to_wait_for_a_cpu_is_busy_too() {
        let mut crowded = evidence(&[("network", "recvfrom", 2.0)]);
        crowded.strain.usage = Some(3_900_000_000);
        let told = verdict(&crowded);
        assert_eq!(told.cause, "unknown", "{told:?}");
        crowded.strain.cpu_stalled = Some(6_000_000_000);
        let told = verdict(&crowded);
        assert_eq!(
            (told.cause.as_str(), told.evidence.as_str()),
            (
                "cpu_busy",
                "it computed on a CPU for 39 % of idle time, and waited for one for 60 % (cpu.stat, cpu.pressure)"
            )
        );
        // What a quota stops waits for a CPU, too: that is not the node's doing.
        let mut quota = evidence(&[]);
        quota.strain.usage = Some(1_000_000_000);
        quota.strain.throttled = Some(8_500_000_000);
        quota.strain.cpu_stalled = Some(8_600_000_000);
        let told = verdict(&quota);
        assert_eq!(told.cause, "cpu_throttled", "{told:?}");
        assert!(
            told.waits
                .iter()
                .all(|wait| wait.class != "cpu_busy" || wait.share < 0.2),
            "{told:?}"
        );
    }

    #[test]
    fn a_peer_is_who_sends_to_the_holder_itself() {
        let pod = |name: &str| v1::Endpoint {
            namespace: "ml".to_owned(),
            pod: name.to_owned(),
            ..v1::Endpoint::default()
        };
        let holder = v1::Endpoint {
            container: "main".to_owned(),
            ..pod("train-1")
        };
        assert!(is_end(&pod("train-1"), &holder));
        assert!(!is_end(&pod("train-10"), &holder), "its name begins so");
        assert!(!is_end(
            &v1::Endpoint {
                namespace: "web".to_owned(),
                ..pod("train-1")
            },
            &holder
        ));
        let process = |unit: &str, cgroup: &str| v1::Endpoint {
            unit: unit.to_owned(),
            cgroup: cgroup.to_owned(),
            ..v1::Endpoint::default()
        };
        assert!(is_end(&process("", "/a"), &process("", "/a")));
        assert!(!is_end(&process("", "/b"), &process("", "/a")));
        assert!(is_end(&process("a.service", "/x"), &process("a.service", "")));
        assert!(!is_end(&process("b.service", "/x"), &process("a.service", "/x")));
    }

    #[test]
    fn without_clear_evidence_it_is_unknown() {
        let mut mixed = evidence(&[("network", "recvfrom", 5.5)]);
        mixed.strain.io_stalled = Some(5_200_000_000);
        let told = verdict(&mixed);
        assert_eq!(told.cause, "unknown");
        assert!(
            told.evidence.contains("network 55 %, disk 52 %"),
            "{}",
            told.evidence
        );
        let told = verdict(&evidence(&[
            ("network", "recvfrom", 3.0),
            ("futex", "futex", 3.0),
        ]));
        assert_eq!(told.cause, "unknown");
        let nothing = Evidence {
            idle: SECOND,
            ..Evidence::default()
        };
        let told = verdict(&nothing);
        assert_eq!(told.cause, "unknown");
        assert!(told.evidence.contains("latency"), "{}", told.evidence);
        let busy_device = verdict(&Evidence::default());
        assert_eq!(busy_device.cause, "", "it was not idle");
    }
}
