//! The side that listens.

use std::{sync::Arc, time::Duration};

use rustls::{ServerConfig, server::WebPkiClientVerifier, version::TLS13};

use crate::{
    error::TlsError,
    material::{Current, Material, TlsFiles, provider},
};

/// Whether who connects must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Without one there is no connection.
    Required,
    /// Who has none must show something else.
    Optional,
}

/// Takes TLS connections, with the certificates of files that may change.
#[derive(Clone, Debug)]
pub struct Acceptor {
    config: Current<ServerConfig>,
}

impl Acceptor {
    /// With the certificates that are in `files` now, and looked for again every 10 s.
    ///
    /// # Errors
    /// If a file can't be read, or its content makes no sense.
    pub fn new(files: &TlsFiles, clients: ClientCertificates) -> Result<Self, TlsError> {
        let material = Material::read(files)?;
        let config = Current::new(
            material,
            Some(files.clone()),
            make,
            u8::from(clients == ClientCertificates::Optional),
        )?;
        Ok(Self { config })
    }

    /// Looks for changed files so often instead.
    #[must_use]
    pub fn look_every(self, look: Duration) -> Self {
        self.config.look_every(look);
        self
    }

    pub(crate) fn current(&self) -> tokio_rustls::TlsAcceptor {
        tokio_rustls::TlsAcceptor::from(self.config.get())
    }
}

fn make(material: &Material, optional: u8) -> Result<ServerConfig, TlsError> {
    let roots = Arc::new(material.roots()?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let verifier = if optional == 1 {
        verifier.allow_unauthenticated()
    } else {
        verifier
    };
    let verifier = verifier.build().map_err(|error| material.unusable(&error))?;
    let (chain, key) = material
        .own()?
        .ok_or_else(|| material.unusable(&"who listens needs a certificate and a key of its own"))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
        })
        .map_err(|error| material.unusable(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
