//! What can be typed about GPUs.

use std::time::Duration;

use clap::{
    Args, Subcommand,
    builder::{NonEmptyStringValueParser, ValueParser},
};

use super::{FlowForm, ScopeArgs, TraceForm};
use crate::filter::{self, gpu};

const GPU_EXAMPLES: &str = "\
Examples:
  orb8 gpu                        each GPU, what it does, and who holds it
  orb8 gpu -n ml --pod train      those that these pods hold or use
  orb8 gpu --device 0,GPU-5fd4    by index, or by the beginning of a UUID
  orb8 gpu --since 10m -o wide    means and sums of ten minutes, all that was measured
  orb8 gpu --watch --interval 5s
  orb8 gpu -o json | jq 'select(.utilization < 0.1)'
  orb8 gpu idle -n ml             what is held and does nothing, and why
  orb8 trace gpu                  XID errors as they happen

Who holds a device is below it; an instance of a partitioned GPU (MIG) is below its GPU. `-` is what
nobody measured: it is not zero. METHOD says where a device's values come from (dcgm, nvml), and how
a holder's are known:
  exclusive        it alone holds the device: what the device does, it does
  mig              it alone holds the MIG instance
  nvml_pid         measured at its processes
  shared_estimate  one of several holders, and nobody measures processes: the device's values stand
                   at the device, and which part is whose is not known
  allocated_idle   it holds the device, which did nothing
  unallocated_use  its processes use the device, which it does not hold

With a token a server tells only of your namespaces. Of other holders it tells their number; what a
device did that they held, too, is theirs as well: it is not told, and `-` as well.

JSON: one object a line, a device each. Fields that are unknown are left out.
CSV: a header line, then a line a device (`row` is device), and below it one for each holder (`row`
is holder): row, node, uuid, instance, index, mig_uuid, mig_profile, model, driver, pci, the
readings as in JSON, sources, samples, last, trouble, hidden_holders; for holder_ each: namespace,
pod, pod_uid, container, workload, unit, process, cgroup, attribution, method, utilization,
memory_bytes, energy_joules, device_ids, resource, claim, pids, since, until.";

const IDLE_EXAMPLES: &str = "\
Examples:
  orb8 gpu idle                   of the last hour
  orb8 gpu idle --since 1d -n ml
  orb8 gpu idle -o json | jq 'select(.wasted_gpu_hours > 1)'

IDLE: the part of the time held, as far as it was measured, in which no kernel ran on the device.
UNKNOWN: time held that nobody measured, or that a server does not tell, for others held the device
at the same time. WASTED: hours held and idle; what is unknown is not in it. A device that several
pods held at once is wasted once, and told at the first of them. Hours of MIG instances are told
apart from those of whole GPUs. CAUSE is what the holder's threads did meanwhile, as far as orb8
knows it: network, disk, memory, futex, sleep, cpu_throttled, cpu_busy, cuda_sync; else unknown.
Below it is what that rests on.

JSON: one object a line, for each device and those who held it at once, with `held_seconds`,
`idle_seconds`, `unknown_seconds`, `idle_share`, `cause`, `evidence` and `waits` of each holder.
CSV: as of `orb8 gpu`, then for idle_ each: held_seconds, idle_seconds, unknown_seconds, share,
cause, evidence.";

const CUDA_EXAMPLES: &str = "\
Examples:
  orb8 gpu cuda -n ml             calls of the CUDA libraries, by container and function
  orb8 gpu cuda --since 10m --pod train -o wide

Calls are counted where the agent's CUDA probes are on; they are off by default, since each call
costs. Errors and times are measured in their latency mode only. BYTES: allocations that succeeded,
and copies.

JSON: one object a line. Fields that are not measured are left out.
CSV: a header line, then node, namespace, pod, pod_uid, container, workload, unit, process, cgroup,
attribution, function, library, count, errors, bytes, total_ns.";

const TRACE_EXAMPLES: &str = "\
Examples:
  orb8 trace gpu -A
  orb8 trace gpu -n ml -o json --duration 1h > xid.json

XID: an error that the driver reported, by its number. Whoever held the GPU then is named after it.
Times are UTC.";

#[derive(Args, Debug)]
#[command(after_help = GPU_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct GpuArgs {
    /// What is asked; without, the devices
    #[command(subcommand)]
    pub(crate) view: Option<GpuView>,
    #[command(flatten)]
    pub(crate) ask: GpuAskArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GpuView {
    /// Devices that are held and do nothing: for how long, and why [default: --since 1h]
    #[command(after_help = IDLE_EXAMPLES)]
    Idle(GpuAskArgs),
    /// Calls of the CUDA libraries: who made them, how often, how many bytes
    #[command(after_help = CUDA_EXAMPLES)]
    Cuda(GpuAskArgs),
}

/// What every question about GPUs has.
#[derive(Args, Debug)]
pub(crate) struct GpuAskArgs {
    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = FlowForm::Table)]
    pub(crate) output: FlowForm,
    /// At most so many devices or rows, 0 for all [default: 50 in tables, else all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,
    /// Since then: an age (90s, 2m, 1h) or a time (2026-01-02T03:04:05Z); means of gauges, sums of counters. Without:
    /// the last sample; of CUDA calls, all since the agent's start
    #[arg(long, value_name = "AGE|TIME", value_parser = ValueParser::new(filter::time))]
    pub(crate) since: Option<filter::Time>,
    /// Until then: an age or a time
    #[arg(
        long, value_name = "AGE|TIME", value_parser = ValueParser::new(filter::time),
        requires = "since", conflicts_with = "watch"
    )]
    pub(crate) until: Option<filter::Time>,
    /// Observe so long and show what happened meanwhile; with --watch: end after so long
    #[arg(long, value_name = "TIME", value_parser = ValueParser::new(filter::duration), conflicts_with = "until")]
    pub(crate) duration: Option<Duration>,
    /// Again and again until ^C: each time the last sample, or all that --since covers
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Time between refreshes, 100ms to 1h
    #[arg(
        long, value_name = "TIME", default_value = "1s", requires = "watch",
        value_parser = ValueParser::new(filter::interval)
    )]
    pub(crate) interval: Duration,
    /// End after so many refreshes
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Exit with 3 if something was lost or the answer is partial
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) filter: GpuFilterArgs,
}

/// Conditions on devices and their holders; all must hold, of one option's values any.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Filters (run in the agent)")]
pub(crate) struct GpuFilterArgs {
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    /// Pod: a name or its beginning, NAMESPACE/NAME, or labels (app=web,tier!=db); repeatable, names also by commas
    #[arg(
        long, value_name = "POD|LABELS", value_parser = ValueParser::new(filter::names),
        help_heading = "Filters (run in the agent)"
    )]
    pub(crate) pod: Vec<String>,
    /// Workload: NAME, KIND/NAME (Deployment/cart), each also with NAMESPACE/ before; repeat or separate by commas
    #[arg(
        long, value_name = "WORKLOAD", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new(),
        help_heading = "Filters (run in the agent)"
    )]
    pub(crate) workload: Vec<String>,
    /// Device: its index on its node, or the beginning of its UUID (GPU-5fd4); repeat or separate by commas; not for
    /// CUDA calls, which name no device
    #[arg(
        long, value_name = "INDEX|UUID", value_delimiter = ',', value_parser = ValueParser::new(gpu::device),
        help_heading = "Filters (run in the agent)"
    )]
    pub(crate) device: Vec<String>,
}

#[derive(Args, Debug)]
#[command(after_help = TRACE_EXAMPLES)]
pub(crate) struct TraceGpuArgs {
    /// Form of the events
    #[arg(long, short, value_enum, default_value_t = TraceForm::Lines)]
    pub(crate) output: TraceForm,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "TIME", value_parser = ValueParser::new(filter::duration))]
    pub(crate) duration: Option<Duration>,
    /// Exit with 3 if events were lost
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) filter: GpuFilterArgs,
}
