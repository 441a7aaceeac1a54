//! `orb8 syscalls`: one answer, or one each interval.

use std::time::SystemTime;

use clap::ValueEnum as _;
use orb8_proto::v1::{SyscallGroup, SyscallMode, SyscallQuery};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    args::{FlowForm, SyscallsArgs},
    exit::Outcome,
    filter::{Scope, syscall},
    fleet::Fleet,
    humanise,
    printer::{self, Printer, is_table},
    query::{
        Cursor,
        syscall::{self as query, Answer, Measured},
    },
    render::{
        flow_json, footer, syscall_csv, syscall_json,
        syscall_table::{self, View},
    },
    signals::Stop,
};

pub(super) async fn run(fleet: &Fleet, args: &SyscallsArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    // Bad usage shows before anything is waited for.
    query_of(fleet, args, 0, SystemTime::now())?;
    let mut printer = RowPrinter::new(fleet, args);
    if args.watch {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            result = watch(fleet, args, &mut printer) => result?,
        }
    } else {
        snapshot(fleet, args, &mut printer, stop).await?;
    }
    let partial = printer.to.partial;
    printer.to.output.finish().await?;
    Ok(Outcome::of(partial, args.strict))
}

/// How many rows are shown; 0: all.
fn limit_of(args: &SyscallsArgs) -> u32 {
    args.limit.unwrap_or(if is_table(args.output) {
        super::TABLE_LIMIT
    } else {
        0
    })
}

/// The query as typed, with ages counted from `now`.
fn query_of(fleet: &Fleet, args: &SyscallsArgs, limit: u32, now: SystemTime) -> anyhow::Result<SyscallQuery> {
    let scope = Scope::of_callers(&args.filter.caller, fleet.namespace.as_deref());
    Ok(syscall::query(args, &scope, limit, now)?)
}

async fn snapshot(
    fleet: &Fleet,
    args: &SyscallsArgs,
    printer: &mut RowPrinter<'_>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut cursor = Cursor::default();
    // Asked to end while observing: the answer is wanted all the same.
    let mut enough = false;
    if let Some(duration) = super::observation(fleet, args.duration) {
        if !fleet.is_standalone() && args.since.is_none() {
            (cursor, _) = super::unless_stopped(stop, query::counted_until(fleet)).await?;
        }
        enough = super::observe(duration, stop).await;
    }
    let query = query_of(fleet, args, limit_of(args), SystemTime::now())?;
    let work = async { printer.answer(query::ask(fleet, &query, &cursor).await?).await };
    if enough {
        work.await?;
    } else {
        super::unless_stopped(stop, work).await?;
    }
    Ok(())
}

async fn watch(fleet: &Fleet, args: &SyscallsArgs, printer: &mut RowPrinter<'_>) -> anyhow::Result<()> {
    let end = args.duration.map(|duration| Instant::now() + duration);
    let begin = query_of(fleet, args, 0, SystemTime::now())?.since;
    let mut cursor = Cursor::default();
    if !printer.to.redraws && begin.is_none() {
        // By the agents' clocks: ours may differ.
        (cursor, _) = query::counted_until(fleet).await?;
    }
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    if !printer.to.redraws && args.since.is_none() {
        // There is nothing to show yet.
        ticks.tick().await;
    }
    let mut refreshes = 0;
    while args.count.is_none_or(|count| refreshes < count) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = super::deadline(end) => return Ok(()),
            () = printer.to.output.reader_gone() => return Ok(()),
        }
        let limit = if printer.to.redraws && args.limit.is_none() {
            printer.to.room()
        } else {
            limit_of(args)
        };
        let mut query = query_of(fleet, args, limit, SystemTime::now())?;
        let from = if printer.to.redraws {
            Cursor::default()
        } else {
            query.since = begin;
            cursor.clone()
        };
        cursor = printer.answer(query::ask(fleet, &query, &from).await?).await?;
        refreshes += 1;
    }
    Ok(())
}

/// Prints rows in the form that was asked.
#[derive(Debug)]
struct RowPrinter<'a> {
    to: Printer,
    args: &'a SyscallsArgs,
    view: View,
    /// Whether more than one agent answers.
    many: bool,
    /// What is to be said of every answer, though nothing is missing.
    notes: Vec<String>,
    header_due: bool,
}

impl<'a> RowPrinter<'a> {
    fn new(fleet: &Fleet, args: &'a SyscallsArgs) -> Self {
        let changes = args.new || args.anomalies;
        let groups = syscall::groups(args);
        Self {
            to: Printer::new(args.output, args.watch),
            args,
            view: View {
                errors: args.errors || !args.errno.is_empty(),
                latency: args.latency,
                waits: args.waits,
                changes,
                node: changes && fleet.is_many() || groups.contains(&SyscallGroup::Node),
            },
            many: fleet.is_many(),
            notes: Scope::of_callers(&args.filter.caller, fleet.namespace.as_deref())
                .note()
                .into_iter()
                .collect(),
            header_due: args.output == FlowForm::Csv,
        }
    }

    /// Prints one answer, and says from where to ask next.
    async fn answer(&mut self, answer: Answer) -> anyhow::Result<Cursor> {
        if std::mem::take(&mut self.header_due) {
            self.to.output.write(syscall_csv::header()?).await?;
        }
        self.to.fit();
        let Answer {
            rows,
            summary,
            modes,
            mut losses,
            notes,
            cursor,
            ..
        } = answer;
        losses.sentences.extend(unmeasured(&modes, self.args, self.many));
        let summary = summary.as_ref();
        let span = summary.and_then(|summary| summary.from.zip(summary.to));
        let mut table = String::new();
        let mut explanations = Vec::new();
        match self.args.output {
            FlowForm::Table | FlowForm::Wide if rows.is_empty() => table.push_str("No calls.\n"),
            FlowForm::Wide => table = syscall_table::wide(&rows, &self.to.style),
            FlowForm::Table => {
                table = syscall_table::narrow(&rows, self.view, span, &self.to.style);
                explanations = syscall_table::explanations(&rows);
            }
            FlowForm::Json => {
                let mut text = String::new();
                for row in &rows {
                    text.push_str(&flow_json::line(&syscall_json::SyscallRecord::from(row))?);
                }
                self.to.output.write(text).await?;
            }
            FlowForm::Csv => {
                let lines: Vec<Vec<u8>> = rows.iter().map(syscall_csv::row).collect::<anyhow::Result<_>>()?;
                self.to.output.write(lines.concat()).await?;
            }
        }
        let sort = syscall::sort_of(self.args).to_possible_value();
        let sort = sort.as_ref().map_or("", |sort| sort.get_name());
        let end = printer::End {
            cut: summary
                .and_then(|summary| super::cut(rows.len() as u64, summary.matched_rows, "rows", sort)),
            totals: footer::calls(summary),
            notes: [explanations, notes, self.notes.clone()].concat(),
            to: summary.and_then(|summary| summary.to),
            losses,
        };
        self.to.close(table, end).await?;
        Ok(cursor)
    }
}

/// What was asked and not measured, or not counted at all: a sentence for each agent, and how to switch it on.
fn unmeasured(modes: &[Measured], args: &SyscallsArgs, many: bool) -> Vec<String> {
    let asked = syscall::needs_latency(args);
    modes
        .iter()
        .filter_map(|agent| {
            let sentence = match agent.mode {
                SyscallMode::Off => "calls are not counted: mode `off` (`orb8 syscall-mode counts` switches it on)".to_owned(),
                SyscallMode::Counts if asked && agent.seconds <= 0.0 => {
                    "errors and times are not measured: mode `counts` (`orb8 syscall-mode latency` switches it on)".to_owned()
                }
                SyscallMode::Counts | SyscallMode::Latency
                    // The probes are switched between two readings.
                    if asked && agent.seconds + 1.5 < agent.span =>
                {
                    format!(
                        "errors and times were measured in {} of the {} only",
                        humanise::seconds(agent.seconds),
                        humanise::seconds(agent.span)
                    )
                }
                _ => return None,
            };
            Some(if many {
                format!("{}: {sentence}", agent.name)
            } else {
                sentence
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn what_is_not_measured_is_said_with_what_switches_it_on() {
        let told = |line: &str, mode, seconds, many| {
            let Command::Syscalls(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
                unreachable!("the line is a syscalls command")
            };
            let agent = Measured {
                name: "n1".into(),
                mode,
                span: 60.0,
                seconds,
            };
            unmeasured(&[agent], &args, many).pop().unwrap_or_default()
        };
        let counts = told("orb8 syscalls --errors", SyscallMode::Counts, 0.0, true);
        assert!(
            counts.starts_with("n1: errors") && counts.contains("syscall-mode latency"),
            "{counts}"
        );
        assert_eq!(told("orb8 syscalls", SyscallMode::Counts, 0.0, false), "");
        assert_eq!(
            told("orb8 syscalls --waits", SyscallMode::Latency, 59.0, false),
            ""
        );
        assert_eq!(
            told("orb8 syscalls --waits", SyscallMode::Latency, 12.0, false),
            "errors and times were measured in 12 s of the 1 min only"
        );
        let off = told("orb8 syscalls", SyscallMode::Off, 0.0, false);
        assert!(off.contains("syscall-mode counts"), "{off}");
    }
}
