//! `orb8 status`.

use crate::{
    args::{Report, StatusArgs},
    exit::Outcome,
    fleet::Fleet,
    ledger::Losses,
    output::Output,
    query,
    render::status,
    terminal::{self, Style},
};

pub(super) async fn run(fleet: &Fleet, args: &StatusArgs) -> anyhow::Result<Outcome> {
    let (answers, missing) = query::status(fleet).await?;
    let mut losses = Losses { sentences: missing };
    for (name, answer) in &answers {
        let of_one = Losses::of_ledger(&answer.ledger);
        if fleet.is_many() {
            losses.add(name, of_one);
        } else {
            losses.sentences.extend(of_one.sentences);
        }
    }
    let text = match (args.output, answers.as_slice()) {
        (Report::Json, answers) => answers
            .iter()
            .map(|(_, answer)| status::json(answer))
            .collect::<anyhow::Result<String>>()?,
        (Report::Table, [(_, answer)]) if !fleet.is_many() || fleet.nodes.len() == 1 => {
            status::text(answer, &losses, &Style::of_stdout())
        }
        (Report::Table, answers) => {
            let style = Style::of_stdout();
            let own = match query::server_status(fleet).await? {
                Some(own) => status::of_server(&own, &style),
                None => String::new(),
            };
            own + &status::overview(answers, &losses, &style)
        }
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
