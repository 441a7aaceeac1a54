//! The call that each task is in, if it is measured.
//!
//! Most tasks have a slot in an array, at a place that follows from where their registers lie on their kernel stack. The
//! tracepoints hand that address over, so that finding the slot takes no helper, and it is the task's alone as long as it
//! lives. Who comes first has the slot until it ends: what begins in a slot ends in it. Who finds its slot taken has storage of
//! its own, which costs more and is never missing for want of a place.

use aya_ebpf::{
    helpers::generated::bpf_task_pt_regs, macros::raw_tracepoint, programs::RawTracePointContext,
};
use orb8_common::syscall::{CALL_SLOT_BITS, CallSlot, Cpu, InCall};
use orb8_probes::atomic;

use crate::{call::task, caller::cpu, maps};

/// The slot of whoever has its registers at this address.
#[inline(always)]
fn slot(registers: u64) -> Option<*mut CallSlot> {
    // Fibonacci hashing: stacks lie at distances of few powers of two.
    let hash = registers.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    maps::SLOTS.get_ptr_mut((hash >> (u64::BITS - CALL_SLOT_BITS)) as u32)
}

#[inline(always)]
fn owner(slot: *mut CallSlot) -> u64 {
    // SAFETY: a map value; other CPUs change it as a whole.
    unsafe { (&raw const (*slot).owner).read_volatile() }
}

/// The task's slot, if it has one.
#[inline(always)]
fn own(registers: u64) -> Option<&'static mut InCall> {
    let slot = slot(registers)?;
    if owner(slot) != registers {
        return None;
    }
    // SAFETY: a map value that only programs of its owner, the current task, use.
    Some(unsafe { &mut (*slot).call })
}

/// The task's slot, also one that it takes now.
#[inline(always)]
fn own_or_free(registers: u64, cpu: &mut Cpu) -> Option<&'static mut InCall> {
    let slot = slot(registers)?;
    let owner = owner(slot);
    if owner != registers && (owner != 0 || take(slot, registers, cpu) == 0) {
        return None;
    }
    // SAFETY: as above.
    Some(unsafe { &mut (*slot).call })
}

/// Gives a free slot to the current task, which enters a call. 1: it has it; 0: another was first.
#[inline(never)]
fn take(slot: *mut CallSlot, registers: u64, cpu: &mut Cpu) -> u32 {
    // SAFETY: a map value.
    if unsafe { atomic::compare_exchange64(&raw mut (*slot).owner, 0, registers) } != 0 {
        return 0;
    }
    // It may have had storage until now, which nobody will look at any more.
    // SAFETY: the current task.
    if let Some(before) = unsafe { maps::IN_CALL.get(task()) } {
        forget(before, cpu);
    }
    1
}

/// Ends what a call that did not return as calls do has left.
#[inline(always)]
pub(crate) fn forget(in_call: &mut InCall, cpu: &mut Cpu) {
    if in_call.start_ns != 0 && in_call.phase == cpu.phase {
        cpu.unmeasured += 1;
    }
    in_call.start_ns = 0;
}

/// For a call that is entered: where the current task keeps it; `None` without memory.
#[inline(always)]
pub(crate) fn entered(registers: u64, cpu: &mut Cpu) -> Option<&'static mut InCall> {
    match own_or_free(registers, cpu) {
        // SAFETY: the current task.
        None => unsafe { maps::IN_CALL.get_or_create(task()) },
        own => own,
    }
}

/// As [`entered`], for a call that is not measured: nothing is made for it.
#[inline(always)]
pub(crate) fn entered_unmeasured(registers: u64, cpu: &mut Cpu) -> Option<&'static mut InCall> {
    match own_or_free(registers, cpu) {
        // SAFETY: the current task.
        None => unsafe { maps::IN_CALL.get(task()) },
        own => own,
    }
}

/// For a call that returns: where the current task keeps it, if anywhere.
#[inline(always)]
pub(crate) fn returned(registers: u64) -> Option<&'static mut InCall> {
    match own(registers) {
        // SAFETY: the current task.
        None => unsafe { maps::IN_CALL.get(task()) },
        own => own,
    }
}

/// The current task ends: its slot goes to the next that comes.
///
/// `TP_PROTO(struct task_struct *p, …)`, include/trace/events/sched.h. Needs Linux 5.15 (`bpf_task_pt_regs`).
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn orb8_task_exit(_: RawTracePointContext) -> i32 {
    let Some(cpu) = cpu() else {
        return 0;
    };
    // Through memory: the verifier lets nothing be calculated of a pointer, and forgets there that it is one.
    // SAFETY: the current task; a valid reference.
    let registers = unsafe {
        let registers = &raw mut cpu.registers;
        registers.write_volatile(bpf_task_pt_regs(task()) as u64);
        registers.read_volatile()
    };
    let Some(slot) = slot(registers) else {
        return 0;
    };
    if owner(slot) == registers {
        // SAFETY: a map value that is the current task's. The exchange also keeps the order: whoever has the slot next
        // finds it empty.
        unsafe {
            forget(&mut (*slot).call, cpu);
            atomic::compare_exchange64(&raw mut (*slot).owner, registers, 0);
        }
    }
    0
}
