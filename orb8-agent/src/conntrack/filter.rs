//! A filter in the kernel that lets only translated connections through.

use super::message::{CTA_STATUS, DST_NAT, SRC_NAT};

/// `struct nlmsghdr` and `struct nfgenmsg`.
const ATTRIBUTES: u32 = 20;

/// Classic BPF: drops notifications whose status has neither translation (`__bpf_skb_get_nlattr`,
/// net/core/filter.c, finds the attribute). Each notification is a datagram of its own.
pub(super) fn translated_only() -> [libc::sock_filter; 9] {
    let statement = |code: u32, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |code: u32, k, jt, jf| libc::sock_filter {
        code: (libc::BPF_JMP | code | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let attribute = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR).cast_unsigned();
    [
        statement(libc::BPF_LD | libc::BPF_IMM, ATTRIBUTES),
        statement(libc::BPF_LDX | libc::BPF_IMM, u32::from(CTA_STATUS)),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, attribute),
        // Without a status, we look ourselves.
        jump(libc::BPF_JEQ, 0, 3, 0),
        statement(libc::BPF_MISC | libc::BPF_TAX, 0),
        // Behind the attribute's header; in network order, as loads are.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, 4),
        jump(libc::BPF_JSET, DST_NAT | SRC_NAT, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ]
}
