//! Whose use of a device it was.
//!
//! The device's use is cut into pieces of time, one for each sample. Of a piece:
//! - in which the device did nothing, the share of each holder is 0;
//! - in which one container alone held the device for certain, and no process of another was on it, that container did what
//!   the device did;
//! - otherwise each container's share is what was measured at its processes, and unknown where nothing was. Where processes
//!   come to more than the device, all are scaled down to it;
//! - in which a holder came or left, nobody's.
//!
//! A share that is unknown in one piece is unknown as a whole: what is known of the rest would be taken for all of it. So the
//! shares of a device never sum up to more than the device.

use orb8_proto::v1::GpuMethod;

use crate::{
    history::{Counter, Doing, Gauge, Hold, Level, Says, User},
    merge::{self, Part, Piece, Window},
    owners::Owner,
    span::{Nanos, Span},
};

/// A container, or a process of nobody's, and its part in a device.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    /// None: nobody knows whose process it is.
    pub(crate) owner: Option<Owner>,
    pub(crate) method: GpuMethod,
    pub(crate) utilization: Option<f64>,
    pub(crate) memory: Option<u64>,
    pub(crate) energy: Option<f64>,
    pub(crate) resource: String,
    pub(crate) claim: Option<String>,
    pub(crate) device_ids: Vec<String>,
    pub(crate) pids: Vec<u32>,
    /// Of a holder: since when, and until when, if it has left.
    pub(crate) held: Option<(Nanos, Option<Nanos>)>,
    /// When it held the device for certain, within the window.
    pub(crate) certain: Vec<Span>,
}

/// What shares are told of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) parts: &'a [Part<'a>],
    pub(crate) holds: &'a [Hold],
    pub(crate) window: &'a Window,
    pub(crate) is_instance: bool,
    /// It is cut into instances, which tell its use.
    pub(crate) is_cut: bool,
    /// Somebody says who holds devices.
    pub(crate) has_holders: bool,
    /// Who holds another instance of the same GPU, or all of it.
    pub(crate) relatives: &'a [Owner],
}

/// Somebody on the device, while shares are summed up.
struct Candidate<'a> {
    owner: Option<Owner>,
    holds: Vec<&'a Hold>,
    users: Vec<&'a User>,
    weighted: f64,
    pieces: u32,
    by_process: bool,
    by_device: bool,
    is_unknown: bool,
    /// In each piece that counted for it the device did nothing.
    only_idle: bool,
    memory: Option<u64>,
    energy: Option<f64>,
}

/// The gauge that tells a device's use: instances have no utilization, but a share of the time that their graphics engine was
/// active.
pub(crate) fn use_of<'a>(parts: &[Part<'a>], window: &Window) -> Option<(Part<'a>, Vec<(Piece, f64)>)> {
    merge::choose(parts, Gauge::Utilization, window)
        .or_else(|| merge::choose(parts, Gauge::GraphicsActive, window))
}

/// Everybody's share of a device, holders first.
pub(crate) fn shares(scene: &Scene<'_>) -> Vec<Share> {
    let mut all = candidates(scene);
    share_use(scene, &mut all);
    share_memory(scene, &mut all);
    share_energy(scene, &mut all);
    let holders: Vec<Owner> = all
        .iter()
        .filter(|one| !one.holds.is_empty())
        .filter_map(|one| one.owner.clone())
        .collect();
    all.into_iter()
        .map(|candidate| candidate.finish(scene, &holders))
        .collect()
}

fn candidates<'a>(scene: &Scene<'a>) -> Vec<Candidate<'a>> {
    let mut all: Vec<Candidate<'a>> = Vec::new();
    let moment = scene.window.span;
    for hold in scene.holds {
        let shown = hold.shown();
        let is_in = shown.start <= moment.end && shown.end >= moment.start;
        if !is_in {
            continue;
        }
        match find(&mut all, &hold.owner) {
            Some(known) => known.holds.push(hold),
            None => {
                let mut new = Candidate::new(Some(hold.owner.clone()));
                new.holds.push(hold);
                all.push(new);
            }
        }
    }
    for part in scene.parts {
        for user in &part.series.users {
            let present = part
                .rows(scene.window)
                .any(|row| matches!(part.series.doing(user, row, part.line), Doing::Present { .. }));
            if !present {
                continue;
            }
            let known = match &user.owner {
                Some(owner) => {
                    let exact = all
                        .iter()
                        .position(|one| one.owner.as_ref().is_some_and(|known| known.is_same(owner)));
                    exact
                        .or_else(|| only_holder_of_pod(&all, owner))
                        .and_then(|index| all.get_mut(index))
                }
                None => None,
            };
            match known {
                Some(known) => {
                    if let (Some(known), Some(owner)) = (&mut known.owner, &user.owner) {
                        known.learn(owner.clone());
                    }
                    known.users.push(user);
                }
                None => {
                    let mut new = Candidate::new(user.owner.clone());
                    new.users.push(user);
                    all.push(new);
                }
            }
        }
    }
    all
}

/// A process is its pod's, even if its container is not known by name: the holder's, if the pod has but one.
fn only_holder_of_pod(all: &[Candidate<'_>], owner: &Owner) -> Option<usize> {
    if !owner.has_nameless_container() {
        return None;
    }
    let mut holders = (0..all.len()).filter(|index| {
        let one = &all[*index];
        !one.holds.is_empty() && one.owner.as_ref().is_some_and(|known| known.is_same_pod(owner))
    });
    holders.next().filter(|_| holders.next().is_none())
}

fn find<'c, 'a>(all: &'c mut [Candidate<'a>], owner: &Owner) -> Option<&'c mut Candidate<'a>> {
    all.iter_mut()
        .find(|one| one.owner.as_ref().is_some_and(|known| known.is_same(owner)))
}

impl<'a> Candidate<'a> {
    const fn new(owner: Option<Owner>) -> Self {
        Self {
            owner,
            holds: Vec::new(),
            users: Vec::new(),
            weighted: 0.0,
            pieces: 0,
            by_process: false,
            by_device: false,
            is_unknown: false,
            only_idle: true,
            memory: None,
            energy: None,
        }
    }

    fn may_hold(&self, span: Span) -> bool {
        self.holds.iter().any(|hold| hold.may_touch(span))
    }

    fn holds(&self, span: Span, max_age: Nanos) -> bool {
        self.holds
            .iter()
            .any(|hold| hold.certain(max_age).is_some_and(|certain| certain.holds(span)))
    }

    fn doing(&self, part: &Part<'_>, row: usize) -> Doing {
        // Of several users that turned out to be the same, each tells a part.
        let mut all = Doing::Absent;
        if !part.series.tells_processes(row, part.line) {
            return Doing::Unknown;
        }
        if self.users.is_empty() && !part.series.is_complete(row, part.line) {
            return Doing::Unknown;
        }
        for user in &self.users {
            all = match (all, part.series.doing(user, row, part.line)) {
                (Doing::Unknown, _) | (_, Doing::Unknown) => Doing::Unknown,
                (Doing::Absent, other) | (other, Doing::Absent) => other,
                (
                    Doing::Present { utilization, memory },
                    Doing::Present {
                        utilization: more,
                        memory: further,
                    },
                ) => Doing::Present {
                    utilization: utilization.zip(more).map(|(one, other)| one + other),
                    memory: memory.zip(further).map(|(one, other)| one + other),
                },
            };
        }
        all
    }

    fn told(&mut self, share: f64, weight: Nanos) {
        #[expect(clippy::cast_precision_loss, reason = "relative weights")]
        {
            self.weighted += share * weight as f64;
        }
        self.pieces += 1;
    }

    /// `holders`: all who hold the device.
    fn finish(self, scene: &Scene<'_>, holders: &[Owner]) -> Share {
        let alone = holders.len() == 1;
        let window = scene.window;
        let is_holder = !self.holds.is_empty();
        let total = use_of(scene.parts, window).map_or(0, |(_, pieces)| merge::weight(&pieces));
        #[expect(clippy::cast_precision_loss, reason = "relative weights")]
        let utilization = (self.pieces > 0 && !self.is_unknown && total > 0)
            .then(|| merge::plain(self.weighted / total as f64));
        let by_kubelet = self.holds.iter().any(|hold| hold.says == Says::Kubelet);
        let sole = if scene.is_instance {
            GpuMethod::Mig
        } else {
            GpuMethod::Exclusive
        };
        // What its pod holds, a container of it may use.
        let is_relative = self.owner.as_ref().is_some_and(|owner| {
            let mut all = scene.relatives.iter().chain(holders);
            all.any(|relative| relative.is_same(owner) || relative.is_same_pod(owner))
        });
        let method = if !is_holder {
            if scene.has_holders && !is_relative {
                GpuMethod::UnallocatedUse
            } else {
                GpuMethod::NvmlPid
            }
        } else if utilization.is_some() && self.only_idle {
            GpuMethod::AllocatedIdle
        } else if self.is_unknown {
            match (self.memory.is_some(), self.by_process) {
                (true, true) => GpuMethod::NvmlPid,
                // It held the device alone in the end.
                (true, false) => sole,
                (false, _) => GpuMethod::SharedEstimate,
            }
        } else if self.by_process {
            GpuMethod::NvmlPid
        } else if self.by_device || by_kubelet && (alone || self.memory.is_some()) {
            // Memory that was not measured at processes is that of who held the device alone in the end.
            sole
        } else {
            GpuMethod::SharedEstimate
        };
        let mut device_ids: Vec<String> = self
            .holds
            .iter()
            .filter(|hold| hold.absent_after.is_none() || !window.last_only)
            .flat_map(|hold| hold.device_ids.clone())
            .collect();
        device_ids.sort_unstable();
        device_ids.dedup();
        let first = self.holds.iter().map(|hold| hold.first).min();
        let until = match self.holds.iter().any(|hold| hold.absent_after.is_none()) {
            true => None,
            false => self.holds.iter().map(|hold| hold.last).max(),
        };
        // Where nobody hands devices out, whoever is on one holds it.
        let occupied = if scene.has_holders || is_holder {
            None
        } else {
            self.occupied(scene)
        };
        let looked_at = scene
            .parts
            .iter()
            .filter(|part| !part.series.users.is_empty())
            .find_map(|part| {
                let rows = part.rows(window);
                let last = rows.end.checked_sub(1)?;
                let first = if window.last_only {
                    last
                } else {
                    rows.start.min(last)
                };
                Some(Span {
                    start: part.line.time(first),
                    end: part.line.time(last),
                })
            });
        let mut pids: Vec<u32> = looked_at.map_or_else(Vec::new, |span| {
            self.users.iter().flat_map(|user| user.pids(span)).collect()
        });
        pids.sort_unstable();
        pids.dedup();
        let mut certain: Vec<Span> = self
            .holds
            .iter()
            .filter_map(|hold| hold.certain(window.max_age)?.common(window.span))
            .collect();
        let mut held = first.map(|first| (first, until));
        if let Some((spans, until)) = occupied {
            held = spans.first().map(|span| (span.start, until));
            certain = spans
                .into_iter()
                .filter_map(|span| span.common(window.span))
                .collect();
        }
        Share {
            method,
            utilization,
            memory: self.memory,
            energy: self.energy,
            resource: self
                .holds
                .first()
                .map(|hold| hold.resource.clone())
                .unwrap_or_default(),
            claim: self.holds.iter().find_map(|hold| hold.claim.clone()),
            device_ids,
            pids,
            held,
            certain: Span::union(certain),
            owner: self.owner,
        }
    }
}

impl Candidate<'_> {
    /// When its processes were seen on the device within the window, and since when they are not any more.
    fn occupied(&self, scene: &Scene<'_>) -> Option<(Vec<Span>, Option<Nanos>)> {
        let part = scene.parts.iter().find(|part| {
            part.rows(scene.window)
                .any(|row| part.series.tells_processes(row, part.line))
        })?;
        let mut spans = Vec::new();
        let mut until = None;
        for row in part.rows(scene.window) {
            let covered = part.line.covered(row, scene.window.max_age);
            match self.doing(part, row) {
                Doing::Present { .. } => {
                    spans.push(covered);
                    until = None;
                }
                Doing::Absent => until = until.or(Some(covered.start)),
                Doing::Unknown => {}
            }
        }
        Some((Span::union(spans), until))
    }
}

/// The part that tells of processes, and its row of a moment.
fn processes_at<'a>(scene: &Scene<'a>, moment: Nanos) -> Option<(Part<'a>, usize)> {
    scene.parts.iter().find_map(|part| {
        let next = part.line.from(moment);
        let row = if next < part.line.len() {
            next
        } else {
            next.checked_sub(1)?
        };
        let is_near = part.line.time(row).abs_diff(moment) <= scene.window.max_age;
        (is_near && part.series.tells_processes(row, part.line)).then_some((*part, row))
    })
}

/// Who alone holds the device for certain in all of a span, and no other was seen on it.
fn sole_holder(scene: &Scene<'_>, all: &[Candidate<'_>], span: Span) -> Option<usize> {
    let mut holding = (0..all.len()).filter(|index| all[*index].may_hold(span));
    let sole = holding.next()?;
    if holding.next().is_some() || !all[sole].holds(span, scene.window.max_age) {
        return None;
    }
    let intruded = processes_at(scene, span.end).is_some_and(|(part, row)| {
        all.iter().enumerate().any(|(index, other)| {
            index != sole
                && !other.users.is_empty()
                && matches!(other.doing(&part, row), Doing::Present { .. })
        })
    });
    (!intruded).then_some(sole)
}

fn share_use(scene: &Scene<'_>, all: &mut [Candidate<'_>]) {
    if scene.is_cut {
        return;
    }
    let max_age = scene.window.max_age;
    let Some((_, pieces)) = use_of(scene.parts, scene.window) else {
        return;
    };
    for (Piece { span, weight, .. }, value) in pieces {
        if value == 0.0 {
            for one in all.iter_mut() {
                if one.holds(span, max_age) {
                    one.told(0.0, weight);
                }
            }
            // Who does not hold it is on it, and does nothing, too.
            if let Some((part, row)) = processes_at(scene, span.end) {
                for one in all.iter_mut().filter(|one| one.holds.is_empty()) {
                    if matches!(one.doing(&part, row), Doing::Present { .. } | Doing::Absent) {
                        one.by_process = true;
                        one.told(0.0, weight);
                    }
                }
            }
            continue;
        }
        if let Some(sole) = sole_holder(scene, all, span) {
            all[sole].by_device = true;
            all[sole].only_idle = false;
            all[sole].told(value, weight);
            continue;
        }
        share_by_process(scene, all, span, value, weight);
    }
}

/// A piece that no container had for itself.
fn share_by_process(scene: &Scene<'_>, all: &mut [Candidate<'_>], span: Span, value: f64, weight: Nanos) {
    let max_age = scene.window.max_age;
    let doing: Vec<Doing> = match processes_at(scene, span.end) {
        Some((part, row)) => all.iter().map(|one| one.doing(&part, row)).collect(),
        None => vec![Doing::Unknown; all.len()],
    };
    let sum: f64 = doing
        .iter()
        .map(|doing| match doing {
            Doing::Present { utilization, .. } => utilization.unwrap_or_default(),
            Doing::Unknown | Doing::Absent => 0.0,
        })
        .sum();
    let scale = if sum > value { value / sum } else { 1.0 };
    let sharing = all
        .iter()
        .filter(|one| {
            one.holds
                .iter()
                .any(|hold| hold.seen(max_age).overlap(span) > 0 || hold.seen(max_age).holds(span))
        })
        .count();
    for (one, doing) in all.iter_mut().zip(doing) {
        let is_holder = one.may_hold(span);
        match doing {
            Doing::Present {
                utilization: Some(share),
                ..
            } => {
                one.by_process = true;
                one.only_idle = false;
                one.told(share * scale, weight);
            }
            Doing::Present {
                utilization: None, ..
            } => {
                one.by_process = true;
                one.only_idle = false;
                one.is_unknown = true;
            }
            Doing::Absent if is_holder => {
                one.by_process = true;
                one.only_idle = false;
                one.told(0.0, weight);
            }
            // Where one came as another left, nothing is shared: the piece is nobody's.
            Doing::Unknown if is_holder && (sharing > 1 || !one.holds_only_by_kubelet()) => {
                one.only_idle = false;
                one.is_unknown = true;
            }
            Doing::Unknown if is_holder && one.holds(span, max_age) => {
                one.only_idle = false;
                one.is_unknown = true;
            }
            Doing::Absent | Doing::Unknown => {}
        }
    }
}

impl Candidate<'_> {
    fn holds_only_by_kubelet(&self) -> bool {
        self.holds.iter().all(|hold| hold.says == Says::Kubelet)
    }
}

fn share_memory(scene: &Scene<'_>, all: &mut [Candidate<'_>]) {
    if scene.is_cut {
        return;
    }
    let told = scene.parts.iter().find_map(|part| {
        let row = part.end(scene.window)?;
        let used = part.series.level(Level::Used, row, part.line)?;
        Some((part.line.time(row), used))
    });
    let moment = told.map_or(scene.window.span.end, |(time, _)| time);
    let span = Span {
        start: moment,
        end: moment,
    };
    let used = told.map(|(_, used)| whole(used));
    if let Some(used) = used
        && let Some(sole) = sole_holder(scene, all, span)
    {
        all[sole].memory = Some(used);
        return;
    }
    let Some((part, row)) = processes_at(scene, moment) else {
        return;
    };
    let doing: Vec<Doing> = all.iter().map(|one| one.doing(&part, row)).collect();
    let sum = doing.iter().fold(0_u64, |sum, doing| match doing {
        Doing::Present {
            memory: Some(memory), ..
        } => sum.saturating_add(whole(*memory)),
        _ => sum,
    });
    for (one, doing) in all.iter_mut().zip(doing) {
        match doing {
            Doing::Present {
                memory: Some(memory), ..
            } => {
                one.by_process = true;
                one.memory = Some(match used {
                    Some(used) if sum > used => scaled(whole(memory), used, sum),
                    _ => whole(memory),
                });
            }
            Doing::Absent if one.may_hold(span) => {
                one.by_process = true;
                one.memory = Some(0);
            }
            Doing::Present { .. } | Doing::Absent | Doing::Unknown => {}
        }
    }
}

/// `part` of `sum`, of `all` instead.
fn scaled(part: u64, all: u64, sum: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(all) / u128::from(sum.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are whole numbers below 2^53"
)]
pub(crate) fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

fn share_energy(scene: &Scene<'_>, all: &mut [Candidate<'_>]) {
    if scene.is_cut || scene.is_instance {
        return;
    }
    let told = scene.parts.iter().find_map(|part| {
        let (increments, _) = part.increments(Counter::Energy, scene.window);
        (!increments.is_empty()).then_some(increments)
    });
    for (span, joules) in told.unwrap_or_default() {
        if let Some(sole) = sole_holder(scene, all, span) {
            *all[sole].energy.get_or_insert(0.0) += joules;
        }
    }
}
