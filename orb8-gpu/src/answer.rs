//! Answers to questions about devices.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use orb8_proto::v1::{
    Attribution, Endpoint, GpuDevice, GpuHolder, GpuIdle, GpuMethod, GpuMig, GpuQuery, GpuReadings,
    GpuSummary,
};

use crate::{
    attribution::{self, Scene, Share, whole},
    history::{Counter, Gauge, Level, Says, Timeline},
    id::{DeviceId, DeviceKey, Uuid},
    merge::{self, Part, SOURCES, Window},
    monitor::{self, Known, Monitor},
    owners::Owner,
    span::{Nanos, Span, duration, length, nanos, of_timestamp, timestamp},
};

/// Devices without a name that a note tells of, each with why.
const UNNAMED: usize = 4;

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// An end without a beginning.
    #[error("`until` without `since`: give both, or neither for the last sample")]
    NoSince,
    /// The end is not after the beginning.
    #[error("the span of time ends before it begins: `until` must be later than `since`")]
    Backwards,
    /// Idle time is told of a span.
    #[error("what holders did while their devices were idle is told of a span of time: give `since`")]
    IdleOfMoment,
    /// Nothing can be said of so short a time.
    #[error(
        "{} is too short a time to tell idle devices from busy ones, for they are sampled every {}: ask for at least twice that",
        seconds(*asked),
        seconds(*sampling)
    )]
    TooShort {
        /// As asked.
        asked: Duration,
        /// Between two samples.
        sampling: Duration,
    },
}

fn seconds(duration: Duration) -> String {
    // Samples are some milliseconds late.
    format!("{} s", (duration.as_secs_f64() * 10.0).round() / 10.0)
}

/// Devices and what the reader must know of them.
#[derive(Clone, Debug)]
pub struct Answer {
    /// In the order of their indices.
    pub devices: Vec<GpuDevice>,
    /// Of questions about idle devices: when the device of a holder (its place in `devices` and among its holders) was
    /// idle.
    pub idle: BTreeMap<(usize, usize), Vec<IdleSpan>>,
    /// Without its ledger.
    pub summary: GpuSummary,
}

/// A time in which a device was idle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IdleSpan {
    /// Nanoseconds since 1970.
    pub from: u64,
    /// As `from`.
    pub to: u64,
    /// Share of it in which no kernel ran, 0 to 1.
    pub idle: f64,
}

impl Monitor {
    /// Answers a question at a moment. `is_wanted` says whether a holder meets the filter's conditions on namespaces, pods
    /// and workloads; none: there are none.
    ///
    /// # Errors
    /// [`QueryError`], if the span of time makes no sense.
    pub fn query(
        &self,
        query: &GpuQuery,
        now: SystemTime,
        is_wanted: Option<&dyn Fn(&Endpoint) -> bool>,
    ) -> Result<Answer, QueryError> {
        let now = nanos(now);
        let window = self.window(query, now)?;
        let is_open = query.until.is_none();
        let mut notes = self.notes(&window);
        let mut devices: Vec<(GpuDevice, Vec<Vec<IdleSpan>>)> = Vec::new();
        let mut resets = 0;
        for (key, known) in &self.devices {
            if let Some((device, idle, fell)) = self.device(key, known, &window, query.idle) {
                resets += fell;
                devices.push((device, idle));
            }
        }
        if is_open {
            for (id, granted) in monitor::untold(self) {
                let device = self.untold_device(id, &granted);
                let idle = vec![Vec::new(); device.holders.len()];
                devices.push((device, idle));
            }
        }
        let wanted = query.filter.as_ref().map_or(&[][..], |filter| &filter.devices);
        devices.retain(|(device, _)| {
            let named = wanted.is_empty() || wanted.iter().any(|id| goes_by(device, id));
            let held = !query.idle || device.holders.iter().any(|holder| holder.since.is_some());
            let of_one = is_wanted.is_none_or(|is_wanted| {
                device
                    .holders
                    .iter()
                    .any(|holder| holder.owner.as_ref().is_some_and(is_wanted))
            });
            named && held && of_one
        });
        devices.sort_by(|(a, _), (b, _)| {
            let order = |device: &GpuDevice| {
                (
                    device.index.unwrap_or(u32::MAX),
                    device.uuid.clone(),
                    device.mig.as_ref().map(|mig| mig.instance),
                )
            };
            order(a).cmp(&order(b))
        });
        if resets > 0 {
            let times = if resets == 1 {
                "once".to_owned()
            } else {
                format!("{resets} times")
            };
            notes.push(format!(
                "Counters fell {times}, as they do after a reset or a driver's restart: what was counted in these \
                 intervals is not known."
            ));
        }
        let mut idle = BTreeMap::new();
        let mut answered = Vec::with_capacity(devices.len());
        for (place, (device, spans)) in devices.into_iter().enumerate() {
            if query.idle {
                for (holder, spans) in spans
                    .into_iter()
                    .enumerate()
                    .filter(|(_, spans)| !spans.is_empty())
                {
                    idle.insert((place, holder), spans);
                }
            }
            answered.push(device);
        }
        let from = if window.last_only {
            self.lines.iter().filter_map(Timeline::last).max().unwrap_or(now)
        } else {
            window.span.start
        };
        Ok(Answer {
            devices: answered,
            idle,
            summary: GpuSummary {
                node: self.node.clone(),
                from: Some(timestamp(from.min(window.span.end))),
                to: Some(timestamp(window.span.end)),
                sources: self.sources.clone(),
                sampling: Some(duration(self.sampling())),
                notes,
                ..GpuSummary::default()
            },
        })
    }

    /// Between two samples: as they came, or as they are to come.
    fn sampling(&self) -> Nanos {
        let measured = self.lines.iter().filter_map(Timeline::interval).max();
        measured.unwrap_or(self.interval)
    }

    fn window(&self, query: &GpuQuery, now: Nanos) -> Result<Window, QueryError> {
        let end = query.until.map_or(now, of_timestamp).min(now);
        let Some(since) = query.since else {
            return if query.until.is_some() {
                Err(QueryError::NoSince)
            } else if query.idle {
                Err(QueryError::IdleOfMoment)
            } else {
                Ok(self.at(now))
            };
        };
        let start = of_timestamp(since);
        if start >= end {
            return Err(QueryError::Backwards);
        }
        let span = Span { start, end };
        let sampling = self.sampling();
        if query.idle && span.length() < sampling.saturating_mul(2) {
            return Err(QueryError::TooShort {
                asked: Duration::from_nanos(span.length()),
                sampling: Duration::from_nanos(sampling),
            });
        }
        Ok(Window {
            span,
            last_only: false,
            max_age: self.max_age(),
        })
    }

    fn at(&self, time: Nanos) -> Window {
        Window {
            span: Span {
                start: time,
                end: time,
            },
            last_only: true,
            max_age: self.max_age(),
        }
    }

    fn notes(&self, window: &Window) -> Vec<String> {
        let mut notes = Vec::new();
        let seconds = |nanos: Nanos| nanos / length(Duration::from_secs(1));
        match &self.kubelet {
            Some(kubelet) if kubelet.is_silent => notes.push(format!(
                "The kubelet does not answer: holders are those of {} s before the end.",
                seconds(window.span.end.saturating_sub(kubelet.time))
            )),
            None if self
                .devices
                .values()
                .any(|known| known.holds.iter().any(|hold| hold.says == Says::Exporter)) =>
            {
                notes.push(
                    "The kubelet has not told who holds which device: holders are as the labels of dcgm-exporter say, which \
                     may be of the past, or name one of several."
                        .to_owned(),
                );
            }
            _ => {}
        }
        for ((source, unnamed), line) in SOURCES.iter().zip(&self.unnamed).zip(&self.lines) {
            let is_fresh = line.last().is_some_and(|last| {
                window
                    .span
                    .end
                    .checked_sub(last)
                    .is_some_and(|age| age <= window.max_age)
            });
            if is_fresh && !unnamed.is_empty() {
                notes.push(format!(
                    "{} cannot read {}, not even {}: {}{}.",
                    source.name(),
                    match unnamed.len() {
                        1 => "1 GPU".to_owned(),
                        some => format!("{some} GPUs"),
                    },
                    if unnamed.len() == 1 {
                        "its name"
                    } else {
                        "their names"
                    },
                    unnamed[..unnamed.len().min(UNNAMED)].join("; "),
                    if unnamed.len() > UNNAMED { "; …" } else { "" },
                ));
            }
        }
        let first = self.lines.iter().filter_map(Timeline::first).min();
        if let Some(first) = first
            && !window.last_only
            && first > window.span.start
        {
            notes.push(format!(
                "The history of samples covers the last {} s of the span.",
                seconds(window.span.end.saturating_sub(first))
            ));
        }
        notes
    }

    /// A device within a window, with the idle times of each holder; none: nobody told of it.
    fn device(
        &self,
        key: &DeviceKey,
        known: &Known,
        window: &Window,
        wants_idle: bool,
    ) -> Option<(GpuDevice, Vec<Vec<IdleSpan>>, u64)> {
        let parts = known.parts(&self.lines);
        let samples = parts.iter().map(|part| part.samples(window).0).max();
        let samples = samples.unwrap_or_default();
        let told = parts.each_ref().map(|part| part.last(window));
        let last = told.iter().flatten().copied().max();
        let is_held = known.holds.iter().any(|hold| hold.absent_after.is_none());
        if last.is_none() && !is_held {
            return None;
        }
        let is_cut = key.instance.is_none() && self.has_instances(key, window);
        let (readings, resets) = readings(&parts, window, is_cut);
        let relatives: Vec<Owner> = self
            .devices
            .iter()
            .filter(|(other, _)| other.uuid == key.uuid && *other != key)
            .flat_map(|(_, other)| other.holds.iter().map(|hold| hold.owner.clone()))
            .collect();
        let shares = attribution::shares(&Scene {
            parts: &parts,
            holds: &known.holds,
            window,
            is_instance: key.instance.is_some() || merge::is_mig(&key.uuid),
            is_cut,
            has_holders: self.kubelet.is_some(),
            relatives: &relatives,
        });
        let mut idle = Vec::with_capacity(shares.len());
        let mut holders = Vec::with_capacity(shares.len());
        for share in shares {
            let (told, spans) = if wants_idle && share.held.is_some() {
                let (told, spans) = idle_of(&parts, window, &share);
                (Some(told), spans)
            } else {
                (None, Vec::new())
            };
            holders.push(holder(&self.node, share, told));
            idle.push(spans);
        }
        let identity = known.identity();
        let trouble = parts
            .iter()
            .zip(&told)
            .filter(|(_, last)| last.is_some())
            .find_map(|(part, _)| part.series.trouble.clone());
        let mig = key.instance.map(|instance| GpuMig {
            instance,
            uuid: identity
                .mig
                .as_ref()
                .and_then(|mig| mig.uuid.as_ref())
                .map(|uuid| uuid.as_str().to_owned())
                .unwrap_or_default(),
            profile: identity.mig.and_then(|mig| mig.profile).unwrap_or_default(),
        });
        let device = GpuDevice {
            node: self.node.clone(),
            uuid: key.uuid.as_str().to_owned(),
            index: identity.index,
            model: identity.model.unwrap_or_default(),
            driver: identity.driver.unwrap_or_default(),
            pci: identity.pci.unwrap_or_default(),
            mig,
            holders,
            readings: Some(readings),
            sources: parts
                .iter()
                .zip(&told)
                .filter(|(_, last)| last.is_some())
                .map(|(part, _)| SOURCES[part.source].name().to_owned())
                .collect(),
            samples,
            last: last.map(timestamp),
            trouble: trouble.unwrap_or_else(|| match (samples, last) {
                (0, None) => "no source tells of it any more".to_owned(),
                (0, Some(_)) => "no sample lies in this span of time".to_owned(),
                _ => String::new(),
            }),
            hidden_holders: 0,
        };
        Some((device, idle, resets))
    }

    fn has_instances(&self, key: &DeviceKey, window: &Window) -> bool {
        self.devices.iter().any(|(other, known)| {
            let is_of = other.uuid == key.uuid && other.instance.is_some()
                || known.parent.as_ref() == Some(&key.uuid);
            is_of
                && known
                    .parts(&self.lines)
                    .iter()
                    .any(|part| part.last(window).is_some())
        })
    }

    /// A device of which only the kubelet tells, under its word for it.
    fn untold_device(&self, id: String, granted: &[&monitor::Granted]) -> GpuDevice {
        let since = self.kubelet.as_ref().map(|kubelet| timestamp(kubelet.time));
        let trouble = self.why_untold(&DeviceId::parse(&id));
        let method = if granted.len() == 1 {
            GpuMethod::Exclusive
        } else {
            GpuMethod::SharedEstimate
        };
        let holders = granted.iter().map(|granted| GpuHolder {
            owner: Some(granted.owner.endpoint(&self.node, Attribution::Unknown)),
            method: method.into(),
            device_ids: granted
                .ids
                .iter()
                .zip(&granted.held.devices)
                .filter(|(parsed, text)| monitor::device_text(parsed, text) == id)
                .map(|(_, text)| text.clone())
                .collect(),
            resource: granted.held.resource.clone(),
            claim: granted.held.claim.clone().unwrap_or_default(),
            since,
            ..GpuHolder::default()
        });
        GpuDevice {
            node: self.node.clone(),
            holders: holders.collect(),
            uuid: id,
            readings: Some(GpuReadings::default()),
            trouble: trouble.to_owned(),
            ..GpuDevice::default()
        }
    }

    /// Why no device is found that goes by an id.
    fn why_untold(&self, id: &DeviceId) -> &'static str {
        let is_numbered = || {
            self.devices
                .values()
                .any(|known| known.identity().minor.is_some())
        };
        match id {
            _ if self.devices.is_empty() => {
                "no source tells of this device: is there a dcgm-exporter, or NVIDIA's driver with NVML?"
            }
            DeviceId::Minor { .. } | DeviceId::Slice { .. } if !is_numbered() => {
                "which device this is is not known: it goes by the number of its device node (/dev/nvidiaN), which NVML and \
                 /proc/driver/nvidia tell, and no source here does"
            }
            DeviceId::Slice { .. } => {
                "which instance this is is not known: it goes by where it lies on its GPU, which NVML alone tells, to root"
            }
            DeviceId::Index { mig: Some(_), .. } => {
                "which instance this is is not known: it goes by its place among its GPU's, which NVML alone tells"
            }
            _ => "no source tells of this device, though they tell of others",
        }
    }
}

/// A device as it was at a moment, as far as that is known.
pub(crate) fn device_at(monitor: &Monitor, key: &DeviceKey, time: Nanos) -> GpuDevice {
    let window = monitor.at(time);
    monitor
        .devices
        .get(key)
        .and_then(|known| monitor.device(key, known, &window, false))
        .map_or_else(
            || GpuDevice {
                uuid: key.uuid.as_str().to_owned(),
                mig: key.instance.map(|instance| GpuMig {
                    instance,
                    ..GpuMig::default()
                }),
                ..GpuDevice::default()
            },
            |(device, ..)| device,
        )
}

/// Whether a device goes by an index, or a beginning of one of its UUIDs.
#[must_use]
pub fn goes_by(device: &GpuDevice, id: &str) -> bool {
    let begins = |uuid: &str| {
        uuid.get(..id.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(id))
    };
    id.parse().is_ok_and(|index: u32| device.index == Some(index))
        || !id.is_empty()
            && (begins(&device.uuid) || device.mig.as_ref().is_some_and(|mig| begins(&mig.uuid)))
}

/// What a device did. Of one that is cut into instances, only what these do not tell. And how often counters fell.
fn readings(parts: &[Part<'_>], window: &Window, is_cut: bool) -> (GpuReadings, u64) {
    let gauge =
        |gauge: Gauge| merge::choose(parts, gauge, window).and_then(|(_, pieces)| merge::mean(&pieces));
    let of_use = |wanted: Gauge| if is_cut { None } else { gauge(wanted) };
    let mut resets = 0;
    let mut counter = |counter: Counter| {
        parts.iter().find_map(|part| {
            let (increments, fell) = part.increments(counter, window);
            resets += fell;
            (!increments.is_empty() || fell > 0).then(|| increments.iter().map(|(_, more)| more).sum::<f64>())
        })
    };
    let energy = counter(Counter::Energy);
    let pcie_tx = counter(Counter::PcieTx).map(whole);
    let pcie_rx = counter(Counter::PcieRx).map(whole);
    let nvlink = counter(Counter::Nvlink).map(whole);
    let ecc_corrected = counter(Counter::EccCorrected).map(whole);
    let ecc_uncorrected = counter(Counter::EccUncorrected).map(whole);
    let ends: Vec<(&Part<'_>, usize)> = parts
        .iter()
        .filter_map(|part| Some((part, part.end(window)?)))
        .collect();
    let levels = ends.iter().find_map(|(part, row)| {
        let level = |level| part.series.level(level, *row, part.line).map(whole);
        let (used, free) = (level(Level::Used), level(Level::Free));
        (used.is_some() || free.is_some()).then_some((used, free))
    });
    let (used, free) = levels.filter(|_| !is_cut).unwrap_or_default();
    let mut other = std::collections::HashMap::new();
    for (part, _) in ends.iter().rev() {
        other.extend(part.series.other.clone());
    }
    let readings = GpuReadings {
        utilization: of_use(Gauge::Utilization),
        memory_copy: of_use(Gauge::MemoryCopy),
        memory_used_bytes: used,
        memory_free_bytes: free,
        memory_total_bytes: ends
            .iter()
            .find_map(|(part, _)| part.series.memory_total)
            .filter(|_| !is_cut),
        temperature_celsius: gauge(Gauge::Temperature),
        power_watts: gauge(Gauge::Power),
        energy_joules: energy,
        sm_clock_hertz: gauge(Gauge::SmClock),
        memory_clock_hertz: gauge(Gauge::MemoryClock),
        pcie_tx_bytes: pcie_tx,
        pcie_rx_bytes: pcie_rx,
        nvlink_bytes: nvlink,
        xid: ends.iter().find_map(|(part, _)| part.series.xid),
        graphics_active: of_use(Gauge::GraphicsActive),
        sm_active: of_use(Gauge::SmActive),
        sm_occupancy: of_use(Gauge::SmOccupancy),
        tensor_active: of_use(Gauge::TensorActive),
        memory_active: of_use(Gauge::MemoryActive),
        fp64_active: of_use(Gauge::Fp64Active),
        fp32_active: of_use(Gauge::Fp32Active),
        fp16_active: of_use(Gauge::Fp16Active),
        ecc_corrected,
        ecc_uncorrected,
        other: other.into_iter().collect(),
    };
    (readings, resets)
}

/// For how long a holder's device was idle, and when.
fn idle_of(parts: &[Part<'_>], window: &Window, share: &Share) -> (GpuIdle, Vec<IdleSpan>) {
    let held: Nanos = share.certain.iter().map(|span| span.length()).sum();
    let (mut measured, mut idle, mut spans) = (0, 0.0, Vec::new());
    let pieces = attribution::use_of(parts, window).map_or_else(Vec::new, |(_, pieces)| pieces);
    for (piece, value) in pieces {
        for certain in &share.certain {
            let Some(span) = piece.span.common(*certain).filter(|span| span.length() > 0) else {
                continue;
            };
            measured += span.length();
            #[expect(clippy::cast_precision_loss, reason = "of minutes")]
            {
                idle += span.length() as f64 * (1.0 - value);
            }
            if value < 1.0 {
                spans.push(IdleSpan {
                    from: span.start,
                    to: span.end,
                    idle: 1.0 - value,
                });
            }
        }
    }
    let told = GpuIdle {
        held: Some(duration(held)),
        idle: Some(duration(whole(idle))),
        unknown: Some(duration(held.saturating_sub(measured))),
        ..GpuIdle::default()
    };
    (told, spans)
}

fn holder(node: &str, share: Share, idle: Option<GpuIdle>) -> GpuHolder {
    let owner = share.owner.unwrap_or_default();
    let attribution = if share.pids.is_empty() {
        Attribution::Unknown
    } else {
        Attribution::Cgroup
    };
    GpuHolder {
        owner: Some(owner.endpoint(node, attribution)),
        method: share.method.into(),
        utilization: share.utilization,
        memory_bytes: share.memory,
        energy_joules: share.energy,
        device_ids: share.device_ids,
        resource: share.resource,
        pids: share.pids,
        since: share.held.map(|(since, _)| timestamp(since)),
        until: share.held.and_then(|(_, until)| until).map(timestamp),
        claim: share.claim.unwrap_or_default(),
        idle,
    }
}

/// Totals of a device's counters since the agent's start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// In joules.
    pub energy: Option<f64>,
    /// In bytes, sent by the GPU.
    pub pcie_tx: Option<f64>,
    /// In bytes, received by it.
    pub pcie_rx: Option<f64>,
    /// In bytes, both directions.
    pub nvlink: Option<f64>,
    /// Corrected errors of memory.
    pub ecc_corrected: Option<f64>,
    /// Those that were not.
    pub ecc_uncorrected: Option<f64>,
}

impl Monitor {
    /// What the counters of a device, as in an answer, rose by since the agent's start.
    #[must_use]
    pub fn totals(&self, device: &GpuDevice) -> Totals {
        let key = DeviceKey {
            uuid: Uuid::new(device.uuid.as_str()),
            instance: device.mig.as_ref().map(|mig| mig.instance),
        };
        let Some(known) = self.devices.get(&key) else {
            return Totals::default();
        };
        Totals {
            energy: known.total(Counter::Energy),
            pcie_tx: known.total(Counter::PcieTx),
            pcie_rx: known.total(Counter::PcieRx),
            nvlink: known.total(Counter::Nvlink),
            ecc_corrected: known.total(Counter::EccCorrected),
            ecc_uncorrected: known.total(Counter::EccUncorrected),
        }
    }
}
