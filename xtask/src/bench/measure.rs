//! Runs the sections.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{
    Options, Section, cleanup::Cleanup, footprint, program, query, report::Report, start, throughput,
};

const ALL: [Section; 5] = [
    Section::Program,
    Section::Throughput,
    Section::Agent,
    Section::Start,
    Section::Query,
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
    let whole = options.sections.is_empty();
    let sections = if whole { &ALL[..] } else { &options.sections };
    let cleanup = Cleanup::new()?;
    let mut report = Report::default();
    for &section in sections {
        eprintln!("{section:?}");
        match section {
            Section::Program => program::run(options.quick, &mut report),
            Section::Throughput => throughput::run(&agent, options.quick, &mut report),
            Section::Agent => footprint::run(&agent, options.quick, &mut report),
            Section::Start => start::run(&agent, options.quick, &mut report),
            Section::Query => query::run(&agent, options.quick, &mut report),
        }
        .with_context(|| format!("section {section:?}"))?;
    }
    drop(cleanup);
    let default = (whole && !options.quick).then(|| root.join("docs/PERFORMANCE.md"));
    if let Some(file) = options.output.clone().or(default) {
        report.write(&file, options.quick)?;
        eprintln!("written to {}", file.display());
    } else {
        println!("{}", report.markdown(options.quick));
    }
    Ok(())
}
