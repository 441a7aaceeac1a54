//! A running server.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use orb8_fleet::Hub;
use orb8_kubernetes::{Configured, client, configure};
use orb8_proto::{DESCRIPTORS, v1::orbit_service_server::OrbitServiceServer};
use orb8_tls::{AGENT, Acceptor, ConnectionCounts, Connector, TlsError, incoming};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    discovery::Discovery,
    guard::{Guard, GuardCounts, KubeReviewer, Namespaces},
    http,
    metrics::{Metrics, Observe},
    pool::Pool,
    settings::Settings,
    status::State,
};

/// Requests are short; what is longer is none.
const MAX_REQUEST: usize = 256 << 10;
/// Requests of one connection at once.
const MAX_STREAMS: u32 = 64;
/// How long open answers may take to end when the server stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Why a server can't run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting is wrong, in words for the user.
    #[error("{0}")]
    Setting(String),
    /// Certificates.
    #[error("{0}: see --tls-ca, --tls-cert and --tls-key")]
    Tls(#[from] TlsError),
    /// The cluster's configuration.
    #[error("{0}")]
    Kubernetes(String),
    /// A port.
    #[error(
        "{what} cannot listen on {address}: {source}; is something else on that port? Another one is {setting}"
    )]
    Listen {
        /// Metrics or gRPC.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
        /// What changes it.
        setting: &'static str,
    },
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    grpc: SocketAddr,
    metrics: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    /// Begins to look for agents, and to serve.
    ///
    /// # Errors
    /// [`ServerError`]; then nothing runs.
    pub async fn start(settings: &Settings) -> Result<Self, ServerError> {
        settings.check()?;
        let stop = CancellationToken::new();
        let until_served = stop.clone().drop_guard();
        // First: a port that is taken is the likeliest mistake, and costs nothing to find.
        let grpc = bind("gRPC", settings.grpc_address, settings.grpc_port, "--grpc-port").await?;
        let web = bind(
            "metrics",
            settings.metrics_address,
            settings.metrics_port,
            "--metrics-port",
        )
        .await?;
        let address = |listener: &TcpListener| {
            listener
                .local_addr()
                .unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)))
        };
        let (grpc_address, metrics_address) = (address(&grpc), address(&web));
        let (acceptor, connector) = match settings.tls() {
            Some(files) => (
                Some(Acceptor::new(&files, settings.client_certificates())?),
                Some(Connector::from_files(&files, AGENT)?),
            ),
            None => (None, None),
        };
        if settings.insecure {
            warn!("gRPC is in plain text (--insecure): anybody who reaches the port may ask everything");
        }
        let discovery = Discovery::start(settings, &stop).await?;
        let pool = Pool::start(
            &discovery,
            connector,
            settings.insecure,
            settings.heartbeat,
            &stop,
        );
        let connections = Arc::new(ConnectionCounts::default());
        let metrics = Arc::new(Metrics::default());
        let refusals = Arc::new(GuardCounts::default());
        let mut hub = Hub::new(pool.members.clone(), settings.limits());
        let state = Arc::new(State::new(
            settings.clone(),
            discovery.clone(),
            &pool,
            &hub,
            connections.clone(),
            metrics.clone(),
            refusals.clone(),
        ));
        if let Some(pods) = discovery.pods.clone() {
            hub = hub.with_pods(pods);
        }
        let hub = hub.with_status(state.clone());
        let guard = guard(settings, hub, &discovery, refusals).await?;
        tokio::spawn(http::serve(state, web, stop.clone()));
        let connections = incoming(
            grpc,
            acceptor,
            settings.connection_limits(),
            connections,
            stop.clone(),
        );
        let serving = tokio::spawn(serve(guard, connections, metrics, stop.clone()));
        until_served.disarm();
        Ok(Self {
            grpc: grpc_address,
            metrics: metrics_address,
            stop,
            serving,
        })
    }

    /// Where gRPC is served.
    #[must_use]
    pub const fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where metrics are served.
    #[must_use]
    pub const fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Takes no more questions, ends what is open, and returns within 5 s.
    pub async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_TIME, self.serving).await.is_err() {
            info!("some answers were cut off");
        }
    }
}

async fn bind(
    what: &'static str,
    ip: IpAddr,
    port: u16,
    setting: &'static str,
) -> Result<TcpListener, ServerError> {
    let address = SocketAddr::new(ip, port);
    match TcpListener::bind(address).await {
        // All addresses were meant, and this machine has none of IPv6.
        Err(error)
            if ip == IpAddr::from([0_u16; 8])
                && matches!(
                    error.kind(),
                    std::io::ErrorKind::Unsupported | std::io::ErrorKind::AddrNotAvailable
                ) =>
        {
            TcpListener::bind(SocketAddr::new(IpAddr::from([0_u8; 4]), port)).await
        }
        result => result,
    }
    .map_err(|source| ServerError::Listen {
        what,
        address,
        source,
        setting,
    })
}

/// Who may ask, as the settings say.
async fn guard(
    settings: &Settings,
    hub: Hub,
    discovery: &Discovery,
    counts: Arc<GuardCounts>,
) -> Result<Guard<Hub>, ServerError> {
    let guard = Guard::new(hub, settings.guard_limits(), counts);
    if settings.tls().is_none() {
        return Ok(guard.open());
    }
    if !settings.token_review {
        return Ok(guard);
    }
    let client = match &discovery.client {
        Some(client) => client.clone(),
        None => match configure(settings.kubeconfig.as_deref())
            .await
            .map_err(|error| ServerError::Kubernetes(error.to_string()))?
        {
            Configured::Found(config, _) => {
                client(*config).map_err(|error| ServerError::Kubernetes(error.to_string()))?
            }
            Configured::None(why) => {
                return Err(ServerError::Setting(format!(
                    "--token-review needs a cluster that reviews tokens: {why}"
                )));
            }
        },
    };
    let reviewer = KubeReviewer::new(client, settings.token_audiences.clone());
    let namespaces = discovery.pods.clone().map(|pods| pods as Arc<dyn Namespaces>);
    Ok(guard.with_tokens(Arc::new(reviewer), namespaces))
}

async fn serve(
    guard: Guard<Hub>,
    connections: impl futures::Stream<Item = std::io::Result<orb8_tls::Connection>> + Send + 'static,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<OrbitServiceServer<Guard<Hub>>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let mut server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .layer(Observe::new(metrics))
        .add_service(health_service)
        .add_service(OrbitServiceServer::new(guard).max_decoding_message_size(MAX_REQUEST));
    match reflection {
        Ok(reflection) => server = server.add_service(reflection),
        Err(error) => warn!(%error, "gRPC reflection is not served"),
    }
    let served = server.serve_with_incoming_shutdown(connections.boxed(), stop.cancelled_owned());
    if let Err(error) = served.await {
        warn!(%error, "the gRPC service ended");
    }
}
