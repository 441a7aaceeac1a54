//! Queries over the history of calls.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use orb8_proto::v1;

use super::{
    CallFilter, CallQueryError, SyscallStore,
    baseline::{Change, Verdict},
    call::Call,
    category::{Category, Waiting},
    errno,
    history::{Measured, Record, upper_bound},
    workload::Workload,
};
use crate::{
    identity::owner::{Kind, Owner, OwnerId, OwnerTable, PodName},
    store::{QueryError, endpoint, nanoseconds, timestamp},
};

/// A difference from the span asked for that is not worth a sentence.
const NEGLIGIBLE_NS: u64 = 1_000_000;
/// Workloads that are named in a note.
const NAMED: usize = 5;

/// The rows that a query asked for, in order, and what there is to say about them.
#[derive(Debug)]
pub(crate) struct CallSelection {
    pub(crate) rows: Vec<CallRow>,
    /// Without the mode and the ledger.
    pub(crate) summary: v1::SyscallSummary,
}

/// One row of an answer; [`CallRow::message`] makes its message.
#[derive(Debug)]
pub(crate) struct CallRow {
    /// Only what the grouping keeps apart.
    owner: Option<Arc<Owner>>,
    call: Option<Call>,
    category: Option<Category>,
    record: Record,
    first_ns: u64,
    last_ns: u64,
    /// Time and calls by what they wait for; empty if the row is of one call.
    waits: Vec<(Waiting, u64, u64)>,
    change: Option<Verdict>,
}

/// What of an owner stays apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    Nothing,
    Workload,
    Pod,
    Container,
}

impl Level {
    /// The owner with only that left.
    fn reduce(self, owner: &Owner) -> Owner {
        match self {
            Self::Nothing => Owner::default(),
            Self::Container => owner.clone(),
            Self::Workload => match owner.named_pod() {
                Some(pod) if !pod.workload.is_empty() => Owner {
                    kind: Kind::Pod,
                    attribution: owner.attribution,
                    pod: Some(Arc::new(PodName {
                        full: format!("{}/", pod.parts().0),
                        workload: pod.workload.clone(),
                        ..PodName::default()
                    })),
                    ..Owner::default()
                },
                _ => Self::Pod.reduce(owner),
            },
            Self::Pod => match &owner.pod {
                Some(_) => Owner {
                    container: String::new(),
                    cgroup: String::new(),
                    unit: String::new(),
                    ..owner.clone()
                },
                None if !owner.unit.is_empty() || !owner.container.is_empty() => Owner {
                    // Cgroups below are the unit's or container's own.
                    cgroup: String::new(),
                    ..owner.clone()
                },
                None => owner.clone(),
            },
        }
    }
}

#[derive(Debug)]
struct Grouping {
    level: Level,
    by_call: bool,
    by_category: bool,
}

impl Grouping {
    fn new(by: &[i32], kind: v1::SyscallKind) -> Result<Self, CallQueryError> {
        let changes = kind != v1::SyscallKind::All;
        if by.is_empty() {
            return Ok(Self {
                level: if changes {
                    Level::Workload
                } else {
                    Level::Container
                },
                by_call: true,
                by_category: false,
            });
        }
        let mut grouping = Self {
            level: Level::Nothing,
            by_call: false,
            by_category: false,
        };
        for &number in by {
            match v1::SyscallGroup::try_from(number) {
                Ok(v1::SyscallGroup::Pod) => grouping.level = grouping.level.max(Level::Pod),
                Ok(v1::SyscallGroup::Container) => grouping.level = Level::Container,
                Ok(v1::SyscallGroup::Workload) => grouping.level = grouping.level.max(Level::Workload),
                Ok(v1::SyscallGroup::Syscall) => grouping.by_call = true,
                Ok(v1::SyscallGroup::Category) => grouping.by_category = true,
                // An agent has one node.
                Ok(v1::SyscallGroup::Node) => {}
                Ok(v1::SyscallGroup::Unspecified) | Err(_) => return Err(CallQueryError::Group(number)),
            }
        }
        if changes {
            if !grouping.by_call {
                return Err(CallQueryError::ChangesByCall);
            }
            grouping.level = grouping.level.max(Level::Workload);
        }
        Ok(grouping)
    }
}

/// A checked query.
#[derive(Debug)]
pub(crate) struct CallQuery {
    filter: CallFilter,
    since: Option<u64>,
    until: Option<u64>,
    grouping: Grouping,
    sort: v1::SyscallSort,
    limit: usize,
    kind: v1::SyscallKind,
}

impl CallQuery {
    /// Checks a query whose label selectors are resolved.
    ///
    /// # Errors
    /// [`CallQueryError`], which says what is allowed.
    pub(crate) fn new(query: &v1::SyscallQuery) -> Result<Self, CallQueryError> {
        let kind = v1::SyscallKind::try_from(query.kind).map_err(|_| CallQueryError::Kind(query.kind))?;
        let filter = CallFilter::new(query.filter.as_ref())?;
        if kind != v1::SyscallKind::All && !filter.errnos().is_empty() {
            return Err(CallQueryError::ChangesByErrno);
        }
        let since = nanoseconds("since", query.since.as_ref())?;
        let until = nanoseconds("until", query.until.as_ref())?;
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(QueryError::EmptySpan.into());
        }
        Ok(Self {
            filter,
            since,
            until,
            grouping: Grouping::new(&query.by, kind)?,
            sort: v1::SyscallSort::try_from(query.sort).map_err(|_| CallQueryError::Sort(query.sort))?,
            limit: match query.limit {
                0 => usize::MAX,
                limit => limit as usize,
            },
            kind,
        })
    }

    /// Whether the answer is to be complete up to now.
    pub(crate) const fn is_open(&self) -> bool {
        self.until.is_none()
    }

    /// The answer. Cost: linear in the records of the span.
    pub(crate) fn select(
        &self,
        store: &SyscallStore,
        owners: &OwnerTable,
        node: &str,
        now_ns: u64,
    ) -> CallSelection {
        let verdicts = self.verdicts(store);
        let mut groups = Groups {
            query: self,
            store,
            owners,
            verdicts: &verdicts,
            known: HashMap::new(),
            reduced: HashMap::new(),
            rows: BTreeMap::new(),
            hidden: 0,
        };
        let (mut from_ns, mut to_ns, mut measured_ns) = (None, None, 0u64);
        for segment in store.history.segments(self.since, self.until) {
            from_ns.get_or_insert(segment.from_ns);
            to_ns = Some(segment.to_ns);
            measured_ns = measured_ns.saturating_add(segment.measured_ns);
            for (key, record) in segment.records() {
                groups.add(key.owner, key.call, record, (segment.from_ns, segment.to_ns));
            }
        }
        let hidden = groups.hidden;
        let mut rows: Vec<CallRow> = groups.rows.into_values().collect();
        if let Some(verdicts) = &verdicts {
            self.add_without_history(&mut rows, verdicts);
        }
        let matched_calls = rows
            .iter()
            .fold(0u64, |sum, row| sum.saturating_add(row.record.count));
        let matched_errors = rows
            .iter()
            .fold(0u64, |sum, row| sum.saturating_add(row.failed()));
        let matched_rows = rows.len() as u64;
        // Ties stay in the order of their keys.
        rows.sort_by_cached_key(|row| Reverse(row.rank(self.sort)));
        rows.truncate(self.limit);

        let idle = self.since.or(self.until).unwrap_or(now_ns);
        let mut notes = self.notes(store, from_ns, measured_ns);
        if hidden > 0 {
            notes.push(format!(
                "{hidden} calls are left out: they are counted for their cgroup without their number, so it is not known \
                 whether they match the filter."
            ));
        }
        CallSelection {
            rows,
            summary: v1::SyscallSummary {
                node: node.to_owned(),
                from: Some(timestamp(from_ns.unwrap_or(idle))),
                to: Some(timestamp(to_ns.unwrap_or(idle))),
                measured: Some(duration(measured_ns)),
                matched_rows,
                matched_calls,
                matched_errors,
                notes,
                ..v1::SyscallSummary::default()
            },
        }
    }

    /// The verdicts that are asked for, the latest of each workload and call; `None` if all calls are.
    fn verdicts<'a>(&self, store: &'a SyscallStore) -> Option<BTreeMap<(&'a Workload, Call), &'a Verdict>> {
        let change = match self.kind {
            v1::SyscallKind::All => return None,
            v1::SyscallKind::New => Change::New,
            v1::SyscallKind::Anomalies => Change::Anomaly,
        };
        let in_span = |verdict: &&Verdict| {
            self.since.is_none_or(|since| verdict.time_ns > since)
                && self.until.is_none_or(|until| verdict.time_ns <= until)
        };
        let wanted = store
            .baseline
            .verdicts()
            .filter(|verdict| verdict.change == change && self.filter.matches_call(verdict.call));
        Some(
            wanted
                .filter(in_span)
                .map(|verdict| ((&verdict.workload, verdict.call), verdict))
                .collect(),
        )
    }

    /// Verdicts whose calls have left the history are answered with what they themselves say.
    fn add_without_history(&self, rows: &mut Vec<CallRow>, verdicts: &BTreeMap<(&Workload, Call), &Verdict>) {
        for ((workload, call), verdict) in verdicts {
            let has_row = |row: &CallRow| {
                row.change
                    .as_ref()
                    .is_some_and(|change| change.workload == **workload && change.call == *call)
            };
            let owner = workload.owner();
            if rows.iter().any(has_row) || !self.filter.matches_owner(&owner) {
                continue;
            }
            rows.push(CallRow {
                owner: Some(Arc::new(owner)),
                call: Some(*call),
                category: None,
                record: Record {
                    count: verdict.count,
                    measured: None,
                },
                first_ns: verdict.time_ns,
                last_ns: verdict.time_ns,
                waits: Vec::new(),
                change: Some((*verdict).clone()),
            });
        }
    }

    fn notes(&self, store: &SyscallStore, from_ns: Option<u64>, measured_ns: u64) -> Vec<String> {
        let mut notes = Vec::new();
        let seconds = |ns: u64| ns as f64 / 1e9;
        let covered = store.history.covered();
        if let (Some(since), Some(from_ns)) = (self.since, from_ns) {
            if from_ns + NEGLIGIBLE_NS < since {
                notes.push(format!(
                    "The answer starts {:.3} s before the time asked for: the history keeps calls by interval.",
                    seconds(since - from_ns)
                ));
            } else if covered.is_some_and(|(oldest, _)| oldest == from_ns && from_ns > since + NEGLIGIBLE_NS)
            {
                notes.push(format!(
                    "The answer starts {:.3} s after the time asked for, where the history begins.",
                    seconds(from_ns - since)
                ));
            }
        }
        let counts = store.history.counts();
        if counts.evicted > 0 && covered.map(|(oldest, _)| oldest) == from_ns {
            notes.push(format!(
                "For want of memory, {} calls left the history before their time since the start.",
                counts.evicted
            ));
        }
        if !self.filter.errnos().is_empty() {
            notes.push(if measured_ns == 0 {
                "Errors were not measured in this span: switch to latency mode.".to_owned()
            } else {
                "Rows count the calls that failed with the errors asked for.".to_owned()
            });
        }
        if self.kind != v1::SyscallKind::All {
            notes.extend(self.watching(store));
        }
        notes
    }

    /// Of whom there are no verdicts yet.
    fn watching(&self, store: &SyscallStore) -> Option<String> {
        let warmup = store.baseline.limits().warmup;
        let mut young: Vec<_> = store
            .baseline
            .watched_all()
            .filter(|(workload, watched)| *watched < warmup && self.filter.matches_owner(&workload.owner()))
            .map(|(workload, watched)| (watched, workload))
            .collect();
        if young.is_empty() {
            return None;
        }
        young.sort_unstable_by_key(|(watched, _)| Reverse(*watched));
        let named: Vec<_> = young
            .iter()
            .take(NAMED)
            .map(|(watched, workload)| format!("{workload} for {} s", watched.as_secs()))
            .collect();
        let more = young.len().saturating_sub(NAMED);
        Some(format!(
            "There are no verdicts yet about {} that {} been watched for less than {}: {}{}.",
            if young.len() == 1 {
                "a workload".to_owned()
            } else {
                format!("{} workloads", young.len())
            },
            if young.len() == 1 { "has" } else { "have" },
            humantime::format_duration(warmup),
            named.join(", "),
            if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            },
        ))
    }
}

/// An owner as a group has it.
#[derive(Clone, Copy)]
struct Known {
    /// Number of the reduced owner; `None`: the filter does not want this owner.
    group: Option<u32>,
}

type GroupKey = (u32, Option<Call>, Option<Category>);

struct Groups<'a> {
    query: &'a CallQuery,
    store: &'a SyscallStore,
    owners: &'a OwnerTable,
    verdicts: &'a Option<BTreeMap<(&'a Workload, Call), &'a Verdict>>,
    known: HashMap<OwnerId, (Known, Option<Workload>)>,
    reduced: HashMap<Arc<Owner>, u32>,
    rows: BTreeMap<GroupKey, CallRow>,
    /// Calls of which it is not known whether they are those that are asked for.
    hidden: u64,
}

impl Groups<'_> {
    fn add(&mut self, id: OwnerId, call: Call, mut record: Record, (from_ns, to_ns): (u64, u64)) {
        let Self {
            query,
            store,
            owners,
            verdicts,
            known,
            reduced,
            rows,
            hidden,
        } = self;
        let unknown = call.number == Call::UNKNOWN && query.filter.names_calls();
        if !unknown && !query.filter.matches_call(call) {
            return;
        }
        let errnos = query.filter.errnos();
        if !errnos.is_empty() {
            let Some(measured) = &record.measured else {
                return;
            };
            let mut failed = Measured::default();
            for &(errno, count) in measured.errors.iter().filter(|(errno, _)| errnos.contains(errno)) {
                failed.add_error(errno, count);
                failed.returned = failed.returned.saturating_add(count);
            }
            if failed.returned == 0 {
                return;
            }
            record = Record {
                count: failed.returned,
                measured: Some(Box::new(failed)),
            };
        }
        let (Known { group }, workload) = &*known.entry(id).or_insert_with(|| {
            let owner = owners.get(id);
            let workload = verdicts.as_ref().map(|_| Workload::of(&owner));
            if store.is_elsewhere(&owner) || !query.filter.matches_owner(&owner) {
                return (Known { group: None }, workload);
            }
            let next = reduced.len() as u32;
            let owner = Arc::new(query.grouping.level.reduce(&owner));
            let group = *reduced.entry(owner).or_insert(next);
            (Known { group: Some(group) }, workload)
        });
        let Some(group) = *group else {
            return;
        };
        if unknown {
            *hidden = hidden.saturating_add(record.count);
            return;
        }
        let change = match (verdicts, workload) {
            (Some(verdicts), Some(workload)) => match verdicts.get(&(workload, call)) {
                Some(verdict) => Some((*verdict).clone()),
                None => return,
            },
            _ => None,
        };
        let Grouping {
            level,
            by_call,
            by_category,
        } = query.grouping;
        let key = (
            group,
            by_call.then_some(call),
            by_category.then(|| Category::of(call)),
        );
        let row = rows.entry(key).or_insert_with(|| CallRow {
            owner: (level != Level::Nothing).then(|| Arc::new(level.reduce(&owners.get(id)))),
            call: key.1,
            category: key.2,
            record: Record::default(),
            first_ns: from_ns,
            last_ns: to_ns,
            waits: Vec::new(),
            change,
        });
        row.last_ns = to_ns;
        row.record.add(&record);
        // How long calls took is not known by their error.
        if !by_call
            && errnos.is_empty()
            && let Some(measured) = &record.measured
        {
            let class = Waiting::of(call);
            match row.waits.iter_mut().find(|(known, ..)| *known == class) {
                Some((_, total, count)) => {
                    *total = total.saturating_add(measured.total_ns);
                    *count = count.saturating_add(measured.returned);
                }
                None => row.waits.push((class, measured.total_ns, measured.returned)),
            }
        }
    }
}

impl CallRow {
    fn failed(&self) -> u64 {
        self.record
            .measured
            .as_ref()
            .map_or(0, |measured| measured.failed())
    }

    fn rank(&self, sort: v1::SyscallSort) -> u64 {
        let measured = self.record.measured.as_ref();
        match sort {
            v1::SyscallSort::Count => self.record.count,
            v1::SyscallSort::Errors => self.failed(),
            v1::SyscallSort::Time => measured.map_or(0, |measured| measured.total_ns),
            v1::SyscallSort::P99 => measured
                .and_then(|measured| measured.percentile(0.99))
                // Longer than every bound.
                .map_or(0, |bound| if bound == 0 { u64::MAX } else { bound }),
        }
    }

    /// Its message. Cost: some ten allocations.
    pub(crate) fn message(&self, node: &str) -> v1::SyscallRow {
        let mut row = v1::SyscallRow {
            node: node.to_owned(),
            owner: self.owner.as_deref().map(|owner| endpoint(owner, true)),
            count: self.record.count,
            first: Some(timestamp(self.first_ns)),
            last: Some(timestamp(self.last_ns)),
            change: self.change.as_ref().map(change),
            number: -1,
            ..v1::SyscallRow::default()
        };
        if let Some(call) = self.call {
            row.syscall = call.name().into_owned();
            if call.number != Call::UNKNOWN {
                row.abi = v1::SyscallAbi::from(call.abi).into();
            }
            if call.has_number() {
                row.number = i64::from(call.number);
            }
            row.category = Category::of(call).name().to_owned();
        }
        if let Some(category) = self.category {
            category.name().clone_into(&mut row.category);
        }
        if let Some(measured) = &self.record.measured {
            row.returned = measured.returned;
            row.failed = measured.failed();
            row.errors = measured
                .errors
                .iter()
                .map(|&(errno, count)| (errno::name(errno).into_owned(), count))
                .collect();
            if measured.buckets.iter().any(|&count| count != 0) {
                row.total_ns = Some(measured.total_ns);
                row.p50_ns = measured.percentile(0.5);
                row.p99_ns = measured.percentile(0.99);
                row.buckets = measured
                    .buckets
                    .iter()
                    .enumerate()
                    .filter(|(_, count)| **count != 0)
                    .map(|(bucket, &count)| v1::LatencyBucket {
                        below_ns: upper_bound(bucket),
                        count,
                    })
                    .collect();
            }
        }
        let mut waits = self.waits.clone();
        waits.sort_unstable_by_key(|&(class, total, _)| (Reverse(total), class));
        row.waits = waits
            .into_iter()
            .map(|(class, total_ns, count)| v1::SyscallWait {
                class: class.name().to_owned(),
                total_ns,
                count,
            })
            .collect();
        row
    }
}

/// The message of a verdict.
pub(crate) fn change(verdict: &Verdict) -> v1::SyscallChange {
    v1::SyscallChange {
        kind: match verdict.change {
            Change::New => v1::SyscallKind::New,
            Change::Anomaly => v1::SyscallKind::Anomalies,
        }
        .into(),
        watched: prost_types::Duration::try_from(verdict.watched).ok(),
        time: Some(timestamp(verdict.time_ns)),
        rate: verdict.rate,
        mean_rate: verdict.mean,
        deviation: verdict.deviation,
        score: verdict.score,
        explanation: verdict.explanation(),
    }
}

fn duration(ns: u64) -> prost_types::Duration {
    prost_types::Duration::try_from(std::time::Duration::from_nanos(ns)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
