//! The real agent, in a namespace of a test, and what it answers.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orb8_proto::v1::{
    self, AgentStatus, Direction, Flow, FlowQuery, GetAgentStatusRequest, LedgerRow, State,
    orbit_service_client::OrbitServiceClient, query_flows_response::Part,
};
use tonic::transport::{Channel, Endpoint};

use super::namespace::{Counters, Namespace, Network};

/// For what must happen, but may take its time on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Repeats `attempt` until it gives something.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain waited for: {what}");
        thread::sleep(Duration::from_millis(30));
    }
}

/// The command of the agent, run in `namespace`, with none of the tester's own settings.
pub(crate) fn command<A: AsRef<OsStr>>(
    namespace: &Namespace,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let file = namespace.open();
    let mut command = Command::new(env!("CARGO_BIN_EXE_orb8-agent"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("KUBECONFIG");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ORB8_") {
            command.env_remove(name);
        }
    }
    // SAFETY: one system call, which is safe between fork and exec.
    unsafe { command.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(Into::into)) };
    command
}

/// A running agent, killed at the end.
#[derive(Debug)]
pub(crate) struct Agent<'a> {
    child: Child,
    host: &'a Namespace,
    log: tempfile::NamedTempFile,
}

impl<'a> Agent<'a> {
    /// Starts it in the machine's namespace and waits until it observes both containers.
    pub(crate) fn observing(network: &'a Network, arguments: &[&str]) -> Self {
        let agent = Self::start(&network.host, arguments);
        agent.observes(&["va", "vb"]);
        agent
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(host: &'a Namespace, arguments: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let child = command(host, arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::from(File::create(log.path()).unwrap()))
            .spawn()
            .unwrap();
        let mut agent = Self { child, host, log };
        eventually("the agent's first answer", || {
            if let Some(status) = agent.child.try_wait().unwrap() {
                panic!("the agent ended with {status}:\n{}", agent.log());
            }
            agent.try_status()
        });
        agent
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Waits until the interfaces are observed.
    pub(crate) fn observes(&self, interfaces: &[&str]) {
        let observed = |status: &AgentStatus, name: &str| {
            status
                .interfaces
                .iter()
                .any(|it| it.name == name && it.state == State::Active as i32)
        };
        eventually("interfaces to be observed", || {
            let status = self.status();
            interfaces
                .iter()
                .all(|name| observed(&status, name))
                .then_some(())
        });
    }

    /// Speaks with the agent, on a thread of its namespace.
    pub(crate) fn ask<T: Send, F: Future<Output = Result<T, tonic::Status>>>(
        &self,
        ask: impl FnOnce(OrbitServiceClient<Channel>) -> F + Send,
    ) -> Result<T, tonic::Status> {
        self.host.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let channel = Endpoint::from_static("http://127.0.0.1:9090")
                    .connect()
                    .await
                    .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
                ask(OrbitServiceClient::new(channel)).await
            })
        })
    }

    fn try_status(&self) -> Option<AgentStatus> {
        self.ask(|mut client| async move {
            Ok(client
                .get_agent_status(GetAgentStatusRequest {})
                .await?
                .into_inner())
        })
        .ok()
    }

    pub(crate) fn status(&self) -> AgentStatus {
        self.try_status()
            .unwrap_or_else(|| panic!("the agent does not answer:\n{}", self.log()))
    }

    /// A row of the loss ledger, whose equation is checked.
    pub(crate) fn ledger(&self, stage: &str) -> LedgerRow {
        let status = self.status();
        for row in &status.ledger {
            assert_eq!(row.seen, row.counted + row.filtered + row.lost, "{row:?}");
        }
        let row = status.ledger.into_iter().find(|row| row.stage == stage);
        row.unwrap_or_else(|| panic!("no ledger row {stage}"))
    }

    /// All flows that the agent knows, up to now.
    pub(crate) fn flows(&self) -> Flows {
        // An answer may be up to 50 ms old.
        thread::sleep(Duration::from_millis(60));
        let answer = self.ask(|mut client| async move {
            let mut parts = client.query_flows(FlowQuery::default()).await?.into_inner();
            let (mut flows, mut summary) = (Vec::new(), None);
            while let Some(part) = parts.message().await? {
                match part.part {
                    Some(Part::Batch(batch)) => flows.extend(batch.flows),
                    Some(Part::Summary(last)) => summary = Some(last),
                    None => {}
                }
            }
            Ok((flows, summary))
        });
        let (flows, summary) = answer.unwrap_or_else(|error| panic!("{error}:\n{}", self.log()));
        let summary = summary.expect("an answer without summary is not complete");
        assert_eq!(summary.matched_flows, flows.len() as u64);
        // Whatever another family lost, no flow is missing for it.
        let families: Vec<&str> = summary.ledger.iter().map(|row| row.family.as_str()).collect();
        assert!(
            !families.is_empty() && families.iter().all(|&family| family == "network"),
            "{families:?}"
        );
        Flows { flows }
    }

    /// Flows, and the interfaces' own counters at the same moment: nothing moved in between.
    pub(crate) fn flows_at_rest(&self, network: &Network) -> (Flows, [Counters; 2]) {
        eventually("the network to be quiet", || {
            let before = network.counters();
            let flows = self.flows();
            (network.counters() == before).then_some((flows, before))
        })
    }

    /// Ids of the bpf links that it holds (proc_pid_fdinfo(5)).
    pub(crate) fn links(&self) -> Vec<u32> {
        let directory = format!("/proc/{}/fdinfo", self.pid());
        let infos = fs::read_dir(directory)
            .unwrap()
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
        infos
            .filter_map(|info| {
                info.lines()
                    .find_map(|line| line.strip_prefix("link_id:")?.trim().parse().ok())
            })
            .collect()
    }

    /// Ends it with a signal and waits for it.
    pub(crate) fn end(mut self, signal: Signal) -> (ExitStatus, String) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
        let status = self.exited();
        (status, self.log())
    }

    fn exited(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the agent's end", || child.try_wait().unwrap())
    }

    /// SIGTERM, after which it must end by itself and well.
    pub(crate) fn stop(self) {
        let (status, log) = self.end(Signal::SIGTERM);
        assert!(status.success(), "{status} {:?}:\n{log}", status.signal());
        assert!(!log.contains("panicked"), "{log}");
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

/// What flows sum up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) wire_bytes: u64,
    pub(crate) frames: u64,
    pub(crate) frame_bytes: u64,
}

impl std::ops::Sub for Totals {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            wire_bytes: self.wire_bytes - before.wire_bytes,
            frames: self.frames - before.frames,
            frame_bytes: self.frame_bytes - before.frame_bytes,
        }
    }
}

impl Totals {
    /// `packets` equal packets of `l3` bytes behind an Ethernet header, none of them merged.
    pub(crate) const fn of(packets: u64, l3: u64) -> Self {
        let (bytes, wire) = (packets * l3, packets * (l3 + 14));
        Self {
            packets,
            bytes,
            wire_bytes: wire,
            frames: packets,
            frame_bytes: wire,
        }
    }

    /// What an interface would count.
    pub(crate) const fn as_interface(&self) -> (u64, u64) {
        (self.frames, self.frame_bytes)
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Flows {
    pub(crate) flows: Vec<Flow>,
}

impl Flows {
    pub(crate) fn matching<'a>(
        &'a self,
        matches: impl Fn(&Flow) -> bool + 'a,
    ) -> impl Iterator<Item = &'a Flow> {
        self.flows.iter().filter(move |flow| matches(flow))
    }

    pub(crate) fn total(&self, matches: impl Fn(&Flow) -> bool) -> Totals {
        let mut total = Totals::default();
        for flow in self.matching(matches) {
            total.packets += flow.packets;
            total.bytes += flow.bytes;
            total.wire_bytes += flow.wire_bytes;
            total.frames += flow.frames;
            total.frame_bytes += flow.frame_bytes;
        }
        total
    }

    /// All that was counted at an interface, by what its container did: (sent, received).
    pub(crate) fn at_interface(&self, interface: &str) -> (Totals, Totals) {
        let at = |direction| self.total(|flow| is_at(flow, interface) && flow.direction == direction as i32);
        (at(Direction::Egress), at(Direction::Ingress))
    }
}

/// Whether the flow was counted at an interface of this name.
pub(crate) fn is_at(flow: &Flow, interface: &str) -> bool {
    matches!(point(flow), Some(v1::observation_point::Point::Interface(name)) if name == interface)
}

/// Whether the flow was counted at a socket.
pub(crate) fn is_at_socket(flow: &Flow) -> bool {
    matches!(point(flow), Some(v1::observation_point::Point::CgroupId(_)))
}

fn point(flow: &Flow) -> Option<&v1::observation_point::Point> {
    flow.point.as_ref()?.point.as_ref()
}

/// Whether the flow is from `src` to `dst`, each `address port`; no port: any.
pub(crate) fn is_between(flow: &Flow, src: (&str, Option<u16>), dst: (&str, Option<u16>)) -> bool {
    let is = |end: &Option<v1::Endpoint>, (address, port): (&str, Option<u16>)| {
        end.as_ref()
            .is_some_and(|end| end.ip == address && port.is_none_or(|port| end.port == u32::from(port)))
    };
    is(&flow.src, src) && is(&flow.dst, dst)
}
