//! The agent and system calls: known calls of processes in cgroups of the test's own, against what the agent answers.
#![allow(missing_docs, reason = "tests")]
#![cfg(target_arch = "x86_64")]

#[allow(dead_code, reason = "other tests use the rest")]
mod support {
    pub(crate) mod agent;
    #[allow(dead_code, reason = "each test file uses a part")]
    pub(crate) mod cgroup;
    pub(crate) mod namespace;
}

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    ptr,
    sync::Arc,
    thread,
    time::Duration,
};

use nix::libc;
use orb8_proto::v1::{
    self, State, StreamEventsRequest, SyscallFilter, SyscallGroup, SyscallKind, SyscallMode, SyscallQuery,
    SyscallRow, SyscallSummary, query_syscalls_response::Part, stream_events_response::Event,
};
use support::{
    agent::{Agent, eventually},
    cgroup::{Cgroup, can_run},
    namespace::{self, Namespace},
};

/// A process's calls: none allocates or locks.
fn getppid(times: u32) {
    for _ in 0..times {
        // SAFETY: no arguments.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
}

/// Of the 32-bit table, in which `getppid` is 64.
fn getppid_i386(times: u32) {
    for _ in 0..times {
        // SAFETY: a call without arguments; it clobbers what the kernel's entry for 32-bit calls does.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("eax") 64 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
    }
}

fn open_nothing(times: u32) {
    for _ in 0..times {
        // SAFETY: a NUL-terminated path.
        unsafe {
            libc::syscall(
                libc::SYS_openat,
                libc::AT_FDCWD,
                c"/no/such/file".as_ptr(),
                libc::O_RDONLY,
            )
        };
    }
}

fn sleep_20_ms() {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    // SAFETY: a valid time, and no place for what is left of it.
    unsafe {
        libc::syscall(
            libc::SYS_nanosleep,
            &raw const time,
            ptr::null::<libc::timespec>(),
        )
    };
}

/// Asks which it is.
fn personality() {
    // SAFETY: an integer.
    unsafe { libc::syscall(libc::SYS_personality, 0xffff_ffff_u32) };
}

fn chroot_nowhere() {
    let path = c"/no/such/directory".as_ptr();
    // SAFETY: a NUL-terminated path.
    unsafe {
        // The programs read what is in memory; of a process that has just been forked, nothing is.
        ptr::read_volatile(path);
        libc::syscall(libc::SYS_chroot, path);
    }
}

fn path_of(cgroup: &str) -> String {
    format!("/orb8-test-{}-{cgroup}", std::process::id())
}

fn of(cgroup: &str) -> SyscallQuery {
    SyscallQuery {
        filter: Some(SyscallFilter {
            owners: vec![path_of(cgroup)],
            ..SyscallFilter::default()
        }),
        ..SyscallQuery::default()
    }
}

fn query(
    agent: &Agent<'_>,
    query: &SyscallQuery,
) -> Result<(Vec<SyscallRow>, SyscallSummary), tonic::Status> {
    // An answer may be up to 50 ms old.
    thread::sleep(Duration::from_millis(60));
    let query = query.clone();
    agent.ask(|mut client| async move {
        let mut parts = client.query_syscalls(query).await?.into_inner();
        let (mut rows, mut summary) = (Vec::new(), None);
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Batch(batch)) => rows.extend(batch.rows),
                Some(Part::Summary(last)) => summary = Some(last),
                None => {}
            }
        }
        Ok((rows, summary.expect("an answer without summary is not complete")))
    })
}

fn ask(agent: &Agent<'_>, of: &SyscallQuery) -> (Vec<SyscallRow>, SyscallSummary) {
    query(agent, of).unwrap_or_else(|error| panic!("{error}:\n{}", agent.log()))
}

/// Counts by ABI and name.
fn counts(rows: &[SyscallRow]) -> BTreeMap<(i32, &str), u64> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry((row.abi, row.syscall.as_str())).or_default() += row.count;
    }
    counts
}

fn set_mode(agent: &Agent<'_>, mode: i32) -> Result<v1::SetSyscallModeResponse, tonic::Status> {
    agent.ask(|mut client| async move {
        let request = v1::SetSyscallModeRequest {
            mode,
            ..v1::SetSyscallModeRequest::default()
        };
        Ok(client.set_syscall_mode(request).await?.into_inner())
    })
}

const X86_64: i32 = v1::SyscallAbi::X8664 as i32;
const I386: i32 = v1::SyscallAbi::I386 as i32;

fn can() -> bool {
    namespace::can_run() && can_run()
}

#[test]
fn known_calls_are_counted_exactly_under_their_owner() {
    if !can() {
        return;
    }
    let host = Namespace::new("calls");
    let agent = Agent::start(&host, &["--kubernetes", "off"]);
    let (a, b) = (Cgroup::new("exact"), Cgroup::new("another"));
    let known = || {
        getppid(1000);
        open_nothing(7);
        getppid_i386(5);
    };
    a.run(known);
    b.run(|| getppid(3));
    let (rows, summary) = ask(&agent, &of("exact"));
    let expected = [
        ((X86_64, "exit_group"), 1),
        ((X86_64, "getppid"), 1000),
        ((X86_64, "openat"), 7),
        ((I386, "getppid"), 5),
    ];
    assert_eq!(counts(&rows), expected.into());
    assert_eq!(rows[0].syscall, "getppid", "most first");
    assert_eq!(rows[0].owner.as_ref().unwrap().cgroup, path_of("exact"));
    assert_eq!(
        (rows[0].category.as_str(), rows[0].number),
        ("process", libc::SYS_getppid)
    );
    assert_eq!(summary.mode, i32::from(SyscallMode::Counts));
    assert_eq!((summary.matched_calls, summary.matched_rows), (1013, 4));
    // Nothing is known of how they ended, and nothing is said.
    assert!(
        rows.iter()
            .all(|row| row.returned == 0 && row.total_ns.is_none() && row.errors.is_empty())
    );

    // By call, over both.
    let mut by_call = of("exact");
    by_call.by = vec![SyscallGroup::Syscall.into()];
    by_call.filter.as_mut().unwrap().owners.push(path_of("another"));
    by_call.filter.as_mut().unwrap().syscalls = vec!["getppid".to_owned()];
    assert_eq!(
        counts(&ask(&agent, &by_call).0),
        [((X86_64, "getppid"), 1003), ((I386, "getppid"), 5)].into()
    );
    by_call.filter.as_mut().unwrap().syscalls = vec!["i386:getppid".to_owned()];
    assert_eq!(counts(&ask(&agent, &by_call).0), [((I386, "getppid"), 5)].into());

    // A cgroup that is gone keeps its name, and its counts.
    drop(b);
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(
        counts(&ask(&agent, &of("another")).0),
        [((X86_64, "getppid"), 3), ((X86_64, "exit_group"), 1)].into()
    );

    let status = agent.status();
    let program = status
        .programs
        .iter()
        .find(|it| it.name == "orb8_sys_enter")
        .unwrap();
    assert_eq!(
        (program.family.as_str(), program.state),
        ("syscall", i32::from(State::Active))
    );
    let callers = agent.ledger("callers");
    assert!(callers.seen >= 1016 && callers.lost == 0, "{callers:?}");
    assert!(
        status
            .limits
            .iter()
            .any(|limit| limit.name == "syscall_callers" && limit.used > 0)
    );

    let metrics = host.inside(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9091").unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let series = format!(
        "orb8_syscalls_total{{namespace=\"\",pod=\"\",workload=\"\",owner=\"{}\",syscall=\"openat\"}} 7",
        path_of("exact")
    );
    assert!(metrics.contains(&series), "no {series}");
    assert!(metrics.contains("orb8_syscall_mode{mode=\"counts\"} 1"));
    agent.stop();
}

#[test]
fn the_mode_is_switched_while_it_runs() {
    if !can() {
        return;
    }
    let host = Namespace::new("modes");
    let agent = Agent::start(&host, &["--kubernetes", "off", "--syscall-mode", "off"]);
    let cgroup = Cgroup::new("modes");
    let known = || {
        getppid(10);
        open_nothing(4);
        sleep_20_ms();
    };
    cgroup.run(known);
    let (rows, summary) = ask(&agent, &of("modes"));
    assert!(rows.is_empty());
    assert_eq!(summary.mode, i32::from(SyscallMode::Off));
    let programs = agent.status().programs;
    let of_calls: Vec<_> = programs
        .iter()
        .filter(|program| program.family == "syscall")
        .collect();
    assert!(!of_calls.is_empty());
    for program in of_calls {
        assert_eq!(program.state(), v1::State::Off, "{program:?}");
        assert_eq!(program.reason, "syscall mode is off");
    }
    for wrong in [0, 9, -1] {
        let refused = set_mode(&agent, wrong).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(
            refused.message().contains("1 off, 2 counts, 3 latency"),
            "{refused}"
        );
    }
    assert_eq!(ask(&agent, &of("modes")).1.mode, i32::from(SyscallMode::Off));

    let switched = set_mode(&agent, SyscallMode::Latency.into()).unwrap();
    assert_eq!((switched.before, switched.mode), (1, 3));
    cgroup.run(known);
    let (rows, summary) = ask(&agent, &of("modes"));
    let row = |name: &str| rows.iter().find(|row| row.syscall == name).unwrap();
    assert_eq!(row("getppid").count, 10);
    let open = row("openat");
    assert_eq!((open.count, open.returned, open.failed), (4, 4, 4));
    assert_eq!(open.errors, [("ENOENT".to_owned(), 4)].into());
    let sleep = row("nanosleep");
    assert_eq!((sleep.returned, sleep.failed), (1, 0));
    assert!(sleep.total_ns.unwrap() >= 20_000_000, "{sleep:?}");
    // 2^24 ns is below 20 ms: it is in a bucket beyond that.
    assert!(sleep.p50_ns.unwrap() >= 1 << 25, "{sleep:?}");
    assert_eq!(sleep.buckets.iter().map(|bucket| bucket.count).sum::<u64>(), 1);
    assert!(
        summary
            .measured
            .is_some_and(|measured| measured.seconds > 0 || measured.nanos > 0)
    );
    assert_eq!(summary.matched_errors, 4);

    // What the owner waits for.
    let mut by_pod = of("modes");
    by_pod.by = vec![SyscallGroup::Pod.into()];
    let (rows, _) = ask(&agent, &by_pod);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].waits[0].class, "sleep");
    assert!(rows[0].waits[0].total_ns >= 20_000_000);
    let mut failed = of("modes");
    failed.filter.as_mut().unwrap().errnos = vec!["ENOENT".to_owned()];
    assert_eq!(counts(&ask(&agent, &failed).0), [((X86_64, "openat"), 4)].into());

    let switched = set_mode(&agent, SyscallMode::Counts.into()).unwrap();
    assert_eq!((switched.before, switched.mode), (3, 2));
    cgroup.run(known);
    let (rows, _) = ask(&agent, &of("modes"));
    let open = rows.iter().find(|row| row.syscall == "openat").unwrap();
    assert_eq!((open.count, open.returned), (8, 4));
    set_mode(&agent, SyscallMode::Off.into()).unwrap();
    cgroup.run(known);
    set_mode(&agent, SyscallMode::Counts.into()).unwrap();
    cgroup.run(known);
    let (rows, _) = ask(&agent, &of("modes"));
    assert_eq!(counts(&rows)[&(X86_64, "getppid")], 30);
    for row in &agent.status().ledger {
        assert_eq!(row.seen, row.counted + row.filtered + row.lost, "{row:?}");
    }
    agent.stop();
}

#[test]
fn a_malformed_query_is_refused_and_says_what_is_allowed() {
    if !can() {
        return;
    }
    let host = Namespace::new("wrong");
    let agent = Agent::start(&host, &["--kubernetes", "off"]);
    let wrong = |set: fn(&mut SyscallQuery), what: &str| {
        let mut wrong = of("x");
        set(&mut wrong);
        let refused = query(&agent, &wrong).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(what), "{refused}");
    };
    wrong(
        |it| it.filter.as_mut().unwrap().syscalls = vec!["opennat".to_owned()],
        "did you mean `openat`?",
    );
    wrong(
        |it| it.filter.as_mut().unwrap().categories = vec!["disk".to_owned()],
        "file, network, memory",
    );
    wrong(
        |it| it.filter.as_mut().unwrap().errnos = vec!["ENOENTT".to_owned()],
        "did you mean `ENOENT`?",
    );
    wrong(
        |it| it.filter.as_mut().unwrap().pods = vec!["a=b=c".to_owned()],
        "label selector",
    );
    wrong(|it| it.by = vec![77], "grouping 77");
    wrong(|it| it.sort = 77, "sort order 77");
    wrong(|it| it.kind = 77, "kind 77");
    let stream = |request: StreamEventsRequest| {
        agent
            .ask(|mut client| async move { client.stream_events(request).await.map(drop) })
            .unwrap_err()
    };
    let refused = stream(StreamEventsRequest {
        syscall: Some(SyscallFilter {
            syscalls: vec!["read".to_owned()],
            ..SyscallFilter::default()
        }),
        ..StreamEventsRequest::default()
    });
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("syscall_sampling"), "{refused}");
    let refused = stream(StreamEventsRequest {
        syscall_sampling: 100,
        ..StreamEventsRequest::default()
    });
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    agent.stop();
}

/// Events that come while `calls` go on, until `enough`.
fn events(
    agent: &Agent<'_>,
    filter: SyscallFilter,
    sampling: u32,
    calls: impl FnOnce() + Send + 'static,
    enough: impl Fn(&[v1::SyscallEvent]) -> bool + Send,
) -> Vec<v1::SyscallEvent> {
    let events = agent.ask(|mut client| async move {
        let request = StreamEventsRequest {
            syscall: Some(filter),
            syscall_sampling: sampling,
            ..StreamEventsRequest::default()
        };
        let mut stream = client.stream_events(request).await?.into_inner();
        let calls = tokio::task::spawn_blocking(calls);
        let mut events = Vec::new();
        while !enough(&events) {
            match tokio::time::timeout(Duration::from_secs(20), stream.message()).await {
                Ok(Ok(Some(response))) => match response.event {
                    Some(Event::Syscall(event)) => events.push(event),
                    Some(Event::Loss(loss)) => assert_eq!((loss.ring, loss.stream), (0, 0)),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?} after {events:?}"),
            }
        }
        calls.await.unwrap();
        Ok(events)
    });
    events.unwrap_or_else(|error| panic!("{error}:\n{}", agent.log()))
}

#[test]
fn calls_that_matter_are_told_one_by_one() {
    if !can() {
        return;
    }
    let host = Namespace::new("told");
    let agent = Agent::start(&host, &["--kubernetes", "off"]);
    let cgroup = Arc::new(Cgroup::new("told"));
    let filter = || SyscallFilter {
        owners: vec![path_of("told")],
        ..SyscallFilter::default()
    };
    let of_test = cgroup.clone();
    let told = events(
        &agent,
        filter(),
        0,
        move || {
            of_test.run(|| {
                getppid(50);
                chroot_nowhere();
                personality();
            });
        },
        |events| events.len() >= 2,
    );
    let names: Vec<_> = told.iter().map(|event| event.syscall.as_str()).collect();
    assert_eq!(names, ["chroot", "personality"]);
    let chroot = &told[0];
    assert_eq!(chroot.owner.as_ref().unwrap().cgroup, path_of("told"));
    assert!(chroot.pid != 0 && chroot.pid == chroot.tid && !chroot.comm.is_empty());
    assert_eq!(
        (
            chroot.arguments[0].name.as_str(),
            chroot.arguments[0].value.as_str()
        ),
        ("path", "/no/such/directory")
    );
    assert_eq!(chroot.weight, 1);

    // Frequent ones are told every so many times, and say so.
    let sampled = SyscallFilter {
        syscalls: vec!["getppid".to_owned()],
        ..filter()
    };
    let of_test = cgroup.clone();
    let told = events(
        &agent,
        sampled,
        10,
        move || of_test.run(|| getppid(1000)),
        |events| events.len() >= 90,
    );
    assert!(
        told.iter()
            .all(|event| event.syscall == "getppid" && event.weight == 10)
    );
    drop(cgroup);
    agent.stop();
}

/// A workload that does something that it never did: found, told, and remembered over the agent's end.
#[test]
fn a_planted_call_is_new() {
    if !can() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().join("agent");
    let arguments = [
        "--kubernetes",
        "off",
        "--syscall-warmup",
        "1s",
        "--state-dir",
        state_dir.to_str().unwrap(),
    ];
    let host = Namespace::new("new");
    let agent = Agent::start(&host, &arguments);
    let cgroup = Arc::new(Cgroup::new("new"));
    let mut new = of("new");
    new.kind = SyscallKind::New.into();
    // Watched in windows of 10 s; until then it says for how long.
    cgroup.run(|| getppid(5));
    let (rows, summary) = ask(&agent, &new);
    assert!(rows.is_empty());
    assert!(
        summary.notes.iter().any(|note| note.contains(&path_of("new"))),
        "{:?}",
        summary.notes
    );
    eventually("the workload to be watched for long enough", || {
        cgroup.run(|| getppid(5));
        let (rows, summary) = ask(&agent, &new);
        assert!(rows.is_empty(), "{rows:?}");
        summary.notes.is_empty().then_some(())
    });
    let planted = cgroup.clone();
    let told = events(
        &agent,
        SyscallFilter {
            owners: vec![path_of("new")],
            ..SyscallFilter::default()
        },
        0,
        move || {
            planted.run(|| {
                getppid(5);
                personality();
            });
        },
        |events| events.len() >= 2,
    );
    let change = told
        .iter()
        .find_map(|event| Some((event, event.change.as_ref()?)));
    let (event, change) = change.unwrap();
    assert_eq!((event.syscall.as_str(), event.pid), ("personality", 0));
    assert_eq!(change.kind, i32::from(SyscallKind::New));
    let (rows, _) = ask(&agent, &new);
    assert_eq!(counts(&rows), [((X86_64, "personality"), 1)].into());
    let change = rows[0].change.as_ref().unwrap();
    assert!(
        change.explanation.contains("made personality once"),
        "{}",
        change.explanation
    );
    assert!(change.watched.unwrap().seconds >= 10);
    agent.stop();

    // The next agent knows all of this.
    let agent = Agent::start(&host, &arguments);
    cgroup.run(|| {
        getppid(5);
        personality();
        open_nothing(1);
    });
    let (rows, summary) = ask(&agent, &new);
    assert_eq!(counts(&rows), [((X86_64, "openat"), 1)].into());
    assert!(summary.notes.is_empty(), "{:?}", summary.notes);
    agent.stop();
    // A damaged file is no reason not to start.
    std::fs::write(state_dir.join("syscall-baseline.json"), "{\"format\":").unwrap();
    let agent = Agent::start(&host, &arguments);
    let log = agent.log();
    assert!(log.contains("what workloads call is learned anew"), "{log}");
    agent.stop();
}
