//! Draws what the model knows. Readable at 80×24.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState},
};
use std::collections::VecDeque;

use super::model::{Model, Page, Rates};
use crate::{
    args::TopSort, humanise, ledger::Losses, render::table::fit_ends, sanitise, terminal, timestamp,
};

/// Least columns of a sparkline.
const SPARK: u16 = 12;
/// Columns of the owners' page beside the sparkline: 24 of the name.
const BESIDE_SPARK: u16 = 64;
/// Columns of the rates, with what is between them.
const RATES: u16 = 9 + 9 + 6 + 6 + 4 + 5;
/// Least columns of an owner's name.
const OWNER: u16 = 16;
/// Least columns of a peer's name.
const PEER: u16 = 15;
/// Columns of what a peer is spoken to about.
const SERVICE: u16 = 18;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII_BARS: [char; 8] = ['_', '.', '.', '-', '-', '=', '=', '#'];

const HELP: [&str; 13] = [
    "up/down, k/j      select",
    "PgUp/PgDn, g/G    by pages, first, last",
    "Enter             the owner's peers",
    "Esc, Backspace    back to the owners",
    "s                 next sort order",
    "Tab               the syscalls pane, then the GPUs'",
    "p, Space          pause; the counts go on in the kernel",
    "q, ^C             quit",
    "",
    "Rates are bytes a second since the last refresh, sent and",
    "received as seen by the owner. RETX: segments sent again.",
    "A flow inside of this machine shows at both of its owners.",
    "Any key closes this help.",
];

/// How to draw: where there are no colours, or no UTF-8.
pub(crate) type Look = terminal::Style;

/// Draws the whole screen.
pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model, agent: &str, look: &Look) {
    let losses = model
        .losses
        .as_ref()
        .map_or(0, |losses| losses.sentences.len().clamp(1, 2));
    let footer = 1 + u16::from(model.note.is_some()) + u16::try_from(losses.max(1)).unwrap_or(1);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(footer),
    ]);
    let [title, body, footer] = areas.areas(frame.area());
    frame.render_widget(title_line(model, agent, look), title);
    match &model.page {
        Page::Owners => owners(frame, body, model, look),
        Page::Peers(owner) => peers(frame, body, model, owner, look),
    }
    frame.render_widget(Paragraph::new(footer_lines(model, look)), footer);
    if model.help {
        popup(frame, &HELP, look);
    }
}

/// Rows of data that a screen of this height shows: how far PgDn goes.
pub(crate) const fn page_rows(height: u16) -> usize {
    height.saturating_sub(5) as usize
}

fn title_line(model: &Model, agent: &str, look: &Look) -> Line<'static> {
    let mut words = vec!["orb8 top".to_owned()];
    if !model.node.is_empty() {
        words.push(sanitise::line(&model.node).into_owned());
    }
    words.push(sanitise::line(agent).into_owned());
    if let Some(to) = &model.to {
        words.push(format!("{} UTC", timestamp::clock(Some(to), 0)));
        words.push(humanise::counted(model.flows, "flow", "flows"));
    }
    words.push(format!("by {}", sort_name(model.sort)));
    let mut spans = vec![Span::styled(words.join("  "), strong())];
    if model.paused {
        spans.push(Span::styled("  PAUSED", tone(look, Color::Yellow)));
    }
    Line::from(spans)
}

fn owners(frame: &mut Frame<'_>, area: Rect, model: &Model, look: &Look) {
    let rows = model.owners();
    if rows.is_empty() {
        frame.render_widget(Paragraph::new("\n  No traffic seen yet."), area);
        return;
    }
    let most = u16::try_from(super::model::HISTORY).unwrap_or(u16::MAX);
    let spark = area.width.saturating_sub(BESIDE_SPARK).clamp(SPARK, most);
    let name_width = area.width.saturating_sub(RATES + spark + 1).max(OWNER);
    let rows: Vec<Row<'_>> = rows
        .into_iter()
        .map(|(name, rates)| {
            let mut cells = vec![name_cell(name, name_width, look)];
            cells.extend(rate_cells(rates, look));
            cells.push(Cell::from(sparkline(
                &rates.history,
                usize::from(spark),
                look.utf8,
            )));
            Row::new(cells)
        })
        .collect();
    let header = [
        "OWNER",
        "   SENT/s",
        "   RECV/s",
        " PKT/s",
        "   RTT",
        "RETX",
        "LAST 60",
    ];
    let widths = [
        Constraint::Min(OWNER),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(4),
        Constraint::Length(spark),
    ];
    table(frame, area, rows, &header, &widths, model.selected());
}

fn peers(frame: &mut Frame<'_>, area: Rect, model: &Model, owner: &str, look: &Look) {
    let [title, area] = Layout::vertical([Constraint::Length(1), Constraint::Min(2)]).areas(area);
    let mut spans = vec![Span::styled(sanitise::line(owner).into_owned(), strong())];
    if let Some(rates) = model.owner(owner) {
        spans.push(Span::raw(format!(
            "  sent {}, received {}; {} in all  ",
            humanise::byte_rate(rates.sent),
            humanise::byte_rate(rates.received),
            humanise::bytes(rates.total_bytes),
        )));
        spans.push(Span::raw(sparkline(
            &rates.history,
            usize::from(SPARK),
            look.utf8,
        )));
    }
    frame.render_widget(Line::from(spans), title);
    let name_width = area.width.saturating_sub(RATES + SERVICE + 1).max(PEER);
    let rows: Vec<Row<'_>> = model
        .peers(owner)
        .into_iter()
        .map(|(key, rates)| {
            let mut cells = vec![
                name_cell(&key.name, name_width, look),
                name_cell(&key.service, SERVICE, look),
            ];
            cells.extend(rate_cells(rates, look));
            Row::new(cells)
        })
        .collect();
    let header = [
        "PEER",
        "SERVICE",
        "   SENT/s",
        "   RECV/s",
        " PKT/s",
        "   RTT",
        "RETX",
    ];
    let widths = [
        Constraint::Min(PEER),
        Constraint::Length(SERVICE),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(4),
    ];
    table(frame, area, rows, &header, &widths, model.selected());
}

pub(super) fn table(
    frame: &mut Frame<'_>,
    area: Rect,
    rows: Vec<Row<'_>>,
    header: &[&'static str],
    widths: &[Constraint],
    selected: Option<usize>,
) {
    let table = Table::new(rows, widths.iter().copied())
        .header(Row::new(header.iter().copied().map(Cell::from)).style(strong()))
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(selected));
}

/// A name, whose end is kept where it must be cut.
pub(super) fn name_cell(name: &str, width: u16, look: &Look) -> Cell<'static> {
    Cell::from(fit_ends(
        &sanitise::line(name),
        usize::from(width),
        look.ellipsis(),
    ))
}

fn rate_cells(rates: &Rates, look: &Look) -> [Cell<'static>; 5] {
    let right = |text: String, width: usize| Cell::from(format!("{text:>width$}"));
    let rtt = rates
        .rtt_us
        .map(|us| humanise::micros(us, look.utf8))
        .unwrap_or_default();
    let retransmits = right(humanise::count(rates.retransmits), 4);
    [
        right(humanise::bytes(rates.sent as u64), 9),
        right(humanise::bytes(rates.received as u64), 9),
        right(humanise::rate(rates.packets), 6),
        right(rtt, 6),
        if rates.retransmits > 0 {
            retransmits.style(tone(look, Color::Yellow))
        } else {
            retransmits
        },
    ]
}

/// What was lost, or why nothing is known; at most two lines.
pub(super) fn losses_lines(
    trouble: Option<&str>,
    losses: Option<&Losses>,
    look: &Look,
) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    match (trouble, losses) {
        (Some(trouble), _) => {
            lines.push(Line::styled(
                sanitise::line(trouble).into_owned(),
                tone(look, Color::Red),
            ));
        }
        (None, None) => lines.push(Line::raw("Waiting for the first answer …")),
        (None, Some(losses)) if losses.is_none() => {
            lines.push(Line::styled("Nothing lost.", tone(look, Color::Green)));
        }
        (None, Some(losses)) => {
            let bad = tone(look, Color::Red);
            let more = losses.sentences.len().saturating_sub(2);
            for (index, sentence) in losses.sentences.iter().take(2).enumerate() {
                let more = if index == 1 && more > 0 {
                    format!(" (and {more} more)")
                } else {
                    String::new()
                };
                lines.push(Line::styled(format!("! {}{more}", sanitise::line(sentence)), bad));
            }
        }
    }
    lines
}

fn footer_lines(model: &Model, look: &Look) -> Vec<Line<'static>> {
    let mut lines = losses_lines(model.trouble.as_deref(), model.losses.as_ref(), look);
    if let Some(note) = &model.note {
        lines.push(Line::raw(sanitise::line(note).into_owned()));
    }
    let keys = match model.page {
        Page::Owners => "Enter peers  s sort  Tab syscalls  p pause  ? help  q quit",
        Page::Peers(_) => "Esc back  s sort  Tab syscalls  p pause  ? help  q quit",
    };
    lines.push(Line::styled(keys, Style::new().add_modifier(Modifier::DIM)));
    lines
}

/// Lines in a box over the screen.
pub(super) fn popup(frame: &mut Frame<'_>, lines: &[&'static str], look: &Look) {
    let area = frame.area();
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX);
    let (width, height) = (62.min(area.width), height.min(area.height));
    let popup = Rect::new(
        (area.width - width) / 2,
        (area.height - height) / 2,
        width,
        height,
    );
    frame.render_widget(Clear, popup);
    let text: Vec<Line<'_>> = lines.iter().copied().map(Line::raw).collect();
    let block = if look.utf8 {
        Block::bordered()
    } else {
        Block::new()
    };
    frame.render_widget(Paragraph::new(text).block(block.title("Help")), popup);
}

/// The latest values as bars, scaled to the greatest of all that are kept; right-aligned.
pub(crate) fn sparkline(history: &VecDeque<u64>, width: usize, utf8: bool) -> String {
    let top = history.iter().copied().max().unwrap_or_default();
    sparkline_to(history, top, width, utf8)
}

/// The same, with a full bar for `top`.
pub(crate) fn sparkline_to(history: &VecDeque<u64>, top: u64, width: usize, utf8: bool) -> String {
    let bars = if utf8 { BARS } else { ASCII_BARS };
    // Each bar is the greatest of its bucket, so that the whole minute fits.
    let bucket = super::model::HISTORY.div_ceil(width.max(1));
    let values: Vec<u64> = history.iter().copied().collect();
    let maxima: Vec<u64> = values
        .rchunks(bucket)
        .map(|chunk| chunk.iter().copied().max().unwrap_or_default())
        .collect();
    let shown: String = maxima
        .iter()
        .rev()
        .map(|&value| match value {
            0 => ' ',
            value => {
                bars[usize::try_from(u128::from(value.min(top)) * 7 / u128::from(top.max(1))).unwrap_or(7)]
            }
        })
        .collect();
    format!("{}{shown}", " ".repeat(width.saturating_sub(maxima.len())))
}

pub(crate) const fn sort_name(sort: TopSort) -> &'static str {
    match sort {
        TopSort::Bytes => "bytes",
        TopSort::Sent => "sent",
        TopSort::Received => "received",
        TopSort::Packets => "packets",
        TopSort::Retransmits => "retransmits",
        TopSort::Name => "name",
    }
}

pub(super) const fn strong() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

pub(super) const fn tone(look: &Look, color: Color) -> Style {
    if look.colours {
        Style::new().fg(color)
    } else {
        Style::new()
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::{Direction, Endpoint, Flow, FlowSummary, LedgerRow};
    use proptest::prelude::*;
    use prost_types::Timestamp;
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::{
        ledger::Losses,
        query::{Cursor, End},
        top::model::{Action, Interval},
    };

    const LOOK: Look = Look {
        terminal: true,
        width: 80,
        colours: true,
        utf8: true,
    };

    fn model(process: &str) -> Model {
        let end = |process: &str, port| {
            Some(Endpoint {
                process: process.into(),
                ip: "10.0.0.1".into(),
                port,
                ..Endpoint::default()
            })
        };
        let flow = Flow {
            ip_version: 4,
            protocol: 6,
            src: end(process, 50000),
            dst: end("", 443),
            direction: Direction::Egress.into(),
            bytes: 3 << 20,
            packets: 2000,
            rtt_us: Some(210),
            retransmits: Some(3),
            ..Flow::default()
        };
        let mut interval = Interval::default();
        interval.add(&flow);
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let lost = LedgerRow {
            family: "network".into(),
            stage: "ring".into(),
            seen: 5,
            lost: 5,
            ..LedgerRow::default()
        };
        let summary = FlowSummary {
            node: "n1".into(),
            from: at(0),
            to: at(1),
            matched_flows: 1,
            ledger: vec![lost],
            ..FlowSummary::default()
        };
        let mut model = Model::new(TopSort::Bytes);
        let end = End {
            losses: Losses::of_ledger(&summary.ledger),
            settled: summary.to,
            summary: Some(summary),
            cursor: Cursor::default(),
        };
        model.refresh(interval, end, 1.0);
        model
    }

    fn screen(model: &Model, width: u16, height: u16) -> (String, Terminal<TestBackend>) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| draw(frame, model, "127.0.0.1:9090", &LOOK))
            .unwrap();
        (terminal.backend().to_string(), terminal)
    }

    #[test]
    fn the_namespace_that_limits_the_answer_is_shown() {
        let mut model = model("nginx");
        model.note = Some("namespace shop only".into());
        let (text, _) = screen(&model, 80, 24);
        assert!(
            text.contains("namespace shop only") && text.contains("q quit"),
            "{text}"
        );
    }

    #[test]
    fn owners_at_80_by_24() {
        let (text, terminal) = screen(&model("nginx"), 80, 24);
        for expected in [
            "orb8 top  n1",
            "nginx",
            "3.0 MiB",
            "2.0k",
            "210µs",
            "network/ring lost 5 of 5",
            "q quit",
            "by bytes",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        let red = terminal
            .backend()
            .buffer()
            .content()
            .iter()
            .any(|cell| cell.fg == Color::Red);
        assert!(red, "what was lost is red");
    }

    #[test]
    fn peers_and_help() {
        let mut model = model("nginx");
        model.act(Action::Enter, 10);
        let (text, _) = screen(&model, 80, 24);
        for expected in ["nginx  sent 3.0 MiB/s", "10.0.0.1", ":443 https", "Esc back"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        model.act(Action::Help, 10);
        assert!(screen(&model, 80, 24).0.contains("Any key closes this help."));
    }

    #[test]
    fn sparkline_covers_the_minute() {
        let history: VecDeque<u64> = (1..=60).collect();
        assert_eq!(sparkline(&history, 12, true).chars().count(), 12);
        assert!(sparkline(&history, 12, true).ends_with('█'));
        assert_eq!(sparkline(&VecDeque::new(), 4, true), "    ");
        assert_eq!(sparkline(&VecDeque::from([0, u64::MAX]), 3, false), "  #");
    }

    proptest! {
        #[test]
        fn any_name_and_size_can_be_drawn(name in any::<String>(), width in 1_u16..200, height in 1_u16..60, peers: bool, help: bool) {
            let mut model = model(&name);
            if peers { model.act(Action::Enter, 10); }
            if help { model.act(Action::Help, 10); }
            prop_assert!(!screen(&model, width, height).0.chars().any(|c| c != '\n' && sanitise::is_hostile(c)));
        }
    }
}
