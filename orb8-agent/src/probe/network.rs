//! The network family: its eBPF object, loaded and attached.
//!
//! Programs and what they need (see `COMPATIBILITY` for kernel versions):
//! - `orb8_eth_in/out`, `orb8_raw_in/out`: classifiers for interfaces, by tcx links or clsact filters;
//! - `orb8_sock_in/out`: cgroup skb hooks at the cgroup2 root, for sockets of the host's own network namespace;
//! - `orb8_sock_new`: names the process that makes a socket;
//! - `orb8_tcp`: `sock_ops` at the cgroup2 root, for TCP health.
//!
//! Metrics it feeds: `orb8_network_*`, `orb8_flows_active`, `orb8_ring_buffer_*`, its rows of `orb8_ledger_*`.

pub mod attach;
pub mod drain;
pub(crate) mod follow;
pub mod load;
pub mod points;

/// The object, built by `cargo xtask build-ebpf`; build.rs has checked that it is made for the records that this agent
/// knows.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/network.o");
