//! Where the kernel remembers that a call is a 32-bit one, and where it keeps a call's arguments.

use std::{fs, path::Path};

use crate::probe::btf;

/// Where to look in the current task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CompatFlag {
    /// Bytes from the beginning of `task_struct`, of 32 bits.
    pub(super) offset: u32,
    /// Bits that are set during a 32-bit call; 0: none are known.
    pub(super) mask: u32,
}

/// `TS_COMPAT` (arch/x86/include/asm/thread_info.h): set from the entry of a 32-bit call until its return to user
/// space, whatever code made it.
const TS_COMPAT: u32 = 0x0002;
/// `TIF_32BIT` (arch/arm64/include/asm/thread_info.h): the task is a 32-bit one.
const TIF_32BIT: u32 = 1 << 22;

/// `__X32_SYSCALL_BIT`.
pub(super) const X32_BIT: u32 = if cfg!(target_arch = "x86_64") {
    0x4000_0000
} else {
    0
};

/// Words of `struct pt_regs` that have a native call's arguments: on x86-64 rdi, rsi, rdx, r10, r8, r9.
pub(super) const NATIVE_ARGS: [u8; 8] = if cfg!(target_arch = "x86_64") {
    [14, 13, 12, 7, 9, 8, 0, 0]
} else {
    [0, 1, 2, 3, 4, 5, 0, 0]
};
/// The same of a 32-bit call: on x86-64 ebx, ecx, edx, esi, edi, ebp.
pub(super) const COMPAT_ARGS: [u8; 8] = if cfg!(target_arch = "x86_64") {
    [5, 11, 12, 13, 14, 4, 0, 0]
} else {
    NATIVE_ARGS
};

/// Looks it up in the kernel's BTF.
///
/// # Errors
/// A sentence that says why it is not known. 32-bit calls are then counted under native numbers.
pub(super) fn compat_flag() -> Result<CompatFlag, String> {
    let (member, mask) = if cfg!(target_arch = "x86_64") {
        ("status", TS_COMPAT)
    } else if cfg!(target_arch = "aarch64") {
        ("flags", TIF_32BIT)
    } else {
        return Err("where this architecture keeps it is not known".to_owned());
    };
    let file = Path::new("/sys/kernel/btf/vmlinux");
    let bytes = fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let offset = |structure, member| {
        btf::member_offset(&bytes, structure, member)
            .ok_or_else(|| format!("{} has no {structure}.{member}", file.display()))
    };
    // Elsewhere than in the task, where kernels are built without CONFIG_THREAD_INFO_IN_TASK.
    let offset = offset("task_struct", "thread_info")? + offset("thread_info", member)?;
    Ok(CompatFlag { offset, mask })
}
