//! What there is to know about a machine, without judging it.
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::sys::resource::{Resource, getrlimit};

use super::{
    Feature, Support,
    mount::{self, Mount},
};
use crate::bpf;

/// A kernel's version, as far as it decides what it can do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KernelVersion {
    /// 6 of 6.18.44.
    pub major: u32,
    /// 18 of 6.18.44.
    pub minor: u32,
}

impl KernelVersion {
    /// Version `major`.`minor`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl FromStr for KernelVersion {
    type Err = std::num::ParseIntError;

    /// Reads the start of a release such as `6.18.44-fc`, `5.10.0+` or `6.12-rc1`.
    fn from_str(release: &str) -> Result<Self, Self::Err> {
        let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
        let major = numbers.next().unwrap_or_default().parse()?;
        let minor = numbers.next().unwrap_or_default().parse()?;
        Ok(Self { major, minor })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Capabilities that orb8 asks about, by number (`include/uapi/linux/capability.h`).
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// Reading other users' files, such as `/proc/PID/fd`.
    DacReadSearch = 2,
    /// Attaching to interfaces and cgroups.
    NetAdmin = 12,
    /// Looking into other users' processes, such as `/proc/PID/ns/net`.
    SysPtrace = 19,
    /// The old right to everything.
    SysAdmin = 21,
    /// More locked memory than the limit (needed before Linux 5.11).
    SysResource = 24,
    /// Programs that may compare and copy kernel pointers.
    Perfmon = 38,
    /// bpf(2).
    Bpf = 39,
}

impl Capability {
    /// As capabilities(7) writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// The cgroup2 hierarchy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cgroup2 {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Whether that is the machine's root cgroup; in a cgroup namespace it can be a container's own.
    pub is_root: bool,
    /// Whether version 1 hierarchies are mounted as well.
    pub hybrid: bool,
}

/// What was asked of a machine. `None` stands for "could not be found out".
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release of the kernel, as `uname -r`.
    pub release: Option<String>,
    /// Effective user.
    pub uid: u32,
    /// Effective capabilities, a bit each.
    pub capabilities: Option<u64>,
    /// Whether this process is in the machine's first user namespace.
    pub initial_user_namespace: Option<bool>,
    /// Whether this process is in the machine's first PID namespace.
    pub initial_pid_namespace: Option<bool>,
    /// Whether a seccomp filter judges this process' system calls.
    pub seccomp_filter: bool,
    /// What bpf(2) said to a small map: nothing, or an error number.
    pub bpf: Result<(), i32>,
    /// Each feature, as tried.
    pub features: BTreeMap<Feature, Support>,
    /// Mounts that this process sees.
    pub mounts: Option<Vec<Mount>>,
    /// The cgroup2 hierarchy, where it is mounted.
    pub cgroup2: Option<Cgroup2>,
    /// Whether the kernel shows its types (`/sys/kernel/btf/vmlinux`).
    pub btf: bool,
    /// The kernel's lockdown mode: `none`, `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// Bytes that this process may lock (before Linux 5.11 eBPF maps count); `u64::MAX` is no limit.
    pub memlock: Option<u64>,
    /// Whether membarrier(2) waits for all running programs.
    pub membarrier: bool,
}

impl Facts {
    /// Asks this machine; files are read below `root`, which tests replace.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        let status = read("proc/self/status").unwrap_or_default();
        let status_field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let mounts = fs::read(root.join("proc/self/mountinfo"))
            .ok()
            .map(|text| mount::parse(&text));
        let bpf = bpf::create_map(bpf::MapType::Hash, 4, 4, 1)
            .map(|_| ())
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        Self {
            release: release(root),
            uid: nix::unistd::geteuid().as_raw(),
            capabilities: status_field("CapEff").and_then(|bits| u64::from_str_radix(bits, 16).ok()),
            // Only the first user namespace maps every user to itself.
            initial_user_namespace: read("proc/self/uid_map")
                .map(|map| map.split_whitespace().eq(["0", "0", "4294967295"])),
            // PROC_PID_INIT_INO, include/linux/proc_ns.h.
            initial_pid_namespace: fs::read_link(root.join("proc/self/ns/pid"))
                .ok()
                .map(|name| name == Path::new("pid:[4026531836]")),
            seccomp_filter: status_field("Seccomp") == Some("2"),
            features: Feature::ALL
                .iter()
                .map(|&feature| (feature, feature.probe()))
                .collect(),
            bpf,
            cgroup2: mounts.as_ref().and_then(|mounts| cgroup2(root, mounts)),
            mounts,
            btf: root.join("sys/kernel/btf/vmlinux").exists(),
            lockdown: read("sys/kernel/security/lockdown").and_then(|text| selected(&text)),
            memlock: getrlimit(Resource::RLIMIT_MEMLOCK).ok().map(|(soft, _)| soft),
            membarrier: membarrier_waits_for_all(),
        }
    }

    /// Version of the kernel.
    #[must_use]
    pub fn kernel(&self) -> Option<KernelVersion> {
        self.release.as_deref()?.parse().ok()
    }

    /// Whether this process has a capability; `None` where its status can't be read.
    #[must_use]
    pub fn has(&self, capability: Capability) -> Option<bool> {
        Some(self.capabilities? & 1 << capability as u8 != 0)
    }

    /// The first mount of a file system.
    #[must_use]
    pub fn mount(&self, file_system: &str) -> Option<&Mount> {
        self.mounts
            .as_ref()?
            .iter()
            .find(|mount| mount.file_system == file_system)
    }
}

fn release(root: &Path) -> Option<String> {
    match fs::read_to_string(root.join("proc/sys/kernel/osrelease")) {
        Ok(release) => Some(release.trim().to_owned()),
        Err(_) => nix::sys::utsname::uname()
            .ok()?
            .release()
            .to_str()
            .map(str::to_owned),
    }
}

fn cgroup2(root: &Path, mounts: &[Mount]) -> Option<Cgroup2> {
    // Several are possible (a container's own and the host's, mounted by the runtime): the root goes first.
    mounts
        .iter()
        .filter(|mount| mount.file_system == "cgroup2")
        .map(|mount| {
            let folder = root.join(mount.path.strip_prefix("/").unwrap_or(&mount.path));
            Cgroup2 {
                path: mount.path.clone(),
                // Every cgroup but the root has this file (Documentation/admin-guide/cgroup-v2.rst).
                is_root: folder.join("cgroup.procs").exists() && !folder.join("cgroup.type").exists(),
                hybrid: mounts.iter().any(|mount| mount.file_system == "cgroup"),
            }
        })
        .max_by_key(|cgroup2| cgroup2.is_root)
}

/// The word in brackets: `none [integrity] confidentiality`.
fn selected(choices: &str) -> Option<String> {
    choices
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']').map(str::to_owned))
}

/// Asks membarrier(2) for its commands. Kernels with `nohz_full` CPUs refuse the global one.
fn membarrier_waits_for_all() -> bool {
    const QUERY: libc::c_int = 0;
    const GLOBAL: libc::c_long = 1;
    // SAFETY: membarrier takes numbers only.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, QUERY, 0, 0) };
    commands >= 0 && commands & GLOBAL != 0
}

/// The name of an error number, for messages.
pub(super) fn describe_errno(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn releases_are_read() {
        for (release, version) in [
            ("6.18.44-fc-v782", (6, 18)),
            ("5.10.0-28-cloud-amd64", (5, 10)),
            ("6.12-rc1", (6, 12)),
            ("4.4\n", (4, 4)),
        ] {
            assert_eq!(
                release.parse(),
                Ok(KernelVersion::new(version.0, version.1)),
                "{release}"
            );
        }
        for wrong in ["", "six.one", "6", "99999999999.1"] {
            assert!(wrong.parse::<KernelVersion>().is_err(), "{wrong}");
        }
        assert!(KernelVersion::new(6, 6) > KernelVersion::new(5, 15));
        assert!(KernelVersion::new(6, 15) > KernelVersion::new(6, 6));
    }

    /// A machine of files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn facts_come_from_the_files() {
        let root = machine(&[
            ("proc/sys/kernel/osrelease", "5.10.7-test\n"),
            (
                "proc/self/status",
                "Name:\tx\nCapEff:\t0000008000001000\nSeccomp:\t2\nSeccomp_filters:\t1\n",
            ),
            ("proc/self/uid_map", "         0       1000          1\n"),
            (
                "proc/self/mountinfo",
                "1 0 0:1 / /sys/fs/cgroup rw - tmpfs none rw\n\
                 2 1 0:2 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu\n\
                 3 1 0:3 / /sys/fs/cgroup/own rw - cgroup2 none rw\n\
                 4 1 0:3 /../.. /sys/fs/cgroup/unified rw - cgroup2 none rw\n",
            ),
            ("sys/fs/cgroup/own/cgroup.procs", ""),
            ("sys/fs/cgroup/own/cgroup.type", "domain\n"),
            ("sys/fs/cgroup/unified/cgroup.procs", ""),
            ("sys/kernel/btf/vmlinux", ""),
            (
                "sys/kernel/security/lockdown",
                "none [integrity] confidentiality\n",
            ),
        ]);
        let facts = Facts::of(root.path());
        assert_eq!(facts.kernel(), Some(KernelVersion::new(5, 10)));
        assert_eq!(facts.has(Capability::Bpf), Some(true));
        assert_eq!(facts.has(Capability::NetAdmin), Some(true));
        assert_eq!(facts.has(Capability::Perfmon), Some(false));
        assert_eq!(facts.initial_user_namespace, Some(false));
        assert!(facts.seccomp_filter);
        let unified = PathBuf::from("/sys/fs/cgroup/unified");
        assert_eq!(
            facts.cgroup2,
            Some(Cgroup2 {
                path: unified,
                is_root: true,
                hybrid: true
            })
        );
        assert!(facts.btf);
        assert_eq!(facts.lockdown.as_deref(), Some("integrity"));
    }

    #[test]
    fn a_machine_without_files_is_unknown_not_an_error() {
        let root = machine(&[]);
        let facts = Facts::of(root.path());
        assert_eq!(facts.mounts, None);
        assert_eq!(facts.capabilities, None);
        assert_eq!(facts.has(Capability::Bpf), None);
        assert_eq!(facts.initial_pid_namespace, None);
        assert!(facts.kernel().is_some(), "uname works without /proc");
    }

    proptest! {
        #[test]
        fn hostile_releases_do_no_harm(release in ".{0,30}") {
            let _ = release.parse::<KernelVersion>();
            let _ = selected(&release);
        }
    }
}
