//! Node agent of orb8.
//!
//! `probe` loads and attaches the eBPF programs, `source` takes out of the kernel what they counted,
//! `identity` knows whose an interface, a cgroup or an address is, `store` keeps recent history within bounds,
//! `export` answers queries and scrapes.

pub mod bpf;
pub mod identity;
pub mod preflight;
pub mod settings;
pub mod store;
