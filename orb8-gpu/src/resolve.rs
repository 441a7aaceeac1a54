//! Which device a container holds, by what the kubelet calls it.

use crate::{
    allocation::Held,
    id::{DeviceId, DeviceKey, Uuid},
    merge,
    sample::{Mig, Place},
};

/// What a device goes by.
#[derive(Clone, Debug)]
pub(crate) struct Names<'a> {
    pub(crate) key: &'a DeviceKey,
    /// The driver's number of the whole GPU.
    pub(crate) index: Option<u32>,
    /// Of the whole GPU's `/dev/nvidiaN`.
    pub(crate) minor: Option<u32>,
    /// Of an instance.
    pub(crate) mig: Option<&'a Mig>,
    /// Where no source tells an instance's own UUIDs: those that it goes by, as is concluded from labels.
    pub(crate) labelled: Vec<Uuid>,
}

impl Names<'_> {
    fn has_uuid(&self, uuid: &Uuid) -> bool {
        merge::mig_uuids(self.mig)
            .chain(&self.labelled)
            .any(|own| own == uuid)
    }

    fn lies_at(&self, profile: u32, start: u32) -> bool {
        self.mig.and_then(|mig| mig.place) == Some(Place { profile, start })
    }

    fn has_slot(&self, slot: u32) -> bool {
        self.mig.is_some_and(|mig| mig.slots.contains(&slot))
    }
}

/// Whether what a container holds are GPUs of NVIDIA. Other device plugins number their devices too, and NVIDIA has other
/// devices: network cards by their addresses on the bus, channels between nodes.
pub(crate) fn is_gpu(held: &Held) -> bool {
    let resource = held.resource.to_ascii_lowercase();
    let name = resource.strip_prefix("nvidia.com/");
    let says_so = resource == "gpu.nvidia.com"
        || name.is_some_and(|name| ["gpu", "mig", "vgpu"].iter().any(|kind| name.starts_with(kind)));
    says_so
        || held.devices.iter().any(|id| match DeviceId::parse(id) {
            DeviceId::Gpu { .. } | DeviceId::Mig { .. } | DeviceId::MigOf { .. } => true,
            // Resources can be called anything.
            DeviceId::Index { .. } | DeviceId::Minor { .. } | DeviceId::Slice { .. } => name.is_some(),
            DeviceId::Other(_) => false,
        })
}

/// Parent's UUID and GPU instance of the old form `MIG-GPU-…/gi/ci`.
pub(crate) fn old_mig(id: &str) -> Option<DeviceKey> {
    match DeviceId::parse(id) {
        DeviceId::MigOf { parent, instance, .. } => Some(DeviceKey {
            uuid: parent,
            instance: Some(instance),
        }),
        _ => None,
    }
}

/// Whether a held device, as the kubelet calls it, is this one. A number that no source tells is no other number: the device
/// node's is not the index.
pub(crate) fn matches(held: &DeviceId, device: &Names<'_>) -> bool {
    let whole = device.key.instance.is_none();
    match held {
        DeviceId::Gpu { uuid, .. } => whole && device.key.uuid == *uuid,
        DeviceId::Mig { uuid, .. } => whole && device.key.uuid == *uuid || device.has_uuid(uuid),
        DeviceId::MigOf { parent, instance, .. } => {
            device.key.uuid == *parent && device.key.instance == Some(*instance)
        }
        DeviceId::Index { index, mig: None, .. } => whole && device.index == Some(*index),
        DeviceId::Index {
            index,
            mig: Some(slot),
            ..
        } => !whole && device.index == Some(*index) && device.has_slot(*slot),
        DeviceId::Minor { minor, instance, .. } => {
            device.minor == Some(*minor) && device.key.instance == *instance
        }
        DeviceId::Slice {
            minor,
            profile_id,
            start,
            ..
        } => device.minor == Some(*minor) && device.lies_at(*profile_id, *start),
        DeviceId::Other(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_devices_are_found_by_each_of_their_names() {
        let gpu = "GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76";
        let whole = DeviceKey {
            uuid: Uuid::new(gpu),
            instance: None,
        };
        let cut = DeviceKey {
            instance: Some(9),
            ..whole.clone()
        };
        let mig = Mig {
            uuid: Some(Uuid::new("MIG-4c9a2f2c-5dc9-5b39-9d1a-6a2d1dc6a1c1")),
            place: Some(Place {
                profile: 19,
                start: 4,
            }),
            slots: vec![1],
            ..Mig::default()
        };
        let whole = Names {
            key: &whole,
            index: Some(2),
            minor: Some(5),
            mig: None,
            labelled: Vec::new(),
        };
        let cut = Names {
            key: &cut,
            index: Some(2),
            minor: Some(5),
            mig: Some(&mig),
            labelled: Vec::new(),
        };
        let lower = gpu.to_ascii_lowercase();
        for id in [
            gpu,
            &lower,
            &format!("{gpu}::3"),
            "2",
            "2::0",
            "nvidia5",
            "nvidia5/vgpu1",
            "gpu-5",
        ] {
            let held = DeviceId::parse(id);
            assert!(matches(&held, &whole), "{id}");
            assert!(!matches(&held, &cut), "{id}");
        }
        for id in [
            &format!("MIG-{gpu}/9/0"),
            "mig-4C9A2f2c-5dc9-5b39-9d1a-6a2d1dc6a1c1::1",
            "nvidia5/gi9",
            "nvidia5/gi9/vgpu0",
            "2:1",
            "2:1::3",
            "gpu-5-mig-1g5gb-19-4",
            "gpu-5-mig-1g10gb-me-19-4",
            "gpu-5-mig-19-4-1",
        ] {
            let held = DeviceId::parse(id);
            assert!(matches(&held, &cut), "{id}");
            assert!(!matches(&held, &whole), "{id}");
        }
        for id in [
            "",
            "::",
            "3",
            "+2",
            "nvidia",
            "2/x",
            "gpu-2",
            "nvidia2",
            "nvidia2/gi9",
            "2:9",
            "gpu-5-mig-1g5gb-19-5",
            "gpu-5-mig-1g5gb-14-4",
            "gpu-2-mig-1g5gb-19-4",
            "gpu-5-mig-9-0-1",
            "0000:3b:00.0",
            "é",
            "MIG-é",
            "GPU-é",
        ] {
            let held = DeviceId::parse(id);
            assert!(!matches(&held, &whole) && !matches(&held, &cut), "{id}");
        }
        // What is not told is not taken for the index.
        let unnumbered = Names { minor: None, ..whole };
        for id in ["gpu-2", "nvidia2", "gpu-5"] {
            assert!(!matches(&DeviceId::parse(id), &unnumbered), "{id}");
        }
    }

    #[test]
    fn only_gpus_are_gpus() {
        let held = |resource: &str, id: &str| Held {
            namespace: String::new(),
            pod: String::new(),
            container: String::new(),
            resource: resource.to_owned(),
            claim: None,
            devices: vec![id.to_owned()],
        };
        assert!(is_gpu(&held("nvidia.com/gpu", "0")));
        assert!(is_gpu(&held("gpu.nvidia.com", "gpu-0")));
        assert!(is_gpu(&held(
            "example.org/slice",
            "MIG-4c9a2f2c-5dc9-5b39-9d1a-6a2d1dc6a1c1"
        )));
        assert!(!is_gpu(&held("example.org/nic", "0")) && !is_gpu(&held("é", "é")));
        for (resource, id) in [
            ("nvidia.com/gpu", "weird"),
            ("NVIDIA.com/GPU.shared", "weird"),
            ("nvidia.com/mig-1g.5gb", "weird"),
            ("nvidia.com/a100", "3"),
            ("nvidia.com/a100", "nvidia3/gi1"),
            ("gpu.nvidia.com", "gpu-vfio-0"),
        ] {
            assert!(is_gpu(&held(resource, id)), "{resource} {id}");
        }
        // NVIDIA makes network cards too, and lends channels between nodes.
        for (resource, id) in [
            ("nvidia.com/hostdev", "0000:3b:00.2"),
            ("nvidia.com/bf3_p0_vfs", "0000:3b:00.2"),
            ("rdma.nvidia.com/nic", "0"),
            ("compute-domain.nvidia.com", "channel-0"),
            ("compute-domain.nvidia.com", "daemon-0"),
            ("mynvidia.com/gpu", "0"),
        ] {
            assert!(!is_gpu(&held(resource, id)), "{resource} {id}");
        }
    }
}
