//! What each workload's calls were so far, and what is new or unusual against that.
//!
//! The rules, all of which a verdict's numbers let one check:
//!
//! - A workload is *watched* while it makes calls: windows of [`WINDOW`] in which it made any, over all its pods. What was
//!   counted while the agent was down, or switched off, is not known and counts for nothing.
//! - Until it has been watched for the warm-up, there are no verdicts about it.
//! - *New*: a call, by ABI and number, that it had never made while it was watched. Said once.
//! - *Anomaly*: the rate of a call in two windows running is more than [`SCORE`] deviations from its mean, and beyond the
//!   highest (or below the lowest) rate that it has had. Mean and variance are weighted by time with a half-life of
//!   [`HALF_LIFE`] of watching; the highest and lowest rates decay towards the mean with it. A deviation is at least what
//!   chance does to counts (√(mean / window)), one call a window, and a tenth of the mean. Calls are judged that the
//!   workload has made for as long as the warm-up. Said once, and again only after the rate has been back within half of
//!   that.
//!
//! Everything is learned, also what is unusual: what goes on becomes usual, within about a half-life.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{call::Call, workload::Workload};

mod saved;

pub use saved::{FILE, StateError, save};

/// Rates are taken over so long.
pub const WINDOW: Duration = Duration::from_secs(10);
/// After so much watching, what was learned weighs half.
pub const HALF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// So many deviations from the mean are unusual.
pub const SCORE: f64 = 6.0;
/// So many windows running.
const CONFIRM: u8 = 2;
/// A rate must be so much beyond the highest, or below the lowest.
const BEYOND: f64 = 1.1;
/// Verdicts that are kept to be asked for.
pub const VERDICTS: usize = 1024;
/// A window that took longer is not judged.
const LONGEST: Duration = Duration::from_secs(90);

/// Bounds of a [`Baseline`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BaselineLimits {
    /// A workload watched for less has no verdicts.
    pub warmup: Duration,
    /// Workloads.
    pub workloads: usize,
    /// Calls of all workloads, each counted once for each workload that makes it.
    pub calls: usize,
}

impl Default for BaselineLimits {
    fn default() -> Self {
        Self {
            warmup: Duration::from_secs(600),
            workloads: 4096,
            calls: 131_072,
        }
    }
}

/// What kind of change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Change {
    /// A call never made before.
    New,
    /// A rate that the history does not explain.
    Anomaly,
}

/// A change of a workload's calls, with the numbers that it rests on.
#[derive(Clone, PartialEq, Debug)]
pub struct Verdict {
    /// The workload.
    pub workload: Workload,
    /// The call.
    pub call: Call,
    /// What kind of change.
    pub change: Change,
    /// Unix time in nanoseconds: the end of the interval, or window, that showed it.
    pub time_ns: u64,
    /// How long the workload has been watched.
    pub watched: Duration,
    /// Calls a second that showed it.
    pub rate: f64,
    /// What the history explains: mean.
    pub mean: f64,
    /// What the history explains: deviation.
    pub deviation: f64,
    /// Deviations from the mean.
    pub score: f64,
    /// What the history explains: the highest rate, or the lowest where the rate fell.
    pub explained: f64,
    /// Calls that showed it.
    pub count: u64,
}

impl Verdict {
    /// The verdict as a sentence.
    #[must_use]
    pub fn explanation(&self) -> String {
        let watched = rough(self.watched);
        let Self {
            workload,
            call,
            rate,
            mean,
            deviation,
            score,
            explained,
            ..
        } = self;
        match self.change {
            Change::New => format!(
                "{workload} made {call} {}, which it had not made in the {watched} that it was watched.",
                if self.count == 1 {
                    "once".to_owned()
                } else {
                    format!("{} times", self.count)
                }
            ),
            Change::Anomaly => {
                let (side, bound) = if *score > 0.0 {
                    ("above", "most")
                } else {
                    ("below", "least")
                };
                format!(
                    "{workload} makes {call} {rate:.1} times a second: {:.1} deviations {side} its mean of {mean:.1} \
                     (deviation {deviation:.1}), where {watched} of watching explain at {bound} {explained:.1}.",
                    score.abs(),
                )
            }
        }
    }
}

/// To two units, for people.
fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let whole = match seconds {
        0..3600 => seconds,
        3600..86_400 => seconds - seconds % 60,
        _ => seconds - seconds % 3600,
    };
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// What is known of a workload's call. Times are seconds of watching its workload.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct CallHistory {
    /// Unix time in nanoseconds.
    first_ns: u64,
    /// When it came.
    since: f64,
    /// Decayed sum of rate × time.
    rates: f64,
    /// Decayed sum of rate² × time; 0: no window is over yet.
    squares: f64,
    /// Decayed highest rate.
    highest: f64,
    /// Decayed lowest rate.
    lowest: f64,
    /// Calls in the open window.
    count: u64,
    /// Unusual windows running.
    unusual: u8,
    /// Rate of the first of them, which is no extreme until the next shows whether it lasts.
    unsettled: Option<f64>,
    /// It has a verdict, and has not been usual since.
    standing: bool,
}

/// Rate, mean, deviation, score, and the rate that is explained.
type Judgement = (f64, f64, f64, f64, f64);

impl CallHistory {
    /// Judges the window of `seconds` that is over. `watched` and `weight` are its workload's before it.
    fn judge(&mut self, seconds: f64, watched: f64, weight: f64, warmup: f64) -> Option<Judgement> {
        if watched - self.since < warmup || weight <= 0.0 || self.squares <= 0.0 {
            return None;
        }
        let rate = self.count as f64 / seconds;
        let mean = self.rates / weight;
        let spread = (self.squares / weight - mean * mean).max(0.0).sqrt();
        let deviation = spread
            .max((mean / seconds).sqrt())
            .max(1.0 / seconds)
            .max(mean / 10.0);
        let score = (rate - mean) / deviation;
        let (explained, beyond) = if score > 0.0 {
            let explained = self.highest * BEYOND;
            (explained, rate > explained)
        } else {
            let explained = self.lowest / BEYOND;
            (explained, rate < explained)
        };
        if score.abs() < SCORE || !beyond {
            self.unusual = 0;
            if score.abs() < SCORE / 2.0 {
                self.standing = false;
            }
            return None;
        }
        self.unusual = self.unusual.saturating_add(1);
        if self.unusual < CONFIRM || self.standing {
            return None;
        }
        self.standing = true;
        Some((rate, mean, deviation, score, explained))
    }

    /// Learns the window that was judged.
    fn learn(&mut self, seconds: f64, weight: f64) {
        let rate = std::mem::take(&mut self.count) as f64 / seconds;
        if self.squares <= 0.0 {
            (self.highest, self.lowest) = (rate, rate);
        }
        let fade = decay(seconds);
        let mean = if weight > 0.0 { self.rates / weight } else { rate };
        self.highest = mean.max(mean + (self.highest - mean) * fade);
        self.lowest = mean.min(mean + (self.lowest - mean) * fade);
        self.rates = self.rates * fade + rate * seconds;
        self.squares = self.squares * fade + rate * rate * seconds;
        if self.unusual == 1 && !self.standing {
            self.unsettled = Some(rate);
            return;
        }
        for rate in self.unsettled.take().into_iter().chain([rate]) {
            self.highest = self.highest.max(rate);
            self.lowest = self.lowest.min(rate);
        }
    }
}

/// What is known of a workload.
#[derive(Clone, Debug, Default)]
struct History {
    calls: BTreeMap<Call, CallHistory>,
    /// Seconds that it has been watched.
    watched: f64,
    /// Decayed sum of that time.
    weight: f64,
    /// Unix time in nanoseconds.
    last_ns: u64,
    /// It made a call in the open window.
    active: bool,
}

fn decay(seconds: f64) -> f64 {
    (-seconds / HALF_LIFE.as_secs_f64()).exp2()
}

/// Baselines of workloads, in bounded memory: what has no room is not learned, has no verdicts, and is counted.
#[derive(Debug)]
pub struct Baseline {
    limits: BaselineLimits,
    workloads: BTreeMap<Workload, History>,
    calls: usize,
    window_from_ns: u64,
    verdicts: VecDeque<Verdict>,
    /// Not handed on yet.
    fresh: Vec<Verdict>,
    counts: BaselineCounts,
}

/// What a [`Baseline`] found and could not keep, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BaselineCounts {
    /// Verdicts of [`Change::New`].
    pub new: u64,
    /// Verdicts of [`Change::Anomaly`].
    pub anomalies: u64,
    /// Verdicts that can no longer be asked for, since later ones took their room.
    pub verdicts_dropped: u64,
    /// Times that a workload, or a call of one, had no room in an interval.
    pub turned_away: u64,
    /// Workloads that made none for a half-life, and gave their room to others.
    pub forgotten: u64,
}

impl Baseline {
    /// Nothing learned. The first window begins at `now_ns` (Unix time).
    #[must_use]
    pub fn new(limits: BaselineLimits, now_ns: u64) -> Self {
        Self {
            limits,
            workloads: BTreeMap::new(),
            calls: 0,
            window_from_ns: now_ns,
            verdicts: VecDeque::new(),
            fresh: Vec::new(),
            counts: BaselineCounts::default(),
        }
    }

    /// Adds the calls of a workload in an interval that ended at `now_ns` (Unix time). Cost: a look-up for each.
    pub fn add(&mut self, workload: &Workload, calls: &[(Call, u64)], now_ns: u64) {
        // Which calls of unknown numbers were is not known.
        let calls = calls
            .iter()
            .filter(|(call, count)| call.has_number() && *count > 0);
        if calls.clone().next().is_none() {
            return;
        }
        if !self.workloads.contains_key(workload) {
            if self.workloads.len() >= self.limits.workloads && !self.forget_quiet(now_ns) {
                self.counts.turned_away += 1;
                return;
            }
            self.workloads.insert(workload.clone(), History::default());
        }
        let Some(history) = self.workloads.get_mut(workload) else {
            return;
        };
        history.active = true;
        history.last_ns = now_ns;
        let warm = history.watched >= self.limits.warmup.as_secs_f64();
        let mut news = Vec::new();
        for &(call, count) in calls {
            if let Some(known) = history.calls.get_mut(&call) {
                known.count = known.count.saturating_add(count);
                continue;
            }
            if self.calls >= self.limits.calls {
                self.counts.turned_away += 1;
                continue;
            }
            self.calls += 1;
            let known = CallHistory {
                first_ns: now_ns,
                since: history.watched,
                count,
                ..CallHistory::default()
            };
            history.calls.insert(call, known);
            if warm {
                news.push(Verdict {
                    workload: workload.clone(),
                    call,
                    change: Change::New,
                    time_ns: now_ns,
                    watched: Duration::from_secs_f64(history.watched),
                    rate: 0.0,
                    mean: 0.0,
                    deviation: 0.0,
                    score: 0.0,
                    explained: 0.0,
                    count,
                });
            }
        }
        for verdict in news {
            self.keep(verdict);
        }
    }

    /// Makes room by forgetting the workload that was quiet for longest, if that was longer than a half-life.
    fn forget_quiet(&mut self, now_ns: u64) -> bool {
        let quietest = self
            .workloads
            .iter()
            .min_by_key(|(_, history)| history.last_ns)
            .filter(|(_, history)| u128::from(now_ns.saturating_sub(history.last_ns)) > HALF_LIFE.as_nanos())
            .map(|(workload, _)| workload.clone());
        let Some(history) = quietest.and_then(|workload| self.workloads.remove(&workload)) else {
            return false;
        };
        self.calls -= history.calls.len();
        self.counts.forgotten += 1;
        true
    }

    fn keep(&mut self, verdict: Verdict) {
        match verdict.change {
            Change::New => self.counts.new += 1,
            Change::Anomaly => self.counts.anomalies += 1,
        }
        if self.fresh.len() < VERDICTS {
            self.fresh.push(verdict.clone());
        }
        if self.verdicts.len() >= VERDICTS {
            self.verdicts.pop_front();
            self.counts.verdicts_dropped += 1;
        }
        self.verdicts.push_back(verdict);
    }

    /// Ends an interval at `now_ns` (Unix time): where a window is over with it, its rates are judged and then learned. The
    /// verdicts since the last call. Cost: at the end of a window, linear in the calls of the workloads that made any.
    pub fn end_interval(&mut self, now_ns: u64) -> Vec<Verdict> {
        let elapsed = now_ns.saturating_sub(self.window_from_ns);
        if now_ns < self.window_from_ns {
            // The clock went back.
            self.window_from_ns = now_ns;
        } else if u128::from(elapsed) >= WINDOW.as_nanos() {
            self.window_from_ns = now_ns;
            self.end_window(elapsed as f64 / 1e9, now_ns);
        }
        std::mem::take(&mut self.fresh)
    }

    fn end_window(&mut self, seconds: f64, now_ns: u64) {
        let warmup = self.limits.warmup.as_secs_f64();
        // Longer only by a jump of the clock, or because the agent was stopped: the counts' time is not known.
        let known = seconds <= LONGEST.as_secs_f64();
        let mut found = Vec::new();
        for (workload, history) in &mut self.workloads {
            if !std::mem::take(&mut history.active) {
                continue;
            }
            if !known {
                history.calls.values_mut().for_each(|call| call.count = 0);
                continue;
            }
            for (&call, of_call) in &mut history.calls {
                let count = of_call.count;
                let judged = of_call.judge(seconds, history.watched, history.weight, warmup);
                if let Some((rate, mean, deviation, score, explained)) = judged {
                    found.push(Verdict {
                        workload: workload.clone(),
                        call,
                        change: Change::Anomaly,
                        time_ns: now_ns,
                        watched: Duration::from_secs_f64(history.watched),
                        rate,
                        mean,
                        deviation,
                        score,
                        explained,
                        count,
                    });
                }
                of_call.learn(seconds, history.weight);
            }
            history.watched += seconds;
            history.weight = history.weight * decay(seconds) + seconds;
        }
        for verdict in found {
            self.keep(verdict);
        }
    }

    /// Begins the open window anew: what it counted so far is not to be compared. For switching off, and on again.
    pub fn restart_window(&mut self, now_ns: u64) {
        self.window_from_ns = now_ns;
        for history in self.workloads.values_mut() {
            history.active = false;
            history.calls.values_mut().for_each(|call| call.count = 0);
        }
    }

    /// Verdicts, oldest first: the last [`VERDICTS`].
    pub fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter()
    }

    /// How long a workload has been watched; `None` if it is not known.
    #[must_use]
    pub fn watched(&self, workload: &Workload) -> Option<Duration> {
        let history = self.workloads.get(workload)?;
        Some(Duration::from_secs_f64(history.watched))
    }

    /// All workloads, and how long each has been watched.
    pub fn watched_all(&self) -> impl Iterator<Item = (&Workload, Duration)> {
        self.workloads
            .iter()
            .map(|(workload, history)| (workload, Duration::from_secs_f64(history.watched)))
    }

    /// How many workloads are known, and how many of them have been watched for the warm-up.
    #[must_use]
    pub fn warm(&self) -> (usize, usize) {
        let warmup = self.limits.warmup.as_secs_f64();
        let warm = self
            .workloads
            .values()
            .filter(|history| history.watched >= warmup);
        (self.workloads.len(), warm.count())
    }

    /// Its bounds.
    #[must_use]
    pub const fn limits(&self) -> BaselineLimits {
        self.limits
    }

    /// Calls of all workloads.
    #[must_use]
    pub const fn calls(&self) -> usize {
        self.calls
    }

    /// What it found and could not keep.
    #[must_use]
    pub const fn counts(&self) -> BaselineCounts {
        self.counts
    }

    /// Puts a workload back that was learned before, if there is room.
    fn restore(&mut self, workload: Workload, history: History) {
        if self.workloads.len() >= self.limits.workloads
            || self.calls + history.calls.len() > self.limits.calls
        {
            self.counts.turned_away += 1;
            return;
        }
        self.calls += history.calls.len();
        if let Some(before) = self.workloads.insert(workload, history) {
            self.calls -= before.calls.len();
        }
    }
}

#[cfg(test)]
mod tests;
