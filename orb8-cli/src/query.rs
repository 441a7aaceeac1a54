//! Asking the agents, and joining what they answer.

pub(crate) mod syscall;

use std::{cmp::Ordering, collections::VecDeque};

use orb8_proto::v1::{
    AgentStatus, Flow, FlowQuery, FlowSort, FlowSummary, GetAgentStatusRequest, ListPodsRequest,
    ListPodsResponse, QueryFlowsResponse, query_flows_response::Part,
};
use prost_types::Timestamp;
use tonic::{Status, Streaming};

use crate::{
    ends,
    fleet::{self, Fleet, Member, no_answer, nobody},
    ledger::Losses,
};

/// Flows of many agents that are handed on at once.
const BATCH: usize = 256;

/// Until when each agent of a fleet has counted, by its own clock: what comes later is new.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursor(Vec<Option<Timestamp>>);

impl Cursor {
    /// For an agent that has told nothing yet.
    fn of(&self, index: usize) -> Option<Timestamp> {
        self.0.get(index).copied().flatten()
    }
}

/// What is known once all flows were taken.
#[derive(Debug)]
pub(crate) struct End {
    /// Of all that answered. None: some answer came without.
    pub(crate) summary: Option<FlowSummary>,
    /// Until when all that answered have counted: the least of their times.
    pub(crate) settled: Option<Timestamp>,
    /// What the answer misses.
    pub(crate) losses: Losses,
    /// From where to ask next.
    pub(crate) cursor: Cursor,
}

/// Flows of one answer as they arrive, batch by batch, so that the size of the answer costs no memory. Of several
/// agents: in the sort order of all, with the limit of all.
#[derive(Debug)]
pub(crate) struct Answer {
    sources: Vec<Source>,
    many: bool,
    sort: FlowSort,
    /// Flows that may still be given; `None`: any number.
    left: Option<u64>,
    missing: Vec<String>,
    cursor: Cursor,
}

/// One agent's part of an answer.
#[derive(Debug)]
struct Source {
    member: Member,
    stream: Option<Streaming<QueryFlowsResponse>>,
    head: VecDeque<Flow>,
    given: u64,
    summary: Option<FlowSummary>,
    error: Option<Status>,
}

impl Source {
    async fn open(member: Member, query: FlowQuery) -> Self {
        let mut client = member.client.clone();
        let (stream, error) = match member.within(client.query_flows(query)).await {
            Ok(stream) => (Some(stream.into_inner()), None),
            Err(status) => (None, Some(status)),
        };
        let mut source = Self {
            member,
            stream,
            head: VecDeque::new(),
            given: 0,
            summary: None,
            error,
        };
        source.fill().await;
        source
    }

    /// Takes the next batch if there is none left: then, an empty head means the end.
    async fn fill(&mut self) {
        while self.head.is_empty()
            && let Some(stream) = &mut self.stream
        {
            match self.member.within(stream.message()).await {
                Ok(Some(response)) => match response.part {
                    Some(Part::Batch(batch)) => {
                        self.given += batch.flows.len() as u64;
                        self.head = batch.flows.into();
                        if self.member.deadline.is_some() {
                            self.head.iter_mut().for_each(ends::name_hosts);
                        }
                    }
                    Some(Part::Summary(summary)) => self.summary = Some(summary),
                    None => {}
                },
                Ok(None) => self.stream = None,
                Err(status) => {
                    self.stream = None;
                    self.error = Some(status);
                }
            }
        }
    }
}

impl Answer {
    /// Asks all agents of the fleet, each from where `cursor` says, else from where the query says.
    ///
    /// # Errors
    /// If none answers, or the query makes no sense.
    pub(crate) async fn to(fleet: &Fleet, query: &FlowQuery, cursor: &Cursor) -> anyhow::Result<Self> {
        let indexed = |member: &Member| fleet.members.iter().position(|other| other.name == member.name);
        let sources: Vec<Source> = fleet
            .ask(|member| {
                let since = indexed(&member)
                    .and_then(|index| cursor.of(index))
                    .or(query.since);
                let query = FlowQuery {
                    since,
                    ..query.clone()
                };
                async move { Ok(Source::open(member, query).await) }
            })
            .await
            .into_iter()
            .filter_map(Result::ok)
            .collect();
        let errors: Vec<_> = sources
            .iter()
            .filter(|source| source.given == 0)
            .filter_map(|source| Some(source.member.explain(source.error.as_ref()?)))
            .collect();
        let silent: Vec<(String, String)> = fleet
            .missing
            .iter()
            .cloned()
            .chain(sources.iter().filter_map(|source| {
                let status = source.error.as_ref()?;
                Some((source.member.name.clone(), source.member.why(status)))
            }))
            .collect();
        if let Some(error) = nobody(errors.len() == sources.len(), errors, &silent) {
            return Err(error);
        }
        let missing = fleet::sentences(&fleet.missing);
        Ok(Self {
            many: fleet.is_many(),
            sort: query.sort(),
            left: (query.limit > 0).then_some(u64::from(query.limit)),
            missing,
            cursor: cursor.clone(),
            sources,
        })
    }

    /// The next flows, or `None` at the end.
    ///
    /// # Errors
    /// If the only agent's answer breaks off.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<Flow>>> {
        if let [source] = self.sources.as_mut_slice() {
            source.fill().await;
            if let Some(status) = source.error.as_ref().filter(|_| source.head.is_empty()) {
                return Err(source.member.explain(status));
            }
            let flows = Vec::from(std::mem::take(&mut source.head));
            return Ok((!flows.is_empty()).then_some(flows));
        }
        let mut flows = Vec::new();
        while flows.len() < BATCH && self.left != Some(0) {
            let sort = self.sort;
            let best = self
                .sources
                .iter_mut()
                .filter(|source| !source.head.is_empty())
                .min_by(|a, b| order(sort, a.head.front(), b.head.front()));
            let Some(best) = best else { break };
            flows.extend(best.head.pop_front());
            best.fill().await;
            if let Some(left) = &mut self.left {
                *left -= 1;
            }
        }
        if flows.is_empty() {
            // Of an answer that is cut by the limit, the summaries are wanted all the same.
            for source in &mut self.sources {
                while !source.head.is_empty() {
                    source.head.clear();
                    source.fill().await;
                }
            }
            return Ok(None);
        }
        Ok(Some(flows))
    }

    /// What is to be said of the answer, once all flows were taken.
    pub(crate) fn end(self) -> End {
        let mut losses = Losses {
            sentences: self.missing,
        };
        let mut cursor = self.cursor;
        cursor.0.resize(self.sources.len().max(cursor.0.len()), None);
        let mut summaries = Vec::new();
        let mut complete = true;
        for (index, source) in self.sources.into_iter().enumerate() {
            if let Some(to) = source.summary.as_ref().and_then(|summary| summary.to) {
                cursor.0[index] = Some(to);
            }
            match source.trouble() {
                Some(trouble) => losses.sentences.push(trouble),
                None if self.many => {
                    losses.add(&source.member.name, Losses::of_answer(source.summary.as_ref()));
                    complete &= source.summary.is_some();
                }
                None => {
                    losses
                        .sentences
                        .extend(Losses::of_answer(source.summary.as_ref()).sentences);
                    complete &= source.summary.is_some();
                }
            }
            summaries.extend(source.summary);
        }
        let settled = earliest(summaries.iter().map(|summary| summary.to));
        End {
            summary: join(summaries).filter(|_| complete),
            settled,
            losses,
            cursor,
        }
    }
}

impl Source {
    /// Why its part is not there, or not all of it.
    fn trouble(&self) -> Option<String> {
        let status = self.error.as_ref()?;
        let (name, why) = (&self.member.name, self.member.why(status));
        Some(if self.given == 0 {
            no_answer(name, &why)
        } else {
            format!(
                "the answer from {name} broke off after {} flows: {why}",
                self.given
            )
        })
    }
}

/// One summary of all. The ledgers stay apart: what was lost is told for each.
fn join(summaries: Vec<FlowSummary>) -> Option<FlowSummary> {
    let nodes = summaries.len();
    let mut summaries = summaries.into_iter();
    let mut all = summaries.next()?;
    for summary in summaries {
        all.node = format!("{nodes} nodes");
        all.from = earliest([all.from, summary.from]);
        all.to = latest([all.to, summary.to]);
        all.matched_flows = all.matched_flows.saturating_add(summary.matched_flows);
        all.matched_packets = all.matched_packets.saturating_add(summary.matched_packets);
        all.matched_bytes = all.matched_bytes.saturating_add(summary.matched_bytes);
        all.ledger.clear();
        all.notes.clear();
    }
    Some(all)
}

/// The earliest of these times.
fn earliest(times: impl IntoIterator<Item = Option<Timestamp>>) -> Option<Timestamp> {
    times.into_iter().flatten().min_by(|a, b| in_time(*a, *b))
}

/// The latest of these times.
fn latest(times: impl IntoIterator<Item = Option<Timestamp>>) -> Option<Timestamp> {
    times.into_iter().flatten().max_by(|a, b| in_time(*a, *b))
}

fn in_time(a: Timestamp, b: Timestamp) -> Ordering {
    (a.seconds, a.nanos).cmp(&(b.seconds, b.nanos))
}

/// Which flow comes first, as the agents sort.
fn order(sort: FlowSort, a: Option<&Flow>, b: Option<&Flow>) -> Ordering {
    let (Some(a), Some(b)) = (a, b) else {
        return Ordering::Equal;
    };
    let time = |time: &Option<Timestamp>| time.map(|time| (time.seconds, time.nanos));
    match sort {
        FlowSort::Bytes => b.bytes.cmp(&a.bytes),
        FlowSort::Packets => b.packets.cmp(&a.packets),
        FlowSort::Last => time(&b.last).cmp(&time(&a.last)),
        // A flow without packets has no first: it comes last.
        FlowSort::First => (a.first.is_none(), time(&a.first)).cmp(&(b.first.is_none(), time(&b.first))),
        FlowSort::Rtt => b.rtt_us.cmp(&a.rtt_us),
        FlowSort::Retransmits => b.retransmits.cmp(&a.retransmits),
    }
}

/// Until when the agents have counted, each by its own clock, and the latest of these times.
///
/// # Errors
/// As for [`Answer::to`].
pub(crate) async fn counted_until(fleet: &Fleet) -> anyhow::Result<(Cursor, Option<Timestamp>)> {
    let query = FlowQuery {
        limit: 1,
        ..FlowQuery::default()
    };
    let mut answer = Answer::to(fleet, &query, &Cursor::default()).await?;
    while answer.next().await?.is_some() {}
    let end = answer.end();
    let to = end.cursor.0.iter().copied();
    let to = latest(to);
    Ok((end.cursor, to))
}

/// The agents' states, by name; and a sentence for each that did not answer.
///
/// # Errors
/// If none answers.
pub(crate) async fn status(fleet: &Fleet) -> anyhow::Result<(Vec<(String, AgentStatus)>, Vec<String>)> {
    let (came, missing) = fleet
        .gather(|mut client| async move { client.get_agent_status(GetAgentStatusRequest {}).await })
        .await?;
    let named = came
        .into_iter()
        .map(|(member, status)| (member.name.clone(), status))
        .collect();
    Ok((named, missing))
}

/// The agents' pods; and a sentence for each that did not answer.
///
/// # Errors
/// If none answers.
pub(crate) async fn pods(
    fleet: &Fleet,
    request: &ListPodsRequest,
) -> anyhow::Result<(Vec<(String, ListPodsResponse)>, Vec<String>)> {
    let (came, missing) = fleet
        .gather(|mut client| {
            let request = request.clone();
            async move { client.list_pods(request).await }
        })
        .await?;
    let named = came
        .into_iter()
        .map(|(member, pods)| (member.name.clone(), pods))
        .collect();
    Ok((named, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_add_up_and_cover_the_whole_span() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let summary = |from, to| FlowSummary {
            from: at(from),
            to: at(to),
            matched_flows: 2,
            ..FlowSummary::default()
        };
        let all = join(vec![summary(5, 9), summary(3, 8)]).unwrap();
        assert_eq!((all.from, all.to, all.matched_flows), (at(3), at(9), 4));
        assert_eq!(join(Vec::new()), None);
    }

    #[test]
    fn order_is_the_agents() {
        let flow = |bytes, rtt_us, first: Option<i64>| Flow {
            bytes,
            rtt_us,
            first: first.map(|seconds| Timestamp { seconds, nanos: 0 }),
            ..Flow::default()
        };
        let (a, b) = (flow(2, None, None), flow(1, Some(9), Some(4)));
        let compare = |sort| order(sort, Some(&a), Some(&b));
        assert_eq!(compare(FlowSort::Bytes), Ordering::Less);
        assert_eq!(compare(FlowSort::Rtt), Ordering::Greater);
        assert_eq!(compare(FlowSort::First), Ordering::Greater);
        assert_eq!(compare(FlowSort::Last), Ordering::Equal);
    }
}
