//! Batched reading of hash maps.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _},
};

use super::{MAP_LOOKUP_AND_DELETE_BATCH, MAP_LOOKUP_BATCH, MapBatch, call};

/// Empties or copies hash maps of one layout in batches. Owns its buffers: `batch` × the sizes of key and value.
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
        Self {
            keys: vec![MaybeUninit::uninit(); batch],
            values: vec![MaybeUninit::uninit(); batch],
        }
    }

    /// Takes every entry out of `map` and hands it to `each`. Cost: one system call a batch, proportional to the map's
    /// buckets and entries. Entries that programs add meanwhile may stay.
    ///
    /// # Errors
    /// As bpf(2) for `BPF_MAP_LOOKUP_AND_DELETE_BATCH` (Linux 5.6). What was handed on until then is out of the map.
    pub fn drain(&mut self, map: impl AsFd, each: impl FnMut(&K, &V)) -> io::Result<u64> {
        self.each(MAP_LOOKUP_AND_DELETE_BATCH, map, each)
    }

    /// Hands every entry of `map` to `each` and leaves it there. Cost and errors as [`drain`](Self::drain).
    ///
    /// # Errors
    /// As bpf(2) for `BPF_MAP_LOOKUP_BATCH` (Linux 5.6).
    pub fn copy(&mut self, map: impl AsFd, each: impl FnMut(&K, &V)) -> io::Result<u64> {
        self.each(MAP_LOOKUP_BATCH, map, each)
    }

    fn each(
        &mut self,
        command: libc::c_int,
        map: impl AsFd,
        mut each: impl FnMut(&K, &V),
    ) -> io::Result<u64> {
        let mut position = 0_u32;
        let mut next = 0_u32;
        let mut first = true;
        let mut drained = 0;
        loop {
            let mut attributes = MapBatch {
                in_batch: if first {
                    0
                } else {
                    std::ptr::from_mut(&mut position).expose_provenance() as u64
                },
                out_batch: std::ptr::from_mut(&mut next).expose_provenance() as u64,
                keys: self.keys.as_mut_ptr().expose_provenance() as u64,
                values: self.values.as_mut_ptr().expose_provenance() as u64,
                count: self.keys.len() as u32,
                map_fd: map.as_fd().as_raw_fd().cast_unsigned(),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: buffers of `count` keys and values, and places for the position, which outlive the call.
            let result = unsafe { call(command, &mut attributes) };
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
