//! Flows of many nodes: one answer in the sort order of all, with the limit of all.
//!
//! Each member sends its flows sorted, and no more than the limit; the heads of these streams are merged. A flow is a
//! report of one node, so that the first of all are among the first of each: the answer is exact.
//!
//! Of the first 50 of a thousand members, each has hardly one. They are asked for a few first; only those whose last one of
//! these is still among the first of all have more to say, and are asked again, for as many as the limit.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use futures::StreamExt as _;
use orb8_proto::{
    Responses,
    v1::{
        Flow, FlowBatch, FlowQuery, FlowReports, FlowSort, FlowSummary, NodeAnswer, QueryFlowsResponse,
        query_flows_response::Part,
    },
};
use prost_types::Timestamp;
use tonic::{Code, Status, Streaming};

use crate::{
    ask::{Asked, Selection, ToldBy as _, in_order, nobody},
    hosts::name_hosts,
    hub::{Hub, Wanted},
    ledger::trimmed,
    times::{earlier_by, earliest, latest, shift, shift_flow},
};

/// Flows of one message of the answer.
const BATCH: usize = 512;
/// Flows that are held of all members together while they are merged, some hundred bytes each: the more members, the
/// smaller the batches that each is asked for.
const HELD: usize = 65_536;
/// Flows that each is asked for first, at least.
const FEW: usize = 4;

/// An answer of many members as it arrives.
#[derive(Debug)]
pub(crate) struct Merged {
    sources: Vec<Source>,
    /// The first flow of each source that has one: its place in the order, and its source.
    heads: BinaryHeap<Reverse<(u128, usize)>>,
    sort: FlowSort,
    /// Flows that may still be given; `None`: any number.
    left: Option<u64>,
    others: Vec<NodeAnswer>,
    /// Names of the members.
    order: Vec<String>,
}

/// One member's part.
#[derive(Debug)]
struct Source {
    asked: Asked,
    stream: Option<Streaming<QueryFlowsResponse>>,
    head: VecDeque<Flow>,
    given: u64,
    summary: Option<FlowSummary>,
    error: Option<Status>,
    correction: i64,
    /// Whether it is one of several nodes.
    many: bool,
    /// Whether it was asked a second time, for all that the answer can have of it.
    asked_again: bool,
}

impl Source {
    async fn open(asked: Asked, query: FlowQuery, many: bool) -> Self {
        let correction = asked.member.clock.correction_ns();
        let mut source = Self {
            asked,
            stream: None,
            head: VecDeque::new(),
            given: 0,
            summary: None,
            error: None,
            correction,
            many,
            asked_again: false,
        };
        // Up to its first message it can be asked anew: nothing has been given.
        let opened = source
            .asked
            .try_within(|mut client| {
                let query = query.clone();
                async move {
                    let mut stream = client.query_flows(query).await?.into_inner();
                    let first = stream.message().await?;
                    Ok((stream, first))
                }
            })
            .await;
        match opened {
            Ok((stream, Some(first))) => {
                source.stream = Some(stream);
                source.take(first);
                source.fill().await;
            }
            Ok((_, None)) => {}
            Err(status) => source.error = Some(status),
        }
        source
    }

    /// Asks for more. If that fails, what it said before is kept, and it is told as having broken off.
    async fn open_again(&mut self, query: FlowQuery) {
        self.asked_again = true;
        let more = Self::open(self.asked.clone(), query, self.many).await;
        match more.error {
            Some(status) => self.error = Some(status),
            None => {
                *self = Self {
                    asked_again: true,
                    ..more
                }
            }
        }
    }

    fn take(&mut self, response: QueryFlowsResponse) {
        match response.part {
            Some(Part::Batch(batch)) => {
                self.given += batch.flows.len() as u64;
                let ns = self.correction;
                self.head.extend(batch.flows.into_iter().map(|mut flow| {
                    if self.many {
                        name_hosts(&mut flow);
                    }
                    if ns != 0 {
                        shift_flow(&mut flow, ns);
                    }
                    flow
                }));
            }
            Some(Part::Summary(summary)) => self.summary = Some(summary),
            None => {}
        }
    }

    /// Takes the next batch if there is none left: then, an empty head means the end.
    async fn fill(&mut self) {
        while self.head.is_empty() && self.take_next().await {}
    }

    /// Takes all that is left; of who sends more than `most`, what it sends is taken as it is wanted.
    async fn fill_all(&mut self, most: usize) {
        while self.given <= most as u64 && self.take_next().await {}
    }

    /// Takes the next message; whether there was one.
    async fn take_next(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        match self.asked.within(stream.message()).await {
            Ok(Some(response)) => {
                self.take(response);
                return true;
            }
            Ok(None) => {}
            Err(status) => self.error = Some(status),
        }
        self.stream = None;
        false
    }

    /// Whether it is to be asked again: it may have flows that it was not asked for, and the next of them may come before
    /// `end`.
    fn may_have_before(&self, sort: FlowSort, end: Option<u128>) -> bool {
        let all_given = self
            .summary
            .as_ref()
            .is_some_and(|summary| summary.matched_flows <= self.given);
        !self.asked_again
            && self.error.is_none()
            && !all_given
            && self
                .head
                .back()
                .is_some_and(|last| end.is_none_or(|end| place(sort, last) < end))
    }

    /// What became of it.
    fn answer(&self) -> NodeAnswer {
        if let Some(status) = &self.error {
            let mut answer = self.asked.failed(status, self.given);
            if self.given > 0 {
                // Who was asked twice has told it the first time.
                let unknown = match self.summary {
                    Some(_) => "",
                    None => ", how many match is not known",
                };
                answer.reason = format!(
                    "its answer broke off after {} flows{unknown}: {}",
                    self.given, answer.reason
                );
            }
            return answer;
        }
        let mut answer = NodeAnswer {
            items: self.given,
            ..self.asked.answered()
        };
        let Some(summary) = &self.summary else {
            answer
                .notes
                .push("the answer ended without its summary: it may be partial".to_owned());
            return answer;
        };
        answer.from = summary.from.map(|time| earlier_by(time, self.correction));
        answer.to = summary.to.map(|time| earlier_by(time, self.correction));
        answer.cursor = summary.to;
        answer.told_by(&summary.node);
        (answer.ledger, answer.notes) = trimmed(&summary.ledger, &summary.notes);
        answer
    }
}

impl Merged {
    /// Asks the members.
    ///
    /// # Errors
    /// If none answers, or the query makes no sense.
    pub(crate) async fn open(hub: &Hub, query: &FlowQuery) -> Result<Self, Status> {
        let Selection { asked, others, order } = hub.select(&query.nodes, hub.route(query).as_ref())?;
        let many = asked.len() + others.len() > 1;
        let batch = (HELD / asked.len().max(1)).clamp(16, BATCH);
        let limit = query.limit as usize;
        // So many that most need not be asked again, however unevenly the flows are spread.
        let few = FEW.max(2 * limit / asked.len().max(1));
        let few = (limit > few && many).then_some(few);
        let own = |asked: &Asked, limit: usize| {
            let correction = asked.member.clock.correction_ns();
            let to_theirs = |time: Timestamp| earlier_by(time, correction.saturating_neg());
            let cursor = query
                .cursors
                .iter()
                .find(|cursor| cursor.name == asked.member.name);
            FlowQuery {
                since: match cursor {
                    Some(cursor) => cursor.time,
                    None => query.since.map(to_theirs),
                },
                until: query.until.map(to_theirs),
                nodes: Vec::new(),
                cursors: Vec::new(),
                batch: u32::try_from(batch).unwrap_or(u32::MAX),
                limit: u32::try_from(limit).unwrap_or(u32::MAX),
                ..query.clone()
            }
        };
        let mut sources: Vec<Source> = futures::stream::iter(asked)
            .map(|asked| {
                let query = own(&asked, few.unwrap_or(limit));
                async move {
                    let mut source = Source::open(asked, query, many).await;
                    if let Some(few) = few {
                        source.fill_all(few).await;
                    }
                    source
                }
            })
            .buffered(hub.limits.concurrency)
            .collect()
            .await;
        let sort = query.sort();
        while few.is_some() {
            let end = nth_place(&sources, sort, limit);
            let cut: Vec<&mut Source> = sources
                .iter_mut()
                .filter(|source| source.may_have_before(sort, end))
                .collect();
            if cut.is_empty() {
                break;
            }
            // What they say now may move the end of the answer, to an earlier place as a rule.
            futures::stream::iter(cut)
                .for_each_concurrent(hub.limits.concurrency, |source| {
                    let query = own(&source.asked, limit);
                    source.open_again(query)
                })
                .await;
        }
        sources.iter().for_each(|source| {
            if let Some(status) = &source.error {
                hub.counts.failed(status);
            }
        });
        let refused = sources
            .iter()
            .filter_map(|source| source.error.as_ref())
            .find(|status| status.code() == Code::InvalidArgument);
        let answers: Vec<NodeAnswer> = sources
            .iter()
            .map(|source| match &source.error {
                Some(status) => source.asked.failed(status, source.given),
                None => source.asked.answered(),
            })
            .chain(others.iter().cloned())
            .collect();
        if let Some(error) = nobody(&answers, refused) {
            return Err(error);
        }
        let heads = sources
            .iter_mut()
            .enumerate()
            .filter_map(|(index, source)| Some(Reverse((place(sort, source.head.front()?), index))))
            .collect();
        Ok(Self {
            heads,
            sort,
            left: (query.limit > 0).then_some(u64::from(query.limit)),
            others,
            order,
            sources,
        })
    }

    /// The next flows, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Vec<Flow>> {
        if let [source] = self.sources.as_mut_slice() {
            source.fill().await;
            let flows = Vec::from(std::mem::take(&mut source.head));
            return (!flows.is_empty()).then_some(flows);
        }
        let mut flows = Vec::with_capacity(BATCH);
        while flows.len() < BATCH
            && self.left != Some(0)
            && let Some(Reverse((_, index))) = self.heads.pop()
        {
            let source = &mut self.sources[index];
            flows.extend(source.head.pop_front());
            source.fill().await;
            if let Some(head) = source.head.front() {
                self.heads.push(Reverse((place(self.sort, head), index)));
            }
            if let Some(left) = &mut self.left {
                *left -= 1;
            }
        }
        if !flows.is_empty() {
            return Some(flows);
        }
        // Of an answer that is cut by the limit, the summaries are wanted all the same.
        futures::stream::iter(&mut self.sources)
            .for_each_concurrent(None, |source| async move {
                while !source.head.is_empty() {
                    source.head.clear();
                    source.fill().await;
                }
            })
            .await;
        None
    }

    /// All flows, in no order; `None` if there are more than `max`.
    pub(crate) async fn all(&mut self, max: usize) -> Option<Vec<Vec<Flow>>> {
        let (mut all, mut count) = (Vec::new(), 0);
        for source in &mut self.sources {
            loop {
                source.fill().await;
                let flows = Vec::from(std::mem::take(&mut source.head));
                if flows.is_empty() {
                    break;
                }
                count += flows.len();
                if count > max {
                    return None;
                }
                all.push(flows);
            }
        }
        Some(all)
    }

    /// What is known once all flows were taken.
    pub(crate) fn end(self) -> FlowSummary {
        let mut all = FlowSummary {
            nodes: self.others,
            ..FlowSummary::default()
        };
        let mut names = Vec::new();
        for mut source in self.sources {
            all.nodes.push(source.answer());
            let Some(summary) = &mut source.summary else {
                continue;
            };
            shift(&mut summary.from, source.correction);
            shift(&mut summary.to, source.correction);
            all.from = earliest([all.from, summary.from]);
            all.to = latest([all.to, summary.to]);
            all.matched_flows = all.matched_flows.saturating_add(summary.matched_flows);
            all.matched_packets = all.matched_packets.saturating_add(summary.matched_packets);
            all.matched_bytes = all.matched_bytes.saturating_add(summary.matched_bytes);
            names.push(std::mem::take(&mut summary.node));
        }
        all.node = match names.as_slice() {
            [name] => name.clone(),
            names => format!("{} nodes", names.len()),
        };
        in_order(&self.order, &mut all.nodes);
        all
    }
}

impl Hub {
    /// The nodes that can hold flows that a query is about, if that is known: only reports of the workloads' own ends are on
    /// the workloads' own nodes.
    pub(crate) fn route(&self, query: &FlowQuery) -> Option<std::collections::BTreeSet<String>> {
        let filter = query.filter.as_ref()?;
        if query.reports() != FlowReports::Own || !filter.owners.is_empty() {
            return None;
        }
        self.nodes_of(&Wanted::of_flows(filter, query.since))
    }

    /// Flows of all members.
    pub(crate) async fn flows(&self, query: FlowQuery) -> Result<Responses<QueryFlowsResponse>, Status> {
        let permit = self.query_permit()?;
        let mut merged = Merged::open(self, &query).await?;
        Ok(self.deliver(permit, async move |sender| {
            while let Some(flows) = merged.next().await {
                let batch = Part::Batch(FlowBatch { flows });
                sender.send(QueryFlowsResponse { part: Some(batch) }).await?;
            }
            let summary = Part::Summary(merged.end());
            sender.send(QueryFlowsResponse { part: Some(summary) }).await
        }))
    }
}

/// Where the last of the first `n` flows stands; none if there are fewer.
fn nth_place(sources: &[Source], sort: FlowSort, n: usize) -> Option<u128> {
    let flows = sources.iter().flat_map(|source| &source.head);
    let mut places: Vec<u128> = flows.map(|flow| place(sort, flow)).collect();
    let nth = n.checked_sub(1).filter(|nth| *nth < places.len())?;
    Some(*places.select_nth_unstable(nth).1)
}

/// Where a flow stands in the order in which the agents sort: what comes first is less.
fn place(sort: FlowSort, flow: &Flow) -> u128 {
    let descending = |value: u64| u128::from(!value);
    // Who knows nothing comes last.
    let known = |value: Option<u64>| value.map_or(u128::from(u64::MAX) + 1, descending);
    match sort {
        FlowSort::Bytes => descending(flow.bytes),
        FlowSort::Packets => descending(flow.packets),
        FlowSort::Last => flow.last.map_or(u128::MAX, |time| !moment(time)),
        FlowSort::First => flow.first.map_or(u128::MAX, moment),
        FlowSort::Rtt => known(flow.rtt_us.map(u64::from)),
        FlowSort::Retransmits => known(flow.retransmits),
    }
}

/// Nanoseconds since the beginning of the calendar.
fn moment(time: Timestamp) -> u128 {
    let ns = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    // Half of the calendar is before the epoch.
    (ns + (1 << 100)).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_the_agents() {
        let flow = |bytes, rtt_us, first: Option<i64>| Flow {
            bytes,
            rtt_us,
            first: first.map(|seconds| Timestamp { seconds, nanos: 0 }),
            ..Flow::default()
        };
        let (a, b) = (flow(2, None, None), flow(1, Some(9), Some(-4)));
        let compare = |sort| place(sort, &a).cmp(&place(sort, &b));
        assert_eq!(compare(FlowSort::Bytes), std::cmp::Ordering::Less);
        assert_eq!(compare(FlowSort::Rtt), std::cmp::Ordering::Greater);
        assert_eq!(compare(FlowSort::First), std::cmp::Ordering::Greater);
        assert_eq!(compare(FlowSort::Last), std::cmp::Ordering::Equal);
    }
}
