//! The agent as one of many: over TLS, to whom it answers, and what a server asks of it.
#![allow(missing_docs, dead_code, reason = "tests, whose support is shared")]

mod support {
    pub(crate) mod agent;
    pub(crate) mod namespace;
    pub(crate) mod packets;
}
#[path = "../../orb8-tls/tests/support/authority.rs"]
mod authority;

use std::{
    net::UdpSocket,
    process::{Child, Stdio},
    time::{Duration, SystemTime},
};

use authority::Authority;
use orb8_proto::v1::{
    self, FlowQuery, ListNodesRequest, NodeCursor, StreamEventsRequest,
    orbit_service_client::OrbitServiceClient, query_edges_response, stream_events_response::Event,
};
use orb8_tls::{AGENT, Connector, OPERATOR, SERVER, TlsFiles, dial};
use support::{
    agent::{Agent, command, eventually},
    namespace::{Namespace, Network, V4, can_run},
    packets::send_udp,
};
use tonic::{Code, Status, transport::Endpoint};

/// Ends what it holds.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The agent's answer to somebody with these certificates.
fn asked_by(host: &Namespace, files: &TlsFiles) -> Result<v1::AgentStatus, Status> {
    let connector = Connector::from_files(files, AGENT).unwrap();
    host.inside(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let channel = Endpoint::from_static("http://127.0.0.1:9090")
                    .connect_with_connector(tower::service_fn(move |uri| dial(uri, Some(connector.clone()))))
                    .await
                    .map_err(|error| Status::unavailable(error.to_string()))?;
                let mut client = OrbitServiceClient::new(channel);
                Ok(client
                    .get_agent_status(v1::GetAgentStatusRequest {})
                    .await?
                    .into_inner())
            })
    })
}

#[test]
fn only_the_server_and_operators_are_answered() {
    if !can_run() {
        return;
    }
    let host = Namespace::new("tls");
    let [own, operator, server, other, foreign] = [(); 5].map(|()| tempfile::tempdir().unwrap());
    let authority = Authority::new("ours");
    let files = authority.issue(own.path(), AGENT, 1);
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
    let arguments = [
        "--grpc-address=::".to_owned(),
        format!("--tls-ca={}", files.ca.display()),
        format!("--tls-cert={}", path(&files.cert)),
        format!("--tls-key={}", path(&files.key)),
    ];
    let _agent = Killed(
        command(&host, &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let operator = authority.issue(operator.path(), OPERATOR, 1);
    let status = eventually("the agent's first answer", || asked_by(&host, &operator).ok());
    assert_eq!(status.transport, "TLS 1.3, clients by certificate");
    assert!(asked_by(&host, &authority.issue(server.path(), SERVER, 1)).is_ok());

    let refused = asked_by(&host, &authority.issue(other.path(), "somebody.orb8", 1)).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("somebody.orb8"), "{refused}");
    // It trusts the agent, and is of another authority.
    let stranger = TlsFiles {
        ca: operator.ca.clone(),
        ..Authority::new("theirs").issue(foreign.path(), OPERATOR, 1)
    };
    assert!(asked_by(&host, &stranger).is_err());
    let nobody = TlsFiles {
        cert: None,
        key: None,
        ..operator.clone()
    };
    assert!(asked_by(&host, &nobody).is_err());
    assert!(asked_by(&host, &operator).is_ok());
}

#[test]
fn certificates_that_make_no_sense_stop_the_start() {
    if !can_run() {
        return;
    }
    let host = Namespace::new("notls");
    let output = command(
        &host,
        [
            "--tls-ca=/none/ca",
            "--tls-cert=/none/cert",
            "--tls-key=/none/key",
        ],
    )
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("/none/") && text.contains("tls_cert"), "{text}");
}

#[test]
fn a_server_learns_who_it_is_and_asks_as_of_one_among_many() {
    if !can_run() {
        return;
    }
    let network = Network::new("many");
    let agent = Agent::observing(&network, &["--node=n1"]);
    let before = SystemTime::now();
    let node = agent
        .ask(|mut client| async move {
            let mut nodes = client.list_nodes(ListNodesRequest::default()).await?.into_inner();
            Ok(nodes.message().await?.unwrap())
        })
        .unwrap();
    assert_eq!(
        (node.name.as_str(), node.version.as_str()),
        ("n1", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(node.transport, "plain text on loopback");
    let time = SystemTime::try_from(node.time.unwrap()).unwrap();
    assert!(
        time >= before - Duration::from_millis(1) && time <= SystemTime::now() + Duration::from_millis(1)
    );

    // Both ends are on this node: their reports are one edge.
    let [a, b] = &network.containers;
    let _listener = b.inside(|| UdpSocket::bind((V4[1], 5000)).unwrap());
    let events = agent.ask(|mut client| async move {
        let request = StreamEventsRequest {
            network: Some(v1::FlowFilter::default()),
            batch: true,
            ..StreamEventsRequest::default()
        };
        let mut stream = client.stream_events(request).await?.into_inner();
        a.inside(|| send_udp(V4[0], V4[1], 100, 64));
        let mut told = 0;
        while told < 1 {
            match stream.message().await?.unwrap().event.unwrap() {
                Event::Batch(batch) => told += batch.events.len(),
                _ => told += 1,
            }
        }
        Ok(told)
    });
    assert!(events.unwrap() >= 1);
    let edges = |query: FlowQuery| {
        agent
            .ask(|mut client| async move {
                let mut parts = client.query_edges(query).await?.into_inner();
                let (mut edges, mut summary) = (Vec::new(), None);
                while let Some(part) = parts.message().await? {
                    match part.part.unwrap() {
                        query_edges_response::Part::Batch(batch) => edges.extend(batch.edges),
                        query_edges_response::Part::Summary(last) => summary = Some(last),
                    }
                }
                Ok((edges, summary.unwrap()))
            })
            .unwrap()
    };
    let filter = Some(v1::FlowFilter {
        ports: vec![5000],
        ..v1::FlowFilter::default()
    });
    let query = FlowQuery {
        filter,
        ..FlowQuery::default()
    };
    // An answer may be up to 50 ms old.
    std::thread::sleep(Duration::from_millis(60));
    let (found, summary) = edges(query.clone());
    assert_eq!((found.len(), summary.edges), (1, 1));
    assert_eq!(found[0].sent.as_ref().unwrap().packets, 100);
    assert_eq!(found[0].lost_packets(), Some(0));

    // Of another node, and after what was told already, there is nothing.
    let elsewhere = FlowQuery {
        nodes: vec!["n2".to_owned()],
        ..query.clone()
    };
    assert_eq!(edges(elsewhere).1.edges, 0);
    let cursor = NodeCursor {
        name: "n1".to_owned(),
        time: summary.flows.unwrap().to,
    };
    let later = FlowQuery {
        cursors: vec![cursor],
        ..query
    };
    assert_eq!(edges(later).1.edges, 0);
    agent.stop();
}
