//! What the server that joins the agents has to do: every node, edges over nodes, tokens, and whoever is killed.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cluster::{Cluster, NAMESPACE, json_lines},
    scenarios::{Outcome, V4},
};

/// An answer may not take longer, whoever is killed.
const DEADLINE: Duration = Duration::from_secs(15);

/// `orb8 nodes`, of nodes that all answer.
fn all_answer(cluster: &Cluster) -> Result<()> {
    let nodes = json_lines(&cluster.orb8(&["nodes", "-o", "json", "--strict"])?)?;
    for name in &cluster.nodes {
        let node = nodes
            .iter()
            .find(|node| node["node"] == name.as_str())
            .with_context(|| format!("{name} is not listed: {nodes:?}"))?;
        ensure!(node["state"] == "answered", "{node}");
    }
    Ok(())
}

pub(crate) fn nodes(cluster: &Cluster) -> Result<Outcome> {
    cluster.within(Duration::from_secs(20), || all_answer(cluster))?;
    for node in json_lines(&cluster.orb8(&["nodes", "-o", "json"])?)? {
        ensure!(
            node["transport"] == "TLS 1.3",
            "an agent is asked in plain text: {node}"
        );
        ensure!(node["version"] == env!("CARGO_PKG_VERSION"), "{node}");
    }
    let status = json_lines(&cluster.orb8(&["status", "-o", "json"])?)?;
    ensure!(
        status.len() == cluster.nodes.len(),
        "not the state of each agent: {status:?}"
    );
    for agent in status {
        ensure!(
            agent["transport"] == "TLS 1.3, clients by certificate",
            "{}: {}",
            agent["node"],
            agent["transport"]
        );
    }
    // Without the server, each agent answers the operator itself.
    let direct = json_lines(&cluster.orb8(&["--direct", "status", "-o", "json"])?)?;
    ensure!(direct.len() == cluster.nodes.len(), "{direct:?}");
    ensure!(
        cluster.orb8(&["flows", "--node", "nowhere"]).is_err(),
        "a node that does not exist is asked"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn edge_over_nodes(cluster: &Cluster) -> Result<Outcome> {
    let [here, there, ..] = cluster.nodes.as_slice() else {
        return Ok(Outcome::Skipped("the cluster has one node".to_owned()));
    };
    let address = format!("{}:7000", cluster.ip("far")?);
    let made = cluster.send("client", &["udp", &address, "71", "330"])?;
    let expected = made.sent * (made.payload + V4);
    cluster.within(Duration::from_secs(6), || {
        let edges = cluster.edges(&["--pod", "client"])?;
        let edge = edges
            .iter()
            .find(|edge| edge["src"]["port"] == made.port && edge["dst"]["pod"] == "far")
            .context("no edge")?;
        for (end, node) in [("sent", here), ("received", there)] {
            ensure!(
                edge[end]["bytes"] == expected && edge[end]["node"] == node.as_str(),
                "{expected} bytes {end} on {node}: {edge}"
            );
        }
        ensure!(edge["lost_bytes"] == 0, "{edge}");
        Ok(())
    })?;
    // Each flow of the pod once, as its own node has it.
    let flows = cluster.flows_with(&["-n", NAMESPACE, "--pod", "client"])?;
    ensure!(!flows.is_empty(), "no flows of the pod");
    let foreign = flows.iter().find(|flow| flow.node != *here);
    ensure!(foreign.is_none(), "another node tells of the pod: {foreign:?}");
    Ok(Outcome::Passed)
}

pub(crate) fn token(cluster: &Cluster) -> Result<Outcome> {
    cluster.apply(
        r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": "orb8-e2e"}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
             "metadata": {"name": "reader", "namespace": "orb8-e2e"},
             "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
             "metadata": {"name": "reader", "namespace": "orb8-e2e"},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
             "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "orb8-e2e"}]}
        ]}"#,
    )?;
    let token = cluster.kubectl(&["-n", NAMESPACE, "create", "token", "reader"])?;
    let file = std::env::temp_dir().join(format!("orb8-e2e-token-{}", std::process::id()));
    fs::write(&file, token)?;
    let path = file.display().to_string();
    let asked = |arguments: &[&str]| cluster.orb8(&[&["--token-file", path.as_str()], arguments].concat());
    let result = (|| {
        let own = asked(&["flows", "-n", NAMESPACE, "-o", "json", "--limit", "0"])?;
        ensure!(own.contains("\"client\""), "its own namespace is hidden: {own}");
        for arguments in [
            ["flows", "-n", "kube-system"].as_slice(),
            &["pods", "-n", "kube-system"],
            &["syscalls", "-n", "orb8"],
            &["syscall-mode", "off"],
        ] {
            ensure!(asked(arguments).is_err(), "{arguments:?} is answered");
        }
        // All that it may see, and nothing that is called like what it may not.
        for arguments in [
            ["flows", "-A", "-o", "json", "--limit", "0"].as_slice(),
            &["pods", "-A", "-o", "json"],
            &["syscalls", "-A", "-o", "json", "--limit", "0"],
        ] {
            let told = asked(arguments)?;
            ensure!(
                told.contains(NAMESPACE),
                "{arguments:?} hides its own namespace: {told}"
            );
            for hidden in ["coredns", "orb8-server-", "orb8-agent-"] {
                ensure!(!told.contains(hidden), "{arguments:?} tells of {hidden}");
            }
        }
        Ok(())
    })();
    fs::remove_file(&file)?;
    result.map(|()| Outcome::Passed)
}

/// Asks again and again while `kill` does its work; each answer is whole or says that it is not, in time, and none has a
/// wrong total.
fn asked_meanwhile(cluster: &Cluster, kill: impl FnOnce() -> Result<()> + Send) -> Result<u32> {
    let made = {
        let address = format!("{}:7000", cluster.ip("guaranteed")?);
        cluster.send("client", &["udp", &address, "73", "340"])?
    };
    let bytes = made.sent * (made.payload + V4);
    thread::sleep(Duration::from_secs(2));
    let port = made.port.to_string();
    let ask = || -> Result<Vec<String>> {
        let began = Instant::now();
        let answer = cluster.orb8_partial(&[
            "flows", "-n", NAMESPACE, "--port", &port, "-o", "json", "--strict",
        ]);
        ensure!(began.elapsed() < DEADLINE, "an answer took {:?}", began.elapsed());
        let (told, lacks) = answer.context("no answer")?;
        if !lacks.is_empty() {
            return Ok(lacks);
        }
        let sent: u64 = json_lines(&told)?
            .iter()
            .filter(|flow| flow["reporter"] == "source" && flow["src"]["pod"] == "client")
            .filter_map(|flow| flow["bytes"].as_u64())
            .sum();
        ensure!(
            sent == bytes,
            "{bytes} bytes sent, {sent} told in a whole answer: {told}"
        );
        Ok(lacks)
    };
    let lacks = ask()?;
    ensure!(lacks.is_empty(), "the first answer lacks something: {lacks:?}");
    thread::scope(|scope| {
        let killing = scope.spawn(kill);
        let mut asked = 0;
        while !killing.is_finished() {
            ask()?;
            asked += 1;
        }
        killing.join().unwrap_or_else(|_| bail!("killing failed"))?;
        Ok(asked)
    })
}

pub(crate) fn killed_servers(cluster: &Cluster) -> Result<Outcome> {
    let selector = "app.kubernetes.io/name=orb8-server";
    let names = || -> Result<Vec<String>> {
        let pods = cluster.json(&["-n", "orb8", "get", "pods", "-l", selector])?;
        let items = pods["items"].as_array().into_iter().flatten();
        Ok(items
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    };
    let servers = names()?;
    ensure!(servers.len() == 2, "two servers: {servers:?}");
    let asked = asked_meanwhile(cluster, || {
        for server in &servers {
            cluster.kubectl(&[
                "-n",
                "orb8",
                "delete",
                "pod",
                server,
                "--grace-period=0",
                "--force",
            ])?;
            cluster.kubectl(&[
                "-n",
                "orb8",
                "rollout",
                "status",
                "deployment/orb8-server",
                "--timeout=60s",
            ])?;
        }
        Ok(())
    })?;
    ensure!(asked > 0, "nobody was asked meanwhile");
    cluster.within(Duration::from_secs(20), || all_answer(cluster))?;
    Ok(Outcome::Passed)
}

pub(crate) fn killed_agent(cluster: &Cluster) -> Result<Outcome> {
    let Some(node) = cluster.nodes.get(1) else {
        return Ok(Outcome::Skipped("the cluster has one node".to_owned()));
    };
    // Of the node that `client` is not on: what it tells stays the same, whoever else is away.
    let field = format!("spec.nodeName={node}");
    let selector = "app.kubernetes.io/name=orb8-agent";
    asked_meanwhile(cluster, || {
        let arguments = [
            "-n",
            "orb8",
            "delete",
            "pod",
            "-l",
            selector,
            "--field-selector",
            &field,
        ];
        cluster.kubectl(&[&arguments[..], &["--grace-period=0", "--force"]].concat())?;
        cluster.kubectl(&[
            "-n",
            "orb8",
            "rollout",
            "status",
            "daemonset/orb8-agent",
            "--timeout=60s",
        ])?;
        Ok(())
    })?;
    cluster.within(Duration::from_secs(20), || all_answer(cluster))?;
    Ok(Outcome::Passed)
}
