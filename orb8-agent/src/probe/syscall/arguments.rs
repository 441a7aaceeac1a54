//! What is special about a call: which of its arguments are strings, and whether it returns.

use orb8_common::syscall::{abi, watch};

/// The flags that the programs go by ([`watch`]).
pub(super) fn flags(abi: u32, number: u32) -> u32 {
    name(abi, number).map_or(0, of)
}

/// The call's name in the kernel's table.
fn name(abi: u32, number: u32) -> Option<&'static str> {
    let number = number as usize;
    match abi {
        abi::NATIVE if cfg!(target_arch = "aarch64") => {
            syscalls::aarch64::Sysno::new(number).map(|call| call.name())
        }
        abi::NATIVE if cfg!(target_arch = "x86_64") => {
            syscalls::x86_64::Sysno::new(number).map(|call| call.name())
        }
        abi::COMPAT if cfg!(target_arch = "aarch64") => {
            syscalls::arm::Sysno::new(number).map(|call| call.name())
        }
        abi::COMPAT if cfg!(target_arch = "x86_64") => {
            syscalls::x86::Sysno::new(number).map(|call| call.name())
        }
        // From 512 on x32 has numbers of its own (arch/x86/entry/syscalls/syscall_64.tbl).
        abi::X32 => match number {
            513 => Some("rt_sigreturn"),
            520 => Some("execve"),
            545 => Some("execveat"),
            512.. => None,
            _ => syscalls::x86_64::Sysno::new(number).map(|call| call.name()),
        },
        _ => None,
    }
}

const fn strings(arguments: &[u32]) -> u32 {
    let (mut bits, mut at) = (0, 0);
    while at < arguments.len() {
        bits |= 1 << arguments[at];
        at += 1;
    }
    bits
}

const fn vector(argument: u32) -> u32 {
    (argument + 1) << watch::VECTOR_SHIFT
}

fn of(name: &str) -> u32 {
    match name {
        "execve" => strings(&[0]) | vector(1),
        "execveat" => strings(&[1]) | vector(2),
        "mount" => strings(&[0, 1, 2]),
        "move_mount" => strings(&[1, 3]),
        "pivot_root" => strings(&[0, 1]),
        "umount" | "umount2" | "chroot" | "memfd_create" | "delete_module" | "swapon" | "swapoff"
        | "open" | "creat" | "unlink" | "rmdir" | "chdir" | "acct" => strings(&[0]),
        "finit_module" | "openat" | "openat2" | "unlinkat" | "fsopen" | "open_tree" => strings(&[1]),
        "init_module" => strings(&[2]),
        "kexec_file_load" => strings(&[3]),
        "clone" => watch::CLONE_FLAGS,
        "clone3" => watch::CLONE3_FLAGS,
        "unshare" => watch::UNSHARE_FLAGS,
        "exit" | "exit_group" => watch::NEVER_RETURNS,
        "rt_sigreturn" | "sigreturn" => watch::NO_RESULT,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_abi_has_its_own_numbers() {
        let execve = strings(&[0]) | vector(1);
        assert_eq!(flags(abi::NATIVE, 59), execve);
        assert_eq!(flags(abi::COMPAT, 11), execve);
        assert_eq!(flags(abi::X32, 520), execve);
        assert_eq!(
            flags(abi::X32, 59),
            execve,
            "x32 has the native one's number, too"
        );
        assert_eq!(flags(abi::NATIVE, 231), watch::NEVER_RETURNS);
        assert_eq!(flags(abi::COMPAT, 1), watch::NEVER_RETURNS);
        assert_eq!(flags(abi::COMPAT, 119), watch::NO_RESULT);
        assert_eq!(flags(abi::NATIVE, 39), 0);
        assert_eq!(flags(abi::NATIVE, 575), 0);
        assert_eq!(flags(7, 59), 0);
    }
}
