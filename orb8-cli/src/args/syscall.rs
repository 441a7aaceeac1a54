//! What can be typed about system calls.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Subcommand, ValueEnum,
    builder::{NonEmptyStringValueParser, ValueParser},
};

use super::{FlowForm, Report, ScopeArgs, TraceForm};
use crate::filter::{self, syscall};

const SYSCALLS_EXAMPLES: &str = "\
Examples:
  orb8 syscalls -n shop --by pod          which pods call the kernel most
  orb8 syscalls --pod shop/cart           every call of one pod
  orb8 syscalls -A --by syscall,node --category file
  orb8 syscalls --errors --sort errors    what fails, and how
  orb8 syscalls --latency --sort p99      what takes long
  orb8 syscalls --waits -n shop           what each pod waits for
  orb8 syscalls --new -A                  calls that a workload had never made before
  orb8 syscalls --anomalies               rates that a workload's own history does not explain
  orb8 syscalls --owner nginx.service --watch --interval 5s
  orb8 syscalls -o json | jq 'select(.errors.EACCES > 0)'

Counts are exact; they need the agent's syscall mode `counts`. Errors, times and waits are measured
in mode `latency` only, from when it was switched on (`orb8 syscall-mode latency`); standalone,
these options switch it on. Percentiles are bounds of buckets: `<=2.1ms` is at most 2.1 ms, and more
than half of it. Calls of other tables than the machine's own have theirs in front: `i386:openat`.
`#N` is a number without a name; `other` are calls whose kind had no room.

Categories: file, network, memory, process, signal, ipc, time, event, credentials, module, system,
other.

JSON: one object a line. Fields that are unknown, or summed over, are left out. `returned`,
`errors`, `total_ns`, `p50_ns`, `p99_ns` and `waits` are of the time in which they were measured.
CSV: a header line, then node, namespace, pod, container, workload, unit, process, cgroup,
attribution, syscall, abi, number, category, count, returned, errors (ENOENT=3, joined by +),
total_ns, p50_ns, p99_ns, first, last; for wait_network_, wait_disk_, wait_futex_, wait_poll_,
wait_sleep_ and wait_other_ each: ns, count; for change_ each: kind, watched_seconds, time, rate,
mean_rate, deviation, score, explanation.";

const MODE_EXAMPLES: &str = "\
Examples:
  orb8 syscall-mode                     what each agent does
  orb8 syscall-mode latency             measure errors and times too, on every node
  orb8 --node n1 syscall-mode counts    on one node, back again

The mode holds until it is switched again or the agent ends, which begins anew as its setting
ORB8_SYSCALL_MODE says. Nothing that was counted is lost. Exit code 1 if an agent did not switch.";

const TRACE_EXAMPLES: &str = "\
Examples:
  orb8 trace syscalls -n shop
  orb8 trace syscalls --syscall execve --owner nginx.service
  orb8 trace syscalls --pod shop/cart --syscall read,write --sample 1000
  orb8 trace syscalls -o json --duration 1m > events.json

Told one by one are calls that matter so: execve, ptrace, mount, setns, unshare, bpf, init_module,
setuid and the like (the agent's setting ORB8_SYSCALL_EVENTS). Other calls are sampled if they are
named: `x100` after an event says that it stands for a hundred calls. NEW and ANOMALY are changes of
what a workload calls. Times are UTC.";

const SECCOMP_EXAMPLES: &str = "\
Examples:
  orb8 profile seccomp --pod shop/cart-0 --duration 10m --output cart.json
  orb8 profile seccomp --workload shop/Deployment/cart --container server > cart.json
  orb8 profile seccomp --owner nginx.service --since 1h --log

The profile allows what was seen, and what runc needs to start a container under it; all else fails
with EPERM. Put it on each node below the kubelet's seccomp directory
(/var/lib/kubelet/seccomp/cart.json), and name it in the pod: securityContext.seccompProfile
{type: Localhost, localhostProfile: cart.json}. A call that did not happen while it was watched is
not in it: watch a start, a full round of work, an error and an end; try it with --log first.

Exit codes: 0 written, 1 nothing written, 3 with --strict: written, and calls were lost or unknown.";

/// Conditions on calls; all must hold, of one option's values any.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Filters (run in the agent)")]
pub(crate) struct SyscallFilterArgs {
    #[command(flatten)]
    pub(crate) caller: CallerArgs,
    /// Call: a name, also with its table (i386:openat), or a number; repeat or separate by commas
    #[arg(
        long, value_name = "CALL", value_delimiter = ',', value_parser = ValueParser::new(syscall::call),
        help_heading = "Filters (run in the agent)"
    )]
    pub(crate) syscall: Vec<String>,
    /// Category: file, network, memory, process, signal, ipc, time, event, credentials, module, system, other;
    /// repeat or separate by commas
    #[arg(
        long, value_name = "CATEGORY", value_delimiter = ',', value_parser = ValueParser::new(syscall::category),
        help_heading = "Filters (run in the agent)"
    )]
    pub(crate) category: Vec<String>,
}

/// Who calls.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Filters (run in the agent)")]
pub(crate) struct CallerArgs {
    /// Unit, container (a prefix of its id will do), process or cgroup (or the beginning of its path); repeatable
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) owner: Vec<String>,
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
    /// Container: its name, or the beginning of its id; repeat or separate by commas
    #[arg(
        long, value_name = "CONTAINER", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new(),
        help_heading = "Filters (run in the agent)"
    )]
    pub(crate) container: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupArg {
    /// Pods; elsewhere units, containers, cgroups
    Pod,
    /// Containers
    Container,
    /// Calls
    Syscall,
    /// Workloads (Deployment/cart)
    Workload,
    /// Categories of calls
    Category,
    /// Nodes
    Node,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SyscallSortArg {
    /// Most calls first
    #[default]
    Count,
    /// Most failed calls first (latency mode)
    Errors,
    /// Most time in calls first (latency mode)
    Time,
    /// Longest 99th percentile first (latency mode)
    P99,
}

#[derive(Args, Debug)]
#[command(after_help = SYSCALLS_EXAMPLES)]
pub(crate) struct SyscallsArgs {
    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = FlowForm::Table)]
    pub(crate) output: FlowForm,
    /// What stays apart, everything else is summed; repeat or separate by commas [default: container,syscall; pod
    /// with --waits; workload,syscall with --new and --anomalies]
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub(crate) by: Vec<GroupArg>,
    /// Also how many calls failed, and how
    #[arg(long)]
    pub(crate) errors: bool,
    /// Also the time in calls: in all, and percentiles
    #[arg(long)]
    pub(crate) latency: bool,
    /// What callers wait for: time in calls by network, disk, futex, poll, sleep, other
    #[arg(long, conflicts_with_all = ["errors", "latency", "new", "anomalies"])]
    pub(crate) waits: bool,
    /// Only calls that their workload had never made before
    #[arg(long, conflicts_with = "anomalies")]
    pub(crate) new: bool,
    /// Only calls whose rate the workload's own history does not explain
    #[arg(long)]
    pub(crate) anomalies: bool,
    /// Order of the rows [default: count; time with --waits]
    #[arg(long, value_enum)]
    pub(crate) sort: Option<SyscallSortArg>,
    /// At most so many rows, 0 for all [default: 50 in tables or what fits
    /// where --watch draws anew, else all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,
    /// Calls since then: an age (90s, 2m, 1h) or a time (2026-01-02T03:04:05Z)
    #[arg(long, value_name = "AGE|TIME", value_parser = ValueParser::new(filter::time))]
    pub(crate) since: Option<filter::Time>,
    /// Calls until then: an age or a time
    #[arg(long, value_name = "AGE|TIME", value_parser = ValueParser::new(filter::time), conflicts_with = "watch")]
    pub(crate) until: Option<filter::Time>,
    /// Observe so long and show what happened meanwhile; with --watch: end after so long
    /// [default: 5s standalone]
    #[arg(long, value_name = "TIME", value_parser = ValueParser::new(filter::duration), conflicts_with = "until")]
    pub(crate) duration: Option<Duration>,
    /// Again and again until ^C. A table on a terminal is drawn anew with all that --since covers; everything
    /// else shows, each time, what happened since the time before
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
    pub(crate) filter: SyscallFilterArgs,
    /// Only calls that failed so: a name (ENOENT) or number; repeat or separate by commas (latency mode)
    #[arg(
        long, value_name = "ERROR", value_delimiter = ',', value_parser = ValueParser::new(syscall::errno),
        conflicts_with_all = ["new", "anomalies", "waits"],
        help_heading = "Filters (run in the agent)"
    )]
    pub(crate) errno: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// Nothing is attached, nothing is counted
    Off,
    /// Calls are counted as they are entered
    Counts,
    /// Also how each ended, and how long it took
    Latency,
}

#[derive(Args, Debug)]
#[command(after_help = MODE_EXAMPLES)]
pub(crate) struct SyscallModeArgs {
    /// The mode to switch to; without, the mode is only shown
    #[arg(value_enum)]
    pub(crate) mode: Option<ModeArg>,
    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Report::Table)]
    pub(crate) output: Report,
    /// Exit with 3 if an agent did not answer
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Args, Debug)]
#[command(
    after_help = TRACE_EXAMPLES,
    group = clap::ArgGroup::new("calls").args(["syscall", "category"]).multiple(true)
)]
pub(crate) struct TraceSyscallsArgs {
    /// Form of the events
    #[arg(long, short, value_enum, default_value_t = TraceForm::Lines)]
    pub(crate) output: TraceForm,
    /// Of calls that --syscall or --category names and that are not told one by one, every so many-th [default: 100]
    #[arg(
        long, value_name = "N", requires = "calls", value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub(crate) sample: Option<u32>,
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
    pub(crate) filter: SyscallFilterArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ProfileArgs {
    #[command(subcommand)]
    pub(crate) kind: ProfileKind,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProfileKind {
    /// A seccomp profile that allows the calls that were seen
    Seccomp(SeccompArgs),
}

#[derive(Args, Debug)]
#[command(
    after_help = SECCOMP_EXAMPLES,
    group = clap::ArgGroup::new("whose").args(["pod", "workload", "owner"]).required(true).multiple(true)
)]
pub(crate) struct SeccompArgs {
    /// Watch for so long from now on; ^C ends it early, with what was seen so far. Without: what the agent has kept
    /// [default: 5m standalone]
    #[arg(long, value_name = "TIME", value_parser = ValueParser::new(filter::duration), conflicts_with = "since")]
    pub(crate) duration: Option<Duration>,
    /// Calls since then: an age (90s, 2m, 1h) or a time (2026-01-02T03:04:05Z)
    #[arg(long, value_name = "AGE|TIME", value_parser = ValueParser::new(filter::time))]
    pub(crate) since: Option<filter::Time>,
    /// Write the profile into this file, which appears only when it is complete [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Let other calls through and log them (SCMP_ACT_LOG), instead of failing them: to try a profile
    #[arg(long)]
    pub(crate) log: bool,
    /// Exit with 3 if calls were lost, or could not be put into the profile
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) caller: CallerArgs,
}
