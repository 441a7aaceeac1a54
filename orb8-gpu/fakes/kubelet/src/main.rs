//! Serves a file of allocations as a kubelet does.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use orb8_fake_kubelet::{Behaviour, FakeKubelet, read};

/// A made-up kubelet: tells which container holds which device.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where it listens; what is there is replaced.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// What goes wrong.
    #[arg(long, value_enum)]
    fault: Option<Fault>,
    /// Who holds what, in JSON: see example.json.
    #[arg(value_name = "FILE")]
    allocations: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Fault {
    /// It never answers.
    Hang,
    /// It does not know the calls.
    Unimplemented,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // A mistake shows at once.
    read(&args.allocations)?;
    let behaviour = match args.fault {
        None => Behaviour::File(args.allocations),
        Some(Fault::Hang) => Behaviour::Hang,
        Some(Fault::Unimplemented) => Behaviour::Unimplemented,
    };
    if args.socket.exists() {
        std::fs::remove_file(&args.socket)
            .with_context(|| format!("cannot replace {}", args.socket.display()))?;
    }
    let _kubelet = FakeKubelet::start_at(&args.socket, behaviour)
        .with_context(|| format!("cannot listen on {}", args.socket.display()))?;
    println!("listening on {}", args.socket.display());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
