//! Made-up GPUs in the shapes that real nodes have, the same ones each time.

use orb8_proto::v1::{
    Attribution, CudaBatch, CudaCalls, Endpoint, EndpointKind, GpuBatch, GpuDevice, GpuEvent, GpuHolder,
    GpuIdle, GpuMethod, GpuMig, GpuQuery, GpuReadings, GpuSource, GpuSummary, GpuWait, LedgerRow, NodeAnswer,
    NodeState, QueryGpusResponse, State, query_gpus_response::Part, stream_events_response::Event,
};
use prost_types::Duration;
use tonic::Status;

use super::{START, Story, at, node};

const A100: &str = "GPU-5fd4f087-86f3-7a43-b711-4771313afc50";
const PARTITIONED: &str = "GPU-b1028956-cfa2-0990-bf4a-5da9abb51763";

/// Seconds between samples.
const SAMPLING: i64 = 5;

fn lasting(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn pod(name: &str, container: &str, workload: &str) -> Endpoint {
    Endpoint {
        kind: EndpointKind::Pod.into(),
        namespace: "ml".into(),
        pod: name.into(),
        container: container.into(),
        workload: workload.into(),
        attribution: Attribution::Cgroup.into(),
        ..Endpoint::default()
    }
}

fn holder(owner: Endpoint, method: GpuMethod, id: &str) -> GpuHolder {
    GpuHolder {
        owner: Some(owner),
        method: method.into(),
        device_ids: vec![id.into()],
        resource: "nvidia.com/gpu".into(),
        since: at(START - 7200, 0),
        ..GpuHolder::default()
    }
}

fn device(index: u32, uuid: &str, model: &str, readings: GpuReadings) -> GpuDevice {
    GpuDevice {
        node: "n1".into(),
        uuid: uuid.into(),
        index: Some(index),
        model: model.into(),
        driver: "550.90.07".into(),
        pci: format!("00000000:{:02X}:00.0", index + 7),
        readings: Some(readings),
        sources: vec!["dcgm".into()],
        samples: 1,
        last: at(START - 2, 0),
        ..GpuDevice::default()
    }
}

fn readings(utilization: Option<f64>, used: u64, total: u64, temperature: f64, power: f64) -> GpuReadings {
    GpuReadings {
        utilization,
        memory_used_bytes: Some(used),
        memory_free_bytes: Some(total - used),
        memory_total_bytes: Some(total),
        temperature_celsius: Some(temperature),
        power_watts: Some(power),
        ..GpuReadings::default()
    }
}

/// One container alone, told by two sources, and measured in all that there is.
fn exclusive(wave: f64) -> GpuDevice {
    let base = readings(Some(wave), 61 << 30, 80 << 30, 64.0, 312.4);
    GpuDevice {
        sources: vec!["dcgm".into(), "nvml".into()],
        samples: 2,
        holders: vec![GpuHolder {
            utilization: Some(wave),
            memory_bytes: Some(61 << 30),
            energy_joules: Some(1562.5),
            pids: vec![4711, 4712],
            ..holder(pod("train-0", "trainer", "Job/train"), GpuMethod::Exclusive, A100)
        }],
        ..device(
            0,
            A100,
            "NVIDIA A100-SXM4-80GB",
            GpuReadings {
                memory_copy: Some(0.42),
                energy_joules: Some(1562.5),
                sm_clock_hertz: Some(1.41e9),
                memory_clock_hertz: Some(1.593e9),
                pcie_tx_bytes: Some(3 << 30),
                pcie_rx_bytes: Some(9 << 30),
                xid: Some(0),
                sm_active: Some(0.87),
                tensor_active: Some(0.55),
                other: [("DCGM_FI_DEV_ROW_REMAP_FAILURE".to_owned(), 0.0)].into(),
                ..base
            },
        )
    }
}

/// A GPU in three instances, two of which are held.
fn partitioned() -> Vec<GpuDevice> {
    let instance = |instance, profile: &str, readings, holders| GpuDevice {
        mig: Some(GpuMig {
            instance,
            uuid: format!("MIG-41b35f2a-61dd-5bf8-8a1e-3b2d7c5a9f{instance:02}"),
            profile: profile.into(),
        }),
        holders,
        pci: String::new(),
        ..device(1, PARTITIONED, "NVIDIA A100-SXM4-80GB", readings)
    };
    let memory = |used: u64, total: u64| GpuReadings {
        memory_used_bytes: Some(used),
        memory_total_bytes: Some(total),
        ..GpuReadings::default()
    };
    let notebook = GpuHolder {
        memory_bytes: Some(7 << 30),
        resource: "nvidia.com/mig-1g.10gb".into(),
        ..holder(
            pod("notebook-7d9f8b6c5d-x2x4k", "jupyter", "Deployment/notebook"),
            GpuMethod::Mig,
            "MIG-41b35f2a-61dd-5bf8-8a1e-3b2d7c5a9f07",
        )
    };
    let infer = GpuHolder {
        utilization: Some(0.0),
        memory_bytes: Some(31 << 30),
        resource: "nvidia.com/mig-3g.40gb".into(),
        ..holder(
            pod("infer-0", "server", "StatefulSet/infer"),
            GpuMethod::AllocatedIdle,
            "MIG-41b35f2a-61dd-5bf8-8a1e-3b2d7c5a9f02",
        )
    };
    let idle = GpuReadings {
        utilization: Some(0.0),
        ..memory(31 << 30, 40 << 30)
    };
    vec![
        // In no order: who shows them brings them in order.
        instance(7, "1g.10gb", memory(7 << 30, 10 << 30), vec![notebook]),
        instance(2, "3g.40gb", idle, vec![infer]),
        instance(13, "1g.10gb", memory(12 << 20, 10 << 30), Vec::new()),
        device(
            1,
            PARTITIONED,
            "NVIDIA A100-SXM4-80GB",
            readings(None, 38 << 30, 80 << 30, 48.0, 121.0),
        ),
    ]
}

/// Replicas of one GPU, and nobody measures processes.
fn time_sliced() -> GpuDevice {
    let uuid = "GPU-0b3a7c1e-9d52-4f60-8a35-6c1f0e9d2b41";
    let of = |name: &str, replica: u32| {
        holder(
            pod(name, "server", "Deployment/embed"),
            GpuMethod::SharedEstimate,
            &format!("{uuid}::{replica}"),
        )
    };
    GpuDevice {
        holders: vec![of("embed-6b8f9c7d4-q8zjw", 0), of("embed-6b8f9c7d4-zz2lp", 1)],
        ..device(
            2,
            uuid,
            "Tesla T4",
            readings(Some(0.77), 9 << 30, 16 << 30, 71.0, 68.0),
        )
    }
}

/// Two clients of an MPS server, measured at their processes.
fn mps() -> GpuDevice {
    let uuid = "GPU-77d1a0c4-2b8e-4f3d-9c6a-1e5b8d7f0a23";
    let of = |name: &str, pid, utilization, memory_bytes, replica: u32| GpuHolder {
        utilization,
        memory_bytes,
        pids: vec![pid],
        resource: "nvidia.com/gpu.shared".into(),
        ..holder(
            pod(name, "worker", "Deployment/rank"),
            GpuMethod::NvmlPid,
            &format!("{uuid}::{replica}"),
        )
    };
    GpuDevice {
        sources: vec!["nvml".into()],
        holders: vec![
            of("rank-5c6d7-aaaaa", 9001, Some(0.31), Some(4 << 30), 0),
            of("rank-5c6d7-bbbbb", 9002, Some(0.12), Some(2 << 30), 1),
        ],
        ..device(
            3,
            uuid,
            "NVIDIA L4",
            readings(Some(0.45), 7 << 30, 24 << 30, 55.0, 43.5),
        )
    }
}

/// Given out by dynamic resource allocation.
fn claimed() -> GpuDevice {
    let uuid = "GPU-9e4b2d6f-5a1c-4d78-b3e0-8f7a6c5d4e32";
    GpuDevice {
        holders: vec![GpuHolder {
            utilization: Some(0.999),
            resource: "gpu.nvidia.com".into(),
            claim: "ml/sweep-gpu".into(),
            ..holder(pod("sweep-3", "main", "Job/sweep"), GpuMethod::Exclusive, "gpu-4")
        }],
        ..device(
            4,
            uuid,
            "NVIDIA H100 80GB HBM3",
            readings(Some(0.999), 79 << 30, 80 << 30, 77.0, 698.0),
        )
    }
}

/// Used by what is no pod's, and held by nobody.
fn no_pod() -> GpuDevice {
    let uuid = "GPU-2c7e9a1b-4d3f-4b86-a5c9-0d8e7f6a5b14";
    let llama = Endpoint {
        kind: EndpointKind::Process.into(),
        unit: "llama.service".into(),
        process: "llama-server".into(),
        pid: 777,
        cgroup: "/system.slice/llama.service".into(),
        attribution: Attribution::Cgroup.into(),
        ..Endpoint::default()
    };
    let nameless = Endpoint {
        kind: EndpointKind::Process.into(),
        process: "py\x1b[31mthon\u{202e}\n".into(),
        pid: 778,
        ..Endpoint::default()
    };
    let of = |owner: Endpoint, memory_bytes| GpuHolder {
        pids: vec![owner.pid],
        owner: Some(owner),
        method: GpuMethod::UnallocatedUse.into(),
        memory_bytes,
        ..GpuHolder::default()
    };
    GpuDevice {
        sources: vec!["nvml".into()],
        holders: vec![of(llama, Some(11 << 30)), of(nameless, None)],
        ..device(
            5,
            uuid,
            "NVIDIA A10",
            readings(Some(0.08), 12 << 30, 24 << 30, 39.0, 61.0),
        )
    }
}

/// Held by a pod that is gone, then by another that does nothing.
fn handed_over() -> GpuDevice {
    let uuid = "GPU-d8f5c3a2-1e6b-4c97-8d0f-7b9a2e4c6d85";
    let gone = GpuHolder {
        utilization: Some(0.5),
        since: at(START - 3600, 0),
        until: at(START - 1800, 0),
        ..holder(pod("eval-q7w2k", "eval", "Job/eval"), GpuMethod::Exclusive, uuid)
    };
    let now = GpuHolder {
        utilization: Some(0.0),
        memory_bytes: Some(512 << 20),
        since: at(START - 1795, 0),
        ..holder(
            pod("eval-z9m4c", "eval", "Job/eval"),
            GpuMethod::AllocatedIdle,
            uuid,
        )
    };
    GpuDevice {
        holders: vec![gone, now],
        ..device(
            6,
            uuid,
            "NVIDIA A10",
            readings(Some(0.0), 512 << 20, 24 << 30, 33.0, 19.0),
        )
    }
}

/// Held by a pod and by others, that a server does not show to who asks; so it tells nothing of what the device did.
fn beside_hidden() -> GpuDevice {
    let uuid = "GPU-4a6c8e0f-1b3d-4e5f-8a7b-9c0d1e2f3a4b";
    let shared = holder(
        pod("chat-0", "server", "StatefulSet/chat"),
        GpuMethod::SharedEstimate,
        &format!("{uuid}::1"),
    );
    GpuDevice {
        holders: vec![shared],
        hidden_holders: 2,
        readings: None,
        ..device(8, uuid, "NVIDIA L40S", GpuReadings::default())
    }
}

/// Nobody's, of which hardly anything is known.
fn unknown() -> GpuDevice {
    GpuDevice {
        index: None,
        pci: String::new(),
        driver: String::new(),
        ..device(
            7,
            "GPU-f0e1d2c3-b4a5-4968-8778-695a4b3c2d1e",
            "",
            GpuReadings {
                temperature_celsius: Some(30.0),
                ..GpuReadings::default()
            },
        )
    }
}

fn devices(story: Story, now: i64) -> Vec<GpuDevice> {
    match story {
        Story::ClusterOne | Story::Server => {
            let mut all = vec![
                unknown(),
                handed_over(),
                no_pod(),
                claimed(),
                mps(),
                time_sliced(),
            ];
            all.extend(partitioned());
            all.push(exclusive(0.91));
            if story == Story::Server {
                all.push(beside_hidden());
            }
            all
        }
        // One that was lost, and one that is not read any more.
        Story::Lossy => vec![
            GpuDevice {
                holders: vec![holder(
                    pod("train-0", "trainer", "Job/train"),
                    GpuMethod::Exclusive,
                    A100,
                )],
                readings: None,
                trouble: "GPU is lost (NVML_ERROR_GPU_IS_LOST): drain the node, and restart it".into(),
                ..exclusive(0.0)
            },
            GpuDevice {
                last: at(START - 90, 0),
                ..time_sliced()
            },
        ],
        Story::Live | Story::Ticking => {
            let wave = (now % 20) as f64 / 20.0;
            vec![exclusive(wave), time_sliced(), handed_over()]
        }
        Story::Clean | Story::Broken | Story::ClusterTwo => Vec::new(),
    }
}

/// What the holders did while their devices did nothing, over the last hour.
fn idle(device: &mut GpuDevice) {
    let wait = |class: &str, seconds, share| GpuWait {
        class: class.into(),
        time: lasting(seconds),
        share,
        peer: None,
    };
    let found = |held, idle, unknown, cause: &str, evidence: &str, waits| GpuIdle {
        held: lasting(held),
        idle: lasting(idle),
        unknown: lasting(unknown),
        cause: cause.into(),
        evidence: evidence.into(),
        waits,
    };
    for holder in &mut device.holders {
        let name = holder.owner.as_ref().map_or("", |owner| &owner.pod);
        holder.idle = match name {
            "train-0" => Some(found(
                3600,
                330,
                0,
                "network",
                "62 % of idle time in recv from 10.0.3.7:9000 minio/data-2, 4 % retransmits",
                vec![wait("network", 205, 0.62), wait("futex", 40, 0.12)],
            )),
            "infer-0" => Some(found(
                3600,
                3600,
                0,
                "sleep",
                "99 % of idle time in epoll_wait without a request",
                vec![wait("sleep", 3564, 0.99)],
            )),
            "embed-6b8f9c7d4-q8zjw" => Some(found(
                3600,
                900,
                120,
                "cpu_throttled",
                "its CPU quota stopped it for 71 % of idle time (cpu.stat)",
                vec![wait("cpu_throttled", 639, 0.71)],
            )),
            "embed-6b8f9c7d4-zz2lp" => Some(found(3600, 840, 120, "unknown", "", Vec::new())),
            "eval-q7w2k" => Some(found(
                1800,
                900,
                0,
                "disk",
                "54 % of idle time in reads of files",
                vec![wait("disk", 486, 0.54)],
            )),
            "eval-z9m4c" => Some(found(1795, 0, 1795, "", "", Vec::new())),
            "chat-0" => Some(GpuIdle {
                idle: None,
                ..found(
                    3600,
                    0,
                    3600,
                    "unknown",
                    "not told: others held the device at the same time",
                    Vec::new(),
                )
            }),
            _ => None,
        };
    }
    device.holders.retain(|holder| holder.idle.is_some());
}

fn calls(story: Story) -> Vec<CudaCalls> {
    if !matches!(story, Story::ClusterOne | Story::Server) {
        return Vec::new();
    }
    let row = |function: &str, library: &str, count, errors, bytes, total_ns| CudaCalls {
        node: "n1".into(),
        owner: Some(pod("train-0", "trainer", "Job/train")),
        function: function.into(),
        library: library.into(),
        count,
        errors,
        bytes,
        total_ns,
    };
    vec![
        row(
            "cuMemAlloc_v2",
            "libcuda",
            4211,
            Some(3),
            Some(61 << 30),
            Some(98_000_000),
        ),
        row(
            "cuLaunchKernel",
            "libcuda",
            1_834_220,
            Some(0),
            None,
            Some(9_400_000_000),
        ),
        row(
            "cudaMemcpyAsync",
            "libcudart",
            22_140,
            None,
            Some(740 << 30),
            None,
        ),
        CudaCalls {
            owner: Some(pod("notebook-7d9f8b6c5d-x2x4k", "jupyter", "Deployment/notebook")),
            ..row("cudaFree", "libcudart", 12, None, None, None)
        },
    ]
}

fn sources(story: Story) -> Vec<GpuSource> {
    let source = |name: &str, state: State, address: &str, reason: &str| GpuSource {
        name: name.into(),
        state: state.into(),
        reason: reason.into(),
        address: address.into(),
        last: if state == State::Active {
            at(START - 2, 0)
        } else {
            None
        },
        samples: u64::from(state == State::Active) * 720,
        failures: u64::from(state == State::Failed),
    };
    use State as S;
    let socket = "/var/lib/kubelet/pod-resources/kubelet.sock";
    let (dcgm, nvml) = ("http://localhost:9400/metrics", "libnvidia-ml.so.1");
    if devices(story, START).is_empty() {
        return vec![
            source("dcgm", S::Off, dcgm, "connection refused"),
            source("nvml", S::Off, nvml, "no such library"),
            source("pod-resources", S::Off, socket, "no such file"),
            source(
                "cuda",
                S::Off,
                "",
                "off is the default; ORB8_CUDA=counts switches it on",
            ),
        ];
    }
    let dcgm = if story == Story::Lossy {
        source("dcgm", S::Failed, dcgm, "500 Internal Server Error")
    } else {
        source("dcgm", S::Active, dcgm, "")
    };
    vec![
        dcgm,
        source("nvml", S::Active, nvml, ""),
        source("pod-resources", S::Active, socket, ""),
        source("cuda", S::Active, "", ""),
    ]
}

fn matches(device: &GpuDevice, query: &GpuQuery) -> bool {
    let filter = query.filter.clone().unwrap_or_default();
    let is_named = filter.devices.is_empty()
        || filter.devices.iter().any(|named| {
            let uuid = device.uuid.to_ascii_lowercase();
            device.index.map(|index| index.to_string()).as_ref() == Some(named)
                || named.contains('-') && uuid.starts_with(&named.to_ascii_lowercase())
        });
    let owners = filter.namespaces.is_empty() && filter.pods.is_empty() && filter.workloads.is_empty();
    is_named
        && (owners
            || device.holders.iter().any(|holder| {
                let owner = holder.owner.clone().unwrap_or_default();
                (filter.namespaces.is_empty() || filter.namespaces.contains(&owner.namespace))
                    && (filter.pods.is_empty()
                        || filter
                            .pods
                            .iter()
                            .any(|pod| format!("{}/{}", owner.namespace, owner.pod).contains(pod.as_str())))
                    && (filter.workloads.is_empty() || filter.workloads.contains(&owner.workload))
            }))
}

/// The answer, part by part.
///
/// # Errors
/// If the span is shorter than samples are apart.
pub fn answer(story: Story, query: &GpuQuery, now: i64) -> Result<Vec<QueryGpusResponse>, Status> {
    let to = query.until.map_or(now, |until| until.seconds);
    // Ages are counted by the clock of who asks, which this agent does not share.
    let short = query
        .since
        .zip(query.until)
        .is_some_and(|(since, until)| until.seconds - since.seconds < SAMPLING);
    if short {
        return Err(Status::invalid_argument(format!(
            "the span is shorter than the {SAMPLING} s between samples: ask for a longer one"
        )));
    }
    let mut found = devices(story, now);
    found.retain(|device| matches(device, query));
    if query.idle {
        found.iter_mut().for_each(idle);
        found.retain(|device| !device.holders.is_empty());
    } else if query.since.is_none() {
        // Of the last sample alone, who is gone is not told.
        for device in &mut found {
            device.holders.retain(|holder| holder.until.is_none());
        }
    }
    let from = query.since.and_then(|_| at(to - 3600, 0)).or_else(|| at(to, 0));
    let mut parts: Vec<Part> = found
        .chunks(4)
        .map(|devices| {
            Part::Batch(GpuBatch {
                devices: devices.to_vec(),
            })
        })
        .collect();
    let calls = calls(story);
    if !calls.is_empty() && !query.idle {
        parts.push(Part::Cuda(CudaBatch { calls }));
    }
    let lost = if story == Story::Lossy { 7 } else { 0 };
    let ledger = LedgerRow {
        family: "gpu".into(),
        stage: "dcgm".into(),
        unit: "values".into(),
        seen: 720,
        counted: 720 - lost,
        lost,
        ..LedgerRow::default()
    };
    let own = GpuSummary {
        node: node(story).into(),
        from,
        to: at(to, 0),
        sources: sources(story),
        sampling: lasting(SAMPLING),
        ledger: vec![ledger],
        ..GpuSummary::default()
    };
    parts.push(Part::Summary(if story == Story::Server {
        GpuSummary {
            sources: Vec::new(),
            ledger: Vec::new(),
            nodes: nodes(&own),
            ..own
        }
    } else {
        own
    }));
    Ok(parts
        .into_iter()
        .map(|part| QueryGpusResponse { part: Some(part) })
        .collect())
}

/// What a server says of its nodes: three answered, of which two have no GPU; one broke off, one is away.
fn nodes(summary: &GpuSummary) -> Vec<NodeAnswer> {
    let node = |name: &str, state: NodeState, reason: &str, notes: &[&str]| NodeAnswer {
        name: name.into(),
        state: state.into(),
        reason: reason.into(),
        from: summary.from,
        to: summary.to,
        notes: notes.iter().map(|&note| note.to_owned()).collect(),
        ..NodeAnswer::default()
    };
    let none = ["no source of GPU readings"];
    vec![
        node("n1", NodeState::Answered, "", &[]),
        node("n2", NodeState::Answered, "", &none),
        node("n3", NodeState::Answered, "", &none),
        node(
            "n4",
            NodeState::Partial,
            "its answer broke off after 2 devices: shutting down",
            &[],
        ),
        node(
            "n5",
            NodeState::Unreachable,
            "Connection refused (os error 111)",
            &[],
        ),
    ]
}

/// Errors of the driver.
pub fn events() -> Vec<Event> {
    let event = |seconds, index, uuid: &str, xid, meaning: &str, holders| {
        Event::Gpu(GpuEvent {
            time: at(seconds, 250_000_000),
            node: "n1".into(),
            uuid: uuid.into(),
            index,
            xid,
            meaning: meaning.into(),
            holders,
            ..GpuEvent::default()
        })
    };
    let notebook = partitioned().swap_remove(0);
    vec![
        event(
            START,
            Some(0),
            A100,
            79,
            "GPU has fallen off the bus",
            exclusive(0.0).holders,
        ),
        Event::Gpu(GpuEvent {
            time: at(START + 1, 0),
            node: "n1".into(),
            uuid: PARTITIONED.into(),
            index: Some(1),
            mig: notebook.mig,
            xid: 43,
            meaning: "GPU stopped processing".into(),
            holders: notebook.holders,
            hidden_holders: 0,
        }),
        event(
            START + 2,
            None,
            "GPU-f0e1d2c3-b4a5-4968-8778-695a4b3c2d1e",
            9999,
            "",
            Vec::new(),
        ),
    ]
}
