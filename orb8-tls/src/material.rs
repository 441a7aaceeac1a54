//! Keys and certificates: from files, which may change, or from memory.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tracing::{info, warn};

use crate::error::TlsError;

/// How often files are looked at for a change.
const LOOK: Duration = Duration::from_secs(10);

/// PEM files: roots that the other side's certificate must come from, and the own certificate (with intermediate ones) and
/// its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// One root or more.
    pub ca: PathBuf,
    /// The own certificate; who has none only looks at the other side's.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
}

/// The same as PEM text.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    ca: Vec<u8>,
    own: Option<(Vec<u8>, Vec<u8>)>,
    /// Where it was read, for errors.
    from: String,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys are not for logs.
        f.debug_struct("Material")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

impl Material {
    /// Of PEM text that was read from `from` (a Secret's name, say); `own`: certificate and key.
    #[must_use]
    pub const fn new(ca: Vec<u8>, own: Option<(Vec<u8>, Vec<u8>)>, from: String) -> Self {
        Self { ca, own, from }
    }

    /// Reads files.
    ///
    /// # Errors
    /// [`TlsError::Read`] names the file.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |what, path: &Path| {
            fs::read(path).map_err(|error| TlsError::Read {
                what,
                path: path.to_owned(),
                error,
            })
        };
        let own = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => Some((read("a certificate", cert)?, read("a private key", key)?)),
            _ => None,
        };
        let from = files.cert.as_ref().unwrap_or(&files.ca).display().to_string();
        Ok(Self {
            ca: read("certificate authorities", &files.ca)?,
            own,
            from,
        })
    }

    /// The roots.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(&self.ca, "certificate authority")? {
            roots.add(certificate).map_err(|error| TlsError::Pem {
                what: "certificate authority",
                from: self.from.clone(),
                why: format!(": {error}"),
            })?;
        }
        Ok(roots)
    }

    /// The own certificate and key, if there are any.
    ///
    /// # Errors
    /// If they are not PEM.
    pub(crate) fn own(&self) -> Result<Option<Own>, TlsError> {
        let Some((cert, key)) = &self.own else {
            return Ok(None);
        };
        let chain = self.certificates(cert, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem {
            what: "private key",
            from: self.from.clone(),
            why: format!(": {error}"),
        })?;
        Ok(Some((chain, key)))
    }

    fn certificates(&self, pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let wrong = |why: String| TlsError::Pem {
            what,
            from: self.from.clone(),
            why,
        };
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(format!(": {error}")))?;
        if certificates.is_empty() {
            return Err(wrong(String::new()));
        }
        Ok(certificates)
    }

    pub(crate) fn unusable(&self, error: &dyn fmt::Display) -> TlsError {
        TlsError::Unusable {
            from: self.from.clone(),
            why: error.to_string(),
        }
    }
}

/// A certificate with those that lead to its root, and its key.
pub(crate) type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The cryptography that is used, whatever else the process uses.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What is made of key and certificates, and made anew when their files change. Files that make no sense are told once, and
/// what was made of the last good ones goes on.
pub(crate) struct Current<T> {
    files: Option<TlsFiles>,
    make: fn(&Material, u8) -> Result<T, TlsError>,
    /// Handed to `make`.
    option: u8,
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    looked: Instant,
    /// The last that was read, good or not.
    material: Material,
    made: Arc<T>,
    look: Duration,
}

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self {
            files: self.files.clone(),
            make: self.make,
            option: self.option,
            state: self.state.clone(),
        }
    }
}

impl<T> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl<T> Current<T> {
    pub(crate) fn new(
        material: Material,
        files: Option<TlsFiles>,
        make: fn(&Material, u8) -> Result<T, TlsError>,
        option: u8,
    ) -> Result<Self, TlsError> {
        let made = Arc::new(make(&material, option)?);
        Ok(Self {
            files,
            make,
            option,
            state: Arc::new(Mutex::new(State {
                looked: Instant::now(),
                material,
                made,
                look: LOOK,
            })),
        })
    }

    /// Looks so often instead.
    pub(crate) fn look_every(&self, look: Duration) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).look = look;
    }

    /// What holds now. Reads the files if it is some time since that was done: a tenth of a millisecond.
    pub(crate) fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &self.files
            && state.looked.elapsed() >= state.look
        {
            state.looked = Instant::now();
            match Material::read(files) {
                Ok(material) if material == state.material => {}
                Ok(material) => {
                    match (self.make)(&material, self.option) {
                        Ok(made) => {
                            info!(from = material.from, "certificates were reloaded");
                            state.made = Arc::new(made);
                        }
                        Err(error) => warn!(%error, "the new certificates are not used; the old ones go on"),
                    }
                    state.material = material;
                }
                Err(error) => warn!(%error, "certificates can't be read; the old ones go on"),
            }
        }
        state.made.clone()
    }
}
