//! The path that the benchmark's packets take: pod A – veth – bridge – veth – pod B.

use std::fs;

use anyhow::{Context as _, Result};

use super::namespace::Namespace;

/// Address of pod A.
pub(super) const A: [u8; 4] = [10, 76, 0, 1];
/// Address of pod B, which also answers for all of 10.77.0.0/16.
pub(super) const B: [u8; 4] = [10, 76, 0, 2];

/// A node with two pods on a bridge.
pub(super) struct Path {
    /// The node, where an agent runs.
    pub(super) host: Namespace,
    /// The pod that sends.
    pub(super) a: Namespace,
    /// The pod that receives.
    pub(super) b: Namespace,
}

/// Host ends of the pods' veths.
pub(super) const VETHS: [&str; 2] = ["veth-a", "veth-b"];

/// What an interface counted: frames and bytes.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct InterfaceCounters {
    pub(super) rx_packets: u64,
    pub(super) rx_bytes: u64,
}

impl Path {
    /// Builds it. No other packets than the benchmark's run there: no IPv6, fixed neighbours, no spanning tree.
    ///
    /// # Errors
    /// If `ip` fails.
    pub(super) fn new() -> Result<Self> {
        let path = Self {
            host: Namespace::new("host")?,
            a: Namespace::new("a")?,
            b: Namespace::new("b")?,
        };
        path.host
            .ip("link add br0 type bridge stp_state 0 mcast_snooping 0")?;
        path.host.ip("link set br0 up")?;
        for (pod, veth, mac, address) in [
            (&path.a, VETHS[0], "02:00:00:00:00:0a", "10.76.0.1/24"),
            (&path.b, VETHS[1], "02:00:00:00:00:0b", "10.76.0.2/24"),
        ] {
            path.host.ip(&format!(
                "link add {veth} type veth peer name eth0 address {mac} netns {}",
                pod.name
            ))?;
            path.host.ip(&format!("link set {veth} master br0 up"))?;
            pod.ip(&format!("addr add {address} dev eth0"))?;
            pod.ip("link set eth0 up")?;
            // Closed connections are not to use up the ports.
            pod.sysctl("net/ipv4/tcp_max_tw_buckets", "256")?;
            pod.sysctl("net/ipv4/ip_local_port_range", "10000 65000")?;
        }
        path.a
            .ip("neigh replace 10.76.0.2 lladdr 02:00:00:00:00:0b dev eth0 nud permanent")?;
        path.b
            .ip("neigh replace 10.76.0.1 lladdr 02:00:00:00:00:0a dev eth0 nud permanent")?;
        path.a.ip("route add 10.77.0.0/16 via 10.76.0.2")?;
        path.b.ip("route add local 10.77.0.0/16 dev lo")?;
        // The bridge learns where the pods are: a flooded packet is none that one pod sent to the other.
        Ok(path)
    }

    /// Counters of the host end of a pod's veth.
    ///
    /// # Errors
    /// If there is no such interface.
    pub(super) fn counters(&self, veth: &'static str) -> Result<InterfaceCounters> {
        self.host.inside(move || {
            let text = fs::read_to_string("/proc/thread-self/net/dev")?;
            let line = text
                .lines()
                .find_map(|line| line.trim_start().strip_prefix(veth)?.strip_prefix(':'))
                .with_context(|| format!("no interface {veth}"))?;
            let fields: Vec<u64> = line
                .split_whitespace()
                .filter_map(|field| field.parse().ok())
                .collect();
            let field = |at: usize| {
                fields
                    .get(at)
                    .copied()
                    .context("/proc/net/dev has too few columns")
            };
            Ok(InterfaceCounters {
                rx_bytes: field(0)?,
                rx_packets: field(1)?,
            })
        })
    }
}
