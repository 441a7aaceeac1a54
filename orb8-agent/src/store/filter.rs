//! Filters of a query, checked once and then matched against flows.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use orb8_common::network::{FlowKey, kind};
use orb8_kubernetes::{means_pod, means_workload};
use orb8_proto::v1;

use super::{
    Direction,
    flows::{Flow, MAPPED},
    interned::Via,
};
use crate::identity::owner::{Kind, Owner, OwnerId, OwnerTable};

/// What is wrong with a query.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueryError {
    /// Not an address.
    #[error("`{0}` is not an IP address or CIDR (such as 10.0.0.7, 10.0.0.0/8 or fd00::/8)")]
    Address(String),
    /// Not a protocol number.
    #[error("protocol {0} is not an IP protocol number (0 to 255)")]
    Protocol(u32),
    /// Not a port.
    #[error("port {0} is not a port number (0 to 65535)")]
    Port(u32),
    /// Not a direction.
    #[error("direction {0} is not known to this agent (0 both, 1 ingress, 2 egress)")]
    Direction(i32),
    /// Not a sort order.
    #[error("sort order {0} is not known to this agent (0 to 5)")]
    Sort(i32),
    /// Not a choice of reports.
    #[error("choice of reports {0} is not known to this agent (0 all, 1 own)")]
    Reports(i32),
    /// Nothing to look for.
    #[error("a value in `{0}` of the filter is empty; give a name or leave it out")]
    Empty(&'static str),
    /// Not a time.
    #[error("`{name}` of {seconds} s and {nanos} ns is not a time after 1970")]
    Time {
        /// Name of the field.
        name: &'static str,
        /// Its seconds.
        seconds: i64,
        /// Its nanoseconds.
        nanos: i32,
    },
    /// The span is empty.
    #[error("`since` is not before `until`")]
    EmptySpan,
    /// Too much to look for.
    #[error("the filter has {0} values, more than the {max}", max = MAX_VALUES)]
    TooMany(usize),
}

/// Values of a filter, all lists together: a query must not be able to hold the agent up.
const MAX_VALUES: usize = 1024;

/// How [`Filter`] takes a pod by its uid: what label selectors have been resolved to before.
pub(crate) const UID: &str = "uid:";

/// A checked filter.
#[derive(Debug)]
pub(crate) struct Filter {
    ends: Ends,
    services: Vec<String>,
    peers: Vec<Peer>,
    nets: Vec<Net>,
    ports: Vec<u16>,
    protocols: Vec<u8>,
    direction: Option<Direction>,
}

/// What one end must be, all at once.
#[derive(Debug)]
struct Ends {
    namespaces: Vec<String>,
    pods: Vec<String>,
    uids: HashSet<String>,
    workloads: Vec<String>,
    owners: Vec<String>,
}

impl Ends {
    fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            pods,
            uids,
            workloads,
            owners,
        } = self;
        [namespaces, pods, workloads, owners]
            .iter()
            .all(|list| list.is_empty())
            && uids.is_empty()
    }

    fn match_owner(&self, owner: &Owner) -> bool {
        let (namespace, name) = owner
            .named_pod()
            .map(super::super::identity::owner::PodName::parts)
            .unwrap_or_default();
        let namespace = match (owner.kind, owner.alias.split_once('/')) {
            (Kind::Service, Some((namespace, _))) => namespace,
            _ => namespace,
        };
        let any = |list: &[String], matches: &dyn Fn(&str) -> bool| {
            list.is_empty() || list.iter().any(|wanted| matches(wanted))
        };
        let uid = owner.pod.as_ref().is_some_and(|pod| self.uids.contains(&pod.uid));
        any(&self.namespaces, &|wanted| wanted == namespace)
            && (uid
                || !self.pods.is_empty() && any(&self.pods, &|wanted| means_pod(namespace, name, wanted))
                || self.pods.is_empty() && self.uids.is_empty())
            && any(&self.workloads, &|wanted| is_workload(owner, wanted))
            && any(&self.owners, &|wanted| is_called(owner, wanted))
    }
}

/// What the other end must be.
#[derive(Debug)]
enum Peer {
    Net(Net),
    Kind(Kind),
    Name(String),
}

impl Peer {
    fn parse(text: &str) -> Self {
        const KINDS: [Kind; 7] = [
            Kind::External,
            Kind::Host,
            Kind::Process,
            Kind::Pod,
            Kind::Service,
            Kind::Node,
            Kind::ApiServer,
        ];
        match KINDS.into_iter().find(|kind| kind.name() == text) {
            Some(kind) => Self::Kind(kind),
            None => Net::parse(text).map_or_else(|_| Self::Name(text.to_owned()), Self::Net),
        }
    }

    /// `owner` is the peer, `address` its real one.
    fn matches(&self, owner: &Owner, wire: &[u8; 16], real: Option<IpAddr>, service: &str) -> bool {
        match self {
            Self::Net(net) => net.contains(wire) || real.is_some_and(|real| net.contains(&octets(real))),
            Self::Kind(Kind::Service) => owner.kind == Kind::Service || !service.is_empty(),
            Self::Kind(kind) => owner.kind == *kind,
            Self::Name(wanted) => {
                let (namespace, name) = owner
                    .named_pod()
                    .map(super::super::identity::owner::PodName::parts)
                    .unwrap_or_default();
                means_pod(namespace, name, wanted)
                    || is_workload(owner, wanted)
                    || is_service(service, wanted)
                    || is_called(owner, wanted)
                    || owner.alias == *wanted
                    || owner.kind == Kind::Service && is_service(&owner.alias, wanted)
            }
        }
    }
}

fn is_workload(owner: &Owner, wanted: &str) -> bool {
    owner
        .named_pod()
        .is_some_and(|pod| means_workload(pod.parts().0, &pod.workload, wanted))
}

/// A Service goes by `name` and `namespace/name`.
fn is_service(service: &str, wanted: &str) -> bool {
    !service.is_empty()
        && (service == wanted || service.split_once('/').is_some_and(|(_, name)| name == wanted))
}

pub(crate) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// A network, as the upper bits of a 16-byte address.
#[derive(Clone, Copy, Debug)]
struct Net {
    bits: u128,
    mask: u128,
    v4: bool,
}

impl Net {
    fn parse(text: &str) -> Result<Self, QueryError> {
        let error = || QueryError::Address(text.to_owned());
        let trimmed = text.trim();
        let net = match trimmed.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => trimmed.parse::<IpNet>().map_err(|_| error())?,
        };
        let (address, mut len) = match net {
            IpNet::V4(net) => (net.addr().to_ipv6_mapped(), net.prefix_len() + 96),
            IpNet::V6(net) => (net.addr(), net.prefix_len()),
        };
        // ::ffff:10.0.0.1 means the IPv4 address.
        let v4 = matches!(net, IpNet::V4(_)) || (address.to_ipv4_mapped().is_some() && len >= 96);
        len = len.min(128);
        let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
        Ok(Self {
            bits: u128::from(address) & mask,
            mask,
            v4,
        })
    }

    fn contains(&self, address: &[u8; 16]) -> bool {
        u128::from_be_bytes(*address) & self.mask == self.bits && address.starts_with(&MAPPED) == self.v4
    }
}

impl Filter {
    pub(crate) fn new(filter: Option<&v1::FlowFilter>) -> Result<Self, QueryError> {
        let default = v1::FlowFilter::default();
        let v1::FlowFilter {
            namespaces,
            pods,
            owners,
            addresses,
            ports,
            protocols,
            direction,
            workloads,
            services,
            peers,
        } = filter.unwrap_or(&default);
        let lists = [
            ("namespaces", namespaces),
            ("pods", pods),
            ("owners", owners),
            ("workloads", workloads),
            ("services", services),
            ("peers", peers),
        ];
        // Selectors have been resolved to as many pods as the node knows.
        let named = lists
            .iter()
            .flat_map(|(_, list)| *list)
            .filter(|value| !value.starts_with(UID));
        let values = named.count() + addresses.len() + ports.len() + protocols.len();
        if values > MAX_VALUES {
            return Err(QueryError::TooMany(values));
        }
        if let Some((name, _)) = lists
            .iter()
            .find(|(_, list)| list.iter().any(|value| value.trim().is_empty()))
        {
            return Err(QueryError::Empty(name));
        }
        let direction = match v1::Direction::try_from(*direction) {
            Ok(v1::Direction::Unspecified) => None,
            Ok(v1::Direction::Ingress) => Some(Direction::Ingress),
            Ok(v1::Direction::Egress) => Some(Direction::Egress),
            Err(_) => return Err(QueryError::Direction(*direction)),
        };
        let trimmed = |list: &[String]| -> Vec<String> {
            list.iter()
                .map(|value| value.trim())
                .filter(|value| !value.starts_with(UID))
                .map(str::to_owned)
                .collect()
        };
        Ok(Self {
            ends: Ends {
                namespaces: trimmed(namespaces),
                pods: trimmed(pods),
                uids: pods
                    .iter()
                    .filter_map(|pod| pod.strip_prefix(UID))
                    .map(str::to_owned)
                    .collect(),
                workloads: trimmed(workloads),
                owners: trimmed(owners),
            },
            services: trimmed(services),
            peers: trimmed(peers).iter().map(|peer| Peer::parse(peer)).collect(),
            nets: addresses
                .iter()
                .map(|address| Net::parse(address))
                .collect::<Result<_, _>>()?,
            ports: ports
                .iter()
                .map(|&port| u16::try_from(port).map_err(|_| QueryError::Port(port)))
                .collect::<Result<_, _>>()?,
            protocols: protocols
                .iter()
                .map(|&number| u8::try_from(number).map_err(|_| QueryError::Protocol(number)))
                .collect::<Result<_, _>>()?,
            direction,
        })
    }

    /// Whether it asks for ends.
    pub(crate) fn asks_for_owners(&self) -> bool {
        !self.ends.is_empty()
    }

    /// Whether it asks for Services or peers.
    pub(crate) fn asks_for_peers(&self) -> bool {
        !self.services.is_empty() || !self.peers.is_empty()
    }

    /// Whether the Service and the other end of a flow meet their conditions.
    pub(crate) fn matches_peer(&self, flow: &Flow, peer: &Owner, via: Option<&Via>) -> bool {
        let service = via.map_or("", |via| &via.service);
        let (wire, real) = match flow.direction() {
            Direction::Egress => (&flow.key.dst, via.and_then(|via| via.dst)),
            Direction::Ingress => (&flow.key.src, via.and_then(|via| via.src)),
        };
        let real = real.map(|(address, _)| address);
        // A Service whose backend is not known is the peer itself.
        let service = match peer.kind {
            Kind::Service if service.is_empty() => &peer.alias,
            _ => service,
        };
        (self.services.is_empty() || self.services.iter().any(|wanted| is_service(service, wanted)))
            && (self.peers.is_empty()
                || !flow.is_remainder()
                    && self
                        .peers
                        .iter()
                        .any(|wanted| wanted.matches(peer, wire, real, service)))
    }

    /// Whether the flow went through a Service of a wanted namespace, and nothing else is wanted of its ends.
    pub(crate) fn matches_service_namespace(&self, via: Option<&Via>) -> bool {
        let Ends {
            namespaces,
            pods,
            uids,
            workloads,
            owners,
        } = &self.ends;
        let only = pods.is_empty() && uids.is_empty() && workloads.is_empty() && owners.is_empty();
        only && via
            .and_then(|via| via.service.split_once('/'))
            .is_some_and(|(namespace, _)| namespaces.iter().any(|wanted| wanted == namespace))
    }

    /// Whether it asks for what a remainder can't tell.
    pub(crate) fn asks_for_detail(&self) -> bool {
        !self.nets.is_empty() || !self.ports.is_empty() || !self.protocols.is_empty()
    }

    /// Whether all conditions but those on owners and on what a remainder lacks are met.
    pub(crate) fn matches_direction(&self, flow: &Flow) -> bool {
        self.direction
            .is_none_or(|direction| direction == flow.direction())
    }

    /// Whether addresses, ports and protocol meet their conditions.
    pub(crate) fn matches_detail(&self, flow: &Flow) -> bool {
        if !self.asks_for_detail() {
            return true;
        }
        let key = &flow.key;
        let is_ip = key.kind & (kind::IPV4 | kind::IPV6) != 0;
        is_ip
            && !flow.is_remainder()
            && (self.protocols.is_empty() || self.protocols.contains(&key.protocol))
            && (self.ports.is_empty()
                || flow.has_ports()
                    && self
                        .ports
                        .iter()
                        .any(|&port| port == key.sport || port == key.dport))
            && (self.nets.is_empty() || self.matches_address(key))
    }

    fn matches_address(&self, key: &FlowKey) -> bool {
        self.nets
            .iter()
            .any(|net| net.contains(&key.src) || net.contains(&key.dst))
    }

    pub(crate) fn matches_owner(&self, owner: &Owner) -> bool {
        self.ends.match_owner(owner)
    }
}

/// Whether an owner goes by a name: its unit with or without `.service`, its container's name or id or at least four
/// digits of its beginning, process, network namespace or cgroup.
pub(crate) fn is_called(owner: &Owner, wanted: &str) -> bool {
    wanted == owner.unit
        || owner.unit.strip_suffix(".service") == Some(wanted)
        || wanted == owner.container
        || wanted.len() >= 4 && owner.container.starts_with(wanted)
        || wanted == owner.process
        || wanted == owner.netns
        || wanted == owner.cgroup
}

/// Remembers which owners match, for there are far fewer of them than flows.
#[derive(Debug)]
pub(crate) struct OwnerMatches<'a> {
    filter: &'a Filter,
    owners: &'a OwnerTable,
    known: Vec<Option<bool>>,
}

impl<'a> OwnerMatches<'a> {
    pub(crate) const fn new(filter: &'a Filter, owners: &'a OwnerTable) -> Self {
        Self {
            filter,
            owners,
            known: Vec::new(),
        }
    }

    pub(crate) fn matches(&mut self, id: OwnerId) -> bool {
        let index = id.0 as usize;
        if self.known.len() <= index {
            self.known.resize(index + 1, None);
        }
        *self.known[index].get_or_insert_with(|| self.filter.matches_owner(&self.owners.get(id)))
    }
}

/// An address as people write it: IPv4 dotted.
pub(crate) fn display(address: &[u8; 16]) -> String {
    Ipv6Addr::from(*address).to_canonical().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(net: &str, address: &str) -> bool {
        let address = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
            Ok(IpAddr::V6(v6)) => v6.octets(),
            Err(error) => panic!("{address}: {error}"),
        };
        Net::parse(net).is_ok_and(|net| net.contains(&address))
    }

    #[test]
    fn networks_contain_their_addresses() {
        assert!(contains("10.0.0.7", "10.0.0.7"));
        assert!(!contains("10.0.0.7", "10.0.0.8"));
        assert!(contains("10.1.2.3/8", "10.9.9.9"));
        assert!(contains("::ffff:10.0.0.7", "10.0.0.7"));
        assert!(contains("0.0.0.0/0", "1.2.3.4"));
        assert!(!contains("0.0.0.0/0", "fd00::1"));
        assert!(contains("::/0", "fd00::1"));
        assert!(!contains("::/0", "1.2.3.4"));
        assert!(contains("fd00::/8", "fdff::1"));
    }

    #[test]
    fn errors_name_the_value() {
        for bad in ["10.0.0.256", "10.0.0.0/33", "", "pod", "1.2.3.4/"] {
            assert_eq!(Net::parse(bad).err(), Some(QueryError::Address(bad.to_owned())));
        }
        let filter = v1::FlowFilter {
            protocols: vec![6, 256],
            ..Default::default()
        };
        assert_eq!(Filter::new(Some(&filter)).err(), Some(QueryError::Protocol(256)));
        let filter = v1::FlowFilter {
            ports: vec![65536],
            ..Default::default()
        };
        assert_eq!(Filter::new(Some(&filter)).err(), Some(QueryError::Port(65536)));
        let filter = v1::FlowFilter {
            owners: vec![" ".into()],
            ..Default::default()
        };
        assert_eq!(
            Filter::new(Some(&filter)).err(),
            Some(QueryError::Empty("owners"))
        );
        let filter = v1::FlowFilter {
            direction: 3,
            ..Default::default()
        };
        assert_eq!(Filter::new(Some(&filter)).err(), Some(QueryError::Direction(3)));
        let filter = v1::FlowFilter {
            ports: vec![1; 2000],
            ..Default::default()
        };
        assert_eq!(Filter::new(Some(&filter)).err(), Some(QueryError::TooMany(2000)));
    }

    #[test]
    fn owners_go_by_their_names() {
        let owner = Owner {
            unit: "nginx.service".into(),
            container: "0123456789abcdef".into(),
            process: "worker".into(),
            netns: "blue".into(),
            ..Owner::default()
        };
        for name in [
            "nginx",
            "nginx.service",
            "0123",
            "0123456789abcdef",
            "worker",
            "blue",
        ] {
            assert!(is_called(&owner, name), "{name}");
        }
        for name in ["ngin", "012", "123456", "work", "nginx.serv"] {
            assert!(!is_called(&owner, name), "{name}");
        }
        assert!(!is_called(&Owner::default(), "x"));
    }
}
