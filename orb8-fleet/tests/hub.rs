//! Many agents asked as one: what comes of it when all answer, and when some do not.

#[path = "support/asked.rs"]
mod asked;
#[path = "support/story.rs"]
mod story;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use asked::{Client, hub, hub_with, quick, runtime, states};
use orb8_fleet::{Clock, Limits, Member, PodNodes, Reach, Wanted};
use orb8_proto::v1::{
    Endpoint, Flow, FlowFilter, FlowQuery, FlowReports, FlowSort, FlowSummary, LatencyBucket,
    ListNodesRequest, ListPodsRequest, NodeCursor, NodeInfo, NodeState, QueryStatusRequest, Reporter,
    SetSyscallModeRequest, StreamEventsRequest, SyscallGroup, SyscallMode, SyscallQuery, SyscallRow,
    query_edges_response, query_flows_response::Part, query_syscalls_response, stream_events_response::Event,
};
use proptest::prelude::*;
use prost_types::Timestamp;
use story::{Behaviour, Story, at};
use tonic::Code;

/// A flow of so many bytes, last seen then.
fn flow(bytes: u64, last: i64) -> Flow {
    Flow {
        bytes,
        packets: 1,
        first: at(last),
        last: at(last),
        ..Flow::default()
    }
}

async fn flows(client: &Client, query: FlowQuery) -> Result<(Vec<Flow>, FlowSummary), tonic::Status> {
    let mut stream = client.clone().query_flows(query).await?.into_inner();
    let (mut flows, mut summary) = (Vec::new(), None);
    while let Some(response) = stream.message().await? {
        match response.part {
            Some(Part::Batch(batch)) => flows.extend(batch.flows),
            Some(Part::Summary(last)) => summary = Some(last),
            None => {}
        }
    }
    Ok((flows, summary.expect("each answer has a summary")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn the_first_of_all_are_the_first_of_a_sort_of_everything(
        nodes in prop::collection::vec(prop::collection::vec((0..50_u64, 0..50_i64), 0..30), 1..12),
        limit in 0..40_u32,
        by_time in any::<bool>(),
    ) {
        runtime().block_on(async {
            let stories: Vec<_> = nodes
                .iter()
                .enumerate()
                .map(|(index, told)| {
                    Story::new(&format!("n{index}"), told.iter().map(|(bytes, last)| flow(*bytes, *last)).collect())
                })
                .collect();
            let sort = if by_time { FlowSort::Last } else { FlowSort::Bytes };
            let asked = hub(&stories, Limits::default()).await;
            let query = FlowQuery { limit, sort: sort.into(), ..FlowQuery::default() };
            let (merged, summary) = flows(&asked.client, query).await.unwrap();
            let key = |bytes: u64, last: i64| if by_time { last } else { bytes.cast_signed() };
            let mut expected: Vec<i64> = nodes.iter().flatten().map(|(bytes, last)| key(*bytes, *last)).collect();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            let all = expected.len() as u64;
            if limit > 0 {
                expected.truncate(limit as usize);
            }
            let found: Vec<i64> = merged.iter().map(|flow| key(flow.bytes, flow.last.unwrap().seconds)).collect();
            assert_eq!(found, expected);
            assert_eq!(summary.matched_flows, all);
            let bytes: u64 = nodes.iter().flatten().map(|(bytes, _)| bytes).sum();
            assert_eq!(summary.matched_bytes, bytes);
        });
    }

    #[test]
    fn sums_over_nodes_are_exact(
        nodes in prop::collection::vec(prop::collection::vec((0..4_i64, 1..1000_u64, 0..4_u32), 0..8), 2..5),
        limit in 0..3_u32,
    ) {
        runtime().block_on(async {
            let name = |number: i64| format!("call{number}");
            let stories: Vec<_> = nodes
                .iter()
                .enumerate()
                .map(|(index, rows)| {
                    let story = Story::new(&format!("n{index}"), Vec::new());
                    // An agent tells each call once.
                    let mut told = std::collections::BTreeMap::new();
                    for (number, count, bucket) in rows {
                        told.entry(*number).or_insert((*count, *bucket));
                    }
                    *story.rows.lock().unwrap() = told
                        .into_iter()
                        .map(|(number, (count, bucket))| SyscallRow {
                            syscall: name(number),
                            number,
                            count,
                            returned: count,
                            errors: [("ENOENT".to_owned(), count)].into(),
                            failed: count,
                            total_ns: Some(count * 10),
                            p50_ns: Some(1 << bucket),
                            buckets: vec![LatencyBucket { below_ns: 1 << bucket, count }],
                            ..SyscallRow::default()
                        })
                        .collect();
                    story
                })
                .collect();
            let mut expected = std::collections::BTreeMap::<String, (u64, std::collections::BTreeMap<u64, u64>)>::new();
            for story in &stories {
                for row in story.rows.lock().unwrap().iter() {
                    let sum = expected.entry(row.syscall.clone()).or_default();
                    sum.0 += row.count;
                    *sum.1.entry(row.buckets[0].below_ns).or_default() += row.count;
                }
            }
            let asked = hub(&stories, Limits::default()).await;
            let query = SyscallQuery { by: vec![SyscallGroup::Syscall.into()], limit, ..SyscallQuery::default() };
            let mut stream = asked.client.clone().query_syscalls(query).await.unwrap().into_inner();
            let (mut rows, mut summary) = (Vec::new(), None);
            while let Some(response) = stream.message().await.unwrap() {
                match response.part.unwrap() {
                    query_syscalls_response::Part::Batch(batch) => rows.extend(batch.rows),
                    query_syscalls_response::Part::Summary(last) => summary = Some(last),
                }
            }
            let summary = summary.unwrap();
            assert_eq!(summary.matched_rows, expected.len() as u64);
            let shown = if limit == 0 { expected.len() } else { expected.len().min(limit as usize) };
            assert_eq!(rows.len(), shown);
            assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(row.count)));
            for row in &rows {
                let (count, buckets) = &expected[&row.syscall];
                assert_eq!((row.count, row.failed, row.errors["ENOENT"]), (*count, *count, *count));
                assert_eq!(row.total_ns, Some(count * 10));
                let told: std::collections::BTreeMap<u64, u64> =
                    row.buckets.iter().map(|bucket| (bucket.below_ns, bucket.count)).collect();
                assert_eq!(told, *buckets);
                // The least bound that has at least half of all calls below it.
                let mut below = 0;
                let median = buckets.iter().find(|(_, count)| { below += **count; below * 2 >= row.count });
                assert_eq!(row.p50_ns, median.map(|(bound, _)| *bound));
            }
            if limit > 0 && shown > 0 {
                let most = expected.values().map(|(count, _)| *count).max().unwrap();
                assert_eq!(rows[0].count, most);
            }
        });
    }
}

#[tokio::test]
async fn a_node_is_asked_by_its_name_where_its_agent_is_known_by_an_address() {
    let stories: Vec<_> = (1..=2)
        .map(|n| Story::new(&format!("n{n}"), vec![flow(n, 1)]))
        .collect();
    let mut members = Vec::new();
    for (story, address) in stories.iter().zip(["10.0.0.1:9090", "10.0.0.2:9090"]) {
        let mut member = story.member().await;
        member.info.name = std::mem::replace(&mut member.name, address.to_owned());
        members.push(member);
    }
    let asked = hub_with(members, quick(), None);
    for (name, bytes) in [("n2", 2), ("10.0.0.1:9090", 1)] {
        let query = FlowQuery {
            nodes: vec![name.to_owned()],
            ..FlowQuery::default()
        };
        let (found, _) = flows(&asked.client, query).await.unwrap();
        assert_eq!(found.iter().map(|flow| flow.bytes).collect::<Vec<_>>(), [bytes]);
    }
}

#[tokio::test]
async fn only_who_has_more_of_the_first_is_asked_for_more() {
    let told = |from: u64| (0..20).map(|n| flow(from + n, 1)).collect();
    let stories: Vec<_> = (0..8)
        .map(|n| Story::new(&format!("n{n}"), told(if n == 3 { 1000 } else { 100 })))
        .collect();
    let asked = hub(&stories, quick()).await;
    let query = FlowQuery {
        limit: 10,
        ..FlowQuery::default()
    };
    let (first, summary) = flows(&asked.client, query).await.unwrap();
    let bytes: Vec<u64> = first.iter().map(|flow| flow.bytes).collect();
    assert_eq!(bytes, (1010..1020).rev().collect::<Vec<u64>>());
    assert_eq!(summary.matched_flows, 160);
    let limits = |story: &Story| -> Vec<u32> {
        story
            .asked
            .lock()
            .unwrap()
            .iter()
            .map(|query| query.limit)
            .collect()
    };
    assert_eq!(limits(&stories[3]), [4, 10]);
    assert_eq!(limits(&stories[0]), [4]);
}

#[tokio::test]
async fn who_does_not_answer_is_named_and_keeps_nobody_waiting() {
    let good = Story::new("good", vec![flow(1, 1)]);
    let silent = Story::behaving("silent", Behaviour::Silent);
    let refusing = Story::behaving("refusing", Behaviour::Refuse);
    let breaking = Story::behaving("breaking", Behaviour::BreakAfterFirst);
    *breaking.flows.lock().unwrap() = vec![flow(5, 1), flow(4, 1)];
    let mut members = vec![
        good.member().await,
        silent.member().await,
        refusing.member().await,
        breaking.member().await,
        story::unreachable("unreachable"),
    ];
    members.push(Member {
        reach: Reach::Away {
            state: NodeState::Silent,
            reason: "nothing heard for 5 s".to_owned(),
        },
        ..story::unreachable("away")
    });
    let asked = hub_with(members, quick(), None);
    let began = Instant::now();
    let (told, summary) = flows(&asked.client, FlowQuery::default()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(
        states(&summary.nodes),
        [
            ("good", NodeState::Answered),
            ("silent", NodeState::Silent),
            ("refusing", NodeState::Refused),
            ("breaking", NodeState::Partial),
            ("unreachable", NodeState::Unreachable),
            ("away", NodeState::Silent),
        ]
    );
    // What came of an answer that broke off is there; how much matched is only summed over those that said so.
    assert_eq!(told.len(), 3);
    assert_eq!((summary.matched_flows, summary.matched_bytes), (1, 1));
    assert!(
        summary.nodes[3].reason.contains("broke off after 2 flows"),
        "{}",
        summary.nodes[3].reason
    );
    assert_eq!(summary.nodes[5].reason, "nothing heard for 5 s");

    let mut statuses = asked
        .client
        .clone()
        .query_status(QueryStatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut came = Vec::new();
    while let Some(status) = statuses.message().await.unwrap() {
        came.push((status.answer.unwrap().name, status.status.is_some()));
    }
    assert_eq!(came.iter().filter(|(_, came)| *came).count(), 2, "{came:?}");
    assert_eq!(came.len(), 6);
    let mut nodes = asked
        .client
        .clone()
        .list_nodes(ListNodesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut listed = 0;
    while let Some(node) = nodes.message().await.unwrap() {
        listed += 1;
        assert_eq!(node.state() == NodeState::Silent, node.name == "away");
    }
    assert_eq!(listed, 6);
    assert!(asked.hub.counts().silent.load(Ordering::Relaxed) >= 1);
}

#[tokio::test]
async fn nobody_is_an_error_and_nonsense_is_the_asker_s() {
    let asked = hub_with(
        vec![story::unreachable("a"), story::unreachable("b")],
        quick(),
        None,
    );
    let error = flows(&asked.client, FlowQuery::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().starts_with("no answer from node a"), "{error}");
    let error = asked
        .client
        .clone()
        .list_pods(ListPodsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);

    let (good, bad) = (
        Story::new("good", Vec::new()),
        Story::behaving("bad", Behaviour::Invalid),
    );
    let asked = hub(&[good, bad], quick()).await;
    let error = flows(&asked.client, FlowQuery::default()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::InvalidArgument, "not to my liking")
    );
    let nowhere = FlowQuery {
        nodes: vec!["nowhere".to_owned()],
        ..FlowQuery::default()
    };
    let error = flows(&asked.client, nowhere).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.message().contains("nowhere") && error.message().contains("good"),
        "{error}"
    );
}

/// Pods are on `n1`, as far as it is known.
struct OnFirst;

impl PodNodes for OnFirst {
    fn nodes_of(&self, wanted: &Wanted) -> Option<BTreeSet<String>> {
        (!wanted.pods.contains(&"unknown".to_owned())).then(|| ["n1".to_owned()].into())
    }
}

#[tokio::test]
async fn a_pod_where_no_agent_is_is_missed() {
    let member = Story::new("n2", vec![flow(2, 1)]).member().await;
    let asked = hub_with(vec![member], quick(), Some(Arc::new(OnFirst)));
    let query = FlowQuery {
        filter: Some(FlowFilter {
            pods: vec!["cart".to_owned()],
            ..FlowFilter::default()
        }),
        reports: FlowReports::Own.into(),
        ..FlowQuery::default()
    };
    let error = flows(&asked.client, query).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("no agent is known there"), "{error}");
}

#[tokio::test]
async fn only_who_can_hold_the_answer_is_asked() {
    let stories = [
        Story::new("n1", vec![flow(1, 1)]),
        Story::new("n2", vec![flow(2, 1)]),
    ];
    let members = vec![stories[0].member().await, stories[1].member().await];
    let asked = hub_with(members, quick(), Some(Arc::new(OnFirst)));
    let count = || stories.each_ref().map(|story| story.asked.lock().unwrap().len());
    let query = |pods: &str, reports: FlowReports| FlowQuery {
        filter: Some(FlowFilter {
            pods: vec![pods.to_owned()],
            ..FlowFilter::default()
        }),
        reports: reports.into(),
        ..FlowQuery::default()
    };
    let (told, summary) = flows(&asked.client, query("cart", FlowReports::Own))
        .await
        .unwrap();
    assert_eq!((told.len(), count()), (1, [1, 0]));
    assert_eq!(
        states(&summary.nodes),
        [("n1", NodeState::Answered), ("n2", NodeState::NotAsked)]
    );
    // Either end may be meant, or it is not certain where the pods are, or no pod is asked for.
    flows(&asked.client, query("cart", FlowReports::All))
        .await
        .unwrap();
    assert_eq!(count(), [2, 1]);
    flows(&asked.client, query("unknown", FlowReports::Own))
        .await
        .unwrap();
    assert_eq!(count(), [3, 2]);
    flows(
        &asked.client,
        FlowQuery {
            reports: FlowReports::Own.into(),
            ..FlowQuery::default()
        },
    )
    .await
    .unwrap();
    assert_eq!(count(), [4, 3]);
    let only = FlowQuery {
        nodes: vec!["n2".to_owned()],
        ..FlowQuery::default()
    };
    let (told, summary) = flows(&asked.client, only).await.unwrap();
    assert_eq!((told[0].bytes, count()), (2, [4, 4]));
    assert_eq!(summary.nodes.len(), 1);
    // What is handed on names no node: an agent may call itself otherwise.
    assert!(stories[1].asked.lock().unwrap().last().unwrap().nodes.is_empty());
}

#[tokio::test]
async fn times_are_told_and_asked_by_one_clock() {
    const HOUR: i64 = 3600;
    let (ahead, right) = (
        Story::new("ahead", vec![flow(9, 10_000 + HOUR)]),
        Story::new("right", vec![flow(8, 10_000)]),
    );
    *ahead.to.lock().unwrap() = at(10_005 + HOUR);
    *right.to.lock().unwrap() = at(10_006);
    let mut members = vec![ahead.member().await, right.member().await];
    members[0].clock = Clock {
        offset_ns: HOUR * 1_000_000_000,
        error_ns: 1_000_000,
    };
    // Less than the measurement may be wrong by: no difference.
    members[1].clock = Clock {
        offset_ns: 500_000,
        error_ns: 600_000,
    };
    let asked = hub_with(members, quick(), None);
    let since = FlowQuery {
        since: at(9_000),
        until: at(11_000),
        ..FlowQuery::default()
    };
    let (told, summary) = flows(&asked.client, since).await.unwrap();
    assert_eq!(
        told.iter().map(|flow| flow.last).collect::<Vec<_>>(),
        [at(10_000), at(10_000)]
    );
    let spans = |story: &Story| {
        let asked = story.asked.lock().unwrap();
        let last = asked.last().unwrap();
        (last.since, last.until)
    };
    assert_eq!(spans(&ahead), (at(9_000 + HOUR), at(11_000 + HOUR)));
    assert_eq!(spans(&right), (at(9_000), at(11_000)));
    let ends: Vec<Option<Timestamp>> = summary.nodes.iter().map(|node| node.to).collect();
    assert_eq!(ends, [at(10_005), at(10_006)]);
    // Cursors are each node's own, and come back as they were told.
    let cursors: Vec<NodeCursor> = summary
        .nodes
        .iter()
        .map(|node| NodeCursor {
            name: node.name.clone(),
            time: node.cursor,
        })
        .collect();
    assert_eq!(cursors[0].time, at(10_005 + HOUR));
    flows(
        &asked.client,
        FlowQuery {
            cursors,
            ..FlowQuery::default()
        },
    )
    .await
    .unwrap();
    assert_eq!(
        (spans(&ahead).0, spans(&right).0),
        (at(10_005 + HOUR), at(10_006))
    );
}

#[tokio::test]
async fn both_reports_of_an_edge_are_one_line() {
    let end = |ip: &str, uid: &str| {
        Some(Endpoint {
            ip: ip.to_owned(),
            port: 80,
            pod_uid: uid.to_owned(),
            attribution: 1,
            ..Endpoint::default()
        })
    };
    let report = |reporter: Reporter, node: &str, packets: u64| Flow {
        node: node.to_owned(),
        reporter: reporter.into(),
        ip_version: 4,
        protocol: 6,
        src: end("10.0.0.1", "a"),
        dst: end("10.0.0.2", "b"),
        packets,
        bytes: packets * 100,
        ..flow(packets * 100, 5)
    };
    let stories = [
        Story::new("n1", vec![report(Reporter::Source, "n1", 10)]),
        Story::new("n2", vec![report(Reporter::Destination, "n2", 7), flow(1, 1)]),
    ];
    let asked = hub(&stories, quick()).await;
    let query = FlowQuery {
        limit: 1,
        ..FlowQuery::default()
    };
    let mut stream = asked
        .client
        .clone()
        .query_edges(query.clone())
        .await
        .unwrap()
        .into_inner();
    let (mut edges, mut summary) = (Vec::new(), None);
    while let Some(response) = stream.message().await.unwrap() {
        match response.part.unwrap() {
            query_edges_response::Part::Batch(batch) => edges.extend(batch.edges),
            query_edges_response::Part::Summary(last) => summary = Some(last),
        }
    }
    let summary = summary.unwrap();
    assert_eq!((edges.len(), summary.edges), (1, 2));
    assert_eq!(
        (edges[0].lost_packets(), edges[0].lost_bytes()),
        (Some(3), Some(300))
    );
    let on = |counts: &Option<orb8_proto::v1::EdgeCounts>| counts.as_ref().unwrap().node.clone();
    assert_eq!(
        (on(&edges[0].sent), on(&edges[0].received)),
        ("n1".to_owned(), "n2".to_owned())
    );
    // More than may be held is refused, and no total is told.
    let tight = hub(
        &stories,
        Limits {
            max_rows: 2,
            ..quick()
        },
    )
    .await;
    let mut stream = tight
        .client
        .clone()
        .query_edges(query)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        stream.message().await.unwrap_err().code(),
        Code::ResourceExhausted
    );
}

#[tokio::test]
async fn events_go_on_when_a_member_comes_back() {
    let (steady, passing) = (
        Story::new("steady", Vec::new()),
        Story::new("passing", Vec::new()),
    );
    let members = vec![steady.member().await, passing.member().await];
    let asked = hub_with(members.clone(), quick(), None);
    let request = StreamEventsRequest {
        batch: true,
        ..StreamEventsRequest::default()
    };
    let mut stream = asked
        .client
        .clone()
        .stream_events(request)
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    let wait = async |seen: &mut Vec<Event>,
                      stream: &mut tonic::Streaming<_>,
                      done: &dyn Fn(&[Event]) -> bool| {
        tokio::time::timeout(Duration::from_secs(10), async {
            while !done(seen) {
                let message: orb8_proto::v1::StreamEventsResponse = stream.message().await.unwrap().unwrap();
                match message.event.unwrap() {
                    Event::Batch(batch) => {
                        seen.extend(batch.events.into_iter().filter_map(|event| event.event));
                    }
                    event => seen.push(event),
                }
            }
        })
        .await
        .expect("events in time");
    };
    let told_of = |events: &[Event], name: &str, state: NodeState| {
        events
            .iter()
            .any(|event| matches!(event, Event::Node(node) if node.name == name && node.state() == state))
    };
    let from = |events: &[Event], name: &str| {
        events.iter().any(|event| {
            matches!(event, Event::Network(event) if event.flow.as_ref().is_some_and(|flow| flow.node == name))
        })
    };
    wait(&mut seen, &mut stream, &|seen| {
        from(seen, "steady") && from(seen, "passing")
    })
    .await;
    assert!(told_of(&seen, "steady", NodeState::Answered));
    // It goes,
    asked.members.send_replace(Arc::from(vec![members[0].clone()]));
    wait(&mut seen, &mut stream, &|seen| {
        told_of(seen, "passing", NodeState::Unreachable)
    })
    .await;
    // and comes back.
    seen.clear();
    asked.members.send_replace(Arc::from(members.clone()));
    wait(&mut seen, &mut stream, &|seen| {
        from(seen, "passing") && from(seen, "steady")
    })
    .await;
    assert!(told_of(&seen, "passing", NodeState::Answered));
    // Who asked is gone: so are the streams of the members.
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), async {
        while steady.streams.load(Ordering::Relaxed) + passing.streams.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the members' streams end");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off_and_counted() {
    // More than fits into all windows on the way.
    let long = |bytes| Flow {
        node: "x".repeat(1000),
        ..flow(bytes, 1)
    };
    let story = Story::new("n1", (0..6000).map(long).collect());
    let other = Story::new("n2", (0..6000).map(long).collect());
    let limits = Limits {
        patience: Duration::from_millis(100),
        queries: 1,
        ..Limits::default()
    };
    let asked = hub(&[story, other], limits).await;
    let stream = asked
        .client
        .clone()
        .query_flows(FlowQuery::default())
        .await
        .unwrap();
    let refused = flows(
        &asked.client,
        FlowQuery {
            limit: 1,
            ..FlowQuery::default()
        },
    )
    .await
    .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let counts = asked.hub.counts();
    tokio::time::timeout(Duration::from_secs(10), async {
        while counts.cut_off.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("cut off in time");
    assert_eq!(counts.refused.load(Ordering::Relaxed), 1);
    drop(stream);
    // Its place is free again.
    flows(
        &asked.client,
        FlowQuery {
            limit: 1,
            ..FlowQuery::default()
        },
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn all_are_switched_or_those_that_are_named() {
    let stories = [Story::new("n1", Vec::new()), Story::new("n2", Vec::new())];
    let asked = hub(&stories, quick()).await;
    let set = async |mode: SyscallMode, nodes: &[&str]| {
        let request = SetSyscallModeRequest {
            mode: mode.into(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        };
        asked
            .client
            .clone()
            .set_syscall_mode(request)
            .await
            .unwrap()
            .into_inner()
    };
    let all = set(SyscallMode::Latency, &[]).await;
    assert_eq!(
        (all.nodes.len(), all.mode(), all.node.as_str()),
        (2, SyscallMode::Latency, "2 nodes")
    );
    let one = set(SyscallMode::Off, &["n2"]).await;
    assert_eq!((one.nodes.len(), one.node.as_str()), (1, "n2"));
    assert_eq!(
        stories.each_ref().map(|story| story.mode.load(Ordering::Relaxed)),
        [3, 1]
    );
    let info: Vec<NodeInfo> = {
        let mut stream = asked
            .client
            .clone()
            .list_nodes(ListNodesRequest::default())
            .await
            .unwrap()
            .into_inner();
        let mut all = Vec::new();
        while let Some(info) = stream.message().await.unwrap() {
            all.push(info);
        }
        all
    };
    assert_eq!(info.len(), 2);
}
