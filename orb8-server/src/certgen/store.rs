//! Where certificates are kept.

use std::collections::BTreeMap;

use super::CertgenError;
use crate::authority::Pair;

/// A certificate, with those that signed it.
pub(super) const CERTIFICATE: &str = "tls.crt";
/// Its private key.
pub(super) const KEY: &str = "tls.key";
/// The roots that are trusted.
pub(super) const CA_BUNDLE: &str = "ca.crt";

/// Texts by name.
pub(super) type Data = BTreeMap<String, String>;

/// Things that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The certificate authority.
    Ca,
    /// The agents' certificate.
    Agent,
    /// The server's.
    Server,
    /// The operators'.
    Operator,
    /// The roots alone, for everybody to see.
    Bundle,
}

/// One of them, as it was read.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// Its content.
    pub(super) data: Data,
    /// Whose it is, if not ours: the name of cert-manager's Certificate.
    pub(super) foreign: Option<String>,
    /// What a later write must find unchanged.
    pub(super) version: Option<String>,
}

impl Stored {
    /// A certificate and its key, unless they are missing.
    pub(super) fn pair(&self, certificate: &str, key: &str) -> Option<Pair> {
        let text = |name: &str| {
            self.data
                .get(name)
                .filter(|text| !text.trim().is_empty())
                .cloned()
        };
        Some(Pair {
            certificate: text(certificate)?,
            key: text(key)?,
        })
    }
}

/// Keeps them.
pub(super) trait Store {
    /// For the user.
    fn describe(&self, place: Place) -> String;

    /// What there is; `None`: nothing.
    async fn read(&self, place: Place) -> Result<Option<Stored>, CertgenError>;

    /// Writes all of it, if it is still as it was `before`: else [`CertgenError::Conflict`].
    async fn write(&self, place: Place, data: &Data, before: Option<&Stored>)
    -> Result<Stored, CertgenError>;
}
