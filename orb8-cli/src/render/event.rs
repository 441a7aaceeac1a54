//! Events as lines and as JSON.

use orb8_proto::v1::{EventLoss, NetworkEvent, NetworkEventKind};
use serde::Serialize;

use super::flow_json::FlowRecord;
use crate::{
    ends, humanise, names, sanitise,
    terminal::{Style, Tone},
    timestamp,
};

/// One event for scripts: time, kind, weight, and the flow's fields.
#[derive(Debug, Serialize)]
pub(crate) struct EventRecord {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    event: &'static str,
    /// New flows that it stands for, where sampling is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(flatten)]
    flow: FlowRecord,
}

impl From<&NetworkEvent> for EventRecord {
    fn from(event: &NetworkEvent) -> Self {
        Self {
            time: timestamp::rfc3339(event.time.as_ref()),
            event: match event.kind() {
                NetworkEventKind::Unspecified => "unknown",
                NetworkEventKind::NewFlow => "new_flow",
                NetworkEventKind::Syn => "syn",
                NetworkEventKind::SynAck => "syn_ack",
                NetworkEventKind::Fin => "fin",
                NetworkEventKind::Rst => "rst",
            },
            weight: (event.weight > 1).then_some(event.weight),
            flow: event.flow.as_ref().map(FlowRecord::from).unwrap_or_default(),
        }
    }
}

/// `time kind owner ip:port → ip:port owner service`, source first; `many`: after the time, the node that saw it.
pub(crate) fn line(event: &NetworkEvent, many: bool, style: &Style) -> String {
    let (kind, tone) = match event.kind() {
        NetworkEventKind::Unspecified => ("?", Tone::Plain),
        NetworkEventKind::NewFlow => ("NEW", Tone::Plain),
        NetworkEventKind::Syn => ("SYN", Tone::Good),
        NetworkEventKind::SynAck => ("SYN-ACK", Tone::Good),
        NetworkEventKind::Fin => ("FIN", Tone::Dim),
        NetworkEventKind::Rst => ("RST", Tone::Bad),
    };
    let time = timestamp::clock(event.time.as_ref(), 6);
    let node = event.flow.as_ref().filter(|_| many).map(|flow| &*flow.node);
    let node = node.map_or_else(String::new, |node| format!("{} ", sanitise::line(node)));
    let mut line = format!("{time} {node}{}", style.paint(&format!("{kind:<7}"), tone));
    if let Some(flow) = &event.flow {
        let protocol = if flow.ip_version == 0 {
            names::ethertype(flow.ethertype)
        } else {
            names::protocol(flow.protocol)
        };
        line.push_str(&format!(" {protocol:<6}"));
        let ports = ends::has_ports(flow);
        for (index, end) in [flow.src.as_ref(), flow.dst.as_ref()].into_iter().enumerate() {
            let arrow = style.arrow(true);
            line.push_str(&if index == 1 {
                format!(" {arrow}")
            } else {
                String::new()
            });
            let name = end.and_then(ends::name);
            let words = [name.unwrap_or_default(), ends::socket(end, ports)];
            for word in words.iter().filter(|word| !word.is_empty()) {
                line.push(' ');
                line.push_str(&sanitise::line(word));
            }
        }
        let service = ends::service(flow);
        let kubernetes = flow
            .service
            .as_ref()
            .and_then(|service| ends::service_name(service, flow.protocol));
        if let Some(name) = kubernetes {
            line.push_str(&format!(" (service {})", sanitise::line(&name)));
        } else if let Some((_, name)) = service.split_once(' ').filter(|_| flow.ip_version != 0) {
            line.push_str(&format!(" ({name})"));
        }
        if flow.bytes > 0 {
            line.push_str(&format!(" {}", humanise::bytes(flow.bytes)));
        }
    }
    if event.weight > 1 {
        line.push_str(&format!(" {}{}", style.times(), event.weight));
    }
    line.push('\n');
    line
}

/// What a stream lost, as a sentence; nothing if it lost nothing.
pub(crate) fn loss(loss: &EventLoss) -> Option<String> {
    let parts: Vec<String> = [
        (
            loss.ring,
            "did not fit into the kernel's ring buffer (ORB8_RING_BUFFER_SIZE)",
        ),
        (loss.stream, "came faster than this command took them"),
        (
            loss.sampled,
            "new flows were left out by sampling, the ring being nearly full",
        ),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    (!parts.is_empty()).then(|| format!("events lost: {}; flow counts are not affected", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_by_cause() {
        assert_eq!(loss(&EventLoss::default()), None);
        let text = loss(&EventLoss {
            ring: 1,
            stream: 0,
            sampled: 3,
            ..EventLoss::default()
        })
        .unwrap();
        assert!(text.contains("1 did not fit") && text.contains("3 new flows") && !text.contains("faster"));
    }

    #[test]
    fn an_empty_event_is_a_line() {
        let style = Style {
            terminal: false,
            width: 80,
            colours: false,
            utf8: false,
        };
        assert_eq!(line(&NetworkEvent::default(), true, &style), "- ?      \n");
    }
}
