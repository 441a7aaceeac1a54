//! A hub for one process: reached by a channel, without a socket.

use std::io;

use hyper_util::rt::TokioIo;
use orb8_proto::v1::orbit_service_server::OrbitServiceServer;
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use crate::hub::Hub;

/// Bytes on their way in each direction.
const DUPLEX_BYTES: usize = 1 << 20;

impl Hub {
    /// A connection to this hub, in memory. It serves for as long as the channel or a copy of it is there.
    #[must_use]
    pub fn channel(self) -> Channel {
        let (connections, incoming) = mpsc::channel::<io::Result<DuplexStream>>(8);
        tokio::spawn(
            Server::builder()
                .add_service(OrbitServiceServer::new(self))
                .serve_with_incoming(ReceiverStream::new(incoming)),
        );
        // The address is not used.
        Endpoint::from_static("http://hub.invalid").connect_with_connector_lazy(tower::service_fn(
            move |_: Uri| {
                let connections = connections.clone();
                async move {
                    let (ours, theirs) = tokio::io::duplex(DUPLEX_BYTES);
                    connections.send(Ok(theirs)).await.map_err(|_| {
                        io::Error::new(io::ErrorKind::ConnectionRefused, "the hub has stopped")
                    })?;
                    Ok::<_, io::Error>(TokioIo::new(ours))
                }
            },
        ))
    }
}
