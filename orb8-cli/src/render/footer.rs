//! The end of every answer: what it covers, what was cut, what was lost.

use orb8_proto::v1::{FlowSummary, SyscallSummary};
use prost_types::Timestamp;

use crate::{
    humanise,
    ledger::Losses,
    sanitise,
    terminal::{Style, Tone},
    timestamp,
};

/// Totals and span of an answer, a line; empty without a summary.
pub(crate) fn totals(summary: Option<&FlowSummary>) -> String {
    let Some(summary) = summary else {
        return String::new();
    };
    let mut text = String::new();
    text.push_str(&format!(
        "{}, {}, {}",
        humanise::counted(summary.matched_flows, "flow", "flows"),
        humanise::counted(summary.matched_packets, "packet", "packets"),
        humanise::bytes(summary.matched_bytes),
    ));
    text.push_str(&span(summary.from.as_ref(), summary.to.as_ref()));
    text.push('\n');
    text
}

/// Totals and span of an answer about system calls, a line; empty without a summary.
pub(crate) fn calls(summary: Option<&SyscallSummary>) -> String {
    let Some(summary) = summary else {
        return String::new();
    };
    let failed = if summary.matched_errors > 0 {
        format!(", {} failed", humanise::count(summary.matched_errors))
    } else {
        String::new()
    };
    format!(
        "{}, {}{failed}{}\n",
        humanise::counted(summary.matched_rows, "row", "rows"),
        humanise::counted(summary.matched_calls, "call", "calls"),
        span(summary.from.as_ref(), summary.to.as_ref())
    )
}

/// `; from to until UTC (how long)`; nothing if it is unknown.
fn span(from: Option<&Timestamp>, to: Option<&Timestamp>) -> String {
    let (Some(from), Some(to)) = (from, to) else {
        return String::new();
    };
    format!(
        "; {} to {} UTC ({})",
        timestamp::clock(Some(from), 0),
        timestamp::clock(Some(to), 0),
        humanise::seconds(timestamp::seconds_between(from, to))
    )
}

/// What the reader must know, a line each.
pub(crate) fn notes(notes: &[String]) -> String {
    notes
        .iter()
        .map(|note| format!("{}\n", sanitise::line(note)))
        .collect()
}

/// What was lost, a line each; or that nothing was.
pub(crate) fn losses(losses: &Losses, style: &Style) -> String {
    if losses.is_none() {
        return format!("{}\n", style.paint("Nothing lost.", Tone::Good));
    }
    let lines = losses.sentences.iter().map(|sentence| {
        let line = format!("! {}", sanitise::line(sentence));
        format!("{}\n", style.paint(&line, Tone::Bad))
    });
    lines.collect()
}
