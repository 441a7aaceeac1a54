//! Settings that the agent writes before it loads the object.

use orb8_probes::setting::Setting;

/// Which registers a function's arguments are in: [`X86_64`] or [`ARM64`].
#[unsafe(no_mangle)]
pub(crate) static MACHINE: Setting<u32> = Setting::new(X86_64);
/// System V calling convention; the return address is on the stack.
pub(crate) const X86_64: u32 = 0;
/// AAPCS64; the return address is in a register.
pub(crate) const ARM64: u32 = 1;

/// Where `task_struct` has `signal`, in bytes.
#[unsafe(no_mangle)]
pub(crate) static TASK_SIGNAL: Setting<u32> = Setting::new(0);
/// Where `signal_struct` has `live`, the number of threads that have not ended.
#[unsafe(no_mangle)]
pub(crate) static SIGNAL_LIVE: Setting<u32> = Setting::new(0);
