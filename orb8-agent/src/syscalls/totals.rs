//! Totals of calls since the start, by owner: what counters are exported from. Exact, in a bounded number of series.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{call::Call, errno};
use crate::{
    identity::owner::Owner,
    store::{Labels, OTHER},
};

/// Calls of an owner that have a series of their own.
const CALLS: usize = 20;
/// Errors of an owner that have one.
const ERRORS: usize = 8;
/// Calls told one by one of an owner that have one.
const EVENTS: usize = 8;
/// Series of an owner at most: those, and what is left over of each.
const SERIES: usize = CALLS + ERRORS + EVENTS + 3;
/// A call gets the series of another when its total is so many times as large: they must not take turns.
const OVERTAKES: u64 = 2;

/// A value of a counter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallSeries {
    /// The owner.
    pub labels: Labels,
    /// Name of the call (with its ABI unless that is the machine's own) or of the error; `other` for the rest.
    pub name: String,
    /// The count.
    pub count: u64,
}

/// Counts by key, of which the largest have series of their own and the rest is summed.
///
/// The sum over the series is the sum of the counts, and neither it nor the rest ever decreases: what was counted in the
/// rest stays there when a key gets its own series, and goes there when it loses it.
#[derive(Clone, Debug)]
struct Ranked<K> {
    entries: HashMap<K, Entry>,
    own: usize,
    max: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    total: u64,
    /// Total when it was last shown.
    shown: u64,
    /// `Some`: it has a series; so much of the total is in the rest.
    base: Option<u64>,
}

impl<K: Copy + Eq + Ord + std::hash::Hash> Ranked<K> {
    fn new(max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            own: 0,
            max,
        }
    }

    fn add(&mut self, key: K, count: u64) {
        let entry = self.entries.entry(key).or_default();
        entry.total = entry.total.saturating_add(count);
    }

    /// Gives out the series. Afterwards all is shown.
    fn rank(&mut self) {
        while self.own < self.max
            && let Some((_, entry)) = self
                .entries
                .iter_mut()
                .filter(|(_, entry)| entry.base.is_none())
                .max_by_key(|(key, entry)| (entry.total, std::cmp::Reverse(**key)))
        {
            entry.base = Some(entry.shown);
            self.own += 1;
        }
        let largest = self.entries.iter().filter(|(_, entry)| entry.base.is_none());
        let largest = largest.max_by_key(|(key, entry)| (entry.total, **key));
        let smallest = self.entries.iter().filter(|(_, entry)| entry.base.is_some());
        let smallest = smallest.min_by_key(|(key, entry)| (entry.total, **key));
        if let (Some((&up, large)), Some((&down, small))) = (largest, smallest)
            && large.total / OVERTAKES > small.total
        {
            if let Some(entry) = self.entries.get_mut(&up) {
                entry.base = Some(entry.shown);
            }
            if let Some(entry) = self.entries.get_mut(&down) {
                entry.base = None;
            }
        }
        for entry in self.entries.values_mut() {
            entry.shown = entry.total;
        }
    }

    fn series(&self) -> impl Iterator<Item = (K, u64)> {
        self.entries
            .iter()
            .filter_map(|(&key, entry)| Some((key, entry.shown - entry.base?)))
    }

    /// What has no series of its own.
    fn rest(&self) -> u64 {
        self.entries.values().fold(0u64, |sum, entry| {
            sum.saturating_add(entry.base.unwrap_or(entry.shown))
        })
    }

    fn total(&self) -> u64 {
        self.entries
            .values()
            .fold(0u64, |sum, entry| sum.saturating_add(entry.total))
    }
}

#[derive(Clone, Debug)]
struct OwnerTotals {
    calls: Ranked<Call>,
    errors: Ranked<u16>,
    events: Ranked<Call>,
    last_seq: u32,
}

impl OwnerTotals {
    fn new() -> Self {
        Self {
            calls: Ranked::new(CALLS),
            errors: Ranked::new(ERRORS),
            events: Ranked::new(EVENTS),
            last_seq: 0,
        }
    }

    fn sums(&self) -> Sums {
        Sums {
            calls: self.calls.total(),
            errors: self.errors.total(),
            events: self.events.total(),
        }
    }
}

/// Counts without a call's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sums {
    /// Calls.
    pub calls: u64,
    /// Calls that failed, while that was measured.
    pub errors: u64,
    /// Calls of those that are told one by one.
    pub events: u64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.errors = self.errors.saturating_add(other.errors);
        self.events = self.events.saturating_add(other.events);
    }
}

/// Totals since the start, of a bounded number of owners. Those without room are summed under the owner `other`; when
/// owners run out, those that have been quiet for long are folded into it.
#[derive(Debug)]
pub struct CallTotals {
    owners: BTreeMap<Labels, OwnerTotals>,
    other: Sums,
    removed: Sums,
    /// Calls that are told one by one.
    told: BTreeSet<Call>,
    max_owners: usize,
    quiet: u32,
    turned_away: u64,
    folded: u64,
    folded_in: u32,
}

/// What an owner did in an interval.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Calls.
    pub calls: Vec<(Call, u64)>,
    /// Errors.
    pub errors: Vec<(u16, u64)>,
}

impl Counted {
    /// Adds what it did in another.
    pub fn append(&mut self, mut other: Self) {
        self.calls.append(&mut other.calls);
        self.errors.append(&mut other.errors);
    }
}

impl CallTotals {
    /// Nothing counted yet. `series`: how many there may be; `quiet`: after so many intervals without a call an owner may be
    /// folded.
    #[must_use]
    pub fn new(series: usize, quiet: u32, told: BTreeSet<Call>) -> Self {
        Self {
            owners: BTreeMap::new(),
            other: Sums::default(),
            removed: Sums::default(),
            told,
            max_owners: (series / SERIES).max(1),
            quiet,
            turned_away: 0,
            folded: 0,
            folded_in: 0,
        }
    }

    /// Files what an owner did. Cost: linear in its calls.
    pub fn add(&mut self, owner: &Owner, counted: &Counted, seq: u32) {
        let labels = Labels::of(owner);
        if !self.owners.contains_key(&labels) && self.owners.len() >= self.max_owners && self.folded_in != seq
        {
            self.folded_in = seq;
            self.fold(seq);
        }
        if !self.owners.contains_key(&labels) && self.owners.len() >= self.max_owners {
            self.turned_away += 1;
            let mut sums = Sums::default();
            for &(call, count) in &counted.calls {
                sums.add(Sums {
                    calls: count,
                    events: if self.told.contains(&call) { count } else { 0 },
                    errors: 0,
                });
            }
            for &(_, errors) in &counted.errors {
                sums.add(Sums {
                    errors,
                    ..Sums::default()
                });
            }
            self.other.add(sums);
            return;
        }
        let totals = self.owners.entry(labels).or_insert_with(OwnerTotals::new);
        totals.last_seq = seq;
        for &(call, count) in &counted.calls {
            totals.calls.add(call, count);
            if self.told.contains(&call) {
                totals.events.add(call, count);
            }
        }
        for &(errno, count) in &counted.errors {
            totals.errors.add(errno, count);
        }
        totals.calls.rank();
        totals.errors.rank();
        totals.events.rank();
    }

    fn fold(&mut self, seq: u32) {
        let Self {
            owners,
            other,
            quiet,
            folded,
            ..
        } = self;
        owners.retain(|_, totals| {
            let keep = seq.saturating_sub(totals.last_seq) <= *quiet;
            if !keep {
                *folded += 1;
                other.add(totals.sums());
            }
            keep
        });
    }

    /// Drops the series of owners that have `ended` and been quiet; what they counted is in [`CallTotals::removed`].
    pub fn remove_ended(&mut self, seq: u32, mut ended: impl FnMut(&Labels) -> bool) {
        let Self {
            owners,
            removed,
            quiet,
            ..
        } = self;
        owners.retain(|labels, totals| {
            let keep = seq.saturating_sub(totals.last_seq) <= *quiet || !ended(labels);
            if !keep {
                removed.add(totals.sums());
            }
            keep
        });
    }

    /// Calls by name.
    #[must_use]
    pub fn calls(&self) -> Vec<CallSeries> {
        self.all(|owner| &owner.calls, |call| call.to_string(), self.other.calls)
    }

    /// Calls that failed, by error.
    #[must_use]
    pub fn errors(&self) -> Vec<CallSeries> {
        self.all(
            |owner| &owner.errors,
            |errno| errno::name(errno).into_owned(),
            self.other.errors,
        )
    }

    /// Of the calls that are told one by one, by name: as counted, whether anybody was told or not.
    #[must_use]
    pub fn events(&self) -> Vec<CallSeries> {
        self.all(|owner| &owner.events, |call| call.to_string(), self.other.events)
    }

    fn all<K: Copy + Eq + Ord + std::hash::Hash>(
        &self,
        ranked: impl Fn(&OwnerTotals) -> &Ranked<K>,
        name: impl Fn(K) -> String,
        other: u64,
    ) -> Vec<CallSeries> {
        let mut all = Vec::new();
        let rest = |labels: &Labels, count| CallSeries {
            labels: labels.clone(),
            name: OTHER.to_owned(),
            count,
        };
        for (labels, totals) in &self.owners {
            let ranked = ranked(totals);
            all.extend(ranked.series().map(|(key, count)| CallSeries {
                labels: labels.clone(),
                name: name(key),
                count,
            }));
            if ranked.rest() > 0 {
                all.push(rest(labels, ranked.rest()));
            }
        }
        if other > 0 {
            let labels = Labels {
                owner: OTHER.to_owned(),
                ..Labels::default()
            };
            all.push(rest(&labels, other));
        }
        all
    }

    /// Counts of owners whose series were removed, since their pods had ended.
    #[must_use]
    pub const fn removed(&self) -> Sums {
        self.removed
    }

    /// Owners that have series.
    #[must_use]
    pub fn owners(&self) -> usize {
        self.owners.len()
    }

    /// The most owners that can have series.
    #[must_use]
    pub const fn max_owners(&self) -> usize {
        self.max_owners
    }

    /// How often an owner, in an interval, had no room and was counted under `other`.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Owners that were folded into `other` after they had been quiet.
    #[must_use]
    pub const fn folded(&self) -> u64 {
        self.folded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::syscalls::call::Abi;

    fn unit(name: &str) -> Owner {
        Owner {
            unit: name.to_owned(),
            ..Owner::default()
        }
    }

    fn call(number: u16) -> Call {
        Call {
            abi: Abi::native(),
            number,
        }
    }

    fn counted(calls: &[(u16, u64)]) -> Counted {
        Counted {
            calls: calls
                .iter()
                .map(|&(number, count)| (call(number), count))
                .collect(),
            errors: Vec::new(),
        }
    }

    fn value(series: &[CallSeries], owner: &str, name: &str) -> Option<u64> {
        let find = |one: &&CallSeries| one.labels.owner == owner && one.name == name;
        series.iter().find(find).map(|one| one.count)
    }

    #[test]
    fn the_largest_have_series_and_the_rest_is_other() {
        let told = BTreeSet::from([Call::of(Abi::native(), "execve").unwrap()]);
        let mut totals = CallTotals::new(1000, 10, told);
        let calls: Vec<_> = (0..30).map(|number| (number, u64::from(number) + 1)).collect();
        totals.add(&unit("a.service"), &counted(&calls), 1);
        let name = |number| call(number).to_string();
        let series = totals.calls();
        assert_eq!(series.len(), CALLS + 1);
        assert_eq!(value(&series, "a.service", &name(29)), Some(30));
        assert_eq!(value(&series, "a.service", OTHER), Some((1..=10).sum()));
        assert!(totals.events().is_empty());
        // One that was in the rest overtakes: its series begins with what came after.
        totals.add(&unit("a.service"), &counted(&[(0, 1000)]), 2);
        let series = totals.calls();
        assert_eq!(value(&series, "a.service", &name(0)), Some(1000));
        assert_eq!(value(&series, "a.service", &name(10)), None);
        assert_eq!(value(&series, "a.service", OTHER), Some((1..=11).sum()));
        let exec = Call::of(Abi::native(), "execve").unwrap().number;
        totals.add(&unit("a.service"), &counted(&[(exec, 3)]), 3);
        assert_eq!(value(&totals.events(), "a.service", "execve"), Some(3));
    }

    #[test]
    fn owners_without_room_are_other_and_the_quiet_make_room() {
        let mut totals = CallTotals::new(SERIES, 10, BTreeSet::new());
        totals.add(&unit("a.service"), &counted(&[(0, 1)]), 1);
        totals.add(&unit("b.service"), &counted(&[(0, 2)]), 5);
        assert_eq!(value(&totals.calls(), OTHER, OTHER), Some(2));
        assert_eq!(totals.turned_away(), 1);
        totals.add(&unit("b.service"), &counted(&[(0, 4)]), 20);
        assert_eq!(totals.folded(), 1);
        assert_eq!(value(&totals.calls(), OTHER, OTHER), Some(3));
        assert_eq!(value(&totals.calls(), "b.service", &call(0).to_string()), Some(4));
        totals.remove_ended(25, |_| true);
        assert_eq!(totals.owners(), 1);
        totals.remove_ended(31, |_| true);
        assert_eq!((totals.owners(), totals.removed().calls), (0, 4));
    }

    proptest! {
        /// Sums are exact, and neither they nor the rest ever go back.
        #[test]
        fn nothing_is_lost_and_the_rest_never_decreases(
            intervals in proptest::collection::vec(proptest::collection::vec((0u16..40, 1u64..1000), 0..40), 1..30),
        ) {
            let mut totals = CallTotals::new(1000, 10, BTreeSet::new());
            let (mut sum, mut rest) = (0, 0);
            for (seq, calls) in intervals.iter().enumerate() {
                totals.add(&unit("a.service"), &counted(calls), seq as u32);
                sum += calls.iter().map(|(_, count)| count).sum::<u64>();
                let series = totals.calls();
                prop_assert!(series.len() <= CALLS + 1);
                prop_assert_eq!(series.iter().map(|one| one.count).sum::<u64>(), sum);
                let now = value(&series, "a.service", OTHER).unwrap_or(0);
                prop_assert!(now >= rest);
                rest = now;
            }
        }
    }
}
