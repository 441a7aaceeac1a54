//! The little of bpf(2) that orb8 needs beside aya: asking the kernel what it can do, by trying it; draining maps in
//! batches; tcx links by interface index.
//!
//! Constants and layouts are those of `include/uapi/linux/bpf.h`.

pub mod batch;
pub mod fd_info;
pub mod instruction;
pub mod link;

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use instruction::Instruction;

const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;
const LINK_CREATE: libc::c_int = 28;

/// Program types that orb8 asks about.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProgramType {
    /// Needs no more rights than bpf(2) itself.
    SocketFilter = 1,
    /// tc and tcx.
    Classifier = 3,
    /// Packets of a cgroup's sockets.
    CgroupSkb = 8,
    /// TCP callbacks of a cgroup's sockets.
    SockOps = 13,
    /// Tracepoints with their own arguments.
    RawTracepoint = 17,
}

/// Map types that orb8 asks about.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapType {
    /// A hash table.
    Hash = 1,
    /// A ring buffer: no key, no value, a size in bytes.
    RingBuffer = 27,
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    // BPF_LINK_CREATE's per-type part, all zero: no expected revision, no position.
    rest: [u64; 2],
}

#[repr(C)]
#[derive(Default)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// One call of bpf(2).
///
/// # Safety
/// Every pointer in `attributes` is valid for what `command` does with it, until the call returns.
unsafe fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes size_of::<T>() bytes of `attributes`, which is exclusively borrowed;
    // the caller answers for the pointers in it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            libc::c_ulong::try_from(size_of::<T>()).unwrap_or(0),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes the descriptor that a successful call returned.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(result).map_err(io::Error::other)?;
    // SAFETY: bpf(2) just returned this descriptor to us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a map that vanishes with its descriptor.
///
/// # Errors
/// What bpf(2) says: `EPERM` without the right to, `EINVAL` for a type or size that the kernel does not take.
pub fn create_map(kind: MapType, key_size: u32, value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate {
        map_type: kind as u32,
        key_size,
        value_size,
        max_entries,
        ..MapCreate::default()
    };
    // SAFETY: these attributes hold no pointer.
    descriptor(unsafe { call(MAP_CREATE, &mut attributes) }?)
}

/// Loads a program (under GPL, as orb8's own) without attaching it; it vanishes with its descriptor.
///
/// # Errors
/// What bpf(2) says: `EPERM` without the right to, `EINVAL` or `EACCES` when the verifier rejects it, which it
/// does for a helper that this program type may not call.
pub fn load_program(kind: ProgramType, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        prog_type: kind as u32,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..ProgLoad::default()
    };
    // SAFETY: `insns` points to `insn_cnt` instructions and `license` to a NUL-terminated string; the kernel
    // only reads both, before the call returns.
    descriptor(unsafe { call(PROG_LOAD, &mut attributes) }?)
}

/// Whether the kernel knows tcx links. Asks to attach to an interface that cannot exist, so nothing is
/// attached: a kernel with tcx misses the interface, one without does not know the attach type.
///
/// # Errors
/// What bpf(2) says to the program, or to the link where that tells nothing.
pub fn has_tcx() -> io::Result<bool> {
    const TCX_INGRESS: u32 = 46;
    // The kernel's interface indices are positive `int`s given out from 1 on.
    const NO_INTERFACE: u32 = i32::MAX as u32;
    let program = load_program(ProgramType::Classifier, &instruction::return_constant(0))?;
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target: NO_INTERFACE,
        attach_type: TCX_INGRESS,
        ..LinkCreate::default()
    };
    // SAFETY: these attributes hold no pointer.
    match unsafe { call(LINK_CREATE, &mut attributes) } {
        Ok(link) => descriptor(link).map(|_detached_by_drop| true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV) => Ok(true),
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::E2BIG) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Whether hash maps can be emptied in batches: tries it on an empty map, where a kernel that can finds nothing.
///
/// # Errors
/// What bpf(2) says to the map, or to the batch where that tells nothing.
pub fn has_lookup_and_delete_batch() -> io::Result<bool> {
    let map = create_map(MapType::Hash, 4, 4, 1)?;
    let (mut position, mut key, mut value) = ([0u8; 8], [0u8; 4], [0u8; 4]);
    let mut attributes = MapBatch {
        out_batch: position.as_mut_ptr() as u64,
        keys: key.as_mut_ptr() as u64,
        values: value.as_mut_ptr() as u64,
        count: 1,
        map_fd: map.as_raw_fd().cast_unsigned(),
        ..MapBatch::default()
    };
    // SAFETY: room for one key and one value of the map's sizes, and for a hash map's position (4 bytes).
    match unsafe { call(MAP_LOOKUP_AND_DELETE_BATCH, &mut attributes) } {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(true),
            // 524 is the kernel's ENOTSUPP, which no header of user space has.
            Some(libc::EINVAL | 524) => Ok(false),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_laid_out_as_in_the_kernel() {
        // Offsets of union bpf_attr, include/uapi/linux/bpf.h.
        assert_eq!(std::mem::offset_of!(ProgLoad, log_buf), 32);
        assert_eq!(std::mem::offset_of!(ProgLoad, prog_name), 48);
        assert_eq!(std::mem::offset_of!(ProgLoad, expected_attach_type), 68);
        assert_eq!(size_of::<ProgLoad>(), 72);
        assert_eq!(std::mem::offset_of!(MapBatch, count), 32);
        assert_eq!(std::mem::offset_of!(MapBatch, elem_flags), 40);
        assert_eq!(size_of::<MapBatch>(), 56);
        assert_eq!(size_of::<MapCreate>(), 20);
        assert_eq!(size_of::<LinkCreate>(), 32);
    }
}
