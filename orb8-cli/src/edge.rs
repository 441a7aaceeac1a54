//! Joined flows: their order, and which of their differences may still be on the way.

use std::cmp::Reverse;

use anyhow::bail;
use orb8_proto::{
    edges::{self, Edge},
    v1::{Endpoint, Flow, FlowSort},
};
use prost_types::Timestamp;

use crate::{query::Answer, timestamp};

/// Most flows that are held to be joined: about 1 GiB.
const MAX_FLOWS: usize = 1_000_000;
/// A flow that had a packet so shortly before the agents' last count was still running: one end may have counted
/// what the other has not yet. Agents count each second, and their clocks differ.
const RUNNING_SECONDS: f64 = 3.0;

/// Takes all flows of an answer and joins them.
///
/// # Errors
/// If the answer breaks off, or is too large to be held.
pub(crate) async fn join(answer: &mut Answer) -> anyhow::Result<Vec<Edge>> {
    let mut flows: Vec<Flow> = Vec::new();
    while let Some(more) = answer.next().await? {
        flows.extend(more);
        if flows.len() > MAX_FLOWS {
            bail!(
                "more than {MAX_FLOWS} flows are too many to join: ask for less with --since, --namespace or --pod"
            );
        }
    }
    Ok(edges::join(flows))
}

/// Sorts as flows are sorted; equal ones stay in their order.
pub(crate) fn sort(edges: &mut [Edge], sort: FlowSort) {
    let time = |time: Option<Timestamp>| time.map(|time| (time.seconds, time.nanos));
    match sort {
        FlowSort::Bytes => edges.sort_by_key(|edge| Reverse(edge.counts().map(|counts| counts.bytes))),
        FlowSort::Packets => edges.sort_by_key(|edge| Reverse(edge.counts().map(|counts| counts.packets))),
        FlowSort::Last => edges.sort_by_key(|edge| Reverse(time(edge.last))),
        FlowSort::First => edges.sort_by_key(|edge| (edge.first.is_none(), time(edge.first))),
        FlowSort::Rtt => edges.sort_by_key(|edge| Reverse(edge.rtt_us)),
        FlowSort::Retransmits => edges.sort_by_key(|edge| Reverse(edge.retransmits)),
    }
}

/// Whether both ends have counted all of it, as far as its last packet and `to`, the time until which the agents
/// have counted, tell.
pub(crate) fn is_settled(edge: &Edge, to: Option<&Timestamp>) -> bool {
    match (edge.last.as_ref(), to) {
        (Some(last), Some(to)) => timestamp::seconds_between(last, to) >= RUNNING_SECONDS,
        (None, _) => true,
        (_, None) => false,
    }
}

/// The edge as a flow from its source, for what is named and shown alike.
pub(crate) fn as_flow(edge: &Edge) -> Flow {
    let known = |end: &Option<Endpoint>| end.clone();
    Flow {
        reporter: orb8_proto::v1::Reporter::Source.into(),
        direction: orb8_proto::v1::Direction::Egress.into(),
        ip_version: edge.ip_version,
        protocol: edge.protocol,
        ethertype: edge.ethertype,
        src: known(&edge.src),
        dst: known(&edge.dst),
        icmp_type: edge.icmp_type,
        icmp_code: edge.icmp_code,
        tcp_flags: edge.tcp_flags,
        service: edge.service.clone(),
        fragment: edge.fragment,
        malformed: edge.malformed,
        remainder: edge.remainder,
        ..Flow::default()
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::edges::Counts;

    use super::*;

    fn edge(bytes: u64, last: i64) -> Edge {
        Edge {
            received: Some(Counts {
                bytes,
                ..Counts::default()
            }),
            last: Some(Timestamp {
                seconds: last,
                nanos: 0,
            }),
            ..Edge::default()
        }
    }

    #[test]
    fn sorted_by_what_is_known_of_either_end() {
        let mut edges = [edge(1, 5), edge(3, 4), edge(2, 9)];
        sort(&mut edges, FlowSort::Bytes);
        assert_eq!(
            edges.each_ref().map(|edge| edge.counts().unwrap().bytes),
            [3, 2, 1]
        );
        sort(&mut edges, FlowSort::Last);
        assert_eq!(
            edges.each_ref().map(|edge| edge.counts().unwrap().bytes),
            [2, 1, 3]
        );
    }

    #[test]
    fn what_ran_a_moment_ago_is_not_settled() {
        let to = Timestamp {
            seconds: 10,
            nanos: 0,
        };
        assert!(is_settled(&edge(1, 5), Some(&to)));
        assert!(!is_settled(&edge(1, 9), Some(&to)));
        assert!(!is_settled(&edge(1, 5), None));
    }
}
