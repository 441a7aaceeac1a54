//! How NVML as a whole fails.

use std::path::{Path, PathBuf};

use nvml_wrapper::error::NvmlError as Wrapped;

/// NVML can't be used, or a call that is about no single device failed.
#[derive(Debug, thiserror::Error)]
pub enum NvmlError {
    /// There is no library: the ordinary case of a node without an NVIDIA GPU.
    #[error(
        "{}: there is no such library, so this node has no NVIDIA driver; if it has one, set the path of its libnvidia-ml.so.1",
        path.display()
    )]
    Absent {
        /// What was tried: a path, or a name that the loader did not find.
        path: PathBuf,
    },
    /// The library is there, the driver is not: the ordinary case of an image with NVIDIA's libraries on a node without a
    /// GPU.
    #[error("{}: the NVIDIA driver is not loaded on this node: {source}", path.display())]
    NoDriver {
        /// The library.
        path: PathBuf,
        /// What it says.
        source: Wrapped,
    },
    /// This program was linked statically.
    #[error(
        "{}: this build of orb8 is linked statically and can load no library; use dcgm-exporter, or a build for glibc",
        path.display()
    )]
    Static {
        /// What was to be loaded.
        path: PathBuf,
    },
    /// The loader refuses it.
    #[error("{}: it can't be loaded: {reason}; is it for this machine, and are the libraries that it needs there?", path.display())]
    Unloadable {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// It was loaded, and is something else.
    #[error("{}: it lacks the function {symbol}, so it is not NVML; check the path that is set", path.display())]
    Foreign {
        /// The library.
        path: PathBuf,
        /// What it lacks.
        symbol: String,
    },
    /// The versions of the driver in the kernel and of the library differ, which they do from an update to the next boot.
    #[error("{}: it is of another version than the driver in the kernel: reboot the node, or reload the driver", path.display())]
    Mismatch {
        /// The library.
        path: PathBuf,
    },
    /// It does not start.
    #[error("{}: it can't be initialised: {source}", path.display())]
    Init {
        /// The library.
        path: PathBuf,
        /// What it says.
        source: Wrapped,
    },
    /// A call failed that all others depend on.
    #[error("NVML: {function}: {source}; it is opened again, as the driver may have been reloaded")]
    Call {
        /// The function.
        function: &'static str,
        /// What it says.
        source: Wrapped,
    },
    /// Nothing to wait for.
    #[error("NVML reports no XID errors here: {reason}")]
    NoEvents {
        /// What each GPU, or the library, said.
        reason: String,
    },
}

impl NvmlError {
    /// Whether this node simply has no NVIDIA driver: nothing to complain of.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::NoDriver { .. })
    }

    pub(super) fn of_opening(path: &Path, error: Wrapped) -> Self {
        let path = path.to_owned();
        match error {
            Wrapped::LibloadingError(error) => {
                let reason = loader_says(&error);
                // The loader tells a missing library from one that another library misses only in words.
                let name = path.display().to_string();
                let missing = if name.contains('/') {
                    !path.exists()
                } else {
                    reason.starts_with(&format!("{name}: cannot open shared object file: No such file"))
                };
                if missing {
                    Self::Absent { path }
                } else {
                    Self::Unloadable { path, reason }
                }
            }
            Wrapped::FailedToLoadSymbol(_) => Self::Foreign {
                path,
                symbol: "nvmlInit_v2".to_owned(),
            },
            Wrapped::LibRmVersionMismatch => Self::Mismatch { path },
            source @ (Wrapped::DriverNotLoaded | Wrapped::LibraryNotFound) => Self::NoDriver { path, source },
            source => Self::Init { path, source },
        }
    }
}

/// The loader's own words, which the error keeps as its source.
fn loader_says(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}
