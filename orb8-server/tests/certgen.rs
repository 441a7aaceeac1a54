//! Certificates in a cluster's Secrets: what runs leave behind that follow and meet each other.

use clap::Parser as _;
use orb8_server::certgen::{Options, run_with};
use serde_json::json;
use time::{Duration, OffsetDateTime};

#[path = "support/api.rs"]
mod api;

use api::FakeApi;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn options(more: &[&str]) -> Options {
    Command::parse_from(["certgen"].iter().chain(more)).options
}

const SECRETS: &str = "/api/v1/namespaces/orb8/secrets";
const BUNDLE: &str = "/api/v1/namespaces/orb8/configmaps/orb8-ca";

#[tokio::test]
async fn secrets_are_made_once_even_by_runs_that_meet() {
    let api = FakeApi::default();
    let now = OffsetDateTime::now_utc();
    let own = options(&[]);
    let runs = (0..4).map(|_| run_with(api.client(), "orb8", &own, now));
    for lines in futures::future::join_all(runs).await {
        let lines = lines.unwrap();
        assert_eq!(lines.len(), 5);
        assert!(
            lines
                .iter()
                .all(|line| ["kept", "made", "rotated", "updated"].contains(&line.outcome))
        );
    }
    assert!(api.conflicts() > 0, "they did not meet");

    let server = api.get(&format!("{SECRETS}/orb8-server-tls")).unwrap();
    assert_eq!(server["type"], "kubernetes.io/tls");
    assert_eq!(server["data"].as_object().unwrap().len(), 3);
    let before = api.get(BUNDLE).unwrap();
    let lines = run_with(api.client(), "orb8", &own, now).await.unwrap();
    assert!(lines.iter().all(|line| line.outcome == "kept"), "{lines:?}");
    assert_eq!(api.get(BUNDLE).unwrap(), before, "nothing was written");
    assert!(
        lines[2].to_string().contains("Secret orb8/orb8-server-tls"),
        "{}",
        lines[2]
    );

    // Asked for, an authority follows in two steps.
    let forced = options(&["--force-rotate=ca"]);
    run_with(api.client(), "orb8", &forced, now).await.unwrap();
    let ca = api.get(&format!("{SECRETS}/orb8-ca")).unwrap();
    assert!(ca["data"]["next.since"].is_string());
    let next = ca["data"]["next.crt"].clone();
    let lines = run_with(api.client(), "orb8", &own, now + Duration::hours(25))
        .await
        .unwrap();
    let outcomes: Vec<_> = lines.iter().map(|line| line.outcome).collect();
    assert_eq!(outcomes, ["rotated", "rotated", "rotated", "rotated", "updated"]);
    let ca = api.get(&format!("{SECRETS}/orb8-ca")).unwrap();
    assert_eq!(ca["data"]["tls.crt"], next);
    assert!(ca["data"].get("next.crt").is_none());
}

#[tokio::test]
async fn what_cert_manager_made_is_left_alone() {
    let api = FakeApi::default();
    let path = format!("{SECRETS}/orb8-agent-tls");
    let theirs = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {
            "name": "orb8-agent-tls", "resourceVersion": "x1",
            "annotations": {"cert-manager.io/certificate-name": "agents"},
        },
        "data": {"tls.crt": "", "tls.key": "", "ca.crt": ""},
    });
    api.set(&path, theirs.clone());
    let own = options(&["--force-rotate"]);
    let lines = run_with(api.client(), "orb8", &own, OffsetDateTime::now_utc())
        .await
        .unwrap();
    assert_eq!(lines[1].outcome, "left alone");
    assert!(
        lines[1].note.contains("cert-manager") && lines[1].note.contains("agents"),
        "{}",
        lines[1]
    );
    assert_eq!(api.get(&path).unwrap(), theirs);
    assert_eq!(lines[3].outcome, "made");
}
