//! GPUs that the kubelet hands out, by a device plugin that has none, and what an exporter that has none says of them.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
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
/// How often agents look for an exporter that has not been there, and some seconds.
const FOUND: Duration = Duration::from_secs(75);
/// Some samples.
const SAMPLED: Duration = Duration::from_secs(30);

/// A program that stands in for one of a node with GPUs; ended with its value, and all that it has started.
struct StandIn(Child);

impl StandIn {
    /// `page`: of an exporter.
    fn start(command: &str, page: Option<&Path>) -> Result<Self> {
        let child = Command::new("sh")
            .args(["-c", command])
            .envs(page.map(|page| ("PAGE", page)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("{command} does not start"))?;
        Ok(Self(child))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = Command::new("kill")
            .args(["-TERM", "--", &format!("-{}", self.0.id())])
            .status();
        let _ = self.0.wait();
    }
}

/// What a dcgm-exporter says of two GPUs that are so busy, in percent. Its UUIDs are written otherwise than the kubelet's,
/// and its labels still name a pod that held both.
fn page(uuids: [&str; 2], busy: [u32; 2]) -> String {
    let mut page = String::new();
    for (name, values) in [
        ("DCGM_FI_DEV_GPU_UTIL", busy),
        ("DCGM_FI_DEV_FB_USED", [100, 200]),
        ("DCGM_FI_DEV_FB_FREE", [900, 800]),
        // A blank: there is no such value.
        ("DCGM_FI_DEV_GPU_TEMP", [2_147_483_632, 55]),
    ] {
        page += &format!("# HELP {name} Made up\n# TYPE {name} gauge\n");
        for (at, (uuid, value)) in uuids.into_iter().zip(values).enumerate() {
            let uuid = format!("GPU-{}", uuid.trim_start_matches("GPU-").to_uppercase());
            page += &format!(
                "{name}{{gpu=\"{at}\",UUID=\"{uuid}\",device=\"nvidia{at}\",modelName=\"Made up\",\
                 container=\"main\",namespace=\"{NAMESPACE}\",pod=\"gone\"}} {value}\n"
            );
        }
    }
    page
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

/// Two pods get a GPU each, and are named; each has what its own GPU does, as the exporter says it now; one that is deleted
/// holds none, and without the exporter nothing is known any more.
pub(crate) fn allocated(cluster: &Cluster) -> Result<Outcome> {
    let Some(command) = &cluster.device_plugin else {
        return Ok(Outcome::Skipped(
            "no command that runs a device plugin is given (--device-plugin)".to_owned(),
        ));
    };
    let node = &cluster.nodes[0];
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let page = directory.path().join("page.prom");
    // So that the agent has found it by the time that it says something.
    write_page(&page, "# Nothing yet\n")?;
    let exporter = match &cluster.gpu_exporter {
        Some(command) => Some(StandIn::start(command, Some(&page))?),
        None => None,
    };
    let _plugin = StandIn::start(command, None)?;
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
    let mut uuids = [String::new(), String::new()];
    cluster.within(NOTICED, || {
        let devices = devices()?;
        for (uuid, pod) in uuids.iter_mut().zip(["gpu-a", "gpu-b"]) {
            let held = held(&devices, pod);
            let [(device, method)] = held.as_slice() else {
                anyhow::bail!("{pod} holds {held:?} of {devices:?}");
            };
            ensure!(method == "exclusive", "{pod} holds {device} as {method}");
            uuid.clone_from(device);
        }
        ensure!(uuids[0] != uuids[1], "both hold {uuids:?}");
        Ok(())
    })?;
    for device in devices()? {
        ensure!(device["utilization"].is_null(), "nothing says so: {device}");
    }
    let of_one = || json_lines(&cluster.orb8(&["gpu", "-n", NAMESPACE, "--pod", "gpu-a", "-o", "json"])?);
    let one = of_one()?;
    ensure!(
        one.len() == 1 && one[0]["uuid"] == uuids[0],
        "of one pod: {one:?}"
    );
    let table = cluster.orb8(&["gpu", "-A"])?;
    ensure!(table.contains("gpu-a") && table.contains("gpu-b"), "{table}");
    let has_exporter = exporter.is_some();
    if let Some(exporter) = exporter {
        readings(cluster, exporter, &page, &uuids)?;
    }
    cluster.delete_pod("gpu-a")?;
    cluster.within(NOTICED, || {
        let devices = devices()?;
        ensure!(held(&devices, "gpu-a").is_empty(), "it is gone: {devices:?}");
        let other = held(&devices, "gpu-b");
        ensure!(
            matches!(other.as_slice(), [(uuid, method)]
                if uuid.eq_ignore_ascii_case(&uuids[1]) && method == "exclusive"),
            "the other holds {other:?}"
        );
        Ok(())
    })?;
    cluster.delete_pod("gpu-b")?;
    Ok(if has_exporter {
        Outcome::Passed
    } else {
        Outcome::Skipped(
            "readings: no command that serves an exporter's page is given (--gpu-exporter)".to_owned(),
        )
    })
}

/// The driver's library, where a container runtime puts it, is one that the programs of the image can load.
pub(crate) fn nvml(cluster: &Cluster) -> Result<Outcome> {
    let Some(libraries) = &cluster.nvml else {
        return Ok(Outcome::Skipped(
            "no directory with a libnvidia-ml.so.1 is given (--nvml)".to_owned(),
        ));
    };
    let agents = cluster.json(&["-n", "orb8", "get", "daemonset", "orb8-agent"])?;
    let image = agents["spec"]["template"]["spec"]["containers"][0]["image"]
        .as_str()
        .context("orb8-agent has no image")?;
    cluster.apply(&manifests::looking_pod(
        "gpu-nvml",
        &cluster.nodes[0],
        image,
        libraries,
    ))?;
    let mut told = String::new();
    cluster.within(Duration::from_secs(60), || {
        let phase = cluster.pod_field("gpu-nvml", "/status/phase")?;
        told = cluster.kubectl(&["-n", NAMESPACE, "logs", "gpu-nvml"])?;
        ensure!(phase == "Succeeded", "{phase}: {told}");
        Ok(())
    })?;
    cluster.delete_pod("gpu-nvml")?;
    let devices = json_lines(&told)?;
    let found = devices.iter().find(|device| device["model"] == "NVIDIA L40S");
    let found = found.with_context(|| format!("no NVIDIA L40S: {told}"))?;
    ensure!(
        found["source"] == "nvml" && found["utilization"] == 0.91,
        "not what the library says: {found}"
    );
    Ok(Outcome::Passed)
}

/// Whether it is the device of a UUID, however that is written.
fn is(device: &Value, uuid: &str) -> bool {
    device["uuid"]
        .as_str()
        .is_some_and(|told| told.eq_ignore_ascii_case(uuid))
}

/// What the exporter says is said of each pod's own GPU, and follows what it says.
fn readings(cluster: &Cluster, exporter: StandIn, file: &Path, uuids: &[String; 2]) -> Result<()> {
    let write = |busy| write_page(file, &page([&uuids[0], &uuids[1]], busy));
    let busy = |pod: &str, uuid: &str, percent: f64| -> Result<()> {
        let devices = json_lines(&cluster.orb8(&["gpu", "-n", NAMESPACE, "--pod", pod, "-o", "json"])?)?;
        let [device] = devices.as_slice() else {
            anyhow::bail!("{pod} holds {devices:?}");
        };
        ensure!(is(device, uuid), "{pod} holds {device}, not {uuid}");
        let holder = &device["holders"][0];
        ensure!(
            device["holders"].as_array().is_some_and(|all| all.len() == 1) && holder["pod"] == pod,
            "{device}"
        );
        for told in [&device["utilization"], &holder["utilization"]] {
            let told = told.as_f64().with_context(|| format!("{pod}: {device}"))?;
            ensure!((told - percent / 100.0).abs() < 1e-6, "{pod}: {device}");
        }
        let method = if percent > 0.0 {
            "exclusive"
        } else {
            "allocated_idle"
        };
        ensure!(holder["method"] == method, "{pod}: {device}");
        Ok(())
    };
    write([87, 13])?;
    cluster.within(FOUND, || busy("gpu-a", &uuids[0], 87.0))?;
    cluster.within(SAMPLED, || busy("gpu-b", &uuids[1], 13.0))?;
    let devices = json_lines(&cluster.orb8(&["gpu", "-A", "-o", "json"])?)?;
    ensure!(
        held(&devices, "gone").is_empty(),
        "the kubelet knows better: {devices:?}"
    );
    ensure!(devices.len() == 2, "two devices: {devices:?}");
    for device in &devices {
        let is_first = is(device, &uuids[0]);
        ensure!(
            device["temperature_celsius"].is_null() == is_first,
            "a blank is no temperature: {device}"
        );
        let used = (if is_first { 100 } else { 200 }) << 20;
        ensure!(device["memory_used_bytes"] == used, "MiB: {device}");
    }
    write([0, 64])?;
    cluster.within(SAMPLED, || busy("gpu-b", &uuids[1], 64.0))?;
    busy("gpu-a", &uuids[0], 0.0)?;
    drop(exporter);
    cluster.within(SAMPLED, || {
        for device in json_lines(&cluster.orb8(&["gpu", "-A", "-o", "json"])?)? {
            ensure!(
                device["utilization"].is_null(),
                "nothing says so any more: {device}"
            );
        }
        Ok(())
    })
}

/// Whoever reads it meanwhile has the old one.
fn write_page(file: &Path, page: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, page)
        .and_then(|()| fs::rename(&new, file))
        .with_context(|| format!("cannot write {}", file.display()))
}
