//! Services by the addresses and ports that they are reached at.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use orb8_common::network::protocol;

use super::objects::{self, ServiceObject, SliceObject, labels};

/// The label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label of an EndpointSlice whose Service is headless.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// An address, port and IP protocol number.
type At = (IpAddr, u16, u8);

#[derive(Debug)]
struct Service {
    at: Vec<At>,
    addresses: Vec<IpAddr>,
    node_ports: Vec<(u16, u8)>,
}

/// Services and their endpoints. Names are `namespace/name`.
#[derive(Debug, Default)]
pub(crate) struct Services {
    services: HashMap<Arc<str>, Service>,
    at: HashMap<At, Arc<str>>,
    addresses: HashMap<IpAddr, Arc<str>>,
    node_ports: HashMap<(u16, u8), Arc<str>>,
    /// Endpoints by slice: those of headless Services and of the API server.
    slices: HashMap<Arc<str>, (Arc<str>, Vec<At>)>,
    endpoints: HashMap<At, HashSet<Arc<str>>>,
    max: usize,
    turned_away: u64,
}

fn protocol_number(name: &str) -> u8 {
    match name {
        "UDP" => protocol::UDP,
        "SCTP" => protocol::SCTP,
        _ => protocol::TCP,
    }
}

/// The Service of the API server itself.
const API_SERVER: &str = "default/kubernetes";

impl Services {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    /// Takes in a Service; returns its key.
    pub(crate) fn apply(&mut self, object: &ServiceObject) -> Option<Arc<str>> {
        let metadata = &object.metadata;
        let namespace = objects::name(metadata.namespace.as_deref())?;
        let name: Arc<str> = format!("{namespace}/{}", objects::name(metadata.name.as_deref())?).into();
        self.remove(&name);
        if self.services.len() >= self.max {
            self.turned_away += 1;
            return Some(name);
        }
        let spec = &object.spec;
        let texts = spec
            .cluster_ips
            .iter()
            .chain([&spec.cluster_ip])
            .chain(&spec.external_ips)
            .chain(
                object
                    .status
                    .load_balancer
                    .ingress
                    .iter()
                    .map(|ingress| &ingress.ip),
            );
        let mut addresses = objects::addresses(texts.map(String::as_str));
        if spec.kind == "ExternalName" {
            addresses.clear();
        }
        let mut at = Vec::new();
        let mut node_ports = Vec::new();
        for port in &spec.ports {
            let protocol = protocol_number(&port.protocol);
            at.extend(addresses.iter().map(|&address| (address, port.port, protocol)));
            if port.node_port != 0 {
                node_ports.push((port.node_port, protocol));
            }
        }
        for &key in &at {
            self.at.insert(key, name.clone());
        }
        for &address in &addresses {
            self.addresses.insert(address, name.clone());
        }
        for &port in &node_ports {
            self.node_ports.insert(port, name.clone());
        }
        let service = Service {
            at,
            addresses,
            node_ports,
        };
        self.services.insert(name.clone(), service);
        Some(name)
    }

    /// Forgets a Service.
    pub(crate) fn remove(&mut self, name: &str) {
        let Some(service) = self.services.remove(name) else {
            return;
        };
        // An address may be another's by now.
        for key in service.at {
            remove_of(&mut self.at, &key, name);
        }
        for address in service.addresses {
            remove_of(&mut self.addresses, &address, name);
        }
        for port in service.node_ports {
            remove_of(&mut self.node_ports, &port, name);
        }
    }

    /// Takes in an EndpointSlice; returns its key.
    pub(crate) fn apply_slice(&mut self, object: &SliceObject) -> Option<Arc<str>> {
        let metadata = &object.metadata;
        let namespace = objects::name(metadata.namespace.as_deref())?;
        let key: Arc<str> = format!("{namespace}/{}", objects::name(metadata.name.as_deref())?).into();
        self.remove_slice(&key);
        let labels = labels(metadata);
        let service: Arc<str> = match objects::name(labels.get(SERVICE_NAME).map(String::as_str)) {
            Some(name) => format!("{namespace}/{name}").into(),
            None => return Some(key),
        };
        if !labels.contains_key(HEADLESS) && &*service != API_SERVER {
            return Some(key);
        }
        if self.slices.len() >= self.max {
            self.turned_away += 1;
            return Some(key);
        }
        let mut at = Vec::new();
        let texts = object.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        for address in objects::addresses(texts.map(String::as_str)) {
            for port in &object.ports {
                if let Some(number) = port.port {
                    let protocol = protocol_number(port.protocol.as_deref().unwrap_or("TCP"));
                    at.push((address, number, protocol));
                }
            }
        }
        for &endpoint in &at {
            self.endpoints
                .entry(endpoint)
                .or_default()
                .insert(service.clone());
        }
        self.slices.insert(key.clone(), (service, at));
        Some(key)
    }

    /// Forgets an EndpointSlice.
    pub(crate) fn remove_slice(&mut self, key: &str) {
        let Some((service, at)) = self.slices.remove(key) else {
            return;
        };
        // Another slice of the same Service may list the endpoint as well, while one takes the other's place.
        let still: HashSet<At> = self
            .slices
            .values()
            .filter(|(other, _)| *other == service)
            .flat_map(|(_, at)| at.iter().copied())
            .collect();
        for endpoint in at {
            if !still.contains(&endpoint)
                && let Some(services) = self.endpoints.get_mut(&endpoint)
            {
                services.remove(&service);
                if services.is_empty() {
                    self.endpoints.remove(&endpoint);
                }
            }
        }
    }

    /// The Service that is reached at an address of its own.
    pub(crate) fn at(&self, address: IpAddr, port: u16, protocol: u8) -> Option<&Arc<str>> {
        self.at.get(&(address, port, protocol))
    }

    /// The Service that is reached at this port of a node.
    pub(crate) fn at_node_port(&self, port: u16, protocol: u8) -> Option<&Arc<str>> {
        self.node_ports.get(&(port, protocol))
    }

    /// A Service that has the address, whatever the port.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// The headless Service whose endpoint this is, if it is exactly one's.
    pub(crate) fn of_endpoint(&self, address: IpAddr, port: u16, protocol: u8) -> Option<&Arc<str>> {
        let mut services = self.endpoints.get(&(address, port, protocol))?.iter();
        let only = services.next().filter(|_| services.next().is_none())?;
        (&**only != API_SERVER).then_some(only)
    }

    /// Whether the API server answers there.
    pub(crate) fn is_api_server(&self, address: IpAddr, port: u16) -> bool {
        self.endpoints
            .get(&(address, port, protocol::TCP))
            .is_some_and(|services| services.contains(API_SERVER))
    }

    /// Whether the API server answers at some port of an address.
    pub(crate) fn has_api_server(&self, address: IpAddr) -> bool {
        self.slices
            .values()
            .filter(|(service, _)| &**service == API_SERVER)
            .any(|(_, at)| at.iter().any(|(endpoint, ..)| *endpoint == address))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.keys()
    }

    pub(crate) fn slice_keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.slices.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.services.len()
    }

    pub(crate) const fn max(&self) -> usize {
        self.max
    }

    pub(crate) const fn turned_away(&self) -> u64 {
        self.turned_away
    }
}

fn remove_of<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Arc<str>>, key: &K, name: &str) {
    if map.get(key).is_some_and(|owner| &**owner == name) {
        map.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, cluster_ip: &str, node_port: u16) -> ServiceObject {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"type": "NodePort", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip, "fd00::9"],
                     "ports": [{"port": 80, "protocol": "TCP", "nodePort": node_port, "targetPort": "http"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
        }))
        .unwrap()
    }

    fn slice(key: &str, service: &str, headless: bool, address: &str) -> SliceObject {
        let mut labels = json!({SERVICE_NAME: service});
        if headless {
            labels[HEADLESS] = json!("");
        }
        serde_json::from_value(json!({
            "metadata": {"namespace": if service == "kubernetes" { "default" } else { "shop" }, "name": key,
                         "labels": labels},
            "endpoints": [{"addresses": [address], "conditions": {"ready": null}}],
            "ports": [{"port": 8080, "protocol": "TCP", "name": ""}],
        }))
        .unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_service_is_found_at_all_its_addresses_until_it_is_gone() {
        let mut services = Services::new(10);
        services.apply(&service("db", "10.96.0.9", 30080));
        for address in ["10.96.0.9", "fd00::9", "192.0.2.1"] {
            assert_eq!(
                services.at(ip(address), 80, protocol::TCP).map(|s| &**s),
                Some("shop/db")
            );
            assert!(services.at(ip(address), 81, protocol::TCP).is_none());
            assert!(services.has_address(ip(address)));
        }
        assert!(services.at_node_port(30080, protocol::TCP).is_some());
        // The address goes to another Service before the first is deleted.
        services.apply(&service("new", "10.96.0.9", 30081));
        services.remove("shop/db");
        assert_eq!(
            services.at(ip("10.96.0.9"), 80, protocol::TCP).map(|s| &**s),
            Some("shop/new")
        );
        assert!(services.at_node_port(30080, protocol::TCP).is_none());
    }

    #[test]
    fn an_endpoint_is_a_headless_services_if_it_is_one_services_alone() {
        let mut services = Services::new(10);
        services.apply_slice(&slice("a1", "a", true, "10.0.0.1"));
        services.apply_slice(&slice("b1", "b", false, "10.0.0.1"));
        let of = |services: &Services| {
            services
                .of_endpoint(ip("10.0.0.1"), 8080, protocol::TCP)
                .map(ToString::to_string)
        };
        assert_eq!(of(&services).as_deref(), Some("shop/a"));
        services.apply_slice(&slice("c1", "c", true, "10.0.0.1"));
        assert_eq!(of(&services), None);
        services.remove_slice("shop/c1");
        services.apply_slice(&slice("a2", "a", true, "10.0.0.1"));
        services.remove_slice("shop/a1");
        assert_eq!(of(&services).as_deref(), Some("shop/a"));
        services.apply_slice(&slice("k", "kubernetes", false, "10.99.0.1"));
        assert!(services.is_api_server(ip("10.99.0.1"), 8080));
        assert!(!services.is_api_server(ip("10.99.0.1"), 22));
        assert!(services.has_api_server(ip("10.99.0.1")));
    }
}
