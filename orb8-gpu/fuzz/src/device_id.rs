//! Fuzzes what reads device ids: `cargo xtask fuzz --target device_id`.

#![no_main]

use std::{env, fs, path::Path};

use libfuzzer_sys::{Corpus, fuzz_target};
use orb8_gpu::id::DeviceId;

/// Names the folder that ids are written to, for the fuzzer to begin with.
const SEEDS: &str = "ORB8_FUZZ_SEEDS";
const IDS: [&str; 14] = [
    "GPU-8f3a2b1c-0d4e-4f5a-9b6c-7d8e9f0a1b2c",
    "GPU-8f3a2b1c-0d4e-4f5a-9b6c-7d8e9f0a1b2c::3",
    "MIG-8f3a2b1c-0d4e-4f5a-9b6c-7d8e9f0a1b2c::0",
    "MIG-GPU-8f3a2b1c-0d4e-4f5a-9b6c-7d8e9f0a1b2c/7/0::2",
    "12::3",
    "0:1::2",
    "nvidia0",
    "nvidia0/gi3",
    "nvidia1/vgpu2",
    "nvidia0/gi3/vgpu1",
    "gpu-0",
    "gpu-0-mig-1g10gb-me-19-4",
    "gpu-vfio-0",
    "0000:3b:00.0",
];

fuzz_target!(
    init: {
        if let Some(folder) = env::var_os(SEEDS) {
            write_seeds(Path::new(&folder));
        }
    },
    |input: &[u8]| -> Corpus {
        let Ok(text) = str::from_utf8(input) else { return Corpus::Reject };
        let id = DeviceId::parse(text);
        let written = id.to_string();
        assert_eq!(DeviceId::parse(&written), id, "{text:?} is written {written:?}");
        let device = id.device();
        assert_eq!(device.replica(), None);
        assert_eq!(device.device(), device);
        if let DeviceId::Other(other) = &id {
            assert_eq!(other, text);
        } else {
            for other in [text.to_ascii_uppercase(), text.to_ascii_lowercase()] {
                assert_eq!(DeviceId::parse(&other), id, "{other:?} is {text:?}");
            }
        }
        Corpus::Keep
    }
);

fn write_seeds(folder: &Path) {
    for (number, id) in IDS.into_iter().enumerate() {
        let path = folder.join(number.to_string());
        fs::write(&path, id).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}
