//! The file that says what the library answers.
//!
//! A value that is left out is answered with `NOT_SUPPORTED`, as a GPU does that lacks it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All that the library knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Version of the driver.
    pub driver: Option<String>,
    /// The GPUs, in the order of their indices.
    pub devices: Vec<Device>,
    /// What `nvmlDeviceGetCount_v2` says instead of the number of `devices`.
    pub count: Option<u32>,
    /// Functions that fail whatever they are asked, by name.
    pub errors: BTreeMap<String, Code>,
    /// How often a function that fills a list says that it needs room for one more than it was given, by name; counted from
    /// when the library was loaded.
    pub grow: BTreeMap<String, u32>,
    /// Counts that functions which fill a list tell instead of the truth, by name.
    pub claims: BTreeMap<String, Claim>,
    /// Events, in the order of their delivery. Each is delivered once to every event set that waits for its device; what is
    /// added to the end of the list is delivered as it appears.
    pub events: Vec<Event>,
}

/// What a function returns: NVML's name without `NVML_ERROR_`, such as `GPU_IS_LOST`, or a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Code {
    /// As `nvml.h` names it.
    Name(String),
    /// Any number, known or not.
    Number(u32),
}

impl From<&str> for Code {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

/// A lie about the length of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The length that is told.
    pub count: u32,
    /// `SUCCESS` or `INSUFFICIENT_SIZE`.
    pub result: Code,
}

/// A GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    /// `GPU-…`.
    pub uuid: Option<String>,
    /// Product name.
    pub name: Option<String>,
    /// Bus id such as `00000000:07:00.0`.
    pub pci: Option<String>,
    /// Of `/dev/nvidiaN`.
    pub minor: Option<u32>,
    /// It fell off the bus: everything fails with `GPU_IS_LOST`, getting its handle included.
    pub lost: bool,
    /// Functions that fail for this GPU, by name; `*` stands for all but getting its handle.
    pub errors: BTreeMap<String, Code>,
    /// Functions whose text is spoilt, by name.
    pub spoil: BTreeMap<String, Spoil>,
    /// Percents.
    pub utilization: Option<Utilization>,
    /// Bytes.
    pub memory: Option<Memory>,
    /// °C.
    pub temperature: Option<u32>,
    /// Milliwatts.
    pub power_mw: Option<u32>,
    /// Millijoules.
    pub energy_mj: Option<u64>,
    /// MHz.
    pub sm_clock_mhz: Option<u32>,
    /// MHz.
    pub memory_clock_mhz: Option<u32>,
    /// Volatile, corrected.
    pub ecc_corrected: Option<u64>,
    /// Volatile, uncorrected.
    pub ecc_uncorrected: Option<u64>,
    /// Values of `nvmlDeviceGetFieldValues`, by field id.
    pub fields: BTreeMap<u32, Field>,
    /// Set: the GPU knows MIG.
    pub mig: Option<Mig>,
    /// Compute processes.
    pub compute: Vec<Process>,
    /// Graphics processes.
    pub graphics: Vec<Process>,
    /// Clients of MPS.
    pub mps: Vec<Process>,
    /// Samples of the processes' utilisation; left out: `NOT_SUPPORTED`.
    pub samples: Option<Vec<Sample>>,
}

/// How a text is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spoil {
    /// It fills the buffer and has no end.
    Unterminated,
    /// It is no UTF-8.
    NotUtf8,
    /// It is empty.
    Empty,
}

/// Percents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Utilization {
    /// Of the time that a kernel ran.
    pub gpu: u32,
    /// Of the time that memory was read or written.
    pub memory: u32,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// Free.
    pub free: u64,
    /// In use; the older `nvmlDeviceGetMemoryInfo` adds `reserved`.
    pub used: u64,
    /// Kept by the driver.
    pub reserved: u64,
}

/// A value with its type.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// `NVML_VALUE_TYPE_DOUBLE`.
    Double(f64),
    /// `NVML_VALUE_TYPE_UNSIGNED_INT`.
    Uint(u32),
    /// `NVML_VALUE_TYPE_UNSIGNED_LONG_LONG`.
    Ulonglong(u64),
    /// The field fails with this number.
    Fails(u32),
}

/// Multi-Instance GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mig {
    /// What `nvmlDeviceGetMigMode` says of now: 1 is enabled, 0 disabled.
    pub mode: u32,
    /// `nvmlDeviceGetMaxMigDeviceCount`; left out: 7.
    pub max: Option<u32>,
    /// The MIG devices that there are.
    pub devices: Vec<MigDevice>,
}

/// A compute instance of a GPU instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigDevice {
    /// Where it is among the MIG devices of its GPU.
    pub index: u32,
    /// GPU instance id.
    pub gpu_instance: Option<u32>,
    /// Compute instance id.
    pub compute_instance: Option<u32>,
    /// `MIG-…`.
    pub uuid: Option<String>,
    /// Such as `NVIDIA A100-SXM4-40GB MIG 1g.5gb`.
    pub name: Option<String>,
    /// Of the GPU instance.
    pub memory: Option<Memory>,
    /// Of the GPU instance: which profile it has, and where it lies.
    pub placement: Option<Placement>,
    /// Functions that fail for it, by name.
    pub errors: BTreeMap<String, Code>,
}

/// Where a GPU instance lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// Number of its profile, as `nvidia-smi mig -lgip` tells it.
    pub profile: u32,
    /// First memory slice.
    pub start: u32,
    /// Memory slices.
    pub size: u32,
}

/// A process on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// In the host's pid namespace.
    pub pid: u32,
    /// Bytes; left out: NVML's mark for "not available".
    pub memory: Option<u64>,
    /// GPU instance id; left out: NVML's mark for none.
    pub gpu_instance: Option<u32>,
    /// Compute instance id.
    pub compute_instance: Option<u32>,
}

/// What a process used, over a sampling period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sample {
    /// In the host's pid namespace.
    pub pid: u32,
    /// Microseconds of Unix time.
    pub time_us: u64,
    /// Percents of the SMs.
    pub sm: u32,
    /// Percents of memory.
    pub memory: u32,
    /// Tell it although it is not newer than what was asked for, as drivers do now and then.
    pub stale: bool,
}

/// An event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Event {
    /// Index of the GPU.
    pub device: u32,
    /// The XID, of an event of type 8.
    pub xid: u64,
    /// NVML's event type; left out: 8, a critical XID.
    pub kind: Option<u64>,
    /// GPU instance id.
    pub gpu_instance: Option<u32>,
    /// The handle that is told is of no GPU.
    pub stranger: bool,
}
