//! The names of flows' ends: what this machine tells ([`Identity`]), under the names that the cluster gives it
//! ([`Cluster`]), with connections seen through translation ([`Conntrack`]) and DNS answers ([`DnsNames`]).
//!
//! Order of trust, for whoever is at an address at a time: the API server's own address and port; a pod whose span of
//! ownership holds that time; this machine; another node; a Service; a namespace of this machine that has the address
//! set; a DNS answer. What none of these knows is external.

use std::{net::IpAddr, sync::Arc, time::Duration};

use orb8_common::network::{FlowKey, kind, protocol};

use crate::{
    conntrack::{Conntrack, Translation, Tuple},
    dns::DnsNames,
    identity::{
        Comm, Identity, IdentityError, Limit,
        cgroup::CgroupName,
        owner::{Attribution, Kind, Owner, PodName},
        pod_of_uid,
    },
    interfaces::Interface,
    kubernetes::{Cluster, Holder, Pod},
    pipeline::ip,
    store::{Direction, Via},
};

/// All that names come from.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) identity: Identity,
    /// `None`: no Kubernetes, or not known yet.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// `None`: this kernel tracks no connections.
    pub(crate) conntrack: Option<Conntrack>,
    pub(crate) dns: DnsNames,
}

impl Names {
    /// Brings them up to date; see [`Identity::refresh`].
    ///
    /// # Errors
    /// If the kernel does not list its addresses; the last known ones stay.
    pub(crate) fn refresh(&mut self, now_ns: u64) -> Result<(), IdentityError> {
        let refreshed = self.identity.refresh();
        self.see_residents(now_ns);
        refreshed
    }

    /// Looks at containers that have just come; see [`Identity::meet_newcomers`].
    pub(crate) fn meet_newcomers(&mut self, now_ns: u64) -> (bool, Option<Duration>) {
        let (met, waiting) = self.identity.meet_newcomers();
        if met {
            self.see_residents(now_ns);
        }
        (met, waiting)
    }

    fn see_residents(&self, now_ns: u64) {
        if let Some(cluster) = &self.cluster {
            cluster.see_residents(self.identity.pod_addresses(), now_ns);
        }
    }

    /// Owner of what an interface carries, if that is known, for certain, better than `so_far`; see
    /// [`Identity::interface_owner`]. A name that is known is given up for a better one only: the process it was found by
    /// may end before its interface does.
    pub(crate) fn interface_owner(&mut self, interface: &Interface, so_far: &Owner) -> Option<Owner> {
        if so_far.pod.is_some() {
            // No other pod will have this interface.
            return self.better(so_far);
        }
        let local = self.identity.interface_owner(interface);
        let owner = self.better(&local).unwrap_or(local);
        let better = certainty(&owner) > certainty(so_far) && self.identity.confirms(interface);
        better.then_some(owner)
    }

    /// Owner of a socket; see [`Identity::socket_owner`].
    pub(crate) fn socket_owner(
        &mut self,
        cgroup_id: u64,
        tgid: u32,
        comm: Option<Comm>,
        local: Option<(u8, IpAddr, u16)>,
    ) -> Owner {
        let owner = self.identity.socket_owner(cgroup_id, tgid, comm, local);
        self.better(&owner).unwrap_or(owner)
    }

    /// An owner's names as the cluster knows them, if that is more than it has.
    pub(crate) fn better(&self, owner: &Owner) -> Option<Owner> {
        let (cluster, pod) = (self.cluster.as_ref()?, owner.pod.as_ref()?);
        let is_id = CgroupName::is_container_id(&owner.container);
        if !pod.full.is_empty() && !is_id {
            return None;
        }
        let known = cluster.pod_by_uid(&pod.uid)?;
        let mut better = Owner {
            kind: Kind::Pod,
            attribution: owner.attribution,
            pod: Some(pod_name(&known)),
            container: owner.container.clone(),
            cgroup: owner.cgroup.clone(),
            ..Owner::default()
        };
        if matches!(owner.attribution, Attribution::Cgroup | Attribution::Socket) {
            // Its status comes after the container.
            if let Some(container) = known.containers.iter().find(|c| c.id == owner.container) {
                better.container.clone_from(&container.name);
            }
        } else {
            // An interface is all containers'.
            better.cgroup.clear();
            better.container = only_container(&known);
        }
        (better != *owner).then_some(better)
    }

    /// The pod that holds `address` at `time_ns` (Unix time): a [`Holder::Pod`] or [`Holder::Resident`], with the number
    /// that stands for this ownership.
    pub(crate) fn pod_at(&self, address: IpAddr, time_ns: u64) -> Option<(Holder, u64)> {
        let holder = self.cluster.as_ref()?.holder(address, time_ns)?;
        match holder {
            Holder::Pod(_, claim) | Holder::Resident(_, claim) => Some((holder, claim)),
            Holder::Node(_) | Holder::Service => None,
        }
    }

    /// Whether who is at an address depends on the port.
    pub(crate) fn port_matters(&self, address: IpAddr) -> bool {
        self.cluster
            .as_ref()
            .is_some_and(|cluster| cluster.is_service_ip(address) || cluster.has_api_server(address))
    }

    /// Who is at an address that no pod holds, seen from the observation point `point`.
    pub(crate) fn no_pod_at(
        &mut self,
        address: IpAddr,
        port: u16,
        protocol: u8,
        point: u64,
        time_ns: u64,
    ) -> Owner {
        if let Some(owner) = self.in_cluster(address, port, protocol, time_ns) {
            return owner;
        }
        let owner = self.identity.address_owner(address);
        if owner.kind != Kind::External {
            return self.better(&owner).unwrap_or(owner);
        }
        match self.dns.name(point, address, time_ns) {
            Some(name) => Owner {
                kind: Kind::External,
                attribution: Attribution::Dns,
                alias: name.to_string(),
                ..Owner::default()
            },
            None => owner,
        }
    }

    fn in_cluster(&self, address: IpAddr, port: u16, protocol: u8, time_ns: u64) -> Option<Owner> {
        let cluster = self.cluster.as_ref()?;
        let holder = cluster.holder(address, time_ns);
        let (kind, attribution, alias) = match holder {
            holder if cluster.is_api_server(address, port) => {
                let node = match holder {
                    Some(Holder::Node(node)) => node.name.to_string(),
                    _ => String::new(),
                };
                (Kind::ApiServer, Attribution::Endpoint, node)
            }
            Some(Holder::Service) => {
                let service = cluster.service_at(address, port, protocol);
                let name = service.map(|service| service.to_string());
                (Kind::Service, Attribution::ServiceIp, name.unwrap_or_default())
            }
            Some(Holder::Node(node)) if !self.identity.is_host_address(address) => {
                (Kind::Node, Attribution::NodeIp, node.name.to_string())
            }
            _ => return None,
        };
        Some(Owner {
            kind,
            attribution,
            alias,
            ..Owner::default()
        })
    }

    /// Who is at an address.
    pub(crate) fn peer(
        &mut self,
        address: IpAddr,
        port: u16,
        protocol: u8,
        point: u64,
        time_ns: u64,
    ) -> Owner {
        match self.pod_at(address, time_ns) {
            Some((holder, _)) => holder_peer(&holder),
            None => self.no_pod_at(address, port, protocol, point, time_ns),
        }
    }

    /// How a flow's connection goes, where that is not what its packets say, or where it is a Service's. `ask`: the kernel
    /// may be asked about a connection that is not known.
    pub(crate) fn via(&mut self, key: &FlowKey, ask: bool) -> Option<Via> {
        let has_ports = key.kind & (kind::IPV4 | kind::IPV6) != 0
            && key.kind & kind::FRAGMENT == 0
            && matches!(key.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        if !has_ports {
            return None;
        }
        let (src, dst) = ((ip(&key.src), key.sport), (ip(&key.dst), key.dport));
        let service_of = |(address, port)| self.service_at(address, port, key.protocol);
        let asked = [(src, service_of(src)), (dst, service_of(dst))]
            .into_iter()
            .find_map(|(end, service)| Some((end, service?)));
        if let Some(translation) = self.translation(key, ask && asked.is_some()) {
            return self.translated(src, dst, key.protocol, &translation);
        }
        let cluster = self.cluster.as_ref()?;
        if let Some((end, service)) = asked {
            return Some(Via {
                service,
                attribution: Attribution::ServiceIp,
                asked: Some(end),
                ..Via::default()
            });
        }
        let service = [dst, src]
            .into_iter()
            .find_map(|(address, port)| cluster.service_of_endpoint(address, port, key.protocol))?;
        Some(Via {
            service,
            attribution: Attribution::Endpoint,
            ..Via::default()
        })
    }

    fn service_at(&self, address: IpAddr, port: u16, protocol: u8) -> Option<Arc<str>> {
        let cluster = self.cluster.as_ref()?;
        cluster.service_at(address, port, protocol).or_else(|| {
            // A node's ports are open at all its addresses.
            let service = cluster.service_at_node_port(port, protocol)?;
            self.identity.is_host_address(address).then_some(service)
        })
    }

    fn translation(&mut self, key: &FlowKey, ask: bool) -> Option<Translation> {
        let tuple = Tuple {
            protocol: key.protocol,
            src: ip(&key.src),
            dst: ip(&key.dst),
            sport: key.sport,
            dport: key.dport,
        };
        self.conntrack.as_mut()?.translation(&tuple, ask)
    }

    fn translated(
        &self,
        src: (IpAddr, u16),
        dst: (IpAddr, u16),
        protocol: u8,
        translation: &Translation,
    ) -> Option<Via> {
        let (client, backend) = (translation.client, translation.backend);
        let (real_src, real_dst) = if translation.towards_backend {
            (client, backend)
        } else {
            (backend, client)
        };
        let asked = translation.asked;
        let service = (asked != backend)
            .then(|| self.service_at(asked.0, asked.1, protocol))
            .flatten();
        let via = Via {
            asked: service.is_some().then_some(asked),
            service: service.unwrap_or_default(),
            attribution: Attribution::Conntrack,
            src: (real_src != src).then_some(real_src),
            dst: (real_dst != dst).then_some(real_dst),
        };
        // Translated on the way out only, which is not seen here: the packets say it all.
        (!via.service.is_empty() || via.src.is_some() || via.dst.is_some()).then_some(via)
    }

    /// This node's name in the cluster, once the API server has told of it.
    pub(crate) fn own_node(&self) -> Option<&str> {
        let cluster = self.cluster.as_ref()?;
        cluster.knows_own_node().then(|| cluster.node())
    }

    /// Use of all bounds.
    pub(crate) fn limits(&self) -> Vec<Limit> {
        let mut limits = self.identity.limits();
        limits.extend(self.cluster.iter().flat_map(|cluster| cluster.limits()));
        limits.extend(self.conntrack.iter().map(|conntrack| Limit {
            name: "translated_connections",
            used: conntrack.used(),
            max: conntrack.limits().connections,
            turned_away: conntrack.counters().turned_away,
        }));
        limits.push(Limit {
            name: "dns_names",
            used: self.dns.len(),
            max: self.dns.limits().names,
            turned_away: self.dns.counters().replaced,
        });
        limits
    }
}

/// The names of a pod that the API server has told of.
pub(crate) fn pod_name(pod: &Pod) -> Arc<PodName> {
    Arc::new(PodName {
        uid: pod.uid.to_string(),
        full: format!("{}/{}", pod.namespace, pod.name),
        workload: pod.workload.as_deref().unwrap_or_default().to_owned(),
        node: pod.node.to_string(),
    })
}

/// The owner that a pod is as somebody's peer.
pub(crate) fn pod_peer(pod: &Pod) -> Owner {
    Owner {
        kind: Kind::Pod,
        attribution: Attribution::PodIp,
        pod: Some(pod_name(pod)),
        container: only_container(pod),
        ..Owner::default()
    }
}

/// The owner that an address's holder is as somebody's peer; nobody if it is not a pod.
pub(crate) fn holder_peer(holder: &Holder) -> Owner {
    match holder {
        Holder::Pod(pod, _) => pod_peer(pod),
        // Its name comes when the API tells.
        Holder::Resident(uid, _) => Owner {
            kind: Kind::Process,
            attribution: Attribution::NetnsIp,
            pod: Some(pod_of_uid(uid.to_string())),
            ..Owner::default()
        },
        Holder::Node(_) | Holder::Service => Owner::default(),
    }
}

/// The name of a pod's container if it has only one: its address is all containers'.
fn only_container(pod: &Pod) -> String {
    match &pod.containers[..] {
        [container] => container.name.clone(),
        _ => String::new(),
    }
}

/// How well an interface's owner is known.
fn certainty(owner: &Owner) -> u8 {
    match owner {
        owner if owner.named_pod().is_some() => 6,
        owner if owner.pod.is_some() => 5,
        owner if !owner.container.is_empty() => 4,
        owner if !owner.unit.is_empty() => 3,
        owner if !owner.netns.is_empty() => 2,
        // Of the host's own interfaces there is no more to know.
        owner => u8::from(!owner.name().is_empty() || owner.kind == Kind::Host),
    }
}

/// The address and port of a flow's peer as its packets carry them, with what its connection says of it.
pub(crate) fn peer_address(key: &FlowKey, direction: Direction, via: Option<&Via>) -> (IpAddr, u16) {
    match direction {
        Direction::Egress => via
            .and_then(|via| via.dst)
            .unwrap_or_else(|| (ip(&key.dst), key.dport)),
        Direction::Ingress => via
            .and_then(|via| via.src)
            .unwrap_or_else(|| (ip(&key.src), key.sport)),
    }
}
