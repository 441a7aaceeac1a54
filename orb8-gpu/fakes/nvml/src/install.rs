//! Sets a library up for a test: its own copy, with its own file of answers next to it.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{config::Config, state::EXTENSION};

/// A copy of the library. Each is an object of its own to the loader, so that tests of one process do not see each other's
/// answers.
#[derive(Debug)]
pub struct Fake {
    directory: TempDir,
}

impl Fake {
    /// The library as `libnvidia-ml.so.1` in a directory of its own, with these answers.
    ///
    /// # Errors
    ///
    /// When the shared library is not where cargo puts it next to the running test, or the copy can't be written.
    pub fn new(config: &Config) -> io::Result<Self> {
        let fake = Self {
            directory: tempfile::tempdir()?,
        };
        fake.answer(config)?;
        fs::copy(built()?, fake.library())?;
        Ok(fake)
    }

    /// Where the library is.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.directory.path().join("libnvidia-ml.so.1")
    }

    /// Its directory, for `LD_LIBRARY_PATH`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// From now on it answers this; replaced in one step, as it may be read at any moment.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    pub fn answer(&self, config: &Config) -> io::Result<()> {
        let mut path = OsString::from(self.library());
        path.push(EXTENSION);
        let draft = self.directory.path().join("draft");
        fs::write(&draft, serde_json::to_vec_pretty(config)?)?;
        fs::rename(draft, path)
    }
}

/// The shared library that cargo built for the running test or program.
///
/// # Errors
///
/// When it is not there: a crate that does not depend on this one runs, or it was moved.
pub fn built() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    // Tests are in `deps`, where cargo also leaves the libraries; programs and examples lie beside that directory.
    let places = program.ancestors().skip(1).take(2).flat_map(|directory| {
        [
            directory.join("liborb8_fake_nvml.so"),
            directory.join("deps/liborb8_fake_nvml.so"),
        ]
    });
    let mut places = places.collect::<Vec<_>>().into_iter();
    places.find(|path| path.is_file()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "no liborb8_fake_nvml.so near {}: build it with `cargo build -p orb8-fake-nvml`",
                program.display()
            ),
        )
    })
}
