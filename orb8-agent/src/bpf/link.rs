//! tcx links by interface index, which aya makes by name only.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::{LINK_CREATE, LinkCreate, call, descriptor};

/// Before all others: at the head of the chain, where the link names no other.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Side of an interface that a tcx program is attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcxSide {
    /// Packets that the interface receives.
    Ingress,
    /// Packets that the interface sends.
    Egress,
}

/// Attaches a classifier at the head of an interface's tcx chain (Linux 6.6). Closing the descriptor detaches it, also
/// when the process is killed.
///
/// # Errors
/// `ENODEV` if there is no such interface, `EPERM` without `CAP_NET_ADMIN` and `CAP_BPF`, `EINVAL` on kernels without
/// tcx.
pub fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, side: TcxSide) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target: ifindex,
        attach_type: match side {
            TcxSide::Ingress => BPF_TCX_INGRESS,
            TcxSide::Egress => BPF_TCX_EGRESS,
        },
        flags: BPF_F_BEFORE,
        ..LinkCreate::default()
    };
    // SAFETY: no pointers in it.
    descriptor(unsafe { call(LINK_CREATE, &mut attributes) }?)
}
