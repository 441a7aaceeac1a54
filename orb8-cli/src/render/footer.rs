//! The end of every answer: what it covers, what was cut, what was lost.

use orb8_proto::v1::FlowSummary;

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
    if let (Some(from), Some(to)) = (&summary.from, &summary.to) {
        let span = humanise::seconds(timestamp::seconds_between(from, to));
        text.push_str(&format!(
            "; {} to {} UTC ({span})",
            timestamp::clock(Some(from), 0),
            timestamp::clock(Some(to), 0)
        ));
    }
    text.push('\n');
    text
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
