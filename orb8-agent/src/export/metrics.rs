//! Prometheus metrics, in the OpenMetrics text format.
//!
//! All series come from one [`MetricsSnapshot`], taken when someone scrapes. Counter families are named without
//! the `_total` that the format adds to their samples.

mod gpu;

use std::{collections::BTreeMap, fmt};

use orb8_proto::v1;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, text},
    metrics::MetricType,
    metrics::exemplar::Exemplar,
    registry::Registry,
};

use crate::{
    identity::owner::Kind,
    store::{Direction, Series, Unattributed},
    syscalls::{
        baseline::BaselineCounts,
        totals::{CallSeries, Sums},
    },
};

/// Media type of [`encode`]'s text (OpenMetrics 1.0; readers of the older Prometheus format take it as well).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a scrape shows.
#[derive(Clone, Debug, Default)]
pub struct MetricsSnapshot {
    /// State of the agent: programs, ledger, limits, CPU time and memory.
    pub status: v1::AgentStatus,
    /// Totals since the start, from [`crate::store::Totals::series`]: their bound is the bound on series here.
    pub totals: Vec<Series>,
    /// From [`crate::store::Totals::unattributed`].
    pub unattributed: Vec<Unattributed>,
    /// Packets and bytes, from [`crate::store::Totals::removed`].
    pub removed: (u64, u64),
    /// Of system calls.
    pub syscalls: SyscallMetrics,
    /// GPUs as of the last sample, with what their counters rose by since the start.
    pub gpus: Vec<(v1::GpuDevice, orb8_gpu::Totals)>,
    /// Sources of GPU readings.
    pub gpu_sources: Vec<v1::GpuSource>,
    /// Calls of the CUDA libraries since the start.
    pub cuda: Vec<v1::CudaCalls>,
    /// Device memory that owners hold, as seen allocated, in bytes.
    pub cuda_held: Vec<(v1::Endpoint, u64)>,
    /// Errors that the driver told, by UUID of the GPU and XID number.
    pub gpu_errors: Vec<(String, u32, u64)>,
    /// Pods of this node that are known, if a cluster is.
    pub pods_tracked: Option<u64>,
    /// From [`crate::store::Totals::turned_away`].
    pub series_turned_away: u64,
    /// From [`crate::store::Totals::folded`].
    pub owners_folded: u64,
    /// Event records that did not fit into the kernel's ring buffer, since the start.
    pub ring_drops: u64,
    /// How full the ring buffer is, from 0 to 1.
    pub ring_utilization: f64,
}

/// What a scrape shows of system calls.
#[derive(Clone, Debug, Default)]
pub struct SyscallMetrics {
    /// What the programs do: off, counts or latency.
    pub mode: &'static str,
    /// From [`crate::syscalls::totals::CallTotals::calls`].
    pub calls: Vec<CallSeries>,
    /// From [`crate::syscalls::totals::CallTotals::errors`].
    pub errors: Vec<CallSeries>,
    /// From [`crate::syscalls::totals::CallTotals::events`].
    pub events: Vec<CallSeries>,
    /// From [`crate::syscalls::totals::CallTotals::removed`].
    pub removed: Sums,
    /// From [`crate::syscalls::totals::CallTotals::turned_away`].
    pub turned_away: u64,
    /// From [`crate::syscalls::totals::CallTotals::folded`].
    pub folded: u64,
    /// From [`crate::syscalls::baseline::Baseline::counts`].
    pub baseline: BaselineCounts,
    /// Workloads that are known, and those of them that are watched for long enough.
    pub workloads: (usize, usize),
    /// Reads of the programs' counts that failed.
    pub read_failures: u64,
}

/// The text of a scrape. Cost: linear in series.
///
/// # Errors
/// Only if a label could not be formatted, which no value of a snapshot brings about.
pub fn encode(snapshot: MetricsSnapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    // A series is some 120 bytes of text, twice.
    let mut text = String::with_capacity(16_384 + snapshot.totals.len() * 256);
    registry.register_collector(Box::new(Snapshot(snapshot)));
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot(MetricsSnapshot);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        network(&self.0, &mut encoder)?;
        syscalls(&self.0.syscalls, &mut encoder)?;
        gpu::encode(&self.0, &mut encoder)?;
        ledger(&self.0.status.ledger, &mut encoder)?;
        programs(&self.0.status.programs, &mut encoder)?;
        limits(&self.0.status.limits, &mut encoder)?;
        kubernetes(&self.0, &mut encoder)?;
        agent(&self.0.status, &mut encoder)
    }
}

/// Samples of a family by label values. In a map, so that no two have the same labels: the format forbids it.
type Samples<const N: usize, V> = BTreeMap<[String; N], V>;

const NO_EXEMPLAR: Option<&Exemplar<[(&str, &str); 0], f64>> = None;

fn counters<const N: usize, V: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: [&'static str; N],
    samples: &Samples<N, V>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (values, value) in samples {
        family
            .encode_family(&label_set(labels, values))?
            .encode_counter(value, NO_EXEMPLAR)?;
    }
    Ok(())
}

fn gauges<const N: usize, V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: [&'static str; N],
    samples: &Samples<N, V>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (values, value) in samples {
        family
            .encode_family(&label_set(labels, values))?
            .encode_gauge(value)?;
    }
    Ok(())
}

fn label_set<'a, const N: usize>(
    labels: [&'static str; N],
    values: &'a [String; N],
) -> [(&'static str, &'a str); N] {
    std::array::from_fn(|index| (labels[index], values[index].as_str()))
}

fn counter<V: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: &V,
) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Counter)?
        .encode_counter(value, NO_EXEMPLAR)
}

fn gauge<V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: &V,
) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(value)
}

fn add<const N: usize>(samples: &mut Samples<N, u64>, labels: [String; N], value: u64) {
    let sample = samples.entry(labels).or_default();
    *sample = sample.saturating_add(value);
}

fn network(snapshot: &MetricsSnapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    const LABELS: [&str; 7] = [
        "namespace",
        "pod",
        "workload",
        "owner",
        "direction",
        "protocol",
        "peer",
    ];
    let mut packets = Samples::new();
    let mut bytes = Samples::new();
    for series in &snapshot.totals {
        let direction = match series.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        let labels = [
            series.labels.namespace.clone(),
            series.labels.pod.clone(),
            series.labels.workload.clone(),
            series.labels.owner.clone(),
            direction.to_owned(),
            series.protocol.name().to_owned(),
            series.peer.map_or("unknown", Kind::name).to_owned(),
        ];
        add(&mut packets, labels.clone(), series.packets);
        add(&mut bytes, labels, series.bytes);
    }
    let help = "Layer-3 bytes by pod or other owner, direction seen from it, protocol, and kind of peer";
    counters(encoder, "orb8_network_bytes", help, LABELS, &bytes)?;
    let help =
        "Packets (wire segments) by pod or other owner, direction seen from it, protocol, and kind of peer";
    counters(encoder, "orb8_network_packets", help, LABELS, &packets)?;
    let (mut packets, mut bytes) = (Samples::new(), Samples::new());
    for unattributed in &snapshot.unattributed {
        let labels = || [unattributed.reason.to_owned()];
        add(&mut packets, labels(), unattributed.packets);
        add(&mut bytes, labels(), unattributed.bytes);
    }
    let help = "Packets of which it is not known whose they are, by what is missing";
    counters(encoder, "orb8_unattributed_packets", help, ["reason"], &packets)?;
    let help = "Layer-3 bytes of which it is not known whose they are, by what is missing";
    counters(encoder, "orb8_unattributed_bytes", help, ["reason"], &bytes)?;
    counter(
        encoder,
        "orb8_network_removed_packets",
        "Packets of series that were removed some time after their pods had ended",
        &snapshot.removed.0,
    )?;
    counter(
        encoder,
        "orb8_network_removed_bytes",
        "Layer-3 bytes of series that were removed some time after their pods had ended",
        &snapshot.removed.1,
    )?;
    counter(
        encoder,
        "orb8_metrics_series_dropped",
        "Times that a series, in an interval, had no room and was counted under owner other",
        &snapshot.series_turned_away,
    )?;
    counter(
        encoder,
        "orb8_metrics_owners_folded",
        "Quiet owners whose series were added to owner other to make room",
        &snapshot.owners_folded,
    )?;
    gauge(
        encoder,
        "orb8_flows_active",
        "Flows with a packet in the last interval",
        &snapshot.status.flows_active,
    )?;
    counter(
        encoder,
        "orb8_ring_buffer_drops",
        "Events that did not fit into the ring buffer; counts are not affected",
        &snapshot.ring_drops,
    )?;
    let utilization = if snapshot.ring_utilization.is_finite() {
        snapshot.ring_utilization.clamp(0.0, 1.0)
    } else {
        0.0
    };
    gauge(
        encoder,
        "orb8_ring_buffer_utilization",
        "Share of the ring buffer in use, 0 to 1",
        &utilization,
    )
}

fn syscalls(syscalls: &SyscallMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let samples = |series: &[CallSeries]| {
        let mut samples = Samples::new();
        for one in series {
            let labels = [
                one.labels.namespace.clone(),
                one.labels.pod.clone(),
                one.labels.workload.clone(),
                one.labels.owner.clone(),
                one.name.clone(),
            ];
            add(&mut samples, labels, one.count);
        }
        samples
    };
    const CALLS: [&str; 5] = ["namespace", "pod", "workload", "owner", "syscall"];
    const ERRORS: [&str; 5] = ["namespace", "pod", "workload", "owner", "errno"];
    let help = "System calls by pod or other owner: its most frequent ones, and the rest as other";
    counters(encoder, "orb8_syscalls", help, CALLS, &samples(&syscalls.calls))?;
    let help = "System calls that failed, by pod or other owner and error, while the mode was latency";
    counters(
        encoder,
        "orb8_syscall_errors",
        help,
        ERRORS,
        &samples(&syscalls.errors),
    )?;
    let help =
        "System calls of those that are told one by one, by pod or other owner: as counted, told or not";
    counters(
        encoder,
        "orb8_syscall_events",
        help,
        CALLS,
        &samples(&syscalls.events),
    )?;
    counter(
        encoder,
        "orb8_syscall_new",
        "Calls that a workload made which it had never made while it was watched",
        &syscalls.baseline.new,
    )?;
    counter(
        encoder,
        "orb8_syscall_anomalies",
        "Times that the rate of a workload's call was not one that its own history explains",
        &syscalls.baseline.anomalies,
    )?;
    let workloads = |state: &str, count: usize| ([state.to_owned()], count as u64);
    let (known, warm) = syscalls.workloads;
    let watched = [
        workloads("warming_up", known.saturating_sub(warm)),
        workloads("judged", warm),
    ];
    gauges(
        encoder,
        "orb8_syscall_workloads",
        "Workloads whose calls are known: watched for the warm-up and judged, or not yet",
        ["state"],
        &watched.into_iter().collect(),
    )?;
    counter(
        encoder,
        "orb8_syscall_removed",
        "System calls of series that were removed some time after their pods had ended",
        &syscalls.removed.calls,
    )?;
    counter(
        encoder,
        "orb8_syscall_removed_errors",
        "Failed system calls of series that were removed some time after their pods had ended",
        &syscalls.removed.errors,
    )?;
    counter(
        encoder,
        "orb8_syscall_removed_events",
        "System calls told one by one of series that were removed some time after their pods had ended",
        &syscalls.removed.events,
    )?;
    counter(
        encoder,
        "orb8_syscall_series_dropped",
        "Times that an owner, in an interval, had no room for series of calls and was counted under owner other",
        &syscalls.turned_away,
    )?;
    counter(
        encoder,
        "orb8_syscall_owners_folded",
        "Quiet owners whose series of calls were added to owner other to make room",
        &syscalls.folded,
    )?;
    counter(
        encoder,
        "orb8_syscall_read_failures",
        "Reads of the programs' counts that failed; what was not read came with a later one",
        &syscalls.read_failures,
    )?;
    let modes =
        ["off", "counts", "latency"].map(|mode| ([mode.to_owned()], u64::from(mode == syscalls.mode)));
    gauges(
        encoder,
        "orb8_syscall_mode",
        "Whether this is what the syscall programs do: off, counts or latency",
        ["mode"],
        &modes.into_iter().collect(),
    )
}

fn ledger(rows: &[v1::LedgerRow], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    type Column = fn(&v1::LedgerRow) -> u64;
    const COLUMNS: [(&str, &str, Column); 5] = [
        (
            "orb8_ledger_seen",
            "What reached a stage: seen = counted + filtered + lost",
            |row| row.seen,
        ),
        ("orb8_ledger_counted", "What a stage counted", |row| row.counted),
        (
            "orb8_ledger_filtered",
            "What a stage left out on purpose",
            |row| row.filtered,
        ),
        ("orb8_ledger_lost", "What a stage lost", |row| row.lost),
        (
            "orb8_ledger_lost_bytes",
            "Bytes that a stage lost, where it knows them",
            |row| row.lost_bytes,
        ),
    ];
    for (name, help, column) in COLUMNS {
        let mut samples = Samples::new();
        for row in rows {
            let labels = [row.family.clone(), row.stage.clone(), row.unit.clone()];
            add(&mut samples, labels, column(row));
        }
        counters(encoder, name, help, ["family", "stage", "unit"], &samples)?;
    }
    Ok(())
}

fn programs(programs: &[v1::ProgramStatus], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut states = Samples::new();
    let mut attachments = Samples::new();
    let (mut runs, mut seconds) = (Samples::new(), Samples::new());
    for program in programs {
        let labels = || [program.family.clone(), program.name.clone()];
        for (state, name) in [
            (v1::State::Active, "active"),
            (v1::State::Off, "off"),
            (v1::State::Failed, "failed"),
        ] {
            let [family, name_of_program] = labels();
            let is = u64::from(program.state == i32::from(state));
            add(&mut states, [family, name_of_program, name.to_owned()], is);
        }
        add(&mut attachments, labels(), u64::from(program.attachments));
        // The kernel counts runs only while kernel.bpf_stats_enabled is on.
        if program.run_count > 0 {
            add(&mut runs, labels(), program.run_count);
            *seconds.entry(labels()).or_insert(0.0) += program.run_time_ns as f64 / 1e9;
        }
    }
    let help = "Whether a program is in this state: active, off or failed";
    gauges(
        encoder,
        "orb8_probe_state",
        help,
        ["family", "program", "state"],
        &states,
    )?;
    let help = "Places that a program is attached to";
    gauges(
        encoder,
        "orb8_probe_attachments",
        help,
        ["family", "program"],
        &attachments,
    )?;
    if !runs.is_empty() {
        let help = "Runs of a program, while kernel.bpf_stats_enabled is on";
        counters(encoder, "orb8_probe_runs", help, ["family", "program"], &runs)?;
        let help = "Run time of a program, while kernel.bpf_stats_enabled is on";
        counters(
            encoder,
            "orb8_probe_run_seconds",
            help,
            ["family", "program"],
            &seconds,
        )?;
    }
    Ok(())
}

fn limits(limits: &[v1::Limit], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let (mut used, mut max, mut turned_away) = (Samples::new(), Samples::new(), Samples::new());
    for limit in limits {
        let labels = || [limit.name.clone(), limit.unit.clone()];
        add(&mut used, labels(), limit.used);
        add(&mut max, labels(), limit.max);
        add(&mut turned_away, labels(), limit.turned_away);
    }
    const LABELS: [&str; 2] = ["limit", "unit"];
    gauges(
        encoder,
        "orb8_limit_used",
        "How much of a bounded resource is in use",
        LABELS,
        &used,
    )?;
    gauges(encoder, "orb8_limit_max", "Bound of a resource", LABELS, &max)?;
    let help = "What a bounded resource had no room for";
    counters(encoder, "orb8_limit_turned_away", help, LABELS, &turned_away)
}

fn kubernetes(snapshot: &MetricsSnapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if let Some(pods) = snapshot.pods_tracked {
        let help = "Pods of this node that the agent knows of";
        gauge(encoder, "orb8_pods_tracked", help, &pods)?;
    }
    let Some(status) = &snapshot.status.kubernetes else {
        return Ok(());
    };
    let (mut states, mut objects, mut ages) = (Samples::new(), Samples::new(), Samples::new());
    let (mut events, mut restarts) = (Samples::new(), Samples::new());
    for watch in &status.watches {
        let labels = || [watch.resource.clone()];
        let active = u64::from(watch.state == i32::from(v1::State::Active));
        add(&mut states, labels(), active);
        add(&mut objects, labels(), watch.objects);
        add(&mut events, labels(), watch.events);
        add(&mut restarts, labels(), watch.restarts);
        if let Some(age) = watch.age {
            ages.insert(labels(), age.seconds as f64 + f64::from(age.nanos) / 1e9);
        }
    }
    const LABELS: [&str; 1] = ["resource"];
    let help = "Whether the API server is being watched for this resource: 1, or 0 while the last known state serves";
    gauges(encoder, "orb8_kubernetes_watch_active", help, LABELS, &states)?;
    let help = "Objects that are known of a resource";
    gauges(encoder, "orb8_kubernetes_objects", help, LABELS, &objects)?;
    let help = "Time since the API server confirmed what is known of a resource";
    gauges(encoder, "orb8_kubernetes_state_age_seconds", help, LABELS, &ages)?;
    let help = "Changes of a resource that were taken in";
    counters(encoder, "orb8_kubernetes_events", help, LABELS, &events)?;
    let help = "Times that the watch of a resource began anew";
    counters(encoder, "orb8_kubernetes_watch_restarts", help, LABELS, &restarts)
}

fn agent(status: &v1::AgentStatus, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let cpu = status
        .cpu
        .map_or(0.0, |cpu| cpu.seconds as f64 + f64::from(cpu.nanos) / 1e9);
    counter(encoder, "orb8_agent_cpu_seconds", "CPU time of the agent", &cpu)?;
    gauge(
        encoder,
        "orb8_agent_resident_memory_bytes",
        "Resident memory of the agent",
        &status.rss_bytes,
    )?;
    gauge(
        encoder,
        "orb8_agent_map_memory_bytes",
        "Kernel memory of the agent's eBPF maps",
        &status.map_bytes,
    )?;
    if let Some(started) = status.started {
        let started = started.seconds as f64 + f64::from(started.nanos) / 1e9;
        gauge(
            encoder,
            "orb8_agent_start_time_seconds",
            "When the agent started, Unix time",
            &started,
        )?;
    }
    let info = [
        ("version", status.version.as_str()),
        ("kernel", &status.kernel),
        ("node", &status.node),
    ];
    encoder
        .encode_descriptor(
            "orb8_build",
            "Version of the agent and where it runs",
            None,
            MetricType::Info,
        )?
        .encode_info(&info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Labels, Protocol};
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    /// A strict reader of the OpenMetrics text format, as far as we use it.
    fn parse(text: &str) -> HashMap<String, f64> {
        let mut samples = HashMap::new();
        let mut families = HashSet::new();
        let mut family: Option<(String, String)> = None;
        assert!(text.ends_with("\n# EOF\n"));
        for line in text.trim_end_matches("# EOF\n").lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let name = help.split(' ').next().unwrap_or_default();
                assert!(families.insert(name.to_owned()), "{name} twice");
                assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name}");
                family = Some((name.to_owned(), String::new()));
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let Some((name, kind)) = kind.split_once(' ') else {
                    panic!("{line}")
                };
                assert_eq!(family.as_ref().map(|(name, _)| name.as_str()), Some(name));
                family = Some((name.to_owned(), kind.to_owned()));
            } else {
                let Some((name, kind)) = &family else {
                    panic!("a sample before its family: {line}")
                };
                let suffix = match kind.as_str() {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                let rest = line
                    .strip_prefix(&format!("{name}{suffix}"))
                    .unwrap_or_else(|| panic!("{line}"));
                let value = labels(rest)
                    .strip_prefix(' ')
                    .and_then(|value| value.parse::<f64>().ok());
                let value = value.unwrap_or_else(|| panic!("{line}"));
                let series = line
                    .rsplit_once(' ')
                    .map(|(series, _)| series.to_owned())
                    .unwrap_or_default();
                assert_eq!(samples.insert(series, value), None, "{line} twice");
            }
        }
        samples
    }

    /// What follows the labels.
    fn labels(text: &str) -> &str {
        let Some(mut rest) = text.strip_prefix('{') else {
            return text;
        };
        loop {
            if let Some(end) = rest.strip_prefix('}') {
                return end;
            }
            let Some((name, value)) = rest.split_once("=\"") else {
                panic!("{text}")
            };
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
            let mut escaped = false;
            let end = value.find(|char| match (escaped, char) {
                (true, _) => {
                    assert!(matches!(char, '\\' | '"' | 'n'), "{text}");
                    escaped = false;
                    false
                }
                (false, '\\') => {
                    escaped = true;
                    false
                }
                (false, char) => char == '"',
            });
            let Some(end) = end else { panic!("{text}") };
            rest = &value[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
    }

    fn snapshot(owner: &str) -> MetricsSnapshot {
        let series = |direction, packets| Series {
            labels: Labels {
                owner: owner.to_owned(),
                ..Labels::default()
            },
            direction,
            protocol: Protocol::Tcp,
            peer: Some(Kind::Pod),
            packets,
            bytes: packets * 10,
        };
        MetricsSnapshot {
            status: v1::AgentStatus {
                version: "0.1.0".into(),
                ledger: vec![
                    v1::LedgerRow {
                        family: "network".into(),
                        stage: "flow_map".into(),
                        unit: "packets".into(),
                        seen: 10,
                        counted: 7,
                        filtered: 1,
                        lost: 2,
                        ..Default::default()
                    };
                    2
                ],
                programs: vec![v1::ProgramStatus {
                    family: "network".into(),
                    name: "tc_ingress".into(),
                    state: v1::State::Active.into(),
                    attachments: 3,
                    run_count: 4,
                    run_time_ns: 2_000_000_000,
                    ..Default::default()
                }],
                limits: vec![v1::Limit {
                    name: "history_flows".into(),
                    used: 1,
                    max: 2,
                    ..Default::default()
                }],
                cpu: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 500_000_000,
                }),
                rss_bytes: 42,
                ..Default::default()
            },
            totals: vec![
                series(Direction::Egress, u64::MAX / 10),
                series(Direction::Ingress, 5),
            ],
            ring_utilization: f64::NAN,
            syscalls: SyscallMetrics {
                mode: "counts",
                calls: vec![
                    CallSeries {
                        labels: Labels {
                            owner: owner.to_owned(),
                            ..Labels::default()
                        },
                        name: "i386:openat".into(),
                        count: 7,
                    };
                    2
                ],
                workloads: (5, 3),
                ..SyscallMetrics::default()
            },
            ..Default::default()
        }
    }

    fn text(snapshot: MetricsSnapshot) -> String {
        encode(snapshot).unwrap_or_default()
    }

    #[test]
    fn a_scrape_reads_back() {
        let samples = parse(&text(snapshot("nginx.service")));
        let value = |series: &str| samples.get(series).copied();
        let labels = concat!(
            r#"{namespace="",pod="",workload="",owner="nginx.service","#,
            r#"direction="ingress",protocol="TCP",peer="pod"}"#
        );
        assert_eq!(value(&format!("orb8_network_packets_total{labels}")), Some(5.0));
        assert_eq!(value(&format!("orb8_network_bytes_total{labels}")), Some(50.0));
        let labels = r#"{namespace="",pod="",workload="",owner="nginx.service",syscall="i386:openat"}"#;
        assert_eq!(value(&format!("orb8_syscalls_total{labels}")), Some(14.0));
        assert_eq!(value(r#"orb8_syscall_mode{mode="counts"}"#), Some(1.0));
        assert_eq!(value(r#"orb8_syscall_mode{mode="off"}"#), Some(0.0));
        assert_eq!(value(r#"orb8_syscall_workloads{state="warming_up"}"#), Some(2.0));
        assert_eq!(value("orb8_syscall_new_total"), Some(0.0));
        // Rows with the same labels are one series.
        let labels = r#"{family="network",stage="flow_map",unit="packets"}"#;
        assert_eq!(value(&format!("orb8_ledger_seen_total{labels}")), Some(20.0));
        assert_eq!(value(&format!("orb8_ledger_lost_total{labels}")), Some(4.0));
        let state =
            |state| format!(r#"orb8_probe_state{{family="network",program="tc_ingress",state="{state}"}}"#);
        assert_eq!(
            (value(&state("active")), value(&state("failed"))),
            (Some(1.0), Some(0.0))
        );
        let labels = r#"{family="network",program="tc_ingress"}"#;
        assert_eq!(value(&format!("orb8_probe_run_seconds_total{labels}")), Some(2.0));
        assert_eq!(value("orb8_agent_cpu_seconds_total"), Some(1.5));
        assert_eq!(value("orb8_ring_buffer_utilization"), Some(0.0));
        assert_eq!(value("orb8_ring_buffer_drops_total"), Some(0.0));
        assert_eq!(
            value(r#"orb8_build_info{version="0.1.0",kernel="",node=""}"#),
            Some(1.0)
        );
    }

    #[test]
    fn an_agent_that_just_started_can_be_scraped() {
        assert!(!parse(&text(MetricsSnapshot::default())).is_empty());
    }

    proptest! {
        #[test]
        fn no_name_breaks_the_text(owner in any::<String>()) {
            let owner = owner.replace('\r', "");
            let one = text(snapshot(&owner));
            // What `lines` of the parser takes for an end of line is escaped.
            prop_assert_eq!(parse(&one).len(), parse(&text(snapshot("x"))).len());
        }
    }
}
