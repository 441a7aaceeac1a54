//! `orb8 status`.

use crate::{
    args::{Report, StatusArgs},
    connect::Session,
    exit::Outcome,
    ledger::Losses,
    output::Output,
    query,
    render::status,
    terminal::{self, Style},
};

pub(super) async fn run(session: &mut Session, args: &StatusArgs) -> anyhow::Result<Outcome> {
    let answer = query::status(session).await?;
    let losses = Losses::of_ledger(&answer.ledger);
    let text = match args.output {
        Report::Table => status::text(&answer, &Style::of_stdout()),
        Report::Json => status::json(&answer)?,
    };
    let mut output = Output::stdout();
    output.write(text).await?;
    output.finish().await?;
    if args.output == Report::Json {
        losses
            .sentences
            .iter()
            .for_each(|sentence| terminal::say(&format!("orb8: {sentence}")));
    }
    Ok(Outcome::of(!losses.is_none(), args.strict))
}
