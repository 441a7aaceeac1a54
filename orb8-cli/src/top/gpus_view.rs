//! Draws the GPU pane. Readable at 80×24.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line as Text, Span},
    widgets::{Cell, Paragraph, Row, Wrap},
};

use super::{
    gpus::Gpus,
    view::{Look, losses_lines, name_cell, popup, sparkline_to, strong, table, tone},
};
use crate::{args::GpuSort, gpu, humanise, render::gpu_table::Line, sanitise, terminal::Tone, timestamp};

/// Columns of a node's name.
const NODE: u16 = 8;
/// Columns of an index.
const INDEX: u16 = 4;
/// Least columns of a device's or holder's name.
const NAME: u16 = 16;
/// Columns of a method: the longest is `shared_estimate`.
const METHOD: u16 = 15;
/// Columns of the numbers: use, memory, temperature, power.
const NUMBERS: [u16; 4] = [4, 11, 5, 6];
/// Least and most columns of the history.
const HISTORY: (u16, u16) = (10, 60);

const HELP: [&str; 14] = [
    "up/down, k/j      select",
    "PgUp/PgDn, g/G    by pages, first, last",
    "s                 by node and index, or the busiest first",
    "Tab               the network pane",
    "p, Space          pause",
    "q, ^C             quit",
    "",
    "Each GPU, below it who holds it and its MIG instances. `-`:",
    "nobody measured it. METHOD says how a value is known; of",
    "shared_estimate, only the GPU's own values are known",
    "(`orb8 gpu --help` tells them all). Beside hidden holders",
    "a GPU's values are not told.",
    "",
    "Any key closes this help.",
];

/// Draws the whole screen.
pub(crate) fn draw(frame: &mut Frame<'_>, gpus: &Gpus, agent: &str, look: &Look) {
    let mut lines = losses_lines(gpus.trouble.as_deref(), gpus.losses.as_ref(), look);
    let notes = gpus.notes.iter().chain(&gpus.said);
    lines.extend(notes.map(|note| Text::raw(sanitise::line(note).into_owned())));
    lines.push(Text::styled(
        "s sort  Tab network  p pause  ? help  q quit",
        Style::new().add_modifier(Modifier::DIM),
    ));
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(u16::try_from(lines.len()).unwrap_or(u16::MAX)),
    ]);
    let [title, body, foot] = areas.areas(frame.area());
    frame.render_widget(title_line(gpus, agent, look), title);
    devices(frame, body, gpus, look);
    frame.render_widget(Paragraph::new(lines), foot);
    if gpus.help {
        popup(frame, &HELP, look);
    }
}

fn title_line(gpus: &Gpus, agent: &str, look: &Look) -> Text<'static> {
    let mut words = vec!["orb8 top gpu".to_owned()];
    if !gpus.node.is_empty() {
        words.push(sanitise::line(&gpus.node).into_owned());
    }
    words.push(sanitise::line(agent).into_owned());
    if let Some(to) = &gpus.to {
        words.push(format!("{} UTC", timestamp::clock(Some(to), 0)));
        let (count, ..) = gpu::counted(gpus.devices());
        words.push(humanise::counted(count, "GPU", "GPUs"));
    }
    words.push(
        match gpus.sort {
            GpuSort::Name => "by node and index",
            GpuSort::Use => "by use",
        }
        .to_owned(),
    );
    let mut spans = vec![Span::styled(words.join("  "), strong())];
    if gpus.paused {
        spans.push(Span::styled("  PAUSED", tone(look, Color::Yellow)));
    }
    Text::from(spans)
}

fn devices(frame: &mut Frame<'_>, area: Rect, gpus: &Gpus, look: &Look) {
    let lines = gpus.lines();
    if lines.is_empty() {
        let why = gpus.nothing.as_deref().unwrap_or("No GPU seen yet.");
        let text = format!("\n  {}", sanitise::line(why));
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), area);
        return;
    }
    let node = if gpus.many { NODE + 1 } else { 0 };
    let fixed = node + INDEX + METHOD + NUMBERS.iter().sum::<u16>() + 6;
    // The history has what is left beside names that can be read.
    let room = area.width.saturating_sub(fixed + NAME + 1);
    let history = if room < HISTORY.0 {
        0
    } else {
        (room / 2).clamp(HISTORY.0, HISTORY.1)
    };
    let name = area
        .width
        .saturating_sub(fixed + history + u16::from(history > 0))
        .max(NAME);
    let rows: Vec<Row<'_>> = lines
        .into_iter()
        .map(|line| row(line, gpus, name, history, look))
        .collect();
    let mut header = vec![
        "GPU",
        "DEVICE",
        " USE",
        "     MEMORY",
        " TEMP",
        " POWER",
        "METHOD",
    ];
    let mut widths = vec![Constraint::Length(INDEX), Constraint::Min(NAME)];
    widths.extend(NUMBERS.map(Constraint::Length));
    widths.push(Constraint::Length(METHOD));
    if gpus.many {
        header.insert(0, "NODE");
        widths.insert(0, Constraint::Length(NODE));
    }
    if history > 0 {
        header.push("LAST 60");
        widths.push(Constraint::Length(history));
    }
    table(frame, area, rows, &header, &widths, gpus.selected());
}

fn row(line: Line<'_>, gpus: &Gpus, name: u16, history: u16, look: &Look) -> Row<'static> {
    let right = |text: String, width: u16| {
        let width = usize::from(width);
        Cell::from(format!("{text:>width$}"))
    };
    let mut cells = Vec::new();
    if gpus.many {
        cells.push(name_cell(line.node(true), NODE, look));
    }
    cells.push(name_cell(&line.index(), INDEX, look));
    let shown = name_cell(&line.name(), name, look);
    let device = line.device();
    cells.push(if device.is_some() {
        shown.style(strong())
    } else {
        shown
    });
    let numbers = [
        line.usage(),
        line.memory(),
        line.temperature(look),
        line.power(look),
    ];
    cells.extend(
        numbers
            .into_iter()
            .zip(NUMBERS)
            .map(|(text, width)| right(text, width)),
    );
    let (method, colour) = line.method();
    let method = name_cell(&method, METHOD, look);
    cells.push(match colour {
        Tone::Warn => method.style(tone(look, Color::Yellow)),
        Tone::Bad => method.style(tone(look, Color::Red)),
        _ => method,
    });
    if history > 0 {
        let bars = device
            .and_then(|device| gpus.history(device))
            .map(|values| sparkline_to(values, 100, usize::from(history), look.utf8))
            .unwrap_or_default();
        cells.push(Cell::from(bars));
    }
    Row::new(cells)
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::{GpuDevice, GpuSource, GpuSummary, State};
    use proptest::prelude::*;
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::{
        query::gpu::Answer,
        top::{
            gpus::tests::{answer, device},
            model::Action,
        },
    };

    const LOOK: Look = Look {
        terminal: true,
        width: 80,
        colours: true,
        utf8: true,
    };

    fn screen(gpus: &Gpus, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| draw(frame, gpus, "127.0.0.1:9090", &LOOK))
            .unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn devices_and_holders_at_80_by_24() {
        let mut gpus = Gpus::new(GpuSort::Name, false);
        let lost = GpuDevice {
            trouble: "GPU is lost".into(),
            hidden_holders: 2,
            ..device(1, None, "eval-0")
        };
        gpus.refresh(answer(vec![device(0, Some(0.91), "train-0"), lost]));
        gpus.notes.push("namespace ml only".into());
        let text = screen(&gpus, 80, 24);
        for expected in [
            "orb8 top gpu  n1  127.0.0.1:9090  00:00:05 UTC  2 GPUs  by node and index",
            "NVIDIA H100",
            "ml/train-0",
            "exclusive",
            " 91%",
            "(2 hidden)",
            "! GPU 1: GPU is lost",
            "namespace ml only",
            "Tab network",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        gpus.act(Action::Help, 10);
        assert!(screen(&gpus, 80, 24).contains("Any key closes this help."));
        let wide = screen(&gpus, 140, 24);
        assert!(wide.contains("LAST 60") && wide.contains('▇'), "{wide}");
    }

    #[test]
    fn no_gpu_says_why() {
        let mut gpus = Gpus::new(GpuSort::Name, false);
        assert!(screen(&gpus, 80, 24).contains("No GPU seen yet."));
        gpus.refresh(Answer {
            summary: Some(GpuSummary {
                sources: vec![GpuSource {
                    name: "nvml".into(),
                    state: State::Off.into(),
                    reason: "no libnvidia-ml.so.1".into(),
                    ..GpuSource::default()
                }],
                ..GpuSummary::default()
            }),
            ..Answer::default()
        });
        let text = screen(&gpus, 80, 24);
        assert!(
            text.contains("no GPU here") && text.contains("libnvidia-ml.so.1"),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn any_name_and_size_can_be_drawn(
            name in any::<String>(), share in any::<f64>(), width in 1_u16..200, height in 1_u16..60, many: bool, help: bool,
        ) {
            let mut gpus = Gpus::new(GpuSort::Use, many);
            let hostile = GpuDevice { node: name.clone(), model: name.clone(), trouble: name.clone(), ..device(0, Some(share), &name) };
            gpus.refresh(answer(vec![hostile]));
            if help { gpus.act(Action::Help, 10); }
            prop_assert!(!screen(&gpus, width, height).chars().any(|c| c != '\n' && sanitise::is_hostile(c)));
        }
    }
}
