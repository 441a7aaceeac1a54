//! The verbs, one file each, and what they have in common: finding who answers, and ending in good order.

mod completions;
mod doctor;
mod flows;
mod man;
mod status;
mod top;
mod trace;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::{
    args::{Cli, Command, TargetArgs, TraceFamily},
    connect::Session,
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
    if target.agent.is_some() || target.standalone || !target.interface.is_empty() {
        return Err(Usage(format!(
            "`orb8 {verb}` is about this machine and asks no agent: leave --agent, --standalone and --interface out"
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

/// Verbs that ask an agent: opens the session, asks, and detaches whatever was attached, also after an error.
async fn ask(target: &TargetArgs, command: Command) -> anyhow::Result<Outcome> {
    let stop = Stop::on_signals()?;
    let mut session = unless_stopped(&stop, Session::open(target)).await?;
    let result = match command {
        Command::Status(args) => unless_stopped(&stop, status::run(&mut session, &args)).await,
        Command::Flows(args) => flows::run(&mut session, &args, &stop).await,
        Command::Trace(args) => match args.family {
            TraceFamily::Network(args) => trace::run(&mut session, &args, &stop).await,
        },
        Command::Top(args) => top::run(&mut session, &args, &stop).await,
        Command::Doctor(_) | Command::Completions { .. } | Command::Man { .. } => Ok(Outcome::Done),
    };
    let stopped = session.stop().await;
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
