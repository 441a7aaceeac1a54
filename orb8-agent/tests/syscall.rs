//! The syscall probe in the kernel: what it counts against what was called.
//!
//! Each test loads a probe of its own, and makes known calls in cgroups of its own.
#![allow(missing_docs, reason = "tests")]
#![cfg(target_arch = "x86_64")]

mod support {
    pub(crate) mod cgroup;
}

use std::{collections::BTreeMap, thread, time::Duration};

use nix::libc;
use orb8_agent::{
    preflight::Features,
    probe::syscall::{Mode, SyscallOptions, SyscallProbe, SyscallSink},
};
use orb8_common::syscall::{CallerKey, LATENCY_BUCKETS, OUT_OF_RANGE, abi};
use support::cgroup::{Cgroup, can_run};

fn options(mode: Mode) -> SyscallOptions {
    SyscallOptions {
        callers: 256,
        latencies: 4096,
        ring_bytes: 512 << 10,
        mode,
    }
}

fn probe(mode: Mode) -> SyscallProbe {
    SyscallProbe::load(&options(mode), Features::probe()).unwrap()
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Times {
    returned: u64,
    total_ns: u64,
    buckets: [u64; LATENCY_BUCKETS],
}

/// All that was handed on.
#[derive(Default, Debug)]
struct Counts {
    calls: BTreeMap<(u64, u32, u32), u64>,
    remainder: BTreeMap<u64, u64>,
    errors: BTreeMap<(u64, u32, u32, u16), u64>,
    times: BTreeMap<(u64, u32, u32), Times>,
}

impl SyscallSink for Counts {
    fn calls(&mut self, caller: CallerKey, number: u32, count: u64) {
        assert!(count > 0);
        *self.calls.entry((caller.cgroup, caller.abi, number)).or_default() += count;
    }
    fn remainder(&mut self, cgroup: u64, count: u64) {
        assert!(count > 0);
        *self.remainder.entry(cgroup).or_default() += count;
    }
    fn errors(&mut self, caller: CallerKey, number: u32, errno: u16, count: u64) {
        assert!(count > 0);
        *self
            .errors
            .entry((caller.cgroup, caller.abi, number, errno))
            .or_default() += count;
    }
    fn latency(
        &mut self,
        caller: CallerKey,
        number: u32,
        returned: u64,
        total_ns: u64,
        buckets: &[u64; LATENCY_BUCKETS],
    ) {
        assert_eq!(returned, buckets.iter().sum::<u64>());
        let times = self
            .times
            .entry((caller.cgroup, caller.abi, number))
            .or_insert(Times {
                returned: 0,
                total_ns: 0,
                buckets: [0; LATENCY_BUCKETS],
            });
        times.returned += returned;
        times.total_ns += total_ns;
        for (sum, new) in times.buckets.iter_mut().zip(buckets) {
            *sum += new;
        }
    }
}

impl Counts {
    fn read(&mut self, probe: &mut SyscallProbe) {
        self.read_without(probe, &[]);
    }

    fn read_without(&mut self, probe: &mut SyscallProbe, gone: &[u64]) {
        probe.read(&mut |cgroup| gone.contains(&cgroup), self).unwrap();
    }

    /// A cgroup's calls by ABI and number.
    fn of(&self, cgroup: &Cgroup) -> BTreeMap<(u32, i64), u64> {
        self.calls
            .iter()
            .filter(|((id, ..), _)| *id == cgroup.id)
            .map(|(&(_, abi, number), &count)| ((abi, i64::from(number)), count))
            .collect()
    }

    fn errors_of(&self, cgroup: &Cgroup) -> BTreeMap<(u32, i64, i32), u64> {
        self.errors
            .iter()
            .filter(|((id, ..), _)| *id == cgroup.id)
            .map(|(&(_, abi, number, errno), &count)| ((abi, i64::from(number), i32::from(errno)), count))
            .collect()
    }

    fn total(&self) -> u64 {
        self.calls.values().sum()
    }
}

/// `times` calls with these arguments.
fn call(times: u64, number: i64, args: [u64; 3]) {
    for _ in 0..times {
        // SAFETY: the tests make calls that touch no memory, or fail.
        unsafe { libc::syscall(number, args[0], args[1], args[2]) };
    }
}

/// `times` calls by `int 0x80`, from 64-bit code.
fn call32(times: u64, number: u32) {
    for _ in 0..times {
        // SAFETY: as above; the kernel saves all registers but eax, and r8 to r11.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("rax") u64::from(number) => _,
                in("rcx") 0, in("rdx") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
    }
}

const NATIVE: u32 = abi::NATIVE;
const EXIT: ((u32, i64), u64) = ((NATIVE, libc::SYS_exit_group), 1);

#[test]
fn every_call_is_counted_under_its_abi_and_number() {
    if !can_run() {
        return;
    }
    let mut probe = probe(Mode::Counts);
    assert!(probe.limits().is_empty(), "{:?}", probe.limits());
    let cgroup = Cgroup::new("counts");
    let mut counts = Counts::default();
    cgroup.run(|| {
        call(1000, libc::SYS_getppid, [0; 3]);
        call(300, libc::SYS_close, [u64::MAX, 0, 0]);
        // Numbers that there are not: in the table's range, and out of it on both sides.
        call(7, 500, [0; 3]);
        call(5, 10_000, [0; 3]);
        call(3, -1, [0; 3]);
        call(2, i64::from(i32::MIN), [0; 3]);
        // x32 has its own bit, also where the kernel does not do it.
        call(11, 0x4000_0000 | libc::SYS_getppid, [0; 3]);
        call(4, 0x4000_0000 | 10_000, [0; 3]);
        // 64 is getppid in the table of i386.
        call32(400, 64);
        call32(9, 10_000);
        call32(8, u32::MAX);
    });
    counts.read(&mut probe);
    let other = OUT_OF_RANGE as i64;
    let expected = BTreeMap::from([
        ((NATIVE, libc::SYS_getppid), 1000),
        ((NATIVE, libc::SYS_close), 300),
        ((NATIVE, 500), 7),
        ((NATIVE, other), 10),
        ((abi::X32, libc::SYS_getppid), 11),
        ((abi::X32, other), 4),
        ((abi::COMPAT, 64), 400),
        ((abi::COMPAT, other), 17),
        EXIT,
    ]);
    assert_eq!(counts.of(&cgroup), expected);
    // Nothing comes twice.
    counts.read(&mut probe);
    assert_eq!(counts.of(&cgroup), expected);
    let stats = probe.stats();
    assert_eq!(stats.counted, counts.total());
    assert_eq!((stats.remainder, stats.lost), (0, 0));
    assert_eq!(stats.seen, stats.counted);
    assert!(counts.errors.is_empty() && counts.times.is_empty());
    assert_eq!(stats.started, 0);
}

#[test]
fn latency_and_errors_are_exact() {
    if !can_run() {
        return;
    }
    let mut probe = probe(Mode::Latency);
    let cgroup = Cgroup::new("latency");
    let mut counts = Counts::default();
    cgroup.run(|| {
        call(1000, libc::SYS_getppid, [0; 3]);
        call(300, libc::SYS_close, [u64::MAX, 0, 0]);
        call(7, 500, [0; 3]);
        call32(50, 64);
        // i386 close, of standard input's nobody: ebx is not ours to set.
        call32(5, 10_000);
        for (seconds, nanoseconds, times) in [(0, 5_000_000, 10), (0, 40_000_000, 3)] {
            for _ in 0..times {
                let time = libc::timespec {
                    tv_sec: seconds,
                    tv_nsec: nanoseconds,
                };
                // SAFETY: a valid time.
                unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, 0) };
            }
        }
    });
    counts.read(&mut probe);
    assert_eq!(
        counts.errors_of(&cgroup),
        BTreeMap::from([
            ((NATIVE, libc::SYS_close, libc::EBADF), 300),
            ((NATIVE, 500, libc::ENOSYS), 7),
            ((abi::COMPAT, OUT_OF_RANGE as i64, libc::ENOSYS), 5),
        ])
    );
    let times = |abi, number: i64| counts.times[&(cgroup.id, abi, number as u32)].clone();
    assert_eq!(times(NATIVE, libc::SYS_getppid).returned, 1000);
    assert_eq!(times(abi::COMPAT, 64).returned, 50);
    assert!(
        !counts
            .times
            .contains_key(&(cgroup.id, NATIVE, libc::SYS_exit_group as u32))
    );
    let slept = times(NATIVE, libc::SYS_nanosleep);
    assert_eq!(slept.returned, 13);
    assert!(slept.total_ns >= 10 * 5_000_000 + 3 * 40_000_000, "{slept:?}");
    // 5 ms is between 2^22 and 2^23 ns, 40 ms between 2^25 and 2^26; a busy machine may sleep longer, never less.
    assert_eq!(slept.buckets[..23].iter().sum::<u64>(), 0, "{slept:?}");
    assert!(slept.buckets[23..26].iter().sum::<u64>() <= 10, "{slept:?}");
    assert!(slept.buckets[23] >= 5, "{slept:?}");
    assert!(slept.buckets[26] >= 1, "{slept:?}");
    let stats = probe.stats();
    assert_eq!((stats.lost, stats.errors_lost), (0, 0));
    // Other processes are in calls that they entered before, or are still in.
    assert!(stats.started >= stats.measured + stats.unmeasured, "{stats:?}");
}

#[test]
fn modes_are_switched_under_load_without_losing_a_call() {
    if !can_run() {
        return;
    }
    let mut probe = probe(Mode::Counts);
    let cgroup = Cgroup::new("modes");
    let mut counts = Counts::default();
    let child = cgroup.start(|| call(2_000_000, libc::SYS_getppid, [0; 3]));
    for round in 0..20 {
        let mode = if round % 2 == 0 {
            Mode::Latency
        } else {
            Mode::Counts
        };
        probe.set_mode(mode).unwrap();
        thread::sleep(Duration::from_millis(20));
        counts.read(&mut probe);
    }
    child.wait();
    counts.read(&mut probe);
    assert_eq!(
        counts.of(&cgroup),
        BTreeMap::from([((NATIVE, libc::SYS_getppid), 2_000_000), EXIT])
    );
    let stats = probe.stats();
    assert!(stats.measured > 0);
    assert_eq!(stats.started, stats.measured + stats.unmeasured, "{stats:?}");
    // Off and on again, with counts that nobody had read before.
    cgroup.run(|| call(100, libc::SYS_getppid, [0; 3]));
    probe.set_mode(Mode::Off).unwrap();
    cgroup.run(|| call(1000, libc::SYS_getppid, [0; 3]));
    probe.set_mode(Mode::Counts).unwrap();
    cgroup.run(|| call(10_000, libc::SYS_getppid, [0; 3]));
    probe.set_mode(Mode::Off).unwrap();
    counts.read(&mut probe);
    assert_eq!(probe.map_bytes(), 0);
    probe.set_mode(Mode::Latency).unwrap();
    cgroup.run(|| call(100_000, libc::SYS_getppid, [0; 3]));
    counts.read(&mut probe);
    assert_eq!(counts.of(&cgroup)[&(NATIVE, libc::SYS_getppid)], 2_110_100);
    assert_eq!(probe.stats().counted, counts.total());
}
