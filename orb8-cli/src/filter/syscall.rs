//! From flags to the protocol's words about system calls.

use std::time::SystemTime;

use orb8_proto::v1::{
    StreamEventsRequest, SyscallFilter, SyscallGroup, SyscallKind, SyscallMode, SyscallQuery, SyscallSort,
};

use super::{Scope, separated, span};
use crate::{
    args::{
        CallerArgs, FilterArgs, GroupArg, ModeArg, SeccompArgs, SyscallFilterArgs, SyscallSortArg,
        SyscallsArgs, TraceSyscallsArgs,
    },
    exit::Usage,
};

/// Categories of calls, as the protocol names them.
const CATEGORIES: [&str; 12] = [
    "file",
    "network",
    "memory",
    "process",
    "signal",
    "ipc",
    "time",
    "event",
    "credentials",
    "module",
    "system",
    "other",
];

/// Tables that a call's name may be of.
const ABIS: [&str; 5] = ["x86_64", "i386", "x32", "arm64", "arm"];

/// Of frequent calls that are asked for by name or category, every so many-th is told.
const SAMPLING: u32 = 100;

/// A call's name, also with its table, or its number. Which names there are, the agent knows.
pub(crate) fn call(text: &str) -> Result<String, String> {
    let expected = || {
        format!(
            "a call's name (openat), also with its table ({}:openat), or a number is needed",
            ABIS.join("|")
        )
    };
    let text = text.trim().to_ascii_lowercase();
    let name = match text.split_once(':') {
        Some((abi, name)) if ABIS.contains(&abi) => name,
        Some(_) => return Err(expected()),
        None => &text,
    };
    let valid =
        !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if valid { Ok(text) } else { Err(expected()) }
}

/// A category's name.
pub(crate) fn category(text: &str) -> Result<String, String> {
    let text = text.trim().to_ascii_lowercase();
    if CATEGORIES.contains(&text.as_str()) {
        Ok(text)
    } else {
        Err(format!("allowed are {}", CATEGORIES.join(", ")))
    }
}

/// An error's name or number. Which names there are, the agent knows.
pub(crate) fn errno(text: &str) -> Result<String, String> {
    let text = text.trim().to_ascii_uppercase();
    let number = text
        .parse::<u16>()
        .is_ok_and(|number| (1..4096).contains(&number));
    let name = text.len() > 1
        && text.starts_with('E')
        && text.len() <= 32
        && text.chars().all(|c| c.is_ascii_alphanumeric());
    if number || name {
        Ok(text)
    } else {
        Err("an error's name (ENOENT) or its number, 1 to 4095, is needed".to_owned())
    }
}

impl Scope {
    /// Of calls.
    pub(crate) fn of_callers(args: &CallerArgs, default: Option<&str>) -> Self {
        Self::new(&args.scope, &[&args.pod, &args.workload], default)
    }
}

/// The part of the filter's message that says who calls.
pub(crate) fn callers(args: &CallerArgs, scope: &Scope) -> SyscallFilter {
    SyscallFilter {
        namespaces: scope.namespaces.clone(),
        pods: separated(&args.pod),
        workloads: args.workload.clone(),
        containers: args.container.clone(),
        owners: args.owner.clone(),
        ..SyscallFilter::default()
    }
}

/// The filter's message.
pub(crate) fn filter(args: &SyscallFilterArgs, scope: &Scope) -> SyscallFilter {
    SyscallFilter {
        syscalls: args.syscall.clone(),
        categories: args.category.clone(),
        ..callers(&args.caller, scope)
    }
}

/// The protocol's word for what stays apart.
const fn group(by: GroupArg) -> SyscallGroup {
    match by {
        GroupArg::Pod => SyscallGroup::Pod,
        GroupArg::Container => SyscallGroup::Container,
        GroupArg::Syscall => SyscallGroup::Syscall,
        GroupArg::Workload => SyscallGroup::Workload,
        GroupArg::Category => SyscallGroup::Category,
        GroupArg::Node => SyscallGroup::Node,
    }
}

/// What stays apart in the answer: as typed, each once; else what the view is about.
pub(crate) fn groups(args: &SyscallsArgs) -> Vec<SyscallGroup> {
    let mut groups = Vec::new();
    for group in args.by.iter().copied().map(group) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    if !groups.is_empty() {
        groups
    } else if args.waits {
        vec![SyscallGroup::Pod]
    } else if args.new || args.anomalies {
        // Whose verdicts these are.
        vec![SyscallGroup::Workload, SyscallGroup::Syscall]
    } else {
        vec![SyscallGroup::Container, SyscallGroup::Syscall]
    }
}

/// The order of the rows: as typed; else what the view is about.
pub(crate) const fn sort_of(args: &SyscallsArgs) -> SyscallSortArg {
    match args.sort {
        Some(sort) => sort,
        None if args.waits => SyscallSortArg::Time,
        None => SyscallSortArg::Count,
    }
}

/// Whether the answer needs what is measured in latency mode only.
pub(crate) fn needs_latency(args: &SyscallsArgs) -> bool {
    args.errors
        || args.latency
        || args.waits
        || !args.errno.is_empty()
        || sort_of(args) != SyscallSortArg::Count
}

/// The query's message, with ages counted from `now`.
///
/// # Errors
/// If the span is empty, or the view cannot be had by what should stay apart.
pub(crate) fn query(
    args: &SyscallsArgs,
    scope: &Scope,
    limit: u32,
    now: SystemTime,
) -> Result<SyscallQuery, Usage> {
    let by = groups(args);
    if args.waits
        && by
            .iter()
            .any(|group| matches!(group, SyscallGroup::Syscall | SyscallGroup::Category))
    {
        return Err(Usage(
            "--waits sums over calls: --by syscall and --by category have no place in it (--latency tells the \
             time of each call)"
                .to_owned(),
        ));
    }
    if (args.new || args.anomalies) && !by.contains(&SyscallGroup::Syscall) {
        return Err(Usage(
            "changes are told call by call: --by needs syscall beside what else it names (--by pod,syscall)"
                .to_owned(),
        ));
    }
    let (since, until) = span(args.since.as_ref(), args.until.as_ref(), now)?;
    let sort = match sort_of(args) {
        SyscallSortArg::Count => SyscallSort::Count,
        SyscallSortArg::Errors => SyscallSort::Errors,
        SyscallSortArg::Time => SyscallSort::Time,
        SyscallSortArg::P99 => SyscallSort::P99,
    };
    let kind = match (args.new, args.anomalies) {
        (true, _) => SyscallKind::New,
        (false, true) => SyscallKind::Anomalies,
        (false, false) => SyscallKind::All,
    };
    Ok(SyscallQuery {
        filter: Some(SyscallFilter {
            errnos: args.errno.clone(),
            ..filter(&args.filter, scope)
        }),
        since,
        until,
        by: by.into_iter().map(i32::from).collect(),
        sort: sort.into(),
        limit,
        kind: kind.into(),
        ..SyscallQuery::default()
    })
}

/// The query of `top`: each owner's calls.
pub(crate) fn top_query(args: &FilterArgs, scope: &Scope) -> SyscallQuery {
    SyscallQuery {
        filter: Some(SyscallFilter {
            namespaces: scope.namespaces.clone(),
            pods: separated(&args.pod),
            workloads: args.workload.clone(),
            owners: args.owner.clone(),
            ..SyscallFilter::default()
        }),
        by: vec![SyscallGroup::Pod.into(), SyscallGroup::Syscall.into()],
        ..SyscallQuery::default()
    }
}

/// Options that are about flows only, of those that were given.
pub(crate) fn about_flows(args: &FilterArgs) -> Vec<&'static str> {
    [
        ("--service", !args.service.is_empty()),
        ("--peer", !args.peer.is_empty()),
        ("--ip", !args.ip.is_empty()),
        ("--port", !args.port.is_empty()),
        ("--protocol", !args.protocol.is_empty()),
        ("--direction", args.direction.is_some()),
    ]
    .into_iter()
    .filter_map(|(option, given)| given.then_some(option))
    .collect()
}

/// The request for events of calls.
pub(crate) fn events(args: &TraceSyscallsArgs, scope: &Scope) -> StreamEventsRequest {
    let sampling = match args.sample {
        Some(sample) => sample,
        None if args.filter.syscall.is_empty() && args.filter.category.is_empty() => 0,
        None => SAMPLING,
    };
    StreamEventsRequest {
        network: None,
        syscall: Some(filter(&args.filter, scope)),
        syscall_sampling: sampling,
        ..StreamEventsRequest::default()
    }
}

/// The query for all calls that a seccomp profile must allow.
///
/// # Errors
/// If the span is empty.
pub(crate) fn seccomp_query(
    args: &SeccompArgs,
    scope: &Scope,
    now: SystemTime,
) -> Result<SyscallQuery, Usage> {
    let (since, until) = span(args.since.as_ref(), None, now)?;
    let by = [
        SyscallGroup::Workload,
        SyscallGroup::Pod,
        SyscallGroup::Container,
        SyscallGroup::Syscall,
    ];
    Ok(SyscallQuery {
        filter: Some(callers(&args.caller, scope)),
        since,
        until,
        by: by.map(i32::from).to_vec(),
        ..SyscallQuery::default()
    })
}

/// The protocol's word for a mode.
pub(crate) const fn mode(mode: ModeArg) -> SyscallMode {
    match mode {
        ModeArg::Off => SyscallMode::Off,
        ModeArg::Counts => SyscallMode::Counts,
        ModeArg::Latency => SyscallMode::Latency,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;
    use proptest::prelude::*;
    use prost_types::Timestamp;

    use super::*;
    use crate::args::{Cli, Command, ProfileKind, TraceFamily};

    const NOW: Duration = Duration::from_secs(1000);

    fn asked(line: &str) -> Result<SyscallQuery, Usage> {
        let Command::Syscalls(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("the line is a syscalls command")
        };
        let scope = Scope::of_callers(&args.filter.caller, None);
        query(
            &args,
            &scope,
            args.limit.unwrap_or(50),
            SystemTime::UNIX_EPOCH + NOW,
        )
    }

    #[test]
    fn all_flags_make_exactly_this_query() {
        let line = "orb8 syscalls --owner nginx.service --namespace a,b --pod p,x/q --pod app=web,tier!=db \
                    --workload Deployment/cart --container server,4f1d --syscall openat,I386:Read,7 --category File,network \
                    --errno enoent,13 --by pod,syscall --by node,pod --sort p99 --limit 7 --errors \
                    --since 2m --until 1970-01-01T00:16:00.5Z";
        assert_eq!(
            asked(line).unwrap(),
            SyscallQuery {
                filter: Some(SyscallFilter {
                    namespaces: vec!["a".into(), "b".into()],
                    pods: vec!["p".into(), "x/q".into(), "app=web,tier!=db".into()],
                    workloads: vec!["Deployment/cart".into()],
                    containers: vec!["server".into(), "4f1d".into()],
                    owners: vec!["nginx.service".into()],
                    syscalls: vec!["openat".into(), "i386:read".into(), "7".into()],
                    categories: vec!["file".into(), "network".into()],
                    errnos: vec!["ENOENT".into(), "13".into()],
                }),
                since: Some(Timestamp {
                    seconds: 880,
                    nanos: 0
                }),
                until: Some(Timestamp {
                    seconds: 960,
                    nanos: 500_000_000
                }),
                by: vec![1, 3, 6],
                sort: 3,
                limit: 7,
                kind: 0,
                ..SyscallQuery::default()
            }
        );
    }

    #[test]
    fn each_view_has_its_own_groups_and_order() {
        for (line, by, sort, kind, latency) in [
            ("orb8 syscalls", &[2, 3][..], 0, 0, false),
            ("orb8 syscalls --latency", &[2, 3], 0, 0, true),
            ("orb8 syscalls --waits", &[1], 2, 0, true),
            (
                "orb8 syscalls --waits --by workload --sort count",
                &[4],
                0,
                0,
                true,
            ),
            ("orb8 syscalls --new", &[4, 3], 0, 1, false),
            ("orb8 syscalls --anomalies --by syscall,pod", &[3, 1], 0, 2, false),
            ("orb8 syscalls --sort errors", &[2, 3], 1, 0, true),
            ("orb8 syscalls --errno EIO", &[2, 3], 0, 0, true),
        ] {
            let query = asked(line).unwrap();
            assert_eq!((&*query.by, query.sort, query.kind), (by, sort, kind), "{line}");
            let Command::Syscalls(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
                unreachable!("the line is a syscalls command")
            };
            assert_eq!(needs_latency(&args), latency, "{line}");
        }
        let error = asked("orb8 syscalls --waits --by pod,syscall").unwrap_err();
        assert!(error.to_string().contains("--latency"), "{error}");
        assert!(asked("orb8 syscalls --since 1m --until 2m").is_err());
        assert!(asked("orb8 syscalls --anomalies --by category").is_err());
    }

    #[test]
    fn events_are_sampled_only_of_calls_that_are_named() {
        let request = |line: &str| {
            let Command::Trace(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
                unreachable!("the line is a trace command")
            };
            let TraceFamily::Syscalls(args) = args.family else {
                unreachable!("the line is about syscalls")
            };
            events(&args, &Scope::of_callers(&args.filter.caller, Some("shop")))
        };
        let all = request("orb8 trace syscalls");
        assert_eq!(
            (all.network, all.syscall_sampling, all.syscall.unwrap().namespaces),
            (None, 0, vec!["shop".to_owned()])
        );
        let named = request("orb8 trace syscalls -A --syscall read,write --category file --container c");
        assert_eq!(named.syscall_sampling, 100);
        assert_eq!(
            named.syscall.unwrap(),
            SyscallFilter {
                syscalls: vec!["read".into(), "write".into()],
                categories: vec!["file".into()],
                containers: vec!["c".into()],
                ..SyscallFilter::default()
            }
        );
        assert_eq!(
            request("orb8 trace syscalls --syscall read --sample 7").syscall_sampling,
            7
        );
        let category = request("orb8 trace syscalls --category time --sample 9");
        assert_eq!(category.syscall_sampling, 9);
        assert_eq!(
            request("orb8 trace syscalls --category time").syscall_sampling,
            100
        );
    }

    #[test]
    fn a_profile_asks_for_all_calls_of_its_callers() {
        let line = "orb8 profile seccomp --pod shop/cart-0 --container server --since 1m";
        let Command::Profile(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("the line is a profile command")
        };
        let ProfileKind::Seccomp(args) = args.kind;
        // A pod with its namespace is not limited to the context's.
        let scope = Scope::of_callers(&args.caller, Some("other"));
        assert_eq!(
            seccomp_query(&args, &scope, SystemTime::UNIX_EPOCH + NOW).unwrap(),
            SyscallQuery {
                filter: Some(SyscallFilter {
                    pods: vec!["shop/cart-0".into()],
                    containers: vec!["server".into()],
                    ..SyscallFilter::default()
                }),
                since: Some(Timestamp {
                    seconds: 940,
                    nanos: 0
                }),
                by: vec![4, 1, 2, 3],
                ..SyscallQuery::default()
            }
        );
    }

    #[test]
    fn bad_values_are_refused_with_what_is_allowed() {
        for (line, expected) in [
            ("orb8 syscalls --syscall open-at", "i386"),
            ("orb8 syscalls --syscall mips:openat", "i386"),
            ("orb8 syscalls --syscall=", "i386"),
            ("orb8 syscalls --category disk", "credentials"),
            ("orb8 syscalls --errno 4096", "1 to 4095"),
            ("orb8 syscalls --errno NOENT", "ENOENT"),
            ("orb8 syscalls --by pods", "possible values: pod, container"),
            ("orb8 syscalls --sort bytes", "possible values: count, errors"),
            ("orb8 syscalls --new --anomalies", "--anomalies"),
            ("orb8 syscalls --waits --errors", "--errors"),
            ("orb8 syscalls --watch --until 1m", "--until"),
            ("orb8 syscall-mode full", "possible values: off, counts, latency"),
            ("orb8 trace syscalls --sample 5", "--syscall"),
            ("orb8 trace syscalls --syscall read --sample 0", "1.."),
            ("orb8 syscalls --new --errno EIO", "--errno"),
            ("orb8 profile seccomp", "--pod"),
            ("orb8 profile seccomp --container c", "--pod"),
            ("orb8 profile seccomp --pod a --duration 1m --since 1m", "--since"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            let text = error.to_string();
            assert!(text.contains(expected), "{line}: {text}");
        }
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*") {
            let _ = (call(&text), category(&text), errno(&text));
        }
    }
}
