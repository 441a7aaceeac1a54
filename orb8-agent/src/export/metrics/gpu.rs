//! Metrics of GPUs. Without one there are none but those of the sources.
//!
//! docs/GPU.md lists them beside the names of OpenTelemetry.

use std::fmt;

use orb8_proto::v1;
use prometheus_client::encoding::DescriptorEncoder;

use super::{MetricsSnapshot, Samples, add, counters, gauges};

/// Labels of a device.
const DEVICE: [&str; 3] = ["uuid", "mig_instance", "gpu"];
/// Labels of a holder's value.
const HOLDER: [&str; 7] = [
    "uuid",
    "mig_instance",
    "gpu",
    "namespace",
    "pod",
    "container",
    "method",
];
/// Holders of one device that have series of their own.
const MAX_HOLDERS: usize = 64;

/// One gauge of a device.
type Gauge = (&'static str, &'static str, fn(&v1::GpuReadings) -> Option<f64>);

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
const GAUGES: [Gauge; 9] = [
    (
        "orb8_gpu_utilization_ratio",
        "Share of the time that a kernel ran, 0 to 1",
        |r| r.utilization,
    ),
    (
        "orb8_gpu_memory_copy_ratio",
        "Share of the time that the device's memory was read or written, 0 to 1",
        |r| r.memory_copy,
    ),
    ("orb8_gpu_memory_used_bytes", "Device memory in use", |r| {
        r.memory_used_bytes.map(|bytes| bytes as f64)
    }),
    ("orb8_gpu_memory_free_bytes", "Device memory that is free", |r| {
        r.memory_free_bytes.map(|bytes| bytes as f64)
    }),
    ("orb8_gpu_memory_total_bytes", "Device memory", |r| {
        r.memory_total_bytes.map(|bytes| bytes as f64)
    }),
    ("orb8_gpu_temperature_celsius", "Temperature of the GPU", |r| {
        r.temperature_celsius
    }),
    ("orb8_gpu_power_watts", "Power drawn by the board", |r| {
        r.power_watts
    }),
    ("orb8_gpu_sm_clock_hertz", "Clock of the multiprocessors", |r| {
        r.sm_clock_hertz
    }),
    ("orb8_gpu_memory_clock_hertz", "Clock of the memory", |r| {
        r.memory_clock_hertz
    }),
];

/// A profiling field by name.
type Profiled = (&'static str, fn(&v1::GpuReadings) -> Option<f64>);

const PROFILE: [Profiled; 8] = [
    ("graphics_active", |r| r.graphics_active),
    ("sm_active", |r| r.sm_active),
    ("sm_occupancy", |r| r.sm_occupancy),
    ("tensor_active", |r| r.tensor_active),
    ("memory_active", |r| r.memory_active),
    ("fp64_active", |r| r.fp64_active),
    ("fp32_active", |r| r.fp32_active),
    ("fp16_active", |r| r.fp16_active),
];

fn labels(device: &v1::GpuDevice) -> [String; 3] {
    [
        device.uuid.clone(),
        device
            .mig
            .as_ref()
            .map(|mig| mig.instance.to_string())
            .unwrap_or_default(),
        device.index.map(|index| index.to_string()).unwrap_or_default(),
    ]
}

fn with<const M: usize>(device: &v1::GpuDevice, more: [String; M]) -> Vec<String> {
    labels(device).into_iter().chain(more).collect()
}

fn array<const N: usize>(labels: Vec<String>) -> [String; N] {
    labels
        .try_into()
        .unwrap_or_else(|_| std::array::from_fn(|_| String::new()))
}

pub(super) fn encode(snapshot: &MetricsSnapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let up: Samples<1, u64> = snapshot
        .gpu_sources
        .iter()
        // One that is not asked does not fail to answer.
        .filter(|source| source.name != "cuda" || source.state() != v1::State::Off)
        .map(|source| {
            let up = u64::from(source.state() == v1::State::Active);
            ([source.name.clone()], up)
        })
        .collect();
    if !up.is_empty() {
        let help = "Whether a source of GPU readings answered when it was asked last";
        gauges(encoder, "orb8_gpu_source_up", help, ["source"], &up)?;
    }
    cuda(snapshot, encoder)?;
    if snapshot.gpus.is_empty() {
        return Ok(());
    }
    info(snapshot, encoder)?;
    for (name, help, read) in GAUGES {
        let mut samples = Samples::new();
        for (device, _) in &snapshot.gpus {
            if let Some(value) = device.readings.as_ref().and_then(read) {
                samples.insert(labels(device), value);
            }
        }
        gauges(encoder, name, help, DEVICE, &samples)?;
    }
    let mut profile: Samples<4, f64> = Samples::new();
    for (device, _) in &snapshot.gpus {
        for (field, read) in PROFILE {
            if let Some(value) = device.readings.as_ref().and_then(read) {
                profile.insert(array(with(device, [field.to_owned()])), value);
            }
        }
    }
    let help = "Profiling counters: shares of the time or of the peak, 0 to 1";
    gauges(
        encoder,
        "orb8_gpu_profile_ratio",
        help,
        ["uuid", "mig_instance", "gpu", "field"],
        &profile,
    )?;
    totals(snapshot, encoder)?;
    errors(snapshot, encoder)?;
    holders(snapshot, encoder)
}

fn info(snapshot: &MetricsSnapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut info: Samples<7, u64> = Samples::new();
    for (device, _) in &snapshot.gpus {
        let profile = device.mig.as_ref().map(|mig| mig.profile.clone());
        let more = [
            device.model.clone(),
            device.driver.clone(),
            device.pci.clone(),
            profile.unwrap_or_default(),
        ];
        info.insert(array(with(device, more)), 1);
    }
    let labels = [
        "uuid",
        "mig_instance",
        "gpu",
        "model",
        "driver",
        "pci",
        "mig_profile",
    ];
    gauges(
        encoder,
        "orb8_gpu_info",
        "A GPU or an instance of one",
        labels,
        &info,
    )
}

fn totals(snapshot: &MetricsSnapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut energy = Samples::new();
    let mut nvlink = Samples::new();
    let (mut pcie, mut ecc): (Samples<4, f64>, Samples<4, f64>) = (Samples::new(), Samples::new());
    for (device, totals) in &snapshot.gpus {
        if let Some(joules) = totals.energy {
            energy.insert(labels(device), joules);
        }
        if let Some(bytes) = totals.nvlink {
            nvlink.insert(labels(device), bytes);
        }
        for (direction, bytes) in [("transmit", totals.pcie_tx), ("receive", totals.pcie_rx)] {
            if let Some(bytes) = bytes {
                pcie.insert(array(with(device, [direction.to_owned()])), bytes);
            }
        }
        for (kind, count) in [
            ("corrected", totals.ecc_corrected),
            ("uncorrected", totals.ecc_uncorrected),
        ] {
            if let Some(count) = count {
                ecc.insert(array(with(device, [kind.to_owned()])), count);
            }
        }
    }
    let help = "Energy that the board took since the agent's start";
    counters(encoder, "orb8_gpu_energy_joules", help, DEVICE, &energy)?;
    let help = "Bytes over NVLink, both directions, since the agent's start";
    counters(encoder, "orb8_gpu_nvlink_bytes", help, DEVICE, &nvlink)?;
    let help = "Bytes over PCIe since the agent's start, by direction seen from the GPU";
    let labels = ["uuid", "mig_instance", "gpu", "direction"];
    counters(encoder, "orb8_gpu_pcie_bytes", help, labels, &pcie)?;
    let help = "Memory errors (ECC) since the agent's start";
    let labels = ["uuid", "mig_instance", "gpu", "kind"];
    counters(encoder, "orb8_gpu_ecc_errors", help, labels, &ecc)
}

fn errors(snapshot: &MetricsSnapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut errors: Samples<2, u64> = Samples::new();
    for (uuid, xid, count) in &snapshot.gpu_errors {
        add(&mut errors, [uuid.clone(), xid.to_string()], *count);
    }
    let help = "XID errors that the driver reported, by number";
    counters(encoder, "orb8_gpu_xid_errors", help, ["uuid", "xid"], &errors)
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
fn holders(snapshot: &MetricsSnapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut info: Samples<7, u64> = Samples::new();
    let (mut utilization, mut memory): (Samples<7, f64>, Samples<7, f64>) = (Samples::new(), Samples::new());
    for (device, _) in &snapshot.gpus {
        for holder in device.holders.iter().take(MAX_HOLDERS) {
            let owner = holder.owner.clone().unwrap_or_default();
            let name = name(&owner);
            let more = [
                owner.namespace,
                name,
                owner.container,
                method(holder.method()).to_owned(),
            ];
            let labels: [String; 7] = array(with(device, more));
            info.insert(labels.clone(), 1);
            if let Some(share) = holder.utilization {
                *utilization.entry(labels.clone()).or_default() += share;
            }
            if let Some(bytes) = holder.memory_bytes {
                *memory.entry(labels).or_default() += bytes as f64;
            }
        }
    }
    let help = "Who holds or uses a device, and how its share is known";
    gauges(encoder, "orb8_gpu_holder_info", help, HOLDER, &info)?;
    let help = "A holder's part in the device's utilization; absent: not known";
    gauges(
        encoder,
        "orb8_gpu_holder_utilization_ratio",
        help,
        HOLDER,
        &utilization,
    )?;
    let help = "A holder's part in the device's memory; absent: not known";
    gauges(encoder, "orb8_gpu_holder_memory_bytes", help, HOLDER, &memory)
}

/// A pod's name; of what is no pod's, its unit or process.
fn name(owner: &v1::Endpoint) -> String {
    match owner.pod.as_str() {
        "" if !owner.unit.is_empty() => owner.unit.clone(),
        "" => owner.process.clone(),
        pod => pod.to_owned(),
    }
}

fn cuda(snapshot: &MetricsSnapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if snapshot.cuda.is_empty() && snapshot.cuda_held.is_empty() {
        return Ok(());
    }
    let (mut calls, mut bytes): (Samples<5, u64>, Samples<5, u64>) = (Samples::new(), Samples::new());
    let mut errors: Samples<5, u64> = Samples::new();
    for row in &snapshot.cuda {
        let owner = row.owner.clone().unwrap_or_default();
        let labels = [
            owner.namespace.clone(),
            name(&owner),
            owner.container,
            row.library.clone(),
            row.function.clone(),
        ];
        add(&mut calls, labels.clone(), row.count);
        if let Some(more) = row.bytes {
            add(&mut bytes, labels.clone(), more);
        }
        if let Some(more) = row.errors {
            add(&mut errors, labels, more);
        }
    }
    const LABELS: [&str; 5] = ["namespace", "pod", "container", "library", "function"];
    let help = "Calls of the CUDA libraries; one that another traced call makes counts once";
    counters(encoder, "orb8_gpu_cuda_calls", help, LABELS, &calls)?;
    let help = "Calls of the CUDA libraries that failed, while the mode was latency";
    counters(encoder, "orb8_gpu_cuda_errors", help, LABELS, &errors)?;
    let help = "Bytes of allocations that succeeded, and of copies";
    counters(encoder, "orb8_gpu_cuda_bytes", help, LABELS, &bytes)?;
    let mut held: Samples<3, u64> = Samples::new();
    for (owner, bytes) in &snapshot.cuda_held {
        let labels = [owner.namespace.clone(), name(owner), owner.container.clone()];
        add(&mut held, labels, *bytes);
    }
    let help = "Device memory that processes hold, as far as it was seen allocated";
    gauges(
        encoder,
        "orb8_gpu_cuda_held_bytes",
        help,
        ["namespace", "pod", "container"],
        &held,
    )
}

const fn method(method: v1::GpuMethod) -> &'static str {
    match method {
        v1::GpuMethod::Unspecified => "unknown",
        v1::GpuMethod::Exclusive => "exclusive",
        v1::GpuMethod::Mig => "mig",
        v1::GpuMethod::NvmlPid => "nvml_pid",
        v1::GpuMethod::SharedEstimate => "shared_estimate",
        v1::GpuMethod::AllocatedIdle => "allocated_idle",
        v1::GpuMethod::UnallocatedUse => "unallocated_use",
    }
}
