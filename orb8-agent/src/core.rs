//! What the parts of a running agent share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::SyncSender,
    },
    time::Instant,
};

use orb8_proto::v1;
use orb8_tls::ConnectionCounts;
use tokio::sync::oneshot;

use crate::{
    gpu::Gpus,
    identity::owner::OwnerTable,
    live::Live,
    membership::Membership,
    naming::Names,
    pipeline::Command,
    probe::{
        network::{
            load::{Counters, NetworkPrograms},
            points::Points,
        },
        syscall::Mode,
    },
    store::History,
    syscalls::{SyscallStore, Syscalls},
};

/// Recent history and the owners that it names.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) history: History,
    pub(crate) owners: OwnerTable,
    pub(crate) syscalls: SyscallStore,
}

/// What the drain and the enrichment counted, since the start.
#[derive(Debug, Default)]
pub(crate) struct DrainCounts {
    /// Frames that the programs had counted when an epoch was ended.
    pub(crate) counted_in_kernel: AtomicU64,
    /// Frames that came out of the kernel.
    pub(crate) drained: AtomicU64,
    /// Frames of sockets in other network namespaces, left out here since the kernel could not.
    pub(crate) foreign: AtomicU64,
    /// Drains that failed.
    pub(crate) failures: AtomicU64,
}

/// State that queries, scrapes and the pipeline share.
///
/// Locks are taken in the order of the fields, and none is held across an await.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) node: String,
    pub(crate) kernel: String,
    pub(crate) started: Instant,
    pub(crate) started_ns: u64,
    pub(crate) settings: Vec<v1::Setting>,
    pub(crate) checks: Vec<v1::Check>,
    pub(crate) limits: LimitSettings,
    /// How gRPC is served, for `status`.
    pub(crate) transport: &'static str,
    /// gRPC connections.
    pub(crate) connections: Arc<ConnectionCounts>,
    /// Its probe's lock comes first.
    pub(crate) syscalls: Syscalls,
    pub(crate) programs: Mutex<NetworkPrograms>,
    /// Programs at the cgroup2 root: name, and why it is off or has failed.
    pub(crate) cgroup_programs: Vec<(&'static str, v1::State, String)>,
    pub(crate) membership: Membership,
    pub(crate) gpus: Arc<Gpus>,
    pub(crate) points: Mutex<Points>,
    pub(crate) names: Mutex<Names>,
    pub(crate) store: Mutex<Store>,
    pub(crate) counters: Counters,
    pub(crate) live: Live,
    pub(crate) drains: DrainCounts,
    pub(crate) commands: SyncSender<Command>,
    pub(crate) ready: AtomicBool,
}

/// Bounds that the settings gave, for `status`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LimitSettings {
    pub(crate) flow_entries: u32,
    pub(crate) connections: u32,
    pub(crate) ring_bytes: u32,
}

/// Takes a lock. A thread that panicked with it in hand has left counters as they were: they stay usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Brings the history up to now. Returns when all that the programs counted until the call is in it.
    pub(crate) async fn refresh(&self) {
        let (done, wait) = oneshot::channel();
        // A full queue holds drains already; a pipeline that has ended drained all.
        if self
            .commands
            .try_send(Command::Drain {
                done: Some(done),
                force: false,
            })
            .is_ok()
        {
            let _ = wait.await;
        }
    }

    /// Drains now, without waiting for it: a flow map is half full.
    pub(crate) fn drain_early(&self) {
        // A full queue holds drains already.
        let _ = self.commands.try_send(Command::Drain {
            done: None,
            force: true,
        });
    }

    /// As [`Core::refresh`], however short ago the last drain was.
    pub(crate) async fn barrier(&self) {
        let (done, wait) = oneshot::channel();
        if self
            .commands
            .try_send(Command::Drain {
                done: Some(done),
                force: true,
            })
            .is_ok()
        {
            let _ = wait.await;
        }
    }

    /// Switches what the syscall programs do; what they did before.
    ///
    /// # Errors
    /// Why the mode is as before.
    pub(crate) async fn set_syscall_mode(&self, mode: Mode) -> Result<Mode, String> {
        let (done, wait) = oneshot::channel();
        if self
            .commands
            .try_send(Command::SetSyscallMode { mode, done })
            .is_err()
        {
            return Err("the agent is busy, or stopping; try again".to_owned());
        }
        wait.await
            .unwrap_or_else(|_| Err("the agent is stopping".to_owned()))
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}
