//! Joined flows: which of their differences may still be on the way.

use orb8_proto::v1::{Edge, Endpoint, Flow};
use prost_types::Timestamp;

use crate::timestamp;

/// A flow that had a packet so shortly before the agents' last count was still running: one end may have counted
/// what the other has not yet. Agents count each second, and their clocks differ.
const RUNNING_SECONDS: f64 = 3.0;

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
