//! What must be undone however the benchmark ends.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

#[derive(Default)]
struct Pending {
    namespaces: Vec<String>,
    files: Vec<(PathBuf, String)>,
}

static PENDING: Mutex<Option<Pending>> = Mutex::new(None);

fn pending() -> MutexGuard<'static, Option<Pending>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Undoes everything when dropped, or when SIGINT, SIGTERM or SIGHUP comes.
pub(super) struct Cleanup(());

impl Cleanup {
    /// Starts to listen for signals; call before other threads start. They are blocked in all of them.
    ///
    /// # Errors
    /// If signals cannot be blocked.
    pub(super) fn new() -> Result<Self> {
        *pending() = Some(Pending::default());
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("cannot block signals")?;
        thread::spawn(move || {
            if let Ok(signal) = signals.wait() {
                eprintln!("bench: {signal}: cleaning up");
                undo();
                std::process::exit(130);
            }
        });
        Ok(Self(()))
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        undo();
    }
}

fn undo() {
    let Some(pending) = pending().take() else { return };
    for (path, content) in pending.files.iter().rev() {
        if let Err(error) = fs::write(path, content) {
            eprintln!(
                "bench: {} cannot be set back to {content}: {error}",
                path.display()
            );
        }
    }
    for name in pending.namespaces {
        // One that is gone already is no matter.
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
    }
}

/// Remembers a network namespace to delete.
pub(super) fn namespace(name: &str) {
    if let Some(pending) = pending().as_mut() {
        pending.namespaces.push(name.to_owned());
    }
}

/// Writes a file of /proc/sys, whose content comes back at the end.
///
/// # Errors
/// If it cannot be read or written.
pub(super) fn set(path: &str, value: &str) -> Result<()> {
    let before = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    if let Some(pending) = pending().as_mut() {
        pending.files.push((path.into(), before));
    }
    fs::write(path, value).with_context(|| format!("cannot write {value} to {path}"))
}
