//! Settings that the agent writes before it loads the object.

use orb8_probes::setting::Setting;

/// Not a value that the programs have anywhere: the compiler would let a constant of the same bytes share the setting's
/// place, and it would change with it.
const UNSET: [u8; 8] = *b"\xffunset\xff\xff";

/// 1: `bpf_get_current_task_btf` exists (Linux 5.11).
#[unsafe(no_mangle)]
pub(crate) static CURRENT_TASK_BTF: Setting<u32> = Setting::new(0);
/// Offset in `task_struct` of the word that says whether a call is a 32-bit one.
#[unsafe(no_mangle)]
pub(crate) static COMPAT_OFFSET: Setting<u32> = Setting::new(0);
/// Bits of that word that say so: `TS_COMPAT` of `thread_info.status` on x86, `TIF_32BIT` of `thread_info.flags` on
/// arm64; 0: cannot be told.
#[unsafe(no_mangle)]
pub(crate) static COMPAT_MASK: Setting<u32> = Setting::new(0);
/// `__X32_SYSCALL_BIT` on x86-64, 0 elsewhere.
#[unsafe(no_mangle)]
pub(crate) static X32_BIT: Setting<u32> = Setting::new(0);
/// Where `struct pt_regs` has the six arguments of a native call, in words.
#[unsafe(no_mangle)]
pub(crate) static NATIVE_ARGS: Setting<[u8; 8]> = Setting::new(UNSET);
/// The same of a 32-bit call.
#[unsafe(no_mangle)]
pub(crate) static COMPAT_ARGS: Setting<[u8; 8]> = Setting::new(UNSET);
