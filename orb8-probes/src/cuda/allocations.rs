//! What processes hold.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
};
use orb8_common::cuda::{AllocationKey, Holder};
use orb8_probes::atomic;

use crate::maps;

#[inline(always)]
fn tgid() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

#[inline(always)]
fn key(tgid: u32, holder: *const Holder, address: u64) -> AllocationKey {
    AllocationKey {
        // SAFETY: a map value.
        since_ns: unsafe { (*holder).since_ns },
        tgid,
        reserved: 0,
        address,
    }
}

/// The current process holds `bytes` at `address` from now on. False if there is no room to know it, or nobody knows
/// where.
#[inline(never)]
pub(crate) fn hold(address: u64, bytes: u64, cgroup: u64) -> bool {
    if address == 0 {
        return false;
    }
    let tgid = tgid();
    let mut holder = maps::HOLDERS.get_ptr_mut(&tgid);
    if holder.is_none() {
        let new = Holder {
            // SAFETY: no arguments.
            since_ns: unsafe { bpf_ktime_get_ns() },
            cgroup,
            bytes: 0,
        };
        // Another thread may be first, or the map is full.
        let _ = maps::HOLDERS.insert(&tgid, &new, BPF_NOEXIST as u64);
        holder = maps::HOLDERS.get_ptr_mut(&tgid);
    }
    let Some(holder) = holder else {
        return false;
    };
    let key = key(tgid, holder, address);
    // What was there has been freed by a call that is not traced.
    let before = match maps::ALLOCATIONS.get_ptr(&key) {
        // SAFETY: a map value.
        Some(before) => unsafe { *before },
        None => 0,
    };
    if maps::ALLOCATIONS.insert(&key, &bytes, 0).is_err() {
        return false;
    }
    // SAFETY: a map value.
    unsafe { atomic::add(&raw mut (*holder).bytes, bytes.wrapping_sub(before)) };
    true
}

/// The current process does not hold what is at `address` any more: its bytes, or 0 if they are not known.
#[inline(never)]
pub(crate) fn release(address: u64) -> u64 {
    // Frees nothing.
    if address == 0 {
        return 0;
    }
    let tgid = tgid();
    let Some(holder) = maps::HOLDERS.get_ptr_mut(&tgid) else {
        return 0;
    };
    let key = key(tgid, holder, address);
    let Some(allocation) = maps::ALLOCATIONS.get_ptr(&key) else {
        return 0;
    };
    // SAFETY: a map value.
    let bytes = unsafe { *allocation };
    // Of two threads that free the same, one does.
    if maps::ALLOCATIONS.remove(&key).is_err() {
        return 0;
    }
    // SAFETY: a map value.
    unsafe { atomic::add(&raw mut (*holder).bytes, bytes.wrapping_neg()) };
    bytes
}
