//! `orb8 pods`.

use orb8_proto::v1::{PodHealth, PodStatus};

use crate::{
    args::{PodForm, PodsArgs},
    exit::Outcome,
    filter::{self, Scope},
    fleet::Fleet,
    humanise,
    ledger::Losses,
    output::Output,
    query,
    render::{footer, pods},
    terminal::{self, Style},
};

/// A pod, and the node whose agent told of it.
pub(crate) type Told = (String, PodStatus);

pub(super) async fn run(fleet: &Fleet, args: &PodsArgs) -> anyhow::Result<Outcome> {
    let scope = Scope::of_pods(args, fleet.namespace.as_deref());
    let (answers, missing) = query::pods(fleet, &filter::pods_request(args, &scope)).await?;
    let mut losses = Losses { sentences: missing };
    let mut rows: Vec<Told> = Vec::new();
    for (name, answer) in answers {
        let notes = Losses {
            sentences: answer.notes,
        };
        if fleet.is_many() {
            losses.add(&name, notes);
        } else {
            losses.sentences.extend(notes.sentences);
        }
        rows.extend(answer.pods.into_iter().map(|pod| (answer.node.clone(), pod)));
    }
    rows.sort_by(|(a_node, a), (b_node, b)| {
        (&a.namespace, &a.name, a_node).cmp(&(&b.namespace, &b.name, b_node))
    });
    let gaps = rows
        .iter()
        .filter(|(_, pod)| pod.health() == PodHealth::Gap)
        .count();
    let style = Style::of_stdout();
    let mut output = Output::stdout();
    if args.output == PodForm::Json {
        for (node, pod) in &rows {
            output.write(pods::json(node, pod)?).await?;
        }
        output.flush().await?;
        for sentence in losses.sentences.iter().cloned().chain(scope.note()) {
            terminal::say(&format!("orb8: {sentence}"));
        }
    } else {
        let mut text = match args.output {
            _ if rows.is_empty() => "No pods.\n".to_owned(),
            PodForm::Wide => pods::wide(&rows, &style),
            _ => pods::narrow(&rows, &style),
        };
        text.push('\n');
        text.push_str(&pods::reasons(&rows, &style));
        text.push_str(&format!(
            "{}, {}\n",
            humanise::counted(rows.len() as u64, "pod", "pods"),
            humanise::counted(gaps as u64, "gap", "gaps")
        ));
        text.push_str(&footer::notes(scope.note().as_slice()));
        if !losses.is_none() {
            text.push_str(&footer::losses(&losses, &style));
        }
        output.write(text).await?;
    }
    output.finish().await?;
    Ok(Outcome::of(gaps > 0 || !losses.is_none(), args.strict))
}
