//! Fuzzes what reads the page of dcgm-exporter: `cargo xtask fuzz --target dcgm_page`.

#![no_main]

use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    time::{Duration, SystemTime},
};

use libfuzzer_sys::fuzz_target;
use orb8_gpu::{dcgm::read, sample::Device};

/// Names the folder that pages are written to, for the fuzzer to begin with.
const SEEDS: &str = "ORB8_FUZZ_SEEDS";
const EXAMPLE: &str = include_str!("../../fakes/dcgm/example.prom");
/// What the example has none of.
const MORE: [&str; 5] = [
    "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",uuid=\"GPU-a\",pod_name=\"a\",pod_namespace=\"n\",container_name=\"c\"} 40\n",
    "DCGM_FI_DEV_GPU_UTIL{UUID=\"GPU-a\",pod=\"a\",namespace=\"n\",pod_uid=\"u\"} 0\nDCGM_FI_DEV_GPU_UTIL{UUID=\"GPU-a\"} 9\n",
    "DCGM_FI_DEV_GPU_TEMP{UUID=\"GPU-a\",job=\"j\",instance=\"i\",exported_pod=\"a\",exported_namespace=\"n\"} 5e1 1800000000000\n",
    "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES{gpu_uuid=\"GPU-a\",nvlink=\"3\"} 18446744073709551615\n",
    "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES{UUID=\"GPU-a\"} 9\nDCGM_FI_DEV_NVLINK_COUNT_RX_BYTES{UUID=\"GPU-a\"} NaN\n",
];

fuzz_target!(
    init: {
        if let Some(folder) = env::var_os(SEEDS) {
            write_seeds(Path::new(&folder));
        }
    },
    |page: &[u8]| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let Ok(snapshot) = read(page, time) else { return };
        assert_eq!(snapshot.rejected > 0, snapshot.first_rejected.is_some());
        let keys: BTreeSet<_> = snapshot.devices.iter().map(|device| &device.key).collect();
        assert_eq!(keys.len(), snapshot.devices.len(), "a device twice");
        let lines = page.split(|byte| *byte == b'\n').count();
        assert!(snapshot.devices.len() <= 2 * lines, "a row makes an instance and its GPU at most");
        for device in &snapshot.devices {
            check(device);
        }
        let again = read(page, time).map(|snapshot| snapshot.devices);
        assert_eq!(again.as_ref(), Ok(&snapshot.devices));
    }
);

/// What holds of each device, whatever the page.
fn check(device: &Device) {
    let readings = &device.readings;
    let profile = &readings.profile;
    for share in [
        readings.utilization,
        readings.memory_copy,
        profile.graphics_active,
        profile.sm_active,
        profile.sm_occupancy,
        profile.tensor_active,
        profile.memory_active,
        profile.fp64_active,
        profile.fp32_active,
        profile.fp16_active,
    ] {
        assert!(
            share.is_none_or(|share| (0.0..=1.0).contains(&share)),
            "{device:?}"
        );
    }
    for number in [
        readings.power,
        readings.energy,
        readings.sm_clock,
        readings.memory_clock,
    ] {
        assert!(
            number.is_none_or(|number| number.is_finite() && number >= 0.0),
            "{device:?}"
        );
    }
    assert!(
        readings.other.values().all(|number| number.is_finite()),
        "{device:?}"
    );
    assert_eq!(device.mig.is_some(), device.key.instance.is_some(), "{device:?}");
    if device.mig.is_some() {
        let of_gpu = (
            readings.utilization,
            readings.temperature,
            readings.power,
            readings.energy,
        );
        assert_eq!(of_gpu, (None, None, None, None), "{device:?}");
    }
    let claims: BTreeSet<_> = device.claims.iter().collect();
    assert_eq!(claims.len(), device.claims.len(), "{device:?}");
}

fn write_seeds(folder: &Path) {
    let fields = EXAMPLE
        .split_inclusive("# HELP")
        .map(|field| field.trim_end_matches("# HELP"));
    for (number, page) in fields.chain(MORE).chain([EXAMPLE]).enumerate() {
        let path = folder.join(number.to_string());
        fs::write(&path, page).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}
