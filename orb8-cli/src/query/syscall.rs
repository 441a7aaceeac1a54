//! Asking about system calls.

use orb8_fleet::called;
use orb8_proto::v1::{
    NodeAnswer, NodeState, NodeSyscallMode, SetSyscallModeRequest, SyscallGroup, SyscallMode, SyscallQuery,
    SyscallRow, SyscallSummary, query_syscalls_response::Part,
};
use prost_types::Timestamp;

use super::{Cursor, NO_LEDGER, missing};
use crate::{fleet::Fleet, ledger::Losses};

/// A percentile that is longer than all bounds.
pub(crate) const UNBOUNDED: u64 = u64::MAX;
/// Rows that are taken: bounds memory, at some hundred bytes each.
const MAX_ROWS: usize = 1 << 20;
/// How much later than asked an answer may start, and is the answer to the question all the same: agents count by
/// intervals.
const LATE: f64 = 1.5;

/// The answer of all agents.
#[derive(Debug)]
pub(crate) struct Answer {
    /// In sort order, no more than the limit.
    pub(crate) rows: Vec<SyscallRow>,
    /// Of all that answered. None: some answer came without.
    pub(crate) summary: Option<SyscallSummary>,
    /// What each agent that answered does: its name in front of others, mode, and how long of the span it measured.
    pub(crate) modes: Vec<Measured>,
    /// What the answer misses.
    pub(crate) losses: Losses,
    /// What is to be said of it though nothing is missing.
    pub(crate) notes: Vec<String>,
    /// Those of the losses that are agents which did not answer, or not to the end.
    pub(crate) missing: Vec<String>,
    /// From where to ask next.
    pub(crate) cursor: Cursor,
}

/// What one agent measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    /// The node's name.
    pub(crate) name: String,
    pub(crate) mode: SyscallMode,
    /// Seconds of the answer's span.
    pub(crate) span: f64,
    /// Seconds of it in which errors and times were measured.
    pub(crate) seconds: f64,
}

/// In the protocol, a bound of 0 is none.
fn unbounded(mut row: SyscallRow) -> SyscallRow {
    for bound in [&mut row.p50_ns, &mut row.p99_ns] {
        *bound = bound.map(|ns| if ns == 0 { UNBOUNDED } else { ns });
    }
    row
}

/// Asks, each node from where `cursor` says, else from where the query says. The answer is held in memory: some hundred
/// bytes a row.
///
/// # Errors
/// If nobody answers, the answer breaks off, or the query makes no sense.
pub(crate) async fn ask(fleet: &Fleet, query: &SyscallQuery, cursor: &Cursor) -> anyhow::Result<Answer> {
    let asked = SyscallQuery {
        nodes: fleet.nodes.clone(),
        cursors: cursor.0.clone(),
        ..query.clone()
    };
    let (rows, summary) = fleet
        .ask(|mut client| {
            let asked = asked.clone();
            async move {
                let mut stream = client.query_syscalls(asked).await?.into_inner();
                let (mut rows, mut summary) = (Vec::new(), None);
                while let Some(response) = stream.message().await? {
                    match response.part {
                        Some(Part::Batch(batch)) if rows.len() + batch.rows.len() > MAX_ROWS => {
                            return Err(tonic::Status::resource_exhausted(format!(
                                "more than {MAX_ROWS} rows: ask for fewer (--limit, --by)"
                            )));
                        }
                        Some(Part::Batch(batch)) => rows.extend(batch.rows.into_iter().map(unbounded)),
                        Some(Part::Summary(last)) => summary = Some(last),
                        None => {}
                    }
                }
                Ok((rows, summary))
            }
        })
        .await?;
    let Some(summary) = summary else {
        return Ok(Answer {
            rows,
            summary: None,
            modes: Vec::new(),
            losses: Losses::unknown(),
            notes: Vec::new(),
            missing: Vec::new(),
            cursor: cursor.clone(),
        });
    };
    let mut nodes = nodes_of(&summary);
    let modes = nodes
        .iter()
        .filter(|node| node.syscall_mode != 0)
        .map(Measured::of)
        .collect();
    // Where an answer begins later than asked, what a node says of it is a loss; else it is only said.
    let mut notes = Losses::default();
    for node in &mut nodes {
        if !starts_late(query.since.as_ref(), node.from.as_ref()) {
            let ledger: Vec<String> = std::mem::take(&mut node.notes);
            let (lost, said) = ledger.into_iter().partition(|note| note == NO_LEDGER);
            node.notes = lost;
            let said = Losses { sentences: said };
            if fleet.is_many() {
                notes.add(&called(&node.name), said);
            } else {
                notes.sentences.extend(said.sentences);
            }
        }
    }
    Ok(Answer {
        rows,
        modes,
        losses: Losses::of_nodes(&nodes, fleet.is_many()),
        notes: notes.sentences,
        missing: missing(&nodes),
        cursor: cursor.clone().moved(&nodes),
        summary: Some(summary),
    })
}

/// Each node's part: of an agent's own answer, the whole.
fn nodes_of(summary: &SyscallSummary) -> Vec<NodeAnswer> {
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
        items: summary.matched_rows,
        syscall_mode: summary.mode,
        measured: summary.measured,
        ..NodeAnswer::default()
    }]
}

/// Whether the answer does not reach back to the time asked for.
fn starts_late(since: Option<&Timestamp>, from: Option<&Timestamp>) -> bool {
    since
        .zip(from)
        .is_some_and(|(since, from)| crate::timestamp::seconds_between(since, from) > LATE)
}

impl Measured {
    fn of(node: &NodeAnswer) -> Self {
        let span = match (&node.from, &node.to) {
            (Some(from), Some(to)) => crate::timestamp::seconds_between(from, to),
            _ => 0.0,
        };
        Self {
            name: if node.node.is_empty() {
                &node.name
            } else {
                &node.node
            }
            .clone(),
            mode: SyscallMode::try_from(node.syscall_mode).unwrap_or_default(),
            span,
            seconds: node.measured.as_ref().map_or(0.0, seconds),
        }
    }
}

/// A duration in seconds.
pub(crate) fn seconds(duration: &prost_types::Duration) -> f64 {
    duration.seconds as f64 + f64::from(duration.nanos) / 1e9
}

/// Until when the nodes have counted calls, each by its own clock, and the time of the answer.
///
/// # Errors
/// As for [`ask`].
pub(crate) async fn counted_until(fleet: &Fleet) -> anyhow::Result<(Cursor, Option<Timestamp>)> {
    let query = SyscallQuery {
        by: vec![SyscallGroup::Node.into()],
        limit: 1,
        ..SyscallQuery::default()
    };
    let answer = ask(fleet, &query, &Cursor::default()).await?;
    Ok((answer.cursor, answer.summary.and_then(|summary| summary.to)))
}

/// Switches all agents to `mode`: what each answers, by its name, and name and reason of each that did not switch.
///
/// # Errors
/// If none switched.
pub(crate) async fn set_mode(
    fleet: &Fleet,
    mode: SyscallMode,
) -> anyhow::Result<(Vec<(String, NodeSyscallMode)>, Vec<String>)> {
    let request = SetSyscallModeRequest {
        mode: mode.into(),
        nodes: fleet.nodes.clone(),
    };
    let mut response = fleet
        .client
        .clone()
        .set_syscall_mode(request)
        .await
        .map_err(|status| fleet.explain(&status))?
        .into_inner();
    if response.nodes.is_empty() {
        // An agent's own answer.
        response.nodes.push(NodeSyscallMode {
            answer: Some(NodeAnswer {
                name: response.node,
                state: NodeState::Answered.into(),
                ..NodeAnswer::default()
            }),
            before: response.before,
            mode: response.mode,
        });
    }
    let answers: Vec<NodeAnswer> = response
        .nodes
        .iter()
        .filter_map(|node| node.answer.clone())
        .collect();
    let switched = response
        .nodes
        .into_iter()
        .filter(|node| node.mode != 0)
        .map(|node| {
            let answer = node.answer.as_ref();
            let name = answer.map(|answer| {
                if answer.node.is_empty() {
                    &answer.name
                } else {
                    &answer.node
                }
            });
            (name.cloned().unwrap_or_default(), node)
        })
        .collect();
    Ok((switched, missing(&answers)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_measured_is_told_by_its_node() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let summary = SyscallSummary {
            node: "n1".into(),
            from: at(10),
            to: at(20),
            mode: SyscallMode::Latency.into(),
            measured: Some(prost_types::Duration { seconds: 4, nanos: 0 }),
            ..SyscallSummary::default()
        };
        let nodes = nodes_of(&summary);
        assert_eq!(
            Measured::of(&nodes[0]),
            Measured {
                name: "n1".into(),
                mode: SyscallMode::Latency,
                span: 10.0,
                seconds: 4.0
            }
        );
    }

    #[test]
    fn an_answer_that_begins_later_than_asked_is_late() {
        let at = |seconds| Timestamp { seconds, nanos: 0 };
        assert!(starts_late(Some(&at(10)), Some(&at(12))));
        assert!(!starts_late(Some(&at(10)), Some(&at(11))));
        assert!(!starts_late(None, Some(&at(11))) && !starts_late(Some(&at(1)), None));
    }

    #[test]
    fn a_bound_of_zero_is_none() {
        let row = unbounded(SyscallRow {
            p99_ns: Some(0),
            p50_ns: Some(8),
            ..SyscallRow::default()
        });
        assert_eq!((row.p50_ns, row.p99_ns), (Some(8), Some(UNBOUNDED)));
    }
}
