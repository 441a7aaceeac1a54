//! Readings from NVML, NVIDIA's management library, which the driver brings and which is loaded at run time.
//!
//! [`Library::sample`] reads every GPU and every instance that MIG cut of one; [`Library::watch`] waits for XID errors. Both
//! block: a GPU in trouble may keep a call for seconds. What a GPU does not support is left unset, and a GPU that is lost
//! says so in [`Device::trouble`] while the others are read.
//!
//! The answers are checked, but the library itself is trusted, as code that is loaded must be. Scalars are read through
//! `nvml-wrapper`; texts, lists and events through its raw bindings, because it takes the library's word for where a text
//! ends and how long a list is, and gives up when a list grew in between.

mod call;
mod device;
mod error;
mod event;
mod mig;
mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use nvml_wrapper::Nvml;

use self::{
    call::{Answers, Failure},
    device::Gpu,
};
pub use self::{
    error::NvmlError,
    event::{EventWatcher, MAX_WAIT, XidEvent},
};
use crate::{
    id::{DeviceKey, Uuid},
    sample::{Device, Mig, Snapshot, Source},
};

/// What the loader looks for when no path is set.
pub const DEFAULT_LIBRARY: &str = "libnvidia-ml.so.1";

/// GPUs that are read; what a library tells beyond that is counted as rejected.
pub const MAX_DEVICES: u32 = 256;
/// MIG devices that are read of a GPU. NVIDIA's have seven at most.
pub const MAX_INSTANCES: u32 = 64;
/// Processes that are read of a GPU.
pub const MAX_PROCESSES: usize = 4096;

/// NVML, loaded and initialised.
///
/// It is shut down when this and all [`EventWatcher`]s of it are gone.
#[derive(Debug)]
pub struct Library {
    nvml: Arc<Nvml>,
    path: PathBuf,
    driver: Option<String>,
    /// What the GPUs said of themselves when they last could, by their index: a lost GPU can't even tell its UUID.
    known: BTreeMap<u32, Known>,
    /// Of each GPU, what was seen of its processes.
    seen: BTreeMap<Uuid, process::Seen>,
    opened: u64,
}

/// What a GPU said of itself.
#[derive(Clone, Debug)]
struct Known {
    uuid: Uuid,
    minor: Option<u32>,
    model: Option<String>,
    pci: Option<String>,
    instances: BTreeMap<u32, Mig>,
}

impl Library {
    /// Loads the library at this path, or where the loader finds [`DEFAULT_LIBRARY`], and initialises it.
    ///
    /// # Errors
    ///
    /// [`NvmlError::is_absent`] tells a node without an NVIDIA driver from one whose driver does not work.
    pub fn open(path: Option<&Path>) -> Result<Self, NvmlError> {
        let path = path.unwrap_or(Path::new(DEFAULT_LIBRARY));
        if cfg!(target_feature = "crt-static") {
            return Err(NvmlError::Static {
                path: path.to_owned(),
            });
        }
        let nvml = Nvml::builder()
            .lib_path(path.as_os_str())
            .init()
            .map_err(|error| NvmlError::of_opening(path, error))?;
        if nvml.lib().nvmlShutdown.is_err() {
            // The wrapper would panic when it is dropped.
            std::mem::forget(nvml);
            return Err(NvmlError::Foreign {
                path: path.to_owned(),
                symbol: "nvmlShutdown".to_owned(),
            });
        }
        let driver = call::driver(&nvml);
        Ok(Self {
            nvml: Arc::new(nvml),
            path: path.to_owned(),
            driver,
            known: BTreeMap::new(),
            seen: BTreeMap::new(),
            opened: micros(SystemTime::now()),
        })
    }

    /// What was loaded: a path, or the name that the loader looked for.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the driver.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        self.driver.as_deref()
    }

    /// Reads all GPUs and their instances. Utilisation of processes is over the time since the call before, or since
    /// [`Library::open`].
    ///
    /// # Errors
    ///
    /// When NVML as a whole does not answer. It has to be opened again then: the driver was unloaded or replaced.
    pub fn sample(&mut self) -> Result<Snapshot, NvmlError> {
        let time = SystemTime::now();
        let mut answers = Answers::default();
        let count = self.nvml.device_count().map_err(|source| NvmlError::Call {
            function: "nvmlDeviceGetCount_v2",
            source,
        })?;
        if count > MAX_DEVICES {
            answers.reject(format!(
                "NVML tells of {count} devices: only the first {MAX_DEVICES} are read"
            ));
        }

        let nvml = Arc::clone(&self.nvml);
        let mut devices = Vec::new();
        let mut silent = Vec::new();
        let mut told = BTreeSet::new();
        for index in 0..count.min(MAX_DEVICES) {
            let handle = nvml.device_by_index(index).map_err(Failure::from);
            let found = handle.and_then(|handle| {
                let uuid = call::uuid(&nvml, &handle)?;
                Ok((handle, uuid))
            });
            match found {
                Err(failure) if failure.is_of_library() => {
                    return Err(failure.into_call("nvmlDeviceGetHandleByIndex_v2"));
                }
                Err(failure) => silent.push((index, failure)),
                Ok((_, uuid)) if told.contains(&uuid) => {
                    answers.reject(format!("device {index}: {uuid} was told before"));
                }
                Ok((handle, uuid)) => {
                    let mut gpu = Gpu::new(&nvml, &handle, index, uuid.clone(), &mut answers);
                    let seen = self
                        .seen
                        .entry(uuid.clone())
                        .or_insert_with(|| process::Seen::since(self.opened));
                    let known = self.known.get(&index).filter(|known| known.uuid == uuid);
                    let read = gpu.read(self.driver.as_deref(), known, seen, micros(time));
                    if let Some(failure) = gpu.failure_of_library() {
                        return Err(failure.into_call("nvmlDeviceGetHandleByIndex_v2"));
                    }
                    self.remember(index, &read);
                    devices.extend(read);
                    told.insert(uuid);
                }
            }
        }
        let mut unnamed = Vec::new();
        for (index, failure) in silent {
            match self.known.get(&index).filter(|known| !told.contains(&known.uuid)) {
                Some(known) => {
                    told.insert(known.uuid.clone());
                    devices.extend(known.lost(index, self.driver.as_deref(), &failure.to_string()));
                }
                None => {
                    answers.reject(format!("device {index}, whose UUID is not known: {failure}"));
                    unnamed.push(format!("device {index}: {failure}"));
                }
            }
        }
        self.known.retain(|index, _| *index < count);
        self.seen.retain(|uuid, _| told.contains(uuid));

        Ok(Snapshot {
            source: Source::Nvml,
            time,
            devices,
            rejected: answers.rejected,
            first_rejected: answers.first_rejected,
            unnamed,
        })
    }

    /// Starts to wait for XID errors of all GPUs that there are now.
    ///
    /// # Errors
    ///
    /// [`NvmlError::NoEvents`] when no GPU reports any.
    pub fn watch(&self) -> Result<EventWatcher, NvmlError> {
        EventWatcher::new(Arc::clone(&self.nvml))
    }

    fn remember(&mut self, index: u32, read: &[Device]) {
        let Some(whole) = read.iter().find(|device| device.key.instance.is_none()) else {
            return;
        };
        let instances = read
            .iter()
            .filter_map(|device| Some((device.key.instance?, device.mig.clone().unwrap_or_default())));
        let known = Known {
            uuid: whole.key.uuid.clone(),
            minor: whole.minor,
            model: whole.model.clone(),
            pci: whole.pci.clone(),
            instances: instances.collect(),
        };
        self.known.insert(index, known);
    }
}

impl Known {
    /// The GPU and its instances, as those that can't be read now.
    fn lost(&self, index: u32, driver: Option<&str>, why: &str) -> Vec<Device> {
        let device = |instance: Option<u32>, mig: Option<&Mig>| {
            let mut device = Device::new(DeviceKey {
                uuid: self.uuid.clone(),
                instance,
            });
            device.index = Some(index);
            device.minor = self.minor;
            device.model.clone_from(&self.model);
            device.driver = driver.map(str::to_owned);
            device.pci.clone_from(&self.pci);
            device.mig = mig.cloned();
            device.trouble = Some(why.to_owned());
            device
        };
        let instances = self
            .instances
            .iter()
            .map(|(id, mig)| device(Some(*id), Some(mig)));
        std::iter::once(device(None, None)).chain(instances).collect()
    }
}

/// Microseconds of Unix time, as NVML stamps its samples.
fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
