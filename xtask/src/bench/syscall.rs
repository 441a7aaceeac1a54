//! What the syscall programs add to a system call, beside an empty one, minimal ones in C, and bpftrace's.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf,
    programs::{RawTracePoint, raw_trace_point::RawTracePointLink},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        resource::{UsageWho, getrusage},
        signal::{Signal, kill},
        time::TimeVal,
    },
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use orb8_agent::{
    preflight::Features,
    probe::syscall::{Mode, SyscallOptions, SyscallProbe, SyscallSink},
};
use orb8_common::syscall::{CallerKey, LATENCY_BUCKETS, abi};

use super::{
    program,
    report::Report,
    statistics::{median, ratio},
    web_server::WebServer,
};

/// What takes turns, in this order.
const NAMES: [&str; 10] = [
    "nothing attached",
    "empty raw tracepoint",
    "C: count by (cgroup, number) in a hash map",
    "orb8: counts",
    "C: the clock, at entry and return",
    "C: the count, and latency by an in-flight hash map",
    "orb8: latency",
    "orb8: latency, of calls that are not asked for",
    "bpftrace: count by (cgroup, number)",
    "bpftrace: latency histogram",
];
const NOTHING: usize = 0;
const EMPTY: usize = 1;
const C_COUNT: usize = 2;
const COUNTS: usize = 3;
const CLOCK: usize = 4;
const C_LATENCY: usize = 5;
const LATENCY: usize = 6;
const NOT_ASKED: usize = 7;
const BPFTRACE_COUNT: usize = 8;

const BPFTRACE: [&str; 2] = [
    "tracepoint:raw_syscalls:sys_enter { @[cgroup, args->id] = count(); }",
    "tracepoint:raw_syscalls:sys_enter { @s[tid] = nsecs; } \
     tracepoint:raw_syscalls:sys_exit /@s[tid]/ { @[cgroup, args->id] = hist(nsecs - @s[tid]); delete(@s[tid]); }",
];

/// What is attached during a turn; detached when dropped.
pub(super) enum Attached {
    Nothing,
    C { _links: Vec<RawTracePointLink> },
    Orb8 { _probe: Box<SyscallProbe> },
    Bpftrace(Child),
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Self::Bpftrace(child) = self {
            if let Ok(pid) = i32::try_from(child.id()) {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = child.wait();
        }
    }
}

struct Programs {
    baseline: Ebpf,
    features: Features,
}

impl Programs {
    fn load() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let object = program::compile("syscall.c", directory.path())?;
        let mut baseline = Ebpf::load(&object).context("cannot load the C programs")?;
        for name in ["empty", "count", "clock", "latency_enter", "latency_exit"] {
            raw_tracepoint(&mut baseline, name)?.load()?;
        }
        Ok(Self {
            baseline,
            features: Features::probe(),
        })
    }

    fn c(&mut self, programs: &[(&str, &str)]) -> Result<Attached> {
        let mut links = Vec::new();
        for (name, tracepoint) in programs {
            let program = raw_tracepoint(&mut self.baseline, name)?;
            let id = program.attach(tracepoint)?;
            links.push(program.take_link(id)?);
        }
        Ok(Attached::C { _links: links })
    }

    fn attach(&mut self, what: usize) -> Result<Attached> {
        match what {
            NOTHING => Ok(Attached::Nothing),
            EMPTY => self.c(&[("empty", "sys_enter")]),
            C_COUNT => self.c(&[("count", "sys_enter")]),
            CLOCK => self.c(&[("clock", "sys_exit"), ("clock", "sys_enter")]),
            C_LATENCY => self.c(&[("latency_exit", "sys_exit"), ("latency_enter", "sys_enter")]),
            COUNTS => Ok(Attached::Orb8 {
                _probe: Box::new(probe(Mode::Counts, &[], self.features)?),
            }),
            LATENCY => Ok(Attached::Orb8 {
                _probe: Box::new(probe(Mode::Latency, &[], self.features)?),
            }),
            NOT_ASKED => Ok(Attached::Orb8 {
                _probe: Box::new(probe(Mode::Latency, &[nix::libc::SYS_futex], self.features)?),
            }),
            _ => bpftrace(BPFTRACE[what - BPFTRACE_COUNT]),
        }
    }
}

fn raw_tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// A probe with the agent's default sizes, that measures these calls; none: all.
fn probe(mode: Mode, measured: &[i64], features: Features) -> Result<SyscallProbe> {
    let measured = measured
        .iter()
        .map(|&number| Ok((abi::NATIVE, u32::try_from(number)?)))
        .collect::<Result<_>>()?;
    Ok(SyscallProbe::load(
        &SyscallOptions {
            callers: 1024,
            latencies: 8192,
            ring_bytes: 512 << 10,
            measured,
            mode,
        },
        features,
    )?)
}

/// bpftrace with one program, once it is attached. In a mount namespace of its own, for it needs tracefs where it is
/// usually mounted.
pub(super) fn bpftrace(program: &str) -> Result<Attached> {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount -t tracefs none /sys/kernel/tracing 2>/dev/null; exec bpftrace -e \"$0\"")
        .arg(program)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // SAFETY: one system call, which is safe after fork.
    unsafe {
        command.pre_exec(|| {
            // It does not outlive the benchmark, however that ends.
            nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL);
            Ok(())
        });
    }
    let mut child = command.spawn().context("unshare is missing (util-linux)")?;
    let output = child.stdout.take().context("no output")?;
    let attached = Attached::Bpftrace(child);
    let mut lines = BufReader::new(output).lines();
    match lines.next() {
        Some(Ok(line)) if line.starts_with("Attaching") => {}
        _ => bail!("bpftrace does not run here (apt-get install bpftrace)"),
    }
    // The line comes before the deed.
    thread::sleep(Duration::from_millis(1500));
    Ok(attached)
}

/// Processor time of this thread in nanoseconds: what others do on the same CPU is not in it.
fn thread_time() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

/// Nanoseconds of a `getppid`, the least of several slices.
fn getppid(calls: u32) -> Result<f64> {
    const SLICES: u32 = 5;
    let mut least = f64::INFINITY;
    for _ in 0..SLICES {
        let start = thread_time()?;
        for _ in 0..calls / SLICES {
            // SAFETY: no arguments.
            unsafe { nix::libc::syscall(nix::libc::SYS_getppid) };
        }
        least = least.min((thread_time()? - start) / f64::from(calls / SLICES));
    }
    Ok(least)
}

/// Measures and reports.
///
/// # Errors
/// If a program cannot be attached.
pub(super) fn run(quick: bool, report: &mut Report) -> Result<()> {
    let mut programs = match Programs::load() {
        Ok(programs) => programs,
        Err(error) => {
            report.not_measured(
                "syscall programs: what they add to a getppid",
                "counts ≤ 1.05 × the same in C, latency ≤ 0.5 × an in-flight hash map",
                &format!("{error:#}"),
            );
            return Ok(());
        }
    };
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    by_getppid(&mut programs, quick, report)?;
    by_dd(&mut programs, quick, report)?;
    by_web_server(&mut programs, quick, report)?;
    let mut all = CpuSet::new();
    for cpu in 0..thread::available_parallelism()?.get().max(2) {
        all.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &all)?;
    by_reading(&programs, quick, report)
}

fn by_getppid(programs: &mut Programs, quick: bool, report: &mut Report) -> Result<()> {
    let (rounds, calls) = if quick { (5, 100_000) } else { (25, 250_000) };
    // bpftrace needs seconds to start.
    let bpftrace_rounds = if quick { 1 } else { 5 };
    let mut times: [Vec<f64>; NAMES.len()] = Default::default();
    let mut missing: Option<String> = None;
    for round in 0..rounds {
        for at in 0..NAMES.len() {
            // Each round begins with another one.
            let at = (at + round) % NAMES.len();
            if at >= BPFTRACE_COUNT && (round >= bpftrace_rounds || missing.is_some()) {
                continue;
            }
            let attached = match programs.attach(at) {
                Ok(attached) => attached,
                Err(error) if at >= BPFTRACE_COUNT => {
                    missing = Some(format!("{error:#}"));
                    continue;
                }
                Err(error) => return Err(error).context(NAMES[at]),
            };
            times[at].push(getppid(calls)?);
            drop(attached);
        }
    }
    let nothing = times[NOTHING].clone();
    let added: Vec<Vec<f64>> = times
        .iter()
        .map(|times| {
            times
                .iter()
                .zip(&nothing)
                .map(|(time, nothing)| time - nothing)
                .collect()
        })
        .collect();
    let value = |at: usize| median(&added[at]);
    let counts = ratio(&added[COUNTS], &added[C_COUNT]);
    report.verdict(
        "syscall counts: added to a getppid, beside a minimal C program",
        "≤ 1.05 ×",
        &format!(
            "{counts:.2} ×, {:.0} ns (C: {:.0} ns)",
            value(COUNTS),
            value(C_COUNT)
        ),
        counts <= 1.05,
        &format!("{:.0} ns more than C a call", value(COUNTS) - value(C_COUNT)),
    );
    let latency = ratio(&added[LATENCY], &added[C_LATENCY]);
    report.verdict(
        "syscall latency: added to a getppid, beside an in-flight hash map in C",
        "≤ 0.5 ×",
        &format!(
            "{latency:.2} ×, {:.0} ns (C: {:.0} ns)",
            value(LATENCY),
            value(C_LATENCY)
        ),
        latency <= 0.5,
        &format!(
            "two tracepoints and two readings of the clock alone are {:.0} ns",
            value(CLOCK)
        ),
    );
    let not_asked = ratio(&added[NOT_ASKED], &added[C_LATENCY]);
    report.verdict(
        "syscall latency with `syscall_measured`: added to a getppid that is not asked for, beside the same C",
        "≤ 0.5 ×",
        &format!(
            "{not_asked:.2} ×, {:.0} ns (C: {:.0} ns)",
            value(NOT_ASKED),
            value(C_LATENCY)
        ),
        not_asked <= 0.5,
        "two tracepoints and the count",
    );
    let rows = (0..NAMES.len())
        .filter(|&at| !times[at].is_empty())
        .map(|at| {
            vec![
                NAMES[at].to_owned(),
                format!("{:.0}", median(&times[at])),
                if at == NOTHING {
                    String::new()
                } else {
                    format!("{:.0}", value(at))
                },
            ]
        })
        .collect();
    report.table(
        "Nanoseconds a getppid",
        &format!(
            "A thread on one CPU, its own processor time; {calls} calls a turn, the least of 5 slices; median of {rounds} \
             rounds ({bpftrace_rounds} of bpftrace's), in each of which all take turns. C: xtask/bench/syscall.c.{}",
            missing.map_or_else(String::new, |why| format!(" bpftrace was left out: {why}."))
        ),
        &["attached", "ns a call", "added"],
        rows,
    );
    Ok(())
}

/// A copy of single bytes, a read and a write each: seconds of processor time.
fn dd(blocks: u32) -> Result<f64> {
    let before = processor_time(UsageWho::RUSAGE_CHILDREN)?;
    let output = Command::new("dd")
        .args(["if=/dev/zero", "of=/dev/null", "bs=1", &format!("count={blocks}")])
        .output()
        .context("dd is missing (coreutils)")?;
    ensure!(output.status.success(), "dd failed");
    Ok(processor_time(UsageWho::RUSAGE_CHILDREN)? - before)
}

/// Processor time in seconds of this process, or of children that have ended.
pub(super) fn processor_time(who: UsageWho) -> Result<f64> {
    let usage = getrusage(who)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// What takes turns around a workload.
const AROUND: [usize; 7] = [NOTHING, EMPTY, C_COUNT, COUNTS, C_LATENCY, LATENCY, NOT_ASKED];

/// Seconds of processor time that a workload takes, with each of [`AROUND`] attached in turn.
fn around(
    programs: &mut Programs,
    rounds: usize,
    workload: impl Fn() -> Result<f64>,
) -> Result<[Vec<f64>; AROUND.len()]> {
    let mut times: [Vec<f64>; AROUND.len()] = Default::default();
    for round in 0..rounds {
        for at in 0..AROUND.len() {
            let at = (at + round) % AROUND.len();
            let attached = programs.attach(AROUND[at])?;
            times[at].push(workload()?);
            drop(attached);
        }
    }
    Ok(times)
}

/// A row for each of [`AROUND`]: what one of `count` takes in nanoseconds, and how many times what it takes alone.
fn rows_around(times: &[Vec<f64>; AROUND.len()], count: u32) -> Vec<Vec<String>> {
    (0..AROUND.len())
        .map(|at| {
            vec![
                NAMES[AROUND[at]].to_owned(),
                format!("{:.0}", median(&times[at]) * 1e9 / f64::from(count)),
                format!("{:.2}", ratio(&times[at], &times[0])),
            ]
        })
        .collect()
}

fn by_dd(programs: &mut Programs, quick: bool, report: &mut Report) -> Result<()> {
    let (rounds, blocks) = if quick { (3, 100_000) } else { (11, 300_000) };
    let times = around(programs, rounds, || dd(blocks))?;
    report.table(
        "A copy of single bytes",
        &format!(
            "`dd bs=1 count={blocks}` from /dev/zero to /dev/null, a read and a write a byte; median of {rounds} rounds, \
             in each of which all take turns; processor time."
        ),
        &["attached", "ns a byte", "of nothing attached"],
        rows_around(&times, blocks),
    );
    Ok(())
}

fn by_web_server(programs: &mut Programs, quick: bool, report: &mut Report) -> Result<()> {
    let (rounds, requests) = if quick { (3, 5_000) } else { (11, 20_000) };
    let server = WebServer::start()?;
    let times = around(programs, rounds, || server.requests(requests))?;
    report.table(
        "A web server",
        &format!(
            "{requests} requests for a file of 4 KiB, one after the other over one connection on loopback; median of {rounds} \
             rounds, in each of which all take turns; processor time of server and client together, on one CPU."
        ),
        &["attached", "ns a request", "of nothing attached"],
        rows_around(&times, requests),
    );
    Ok(())
}

/// Where counts go that nobody wants.
#[derive(Default)]
struct Nowhere(u64);

impl SyscallSink for Nowhere {
    fn calls(&mut self, _: CallerKey, _: u32, count: u64) {
        self.0 += count;
    }
    fn remainder(&mut self, _: u64, _: u64) {}
    fn errors(&mut self, _: CallerKey, _: u32, _: u16, _: u64) {}
    fn latency(&mut self, _: CallerKey, _: u32, _: u64, _: u64, _: &[u64; LATENCY_BUCKETS]) {}
}

/// What reading costs while callers make as many calls as they can.
fn by_reading(programs: &Programs, quick: bool, report: &mut Report) -> Result<()> {
    let seconds = if quick { 3 } else { 10 };
    let mut rows = Vec::new();
    for (mode, name) in [(Mode::Counts, "counts"), (Mode::Latency, "latency")] {
        let mut probe = probe(mode, &[], programs.features)?;
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let stop = stop.clone();
                thread::spawn(move || {
                    while !stop.load(Relaxed) {
                        for _ in 0..1000 {
                            // SAFETY: no arguments.
                            unsafe { nix::libc::syscall(nix::libc::SYS_getppid) };
                        }
                    }
                })
            })
            .collect();
        let mut sink = Nowhere::default();
        let mut cpu = 0.0;
        let start = Instant::now();
        for _ in 0..seconds {
            thread::sleep(Duration::from_secs(1));
            let before = thread_time()?;
            probe.read(&mut |_| false, &mut sink)?;
            cpu += thread_time()? - before;
        }
        let elapsed = start.elapsed().as_secs_f64();
        stop.store(true, Relaxed);
        for caller in callers {
            // It only made calls.
            let _ = caller.join();
        }
        let rate = sink.0 as f64 / elapsed;
        let millicores = cpu / 1e6 / elapsed;
        rows.push(vec![
            name.to_owned(),
            format!("{:.2}", rate / 1e6),
            format!("{millicores:.2}"),
            format!("{:.1}", probe.map_bytes() as f64 / f64::from(1 << 20)),
        ]);
        if mode == Mode::Counts {
            report.verdict(
                "reading the counts once a second, at full rate of two callers",
                "≤ 5 millicores",
                &format!("{millicores:.2} millicores at {:.2} million calls/s", rate / 1e6),
                millicores <= 5.0,
                "the scan of the rows",
            );
        }
    }
    report.table(
        "Reading while two threads call as fast as they can",
        &format!("Once a second for {seconds} s, as the agent does; rows for 1024 callers, 8192 histograms."),
        &["mode", "million calls/s", "millicores", "maps MiB"],
        rows,
    );
    Ok(())
}
