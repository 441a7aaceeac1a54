//! The agent, running on the benchmark's node, and what it answers.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use orb8_proto::v1::{
    AgentStatus, Flow, FlowQuery, GetAgentStatusRequest, observation_point::Point,
    orbit_service_client::OrbitServiceClient, query_flows_response::Part,
};
use tonic::transport::{Channel, Endpoint};

use super::namespace::Namespace;

/// A running agent; it is told to end when dropped.
pub(super) struct Observer {
    child: Child,
    host: Namespace,
    /// When it was executed.
    pub(super) begun: Instant,
}

impl Observer {
    /// Starts the agent in a namespace, and waits until it observes `interfaces`.
    ///
    /// # Errors
    /// If it does not start, or not in ten seconds.
    pub(super) fn start(agent: &Path, host: &Namespace, interfaces: &[&str]) -> Result<Self> {
        Self::start_with(agent, host, interfaces, &[])
    }

    /// [`Observer::start`] with settings, as environment variables.
    ///
    /// # Errors
    /// As there.
    pub(super) fn start_with(
        agent: &Path,
        host: &Namespace,
        interfaces: &[&str],
        settings: &[(&str, &OsStr)],
    ) -> Result<Self> {
        let observer = Self::spawn_with(agent, host, settings)?;
        while observer.begun.elapsed() < Duration::from_secs(10) {
            if let Ok(status) = observer.status()
                && interfaces.iter().all(|name| {
                    status
                        .interfaces
                        .iter()
                        .any(|it| it.name == *name && !it.mechanism.is_empty())
                })
            {
                return Ok(observer);
            }
            thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("the agent does not observe {interfaces:?}")
    }

    /// Starts the agent and waits for nothing.
    ///
    /// # Errors
    /// If it cannot be executed.
    pub(super) fn spawn(agent: &Path, host: &Namespace) -> Result<Self> {
        Self::spawn_with(agent, host, &[])
    }

    fn spawn_with(agent: &Path, host: &Namespace, settings: &[(&str, &OsStr)]) -> Result<Self> {
        let file = host.open()?;
        let mut command = Command::new(agent);
        command
            .env_remove("KUBECONFIG")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // The benchmark waits for signals on one thread and blocks them in all; the agent is to hear them.
        // SAFETY: two system calls, which are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                SigSet::all().thread_unblock()?;
                setns(&file, CloneFlags::CLONE_NEWNET).map_err(Into::into)
            })
        };
        let begun = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", agent.display()))?;
        Ok(Self {
            child,
            host: host.clone(),
            begun,
        })
    }

    /// Asks the agent, on a thread of its namespace.
    fn ask<T: Send + 'static, F>(
        &self,
        ask: impl FnOnce(OrbitServiceClient<Channel>) -> F + Send + 'static,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, tonic::Status>>,
    {
        self.host.inside(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let channel = Endpoint::from_static("http://127.0.0.1:9090").connect().await?;
                Ok(ask(OrbitServiceClient::new(channel).max_decoding_message_size(64 << 20)).await?)
            })
        })
    }

    /// Its status.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) fn status(&self) -> Result<AgentStatus> {
        self.ask(|mut client| async move {
            Ok(client
                .get_agent_status(GetAgentStatusRequest {})
                .await?
                .into_inner())
        })
    }

    /// Flows; and how long each of `times` repetitions of the query took.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) fn flows(&self, query: FlowQuery, times: usize) -> Result<(Vec<Flow>, Vec<f64>)> {
        // An answer may be up to 50 ms old.
        thread::sleep(Duration::from_millis(60));
        self.ask(move |mut client| async move {
            let (mut flows, mut taken) = (Vec::new(), Vec::new());
            for _ in 0..times {
                flows.clear();
                let begin = Instant::now();
                let mut parts = client.query_flows(query.clone()).await?.into_inner();
                while let Some(part) = parts.message().await? {
                    if let Some(Part::Batch(batch)) = part.part {
                        flows.extend(batch.flows);
                    }
                }
                taken.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            Ok((flows, taken))
        })
    }

    /// Processor time that it used, in seconds (`/proc/PID/stat`).
    ///
    /// # Errors
    /// If it is gone.
    pub(super) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Ok(ticks as f64 / 100.0)
    }

    /// Ends it and waits.
    ///
    /// # Errors
    /// If it ends badly.
    pub(super) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a flow was counted at this interface, and sent by its workload.
pub(super) fn is_sent_at(flow: &Flow, interface: &str) -> bool {
    let point = flow.point.as_ref().and_then(|point| point.point.as_ref());
    matches!(point, Some(Point::Interface(name)) if name == interface)
        && flow.direction == orb8_proto::v1::Direction::Egress as i32
}
