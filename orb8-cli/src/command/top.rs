//! `orb8 top`: asks each interval for what is new, and shows it.

use std::time::SystemTime;

use orb8_proto::v1::FlowSummary;
use tokio::time::MissedTickBehavior;

use crate::{
    args::{SortArg, TopArgs},
    connect::Session,
    exit::Outcome,
    filter,
    output::Output,
    query::{self, Answer},
    signals::Stop,
    terminal::Style,
    top::{
        model::{Interval, Model},
        plain,
        screen::{Input, Screen},
    },
};

pub(super) async fn run(session: &mut Session, args: &TopArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    let style = Style::of_stdout();
    let mut model = Model::new(args.sort);
    model.to = super::unless_stopped(stop, query::counted_until(session)).await?;
    if style.terminal {
        on_screen(session, args, stop, &mut model, style).await?;
    } else {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            result = as_text(session, args, &mut model, &style) => result?,
        }
    }
    Ok(Outcome::Done)
}

/// The flows since the last answer.
async fn ask(
    session: &mut Session,
    args: &TopArgs,
    since: Option<prost_types::Timestamp>,
) -> anyhow::Result<(Interval, Option<FlowSummary>)> {
    let mut query = filter::flow_query(&args.filter, None, None, SortArg::Bytes, 0, SystemTime::now())?;
    query.since = since;
    let mut answer = Answer::to(session, query).await?;
    let mut interval = Interval::default();
    while let Some(flows) = answer.next().await? {
        flows.iter().for_each(|flow| interval.add(flow));
    }
    Ok((interval, answer.into_summary()))
}

async fn on_screen(
    session: &mut Session,
    args: &TopArgs,
    stop: &Stop,
    model: &mut Model,
    look: Style,
) -> anyhow::Result<()> {
    let agent = session.name.clone();
    let mut screen = Screen::open()?;
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    let mut refreshes = 0;
    while args.count.is_none_or(|count| refreshes < count) {
        screen.draw(model, &agent, &look)?;
        // Keys are heard while an answer is on its way: an agent that hangs does not hang the screen.
        let since = model.to;
        let refresh = async {
            ticks.tick().await;
            ask(session, args, since).await
        };
        tokio::pin!(refresh);
        loop {
            tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                input = screen.input() => {
                    let rows = screen.page_rows();
                    match input? {
                        Input::Quit => return Ok(()),
                        Input::Act(action) => model.act(action, rows),
                        Input::Redraw => {}
                    }
                    screen.draw(model, &agent, &look)?;
                }
                answer = &mut refresh, if !model.paused => {
                    match answer {
                        Ok((interval, summary)) => {
                            model.refresh(interval, summary.as_ref(), args.interval.as_secs_f64());
                        }
                        Err(error) => model.trouble = Some(format!("{error:#}")),
                    }
                    refreshes += 1;
                    break;
                }
            }
        }
    }
    Ok(())
}

async fn as_text(
    session: &mut Session,
    args: &TopArgs,
    model: &mut Model,
    style: &Style,
) -> anyhow::Result<()> {
    let mut output = Output::stdout();
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    let mut refreshes = 0;
    while args.count.is_none_or(|count| refreshes < count) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = output.reader_gone() => break,
        }
        let (interval, summary) = ask(session, args, model.to).await?;
        model.refresh(interval, summary.as_ref(), args.interval.as_secs_f64());
        output.write(plain::render(model, style)).await?;
        refreshes += 1;
    }
    output.finish().await?;
    Ok(())
}
