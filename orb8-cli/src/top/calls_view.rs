//! Draws the syscalls pane. Readable at 80×24.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::Color,
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row},
};

use super::{
    calls::{CallKey, Calls, Page, Rates},
    view::{Look, losses_lines, name_cell, popup, sparkline, strong, table, tone},
};
use crate::{args::CallSort, humanise, sanitise, timestamp};

/// Least columns of a sparkline.
const SPARK: u16 = 12;
/// Columns of a call's name.
const CALL: u16 = 16;
/// Columns of a category.
const CATEGORY: u16 = 11;
/// Columns of the rates, with what is between them.
const RATES: u16 = 8 + 6 + 7 + 3;
/// Least columns of an owner's name.
const OWNER: u16 = 16;

const HELP: [&str; 14] = [
    "up/down, k/j      select",
    "PgUp/PgDn, g/G    by pages, first, last",
    "Enter             the owner's calls",
    "Esc, Backspace    back to the owners",
    "s                 next sort order",
    "Tab               the GPUs' pane",
    "p, Space          pause; the counts go on in the kernel",
    "q, ^C             quit",
    "",
    "Rates are calls a second since the last refresh. ERR/s and",
    "TIME/s (time in calls, of all threads together) show where",
    "they are measured: `orb8 syscall-mode latency`.",
    "",
    "Any key closes this help.",
];

/// Draws the whole screen.
pub(crate) fn draw(frame: &mut Frame<'_>, calls: &Calls, agent: &str, look: &Look) {
    let losses = losses_lines(calls.trouble.as_deref(), calls.losses.as_ref(), look);
    let footer = u16::try_from(losses.len() + calls.notes.len() + 1).unwrap_or(2);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(footer),
    ]);
    let [title, body, foot] = areas.areas(frame.area());
    frame.render_widget(title_line(calls, agent, look), title);
    match &calls.page {
        Page::Owners => owners(frame, body, calls, look),
        Page::Calls(owner) => of_owner(frame, body, calls, owner, look),
    }
    let mut lines = losses;
    lines.extend(
        calls
            .notes
            .iter()
            .map(|note| Line::raw(sanitise::line(note).into_owned())),
    );
    lines.push(Line::styled(
        match calls.page {
            Page::Owners => "Enter calls  s sort  Tab GPUs  p pause  ? help  q quit",
            Page::Calls(_) => "Esc back  s sort  Tab GPUs  p pause  ? help  q quit",
        },
        ratatui::style::Style::new().add_modifier(ratatui::style::Modifier::DIM),
    ));
    frame.render_widget(Paragraph::new(lines), foot);
    if calls.help {
        popup(frame, &HELP, look);
    }
}

fn title_line(calls: &Calls, agent: &str, look: &Look) -> Line<'static> {
    let mut words = vec!["orb8 top syscalls".to_owned()];
    if !calls.node.is_empty() {
        words.push(sanitise::line(&calls.node).into_owned());
    }
    words.push(sanitise::line(agent).into_owned());
    if let Some(to) = &calls.to {
        words.push(format!("{} UTC", timestamp::clock(Some(to), 0)));
        words.push(humanise::counted(calls.calls, "call", "calls"));
    }
    words.push(format!("by {}", sort_name(calls.sort)));
    let mut spans = vec![Span::styled(words.join("  "), strong())];
    if calls.paused {
        spans.push(Span::styled("  PAUSED", tone(look, Color::Yellow)));
    }
    Line::from(spans)
}

fn owners(frame: &mut Frame<'_>, area: Rect, calls: &Calls, look: &Look) {
    let rows = calls.owners();
    if rows.is_empty() {
        frame.render_widget(Paragraph::new("\n  No calls seen yet."), area);
        return;
    }
    let spark = spark_width(area.width, RATES + CALL + 2 + 24);
    let name_width = area.width.saturating_sub(RATES + CALL + spark + 2).max(OWNER);
    let rows: Vec<Row<'_>> = rows
        .into_iter()
        .map(|(name, rates, top)| {
            let mut cells = vec![name_cell(name, name_width, look)];
            cells.extend(rate_cells(rates, look));
            cells.push(name_cell(top.map_or("", |call| &call.name), CALL, look));
            cells.push(spark_cell(rates, spark, look));
            Row::new(cells)
        })
        .collect();
    let header = ["OWNER", " CALLS/s", " ERR/s", " TIME/s", "MOST", "LAST 60"];
    let widths = [
        Constraint::Min(OWNER),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(CALL),
        Constraint::Length(spark),
    ];
    table(frame, area, rows, &header, &widths, calls.selected());
}

fn of_owner(frame: &mut Frame<'_>, area: Rect, calls: &Calls, owner: &str, look: &Look) {
    let [title, area] = Layout::vertical([Constraint::Length(1), Constraint::Min(2)]).areas(area);
    let mut spans = vec![Span::styled(sanitise::line(owner).into_owned(), strong())];
    if let Some(rates) = calls.owner(owner) {
        spans.push(Span::raw(format!(
            "  {} calls/s; {} in all  ",
            humanise::small_rate(rates.calls),
            humanise::count(rates.total),
        )));
    }
    frame.render_widget(Line::from(spans), title);
    let spark = spark_width(area.width, RATES + CATEGORY + 2 + 24);
    let name_width = area.width.saturating_sub(RATES + CATEGORY + spark + 2).max(CALL);
    let rows: Vec<Row<'_>> = calls
        .calls_of(owner)
        .into_iter()
        .map(|(CallKey { name, category }, rates)| {
            let mut cells = vec![
                name_cell(name, name_width, look),
                name_cell(category, CATEGORY, look),
            ];
            cells.extend(rate_cells(rates, look));
            cells.push(spark_cell(rates, spark, look));
            Row::new(cells)
        })
        .collect();
    let header = ["CALL", "CATEGORY", " CALLS/s", " ERR/s", " TIME/s", "LAST 60"];
    let widths = [
        Constraint::Min(CALL),
        Constraint::Length(CATEGORY),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(spark),
    ];
    table(frame, area, rows, &header, &widths, calls.selected());
}

/// What is left beside `others` columns, within bounds.
fn spark_width(width: u16, others: u16) -> u16 {
    let most = u16::try_from(super::model::HISTORY).unwrap_or(u16::MAX);
    width.saturating_sub(others).clamp(SPARK, most)
}

fn spark_cell(rates: &Rates, width: u16, look: &Look) -> Cell<'static> {
    Cell::from(sparkline(&rates.history, usize::from(width), look.utf8))
}

fn rate_cells(rates: &Rates, look: &Look) -> [Cell<'static>; 3] {
    let right = |text: String, width: usize| Cell::from(format!("{text:>width$}"));
    let failed = right(failed(rates), 6);
    [
        right(humanise::small_rate(rates.calls), 8),
        if rates.failed.is_some_and(|failed| failed > 0.0) {
            failed.style(tone(look, Color::Yellow))
        } else {
            failed
        },
        right(time(rates, look.utf8), 7),
    ]
}

/// Failed calls a second; `-`: not measured.
pub(super) fn failed(rates: &Rates) -> String {
    rates.failed.map_or_else(|| "-".to_owned(), humanise::small_rate)
}

/// Time in calls a second; `-`: not measured.
pub(super) fn time(rates: &Rates, utf8: bool) -> String {
    // Saturates.
    rates
        .time
        .map_or_else(|| "-".to_owned(), |ns| humanise::nanos(ns.round() as u64, utf8))
}

const fn sort_name(sort: CallSort) -> &'static str {
    match sort {
        CallSort::Calls => "calls",
        CallSort::Errors => "errors",
        CallSort::Time => "time",
        CallSort::Name => "name",
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::SyscallMode;
    use proptest::prelude::*;
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::top::{calls::tests::answer, model::Action};

    const LOOK: Look = Look {
        terminal: true,
        width: 80,
        colours: true,
        utf8: true,
    };

    fn pane(process: &str, mode: SyscallMode) -> Calls {
        let mut calls = Calls::new(CallSort::Calls);
        let rows = [(process, "epoll_pwait2", 123_456), (process, "openat", 20)];
        calls.refresh(&answer(&rows, 0, 1, mode), 1.0);
        calls
    }

    fn screen(calls: &Calls, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| draw(frame, calls, "127.0.0.1:9090", &LOOK))
            .unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn owners_and_their_calls_at_80_by_24() {
        let mut calls = pane("nginx", SyscallMode::Latency);
        calls.notes.push("namespace shop only".into());
        let text = screen(&calls, 80, 24);
        for expected in [
            "orb8 top syscalls  n1",
            "nginx",
            "123k",
            "12k",
            "123ms",
            "epoll_pwait2",
            "syscall/callers lost 5 of 5 calls",
            "namespace shop only",
            "Tab GPUs",
            "by calls",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        calls.act(Action::Enter, 10);
        let text = screen(&calls, 80, 24);
        for expected in ["nginx  123k calls/s; 123k in all", "openat", "file", "Esc back"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        calls.act(Action::Help, 10);
        assert!(screen(&calls, 80, 24).contains("Any key closes this help."));
    }

    #[test]
    fn what_is_not_measured_is_no_zero() {
        let text = screen(&pane("nginx", SyscallMode::Counts), 80, 24);
        let row = text.lines().find(|line| line.contains("nginx")).unwrap();
        assert!(row.contains("123k      -       - "), "{row}");
        assert!(screen(&Calls::default(), 80, 24).contains("No calls seen yet."));
    }

    proptest! {
        #[test]
        fn any_name_and_size_can_be_drawn(name in any::<String>(), width in 1_u16..200, height in 1_u16..60, enter: bool, help: bool) {
            let mut calls = pane(&name, SyscallMode::Latency);
            if enter { calls.act(Action::Enter, 10); }
            if help { calls.act(Action::Help, 10); }
            prop_assert!(!screen(&calls, width, height).chars().any(|c| c != '\n' && sanitise::is_hostile(c)));
        }
    }
}
