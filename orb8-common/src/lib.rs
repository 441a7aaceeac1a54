//! Records and keys shared by orb8's eBPF programs and its user-space agent.
//!
//! One module a probe family. Every type is `#[repr(C)]` without implicit padding, so that a byte-wise
//! comparison of two keys (which is what a kernel hash map does) compares their fields.
#![no_std]

pub mod cuda;
pub mod network;
pub mod syscall;

/// Version of the record layouts. The agent refuses an eBPF object that was built for another one.
pub const ABI_VERSION: u32 = 2;
