//! The functions of NVML.
//!
//! # Safety
//!
//! As with NVIDIA's library: pointers are null or valid for what the function writes, buffers are as long as their length
//! says. Handles may be anything: they are looked up, never followed.

#![allow(non_snake_case, reason = "these are the names of NVML")]
#![allow(missing_docs, reason = "nvml.h documents them")]
#![allow(clippy::missing_safety_doc, reason = "said once for all of them")]
#![allow(
    private_interfaces,
    reason = "callers come through the loader and bring their own structs"
)]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void},
    ptr,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use crate::{
    config::{Field, Process, Spoil},
    layout::{
        ARGUMENT_VERSION_MISMATCH, CLOCK_MEMORY, CLOCK_SM, EVENT_XID, EventData, FieldValue, GpuInstanceInfo,
        Handle, INSUFFICIENT_SIZE, INVALID_ARGUMENT, Memory, MemoryV2, NO_INSTANCE, NO_VALUE, NOT_FOUND,
        NOT_SUPPORTED, PciInfo, ProcessSample, ProcessV1, ProcessV2, RETURNS, Return, SUCCESS, TIMEOUT,
        TYPE_DOUBLE, TYPE_UINT, TYPE_ULONGLONG, UNINITIALIZED, Utilization,
    },
    state::{Asked, EventSet, SETS, Target, USERS, device, fill, lock, system},
};

fn done(result: Result<(), Return>) -> Return {
    result.err().unwrap_or(SUCCESS)
}

/// # Safety
///
/// `place` is null or valid for a write.
unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Return> {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: it is not null, and the caller vouches for it.
    unsafe { place.write(value) };
    Ok(())
}

/// # Safety
///
/// `buffer` is null or has `length` bytes.
unsafe fn put_text(
    buffer: *mut c_char,
    length: c_uint,
    text: &str,
    spoil: Option<&Spoil>,
) -> Result<(), Return> {
    let length = length as usize;
    if buffer.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let text = match spoil {
        None if text.len() >= length => return Err(INSUFFICIENT_SIZE),
        None => [text.as_bytes(), b"\0"].concat(),
        Some(Spoil::Unterminated) => text.bytes().cycle().take(length).collect(),
        Some(Spoil::NotUtf8) => [&[0xff_u8; 3][..], b"\0"].concat(),
        Some(Spoil::Empty) => vec![0],
    };
    // SAFETY: the caller vouches for `length` bytes, and the text is no longer.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, text.len().min(length)) };
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Return {
    done(system("nvmlInit_v2").map(|_| {
        USERS.fetch_add(1, Ordering::SeqCst);
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Return {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Return {
    let one_less = |users: u32| users.checked_sub(1);
    done(
        USERS
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
            .map(|_| ())
            .map_err(|_| UNINITIALIZED),
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: Return) -> *const c_char {
    const TEXT: &CStr = c"an error of the fake NVML";
    const SUCCEEDED: &CStr = c"Success";
    let known = RETURNS.iter().any(|(_, number)| *number == result);
    if known && result == SUCCESS {
        SUCCEEDED.as_ptr()
    } else {
        TEXT.as_ptr()
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> Return {
    done(system("nvmlSystemGetDriverVersion").and_then(|config| {
        let driver = config.driver.as_deref().ok_or(NOT_SUPPORTED)?;
        // SAFETY: the caller vouches for the buffer.
        unsafe { put_text(version, length, driver, None) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> Return {
    done(system("nvmlSystemGetNVMLVersion").and_then(|config| {
        let driver = config.driver.as_deref().ok_or(NOT_SUPPORTED)?;
        // SAFETY: the caller vouches for the buffer.
        unsafe { put_text(version, length, &format!("12.{driver}"), None) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> Return {
    // SAFETY: the caller vouches for the place.
    done(system("nvmlSystemGetCudaDriverVersion_v2").and_then(|_| unsafe { put(version, 12_040) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Return {
    done(system("nvmlDeviceGetCount_v2").and_then(|config| {
        let there_are = u32::try_from(config.devices.len()).unwrap_or(u32::MAX);
        // SAFETY: the caller vouches for the place.
        unsafe { put(count, config.count.unwrap_or(there_are)) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, handle: *mut Handle) -> Return {
    let of = Target {
        device: index,
        mig: None,
    }
    .handle();
    done(device("nvmlDeviceGetHandleByIndex_v2", of).and_then(|_| {
        // SAFETY: the caller vouches for the place.
        unsafe { put(handle, of) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(handle: Handle, index: *mut c_uint) -> Return {
    done(device("nvmlDeviceGetIndex", handle).and_then(|asked| {
        // SAFETY: the caller vouches for the place.
        unsafe { put(index, asked.target.mig.unwrap_or(asked.target.device)) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(handle: Handle, uuid: *mut c_char, length: c_uint) -> Return {
    let function = "nvmlDeviceGetUUID";
    done(device(function, handle).and_then(|asked| {
        let own = asked.mig().map_or(&asked.device().uuid, |mig| &mig.uuid);
        let text = own.as_deref().ok_or(NOT_SUPPORTED)?;
        // SAFETY: the caller vouches for the buffer.
        unsafe { put_text(uuid, length, text, asked.device().spoil.get(function)) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(handle: Handle, name: *mut c_char, length: c_uint) -> Return {
    let function = "nvmlDeviceGetName";
    done(device(function, handle).and_then(|asked| {
        let own = asked.mig().map_or(&asked.device().name, |mig| &mig.name);
        let text = own.as_deref().ok_or(NOT_SUPPORTED)?;
        // SAFETY: the caller vouches for the buffer.
        unsafe { put_text(name, length, text, asked.device().spoil.get(function)) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(handle: Handle, info: *mut PciInfo) -> Return {
    let function = "nvmlDeviceGetPciInfo_v3";
    done(device(function, handle).and_then(|asked| {
        let gpu = asked.whole()?;
        let text = gpu.pci.as_deref().ok_or(NOT_SUPPORTED)?;
        let part = |range| {
            text.get(range)
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .unwrap_or(0)
        };
        let mut found = PciInfo {
            bus_id_legacy: [0; 16],
            domain: part(0..8),
            bus: part(9..11),
            device: part(12..14),
            pci_device_id: 0x20b0_10de,
            pci_sub_system_id: 0,
            bus_id: [0; 32],
        };
        // SAFETY: the array is as long as is said.
        unsafe { put_text(found.bus_id.as_mut_ptr(), 32, text, gpu.spoil.get(function))? };
        // SAFETY: the caller vouches for the place.
        unsafe { put(info, found) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(handle: Handle, rates: *mut Utilization) -> Return {
    done(device("nvmlDeviceGetUtilizationRates", handle).and_then(|asked| {
        let told = asked.whole()?.utilization.ok_or(NOT_SUPPORTED)?;
        // SAFETY: the caller vouches for the place.
        unsafe {
            put(
                rates,
                Utilization {
                    gpu: told.gpu,
                    memory: told.memory,
                },
            )
        }
    }))
}

fn memory(asked: &Asked) -> Result<crate::config::Memory, Return> {
    asked
        .mig()
        .map_or(asked.device().memory, |mig| mig.memory)
        .ok_or(NOT_SUPPORTED)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(handle: Handle, info: *mut Memory) -> Return {
    done(device("nvmlDeviceGetMemoryInfo", handle).and_then(|asked| {
        let told = memory(&asked)?;
        let used = told.used.saturating_add(told.reserved);
        // SAFETY: the caller vouches for the place.
        unsafe {
            put(
                info,
                Memory {
                    total: told.total,
                    free: told.free,
                    used,
                },
            )
        }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(handle: Handle, info: *mut MemoryV2) -> Return {
    done(device("nvmlDeviceGetMemoryInfo_v2", handle).and_then(|asked| {
        let told = memory(&asked)?;
        if info.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: it is not null; the caller vouches for it and has set the version, the only field that is read.
        let version = unsafe { (&raw const (*info).version).read() };
        if version as usize != size_of::<MemoryV2>() | 2 << 24 {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let found = MemoryV2 {
            version,
            total: told.total,
            reserved: told.reserved,
            free: told.free,
            used: told.used,
        };
        // SAFETY: the caller vouches for the place.
        unsafe { put(info, found) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    handle: Handle,
    sensor: c_uint,
    value: *mut c_uint,
) -> Return {
    done(device("nvmlDeviceGetTemperature", handle).and_then(|asked| {
        if sensor != 0 {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: the caller vouches for the place.
        unsafe { put(value, asked.whole()?.temperature.ok_or(NOT_SUPPORTED)?) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(handle: Handle, value: *mut c_uint) -> Return {
    done(device("nvmlDeviceGetPowerUsage", handle).and_then(|asked| {
        // SAFETY: the caller vouches for the place.
        unsafe { put(value, asked.whole()?.power_mw.ok_or(NOT_SUPPORTED)?) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(
    handle: Handle,
    value: *mut c_ulonglong,
) -> Return {
    done(
        device("nvmlDeviceGetTotalEnergyConsumption", handle).and_then(|asked| {
            // SAFETY: the caller vouches for the place.
            unsafe { put(value, asked.whole()?.energy_mj.ok_or(NOT_SUPPORTED)?) }
        }),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(handle: Handle, kind: c_uint, value: *mut c_uint) -> Return {
    done(device("nvmlDeviceGetClockInfo", handle).and_then(|asked| {
        let gpu = asked.whole()?;
        let told = match kind {
            CLOCK_SM => gpu.sm_clock_mhz,
            CLOCK_MEMORY => gpu.memory_clock_mhz,
            _ => None,
        };
        // SAFETY: the caller vouches for the place.
        unsafe { put(value, told.ok_or(NOT_SUPPORTED)?) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    handle: Handle,
    kind: c_uint,
    counter: c_uint,
    value: *mut c_ulonglong,
) -> Return {
    done(device("nvmlDeviceGetTotalEccErrors", handle).and_then(|asked| {
        let gpu = asked.whole()?;
        let told = match (kind, counter) {
            (0, 0) => gpu.ecc_corrected,
            (1, 0) => gpu.ecc_uncorrected,
            _ => None,
        };
        // SAFETY: the caller vouches for the place.
        unsafe { put(value, told.ok_or(NOT_SUPPORTED)?) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(
    handle: Handle,
    count: c_int,
    values: *mut FieldValue,
) -> Return {
    done(device("nvmlDeviceGetFieldValues", handle).and_then(|asked| {
        let gpu = asked.whole()?;
        let count = usize::try_from(count).map_err(|_| INVALID_ARGUMENT)?;
        if values.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        for at in 0..count {
            // SAFETY: the caller vouches for `count` values, whose fields and scopes it has set.
            let value = unsafe { &mut *values.add(at) };
            value.timestamp = 0;
            value.latency_us = 0;
            let mut eight = [0; 8];
            (value.result, value.kind) = match gpu.fields.get(&value.field) {
                None => (NOT_SUPPORTED, TYPE_DOUBLE),
                Some(Field::Fails(code)) => (*code, TYPE_DOUBLE),
                Some(Field::Double(told)) => {
                    eight = told.to_ne_bytes();
                    (SUCCESS, TYPE_DOUBLE)
                }
                Some(Field::Uint(told)) => {
                    eight[..4].copy_from_slice(&told.to_ne_bytes());
                    (SUCCESS, TYPE_UINT)
                }
                Some(Field::Ulonglong(told)) => {
                    eight = told.to_ne_bytes();
                    (SUCCESS, TYPE_ULONGLONG)
                }
            };
            value.value = eight;
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    handle: Handle,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Return {
    done(device("nvmlDeviceGetMigMode", handle).and_then(|asked| {
        let mode = asked.whole()?.mig.as_ref().ok_or(NOT_SUPPORTED)?.mode;
        // SAFETY: the caller vouches for the places.
        unsafe { put(current, mode).and(put(pending, mode)) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(handle: Handle, count: *mut c_uint) -> Return {
    done(
        device("nvmlDeviceGetMaxMigDeviceCount", handle).and_then(|asked| {
            let max = asked.whole()?.mig.as_ref().map_or(0, |mig| mig.max.unwrap_or(7));
            // SAFETY: the caller vouches for the place.
            unsafe { put(count, max) }
        }),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    handle: Handle,
    index: c_uint,
    found: *mut Handle,
) -> Return {
    done(
        device("nvmlDeviceGetMigDeviceHandleByIndex", handle).and_then(|asked| {
            let mig = asked
                .whole()?
                .mig
                .as_ref()
                .filter(|mig| mig.mode == 1)
                .ok_or(NOT_SUPPORTED)?;
            if !mig.devices.iter().any(|device| device.index == index) {
                return Err(NOT_FOUND);
            }
            let of = Target {
                device: asked.target.device,
                mig: Some(index),
            };
            // SAFETY: the caller vouches for the place.
            unsafe { put(found, of.handle()) }
        }),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    handle: Handle,
    found: *mut Handle,
) -> Return {
    done(
        device("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle).and_then(|asked| {
            if asked.target.mig.is_none() {
                return Err(INVALID_ARGUMENT);
            }
            // SAFETY: the caller vouches for the place.
            unsafe {
                put(
                    found,
                    Target {
                        mig: None,
                        ..asked.target
                    }
                    .handle(),
                )
            }
        }),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(handle: Handle, answer: *mut c_uint) -> Return {
    done(device("nvmlDeviceIsMigDeviceHandle", handle).and_then(|asked| {
        // SAFETY: the caller vouches for the place.
        unsafe { put(answer, c_uint::from(asked.target.mig.is_some())) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(handle: Handle, id: *mut c_uint) -> Return {
    done(device("nvmlDeviceGetGpuInstanceId", handle).and_then(|asked| {
        let told = asked
            .mig()
            .and_then(|mig| mig.gpu_instance)
            .ok_or(NOT_SUPPORTED)?;
        // SAFETY: the caller vouches for the place.
        unsafe { put(id, told) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(handle: Handle, minor: *mut c_uint) -> Return {
    done(device("nvmlDeviceGetMinorNumber", handle).and_then(|asked| {
        // SAFETY: the caller vouches for the place.
        unsafe { put(minor, asked.whole()?.minor.ok_or(NOT_SUPPORTED)?) }
    }))
}

/// The handle of a GPU instance is that of the MIG device whose index is the instance's id: both are only looked up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceById(
    handle: Handle,
    id: c_uint,
    found: *mut Handle,
) -> Return {
    done(device("nvmlDeviceGetGpuInstanceById", handle).and_then(|asked| {
        let mig = asked.whole()?.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        if !mig.devices.iter().any(|device| device.gpu_instance == Some(id)) {
            return Err(NOT_FOUND);
        }
        let of = Target {
            device: asked.target.device,
            mig: Some(id),
        };
        // SAFETY: the caller vouches for the place.
        unsafe { put(found, of.handle()) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetInfo(instance: Handle, info: *mut GpuInstanceInfo) -> Return {
    done(system("nvmlGpuInstanceGetInfo").and_then(|config| {
        let target = Target::of(instance).ok_or(INVALID_ARGUMENT)?;
        let id = target.mig.ok_or(INVALID_ARGUMENT)?;
        let device = config
            .devices
            .get(target.device as usize)
            .ok_or(INVALID_ARGUMENT)?;
        let placement = device
            .mig
            .iter()
            .flat_map(|mig| &mig.devices)
            .filter(|mig| mig.gpu_instance == Some(id))
            .find_map(|mig| mig.placement)
            .ok_or(NOT_SUPPORTED)?;
        let found = GpuInstanceInfo {
            device: Target { mig: None, ..target }.handle(),
            id,
            profile: placement.profile,
            start: placement.start,
            size: placement.size,
        };
        // SAFETY: the caller vouches for the place.
        unsafe { put(info, found) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(handle: Handle, id: *mut c_uint) -> Return {
    done(
        device("nvmlDeviceGetComputeInstanceId", handle).and_then(|asked| {
            let told = asked
                .mig()
                .and_then(|mig| mig.compute_instance)
                .ok_or(NOT_SUPPORTED)?;
            // SAFETY: the caller vouches for the place.
            unsafe { put(id, told) }
        }),
    )
}

#[derive(Clone, Copy)]
enum Kind {
    Compute,
    Graphics,
    Mps,
}

/// The processes of a kind on a GPU, or on an instance of it.
fn running(function: &str, handle: Handle, kind: Kind) -> Result<(Asked, Vec<Process>), Return> {
    let asked = device(function, handle)?;
    let gpu = asked.device();
    let mut processes = match kind {
        Kind::Compute => gpu.compute.clone(),
        Kind::Graphics => gpu.graphics.clone(),
        Kind::Mps => gpu.mps.clone(),
    };
    if let Some(mig) = asked.mig() {
        processes.retain(|process| process.gpu_instance == mig.gpu_instance);
    }
    Ok((asked, processes))
}

/// # Safety
///
/// As [`fill`].
unsafe fn running_v1(
    function: &str,
    handle: Handle,
    kind: Kind,
    count: *mut c_uint,
    room: *mut ProcessV1,
) -> Return {
    done(running(function, handle, kind).and_then(|(asked, processes)| {
        let items: Vec<_> = processes
            .iter()
            .map(|process| ProcessV1 {
                pid: process.pid,
                memory: process.memory.unwrap_or(NO_VALUE),
            })
            .collect();
        // SAFETY: the caller vouches for the list.
        match unsafe { fill(function, &asked.config, &items, room, count) } {
            SUCCESS => Ok(()),
            code => Err(code),
        }
    }))
}

/// # Safety
///
/// As [`fill`].
unsafe fn running_v2(
    function: &str,
    handle: Handle,
    kind: Kind,
    count: *mut c_uint,
    room: *mut ProcessV2,
) -> Return {
    done(running(function, handle, kind).and_then(|(asked, processes)| {
        let items: Vec<_> = processes
            .iter()
            .map(|process| ProcessV2 {
                pid: process.pid,
                memory: process.memory.unwrap_or(NO_VALUE),
                gpu_instance: process.gpu_instance.unwrap_or(NO_INSTANCE),
                compute_instance: process.compute_instance.unwrap_or(NO_INSTANCE),
            })
            .collect();
        // SAFETY: the caller vouches for the list.
        match unsafe { fill(function, &asked.config, &items, room, count) } {
            SUCCESS => Ok(()),
            code => Err(code),
        }
    }))
}

macro_rules! running {
    ($($function:ident, $kind:ident, $filler:ident, $item:ty;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $function(handle: Handle, count: *mut c_uint, room: *mut $item) -> Return {
            // SAFETY: the caller vouches for the list.
            unsafe { $filler(stringify!($function), handle, Kind::$kind, count, room) }
        }
    )*};
}

running! {
    nvmlDeviceGetComputeRunningProcesses, Compute, running_v1, ProcessV1;
    nvmlDeviceGetComputeRunningProcesses_v2, Compute, running_v2, ProcessV2;
    nvmlDeviceGetComputeRunningProcesses_v3, Compute, running_v2, ProcessV2;
    nvmlDeviceGetGraphicsRunningProcesses, Graphics, running_v1, ProcessV1;
    nvmlDeviceGetGraphicsRunningProcesses_v2, Graphics, running_v2, ProcessV2;
    nvmlDeviceGetGraphicsRunningProcesses_v3, Graphics, running_v2, ProcessV2;
    nvmlDeviceGetMPSComputeRunningProcesses, Mps, running_v1, ProcessV1;
    nvmlDeviceGetMPSComputeRunningProcesses_v2, Mps, running_v2, ProcessV2;
    nvmlDeviceGetMPSComputeRunningProcesses_v3, Mps, running_v2, ProcessV2;
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    handle: Handle,
    room: *mut ProcessSample,
    count: *mut c_uint,
    last_seen: c_ulonglong,
) -> Return {
    let function = "nvmlDeviceGetProcessUtilization";
    done(device(function, handle).and_then(|asked| {
        let samples = asked.whole()?.samples.as_ref().ok_or(NOT_SUPPORTED)?;
        let items: Vec<_> = samples
            .iter()
            .filter(|sample| sample.stale || sample.time_us > last_seen)
            .map(|sample| ProcessSample {
                pid: sample.pid,
                time: sample.time_us,
                sm: sample.sm,
                memory: sample.memory,
                encoder: 0,
                decoder: 0,
            })
            .collect();
        if items.is_empty() && !asked.config.claims.contains_key(function) {
            return Err(NOT_FOUND);
        }
        // SAFETY: the caller vouches for the list.
        match unsafe { fill(function, &asked.config, &items, room, count) } {
            SUCCESS => Ok(()),
            code => Err(code),
        }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut *mut c_void) -> Return {
    done(system("nvmlEventSetCreate").and_then(|_| {
        let mut sets = lock(&SETS);
        let number = sets.keys().next_back().map_or(1, |last| last + 1);
        // SAFETY: the caller vouches for the place.
        unsafe { put(set, ptr::without_provenance_mut(number)) }?;
        sets.insert(number, EventSet::default());
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(handle: Handle, types: *mut c_ulonglong) -> Return {
    done(device("nvmlDeviceGetSupportedEventTypes", handle).and_then(|_| {
        // SAFETY: the caller vouches for the place.
        unsafe { put(types, EVENT_XID) }
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(handle: Handle, types: c_ulonglong, set: *mut c_void) -> Return {
    done(device("nvmlDeviceRegisterEvents", handle).and_then(|asked| {
        asked.whole()?;
        let mut sets = lock(&SETS);
        let set = sets.get_mut(&set.addr()).ok_or(INVALID_ARGUMENT)?;
        *set.registered.entry(asked.target.device).or_default() |= types;
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: *mut c_void,
    data: *mut EventData,
    timeout_ms: c_uint,
) -> Return {
    let until = Instant::now() + Duration::from_millis(timeout_ms.into());
    loop {
        let found = system("nvmlEventSetWait_v2").and_then(|config| next_event(&config, set));
        match found {
            // SAFETY: the caller vouches for the place.
            Ok(Some(event)) => return done(unsafe { put(data, event) }),
            Ok(None) => {}
            Err(code) => return code,
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return TIMEOUT;
        }
        thread::sleep(left.min(Duration::from_millis(5)));
    }
}

fn next_event(config: &crate::config::Config, set: *mut c_void) -> Result<Option<EventData>, Return> {
    let mut sets = lock(&SETS);
    let set = sets.get_mut(&set.addr()).ok_or(INVALID_ARGUMENT)?;
    while let Some(event) = config.events.get(set.next) {
        set.next += 1;
        let kind = event.kind.unwrap_or(EVENT_XID);
        if set
            .registered
            .get(&event.device)
            .is_some_and(|types| types & kind != 0)
        {
            let device = if event.stranger {
                u32::from(u16::MAX)
            } else {
                event.device
            };
            return Ok(Some(EventData {
                device: Target { device, mig: None }.handle(),
                kind,
                data: event.xid,
                gpu_instance: event.gpu_instance.unwrap_or(NO_INSTANCE),
                compute_instance: NO_INSTANCE,
            }));
        }
    }
    Ok(None)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: *mut c_void) -> Return {
    // Whatever the file says, or whether there is one any more: a test must not leak its sets.
    done(
        lock(&SETS)
            .remove(&set.addr())
            .map(|_| ())
            .ok_or(INVALID_ARGUMENT),
    )
}
