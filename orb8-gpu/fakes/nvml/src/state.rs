//! What the library remembers between calls, and where it finds its file.

use std::{
    collections::BTreeMap,
    ffi::{CStr, OsStr, c_uint, c_void},
    fs,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    config::{Code, Config, Device, MigDevice},
    layout::{
        GPU_IS_LOST, Handle, INVALID_ARGUMENT, NOT_SUPPORTED, RETURNS, Return, SUCCESS, UNINITIALIZED,
        UNKNOWN,
    },
};

/// Names the file of answers.
pub(crate) const VARIABLE: &str = "ORB8_FAKE_NVML";
/// How the file of answers is called that lies next to the library: its name with this at the end.
pub(crate) const EXTENSION: &str = ".json";

/// How often the library was initialised and not yet shut down.
pub(crate) static USERS: AtomicU32 = AtomicU32::new(0);

/// Sets of events, by the number that their handle is.
pub(crate) static SETS: Mutex<BTreeMap<usize, EventSet>> = Mutex::new(BTreeMap::new());

/// How often each function has said that it needs more room.
pub(crate) static GROWN: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

/// A set of events that somebody waits for.
#[derive(Default)]
pub(crate) struct EventSet {
    /// Index of a GPU and the types of events that are wanted of it.
    pub(crate) registered: BTreeMap<u32, u64>,
    /// How many of the file's events have been looked at.
    pub(crate) next: usize,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) device: u32,
    pub(crate) mig: Option<u32>,
}

impl Target {
    /// Numbers, not addresses: nothing can be read through a handle.
    pub(crate) fn handle(self) -> Handle {
        let mig = self.mig.map_or(0, |index| index as usize + 1);
        ptr::without_provenance_mut((self.device as usize + 1) << 16 | mig)
    }

    pub(crate) fn of(handle: Handle) -> Option<Self> {
        let number = handle.addr();
        let device = u32::try_from(number >> 16).ok()?.checked_sub(1)?;
        let mig = u32::try_from(number & 0xffff).ok()?.checked_sub(1);
        Some(Self { device, mig })
    }
}

fn file() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return Some(path.into());
    }
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    let here: *const c_void = (&raw const USERS).cast();
    // SAFETY: `info` is a valid place for the answer, and `here` is only compared with the addresses of loaded objects.
    let found = unsafe { libc::dladdr(here, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr found the object and thus set the name to a string that lives as long as the object is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let mut path = OsStr::from_bytes(name.to_bytes()).to_os_string();
    path.push(EXTENSION);
    Some(path.into())
}

/// The answers as they are now; `UNKNOWN`, with a line on stderr, when they can't be read.
pub(crate) fn config() -> Result<Config, Return> {
    let complain = |what: String| {
        eprintln!("orb8-fake-nvml: {what}");
        UNKNOWN
    };
    let path = file().ok_or_else(|| complain(format!("set {VARIABLE} to the path of a file of answers")))?;
    let text = fs::read(&path).map_err(|error| complain(format!("{}: {error}", path.display())))?;
    serde_json::from_slice(&text).map_err(|error| complain(format!("{}: {error}", path.display())))
}

pub(crate) fn code(code: &Code) -> Return {
    match code {
        Code::Number(number) => *number,
        Code::Name(name) => RETURNS.iter().find(|(known, _)| known == name).map_or_else(
            || {
                eprintln!("orb8-fake-nvml: NVML has no return code {name}");
                UNKNOWN
            },
            |(_, number)| *number,
        ),
    }
}

/// The answers, for a function that is about no device.
pub(crate) fn system(function: &str) -> Result<Config, Return> {
    let config = config()?;
    if let Some(error) = config.errors.get(function) {
        return Err(code(error));
    }
    if USERS.load(Ordering::SeqCst) == 0 && !function.starts_with("nvmlInit") {
        return Err(UNINITIALIZED);
    }
    Ok(config)
}

/// What a function asks of.
pub(crate) struct Asked {
    pub(crate) config: Config,
    pub(crate) target: Target,
}

impl Asked {
    /// The GPU, whether it or an instance of it is meant.
    pub(crate) fn device(&self) -> &Device {
        // `device` has found it.
        &self.config.devices[self.target.device as usize]
    }

    /// The MIG device, when one is meant.
    pub(crate) fn mig(&self) -> Option<&MigDevice> {
        let index = self.target.mig?;
        self.device()
            .mig
            .as_ref()?
            .devices
            .iter()
            .find(|mig| mig.index == index)
    }

    /// The GPU; what MIG devices do not know is not supported.
    pub(crate) fn whole(&self) -> Result<&Device, Return> {
        if self.target.mig.is_some() {
            Err(NOT_SUPPORTED)
        } else {
            Ok(self.device())
        }
    }
}

/// The answers, for a function about a device.
pub(crate) fn device(function: &str, handle: Handle) -> Result<Asked, Return> {
    let config = system(function)?;
    let target = Target::of(handle).ok_or(INVALID_ARGUMENT)?;
    let device = config
        .devices
        .get(target.device as usize)
        .ok_or(INVALID_ARGUMENT)?;
    if device.lost {
        return Err(GPU_IS_LOST);
    }
    let everything = device
        .errors
        .get("*")
        .filter(|_| function != "nvmlDeviceGetHandleByIndex_v2");
    if target.mig.is_none()
        && let Some(error) = device.errors.get(function).or(everything)
    {
        return Err(code(error));
    }
    let asked = Asked { config, target };
    if target.mig.is_some() {
        let mig = asked.mig().ok_or(INVALID_ARGUMENT)?;
        if let Some(error) = mig.errors.get(function).or(mig.errors.get("*")) {
            return Err(code(error));
        }
    }
    Ok(asked)
}

/// Fills a list in NVML's way: with room for too few the answer is how many there are.
///
/// # Safety
///
/// `count` is null or valid for reading and writing; `room` is null or has place for `*count` items.
pub(crate) unsafe fn fill<T: Copy>(
    function: &str,
    config: &Config,
    items: &[T],
    room: *mut T,
    count: *mut c_uint,
) -> Return {
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: it is not null, and the caller vouches for it.
    let given = unsafe { count.read() } as usize;
    let tell = |number: usize| {
        // SAFETY: as above.
        unsafe { count.write(c_uint::try_from(number).unwrap_or(c_uint::MAX)) };
    };
    if let Some(claim) = config.claims.get(function) {
        tell(claim.count as usize);
        return code(&claim.result);
    }
    if room.is_null() || given < items.len() {
        tell(items.len());
        return if items.is_empty() {
            SUCCESS
        } else {
            crate::layout::INSUFFICIENT_SIZE
        };
    }
    if let Some(times) = config.grow.get(function) {
        let mut grown = lock(&GROWN);
        let so_far = grown.entry(function.to_owned()).or_default();
        if *so_far < *times {
            *so_far += 1;
            tell(given + 1);
            return crate::layout::INSUFFICIENT_SIZE;
        }
    }
    // SAFETY: the caller vouches for place for `given` items, and there are no more than that.
    unsafe { ptr::copy_nonoverlapping(items.as_ptr(), room, items.len()) };
    tell(items.len());
    SUCCESS
}
