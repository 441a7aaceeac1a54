//! What can be typed. Each option is defined once, here; what it means is resolved in the module that uses it.

mod config;
mod gpu;
mod nodes;
mod syscall;

pub(crate) use config::*;
pub(crate) use gpu::*;
pub(crate) use nodes::*;
pub(crate) use syscall::*;

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{NonEmptyStringValueParser, ValueParser},
};

use crate::{
    address::{AgentAddress, ServerAddress},
    filter,
};

const START: &str = "\
First steps:
  orb8 doctor                 can this machine run the probes? what is missing, and what to do
  sudo orb8 top               live: who talks, how much
  sudo orb8 flows             observe for 5 seconds, then show every flow
  sudo orb8 trace network     new connections as they happen
  sudo orb8 syscalls          observe for 5 seconds, then show who called the kernel, and how often
No agent is needed: each loads the probes for as long as it runs, and detaches them after.

With an agent, which keeps recent history, so that answers come at once (`sudo orb8-agent`):
  orb8 status                 is everything attached, was anything lost
  orb8 flows --since 2m       an agent at 127.0.0.1:9090 is found by itself
  orb8 --agent node1:9090 flows -o json

In a Kubernetes cluster, through your kubeconfig, as kubectl does it:
  orb8 nodes                  which nodes have an agent, and which of them answer
  orb8 flows -A               who talks to whom, all namespaces, all nodes
  orb8 flows --edges -n shop  each flow once: what was sent, what arrived, what got lost
  orb8 pods -A                every pod, and whether its traffic can be told apart
  orb8 syscalls -A --by pod   what each pod asks of the kernel; --waits: what it waits for
  orb8 gpu -A                 what each GPU does, and for whom; gpu idle: what is wasted, and why

Who answers, the first that is there: --server, --agent, --standalone; --context and the other
options of a cluster; ORB8_SERVER; ORB8_AGENT; the current context of `orb8 config`; the agent at
127.0.0.1:9090; the orb8-server of the kubeconfig's current cluster, else its agents, through the
API server (pods labelled app.kubernetes.io/name=orb8-server or orb8-agent; needs the rights to list
pods and to create pods/portforward in their namespace, and to get the Secret orb8-operator-tls
there, which is the certificate to show); else standalone.
Certificates and tokens: as typed, else as the context that is used says, else as ORB8_TLS_CA,
ORB8_TLS_CERT, ORB8_TLS_KEY and ORB8_TOKEN say.

Over several nodes, --pod and --workload show each flow once, as the pod's own node has it;
--edges asks both ends.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 partial answer with --strict.";

const FLOWS_EXAMPLES: &str = "\
Examples:
  orb8 flows -n shop --pod cart --peer external
  orb8 flows -A --pod app=web,tier!=db --service shop/db
  orb8 flows --since 2m --sort retransmits --limit 10
  orb8 flows --owner nginx.service --port 443 --direction out
  orb8 flows --ip 10.0.0.0/8 --protocol udp,icmp -o wide
  orb8 flows --watch --interval 5s
  orb8 flows -o json | jq 'select(.bytes > 1000000)'
  sudo orb8 flows --standalone --interface 'eth*' --duration 10s

Edges: a flow inside of the cluster is reported by both of its ends. --edges joins the two: SENT is
what the source counted, RECEIVED what the destination did, LOST the difference in packets. `-` where one end
did not report: nothing is known, nothing is lost. `~`: the flow was still running, so that the
difference may be on its way. In JSON: `sent`, `received` and `elsewhere` (the same packets at
further points), each with node, packets and bytes; `lost_packets`, `lost_bytes`; `settled`.

JSON: one object a line. Fields that are unknown are left out; each flow is one direction, as
`reporter` saw it.
CSV: a header line, then node, reporter, direction, protocol, ethertype, icmp_type, icmp_code;
for src_ and dst_ each: ip, port, kind, namespace, pod, container, workload, unit, process, pid,
netns, cgroup, attribution; then packets, bytes, wire_bytes, frames, frame_bytes, tcp_flags (joined
by +), rtt_us, retransmits, connect_us, failed_connects, first, last, interface, cgroup_id,
fragment, malformed, remainder, service_namespace, service_name, service_ip, service_port,
service_attribution; for src_ and dst_ each: pod_uid, dns_name, node; then wire_ip, wire_port.
CSV of --edges: protocol, ethertype, icmp_type, icmp_code; for src_ and dst_ each: ip, port, kind,
namespace, pod, container, workload, unit, process, pid, netns, cgroup, attribution, pod_uid,
dns_name, node; service_ as above; for sent_, received_ and elsewhere_ each: node, packets, bytes,
wire_bytes; then lost_packets, lost_bytes, settled, tcp_flags, rtt_us, retransmits, connect_us,
failed_connects, first, last, fragment, malformed, remainder.";

const PODS_EXAMPLES: &str = "\
Examples:
  orb8 pods -n shop
  orb8 pods -A --strict           exit code 3 if a pod's traffic cannot be told apart
  orb8 pods --pod app=web -o json

Health: ok; waiting (not started yet, or a moment ago); ended; GAP: the traffic of this pod cannot be
told from others', for the reason that is given.";

const TRACE_EXAMPLES: &str = "\
Examples:
  orb8 trace network --port 5432
  orb8 trace network --owner curl --count 10
  orb8 trace network -o json --duration 1m > events.json

Event kinds: NEW (first packet of a flow), SYN, SYN-ACK, FIN, RST. `x8` after an event: it stands
for eight new flows, since events came too fast for each to be told. Times are UTC.";

const TOP_EXAMPLES: &str = "\
Keys: up/down select, Enter shows the owner's peers or calls, Esc goes back, s changes the sort
order, Tab switches between network, syscalls and GPUs, p pauses, ? help, q quits.

Examples:
  sudo orb8 top
  orb8 top --namespace shop
  orb8 top --pane syscalls        who calls the kernel, and what
  orb8 top --sort time            who spends time there (in latency mode)
  orb8 top --pane gpu             what the GPUs do, and for whom
  orb8 top --count 3 | cat        plain text, three refreshes";

/// Who talks to whom on this machine, how much, and is it healthy.
///
/// orb8 counts every packet in the kernel (eBPF) and names who sent it: container, systemd unit or process. What
/// it could not count it says.
#[derive(Debug, Parser)]
#[command(name = "orb8", version, after_help = START, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Who answers.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Who answers")]
pub(crate) struct TargetArgs {
    /// Ask the agent at this address [env: ORB8_AGENT]; repeat or separate by commas to ask several as one. Without:
    /// the agent at 127.0.0.1:9090 if there is one, else those of the cluster, else standalone
    #[arg(long, global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) agent: Vec<AgentAddress>,
    /// Load the probes for as long as this command runs (needs root), whatever agent there is
    #[arg(long, global = true, conflicts_with = "agent")]
    pub(crate) standalone: bool,
    /// Standalone: also observe this interface, or all that match (`eth*`); repeatable
    #[arg(long, global = true, value_name = "NAME|PATTERN", value_parser = ValueParser::new(interface))]
    pub(crate) interface: Vec<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// Which server answers, and who asks it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Server and certificates")]
pub(crate) struct ServerArgs {
    /// Ask the orb8-server at this address, which asks all nodes [env: ORB8_SERVER]
    #[arg(long, global = true, value_name = "HOST:PORT", conflicts_with_all = ["agent", "standalone", "interface"])]
    pub(crate) server: Option<ServerAddress>,
    /// Certificate authorities, in PEM, that the server's (or agent's) certificate must come from [env: ORB8_TLS_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Your certificate, in PEM, for the DNS name operator.orb8 [env: ORB8_TLS_CERT]
    #[arg(long, global = true, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Your certificate's private key, in PEM [env: ORB8_TLS_KEY]
    #[arg(long, global = true, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// File with a bearer token, which the server has Kubernetes check; instead of a certificate [env: ORB8_TOKEN, the
    /// token itself]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "tls_cert")]
    pub(crate) token_file: Option<PathBuf>,
    /// Speak plain text to another machine: whoever is on the way can read and change it
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
}

/// Which cluster's agents answer. Any of these means: those, not an agent of this machine.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Ask the cluster's agents as this kubeconfig says [env: KUBECONFIG; default: ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["agent", "standalone", "interface"])]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Ask as this context says: one that `orb8 config` saved, else one of the kubeconfig
    #[arg(
        long, global = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["agent", "standalone", "interface"]
    )]
    pub(crate) context: Option<String>,
    /// Namespace of the server's and the agents' pods [default: `orb8`; the agents: else wherever they are]
    #[arg(
        long, global = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["agent", "standalone", "interface"]
    )]
    pub(crate) agent_namespace: Option<String>,
    /// Of this node only; repeat or separate by commas
    #[arg(
        long, global = true, value_name = "NAME", value_delimiter = ',',
        value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["agent", "standalone", "interface"]
    )]
    pub(crate) node: Vec<String>,
    /// Ask each agent from here, though there is a server
    #[arg(long, global = true, conflicts_with_all = ["agent", "standalone", "interface", "server"])]
    pub(crate) direct: bool,
}

impl ClusterArgs {
    /// Whether the user named a cluster, or a part of it.
    pub(crate) const fn is_asked(&self) -> bool {
        self.kubeconfig.is_some()
            || self.context.is_some()
            || self.agent_namespace.is_some()
            || !self.node.is_empty()
            || self.direct
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// State of the agent: probes, interfaces, limits, and what was lost
    Status(StatusArgs),
    /// Flows: who talked to whom, how much, how well
    Flows(Box<FlowsArgs>),
    /// Pods, and what is known of each: interfaces, cgroups, and whether its traffic can be told apart
    Pods(PodsArgs),
    /// Nodes and their agents: who answers, since when, and how far its clock is off
    Nodes(NodesArgs),
    /// System calls: what each pod asks of the kernel, how often, how it ended and how long it took
    Syscalls(Box<SyscallsArgs>),
    /// Show or switch what the agents measure of system calls: nothing, counts, or errors and times too
    SyscallMode(SyscallModeArgs),
    /// GPUs: what each does, who holds it and how that is known; `idle`: what is held and does nothing, and why
    Gpu(Box<GpuArgs>),
    /// Events as they happen
    Trace(TraceArgs),
    /// Profiles made of what was seen
    Profile(ProfileArgs),
    /// Live screen: owners by rate, and their peers or their system calls
    Top(TopArgs),
    /// Check whether this machine can run the probes, and say what to do
    ///
    /// Exit code 1 if something keeps the probes from running at all.
    Doctor(DoctorArgs),
    /// Contexts: where a server is and who asks it, saved under a name
    Config(ConfigArgs),
    /// Print a shell's completion script
    ///
    /// For example: orb8 completions bash > /etc/bash_completion.d/orb8
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one file a command
    Man {
        /// Write orb8.1, orb8-flows.1 and so on into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Report {
    /// For people
    Table,
    /// One object
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Report::Table)]
    pub(crate) output: Report,
    /// Exit with 3 if something was lost
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Report::Table)]
    pub(crate) output: Report,
}

/// Which Kubernetes namespaces.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Filters (run in the agent)")]
pub(crate) struct ScopeArgs {
    /// Kubernetes namespace (of flows: of either end) [default: the context's, if the answer comes through a
    /// kubeconfig, else all]; repeat or separate by commas
    #[arg(
        long, short, value_name = "NAME", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new(),
        conflicts_with = "all_namespaces"
    )]
    pub(crate) namespace: Vec<String>,
    /// All namespaces
    #[arg(long, short = 'A')]
    pub(crate) all_namespaces: bool,
}

/// Conditions on flows; all must hold, of one option's values any.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Filters (run in the agent)")]
pub(crate) struct FilterArgs {
    /// Unit, container (a prefix of its id will do), process or network namespace of either end; repeatable
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) owner: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    /// Pod of either end: a name or its beginning, NAMESPACE/NAME, or labels (app=web,tier!=db); repeatable, names
    /// also by commas
    #[arg(long, value_name = "POD|LABELS", value_parser = ValueParser::new(filter::names))]
    pub(crate) pod: Vec<String>,
    /// Workload of either end: NAME, KIND/NAME (Deployment/cart), each also with NAMESPACE/ before; repeat or
    /// separate by commas
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    pub(crate) workload: Vec<String>,
    /// Service that the connection was made to: NAME or NAMESPACE/NAME; repeat or separate by commas
    #[arg(long, value_name = "SERVICE", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    pub(crate) service: Vec<String>,
    /// Who is at the other end: address or CIDR, kind (pod, host, service, node, external, process,
    /// kube-apiserver), pod, labels, workload, service, node or DNS name; repeatable
    #[arg(long, value_name = "PEER", value_parser = ValueParser::new(filter::peers))]
    pub(crate) peer: Vec<String>,
    /// Address or CIDR of either end; repeat or separate by commas
    #[arg(long, value_name = "IP|CIDR", value_delimiter = ',', value_parser = ValueParser::new(filter::address))]
    pub(crate) ip: Vec<String>,
    /// Port of either end, 1 to 65535; repeat or separate by commas
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Vec<u16>,
    /// tcp, udp, icmp, icmpv6, sctp or an IP protocol number; repeat or separate by commas
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', value_parser = ValueParser::new(filter::protocol))]
    pub(crate) protocol: Vec<u32>,
    /// What the owner received (in) or sent (out)
    #[arg(long, value_enum)]
    pub(crate) direction: Option<DirectionArg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectionArg {
    /// Received
    #[value(name = "in", alias = "ingress")]
    In,
    /// Sent
    #[value(name = "out", alias = "egress")]
    Out,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlowForm {
    /// Fits the terminal
    Table,
    /// All columns, however wide
    Wide,
    /// One object a line
    Json,
    /// With a header line
    Csv,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortArg {
    /// Most bytes first
    Bytes,
    /// Most packets first
    Packets,
    /// Latest packet first
    Last,
    /// Earliest first packet first
    First,
    /// Longest round trip first
    Rtt,
    /// Most retransmits first
    Retransmits,
}

#[derive(Args, Debug)]
#[command(after_help = FLOWS_EXAMPLES)]
pub(crate) struct FlowsArgs {
    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = FlowForm::Table)]
    pub(crate) output: FlowForm,
    /// Join the two reports of a flow, its source's and its destination's: what was sent, what was received, and
    /// the difference. Sorts and limits apply to the joined
    #[arg(long, conflicts_with_all = ["direction", "peer"])]
    pub(crate) edges: bool,
    /// Order of the flows
    #[arg(long, value_enum, default_value_t = SortArg::Bytes)]
    pub(crate) sort: SortArg,
    /// At most so many flows, 0 for all [default: 50 in tables or what fits
    /// where --watch draws anew, else all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,
    /// Flows with packets since then: an age (90s, 2m, 1h) or a time (2026-01-02T03:04:05Z)
    #[arg(long, value_name = "AGE|TIME", value_parser = ValueParser::new(filter::time))]
    pub(crate) since: Option<filter::Time>,
    /// Flows with packets until then: an age or a time
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
    pub(crate) filter: FilterArgs,
}

#[derive(Args, Debug)]
#[command(after_help = PODS_EXAMPLES)]
pub(crate) struct PodsArgs {
    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = PodForm::Table)]
    pub(crate) output: PodForm,
    /// Exit with 3 if a pod has a gap, or the answer is partial
    #[arg(long)]
    pub(crate) strict: bool,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PodForm {
    /// Fits the terminal
    Table,
    /// All columns, however wide
    Wide,
    /// One object a line
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    pub(crate) family: TraceFamily,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TraceFamily {
    /// New flows, TCP SYN, FIN and RST
    Network(TraceNetworkArgs),
    /// Calls that matter one by one (execve, mount, ptrace…), and changes of what a workload calls
    Syscalls(TraceSyscallsArgs),
    /// Errors that the GPU driver reports (XID)
    Gpu(TraceGpuArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceForm {
    /// For people
    Lines,
    /// One object a line
    Json,
}

#[derive(Args, Debug)]
#[command(after_help = TRACE_EXAMPLES)]
pub(crate) struct TraceNetworkArgs {
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
    pub(crate) filter: FilterArgs,
}

/// Order of the network pane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TopSort {
    #[default]
    Bytes,
    Sent,
    Received,
    Packets,
    Retransmits,
    Name,
}

/// Order of the syscalls pane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CallSort {
    #[default]
    Calls,
    Errors,
    Time,
    Name,
}

/// Order of the GPU pane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum GpuSort {
    /// By node and index.
    #[default]
    Name,
    /// The busiest first.
    Use,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopSortArg {
    /// Bytes a second, both ways
    Bytes,
    /// Bytes sent a second
    Sent,
    /// Bytes received a second
    Received,
    /// Packets a second, both ways
    Packets,
    /// Retransmitted segments
    Retransmits,
    /// System calls a second
    Calls,
    /// Failed system calls a second, where they are measured
    Errors,
    /// Time in system calls, where it is measured
    Time,
    /// Use of GPUs
    Use,
    /// Name; of GPUs, node and index
    Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PaneArg {
    /// Owners and their peers, by traffic
    Network,
    /// Owners and their system calls
    Syscalls,
    /// GPUs and their holders
    Gpu,
}

#[derive(Args, Debug)]
#[command(after_help = TOP_EXAMPLES)]
pub(crate) struct TopArgs {
    /// What is shown first; Tab switches [default: network, or what --sort is about]
    #[arg(long, value_enum)]
    pub(crate) pane: Option<PaneArg>,
    /// Order of the owners [default: bytes; calls in the syscalls pane; name in the GPU pane]
    #[arg(long, value_enum)]
    pub(crate) sort: Option<TopSortArg>,
    /// Time between refreshes, 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = ValueParser::new(filter::interval))]
    pub(crate) interval: Duration,
    /// End after so many refreshes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

fn interface(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
        return Err(
            "the name of an interface (eth0), or a pattern with * and ? (eth*), is needed".to_owned(),
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn target_can_stand_before_and_after_the_verb() {
        for line in ["orb8 --agent n1:1 flows", "orb8 flows --agent n1:1"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.target.agent[0].to_string(), "n1:1");
        }
    }
}
