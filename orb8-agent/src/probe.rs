//! Loading, attaching and reading the eBPF programs, one module a probe family.

pub mod bpf;
pub mod kernel_clock;
pub mod network;
