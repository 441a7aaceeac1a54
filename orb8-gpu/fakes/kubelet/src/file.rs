//! The file that says who holds what.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use orb8_gpu::kubelet::api::{
    ClaimResource, ContainerDevices, ContainerResources, DynamicResource, PodResources,
};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    namespace: String,
    name: String,
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Container {
    name: String,
    #[serde(default)]
    devices: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    claims: BTreeMap<String, Claim>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    driver: String,
    devices: Vec<String>,
}

/// Pods of a file.
///
/// # Errors
/// If it cannot be read, or has another form.
pub fn read(path: &Path) -> anyhow::Result<Vec<PodResources>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let pods: Vec<Pod> =
        serde_json::from_str(&text).with_context(|| format!("{} has another form", path.display()))?;
    Ok(pods.into_iter().map(message).collect())
}

fn message(pod: Pod) -> PodResources {
    let containers = pod.containers.into_iter().map(|container| ContainerResources {
        name: container.name,
        devices: container
            .devices
            .into_iter()
            .map(|(resource_name, device_ids)| ContainerDevices {
                resource_name,
                device_ids,
            })
            .collect(),
        dynamic_resources: container
            .claims
            .into_iter()
            .map(|(name, claim)| claimed(&name, claim))
            .collect(),
    });
    PodResources {
        name: pod.name,
        namespace: pod.namespace,
        containers: containers.collect(),
    }
}

fn claimed(name: &str, claim: Claim) -> DynamicResource {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    DynamicResource {
        claim_name: name.to_owned(),
        claim_namespace: namespace.to_owned(),
        claim_resources: claim
            .devices
            .into_iter()
            .map(|device_name| ClaimResource {
                driver_name: claim.driver.clone(),
                pool_name: "node".to_owned(),
                device_name,
            })
            .collect(),
    }
}
