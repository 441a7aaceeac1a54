//! An agent inside this process, for as long as one command runs.

use std::fs;

use anyhow::bail;
use orb8_agent::{
    Agent, Listen,
    gpu::GpuAgent,
    settings::{ProcessEnvironment, Settings, SyscallMode},
};
use tonic::transport::Channel;

use crate::exit::Usage;

/// What the probes of one command observe.
#[derive(Clone, Debug, Default)]
pub(crate) struct StandaloneOptions {
    /// Names or patterns of interfaces that are observed beside the workloads' own.
    pub(crate) interfaces: Vec<String>,
    /// What is measured of system calls.
    pub(crate) syscalls: SyscallMode,
}

/// A running agent of this process. [`Standalone::stop`] detaches its probes.
#[derive(Debug)]
pub(crate) enum Standalone {
    /// With probes.
    Whole(Box<Agent>),
    /// Looks at GPUs alone.
    Gpus(GpuAgent),
}

impl Standalone {
    /// Loads and attaches the probes.
    ///
    /// # Errors
    /// Without the capabilities, or if the kernel refuses.
    pub(crate) async fn start(options: &StandaloneOptions) -> anyhow::Result<Self> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if !may_load(effective_capabilities(&status)) {
            bail!(
                "loading the probes needs root or CAP_BPF+CAP_PERFMON+CAP_NET_ADMIN: try `sudo orb8 flows`, or ask \
                 an agent with --agent HOST:PORT"
            );
        }
        let mut settings = settings()?;
        settings.interface = options
            .interfaces
            .iter()
            .map(|pattern| pattern.parse())
            .collect::<Result<_, _>>()?;
        settings.syscall_mode = options.syscalls;
        let agent = Agent::start(&settings, Listen::InProcess).await?;
        Ok(Self::Whole(Box::new(agent)))
    }

    /// Looks at GPUs, without any probe: needs no privileges.
    ///
    /// # Errors
    /// If the environment has a wrong value for it.
    pub(crate) fn gpus() -> anyhow::Result<Self> {
        Ok(Self::Gpus(GpuAgent::start(&settings()?)))
    }

    /// A connection to the agent, in memory.
    pub(crate) fn channel(&self) -> Channel {
        match self {
            Self::Whole(agent) => agent.channel(),
            Self::Gpus(agent) => agent.channel(),
        }
    }

    /// Drains and detaches.
    ///
    /// # Errors
    /// If something may still be attached.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        if let Self::Whole(agent) = self {
            agent.stop().await;
        }
        Ok(())
    }
}

/// The defaults, but for what the environment says of GPUs; a wrong value there is bad usage.
fn settings() -> Result<Settings, Usage> {
    Settings::of_gpus(&ProcessEnvironment).map_err(|error| Usage(error.to_string()))
}

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// Whether a process with these capabilities (capabilities(7)) may load and attach the probes.
const fn may_load(capabilities: u64) -> bool {
    let bpf = CAP_BPF | CAP_PERFMON;
    capabilities & CAP_NET_ADMIN != 0 && (capabilities & CAP_SYS_ADMIN != 0 || capabilities & bpf == bpf)
}

/// The mask in the `CapEff` line of /proc/self/status; none if there is no such line.
fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_that_suffice() {
        assert!(may_load(effective_capabilities(
            "Name:\torb8\nCapEff:\t000001ffffffffff\n"
        )));
        assert!(may_load(CAP_NET_ADMIN | CAP_BPF | CAP_PERFMON));
        assert!(!may_load(CAP_NET_ADMIN | CAP_BPF));
        assert!(!may_load(CAP_SYS_ADMIN));
        assert!(!may_load(effective_capabilities("CapEff:\tzz\n")));
    }
}
