//! DNS answers, copied out so that user space can name external addresses.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use orb8_common::network::{DNS_BYTES, DnsAnswer, Hook, protocol};
use orb8_probes::network::parse::{Fragment, Packet};

use crate::{atomic, maps, settings};

/// Where answers come from (RFC 1035 §4.2.1).
const PORT: u16 = 53;
/// Of a DNS message (RFC 1035 §4.1.1).
const HEADER: u32 = 12;

/// Whether a packet may be a DNS answer that is wanted.
#[inline(always)]
pub(crate) fn is_answer(packet: &Packet) -> bool {
    packet.key.sport == PORT
        && packet.key.protocol == protocol::UDP
        && packet.fragment == Fragment::None
        && settings::DNS_WANTED.get() == 1
}

/// Sends the payload of a UDP packet, or as much of it as a record holds.
#[inline(never)]
pub(crate) fn send(skb: *mut __sk_buff, packet: &Packet, now: u64) {
    let Some(stats) = maps::STATS.get_ptr_mut(Hook::Dns as u32) else {
        return;
    };
    // SAFETY: this CPU's slot of a map.
    unsafe { atomic::add(&raw mut (*stats).seen, 1) };
    let whole = (u32::from(packet.key.link_len) + packet.l3_bytes).saturating_sub(packet.header_len);
    // SAFETY: a field of the context. A tag that the device has taken is not in the data.
    let taken = if unsafe { (*skb).vlan_present } != 0 { 4 } else { 0 };
    let offset = packet.header_len.saturating_sub(taken);
    let Some(mut record) = maps::DNS_ANSWERS.reserve::<DnsAnswer>(0) else {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*stats).lost, 1) };
        return;
    };
    let len = if whole > DNS_BYTES as u32 {
        DNS_BYTES as u32
    } else {
        whole
    };
    let answer = record.as_mut_ptr();
    // SAFETY: the record that was reserved; the helper writes `len` bytes, which are not more than there are.
    let copied = len >= HEADER
        && unsafe {
            (*answer).point = packet.key.point;
            (*answer).time_ns = now;
            (*answer).len = len;
            (*answer).reserved = 0;
            bpf_skb_load_bytes(skb.cast(), offset, (&raw mut (*answer).payload).cast(), len) == 0
        };
    if copied {
        record.submit(0);
    } else {
        record.discard(0);
        // SAFETY: as above. Too short to be an answer.
        unsafe { atomic::add(&raw mut (*stats).filtered, 1) };
    }
}
