//! Structs and numbers of `nvml.h`, as a C compiler for a 64-bit Linux lays them out.

use std::ffi::{c_char, c_uint, c_ulonglong, c_void};

pub(crate) type Return = c_uint;
/// A `nvmlDevice_t`: opaque to callers.
pub(crate) type Handle = *mut c_void;

pub(crate) const SUCCESS: Return = 0;
pub(crate) const UNINITIALIZED: Return = 1;
pub(crate) const INVALID_ARGUMENT: Return = 2;
pub(crate) const NOT_SUPPORTED: Return = 3;
pub(crate) const NOT_FOUND: Return = 6;
pub(crate) const INSUFFICIENT_SIZE: Return = 7;
pub(crate) const TIMEOUT: Return = 10;
pub(crate) const GPU_IS_LOST: Return = 15;
pub(crate) const ARGUMENT_VERSION_MISMATCH: Return = 25;
pub(crate) const UNKNOWN: Return = 999;

/// Each return code with its name.
pub(crate) const RETURNS: &[(&str, Return)] = &[
    ("SUCCESS", SUCCESS),
    ("UNINITIALIZED", UNINITIALIZED),
    ("INVALID_ARGUMENT", INVALID_ARGUMENT),
    ("NOT_SUPPORTED", NOT_SUPPORTED),
    ("NO_PERMISSION", 4),
    ("ALREADY_INITIALIZED", 5),
    ("NOT_FOUND", NOT_FOUND),
    ("INSUFFICIENT_SIZE", INSUFFICIENT_SIZE),
    ("INSUFFICIENT_POWER", 8),
    ("DRIVER_NOT_LOADED", 9),
    ("TIMEOUT", TIMEOUT),
    ("IRQ_ISSUE", 11),
    ("LIBRARY_NOT_FOUND", 12),
    ("FUNCTION_NOT_FOUND", 13),
    ("CORRUPTED_INFOROM", 14),
    ("GPU_IS_LOST", GPU_IS_LOST),
    ("RESET_REQUIRED", 16),
    ("OPERATING_SYSTEM", 17),
    ("LIB_RM_VERSION_MISMATCH", 18),
    ("IN_USE", 19),
    ("MEMORY", 20),
    ("NO_DATA", 21),
    ("VGPU_ECC_NOT_SUPPORTED", 22),
    ("INSUFFICIENT_RESOURCES", 23),
    ("FREQ_NOT_SUPPORTED", 24),
    ("ARGUMENT_VERSION_MISMATCH", ARGUMENT_VERSION_MISMATCH),
    ("DEPRECATED", 26),
    ("NOT_READY", 27),
    ("GPU_NOT_FOUND", 28),
    ("INVALID_STATE", 29),
    ("UNKNOWN", UNKNOWN),
];

/// An instance id that there is not.
pub(crate) const NO_INSTANCE: c_uint = u32::MAX;
/// A size that is not known.
pub(crate) const NO_VALUE: c_ulonglong = u64::MAX;

pub(crate) const EVENT_XID: c_ulonglong = 8;

pub(crate) const CLOCK_SM: c_uint = 1;
pub(crate) const CLOCK_MEMORY: c_uint = 2;

pub(crate) const TYPE_DOUBLE: c_uint = 0;
pub(crate) const TYPE_UINT: c_uint = 1;
pub(crate) const TYPE_ULONGLONG: c_uint = 3;

/// `nvmlUtilization_t`.
#[repr(C)]
pub struct Utilization {
    pub(crate) gpu: c_uint,
    pub(crate) memory: c_uint,
}

/// `nvmlMemory_t`.
#[repr(C)]
pub struct Memory {
    pub(crate) total: c_ulonglong,
    pub(crate) free: c_ulonglong,
    pub(crate) used: c_ulonglong,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
pub struct MemoryV2 {
    pub(crate) version: c_uint,
    pub(crate) total: c_ulonglong,
    pub(crate) reserved: c_ulonglong,
    pub(crate) free: c_ulonglong,
    pub(crate) used: c_ulonglong,
}

/// `nvmlPciInfo_t`.
#[repr(C)]
pub struct PciInfo {
    pub(crate) bus_id_legacy: [c_char; 16],
    pub(crate) domain: c_uint,
    pub(crate) bus: c_uint,
    pub(crate) device: c_uint,
    pub(crate) pci_device_id: c_uint,
    pub(crate) pci_sub_system_id: c_uint,
    pub(crate) bus_id: [c_char; 32],
}

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ProcessV1 {
    pub(crate) pid: c_uint,
    pub(crate) memory: c_ulonglong,
}

/// `nvmlProcessInfo_v2_t`, which the third version of the functions fills as well.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ProcessV2 {
    pub(crate) pid: c_uint,
    pub(crate) memory: c_ulonglong,
    pub(crate) gpu_instance: c_uint,
    pub(crate) compute_instance: c_uint,
}

/// `nvmlProcessUtilizationSample_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ProcessSample {
    pub(crate) pid: c_uint,
    pub(crate) time: c_ulonglong,
    pub(crate) sm: c_uint,
    pub(crate) memory: c_uint,
    pub(crate) encoder: c_uint,
    pub(crate) decoder: c_uint,
}

/// `nvmlFieldValue_t`; the union of its value is eight bytes.
#[repr(C)]
pub struct FieldValue {
    pub(crate) field: c_uint,
    pub(crate) scope: c_uint,
    pub(crate) timestamp: i64,
    pub(crate) latency_us: i64,
    pub(crate) kind: c_uint,
    pub(crate) result: Return,
    pub(crate) value: [u8; 8],
}

/// `nvmlGpuInstanceInfo_t`, whose placement are its last two numbers.
#[repr(C)]
pub struct GpuInstanceInfo {
    pub(crate) device: Handle,
    pub(crate) id: c_uint,
    pub(crate) profile: c_uint,
    pub(crate) start: c_uint,
    pub(crate) size: c_uint,
}

/// `nvmlEventData_t`.
#[repr(C)]
pub struct EventData {
    pub(crate) device: Handle,
    pub(crate) kind: c_ulonglong,
    pub(crate) data: c_ulonglong,
    pub(crate) gpu_instance: c_uint,
    pub(crate) compute_instance: c_uint,
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<Utilization>() == 8);
    assert!(size_of::<Memory>() == 24);
    assert!(size_of::<MemoryV2>() == 40);
    assert!(size_of::<PciInfo>() == 68);
    assert!(size_of::<ProcessV1>() == 16);
    assert!(size_of::<ProcessV2>() == 24);
    assert!(size_of::<ProcessSample>() == 32);
    assert!(size_of::<FieldValue>() == 40);
    assert!(size_of::<GpuInstanceInfo>() == 24);
    assert!(size_of::<EventData>() == 32);
};
