//! What NVIDIA's driver tells of this node's GPUs in `/proc/driver/nvidia`, where there is no NVML to ask.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use crate::{id::Uuid, sample::Device};

/// Where the driver's directory is.
pub const DIRECTORY: &str = "/proc/driver/nvidia";

/// GPUs that are read.
const MAX_GPUS: usize = 256;
/// A GPU's file has some 300 bytes.
const MAX_FILE: u64 = 16 << 10;

/// A GPU of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// `GPU-…`; of a GPU that is not initialised the driver does not know it.
    pub uuid: Option<Uuid>,
    /// Bus, such as `0000:07:00.0`.
    pub pci: String,
    /// N of its `/dev/nvidiaN`.
    pub minor: Option<u32>,
}

/// The GPUs that the driver has; none, where there is no driver. Cost: a small file for each.
#[must_use]
pub fn gpus(directory: &Path) -> Vec<Gpu> {
    let Ok(entries) = fs::read_dir(directory.join("gpus")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let mut text = String::new();
            let file = File::open(entry.path().join("information")).ok()?;
            file.take(MAX_FILE).read_to_string(&mut text).ok()?;
            Some(gpu(&entry.file_name().into_string().ok()?, &text))
        })
        .take(MAX_GPUS)
        .collect()
}

/// Of lines such as `Device Minor: \t 3`.
fn gpu(pci: &str, text: &str) -> Gpu {
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    Gpu {
        uuid: value("GPU UUID")
            .filter(|uuid| !uuid.is_empty() && !uuid.contains('?'))
            .map(Uuid::new),
        pci: pci.to_owned(),
        minor: value("Device Minor").and_then(|minor| minor.parse().ok()),
    }
}

/// Gives devices the numbers of their device nodes, where their source does not tell them.
pub fn number(devices: &mut [Device], gpus: &[Gpu]) {
    for device in devices.iter_mut().filter(|device| device.minor.is_none()) {
        let by_uuid = gpus
            .iter()
            .find(|gpu| gpu.uuid.as_ref() == Some(&device.key.uuid));
        let own = device.pci.as_deref().and_then(address);
        let by_bus = || {
            gpus.iter()
                .find(|gpu| gpu.uuid.is_none() && own.is_some() && address(&gpu.pci) == own)
        };
        device.minor = by_uuid.or_else(by_bus).and_then(|gpu| gpu.minor);
    }
}

/// A PCI address as a number, for domains are written with four digits or with eight.
fn address(text: &str) -> Option<[u32; 4]> {
    let (bus, function) = text.rsplit_once('.')?;
    let mut parts = bus.split(':').map(|part| u32::from_str_radix(part, 16).ok());
    let address = [
        parts.next()??,
        parts.next()??,
        parts.next()??,
        function.parse().ok()?,
    ];
    parts.next().is_none().then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::DeviceKey;

    const A: &str = "GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76";

    fn information(uuid: &str, minor: u32) -> String {
        format!(
            "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 33\nGPU UUID: \t {uuid}\nVideo BIOS: \t 92.00.19.00.10\nBus Type: \t \
             PCIe\nDMA Size: \t 47 bits\nBus Location: \t 0000:07:00.0\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
        )
    }

    #[test]
    fn device_nodes_are_found_by_uuid_and_by_bus() {
        let directory = tempfile::tempdir().unwrap();
        assert!(gpus(directory.path()).is_empty(), "there is no driver");
        for (bus, uuid, minor) in [
            ("0000:07:00.0", A, 3),
            ("0000:0f:00.0", "GPU-????????-????-????-????-????????????", 1),
        ] {
            let of_gpu = directory.path().join("gpus").join(bus);
            fs::create_dir_all(&of_gpu).unwrap();
            fs::write(of_gpu.join("information"), information(uuid, minor)).unwrap();
        }
        fs::create_dir_all(directory.path().join("gpus/0000:10:00.0")).unwrap();
        let gpus = gpus(directory.path());
        assert_eq!(gpus.len(), 2, "{gpus:?}");
        let device = |uuid: &str, pci: &str| {
            let mut device = Device::new(DeviceKey {
                uuid: Uuid::new(uuid),
                instance: None,
            });
            device.pci = Some(pci.to_owned());
            device
        };
        let mut devices = vec![
            device(&A.to_uppercase(), "00000000:99:00.0"),
            device("GPU-b", "00000000:0F:00.0"),
            device("GPU-c", "00000000:07:00.0"),
            device("GPU-d", "nonsense"),
        ];
        number(&mut devices, &gpus);
        let minors: Vec<_> = devices.iter().map(|device| device.minor).collect();
        // At the bus of the third is a GPU that goes by another UUID.
        assert_eq!(minors, [Some(3), Some(1), None, None]);
        devices[0].minor = Some(7);
        number(&mut devices, &gpus);
        assert_eq!(devices[0].minor, Some(7), "a source's own word stands");
    }
}
