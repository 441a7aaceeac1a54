//! Counts a packet on its flow.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST},
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    maps::HashMap,
};
use orb8_common::network::{Control, FlowCounters, FlowKey, HookStats, RemainderKey, event, kind};
use orb8_probes::network::{
    parse::{Fragment, Packet},
    segments::wire_segments,
};

use crate::{atomic, dns, events, maps, settings};

/// TCP flags (RFC 9293 §3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Monotonic time in nanoseconds, precise to a scheduler tick: reading the precise clock costs more than all the
/// rest of a packet's work.
#[inline(always)]
pub(crate) fn now() -> u64 {
    if settings::COARSE_CLOCK.get() == 1 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    } else {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
    }
}

/// What one packet adds to its flow.
struct Amount {
    packets: u64,
    bytes: u64,
    merged_bytes: u64,
    padding: u32,
    tcp_flags: u8,
    tgid: u32,
    now: u64,
}

/// Counts `packet` on its flow at `point`.
///
/// `tgid` is asked only where the flow is new in this epoch, or has an event. Returns nothing: what cannot be counted is in the
/// ledger.
#[inline(always)]
pub(crate) fn account(
    skb: *mut __sk_buff,
    packet: &mut Packet,
    point: u64,
    kind: u8,
    stats: *mut HookStats,
    tgid: impl Fn() -> u32,
) {
    let Some(control) = maps::CONTROL.get_ptr(0) else {
        return;
    };
    // SAFETY: a map value; user space writes each field as one word.
    let control = unsafe { &*control };
    packet.key.kind |= kind;
    packet.key.point = point;
    if packet.fragment != Fragment::None {
        fragment_ports(packet);
    }
    // SAFETY: a field of the context.
    let gso_size = unsafe { (*skb).gso_size };
    let mut amount = Amount {
        packets: 1,
        bytes: u64::from(packet.l3_bytes),
        merged_bytes: 0,
        padding: packet.padding,
        tcp_flags: packet.tcp_flags,
        tgid: 0,
        now: now(),
    };
    if gso_size != 0 {
        let link_len = u32::from(packet.key.link_len);
        let payload = (link_len + packet.l3_bytes).saturating_sub(packet.header_len);
        // SAFETY: a field of the context.
        let gso_segs = unsafe { (*skb).gso_segs };
        let segments = u64::from(wire_segments(gso_segs, gso_size, payload));
        amount.packets = segments;
        amount.merged_bytes = (segments - 1) * u64::from(packet.header_len);
        amount.bytes += (segments - 1) * u64::from(packet.header_len.saturating_sub(link_len));
    }

    let found = if control.epoch & 1 == 0 {
        maps::FLOWS[0].get_ptr_mut(&packet.key)
    } else {
        maps::FLOWS[1].get_ptr_mut(&packet.key)
    };
    if let Some(counters) = found {
        // SAFETY: a map value.
        unsafe { add(counters, &amount) };
    } else {
        amount.tgid = tgid();
        enter(&packet.key, &amount, control, stats);
    }
    if dns::is_answer(packet) {
        dns::send(skb, packet, amount.now);
    }
    let interesting = amount.tcp_flags & (SYN | FIN | RST) != 0;
    if interesting && control.events != 0 {
        let kind = if amount.tcp_flags & RST != 0 {
            event::RST
        } else if amount.tcp_flags & SYN == 0 {
            event::FIN
        } else if amount.tcp_flags & ACK != 0 {
            event::SYN_ACK
        } else {
            event::SYN
        };
        if amount.tgid == 0 {
            amount.tgid = tgid();
        }
        let kind = events::kind_and_flags(kind, amount.tcp_flags);
        events::send(&packet.key, kind, packet.l3_bytes, amount.tgid, amount.now);
    }
}

/// Gives a later fragment the ports of its first one, or notes the ports of a first one.
#[inline(never)]
fn fragment_ports(packet: &mut Packet) {
    let key = packet.fragment_key();
    if packet.fragment == Fragment::First {
        let ports = u32::from(packet.key.sport) << 16 | u32::from(packet.key.dport);
        // A failure leaves the later fragments on the port-less flow.
        let _ = maps::FRAGMENTS.insert(&key, &ports, BPF_ANY as u64);
    } else {
        // SAFETY: one word, copied at once.
        match unsafe { maps::FRAGMENTS.get(&key) } {
            Some(&ports) => {
                packet.key.sport = (ports >> 16) as u16;
                packet.key.dport = ports as u16;
            }
            None => packet.key.kind |= kind::FRAGMENT,
        }
    }
}

/// Enters a flow that the epoch's map does not hold.
#[inline(never)]
fn enter(key: &FlowKey, amount: &Amount, control: &Control, stats: *mut HookStats) {
    if control.epoch & 1 == 0 {
        enter_into(maps::FLOWS[0], maps::REMAINDER[0], key, amount, control, stats);
    } else {
        enter_into(maps::FLOWS[1], maps::REMAINDER[1], key, amount, control, stats);
    }
}

#[inline(always)]
fn enter_into(
    flows: &'static HashMap<FlowKey, FlowCounters>,
    remainder: &'static HashMap<RemainderKey, FlowCounters>,
    key: &FlowKey,
    amount: &Amount,
    control: &Control,
    stats: *mut HookStats,
) {
    let first = FlowCounters {
        packets: amount.packets,
        bytes: amount.bytes,
        merged_packets: amount.packets - 1,
        merged_bytes: amount.merged_bytes,
        first_ns: amount.now,
        last_ns: amount.now,
        padding: amount.padding,
        tcp_flags: u32::from(amount.tcp_flags),
        tgid: amount.tgid,
        reserved: 0,
    };
    match insert_or_add(flows, key, &first, amount) {
        Entered::New => {
            note_load(control, amount.now);
            events::new_flow(
                key,
                control,
                amount.tcp_flags,
                amount.bytes as u32,
                amount.tgid,
                amount.now,
            );
            return;
        }
        Entered::Added => return,
        Entered::Full => {}
    }
    let key = RemainderKey {
        point: key.point,
        kind: key.kind & (kind::EGRESS | kind::SOCKET),
        link_len: key.link_len,
        reserved: [0; 6],
    };
    // SAFETY: this CPU's slot of a map.
    unsafe {
        if insert_or_add(remainder, &key, &first, amount) == Entered::Full {
            atomic::add(&raw mut (*stats).lost, 1);
            atomic::add(&raw mut (*stats).lost_bytes, amount.bytes);
        } else {
            atomic::add(&raw mut (*stats).remainder, 1);
        }
    }
}

/// Counts a flow that was entered, and asks for a drain when the map is half full.
#[inline(always)]
fn note_load(control: &Control, now: u64) {
    let Some(load) = maps::LOAD.get_ptr_mut(control.epoch & 1) else {
        return;
    };
    // SAFETY: a map value. Two CPUs may both tell: once too often does no harm.
    unsafe {
        atomic::add(&raw mut (*load).entered, 1);
        if (*load).entered >= u64::from(settings::FLOW_PRESSURE.get())
            && (*load).told == 0
            && events::ask_for_drain(now)
        {
            (*load).told = 1;
        }
    }
}

#[derive(PartialEq, Eq)]
enum Entered {
    New,
    /// Another CPU was faster, or it was there before.
    Added,
    Full,
}

#[inline(always)]
fn insert_or_add<K>(
    map: &'static HashMap<K, FlowCounters>,
    key: &K,
    first: &FlowCounters,
    amount: &Amount,
) -> Entered {
    if map.insert(key, first, BPF_NOEXIST as u64).is_ok() {
        return Entered::New;
    }
    let Some(counters) = map.get_ptr_mut(key) else {
        return Entered::Full;
    };
    // SAFETY: a map value.
    unsafe { add(counters, amount) };
    Entered::Added
}

/// Adds to a flow that exists.
///
/// # Safety
/// `counters` points to a map value.
#[inline(always)]
unsafe fn add(counters: *mut FlowCounters, amount: &Amount) {
    // SAFETY: the caller's. The last time is a plain store: two CPUs at the same time write nearly the same.
    unsafe {
        atomic::add(&raw mut (*counters).packets, amount.packets);
        atomic::add(&raw mut (*counters).bytes, amount.bytes);
        (*counters).last_ns = amount.now;
        if amount.merged_bytes != 0 {
            atomic::add(&raw mut (*counters).merged_packets, amount.packets - 1);
            atomic::add(&raw mut (*counters).merged_bytes, amount.merged_bytes);
        }
        if amount.padding != 0 {
            atomic::add32(&raw mut (*counters).padding, amount.padding);
        }
        let flags = u32::from(amount.tcp_flags);
        if (*counters).tcp_flags & flags != flags {
            atomic::or32(&raw mut (*counters).tcp_flags, flags);
        }
    }
}
