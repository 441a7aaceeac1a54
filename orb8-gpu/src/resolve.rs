//! Which device a container holds, by what the kubelet calls it.

use crate::{
    allocation::Held,
    id::{DeviceKey, Uuid},
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
    let resource = held.resource.as_bytes();
    let domain = b"nvidia.com";
    let named = resource
        .windows(domain.len())
        .any(|part| part.eq_ignore_ascii_case(domain));
    named || held.devices.iter().any(|id| is_uuid(id))
}

fn starts(text: &str, with: &str) -> bool {
    text.get(..with.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(with))
}

fn is_uuid(id: &str) -> bool {
    starts(id, "GPU-") && id.len() > 12 || starts(id, "MIG-")
}

/// What it is without the number of its replica: `GPU-…` of `GPU-…::3`.
pub(crate) fn without_replica(id: &str) -> &str {
    id.split_once("::").map_or(id, |(device, _)| device)
}

/// Parent's UUID and GPU instance of the old form `MIG-GPU-…/gi/ci`.
pub(crate) fn old_mig(id: &str) -> Option<DeviceKey> {
    let rest = starts(id, "MIG-GPU-").then(|| id.get(4..)).flatten()?;
    let mut parts = rest.split('/');
    let uuid = Uuid::new(parts.next()?);
    let instance = parts.next()?.parse().ok()?;
    Some(DeviceKey {
        uuid,
        instance: Some(instance),
    })
}

/// Whether a held device, as the kubelet calls it, is this one.
pub(crate) fn matches(held: &str, device: &Names<'_>) -> bool {
    let held = without_replica(held);
    if let Some(key) = old_mig(held) {
        return key == *device.key;
    }
    if is_uuid(held) {
        let uuid = Uuid::new(held);
        let whole = device.key.uuid == uuid && device.key.instance.is_none();
        return whole || device.mig.contains(&uuid);
    }
    let mut parts = held.split('/');
    let Some(name) = parts.next() else {
        return false;
    };
    let number = ["nvidia", "gpu-"]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name);
    let mut instance = None;
    for part in parts {
        match (part.strip_prefix("gi"), part.strip_prefix("vgpu")) {
            (Some(number), _) => match number.parse() {
                Ok(number) => instance = Some(number),
                Err(_) => return false,
            },
            (None, Some(number)) if number.parse::<u32>().is_ok() => {}
            _ => return false,
        }
    }
    number.bytes().all(|byte| byte.is_ascii_digit())
        && number.parse().ok().is_some_and(|number| device.index == Some(number))
        && device.key.instance == instance
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
        for id in [gpu, &lower, &format!("{gpu}::3"), "2", "2::0", "nvidia2", "nvidia2/vgpu1", "gpu-2"] {
            assert!(matches(id, &whole), "{id}");
            assert!(!matches(id, &cut), "{id}");
        }
        for id in [
            &format!("MIG-{gpu}/9/0"),
            "mig-4C9A2f2c-5dc9-5b39-9d1a-6a2d1dc6a1c1::1",
            "nvidia2/gi9",
            "nvidia2/gi9/vgpu0",
        ] {
            assert!(matches(id, &cut), "{id}");
            assert!(!matches(id, &whole), "{id}");
        }
        for id in ["", "::", "3", "+2", "nvidia", "2/x", "gpu-2-mig-9-0-1", "0000:3b:00.0", "é", "MIG-é", "GPU-é"] {
            assert!(!matches(id, &whole) && !matches(id, &cut), "{id}");
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
        assert!(is_gpu(&held("example.org/slice", "MIG-4c9a2f2c-5dc9-5b39-9d1a-6a2d1dc6a1c1")));
        assert!(!is_gpu(&held("example.org/nic", "0")) && !is_gpu(&held("é", "é")));
    }
}
