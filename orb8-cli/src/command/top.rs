//! `orb8 top`: asks each interval for what is new, and shows it. Only the pane that is shown is asked for.

use std::time::SystemTime;

use orb8_proto::v1::SyscallMode;
use prost_types::Timestamp;
use tokio::time::MissedTickBehavior;

use crate::{
    args::{CallSort, GpuSort, PaneArg, SortArg, TopArgs, TopSort, TopSortArg},
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
        gpus::Gpus,
        model::{Action, Interval, Model},
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
    let (shown, Orders { network, calls, gpus }) = resolve(args)?;
    let scope = Scope::of_flows(&args.filter, fleet.namespace.as_deref());
    let mut network = Model::new(network);
    network.note = scope.note();
    let mut calls = Calls::new(calls);
    calls.notes.extend(scope.note());
    let mut gpus = Gpus::new(gpus, fleet.is_many());
    gpus.notes.extend(scope.note());
    let flows_only = filter::syscall::about_flows(&args.filter);
    // Of units and processes, no GPU can be asked for.
    let mut not_gpus = flows_only.clone();
    if !args.filter.owner.is_empty() {
        not_gpus.push("--owner");
    }
    for (pane, options, what) in [
        (
            PaneArg::Syscalls,
            &flows_only,
            "is about flows, and has no place in the syscalls pane",
        ),
        (
            PaneArg::Gpu,
            &not_gpus,
            "is not about GPUs, and has no place in their pane",
        ),
    ] {
        if shown == pane && !options.is_empty() {
            return Err(Usage(format!("{} {what}", options.join(", "))));
        }
    }
    if !flows_only.is_empty() {
        calls
            .notes
            .push(format!("all calls: {} is about flows", flows_only.join(", ")));
    }
    if !not_gpus.is_empty() {
        gpus.notes
            .push(format!("all GPUs: {} is not about them", not_gpus.join(", ")));
    }
    Ok(Panes {
        shown,
        network,
        calls,
        gpus,
    })
}

/// The order of each pane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Orders {
    network: TopSort,
    calls: CallSort,
    gpus: GpuSort,
}

/// The pane, and the order of each.
fn resolve(args: &TopArgs) -> Result<(PaneArg, Orders), Usage> {
    use TopSortArg as A;
    let mut orders = Orders::default();
    // Panes that have the order, the one that it is meant of first.
    let panes: &[PaneArg] = match args.sort {
        None => &[PaneArg::Network, PaneArg::Syscalls, PaneArg::Gpu],
        Some(A::Name) => {
            (orders.network, orders.calls) = (TopSort::Name, CallSort::Name);
            &[PaneArg::Network, PaneArg::Syscalls, PaneArg::Gpu]
        }
        Some(A::Bytes | A::Sent | A::Received | A::Packets | A::Retransmits) => &[PaneArg::Network],
        Some(A::Calls | A::Errors | A::Time) => &[PaneArg::Syscalls],
        Some(A::Use) => &[PaneArg::Gpu],
    };
    match args.sort {
        Some(A::Sent) => orders.network = TopSort::Sent,
        Some(A::Received) => orders.network = TopSort::Received,
        Some(A::Packets) => orders.network = TopSort::Packets,
        Some(A::Retransmits) => orders.network = TopSort::Retransmits,
        Some(A::Errors) => orders.calls = CallSort::Errors,
        Some(A::Time) => orders.calls = CallSort::Time,
        Some(A::Use) => orders.gpus = GpuSort::Use,
        // The defaults.
        None | Some(A::Bytes | A::Calls | A::Name) => {}
    }
    let pane = args.pane.unwrap_or(panes[0]);
    if !panes.contains(&pane) {
        let name = match pane {
            PaneArg::Network => "network",
            PaneArg::Syscalls => "syscalls",
            PaneArg::Gpu => "GPU",
        };
        return Err(Usage(format!(
            "the {name} pane has no such --sort: leave --pane out"
        )));
    }
    Ok((pane, orders))
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
    Gpus(Box<query::gpu::Answer>),
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
        (PaneArg::Gpu, ..) => {
            let query = filter::gpu::top_query(&args.filter, &scope);
            Ok(Came::Gpus(Box::new(query::gpu::ask(fleet, &query).await?)))
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
        // Samples have no begin.
        Came::Begin(PaneArg::Gpu, ..) => {}
        Came::Gpus(answer) => panes.gpus.refresh(*answer),
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
                            Input::Act(action) => panes.pane_mut().act(action, rows),
                            Input::Redraw => {}
                        }
                        screen.draw(panes, &agent, &look)?;
                    }
                    came = &mut refresh, if !panes.pane().is_paused() => break Some(came),
                }
            }
        };
        match came {
            Some(Ok(came)) => take(panes, cursors, came, args),
            Some(Err(error)) => panes.pane_mut().trouble(format!("{error:#}")),
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
        output.write(panes.pane().text(style)).await?;
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
        use {CallSort as C, GpuSort as G, PaneArg as P, TopSort as T};
        for (line, expected) in [
            ("orb8 top", (P::Network, T::Bytes, C::Calls, G::Name)),
            ("orb8 top --sort name", (P::Network, T::Name, C::Name, G::Name)),
            ("orb8 top --sort sent", (P::Network, T::Sent, C::Calls, G::Name)),
            ("orb8 top --sort time", (P::Syscalls, T::Bytes, C::Time, G::Name)),
            ("orb8 top --sort use", (P::Gpu, T::Bytes, C::Calls, G::Use)),
            ("orb8 top --pane gpu", (P::Gpu, T::Bytes, C::Calls, G::Name)),
            (
                "orb8 top --pane syscalls --sort name",
                (P::Syscalls, T::Name, C::Name, G::Name),
            ),
        ] {
            let (pane, network, calls, gpus) = expected;
            assert_eq!(
                resolved(line),
                Ok((pane, Orders { network, calls, gpus })),
                "{line}"
            );
        }
        assert!(resolved("orb8 top --pane network --sort calls").is_err());
        assert!(resolved("orb8 top --pane syscalls --sort bytes").is_err());
        assert!(resolved("orb8 top --pane gpu --sort bytes").is_err());
    }
}
