//! Measures the probes and the agent, each beside a named baseline in the same run.
//!
//! The task builds the agent and itself in release mode (feature `bench`), and the second one measures. Traffic runs
//! only inside network namespaces that it makes and removes, also on ^C. Every ratio is of intervals that alternate, and
//! every value the median of several: a machine's speed drifts by more than what is measured here.

#[cfg(feature = "bench")]
mod cleanup;
#[cfg(feature = "bench")]
mod cluster;
#[cfg(feature = "bench")]
mod cuda;
#[cfg(feature = "bench")]
mod fleet;
#[cfg(feature = "bench")]
mod footprint;
#[cfg(feature = "bench")]
mod measure;
#[cfg(feature = "bench")]
mod namespace;
#[cfg(feature = "bench")]
mod observer;
#[cfg(feature = "bench")]
mod path;
#[cfg(feature = "bench")]
mod program;
#[cfg(feature = "bench")]
mod query;
#[cfg(feature = "bench")]
mod report;
#[cfg(feature = "bench")]
mod start;
#[cfg(feature = "bench")]
mod statistics;
#[cfg(feature = "bench")]
mod syscall;
#[cfg(feature = "bench")]
mod throughput;
#[cfg(feature = "bench")]
mod traffic;
#[cfg(feature = "bench")]
mod web_server;

use std::path::PathBuf;

/// Parts of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Section {
    /// Nanoseconds a packet of the classifiers, beside a minimal one in C.
    Program,
    /// Throughput and latency with and without the agent, and what share of it the agent accounts for.
    Throughput,
    /// CPU and memory of the agent.
    Agent,
    /// Start to first counted packet; new interface to attached.
    Start,
    /// Latency of queries.
    Query,
    /// What the syscall programs add to a call, beside C's and bpftrace's.
    Syscall,
    /// What uprobes on the CUDA libraries add to a call, beside an empty one and bpftrace's.
    Cuda,
    /// A server over a thousand agents.
    Fleet,
}

/// Options of `bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these sections. The report then goes to the terminal only, unless --output is given.
    #[arg(value_name = "SECTION")]
    sections: Vec<Section>,
    /// Fewer and shorter intervals: under two minutes, and noisier. Goes to the terminal only, like single sections.
    #[arg(long)]
    quick: bool,
    /// Markdown file to write the report to, between its markers; docs/PERFORMANCE.md for a whole run.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Another agent than the one that is built here.
    #[cfg(feature = "bench")]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Another server than the one that is built here.
    #[cfg(feature = "bench")]
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
}

#[cfg(feature = "bench")]
pub(crate) use measure::run;

/// Builds agent and benchmark in release mode, and runs the latter.
///
/// # Errors
/// If one does not build, or the measurement fails.
#[cfg(not(feature = "bench"))]
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    use std::{env, os::unix::process::CommandExt as _, path::Path, process::Command};

    use anyhow::{Context as _, ensure};
    use clap::ValueEnum as _;

    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    for package in [
        &["orb8-agent"][..],
        &["orb8-server"],
        &["xtask", "--features", "bench"],
    ] {
        let status = Command::new("cargo")
            .current_dir(root)
            .args(["build", "--quiet", "--release", "--locked", "--package"])
            .args(package)
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "{} did not build", package[0]);
    }
    let mut measure = Command::new(target.join("release/xtask"));
    measure
        .arg("bench")
        .arg("--agent")
        .arg(target.join("release/orb8-agent"))
        .arg("--server")
        .arg(target.join("release/orb8-server"));
    for section in &options.sections {
        if let Some(value) = section.to_possible_value() {
            measure.arg(value.get_name());
        }
    }
    if options.quick {
        measure.arg("--quick");
    }
    if let Some(output) = &options.output {
        measure.arg("--output").arg(output);
    }
    Err(measure.exec()).context("cannot run the benchmark")
}
