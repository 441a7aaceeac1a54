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

/// Where `task_struct` has `utask`, in bytes; 0: not known, as the rest then.
#[unsafe(no_mangle)]
pub(crate) static TASK_UTASK: Setting<u32> = Setting::new(0);
/// Where `uprobe_task` has `return_instances`.
#[unsafe(no_mangle)]
pub(crate) static UTASK_RETURNS: Setting<u32> = Setting::new(0);
/// Where `return_instance` has `stack`.
#[unsafe(no_mangle)]
pub(crate) static RETURN_STACK: Setting<u32> = Setting::new(0);
/// Where `return_instance` has `orig_ret_vaddr`.
#[unsafe(no_mangle)]
pub(crate) static RETURN_ADDRESS: Setting<u32> = Setting::new(0);
/// Where `return_instance` has `next`.
#[unsafe(no_mangle)]
pub(crate) static RETURN_NEXT: Setting<u32> = Setting::new(0);
