//! Nanoseconds a packet of the classifiers, beside a minimal one in C and an empty one.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path as FilePath,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf,
    maps::{Array, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions},
};
use orb8_agent::{
    bpf::{
        fd_info::fd_info,
        link::{TcxSide, attach_tcx},
    },
    preflight::Features,
    probe::network::{
        drain::{EpochDrain, EpochSink},
        load::{EventRing, Network, NetworkOptions, NetworkPrograms},
    },
};

use orb8_common::network::{FlowCounters, FlowKey, RemainderKey, TcpHealth, TcpKey};

use super::{
    cleanup,
    path::Path,
    report::Report,
    statistics::{median, ratio},
    traffic,
};

/// Flows over which packets are spread.
const FLOWS: [usize; 4] = [1, 100, 10_000, 100_000];
const PROGRAMS: [&str; 4] = ["orb8_eth_in", "orb8_eth_out", "minimal", "empty"];

#[repr(C)]
#[derive(Clone, Copy)]
struct Cycle {
    next: u32,
    flows: u32,
    step: u32,
    reserved: u32,
}
// SAFETY: integers without padding.
unsafe impl aya::Pod for Cycle {}

/// The two objects.
struct Programs {
    network: NetworkPrograms,
    drain: EpochDrain,
    /// Kept open: the programs write to it.
    _events: EventRing,
    baseline: Ebpf,
    target: ProgramArray<aya::maps::MapData>,
    cycle: Array<aya::maps::MapData, Cycle>,
}

/// Where drained records go that nobody wants.
struct Nowhere;

impl EpochSink for Nowhere {
    fn flow(&mut self, _: &FlowKey, _: &FlowCounters) {}
    fn remainder(&mut self, _: &RemainderKey, _: &FlowCounters) {}
    fn tcp(&mut self, _: &TcpKey, _: &TcpHealth) {}
}

/// Builds C programs of xtask/bench.
///
/// # Errors
/// What to install, or what the compiler says.
pub(super) fn compile(source: &str, directory: &FilePath) -> Result<Vec<u8>> {
    let source = FilePath::new(env!("CARGO_MANIFEST_DIR"))
        .join("bench")
        .join(source);
    let object = directory.join("baseline.o");
    let output = Command::new("clang-22")
        .args([
            "-O2",
            "-g",
            "-target",
            "bpf",
            "-mcpu=v3",
            "-I/usr/include/x86_64-linux-gnu",
        ])
        .arg("-I/usr/include/aarch64-linux-gnu")
        .arg("-c")
        .args([&source, FilePath::new("-o"), &object])
        .output()
        .context("clang-22 is missing (apt-get install clang-22 libbpf-dev)")?;
    ensure!(
        output.status.success(),
        "clang-22 cannot build {} (apt-get install clang-22 libbpf-dev): {}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(std::fs::read(object)?)
}

impl Programs {
    fn load() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut baseline =
            Ebpf::load(&compile("minimal.c", directory.path())?).context("cannot load the C programs")?;
        for name in ["minimal", "empty", "drive"] {
            classifier(&mut baseline, name)?.load()?;
        }
        let target = baseline.take_map("TARGET").context("no map TARGET")?.try_into()?;
        let cycle = baseline.take_map("CYCLE").context("no map CYCLE")?.try_into()?;
        let network = Network::load(
            &NetworkOptions {
                flow_entries: 262_144,
                ring_bytes: 1 << 20,
                grpc_port: 0,
                metrics_port: 0,
                loopback_only: true,
                dns: true,
            },
            Features::probe(),
        )?;
        let Network {
            programs: network,
            epochs,
            control,
            events,
            ..
        } = network;
        let drain = EpochDrain::new(epochs, control);
        Ok(Self {
            drain,
            _events: events,
            network,
            baseline,
            target,
            cycle,
        })
    }

    /// Empties both maps of each pair, as the agent does once an interval.
    fn empty_maps(&mut self) -> Result<()> {
        for _ in 0..2 {
            self.drain.drain(&mut Nowhere)?;
        }
        Ok(())
    }

    fn fd(&mut self, name: &'static str) -> Result<&ProgramFd> {
        Ok(match name {
            "minimal" | "empty" => classifier(&mut self.baseline, name)?.fd()?,
            _ => self.network.classifier(name)?.fd()?,
        })
    }

    /// Nanoseconds a run, with what being driven costs.
    fn test(&mut self, name: &'static str, flows: usize, runs: u32) -> Result<f64> {
        let fd = self.fd(name)?.try_clone()?;
        self.target.set(0, &fd, 0)?;
        // Not in order, as if hashed; a step without a common factor meets all.
        let step = if flows > 7919 { 7919 } else { 1 };
        self.cycle.set(
            0,
            Cycle {
                next: 0,
                flows: flows as u32,
                step: step % (flows as u32).max(2),
                reserved: 0,
            },
            0,
        )?;
        let packet = packet();
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        options.repeat = runs;
        let result = classifier(&mut self.baseline, "drive")?.test_run(options)?;
        ensure!(
            result.return_value == u32::MAX,
            "the tail call into {name} failed"
        );
        Ok(result.duration.as_nanos() as f64)
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// A UDP packet of 60 bytes from 10.76.0.1 to 10.77.0.0.
fn packet() -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0, 0, 0x0a, 8, 0];
    packet.extend([
        0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 76, 0, 1, 10, 77, 0, 0,
    ]);
    packet.extend([0x23, 0x28, 0x1b, 0x58, 0, 26, 0, 0]);
    packet.extend([0x5a; 18]);
    packet
}

/// Measures and reports.
///
/// # Errors
/// If a program does not load, or traffic fails.
pub(super) fn run(quick: bool, report: &mut Report) -> Result<()> {
    let mut programs = match Programs::load() {
        Ok(programs) => programs,
        Err(error) => {
            report.not_measured(
                "network programs: one packet, beside a minimal C classifier",
                "≤ 1.15 ×, under 100 ns at 100 flows",
                &format!("{error:#}"),
            );
            return Ok(());
        }
    };
    by_test_run(&mut programs, quick, report)?;
    by_traffic(&mut programs, quick, report)
}

fn by_test_run(programs: &mut Programs, quick: bool, report: &mut Report) -> Result<()> {
    let (rounds, runs) = if quick { (11, 100_000) } else { (31, 200_000) };
    let mut rows = Vec::new();
    for flows in FLOWS {
        programs.empty_maps()?;
        let mut times: [Vec<f64>; PROGRAMS.len()] = Default::default();
        for round in 0..=rounds {
            for at in 0..PROGRAMS.len() {
                // Each round begins with another one.
                let at = (at + round) % PROGRAMS.len();
                let time = programs.test(PROGRAMS[at], flows, runs)?;
                // The first round enters the flows.
                if round > 0 {
                    times[at].push(time);
                }
            }
        }
        let [eth_in, eth_out, minimal, empty] = times;
        let net = |times: &[f64]| -> Vec<f64> {
            times
                .iter()
                .zip(&empty)
                .map(|(time, empty)| time - empty)
                .collect()
        };
        let (eth_in, eth_out, minimal) = (net(&eth_in), net(&eth_out), net(&minimal));
        rows.push(vec![
            flows.to_string(),
            format!("{:.1}", median(&minimal)),
            format!("{:.1}", median(&eth_in)),
            format!("{:.1}", median(&eth_out)),
            format!("{:.2}", ratio(&eth_in, &minimal)),
            format!("{:.1}", median(&empty)),
        ]);
        if flows == 100 {
            let (time, ratio) = (median(&eth_in), ratio(&eth_in, &minimal));
            report.verdict(
                "network program: one packet beside a minimal C classifier, 100 flows (test run)",
                "≤ 1.15 × and < 100 ns",
                &format!("{ratio:.2} ×, {time:.0} ns (C: {:.0} ns)", median(&minimal)),
                ratio <= 1.15 && time < 100.0,
                &format!("{:.0} ns more than C a packet", time - median(&minimal)),
            );
        } else if flows == 10_000 {
            let (time, ratio) = (median(&eth_in), ratio(&eth_in, &minimal));
            report.verdict(
                "the same, 10k flows (test run)",
                "≤ 1.15 ×",
                &format!("{ratio:.2} ×, {time:.0} ns (C: {:.0} ns)", median(&minimal)),
                ratio <= 1.15,
                &format!("{:.0} ns more than C a packet", time - median(&minimal)),
            );
        }
    }
    report.table(
        "Nanoseconds a packet by BPF_PROG_TEST_RUN",
        &format!(
            "A driver program makes the packet the next flow's and tail-calls the program; the same with an empty \
             program is subtracted (last column). {runs} runs of each in turn, median of {rounds} rounds. `minimal`: \
             xtask/bench/minimal.c."
        ),
        &["flows", "minimal C", "orb8_eth_in", "orb8_eth_out", "eth_in / C", "driver + empty"],
        rows,
    );
    Ok(())
}

fn by_traffic(programs: &mut Programs, quick: bool, report: &mut Report) -> Result<()> {
    cleanup::set("/proc/sys/kernel/bpf_stats_enabled", "1")?;
    let (rounds, slice) = if quick { (3, 150) } else { (9, 250) };
    let path = Path::new()?;
    let ifindex = path
        .host
        .inside(|| Ok(nix::net::if_::if_nametoindex("veth-a")?))?;
    let mut rows = Vec::new();
    for flows in [100, 10_000, 100_000] {
        let names = ["orb8_eth_in", "minimal", "empty"];
        programs.empty_maps()?;
        let mut times: [Vec<f64>; 3] = Default::default();
        for round in 0..=rounds {
            for at in 0..names.len() {
                let at = (at + round) % names.len();
                let fd = programs.fd(names[at])?.as_fd().try_clone_to_owned()?;
                let namespace = path.host.clone();
                let program = fd.try_clone()?;
                let link =
                    namespace.inside(move || Ok(attach_tcx(program.as_fd(), ifindex, TcxSide::Ingress)?))?;
                // The first round enters all the flows.
                let slice = if round == 0 { slice * 4 } else { slice };
                let before = info(fd.as_fd())?;
                traffic::udp(&path, flows, Duration::from_millis(slice), None)?;
                let after = info(fd.as_fd())?;
                drop(link);
                let runs = after.0 - before.0;
                if runs == 0 {
                    bail!("no packet met {} on its way", names[at]);
                }
                if round > 0 {
                    times[at].push((after.1 - before.1) as f64 / runs as f64);
                }
            }
        }
        let [orb8, minimal, empty] = times;
        let net = |times: &[f64]| -> Vec<f64> {
            times
                .iter()
                .zip(&empty)
                .map(|(time, empty)| time - empty)
                .collect()
        };
        let (orb8, minimal) = (net(&orb8), net(&minimal));
        rows.push(vec![
            flows.to_string(),
            format!("{:.0}", median(&minimal)),
            format!("{:.0}", median(&orb8)),
            format!("{:.2}", ratio(&orb8, &minimal)),
            format!("{:.0}", median(&empty)),
        ]);
        if flows < 100_000 {
            report.verdict(
                &format!("network program in live traffic, beside minimal C, {flows} flows"),
                if flows == 100 {
                    "≤ 1.15 × and < 100 ns"
                } else {
                    "≤ 1.15 ×"
                },
                &format!(
                    "{:.2} ×, {:.0} ns (C: {:.0} ns)",
                    ratio(&orb8, &minimal),
                    median(&orb8),
                    median(&minimal)
                ),
                ratio(&orb8, &minimal) <= 1.15 && (flows > 100 || median(&orb8) < 100.0),
                &format!("{:.0} ns more than C a packet", median(&orb8) - median(&minimal)),
            );
        }
    }
    report.table(
        "Nanoseconds a packet in live traffic",
        &format!(
            "64-byte UDP frames at full rate into a pod's veth, tcx ingress, kernel.bpf_stats_enabled = 1; the programs \
             take turns of {slice} ms, median of {rounds} rounds, the empty program's time subtracted (last column: the \
             kernel's own accounting)."
        ),
        &["flows", "minimal C", "orb8_eth_in", "ratio", "empty"],
        rows,
    );
    Ok(())
}

fn info(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let info = fd_info(fd)?;
    Ok((info.run_count, info.run_time_ns))
}
