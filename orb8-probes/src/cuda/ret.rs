//! Return of a function.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_attach_cookie, bpf_ktime_get_ns},
    macros::uretprobe,
    programs::RetProbeContext,
};
use orb8_common::cuda::{Calls, cookie, kind};
use orb8_probes::atomic;

use crate::{
    allocations,
    calls::{add, function, in_call, kind, stats},
    registers,
};

/// The return of a traced function whose result matters.
#[uretprobe]
pub(crate) fn orb8_cuda_return(ctx: RetProbeContext) -> u32 {
    let Some(in_call) = in_call(false) else {
        return 0;
    };
    // SAFETY: the program's context.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let entered = in_call.cookie;
    // That of a call within the one that counts, or of one that was entered before this was attached.
    if entered & cookie::RETURNS == 0
        || function(entered) != function(cookie)
        || in_call.stack != registers::stack_at_return(&ctx)
    {
        return 0;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    in_call.cookie = 0;
    let Some(stats) = stats() else {
        return 0;
    };
    // CUresult and cudaError_t are 32 bits wide; 0 is success.
    let failed = registers::result(&ctx) as u32 != 0;
    let (kind, bytes) = (kind(entered), in_call.bytes);
    let mut calls = Calls {
        errors: u64::from(failed),
        total_ns: now.saturating_sub(in_call.start_ns),
        returned: 1,
        ..Calls::default()
    };
    if !failed {
        calls.bytes = bytes;
        if kind == kind::ALLOCATE {
            calls.count = 1;
        }
    }
    let counted = add(in_call.cgroup, function(entered), &calls);
    // SAFETY: a map value.
    unsafe {
        atomic::add(&raw mut (*stats).returned, 1);
        if kind == kind::ALLOCATE {
            atomic::add(&raw mut (*stats).seen, 1);
            if !counted {
                atomic::add(&raw mut (*stats).lost, 1);
            }
        } else if !counted {
            atomic::add(&raw mut (*stats).unmeasured, 1);
        }
    }
    if bytes == 0 {
        return 0;
    }
    if kind == kind::ALLOCATE && !failed {
        let held = allocations::hold(registers::user_word(in_call.address), bytes, in_call.cgroup);
        // SAFETY: a map value.
        unsafe {
            atomic::add(&raw mut (*stats).allocated, 1);
            if !held {
                atomic::add(&raw mut (*stats).not_held, 1);
            }
        }
    } else if kind == kind::FREE && failed {
        // It is still there. There is room: it has just been taken out.
        allocations::hold(in_call.address, bytes, in_call.cgroup);
    }
    0
}
