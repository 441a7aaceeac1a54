//! The CUDA probe in the kernel: what it counts against what was called.
//!
//! Each test loads a probe of its own, and makes known calls of libraries of its own, in cgroups of its own.
#![allow(missing_docs, reason = "tests")]

mod support {
    #[allow(dead_code, reason = "each test file uses a part")]
    pub(crate) mod cgroup;
    pub(crate) mod cuda;
}

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use orb8_agent::{
    preflight::Features,
    probe::cuda::{
        CudaOptions, CudaProbe, CudaSink, Held, Mode,
        function::{Function, Kind},
        mapping::Mapping,
    },
};
use orb8_common::cuda::Calls;
use support::{
    cgroup::{Cgroup, can_run},
    cuda::{Caller, Libraries, real_runtime},
};

const MIB: u64 = 1 << 20;

fn options(mode: Mode) -> CudaOptions {
    CudaOptions {
        mode,
        ..CudaOptions::default()
    }
}

fn probe(mode: Mode) -> CudaProbe {
    CudaProbe::load(&options(mode), Features::probe()).unwrap()
}

/// All that was handed on.
#[derive(Default, Debug)]
struct Counts(BTreeMap<(u64, &'static str), Calls>);

impl CudaSink for Counts {
    fn calls(&mut self, cgroup: u64, function: &'static Function, calls: &Calls) {
        assert_ne!(*calls, Calls::default());
        let sum = self.0.entry((cgroup, function.name)).or_default();
        sum.count += calls.count;
        sum.errors += calls.errors;
        sum.bytes += calls.bytes;
        sum.total_ns += calls.total_ns;
        sum.returned += calls.returned;
    }
}

impl Counts {
    fn read(&mut self, probe: &mut CudaProbe) {
        probe.read(&mut |_| false, self).unwrap();
    }

    /// A cgroup's calls by function: count, errors, bytes.
    fn of(&self, cgroup: &Cgroup) -> BTreeMap<&'static str, (u64, u64, u64)> {
        self.0
            .iter()
            .filter(|((id, _), _)| *id == cgroup.id)
            .map(|((_, name), calls)| (*name, (calls.count, calls.errors, calls.bytes)))
            .collect()
    }
}

fn read(probe: &mut CudaProbe) -> Counts {
    let mut counts = Counts::default();
    counts.read(probe);
    counts
}

/// The equation, and that counts are all that was counted.
fn balanced(probe: &CudaProbe, counts: &Counts) {
    let stats = probe.stats();
    let counted: u64 = counts
        .0
        .iter()
        .map(|((_, name), calls)| {
            let function = orb8_agent::probe::cuda::function::FUNCTIONS
                .iter()
                .find(|it| it.name == *name)
                .unwrap();
            // An allocation that failed is no allocation, but it was met.
            calls.count
                + if function.kind == Kind::Allocate {
                    calls.errors
                } else {
                    0
                }
        })
        .sum();
    assert_eq!(stats.seen, counted + stats.nested + stats.lost, "{stats:?}");
}

fn attached(mode: Mode, files: &[&Path]) -> CudaProbe {
    let mut probe = probe(mode);
    for path in files {
        assert!(probe.attach(&File::open(path).unwrap(), path).unwrap() > 0);
    }
    probe
}

#[test]
fn driver_calls_are_counted_with_their_bytes() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    let mut probe = attached(Mode::Counts, &[&driver]);
    let (cgroup, other) = (Cgroup::new("cuda-driver"), Cgroup::new("cuda-other"));
    let steps = [
        "cuMemAlloc_v2:100:4096",
        // More than there is, and nothing.
        "cuMemAlloc_v2:7:1099511627776",
        "cuMemAlloc_v2:3:0",
        "cuMemFree_v2:40",
        // Nothing, and what was never allocated.
        "cuMemFree_v2:5:0",
        "cuMemFree_v2:6:4096",
        "cuMemcpyHtoD_v2:11:100",
        "cuMemcpyHtoD_v2_ptds:4:100",
        "cuMemcpyHtoDAsync_v2:12:1000",
        "cuMemcpyDtoH_v2:13:7",
        "cuMemcpyDtoHAsync_v2:14:9",
        "cuMemcpyDtoD_v2:15:0",
        "cuMemcpyDtoDAsync_v2:16:5000000000",
        "cuMemcpy:17:1",
        "cuMemcpyAsync:18:2",
        "cuLaunchKernel:1000",
        "cuLaunchKernel:9:0:bad",
        "cuStreamSynchronize:21",
        "cuCtxSynchronize:22",
    ];
    libraries.start(&cgroup, &[&driver], &steps).finish();
    libraries
        .start(&other, &[&driver], &["cuLaunchKernel:3"])
        .finish();
    let mut counts = read(&mut probe);
    let expected = BTreeMap::from([
        // An allocation counts when it has succeeded.
        ("cuMemAlloc_v2", (100, 10, 100 * 4096)),
        ("cuMemFree_v2", (51, 0, 40 * 4096)),
        ("cuMemcpyHtoD_v2", (15, 0, 1500)),
        ("cuMemcpyHtoDAsync_v2", (12, 0, 12_000)),
        ("cuMemcpyDtoH_v2", (13, 0, 91)),
        ("cuMemcpyDtoHAsync_v2", (14, 0, 126)),
        ("cuMemcpyDtoD_v2", (15, 0, 0)),
        ("cuMemcpyDtoDAsync_v2", (16, 0, 80_000_000_000)),
        ("cuMemcpy", (17, 0, 17)),
        ("cuMemcpyAsync", (18, 0, 36)),
        ("cuLaunchKernel", (1009, 0, 0)),
        ("cuStreamSynchronize", (21, 0, 0)),
        ("cuCtxSynchronize", (22, 0, 0)),
    ]);
    assert_eq!(counts.of(&cgroup), expected);
    assert_eq!(counts.of(&other), BTreeMap::from([("cuLaunchKernel", (3, 0, 0))]));
    // Nothing comes twice.
    counts.read(&mut probe);
    assert_eq!(counts.of(&cgroup), expected);
    balanced(&probe, &counts);
    let stats = probe.stats();
    assert_eq!((stats.nested, stats.lost, stats.unmeasured), (0, 0, 0));
    assert_eq!((stats.allocated, stats.not_held), (100, 0));
    // In this mode nothing but allocations is followed to its return.
    for ((_, name), calls) in &counts.0 {
        let expected = if *name == "cuMemAlloc_v2" { 110 } else { 0 };
        assert_eq!(calls.returned, expected, "{name}");
    }
}

#[test]
fn latency_tells_how_calls_end_and_how_long_they_take() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    let mut probe = attached(Mode::Latency, &[&driver]);
    let cgroup = Cgroup::new("cuda-latency");
    let mut command = Command::new(libraries.caller());
    command.env("FAKE_CUDA_SYNC_US", "20000").arg(&driver).args([
        "--",
        "cuMemAlloc_v2:10:4096",
        "cuMemAlloc_v2:7:1099511627776",
        "cuMemFree_v2:4",
        "cuMemFree_v2:6:4096",
        "cuMemcpyHtoD_v2:11:100",
        "cuMemcpyHtoD_v2:5:100:bad",
        "cuLaunchKernel:100",
        "cuLaunchKernel:9:0:bad",
        "cuStreamSynchronize:2:0:bad",
        "cuCtxSynchronize:5",
    ]);
    Caller::start(command, &cgroup).finish();
    let counts = read(&mut probe);
    assert_eq!(
        counts.of(&cgroup),
        BTreeMap::from([
            ("cuMemAlloc_v2", (10, 7, 10 * 4096)),
            ("cuMemFree_v2", (10, 6, 4 * 4096)),
            ("cuMemcpyHtoD_v2", (16, 5, 1100)),
            ("cuLaunchKernel", (109, 9, 0)),
            ("cuStreamSynchronize", (2, 2, 0)),
            ("cuCtxSynchronize", (5, 0, 0)),
        ])
    );
    let slept = counts.0[&(cgroup.id, "cuCtxSynchronize")];
    assert_eq!(slept.returned, 5);
    assert!(
        (100_000_000..20_000_000_000).contains(&slept.total_ns),
        "{slept:?}"
    );
    let launched = counts.0[&(cgroup.id, "cuLaunchKernel")];
    assert!(
        launched.returned == 109 && launched.total_ns > 0 && launched.total_ns < slept.total_ns,
        "{launched:?}"
    );
    balanced(&probe, &counts);
    let stats = probe.stats();
    assert_eq!((stats.returned, stats.unmeasured, stats.lost), (159, 0, 0));
}

/// Through the runtime, which calls the driver for each.
const RUNTIME: [&str; 9] = [
    "cudaMalloc:50:4096",
    "cudaMalloc:5:1099511627776",
    // Succeeds, without the driver.
    "cudaMalloc:2:0",
    "cudaFree:20",
    "cudaFree:3:0",
    "cudaMemcpy:11:100",
    "cudaMemcpyAsync:12:1000",
    "cudaLaunchKernel:500",
    "cudaDeviceSynchronize:13",
];

fn runtime_calls_count_once(mode: Mode, libraries: &Libraries) {
    let (driver, runtime) = (libraries.driver(), libraries.runtime());
    let mut probe = attached(mode, &[&driver, &runtime]);
    let cgroup = Cgroup::new(&format!("cuda-runtime-{mode:?}"));
    // And then the driver's own, from the same places of the stack.
    let steps = [
        &RUNTIME[..],
        &["cuLaunchKernel:30", "cuMemAlloc_v2:2:10", "cuMemcpyHtoD_v2:5:3"],
    ]
    .concat();
    libraries.start(&cgroup, &[&driver, &runtime], &steps).finish();
    let counts = read(&mut probe);
    let expected = BTreeMap::from([
        ("cudaMalloc", (52, 5, 50 * 4096)),
        // Two that were allocated without an address are kept last.
        ("cudaFree", (23, 0, 18 * 4096)),
        ("cudaMemcpy", (11, 0, 1100)),
        ("cudaMemcpyAsync", (12, 0, 12_000)),
        ("cudaLaunchKernel", (500, 0, 0)),
        ("cudaDeviceSynchronize", (13, 0, 0)),
        ("cuLaunchKernel", (30, 0, 0)),
        ("cuMemAlloc_v2", (2, 0, 20)),
        ("cuMemcpyHtoD_v2", (5, 0, 15)),
    ]);
    assert_eq!(counts.of(&cgroup), expected, "{mode:?}");
    balanced(&probe, &counts);
    let stats = probe.stats();
    // 55 allocations, 18 frees, two calls of the driver for each synchronous copy, one for each other.
    assert_eq!(stats.nested, 55 + 18 + 22 + 12 + 500 + 13, "{mode:?}");
    assert_eq!((stats.lost, stats.allocated, stats.not_held), (0, 52, 0));
}

#[test]
fn a_runtime_call_that_reaches_the_driver_counts_once() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    runtime_calls_count_once(Mode::Counts, &libraries);
    runtime_calls_count_once(Mode::Latency, &libraries);
}

#[test]
fn calls_whose_return_another_tracer_follows_count_once() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let (driver, runtime) = (libraries.driver(), libraries.runtime());
    for mode in [Mode::Counts, Mode::Latency] {
        let other = attached(Mode::Latency, &[&driver, &runtime]);
        runtime_calls_count_once(mode, &libraries);
        assert_ne!(other.stats().returned, 0);
    }
}

#[test]
fn a_runtime_that_jumps_to_the_driver_counts_once_where_returns_are_traced() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile_with("-foptimize-sibling-calls");
    runtime_calls_count_once(Mode::Latency, &libraries);
}

#[test]
fn threads_and_short_lived_processes_lose_no_call() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let (driver, runtime) = (libraries.driver(), libraries.runtime());
    for mode in [Mode::Counts, Mode::Latency] {
        let mut probe = attached(mode, &[&driver, &runtime]);
        let cgroup = Cgroup::new(&format!("cuda-many-{mode:?}"));
        let steps = [
            "processes:20",
            "threads:8",
            "cudaMalloc:20:1000",
            "cudaLaunchKernel:100",
            "cudaMemcpy:10:50",
            "cudaFree:15",
        ];
        let caller = libraries.start(&cgroup, &[&driver, &runtime], &steps);
        // Reading meanwhile must not lose any either.
        let mut counts = Counts::default();
        let reader = thread::spawn(move || {
            caller.finish();
        });
        while !reader.is_finished() {
            counts.read(&mut probe);
            thread::sleep(Duration::from_millis(5));
        }
        reader.join().unwrap();
        counts.read(&mut probe);
        assert_eq!(
            counts.of(&cgroup),
            BTreeMap::from([
                ("cudaMalloc", (3200, 0, 3_200_000)),
                ("cudaLaunchKernel", (16_000, 0, 0)),
                ("cudaMemcpy", (1600, 0, 80_000)),
                ("cudaFree", (2400, 0, 2_400_000)),
            ]),
            "{mode:?}"
        );
        balanced(&probe, &counts);
        let stats = probe.stats();
        assert_eq!(
            (stats.lost, stats.unmeasured, stats.ended),
            (0, 0, 20),
            "{stats:?}"
        );
        assert_eq!(probe.held().get(&cgroup.id), None);
    }
}

fn held(probe: &mut CudaProbe, cgroup: &Cgroup) -> (u64, u32) {
    read(probe);
    let held = probe.held().get(&cgroup.id).copied().unwrap_or_default();
    let Held { bytes, processes } = held;
    (bytes, processes)
}

#[test]
fn what_a_process_holds_is_released_when_it_ends() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    for mode in [Mode::Counts, Mode::Latency] {
        let mut probe = attached(mode, &[&driver]);
        let cgroup = Cgroup::new(&format!("cuda-held-{mode:?}"));
        let start = |steps: &[&str]| libraries.start(&cgroup, &[&driver], steps);
        let mut first = start(&[
            "cuMemAlloc_v2:10:1048576",
            "wait",
            "cuMemFree_v2:4",
            "cuMemFree_v2:3:0",
            "wait",
            // Not freed, for it was never allocated.
            "cuMemFree_v2:3:4096",
            "wait",
            "cuMemFree_v2:6",
            "wait",
            "cuMemAlloc_v2:2:1048576",
            "wait",
        ]);
        let mut second = start(&["cuMemAlloc_v2:1:5000", "wait"]);
        let mut third = start(&["cuMemAlloc_v2:3:1000", "wait", "exec"]);
        second.go_on();
        third.go_on();
        first.go_on();
        assert_eq!(held(&mut probe, &cgroup), (10 * MIB + 8000, 3));
        first.go_on();
        assert_eq!(held(&mut probe, &cgroup), (6 * MIB + 8000, 3));
        first.go_on();
        assert_eq!(held(&mut probe, &cgroup), (6 * MIB + 8000, 3));
        first.go_on();
        assert_eq!(held(&mut probe, &cgroup), (8000, 2));
        first.go_on();
        assert_eq!(held(&mut probe, &cgroup), (2 * MIB + 8000, 3));
        // By itself, by a kill, by another program in its place.
        first.finish();
        assert_eq!(held(&mut probe, &cgroup), (8000, 2));
        second.kill();
        assert_eq!(held(&mut probe, &cgroup), (3000, 1));
        third.go();
        third.hear("ready");
        assert_eq!(held(&mut probe, &cgroup), (0, 0));
        third.end();
        assert_eq!(probe.stats().ended, 3);
    }
}

#[test]
fn a_process_whose_first_thread_has_ended_still_holds() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    let mut probe = attached(Mode::Counts, &[&driver]);
    let cgroup = Cgroup::new("cuda-leader");
    // Threads that allocate and end, in a process that waits.
    let mut caller = libraries.start(
        &cgroup,
        &[&driver],
        &["processes:1", "cuMemAlloc_v2:1:7", "threads:4", "wait"],
    );
    caller.go();
    caller.hear("waiting");
    assert_eq!(held(&mut probe, &cgroup), (7, 1));
    caller.kill();
}

#[test]
fn what_has_no_room_is_lost_and_counted() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    let options = CudaOptions {
        calls: 1,
        holders: 1,
        allocations: 5,
        ..options(Mode::Counts)
    };
    let mut probe = CudaProbe::load(&options, Features::probe()).unwrap();
    probe.attach(&File::open(&driver).unwrap(), &driver).unwrap();
    let cgroup = Cgroup::new("cuda-full");
    let mut first = libraries.start(
        &cgroup,
        &[&driver],
        &["cuMemAlloc_v2:9:100", "cuLaunchKernel:30", "wait"],
    );
    first.go_on();
    let counts = read(&mut probe);
    assert_eq!(
        counts.of(&cgroup),
        BTreeMap::from([("cuMemAlloc_v2", (9, 0, 900))])
    );
    balanced(&probe, &counts);
    let stats = probe.stats();
    assert_eq!((stats.seen, stats.lost), (39, 30));
    assert_eq!((stats.allocated, stats.not_held), (9, 4));
    assert_eq!(held(&mut probe, &cgroup), (500, 1));
    // A second process has no room among those that hold something.
    let mut second = libraries.start(&cgroup, &[&driver], &["cuMemAlloc_v2:2:100", "wait"]);
    second.go_on();
    assert_eq!(held(&mut probe, &cgroup), (500, 1));
    assert_eq!(probe.stats().not_held, 6);
    // When the first has ended there is room for both again.
    first.finish();
    assert_eq!(held(&mut probe, &cgroup), (0, 0));
    let mut third = libraries.start(&cgroup, &[&driver], &["cuMemAlloc_v2:5:100", "wait"]);
    third.go_on();
    assert_eq!(held(&mut probe, &cgroup), (500, 1));
    assert_eq!(probe.stats().not_held, 6);
    second.finish();
    third.finish();
}

#[test]
fn counts_of_cgroups_that_are_gone_are_forgotten() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    let options = CudaOptions {
        calls: 1,
        ..options(Mode::Counts)
    };
    let mut probe = CudaProbe::load(&options, Features::probe()).unwrap();
    probe.attach(&File::open(&driver).unwrap(), &driver).unwrap();
    let mut counts = Counts::default();
    for round in 1..=3 {
        let cgroup = Cgroup::new("cuda-gone");
        libraries
            .start(&cgroup, &[&driver], &["cuLaunchKernel:4"])
            .finish();
        for _ in 0..2 {
            probe.read(&mut |id| id == cgroup.id, &mut counts).unwrap();
        }
        assert_eq!(counts.0.values().map(|calls| calls.count).sum::<u64>(), 4 * round);
    }
    assert_eq!(probe.stats().lost, 0);
}

/// Has the probe follow processes until it is so.
fn follows(probe: &mut CudaProbe, what: &str, is: impl Fn(&CudaProbe) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        drop(probe.follow(Instant::now()));
        if is(probe) {
            return;
        }
        let files: Vec<_> = probe.files().collect();
        assert!(Instant::now() < deadline, "in vain waited for: {what}; {files:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn has(probe: &CudaProbe, path: &Path) -> usize {
    probe.files().filter(|file| file.path == path).count()
}

fn quick(mode: Mode) -> CudaOptions {
    CudaOptions {
        look_at_all: Duration::from_millis(100),
        ..options(mode)
    }
}

#[test]
fn libraries_are_found_in_processes_once_a_file_and_left_when_nobody_has_them() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let (driver, runtime) = (libraries.driver(), libraries.runtime());
    // Another name of the same file.
    let link = libraries.path("libcuda.so.550.1");
    fs::hard_link(&driver, &link).unwrap();
    let cgroup = Cgroup::new("cuda-follow");
    let steps = ["cuLaunchKernel:5", "wait", "cudaLaunchKernel:7", "wait"];
    // One is there before the probe.
    let mut before = libraries.start(&cgroup, &[&driver, &runtime], &steps);
    let mut probe = CudaProbe::load(&quick(Mode::Counts), Features::probe()).unwrap();
    follows(&mut probe, "both libraries", |probe| {
        has(probe, &driver) == 1 && has(probe, &runtime) == 1
    });
    // Those of other tests' processes are found too.
    let attachments = |probe: &CudaProbe| {
        let own = [&driver, &runtime, &link];
        let files = probe.files().filter(|file| own.contains(&&file.path));
        files.map(|file| file.functions).sum::<usize>()
    };
    let once = attachments(&probe);
    let mut other = libraries.start(&cgroup, &[&link, &runtime], &steps);
    for _ in 0..10 {
        drop(probe.follow(Instant::now()));
        thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(attachments(&probe), once, "a file is attached to once");
    before.go_on();
    other.go_on();
    before.go_on();
    other.go_on();
    let counts = read(&mut probe);
    assert_eq!(
        counts.of(&cgroup),
        BTreeMap::from([("cuLaunchKernel", (10, 0, 0)), ("cudaLaunchKernel", (14, 0, 0))])
    );
    // The file may go while a process has it.
    fs::remove_file(&driver).unwrap();
    fs::remove_file(&link).unwrap();
    before.finish();
    for _ in 0..10 {
        drop(probe.follow(Instant::now()));
        thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(attachments(&probe), once, "one process still has them");
    other.finish();
    follows(&mut probe, "no library", |probe| {
        has(probe, &driver) + has(probe, &runtime) + has(probe, &link) == 0
    });
}

#[test]
fn a_process_that_loads_a_library_late_is_followed() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    let options = CudaOptions {
        // Too seldom to be of help.
        look_at_all: Duration::from_secs(3600),
        ..options(Mode::Counts)
    };
    let mut probe = CudaProbe::load(&options, Features::probe()).unwrap();
    drop(probe.follow(Instant::now()));
    let cgroup = Cgroup::new("cuda-late");
    let mut command = Command::new("sh");
    // The same process executes the program that has the library, half a second later.
    command
        .args(["-c", "sleep 0.5; exec \"$@\"", "sh"])
        .arg(libraries.caller())
        .arg(&driver)
        .args(["--", "cuLaunchKernel:5"]);
    let caller = Caller::start(command, &cgroup);
    follows(&mut probe, "the library", |probe| has(probe, &driver) == 1);
    caller.finish();
    assert_eq!(
        read(&mut probe).of(&cgroup),
        BTreeMap::from([("cuLaunchKernel", (5, 0, 0))])
    );
}

/// An overlay mount over a directory, as containers have; removed with its value.
struct Overlay(PathBuf);

impl Overlay {
    fn over(lower: &Path, at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let empty = at.with_extension("empty");
        fs::create_dir(&empty).unwrap();
        let options = format!("lowerdir={}:{}", lower.display(), empty.display());
        nix::mount::mount(
            Some("overlay"),
            &at,
            Some("overlay"),
            nix::mount::MsFlags::MS_RDONLY,
            Some(options.as_str()),
        )
        .unwrap();
        Self(at)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn two_containers_of_one_image_have_one_file() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let image = libraries.path("image");
    fs::create_dir(&image).unwrap();
    fs::copy(libraries.driver(), image.join("libcuda.so.1")).unwrap();
    let containers = ["a", "b"].map(|name| Overlay::over(&image, libraries.path(name)));
    let paths = containers.each_ref().map(|it| it.0.join("libcuda.so.1"));
    let cgroup = Cgroup::new("cuda-overlay");
    let mut callers = paths
        .each_ref()
        .map(|path| libraries.start(&cgroup, &[path], &["cuLaunchKernel:100", "wait"]));
    let mut probe = CudaProbe::load(&quick(Mode::Counts), Features::probe()).unwrap();
    let traced = |probe: &CudaProbe| paths.iter().map(|path| has(probe, path)).sum::<usize>();
    follows(&mut probe, "the library", |probe| traced(probe) > 0);
    assert_eq!(traced(&probe), 1, "they are one file");
    for caller in &mut callers {
        caller.go_on();
    }
    assert_eq!(read(&mut probe).of(&cgroup)["cuLaunchKernel"], (200, 0, 0));
    // Were it attached to by both names, each call would still count once.
    for mode in [Mode::Counts, Mode::Latency] {
        let mut probe = attached(mode, &[&paths[0], &paths[1]]);
        let steps = ["cuMemAlloc_v2:10:100", "cuLaunchKernel:100", "cuMemFree_v2:10"];
        libraries.start(&cgroup, &[&paths[1]], &steps).finish();
        let counts = read(&mut probe);
        assert_eq!(
            counts.of(&cgroup),
            BTreeMap::from([
                ("cuMemAlloc_v2", (10, 0, 1000)),
                ("cuLaunchKernel", (100, 0, 0)),
                ("cuMemFree_v2", (10, 0, 1000)),
            ])
        );
        balanced(&probe, &counts);
        assert_eq!((probe.stats().lost, probe.stats().nested), (0, 0));
    }
    for caller in callers {
        caller.finish();
    }
}

#[test]
fn what_only_looks_like_a_library_is_left_alone() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    // A program without the functions, and no program at all, mapped under its name.
    let fake = libraries.path("libcuda.so.9");
    fs::copy("/proc/self/exe", &fake).unwrap();
    let text = libraries.path("libcudart.so.9");
    fs::write(&text, "not a library").unwrap();
    let mut probe = CudaProbe::load(&quick(Mode::Counts), Features::probe()).unwrap();
    assert_eq!(probe.attach(&File::open(&fake).unwrap(), &fake).unwrap(), 0);
    let wrong = probe.attach(&File::open(&text).unwrap(), &text).unwrap_err();
    assert!(wrong.to_string().contains("libcudart.so.9"), "{wrong}");
    assert_eq!(probe.files_used().0, 0);
}

/// The pages of code that a process has of a library, as they are in its memory: with the kernel's breakpoints.
fn code(pid: u32, library: &Path) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut code = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" r-xp ")) {
        if !line.ends_with(library.to_str().unwrap()) {
            continue;
        }
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        memory.seek(SeekFrom::Start(from)).unwrap();
        (&memory).take(to - from).read_to_end(&mut code).unwrap();
    }
    assert!(!code.is_empty(), "{maps}");
    code
}

#[test]
fn a_dropped_probe_leaves_nothing_in_processes() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    // Under a name that the probes of other tests, which follow all processes, do not look for.
    let library = libraries.path("plain.so");
    fs::copy(libraries.driver(), &library).unwrap();
    for mode in [Mode::Counts, Mode::Latency] {
        let cgroup = Cgroup::new(&format!("cuda-drop-{mode:?}"));
        let steps = ["cuLaunchKernel:5", "wait", "cuLaunchKernel:5", "wait"];
        let mut caller = libraries.start(&cgroup, &[&library], &steps);
        let pid = caller.child.id();
        let untouched = code(pid, &library);
        let mut probe = attached(mode, &[&library]);
        assert_ne!(code(pid, &library), untouched);
        caller.go_on();
        assert_eq!(read(&mut probe).of(&cgroup)["cuLaunchKernel"], (5, 0, 0));
        drop(probe);
        // A process that another test is just starting may still have descriptors of this probe.
        let deadline = Instant::now() + Duration::from_secs(10);
        while code(pid, &library) != untouched {
            assert!(Instant::now() < deadline, "breakpoints are still there");
            thread::sleep(Duration::from_millis(20));
        }
        caller.go_on();
        caller.finish();
    }
}

#[test]
fn a_library_of_another_mount_namespace_is_found() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    let inside = libraries.path("inside");
    fs::create_dir(&inside).unwrap();
    let library = inside.join("libcuda.so.1");
    let cgroup = Cgroup::new("cuda-namespace");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec"])
        .arg("mount -t tmpfs none \"$1\"; cp \"$2\" \"$1\"; shift 2; exec \"$@\"")
        .arg("sh")
        .args([&inside, &driver])
        .arg(libraries.caller())
        .arg(&library)
        .args(["--", "cuLaunchKernel:5", "wait"]);
    let mut caller = Caller::start(command, &cgroup);
    assert!(!library.exists(), "it must be there in the other namespace only");
    let mut probe = CudaProbe::load(&quick(Mode::Counts), Features::probe()).unwrap();
    follows(&mut probe, "the library", |probe| has(probe, &library) == 1);
    caller.go_on();
    assert_eq!(
        read(&mut probe).of(&cgroup),
        BTreeMap::from([("cuLaunchKernel", (5, 0, 0))])
    );
    // By its path under the process's root, where the range of addresses does not lead to it.
    let proc_root = Path::new("/proc");
    let pid = caller.child.id();
    let mut mapping = Mapping::of_process(proc_root, pid).unwrap().remove(0);
    let by_range = mapping.open(proc_root, pid).unwrap().1;
    mapping.range = "0-1".to_owned();
    assert_eq!(mapping.open(proc_root, pid).unwrap().1, by_range);
    // And never another file that has its name.
    mapping.inode += 1;
    let wrong = mapping.open(proc_root, pid).unwrap_err();
    assert!(wrong.to_string().contains("another file"), "{wrong}");
    caller.finish();
}

#[test]
fn a_library_that_is_replaced_is_followed_beside_the_old_one() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let driver = libraries.driver();
    let cgroup = Cgroup::new("cuda-replaced");
    let steps = ["cuLaunchKernel:5", "wait"];
    let mut old = libraries.start(&cgroup, &[&driver], &steps);
    let mut probe = CudaProbe::load(&quick(Mode::Counts), Features::probe()).unwrap();
    follows(&mut probe, "the library", |probe| has(probe, &driver) == 1);
    // As a package manager does: another file takes the name.
    let fresh = libraries.path("fresh");
    fs::copy(&driver, &fresh).unwrap();
    fs::rename(&fresh, &driver).unwrap();
    let mut new = libraries.start(&cgroup, &[&driver], &steps);
    let both = |probe: &CudaProbe| has(probe, &driver) == 2;
    follows(&mut probe, "both files of the name", both);
    // Also by a probe that comes when the old file has no name any more.
    let mut late = CudaProbe::load(&quick(Mode::Counts), Features::probe()).unwrap();
    follows(&mut late, "both files of the name", both);
    old.go_on();
    new.go_on();
    for probe in [&mut probe, &mut late] {
        assert_eq!(
            read(probe).of(&cgroup),
            BTreeMap::from([("cuLaunchKernel", (10, 0, 0))])
        );
    }
    old.finish();
    follows(&mut probe, "the new file only", |probe| has(probe, &driver) == 1);
    new.finish();
    follows(&mut probe, "no file", |probe| has(probe, &driver) == 0);
}

#[test]
fn a_file_that_becomes_a_library_is_not_taken_for_what_it_was() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    // A library that has none of the functions, under such a name.
    let path = libraries.path("libcuda.so.7");
    let source = libraries.path("nothing.c");
    fs::write(&source, "int nothing(void) { return 0; }").unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let made = Command::new(compiler)
        .args(["-shared", "-fPIC", "-o"])
        .args([&path, &source])
        .status();
    assert!(made.unwrap().success());
    let cgroup = Cgroup::new("cuda-becomes");
    let mut before = libraries.start(&cgroup, &[&path], &["wait"]);
    before.go_on();
    let mut probe = CudaProbe::load(&quick(Mode::Counts), Features::probe()).unwrap();
    drop(probe.follow(Instant::now()));
    assert_eq!(has(&probe, &path), 0);
    before.finish();
    // The same inode, as a number that is used again, before all processes are looked at again.
    let inode = fs::metadata(&path).unwrap().ino();
    fs::copy(libraries.driver(), &path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    let mut after = libraries.start(&cgroup, &[&path], &["cuLaunchKernel:5", "wait"]);
    follows(&mut probe, "the library", |probe| has(probe, &path) == 1);
    after.go_on();
    assert_eq!(
        read(&mut probe).of(&cgroup),
        BTreeMap::from([("cuLaunchKernel", (5, 0, 0))])
    );
    after.finish();
}

#[test]
fn the_real_runtime_is_traced() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let Some(runtime) = real_runtime(directory.path()) else {
        return;
    };
    let libraries = Libraries::compile();
    let steps = [
        "cudaMalloc:20:4096",
        "tell",
        "cudaFree:7:0",
        "cudaLaunchKernel:30",
        "cudaMemcpy:11:100",
        "cudaMemcpyAsync:12:1000",
        "cudaDeviceSynchronize:13",
    ];
    // Without a driver, and with one that says nothing of its version.
    for (mode, driver) in [
        (Mode::Counts, false),
        (Mode::Latency, false),
        (Mode::Latency, true),
    ] {
        let cgroup = Cgroup::new(&format!("cuda-real-{mode:?}-{driver}"));
        // None but the caller: others' calls would be in the ledger.
        let processes = tempfile::tempdir().unwrap();
        let options = CudaOptions {
            proc_root: processes.path().to_owned(),
            ..quick(mode)
        };
        let mut probe = CudaProbe::load(&options, Features::probe()).unwrap();
        let mut command = Command::new(libraries.caller());
        command.arg(&runtime).arg("--").args(steps);
        if driver {
            let directory = libraries.driver();
            command.env("LD_LIBRARY_PATH", directory.parent().unwrap());
        }
        let mut caller = Caller::start(command, &cgroup);
        let pid = caller.child.id().to_string();
        symlink(Path::new("/proc").join(&pid), processes.path().join(&pid)).unwrap();
        follows(&mut probe, "the library", |probe| has(probe, &runtime) == 1);
        let file = probe.files().find(|file| file.path == runtime).unwrap();
        assert_eq!(
            file.functions, 9,
            "six, and three for a default stream per thread"
        );
        caller.go();
        // cudaErrorInsufficientDriver: what each fails with.
        caller.hear("35");
        caller.end();
        let counts = read(&mut probe);
        // Without a driver each fails, as it must.
        let failed = |count: u64| if mode == Mode::Latency { count } else { 0 };
        let bytes = |bytes: u64| if mode == Mode::Latency { 0 } else { bytes };
        assert_eq!(
            counts.of(&cgroup),
            BTreeMap::from([
                ("cudaMalloc", (0, 20, 0)),
                ("cudaFree", (7, failed(7), 0)),
                ("cudaLaunchKernel", (30, failed(30), 0)),
                ("cudaMemcpy", (11, failed(11), bytes(1100))),
                ("cudaMemcpyAsync", (12, failed(12), bytes(12_000))),
                ("cudaDeviceSynchronize", (13, failed(13), 0)),
            ]),
            "{mode:?}"
        );
        balanced(&probe, &counts);
        let stats = probe.stats();
        assert_eq!(
            (stats.lost, stats.allocated, stats.unmeasured),
            (0, 0, 0),
            "{stats:?}"
        );
    }
}
