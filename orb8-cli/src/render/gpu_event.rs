//! Events of GPUs as lines.

use orb8_proto::v1::{EventLoss, GpuEvent};

use crate::{
    gpu, sanitise,
    terminal::{Style, Tone},
    timestamp,
};

/// Holders that are named.
const HOLDERS: usize = 4;

/// `time GPU 0 XID 79: meaning; held by ml/train-0 (trainer)`; `many`: after the time, the node.
pub(crate) fn line(event: &GpuEvent, many: bool, style: &Style) -> String {
    let mut words = vec![timestamp::clock(event.time.as_ref(), 6)];
    if many && !event.node.is_empty() {
        words.push(event.node.clone());
    }
    words.push(format!("GPU {}", gpu::index_of(event.index, &event.uuid)));
    words.extend(event.mig.as_ref().map(gpu::instance));
    let mut text = sanitise::line(&words.join(" ")).into_owned();
    text.push(' ');
    text.push_str(&style.paint(&format!("XID {}", event.xid), Tone::Bad));
    if !event.meaning.is_empty() {
        text.push_str(&format!(": {}", sanitise::line(&event.meaning)));
    }
    let names: Vec<String> = event
        .holders
        .iter()
        .take(HOLDERS)
        .map(|holder| gpu::holder(holder.owner.as_ref(), true))
        .collect();
    let hidden = (event.hidden_holders > 0).then(|| gpu::hidden_holders(event.hidden_holders));
    if !names.is_empty() {
        let more = match event.holders.len().saturating_sub(HOLDERS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        text.push_str(&format!("; held by {}{more}", sanitise::line(&names.join(", "))));
        if let Some(hidden) = hidden {
            text.push_str(&format!(", and {hidden}"));
        }
    } else if let Some(hidden) = hidden {
        text.push_str(&format!("; held by {hidden}"));
    }
    text.push('\n');
    text
}

/// What a stream lost, as a sentence; nothing if it lost nothing.
pub(crate) fn loss(loss: &EventLoss) -> Option<String> {
    (loss.stream > 0).then(|| {
        format!(
            "events lost: {} came faster than this command took them",
            loss.stream
        )
    })
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::{Endpoint, GpuHolder, GpuMig};

    use super::*;

    #[test]
    fn an_error_names_who_held_the_gpu() {
        let holder = |unit: &str| GpuHolder {
            owner: Some(Endpoint {
                unit: unit.into(),
                ..Endpoint::default()
            }),
            ..GpuHolder::default()
        };
        let mut event = GpuEvent {
            node: "n1".into(),
            index: Some(0),
            xid: 79,
            meaning: "GPU has fallen off the bus\n".into(),
            holders: vec![holder("a"), GpuHolder::default()],
            ..GpuEvent::default()
        };
        assert_eq!(
            line(&event, true, &Style::PIPED),
            "- n1 GPU 0 XID 79: GPU has fallen off the bus?; held by a, (unknown)\n"
        );
        event.holders = ["a", "b", "c", "d", "\x1b", "f"].map(holder).to_vec();
        event.mig = Some(GpuMig::default());
        event.meaning.clear();
        assert_eq!(
            line(&event, false, &Style::PIPED),
            "- GPU 0 MIG 0 XID 79; held by a, b, c, d and 2 more\n"
        );
        assert_eq!(line(&GpuEvent::default(), true, &Style::PIPED), "- GPU ? XID 0\n");
        event.holders.truncate(1);
        event.hidden_holders = 2;
        assert_eq!(
            line(&event, false, &Style::PIPED),
            "- GPU 0 MIG 0 XID 79; held by a, and 2 hidden holders\n"
        );
        event.holders.clear();
        event.hidden_holders = 1;
        assert_eq!(
            line(&event, false, &Style::PIPED),
            "- GPU 0 MIG 0 XID 79; held by 1 hidden holder\n"
        );
    }
}
