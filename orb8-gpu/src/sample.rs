//! What a source says of the devices at one moment.

use std::{collections::BTreeMap, time::SystemTime};

use crate::id::{DeviceKey, Uuid};

/// Where readings come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A scrape of dcgm-exporter.
    Dcgm,
    /// NVIDIA's management library.
    Nvml,
}

impl Source {
    /// Its name in answers: `dcgm` or `nvml`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dcgm => "dcgm",
            Self::Nvml => "nvml",
        }
    }
}

/// All devices as one source saw them at one moment, each once.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Of whom.
    pub source: Source,
    /// When.
    pub time: SystemTime,
    /// In no order.
    pub devices: Vec<Device>,
    /// Values that were told and could not be used: unreadable, contradicting another row, or of no device.
    pub rejected: u64,
    /// What was wrong with the first of them, for the log.
    pub first_rejected: Option<String>,
    /// Devices that are there and could not be read, not even their names: which, and why. They are among the rejected.
    pub unnamed: Vec<String>,
}

/// A device at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Which.
    pub key: DeviceKey,
    /// The driver's number of the whole GPU.
    pub index: Option<u32>,
    /// Number of the whole GPU's device node, `/dev/nvidiaN`: mostly, but not always, the index.
    pub minor: Option<u32>,
    /// Product name.
    pub model: Option<String>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// PCI bus id.
    pub pci: Option<String>,
    /// Where an exporter says it is: the node's name, or the exporter's own, or another.
    pub host: Option<String>,
    /// Of an instance.
    pub mig: Option<Mig>,
    /// What it does.
    pub readings: Readings,
    /// Its processes; none: the source can't tell. An empty list: it has none.
    pub processes: Option<Vec<Process>>,
    /// Whose it is, as an exporter's labels claim: maybe of the past, or of one of several.
    pub claims: Vec<Claim>,
    /// Why it could not be read: a lost GPU.
    pub trouble: Option<String>,
}

impl Device {
    /// A device that nothing is known of.
    #[must_use]
    pub const fn new(key: DeviceKey) -> Self {
        Self {
            key,
            index: None,
            minor: None,
            model: None,
            driver: None,
            pci: None,
            host: None,
            mig: None,
            readings: Readings::NONE,
            processes: None,
            claims: Vec::new(),
            trouble: None,
        }
    }
}

/// What is known of an instance besides its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mig {
    /// `MIG-…`.
    pub uuid: Option<Uuid>,
    /// Such as `1g.10gb`.
    pub profile: Option<String>,
    /// UUIDs of further compute instances in it. They share its memory and are not told apart: whoever holds one of them
    /// holds a part of the instance.
    pub others: Vec<Uuid>,
    /// Where it lies.
    pub place: Option<Place>,
    /// Places of its compute instances among the MIG devices of the GPU, as NVML counts them.
    pub slots: Vec<u32>,
}

/// What tells an instance from all others that a GPU can be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of its profile, as `nvidia-smi mig -lgip` tells it.
    pub profile: u32,
    /// Its first memory slice.
    pub start: u32,
}

/// A pod and container that an exporter names for a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Empty: not told.
    pub container: String,
}

/// A process that uses a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// In the pid namespace of the host.
    pub pid: u32,
    /// Of the device's memory.
    pub memory_bytes: Option<u64>,
    /// Share of the time since the last sample, 0 to 1.
    pub utilization: Option<f64>,
}

/// Readings in base units: gauges as they are now, counters since whenever the source began. Nothing is zero that was not
/// measured as zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// Share of the time that a kernel ran, 0 to 1.
    pub utilization: Option<f64>,
    /// Share of the time that memory was read or written, 0 to 1.
    pub memory_copy: Option<f64>,
    /// Memory in use, in bytes.
    pub memory_used: Option<u64>,
    /// Memory that is free, in bytes.
    pub memory_free: Option<u64>,
    /// All of it, in bytes.
    pub memory_total: Option<u64>,
    /// In °C.
    pub temperature: Option<f64>,
    /// In watts.
    pub power: Option<f64>,
    /// Counter, in joules.
    pub energy: Option<f64>,
    /// In hertz.
    pub sm_clock: Option<f64>,
    /// In hertz.
    pub memory_clock: Option<f64>,
    /// The last XID error, which stays until there is another; 0: none.
    pub xid: Option<u32>,
    /// Counter, in bytes, sent by the GPU.
    pub pcie_tx: Option<u64>,
    /// Counter, in bytes, received by the GPU.
    pub pcie_rx: Option<u64>,
    /// Counter, in bytes, both directions.
    pub nvlink: Option<u64>,
    /// Counter: single-bit errors, corrected.
    pub ecc_corrected: Option<u64>,
    /// Counter: double-bit errors.
    pub ecc_uncorrected: Option<u64>,
    /// Profiling: shares of the time or of the peak, 0 to 1.
    pub profile: Profile,
    /// Any other value that the source told, by its own name and in its own unit.
    pub other: BTreeMap<String, f64>,
}

impl Readings {
    /// Nothing measured.
    pub const NONE: Self = Self {
        utilization: None,
        memory_copy: None,
        memory_used: None,
        memory_free: None,
        memory_total: None,
        temperature: None,
        power: None,
        energy: None,
        sm_clock: None,
        memory_clock: None,
        xid: None,
        pcie_tx: None,
        pcie_rx: None,
        nvlink: None,
        ecc_corrected: None,
        ecc_uncorrected: None,
        profile: Profile::NONE,
        other: BTreeMap::new(),
    };
}

/// What the GPU's profiling counters say: DCGM fields 1001 to 1008, each 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Profile {
    /// 1001.
    pub graphics_active: Option<f64>,
    /// 1002.
    pub sm_active: Option<f64>,
    /// 1003.
    pub sm_occupancy: Option<f64>,
    /// 1004.
    pub tensor_active: Option<f64>,
    /// 1005: device memory interface.
    pub memory_active: Option<f64>,
    /// 1006.
    pub fp64_active: Option<f64>,
    /// 1007.
    pub fp32_active: Option<f64>,
    /// 1008.
    pub fp16_active: Option<f64>,
}

impl Profile {
    /// Nothing measured.
    pub const NONE: Self = Self {
        graphics_active: None,
        sm_active: None,
        sm_occupancy: None,
        tensor_active: None,
        memory_active: None,
        fp64_active: None,
        fp32_active: None,
        fp16_active: None,
    };
}
