//! Nodes and their agents.

use std::time::SystemTime;

use orb8_proto::v1::{NodeInfo, NodeState};
use prost_types::{Duration, Timestamp};
use serde::Serialize;

use super::{
    flow_json,
    table::{Cell, Column, Table},
};
use crate::{
    humanise, sanitise,
    terminal::{Style, Tone},
    timestamp,
};

/// What is not known.
const NONE: &str = "-";

/// The table that fits the terminal.
pub(crate) fn narrow(nodes: &[NodeInfo], style: &Style) -> String {
    let mut table = Table::new([
        Column::workload("NODE", 8),
        Column::text("STATE"),
        Column::text("VERSION"),
        Column::text("AGENT UP"),
        Column::text("HISTORY"),
        Column::text("HEARD"),
        Column::number("CLOCK"),
    ]);
    for node in nodes {
        table.row([
            Cell::new(&node.name),
            state(node),
            Cell::new(or_none(&node.version)),
            Cell::new(age(node.started.as_ref(), node)),
            Cell::new(age(node.history_from.as_ref(), node)),
            Cell::new(ago(node.heard.as_ref())),
            Cell::new(clock(node)),
        ]);
    }
    table.render(Some(style.width), style)
}

/// The table with all columns, however wide.
pub(crate) fn wide(nodes: &[NodeInfo], style: &Style) -> String {
    let mut table = Table::new([
        Column::text("NODE"),
        Column::text("STATE"),
        Column::text("VERSION"),
        Column::text("ADDRESS"),
        Column::text("AGENT"),
        Column::text("AGENT UP"),
        Column::text("HISTORY"),
        Column::text("HEARD"),
        Column::number("CLOCK"),
        Column::number("ROUND TRIP"),
        Column::number("CONNECTS"),
        Column::text("TRANSPORT"),
        Column::text("REASON"),
    ]);
    for node in nodes {
        let round_trip = node
            .round_trip
            .as_ref()
            .map_or(NONE.to_owned(), |time| humanise::seconds(seconds(time)));
        table.row([
            Cell::new(&node.name),
            state(node),
            Cell::new(or_none(&node.version)),
            Cell::new(or_none(&node.address)),
            Cell::new(or_none(&node.agent)),
            Cell::new(age(node.started.as_ref(), node)),
            Cell::new(age(node.history_from.as_ref(), node)),
            Cell::new(ago(node.heard.as_ref())),
            Cell::new(clock(node)),
            Cell::new(round_trip),
            Cell::new(node.connects.to_string()),
            Cell::new(or_none(&node.transport)),
            Cell::new(or_none(&node.reason)),
        ]);
    }
    table.render(None, style)
}

/// Why nodes do not answer, and what else is to be said of them.
pub(crate) fn reasons(nodes: &[NodeInfo], style: &Style) -> String {
    nodes
        .iter()
        .filter(|node| !node.reason.is_empty())
        .map(|node| {
            let tone = if node.state() == NodeState::Answered {
                Tone::Warn
            } else {
                Tone::Bad
            };
            let text = format!("{}: {}", node.name, sanitise::line(&node.reason));
            format!("{}\n", style.paint(&text, tone))
        })
        .collect()
}

/// One line of JSON.
pub(crate) fn json(node: &NodeInfo) -> anyhow::Result<String> {
    flow_json::line(&NodeRecord::from(node))
}

#[derive(Debug, Serialize)]
struct NodeRecord<'a> {
    node: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    address: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    agent: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heard: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_offset_ns: Option<i128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_error_ns: Option<i128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_ns: Option<i128>,
    connects: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    transport: &'a str,
}

impl<'a> From<&'a NodeInfo> for NodeRecord<'a> {
    fn from(node: &'a NodeInfo) -> Self {
        let ns = |time: &Option<Duration>| {
            time.as_ref()
                .map(|time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos))
        };
        let time = |time: &Option<Timestamp>| timestamp::rfc3339(time.as_ref());
        Self {
            node: &node.name,
            state: state_name(node.state()),
            reason: &node.reason,
            address: &node.address,
            agent: &node.agent,
            version: &node.version,
            started: time(&node.started),
            history_from: time(&node.history_from),
            heard: time(&node.heard),
            clock_offset_ns: ns(&node.clock_offset),
            clock_error_ns: ns(&node.clock_error),
            round_trip_ns: ns(&node.round_trip),
            connects: node.connects,
            transport: &node.transport,
        }
    }
}

const fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Answered => "answered",
        NodeState::Partial => "partial",
        NodeState::Silent => "silent",
        NodeState::Unreachable => "unreachable",
        NodeState::Refused => "refused",
        NodeState::NotAsked => "not asked",
        NodeState::Unspecified => "unknown",
    }
}

fn state(node: &NodeInfo) -> Cell {
    let tone = if node.state() == NodeState::Answered {
        Tone::Good
    } else {
        Tone::Bad
    };
    Cell::toned(state_name(node.state()), tone)
}

fn or_none(text: &str) -> String {
    if text.is_empty() { NONE } else { text }.to_owned()
}

/// For how long, by the node's own clock.
fn age(since: Option<&Timestamp>, node: &NodeInfo) -> String {
    let Some(since) = since else {
        return NONE.to_owned();
    };
    let offset = node.clock_offset.as_ref().map_or(0.0, seconds);
    let age = timestamp::seconds_between(since, &now()) + offset;
    humanise::seconds(age.max(0.0).round())
}

fn ago(time: Option<&Timestamp>) -> String {
    time.map_or(NONE.to_owned(), |time| {
        format!(
            "{} ago",
            humanise::seconds(timestamp::seconds_between(time, &now()).max(0.0).round())
        )
    })
}

/// How far a clock is ahead, where that is more than the measurement may be wrong by.
fn clock(node: &NodeInfo) -> String {
    let (Some(offset), Some(error)) = (&node.clock_offset, &node.clock_error) else {
        return NONE.to_owned();
    };
    let (offset, error) = (seconds(offset), seconds(error));
    if offset.abs() <= error {
        return NONE.to_owned();
    }
    let sign = if offset < 0.0 { "-" } else { "+" };
    format!("{sign}{}", humanise::seconds(offset.abs()))
}

fn seconds(time: &Duration) -> f64 {
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_s_difference_is_told_only_where_it_is_one() {
        let node = |offset_ns, error_ns| NodeInfo {
            clock_offset: Some(Duration {
                seconds: 0,
                nanos: offset_ns,
            }),
            clock_error: Some(Duration {
                seconds: 0,
                nanos: error_ns,
            }),
            ..NodeInfo::default()
        };
        assert_eq!(clock(&node(400_000, 500_000)), "-");
        assert!(clock(&node(-600_000_000, 500_000)).starts_with('-'));
        assert_eq!(clock(&NodeInfo::default()), "-");
        let line = json(&node(5, 7)).unwrap();
        assert!(line.contains("\"clock_offset_ns\":5"), "{line}");
    }
}
