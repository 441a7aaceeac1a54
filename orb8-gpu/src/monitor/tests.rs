//! Rules that hold in every mode, each on samples as sources give them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orb8_proto::v1::{GpuDevice, GpuHolder, GpuMethod, GpuQuery, GpuReadings};
use proptest::prelude::*;

use super::*;
use crate::{
    owners::PodDetails,
    sample::{Device, Place, Process, Readings},
    span,
};

const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";
const B: &str = "GPU-bbbbbbbb-0000-0000-0000-000000000000";
const STEP: u64 = 5;

/// Pids 10 to 19 are of pod `p1`, 20 to 29 of `p2`, and so on; above 1000 nobody's.
struct Pods;

impl Owners for Pods {
    fn of_pid(&self, pid: u32) -> Option<Owner> {
        (pid < 1000).then(|| Owner {
            namespace: "ml".to_owned(),
            pod: format!("p{}", pid / 10),
            container: "main".to_owned(),
            uid: format!("uid-{}", pid / 10),
            ..Owner::default()
        })
    }

    fn pod(&self, _: &str, pod: &str, _: &str) -> Option<PodDetails> {
        Some(PodDetails {
            uid: format!("uid-{}", pod.trim_start_matches('p')),
            workload: "Job/train".to_owned(),
        })
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

fn monitor() -> Monitor {
    Monitor::new("n1", Duration::from_secs(STEP), Limits::default())
}

fn key(uuid: &str) -> DeviceKey {
    DeviceKey {
        uuid: Uuid::new(uuid),
        instance: None,
    }
}

fn instance(uuid: &str, instance: u32) -> DeviceKey {
    DeviceKey {
        instance: Some(instance),
        ..key(uuid)
    }
}

fn used(key: DeviceKey, utilization: f64) -> Device {
    let mut device = Device::new(key);
    device.index = Some(0);
    device.readings = Readings {
        utilization: Some(utilization),
        memory_used: Some(4 << 30),
        memory_total: Some(16 << 30),
        ..Readings::NONE
    };
    device
}

fn process(pid: u32, utilization: f64, memory_bytes: u64) -> Process {
    Process {
        pid,
        memory_bytes: Some(memory_bytes),
        utilization: Some(utilization),
    }
}

fn snapshot(source: Source, seconds: u64, devices: Vec<Device>) -> Snapshot {
    Snapshot {
        source,
        time: at(seconds),
        devices,
        rejected: 0,
        first_rejected: None,
        unnamed: Vec::new(),
    }
}

fn allocations(seconds: u64, held: &[(&str, &[&str])]) -> Allocations {
    Allocations {
        time: at(seconds),
        refused: 0,
        held: held
            .iter()
            .map(|(pod, devices)| Held {
                namespace: "ml".to_owned(),
                pod: (*pod).to_owned(),
                container: "main".to_owned(),
                resource: "nvidia.com/gpu".to_owned(),
                claim: None,
                devices: devices.iter().map(|id| (*id).to_owned()).collect(),
            })
            .collect(),
    }
}

fn now(monitor: &Monitor, seconds: u64) -> Vec<GpuDevice> {
    monitor
        .query(&GpuQuery::default(), at(seconds), None)
        .unwrap()
        .devices
}

fn during(monitor: &Monitor, from: u64, to: u64) -> Vec<GpuDevice> {
    let query = GpuQuery {
        since: Some(span::timestamp(nanos(at(from)))),
        until: Some(span::timestamp(nanos(at(to)))),
        ..GpuQuery::default()
    };
    monitor.query(&query, at(to), None).unwrap().devices
}

fn readings(device: &GpuDevice) -> &GpuReadings {
    device.readings.as_ref().unwrap()
}

fn holder<'a>(device: &'a GpuDevice, pod: &str) -> &'a GpuHolder {
    let mut found = device
        .holders
        .iter()
        .filter(|holder| holder.owner.as_ref().unwrap().pod == pod);
    let holder = found
        .next()
        .unwrap_or_else(|| panic!("{pod} is not among {:?}", device.holders));
    assert!(found.next().is_none(), "{pod} is there twice");
    holder
}

#[test]
fn who_alone_holds_a_device_does_what_it_does() {
    let mut monitor = monitor();
    for n in 0..4 {
        monitor.allocate(allocations(n * STEP, &[("p1", &[A])]), &Pods);
        monitor.sample(
            snapshot(Source::Dcgm, n * STEP + 1, vec![used(key(A), 0.5)]),
            &Pods,
        );
    }
    let devices = now(&monitor, 17);
    let [device] = devices.as_slice() else {
        panic!("{devices:?}")
    };
    let p1 = holder(device, "p1");
    assert_eq!(p1.method(), GpuMethod::Exclusive);
    assert_eq!(p1.utilization, Some(0.5));
    assert_eq!(p1.memory_bytes, Some(4 << 30));
    assert_eq!(p1.device_ids, [A]);
    assert_eq!(p1.owner.as_ref().unwrap().workload, "Job/train");
    assert_eq!(device.sources, ["dcgm"]);
}

#[test]
fn zero_is_not_unknown() {
    let mut monitor = monitor();
    monitor.allocate(allocations(0, &[("p1", &[A]), ("p2", &[B])]), &Pods);
    let mut silent = Device::new(key(B));
    silent.index = Some(1);
    monitor.sample(
        snapshot(Source::Dcgm, 1, vec![used(key(A), 0.0), silent.clone()]),
        &Pods,
    );
    monitor.sample(snapshot(Source::Dcgm, 6, vec![used(key(A), 0.0), silent]), &Pods);
    let devices = now(&monitor, 7);
    let (idle, unknown) = (holder(&devices[0], "p1"), holder(&devices[1], "p2"));
    assert_eq!(
        (idle.method(), idle.utilization),
        (GpuMethod::AllocatedIdle, Some(0.0))
    );
    assert_eq!(readings(&devices[0]).utilization, Some(0.0));
    assert_eq!(
        (unknown.method(), unknown.utilization),
        (GpuMethod::Exclusive, None)
    );
    assert_eq!(readings(&devices[1]).utilization, None);
}

#[test]
fn sharing_without_processes_copies_nothing() {
    let mut monitor = monitor();
    let (one, two) = (format!("{A}::0"), format!("{A}::1"));
    monitor.allocate(allocations(0, &[("p1", &[&one]), ("p2", &[&two])]), &Pods);
    for n in 0..3 {
        monitor.sample(
            snapshot(Source::Dcgm, n * STEP + 1, vec![used(key(A), 0.8)]),
            &Pods,
        );
    }
    let devices = now(&monitor, 12);
    assert_eq!(readings(&devices[0]).utilization, Some(0.8));
    for (pod, id) in [("p1", &one), ("p2", &two)] {
        let share = holder(&devices[0], pod);
        assert_eq!(share.method(), GpuMethod::SharedEstimate);
        assert_eq!((share.utilization, share.memory_bytes), (None, None));
        assert_eq!(&share.device_ids, std::slice::from_ref(id));
    }
}

#[test]
fn sharing_with_processes_is_measured_and_never_more_than_the_device() {
    let mut monitor = monitor();
    monitor.allocate(
        allocations(0, &[("p1", &[&format!("{A}::0")]), ("p2", &[&format!("{A}::1")])]),
        &Pods,
    );
    for n in 0..3 {
        let mut device = used(key(A), 0.6);
        device.processes = Some(vec![process(10, 0.5, 3 << 30), process(20, 0.25, 3 << 30)]);
        monitor.sample(snapshot(Source::Nvml, n * STEP + 1, vec![device]), &Pods);
    }
    let devices = now(&monitor, 12);
    let (one, two) = (holder(&devices[0], "p1"), holder(&devices[0], "p2"));
    assert_eq!(one.method(), GpuMethod::NvmlPid);
    assert_eq!(two.method(), GpuMethod::NvmlPid);
    assert!((one.utilization.unwrap() - 0.4).abs() < 1e-6, "{one:?}");
    assert!((two.utilization.unwrap() - 0.2).abs() < 1e-6, "{two:?}");
    assert_eq!(
        (one.memory_bytes, two.memory_bytes),
        (Some(2 << 30), Some(2 << 30))
    );
    assert_eq!(one.pids, [10]);
}

#[test]
fn who_uses_what_it_does_not_hold_is_shown_as_that() {
    let mut monitor = monitor();
    monitor.allocate(allocations(0, &[("p1", &[A])]), &Pods);
    for n in 0..3 {
        let mut device = used(key(A), 0.6);
        device.processes = Some(vec![
            process(10, 0.1, 1 << 30),
            process(20, 0.5, 1 << 30),
            process(2000, 0.0, 1),
        ]);
        monitor.sample(snapshot(Source::Nvml, n * STEP + 1, vec![device]), &Pods);
    }
    let devices = now(&monitor, 12);
    let (one, two) = (holder(&devices[0], "p1"), holder(&devices[0], "p2"));
    assert_eq!((one.method(), one.utilization), (GpuMethod::NvmlPid, Some(0.1)));
    assert_eq!(
        (two.method(), two.utilization),
        (GpuMethod::UnallocatedUse, Some(0.5))
    );
    assert_eq!(two.since, None);
    let nobody = holder(&devices[0], "");
    assert_eq!(
        (nobody.method(), nobody.pids.as_slice()),
        (GpuMethod::UnallocatedUse, &[2000][..])
    );
}

#[test]
fn without_a_kubelet_processes_are_measured_and_hold_nothing() {
    let mut monitor = monitor();
    let mut device = used(key(A), 0.6);
    device.processes = Some(vec![process(10, 0.6, 1 << 30)]);
    monitor.sample(snapshot(Source::Nvml, 1, vec![device]), &Pods);
    let devices = now(&monitor, 2);
    assert_eq!(holder(&devices[0], "p1").method(), GpuMethod::NvmlPid);
    // Whoever is on a device that nobody hands out holds it: so it may be idle, too.
    for n in 1..5 {
        let mut device = used(key(A), 0.0);
        device.processes = Some(if n < 4 {
            vec![process(10, 0.0, 1)]
        } else {
            Vec::new()
        });
        monitor.sample(snapshot(Source::Nvml, n * STEP + 1, vec![device]), &Pods);
    }
    let query = GpuQuery {
        since: Some(span::timestamp(nanos(at(1)))),
        until: Some(span::timestamp(nanos(at(21)))),
        idle: true,
        ..GpuQuery::default()
    };
    let answer = monitor.query(&query, at(22), None).unwrap();
    let p1 = holder(&answer.devices[0], "p1");
    let idle = p1.idle.as_ref().unwrap();
    assert_eq!((idle.held.unwrap().seconds, idle.idle.unwrap().seconds), (15, 15));
    assert!(p1.until.is_some());
}

#[test]
fn instances_have_their_use_and_the_gpu_the_rest() {
    let mut monitor = monitor();
    monitor.allocate(
        allocations(
            0,
            &[("p1", &["MIG-11111111"]), ("p2", &[&format!("MIG-{A}/9/0")])],
        ),
        &Pods,
    );
    for n in 0..3 {
        let mut whole = used(key(A), 0.9);
        whole.readings.power = Some(200.0);
        let cut = |number: u32, uuid: &str, share: f64| {
            let mut device = Device::new(instance(A, number));
            device.index = Some(0);
            device.mig = Some(Mig {
                uuid: Some(Uuid::new(uuid)),
                profile: Some("1g.10gb".to_owned()),
                ..Mig::default()
            });
            device.readings.profile.graphics_active = Some(share);
            device.readings.memory_used = Some(1 << 30);
            device.readings.power = Some(200.0);
            device
        };
        let devices = vec![whole, cut(7, "mig-11111111", 0.25), cut(9, "MIG-22222222", 0.5)];
        monitor.sample(snapshot(Source::Dcgm, n * STEP + 1, devices), &Pods);
    }
    let devices = now(&monitor, 12);
    assert_eq!(devices.len(), 3);
    let whole = readings(&devices[0]);
    assert_eq!(
        (whole.power_watts, whole.utilization, whole.memory_used_bytes),
        (Some(200.0), None, None)
    );
    assert!(devices[0].holders.is_empty());
    let (one, two) = (holder(&devices[1], "p1"), holder(&devices[2], "p2"));
    assert_eq!(
        (one.method(), one.utilization, one.memory_bytes),
        (GpuMethod::Mig, Some(0.25), Some(1 << 30))
    );
    assert_eq!((two.method(), two.utilization), (GpuMethod::Mig, Some(0.5)));
    assert_eq!(readings(&devices[1]).power_watts, None, "the board's, once");
}

#[test]
fn devices_of_dynamic_allocation_are_found_by_device_node_and_place() {
    let mut monitor = monitor();
    let gpu = |uuid: &str, index: u32, minor: Option<u32>| {
        let mut device = used(key(uuid), 0.5);
        (device.index, device.minor) = (Some(index), minor);
        device
    };
    let mut cut = Device::new(instance(B, 9));
    (cut.index, cut.minor) = (Some(1), Some(0));
    cut.mig = Some(Mig {
        place: Some(Place {
            profile: 19,
            start: 4,
        }),
        ..Mig::default()
    });
    // The driver numbers them the other way round.
    let devices = vec![gpu(A, 0, Some(1)), gpu(B, 1, Some(0)), cut];
    monitor.sample(snapshot(Source::Nvml, 1, devices), &Pods);
    monitor.allocate(
        allocations(
            2,
            &[
                ("p1", &["gpu-1"]),
                ("p2", &["gpu-0-mig-1g5gb-19-4"]),
                ("p3", &["gpu-0-mig-1g5gb-19-0"]),
            ],
        ),
        &Pods,
    );
    let devices = now(&monitor, 3);
    let of = |pod: &str| {
        let held = devices.iter().find(|device| {
            let pods = device
                .holders
                .iter()
                .map(|holder| &holder.owner.as_ref().unwrap().pod);
            pods.into_iter().any(|name| name == pod)
        });
        let held = held.unwrap_or_else(|| panic!("{pod} is nowhere"));
        (held.uuid.as_str(), held.mig.as_ref().map(|mig| mig.instance))
    };
    assert_eq!((of("p1"), of("p2")), ((A, None), (B, Some(9))));
    assert_eq!(of("p3"), ("gpu-0-mig-1g5gb-19-0", None), "no source tells of it");

    // Without the numbers of device nodes nobody knows: an index is another number.
    let mut blind = super::tests::monitor();
    blind.allocate(allocations(0, &[("p1", &["gpu-1"])]), &Pods);
    blind.sample(
        snapshot(Source::Dcgm, 1, vec![gpu(A, 0, None), gpu(B, 1, None)]),
        &Pods,
    );
    let devices = now(&blind, 2);
    assert!(devices[..2].iter().all(|device| device.holders.is_empty()));
    assert_eq!(devices[2].uuid, "gpu-1");
    assert!(
        devices[2].trouble.contains("device node"),
        "{}",
        devices[2].trouble
    );
}

#[test]
fn an_index_names_the_device_that_has_it_now() {
    let mut monitor = monitor();
    for n in 0..4 {
        // A is taken out after a while, and the driver counts anew.
        let devices = if n < 2 {
            vec![used(key(A), 0.5)]
        } else {
            vec![used(key(B), 0.25)]
        };
        monitor.sample(snapshot(Source::Nvml, n * STEP, devices), &Pods);
        monitor.allocate(allocations(n * STEP + 1, &[("p1", &["0"])]), &Pods);
    }
    let devices = now(&monitor, 17);
    assert_eq!(devices.len(), 1, "{devices:#?}");
    assert_eq!(
        (devices[0].uuid.as_str(), holder(&devices[0], "p1").utilization),
        (B, Some(0.25))
    );

    // Two that are told at once with one number: nobody knows which.
    monitor.sample(
        snapshot(Source::Nvml, 20, vec![used(key(A), 0.5), used(key(B), 0.5)]),
        &Pods,
    );
    let devices = now(&monitor, 21);
    let held: Vec<&str> = devices
        .iter()
        .filter(|device| !device.holders.is_empty())
        .map(|device| device.uuid.as_str())
        .collect();
    assert_eq!(held, ["0"], "{devices:#?}");

    // NVML's numbers go before an exporter's.
    monitor.sample(snapshot(Source::Nvml, 25, vec![used(key(A), 0.5)]), &Pods);
    monitor.sample(snapshot(Source::Dcgm, 26, vec![used(key(B), 0.5)]), &Pods);
    let devices = now(&monitor, 27);
    let of_a = devices.iter().find(|device| device.uuid == A).unwrap();
    holder(of_a, "p1");
    assert!(
        devices
            .iter()
            .all(|device| device.uuid == A || device.holders.is_empty())
    );
}

#[test]
fn a_page_of_another_node_is_not_this_nodes() {
    let mut monitor = monitor();
    let page = |seconds: u64, devices: &[&str]| {
        let devices = devices.iter().map(|uuid| {
            let mut device = used(key(uuid), 0.5);
            device.host = Some("exporter-x".to_owned());
            device
        });
        snapshot(Source::Dcgm, seconds, devices.collect())
    };
    // Nobody knows yet.
    let mut first = page(0, &[B]);
    assert!(monitor.own(&mut first, &[], &Pods).is_empty());
    monitor.sample(first, &Pods);
    monitor.sample(snapshot(Source::Nvml, 1, vec![used(key(A), 0.25)]), &Pods);
    let mut second = page(5, &[B]);
    let foreign = monitor.own(&mut second, &[], &Pods);
    assert_eq!(
        (foreign.len(), foreign[0].host.as_deref()),
        (1, Some("exporter-x"))
    );
    assert!(second.devices.is_empty());
    assert_eq!(monitor.counted().foreign, 1);
    let devices = during(&monitor, 0, 6);
    assert_eq!(devices.len(), 1, "what was taken in is forgotten: {devices:#?}");
    assert_eq!(devices[0].uuid, A);
    // NVML goes away: the driver still tells which are this node's.
    let gpus = [Gpu {
        uuid: Some(Uuid::new(A.to_uppercase())),
        pci: "0000:07:00.0".to_owned(),
        minor: Some(0),
    }];
    let mut blind = super::tests::monitor();
    assert_eq!(blind.own(&mut page(0, &[B]), &gpus, &Pods).len(), 1);
    assert!(blind.own(&mut page(0, &[A]), &gpus, &Pods).is_empty());
    assert!(blind.own(&mut page(0, &[A, B]), &gpus, &Pods).is_empty());
}

#[test]
fn labels_tell_which_instance_it_is_that_the_kubelet_hands_out() {
    // No NVML: nobody tells the instances' own UUIDs.
    let page = |seconds: u64, pods: [&str; 3]| {
        let cut = [(7, "1g.5gb"), (8, "1g.5gb"), (2, "3g.20gb")];
        let devices = cut.into_iter().zip(pods).map(|((number, profile), pod)| {
            let mut device = Device::new(instance(A, number));
            device.mig = Some(Mig {
                profile: Some(profile.to_owned()),
                ..Mig::default()
            });
            device.readings.profile.graphics_active = Some(0.5);
            let claim = Claim {
                namespace: "ml".to_owned(),
                pod: pod.to_owned(),
                container: "main".to_owned(),
            };
            device.claims = Some(claim).filter(|_| !pod.is_empty()).into_iter().collect();
            device
        });
        snapshot(Source::Dcgm, seconds, devices.collect())
    };
    let held = |seconds: u64, held: &[(&str, &[&str])]| {
        let mut allocations = allocations(seconds, held);
        for held in &mut allocations.held {
            held.resource = "nvidia.com/mig-1g.5gb".to_owned();
        }
        allocations
    };
    let mut monitor = monitor();
    let holders = |monitor: &Monitor, seconds: u64| {
        let devices = now(monitor, seconds);
        let names = |device: &GpuDevice| -> Vec<String> {
            let owners = device.holders.iter().map(|holder| holder.owner.as_ref().unwrap());
            owners.map(|owner| owner.pod.clone()).collect()
        };
        let of = |device: &GpuDevice| match &device.mig {
            Some(mig) => mig.instance.to_string(),
            None => device.uuid.clone(),
        };
        devices
            .iter()
            .filter(|device| !device.holders.is_empty())
            .map(|device| (of(device), names(device).join("+")))
            .collect::<Vec<_>>()
    };
    let two = |first: &str, second: &str| {
        vec![
            (first.to_owned(), "p1".to_owned()),
            (second.to_owned(), "p2".to_owned()),
        ]
    };
    // At first labels may be of a pod of the same name that was there before.
    for n in 0..8 {
        let seconds = n * STEP;
        monitor.allocate(held(seconds, &[("p1", &["MIG-1"]), ("p2", &["MIG-2::0"])]), &Pods);
        monitor.sample(page(seconds + 1, ["p1", "p2", ""]), &Pods);
        let expected = if seconds < 30 {
            two("MIG-1", "MIG-2")
        } else {
            two("7", "8")
        };
        assert_eq!(holders(&monitor, seconds + 2), expected, "{seconds}");
    }
    // The third is not held.
    assert_eq!(holder(&now(&monitor, 37)[1], "p1").method(), GpuMethod::Mig);
    // What is known of an instance is known of all that share it, and while labels are missing.
    monitor.allocate(
        held(
            40,
            &[("p1", &["mig-1"]), ("p2", &["MIG-2::0"]), ("p3", &["MIG-2::1"])],
        ),
        &Pods,
    );
    monitor.sample(page(41, ["", "p3", ""]), &Pods);
    assert_eq!(
        holders(&monitor, 42),
        [
            ("7".to_owned(), "p1".to_owned()),
            ("8".to_owned(), "p2+p3".to_owned())
        ]
    );
    // A pod of the same name comes back with another instance: its label is of the one before.
    monitor.allocate(held(45, &[("p1", &["MIG-9"])]), &Pods);
    monitor.sample(page(46, ["p1", "", ""]), &Pods);
    assert_eq!(holders(&monitor, 47), [("MIG-9".to_owned(), "p1".to_owned())]);
    // Labels of another profile, or of several instances, tell nothing.
    for (n, pods) in (10..20).zip([["", "", "p1"], ["p1", "p1", ""]].into_iter().cycle()) {
        monitor.allocate(held(n * STEP, &[("p1", &["MIG-9"])]), &Pods);
        monitor.sample(page(n * STEP + 1, pods), &Pods);
        assert_eq!(
            holders(&monitor, n * STEP + 2),
            [("MIG-9".to_owned(), "p1".to_owned())]
        );
    }
}

#[test]
fn ids_match_without_regard_to_case() {
    let mut monitor = monitor();
    monitor.allocate(allocations(0, &[("p1", &[&A.to_uppercase()])]), &Pods);
    monitor.sample(snapshot(Source::Dcgm, 1, vec![used(key(A), 0.5)]), &Pods);
    monitor.sample(
        snapshot(Source::Nvml, 1, vec![used(key(&A.to_lowercase()), 0.5)]),
        &Pods,
    );
    let devices = now(&monitor, 2);
    assert_eq!(devices.len(), 1, "two sources, one device");
    assert_eq!(devices[0].sources, ["nvml", "dcgm"]);
    assert_eq!(holder(&devices[0], "p1").method(), GpuMethod::Exclusive);
}

#[test]
fn the_kubelet_goes_before_labels() {
    let mut monitor = monitor();
    let labelled = |n: u64, pod: &str| {
        let mut device = used(key(A), 0.5);
        device.claims = vec![Claim {
            namespace: "ml".to_owned(),
            pod: pod.to_owned(),
            container: "main".to_owned(),
        }];
        snapshot(Source::Dcgm, n * STEP + 1, vec![device])
    };
    monitor.sample(labelled(0, "p9"), &Pods);
    let devices = now(&monitor, 2);
    assert_eq!(
        holder(&devices[0], "p9").method(),
        GpuMethod::SharedEstimate,
        "hearsay is no measurement"
    );
    assert_eq!(holder(&devices[0], "p9").utilization, None);
    monitor.allocate(allocations(3, &[("p1", &[A])]), &Pods);
    monitor.sample(labelled(1, "p9"), &Pods);
    monitor.sample(labelled(2, "p9"), &Pods);
    let devices = now(&monitor, 12);
    assert_eq!(devices[0].holders.len(), 1, "{:?}", devices[0].holders);
    assert_eq!(holder(&devices[0], "p1").utilization, Some(0.5));
}

#[test]
fn energy_of_a_change_of_hands_is_nobodys() {
    let mut monitor = monitor();
    let device = |joules: f64| {
        let mut device = used(key(A), 0.5);
        device.readings.energy = Some(joules);
        device
    };
    // p1 until second 10, p2 from 15 on; 100 J in each interval.
    for n in 0..6_u32 {
        let seconds = u64::from(n) * STEP;
        let pod = if n < 3 { "p1" } else { "p2" };
        monitor.allocate(allocations(seconds, &[(pod, &[A])]), &Pods);
        monitor.sample(
            snapshot(Source::Nvml, seconds, vec![device(f64::from(n) * 100.0)]),
            &Pods,
        );
    }
    let devices = during(&monitor, 0, 25);
    assert_eq!(readings(&devices[0]).energy_joules, Some(500.0));
    let (one, two) = (holder(&devices[0], "p1"), holder(&devices[0], "p2"));
    assert_eq!((one.energy_joules, two.energy_joules), (Some(200.0), Some(200.0)));
    assert_eq!((one.utilization, two.utilization), (Some(0.2), Some(0.2)));
    assert!(one.until.is_some() && two.until.is_none());
    let devices = now(&monitor, 26);
    assert_eq!(devices[0].holders.len(), 1, "who has left holds nothing now");
}

#[test]
fn a_counter_that_falls_is_a_reset() {
    let mut monitor = monitor();
    for (n, joules) in [100.0, 200.0, 10.0, 30.0].into_iter().enumerate() {
        let mut device = used(key(A), 0.5);
        device.readings.energy = Some(joules);
        monitor.sample(snapshot(Source::Nvml, n as u64 * STEP, vec![device]), &Pods);
    }
    assert_eq!(readings(&during(&monitor, 0, 15)[0]).energy_joules, Some(120.0));
    assert_eq!(monitor.totals(&during(&monitor, 0, 15)[0]).energy, Some(120.0));
    let query = GpuQuery {
        since: Some(span::timestamp(nanos(at(0)))),
        ..GpuQuery::default()
    };
    let notes = monitor.query(&query, at(15), None).unwrap().summary.notes;
    assert!(notes.iter().any(|note| note.contains("fell")), "{notes:?}");
}

#[test]
fn an_error_is_an_event_when_it_changes() {
    let mut monitor = monitor();
    monitor.allocate(allocations(0, &[("p1", &[A])]), &Pods);
    let mut events = Vec::new();
    for (n, xid) in [0, 79, 79, 79].into_iter().enumerate() {
        let mut device = used(key(A), 0.5);
        device.readings.xid = Some(xid);
        events.extend(monitor.sample(snapshot(Source::Dcgm, n as u64 * STEP, vec![device]), &Pods));
    }
    let [event] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!((event.xid, event.holders.len()), (79, 1));
    let told = monitor.happened(&XidEvent {
        time: at(16),
        key: key(A),
        xid: Some(48),
    });
    assert_eq!(told.unwrap().xid, 48);
    assert_eq!(monitor.counted().errors, 2);
}

#[test]
fn devices_that_no_source_tells_of_are_shown_with_their_holders() {
    let mut monitor = monitor();
    monitor.allocate(
        allocations(
            0,
            &[("p1", &["GPU-cc::0"]), ("p2", &["GPU-cc::1"]), ("p3", &["weird"])],
        ),
        &Pods,
    );
    let devices = now(&monitor, 1);
    assert_eq!(devices.len(), 2, "{devices:?}");
    let cc = devices.iter().find(|device| device.uuid == "GPU-cc").unwrap();
    assert_eq!(cc.holders.len(), 2);
    assert!(!cc.trouble.is_empty() && cc.readings == Some(GpuReadings::default()));
}

#[test]
fn a_device_that_has_no_name_is_told_of_while_it_is_there() {
    let mut monitor = monitor();
    let notes = |monitor: &Monitor, seconds| {
        let answer = monitor.query(&GpuQuery::default(), at(seconds), None).unwrap();
        assert!(answer.devices.is_empty());
        answer.summary.notes
    };
    let mut lost = snapshot(Source::Nvml, 0, Vec::new());
    lost.unnamed = vec!["device 1: the GPU is lost".to_owned()];
    monitor.sample(lost, &Pods);
    assert_eq!(
        notes(&monitor, 1),
        ["nvml cannot read 1 GPU, not even its name: device 1: the GPU is lost."]
    );
    assert_eq!(notes(&monitor, 1000), [""; 0], "nobody has looked since");
    monitor.sample(snapshot(Source::Nvml, STEP, Vec::new()), &Pods);
    assert_eq!(notes(&monitor, STEP), [""; 0]);
}

#[test]
fn a_number_that_is_anothers_now_is_not_that_of_who_had_it() {
    let mut monitor = monitor();
    let numbered = |uuid, index| {
        let mut device = used(key(uuid), 0.5);
        device.index = Some(index);
        device
    };
    monitor.sample(
        snapshot(Source::Nvml, 0, vec![numbered(A, 0), numbered(B, 1)]),
        &Pods,
    );
    monitor.allocate(allocations(0, &[("p1", &["0"]), ("p2", &["1"])]), &Pods);
    // One falls off the bus: the driver counts those that are left.
    monitor.sample(snapshot(Source::Nvml, STEP, vec![numbered(B, 0)]), &Pods);
    monitor.allocate(allocations(STEP, &[("p1", &["0"])]), &Pods);
    let devices = now(&monitor, STEP);
    let holding: Vec<&GpuDevice> = devices
        .iter()
        .filter(|device| !device.holders.is_empty())
        .collect();
    assert_eq!(holding.len(), 1, "one number is one device: {devices:?}");
    assert_eq!((holding[0].uuid.as_str(), holding[0].index), (B, Some(0)));
}

#[test]
fn a_span_between_two_samples_shows_what_stands_and_where_it_is_from() {
    let mut monitor = monitor();
    let free = instance(B, 1);
    monitor.sample(
        snapshot(Source::Dcgm, 0, vec![used(key(A), 0.5), used(free.clone(), 0.5)]),
        &Pods,
    );
    monitor.allocate(allocations(0, &[("p1", &[A])]), &Pods);
    let devices = during(&monitor, 1, 3);
    assert_eq!(devices.len(), 2, "also what nobody holds: {devices:?}");
    for device in &devices {
        assert_eq!(readings(device).memory_used_bytes, Some(4 << 30));
        assert_eq!(device.sources, ["dcgm"], "no value without where it is from");
        assert_eq!(device.trouble, "no sample lies in this span of time");
        assert_eq!(device.samples, 0);
        assert!(device.last.is_some());
    }
    let old = during(&monitor, 500, 503);
    assert_eq!(old.len(), 1);
    assert_eq!(old[0].trouble, "no source tells of it any more");
    assert_eq!(
        (old[0].sources.len(), readings(&old[0]).memory_used_bytes),
        (0, None)
    );
}

#[test]
fn memory_of_who_holds_alone_is_measured_though_its_use_is_not_known() {
    let mut monitor = monitor();
    for step in 0..12 {
        let time = step * STEP;
        monitor.sample(snapshot(Source::Dcgm, time, vec![used(key(A), 0.5)]), &Pods);
        match step {
            0 | 1 => monitor.allocate(allocations(time, &[("p1", &[A])]), &Pods),
            2..=10 => monitor.allocations_unknown(),
            _ => monitor.allocate(allocations(time, &[("p2", &[A])]), &Pods),
        }
    }
    // While the kubelet was silent, one left and one came.
    let devices = during(&monitor, 0, 11 * STEP);
    let new = holder(&devices[0], "p2");
    assert_eq!(new.memory_bytes, Some(4 << 30));
    assert_eq!(new.method(), GpuMethod::Exclusive, "{new:?}");
}

#[test]
fn the_kubelets_last_word_stands_while_it_is_silent() {
    let mut monitor = monitor();
    monitor.allocate(allocations(0, &[("p1", &[A])]), &Pods);
    monitor.sample(snapshot(Source::Dcgm, 1, vec![used(key(A), 0.5)]), &Pods);
    monitor.allocations_unknown();
    let answer = monitor.query(&GpuQuery::default(), at(4), None).unwrap();
    holder(&answer.devices[0], "p1");
    assert!(
        answer.summary.notes[0].contains("kubelet"),
        "{:?}",
        answer.summary.notes
    );
}

#[test]
fn idle_time_is_of_what_was_held_and_measured() {
    let mut monitor = monitor();
    for n in 0..7_u64 {
        monitor.allocate(allocations(n * STEP, &[("p1", &[A])]), &Pods);
        let share = if n <= 2 { 1.0 } else { 0.0 };
        monitor.sample(snapshot(Source::Nvml, n * STEP, vec![used(key(A), share)]), &Pods);
    }
    let query = |from: u64| GpuQuery {
        since: Some(span::timestamp(nanos(at(from)))),
        until: Some(span::timestamp(nanos(at(30)))),
        idle: true,
        ..GpuQuery::default()
    };
    let answer = monitor.query(&query(0), at(30), None).unwrap();
    let idle = holder(&answer.devices[0], "p1").idle.clone().unwrap();
    assert_eq!((idle.held.unwrap().seconds, idle.idle.unwrap().seconds), (30, 20));
    assert_eq!(idle.unknown.unwrap().seconds, 0);
    assert_eq!(answer.idle.values().next().unwrap().len(), 4);
    let error = monitor.query(&query(25), at(30), None).unwrap_err();
    assert!(matches!(error, crate::QueryError::TooShort { .. }), "{error}");
    assert!(error.to_string().contains("5 s"), "{error}");
    let moment = GpuQuery {
        idle: true,
        ..GpuQuery::default()
    };
    assert_eq!(
        monitor.query(&moment, at(30), None).unwrap_err(),
        crate::QueryError::IdleOfMoment
    );
}

#[test]
fn a_clock_that_is_set_back_begins_a_new_history() {
    let mut monitor = monitor();
    monitor.sample(snapshot(Source::Nvml, 100, vec![used(key(A), 0.5)]), &Pods);
    monitor.sample(snapshot(Source::Nvml, 50, vec![used(key(A), 0.25)]), &Pods);
    assert_eq!(readings(&now(&monitor, 51)[0]).utilization, Some(0.25));
}

#[test]
fn a_clock_that_is_set_back_loses_no_holder() {
    let mut monitor = monitor();
    let device = |joules: f64| {
        let mut device = used(key(A), 0.5);
        device.readings.energy = Some(joules);
        device
    };
    for n in 0..3_u32 {
        let seconds = 10_000 + u64::from(n) * STEP;
        monitor.allocate(allocations(seconds, &[("p1", &[A])]), &Pods);
        monitor.sample(snapshot(Source::Nvml, seconds, vec![device(f64::from(n))]), &Pods);
        monitor.sample(snapshot(Source::Dcgm, seconds, vec![used(key(B), 0.5)]), &Pods);
    }
    // Two hours back; the exporter and the kubelet are gone since.
    for n in 0..3_u32 {
        let seconds = 2_800 + u64::from(n) * STEP;
        monitor.sample(
            snapshot(Source::Nvml, seconds, vec![device(10.0 + f64::from(n))]),
            &Pods,
        );
    }
    let devices = now(&monitor, 2_812);
    assert_eq!(devices.len(), 1, "the exporter's values are old: {devices:#?}");
    holder(&devices[0], "p1");
    // The kubelet comes back.
    for n in 3..6_u32 {
        let seconds = 2_800 + u64::from(n) * STEP;
        monitor.allocate(allocations(seconds, &[("p1", &[A])]), &Pods);
        monitor.sample(
            snapshot(Source::Nvml, seconds, vec![device(10.0 + f64::from(n))]),
            &Pods,
        );
    }
    let devices = now(&monitor, 2_826);
    let p1 = holder(&devices[0], "p1");
    assert_eq!((p1.method(), p1.utilization), (GpuMethod::Exclusive, Some(0.5)));
    assert_eq!(
        holder(&during(&monitor, 2_815, 2_825)[0], "p1").energy_joules,
        Some(2.0)
    );
}

#[test]
fn devices_that_come_find_room_where_others_are_gone() {
    let limits = Limits {
        devices: 4,
        ..Limits::default()
    };
    let mut monitor = Monitor::new("n1", Duration::from_secs(STEP), limits);
    monitor.allocate(allocations(0, &[("p1", &[A])]), &Pods);
    for n in 0..50_u64 {
        let mut devices = vec![used(key(&format!("GPU-{n}")), 0.5)];
        if n == 0 {
            devices.push(used(key(A), 0.5));
        }
        monitor.sample(snapshot(Source::Dcgm, n * STEP, devices), &Pods);
        let now = now(&monitor, n * STEP + 1);
        assert!(now.iter().any(|device| device.uuid == format!("GPU-{n}")), "{n}");
        assert!(monitor.devices.len() <= 4);
    }
    // One that is held stays, though nobody tells of it.
    let devices = now(&monitor, 250);
    holder(devices.iter().find(|device| device.uuid == A).unwrap(), "p1");
    // Those that are there make no room for more.
    let devices = (0..6).map(|n| used(key(&format!("GPU-x{n}")), 0.5)).collect();
    monitor.sample(snapshot(Source::Dcgm, 300, devices), &Pods);
    assert_eq!(now(&monitor, 301).len(), 4);
    assert_eq!(monitor.counted().refused, 3);
}

#[test]
fn an_error_of_an_instance_is_told_of_it() {
    let mut monitor = monitor();
    monitor.allocate(allocations(0, &[("p1", &[&format!("MIG-{A}/7/0")])]), &Pods);
    let page = |board: u32, seven: u32, nine: u32| {
        let of = |key: DeviceKey, xid: u32| {
            let mut device = Device::new(key);
            device.readings.xid = Some(xid);
            device
        };
        vec![
            of(key(A), board),
            of(instance(A, 7), seven),
            of(instance(A, 9), nine),
        ]
    };
    let mut events = Vec::new();
    // An instance's; the GPU's, repeated for each; the GPU's alone.
    for (n, (board, seven, nine)) in [(0, 0, 0), (0, 31, 0), (79, 79, 79), (48, 48, 48)]
        .into_iter()
        .enumerate()
    {
        let page = page(board, seven, nine);
        events.extend(monitor.sample(snapshot(Source::Dcgm, n as u64 * STEP, page), &Pods));
    }
    let told: Vec<(u32, Option<u32>)> = events
        .iter()
        .map(|event| (event.xid, event.mig.as_ref().map(|mig| mig.instance)))
        .collect();
    assert_eq!(told, [(31, Some(7)), (79, None), (48, None)]);
    assert_eq!(
        events[0].holders.len(),
        1,
        "who holds the instance: {:?}",
        events[0].holders
    );
    // The driver's word is of the instance, too; of one that nobody has listed it is of the GPU.
    for (instance_id, expected) in [(7, Some(7)), (3, None)] {
        let told = monitor.happened(&XidEvent {
            time: at(60),
            key: instance(A, instance_id),
            xid: Some(13),
        });
        assert_eq!(told.unwrap().mig.map(|mig| mig.instance), expected);
    }
}

#[test]
fn counters_of_bytes_go_beyond_what_a_float_tells_exactly() {
    let mut monitor = monitor();
    // A fast link of a busy node gets there in hours.
    for n in 0..4_u64 {
        let mut device = used(key(A), 0.5);
        device.readings.nvlink = Some((1 << 60) + n * 900_000_000_000 * STEP);
        device.readings.pcie_tx = Some((1 << 54) + n * 1_000_003);
        monitor.sample(snapshot(Source::Nvml, n * STEP, vec![device]), &Pods);
    }
    assert_eq!(monitor.counted().refused, 0);
    let devices = during(&monitor, 0, 15);
    let near = |told: Option<u64>, expected: u64| told.is_some_and(|told| told.abs_diff(expected) <= 1024);
    let told = readings(&devices[0]);
    assert!(near(told.nvlink_bytes, 3 * 900_000_000_000 * STEP), "{told:?}");
    assert!(near(told.pcie_tx_bytes, 3_000_009), "{told:?}");
}

/// Names that come late: the container of a process goes by its id, as long as the pod's status does not tell it.
struct Late;

const CONTAINER_ID: &str = "4f5c8d2f0b0e4c7fa9d1e2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f7";

impl Owners for Late {
    fn of_pid(&self, pid: u32) -> Option<Owner> {
        let mut owner = Pods.of_pid(pid)?;
        match pid % 10 {
            0 => {}
            1 => owner.container = CONTAINER_ID.to_owned(),
            _ => owner.container = "helper".to_owned(),
        }
        Some(owner)
    }

    fn pod(&self, namespace: &str, pod: &str, container: &str) -> Option<PodDetails> {
        Pods.pod(namespace, pod, container)
    }
}

#[test]
fn a_process_whose_container_has_no_name_yet_is_its_pods() {
    let mut monitor = monitor();
    monitor.allocate(allocations(0, &[("p1", &[A])]), &Late);
    for n in 0..3 {
        let mut device = used(key(A), 0.5);
        device.processes = Some(vec![process(11, 0.5, 1 << 30)]);
        monitor.sample(snapshot(Source::Nvml, n * STEP + 1, vec![device]), &Late);
    }
    let devices = now(&monitor, 12);
    let p1 = holder(&devices[0], "p1");
    assert_eq!((p1.method(), p1.utilization), (GpuMethod::Exclusive, Some(0.5)));
    assert_eq!(p1.owner.as_ref().unwrap().container, "main");
    assert_eq!(p1.pids, [11]);
}

#[test]
fn another_container_of_the_holders_pod_does_not_use_what_its_pod_does_not_hold() {
    let mut monitor = monitor();
    monitor.allocate(allocations(0, &[("p1", &[A])]), &Late);
    for n in 0..3 {
        let mut device = used(key(A), 0.5);
        device.processes = Some(vec![
            process(10, 0.25, 1 << 30),
            process(12, 0.25, 1 << 30),
            process(22, 0.0, 1 << 30),
        ]);
        monitor.sample(snapshot(Source::Nvml, n * STEP + 1, vec![device]), &Late);
    }
    let devices = now(&monitor, 12);
    let method = |pod: &str, container: &str| {
        let is_it = |holder: &&GpuHolder| {
            let owner = holder.owner.as_ref().unwrap();
            owner.pod == pod && owner.container == container
        };
        devices[0].holders.iter().find(is_it).unwrap().method()
    };
    assert_eq!(method("p1", "main"), GpuMethod::NvmlPid);
    assert_eq!(
        method("p1", "helper"),
        GpuMethod::NvmlPid,
        "its pod holds the device"
    );
    assert_eq!(method("p2", "helper"), GpuMethod::UnallocatedUse);
}

#[test]
fn limits_hold_and_what_is_over_them_is_counted() {
    let limits = Limits {
        history: 8,
        devices: 2,
        users: 2,
        holders: 2,
    };
    let mut monitor = Monitor::new("n1", Duration::from_secs(STEP), limits);
    for n in 0..100_u64 {
        let devices = (0..5)
            .map(|gpu| {
                let mut device = used(key(&format!("GPU-{gpu}")), 0.5);
                device.processes = Some((0..9).map(|pod| process(10 * pod, 0.1, 1)).collect());
                device
            })
            .collect();
        monitor.sample(snapshot(Source::Nvml, n * STEP, devices), &Pods);
        let pods: Vec<String> = (0..9).map(|pod| format!("p{}", pod + n)).collect();
        let held: Vec<(&str, &[&str])> = pods.iter().map(|pod| (pod.as_str(), &["GPU-1"][..])).collect();
        monitor.allocate(allocations(n * STEP + 1, &held), &Pods);
    }
    assert_eq!(monitor.devices.len(), 2);
    assert!(monitor.devices.values().all(|known| known.holds.len() <= 2));
    assert!(monitor.lines.iter().all(|line| line.len() <= 8));
    assert!(monitor.counted().refused > 100);
    assert!(monitor.bytes() < 100_000, "{}", monitor.bytes());
}

/// A sharing of one device, in any mode, with whatever is measured of it.
/// What the device did, what its processes did if anybody tells, who held it, and what another source says of the device.
type Step = (
    f64,
    Option<Vec<(u32, Option<f64>, u64)>>,
    Vec<u32>,
    Option<(f64, Option<u64>)>,
);

fn any_story() -> impl Strategy<Value = Vec<Step>> {
    let process = (1_u32..60, proptest::option::of(0.0..=1.0), 0_u64..(8 << 30));
    let step = (
        prop_oneof![Just(0.0), 0.0..=1.0],
        proptest::option::of(proptest::collection::vec(process, 0..5)),
        proptest::collection::vec(1_u32..5, 0..4),
        proptest::option::of((0.0..=1.0, proptest::option::of(0_u64..(16 << 30)))),
    );
    proptest::collection::vec(step, 1..12)
}

proptest! {
    #[test]
    fn shares_are_never_more_than_the_device(
        story in any_story(),
        from in 0_u64..60,
        instanced in any::<bool>(),
        late in any::<bool>(),
    ) {
        let owners: &dyn Owners = if late { &Late } else { &Pods };
        let mut monitor = monitor();
        let device_key = if instanced { instance(A, 3) } else { key(A) };
        let id = if instanced { format!("MIG-{A}/3/0") } else { A.to_owned() };
        let end = story.len() as u64 * STEP;
        let mut energy = 0.0;
        for (n, (utilization, processes, pods, other)) in story.into_iter().enumerate() {
            let seconds = n as u64 * STEP;
            let pods: Vec<(String, String)> =
                pods.iter().enumerate().map(|(n, pod)| (format!("p{pod}"), format!("{id}::{n}"))).collect();
            let ids: Vec<[&str; 1]> = pods.iter().map(|(_, id)| [id.as_str()]).collect();
            let held: Vec<(&str, &[&str])> =
                pods.iter().zip(&ids).map(|((pod, _), ids)| (pod.as_str(), &ids[..])).collect();
            monitor.allocate(allocations(seconds, &held), owners);
            let mut device = used(device_key.clone(), utilization);
            energy += 10.0;
            device.readings.energy = Some(energy);
            device.processes = processes.map(|processes| {
                let mut seen = std::collections::BTreeSet::new();
                processes
                    .into_iter()
                    .filter(|(pid, ..)| seen.insert(*pid))
                    .map(|(pid, utilization, memory)| Process { pid, utilization, memory_bytes: Some(memory) })
                    .collect()
            });
            monitor.sample(snapshot(Source::Nvml, seconds, vec![device]), owners);
            if let Some((utilization, memory)) = other {
                let mut device = used(device_key.clone(), utilization);
                device.readings.memory_used = memory;
                monitor.sample(snapshot(Source::Dcgm, seconds + 2, vec![device]), owners);
            }
        }
        let mut answers = vec![now(&monitor, end)];
        if from < end {
            answers.push(during(&monitor, from, end));
        }
        for device in answers.into_iter().flatten() {
            let told = readings(&device);
            for holder in &device.holders {
                prop_assert_ne!(holder.method(), GpuMethod::Unspecified);
            }
            let sum: f64 = device.holders.iter().filter_map(|holder| holder.utilization).sum();
            if let Some(all) = told.utilization {
                prop_assert!(sum <= all + 1e-5, "{} of {}: {:?}", sum, all, device.holders);
            }
            let memory: u64 = device.holders.iter().filter_map(|holder| holder.memory_bytes).sum();
            if let Some(all) = told.memory_used_bytes {
                prop_assert!(memory <= all, "{} of {}: {:?}", memory, all, device.holders);
            }
            let joules: f64 = device.holders.iter().filter_map(|holder| holder.energy_joules).sum();
            prop_assert!(joules <= told.energy_joules.unwrap_or_default() + 1e-6);
        }
    }
}
