//! The agent's state as a message, and the loss ledger.

use std::{sync::atomic::Ordering, time::Duration};

use orb8_common::network::{Hook, HookStats};
use orb8_proto::v1;
use prost_types::Timestamp;

use crate::{
    core::{Core, lock},
    ledger,
};

mod syscalls;

pub(crate) use syscalls::{ledger as syscall_ledger, ring_losses as syscall_ring_losses};

/// The agent's state now. Cost: some file reads in /proc and one look at every point.
pub(crate) fn agent_status(core: &Core) -> v1::AgentStatus {
    let (interfaces, attached) = {
        let points = lock(&core.points);
        (points.status(), points.attached_by_framing())
    };
    let (rss, cpu) = process_usage();
    let map_bytes = core.counters.map_bytes();
    let (flows_active, history_from, mut limits) = {
        let store = lock(&core.store);
        let history = &store.history;
        let mut limits = history.usage();
        limits.push(v1::Limit {
            name: "owners".to_owned(),
            unit: "entries".to_owned(),
            used: store.owners.len() as u64,
            max: store.owners.max() as u64,
            turned_away: store.owners.turned_away(),
            setting: String::new(),
        });
        (
            history.flows_active(),
            history.covered().map(|(from, _)| from),
            limits,
        )
    };
    for limit in lock(&core.names).limits() {
        limits.push(v1::Limit {
            name: limit.name.to_owned(),
            unit: "entries".to_owned(),
            used: limit.used as u64,
            max: limit.max as u64,
            turned_away: limit.turned_away,
            setting: String::new(),
        });
    }
    limits.push(v1::Limit {
        name: "flow map".to_owned(),
        unit: "flows an interval".to_owned(),
        used: flows_active,
        max: u64::from(core.limits.flow_entries),
        turned_away: hook(core, PACKET_HOOKS).remainder,
        setting: "flow_entries".to_owned(),
    });
    limits.push(v1::Limit {
        name: "connections".to_owned(),
        unit: "gRPC connections".to_owned(),
        used: core.connections.open.load(Ordering::Relaxed),
        max: u64::from(core.limits.connections),
        turned_away: core.connections.refused.load(Ordering::Relaxed),
        setting: "grpc_connections".to_owned(),
    });
    let calls = syscalls::status(core);
    limits.extend(calls.limits);
    let mut programs = programs(core, attached);
    programs.extend(calls.programs);
    programs.extend(core.gpus.programs());
    limits.extend(core.gpus.limits());
    v1::AgentStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: core.node.clone(),
        started: Some(timestamp(core.started_ns)),
        uptime: Some(duration(core.started.elapsed())),
        kernel: core.kernel.clone(),
        programs,
        interfaces,
        ledger: ledger(core),
        limits,
        checks: core.checks.clone(),
        flows_active,
        rss_bytes: rss,
        map_bytes: map_bytes + calls.map_bytes + core.gpus.cuda.map_bytes(),
        cpu: Some(duration(cpu)),
        history_from: history_from.map(timestamp),
        settings: core.settings.clone(),
        kubernetes: Some(core.membership.status()),
        transport: core.transport.to_owned(),
    }
}

fn programs(core: &Core, attached: [usize; 2]) -> Vec<v1::ProgramStatus> {
    let info = lock(&core.programs).info();
    let of = |name: &str| {
        info.iter()
            .find(|(program, _)| *program == name)
            .map(|(_, info)| *info)
            .unwrap_or_default()
    };
    let status = |name: &str, state: v1::State, reason: &str, attachments: usize| {
        let info = of(name);
        v1::ProgramStatus {
            family: "network".to_owned(),
            name: name.to_owned(),
            state: state.into(),
            reason: reason.to_owned(),
            attachments: attachments as u32,
            run_count: info.run_count,
            run_time_ns: info.run_time_ns,
        }
    };
    let idle = "no such interface is observed";
    let mut programs = Vec::new();
    for (names, count) in [
        (crate::probe::network::load::ETHERNET, attached[0]),
        (crate::probe::network::load::RAW, attached[1]),
    ] {
        for name in names {
            programs.push(if count == 0 {
                status(name, v1::State::Off, idle, 0)
            } else {
                status(name, v1::State::Active, "", count)
            });
        }
    }
    for (name, state, reason) in &core.cgroup_programs {
        programs.push(status(
            name,
            *state,
            reason,
            usize::from(*state == v1::State::Active),
        ));
    }
    programs
}

const INTERFACE_HOOKS: &[Hook] = &[Hook::TcIngress, Hook::TcEgress];
const SOCKET_HOOKS: &[Hook] = &[Hook::SocketIngress, Hook::SocketEgress];
const PACKET_HOOKS: &[Hook] = &[
    Hook::TcIngress,
    Hook::TcEgress,
    Hook::SocketIngress,
    Hook::SocketEgress,
];

fn hook(core: &Core, hooks: &[Hook]) -> HookStats {
    let mut sum = HookStats::default();
    for stats in hooks.iter().filter_map(|&hook| core.counters.hook(hook).ok()) {
        sum.seen += stats.seen;
        sum.filtered += stats.filtered;
        sum.remainder += stats.remainder;
        sum.lost += stats.lost;
        sum.lost_bytes += stats.lost_bytes;
    }
    sum
}

/// The whole ledger: every family's rows.
fn ledger(core: &Core) -> Vec<v1::LedgerRow> {
    let mut rows = network_ledger(core);
    rows.extend(syscall_ledger(core));
    rows.extend(core.gpus.ledger());
    rows
}

/// What passed each stage on its way to a flow, and what each stage lost: `seen = counted + filtered + lost`. An answer
/// about flows lacks nothing for what another family lost.
pub(crate) fn network_ledger(core: &Core) -> Vec<v1::LedgerRow> {
    let row = |stage: &str, unit: &str, seen: u64, filtered: u64, lost: u64, advice: &str| {
        ledger::row("network", stage, unit, [seen, filtered, lost], advice)
    };
    let (bypassed, seen) = lock(&core.points).bypassed_and_seen();
    let (interfaces, sockets, all) = (
        hook(core, INTERFACE_HOOKS),
        hook(core, SOCKET_HOOKS),
        hook(core, PACKET_HOOKS),
    );
    let with_bytes = |row: v1::LedgerRow, lost_bytes| v1::LedgerRow { lost_bytes, ..row };
    let (tcp, events) = (hook(core, &[Hook::Tcp]), hook(core, &[Hook::Events]));
    let dns = hook(core, &[Hook::Dns]);
    let drained = core.drains.drained.load(Ordering::Relaxed);
    let short = core
        .drains
        .counted_in_kernel
        .load(Ordering::Relaxed)
        .saturating_sub(drained);
    let missed = core.live.missed.load(Ordering::Relaxed);
    let streamed = core.live.delivered.load(Ordering::Relaxed) + missed;

    let mut rows = vec![
        row(
            "interface",
            "frames",
            seen + bypassed,
            0,
            bypassed,
            "frames passed an interface without passing the programs: before these were on it (an interface has just come), or \
             since another program redirected them or the driver has a shortcut; `orb8 status` says on which interface",
        ),
        with_bytes(
            row(
                "interface_programs",
                "frames",
                interfaces.seen,
                interfaces.filtered,
                interfaces.lost,
                "more interfaces than the remainder map holds: their totals are short",
            ),
            interfaces.lost_bytes,
        ),
        with_bytes(
            row(
                "socket_programs",
                "frames",
                sockets.seen,
                sockets.filtered,
                sockets.lost,
                "more cgroups than the remainder map holds: their totals are short",
            ),
            sockets.lost_bytes,
        ),
        row(
            "flow_map",
            "frames",
            all.seen - all.filtered - all.lost,
            0,
            all.remainder,
            "more flows in an interval than the flow map holds: the packets are in the totals of their interface or \
             cgroup, without flow; raise flow_entries or shorten interval",
        ),
        row(
            "drain",
            "frames",
            drained + short,
            core.drains.foreign.load(Ordering::Relaxed),
            short,
            "an epoch could not be read out of the kernel: see the log",
        ),
        row(
            "tcp_callbacks",
            "records",
            tcp.seen,
            tcp.filtered,
            tcp.lost,
            "more connections in an interval than the TCP map holds: some have no round-trip time or retransmits",
        ),
        row(
            "events",
            "records",
            events.seen,
            events.filtered,
            events.lost,
            "live events came faster than they were read; counts are not affected; raise ring_buffer_size",
        ),
        row(
            "dns_answers",
            "records",
            dns.seen,
            dns.filtered,
            dns.lost,
            "DNS answers came faster than they were read: some external addresses have no name; counts are not affected",
        ),
        row(
            "stream",
            "records",
            streamed,
            0,
            missed,
            "a client took live events too slowly; counts are not affected; raise stream_buffer",
        ),
    ];
    rows.extend(lock(&core.store).history.ledger());
    rows
}

/// Resident memory in bytes, and processor time, of this process.
fn process_usage() -> (u64, Duration) {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .unwrap_or(4096);
    let rss = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    let cpu = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
        .map(|usage| {
            let time = |value: nix::sys::time::TimeVal| {
                Duration::new(value.tv_sec().unsigned_abs(), 0)
                    + Duration::from_micros(value.tv_usec().unsigned_abs())
            };
            time(usage.user_time()) + time(usage.system_time())
        })
        .unwrap_or_default();
    (rss * page.unsigned_abs(), cpu)
}

fn timestamp(ns: u64) -> Timestamp {
    crate::store::timestamp(ns)
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}
