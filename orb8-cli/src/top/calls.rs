//! What the syscalls pane of `top` knows: rates of owners and of their calls, from one answer an interval. No terminal
//! here.

use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
};

use orb8_proto::v1::{SyscallMode, SyscallRow};
use prost_types::Timestamp;

use super::model::{Action, HISTORY};
use crate::{args::CallSort, ledger::Losses, query::syscall::Answer, syscall, timestamp};

/// Owners that are kept apart; the rest is one entry.
const MAX_OWNERS: usize = 4096;
/// Calls that are kept apart for one owner: more than all tables together have; the rest is one entry.
const MAX_CALLS: usize = 2048;
/// Name of what had no room.
const OTHER: &str = "(others)";

/// Counts of one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    calls: u64,
    /// Failed calls and nanoseconds, if they were measured.
    measured: Option<(u64, u64)>,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.measured = match (self.measured, other.measured) {
            (Some((failed, ns)), Some((more, longer))) => {
                Some((failed.saturating_add(more), ns.saturating_add(longer)))
            }
            (a, b) => a.or(b),
        };
    }
}

/// A call, and what it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CallKey {
    pub(crate) name: String,
    pub(crate) category: String,
}

/// Rows of one interval, added up.
#[derive(Debug, Default)]
struct Interval {
    owners: HashMap<String, HashMap<CallKey, Counts>>,
}

impl Interval {
    fn of(rows: &[SyscallRow]) -> Self {
        let mut interval = Self::default();
        for row in rows {
            let owner = syscall::owner(row.owner.as_ref()).unwrap_or_else(|| "(unknown)".to_owned());
            let call = CallKey {
                name: syscall::call(&row.syscall, row.abi()),
                category: row.category.clone(),
            };
            let counts = Counts {
                calls: row.count,
                measured: syscall::is_measured(row).then(|| (row.failed, row.total_ns.unwrap_or_default())),
            };
            interval
                .owners
                .entry(owner)
                .or_default()
                .entry(call)
                .or_default()
                .add(counts);
        }
        interval
    }
}

/// Rates in the last interval, and their history.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Calls a second.
    pub(crate) calls: f64,
    /// Failed calls a second, if they are measured.
    pub(crate) failed: Option<f64>,
    /// Nanoseconds in calls a second, of all threads together, if they are measured.
    pub(crate) time: Option<f64>,
    /// Calls since `top` began to see it.
    pub(crate) total: u64,
    /// Calls a second of the last [`HISTORY`] refreshes, latest last.
    pub(crate) history: VecDeque<u64>,
    idle: usize,
}

impl Rates {
    fn refresh(&mut self, counts: Counts, seconds: f64) {
        self.calls = counts.calls as f64 / seconds;
        self.failed = counts.measured.map(|(failed, _)| failed as f64 / seconds);
        self.time = counts.measured.map(|(_, ns)| ns as f64 / seconds);
        self.total = self.total.saturating_add(counts.calls);
        if self.history.len() >= HISTORY {
            self.history.pop_front();
        }
        // Any call shows.
        self.history.push_back(self.calls.ceil() as u64);
        self.idle = if counts.calls == 0 { self.idle + 1 } else { 0 };
    }
}

#[derive(Debug, Default)]
struct Owner {
    rates: Rates,
    calls: HashMap<CallKey, Rates>,
}

/// What is on the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Page {
    #[default]
    Owners,
    /// Calls of this owner.
    Calls(String),
}

/// All that the syscalls pane knows.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    owners: HashMap<String, Owner>,
    pub(crate) sort: CallSort,
    pub(crate) page: Page,
    pub(crate) paused: bool,
    pub(crate) help: bool,
    selected_owner: Option<String>,
    selected_call: Option<CallKey>,
    /// Node that answers.
    pub(crate) node: String,
    /// Until when is counted.
    pub(crate) to: Option<Timestamp>,
    /// Seconds of the last interval.
    pub(crate) seconds: f64,
    /// Calls of the last interval.
    pub(crate) calls: u64,
    pub(crate) losses: Option<Losses>,
    /// What the reader must know of all answers.
    pub(crate) notes: Vec<String>,
    /// Why the last refresh failed, while it does.
    pub(crate) trouble: Option<String>,
}

impl Calls {
    pub(crate) fn new(sort: CallSort) -> Self {
        Self {
            sort,
            ..Self::default()
        }
    }

    /// Takes one interval's rows. An answer that covers no new time changes no rate.
    pub(crate) fn refresh(&mut self, answer: &Answer, fallback_seconds: f64) {
        let mut losses = answer.losses.clone();
        for agent in answer.modes.iter().filter(|agent| agent.mode == SyscallMode::Off) {
            losses.sentences.push(format!(
                "{} counts no calls: mode `off` (`orb8 syscall-mode counts` switches it on)",
                agent.name
            ));
        }
        self.losses = Some(losses);
        self.trouble = None;
        let summary = answer.summary.as_ref();
        let from = self.to.or_else(|| summary.and_then(|summary| summary.from));
        let to = summary.and_then(|summary| summary.to);
        let seconds = match (&from, &to) {
            (Some(from), Some(to)) if !timestamp::is_after(to, from) => return,
            (Some(from), Some(to)) => timestamp::seconds_between(from, to),
            _ => fallback_seconds,
        };
        self.to = to.or(self.to);
        self.seconds = seconds;
        if let Some(summary) = summary {
            self.calls = summary.matched_calls;
            self.node.clone_from(&summary.node);
        }
        let mut news = Interval::of(&answer.rows).owners;
        // What has no room joins the others, before anything is refreshed: each entry is refreshed once.
        let unknown: Vec<String> = news
            .keys()
            .filter(|name| !self.owners.contains_key(*name))
            .cloned()
            .collect();
        let room = MAX_OWNERS.saturating_sub(self.owners.len());
        for name in unknown.into_iter().skip(room) {
            let calls = news.remove(&name).unwrap_or_default();
            let others = news.entry(OTHER.to_owned()).or_default();
            for (call, counts) in calls {
                others.entry(call).or_default().add(counts);
            }
        }
        for name in news.keys() {
            if !self.owners.contains_key(name) {
                self.owners.insert(name.clone(), Owner::default());
            }
        }
        for (name, owner) in &mut self.owners {
            owner.refresh(news.remove(name).unwrap_or_default(), seconds);
        }
        let open = if let Page::Calls(name) = &self.page {
            Some(name.clone())
        } else {
            None
        };
        self.owners
            .retain(|name, owner| owner.rates.idle < HISTORY || open.as_ref() == Some(name));
    }

    /// Owners in sort order, each with the call that it makes most.
    pub(crate) fn owners(&self) -> Vec<(&str, &Rates, Option<&CallKey>)> {
        let mut rows: Vec<_> = self
            .owners
            .iter()
            .map(|(name, owner)| (name.as_str(), &owner.rates, owner.top(self.sort)))
            .collect();
        rows.sort_by(|a, b| order(self.sort, a.1, b.1).then_with(|| a.0.cmp(b.0)));
        rows
    }

    /// Calls of an owner in sort order.
    pub(crate) fn calls_of(&self, owner: &str) -> Vec<(&CallKey, &Rates)> {
        let mut rows: Vec<_> = self
            .owners
            .get(owner)
            .map(|owner| owner.calls.iter().collect())
            .unwrap_or_default();
        rows.sort_by(|a, b| order(self.sort, a.1, b.1).then_with(|| a.0.cmp(b.0)));
        rows
    }

    /// Rates of one owner.
    pub(crate) fn owner(&self, name: &str) -> Option<&Rates> {
        self.owners.get(name).map(|owner| &owner.rates)
    }

    /// Index of the selected row on the current page; nothing if the page is empty.
    pub(crate) fn selected(&self) -> Option<usize> {
        let (index, len) = match &self.page {
            Page::Owners => {
                let rows = self.owners();
                let selected = self.selected_owner.as_deref();
                (
                    rows.iter().position(|(name, ..)| Some(*name) == selected),
                    rows.len(),
                )
            }
            Page::Calls(owner) => {
                let rows = self.calls_of(owner);
                let selected = self.selected_call.as_ref();
                (
                    rows.iter().position(|(key, _)| Some(*key) == selected),
                    rows.len(),
                )
            }
        };
        (len > 0).then(|| index.unwrap_or_default())
    }

    /// Does what a key asks.
    pub(crate) fn act(&mut self, action: Action, page_rows: usize) {
        if self.help {
            self.help = false;
            return;
        }
        match action {
            Action::Enter => {
                if self.page == Page::Owners
                    && let Some(index) = self.selected()
                    && let Some(name) = self.owners().get(index).map(|(name, ..)| (*name).to_owned())
                {
                    self.selected_owner = Some(name.clone());
                    self.selected_call = None;
                    self.page = Page::Calls(name);
                }
            }
            Action::Back => self.page = Page::Owners,
            Action::Sort => {
                self.sort = match self.sort {
                    CallSort::Calls => CallSort::Errors,
                    CallSort::Errors => CallSort::Time,
                    CallSort::Time => CallSort::Name,
                    CallSort::Name => CallSort::Calls,
                }
            }
            Action::Pause => self.paused = !self.paused,
            Action::Help => self.help = true,
            Action::Pane | Action::Other => {}
            moving => self.select(moving, page_rows),
        }
    }

    /// Selects the row to which a key moves.
    fn select(&mut self, moving: Action, page_rows: usize) {
        let Some(index) = self.selected() else { return };
        match &self.page {
            Page::Owners => {
                let rows = self.owners();
                if let Some(index) = moving.moved(index, rows.len(), page_rows) {
                    self.selected_owner = Some(rows[index].0.to_owned());
                }
            }
            Page::Calls(owner) => {
                let rows = self.calls_of(owner);
                if let Some(index) = moving.moved(index, rows.len(), page_rows) {
                    self.selected_call = Some(rows[index].0.clone());
                }
            }
        }
    }
}

impl Owner {
    fn refresh(&mut self, news: HashMap<CallKey, Counts>, seconds: f64) {
        let mut sum = Counts::default();
        let mut known: HashMap<CallKey, Counts> = HashMap::new();
        let mut room = MAX_CALLS.saturating_sub(self.calls.len());
        for (key, counts) in news {
            sum.add(counts);
            let key = if self.calls.contains_key(&key) {
                key
            } else if room > 0 {
                room -= 1;
                key
            } else {
                CallKey {
                    name: OTHER.to_owned(),
                    category: String::new(),
                }
            };
            known.entry(key).or_default().add(counts);
        }
        self.rates.refresh(sum, seconds);
        for key in known.keys() {
            if !self.calls.contains_key(key) {
                self.calls.insert(key.clone(), Rates::default());
            }
        }
        for (key, rates) in &mut self.calls {
            rates.refresh(known.remove(key).unwrap_or_default(), seconds);
        }
        self.calls.retain(|_, rates| rates.idle < HISTORY);
    }

    /// The first call in sort order that was made in the last interval.
    fn top(&self, sort: CallSort) -> Option<&CallKey> {
        self.calls
            .iter()
            .filter(|(_, rates)| rates.calls > 0.0)
            .min_by(|a, b| {
                let sort = if sort == CallSort::Name {
                    CallSort::Calls
                } else {
                    sort
                };
                order(sort, a.1, b.1).then_with(|| a.0.cmp(b.0))
            })
            .map(|(key, _)| key)
    }
}

/// The greatest first; of equals, who calls most.
fn order(sort: CallSort, a: &Rates, b: &Rates) -> Ordering {
    let by = |rate: Option<f64>| rate.unwrap_or(-1.0);
    let first = match sort {
        CallSort::Calls => Ordering::Equal,
        CallSort::Errors => by(b.failed).total_cmp(&by(a.failed)),
        CallSort::Time => by(b.time).total_cmp(&by(a.time)),
        CallSort::Name => return Ordering::Equal,
    };
    first.then_with(|| b.calls.total_cmp(&a.calls))
}

#[cfg(test)]
pub(super) mod tests {
    use orb8_proto::v1::{Endpoint, LedgerRow, SyscallAbi, SyscallSummary};

    use super::*;
    use crate::query::{Cursor, syscall::Measured};

    /// An answer about these owners and calls, from `from` to `to`.
    pub(in super::super) fn answer(
        rows: &[(&str, &str, u64)],
        from: i64,
        to: i64,
        mode: SyscallMode,
    ) -> Answer {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let rows = rows.iter().map(|(process, syscall, count)| SyscallRow {
            owner: Some(Endpoint {
                process: (*process).into(),
                ..Endpoint::default()
            }),
            syscall: (*syscall).into(),
            abi: SyscallAbi::X8664.into(),
            category: "file".into(),
            count: *count,
            failed: if mode == SyscallMode::Latency {
                count / 10
            } else {
                0
            },
            total_ns: (mode == SyscallMode::Latency).then_some(count * 1000),
            ..SyscallRow::default()
        });
        let lost = LedgerRow {
            family: "syscall".into(),
            stage: "callers".into(),
            unit: "calls".into(),
            seen: 5,
            lost: 5,
            ..LedgerRow::default()
        };
        let summary = SyscallSummary {
            node: "n1".into(),
            from: at(from),
            to: at(to),
            ledger: vec![lost],
            mode: mode.into(),
            ..SyscallSummary::default()
        };
        Answer {
            rows: rows.collect(),
            losses: Losses::of_ledger(&summary.ledger),
            summary: Some(summary),
            modes: vec![Measured {
                name: "n1".into(),
                mode,
                span: 1.0,
                seconds: 0.0,
            }],
            notes: Vec::new(),
            missing: Vec::new(),
            cursor: Cursor::default(),
        }
    }

    const COUNTS: SyscallMode = SyscallMode::Counts;

    #[test]
    fn rates_cover_the_time_since_the_last_answer() {
        let mut calls = Calls::default();
        calls.refresh(
            &answer(&[("a", "read", 100), ("a", "write", 50)], 0, 1, COUNTS),
            1.0,
        );
        calls.refresh(&answer(&[("a", "read", 900)], 1, 10, COUNTS), 1.0);
        let a = calls.owner("a").unwrap();
        assert_eq!((a.calls, a.total, a.failed, a.time), (100.0, 1050, None, None));
        assert_eq!(a.history, [150, 100]);
        assert_eq!(calls.calls_of("a")[0].0.name, "read");
        // No new time: no new rate.
        calls.refresh(&answer(&[], 10, 10, COUNTS), 1.0);
        assert_eq!(calls.owner("a").unwrap().calls, 100.0);
    }

    #[test]
    fn errors_and_time_are_known_only_where_they_are_measured() {
        let mut calls = Calls::new(CallSort::Time);
        calls.refresh(&answer(&[("a", "read", 100)], 0, 2, SyscallMode::Latency), 1.0);
        let a = calls.owner("a").unwrap();
        assert_eq!((a.failed, a.time), (Some(5.0), Some(50_000.0)));
        calls.refresh(&answer(&[("a", "read", 100)], 2, 3, SyscallMode::Off), 1.0);
        assert_eq!(calls.owner("a").unwrap().time, None);
        let losses = calls.losses.unwrap().sentences.join("\n");
        assert!(losses.contains("mode `off`"), "{losses}");
    }

    #[test]
    fn owners_and_calls_are_bounded_and_no_call_goes_missing() {
        let mut calls = Calls::default();
        for round in 0..2 {
            let names: Vec<String> = (0..5000).map(|n| format!("o{round}-{n}")).collect();
            let numbers: Vec<String> = (0..3000).map(|n| format!("#{round}-{n}")).collect();
            let rows: Vec<(&str, &str, u64)> = names
                .iter()
                .map(|name| (name.as_str(), "read", 1))
                .chain(numbers.iter().map(|number| ("many", number.as_str(), 1)))
                .collect();
            calls.refresh(&answer(&rows, round, round + 1, COUNTS), 1.0);
            let sum: f64 = calls.owners().iter().map(|(_, rates, _)| rates.calls).sum();
            assert_eq!(sum, 8000.0);
            assert!(calls.owners().len() <= MAX_OWNERS + 1);
            for (name, rates, _) in calls.owners() {
                let of = calls.calls_of(name);
                assert_eq!(of.iter().map(|(_, rates)| rates.calls).sum::<f64>(), rates.calls);
                assert!(of.len() <= MAX_CALLS + 1);
            }
        }
    }

    #[test]
    fn idle_owners_go_and_selection_stays_with_its_owner() {
        let mut calls = Calls::default();
        calls.refresh(&answer(&[("a", "read", 10), ("b", "read", 5)], 0, 1, COUNTS), 1.0);
        calls.act(Action::Down, 10);
        assert_eq!(calls.selected(), Some(1));
        calls.refresh(
            &answer(&[("a", "read", 10), ("b", "read", 50)], 1, 2, COUNTS),
            1.0,
        );
        assert_eq!((calls.owners()[0].0, calls.selected()), ("b", Some(0)));
        calls.act(Action::Enter, 10);
        assert_eq!(calls.page, Page::Calls("b".into()));
        calls.act(Action::Back, 10);
        for second in 2..62 {
            calls.refresh(&answer(&[("b", "read", 1)], second, second + 1, COUNTS), 1.0);
        }
        assert!(calls.owner("a").is_none() && calls.owner("b").is_some());
        for _ in 0..4 {
            calls.act(Action::Sort, 10);
        }
        assert_eq!(calls.sort, CallSort::Calls);
    }
}
