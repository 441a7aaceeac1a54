//! System calls of pods, against what the workload says that it called. Exact counts are asserted of calls that nothing else
//! makes in a container: neither the C library, nor the runtime on its way to start the container's program.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cluster::{Cluster, NAMESPACE, json_lines},
    manifests,
    scenarios::{Outcome, V4, exchange},
};

/// The workload's sleep, in ns.
const SLEEP: u64 = 20_000_000;
/// What the agent counted is read each second, and asked for anew meanwhile.
const SOON: Duration = Duration::from_secs(10);

/// What the workload says of one kind of call.
#[derive(Clone, Debug, Deserialize)]
struct Made {
    calls: u64,
    /// How each of them ended; 0: well.
    errno: i32,
    total_ns: u64,
    median_ns: u64,
}

/// Makes a pod call, and returns what it says that it called.
fn call(cluster: &Cluster, pod: &str, container: &str, wanted: &[&str]) -> Result<BTreeMap<String, Made>> {
    let text = cluster.exec_in(pod, container, &[&["calls"], wanted].concat())?;
    serde_json::from_str(text.trim()).with_context(|| format!("{pod} said {text:?}"))
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

/// Counts of the namespace's rows, by some of their fields.
fn tally(rows: &[Value], fields: &[&str]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for row in rows.iter().filter(|row| row["namespace"] == NAMESPACE) {
        let key: Vec<&str> = fields.iter().map(|field| text(row, field)).collect();
        *counts.entry(key.join(" ")).or_default() += row["count"].as_u64().unwrap_or_default();
    }
    counts
}

/// Pods of every QoS class, on the node's own network and on another's, two containers of one pod, and two pods of a
/// Deployment: each has exactly the calls that it made, under every grouping.
pub(crate) fn counts(cluster: &Cluster) -> Result<Outcome> {
    // Nobody else in the namespace makes these.
    let only = "times,getpriority,getsid";
    let web = cluster.pods("app=web")?;
    ensure!(web.len() == 2, "the Deployment has {web:?}");
    let mut wanted = vec![
        ("guaranteed", "main", "", vec!["times=1000", "getpriority=7"]),
        ("burstable", "main", "", vec!["times=333", "getsid=1001"]),
        ("far", "main", "", vec!["times=444"]),
        ("on-host-1", "main", "", vec!["times=250", "getpriority=501"]),
        ("on-host-2", "main", "", vec!["getsid=77"]),
        ("several", "main", "", vec!["times=11", "getpriority=700"]),
        ("several", "other", "", vec!["times=13", "getsid=900"]),
    ];
    wanted.push((&web[0], "main", "Deployment/web", vec!["getpriority=40"]));
    wanted.push((
        &web[1],
        "main",
        "Deployment/web",
        vec!["getpriority=60", "times=5"],
    ));
    let mut by_container = BTreeMap::new();
    let mut by_pod = BTreeMap::new();
    let mut by_workload = BTreeMap::new();
    for (pod, container, workload, calls) in &wanted {
        for (syscall, made) in call(cluster, pod, container, calls)? {
            by_container.insert(format!("{pod} {container} {syscall}"), made.calls);
            *by_pod.entry(format!("{pod} {syscall}")).or_default() += made.calls;
            if !workload.is_empty() {
                *by_workload.entry(format!("{workload} {syscall}")).or_default() += made.calls;
            }
        }
    }
    ensure!(
        by_workload
            == BTreeMap::from([
                ("Deployment/web getpriority".to_owned(), 100),
                ("Deployment/web times".to_owned(), 5)
            ]),
        "the workload called {by_workload:?}"
    );
    let by = |grouping: &str, fields: &[&str], expected: &BTreeMap<String, u64>, of: &str| {
        let asked = ["-A", "--syscall", only, "--by", grouping];
        let mut found = tally(&cluster.syscalls(&asked)?, fields);
        found.retain(|key, _| key.starts_with(of));
        ensure!(
            found == *expected,
            "by {grouping}: expected {expected:?}, found {found:?}"
        );
        Ok(())
    };
    cluster.within(SOON, || {
        // The default grouping first.
        let found = tally(
            &cluster.syscalls(&["-A", "--syscall", only])?,
            &["pod", "container", "syscall"],
        );
        ensure!(
            found == by_container,
            "expected {by_container:?}, found {found:?}"
        );
        by(
            "container,syscall",
            &["pod", "container", "syscall"],
            &by_container,
            "",
        )?;
        by("pod,syscall", &["pod", "syscall"], &by_pod, "")?;
        by(
            "workload,syscall",
            &["workload", "syscall"],
            &by_workload,
            "Deployment/web ",
        )
    })?;
    // Filters, and sums of what they leave.
    let rows = cluster.syscalls(&[
        "-n",
        NAMESPACE,
        "--workload",
        "Deployment/web",
        "--by",
        "syscall",
        "--syscall",
        only,
    ])?;
    let sums: BTreeMap<&str, u64> = rows
        .iter()
        .map(|row| (text(row, "syscall"), row["count"].as_u64().unwrap_or_default()))
        .collect();
    ensure!(
        sums == BTreeMap::from([("getpriority", 100), ("times", 5)]),
        "the Deployment's calls: {sums:?}"
    );
    Ok(Outcome::Passed)
}

/// Each agent's mode, as `orb8 syscall-mode` says it.
fn modes(cluster: &Cluster, arguments: &[&str]) -> Result<Vec<Value>> {
    json_lines(&cluster.orb8(&[&["syscall-mode", "-o", "json"], arguments].concat())?)
}

fn all_are(cluster: &Cluster, modes: &[Value], mode: &str) -> Result<()> {
    ensure!(
        modes.len() == cluster.nodes.len() && modes.iter().all(|row| row["mode"] == mode),
        "not all {} agents are in mode {mode}: {modes:?}",
        cluster.nodes.len()
    );
    Ok(())
}

/// The modes are switched on every node; errors are exact, and the buckets' bounds hold what was slept.
pub(crate) fn latency(cluster: &Cluster) -> Result<Outcome> {
    all_are(cluster, &modes(cluster, &[])?, "counts")?;
    for (arguments, said) in [
        (["syscall-mode", "latencies"].as_slice(), "latency"),
        (
            ["syscalls", "-A", "--errno", "ENOSUCHERROR"].as_slice(),
            "ENOSUCHERROR",
        ),
        (["syscalls", "-A", "--syscall", "openatt"].as_slice(), "openat"),
        (["syscalls", "-A", "--category", "files"].as_slice(), "file"),
    ] {
        let refused = cluster.orb8(arguments);
        ensure!(
            refused
                .as_ref()
                .is_err_and(|error| error.to_string().contains(said)),
            "{arguments:?} is answered with {refused:?}"
        );
    }
    all_are(cluster, &modes(cluster, &[])?, "counts")?;
    // The runtime removes a file on its way into a container.
    let removed = counted(cluster, "guaranteed", "unlinkat")?;
    let switched = modes(cluster, &["latency"])?;
    let measured = all_are(cluster, &switched, "latency").and_then(|()| measure(cluster, removed));
    let back = modes(cluster, &["counts"])?;
    measured?;
    all_are(cluster, &back, "counts")?;
    ensure!(back.iter().all(|row| row["before"] == "latency"), "{back:?}");
    // Counting goes on, and nothing of it is measured.
    call(cluster, "guaranteed", "main", &["sethostname=19"])?;
    cluster.within(SOON, || {
        let row = one_row(cluster, "guaranteed", "sethostname")?;
        ensure!(
            row["count"] == 23 + 19 && row["returned"] == 23 && row["errors"]["EPERM"] == 23,
            "23 calls that were measured, and 19 that were not: {row}"
        );
        Ok(())
    })?;
    all_are(cluster, &modes(cluster, &[])?, "counts")?;
    Ok(Outcome::Passed)
}

/// The row of one call of a pod.
fn one_row(cluster: &Cluster, pod: &str, syscall: &str) -> Result<Value> {
    let mut rows = cluster.syscalls(&[
        "-n",
        NAMESPACE,
        "--pod",
        &format!("{NAMESPACE}/{pod}"),
        // Not the sandbox, which the runtime names.
        "--container",
        "main",
        "--syscall",
        syscall,
        "--errors",
        "--latency",
    ])?;
    ensure!(rows.len() == 1, "{syscall} by {pod}: {rows:?}");
    Ok(rows.remove(0))
}

/// How many calls of one kind a pod has made so far.
fn counted(cluster: &Cluster, pod: &str, syscall: &str) -> Result<u64> {
    let asked = [
        "-n",
        NAMESPACE,
        "--pod",
        &format!("{NAMESPACE}/{pod}"),
        "--container",
        "main",
        "--syscall",
        syscall,
    ];
    let rows = cluster.syscalls(&asked)?;
    Ok(rows.iter().filter_map(|row| row["count"].as_u64()).sum())
}

/// `removed`: calls of unlinkat that were counted before.
fn measure(cluster: &Cluster, removed: u64) -> Result<()> {
    let wanted = ["sethostname=23", "unlinkat=37", "fsync=5", "clock_nanosleep=25"];
    let made = call(cluster, "guaranteed", "main", &wanted)?;
    let expected = [
        ("sethostname", libc::EPERM, Some("EPERM")),
        ("unlinkat", libc::ENOENT, Some("ENOENT")),
        ("fsync", libc::EBADF, Some("EBADF")),
        ("clock_nanosleep", 0, None),
    ];
    cluster.within(SOON, || {
        for (syscall, errno, name) in expected {
            let of_workload = made.get(syscall).context("the workload did not call")?;
            ensure!(
                of_workload.errno == errno,
                "{syscall} ended with {}",
                of_workload.errno
            );
            let row = one_row(cluster, "guaranteed", syscall)?;
            let before = if syscall == "unlinkat" { removed } else { 0 };
            let errors: BTreeMap<String, u64> = serde_json::from_value(row["errors"].clone())?;
            let failed = name.map(|name| (name.to_owned(), of_workload.calls));
            ensure!(
                row["count"] == before + of_workload.calls
                    && row["returned"] == of_workload.calls
                    && errors == failed.into_iter().collect::<BTreeMap<_, _>>(),
                "{} calls of {syscall}, all with {name:?}: {row}",
                of_workload.calls
            );
        }
        // The workload's clock also counts its way into the kernel and back.
        let slept = &made["clock_nanosleep"];
        let row = one_row(cluster, "guaranteed", "clock_nanosleep")?;
        let number = |field: &str| row[field].as_u64().with_context(|| format!("no {field}: {row}"));
        let (total, bound) = (number("total_ns")?, number("p50_ns")?);
        ensure!(
            total >= slept.calls * SLEEP && total <= slept.total_ns,
            "{slept:?} took {total} ns"
        );
        ensure!(
            bound.is_power_of_two() && bound > SLEEP && bound / 2 <= slept.median_ns,
            "{slept:?} have a median of at most {bound} ns, and more than half of it"
        );
        Ok(())
    })?;
    // By an errno: only what failed so.
    let rows = cluster.syscalls(&[
        "-n",
        NAMESPACE,
        "--pod",
        "orb8-e2e/guaranteed",
        "--errno",
        "EBADF",
        "--syscall",
        "fsync,unlinkat",
    ])?;
    ensure!(
        rows.len() == 1 && rows[0]["syscall"] == "fsync" && rows[0]["count"] == 5,
        "EBADF: {rows:?}"
    );
    // What it waited for: it slept.
    let rows = cluster.syscalls(&["-n", NAMESPACE, "--pod", "orb8-e2e/guaranteed", "--waits"])?;
    let slept = rows.first().map(|row| &row["waits"]["sleep"]["count"]);
    ensure!(
        slept.and_then(Value::as_u64) >= Some(25),
        "sleeps of the pod: {rows:?}"
    );
    Ok(())
}

/// What a pod starts, and what it tries to mount and to unshare, is told with its name and arguments while it happens.
pub(crate) fn trace(cluster: &Cluster) -> Result<Outcome> {
    let traced = cluster.orb8_start(&[
        "trace",
        "syscalls",
        "-n",
        NAMESPACE,
        "-o",
        "json",
        "--duration",
        "12s",
    ])?;
    // Streams of all nodes begin.
    thread::sleep(Duration::from_secs(4));
    let made = call(cluster, "far", "main", &["unshare=2", "mount=3"])?;
    ensure!(
        made["unshare"].errno == libc::EPERM && made["mount"].errno != 0,
        "the pod may do what it must not: {made:?}"
    );
    call(cluster, "several", "other", &["mount=1"])?;
    let (text, said) = traced.output()?;
    let events = json_lines(&text)?;
    let of = |pod: &str, container: &str, syscall: &str, arguments: &[(&str, &str)]| {
        events
            .iter()
            .filter(|event| {
                event["namespace"] == NAMESPACE
                    && event["pod"] == pod
                    && event["container"] == container
                    && event["syscall"] == syscall
            })
            .filter(|event| {
                let told: Vec<&Value> = event["arguments"].as_array().into_iter().flatten().collect();
                arguments.iter().all(|(name, value)| {
                    told.iter().any(|argument| {
                        argument["name"] == *name && self::text(argument, "value").contains(value)
                    })
                })
            })
            .count()
    };
    let mount = [
        ("source", "orb8-e2e-source"),
        ("target", "/orb8-e2e-missing"),
        ("type", "tmpfs"),
    ];
    for (what, found, expected) in [
        (
            "starts by far",
            of(
                "far",
                "main",
                "execve",
                &[("path", "/orb8-traffic"), ("argv", "mount=3")],
            ),
            1,
        ),
        (
            "unshares by far",
            of("far", "main", "unshare", &[("flags", "CLONE_NEWNET")]),
            2,
        ),
        ("mounts by far", of("far", "main", "mount", &mount), 3),
        (
            "mounts by the other container",
            of("several", "other", "mount", &mount),
            1,
        ),
        (
            "mounts by the first container",
            of("several", "main", "mount", &[]),
            0,
        ),
    ] {
        ensure!(
            found == expected,
            "{what}: {expected} expected, {found} told: {text}{said}"
        );
    }
    Ok(Outcome::Passed)
}

/// Where kubelets look for profiles.
const SECCOMP: &str = "/var/lib/kubelet/seccomp";
const PROFILE: &str = "orb8-e2e-profiled.json";

/// A pod is watched over its life, and made again within the profile: it works as before, and can do nothing else.
pub(crate) fn seccomp(cluster: &Cluster) -> Result<Outcome> {
    let here = &cluster.nodes[0];
    let file = std::env::temp_dir().join(format!("orb8-e2e-{}.json", std::process::id()));
    let path = file.to_str().context("a path that is no text")?;
    let pod = format!("{NAMESPACE}/profiled");
    let watched = cluster.orb8_start(&[
        "profile",
        "seccomp",
        "--pod",
        &pod,
        "--container",
        "main",
        "--duration",
        "5m",
        "--output",
        path,
    ])?;
    // It begins.
    thread::sleep(Duration::from_secs(3));
    cluster.apply(&manifests::serving_pod("profiled", here, cluster.image(), None))?;
    work(cluster, "59")?;
    // Without a profile it may ask for its priority.
    let made = call(cluster, "client", "main", &["getpriority=3"])?;
    ensure!(made["getpriority"].errno == 0, "{made:?}");
    cluster.delete_pod("profiled")?;
    thread::sleep(Duration::from_secs(3));
    watched.interrupt()?;
    let (_, said) = watched.output()?;
    let profile = fs::read(&file)?;
    let _ = fs::remove_file(&file);
    let parsed: Value = serde_json::from_slice(&profile)?;
    let names = parsed["syscalls"][0]["names"].to_string();
    ensure!(
        parsed["defaultAction"] == "SCMP_ACT_ERRNO"
            && names.contains("\"accept4\"")
            && !names.contains("getpriority"),
        "the profile is {parsed}"
    );
    // How long calls took is no matter here.
    let lost = ["syscall/callers", "syscall/rows", "syscall/history"];
    ensure!(!lost.iter().any(|stage| said.contains(stage)), "{said}");

    // As the node's administrator would.
    cluster.apply(&manifests::pod_with_directory(
        "profiles",
        here,
        cluster.image(),
        SECCOMP,
        "/profiles",
    ))?;
    cluster.wait_ready("profiles")?;
    let stored = format!("/profiles/{PROFILE}");
    let store = [
        "-n",
        NAMESPACE,
        "exec",
        "-i",
        "profiles",
        "--",
        "/orb8-traffic",
        "store",
        &stored,
    ];
    cluster.kubectl_with(&store, &profile)?;
    let confined = within_profile(cluster, here);
    // The pod needs it no more, and whoever looks at a failure has it in the message.
    let _ = cluster.delete_pod("profiled");
    cluster.exec("profiles", &["remove", &stored])?;
    cluster.delete_pod("profiles")?;
    confined.with_context(|| format!("in the profile {parsed}"))?;
    Ok(Outcome::Passed)
}

/// What the pod is for.
fn work(cluster: &Cluster, count: &str) -> Result<()> {
    cluster.wait_ready("profiled")?;
    let address = format!("{}:7000", cluster.ip("profiled")?);
    exchange(cluster, "profiled", &address, V4, count, "333")?;
    let made = cluster.send("client", &["tcp", &address, "100000"])?;
    ensure!(made.received == 100_000, "{made:?}");
    // A process beside it.
    call(cluster, "profiled", "main", &["getppid=4", "fsync=1"]).map(drop)
}

fn within_profile(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.apply(&manifests::serving_pod(
        "profiled",
        node,
        cluster.image(),
        Some(PROFILE),
    ))?;
    work(cluster, "61")?;
    let made = call(
        cluster,
        "profiled",
        "main",
        &["getppid=4", "getpriority=3", "getsid=2"],
    )?;
    ensure!(
        made["getppid"].errno == 0
            && made["getpriority"].errno == libc::EPERM
            && made["getsid"].errno == libc::EPERM,
        "getppid() was seen, getpriority() and getsid() were not: {made:?}"
    );
    // Calls that the filter refused were not entered: none is counted.
    thread::sleep(Duration::from_secs(3));
    let rows = cluster.syscalls(&[
        "-n",
        NAMESPACE,
        "--pod",
        "orb8-e2e/profiled",
        "--syscall",
        "getpriority,getsid,getppid",
    ])?;
    ensure!(
        rows.iter().all(|row| row["syscall"] == "getppid") && !rows.is_empty(),
        "calls that were refused are counted: {rows:?}"
    );
    let rows = cluster.syscalls(&[
        "-n",
        NAMESPACE,
        "--pod",
        "orb8-e2e/profiled",
        "--syscall",
        "accept4",
    ])?;
    ensure!(!rows.is_empty(), "the pod has no calls");
    Ok(())
}

const DAEMON_SET: &str = "daemonset/orb8-agent";
const WARM_UP: &str = "ORB8_SYSCALL_WARMUP";

/// With a short warm-up, which is a setting: a planted call is new, and those that the pod made before are not.
pub(crate) fn new(cluster: &Cluster) -> Result<Outcome> {
    let before = cluster.kubectl(&[
        "-n",
        "orb8",
        "get",
        DAEMON_SET,
        "-o",
        "jsonpath={.spec.template.spec.containers[0].env[?(@.name==\"ORB8_SYSCALL_WARMUP\")].value}",
    ])?;
    set_agents(cluster, &format!("{WARM_UP}=15s"))?;
    let planted = plant(cluster);
    let old = if before.is_empty() {
        format!("{WARM_UP}-")
    } else {
        format!("{WARM_UP}={before}")
    };
    set_agents(cluster, &old)?;
    planted?;
    Ok(Outcome::Passed)
}

fn set_agents(cluster: &Cluster, setting: &str) -> Result<()> {
    cluster.kubectl(&["-n", "orb8", "set", "env", DAEMON_SET, setting])?;
    cluster
        .kubectl(&["-n", "orb8", "rollout", "status", DAEMON_SET, "--timeout=90s"])
        .map(drop)
}

fn plant(cluster: &Cluster) -> Result<()> {
    let news = |pod: &str| -> Result<Vec<Value>> {
        let rows = cluster.syscalls(&[
            "--new",
            "-n",
            NAMESPACE,
            "--pod",
            &format!("{NAMESPACE}/{pod}"),
            "--by",
            "pod,syscall",
        ])?;
        Ok(rows.into_iter().filter(|row| row["pod"] == pod).collect())
    };
    // What starts and ends a process, first; then more than two windows of 10 s.
    call(cluster, "guaranteed", "main", &["getppid=1"])?;
    call(cluster, "guaranteed", "main", &["clock_nanosleep=1500"])?;
    let early = news("guaranteed")?;
    ensure!(
        !early.iter().any(|row| row["syscall"] == "getsid"),
        "new before it was called: {early:?}"
    );
    call(cluster, "guaranteed", "main", &["getsid=3", "clock_nanosleep=10"])?;
    cluster.within(SOON, || {
        let rows = news("guaranteed")?;
        let row = rows
            .iter()
            .find(|row| row["syscall"] == "getsid")
            .with_context(|| format!("the planted call is not new: {rows:?}"))?;
        let watched = row["change"]["watched_seconds"].as_f64().unwrap_or_default();
        ensure!(row["change"]["kind"] == "new" && watched >= 15.0, "{row}");
        ensure!(
            rows.iter()
                .all(|row| row["syscall"] != "clock_nanosleep" && row["syscall"] != "getppid"),
            "calls that were made all the time are new: {rows:?}"
        );
        Ok(())
    })?;
    // A pod that was not watched for so long has no verdicts.
    call(cluster, "burstable", "main", &["getsid=3"])?;
    thread::sleep(Duration::from_secs(3));
    let rows = news("burstable")?;
    ensure!(
        rows.is_empty(),
        "verdicts about a pod that is hardly known: {rows:?}"
    );
    Ok(())
}
