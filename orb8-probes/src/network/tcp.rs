//! TCP health from `sock_ops`, at the cgroup2 root: a stable context, and nothing runs per packet.
//!
//! Callback numbers and arguments: `enum` of `BPF_SOCK_OPS_*` in include/uapi/linux/bpf.h.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::sock_ops,
    maps::HashMap,
    programs::SockOpsContext,
};
use orb8_common::network::{Hook, TcpHealth, TcpKey};

use crate::{atomic, maps, settings, sockets::is_self};

const TCP_CONNECT_CB: u32 = 3;
const ACTIVE_ESTABLISHED_CB: u32 = 4;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const RETRANS_CB: u32 = 9;
const STATE_CB: u32 = 10;

const RETRANS_CB_FLAG: i32 = 1 << 1;
const STATE_CB_FLAG: i32 = 1 << 2;

/// include/net/tcp_states.h.
const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Follows connections from connect() to close.
#[sock_ops]
pub(crate) fn orb8_tcp(ctx: SockOpsContext) -> u32 {
    let mut health = TcpHealth::default();
    match ctx.op() {
        TCP_CONNECT_CB => {
            // Refused only for a socket that is being torn down.
            let _ = ctx.set_cb_flags(RETRANS_CB_FLAG | STATE_CB_FLAG);
            let _ = maps::CONNECTING.insert(&cookie(&ctx), &precise_now(), BPF_ANY as u64);
            return 1;
        }
        ACTIVE_ESTABLISHED_CB => {
            let cookie = cookie(&ctx);
            // SAFETY: one word, copied at once.
            if let Some(&start) = unsafe { maps::CONNECTING.get(&cookie) } {
                let microseconds = precise_now().saturating_sub(start) / 1000;
                health.connect_us = u32::try_from(microseconds).unwrap_or(u32::MAX).max(1);
                let _ = maps::CONNECTING.remove(&cookie);
            }
            health.established = 1;
        }
        PASSIVE_ESTABLISHED_CB => {
            let _ = ctx.set_cb_flags(RETRANS_CB_FLAG | STATE_CB_FLAG);
            health.established = 1;
        }
        RETRANS_CB => {
            // Arguments: sequence number, segments, result of the transmission.
            if ctx.arg(2) != 0 {
                return 1;
            }
            health.retransmits = u64::from(ctx.arg(1).max(1));
        }
        STATE_CB => {
            let (old, new) = (ctx.arg(0), ctx.arg(1));
            if new != TCP_CLOSE {
                return 1;
            }
            if old == TCP_SYN_SENT {
                let _ = maps::CONNECTING.remove(&cookie(&ctx));
                health.failed_connects = 1;
            }
        }
        _ => return 1,
    }
    // SAFETY: a field of the context; zero where there is no full socket.
    health.srtt_us = unsafe { (*ctx.ops).srtt_us } >> 3;
    record(&ctx, &health);
    1
}

/// Connect latency wants the precise clock; it is read twice a connection.
#[inline(always)]
fn precise_now() -> u64 {
    // SAFETY: no arguments.
    unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_ns() }
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context.
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

#[inline(always)]
fn record(ctx: &SockOpsContext, health: &TcpHealth) {
    let Some(control) = maps::CONTROL.get_ptr(0) else {
        return;
    };
    let mut key = TcpKey {
        local_port: ctx.local_port() as u16,
        remote_port: (u32::from_be(ctx.remote_port())) as u16,
        ..TcpKey::default()
    };
    match ctx.family() {
        AF_INET => {
            key.local = mapped(ctx.local_ip4());
            key.remote = mapped(ctx.remote_ip4());
        }
        AF_INET6 => {
            // SAFETY: fields of the context, loaded one word at a time as the verifier wants.
            unsafe {
                let ops = ctx.ops;
                key.local = joined(
                    (&raw const (*ops).local_ip6[0]).read_volatile(),
                    (&raw const (*ops).local_ip6[1]).read_volatile(),
                    (&raw const (*ops).local_ip6[2]).read_volatile(),
                    (&raw const (*ops).local_ip6[3]).read_volatile(),
                );
                key.remote = joined(
                    (&raw const (*ops).remote_ip6[0]).read_volatile(),
                    (&raw const (*ops).remote_ip6[1]).read_volatile(),
                    (&raw const (*ops).remote_ip6[2]).read_volatile(),
                    (&raw const (*ops).remote_ip6[3]).read_volatile(),
                );
            }
        }
        _ => return,
    }
    if settings::SOCK_OPS_NETNS_COOKIE.get() == 1 {
        // SAFETY: the context.
        key.netns_cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    }
    let Some(stats) = maps::STATS.get_ptr_mut(Hook::Tcp as u32) else {
        return;
    };
    // SAFETY: this CPU's slot of a map.
    unsafe { atomic::add(&raw mut (*stats).seen, 1) };
    if is_self(&key.local, key.local_port, &key.remote, key.remote_port) {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*stats).filtered, 1) };
        return;
    }
    // SAFETY: a map value; user space writes it as one word.
    let epoch = unsafe { (*control).epoch };
    let recorded = if epoch & 1 == 0 {
        merge(maps::TCP[0], &key, health)
    } else {
        merge(maps::TCP[1], &key, health)
    };
    if !recorded {
        // SAFETY: this CPU's slot of a map.
        unsafe { atomic::add(&raw mut (*stats).lost, 1) };
    }
}

#[inline(always)]
fn merge(map: &'static HashMap<TcpKey, TcpHealth>, key: &TcpKey, more: &TcpHealth) -> bool {
    let health = match map.get_ptr_mut(key) {
        Some(health) => health,
        None => match map.insert(key, more, BPF_NOEXIST as u64) {
            Ok(()) => return true,
            Err(_) => match map.get_ptr_mut(key) {
                Some(health) => health,
                None => return false,
            },
        },
    };
    // SAFETY: a map value.
    unsafe {
        atomic::add(&raw mut (*health).retransmits, more.retransmits);
        atomic::add32(&raw mut (*health).failed_connects, more.failed_connects);
        atomic::add32(&raw mut (*health).established, more.established);
        if more.connect_us != 0 {
            (*health).connect_us = more.connect_us;
        }
        if more.srtt_us != 0 {
            (*health).srtt_us = more.srtt_us;
        }
    }
    true
}

/// IPv4 as `::ffff:a.b.c.d`; `address` as on the wire.
#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    joined(0, 0, u32::from_be(0xffff), address)
}

#[inline(always)]
fn joined(a: u32, b: u32, c: u32, d: u32) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&a.to_ne_bytes());
    address[4..8].copy_from_slice(&b.to_ne_bytes());
    address[8..12].copy_from_slice(&c.to_ne_bytes());
    address[12..].copy_from_slice(&d.to_ne_bytes());
    address
}
