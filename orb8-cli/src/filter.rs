//! From flags to the protocol's query: pure functions. All filtering is the agent's work.

pub(crate) mod gpu;
pub(crate) mod syscall;

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use orb8_proto::v1::{Direction, FlowFilter, FlowQuery, FlowSort, ListPodsRequest};
use prost_types::Timestamp;

use crate::{
    args::{DirectionArg, FilterArgs, PodsArgs, ScopeArgs, SortArg},
    exit::Usage,
    names, timestamp,
};

/// A point in time as typed: an age, which is resolved at each query, or a time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Time {
    Age(Duration),
    At(Timestamp),
}

impl Time {
    fn resolve(&self, now: SystemTime) -> Timestamp {
        match self {
            Self::Age(age) => timestamp::of(now.checked_sub(*age).unwrap_or(SystemTime::UNIX_EPOCH)),
            Self::At(time) => *time,
        }
    }
}

/// An address or network, as the agent expects it: IPv4-mapped addresses as IPv4, no bits beyond the prefix.
pub(crate) fn address(text: &str) -> Result<String, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip.to_canonical().to_string());
    }
    if let Ok(network) = text.parse::<IpNet>() {
        return Ok(network.trunc().to_string());
    }
    Err("an IPv4 or IPv6 address (10.0.0.5) or CIDR (10.0.0.0/8, fd00::/8) is needed".to_owned())
}

/// A protocol's number, by name or number.
pub(crate) fn protocol(text: &str) -> Result<u32, String> {
    names::protocol_number(text)
        .ok_or_else(|| "allowed are tcp, udp, icmp, icmpv6, sctp, or a number from 0 to 255".to_owned())
}

/// An age such as `2m`, or a time such as `2026-01-02T03:04:05Z`.
pub(crate) fn time(text: &str) -> Result<Time, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(Time::Age(age));
    }
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        let mut time = Timestamp {
            seconds: at.as_second(),
            nanos: at.subsec_nanosecond(),
        };
        time.normalize();
        return Ok(Time::At(time));
    }
    Err("an age (90s, 2m, 1h30m) or a time (2026-01-02T03:04:05Z) is needed".to_owned())
}

/// A duration above zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration)
            if duration >= Duration::from_millis(1) && duration <= Duration::from_hours(24 * 365) =>
        {
            Ok(duration)
        }
        _ => Err("a time from 1ms to 1year (500ms, 10s, 2m) is needed".to_owned()),
    }
}

/// The time between refreshes.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(interval) if (Duration::from_millis(100)..=Duration::from_hours(1)).contains(&interval) => {
            Ok(interval)
        }
        _ => Err("a time from 100ms to 1h (500ms, 1s, 1m) is needed".to_owned()),
    }
}

/// Whether `text` is a label selector: it has an operator (`=`, `!=`, `in (…)`, `!key`).
pub(crate) fn is_selector(text: &str) -> bool {
    text.contains(['=', '!', '(', '~'])
}

/// Names by commas, or one label selector, whose commas mean "and".
pub(crate) fn names(text: &str) -> Result<String, String> {
    if is_selector(text) {
        return Ok(text.to_owned());
    }
    if text.split(',').any(|name| name.trim().is_empty()) {
        return Err("a name, NAMESPACE/NAME or labels (app=web,tier!=db) are needed".to_owned());
    }
    Ok(text.to_owned())
}

/// As [`names`]; addresses as the agent expects them.
pub(crate) fn peers(text: &str) -> Result<String, String> {
    names(text).map_err(|_| {
        "an address, kind, pod, labels, workload, service, node or DNS name is needed".to_owned()
    })?;
    if is_selector(text) {
        return Ok(text.to_owned());
    }
    let peers = text.split(',').map(|peer| {
        let peer = peer.trim();
        match address(peer) {
            Ok(address) => Ok(address),
            // Kinds, names and host names have no such characters: this was meant to be an address.
            Err(expected)
                if peer.contains(':')
                    || peer.contains('/')
                        && peer.starts_with(|c: char| c.is_ascii_digit())
                        && peer.contains('.') =>
            {
                Err(expected)
            }
            Err(_) => Ok(peer.to_owned()),
        }
    });
    peers.collect::<Result<Vec<_>, _>>().map(|peers| peers.join(","))
}

/// One entry a name or selector.
fn separated(values: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for value in values {
        if is_selector(value) {
            all.push(value.clone());
        } else {
            all.extend(value.split(',').map(|name| name.trim().to_owned()));
        }
    }
    all
}

/// Kubernetes' namespaces that the answer is limited to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// None: all.
    pub(crate) namespaces: Vec<String>,
    /// Whether the user did not say so, but the kubeconfig's context.
    pub(crate) by_default: bool,
}

impl Scope {
    /// As typed; else `default`, the namespace of the context through which the answer comes, as kubectl does it.
    /// Names that have a namespace of their own need no other.
    pub(crate) fn new(args: &ScopeArgs, names: &[&[String]], default: Option<&str>) -> Self {
        let named = names
            .iter()
            .copied()
            .flatten()
            .any(|name| !is_selector(name) && has_namespace(name));
        match default {
            Some(default) if args.namespace.is_empty() && !args.all_namespaces && !named => Self {
                namespaces: vec![default.to_owned()],
                by_default: true,
            },
            _ => Self {
                namespaces: args.namespace.clone(),
                by_default: false,
            },
        }
    }

    /// Of flows.
    pub(crate) fn of_flows(args: &FilterArgs, default: Option<&str>) -> Self {
        Self::new(&args.scope, &[&args.pod, &args.workload, &args.service], default)
    }

    /// Of pods.
    pub(crate) fn of_pods(args: &PodsArgs, default: Option<&str>) -> Self {
        Self::new(&args.scope, &[&args.pod, &args.workload], default)
    }

    /// What the reader must know of it: a sentence, if the user did not ask for it.
    pub(crate) fn note(&self) -> Option<String> {
        let namespace = self.namespaces.first().filter(|_| self.by_default)?;
        Some(format!(
            "namespace {namespace} only, as the kubeconfig's context says (-A: all namespaces)"
        ))
    }
}

/// Whether a name begins with a namespace: `shop/cart`, `shop/Deployment/cart`, but not `Deployment/cart`. Kinds
/// have capitals, namespaces never (RFC 1123 labels).
fn has_namespace(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(first, _)| !first.contains(|c: char| c.is_ascii_uppercase()))
}

/// The request for pods.
pub(crate) fn pods_request(args: &PodsArgs, scope: &Scope) -> ListPodsRequest {
    ListPodsRequest {
        namespaces: scope.namespaces.clone(),
        pods: separated(&args.pod),
        workloads: args.workload.clone(),
        ..ListPodsRequest::default()
    }
}

/// The filter's message.
pub(crate) fn flow_filter(args: &FilterArgs, scope: &Scope) -> FlowFilter {
    FlowFilter {
        namespaces: scope.namespaces.clone(),
        pods: separated(&args.pod),
        workloads: args.workload.clone(),
        services: args.service.clone(),
        peers: separated(&args.peer),
        owners: args.owner.clone(),
        addresses: args.ip.clone(),
        ports: args.port.iter().copied().map(u32::from).collect(),
        protocols: args.protocol.clone(),
        direction: match args.direction {
            None => Direction::Unspecified,
            Some(DirectionArg::In) => Direction::Ingress,
            Some(DirectionArg::Out) => Direction::Egress,
        }
        .into(),
    }
}

/// The protocol's word for a sort order.
pub(crate) const fn flow_sort(sort: SortArg) -> FlowSort {
    match sort {
        SortArg::Bytes => FlowSort::Bytes,
        SortArg::Packets => FlowSort::Packets,
        SortArg::Last => FlowSort::Last,
        SortArg::First => FlowSort::First,
        SortArg::Rtt => FlowSort::Rtt,
        SortArg::Retransmits => FlowSort::Retransmits,
    }
}

/// The query's message, with ages counted from `now`.
///
/// # Errors
/// If the span is empty.
pub(crate) fn flow_query(
    filter: FlowFilter,
    since: Option<&Time>,
    until: Option<&Time>,
    sort: SortArg,
    limit: u32,
    now: SystemTime,
) -> Result<FlowQuery, Usage> {
    let (since, until) = span(since, until, now)?;
    Ok(FlowQuery {
        filter: Some(filter),
        since,
        until,
        limit,
        sort: flow_sort(sort).into(),
        ..FlowQuery::default()
    })
}

/// A span of time, with ages counted from `now`.
///
/// # Errors
/// If it is empty.
fn span(
    since: Option<&Time>,
    until: Option<&Time>,
    now: SystemTime,
) -> Result<(Option<Timestamp>, Option<Timestamp>), Usage> {
    let since = since.map(|time| time.resolve(now));
    let until = until.map(|time| time.resolve(now));
    if let (Some(since), Some(until)) = (&since, &until)
        && !timestamp::is_after(until, since)
    {
        return Err(Usage(format!(
            "--since ({}) must be before --until ({})",
            timestamp::date_clock(Some(since)),
            timestamp::date_clock(Some(until)),
        )));
    }
    Ok((since, until))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use proptest::prelude::*;

    use super::*;
    use crate::args::{Cli, Command};

    fn query(line: &str) -> Result<FlowQuery, Usage> {
        let Command::Flows(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("the line is a flows command")
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let (since, until) = (args.since.as_ref(), args.until.as_ref());
        flow_query(
            flow_filter(&args.filter, &Scope::of_flows(&args.filter, None)),
            since,
            until,
            args.sort,
            args.limit.unwrap_or(50),
            now,
        )
    }

    #[test]
    fn all_flags_make_exactly_this_query() {
        let line = "orb8 flows --owner nginx.service --owner curl --namespace a,b --pod p,x/q --pod app=web,tier!=db \
                    --workload Deployment/cart --service shop/db --peer external,::ffff:1.2.3.4,10.1.2.3/8 --ip 10.1.2.3/8,::ffff:1.2.3.4 \
                    --port 80,443 --protocol tcp,47 --direction out --since 2m --until 1970-01-01T00:16:00.5Z \
                    --sort rtt --limit 7";
        assert_eq!(
            query(line).unwrap(),
            FlowQuery {
                filter: Some(FlowFilter {
                    namespaces: vec!["a".into(), "b".into()],
                    pods: vec!["p".into(), "x/q".into(), "app=web,tier!=db".into()],
                    workloads: vec!["Deployment/cart".into()],
                    services: vec!["shop/db".into()],
                    peers: vec!["external".into(), "1.2.3.4".into(), "10.0.0.0/8".into()],
                    owners: vec!["nginx.service".into(), "curl".into()],
                    addresses: vec!["10.0.0.0/8".into(), "1.2.3.4".into()],
                    ports: vec![80, 443],
                    protocols: vec![6, 47],
                    direction: 2,
                }),
                since: Some(Timestamp {
                    seconds: 880,
                    nanos: 0
                }),
                until: Some(Timestamp {
                    seconds: 960,
                    nanos: 500_000_000
                }),
                limit: 7,
                sort: 4,
                ..FlowQuery::default()
            }
        );
    }

    #[test]
    fn no_flags_ask_for_everything() {
        let all = FlowQuery {
            filter: Some(FlowFilter::default()),
            limit: 50,
            ..FlowQuery::default()
        };
        assert_eq!(query("orb8 flows").unwrap(), all);
        let ingress = query("orb8 flows --direction ingress").unwrap().filter.unwrap();
        assert_eq!(ingress.direction(), Direction::Ingress);
    }

    #[test]
    fn the_context_s_namespace_is_the_default_as_in_kubectl() {
        let scope = |line: &str| {
            let Command::Flows(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
                unreachable!("the line is a flows command")
            };
            let scope = Scope::of_flows(&args.filter, Some("shop"));
            (scope.namespaces.join(","), scope.note().is_some())
        };
        for (line, namespaces, noted) in [
            ("orb8 flows", "shop", true),
            ("orb8 flows --pod cart --workload Deployment/cart", "shop", true),
            ("orb8 flows --pod app.io/x=y", "shop", true),
            ("orb8 flows -A", "", false),
            ("orb8 flows -n a,b", "a,b", false),
            ("orb8 flows --pod other/cart", "", false),
            ("orb8 flows --workload other/Deployment/cart", "", false),
            ("orb8 flows --service other/db", "", false),
        ] {
            assert_eq!(scope(line), (namespaces.to_owned(), noted), "{line}");
        }
    }

    #[test]
    fn an_empty_span_is_refused() {
        assert!(
            query("orb8 flows --since 1m --until 2m")
                .unwrap_err()
                .to_string()
                .contains("before --until")
        );
    }

    #[test]
    fn bad_values_are_refused_with_what_is_allowed() {
        for (line, expected) in [
            ("orb8 flows --ip 10.0.0.300", "CIDR"),
            ("orb8 flows --port 0", "1..=65535"),
            ("orb8 flows --protocol tpc", "tcp, udp"),
            ("orb8 flows --since yesterday", "2m"),
            ("orb8 flows --direction up", "possible values: in, out"),
            ("orb8 flows --watch --interval 1ms", "100ms to 1h"),
            ("orb8 flows --interval 2s", "--watch"),
            ("orb8 flows --owner=", "--owner"),
            ("orb8 flows --pod a,,b", "labels"),
            ("orb8 flows --peer 10.0.0.0/99", "CIDR"),
            ("orb8 flows --peer fd00::zz", "CIDR"),
            ("orb8 flows -A -n a", "--all-namespaces"),
            ("orb8 flows --edges --direction out", "--direction"),
            ("orb8 flows --edges --peer external", "--peer"),
            ("orb8 --agent a:1 --context c flows", "--context"),
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
            let _ = (address(&text), protocol(&text), time(&text), duration(&text), interval(&text));
            let _ = (names(&text), peers(&text), separated(&[text]));
        }

        #[test]
        fn times_and_ages_never_panic(seconds in any::<u64>(), now in 0_u64..1 << 40) {
            if let Ok(time) = time(&format!("{seconds}s")) {
                time.resolve(SystemTime::UNIX_EPOCH + Duration::from_secs(now));
            }
        }

        #[test]
        fn canonical_addresses_stay(ip in any::<IpAddr>(), prefix in 0_u8..=32) {
            let once = address(&ip.to_string()).unwrap();
            prop_assert_eq!(address(&once).unwrap(), once);
            let network = address(&format!("{ip}/{prefix}")).unwrap();
            prop_assert_eq!(address(&network).unwrap(), network);
        }
    }
}
