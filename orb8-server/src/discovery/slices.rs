//! Agents as EndpointSlices tell them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::watch;

use super::{Agents, Found};
use crate::watching::Watched;

/// The port's name in the agents' Service.
const PORT_NAME: &str = "grpc";

/// Slices of one Service.
pub(super) struct Slices {
    inner: Mutex<Inner>,
    sender: watch::Sender<Option<Arc<Agents>>>,
}

#[derive(Default)]
struct Inner {
    slices: BTreeMap<String, EndpointSlice>,
    /// While all are listed anew: those that have been.
    listing: Option<HashSet<String>>,
}

impl Slices {
    pub(super) fn new(sender: watch::Sender<Option<Arc<Agents>>>) -> Self {
        Self {
            inner: Mutex::default(),
            sender,
        }
    }

    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells what the slices come to, once they are all known.
    fn publish(&self) {
        let agents = self.with(|inner| inner.listing.is_none().then(|| agents(inner.slices.values())));
        if let Some(agents) = agents {
            self.sender.send_if_modified(|known| {
                let changed = known.as_deref() != Some(&agents);
                if changed {
                    *known = Some(Arc::new(agents));
                }
                changed
            });
        }
    }
}

fn id(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

impl Watched<EndpointSlice> for Slices {
    fn apply(&self, slice: EndpointSlice) {
        self.with(|inner| {
            let id = id(&slice);
            if let Some(listed) = &mut inner.listing {
                listed.insert(id.clone());
            }
            inner.slices.insert(id, slice);
        });
        self.publish();
    }

    fn delete(&self, slice: EndpointSlice) {
        self.with(|inner| inner.slices.remove(&id(&slice)));
        self.publish();
    }

    fn begin(&self) {
        self.with(|inner| inner.listing = Some(HashSet::new()));
    }

    fn end(&self) {
        self.with(|inner| {
            if let Some(listed) = inner.listing.take() {
                inner.slices.retain(|id, _| listed.contains(id));
            }
        });
        self.publish();
    }

    fn len(&self) -> usize {
        self.with(|inner| inner.slices.len())
    }
}

/// Not ready, IPv6, pod, address: the least is taken.
type Rank = (bool, bool, String, String);

/// The agents in these slices: one for each node, whatever addresses it has. Of two on one node, one that is ready goes
/// before one that is not, IPv4 before IPv6, and a name before another: the choice is the same each time.
fn agents<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Agents {
    let mut best: BTreeMap<String, (Rank, Found)> = BTreeMap::new();
    let mut pods: BTreeMap<String, HashSet<String>> = BTreeMap::new();
    for slice in slices {
        let port = slice
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(PORT_NAME))
            .and_then(|port| port.port);
        let Some(port) = port else { continue };
        for endpoint in &slice.endpoints {
            let Some(address) = endpoint.addresses.first() else {
                continue;
            };
            let v6 = address.contains(':');
            let address = if v6 {
                format!("[{address}]:{port}")
            } else {
                format!("{address}:{port}")
            };
            let pod = endpoint.target_ref.as_ref().map_or_else(String::new, |target| {
                format!(
                    "{}/{}",
                    target.namespace.as_deref().unwrap_or_default(),
                    target.name.as_deref().unwrap_or_default()
                )
            });
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let node = endpoint.node_name.clone().unwrap_or_else(|| address.clone());
            pods.entry(node.clone()).or_default().insert(pod.clone());
            let rank = (!ready, v6, pod.clone(), address.clone());
            let found = Found {
                address,
                pod,
                note: String::new(),
            };
            match best.get(&node) {
                Some((other, _)) if *other <= rank => {}
                _ => drop(best.insert(node, (rank, found))),
            }
        }
    }
    best.into_iter()
        .map(|(node, (_, mut found))| {
            let mut others: Vec<&String> = pods[&node].iter().filter(|pod| **pod != found.pod).collect();
            others.sort();
            if let Some(other) = others.first() {
                found.note = format!("another agent is on this node too: {other}");
            }
            (node, found)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(family: &str, endpoints: &str, port: &str) -> EndpointSlice {
        serde_json::from_str(&format!(
            r#"{{"metadata":{{"name":"s-{family}"}},"addressType":"{family}","endpoints":[{endpoints}],
                 "ports":[{{"name":"metrics","port":9091}},{{"name":"{port}","port":9090}}]}}"#
        ))
        .unwrap()
    }

    fn endpoint(address: &str, node: &str, pod: &str, ready: bool) -> String {
        format!(
            r#"{{"addresses":["{address}"],"nodeName":"{node}","conditions":{{"ready":{ready}}},
                 "targetRef":{{"kind":"Pod","namespace":"orb8","name":"{pod}"}}}}"#
        )
    }

    #[test]
    fn a_node_with_two_addresses_has_one_agent() {
        let v4 = slice("IPv4", &endpoint("10.0.0.1", "n1", "a", true), "grpc");
        let v6 = slice("IPv6", &endpoint("fd00::1", "n1", "a", true), "grpc");
        let found = agents([&v6, &v4].into_iter());
        assert_eq!(found.len(), 1);
        assert_eq!(found["n1"].address, "10.0.0.1:9090");
        assert_eq!(
            (found["n1"].pod.as_str(), found["n1"].note.as_str()),
            ("orb8/a", "")
        );
        let only = agents([&v6].into_iter());
        assert_eq!(only["n1"].address, "[fd00::1]:9090");
    }

    #[test]
    fn who_is_ready_goes_first_and_who_is_not_is_not_forgotten() {
        let both = format!(
            "{},{}",
            endpoint("10.0.0.1", "n1", "a", false),
            endpoint("10.0.0.2", "n1", "b", true)
        );
        let found = agents([&slice("IPv4", &both, "grpc")].into_iter());
        assert_eq!(found["n1"].address, "10.0.0.2:9090");
        assert!(found["n1"].note.contains("orb8/a"));
        let unready = slice("IPv4", &endpoint("10.0.0.1", "n1", "a", false), "grpc");
        assert_eq!(agents([&unready].into_iter()).len(), 1);
        assert!(agents([&slice("IPv4", &both, "other")].into_iter()).is_empty());
    }

    #[test]
    fn nothing_is_told_before_all_is_known_and_what_is_gone_goes() {
        let (sender, receiver) = watch::channel(None);
        let slices = Slices::new(sender);
        slices.begin();
        slices.apply(slice("IPv4", &endpoint("10.0.0.1", "n1", "a", true), "grpc"));
        assert!(receiver.borrow().is_none());
        slices.end();
        assert_eq!(receiver.borrow().as_ref().unwrap().len(), 1);
        slices.begin();
        slices.end();
        assert!(receiver.borrow().as_ref().unwrap().is_empty());
    }
}
