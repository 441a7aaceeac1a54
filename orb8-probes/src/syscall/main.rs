//! The syscall family's eBPF object: what calls are made of the kernel, by whom, and how they end.
//!
//! Raw tracepoints, which cost less than the same through perf, and need no tracefs.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod call;
#[cfg(target_arch = "bpf")]
mod caller;
#[cfg(target_arch = "bpf")]
mod enter;
#[cfg(target_arch = "bpf")]
mod events;
#[cfg(target_arch = "bpf")]
mod in_call;
#[cfg(target_arch = "bpf")]
mod latency;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod settings;

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
