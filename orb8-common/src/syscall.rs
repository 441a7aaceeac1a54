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
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// Elements of a row. Numbers go up to 547 on x86-64 (x32's own), and up to 470 elsewhere (Linux 6.18).
pub const NUMBERS: usize = 576;
/// The element for numbers that no table has: those of [`NUMBERS`] and above, and negative ones.
pub const OUT_OF_RANGE: usize = NUMBERS - 1;

/// Who calls. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CallerKey {
    /// Id of the cgroup2 cgroup; never zero.
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

/// No row is free: the caller's calls go to the remainder of its cgroup.
pub const NO_ROW: u32 = u32::MAX;

/// What one CPU's programs keep, and what user space tells them. A CPU has two cache lines of its own.
///
/// The programs of a CPU run one at a time (preemption is disabled, and no interrupt runs one), so that nothing here but
/// `caller` and `phase` is written from elsewhere.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cpu {
    /// Cgroup of the last caller.
    pub cgroup: u64,
    /// The last caller's ABI plus one in the low half, its row (or [`NO_ROW`]) in the high half. User space zeroes it
    /// after it has taken rows away: the next call looks its row up.
    pub caller: u64,
    /// Which phase of latency mode it is; 0: none. Written by user space.
    pub phase: u64,
    /// Calls that are in no row and no remainder.
    pub lost: u64,
    /// Events: calls that were to be told one by one.
    pub wanted: u64,
    /// Events that sampling left out.
    pub sampled_out: u64,
    /// Events that did not fit into the ring.
    pub events_lost: u64,
    /// Latency: calls that were to be measured.
    pub started: u64,
    /// Latency: calls that could not be.
    pub unmeasured: u64,
    /// Latency: errors that had no room in their map.
    pub errors_lost: u64,
    /// Scratch memory of the event that is being made: bytes of its text that are used, and its strings.
    pub text: [u32; 2],
    /// The same: [`Event::truncated`] and [`Event::unreadable`].
    pub text_flags: [u32; 2],
    /// The same of a task that ends: [`CallSlot::owner`].
    pub registers: u64,
    /// Always zero.
    pub reserved: [u64; 3],
}

/// How a number is treated.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watch {
    /// Every so many calls one is told through the ring; 0: none.
    pub weight: u32,
    /// Bits of [`watch`].
    pub flags: u32,
}

/// Bits of [`Watch::flags`].
pub mod watch {
    /// Bits 0–5: arguments that point to strings.
    pub const STRINGS: u32 = 0x3f;
    /// Bits 8–10: the argument that points to an array of pointers to strings, plus one.
    pub const VECTOR_SHIFT: u32 = 8;
    /// Mask of it, shifted down.
    pub const VECTOR: u32 = 7;
    /// Only with namespace flags in the first argument, whose low byte is a signal: clone.
    pub const CLONE_FLAGS: u32 = 1 << 12;
    /// Only with namespace flags in the first argument: unshare.
    pub const UNSHARE_FLAGS: u32 = 1 << 13;
    /// Only with namespace flags in the 64 bits that the first argument points to: clone3.
    pub const CLONE3_FLAGS: u32 = 1 << 14;
    /// The call does not return: exit, `exit_group`.
    pub const NEVER_RETURNS: u32 = 1 << 16;
    /// What the call returns is not its result: `rt_sigreturn`.
    pub const NO_RESULT: u32 = 1 << 17;
    /// Latency mode leaves the call out: neither how it ended nor how long it took was asked for.
    pub const NOT_MEASURED: u32 = 1 << 18;
}

/// Elements of a latency histogram: element `i` counts calls that took less than 2^i ns and at least half of that, the
/// last one all that took longer.
pub const LATENCY_BUCKETS: usize = 40;

/// Which [`Latency`] each number of a row has, plus one; 0: none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LatencyIndex {
    /// By number.
    pub index: [u32; NUMBERS],
}

/// Time from entry to return of one caller's calls of one number, cumulative.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Latency {
    /// Sum of nanoseconds.
    pub total_ns: u64,
    /// Calls by how long they took.
    pub buckets: [u64; LATENCY_BUCKETS],
}

/// A task's call that is being measured.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InCall {
    /// When it was entered; 0: none is being measured.
    pub start_ns: u64,
    /// The cgroup that made it, to which the row belonged.
    pub cgroup: u64,
    /// [`Cpu::phase`] at that time.
    pub phase: u64,
    /// The caller's row.
    pub row: u32,
    /// Number, and [`watch::NO_RESULT`].
    pub number: u32,
}

/// Binary digits of a slot's place among the [`CALL_SLOTS`].
pub const CALL_SLOT_BITS: u32 = 13;
/// Slots: as many tasks are measured at the least cost.
pub const CALL_SLOTS: u32 = 1 << CALL_SLOT_BITS;

/// Where one task's calls are measured, call after call until the task ends. A cache line, which no other CPU's task writes
/// to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CallSlot {
    /// Whose it is: where the task's registers lie on its kernel stack, which is no other task's as long as it lives. 0:
    /// nobody's. [`CLOSED`]: nobody may have it.
    pub owner: u64,
    /// The task's call.
    pub call: InCall,
    /// Always zero.
    pub reserved: [u64; 3],
}

/// A [`CallSlot::owner`] that is no address.
pub const CLOSED: u64 = 1;

/// A caller's calls of one number that ended in one error.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ErrorKey {
    /// The caller's row.
    pub row: u32,
    /// Number.
    pub number: u16,
    /// Error, 1 to 4095. 512 and above are the kernel's own, of calls that a signal interrupted and that are restarted
    /// (include/linux/errno.h).
    pub errno: u16,
}

/// Bytes of strings that an event has room for.
pub const TEXT: usize = 256;
/// Strings that an event has room for.
pub const STRINGS: usize = 8;
/// Bytes of a string that are kept, without its NUL.
pub const STRING: usize = 127;

/// One call, told through the ring. A record in the ring ends before `text` if the call has no strings.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When it was entered.
    pub time_ns: u64,
    /// Id of the caller's cgroup.
    pub cgroup: u64,
    /// Arguments as they were in the registers; of 32-bit calls zero-extended.
    pub args: [u64; 6],
    /// Process (in the first PID namespace).
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// One of [`abi`].
    pub abi: u32,
    /// Number, or [`OUT_OF_RANGE`].
    pub number: u32,
    /// How many calls this one stands for.
    pub weight: u32,
    /// Strings in `text`.
    pub strings: u8,
    /// Bit by string: there is more of it than `text` has.
    pub truncated: u8,
    /// Bit by string: it could not be read, mostly because its page was not in memory. Its length is 0.
    pub unreadable: u8,
    /// 1: the call has more strings (arguments of a program) than `text` has.
    pub more: u8,
    /// Name of the thread, NUL-terminated.
    pub comm: [u8; 16],
    /// Length of each string.
    pub lengths: [u8; STRINGS],
    /// The strings one after another, each with a NUL that its length leaves out. Any bytes.
    pub text: [u8; TEXT],
}

/// Bytes of an [`Event`] before its `text`.
pub const EVENT_HEAD: usize = core::mem::offset_of!(Event, text);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<CallerKey>(), 16);
        assert_eq!(size_of::<Row>(), 8 * NUMBERS);
        assert_eq!(size_of::<Cpu>(), 128);
        assert_eq!(size_of::<Watch>(), 8);
        assert_eq!(size_of::<LatencyIndex>(), 4 * NUMBERS);
        assert_eq!(size_of::<Latency>(), 8 + 8 * LATENCY_BUCKETS);
        assert_eq!(size_of::<InCall>(), 32);
        assert_eq!(size_of::<CallSlot>(), 64);
        assert_eq!(size_of::<ErrorKey>(), 8);
        assert_eq!(EVENT_HEAD, 112);
        assert_eq!(size_of::<Event>(), EVENT_HEAD + TEXT);
    }
}
