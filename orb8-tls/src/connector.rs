//! The side that connects.

use std::{io, sync::Arc, time::Duration};

use rustls::{CertificateError, ClientConfig, pki_types::ServerName, version::TLS13};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;

use crate::{
    error::TlsError,
    material::{Current, Material, TlsFiles, provider},
};

/// Makes TLS connections to somebody of one identity, whatever the address.
#[derive(Clone, Debug)]
pub struct Connector {
    config: Current<ClientConfig>,
    expected: &'static str,
}

impl Connector {
    /// With the certificates that are in `files` now, and looked for again every 10 s. The other end has to be `expected`:
    /// [`SERVER`](crate::SERVER) or [`AGENT`](crate::AGENT).
    ///
    /// # Errors
    /// If a file can't be read, or its content makes no sense.
    pub fn from_files(files: &TlsFiles, expected: &'static str) -> Result<Self, TlsError> {
        let material = Material::read(files)?;
        Ok(Self {
            config: Current::new(material, Some(files.clone()), make, 0)?,
            expected,
        })
    }

    /// With certificates in memory.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn new(material: Material, expected: &'static str) -> Result<Self, TlsError> {
        Ok(Self {
            config: Current::new(material, None, make, 0)?,
            expected,
        })
    }

    /// Looks for changed files so often instead.
    #[must_use]
    pub fn look_every(self, look: Duration) -> Self {
        self.config.look_every(look);
        self
    }

    /// Secures a connection.
    ///
    /// # Errors
    /// If the other end is not who it should be, or does not speak TLS, in words for the user.
    pub async fn connect<IO>(&self, io: IO) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(self.expected).map_err(io::Error::other)?;
        tokio_rustls::TlsConnector::from(self.config.get())
            .connect(name, io)
            .await
            .map_err(|error| self.explain(error))
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let Some(cause) = error
            .get_ref()
            .and_then(|cause| cause.downcast_ref::<rustls::Error>())
        else {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return io::Error::new(
                    error.kind(),
                    "the connection was closed in the TLS handshake: too many connections, or plain text is spoken there",
                );
            }
            return error;
        };
        let expected = self.expected;
        let told = match cause {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "its certificate is not from the certificate authority that is trusted here".to_owned()
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => format!("its certificate is not that of {expected}"),
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => "its certificate has expired: have it renewed, or check the clocks".to_owned(),
            rustls::Error::InvalidMessage(_) => "it does not speak TLS: plain text is --insecure".to_owned(),
            other => format!("TLS: {other}"),
        };
        io::Error::new(error.kind(), told)
    }
}

fn make(material: &Material, _: u8) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| material.unusable(&error))?
        .with_root_certificates(Arc::new(material.roots()?));
    let mut config = match material.own()? {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| material.unusable(&error))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
