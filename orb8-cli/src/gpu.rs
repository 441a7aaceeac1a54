//! What GPUs, their holders and what these waste are called; in which order they are shown.

use std::collections::HashMap;

use orb8_proto::v1::{Endpoint, GpuDevice, GpuHolder, GpuIdle, GpuMethod, GpuMig, GpuReadings, GpuSource};
use prost_types::{Duration, Timestamp};

use crate::{ends, humanise, query::syscall::seconds, syscall, timestamp};

/// Digits of a UUID that are shown where a device has no index: `5fd4f087`.
const UUID_DIGITS: usize = 8;

/// How a holder's share is known: the word of the protocol in small letters.
pub(crate) const fn method(method: GpuMethod) -> &'static str {
    match method {
        GpuMethod::Unspecified => "unknown",
        GpuMethod::Exclusive => "exclusive",
        GpuMethod::Mig => "mig",
        GpuMethod::NvmlPid => "nvml_pid",
        GpuMethod::SharedEstimate => "shared_estimate",
        GpuMethod::AllocatedIdle => "allocated_idle",
        GpuMethod::UnallocatedUse => "unallocated_use",
    }
}

/// `ml/train-0`, with `container` also `ml/train-0 (trainer)`; `llama.service`, `python3`, or `(unknown)`.
pub(crate) fn holder(owner: Option<&Endpoint>, container: bool) -> String {
    let name = if container {
        syscall::owner(owner)
    } else {
        owner.and_then(ends::name)
    };
    name.unwrap_or_else(|| "(unknown)".to_owned())
}

/// The GPU's index on its node, else the beginning of its UUID.
pub(crate) fn index(device: &GpuDevice) -> String {
    index_of(device.index, &device.uuid)
}

/// As [`index`].
pub(crate) fn index_of(index: Option<u32>, uuid: &str) -> String {
    match index {
        Some(index) => index.to_string(),
        None if uuid.is_empty() => "?".to_owned(),
        None => {
            let digits = uuid
                .get(..4)
                .filter(|kind| kind.eq_ignore_ascii_case("GPU-"))
                .map_or(uuid, |kind| &uuid[kind.len()..]);
            digits.chars().take(UUID_DIGITS).collect()
        }
    }
}

/// `MIG 7 (1g.10gb)`.
pub(crate) fn instance(mig: &GpuMig) -> String {
    if mig.profile.is_empty() {
        format!("MIG {}", mig.instance)
    } else {
        format!("MIG {} ({})", mig.instance, mig.profile)
    }
}

/// `GPU 0`, `GPU 0 MIG 7 (1g.10gb)`; with `many`, the node in front.
pub(crate) fn device(device: &GpuDevice, many: bool) -> String {
    let mut text = format!("GPU {}", index(device));
    if let Some(mig) = &device.mig {
        text.push_str(&format!(" {}", instance(mig)));
    }
    if many && !device.node.is_empty() {
        text = format!("{} {text}", device.node);
    }
    text
}

/// `dcgm at http://localhost:9400/metrics: connection refused`.
pub(crate) fn source(source: &GpuSource) -> String {
    let mut text = source.name.clone();
    if !source.address.is_empty() {
        text.push_str(&format!(" at {}", source.address));
    }
    if !source.reason.is_empty() {
        text.push_str(&format!(": {}", source.reason));
    }
    text
}

/// Sorts by node, index and UUID; each GPU comes before its instances.
pub(crate) fn in_order(devices: &mut [GpuDevice]) {
    // Of a GPU whose index only some rows tell, all rows stay together.
    let mut indices: HashMap<(String, String), u32> = HashMap::new();
    for device in devices.iter() {
        if let Some(index) = device.index {
            indices.insert(gpu(device), index);
        }
    }
    devices.sort_by_cached_key(|device| {
        let gpu = gpu(device);
        let index = indices.get(&gpu).copied().unwrap_or(u32::MAX);
        let instance = device.mig.as_ref().map(|mig| mig.instance);
        (gpu.0, index, gpu.1, instance)
    });
}

/// Which GPU, whatever instance: UUIDs are told apart without regard to case.
fn gpu(device: &GpuDevice) -> (String, String) {
    (device.node.clone(), device.uuid.to_ascii_lowercase())
}

/// Whether both are of the same GPU.
pub(crate) fn is_same_gpu(a: &GpuDevice, b: &GpuDevice) -> bool {
    a.node == b.node && a.uuid.eq_ignore_ascii_case(&b.uuid)
}

/// Numbers of GPUs, of MIG instances, and of those who hold or use any of them.
pub(crate) fn counted(devices: &[GpuDevice]) -> (u64, u64, u64) {
    let mut gpus: Vec<_> = devices.iter().map(gpu).collect();
    gpus.sort();
    gpus.dedup();
    let instances = devices.iter().filter(|device| device.mig.is_some()).count();
    let holders = devices.iter().map(|device| device.holders.len()).sum::<usize>();
    (gpus.len() as u64, instances as u64, holders as u64)
}

/// Of how many holders only the number is told.
pub(crate) fn hidden(devices: &[GpuDevice]) -> u64 {
    devices
        .iter()
        .map(|device| u64::from(device.hidden_holders))
        .sum()
}

/// `2 hidden holders`.
pub(crate) fn hidden_holders(count: u32) -> String {
    humanise::counted(u64::from(count), "hidden holder", "hidden holders")
}

/// A device, and those who held it at the same time while it did nothing.
#[derive(Clone, Debug)]
pub(crate) struct Waste<'a> {
    pub(crate) device: &'a GpuDevice,
    pub(crate) holders: Vec<(&'a GpuHolder, &'a GpuIdle)>,
    /// For which the device was held and did nothing: once, however many held it.
    pub(crate) hours: f64,
    /// Whether anybody measured that: otherwise `hours` is not known.
    pub(crate) is_known: bool,
}

/// What is wasted, the most first. Holders that followed each other are apart; those that shared the device are one.
pub(crate) fn wastes(devices: &[GpuDevice]) -> Vec<Waste<'_>> {
    let mut wastes: Vec<Waste<'_>> = devices.iter().flat_map(of_device).collect();
    wastes.sort_by(|a, b| b.hours.total_cmp(&a.hours));
    wastes
}

fn of_device(device: &GpuDevice) -> Vec<Waste<'_>> {
    let mut holders: Vec<(&GpuHolder, &GpuIdle)> = device
        .holders
        .iter()
        .filter_map(|holder| Some((holder, holder.idle.as_ref()?)))
        .collect();
    let begin = |holder: &GpuHolder| holder.since.map(instant);
    holders.sort_by_key(|(holder, _)| begin(holder));
    let mut wastes: Vec<Waste<'_>> = Vec::new();
    // Until when the holders of the last group hold it; none: they still do.
    let mut until: Option<(i64, i32)> = None;
    for (holder, idle) in holders {
        let end = holder.until.map(instant);
        let follows = begin(holder)
            .zip(until)
            .is_some_and(|(begin, until)| begin >= until);
        match wastes.last_mut() {
            Some(waste) if !follows => {
                waste.holders.push((holder, idle));
                until = until.zip(end).map(|(a, b)| a.max(b));
            }
            _ => {
                wastes.push(Waste {
                    device,
                    holders: vec![(holder, idle)],
                    hours: 0.0,
                    is_known: false,
                });
                until = end;
            }
        }
    }
    for waste in &mut wastes {
        waste.is_known = waste.holders.iter().any(|(_, idle)| idle_share(idle).is_some());
        // The device was idle at least as long as any of them saw it so.
        waste.hours = waste
            .holders
            .iter()
            .map(|(_, idle)| span(idle.idle.as_ref()) / 3600.0)
            .fold(0.0, f64::max);
    }
    wastes
}

fn instant(time: Timestamp) -> (i64, i32) {
    (time.seconds, time.nanos)
}

/// How much a device was used, 0 to 1: instances have no utilization, but a share of the time that their graphics engine was
/// active, which is what their holders' part is of.
pub(crate) fn share_used(readings: &GpuReadings) -> Option<f64> {
    readings.utilization.or(readings.graphics_active)
}

/// Seconds of a duration that may be unset; never negative.
pub(crate) fn span(duration: Option<&Duration>) -> f64 {
    duration.map_or(0.0, seconds).max(0.0)
}

/// The idle part of the time that was measured, 0 to 1; nothing if none was.
pub(crate) fn idle_share(idle: &GpuIdle) -> Option<f64> {
    idle.idle.as_ref()?;
    let measured = span(idle.held.as_ref()) - span(idle.unknown.as_ref());
    (measured > 0.0).then(|| (span(idle.idle.as_ref()) / measured).min(1.0))
}

/// Hours wasted of whole GPUs and of MIG instances. Instances that lie side by side in one GPU are hours each.
pub(crate) fn hours(wastes: &[Waste<'_>]) -> (f64, f64) {
    wastes.iter().fold((0.0, 0.0), |(gpus, instances), waste| {
        if waste.device.mig.is_some() {
            (gpus, instances + waste.hours)
        } else {
            (gpus + waste.hours, instances)
        }
    })
}

/// How old the device's last sample is at the end of the answer, in seconds, if that is older than `sampling` explains.
pub(crate) fn stale(device: &GpuDevice, to: Option<&Timestamp>, sampling: Option<&Duration>) -> Option<f64> {
    let age = timestamp::seconds_between(device.last.as_ref()?, to?);
    // Scrapes are late at times; three in a row are not.
    (age > 3.0 * sampling.map_or(10.0, seconds).max(1.0)).then_some(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn lasting(seconds: i64) -> Option<Duration> {
        Some(Duration { seconds, nanos: 0 })
    }

    fn held(since: Option<i64>, until: Option<i64>, idle: i64) -> GpuHolder {
        GpuHolder {
            since: since.and_then(at),
            until: until.and_then(at),
            idle: Some(GpuIdle {
                held: lasting(3600),
                idle: lasting(idle),
                ..GpuIdle::default()
            }),
            ..GpuHolder::default()
        }
    }

    fn gpu(index: Option<u32>, uuid: &str, instance: Option<u32>) -> GpuDevice {
        GpuDevice {
            index,
            uuid: uuid.into(),
            mig: instance.map(|instance| GpuMig {
                instance,
                ..GpuMig::default()
            }),
            ..GpuDevice::default()
        }
    }

    #[test]
    fn instances_follow_their_gpu_even_where_they_tell_no_index() {
        let mut devices = vec![
            gpu(None, "gpu-B", Some(9)),
            gpu(Some(1), "GPU-a", None),
            gpu(Some(0), "GPU-b", None),
            gpu(Some(0), "GPU-B", Some(7)),
        ];
        in_order(&mut devices);
        let order: Vec<_> = devices
            .iter()
            .map(|device| {
                (
                    device.uuid.to_lowercase(),
                    device.mig.as_ref().map(|mig| mig.instance),
                )
            })
            .collect();
        let b = || "gpu-b".to_owned();
        assert_eq!(
            order,
            [
                (b(), None),
                (b(), Some(7)),
                (b(), Some(9)),
                ("gpu-a".to_owned(), None)
            ]
        );
        assert_eq!(counted(&devices), (2, 2, 0));
    }

    #[test]
    fn a_shared_device_is_wasted_once() {
        let shared = GpuDevice {
            holders: vec![
                held(Some(0), None, 1800),
                held(Some(10), None, 3600),
                held(None, None, 0),
            ],
            ..GpuDevice::default()
        };
        let wastes = wastes(std::slice::from_ref(&shared));
        assert_eq!(wastes.len(), 1);
        assert_eq!((wastes[0].holders.len(), wastes[0].hours), (3, 1.0));
        assert!(wastes[0].is_known);
    }

    #[test]
    fn what_nobody_measured_is_not_known_to_be_no_waste() {
        let mut device = GpuDevice {
            holders: vec![held(Some(0), None, 0)],
            ..GpuDevice::default()
        };
        assert!(wastes(std::slice::from_ref(&device))[0].is_known, "never idle");
        if let Some(idle) = &mut device.holders[0].idle {
            (idle.idle, idle.unknown) = (None, idle.held);
        }
        assert!(!wastes(std::slice::from_ref(&device))[0].is_known);
    }

    #[test]
    fn holders_that_follow_each_other_waste_each_their_own() {
        let mut device = GpuDevice {
            holders: vec![
                held(Some(100), None, 900),
                held(Some(0), Some(100), 1800),
                // Not asked about, or never idle.
                GpuHolder::default(),
            ],
            ..GpuDevice::default()
        };
        let found: Vec<f64> = wastes(std::slice::from_ref(&device))
            .iter()
            .map(|waste| waste.hours)
            .collect();
        assert_eq!(found, [0.5, 0.25]);
        device.mig = Some(GpuMig::default());
        assert_eq!(hours(&wastes(&[device])), (0.0, 0.75));
    }

    #[test]
    fn the_share_is_of_what_was_measured() {
        let idle = |held, idle: Option<i64>, unknown| GpuIdle {
            held: lasting(held),
            idle: idle.and_then(lasting),
            unknown: lasting(unknown),
            ..GpuIdle::default()
        };
        assert_eq!(idle_share(&idle(100, Some(40), 20)), Some(0.5));
        assert_eq!(idle_share(&idle(100, Some(0), 100)), None);
        assert_eq!(idle_share(&idle(100, None, 0)), None);
        assert_eq!(idle_share(&GpuIdle::default()), None);
    }

    #[test]
    fn an_old_sample_is_told() {
        let device = GpuDevice {
            last: at(100),
            ..GpuDevice::default()
        };
        let sampling = lasting(5);
        assert_eq!(stale(&device, at(112).as_ref(), sampling.as_ref()), None);
        assert_eq!(stale(&device, at(160).as_ref(), sampling.as_ref()), Some(60.0));
        assert_eq!(stale(&GpuDevice::default(), at(160).as_ref(), None), None);
    }

    #[test]
    fn names() {
        let device = GpuDevice {
            node: "n1".into(),
            ..gpu(None, "GPU-5fd4f087-86f3-7a43-b711-4771313afc50", Some(7))
        };
        assert_eq!(super::device(&device, true), "n1 GPU 5fd4f087 MIG 7");
        assert_eq!(super::device(&gpu(Some(3), "GPU-a", None), true), "GPU 3");
        assert_eq!(holder(None, true), "(unknown)");
        assert_eq!(holder(Some(&Endpoint::default()), false), "(unknown)");
        assert_eq!(index_of(None, "名名名名名名名名名名名名名名"), "名".repeat(8));
    }
}
