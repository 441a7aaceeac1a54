//! What can go wrong while finding out who owns what.

use std::{io, path::PathBuf};

/// A source of names that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The machine has no cgroup v2 hierarchy.
    #[error(
        "no cgroup2 mount in {mountinfo}: sockets cannot be named by unit or container; mount it with \
         `mount -t cgroup2 none /sys/fs/cgroup/unified` (or boot with systemd.unified_cgroup_hierarchy=1), in a \
         container mount the host's /sys/fs/cgroup"
    )]
    NoCgroup2 {
        /// File in which it was searched.
        mountinfo: PathBuf,
    },
    /// The directory given as the root of the cgroup2 hierarchy is on another file system.
    #[error("{path} is not on a cgroup2 file system; give the mount point of one")]
    NotCgroup2 {
        /// The directory.
        path: PathBuf,
    },
    /// A file or directory cannot be read.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel did not answer a netlink request.
    #[error("cannot {action} over netlink: {source}{}", advice(.source))]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No thread could be started.
    #[error(
        "cannot start the thread that {action}: {source}; check the limits on processes (ulimit -u, pids.max)"
    )]
    Thread {
        /// What for.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; run as root or with CAP_NET_ADMIN",
        Some(libc::EPROTONOSUPPORT) => "; this kernel is built without it, or a sandbox forbids the socket",
        _ => "",
    }
}
