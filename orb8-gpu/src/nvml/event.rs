//! XID errors, as they happen.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use nvml_wrapper::{
    Device, Nvml,
    error::{NvmlError as Wrapped, nvml_sym, nvml_try},
};
use nvml_wrapper_sys::bindings::{
    nvmlEventData_t, nvmlEventSet_t, nvmlEventTypeXidCriticalError,
    nvmlReturn_enum_NVML_ERROR_TIMEOUT as TIMEOUT,
};

use super::{
    MAX_DEVICES,
    call::{self, Failure, raw},
    error::NvmlError,
};
use crate::id::{DeviceKey, Uuid};

/// The longest that [`EventWatcher::wait`] waits, so that whoever waits can end.
pub const MAX_WAIT: Duration = Duration::from_secs(5);

/// What NVML tells for an XID that it does not know.
const UNKNOWN_XID: u64 = 999;
/// NVML's mark for no instance.
const NO_INSTANCE: u32 = u32::MAX;

/// An error that the driver reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XidEvent {
    /// When it was received.
    pub time: SystemTime,
    /// The GPU, or the instance of it that the error is confined to.
    pub key: DeviceKey,
    /// Which; none: NVML can't say. Of several errors in a row NVML tells the last one's number for each.
    pub xid: Option<u32>,
}

/// Waits for XID errors of the GPUs that there were when it was made. What happens between two waits is kept by NVML.
///
/// Dropping it ends it; it keeps the library loaded until then.
#[derive(Debug)]
pub struct EventWatcher {
    nvml: Arc<Nvml>,
    set: Set,
    rejected: u64,
}

/// A set of events and the GPUs in it.
#[derive(Debug)]
struct Set {
    nvml: Arc<Nvml>,
    handle: nvmlEventSet_t,
    /// By the address that NVML knows the GPU by: one that fell off the bus can't tell its UUID any more.
    gpus: BTreeMap<usize, Uuid>,
    unwatched: Vec<String>,
}

// SAFETY: NVML may be called from any thread, and the handle is used by one at a time, as `wait` needs `&mut self`.
unsafe impl Send for Set {}

impl Set {
    fn new(nvml: &Arc<Nvml>) -> Result<Self, NvmlError> {
        let none = |failure: Failure| NvmlError::NoEvents {
            reason: failure.to_string(),
        };
        let lib = nvml.lib();
        let create = nvml_sym(lib.nvmlEventSetCreate.as_ref()).map_err(|error| none(error.into()))?;
        let missing = [
            lib.nvmlEventSetWait_v2.as_ref().err(),
            lib.nvmlEventSetFree.as_ref().err(),
        ]
        .into_iter()
        .flatten()
        .next();
        if let Some(error) = missing {
            return Err(none(Failure::Nvml(Wrapped::FailedToLoadSymbol(
                error.to_string(),
            ))));
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is valid for a write.
        nvml_try(unsafe { create(&raw mut handle) }).map_err(|error| none(error.into()))?;
        let mut set = Self {
            nvml: Arc::clone(nvml),
            handle,
            gpus: BTreeMap::new(),
            unwatched: Vec::new(),
        };
        let count = nvml.device_count().map_err(|source| NvmlError::Call {
            function: "nvmlDeviceGetCount_v2",
            source,
        })?;
        for index in 0..count.min(MAX_DEVICES) {
            if let Err(failure) = set.add(nvml, index) {
                set.unwatched.push(format!("device {index}: {failure}"));
            }
        }
        if count > MAX_DEVICES {
            set.unwatched
                .push(format!("devices {MAX_DEVICES} to {}: too many", count - 1));
        }
        if set.gpus.is_empty() {
            let reason = if set.unwatched.is_empty() {
                "there is no GPU".to_owned()
            } else {
                set.unwatched.join("; ")
            };
            return Err(NvmlError::NoEvents { reason });
        }
        Ok(set)
    }

    fn add(&mut self, nvml: &Nvml, index: u32) -> Result<(), Failure> {
        let device = nvml.device_by_index(index)?;
        let uuid = call::uuid(nvml, &device)?;
        let register = nvml_sym(nvml.lib().nvmlDeviceRegisterEvents.as_ref())?;
        let types = u64::from(nvmlEventTypeXidCriticalError);
        // SAFETY: both handles are of this library and in use.
        nvml_try(unsafe { register(raw(&device), types, self.handle) })?;
        self.gpus.insert(raw(&device).addr(), uuid);
        Ok(())
    }

    /// The next event, or none in this time.
    fn next(&self, timeout: Duration) -> Result<Option<nvmlEventData_t>, Wrapped> {
        let wait = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref())?;
        let mut data = nvmlEventData_t {
            device: std::ptr::null_mut(),
            eventType: 0,
            eventData: 0,
            gpuInstanceId: NO_INSTANCE,
            computeInstanceId: NO_INSTANCE,
        };
        let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        // SAFETY: the set is in use, and `data` is valid for a write.
        match unsafe { wait(self.handle, &raw mut data, milliseconds) } {
            TIMEOUT => Ok(None),
            code => nvml_try(code).map(|()| Some(data)),
        }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        if let Ok(free) = self.nvml.lib().nvmlEventSetFree.as_ref() {
            // SAFETY: the set was made by this library, and nothing uses it any more.
            unsafe { free(self.handle) };
        }
    }
}

impl EventWatcher {
    pub(super) fn new(nvml: Arc<Nvml>) -> Result<Self, NvmlError> {
        let set = Set::new(&nvml)?;
        Ok(Self {
            nvml,
            set,
            rejected: 0,
        })
    }

    /// GPUs that it can't watch, each with the reason.
    #[must_use]
    pub fn unwatched(&self) -> &[String] {
        &self.set.unwatched
    }

    /// Events that were told and could not be used: of an unknown GPU, or with a number that is no XID.
    #[must_use]
    pub const fn rejected(&self) -> u64 {
        self.rejected
    }

    /// The next error, or none within this time, which is cut at [`MAX_WAIT`]. It may return earlier without one.
    ///
    /// When a GPU is lost, the others are watched on without it.
    ///
    /// # Errors
    ///
    /// When NVML fails, at the end of the time and not before, so that whoever tries again does not do so at once.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<XidEvent>, NvmlError> {
        let until = Instant::now() + timeout.min(MAX_WAIT);
        let rest = || thread::sleep(until.saturating_duration_since(Instant::now()));
        match self.set.next(timeout.min(MAX_WAIT)) {
            Ok(None) => Ok(None),
            Ok(Some(data)) => Ok(self.event(&data)),
            Err(Wrapped::GpuLost | Wrapped::ResetRequired) => {
                let set = Set::new(&self.nvml);
                rest();
                self.set = set?;
                Ok(None)
            }
            Err(source) => {
                rest();
                Err(NvmlError::Call {
                    function: "nvmlEventSetWait_v2",
                    source,
                })
            }
        }
    }

    fn event(&mut self, data: &nvmlEventData_t) -> Option<XidEvent> {
        if data.eventType & u64::from(nvmlEventTypeXidCriticalError) == 0 {
            return None;
        }
        let uuid = self.set.gpus.get(&data.device.addr()).cloned().or_else(|| {
            // SAFETY: it is handed to functions of the library that it came from only.
            let device = unsafe { Device::new(data.device, &self.nvml) };
            call::uuid(&self.nvml, &device).ok()
        });
        let xid = match data.eventData {
            UNKNOWN_XID => Some(None),
            xid => u32::try_from(xid).ok().filter(|xid| *xid > 0).map(Some),
        };
        let (Some(uuid), Some(xid)) = (uuid, xid) else {
            self.rejected = self.rejected.saturating_add(1);
            return None;
        };
        let instance = Some(data.gpuInstanceId).filter(|id| *id != NO_INSTANCE);
        Some(XidEvent {
            time: SystemTime::now(),
            key: DeviceKey { uuid, instance },
            xid,
        })
    }
}
