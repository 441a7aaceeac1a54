//! One device of all that is told of it: by the rows of one source, and by several sources.
//!
//! **Within a sample** a device is told once. Rows that contradict each other leave the value unset: none of them is a
//! measurement. What is of the board (power, temperature, energy, clocks, traffic, errors) and repeated for each instance is
//! taken from the instances, and given to the GPU if the sample does not tell of it itself.
//!
//! **Across sources** nothing is mixed within a value: each is of one source for the whole span, so that two sources'
//! clocks and counters never meet. NVML wins where it has the value, for it reads the GPU at the moment it is asked, while an
//! exporter tells what it collected up to half a minute ago; except that dcgm-exporter wins where it covers clearly more of
//! the span (more than 5/4 of it: NVML began later, or went away). Used and free memory are of the same source. Profiling
//! values and instances' utilization are known to dcgm-exporter only, processes to NVML only. Names (model, driver, PCI
//! address, index, profile) are NVML's, else dcgm-exporter's.

use std::collections::{BTreeMap, HashMap};

use crate::{
    history::{COUNTERS, Counter, GAUGES, Gauge, LEVELS, Level, MAX_WHOLE, Row, Series, Timeline},
    id::{DeviceKey, Uuid},
    resolve,
    sample::{Claim, Device, Mig, Process, Profile, Readings, Source},
    span::{Nanos, Span},
};

/// Sources by their number: who wins is first.
pub(crate) const SOURCES: [Source; 2] = [Source::Nvml, Source::Dcgm];

/// The number of a source.
pub(crate) const fn number(source: Source) -> usize {
    match source {
        Source::Nvml => 0,
        Source::Dcgm => 1,
    }
}

/// Longest text that is kept, in bytes; UUIDs and other identifying texts that are longer are refused.
pub(crate) const MAX_TEXT: usize = 512;
/// Counters are less; what is more is a blank, or made up.
const MAX_COUNT: u64 = 1 << 63;
/// Values by their own name that are kept of a device.
const MAX_OTHER: usize = 64;
/// UUIDs of compute instances that are kept of an instance.
const MAX_OTHERS: usize = 16;
/// Claims that are kept of a device.
const MAX_CLAIMS: usize = 64;

/// What a device goes by, as one source says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    pub(crate) index: Option<u32>,
    pub(crate) minor: Option<u32>,
    pub(crate) model: Option<String>,
    pub(crate) driver: Option<String>,
    pub(crate) pci: Option<String>,
    pub(crate) mig: Option<Mig>,
}

/// A device of a sample.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) identity: Identity,
    pub(crate) row: Row,
    pub(crate) processes: Option<Vec<Process>>,
    pub(crate) claims: Vec<Claim>,
    /// Of an instance that is known by its own UUID only.
    pub(crate) parent: Option<Uuid>,
}

/// Which instance a `MIG-…` UUID is, as far as any source has told.
pub(crate) type Aliases = HashMap<Uuid, DeviceKey>;

/// Devices of a sample, each once. Returns how many values were refused besides.
pub(crate) fn join(
    devices: Vec<Device>,
    aliases: &mut Aliases,
    max: usize,
) -> (BTreeMap<DeviceKey, Told>, u64) {
    let mut refused = 0;
    let mut groups: BTreeMap<DeviceKey, (Option<Uuid>, Vec<Device>)> = BTreeMap::new();
    for device in &devices {
        if device.key.instance.is_some() && !is_mig(&device.key.uuid) {
            for uuid in mig_uuids(device.mig.as_ref()) {
                if aliases.len() < max.saturating_mul(4) || aliases.contains_key(uuid) {
                    aliases.insert(uuid.clone(), device.key.clone());
                } else {
                    refused += 1;
                }
            }
        }
    }
    for device in devices {
        let (key, parent) = canonical(&device, aliases);
        if key.uuid.as_str().is_empty() || key.uuid.as_str().len() > MAX_TEXT {
            refused += 1;
            continue;
        }
        if groups.len() >= max && !groups.contains_key(&key) {
            refused += 1;
            continue;
        }
        let group = groups.entry(key).or_default();
        group.0 = group.0.take().or(parent);
        group.1.push(device);
    }
    let mut joined: BTreeMap<DeviceKey, (Option<Uuid>, Device)> = BTreeMap::new();
    for (key, (parent, group)) in groups {
        joined.insert(key.clone(), (parent, agreed(key, group, &mut refused)));
    }
    give_to_boards(&mut joined);
    let told = joined
        .into_iter()
        .map(|(key, (parent, device))| {
            let told = Told {
                row: row(device.readings, device.trouble, &mut refused),
                identity: Identity {
                    index: device.index,
                    minor: device.minor,
                    model: device.model.map(short),
                    driver: device.driver.map(short),
                    pci: device.pci.map(short),
                    mig: device.mig.map(|mig| Mig {
                        uuid: mig.uuid.filter(|uuid| uuid.as_str().len() <= MAX_TEXT),
                        profile: mig.profile.map(short),
                        others: mig
                            .others
                            .into_iter()
                            .filter(|uuid| uuid.as_str().len() <= MAX_TEXT)
                            .take(MAX_OTHERS)
                            .collect(),
                        place: mig.place,
                        slots: mig.slots.into_iter().take(MAX_OTHERS).collect(),
                    }),
                },
                processes: device.processes,
                claims: device.claims,
                parent,
            };
            (key, told)
        })
        .collect();
    (told, refused)
}

/// UUIDs of the compute instances of an instance.
pub(crate) fn mig_uuids(mig: Option<&Mig>) -> impl Iterator<Item = &Uuid> {
    mig.into_iter().flat_map(|mig| mig.uuid.iter().chain(&mig.others))
}

pub(crate) fn is_mig(uuid: &Uuid) -> bool {
    uuid.as_str()
        .get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case("MIG-"))
}

/// A device's own key; and of an instance that goes by its own UUID, for nobody has told its number yet, its GPU.
fn canonical(device: &Device, aliases: &Aliases) -> (DeviceKey, Option<Uuid>) {
    let own = if is_mig(&device.key.uuid) {
        Some(&device.key.uuid)
    } else if device.key.instance.is_none() {
        device.mig.as_ref().and_then(|mig| mig.uuid.as_ref())
    } else {
        None
    };
    let Some(own) = own else {
        return (device.key.clone(), None);
    };
    if let Some(key) = resolve::old_mig(own.as_str()).or_else(|| aliases.get(own).cloned()) {
        return (key, None);
    }
    let key = DeviceKey {
        uuid: own.clone(),
        instance: None,
    };
    (key, (*own != device.key.uuid).then(|| device.key.uuid.clone()))
}

/// What all say who say anything; none, and counted, if they differ.
fn agree<T: PartialEq>(values: impl Iterator<Item = Option<T>>, refused: &mut u64) -> Option<T> {
    let mut values = values.flatten();
    let first = values.next()?;
    let others = values.filter(|other| *other != first).count();
    *refused += others as u64;
    (others == 0).then_some(first)
}

/// One device of all rows that a sample has of it.
fn agreed(key: DeviceKey, mut group: Vec<Device>, refused: &mut u64) -> Device {
    if group.len() == 1
        && let Some(mut device) = group.pop()
    {
        device.key = key;
        bound_claims(&mut device.claims, refused);
        return device;
    }
    macro_rules! all {
        ($($field:ident).+) => {
            agree(group.iter().map(|device| device.$($field).+.clone()), refused)
        };
    }
    let readings = Readings {
        utilization: all!(readings.utilization),
        memory_copy: all!(readings.memory_copy),
        memory_used: all!(readings.memory_used),
        memory_free: all!(readings.memory_free),
        memory_total: all!(readings.memory_total),
        temperature: all!(readings.temperature),
        power: all!(readings.power),
        energy: all!(readings.energy),
        sm_clock: all!(readings.sm_clock),
        memory_clock: all!(readings.memory_clock),
        xid: all!(readings.xid),
        pcie_tx: all!(readings.pcie_tx),
        pcie_rx: all!(readings.pcie_rx),
        nvlink: all!(readings.nvlink),
        ecc_corrected: all!(readings.ecc_corrected),
        ecc_uncorrected: all!(readings.ecc_uncorrected),
        profile: Profile {
            graphics_active: all!(readings.profile.graphics_active),
            sm_active: all!(readings.profile.sm_active),
            sm_occupancy: all!(readings.profile.sm_occupancy),
            tensor_active: all!(readings.profile.tensor_active),
            memory_active: all!(readings.profile.memory_active),
            fp64_active: all!(readings.profile.fp64_active),
            fp32_active: all!(readings.profile.fp32_active),
            fp16_active: all!(readings.profile.fp16_active),
        },
        other: {
            let mut other = BTreeMap::new();
            for name in group.iter().flat_map(|device| device.readings.other.keys()) {
                if !other.contains_key(name) {
                    let values = group
                        .iter()
                        .map(|device| device.readings.other.get(name).copied());
                    other.insert(name.clone(), agree(values, refused));
                }
            }
            other
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect()
        },
    };
    let mut claims: Vec<Claim> = group.iter().flat_map(|device| device.claims.clone()).collect();
    bound_claims(&mut claims, refused);
    Device {
        index: all!(index),
        minor: all!(minor),
        model: all!(model),
        driver: all!(driver),
        pci: all!(pci),
        host: None,
        mig: all!(mig),
        readings,
        processes: all!(processes),
        claims,
        trouble: group.iter().find_map(|device| device.trouble.clone()),
        key,
    }
}

fn bound_claims(claims: &mut Vec<Claim>, refused: &mut u64) {
    let before = claims.len();
    claims.retain(|claim| {
        !claim.pod.is_empty()
            && [&claim.namespace, &claim.pod, &claim.container]
                .iter()
                .all(|text| text.len() <= MAX_TEXT)
    });
    *refused += (before - claims.len()) as u64;
    claims.sort_unstable();
    claims.dedup();
    *refused += claims.len().saturating_sub(MAX_CLAIMS) as u64;
    claims.truncate(MAX_CLAIMS);
}

/// Errors that are of the board though instances tell them too: by its UUID. An instance has errors of its own.
fn errors_of_boards(joined: &BTreeMap<DeviceKey, (Option<Uuid>, Device)>) -> BTreeMap<Uuid, u32> {
    let mut of_boards = BTreeMap::new();
    let mut of_instances: BTreeMap<&Uuid, Vec<u32>> = BTreeMap::new();
    for (key, (parent, device)) in joined {
        let Some(xid) = device.readings.xid else { continue };
        match (key.instance, parent) {
            (Some(_), _) => of_instances.entry(&key.uuid).or_default().push(xid),
            (None, Some(parent)) => of_instances.entry(parent).or_default().push(xid),
            (None, None) => {
                of_boards.insert(key.uuid.clone(), xid);
            }
        }
    }
    for (uuid, xids) in of_instances {
        let is_repeated = xids.len() > 1 && xids.windows(2).all(|pair| pair[0] == pair[1]);
        if is_repeated && !of_boards.contains_key(uuid) {
            of_boards.insert(uuid.clone(), xids[0]);
        }
    }
    of_boards
}

/// Takes what is of the board from instances; the GPU gets it, if the sample tells nothing of it.
fn give_to_boards(joined: &mut BTreeMap<DeviceKey, (Option<Uuid>, Device)>) {
    let errors = errors_of_boards(joined);
    let mut boards: BTreeMap<DeviceKey, Device> = BTreeMap::new();
    for (key, (parent, device)) in joined.iter_mut() {
        let uuid = match (key.instance, parent) {
            (Some(_), _) => &key.uuid,
            (None, Some(parent)) => &*parent,
            // An instance whose GPU is not known has no board to give to.
            (None, None) if is_mig(&key.uuid) => &key.uuid,
            (None, None) => continue,
        };
        let readings = &mut device.readings;
        let xid = readings.xid.filter(|xid| errors.get(uuid) == Some(xid));
        // None is no error of anybody's.
        if xid.is_some_and(|xid| xid != 0) {
            readings.xid = None;
        }
        let of_board = Readings {
            temperature: readings.temperature.take(),
            power: readings.power.take(),
            energy: readings.energy.take(),
            sm_clock: readings.sm_clock.take(),
            memory_clock: readings.memory_clock.take(),
            xid,
            pcie_tx: readings.pcie_tx.take(),
            pcie_rx: readings.pcie_rx.take(),
            nvlink: readings.nvlink.take(),
            ecc_corrected: readings.ecc_corrected.take(),
            ecc_uncorrected: readings.ecc_uncorrected.take(),
            ..Readings::NONE
        };
        if of_board != Readings::NONE && !is_mig(uuid) {
            let board = DeviceKey {
                uuid: uuid.clone(),
                instance: None,
            };
            boards.entry(board.clone()).or_insert_with(|| Device {
                index: device.index,
                minor: device.minor,
                model: device.model.clone(),
                driver: device.driver.clone(),
                pci: device.pci.clone(),
                readings: of_board,
                ..Device::new(board)
            });
        }
    }
    for (key, board) in boards {
        joined.entry(key).or_insert((None, board));
    }
}

/// Cut to what is kept.
pub(crate) fn short(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or_default();
        text.truncate(end);
    }
    text
}

/// Values as they are kept, without those that can't be.
fn row(readings: Readings, trouble: Option<String>, refused: &mut u64) -> Row {
    let mut gauges = [None; GAUGES];
    let mut gauge = |gauge: Gauge, value: Option<f64>, least: f64, most: f64| {
        let fits = value.filter(|value| (least..=most).contains(value));
        *refused += u64::from(fits.is_none() && value.is_some());
        #[expect(clippy::cast_possible_truncation, reason = "seven digits are kept")]
        {
            gauges[gauge as usize] = fits.map(|value| value as f32);
        }
    };
    let profile = readings.profile;
    for (field, value) in [
        (Gauge::Utilization, readings.utilization),
        (Gauge::MemoryCopy, readings.memory_copy),
        (Gauge::GraphicsActive, profile.graphics_active),
        (Gauge::SmActive, profile.sm_active),
        (Gauge::SmOccupancy, profile.sm_occupancy),
        (Gauge::TensorActive, profile.tensor_active),
        (Gauge::MemoryActive, profile.memory_active),
        (Gauge::Fp64Active, profile.fp64_active),
        (Gauge::Fp32Active, profile.fp32_active),
        (Gauge::Fp16Active, profile.fp16_active),
    ] {
        gauge(field, value, 0.0, 1.0);
    }
    gauge(Gauge::Temperature, readings.temperature, -273.15, 1e4);
    gauge(Gauge::Power, readings.power, 0.0, 1e6);
    gauge(Gauge::SmClock, readings.sm_clock, 0.0, 1e15);
    gauge(Gauge::MemoryClock, readings.memory_clock, 0.0, 1e15);

    let mut whole = |value: Option<u64>| {
        let fits = value.filter(|value| *value <= MAX_WHOLE);
        *refused += u64::from(fits.is_none() && value.is_some());
        fits
    };
    let memory_total = whole(readings.memory_total);
    #[expect(clippy::cast_precision_loss, reason = "whole up to MAX_WHOLE")]
    let used = whole(readings.memory_used).map(|value| value as f64);
    #[expect(clippy::cast_precision_loss, reason = "whole up to MAX_WHOLE")]
    let free = whole(readings.memory_free).map(|value| value as f64);
    // Bytes of a fast link go beyond what is exact in hours; what they rise by is exact to a kilobyte for centuries.
    #[expect(clippy::cast_precision_loss, reason = "as said")]
    let mut count = |value: Option<u64>| {
        let fits = value.filter(|value| *value < MAX_COUNT);
        *refused += u64::from(fits.is_none() && value.is_some());
        fits.map(|value| value as f64)
    };
    let mut counters = [None; COUNTERS];
    for (counter, value) in [
        (Counter::PcieTx, readings.pcie_tx),
        (Counter::PcieRx, readings.pcie_rx),
        (Counter::Nvlink, readings.nvlink),
        (Counter::EccCorrected, readings.ecc_corrected),
        (Counter::EccUncorrected, readings.ecc_uncorrected),
    ] {
        counters[counter as usize] = count(value);
    }
    let mut levels = [None; LEVELS];
    levels[Level::Used as usize] = used;
    levels[Level::Free as usize] = free;
    let energy = readings.energy.filter(|joules| (0.0..=1e15).contains(joules));
    *refused += u64::from(energy.is_none() && readings.energy.is_some());
    counters[Counter::Energy as usize] = energy;

    let mut other = readings.other;
    let told = other.len();
    other.retain(|name, value| name.len() <= MAX_TEXT && value.is_finite());
    while other.len() > MAX_OTHER {
        other.pop_last();
    }
    *refused += (told - other.len()) as u64;
    Row {
        gauges,
        counters,
        levels,
        memory_total,
        xid: readings.xid,
        other,
        trouble: trouble.map(short),
        uses: None,
    }
}

/// What an answer is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) span: Span,
    /// The last sample alone: then `span` is the moment of the question.
    pub(crate) last_only: bool,
    pub(crate) max_age: Nanos,
}

/// A part of the window, of which a row tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) span: Span,
    /// In a mean: its length, or 1 of each where none has a length.
    pub(crate) weight: Nanos,
}

/// A source's part of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) source: usize,
    pub(crate) line: &'a Timeline,
    pub(crate) series: &'a Series,
}

impl Part<'_> {
    /// Rows that were sampled in the window.
    pub(crate) fn rows(&self, window: &Window) -> std::ops::Range<usize> {
        if !window.last_only {
            return self.line.after(window.span.start)..self.line.after(window.span.end);
        }
        let len = self.line.len();
        let fresh = self
            .line
            .last()
            .is_some_and(|last| window.span.end.saturating_sub(last) <= window.max_age);
        if fresh { len - 1..len } else { len..len }
    }

    /// Whether the newest row tells of the device.
    pub(crate) fn is_told_last(&self) -> bool {
        let newest = self.line.len().checked_sub(1);
        newest.is_some_and(|row| self.series.is_present(row, self.line))
    }

    /// How many of them tell of the device, and the last that does.
    pub(crate) fn samples(&self, window: &Window) -> (u32, Option<Nanos>) {
        let mut count = 0_u32;
        let mut last = None;
        for row in self.rows(window) {
            if self.series.is_present(row, self.line) {
                count = count.saturating_add(1);
                last = Some(self.line.time(row));
            }
        }
        (count, last)
    }

    /// The last row that tells of the device: in the window, or just before one that lies between two samples.
    pub(crate) fn last(&self, window: &Window) -> Option<Nanos> {
        let (_, last) = self.samples(window);
        last.or_else(|| Some(self.line.time(self.end(window)?)))
    }

    /// Parts of the window, of which rows tell that have a value.
    pub(crate) fn pieces<T>(&self, window: &Window, value: impl Fn(usize) -> Option<T>) -> Vec<(Piece, T)> {
        let mut rows = self.rows(window);
        if !window.last_only && rows.end < self.line.len() {
            // The next one tells of the window's end.
            rows.end += 1;
        }
        let mut pieces = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(value) = value(row) else {
                continue;
            };
            let covered = self.line.covered(row, window.max_age);
            let span = if window.last_only {
                Some(covered)
            } else {
                covered.common(window.span)
            };
            if let Some(span) = span {
                let weight = span.length();
                pieces.push((Piece { span, weight }, value));
            }
        }
        if pieces.iter().all(|(piece, _)| piece.weight == 0) {
            for (piece, _) in &mut pieces {
                piece.weight = 1;
            }
        } else {
            pieces.retain(|(piece, _)| piece.weight > 0);
        }
        pieces
    }

    /// Of a gauge.
    pub(crate) fn gauge(&self, gauge: Gauge, window: &Window) -> Vec<(Piece, f64)> {
        if !self.series.has_gauge(gauge) {
            return Vec::new();
        }
        self.pieces(window, |row| self.series.gauge(gauge, row, self.line))
    }

    /// Increments of a counter, each with the time in which it came, and in how many intervals it fell. An increment counts
    /// where it ends; one that came in a gap across the window's beginning does not count, for nobody knows when it came.
    pub(crate) fn increments(&self, counter: Counter, window: &Window) -> (Vec<(Span, f64)>, u64) {
        let mut rows = self.rows(window);
        let value = |row: usize| self.series.counter(counter, row, self.line);
        let mut before = (0..rows.start)
            .rev()
            .find_map(|row| Some((self.line.time(row), value(row)?)));
        let (mut increments, mut resets) = (Vec::new(), 0);
        for row in rows.by_ref() {
            let Some(now) = value(row) else {
                continue;
            };
            let end = self.line.time(row);
            if let Some((start, before)) = before {
                let gap = end.saturating_sub(start) > window.max_age;
                if now < before {
                    resets += 1;
                } else if !(gap && (window.last_only || start < window.span.start)) {
                    increments.push((Span { start, end }, now - before));
                }
            }
            before = Some((end, now));
        }
        (increments, resets)
    }

    /// The row at the window's end, if it is not too old and tells of the device.
    pub(crate) fn end(&self, window: &Window) -> Option<usize> {
        let row = self.rows(window).end.checked_sub(1)?;
        let row = if window.last_only {
            self.line.len() - 1
        } else {
            row
        };
        let fresh = window.span.end.saturating_sub(self.line.time(row)) <= window.max_age;
        (fresh && self.series.is_present(row, self.line)).then_some(row)
    }
}

/// How much of the window values cover.
pub(crate) fn weight<T>(pieces: &[(Piece, T)]) -> Nanos {
    pieces
        .iter()
        .fold(0, |sum: Nanos, (piece, _)| sum.saturating_add(piece.weight))
}

/// The mean by time.
pub(crate) fn mean(pieces: &[(Piece, f64)]) -> Option<f64> {
    let all = weight(pieces);
    #[expect(clippy::cast_precision_loss, reason = "relative weights")]
    let sum: f64 = pieces
        .iter()
        .map(|(piece, value)| value * (piece.weight as f64 / all as f64))
        .sum();
    (all > 0).then(|| plain(sum))
}

/// The shortest number with the seven digits that are kept.
pub(crate) fn plain(value: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "seven digits are kept")]
    let short = value as f32;
    short.to_string().parse().unwrap_or(value)
}

/// The source that tells of a gauge: see the module.
pub(crate) fn choose<'a>(
    parts: &[Part<'a>],
    gauge: Gauge,
    window: &Window,
) -> Option<(Part<'a>, Vec<(Piece, f64)>)> {
    let mut best: Option<(Part<'a>, Vec<(Piece, f64)>)> = None;
    for part in parts {
        let pieces = part.gauge(gauge, window);
        if pieces.is_empty() {
            continue;
        }
        let wins = best.as_ref().is_none_or(|(_, before)| {
            !window.last_only && u128::from(weight(&pieces)) * 4 > u128::from(weight(before)) * 5
        });
        if wins {
            best = Some((*part, pieces));
        }
    }
    best
}
