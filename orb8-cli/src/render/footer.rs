//! The end of every answer: what it covers, what was cut, what was lost.

use orb8_proto::v1::{CudaCalls, FlowSummary, GpuDevice, GpuSummary, SyscallSummary};
use prost_types::Timestamp;

use crate::{
    gpu::{self, Waste},
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

/// Numbers of devices, and the span of an answer about GPUs, a line.
pub(crate) fn gpus(devices: &[GpuDevice], summary: Option<&GpuSummary>) -> String {
    let (gpus, instances, holders) = gpu::counted(devices);
    let mut text = humanise::counted(gpus, "GPU", "GPUs");
    if instances > 0 {
        text.push_str(&format!(
            ", {}",
            humanise::counted(instances, "MIG instance", "MIG instances")
        ));
    }
    text.push_str(&format!(", {}", humanise::counted(holders, "holder", "holders")));
    let hidden = gpu::hidden(devices);
    if hidden > 0 {
        text.push_str(&format!(" and {} hidden", humanise::count(hidden)));
    }
    format!("{text}{}\n", of_samples(summary))
}

/// What is wasted in all, and the span of the answer, a line.
pub(crate) fn wasted(wastes: &[Waste<'_>], summary: Option<&GpuSummary>) -> String {
    let (gpus, instances) = gpu::hours(wastes);
    if !wastes.is_empty() && wastes.iter().all(|waste| !waste.is_known) {
        return format!("How much is wasted is not known{}\n", of_samples(summary));
    }
    let mut text = format!("{} GPU-hours wasted", humanise::hours(gpus));
    if instances > 0.0 {
        text.push_str(&format!(
            ", and {} hours of MIG instances",
            humanise::hours(instances)
        ));
    }
    format!("{text}{}\n", of_samples(summary))
}

/// Totals and span of an answer about CUDA calls, a line.
pub(crate) fn cuda(rows: &[CudaCalls], summary: Option<&GpuSummary>) -> String {
    let calls = rows.iter().fold(0_u64, |sum, row| sum.saturating_add(row.count));
    let failed = rows
        .iter()
        .filter_map(|row| row.errors)
        .fold(0_u64, u64::saturating_add);
    let failed = if failed > 0 {
        format!(", {} failed", humanise::count(failed))
    } else {
        String::new()
    };
    format!(
        "{}, {}{failed}{}\n",
        humanise::counted(rows.len() as u64, "row", "rows"),
        humanise::counted(calls, "call", "calls"),
        summary.map(samples_span).unwrap_or_default()
    )
}

/// The span of readings, or the time of the last ones, and how far samples are apart.
fn of_samples(summary: Option<&GpuSummary>) -> String {
    let Some(summary) = summary else {
        return String::new();
    };
    let mut text = samples_span(summary);
    let sampling = gpu::span(summary.sampling.as_ref());
    if sampling > 0.0 {
        text.push_str(&format!("; a sample every {}", humanise::seconds(sampling)));
    }
    text
}

/// The span of an answer about GPUs, or its time if it is of the last sample alone.
fn samples_span(summary: &GpuSummary) -> String {
    match (summary.from.as_ref(), summary.to.as_ref()) {
        (Some(from), Some(to)) if from != to => span(Some(from), Some(to)),
        (_, Some(to)) => format!("; {} UTC", timestamp::clock(Some(to), 0)),
        _ => String::new(),
    }
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
