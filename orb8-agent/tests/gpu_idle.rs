//! What holders of idle GPUs do meanwhile, and calls of the CUDA libraries, by a whole agent: real workloads in cgroups of
//! their own, under a library that says of the GPUs that they do nothing.

mod support {
    #[allow(dead_code, reason = "each test file uses a part")]
    pub(crate) mod cgroup;
    #[allow(dead_code, reason = "each test file uses a part")]
    pub(crate) mod cuda;
}

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant, SystemTime},
};

use orb8_agent::{
    Agent, Listen,
    settings::{NvmlLibrary, Settings, SyscallMode},
};
use orb8_fake_nvml::{
    config::{Config, Device, Memory, Process, Utilization},
    install::Fake,
};
use orb8_proto::v1::{
    CudaCalls, GpuDevice, GpuQuery, orbit_service_client::OrbitServiceClient, query_gpus_response::Part,
};
use support::{
    cgroup::{Cgroup, can_run},
    cuda::Libraries,
};

const WORKLOAD: &str = "ORB8_TEST_WORKLOAD";
/// How long a workload runs at most.
const LIFE: Duration = Duration::from_secs(60);

/// Not a test of its own: what the children of [`each_cause_is_found`] do.
#[test]
fn workload() {
    let Ok(what) = env::var(WORKLOAD) else {
        return;
    };
    let end = Instant::now() + LIFE;
    match what.split_once('=').unwrap_or((&what, "")) {
        ("network", address) => {
            let mut stream = TcpStream::connect(address).unwrap();
            let mut buffer = [0; 65_536];
            while Instant::now() < end && stream.read(&mut buffer).unwrap() > 0 {}
        }
        ("disk", path) => {
            let mut file = File::create(path).unwrap();
            while Instant::now() < end {
                file.write_all(&[7; 65_536]).unwrap();
                file.sync_all().unwrap();
                if file.metadata().unwrap().len() > 1 << 24 {
                    file.set_len(0).unwrap();
                }
            }
        }
        ("futex", _) => {
            let pair = Arc::new((Mutex::new(()), Condvar::new()));
            while Instant::now() < end {
                let guard = pair.0.lock().unwrap();
                drop(pair.1.wait_timeout(guard, Duration::from_millis(50)).unwrap());
            }
        }
        ("busy", _) => while Instant::now() < end {},
        // A third of the time each.
        ("mix", path) => {
            let pair = (Mutex::new(()), Condvar::new());
            while Instant::now() < end {
                thread::sleep(Duration::from_millis(30));
                let guard = pair.0.lock().unwrap();
                drop(pair.1.wait_timeout(guard, Duration::from_millis(30)).unwrap());
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(30) {
                    fs::metadata(path).ok();
                }
            }
        }
        other => panic!("{other:?} is no workload"),
    }
}

/// A workload in a cgroup, ended with its value.
struct Running {
    child: Child,
    // After the child.
    _cgroup: Cgroup,
}

impl Running {
    fn start(cgroup: Cgroup, what: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "workload", "--test-threads=1"])
            .env(WORKLOAD, what)
            .stdout(Stdio::null());
        cgroup.enter(&mut command);
        Self {
            child: command.spawn().unwrap(),
            _cgroup: cgroup,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends some bytes each 100 ms, with nothing else to wait for on the other side.
fn trickle() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(&[1; 8192]).is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    address
}

async fn ask(agent: &Agent, query: GpuQuery) -> (Vec<GpuDevice>, Vec<CudaCalls>) {
    let mut client = OrbitServiceClient::new(agent.channel());
    let mut stream = client.query_gpus(query).await.unwrap().into_inner();
    let (mut devices, mut calls) = (Vec::new(), Vec::new());
    while let Some(message) = stream.message().await.unwrap() {
        match message.part {
            Some(Part::Batch(batch)) => devices.extend(batch.devices),
            Some(Part::Cuda(batch)) => calls.extend(batch.calls),
            Some(Part::Summary(_)) | None => {}
        }
    }
    (devices, calls)
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.kubernetes = false;
    settings.gpu_dcgm_url = "".parse().unwrap();
    settings.gpu_nvml = NvmlLibrary::Off;
    settings.gpu_pod_resources = "".parse().unwrap();
    settings.gpu_interval = Duration::from_secs(1);
    settings
}

/// A cgroup1 directory, removed with its value.
struct Quota(PathBuf);

impl Drop for Quota {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What computes with a tenth of a CPU: by cgroup2, or where its controller is cgroup1's, by that.
fn with_quota(name: &str) -> (Running, Option<Quota>) {
    let root = support::cgroup::root().unwrap();
    let unified = fs::write(root.join("cgroup.subtree_control"), "+cpu").is_ok();
    let cgroup = Cgroup::new(name);
    if unified {
        fs::write(cgroup.path().join("cpu.max"), "10000 100000").unwrap();
        return (Running::start(cgroup, "busy"), None);
    }
    let beside = root.parent().unwrap();
    let quota = Quota(beside.join("cpu").join(cgroup.path().strip_prefix(root).unwrap()));
    fs::create_dir(&quota.0).unwrap();
    fs::write(quota.0.join("cpu.cfs_quota_us"), "10000").unwrap();
    let running = Running::start(cgroup, "busy");
    fs::write(quota.0.join("cgroup.procs"), running.child.id().to_string()).unwrap();
    (running, Some(quota))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_is_found() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir_in(".").unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let sender = trickle();
    let mut expected = vec![
        (
            "network",
            Running::start(Cgroup::new("gpu-net"), &format!("network={sender}")),
        ),
        (
            "disk",
            Running::start(Cgroup::new("gpu-disk"), &format!("disk={}", file("data"))),
        ),
        ("futex", Running::start(Cgroup::new("gpu-futex"), "futex")),
        (
            "unknown",
            Running::start(Cgroup::new("gpu-mix"), &format!("mix={}", file("none"))),
        ),
    ];
    let (throttled, _quota) = with_quota("gpu-quota");
    expected.push(("cpu_throttled", throttled));
    let devices = expected.iter().enumerate().map(|(number, (_, running))| Device {
        uuid: Some(format!("GPU-0000000{number}-1111-2222-3333-444444444444")),
        utilization: Some(Utilization { gpu: 0, memory: 0 }),
        memory: Some(Memory {
            total: 16 << 30,
            free: 12 << 30,
            used: 4 << 30,
            reserved: 0,
        }),
        compute: vec![Process {
            pid: running.child.id(),
            memory: Some(4 << 30),
            ..Process::default()
        }],
        samples: Some(Vec::new()),
        ..Device::default()
    });
    let library = Fake::new(&Config {
        devices: devices.collect(),
        ..Config::default()
    })
    .unwrap();
    let mut settings = settings();
    settings.syscall_mode = SyscallMode::Latency;
    settings.gpu_nvml = NvmlLibrary::At(library.library());
    let agent = Agent::start(&settings, Listen::InProcess).await.unwrap();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let query = GpuQuery {
        since: Some((SystemTime::now() - Duration::from_secs(8)).into()),
        idle: true,
        ..GpuQuery::default()
    };
    let (devices, _) = ask(&agent, query).await;
    agent.stop().await;
    assert_eq!(devices.len(), expected.len(), "{devices:#?}");
    for (device, (cause, _)) in devices.iter().zip(&expected) {
        let idle = device.holders[0].idle.as_ref().unwrap();
        println!("{cause}: {} ({})", idle.cause, idle.evidence);
        assert_eq!(idle.cause, *cause, "{idle:#?}");
        assert!(!idle.evidence.is_empty());
    }
    let network = devices[0].holders[0].idle.as_ref().unwrap();
    assert!(
        network.evidence.contains("recv") && network.evidence.contains(&format!(" from {sender}")),
        "without a pod's name, too: {}",
        network.evidence
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_the_cuda_libraries_are_told_by_owner() {
    if !can_run() {
        return;
    }
    let libraries = Libraries::compile();
    let cgroup = Cgroup::new("gpu-cuda");
    let mut settings = settings();
    settings.syscall_mode = SyscallMode::Off;
    settings.gpu_cuda = SyscallMode::Latency;
    let agent = Agent::start(&settings, Listen::InProcess).await.unwrap();
    let caller = libraries.start(
        &cgroup,
        &[&libraries.driver()],
        &["cuMemAlloc_v2:20:4096", "cuLaunchKernel:30"],
    );
    let end = Instant::now() + Duration::from_secs(20);
    // Attached once it has been looked at.
    tokio::time::sleep(Duration::from_secs(3)).await;
    caller.finish();
    let calls = loop {
        let (_, calls) = ask(&agent, GpuQuery::default()).await;
        let all: u64 = calls.iter().map(|row| row.count).sum();
        if all >= 50 || Instant::now() >= end {
            break calls;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    agent.stop().await;
    let row = |function: &str| {
        calls
            .iter()
            .find(|row| row.function == function)
            .unwrap_or_else(|| panic!("{function} is not among {calls:#?}"))
    };
    let (allocated, launched) = (row("cuMemAlloc_v2"), row("cuLaunchKernel"));
    assert_eq!((allocated.count, allocated.bytes), (20, Some(20 * 4096)));
    assert_eq!(
        (launched.count, launched.bytes, launched.errors),
        (30, None, Some(0))
    );
    assert!(launched.total_ns.is_some_and(|time| time > 0));
    let owner = launched.owner.as_ref().unwrap();
    assert!(owner.cgroup.contains("gpu-cuda"), "{owner:?}");
}
