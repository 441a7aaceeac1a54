//! From facts to findings: no look at the machine, so that each machine can be imagined in a test.
use super::{Capability, Facts, Feature, Finding, KernelVersion, Support, Verdict, facts::describe_errno};

/// The oldest kernel that orb8 is made for.
pub(super) const MINIMUM: KernelVersion = KernelVersion::new(5, 10);
/// From here on eBPF maps are charged to the cgroup instead of the locked-memory limit.
const MAPS_CHARGED_TO_CGROUP: KernelVersion = KernelVersion::new(5, 11);
/// Locked memory for the maps of the default settings.
const MEMLOCK_NEEDED: u64 = 256 << 20;

/// All findings, the essential first.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(facts), capabilities(facts), bpf(facts)];
    findings.extend(features(facts));
    findings.extend([
        cgroup2(facts),
        proc(facts),
        processes(facts),
        membarrier(facts),
        lockdown(facts),
        btf(facts),
        tracefs(facts),
        bpffs(facts),
    ]);
    findings.extend(memlock(facts));
    findings
}

fn finding(
    name: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    Finding {
        name,
        verdict,
        found: found.into(),
        advice: advice.into(),
    }
}

fn ok(name: &'static str, found: impl Into<String>) -> Finding {
    finding(name, Verdict::Ok, found, "")
}

fn kernel(facts: &Facts) -> Finding {
    let name = "kernel";
    let Some(release) = &facts.release else {
        return finding(
            name,
            Verdict::Degraded,
            "The kernel's version is unknown.",
            "Mount /proc.",
        );
    };
    match facts.kernel() {
        Some(version) if version < MINIMUM => finding(
            name,
            Verdict::Fatal,
            format!("Linux {release} is older than {MINIMUM}."),
            format!("Boot Linux {MINIMUM} or later."),
        ),
        Some(_) => ok(name, format!("Linux {release}.")),
        None => finding(
            name,
            Verdict::Degraded,
            format!(
                "The kernel calls itself `{}`, which has no version.",
                release.escape_debug()
            ),
            format!("Make sure that it is at least as new as {MINIMUM}."),
        ),
    }
}

/// Capabilities that loading and attaching need, less those that this process has.
fn missing_capabilities(facts: &Facts) -> Option<Vec<&'static str>> {
    let admin = facts.has(Capability::SysAdmin)?;
    let mut missing = Vec::new();
    for (capability, covered_by_admin) in [
        (Capability::Bpf, true),
        (Capability::Perfmon, true),
        (Capability::NetAdmin, false),
    ] {
        if !(facts.has(capability)? || covered_by_admin && admin) {
            missing.push(capability.name());
        }
    }
    Some(missing)
}

fn who(facts: &Facts) -> String {
    if facts.uid == 0 {
        "root".to_owned()
    } else {
        format!("user {}", facts.uid)
    }
}

fn capabilities(facts: &Facts) -> Finding {
    let name = "capabilities";
    let who = who(facts);
    match missing_capabilities(facts) {
        None => finding(
            name,
            Verdict::Degraded,
            format!("Running as {who}; /proc/self/status does not tell which capabilities that has."),
            "Mount /proc.",
        ),
        Some(missing) if missing.is_empty() => ok(name, format!("Running as {who} with all that is needed.")),
        Some(missing) => finding(
            name,
            Verdict::Fatal,
            format!("Running as {who} without {}.", missing.join(", ")),
            if facts.uid == 0 {
                format!(
                    "Add {} (in a container: securityContext.capabilities.add).",
                    missing.join(", ")
                )
            } else {
                "Run as root (sudo), or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.".to_owned()
            },
        ),
    }
}

fn bpf(facts: &Facts) -> Finding {
    let name = "bpf";
    let errno = match facts.bpf {
        Ok(()) => return ok(name, "The kernel takes eBPF maps and programs from this process."),
        Err(errno) => errno,
    };
    let found = format!("bpf(2) answers: {}.", describe_errno(errno));
    let advice = match errno {
        libc::ENOSYS => "Boot a kernel with CONFIG_BPF_SYSCALL=y.".to_owned(),
        libc::EPERM | libc::EACCES => {
            if missing_capabilities(facts).is_some_and(|missing| !missing.is_empty()) {
                "See `capabilities`.".to_owned()
            } else if facts.initial_user_namespace == Some(false) {
                "This is a user namespace, whose root has no right to eBPF: run on the host, or in a container \
                 without one (hostUsers: true)."
                    .to_owned()
            } else if facts.seccomp_filter {
                "A seccomp filter refuses it: run privileged or with seccompProfile Unconfined.".to_owned()
            } else {
                "The capabilities suffice, so a security module refuses it: see its log (dmesg, ausearch)."
                    .to_owned()
            }
        }
        libc::ENOMEM => "Free memory, or raise the memory limit of this cgroup.".to_owned(),
        _ => "Report this with `uname -a`: it is not expected.".to_owned(),
    };
    finding(name, Verdict::Fatal, found, advice)
}

fn features(facts: &Facts) -> Vec<Finding> {
    let refused = |feature: &Feature| matches!(facts.features.get(feature), Some(Support::Unknown(_)) | None);
    if facts.bpf.is_err() && Feature::ALL.iter().all(refused) {
        let found = match facts.kernel() {
            None => "What the kernel can do could not be tried.".to_owned(),
            Some(version) => {
                let missing: Vec<_> = Feature::ALL
                    .iter()
                    .map(|feature| feature.description())
                    .filter(|description| description.since > version)
                    .map(|description| description.name)
                    .collect();
                if missing.is_empty() {
                    "What the kernel can do could not be tried; by its version it has all that orb8 uses."
                        .to_owned()
                } else {
                    format!(
                        "What the kernel can do could not be tried; by its version it lacks {}.",
                        missing.join(", ")
                    )
                }
            }
        };
        return vec![finding(
            "features",
            Verdict::Degraded,
            found,
            "Look again with the rights to use bpf(2).",
        )];
    }
    Feature::ALL
        .iter()
        .map(|&feature| judge_feature(feature, facts.features.get(&feature).copied(), facts.kernel()))
        .collect()
}

fn judge_feature(feature: Feature, support: Option<Support>, kernel: Option<KernelVersion>) -> Finding {
    let description = feature.description();
    let (name, what, since) = (description.name, description.what, description.since);
    match support.unwrap_or(Support::Unknown(libc::EIO)) {
        Support::Supported => ok(name, format!("The kernel has {what}.")),
        Support::Unsupported if kernel.is_some_and(|kernel| kernel >= since) => finding(
            name,
            description.verdict,
            format!(
                "The kernel lacks {what}, although {since} and later have it. {}.",
                description.without
            ),
            "Use a kernel that is built with it.",
        ),
        Support::Unsupported => finding(
            name,
            description.verdict,
            format!("The kernel lacks {what}. {}.", description.without),
            if description.verdict == Verdict::Ok {
                String::new()
            } else {
                format!("Linux {since} and later have it.")
            },
        ),
        Support::Unknown(errno) => finding(
            name,
            description.verdict,
            format!(
                "Whether the kernel has {what} could not be tried: {}. {}.",
                describe_errno(errno),
                description.without
            ),
            "See `capabilities` and `bpf`.",
        ),
    }
}

fn cgroup2(facts: &Facts) -> Finding {
    let name = "cgroup2";
    match &facts.cgroup2 {
        None if facts.mounts.is_none() => finding(
            name,
            Verdict::Degraded,
            "Where cgroup2 is mounted is unknown. Sockets of the host are not counted.",
            "Mount /proc.",
        ),
        None => finding(
            name,
            Verdict::Degraded,
            "cgroup2 is not mounted. Sockets of the host are not counted, and TCP health is off.",
            "Run `mount -t cgroup2 none /sys/fs/cgroup/unified` (or /sys/fs/cgroup, where that is empty); in a \
             container, mount the host's /sys/fs/cgroup.",
        ),
        Some(cgroup2) if !cgroup2.is_root => finding(
            name,
            Verdict::Degraded,
            format!(
                "{} is not the machine's root cgroup. Only sockets below it are counted.",
                cgroup2.path.display()
            ),
            "In a container, mount the host's /sys/fs/cgroup.",
        ),
        Some(cgroup2) => {
            let kind = if cgroup2.hybrid {
                " (hybrid: version 1 is mounted as well)"
            } else {
                ""
            };
            ok(name, format!("Mounted on {}{kind}.", cgroup2.path.display()))
        }
    }
}

fn proc(facts: &Facts) -> Finding {
    let name = "proc";
    if facts.mounts.is_none() {
        return finding(
            name,
            Verdict::Degraded,
            "/proc is not mounted. Owners of traffic cannot be named.",
            "Run `mount -t proc none /proc`.",
        );
    }
    let hidepid = facts.mount("proc").and_then(|mount| mount.option("hidepid"));
    match hidepid {
        Some(mode) if !matches!(mode, "0" | "off") && facts.has(Capability::SysPtrace) != Some(true) => {
            finding(
                name,
                Verdict::Degraded,
                format!("/proc is mounted with hidepid={mode}: other users' processes cannot be named."),
                "Add CAP_SYS_PTRACE, or join the group that /proc is mounted with (gid=).",
            )
        }
        _ if facts.initial_pid_namespace == Some(false) => finding(
            name,
            Verdict::Degraded,
            "This is a PID namespace of its own: processes outside of it cannot be named.",
            "Share the host's (Kubernetes: hostPID: true; Docker: --pid=host).",
        ),
        _ => ok(name, "Processes of the machine are visible."),
    }
}

fn processes(facts: &Facts) -> Finding {
    let name = "process_names";
    let missing: Vec<_> = [Capability::SysPtrace, Capability::DacReadSearch]
        .into_iter()
        .filter(|&capability| facts.has(capability) == Some(false))
        .map(Capability::name)
        .collect();
    if facts.capabilities.is_none() {
        finding(
            name,
            Verdict::Degraded,
            "Whether other users' processes can be named is unknown.",
            "Mount /proc.",
        )
    } else if missing.is_empty() {
        ok(name, "Other users' processes can be named.")
    } else {
        finding(
            name,
            Verdict::Degraded,
            format!(
                "Without {} some other users' processes cannot be named.",
                missing.join(", ")
            ),
            if facts.uid == 0 {
                format!("Add {}.", missing.join(", "))
            } else {
                "Run as root (sudo).".to_owned()
            },
        )
    }
}

fn membarrier(facts: &Facts) -> Finding {
    let name = "membarrier";
    if facts.membarrier {
        ok(name, "membarrier(2) waits for running programs.")
    } else {
        finding(
            name,
            Verdict::Degraded,
            "membarrier(2) cannot wait for running programs. A packet at the turn of an interval can be missed.",
            "Allow membarrier in the seccomp profile; kernels booted with nohz_full= refuse it.",
        )
    }
}

fn lockdown(facts: &Facts) -> Finding {
    let name = "lockdown";
    match facts.lockdown.as_deref() {
        Some("confidentiality") => finding(
            name,
            Verdict::Degraded,
            "The kernel is locked down (confidentiality): programs that read kernel memory are refused.",
            "Network observation works. For the rest, boot with lockdown=integrity.",
        ),
        Some(mode) => ok(name, format!("Mode {mode}, which does not concern orb8.")),
        None => ok(name, "Not in use, or not shown."),
    }
}

fn btf(facts: &Facts) -> Finding {
    let name = "btf";
    if facts.btf {
        ok(name, "The kernel shows its types in /sys/kernel/btf/vmlinux.")
    } else {
        finding(
            name,
            Verdict::Degraded,
            "There is no /sys/kernel/btf/vmlinux. Network observation does not need it.",
            "For programs that follow kernel structures, boot a kernel with CONFIG_DEBUG_INFO_BTF=y.",
        )
    }
}

fn tracefs(facts: &Facts) -> Finding {
    let name = "tracefs";
    match facts.mount("tracefs") {
        Some(mount) => ok(name, format!("Mounted on {}.", mount.path.display())),
        None => finding(
            name,
            Verdict::Degraded,
            "tracefs is not mounted. Network observation does not need it; tracepoints do.",
            "Run `mount -t tracefs none /sys/kernel/tracing`.",
        ),
    }
}

fn bpffs(facts: &Facts) -> Finding {
    let name = "bpffs";
    match facts.mount("bpf") {
        Some(mount) => ok(
            name,
            format!("Mounted on {}; orb8 pins nothing there.", mount.path.display()),
        ),
        None => ok(name, "Not mounted, and not needed: orb8 pins nothing."),
    }
}

/// A finding only where it matters: before Linux 5.11.
fn memlock(facts: &Facts) -> Option<Finding> {
    let limit = facts.memlock?;
    let limited = facts.kernel()? < MAPS_CHARGED_TO_CGROUP
        && limit < MEMLOCK_NEEDED
        && facts.has(Capability::SysResource) != Some(true);
    limited.then(|| {
        finding(
            "memlock",
            Verdict::Degraded,
            format!(
                "This process may lock {} KiB, and this kernel counts eBPF maps as locked.",
                limit >> 10
            ),
            "Run with `ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity) or CAP_SYS_RESOURCE.",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::preflight::{facts::Cgroup2, mount};

    /// A machine where all is well.
    fn good() -> Facts {
        Facts {
            release: Some("6.18.1".to_owned()),
            uid: 0,
            capabilities: Some(u64::MAX),
            initial_user_namespace: Some(true),
            initial_pid_namespace: Some(true),
            seccomp_filter: false,
            bpf: Ok(()),
            features: Feature::ALL
                .into_iter()
                .map(|feature| (feature, Support::Supported))
                .collect(),
            mounts: Some(mount::parse(
                b"1 0 0:1 / /proc rw - proc proc rw\n\
                  2 0 0:2 / /sys/kernel/tracing rw - tracefs none rw\n\
                  3 0 0:3 / /sys/fs/bpf rw - bpf none rw\n",
            )),
            cgroup2: Some(Cgroup2 {
                path: PathBuf::from("/sys/fs/cgroup"),
                is_root: true,
                hybrid: false,
            }),
            btf: true,
            lockdown: None,
            memlock: Some(8 << 20),
            membarrier: true,
        }
    }

    fn without(capabilities: &[Capability]) -> Facts {
        let mut facts = good();
        for &capability in capabilities {
            facts.capabilities = facts.capabilities.map(|bits| bits & !(1 << capability as u8));
        }
        facts
    }

    #[track_caller]
    fn one<'a>(findings: &'a [Finding], name: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.name == name).unwrap()
    }

    /// Asserts that the change of a good machine changes the verdict of this check and no other's.
    #[track_caller]
    fn expect(facts: &Facts, name: &str, verdict: Verdict, found: &str, advice: &str) {
        let findings = judge(facts);
        for finding in &findings {
            let expected = if finding.name == name {
                verdict
            } else {
                Verdict::Ok
            };
            assert_eq!(finding.verdict, expected, "{finding:?}");
        }
        let finding = one(&findings, name);
        assert!(finding.found.contains(found), "{finding:?}");
        assert!(finding.advice.contains(advice), "{finding:?}");
        let plain = |text: &str| text.len() <= 240 && !text.contains('\n') && !text.contains("  ");
        assert!(plain(&finding.found) && plain(&finding.advice), "{finding:?}");
    }

    #[test]
    fn on_a_good_machine_there_is_nothing_to_do() {
        for finding in judge(&good()) {
            assert_eq!(
                (finding.verdict, finding.advice.as_str()),
                (Verdict::Ok, ""),
                "{finding:?}"
            );
            assert!(finding.found.ends_with('.'), "{finding:?}");
        }
    }

    #[test]
    fn old_kernels() {
        let mut facts = good();
        facts.release = Some("5.9.16".to_owned());
        // Plenty of locked memory, so that only the version is wrong.
        facts.memlock = Some(u64::MAX);
        expect(
            &facts,
            "kernel",
            Verdict::Fatal,
            "5.9.16 is older than 5.10",
            "Boot Linux 5.10",
        );
        facts.release = Some("5.10.0".to_owned());
        facts.memlock = Some(64 << 10);
        facts.capabilities = without(&[Capability::SysResource]).capabilities;
        expect(
            &facts,
            "memlock",
            Verdict::Degraded,
            "may lock 64 KiB",
            "ulimit -l unlimited",
        );
        facts.release = Some("unversioned".to_owned());
        expect(
            &facts,
            "kernel",
            Verdict::Degraded,
            "no version",
            "at least as new as 5.10",
        );
    }

    #[test]
    fn sys_resource_is_not_missed_where_it_is_not_needed() {
        let facts = without(&[Capability::SysResource]);
        assert!(judge(&facts).iter().all(|finding| finding.verdict == Verdict::Ok));
    }

    #[test]
    fn capabilities_that_are_missing_are_named() {
        use Capability::{Bpf, DacReadSearch, NetAdmin, Perfmon, SysAdmin, SysPtrace};
        let lacking = |capabilities: &[Capability]| without(capabilities);
        let fatal = Verdict::Fatal;
        expect(
            &lacking(&[NetAdmin]),
            "capabilities",
            fatal,
            "without CAP_NET_ADMIN.",
            "Add CAP_NET_ADMIN",
        );
        expect(
            &lacking(&[Bpf, SysAdmin, Perfmon]),
            "capabilities",
            fatal,
            "CAP_BPF, CAP_PERFMON.",
            "Add CAP_BPF, CAP_PERFMON",
        );
        // CAP_SYS_ADMIN stands for the newer two.
        assert!(
            judge(&lacking(&[Bpf, Perfmon]))
                .iter()
                .all(|finding| finding.verdict == Verdict::Ok)
        );
        assert!(
            judge(&lacking(&[SysAdmin]))
                .iter()
                .all(|finding| finding.verdict == Verdict::Ok)
        );
        let unnamed = lacking(&[SysPtrace, DacReadSearch]);
        expect(
            &unnamed,
            "process_names",
            Verdict::Degraded,
            "CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH",
            "Add",
        );
    }

    #[test]
    fn an_ordinary_user_is_told_what_could_not_be_seen() {
        let mut facts = good();
        facts.uid = 1000;
        facts.capabilities = Some(0);
        facts.bpf = Err(libc::EPERM);
        facts.features = Feature::ALL
            .into_iter()
            .map(|feature| (feature, Support::Unknown(libc::EPERM)))
            .collect();
        let findings = judge(&facts);
        assert!(one(&findings, "capabilities").advice.contains("sudo"));
        assert_eq!(one(&findings, "bpf").advice, "See `capabilities`.");
        assert!(
            one(&findings, "features")
                .found
                .contains("by its version it has all")
        );
        assert!(!findings.iter().any(|finding| finding.name == "tcx"));
        facts.release = Some("6.1.0".to_owned());
        assert!(
            one(&judge(&facts), "features")
                .found
                .ends_with("it lacks tcx, netns_cookie.")
        );
    }

    #[test]
    fn a_refused_bpf_is_explained() {
        let mut facts = good();
        facts.bpf = Err(libc::ENOSYS);
        expect(
            &facts,
            "bpf",
            Verdict::Fatal,
            "not implemented",
            "CONFIG_BPF_SYSCALL",
        );
        facts.bpf = Err(libc::EPERM);
        expect(&facts, "bpf", Verdict::Fatal, "not permitted", "security module");
        facts.seccomp_filter = true;
        expect(&facts, "bpf", Verdict::Fatal, "not permitted", "seccomp");
        facts.initial_user_namespace = Some(false);
        expect(&facts, "bpf", Verdict::Fatal, "not permitted", "user namespace");
    }

    #[test]
    fn features_that_a_kernel_lacks() {
        let mut facts = good();
        facts.features.insert(Feature::Tcx, Support::Unsupported);
        expect(
            &facts,
            "tcx",
            Verdict::Degraded,
            "although 6.6 and later have it",
            "built with it",
        );
        facts.release = Some("6.1.0".to_owned());
        expect(
            &facts,
            "tcx",
            Verdict::Degraded,
            "clsact instead",
            "Linux 6.6 and later",
        );
        facts.features.insert(Feature::Tcx, Support::Unknown(libc::EPERM));
        expect(
            &facts,
            "tcx",
            Verdict::Degraded,
            "could not be tried",
            "See `capabilities`",
        );
        facts.features.insert(Feature::Tcx, Support::Supported);
        facts.features.insert(Feature::Batch, Support::Unsupported);
        expect(
            &facts,
            "batch",
            Verdict::Fatal,
            "lacks emptying maps in batches",
            "built with it",
        );
    }

    #[test]
    fn mounts_that_are_missing() {
        let mut facts = good();
        facts.cgroup2 = None;
        expect(
            &facts,
            "cgroup2",
            Verdict::Degraded,
            "not mounted",
            "mount -t cgroup2",
        );
        let own = Cgroup2 {
            path: PathBuf::from("/sys/fs/cgroup"),
            is_root: false,
            hybrid: false,
        };
        facts.cgroup2 = Some(own);
        expect(
            &facts,
            "cgroup2",
            Verdict::Degraded,
            "not the machine's root",
            "host's /sys/fs/cgroup",
        );
        let mut facts = good();
        facts.mounts = Some(mount::parse(b"1 0 0:1 / /proc rw - proc proc rw\n"));
        expect(
            &facts,
            "tracefs",
            Verdict::Degraded,
            "not mounted",
            "mount -t tracefs",
        );
        let mut facts = good();
        facts.mounts = None;
        let findings = judge(&facts);
        assert_eq!(one(&findings, "proc").verdict, Verdict::Degraded);
    }

    #[test]
    fn processes_that_hide() {
        let mut facts = good();
        facts.initial_pid_namespace = Some(false);
        expect(&facts, "proc", Verdict::Degraded, "PID namespace", "hostPID");
        let mut facts = good();
        let mounts = "1 0 0:1 / /proc rw - proc proc rw,hidepid=invisible\n\
                      2 0 0:2 / /t rw - tracefs none rw\n";
        facts.mounts = Some(mount::parse(mounts.as_bytes()));
        assert_eq!(
            one(&judge(&facts), "proc").verdict,
            Verdict::Ok,
            "CAP_SYS_PTRACE sees through it"
        );
        facts.capabilities = without(&[Capability::SysPtrace]).capabilities;
        assert!(one(&judge(&facts), "proc").found.contains("hidepid=invisible"));
    }

    #[test]
    fn the_rest() {
        let mut facts = good();
        facts.membarrier = false;
        expect(
            &facts,
            "membarrier",
            Verdict::Degraded,
            "can be missed",
            "nohz_full",
        );
        let mut facts = good();
        facts.lockdown = Some("confidentiality".to_owned());
        expect(
            &facts,
            "lockdown",
            Verdict::Degraded,
            "locked down",
            "lockdown=integrity",
        );
        let mut facts = good();
        facts.btf = false;
        expect(
            &facts,
            "btf",
            Verdict::Degraded,
            "does not need it",
            "CONFIG_DEBUG_INFO_BTF",
        );
    }
}
