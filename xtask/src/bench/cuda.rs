//! What the uprobes on the CUDA libraries add to a call, beside an empty one and bpftrace's count.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{UProbe, uprobe::UProbeScope},
};
use orb8_agent::{
    preflight::Features,
    probe::cuda::{CudaOptions, CudaProbe, Mode},
};

use super::{
    program,
    report::Report,
    statistics::median,
    syscall::{Attached, bpftrace},
};

/// What takes turns, in this order.
const NAMES: [&str; 5] = [
    "nothing attached",
    "empty uprobe",
    "orb8: counts",
    "orb8: latency",
    "bpftrace: count by cgroup",
];
const NOTHING: usize = 0;
const EMPTY: usize = 1;
const COUNTS: usize = 2;
const LATENCY: usize = 3;
const BPFTRACE: usize = 4;

/// What is called.
struct Call {
    function: &'static str,
    /// What it is given.
    value: &'static str,
    times: u32,
    /// Of the library whose functions begin as the real ones do, or of the other.
    begins: Begins,
}

/// How functions begin, which decides what a uprobe costs: the kernel emulates a `push`, as all functions of NVIDIA's runtime
/// begin with, and steps through most other instructions, which takes a second trap.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    Push,
    Other,
}

/// Calls that are made. Allocations are followed to their return in both modes; the stand-in looks through all that it has
/// made.
const CALLS: [Call; 3] = [
    Call {
        function: "cuLaunchKernel",
        value: "",
        times: 60_000,
        begins: Begins::Push,
    },
    Call {
        function: "cuMemAlloc_v2",
        value: ":4096",
        times: 2_000,
        begins: Begins::Push,
    },
    Call {
        function: "cuLaunchKernel",
        value: "",
        times: 60_000,
        begins: Begins::Other,
    },
];
const LAUNCH: usize = 0;
const ALLOCATION: usize = 1;
const STEPPED: usize = 2;

/// Stand-ins for the libraries, and a program that calls them.
struct Libraries {
    directory: tempfile::TempDir,
}

impl Libraries {
    fn compile() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../orb8-gpu/fakes/cuda");
        let compile = |source: &str, output: &str, options: &[&str]| -> Result<()> {
            let status = Command::new("cc")
                .args(["-O2", "-o"])
                .arg(directory.path().join(output))
                .arg(sources.join(source))
                .args(options)
                .status()
                .context("cc is missing (apt-get install build-essential)")?;
            ensure!(status.success(), "{source} did not compile");
            Ok(())
        };
        let shared = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-lpthread"];
        std::fs::create_dir(directory.path().join("other"))?;
        // Left to itself the compiler has a launch begin with a comparison.
        let frame = ["-fno-omit-frame-pointer", "-fno-shrink-wrap"];
        compile("driver.c", "libcuda.so.1", &[&shared[..], &frame[..]].concat())?;
        compile("driver.c", "other/libcuda.so.1", &shared)?;
        compile("caller.c", "caller", &["-ldl", "-lpthread"])?;
        Ok(Self { directory })
    }

    fn driver(&self, begins: Begins) -> PathBuf {
        self.directory.path().join(match begins {
            Begins::Push => "libcuda.so.1",
            Begins::Other => "other/libcuda.so.1",
        })
    }

    /// Nanoseconds of a call, in a process of its own.
    fn call(&self, call: &Call) -> Result<f64> {
        let Call {
            function,
            value,
            times,
            begins,
        } = *call;
        let mut caller = Caller::start(
            &self.directory.path().join("caller"),
            &[
                self.driver(begins).display().to_string(),
                "--".to_owned(),
                // The first calls take the page faults.
                format!("{function}:1000{value}"),
                "wait".to_owned(),
                format!("{function}:{times}{value}"),
                "wait".to_owned(),
            ],
        )?;
        caller.hear("ready")?;
        caller.go()?;
        caller.hear("waiting")?;
        let begun = Instant::now();
        caller.go()?;
        caller.hear("waiting")?;
        Ok(begun.elapsed().as_secs_f64() * 1e9 / f64::from(times))
    }
}

/// A process that waits for a line before each step.
struct Caller {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Caller {
    fn start(program: &Path, arguments: &[String]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the caller does not start")?;
        Ok(Self {
            input: child.stdin.take().context("no input")?,
            output: BufReader::new(child.stdout.take().context("no output")?),
            child,
        })
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(
            line.trim() == word,
            "the caller says {line:?} instead of {word:?}"
        );
        Ok(())
    }

    fn go(&mut self) -> Result<()> {
        self.input.write_all(b"\n")?;
        Ok(self.input.flush()?)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is attached during a turn; detached when dropped.
enum Turn {
    Nothing,
    Empty { _object: Box<Ebpf> },
    Orb8 { _probe: Box<CudaProbe> },
    Bpftrace { _attached: Attached },
}

fn attach(what: usize, libraries: &Libraries, object: &[u8], features: Features) -> Result<Turn> {
    match what {
        NOTHING => Ok(Turn::Nothing),
        EMPTY => {
            let mut ebpf = Ebpf::load(object)?;
            let uprobe: &mut UProbe = ebpf
                .program_mut("empty")
                .context("no program empty")?
                .try_into()?;
            uprobe.load()?;
            for call in CALLS {
                let library = libraries.driver(call.begins);
                uprobe.attach(call.function, &library, UProbeScope::AllProcesses)?;
            }
            Ok(Turn::Empty {
                _object: Box::new(ebpf),
            })
        }
        BPFTRACE => {
            let probes: Vec<String> = CALLS
                .iter()
                .map(|call| {
                    let library = libraries.driver(call.begins);
                    format!("uprobe:{}:{}", library.display(), call.function)
                })
                .collect();
            let program = format!("{} {{ @[cgroup] = count(); }}", probes.join(","));
            Ok(Turn::Bpftrace {
                _attached: bpftrace(&program)?,
            })
        }
        mode => {
            let mode = if mode == COUNTS {
                Mode::Counts
            } else {
                Mode::Latency
            };
            let mut probe = CudaProbe::load(
                &CudaOptions {
                    mode,
                    ..CudaOptions::default()
                },
                features,
            )?;
            for begins in [Begins::Push, Begins::Other] {
                let library = libraries.driver(begins);
                let functions = probe.attach(&File::open(&library)?, &library)?;
                ensure!(functions > 0, "the stand-in has none of the functions");
            }
            Ok(Turn::Orb8 {
                _probe: Box::new(probe),
            })
        }
    }
}

/// Measures and reports.
///
/// # Errors
/// If a program cannot be attached.
pub(super) fn run(quick: bool, report: &mut Report) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let object = program::compile("uprobe.c", directory.path())?;
    let libraries = Libraries::compile()?;
    let features = Features::probe();
    let rounds = if quick { 3 } else { 11 };
    let mut times: [[Vec<f64>; CALLS.len()]; NAMES.len()] = Default::default();
    let mut missing = None;
    for round in 0..rounds {
        for at in 0..NAMES.len() {
            // Each round begins with another one.
            let at = (at + round) % NAMES.len();
            if at == BPFTRACE && missing.is_some() {
                continue;
            }
            let turn = match attach(at, &libraries, &object, features) {
                Ok(turn) => turn,
                Err(error) if at == BPFTRACE => {
                    missing = Some(format!("{error:#}"));
                    continue;
                }
                Err(error) => return Err(error).context(NAMES[at]),
            };
            for (number, call) in CALLS.iter().enumerate() {
                times[at][number].push(libraries.call(call)?);
            }
            drop(turn);
        }
    }
    let added = |at: usize, call: usize| median(&times[at][call]) - median(&times[NOTHING][call]);
    let rows = (0..NAMES.len())
        .filter(|&at| !times[at][0].is_empty())
        .map(|at| {
            let micros = |nanos: f64| format!("{:.2}", nanos / 1000.0);
            vec![
                NAMES[at].to_owned(),
                micros(median(&times[at][LAUNCH])),
                micros(added(at, LAUNCH)),
                micros(median(&times[at][ALLOCATION])),
                micros(added(at, ALLOCATION)),
                micros(median(&times[at][STEPPED])),
                micros(added(at, STEPPED)),
            ]
        })
        .collect();
    let mut about = format!(
        "Microseconds of a call of a stand-in for libcuda.so.1 that does next to nothing; medians of {rounds} rounds. \
         A launch is traced at its entry; an allocation also at its return, for only one that succeeded counts. In mode latency \
         everything is traced at its return. The first two begin with a `push`, as all traced functions of NVIDIA's runtime do, which \
         the kernel emulates; the last one does not, so that the kernel steps through its first instruction, which is a second trap."
    );
    if let Some(missing) = missing {
        about.push_str(&format!(" Without bpftrace: {missing}."));
    }
    report.table(
        "What a traced CUDA call costs",
        &about,
        &[
            "",
            "cuLaunchKernel",
            "added",
            "cuMemAlloc_v2",
            "added",
            "cuLaunchKernel, stepped",
            "added",
        ],
        rows,
    );
    let of_empty = added(COUNTS, LAUNCH) / added(EMPTY, LAUNCH);
    report.verdict(
        "CUDA counts: added to a launch, beside an empty uprobe",
        "≤ 2 ×",
        &format!(
            "{of_empty:.2} ×, {:.2} µs (latency: {:.2} µs)",
            added(COUNTS, LAUNCH) / 1000.0,
            added(LATENCY, LAUNCH) / 1000.0
        ),
        of_empty <= 2.0,
        "the trap into the kernel is most of it",
    );
    Ok(())
}
