//! Connections as they come, within bounds.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::server::TlsStream;
use tokio_util::{either::Either, sync::CancellationToken};
use tonic::transport::server::Connected;
use tracing::{debug, warn};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::acceptor::Acceptor;

/// Connections that wait to be served.
const WAITING: usize = 64;

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// At once, over all. More are closed at once, and counted.
    pub total: usize,
    /// At once, of one source address.
    pub per_source: usize,
    /// A handshake has to be over by then.
    pub handshake: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            total: 1024,
            per_source: 256,
            handshake: Duration::from_secs(5),
        }
    }
}

/// What became of connections, since the start.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    /// Served.
    pub accepted: AtomicU64,
    /// Closed at once: there were too many.
    pub refused: AtomicU64,
    /// Not secured: no certificate, a wrong one, or no TLS.
    pub handshake_failed: AtomicU64,
    /// Not secured in time.
    pub timed_out: AtomicU64,
    /// Open now.
    pub open: AtomicU64,
}

/// Who is at the other end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its address, if it has one.
    pub address: Option<SocketAddr>,
    /// DNS names of its certificate, which was verified. None: it showed none.
    pub identities: Vec<String>,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
}

impl Peer {
    /// Whether its certificate says that it is `identity`.
    #[must_use]
    pub fn is(&self, identity: &str) -> bool {
        self.identities.iter().any(|own| own == identity)
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    peer: Peer,
    _slot: Slot,
}

type Io = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The connections of `listener`, until `stop`: secured by `tls` if it is given, else as they come.
pub fn incoming(
    listener: TcpListener,
    tls: Option<Acceptor>,
    limits: ConnectionLimits,
    counts: Arc<ConnectionCounts>,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(WAITING);
    let slots = Arc::new(Slots {
        limits,
        counts,
        by_source: Mutex::default(),
    });
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = sender.closed() => {}
            () = accept(listener, tls, slots, sender.clone()) => {}
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|connection| (Ok(connection), receiver))
    })
}

async fn accept(
    listener: TcpListener,
    tls: Option<Acceptor>,
    slots: Arc<Slots>,
    sender: mpsc::Sender<Connection>,
) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: others will be closed.
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = slots.take(address.ip().to_canonical()) else {
            slots.counts.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        // Small messages are not to wait for others.
        let _ = stream.set_nodelay(true);
        let (tls, slots, sender) = (tls.clone(), slots.clone(), sender.clone());
        tokio::spawn(async move {
            if let Some(connection) = secure(stream, address, tls, &slots, slot).await {
                slots.counts.accepted.fetch_add(1, Ordering::Relaxed);
                let _ = sender.send(connection).await;
            }
        });
    }
}

async fn secure(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Acceptor>,
    slots: &Slots,
    slot: Slot,
) -> Option<Connection> {
    let mut peer = Peer {
        address: Some(address),
        ..Peer::default()
    };
    let io = match tls {
        None => Either::Left(stream),
        Some(tls) => {
            let handshake = tls.current().accept(stream);
            match tokio::time::timeout(slots.limits.handshake, handshake).await {
                Ok(Ok(stream)) => {
                    peer.encrypted = true;
                    peer.identities = identities(&stream);
                    Either::Right(Box::new(stream))
                }
                Ok(Err(error)) => {
                    debug!(%address, %error, "a TLS handshake failed");
                    slots.counts.handshake_failed.fetch_add(1, Ordering::Relaxed);
                    return None;
                }
                Err(_) => {
                    slots.counts.timed_out.fetch_add(1, Ordering::Relaxed);
                    return None;
                }
            }
        }
    };
    Some(Connection {
        io,
        peer,
        _slot: slot,
    })
}

/// DNS names of the certificate that the other end showed; it was verified in the handshake.
fn identities(stream: &TlsStream<TcpStream>) -> Vec<String> {
    let Some(certificate) = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
    else {
        return Vec::new();
    };
    let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect()
}

#[derive(Debug)]
struct Slots {
    limits: ConnectionLimits,
    counts: Arc<ConnectionCounts>,
    /// Only of addresses that have a connection: no more entries than connections.
    by_source: Mutex<HashMap<IpAddr, usize>>,
}

impl Slots {
    fn take(self: &Arc<Self>, source: IpAddr) -> Option<Slot> {
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        let open: usize = by_source.values().sum();
        if open >= self.limits.total {
            return None;
        }
        let own = by_source.entry(source).or_default();
        if *own >= self.limits.per_source {
            return None;
        }
        *own += 1;
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        Some(Slot {
            slots: self.clone(),
            source,
        })
    }
}

/// A connection's place among those that may be open.
#[derive(Debug)]
struct Slot {
    slots: Arc<Slots>,
    source: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut by_source = self
            .slots
            .by_source
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by_source.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                by_source.remove(&self.source);
            }
        }
        self.slots.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
