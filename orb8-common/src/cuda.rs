//! Records of the probe family of CUDA calls.
//!
//! One program runs at the entry of each traced function and one at its return; the cookie of the attachment says which
//! function it is and what its arguments are. Times are nanoseconds of `CLOCK_MONOTONIC`.

/// Bits of an attachment's cookie.
pub mod cookie {
    /// Bits 0–7: the function's number, which is the agent's own.
    pub const FUNCTION: u64 = 0xff;
    /// Bits 8–11: one of [`super::kind`].
    pub const KIND_SHIFT: u32 = 8;
    /// Mask of it, shifted down.
    pub const KIND: u64 = 0xf;
    /// Bits 12–14: the argument that has the size in bytes, from 0.
    pub const BYTES_SHIFT: u32 = 12;
    /// Mask of it, shifted down.
    pub const BYTES: u64 = 7;
    /// The function has a program at its return as well.
    pub const RETURNS: u64 = 1 << 16;
    /// Bits 24–29: the slot of the file, below [`super::FILES`].
    pub const FILE_SHIFT: u32 = 24;
    /// Mask of it, shifted down.
    pub const FILE: u64 = 63;
    /// Set in every cookie, so that none is zero.
    pub const PRESENT: u64 = 1 << 63;
}

/// What a function does with its arguments.
pub mod kind {
    /// Nothing that is of interest.
    pub const PLAIN: u64 = 0;
    /// Allocates as many bytes as the argument says, and writes the address to where its first argument points.
    pub const ALLOCATE: u64 = 1;
    /// Frees the address that is its first argument.
    pub const FREE: u64 = 2;
    /// Copies as many bytes as the argument says.
    pub const COPY: u64 = 3;
}

/// Files that programs are attached to at once.
pub const FILES: usize = 64;

/// Whose calls of what. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct CallKey {
    /// Id of the cgroup2 cgroup.
    pub cgroup: u64,
    /// As in the cookie.
    pub function: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Calls of one cgroup and function, cumulative. Only those that no other traced call of the thread made.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Calls {
    /// Calls as they were entered; of allocations those that returned with success.
    pub count: u64,
    /// Calls that returned an error, where they were seen to return.
    pub errors: u64,
    /// Bytes that were allocated, freed (of allocations that were seen) or copied. Of functions that have a program at their
    /// return, only those that it says succeeded.
    pub bytes: u64,
    /// Time from entry to return of the calls in `returned`.
    pub total_ns: u64,
    /// Calls that were seen to return.
    pub returned: u64,
}

/// The call that a thread is in: the outermost of those that are traced.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InCall {
    /// Of the attachment; 0: none.
    pub cookie: u64,
    /// Slots of files whose programs have seen this very call: one file may be attached to under two names.
    pub files: u64,
    /// Stack pointer at the entry.
    pub stack: u64,
    /// Where it returns to.
    pub return_address: u64,
    /// When it was entered; only with [`cookie::RETURNS`].
    pub start_ns: u64,
    /// The caller's cgroup.
    pub cgroup: u64,
    /// First argument of what allocates or frees.
    pub address: u64,
    /// Bytes that it is about.
    pub bytes: u64,
}

/// A process that holds device memory, by its id in the first PID namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holder {
    /// When it was first seen; tells it from others that had the same id.
    pub since_ns: u64,
    /// Its cgroup at that time.
    pub cgroup: u64,
    /// What it holds now.
    pub bytes: u64,
}

/// An allocation that has not been freed. The value is its size in bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AllocationKey {
    /// [`Holder::since_ns`].
    pub since_ns: u64,
    /// The process.
    pub tgid: u32,
    /// Always zero.
    pub reserved: u32,
    /// Where the memory is.
    pub address: u64,
}

/// What each CPU's programs count. Programs at user-space functions can be preempted by others of their kind, so that
/// they only add atomically.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Calls that were met: at their entry, those that allocate at their return.
    pub seen: u64,
    /// Calls that another traced call of the same thread made.
    pub nested: u64,
    /// Calls that had no room in a map, or no memory to be followed in.
    pub lost: u64,
    /// Calls that had a program at their return and were not seen to return.
    pub unreturned: u64,
    /// Of these, those that had been counted at their entry.
    pub unmeasured: u64,
    /// Calls that were seen to return.
    pub returned: u64,
    /// Allocations of more than nothing that succeeded.
    pub allocated: u64,
    /// Of these, those that are in nobody's held bytes.
    pub not_held: u64,
    /// Processes that held something and ended, or executed another program.
    pub ended: u64,
    /// Programs executed whose process had no room in the queue of those to look at.
    pub untold: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<CallKey>(), 16);
        assert_eq!(size_of::<Calls>(), 40);
        assert_eq!(size_of::<InCall>(), 64);
        assert_eq!(size_of::<Holder>(), 24);
        assert_eq!(size_of::<AllocationKey>(), 24);
        assert_eq!(size_of::<Stats>(), 80);
    }

    #[test]
    fn the_parts_of_a_cookie_do_not_overlap() {
        let parts = [
            cookie::FUNCTION,
            cookie::KIND << cookie::KIND_SHIFT,
            cookie::BYTES << cookie::BYTES_SHIFT,
            cookie::RETURNS,
            cookie::FILE << cookie::FILE_SHIFT,
            cookie::PRESENT,
        ];
        let together = parts.iter().fold(0, |all, part| all | part);
        assert_eq!(
            together.count_ones(),
            parts.iter().map(|part| part.count_ones()).sum()
        );
        assert_eq!(cookie::FILE as usize + 1, FILES);
    }
}
