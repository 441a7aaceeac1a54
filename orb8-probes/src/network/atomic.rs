//! Atomic operations on map values.

use core::intrinsics::{AtomicOrdering, atomic_or};

pub(crate) use orb8_probes::atomic::{add, add32};

use crate::settings;

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
