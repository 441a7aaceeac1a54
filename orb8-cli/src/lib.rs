//! The orb8 command line.
//!
//! `args` is what was typed and `filter` turns it into the protocol's query; `connect` finds an agent, those of a
//! `cluster`, or starts one in this process (`standalone`); all are a `fleet`, which a `query` asks as one; each verb
//! is one file in `command`; `render` turns answers into tables, JSON and CSV; `top` is the full-screen view.

mod address;
mod args;
mod cluster;
mod command;
mod connect;
mod contexts;
mod credentials;
mod edge;
mod ends;
mod exit;
mod filter;
mod fleet;
mod gpu;
mod humanise;
mod ledger;
mod names;
mod output;
mod preflight;
mod printer;
mod query;
mod render;
mod sanitise;
mod seccomp;
mod signals;
mod standalone;
mod syscall;
mod terminal;
mod timestamp;
mod top;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};

/// Runs the command line of this process, and says how it ended: 0 done, 1 failed, 2 bad usage, 3 partial answer
/// with `--strict`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(exit::USAGE),
            };
        }
    };
    start_log();
    exit::code(command::run(cli))
}

/// Logs warnings of the in-process agent to stderr; `RUST_LOG` shows more. What the Kubernetes client logs is told
/// by this command's own errors.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,kube_client=off"));
    // Fails only where a logger is set already, which then serves.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal::colours_on_stderr())
        .try_init();
}
