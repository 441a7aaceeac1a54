//! Loading, attaching and reading the eBPF programs, one module a probe family.

mod btf;
pub mod cuda;
mod grace;
pub mod kernel_clock;
pub mod netns_cookie;
pub mod network;
pub mod object;
pub mod syscall;
