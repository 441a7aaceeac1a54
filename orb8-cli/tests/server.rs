//! The command as users run it, through a real server that asks agents which speak the real protocol.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    dead_code,
    reason = "a test, which shares its agent and its authority with others"
)]

#[path = "../../orb8-tls/tests/support/authority.rs"]
mod authority;
#[path = "support/fake_agent.rs"]
mod fake_agent;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use authority::Authority;
use clap::Parser as _;
use fake_agent::{Asked, Story, serve};
use orb8_proto::v1::FlowReports;
use orb8_server::{Server, settings::Cli};
use orb8_tls::{AGENT, OPERATOR, SERVER, TlsFiles};

/// The command, which knows nobody but whom it is told of.
fn orb8(line: &str, variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_orb8"))
        .args(line.split(' ').filter(|word| !word.is_empty()))
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .env("COLUMNS", "120")
        .env("KUBECONFIG", "/nonexistent/kubeconfig")
        .env("ORB8_CONFIG", "/nonexistent/config.toml")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A server of these agents, until the process ends; gives its address.
fn server(agents: &[SocketAddr], tls: Option<&TlsFiles>) -> SocketAddr {
    let agents: Vec<String> = agents.iter().map(ToString::to_string).collect();
    let mut line: Vec<String> = [
        "orb8-server",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
        "--heartbeat",
        "100ms",
        "--deadline",
        "2s",
        "--agents",
    ]
    .map(str::to_owned)
    .into();
    line.push(agents.join(","));
    if let Some(files) = tls {
        for (option, path) in [
            ("--tls-ca", &files.ca),
            ("--tls-cert", files.cert.as_ref().unwrap()),
            ("--tls-key", files.key.as_ref().unwrap()),
        ] {
            line.extend([option.to_owned(), path.display().to_string()]);
        }
    }
    let settings = Cli::try_parse_from(line).unwrap().settings;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let server = Server::start(&settings).await.unwrap();
            sender.send(server.grpc_address()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    receiver.recv().unwrap()
}

/// Nobody listens there.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Two agents, of nodes n1 and n2; one that is away; and the server of all three, once it has heard of the two. To the
/// server, agents of a list have their addresses' names.
struct Fleet {
    server: String,
    one: String,
    away: String,
    asked: [Asked; 2],
}

fn fleet() -> Fleet {
    let (one, asked_one) = serve(Story::ClusterOne);
    let (two, asked_two) = serve(Story::ClusterTwo);
    let away = nobody();
    let server = server(&[one, two, away], None).to_string();
    let start = Instant::now();
    loop {
        let (_, stdout, stderr) = orb8("nodes -o json", &[("ORB8_SERVER", &server)]);
        if stdout.matches("\"state\":\"answered\"").count() == 2 {
            return Fleet {
                server,
                one: one.to_string(),
                away: away.to_string(),
                asked: [asked_one, asked_two],
            };
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "not connected: {stdout}{stderr}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn each_verb_asks_all_nodes_and_names_the_one_that_is_away() {
    let Fleet { server, away, .. } = fleet();
    for line in [
        "flows",
        "flows --edges",
        "flows -o json",
        "syscalls",
        "pods",
        "status",
        "nodes",
        "trace network --count 3",
        "trace syscalls --count 3",
    ] {
        let (code, stdout, stderr) = orb8(&format!("--server {server} {line} --strict"), &[]);
        assert_eq!(code, Some(3), "{line}: {stdout}{stderr}");
        assert!(
            format!("{stdout}{stderr}").contains(&away),
            "{line}: {stdout}{stderr}"
        );
        let (code, stdout, stderr) = orb8(line, &[("ORB8_SERVER", &server)]);
        assert_eq!(code, Some(0), "{line}: {stdout}{stderr}");
        assert!(!stdout.is_empty(), "{line}");
    }
    let (code, stdout, stderr) = orb8(&format!("--server {server} top --count 1 --interval 100ms"), &[]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");

    // Both ends of one flow, from two nodes.
    let (_, stdout, _) = orb8(&format!("--server {server} flows --edges -o json --limit 1"), &[]);
    let edge: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&edge["sent"]["node"], &edge["received"]["node"]),
        (&"n1".into(), &"n2".into())
    );
    assert_eq!(edge["lost_packets"], 3);

    // The node is seen in each table and line.
    let (_, stdout, _) = orb8(&format!("--server {server} flows"), &[]);
    assert!(
        stdout.starts_with("NODE ") && stdout.contains("\nn2 "),
        "{stdout}"
    );
    let (_, stdout, _) = orb8(&format!("--server {server} trace network --count 3"), &[]);
    assert!(
        stdout
            .lines()
            .all(|line| line.contains(" n1 ") || line.contains(" n2 ")),
        "{stdout}"
    );
}

#[test]
fn one_node_is_asked_alone_and_one_that_is_not_there_is_refused() {
    let Fleet {
        server,
        one: node,
        asked: [one, two],
        ..
    } = fleet();
    let before = two.flows.lock().unwrap().len();
    let (code, stdout, stderr) = orb8(
        &format!("--server {server} --node {node} flows -o json --strict"),
        &[],
    );
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.lines().all(|line| line.starts_with("{\"node\":\"n1\"")),
        "{stdout}"
    );
    assert_eq!(two.flows.lock().unwrap().len(), before);

    // A flow of a pod is shown once.
    let (code, ..) = orb8(&format!("--server {server} flows --pod cart -o json"), &[]);
    assert_eq!(code, Some(0));
    assert_eq!(
        one.flows.lock().unwrap().last().unwrap().reports(),
        FlowReports::Own
    );
    let (code, ..) = orb8(
        &format!("--server {server} flows --pod cart --edges -o json"),
        &[],
    );
    assert_eq!(code, Some(0));
    assert_ne!(
        one.flows.lock().unwrap().last().unwrap().reports(),
        FlowReports::Own
    );

    let (code, stdout, _) = orb8(&format!("--server {server} --node {node} status"), &[]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("on n1, kernel"), "{stdout}");
    let (code, stdout, _) = orb8(&format!("--server {server} status"), &[]);
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("orb8-server") && stdout.contains("\nn2 "),
        "{stdout}"
    );

    for line in [
        "flows",
        "nodes",
        "status",
        "pods",
        "syscalls",
        "flows --edges",
        "trace network",
    ] {
        let (code, _, stderr) = orb8(&format!("--server {server} --node n7 {line}"), &[]);
        assert_eq!(code, Some(2), "{line}: {stderr}");
        assert!(
            stderr.contains("n7") && stderr.contains(&node),
            "{line}: {stderr}"
        );
    }
}

#[test]
fn nodes_are_told_with_their_versions_and_reasons() {
    let Fleet { server, away, .. } = fleet();
    let (code, stdout, stderr) = orb8(&format!("--server {server} nodes"), &[]);
    assert_eq!(code, Some(0), "{stderr}");
    let header = stdout.lines().next().unwrap();
    for column in ["NODE", "STATE", "VERSION", "HISTORY", "HEARD", "CLOCK"] {
        assert!(header.contains(column), "{column} in {stdout}");
    }
    assert!(stdout.contains("3 nodes, 1 without an answer"), "{stdout}");
    assert!(stdout.contains(&format!("{away}: ")), "{stdout}");
    let (_, stdout, _) = orb8(&format!("--server {server} nodes -o json"), &[]);
    let records: Vec<serde_json::Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let one = records
        .iter()
        .find(|record| record["state"] == "answered")
        .unwrap();
    assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        one["clock_offset_ns"].is_i64() && one["round_trip_ns"].is_u64(),
        "{one}"
    );
    let (_, stdout, _) = orb8(&format!("--server {server} nodes -o wide"), &[]);
    assert!(
        stdout.contains("ROUND TRIP") && stdout.contains("REASON"),
        "{stdout}"
    );
}

#[test]
fn a_server_that_is_away_says_where_it_was_looked_for() {
    let away = nobody();
    let (code, _, stderr) = orb8(&format!("--server {away} flows"), &[]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains(&away.to_string()) && stderr.contains("Connection refused"),
        "{stderr}"
    );
    // Plain text to another machine is asked for, or refused before anything is sent.
    let (code, _, stderr) = orb8("--server 192.0.2.1 flows", &[]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("--tls-ca") && stderr.contains("--insecure"),
        "{stderr}"
    );
    let (code, _, stderr) = orb8("--server 192.0.2.1 --insecure flows", &[("ORB8_TOKEN", "t")]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("token in plain text"), "{stderr}");
}

/// The options that show a certificate.
fn shown(files: &TlsFiles) -> String {
    let path = |path: &Path| path.display().to_string();
    format!(
        "--tls-ca {} --tls-cert {} --tls-key {}",
        path(&files.ca),
        path(files.cert.as_ref().unwrap()),
        path(files.key.as_ref().unwrap())
    )
}

#[test]
fn certificates_decide_who_asks_and_who_answers() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let of_server = ours.issue(&place("server"), SERVER, 30);
    let operator = ours.issue(&place("operator"), OPERATOR, 30);
    let expired = ours.issue(&place("expired"), OPERATOR, -1);
    let stranger = others.issue(&place("stranger"), OPERATOR, 30);
    let address = server(&[nobody()], Some(&of_server));

    let nodes = format!("--server {address} {} nodes", shown(&operator));
    // A server that has just begun knows of no agent yet.
    let start = Instant::now();
    let (code, stdout, stderr) = loop {
        let told = orb8(&nodes, &[]);
        if told.0 == Some(0) || start.elapsed() > Duration::from_secs(5) {
            break told;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("1 node"), "{stdout}");
    let paths = |files: &TlsFiles| {
        [
            &files.ca,
            files.cert.as_ref().unwrap(),
            files.key.as_ref().unwrap(),
        ]
        .map(|path| path.display().to_string())
    };
    let [ca, cert, key] = paths(&operator);
    let address = address.to_string();
    let (code, ..) = orb8(
        "nodes",
        &[
            ("ORB8_SERVER", &address),
            ("ORB8_TLS_CA", &ca),
            ("ORB8_TLS_CERT", &cert),
            ("ORB8_TLS_KEY", &key),
        ],
    );
    assert_eq!(code, Some(0));

    // Plain text, no certificate, an expired one, another authority's: refused, each with the server's address.
    let only_ca = format!("--tls-ca {ca}");
    for (options, told) in [
        (String::new(), "plain text"),
        (only_ca, "ertificate"),
        (shown(&expired), "xpired"),
        (shown(&stranger), "ertificate"),
    ] {
        let (code, stdout, stderr) = orb8(&format!("--server {address} {options} nodes"), &[]);
        assert_eq!(code, Some(1), "{options}: {stdout}{stderr}");
        assert!(
            stderr.contains(&address) && stderr.contains(told) && stdout.is_empty(),
            "{options}: {stderr}"
        );
    }
    // An agent's certificate makes no server of it.
    let of_agent = ours.issue(&place("agent"), AGENT, 30);
    let impostor = server(&[nobody()], Some(&of_agent));
    let (code, _, stderr) = orb8(&format!("--server {impostor} {} nodes", shown(&operator)), &[]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("server.orb8"), "{stderr}");
    let (code, _, stderr) = orb8(&format!("--server {address} --tls-ca /nonexistent/ca nodes"), &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("/nonexistent/ca"), "{stderr}");
}

#[test]
fn contexts_are_saved_used_and_forgotten() {
    let Fleet { server, one, .. } = fleet();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("deep/config.toml");
    let config = file.display().to_string();
    let orb8 = |line: &str| orb8(line, &[("ORB8_CONFIG", &config)]);

    assert_eq!(orb8("config current-context").0, Some(1));
    assert!(orb8("config get-contexts").1.contains("No contexts"));
    let (code, _, stderr) = orb8(&format!("config set-context prod --server {server}"));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains(&config), "{stderr}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // The first is the current one, and is asked.
    assert_eq!(orb8("config current-context").1, "prod\n");
    assert!(orb8("nodes").1.contains("3 nodes"));
    assert!(orb8(&format!("--node {one} nodes")).1.contains("1 node"));

    let away = nobody();
    assert_eq!(
        orb8(&format!("config set-context gone --server {away}")).0,
        Some(0)
    );
    assert_eq!(orb8("config current-context").1, "prod\n");
    let (code, _, stderr) = orb8("--context gone nodes");
    assert_eq!(code, Some(1));
    assert!(stderr.contains(&away.to_string()), "{stderr}");
    assert_eq!(orb8("config use-context gone").0, Some(0));
    assert_eq!(orb8("nodes").0, Some(1));
    assert!(orb8("--context prod nodes").1.contains("3 nodes"));
    let (_, stdout, _) = orb8("config get-contexts");
    assert!(
        stdout.contains("* ") && stdout.contains("gone") && stdout.contains("prod"),
        "{stdout}"
    );
    assert_eq!(orb8("config delete-context gone").0, Some(0));
    assert_eq!(orb8("config current-context").0, Some(1));

    for (line, told) in [
        ("config use-context nope", "there are prod"),
        ("config delete-context nope", "there are prod"),
        ("config set-context empty", "--server"),
        ("config set-context a --kubeconfig /k --server b", "leave one out"),
        ("config set-context a --kubeconfig /k --node n1", "--node"),
        ("config get-contexts --insecure", "--insecure"),
    ] {
        let (code, _, stderr) = orb8(line);
        assert_eq!(code, Some(2), "{line}: {stderr}");
        assert!(stderr.contains(told), "{line}: {stderr}");
    }
    // A file that makes no sense is named, with the key.
    fs::write(&file, "[contexts.prod]\nsrver = 'x'\n").unwrap();
    let (code, _, stderr) = orb8("nodes");
    assert_eq!(code, Some(2));
    assert!(stderr.contains(&config) && stderr.contains("srver"), "{stderr}");
    fs::write(&file, "current = 'lost'\n").unwrap();
    let (code, _, stderr) = orb8("nodes");
    assert_eq!(code, Some(2));
    assert!(stderr.contains("lost"), "{stderr}");
}
