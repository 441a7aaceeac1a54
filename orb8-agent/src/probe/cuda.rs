//! The CUDA family: its eBPF object, loaded, attached to the libraries that processes have mapped, and read.
//!
//! Programs:
//! - `orb8_cuda_enter`, a uprobe at the entry of each traced function: counts the call;
//! - `orb8_cuda_return`, a uretprobe where the result matters: at allocations, in latency mode everywhere;
//! - `orb8_cuda_exit` and `orb8_cuda_exec`, raw tracepoints: what a process held is released when it ends or executes
//!   another program, and a process with a new program is looked at for libraries.
//!
//! All are held by bpf links: closing their descriptors detaches them, also when the agent is killed.
//!
//! Of a thread's traced calls only the outermost counts. A runtime call that reaches the driver through a traced function is
//! thereby counted once, as the runtime's, with its bytes once.
//!
//! Ledger: every call that was met is counted, nested in another, or lost; every allocation that succeeded is held by its
//! process, or not for want of room; every call that returned under a measuring program is measured or unmeasured.

mod elf;
mod files;
mod follow;
pub mod function;
mod load;
pub mod mapping;
mod read;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use orb8_common::cuda::{Calls, FILES};
use orb8_proto::v1;

pub use elf::ElfError;
use files::Files;
pub use files::{AttachError, FileStatus, Left};
use follow::Follower;
use function::Function;
use load::Loaded;
pub use read::ReadError;

use crate::{bpf::fd_info::FdInfo, preflight::Features, probe::object::LoadError};

/// The object, built by `cargo xtask build-ebpf`; build.rs has checked that it is made for the records that this agent
/// knows.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/cuda.o");

/// What the programs do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Mode {
    /// Nothing is loaded or attached.
    #[default]
    Off,
    /// Calls are counted as they are entered, allocations as they return.
    Counts,
    /// Also how each ended, and how long it took.
    Latency,
}

/// Sizes and mode of the CUDA probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CudaOptions {
    /// Pairs of cgroup and function whose calls are told apart; about 100 bytes of map memory each.
    pub calls: u32,
    /// Processes whose held memory is known.
    pub holders: u32,
    /// Allocations that they hold; about 100 bytes each, as they come.
    pub allocations: u32,
    /// Counts or latency.
    pub mode: Mode,
    /// How often all processes are looked at, besides those that have just executed a program.
    pub look_at_all: Duration,
    /// Where procfs is mounted.
    pub proc_root: PathBuf,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            calls: 8192,
            holders: 4096,
            allocations: 131_072,
            mode: Mode::Counts,
            look_at_all: Duration::from_secs(60),
            proc_root: PathBuf::from("/proc"),
        }
    }
}

/// The probe's ledger, since it was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CudaStats {
    /// Calls that were met.
    pub seen: u64,
    /// Of these, the ones that another traced call of the thread made.
    pub nested: u64,
    /// Of these, the ones without room.
    pub lost: u64,
    /// Calls that were seen to return, measured or not.
    pub returned: u64,
    /// Calls that were counted and not measured: without room, or not seen to return.
    pub unmeasured: u64,
    /// Allocations that succeeded.
    pub allocated: u64,
    /// Of these, the ones in nobody's held bytes.
    pub not_held: u64,
    /// Processes that held something and ended.
    pub ended: u64,
    /// Programs executed whose process waits for the next look at all of them.
    pub untold: u64,
    /// Libraries that had no room among those that are attached to.
    pub files_turned_away: u64,
}

/// Device memory that a cgroup's processes hold, as far as it was seen allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Bytes.
    pub bytes: u64,
    /// Processes that hold some.
    pub processes: u32,
}

/// What [`CudaProbe::read`] hands on: numbers that came since the last time.
pub trait CudaSink {
    /// Calls of a function by processes of a cgroup.
    fn calls(&mut self, cgroup: u64, function: &'static Function, calls: &Calls);
}

/// Counts what is asked of the CUDA libraries.
#[derive(Debug)]
pub struct CudaProbe {
    mode: Mode,
    loaded: Loaded,
    files: Files,
    follower: Follower,
}

impl CudaProbe {
    /// Loads the programs. Nothing is attached to a library before [`follow`](Self::follow) has found one.
    ///
    /// # Errors
    /// [`LoadError`]; nothing stays in the kernel then. [`Mode::Off`] is none that could be loaded.
    pub fn load(options: &CudaOptions, features: Features) -> Result<Self, LoadError> {
        if options.mode == Mode::Off {
            return Err(LoadError::Setting(
                "the CUDA probe is switched off: there is nothing to load".to_owned(),
            ));
        }
        Ok(Self {
            mode: options.mode,
            loaded: Loaded::new(options, features)?,
            files: Files::default(),
            follower: Follower::new(options),
        })
    }

    /// The mode.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Looks for libraries in processes that have executed a program since, or that may have loaded one meanwhile, and now
    /// and then in all; attaches to those that are new, and gives those back that no process has mapped any more. Cost: a
    /// read of `/proc/PID/maps` for each process that is looked at; some milliseconds for each library that comes.
    pub fn follow(&mut self, now: Instant) -> Left {
        let Self {
            mode,
            loaded,
            files,
            follower,
        } = self;
        follower.follow(now, loaded, files, *mode)
    }

    /// Attaches to a library, whatever it is called; returns how many functions it has. It stays attached to until
    /// [`detach`](Self::detach), or until the probe is dropped.
    ///
    /// # Errors
    /// [`AttachError`]; nothing of this file is attached then.
    pub fn attach(&mut self, file: &File, path: &Path) -> Result<usize, AttachError> {
        let slot = self.files.attach(&mut self.loaded, file, path, self.mode)?;
        Ok(slot.map_or(0, |slot| self.files.functions(slot)))
    }

    /// Detaches from all libraries of this path.
    pub fn detach(&mut self, path: &Path) {
        self.files.detach(|status| status.path == path);
    }

    /// Reads what came since the last time. `gone` says whether a cgroup has been removed: its counts are forgotten once
    /// they have been handed on. Cost: linear in the pairs of cgroup and function that have called.
    ///
    /// # Errors
    /// [`ReadError`]; what was not handed on comes with the next.
    pub fn read(
        &mut self,
        gone: &mut dyn FnMut(u64) -> bool,
        sink: &mut dyn CudaSink,
    ) -> Result<(), ReadError> {
        self.loaded.read(gone, sink)
    }

    /// What processes hold, by cgroup, as of the last [`read`](Self::read).
    #[must_use]
    pub const fn held(&self) -> &BTreeMap<u64, Held> {
        self.loaded.held()
    }

    /// Libraries that are attached to, or could not be.
    pub fn files(&self) -> impl Iterator<Item = &FileStatus> {
        self.files.status().chain(self.follower.failed())
    }

    /// How many libraries are attached to, and how many can be.
    #[must_use]
    pub fn files_used(&self) -> (usize, usize) {
        (self.files.status().count(), FILES)
    }

    /// The ledger now.
    #[must_use]
    pub fn stats(&self) -> CudaStats {
        CudaStats {
            files_turned_away: self.follower.turned_away(),
            ..self.loaded.stats()
        }
    }

    /// State of each program, the reason where it is not active, how often it is attached, and what the kernel says of it.
    #[must_use]
    pub fn programs(&self) -> Vec<(&'static str, v1::State, String, u32, FdInfo)> {
        let (entries, returns) = self.files.attachments();
        load::PROGRAMS
            .into_iter()
            .map(|name| {
                let attachments = match name {
                    load::ENTER => entries,
                    load::RETURN => returns,
                    _ => 1,
                };
                let info = self.loaded.info(name).unwrap_or_default();
                if attachments == 0 {
                    let why = "no process has loaded a CUDA library";
                    (name, v1::State::Off, why.to_owned(), 0, info)
                } else {
                    (name, v1::State::Active, String::new(), attachments, info)
                }
            })
            .collect()
    }

    /// Bytes of map memory.
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        self.loaded.map_bytes()
    }
}
