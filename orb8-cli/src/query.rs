//! Asking, and what is to be said of the answers.

pub(crate) mod gpu;
pub(crate) mod syscall;

use std::cmp::Ordering;

use anyhow::anyhow;
use orb8_fleet::called;
use orb8_proto::v1::{
    AgentStatus, Edge, Flow, FlowQuery, FlowSummary, GetAgentStatusRequest, ListNodesRequest,
    ListPodsRequest, ListPodsResponse, NodeAnswer, NodeCursor, NodeInfo, NodeState, QueryFlowsResponse,
    QueryStatusRequest, query_edges_response::Part as EdgePart, query_flows_response::Part,
};
use prost_types::Timestamp;
use tonic::Streaming;

use crate::{fleet::Fleet, ledger::Losses};

/// Until when each node has counted, by its own clock: what comes later is new.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursor(pub(crate) Vec<NodeCursor>);

impl Cursor {
    /// Moved on to where these nodes are; of who did not answer it stays.
    pub(crate) fn moved(mut self, nodes: &[NodeAnswer]) -> Self {
        for node in nodes.iter().filter(|node| node.cursor.is_some()) {
            match self.0.iter_mut().find(|cursor| cursor.name == node.name) {
                Some(cursor) => cursor.time = node.cursor,
                None => self.0.push(NodeCursor {
                    name: node.name.clone(),
                    time: node.cursor,
                }),
            }
        }
        self
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

/// Flows of one answer as they arrive, batch by batch, so that the size of the answer costs no memory.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    fleet: &'a Fleet,
    stream: Streaming<QueryFlowsResponse>,
    head: Option<QueryFlowsResponse>,
    summary: Option<FlowSummary>,
    cursor: Cursor,
}

impl<'a> Answer<'a> {
    /// Asks, each node from where `cursor` says, else from where the query says.
    ///
    /// # Errors
    /// If nobody answers, or the query makes no sense.
    pub(crate) async fn to(fleet: &'a Fleet, query: &FlowQuery, cursor: &Cursor) -> anyhow::Result<Self> {
        let query = asked(fleet, query, cursor);
        let (stream, head) = fleet
            .ask(|mut client| {
                let query = query.clone();
                async move {
                    let mut stream = client.query_flows(query).await?.into_inner();
                    let head = stream.message().await?;
                    Ok((stream, head))
                }
            })
            .await?;
        Ok(Self {
            fleet,
            stream,
            head,
            summary: None,
            cursor: cursor.clone(),
        })
    }

    /// The next flows, or `None` at the end.
    ///
    /// # Errors
    /// If the answer breaks off.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<Flow>>> {
        loop {
            let message = match self.head.take() {
                Some(head) => Some(head),
                None => self
                    .stream
                    .message()
                    .await
                    .map_err(|status| self.fleet.explain(&status))?,
            };
            match message.map(|response| response.part) {
                Some(Some(Part::Batch(batch))) if !batch.flows.is_empty() => return Ok(Some(batch.flows)),
                Some(Some(Part::Summary(summary))) => self.summary = Some(summary),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// What is to be said of the answer, once all flows were taken.
    pub(crate) fn end(self) -> End {
        end(self.fleet, self.summary, self.cursor)
    }
}

/// The query, of the nodes that are meant.
fn asked(fleet: &Fleet, query: &FlowQuery, cursor: &Cursor) -> FlowQuery {
    FlowQuery {
        nodes: fleet.nodes.clone(),
        cursors: cursor.0.clone(),
        ..query.clone()
    }
}

fn end(fleet: &Fleet, summary: Option<FlowSummary>, cursor: Cursor) -> End {
    let Some(summary) = summary else {
        return End {
            summary: None,
            settled: None,
            losses: Losses::unknown(),
            cursor,
        };
    };
    let nodes = nodes_of(&summary);
    let complete = nodes
        .iter()
        .all(|node| matches!(node.state(), NodeState::Answered | NodeState::NotAsked));
    let mut losses = Losses::of_nodes(&nodes, fleet.is_many());
    if fleet.is_many() {
        losses.sentences.extend(summary.notes.iter().cloned());
    }
    End {
        settled: earliest(nodes.iter().map(|node| node.to)),
        losses,
        cursor: cursor.moved(&nodes),
        summary: Some(summary).filter(|_| complete || fleet.is_many()),
    }
}

/// Each node's part: of an agent's own answer, the whole.
fn nodes_of(summary: &FlowSummary) -> Vec<NodeAnswer> {
    if !summary.nodes.is_empty() {
        return summary.nodes.clone();
    }
    let mut notes = summary.notes.clone();
    if summary.ledger.is_empty() {
        notes.insert(0, NO_LEDGER.to_owned());
    }
    vec![NodeAnswer {
        name: summary.node.clone(),
        state: NodeState::Answered.into(),
        from: summary.from,
        to: summary.to,
        cursor: summary.to,
        ledger: summary.ledger.clone(),
        notes,
        items: summary.matched_flows,
        ..NodeAnswer::default()
    }]
}

/// What silence about losses means.
pub(crate) const NO_LEDGER: &str = "the agent sent no loss ledger: what was lost is unknown";

/// Joined flows, in the order and number that were asked for; how many there are before the limit; and what is to be said.
///
/// # Errors
/// If nobody answers, the answer breaks off, or there are too many flows to join.
pub(crate) async fn edges(
    fleet: &Fleet,
    query: &FlowQuery,
    cursor: &Cursor,
) -> anyhow::Result<(Vec<Edge>, u64, End)> {
    let query = asked(fleet, query, cursor);
    let (edges, summary) = fleet
        .ask(|mut client| {
            let query = query.clone();
            async move {
                let mut stream = client.query_edges(query).await?.into_inner();
                let (mut edges, mut summary) = (Vec::new(), None);
                while let Some(response) = stream.message().await? {
                    match response.part {
                        Some(EdgePart::Batch(batch)) => edges.extend(batch.edges),
                        Some(EdgePart::Summary(last)) => summary = Some(last),
                        None => {}
                    }
                }
                Ok((edges, summary))
            }
        })
        .await?;
    let summary = summary.unwrap_or_default();
    let mut end = end(fleet, summary.flows, cursor.clone());
    end.settled = summary.settled;
    Ok((edges, summary.edges, end))
}

/// The earliest of these times.
fn earliest(times: impl IntoIterator<Item = Option<Timestamp>>) -> Option<Timestamp> {
    times.into_iter().flatten().min_by(|a, b| in_time(*a, *b))
}

fn in_time(a: Timestamp, b: Timestamp) -> Ordering {
    (a.seconds, a.nanos).cmp(&(b.seconds, b.nanos))
}

/// Until when the nodes have counted, each by its own clock, and the time of the answer.
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
    let to = end
        .summary
        .as_ref()
        .and_then(|summary| summary.to)
        .or(end.settled);
    Ok((end.cursor, to))
}

/// A sentence for each node that did not answer, or not to the end.
pub(crate) fn missing<'a>(nodes: impl IntoIterator<Item = &'a NodeAnswer>) -> Vec<String> {
    nodes.into_iter().filter_map(no_answer).collect()
}

fn no_answer(node: &NodeAnswer) -> Option<String> {
    let (name, why) = (called(&node.name), &node.reason);
    match node.state() {
        NodeState::Answered | NodeState::NotAsked | NodeState::Unspecified => None,
        NodeState::Partial => Some(format!("{name}: {why}")),
        NodeState::Silent | NodeState::Unreachable | NodeState::Refused => {
            Some(format!("no answer from {name}: {why}"))
        }
    }
}

/// If nobody answered, why.
fn unless_silent(came: bool, missing: &[String]) -> anyhow::Result<()> {
    match missing {
        _ if came => Ok(()),
        [] => Err(anyhow!("no agent answers: is one running on any node?")),
        [some @ .., last] if some.len() < 3 => {
            let told: Vec<&str> = some.iter().chain([last]).map(String::as_str).collect();
            Err(anyhow!("{}", told.join("; ")))
        }
        some => Err(anyhow!("{}; and {} more", some[..3].join("; "), some.len() - 3)),
    }
}

/// The agents' states, by name; and a sentence for each that did not answer.
///
/// # Errors
/// If none answers.
pub(crate) async fn status(fleet: &Fleet) -> anyhow::Result<(Vec<(String, AgentStatus)>, Vec<String>)> {
    let request = QueryStatusRequest {
        nodes: fleet.nodes.clone(),
    };
    let parts = fleet
        .ask(|mut client| {
            let request = request.clone();
            async move { collect(client.query_status(request).await?.into_inner()).await }
        })
        .await?;
    let mut came = Vec::new();
    let mut answers = Vec::new();
    for part in parts {
        let answer = part.answer.unwrap_or_default();
        if let Some(status) = part.status {
            came.push((called(&answer.name), status));
        }
        answers.push(answer);
    }
    let missing = missing(&answers);
    unless_silent(!came.is_empty(), &missing)?;
    Ok((came, missing))
}

/// The state of the server itself; none if none answers here.
///
/// # Errors
/// If it does not answer.
pub(crate) async fn server_status(fleet: &Fleet) -> anyhow::Result<Option<AgentStatus>> {
    if !fleet.is_server() {
        return Ok(None);
    }
    let asked =
        fleet.ask(|mut client| async move { client.get_agent_status(GetAgentStatusRequest {}).await });
    Ok(Some(asked.await?.into_inner()))
}

/// The agents' pods; and a sentence for each that did not answer.
///
/// # Errors
/// If none answers.
pub(crate) async fn pods(
    fleet: &Fleet,
    request: &ListPodsRequest,
) -> anyhow::Result<(Vec<(String, ListPodsResponse)>, Vec<String>)> {
    let request = ListPodsRequest {
        nodes: fleet.nodes.clone(),
        ..request.clone()
    };
    let parts = fleet
        .ask(|mut client| {
            let request = request.clone();
            async move { collect(client.query_pods(request).await?.into_inner()).await }
        })
        .await?;
    let mut came = Vec::new();
    let mut answers = Vec::new();
    for part in parts {
        let answer = part.answer.unwrap_or_default();
        if let Some(pods) = part.pods {
            came.push((called(&answer.name), pods));
        }
        answers.push(answer);
    }
    let missing = missing(&answers);
    let asked = answers.iter().any(|answer| answer.state() != NodeState::NotAsked);
    unless_silent(!came.is_empty() || !asked && !answers.is_empty(), &missing)?;
    Ok((came, missing))
}

/// The nodes, by name.
///
/// # Errors
/// If nobody knows of nodes.
pub(crate) async fn nodes(fleet: &Fleet) -> anyhow::Result<Vec<NodeInfo>> {
    let request = ListNodesRequest {
        nodes: fleet.nodes.clone(),
    };
    fleet
        .ask(|mut client| {
            let request = request.clone();
            async move { collect(client.list_nodes(request).await?.into_inner()).await }
        })
        .await
}

/// All messages of a stream that is short.
async fn collect<T>(mut stream: Streaming<T>) -> Result<Vec<T>, tonic::Status> {
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        all.push(message);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_s_own_answer_is_that_of_one_node() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let summary = FlowSummary {
            node: "n1".into(),
            to: at(9),
            ..FlowSummary::default()
        };
        let nodes = nodes_of(&summary);
        assert_eq!(
            (nodes.len(), nodes[0].name.as_str(), nodes[0].cursor),
            (1, "n1", at(9))
        );
        // Without a ledger it is not known what was lost.
        assert_eq!(nodes[0].notes.len(), 1);
        let of_many = FlowSummary {
            nodes: vec![NodeAnswer::default(); 3],
            ..FlowSummary::default()
        };
        assert_eq!(nodes_of(&of_many).len(), 3);
    }

    #[test]
    fn a_cursor_goes_on_where_a_node_does_not_answer() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let node = |name: &str, cursor| NodeAnswer {
            name: name.into(),
            cursor,
            ..NodeAnswer::default()
        };
        let cursor = Cursor::default().moved(&[node("n1", at(5)), node("n2", at(6))]);
        let cursor = cursor.moved(&[node("n1", at(7)), node("n2", None)]);
        let times: Vec<_> = cursor
            .0
            .iter()
            .map(|cursor| (cursor.name.as_str(), cursor.time))
            .collect();
        assert_eq!(times, [("n1", at(7)), ("n2", at(6))]);
    }
}
