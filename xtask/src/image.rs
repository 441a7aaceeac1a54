//! Makes the container image without a container engine: one program, which is called by several names, with the C library that it
//! was linked with, in an OCI archive (<https://github.com/opencontainers/image-spec>, v1.1), which containerd, kind and Docker
//! load.
//!
//! The program is linked dynamically, for a static one cannot load NVML, which a container runtime adds to a container.
//!
//! Two runs over the same sources give the same bytes: files are in a fixed order, with a fixed time and owner.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The image's name in `deploy/`.
const NAME: &str = "ghcr.io/orb8/orb8-agent";
/// Compressed, as a registry stores it.
const MAX_BYTES: usize = 25 << 20;
/// The package and program in it, and what else that is called; the first name is what the image runs.
const PROGRAMS: Content = Content {
    package: "orb8-image",
    program: "orb8-programs",
    names: &["orb8-agent", "orb8-server", "orb8"],
};
/// The same of the image that the end-to-end tests run.
const WORKLOAD: Content = Content {
    package: "orb8-e2e",
    program: "orb8-traffic",
    names: &[],
};
const WORKLOAD_NAME: &str = "ghcr.io/orb8/orb8-traffic:dev";

/// One program, and links to it.
#[derive(Clone, Copy, Debug)]
struct Content {
    package: &'static str,
    program: &'static str,
    names: &'static [&'static str],
}

impl Content {
    /// What the image runs.
    fn entry(&self) -> &'static str {
        self.names.first().unwrap_or(&self.program)
    }
}

/// Processors that the image is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    const fn oci(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Whether this machine has such a processor.
    fn is_own(self) -> bool {
        self.target().starts_with(std::env::consts::ARCH)
    }

    /// The C compiler, by which programs are linked, and what to install for it.
    fn compiler(self) -> (&'static str, &'static str) {
        match self {
            _ if self.is_own() => ("cc", "gcc libc6-dev"),
            Self::Amd64 => (
                "x86_64-linux-gnu-gcc",
                "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
            ),
            Self::Arm64 => (
                "aarch64-linux-gnu-gcc",
                "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
            ),
        }
    }

    /// Environment for the C code in dependencies, and for linking, where the machine's own compiler is not the one.
    fn environment(self) -> Vec<(&'static str, &'static str)> {
        let (compiler, _) = self.compiler();
        match self {
            _ if self.is_own() => Vec::new(),
            Self::Amd64 => vec![
                ("CC_x86_64_unknown_linux_gnu", compiler),
                ("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", compiler),
            ],
            Self::Arm64 => vec![
                ("CC_aarch64_unknown_linux_gnu", compiler),
                ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", compiler),
            ],
        }
    }

    /// What starts a program, which programs have in `/lib64` or `/lib`: one folder of the image.
    const fn interpreter(self) -> &'static str {
        match self {
            Self::Amd64 => "ld-linux-x86-64.so.2",
            Self::Arm64 => "ld-linux-aarch64.so.1",
        }
    }
}

/// Where libraries are in the image, and its other names, of which each distribution's `ld.so` and each container runtime
/// knows some.
const LIBRARY_FOLDER: &str = "lib64";
const LIBRARY_FOLDER_NAMES: [(&str, &str); 3] = [
    ("lib", "lib64"),
    ("usr/lib", "../lib64"),
    ("usr/lib64", "../lib64"),
];
/// What the program needs; and the last ones NVML.
const LIBRARIES: [&str; 6] = [
    "libc.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
];

/// A file of the image: its path and its contents.
type File = (String, Vec<u8>);

/// The libraries of the compiler that the program is linked by, with what starts it.
fn libraries(arch: Arch) -> Result<Vec<File>> {
    let (compiler, package) = arch.compiler();
    [arch.interpreter()]
        .into_iter()
        .chain(LIBRARIES)
        .map(|name| {
            let found = Command::new(compiler)
                .arg(format!("-print-file-name={name}"))
                .output()
                .with_context(|| format!("{compiler} does not run: apt-get install {package}"))?;
            // The name alone, if it has no such file.
            let path = String::from_utf8(found.stdout)?;
            let contents = fs::read(path.trim())
                .with_context(|| format!("{compiler} has no {name}: apt-get install {package}"))?;
            Ok((format!("{LIBRARY_FOLDER}/{name}"), contents))
        })
        .collect()
}

/// Options of `image`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Processor that the image is for.
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,
    /// The archive, made anew [default: target/orb8-agent-image.tar, with --workload target/orb8-traffic-image.tar]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Name of the image [default: the one in deploy/]
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// Make the image that the end-to-end tests run as their workload instead.
    #[arg(long)]
    workload: bool,
    /// Build it unoptimised and with the checks of a test build: sooner made, larger and slower.
    #[arg(long)]
    debug: bool,
}

/// Builds the programs and the image.
///
/// # Errors
/// If a toolchain is missing (with what to install), the build fails, or the image is larger than it may be.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?;
    let (content, name, out) = if options.workload {
        (
            WORKLOAD,
            WORKLOAD_NAME.to_owned(),
            "target/orb8-traffic-image.tar",
        )
    } else {
        let name = format!("{NAME}:{}", env!("CARGO_PKG_VERSION"));
        (PROGRAMS, name, "target/orb8-agent-image.tar")
    };
    let name = options.name.clone().unwrap_or(name);
    let out = options.out.clone().unwrap_or_else(|| root.join(out));
    ensure!(
        name.split_once(':')
            .is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty()),
        "--name {name}: NAME:TAG is needed, such as {NAME}:dev"
    );
    let program = build(root, options.arch, content, options.debug)?;
    let compression = if options.debug {
        Compression::fast()
    } else {
        Compression::best()
    };
    let libraries = libraries(options.arch)?;
    let archive = archive(content, &program, &libraries, options.arch, &name, compression)?;
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(&out, &archive.bytes).with_context(|| format!("cannot write {}", out.display()))?;
    ensure!(
        options.debug || archive.layer_bytes <= MAX_BYTES,
        "the image has {:.1} MiB, more than the {:.0} it may have: which dependency has grown?",
        mib(archive.layer_bytes),
        mib(MAX_BYTES)
    );
    println!(
        "{}: {} for {}, {:.1} MiB ({:.1} MiB unpacked), {}",
        out.display(),
        name,
        options.arch.oci(),
        mib(archive.layer_bytes),
        mib(archive.unpacked_bytes),
        archive.digest,
    );
    Ok(())
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Builds the program; returns its contents.
fn build(root: &Path, arch: Arch, content: Content, debug: bool) -> Result<Vec<u8>> {
    let (compiler, package) = arch.compiler();
    ensure!(
        Command::new(compiler).arg("--version").output().is_ok(),
        "{compiler} is not on the PATH: apt-get install {package}"
    );
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--locked"])
        .envs(arch.environment());
    let mut path = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    if debug && arch.is_own() {
        // With all the others and their tests: what these have compiled is taken. Alone, dependencies would have fewer features.
        cargo.args(["--bins", "--tests"]);
    } else {
        let target = arch.target();
        add_standard_library(target)?;
        cargo
            .args(["--target", target])
            .args((!debug).then_some("--release"))
            .args(["-p", content.package, "--bin", content.program])
            // Nothing of where the checkout lies gets into the image.
            .env("RUSTFLAGS", format!("--remap-path-prefix={}=.", root.display()));
        path.push(target);
    }
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "the program did not build");
    path.extend([if debug { "debug" } else { "release" }, content.program]);
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Has rustup add the standard library for a target, if it is missing.
fn add_standard_library(target: &str) -> Result<()> {
    let sysroot = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()?
        .stdout;
    let library = PathBuf::from(String::from_utf8(sysroot)?.trim())
        .join("lib/rustlib")
        .join(target);
    if !library.exists() {
        let added = Command::new("rustup").args(["target", "add", target]).status();
        ensure!(
            added.is_ok_and(|status| status.success()),
            "the Rust standard library for {target} is missing: rustup target add {target}"
        );
    }
    Ok(())
}

#[derive(Debug)]
struct Archive {
    bytes: Vec<u8>,
    layer_bytes: usize,
    unpacked_bytes: usize,
    /// Of the manifest.
    digest: String,
}

/// Makes the archive of an image with this program and its names at the root.
fn archive(
    content: Content,
    program: &[u8],
    libraries: &[File],
    arch: Arch,
    name: &str,
    compression: Compression,
) -> Result<Archive> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, content.program, program, 0o755)?;
    for name in content.names {
        link(&mut layer, name, content.program)?;
    }
    for path in [LIBRARY_FOLDER, "usr"] {
        folder(&mut layer, path)?;
    }
    for (name, to) in LIBRARY_FOLDER_NAMES {
        link(&mut layer, name, to)?;
    }
    for (path, contents) in libraries {
        append(&mut layer, path, contents, 0o755)?;
    }
    let layer = layer.into_inner()?;
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), compression);
    gzip.write_all(&layer)?;
    let compressed = gzip.finish()?;
    let config = serde_json::to_vec(&json!({
        "architecture": arch.oci(),
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{}", content.entry())],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["platform"] = json!({"architecture": arch.oci(), "os": "linux"});
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    entry["annotations"] = json!({
        // containerd takes the whole name from here.
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;
    // `docker load` reads this.
    let docker = serde_json::to_vec(&json!([{
        "Config": blob(&config),
        "RepoTags": [name],
        "Layers": [blob(&compressed)],
    }]))?;

    let mut archive = tar::Builder::new(Vec::new());
    append(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    append(&mut archive, "index.json", &index, 0o644)?;
    append(&mut archive, "manifest.json", &docker, 0o644)?;
    for bytes in [&config, &manifest, &compressed] {
        append(&mut archive, &blob(bytes), bytes, 0o644)?;
    }
    Ok(Archive {
        bytes: archive.into_inner()?,
        layer_bytes: compressed.len(),
        unpacked_bytes: layer.len(),
        digest: digest(&manifest),
    })
}

/// Adds a directory.
fn folder(archive: &mut tar::Builder<Vec<u8>>, path: &str) -> Result<()> {
    add(archive, tar::EntryType::Directory, path, &[], 0o755)
}

/// Adds a symbolic link.
fn link(archive: &mut tar::Builder<Vec<u8>>, name: &str, to: &str) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_mtime(0);
    archive
        .append_link(&mut header, name, to)
        .with_context(|| format!("cannot link {name}"))
}

/// Adds a file.
fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    add(archive, tar::EntryType::Regular, path, bytes, mode)
}

fn add(
    archive: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    archive
        .append_data(&mut header, path, bytes)
        .with_context(|| format!("cannot add {path} to the archive"))
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex_digest(bytes))
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hex_digest(bytes))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    fn files(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents).unwrap();
                (entry.path().unwrap().display().to_string(), contents)
            })
            .collect()
    }

    #[test]
    fn every_digest_is_of_what_is_there() {
        let libraries = [("lib64/libc.so.6".to_owned(), b"library".to_vec())];
        let make = || {
            archive(
                PROGRAMS,
                b"program",
                &libraries,
                Arch::Amd64,
                "example.com/orb8:1",
                Compression::best(),
            )
            .unwrap()
        };
        let image = make();
        let files = files(&image.bytes);
        let read = |descriptor: &Value| -> &Vec<u8> {
            let digest = descriptor["digest"].as_str().unwrap();
            let contents = &files[&digest.replace("sha256:", "blobs/sha256/")];
            assert_eq!(super::digest(contents), digest);
            assert_eq!(descriptor["size"], contents.len());
            contents
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "example.com/orb8:1"
        );
        let manifest: Value = serde_json::from_slice(read(entry)).unwrap();
        let config: Value = serde_json::from_slice(read(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/orb8-agent");
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(&read(&manifest["layers"][0])[..])
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let unpacked = self::files(&layer);
        assert_eq!(unpacked["orb8-programs"], b"program");
        // A link has no contents of its own.
        assert_eq!(unpacked["orb8-server"], b"");
        assert_eq!(unpacked["lib64/libc.so.6"], b"library");
        // The same programs give the same image.
        assert_eq!(image.bytes, make().bytes);
    }
}
