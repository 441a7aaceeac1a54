//! The instances that Multi-Instance GPU cut of a GPU.

use std::collections::BTreeMap;

use super::{
    MAX_INSTANCES,
    call::{self, raw},
    device::Gpu,
};
use crate::{
    id::Uuid,
    sample::{Mig, Place, Readings},
};
use nvml_wrapper::error::{nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t};

/// A GPU instance.
#[derive(Default)]
pub(super) struct Instance<'a> {
    pub(super) mig: Mig,
    pub(super) readings: Readings,
    /// One for each compute instance in it.
    pub(super) handles: Vec<nvml_wrapper::Device<'a>>,
}

/// Whether MIG is switched on, and the instances by their id.
pub(super) fn instances<'a>(gpu: &mut Gpu<'a>) -> (bool, BTreeMap<u32, Instance<'a>>) {
    let mut found = BTreeMap::new();
    let handle = gpu.handle;
    let mode = gpu.ask("MIG mode", || Ok(handle.mig_mode()?));
    match mode.map(|mode| mode.current) {
        Some(1) => {}
        None | Some(0) => return (false, found),
        Some(other) => {
            gpu.reject("MIG mode", other);
            return (false, found);
        }
    }
    let count = gpu
        .ask("number of MIG devices", || Ok(handle.mig_device_count()?))
        .unwrap_or(0);
    if count > MAX_INSTANCES {
        gpu.reject(
            "number of MIG devices",
            format_args!("{count}: only the first {MAX_INSTANCES} are read"),
        );
    }
    for index in 0..count.min(MAX_INSTANCES) {
        // A place that is empty is not found.
        if let Some(device) = gpu.ask("MIG device", || Ok(handle.mig_device_by_index(index)?)) {
            add(gpu, index, device, &mut found);
        }
    }
    (true, found)
}

fn add<'a>(
    gpu: &mut Gpu<'a>,
    index: u32,
    device: nvml_wrapper::Device<'a>,
    found: &mut BTreeMap<u32, Instance<'a>>,
) {
    let nvml = gpu.nvml;
    let id = gpu.try_ask("GPU instance id", || {
        let get = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
        let mut id = u32::MAX;
        // SAFETY: the handle is of this library, and `id` is valid for a write.
        nvml_try(unsafe { get(raw(&device), &raw mut id) })?;
        Ok(id)
    });
    let id = match id {
        Ok(id) if id != u32::MAX => id,
        // An instance is known by its id only.
        Ok(_) | Err(super::device::Missing::Unsupported) => {
            gpu.reject("MIG device", format_args!("{index} has no GPU instance id"));
            return;
        }
        Err(super::device::Missing::Unknown) => return,
    };
    let uuid = gpu.ask("UUID of a MIG device", || call::uuid(nvml, &device));
    let profile = gpu
        .ask("name of a MIG device", || call::name(nvml, &device))
        .as_deref()
        .and_then(profile);

    let instance = found.entry(id).or_default();
    if instance.handles.is_empty() {
        instance.mig = Mig {
            uuid,
            profile,
            place: place(gpu, id),
            ..Mig::default()
        };
    } else {
        join(&mut instance.mig, uuid, profile.as_deref());
    }
    if instance.readings.memory_total.is_none() {
        // Compute instances share the memory of their GPU instance: it is counted once.
        gpu.memory(&device, "memory of a MIG device", &mut instance.readings);
    }
    instance.mig.slots.push(index);
    instance.handles.push(device);
}

/// Where an instance lies. It takes root, and only names of dynamic resource allocation need it: without it nothing is amiss.
fn place(gpu: &Gpu<'_>, id: u32) -> Option<Place> {
    let lib = gpu.nvml.lib();
    let by_id = lib.nvmlDeviceGetGpuInstanceById.as_ref().ok()?;
    let get = lib.nvmlGpuInstanceGetInfo.as_ref().ok()?;
    let mut handle = std::ptr::null_mut();
    // SAFETY: the GPU's handle is of this library, and `handle` is valid for a write.
    nvml_try(unsafe { by_id(raw(gpu.handle), id, &raw mut handle) }).ok()?;
    let mut info = nvmlGpuInstanceInfo_t {
        device: std::ptr::null_mut(),
        id: u32::MAX,
        profileId: 0,
        placement: nvmlGpuInstancePlacement_t { start: 0, size: 0 },
    };
    // SAFETY: the handle is of this library, and `info` is valid for a write.
    nvml_try(unsafe { get(handle, &raw mut info) }).ok()?;
    (info.id == id).then_some(Place {
        profile: info.profileId,
        start: info.placement.start,
    })
}

/// A further compute instance of a GPU instance.
fn join(mig: &mut Mig, uuid: Option<Uuid>, profile: Option<&str>) {
    match (&mig.uuid, uuid) {
        (None, uuid) => mig.uuid = uuid,
        (Some(first), Some(uuid)) if *first != uuid && !mig.others.contains(&uuid) => mig.others.push(uuid),
        (Some(_), _) => {}
    }
    mig.profile = whole(mig.profile.as_deref().or(profile));
}

/// `1g.10gb` of `NVIDIA A100-SXM4-80GB MIG 1g.10gb`, which is how NVML names MIG devices.
fn profile(name: &str) -> Option<String> {
    let (_, profile) = name.rsplit_once(" MIG ")?;
    Some(profile.trim())
        .filter(|profile| !profile.is_empty())
        .map(str::to_owned)
}

/// The GPU instance's profile of that of a compute instance: `3g.20gb` of `1c.3g.20gb`.
fn whole(profile: Option<&str>) -> Option<String> {
    let profile = profile?;
    let of_instance = match profile.split_once('.') {
        Some((slice, rest)) if slice.ends_with('c') => rest,
        _ => profile,
    };
    Some(of_instance.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_told_by_names() {
        assert_eq!(
            profile("NVIDIA A100-SXM4-40GB MIG 1g.5gb").as_deref(),
            Some("1g.5gb")
        );
        assert_eq!(
            profile("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me").as_deref(),
            Some("1g.10gb+me")
        );
        assert_eq!(profile("NVIDIA A100-SXM4-40GB"), None);
        assert_eq!(profile("NVIDIA A100-SXM4-40GB MIG "), None);
        assert_eq!(whole(Some("1c.3g.20gb")).as_deref(), Some("3g.20gb"));
        assert_eq!(whole(Some("3g.20gb")).as_deref(), Some("3g.20gb"));
        assert_eq!(whole(None), None);
    }
}
