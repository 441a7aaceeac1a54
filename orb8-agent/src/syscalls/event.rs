//! Calls that are told one by one: the kernel's record, decoded.
//!
//! Everything in a record but its integers comes from the memory of a program that may be hostile: strings are any bytes,
//! and lengths are checked against what there is.

use orb8_common::syscall::Event;
use orb8_proto::v1;

use super::{arguments, call::Call};
use crate::{
    identity::owner::Owner,
    probe::syscall::event::texts,
    store::{endpoint, timestamp},
};

/// A call, told one by one.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct CallEvent {
    /// Unix time in nanoseconds.
    pub(crate) time_ns: u64,
    pub(crate) owner: Owner,
    pub(crate) tgid: u32,
    pub(crate) tid: u32,
    pub(crate) comm: String,
    pub(crate) call: Call,
    pub(crate) arguments: Vec<Argument>,
    /// Calls that it stands for.
    pub(crate) weight: u32,
}

/// A decoded argument.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Argument {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    pub(crate) truncated: bool,
}

impl CallEvent {
    /// Decodes a record; `None` if its ABI is none of this machine's.
    pub(crate) fn decode(event: &Event, time_ns: u64, owner: Owner) -> Option<Self> {
        let call = Call::from_record(event.abi, event.number)?;
        Some(Self {
            time_ns,
            owner,
            tgid: event.tgid,
            tid: event.tid,
            comm: text(event.comm.split(|&byte| byte == 0).next().unwrap_or_default()),
            call,
            arguments: arguments::decode(call, &event.args, &Strings::of(event)),
            weight: event.weight.max(1),
        })
    }

    /// Its message.
    pub(crate) fn message(&self, node: &str) -> v1::SyscallEvent {
        v1::SyscallEvent {
            time: Some(timestamp(self.time_ns)),
            node: node.to_owned(),
            owner: Some(endpoint(&self.owner, true)),
            pid: self.tgid,
            tid: self.tid,
            comm: self.comm.clone(),
            syscall: self.call.name().into_owned(),
            abi: v1::SyscallAbi::from(self.call.abi).into(),
            arguments: self
                .arguments
                .iter()
                .map(|argument| v1::SyscallArgument {
                    name: argument.name.to_owned(),
                    value: argument.value.clone(),
                    truncated: argument.truncated,
                })
                .collect(),
            weight: self.weight,
            change: None,
        }
    }
}

/// Strings of a record, in its order: those that arguments point to, then the elements of a vector.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Strings {
    pub(crate) all: Vec<Text>,
    /// There were more elements of the vector.
    pub(crate) more: bool,
}

/// A string out of a program's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) truncated: bool,
    /// Its memory could not be read.
    pub(crate) unreadable: bool,
}

impl Strings {
    fn of(event: &Event) -> Self {
        let all = texts(event).map(|it| Text {
            text: text(it.bytes),
            truncated: it.truncated,
            unreadable: it.unreadable,
        });
        Self {
            all: all.collect(),
            more: event.more != 0,
        }
    }
}

/// Bytes as text, that cannot be anything but text on a terminal.
fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use orb8_common::syscall::{STRINGS, TEXT, abi};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn record(call: &str, args: [u64; 6], strings: &[&[u8]]) -> Event {
        let mut event = Event {
            time_ns: 0,
            cgroup: 1,
            args,
            tgid: 10,
            tid: 11,
            abi: abi::NATIVE,
            number: Call::parse(call).unwrap()[0].number.into(),
            weight: 1,
            strings: strings.len() as u8,
            truncated: 0,
            unreadable: 0,
            more: 0,
            comm: *b"a program\0\0\0\0\0\0\0",
            lengths: [0; STRINGS],
            text: [0; TEXT],
        };
        let mut at = 0;
        for (index, string) in strings.iter().enumerate() {
            event.lengths[index] = string.len() as u8;
            event.text[at..at + string.len()].copy_from_slice(string);
            at += string.len() + 1;
        }
        event
    }

    pub(crate) fn decoded(event: &Event) -> Vec<(&'static str, String, bool)> {
        let event = CallEvent::decode(event, 0, Owner::default()).unwrap();
        let arguments = event.arguments.into_iter();
        arguments.map(|it| (it.name, it.value, it.truncated)).collect()
    }

    #[test]
    fn a_record_becomes_an_event() {
        let record = record("execve", [1, 2, 3, 0, 0, 0], &[b"/bin/sh", b"sh", b"-c"]);
        let event = CallEvent::decode(&record, 5, Owner::default()).unwrap();
        let message = event.message("n");
        assert_eq!(
            (message.pid, message.tid, message.comm.as_str()),
            (10, 11, "a program")
        );
        assert_eq!((message.syscall.as_str(), message.weight), ("execve", 1));
        assert_eq!(decoded(&record)[0], ("path", "/bin/sh".to_owned(), false));
        assert_eq!(decoded(&record)[1], ("argv", "sh -c".to_owned(), false));
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(text(b"a\x1b[31m\nb\xff"), "a\\u{1b}[31m\\nb\u{fffd}");
    }

    proptest! {
        #[test]
        fn any_record_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), size_of::<Event>()), number in 0u32..580) {
            // SAFETY: as many bytes as the record has, and any will do: integers without padding.
            let mut event = unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() };
            event.abi %= 3;
            event.number = number;
            if let Some(event) = CallEvent::decode(&event, 0, Owner::default()) {
                let message = event.message("n");
                prop_assert!(message.weight > 0);
                for argument in message.arguments {
                    prop_assert!(!argument.value.chars().any(char::is_control));
                }
            }
        }
    }
}
