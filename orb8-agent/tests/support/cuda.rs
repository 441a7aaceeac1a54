//! Stand-ins for the CUDA libraries, and processes that make known calls of them.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use tempfile::TempDir;

use super::cgroup::Cgroup;

/// Compiled stand-ins, in a directory of their own.
#[derive(Debug)]
pub(crate) struct Libraries {
    directory: TempDir,
}

impl Libraries {
    /// Compiles them; a second's work.
    pub(crate) fn compile() -> Self {
        Self::compile_with("-fno-optimize-sibling-calls")
    }

    /// The same, with this option for the runtime's.
    pub(crate) fn compile_with(option: &str) -> Self {
        let libraries = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../orb8-gpu/fakes/cuda");
        let compile = |source: &str, output: &str, options: &[&str]| {
            let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
            let output = Command::new(compiler)
                .args(["-O2", "-o"])
                .arg(libraries.path(output))
                .arg(sources.join(source))
                .args(options)
                .output()
                .unwrap_or_else(|error| panic!("cc: {error}"));
            assert!(
                output.status.success(),
                "{source}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        compile(
            "driver.c",
            "libcuda.so.1",
            &["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-lpthread"],
        );
        let driver = libraries.driver();
        compile(
            "runtime.c",
            "libcudart.so.12",
            &[
                "-shared",
                "-fPIC",
                option,
                "-Wl,-soname,libcudart.so.12",
                "-Wl,-rpath,$ORIGIN",
                driver.to_str().unwrap(),
            ],
        );
        compile("caller.c", "caller", &["-ldl", "-lpthread"]);
        libraries
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn driver(&self) -> PathBuf {
        self.path("libcuda.so.1")
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.path("libcudart.so.12")
    }

    pub(crate) fn caller(&self) -> PathBuf {
        self.path("caller")
    }

    /// Starts a process in the cgroup that has loaded the libraries; its steps wait for [`Caller::go`].
    pub(crate) fn start(&self, cgroup: &Cgroup, libraries: &[&Path], steps: &[&str]) -> Caller {
        let mut command = Command::new(self.caller());
        command.args(libraries).arg("--").args(steps);
        Caller::start(command, cgroup)
    }
}

/// A process that makes calls.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Caller {
    /// Of a command that runs `caller`.
    pub(crate) fn start(mut command: Command, cgroup: &Cgroup) -> Self {
        cgroup.enter(&mut command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut caller = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        caller.hear("ready");
        caller
    }

    /// Waits until it says so.
    pub(crate) fn hear(&mut self, word: &str) {
        assert_eq!(self.hear_line(), word);
    }

    /// The next line that it says.
    pub(crate) fn hear_line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.truncate(line.trim_end().len());
        line
    }

    /// Has it take its steps, or those after a `wait`.
    pub(crate) fn go(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    /// The same, as far as the next `wait`.
    pub(crate) fn go_on(&mut self) {
        self.go();
        self.hear("waiting");
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) {
        drop(self.input);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// The same, once it has taken all steps.
    pub(crate) fn finish(mut self) {
        self.go();
        self.end();
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The real runtime library: `ORB8_CUDART`, or what pip fetches of NVIDIA's package. `None`, with the reason on standard
/// error, if it cannot be had; with `ORB8_REQUIRE_CUDART=1` it panics instead. A package that was fetched and does not have
/// it is an error in any case.
pub(crate) fn real_runtime(directory: &Path) -> Option<PathBuf> {
    let found = match env::var_os("ORB8_CUDART") {
        Some(path) => Ok(PathBuf::from(path)),
        None => fetch(directory),
    };
    match found {
        Ok(path) => Some(path),
        Err(why) => {
            let required = env::var_os("ORB8_REQUIRE_CUDART").is_some_and(|value| value == "1");
            assert!(!required, "{why}");
            // Not println: the test harness would keep it to itself.
            let _ = writeln!(io::stderr(), "skipped: no real libcudart: {why}");
            None
        }
    }
}

fn fetch(directory: &Path) -> Result<PathBuf, String> {
    let output = Command::new("pip")
        .args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
        ])
        .arg(directory)
        .arg("nvidia-cuda-runtime-cu12")
        .output()
        .map_err(|error| format!("pip: {error}"))?;
    if !output.status.success() {
        return Err(format!("pip: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let library = directory.join("nvidia/cuda_runtime/lib/libcudart.so.12");
    assert!(
        library.is_file(),
        "pip has fetched nvidia-cuda-runtime-cu12, but there is no {}",
        library.display()
    );
    Ok(library)
}
