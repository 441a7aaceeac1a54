//! The syscall probe in the kernel: what it counts against what was called.
//!
//! Each test loads a probe of its own, and makes known calls in cgroups of its own.
#![allow(missing_docs, reason = "tests")]
#![cfg(target_arch = "x86_64")]

mod support {
    #[allow(dead_code, reason = "each test file uses a part")]
    pub(crate) mod cgroup;
}

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use nix::libc;
use orb8_agent::{
    preflight::Features,
    probe::{
        object::EventRing,
        syscall::{Mode, SyscallOptions, SyscallProbe, SyscallSink, SyscallStats, event},
    },
};
use orb8_common::syscall::{CallerKey, LATENCY_BUCKETS, OUT_OF_RANGE, abi};
use orb8_proto::v1::State;
use support::cgroup::{Cgroup, can_run};

fn options(mode: Mode) -> SyscallOptions {
    SyscallOptions {
        callers: 256,
        latencies: 4096,
        ring_bytes: 512 << 10,
        measured: BTreeSet::new(),
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
/// Numbers that no table has.
const OTHER: i64 = OUT_OF_RANGE as u32 as i64;
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
    let expected = BTreeMap::from([
        ((NATIVE, libc::SYS_getppid), 1000),
        ((NATIVE, libc::SYS_close), 300),
        ((NATIVE, 500), 7),
        ((NATIVE, OTHER), 10),
        ((abi::X32, libc::SYS_getppid), 11),
        ((abi::X32, OTHER), 4),
        ((abi::COMPAT, 64), 400),
        ((abi::COMPAT, OTHER), 17),
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
    let start = Instant::now();
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
            ((abi::COMPAT, OTHER, libc::ENOSYS), 5),
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
    assert_eq!(slept.buckets[23..].iter().sum::<u64>(), 13, "{slept:?}");
    assert!(slept.buckets[26..].iter().sum::<u64>() >= 3, "{slept:?}");
    assert!(
        u128::from(slept.total_ns) <= start.elapsed().as_nanos(),
        "{slept:?}"
    );
    // The sum lies within what the buckets say.
    let bounds = slept.buckets[..LATENCY_BUCKETS - 1]
        .iter()
        .enumerate()
        .map(|(bucket, count)| count << bucket)
        .sum::<u64>();
    assert!((bounds / 2..bounds).contains(&slept.total_ns), "{slept:?}");
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

/// A static program without a C library: an ELF header, one segment, and `code`.
fn program(name: &str, elf64: bool, code: &[u8]) -> std::path::PathBuf {
    const BASE: u32 = 0x0040_0000;
    let header: u32 = if elf64 { 64 + 56 } else { 52 + 32 };
    let size = header + code.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', if elf64 { 2 } else { 1 }, 1, 1];
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| {
        file.extend(value.to_le_bytes());
        if elf64 {
            file.extend([0; 4]);
        }
    };
    half(&mut file, 2); // an executable
    half(&mut file, if elf64 { 62 } else { 3 });
    file.extend(1_u32.to_le_bytes());
    word(&mut file, BASE + header); // entry
    word(&mut file, if elf64 { 64 } else { 52 }); // program headers
    word(&mut file, 0);
    file.extend(0_u32.to_le_bytes());
    for value in if elf64 {
        [64, 56, 1, 0, 0, 0]
    } else {
        [52, 32, 1, 0, 0, 0]
    } {
        half(&mut file, value);
    }
    // Loaded as a whole, readable and executable.
    file.extend(1_u32.to_le_bytes());
    if elf64 {
        file.extend(5_u32.to_le_bytes());
    }
    for value in [0, BASE, BASE, size, size] {
        word(&mut file, value);
    }
    if !elf64 {
        file.extend(5_u32.to_le_bytes());
    }
    word(&mut file, 0x1000);
    file.extend(code);
    let path = std::env::temp_dir().join(format!("orb8-test-{}-{name}", std::process::id()));
    std::fs::write(&path, file).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Removes a file with its value.
struct File(std::path::PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl File {
    fn name(&self) -> std::ffi::CString {
        std::ffi::CString::new(self.0.to_str().unwrap()).unwrap()
    }
}

/// Starts `program` without arguments and waits for its end; to be called in a cgroup's child.
fn spawn(program: &std::ffi::CStr, argument: &std::ffi::CStr) {
    let arguments = [
        program.as_ptr().cast_mut(),
        argument.as_ptr().cast_mut(),
        std::ptr::null_mut(),
    ];
    let mut pid = 0;
    // SAFETY: strings with their NUL, and lists that end with a null pointer.
    unsafe {
        let failed = libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            arguments.as_ptr(),
            [std::ptr::null_mut()].as_ptr(),
        );
        let mut status = 1;
        if failed != 0 || libc::waitpid(pid, &raw mut status, 0) != pid || status != 0 {
            libc::_exit(1);
        }
    }
}

#[test]
fn a_program_of_32_bits_is_counted_in_its_own_table() {
    if !can_run() {
        return;
    }
    // 1000 times getppid, then exit(0).
    let code = [
        0xbe, 0xe8, 0x03, 0, 0, // mov esi, 1000
        0xb8, 64, 0, 0, 0, // mov eax, 64
        0xcd, 0x80, // int 0x80
        0x4e, // dec esi
        0x75, 0xf6, // jnz -10
        0xb8, 1, 0, 0, 0, // mov eax, 1
        0x31, 0xdb, // xor ebx, ebx
        0xcd, 0x80, // int 0x80
    ];
    let file = File(program("i386", false, &code));
    let mut probe = probe(Mode::Latency);
    let cgroup = Cgroup::new("i386");
    let mut counts = Counts::default();
    let name = file.name();
    cgroup.run(|| spawn(&name, c"x"));
    counts.read(&mut probe);
    let calls = counts.of(&cgroup);
    assert_eq!(calls[&(abi::COMPAT, 64)], 1000, "{calls:?}");
    assert_eq!(calls[&(abi::COMPAT, 1)], 1);
    assert_eq!(calls[&(NATIVE, libc::SYS_execve)], 1);
    assert_eq!(calls.keys().filter(|(abi, _)| *abi == abi::COMPAT).count(), 2);
    assert_eq!(counts.times[&(cgroup.id, abi::COMPAT, 64)].returned, 1000);
    // The 64-bit execve returns to a 32-bit program.
    assert_eq!(
        counts.times[&(cgroup.id, NATIVE, libc::SYS_execve as u32)].returned,
        1
    );
}

#[test]
fn calls_of_threads_and_of_killed_processes_are_counted() {
    if !can_run() {
        return;
    }
    let mut probe = probe(Mode::Latency);
    let cgroup = Cgroup::new("threads");
    let mut counts = Counts::default();
    cgroup.run(|| {
        let threads: [_; 8] =
            std::array::from_fn(|_| thread::spawn(|| call(5000, libc::SYS_getppid, [0; 3])));
        for thread in threads {
            if thread.join().is_err() {
                // SAFETY: ends the child.
                unsafe { libc::_exit(1) };
            }
        }
    });
    // Killed in a call that would last for ever.
    let child = cgroup.start(|| {
        call(77, libc::SYS_getuid, [0; 3]);
        // SAFETY: no memory.
        unsafe { libc::pause() };
    });
    thread::sleep(Duration::from_millis(100));
    child.kill();
    counts.read(&mut probe);
    let calls = counts.of(&cgroup);
    assert_eq!(calls[&(NATIVE, libc::SYS_getppid)], 40_000);
    assert_eq!(calls[&(NATIVE, libc::SYS_exit)], 8);
    assert_eq!(calls[&(NATIVE, libc::SYS_getuid)], 77);
    assert_eq!(calls[&(NATIVE, libc::SYS_pause)], 1);
    let returned = |number: i64| {
        counts
            .times
            .get(&(cgroup.id, NATIVE, number as u32))
            .map(|times| times.returned)
    };
    assert_eq!(returned(libc::SYS_getppid), Some(40_000));
    assert_eq!(returned(libc::SYS_getuid), Some(77));
    // What a fatal signal ends returns, too: to be restarted, which the process does not live to see.
    assert_eq!(returned(libc::SYS_pause), Some(1));
    let restart = (NATIVE, libc::SYS_pause, 514);
    assert_eq!(counts.errors_of(&cgroup)[&restart], 1);
}

/// More tasks than have a slot each: of a thousand among 8192 places, some sixty meet. All are in calls when others come.
#[test]
fn tasks_that_find_their_slot_taken_are_measured_as_exactly() {
    if !can_run() {
        return;
    }
    const THREADS: usize = 1000;
    const CALLS: u64 = 50;
    let mut probe = probe(Mode::Latency);
    // Before Linux 5.15 nobody has a slot, and everything else holds.
    let has_slots = probe
        .programs()
        .iter()
        .all(|(_, state, ..)| *state == State::Active);
    let mut counts = Counts::default();
    let nap = libc::timespec {
        tv_sec: 3,
        tv_nsec: 0,
    };
    // Twice: the second crowd gets the slots of the first.
    for round in 0..2 {
        let cgroup = Cgroup::new(&format!("crowd-{round}"));
        let child = cgroup.start(|| {
            let thread = move || {
                call(CALLS, libc::SYS_getppid, [0; 3]);
                // SAFETY: a valid time.
                unsafe { libc::syscall(libc::SYS_nanosleep, &raw const nap, 0) };
                call(CALLS, 500, [0; 3]);
            };
            let threads: Vec<_> = (0..THREADS)
                .map(|_| thread::Builder::new().stack_size(64 << 10).spawn(thread).unwrap())
                .collect();
            for thread in threads {
                if thread.join().is_err() {
                    // SAFETY: ends the child.
                    unsafe { libc::_exit(1) };
                }
            }
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        let asleep = |counts: &Counts| counts.of(&cgroup).get(&(NATIVE, libc::SYS_nanosleep)).copied();
        while asleep(&counts) != Some(THREADS as u64) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
            counts.read(&mut probe);
        }
        let crowd = probe.slots_in_use();
        child.wait();
        counts.read(&mut probe);
        let calls = counts.of(&cgroup);
        let returned = |number: i64| counts.times[&(cgroup.id, NATIVE, number as u32)].returned;
        for (number, each) in [(libc::SYS_getppid, CALLS), (libc::SYS_nanosleep, 1), (500, CALLS)] {
            assert_eq!(calls[&(NATIVE, number)], THREADS as u64 * each, "{number}");
            assert_eq!(returned(number), THREADS as u64 * each, "{number}");
        }
        assert_eq!(
            counts.errors_of(&cgroup)[&(NATIVE, 500, libc::ENOSYS)],
            THREADS as u64 * CALLS
        );
        let slept = &counts.times[&(cgroup.id, NATIVE, libc::SYS_nanosleep as u32)];
        // Nobody has another's beginning: 3 s are between 2^31 and 2^32 ns, and no getppid takes half a second.
        assert_eq!(
            slept.buckets[32..].iter().sum::<u64>(),
            THREADS as u64,
            "{slept:?}"
        );
        let short = &counts.times[&(cgroup.id, NATIVE, libc::SYS_getppid as u32)];
        assert_eq!(short.buckets[30..].iter().sum::<u64>(), 0, "{short:?}");
        // Slots do not stay with those who have gone.
        let left = probe.slots_in_use();
        if has_slots {
            assert!(
                crowd > THREADS / 2 && left < crowd - THREADS / 2,
                "{crowd} {left}"
            );
        } else {
            assert_eq!((crowd, left), (0, 0));
        }
    }
    probe.set_mode(Mode::Counts).unwrap();
    counts.read(&mut probe);
    let stats = probe.stats();
    assert_eq!(stats.lost, 0, "{stats:?}");
    assert_eq!(stats.started, stats.measured + stats.unmeasured, "{stats:?}");
}

#[test]
fn a_storm_of_processes_is_counted_exactly() {
    if !can_run() {
        return;
    }
    const PROCESSES: u64 = 10_000;
    // exit(0).
    let file = File(program(
        "exit",
        true,
        &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05],
    ));
    let mut probe = probe(Mode::Latency);
    probe
        .set_event_weight(NATIVE, libc::SYS_execve as u32, 1)
        .unwrap();
    let cgroup = Cgroup::new("storm");
    let mut counts = Counts::default();
    let mut ring = probe.take_events().unwrap();
    let name = file.name();
    // Not a constant: after a fork its page is not in the child's memory until it is touched.
    let argument = std::ffi::CString::new("argument").unwrap();
    let child = cgroup.start(|| {
        for _ in 0..PROCESSES {
            spawn(&name, &argument);
        }
    });
    let mut told = 0;
    let mut read = |ring: &mut EventRing| {
        ring.read(|record| {
            let event = event::decode(record).unwrap();
            if event.cgroup == cgroup.id {
                told += 1;
                let texts: Vec<_> = event::texts(&event).map(|text| text.bytes).collect();
                assert_eq!(texts, [name.to_bytes(), name.to_bytes(), b"argument"]);
                assert_eq!((event.truncated, event.unreadable, event.more), (0, 0, 0));
            }
        });
    };
    while !child.has_ended() {
        thread::sleep(Duration::from_millis(5));
        read(&mut ring);
    }
    read(&mut ring);
    child.wait();
    counts.read(&mut probe);
    let calls = counts.of(&cgroup);
    assert_eq!(calls[&(NATIVE, libc::SYS_execve)], PROCESSES);
    assert_eq!(calls[&(NATIVE, libc::SYS_exit)], PROCESSES);
    assert_eq!(calls[&(NATIVE, libc::SYS_wait4)], PROCESSES);
    assert_eq!(
        counts.times[&(cgroup.id, NATIVE, libc::SYS_execve as u32)].returned,
        PROCESSES
    );
    let stats = probe.stats();
    // Other processes' execs may be among those lost.
    assert!(told + stats.events_lost >= PROCESSES, "{told} {stats:?}");
    assert!(told <= PROCESSES);
    if stats.events_lost == 0 {
        assert_eq!(told, PROCESSES);
    }
}

#[test]
fn callers_without_a_row_are_counted_in_the_remainder() {
    if !can_run() {
        return;
    }
    let mut probe = SyscallProbe::load(
        &SyscallOptions {
            callers: 1,
            ..options(Mode::Latency)
        },
        Features::probe(),
    )
    .unwrap();
    // The only row goes to the first that comes; make sure that it is another one than those below.
    call(1, libc::SYS_getppid, [0; 3]);
    let cgroups = [Cgroup::new("rest-a"), Cgroup::new("rest-b")];
    let mut counts = Counts::default();
    for (cgroup, times) in cgroups.iter().zip([1000, 20_000]) {
        cgroup.run(|| {
            call(times, libc::SYS_getppid, [0; 3]);
            call32(times, 64);
        });
    }
    counts.read(&mut probe);
    assert_eq!(counts.remainder[&cgroups[0].id], 2001);
    assert_eq!(counts.remainder[&cgroups[1].id], 40_001);
    assert!(cgroups.iter().all(|cgroup| counts.of(cgroup).is_empty()));
    let stats = probe.stats();
    assert_eq!(stats.rows, 1);
    assert_eq!(stats.lost, 0);
    assert_eq!(stats.remainder, counts.remainder.values().sum::<u64>());
    assert_eq!(stats.seen, stats.counted + stats.remainder);
    // exit_group is not meant to be measured.
    assert!(stats.unmeasured >= 42_000, "{stats:?}");
    // As soon as the row is free again, it goes to the next caller, also to one that had none before.
    let owner = counts.calls.keys().next().unwrap().0;
    let ids = [owner, cgroups[0].id, cgroups[1].id];
    for _ in 0..3 {
        counts.read_without(&mut probe, &ids);
    }
    assert!(
        probe.stats().rows <= 1,
        "the row may have its next owner: {:?}",
        probe.stats()
    );
}

#[test]
fn rows_of_removed_cgroups_go_to_others_and_nothing_is_lost() {
    if !can_run() {
        return;
    }
    const ROUNDS: u64 = 60;
    let mut probe = SyscallProbe::load(
        &SyscallOptions {
            callers: 24,
            // Three times what the test takes at once: the rest of the machine has its own.
            latencies: 1000,
            ..options(Mode::Latency)
        },
        Features::probe(),
    )
    .unwrap();
    let mut counts = Counts::default();
    // One that calls all the while, and that is said to be gone again and again although it is not.
    let steady = Cgroup::new("steady");
    let child = steady.start(|| call(3_000_000, libc::SYS_getppid, [0; 3]));
    let mut gone = vec![steady.id];
    for round in 0..ROUNDS {
        let cgroup = Cgroup::new(&format!("churn-{round}"));
        cgroup.run(|| {
            call(100 + round, libc::SYS_getppid, [0; 3]);
            call(round + 1, libc::SYS_close, [u64::MAX, 0, 0]);
        });
        gone.push(cgroup.id);
        if round % 4 == 3 {
            counts.read_without(&mut probe, &gone);
        }
    }
    child.wait();
    counts.read_without(&mut probe, &gone);
    let of = |id: u64, number: i64| {
        counts
            .calls
            .get(&(id, NATIVE, number as u32))
            .copied()
            .unwrap_or(0)
    };
    let stats = probe.stats();
    assert!(stats.latencies < 1000, "no room: {stats:?}");
    assert_eq!(counts.remainder, BTreeMap::new());
    assert_eq!(of(steady.id, libc::SYS_getppid), 3_000_000);
    for (round, &id) in gone[1..].iter().enumerate() {
        let round = round as u64;
        assert_eq!(of(id, libc::SYS_getppid), 100 + round);
        assert_eq!(of(id, libc::SYS_close), round + 1);
        assert_eq!(
            counts.errors[&(id, NATIVE, libc::SYS_close as u32, libc::EBADF as u16)],
            round + 1
        );
        assert_eq!(
            counts.times[&(id, NATIVE, libc::SYS_getppid as u32)].returned,
            100 + round
        );
    }
    assert_eq!(stats.counted, counts.total());
    assert_eq!((stats.remainder, stats.lost, stats.errors_lost), (0, 0, 0));
    assert!(stats.rows < 24, "{stats:?}");
}

#[test]
fn a_full_ring_costs_events_and_no_counts() {
    if !can_run() {
        return;
    }
    const CALLS: u64 = 5000;
    let mut probe = SyscallProbe::load(
        &SyscallOptions {
            ring_bytes: 4096,
            ..options(Mode::Counts)
        },
        Features::probe(),
    )
    .unwrap();
    let mut ring = probe.take_events().unwrap();
    assert!(probe.take_events().is_none());
    // Seldom enough that the test has it for itself.
    probe
        .set_event_weight(NATIVE, libc::SYS_getpgid as u32, 1)
        .unwrap();
    probe
        .set_event_weight(NATIVE, libc::SYS_getsid as u32, 100)
        .unwrap();
    let cgroup = Cgroup::new("ring");
    cgroup.run(|| call(CALLS, libc::SYS_getpgid, [0, 0xdead_beef_0000_0001, 2]));
    let mut events = Vec::new();
    ring.read(|record| events.push(event::decode(record).unwrap()));
    let stats = probe.stats();
    assert_eq!(stats.events_wanted, CALLS);
    assert_eq!(stats.events_sampled_out, 0);
    assert_eq!(stats.events_lost + events.len() as u64, CALLS);
    assert!(!events.is_empty() && stats.events_lost > 0);
    let first = events[0];
    assert_eq!(first.args[..3], [0, 0xdead_beef_0000_0001, 2]);
    assert_eq!((first.abi, i64::from(first.number)), (NATIVE, libc::SYS_getpgid));
    assert_eq!((first.cgroup, first.weight, first.strings), (cgroup.id, 1, 0));
    assert!(first.tgid > 0 && first.tid == first.tgid);
    // Sampled: one in a hundred on each CPU; one of them may be cut in two by a move to another CPU.
    cgroup.run(|| call(CALLS, libc::SYS_getsid, [0; 3]));
    let mut sampled = 0;
    ring.read(|record| {
        sampled += 1;
        assert_eq!(event::decode(record).unwrap().weight, 100);
    });
    let stats = probe.stats();
    let lost = stats.events_lost - (CALLS - events.len() as u64);
    assert_eq!(stats.events_wanted, 2 * CALLS);
    assert_eq!(stats.events_sampled_out + sampled + lost, CALLS);
    assert!(
        (CALLS / 100 - 2..=CALLS / 100).contains(&(sampled + lost)),
        "{stats:?}"
    );
    // Off.
    probe
        .set_event_weight(NATIVE, libc::SYS_getpgid as u32, 0)
        .unwrap();
    cgroup.run(|| call(10, libc::SYS_getpgid, [0; 3]));
    assert_eq!(probe.stats().events_wanted, 2 * CALLS);
    let mut counts = Counts::default();
    counts.read(&mut probe);
    assert_eq!(counts.of(&cgroup)[&(NATIVE, libc::SYS_getpgid)], CALLS + 10);
    assert_eq!(counts.of(&cgroup)[&(NATIVE, libc::SYS_getsid)], CALLS);
}

#[test]
fn events_tell_what_arguments_point_to() {
    if !can_run() {
        return;
    }
    let mut probe = probe(Mode::Counts);
    let watched = [
        libc::SYS_mount,
        libc::SYS_memfd_create,
        libc::SYS_chroot,
        libc::SYS_pivot_root,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_unshare,
        libc::SYS_init_module,
        libc::SYS_execveat,
    ];
    for number in watched {
        probe.set_event_weight(NATIVE, number as u32, 1).unwrap();
    }
    probe.set_event_weight(abi::COMPAT, 11, 1).unwrap();
    let mut ring = probe.take_events().unwrap();
    let cgroup = Cgroup::new("texts");
    let long = std::ffi::CString::new(vec![b'l'; 300]).unwrap();
    // In memory of our own: after a fork, constants are not in the child's memory until they are touched.
    let texts: BTreeMap<&str, std::ffi::CString> = [
        "a",
        "",
        "d",
        "from",
        "/no/such/orb8",
        "type",
        "memory",
        "/no/new",
        "/no/old",
        "parameter=1",
        "no",
    ]
    .into_iter()
    .map(|text| (text, std::ffi::CString::new(text).unwrap()))
    .collect();
    let text = |text| texts[text].as_ptr();
    let arguments = [text("a"), text(""), long.as_ptr(), text("d"), std::ptr::null()];
    // For 32-bit calls, memory that 32 bits can point to.
    // SAFETY: a new mapping.
    let low = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        )
    };
    assert_ne!(low, libc::MAP_FAILED);
    let base = low as usize as u32;
    // SAFETY: within the mapping.
    unsafe {
        low.cast::<[u32; 3]>().write([base + 64, base + 80, 0]);
        low.byte_add(64).cast::<[u8; 4]>().write(*b"/32\0");
        low.byte_add(80).cast::<[u8; 4]>().write(*b"two\0");
    }
    let unmapped = 0x10_u64;
    cgroup.run(|| {
        // All of them fail: no right, no such thing, or nonsense.
        // SAFETY: strings with their NUL, or addresses where nothing is.
        unsafe {
            libc::syscall(
                libc::SYS_mount,
                text("from"),
                text("/no/such/orb8"),
                text("type"),
                0,
                0,
            );
            libc::syscall(libc::SYS_mount, 0, unmapped, long.as_ptr(), 0, 0);
            libc::close(libc::syscall(libc::SYS_memfd_create, text("memory"), 0) as i32);
            libc::syscall(libc::SYS_chroot, text("/no/such/orb8"));
            libc::syscall(libc::SYS_pivot_root, text("/no/new"), text("/no/old"));
            // Without and with a new network namespace; CLONE_SIGHAND without CLONE_VM is refused.
            libc::syscall(libc::SYS_clone, libc::CLONE_SIGHAND, 0, 0, 0, 0);
            libc::syscall(
                libc::SYS_clone,
                libc::CLONE_SIGHAND | libc::CLONE_NEWNET,
                0,
                0,
                0,
                0,
            );
            let clone3 = |flags: i32| {
                let arguments = [flags as u64, 0, 0, 0, 0, 0, 0, 0];
                libc::syscall(libc::SYS_clone3, arguments.as_ptr(), 64);
            };
            clone3(libc::CLONE_SIGHAND);
            clone3(libc::CLONE_SIGHAND | libc::CLONE_NEWPID);
            libc::syscall(libc::SYS_unshare, 0);
            libc::syscall(libc::SYS_unshare, libc::CLONE_SIGHAND | libc::CLONE_NEWUTS | 1);
            libc::syscall(libc::SYS_init_module, 0, 0, text("parameter=1"));
            libc::syscall(libc::SYS_execveat, -1, text("no"), arguments.as_ptr(), 0, 0);
            std::arch::asm!(
                "xchg rbx, {path}", "int 0x80", "xchg rbx, {path}",
                path = inout(reg) u64::from(base + 64) => _,
                inlateout("rax") 11_u64 => _,
                in("rcx") u64::from(base), in("rdx") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
    });
    let mut told = Vec::new();
    ring.read(|record| {
        let event = event::decode(record).unwrap();
        if event.cgroup == cgroup.id {
            let texts: Vec<_> = event::texts(&event)
                .map(|text| String::from_utf8(text.bytes.to_vec()).unwrap())
                .collect();
            told.push((event, texts));
        }
    });
    let l = "l".repeat(127);
    let of = |abi: u32, number: i64| -> Vec<Vec<&str>> {
        told.iter()
            .filter(|(event, _)| event.abi == abi && i64::from(event.number) == number)
            .map(|(_, texts)| texts.iter().map(String::as_str).collect())
            .collect()
    };
    assert_eq!(
        of(NATIVE, libc::SYS_mount),
        [vec!["from", "/no/such/orb8", "type"], vec!["", &l]]
    );
    let mount = told[1].0;
    assert_eq!((mount.unreadable, mount.truncated), (0b01, 0b10));
    assert_eq!(of(NATIVE, libc::SYS_memfd_create), [vec!["memory"]]);
    assert_eq!(of(NATIVE, libc::SYS_chroot), [vec!["/no/such/orb8"]]);
    assert_eq!(of(NATIVE, libc::SYS_pivot_root), [vec!["/no/new", "/no/old"]]);
    assert_eq!(of(NATIVE, libc::SYS_clone).len(), 1);
    assert_eq!(of(NATIVE, libc::SYS_clone3).len(), 1);
    assert_eq!(of(NATIVE, libc::SYS_unshare).len(), 1);
    assert_eq!(of(NATIVE, libc::SYS_init_module), [vec!["parameter=1"]]);
    // The last argument has no room any more.
    assert_eq!(of(NATIVE, libc::SYS_execveat), [vec!["no", "a", "", &l]]);
    assert_eq!(of(abi::COMPAT, 11), [vec!["/32", "/32", "two"]]);
    let exec = told
        .iter()
        .find(|(event, _)| i64::from(event.number) == libc::SYS_execveat)
        .unwrap()
        .0;
    assert_eq!((exec.more, exec.truncated), (1, 0b1000));
    assert_eq!(probe.stats().events_lost, 0);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    if !can_run() {
        return;
    }
    for wrong in [
        SyscallOptions {
            callers: 0,
            ..options(Mode::Counts)
        },
        SyscallOptions {
            latencies: 0,
            ..options(Mode::Counts)
        },
        SyscallOptions {
            ring_bytes: 5000,
            ..options(Mode::Counts)
        },
        SyscallOptions {
            ring_bytes: 0,
            ..options(Mode::Off)
        },
    ] {
        let error = SyscallProbe::load(&wrong, Features::probe()).unwrap_err();
        assert!(error.to_string().contains("the syscall probe"), "{error}");
    }
    let without = Features {
        task_storage: false,
        ..Features::probe()
    };
    let error = SyscallProbe::load(&options(Mode::Counts), without).unwrap_err();
    assert!(error.to_string().contains("5.12"), "{error}");
    let mut probe = probe(Mode::Counts);
    assert!(probe.set_event_weight(3, 0, 1).is_err());
    assert!(probe.set_event_weight(NATIVE, 576, 1).is_err());
    assert_eq!(probe.mode(), Mode::Counts);
    let states: Vec<_> = probe.programs().into_iter().map(|(_, state, ..)| state).collect();
    assert_eq!(states, [State::Active, State::Off, State::Off]);
    probe.set_mode(Mode::Off).unwrap();
    assert!(probe.programs().iter().all(|(_, state, ..)| *state == State::Off));
    // Nothing is loaded for a probe that begins in mode off.
    let off = SyscallProbe::load(&options(Mode::Off), without).unwrap();
    assert_eq!((off.map_bytes(), off.stats()), (0, SyscallStats::default()));
}

#[test]
fn what_has_no_histogram_is_counted_as_unmeasured() {
    if !can_run() {
        return;
    }
    let mut probe = SyscallProbe::load(
        &SyscallOptions {
            latencies: 1,
            ..options(Mode::Latency)
        },
        Features::probe(),
    )
    .unwrap();
    let cgroup = Cgroup::new("histograms");
    let mut counts = Counts::default();
    // Others may have taken the only one before.
    cgroup.run(|| {
        for _ in 0..1000 {
            call(1, libc::SYS_getppid, [0; 3]);
            call(1, libc::SYS_getuid, [0; 3]);
            call(1, libc::SYS_close, [u64::MAX, 0, 0]);
        }
    });
    probe.set_mode(Mode::Counts).unwrap();
    counts.read(&mut probe);
    assert_eq!(
        counts.of(&cgroup),
        BTreeMap::from([
            ((NATIVE, libc::SYS_getppid), 1000),
            ((NATIVE, libc::SYS_getuid), 1000),
            ((NATIVE, libc::SYS_close), 1000),
            EXIT,
        ])
    );
    let stats = probe.stats();
    assert!(counts.times.len() <= 1 && stats.latencies <= 1, "{stats:?}");
    assert!(stats.unmeasured >= 2000, "{stats:?}");
    assert_eq!(stats.started, stats.measured + stats.unmeasured, "{stats:?}");
    assert_eq!(
        stats.measured,
        counts.times.values().map(|times| times.returned).sum::<u64>()
    );
}

#[test]
fn only_what_is_asked_is_measured_and_everything_is_counted() {
    if !can_run() {
        return;
    }
    let asked = (NATIVE, libc::SYS_close as u32);
    let mut probe = SyscallProbe::load(
        &SyscallOptions {
            measured: BTreeSet::from([asked]),
            ..options(Mode::Latency)
        },
        Features::probe(),
    )
    .unwrap();
    // An event's weight must not make a call a measured one.
    probe
        .set_event_weight(NATIVE, libc::SYS_getuid as u32, 1)
        .unwrap();
    let cgroup = Cgroup::new("asked");
    let mut counts = Counts::default();
    cgroup.run(|| {
        for _ in 0..1000 {
            call(1, libc::SYS_close, [u64::MAX, 0, 0]);
            call(2, libc::SYS_getppid, [0; 3]);
            call(1, libc::SYS_getuid, [0; 3]);
            // Fails, and is not asked for.
            call(1, libc::SYS_dup, [u64::MAX, 0, 0]);
        }
    });
    probe.set_mode(Mode::Counts).unwrap();
    counts.read(&mut probe);
    assert_eq!(
        counts.of(&cgroup),
        BTreeMap::from([
            ((NATIVE, libc::SYS_close), 1000),
            ((NATIVE, libc::SYS_getppid), 2000),
            ((NATIVE, libc::SYS_getuid), 1000),
            ((NATIVE, libc::SYS_dup), 1000),
            EXIT,
        ])
    );
    assert_eq!(
        counts.errors_of(&cgroup),
        BTreeMap::from([((NATIVE, libc::SYS_close, libc::EBADF), 1000)])
    );
    assert_eq!(counts.times[&(cgroup.id, asked.0, asked.1)].returned, 1000);
    assert!(
        counts
            .times
            .keys()
            .all(|&(_, abi, number)| (abi, number) == asked),
        "{:?}",
        counts.times
    );
    let stats = probe.stats();
    // Other processes may have been in such a call at the end.
    assert_eq!((stats.lost, stats.unmeasured), (0, stats.outlasted), "{stats:?}");
    assert_eq!(stats.started, stats.measured + stats.unmeasured, "{stats:?}");
}
