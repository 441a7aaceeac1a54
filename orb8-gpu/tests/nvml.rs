//! The NVML source, by its real loader and wrapper, against a library that behaves as told.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use orb8_fake_nvml::{
    config::{
        Claim, Code, Config, Device, Event, Field, Memory, Mig, MigDevice, Placement, Process, Sample, Spoil,
        Utilization,
    },
    install::Fake,
};
use orb8_gpu::{
    id::{DeviceKey, Uuid},
    nvml::{Library, MAX_DEVICES, MAX_PROCESSES, MAX_WAIT, NvmlError},
    sample::{self, Snapshot, Source},
};

const GIB: u64 = 1 << 30;
const COMPUTE: &str = "nvmlDeviceGetComputeRunningProcesses_v3";
const UTILIZATION: &str = "nvmlDeviceGetProcessUtilization";

fn uuid(number: u32) -> String {
    format!("GPU-00000000-1111-2222-3333-{number:012}")
}

fn key(number: u32, instance: Option<u32>) -> DeviceKey {
    DeviceKey {
        uuid: Uuid::new(uuid(number)),
        instance,
    }
}

fn gpu(number: u32) -> Device {
    Device {
        uuid: Some(uuid(number)),
        name: Some("NVIDIA A100-SXM4-40GB".to_owned()),
        pci: Some(format!("00000000:{number:02X}:00.0")),
        utilization: Some(Utilization { gpu: 37, memory: 12 }),
        memory: Some(Memory {
            total: 40 * GIB,
            free: 29 * GIB,
            used: 10 * GIB,
            reserved: GIB,
        }),
        temperature: Some(45),
        power_mw: Some(123_456),
        energy_mj: Some(9_876_543_210),
        sm_clock_mhz: Some(1410),
        memory_clock_mhz: Some(1215),
        ecc_corrected: Some(3),
        ecc_uncorrected: Some(0),
        samples: Some(Vec::new()),
        ..Device::default()
    }
}

fn node(devices: Vec<Device>) -> Config {
    Config {
        driver: Some("550.54.15".to_owned()),
        devices,
        ..Config::default()
    }
}

fn process(pid: u32, memory: u64) -> Process {
    Process {
        pid,
        memory: Some(memory),
        ..Process::default()
    }
}

fn errors(of: &[(&str, &str)]) -> BTreeMap<String, Code> {
    of.iter()
        .map(|(function, code)| ((*function).to_owned(), Code::from(*code)))
        .collect()
}

/// A library with these answers, open.
fn open(config: &Config) -> (Fake, Library) {
    let fake = Fake::new(config).unwrap();
    let library = Library::open(Some(&fake.library())).unwrap();
    (fake, library)
}

fn sample_of(config: &Config) -> Snapshot {
    let (_fake, mut library) = open(config);
    library.sample().unwrap()
}

fn device<'a>(snapshot: &'a Snapshot, key: &DeviceKey) -> &'a sample::Device {
    let found: Vec<_> = snapshot
        .devices
        .iter()
        .filter(|device| device.key == *key)
        .collect();
    assert_eq!(found.len(), 1, "{key:?} in {snapshot:#?}");
    found[0]
}

fn pids(device: &sample::Device) -> Option<Vec<u32>> {
    Some(
        device
            .processes
            .as_ref()?
            .iter()
            .map(|process| process.pid)
            .collect(),
    )
}

fn micros(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn clean(snapshot: &Snapshot) {
    assert_eq!((snapshot.rejected, &snapshot.first_rejected), (0, &None));
}

fn rejected(snapshot: &Snapshot, what: &str) {
    let first = snapshot.first_rejected.as_deref().unwrap_or_default();
    assert!(
        snapshot.rejected > 0 && first.contains(what),
        "{what}: {} {first}",
        snapshot.rejected
    );
}

#[test]
fn what_leaves_the_library_is_in_base_units() {
    let snapshot = sample_of(&node(vec![gpu(0), gpu(1)]));
    clean(&snapshot);
    assert_eq!(snapshot.source, Source::Nvml);
    assert_eq!(snapshot.devices.len(), 2);
    let second = device(&snapshot, &key(1, None));
    assert_eq!(second.index, Some(1));
    assert_eq!(second.model.as_deref(), Some("NVIDIA A100-SXM4-40GB"));
    assert_eq!(second.driver.as_deref(), Some("550.54.15"));
    assert_eq!(second.pci.as_deref(), Some("00000000:01:00.0"));
    assert_eq!(second.mig, None);
    assert_eq!(second.trouble, None);
    assert_eq!(second.processes, Some(Vec::new()), "it has none, which is known");
    let expected = sample::Readings {
        utilization: Some(0.37),
        memory_copy: Some(0.12),
        memory_used: Some(10 * GIB),
        memory_free: Some(29 * GIB),
        memory_total: Some(40 * GIB),
        temperature: Some(45.0),
        power: Some(123.456),
        energy: Some(9_876_543.21),
        sm_clock: Some(1.41e9),
        memory_clock: Some(1.215e9),
        ecc_corrected: Some(3),
        ecc_uncorrected: Some(0),
        ..sample::Readings::NONE
    };
    assert_eq!(second.readings, expected);
}

#[test]
fn what_is_not_supported_is_unset_and_no_error() {
    let bare = Device {
        uuid: Some(uuid(0)),
        ..Device::default()
    };
    let snapshot = sample_of(&node(vec![bare]));
    clean(&snapshot);
    let bare = device(&snapshot, &key(0, None));
    assert_eq!(bare.readings, sample::Readings::NONE);
    assert_eq!((&bare.model, &bare.pci, &bare.trouble), (&None, &None, &None));
}

#[test]
fn zero_is_zero_and_not_available_is_unset() {
    let zeros = Device {
        utilization: Some(Utilization { gpu: 0, memory: 0 }),
        power_mw: Some(0),
        energy_mj: Some(0),
        temperature: Some(0),
        ..gpu(0)
    };
    let marks = Device {
        utilization: Some(Utilization {
            gpu: u32::MAX,
            memory: u32::MAX,
        }),
        power_mw: Some(u32::MAX),
        energy_mj: Some(u64::MAX),
        temperature: Some(u32::MAX),
        sm_clock_mhz: Some(u32::MAX),
        ecc_corrected: Some(u64::MAX),
        memory: Some(Memory {
            total: u64::MAX,
            free: u64::MAX,
            used: u64::MAX,
            reserved: 0,
        }),
        compute: vec![Process {
            pid: 7,
            ..Process::default()
        }],
        ..gpu(1)
    };
    let snapshot = sample_of(&node(vec![zeros, marks]));
    clean(&snapshot);
    let zeros = &device(&snapshot, &key(0, None)).readings;
    assert_eq!((zeros.utilization, zeros.memory_copy), (Some(0.0), Some(0.0)));
    assert_eq!(
        (zeros.power, zeros.energy, zeros.temperature),
        (Some(0.0), Some(0.0), Some(0.0))
    );
    let marked = device(&snapshot, &key(1, None));
    let marks = &marked.readings;
    assert_eq!((marks.utilization, marks.memory_copy), (None, None));
    assert_eq!((marks.power, marks.energy, marks.temperature), (None, None, None));
    assert_eq!((marks.sm_clock, marks.ecc_corrected), (None, None));
    assert_eq!(
        (marks.memory_total, marks.memory_free, marks.memory_used),
        (None, None, None)
    );
    assert_eq!(marked.processes.as_ref().unwrap()[0].memory_bytes, None);
}

#[test]
fn what_makes_no_sense_is_counted_and_unset() {
    let mad = Device {
        utilization: Some(Utilization { gpu: 101, memory: 50 }),
        memory: Some(Memory {
            total: GIB,
            free: 0,
            used: 2 * GIB,
            reserved: 0,
        }),
        temperature: Some(4000),
        power_mw: Some(4_000_000_000),
        sm_clock_mhz: Some(3_000_000),
        ..gpu(0)
    };
    let snapshot = sample_of(&node(vec![mad, gpu(1)]));
    assert_eq!(snapshot.rejected, 5);
    rejected(&snapshot, "101 %");
    let mad = &device(&snapshot, &key(0, None)).readings;
    assert_eq!((mad.utilization, mad.memory_copy), (None, Some(0.5)));
    assert_eq!((mad.memory_used, mad.memory_total), (None, None));
    assert_eq!((mad.temperature, mad.power, mad.sm_clock), (None, None, None));
    assert_eq!(device(&snapshot, &key(1, None)).readings.utilization, Some(0.37));
}

#[test]
fn a_value_that_fails_does_not_hide_the_others() {
    let failing = [
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetName",
        "nvmlDeviceGetPciInfo_v3",
        COMPUTE,
    ];
    let all = sample_of(&node(vec![gpu(0)]));
    let all = &device(&all, &key(0, None)).readings;
    for function in failing {
        let snapshot = sample_of(&node(vec![Device {
            errors: errors(&[(function, "UNKNOWN")]),
            ..gpu(0)
        }]));
        rejected(&snapshot, "an internal driver error");
        let readings = &device(&snapshot, &key(0, None)).readings;
        let count = |readings: &sample::Readings| {
            [
                readings.utilization,
                readings.memory_used.map(|_| 0.0),
                readings.temperature,
                readings.power,
                readings.energy,
                readings.sm_clock,
                readings.ecc_corrected.map(|_| 0.0),
            ]
            .into_iter()
            .flatten()
            .count()
        };
        assert!(count(readings) + 1 >= count(all), "{function}: {readings:?}");
    }
}

#[test]
fn what_is_not_permitted_is_told() {
    let shy = Device {
        errors: errors(&[
            (COMPUTE, "NO_PERMISSION"),
            ("nvmlDeviceGetPowerUsage", "NO_PERMISSION"),
        ]),
        ..gpu(0)
    };
    let snapshot = sample_of(&node(vec![shy]));
    clean(&snapshot);
    let shy = device(&snapshot, &key(0, None));
    assert_eq!((shy.readings.power, &shy.processes), (None, &None));
    let trouble = shy.trouble.as_deref().unwrap();
    assert!(
        trouble.contains("compute processes") && trouble.contains("power"),
        "{trouble}"
    );
    assert_eq!(shy.readings.temperature, Some(45.0));
}

#[test]
fn a_lost_gpu_does_not_hide_the_others_and_keeps_its_name() {
    let mut config = node(vec![gpu(0), gpu(1), gpu(2)]);
    let (fake, mut library) = open(&config);
    assert_eq!(library.sample().unwrap().devices.len(), 3);

    config.devices[1].lost = true;
    fake.answer(&config).unwrap();
    let snapshot = library.sample().unwrap();
    clean(&snapshot);
    assert_eq!(snapshot.devices.len(), 3);
    let lost = device(&snapshot, &key(1, None));
    assert!(lost.trouble.as_deref().unwrap().contains("lost"), "{lost:?}");
    assert_eq!(lost.readings, sample::Readings::NONE);
    assert_eq!(
        (lost.index, lost.model.as_deref()),
        (Some(1), Some("NVIDIA A100-SXM4-40GB"))
    );
    assert_eq!(lost.processes, None);
    assert_eq!(device(&snapshot, &key(2, None)).readings.utilization, Some(0.37));

    config.devices[1].lost = false;
    fake.answer(&config).unwrap();
    let snapshot = library.sample().unwrap();
    assert_eq!(device(&snapshot, &key(1, None)).trouble, None);
}

#[test]
fn a_gpu_that_is_lost_while_it_is_read_keeps_what_was_read_and_its_instances() {
    let mut config = node(vec![cut(0), gpu(1)]);
    let (fake, mut library) = open(&config);
    library.sample().unwrap();
    config.devices[0].errors = errors(&[("nvmlDeviceGetMigMode", "GPU_IS_LOST")]);
    config.devices[0].temperature = Some(91);
    fake.answer(&config).unwrap();
    let snapshot = library.sample().unwrap();
    clean(&snapshot);
    assert_eq!(device(&snapshot, &key(0, None)).readings.temperature, Some(91.0));
    for instance in [None, Some(1), Some(5)] {
        assert!(
            device(&snapshot, &key(0, instance)).trouble.is_some(),
            "{instance:?}"
        );
    }
    assert_eq!(
        device(&snapshot, &key(0, Some(1)))
            .mig
            .as_ref()
            .unwrap()
            .profile
            .as_deref(),
        Some("3g.20gb")
    );
    assert_eq!(device(&snapshot, &key(1, None)).trouble, None);
}

#[test]
fn a_gpu_lost_from_the_start_is_counted_not_named() {
    for spoilt in [
        Device { lost: true, ..gpu(0) },
        Device {
            errors: errors(&[("nvmlDeviceGetUUID", "UNKNOWN")]),
            ..gpu(0)
        },
        Device {
            spoil: BTreeMap::from([("nvmlDeviceGetUUID".to_owned(), Spoil::Empty)]),
            ..gpu(0)
        },
    ] {
        let snapshot = sample_of(&node(vec![spoilt, gpu(1)]));
        assert_eq!(snapshot.devices.len(), 1);
        assert_eq!(snapshot.rejected, 1);
        rejected(&snapshot, "device 0");
        assert_eq!(snapshot.unnamed.len(), 1, "so that an answer can tell of it");
        assert!(
            snapshot.unnamed[0].starts_with("device 0: "),
            "{:?}",
            snapshot.unnamed
        );
        device(&snapshot, &key(1, None));
    }
}

#[test]
fn a_gpu_told_twice_is_one() {
    let mut twin = gpu(0);
    twin.uuid = Some(uuid(0).to_uppercase());
    let snapshot = sample_of(&node(vec![gpu(0), twin]));
    assert_eq!(snapshot.devices.len(), 1);
    rejected(&snapshot, "told before");
}

#[test]
fn texts_without_end_or_sense_are_counted() {
    for spoil in [Spoil::Unterminated, Spoil::NotUtf8, Spoil::Empty] {
        let spoil =
            ["nvmlDeviceGetName", "nvmlDeviceGetPciInfo_v3"].map(|function| (function.to_owned(), spoil));
        let snapshot = sample_of(&node(vec![Device {
            spoil: BTreeMap::from(spoil),
            ..gpu(0)
        }]));
        assert_eq!(snapshot.rejected, 2, "{:?}", snapshot.first_rejected);
        let device = device(&snapshot, &key(0, None));
        assert_eq!((&device.model, &device.pci), (&None, &None));
        assert_eq!(device.readings.utilization, Some(0.37));
    }
}

#[test]
fn hostile_counts_are_bounded() {
    let claim = |result: &str| Claim {
        count: 1_000_000_000,
        result: Code::from(result),
    };
    for result in ["SUCCESS", "INSUFFICIENT_SIZE"] {
        let mut config = node(vec![Device {
            compute: vec![process(7, GIB)],
            ..gpu(0)
        }]);
        config.claims = [COMPUTE, UTILIZATION]
            .map(|function| (function.to_owned(), claim(result)))
            .into();
        let snapshot = sample_of(&config);
        rejected(&snapshot, "1000000000 items");
        let device = device(&snapshot, &key(0, None));
        assert_eq!(device.processes, None, "what can't be listed is not known");
        assert_eq!(device.readings.temperature, Some(45.0));
    }
    let config = Config {
        count: Some(1_000_000_000),
        ..node(vec![gpu(0)])
    };
    let snapshot = sample_of(&config);
    assert_eq!(snapshot.devices.len(), 1);
    rejected(&snapshot, "1000000000 devices");
    assert!(snapshot.rejected <= u64::from(MAX_DEVICES) + 1);

    let mut config = node(vec![cut(0)]);
    config.devices[0].mig.as_mut().unwrap().max = Some(u32::MAX);
    let snapshot = sample_of(&config);
    rejected(&snapshot, "4294967295");
    device(&snapshot, &key(0, Some(5)));
}

#[test]
fn more_processes_than_are_read_make_the_list_unknown() {
    let compute = (1..=u32::try_from(MAX_PROCESSES).unwrap() + 1)
        .map(|pid| process(pid, 1))
        .collect();
    let snapshot = sample_of(&node(vec![Device { compute, ..gpu(0) }]));
    rejected(&snapshot, "more than the");
    assert_eq!(device(&snapshot, &key(0, None)).processes, None);
}

#[test]
fn lists_that_grow_while_they_are_read_are_read() {
    let now = micros(SystemTime::now());
    let mut config = node(vec![Device {
        compute: (1..=20).map(|pid| process(pid, GIB)).collect(),
        samples: Some(vec![Sample {
            pid: 3,
            time_us: now + 1_000_000,
            sm: 80,
            ..Sample::default()
        }]),
        ..gpu(0)
    }]);
    config.grow = [(COMPUTE.to_owned(), 3), (UTILIZATION.to_owned(), 3)].into();
    let snapshot = sample_of(&config);
    clean(&snapshot);
    let processes = device(&snapshot, &key(0, None)).processes.as_ref().unwrap();
    assert_eq!(processes.len(), 20);
    assert_eq!(processes[2].utilization, Some(0.8));

    config.grow.insert(COMPUTE.to_owned(), 1000);
    let snapshot = sample_of(&config);
    rejected(&snapshot, "grew");
    assert_eq!(device(&snapshot, &key(0, None)).processes, None);
}

#[test]
fn a_process_is_once_whatever_lists_it_is_in() {
    let config = node(vec![Device {
        compute: vec![
            process(10, GIB),
            Process {
                pid: 11,
                ..Process::default()
            },
        ],
        graphics: vec![process(11, 2 * GIB), process(12, 3 * GIB)],
        mps: vec![
            process(13, GIB),
            Process {
                pid: 10,
                ..Process::default()
            },
        ],
        ..gpu(0)
    }]);
    let snapshot = sample_of(&config);
    clean(&snapshot);
    let processes = device(&snapshot, &key(0, None)).processes.clone().unwrap();
    let found: Vec<_> = processes
        .iter()
        .map(|process| (process.pid, process.memory_bytes))
        .collect();
    assert_eq!(
        found,
        [
            (10, Some(GIB)),
            (11, Some(2 * GIB)),
            (12, Some(3 * GIB)),
            (13, Some(GIB))
        ]
    );
    assert!(
        processes.iter().all(|process| process.utilization.is_none()),
        "nobody has sampled"
    );
}

#[test]
fn a_process_with_more_memory_than_there_is_has_an_unknown_size() {
    let compute = vec![process(10, 41 * GIB), process(0, GIB)];
    let snapshot = sample_of(&node(vec![Device { compute, ..gpu(0) }]));
    assert_eq!(snapshot.rejected, 2);
    let processes = device(&snapshot, &key(0, None)).processes.clone().unwrap();
    assert_eq!(
        processes,
        [sample::Process {
            pid: 10,
            memory_bytes: None,
            utilization: None
        }]
    );
}

#[test]
fn gpus_without_graphics_have_a_complete_list_and_such_that_fail_have_not() {
    let graphics = "nvmlDeviceGetGraphicsRunningProcesses_v3";
    let with = |code| {
        let errors = errors(&[(graphics, code)]);
        let snapshot = sample_of(&node(vec![Device {
            compute: vec![process(5, GIB)],
            errors,
            ..gpu(0)
        }]));
        pids(device(&snapshot, &key(0, None)))
    };
    assert_eq!(with("NOT_SUPPORTED"), Some(vec![5]));
    let mute = Device {
        errors: errors(&[(COMPUTE, "NOT_SUPPORTED")]),
        ..gpu(0)
    };
    let snapshot = sample_of(&node(vec![mute]));
    assert_eq!(
        pids(device(&snapshot, &key(0, None))),
        None,
        "that there are none is not known"
    );
    assert_eq!(with("UNKNOWN"), None);
}

#[test]
fn older_drivers_are_read_by_the_functions_that_they_have() {
    let third =
        ["Compute", "Graphics", "MPSCompute"].map(|kind| format!("nvmlDeviceGet{kind}RunningProcesses_v3"));
    let second = third.clone().map(|name| name.replace("_v3", "_v2"));
    let mut missing = errors(&[("nvmlDeviceGetMemoryInfo_v2", "FUNCTION_NOT_FOUND")]);
    missing.extend(third.map(|name| (name, Code::from("FUNCTION_NOT_FOUND"))));
    let old = Device {
        compute: vec![process(5, GIB)],
        errors: missing.clone(),
        ..gpu(0)
    };
    missing.extend(second.map(|name| (name, Code::from("FUNCTION_NOT_FOUND"))));
    let older = Device {
        compute: vec![process(6, GIB), process(7, GIB)],
        errors: missing,
        ..gpu(1)
    };
    let snapshot = sample_of(&node(vec![old, older]));
    clean(&snapshot);
    assert_eq!(pids(device(&snapshot, &key(0, None))), Some(vec![5]));
    assert_eq!(pids(device(&snapshot, &key(1, None))), Some(vec![6, 7]));
    // The first version takes what the driver reserves for used.
    assert_eq!(
        device(&snapshot, &key(0, None)).readings.memory_used,
        Some(11 * GIB)
    );
}

#[test]
fn drivers_whose_third_version_is_broken_are_read_by_the_second() {
    let mut config = node(vec![Device {
        compute: vec![process(5, GIB)],
        errors: errors(&[(COMPUTE, "UNKNOWN")]),
        ..gpu(0)
    }]);
    config.driver = Some("535.86.05".to_owned());
    let snapshot = sample_of(&config);
    clean(&snapshot);
    assert_eq!(pids(device(&snapshot, &key(0, None))), Some(vec![5]));
}

#[test]
fn utilisation_of_processes_is_the_mean_since_the_last_sample() {
    let mut config = node(vec![Device {
        compute: [10, 11, 12, 13].map(|pid| process(pid, GIB)).into(),
        ..gpu(0)
    }]);
    let (fake, mut library) = open(&config);
    let utilization = |snapshot: &Snapshot| -> Vec<_> {
        let processes = device(snapshot, &key(0, None)).processes.clone().unwrap();
        processes
            .iter()
            .map(|process| (process.pid, process.utilization))
            .collect()
    };
    let snapshot = library.sample().unwrap();
    clean(&snapshot);
    assert_eq!(
        utilization(&snapshot),
        [(10, None), (11, None), (12, None), (13, None)]
    );

    // 12 does nothing, 14 is new and not sampled yet, 99 has ended, and of pid 0 is an empty place.
    let base = micros(SystemTime::now());
    let at = |pid, time_us, sm| Sample {
        pid,
        time_us,
        sm,
        ..Sample::default()
    };
    let samples = vec![
        at(10, base + 1000, 60),
        at(10, base + 2000, 20),
        at(11, base + 2000, 30),
        at(99, base + 2000, 10),
        at(0, base + 2000, 77),
    ];
    config.devices[0].compute = [10, 11, 12, 14].map(|pid| process(pid, GIB)).into();
    config.devices[0].samples = Some(samples.clone());
    fake.answer(&config).unwrap();
    let snapshot = library.sample().unwrap();
    clean(&snapshot);
    let expected = [(10, Some(0.4)), (11, Some(0.15)), (12, Some(0.0)), (14, None)];
    assert_eq!(utilization(&snapshot), expected);

    // Nothing new: what was known is of the past.
    let snapshot = library.sample().unwrap();
    clean(&snapshot);
    assert!(
        utilization(&snapshot)
            .iter()
            .all(|(_, utilization)| utilization.is_none()),
        "{snapshot:?}"
    );

    // Of what makes no sense nothing is taken.
    config.devices[0].samples = Some(vec![
        at(10, base + 3000, 50),
        at(10, base + 3000, 50),
        at(11, base + 3000, 4_000_000),
        at(12, base + 3_600_000_000, 100),
        Sample {
            stale: true,
            ..at(14, base + 1000, 100)
        },
    ]);
    fake.answer(&config).unwrap();
    let snapshot = library.sample().unwrap();
    assert_eq!(snapshot.rejected, 4, "{:?}", snapshot.first_rejected);
    assert_eq!(utilization(&snapshot)[0], (10, Some(0.5)));
    assert_eq!(utilization(&snapshot)[3], (14, Some(0.0)));
}

#[test]
fn a_process_that_ran_before_the_library_was_opened_is_not_charged_with_the_past() {
    let samples = vec![Sample {
        pid: 10,
        time_us: 1_000_000,
        sm: 90,
        ..Sample::default()
    }];
    let snapshot = sample_of(&node(vec![Device {
        compute: vec![process(10, GIB)],
        samples: Some(samples),
        ..gpu(0)
    }]));
    clean(&snapshot);
    assert_eq!(
        device(&snapshot, &key(0, None)).processes.as_ref().unwrap()[0].utilization,
        None
    );
}

#[test]
fn counters_of_bytes_are_read_and_short_ones_are_kept_apart() {
    let config = node(vec![
        Device {
            fields: [
                (197, Field::Ulonglong(11)),
                (198, Field::Ulonglong(22)),
                (138, Field::Ulonglong(3)),
                (139, Field::Ulonglong(4)),
            ]
            .into(),
            ..gpu(0)
        },
        Device {
            fields: [
                (197, Field::Uint(11)),
                (198, Field::Fails(3)),
                (138, Field::Ulonglong(3)),
                (139, Field::Fails(3)),
            ]
            .into(),
            ..gpu(1)
        },
        Device {
            fields: [(197, Field::Double(1.5)), (198, Field::Ulonglong(u64::MAX))].into(),
            ..gpu(2)
        },
    ]);
    let snapshot = sample_of(&config);
    let first = &device(&snapshot, &key(0, None)).readings;
    assert_eq!(
        (first.pcie_tx, first.pcie_rx, first.nvlink),
        (Some(11), Some(22), Some(7 * 1024))
    );
    let second = &device(&snapshot, &key(1, None)).readings;
    assert_eq!(
        (second.pcie_tx, second.pcie_rx, second.nvlink),
        (None, None, None)
    );
    assert_eq!(
        second.other,
        [("NVML_FI_DEV_PCIE_COUNT_TX_BYTES".to_owned(), 11.0)].into()
    );
    let third = &device(&snapshot, &key(2, None)).readings;
    assert_eq!((third.pcie_tx, third.pcie_rx), (None, None));
    assert_eq!(snapshot.rejected, 1, "{:?}", snapshot.first_rejected);
}

/// A GPU with two GPU instances, the first of them with two compute instances.
fn cut(number: u32) -> Device {
    let memory = |gib| {
        Some(Memory {
            total: gib * GIB,
            free: (gib - 1) * GIB,
            used: GIB,
            reserved: 0,
        })
    };
    let device = |index: u32, gpu_instance, compute_instance, profile: &str, gib| MigDevice {
        index,
        gpu_instance: Some(gpu_instance),
        compute_instance: Some(compute_instance),
        uuid: Some(format!("MIG-0000000{number}-0000-0000-0000-00000000000{index}")),
        name: Some(format!("NVIDIA A100-SXM4-40GB MIG {profile}")),
        memory: memory(gib),
        ..MigDevice::default()
    };
    let on = |pid, gpu_instance, compute_instance| Process {
        pid,
        memory: Some(GIB),
        gpu_instance: Some(gpu_instance),
        compute_instance: Some(compute_instance),
    };
    Device {
        utilization: None,
        samples: None,
        mig: Some(Mig {
            mode: 1,
            max: None,
            devices: vec![
                device(0, 1, 0, "1c.3g.20gb", 20),
                device(1, 1, 1, "2c.3g.20gb", 20),
                device(4, 5, 0, "1g.5gb", 5),
            ],
        }),
        compute: vec![on(100, 1, 0), on(101, 1, 1), on(102, 5, 0)],
        ..gpu(number)
    }
}

#[test]
fn instances_are_known_by_parent_and_id_and_counted_once() {
    let snapshot = sample_of(&node(vec![cut(0), gpu(1)]));
    clean(&snapshot);
    assert_eq!(snapshot.devices.len(), 4);
    let parent = device(&snapshot, &key(0, None));
    assert_eq!(parent.readings.utilization, None);
    assert_eq!(parent.readings.power, Some(123.456));
    assert_eq!(
        pids(parent),
        Some(Vec::new()),
        "all of its processes are on instances"
    );

    let large = device(&snapshot, &key(0, Some(1)));
    assert_eq!(
        (large.index, large.model.as_deref()),
        (Some(0), Some("NVIDIA A100-SXM4-40GB"))
    );
    let mig = large.mig.as_ref().unwrap();
    assert_eq!(mig.profile.as_deref(), Some("3g.20gb"));
    assert_eq!(
        mig.uuid.as_ref().unwrap().as_str(),
        "MIG-00000000-0000-0000-0000-000000000000"
    );
    assert_eq!(
        mig.others,
        [Uuid::new("mig-00000000-0000-0000-0000-000000000001")]
    );
    assert_eq!(
        large.readings.memory_total,
        Some(20 * GIB),
        "its compute instances share it"
    );
    assert_eq!(pids(large), Some(vec![100, 101]));

    let small = device(&snapshot, &key(0, Some(5)));
    assert_eq!(small.mig.as_ref().unwrap().profile.as_deref(), Some("1g.5gb"));
    assert_eq!(
        (small.readings.memory_used, small.readings.memory_total),
        (Some(GIB), Some(5 * GIB))
    );
    assert_eq!((small.readings.utilization, small.readings.power), (None, None));
    assert_eq!(pids(small), Some(vec![102]));
}

#[test]
fn device_nodes_and_places_of_instances_are_told() {
    let mut gpu = cut(0);
    gpu.minor = Some(3);
    for mig in &mut gpu.mig.as_mut().unwrap().devices {
        mig.placement = Some(match mig.gpu_instance {
            Some(1) => Placement {
                profile: 9,
                start: 4,
                size: 4,
            },
            _ => Placement {
                profile: 19,
                start: 2,
                size: 1,
            },
        });
    }
    let snapshot = sample_of(&node(vec![gpu.clone()]));
    clean(&snapshot);
    assert!(snapshot.devices.iter().all(|device| device.minor == Some(3)));
    let mig = |number| device(&snapshot, &key(0, Some(number))).mig.clone().unwrap();
    let (large, small) = (mig(1), mig(5));
    assert_eq!(
        large.place.map(|place| (place.profile, place.start)),
        Some((9, 4))
    );
    assert_eq!(
        small.place.map(|place| (place.profile, place.start)),
        Some((19, 2))
    );
    assert_eq!((large.slots, small.slots), (vec![0, 1], vec![4]));

    // Who may not see where an instance lies sees the rest, and is not told that something is amiss: few need it.
    gpu.minor = None;
    gpu.errors = errors(&[("nvmlDeviceGetGpuInstanceById", "NO_PERMISSION")]);
    let snapshot = sample_of(&node(vec![gpu]));
    clean(&snapshot);
    let small = device(&snapshot, &key(0, Some(5)));
    assert_eq!((small.minor, small.trouble.as_deref()), (None, None));
    assert_eq!(small.mig.as_ref().unwrap().place, None);
    assert_eq!(small.readings.memory_total, Some(5 * GIB));
}

#[test]
fn who_may_not_list_a_whole_gpu_lists_its_instances() {
    let refused = ["Compute", "Graphics", "MPSCompute"].map(|kind| {
        (
            format!("nvmlDeviceGet{kind}RunningProcesses_v3"),
            Code::from("NO_PERMISSION"),
        )
    });
    let snapshot = sample_of(&node(vec![Device {
        errors: refused.into(),
        ..cut(0)
    }]));
    clean(&snapshot);
    assert_eq!(pids(device(&snapshot, &key(0, None))), None);
    assert_eq!(pids(device(&snapshot, &key(0, Some(1)))), Some(vec![100, 101]));
    assert_eq!(pids(device(&snapshot, &key(0, Some(5)))), Some(vec![102]));
}

#[test]
fn an_old_list_without_instances_is_completed_by_those_of_the_instances() {
    let mut gpu = cut(0);
    // One list says where a process is, the other does not.
    gpu.graphics = vec![process(102, GIB), process(103, GIB)];
    let snapshot = sample_of(&node(vec![gpu]));
    clean(&snapshot);
    assert_eq!(pids(device(&snapshot, &key(0, None))), Some(vec![103]));
    assert_eq!(pids(device(&snapshot, &key(0, Some(5)))), Some(vec![102]));
}

#[test]
fn lists_that_can_not_tell_instances_are_asked_of_each_instance() {
    let newer: BTreeMap<_, _> = ["Compute", "Graphics", "MPSCompute"]
        .into_iter()
        .flat_map(|kind| {
            ["_v2", "_v3"].map(|version| format!("nvmlDeviceGet{kind}RunningProcesses{version}"))
        })
        .map(|function| (function, Code::from("FUNCTION_NOT_FOUND")))
        .collect();
    let mut gpu = Device {
        errors: newer.clone(),
        ..cut(0)
    };
    for mig in &mut gpu.mig.as_mut().unwrap().devices {
        mig.errors.clone_from(&newer);
    }
    let snapshot = sample_of(&node(vec![gpu]));
    clean(&snapshot);
    assert_eq!(pids(device(&snapshot, &key(0, None))), Some(Vec::new()));
    assert_eq!(pids(device(&snapshot, &key(0, Some(1)))), Some(vec![100, 101]));
    assert_eq!(pids(device(&snapshot, &key(0, Some(5)))), Some(vec![102]));
}

#[test]
fn a_process_on_an_instance_that_nobody_lists_is_not_the_parents() {
    let mut gpu = cut(0);
    gpu.compute.push(Process {
        pid: 104,
        gpu_instance: Some(9),
        ..Process::default()
    });
    let snapshot = sample_of(&node(vec![gpu]));
    assert_eq!(pids(device(&snapshot, &key(0, Some(9)))), Some(vec![104]));
    assert_eq!(pids(device(&snapshot, &key(0, None))), Some(Vec::new()));
}

#[test]
fn an_instance_without_id_is_counted_and_one_without_name_is_kept() {
    let mut gpu = cut(0);
    let mig = gpu.mig.as_mut().unwrap();
    mig.devices[0].gpu_instance = None;
    mig.devices[1].gpu_instance = None;
    mig.devices[2].name = None;
    mig.devices[2].uuid = None;
    gpu.compute.clear();
    let snapshot = sample_of(&node(vec![gpu]));
    assert_eq!(snapshot.rejected, 2);
    rejected(&snapshot, "no GPU instance id");
    assert_eq!(snapshot.devices.len(), 2);
    let small = device(&snapshot, &key(0, Some(5)));
    let nameless = sample::Mig {
        slots: vec![4],
        ..sample::Mig::default()
    };
    assert_eq!(small.mig, Some(nameless));
    assert_eq!(small.readings.memory_total, Some(5 * GIB));
}

#[test]
fn a_gpu_whose_mig_is_off_has_no_instances() {
    let mut gpu = cut(0);
    gpu.mig.as_mut().unwrap().mode = 0;
    gpu.compute = vec![process(5, GIB)];
    let snapshot = sample_of(&node(vec![gpu]));
    clean(&snapshot);
    assert_eq!(snapshot.devices.len(), 1);
    assert_eq!(pids(&snapshot.devices[0]), Some(vec![5]));
}

#[test]
fn a_missing_library_is_told_by_its_path_and_is_no_trouble() {
    for path in [Some(Path::new("/nonexistent/libnvidia-ml.so.1")), None] {
        let error = Library::open(path).unwrap_err();
        assert!(error.is_absent(), "{error:?}");
        assert!(matches!(error, NvmlError::Absent { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("no NVIDIA driver") && text.contains("libnvidia-ml.so.1"),
            "{text}"
        );
        assert!(
            path.is_none_or(|path| text.starts_with(path.to_str().unwrap())),
            "{text}"
        );
    }
}

#[test]
fn a_library_that_is_none_or_another_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("libnvidia-ml.so.1");
    std::fs::write(&text, "no library").unwrap();
    let error = Library::open(Some(&text)).unwrap_err();
    assert!(
        matches!(error, NvmlError::Unloadable { .. }) && !error.is_absent(),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("invalid ELF header") || error.to_string().contains("too short"),
        "{error}"
    );

    let error = Library::open(Some(Path::new("libc.so.6"))).unwrap_err();
    assert!(
        matches!(error, NvmlError::Foreign { .. }) && !error.is_absent(),
        "{error:?}"
    );
    assert!(error.to_string().contains("nvmlInit_v2"), "{error}");
}

#[test]
fn a_library_that_can_start_and_not_stop_is_no_nvml() {
    let directory = tempfile::tempdir().unwrap();
    let (source, library) = (directory.path().join("half.rs"), directory.path().join("half.so"));
    std::fs::write(
        &source,
        "#[unsafe(no_mangle)] pub extern \"C\" fn nvmlInit_v2() -> u32 { 0 }",
    )
    .unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=cdylib", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(built.success());
    let error = Library::open(Some(&library)).unwrap_err();
    assert!(error.to_string().contains("nvmlShutdown"), "{error}");
}

#[test]
fn a_driver_that_does_not_start_is_told_from_one_that_is_not_there() {
    let with = |code| {
        let config = Config {
            errors: errors(&[("nvmlInit_v2", code)]),
            ..node(vec![gpu(0)])
        };
        let fake = Fake::new(&config).unwrap();
        Library::open(Some(&fake.library())).unwrap_err()
    };
    let error = with("DRIVER_NOT_LOADED");
    assert!(
        error.is_absent() && error.to_string().contains("not loaded"),
        "{error}"
    );
    let error = with("LIB_RM_VERSION_MISMATCH");
    assert!(
        !error.is_absent() && error.to_string().contains("reboot"),
        "{error}"
    );
    let error = with("NO_PERMISSION");
    assert!(
        !error.is_absent() && error.to_string().contains("permission"),
        "{error}"
    );
}

#[test]
fn a_driver_that_goes_away_is_told_and_not_taken_for_gpus_that_do() {
    let mut config = node(vec![gpu(0)]);
    let (fake, mut library) = open(&config);
    library.sample().unwrap();
    config.devices[0].errors = errors(&[("nvmlDeviceGetTemperature", "UNINITIALIZED")]);
    fake.answer(&config).unwrap();
    assert!(matches!(library.sample(), Err(NvmlError::Call { .. })));
    config.devices[0].errors.clear();
    config.errors = errors(&[("nvmlDeviceGetCount_v2", "UNINITIALIZED")]);
    fake.answer(&config).unwrap();
    let error = library.sample().unwrap_err();
    assert!(error.to_string().contains("nvmlDeviceGetCount_v2"), "{error}");
    drop(library);
    config.errors.clear();
    fake.answer(&config).unwrap();
    assert_eq!(
        Library::open(Some(&fake.library()))
            .unwrap()
            .sample()
            .unwrap()
            .devices
            .len(),
        1
    );
}

#[test]
fn a_node_whose_driver_has_no_gpu_has_none() {
    let snapshot = sample_of(&node(Vec::new()));
    clean(&snapshot);
    assert!(snapshot.devices.is_empty());
}

#[test]
fn xid_errors_arrive_with_their_gpu_and_instance() {
    let mut config = node(vec![gpu(0), cut(1)]);
    let (fake, library) = open(&config);
    let mut watcher = library.watch().unwrap();
    assert!(watcher.unwatched().is_empty());
    let started = Instant::now();
    assert_eq!(watcher.wait(Duration::from_millis(50)).unwrap(), None);
    assert!(started.elapsed() >= Duration::from_millis(50));

    let xid = |device, xid| Event {
        device,
        xid,
        ..Event::default()
    };
    config.events = vec![
        xid(0, 79),
        Event {
            gpu_instance: Some(5),
            ..xid(1, 31)
        },
        xid(0, 999),
        Event {
            kind: Some(16),
            ..xid(0, 13)
        },
        xid(0, u64::MAX),
        Event {
            stranger: true,
            ..xid(0, 13)
        },
        xid(1, 43),
    ];
    // It has to be told even of a GPU that is lost by then.
    config.devices[0].lost = true;
    let late = {
        let config = config.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            fake.answer(&config).unwrap();
            fake
        })
    };
    let mut got = Vec::new();
    let before = SystemTime::now();
    while got.len() < 4 && started.elapsed() < Duration::from_secs(20) {
        got.extend(watcher.wait(Duration::from_secs(2)).unwrap());
    }
    let _fake = late.join().unwrap();
    assert!(got.iter().all(|event| event.time >= before));
    let got: Vec<_> = got.into_iter().map(|event| (event.key, event.xid)).collect();
    let expected = [
        (key(0, None), Some(79)),
        (key(1, Some(5)), Some(31)),
        (key(0, None), None),
        (key(1, None), Some(43)),
    ];
    assert_eq!(got, expected);
    assert_eq!(
        watcher.rejected(),
        2,
        "a number that is no XID, and a GPU that nobody knows"
    );
    assert_eq!(watcher.wait(Duration::ZERO).unwrap(), None, "each once");
}

#[test]
fn a_watcher_goes_on_without_the_gpu_that_is_lost() {
    let mut config = node(vec![gpu(0), gpu(1)]);
    let (fake, library) = open(&config);
    let mut watcher = library.watch().unwrap();
    config.devices[0].lost = true;
    config.errors = errors(&[("nvmlEventSetWait_v2", "GPU_IS_LOST")]);
    fake.answer(&config).unwrap();
    let started = Instant::now();
    assert_eq!(watcher.wait(Duration::from_millis(60)).unwrap(), None);
    assert!(
        started.elapsed() >= Duration::from_millis(60),
        "or whoever waits would spin"
    );
    assert_eq!(watcher.unwatched().len(), 1);
    assert!(watcher.unwatched()[0].contains("device 0") && watcher.unwatched()[0].contains("lost"));
    config.errors.clear();
    config.events = vec![Event {
        device: 1,
        xid: 48,
        ..Event::default()
    }];
    fake.answer(&config).unwrap();
    let event = watcher.wait(Duration::from_secs(5)).unwrap().unwrap();
    assert_eq!((event.key, event.xid), (key(1, None), Some(48)));
}

#[test]
fn a_watcher_outlives_the_library_it_came_from_and_errors_take_their_time() {
    let mut config = node(vec![gpu(0)]);
    let (fake, library) = open(&config);
    let mut watcher = library.watch().unwrap();
    drop(library);
    assert_eq!(watcher.wait(Duration::from_millis(1)).unwrap(), None);
    config.errors = errors(&[("nvmlEventSetWait_v2", "UNKNOWN")]);
    fake.answer(&config).unwrap();
    let started = Instant::now();
    assert!(watcher.wait(Duration::from_millis(60)).is_err());
    assert!(started.elapsed() >= Duration::from_millis(60));
    // It waits elsewhere too.
    thread::spawn(move || drop(watcher)).join().unwrap();
}

#[test]
fn a_wait_ends() {
    assert!(MAX_WAIT <= Duration::from_secs(5));
    let (_fake, library) = open(&node(vec![gpu(0)]));
    let mut watcher = library.watch().unwrap();
    let started = Instant::now();
    assert_eq!(watcher.wait(Duration::MAX).unwrap(), None);
    assert!(started.elapsed() < MAX_WAIT + Duration::from_secs(5));
}

#[test]
fn gpus_that_report_no_events_are_told() {
    let mut config = node(vec![gpu(0), gpu(1)]);
    config.devices[0].errors = errors(&[("nvmlDeviceRegisterEvents", "NOT_SUPPORTED")]);
    let (fake, library) = open(&config);
    let watcher = library.watch().unwrap();
    assert_eq!(watcher.unwatched().len(), 1);
    config.devices[1].errors = config.devices[0].errors.clone();
    fake.answer(&config).unwrap();
    let error = library.watch().unwrap_err();
    assert!(matches!(error, NvmlError::NoEvents { .. }), "{error:?}");
    assert!(error.to_string().contains("device 1"), "{error}");
}

#[test]
fn the_source_can_move_between_threads() {
    fn sent<T: Send + 'static>(_: &T) {}
    let (_fake, mut library) = open(&node(vec![gpu(0)]));
    sent(&library);
    sent(&library.watch().unwrap());
    let read = thread::spawn(move || library.sample().unwrap().devices.len())
        .join()
        .unwrap();
    assert_eq!(read, 1);
}

#[test]
fn answers_can_come_from_a_file_that_a_variable_names() {
    const INNER: &str = "ORB8_TEST_LIBRARY";
    if let Some(library) = std::env::var_os(INNER) {
        let mut library = Library::open(Some(Path::new(&library))).unwrap();
        assert_eq!(library.sample().unwrap().devices.len(), 3);
        return;
    }
    let fake = Fake::new(&node(vec![gpu(0)])).unwrap();
    let answers = fake.directory().join("answers.json");
    let written = serde_json::to_vec(&node(vec![gpu(0), gpu(1), gpu(2)])).unwrap();
    std::fs::write(&answers, written).unwrap();
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "answers_can_come_from_a_file_that_a_variable_names"])
        .env(INNER, fake.library())
        .env("ORB8_FAKE_NVML", answers)
        .output()
        .unwrap();
    assert!(inner.status.success(), "{inner:?}");
}

#[test]
fn the_structs_of_the_fake_are_those_of_the_bindings() {
    use nvml_wrapper_sys::bindings as real;
    assert_eq!(
        orb8_fake_nvml::sizes(),
        [
            size_of::<real::nvmlUtilization_t>(),
            size_of::<real::nvmlMemory_t>(),
            size_of::<real::nvmlMemory_v2_t>(),
            size_of::<real::nvmlPciInfo_t>(),
            size_of::<real::nvmlProcessInfo_v1_t>(),
            size_of::<real::nvmlProcessInfo_v2_t>(),
            size_of::<real::nvmlProcessUtilizationSample_t>(),
            size_of::<real::nvmlFieldValue_t>(),
            size_of::<real::nvmlGpuInstanceInfo_t>(),
            size_of::<real::nvmlEventData_t>(),
        ]
    );
}

#[test]
fn the_example_of_the_fake_is_read() {
    let example = include_str!("../fakes/nvml/example.json");
    let snapshot = sample_of(&serde_json::from_str(example).unwrap());
    clean(&snapshot);
    assert_eq!(snapshot.devices.len(), 3);
    assert_eq!(pids(&snapshot.devices[0]), Some(vec![4242]));
    assert_eq!(snapshot.devices[2].key.instance, Some(2));
    assert_eq!(pids(&snapshot.devices[2]), Some(vec![4343]));
}
