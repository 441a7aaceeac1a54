//! The command as users run it, against an agent that speaks the real protocol.

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs, reason = "a test")]

#[path = "support/fake_agent.rs"]
mod fake_agent;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use fake_agent::{Story, serve, serve_at};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orb8_proto::v1::{
    FlowFilter, FlowSort, GpuFilter, ListPodsRequest, SyscallFilter, SyscallGroup, SyscallMode, SyscallQuery,
    SyscallSort,
};

fn orb8(agent: &str, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orb8"));
    command
        .args(line.split(' ').filter(|word| !word.is_empty()))
        .env("ORB8_AGENT", agent)
        .env("LC_ALL", "C.UTF-8")
        // No cluster of this machine's user.
        .env("KUBECONFIG", "/nonexistent/kubeconfig")
        .env("ORB8_CONFIG", "/nonexistent/config.toml")
        .env_remove("ORB8_SERVER")
        .env_remove("NO_COLOR")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn run(agent: &str, line: &str) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = orb8(agent, line).output().unwrap();
    (
        status.code(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

fn spawn(agent: &str, line: &str) -> Child {
    orb8(agent, line)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ends_within(child: &mut Child, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("still running after {limit:?}");
}

/// Help texts, tables, JSON, CSV, errors and exit codes, word for word. `TRYCMD=overwrite` writes them anew.
#[test]
fn golden() {
    let (clean, _) = serve(Story::Clean);
    let (lossy, _) = serve(Story::Lossy);
    let (node, _) = serve(Story::ClusterOne);
    for (agent, cases) in [
        (clean, "tests/cmd/*.trycmd"),
        (lossy, "tests/cmd/lossy/*.trycmd"),
        (node, "tests/cmd/node/*.trycmd"),
    ] {
        let tests = trycmd::TestCases::new();
        tests
            .env("ORB8_AGENT", agent.to_string())
            .env("LC_ALL", "C.UTF-8")
            .env("COLUMNS", "100")
            .insert_var("[AGENT]", agent.to_string())
            .unwrap()
            .case(cases);
        tests.run();
    }
    let (one, _) = serve(Story::ClusterOne);
    let (two, _) = serve(Story::ClusterTwo);
    let tests = trycmd::TestCases::new();
    tests
        .env("ORB8_AGENT", format!("{one},{two}"))
        .env("LC_ALL", "C.UTF-8")
        .env("COLUMNS", "100")
        .case("tests/cmd/cluster/*.trycmd");
    tests.run();
    let (server, _) = serve(Story::Server);
    let tests = trycmd::TestCases::new();
    tests
        .env("ORB8_SERVER", server.to_string())
        .env("LC_ALL", "C.UTF-8")
        .env("COLUMNS", "100")
        .insert_var("[SERVER]", server.to_string())
        .unwrap()
        .case("tests/cmd/server/*.trycmd");
    tests.run();
}

/// What one of several agents cannot tell is said, and the rest is shown all the same.
#[test]
fn an_agent_that_is_away_does_not_silence_the_others() {
    let (one, _) = serve(Story::ClusterOne);
    let (broken, _) = serve(Story::Broken);
    let away = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for line in [
        "flows",
        "flows --edges",
        "flows -o json",
        "pods",
        "status",
        "trace network --count 3",
        "syscalls",
        "syscalls --by syscall -o json",
        "syscall-mode",
        "trace syscalls --count 3",
    ] {
        let (code, stdout, stderr) = run(&format!("{one},{away}"), &format!("{line} --strict"));
        assert_eq!(code, Some(3), "{line}: {stderr}");
        let told = format!("{stdout}{stderr}");
        assert!(
            told.contains(&format!("no answer from {away}: Connection refused")),
            "{line}: {told}"
        );
        assert!(!stdout.is_empty());
        assert_eq!(run(&format!("{one},{away}"), line).0, Some(0), "{line}");
    }
    let (code, stdout, stderr) = run(&format!("{one},{broken}"), "flows -o json --strict");
    assert_eq!((code, stdout.lines().count()), (Some(3), 7 + 2), "{stderr}");
    assert!(
        stderr.contains("broke off after 2 flows") && stderr.contains("shutting down"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&format!("{away},{away}"), "status");
    assert_eq!(code, Some(2), "{stderr}");
    let other = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (code, _, stderr) = run(&format!("{away},{other}"), "status");
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains(&other.to_string()) && stderr.contains(&away.to_string()),
        "{stderr}"
    );
}

/// Each agent's clock is its own: what one has told is not asked of it again, whatever the others say.
#[test]
fn watching_several_agents_asks_each_from_where_it_ended() {
    let (one, asked_one) = serve(Story::Ticking);
    let (two, asked_two) = serve(Story::Ticking);
    let (code, stdout, _) = run(
        &format!("{one},{two}"),
        "flows -o json --watch --interval 100ms --count 3 --protocol udp",
    );
    assert_eq!((code, stdout.lines().count()), (Some(0), 6));
    for asked in [asked_one, asked_two] {
        let queries = asked.flows.lock().unwrap().clone();
        let since: Vec<i64> = queries
            .iter()
            .skip(1)
            .map(|query| query.since.unwrap().seconds)
            .collect();
        assert_eq!(since, [since[0], since[0] + 1, since[0] + 2]);
    }
}

#[test]
fn limits_are_of_all_agents_and_edges_are_joined_before_them() {
    let (one, asked) = serve(Story::ClusterOne);
    let (two, _) = serve(Story::ClusterTwo);
    let both = format!("{one},{two}");
    let (code, stdout, _) = run(&both, "flows -o json --limit 3");
    assert_eq!((code, stdout.lines().count()), (Some(0), 3));
    let bytes: Vec<u64> = stdout
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["bytes"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(bytes, [1_200_000, 1_197_000, 10_000]);
    let (code, stdout, _) = run(&both, "flows --edges -o json --limit 1");
    assert_eq!((code, stdout.lines().count()), (Some(0), 1));
    assert_eq!(asked.flows.lock().unwrap().last().unwrap().limit, 0);
    let edge: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (edge["lost_packets"].as_i64(), edge["settled"].as_bool()),
        (Some(3), Some(true))
    );
    assert_eq!(edge["sent"]["node"], "n1");
    assert_eq!(edge["received"]["node"], "n2");
    let (code, _, stderr) = run(&both, "flows --edges --watch -o json");
    assert_eq!(code, Some(2));
    assert!(stderr.contains("tables on a terminal"), "{stderr}");
}

#[test]
fn pods_are_asked_with_these_conditions_and_gaps_are_an_exit_code() {
    let (two, asked) = serve(Story::ClusterTwo);
    let two = two.to_string();
    let line = "pods -n payments,shop --pod app=web,tier!=db --pod a,b --workload Deployment/x";
    assert_eq!(run(&two, line).0, Some(0));
    assert_eq!(
        asked.pods.lock().unwrap().pop().unwrap(),
        ListPodsRequest {
            namespaces: vec!["payments".into(), "shop".into()],
            pods: vec!["app=web,tier!=db".into(), "a".into(), "b".into()],
            workloads: vec!["Deployment/x".into()],
            ..ListPodsRequest::default()
        }
    );
    assert_eq!(run(&two, "pods --strict").0, Some(3));
    let (one, _) = serve(Story::ClusterOne);
    assert_eq!(run(&one.to_string(), "pods --strict").0, Some(0));
}

#[test]
fn filters_run_in_the_agent() {
    let (agent, asked) = serve(Story::Clean);
    let agent = agent.to_string();
    let filters = "--owner nginx -n a --pod p --workload Deployment/cart --service shop/db --peer external --ip 10.0.0.0/8 \
         --port 443 --protocol tcp --direction in";
    let (code, ..) = run(&agent, &format!("flows -o json --limit 3 --sort rtt {filters}"));
    assert_eq!(code, Some(0));
    let expected = FlowFilter {
        namespaces: vec!["a".into()],
        pods: vec!["p".into()],
        owners: vec!["nginx".into()],
        addresses: vec!["10.0.0.0/8".into()],
        ports: vec![443],
        protocols: vec![6],
        direction: 1,
        workloads: vec!["Deployment/cart".into()],
        services: vec!["shop/db".into()],
        peers: vec!["external".into()],
    };
    let query = asked.flows.lock().unwrap().pop().unwrap();
    assert_eq!(
        (query.filter.as_ref(), query.limit, query.sort()),
        (Some(&expected), 3, FlowSort::Rtt)
    );
    let (code, ..) = run(&agent, &format!("trace network --count 1 {filters}"));
    assert_eq!(code, Some(0));
    assert_eq!(
        asked.events.lock().unwrap().pop().unwrap().network,
        Some(expected)
    );
}

#[test]
fn watch_prints_each_interval_once() {
    let (agent, asked) = serve(Story::Ticking);
    let (code, stdout, _) = run(
        &agent.to_string(),
        "flows -o json --watch --interval 100ms --count 3 --protocol udp",
    );
    assert_eq!(
        (code, stdout.lines().count()),
        (Some(0), 3),
        "one UDP flow an interval"
    );
    let queries = asked.flows.lock().unwrap().clone();
    let since: Vec<i64> = queries
        .iter()
        .skip(1)
        .map(|query| query.since.unwrap().seconds)
        .collect();
    assert_eq!(
        since,
        [since[0], since[0] + 1, since[0] + 2],
        "each begins where the one before ended"
    );
    let (code, stdout, _) = run(&agent.to_string(), "flows --watch --interval 100ms --count 2");
    assert_eq!(code, Some(0));
    assert_eq!(
        stdout
            .lines()
            .filter(|line| line.starts_with("--- 2026-01-02 03:04:"))
            .count(),
        2,
        "{stdout}"
    );
    assert!(!stdout.contains('\x1b'));
}

#[test]
fn csv_has_one_header_however_often_it_is_refreshed() {
    let (agent, _) = serve(Story::Ticking);
    let (_, stdout, _) = run(
        &agent.to_string(),
        "flows -o csv --watch --interval 100ms --count 2 --protocol udp",
    );
    assert_eq!(stdout.lines().count(), 3);
    let mut reader = csv::Reader::from_reader(stdout.as_bytes());
    assert_eq!(
        reader
            .records()
            .filter(|record| &record.as_ref().unwrap()[3] == "UDP")
            .count(),
        2
    );
}

#[test]
fn losses_are_told_and_strict_makes_them_an_exit_code() {
    let (clean, _) = serve(Story::Clean);
    let (lossy, _) = serve(Story::Lossy);
    let (clean, lossy) = (clean.to_string(), lossy.to_string());
    for line in [
        "flows --strict",
        "flows -o json --strict",
        "status --strict",
        "trace network --count 5 --strict",
        "syscalls --strict",
        "syscalls -o csv --strict",
        "trace syscalls --count 5 --strict",
        "gpu --strict",
        "gpu -o json --strict",
    ] {
        assert_eq!(run(&clean, line).0, Some(0), "{line}");
        let (code, stdout, stderr) = run(&lossy, line);
        assert_eq!(code, Some(3), "{line}");
        assert!(format!("{stdout}{stderr}").contains("lost"), "{line}");
    }
    let (code, stdout, stderr) = run(&lossy, "flows -o json");
    assert_eq!(code, Some(0));
    assert!(
        stdout
            .lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
    );
    assert!(
        stderr.contains("network/flow_map lost 77 of 27437 packets"),
        "{stderr}"
    );
}

#[test]
fn an_answer_that_breaks_off_is_a_failure() {
    let (agent, _) = serve(Story::Broken);
    let (code, _, stderr) = run(&agent.to_string(), "flows");
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("went away before its answer was complete (shutting down)"),
        "{stderr}"
    );
}

#[test]
fn nobody_at_the_address_says_what_to_do() {
    // Bound and closed again: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (code, _, stderr) = run(&free.to_string(), "status");
    assert_eq!(code, Some(1));
    for expected in [
        &*free.to_string(),
        "Connection refused",
        "orb8-agent",
        "--standalone",
    ] {
        assert!(stderr.contains(expected), "{expected} in {stderr}");
    }
}

#[test]
fn closed_pipes_are_no_failure() {
    let (agent, _) = serve(Story::Live);
    let agent = agent.to_string();
    for line in [
        "flows -o json",
        "flows -o json --watch --interval 100ms",
        "trace network",
        "trace network -o json",
        "syscalls -o json --watch --interval 100ms",
        "trace syscalls",
        "trace gpu",
        "gpu -o json --watch --interval 100ms",
        "top --interval 100ms",
        "top --interval 100ms --pane syscalls",
        "top --interval 100ms --pane gpu",
    ] {
        let mut child = spawn(&agent, line);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        drop(stdout);
        let code = ends_within(&mut child, Duration::from_secs(5));

        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(code, Some(0), "{line}: {stderr}");
        assert!(
            !stderr.contains("error") && !stderr.contains("panic"),
            "{line}: {stderr}"
        );
    }
}

#[test]
fn trace_ends_with_its_pipe_even_while_nothing_happens() {
    let (agent, _) = serve(Story::Clean);
    let mut child = spawn(&agent.to_string(), "trace network");
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..5 {
        stdout.read_line(&mut String::new()).unwrap();
    }
    drop(stdout);
    assert_eq!(ends_within(&mut child, Duration::from_secs(5)), Some(0));
}

#[test]
fn signals_end_what_runs_on_with_success() {
    let (agent, _) = serve(Story::Live);
    let agent = agent.to_string();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        for line in [
            "trace network",
            "flows --watch --interval 100ms",
            "syscalls --watch --interval 100ms",
            "trace syscalls",
            "trace gpu",
            "gpu --watch --interval 100ms",
            "top --interval 100ms",
        ] {
            let mut child = spawn(&agent, line);
            let mut stdout = BufReader::new(child.stdout.take().unwrap());
            stdout.read_line(&mut String::new()).unwrap();
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
            // Nobody reads on: the pipe may be full, and the signal must be heard all the same.
            assert_eq!(
                ends_within(&mut child, Duration::from_secs(5)),
                Some(0),
                "{signal} {line}"
            );
        }
    }
}

#[test]
fn a_duration_ends_a_trace_and_a_watch() {
    let (agent, _) = serve(Story::Live);
    let agent = agent.to_string();
    for line in [
        "trace network --duration 300ms",
        "flows --watch --interval 100ms --duration 300ms",
    ] {
        let start = Instant::now();
        assert_eq!(run(&agent, line).0, Some(0), "{line}");
        assert!(start.elapsed() >= Duration::from_millis(300), "{line}");
    }
    let (code, stdout, stderr) = run(&agent, "flows --duration 200ms");
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("nginx.service") && stderr.contains("observing for 0.2 s"),
        "{stderr}"
    );
}

#[test]
fn an_observation_that_is_cut_short_is_shown() {
    let (agent, _) = serve(Story::Live);
    let mut child = spawn(&agent.to_string(), "flows --duration 1m");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("observing for 1 min"), "{line}");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(ends_within(&mut child, Duration::from_secs(5)), Some(0));
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert!(stdout.contains("nginx.service"), "{stdout}");
}

#[test]
fn without_root_standalone_says_what_is_needed() {
    let mut command = orb8("", "--standalone flows");
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for expected in ["CAP_BPF+CAP_PERFMON+CAP_NET_ADMIN", "sudo orb8 flows", "--agent"] {
        assert!(stderr.contains(expected), "{expected} in {stderr}");
    }
}

/// What is found depends on the machine; that verdict, findings and exit code agree does not.
#[test]
fn doctor_s_exit_code_is_its_verdict() {
    let (code, stdout, stderr) = run("", "doctor -o json");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let fatal = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .any(|check| check["verdict"] == "fatal");
    assert_eq!(report["can_run"].as_bool(), Some(!fatal));
    assert_eq!(code, Some(i32::from(fatal)), "{stderr}");
    let (code, stdout, _) = run("", "doctor");
    assert_eq!(code, Some(i32::from(fatal)));
    assert_eq!(stdout.contains("can't run here"), fatal, "{stdout}");
}

/// Under script(1), stdout is a terminal.
#[test]
fn colours_only_on_a_terminal_and_without_no_color() {
    let (agent, _) = serve(Story::Lossy);
    let on_terminal = |no_color: Option<&str>| {
        let mut command = Command::new("script");
        command.args(["-qec", concat!(env!("CARGO_BIN_EXE_orb8"), " flows"), "/dev/null"]);
        command
            .env("ORB8_AGENT", agent.to_string())
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm");
        match no_color {
            Some(value) => command.env("NO_COLOR", value),
            None => command.env_remove("NO_COLOR"),
        };
        match command.stdin(Stdio::null()).output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => panic!("script(1), of util-linux, is needed: {error}"),
        }
    };
    assert!(on_terminal(None).contains("\x1b[31m! network/flow_map lost"));
    let plain = on_terminal(Some("1"));
    assert!(
        plain.contains("! network/flow_map lost") && !plain.contains('\x1b'),
        "{plain:?}"
    );
    // A process that is called like an escape sequence changes no colour.
    assert!(plain.contains("pi?[31mng??"));
}

#[test]
fn completions_and_man_pages_are_complete() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, stdout, _) = run("", &format!("completions {shell}"));
        assert!(code == Some(0) && stdout.contains("strict"), "{shell}");
    }
    let dir = std::env::temp_dir().join(format!("orb8-man-{}", std::process::id()));
    assert_eq!(run("", &format!("man --dir {}", dir.display())).0, Some(0));
    for page in [
        "orb8.1",
        "orb8-flows.1",
        "orb8-trace-network.1",
        "orb8-syscalls.1",
        "orb8-syscall-mode.1",
        "orb8-trace-syscalls.1",
        "orb8-trace-gpu.1",
        "orb8-gpu.1",
        "orb8-gpu-idle.1",
        "orb8-gpu-cuda.1",
        "orb8-profile-seccomp.1",
        "orb8-top.1",
        "orb8-doctor.1",
    ] {
        assert!(
            std::fs::read_to_string(dir.join(page)).unwrap().contains(".TH"),
            "{page}"
        );
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// The agent of this machine is found by itself. Only where nobody has the port already.
#[test]
fn a_local_agent_is_found() {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 9090));
    if std::net::TcpListener::bind(address).is_err() {
        eprintln!("skipped: port 9090 is taken");
        return;
    }
    serve_at(Story::Clean, address);
    let (code, stdout, stderr) = run("", "status");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("6.18.0") && stderr.contains("using the agent at 127.0.0.1:9090"),
        "{stderr}"
    );
}

#[test]
fn calls_are_asked_with_these_conditions() {
    let (agent, asked) = serve(Story::Clean);
    let agent = agent.to_string();
    let line = "syscalls -n a --pod p --workload Deployment/cart --container c --owner nginx --syscall i386:openat,7 \
                --category file --errno ENOENT --by syscall,node --sort time --limit 3 -o json";
    assert_eq!(run(&agent, line).0, Some(0));
    assert_eq!(
        asked.syscalls.lock().unwrap().pop().unwrap(),
        SyscallQuery {
            filter: Some(SyscallFilter {
                namespaces: vec!["a".into()],
                pods: vec!["p".into()],
                workloads: vec!["Deployment/cart".into()],
                containers: vec!["c".into()],
                owners: vec!["nginx".into()],
                syscalls: vec!["i386:openat".into(), "7".into()],
                categories: vec!["file".into()],
                errnos: vec!["ENOENT".into()],
            }),
            by: vec![SyscallGroup::Syscall.into(), SyscallGroup::Node.into()],
            sort: SyscallSort::Time.into(),
            limit: 3,
            ..SyscallQuery::default()
        }
    );
    let line = "trace syscalls --syscall read --sample 7 --count 1 --owner nginx";
    assert_eq!(run(&agent, line).0, Some(0));
    let request = asked.events.lock().unwrap().pop().unwrap();
    assert_eq!((request.network, request.syscall_sampling), (None, 7));
    assert_eq!(
        request.syscall.unwrap(),
        SyscallFilter {
            owners: vec!["nginx".into()],
            syscalls: vec!["read".into()],
            ..SyscallFilter::default()
        }
    );
    // Flows only, as ever.
    run(&agent, "trace network --count 1");
    assert_eq!(asked.events.lock().unwrap().pop().unwrap().syscall, None);
}

#[test]
fn calls_of_several_agents_are_summed_before_the_limit() {
    let (one, asked) = serve(Story::ClusterOne);
    let (two, _) = serve(Story::ClusterTwo);
    let both = format!("{one},{two}");
    let (code, stdout, _) = run(&both, "syscalls --by workload --pod cart -o json --limit 1");
    assert_eq!((code, stdout.lines().count()), (Some(0), 1));
    let row: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((row["count"].as_u64(), row["node"].as_str()), (Some(1520), None));
    assert_eq!(asked.syscalls.lock().unwrap().last().unwrap().limit, 0);
    let (_, stdout, _) = run(&both, "syscalls --by workload,node --pod cart -o json");
    assert_eq!(stdout.lines().count(), 2);
    let (_, stdout, _) = run(&both, "syscalls --by pod -o json --limit 2");
    assert_eq!(stdout.lines().count(), 2);
    assert_eq!(asked.syscalls.lock().unwrap().last().unwrap().limit, 2);
}

#[test]
fn an_agent_that_does_not_switch_is_named() {
    let (one, asked) = serve(Story::ClusterOne);
    let (broken, _) = serve(Story::Broken);
    let (code, stdout, _) = run(&one.to_string(), "syscall-mode latency");
    assert_eq!(code, Some(0), "{stdout}");
    assert_eq!(*asked.modes.lock().unwrap(), [SyscallMode::Latency]);
    let (code, stdout, _) = run(&format!("{one},{broken}"), "syscall-mode counts");
    assert_eq!(code, Some(1));
    assert!(
        stdout.contains("n1    latency  counts")
            && stdout.contains(&format!("no answer from {broken}: loading syscall/sys_exit")),
        "{stdout}"
    );
    let (code, stdout, stderr) = run(&broken.to_string(), "syscall-mode off");
    assert_eq!((code, &*stdout), (Some(1), ""));
    assert!(stderr.contains("the kernel refuses it"), "{stderr}");
    // Bad usage shows before an agent is started, and none is started for this.
    let (code, _, stderr) = run("", "--standalone syscall-mode latency");
    assert_eq!(code, Some(2), "{stderr}");
}

#[test]
fn watching_calls_prints_each_interval_once() {
    let (agent, asked) = serve(Story::Ticking);
    let (code, stdout, _) = run(
        &agent.to_string(),
        "syscalls -o json --watch --interval 100ms --count 3 --syscall futex",
    );
    assert_eq!((code, stdout.lines().count()), (Some(0), 3));
    let queries = asked.syscalls.lock().unwrap().clone();
    let since: Vec<i64> = queries
        .iter()
        .skip(1)
        .map(|query| query.since.unwrap().seconds)
        .collect();
    assert_eq!(since, [since[0], since[0] + 1, since[0] + 2]);
}

/// ^C ends the watch, not the profile.
#[test]
fn a_profile_that_is_cut_short_holds_what_was_seen() {
    let (agent, _) = serve(Story::Live);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nginx.json");
    let line = format!(
        "profile seccomp --owner nginx.service --duration 1m --output {}",
        file.display()
    );
    let mut child = spawn(&agent.to_string(), &line);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("watching for 1 min"), "{line}");
    assert!(!file.exists(), "it appears when it is complete");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(ends_within(&mut child, Duration::from_secs(5)), Some(0));
    stderr.read_to_string(&mut line).unwrap();
    for expected in [
        "4 kinds of",
        "by 1 container",
        "no call was lost",
        "did not see its start",
    ] {
        assert!(line.contains(expected), "{expected} in {line}");
    }
    let profile: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let names = profile["syscalls"][0]["names"].as_array().unwrap();
    assert!(names.contains(&"epoll_wait".into()) && names.contains(&"capset".into()));
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing else is left"
    );
}

#[test]
fn a_profile_is_never_made_of_nothing_and_says_what_it_misses() {
    let (clean, _) = serve(Story::Clean);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.json");
    let (code, stdout, stderr) = run(
        &clean.to_string(),
        &format!("profile seccomp --owner nobody --output {}", file.display()),
    );
    assert_eq!((code, &*stdout, file.exists()), (Some(1), "", false), "{stderr}");
    assert!(stderr.contains("no profile is written"), "{stderr}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let (lossy, _) = serve(Story::Lossy);
    let line = "profile seccomp --owner nginx.service";
    assert_eq!(run(&clean.to_string(), &format!("{line} --strict")).0, Some(0));
    assert_eq!(run(&lossy.to_string(), line).0, Some(0));
    let (code, _, stderr) = run(&lossy.to_string(), &format!("{line} --strict"));
    assert_eq!(code, Some(3));
    assert!(stderr.contains("lost 77 of 100000 calls"), "{stderr}");
}

#[test]
fn top_s_panes_ask_only_for_what_they_show() {
    let (agent, asked) = serve(Story::Ticking);
    let agent = agent.to_string();
    let line = "top --sort time --interval 100ms --count 2 --owner nginx.service";
    let (code, stdout, stderr) = run(&agent, line);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        stdout.lines().filter(|line| line.starts_with("--- 2026")).count(),
        2
    );
    let row = stdout
        .lines()
        .find(|line| line.starts_with("nginx.service"))
        .unwrap();
    assert!(row.contains("54k") && row.contains("epoll_wait"), "{row}");
    assert!(asked.flows.lock().unwrap().is_empty());
    let query = asked.syscalls.lock().unwrap().pop().unwrap();
    assert_eq!(
        query.by,
        [i32::from(SyscallGroup::Pod), i32::from(SyscallGroup::Syscall)]
    );
    assert_eq!(query.filter.unwrap().owners, ["nginx.service"]);
    asked.syscalls.lock().unwrap().clear();
    assert_eq!(run(&agent, "top --interval 100ms --count 1").0, Some(0));
    assert!(asked.syscalls.lock().unwrap().is_empty());
    let (code, _, stderr) = run(&agent, "top --pane syscalls --port 53");
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--port is about flows"), "{stderr}");
}

#[test]
fn gpus_are_asked_with_these_conditions() {
    let (agent, asked) = serve(Story::ClusterOne);
    let agent = agent.to_string();
    let filter = GpuFilter {
        namespaces: vec!["ml".into()],
        pods: vec!["train".into(), "app=web,tier!=db".into()],
        workloads: vec!["Job/train".into()],
        devices: vec!["0".into(), "GPU-5fd4".into()],
    };
    let owners = "-n ml --pod train --pod app=web,tier!=db --workload Job/train";
    let filters = format!("{owners} --device 0,GPU-5fd4");
    let since = |line: &str| {
        let (code, _, stderr) = run(&agent, &format!("{line} -o json {filters}"));
        assert_eq!(code, Some(0), "{line}: {stderr}");
        let query = asked.gpus.lock().unwrap().pop().unwrap();
        assert_eq!(query.filter.as_ref(), Some(&filter), "{line}");
        (query.since.is_some(), query.idle)
    };
    assert_eq!(since("gpu"), (false, false));
    assert_eq!(since("gpu --since 10m"), (true, false));
    assert_eq!(since("gpu idle"), (true, true));
    // Calls name no device: what would be ignored is refused, and not asked.
    assert_eq!(run(&agent, &format!("gpu cuda {filters}")).0, Some(2));
    assert!(asked.gpus.lock().unwrap().is_empty());
    assert_eq!(run(&agent, &format!("gpu cuda {owners} -o json")).0, Some(0));
    let query = asked.gpus.lock().unwrap().pop().unwrap();
    let of_calls = GpuFilter {
        devices: Vec::new(),
        ..filter.clone()
    };
    assert_eq!(
        (query.filter, query.since, query.idle),
        (Some(of_calls), None, false)
    );
    let line = format!("trace gpu --count 1 {filters}");
    assert_eq!(run(&agent, &line).0, Some(0));
    let request = asked.events.lock().unwrap().pop().unwrap();
    assert_eq!(
        (request.gpu, request.network, request.syscall),
        (Some(filter), None, None)
    );
}

/// What the device did is in one row, whoever held it: sums over rows have nothing twice.
#[test]
fn a_device_is_counted_once_in_each_form() {
    let (agent, _) = serve(Story::ClusterOne);
    let agent = agent.to_string();
    let (_, stdout, _) = run(&agent, "gpu -o csv");
    let mut reader = csv::Reader::from_reader(stdout.as_bytes());
    let header = reader.headers().unwrap().clone();
    let column = |name: &str| header.iter().position(|column| column == name).unwrap();
    let (row, uuid, instance, used, method) = (
        column("row"),
        column("uuid"),
        column("instance"),
        column("memory_used_bytes"),
        column("holder_method"),
    );
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let devices: Vec<_> = rows.iter().filter(|fields| &fields[row] == "device").collect();
    let mut keys: Vec<_> = devices
        .iter()
        .map(|fields| (&fields[uuid], &fields[instance]))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!((devices.len(), keys.len()), (11, 11));
    for holder in rows.iter().filter(|fields| &fields[row] == "holder") {
        assert!(
            holder[used].is_empty() && !holder[method].is_empty(),
            "{holder:?}"
        );
    }
    let (_, stdout, _) = run(&agent, "gpu -o json");
    let records: Vec<serde_json::Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.len(), 11);
    for holder in records
        .iter()
        .filter_map(|record| record["holders"].as_array())
        .flatten()
    {
        assert!(holder["method"].is_string(), "{holder}");
        if holder["method"] == "shared_estimate" {
            assert!(
                holder["utilization"].is_null() && holder["memory_bytes"].is_null(),
                "{holder}"
            );
        }
    }
}

#[test]
fn no_gpu_is_one_line_and_no_failure() {
    let (agent, _) = serve(Story::Clean);
    let agent = agent.to_string();
    for line in [
        "gpu",
        "gpu --strict",
        "gpu idle",
        "gpu -o wide --since 1h",
        "gpu -A --device 0",
    ] {
        let (code, stdout, stderr) = run(&agent, line);
        assert_eq!(
            (code, stdout.lines().count(), &*stderr),
            (Some(0), 1, ""),
            "{line}: {stdout}"
        );
        assert!(stdout.starts_with("no GPU here"), "{line}: {stdout}");
    }
    let (code, stdout, stderr) = run(&agent, "gpu -o json --watch --interval 100ms --count 3");
    assert_eq!(
        (code, &*stdout, stderr.lines().count()),
        (Some(0), "", 1),
        "{stderr}"
    );
    let (code, stdout, _) = run(&agent, "top --pane gpu --interval 100ms --count 1");
    assert_eq!(code, Some(0));
    assert!(stdout.contains("no GPU here"), "{stdout}");
}

#[test]
fn gpus_of_this_machine_are_looked_at_without_an_agent() {
    let exporter = orb8_fake_dcgm::Exporter::local(orb8_fake_dcgm::EXAMPLE).unwrap();
    let gpus = |url: &str, interval: &str, line: &str| {
        let output = orb8("127.0.0.1:1", line)
            .env_remove("ORB8_AGENT")
            .env("ORB8_GPU_DCGM_URL", url)
            .env("ORB8_GPU_NVML", "off")
            .env("ORB8_GPU_POD_RESOURCES", "/nonexistent.sock")
            .env("ORB8_GPU_INTERVAL", interval)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    // The exporter takes its time: so does the answer.
    exporter.fault(orb8_fake_dcgm::Fault::Slow(Duration::from_millis(700)));
    for line in [
        "gpu --standalone -o json",
        "gpu --standalone -o json --watch --interval 100ms --count 1",
    ] {
        let (code, stdout, stderr) = gpus(&exporter.url(), "5s", line);
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(stdout.lines().count(), 5, "{line}: {stdout}{stderr}");
        assert!(stdout.contains(r#""pod":"train-0""#), "{stdout}");
    }
    let (code, _, stderr) = gpus(&exporter.url(), "1m", "gpu --standalone");
    assert_eq!(code, Some(2), "{stderr}");
    assert!(
        stderr.contains("ORB8_GPU_INTERVAL") && stderr.contains("1s to 10s"),
        "{stderr}"
    );
}

#[test]
fn an_answer_about_gpus_that_breaks_off_is_a_failure() {
    let (agent, _) = serve(Story::Broken);
    let (code, _, stderr) = run(&agent.to_string(), "gpu");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("shutting down"), "{stderr}");
}

#[test]
fn top_shows_gpus_and_asks_for_nothing_else() {
    let (agent, asked) = serve(Story::Ticking);
    let agent = agent.to_string();
    let (code, stdout, stderr) = run(&agent, "top --sort use --interval 100ms --count 2 --namespace ml");
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        stdout.lines().filter(|line| line.starts_with("--- 2026")).count(),
        2,
        "{stdout}"
    );
    assert!(
        stdout.contains("ml/train-0") && stdout.contains("shared_estimate"),
        "{stdout}"
    );
    assert!(asked.flows.lock().unwrap().is_empty() && asked.syscalls.lock().unwrap().is_empty());
    let query = asked.gpus.lock().unwrap().pop().unwrap();
    assert_eq!(
        (query.since, query.filter.unwrap().namespaces),
        (None, vec!["ml".to_owned()])
    );
    for line in ["top --pane gpu --owner nginx", "top --pane gpu --port 53"] {
        let (code, _, stderr) = run(&agent, line);
        assert_eq!(code, Some(2));
        assert!(stderr.contains("is not about GPUs"), "{stderr}");
    }
}
