//! Developer tasks of orb8: `cargo xtask --help`.

mod bench;
mod build_ebpf;
mod check_deploy;
mod fuzz;
mod image;

use clap::{Parser, Subcommand};

/// Developer tasks of orb8.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF objects that the agent embeds.
    BuildEbpf(build_ebpf::Options),
    /// Measure the network probe and the agent (as root), each beside its baseline; writes docs/PERFORMANCE.md.
    Bench(bench::Options),
    /// Make the container image: an OCI archive, without a container engine.
    Image(image::Options),
    /// Check that deploy/ and its Helm chart install the same, with no more privileges than are meant.
    CheckDeploy,
    /// Fuzz the code that reads hostile bytes.
    Fuzz(fuzz::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::BuildEbpf(options) => build_ebpf::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Image(options) => image::run(&options),
        Task::CheckDeploy => check_deploy::run(),
        Task::Fuzz(options) => fuzz::run(&options),
    }
}
