//! `orb8 top`: asks each interval for what is new, and shows it.

use std::time::SystemTime;

use tokio::time::MissedTickBehavior;

use crate::{
    args::{SortArg, TopArgs},
    exit::Outcome,
    filter::{self, Scope},
    fleet::Fleet,
    output::Output,
    query::{self, Answer, Cursor, End},
    signals::Stop,
    terminal::Style,
    top::{
        model::{Interval, Model},
        plain,
        screen::{Input, Screen},
    },
};

pub(super) async fn run(fleet: &Fleet, args: &TopArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    let style = Style::of_stdout();
    let mut model = Model::new(args.sort);
    let (cursor, to) = super::unless_stopped(stop, query::counted_until(fleet)).await?;
    model.to = to;
    model.note = Scope::of_flows(&args.filter, fleet.namespace.as_deref()).note();
    if style.terminal {
        on_screen(fleet, args, stop, &mut model, cursor, style).await?;
    } else {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            result = as_text(fleet, args, &mut model, cursor, &style) => result?,
        }
    }
    Ok(Outcome::Done)
}

/// The flows since the last answer.
async fn ask(fleet: &Fleet, args: &TopArgs, cursor: &Cursor) -> anyhow::Result<(Interval, End)> {
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    let filter = filter::flow_filter(&args.filter, &scope);
    let query = filter::flow_query(filter, None, None, SortArg::Bytes, 0, SystemTime::now())?;
    let mut answer = Answer::to(fleet, &query, cursor).await?;
    let mut interval = Interval::default();
    while let Some(flows) = answer.next().await? {
        flows.iter().for_each(|flow| interval.add(flow));
    }
    Ok((interval, answer.end()))
}

async fn on_screen(
    fleet: &Fleet,
    args: &TopArgs,
    stop: &Stop,
    model: &mut Model,
    mut cursor: Cursor,
    look: Style,
) -> anyhow::Result<()> {
    let agent = fleet.name.clone();
    let mut screen = Screen::open()?;
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    let mut refreshes = 0;
    while args.count.is_none_or(|count| refreshes < count) {
        screen.draw(model, &agent, &look)?;
        // Keys are heard while an answer is on its way: an agent that hangs does not hang the screen.
        let from = cursor.clone();
        let refresh = async {
            ticks.tick().await;
            ask(fleet, args, &from).await
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
                        Ok((interval, end)) => {
                            cursor = end.cursor.clone();
                            model.refresh(interval, end, args.interval.as_secs_f64());
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
    fleet: &Fleet,
    args: &TopArgs,
    model: &mut Model,
    mut cursor: Cursor,
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
        let (interval, end) = ask(fleet, args, &cursor).await?;
        cursor = end.cursor.clone();
        model.refresh(interval, end, args.interval.as_secs_f64());
        output.write(plain::render(model, style)).await?;
        refreshes += 1;
    }
    output.finish().await?;
    Ok(())
}
