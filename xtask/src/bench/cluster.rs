//! An API server of a large node's cluster, as far as an agent asks it: four lists, and watches on which nothing happens.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{
    namespace::Namespace,
    path::{A, B},
};

/// Pods of the node, and what else the cluster has.
pub(super) const PODS: usize = 500;
const SERVICES: usize = 100;
/// The node's name.
pub(super) const NODE: &str = "bench";

/// Starts it on the loopback interface of `host`, for as long as this process lives; the file is a kubeconfig for it.
///
/// # Errors
/// If there is no port, or no room for the file.
pub(super) fn start(host: &Namespace) -> Result<NamedTempFile> {
    let listener = host.inside(|| TcpListener::bind("127.0.0.1:0").context("no port to listen on"))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // An agent that is gone is no reason to stop.
            thread::spawn(move || answer(connection));
        }
    });
    let mut file = NamedTempFile::new().context("cannot make a temporary file")?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": NODE,
        "clusters": [{"name": NODE, "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": NODE, "user": {}}],
        "contexts": [{"name": NODE, "context": {"cluster": NODE, "user": NODE}}],
    });
    file.write_all(config.to_string().as_bytes())?;
    Ok(file)
}

/// Answers one request after the other.
fn answer(connection: TcpStream) -> Result<()> {
    let mut writer = connection.try_clone()?;
    let mut lines = BufReader::new(connection).lines();
    while let Some(request) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if query.contains("watch=true") {
            write!(
                writer,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            )?;
            continue;
        }
        let (kind, items): (_, Vec<Value>) = match path.rsplit('/').next() {
            Some("pods") => ("Pod", (0..PODS).map(pod).collect()),
            Some("services") => ("Service", (0..SERVICES).map(service).collect()),
            Some("endpointslices") => ("EndpointSlice", (0..SERVICES).map(slice).collect()),
            _ => ("Node", vec![node()]),
        };
        let version = match kind {
            "EndpointSlice" => "discovery.k8s.io/v1",
            _ => "v1",
        };
        let body = if path.ends_with(&format!("nodes/{NODE}")) {
            node()
        } else {
            json!({
                "apiVersion": version, "kind": format!("{kind}List"), "metadata": {"resourceVersion": "1"}, "items": items,
            })
        };
        let body = body.to_string();
        write!(
            writer,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
    Ok(())
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "uid": "node", "resourceVersion": "1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

/// The first two are the path's; the others have addresses that the path's packets go to.
fn address(pod: usize) -> String {
    match pod {
        0 => std::net::Ipv4Addr::from(A).to_string(),
        1 => std::net::Ipv4Addr::from(B).to_string(),
        _ => format!("10.77.{}.{}", pod >> 8, pod & 255),
    }
}

fn pod(number: usize) -> Value {
    let app = format!("application-{}", number / 5);
    let name = format!("{app}-5d4f8c7b9-{number:05}");
    let address = address(number);
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.com/team/{app}:1.2.3"),
            "env": (0..20).map(|n| json!({"name": format!("SETTING_{n}"), "value": "some value"})).collect::<Vec<_>>(),
        })
    };
    let status = |name: &str, which: usize| {
        json!({
            "name": name, "containerID": format!("containerd://{number:032x}{which:032x}"),
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        })
    };
    json!({
        "metadata": {
            "name": name, "namespace": format!("team-{}", number / 50), "resourceVersion": "1",
            "uid": format!("{number:08x}-0000-4000-8000-{number:012x}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/name": app, "app.kubernetes.io/version": "1.2.3", "pod-template-hash": "5d4f8c7b9",
                "topology.kubernetes.io/zone": "zone-a", "team": "some-team",
            },
            "annotations": {"kubernetes.io/config.seen": "2026-01-01T00:00:00Z", "checksum/config": "0".repeat(64)},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-5d4f8c7b9"), "uid": "u", "controller": true,
            }],
        },
        "spec": {"nodeName": NODE, "containers": [container("main"), container("sidecar")]},
        "status": {
            "phase": "Running", "qosClass": "Burstable", "podIP": address, "podIPs": [{"ip": address}],
            "startTime": "2026-01-01T00:00:00Z", "containerStatuses": [status("main", 0), status("sidecar", 1)],
        },
    })
}

fn service(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("application-{number}"), "namespace": format!("team-{}", number / 10), "uid": format!("s{number}")},
        "spec": {
            "type": "ClusterIP", "clusterIP": format!("10.96.0.{number}"), "clusterIPs": [format!("10.96.0.{number}")],
            "selector": {"app.kubernetes.io/name": format!("application-{number}")},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
    })
}

fn slice(number: usize) -> Value {
    json!({
        "addressType": "IPv4",
        "metadata": {
            "name": format!("application-{number}-abcde"), "namespace": format!("team-{}", number / 10), "uid": format!("e{number}"),
            "labels": {"kubernetes.io/service-name": format!("application-{number}")},
        },
        "endpoints": (0..5).map(|n| json!({"addresses": [address(number * 5 + n)], "conditions": {"ready": true}})).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}
