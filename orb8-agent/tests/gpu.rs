//! GPUs from sources to answers: a real socket of a made-up kubelet, a real page of a made-up exporter, a library that is
//! loaded as NVIDIA's is, and processes of this machine.

use std::{
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use orb8_agent::{
    gpu::GpuAgent,
    settings::{NvmlLibrary, Settings},
};
use orb8_fake_dcgm::{EXAMPLE, Exporter, Page};
use orb8_fake_kubelet::{Behaviour, FakeKubelet};
use orb8_fake_nvml::{
    config::{Config, Device, Memory, Process, Utilization},
    install::Fake,
};
use orb8_gpu::kubelet::api::{ContainerDevices, ContainerResources, PodResources};
use orb8_proto::v1::{
    GpuDevice, GpuFilter, GpuMethod, GpuQuery, GpuSummary, State, orbit_service_client::OrbitServiceClient,
    query_gpus_response::Part,
};
use tonic::Code;

const L40S: &str = "GPU-5a1f2c3d-0000-4000-8000-000000000001";

/// Where nothing is.
fn nowhere() -> Settings {
    let mut settings = Settings::default();
    settings.gpu_dcgm_url = "".parse().unwrap();
    settings.gpu_nvml = NvmlLibrary::Off;
    settings.gpu_pod_resources = "".parse().unwrap();
    settings.gpu_interval = Duration::from_secs(1);
    settings
}

async fn ask(agent: &GpuAgent, query: GpuQuery) -> Result<(Vec<GpuDevice>, GpuSummary), tonic::Status> {
    let mut client = OrbitServiceClient::new(agent.channel());
    let mut stream = client.query_gpus(query).await?.into_inner();
    let (mut devices, mut summary) = (Vec::new(), None);
    while let Some(message) = stream.message().await? {
        match message.part {
            Some(Part::Batch(batch)) => devices.extend(batch.devices),
            Some(Part::Summary(last)) => summary = Some(last),
            Some(Part::Cuda(_)) | None => {}
        }
    }
    Ok((devices, summary.expect("each answer has a summary")))
}

/// The first answer that is as wanted, within some seconds.
async fn until(
    agent: &GpuAgent,
    mut is_wanted: impl FnMut(&[GpuDevice], &GpuSummary) -> bool,
) -> (Vec<GpuDevice>, GpuSummary) {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let (devices, summary) = ask(agent, GpuQuery::default()).await.unwrap();
        if is_wanted(&devices, &summary) {
            return (devices, summary);
        }
        assert!(Instant::now() < end, "{devices:#?} {summary:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn source(summary: &GpuSummary, name: &str) -> (State, String) {
    let found = summary.sources.iter().find(|source| source.name == name);
    let source = found.unwrap_or_else(|| panic!("{name} is not among {:?}", summary.sources));
    (source.state(), source.reason.clone())
}

fn pod(name: &str, resource: &str, ids: &[&str]) -> PodResources {
    PodResources {
        name: name.to_owned(),
        namespace: "ml".to_owned(),
        containers: vec![ContainerResources {
            name: "main".to_owned(),
            devices: vec![ContainerDevices {
                resource_name: resource.to_owned(),
                device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            }],
            dynamic_resources: Vec::new(),
        }],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_gpu_says_so_and_goes_on_looking() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = nowhere();
    settings.gpu_dcgm_url = "http://127.0.0.1:1/metrics".parse().unwrap();
    settings.gpu_nvml = NvmlLibrary::At(PathBuf::from("/nonexistent/libnvidia-ml.so.1"));
    let socket = directory.path().join("kubelet.sock");
    settings.gpu_pod_resources = socket.to_str().unwrap().parse().unwrap();
    let agent = GpuAgent::start(&settings);
    let asked = |summary: &GpuSummary| {
        summary
            .sources
            .iter()
            .all(|source| source.state() != State::Unspecified)
    };
    let (devices, summary) = until(&agent, |_, summary| asked(summary)).await;
    assert!(devices.is_empty());
    for name in ["dcgm", "nvml", "pod-resources"] {
        let (state, reason) = source(&summary, name);
        assert_eq!(state, State::Off, "{name}: {reason}");
        assert!(!reason.is_empty(), "{name}");
    }
    assert!(summary.ledger.is_empty() && summary.notes.is_empty());
    let error = ask(
        &agent,
        GpuQuery {
            filter: Some(GpuFilter {
                devices: vec![String::new()],
                ..GpuFilter::default()
            }),
            ..GpuQuery::default()
        },
    )
    .await
    .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("devices"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_and_the_kubelet_name_the_holder() {
    let exporter = Exporter::local(Page::Text(EXAMPLE.to_owned())).unwrap();
    let kubelet = FakeKubelet::start(Behaviour::Answer(vec![pod("now", "nvidia.com/gpu", &[L40S])])).unwrap();
    let mut settings = nowhere();
    settings.gpu_dcgm_url = exporter.url().parse().unwrap();
    settings.gpu_pod_resources = kubelet.socket().to_str().unwrap().parse().unwrap();
    let agent = GpuAgent::start(&settings);
    let (devices, summary) = until(&agent, |devices, _| {
        devices.iter().any(|device| {
            let first = device.holders.first();
            device.uuid == L40S && first.is_some_and(|holder| holder.utilization.is_some())
        })
    })
    .await;
    assert_eq!(source(&summary, "dcgm").0, State::Active);
    assert_eq!(source(&summary, "pod-resources").0, State::Active);
    // A GPU, one that is shared, and one with two instances: each once, whatever rows repeat it.
    assert_eq!(devices.len(), 5, "{devices:#?}");
    let device = devices.iter().find(|device| device.uuid == L40S).unwrap();
    let [holder] = device.holders.as_slice() else {
        panic!("{:?}", device.holders)
    };
    // The exporter's labels say ml/train-0.
    let owner = holder.owner.as_ref().unwrap();
    assert_eq!((owner.namespace.as_str(), owner.pod.as_str()), ("ml", "now"));
    assert_eq!(holder.method(), GpuMethod::Exclusive);
    assert_eq!(holder.utilization, Some(0.97));
    assert!(
        devices
            .iter()
            .all(|device| device.uuid == L40S || device.holders.is_empty()),
        "labels are hearsay"
    );

    // Of one pod alone.
    let (devices, _) = ask(
        &agent,
        GpuQuery {
            filter: Some(GpuFilter {
                pods: vec!["ml/now".to_owned()],
                ..GpuFilter::default()
            }),
            ..GpuQuery::default()
        },
    )
    .await
    .unwrap();
    assert_eq!(devices.len(), 1);

    // The exporter goes: its values are not those of now, and who holds the GPU still does.
    drop(exporter);
    let (devices, summary) = until(&agent, |_, summary| source(summary, "dcgm").0 == State::Failed).await;
    assert!(
        devices
            .iter()
            .any(|device| device.uuid == L40S && !device.holders.is_empty())
    );
    assert!(source(&summary, "dcgm").1.contains("does not answer"));
    let row = summary.ledger.iter().find(|row| row.stage == "sources").unwrap();
    assert!(row.lost >= 1 && !row.advice.is_empty(), "{row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_node_is_refused_and_said() {
    // The exporter's service led to another node's exporter.
    let exporter = Exporter::local(Page::Text(EXAMPLE.to_owned())).unwrap();
    let fake = Fake::new(&Config {
        devices: vec![Device {
            uuid: Some("GPU-0000".to_owned()),
            utilization: Some(Utilization { gpu: 50, memory: 0 }),
            ..Device::default()
        }],
        ..Config::default()
    })
    .unwrap();
    let mut settings = nowhere();
    settings.gpu_dcgm_url = exporter.url().parse().unwrap();
    settings.gpu_nvml = NvmlLibrary::At(fake.library());
    let agent = GpuAgent::start(&settings);
    let (devices, summary) = until(&agent, |devices, summary| {
        !devices.is_empty() && source(summary, "dcgm").0 == State::Failed
    })
    .await;
    let uuids: Vec<&str> = devices.iter().map(|device| device.uuid.as_str()).collect();
    assert_eq!(uuids, ["GPU-0000"]);
    let (_, reason) = source(&summary, "dcgm");
    for part in ["node-1", "3 GPUs", L40S, "gpu_dcgm_url"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    let row = summary.ledger.iter().find(|row| row.stage == "nodes").unwrap();
    assert!(row.lost >= 3 && row.advice.contains("gpu_dcgm_url"), "{row:?}");
    assert_eq!(source(&summary, "cuda").0, State::Off);

    // A page of several nodes: this node's part is taken.
    let own = "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",UUID=\"GPU-0000\",Hostname=\"exporter-a\"} 70\n";
    exporter.serve(vec![Page::Text(format!("{EXAMPLE}{own}"))]);
    let (_, summary) = until(&agent, |_, summary| source(summary, "dcgm").0 == State::Active).await;
    let note = summary.notes.iter().find(|note| note.contains("node-1"));
    assert!(note.is_some(), "{:?}", summary.notes);
}

/// A process that ends with the test.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_this_machine_are_named_by_their_cgroup() {
    let sleeper = Sleeper(Command::new("sleep").arg("60").spawn().unwrap());
    let pid = sleeper.0.id();
    let library = Fake::new(&Config {
        devices: vec![Device {
            uuid: Some(L40S.to_owned()),
            name: Some("NVIDIA L40S".to_owned()),
            utilization: Some(Utilization { gpu: 40, memory: 10 }),
            memory: Some(Memory {
                total: 48 << 30,
                free: 40 << 30,
                used: 8 << 30,
                reserved: 0,
            }),
            compute: vec![Process {
                pid,
                memory: Some(3 << 30),
                ..Process::default()
            }],
            samples: Some(Vec::new()),
            ..Device::default()
        }],
        ..Config::default()
    })
    .unwrap();
    let mut settings = nowhere();
    settings.gpu_nvml = NvmlLibrary::At(library.library());
    let agent = GpuAgent::start(&settings);
    let (devices, summary) = until(&agent, |devices, _| {
        devices.first().is_some_and(|device| !device.holders.is_empty())
    })
    .await;
    assert_eq!(source(&summary, "nvml").0, State::Active);
    let holder = &devices[0].holders[0];
    assert_eq!(holder.method(), GpuMethod::NvmlPid);
    assert_eq!(holder.pids, [pid]);
    assert_eq!(holder.memory_bytes, Some(3 << 30));
    let owner = holder.owner.as_ref().unwrap();
    assert!(
        !(owner.cgroup.is_empty() && owner.process.is_empty()),
        "{owner:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_is_sampled_again_and_again() {
    let library = Fake::new(&Config {
        devices: vec![Device {
            uuid: Some(L40S.to_owned()),
            utilization: Some(Utilization { gpu: 40, memory: 10 }),
            ..Device::default()
        }],
        ..Config::default()
    })
    .unwrap();
    let mut settings = nowhere();
    settings.gpu_nvml = NvmlLibrary::At(library.library());
    let agent = GpuAgent::start(&settings);
    until(&agent, |_, summary| {
        summary.sources.iter().any(|source| source.samples >= 3)
    })
    .await;
}
