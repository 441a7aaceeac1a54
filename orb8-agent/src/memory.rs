//! How the C library's allocator keeps memory.

/// Makes the allocator give back what is free. An epoch with a hundred thousand flows takes megabytes for a moment; by
/// default each thread would keep an arena of its own, and its high-water mark for good.
pub(crate) fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain settings, without pointers; on failure the defaults stay.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}
