//! What calls are about, and what the time in them is spent on.

use std::{collections::HashMap, sync::LazyLock};

use super::call::Call;

/// What a call is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Category {
    /// Files and directories, also reading and writing of any descriptor.
    File,
    /// Sockets.
    Network,
    /// Address space.
    Memory,
    /// Processes, threads and scheduling.
    Process,
    /// Signals.
    Signal,
    /// Pipes, futexes, System V and POSIX IPC, other processes' memory.
    Ipc,
    /// Clocks, timers, sleep.
    Time,
    /// Readiness and notification: poll, epoll, eventfd, inotify, asynchronous I/O.
    Event,
    /// User and group ids, capabilities, keys, security modules.
    Credentials,
    /// Kernel modules, eBPF, kexec.
    Module,
    /// The machine: mounts, namespaces, limits, names, quotas, reboot.
    System,
    /// What has no name, or none of these.
    Other,
}

impl Category {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::File,
        Self::Network,
        Self::Memory,
        Self::Process,
        Self::Signal,
        Self::Ipc,
        Self::Time,
        Self::Event,
        Self::Credentials,
        Self::Module,
        Self::System,
        Self::Other,
    ];

    /// Its name in filters and rows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Network => "network",
            Self::Memory => "memory",
            Self::Process => "process",
            Self::Signal => "signal",
            Self::Ipc => "ipc",
            Self::Time => "time",
            Self::Event => "event",
            Self::Credentials => "credentials",
            Self::Module => "module",
            Self::System => "system",
            Self::Other => "other",
        }
    }

    /// The category of a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|category| category.name() == text)
    }

    /// What a call is about.
    #[must_use]
    pub fn of(call: Call) -> Self {
        let name = call.known_name();
        name.and_then(|name| find(&CATEGORIES, name))
            .unwrap_or(Self::Other)
    }
}

/// What a call waits for, as far as the call alone says: what read() and write() wait for is a matter of the descriptor,
/// so they are [`Waiting::Other`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Waiting {
    /// A peer, through a socket.
    Network,
    /// A file system or device.
    Disk,
    /// Another thread, through a futex.
    Futex,
    /// Any of several descriptors.
    Poll,
    /// Time to pass.
    Sleep,
    /// Anything else, or it does not wait.
    Other,
}

impl Waiting {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Network,
        Self::Disk,
        Self::Futex,
        Self::Poll,
        Self::Sleep,
        Self::Other,
    ];

    /// Its name in rows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Futex => "futex",
            Self::Poll => "poll",
            Self::Sleep => "sleep",
            Self::Other => "other",
        }
    }

    /// What a call waits for.
    #[must_use]
    pub fn of(call: Call) -> Self {
        let name = call.known_name();
        name.and_then(|name| find(&WAITING, name)).unwrap_or(Self::Other)
    }
}

/// By name, and for what other tables have beside that (`fcntl64`, `setuid32`, `futex_time64`), by the name without it.
fn find<T: Copy>(table: &HashMap<&'static str, T>, name: &str) -> Option<T> {
    let endings = ["", "_time64", "64", "32"];
    endings
        .iter()
        .find_map(|ending| table.get(name.strip_suffix(ending)?).copied())
}

static CATEGORIES: LazyLock<HashMap<&'static str, Category>> = LazyLock::new(|| by_name(CATEGORY_NAMES));
static WAITING: LazyLock<HashMap<&'static str, Waiting>> = LazyLock::new(|| by_name(WAITING_NAMES));

fn by_name<T: Copy>(table: &[(T, &'static str)]) -> HashMap<&'static str, T> {
    table
        .iter()
        .flat_map(|&(value, names)| names.split_whitespace().map(move |name| (name, value)))
        .collect()
}

/// Names of x86-64's table by category.
const CATEGORY_NAMES: &[(Category, &str)] = &[
    (
        Category::File,
        "read write open close stat fstat lstat lseek pread64 pwrite64 readv writev access dup dup2 dup3 sendfile fcntl \
         flock fsync fdatasync truncate ftruncate getdents getdents64 getcwd chdir fchdir rename renameat renameat2 mkdir \
         mkdirat rmdir creat link linkat unlink unlinkat symlink symlinkat readlink readlinkat chmod fchmod fchmodat \
         fchmodat2 chown fchown lchown fchownat umask utime utimes utimensat futimesat mknod mknodat ustat statfs fstatfs \
         sync syncfs readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr \
         removexattr lremovexattr fremovexattr setxattrat getxattrat listxattrat removexattrat fadvise64 openat openat2 \
         newfstatat faccessat faccessat2 splice tee vmsplice sync_file_range fallocate preadv pwritev preadv2 pwritev2 \
         name_to_handle_at open_by_handle_at copy_file_range statx close_range cachestat file_getattr file_setattr ioctl \
         lookup_dcookie",
    ),
    (
        Category::Network,
        "socket connect accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown bind listen getsockname \
         getpeername socketpair setsockopt getsockopt",
    ),
    (
        Category::Memory,
        "mmap mprotect munmap brk mremap msync mincore madvise mlock mlock2 munlock mlockall munlockall remap_file_pages \
         mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages move_pages pkey_mprotect pkey_alloc \
         pkey_free memfd_create memfd_secret process_madvise process_mrelease userfaultfd map_shadow_stack mseal membarrier \
         modify_ldt",
    ),
    (
        Category::Process,
        "clone clone3 fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid setpgid getpgrp \
         getsid setsid ptrace prctl arch_prctl personality sched_yield sched_setparam sched_getparam sched_setscheduler \
         sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_setaffinity \
         sched_getaffinity sched_setattr sched_getattr getpriority setpriority set_thread_area get_thread_area \
         set_tid_address ioprio_set ioprio_get getcpu kcmp pidfd_open pidfd_getfd rseq uretprobe uprobe uselib",
    ),
    (
        Category::Signal,
        "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo \
         rt_sigsuspend sigaltstack kill tkill tgkill pause signalfd signalfd4 pidfd_send_signal restart_syscall",
    ),
    (
        Category::Ipc,
        "pipe pipe2 shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink \
         mq_timedsend mq_timedreceive mq_notify mq_getsetattr futex futex_waitv futex_wake futex_wait futex_requeue \
         set_robust_list get_robust_list process_vm_readv process_vm_writev",
    ),
    (
        Category::Time,
        "nanosleep clock_nanosleep getitimer setitimer alarm gettimeofday settimeofday time times adjtimex clock_adjtime \
         clock_settime clock_gettime clock_getres timer_create timer_settime timer_gettime timer_getoverrun timer_delete \
         timerfd_create timerfd_settime timerfd_gettime",
    ),
    (
        Category::Event,
        "poll select ppoll pselect6 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait \
         epoll_pwait2 eventfd eventfd2 inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_init \
         fanotify_mark io_setup io_destroy io_getevents io_pgetevents io_submit io_cancel io_uring_setup io_uring_enter \
         io_uring_register",
    ),
    (
        Category::Credentials,
        "getuid getgid geteuid getegid setuid setgid setreuid setregid getgroups setgroups setresuid getresuid setresgid \
         getresgid setfsuid setfsgid capget capset add_key request_key keyctl seccomp landlock_create_ruleset \
         landlock_add_rule landlock_restrict_self lsm_get_self_attr lsm_set_self_attr lsm_list_modules security",
    ),
    (
        Category::Module,
        "create_module init_module finit_module delete_module get_kernel_syms query_module bpf kexec_load kexec_file_load \
         perf_event_open",
    ),
    (
        Category::System,
        "uname sysinfo syslog getrlimit setrlimit prlimit64 getrusage sysfs vhangup pivot_root _sysctl chroot acct mount \
         umount2 swapon swapoff reboot sethostname setdomainname iopl ioperm quotactl quotactl_fd unshare setns open_tree \
         open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr statmount listmount getrandom",
    ),
    (
        Category::Other,
        "nfsservctl getpmsg putpmsg afs_syscall tuxcall vserver",
    ),
    // Other tables' own.
    (
        Category::File,
        "_llseek oldstat oldfstat oldlstat readdir fstatat fadvise64_64 arm_fadvise64_64 arm_sync_file_range",
    ),
    (Category::Network, "socketcall send recv"),
    (Category::Memory, "mmap2"),
    (Category::Process, "nice waitpid vm86 vm86old"),
    (
        Category::Signal,
        "signal sigaction sigsuspend sigpending sigprocmask sigreturn sgetmask ssetmask",
    ),
    (Category::Ipc, "ipc"),
    (Category::Time, "stime ftime"),
    (Category::Event, "_newselect"),
    (
        Category::System,
        "umount olduname oldolduname ulimit ugetrlimit pciconfig_iobase pciconfig_read pciconfig_write bdflush",
    ),
];

/// Names of x86-64's table by what they wait for.
const WAITING_NAMES: &[(Waiting, &str)] = &[
    (
        Waiting::Network,
        "connect accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown",
    ),
    (
        Waiting::Disk,
        "open openat openat2 creat stat fstat lstat newfstatat statx access faccessat faccessat2 pread64 pwrite64 preadv \
         pwritev preadv2 pwritev2 fsync fdatasync sync syncfs sync_file_range msync truncate ftruncate fallocate getdents \
         getdents64 rename renameat renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat readlink \
         readlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat mknod \
         mknodat ustat statfs fstatfs readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr \
         llistxattr flistxattr removexattr lremovexattr fremovexattr setxattrat getxattrat listxattrat removexattrat \
         name_to_handle_at open_by_handle_at copy_file_range flock io_submit mount umount2 swapon swapoff quotactl \
         quotactl_fd cachestat file_getattr file_setattr chdir execve execveat",
    ),
    (
        Waiting::Futex,
        "futex futex_waitv futex_wait futex_wake futex_requeue",
    ),
    (
        Waiting::Poll,
        "poll ppoll select pselect6 epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 io_getevents io_pgetevents \
         io_uring_enter",
    ),
    (
        Waiting::Sleep,
        "nanosleep clock_nanosleep pause rt_sigsuspend rt_sigtimedwait",
    ),
    // Other tables' own.
    (Waiting::Network, "send recv"),
    (Waiting::Disk, "fstatat arm_sync_file_range readdir"),
    (Waiting::Poll, "_newselect"),
    (Waiting::Sleep, "sigsuspend"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::syscalls::call::Abi;

    fn all(abi: Abi) -> BTreeSet<&'static str> {
        (0..574)
            .filter_map(|number| Call { abi, number }.known_name())
            .collect()
    }

    fn names<T: Copy>(table: &[(T, &'static str)]) -> Vec<&'static str> {
        table
            .iter()
            .flat_map(|(_, names)| names.split_whitespace())
            .collect()
    }

    #[test]
    fn every_name_is_a_call_and_stands_once() {
        let everywhere: BTreeSet<_> = Abi::ALL.into_iter().flat_map(all).collect();
        for list in [names(CATEGORY_NAMES), names(WAITING_NAMES)] {
            let once: BTreeSet<_> = list.iter().copied().collect();
            assert_eq!(once.len(), list.len());
            let unknown: Vec<_> = once.difference(&everywhere).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
        // All but the last lists, of other tables' own, are x86-64's.
        let x86_64 = all(Abi::X86_64);
        let own = CATEGORY_NAMES.len() - 9;
        assert!(
            names(&CATEGORY_NAMES[..own])
                .iter()
                .all(|name| x86_64.contains(name))
        );
        let own = WAITING_NAMES.len() - 4;
        assert!(
            names(&WAITING_NAMES[..own])
                .iter()
                .all(|name| x86_64.contains(name))
        );
    }

    #[test]
    fn every_call_has_a_category() {
        let missing: Vec<_> = all(Abi::X86_64)
            .into_iter()
            .filter(|name| find(&CATEGORIES, name).is_none())
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        // Never implemented by Linux.
        let never = ["break", "gtty", "stty", "idle", "lock", "mpx", "prof", "profil"];
        for abi in [Abi::I386, Abi::Arm64, Abi::Arm] {
            let missing: Vec<_> = all(abi)
                .into_iter()
                .filter(|name| find(&CATEGORIES, name).is_none() && !never.contains(name))
                .collect();
            assert!(missing.is_empty(), "{abi:?} {missing:?}");
        }
    }

    #[test]
    fn calls_of_other_tables_are_as_their_likes() {
        let of = |abi, name: &str| Call::of(abi, name).unwrap();
        assert_eq!(Category::of(of(Abi::I386, "fcntl64")), Category::File);
        assert_eq!(Category::of(of(Abi::I386, "setuid32")), Category::Credentials);
        assert_eq!(Waiting::of(of(Abi::I386, "futex_time64")), Waiting::Futex);
        assert_eq!(Waiting::of(of(Abi::X86_64, "read")), Waiting::Other);
        assert_eq!(Category::of(Call::unknown()), Category::Other);
        for category in Category::ALL {
            assert_eq!(Category::parse(category.name()), Some(category));
        }
    }
}
