//! The scenarios. Each makes traffic of its own and looks for it by what tells it apart: pod names, ports, addresses.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cluster::{Cluster, End, Expected, Flow, Made, NAMESPACE, expect},
    gpu, manifests, server, syscalls,
};

/// How a scenario ended, unless it failed.
#[derive(Debug)]
pub(crate) enum Outcome {
    Passed,
    Skipped(String),
}

type Scenario = fn(&Cluster) -> Result<Outcome>;

/// All of them, in order: the last ones disturb the cluster.
pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("pods of one node, every QoS class", qos_classes),
    ("pods of two nodes", two_nodes),
    ("IPv6", ipv6),
    ("TCP, against the pod's own interface", interface_counters),
    ("hostNetwork pods are told apart", host_network),
    ("a ClusterIP Service, UDP and TCP", cluster_ip),
    ("a ClusterIP Service, IPv6", cluster_ip_v6),
    ("a NodePort Service", node_port),
    ("a load balancer's address", load_balancer),
    ("a headless Service", headless),
    ("several containers in a pod", several_containers),
    ("an external address with a DNS name", external),
    ("the API server and nodes as peers", api_server),
    ("orb8 pods knows each pod", pods),
    ("filters and edges", filters),
    ("a pod is named within two seconds", named_in_time),
    (
        "a pod's name outlives it, and its address goes to the next",
        address_reuse,
    ),
    ("a StatefulSet's pod comes back under its name", stateful),
    ("pods of a CronJob that live two seconds", cron_job),
    ("system calls of pods, containers and workloads", syscalls::counts),
    ("errors and times of system calls", syscalls::latency),
    ("system calls told one by one", syscalls::trace),
    ("a seccomp profile of a pod fits it", syscalls::seccomp),
    ("a system call that a pod had never made", syscalls::new),
    ("GPUs that the kubelet hands out", gpu::allocated),
    ("the image loads NVML", gpu::nvml),
    ("every node answers, over TLS", server::nodes),
    ("an edge over two nodes, to the byte", server::edge_over_nodes),
    ("a token sees its namespaces alone", server::token),
    ("servers are killed while they are asked", server::killed_servers),
    ("an agent is killed while it is asked", server::killed_agent),
    ("the agent is restarted", restart),
    ("the API server is away", api_outage),
    ("a node is cut off", node_cut),
];

/// IP and UDP headers.
pub(crate) const V4: u64 = 28;
const V6: u64 = 48;

fn is_pod(end: &End, pod: &str) -> bool {
    end.kind == "pod" && end.namespace == NAMESPACE && end.pod == pod
}

/// What one direction of an echoed exchange amounts to.
fn amount<'a>(what: &'a str, made: &Made, headers: u64) -> Expected<'a> {
    Expected {
        what,
        packets: made.sent,
        bytes: made.sent * (made.payload + headers),
    }
}

/// Both directions of an exchange between two pods, in the report of one of them.
fn both_ways(
    flows: &[Flow],
    made: &Made,
    headers: u64,
    client: &str,
    server: &str,
    by_client: bool,
    attribution: &str,
) -> Result<()> {
    for (what, from, to, sent) in [
        ("what the client sent", client, server, true),
        ("what came back", server, client, false),
    ] {
        let reporter = if sent == by_client {
            "source"
        } else {
            "destination"
        };
        expect(flows, &amount(what, made, headers), |flow| {
            let client_end = if sent { &flow.src } else { &flow.dst };
            let reporter_end = if reporter == "source" {
                &flow.src
            } else {
                &flow.dst
            };
            flow.reporter == reporter
                && flow.protocol == "UDP"
                && is_pod(&flow.src, from)
                && is_pod(&flow.dst, to)
                && client_end.port == made.port
                && reporter_end.attribution == attribution
        })
        .with_context(|| format!("{client} and {server} by the {reporter}'s report"))?;
    }
    Ok(())
}

/// Nothing of an exchange is under a name that it does not have.
fn nothing_else(flows: &[Flow], made: &Made, pods: &[&str]) -> Result<()> {
    let wrong: Vec<&Flow> = flows
        .iter()
        .filter(|flow| flow.protocol == "UDP" && (flow.src.port == made.port || flow.dst.port == made.port))
        .filter(|flow| {
            let ours = |end: &End| end.namespace == NAMESPACE && pods.contains(&end.pod.as_str());
            (ours(&flow.src) || ours(&flow.dst)) && !(ours(&flow.src) && ours(&flow.dst))
        })
        .collect();
    ensure!(
        wrong.is_empty(),
        "an end has another name, or none: {}",
        crate::cluster::describe(&wrong)
    );
    Ok(())
}

pub(crate) fn exchange(
    cluster: &Cluster,
    server: &str,
    address: &str,
    headers: u64,
    count: &str,
    size: &str,
) -> Result<()> {
    let made = cluster.send("client", &["udp", address, count, size])?;
    ensure!(
        made.received == made.sent,
        "the workload lost something by itself"
    );
    cluster.eventually(|flows| {
        both_ways(flows, &made, headers, "client", server, true, "veth")?;
        both_ways(flows, &made, headers, "client", server, false, "veth")?;
        nothing_else(flows, &made, &["client", server])
    })
}

fn qos_classes(cluster: &Cluster) -> Result<Outcome> {
    for (server, count, size) in [("guaranteed", "11", "100"), ("burstable", "13", "1000")] {
        let address = format!("{}:7000", cluster.ip(server)?);
        exchange(cluster, server, &address, V4, count, size)?;
    }
    Ok(Outcome::Passed)
}

fn two_nodes(cluster: &Cluster) -> Result<Outcome> {
    if cluster.nodes.len() < 2 {
        return Ok(Outcome::Skipped("the cluster has one node".to_owned()));
    }
    let address = format!("{}:7000", cluster.ip("far")?);
    exchange(cluster, "far", &address, V4, "17", "500")?;
    Ok(Outcome::Passed)
}

fn ipv6(cluster: &Cluster) -> Result<Outcome> {
    if !cluster.ipv6 {
        return Ok(Outcome::Skipped("the cluster has no IPv6".to_owned()));
    }
    for server in ["guaranteed", "far"] {
        let address = format!("[{}]:7000", cluster.ip6(server)?);
        exchange(cluster, server, &address, V6, "19", "300")?;
    }
    Ok(Outcome::Passed)
}

/// What a pod's interface has received and sent: frames and bytes.
fn interface(cluster: &Cluster, pod: &str) -> Result<[u64; 4]> {
    // The image has nothing but the workload: the kernel's table of its network namespace is read through the agent's
    // eyes instead, by the interface's counters in `orb8 status`. Those come from rtnetlink.
    let pods: serde_json::Value =
        serde_json::from_str(&cluster.orb8(&["pods", "-n", NAMESPACE, "--pod", pod, "-o", "json"])?)?;
    let name = pods
        .pointer("/interfaces/0/name")
        .and_then(|name| name.as_str())
        .context("the pod has no interface")?
        .to_owned();
    let node = cluster.pod_field(pod, "/spec/nodeName")?;
    let status = cluster.orb8(&["status", "--node", &node, "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let interfaces = status["interfaces"].as_array().into_iter().flatten();
    let row = interfaces
        .into_iter()
        .find(|row| row["name"] == name.as_str())
        .context("orb8 does not know the interface")?;
    let number = |key: &str| row[key].as_u64().unwrap_or_default();
    Ok([
        number("interface_rx"),
        number("interface_tx"),
        number("seen_rx"),
        number("seen_tx"),
    ])
}

fn interface_counters(cluster: &Cluster) -> Result<Outcome> {
    let address = format!("{}:7000", cluster.ip("guaranteed")?);
    let made = cluster.send("client", &["tcp", &address, "3000000"])?;
    ensure!(made.received == 3_000_000, "{made:?}");
    cluster.eventually(|flows| {
        for (from, to) in [("client", "guaranteed"), ("guaranteed", "client")] {
            let report = |reporter: &str| {
                let picked: Vec<&Flow> = flows
                    .iter()
                    .filter(|flow| {
                        flow.reporter == reporter
                            && flow.protocol == "TCP"
                            && is_pod(&flow.src, from)
                            && is_pod(&flow.dst, to)
                            && (flow.src.port == made.port || flow.dst.port == made.port)
                    })
                    .collect();
                ensure!(
                    picked.len() == 1,
                    "{reporter} {from} -> {to}: {} flows",
                    picked.len()
                );
                Ok(picked[0])
            };
            let (sent, received) = (report("source")?, report("destination")?);
            ensure!(
                (sent.packets, sent.bytes) == (received.packets, received.bytes),
                "the two ends differ: {sent:?} {received:?}"
            );
            ensure!(
                sent.frames <= sent.packets && sent.frame_bytes > 3_000_000,
                "{sent:?}"
            );
            // Each segment has 20 bytes of IP, 20 of TCP and, with timestamps, 12 of options; more in the first one, and
            // where something came out of order (RFC 2018).
            let (headers, timestamps) = (3_000_000 + sent.packets * 40, sent.packets * 12);
            let options = sent.bytes.checked_sub(headers).context("bytes are missing")?;
            if [sent, received].iter().any(|flow| flow.retransmits > Some(0)) {
                // Payload was sent twice, and how much of it is not known.
                continue;
            }
            let further = options.checked_sub(timestamps).unwrap_or(options);
            ensure!(
                (8..=8 + 36 * 20).contains(&further) && further % 4 == 0,
                "{} packets with 3000000 bytes are {} with their headers, not {}",
                sent.packets,
                headers + timestamps + 8,
                sent.bytes
            );
        }
        Ok(())
    })?;
    // Every frame that the interface counted passed the programs.
    cluster.within(Duration::from_secs(25), || {
        let [rx, tx, seen_rx, seen_tx] = interface(cluster, "client")?;
        ensure!(
            rx > 0 && seen_rx >= rx && seen_tx >= tx,
            "the interface counted {rx} and {tx} frames, the programs {seen_rx} and {seen_tx}"
        );
        Ok(())
    })?;
    Ok(Outcome::Passed)
}

fn host_network(cluster: &Cluster) -> Result<Outcome> {
    for (server, port, count) in [("on-host-1", 7101, "21"), ("on-host-2", 7102, "23")] {
        let address = format!("{}:{port}", cluster.ip(server)?);
        let made = cluster.send("client", &["udp", &address, count, "200"])?;
        cluster
            .eventually(|flows| {
                both_ways(flows, &made, V4, "client", server, true, "veth")?;
                both_ways(flows, &made, V4, "client", server, false, "cgroup")
            })
            .context(server)?;
    }
    // As a client, over the loopback interface: both ends are pods of the node.
    let address = format!("{}:7102", cluster.ip("on-host-2")?);
    let made = cluster.send("on-host-1", &["udp", &address, "25", "100"])?;
    cluster.eventually(|flows| {
        both_ways(flows, &made, V4, "on-host-1", "on-host-2", true, "cgroup")?;
        both_ways(flows, &made, V4, "on-host-1", "on-host-2", false, "cgroup")
    })?;
    Ok(Outcome::Passed)
}

/// The client's own report of an exchange through a Service: its backends are pods of `app`, and each byte is there once.
fn through_service(
    flows: &[Flow],
    made: &Made,
    headers: u64,
    protocol: &str,
    service: (&str, &str, u16),
    attribution: &str,
    backends: &[String],
) -> Result<()> {
    let (name, ip, port) = service;
    let is_service = |flow: &Flow| {
        flow.service.as_ref().is_some_and(|service| {
            service.namespace == NAMESPACE
                && service.name == name
                && service.ip == ip
                && service.port == port
                && service.attribution == attribution
        })
    };
    let is_backend = |end: &End| {
        end.kind == "pod" && end.namespace == NAMESPACE && backends.contains(&end.pod) && end.port == 7000
    };
    for sent in [true, false] {
        let mine = |flow: &Flow| {
            let (own, other) = if sent {
                (&flow.src, &flow.dst)
            } else {
                (&flow.dst, &flow.src)
            };
            flow.reporter == if sent { "source" } else { "destination" }
                && flow.protocol == protocol
                && is_pod(own, "client")
                && own.port == made.port
                && other.port != 53
        };
        let good = |flow: &Flow| {
            mine(flow) && is_service(flow) && is_backend(if sent { &flow.dst } else { &flow.src })
        };
        let wrong: Vec<&Flow> = flows.iter().filter(|flow| mine(flow) && !good(flow)).collect();
        ensure!(
            wrong.is_empty(),
            "not through the Service: {}",
            crate::cluster::describe(&wrong)
        );
        if protocol == "UDP" {
            expect(flows, &amount("through the Service", made, headers), good)?;
        } else {
            let bytes: u64 = flows
                .iter()
                .filter(|flow| good(flow))
                .map(|flow| flow.bytes)
                .sum();
            ensure!(
                bytes > made.sent && bytes < made.sent * 2,
                "{bytes} bytes for {} sent once",
                made.sent
            );
        }
    }
    Ok(())
}

fn cluster_ip_of(cluster: &Cluster, index: usize, headers: u64) -> Result<()> {
    let ip = cluster.service_ip("cluster-ip", index)?;
    let address = if ip.contains(':') {
        format!("[{ip}]:80")
    } else {
        format!("{ip}:80")
    };
    let backends = cluster.pods("app=web")?;
    for (protocol, arguments) in [
        ("UDP", ["udp", &address, "29", "400"].as_slice()),
        ("TCP", ["tcp", &address, "200000"].as_slice()),
    ] {
        let made = cluster.send("client", arguments)?;
        cluster.eventually(|flows| {
            through_service(
                flows,
                &made,
                headers,
                protocol,
                ("cluster-ip", &ip, 80),
                "conntrack",
                &backends,
            )?;
            if protocol == "UDP" {
                // The backend's own report has the client's real address.
                expect(flows, &amount("at the backend", &made, headers), |flow| {
                    flow.reporter == "destination"
                        && is_pod(&flow.src, "client")
                        && flow.src.port == made.port
                        && backends.contains(&flow.dst.pod)
                        && flow.dst.attribution == "veth"
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn cluster_ip(cluster: &Cluster) -> Result<Outcome> {
    cluster_ip_of(cluster, 0, V4)?;
    Ok(Outcome::Passed)
}

fn cluster_ip_v6(cluster: &Cluster) -> Result<Outcome> {
    if !cluster.ipv6 {
        return Ok(Outcome::Skipped("the cluster has no IPv6".to_owned()));
    }
    cluster_ip_of(cluster, 1, V6)?;
    Ok(Outcome::Passed)
}

fn node_port(cluster: &Cluster) -> Result<Outcome> {
    let object = cluster.json(&["-n", NAMESPACE, "get", "service", "node-port"])?;
    let port = object["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .context("no node port")?;
    let node = cluster.pod_field("client", "/status/hostIP")?;
    let backends = cluster.pods("app=web")?;
    let made = cluster.send("client", &["udp", &format!("{node}:{port}"), "31", "150"])?;
    cluster.eventually(|flows| {
        through_service(
            flows,
            &made,
            V4,
            "UDP",
            ("node-port", &node, port),
            "conntrack",
            &backends,
        )
    })?;
    Ok(Outcome::Passed)
}

fn load_balancer(cluster: &Cluster) -> Result<Outcome> {
    let ip = "198.51.100.10";
    let patch = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{ip}"}}]}}}}}}"#);
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "patch",
        "service",
        "balanced",
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ])?;
    thread::sleep(Duration::from_secs(3));
    let backends = cluster.pods("app=web")?;
    let made = cluster.send("client", &["udp", &format!("{ip}:80"), "33", "160"])?;
    cluster.eventually(|flows| {
        through_service(
            flows,
            &made,
            V4,
            "UDP",
            ("balanced", ip, 80),
            "conntrack",
            &backends,
        )
    })?;
    Ok(Outcome::Passed)
}

fn headless(cluster: &Cluster) -> Result<Outcome> {
    let address = format!("{}:7000", cluster.ip("db-0")?);
    let made = cluster.send("client", &["udp", &address, "35", "170"])?;
    cluster.eventually(|flows| {
        both_ways(flows, &made, V4, "client", "db-0", true, "veth")?;
        expect(flows, &amount("with the headless Service", &made, V4), |flow| {
            flow.reporter == "source"
                && is_pod(&flow.src, "client")
                && flow.src.port == made.port
                && flow.dst.workload == "StatefulSet/db"
                && flow
                    .service
                    .as_ref()
                    .is_some_and(|service| service.name == "headless" && service.attribution == "endpoint")
        })
    })?;
    Ok(Outcome::Passed)
}

fn several_containers(cluster: &Cluster) -> Result<Outcome> {
    let address = format!("{}:7000", cluster.ip("several")?);
    exchange(cluster, "several", &address, V4, "37", "180")?;
    // Which container it was, an interface that all share does not tell.
    let flows = cluster.flows()?;
    let named = flows
        .iter()
        .any(|flow| is_pod(&flow.dst, "several") && !flow.dst.container.is_empty());
    ensure!(!named, "a container is named that cannot be known");
    let only = flows
        .iter()
        .any(|flow| is_pod(&flow.src, "client") && flow.src.container == "main");
    ensure!(only, "a pod's only container is not named");
    Ok(Outcome::Passed)
}

fn external(cluster: &Cluster) -> Result<Outcome> {
    let server = format!("{}:53", cluster.ip("dns")?);
    cluster.exec("client", &["resolve", &server, "api.example.com"])?;
    let named = cluster.send("client", &["blind", "192.0.2.7:443", "39", "190"])?;
    let nameless = cluster.send("client", &["blind", "192.0.2.8:443", "41", "190"])?;
    // Another pod has not asked for that name.
    let other = cluster.send("burstable", &["blind", "192.0.2.7:443", "43", "190"])?;
    cluster.eventually(|flows| {
        for (made, from, ip, name) in [
            (&named, "client", "192.0.2.7", "api.example.com"),
            (&nameless, "client", "192.0.2.8", ""),
            (&other, "burstable", "192.0.2.7", ""),
        ] {
            expect(flows, &amount(ip, made, V4), |flow| {
                flow.reporter == "source"
                    && is_pod(&flow.src, from)
                    && flow.src.port == made.port
                    && flow.dst.kind == "external"
                    && flow.dst.ip == ip
                    && flow.dst.dns_name == name
                    && flow.dst.attribution == if name.is_empty() { "unknown" } else { "dns" }
            })
            .context(from)?;
        }
        Ok(())
    })?;
    Ok(Outcome::Passed)
}

fn api_server(cluster: &Cluster) -> Result<Outcome> {
    let object = cluster.json(&["-n", "default", "get", "service", "kubernetes"])?;
    let ip = object["spec"]["clusterIP"]
        .as_str()
        .context("no address")?
        .to_owned();
    // It takes the connection, and gets something that it does not understand.
    let _ = cluster.exec("client", &["tcp", &format!("{ip}:443"), "10"]);
    let node = cluster.pod_field("far", "/status/hostIP")?;
    let made = cluster.send("client", &["blind", &format!("{node}:9"), "45", "110"])?;
    cluster.eventually(|flows| {
        let talked = flows.iter().any(|flow| {
            flow.reporter == "source"
                && is_pod(&flow.src, "client")
                && flow.dst.kind == "kube-apiserver"
                && flow
                    .service
                    .as_ref()
                    .is_some_and(|service| service.namespace == "default" && service.name == "kubernetes")
        });
        ensure!(talked, "no flow of the client goes to kube-apiserver");
        expect(flows, &amount("to a node", &made, V4), |flow| {
            let is_node = if cluster.nodes.len() < 2 {
                flow.dst.kind == "host"
            } else {
                flow.dst.kind == "node"
                    && flow.dst.node == cluster.nodes[1]
                    && flow.dst.attribution == "node_ip"
            };
            flow.reporter == "source" && is_pod(&flow.src, "client") && flow.src.port == made.port && is_node
        })
    })?;
    Ok(Outcome::Passed)
}

fn pods(cluster: &Cluster) -> Result<Outcome> {
    let text = cluster.orb8(&["pods", "-n", NAMESPACE, "-o", "json"])?;
    let known: Vec<serde_json::Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    for name in ["client", "guaranteed", "far", "on-host-1", "several", "db-0"] {
        let pod = known
            .iter()
            .find(|pod| pod["pod"] == name || pod["name"] == name)
            .with_context(|| format!("{name} is not listed"))?;
        ensure!(pod["health"] == "ok", "{name}: {pod}");
    }
    cluster.orb8(&["pods", "-A", "--strict"])?;
    Ok(Outcome::Passed)
}

fn filters(cluster: &Cluster) -> Result<Outcome> {
    let backends = cluster.pods("app=web")?;
    let count = |arguments: &[&str]| cluster.flows_with(arguments).map(|flows| flows.len());
    for arguments in [
        ["-A", "--pod", "orb8-e2e/cli"].as_slice(),
        &["-n", NAMESPACE, "--pod", "app=web"],
        &["-A", "--workload", "Deployment/web"],
        &["-A", "--service", "orb8-e2e/cluster-ip"],
        &["-n", NAMESPACE, "--peer", "external"],
        &["-n", NAMESPACE, "--peer", "192.0.2.0/24"],
        &["-n", NAMESPACE, "--peer", "api.example.com"],
        &["-n", NAMESPACE, "--peer", "kube-apiserver"],
    ] {
        ensure!(count(arguments)? > 0, "{arguments:?} finds nothing");
    }
    for arguments in [
        ["-A", "--pod", "orb8-e2e/nobody"].as_slice(),
        &["-n", "default", "--pod", "client"],
        &["-A", "--pod", "app=nobody"],
        &["-A", "--service", "nobody"],
    ] {
        ensure!(count(arguments)? == 0, "{arguments:?} finds something");
    }
    let selected = cluster.flows_with(&["-n", NAMESPACE, "--pod", "app=web"])?;
    let foreign = selected
        .iter()
        .find(|flow| !backends.contains(&flow.src.pod) && !backends.contains(&flow.dst.pod));
    ensure!(foreign.is_none(), "a label selector lets {foreign:?} by");

    let address = format!("{}:7000", cluster.ip("guaranteed")?);
    let made = cluster.send("client", &["udp", &address, "47", "210"])?;
    cluster.within(Duration::from_secs(6), || {
        let edge = cluster
            .edges(&[])?
            .into_iter()
            .find(|edge| edge["src"]["port"] == made.port && edge["dst"]["pod"] == "guaranteed")
            .context("no edge")?;
        let expected = made.sent * (made.payload + V4);
        let bytes = |end: &str| edge[end]["bytes"].as_u64().unwrap_or_default();
        ensure!(
            bytes("sent") == expected && bytes("received") == expected,
            "expected {expected} bytes sent and received: {edge}"
        );
        Ok(())
    })?;
    Ok(Outcome::Passed)
}

fn named_in_time(cluster: &Cluster) -> Result<Outcome> {
    let here = &cluster.nodes[0];
    cluster.apply(&manifests::idle_pod("young", here, cluster.image()))?;
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=Ready",
        "pod/young",
        "--timeout=60s",
    ])?;
    let address = format!("{}:7000", cluster.ip("guaranteed")?);
    let made = cluster.send("young", &["udp", &address, "49", "220"])?;
    cluster.within(Duration::from_secs(2), || {
        let flows = cluster.flows()?;
        both_ways(&flows, &made, V4, "young", "guaranteed", true, "veth")?;
        both_ways(&flows, &made, V4, "young", "guaranteed", false, "veth")
    })?;
    Ok(Outcome::Passed)
}

fn address_reuse(cluster: &Cluster) -> Result<Outcome> {
    let here = &cluster.nodes[0];
    let address = format!("{}:7000", cluster.ip("guaranteed")?);
    let mut made = Vec::new();
    for number in 0..6 {
        let name = format!("brief-{number}");
        cluster.apply(&manifests::idle_pod(&name, here, cluster.image()))?;
        cluster.kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            &format!("pod/{name}"),
            "--timeout=60s",
        ])?;
        made.push((
            name.clone(),
            cluster.send(&name, &["udp", &address, "51", "230"])?,
        ));
        cluster.kubectl(&[
            "-n",
            NAMESPACE,
            "delete",
            "pod",
            &name,
            "--grace-period=0",
            "--force",
            "--wait=true",
        ])?;
    }
    cluster.eventually(|flows| {
        for (name, made) in &made {
            both_ways(flows, made, V4, name, "guaranteed", true, "veth")?;
            both_ways(flows, made, V4, name, "guaranteed", false, "veth")?;
        }
        Ok(())
    })?;
    Ok(Outcome::Passed)
}

fn stateful(cluster: &Cluster) -> Result<Outcome> {
    for _ in 0..2 {
        let address = format!("{}:7000", cluster.ip("db-0")?);
        let made = cluster.send("client", &["udp", &address, "53", "240"])?;
        cluster.eventually(|flows| both_ways(flows, &made, V4, "client", "db-0", true, "veth"))?;
        cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", "db-0", "--wait=true"])?;
        cluster.kubectl(&[
            "-n",
            NAMESPACE,
            "rollout",
            "status",
            "statefulset/db",
            "--timeout=60s",
        ])?;
    }
    Ok(Outcome::Passed)
}

fn cron_job(cluster: &Cluster) -> Result<Outcome> {
    // It may have run already.
    let ran = || {
        let flows = cluster.flows()?;
        let of_job: Vec<&Flow> = flows
            .iter()
            .filter(|flow| flow.reporter == "source" && flow.src.workload == "CronJob/short")
            .filter(|flow| {
                flow.service
                    .as_ref()
                    .is_some_and(|service| service.name == "cluster-ip")
            })
            .collect();
        let end = &of_job
            .first()
            .context("no pod of the CronJob has sent anything yet")?
            .src;
        let pod = end.pod.clone();
        // The Service has both, and the resolver prefers which it likes.
        let headers = if end.ip.contains(':') { V6 } else { V4 };
        let packets: u64 = of_job
            .iter()
            .filter(|flow| flow.src.pod == pod)
            .map(|flow| flow.packets)
            .sum();
        ensure!(packets == 7, "{pod} sent 7 datagrams, not {packets}");
        let bytes: u64 = of_job
            .iter()
            .filter(|flow| flow.src.pod == pod)
            .map(|flow| flow.bytes)
            .sum();
        ensure!(bytes == 7 * (70 + headers), "{bytes} bytes");
        Ok(())
    };
    cluster.within(Duration::from_secs(80), ran)?;
    Ok(Outcome::Passed)
}

fn restart(cluster: &Cluster) -> Result<Outcome> {
    cluster.kubectl(&["-n", "orb8", "rollout", "restart", "daemonset/orb8-agent"])?;
    cluster.kubectl(&[
        "-n",
        "orb8",
        "rollout",
        "status",
        "daemonset/orb8-agent",
        "--timeout=90s",
    ])?;
    let address = format!("{}:7000", cluster.ip("guaranteed")?);
    exchange(cluster, "guaranteed", &address, V4, "55", "250")?;
    cluster_ip_of(cluster, 0, V4)?;
    Ok(Outcome::Passed)
}

fn api_outage(cluster: &Cluster) -> Result<Outcome> {
    let Some((stop, start)) = &cluster.api_hooks else {
        return Ok(Outcome::Skipped(
            "no command to stop the API server is given (--api-stop)".to_owned(),
        ));
    };
    let address = format!("{}:7000", cluster.ip("guaranteed")?);
    // It sends before, during and after.
    steady_pod(cluster, "through-outage", &address)?;
    cluster.hook(stop)?;
    thread::sleep(Duration::from_secs(30));
    cluster.hook(start)?;
    cluster.within(Duration::from_secs(60), || {
        cluster.kubectl(&["get", "nodes"]).map(drop)
    })?;
    let made = cluster.sent_by("through-outage")?;
    cluster.eventually(|flows| {
        both_ways(flows, &made, V4, "through-outage", "guaranteed", true, "veth")?;
        both_ways(flows, &made, V4, "through-outage", "guaranteed", false, "veth")
    })?;
    exchange(cluster, "guaranteed", &address, V4, "57", "260")?;
    // What has happened meanwhile, and after, comes in.
    cluster.apply(&manifests::idle_pod(
        "after-outage",
        &cluster.nodes[0],
        cluster.image(),
    ))?;
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=Ready",
        "pod/after-outage",
        "--timeout=90s",
    ])?;
    let made = cluster.send("after-outage", &["udp", &address, "59", "270"])?;
    cluster.within(Duration::from_secs(40), || {
        both_ways(
            &cluster.flows()?,
            &made,
            V4,
            "after-outage",
            "guaranteed",
            false,
            "veth",
        )
    })?;
    Ok(Outcome::Passed)
}

fn node_cut(cluster: &Cluster) -> Result<Outcome> {
    let Some((cut, join)) = &cluster.node_hooks else {
        return Ok(Outcome::Skipped(
            "no command to cut a node off is given (--node-cut)".to_owned(),
        ));
    };
    let far = format!("{}:7000", cluster.ip("far")?);
    steady_pod(cluster, "through-cut", &far)?;
    cluster.hook(cut)?;
    thread::sleep(Duration::from_secs(20));
    // The nodes that can be reached answer, and the other one is named.
    let partial = cluster.orb8(&["flows", "-A", "--strict", "-o", "json"]);
    // A question about a pod is its own node's, and lacks nothing of the other one.
    let question = ["flows", "-n", NAMESPACE, "--pod", "through-cut", "-o", "json"];
    let routed = cluster.orb8(&question);
    let complaint = cluster.orb8(&[&question[..], &["--strict"]].concat()).err();
    cluster.hook(join)?;
    ensure!(partial.is_err(), "an answer without a node is said to be whole");
    let routed = routed?;
    let complaint = complaint.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(
        !complaint.contains("no answer from"),
        "a question about a pod of another node waits for the node that is cut off: {complaint}"
    );
    ensure!(
        routed.contains("through-cut"),
        "the pod's own node does not tell of it: {routed}"
    );
    cluster.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=120s"])?;
    let address = format!("{}:7000", cluster.ip("guaranteed")?);
    exchange(cluster, "guaranteed", &address, V4, "61", "280")?;
    cluster.within(Duration::from_secs(60), || {
        exchange(cluster, "far", &far, V4, "63", "290")
    })?;
    // What was sent into the cut is in the sender's report, and not in the receiver's: the edge tells the difference.
    let made = cluster.sent_by("through-cut")?;
    cluster.eventually(|flows| {
        let sent = amount("sent into the cut", &made, V4);
        expect(flows, &sent, |flow| {
            flow.reporter == "source" && is_pod(&flow.src, "through-cut") && is_pod(&flow.dst, "far")
        })
    })?;
    let edges = cluster.edges(&["--pod", "through-cut"])?;
    let edge = edges
        .iter()
        .find(|edge| edge["src"]["pod"] == "through-cut" && edge["dst"]["pod"] == "far")
        .context("no edge")?;
    let packets = |end: &str| edge[end]["packets"].as_u64().unwrap_or_default();
    ensure!(
        packets("sent") == made.sent && (1..made.sent).contains(&packets("received")),
        "{} datagrams sent, some of them lost: {edge}",
        made.sent
    );
    Ok(Outcome::Passed)
}

/// A pod that sends for half a minute or longer by itself, without listening.
fn steady_pod(cluster: &Cluster, name: &str, to: &str) -> Result<()> {
    let arguments = ["blind", to, "12000", "100"];
    cluster.apply(&manifests::sending_pod(
        name,
        &cluster.nodes[0],
        cluster.image(),
        &arguments,
    ))?;
    cluster.within(Duration::from_secs(30), || {
        cluster.kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            &format!("pod/{name}"),
            "--timeout=20s",
        ])?;
        Ok(())
    })
}
