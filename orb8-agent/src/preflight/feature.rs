//! What kernels can do that not every kernel can: found out by trying, not by version, for distributions add
//! and leave out.
use std::{collections::BTreeMap, fmt, io};

use aya::{
    programs::{ProgramError, ProgramType as ProgramKind},
    sys::{self, BpfHelper},
};

use super::{Facts, KernelVersion, Verdict};
use crate::bpf::{
    self, MapType, ProgramType,
    instruction::{self, Helper},
};

/// Something that a kernel can do for orb8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Feature {
    /// Emptying a hash map in batches, each entry read and removed in one step.
    Batch,
    /// Ring buffers.
    RingBuffer,
    /// tcx links on interfaces.
    Tcx,
    /// `bpf_skb_cgroup_id` in cgroup packet programs.
    SocketCgroup,
    /// `sock_ops` programs.
    SockOps,
    /// `bpf_get_netns_cookie` in cgroup packet programs.
    NetnsCookieInCgroupSkb,
    /// `bpf_get_netns_cookie` in `sock_ops` programs.
    NetnsCookieInSockOps,
    /// `bpf_ktime_get_coarse_ns`.
    CoarseClock,
    /// Atomic `or` on map values.
    AtomicOr,
    /// Raw tracepoints.
    RawTracepoint,
    /// Storage of tasks in raw tracepoints.
    TaskStorage,
    /// `bpf_get_current_task_btf` in raw tracepoints.
    CurrentTask,
}

/// Whether a kernel has a [`Feature`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// Tried, works.
    Supported,
    /// Tried, the kernel does not know it.
    Unsupported,
    /// Could not be tried, with this error number; `EPERM` for want of rights.
    Unknown(i32),
}

/// What is known of a [`Feature`] beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// A word for tables.
    pub name: &'static str,
    /// What it is, for sentences.
    pub what: &'static str,
    /// The first mainline kernel that has it.
    pub since: KernelVersion,
    /// What its absence means.
    pub verdict: Verdict,
    /// What orb8 does without it.
    pub without: &'static str,
}

impl Feature {
    /// All of them, the most essential first.
    pub const ALL: [Self; 12] = [
        Self::Batch,
        Self::RingBuffer,
        Self::Tcx,
        Self::SocketCgroup,
        Self::SockOps,
        Self::NetnsCookieInCgroupSkb,
        Self::NetnsCookieInSockOps,
        Self::CoarseClock,
        Self::AtomicOr,
        Self::RawTracepoint,
        Self::TaskStorage,
        Self::CurrentTask,
    ];

    /// What is known of it.
    #[must_use]
    pub const fn description(self) -> Description {
        // Versions: the kernel's own history (commit that adds the helper, link or command).
        match self {
            Self::Batch => Description {
                name: "batch",
                what: "emptying maps in batches",
                since: KernelVersion::new(5, 6),
                verdict: Verdict::Fatal,
                without: "Counters cannot be taken out of the kernel without losing some",
            },
            Self::RingBuffer => Description {
                name: "ring_buffer",
                what: "ring buffers",
                since: KernelVersion::new(5, 8),
                verdict: Verdict::Degraded,
                without: "Flows are counted, but live events are switched off",
            },
            Self::Tcx => Description {
                name: "tcx",
                what: "tcx links",
                since: KernelVersion::new(6, 6),
                verdict: Verdict::Degraded,
                without: "Interfaces are observed through clsact instead, which counts the same",
            },
            Self::SocketCgroup => Description {
                name: "socket_cgroup",
                what: "the cgroup of a packet's socket",
                since: KernelVersion::new(4, 18),
                verdict: Verdict::Degraded,
                without: "The owners of host sockets stay unknown",
            },
            Self::SockOps => Description {
                name: "sock_ops",
                what: "TCP callbacks of sockets",
                since: KernelVersion::new(4, 13),
                verdict: Verdict::Degraded,
                without: "Round-trip times, retransmits and failed connects are not shown",
            },
            Self::NetnsCookieInCgroupSkb => Description {
                name: "netns_cookie",
                what: "the network namespace of a socket's packet",
                since: KernelVersion::new(6, 15),
                verdict: Verdict::Degraded,
                without: "Which network namespace a socket's packet is in cannot be asked of the kernel directly",
            },
            Self::NetnsCookieInSockOps => Description {
                name: "netns_cookie_tcp",
                what: "the network namespace of a TCP callback",
                since: KernelVersion::new(5, 15),
                verdict: Verdict::Degraded,
                without: "TCP health of equal addresses in two network namespaces cannot be told apart",
            },
            Self::CoarseClock => Description {
                name: "coarse_clock",
                what: "the coarse clock",
                since: KernelVersion::new(5, 11),
                verdict: Verdict::Ok,
                without: "The precise clock is read instead, a few nanoseconds more a packet",
            },
            Self::AtomicOr => Description {
                name: "atomic_or",
                what: "atomic or",
                since: KernelVersion::new(5, 12),
                verdict: Verdict::Degraded,
                without: "A TCP flag can go unnoticed when two CPUs see a flow at once; counts are not touched",
            },
            Self::RawTracepoint => Description {
                name: "raw_tracepoint",
                what: "raw tracepoints",
                since: KernelVersion::new(4, 17),
                verdict: Verdict::Degraded,
                without: "System calls are not counted",
            },
            Self::TaskStorage => Description {
                name: "task_storage",
                what: "storage of tasks",
                since: KernelVersion::new(5, 12),
                verdict: Verdict::Degraded,
                without: "System calls are not counted",
            },
            Self::CurrentTask => Description {
                name: "current_task",
                what: "direct reads of the current task",
                since: KernelVersion::new(5, 11),
                verdict: Verdict::Ok,
                without: "It is copied from instead, some nanoseconds more a system call",
            },
        }
    }

    /// Tries it on this kernel. Attaches nothing; what is made vanishes at once.
    #[must_use]
    pub fn probe(self) -> Support {
        // A program of this type that returns "go on" and calls the helper on the way.
        let helper = |kind, helper| tried(bpf::load_program(kind, &instruction::call_helper(helper, 1)));
        match self {
            Self::Batch => known(bpf::has_lookup_and_delete_batch()),
            Self::RingBuffer => tried(bpf::create_map(MapType::RingBuffer, 0, 0, page_size())),
            Self::Tcx => known(bpf::has_tcx()),
            Self::SocketCgroup => helper(ProgramType::CgroupSkb, Helper::SkbCgroupId),
            Self::SockOps => tried(bpf::load_program(
                ProgramType::SockOps,
                &instruction::return_constant(1),
            )),
            Self::NetnsCookieInCgroupSkb => helper(ProgramType::CgroupSkb, Helper::NetnsCookie),
            Self::NetnsCookieInSockOps => helper(ProgramType::SockOps, Helper::NetnsCookie),
            Self::CoarseClock => helper(ProgramType::Classifier, Helper::KtimeCoarse),
            Self::AtomicOr => tried(bpf::load_program(
                ProgramType::Classifier,
                &instruction::atomic_or(0),
            )),
            Self::RawTracepoint => tried(bpf::load_program(
                ProgramType::RawTracepoint,
                &instruction::return_constant(0),
            )),
            Self::TaskStorage => known(
                sys::is_helper_supported(ProgramKind::RawTracePoint, BpfHelper::BPF_FUNC_task_storage_get)
                    .map_err(of_system_call),
            ),
            Self::CurrentTask => helper(ProgramType::RawTracepoint, Helper::CurrentTaskBtf),
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description().name)
    }
}

fn page_size() -> u32 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u32::try_from(size).ok())
        .unwrap_or(4096)
}

/// What an attempt says: the kernel answers what it does not know with `EINVAL` (or `EACCES`, from the verifier).
fn tried<T>(attempt: io::Result<T>) -> Support {
    known(match attempt {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    })
}

fn known(answer: io::Result<bool>) -> Support {
    match answer {
        Ok(true) => Support::Supported,
        Ok(false) => Support::Unsupported,
        Err(error) => Support::Unknown(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// The error number of what aya tried.
fn of_system_call(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}

/// What this kernel was seen to be able to do; what could not be tried counts as absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "one bool a feature is what the loader asks for"
)]
pub struct Features {
    /// [`Feature::Batch`].
    pub batch: bool,
    /// [`Feature::RingBuffer`].
    pub ring_buffer: bool,
    /// [`Feature::Tcx`].
    pub tcx: bool,
    /// [`Feature::SocketCgroup`].
    pub socket_cgroup: bool,
    /// [`Feature::SockOps`].
    pub sock_ops: bool,
    /// [`Feature::NetnsCookieInCgroupSkb`].
    pub netns_cookie_in_cgroup_skb: bool,
    /// [`Feature::NetnsCookieInSockOps`].
    pub netns_cookie_in_sock_ops: bool,
    /// [`Feature::CoarseClock`].
    pub coarse_clock: bool,
    /// [`Feature::AtomicOr`].
    pub atomic_or: bool,
    /// [`Feature::RawTracepoint`].
    pub raw_tracepoint: bool,
    /// [`Feature::TaskStorage`].
    pub task_storage: bool,
    /// [`Feature::CurrentTask`].
    pub current_task: bool,
}

impl Features {
    /// Tries all features on this kernel, in a few milliseconds.
    #[must_use]
    pub fn probe() -> Self {
        Self::of(
            &Feature::ALL
                .iter()
                .map(|&feature| (feature, feature.probe()))
                .collect(),
        )
    }

    pub(super) fn from_facts(facts: &Facts) -> Self {
        Self::of(&facts.features)
    }

    fn of(support: &BTreeMap<Feature, Support>) -> Self {
        let has = |feature| support.get(&feature) == Some(&Support::Supported);
        Self {
            batch: has(Feature::Batch),
            ring_buffer: has(Feature::RingBuffer),
            tcx: has(Feature::Tcx),
            socket_cgroup: has(Feature::SocketCgroup),
            sock_ops: has(Feature::SockOps),
            netns_cookie_in_cgroup_skb: has(Feature::NetnsCookieInCgroupSkb),
            netns_cookie_in_sock_ops: has(Feature::NetnsCookieInSockOps),
            coarse_clock: has(Feature::CoarseClock),
            atomic_or: has(Feature::AtomicOr),
            raw_tracepoint: has(Feature::RawTracepoint),
            task_storage: has(Feature::TaskStorage),
            current_task: has(Feature::CurrentTask),
        }
    }
}
