//! Who is found through a kubeconfig, and what is shown to whom: the command against an API server of the test's own, which
//! forwards no ports.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

/// What the API server answers to paths that begin so: status, and the object.
type Answer = (&'static str, u16, &'static str);

const SERVERS: &str = "/api/v1/namespaces/orb8/pods?&labelSelector=app.kubernetes.io%2Fname%3Dorb8-server";
const AGENTS: &str = "/api/v1/namespaces/orb8/pods?&labelSelector=app.kubernetes.io%2Fname%3Dorb8-agent";
const ANYWHERE: &str = "/api/v1/pods?";
const SECRET: &str = "/api/v1/namespaces/orb8/secrets/orb8-operator-tls";
const CA: &str = "/api/v1/namespaces/orb8/configmaps/orb8-ca";
const FORWARD: &str = "/api/v1/namespaces/orb8/pods/";

const NONE: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[]}"#;
const TWO: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[
    {"metadata":{"name":"a","namespace":"orb8"},"spec":{"nodeName":"n1","containers":[]},"status":{"phase":"Running"}},
    {"metadata":{"name":"b","namespace":"orb8"},"spec":{"nodeName":"n2","containers":[]},"status":{"phase":"Running"}}]}"#;
const PENDING: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[
    {"metadata":{"name":"a","namespace":"orb8"},"spec":{"containers":[]},"status":{"phase":"Pending"}}]}"#;

/// Serves until the process ends; gives its port, and the paths that were asked for.
fn api_server(answers: Vec<Answer>) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (answers, told) = (answers.clone(), told.clone());
            std::thread::spawn(move || drop(answer(&stream.unwrap(), &answers, &told)));
        }
    });
    (port, asked)
}

fn answer(mut stream: &TcpStream, answers: &[Answer], asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let known = answers.iter().find(|(begin, ..)| path.starts_with(begin));
    let (status, body) = known.map_or((404, ""), |(_, status, body)| (*status, *body));
    asked.lock().unwrap().push(path);
    let failure = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"said {status}","reason":"x","code":{status}}}"#
    );
    let body = if status == 200 { body } else { &failure };
    write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Asks through a kubeconfig of this API server: exit code, what was said, and the paths that were asked for.
fn ask(answers: Vec<Answer>, token: Option<&str>, line: &str) -> (Option<i32>, String, Vec<String>) {
    let (port, asked) = api_server(answers);
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let user = token.map_or("{}".to_owned(), |token| format!("{{token: {token}}}"));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
         clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
         users: [{{name: u, user: {user}}}]\n\
         contexts: [{{name: lab, context: {{cluster: c, user: u}}}}]\n"
    );
    fs::write(&kubeconfig, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_orb8"))
        .args(["--kubeconfig", &kubeconfig.display().to_string()])
        .args(line.split(' '))
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .env("ORB8_CONFIG", "/nonexistent/config.toml")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let paths = asked.lock().unwrap().clone();
    (output.status.code(), said, paths)
}

#[test]
fn servers_are_looked_for_in_one_namespace_only() {
    // A pod anywhere that calls itself a server is not even looked at: it would be shown the user's token.
    let answers = vec![(SERVERS, 200, NONE), (AGENTS, 200, NONE), (ANYWHERE, 200, NONE)];
    let (code, said, paths) = ask(answers, Some("t"), "flows");
    assert_eq!(code, Some(1));
    assert!(
        said.contains("no agent runs in the cluster of context 'lab'"),
        "{said}"
    );
    assert!(
        !paths
            .iter()
            .any(|path| path.starts_with(ANYWHERE) && path.contains("orb8-server")),
        "{paths:?}"
    );
    assert!(
        !paths.iter().any(|path| path == SECRET || path == CA),
        "{paths:?}"
    );
}

#[test]
fn without_a_server_agents_are_asked_as_far_as_the_rights_go() {
    // Rights in the one namespace are enough.
    let answers = vec![
        (SERVERS, 200, NONE),
        (AGENTS, 200, TWO),
        (ANYWHERE, 403, ""),
        (SECRET, 403, ""),
        (FORWARD, 500, ""),
    ];
    let (code, said, paths) = ask(answers.clone(), None, "flows");
    assert_eq!(code, Some(1));
    for expected in ["said 500", "plain text", "orb8/orb8-operator-tls"] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    assert!(
        paths
            .iter()
            .any(|path| path.starts_with("/api/v1/namespaces/orb8/pods/a/portforward"))
    );
    // Servers that don't run are said, and done without; with --direct they are not asked for.
    let mut waiting = answers;
    waiting[0].2 = PENDING;
    let (_, said, _) = ask(waiting.clone(), None, "flows");
    assert!(
        said.contains("no pod of the server in namespace orb8 runs"),
        "{said}"
    );
    let (_, said, paths) = ask(waiting, None, "--direct --node n2 flows");
    assert!(!said.contains("no pod of the server"), "{said}");
    assert!(
        paths
            .iter()
            .all(|path| !path.contains("orb8-server") && !path.contains("pods/a/")),
        "{paths:?}"
    );
    assert!(paths.iter().any(|path| path.contains("pods/b/")), "{paths:?}");
}

#[test]
fn each_server_is_tried_before_the_question_is_given_up() {
    let answers = vec![(SERVERS, 200, TWO), (SECRET, 404, ""), (FORWARD, 500, "")];
    let (code, said, paths) = ask(answers, None, "flows");
    assert_eq!(code, Some(1));
    assert!(
        said.contains("pod orb8/a: said 500; pod orb8/b: said 500"),
        "{said}"
    );
    for pod in ["a", "b"] {
        let path = format!("/api/v1/namespaces/orb8/pods/{pod}/portforward");
        assert!(paths.iter().any(|asked| asked.starts_with(&path)), "{paths:?}");
    }
    let answers = vec![(SERVERS, 200, TWO), (SECRET, 404, ""), (FORWARD, 403, "")];
    let (code, said, _) = ask(answers, None, "flows");
    assert_eq!(code, Some(1));
    assert!(said.contains("pods/portforward in namespace orb8"), "{said}");
}

#[test]
fn missing_rights_are_named_and_never_a_reason_for_plain_text() {
    let no_forward = |paths: &[String]| !paths.iter().any(|path| path.contains("portforward"));
    for (secret, ca, token, told) in [
        // Neither the certificate nor a token.
        ((403, ""), (200, "{}"), None, "the kubeconfig has no token"),
        // A token, but nobody says who signs the server's certificate.
        (
            (403, ""),
            (403, ""),
            Some("t"),
            "the ConfigMap orb8-ca can't be read (said 403)",
        ),
        (
            (403, ""),
            (200, r#"{"metadata":{},"data":{}}"#),
            Some("t"),
            "has no ca.crt",
        ),
        // Whether there is a certificate is not known, or it is none.
        (
            (500, ""),
            (404, ""),
            Some("t"),
            "reading the Secret orb8/orb8-operator-tls: said 500",
        ),
        (
            (200, r#"{"metadata":{},"data":{"ca.crt":"eA=="}}"#),
            (404, ""),
            Some("t"),
            "has no tls.crt",
        ),
    ] {
        let answers = vec![
            (SERVERS, 200, TWO),
            (SECRET, secret.0, secret.1),
            (CA, ca.0, ca.1),
            (FORWARD, 500, ""),
        ];
        let (code, said, paths) = ask(answers, token, "flows");
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(told) && said.contains("orb8-operator-tls"),
            "{told} in {said}"
        );
        assert!(no_forward(&paths), "{paths:?}");
    }
}
