//! Calls whose answers have to be read with care, and what their failures mean.

use std::{ffi::c_char, fmt, ptr};

use nvml_wrapper::{
    Device, Nvml,
    error::{NvmlError as Wrapped, nvml_sym, nvml_try},
};
use nvml_wrapper_sys::bindings::{
    NVML_DEVICE_NAME_V2_BUFFER_SIZE, NVML_DEVICE_UUID_V2_BUFFER_SIZE, NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE,
    nvmlDevice_t, nvmlMemory_t, nvmlPciInfo_t, nvmlReturn_enum_NVML_ERROR_DEPRECATED as DEPRECATED,
    nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND as GPU_NOT_FOUND,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE as INSUFFICIENT_SIZE,
    nvmlReturn_enum_NVML_SUCCESS as SUCCESS, nvmlReturn_t,
};

use super::error::NvmlError;
use crate::id::Uuid;

/// Values that were told and can't be used, over a whole snapshot.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) rejected: u64,
    pub(super) first_rejected: Option<String>,
}

impl Answers {
    pub(super) fn reject(&mut self, what: String) {
        self.rejected = self.rejected.saturating_add(1);
        self.first_rejected.get_or_insert(what);
    }
}

/// Why a value is not known.
#[derive(Debug)]
pub(super) enum Failure {
    /// NVML says so.
    Nvml(Wrapped),
    /// It was told, and makes no sense.
    Unusable(String),
}

impl Failure {
    /// This GPU, this driver or this moment has no such value, which is an answer and no error.
    pub(super) const fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::Nvml(
                Wrapped::NotSupported
                    | Wrapped::NotFound
                    | Wrapped::NoData
                    | Wrapped::FunctionNotFound
                    | Wrapped::FailedToLoadSymbol(_)
                    | Wrapped::UnexpectedVariant(DEPRECATED)
            )
        )
    }

    /// The function is not there: an older one may be.
    pub(super) const fn is_missing_function(&self) -> bool {
        matches!(
            self,
            Self::Nvml(
                Wrapped::FunctionNotFound
                    | Wrapped::FailedToLoadSymbol(_)
                    | Wrapped::UnexpectedVariant(DEPRECATED)
            )
        )
    }

    pub(super) const fn is_refused(&self) -> bool {
        matches!(self, Self::Nvml(Wrapped::NoPermission))
    }

    /// The GPU will answer nothing else either.
    pub(super) const fn is_of_gpu(&self) -> bool {
        matches!(
            self,
            Self::Nvml(Wrapped::GpuLost | Wrapped::ResetRequired | Wrapped::UnexpectedVariant(GPU_NOT_FOUND))
        )
    }

    /// NVML will answer nothing else either.
    pub(super) const fn is_of_library(&self) -> bool {
        matches!(
            self,
            Self::Nvml(Wrapped::Uninitialized | Wrapped::DriverNotLoaded)
        )
    }

    pub(super) fn into_call(self, function: &'static str) -> NvmlError {
        let source = match self {
            Self::Nvml(source) => source,
            Self::Unusable(_) => Wrapped::Unknown,
        };
        NvmlError::Call { function, source }
    }
}

impl From<Wrapped> for Failure {
    fn from(error: Wrapped) -> Self {
        Self::Nvml(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nvml(Wrapped::GpuLost) => {
                f.write_str("the GPU is lost: it fell off the bus, or can't be reached for another reason")
            }
            Self::Nvml(Wrapped::ResetRequired) => {
                f.write_str("the GPU has to be reset before it can be used again")
            }
            Self::Nvml(Wrapped::UnexpectedVariant(code)) => write!(f, "NVML fails with code {code}"),
            Self::Nvml(error) => write!(f, "NVML says: {error}"),
            Self::Unusable(what) => f.write_str(what),
        }
    }
}

/// The handle, for calls that the wrapper does not make.
pub(super) fn raw(device: &Device<'_>) -> nvmlDevice_t {
    // SAFETY: it is handed to functions of the library that it came from only, which outlives the borrow of `device`.
    unsafe { device.handle() }
}

/// Room for the longest text that NVML tells.
const LONGEST: usize = 128;

/// A text that a function writes into a buffer of `size` bytes.
///
/// The wrapper reads on to the first NUL, even past the end of its buffer.
pub(super) fn text(
    size: u32,
    call: impl FnOnce(*mut c_char, u32) -> nvmlReturn_t,
) -> Result<String, Failure> {
    let mut buffer = [0; LONGEST];
    let size = size.min(LONGEST as u32);
    nvml_try(call(buffer.as_mut_ptr(), size))?;
    printable(&buffer[..size as usize])
}

/// What stands before the first NUL, if people can read it.
fn printable(bytes: &[c_char]) -> Result<String, Failure> {
    let unusable = |what: &str| Err(Failure::Unusable(what.to_owned()));
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else {
        return unusable("the text has no end");
    };
    let bytes: Vec<u8> = bytes[..end].iter().flat_map(|byte| byte.to_ne_bytes()).collect();
    match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => unusable("the text is empty"),
        Ok(text) if text.chars().any(char::is_control) => unusable("the text has control characters"),
        Ok(text) => Ok(text),
        Err(_) => unusable("the text is not UTF-8"),
    }
}

pub(super) fn driver(nvml: &Nvml) -> Option<String> {
    let get = nvml.lib().nvmlSystemGetDriverVersion.as_ref().ok()?;
    // SAFETY: the buffer has the length that is said.
    text(NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE, |buffer, size| unsafe {
        get(buffer, size)
    })
    .ok()
}

pub(super) fn uuid(nvml: &Nvml, device: &Device<'_>) -> Result<Uuid, Failure> {
    let get = nvml_sym(nvml.lib().nvmlDeviceGetUUID.as_ref())?;
    let device = raw(device);
    // SAFETY: the handle is of this library, and the buffer has the length that is said.
    text(NVML_DEVICE_UUID_V2_BUFFER_SIZE, |buffer, size| unsafe {
        get(device, buffer, size)
    })
    .map(Uuid::new)
}

pub(super) fn name(nvml: &Nvml, device: &Device<'_>) -> Result<String, Failure> {
    let get = nvml_sym(nvml.lib().nvmlDeviceGetName.as_ref())?;
    let device = raw(device);
    // SAFETY: the handle is of this library, and the buffer has the length that is said.
    text(NVML_DEVICE_NAME_V2_BUFFER_SIZE, |buffer, size| unsafe {
        get(device, buffer, size)
    })
}

pub(super) fn pci(nvml: &Nvml, device: &Device<'_>) -> Result<String, Failure> {
    let get = nvml_sym(nvml.lib().nvmlDeviceGetPciInfo_v3.as_ref())?;
    let mut info = nvmlPciInfo_t {
        busIdLegacy: [0; 16],
        domain: 0,
        bus: 0,
        device: 0,
        pciDeviceId: 0,
        pciSubSystemId: 0,
        busId: [0; 32],
    };
    // SAFETY: the handle is of this library, and `info` is valid for a write.
    nvml_try(unsafe { get(raw(device), &raw mut info) })?;
    printable(&info.busId)
}

/// Memory in bytes: total, free, used.
pub(super) fn memory(nvml: &Nvml, device: &Device<'_>) -> Result<(u64, u64, u64), Failure> {
    match device.memory_info().map_err(Failure::from) {
        Ok(memory) => Ok((memory.total, memory.free, memory.used)),
        // Drivers before 510 know only the first version, which takes what the driver keeps for itself for used.
        Err(failure) if failure.is_missing_function() => {
            let get = nvml_sym(nvml.lib().nvmlDeviceGetMemoryInfo.as_ref())?;
            let mut memory = nvmlMemory_t {
                total: 0,
                free: 0,
                used: 0,
            };
            // SAFETY: the handle is of this library, and `memory` is valid for a write.
            nvml_try(unsafe { get(raw(device), &raw mut memory) })?;
            Ok((memory.total, memory.free, memory.used))
        }
        Err(failure) => Err(failure),
    }
}

/// How often a list may turn out to be longer than just told.
const ROUNDS: usize = 6;

/// A list of at most `most` items that a function writes into a buffer, once it was asked how long it has to be.
///
/// `call` is given the buffer, null at first, and the number of items that it has room for, to be replaced by the number of
/// those that there are.
pub(super) fn list<T: Copy>(
    blank: T,
    most: usize,
    mut call: impl FnMut(*mut T, &mut u32) -> nvmlReturn_t,
) -> Result<Vec<T>, Failure> {
    let mut room = 0_usize;
    for _ in 0..ROUNDS {
        // Drivers 535.43 to 535.86 write 32 bytes for a process where the header says 24: twice the room that they are
        // told of keeps that inside of the buffer.
        let mut items = vec![blank; room * 2];
        let mut count = u32::try_from(room).unwrap_or(u32::MAX);
        let buffer = if room == 0 {
            ptr::null_mut()
        } else {
            items.as_mut_ptr()
        };
        let result = call(buffer, &mut count);
        let told = count as usize;
        match result {
            SUCCESS if room > 0 || told == 0 => {
                if told > room {
                    return Err(Failure::Unusable(format!(
                        "{told} items were put where there was room for {room}"
                    )));
                }
                items.truncate(told);
                return Ok(items);
            }
            SUCCESS | INSUFFICIENT_SIZE => {
                if room >= most {
                    return Err(Failure::Unusable(format!(
                        "{told} items are more than the {most} that are read"
                    )));
                }
                // Some more: processes start between the two calls.
                let wanted = told.max(room.saturating_add(1));
                room = wanted.saturating_add(wanted / 4).saturating_add(8).min(most);
            }
            other => nvml_try(other)?,
        }
    }
    Err(Failure::Unusable(format!(
        "it grew {ROUNDS} times while it was read"
    )))
}

#[cfg(test)]
mod tests {
    use nvml_wrapper_sys::bindings::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &[u8]) -> Vec<c_char> {
        text.iter().map(|byte| c_char::from_ne_bytes([*byte])).collect()
    }

    #[test]
    fn a_text_ends_at_its_nul_or_is_none() {
        assert_eq!(printable(&bytes(b"GPU-1\0junk")).ok(), Some("GPU-1".to_owned()));
        for text in [&b"GPU-1"[..], b"", b"\0", b"a\x1b[2J\0", b"\xff\xfe\0"] {
            assert!(printable(&bytes(text)).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_text_is_as_long_as_its_buffer_at_most() {
        let told = text(u32::MAX, |_, size| {
            assert_eq!(size as usize, LONGEST);
            SUCCESS
        });
        assert!(told.is_err(), "an empty text");
    }

    #[test]
    fn other_failures_of_a_list_are_told() {
        let told = list(0_u32, 10, |_, _| nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
        assert!(told.is_err_and(|failure| failure.is_unsupported()));
    }

    proptest! {
        /// Whatever a function says of its list, at most what there was room for is taken, in a bounded number of calls.
        #[test]
        fn a_list_is_bounded(answers in prop::collection::vec((any::<bool>(), any::<u32>()), 0..10)) {
            let mut calls = 0;
            let mut answers = answers.into_iter();
            let told = list(7_u32, 100, |buffer, count| {
                calls += 1;
                assert!(*count <= 100);
                assert_eq!(buffer.is_null(), *count == 0);
                let (done, number) = answers.next().unwrap_or((true, 0));
                *count = number;
                if done { SUCCESS } else { INSUFFICIENT_SIZE }
            });
            prop_assert!(calls <= ROUNDS);
            if let Ok(items) = told {
                prop_assert!(items.len() <= 100);
            }
        }

        /// No bytes make a text that people can't read.
        #[test]
        fn a_text_is_printable(text in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(told) = printable(&bytes(&text)) {
                prop_assert!(!told.is_empty() && !told.chars().any(char::is_control));
            }
        }
    }
}
