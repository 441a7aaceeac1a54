//! Who should not get anything out of the server, and what they get: a refusal, and nothing else. After each attempt the
//! server answers those who may ask.
//!
//! Everything is real but the agents and the API server: sockets on loopback, TLS, the guard, the hub.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser as _;
use futures::StreamExt as _;
use orb8_proto::v1::{
    FlowFilter, FlowQuery, GetAgentStatusRequest, GpuFilter, GpuMethod, GpuQuery, ListNodesRequest,
    ListPodsRequest, QueryStatusRequest, SetSyscallModeRequest, StreamEventsRequest, SyscallFilter,
    SyscallQuery, orbit_service_client::OrbitServiceClient, query_edges_response, query_flows_response,
    query_gpus_response, stream_events_response::Event,
};
use orb8_server::{
    Server,
    authority::Authority,
    settings::{Cli, Settings},
};
use orb8_tls::{AGENT, Connector, OPERATOR, SERVER, TlsFiles, dial};
use prost::Message;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

#[path = "support/agent.rs"]
mod agent;
#[path = "support/api.rs"]
mod api;

use agent::{ALL, FakeAgent, SEEN};
use api::FakeApi;

/// What no answer to somebody who sees `shop` may hold.
const HIDDEN: &[u8] = b"hush";
/// A sum over everybody's traffic.
const SUM: u64 = 918_273;

type Client = OrbitServiceClient<InterceptedService<Channel, Bearer>>;

/// Shows a token, if there is one.
#[derive(Clone)]
struct Bearer(Option<&'static str>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = self.0 {
            let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// A server with two agents, of which the second one heeds no conditions.
struct Setup {
    directory: TempDir,
    authority: Authority,
    server: Server,
    agents: [FakeAgent; 2],
    api: FakeApi,
    stop: CancellationToken,
}

/// Certificates below `directory`: for these names, made `ago`, for so long.
fn files(
    authority: &Authority,
    directory: &Path,
    name: &str,
    identity: &str,
    ago: time::Duration,
    lifetime: time::Duration,
) -> TlsFiles {
    let made = OffsetDateTime::now_utc() - ago;
    let pair = authority.issue(&[identity.to_owned()], made, lifetime).unwrap();
    let write = |what: &str, text: &str| {
        let path = directory.join(format!("{name}.{what}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    TlsFiles {
        ca: write("ca", &authority.pair().certificate),
        cert: Some(write("crt", &pair.certificate)),
        key: Some(write("key", &pair.key)),
    }
}

fn good(authority: &Authority, directory: &Path, name: &str, identity: &str) -> TlsFiles {
    let (ago, lifetime) = (time::Duration::ZERO, time::Duration::hours(1));
    files(authority, directory, name, identity, ago, lifetime)
}

fn authority() -> Authority {
    let made = OffsetDateTime::now_utc() - time::Duration::days(20);
    Authority::make(made, time::Duration::days(40)).unwrap()
}

impl Setup {
    async fn new(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let authority = authority();
        let stop = CancellationToken::new();
        let agents = [FakeAgent::new("n1", false), FakeAgent::new("n2", true)];
        let certificate = good(&authority, path, "agent", AGENT);
        let mut addresses = Vec::new();
        for agent in &agents {
            addresses.push(agent.serve(&certificate, &stop).await);
        }
        let api = FakeApi::default();
        let kubeconfig = path.join("kubeconfig");
        let address = api.serve(&stop).await;
        std::fs::write(
            &kubeconfig,
            format!(
                "{{apiVersion: v1, kind: Config, current-context: t, contexts: [{{name: t, context: {{cluster: t, user: t}}}}], \
                 clusters: [{{name: t, cluster: {{server: 'http://{address}'}}}}], users: [{{name: t, user: {{}}}}]}}"
            ),
        )
        .unwrap();
        let own = good(&authority, path, "server", SERVER);
        let shown = |path: &Path| path.to_str().unwrap().to_owned();
        let line = [
            "orb8-server".to_owned(),
            format!("--agents={}", addresses.join(",")),
            format!("--tls-ca={}", shown(&own.ca)),
            format!("--tls-cert={}", shown(own.cert.as_ref().unwrap())),
            format!("--tls-key={}", shown(own.key.as_ref().unwrap())),
            format!("--kubeconfig={}", shown(&kubeconfig)),
            "--grpc-port=0".to_owned(),
            "--metrics-port=0".to_owned(),
        ];
        let line = line.into_iter().chain(more.iter().map(|&more| more.to_owned()));
        let settings: Settings = Cli::parse_from(line).settings;
        let server = Server::start(&settings).await.unwrap();
        let setup = Self {
            directory,
            authority,
            server,
            agents,
            api,
            stop,
        };
        setup.wait_for_agents().await;
        setup
    }

    async fn wait_for_agents(&self) {
        let mut client = self.operator().await;
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(answer) = client.query_flows(FlowQuery::default()).await
                && flows_of(answer.into_inner())
                    .await
                    .is_ok_and(|flows| flows.len() == 2 * ALL)
            {
                return;
            }
            assert!(Instant::now() < end, "the agents were not found");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn address(&self) -> SocketAddr {
        self.server.grpc_address()
    }

    fn files(&self, name: &str, identity: &str) -> TlsFiles {
        good(&self.authority, self.directory.path(), name, identity)
    }

    async fn connect(
        &self,
        files: TlsFiles,
        token: Option<&'static str>,
    ) -> Result<Client, tonic::transport::Error> {
        connect(self.address(), files, token).await
    }

    async fn operator(&self) -> Client {
        self.connect(self.files("operator", OPERATOR), None)
            .await
            .unwrap()
    }

    /// Somebody with a token, and without a certificate.
    async fn person(&self, token: &'static str) -> Client {
        let files = TlsFiles {
            cert: None,
            key: None,
            ..self.files("nobody", OPERATOR)
        };
        self.connect(files, Some(token)).await.unwrap()
    }

    /// The server answers who may ask, to the end, on a connection of their own.
    async fn assert_alive(&self) {
        let mut client = self.operator().await;
        let answer = client.query_flows(FlowQuery::default()).await.unwrap();
        assert_eq!(flows_of(answer.into_inner()).await.unwrap().len(), 2 * ALL);
    }

    async fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.server.metrics_address()).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap_or_else(|| panic!("no {name} in {page}"));
        value.trim().parse().unwrap()
    }

    async fn stop(self) {
        self.server.stop().await;
        self.stop.cancel();
    }
}

async fn connect(
    address: SocketAddr,
    files: TlsFiles,
    token: Option<&'static str>,
) -> Result<Client, tonic::transport::Error> {
    let connector = Connector::from_files(&files, SERVER).unwrap();
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(tower::service_fn(move |uri| dial(uri, Some(connector.clone()))))
        .await?;
    Ok(OrbitServiceClient::with_interceptor(channel, Bearer(token)))
}

async fn flows_of(
    mut stream: tonic::Streaming<orb8_proto::v1::QueryFlowsResponse>,
) -> Result<Vec<orb8_proto::v1::Flow>, Status> {
    let mut flows = Vec::new();
    while let Some(message) = stream.message().await? {
        if let Some(query_flows_response::Part::Batch(batch)) = message.part {
            flows.extend(batch.flows);
        }
    }
    Ok(flows)
}

/// All messages, and all bytes of them.
async fn collect<T: Message>(mut stream: tonic::Streaming<T>) -> (Vec<T>, Vec<u8>) {
    let (mut messages, mut bytes) = (Vec::new(), Vec::new());
    while let Some(message) = stream.message().await.unwrap() {
        bytes.extend(message.encode_to_vec());
        messages.push(message);
    }
    (messages, bytes)
}

#[track_caller]
fn assert_hides(bytes: &[u8]) {
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(
        !holds(HIDDEN),
        "a hidden name: {}",
        String::from_utf8_lossy(bytes)
    );
    let mut sum = Vec::new();
    prost::encoding::encode_varint(SUM, &mut sum);
    assert!(
        !holds(&sum) && !holds(SUM.to_string().as_bytes()),
        "a sum over everybody's"
    );
}

/// A connection that is refused at the handshake shows it at the first question.
async fn refused(setup: &Setup, files: TlsFiles) -> String {
    let mut client = match setup.connect(files, None).await {
        Ok(client) => client,
        Err(error) => return orb8_fleet::innermost(&error),
    };
    let error = client.query_flows(FlowQuery::default()).await.unwrap_err();
    assert_hides(error.message().as_bytes());
    let cause = std::error::Error::source(&error).map_or_else(String::new, orb8_fleet::innermost);
    format!("{:?}: {} {cause}", error.code(), error.message())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_certificate_there_is_no_answer() {
    let setup = Setup::new(&[]).await;
    let directory = setup.directory.path();
    let failed = "orb8_server_connections_total{state=\"handshake_failed\"}";
    let before = setup.metric(failed).await;

    // None at all.
    let none = TlsFiles {
        cert: None,
        key: None,
        ..setup.files("none", OPERATOR)
    };
    let told = refused(&setup, none).await;
    assert!(
        !told.contains("PermissionDenied") && !told.starts_with("Unauthenticated"),
        "{told}"
    );
    setup.assert_alive().await;

    // Of an authority of its own, while it knows that of the server.
    let stranger = authority();
    let wrong = TlsFiles {
        ca: setup.files("right", OPERATOR).ca,
        ..good(&stranger, directory, "stranger", OPERATOR)
    };
    refused(&setup, wrong).await;
    setup.assert_alive().await;

    // Expired a week ago.
    let (ago, lifetime) = (time::Duration::days(8), time::Duration::days(1));
    let expired = files(&setup.authority, directory, "expired", OPERATOR, ago, lifetime);
    refused(&setup, expired).await;
    setup.assert_alive().await;
    assert!(setup.metric(failed).await >= before + 3.0);

    // Of an agent, whose node somebody took over; and of the server itself.
    for (name, identity) in [("taken", AGENT), ("itself", SERVER)] {
        let told = refused(&setup, setup.files(name, identity)).await;
        assert!(
            told.contains("PermissionDenied") && told.contains(identity),
            "{told}"
        );
    }
    let denied = "orb8_server_guard_refused_total{reason=\"identity\"}";
    assert!(setup.metric(denied).await >= 2.0);
    setup.assert_alive().await;

    // Who connects looks as well: an operator's certificate makes no server.
    let operator = setup.files("operator-as-server", OPERATOR);
    let fake = FakeAgent::new("fake", true);
    let address = fake.serve(&operator, &setup.stop).await;
    let own = setup.files("operator", OPERATOR);
    let error = connect(address.parse().unwrap(), own, None).await.err().unwrap();
    let told = orb8_fleet::innermost(&error);
    assert!(told.contains("not that of server.orb8"), "{told}");

    // And a server of a stranger's.
    let address = fake
        .serve(&good(&stranger, directory, "theirs", SERVER), &setup.stop)
        .await;
    let own = setup.files("operator", OPERATOR);
    let error = connect(address.parse().unwrap(), own, None).await.err().unwrap();
    let told = orb8_fleet::innermost(&error);
    assert!(told.contains("certificate authority"), "{told}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_and_what_is_too_long_get_nothing() {
    let setup = Setup::new(&[]).await;
    // gRPC without TLS.
    let endpoint = Endpoint::from_shared(format!("http://{}", setup.address())).unwrap();
    let answer = match endpoint.connect().await {
        Err(_) => None,
        Ok(channel) => {
            let mut client = OrbitServiceClient::new(channel);
            client.query_flows(FlowQuery::default()).await.ok()
        }
    };
    assert!(answer.is_none());
    // HTTP/1.1, and nonsense: at most an alert of TLS comes back.
    for sent in [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0x16; 70_000],
    ] {
        let mut stream = TcpStream::connect(setup.address()).await.unwrap();
        let _ = stream.write_all(&sent).await;
        let mut got = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(6), stream.read_to_end(&mut got)).await;
        assert!(read.is_ok(), "it is closed");
        assert!(got.len() < 16, "{got:?}");
        assert_hides(&got);
    }
    setup.assert_alive().await;

    // One message of more than 256 KiB; the connection goes on to serve.
    let mut client = setup.operator().await;
    let long = FlowQuery {
        filter: Some(FlowFilter {
            pods: vec!["x".repeat(300 << 10)],
            ..FlowFilter::default()
        }),
        ..FlowQuery::default()
    };
    let error = client.query_flows(long).await.unwrap_err();
    assert!(
        matches!(error.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{error:?}"
    );
    let answer = client.query_flows(FlowQuery::default()).await.unwrap();
    assert_eq!(flows_of(answer.into_inner()).await.unwrap().len(), 2 * ALL);
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_nobody_out() {
    const IDLE: usize = 10_000;
    let setup = Setup::new(&[]).await;
    let mut before = setup.operator().await;
    // As many as may be open stay open; of the others some are closed again by this side.
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard);
    let (allowed, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert!(allowed >= soft);
    let held = usize::try_from(allowed)
        .unwrap_or(IDLE)
        .saturating_sub(1500)
        .min(IDLE);
    let mut idle = std::collections::VecDeque::new();
    let mut opened = 0;
    for batch in 0..IDLE / 500 {
        for _ in 0..500 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            // A full backlog is a refusal too.
            let connecting = socket.connect(setup.address());
            if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(2), connecting).await {
                idle.push_back(stream);
            }
            opened += 1;
            while idle.len() > held.max(500) {
                idle.pop_front();
            }
        }
        if batch % 5 == 0 {
            let answer = before.query_flows(FlowQuery::default()).await.unwrap();
            assert_eq!(flows_of(answer.into_inner()).await.unwrap().len(), 2 * ALL);
        }
    }
    assert_eq!(opened, IDLE);
    // From elsewhere there is room.
    setup.assert_alive().await;
    let open = setup.metric("orb8_server_open_connections").await;
    assert!(open <= 256.0 + 16.0, "{open} are open");
    let refused = setup
        .metric("orb8_server_connections_total{state=\"refused\"}")
        .await;
    assert!(refused > 1000.0, "{refused} were refused");
    drop(idle);
    // And once they have gone, from there too.
    let end = Instant::now() + Duration::from_secs(8);
    while setup.metric("orb8_server_open_connections").await > 16.0 {
        assert!(Instant::now() < end, "idle connections stay open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    setup.assert_alive().await;
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_too_slowly_is_cut_off() {
    let setup = Setup::new(&["--patience=300ms", "--client-queries=4"]).await;
    setup.agents[0].set_endless(true);
    let mut client = setup.operator().await;
    let mut slow = client
        .query_flows(FlowQuery::default())
        .await
        .unwrap()
        .into_inner();
    slow.message().await.unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while setup.metric("orb8_server_cut_off_total").await < 1.0 {
        assert!(Instant::now() < end, "it was not cut off");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    setup.agents[0].set_endless(false);
    setup.assert_alive().await;

    // What it has not read yet comes, and no summary after it: it can't be taken for the whole.
    let mut ended = false;
    while let Ok(Some(message)) = slow.message().await {
        ended |= matches!(message.part, Some(query_flows_response::Part::Summary(_)));
    }
    assert!(!ended);

    // As many as one client may ask at once, and no more; another one may.
    setup.agents[0].set_endless(true);
    let mut open = Vec::new();
    let error = loop {
        match client.query_flows(FlowQuery::default()).await {
            Ok(answer) => open.push(answer),
            Err(error) => break error,
        }
        assert!(open.len() <= 4);
    };
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert_eq!(open.len(), 4);
    assert!(error.message().contains("of yours"), "{error:?}");
    drop(open);
    setup.agents[0].set_endless(false);
    let end = Instant::now() + Duration::from_secs(5);
    while client.query_flows(FlowQuery::default()).await.is_err() {
        assert!(Instant::now() < end, "the places are not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    setup.stop().await;
}

fn shop() -> FlowQuery {
    FlowQuery {
        filter: Some(FlowFilter {
            namespaces: vec!["shop".to_owned()],
            ..FlowFilter::default()
        }),
        ..FlowQuery::default()
    }
}

fn flow_filter(change: impl FnOnce(&mut FlowFilter)) -> FlowQuery {
    let mut query = shop();
    change(query.filter.as_mut().unwrap());
    query
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_shows_its_namespaces_and_nothing_else() {
    let setup = Setup::new(&["--token-review"]).await;
    setup.api.user("t-shop", "anna", &["shop"]);
    setup.api.user("t-none", "nick", &[]);
    setup.api.user("t-all", "olga", &["*"]);

    // No token, and one that nobody has.
    let files = TlsFiles {
        cert: None,
        key: None,
        ..setup.files("nobody", OPERATOR)
    };
    let mut nobody = setup.connect(files, None).await.unwrap();
    let error = nobody.query_flows(FlowQuery::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(error.message().contains("operator's certificate"), "{error:?}");
    let mut stranger = setup.person("guessed").await;
    let error = stranger.query_flows(shop()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);

    let mut anna = setup.person("t-shop").await;
    // Flows: also of the agent that gives more than it was asked for.
    let answer = anna.query_flows(shop()).await.unwrap();
    let (messages, bytes) = collect(answer.into_inner()).await;
    assert_hides(&bytes);
    let mut seen = Vec::new();
    for message in messages {
        match message.part.unwrap() {
            query_flows_response::Part::Batch(batch) => seen.extend(batch.flows),
            query_flows_response::Part::Summary(summary) => {
                assert_eq!(summary.matched_flows, 2 * SEEN as u64);
                assert_eq!(summary.matched_bytes, 2 * (900 + 600 + 500));
                for node in summary.nodes {
                    // By address, so that it is not known which rows are whose.
                    assert_eq!(node.items, 0, "{node:?}");
                    assert!(node.ledger.is_empty());
                    assert!(
                        node.notes.iter().any(|note| note.contains("was lost")),
                        "{node:?}"
                    );
                    assert!(
                        node.notes
                            .iter()
                            .any(|note| note.starts_with("The answer starts"))
                    );
                }
            }
        }
    }
    assert_eq!(seen.len(), 2 * SEEN);
    let peer = seen[0].dst.as_ref().unwrap();
    assert_eq!((peer.ip.as_str(), peer.port), ("10.0.0.9", 4000));
    assert_eq!(seen[0].service.as_ref().unwrap().ip, "10.96.0.9");
    assert!(
        seen.iter()
            .any(|flow| flow.dst.as_ref().unwrap().dns_name == "api.example.com")
    );
    assert!(seen.iter().any(|flow| flow.dst.as_ref().unwrap().pod == "cart"));
    assert_eq!(setup.agents[0].last_asked().reports, 1, "own reports only");
    assert!(setup.metric("orb8_server_guard_dropped_total").await >= 3.0);

    // Edges.
    let answer = anna.query_edges(shop()).await.unwrap();
    let (messages, bytes) = collect(answer.into_inner()).await;
    assert_hides(&bytes);
    let edges = messages.into_iter().filter_map(|message| match message.part {
        Some(query_edges_response::Part::Batch(batch)) => Some(batch.edges),
        _ => None,
    });
    let edges: Vec<_> = edges.flatten().collect();
    assert_eq!(edges.len(), SEEN, "both nodes report the same ones");
    let joined = edges
        .iter()
        .find(|edge| edge.dst.as_ref().unwrap().ip == "10.0.0.9")
        .unwrap();
    assert!(joined.sent.is_some() && joined.received.is_none());
    assert_eq!(joined.retransmits, None, "of both ends together");

    // Calls, pods, states, nodes.
    let query = SyscallQuery {
        filter: Some(SyscallFilter {
            namespaces: vec!["shop".to_owned()],
            ..SyscallFilter::default()
        }),
        ..SyscallQuery::default()
    };
    let (_, bytes) = collect(anna.query_syscalls(query).await.unwrap().into_inner()).await;
    assert_hides(&bytes);
    let query = GpuQuery {
        filter: Some(GpuFilter {
            namespaces: vec!["shop".to_owned()],
            ..GpuFilter::default()
        }),
        ..GpuQuery::default()
    };
    let (messages, bytes) = collect(anna.query_gpus(query).await.unwrap().into_inner()).await;
    assert_hides(&bytes);
    let (mut devices, mut calls, mut summaries) = (Vec::new(), Vec::new(), Vec::new());
    for message in messages {
        match message.part {
            Some(query_gpus_response::Part::Batch(batch)) => devices.extend(batch.devices),
            Some(query_gpus_response::Part::Cuda(batch)) => calls.extend(batch.calls),
            Some(query_gpus_response::Part::Summary(summary)) => summaries.push(summary),
            None => {}
        }
    }
    assert_eq!(devices.len(), 8, "four of each node");
    for device in devices {
        let shared = device.uuid == "GPU-both";
        // Somebody else held it as well, or before.
        let touched = shared || device.uuid == "GPU-after";
        assert_eq!(device.holders.len(), 1);
        assert_eq!(device.hidden_holders, u32::from(touched), "{}", device.uuid);
        assert_eq!(device.readings.is_none(), touched, "what others did is not told");
        let other = device.readings.map_or(0, |readings| readings.other.len());
        assert_eq!(other, usize::from(device.uuid == "GPU-own"), "{}", device.uuid);
        // That it did nothing is told of the time in which nobody else held it.
        let holder = &device.holders[0];
        let idle = holder.idle.as_ref().unwrap();
        assert_eq!(holder.utilization.is_none(), shared, "{}", device.uuid);
        assert_eq!(
            holder.method() == GpuMethod::SharedEstimate,
            shared,
            "{}",
            device.uuid
        );
        assert_eq!(idle.idle.is_none(), shared, "{}", device.uuid);
        if !shared {
            assert_eq!(
                idle.evidence,
                "62 % of idle time: network, most from 10.0.0.9:4000"
            );
            assert_eq!(idle.waits[0].peer.as_ref().unwrap().ip, "10.0.0.9");
        }
    }
    let calls: Vec<_> = calls.iter().map(|calls| calls.function.as_str()).collect();
    assert_eq!(calls, ["cart-function"; 2], "of each node those of one's own");
    let notes: Vec<_> = summaries
        .iter()
        .flat_map(|summary| summary.nodes.iter().flat_map(|node| &node.notes))
        .filter(|note| note.starts_with("The kubelet does not answer"))
        .collect();
    assert_eq!(notes.len(), 2, "how far the answer can be trusted is told");
    let pods = ListPodsRequest {
        namespaces: vec!["shop".to_owned()],
        ..ListPodsRequest::default()
    };
    let (messages, bytes) = collect(anna.query_pods(pods.clone()).await.unwrap().into_inner()).await;
    assert_hides(&bytes);
    assert!(
        messages
            .iter()
            .all(|message| message.pods.as_ref().unwrap().pods.len() == 1)
    );
    let answer = anna.list_pods(pods).await.unwrap().into_inner();
    assert_hides(&answer.encode_to_vec());
    let asked = QueryStatusRequest::default();
    let (messages, bytes) = collect(anna.query_status(asked).await.unwrap().into_inner()).await;
    assert_hides(&bytes);
    assert_eq!(messages.len(), 2);
    let asked = ListNodesRequest::default();
    let (messages, bytes) = collect(anna.list_nodes(asked).await.unwrap().into_inner()).await;
    assert_hides(&bytes);
    assert!(
        messages
            .iter()
            .all(|node| !node.name.is_empty() && node.address.is_empty())
    );
    let own = anna
        .get_agent_status(GetAgentStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(own.settings.is_empty() && own.limits.is_empty() && !own.version.is_empty());

    // Events.
    let asked = StreamEventsRequest {
        network: shop().filter,
        syscall: Some(SyscallFilter {
            namespaces: vec!["shop".to_owned()],
            ..SyscallFilter::default()
        }),
        gpu: Some(GpuFilter {
            namespaces: vec!["shop".to_owned()],
            ..GpuFilter::default()
        }),
        ..StreamEventsRequest::default()
    };
    let mut events = anna.stream_events(asked).await.unwrap().into_inner();
    let (mut bytes, mut flows, mut calls, mut gpus) = (Vec::new(), 0, 0, 0);
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    while (flows, calls, gpus) != (2 * SEEN, 2, 2) {
        let message = tokio::time::timeout_at(end, events.message())
            .await
            .expect("events are missing");
        let message = message.unwrap().unwrap();
        bytes.extend(message.encode_to_vec());
        let told = match message.event.unwrap() {
            Event::Batch(batch) => batch.events.into_iter().filter_map(|event| event.event).collect(),
            event => vec![event],
        };
        gpus += told
            .iter()
            .filter(|event| matches!(event, Event::Gpu(gpu) if gpu.hidden_holders == 1))
            .count();
        flows += told
            .iter()
            .filter(|event| matches!(event, Event::Network(_)))
            .count();
        calls += told
            .iter()
            .filter(|event| matches!(event, Event::Syscall(_)))
            .count();
    }
    assert_hides(&bytes);
    drop(events);

    // What they may not ask.
    let denied = |code: Code, told: &'static str| {
        move |error: Status| {
            assert_eq!(error.code(), code, "{error:?}");
            assert!(error.message().contains(told), "{error:?}");
        }
    };
    for (query, code, told) in [
        (
            flow_filter(|filter| filter.namespaces.push("hush-ns".into())),
            Code::PermissionDenied,
            "namespace hush-ns",
        ),
        (
            flow_filter(|filter| filter.pods = vec!["hush-ns/a".into()]),
            Code::PermissionDenied,
            "namespace hush-ns",
        ),
        (
            flow_filter(|filter| filter.peers = vec!["hush-ns/hush-db".into()]),
            Code::PermissionDenied,
            "namespace hush-ns",
        ),
        (
            flow_filter(|filter| filter.services = vec!["hush-ns/a".into()]),
            Code::PermissionDenied,
            "namespace hush-ns",
        ),
        (
            flow_filter(|filter| filter.workloads = vec!["hush-ns/Job/a".into()]),
            Code::PermissionDenied,
            "namespace hush-ns",
        ),
        (
            flow_filter(|filter| filter.peers = vec!["hush.example.com".into()]),
            Code::InvalidArgument,
            "operators",
        ),
        (
            flow_filter(|filter| filter.namespaces = vec!["No Name".into()]),
            Code::InvalidArgument,
            "not a namespace",
        ),
        // This server was given a list of agents, so that it knows of no namespaces.
        (FlowQuery::default(), Code::PermissionDenied, "name it"),
    ] {
        denied(code, told)(anna.query_flows(query).await.unwrap_err());
    }
    let operators = denied(Code::PermissionDenied, "operators");
    operators(
        anna.set_syscall_mode(SetSyscallModeRequest::default())
            .await
            .unwrap_err(),
    );
    let sampled = StreamEventsRequest {
        syscall_sampling: 10,
        ..StreamEventsRequest::default()
    };
    operators(anna.stream_events(sampled).await.unwrap_err());

    // Trying names of the other end finds nothing out, also where an agent heeds no conditions.
    let probes = [
        (vec!["hush-db"], 0),
        (vec!["Deployment/hush-db"], 0),
        // These say themselves what is told anyway.
        (vec!["hush-db", "10.0.0.9"], 2),
        (vec!["pod"], 2 * SEEN),
    ];
    for (peers, found) in probes {
        let query = flow_filter(|filter| filter.peers = peers.iter().map(|&peer| peer.into()).collect());
        let answer = anna.query_flows(query).await.unwrap();
        assert_eq!(
            flows_of(answer.into_inner()).await.unwrap().len(),
            found,
            "{peers:?}"
        );
        let asked = setup.agents[0].last_asked().filter.unwrap().peers;
        assert!(!asked.contains(&"hush-db".to_owned()), "{asked:?}");
    }

    // Who may see nothing; who may see all namespaces, but no processes of nodes.
    let mut nick = setup.person("t-none").await;
    denied(Code::PermissionDenied, "namespace shop")(nick.query_flows(shop()).await.unwrap_err());
    let mut olga = setup.person("t-all").await;
    let both = flow_filter(|filter| filter.namespaces.push("hush-ns".into()));
    let flows = flows_of(olga.query_flows(both).await.unwrap().into_inner())
        .await
        .unwrap();
    assert_eq!(flows.len(), 2 * (ALL - 1));
    let bytes: Vec<u8> = flows.iter().flat_map(Message::encode_to_vec).collect();
    assert!(!bytes.windows(5).any(|window| window == b"hushd"));

    // The API server goes away: what it said before serves, and nothing else.
    let reviews = setup.api.reviews();
    anna.query_flows(shop()).await.unwrap();
    assert_eq!(setup.api.reviews(), reviews, "its answers are kept");
    setup.api.user("t-late", "lena", &["shop"]);
    setup.api.set_away(true);
    anna.query_flows(shop()).await.unwrap();
    let mut lena = setup.person("t-late").await;
    denied(Code::Unavailable, "API server")(lena.query_flows(shop()).await.unwrap_err());
    setup.assert_alive().await;
    setup.api.set_away(false);
    lena.query_flows(shop()).await.unwrap();
    setup.stop().await;
}

/// Namespaces that there are.
struct Known(Vec<String>);

impl orb8_server::guard::Namespaces for Known {
    fn namespaces(&self) -> Vec<String> {
        self.0.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_names_no_namespace_sees_theirs() {
    use orb8_proto::v1::orbit_service_server::OrbitService as _;
    use orb8_server::guard::{Guard, GuardCounts, GuardLimits, KubeReviewer};

    let api = FakeApi::default();
    api.user("t-shop", "anna", &["shop", "team-7"]);
    let reviewer = Arc::new(KubeReviewer::new(api.client(), vec!["orb8".to_owned()]));
    let known = |count: usize| {
        let mut names: Vec<String> = (0..count).map(|number| format!("team-{number}")).collect();
        names.extend(["hush-ns".to_owned(), "shop".to_owned()]);
        Some(Arc::new(Known(names)) as Arc<dyn orb8_server::guard::Namespaces>)
    };
    let agent = FakeAgent::new("n1", false);
    let counts = Arc::new(GuardCounts::default());
    let guard = Guard::new(agent.clone(), GuardLimits::default(), counts.clone())
        .with_tokens(reviewer.clone(), known(200));
    let ask = |query: FlowQuery| {
        let mut request = Request::new(query);
        let token = MetadataValue::from_static("bearer t-shop");
        request.metadata_mut().insert("authorization", token);
        request
    };
    let answer = guard.query_flows(ask(FlowQuery::default())).await.unwrap();
    let messages: Vec<_> = answer.into_inner().collect().await;
    assert_eq!(messages.len(), 2);
    assert_eq!(agent.last_asked().filter.unwrap().namespaces, ["shop", "team-7"]);
    let named = FlowQuery {
        filter: Some(FlowFilter {
            services: vec!["db".into(), "shop/web".into()],
            peers: vec!["statefulset/db".into(), "10.0.0.0/8".into()],
            ..FlowFilter::default()
        }),
        ..FlowQuery::default()
    };
    guard.query_flows(ask(named)).await.unwrap();
    let filter = agent.last_asked().filter.unwrap();
    assert_eq!(filter.services, ["shop/db", "team-7/db", "shop/web"]);
    assert_eq!(
        filter.peers,
        ["10.0.0.0/8", "shop/statefulset/db", "team-7/statefulset/db"]
    );
    // A certificate is missing, and a token of another scheme is none.
    let mut request = Request::new(FlowQuery::default());
    request
        .metadata_mut()
        .insert("authorization", MetadataValue::from_static("Basic eDp5"));
    assert_eq!(
        guard.query_flows(request).await.err().unwrap().code(),
        Code::Unauthenticated
    );
    assert_eq!(counts.refused_for("token"), 1);

    // More than are looked at: nothing is left out silently.
    let guard = Guard::new(agent, GuardLimits::default(), counts).with_tokens(reviewer, known(300));
    let error = guard.query_flows(ask(FlowQuery::default())).await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("302 namespaces"), "{error:?}");
}
