//! Waiting for programs that are running.

use std::{thread, time::Duration};

/// Returns when every program that was running has ended. Takes some milliseconds.
///
/// Programs run under RCU, so a grace period is what to wait for; `membarrier(MEMBARRIER_CMD_GLOBAL)` returns after one
/// (kernel/sched/membarrier.c).
pub(crate) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Refused with nohz_full CPUs. A program runs for less than a microsecond and cannot be preempted for long.
        thread::sleep(Duration::from_millis(50));
    }
}
