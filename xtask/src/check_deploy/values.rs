//! The Helm chart's values: that each does something, is documented, and cannot be wrong unnoticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    objects::{Objects, at, differences, remove},
    tools::Tools,
};

const CHART: &str = "deploy/helm/orb8";
/// Settings that the chart has no key for: it sets them itself, its probes need them, or there is no such file in a pod.
const NOT_OFFERED: &[&str] = &[
    // The image is linked statically and cannot load libraries.
    "gpu_nvml",
    // The mount says where it is.
    "gpu_pod_resources",
    "grpc_address",
    "insecure",
    "kubeconfig",
    "metrics",
    "metrics_address",
    "metrics_port",
    "node",
    "tls_ca",
    "tls_cert",
    "tls_key",
];

fn read(root: &Path, file: &str) -> Result<String> {
    fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))
}

fn schema(root: &Path) -> Result<Value> {
    serde_json::from_str(&read(root, &format!("{CHART}/values.schema.json"))?)
        .with_context(|| format!("{CHART}/values.schema.json"))
}

/// The chart's example values, by their files.
pub(super) fn examples(root: &Path) -> Result<BTreeMap<String, Value>> {
    let directory = root.join(CHART).join("ci");
    let mut examples = BTreeMap::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let name = format!("ci/{}", entry?.file_name().display());
        let values = serde_saphyr::from_str(&read(root, &format!("{CHART}/{name}"))?)
            .with_context(|| format!("{CHART}/{name}"))?;
        examples.insert(name, values);
    }
    Ok(examples)
}

/// Paths of all values that the schema names.
fn paths(schema: &Value) -> Vec<Vec<String>> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return vec![Vec::new()];
    };
    let mut found = Vec::new();
    for (key, schema) in properties {
        for below in paths(schema) {
            found.push([vec![key.clone()], below].concat());
        }
    }
    // Helm's own.
    found.retain(|path| path[0] != "global");
    found
}

/// Values that no example sets, and those that make no difference where one does.
pub(super) fn idle(tools: &Tools, root: &Path) -> Result<Vec<String>> {
    let mut idle: BTreeSet<Vec<String>> = paths(&schema(root)?).into_iter().collect();
    for (file, values) in examples(root)? {
        let render = |values: &Value| Objects::parse(&tools.helm_template(values)?);
        let all = render(&values).with_context(|| file.clone())?;
        for path in idle.clone() {
            if at(&values, &path).is_none() {
                continue;
            }
            let mut without = values.clone();
            remove(&mut without, &path);
            if !differences("", &all, "", &render(&without)?).is_empty() {
                idle.remove(&path);
            }
        }
    }
    Ok(idle
        .into_iter()
        .map(|path| {
            format!(
                "{}: no file in {CHART}/ci sets it to something that makes a difference",
                path.join(".")
            )
        })
        .collect())
}

/// Mistakes that helm lets pass, or tells without the value's name.
pub(super) fn accepted_though_wrong(tools: &Tools) -> Result<Vec<String>> {
    let mistakes = [
        ("imagee", json!({"imagee": {}})),
        ("repo", json!({"image": {"repo": "a/b"}})),
        ("/image/repository", json!({"image": {"repository": "a/b:tag"}})),
        ("/image/tag", json!({"image": {"tag": 1.0}})),
        ("/image/digest", json!({"image": {"digest": "sha256:12"}})),
        ("/image/pullPolicy", json!({"image": {"pullPolicy": "always"}})),
        ("/imagePullSecrets/0", json!({"imagePullSecrets": ["registry"]})),
        ("wach_pods", json!({"settings": {"wach_pods": "node"}})),
        (
            "/settings/watch_pods",
            json!({"settings": {"watch_pods": "mine"}}),
        ),
        (
            "/settings/flow_entries",
            json!({"settings": {"flow_entries": 10}}),
        ),
        ("/settings/interval", json!({"settings": {"interval": 5}})),
        (
            "/settings/history_bytes",
            json!({"settings": {"history_bytes": "lots"}}),
        ),
        (
            "/settings/syscall_mode",
            json!({"settings": {"syscall_mode": "on"}}),
        ),
        (
            "/settings/syscall_events",
            json!({"settings": {"syscall_events": "execve, mount"}}),
        ),
        (
            "/settings/syscall_measured",
            json!({"settings": {"syscall_measured": "@disk"}}),
        ),
        ("/settings/state_dir", json!({"settings": {"state_dir": "/etc"}})),
        (
            "/settings/gpu_dcgm_url",
            json!({"settings": {"gpu_dcgm_url": "localhost:9400"}}),
        ),
        ("/settings/gpu_cuda", json!({"settings": {"gpu_cuda": "on"}})),
        (
            "/gpu/podResources",
            json!({"gpu": {"podResources": "var/lib/kubelet"}}),
        ),
        (
            "/gpu/podResources",
            json!({"gpu": {"podResources": "/var/lib/../kubelet"}}),
        ),
        (
            "/gpu/exporter/image",
            json!({"gpu": {"exporter": {"image": "Dcgm Exporter"}}}),
        ),
        (
            "gpu.exporter.enabled",
            json!({"gpu": {"exporter": {"enabled": true}}, "settings": {"gpu_dcgm_url": "http://a:9400/metrics"}}),
        ),
        ("/settings/dns", json!({"settings": {"dns": "on"}})),
        ("grpc_address", json!({"settings": {"grpc_address": "::1"}})),
        ("/server/replicas", json!({"server": {"replicas": 0}})),
        (
            "/server/settings/deadline",
            json!({"server": {"settings": {"deadline": 5}}}),
        ),
        ("deadlin", json!({"server": {"settings": {"deadlin": "5s"}}})),
        ("/certificates/create", json!({"certificates": {"create": "no"}})),
        ("/settings/interface", json!({"settings": {"interface": "eth0"}})),
        ("metrics_port", json!({"settings": {"metrics_port": 9100}})),
        ("/metrics/port", json!({"metrics": {"port": 70000}})),
        ("/metrics/host", json!({"metrics": {"host": "10.0.0.1"}})),
        ("/lockedMemory", json!({"lockedMemory": "yes"})),
        ("/resources", json!({"resources": {"memory": "1Gi"}})),
        (
            "/resources/limits/memory",
            json!({"resources": {"limits": {"memory": "1 GB"}}}),
        ),
        ("/nodeSelector/a", json!({"nodeSelector": {"a": true}})),
        (
            "/tolerations/0/effect",
            json!({"tolerations": [{"operator": "Exists", "effect": "NoRun"}]}),
        ),
        ("nodeAfinity", json!({"affinity": {"nodeAfinity": {}}})),
        (
            "/priorityClassName",
            json!({"priorityClassName": "Very Important"}),
        ),
        ("/podAnnotations/a", json!({"podAnnotations": {"a": 1}})),
        (
            "podLabels",
            json!({"podLabels": {"app.kubernetes.io/name": "mine"}}),
        ),
        (
            "/updateStrategy/type",
            json!({"updateStrategy": {"type": "Recreate"}}),
        ),
        (
            "maxSurge",
            json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}),
        ),
        (
            "/updateStrategy/rollingUpdate/maxUnavailable",
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "0%"}}}),
        ),
        ("/serviceAccount/name", json!({"serviceAccount": {"name": ""}})),
        ("/rbac/create", json!({"rbac": {"create": "no"}})),
        ("/networkPolicy/enabled", json!({"networkPolicy": {"enabled": 1}})),
        ("/namespace/create", json!({"namespace": {"create": "true"}})),
    ];
    let mut accepted = Vec::new();
    for (name, values) in mistakes {
        match tools.try_helm_template(&values)? {
            Ok(_) => accepted.push(format!("{values} is accepted")),
            // Helm 3.18 writes '/a/b', those before a.b.
            Err(error) if error.contains(name) || error.contains(&name[1..].replace('/', ".")) => {}
            Err(error) => accepted.push(format!(
                "{values} is refused without the name of the value: {error}"
            )),
        }
    }
    Ok(accepted)
}

/// Values that the chart's README does not name.
pub(super) fn undocumented(root: &Path) -> Result<Vec<String>> {
    let readme = read(root, &format!("{CHART}/README.md"))?;
    let names = paths(&schema(root)?).into_iter().map(|path| path.join("."));
    Ok(names
        .filter(|name| !readme.contains(&format!("`{name}`")))
        .map(|name| format!("{name}: not in {CHART}/README.md"))
        .collect())
}

/// Where the schema's settings are not those of the agent's one definition of them, or have other ranges.
pub(super) fn foreign_settings(root: &Path) -> Result<Vec<String>> {
    let defined = defined_settings(&read(root, "orb8-agent/src/settings.rs")?);
    ensure!(
        defined.contains_key("node"),
        "orb8-agent/src/settings.rs no longer defines settings as this check reads them"
    );
    let schema = schema(root)?;
    let offered = schema["properties"]["settings"]["properties"]
        .as_object()
        .with_context(|| format!("{CHART}/values.schema.json has no settings"))?;
    let mut found = Vec::new();
    for (key, range) in &defined {
        match offered.get(key) {
            None if NOT_OFFERED.contains(&key.as_str()) => {}
            None => found.push(format!("settings.{key}: the schema does not have it")),
            Some(_) if NOT_OFFERED.contains(&key.as_str()) => {
                found.push(format!("settings.{key}: the chart sets it itself"));
            }
            Some(setting) => {
                // A port of 0 is any free one, which nobody would find.
                let range = range.map(|(low, high)| (low.max(1), high));
                let bounds = setting["minimum"].as_u64().zip(setting["maximum"].as_u64());
                if range != bounds {
                    found.push(format!(
                        "settings.{key}: the agent takes {range:?}, the schema {bounds:?}"
                    ));
                }
            }
        }
    }
    let unknown = offered.keys().filter(|key| !defined.contains_key(*key));
    found.extend(unknown.map(|key| format!("settings.{key}: the agent has no such setting")));
    Ok(found)
}

/// Keys of the definitions in `settings!`, with the range of those that are whole numbers. The agent is not asked, for
/// this task does without building it.
fn defined_settings(source: &str) -> BTreeMap<String, Option<(u64, u64)>> {
    let lines = source.lines().skip_while(|line| *line != "settings! {");
    lines
        .take_while(|line| *line != "}")
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
        .filter_map(|line| {
            let (key, definition) = line.strip_suffix(';')?.split_once(": ")?;
            Some((key.to_owned(), whole_numbers(definition)))
        })
        .collect()
}

/// The range in `u32 = 1, between(1u32, 2_000u32)`.
fn whole_numbers(definition: &str) -> Option<(u64, u64)> {
    let number = |text: &str| {
        let (digits, _) = text.split_once('u')?;
        digits.replace('_', "").parse().ok()
    };
    let (_, range) = definition.split_once("between(")?;
    let (low, high) = range.split_once(')')?.0.split_once(", ")?;
    Some((number(low)?, number(high)?))
}

/// Where a version is not the workspace's, which the image is tagged with.
pub(super) fn other_versions(root: &Path) -> Result<Vec<String>> {
    let version = env!("CARGO_PKG_VERSION");
    let chart: Value = serde_saphyr::from_str(&read(root, &format!("{CHART}/Chart.yaml"))?)
        .with_context(|| format!("{CHART}/Chart.yaml"))?;
    let kustomization: Value = serde_saphyr::from_str(&read(root, "deploy/kustomization.yaml")?)
        .context("deploy/kustomization.yaml")?;
    let dockerfile = read(root, "Dockerfile")?;
    let argument = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("ARG VERSION="));
    let places = [
        ("VERSION in the Dockerfile", &json!(argument)),
        ("version in Chart.yaml", &chart["version"]),
        ("appVersion in Chart.yaml", &chart["appVersion"]),
        (
            "newTag in deploy/kustomization.yaml",
            &kustomization["images"][0]["newTag"],
        ),
    ];
    Ok(places
        .into_iter()
        .filter(|(_, found)| *found != version)
        .map(|(place, found)| format!("{place} is {found}, and the workspace's version is {version}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_paths() {
        let schema = json!({"properties": {
            "a": {"properties": {"b": {"type": "string"}, "c": {}}},
            "d": {"type": "object"},
            "global": {},
        }});
        assert_eq!(paths(&schema), [vec!["a", "b"], vec!["a", "c"], vec!["d"]]);
        let mut values = json!({"a": {"b": 1, "c": null}});
        assert_eq!(at(&values, &paths(&schema)[1]), Some(&Value::Null));
        remove(&mut values, &paths(&schema)[0]);
        assert_eq!(values, json!({"a": {"c": null}}));
        remove(&mut values, &paths(&schema)[2]);
        assert_eq!(values, json!({"a": {"c": null}}));
    }

    #[test]
    fn settings_are_read_from_their_definition() {
        let source = "
fn no(setting: u32) {}
settings! {
    /// Documentation: with a colon;
    flow_entries: u32 = 131_072, between(1024u32, 4_194_304u32);
    interval: Duration = Duration::from_secs(1), between(Duration::from_millis(100), Duration::from_secs(60));
    dns: bool = true, any;
}
fn nor(this: u32) {}
";
        let expected = [
            ("dns", None),
            ("flow_entries", Some((1024, 4_194_304))),
            ("interval", None),
        ];
        let expected: BTreeMap<String, _> = expected.map(|(key, range)| (key.to_owned(), range)).into();
        assert_eq!(defined_settings(source), expected);
    }
}
