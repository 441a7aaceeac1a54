//! The few bpf(2) commands that aya lacks: batched draining of hash maps, and tcx links by interface index.
//!
//! Layouts are those of `union bpf_attr` in include/uapi/linux/bpf.h.

use std::{
    fs, io,
    mem::{self, MaybeUninit},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;
const BPF_LINK_CREATE: libc::c_int = 28;

/// Before all others: at the head of the chain, where `relative_fd` is 0.
const BPF_F_BEFORE: u32 = 1 << 3;

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is a live, writable record of the length given, laid out as the command wants.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), mem::size_of::<T>() as u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Side of an interface that a tcx program is attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcxSide {
    /// Packets that the interface receives.
    Ingress,
    /// Packets that the interface sends.
    Egress,
}

/// Attaches a classifier at the head of an interface's tcx chain (Linux 6.6). Closing the descriptor detaches it, also
/// when the process is killed.
///
/// # Errors
/// `ENODEV` if there is no such interface, `EPERM` without `CAP_NET_ADMIN` and `CAP_BPF`, `EINVAL` on kernels without
/// tcx.
pub fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, side: TcxSide) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
        relative_fd: u32,
        padding: u32,
        expected_revision: u64,
    }
    const BPF_TCX_INGRESS: u32 = 46;
    const BPF_TCX_EGRESS: u32 = 47;
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: ifindex,
        attach_type: match side {
            TcxSide::Ingress => BPF_TCX_INGRESS,
            TcxSide::Egress => BPF_TCX_EGRESS,
        },
        flags: BPF_F_BEFORE,
        relative_fd: 0,
        padding: 0,
        expected_revision: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Empties hash maps of one layout in batches. Owns its buffers: `batch` × the sizes of key and value.
///
/// `K` and `V` must be records without padding that any bytes are a valid value of.
#[derive(Debug)]
pub struct BatchDrain<K, V> {
    keys: Vec<MaybeUninit<K>>,
    values: Vec<MaybeUninit<V>>,
}

impl<K: Copy, V: Copy> BatchDrain<K, V> {
    /// A drain that takes up to `batch` entries a system call.
    #[must_use]
    pub fn new(batch: usize) -> Self {
        Self { keys: vec![MaybeUninit::uninit(); batch], values: vec![MaybeUninit::uninit(); batch] }
    }

    /// Takes every entry out of `map` and hands it to `each`. Cost: one system call a batch, proportional to the map's
    /// buckets and entries. Entries that programs add meanwhile may stay.
    ///
    /// # Errors
    /// As bpf(2) for `BPF_MAP_LOOKUP_AND_DELETE_BATCH` (Linux 5.6). What was handed on until then is out of the map.
    pub fn drain(&mut self, map: impl AsFd, mut each: impl FnMut(&K, &V)) -> io::Result<u64> {
        #[repr(C)]
        struct Attributes {
            in_batch: u64,
            out_batch: u64,
            keys: u64,
            values: u64,
            count: u32,
            map_fd: u32,
            elem_flags: u64,
            flags: u64,
        }
        let mut position = 0_u32;
        let mut next = 0_u32;
        let mut first = true;
        let mut drained = 0;
        loop {
            let mut attributes = Attributes {
                in_batch: if first { 0 } else { std::ptr::from_mut(&mut position).expose_provenance() as u64 },
                out_batch: std::ptr::from_mut(&mut next).expose_provenance() as u64,
                keys: self.keys.as_mut_ptr().expose_provenance() as u64,
                values: self.values.as_mut_ptr().expose_provenance() as u64,
                count: self.keys.len() as u32,
                map_fd: map.as_fd().as_raw_fd().cast_unsigned(),
                elem_flags: 0,
                flags: 0,
            };
            let result = bpf(BPF_MAP_LOOKUP_AND_DELETE_BATCH, &mut attributes);
            let done = match result {
                Ok(_) => false,
                // The last batch; `count` says how many it has.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket with more entries than a batch: nothing was taken.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    let larger = self.keys.len() * 2;
                    self.keys.resize(larger, MaybeUninit::uninit());
                    self.values.resize(larger, MaybeUninit::uninit());
                    continue;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) => return Err(error),
            };
            let count = (attributes.count as usize).min(self.keys.len());
            for (key, value) in self.keys.iter().zip(&self.values).take(count) {
                // SAFETY: the kernel filled `count` entries of both.
                unsafe { each(key.assume_init_ref(), value.assume_init_ref()) };
            }
            drained += count as u64;
            if done {
                return Ok(drained);
            }
            position = next;
            first = false;
        }
    }
}

/// What the kernel says of a program or map in `/proc/self/fdinfo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FdInfo {
    /// Bytes that it occupies.
    pub memlock: u64,
    /// Runs, while `kernel.bpf_stats_enabled` is 1.
    pub run_count: u64,
    /// Time of those runs in nanoseconds.
    pub run_time_ns: u64,
}

/// Reads `/proc/self/fdinfo` of a program or map.
///
/// # Errors
/// If the file cannot be read.
pub fn fd_info(fd: impl AsFd) -> io::Result<FdInfo> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0)
    };
    Ok(FdInfo { memlock: field("memlock"), run_count: field("run_cnt"), run_time_ns: field("run_time_ns") })
}

/// The cookie of the network namespace that the calling thread is in (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// If no socket can be made, or the kernel does not know the option.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut cookie = 0_u64;
    let mut len = mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: a live buffer of the length given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
