//! GPUs that the kubelet hands out, by a device plugin that has none.

use std::{
    collections::BTreeSet,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    cluster::{Cluster, NAMESPACE, json_lines},
    manifests,
    scenarios::Outcome,
};

/// How often agents ask a kubelet whose node has no GPU, and some seconds.
const NOTICED: Duration = Duration::from_secs(45);

/// The device plugin; ended with its value, and all that it has started.
struct Plugin(Child);

impl Plugin {
    fn start(command: &str) -> Result<Self> {
        let child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("the device plugin does not start")?;
        Ok(Self(child))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = Command::new("kill")
            .args(["-TERM", "--", &format!("-{}", self.0.id())])
            .status();
        let _ = self.0.wait();
    }
}

/// Devices that a pod of the namespace holds, of all that `orb8 gpu` shows.
fn held(devices: &[Value], pod: &str) -> Vec<(String, String)> {
    let mut held = Vec::new();
    for device in devices {
        for holder in device["holders"].as_array().into_iter().flatten() {
            if holder["namespace"] == NAMESPACE && holder["pod"] == pod {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                held.push((text(&device["uuid"]), text(&holder["method"])));
            }
        }
    }
    held
}

/// Two pods get a GPU each, and are named; one that is deleted holds none.
pub(crate) fn allocated(cluster: &Cluster) -> Result<Outcome> {
    let Some(command) = &cluster.device_plugin else {
        return Ok(Outcome::Skipped(
            "no command that runs a device plugin is given (--device-plugin)".to_owned(),
        ));
    };
    let node = &cluster.nodes[0];
    let _plugin = Plugin::start(command)?;
    cluster.within(Duration::from_secs(30), || {
        let node = cluster.json(&["get", "node", node])?;
        let count = &node["status"]["allocatable"]["nvidia.com/gpu"];
        ensure!(count == "2", "the node offers {count} GPUs");
        Ok(())
    })?;
    for pod in ["gpu-a", "gpu-b"] {
        cluster.apply(&manifests::gpu_pod(pod, node, cluster.image()))?;
        cluster.wait_ready(pod)?;
    }
    let devices = || json_lines(&cluster.orb8(&["gpu", "-A", "-o", "json"])?);
    cluster.within(NOTICED, || {
        let devices = devices()?;
        let mut all = BTreeSet::new();
        for pod in ["gpu-a", "gpu-b"] {
            let held = held(&devices, pod);
            let [(uuid, method)] = held.as_slice() else {
                anyhow::bail!("{pod} holds {held:?} of {devices:?}");
            };
            ensure!(method == "exclusive", "{pod} holds {uuid} as {method}");
            all.insert(uuid.clone());
        }
        ensure!(all.len() == 2, "both hold {all:?}");
        Ok(())
    })?;
    let of_one = json_lines(&cluster.orb8(&["gpu", "-n", NAMESPACE, "--pod", "gpu-a", "-o", "json"])?)?;
    ensure!(of_one.len() == 1, "of one pod: {of_one:?}");
    let table = cluster.orb8(&["gpu", "-A"])?;
    ensure!(table.contains("gpu-a") && table.contains("gpu-b"), "{table}");
    cluster.delete_pod("gpu-a")?;
    cluster.within(NOTICED, || {
        let devices = devices()?;
        ensure!(held(&devices, "gpu-a").is_empty(), "it is gone: {devices:?}");
        ensure!(
            held(&devices, "gpu-b").len() == 1,
            "the other is not: {devices:?}"
        );
        Ok(())
    })?;
    cluster.delete_pod("gpu-b")?;
    Ok(Outcome::Passed)
}
