//! How the server is: for `GetAgentStatus`, metrics and readiness.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use orb8_fleet::{HubCounts, Members, OwnStatus, Reach};
use orb8_proto::v1::{self, AgentStatus, KubernetesStatus, LedgerRow, Limit, NodeState, Setting};
use orb8_tls::ConnectionCounts;
use prost_types::Timestamp;

use crate::{
    discovery::Discovery,
    guard::GuardCounts,
    metrics::Metrics,
    pool::{Pool, PoolCounts},
    settings::Settings,
    wall_clock,
};

/// What there is to tell.
pub(crate) struct State {
    settings: Settings,
    started: Instant,
    started_at: Timestamp,
    pub(crate) discovery: Discovery,
    pub(crate) members: Members,
    pub(crate) pool: Arc<PoolCounts>,
    pub(crate) hub: Arc<HubCounts>,
    in_use: Box<dyn Fn() -> (usize, usize) + Send + Sync>,
    pub(crate) connections: Arc<ConnectionCounts>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refusals: Arc<GuardCounts>,
}

/// How many agents are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agents {
    pub(crate) connected: u64,
    pub(crate) unreachable: u64,
    pub(crate) silent: u64,
}

impl State {
    pub(crate) fn new(
        settings: Settings,
        discovery: Discovery,
        pool: &Pool,
        hub: &orb8_fleet::Hub,
        connections: Arc<ConnectionCounts>,
        metrics: Arc<Metrics>,
        refusals: Arc<GuardCounts>,
    ) -> Self {
        let in_use = hub.clone();
        Self {
            settings,
            started: Instant::now(),
            started_at: wall_clock::timestamp(),
            discovery,
            members: pool.members.clone(),
            pool: pool.counts.clone(),
            hub: hub.counts(),
            in_use: Box::new(move || in_use.in_use()),
            connections,
            metrics,
            refusals,
        }
    }

    /// Whether it is known which agents there are, and each has been tried.
    pub(crate) fn is_ready(&self) -> bool {
        self.discovery.is_known()
    }

    pub(crate) fn agents(&self) -> Agents {
        let mut agents = Agents::default();
        for member in self.members.borrow().iter() {
            match &member.reach {
                Reach::Channel(_) => agents.connected += 1,
                Reach::Away {
                    state: NodeState::Silent,
                    ..
                } => agents.silent += 1,
                Reach::Away { .. } => agents.unreachable += 1,
            }
        }
        agents
    }

    /// Questions and streams that are being answered.
    pub(crate) fn in_use(&self) -> (u64, u64) {
        let (queries, streams) = (self.in_use)();
        (queries as u64, streams as u64)
    }

    /// Seconds by which the agents' clocks differ from this one's, at most.
    pub(crate) fn clock_offset(&self) -> f64 {
        let members = self.members.borrow();
        let most = members
            .iter()
            .map(|member| member.clock.correction_ns().unsigned_abs())
            .max();
        most.unwrap_or(0) as f64 / 1e9
    }

    fn name(&self) -> String {
        self.settings
            .name
            .clone()
            .or_else(|| std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()))
            .or_else(|| {
                let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
                Some(name.trim().to_owned())
            })
            .unwrap_or_else(|| "orb8-server".to_owned())
    }
}

impl OwnStatus for State {
    fn status(&self) -> AgentStatus {
        let (queries, streams) = self.in_use();
        let (memory, cpu) = process();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let limit = |name: &str, unit: &str, used, max: u32, turned_away, setting: &str| Limit {
            name: name.to_owned(),
            unit: unit.to_owned(),
            used,
            max: u64::from(max),
            turned_away,
            setting: setting.to_owned(),
        };
        let settings = &self.settings;
        let handed_on = load(&self.hub.events);
        let lost = load(&self.hub.events_lost);
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.name(),
            started: Some(self.started_at),
            uptime: Some(wall_clock::duration(self.started.elapsed())),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map(|release| release.trim().to_owned())
                .unwrap_or_default(),
            ledger: vec![LedgerRow {
                family: "server".to_owned(),
                stage: "streams".to_owned(),
                unit: "events".to_owned(),
                seen: handed_on + lost,
                counted: handed_on,
                filtered: 0,
                lost,
                lost_bytes: 0,
                advice: if lost > 0 {
                    "clients took events too slowly: ask for fewer, by a filter".to_owned()
                } else {
                    String::new()
                },
            }],
            limits: vec![
                limit(
                    "queries",
                    "questions",
                    queries,
                    settings.queries,
                    load(&self.hub.refused),
                    "--queries",
                ),
                limit("streams", "clients", streams, settings.streams, 0, "--streams"),
                limit(
                    "connections",
                    "connections",
                    load(&self.connections.open),
                    settings.connections,
                    load(&self.connections.refused),
                    "--connections, --connections-per-source",
                ),
            ],
            rss_bytes: memory,
            cpu: Some(wall_clock::duration(cpu)),
            settings: settings.describe(),
            kubernetes: Some(self.kubernetes()),
            transport: settings.transport().to_owned(),
            ..AgentStatus::default()
        }
    }
}

impl State {
    fn kubernetes(&self) -> KubernetesStatus {
        let watches: Vec<_> = self
            .discovery
            .watches
            .iter()
            .map(crate::watching::WatchState::status)
            .collect();
        let failed = watches.iter().find(|watch| watch.state() != v1::State::Active);
        KubernetesStatus {
            state: match (watches.is_empty(), failed) {
                (true, _) => v1::State::Off.into(),
                (false, None) => v1::State::Active.into(),
                (false, Some(_)) => v1::State::Failed.into(),
            },
            reason: match failed {
                Some(watch) if watch.reason.is_empty() => format!("{} are not known yet", watch.resource),
                Some(watch) => format!("{}: {}", watch.resource, watch.reason),
                None if watches.is_empty() => self.discovery.source.clone(),
                None => String::new(),
            },
            server: self.discovery.api_server.clone(),
            source: self.discovery.source.clone(),
            watches,
        }
    }
}

/// Resident memory in bytes, and processor time, of this process.
pub(crate) fn process() -> (u64, std::time::Duration) {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let resident = text("/proc/self/status")
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0);
    // Nanoseconds on a processor, of each thread (Documentation/scheduler/sched-stats.rst).
    let cpu: u64 = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        })
        .sum();
    (resident * 1024, std::time::Duration::from_nanos(cpu))
}

impl Settings {
    /// Each setting with its value, in the order of `--help`.
    #[must_use]
    pub fn describe(&self) -> Vec<Setting> {
        let time = |time| humantime::format_duration(time).to_string();
        let file = |path: &Option<std::path::PathBuf>| {
            path.as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        };
        let agents: Vec<&str> = self.agents.iter().map(|agent| agent.0.as_str()).collect();
        let service = self.agent_service.as_ref();
        [
            ("grpc_address", self.grpc_address.to_string()),
            ("grpc_port", self.grpc_port.to_string()),
            ("metrics_address", self.metrics_address.to_string()),
            ("metrics_port", self.metrics_port.to_string()),
            ("agents", agents.join(",")),
            (
                "agent_service",
                service
                    .map(|of| format!("{}/{}", of.namespace, of.name))
                    .unwrap_or_default(),
            ),
            ("agent_srv", self.agent_srv.clone().unwrap_or_default()),
            ("kubeconfig", file(&self.kubeconfig)),
            ("tls_ca", file(&self.tls_ca)),
            ("tls_cert", file(&self.tls_cert)),
            ("tls_key", file(&self.tls_key)),
            ("insecure", self.insecure.to_string()),
            ("token_review", self.token_review.to_string()),
            ("token_audiences", self.token_audiences.join(",")),
            ("client_queries", self.client_queries.to_string()),
            ("client_streams", self.client_streams.to_string()),
            ("deadline", time(self.deadline)),
            ("heartbeat", time(self.heartbeat)),
            ("queries", self.queries.to_string()),
            ("streams", self.streams.to_string()),
            ("concurrency", self.concurrency.to_string()),
            ("patience", time(self.patience)),
            ("connections", self.connections.to_string()),
            ("connections_per_source", self.connections_per_source.to_string()),
            ("rows", self.rows.to_string()),
            ("name", self.name.clone().unwrap_or_default()),
            ("log", self.log.clone()),
        ]
        .into_iter()
        .map(|(name, value)| Setting {
            name: name.to_owned(),
            value,
            source: String::new(),
        })
        .collect()
    }
}
