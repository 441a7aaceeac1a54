//! Whose page it is: an exporter that is asked by a name of the whole cluster tells of another node's GPUs.
//!
//! A page says where it comes from by the label `Hostname` (of late `hostname`), which is the node's name, or the exporter's
//! pod's, or the address of an engine that the exporter asks, or missing. So by itself it proves nothing. GPUs are another
//! node's for certain only
//! 1. if this node's are known (NVML or its driver tells them), and none of those with this label is among them;
//! 2. where they are not known: if the label is another node's name, or that of a pod that runs elsewhere; or if others of the
//!    same page have this node's name, as a Prometheus has them that serves the pages of several.
//!
//! Everything else is taken for this node's.

use std::collections::{BTreeMap, BTreeSet};

use crate::{id::Uuid, sample::Device};

/// GPUs of another node, that a page tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What the page calls it; none: nothing.
    pub host: Option<String>,
    /// Their UUIDs, each once.
    pub uuids: BTreeSet<Uuid>,
}

/// Takes what is another node's out of a page's devices. `own`: UUIDs of this node's GPUs, as far as they are known.
/// `is_elsewhere`: whether a name is another node's, or that of something on it.
pub(crate) fn take(
    devices: &mut Vec<Device>,
    own: &BTreeSet<Uuid>,
    node: &str,
    is_elsewhere: impl Fn(&str) -> bool,
) -> Vec<Foreign> {
    let mut hosts: BTreeMap<Option<String>, BTreeSet<Uuid>> = BTreeMap::new();
    for device in devices.iter() {
        let uuids = hosts.entry(device.host.clone()).or_default();
        uuids.insert(device.key.uuid.clone());
    }
    let names_us = hosts.keys().flatten().any(|host| host == node);
    hosts.retain(|host, uuids| {
        if !own.is_empty() {
            return uuids.is_disjoint(own);
        }
        host.as_deref()
            .is_some_and(|host| host != node && (names_us || is_elsewhere(host)))
    });
    devices.retain(|device| !hosts.contains_key(&device.host));
    hosts
        .into_iter()
        .map(|(host, uuids)| Foreign { host, uuids })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::DeviceKey;

    fn page(devices: &[(&str, Option<&str>)]) -> Vec<Device> {
        devices
            .iter()
            .map(|(uuid, host)| {
                let mut device = Device::new(DeviceKey {
                    uuid: Uuid::new(*uuid),
                    instance: None,
                });
                device.host = host.map(str::to_owned);
                device
            })
            .collect()
    }

    /// UUIDs that stay, and hosts that do not.
    fn taken(devices: &[(&str, Option<&str>)], own: &[&str]) -> (Vec<String>, Vec<Option<String>>) {
        let mut devices = page(devices);
        let own = own.iter().map(|uuid| Uuid::new(*uuid)).collect();
        let foreign = take(&mut devices, &own, "n1", |host| {
            host == "n2" || host == "exporter-n2"
        });
        let stay = devices.iter().map(|device| device.key.uuid.to_string()).collect();
        (stay, foreign.into_iter().map(|foreign| foreign.host).collect())
    }

    fn all_stay(devices: &[(&str, Option<&str>)], own: &[&str]) {
        let (stay, foreign) = taken(devices, own);
        assert_eq!(
            (stay.len(), foreign.len()),
            (devices.len(), 0),
            "{devices:?} {own:?}"
        );
    }

    #[test]
    fn what_may_be_this_nodes_stays() {
        for host in [
            None,
            Some("n1"),
            Some("nvidia-dcgm-exporter-cwbcm"),
            Some("localhost"),
            Some("10.0.0.7"),
        ] {
            all_stay(&[("GPU-a", host), ("GPU-b", host)], &[]);
            // One that NVML does not know, as it cannot know one that was lost when it began, beside one that it does.
            all_stay(&[("GPU-a", host), ("GPU-b", host)], &["gpu-A", "GPU-c"]);
        }
        // Whatever it is called: the GPUs are this node's.
        all_stay(&[("GPU-a", Some("n2"))], &["GPU-a"]);
    }

    #[test]
    fn other_gpus_than_this_nodes_are_anothers() {
        for host in [None, Some("n1"), Some("localhost")] {
            let (stay, foreign) = taken(&[("GPU-x", host)], &["GPU-a"]);
            assert_eq!((stay.len(), foreign), (0, vec![host.map(str::to_owned)]));
        }
        let (stay, foreign) = taken(
            &[
                ("GPU-a", Some("h1")),
                ("GPU-x", Some("h2")),
                ("GPU-b", Some("h1")),
            ],
            &["GPU-a"],
        );
        assert_eq!((stay.len(), foreign), (2, vec![Some("h2".to_owned())]));
    }

    #[test]
    fn another_nodes_name_is_anothers_where_gpus_are_not_known() {
        for host in ["n2", "exporter-n2"] {
            let (stay, foreign) = taken(&[("GPU-x", Some(host))], &[]);
            assert_eq!((stay.len(), foreign), (0, vec![Some(host.to_owned())]));
        }
        let (stay, foreign) = taken(
            &[("GPU-a", Some("n1")), ("GPU-x", Some("n9")), ("GPU-b", None)],
            &[],
        );
        assert_eq!(
            (stay, foreign),
            (
                vec!["GPU-a".to_owned(), "GPU-b".to_owned()],
                vec![Some("n9".to_owned())]
            )
        );
    }
}
