//! Processes that end or execute another program: what they held is released, and what they load is looked at.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use orb8_probes::atomic;

use crate::{calls::stats, maps, settings};

/// `TP_PROTO(struct task_struct *p, …)`: a thread ends, include/trace/events/sched.h.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn orb8_cuda_exit(_ctx: RawTracePointContext) -> i32 {
    let tgid = tgid();
    if maps::HOLDERS.get_ptr(&tgid).is_none() || lives() {
        return 0;
    }
    release_all(tgid)
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`: a process has a new program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn orb8_cuda_exec(_ctx: RawTracePointContext) -> i32 {
    let tgid = tgid();
    if maps::EXECUTED.push(&tgid, 0).is_err()
        && let Some(stats) = stats()
    {
        // SAFETY: a map value.
        unsafe { atomic::add(&raw mut (*stats).untold, 1) };
    }
    if maps::HOLDERS.get_ptr(&tgid).is_some() {
        return release_all(tgid);
    }
    0
}

#[inline(always)]
fn tgid() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// The allocations themselves are removed by user space, which finds them without a holder.
#[inline(always)]
fn release_all(tgid: u32) -> i32 {
    if maps::HOLDERS.remove(&tgid).is_ok()
        && let Some(stats) = stats()
    {
        // SAFETY: a map value.
        unsafe { atomic::add(&raw mut (*stats).ended, 1) };
        return 1;
    }
    0
}

/// Whether other threads of the current process have not ended yet. The kernel counts the one that ends out before it
/// comes here.
#[inline(always)]
fn lives() -> bool {
    let (mut signal, mut live) = (0_u64, 0_u32);
    // SAFETY: copies words of the current task at offsets that the kernel's BTF has, or fails and leaves zeros.
    unsafe {
        let task = bpf_get_current_task();
        let at = task.wrapping_add(u64::from(settings::TASK_SIGNAL.get()));
        bpf_probe_read_kernel((&raw mut signal).cast(), 8, at as *const _);
        let at = signal.wrapping_add(u64::from(settings::SIGNAL_LIVE.get()));
        bpf_probe_read_kernel((&raw mut live).cast(), 4, at as *const _);
    }
    live != 0
}
