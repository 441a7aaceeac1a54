//! The history beside a naive model of it, and what its answers say.

use std::{collections::BTreeMap, time::Duration};

use orb8_common::network::{FlowCounters, FlowKey, RemainderKey, TcpHealth, TcpKey, kind, protocol};
use orb8_proto::v1;
use proptest::prelude::*;

use super::{
    Direction, History, HistoryLimits, Observation, PointId, QueryError, Via, ViaId, flows::FlowTable,
    message::timestamp,
};
use crate::identity::owner::{Attribution, Kind, Owner, OwnerId, OwnerTable, PodName};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;

fn v4(a: u8, b: u8, c: u8, d: u8) -> [u8; 16] {
    std::net::Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets()
}

fn key(sport: u16, egress: bool) -> FlowKey {
    FlowKey {
        src: v4(10, 0, 0, 1),
        dst: v4(10, 0, 0, 2),
        point: 7,
        sport,
        dport: 80,
        protocol: protocol::TCP,
        kind: kind::IPV4 | if egress { kind::EGRESS } else { 0 },
        link_len: 14,
        reserved: 0,
    }
}

fn process(name: &str, kind: Kind) -> Owner {
    Owner {
        kind,
        process: name.to_owned(),
        attribution: Attribution::Veth,
        ..Owner::default()
    }
}

fn owners() -> OwnerTable {
    let mut owners = OwnerTable::new(100);
    for name in ["a", "b", "c"] {
        owners.intern(process(name, Kind::Process));
    }
    owners
}

fn counters(packets: u64, at: u64) -> FlowCounters {
    FlowCounters {
        packets,
        bytes: packets * 100,
        padding: 3,
        first_ns: at,
        last_ns: at + 5,
        tcp_flags: 2,
        ..FlowCounters::default()
    }
}

fn add(history: &mut History, key: &FlowKey, counters: &FlowCounters, owner: u32, peer: u32) {
    let direction = Direction::of(key.kind, false);
    let point = history.point("veth7");
    let observation = Observation {
        key,
        counters,
        owner: OwnerId(owner),
        peer: OwnerId(peer),
        peer_kind: Kind::External,
        direction,
        point,
        via: ViaId::STRAIGHT,
    };
    history.add_flow(&observation, &owners());
}

fn all(history: &History, owners: &OwnerTable) -> super::Answer {
    ask(history, owners, &v1::FlowQuery::default())
}

fn ask(history: &History, owners: &OwnerTable, query: &v1::FlowQuery) -> super::Answer {
    match history.query(query, owners, "n1", START) {
        Ok(answer) => answer,
        Err(error) => panic!("{query:?}: {error}"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Flow {
        port: u16,
        egress: bool,
        owner: u32,
        packets: u64,
    },
    Remainder {
        point: u64,
        owner: u32,
        packets: u64,
        link_len: u8,
    },
    Tcp {
        port: u16,
        retransmits: u64,
    },
    Commit {
        seconds: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0u16..400, any::<bool>(), 0u32..4, 1u64..50)
            .prop_map(|(port, egress, owner, packets)| Step::Flow { port, egress, owner, packets }),
        1 => (0u64..3, 0u32..4, 1u64..50, 0u8..20).prop_map(|(point, owner, packets, link_len)| {
            Step::Remainder { point, owner, packets, link_len }
        }),
        1 => (0u16..400, 0u64..3).prop_map(|(port, retransmits)| Step::Tcp { port, retransmits }),
        2 => prop_oneof![9 => Just(1u64), 1 => 2u64..40].prop_map(|seconds| Step::Commit { seconds }),
    ];
    prop::collection::vec(step, 0..400)
}

/// Packets, bytes on the wire by who reported them.
type ByOwner = BTreeMap<(String, i32), (u64, u64)>;

fn by_owner(answer: &super::Answer) -> ByOwner {
    let mut sums = ByOwner::new();
    for flow in &answer.flows {
        let end = if flow.direction == v1::Direction::Egress as i32 {
            &flow.src
        } else {
            &flow.dst
        };
        let name = end.as_ref().map(|end| end.process.clone()).unwrap_or_default();
        let sum = sums.entry((name, flow.direction)).or_default();
        sum.0 += flow.packets;
        sum.1 += flow.wire_bytes;
    }
    sums
}

/// Runs the steps; the model is a list of intervals with their sums.
fn run(history: &mut History, owners: &OwnerTable, steps: &[Step]) -> Vec<(u64, u64, ByOwner)> {
    let mut intervals = Vec::new();
    let mut now = START;
    let mut sums = ByOwner::new();
    history.begin(now);
    for step in steps.iter().chain([&Step::Commit { seconds: 1 }]) {
        match *step {
            Step::Flow {
                port,
                egress,
                owner,
                packets,
            } => {
                let key = key(port, egress);
                let counters = counters(packets, now + 10);
                add(history, &key, &counters, owner, 0);
                let name = owners.get(OwnerId(owner)).process.clone();
                let sum = sums.entry((name, if egress { 2 } else { 1 })).or_default();
                sum.0 += packets;
                sum.1 += counters.wire_bytes(key.link_len);
            }
            Step::Remainder {
                point,
                owner,
                packets,
                link_len,
            } => {
                let key = RemainderKey {
                    point,
                    link_len,
                    ..RemainderKey::default()
                };
                let counters = counters(packets, now + 10);
                history.add_remainder(
                    &key,
                    &counters,
                    OwnerId(owner),
                    Direction::Ingress,
                    PointId::UNNAMED,
                );
                let sum = sums
                    .entry((owners.get(OwnerId(owner)).process.clone(), 1))
                    .or_default();
                sum.0 += packets;
                sum.1 += counters.wire_bytes(link_len);
            }
            Step::Tcp { port, retransmits } => {
                let key = key(port, true);
                let tcp = TcpKey {
                    local: key.src,
                    remote: key.dst,
                    local_port: key.sport,
                    remote_port: key.dport,
                    ..TcpKey::default()
                };
                history.add_tcp(
                    &tcp,
                    &TcpHealth {
                        retransmits,
                        srtt_us: 9,
                        ..TcpHealth::default()
                    },
                );
            }
            Step::Commit { seconds } => {
                let to = now + seconds * SECOND;
                history.commit(to, owners);
                intervals.push((now, to, std::mem::take(&mut sums)));
                now = to;
                history.begin(now);
            }
        }
    }
    intervals
}

fn total<'a>(intervals: impl IntoIterator<Item = &'a (u64, u64, ByOwner)>) -> ByOwner {
    let mut sums = ByOwner::new();
    for (_, _, interval) in intervals {
        for (key, (packets, bytes)) in interval {
            let sum = sums.entry(key.clone()).or_default();
            sum.0 += packets;
            sum.1 += bytes;
        }
    }
    sums
}

fn packets(sums: &ByOwner) -> u64 {
    sums.values().map(|(packets, _)| packets).sum()
}

fn rows_add_up(history: &History) -> Result<(), TestCaseError> {
    for row in history.ledger() {
        prop_assert_eq!(row.seen, row.counted + row.filtered + row.lost, "{}", row.stage);
    }
    Ok(())
}

fn limits(flows: usize, bytes: usize, span: u64) -> HistoryLimits {
    HistoryLimits {
        span: Duration::from_secs(span),
        bytes,
        flows,
        series: 100,
        kubernetes: false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_packet_is_in_an_answer_or_counted_as_gone(
        steps in steps(),
        flows in 1usize..500,
        bytes in prop_oneof![100_000usize..140_000, Just(1 << 22)],
        span in prop_oneof![Just(10_000u64), 20u64..100],
    ) {
        let owners = owners();
        let mut history = History::bounded(limits(flows, bytes, span));
        let intervals = run(&mut history, &owners, &steps);
        let answer = all(&history, &owners);
        let everything = total(&intervals);
        let gone = history.evicted().packets + history.expired().packets;
        prop_assert_eq!(answer.summary.matched_packets + gone, packets(&everything));
        prop_assert_eq!(answer.flows.iter().map(|flow| flow.packets).sum::<u64>(), answer.summary.matched_packets);
        if history.evicted().segments + history.expired().segments == 0 {
            prop_assert_eq!(by_owner(&answer), everything.clone());
        } else if history.evicted().segments == 0 {
            let kept = intervals.iter().filter(|(_, to, _)| {
                history.covered().is_some_and(|(from, _)| *to > from)
            });
            prop_assert_eq!(by_owner(&answer), total(kept));
        }
        prop_assert!(history.memory() <= bytes || history.segments.len() == 1);
        prop_assert!(history.flows.detail() <= flows);
        let exported: u64 = history.totals().series().map(|series| series.packets).sum();
        prop_assert_eq!(exported, packets(&everything));
        rows_add_up(&history)?;

        // Time passes: nothing is left, and no owner is held.
        let end = intervals.last().map_or(START, |last| last.1) + (span + 1) * SECOND;
        history.begin(end);
        history.commit(end + SECOND, &owners);
        prop_assert_eq!(all(&history, &owners).flows.len(), 0);
        prop_assert_eq!(history.flows.detail(), 0);
        prop_assert!(!history.owners_in_use()(OwnerId(1)));
        prop_assert_eq!(history.evicted().packets + history.expired().packets, packets(&everything));
    }

    #[test]
    fn a_span_answers_for_exactly_the_intervals_that_it_overlaps(
        steps in steps(),
        since in 0u64..60,
        length in 1u64..60,
    ) {
        let owners = owners();
        let mut history = History::new(limits(1000, 1 << 22, 10_000));
        let intervals = run(&mut history, &owners, &steps);
        let since = START + since * SECOND / 2;
        let until = since + length * SECOND / 2;
        let query = v1::FlowQuery {
            since: Some(timestamp(since)),
            until: Some(timestamp(until)),
            ..Default::default()
        };
        let answer = ask(&history, &owners, &query);
        let overlapping: Vec<_> =
            intervals.iter().filter(|(from, to, _)| *to > since && *from < until).cloned().collect();
        // A record of health alone has no packets.
        let mut answered = by_owner(&answer);
        answered.retain(|_, sum| *sum != (0, 0));
        prop_assert_eq!(answered, total(&overlapping));
        if let (Some(first), Some(last)) = (overlapping.first(), overlapping.last()) {
            prop_assert_eq!(answer.summary.from, Some(timestamp(first.0)));
            prop_assert_eq!(answer.summary.to, Some(timestamp(last.1)));
        }
    }

    #[test]
    fn polls_from_the_end_of_the_last_answer_see_everything_once(
        steps in steps(),
        every in 1usize..5,
    ) {
        let owners = owners();
        let mut history = History::new(limits(1000, 1 << 22, 10_000));
        let (mut polled, mut expected) = (0, 0);
        let mut since = None;
        for part in steps.chunks(40 * every) {
            // Each part begins where the clock is: at the end of the part before.
            let mut now = history.last_to_ns().max(START);
            history.begin(now);
            for step in part {
                if let Step::Flow { port, egress, owner, packets } = *step {
                    add(&mut history, &key(port, egress), &counters(packets, now), owner, 0);
                    expected += packets;
                }
            }
            now += SECOND;
            history.commit(now, &owners);
            let answer = ask(&history, &owners, &v1::FlowQuery { since, ..Default::default() });
            polled += answer.summary.matched_packets;
            since = answer.summary.to;
        }
        prop_assert_eq!(polled, expected);
    }

    #[test]
    fn a_limit_gives_the_first_of_the_whole_order(steps in steps(), limit in 1u32..20, sort in 0i32..6) {
        let owners = owners();
        let mut history = History::new(limits(1000, 1 << 22, 10_000));
        run(&mut history, &owners, &steps);
        let whole = ask(&history, &owners, &v1::FlowQuery { sort, ..Default::default() });
        let part = ask(&history, &owners, &v1::FlowQuery { sort, limit, ..Default::default() });
        prop_assert_eq!(&whole.flows[..whole.flows.len().min(limit as usize)], &part.flows[..]);
        prop_assert_eq!(whole.summary, part.summary);
        let bytes: Vec<_> = whole.flows.iter().map(|flow| flow.bytes).collect();
        if sort == v1::FlowSort::Bytes as i32 {
            prop_assert!(bytes.is_sorted_by(|a, b| a >= b));
        }
    }
}

#[test]
fn old_time_is_kept_coarsely_and_recent_time_finely() {
    let owners = owners();
    let mut history = History::new(limits(131_072, 24 << 20, 300));
    for second in 0..400u64 {
        let now = START + second * SECOND;
        history.begin(now);
        for port in 0..50 {
            add(&mut history, &key(port, true), &counters(1, now), 1, 0);
        }
        history.commit(now + SECOND, &owners);
    }
    assert!(history.segments.len() < 100, "{}", history.segments.len());
    let recent = history.segments.iter().rev().take(50);
    assert!(recent.clone().all(|segment| segment.duration_ns() == SECOND));
    let (from, to) = history.covered().unwrap_or_default();
    assert!(
        (300..=310).contains(&((to - from) / SECOND)),
        "{}",
        (to - from) / SECOND
    );
    assert_eq!(
        all(&history, &owners).summary.matched_packets,
        50 * (to - from) / SECOND
    );
    assert_eq!(history.evicted().segments, 0);
}

#[test]
fn under_churn_recent_flows_keep_their_detail_and_old_ones_give_way() {
    let owners = owners();
    let mut history = History::new(limits(2000, 4 << 20, 300));
    for second in 0..30u64 {
        let now = START + second * SECOND;
        history.begin(now);
        for n in 0..200 {
            add(
                &mut history,
                &key((second * 200 + n) as u16, true),
                &counters(1, now),
                1,
                0,
            );
        }
        history.commit(now + SECOND, &owners);
    }
    let answer = all(&history, &owners);
    assert_eq!(answer.summary.matched_packets, 30 * 200);
    assert!(
        answer
            .summary
            .notes
            .iter()
            .any(|note| note.contains("flows that had ended")),
        "{answer:?}"
    );
    let since = v1::FlowQuery {
        since: Some(timestamp(START + 25 * SECOND)),
        ..Default::default()
    };
    let recent = ask(&history, &owners, &since);
    assert_eq!(recent.flows.len(), 5 * 200);
    assert!(recent.flows.iter().all(|flow| !flow.remainder));
    // What the filter can't decide is said.
    let filtered = v1::FlowQuery {
        filter: Some(v1::FlowFilter {
            ports: vec![80],
            ..Default::default()
        }),
        ..Default::default()
    };
    let answer = ask(&history, &owners, &filtered);
    assert!(answer.summary.matched_packets < 30 * 200);
    assert!(answer.summary.notes.iter().any(|note| note.contains("left out")));
}

#[test]
fn a_message_has_both_ends_the_health_and_the_peers_own_report() {
    let mut owners = OwnerTable::new(10);
    let client = owners.intern(process("client", Kind::Process)).0;
    let server = owners.intern(process("server", Kind::Process)).0;
    let host = owners
        .intern(Owner {
            kind: Kind::Host,
            ..Owner::default()
        })
        .0;
    let mut history = History::new(HistoryLimits::default());
    let sent = key(4000, true);
    let mut received = key(4000, false);
    received.point = 99;
    received.kind |= kind::SOCKET;
    received.link_len = 0;
    history.begin(START);
    let tcp = TcpKey {
        local: sent.src,
        remote: sent.dst,
        local_port: 4000,
        remote_port: 80,
        ..TcpKey::default()
    };
    // The connection's health comes first, as it may.
    let health = TcpHealth {
        retransmits: 2,
        srtt_us: 210,
        connect_us: 180,
        ..TcpHealth::default()
    };
    history.add_tcp(&tcp, &health);
    history.add_tcp(&TcpKey { local_port: 1, ..tcp }, &health);
    add(&mut history, &sent, &counters(3, START + 1), client, host);
    add(&mut history, &received, &counters(2, START + 2), server, 0);
    history.commit(START + SECOND, &owners);

    let answer = all(&history, &owners);
    let flow = &answer.flows[0];
    let (src, dst) = (
        flow.src.clone().unwrap_or_default(),
        flow.dst.clone().unwrap_or_default(),
    );
    assert_eq!(
        (src.ip.as_str(), src.port, src.process.as_str()),
        ("10.0.0.1", 4000, "client")
    );
    assert_eq!(
        (dst.ip.as_str(), dst.port, dst.process.as_str()),
        ("10.0.0.2", 80, "server")
    );
    assert_eq!(dst.attribution, v1::Attribution::PeerReport as i32);
    assert_eq!(flow.reporter, v1::Reporter::Source as i32);
    assert_eq!(
        (flow.packets, flow.bytes, flow.wire_bytes),
        (3, 300, 300 + 3 * 14 + 3)
    );
    assert_eq!(
        (flow.rtt_us, flow.retransmits, flow.connect_us),
        (Some(210), Some(2), Some(180))
    );
    assert_eq!(flow.first, Some(timestamp(START + 1)));
    assert_eq!(
        flow.point.clone().unwrap_or_default().point,
        Some(v1::observation_point::Point::Interface("veth7".into()))
    );
    let other = &answer.flows[1];
    assert_eq!(other.reporter, v1::Reporter::Destination as i32);
    assert_eq!((other.rtt_us, other.retransmits), (None, None));
    assert_eq!(
        other.point.clone().unwrap_or_default().point,
        Some(v1::observation_point::Point::CgroupId(99))
    );

    // The filter knows the peer by its own report as well.
    let by_owner = |name: &str, reports: v1::FlowReports| {
        let filter = v1::FlowFilter {
            owners: vec![name.to_owned()],
            ..Default::default()
        };
        let answer = ask(
            &history,
            &owners,
            &v1::FlowQuery {
                filter: Some(filter),
                reports: reports.into(),
                ..Default::default()
            },
        );
        assert_eq!(answer.summary.matched_flows, answer.flows.len() as u64);
        answer.flows.len()
    };
    for (name, either_end, own) in [("client", 2, 1), ("server", 2, 1), ("nobody", 0, 0)] {
        assert_eq!(by_owner(name, v1::FlowReports::All), either_end, "{name}");
        assert_eq!(by_owner(name, v1::FlowReports::Own), own, "{name}");
    }

    // The record without a flow is given up after the next interval.
    let unmatched = |history: &History| {
        history
            .ledger()
            .iter()
            .find(|row| row.stage == "tcp_health")
            .map(|r| r.filtered)
    };
    history.commit(START + 2 * SECOND, &owners);
    assert_eq!(unmatched(&history), Some(1));
}

#[test]
fn filters_choose_by_address_port_protocol_and_direction() {
    let owners = owners();
    let mut history = History::new(HistoryLimits::default());
    history.begin(START);
    add(&mut history, &key(1, true), &counters(1, START), 1, 0);
    add(&mut history, &key(2, false), &counters(1, START), 2, 0);
    let mut icmp = key(8, true);
    (icmp.protocol, icmp.dport) = (protocol::ICMP, 0);
    add(&mut history, &icmp, &counters(1, START), 3, 0);
    let arp = FlowKey {
        point: 7,
        sport: 0x0806,
        ..FlowKey::default()
    };
    add(&mut history, &arp, &counters(1, START), 3, 0);
    history.commit(START + SECOND, &owners);
    let count = |filter: v1::FlowFilter| {
        ask(
            &history,
            &owners,
            &v1::FlowQuery {
                filter: Some(filter),
                ..Default::default()
            },
        )
        .flows
        .len()
    };
    let filter = v1::FlowFilter::default;
    assert_eq!(count(filter()), 4);
    assert_eq!(
        count(v1::FlowFilter {
            ports: vec![80],
            ..filter()
        }),
        2
    );
    assert_eq!(
        count(v1::FlowFilter {
            ports: vec![8],
            ..filter()
        }),
        0,
        "an ICMP type is no port"
    );
    assert_eq!(
        count(v1::FlowFilter {
            protocols: vec![1],
            ..filter()
        }),
        1
    );
    assert_eq!(
        count(v1::FlowFilter {
            protocols: vec![0],
            ..filter()
        }),
        0,
        "ARP has no IP protocol"
    );
    assert_eq!(
        count(v1::FlowFilter {
            addresses: vec!["10.0.0.0/24".into()],
            ..filter()
        }),
        3
    );
    assert_eq!(
        count(v1::FlowFilter {
            addresses: vec!["::/0".into()],
            ..filter()
        }),
        0
    );
    assert_eq!(
        count(v1::FlowFilter {
            direction: 2,
            ..filter()
        }),
        2
    );
    assert_eq!(
        count(v1::FlowFilter {
            direction: 2,
            ports: vec![1],
            ..filter()
        }),
        1
    );
    assert_eq!(
        count(v1::FlowFilter {
            owners: vec!["c".into()],
            ..filter()
        }),
        2
    );
    assert_eq!(
        count(v1::FlowFilter {
            pods: vec!["c".into()],
            ..filter()
        }),
        0
    );
    let flows = all(&history, &owners).flows;
    assert!(
        flows
            .iter()
            .any(|flow| flow.ethertype == 0x0806 && flow.ip_version == 0)
    );
    assert!(
        flows
            .iter()
            .any(|flow| flow.icmp_type == Some(8) && flow.icmp_code == Some(0))
    );

    let backwards = v1::FlowQuery {
        since: Some(timestamp(START + 1)),
        until: Some(timestamp(START)),
        ..Default::default()
    };
    assert_eq!(
        history.query(&backwards, &owners, "", 0).err(),
        Some(QueryError::EmptySpan)
    );
    let sort = v1::FlowQuery {
        sort: 17,
        ..Default::default()
    };
    assert_eq!(
        history.query(&sort, &owners, "", 0).err(),
        Some(QueryError::Sort(17))
    );
}

#[test]
fn another_owner_at_the_same_interface_is_another_flow() {
    let owners = owners();
    let mut history = History::new(HistoryLimits::default());
    history.begin(START);
    add(&mut history, &key(1, true), &counters(1, START), 1, 0);
    add(&mut history, &key(1, true), &counters(1, START), 2, 0);
    add(&mut history, &key(1, true), &counters(1, START), 2, 0);
    history.commit(START + SECOND, &owners);
    let mut counts: Vec<_> = all(&history, &owners)
        .flows
        .iter()
        .map(|flow| flow.packets)
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 2]);
}

#[test]
fn a_clock_that_goes_back_makes_no_span_negative() {
    let owners = owners();
    let mut history = History::new(HistoryLimits::default());
    for to in [START + 5 * SECOND, START, START + 1, 0] {
        history.begin(to.saturating_sub(SECOND));
        add(&mut history, &key(1, true), &counters(1, to), 1, 0);
        history.commit(to, &owners);
    }
    assert_eq!(all(&history, &owners).summary.matched_packets, 4);
    let ends: Vec<_> = history
        .segments
        .iter()
        .map(|segment| (segment.from_ns, segment.to_ns))
        .collect();
    assert!(
        ends.iter().all(|(from, to)| from < to) && ends.windows(2).all(|two| two[0].1 <= two[1].0),
        "{ends:?}"
    );
}

#[test]
fn the_bound_on_memory_bounds_the_flow_table() {
    let history = History::new(HistoryLimits {
        bytes: 1 << 20,
        ..HistoryLimits::default()
    });
    assert!(FlowTable::memory_of(history.flows.max_detail()) <= (1 << 20) / 4 * 3);
}

fn pod(uid: &str, full: &str) -> Owner {
    Owner {
        kind: if full.is_empty() { Kind::Process } else { Kind::Pod },
        attribution: Attribution::PodIp,
        pod: Some(std::sync::Arc::new(PodName {
            uid: uid.to_owned(),
            full: full.to_owned(),
            ..PodName::default()
        })),
        ..Owner::default()
    }
}

/// Adds a second with one packet of the same flow to a history.
fn second(
    history: &mut History,
    owners: &OwnerTable,
    number: u64,
    owner: OwnerId,
    peer: OwnerId,
    via: ViaId,
) {
    let now = START + number * SECOND;
    history.begin(now);
    let observation = Observation {
        key: &key(1000, true),
        counters: &counters(1, now),
        owner,
        peer,
        peer_kind: Kind::Pod,
        direction: Direction::Egress,
        point: PointId::UNNAMED,
        via,
    };
    history.add_flow(&observation, owners);
    history.commit(now + SECOND, owners);
}

#[test]
fn a_flow_whose_peers_address_was_handed_on_is_two_flows() {
    let mut owners = OwnerTable::new(100);
    let me = owners.intern(process("me", Kind::Process));
    let (a, b) = (owners.intern(pod("1", "n/a")), owners.intern(pod("2", "n/b")));
    let mut history = History::new(limits(1000, 1 << 22, 10_000));
    second(&mut history, &owners, 0, me, OwnerId::UNKNOWN, ViaId::STRAIGHT);
    second(&mut history, &owners, 1, me, a, ViaId::STRAIGHT);
    second(&mut history, &owners, 2, me, b, ViaId::STRAIGHT);
    second(&mut history, &owners, 3, me, b, ViaId::STRAIGHT);
    let peers = |history: &History| -> BTreeMap<String, u64> {
        let flows = all(history, &owners).flows;
        let peer = |flow: &v1::Flow| flow.dst.as_ref().map(|dst| dst.pod.clone()).unwrap_or_default();
        flows.iter().map(|flow| (peer(flow), flow.packets)).collect()
    };
    // What came before its name was known is the first one's.
    assert_eq!(peers(&history), [("a".to_owned(), 2), ("b".to_owned(), 2)].into());
    // Nothing of the past is in the way when all is forgotten.
    let end = START + 20_000 * SECOND;
    history.begin(end);
    history.commit(end + SECOND, &owners);
    assert_eq!(history.flows.detail(), 0);
}

#[test]
fn a_flow_that_goes_to_another_backend_is_two_flows() {
    let mut owners = OwnerTable::new(100);
    let me = owners.intern(process("me", Kind::Process));
    let mut history = History::new(limits(1000, 1 << 22, 10_000));
    let to = |history: &mut History, last: u8| {
        history.via(Via {
            service: "shop/db".into(),
            attribution: Attribution::Conntrack,
            asked: Some(([10, 96, 0, 1].into(), 80)),
            src: None,
            dst: Some(([10, 0, 0, last].into(), 8080)),
        })
    };
    let first = to(&mut history, 7);
    second(&mut history, &owners, 0, me, OwnerId::UNKNOWN, first);
    second(&mut history, &owners, 1, me, OwnerId::UNKNOWN, ViaId::STRAIGHT);
    let next = to(&mut history, 8);
    second(&mut history, &owners, 2, me, OwnerId::UNKNOWN, next);
    let mut flows = all(&history, &owners).flows;
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.packets));
    let shown: Vec<_> = flows
        .iter()
        .map(|flow| {
            let dst = flow.dst.clone().unwrap_or_default();
            let service = flow.service.clone().unwrap_or_default();
            (
                flow.packets,
                dst.ip,
                dst.port,
                service.name,
                service.ip,
                flow.wire_ip.clone(),
            )
        })
        .collect();
    let expect = |packets, last: u8| {
        (
            packets,
            format!("10.0.0.{last}"),
            8080,
            "db".to_owned(),
            "10.96.0.1".to_owned(),
            "10.0.0.2".to_owned(),
        )
    };
    assert_eq!(shown, [expect(2, 7), expect(1, 8)]);
    let asks = |filter: v1::FlowFilter| {
        let query = v1::FlowQuery {
            filter: Some(filter),
            ..Default::default()
        };
        ask(&history, &owners, &query).summary.matched_packets
    };
    let services = |name: &str| v1::FlowFilter {
        services: vec![name.to_owned()],
        ..Default::default()
    };
    assert_eq!(
        (
            asks(services("db")),
            asks(services("shop/db")),
            asks(services("d"))
        ),
        (3, 3, 0)
    );
    let peers = |name: &str| v1::FlowFilter {
        peers: vec![name.to_owned()],
        ..Default::default()
    };
    assert_eq!(
        (
            asks(peers("10.0.0.7")),
            asks(peers("service")),
            asks(peers("node"))
        ),
        (2, 3, 0)
    );
    let namespace = v1::FlowFilter {
        namespaces: vec!["shop".to_owned()],
        ..Default::default()
    };
    assert_eq!(asks(namespace), 3);
}

#[test]
fn names_that_come_late_are_those_of_the_past_too() {
    let mut owners = OwnerTable::new(100);
    let nameless = owners.intern(Owner {
        nameless: 1,
        kind: Kind::Process,
        ..Owner::default()
    });
    let mut history = History::new(HistoryLimits {
        kubernetes: true,
        ..limits(1000, 1 << 22, 10_000)
    });
    second(
        &mut history,
        &owners,
        0,
        nameless,
        OwnerId::UNKNOWN,
        ViaId::STRAIGHT,
    );
    // Totals wait for the name.
    assert_eq!((history.totals().len(), history.totals().waiting()), (0, 1));
    owners.rename(nameless, pod("1", ""));
    assert!(history.owners_in_use()(nameless));
    second(
        &mut history,
        &owners,
        1,
        nameless,
        OwnerId::UNKNOWN,
        ViaId::STRAIGHT,
    );
    assert_eq!(history.totals().len(), 0);
    owners.rename(nameless, pod("1", "shop/cart"));
    second(
        &mut history,
        &owners,
        2,
        nameless,
        OwnerId::UNKNOWN,
        ViaId::STRAIGHT,
    );
    assert_eq!(history.totals().of_pod("shop", "cart"), (3, 300));
    assert!(history.totals().unattributed().all(|reason| reason.packets == 0));

    let remote = key(1000, true).dst;
    let found = history.nameless_peers(10, 0, &owners, |address| *address == remote);
    assert_eq!(found.len(), 1);
    let peer = owners.intern(pod("2", "shop/db"));
    history.name_peer(found[0].0, peer);
    let flows = all(&history, &owners).flows;
    assert_eq!(flows.len(), 1);
    let (src, dst) = (
        flows[0].src.clone().unwrap_or_default(),
        flows[0].dst.clone().unwrap_or_default(),
    );
    assert_eq!(
        (src.pod.as_str(), dst.pod.as_str(), flows[0].packets),
        ("cart", "db", 3)
    );

    // A pod that has ended keeps its series as long as the history goes back, and its count for ever.
    history.remove_ended(|_| true);
    assert_eq!(history.totals().removed(), (0, 0));
    for number in 3..20_000 {
        history.begin(START + number * SECOND);
        history.commit(START + (number + 1) * SECOND, &owners);
    }
    history.remove_ended(|labels| labels.pod == "cart");
    assert_eq!(
        (history.totals().len(), history.totals().removed()),
        (0, (3, 300))
    );
}

#[test]
fn what_never_gets_a_name_is_counted_as_such() {
    let mut owners = OwnerTable::new(100);
    let unknown = owners.intern(pod("1", ""));
    let mut history = History::new(HistoryLimits {
        kubernetes: true,
        ..limits(1000, 1 << 22, 10_000)
    });
    for number in 0..10 {
        second(
            &mut history,
            &owners,
            number,
            unknown,
            OwnerId::UNKNOWN,
            ViaId::STRAIGHT,
        );
    }
    let totals = history.totals();
    let unattributed: u64 = totals
        .unattributed()
        .filter(|reason| reason.reason == "pod_unknown")
        .map(|reason| reason.packets)
        .sum();
    assert_eq!(unattributed + totals.waiting(), 10);
    assert!(unattributed >= 5);
}
