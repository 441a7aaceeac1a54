//! `orb8 flows`: one answer, or one each interval.

use std::time::SystemTime;

use clap::ValueEnum as _;
use orb8_proto::v1::{FlowQuery, FlowReports};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    args::{FilterArgs, FlowForm, FlowsArgs, SortArg},
    edge,
    exit::{Outcome, Usage},
    filter::{self, Scope},
    fleet::Fleet,
    printer::{self, Printer, is_table},
    query::{self, Answer, Cursor, End},
    render::{edge_csv, edge_json, edge_table, flow_csv, flow_json, flow_table, footer},
    signals::Stop,
};

pub(super) async fn run(fleet: &Fleet, args: &FlowsArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    // Bad usage shows before anything is waited for.
    query_of(fleet, args, SystemTime::now())?;
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    let mut printer = FlowPrinter::new(args, scope.note());
    if args.edges && args.watch && !printer.to.redraws {
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
            () = stop.requested() => Ok(printer.to.partial),
            result = watch(fleet, args, &mut printer) => result.map(|()| printer.to.partial),
        }?
    } else {
        snapshot(fleet, args, &mut printer, stop).await?
    };
    printer.to.output.finish().await?;
    Ok(Outcome::of(partial, args.strict))
}

/// How many rows are shown; 0: all.
fn limit_of(args: &FlowsArgs) -> u32 {
    args.limit.unwrap_or(if is_table(args.output) {
        super::TABLE_LIMIT
    } else {
        0
    })
}

/// The query as typed, with ages counted from `now`.
fn query_of(fleet: &Fleet, args: &FlowsArgs, now: SystemTime) -> anyhow::Result<FlowQuery> {
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    let mut query = filter::flow_query(
        filter::flow_filter(&args.filter, &scope),
        args.since.as_ref(),
        args.until.as_ref(),
        args.sort,
        limit_of(args),
        now,
    )?;
    // Of a workload among many nodes, its own node tells all; both ends are wanted where they are compared.
    let FilterArgs { pod, workload, .. } = &args.filter;
    if fleet.is_many() && !args.edges && !(pod.is_empty() && workload.is_empty()) {
        query.set_reports(FlowReports::Own);
    }
    Ok(query)
}

async fn snapshot(
    fleet: &Fleet,
    args: &FlowsArgs,
    printer: &mut FlowPrinter,
    stop: &Stop,
) -> anyhow::Result<bool> {
    let mut cursor = Cursor::default();
    // Asked to end while observing: the answer is wanted all the same.
    let mut enough = false;
    if let Some(duration) = super::observation(fleet, args.duration) {
        if !fleet.is_standalone() && args.since.is_none() {
            (cursor, _) = super::unless_stopped(stop, query::counted_until(fleet)).await?;
        }
        enough = super::observe(duration, stop).await;
    }
    let query = query_of(fleet, args, SystemTime::now())?;
    let work = async {
        printer.ask(fleet, &query, &cursor).await?;
        Ok(printer.to.partial)
    };
    if enough {
        work.await
    } else {
        super::unless_stopped(stop, work).await
    }
}

async fn watch(fleet: &Fleet, args: &FlowsArgs, printer: &mut FlowPrinter) -> anyhow::Result<()> {
    let end = args.duration.map(|duration| Instant::now() + duration);
    let begin = query_of(fleet, args, SystemTime::now())?.since;
    let mut cursor = Cursor::default();
    if !printer.to.redraws && begin.is_none() {
        // By the agents' clocks: ours may differ.
        (cursor, _) = query::counted_until(fleet).await?;
    }
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    if printer.to.redraws || args.since.is_some() {
        // There is something to show already.
    } else {
        ticks.tick().await;
    }
    let mut refreshes = 0;
    while args.count.is_none_or(|count| refreshes < count) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = super::deadline(end) => return Ok(()),
            () = printer.to.output.reader_gone() => return Ok(()),
        }
        let mut query = query_of(fleet, args, SystemTime::now())?;
        if !printer.to.redraws {
            query.since = begin;
        } else if args.limit.is_none() {
            query.limit = printer.to.room();
        }
        let from = if printer.to.redraws {
            Cursor::default()
        } else {
            cursor.clone()
        };
        cursor = printer.ask(fleet, &query, &from).await?;
        refreshes += 1;
    }
    Ok(())
}

/// Prints flows in the form that was asked.
#[derive(Debug)]
struct FlowPrinter {
    to: Printer,
    form: FlowForm,
    sort: SortArg,
    edges: bool,
    /// What is to be said of every answer, though nothing is missing.
    notes: Vec<String>,
    header_due: bool,
}

impl FlowPrinter {
    fn new(args: &FlowsArgs, note: Option<String>) -> Self {
        Self {
            to: Printer::new(args.output, args.watch),
            form: args.output,
            sort: args.sort,
            edges: args.edges,
            notes: note.into_iter().collect(),
            header_due: args.output == FlowForm::Csv,
        }
    }

    /// Asks, prints the answer, and says from where to ask next.
    async fn ask(&mut self, fleet: &Fleet, query: &FlowQuery, cursor: &Cursor) -> anyhow::Result<Cursor> {
        if std::mem::take(&mut self.header_due) {
            let header = if self.edges {
                edge_csv::header()
            } else {
                flow_csv::header()
            };
            self.to.output.write(header?).await?;
        }
        if self.edges {
            return self.joined(fleet, query, cursor).await;
        }
        let mut answer = Answer::to(fleet, query, cursor).await?;
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
                    self.to.output.write(text).await?;
                }
                FlowForm::Csv => {
                    let rows: Vec<Vec<u8>> =
                        flows.iter().map(flow_csv::row).collect::<anyhow::Result<_>>()?;
                    self.to.output.write(rows.concat()).await?;
                }
            }
        }
        let end = answer.end();
        let cut = end
            .summary
            .as_ref()
            .and_then(|summary| self.cut(shown, summary.matched_flows, "flows"));
        self.to.fit();
        let table = match self.form {
            _ if kept.is_empty() => "No flows.\n".to_owned(),
            FlowForm::Wide => flow_table::wide(&kept, &self.to.style),
            _ => flow_table::narrow(&kept, fleet.is_many(), &self.to.style),
        };
        self.close(table, cut, Vec::new(), end).await
    }

    /// Asks for edges, and prints them.
    async fn joined(&mut self, fleet: &Fleet, query: &FlowQuery, cursor: &Cursor) -> anyhow::Result<Cursor> {
        let (edges, all, end) = query::edges(fleet, query, cursor).await?;
        let settled = end.settled.as_ref();
        let record = |edge| edge_json::EdgeRecord::new(edge, edge::is_settled(edge, settled));
        self.to.fit();
        let mut table = String::new();
        match self.form {
            FlowForm::Table | FlowForm::Wide if edges.is_empty() => table.push_str("No flows.\n"),
            FlowForm::Wide => table = edge_table::wide(&edges, settled, &self.to.style),
            FlowForm::Table => table = edge_table::narrow(&edges, settled, &self.to.style),
            FlowForm::Json => {
                for edge in &edges {
                    let line = flow_json::line(&record(edge))?;
                    self.to.output.write(line).await?;
                }
            }
            FlowForm::Csv => {
                for edge in &edges {
                    self.to.output.write(edge_csv::row(record(edge))?).await?;
                }
            }
        }
        let cut = self.cut(edges.len() as u64, all, "edges");
        let notes = edge_table::notes(&edges, settled);
        self.close(table, cut, notes, end).await
    }

    /// That not all is shown, if it is so.
    fn cut(&self, shown: u64, all: u64, what: &str) -> Option<String> {
        let sort = self.sort.to_possible_value();
        let sort = sort.as_ref().map_or("", |sort| sort.get_name());
        super::cut(shown, all, what, sort)
    }

    /// Ends an answer: the table, where one is asked, and what is to be said of it.
    async fn close(
        &mut self,
        table: String,
        cut: Option<String>,
        notes: Vec<String>,
        end: End,
    ) -> anyhow::Result<Cursor> {
        let summary = end.summary.as_ref();
        let foot = printer::End {
            cut,
            totals: footer::totals(summary),
            notes: [&*notes, &self.notes].concat(),
            to: summary.and_then(|summary| summary.to),
            losses: end.losses,
        };
        self.to.close(table, foot).await?;
        Ok(end.cursor)
    }
}
