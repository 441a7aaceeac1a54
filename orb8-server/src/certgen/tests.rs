use std::{os::unix::fs::PermissionsExt as _, path::Path};

use clap::Parser as _;
use time::Duration as Span;

use super::*;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn options(directory: &Path, more: &[&str]) -> Options {
    let own = ["certgen", "--dir", directory.to_str().unwrap()];
    Command::parse_from(own.iter().chain(more)).options
}

async fn at(options: &Options, now: OffsetDateTime) -> Vec<&'static str> {
    let store = Directory::new(options.dir.clone().unwrap());
    let lines = settle(&store, options, None, now).await.unwrap();
    lines.iter().map(|line| line.outcome).collect()
}

fn text(directory: &Path, file: &str) -> String {
    std::fs::read_to_string(directory.join(file)).unwrap()
}

#[tokio::test]
async fn what_is_good_is_kept_and_the_rest_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let now = OffsetDateTime::now_utc();
    let own = options(path, &["--lifetime", "90d"]);
    assert_eq!(at(&own, now).await, ["made"; 5]);
    let mode = |file: &str| path.join(file).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("ca/tls.key"), mode("server/tls.key"), mode("server")),
        (0o600, 0o600, 0o700)
    );
    let first = text(path, "agent/tls.crt");
    assert_eq!(at(&own, now).await, ["kept"; 5]);
    assert_eq!(text(path, "agent/tls.crt"), first);

    // A third is left at the sixtieth day.
    assert_eq!(at(&own, now + Span::days(59)).await, ["kept"; 5]);
    let later = at(&own, now + Span::days(61)).await;
    assert_eq!(later, ["kept", "rotated", "rotated", "rotated", "kept"]);
    assert_ne!(text(path, "agent/tls.crt"), first);

    // Another name of the Service concerns the server only.
    let renamed = options(path, &["--lifetime", "90d", "--service", "orb8"]);
    let outcomes = at(&renamed, now + Span::days(61)).await;
    assert_eq!(outcomes, ["kept", "kept", "rotated", "kept", "kept"]);
    let forced = options(path, &["--service", "orb8", "--force-rotate=leaves"]);
    let outcomes = at(&forced, now + Span::days(61)).await;
    assert_eq!(outcomes, ["kept", "rotated", "rotated", "rotated", "kept"]);
}

#[tokio::test]
async fn an_authority_is_replaced_with_an_overlap() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let start = OffsetDateTime::now_utc();
    let own = options(path, &["--ca-lifetime", "300d", "--lifetime", "300d"]);
    at(&own, start).await;
    let old = text(path, "ca/tls.crt");
    let agent = text(path, "agent/tls.crt");

    // Two thirds are over: a successor becomes known to all, and signs nothing.
    let now = start + Span::days(201);
    at(&own, now).await;
    assert_eq!(text(path, "ca/tls.crt"), old);
    let next = text(path, "ca/next.crt");
    for bundle in ["ca.crt", "agent/ca.crt", "server/ca.crt", "operator/ca.crt"] {
        assert_eq!(certificates(&text(path, bundle)), [old.clone(), next.clone()]);
    }
    let signed_by_old = text(path, "agent/tls.crt");
    assert_ne!(signed_by_old, agent, "it had less than a third of its life left");
    assert!(signed(&signed_by_old, &old));
    let soon = at(&own, now + Span::hours(23)).await;
    assert_eq!(soon[0], "kept");
    assert!(signed(&text(path, "server/tls.crt"), &old));

    // A bundle that lost the successor: it has to be known again for the whole time.
    std::fs::write(path.join("server/ca.crt"), &old).unwrap();
    let later = now + Span::hours(25);
    assert_eq!(at(&own, later).await[0], "kept");
    assert_eq!(text(path, "ca/tls.crt"), old);
    assert_eq!(certificates(&text(path, "server/ca.crt")).len(), 2);

    let later = later + Span::hours(25);
    assert_eq!(at(&own, later).await[0], "rotated");
    assert_eq!(text(path, "ca/tls.crt"), next);
    assert!(!path.join("ca/next.crt").exists());
    assert!(signed(&text(path, "operator/tls.crt"), &next));
    assert_eq!(
        certificates(&text(path, "agent/ca.crt")),
        [next.clone(), old.clone()]
    );

    // It is trusted until it expires.
    let outcomes = at(&own, start + Span::days(301)).await;
    assert_eq!(outcomes[4], "updated");
    assert_eq!(certificates(&text(path, "agent/ca.crt")), [next]);
}

fn signed(certificate: &str, by: &str) -> bool {
    use x509_parser::pem::Pem;
    let parse = |text: &str| Pem::iter_from_buffer(text.as_bytes()).next().unwrap().unwrap();
    let (certificate, by) = (parse(certificate), parse(by));
    let by = by.parse_x509().unwrap();
    certificate
        .parse_x509()
        .unwrap()
        .verify_signature(Some(by.public_key()))
        .is_ok()
}

#[tokio::test]
async fn what_makes_no_sense_is_said_and_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let own = options(path, &[]);
    at(&own, OffsetDateTime::now_utc()).await;
    // The key of somebody else.
    let key = text(path, "agent/tls.key");
    std::fs::write(path.join("ca/tls.key"), &key).unwrap();
    let error = run(&own).await.unwrap_err().to_string();
    assert!(
        error.contains("belongs to another certificate") && error.contains("delete it"),
        "{error}"
    );
    assert_eq!(text(path, "ca/tls.key"), key);

    for (wrong, told) in [
        (["--overlap", "1300d"], "--overlap"),
        (["--lifetime", "3651d"], "--ca-lifetime"),
        (["--lifetime", "1s"], "--lifetime"),
        (["--ca-lifetime", "99999d"], "100 years"),
    ] {
        let error = run(&options(path, &wrong)).await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
