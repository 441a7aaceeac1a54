//! Events of system calls as lines.

use orb8_proto::v1::{EventLoss, SyscallEvent};

use super::syscall_table;
use crate::{
    humanise, sanitise, syscall,
    terminal::{Style, Tone},
    timestamp,
};

/// Characters of one argument's value that are shown.
const VALUE: usize = 256;

/// `time owner comm[pid/tid] call(name=value, …)`; of a change, `time NEW why`; `many`: after the time, the node
/// that saw it.
pub(crate) fn line(event: &SyscallEvent, many: bool, style: &Style) -> String {
    let mut words = vec![timestamp::clock(event.time.as_ref(), 6)];
    if many && !event.node.is_empty() {
        words.push(sanitise::line(&event.node).into_owned());
    }
    let owner = syscall::owner(event.owner.as_ref());
    let call = sanitise::line(&syscall::call(&event.syscall, event.abi())).into_owned();
    if let Some(change) = &event.change {
        words.push(style.paint(syscall_table::kind(change), Tone::Warn));
        // An explanation names caller and call.
        if change.explanation.is_empty() {
            words.extend(owner.map(|owner| sanitise::line(&owner).into_owned()));
            words.push(format!(
                "{call}: {} calls/s, usual {}",
                humanise::small_rate(change.rate),
                syscall_table::usual(change, style)
            ));
        } else {
            words.push(sanitise::line(&change.explanation).into_owned());
        }
        return format!("{}\n", words.join(" "));
    }
    words.extend(owner.map(|owner| sanitise::line(&owner).into_owned()));
    let ids = if event.tid == 0 || event.tid == event.pid {
        event.pid.to_string()
    } else {
        format!("{}/{}", event.pid, event.tid)
    };
    words.push(format!("{}[{ids}]", sanitise::line(&event.comm)));
    let arguments: Vec<String> = event
        .arguments
        .iter()
        .map(|argument| {
            let value = sanitise::line(&argument.value);
            let cut: String = value.chars().take(VALUE).collect();
            let more = if argument.truncated || cut.len() < value.len() {
                style.ellipsis().to_string()
            } else {
                String::new()
            };
            format!("{}={cut}{more}", sanitise::line(&argument.name))
        })
        .collect();
    words.push(format!(
        "{}({})",
        style.paint(&call, Tone::Strong),
        arguments.join(", ")
    ));
    if event.weight > 1 {
        words.push(format!("{}{}", style.times(), event.weight));
    }
    format!("{}\n", words.join(" "))
}

/// What a stream lost, as a sentence; nothing if it lost nothing.
pub(crate) fn loss(loss: &EventLoss) -> Option<String> {
    let parts: Vec<String> = [
        (
            loss.ring,
            "did not fit into the kernel's ring buffer (ORB8_SYSCALL_RING_SIZE)",
        ),
        (loss.stream, "came faster than this command took them"),
        (loss.sampled, "were left out, the ring being nearly full"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    (!parts.is_empty()).then(|| {
        format!(
            "events lost: {}; counts of calls are not affected",
            parts.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::SyscallArgument;

    use super::*;

    const STYLE: Style = Style::PIPED;

    #[test]
    fn values_are_harmless_and_say_where_they_are_cut() {
        let argument = |value: &str, truncated| SyscallArgument {
            name: "path".into(),
            value: value.into(),
            truncated,
        };
        let event = SyscallEvent {
            pid: 7,
            tid: 9,
            comm: "a\x1b[2J".into(),
            syscall: "execve".into(),
            arguments: vec![argument("/bin/\nls", true), argument(&"x".repeat(300), false)],
            ..SyscallEvent::default()
        };
        let text = line(&event, false, &STYLE);
        let x = "x".repeat(VALUE);
        assert_eq!(text, format!("- a?[2J[7/9] execve(path=/bin/?ls…, path={x}…)\n"));
        assert_eq!(line(&SyscallEvent::default(), true, &STYLE), "- [0] ()\n");
    }
}
