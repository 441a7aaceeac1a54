//! `orb8 top`: asks each interval for what is new, and shows it. Only the pane that is shown is asked for.

use std::time::SystemTime;

use orb8_proto::v1::SyscallMode;
use prost_types::Timestamp;
use tokio::time::MissedTickBehavior;

use crate::{
    args::{CallSort, PaneArg, SortArg, TopArgs, TopSort, TopSortArg},
    exit::{Outcome, Usage},
    filter::{self, Scope},
    fleet::Fleet,
    output::Output,
    query::{self, Answer, Cursor, End},
    signals::Stop,
    terminal::Style,
    top::{
        Panes,
        calls::Calls,
        model::{Action, Interval, Model},
        plain,
        screen::{Input, Screen},
    },
};

pub(super) async fn run(fleet: &Fleet, args: &TopArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    let style = Style::of_stdout();
    let mut panes = panes(fleet, args)?;
    let mut cursors = Cursors::default();
    let first = super::unless_stopped(stop, ask(fleet, args, panes.shown, &cursors)).await?;
    take(&mut panes, &mut cursors, first, args);
    if style.terminal {
        on_screen(fleet, args, stop, &mut panes, &mut cursors, style).await?;
    } else {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            result = as_text(fleet, args, &mut panes, &mut cursors, &style) => result?,
        }
    }
    Ok(Outcome::Done)
}

/// What is shown first, and how.
///
/// # Errors
/// If options contradict each other.
fn panes(fleet: &Fleet, args: &TopArgs) -> Result<Panes, Usage> {
    let (shown, network, calls) = resolve(args)?;
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    let mut network = Model::new(network);
    network.note = scope.note();
    let mut calls = Calls::new(calls);
    calls.notes.extend(scope.note());
    let flows_only = filter::syscall::about_flows(&args.filter);
    if !flows_only.is_empty() {
        if shown == PaneArg::Syscalls {
            return Err(Usage(format!(
                "{} is about flows, and has no place in the syscalls pane",
                flows_only.join(", ")
            )));
        }
        calls
            .notes
            .push(format!("all calls: {} is about flows", flows_only.join(", ")));
    }
    Ok(Panes {
        shown,
        network,
        calls,
    })
}

/// The pane, and the order of each.
fn resolve(args: &TopArgs) -> Result<(PaneArg, TopSort, CallSort), Usage> {
    use TopSortArg as A;
    let (network, calls) = match args.sort {
        None => (Some(TopSort::Bytes), Some(CallSort::Calls)),
        Some(A::Name) => (Some(TopSort::Name), Some(CallSort::Name)),
        Some(A::Bytes) => (Some(TopSort::Bytes), None),
        Some(A::Sent) => (Some(TopSort::Sent), None),
        Some(A::Received) => (Some(TopSort::Received), None),
        Some(A::Packets) => (Some(TopSort::Packets), None),
        Some(A::Retransmits) => (Some(TopSort::Retransmits), None),
        Some(A::Calls) => (None, Some(CallSort::Calls)),
        Some(A::Errors) => (None, Some(CallSort::Errors)),
        Some(A::Time) => (None, Some(CallSort::Time)),
    };
    let pane = match (args.pane, network, calls) {
        (Some(PaneArg::Network), None, _) => {
            return Err(Usage(
                "the network pane has no such --sort: leave --pane out".to_owned(),
            ));
        }
        (Some(PaneArg::Syscalls), _, None) => {
            return Err(Usage(
                "the syscalls pane has no such --sort: leave --pane out".to_owned(),
            ));
        }
        (Some(pane), ..) => pane,
        (None, None, _) => PaneArg::Syscalls,
        (None, Some(_), _) => PaneArg::Network,
    };
    Ok((pane, network.unwrap_or_default(), calls.unwrap_or_default()))
}

/// From where to ask next; a pane that was not asked yet has none.
#[derive(Debug, Default)]
struct Cursors {
    network: Option<Cursor>,
    calls: Option<Cursor>,
}

/// What came for a pane.
enum Came {
    /// From here on it can be asked for what is new.
    Begin(PaneArg, Cursor, Option<Timestamp>),
    Flows(Interval, Box<End>),
    Calls(Box<query::syscall::Answer>),
}

/// What is new since the last answer of this pane.
async fn ask(fleet: &Fleet, args: &TopArgs, pane: PaneArg, cursors: &Cursors) -> anyhow::Result<Came> {
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    match (pane, &cursors.network, &cursors.calls) {
        (PaneArg::Network, None, _) => {
            let (cursor, to) = query::counted_until(fleet).await?;
            Ok(Came::Begin(pane, cursor, to))
        }
        (PaneArg::Network, Some(cursor), _) => {
            let filter = filter::flow_filter(&args.filter, &scope);
            let query = filter::flow_query(filter, None, None, SortArg::Bytes, 0, SystemTime::now())?;
            let mut answer = Answer::to(fleet, &query, cursor).await?;
            let mut interval = Interval::default();
            while let Some(flows) = answer.next().await? {
                flows.iter().for_each(|flow| interval.add(flow));
            }
            Ok(Came::Flows(interval, Box::new(answer.end())))
        }
        (PaneArg::Syscalls, _, None) => {
            if fleet.is_standalone() {
                // Nobody asked for calls before.
                let mode = match args.sort {
                    Some(TopSortArg::Errors | TopSortArg::Time) => SyscallMode::Latency,
                    _ => SyscallMode::Counts,
                };
                query::syscall::set_mode(fleet, mode).await?;
            }
            let (cursor, to) = query::syscall::counted_until(fleet).await?;
            Ok(Came::Begin(pane, cursor, to))
        }
        (PaneArg::Syscalls, _, Some(cursor)) => {
            let query = filter::syscall::top_query(&args.filter, &scope);
            let answer = query::syscall::ask(fleet, &query, cursor).await?;
            Ok(Came::Calls(Box::new(answer)))
        }
    }
}

/// Hands what came to its pane.
fn take(panes: &mut Panes, cursors: &mut Cursors, came: Came, args: &TopArgs) {
    let seconds = args.interval.as_secs_f64();
    match came {
        Came::Begin(PaneArg::Network, cursor, to) => {
            cursors.network = Some(cursor);
            panes.network.to = to;
        }
        Came::Begin(PaneArg::Syscalls, cursor, to) => {
            cursors.calls = Some(cursor);
            panes.calls.to = to;
        }
        Came::Flows(interval, end) => {
            cursors.network = Some(end.cursor.clone());
            panes.network.refresh(interval, *end, seconds);
        }
        Came::Calls(answer) => {
            panes.calls.refresh(&answer, seconds);
            cursors.calls = Some(answer.cursor);
        }
    }
}

async fn on_screen(
    fleet: &Fleet,
    args: &TopArgs,
    stop: &Stop,
    panes: &mut Panes,
    cursors: &mut Cursors,
    look: Style,
) -> anyhow::Result<()> {
    let agent = fleet.name.clone();
    let mut screen = Screen::open()?;
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    let mut refreshes = 0;
    while args.count.is_none_or(|count| refreshes < count) {
        screen.draw(panes, &agent, &look)?;
        // Keys are heard while an answer is on its way: an agent that hangs does not hang the screen.
        let pane = panes.shown;
        let came = {
            let refresh = async {
                ticks.tick().await;
                ask(fleet, args, pane, cursors).await
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
                            Input::Act(Action::Pane) => {
                                panes.switch();
                                break None;
                            }
                            Input::Act(action) => panes.act(action, rows),
                            Input::Redraw => {}
                        }
                        screen.draw(panes, &agent, &look)?;
                    }
                    came = &mut refresh, if !panes.is_paused() => break Some(came),
                }
            }
        };
        match came {
            Some(Ok(came)) => take(panes, cursors, came, args),
            Some(Err(error)) => panes.trouble(format!("{error:#}")),
            // What the other pane had asked for is asked again when it is shown: its answer covers the time between.
            None => {
                ticks.reset_immediately();
                continue;
            }
        }
        refreshes += 1;
    }
    Ok(())
}

async fn as_text(
    fleet: &Fleet,
    args: &TopArgs,
    panes: &mut Panes,
    cursors: &mut Cursors,
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
        let came = ask(fleet, args, panes.shown, cursors).await?;
        take(panes, cursors, came, args);
        output
            .write(match panes.shown {
                PaneArg::Network => plain::render(&panes.network, style),
                PaneArg::Syscalls => plain::render_calls(&panes.calls, style),
            })
            .await?;
        refreshes += 1;
    }
    output.finish().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn the_order_says_which_pane_is_meant() {
        let resolved = |line: &str| {
            let Command::Top(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
                unreachable!("the line is a top command")
            };
            resolve(&args).map_err(|error| error.to_string())
        };
        use {CallSort as C, PaneArg as P, TopSort as T};
        for (line, expected) in [
            ("orb8 top", (P::Network, T::Bytes, C::Calls)),
            ("orb8 top --sort name", (P::Network, T::Name, C::Name)),
            ("orb8 top --sort sent", (P::Network, T::Sent, C::Calls)),
            ("orb8 top --sort time", (P::Syscalls, T::Bytes, C::Time)),
            (
                "orb8 top --pane syscalls --sort name",
                (P::Syscalls, T::Name, C::Name),
            ),
        ] {
            assert_eq!(resolved(line), Ok(expected), "{line}");
        }
        assert!(resolved("orb8 top --pane network --sort calls").is_err());
        assert!(resolved("orb8 top --pane syscalls --sort bytes").is_err());
    }
}
