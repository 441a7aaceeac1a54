//! Registers of a thread at the entry of a function, or at its return.
//!
//! The context of a uprobe is the thread's `struct pt_regs` (x86-64) or `struct user_pt_regs` (arm64), of which a program
//! may read words at constant places only.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user},
};

use crate::settings;

/// Traced returns of a thread that are gone through: functions whose return is traced, within each other, above the one that
/// is looked for. The kernel keeps up to 64.
const RETURNS: u32 = 16;

/// Word of the context with the stack pointer.
mod x86_64 {
    pub(super) const ARGUMENTS: [usize; 3] = [14, 13, 12]; // rdi, rsi, rdx
    pub(super) const RESULT: usize = 10; // rax
    pub(super) const STACK: usize = 19; // rsp
}

mod arm64 {
    pub(super) const ARGUMENTS: [usize; 3] = [0, 1, 2];
    pub(super) const RESULT: usize = 0;
    pub(super) const LINK: usize = 30;
    pub(super) const STACK: usize = 31;
}

#[inline(always)]
fn is_arm64() -> bool {
    settings::MACHINE.get() == settings::ARM64
}

#[inline(always)]
fn word(ctx: &impl EbpfContext, at: usize) -> u64 {
    // SAFETY: a word of the context, at a place that is constant once this is inlined.
    unsafe { ctx.as_ptr().cast::<u64>().add(at).read_volatile() }
}

/// One of two words that every machine's context has. Both are read: of two branches the compiler would make one that reads
/// at a place which depends on the machine, and the verifier refuses that.
#[inline(always)]
fn of(ctx: &impl EbpfContext, x86_64: usize, arm64: usize) -> u64 {
    let words = (word(ctx, x86_64), word(ctx, arm64));
    if is_arm64() { words.1 } else { words.0 }
}

/// The first argument.
#[inline(always)]
pub(crate) fn first(ctx: &impl EbpfContext) -> u64 {
    of(ctx, x86_64::ARGUMENTS[0], arm64::ARGUMENTS[0])
}

/// Argument 1 (the second) if `number` is 1, else 2 (the third).
#[inline(always)]
pub(crate) fn second_or_third(ctx: &impl EbpfContext, number: u64) -> u64 {
    if number == 1 {
        of(ctx, x86_64::ARGUMENTS[1], arm64::ARGUMENTS[1])
    } else {
        of(ctx, x86_64::ARGUMENTS[2], arm64::ARGUMENTS[2])
    }
}

/// What a function returned.
#[inline(always)]
pub(crate) fn result(ctx: &impl EbpfContext) -> u64 {
    of(ctx, x86_64::RESULT, arm64::RESULT)
}

/// The stack pointer as it was at the function's entry.
#[inline(always)]
pub(crate) fn stack(ctx: &impl EbpfContext) -> u64 {
    if is_arm64() {
        // Beyond the end of x86-64's context; read so that the branches are not made one, as in `of`.
        let mut word = 0_u64;
        // SAFETY: copies a word of the context, or fails and leaves zero.
        unsafe {
            let at = ctx.as_ptr().cast::<u64>().add(arm64::STACK);
            bpf_probe_read_kernel((&raw mut word).cast(), 8, at.cast());
        }
        word
    } else {
        word(ctx, x86_64::STACK)
    }
}

/// The same, at the function's return: x86-64 has taken the return address from the stack by then.
#[inline(always)]
pub(crate) fn stack_at_return(ctx: &impl EbpfContext) -> u64 {
    let stack = stack(ctx);
    if is_arm64() { stack } else { stack.wrapping_sub(8) }
}

/// Where the function returns to; at its entry.
#[inline(always)]
pub(crate) fn return_address(ctx: &impl EbpfContext, stack: u64) -> u64 {
    if is_arm64() {
        word(ctx, arm64::LINK)
    } else {
        user_word(stack)
    }
}

/// Whether a call that was entered with this return address at this place of the stack still has it there; never, where
/// return addresses are not on the stack.
#[inline(always)]
pub(crate) fn has_return_address(stack: u64, address: u64) -> bool {
    !is_arm64() && (user_word(stack) == address || is_replaced(stack, address))
}

/// Whether the kernel keeps this return address, and has put its own at this place of the stack: somebody traces the
/// function's return (`prepare_uretprobe`, kernel/events/uprobes.c). The kernel takes it off its list as the function
/// returns.
#[inline(never)]
fn is_replaced(stack: u64, address: u64) -> bool {
    let utask = settings::TASK_UTASK.get();
    if utask == 0 {
        return false;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let utask = kernel_word(task, utask);
    if utask == 0 {
        return false;
    }
    let mut instance = kernel_word(utask, settings::UTASK_RETURNS.get());
    for _ in 0..RETURNS {
        if instance == 0 {
            return false;
        }
        if kernel_word(instance, settings::RETURN_STACK.get()) == stack {
            return kernel_word(instance, settings::RETURN_ADDRESS.get()) == address;
        }
        instance = kernel_word(instance, settings::RETURN_NEXT.get());
    }
    false
}

/// A word of the kernel's memory; 0 if it cannot be read.
#[inline(always)]
fn kernel_word(of: u64, at: u32) -> u64 {
    let mut word = 0_u64;
    let from = of.wrapping_add(u64::from(at));
    // SAFETY: copies a word of kernel memory, or fails and leaves zero.
    unsafe { bpf_probe_read_kernel((&raw mut word).cast(), 8, from as *const _) };
    word
}

/// A word of the process's memory; 0 if it cannot be read.
#[inline(always)]
pub(crate) fn user_word(address: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: copies a word of user memory, or fails and leaves zero.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const _) };
    word
}
