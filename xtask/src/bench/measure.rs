//! Runs the sections.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{
    Options, Section, cleanup::Cleanup, cuda, fleet, footprint, program, query, report::Report, start,
    syscall, throughput,
};

const ALL: [Section; 8] = [
    Section::Program,
    Section::Throughput,
    Section::Agent,
    Section::Start,
    Section::Query,
    Section::Syscall,
    Section::Cuda,
    Section::Fleet,
];

/// Measures, and writes the report.
///
/// # Errors
/// Without root, without an agent, or when a section fails; all that was changed is undone then too.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark makes network namespaces and loads programs: run it as root"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?;
    let agent = options
        .agent
        .clone()
        .unwrap_or_else(|| root.join("target/release/orb8-agent"));
    ensure!(
        agent.exists(),
        "{} is missing: run `cargo build --release -p orb8-agent`",
        agent.display()
    );
    let server = options
        .server
        .clone()
        .unwrap_or_else(|| root.join("target/release/orb8-server"));
    let whole = options.sections.is_empty();
    let sections = if whole { &ALL[..] } else { &options.sections };
    let cleanup = Cleanup::new()?;
    // What the syscall programs cost has a chapter of its own.
    let (mut report, mut syscalls) = (Report::default(), Report::of("syscall"));
    let (mut cudas, mut fleets) = (Report::of("cuda"), Report::of("fleet"));
    for &section in sections {
        eprintln!("{section:?}");
        match section {
            Section::Program => program::run(options.quick, &mut report),
            Section::Throughput => throughput::run(&agent, options.quick, &mut report),
            Section::Agent => footprint::run(&agent, options.quick, &mut report),
            Section::Start => start::run(&agent, options.quick, &mut report),
            Section::Query => query::run(&agent, options.quick, &mut report),
            Section::Syscall => syscall::run(options.quick, &mut syscalls),
            Section::Cuda => cuda::run(options.quick, &mut cudas),
            Section::Fleet => fleet::run(&server, options.quick, &mut fleets),
        }
        .with_context(|| format!("section {section:?}"))?;
    }
    drop(cleanup);
    let default = (whole && !options.quick).then(|| root.join("docs/PERFORMANCE.md"));
    let has = |wanted: fn(&Section) -> bool| sections.iter().any(wanted);
    let reports = [
        (
            report,
            has(|section| !matches!(section, Section::Syscall | Section::Cuda | Section::Fleet)),
        ),
        (syscalls, has(|section| *section == Section::Syscall)),
        (cudas, has(|section| *section == Section::Cuda)),
        (fleets, has(|section| *section == Section::Fleet)),
    ];
    let file = options.output.clone().or(default);
    for (report, _) in reports.iter().filter(|(_, measured)| *measured) {
        if let Some(file) = &file {
            report.write(file, options.quick)?;
            eprintln!("written to {}", file.display());
        } else {
            println!("{}", report.markdown(options.quick));
        }
    }
    Ok(())
}
