//! `orb8 syscall-mode`: what the agents measure of system calls, shown or switched.

use orb8_proto::v1::{SyscallGroup, SyscallMode, SyscallQuery};
use serde::Serialize;

use crate::{
    args::{Report, SyscallModeArgs},
    exit::Outcome,
    filter,
    fleet::Fleet,
    ledger::Losses,
    output::Output,
    query::{Cursor, syscall as query},
    render::{
        flow_json, footer,
        table::{Cell, Column, Table},
    },
    syscall::mode_name,
    terminal::{self, Style, Tone},
};

/// One agent's mode.
#[derive(Debug, Serialize)]
struct ModeRecord {
    node: String,
    /// Before it was switched.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'static str>,
    mode: &'static str,
}

pub(super) async fn run(fleet: &Fleet, args: &SyscallModeArgs) -> anyhow::Result<Outcome> {
    let (records, losses) = match args.mode {
        Some(mode) => switch(fleet, filter::syscall::mode(mode)).await?,
        None => show(fleet).await?,
    };
    let style = Style::of_stdout();
    let mut output = Output::stdout();
    if args.output == Report::Json {
        for record in &records {
            output.write(flow_json::line(record)?).await?;
        }
        output.flush().await?;
        for sentence in &losses.sentences {
            terminal::say(&format!("orb8: {sentence}"));
        }
    } else {
        let mut text = table(&records, &style);
        if !losses.is_none() {
            text.push('\n');
            text.push_str(&footer::losses(&losses, &style));
        }
        output.write(text).await?;
    }
    output.finish().await?;
    Ok(match args.mode {
        // What was to be done was not done.
        Some(_) if !losses.is_none() => Outcome::Failed,
        Some(_) => Outcome::Done,
        None => Outcome::of(!losses.is_none(), args.strict),
    })
}

async fn switch(fleet: &Fleet, mode: SyscallMode) -> anyhow::Result<(Vec<ModeRecord>, Losses)> {
    let (answers, missing) = query::set_mode(fleet, mode).await?;
    let mut losses = Losses { sentences: missing };
    let mut records = Vec::new();
    for (name, answer) in answers {
        if answer.mode() != mode {
            losses.sentences.push(format!(
                "{name} did not switch: its mode is {}",
                mode_name(answer.mode())
            ));
        }
        records.push(ModeRecord {
            before: Some(mode_name(answer.before())),
            mode: mode_name(answer.mode()),
            node: name,
        });
    }
    Ok((records, losses))
}

async fn show(fleet: &Fleet) -> anyhow::Result<(Vec<ModeRecord>, Losses)> {
    let query = SyscallQuery {
        by: vec![SyscallGroup::Node.into()],
        limit: 1,
        ..SyscallQuery::default()
    };
    let answer = query::ask(fleet, &query, &Cursor::default()).await?;
    let records = answer
        .modes
        .into_iter()
        .map(|agent| ModeRecord {
            node: agent.name,
            before: None,
            mode: mode_name(agent.mode),
        })
        .collect();
    Ok((
        records,
        Losses {
            sentences: answer.missing,
        },
    ))
}

fn table(records: &[ModeRecord], style: &Style) -> String {
    let mut table = Table::new([Column::text("NODE"), Column::text("BEFORE"), Column::text("MODE")]);
    for record in records {
        let tone = if record.mode == mode_name(SyscallMode::Off) {
            Tone::Warn
        } else {
            Tone::Plain
        };
        table.row([
            Cell::new(&record.node),
            Cell::new(record.before.unwrap_or_default()),
            Cell::toned(record.mode, tone),
        ]);
    }
    table.without_empty(&["BEFORE"]).render(None, style)
}
