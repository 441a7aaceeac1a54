//! Node agent of orb8.
//!
//! `probe` loads and attaches the eBPF programs and takes out of the kernel what they counted, `interfaces` follows
//! network interfaces, `identity` knows whose an interface, a cgroup or an address is, `conntrack` what address
//! translation made of a connection, `dns` under which name an address was asked for, `store` keeps recent history
//! within bounds, `syscalls` names system calls and keeps theirs,
//! `gpu` samples GPUs and says who holds them, `export` answers queries and scrapes, `settings` and `preflight` say how and whether it can run.

mod agent;
pub mod bpf;
pub mod conntrack;
mod core;
pub mod dns;
pub mod export;
pub mod gpu;
pub mod identity;
mod in_process;
pub mod interfaces;
pub mod kubernetes;
mod ledger;
mod live;
mod membership;
mod memory;
mod naming;
mod netlink;
mod pipeline;
mod pods;
pub mod preflight;
pub mod probe;
mod program;
mod ring;
pub mod settings;
mod status;
pub mod store;
pub mod syscalls;

pub use agent::{Agent, AgentError, Listen};
pub use program::main;
