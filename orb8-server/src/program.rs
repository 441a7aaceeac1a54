//! The `orb8-server` program.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::{
    Server, certgen,
    settings::{Cli, Command, Settings},
};

/// Runs the program with the arguments of this process, and says how it ended: 0 asked to end, 1 failed, 2 wrong settings.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Certgen(options)) = &cli.command {
        return match make_certificates(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("orb8-server certgen: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let filter = match tracing_subscriber::EnvFilter::try_new(&cli.settings.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!(
                "orb8-server: --log {}: {error}; a level (error, warn, info, debug, trace) or a list of TARGET=LEVEL is needed",
                cli.settings.log
            );
            return ExitCode::from(2);
        }
    };
    if let Err(error) = cli.settings.check() {
        eprintln!("orb8-server: {error}");
        return ExitCode::from(2);
    }
    if let Some(Command::Config) = cli.command {
        for setting in cli.settings.describe() {
            println!("{:24} {}", setting.name, setting.value);
        }
        return ExitCode::SUCCESS;
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none(),
        )
        .init();
    raise_descriptor_limit();
    match run(&cli.settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orb8-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn make_certificates(options: &certgen::Options) -> anyhow::Result<()> {
    let lines = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?
        .block_on(certgen::run(options))?;
    for line in lines {
        println!("{line}");
    }
    Ok(())
}

/// As many connections as the system lets it have: the usual limit of 1024 is one for each of a thousand agents.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Then the old one holds.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn run(settings: &Settings) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?
        .block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let server = Server::start(settings).await?;
            info!(address = %server.grpc_address(), transport = settings.transport(), "gRPC");
            info!(address = %server.metrics_address(), "metrics, /healthz and /readyz");
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM: stopping"),
                _ = interrupt.recv() => info!("SIGINT: stopping"),
            }
            server.stop().await;
            Ok(())
        })
}
