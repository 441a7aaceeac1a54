//! Who asks, as options and environment say: certificates, or a token.

use std::{env, fs, path::PathBuf};

use anyhow::anyhow;
use orb8_tls::{Connector, TlsFiles};

use crate::{args::ServerArgs, exit::Usage};

impl ServerArgs {
    /// What was not typed may be in the environment.
    pub(crate) fn fill_from_environment(&mut self) {
        let variable = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        for (to, name) in [
            (&mut self.tls_ca, "ORB8_TLS_CA"),
            (&mut self.tls_cert, "ORB8_TLS_CERT"),
            (&mut self.tls_key, "ORB8_TLS_KEY"),
        ] {
            if to.is_none() {
                *to = variable(name);
            }
        }
    }

    /// For connections to `expected`; none: plain text.
    ///
    /// # Errors
    /// If files are missing, or make no sense.
    pub(crate) fn connector(&self, expected: &'static str) -> anyhow::Result<Option<Connector>> {
        let Some(ca) = &self.tls_ca else {
            if self.tls_cert.is_some() || self.tls_key.is_some() {
                return Err(Usage(
                    "a certificate without --tls-ca (ORB8_TLS_CA): by whom is the other side's to be signed?"
                        .to_owned(),
                )
                .into());
            }
            return Ok(None);
        };
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(Usage("--tls-cert and --tls-key belong together".to_owned()).into());
        }
        let files = TlsFiles {
            ca: ca.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
        };
        Connector::from_files(&files, expected)
            .map(Some)
            .map_err(|error| anyhow!("{error} (--tls-ca, --tls-cert, --tls-key)"))
    }

    /// What may help where the other side ends the connection without a word: in TLS 1.3, that a certificate is refused
    /// shows only after the handshake, and the word is often lost.
    pub(crate) fn hint(&self, token: bool) -> String {
        match (&self.tls_ca, &self.tls_cert) {
            (None, _) => "it was asked in plain text; if it wants certificates, give --tls-ca, --tls-cert and --tls-key",
            (Some(_), None) if token => "if it takes no tokens, give a certificate (--tls-cert and --tls-key)",
            (Some(_), None) => "it may want a certificate (--tls-cert and --tls-key) or, of a server, a token (--token-file)",
            (Some(_), Some(_)) => {
                "it may refuse the certificate of --tls-cert: expired, of another authority, or not for operator.orb8"
            }
        }
        .to_owned()
    }

    /// The token, if there is one.
    ///
    /// # Errors
    /// If its file can't be read.
    pub(crate) fn token(&self) -> anyhow::Result<Option<String>> {
        let token = match &self.token_file {
            Some(path) => fs::read_to_string(path)
                .map_err(|error| anyhow!("reading the token in {}: {error}", path.display()))?,
            None => env::var("ORB8_TOKEN").unwrap_or_default(),
        };
        Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty()))
    }
}
