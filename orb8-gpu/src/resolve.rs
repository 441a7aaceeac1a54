//! Which device a container holds, by what the kubelet calls it.

use crate::{
    allocation::Held,
    id::{DeviceId, DeviceKey, Uuid},
};

/// What a device goes by.
#[derive(Clone, Debug)]
pub(crate) struct Names<'a> {
    pub(crate) key: &'a DeviceKey,
    /// The driver's number of the whole GPU.
    pub(crate) index: Option<u32>,
    /// Of an instance: `MIG-…` of each compute instance in it.
    pub(crate) mig: &'a [Uuid],
}

/// Whether what a container holds are GPUs of NVIDIA: other device plugins number their devices too.
pub(crate) fn is_gpu(held: &Held) -> bool {
    let domain = b"nvidia.com";
    let named = held
        .resource
        .as_bytes()
        .windows(domain.len())
        .any(|part| part.eq_ignore_ascii_case(domain));
    named
        || held.devices.iter().any(|id| {
            matches!(
                DeviceId::parse(id),
                DeviceId::Gpu { .. } | DeviceId::Mig { .. } | DeviceId::MigOf { .. }
            )
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

/// Whether a held device, as the kubelet calls it, is this one. Places among a GPU's MIG devices (`0:1`) are not resolved: no
/// source tells them.
pub(crate) fn matches(held: &DeviceId, device: &Names<'_>) -> bool {
    let whole = device.key.instance.is_none();
    match held {
        DeviceId::Gpu { uuid, .. } => whole && device.key.uuid == *uuid,
        DeviceId::Mig { uuid, .. } => whole && device.key.uuid == *uuid || device.mig.contains(uuid),
        DeviceId::MigOf { parent, instance, .. } => {
            device.key.uuid == *parent && device.key.instance == Some(*instance)
        }
        DeviceId::Index { index, mig: None, .. } => whole && device.index == Some(*index),
        DeviceId::Minor { minor, instance, .. } => {
            device.index == Some(*minor) && device.key.instance == *instance
        }
        DeviceId::Index { mig: Some(_), .. } | DeviceId::Slice { .. } | DeviceId::Other(_) => false,
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
        let mig = [Uuid::new("MIG-4c9a2f2c-5dc9-5b39-9d1a-6a2d1dc6a1c1")];
        let whole = Names {
            key: &whole,
            index: Some(2),
            mig: &[],
        };
        let cut = Names {
            key: &cut,
            index: Some(2),
            mig: &mig,
        };
        let lower = gpu.to_ascii_lowercase();
        for id in [
            gpu,
            &lower,
            &format!("{gpu}::3"),
            "2",
            "2::0",
            "nvidia2",
            "nvidia2/vgpu1",
            "gpu-2",
        ] {
            let held = DeviceId::parse(id);
            assert!(matches(&held, &whole), "{id}");
            assert!(!matches(&held, &cut), "{id}");
        }
        for id in [
            &format!("MIG-{gpu}/9/0"),
            "mig-4C9A2f2c-5dc9-5b39-9d1a-6a2d1dc6a1c1::1",
            "nvidia2/gi9",
            "nvidia2/gi9/vgpu0",
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
            "gpu-2-mig-9-0-1",
            "0000:3b:00.0",
            "é",
            "MIG-é",
            "GPU-é",
        ] {
            let held = DeviceId::parse(id);
            assert!(!matches(&held, &whole) && !matches(&held, &cut), "{id}");
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
    }
}
