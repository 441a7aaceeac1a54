//! Records of the syscall probe family.
//!
//! Counts live in one array of rows, which user space maps into its memory: a row for each cgroup and ABI that calls, an
//! element of it for each number. Programs only add, so that what user space reads is never less than it was, and nothing
//! has to be taken out. Times are nanoseconds of `CLOCK_MONOTONIC`.

/// ABIs: which table a call's number is of.
pub mod abi {
    /// The machine's own: x86-64 or arm64.
    pub const NATIVE: u32 = 0;
    /// 32-bit calls: i386 on x86-64, arm on arm64.
    pub const COMPAT: u32 = 1;
    /// x86-64 with 32-bit pointers (`__X32_SYSCALL_BIT`, arch/x86/include/uapi/asm/unistd.h).
    pub const X32: u32 = 2;
}

/// Elements of a row. Numbers go up to 547 on x86-64 (x32's own), and up to 470 elsewhere (Linux 6.18).
pub const NUMBERS: usize = 576;
/// The element for numbers that no table has: those of [`NUMBERS`] and above, and negative ones.
pub const OUT_OF_RANGE: usize = NUMBERS - 1;

/// Who calls. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CallerKey {
    /// Id of the cgroup2 cgroup.
    pub cgroup: u64,
    /// One of [`abi`].
    pub abi: u32,
    /// Always zero.
    pub reserved: u32,
}

/// A caller's counts, cumulative since its row was given to it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Calls by number.
    pub calls: [u64; NUMBERS],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<CallerKey>(), 16);
        assert_eq!(size_of::<Row>(), 8 * NUMBERS);
    }
}
