//! Network interfaces of our namespace, followed as they come, change and go.
//!
//! A thread reads rtnetlink notifications and hands changes on over a bounded channel, so that a slow reader costs
//! neither memory nor changes: what the kernel's own queue cannot hold is found by listing everything again.

use std::io;

pub use self::{
    pattern::{InterfacePattern, PatternError},
    watcher::{InterfaceWatcher, WatcherOptions},
};
use crate::netlink::{Attributes, Socket, read_u32};

mod link;
mod pattern;
mod table;
mod watcher;

/// How frames on an interface begin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LinkLayer {
    /// With an Ethernet header (also loopback).
    Ethernet,
    /// With the IP header: tun, `WireGuard`, IP tunnels, PPP.
    Raw,
    /// With something else: `ARPHRD_…` number (include/uapi/linux/if_arp.h).
    Unsupported(
        /// `ifi_type`.
        u16,
    ),
}

/// What an interface is to us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Our end of a pair (veth, netkit) whose other end is in another network namespace.
    Workload,
    /// This machine's own: also a pair's end that carries a default route of ours, as in a container.
    Uplink,
}

/// The interface's own 64-bit counters (`struct rtnl_link_stats64`). Bytes include the link-layer header,
/// except those of a loopback interface (`loopback_xmit` counts behind it).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Counters {
    /// Packets received; a super-packet (GRO) is one.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent; a super-packet (GSO) is one.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received and dropped before anyone saw them.
    pub rx_dropped: u64,
    /// Packets dropped on the way out.
    pub tx_dropped: u64,
}

/// A network interface of our namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Number in our namespace. It can be another interface's later.
    pub ifindex: u32,
    /// Name; it can change.
    pub name: String,
    /// How its frames begin.
    pub link: LinkLayer,
    /// Id, in our namespace, of the namespace where the other end or the lower device is, if that is not ours;
    /// negative if the kernel could not give it an id.
    pub peer_netnsid: Option<i32>,
    /// Number, in its own namespace, of the other end of the pair.
    pub peer_ifindex: Option<u32>,
    /// Kind as in `ip link add type KIND`; empty for hardware.
    pub kind: String,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Whether it is set up (`IFF_UP`).
    pub up: bool,
    /// What it is to us.
    pub role: Role,
    /// Counters when the kernel last told; [`counters`] asks.
    pub counters: Counters,
}

/// A change of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// It appeared, or was there at the start.
    Added(Interface),
    /// Anything but its counters changed.
    Changed {
        /// As it was.
        before: Interface,
        /// As it is, with the same `ifindex`.
        after: Interface,
    },
    /// It is gone; with its last counters where the kernel told them.
    Removed(Interface),
}

/// Interfaces that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The kernel refused or failed a request.
    #[error("cannot {action} over rtnetlink: {source}; in a sandbox, allow AF_NETLINK sockets")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start the thread that watches interfaces: {0}; check the limits on processes (pids.max)")]
    Thread(
        /// Why not.
        io::Error,
    ),
    /// The watcher has ended, after an error which was reported before.
    #[error("interfaces are no longer watched; restart the agent")]
    Ended,
}

/// `RTM_GETSTATS` and what it is asked for (include/uapi/linux/if_link.h).
const RTM_GETSTATS: u16 = 94;
const IFLA_STATS_LINK_64: u16 = 1;

/// Counters of all interfaces by `ifindex`, in one dump (about 1 µs an interface; it waits while others change
/// interfaces).
///
/// # Errors
/// If the kernel refuses.
pub fn read_counters() -> Result<std::collections::HashMap<u32, Counters>, InterfaceError> {
    let error = |source| InterfaceError::Netlink {
        action: "read interface counters",
        source,
    };
    let mut route = Socket::open(libc::NETLINK_ROUTE).map_err(error)?;
    // struct if_stats_msg: family, padding, ifindex, mask of attributes.
    let mut request = vec![0; 12];
    request[8..].copy_from_slice(&(1u32 << (IFLA_STATS_LINK_64 - 1)).to_ne_bytes());
    let found = route
        .dump(RTM_GETSTATS, &request, |message| {
            let ifindex = read_u32(message.payload, 4)?;
            Attributes::at(message.payload, 12)
                .find(|(kind, _)| *kind == IFLA_STATS_LINK_64)
                .and_then(|(_, value)| link::counters(value))
                .map(|counters| (ifindex, counters))
        })
        .map_err(error)?;
    Ok(found.into_iter().collect())
}

/// As [`read_counters`], on a thread for blocking work. It reads the network namespace of the process.
///
/// # Errors
/// If the kernel refuses.
pub async fn counters() -> Result<std::collections::HashMap<u32, Counters>, InterfaceError> {
    tokio::task::spawn_blocking(read_counters)
        .await
        .map_err(|_| InterfaceError::Ended)?
}
