//! Node agent of orb8.
//!
//! `probe` loads and attaches the eBPF programs, `source` takes out of the kernel what they counted,
//! `interfaces` follows network interfaces, `identity` knows whose an interface, a cgroup or an address is,
//! `store` keeps recent history within bounds, `export` answers queries and scrapes.

pub mod identity;
pub mod interfaces;
mod netlink;
pub mod store;
