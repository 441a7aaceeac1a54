//! Preflight on this machine: as root, as an ordinary user, without a capability, without a mount.
//!
//! The other circumstances are made for a copy of this test binary, which reports from inside them.
use std::{
    env, fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::Command,
};

use orb8_agent::preflight::{Feature, KernelVersion, Preflight, Support, Verdict};

/// Set for the copy that reports.
const REPORT: &str = "ORB8_TEST_PREFLIGHT_REPORT";

/// Says so past the test harness, which keeps what passing tests print to itself.
fn skipped(test: &str, why: &str) {
    let _ = writeln!(io::stderr(), "{test}: skipped, {why}");
}

/// Whether this process is root; otherwise says that the test is skipped, or fails where that is not wanted.
fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(
        root || env::var_os("ORB8_REQUIRE_KERNEL").is_none(),
        "{test} needs root (ORB8_REQUIRE_KERNEL is set)"
    );
    if !root {
        skipped(test, "needs root");
    }
    root
}

/// Runs preflight behind `wrapper`, a command that runs its arguments. Returns `name|verdict|found|advice` lines.
fn report_behind(wrapper: &[&str]) -> Vec<[String; 4]> {
    // Another user may not be able to reach the place where cargo built this.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("preflight");
    fs::copy(env::current_exe().unwrap(), &copy).unwrap();
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg(&copy)
        .args(["--exact", "reports_when_asked", "--nocapture"])
        .env(REPORT, "1")
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rows: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("@|"))
        .map(|line| {
            let fields: Vec<_> = line.split('|').map(str::to_owned).collect();
            <[String; 4]>::try_from(fields).unwrap()
        })
        .collect();
    assert!(rows.len() >= 8, "{text}");
    rows
}

#[track_caller]
fn row<'a>(rows: &'a [[String; 4]], name: &str) -> &'a [String; 4] {
    rows.iter()
        .find(|row| row[0] == name)
        .unwrap_or_else(|| panic!("no {name} in {rows:?}"))
}

#[test]
fn reports_when_asked() {
    if env::var_os(REPORT).is_some() {
        println!();
        for finding in Preflight::run().findings {
            println!(
                "@|{}|{:?}|{}|{}",
                finding.name, finding.verdict, finding.found, finding.advice
            );
        }
    }
}

#[test]
fn here_every_feature_is_found_that_this_kernel_is_new_enough_for() {
    if !root("features") {
        return;
    }
    let preflight = Preflight::run();
    assert_ne!(preflight.verdict(), Verdict::Fatal, "{:#?}", preflight.findings);
    let kernel: KernelVersion = preflight.facts.kernel().unwrap();
    for feature in Feature::ALL {
        let support = feature.probe();
        if kernel >= feature.description().since {
            assert_eq!(support, Support::Supported, "{feature} on Linux {kernel}");
        } else {
            // Distributions add features to older kernels, but never make the question fail.
            assert!(
                !matches!(support, Support::Unknown(_)),
                "{feature} on Linux {kernel}: {support:?}"
            );
        }
    }
}

#[test]
fn an_ordinary_user_is_told_to_be_root() {
    if !root("ordinary user") {
        return;
    }
    let rows = report_behind(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    let [_, verdict, found, advice] = row(&rows, "capabilities");
    assert_eq!(verdict, "Fatal");
    assert!(
        found.contains("user 65534") && found.contains("CAP_NET_ADMIN"),
        "{found}"
    );
    assert!(advice.contains("sudo"), "{advice}");
    assert_eq!(row(&rows, "kernel")[1], "Ok");
    assert_eq!(row(&rows, "process_names")[1], "Degraded");
    assert!(!row(&rows, "cgroup2")[2].is_empty());
}

#[test]
fn a_dropped_capability_is_named() {
    if !root("dropped capability") {
        return;
    }
    let rows = report_behind(&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    let [_, verdict, found, advice] = row(&rows, "capabilities");
    assert_eq!(
        (verdict.as_str(), found.as_str()),
        ("Fatal", "Running as root without CAP_NET_ADMIN.")
    );
    assert!(advice.starts_with("Add CAP_NET_ADMIN"), "{advice}");
    let rows = report_behind(&["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]);
    assert_eq!(row(&rows, "capabilities")[1], "Ok");
    assert!(row(&rows, "process_names")[2].contains("CAP_SYS_PTRACE"));
}

#[test]
fn a_missing_mount_is_explained() {
    if !root("missing mount") {
        return;
    }
    // A mount namespace of our own: the machine's mounts stay. An empty tmpfs hides all hierarchies.
    let script = "awk '$0 ~ / - (cgroup2?|tracefs) / { print $5 }' /proc/self/mountinfo | sort -r | \
                  while read -r path; do umount \"$path\"; done; exec \"$@\"";
    let rows = report_behind(&["unshare", "--mount", "sh", "-c", script, "sh"]);
    let [_, verdict, found, advice] = row(&rows, "cgroup2");
    assert_eq!(verdict, "Degraded", "{found}");
    assert!(found.contains("Sockets of the host are not counted") && advice.contains("mount -t cgroup2"));
    let [_, verdict, _, advice] = row(&rows, "tracefs");
    assert_eq!(verdict, "Degraded");
    assert!(advice.contains("mount -t tracefs"));
}

#[test]
fn root_of_a_user_namespace_is_told_so() {
    if !root("user namespace") {
        return;
    }
    let made = Command::new("unshare")
        .args(["--user", "--map-root-user", "true"])
        .status();
    if !made.is_ok_and(|status| status.success()) {
        skipped("user namespace", "this machine makes none");
        return;
    }
    let rows = report_behind(&["unshare", "--user", "--map-root-user"]);
    let [_, verdict, _, advice] = row(&rows, "bpf");
    assert_eq!(verdict, "Fatal");
    assert!(advice.contains("user namespace"), "{advice}");
}

#[test]
fn the_kernel_refuses_a_helper_of_another_program_type() {
    use orb8_agent::bpf::{ProgramType, instruction, load_program};
    if !root("refused helper") {
        return;
    }
    // The control of the probes: the same program and helper, in a type that has no such helper.
    let program = instruction::call_helper(instruction::Helper::SkbCgroupId, 0);
    let error = load_program(ProgramType::SocketFilter, &program).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EINVAL), "{error}");
    load_program(ProgramType::SocketFilter, &instruction::return_constant(0)).unwrap();
}
