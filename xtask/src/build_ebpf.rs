//! Builds the eBPF objects with a stable compiler and writes them where the agent embeds them.
//!
//! The toolchain is Debian's: `rustc-web` with `libstd-rust-web-dev-bpf` (a precompiled `core` for
//! `bpfel-unknown-none`), `llvm-22` and bpf-linker 0.13 built against it. See CONTRIBUTING.md. The result does not
//! depend on where the checkout lies, so that a rebuild can be compared byte by byte.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Probe families: binaries of orb8-probes, and names of the objects.
const FAMILIES: &[&str] = &["cuda", "network", "syscall"];
const TARGET: &str = "bpfel-unknown-none";

/// Options of `build-ebpf`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Compare with the committed objects instead of writing them.
    #[arg(long)]
    check: bool,
    /// The compiler that has `core` for bpfel-unknown-none.
    #[arg(
        long,
        env = "ORB8_BPF_RUSTC",
        default_value = "/usr/bin/rustc",
        value_name = "PATH"
    )]
    rustc: PathBuf,
    /// llvm-objcopy, to strip debug information.
    #[arg(
        long,
        env = "ORB8_BPF_OBJCOPY",
        default_value = "/usr/lib/llvm-22/bin/llvm-objcopy",
        value_name = "PATH"
    )]
    objcopy: PathBuf,
}

/// Builds every family's object.
///
/// # Errors
/// If the toolchain is missing (with what to install), the build fails, or `--check` finds a difference.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?;
    require(
        &options.rustc,
        "apt-get install rustc-web libstd-rust-web-dev-bpf",
    )?;
    require(&options.objcopy, "apt-get install llvm-22")?;
    let found = Command::new("bpf-linker").arg("--version").output();
    ensure!(
        found.is_ok_and(|output| output.status.success()),
        "bpf-linker is not on the PATH; install it with: apt-get install llvm-22-dev && \
         LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --no-default-features \
         --features llvm-22"
    );
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("ebpf");
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    // Flags are separated by 0x1f, so that paths may hold spaces.
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
        // 32-bit registers, jumps and atomics (Linux 5.1).
        "-Ctarget-cpu=v3".to_owned(),
        format!("--remap-path-prefix={}=orb8", root.display()),
        format!("--remap-path-prefix={}=cargo", cargo_home.display()),
    ]
    .join("\u{1f}");

    for family in FAMILIES {
        let status = Command::new("cargo")
            .current_dir(root)
            .args([
                "build",
                "--release",
                "--locked",
                "--target",
                TARGET,
                "--package",
                "orb8-probes",
                "--bin",
                family,
            ])
            .env("RUSTC", &options.rustc)
            // `atomic_xadd` is an intrinsic, and intrinsics are not stable.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", &flags)
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTFLAGS")
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "the eBPF object {family} did not build");
        let built = target.join(TARGET).join("release").join(family);
        let stripped = built.with_extension("o");
        let status = Command::new(&options.objcopy)
            .arg("--strip-debug")
            .args([&built, &stripped])
            .status()
            .with_context(|| format!("cannot run {}", options.objcopy.display()))?;
        ensure!(status.success(), "cannot strip {}", built.display());
        let object = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
        ensure!(!object.is_empty(), "{} is empty", stripped.display());
        place(
            &object,
            &root.join("orb8-agent/ebpf").join(format!("{family}.o")),
            options.check,
        )?;
    }
    Ok(())
}

fn require(path: &Path, install: &str) -> Result<()> {
    ensure!(
        path.exists(),
        "{} is missing; install it with: {install}",
        path.display()
    );
    Ok(())
}

fn place(object: &[u8], committed: &Path, check: bool) -> Result<()> {
    if check {
        let old = fs::read(committed).with_context(|| format!("cannot read {}", committed.display()))?;
        if old != object {
            bail!(
                "{} is not what the sources build ({} bytes, rebuilt {}): run `cargo xtask build-ebpf` and commit",
                committed.display(),
                old.len(),
                object.len()
            );
        }
        println!(
            "{}: same as committed, {} bytes",
            committed.display(),
            object.len()
        );
        return Ok(());
    }
    if let Some(parent) = committed.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::write(committed, object).with_context(|| format!("cannot write {}", committed.display()))?;
    println!("{}: {} bytes", committed.display(), object.len());
    Ok(())
}
