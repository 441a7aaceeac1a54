//! The event ring: new flows, and TCP SYN, FIN and RST.
//!
//! A full ring costs liveness, never counts. New-flow records are thinned out when the ring is more than 80 %
//! full, so that there is room for SYN, FIN and RST, which never are.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ringbuf_query};
use orb8_common::network::{Control, Event, FlowKey, Hook, event, protocol};

use crate::{
    account::{FIN, RST, SYN},
    atomic, maps, settings,
};

/// `BPF_RB_AVAIL_DATA` of include/uapi/linux/bpf.h.
const AVAIL_DATA: u64 = 0;
/// A flow is new when it had no packet for so long (in units of 2^30 ns).
const IDLE: u64 = 60;
/// Low bits of a [`maps::RECENT`] slot: the time. The rest is the flow's hash.
const TIME_MASK: u64 = (1 << 24) - 1;

/// An event's kind and its packet's TCP flags, in one argument: a function in the kernel has at most five.
#[inline(always)]
pub(crate) const fn kind_and_flags(kind: u8, tcp_flags: u8) -> u32 {
    (kind as u32) << 8 | tcp_flags as u32
}

/// Tells of a flow that has just been entered into the epoch's map, unless it was there a short time ago.
#[inline(always)]
pub(crate) fn new_flow(key: &FlowKey, control: &Control, tcp_flags: u8, bytes: u32, tgid: u32, now: u64) {
    let time = (now >> 30) & TIME_MASK;
    let hash = hash(key);
    let Some(slot) = maps::RECENT.get_ptr_mut(hash as u32 & (maps::RECENT_SLOTS - 1)) else {
        return;
    };
    // SAFETY: a map value, read and written as one word; a race costs or repeats one event.
    let before = unsafe { *slot };
    // SAFETY: as above.
    unsafe { *slot = hash & !TIME_MASK | time };
    let known = (before ^ hash) & !TIME_MASK == 0 && (time.wrapping_sub(before) & TIME_MASK) < IDLE;
    if known || control.events == 0 {
        return;
    }
    // A packet with one of these has its own event.
    if key.protocol == protocol::TCP && tcp_flags & (SYN | FIN | RST) != 0 {
        return;
    }
    send(key, kind_and_flags(event::NEW_FLOW, tcp_flags), bytes, tgid, now);
}

/// Mixes all of the key (the multiply-and-rotate of FxHash; quality matters little, speed does).
#[inline(always)]
fn hash(key: &FlowKey) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    // SAFETY: the key is 48 bytes without padding, aligned to 8.
    let words: &[u64; 6] = unsafe { &*core::ptr::from_ref(key).cast() };
    let mut hash = 0_u64;
    for word in words {
        hash = (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
    hash ^ hash >> 32
}

/// Wakes user space, to drain the flow maps before its time. False if the ring is full.
#[inline(always)]
pub(crate) fn ask_for_drain(now: u64) -> bool {
    let Some(mut record) = maps::EVENTS.reserve::<Event>(0) else {
        return false;
    };
    record.write(Event {
        time_ns: now,
        kind: event::PRESSURE,
        ..Event::default()
    });
    record.submit(0);
    true
}

/// Sends one record, or counts why not.
#[inline(never)]
pub(crate) fn send(key: &FlowKey, kind_and_flags: u32, bytes: u32, tgid: u32, now: u64) {
    let (kind, tcp_flags) = ((kind_and_flags >> 8) as u8, kind_and_flags as u8);
    let Some(stats) = maps::STATS.get_ptr_mut(Hook::Events as u32) else {
        return;
    };
    // SAFETY: this CPU's slot of a map.
    unsafe { atomic::add(&raw mut (*stats).seen, 1) };
    let ring = (&raw const maps::EVENTS).cast_mut().cast();
    let mut weight = 1;
    if kind == event::NEW_FLOW {
        // SAFETY: a ring buffer map.
        let used = unsafe { bpf_ringbuf_query(ring, AVAIL_DATA) };
        weight = sampling(used, u64::from(settings::RING_BYTES.get()));
        // SAFETY: no arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        if random & (u32::from(weight) - 1) != 0 {
            // SAFETY: this CPU's slot of a map.
            unsafe { atomic::add(&raw mut (*stats).filtered, 1) };
            return;
        }
    }
    let Some(mut record) = maps::EVENTS.reserve::<Event>(0) else {
        // SAFETY: this CPU's slot of a map.
        unsafe { atomic::add(&raw mut (*stats).lost, 1) };
        return;
    };
    record.write(Event {
        key: *key,
        time_ns: now,
        bytes,
        tgid,
        kind,
        tcp_flags,
        weight,
        reserved: 0,
    });
    record.submit(0);
}

/// One in how many new-flow records is sent: 1 up to 80 % of the ring, then 4, 16 and 64; a power of two.
#[inline(always)]
fn sampling(used: u64, size: u64) -> u16 {
    let percent_of = |percent: u64| size / 100 * percent;
    if used <= percent_of(80) {
        1
    } else if used <= percent_of(88) {
        4
    } else if used <= percent_of(94) {
        16
    } else {
        64
    }
}
