//! Entry of a function.
//!
//! A call counts if no other traced call of its thread made it: the runtime library calls the driver's, and both are
//! traced. A thread's storage holds the outermost call. That call still lasts if the stack is deeper than it was at its
//! entry and either its return is traced and has not come, or its return address still lies where it was: a function that
//! has returned has given its place on the stack to what was called next, by another call instruction. Where another tracer
//! follows a function to its return, the kernel keeps its return address meanwhile. A function that jumps
//! to another as its last deed leaves it its place on the stack: that is known where its return is traced, for the
//! kernel has then replaced the return address. Elsewhere it looks as if one call instruction had called both, one after
//! the other (as that of a foreign-function interface does), and is taken for that.
//!
//! One file can be attached to under two names (two overlay mounts have the same file), and both attachments see each call:
//! the same function, return address and place on the stack, and an attachment that had not seen it yet.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_attach_cookie, bpf_get_current_cgroup_id, bpf_ktime_get_ns},
    macros::uprobe,
    programs::ProbeContext,
};
use orb8_common::cuda::{Calls, InCall, Stats, cookie, kind};
use orb8_probes::atomic;

use crate::{
    allocations,
    calls::{add, function, in_call, kind, stats},
    registers,
};

/// The entry of a traced function.
#[uprobe]
pub(crate) fn orb8_cuda_enter(ctx: ProbeContext) -> u32 {
    let Some(stats) = stats() else {
        return 0;
    };
    // SAFETY: the program's context.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let Some(in_call) = in_call(true) else {
        // SAFETY: a map value.
        unsafe {
            atomic::add(&raw mut (*stats).seen, 1);
            atomic::add(&raw mut (*stats).lost, 1);
        }
        return 0;
    };
    let stack = registers::stack(&ctx);
    let return_address = registers::return_address(&ctx, stack);
    let file = 1_u64 << (cookie >> cookie::FILE_SHIFT & cookie::FILE);
    if in_call.cookie != 0 {
        if in_call.stack == stack
            && in_call.return_address == return_address
            && function(in_call.cookie) == function(cookie)
            && in_call.files & file == 0
        {
            in_call.files |= file;
            return 0;
        }
        if lasts(in_call, cookie, stack, return_address) {
            // SAFETY: a map value.
            unsafe {
                atomic::add(&raw mut (*stats).seen, 1);
                atomic::add(&raw mut (*stats).nested, 1);
            }
            return 0;
        }
        give_up(in_call, stats);
    }
    // SAFETY: no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    let returns = cookie & cookie::RETURNS != 0;
    let kind = kind(cookie);
    let (mut address, mut bytes) = (0, 0);
    if kind == kind::FREE {
        address = registers::first(&ctx);
        bytes = allocations::release(address);
    } else if kind == kind::ALLOCATE || kind == kind::COPY {
        address = registers::first(&ctx);
        bytes = registers::second_or_third(&ctx, cookie >> cookie::BYTES_SHIFT & cookie::BYTES);
    }
    in_call.cookie = cookie;
    in_call.files = file;
    in_call.stack = stack;
    in_call.return_address = return_address;
    in_call.cgroup = cgroup;
    in_call.address = address;
    in_call.bytes = bytes;
    if kind != kind::ALLOCATE {
        let calls = Calls {
            count: 1,
            // How it ends is told by its return, if that is traced.
            bytes: if returns { 0 } else { bytes },
            ..Calls::default()
        };
        let counted = add(cgroup, function(cookie), &calls);
        // SAFETY: a map value.
        unsafe {
            atomic::add(&raw mut (*stats).seen, 1);
            if !counted {
                atomic::add(&raw mut (*stats).lost, 1);
            }
        }
    }
    if returns {
        // Last: the call's time begins here.
        // SAFETY: no arguments.
        in_call.start_ns = unsafe { bpf_ktime_get_ns() };
    }
    0
}

/// Whether the thread is still in that call, as it enters another one.
#[inline(always)]
fn lasts(in_call: &InCall, cookie: u64, stack: u64, return_address: u64) -> bool {
    let returns = in_call.cookie & cookie::RETURNS != 0;
    if stack < in_call.stack {
        return returns || registers::has_return_address(in_call.stack, in_call.return_address);
    }
    returns
        && stack == in_call.stack
        && return_address != in_call.return_address
        && function(in_call.cookie) != function(cookie)
}

/// The call has ended without being seen to. (Not so if its return is not traced.)
#[inline(always)]
fn give_up(in_call: &InCall, stats: *mut Stats) {
    if in_call.cookie & cookie::RETURNS == 0 {
        return;
    }
    // SAFETY: a map value.
    unsafe {
        atomic::add(&raw mut (*stats).unreturned, 1);
        if kind(in_call.cookie) == kind::ALLOCATE {
            // It would have counted at its return.
            atomic::add(&raw mut (*stats).seen, 1);
            atomic::add(&raw mut (*stats).lost, 1);
        } else {
            atomic::add(&raw mut (*stats).unmeasured, 1);
        }
    }
}
