//! `orb8 flows`: one answer, or one each interval.

use std::time::{Duration, SystemTime};

use clap::ValueEnum as _;
use orb8_proto::v1::{Flow, FlowQuery, FlowSummary};
use prost_types::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    args::{FlowForm, FlowsArgs},
    connect::Session,
    exit::Outcome,
    filter, humanise,
    ledger::Losses,
    output::Output,
    query::{self, Answer},
    render::{flow_csv, flow_json, flow_table, footer},
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

pub(super) async fn run(session: &mut Session, args: &FlowsArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    // Bad usage shows before anything is waited for.
    query_of(args, SystemTime::now())?;
    let mut printer = Printer::new(args);
    let partial = if args.watch {
        tokio::select! {
            biased;
            () = stop.requested() => Ok(printer.partial),
            result = watch(session, args, &mut printer) => result.map(|()| printer.partial),
        }?
    } else {
        snapshot(session, args, &mut printer, stop).await?
    };
    printer.output.finish().await?;
    Ok(Outcome::of(partial, args.strict))
}

/// The query as typed, with ages counted from `now`.
fn query_of(args: &FlowsArgs, now: SystemTime) -> anyhow::Result<FlowQuery> {
    let table = matches!(args.output, FlowForm::Table | FlowForm::Wide);
    let limit = args.limit.unwrap_or(if table { TABLE_LIMIT } else { 0 });
    Ok(filter::flow_query(
        &args.filter,
        args.since.as_ref(),
        args.until.as_ref(),
        args.sort,
        limit,
        now,
    )?)
}

async fn snapshot(
    session: &mut Session,
    args: &FlowsArgs,
    printer: &mut Printer,
    stop: &Stop,
) -> anyhow::Result<bool> {
    let mut since = None;
    // Asked to end while observing: the answer is wanted all the same.
    let mut enough = false;
    if let Some(duration) = args
        .duration
        .or_else(|| session.is_standalone().then_some(OBSERVATION))
    {
        if !session.is_standalone() && args.since.is_none() {
            since = super::unless_stopped(stop, query::counted_until(session)).await?;
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
    let mut query = query_of(args, SystemTime::now())?;
    query.since = since.or(query.since);
    let work = async {
        printer.answer(Answer::to(session, query).await?).await?;
        Ok(printer.partial)
    };
    if enough {
        work.await
    } else {
        super::unless_stopped(stop, work).await
    }
}

async fn watch(session: &mut Session, args: &FlowsArgs, printer: &mut Printer) -> anyhow::Result<()> {
    let end = args.duration.map(|duration| Instant::now() + duration);
    let mut since = query_of(args, SystemTime::now())?.since;
    if !printer.redraws && since.is_none() {
        // By the agent's clock: ours may differ.
        since = query::counted_until(session).await?;
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
        let mut query = query_of(args, SystemTime::now())?;
        if !printer.redraws {
            query.since = since;
        } else if args.limit.is_none() {
            query.limit = Style::rows_beside(REDRAW_OTHERS);
        }
        let summary = printer.answer(Answer::to(session, query).await?).await?;
        since = summary.and_then(|summary| summary.to).or(since);
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
    sort: String,
    watch: bool,
    /// Whether each answer takes the place of the one before.
    redraws: bool,
    header_due: bool,
    /// Whether any answer lost something.
    partial: bool,
    /// What was told on stderr, so that a watch says it once.
    told: Vec<String>,
    previous_to: Option<Timestamp>,
}

impl Printer {
    fn new(args: &FlowsArgs) -> Self {
        let style = Style::of_stdout();
        let table = matches!(args.output, FlowForm::Table | FlowForm::Wide);
        Self {
            output: Output::stdout(),
            style,
            form: args.output,
            sort: args
                .sort
                .to_possible_value()
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default(),
            watch: args.watch,
            redraws: args.watch && table && style.terminal,
            header_due: args.output == FlowForm::Csv,
            partial: false,
            told: Vec::new(),
            previous_to: None,
        }
    }

    /// Prints one answer, and gives its summary.
    async fn answer(&mut self, mut answer: Answer) -> anyhow::Result<Option<FlowSummary>> {
        if std::mem::take(&mut self.header_due) {
            self.output.write(flow_csv::header()?).await?;
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
        let summary = answer.into_summary();
        let losses = Losses::of_answer(summary.as_ref());
        self.partial |= !losses.is_none();
        match self.form {
            FlowForm::Table | FlowForm::Wide => self.table(&kept, summary.as_ref(), shown, &losses).await?,
            FlowForm::Json | FlowForm::Csv => {
                self.output.flush().await?;
                self.tell(summary.as_ref(), shown, losses);
            }
        }
        self.previous_to = summary
            .as_ref()
            .and_then(|summary| summary.to)
            .or(self.previous_to);
        Ok(summary)
    }

    async fn table(
        &mut self,
        flows: &[Flow],
        summary: Option<&FlowSummary>,
        shown: u64,
        losses: &Losses,
    ) -> anyhow::Result<()> {
        if self.redraws {
            // The window may have been resized.
            self.style = Style::of_stdout();
        }
        let mut text = String::new();
        if self.redraws {
            text.push_str(REDRAW);
        } else if self.watch {
            let to = summary.and_then(|summary| summary.to);
            text.push_str(&format!("--- {}\n", timestamp::date_clock(to.as_ref())));
        }
        text.push_str(&match self.form {
            _ if flows.is_empty() => "No flows.\n".to_owned(),
            FlowForm::Wide => flow_table::wide(flows, &self.style),
            _ => flow_table::narrow(flows, &self.style),
        });
        text.push('\n');
        text.push_str(&footer::totals(summary, shown, &self.sort));
        text.push_str(&footer::losses(losses, &self.style));
        Ok(self.output.write(text).await?)
    }

    /// Beside data for programs, words for people go to stderr.
    fn tell(&mut self, summary: Option<&FlowSummary>, shown: u64, losses: Losses) {
        let mut sentences = losses.sentences;
        if let Some(summary) = summary
            && shown < summary.matched_flows
        {
            sentences.push(format!(
                "{shown} of {} flows shown, the first by {} (--limit 0: all)",
                summary.matched_flows, self.sort
            ));
        }
        for sentence in sentences {
            if !self.told.contains(&sentence) {
                terminal::say(&format!("orb8: {sentence}"));
                self.told.truncate(100);
                self.told.insert(0, sentence);
            }
        }
    }
}
