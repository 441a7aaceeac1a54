//! The verbs, one file each, and what they have in common: finding who answers, and ending in good order.

mod completions;
mod doctor;
mod flows;
mod man;
mod pods;
mod status;
mod top;
mod trace;

pub(crate) use pods::Told;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::{
    args::{Cli, Command, TargetArgs, TraceFamily},
    connect,
    exit::{Interrupted, Outcome, Usage},
    signals::Stop,
};

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
        Command::Man { dir } => local("man", &target).and_then(|()| man::run(dir.as_deref())),
        asked => runtime()?.block_on(ask(&target, asked)),
    }
}

/// Verbs that ask nobody take no agent.
fn local(verb: &str, target: &TargetArgs) -> anyhow::Result<()> {
    if !target.agent.is_empty()
        || target.standalone
        || !target.interface.is_empty()
        || target.cluster.is_asked()
    {
        return Err(Usage(format!(
            "`orb8 {verb}` is about this machine and asks no agent: leave --agent, --standalone, --interface and the cluster's options out"
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
    let fleet = unless_stopped(&stop, connect::open(target)).await?;
    let result = match command {
        Command::Status(args) => unless_stopped(&stop, status::run(&fleet, &args)).await,
        Command::Pods(args) => unless_stopped(&stop, pods::run(&fleet, &args)).await,
        Command::Flows(args) => flows::run(&fleet, &args, &stop).await,
        Command::Trace(args) => match args.family {
            TraceFamily::Network(args) => trace::run(&fleet, &args, &stop).await,
        },
        Command::Top(args) => top::run(&fleet, &args, &stop).await,
        Command::Doctor(_) | Command::Completions { .. } | Command::Man { .. } => Ok(Outcome::Done),
    };
    let stopped = fleet.stop().await;
    let outcome = result?;
    stopped?;
    Ok(outcome)
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
