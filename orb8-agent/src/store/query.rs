//! Queries over the history.

use std::{cmp::Ordering, collections::BinaryHeap, net::IpAddr};

use orb8_common::network::{FlowKey, kind};
use orb8_proto::v1;
use prost_types::Timestamp;

use super::{
    Direction, History,
    delta::Delta,
    filter::{Filter, OwnerMatches, QueryError, octets},
    flows::Flow,
    message::{self, timestamp},
    segment::{Segment, sum},
};
use crate::identity::owner::{Attribution, Kind, OwnerId, OwnerTable};

/// The flows that a query asked for, in order, and what there is to say about them.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The flows.
    pub flows: Vec<v1::Flow>,
    /// Span, sums before the limit, the ledger of the history, and notes.
    pub summary: v1::FlowSummary,
}

/// As [`Answer`], with the flows as compact rows: 96 bytes each, for an answer without limit.
#[derive(Clone, PartialEq, Debug)]
pub struct Selection {
    /// The rows, in order.
    pub rows: Vec<Row>,
    /// Span, sums before the limit, the ledger of the history, and notes.
    pub summary: v1::FlowSummary,
}

/// One flow of a [`Selection`]; [`History::flow`] makes its message.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Row {
    id: u32,
    generation: u32,
    /// Sorts descending, ties by id ascending.
    rank: u64,
    delta: Delta,
}

impl Row {
    /// What the flow did in the span of the query.
    #[must_use]
    pub const fn delta(&self) -> &Delta {
        &self.delta
    }
}

/// Ordered so that the greatest is the first to be left out.
struct Worst(Row);

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.rank.cmp(&self.0.rank).then(self.0.id.cmp(&other.0.id))
    }
}

impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Worst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Worst {}

/// Rows up to a limit, the best ones.
struct Top {
    limit: usize,
    heap: BinaryHeap<Worst>,
}

impl Top {
    fn push(&mut self, row: Row) {
        let row = Worst(row);
        if self.heap.len() < self.limit {
            self.heap.push(row);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && row < *worst
        {
            *worst = row;
        }
    }

    fn into_rows(self) -> Vec<Row> {
        self.heap
            .into_sorted_vec()
            .into_iter()
            .map(|Worst(row)| row)
            .collect()
    }
}

pub(crate) fn nanoseconds(name: &'static str, time: Option<&Timestamp>) -> Result<Option<u64>, QueryError> {
    let Some(&Timestamp { seconds, nanos }) = time else {
        return Ok(None);
    };
    let error = QueryError::Time { name, seconds, nanos };
    let (Ok(whole), Ok(part @ 0..1_000_000_000)) = (u64::try_from(seconds), u64::try_from(nanos)) else {
        return Err(error);
    };
    whole
        .checked_mul(1_000_000_000)
        .and_then(|ns| ns.checked_add(part))
        .map(Some)
        .ok_or(error)
}

/// A difference from the span asked for that is not worth a sentence: clocks of client and kernel differ by more.
const NEGLIGIBLE_NS: u64 = 1_000_000;

impl History {
    /// Answers a query. `owners` names the ends, `node` this machine; `now_ns` is the Unix time.
    ///
    /// Cost: linear in the records of the span; memory: of the flows returned. Without a limit that can be a
    /// hundred megabytes of messages: use [`History::select`] and [`History::flow`] there.
    ///
    /// # Errors
    /// For a filter, span or sort order that makes no sense; the error names the value.
    pub fn query(
        &self,
        query: &v1::FlowQuery,
        owners: &OwnerTable,
        node: &str,
        now_ns: u64,
    ) -> Result<Answer, QueryError> {
        let Selection { rows, summary } = self.select(query, owners, node, now_ns)?;
        let flows = rows
            .iter()
            .filter_map(|row| self.flow(row, owners, node))
            .collect();
        Ok(Answer { flows, summary })
    }

    /// As [`History::query`], without the messages of the flows.
    ///
    /// # Errors
    /// As [`History::query`].
    pub fn select(
        &self,
        query: &v1::FlowQuery,
        owners: &OwnerTable,
        node: &str,
        now_ns: u64,
    ) -> Result<Selection, QueryError> {
        let filter = Filter::new(query.filter.as_ref())?;
        let sort = v1::FlowSort::try_from(query.sort).map_err(|_| QueryError::Sort(query.sort))?;
        let own_reports = match v1::FlowReports::try_from(query.reports) {
            Ok(v1::FlowReports::All) => false,
            Ok(v1::FlowReports::Own) => true,
            Err(_) => return Err(QueryError::Reports(query.reports)),
        };
        let since = nanoseconds("since", query.since.as_ref())?;
        let until = nanoseconds("until", query.until.as_ref())?;
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(QueryError::EmptySpan);
        }
        let segments: Vec<&Segment> = self
            .segments
            .iter()
            .filter(|segment| {
                since.is_none_or(|since| segment.to_ns > since)
                    && until.is_none_or(|until| segment.from_ns < until)
            })
            .collect();

        let limit = match query.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let mut top = Top {
            limit,
            heap: BinaryHeap::new(),
        };
        let mut matched = Delta::default();
        let mut matched_flows = 0u64;
        let mut hidden = 0u64;
        let mut matching = OwnerMatches::new(&filter, owners);
        let mut readers: Vec<_> = segments.iter().map(|segment| segment.read()).collect();
        sum(&mut readers, |id, delta| {
            let flow = self.flows.get(id);
            if !filter.matches_direction(flow) {
                return;
            }
            let detail = filter.matches_detail(flow);
            if !detail && !flow.is_remainder() {
                return;
            }
            if filter.asks_for_owners() && !matching.matches(flow.owner) {
                // Whose own report it is does not meet the filter; the other end may.
                let mut other_end = || {
                    self.matches_peer(&mut matching, flow, owners)
                        || filter.matches_service_namespace(self.flows.vias.get(flow.via))
                };
                if own_reports || !other_end() {
                    return;
                }
            }
            if filter.asks_for_peers() {
                let peer = self.reported_peer(flow, owners).unwrap_or(flow.peer);
                if !filter.matches_peer(flow, &owners.get(peer), self.flows.vias.get(flow.via)) {
                    return;
                }
            }
            if !detail {
                hidden = hidden.saturating_add(delta.packets);
                return;
            }
            matched_flows += 1;
            matched.packets = matched.packets.saturating_add(delta.packets);
            matched.bytes = matched.bytes.saturating_add(delta.bytes);
            let rank = match sort {
                v1::FlowSort::Bytes => delta.bytes,
                v1::FlowSort::Packets => delta.packets,
                v1::FlowSort::Last => delta.last_ns,
                v1::FlowSort::First if delta.has_packets() => u64::MAX - delta.first_ns,
                v1::FlowSort::First => 0,
                v1::FlowSort::Rtt => u64::from(flow.rtt_us),
                v1::FlowSort::Retransmits => delta.retransmits,
            };
            top.push(Row {
                id,
                generation: flow.generation,
                rank,
                delta: *delta,
            });
        });

        let idle = since.or(until).unwrap_or(if self.last_to_ns() == 0 {
            now_ns
        } else {
            self.last_to_ns()
        });
        let from_ns = segments.first().map_or(idle, |segment| segment.from_ns);
        let to_ns = segments.last().map_or(idle, |segment| segment.to_ns);
        let mut notes = self.notes(since, from_ns, &segments);
        if hidden > 0 {
            notes.push(format!(
                "{hidden} packets are left out: they are counted by owner and direction without their flow, so \
                 it is not known whether they match the filter."
            ));
        }
        Ok(Selection {
            rows: top.into_rows(),
            summary: v1::FlowSummary {
                node: node.to_owned(),
                from: Some(timestamp(from_ns)),
                to: Some(timestamp(to_ns)),
                matched_flows,
                matched_packets: matched.packets,
                matched_bytes: matched.bytes,
                ledger: self.ledger(),
                notes,
                nodes: Vec::new(),
            },
        })
    }

    /// What a reader must know about the span of an answer.
    fn notes(&self, since: Option<u64>, from_ns: u64, segments: &[&Segment]) -> Vec<String> {
        let mut notes = Vec::new();
        let seconds = |ns: u64| ns as f64 / 1e9;
        if let Some(since) = since
            && !segments.is_empty()
        {
            if from_ns + NEGLIGIBLE_NS < since {
                notes.push(format!(
                    "The answer starts {:.3} s before the time asked for: the history keeps that time in \
                     segments of {:.3} s.",
                    seconds(since - from_ns),
                    segments
                        .first()
                        .map_or(0.0, |segment| seconds(segment.duration_ns())),
                ));
            } else if self
                .covered()
                .is_some_and(|(oldest, _)| oldest == from_ns && from_ns > since + NEGLIGIBLE_NS)
            {
                notes.push(format!(
                    "The answer starts {:.3} s after the time asked for, where the history begins.",
                    seconds(from_ns - since)
                ));
            }
        }
        let evicted = self.evicted();
        let oldest = self.covered().map(|(oldest, _)| oldest);
        if evicted.segments > 0 && oldest == Some(from_ns) {
            notes.push(format!(
                "For want of memory, {} packets ({} bytes) left the history before their time since the start.",
                evicted.packets, evicted.bytes
            ));
        }
        let folded: u64 = segments.iter().map(|segment| segment.folded).sum();
        if folded > 0 {
            notes.push(format!(
                "For want of room, {folded} records of flows that had ended are summed by owner and direction."
            ));
        }
        notes
    }

    fn matches_peer(&self, matching: &mut OwnerMatches<'_>, flow: &Flow, owners: &OwnerTable) -> bool {
        if flow.is_remainder() {
            return false;
        }
        matching.matches(flow.peer)
            || self
                .reported_peer(flow, owners)
                .is_some_and(|peer| matching.matches(peer))
    }

    /// The peer of a flow by its own report, where it is not known from its address: the workload that saw the
    /// same packets from the other side, if exactly one did.
    fn reported_peer(&self, flow: &Flow, owners: &OwnerTable) -> Option<OwnerId> {
        let mut found: Option<OwnerId> = None;
        let translated = self.as_the_peer_sees_it(flow);
        let keys = [Some(flow.key), translated].into_iter().flatten();
        for (_, other) in keys.flat_map(|key| self.flows.observations(&key)) {
            // The sockets of one cgroup may talk to each other; an interface does not talk to itself.
            let elsewhere = other.key.point != flow.key.point || other.key.kind & kind::SOCKET != 0;
            if other.direction() == flow.direction() || !elsewhere || found == Some(other.owner) {
                continue;
            }
            let owner = owners.get(other.owner);
            if !matches!(owner.kind, Kind::Process | Kind::Pod) || owner.name().is_empty() {
                continue;
            }
            if found.is_some() {
                return None;
            }
            found = Some(other.owner);
        }
        // Only now, for hardly any flow has other observations.
        found?;
        let peer = owners.get(flow.peer);
        (peer.kind == Kind::Host || peer.attribution == Attribution::Unknown)
            .then_some(found)
            .flatten()
    }

    /// The key that the packets of a translated connection have at its other end.
    fn as_the_peer_sees_it(&self, flow: &Flow) -> Option<FlowKey> {
        let via = self.flows.vias.get(flow.via)?;
        let mut key = flow.key;
        let set = |address: &mut [u8; 16], port: &mut u16, to: Option<(IpAddr, u16)>| {
            if let Some((ip, number)) = to {
                (*address, *port) = (octets(ip), number);
            }
        };
        set(&mut key.src, &mut key.sport, via.src);
        set(&mut key.dst, &mut key.dport, via.dst);
        if key == flow.key {
            // These are the backend's packets: its client has the Service in their place.
            match flow.direction() {
                Direction::Egress => set(&mut key.src, &mut key.sport, via.asked),
                Direction::Ingress => set(&mut key.dst, &mut key.dport, via.asked),
            }
        }
        (key != flow.key).then_some(key)
    }

    /// The message of a row; `None` if the history has forgotten the flow since. Cost: some ten allocations.
    #[must_use]
    pub fn flow(&self, row: &Row, owners: &OwnerTable, node: &str) -> Option<v1::Flow> {
        let flow = self.flows.get_live(row.id, row.generation)?;
        let reported = if flow.is_remainder() {
            None
        } else {
            self.reported_peer(flow, owners)
        };
        let known = message::Known {
            reporter: &owners.get(flow.owner),
            peer: &owners.get(reported.unwrap_or(flow.peer)),
            peer_reported: reported.is_some(),
            interface: self.flows.points.get(flow.point),
            via: self.flows.vias.get(flow.via),
            node,
        };
        Some(message::flow(flow, &row.delta, &known))
    }
}

impl From<Direction> for v1::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}
