//! Two ways to read a packet: straight from its linear part, or by helper wherever the bytes are.

use core::{marker::PhantomData, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use orb8_probes::network::parse::{Frame, Header};

/// The linear part of an skb.
pub(crate) struct Direct<'a> {
    data: usize,
    end: usize,
    len: u32,
    skb: PhantomData<&'a __sk_buff>,
}

impl Direct<'_> {
    /// The linear part of `skb`.
    ///
    /// # Safety
    /// `skb` is the context of the running program.
    #[inline(always)]
    pub(crate) unsafe fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: fields of the context.
        unsafe {
            Self {
                data: (*skb).data as usize,
                end: (*skb).data_end as usize,
                len: (*skb).len,
                skb: PhantomData,
            }
        }
    }
}

impl Frame for Direct<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn load<T: Header>(&self, offset: u32) -> Option<T> {
        let start = self.data + offset as usize;
        if start + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet, as the verifier checks too; the kernel loads eBPF programs with unaligned
        // loads only where the processor can do them.
        Some(unsafe { *(start as *const T) })
    }
}

/// All of an skb, copied piece by piece.
pub(crate) struct Copied {
    skb: *mut __sk_buff,
    len: u32,
}

impl Copied {
    /// All of `skb`.
    ///
    /// # Safety
    /// `skb` is the context of the running program.
    #[inline(always)]
    pub(crate) unsafe fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: a field of the context.
        Self {
            skb,
            len: unsafe { (*skb).len },
        }
    }
}

impl Frame for Copied {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn load<T: Header>(&self, offset: u32) -> Option<T> {
        let mut header = MaybeUninit::<T>::uninit();
        // SAFETY: the destination has the length given; the helper fills it or fails.
        let result = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset,
                header.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        // SAFETY: filled just now.
        (result == 0).then(|| unsafe { header.assume_init() })
    }
}
