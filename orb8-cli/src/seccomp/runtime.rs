//! What a container's start needs beside what the workload calls: data, with a reason each.
//!
//! runc loads the filter before it drops capabilities and changes to the container's user, unless the container may
//! not gain privileges, when it does so right before execve (libcontainer/standard_init_linux.go). What it calls from
//! there on must be allowed, or the container does not start. The names are those that runc's sources call, and those
//! that the Security Profiles Operator recorded (examples/baseprofile-runc.yaml, runc 1.0 to 1.4).
//!
//! A watch that began after the container's start has not seen the start of its program either: what every program's
//! loader and C library call is here too.

/// Calls by name, and why they are needed.
pub(crate) const NEEDED: &[(&str, &str)] = &[
    ("arch_prctl", "C library: sets the thread pointer (x86-64)"),
    ("brk", "C library: memory of the program's start"),
    ("capget", "runc: reads the capabilities that it changes"),
    ("capset", "runc: drops capabilities to the container's"),
    ("chdir", "runc: the container's working directory"),
    ("close", "runc: closes its pipes and descriptors"),
    ("close_range", "runc: closes what the container must not inherit"),
    ("epoll_create1", "Go runtime: its poller, on first use"),
    ("epoll_ctl", "Go runtime: takes pipes from its poller"),
    ("epoll_pwait", "Go runtime: its poller"),
    ("eventfd2", "Go runtime: wakes its poller, on first use"),
    ("execve", "runc: the container's program"),
    ("exit", "Go runtime: ends a thread"),
    (
        "exit_group",
        "runc: ends if the start fails; the program's own end",
    ),
    ("faccessat", "runc: may the program be run; kernels before 5.8"),
    ("faccessat2", "runc: may the program be run"),
    ("fchdir", "runc: the working directory, by descriptor"),
    (
        "fchown",
        "runc: gives stdin, stdout and stderr to the container's user",
    ),
    ("fcntl", "runc: marks descriptors to be closed on execve"),
    ("fstat", "runc: what stdin, stdout and stderr are"),
    ("fstatfs", "runc: makes sure that /proc is procfs"),
    ("futex", "Go runtime: locks and sleeping threads"),
    (
        "getcwd",
        "runc: makes sure that the working directory is the container's",
    ),
    ("getdents64", "runc: lists descriptors in /proc/self/fd"),
    ("getgid", "runc: the container's group"),
    ("getpid", "runc: its own id, for hooks and signals"),
    ("getppid", "runc: did its parent die meanwhile"),
    ("getrandom", "C library: the seed of its allocator"),
    ("gettid", "Go runtime: signals to its own threads"),
    ("getuid", "runc: the container's user"),
    ("madvise", "Go runtime: gives memory back"),
    ("mmap", "Go runtime and loader: memory"),
    ("mprotect", "loader: protects what it relocated"),
    ("munmap", "Go runtime and loader: memory"),
    ("nanosleep", "Go runtime: its monitor thread"),
    ("newfstatat", "runc: looks the program up"),
    (
        "openat",
        "runc: the pipe that starts the container; loader: libraries",
    ),
    ("openat2", "runc: opens in /proc without following links out"),
    ("prctl", "runc: bounding set, parent-death signal, no_new_privs"),
    ("pread64", "loader: headers of libraries"),
    (
        "prlimit64",
        "Go runtime: gives the limit of open files back before execve",
    ),
    ("read", "runc: its pipes; loader: libraries"),
    ("readlinkat", "runc: which file a descriptor is"),
    ("recvfrom", "runc: the answer of its parent"),
    ("rseq", "C library: registers each thread"),
    ("rt_sigaction", "Go runtime: signal handlers"),
    ("rt_sigprocmask", "Go runtime: signals around execve"),
    ("rt_sigreturn", "every signal handler's end"),
    ("sched_yield", "Go runtime: contended locks"),
    ("sendto", "runc: tells its parent that it is ready"),
    ("set_robust_list", "C library: locks of threads that die"),
    ("set_tid_address", "C library: the end of its threads"),
    ("setgid", "runc: changes to the container's group"),
    ("setgroups", "runc: changes to the container's groups"),
    ("setresgid", "runc: changes to the container's group"),
    ("setresuid", "runc: changes to the container's user"),
    ("setuid", "runc: changes to the container's user"),
    ("sigaltstack", "Go runtime: the stack of its signal handlers"),
    ("stat", "runc: looks the program up; older releases"),
    ("statx", "runc: which mount a file of /proc is on"),
    ("tgkill", "Go runtime: interrupts its own threads"),
    ("write", "runc: the pipe that starts the container"),
];

/// What runc calls in the container's cgroup while it sets the container up, before the filter is loaded. A container
/// needs none of them, and they are what profiles are to keep from it.
pub(crate) const SET_UP: &[&str] = &[
    "fsconfig",
    "fsmount",
    "fsopen",
    "keyctl",
    "mknodat",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "setdomainname",
    "sethostname",
    "setns",
    "umount2",
    "unshare",
];

/// Starts a thread, which the Go runtime does at any time: needed only without new namespaces.
pub(crate) const THREADS: &str = "clone";
/// The flags of `clone` that make new namespaces (sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID,
/// NEWNET): the mask of Docker's default profile.
pub(crate) const NEW_NAMESPACES: u64 = 0x7e02_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_named_once_in_order_with_a_reason() {
        assert!(NEEDED.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(NEEDED.iter().all(|(_, reason)| reason.len() > 10));
        assert!(
            SET_UP.is_sorted()
                && SET_UP
                    .iter()
                    .all(|call| NEEDED.iter().all(|(name, _)| name != call))
        );
        // Nothing that makes a way out of the container.
        for call in [
            "mount",
            "ptrace",
            "unshare",
            "setns",
            "bpf",
            "pivot_root",
            "clone",
            "clone3",
        ] {
            assert!(NEEDED.iter().all(|(name, _)| *name != call), "{call}");
        }
    }
}
