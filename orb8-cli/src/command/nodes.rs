//! `orb8 nodes`.

use orb8_proto::v1::NodeState;

use crate::{
    args::{NodeForm, NodesArgs},
    exit::Outcome,
    fleet::Fleet,
    humanise,
    output::Output,
    query,
    render::nodes,
    terminal::Style,
};

pub(super) async fn run(fleet: &Fleet, args: &NodesArgs) -> anyhow::Result<Outcome> {
    let infos = query::nodes(fleet).await?;
    let away = infos
        .iter()
        .filter(|node| node.state() != NodeState::Answered)
        .count();
    let style = Style::of_stdout();
    let mut output = Output::stdout();
    match args.output {
        NodeForm::Json => {
            for info in &infos {
                output.write(nodes::json(info)?).await?;
            }
        }
        form => {
            let mut text = match form {
                _ if infos.is_empty() => "No nodes.\n".to_owned(),
                NodeForm::Wide => nodes::wide(&infos, &style),
                _ => nodes::narrow(&infos, &style),
            };
            let mut all = humanise::counted(infos.len() as u64, "node", "nodes");
            if away > 0 {
                all.push_str(&format!(", {away} without an answer"));
            }
            text.push_str(&format!("\n{all}\n"));
            text.push_str(&nodes::reasons(&infos, &style));
            output.write(text).await?;
        }
    }
    output.finish().await?;
    Ok(Outcome::of(away > 0, args.strict))
}
