//! The verbs, one file each, and what they have in common: finding who answers, and ending in good order.

mod completions;
mod config;
mod doctor;
mod flows;
mod gpu;
mod man;
mod nodes;
mod pods;
mod profile;
mod status;
mod syscall_mode;
mod syscalls;
mod top;
mod trace;

pub(crate) use pods::Told;

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::{
    args::{Cli, Command, GpuView, ProfileKind, TargetArgs, TraceFamily},
    connect::{self, Need},
    exit::{Interrupted, Outcome, Usage},
    filter,
    fleet::Fleet,
    humanise,
    signals::Stop,
    terminal,
};

/// How long a standalone snapshot observes, unless told.
const OBSERVATION: Duration = Duration::from_secs(5);
/// How many rows a table shows, unless told.
const TABLE_LIMIT: u32 = 50;

/// Does what was asked.
///
/// # Errors
/// What failed, and what the user can do.
pub(crate) fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let Cli { target, command } = cli;
    match command {
        Command::Doctor(args) => local("doctor", &target).and_then(|()| doctor::run(&args)),
        Command::Completions { shell } => {
            local("completions", &target).and_then(|()| completions::run(shell))
        }
        Command::Config(args) => config::run(&args, &target),
        Command::Man { dir } => local("man", &target).and_then(|()| man::run(dir.as_deref())),
        asked => runtime()?.block_on(ask(&target, asked)),
    }
}

/// Verbs that ask nobody take no agent.
fn local(verb: &str, target: &TargetArgs) -> anyhow::Result<()> {
    if !target.agent.is_empty()
        || target.standalone
        || !target.interface.is_empty()
        || target.server.server.is_some()
        || target.cluster.is_asked()
    {
        return Err(Usage(format!(
            "`orb8 {verb}` is about this machine and asks no agent: leave --agent, --server, --standalone, --interface and the cluster's options out"
        ))
        .into());
    }
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")
}

/// Verbs that ask an agent: finds who answers, asks, and detaches whatever was attached, also after an error.
async fn ask(target: &TargetArgs, command: Command) -> anyhow::Result<Outcome> {
    let stop = Stop::on_signals()?;
    let fleet = unless_stopped(&stop, connect::open(target, need(&command))).await?;
    let result = match command {
        Command::Status(args) => unless_stopped(&stop, status::run(&fleet, &args)).await,
        Command::Pods(args) => unless_stopped(&stop, pods::run(&fleet, &args)).await,
        Command::Nodes(args) => unless_stopped(&stop, nodes::run(&fleet, &args)).await,
        Command::Flows(args) => flows::run(&fleet, &args, &stop).await,
        Command::Syscalls(args) => syscalls::run(&fleet, &args, &stop).await,
        Command::SyscallMode(args) => unless_stopped(&stop, syscall_mode::run(&fleet, &args)).await,
        Command::Gpu(args) => gpu::run(&fleet, &args, &stop).await,
        Command::Trace(args) => match args.family {
            TraceFamily::Network(args) => trace::network(&fleet, &args, &stop).await,
            TraceFamily::Syscalls(args) => trace::syscalls(&fleet, &args, &stop).await,
            TraceFamily::Gpu(args) => trace::gpu(&fleet, &args, &stop).await,
        },
        Command::Profile(args) => match args.kind {
            ProfileKind::Seccomp(args) => profile::run(&fleet, &args, &stop).await,
        },
        Command::Top(args) => top::run(&fleet, &args, &stop).await,
        Command::Doctor(_) | Command::Completions { .. } | Command::Config(_) | Command::Man { .. } => {
            Ok(Outcome::Done)
        }
    };
    let stopped = fleet.stop().await;
    let outcome = result?;
    stopped?;
    Ok(outcome)
}

/// What the verb needs of an agent that is started for it.
fn need(command: &Command) -> Need {
    match command {
        Command::Syscalls(args) if filter::syscall::needs_latency(args) => Need::Latency,
        Command::Syscalls(_) | Command::Profile(_) => Need::Counts,
        Command::Trace(args) if matches!(args.family, TraceFamily::Syscalls(_)) => Need::Counts,
        Command::SyscallMode(_) => Need::Running,
        // What holders do while their GPU does nothing is known from how long their calls take.
        Command::Gpu(args) => match args.view {
            None => Need::Gpus,
            Some(GpuView::Idle(_)) => Need::Latency,
            Some(GpuView::Cuda(_)) => Need::Network,
        },
        _ => Need::Network,
    }
}

/// How long to observe before the answer, if at all: as typed, or since standalone nothing was observed yet.
fn observation(fleet: &Fleet, typed: Option<Duration>) -> Option<Duration> {
    typed.or_else(|| fleet.is_standalone().then_some(OBSERVATION))
}

/// Waits while the agents observe. Whether the user asked to end before: the answer is wanted all the same.
async fn observe(duration: Duration, stop: &Stop) -> bool {
    terminal::say(&format!(
        "orb8: observing for {} … (^C: enough)",
        humanise::seconds(duration.as_secs_f64())
    ));
    tokio::select! {
        () = tokio::time::sleep(duration) => false,
        () = stop.requested() => true,
    }
}

/// That not all is shown, if it is so.
fn cut(shown: u64, all: u64, what: &str, sort: &str) -> Option<String> {
    (shown < all).then(|| format!("{shown} of {all} {what} shown, the first by {sort} (--limit 0: all)"))
}

/// The result of `work`, or [`Interrupted`] if the user asks to end first.
async fn unless_stopped<T>(stop: &Stop, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        () = stop.requested() => Err(Interrupted.into()),
        result = work => result,
    }
}

/// Ready at `end`; never without one.
async fn deadline(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
