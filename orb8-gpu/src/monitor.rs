//! All that is known of a node's GPUs: samples of the last minutes, and who held which device when.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    time::Duration,
};

use orb8_proto::v1::{GpuEvent, GpuSource};

use crate::{
    allocation::{Allocations, Held},
    answer,
    driver::Gpu,
    foreign::{self, Foreign},
    history::{COUNTERS, Counter, Hold, Says, Series, Timeline, Use},
    id::{DeviceId, DeviceKey, Uuid},
    labelled::{self, Labelled, Listed},
    merge::{self, Aliases, Identity, Part, SOURCES, Told},
    nvml::XidEvent,
    owners::{Owner, Owners},
    resolve::{self, Names},
    sample::{Claim, Mig, Snapshot, Source},
    span::{Nanos, length, nanos, timestamp},
    xid::{self, Errors},
};

/// What a [`Monitor`] keeps at most. What finds no room is counted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Samples of each source.
    pub history: usize,
    /// Devices, instances among them.
    pub devices: usize,
    /// Containers whose processes were seen on one device.
    pub users: usize,
    /// Containers that hold a device, or held it within the history; of each device.
    pub holders: usize,
}

impl Default for Limits {
    /// An hour of samples, 5 s apart, of a node with 16 GPUs of seven instances each.
    fn default() -> Self {
        Self {
            history: 720,
            devices: 256,
            users: 64,
            holders: 64,
        }
    }
}

/// What could not be kept or used, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Samples of sources.
    pub samples: u64,
    /// Devices in them, each once a sample.
    pub devices: u64,
    /// Values that were taken in.
    pub values: u64,
    /// Values that were told and could not be used.
    pub rejected: u64,
    /// Devices, processes and holders beyond the limits.
    pub refused: u64,
    /// GPUs of other nodes that an exporter's page told of, each once a page.
    pub foreign: u64,
    /// Answers of the kubelet.
    pub allocations: u64,
    /// XID errors that were told.
    pub errors: u64,
}

/// State of a node's GPUs. It does no I/O: samples and allocations are handed in, whenever they come.
#[derive(Debug)]
pub struct Monitor {
    pub(crate) node: String,
    pub(crate) interval: Nanos,
    limits: Limits,
    pub(crate) lines: [Timeline; SOURCES.len()],
    pub(crate) devices: BTreeMap<DeviceKey, Known>,
    aliases: Aliases,
    labelled: Labelled,
    pub(crate) sources: Vec<GpuSource>,
    pub(crate) kubelet: Option<Kubelet>,
    /// Of each source, devices of its last sample that have no name.
    pub(crate) unnamed: [Vec<String>; SOURCES.len()],
    counted: Counted,
}

/// What the kubelet said last.
#[derive(Debug)]
pub(crate) struct Kubelet {
    pub(crate) time: Nanos,
    /// It has not answered since.
    pub(crate) is_silent: bool,
    pub(crate) held: Vec<Granted>,
}

/// Devices that a container holds.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) held: Held,
    pub(crate) ids: Vec<DeviceId>,
    pub(crate) owner: Owner,
}

/// What is known of a device.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) identities: [Identity; SOURCES.len()],
    pub(crate) series: [Series; SOURCES.len()],
    pub(crate) holds: Vec<Hold>,
    /// When any source told of it last.
    told: Nanos,
    /// Of an instance that is known by its own UUID only.
    pub(crate) parent: Option<Uuid>,
    claims: Vec<Claim>,
    errors: Errors,
    /// When holders were last looked up.
    settled: Option<Nanos>,
    totals: [Total; COUNTERS],
}

/// All that a counter rose by since the agent's start.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    sum: f64,
    is_told: bool,
    /// As each source told it last.
    last: [Option<(Nanos, f64)>; SOURCES.len()],
}

impl Known {
    /// What the device goes by: NVML's word goes before the exporter's.
    pub(crate) fn identity(&self) -> Identity {
        let mut best = Identity::default();
        for told in &self.identities {
            best.index = best.index.or(told.index);
            best.minor = best.minor.or(told.minor);
            for (place, value) in [
                (&mut best.model, &told.model),
                (&mut best.driver, &told.driver),
                (&mut best.pci, &told.pci),
            ] {
                if place.is_none() {
                    place.clone_from(value);
                }
            }
            if let Some(mig) = &told.mig {
                let known = best.mig.get_or_insert_with(Mig::default);
                known.uuid = known.uuid.take().or_else(|| mig.uuid.clone());
                known.profile = known.profile.take().or_else(|| mig.profile.clone());
                known.others.extend(mig.others.iter().cloned());
                known.place = known.place.or(mig.place);
                known.slots.extend(&mig.slots);
            }
        }
        best
    }

    pub(crate) fn parts<'a>(&'a self, lines: &'a [Timeline; SOURCES.len()]) -> [Part<'a>; SOURCES.len()] {
        std::array::from_fn(|source| Part {
            source,
            line: &lines[source],
            series: &self.series[source],
        })
    }

    /// What a counter rose by since the start; none: nobody tells it.
    pub(crate) fn total(&self, counter: Counter) -> Option<f64> {
        let total = self.totals[counter as usize];
        total.is_told.then_some(total.sum)
    }

    fn count(&mut self, source: usize, counters: [Option<f64>; COUNTERS], time: Nanos, max_age: Nanos) {
        for (total, now) in self.totals.iter_mut().zip(counters) {
            let Some(now) = now else { continue };
            total.is_told = true;
            let before = total.last[source].replace((time, now));
            // Two sources count the same; who wins counts, while it does.
            let better = (0..source)
                .any(|other| total.last[other].is_some_and(|(at, _)| at.abs_diff(time) <= max_age));
            if let Some((_, before)) = before
                && !better
                && now > before
            {
                total.sum += now - before;
            }
        }
    }

    /// Takes in who holds it now, at `time`.
    fn settle(&mut self, holding: Vec<Hold>, time: Nanos, max: usize) -> u64 {
        let before = self.settled.filter(|settled| *settled < time);
        let mut refused = 0;
        for hold in &mut self.holds {
            let stays = holding.iter().any(|new| hold.is_continued_by(new));
            if hold.absent_after.is_none() && !stays {
                hold.absent_after = Some(time);
            }
        }
        for new in holding {
            let known = self
                .holds
                .iter()
                .position(|hold| hold.absent_after.is_none() && hold.is_continued_by(&new));
            match known {
                Some(known) => {
                    let hold = &mut self.holds[known];
                    hold.last = hold.last.max(time);
                    hold.device_ids = new.device_ids;
                    hold.owner.learn(new.owner);
                }
                None if self.holds.len() >= max => {
                    // Who left first makes room.
                    let gone = (0..self.holds.len())
                        .filter(|index| self.holds[*index].absent_after.is_some())
                        .min_by_key(|index| self.holds[*index].last);
                    match gone {
                        Some(gone) => {
                            self.holds[gone] = Hold {
                                absent_before: before,
                                ..new
                            };
                        }
                        None => refused += 1,
                    }
                }
                None => self.holds.push(Hold {
                    absent_before: before,
                    ..new
                }),
            }
        }
        self.settled = Some(time);
        refused
    }
}

impl Hold {
    /// Whether it goes on in what is said now.
    fn is_continued_by(&self, new: &Self) -> bool {
        self.says == new.says
            && self.resource == new.resource
            && self.claim == new.claim
            && self.owner.is_same(&new.owner)
    }
}

impl Monitor {
    /// Of a node without any sample yet. `interval` lies between samples.
    #[must_use]
    pub fn new(node: impl Into<String>, interval: Duration, limits: Limits) -> Self {
        Self {
            node: node.into(),
            interval: length(interval).max(1),
            limits,
            lines: Default::default(),
            devices: BTreeMap::new(),
            aliases: HashMap::new(),
            labelled: Labelled::default(),
            sources: Vec::new(),
            kubelet: None,
            unnamed: Default::default(),
            counted: Counted::default(),
        }
    }

    /// What is told of the sources in answers.
    pub fn set_sources(&mut self, sources: Vec<GpuSource>) {
        self.sources = sources;
    }

    /// What was taken in and what was not, since the start.
    #[must_use]
    pub const fn counted(&self) -> Counted {
        self.counted
    }

    /// Devices that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether no device is known, and none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
            && self
                .kubelet
                .as_ref()
                .is_none_or(|kubelet| kubelet.held.is_empty())
    }

    /// Memory that it takes, about, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let devices: usize = self
            .devices
            .values()
            .map(|known| {
                size_of::<Known>()
                    + known.series.iter().map(Series::bytes).sum::<usize>()
                    + known.holds.iter().map(Hold::bytes).sum::<usize>()
            })
            .sum();
        devices + self.lines.iter().map(Timeline::bytes).sum::<usize>()
    }

    /// What is older than this was before, and tells nothing of now: three samples, and a second for their delay.
    pub(crate) const fn max_age(&self) -> Nanos {
        self.interval.saturating_mul(3).saturating_add(1_000_000_000)
    }

    /// Takes GPUs of other nodes out of an exporter's sample, and counts them. `gpus`: this node's, as its driver tells them.
    pub fn own(&mut self, snapshot: &mut Snapshot, gpus: &[Gpu], owners: &dyn Owners) -> Vec<Foreign> {
        if snapshot.source != Source::Dcgm {
            return Vec::new();
        }
        let nvml = merge::number(Source::Nvml);
        let told = self.devices.iter().filter(|(key, known)| {
            let is_of_nvml = !known.series[nvml].is_empty();
            is_of_nvml && !merge::is_mig(&key.uuid)
        });
        let own = told
            .map(|(key, _)| &key.uuid)
            .chain(gpus.iter().filter_map(|gpu| gpu.uuid.as_ref()))
            .cloned()
            .collect();
        let is_elsewhere = |host: &str| owners.is_elsewhere(host);
        let foreign = foreign::take(&mut snapshot.devices, &own, &self.node, is_elsewhere);
        for uuid in foreign.iter().flat_map(|foreign| &foreign.uuids) {
            self.counted.foreign += 1;
            // Before that was known, they may have been taken in.
            self.devices
                .retain(|key, known| key.uuid != *uuid || !known.series[nvml].is_empty());
        }
        foreign
    }

    /// Takes in a sample. Whose its processes are is asked now. Returns XID errors that it shows for the first time.
    pub fn sample(&mut self, snapshot: Snapshot, owners: &dyn Owners) -> Vec<GpuEvent> {
        let source = merge::number(snapshot.source);
        let time = nanos(snapshot.time);
        self.counted.rejected += snapshot.rejected;
        match self.lines[source].last() {
            Some(last) if last == time => {
                self.counted.rejected += 1;
                return Vec::new();
            }
            // The clock was set back: what was before has a time that is yet to come.
            Some(last) if last > time => {
                self.forget(source);
                self.set_back(time);
            }
            _ => {}
        }
        self.counted.samples += 1;
        let (mut told, refused) = merge::join(snapshot.devices, &mut self.aliases, self.limits.devices);
        self.counted.refused += refused;
        self.counted.devices += told.len() as u64;
        self.counted.values += told.values().map(|told| told.row.values()).sum::<u64>();
        self.rename();
        for key in told.keys() {
            if self.devices.contains_key(key) {
                continue;
            }
            if self.devices.len() >= self.limits.devices
                && let Some(gone) = self.longest_gone(source, &told)
            {
                self.devices.remove(&gone);
            }
            if self.devices.len() < self.limits.devices {
                self.devices.insert(key.clone(), Known::default());
            } else {
                self.counted.refused += 1;
            }
        }
        self.lines[source].push(time, self.limits.history);
        self.unnamed[source] = snapshot.unnamed;
        let max_age = self.max_age();
        let has_kubelet = self.kubelet.is_some();
        let mut seen: HashMap<u32, Option<Owner>> = HashMap::new();
        let mut errors = Vec::new();
        for (key, known) in &mut self.devices {
            let row = told.remove(key).map(|told| {
                let Told {
                    identity,
                    mut row,
                    processes,
                    claims,
                    parent,
                } = told;
                known.identities[source] = identity;
                known.told = known.told.max(time);
                known.parent = known.parent.take().or(parent);
                if SOURCES[source] == Source::Dcgm {
                    known.claims = claims;
                }
                known.count(source, row.counters, time, max_age);
                if let Some(number) = row.xid
                    && known.errors.shows(source, number, time, max_age)
                {
                    errors.push((key.clone(), number));
                }
                row.uses = processes.map(|processes| {
                    let uses = processes.into_iter().map(|process| Use {
                        pid: process.pid,
                        owner: seen
                            .entry(process.pid)
                            .or_insert_with(|| {
                                // The kubelet tells names only: of a pod without one nobody knows whether it is a holder.
                                owners
                                    .of_pid(process.pid)
                                    .filter(|owner| !(has_kubelet && owner.is_nameless_pod()))
                            })
                            .clone(),
                        utilization: process.utilization.filter(|share| (0.0..=1.0).contains(share)),
                        memory: process.memory_bytes,
                    });
                    uses.collect()
                });
                row
            });
            self.counted.refused +=
                known.series[source].push(row, time, self.limits.history, self.limits.users);
        }
        self.settle(time, owners);
        self.tidy();
        errors
            .into_iter()
            .map(|(key, xid)| self.event(&key, xid, time))
            .collect()
    }

    /// Takes in who holds what. Devices that are no GPUs are passed over.
    pub fn allocate(&mut self, allocations: Allocations, owners: &dyn Owners) {
        let time = nanos(allocations.time);
        if self.kubelet.as_ref().is_some_and(|kubelet| kubelet.time > time) {
            self.set_back(time);
        }
        self.counted.allocations += 1;
        self.counted.refused += allocations.refused;
        let mut held: Vec<Granted> = allocations
            .held
            .into_iter()
            .filter(resolve::is_gpu)
            .map(|held| Granted {
                ids: held.devices.iter().map(|id| DeviceId::parse(id)).collect(),
                owner: owner_of(&held.namespace, &held.pod, &held.container, owners),
                held,
            })
            .collect();
        let most = self.limits.devices.saturating_mul(self.limits.holders);
        self.counted.refused += held.len().saturating_sub(most) as u64;
        held.truncate(most);
        self.kubelet = Some(Kubelet {
            time,
            is_silent: false,
            held,
        });
        self.settle(time, owners);
        self.tidy();
    }

    /// The kubelet could not be asked: its last word stands, and answers say how old it is.
    pub fn allocations_unknown(&mut self) {
        if let Some(kubelet) = &mut self.kubelet {
            kubelet.is_silent = true;
        }
    }

    /// Takes in an error as the driver reports it. None: it has been told already, or is of a device that is not known.
    pub fn happened(&mut self, event: &XidEvent) -> Option<GpuEvent> {
        let (time, max_age) = (nanos(event.time), self.max_age());
        let number = event.xid?;
        let mut key = event.key.clone();
        if !self.devices.contains_key(&key) {
            // Of an instance that nobody has listed its GPU is what is known.
            key.instance = None;
        }
        let Some(known) = self.devices.get_mut(&key) else {
            self.counted.rejected += 1;
            return None;
        };
        known
            .errors
            .happens(number, time, max_age)
            .then(|| self.event(&key, number, time))
    }

    /// Looks up who holds each device: as the kubelet says; by the exporter's labels only while it has never said anything.
    fn settle(&mut self, time: Nanos, owners: &dyn Owners) {
        self.learn_from_labels();
        let numbers = Numbers::new(self);
        for (key, known) in &mut self.devices {
            let identity = known.identity();
            let names = numbers.names(key, &identity, &self.labelled);
            let (holding, at) = match &self.kubelet {
                Some(kubelet) => (granted(kubelet, &names), kubelet.time),
                None => (claimed(&known.claims, time, owners), time),
            };
            self.counted.refused += known.settle(holding, at, self.limits.holders);
        }
    }

    /// Concludes from an exporter's labels which instances those are that the kubelet calls by UUIDs that no source tells.
    fn learn_from_labels(&mut self) {
        let Some(kubelet) = &self.kubelet else { return };
        let known: HashSet<&Uuid> = self
            .devices
            .values()
            .flat_map(|known| &known.identities)
            .flat_map(|identity| merge::mig_uuids(identity.mig.as_ref()))
            .collect();
        let listed: Vec<Listed<'_>> = kubelet
            .held
            .iter()
            .flat_map(|granted| granted.ids.iter().map(move |id| (granted, id)))
            .filter_map(|(granted, id)| match id {
                DeviceId::Mig { uuid, .. } if !known.contains(uuid) => Some(Listed {
                    uuid,
                    owner: &granted.owner,
                    resource: &granted.held.resource,
                }),
                _ => None,
            })
            .collect();
        let page = merge::number(Source::Dcgm);
        let told: Vec<labelled::Told<'_>> = self
            .devices
            .iter()
            .filter(|(key, known)| key.instance.is_some() && known.parts(&self.lines)[page].is_told_last())
            .map(|(key, known)| (key, known, known.identity().mig))
            .filter(|(_, _, mig)| mig.as_ref().is_none_or(|mig| mig.uuid.is_none()))
            .map(|(key, known, mig)| labelled::Told {
                key,
                profile: mig.and_then(|mig| mig.profile),
                claims: &known.claims,
            })
            .collect();
        let told_at = self.lines[page].last().unwrap_or_default();
        self.labelled.learn(&listed, kubelet.time, &told, told_at);
    }

    /// Instances that went by their own UUIDs get their numbers, once these are known.
    fn rename(&mut self) {
        let renamed: Vec<(DeviceKey, DeviceKey)> = self
            .devices
            .keys()
            .filter(|key| merge::is_mig(&key.uuid))
            .filter_map(|key| Some((key.clone(), self.aliases.get(&key.uuid)?.clone())))
            .collect();
        for (old, new) in renamed {
            if let Some(known) = self.devices.remove(&old) {
                self.devices.entry(new).or_insert(known);
            }
        }
    }

    fn forget(&mut self, source: usize) {
        self.lines[source].clear();
        for known in self.devices.values_mut() {
            known.series[source] = Series::default();
        }
    }

    /// The clock was set back to `time`: what is of later is of a time that is yet to come. Who holds a device does so from
    /// now on; a source that has not been sampled since tells nothing of now.
    fn set_back(&mut self, time: Nanos) {
        let ahead = time.saturating_add(self.max_age());
        for source in 0..SOURCES.len() {
            if self.lines[source].last().is_some_and(|last| last > ahead) {
                self.forget(source);
            }
        }
        for known in self.devices.values_mut() {
            known.told = known.told.min(time);
            known.settled = known.settled.filter(|settled| *settled <= time);
            known
                .holds
                .retain(|hold| hold.absent_after.is_none_or(|after| after <= time));
            for hold in known.holds.iter_mut().filter(|hold| hold.last > time) {
                hold.absent_before = None;
                hold.first = hold.first.min(time);
                hold.last = time;
            }
        }
        if let Some(kubelet) = &mut self.kubelet {
            kubelet.time = kubelet.time.min(time);
        }
    }

    /// A device that no source tells of any more and nobody holds: that of the longest ago. `told` are those of the sample
    /// that comes from `source`.
    fn longest_gone(&self, source: usize, told: &BTreeMap<DeviceKey, Told>) -> Option<DeviceKey> {
        let is_gone = |key: &DeviceKey, known: &Known| {
            let is_told = known
                .parts(&self.lines)
                .iter()
                .any(|part| part.source != source && part.is_told_last());
            let is_held = known.holds.iter().any(|hold| hold.absent_after.is_none());
            !(is_told || is_held || told.contains_key(key))
        };
        self.devices
            .iter()
            .filter(|(key, known)| is_gone(key, known))
            .min_by_key(|(_, known)| known.told)
            .map(|(key, _)| key.clone())
    }

    /// Lets go of what is older than the history.
    fn tidy(&mut self) {
        let first = self
            .lines
            .iter()
            .filter_map(Timeline::first)
            .min()
            .unwrap_or_default();
        self.devices.retain(|_, known| {
            known
                .holds
                .retain(|hold| hold.absent_after.is_none_or(|after| after >= first));
            !(known.series.iter().all(Series::is_empty) && known.holds.is_empty())
        });
        let devices = &self.devices;
        self.aliases.retain(|_, key| devices.contains_key(key));
    }

    fn event(&mut self, key: &DeviceKey, xid: u32, time: Nanos) -> GpuEvent {
        self.counted.errors += 1;
        let device = answer::device_at(self, key, time);
        GpuEvent {
            time: Some(timestamp(time)),
            node: self.node.clone(),
            uuid: device.uuid,
            index: device.index,
            mig: device.mig,
            xid,
            meaning: xid::meaning(xid).to_owned(),
            holders: device.holders,
            hidden_holders: 0,
        }
    }
}

fn owner_of(namespace: &str, pod: &str, container: &str, owners: &dyn Owners) -> Owner {
    let details = owners.pod(namespace, pod, container).unwrap_or_default();
    Owner {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
        uid: details.uid,
        workload: details.workload,
        ..Owner::default()
    }
}

/// Which GPU has which number now: of one that has gone another may have it since.
#[derive(Debug, Default)]
struct Numbers {
    indices: HashMap<u32, Claimant>,
    minors: HashMap<u32, Claimant>,
}

/// A GPU that has a number.
#[derive(Debug)]
struct Claimant {
    /// None: there are several, and nobody knows which is meant.
    uuid: Option<Uuid>,
    rank: Rank,
}

/// How good a claim is: whether NVML's newest sample tells of the GPU, and when any source told of it last.
type Rank = (bool, Nanos);

impl Numbers {
    fn new(monitor: &Monitor) -> Self {
        let latest = monitor.lines.iter().filter_map(Timeline::last).max();
        let is_fresh = |line: &Timeline| {
            line.last()
                .zip(latest)
                .is_some_and(|(last, latest)| latest - last <= monitor.max_age())
        };
        let mut ranks: BTreeMap<&Uuid, Rank> = BTreeMap::new();
        for (key, known) in &monitor.devices {
            let parts = known.parts(&monitor.lines);
            let [nvml, _] = &parts;
            let rank = (is_fresh(nvml.line) && nvml.is_told_last(), known.told);
            let best = ranks.entry(&key.uuid).or_default();
            *best = rank.max(*best);
        }
        let mut numbers = Self::default();
        for (key, known) in &monitor.devices {
            let identity = known.identity();
            let rank = ranks.get(&key.uuid).copied().unwrap_or_default();
            for (number, by) in [
                (identity.index, &mut numbers.indices),
                (identity.minor, &mut numbers.minors),
            ] {
                if let Some(number) = number {
                    claim(by, number, &key.uuid, rank);
                }
            }
        }
        numbers
    }

    fn names<'a>(&self, key: &'a DeviceKey, identity: &'a Identity, labelled: &Labelled) -> Names<'a> {
        let its = |by: &HashMap<u32, Claimant>, number: Option<u32>| {
            number.filter(|number| by.get(number).and_then(|one| one.uuid.as_ref()) == Some(&key.uuid))
        };
        Names {
            key,
            index: its(&self.indices, identity.index),
            minor: its(&self.minors, identity.minor),
            mig: identity.mig.as_ref(),
            labelled: labelled.of(key).cloned().collect(),
        }
    }
}

fn claim(by: &mut HashMap<u32, Claimant>, number: u32, uuid: &Uuid, rank: Rank) {
    let uuid = Some(uuid.clone());
    match by.entry(number) {
        Entry::Vacant(place) => {
            place.insert(Claimant { uuid, rank });
        }
        Entry::Occupied(mut place) => {
            let known = place.get_mut();
            if rank > known.rank {
                *known = Claimant { uuid, rank };
            } else if rank == known.rank && uuid != known.uuid {
                known.uuid = None;
            }
        }
    }
}

/// Who holds a device, by the kubelet's last word.
fn granted(kubelet: &Kubelet, names: &Names<'_>) -> Vec<Hold> {
    kubelet
        .held
        .iter()
        .filter_map(|granted| {
            let device_ids: Vec<String> = granted
                .ids
                .iter()
                .zip(&granted.held.devices)
                .filter(|(id, _)| resolve::matches(id, names))
                .map(|(_, text)| text.clone())
                .collect();
            (!device_ids.is_empty()).then(|| Hold {
                says: Says::Kubelet,
                owner: granted.owner.clone(),
                resource: granted.held.resource.clone(),
                claim: granted.held.claim.clone(),
                device_ids,
                absent_before: None,
                first: kubelet.time,
                last: kubelet.time,
                absent_after: None,
            })
        })
        .collect()
}

/// Who holds a device, by an exporter's labels.
fn claimed(claims: &[Claim], time: Nanos, owners: &dyn Owners) -> Vec<Hold> {
    claims
        .iter()
        .map(|claim| Hold {
            says: Says::Exporter,
            owner: owner_of(&claim.namespace, &claim.pod, &claim.container, owners),
            resource: String::new(),
            claim: None,
            device_ids: Vec::new(),
            absent_before: None,
            first: time,
            last: time,
            absent_after: None,
        })
        .collect()
}

/// What the kubelet calls a device, without the number of a replica.
pub(crate) fn device_text(id: &DeviceId, text: &str) -> String {
    match id.replica() {
        Some(_) => id.device().to_string(),
        None => text.to_owned(),
    }
}

/// Devices that nobody tells of and that are held: by the id that the kubelet gave, without the number of a replica.
pub(crate) fn untold(monitor: &Monitor) -> BTreeMap<String, Vec<&Granted>> {
    let identities: Vec<(&DeviceKey, Identity)> = monitor
        .devices
        .iter()
        .map(|(key, known)| (key, known.identity()))
        .collect();
    let numbers = Numbers::new(monitor);
    let is_told = |id: &DeviceId| {
        identities
            .iter()
            .any(|(key, identity)| resolve::matches(id, &numbers.names(key, identity, &monitor.labelled)))
    };
    let mut untold: BTreeMap<String, Vec<&Granted>> = BTreeMap::new();
    for granted in monitor.kubelet.iter().flat_map(|kubelet| &kubelet.held) {
        for (id, text) in granted.ids.iter().zip(&granted.held.devices) {
            if is_told(id) {
                continue;
            }
            let holders = untold.entry(device_text(id, text)).or_default();
            if !holders.iter().any(|known| std::ptr::eq(*known, granted)) {
                holders.push(granted);
            }
        }
    }
    while untold.len() > monitor.limits.devices {
        untold.pop_last();
    }
    untold
}

#[cfg(test)]
mod tests;
