//! Questions of somebody who may see some namespaces only: narrowed to them, and kept from asking about others.
//!
//! Conditions on the reporter's own end (pods, workloads, owners) are met together with a namespace that may be seen, so
//! that they tell of nothing else. Conditions on the other end (`peers`, `services`) could be tried until names of hidden
//! workloads are found; so they are put as `namespace/name` of namespaces that may be seen, and other names are refused.
//! Addresses, ports and kinds of the other end are told anyway, so they may be asked for.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use orb8_kubernetes::is_selector;
use orb8_proto::v1::{Endpoint, EndpointKind, FlowFilter, GpuFilter, Service, SyscallFilter};

use super::{refusal::Refusal, sight::Sight, sight::is_namespace};

/// Values of one filter: agents refuse more than 1024.
const VALUES: usize = 1000;
/// What `a/b` means a workload's kind by, and not a namespace: in any case of letters.
const WORKLOAD_KINDS: [&str; 8] = [
    "cronjob",
    "daemonset",
    "deployment",
    "job",
    "node",
    "replicaset",
    "replicationcontroller",
    "statefulset",
];
const KINDS: [(&str, EndpointKind); 7] = [
    ("external", EndpointKind::External),
    ("host", EndpointKind::Host),
    ("kube-apiserver", EndpointKind::KubeApiserver),
    ("node", EndpointKind::Node),
    ("pod", EndpointKind::Pod),
    ("process", EndpointKind::Process),
    ("service", EndpointKind::Service),
];

/// What was asked for at the other end, to be looked at again in the answer: where names were asked for, a row whose
/// visible part does not meet the conditions would tell of what is not visible.
#[derive(Debug, Default)]
pub(super) struct Peers {
    nets: Vec<IpNet>,
    kinds: Vec<EndpointKind>,
    names: bool,
}

impl Peers {
    /// Whether what may be told of the other end can be why the row is in the answer.
    pub(super) fn accounts_for(
        &self,
        peer: Option<&Endpoint>,
        wire_ip: &str,
        service: Option<&Service>,
        sight: &Sight,
    ) -> bool {
        if !self.names {
            return true;
        }
        let is_within = |ip: &str| {
            ip.parse::<IpAddr>()
                .is_ok_and(|ip| self.nets.iter().any(|net| net.contains(&ip)))
        };
        let by_service = service.is_some_and(|service| {
            sight.sees(&service.namespace) || self.kinds.contains(&EndpointKind::Service)
        });
        by_service
            || is_within(wire_ip)
            || peer.is_some_and(|peer| {
                sight.sees(&peer.namespace) || self.kinds.contains(&peer.kind()) || is_within(&peer.ip)
            })
    }
}

/// What `a/b` or `a/b/c` names.
enum Named<'a> {
    /// A namespace, before the rest.
    Namespace(&'a str),
    /// A kind of workload, in whatever namespace.
    Kind,
    /// A name alone.
    Name,
}

fn named(value: &str) -> Named<'_> {
    let Some((first, rest)) = value.split_once('/') else {
        return Named::Name;
    };
    let is_kind = WORKLOAD_KINDS.iter().any(|kind| kind.eq_ignore_ascii_case(first))
        || first.bytes().any(|byte| byte.is_ascii_uppercase());
    if is_kind && !rest.contains('/') {
        Named::Kind
    } else {
        Named::Namespace(first)
    }
}

/// Refuses names of namespaces that may not be seen.
async fn check<'a>(
    pods: &'a [String],
    others: impl IntoIterator<Item = &'a String>,
    sight: &mut Sight,
) -> Result<(), Refusal> {
    let pods = pods
        .iter()
        .filter(|pod| !is_selector(pod))
        .filter_map(|pod| pod.trim().split_once('/').map(|(namespace, _)| namespace));
    let others = others.into_iter().filter_map(|value| match named(value.trim()) {
        Named::Namespace(namespace) => Some(namespace),
        Named::Kind | Named::Name => None,
    });
    let namespaces: BTreeSet<String> = pods.chain(others).map(str::to_owned).collect();
    if let Some(wrong) = namespaces.iter().find(|name| !is_namespace(name)) {
        let shown: String = wrong.chars().take(64).collect();
        return Err(Refusal::Condition(format!("`{shown}` is not a namespace's name")));
    }
    sight.learn(namespaces.clone()).await;
    match namespaces.into_iter().find(|name| !sight.sees(name)) {
        Some(hidden) => Err(Refusal::Namespace(hidden)),
        None => Ok(()),
    }
}

/// Narrows a filter of flows, whose namespaces have been looked at.
pub(super) async fn flows(filter: &mut FlowFilter, sight: &mut Sight) -> Result<Peers, Refusal> {
    let mut looked_at = Peers::default();
    let mut names = Vec::new();
    let mut peers = Vec::new();
    for peer in std::mem::take(&mut filter.peers) {
        let peer = peer.trim().to_owned();
        if let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == peer) {
            looked_at.kinds.push(*kind);
            peers.push(peer);
        } else if let Some(net) = net(&peer) {
            looked_at.nets.push(net);
            peers.push(peer);
        } else if !peer.contains('/') && peer.contains('.') {
            let shown: String = peer.chars().take(64).collect();
            return Err(Refusal::Condition(format!(
                "peer `{shown}`: peers by DNS name are for operators; ask by address, kind, or namespace/name"
            )));
        } else {
            names.push(peer);
        }
    }
    looked_at.names = !names.is_empty();
    let others = filter.workloads.iter().chain(&filter.services).chain(&names);
    check(&filter.pods, others, sight).await?;
    filter.namespaces = sight.namespaces();
    peers.extend(qualified(names, &filter.namespaces)?);
    filter.peers = peers;
    filter.services = qualified(std::mem::take(&mut filter.services), &filter.namespaces)?;
    let values = filter.namespaces.len() + filter.peers.len() + filter.services.len();
    if values > VALUES {
        return Err(too_many(values));
    }
    Ok(looked_at)
}

/// Narrows a filter of calls.
pub(super) async fn syscalls(filter: &mut SyscallFilter, sight: &mut Sight) -> Result<(), Refusal> {
    check(&filter.pods, &filter.workloads, sight).await?;
    filter.namespaces = sight.namespaces();
    Ok(())
}

/// Narrows conditions on holders of GPUs.
pub(super) async fn gpus(filter: &mut GpuFilter, sight: &mut Sight) -> Result<(), Refusal> {
    check(&filter.pods, &filter.workloads, sight).await?;
    filter.namespaces = sight.namespaces();
    Ok(())
}

/// Narrows conditions on pods.
pub(super) async fn pods(
    namespaces: &mut Vec<String>,
    pods: &[String],
    workloads: &[String],
    sight: &mut Sight,
) -> Result<(), Refusal> {
    check(pods, workloads, sight).await?;
    *namespaces = sight.namespaces();
    Ok(())
}

/// Names that have no namespace, in each of these.
fn qualified(names: Vec<String>, namespaces: &[String]) -> Result<Vec<String>, Refusal> {
    let mut all = Vec::new();
    for name in names {
        // An empty name stays, for agents to refuse.
        if name.is_empty() || matches!(named(&name), Named::Namespace(_)) {
            all.push(name);
        } else {
            all.extend(namespaces.iter().map(|namespace| format!("{namespace}/{name}")));
        }
        if all.len() > VALUES {
            return Err(too_many(all.len()));
        }
    }
    Ok(all)
}

fn too_many(values: usize) -> Refusal {
    Refusal::Condition(format!(
        "the question has {values} conditions, more than {VALUES}: name fewer, or put the namespace before each name \
         (namespace/name)"
    ))
}

fn net(text: &str) -> Option<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.ok().or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_no_namespace() {
        let namespace = |value| match named(value) {
            Named::Namespace(namespace) => Some(namespace),
            Named::Kind | Named::Name => None,
        };
        assert_eq!(namespace("cart"), None);
        assert_eq!(namespace("shop/cart"), Some("shop"));
        assert_eq!(namespace("Deployment/cart"), None);
        assert_eq!(namespace("deployment/cart"), None);
        assert_eq!(namespace("Rollout/cart"), None);
        // Three parts begin with a namespace, whatever it is called.
        assert_eq!(namespace("job/Job/cart"), Some("job"));
        assert_eq!(namespace("shop/Deployment/cart"), Some("shop"));
    }

    #[test]
    fn conditions_stay_bounded() {
        let namespaces: Vec<String> = (0..200).map(|number| format!("n{number}")).collect();
        let names = |count: usize| vec!["a".to_owned(); count];
        assert_eq!(qualified(names(5), &namespaces).unwrap().len(), 1000);
        let error = qualified(names(6), &namespaces).unwrap_err();
        assert!(matches!(error, Refusal::Condition(why) if why.contains("namespace/name")));
    }
}
