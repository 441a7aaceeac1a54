//! The cluster, by kubectl, and orb8's answers about it.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{Options, manifests};

/// The namespace of the scenarios.
pub(crate) const NAMESPACE: &str = "orb8-e2e";

/// A cluster that orb8 is installed in.
#[derive(Debug)]
pub(crate) struct Cluster {
    orb8: PathBuf,
    image: String,
    /// Names of its nodes; the first two are used.
    pub(crate) nodes: Vec<String>,
    pub(crate) ipv6: bool,
    pub(crate) api_hooks: Option<(String, String)>,
    /// Runs a device plugin until it is killed.
    pub(crate) device_plugin: Option<String>,
    /// Serves an exporter's page until it is killed.
    pub(crate) gpu_exporter: Option<String>,
    /// A directory of the first node with a `libnvidia-ml.so.1`.
    pub(crate) nvml: Option<String>,
    pub(crate) node_hooks: Option<(String, String)>,
}

/// What `orb8 flows -o json` says of one flow.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Flow {
    pub(crate) node: String,
    pub(crate) reporter: String,
    #[serde(default)]
    pub(crate) protocol: String,
    #[serde(default)]
    pub(crate) src: End,
    #[serde(default)]
    pub(crate) dst: End,
    pub(crate) service: Option<Service>,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) frames: u64,
    pub(crate) frame_bytes: u64,
    /// Segments that were sent again, where the kernel of this end said so.
    #[serde(default)]
    pub(crate) retransmits: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct End {
    pub(crate) ip: String,
    pub(crate) port: u16,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) workload: String,
    pub(crate) dns_name: String,
    pub(crate) node: String,
    pub(crate) process: String,
    pub(crate) attribution: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ip: String,
    pub(crate) port: u16,
    pub(crate) attribution: String,
}

/// What the workload says of the traffic that it made.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Made {
    pub(crate) port: u16,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    #[serde(default)]
    pub(crate) payload: u64,
}

impl Cluster {
    pub(crate) fn connect(options: &Options) -> Result<Self> {
        ensure!(
            options.orb8.exists(),
            "{} is missing: cargo build -p orb8-cli, or --orb8",
            options.orb8.display()
        );
        let mut cluster = Self {
            orb8: options.orb8.clone(),
            image: options.workload_image.clone(),
            nodes: Vec::new(),
            ipv6: false,
            api_hooks: options.api_stop.clone().zip(options.api_start.clone()),
            device_plugin: options.device_plugin.clone(),
            gpu_exporter: options.gpu_exporter.clone(),
            nvml: options.nvml.clone(),
            node_hooks: options.node_cut.clone().zip(options.node_join.clone()),
        };
        let nodes = cluster.json(&["get", "nodes"]).context("is KUBECONFIG set?")?;
        for node in nodes["items"].as_array().into_iter().flatten() {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let ready = node["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            if ready {
                cluster.nodes.push(name.to_owned());
            }
            cluster.ipv6 = node["spec"]["podCIDRs"]
                .as_array()
                .is_some_and(|ranges| ranges.len() > 1);
        }
        ensure!(!cluster.nodes.is_empty(), "no node is Ready");
        cluster.nodes.sort();
        Ok(cluster)
    }

    /// Makes everything that the scenarios talk to, and waits for it.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.kubectl(&[
            "-n",
            "orb8",
            "rollout",
            "status",
            "daemonset/orb8-agent",
            "--timeout=60s",
        ])
        .context("orb8 is not installed: kubectl apply -k deploy/")?;
        self.kubectl(&[
            "-n",
            "orb8",
            "rollout",
            "status",
            "deployment/orb8-server",
            "--timeout=60s",
        ])?;
        self.clean_up();
        self.apply(&manifests::all(&self.image, &self.nodes))?;
        for resource in ["deployment/web", "statefulset/db"] {
            self.kubectl(&["-n", NAMESPACE, "rollout", "status", resource, "--timeout=90s"])?;
        }
        self.kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            "pod",
            "-l",
            "e2e=pod",
            "--timeout=90s",
        ])?;
        // Services reach the nodes' tables in their own time.
        thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    pub(crate) fn clean_up(&self) {
        // It may not be there.
        let _ = self.kubectl(&[
            "delete",
            "namespace",
            NAMESPACE,
            "--ignore-not-found",
            "--timeout=90s",
        ]);
    }

    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], manifest.as_bytes())
    }

    /// Runs kubectl with an input.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &[u8]) -> Result<()> {
        let mut child = Command::new("kubectl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        // Without its end, kubectl would wait for more.
        child
            .stdin
            .take()
            .context("kubectl takes no input")?
            .write_all(input)?;
        ensure!(child.wait()?.success(), "kubectl {arguments:?} failed");
        Ok(())
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("kubectl").args(arguments))
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[arguments, &["-o", "json"]].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Makes a pod of the namespace send, and returns what it says that it sent.
    pub(crate) fn send(&self, pod: &str, arguments: &[&str]) -> Result<Made> {
        let text = self.exec(pod, arguments)?;
        serde_json::from_str(text.trim()).with_context(|| format!("{pod} said {text:?}"))
    }

    /// What a pod that sends by itself says that it sent, once it has ended.
    pub(crate) fn sent_by(&self, pod: &str) -> Result<Made> {
        self.kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=jsonpath={.status.phase}=Succeeded",
            &format!("pod/{pod}"),
            "--timeout=90s",
        ])?;
        let text = self.kubectl(&["-n", NAMESPACE, "logs", pod])?;
        serde_json::from_str(text.trim()).with_context(|| format!("{pod} said {text:?}"))
    }

    /// Runs the workload's program in a pod.
    pub(crate) fn exec(&self, pod: &str, arguments: &[&str]) -> Result<String> {
        let command = ["-n", NAMESPACE, "exec", pod, "--", "/orb8-traffic"];
        self.kubectl(&[&command, arguments].concat())
    }

    /// The same in one of a pod's containers.
    pub(crate) fn exec_in(&self, pod: &str, container: &str, arguments: &[&str]) -> Result<String> {
        let command = [
            "-n",
            NAMESPACE,
            "exec",
            pod,
            "-c",
            container,
            "--",
            "/orb8-traffic",
        ];
        self.kubectl(&[&command, arguments].concat())
    }

    pub(crate) fn wait_ready(&self, pod: &str) -> Result<()> {
        let pod = format!("pod/{pod}");
        self.kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            &pod,
            "--timeout=60s",
        ])
        .map(drop)
    }

    pub(crate) fn delete_pod(&self, pod: &str) -> Result<()> {
        self.kubectl(&[
            "-n",
            NAMESPACE,
            "delete",
            "pod",
            pod,
            "--grace-period=0",
            "--force",
            "--wait=true",
        ])
        .map(drop)
    }

    /// One field of a pod of the namespace, as a JSON pointer.
    pub(crate) fn pod_field(&self, pod: &str, pointer: &str) -> Result<String> {
        let pod_object = self.json(&["-n", NAMESPACE, "get", "pod", pod])?;
        pod_object
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .with_context(|| format!("{pod} has no {pointer}"))
    }

    pub(crate) fn ip(&self, pod: &str) -> Result<String> {
        self.pod_field(pod, "/status/podIP")
    }

    pub(crate) fn ip6(&self, pod: &str) -> Result<String> {
        self.pod_field(pod, "/status/podIPs/1/ip")
    }

    pub(crate) fn service_ip(&self, service: &str, index: usize) -> Result<String> {
        let object = self.json(&["-n", NAMESPACE, "get", "service", service])?;
        object["spec"]["clusterIPs"][index]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("service {service} has no address {index}"))
    }

    /// The workload's image.
    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    /// Names of the pods with a label.
    pub(crate) fn pods(&self, label: &str) -> Result<Vec<String>> {
        let pods = self.json(&["-n", NAMESPACE, "get", "pods", "-l", label])?;
        let items = pods["items"].as_array().into_iter().flatten();
        Ok(items
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// Flows of the last five minutes, of all nodes, in all namespaces.
    pub(crate) fn flows(&self) -> Result<Vec<Flow>> {
        self.flows_with(&["-A"])
    }

    pub(crate) fn flows_with(&self, arguments: &[&str]) -> Result<Vec<Flow>> {
        let text = self.orb8(&[&["flows", "-o", "json", "--limit", "0"], arguments].concat())?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("orb8 printed {line}")))
            .collect()
    }

    /// Edges of the namespace.
    pub(crate) fn edges(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let all = ["flows", "--edges", "-n", NAMESPACE, "-o", "json", "--limit", "0"];
        json_lines(&self.orb8(&[&all, arguments].concat())?)
    }

    pub(crate) fn orb8(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(&self.orb8).args(arguments))
    }

    /// The same where an answer may lack something: what it tells, and what it says that it lacks.
    pub(crate) fn orb8_partial(&self, arguments: &[&str]) -> Result<(String, Vec<String>)> {
        let mut command = Command::new(&self.orb8);
        let output = command.args(arguments).stdin(Stdio::null()).output()?;
        let notes = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(
            matches!(output.status.code(), Some(0 | 3)),
            "{command:?}: {}: {notes}",
            output.status
        );
        let lacks = match output.status.code() {
            Some(0) => Vec::new(),
            _ => notes.lines().map(str::to_owned).collect(),
        };
        Ok((String::from_utf8(output.stdout)?, lacks))
    }

    /// Rows of `orb8 syscalls`.
    pub(crate) fn syscalls(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        json_lines(&self.orb8(&[&["syscalls", "-o", "json", "--limit", "0"], arguments].concat())?)
    }

    /// Starts `orb8`, which goes on by itself.
    pub(crate) fn orb8_start(&self, arguments: &[&str]) -> Result<Running> {
        let child = Command::new(&self.orb8)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Running(Some(child)))
    }

    /// Asks until `check` is content: what was sent just now is drained within an interval.
    pub(crate) fn eventually(&self, check: impl Fn(&[Flow]) -> Result<()>) -> Result<()> {
        self.within(Duration::from_secs(6), || check(&self.flows()?))
    }

    pub(crate) fn within(&self, time: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            match check() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// Runs a shell command of the caller's.
    pub(crate) fn hook(&self, command: &str) -> Result<()> {
        run(Command::new("sh").args(["-c", command])).map(drop)
    }
}

/// A command that goes on; it is ended with the scenario.
#[derive(Debug)]
pub(crate) struct Running(Option<Child>);

impl Running {
    /// As the user's ^C.
    pub(crate) fn interrupt(&self) -> Result<()> {
        let id = self.0.as_ref().map(Child::id).context("it has ended")?;
        run(Command::new("kill").args(["-INT", &id.to_string()])).map(drop)
    }

    /// Waits for its end, and returns what it printed and what it said on stderr.
    pub(crate) fn output(mut self) -> Result<(String, String)> {
        let child = self.0.take().context("it has ended")?;
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output()?;
        let stderr = String::from_utf8(stderr)?;
        ensure!(status.success(), "orb8: {status}: {}", stderr.trim());
        Ok((String::from_utf8(stdout)?, stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One value a line.
pub(crate) fn json_lines(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("orb8 printed {line}")))
        .collect()
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What a scenario expects of the flows that it picks.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) what: &'a str,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// Sums the flows that are `picked`, and compares.
pub(crate) fn expect(flows: &[Flow], expected: &Expected<'_>, picked: impl Fn(&Flow) -> bool) -> Result<()> {
    let found: Vec<&Flow> = flows.iter().filter(|flow| picked(flow)).collect();
    let packets: u64 = found.iter().map(|flow| flow.packets).sum();
    let bytes: u64 = found.iter().map(|flow| flow.bytes).sum();
    ensure!(
        (packets, bytes) == (expected.packets, expected.bytes),
        "{}: expected {} packets and {} bytes, found {packets} and {bytes} in {} flows: {}",
        expected.what,
        expected.packets,
        expected.bytes,
        found.len(),
        describe(&found),
    );
    Ok(())
}

/// Flows as a reader of a failure wants them.
pub(crate) fn describe(flows: &[&Flow]) -> String {
    let mut lines = BTreeMap::new();
    for flow in flows.iter().take(20) {
        let end = |end: &End| {
            format!(
                "{} {}/{} {}:{} by {}",
                end.kind, end.namespace, end.pod, end.ip, end.port, end.attribution
            )
        };
        let line = format!(
            "\n  {} {} {} {} -> {} via {:?}",
            flow.node,
            flow.reporter,
            flow.protocol,
            end(&flow.src),
            end(&flow.dst),
            flow.service.as_ref().map(|service| &service.name),
        );
        *lines.entry(line).or_insert(0) += flow.packets;
    }
    lines
        .into_iter()
        .map(|(line, packets)| format!("{line}: {packets} packets"))
        .collect()
}
