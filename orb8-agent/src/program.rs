//! The `orb8-agent` program.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::{
    Agent, Listen,
    settings::{ProcessEnvironment, Settings, SettingsError},
};

/// Runs the program with the arguments of this process, and says how it ended: 0 asked to end, 1 failed, 2 wrong settings.
#[must_use]
pub fn main() -> ExitCode {
    // `orb8-agent config` takes the same flags, and prints what they come to.
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let config = arguments.get(1).is_some_and(|argument| argument == "config");
    if config {
        arguments.remove(1);
    }
    let settings = match Settings::load(arguments, &ProcessEnvironment) {
        Ok(settings) => settings,
        Err(SettingsError::Arguments(error)) => error.exit(),
        Err(error) => {
            eprintln!("orb8-agent: {error}");
            return ExitCode::from(2);
        }
    };
    if config {
        print!("{settings}");
        return ExitCode::SUCCESS;
    }
    tracing_subscriber::fmt()
        .with_env_filter(settings.log.filter())
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none(),
        )
        .init();
    match run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orb8-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn run(settings: &Settings) -> anyhow::Result<()> {
    for warning in settings.warnings() {
        warn!("{warning}");
    }
    // Before the start: a signal during it must not leave anything behind either.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let agent = tokio::select! {
        agent = Agent::start(settings, Listen::Network) => agent?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    if let Some(address) = agent.grpc_address() {
        info!(%address, "gRPC");
    }
    if let Some(address) = agent.metrics_address() {
        info!(%address, "metrics, /healthz and /readyz");
    }
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
    }
    agent.stop().await;
    Ok(())
}
