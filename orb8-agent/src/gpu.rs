//! The GPU family: sources are sampled, the kubelet is asked who holds what, errors are followed.
//!
//! `Gpus` holds what is known; one task or thread for each source brings it up to date. A source that is not there, as on a
//! node without a GPU, is looked for now and then, silently.

mod allocations;
mod cuda;
mod exporter;
mod idle;
mod library;
mod live;
mod owners;
mod query;
mod standalone;
pub(crate) mod strain;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use orb8_gpu::{
    Foreign, Limits, Monitor, Owners, allocation::Allocations, driver, nvml::XidEvent, sample::Snapshot,
};
use orb8_proto::v1;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(crate) use self::{
    cuda::Cuda,
    idle::explain,
    live::{GpuEvents, GpuLive, ReceivedGpu},
    owners::{NodeOwners, PodSelection},
    query::{batches, checked},
};
pub use self::{query::GpuQueryError, standalone::GpuAgent};
use crate::{
    core::lock,
    ledger,
    settings::{NvmlLibrary, Settings},
};

/// Longest wait before a source that is not there is looked for again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kinds of errors of all devices that are counted each.
const MAX_ERRORS: usize = 1024;

/// Which sources there are, and how often they are sampled.
#[derive(Clone, Debug)]
pub(crate) struct GpuOptions {
    pub(crate) enabled: bool,
    pub(crate) interval: Duration,
    pub(crate) history: Duration,
    pub(crate) exporter: Option<String>,
    pub(crate) pod_resources: Option<PathBuf>,
    /// None: off. Some of none: where the loader finds it.
    pub(crate) library: Option<Option<PathBuf>>,
    /// Where the driver tells of its GPUs.
    pub(crate) driver: PathBuf,
}

impl GpuOptions {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            enabled: settings.gpu,
            interval: settings.gpu_interval,
            history: settings.history,
            exporter: settings.gpu_dcgm_url.get().map(str::to_owned),
            pod_resources: settings.gpu_pod_resources.get().map(ToOwned::to_owned),
            library: match &settings.gpu_nvml {
                NvmlLibrary::Off => None,
                NvmlLibrary::Auto => Some(None),
                NvmlLibrary::At(path) => Some(Some(path.clone())),
            },
            driver: PathBuf::from(driver::DIRECTORY),
        }
    }
}

/// What became of asking a source.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// It answered.
    Answered,
    /// It is not there.
    Absent(String),
    /// It is there, and does not work.
    Failed(String),
}

/// That GPUs of other nodes were told of; none: there were none.
fn strangers(foreign: &[Foreign]) -> Option<String> {
    const NAMED: usize = 4;
    let gpus: usize = foreign.iter().map(|foreign| foreign.uuids.len()).sum();
    let first = foreign.iter().flat_map(|foreign| &foreign.uuids).next()?;
    let mut hosts: Vec<&str> = foreign
        .iter()
        .filter_map(|foreign| foreign.host.as_deref())
        .collect();
    let more = if hosts.len() > NAMED { " and others" } else { "" };
    hosts.truncate(NAMED);
    let of = if hosts.is_empty() {
        "another node, which the page does not name,".to_owned()
    } else {
        format!("{}{more}", hosts.join(", "))
    };
    let each = match gpus {
        1 => format!("a GPU of {of} ({first}), which is none of this node's"),
        gpus => format!("{gpus} GPUs of {of} (such as {first}), which are none of this node's"),
    };
    Some(format!(
        "the page of dcgm-exporter tells of {each}: let gpu_dcgm_url lead to this node's own exporter, not to a name that \
         stands for those of several nodes"
    ))
}

/// What is known of the node's GPUs.
///
/// The monitor's lock is taken before that of names.
#[derive(Debug)]
pub(crate) struct Gpus {
    monitor: Mutex<Monitor>,
    sources: Mutex<BTreeMap<&'static str, v1::GpuSource>>,
    pub(crate) live: GpuLive,
    /// Errors so far, by UUID and number.
    errors: Mutex<BTreeMap<(String, u32), u64>>,
    /// What the exporter's page told of other nodes' GPUs, beside this node's.
    strangers: Mutex<Option<String>>,
    /// How holders' cgroups were held up.
    pub(crate) strains: Mutex<strain::Strains>,
    /// Calls of the CUDA libraries.
    pub(crate) cuda: Cuda,
    options: GpuOptions,
}

impl Gpus {
    pub(crate) fn new(node: &str, options: GpuOptions, buffer: u32) -> Self {
        let samples = options.history.as_secs() / options.interval.as_secs().max(1);
        let limits = Limits {
            history: usize::try_from(samples).unwrap_or(usize::MAX).saturating_add(2),
            ..Limits::default()
        };
        Self {
            monitor: Mutex::new(Monitor::new(node, options.interval, limits)),
            sources: Mutex::new(BTreeMap::new()),
            live: GpuLive::new(buffer),
            errors: Mutex::new(BTreeMap::new()),
            strangers: Mutex::new(None),
            strains: Mutex::default(),
            cuda: Cuda::default(),
            options,
        }
    }

    /// Begins to sample. Tasks end with `stop`; threads that wait for the driver, when it answers.
    pub(crate) fn start(
        self: &Arc<Self>,
        owners: Arc<dyn Owners + Send + Sync>,
        stop: &CancellationToken,
    ) -> Vec<JoinHandle<()>> {
        let mut tasks = Vec::new();
        if !self.options.enabled {
            return tasks;
        }
        if let Some(socket) = &self.options.pod_resources {
            self.expect("pod-resources", socket.display().to_string());
            tasks.push(tokio::spawn(allocations::follow(
                self.clone(),
                owners.clone(),
                socket.clone(),
                stop.clone(),
            )));
        }
        if let Some(url) = &self.options.exporter {
            self.expect("dcgm", url.clone());
            tasks.push(tokio::spawn(exporter::follow(
                self.clone(),
                owners.clone(),
                url.clone(),
                stop.clone(),
            )));
        }
        if let Some(path) = &self.options.library {
            let shown = path.as_ref().map_or_else(
                || orb8_gpu::nvml::DEFAULT_LIBRARY.to_owned(),
                |path| path.display().to_string(),
            );
            self.expect("nvml", shown);
            library::follow(self, owners, path.clone(), stop.clone());
        }
        tasks
    }

    fn expect(&self, name: &'static str, address: String) {
        let source = v1::GpuSource {
            name: name.to_owned(),
            state: v1::State::Unspecified.into(),
            reason: "not asked yet".to_owned(),
            address,
            ..v1::GpuSource::default()
        };
        lock(&self.sources).insert(name, source);
    }

    /// Keeps what became of asking a source; a change is logged.
    pub(crate) fn asked(&self, name: &'static str, asked: &Asked) {
        let mut sources = lock(&self.sources);
        let Some(source) = sources.get_mut(name) else {
            return;
        };
        let (state, reason) = match asked {
            Asked::Answered => {
                source.samples += 1;
                source.last = Some(SystemTime::now().into());
                (v1::State::Active, "")
            }
            // What has answered before is not just absent.
            Asked::Absent(reason) if source.samples == 0 => (v1::State::Off, reason.as_str()),
            Asked::Absent(reason) | Asked::Failed(reason) => {
                source.failures += 1;
                (v1::State::Failed, reason.as_str())
            }
        };
        if source.state != i32::from(state) {
            let address = &source.address;
            match state {
                v1::State::Active => info!(source = name, address, "GPUs: the source answers"),
                v1::State::Failed => warn!(source = name, address, reason, "GPUs: the source does not work"),
                _ => debug!(source = name, address, reason, "GPUs: the source is not there"),
            }
        }
        source.state = state.into();
        reason.clone_into(&mut source.reason);
    }

    /// How long to wait before a source is asked again, after so many times that it was not there.
    pub(crate) fn wait(&self, absences: u32) -> Duration {
        let wait = self.options.interval.saturating_mul(1 << absences.min(6));
        if absences == 0 { wait } else { wait.min(PATIENCE) }
    }

    pub(crate) fn history(&self) -> Duration {
        self.options.history
    }

    pub(crate) fn interval(&self) -> Duration {
        self.options.interval
    }

    /// Takes in an exporter's page, as far as it is this node's.
    pub(crate) fn scraped(&self, mut snapshot: Snapshot, owners: &dyn Owners) -> Asked {
        let gpus = driver::gpus(&self.options.driver);
        let foreign = lock(&self.monitor).own(&mut snapshot, &gpus, owners);
        let note = strangers(&foreign);
        let is_all = !foreign.is_empty() && snapshot.devices.is_empty();
        let partly = note.clone().filter(|_| !is_all);
        let before = std::mem::replace(&mut *lock(&self.strangers), partly);
        match note {
            Some(note) if is_all => return Asked::Failed(note),
            Some(note) if before.is_none() => warn!(note, "GPUs: some are left out"),
            _ => {}
        }
        // An exporter does not tell the numbers of device nodes, by which some device plugins name devices.
        driver::number(&mut snapshot.devices, &gpus);
        self.sampled(snapshot, owners);
        Asked::Answered
    }

    /// Takes in a sample. Cost: a look at /proc for each process on a device.
    pub(crate) fn sampled(&self, snapshot: Snapshot, owners: &dyn Owners) {
        if let Some(reason) = &snapshot.first_rejected {
            debug!(
                source = snapshot.source.name(),
                rejected = snapshot.rejected,
                reason,
                "GPUs: values cannot be used"
            );
        }
        let events = lock(&self.monitor).sample(snapshot, owners);
        for event in events {
            self.tell(event);
        }
    }

    /// Takes in who holds what.
    pub(crate) fn allocated(&self, allocations: Allocations, owners: &dyn Owners) {
        lock(&self.monitor).allocate(allocations, owners);
    }

    /// The kubelet cannot be asked.
    pub(crate) fn allocations_unknown(&self) {
        lock(&self.monitor).allocations_unknown();
    }

    /// Takes in an error as it happens.
    pub(crate) fn happened(&self, event: &XidEvent) {
        let event = lock(&self.monitor).happened(event);
        if let Some(event) = event {
            self.tell(event);
        }
    }

    fn tell(&self, event: v1::GpuEvent) {
        warn!(
            uuid = event.uuid,
            xid = event.xid,
            meaning = event.meaning,
            "GPUs: an XID error"
        );
        {
            let mut errors = lock(&self.errors);
            let key = (event.uuid.clone(), event.xid);
            // Drivers know some 150 numbers, but this one may be made up.
            if errors.len() < MAX_ERRORS || errors.contains_key(&key) {
                *errors.entry(key).or_default() += 1;
            }
        }
        self.live.send(event);
    }

    /// How often each error was told since the start: UUID, number, count.
    pub(crate) fn errors(&self) -> Vec<(String, u32, u64)> {
        let errors = lock(&self.errors);
        errors
            .iter()
            .map(|((uuid, xid), count)| (uuid.clone(), *xid, *count))
            .collect()
    }

    /// Whether there is no device, and nobody holds one.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.monitor).is_empty()
    }

    /// Who holds or uses a device now, each once.
    pub(crate) fn holders(&self) -> Vec<v1::Endpoint> {
        let answer = lock(&self.monitor).query(&v1::GpuQuery::default(), SystemTime::now(), None);
        let mut holders: Vec<v1::Endpoint> = Vec::new();
        for device in answer.map(|answer| answer.devices).unwrap_or_default() {
            for owner in device.holders.into_iter().filter_map(|holder| holder.owner) {
                if !holders.contains(&owner) {
                    holders.push(owner);
                }
            }
        }
        holders
    }

    pub(crate) fn sources(&self) -> Vec<v1::GpuSource> {
        lock(&self.sources).values().cloned().collect()
    }

    /// Sources for a status: those that are there.
    pub(crate) fn programs(&self) -> Vec<v1::ProgramStatus> {
        self.sources()
            .into_iter()
            .filter(|source| source.name != "cuda" || source.state() == v1::State::Failed)
            .filter(|source| matches!(source.state(), v1::State::Active | v1::State::Failed))
            .map(|source| v1::ProgramStatus {
                family: "gpu".to_owned(),
                state: source.state,
                name: source.name,
                reason: source.reason,
                ..v1::ProgramStatus::default()
            })
            .chain(self.cuda.programs())
            .collect()
    }

    /// Memory of the history, if there is any device.
    pub(crate) fn limits(&self) -> Vec<v1::Limit> {
        let monitor = lock(&self.monitor);
        if monitor.is_empty() {
            return Vec::new();
        }
        let counted = monitor.counted();
        vec![v1::Limit {
            name: "gpu devices".to_owned(),
            unit: "devices".to_owned(),
            used: monitor.len() as u64,
            max: Limits::default().devices as u64,
            turned_away: counted.refused,
            setting: String::new(),
        }]
    }

    /// What passed each stage, and what was lost; nothing while there is no source.
    pub(crate) fn ledger(&self) -> Vec<v1::LedgerRow> {
        let sources = self.sources();
        let counted = lock(&self.monitor).counted();
        let missed = self.live.missed();
        let cuda = self.cuda.ledger();
        if counted.samples == 0 && counted.allocations == 0 && counted.foreign == 0 {
            return cuda;
        }
        let row = |stage: &str, unit: &str, counted: u64, lost: u64, advice: &str| {
            ledger::row("gpu", stage, unit, [counted + lost, 0, lost], advice)
        };
        let of_readings = || sources.iter().filter(|source| source.name != "cuda");
        let answers: u64 = of_readings().map(|source| source.samples).sum();
        let failures: u64 = of_readings().map(|source| source.failures).sum();
        let mut rows = vec![
            row(
                "sources",
                "answers",
                answers,
                failures,
                "a source did not answer: `orb8 gpu` says which, and why",
            ),
            row(
                "values",
                "values",
                counted.values,
                counted.rejected,
                "a source told values that cannot be true, or contradict each other: with log=debug the log has the first of \
                 each sample",
            ),
            row(
                "devices",
                "devices",
                counted.devices,
                counted.refused,
                "more devices, processes or holders than are kept: some are missing in answers",
            ),
            row(
                "events",
                "records",
                self.live.delivered(),
                missed,
                "a client took live events too slowly; raise stream_buffer",
            ),
        ];
        if counted.foreign > 0 {
            rows.push(row(
                "nodes",
                "devices",
                counted.devices,
                counted.foreign,
                "an exporter's page told of GPUs of other nodes, which were left out: let gpu_dcgm_url lead to the exporter of \
                 the agent's own node",
            ));
        }
        rows.extend(cuda);
        rows
    }

    /// What a scrape shows: each device as of the last sample, with what its counters rose by since the start.
    pub(crate) fn devices(&self) -> Vec<(v1::GpuDevice, orb8_gpu::Totals)> {
        let monitor = lock(&self.monitor);
        let answer = monitor.query(&v1::GpuQuery::default(), SystemTime::now(), None);
        answer.map_or_else(
            |_| Vec::new(),
            |answer| {
                let with_totals = |device: v1::GpuDevice| {
                    let totals = monitor.totals(&device);
                    (device, totals)
                };
                answer.devices.into_iter().map(with_totals).collect()
            },
        )
    }
}
