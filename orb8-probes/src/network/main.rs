//! The network family's eBPF object: classifiers for interfaces, cgroup hooks for the host's own sockets, and
//! `sock_ops` for TCP health.
//!
//! Every program leaves the packet as it is and hands it on to the next program of its chain.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        internal_features,
        reason = "`AtomicU64::fetch_add` is not compiled for bpfel; the intrinsic is"
    )
)]

#[cfg(target_arch = "bpf")]
mod account;
#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod classifier;
#[cfg(target_arch = "bpf")]
mod dns;
#[cfg(target_arch = "bpf")]
mod events;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod settings;
#[cfg(target_arch = "bpf")]
mod sockets;
#[cfg(target_arch = "bpf")]
mod tcp;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is an eBPF object: build it with `cargo xtask build-ebpf`");
    std::process::exit(2);
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Version of the records: an agent that knows others does not build with this object.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "orb8_abi")]
#[unsafe(no_mangle)]
static ABI: u32 = orb8_common::ABI_VERSION;

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
