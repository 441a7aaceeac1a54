//! Libraries that the programs are attached to.

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use aya::programs::{ProgramError, uprobe::UProbeLink};
use orb8_common::cuda::FILES;
use orb8_proto::v1;

use super::{
    ElfError, Mode, elf,
    function::FUNCTIONS,
    load::{ENTER, Loaded, RETURN},
};

/// Why a library is not attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is not a library.
    #[error("{path} is not traced: {source}")]
    Elf {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: ElfError,
    },
    /// There are too many.
    #[error("{path} is not traced: {FILES} libraries are already")]
    Full {
        /// Which file.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error(
        "cannot trace {function} of {path}: {source}; it takes Linux 5.15 with CONFIG_UPROBE_EVENTS, and CAP_PERFMON"
    )]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Which of its functions.
        function: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
}

/// State of a library.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileStatus {
    /// Its path, in the mount namespace of the process that it was found at.
    pub path: PathBuf,
    /// Whether it is traced.
    pub state: v1::State,
    /// Why it is not.
    pub reason: String,
    /// Functions of it that are traced.
    pub functions: usize,
}

#[derive(Debug)]
pub(super) struct Attached {
    status: FileStatus,
    /// Before those of returns, to be detached before them: a call whose entry is seen is seen to return.
    entries: Vec<UProbeLink>,
    returns: Vec<UProbeLink>,
}

impl Attached {
    pub(super) fn path(&self) -> &Path {
        &self.status.path
    }
}

/// Libraries that no process has mapped any more: they are detached from when this is dropped. Cost: the kernel takes about
/// 0.1 s for each function, so hold no lock meanwhile.
#[derive(Debug, Default)]
#[must_use = "dropping it takes a while: hold no lock meanwhile"]
pub struct Left(pub(super) Vec<Attached>);

/// Libraries by slot.
#[derive(Debug)]
pub(super) struct Files([Option<Attached>; FILES]);

impl Default for Files {
    fn default() -> Self {
        Self([const { None }; FILES])
    }
}

impl Files {
    /// Attaches to all traced functions of a file; the slot that it has, or `None` if it has no such function.
    pub(super) fn attach(
        &mut self,
        loaded: &mut Loaded,
        file: &File,
        path: &Path,
        mode: Mode,
    ) -> Result<Option<usize>, AttachError> {
        let functions = elf::functions(file).map_err(|source| AttachError::Elf {
            path: path.to_owned(),
            source,
        })?;
        if functions.is_empty() {
            return Ok(None);
        }
        let Some(slot) = self.0.iter().position(Option::is_none) else {
            return Err(AttachError::Full {
                path: path.to_owned(),
            });
        };
        // The very file, whatever has its name now.
        let own = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let (mut entries, mut returns) = (Vec::new(), Vec::new());
        for &(offset, number) in &functions {
            let function = &FUNCTIONS[number];
            let cookie = function.cookie(number, slot, mode);
            let refused = |source| AttachError::Refused {
                path: path.to_owned(),
                function: function.name,
                source: Box::new(source),
            };
            // First the return, for the same reason.
            if function.is_followed_to_its_return(mode) {
                returns.push(loaded.attach(RETURN, &own, offset, cookie).map_err(refused)?);
            }
            entries.push(loaded.attach(ENTER, &own, offset, cookie).map_err(refused)?);
        }
        self.0[slot] = Some(Attached {
            status: FileStatus {
                path: path.to_owned(),
                state: v1::State::Active,
                reason: String::new(),
                functions: functions.len(),
            },
            entries,
            returns,
        });
        Ok(Some(slot))
    }

    /// How many functions of what is in a slot are traced.
    pub(super) fn functions(&self, slot: usize) -> usize {
        self.0
            .get(slot)
            .and_then(Option::as_ref)
            .map_or(0, |file| file.status.functions)
    }

    /// Gives a slot up; what was in it is attached to until it is dropped.
    pub(super) fn leave_slot(&mut self, slot: usize) -> Option<Attached> {
        self.0.get_mut(slot)?.take()
    }

    pub(super) fn detach(&mut self, which: impl Fn(&FileStatus) -> bool) {
        for slot in &mut self.0 {
            if slot.as_ref().is_some_and(|file| which(&file.status)) {
                *slot = None;
            }
        }
    }

    pub(super) fn status(&self) -> impl Iterator<Item = &FileStatus> {
        self.0.iter().flatten().map(|file| &file.status)
    }

    /// How many entries and returns are attached to.
    pub(super) fn attachments(&self) -> (u32, u32) {
        self.0.iter().flatten().fold((0, 0), |(entries, returns), file| {
            (
                entries + file.entries.len() as u32,
                returns + file.returns.len() as u32,
            )
        })
    }
}
