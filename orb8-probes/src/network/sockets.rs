//! cgroup hooks at the cgroup2 root: packets of the host's own sockets, and who made each socket.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_ANY},
    helpers::generated::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_socket_cookie,
        bpf_skb_cgroup_id,
    },
    macros::{cgroup_skb, cgroup_sock},
    programs::{SkBuffContext, SockContext},
};
use orb8_common::network::{Comm, Hook, kind, protocol};
use orb8_probes::network::parse::{self, Packet};

use crate::{account::account, atomic, classifier::copied_raw, frame::Direct, maps, settings};

/// The packet goes on.
const PASS: i32 = 1;

/// Packets that reach a socket.
#[cgroup_skb]
pub(crate) fn orb8_sock_in(ctx: SkBuffContext) -> i32 {
    socket_packet(ctx.skb.skb, Hook::SocketIngress, kind::SOCKET)
}

/// Packets that leave a socket.
#[cgroup_skb]
pub(crate) fn orb8_sock_out(ctx: SkBuffContext) -> i32 {
    socket_packet(ctx.skb.skb, Hook::SocketEgress, kind::SOCKET | kind::EGRESS)
}

#[inline(always)]
fn socket_packet(skb: *mut __sk_buff, hook: Hook, kind: u8) -> i32 {
    let Some(stats) = maps::STATS.get_ptr_mut(hook as u32) else {
        return PASS;
    };
    // SAFETY: this CPU's slot of a map. Atomic: a packet that a process sends may be interrupted by one that
    // arrives on the same CPU.
    unsafe { atomic::add(&raw mut (*stats).seen, 1) };
    if !is_ours(skb) {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*stats).filtered, 1) };
        return PASS;
    }
    // SAFETY: the context.
    let frame = unsafe { Direct::new(skb) };
    let mut packet = Packet::default();
    if !parse::common(&frame, &mut packet, 0) {
        packet = Packet::default();
        copied_raw(skb, &mut packet);
    }
    let key = &packet.key;
    let is_self = key.protocol == protocol::TCP
        && if kind & kind::EGRESS != 0 {
            is_self(&key.src, key.sport, &key.dst, key.dport)
        } else {
            is_self(&key.dst, key.dport, &key.src, key.sport)
        };
    if is_self {
        // SAFETY: this CPU's slot of a map.
        unsafe { atomic::add(&raw mut (*stats).filtered, 1) };
        return PASS;
    }
    // SAFETY: the context.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    account(skb, &mut packet, cgroup, kind, stats, || socket_tgid(skb));
    PASS
}

/// Whether the socket is in the agent's network namespace, or in one that is to be counted at its sockets.
#[inline(always)]
fn is_ours(skb: *mut __sk_buff) -> bool {
    if settings::SKB_NETNS_COOKIE.get() == 0 {
        // This kernel cannot tell here: the agent leaves out other namespaces' cgroups.
        return true;
    }
    // SAFETY: the context.
    let cookie = unsafe { bpf_get_netns_cookie(skb.cast()) };
    cookie == settings::HOST_NETNS_COOKIE.get() || maps::SOCKET_NETNS.get_ptr(&cookie).is_some()
}

/// Whether a TCP connection is one with the agent itself.
#[inline(always)]
pub(crate) fn is_self(local: &[u8; 16], local_port: u16, remote: &[u8; 16], remote_port: u16) -> bool {
    let is_port = |port: u16| {
        port != 0
            && (u32::from(port) == settings::SELF_GRPC_PORT.get()
                || u32::from(port) == settings::SELF_METRICS_PORT.get())
    };
    if is_port(local_port) {
        settings::SELF_LOOPBACK.get() == 0 || is_loopback(local)
    } else {
        is_port(remote_port) && is_loopback(local) && is_loopback(remote)
    }
}

#[inline(always)]
fn is_loopback(address: &[u8; 16]) -> bool {
    let [a, b, c, d] = words(address);
    a == 0
        && b == 0
        && (c == u32::from_be(0xffff) && d.to_ne_bytes()[0] == 127 || c == 0 && d == u32::from_be(1))
}

#[inline(always)]
fn words(address: &[u8; 16]) -> [u32; 4] {
    // SAFETY: the same size; addresses lie at multiples of 4 in a key.
    unsafe { *address.as_ptr().cast() }
}

#[inline(always)]
fn socket_tgid(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    // SAFETY: one word, copied at once.
    unsafe { maps::SOCKET_TGID.get(&cookie) }.copied().unwrap_or(0)
}

/// A process makes a socket.
#[cgroup_sock(sock_create)]
pub(crate) fn orb8_sock_new(ctx: SockContext) -> i32 {
    // SAFETY: the context; no arguments.
    let (cookie, tgid) = unsafe {
        (
            bpf_get_socket_cookie(ctx.as_ptr()),
            (bpf_get_current_pid_tgid() >> 32) as u32,
        )
    };
    // What finds no room is named by its cgroup alone.
    let _ = maps::SOCKET_TGID.insert(&cookie, &tgid, BPF_ANY as u64);
    let mut comm = Comm::default();
    // SAFETY: a buffer of the length given.
    unsafe { bpf_get_current_comm(comm.0.as_mut_ptr().cast(), comm.0.len() as u32) };
    let _ = maps::PROCESS_NAMES.insert(&tgid, &comm, BPF_ANY as u64);
    PASS
}
