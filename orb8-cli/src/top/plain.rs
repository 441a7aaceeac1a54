//! `top` where there is no terminal: a table a refresh.

use super::{calls::Calls, calls_view, gpus::Gpus, model::Model, view::sparkline};
use crate::{
    humanise,
    ledger::Losses,
    render::{
        footer, gpu_table,
        table::{Cell, Column, Table},
    },
    terminal::Style,
    timestamp,
};

/// Owners by rate, below the time until which they were counted.
pub(crate) fn render(model: &Model, style: &Style) -> String {
    let mut table = Table::new([
        Column::workload("OWNER", 10),
        Column::number("SENT/s"),
        Column::number("RECV/s"),
        Column::number("PKT/s"),
        Column::number("RTT"),
        Column::number("RETX"),
        Column::text("LAST 60"),
    ]);
    for (name, rates) in model.owners() {
        table.row([
            Cell::new(name),
            Cell::new(humanise::bytes(rates.sent as u64)),
            Cell::new(humanise::bytes(rates.received as u64)),
            Cell::new(humanise::rate(rates.packets)),
            Cell::new(
                rates
                    .rtt_us
                    .map(|us| humanise::micros(us, style.utf8))
                    .unwrap_or_default(),
            ),
            Cell::new(humanise::count(rates.retransmits)),
            Cell::new(sparkline(&rates.history, 12, style.utf8).trim_start()),
        ]);
    }
    let unknown = Losses::unknown();
    format!(
        "--- {} ({})\n{}{}{}",
        timestamp::date_clock(model.to.as_ref()),
        humanise::seconds(model.seconds),
        table.render(Some(style.width), style),
        footer::notes(model.note.as_slice()),
        footer::losses(model.losses.as_ref().unwrap_or(&unknown), style),
    )
}

/// Owners by their calls, below the time until which they were counted.
pub(crate) fn render_calls(calls: &Calls, style: &Style) -> String {
    let mut table = Table::new([
        Column::workload("OWNER", 10),
        Column::number("CALLS/s"),
        Column::number("ERR/s"),
        Column::number("TIME/s"),
        Column::name("MOST", 8),
        Column::text("LAST 60"),
    ]);
    for (name, rates, top) in calls.owners() {
        table.row([
            Cell::new(name),
            Cell::new(humanise::small_rate(rates.calls)),
            Cell::new(calls_view::failed(rates)),
            Cell::new(calls_view::time(rates, style.utf8)),
            Cell::new(top.map_or("", |call| &call.name)),
            Cell::new(sparkline(&rates.history, 12, style.utf8).trim_start()),
        ]);
    }
    let unknown = Losses::unknown();
    format!(
        "--- {} ({})\n{}{}{}",
        timestamp::date_clock(calls.to.as_ref()),
        humanise::seconds(calls.seconds),
        table.render(Some(style.width), style),
        footer::notes(&calls.notes),
        footer::losses(calls.losses.as_ref().unwrap_or(&unknown), style),
    )
}

/// GPUs and their holders, below the time of the answer.
pub(crate) fn render_gpus(gpus: &Gpus, style: &Style) -> String {
    let unknown = Losses::unknown();
    let table = match &gpus.nothing {
        Some(nothing) => footer::notes(std::slice::from_ref(nothing)),
        None => gpu_table::narrow(gpus.devices(), gpus.many, style),
    };
    format!(
        "--- {}\n{table}{}{}{}",
        timestamp::date_clock(gpus.to.as_ref()),
        footer::notes(&gpus.notes),
        footer::notes(&gpus.said),
        footer::losses(gpus.losses.as_ref().unwrap_or(&unknown), style),
    )
}
