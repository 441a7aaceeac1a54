//! An array map in the agent's own memory.

use std::{
    ffi::c_void,
    fmt, io,
    marker::PhantomData,
    os::fd::{AsRawFd as _, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

use nix::unistd::{SysconfVar, sysconf};

/// All elements of an array that was made with `BPF_F_MMAPABLE` (Linux 5.5), shared with the programs that write it.
///
/// `T` is made of integers, and its size a multiple of 8 bytes: the kernel puts elements at such distances.
pub(super) struct Mapped<T> {
    start: NonNull<c_void>,
    bytes: usize,
    len: u32,
    /// The memory stays, with the map, for as long as it is mapped; the descriptor is for `fdinfo`.
    _map: OwnedFd,
    element: PhantomData<T>,
}

// SAFETY: shared memory that is read and written as atomic words only.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T> fmt::Debug for Mapped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl<T: Copy> Mapped<T> {
    /// 64-bit words of an element.
    const WORDS: usize = size_of::<T>() / 8;

    /// Maps all `len` elements of `map`.
    pub(super) fn new(map: OwnedFd, len: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let page = sysconf(SysconfVar::PAGE_SIZE)?
            .and_then(|page| usize::try_from(page).ok())
            .unwrap_or(4096);
        let bytes = (size_of::<T>() * len as usize).next_multiple_of(page);
        // SAFETY: a new mapping at a place that the kernel chooses; the result is checked.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Self {
            start,
            bytes,
            len,
            _map: map,
            element: PhantomData,
        })
    }

    /// Number of elements.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// An element as words; none where there is no such element.
    pub(super) fn words(&self, at: u32) -> &[AtomicU64] {
        if at >= self.len {
            return &[];
        }
        // SAFETY: within the mapping, which lasts as long as `self`; aligned, since it begins at a page and elements are
        // multiples of 8 bytes; other writers write words, too.
        unsafe {
            let first = self.start.cast::<AtomicU64>().add(at as usize * Self::WORDS);
            std::slice::from_raw_parts(first.as_ptr(), Self::WORDS)
        }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference into it is left. There is nothing to do about an error.
        unsafe {
            libc::munmap(self.start.as_ptr(), self.bytes);
        }
    }
}
