//! Settings that the agent writes before it loads an object: the verifier removes what they switch off.

use core::ptr::read_volatile;

/// A read-only setting. The kernel knows its value while it verifies.
#[repr(transparent)]
#[derive(Debug)]
pub struct Setting<T>(T);

// SAFETY: only read, after the agent wrote it before the load.
unsafe impl<T> Sync for Setting<T> {}

impl<T: Copy> Setting<T> {
    /// A setting with the value that it has if the agent does not write it.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// Its value.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: a valid reference; volatile, since the compiler must not assume the initial value.
        unsafe { read_volatile(&raw const self.0) }
    }
}
