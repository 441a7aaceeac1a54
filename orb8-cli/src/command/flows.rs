//! `orb8 flows`: one answer, or one each interval.

use std::time::{Duration, SystemTime};

use clap::ValueEnum as _;
use orb8_proto::v1::FlowQuery;
use tokio::time::{Instant, MissedTickBehavior};
use unicode_width::UnicodeWidthStr as _;

use crate::{
    args::{FlowForm, FlowsArgs, SortArg},
    edge,
    exit::{Outcome, Usage},
    filter::{self, Scope},
    fleet::Fleet,
    humanise,
    output::Output,
    query::{self, Answer, Cursor, End},
    render::{edge_csv, edge_json, edge_table, flow_csv, flow_json, flow_table, footer},
    signals::Stop,
    terminal::{self, Style},
    timestamp,
};

/// How long a standalone snapshot observes, unless told.
const OBSERVATION: Duration = Duration::from_secs(5);
/// How many flows a table shows, unless told.
const TABLE_LIMIT: u32 = 50;
/// Lines beside the flows of a table that is drawn anew: titles, totals, losses, and the cursor's.
const REDRAW_OTHERS: u16 = 8;
/// Moves the cursor home and clears what is below.
const REDRAW: &str = "\x1b[H\x1b[J";

pub(super) async fn run(fleet: &Fleet, args: &FlowsArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    // Bad usage shows before anything is waited for.
    query_of(fleet, args, SystemTime::now())?;
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    let mut printer = Printer::new(args, scope.note());
    if args.edges && args.watch && !printer.redraws {
        return Err(Usage(
            "--edges --watch is for tables on a terminal: from one refresh to the next, the two ends of a flow do \
             not count in step, and their differences would be no loss"
                .to_owned(),
        )
        .into());
    }
    let partial = if args.watch {
        tokio::select! {
            biased;
            () = stop.requested() => Ok(printer.partial),
            result = watch(fleet, args, &mut printer) => result.map(|()| printer.partial),
        }?
    } else {
        snapshot(fleet, args, &mut printer, stop).await?
    };
    printer.output.finish().await?;
    Ok(Outcome::of(partial, args.strict))
}

/// How many rows are shown; 0: all.
fn limit_of(args: &FlowsArgs) -> u32 {
    let table = matches!(args.output, FlowForm::Table | FlowForm::Wide);
    args.limit.unwrap_or(if table { TABLE_LIMIT } else { 0 })
}

/// The query as typed, with ages counted from `now`.
fn query_of(fleet: &Fleet, args: &FlowsArgs, now: SystemTime) -> anyhow::Result<FlowQuery> {
    // Which edges are the first shows when all reports are joined.
    let limit = if args.edges { 0 } else { limit_of(args) };
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    Ok(filter::flow_query(
        filter::flow_filter(&args.filter, &scope),
        args.since.as_ref(),
        args.until.as_ref(),
        args.sort,
        limit,
        now,
    )?)
}

async fn snapshot(
    fleet: &Fleet,
    args: &FlowsArgs,
    printer: &mut Printer,
    stop: &Stop,
) -> anyhow::Result<bool> {
    let mut cursor = Cursor::default();
    // Asked to end while observing: the answer is wanted all the same.
    let mut enough = false;
    if let Some(duration) = args
        .duration
        .or_else(|| fleet.is_standalone().then_some(OBSERVATION))
    {
        if !fleet.is_standalone() && args.since.is_none() {
            (cursor, _) = super::unless_stopped(stop, query::counted_until(fleet)).await?;
        }
        terminal::say(&format!(
            "orb8: observing for {} … (^C: enough)",
            humanise::seconds(duration.as_secs_f64())
        ));
        tokio::select! {
            () = tokio::time::sleep(duration) => {}
            () = stop.requested() => enough = true,
        }
    }
    let query = query_of(fleet, args, SystemTime::now())?;
    let work = async {
        printer
            .answer(Answer::to(fleet, &query, &cursor).await?, limit_of(args))
            .await?;
        Ok(printer.partial)
    };
    if enough {
        work.await
    } else {
        super::unless_stopped(stop, work).await
    }
}

async fn watch(fleet: &Fleet, args: &FlowsArgs, printer: &mut Printer) -> anyhow::Result<()> {
    let end = args.duration.map(|duration| Instant::now() + duration);
    let begin = query_of(fleet, args, SystemTime::now())?.since;
    let mut cursor = Cursor::default();
    if !printer.redraws && begin.is_none() {
        // By the agents' clocks: ours may differ.
        (cursor, _) = query::counted_until(fleet).await?;
    }
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    if printer.redraws || args.since.is_some() {
        // There is something to show already.
    } else {
        ticks.tick().await;
    }
    let mut refreshes = 0;
    while args.count.is_none_or(|count| refreshes < count) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = super::deadline(end) => return Ok(()),
            () = printer.output.reader_gone() => return Ok(()),
        }
        let mut query = query_of(fleet, args, SystemTime::now())?;
        let mut limit = limit_of(args);
        if !printer.redraws {
            query.since = begin;
        } else if args.limit.is_none() {
            limit = Style::rows_beside(printer.others);
            query.limit = if args.edges { 0 } else { limit };
        }
        let from = if printer.redraws {
            Cursor::default()
        } else {
            cursor.clone()
        };
        cursor = printer
            .answer(Answer::to(fleet, &query, &from).await?, limit)
            .await?;
        refreshes += 1;
    }
    Ok(())
}

/// Prints answers in the form that was asked.
#[derive(Debug)]
struct Printer {
    output: Output,
    style: Style,
    form: FlowForm,
    sort: SortArg,
    edges: bool,
    /// What is to be said of every answer, though nothing is missing.
    notes: Vec<String>,
    watch: bool,
    /// Whether each answer takes the place of the one before.
    redraws: bool,
    /// Lines beside the rows of a table that is drawn anew, as many as there were the last time.
    others: u16,
    header_due: bool,
    /// Whether any answer lost something.
    partial: bool,
    /// What was told on stderr, so that a watch says it once.
    told: Vec<String>,
}

impl Printer {
    fn new(args: &FlowsArgs, note: Option<String>) -> Self {
        let style = Style::of_stdout();
        let table = matches!(args.output, FlowForm::Table | FlowForm::Wide);
        Self {
            output: Output::stdout(),
            style,
            form: args.output,
            sort: args.sort,
            edges: args.edges,
            notes: note.into_iter().collect(),
            watch: args.watch,
            redraws: args.watch && table && style.terminal,
            others: REDRAW_OTHERS,
            header_due: args.output == FlowForm::Csv,
            partial: false,
            told: Vec::new(),
        }
    }

    /// Prints one answer, of edges at most `limit`, and says from where to ask next.
    async fn answer(&mut self, mut answer: Answer, limit: u32) -> anyhow::Result<Cursor> {
        if std::mem::take(&mut self.header_due) {
            let header = if self.edges {
                edge_csv::header()
            } else {
                flow_csv::header()
            };
            self.output.write(header?).await?;
        }
        if self.edges {
            return self.joined(answer, limit).await;
        }
        let mut kept = Vec::new();
        let mut shown = 0_u64;
        while let Some(flows) = answer.next().await? {
            shown += flows.len() as u64;
            match self.form {
                FlowForm::Table | FlowForm::Wide => kept.extend(flows),
                FlowForm::Json => {
                    let mut text = String::new();
                    for flow in &flows {
                        text.push_str(&flow_json::line(&flow_json::FlowRecord::from(flow))?);
                    }
                    self.output.write(text).await?;
                }
                FlowForm::Csv => {
                    let rows: Vec<Vec<u8>> =
                        flows.iter().map(flow_csv::row).collect::<anyhow::Result<_>>()?;
                    self.output.write(rows.concat()).await?;
                }
            }
        }
        let end = answer.end();
        let cut = end
            .summary
            .as_ref()
            .and_then(|summary| self.cut(shown, summary.matched_flows, "flows"));
        self.fit();
        let table = match self.form {
            _ if kept.is_empty() => "No flows.\n".to_owned(),
            FlowForm::Wide => flow_table::wide(&kept, &self.style),
            _ => flow_table::narrow(&kept, &self.style),
        };
        self.close(table, cut, Vec::new(), end).await
    }

    /// Prints one answer's edges.
    async fn joined(&mut self, mut answer: Answer, limit: u32) -> anyhow::Result<Cursor> {
        let mut edges = edge::join(&mut answer).await?;
        let end = answer.end();
        edge::sort(&mut edges, filter::flow_sort(self.sort));
        let all = edges.len() as u64;
        if limit > 0 {
            edges.truncate(limit as usize);
        }
        let settled = end.settled.as_ref();
        let record = |edge| edge_json::EdgeRecord::new(edge, edge::is_settled(edge, settled));
        self.fit();
        let mut table = String::new();
        match self.form {
            FlowForm::Table | FlowForm::Wide if edges.is_empty() => table.push_str("No flows.\n"),
            FlowForm::Wide => table = edge_table::wide(&edges, settled, &self.style),
            FlowForm::Table => table = edge_table::narrow(&edges, settled, &self.style),
            FlowForm::Json => {
                for edge in &edges {
                    let line = flow_json::line(&record(edge))?;
                    self.output.write(line).await?;
                }
            }
            FlowForm::Csv => {
                for edge in &edges {
                    self.output.write(edge_csv::row(record(edge))?).await?;
                }
            }
        }
        let cut = self.cut(edges.len() as u64, all, "edges");
        let notes = edge_table::notes(&edges, settled);
        self.close(table, cut, notes, end).await
    }

    /// The window may have been resized.
    fn fit(&mut self) {
        if self.redraws {
            self.style = Style::of_stdout();
        }
    }

    /// That not all is shown, if it is so.
    fn cut(&self, shown: u64, all: u64, what: &str) -> Option<String> {
        let sort = self.sort.to_possible_value();
        let sort = sort.as_ref().map_or("", |sort| sort.get_name());
        (shown < all).then(|| format!("{shown} of {all} {what} shown, the first by {sort} (--limit 0: all)"))
    }

    /// Ends an answer: the table, where one is asked, and what is to be said of it.
    async fn close(
        &mut self,
        table: String,
        cut: Option<String>,
        notes: Vec<String>,
        end: End,
    ) -> anyhow::Result<Cursor> {
        self.partial |= !end.losses.is_none();
        let notes = [&*notes, &self.notes].concat();
        match self.form {
            FlowForm::Table | FlowForm::Wide => {
                let mut text = String::new();
                let foot = |style: &Style| {
                    format!(
                        "\n{}{}{}{}",
                        footer::notes(cut.as_slice()),
                        footer::totals(end.summary.as_ref()),
                        footer::notes(&notes),
                        footer::losses(&end.losses, style)
                    )
                };
                let mut table = table;
                if self.redraws {
                    text.push_str(REDRAW);
                    // What does not fit would scroll the titles away.
                    let plain = Style {
                        colours: false,
                        ..self.style
                    };
                    self.others = screen_lines(&foot(&plain), self.style.width).saturating_add(2);
                    let room = Style::rows_beside(self.others) as usize + 1;
                    table = table.split_inclusive('\n').take(room).collect();
                } else if self.watch {
                    let to = end.summary.as_ref().and_then(|summary| summary.to);
                    text.push_str(&format!("--- {}\n", timestamp::date_clock(to.as_ref())));
                }
                text.push_str(&table);
                text.push_str(&foot(&self.style));
                self.output.write(text).await?;
            }
            FlowForm::Json | FlowForm::Csv => {
                self.output.flush().await?;
                let sentences = end.losses.sentences.into_iter().chain(cut).chain(notes);
                sentences.for_each(|sentence| self.tell(sentence));
            }
        }
        Ok(end.cursor)
    }

    /// Beside data for programs, words for people go to stderr, each once.
    fn tell(&mut self, sentence: String) {
        if !self.told.contains(&sentence) {
            terminal::say(&format!("orb8: {sentence}"));
            self.told.truncate(100);
            self.told.insert(0, sentence);
        }
    }
}

/// Lines of a terminal that `text` takes, long ones being wrapped.
fn screen_lines(text: &str, width: usize) -> u16 {
    let lines = text
        .lines()
        .map(|line| line.width().div_ceil(width.max(1)).max(1))
        .sum::<usize>();
    u16::try_from(lines).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_lines_count() {
        assert_eq!(screen_lines("\nabcd\nabcde\n", 4), 1 + 1 + 2);
        assert_eq!(screen_lines("", 0), 0);
    }
}
