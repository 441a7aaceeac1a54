//! Entry of a system call: counts it.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use orb8_common::syscall::{NUMBERS, Watch};
use orb8_probes::atomic;

use crate::{
    call::Call,
    caller::{Caller, cpu},
    events, latency, maps,
};

/// `TP_PROTO(struct pt_regs *regs, long id)`, include/trace/events/syscalls.h.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn orb8_sys_enter(ctx: RawTracePointContext) -> i32 {
    let Some(cpu) = cpu() else {
        return 0;
    };
    let call = Call::new(ctx.arg::<u64>(1));
    let caller = Caller::current(cpu, call.abi);
    let mut result = 0;
    match maps::ROWS.get_ptr_mut(caller.row) {
        // SAFETY: a map value; the number is below `NUMBERS`.
        Some(row) => unsafe {
            atomic::add((&raw mut (*row).calls).cast::<u64>().add(call.number as usize), 1);
        },
        None => result |= caller.count_in_remainder(cpu),
    }
    let Some(watch) = watch(call) else {
        return 0;
    };
    if watch.weight != 0 {
        result |= events::orb8_tell(
            ctx.arg::<u64>(0),
            u64::from(call.abi) << 32 | u64::from(call.number),
            u64::from(watch.flags) << 32 | u64::from(watch.weight),
        );
    }
    // Last: the call's time begins here.
    if cpu.phase != 0 {
        latency::start(ctx.arg::<u64>(0), cpu, caller, call, watch.flags);
    }
    // Nobody asks, but a function's result must be used to be kept.
    result as i32
}

#[inline(always)]
fn watch(call: Call) -> Option<Watch> {
    let at = call.abi * NUMBERS as u32 + call.number;
    // SAFETY: a map value, which user space replaces as a whole; a torn one costs or repeats one event.
    maps::WATCHES.get_ptr(at).map(|watch| unsafe { *watch })
}
