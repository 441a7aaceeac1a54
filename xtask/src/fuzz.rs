//! Fuzzes what reads hostile bytes, with libFuzzer.
//!
//! cargo-fuzz is not needed, nor a nightly compiler: the coverage that libFuzzer steers by is an LLVM pass, which
//! stable rustc runs on request. What nightly would add is AddressSanitizer, and the code under test has next to no
//! `unsafe`. `libfuzzer-sys` compiles libFuzzer itself, with the C++ compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Passes that instrument for libFuzzer, as cargo-fuzz sets them.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // Otherwise a linker that drops unused sections drops the counters.
    "-Ccodegen-units=1",
];

/// Targets: their names, the crates that have them in their `fuzz` folder, and the longest input that makes sense, in bytes.
const TARGETS: &[(&str, &str, u32)] = &[
    ("parser", "orb8-probes", 512),
    ("dcgm_page", "orb8-gpu", 16 << 10),
    ("device_id", "orb8-gpu", 256),
];

/// Options of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to fuzz, in seconds; building the target is not part of it.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Target: a binary of a crate's `fuzz` folder.
    #[arg(long, default_value = "parser", value_name = "NAME", value_parser = names())]
    target: String,
    /// Run only these inputs, such as one that a run has reported.
    #[arg(value_name = "INPUT")]
    inputs: Vec<PathBuf>,
}

fn names() -> clap::builder::PossibleValuesParser {
    TARGETS.iter().map(|(name, ..)| *name).collect::<Vec<_>>().into()
}

/// Builds the target, then fuzzes it. What was found interesting is kept in the target directory, for the next run
/// to begin with.
///
/// # Errors
/// If the target cannot be built (with what to install) or an input fails (with the command that repeats it).
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?;
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("fuzz");
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    ensure!(
        Command::new(&compiler)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success()),
        "libFuzzer needs a C++ compiler, and {} does not run; install it with: apt-get install g++",
        compiler.display()
    );
    let (_, package, longest) = TARGETS
        .iter()
        .find(|(name, ..)| *name == options.target)
        .with_context(|| format!("there is no fuzz target {}", options.target))?;
    let host = host()?;
    let status = Command::new("cargo")
        .current_dir(root)
        // With --target, build scripts and macros are built without the flags.
        .args([
            "build",
            "--release",
            "--locked",
            "--manifest-path",
            &format!("{package}/fuzz/Cargo.toml"),
        ])
        .args(["--target", &host, "--bin", &options.target])
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\u{1f}"))
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .status()
        .context("cannot run cargo")?;
    ensure!(
        status.success(),
        "the fuzz target {} did not build",
        options.target
    );

    let folder = |name: &str| {
        let path = target.join(name).join(&options.target);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok::<_, anyhow::Error>(path)
    };
    let (corpus, seeds, failures) = (folder("corpus")?, folder("seeds")?, folder("failures")?);
    let binary = target.join(&host).join("release").join(&options.target);
    let mut fuzzer = Command::new(&binary);
    fuzzer.arg(format!("-artifact_prefix={}/", failures.display()));
    if options.inputs.is_empty() {
        fuzzer
            .env("ORB8_FUZZ_SEEDS", &seeds)
            .arg(format!("-max_total_time={}", options.seconds))
            // An input that takes this many seconds hangs.
            .args([
                "-timeout=10",
                &format!("-max_len={longest}"),
                "-verbosity=0",
                "-print_final_stats=1",
            ])
            .args([&corpus, &seeds]);
    } else {
        fuzzer.args(&options.inputs);
    }
    let status = fuzzer
        .status()
        .with_context(|| format!("cannot run {}", binary.display()))?;
    ensure!(
        status.success(),
        "{} failed on the input named above; repeat it with: cargo xtask fuzz --target {} <that file>",
        options.target,
        options.target
    );
    Ok(())
}

/// The target triple of this machine's compiler.
fn host() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host")?;
    Ok(host.to_owned())
}
