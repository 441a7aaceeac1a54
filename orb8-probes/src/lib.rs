//! eBPF programs of orb8, one folder a probe family.
//!
//! The library holds what has no kernel in it, so that it is compiled, tested and fuzzed on the host exactly as
//! it ships, and what every family needs; the binaries (one an object, `src/<family>/main.rs`) hold the programs.
#![cfg_attr(target_arch = "bpf", no_std, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        internal_features,
        reason = "`AtomicU64::fetch_add` is not compiled for bpfel; the intrinsic is"
    )
)]

#[cfg(target_arch = "bpf")]
pub mod atomic;

pub mod network;
#[cfg(target_arch = "bpf")]
pub mod setting;
#[cfg(target_arch = "bpf")]
pub mod task_storage;
