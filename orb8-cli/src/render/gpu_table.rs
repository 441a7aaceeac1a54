//! GPUs as tables: a device, below it its holders, below these its instances. `-` is what nobody measured; what has no
//! place in a row is blank. Of holders that a server hides there is a row with their number.

use orb8_proto::v1::{CudaCalls, GpuDevice, GpuHolder, GpuMethod, GpuReadings, GpuSummary};

use super::{
    flow_json,
    gpu_json::READINGS,
    table::{Cell, Column, Table, fit},
};
use crate::{
    gpu::{self, Waste},
    humanise, sanitise, syscall,
    terminal::{Style, Tone},
    timestamp,
};

/// What is not known.
pub(crate) const UNKNOWN: &str = "-";
/// Columns of what a device's sources may take: as many as the longest method, `shared_estimate`, does.
const METHOD: usize = 15;
/// Readings that the table that fits shows in columns of its own, or not at all.
const MEMORY: [&str; 3] = ["memory_used_bytes", "memory_free_bytes", "memory_total_bytes"];

/// One line of the tree.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Line<'a> {
    Device {
        device: &'a GpuDevice,
        /// Whether it is an instance that stands below its GPU.
        below: bool,
    },
    Holder {
        holder: &'a GpuHolder,
        /// Whether its device stands below another.
        below: bool,
        /// Whether its container is named.
        container: bool,
    },
    /// Holders that who asks may not see.
    Hidden {
        count: u32,
        /// As of a holder.
        below: bool,
    },
}

/// Which holders are named with their containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Containers {
    /// All.
    All,
    /// Those of pods of which several containers hold the same device: there is no room for more.
    Ambiguous,
}

/// Whether another container of the holder's pod is among the device's holders.
fn is_ambiguous(device: &GpuDevice, holder: &GpuHolder) -> bool {
    let Some(owner) = &holder.owner else { return false };
    device.holders.iter().any(|other| {
        other.owner.as_ref().is_some_and(|other| {
            other.container != owner.container
                && (&other.namespace, &other.pod) == (&owner.namespace, &owner.pod)
        })
    })
}

/// Devices and their holders, in order.
pub(crate) fn lines(devices: &[GpuDevice], containers: Containers) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    let mut whole: Option<&GpuDevice> = None;
    for device in devices {
        if device.mig.is_none() {
            whole = Some(device);
        }
        let below = device.mig.is_some() && whole.is_some_and(|whole| gpu::is_same_gpu(whole, device));
        lines.push(Line::Device { device, below });
        let holders = device.holders.iter();
        lines.extend(holders.map(|holder| Line::Holder {
            holder,
            below,
            container: containers == Containers::All || is_ambiguous(device, holder),
        }));
        if device.hidden_holders > 0 {
            lines.push(Line::Hidden {
                count: device.hidden_holders,
                below,
            });
        }
    }
    lines
}

impl<'a> Line<'a> {
    /// Of a device; nothing for a holder.
    pub(crate) const fn device(self) -> Option<&'a GpuDevice> {
        match self {
            Self::Device { device, .. } => Some(device),
            Self::Holder { .. } | Self::Hidden { .. } => None,
        }
    }

    /// Of a holder that may be seen; nothing for a device.
    const fn holder(self) -> Option<&'a GpuHolder> {
        match self {
            Self::Device { .. } | Self::Hidden { .. } => None,
            Self::Holder { holder, .. } => Some(holder),
        }
    }

    /// The device's node, where it is to be told and not told by the line above.
    pub(crate) fn node(self, many: bool) -> &'a str {
        match self {
            Self::Device { device, below: false } if many => &device.node,
            _ => "",
        }
    }

    /// The device's index, where it is not told by the line above.
    pub(crate) fn index(self) -> String {
        match self {
            Self::Device { device, below: false } => gpu::index(device),
            _ => String::new(),
        }
    }

    /// What the line is about, indented to where it stands.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Device { device, below } => {
                let model = if device.model.is_empty() {
                    UNKNOWN
                } else {
                    &device.model
                };
                match &device.mig {
                    None => model.to_owned(),
                    Some(mig) if below => format!("  {}", gpu::instance(mig)),
                    Some(mig) if device.model.is_empty() => gpu::instance(mig),
                    Some(mig) => format!("{model} {}", gpu::instance(mig)),
                }
            }
            Self::Holder {
                holder,
                below,
                container,
            } => {
                let indent = if below { "    " } else { "  " };
                format!("{indent}{}", gpu::holder(holder.owner.as_ref(), container))
            }
            Self::Hidden { count, below } => {
                let indent = if below { "    " } else { "  " };
                format!("{indent}({count} hidden)")
            }
        }
    }

    /// The share of the time that it was used.
    pub(crate) fn usage(self) -> String {
        let share = match self {
            Self::Device { device, .. } => device.readings.as_ref().and_then(crate::gpu::share_used),
            Self::Holder { holder, .. } => holder.utilization,
            // What has no place in the row is blank.
            Self::Hidden { .. } => return String::new(),
        };
        known(share.and_then(humanise::share))
    }

    /// Memory in use: of a device, and how much it has.
    pub(crate) fn memory(self) -> String {
        known(match self {
            Self::Device { device, .. } => device.readings.as_ref().and_then(memory),
            Self::Holder { holder, .. } => holder.memory_bytes.map(humanise::bytes),
            Self::Hidden { .. } => return String::new(),
        })
    }

    /// A reading of a device, by its name.
    fn reading(self, name: &str, style: &Style) -> String {
        let Some(device) = self.device() else {
            return String::new();
        };
        let reading = READINGS.iter().find(|reading| reading.name == name);
        known(reading.and_then(|reading| reading.text(device.readings.as_ref(), style.utf8)))
    }

    /// In degrees; nothing for a holder.
    pub(crate) fn temperature(self, style: &Style) -> String {
        self.reading("temperature_celsius", style)
    }

    /// In watts; nothing for a holder.
    pub(crate) fn power(self, style: &Style) -> String {
        self.reading("power_watts", style)
    }

    /// How the line's values are known: a device's sources, a holder's method.
    pub(crate) fn method(self) -> (String, Tone) {
        match self {
            Self::Device { device, .. } => {
                let sources = fit(&sanitise::line(&device.sources.join("+")), METHOD, '~');
                (known(some(sources)), Tone::Plain)
            }
            Self::Holder { holder, .. } => method(holder),
            Self::Hidden { .. } => (String::new(), Tone::Plain),
        }
    }

    /// Until when a holder held the device, to the minute; nothing if it still does.
    fn until(self) -> String {
        self.holder()
            .and_then(|holder| holder.until.as_ref())
            .map(|until| {
                let clock = timestamp::clock(Some(until), 0);
                clock.get(..5).unwrap_or(&clock).to_owned()
            })
            .unwrap_or_default()
    }
}

/// How a holder's values are known.
fn method(holder: &GpuHolder) -> (String, Tone) {
    let tone = match holder.method() {
        GpuMethod::Exclusive | GpuMethod::Mig | GpuMethod::NvmlPid => Tone::Plain,
        GpuMethod::SharedEstimate | GpuMethod::AllocatedIdle => Tone::Warn,
        GpuMethod::UnallocatedUse | GpuMethod::Unspecified => Tone::Bad,
    };
    (gpu::method(holder.method()).to_owned(), tone)
}

fn known(text: Option<String>) -> String {
    text.unwrap_or_else(|| UNKNOWN.to_owned())
}

/// Nothing, if it is empty.
fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// `61/80 GiB`, or what of it is known.
fn memory(readings: &GpuReadings) -> Option<String> {
    let used = readings.memory_used_bytes;
    let total = readings.memory_total_bytes.or_else(|| {
        // What the driver keeps for itself is in neither.
        used?.checked_add(readings.memory_free_bytes?)
    });
    match (used, total) {
        (Some(used), Some(total)) if total > 0 => Some(humanise::bytes_of(used, total)),
        (Some(used), _) => Some(humanise::bytes(used)),
        (None, Some(total)) => Some(format!("{UNKNOWN}/{}", humanise::bytes(total))),
        (None, None) => None,
    }
}

/// The table that fits the terminal; `many`: with the nodes.
pub(crate) fn narrow(devices: &[GpuDevice], many: bool, style: &Style) -> String {
    let mut table = Table::new([
        Column::name("NODE", 6),
        Column::name("GPU", 3),
        Column::workload("DEVICE", 13),
        Column::number("USE"),
        Column::number("MEMORY"),
        Column::number("TEMP"),
        Column::number("POWER"),
        // Never cut: a value without it could not be read.
        Column::text("METHOD"),
        Column::text("UNTIL"),
    ]);
    for line in lines(devices, Containers::Ambiguous) {
        let (method, tone) = line.method();
        let name = if line.device().is_some() {
            Tone::Strong
        } else {
            Tone::Plain
        };
        table.row([
            Cell::new(line.node(many)),
            Cell::new(line.index()),
            Cell::toned(line.name(), name),
            Cell::new(line.usage()),
            Cell::new(line.memory()),
            Cell::new(line.temperature(style)),
            Cell::new(line.power(style)),
            Cell::toned(method, tone),
            Cell::new(line.until()),
        ]);
    }
    table
        .without_empty(&["NODE", "UNTIL"])
        .render(Some(style.width), style)
}

/// The table with all that was measured, however wide: what no device has is left out.
pub(crate) fn wide(devices: &[GpuDevice], style: &Style) -> String {
    let lines = lines(devices, Containers::All);
    let mut columns = vec![
        Column::text("NODE"),
        Column::text("GPU"),
        Column::text("UUID"),
        Column::text("MIG-UUID"),
        Column::text("DEVICE"),
        Column::number("USE"),
        Column::number("MEMORY"),
    ];
    let readings: Vec<_> = READINGS
        .iter()
        .filter(|reading| reading.name != "utilization" && !MEMORY.contains(&reading.name))
        .filter(|reading| {
            let mut all = devices.iter();
            all.any(|device| reading.of(device.readings.as_ref()).is_some())
        })
        .collect();
    columns.extend(readings.iter().map(|reading| Column::number(reading.title)));
    let texts = [
        "METHOD", "RESOURCE", "DEVICES", "CLAIM", "PIDS", "SINCE", "UNTIL", "WORKLOAD", "CGROUP", "PCI",
        "DRIVER", "LAST",
    ];
    columns.extend(texts.map(Column::text));
    columns.push(Column::number("SAMPLES"));
    columns.push(Column::text("OTHER"));
    let mut table = Table::new(columns);
    for line in lines {
        let (method, tone) = line.method();
        let device = line.device();
        let holder = line.holder();
        let owner = holder.and_then(|holder| holder.owner.as_ref());
        let mig = device.and_then(|device| device.mig.as_ref());
        let mut cells = vec![
            Cell::new(line.node(true)),
            Cell::new(line.index()),
            Cell::new(device.filter(|_| mig.is_none()).map_or("", |device| &device.uuid)),
            Cell::new(mig.map_or("", |mig| &mig.uuid)),
            Cell::new(line.name()),
            Cell::new(line.usage()),
            Cell::new(line.memory()),
        ];
        for reading in &readings {
            let text = match (device, holder) {
                (Some(device), _) => known(reading.text(device.readings.as_ref(), style.utf8)),
                (None, Some(holder)) if reading.name == "energy_joules" => known(
                    holder
                        .energy_joules
                        .and_then(|energy| humanise::quantity(energy, "J")),
                ),
                _ => String::new(),
            };
            cells.push(Cell::new(text));
        }
        cells.push(Cell::toned(method, tone));
        let pids: Vec<String> = holder
            .into_iter()
            .flat_map(|holder| &holder.pids)
            .map(u32::to_string)
            .collect();
        let date = |time: Option<&_>| {
            time.map(|time| timestamp::date_clock(Some(time)))
                .unwrap_or_default()
        };
        let other: Vec<String> = device
            .and_then(|device| device.readings.as_ref())
            .into_iter()
            .flat_map(|readings| &readings.other)
            .collect::<std::collections::BTreeMap<_, _>>()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        cells.extend([
            Cell::new(holder.map_or("", |holder| &holder.resource)),
            Cell::new(
                holder
                    .map(|holder| holder.device_ids.join(","))
                    .unwrap_or_default(),
            ),
            Cell::new(holder.map_or("", |holder| &holder.claim)),
            Cell::new(pids.join(",")),
            Cell::new(date(holder.and_then(|holder| holder.since.as_ref()))),
            Cell::new(date(holder.and_then(|holder| holder.until.as_ref()))),
            Cell::new(owner.map_or("", |owner| &owner.workload)),
            Cell::new(owner.map_or("", |owner| &owner.cgroup)),
            Cell::new(device.map_or("", |device| &device.pci)),
            Cell::new(device.map_or("", |device| &device.driver)),
            Cell::new(date(device.and_then(|device| device.last.as_ref()))),
            Cell::new(
                device
                    .filter(|device| device.samples > 0)
                    .map(|device| device.samples.to_string())
                    .unwrap_or_default(),
            ),
            Cell::new(other.join(" ")),
        ]);
        table.row(cells);
    }
    table
        .without_empty(&[
            "NODE", "UUID", "MIG-UUID", "RESOURCE", "DEVICES", "CLAIM", "PIDS", "SINCE", "UNTIL", "WORKLOAD",
            "CGROUP", "PCI", "DRIVER", "LAST", "SAMPLES", "OTHER",
        ])
        .render(None, style)
}

/// Why what should be known of a device is not, a sentence each.
pub(crate) fn troubles(devices: &[GpuDevice], summary: Option<&GpuSummary>, many: bool) -> Vec<String> {
    let (to, sampling) = summary.map_or((None, None), |summary| {
        (summary.to.as_ref(), summary.sampling.as_ref())
    });
    devices
        .iter()
        .filter_map(|device| {
            let name = gpu::device(device, many);
            if device.trouble.is_empty() {
                let age = gpu::stale(device, to, sampling)?;
                Some(format!(
                    "{name}: the last sample is {} old",
                    humanise::seconds(age)
                ))
            } else {
                Some(format!("{name}: {}", device.trouble))
            }
        })
        .collect()
}

/// What is held and does nothing; below each, how its holder is known and the evidence of the cause.
pub(crate) fn idle(wastes: &[Waste<'_>], many: bool, wide: bool, style: &Style) -> String {
    let mut table = Table::new([
        Column::name("NODE", 6),
        Column::workload("HOLDER", 16),
        Column::name("GPU", 3),
        Column::number("HELD"),
        Column::number("IDLE"),
        Column::number("UNKNOWN"),
        Column::number("WASTED"),
        Column::text("CAUSE"),
        Column::text("UUID"),
        Column::text("WORKLOAD"),
    ]);
    let mut below = Vec::new();
    for waste in wastes {
        let device = waste.device;
        let mut name = gpu::index(device);
        match &device.mig {
            Some(mig) if wide => name.push_str(&format!(" {}", gpu::instance(mig))),
            Some(mig) => name.push_str(&format!(" MIG {}", mig.instance)),
            None => {}
        }
        for (nth, (holder, idle)) in waste.holders.iter().enumerate() {
            let share = gpu::idle_share(idle);
            let unknown = gpu::span(idle.unknown.as_ref());
            let container = wide || is_ambiguous(device, holder);
            table.row([
                Cell::new(if many { &*device.node } else { "" }),
                Cell::new(gpu::holder(holder.owner.as_ref(), container)),
                Cell::new(&name),
                Cell::new(known(
                    idle.held
                        .as_ref()
                        .map(|held| humanise::seconds(gpu::span(Some(held)))),
                )),
                Cell::new(known(share.and_then(humanise::share))),
                Cell::new(if unknown > 0.0 {
                    humanise::seconds(unknown)
                } else {
                    String::new()
                }),
                // Of a device that several held, once.
                Cell::toned(
                    match nth {
                        0 if !waste.is_known => UNKNOWN.to_owned(),
                        0 => format!("{} h", humanise::hours(waste.hours)),
                        _ => String::new(),
                    },
                    Tone::Strong,
                ),
                Cell::new(if idle.cause.is_empty() {
                    UNKNOWN
                } else {
                    &idle.cause
                }),
                Cell::new(if wide { &*device.uuid } else { "" }),
                Cell::new(
                    holder
                        .owner
                        .as_ref()
                        .filter(|_| wide)
                        .map_or("", |owner| &owner.workload),
                ),
            ]);
            let (method, _) = method(holder);
            below.push(if idle.evidence.is_empty() {
                format!("  {method}")
            } else {
                format!("  {method}: {}", sanitise::line(&idle.evidence))
            });
        }
    }
    let text = table
        .without_empty(&["NODE", "UNKNOWN", "UUID", "WORKLOAD"])
        .render(if wide { None } else { Some(style.width) }, style);
    let mut lines = text.lines();
    let mut text = String::new();
    text.extend(lines.next().into_iter().flat_map(|titles| [titles, "\n"]));
    for (row, below) in lines.zip(below) {
        text.push_str(&format!("{row}\n{}\n", style.paint(&below, Tone::Dim)));
    }
    text
}

/// Calls of the CUDA libraries.
pub(crate) fn calls(rows: &[CudaCalls], many: bool, wide: bool, style: &Style) -> String {
    let mut table = Table::new([
        Column::name("NODE", 6),
        Column::workload("OWNER", 16),
        Column::text("OWNER-BY"),
        Column::text("WORKLOAD"),
        Column::text("LIBRARY"),
        Column::name("FUNCTION", 12),
        Column::number("CALLS"),
        Column::number("ERRORS"),
        Column::number("BYTES"),
        Column::number("TIME"),
        Column::number("MEAN"),
    ]);
    for row in rows {
        let owner = row.owner.as_ref();
        let only = |text: String| if wide { text } else { String::new() };
        let mean = row
            .total_ns
            .filter(|_| row.count > 0)
            .map(|ns| humanise::nanos(ns / row.count, style.utf8));
        let errors = row.errors.map(humanise::count);
        table.row([
            Cell::new(if many { &*row.node } else { "" }),
            Cell::new(syscall::owner(owner).unwrap_or_else(|| "(unknown)".to_owned())),
            Cell::new(only(owner.map_or(String::new(), |owner| {
                flow_json::attribution(owner.attribution())
            }))),
            Cell::new(only(owner.map_or(String::new(), |owner| owner.workload.clone()))),
            Cell::new(only(row.library.clone())),
            Cell::new(&row.function),
            Cell::new(humanise::count(row.count)),
            if row.errors.is_some_and(|errors| errors > 0) {
                Cell::toned(known(errors), Tone::Warn)
            } else {
                Cell::new(known(errors))
            },
            Cell::new(known(row.bytes.map(humanise::bytes))),
            Cell::new(known(row.total_ns.map(|ns| humanise::nanos(ns, style.utf8)))),
            Cell::new(known(mean)),
        ]);
    }
    table
        .without_empty(&["NODE", "OWNER-BY", "WORKLOAD", "LIBRARY"])
        .render(if wide { None } else { Some(style.width) }, style)
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::{Endpoint, GpuMig};
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    const STYLE: Style = Style::PIPED;

    fn holder(pod: &str, method: GpuMethod, utilization: Option<f64>) -> GpuHolder {
        GpuHolder {
            owner: Some(Endpoint {
                namespace: "ml".into(),
                pod: pod.into(),
                ..Endpoint::default()
            }),
            method: method.into(),
            utilization,
            ..GpuHolder::default()
        }
    }

    #[test]
    fn a_shared_device_s_value_stands_once() {
        let device = GpuDevice {
            index: Some(0),
            model: "Tesla T4".into(),
            holders: vec![
                holder("a", GpuMethod::SharedEstimate, None),
                holder("b", GpuMethod::SharedEstimate, None),
            ],
            readings: Some(GpuReadings {
                utilization: Some(0.77),
                memory_used_bytes: Some(3 << 30),
                memory_free_bytes: Some(13 << 30),
                ..GpuReadings::default()
            }),
            sources: vec!["dcgm".into()],
            ..GpuDevice::default()
        };
        let text = narrow(&[device], false, &STYLE);
        assert_eq!(text.matches("77%").count(), 1, "{text}");
        assert!(text.contains("3.0/16 GiB"), "{text}");
        for line in text.lines().filter(|line| line.contains("ml/")) {
            let words: Vec<&str> = line.split_whitespace().skip(1).collect();
            assert_eq!(words, ["-", "-", "shared_estimate"], "{text}");
        }
    }

    #[test]
    fn containers_are_named_where_a_pod_alone_does_not_tell_who() {
        let of = |pod: &str, container: &str| {
            let mut holder = holder(pod, GpuMethod::NvmlPid, None);
            holder.owner.get_or_insert_default().container = container.into();
            holder
        };
        let device = GpuDevice {
            holders: vec![
                of("a", "one"),
                of("a", "two"),
                of("b", "one"),
                GpuHolder::default(),
            ],
            ..GpuDevice::default()
        };
        let text = narrow(std::slice::from_ref(&device), false, &STYLE);
        for expected in ["ml/a (one)", "ml/a (two)", "ml/b   ", "(unknown)"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert!(wide(&[device], &STYLE).contains("ml/b (one)"));
    }

    #[test]
    fn an_instance_without_its_gpu_says_which_it_is_of() {
        let device = GpuDevice {
            node: "n1".into(),
            index: Some(2),
            model: "H100".into(),
            mig: Some(GpuMig {
                instance: 7,
                ..GpuMig::default()
            }),
            ..GpuDevice::default()
        };
        let whole = GpuDevice {
            mig: None,
            ..device.clone()
        };
        let text = narrow(std::slice::from_ref(&device), true, &STYLE);
        assert!(text.contains("n1    2    H100 MIG 7"), "{text}");
        let text = narrow(&[whole, device], true, &STYLE);
        assert!(text.contains("\n             MIG 7"), "{text}");
    }

    proptest! {
        #[test]
        fn fits_whatever_is_told(
            text in any::<String>(), other in any::<String>(), share in any::<f64>(), bytes in any::<u64>(),
            real in any::<f64>(), mig: bool, method in any::<i32>(), seconds in any::<i64>(),
        ) {
            let owner = Some(Endpoint { namespace: text.clone(), pod: other.clone(), container: text.clone(), ..Endpoint::default() });
            let time = Some(prost_types::Timestamp { seconds, nanos: 0 });
            let lasting = Some(prost_types::Duration { seconds, nanos: 0 });
            let device = GpuDevice {
                node: text.clone(),
                uuid: other.clone(),
                model: text.clone(),
                mig: mig.then(|| GpuMig { profile: other.clone(), ..GpuMig::default() }),
                holders: vec![GpuHolder {
                    owner: owner.clone(), method, utilization: Some(share), memory_bytes: Some(bytes), until: time, since: time,
                    idle: Some(orb8_proto::v1::GpuIdle {
                        held: lasting, idle: lasting, unknown: lasting, cause: text.clone(), ..Default::default()
                    }),
                    ..GpuHolder::default()
                }],
                readings: Some(GpuReadings {
                    utilization: Some(share), memory_used_bytes: Some(bytes % (80 << 30)), memory_total_bytes: Some(80 << 30),
                    temperature_celsius: Some(real % 200.0), power_watts: Some(real % 2000.0),
                    ..GpuReadings::default()
                }),
                sources: vec![text.clone(), other],
                last: time,
                ..GpuDevice::default()
            };
            let devices = [device];
            let calls_of = CudaCalls { owner, function: text, count: bytes, total_ns: Some(bytes), ..CudaCalls::default() };
            for shown in [
                wide(&devices, &STYLE),
                idle(&gpu::wastes(&devices), true, true, &STYLE),
                calls(&[calls_of], true, true, &STYLE),
            ] {
                prop_assert!(shown.lines().all(|line| !line.contains(sanitise::is_hostile)));
            }
            let _ = troubles(&devices, None, true);
            if (0.0..100.0).contains(&share) {
                let shown = narrow(&devices, true, &STYLE);
                prop_assert!(shown.lines().all(|line| line.width() <= 83 && !line.contains(sanitise::is_hostile)), "{}", shown);
            }
        }
    }
}
