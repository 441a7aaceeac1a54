//! A gRPC service for this process alone, over connections in memory.

use std::io;

use hyper_util::rt::TokioIo;
use orb8_proto::v1::orbit_service_server::{OrbitService, OrbitServiceServer};
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tracing::warn;

/// Bytes in flight on a connection.
const DUPLEX_BYTES: usize = 256 << 10;
/// Largest message that a client may send: queries are small.
const MAX_REQUEST: usize = 256 << 10;

/// Where connections to the service come from.
#[derive(Debug)]
pub(crate) struct InProcess {
    connections: mpsc::Sender<io::Result<DuplexStream>>,
}

impl InProcess {
    /// With the connections, which [`serve`] takes.
    pub(crate) fn new() -> (Self, ReceiverStream<io::Result<DuplexStream>>) {
        let (connections, incoming) = mpsc::channel(8);
        (Self { connections }, ReceiverStream::new(incoming))
    }

    /// A connection to the service.
    pub(crate) fn channel(&self) -> Channel {
        let connections = self.connections.clone();
        // The address is not used.
        Endpoint::from_static("http://agent.invalid").connect_with_connector_lazy(tower::service_fn(
            move |_: Uri| {
                let connections = connections.clone();
                async move {
                    let (ours, theirs) = tokio::io::duplex(DUPLEX_BYTES);
                    connections.send(Ok(theirs)).await.map_err(|_| {
                        io::Error::new(io::ErrorKind::ConnectionRefused, "the agent has stopped")
                    })?;
                    Ok::<_, io::Error>(TokioIo::new(ours))
                }
            },
        ))
    }
}

/// The service, with a bound on requests.
pub(crate) fn bounded<S: OrbitService>(orbit: S) -> OrbitServiceServer<S> {
    OrbitServiceServer::new(orbit).max_decoding_message_size(MAX_REQUEST)
}

/// Answers until `stop`.
pub(crate) async fn serve<S: OrbitService>(
    orbit: S,
    incoming: ReceiverStream<io::Result<DuplexStream>>,
    stop: CancellationToken,
) {
    let server = Server::builder().add_service(bounded(orbit));
    if let Err(error) = server
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
    {
        warn!(%error, "the in-process service ended");
    }
}
