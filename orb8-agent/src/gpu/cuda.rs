//! The running CUDA family: its probe, the reading of what it counted, and what is kept of it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use orb8_common::cuda::Calls;
use orb8_proto::v1;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{PodSelection, strain::is_of};
use crate::{
    core::{Core, lock},
    identity::owner::{Attribution, Owner},
    ledger,
    preflight::Features,
    probe::{
        cuda::{CudaOptions, CudaProbe, CudaSink, CudaStats, Mode, function::Function},
        kernel_clock::unix_now_ns,
    },
    store::endpoint,
};

/// How often processes that have just started are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often counts are taken out of the kernel.
const READ: Duration = Duration::from_secs(1);
/// Pairs of cgroup and function that are known.
const MAX_ROWS: usize = 8192;
/// Entries of the history of all of them: 48 bytes each.
const MAX_HISTORY: usize = 65_536;

/// Whose calls are counted.
const CALLS: &str = "libcuda and libcudart of processes";
/// Why none are, as a rule.
const OFF: &str = "their probes are off, as they are unless the agent's setting gpu_cuda says otherwise";
/// Why none are in an agent that has no probes at all.
const NO_PROBES: &str = "it takes an agent, with probes, to count them";

/// What is known of calls of the CUDA libraries.
#[derive(Debug, Default)]
pub(crate) struct Cuda {
    probe: Mutex<Option<CudaProbe>>,
    calls: Mutex<CudaStore>,
}

/// Calls since the start, and of the recent past.
#[derive(Debug, Default)]
struct CudaStore {
    owners: HashMap<u64, Arc<Owner>>,
    rows: BTreeMap<(u64, &'static str), Row>,
    /// When counts were read, and what came since the time before: oldest first.
    history: VecDeque<Interval>,
    entries: usize,
    held: BTreeMap<u64, u64>,
    /// Pairs that there was no room for.
    refused: u64,
    failures: u64,
}

#[derive(Debug)]
struct Row {
    function: &'static Function,
    calls: Calls,
    last_ns: u64,
}

#[derive(Debug)]
struct Interval {
    from_ns: u64,
    to_ns: u64,
    calls: Vec<(u64, &'static Function, Calls)>,
}

fn add(sum: &mut Calls, more: &Calls) {
    sum.count = sum.count.saturating_add(more.count);
    sum.errors = sum.errors.saturating_add(more.errors);
    sum.bytes = sum.bytes.saturating_add(more.bytes);
    sum.total_ns = sum.total_ns.saturating_add(more.total_ns);
    sum.returned = sum.returned.saturating_add(more.returned);
}

/// Collects what is read.
#[derive(Debug, Default)]
struct Sink(Vec<(u64, &'static Function, Calls)>);

impl CudaSink for Sink {
    fn calls(&mut self, cgroup: u64, function: &'static Function, calls: &Calls) {
        self.0.push((cgroup, function, *calls));
    }
}

impl CudaStore {
    fn commit(
        &mut self,
        calls: Vec<(u64, &'static Function, Calls)>,
        from_ns: u64,
        to_ns: u64,
        span_ns: u64,
    ) {
        for (cgroup, function, more) in &calls {
            let key = (*cgroup, function.name);
            if !self.rows.contains_key(&key) && self.rows.len() >= MAX_ROWS {
                let quietest = self
                    .rows
                    .iter()
                    .min_by_key(|(_, row)| row.last_ns)
                    .map(|(key, _)| *key);
                if let Some(quietest) = quietest {
                    self.rows.remove(&quietest);
                    self.refused += 1;
                }
            }
            let row = self.rows.entry(key).or_insert(Row {
                function,
                calls: Calls::default(),
                last_ns: to_ns,
            });
            add(&mut row.calls, more);
            row.last_ns = to_ns;
        }
        self.entries += calls.len();
        self.history.push_back(Interval {
            from_ns,
            to_ns,
            calls,
        });
        while let Some(first) = self.history.front()
            && (self.entries > MAX_HISTORY || first.to_ns.saturating_add(span_ns) < to_ns)
        {
            self.entries -= first.calls.len();
            self.history.pop_front();
        }
        let rows = &self.rows;
        self.owners.retain(|cgroup, _| {
            rows.range((*cgroup, "")..)
                .next()
                .is_some_and(|((of, _), _)| of == cgroup)
        });
    }
}

impl Cuda {
    /// Loads the programs and begins to follow processes, on a thread of its own, until `stop`. Cost: a look at
    /// `/proc/PID/maps` of each process that starts, some times.
    pub(crate) fn start(core: &Arc<Core>, mode: Mode, features: Features, stop: CancellationToken) {
        let cuda = &core.gpus.cuda;
        core.gpus.expect("cuda", CALLS.to_owned());
        if mode == Mode::Off {
            core.gpus.asked("cuda", &super::Asked::Absent(OFF.to_owned()));
            return;
        }
        let options = CudaOptions {
            mode,
            ..CudaOptions::default()
        };
        match CudaProbe::load(&options, features) {
            Ok(probe) => *lock(&cuda.probe) = Some(probe),
            Err(error) => {
                core.gpus.asked("cuda", &super::Asked::Failed(error.to_string()));
                return;
            }
        }
        let handle = Handle::current();
        let started = thread::Builder::new().name("orb8-cuda".to_owned()).spawn({
            let core = core.clone();
            move || run(&core, &stop, &handle)
        });
        match started {
            Ok(_) => info!(
                ?mode,
                "calls of the CUDA libraries are traced, where processes have them"
            ),
            Err(error) => {
                cuda.detach();
                core.gpus.asked(
                    "cuda",
                    &super::Asked::Failed(format!("a thread for it cannot be started: {error}")),
                );
            }
        }
    }

    /// Says that they are not counted, for this process loads no programs at all.
    pub(super) fn go_without(gpus: &super::Gpus) {
        gpus.expect("cuda", CALLS.to_owned());
        gpus.asked("cuda", &super::Asked::Absent(NO_PROBES.to_owned()));
    }

    /// Detaches all programs. Cost: as for [`Left`](crate::probe::cuda::Left), for each library.
    pub(crate) fn detach(&self) {
        // In a statement of its own: the lock is free by the time that it is dropped.
        let probe = lock(&self.probe).take();
        drop(probe);
    }

    /// Calls of each owner and function: since the start, or of a span of time (nanoseconds since 1970), to the second.
    pub(crate) fn calls(
        &self,
        node: &str,
        span: Option<(u64, u64)>,
        selection: Option<&PodSelection>,
    ) -> Vec<v1::CudaCalls> {
        let store = lock(&self.calls);
        let sums: BTreeMap<(u64, &'static str), (&'static Function, Calls)> = match span {
            None => store
                .rows
                .iter()
                .map(|(key, row)| (*key, (row.function, row.calls)))
                .collect(),
            Some((from, to)) => {
                let mut sums = BTreeMap::new();
                let within = |interval: &&Interval| interval.to_ns > from && interval.from_ns < to;
                for (cgroup, function, more) in store.history.iter().filter(within).flat_map(|i| &i.calls) {
                    let sum = sums
                        .entry((*cgroup, function.name))
                        .or_insert((*function, Calls::default()));
                    add(&mut sum.1, more);
                }
                sums
            }
        };
        sums.into_iter()
            .filter_map(|((cgroup, name), (function, calls))| {
                let mut owner = match store.owners.get(&cgroup) {
                    Some(owner) => endpoint(owner, true),
                    None => v1::Endpoint::default(),
                };
                node.clone_into(&mut owner.node);
                if !selection.is_none_or(|selection| selection.matches(&owner)) {
                    return None;
                }
                let measured = calls.returned > 0;
                Some(v1::CudaCalls {
                    node: node.to_owned(),
                    owner: Some(owner),
                    function: name.to_owned(),
                    library: function.library.name().to_owned(),
                    count: calls.count,
                    errors: measured.then_some(calls.errors),
                    bytes: function.has_bytes().then_some(calls.bytes),
                    total_ns: measured.then_some(calls.total_ns),
                })
            })
            .collect()
    }

    /// Time that a holder's threads waited for the GPU in parts of the past (with a weight of 0 to 1 each), in nanoseconds.
    pub(super) fn synchronising(&self, holder: &v1::Endpoint, spans: &[(u64, u64, f64)]) -> f64 {
        let store = lock(&self.calls);
        let mut time = 0.0;
        for interval in &store.history {
            let length = interval.to_ns.saturating_sub(interval.from_ns);
            let common: f64 = spans
                .iter()
                .map(|(from, to, weight)| {
                    interval
                        .to_ns
                        .min(*to)
                        .saturating_sub(interval.from_ns.max(*from)) as f64
                        * weight
                })
                .sum();
            if length == 0 || common <= 0.0 {
                continue;
            }
            let part = (common / length as f64).min(1.0);
            for (cgroup, function, calls) in &interval.calls {
                let is_its = store.owners.get(cgroup).is_some_and(|owner| is_of(holder, owner));
                if is_its && function.name.contains("Synchronize") {
                    time += calls.total_ns as f64 * part;
                }
            }
        }
        time
    }

    /// Device memory that owners hold, as far as it was seen allocated, in bytes.
    pub(crate) fn held(&self) -> Vec<(v1::Endpoint, u64)> {
        let store = lock(&self.calls);
        store
            .held
            .iter()
            .filter_map(|(cgroup, bytes)| Some((endpoint(store.owners.get(cgroup)?, true), *bytes)))
            .collect()
    }

    /// State of the programs, if they are loaded.
    pub(crate) fn programs(&self) -> Vec<v1::ProgramStatus> {
        let probe = lock(&self.probe);
        let programs = probe.as_ref().map(CudaProbe::programs).unwrap_or_default();
        programs
            .into_iter()
            .map(|(name, state, reason, attachments, info)| v1::ProgramStatus {
                family: "cuda".to_owned(),
                name: name.to_owned(),
                state: state.into(),
                reason,
                attachments,
                run_count: info.run_count,
                run_time_ns: info.run_time_ns,
            })
            .collect()
    }

    /// Map memory of the programs, in bytes.
    pub(crate) fn map_bytes(&self) -> u64 {
        lock(&self.probe).as_ref().map_or(0, CudaProbe::map_bytes)
    }

    /// What was met, counted and lost; nothing, if the programs are not loaded.
    pub(crate) fn ledger(&self) -> Vec<v1::LedgerRow> {
        let stats = match &*lock(&self.probe) {
            Some(probe) => probe.stats(),
            None => return Vec::new(),
        };
        let (refused, failures) = {
            let store = lock(&self.calls);
            (store.refused, store.failures)
        };
        rows(&stats, refused, failures)
    }
}

fn rows(stats: &CudaStats, refused: u64, failures: u64) -> Vec<v1::LedgerRow> {
    let row = |stage: &str, unit: &str, numbers: [u64; 3], advice: &str| {
        ledger::row("cuda", stage, unit, numbers, advice)
    };
    vec![
        row(
            "calls",
            "calls",
            [stats.seen, stats.nested, stats.lost],
            "more pairs of cgroup and function than the map holds: their calls are not told apart",
        ),
        row(
            "returns",
            "calls",
            [stats.returned + stats.unmeasured, 0, stats.unmeasured],
            "calls that were counted, and not seen to return: they were there when the programs came, or ended with their thread",
        ),
        row(
            "allocations",
            "allocations",
            [stats.allocated, 0, stats.not_held],
            "more allocations than are followed: what their owners hold is told too low",
        ),
        row(
            "rows",
            "rows",
            [refused + failures, 0, refused + failures],
            "rows of owners that were quiet for longest made room for others, or counts could not be read at once",
        ),
    ]
}

fn run(core: &Core, stop: &CancellationToken, handle: &Handle) {
    let mut last = unix_now_ns();
    let mut next_read = Instant::now() + READ;
    let mut failing = false;
    loop {
        let left = {
            let mut probe = lock(&core.gpus.cuda.probe);
            let Some(probe) = probe.as_mut() else { return };
            probe.follow(Instant::now())
        };
        // Without the lock, which answers and metrics take.
        drop(left);
        if Instant::now() >= next_read {
            next_read = Instant::now() + READ;
            let now = unix_now_ns();
            match read(core, last, now) {
                Ok(()) => {
                    failing = false;
                    core.gpus.asked("cuda", &super::Asked::Answered);
                }
                Err(error) => {
                    lock(&core.gpus.cuda.calls).failures += 1;
                    if !std::mem::replace(&mut failing, true) {
                        warn!(
                            error,
                            "not all counts of CUDA calls could be read; they come with the next"
                        );
                    }
                    core.gpus.asked("cuda", &super::Asked::Failed(error));
                }
            }
            last = now;
        }
        if handle.block_on(async { tokio::time::timeout(LOOK, stop.cancelled()).await.is_ok() }) {
            return;
        }
    }
}

fn read(core: &Core, from_ns: u64, to_ns: u64) -> Result<(), String> {
    let mut sink = Sink::default();
    let mut gone = |cgroup| {
        let names = lock(&core.names);
        names
            .identity
            .cgroups()
            .is_some_and(|cgroups| cgroups.is_gone(cgroup))
    };
    let (result, held) = {
        let mut probe = lock(&core.gpus.cuda.probe);
        let Some(probe) = probe.as_mut() else {
            return Ok(());
        };
        let result = probe
            .read(&mut gone, &mut sink)
            .map_err(|error| error.to_string());
        let held: BTreeMap<u64, u64> = probe
            .held()
            .iter()
            .map(|(cgroup, held)| (*cgroup, held.bytes))
            .collect();
        (result, held)
    };
    let mut named = HashMap::new();
    {
        let mut names = lock(&core.names);
        for cgroup in sink
            .0
            .iter()
            .map(|(cgroup, ..)| *cgroup)
            .chain(held.keys().copied())
        {
            named
                .entry(cgroup)
                .or_insert_with(|| names.socket_owner(cgroup, 0, None, None));
        }
    }
    let mut store = lock(&core.gpus.cuda.calls);
    for (cgroup, owner) in named {
        // A name that was known is not given up for none.
        if owner.attribution != Attribution::Unknown || !store.owners.contains_key(&cgroup) {
            store.owners.insert(cgroup, Arc::new(owner));
        }
    }
    let span_ns = u64::try_from(core.gpus.history().as_nanos()).unwrap_or(u64::MAX);
    store.commit(sink.0, from_ns, to_ns, span_ns);
    store.held = held;
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::cuda::function::FUNCTIONS;

    #[test]
    fn history_and_totals_are_bounded() {
        let mut store = CudaStore::default();
        let calls = Calls {
            count: 1,
            ..Calls::default()
        };
        for second in 0..100_u64 {
            let interval = (0..100)
                .map(|cgroup| (second * 100 + cgroup, &FUNCTIONS[0], calls))
                .collect();
            store.commit(
                interval,
                second * 1_000_000_000,
                (second + 1) * 1_000_000_000,
                10_000_000_000,
            );
        }
        assert_eq!(store.rows.len(), MAX_ROWS);
        assert_eq!(store.refused, 10_000 - MAX_ROWS as u64);
        assert_eq!(store.history.len(), 11);
        assert_eq!(store.entries, 1100);
    }

    #[test]
    fn calls_are_told_since_the_start_and_of_a_span() {
        let cuda = Cuda::default();
        let calls = |count| Calls {
            count,
            errors: 1,
            bytes: 10,
            total_ns: 100,
            returned: count,
        };
        {
            let mut store = lock(&cuda.calls);
            store.owners.insert(7, Arc::new(Owner::default()));
            for second in 0..4_u64 {
                store.commit(
                    vec![(7, &FUNCTIONS[0], calls(2))],
                    second * 1_000_000_000,
                    (second + 1) * 1_000_000_000,
                    u64::MAX,
                );
            }
        }
        let all = cuda.calls("n1", None, None);
        assert_eq!((all.len(), all[0].count, all[0].errors), (1, 8, Some(4)));
        let part = cuda.calls("n1", Some((1_000_000_000, 3_000_000_000)), None);
        assert_eq!((part[0].count, part[0].total_ns), (4, Some(200)));
        assert!(
            cuda.calls("n1", Some((9_000_000_000, 10_000_000_000)), None)
                .is_empty()
        );
    }
}
