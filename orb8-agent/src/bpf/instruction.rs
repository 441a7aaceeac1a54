//! Instructions of the eBPF virtual machine (RFC 9669), as many as the probing programs need.

/// One instruction, as `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    opcode: u8,
    /// Destination in the low half, source in the high half (little-endian hosts; the other way on big-endian).
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Helper functions that orb8 asks about, by number (`___BPF_FUNC_MAPPER`).
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Helper {
    /// `bpf_skb_cgroup_id(skb)`.
    SkbCgroupId = 79,
    /// `bpf_get_netns_cookie(ctx)`.
    NetnsCookie = 122,
    /// `bpf_get_current_task_btf()`.
    CurrentTaskBtf = 158,
    /// `bpf_ktime_get_coarse_ns()`.
    KtimeCoarse = 160,
}

const fn registers(destination: u8, source: u8) -> u8 {
    if cfg!(target_endian = "little") {
        source << 4 | destination
    } else {
        destination << 4 | source
    }
}

const FRAME_POINTER: u8 = 10;

/// `r0 = value` (64 bit).
const fn set_result(value: i32) -> Instruction {
    Instruction {
        opcode: 0xb7,
        registers: registers(0, 0),
        offset: 0,
        immediate: value,
    }
}

const EXIT: Instruction = Instruction {
    opcode: 0x95,
    registers: 0,
    offset: 0,
    immediate: 0,
};

/// A program that does nothing but return `value`.
#[must_use]
pub const fn return_constant(value: i32) -> [Instruction; 2] {
    [set_result(value), EXIT]
}

/// A program that calls a helper, with the context as its first argument, and returns `value`.
#[must_use]
pub const fn call_helper(helper: Helper, value: i32) -> [Instruction; 3] {
    let call = Instruction {
        opcode: 0x85,
        registers: 0,
        offset: 0,
        immediate: helper as i32,
    };
    [call, set_result(value), EXIT]
}

/// A program that does an atomic `or` on its stack and returns `value`.
#[must_use]
pub const fn atomic_or(value: i32) -> [Instruction; 4] {
    // *(u64 *)(r10 - 8) = 0; lock *(u64 *)(r10 - 8) |= r0
    let clear = Instruction {
        opcode: 0x7a,
        registers: registers(FRAME_POINTER, 0),
        offset: -8,
        immediate: 0,
    };
    let or = Instruction {
        opcode: 0xdb,
        registers: registers(FRAME_POINTER, 0),
        offset: -8,
        immediate: 0x40,
    };
    [set_result(value), clear, or, EXIT]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_has_eight_bytes() {
        assert_eq!(size_of::<Instruction>(), 8);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn registers_are_packed_as_rfc_9669_says() {
        // `lock *(u64 *)(r10 - 8) |= r0` as LLVM encodes it: db 0a f8 ff 40 00 00 00
        let or = atomic_or(0)[2];
        assert_eq!(
            (or.opcode, or.registers, or.offset, or.immediate),
            (0xdb, 0x0a, -8, 0x40)
        );
    }
}
