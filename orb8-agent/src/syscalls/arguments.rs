//! Arguments of calls that are told one by one, as far as they can be told cheaply and safely: integers, flags and the
//! strings that the programs have read.

use super::{
    call::Call,
    event::{Argument, Strings, Text},
};

/// What an argument is.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// An `int`: the kernel does not look at the upper half of the register.
    Int,
    /// A `size_t` or the like.
    Size,
    /// A file descriptor, or `AT_FDCWD`.
    Fd,
    /// An id of which all bits set means "as it is".
    Id,
    /// Bits that have no names here.
    Hex,
    /// A string.
    Text,
    /// A vector of strings: the last of a call's strings.
    Vector,
    /// One of some numbers.
    One(&'static [(u64, &'static str)]),
    /// Any of some bits.
    Flags(&'static [(u64, &'static str)]),
}

use Form::{Fd, Flags, Hex, Id, Int, One, Size, Vector};

/// Number of the argument, name and form.
type Spec = (usize, &'static str, Form);

const TEXT: Form = Form::Text;

/// include/uapi/linux/sched.h
const CLONE: &[(u64, &str)] = &[
    (0x80, "CLONE_NEWTIME"),
    (0x100, "CLONE_VM"),
    (0x200, "CLONE_FS"),
    (0x400, "CLONE_FILES"),
    (0x800, "CLONE_SIGHAND"),
    (0x1000, "CLONE_PIDFD"),
    (0x2000, "CLONE_PTRACE"),
    (0x4000, "CLONE_VFORK"),
    (0x8000, "CLONE_PARENT"),
    (0x1_0000, "CLONE_THREAD"),
    (0x2_0000, "CLONE_NEWNS"),
    (0x4_0000, "CLONE_SYSVSEM"),
    (0x0200_0000, "CLONE_NEWCGROUP"),
    (0x0400_0000, "CLONE_NEWUTS"),
    (0x0800_0000, "CLONE_NEWIPC"),
    (0x1000_0000, "CLONE_NEWUSER"),
    (0x2000_0000, "CLONE_NEWPID"),
    (0x4000_0000, "CLONE_NEWNET"),
];
/// include/uapi/linux/ptrace.h
const PTRACE: &[(u64, &str)] = &[
    (0, "PTRACE_TRACEME"),
    (1, "PTRACE_PEEKTEXT"),
    (2, "PTRACE_PEEKDATA"),
    (3, "PTRACE_PEEKUSR"),
    (4, "PTRACE_POKETEXT"),
    (5, "PTRACE_POKEDATA"),
    (6, "PTRACE_POKEUSR"),
    (7, "PTRACE_CONT"),
    (8, "PTRACE_KILL"),
    (9, "PTRACE_SINGLESTEP"),
    (16, "PTRACE_ATTACH"),
    (17, "PTRACE_DETACH"),
    (24, "PTRACE_SYSCALL"),
    (0x4200, "PTRACE_SETOPTIONS"),
    (0x4201, "PTRACE_GETEVENTMSG"),
    (0x4202, "PTRACE_GETSIGINFO"),
    (0x4203, "PTRACE_SETSIGINFO"),
    (0x4204, "PTRACE_GETREGSET"),
    (0x4205, "PTRACE_SETREGSET"),
    (0x4206, "PTRACE_SEIZE"),
    (0x4207, "PTRACE_INTERRUPT"),
    (0x4208, "PTRACE_LISTEN"),
];
/// include/uapi/linux/mount.h
const MOUNT: &[(u64, &str)] = &[
    (0x1, "MS_RDONLY"),
    (0x2, "MS_NOSUID"),
    (0x4, "MS_NODEV"),
    (0x8, "MS_NOEXEC"),
    (0x20, "MS_REMOUNT"),
    (0x1000, "MS_BIND"),
    (0x2000, "MS_MOVE"),
    (0x4000, "MS_REC"),
    (0x8000, "MS_SILENT"),
    (0x2_0000, "MS_UNBINDABLE"),
    (0x4_0000, "MS_PRIVATE"),
    (0x8_0000, "MS_SLAVE"),
    (0x10_0000, "MS_SHARED"),
    (0x20_0000, "MS_RELATIME"),
];
const UMOUNT: &[(u64, &str)] = &[
    (1, "MNT_FORCE"),
    (2, "MNT_DETACH"),
    (4, "MNT_EXPIRE"),
    (8, "UMOUNT_NOFOLLOW"),
];
/// include/uapi/linux/bpf.h
const BPF: &[(u64, &str)] = &[
    (0, "BPF_MAP_CREATE"),
    (1, "BPF_MAP_LOOKUP_ELEM"),
    (2, "BPF_MAP_UPDATE_ELEM"),
    (3, "BPF_MAP_DELETE_ELEM"),
    (4, "BPF_MAP_GET_NEXT_KEY"),
    (5, "BPF_PROG_LOAD"),
    (6, "BPF_OBJ_PIN"),
    (7, "BPF_OBJ_GET"),
    (8, "BPF_PROG_ATTACH"),
    (9, "BPF_PROG_DETACH"),
    (10, "BPF_PROG_TEST_RUN"),
    (13, "BPF_PROG_GET_FD_BY_ID"),
    (14, "BPF_MAP_GET_FD_BY_ID"),
    (15, "BPF_OBJ_GET_INFO_BY_FD"),
    (16, "BPF_PROG_QUERY"),
    (17, "BPF_RAW_TRACEPOINT_OPEN"),
    (18, "BPF_BTF_LOAD"),
    (21, "BPF_MAP_LOOKUP_AND_DELETE_ELEM"),
    (24, "BPF_MAP_LOOKUP_BATCH"),
    (25, "BPF_MAP_LOOKUP_AND_DELETE_BATCH"),
    (28, "BPF_LINK_CREATE"),
    (29, "BPF_LINK_UPDATE"),
];
/// include/uapi/linux/memfd.h
const MEMFD: &[(u64, &str)] = &[
    (1, "MFD_CLOEXEC"),
    (2, "MFD_ALLOW_SEALING"),
    (4, "MFD_HUGETLB"),
    (8, "MFD_NOEXEC_SEAL"),
    (16, "MFD_EXEC"),
];
/// include/uapi/linux/seccomp.h
const SECCOMP: &[(u64, &str)] = &[
    (0, "SECCOMP_SET_MODE_STRICT"),
    (1, "SECCOMP_SET_MODE_FILTER"),
    (2, "SECCOMP_GET_ACTION_AVAIL"),
    (3, "SECCOMP_GET_NOTIF_SIZES"),
];
/// include/uapi/linux/reboot.h
const REBOOT: &[(u64, &str)] = &[
    (0x0123_4567, "RESTART"),
    (0xcdef_0123, "HALT"),
    (0x89ab_cdef, "CAD_ON"),
    (0, "CAD_OFF"),
    (0x4321_fedc, "POWER_OFF"),
    (0xa1b2_c3d4, "RESTART2"),
    (0xd000_fce2, "SW_SUSPEND"),
    (0x4558_4543, "KEXEC"),
];
/// include/uapi/linux/keyctl.h
const KEYCTL: &[(u64, &str)] = &[
    (0, "KEYCTL_GET_KEYRING_ID"),
    (1, "KEYCTL_JOIN_SESSION_KEYRING"),
    (2, "KEYCTL_UPDATE"),
    (3, "KEYCTL_REVOKE"),
    (4, "KEYCTL_CHOWN"),
    (5, "KEYCTL_SETPERM"),
    (6, "KEYCTL_DESCRIBE"),
    (7, "KEYCTL_CLEAR"),
    (8, "KEYCTL_LINK"),
    (9, "KEYCTL_UNLINK"),
    (10, "KEYCTL_SEARCH"),
    (11, "KEYCTL_READ"),
];

/// Arguments of a call; of one that is not here, they are told as they are.
fn specs(name: &str) -> Option<&'static [Spec]> {
    Some(match name {
        "execve" => &[(0, "path", TEXT), (1, "argv", Vector)],
        "execveat" => &[
            (0, "dirfd", Fd),
            (1, "path", TEXT),
            (2, "argv", Vector),
            (4, "flags", Hex),
        ],
        "ptrace" => &[(0, "request", One(PTRACE)), (1, "pid", Int), (2, "addr", Hex)],
        "process_vm_readv" | "process_vm_writev" => &[(0, "pid", Int)],
        "mount" => &[
            (0, "source", TEXT),
            (1, "target", TEXT),
            (2, "type", TEXT),
            (3, "flags", Flags(MOUNT)),
        ],
        "umount" | "umount2" => &[(0, "target", TEXT), (1, "flags", Flags(UMOUNT))],
        "pivot_root" => &[(0, "new_root", TEXT), (1, "put_old", TEXT)],
        "move_mount" => &[
            (0, "from_dirfd", Fd),
            (1, "from", TEXT),
            (2, "to_dirfd", Fd),
            (3, "to", TEXT),
            (4, "flags", Hex),
        ],
        "open_tree" => &[(0, "dirfd", Fd), (1, "path", TEXT), (2, "flags", Hex)],
        // Where the programs read the second argument only.
        "fsopen" => &[(1, "flags", Hex)],
        "setns" => &[(0, "fd", Fd), (1, "type", Flags(CLONE))],
        "unshare" | "clone" => &[(0, "flags", Flags(CLONE))],
        // What its flags are is in the program's memory.
        "clone3" => &[(1, "size", Size)],
        "bpf" => &[(0, "command", One(BPF)), (2, "size", Size)],
        "perf_event_open" => &[
            (1, "pid", Int),
            (2, "cpu", Int),
            (3, "group_fd", Int),
            (4, "flags", Hex),
        ],
        "init_module" => &[(1, "size", Size), (2, "parameters", TEXT)],
        "finit_module" => &[(0, "fd", Fd), (1, "parameters", TEXT), (2, "flags", Hex)],
        "delete_module" => &[(0, "name", TEXT), (1, "flags", Hex)],
        "kexec_load" => &[(1, "segments", Size), (3, "flags", Hex)],
        "kexec_file_load" => &[
            (0, "kernel_fd", Fd),
            (1, "initrd_fd", Fd),
            (3, "command_line", TEXT),
            (4, "flags", Hex),
        ],
        "setuid" | "setuid32" | "setfsuid" | "setfsuid32" => &[(0, "uid", Id)],
        "setgid" | "setgid32" | "setfsgid" | "setfsgid32" => &[(0, "gid", Id)],
        "setreuid" | "setreuid32" => &[(0, "ruid", Id), (1, "euid", Id)],
        "setregid" | "setregid32" => &[(0, "rgid", Id), (1, "egid", Id)],
        "setresuid" | "setresuid32" => &[(0, "ruid", Id), (1, "euid", Id), (2, "suid", Id)],
        "setresgid" | "setresgid32" => &[(0, "rgid", Id), (1, "egid", Id), (2, "sgid", Id)],
        "setgroups" | "setgroups32" => &[(0, "size", Size)],
        // Which capabilities is in the program's memory.
        "capset" => &[],
        "keyctl" => &[(0, "operation", One(KEYCTL)), (1, "arg2", Hex), (2, "arg3", Hex)],
        // What they are called is in the program's memory.
        "add_key" | "request_key" => &[],
        "io_uring_setup" => &[(0, "entries", Int)],
        "memfd_create" => &[(0, "name", TEXT), (1, "flags", Flags(MEMFD))],
        "userfaultfd" => &[(0, "flags", Hex)],
        "chroot" | "chdir" | "rmdir" | "unlink" | "swapon" | "swapoff" | "acct" | "creat" => {
            &[(0, "path", TEXT)]
        }
        "open" => &[(0, "path", TEXT), (1, "flags", Hex)],
        "openat" | "unlinkat" => &[(0, "dirfd", Fd), (1, "path", TEXT), (2, "flags", Hex)],
        "openat2" => &[(0, "dirfd", Fd), (1, "path", TEXT)],
        "personality" => &[(0, "persona", Hex)],
        "seccomp" => &[(0, "operation", One(SECCOMP)), (1, "flags", Hex)],
        "reboot" => &[(2, "command", One(REBOOT))],
        "read" | "write" | "pread64" | "pwrite64" => &[(0, "fd", Fd), (2, "count", Size)],
        "readv" | "writev" | "preadv" | "pwritev" => &[(0, "fd", Fd), (2, "vectors", Int)],
        "sendto" | "recvfrom" => &[(0, "fd", Fd), (2, "count", Size), (3, "flags", Hex)],
        "close" | "fsync" | "fdatasync" | "fstat" | "getdents64" | "epoll_wait" | "epoll_pwait"
        | "accept" | "accept4" | "connect" | "bind" | "listen" | "sendmsg" | "recvmsg" | "ftruncate" => {
            &[(0, "fd", Fd)]
        }
        _ => return None,
    })
}

const UNNAMED: [&str; 6] = ["arg0", "arg1", "arg2", "arg3", "arg4", "arg5"];
/// `AT_FDCWD` as it is in 32 bits.
const AT_FDCWD: i32 = -100;

/// Arguments with their names.
pub(super) fn decode(call: Call, args: &[u64; 6], strings: &Strings) -> Vec<Argument> {
    let Some(specs) = call.known_name().and_then(specs) else {
        let raw = UNNAMED.iter().zip(args);
        return raw
            .map(|(name, value)| plain(name, format!("{value:#x}")))
            .chain(strings.all.iter().map(|text| string("text", text)))
            .collect();
    };
    let vector = specs.iter().any(|(_, _, form)| matches!(form, Vector));
    let single = specs
        .iter()
        .filter(|(_, _, form)| matches!(form, Form::Text))
        .count();
    let mut rest = strings.all.iter();
    specs
        .iter()
        .filter_map(|&(index, name, form)| {
            // Registers of 32-bit calls are zero-extended.
            let value = args[index];
            let int = (value as u32).cast_signed();
            Some(match form {
                Int => plain(name, int.to_string()),
                Size => plain(name, value.to_string()),
                Fd => plain(
                    name,
                    match int {
                        AT_FDCWD => "AT_FDCWD".to_owned(),
                        fd => fd.to_string(),
                    },
                ),
                Id => plain(
                    name,
                    match value as u32 {
                        u32::MAX => "-1".to_owned(),
                        id => id.to_string(),
                    },
                ),
                Hex => plain(name, format!("{value:#x}")),
                One(names) => plain(
                    name,
                    match names.iter().find(|(one, _)| *one == value & 0xffff_ffff) {
                        Some((_, name)) => (*name).to_owned(),
                        None => format!("{value:#x}"),
                    },
                ),
                Flags(names) => plain(name, flags(value, names)),
                Form::Text => string(name, rest.next()?),
                Vector => {
                    let words: Vec<&Text> = rest.by_ref().collect();
                    argv(name, &words, strings.more)
                }
            })
        })
        .chain(
            // More strings than this table knows of.
            strings
                .all
                .iter()
                .skip(single)
                .filter(|_| !vector)
                .map(|text| string("text", text)),
        )
        .collect()
}

fn plain(name: &'static str, value: String) -> Argument {
    Argument {
        name,
        value,
        truncated: false,
    }
}

fn string(name: &'static str, text: &Text) -> Argument {
    Argument {
        name,
        // Its page was not in memory, or it is no address.
        value: if text.unreadable {
            "?".to_owned()
        } else {
            text.text.clone()
        },
        truncated: text.truncated,
    }
}

fn argv(name: &'static str, words: &[&Text], more: bool) -> Argument {
    let mut value = String::new();
    for word in words {
        if !value.is_empty() {
            value.push(' ');
        }
        match &*word.text {
            _ if word.unreadable => value.push('?'),
            text if text.is_empty() || text.contains([' ', '\'', '"', '\\']) => {
                value.push('\'');
                value.push_str(&text.replace('\\', "\\\\").replace('\'', "\\'"));
                value.push('\'');
            }
            text => value.push_str(text),
        }
    }
    Argument {
        name,
        value,
        truncated: more || words.iter().any(|word| word.truncated),
    }
}

fn flags(value: u64, names: &[(u64, &str)]) -> String {
    let mut left = value;
    let mut parts = Vec::new();
    for (bit, name) in names {
        if value & bit != 0 {
            left &= !bit;
            parts.push((*name).to_owned());
        }
    }
    if left != 0 || parts.is_empty() {
        parts.push(format!("{left:#x}"));
    }
    parts.join("|")
}

#[cfg(test)]
mod tests {
    use crate::syscalls::event::tests::{decoded, record};

    fn arguments(call: &str, args: [u64; 6], strings: &[&[u8]]) -> String {
        decoded(&record(call, args, strings))
            .into_iter()
            .map(|(name, value, _)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn arguments_have_names_and_values() {
        let no = [0; 6];
        assert_eq!(
            arguments("mount", [1, 2, 3, 0x1001, 0, 0], &[b"/dev/sda", b"/mnt", b"ext4"]),
            "source=/dev/sda target=/mnt type=ext4 flags=MS_RDONLY|MS_BIND"
        );
        assert_eq!(
            arguments("unshare", [0x4002_0000, 0, 0, 0, 0, 0], &[]),
            "flags=CLONE_NEWNS|CLONE_NEWNET"
        );
        // The low byte of clone's flags is the signal of its end.
        assert_eq!(
            arguments("clone", [0x1000_0011, 0, 0, 0, 0, 0], &[]),
            "flags=CLONE_NEWUSER|0x11"
        );
        assert_eq!(
            arguments("ptrace", [16, 77, 0, 0, 0, 0], &[]),
            "request=PTRACE_ATTACH pid=77 addr=0x0"
        );
        assert_eq!(
            arguments("setresuid", [0, u64::MAX, 1000, 0, 0, 0], &[]),
            "ruid=0 euid=-1 suid=1000"
        );
        assert_eq!(
            arguments("bpf", [5, 0, 120, 0, 0, 0], &[]),
            "command=BPF_PROG_LOAD size=120"
        );
        assert_eq!(arguments("capset", no, &[]), "");
        assert_eq!(
            arguments(
                "execveat",
                [-100i64 as u64, 0, 0, 0, 0x1000, 0],
                &[b"a b", b"x", b"", b"it's"]
            ),
            "dirfd=AT_FDCWD path=a b argv=x '' 'it\\'s' flags=0x1000"
        );
        assert!(arguments("lseek", [3, 16, 0, 0, 0, 0], &[]).starts_with("arg0=0x3 arg1=0x10"));
        // Strings that were not read are left out.
        assert_eq!(arguments("chroot", no, &[]), "");
    }

    #[test]
    fn what_was_cut_says_so() {
        let mut event = record("execve", [0; 6], &[b"/bin/x", b"x", b"lo"]);
        event.truncated = 1;
        event.unreadable = 2;
        event.more = 1;
        assert_eq!(
            decoded(&event),
            [
                ("path", "/bin/x".to_owned(), true),
                ("argv", "? lo".to_owned(), true)
            ]
        );
    }
}
