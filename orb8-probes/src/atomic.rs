//! Atomic operations on map values.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// `*counter += amount`, as one instruction that other CPUs cannot tear (`lock add`).
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller's.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount);
    }
}

/// As [`add`], for 32 bits.
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub unsafe fn add32(counter: *mut u32, amount: u32) {
    // SAFETY: the caller's.
    unsafe {
        atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(counter, amount);
    }
}

/// As [`compare_exchange32`], for 64 bits.
///
/// # Safety
/// `place` points into a map value.
#[inline(always)]
pub unsafe fn compare_exchange64(place: *mut u64, old: u64, new: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(place, old, new).0 }
}

/// `*place = new` if it is `old`. Returns what it was. Needs Linux 5.12.
///
/// # Safety
/// `place` points into a map value.
#[inline(always)]
pub unsafe fn compare_exchange32(place: *mut u32, old: u32, new: u32) -> u32 {
    // SAFETY: the caller's.
    unsafe { atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(place, old, new).0 }
}
