//! A running agent: probes attached, pipeline running, services listening.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use orb8_proto::{DESCRIPTORS, v1, v1::orbit_service_server::OrbitServiceServer};
use orb8_tls::{
    Acceptor, ClientCertificates, Connection, ConnectionCounts, ConnectionLimits, OPERATOR, Peer, SERVER,
    TlsError, incoming,
};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Server},
};
use tracing::{debug, info, warn};

use crate::{
    conntrack::{Conntrack, ConntrackLimits},
    core::{Core, DrainCounts, LimitSettings, Store, lock},
    dns::{DnsLimits, DnsNames},
    export::{grpc::Orbit, http},
    gpu::{Cuda, GpuOptions, Gpus, NodeOwners, strain},
    identity::{Identity, IdentityError, IdentityOptions, cgroups::Cgroups, owner::OwnerTable},
    in_process::{self, InProcess, bounded},
    interfaces::{InterfaceError, InterfaceWatcher},
    kubernetes::KubernetesError,
    live::{self, Live},
    membership::{self, Membership},
    memory,
    naming::Names,
    pipeline::{Command, Pipeline, name_points_of},
    preflight::{Finding, Preflight, Verdict},
    probe::{
        cuda,
        kernel_clock::unix_now_ns,
        network::{
            attach::{ClsactGuard, Mechanism, sweep},
            drain::EpochDrain,
            follow::Follower,
            load::{CGROUP, LoadError, Network, NetworkOptions, NetworkPrograms},
            points::Points,
        },
        syscall::{Mode, SyscallOptions},
    },
    settings::{AttachMode, Settings, SyscallMode},
    store::{History, HistoryLimits},
    syscalls::{
        self, ProbeSlot, SyscallLive, SyscallStore, Syscalls,
        baseline::{Baseline, BaselineLimits},
        history::{CallHistory, CallHistoryLimits},
        totals::CallTotals,
    },
};

/// Owners that history may refer to.
const OWNERS: usize = 65_536;
/// What stopping may take; then it ends without waiting.
const STOP_TIME: Duration = Duration::from_millis(1500);
/// How often connection tracking's notifications are taken: their queue holds some 6,000 translated connections.
const TRANSLATIONS: Duration = Duration::from_millis(200);
/// The shortest wait between two looks at containers that have just come.
const MEET: Duration = Duration::from_millis(5);

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The machine lacks something essential.
    #[error("this machine cannot run the probes:{}", list(.0))]
    Preflight(Vec<Finding>),
    /// The programs did not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Owners cannot be found.
    #[error("cannot find out who owns what: {0}")]
    Identity(#[from] IdentityError),
    /// The cluster's configuration cannot be used.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// Interfaces cannot be followed.
    #[error("cannot follow interfaces: {0}")]
    Interfaces(#[from] InterfaceError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {what}: {source}; choose another with {setting}")]
    Listen {
        /// What was to be served.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The setting.
        setting: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Certificates.
    #[error("{0}; see the settings tls_cert, tls_key and tls_ca")]
    Tls(#[from] TlsError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

fn list(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| format!("\n  {}: {} {}", finding.name, finding.found, finding.advice))
        .collect()
}

/// Who may ask the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listen {
    /// Anyone who reaches the addresses of the settings.
    Network,
    /// Only this process, by [`Agent::channel`].
    InProcess,
}

/// A running agent. Dropping it detaches the probes too, but does not wait for the last interval.
#[derive(Debug)]
pub struct Agent {
    core: Arc<Core>,
    stop: CancellationToken,
    pipeline: Option<thread::JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
    in_process: InProcess,
    grpc_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    state_dir: Option<PathBuf>,
    _clsact: Option<ClsactGuard>,
}

impl Agent {
    /// Loads and attaches the probes, and starts to answer. Takes some tens of milliseconds.
    ///
    /// # Errors
    /// [`AgentError`]; then nothing stays attached.
    pub async fn start(settings: &Settings, listen: Listen) -> Result<Self, AgentError> {
        memory::keep_small();
        let preflight = Preflight::run();
        if preflight.verdict() == Verdict::Fatal {
            let fatal = preflight
                .findings
                .into_iter()
                .filter(|finding| finding.verdict == Verdict::Fatal);
            return Err(AgentError::Preflight(fatal.collect()));
        }
        for finding in preflight
            .findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Degraded)
        {
            info!(check = finding.name, advice = finding.advice, "{}", finding.found);
        }
        let acceptor = settings
            .tls()
            .map(|files| Acceptor::new(&files, ClientCertificates::Required))
            .transpose()?;
        let connection_counts = Arc::new(ConnectionCounts::default());
        let transport = match listen {
            Listen::InProcess => "in this process",
            Listen::Network => settings.transport(),
        };
        if matches!(listen, Listen::Network) && acceptor.is_none() && !settings.grpc_address.is_loopback() {
            warn!(
                address = %settings.grpc_address,
                "gRPC is in plain text (insecure): anybody who reaches the port may ask everything"
            );
        }
        // Bind first: a port that is taken is the likeliest mistake, and costs nothing to find.
        let (grpc, metrics) = match listen {
            Listen::InProcess => (None, None),
            Listen::Network => (
                Some(
                    bind(
                        "gRPC",
                        settings.grpc_address,
                        settings.grpc_port,
                        "ORB8_GRPC_PORT",
                    )
                    .await?,
                ),
                if settings.metrics {
                    Some(
                        bind(
                            "metrics",
                            settings.metrics_address,
                            settings.metrics_port,
                            "ORB8_METRICS_PORT",
                        )
                        .await?,
                    )
                } else {
                    None
                },
            ),
        };
        let address = |listener: &Option<TcpListener>| listener.as_ref().and_then(|l| l.local_addr().ok());
        let (grpc_address, metrics_address) = (address(&grpc), address(&metrics));

        let features = preflight.features();
        let ring_bytes = u32::try_from(settings.ring_buffer_size.0).unwrap_or(u32::MAX);
        let network = Network::load(
            &NetworkOptions {
                flow_entries: settings.flow_entries,
                ring_bytes,
                grpc_port: grpc_address.map_or(0, |address| address.port()),
                metrics_port: metrics_address.map_or(0, |address| address.port()),
                loopback_only: [grpc_address, metrics_address]
                    .into_iter()
                    .flatten()
                    .all(|a| a.ip().is_loopback()),
                dns: settings.dns,
            },
            features,
        )?;
        let Network {
            mut programs,
            epochs,
            control,
            counters,
            events,
            dns_answers,
            mut processes,
        } = network;
        let mut identity = Identity::new(IdentityOptions {
            sockets_of_all_namespaces: !features.netns_cookie_in_cgroup_skb,
            ..IdentityOptions::default()
        })?;
        let cgroup_programs = attach_to_cgroups(&mut programs, &identity, settings);
        // After the programs are on: a socket is told of by one or the other.
        match identity.existing_sockets() {
            Ok(sockets) => {
                for socket in sockets {
                    if let Err(error) = processes.learn(socket.cookie, socket.tgid, socket.comm) {
                        warn!(%error, "sockets that were there before are named by their cgroup alone");
                        break;
                    }
                }
            }
            Err(error) => warn!(%error, "sockets that were there before are named by their cgroup alone"),
        }

        let watcher = InterfaceWatcher::new()?;
        let mechanism = match settings.attach {
            AttachMode::Tcx => Mechanism::Tcx,
            AttachMode::Clsact => Mechanism::Clsact,
            AttachMode::Auto if features.tcx => Mechanism::Tcx,
            AttachMode::Auto => Mechanism::Clsact,
        };
        let clsact = sweep_leftovers();

        let stop = CancellationToken::new();
        // Whatever ends this start ends the watches as well.
        let undo = stop.clone().drop_guard();
        let (membership, member) = Membership::find(settings, &stop).await?;
        let (conntrack, conntrack_check) = open_conntrack(settings);
        let names = Names {
            cluster: membership.cluster().filter(|_| member).cloned(),
            conntrack,
            dns: DnsNames::new(DnsLimits::default()),
            identity,
        };
        let has_cluster = membership.cluster().is_some();
        let syscall_options = SyscallOptions {
            callers: settings.syscall_callers,
            latencies: settings.syscall_latencies,
            ring_bytes: u32::try_from(settings.syscall_ring_size.0).unwrap_or(u32::MAX),
            measured: settings
                .syscall_measured
                .calls()
                .iter()
                .map(|call| (call.abi.in_record(), call.number.into()))
                .collect(),
            mode: Mode::Off,
        };
        let mut baseline = Baseline::new(
            BaselineLimits {
                warmup: settings.syscall_warmup,
                ..BaselineLimits::default()
            },
            unix_now_ns(),
        );
        let state_dir = settings.state_dir.get().map(Path::to_owned);
        if let Some(directory) = &state_dir {
            match baseline.load(directory) {
                Ok(workloads) => info!(workloads, "took in what was learned about their calls"),
                Err(error) => warn!(%error, "what workloads call is learned anew"),
            }
        }
        let told = settings.syscall_events.calls().clone();
        let (syscalls, syscall_rings) = Syscalls::new(
            ProbeSlot::new(syscall_options, features),
            SyscallLive::new(told.clone(), settings.stream_buffer),
        );
        let arrival = names.identity.cgroups().map(Cgroups::arrival);

        let (commands, receiver) = mpsc::sync_channel(64);
        let started_ns = unix_now_ns();
        let core = Arc::new(Core {
            node: settings.node.to_string(),
            kernel: kernel_release(),
            started: Instant::now(),
            started_ns,
            settings: settings.describe(),
            checks: preflight
                .findings
                .iter()
                .cloned()
                .map(Into::into)
                .chain(conntrack_check)
                .collect(),
            transport,
            connections: connection_counts.clone(),
            limits: LimitSettings {
                connections: settings.grpc_connections,
                flow_entries: settings.flow_entries,
                ring_bytes,
            },
            syscalls,
            programs: Mutex::new(programs),
            cgroup_programs,
            points: Mutex::new(Points::default()),
            membership,
            gpus: Arc::new(Gpus::new(
                settings.node.as_str(),
                GpuOptions::of(settings),
                settings.stream_buffer,
            )),
            names: Mutex::new(names),
            store: Mutex::new(Store {
                history: History::new(HistoryLimits {
                    span: settings.history,
                    bytes: usize::try_from(settings.history_bytes.0).unwrap_or(usize::MAX),
                    flows: settings.history_flows as usize,
                    series: settings.metrics_series as usize,
                    kubernetes: has_cluster,
                }),
                owners: OwnerTable::new(OWNERS),
                syscalls: SyscallStore::new(
                    CallHistory::new(
                        CallHistoryLimits {
                            span: settings.history,
                            bytes: usize::try_from(settings.syscall_history_bytes.0).unwrap_or(usize::MAX),
                        },
                        started_ns,
                    ),
                    CallTotals::new(
                        settings.syscall_series as usize,
                        u32::try_from(settings.history.as_secs()).unwrap_or(u32::MAX),
                        told,
                    ),
                    baseline,
                    has_cluster,
                ),
            }),
            counters,
            live: Live::new(control.clone(), settings.stream_buffer),

            drains: DrainCounts::default(),
            commands,
            ready: AtomicBool::new(false),
        });
        let pipeline = Pipeline::new(
            core.clone(),
            EpochDrain::new(epochs, control),
            processes,
            settings.interval,
        );
        let pipeline = thread::Builder::new()
            .name("orb8-pipeline".to_owned())
            .spawn(move || pipeline.run(&receiver))
            .map_err(AgentError::Thread)?;
        let (in_process, in_memory) = InProcess::new();
        let mut agent = Self {
            core: core.clone(),
            stop: stop.clone(),
            pipeline: Some(pipeline),
            tasks: Vec::new(),
            in_process,
            grpc_address,
            metrics_address,
            state_dir: state_dir.clone(),
            _clsact: clsact,
        };

        let mut follower = Follower {
            core: core.clone(),
            watcher,
            patterns: settings.interface.clone(),
            mechanism,
            nameless: 0,
        };
        follower.first().await?;
        core.ready.store(true, Ordering::Release);
        // After the interfaces: packets that pass before their programs are on are lost, calls are only not counted yet.
        let mode = match settings.syscall_mode {
            SyscallMode::Off => Mode::Off,
            SyscallMode::Counts => Mode::Counts,
            SyscallMode::Latency => Mode::Latency,
        };
        if let Err(error) = core.set_syscall_mode(mode).await {
            // The rest works without.
            warn!(error, "system calls are not counted");
        }
        agent.tasks.push(tokio::spawn(follower.run(stop.clone())));
        agent.tasks.push(tokio::spawn(live::read_events(
            core.clone(),
            events,
            stop.clone(),
        )));
        agent.tasks.push(tokio::spawn(syscalls::read_events(
            core.clone(),
            syscall_rings,
            stop.clone(),
        )));
        let owners = Arc::new(NodeOwners(core.clone()));
        agent.tasks.extend(core.gpus.start(owners, &stop));
        if settings.gpu {
            agent
                .tasks
                .push(tokio::spawn(strain::follow(core.clone(), stop.clone())));
        }
        let cuda_mode = match settings.gpu_cuda {
            SyscallMode::Off => cuda::Mode::Off,
            SyscallMode::Counts => cuda::Mode::Counts,
            SyscallMode::Latency => cuda::Mode::Latency,
        };
        Cuda::start(&core, cuda_mode, features, stop.clone());
        if let Some(directory) = state_dir {
            agent.tasks.push(tokio::spawn(syscalls::state::save_regularly(
                core.clone(),
                directory,
                stop.clone(),
            )));
        }
        if settings.dns {
            agent.tasks.push(tokio::spawn(live::read_dns_answers(
                core.clone(),
                dns_answers,
                stop.clone(),
            )));
        }
        if let Some(arrival) = arrival {
            agent
                .tasks
                .push(tokio::spawn(meet_newcomers(core.clone(), arrival, stop.clone())));
        }
        if settings.conntrack {
            agent
                .tasks
                .push(tokio::spawn(follow_translations(core.clone(), stop.clone())));
        }
        if !member {
            agent
                .tasks
                .push(tokio::spawn(membership::join(core.clone(), stop.clone())));
        }

        let orbit = Orbit::new(core.clone(), stop.clone());
        agent.tasks.push(tokio::spawn(in_process::serve(
            orbit.clone(),
            in_memory,
            stop.clone(),
        )));
        if let Some(listener) = grpc {
            let limits = ConnectionLimits {
                total: settings.grpc_connections as usize,
                per_source: settings.grpc_connections as usize,
                ..ConnectionLimits::default()
            };
            let secured = acceptor.is_some();
            let connections = incoming(listener, acceptor, limits, connection_counts, stop.clone());
            agent.tasks.push(tokio::spawn(serve_grpc(
                orbit,
                connections,
                secured,
                stop.clone(),
            )));
        }
        if let Some(listener) = metrics {
            agent
                .tasks
                .push(tokio::spawn(http::serve(core.clone(), listener, stop)));
        }
        // From now on the agent stops them.
        undo.disarm();
        Ok(agent)
    }

    /// Where gRPC is served.
    #[must_use]
    pub const fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc_address
    }

    /// Where metrics are served.
    #[must_use]
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// A connection to the agent, in memory.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.in_process.channel()
    }

    /// Takes the last interval out of the kernel, detaches every program and ends all services. Takes less than two
    /// seconds, whatever clients do.
    pub async fn stop(mut self) {
        self.core.ready.store(false, Ordering::Release);
        self.core.barrier().await;
        self.shut_down();
        if let Some(pipeline) = self.pipeline.take() {
            let joined = tokio::task::spawn_blocking(move || pipeline.join());
            if tokio::time::timeout(STOP_TIME, joined).await.is_err() {
                warn!("the pipeline did not end in time");
            }
        }
        if let Some(directory) = self.state_dir.take() {
            let core = self.core.clone();
            let saved = tokio::task::spawn_blocking(move || syscalls::state::save(&core, &directory));
            if tokio::time::timeout(STOP_TIME, saved).await.is_err() {
                warn!("what was learned about workloads' calls was not saved in time");
            }
        }
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }

    /// Detaches, and tells threads and tasks to end.
    fn shut_down(&self) {
        self.stop.cancel();
        lock(&self.core.points).clear();
        lock(&self.core.programs).detach();
        lock(&self.core.syscalls.probe).probe = None;
        self.core.gpus.cuda.detach();
        // A full queue is a pipeline that is about to look.
        let _ = self.core.commands.try_send(Command::Stop);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Connection tracking, unless it is off or cannot be had; then the second says why.
fn open_conntrack(settings: &Settings) -> (Option<Conntrack>, Option<v1::Check>) {
    if !settings.conntrack {
        return (None, None);
    }
    let found = match Conntrack::open(ConntrackLimits::default()) {
        Ok(Some(conntrack)) => return (Some(conntrack), None),
        Ok(None) => "This kernel tracks no connections.".to_owned(),
        Err(error) => format!("Connection tracking cannot be read: {error}."),
    };
    let advice = "Services are shown without their backends. Where kube-proxy runs, load nf_conntrack and nf_conntrack_netlink; \
                  reading them takes CAP_NET_ADMIN.";
    info!(check = "conntrack", advice, "{found}");
    let check = v1::Check {
        name: "conntrack".to_owned(),
        verdict: v1::Verdict::Degraded.into(),
        found,
        advice: advice.to_owned(),
    };
    (None, Some(check))
}

/// Takes connection tracking's notifications in before their queue overruns.
async fn follow_translations(core: Arc<Core>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TRANSLATIONS);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(conntrack) = &mut lock(&core.names).conntrack else {
            return;
        };
        if let Err(error) = conntrack.refresh(Instant::now()) {
            debug!(%error, "translations are not up to date");
        }
    }
}

/// Looks at containers as they come, so that each is known before its first packets are drained.
async fn meet_newcomers(core: Arc<Core>, arrival: Arc<Notify>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = arrival.notified() => {}
        }
        // The runtime moves the first process into the cgroup, and into its namespace, in its own time. Where containers
        // come all the time, none waits for those that never get a process.
        let mut wait = MEET;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let more = {
                let (met, more) = lock(&core.names).meet_newcomers(unix_now_ns());
                if met {
                    name_points_of(&core);
                }
                more
            };
            match more {
                Some(age) => wait = (age / 4).clamp(MEET, MEET * 10),
                None => break,
            }
        }
    }
}

async fn bind(
    what: &'static str,
    ip: std::net::IpAddr,
    port: u16,
    setting: &'static str,
) -> Result<TcpListener, AgentError> {
    let address = SocketAddr::new(ip, port);
    match TcpListener::bind(address).await {
        // All addresses were meant, and this machine has none of IPv6.
        Err(error)
            if ip == std::net::IpAddr::from([0_u16; 8])
                && matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported | io::ErrorKind::AddrNotAvailable
                ) =>
        {
            TcpListener::bind(SocketAddr::new(std::net::IpAddr::from([0_u8; 4]), port)).await
        }
        result => result,
    }
    .map_err(|source| AgentError::Listen {
        what,
        address,
        setting,
        source,
    })
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Removes what an agent that was killed has left; tcx and cgroup links leave nothing.
fn sweep_leftovers() -> Option<ClsactGuard> {
    let names: Vec<String> = nix::net::if_::if_nameindex()
        .map(|interfaces| {
            interfaces
                .iter()
                .map(|i| i.name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default();
    match sweep(names.iter().map(String::as_str)) {
        Ok((guard, removed)) => {
            if removed > 0 {
                info!(
                    removed,
                    "removed clsact filters that an agent which was killed had left"
                );
            }
            Some(guard)
        }
        Err(error) => {
            warn!(%error, "filters that an agent which was killed has left, if any, are not removed");
            None
        }
    }
}

/// Attaches the programs at the cgroup2 root. What does not go is off, with the reason.
fn attach_to_cgroups(
    programs: &mut NetworkPrograms,
    identity: &Identity,
    settings: &Settings,
) -> Vec<(&'static str, v1::State, String)> {
    let root = match identity.cgroups() {
        Some(cgroups) => File::open(cgroups.root())
            .map_err(|error| format!("cannot open {}: {error}", cgroups.root().display())),
        None => Err("no cgroup2 hierarchy is mounted; see `orb8 doctor`".to_owned()),
    };
    CGROUP
        .into_iter()
        .map(|name| {
            let (wanted, setting) = if name == "orb8_tcp" {
                (settings.tcp_health, "tcp_health")
            } else {
                (settings.sockets, "sockets")
            };
            if !wanted {
                return (
                    name,
                    v1::State::Off,
                    format!("switched off by the setting {setting}"),
                );
            }
            let root = match &root {
                Ok(root) => root,
                Err(reason) => return (name, v1::State::Off, reason.clone()),
            };
            match programs.attach_to_cgroup(name, root) {
                Ok(()) => (name, v1::State::Active, String::new()),
                Err(error) => {
                    warn!(program = name, %error, "a program is not attached");
                    (name, v1::State::Failed, error.to_string())
                }
            }
        })
        .collect()
}

/// Serves the connections; `secured`: only to those whose certificate is the server's or an operator's.
async fn serve_grpc(
    orbit: Orbit,
    connections: impl futures::Stream<Item = io::Result<Connection>> + Send + 'static,
    secured: bool,
    stop: CancellationToken,
) {
    let guard = move |request: Request<()>| match request.extensions().get::<Peer>() {
        Some(peer) if secured && !peer.is(SERVER) && !peer.is(OPERATOR) => {
            Err(Status::permission_denied(format!(
                "an agent answers {SERVER} and {OPERATOR}; this certificate is for {}",
                match peer.identities.as_slice() {
                    [] => "no DNS name".to_owned(),
                    names => names.join(", "),
                }
            )))
        }
        None if secured => Err(Status::unauthenticated("who asks is not known")),
        _ => Ok(request),
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<OrbitServiceServer<Orbit>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(Some(64))
        .add_service(health_service)
        .add_service(InterceptedService::new(bounded(orbit), guard));
    match reflection {
        Ok(reflection) => server = server.add_service(InterceptedService::new(reflection, guard)),
        Err(error) => warn!(%error, "gRPC reflection is not served"),
    }
    if let Err(error) = server
        .serve_with_incoming_shutdown(connections.boxed(), stop.cancelled_owned())
        .await
    {
        warn!(%error, "the gRPC service ended");
    }
}
