//! `orb8 gpu`: devices, what is held and idle, and calls of the CUDA libraries; one answer, or one each interval.

use std::time::{Duration, SystemTime};

use orb8_proto::v1::{GpuDevice, GpuQuery};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    args::{FlowForm, GpuArgs, GpuAskArgs, GpuView},
    exit::{Outcome, Usage},
    filter::{Scope, gpu},
    fleet::Fleet,
    gpu as names,
    printer::{self, Printer, is_table},
    query::gpu::{self as query, Answer},
    render::{
        flow_json, footer, gpu_csv,
        gpu_json::{CallsRecord, DeviceRecord, WasteRecord},
        gpu_table,
    },
    signals::Stop,
};

/// How often an agent of this process is asked whether it has looked at its sources.
const LOOK: Duration = Duration::from_millis(200);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Devices,
    Idle,
    Calls,
}

pub(super) async fn run(fleet: &Fleet, args: &GpuArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    let (what, args) = match &args.view {
        None => (What::Devices, &args.ask),
        Some(GpuView::Idle(args)) => (What::Idle, args),
        Some(GpuView::Cuda(args)) => (What::Calls, args),
    };
    // Bad usage shows before anything is waited for.
    if what == What::Calls && !args.filter.device.is_empty() {
        return Err(Usage(
            "CUDA calls name no device, so --device picks none of them: ask by --pod, --workload or --namespace"
                .to_owned(),
        )
        .into());
    }
    query_of(fleet, args, what, SystemTime::now())?;
    let mut printer = GpuPrinter::new(fleet, args, what);
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

/// The query as typed, with ages counted from `now`.
fn query_of(fleet: &Fleet, args: &GpuAskArgs, what: What, now: SystemTime) -> anyhow::Result<GpuQuery> {
    let scope = Scope::of_holders(&args.filter, fleet.namespace.as_deref());
    Ok(gpu::query(args, &scope, what == What::Idle, now)?)
}

async fn snapshot(
    fleet: &Fleet,
    args: &GpuAskArgs,
    printer: &mut GpuPrinter<'_>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let what = printer.what;
    let duration = match what {
        // What a device does now shows at once.
        What::Devices => args.duration,
        What::Idle | What::Calls => super::observation(fleet, args.duration),
    };
    // Asked to end while observing: the answer is wanted all the same.
    let enough = match duration {
        Some(duration) => super::observe(duration, stop).await,
        None => false,
    };
    let work = async { printer.answer(settled(fleet, args, what).await?).await };
    if enough {
        work.await
    } else {
        super::unless_stopped(stop, work).await
    }
}

/// An answer after a look at all sources: an agent that has just begun may not have had one yet.
async fn settled(fleet: &Fleet, args: &GpuAskArgs, what: What) -> anyhow::Result<Answer> {
    let end = Instant::now() + super::OBSERVATION;
    loop {
        let query = query_of(fleet, args, what, SystemTime::now())?;
        let answer = query::ask(fleet, &query).await?;
        if !fleet.is_standalone() || answer.is_settled() || Instant::now() >= end {
            return Ok(answer);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn watch(fleet: &Fleet, args: &GpuAskArgs, printer: &mut GpuPrinter<'_>) -> anyhow::Result<()> {
    let end = args.duration.map(|duration| Instant::now() + duration);
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut refreshes = 0;
    while args.count.is_none_or(|count| refreshes < count) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = super::deadline(end) => return Ok(()),
            () = printer.to.output.reader_gone() => return Ok(()),
        }
        let answer = if refreshes == 0 {
            settled(fleet, args, printer.what).await?
        } else {
            let query = query_of(fleet, args, printer.what, SystemTime::now())?;
            query::ask(fleet, &query).await?
        };
        printer.answer(answer).await?;
        refreshes += 1;
    }
    Ok(())
}

/// Prints answers in the form that was asked.
#[derive(Debug)]
struct GpuPrinter<'a> {
    to: Printer,
    args: &'a GpuAskArgs,
    what: What,
    /// Whether more than one agent answers.
    many: bool,
    /// What is to be said of every answer, though nothing is missing.
    note: Option<String>,
    header_due: bool,
}

impl<'a> GpuPrinter<'a> {
    fn new(fleet: &Fleet, args: &'a GpuAskArgs, what: What) -> Self {
        Self {
            to: Printer::new(args.output, args.watch),
            args,
            what,
            many: fleet.is_many(),
            note: Scope::of_holders(&args.filter, fleet.namespace.as_deref()).note(),
            header_due: args.output == FlowForm::Csv,
        }
    }

    /// How many of these are shown.
    fn shown(&self, all: usize) -> usize {
        let limit = self.args.limit.unwrap_or(if is_table(self.args.output) {
            super::TABLE_LIMIT
        } else {
            0
        });
        match usize::try_from(limit) {
            Ok(0) | Err(_) => all,
            Ok(limit) => all.min(limit),
        }
    }

    async fn answer(&mut self, answer: Answer) -> anyhow::Result<()> {
        if std::mem::take(&mut self.header_due) {
            let header = match self.what {
                What::Devices => gpu_csv::header(false)?,
                What::Idle => gpu_csv::header(true)?,
                What::Calls => gpu_csv::calls_header()?,
            };
            self.to.output.write(header).await?;
        }
        self.to.fit();
        let nothing = match self.what {
            What::Devices => answer.no_gpu(false, self.many, self.note.as_deref()),
            What::Idle => answer.no_gpu(true, self.many, self.note.as_deref()),
            What::Calls => answer.no_calls(self.many),
        };
        if let Some(line) = nothing {
            // Who is missing is told all the same.
            return self.to.only(line, answer.losses).await;
        }
        match self.what {
            What::Devices => self.devices(answer).await,
            What::Idle => self.idle(answer).await,
            What::Calls => self.calls(answer).await,
        }
    }

    async fn devices(&mut self, answer: Answer) -> anyhow::Result<()> {
        let all = answer.devices.len();
        let shown = &answer.devices[..self.shown(all)];
        let cut = super::cut(shown.len() as u64, all as u64, "devices", "node and index");
        let mut table = String::new();
        match self.args.output {
            FlowForm::Table => table = gpu_table::narrow(shown, self.many, &self.to.style),
            FlowForm::Wide => table = gpu_table::wide(shown, &self.to.style),
            FlowForm::Json => {
                let mut text = String::new();
                for device in shown {
                    text.push_str(&flow_json::line(&DeviceRecord::from(device))?);
                }
                self.to.output.write(text).await?;
            }
            FlowForm::Csv => {
                for device in shown {
                    self.to.output.write(gpu_csv::rows(device, false)?).await?;
                }
            }
        }
        let totals = footer::gpus(&answer.devices, answer.summary.as_ref());
        self.close(table, cut, totals, answer).await
    }

    async fn idle(&mut self, answer: Answer) -> anyhow::Result<()> {
        let wastes = names::wastes(&answer.devices);
        let all = wastes.len();
        let shown = &wastes[..self.shown(all)];
        let cut = super::cut(shown.len() as u64, all as u64, "entries", "hours wasted");
        let mut table = String::new();
        match self.args.output {
            FlowForm::Table | FlowForm::Wide if shown.is_empty() => {
                table.push_str("No GPU that is held was idle.\n");
            }
            FlowForm::Table | FlowForm::Wide => {
                let wide = self.args.output == FlowForm::Wide;
                table = gpu_table::idle(shown, self.many, wide, &self.to.style);
            }
            FlowForm::Json => {
                let mut text = String::new();
                for waste in shown {
                    text.push_str(&flow_json::line(&WasteRecord::from(waste))?);
                }
                self.to.output.write(text).await?;
            }
            FlowForm::Csv => {
                let mut told: Vec<&GpuDevice> = Vec::new();
                for waste in shown {
                    // Once, though several held it one after the other.
                    if !told.iter().any(|device| std::ptr::eq(*device, waste.device)) {
                        told.push(waste.device);
                        self.to.output.write(gpu_csv::rows(waste.device, true)?).await?;
                    }
                }
            }
        }
        let totals = footer::wasted(&wastes, answer.summary.as_ref());
        drop(wastes);
        self.close(table, cut, totals, answer).await
    }

    async fn calls(&mut self, mut answer: Answer) -> anyhow::Result<()> {
        answer.calls.sort_by(|a, b| {
            b.count
                .cmp(&a.count)
                .then_with(|| (&a.node, &a.function).cmp(&(&b.node, &b.function)))
        });
        let all = answer.calls.len();
        let shown = &answer.calls[..self.shown(all)];
        let cut = super::cut(shown.len() as u64, all as u64, "rows", "calls");
        let mut table = String::new();
        match self.args.output {
            FlowForm::Table | FlowForm::Wide if shown.is_empty() => table.push_str("No CUDA calls.\n"),
            FlowForm::Table | FlowForm::Wide => {
                let wide = self.args.output == FlowForm::Wide;
                table = gpu_table::calls(shown, self.many, wide, &self.to.style);
            }
            FlowForm::Json => {
                let mut text = String::new();
                for calls in shown {
                    text.push_str(&flow_json::line(&CallsRecord::from(calls))?);
                }
                self.to.output.write(text).await?;
            }
            FlowForm::Csv => {
                let lines: Vec<Vec<u8>> = shown.iter().map(gpu_csv::calls).collect::<anyhow::Result<_>>()?;
                self.to.output.write(lines.concat()).await?;
            }
        }
        let totals = footer::cuda(&answer.calls, answer.summary.as_ref());
        self.close(table, cut, totals, answer).await
    }

    async fn close(
        &mut self,
        table: String,
        cut: Option<String>,
        totals: String,
        answer: Answer,
    ) -> anyhow::Result<()> {
        let mut losses = answer.losses;
        if self.what != What::Calls {
            losses.sentences.extend(gpu_table::troubles(
                &answer.devices,
                answer.summary.as_ref(),
                self.many,
            ));
        }
        let end = printer::End {
            cut,
            totals,
            notes: answer.notes.into_iter().chain(self.note.clone()).collect(),
            to: answer.summary.as_ref().and_then(|summary| summary.to),
            losses,
        };
        self.to.close(table, end).await
    }
}
