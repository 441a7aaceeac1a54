//! How long calls take and how they end.
//!
//! When a task's call was entered is kept for its return ([`in_call`]). Each call that was started is measured as it returns, or counted as
//! unmeasured: where there was no room, or the row has gone to another caller. Also a call that a fatal signal ends returns
//! here; those that never do (exit) are not started.

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use orb8_common::syscall::{Cpu, ErrorKey, InCall, LATENCY_BUCKETS, NO_ROW, NUMBERS, watch};
use orb8_probes::atomic;

use crate::{
    call::Call,
    caller::{Caller, cpu},
    in_call, maps,
};

/// The highest error number that a call returns (include/linux/err.h).
const MAX_ERRNO: u64 = 4095;

/// Remembers that the current task is in this call.
#[inline(always)]
pub(crate) fn start(registers: u64, cpu: &mut Cpu, caller: Caller, call: Call, flags: u32) {
    if flags & (watch::NEVER_RETURNS | watch::NOT_MEASURED) != 0 {
        // Its return must not be taken for that of a call before which did not return as calls do.
        if let Some(in_call) = in_call::entered_unmeasured(registers, cpu) {
            in_call::forget(in_call, cpu);
        }
        return;
    }
    cpu.started += 1;
    let Some(in_call) = in_call::entered(registers, cpu) else {
        cpu.unmeasured += 1;
        return;
    };
    in_call::forget(in_call, cpu);
    if caller.row == NO_ROW {
        cpu.unmeasured += 1;
        return;
    }
    in_call.cgroup = caller.cgroup;
    in_call.phase = cpu.phase;
    in_call.row = caller.row;
    in_call.number = call.number | flags & watch::NO_RESULT;
    // SAFETY: no arguments.
    in_call.start_ns = unsafe { bpf_ktime_get_ns() };
}

/// `TP_PROTO(struct pt_regs *regs, long ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn orb8_sys_exit(ctx: RawTracePointContext) -> i32 {
    let Some(in_call) = in_call::returned(ctx.arg::<u64>(0)) else {
        return 0;
    };
    let start_ns = in_call.start_ns;
    // Zero: not to be measured, entered before this was attached, or refused by seccomp before it was entered.
    if start_ns == 0 {
        return 0;
    }
    // As soon as it is known to be wanted: the clock is the dearest of all that happens here.
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    in_call.start_ns = 0;
    let Some(cpu) = cpu() else {
        return 0;
    };
    if in_call.phase != cpu.phase {
        return 0;
    }
    let errno = ctx.arg::<u64>(1).wrapping_neg();
    if !record(in_call, now.saturating_sub(start_ns)) {
        cpu.unmeasured += 1;
    } else if errno.wrapping_sub(1) < MAX_ERRNO && in_call.number & watch::NO_RESULT == 0 {
        return count_error(in_call.row, in_call.number, errno as u32, cpu) as i32;
    }
    0
}

#[inline(always)]
fn record(in_call: &InCall, elapsed: u64) -> bool {
    let row = in_call.row;
    let number = in_call.number & !watch::NO_RESULT;
    if number >= NUMBERS as u32 {
        return false;
    }
    // The row may have gone to somebody else while the call lasted.
    // SAFETY: a map value.
    if !maps::OWNERS
        .get_ptr(row)
        .is_some_and(|owner| unsafe { (*owner).cgroup } == in_call.cgroup)
    {
        return false;
    }
    let Some(index) = maps::LATENCY_INDEX.get_ptr_mut(row) else {
        return false;
    };
    // SAFETY: a map value; the number is below `NUMBERS`.
    let slot = unsafe { (&raw mut (*index).index).cast::<u32>().add(number as usize) };
    // SAFETY: as above.
    let mut at = unsafe { slot.read_volatile() };
    if at == 0 {
        at = allocate(slot);
    }
    let Some(latency) = maps::LATENCIES.get_ptr_mut(at.wrapping_sub(1)) else {
        return false;
    };
    // SAFETY: a map value; the bucket is one of `LATENCY_BUCKETS`.
    unsafe {
        atomic::add(&raw mut (*latency).total_ns, elapsed);
        let buckets = (&raw mut (*latency).buckets).cast::<u64>();
        atomic::add(buckets.add(bucket(elapsed) as usize), 1);
    }
    true
}

/// A histogram for `slot`, plus one; 0: none is free.
#[inline(always)]
fn allocate(slot: *mut u32) -> u32 {
    let Ok(Some(new)) = maps::FREE_LATENCIES.pop() else {
        return 0;
    };
    // SAFETY: a map value.
    let before = unsafe { atomic::compare_exchange32(slot, 0, new + 1) };
    if before == 0 {
        return new + 1;
    }
    // Another CPU was first. There is room: it has just been taken out.
    let _ = maps::FREE_LATENCIES.push(new, 0);
    before
}

/// Returns something: the verifier wants a function to have a result, and the compiler removes one that is always the
/// same.
#[inline(never)]
fn count_error(row: u32, number: u32, errno: u32, cpu: &mut Cpu) -> u32 {
    let key = ErrorKey {
        row,
        number: number as u16,
        errno: errno as u16,
    };
    if let Some(count) = maps::ERRORS.get_ptr_mut(&key) {
        // SAFETY: a map value.
        unsafe {
            atomic::add(count, 1);
            return *count as u32;
        }
    }
    if maps::ERRORS.insert(&key, &1, BPF_NOEXIST as u64).is_err() {
        // Entered by another CPU meanwhile, or full.
        match maps::ERRORS.get_ptr_mut(&key) {
            // SAFETY: a map value.
            Some(count) => unsafe { atomic::add(count, 1) },
            None => cpu.errors_lost += 1,
        }
    }
    row
}

/// The bits of the number, or the last bucket. In steps: the machine has no instruction for it.
#[inline(always)]
fn bucket(ns: u64) -> u32 {
    if ns >> (LATENCY_BUCKETS - 1) != 0 {
        return LATENCY_BUCKETS as u32 - 1;
    }
    let (mut rest, mut bits) = (ns, 0);
    if rest >> 32 != 0 {
        rest >>= 32;
        bits += 32;
    }
    if rest >> 16 != 0 {
        rest >>= 16;
        bits += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        bits += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        bits += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        bits += 2;
    }
    if rest >> 1 != 0 {
        rest >>= 1;
        bits += 1;
    }
    let bits = bits + rest as u32;
    // What the verifier cannot see by itself.
    if bits < LATENCY_BUCKETS as u32 {
        bits
    } else {
        LATENCY_BUCKETS as u32 - 1
    }
}
