//! tc and tcx classifiers: every packet of an interface.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use orb8_common::network::{Hook, kind};
use orb8_probes::network::parse::{self, Packet, ethertype};

use crate::{
    account::account,
    frame::{Copied, Direct},
    maps,
};

/// `TCX_NEXT` and `TC_ACT_UNSPEC`: the next program of the chain decides.
const NEXT: i32 = -1;

/// How frames of the interface begin.
#[derive(Clone, Copy)]
enum Link {
    Ethernet,
    /// No link-layer header (tun, WireGuard, IP tunnels).
    Raw,
}

/// Ingress of an Ethernet interface.
#[classifier]
pub(crate) fn orb8_eth_in(ctx: TcContext) -> i32 {
    classify(ctx.skb.skb, Hook::TcIngress, 0, Link::Ethernet)
}

/// Egress of an Ethernet interface.
#[classifier]
pub(crate) fn orb8_eth_out(ctx: TcContext) -> i32 {
    classify(ctx.skb.skb, Hook::TcEgress, kind::EGRESS, Link::Ethernet)
}

/// Ingress of an interface without link-layer header.
#[classifier]
pub(crate) fn orb8_raw_in(ctx: TcContext) -> i32 {
    classify(ctx.skb.skb, Hook::TcIngress, 0, Link::Raw)
}

/// Egress of an interface without link-layer header.
#[classifier]
pub(crate) fn orb8_raw_out(ctx: TcContext) -> i32 {
    classify(ctx.skb.skb, Hook::TcEgress, kind::EGRESS, Link::Raw)
}

#[inline(always)]
fn classify(skb: *mut __sk_buff, hook: Hook, direction: u8, link: Link) -> i32 {
    let Some(stats) = maps::STATS.get_ptr_mut(hook as u32) else {
        return NEXT;
    };
    // SAFETY: this CPU's slot of a map. Not atomic: packets are classified with bottom halves off, one at a time
    // on a CPU.
    unsafe { (*stats).seen += 1 };
    // SAFETY: the context.
    let frame = unsafe { Direct::new(skb) };
    // SAFETY: fields of the context.
    let (vlan_present, ifindex) = unsafe { ((*skb).vlan_present, (*skb).ifindex) };
    let mut packet = Packet::default();
    let ip = match link {
        Link::Ethernet => parse::ETHERNET,
        Link::Raw => 0,
    };
    if vlan_present != 0 || !parse::common(&frame, &mut packet, ip) {
        packet = Packet::default();
        match link {
            Link::Ethernet => copied_ethernet(skb, &mut packet, vlan_present != 0),
            Link::Raw => copied_raw(skb, &mut packet),
        }
    }
    let Some(slot) = maps::PACKET.get_ptr_mut(hook as u32) else {
        return NEXT;
    };
    // SAFETY: this CPU's slot of a map; see there.
    let packet = unsafe { store(slot, &packet) };
    account(skb, packet, u64::from(ifindex), direction, stats, || 0);
    NEXT
}

/// Writes the packet to its slot, the key by whole words: the kernel's hash reads words soon after, and would have to
/// wait for smaller stores to drain.
///
/// # Safety
/// `slot` points to a map value that nothing else uses.
#[inline(always)]
unsafe fn store(slot: *mut Packet, packet: &Packet) -> &'static mut Packet {
    // SAFETY: arrays of the same sizes; the key is 48 bytes, aligned to 8.
    unsafe {
        let key = &packet.key;
        let [src0, src1]: [u64; 2] = core::mem::transmute(key.src);
        let [dst0, dst1]: [u64; 2] = core::mem::transmute(key.dst);
        let rest = u64::from(key.sport)
            | u64::from(key.dport) << 16
            | u64::from(key.protocol) << 32
            | u64::from(key.kind) << 40
            | u64::from(key.link_len) << 48;
        let words: *mut u64 = (&raw mut (*slot).key).cast();
        words.write_volatile(src0);
        words.add(1).write_volatile(src1);
        words.add(2).write_volatile(dst0);
        words.add(3).write_volatile(dst1);
        words.add(5).write_volatile(rest);
        (*slot).l3_bytes = packet.l3_bytes;
        (*slot).padding = packet.padding;
        (*slot).header_len = packet.header_len;
        (*slot).fragment_id = packet.fragment_id;
        (*slot).fragment = packet.fragment;
        (*slot).tcp_flags = packet.tcp_flags;
        &mut *slot
    }
}

#[inline(always)]
fn copied_ethernet(skb: *mut __sk_buff, packet: &mut Packet, tag_was_taken: bool) {
    let tag_len = if tag_was_taken { 4 } else { 0 };
    // SAFETY: the context.
    let (frame, gso) = unsafe { (Copied::new(skb), (*skb).gso_size != 0) };
    parse::ethernet(&frame, packet, tag_len, gso);
}

/// Parses what has no link-layer header and is not [`parse::common`].
#[inline(always)]
pub(crate) fn copied_raw(skb: *mut __sk_buff, packet: &mut Packet) {
    // SAFETY: the context.
    let (frame, gso) = unsafe { (Copied::new(skb), (*skb).gso_size != 0) };
    // skb->protocol is not set yet where a socket sends: the version nibble tells.
    let ethertype = match parse::Frame::load::<[u8; 1]>(&frame, 0) {
        Some([first]) if first >> 4 == 6 => ethertype::IPV6,
        Some([first]) if first >> 4 == 4 => ethertype::IPV4,
        // SAFETY: a field of the context.
        _ => u16::from_be(unsafe { (*skb).protocol } as u16),
    };
    parse::raw(&frame, packet, ethertype, gso);
}
