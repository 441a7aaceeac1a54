//! Atomic additions on map values.

use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};

use crate::settings;

/// `*counter += amount`, as one instruction that other CPUs cannot tear (`lock add`).
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, amount: u64) {
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
pub(crate) unsafe fn add32(counter: *mut u32, amount: u32) {
    // SAFETY: the caller's.
    unsafe {
        atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(counter, amount);
    }
}

/// `*bits |= more`. Linux 5.12 and later have it as one atomic instruction.
///
/// # Safety
/// `bits` points into a map value.
#[inline(always)]
pub(crate) unsafe fn or32(bits: *mut u32, more: u32) {
    if settings::ATOMIC_OR.get() == 1 {
        // SAFETY: the caller's.
        unsafe {
            atomic_or::<u32, u32, { AtomicOrdering::Relaxed }>(bits, more);
        }
    } else {
        // Without it a flag that two CPUs set at the same moment may be missed until it comes again.
        // SAFETY: the caller's.
        unsafe { *bits |= more };
    }
}
