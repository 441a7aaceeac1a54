//! Connecting to an address, in plain text or secured.

use std::io;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::transport::Uri;

use crate::connector::Connector;

/// A connection that was made.
pub type Dialed = TokioIo<Either<TcpStream, Box<TlsStream<TcpStream>>>>;

/// Connects to the host and port of `uri`, for [`tonic::transport::Endpoint::connect_with_connector`].
///
/// # Errors
/// If there is no connection, or it can't be secured: in words for the user.
pub async fn dial(uri: Uri, tls: Option<Connector>) -> io::Result<Dialed> {
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(match tls {
        None => Either::Left(stream),
        Some(tls) => Either::Right(Box::new(tls.connect(stream).await?)),
    }))
}
