//! Certificates as files.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    CertgenError,
    store::{CA_BUNDLE, Data, Place, Store, Stored},
};

/// Below it `ca`, `agent`, `server` and `operator`, each with files as a Secret has them; and `ca.crt`.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    fn path(&self, place: Place) -> PathBuf {
        match place {
            Place::Ca => self.0.join("ca"),
            Place::Agent => self.0.join("agent"),
            Place::Server => self.0.join("server"),
            Place::Operator => self.0.join("operator"),
            Place::Bundle => self.0.clone(),
        }
    }
}

/// Files that there can be.
const NAMES: [&str; 6] = [
    "tls.crt",
    "tls.key",
    CA_BUNDLE,
    "next.crt",
    "next.key",
    "next.since",
];

fn names(place: Place) -> &'static [&'static str] {
    match place {
        Place::Ca => &NAMES,
        Place::Bundle => &NAMES[2..3],
        _ => &NAMES[..3],
    }
}

impl Store for Directory {
    fn describe(&self, place: Place) -> String {
        match place {
            Place::Bundle => self.0.join(CA_BUNDLE),
            _ => self.path(place),
        }
        .display()
        .to_string()
    }

    async fn read(&self, place: Place) -> Result<Option<Stored>, CertgenError> {
        let mut data = Data::new();
        for name in names(place) {
            let path = self.path(place).join(name);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    data.insert((*name).to_owned(), text);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(CertgenError::File {
                        verb: "reading",
                        path,
                        error,
                    });
                }
            }
        }
        Ok((!data.is_empty()).then_some(Stored {
            data,
            foreign: None,
            version: None,
        }))
    }

    async fn write(
        &self,
        place: Place,
        data: &Data,
        _before: Option<&Stored>,
    ) -> Result<Stored, CertgenError> {
        let directory = self.path(place);
        let failed = |path: &Path, error| CertgenError::File {
            verb: "writing",
            path: path.to_owned(),
            error,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| failed(&directory, error))?;
        for name in names(place) {
            let path = directory.join(name);
            match data.get(*name) {
                Some(text) => replace(&path, text),
                None => match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                },
            }
            .map_err(|error| failed(&path, error))?;
        }
        Ok(Stored {
            data: data.clone(),
            foreign: None,
            version: None,
        })
    }
}

/// Whoever reads it sees the old content or the new one, and nobody else may read it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The error tells more than what became of this.
        let _ = fs::remove_file(&new);
    }
    written
}
