//! What can be wrong with keys and certificates.

use std::path::PathBuf;

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("reading {what} from {path}: {error}")]
    Read {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// What was read is not what it should be.
    #[error("{from} holds no {what} in PEM{why}")]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// Where it was read: a file, or a Secret.
        from: String,
        /// More, if more is known.
        why: String,
    },
    /// The parts do not go together.
    #[error("the certificate and key of {from} can't be used: {why}")]
    Unusable {
        /// Where they were read.
        from: String,
        /// Why.
        why: String,
    },
}
