//! What every family does with its eBPF object.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfError,
    maps::{Map, MapData, MapError, RingBuf},
    programs::{Program, ProgramError},
};

use crate::{
    bpf::fd_info::fd_info,
    preflight::{Feature, KernelVersion},
};

/// Why a family's programs did not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object was refused.
    #[error("cannot load the {family} programs: {source}; `orb8 doctor` says what this machine lacks")]
    Object {
        /// Which family.
        family: &'static str,
        /// Why.
        source: EbpfError,
    },
    /// The kernel cannot do what the family needs.
    #[error(
        "the {family} programs need {what}, which this kernel does not have (mainline since Linux {since})"
    )]
    Kernel {
        /// Which family.
        family: &'static str,
        /// What it needs.
        what: &'static str,
        /// The first mainline kernel that has it.
        since: KernelVersion,
    },
    /// A map has not the layout that the agent knows, or cannot be written.
    #[error("map {name} of the eBPF programs: {source}")]
    Map {
        /// Which map.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// A map cannot be mapped into the agent's memory.
    #[error("cannot map {name} of the eBPF programs into memory: {source}")]
    Memory {
        /// Which map.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The object lacks something: it is not the one that belongs to this agent.
    #[error("the eBPF programs lack {0}: agent and eBPF object are of different versions")]
    Missing(&'static str),
    /// A program was refused.
    #[error("the kernel refused program {name}: {}", verdict(.source))]
    Program {
        /// Which program.
        name: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// A setting that makes no sense. Nothing was changed.
    #[error("{0}")]
    Setting(String),
}

/// The end of the verifier's log is what matters.
fn verdict(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let tail = lines[lines.len().saturating_sub(8)..].join("\n  ");
            format!("{io_error}; verifier:\n  {tail}")
        }
        other => other.to_string(),
    }
}

/// Plain records that the kernel shares with us.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(crate) struct Shared<T>(pub(crate) T);
// SAFETY: the records of orb8-common are `repr(C)` integers without padding.
unsafe impl<T: Copy + 'static> aya::Pod for Shared<T> {}

/// A ring's reading end.
pub struct EventRing(pub(crate) RingBuf<MapData>);

impl std::fmt::Debug for EventRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventRing").finish_non_exhaustive()
    }
}

impl EventRing {
    /// Hands on what is in the ring now. Does not wait.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) {
        while let Some(item) = self.0.next() {
            each(&item);
        }
    }
}

/// Refuses a kernel that lacks what a family cannot do without.
pub(crate) fn needs(family: &'static str, has: bool, feature: Feature) -> Result<(), LoadError> {
    if has {
        return Ok(());
    }
    let description = feature.description();
    Err(LoadError::Kernel {
        family,
        what: description.what,
        since: description.since,
    })
}

/// Takes a map out of an object, as what it is.
pub(crate) fn typed<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    T::try_from(map).map_err(|source| LoadError::Map { name, source })
}

/// What removing an entry came to: that there was none to remove is no error.
pub(crate) fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// A program of an object, as what it is.
pub(crate) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(LoadError::Missing(name))?
        .try_into()
        .map_err(|source| LoadError::Program { name, source })
}

/// Descriptors of all maps of an object.
#[derive(Debug)]
pub(crate) struct MapFds(Vec<(String, OwnedFd)>);

impl MapFds {
    /// Of an object none of whose maps has been taken out yet.
    pub(crate) fn of(ebpf: &Ebpf) -> Self {
        let fds = ebpf.maps().filter_map(|(name, map)| {
            let fd = map_fd(map)?.try_clone_to_owned().ok()?;
            Some((name.to_owned(), fd))
        });
        Self(fds.collect())
    }

    /// A descriptor of its own for a map.
    pub(crate) fn get(&self, name: &'static str) -> Result<OwnedFd, LoadError> {
        let (_, fd) = self
            .0
            .iter()
            .find(|(map, _)| map == name)
            .ok_or(LoadError::Missing(name))?;
        fd.try_clone().map_err(|error| LoadError::Map {
            name,
            source: MapError::IoError(error),
        })
    }

    /// Bytes that all of them occupy now.
    pub(crate) fn bytes(&self) -> u64 {
        self.0
            .iter()
            .filter_map(|(_, fd)| fd_info(fd).ok())
            .map(|info| info.memlock)
            .sum()
    }
}

fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::Queue(data)
        | Map::RingBuf(data)
        | Map::Stack(data)
        // Of tasks, which aya has no type for.
        | Map::Unsupported(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}
