//! tc and tcx classifiers: every packet of an interface.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use orb8_common::network::{Hook, kind};
use orb8_probes::network::parse::{self, NotLinear, Packet};

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
    let (vlan_present, gso, ifindex, ethertype) = unsafe {
        (
            (*skb).vlan_present,
            (*skb).gso_size != 0,
            (*skb).ifindex,
            u16::from_be((*skb).protocol as u16),
        )
    };
    let tag_len = if vlan_present != 0 { 4 } else { 0 };
    let Some(packet) = maps::PACKET.get_ptr_mut(hook as u32) else {
        return NEXT;
    };
    // SAFETY: this CPU's slot of a map; see there.
    let packet = unsafe { &mut *packet };
    *packet = Packet::default();
    let parsed = match link {
        Link::Ethernet => parse::ethernet(&frame, packet, tag_len, gso),
        Link::Raw => parse::raw(&frame, packet, ethertype, gso),
    };
    if parsed == Err(NotLinear) {
        match link {
            Link::Ethernet => copied_ethernet(skb, packet, tag_len, gso),
            Link::Raw => copied_raw(skb, packet, ethertype, gso),
        }
    }
    account(skb, packet, u64::from(ifindex), direction, stats, || 0);
    NEXT
}

#[inline(always)]
fn copied_ethernet(skb: *mut __sk_buff, packet: &mut Packet, tag_len: u32, gso: bool) {
    *packet = Packet::default();
    // SAFETY: the context.
    let frame = unsafe { Copied::new(skb) };
    // A copying frame reaches everything.
    let _ = parse::ethernet(&frame, packet, tag_len, gso);
}

/// Parses a packet without link-layer header whose headers are out of direct reach.
#[inline(always)]
pub(crate) fn copied_raw(skb: *mut __sk_buff, packet: &mut Packet, ethertype: u16, gso: bool) {
    *packet = Packet::default();
    // SAFETY: the context.
    let frame = unsafe { Copied::new(skb) };
    // As above.
    let _ = parse::raw(&frame, packet, ethertype, gso);
}
