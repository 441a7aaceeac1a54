//! The syscall family's part of the status and the ledger.

use std::sync::atomic::Ordering;

use orb8_proto::v1;

use crate::{
    core::{Core, lock},
    ledger,
    probe::syscall::SyscallProbe,
    syscalls::baseline::VERDICTS,
};

/// The family's part of a status.
pub(super) struct Part {
    pub(super) programs: Vec<v1::ProgramStatus>,
    pub(super) limits: Vec<v1::Limit>,
    pub(super) map_bytes: u64,
}

const FAMILY: &str = "syscall";

/// State of the family now. Cost: a look at each CPU's counters.
pub(super) fn status(core: &Core) -> Part {
    let (programs, map_bytes, mut limits) = {
        let slot = lock(&core.syscalls.probe);
        let stats = slot.probe.as_ref().map(SyscallProbe::stats).unwrap_or_default();
        let limits = vec![
            limit(
                "syscall_callers",
                "rows",
                u64::from(stats.rows),
                u64::from(slot.options.callers),
                stats.remainder,
                "syscall_callers",
            ),
            limit(
                "syscall_latencies",
                "histograms",
                u64::from(stats.latencies),
                u64::from(slot.options.latencies),
                stats.unmeasured,
                "syscall_latencies",
            ),
        ];
        match &slot.probe {
            Some(probe) => (programs(probe), probe.map_bytes(), limits),
            None => (
                vec![v1::ProgramStatus {
                    family: FAMILY.to_owned(),
                    name: "orb8_sys_enter".to_owned(),
                    state: v1::State::Failed.into(),
                    reason: slot.error.clone(),
                    ..v1::ProgramStatus::default()
                }],
                0,
                limits,
            ),
        }
    };
    let store = lock(&core.store);
    let (history, totals, baseline) = (
        &store.syscalls.history,
        &store.syscalls.totals,
        &store.syscalls.baseline,
    );
    limits.extend([
        limit(
            "syscall_history_memory",
            "bytes",
            history.memory() as u64,
            history.max_memory() as u64,
            history.counts().evicted,
            "syscall_history_bytes",
        ),
        limit(
            "syscall_series_owners",
            "owners",
            totals.owners() as u64,
            totals.max_owners() as u64,
            totals.turned_away(),
            "syscall_series",
        ),
        limit(
            "syscall_baseline_workloads",
            "workloads",
            baseline.warm().0 as u64,
            baseline.limits().workloads as u64,
            baseline.counts().forgotten,
            "",
        ),
        limit(
            "syscall_baseline_calls",
            "calls of workloads",
            baseline.calls() as u64,
            baseline.limits().calls as u64,
            baseline.counts().turned_away,
            "",
        ),
        limit(
            "syscall_verdicts",
            "verdicts",
            baseline.verdicts().count() as u64,
            VERDICTS as u64,
            baseline.counts().verdicts_dropped,
            "",
        ),
    ]);
    Part {
        programs,
        limits,
        map_bytes,
    }
}

fn programs(probe: &SyscallProbe) -> Vec<v1::ProgramStatus> {
    // What this kernel does not let them tell.
    let limits = probe.limits().join("; ");
    probe
        .programs()
        .into_iter()
        .map(|(name, state, reason, info)| v1::ProgramStatus {
            family: FAMILY.to_owned(),
            name: name.to_owned(),
            state: state.into(),
            reason: if reason.is_empty() { limits.clone() } else { reason },
            attachments: u32::from(state == v1::State::Active),
            run_count: info.run_count,
            run_time_ns: info.run_time_ns,
        })
        .collect()
}

fn limit(name: &str, unit: &str, used: u64, max: u64, turned_away: u64, setting: &str) -> v1::Limit {
    v1::Limit {
        name: name.to_owned(),
        unit: unit.to_owned(),
        used,
        max,
        turned_away,
        setting: setting.to_owned(),
    }
}

/// Records that the ring of calls had no room for, since the start.
pub(crate) fn ring_losses(core: &Core) -> u64 {
    let slot = lock(&core.syscalls.probe);
    slot.probe.as_ref().map_or(0, |probe| probe.stats().events_lost)
}

/// What passed each stage, and what each stage lost: `seen = counted + filtered + lost`.
pub(crate) fn ledger(core: &Core) -> Vec<v1::LedgerRow> {
    let stats = {
        let slot = lock(&core.syscalls.probe);
        slot.probe.as_ref().map(SyscallProbe::stats).unwrap_or_default()
    };
    let (history, elsewhere) = {
        let store = lock(&core.store);
        (store.syscalls.history.counts(), store.syscalls.elsewhere())
    };
    let live = &core.syscalls.live;
    let missed = live.missed.load(Ordering::Relaxed);
    let streamed = live.delivered.load(Ordering::Relaxed) + missed;
    let row = |stage: &str, unit: &str, seen: u64, filtered: u64, lost: u64, advice: &str| {
        ledger::row(FAMILY, stage, unit, [seen, filtered, lost], advice)
    };
    let ended = stats.measured + stats.unmeasured;
    vec![
        row(
            "callers",
            "calls",
            stats.seen,
            elsewhere.min(stats.seen.saturating_sub(stats.lost)),
            stats.lost,
            "more cgroups than the remainder map holds, or calls made while the program ran on that CPU already: these are \
             in no count",
        ),
        row(
            "rows",
            "calls",
            stats.counted + stats.remainder,
            0,
            stats.remainder,
            "more pairs of cgroup and ABI than there are rows: these calls are counted by cgroup, without their names; raise \
             syscall_callers",
        ),
        row(
            "latency",
            "calls",
            ended,
            // Whoever ended the measuring meant to.
            stats.outlasted,
            stats.unmeasured - stats.outlasted,
            "calls that had no room for their latency, or whose thread ended in them; raise syscall_latencies if it is full; \
             counts are not affected",
        ),
        row(
            "errors",
            "calls",
            stats.measured,
            0,
            stats.errors_lost,
            "calls that failed, and whose error had no room: they are counted, not how they ended; raise \
             syscall_latencies",
        ),
        row(
            "events",
            "records",
            stats.events_wanted,
            stats.events_sampled_out,
            stats.events_lost,
            "live events came faster than they were read; counts are not affected; raise syscall_ring_size",
        ),
        row(
            "stream",
            "records",
            streamed,
            0,
            missed,
            "a client took live events too slowly; counts are not affected; raise stream_buffer",
        ),
        row(
            "history",
            "calls",
            history.seen,
            0,
            history.evicted,
            "the history of calls was full, and its oldest part went before its time; totals are not affected; raise \
             syscall_history_bytes",
        ),
    ]
}
