//! eBPF programs of orb8, one folder a probe family.
//!
//! The library holds what has no kernel in it, so that it is compiled, tested and fuzzed on the host exactly as
//! it ships; the binaries (one an object, `src/<family>/main.rs`) hold the programs.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod network;
