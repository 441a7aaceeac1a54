use proptest::prelude::*;

use super::*;
use crate::{
    id::Uuid,
    sample::{Profile, Readings},
};

const TIME: u64 = 1_800_000_000;

fn at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(TIME)
}

/// Reads rows, each without its newline.
fn of(rows: &[&str]) -> Snapshot {
    let page: String = rows.iter().flat_map(|row| [row, "\n"]).collect();
    read(page.as_bytes(), at()).unwrap()
}

fn key(uuid: &str, instance: Option<u32>) -> DeviceKey {
    DeviceKey {
        uuid: Uuid::new(uuid),
        instance,
    }
}

/// The only device of these rows, and how much was rejected.
fn only(rows: &[&str]) -> (Device, u64) {
    let mut snapshot = of(rows);
    assert_eq!(snapshot.devices.len(), 1, "{snapshot:?}");
    (snapshot.devices.remove(0), snapshot.rejected)
}

fn device<'a>(snapshot: &'a Snapshot, key: &DeviceKey) -> &'a Device {
    let mut found = snapshot.devices.iter().filter(|device| device.key == *key);
    let device = found
        .next()
        .unwrap_or_else(|| panic!("no {key:?} in {snapshot:?}"));
    assert_eq!(found.next(), None, "twice");
    device
}

fn claim(pod: &str) -> Claim {
    Claim {
        namespace: "ml".to_owned(),
        pod: pod.to_owned(),
        container: "main".to_owned(),
    }
}

/// A row of utilization: of a pod, with its UID, or of none.
fn used(pod: &str, uid: &str, value: &str) -> String {
    row("DCGM_FI_DEV_GPU_UTIL", pod, uid, value)
}

fn row(name: &str, pod: &str, uid: &str, value: &str) -> String {
    let mut labels = r#"gpu="0",UUID="GPU-a""#.to_owned();
    if !pod.is_empty() {
        labels += &format!(r#",container="main",namespace="ml",pod="{pod}""#);
    }
    if !uid.is_empty() {
        labels += &format!(r#",pod_uid="{uid}""#);
    }
    format!("{name}{{{labels}}} {value}")
}

fn utilization(rows: &[String]) -> (Option<f64>, u64) {
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let (device, rejected) = only(&rows);
    (device.readings.utilization, rejected)
}

#[test]
fn a_page_becomes_a_device() {
    let labels = r#"gpu="3",UUID="GPU-a",pci_bus_id="00000000:07:00.0",device="nvidia3",modelName="NVIDIA L40S",Hostname="n",DCGM_FI_DRIVER_VERSION="550.54.15",container="main",namespace="ml",pod="train-0""#;
    let rows: Vec<String> = [
        ("DCGM_FI_DEV_GPU_UTIL", "97"),
        ("DCGM_FI_DEV_MEM_COPY_UTIL", "12"),
        ("DCGM_FI_DEV_FB_USED", "1024"),
        ("DCGM_FI_DEV_FB_FREE", "47044"),
        ("DCGM_FI_DEV_GPU_TEMP", "61"),
        ("DCGM_FI_DEV_POWER_USAGE", "287.400000"),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "812345500"),
        ("DCGM_FI_DEV_SM_CLOCK", "2520"),
        ("DCGM_FI_DEV_XID_ERRORS", "0"),
        ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "0.250000"),
        ("DCGM_FI_PROF_PCIE_TX_BYTES", "5000"),
        ("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "0"),
    ]
    .into_iter()
    .map(|(name, value)| format!("# HELP {name} Whatever.\n# TYPE {name} gauge\n{name}{{{labels}}} {value}"))
    .collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let snapshot = of(&rows);
    assert_eq!((snapshot.source, snapshot.time), (Source::Dcgm, at()));
    assert_eq!((snapshot.rejected, &snapshot.first_rejected), (0, &None));
    let other = [
        ("DCGM_FI_PROF_PCIE_TX_BYTES", 5000.0),
        ("DCGM_FI_DEV_VGPU_LICENSE_STATUS", 0.0),
    ];
    assert_eq!(
        snapshot.devices,
        [Device {
            index: Some(3),
            model: Some("NVIDIA L40S".to_owned()),
            driver: Some("550.54.15".to_owned()),
            host: Some("n".to_owned()),
            pci: Some("00000000:07:00.0".to_owned()),
            claims: vec![claim("train-0")],
            readings: Readings {
                utilization: Some(0.97),
                memory_copy: Some(0.12),
                memory_used: Some(1 << 30),
                memory_free: Some(47044 << 20),
                temperature: Some(61.0),
                power: Some(287.4),
                energy: Some(812_345.5),
                sm_clock: Some(2.52e9),
                xid: Some(0),
                profile: Profile {
                    tensor_active: Some(0.25),
                    ..Profile::NONE
                },
                other: other
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
                ..Readings::NONE
            },
            ..Device::new(key("GPU-a", None))
        }]
    );
}

#[test]
fn the_row_without_a_pod_is_the_devices() {
    for rows in [
        [used("", "", "80"), used("a", "", "30"), used("b", "", "50")],
        [used("a", "u1", "30"), used("b", "u2", "0"), used("", "", "80")],
        [used("a", "u1", "0"), used("", "", "80"), used("b", "u2", "0")],
    ] {
        assert_eq!(utilization(&rows), (Some(0.8), 0), "{rows:?}");
    }
    // Zero is a measurement where it is the device's own.
    assert_eq!(
        utilization(&[used("", "", "0"), used("a", "u1", "30")]),
        (Some(0.0), 0)
    );
}

#[test]
fn copies_that_agree_are_the_devices_value_once() {
    assert_eq!(
        utilization(&[used("a", "", "40"), used("b", "", "40"), used("c", "", "4e1")]),
        (Some(0.4), 0)
    );
    // The exporter was asked for UIDs, as the row of another value tells: so they mean nothing here.
    let temperature = row("DCGM_FI_DEV_GPU_TEMP", "a", "u1", "50");
    let rows = [used("a", "u1", "40"), used("b", "u2", "40"), temperature.clone()];
    assert_eq!(utilization(&rows), (Some(0.4), 0));
    assert_eq!(
        utilization(&[used("a", "u1", "0"), temperature]),
        (Some(0.0), 0),
        "one pod"
    );
}

#[test]
fn rows_of_pods_that_differ_say_nothing_of_the_device() {
    let rows = [used("a", "", "30"), used("b", "", "50")];
    assert_eq!(utilization(&rows), (None, 1));
    let (device, _) = only(&[&rows[0], &rows[1]]);
    assert_eq!(
        device.claims,
        [claim("a"), claim("b")],
        "who holds it is still told"
    );
    let reason = of(&[&rows[0], &rows[1]]).first_rejected.unwrap();
    assert!(
        reason.contains("Utilization") && reason.contains("GPU-a"),
        "{reason}"
    );
}

#[test]
fn rows_of_the_device_that_differ_are_not_a_value() {
    assert_eq!(utilization(&[used("", "", "30"), used("", "", "50")]), (None, 1));
    // Nor does a third one settle it, nor pods that agree.
    let rows = [
        used("", "", "30"),
        used("", "", "50"),
        used("", "", "50"),
        used("a", "", "50"),
    ];
    assert_eq!(utilization(&rows), (None, 1));
    assert_eq!(
        utilization(&[used("", "", "30"), used("", "", "30")]),
        (Some(0.3), 0),
        "twice the same"
    );
}

#[test]
fn what_is_told_per_process_is_not_the_devices() {
    for rows in [
        vec![used("a", "u1", "30")],
        vec![used("a", "u1", "30"), used("b", "u2", "30")],
        // The exporter fills with zeroes.
        vec![used("a", "u1", "0"), used("b", "u2", "0")],
        vec![
            used("a", "u1", "0"),
            used("b", "u2", "0"),
            row("DCGM_FI_DEV_GPU_TEMP", "a", "u1", "50"),
        ],
    ] {
        assert_eq!(utilization(&rows), (None, 1), "{rows:?}");
    }
    let memory = [
        row("DCGM_FI_DEV_FB_USED", "a", "u1", "100"),
        row("DCGM_FI_DEV_FB_FREE", "a", "", "900"),
    ];
    let (device, rejected) = only(&[&memory[0], &memory[1]]);
    assert_eq!(
        (device.readings.memory_used, device.readings.memory_free),
        (None, Some(900 << 20))
    );
    assert_eq!(rejected, 1);
    // Of other values each pod's row is a copy.
    let (device, rejected) = only(&[
        &row("DCGM_FI_DEV_GPU_TEMP", "a", "u1", "0"),
        &row("DCGM_FI_DEV_GPU_TEMP", "b", "u2", "0"),
    ]);
    assert_eq!((device.readings.temperature, rejected), (Some(0.0), 0));
}

#[test]
fn an_instances_key_is_its_gpu_and_its_id() {
    let of_gpu = r#"gpu="0",UUID="GPU-a",modelName="NVIDIA A100""#;
    let instance = |id: u32, profile: &str| format!(r#"{of_gpu},GPU_I_PROFILE="{profile}",GPU_I_ID="{id}""#);
    let rows = [
        format!("DCGM_FI_DEV_FB_USED{{{of_gpu}}} 100"),
        format!(
            r#"DCGM_FI_DEV_FB_USED{{{},container="main",namespace="ml",pod="a"}} 30"#,
            instance(7, "1g.5gb")
        ),
        format!("DCGM_FI_DEV_FB_USED{{{}}} 50", instance(2, "3g.20gb")),
        format!("DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{}}} 0.5", instance(2, "3g.20gb")),
    ];
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let snapshot = of(&rows);
    assert_eq!((snapshot.devices.len(), snapshot.rejected), (3, 0));
    let gpu = device(&snapshot, &key("gpu-A", None));
    assert_eq!(
        gpu.readings.memory_used,
        Some(100 << 20),
        "the GPU's own, not a sum"
    );
    assert_eq!((&gpu.mig, gpu.claims.len()), (&None, 0));
    let seven = device(&snapshot, &key("GPU-a", Some(7)));
    assert_eq!(seven.readings.memory_used, Some(30 << 20));
    assert_eq!(seven.claims, [claim("a")]);
    assert_eq!(
        seven.mig,
        Some(Mig {
            profile: Some("1g.5gb".to_owned()),
            ..Mig::default()
        })
    );
    let two = device(&snapshot, &key("GPU-a", Some(2)));
    assert_eq!(two.readings.memory_used, Some(50 << 20));
    assert_eq!(two.readings.profile.graphics_active, Some(0.5));
    assert_eq!(two.mig.as_ref().unwrap().profile.as_deref(), Some("3g.20gb"));
}

#[test]
fn what_only_a_gpu_has_is_not_an_instances() {
    let instance = |name: &str, id: u32, value: &str| {
        format!(
            r#"{name}{{gpu="0",UUID="GPU-a",GPU_I_PROFILE="1g.5gb",GPU_I_ID="{id}",container="main",namespace="ml",pod="p{id}"}} {value}"#
        )
    };
    let rows = [
        instance("DCGM_FI_DEV_GPU_TEMP", 7, "40"),
        instance("DCGM_FI_DEV_GPU_TEMP", 8, "40"),
        instance("DCGM_FI_DEV_POWER_USAGE", 7, "100.0"),
        // DCGM measured in between: the last is as good.
        instance("DCGM_FI_DEV_POWER_USAGE", 8, "101.0"),
        instance("DCGM_FI_DEV_FB_USED", 7, "1"),
    ];
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let snapshot = of(&rows);
    assert_eq!((snapshot.devices.len(), snapshot.rejected), (3, 0));
    let gpu = device(&snapshot, &key("GPU-a", None));
    assert_eq!(gpu.readings.temperature, Some(40.0));
    assert_eq!(gpu.readings.power, Some(101.0), "once, not the sum");
    assert_eq!(gpu.readings.memory_used, None);
    assert_eq!((&gpu.mig, &gpu.claims), (&None, &Vec::new()));
    let seven = device(&snapshot, &key("GPU-a", Some(7)));
    assert_eq!(
        seven.readings,
        Readings {
            memory_used: Some(1 << 20),
            ..Readings::NONE
        }
    );
    assert_eq!(
        seven.claims,
        [Claim {
            pod: "p7".to_owned(),
            ..claim("")
        }]
    );

    // The GPU's own row is better, whichever comes first.
    let own = r#"DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a"} 39"#;
    for rows in [[own, rows[0]], [rows[0], own]] {
        let snapshot = of(&rows);
        assert_eq!(
            device(&snapshot, &key("GPU-a", None)).readings.temperature,
            Some(39.0)
        );
        assert_eq!(snapshot.rejected, 0);
    }
}

#[test]
fn blanks_are_missing_and_not_rejected() {
    for blank in [
        "9223372036854775792",
        "9223372036854775793",
        "9223372036854775794",
        "9223372036854775795",
        "9.223372036854776e+18",
        "2147483632",
        "2147483633",
        "2147483634",
        "2147483635",
        "140737488355330.000000",
        "NaN",
        "+Inf",
    ] {
        for name in [
            "DCGM_FI_DEV_MEMORY_TEMP",
            "DCGM_FI_DEV_GPU_UTIL",
            "DCGM_FI_DEV_FB_USED",
            "DCGM_FI_DEV_XID_ERRORS",
        ] {
            let (device, rejected) = only(&[&row(name, "a", "", blank)]);
            assert_eq!(device.readings, Readings::NONE, "{name} {blank}");
            assert_eq!(rejected, 0, "{name} {blank}");
            assert_eq!(device.claims, [claim("a")], "the device is there, and held");
        }
    }
    // The device's own blank is no value, so the copies are.
    assert_eq!(
        utilization(&[used("", "", "9223372036854775794"), used("a", "", "40")]),
        (Some(0.4), 0)
    );
}

#[test]
fn what_cannot_be_is_rejected() {
    for (name, value) in [
        ("DCGM_FI_DEV_GPU_UTIL", "-Inf"),
        ("DCGM_FI_DEV_GPU_UTIL", "101"),
        ("DCGM_FI_DEV_FB_USED", "-1"),
        ("DCGM_FI_DEV_MADE_UP", "-Inf"),
        ("DCGM_FI_DEV_GPU_UTIL", "ERROR"),
        ("DCGM_FI_DEV_GPU_UTIL", ""),
        ("DCGM_FI_DEV_GPU_UTIL", "1 2 3"),
    ] {
        let bad = row(name, "", "", value);
        let good = row("DCGM_FI_DEV_GPU_TEMP", "", "", "50");
        let (device, rejected) = only(&[&bad, &good]);
        assert_eq!(
            device.readings,
            Readings {
                temperature: Some(50.0),
                ..Readings::NONE
            },
            "{bad}"
        );
        assert_eq!(rejected, 1, "{bad}");
    }
    let snapshot = of(&[
        r#"DCGM_FI_DEV_GPU_UTIL{gpu="0"} 1"#,
        r#"DCGM_FI_DEV_GPU_UTIL{UUID="MIG-a"} 1"#,
        "}{",
        r#"DCGM_FI_DEV_NVSWITCH_TEMPERATURE_CURRENT{nvswitch="nvswitch0"} 40"#,
        r#"DCGM_FI_DEV_CPU_TEMP_CURRENT{cpu="0"} 40"#,
        "# any comment",
        r#"go_goroutines{UUID="GPU-a"} 12"#,
        "process_cpu_seconds_total 1.5",
    ]);
    assert_eq!((snapshot.devices.len(), snapshot.rejected), (0, 3));
    assert_eq!(
        snapshot.first_rejected.as_deref(),
        Some("line 1: has no UUID"),
        "the first one, and where it is"
    );
}

#[test]
fn fields_that_are_not_known_stay_by_their_name() {
    let link = |link: &str, value: &str| {
        format!(r#"DCGM_FI_DEV_NVLINK_MADE_UP{{gpu_uuid="GPU-a",nvlink="{link}"}} {value}"#)
    };
    let (device, rejected) = only(&[
        &row("DCGM_FI_DEV_MADE_UP", "", "", "-1.5"),
        &row("DCGM_FI_DEV_MADE_UP_TOO", "", "", "9223372036854775794"),
        &link("0", "1"),
        &link("17", "2"),
        &link("no link", "3"),
        &row(&format!("DCGM_FI_{}", "X".repeat(MAX_NAME)), "", "", "1"),
    ]);
    let told: Vec<(&str, f64)> = device
        .readings
        .other
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    assert_eq!(
        told,
        [
            ("DCGM_FI_DEV_MADE_UP", -1.5),
            ("DCGM_FI_DEV_NVLINK_MADE_UP{nvlink=\"0\"}", 1.0),
            ("DCGM_FI_DEV_NVLINK_MADE_UP{nvlink=\"17\"}", 2.0),
        ]
    );
    assert_eq!(rejected, 2, "a link without a number, and a name too long");
}

#[test]
fn one_direction_of_nvlink_is_not_both() {
    let sent = row("DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES", "", "", "10");
    let received = row("DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES", "", "", "5");
    let (device, _) = only(&[&sent, &received]);
    assert_eq!(device.readings.nvlink, Some(15));
    assert!(device.readings.other.is_empty());
    let (device, _) = only(&[&received]);
    assert_eq!(device.readings.nvlink, None);
    assert_eq!(device.readings.other["DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES"], 5.0);
    let (device, rejected) = only(&[&row("DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES", "", "", "-1"), &received]);
    assert_eq!((device.readings.nvlink, rejected), (None, 1));
}

#[test]
fn a_last_line_without_its_end_is_not_used() {
    let whole = row("DCGM_FI_DEV_GPU_TEMP", "", "", "50");
    let cut = used("", "", "10");
    let page = format!("{whole}\n{cut}");
    let snapshot = read(page.as_bytes(), at()).unwrap();
    assert_eq!(snapshot.devices[0].readings.utilization, None);
    assert_eq!(snapshot.devices[0].readings.temperature, Some(50.0));
    assert_eq!(snapshot.rejected, 1);
    assert_eq!(
        snapshot.first_rejected.as_deref(),
        Some("line 2: the page ends within it")
    );
    let snapshot = read(format!("{page}0\n").as_bytes(), at()).unwrap();
    assert_eq!(snapshot.devices[0].readings.utilization, Some(1.0));
    assert_eq!(snapshot.rejected, 0);
}

#[test]
fn a_page_of_something_else_is_an_error() {
    for page in [
        "",
        "\n",
        "<html>404</html>\n",
        "up 1\n",
        "# HELP DCGM_FI_DEV_GPU_UTIL x\n",
        "DCGM_FI_DEV_GPU",
    ] {
        assert_eq!(read(page.as_bytes(), at()).unwrap_err(), NotDcgm, "{page}");
    }
    // A node whose GPUs are all lost still has an exporter.
    assert_eq!(of(&["DCGM_FI_DEV_GPU_UTIL 1"]).devices.len(), 0);
}

#[test]
fn old_labels_are_read() {
    let (device, rejected) = only(&[
        r#"DCGM_FI_DEV_GPU_UTIL{gpu="1",uuid="GPU-a",pod_name="a",pod_namespace="ml",container_name="main"} 40"#,
        r#"DCGM_FI_DEV_GPU_TEMP{gpu="1",UUID="gpu-A"} 50"#,
    ]);
    assert_eq!((device.index, rejected), (Some(1), 0));
    assert_eq!(device.claims, [claim("a")]);
    assert_eq!(device.readings.utilization, Some(0.4));
    assert_eq!(
        device.readings.temperature,
        Some(50.0),
        "the case of a UUID means nothing"
    );
}

#[test]
fn through_a_prometheus_the_holder_is_the_exported_pod() {
    let scraped = r#"gpu="0",UUID="GPU-a",job="dcgm",instance="10.0.0.1:9400",pod="dcgm-exporter-x",namespace="gpu",container="exporter""#;
    let held = format!(
        r#"DCGM_FI_DEV_GPU_UTIL{{{scraped},exported_pod="a",exported_namespace="ml",exported_container="main"}} 40 {}"#,
        TIME * 1000 - 1000
    );
    let (device, rejected) = only(&[&held]);
    assert_eq!(
        (device.claims, device.readings.utilization),
        (vec![claim("a")], Some(0.4))
    );
    assert_eq!(rejected, 0);
    // The exporter's own pod holds nothing, so the row is the device's own.
    let free = format!("DCGM_FI_DEV_GPU_UTIL{{{scraped}}} 40");
    let (device, _) = only(&[&free, &used("a", "", "10"), &used("b", "", "30")]);
    assert_eq!(device.claims, [claim("a"), claim("b")]);
    assert_eq!(device.readings.utilization, Some(0.4));
    // What Prometheus repeats of a series that has ended is not of now.
    let stale = format!("DCGM_FI_DEV_GPU_UTIL{{{scraped}}} 40 {}", TIME * 1000 - 300_001);
    let snapshot = of(&[&stale]);
    assert_eq!((snapshot.devices.len(), snapshot.rejected), (0, 1));
}

#[test]
fn texts_that_stand_for_nothing_are_no_names() {
    // DCGM has blanks of text, too.
    let (device, rejected) = only(&[
        r#"DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",modelName="<<<NULL>>>",pci_bus_id="<<<NOT_FOUND>>>",DCGM_FI_DRIVER_VERSION="<<<NOT_SUPPORTED>>>"} 7"#,
    ]);
    assert_eq!((device.model, device.pci, device.driver), (None, None, None));
    assert_eq!((device.readings.utilization, rejected), (Some(0.07), 0));
    let snapshot = of(&[
        r#"DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="<<<NOT_PERM>>>"} 7"#,
        r#"DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="<<<NULL>>>"} 7"#,
    ]);
    assert_eq!(
        (snapshot.devices.len(), snapshot.rejected),
        (0, 2),
        "{snapshot:?}"
    );
}

#[test]
fn names_of_the_first_exporter_are_those_of_fields() {
    let (device, rejected) = only(&[
        "# HELP dcgm_gpu_utilization GPU utilization (in %).",
        r#"dcgm_gpu_utilization{gpu="0",uuid="GPU-a",pod_name="a",pod_namespace="ml",container_name="main"} 50"#,
        r#"dcgm_fb_used{gpu="0",uuid="GPU-a",pod_name="a",pod_namespace="ml",container_name="main"} 3"#,
        r#"dcgm_total_energy_consumption{gpu="0",uuid="GPU-a"} 2500"#,
        r#"dcgm_xid_errors{gpu="0",uuid="GPU-a"} 31"#,
        r#"dcgm_fi_prof_gr_engine_active{gpu="0",uuid="GPU-a"} 0.25"#,
        r#"dcgm_memory_temp{gpu="0",uuid="GPU-a"} 55"#,
        r#"dcgm_made_up{gpu="0",uuid="GPU-a"} 55"#,
    ]);
    assert_eq!(rejected, 0);
    let told = &device.readings;
    assert_eq!((told.utilization, told.memory_used), (Some(0.5), Some(3 << 20)));
    assert_eq!((told.energy, told.xid), (Some(2.5), Some(31)));
    assert_eq!(told.profile.graphics_active, Some(0.25));
    assert_eq!(
        told.other,
        BTreeMap::from([("DCGM_FI_DEV_MEMORY_TEMP".to_owned(), 55.0)])
    );
    assert_eq!(device.claims, [claim("a")]);
}

#[test]
fn a_pods_nothing_on_an_instance_is_not_the_gpus() {
    // DCGM answers for the GPU; the exporter adds 0 for a pod of whose processes it knows nothing.
    let of_instance = |pod: &str, value: &str| {
        used(pod, pod, value).replace(
            r#"UUID="GPU-a""#,
            r#"UUID="GPU-a",GPU_I_PROFILE="1g.5gb",GPU_I_ID="7""#,
        )
    };
    let rows = [of_instance("", "45"), of_instance("a", "0")];
    let snapshot = of(&rows.each_ref().map(String::as_str));
    let gpu = device(&snapshot, &key("GPU-a", None));
    assert_eq!((gpu.readings.utilization, snapshot.rejected), (Some(0.45), 0));
}

#[test]
fn a_mark_of_the_bytes_order_is_no_part_of_the_page() {
    let row = used("", "", "7");
    let snapshot = read(format!("\u{feff}{row}\r\n").as_bytes(), at()).unwrap();
    assert_eq!((snapshot.devices.len(), snapshot.rejected), (1, 0));
}

#[test]
fn nothing_grows_without_end() {
    let devices: String = (0..=MAX_DEVICES)
        .map(|number| format!("DCGM_FI_DEV_GPU_TEMP{{UUID=\"GPU-{number}\"}} 50\n"))
        .collect();
    let snapshot = read(devices.as_bytes(), at()).unwrap();
    assert_eq!((snapshot.devices.len(), snapshot.rejected), (MAX_DEVICES, 1));

    let pods: Vec<String> = (0..MAX_CLAIMS + 2)
        .map(|number| used(&format!("p{number}"), "", "40"))
        .collect();
    let rows: Vec<&str> = pods.iter().map(String::as_str).collect();
    let (device, rejected) = only(&rows);
    assert_eq!((device.claims.len(), rejected), (MAX_CLAIMS, 2));
    assert_eq!(device.readings.utilization, Some(0.4), "their values are copies");

    let values: Vec<String> = (0..MAX_VALUES + 3)
        .map(|number| row(&format!("DCGM_FI_DEV_X{number}"), "", "", "1"))
        .collect();
    let rows: Vec<&str> = values.iter().map(String::as_str).collect();
    let (device, rejected) = only(&rows);
    assert_eq!((device.readings.other.len(), rejected), (MAX_VALUES, 3));
}

/// A device as an exporter could tell of it.
#[derive(Clone, Debug)]
struct Random {
    number: u32,
    instance: Option<u32>,
    pods: std::collections::BTreeSet<String>,
    /// The device's own row is there besides those of its pods.
    own: bool,
    used: u32,
    free: u32,
    active: f64,
    temperature: i32,
}

fn random() -> impl Strategy<Value = Random> {
    (
        (0..20_u32, proptest::option::of(0..15_u32)),
        (
            proptest::collection::btree_set("[a-z][a-z0-9-]{0,20}", 0..4),
            any::<bool>(),
        ),
        (0..200_000_u32, 0..200_000_u32, 0.0..1.0, -40..120_i32),
    )
        .prop_map(
            |((number, instance), (pods, own), (used, free, active, temperature))| Random {
                number,
                instance,
                pods,
                own,
                used,
                free,
                active,
                temperature,
            },
        )
}

impl Random {
    fn key(&self) -> DeviceKey {
        key(&format!("GPU-{}", self.number), self.instance)
    }

    fn rows(&self, name: &str, value: impl Display) -> Vec<String> {
        let mut labels = format!(r#"gpu="{0}",UUID="GPU-{0}",modelName="a, \"b\"""#, self.number);
        if let Some(instance) = self.instance {
            labels += &format!(r#",GPU_I_PROFILE="1g.5gb",GPU_I_ID="{instance}""#);
        }
        let mut rows: Vec<String> = self
            .pods
            .iter()
            .map(|pod| format!(r#"{name}{{{labels},container="main",namespace="ml",pod="{pod}"}} {value}"#))
            .collect();
        if self.own || rows.is_empty() {
            rows.push(format!("{name}{{{labels}}} {value}"));
        }
        rows
    }
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_read(page in proptest::collection::vec(any::<u8>(), 0..500)) {
        let _ = read(&page, at());
    }

    #[test]
    fn rows_of_the_right_alphabet_are_read(
        rows in proptest::collection::vec(
            r#"(DCGM_FI_(DEV_(GPU_UTIL|FB_USED|XID_ERRORS|NVLINK_COUNT_TX_BYTES|X)|PROF_SM_ACTIVE))(\{(UUID="GPU-[ab]",)?(GPU_I_ID="[01x]",)?(pod="[ab]",namespace="n",)?(pod_uid="u",)?(nvlink="[01]")?\})? (-?[0-9]{1,3}|NaN|[+-]Inf|9223372036854775794|1e300)( -?[0-9]{1,13})?"#,
            0..30,
        ),
    ) {
        let page: String = rows.iter().flat_map(|row| [row.as_str(), "\n"]).collect();
        if let Ok(snapshot) = read(page.as_bytes(), at()) {
            let keys: BTreeSet<&DeviceKey> = snapshot.devices.iter().map(|device| &device.key).collect();
            prop_assert_eq!(keys.len(), snapshot.devices.len());
            for device in &snapshot.devices {
                prop_assert_eq!(device.mig.is_some(), device.key.instance.is_some());
                prop_assert!(device.readings.utilization.is_none_or(|share| (0.0..=1.0).contains(&share)));
                prop_assert!(device.key.instance.is_none() || device.readings.utilization.is_none());
                prop_assert!(device.readings.other.values().all(|value| value.is_finite()));
            }
            prop_assert_eq!(snapshot.rejected > 0, snapshot.first_rejected.is_some());
        } else {
            prop_assert!(rows.is_empty());
        }
    }

    #[test]
    fn a_page_that_is_written_is_read(
        devices in proptest::collection::vec(random(), 1..12),
        shuffled in any::<prop::sample::Selector>(),
    ) {
        let mut seen = BTreeSet::new();
        let devices: Vec<Random> = devices.into_iter().filter(|device| seen.insert(device.key())).collect();
        let mut rows: Vec<String> = devices
            .iter()
            .flat_map(|device| {
                let temperature = device.instance.is_none().then(|| device.rows("DCGM_FI_DEV_GPU_TEMP", device.temperature));
                [
                    device.rows("DCGM_FI_DEV_FB_USED", device.used),
                    device.rows("DCGM_FI_DEV_FB_FREE", device.free),
                    device.rows("DCGM_FI_PROF_GR_ENGINE_ACTIVE", device.active),
                    temperature.unwrap_or_default(),
                ]
                .concat()
            })
            .collect();
        // The order of rows means nothing.
        let first = shuffled.select(0..rows.len());
        rows.rotate_left(first);
        let page: String = rows.iter().flat_map(|row| [row.as_str(), "\n"]).collect();
        let snapshot = read(page.as_bytes(), at()).unwrap();
        prop_assert_eq!(snapshot.rejected, 0, "{:?}", snapshot.first_rejected);
        prop_assert_eq!(snapshot.devices.len(), devices.len());
        for expected in devices {
            let found = device(&snapshot, &expected.key());
            let readings = Readings {
                memory_used: Some(u64::from(expected.used) << 20),
                memory_free: Some(u64::from(expected.free) << 20),
                temperature: expected.instance.is_none().then(|| f64::from(expected.temperature)),
                profile: Profile {
                    graphics_active: Some(expected.active),
                    ..Profile::NONE
                },
                ..Readings::NONE
            };
            prop_assert_eq!(&found.readings, &readings);
            prop_assert_eq!(found.model.as_deref(), Some("a, \"b\""));
            let claims: Vec<Claim> = expected.pods.iter().map(|pod| claim(pod)).collect();
            prop_assert_eq!(&found.claims, &claims);
        }
    }
}
