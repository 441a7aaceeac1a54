//! From flags to the protocol's words about GPUs.

use std::time::{Duration, SystemTime};

use orb8_proto::v1::{GpuFilter, GpuQuery, StreamEventsRequest};

use super::{Scope, Time, separated, span};
use crate::{
    args::{FilterArgs, GpuAskArgs, GpuFilterArgs},
    exit::Usage,
};

/// How far `orb8 gpu idle` looks back, unless told.
pub(crate) const IDLE_SPAN: Duration = Duration::from_hours(1);

/// Longest device that is taken: a MIG device's old name has 50 characters.
const LONGEST: usize = 64;

/// An index, or the beginning of a UUID. Which devices there are, the agents know.
pub(crate) fn device(text: &str) -> Result<String, String> {
    let is_index = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_index && text.parse::<u32>().is_ok() {
        return Ok(text.to_owned());
    }
    let is_uuid = ["GPU-", "MIG-"].into_iter().any(|kind| {
        text.get(..kind.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(kind))
    });
    let fits = text.len() <= LONGEST
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/'));
    if is_uuid && fits {
        return Ok(text.to_owned());
    }
    // As tables show it: eight digits, so that no model's name (A100) passes for it.
    let is_hex = (8..=36).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
        && !text.starts_with('-');
    if is_hex && !is_index {
        return Ok(format!("GPU-{text}"));
    }
    Err("an index (0), or the beginning of a UUID (GPU-5fd4, MIG-41b3) is needed".to_owned())
}

impl Scope {
    /// Of GPUs' holders.
    pub(crate) fn of_holders(args: &GpuFilterArgs, default: Option<&str>) -> Self {
        Self::new(&args.scope, &[&args.pod, &args.workload], default)
    }
}

/// The filter's message.
pub(crate) fn filter(args: &GpuFilterArgs, scope: &Scope) -> GpuFilter {
    GpuFilter {
        namespaces: scope.namespaces.clone(),
        pods: separated(&args.pod),
        workloads: args.workload.clone(),
        devices: args.device.clone(),
    }
}

/// The query's message, with ages counted from `now`.
///
/// # Errors
/// If the span is empty.
pub(crate) fn query(
    args: &GpuAskArgs,
    scope: &Scope,
    idle: bool,
    now: SystemTime,
) -> Result<GpuQuery, Usage> {
    // What was observed for a while is what is shown.
    let observed = args.duration.filter(|_| !args.watch).map(Time::Age);
    let default = observed.or_else(|| idle.then_some(Time::Age(IDLE_SPAN)));
    let (since, until) = span(args.since.as_ref().or(default.as_ref()), args.until.as_ref(), now)?;
    Ok(GpuQuery {
        filter: Some(filter(&args.filter, scope)),
        since,
        until,
        idle,
        ..GpuQuery::default()
    })
}

/// The query of `top`: the last sample.
pub(crate) fn top_query(args: &FilterArgs, scope: &Scope) -> GpuQuery {
    GpuQuery {
        filter: Some(GpuFilter {
            namespaces: scope.namespaces.clone(),
            pods: separated(&args.pod),
            workloads: args.workload.clone(),
            devices: Vec::new(),
        }),
        ..GpuQuery::default()
    }
}

/// The request for events of GPUs.
pub(crate) fn events(args: &GpuFilterArgs, scope: &Scope) -> StreamEventsRequest {
    StreamEventsRequest {
        gpu: Some(filter(args, scope)),
        ..StreamEventsRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use proptest::prelude::*;
    use prost_types::Timestamp;

    use super::*;
    use crate::args::{Cli, Command, GpuView, TraceFamily};

    fn asked(line: &str) -> Result<GpuQuery, Usage> {
        let Command::Gpu(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("the line is a gpu command")
        };
        let (args, idle) = match &args.view {
            None => (&args.ask, false),
            Some(GpuView::Idle(args)) => (args, true),
            Some(GpuView::Cuda(args)) => (args, false),
        };
        query(
            args,
            &Scope::of_holders(&args.filter, Some("ml")),
            idle,
            SystemTime::UNIX_EPOCH + Duration::from_secs(10_000),
        )
    }

    #[test]
    fn all_flags_make_exactly_this_query() {
        let line = "orb8 gpu -n a,b --pod p,x/q --pod app=web,tier!=db --workload Deployment/cart --device 0,gpu-5FD4 \
                    --since 2m --until 1970-01-01T02:46:00Z";
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        assert_eq!(
            asked(line).unwrap(),
            GpuQuery {
                filter: Some(GpuFilter {
                    namespaces: vec!["a".into(), "b".into()],
                    pods: vec!["p".into(), "x/q".into(), "app=web,tier!=db".into()],
                    workloads: vec!["Deployment/cart".into()],
                    devices: vec!["0".into(), "gpu-5FD4".into()],
                }),
                since: at(9880),
                until: at(9960),
                ..GpuQuery::default()
            }
        );
    }

    #[test]
    fn each_view_has_its_own_span() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        for (line, since, idle) in [
            ("orb8 gpu", None, false),
            ("orb8 gpu --duration 10s", at(9990), false),
            ("orb8 gpu --watch --duration 10s", None, false),
            ("orb8 gpu idle", at(6400), true),
            ("orb8 gpu idle --since 2h", at(2800), true),
            ("orb8 gpu cuda --since 1m", at(9940), false),
        ] {
            let query = asked(line).unwrap();
            assert_eq!((query.since, query.idle), (since, idle), "{line}");
            // The context's namespace, as kubectl has it.
            assert_eq!(query.filter.unwrap().namespaces, ["ml"], "{line}");
        }
        assert!(
            asked("orb8 gpu -A")
                .unwrap()
                .filter
                .unwrap()
                .namespaces
                .is_empty()
        );
    }

    #[test]
    fn events_of_gpus_are_asked_for_and_no_others() {
        let line = "orb8 trace gpu -A --device 1";
        let Command::Trace(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("the line is a trace command")
        };
        let TraceFamily::Gpu(args) = args.family else {
            unreachable!("the line is about GPUs")
        };
        let request = events(&args.filter, &Scope::of_holders(&args.filter, None));
        assert_eq!(request.gpu.unwrap().devices, ["1"]);
        assert!(request.network.is_none() && request.syscall.is_none());
    }

    #[test]
    fn bad_values_are_refused_with_what_is_allowed() {
        for (line, expected) in [
            ("orb8 gpu --device A100", "GPU-5fd4"),
            ("orb8 gpu --device 99999999999", "an index"),
            ("orb8 gpu --device GPU-..", "GPU-5fd4"),
            ("orb8 gpu --device=", "an index"),
            ("orb8 gpu --since yesterday", "2m"),
            ("orb8 gpu --until 1m", "--since"),
            ("orb8 gpu -n ml idle", "idle"),
            ("orb8 gpu busy", "busy"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            let text = error.to_string();
            assert!(text.contains(expected), "{line}: {text}");
        }
        assert!(asked("orb8 gpu --since 1m --until 2m").is_err());
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*") {
            let _ = device(&text);
        }

        #[test]
        fn whole_uuids_pass(hex in "[0-9a-fA-F]{8}", index in any::<u32>()) {
            for uuid in [format!("GPU-{hex}-0000-0000-0000-000000000000"), format!("mig-GPU-{hex}-0000/7/0")] {
                prop_assert!(device(&uuid).is_ok(), "{}", uuid);
            }
            prop_assert!(device(&index.to_string()).is_ok());
            let shown = format!("f{hex}");
            prop_assert_eq!(device(&shown), Ok(format!("GPU-{shown}")));
        }
    }
}
