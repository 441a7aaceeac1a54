//! orb8 on a real cluster: `cargo run -p orb8-e2e` with KUBECONFIG set.
//!
//! The cluster has orb8 installed (`kubectl apply -k deploy/`) and both images loaded: `cargo xtask image` and `cargo xtask
//! image --workload`. Every scenario makes traffic by a program that says what it made, asks the `orb8` command line as a
//! user would, and compares packets, bytes and names. It makes one namespace, and deletes it.

mod cluster;
mod gpu;
mod manifests;
mod scenarios;
mod server;
mod syscalls;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;

use crate::cluster::Cluster;

/// Runs orb8's end-to-end scenarios on the cluster of KUBECONFIG.
#[derive(Debug, Parser)]
struct Options {
    /// The `orb8` program to ask with.
    #[arg(long, default_value = "target/debug/orb8")]
    orb8: PathBuf,
    /// Image of the workload.
    #[arg(long, default_value = "ghcr.io/orb8/orb8-traffic:dev")]
    workload_image: String,
    /// Only scenarios whose name has this in it.
    #[arg(long)]
    only: Option<String>,
    /// No scenarios whose name has this in it; may be repeated.
    #[arg(long)]
    skip: Vec<String>,
    /// Command that makes the API server unreachable, and one that brings it back; without them that scenario is skipped.
    #[arg(long, env = "ORB8_E2E_API_STOP", requires = "api_start")]
    api_stop: Option<String>,
    /// See --api-stop.
    #[arg(long, env = "ORB8_E2E_API_START")]
    api_start: Option<String>,
    /// Command that cuts the second node off, and one that brings it back.
    #[arg(long, env = "ORB8_E2E_NODE_CUT", requires = "node_join")]
    node_cut: Option<String>,
    /// See --node-cut.
    #[arg(long, env = "ORB8_E2E_NODE_JOIN")]
    node_join: Option<String>,
    /// Command that runs a device plugin on the first node, with two devices of nvidia.com/gpu, until it is killed.
    #[arg(long, env = "ORB8_E2E_DEVICE_PLUGIN")]
    device_plugin: Option<String>,
    /// Command that serves the dcgm-exporter page of the file $PAGE at 127.0.0.1:9400 of the first node, until it is killed.
    #[arg(long, env = "ORB8_E2E_GPU_EXPORTER")]
    gpu_exporter: Option<String>,
    /// Directory of the first node with a libnvidia-ml.so.1 that tells of an "NVIDIA L40S" at 91 %: orb8-fake-nvml's with its
    /// example.json.
    #[arg(long, env = "ORB8_E2E_NVML")]
    nvml: Option<String>,
    /// Leave the namespace for a look.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<usize> {
    let cluster = Cluster::connect(options)?;
    let started = Instant::now();
    let prepared = cluster.prepare();
    let mut failed = 0;
    let mut passed = 0;
    let mut skipped = 0;
    if let Err(error) = &prepared {
        failed = 1;
        println!("FAILED: preparation: {error:#}");
    } else {
        for (name, scenario) in scenarios::ALL {
            let named = |part: &String| name.contains(part.as_str());
            if !options.only.iter().all(named) || options.skip.iter().any(named) {
                continue;
            }
            let began = Instant::now();
            match scenario(&cluster) {
                Ok(scenarios::Outcome::Passed) => {
                    passed += 1;
                    println!("ok: {name} ({:.1} s)", began.elapsed().as_secs_f32());
                }
                Ok(scenarios::Outcome::Skipped(why)) => {
                    skipped += 1;
                    println!("skipped: {name}: {why}");
                }
                Err(error) => {
                    failed += 1;
                    println!("FAILED: {name}: {error:#}");
                }
            }
        }
    }
    if !options.keep {
        cluster.clean_up();
    }
    println!(
        "{passed} passed, {failed} failed, {skipped} skipped in {:.0} s",
        started.elapsed().as_secs_f32()
    );
    Ok(failed)
}
