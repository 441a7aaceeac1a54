//! Who gets a connection, and who does not.

#[path = "support/authority.rs"]
mod authority;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use authority::Authority;
use futures::StreamExt as _;
use orb8_tls::{
    AGENT, Acceptor, ClientCertificates, ConnectionCounts, ConnectionLimits, Connector, OPERATOR, Peer,
    SERVER, TlsFiles, incoming,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected as _;

/// Greets whoever gets a connection.
struct Greeter {
    address: SocketAddr,
    counts: Arc<ConnectionCounts>,
    peers: tokio::sync::mpsc::UnboundedReceiver<Peer>,
    _stop: tokio_util::sync::DropGuard,
}

impl Greeter {
    async fn start(tls: Option<Acceptor>, limits: ConnectionLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(ConnectionCounts::default());
        let stop = CancellationToken::new();
        let (sender, peers) = tokio::sync::mpsc::unbounded_channel();
        let mut connections = Box::pin(incoming(listener, tls, limits, counts.clone(), stop.clone()));
        tokio::spawn(async move {
            while let Some(Ok(mut connection)) = connections.next().await {
                let _ = sender.send(connection.connect_info());
                tokio::spawn(async move {
                    let _ = connection.write_all(b"hello").await;
                    // Until the other side goes.
                    let _ = connection.read(&mut [0]).await;
                });
            }
        });
        Self {
            address,
            counts,
            peers,
            _stop: stop.drop_guard(),
        }
    }

    async fn tls(files: &TlsFiles, clients: ClientCertificates, limits: ConnectionLimits) -> Self {
        let acceptor = Acceptor::new(files, clients).unwrap().look_every(Duration::ZERO);
        Self::start(Some(acceptor), limits).await
    }

    /// What a client reads, or why it does not.
    async fn greet(&self, connector: &Connector) -> Result<String, String> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|e| e.to_string())?;
        let work = async {
            let mut stream = connector.connect(stream).await?;
            let mut text = [0; 5];
            stream.read_exact(&mut text).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
        };
        tokio::time::timeout(Duration::from_secs(5), work)
            .await
            .map_err(|_| "nothing for 5 s".to_owned())?
            .map_err(|error| error.to_string())
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn only_certificates_of_the_authority_that_are_valid_and_of_the_identity() {
    let directory = |_: &str| tempfile::tempdir().unwrap();
    let (server, good, expired, other, agents) = (
        directory("s"),
        directory("g"),
        directory("e"),
        directory("o"),
        directory("a"),
    );
    let (authority, foreign) = (Authority::new("ours"), Authority::new("theirs"));
    let files = authority.issue(server.path(), SERVER, 1);
    let mut greeter = Greeter::tls(&files, ClientCertificates::Required, ConnectionLimits::default()).await;

    let operator = authority.issue(good.path(), OPERATOR, 1);
    let connector = Connector::from_files(&operator, SERVER).unwrap();
    assert_eq!(greeter.greet(&connector).await.unwrap(), "hello");
    let peer = greeter.peers.recv().await.unwrap();
    assert!(
        peer.is(OPERATOR) && !peer.is(SERVER) && peer.encrypted,
        "{peer:?}"
    );

    // No certificate.
    let none = TlsFiles {
        cert: None,
        key: None,
        ..operator.clone()
    };
    let error = greeter
        .greet(&Connector::from_files(&none, SERVER).unwrap())
        .await
        .unwrap_err();
    assert!(error.contains("CertificateRequired"), "{error}");
    // Expired.
    let old = authority.issue(expired.path(), OPERATOR, -1);
    let error = greeter
        .greet(&Connector::from_files(&old, SERVER).unwrap())
        .await
        .unwrap_err();
    assert!(error.contains("Expired"), "{error}");
    // Of another authority, which the client shows though it trusts the right one.
    let stranger = TlsFiles {
        ca: operator.ca.clone(),
        ..foreign.issue(other.path(), OPERATOR, 1)
    };
    assert!(
        greeter
            .greet(&Connector::from_files(&stranger, SERVER).unwrap())
            .await
            .is_err()
    );
    // The client does not trust the server's authority.
    let mistrusts = TlsFiles {
        ca: other.path().join("ca.crt"),
        ..operator.clone()
    };
    let error = greeter
        .greet(&Connector::from_files(&mistrusts, SERVER).unwrap())
        .await
        .unwrap_err();
    assert!(error.contains("certificate authority"), "{error}");
    // The other end is somebody else.
    let files = authority.issue(agents.path(), AGENT, 1);
    let agent = Greeter::tls(&files, ClientCertificates::Required, ConnectionLimits::default()).await;
    let error = agent.greet(&connector).await.unwrap_err();
    assert!(error.contains("not that of server.orb8"), "{error}");

    // Plain text to TLS, and TLS to plain text.
    let mut plain = TcpStream::connect(greeter.address).await.unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), plain.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(!answer.windows(5).any(|part| part == b"hello"));
    let plain = Greeter::start(None, ConnectionLimits::default()).await;
    let error = plain.greet(&connector).await.unwrap_err();
    assert!(error.contains("does not speak TLS"), "{error}");

    assert!(count(&greeter.counts.handshake_failed) >= 4);
    assert_eq!(greeter.greet(&connector).await.unwrap(), "hello");
}

#[tokio::test]
async fn who_may_come_without_a_certificate_is_nobody() {
    let (server, client) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::new("ours");
    let files = authority.issue(server.path(), SERVER, 1);
    let mut greeter = Greeter::tls(&files, ClientCertificates::Optional, ConnectionLimits::default()).await;
    let none = TlsFiles {
        cert: None,
        key: None,
        ..authority.issue(client.path(), OPERATOR, 1)
    };
    greeter
        .greet(&Connector::from_files(&none, SERVER).unwrap())
        .await
        .unwrap();
    assert_eq!(
        greeter.peers.recv().await.unwrap().identities,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn changed_files_are_used_and_broken_ones_are_not() {
    let (server, client) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let files = first.issue(server.path(), SERVER, 1);
    let greeter = Greeter::tls(&files, ClientCertificates::Required, ConnectionLimits::default()).await;
    let connector = Connector::from_files(&first.issue(client.path(), OPERATOR, 1), SERVER)
        .unwrap()
        .look_every(Duration::ZERO);
    greeter.greet(&connector).await.unwrap();

    std::fs::write(server.path().join("tls.crt"), "nonsense").unwrap();
    greeter.greet(&connector).await.unwrap();

    second.issue(server.path(), SERVER, 1);
    assert!(greeter.greet(&connector).await.is_err());
    second.issue(client.path(), OPERATOR, 1);
    greeter.greet(&connector).await.unwrap();
}

#[tokio::test]
async fn connections_are_bounded_and_silent_ones_end() {
    let (server, client) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::new("ours");
    let files = authority.issue(server.path(), SERVER, 1);
    let limits = ConnectionLimits {
        total: 8,
        per_source: 4,
        handshake: Duration::from_millis(300),
    };
    let greeter = Greeter::tls(&files, ClientCertificates::Required, limits).await;
    let connector = Connector::from_files(&authority.issue(client.path(), OPERATOR, 1), SERVER).unwrap();
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(TcpStream::connect(greeter.address).await.unwrap());
    }
    // Four wait for a handshake that never comes, the others were closed.
    assert!(greeter.greet(&connector).await.is_err());
    tokio::time::timeout(Duration::from_secs(5), async {
        while count(&greeter.counts.open) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(count(&greeter.counts.timed_out), 4);
    assert!(count(&greeter.counts.refused) >= 16);
    greeter.greet(&connector).await.unwrap();
}

#[tokio::test]
async fn errors_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let files = Authority::new("ours").issue(directory.path(), SERVER, 1);
    std::fs::write(directory.path().join("tls.key"), "").unwrap();
    let error = Acceptor::new(&files, ClientCertificates::Required)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("private key") && error.contains("tls.crt"),
        "{error}"
    );
    std::fs::remove_file(directory.path().join("ca.crt")).unwrap();
    let error = Acceptor::new(&files, ClientCertificates::Required)
        .unwrap_err()
        .to_string();
    assert!(error.contains("ca.crt"), "{error}");
}
