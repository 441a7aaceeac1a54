//! Network namespaces of the benchmark's own.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};

use super::cleanup;

/// A named network namespace, deleted when the benchmark ends.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    pub(super) name: String,
}

impl Namespace {
    /// Makes one, with IPv6 off (nothing but the benchmark's own packets is to be on its wires) and loopback up.
    ///
    /// # Errors
    /// If `ip` fails.
    pub(super) fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "orb8-bench-{}-{}-{role}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        cleanup::namespace(&name);
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Runs `ip` on the inside, with words separated by spaces.
    ///
    /// # Errors
    /// If it fails: what it says.
    pub(super) fn ip(&self, words: &str) -> Result<()> {
        let mut arguments = vec!["-n", &self.name];
        arguments.extend(words.split(' '));
        ip(&arguments)
    }

    /// Writes a setting of /proc/sys of the inside.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let (path, value) = (format!("/proc/sys/{key}"), value.to_owned());
        self.inside(move || fs::write(&path, value).with_context(|| format!("cannot write {path}")))
    }

    /// The namespace as a file, for setns(2).
    ///
    /// # Errors
    /// If it is gone.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let path = format!("/run/netns/{}", self.name);
        Ok(File::open(&path)
            .with_context(|| format!("cannot open {path}"))?
            .into())
    }

    /// Starts a thread inside, on one CPU if asked.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        cpu: Option<usize>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let file = self.open()?;
        Ok(thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
            if let Some(cpu) = cpu {
                let mut cpus = CpuSet::new();
                cpus.set(cpu)?;
                sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).context("cannot bind to a CPU")?;
            }
            work()
        }))
    }

    /// Runs `work` on a thread inside.
    ///
    /// # Errors
    /// As `work`, or if the namespace is gone.
    pub(super) fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        joined(self.spawn(None, work)?)
    }
}

/// A thread's result.
///
/// # Errors
/// As the thread's work, or if it panicked.
pub(super) fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread of the benchmark panicked"))?
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip (of iproute2)")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
