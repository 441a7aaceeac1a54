//! Which call it is: its ABI and number.

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel},
};
use orb8_common::syscall::{OUT_OF_RANGE, abi};

use crate::settings;

/// A call.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    /// One of [`abi`].
    pub(crate) abi: u32,
    /// Below [`orb8_common::syscall::NUMBERS`].
    pub(crate) number: u32,
}

impl Call {
    /// From what the tracepoint has for a number.
    #[inline(always)]
    pub(crate) fn new(id: u64) -> Self {
        let id = id as u32;
        if is_compat() {
            return Self::of(abi::COMPAT, id);
        }
        let x32 = settings::X32_BIT.get();
        // A negative number has the bit too.
        if id & x32 != 0 && id >> 31 == 0 {
            return Self::of(abi::X32, id & !x32);
        }
        Self::of(abi::NATIVE, id)
    }

    #[inline(always)]
    fn of(abi: u32, number: u32) -> Self {
        let number = if number < OUT_OF_RANGE as u32 {
            number
        } else {
            OUT_OF_RANGE as u32
        };
        Self { abi, number }
    }
}

/// The task that calls.
#[inline(always)]
pub(crate) fn task() -> *mut task_struct {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task_btf() }
}

/// Whether the kernel handles the call as a 32-bit one, also if 64-bit code made it (`int 0x80`).
#[inline(always)]
fn is_compat() -> bool {
    let mask = settings::COMPAT_MASK.get();
    if mask == 0 {
        return false;
    }
    let offset = settings::COMPAT_OFFSET.get() as usize;
    let word = if settings::CURRENT_TASK_BTF.get() == 1 {
        // SAFETY: a word of the current task, at an offset that the kernel's BTF has.
        unsafe { task().cast::<u8>().add(offset).cast::<u32>().read_volatile() }
    } else {
        let mut word = 0_u32;
        // SAFETY: copies a word of the current task, or zero.
        unsafe {
            let task = bpf_get_current_task() as *const u8;
            bpf_probe_read_kernel((&raw mut word).cast(), 4, task.wrapping_add(offset).cast());
        }
        word
    };
    word & mask != 0
}
