//! The processes on a GPU, each once.

use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper::{Nvml, error::nvml_sym};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t, nvmlProcessUtilizationSample_t, nvmlReturn_t,
};

use super::{
    MAX_INSTANCES, MAX_PROCESSES,
    call::{self, Failure, raw},
    device::{Gpu, Missing},
    mig::Instance,
};
use crate::sample::Process;

/// NVML's mark for no instance.
const NO_INSTANCE: u32 = u32::MAX;
/// NVML's mark for a size that is not available.
const NOT_AVAILABLE: u64 = u64::MAX;

/// A sample may be stamped this much later than our clock says, in microseconds.
const AHEAD: u64 = 10_000_000;

/// What was seen of a GPU's processes.
#[derive(Debug)]
pub(super) struct Seen {
    /// Time stamp of the last sample of their utilisation, in microseconds.
    last: u64,
    pids: BTreeSet<u32>,
}

impl Seen {
    pub(super) const fn since(time: u64) -> Self {
        Self {
            last: time,
            pids: BTreeSet::new(),
        }
    }
}

/// The processes on a GPU, by the instance that they are on; none where they could not be listed.
pub(super) struct Running(BTreeMap<Option<u32>, Option<BTreeMap<u32, Option<u64>>>>);

impl Running {
    /// Those on an instance, or on none.
    pub(super) fn take(&mut self, instance: Option<u32>) -> Option<Vec<Process>> {
        let processes = self.0.remove(&instance)??.into_iter();
        Some(
            processes
                .map(|(pid, memory_bytes)| Process {
                    pid,
                    memory_bytes,
                    utilization: None,
                })
                .collect(),
        )
    }

    /// Instances that are left.
    pub(super) fn instances(&self) -> Vec<u32> {
        self.0.keys().copied().flatten().collect()
    }
}

/// As NVML lists it.
#[derive(Clone, Copy, Debug)]
struct Found {
    pid: u32,
    memory: u64,
    instance: Option<u32>,
}

type ListV1 = unsafe extern "C" fn(nvmlDevice_t, *mut u32, *mut nvmlProcessInfo_v1_t) -> nvmlReturn_t;
type ListV2 = unsafe extern "C" fn(nvmlDevice_t, *mut u32, *mut nvmlProcessInfo_v2_t) -> nvmlReturn_t;

/// The versions of a function that lists processes, as far as the library has them.
struct Lists {
    v3: Result<ListV2, Failure>,
    v2: Result<ListV2, Failure>,
    v1: Result<ListV1, Failure>,
}

macro_rules! lists {
    ($nvml:expr, $v3:ident, $v2:ident, $v1:ident) => {{
        let lib = $nvml.lib();
        Lists {
            v3: nvml_sym(lib.$v3.as_ref()).copied().map_err(Failure::from),
            v2: nvml_sym(lib.$v2.as_ref()).copied().map_err(Failure::from),
            v1: nvml_sym(lib.$v1.as_ref()).copied().map_err(Failure::from),
        }
    }};
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Compute,
    Graphics,
    Mps,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute processes",
            Self::Graphics => "graphics processes",
            Self::Mps => "MPS processes",
        }
    }

    fn lists(self, nvml: &Nvml) -> Lists {
        match self {
            Self::Compute => lists!(
                nvml,
                nvmlDeviceGetComputeRunningProcesses_v3,
                nvmlDeviceGetComputeRunningProcesses_v2,
                nvmlDeviceGetComputeRunningProcesses
            ),
            Self::Graphics => lists!(
                nvml,
                nvmlDeviceGetGraphicsRunningProcesses_v3,
                nvmlDeviceGetGraphicsRunningProcesses_v2,
                nvmlDeviceGetGraphicsRunningProcesses
            ),
            Self::Mps => lists!(
                nvml,
                nvmlDeviceGetMPSComputeRunningProcesses_v3,
                nvmlDeviceGetMPSComputeRunningProcesses_v2,
                nvmlDeviceGetMPSComputeRunningProcesses
            ),
        }
    }
}

/// Lists processes of a kind by the newest function that there is.
fn list(nvml: &Nvml, device: nvmlDevice_t, kind: Kind, driver: Option<&str>) -> Result<Vec<Found>, Failure> {
    let Lists { v3, v2, v1 } = kind.lists(nvml);
    let by_v2 = |list: ListV2| {
        let blank = nvmlProcessInfo_v2_t {
            pid: 0,
            usedGpuMemory: 0,
            gpuInstanceId: 0,
            computeInstanceId: 0,
        };
        // SAFETY: the handle is of this library, and the buffer has room for more items than `count` says.
        let found = call::list(blank, MAX_PROCESSES, |room, count| unsafe {
            list(device, count, room)
        })?;
        Ok(found
            .into_iter()
            .map(|found| Found {
                pid: found.pid,
                memory: found.usedGpuMemory,
                instance: Some(found.gpuInstanceId).filter(|id| *id != NO_INSTANCE),
            })
            .collect())
    };
    let by_v1 = |list: ListV1| {
        let blank = nvmlProcessInfo_v1_t {
            pid: 0,
            usedGpuMemory: 0,
        };
        // SAFETY: as above.
        let found = call::list(blank, MAX_PROCESSES, |room, count| unsafe {
            list(device, count, room)
        })?;
        let found = found.into_iter();
        Ok(found
            .map(|found| Found {
                pid: found.pid,
                memory: found.usedGpuMemory,
                instance: None,
            })
            .collect())
    };
    let older = |told: Result<Vec<Found>, Failure>, next: &dyn Fn() -> Result<Vec<Found>, Failure>| match told
    {
        Err(failure) if failure.is_missing_function() => next(),
        told => told,
    };
    let first = || v1.as_ref().copied().map_err(clone).and_then(by_v1);
    let second = || older(v2.as_ref().copied().map_err(clone).and_then(by_v2), &first);
    if driver.is_some_and(misplaces_third) {
        return second();
    }
    older(v3.and_then(by_v2), &second)
}

/// That the library lacks a function.
fn clone(failure: &Failure) -> Failure {
    Failure::Nvml(nvml_wrapper::error::NvmlError::FailedToLoadSymbol(
        failure.to_string(),
    ))
}

/// Drivers 535.43 to 535.86 have a third version of these functions whose struct is longer than any header before or after
/// says. The second version is right in them.
fn misplaces_third(driver: &str) -> bool {
    let mut parts = driver.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
        return false;
    };
    major == 535 && (43..98).contains(&minor)
}

/// All processes on a GPU. Of one that MIG cut, `instances` are those of it.
pub(super) fn running(
    gpu: &mut Gpu<'_>,
    cut: bool,
    instances: &BTreeMap<u32, Instance<'_>>,
    memory_total: Option<u64>,
    driver: Option<&str>,
) -> Running {
    let mut gathered = Gathered {
        memory_total,
        by: BTreeMap::new(),
    };
    let complete = gathered.of(gpu, raw(gpu.handle), None, driver);
    let mut running = BTreeMap::from([(None, complete.then(BTreeMap::new))]);

    // The whole GPU's list has the instance of each process, but not for everybody.
    let unplaced = gathered.by.keys().any(|(_, instance)| instance.is_none());
    for (id, instance) in instances {
        let mut known = complete;
        if cut && (!complete || unplaced) {
            let mut all = true;
            for handle in &instance.handles {
                all &= gathered.of(gpu, raw(handle), Some(*id), driver);
            }
            known = all || complete;
        }
        running.insert(Some(*id), known.then(BTreeMap::new));
    }

    let placed: BTreeSet<u32> = gathered
        .by
        .keys()
        .filter(|(_, instance)| instance.is_some())
        .map(|(pid, _)| *pid)
        .collect();
    let mut left_out = 0_u64;
    for ((pid, instance), memory) in gathered.by {
        if instance.is_none() && placed.contains(&pid) {
            continue;
        }
        if instance.is_some() && !running.contains_key(&instance) && running.len() > MAX_INSTANCES as usize {
            left_out += 1;
            continue;
        }
        // One list was got, another was not: what is known to run is told, for what it is worth.
        if let Some(processes) = running.entry(instance).or_insert_with(|| Some(BTreeMap::new())) {
            processes.insert(pid, memory);
        }
    }
    if left_out > 0 {
        gpu.reject(
            "processes",
            format_args!("{left_out} on more instances than there can be"),
        );
    }
    Running(running)
}

/// Processes from several lists, with their memory.
struct Gathered {
    memory_total: Option<u64>,
    by: BTreeMap<(u32, Option<u32>), Option<u64>>,
}

impl Gathered {
    /// Adds those of a GPU or of an instance; false: there may be more.
    fn of(&mut self, gpu: &mut Gpu<'_>, device: nvmlDevice_t, on: Option<u32>, driver: Option<&str>) -> bool {
        let nvml = gpu.nvml;
        let mut complete = true;
        for kind in [Kind::Compute, Kind::Graphics, Kind::Mps] {
            match gpu.try_ask(kind.name(), || list(nvml, device, kind, driver)) {
                Ok(found) => complete &= self.add(gpu, kind, on, &found),
                // A GPU that runs no graphics and no MPS has no such processes.
                Err(missing) => complete &= missing == Missing::Unsupported && kind != Kind::Compute,
            }
        }
        complete
    }

    fn add(&mut self, gpu: &mut Gpu<'_>, kind: Kind, on: Option<u32>, found: &[Found]) -> bool {
        for process in found {
            if process.pid == 0 {
                gpu.reject(kind.name(), "a process without an id");
                continue;
            }
            let mut memory = Some(process.memory).filter(|bytes| *bytes != NOT_AVAILABLE);
            if let (Some(bytes), Some(total)) = (memory, self.memory_total)
                && bytes > total
            {
                gpu.reject(
                    kind.name(),
                    format_args!("process {} has {bytes} of {total} bytes", process.pid),
                );
                memory = None;
            }
            let key = (process.pid, process.instance.or(on));
            if self.by.len() >= MAX_PROCESSES && !self.by.contains_key(&key) {
                gpu.reject(
                    kind.name(),
                    format_args!("more than the {MAX_PROCESSES} that are read"),
                );
                return false;
            }
            // In two lists it is still one process, with the same memory.
            let known = self.by.entry(key).or_default();
            *known = known.or(memory);
        }
        true
    }
}

/// What the processes of a whole GPU used of it since the last time.
///
/// NVML samples processes that used the GPU: of one that was there and is not among them, nothing is what it used. Of one
/// that is new nothing is known yet, and of all when there was no new sample.
pub(super) fn utilization(gpu: &mut Gpu<'_>, seen: &mut Seen, now: u64, processes: &mut [Process]) {
    let pids: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
    let before = std::mem::replace(&mut seen.pids, pids);
    if processes.is_empty() {
        return;
    }
    // A clock that was set back must not keep samples away until it has caught up.
    let last = if seen.last > now.saturating_add(AHEAD) {
        now
    } else {
        seen.last
    };
    let mut newest = last;
    let what = "utilisation of processes";
    let (nvml, handle) = (gpu.nvml, raw(gpu.handle));
    let Some(samples) = gpu.ask(what, || samples(nvml, handle, last)) else {
        return;
    };

    let mut used: BTreeMap<u32, BTreeMap<u64, u32>> = BTreeMap::new();
    for sample in samples {
        let (pid, time, percent) = (sample.pid, sample.timeStamp, sample.smUtil);
        // A place that the driver left empty.
        if pid == 0 {
            continue;
        }
        if time <= last || time > now.saturating_add(AHEAD) {
            gpu.reject(what, format_args!("a sample of process {pid} from another time"));
        } else if percent > 100 {
            gpu.reject(what, format_args!("process {pid}: {percent} %"));
        } else if used.entry(pid).or_default().insert(time, percent).is_some() {
            gpu.reject(what, format_args!("process {pid} twice at one time"));
        } else {
            newest = newest.max(time);
        }
    }
    seen.last = newest;
    // One that was sampled less often than another used nothing at the other times.
    let times = used.values().map(BTreeMap::len).max().unwrap_or(0);
    if times == 0 {
        return;
    }
    for process in processes {
        process.utilization = match used.get(&process.pid) {
            Some(samples) => {
                let sum: f64 = samples.values().copied().map(f64::from).sum();
                Some(sum / times as f64 / 100.0)
            }
            None if before.contains(&process.pid) => Some(0.0),
            None => None,
        };
    }
}

fn samples(
    nvml: &Nvml,
    device: nvmlDevice_t,
    last: u64,
) -> Result<Vec<nvmlProcessUtilizationSample_t>, Failure> {
    let get = nvml_sym(nvml.lib().nvmlDeviceGetProcessUtilization.as_ref())?;
    let blank = nvmlProcessUtilizationSample_t {
        pid: 0,
        timeStamp: 0,
        smUtil: 0,
        memUtil: 0,
        encUtil: 0,
        decUtil: 0,
    };
    call::list(blank, MAX_PROCESSES * 4, |room, count| {
        // SAFETY: the handle is of this library, and the buffer has room for more items than `count` says.
        unsafe { get(device, room, count, last) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_with_the_long_struct_are_known() {
        for driver in ["535.43.02", "535.54.03", "535.86.10"] {
            assert!(misplaces_third(driver), "{driver}");
        }
        for driver in ["530.41.03", "535.98", "535.104.05", "550.54.15", "535", ""] {
            assert!(!misplaces_third(driver), "{driver}");
        }
    }
}
