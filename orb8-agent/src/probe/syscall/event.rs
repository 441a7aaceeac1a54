//! Records of the event ring.

use std::mem::MaybeUninit;

use orb8_common::syscall::{EVENT_HEAD, Event, STRINGS};

/// The event that a record of the ring is. `None` if it is none: too short, or with strings that it does not hold.
#[must_use]
pub fn decode(record: &[u8]) -> Option<Event> {
    if record.len() < EVENT_HEAD {
        return None;
    }
    let mut event = MaybeUninit::<Event>::zeroed();
    let len = record.len().min(size_of::<Event>());
    // SAFETY: no more bytes than the record and the event have; an event is made of integers, for which all bytes are
    // valid, also those that stay zero.
    let event = unsafe {
        event
            .as_mut_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(record.as_ptr(), len);
        event.assume_init()
    };
    let used: usize = event.lengths[..usize::from(event.strings).min(STRINGS)]
        .iter()
        .map(|&length| usize::from(length) + 1)
        .sum();
    (usize::from(event.strings) <= STRINGS && EVENT_HEAD + used <= len || event.strings == 0).then_some(event)
}

/// A string that a call was made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text<'a> {
    /// Its bytes, as many as were kept, without NUL.
    pub bytes: &'a [u8],
    /// There is more of it, or it is just as long as what is kept.
    pub truncated: bool,
    /// It could not be read: its page was not in memory, or there is none.
    pub unreadable: bool,
}

/// The strings of an event, in order of the call's arguments; then, for execve and execveat, the program's.
pub fn texts(event: &Event) -> impl Iterator<Item = Text<'_>> {
    let mut rest = &event.text[..];
    (0..usize::from(event.strings).min(STRINGS)).map(move |at| {
        let (bytes, after) = rest.split_at(usize::from(event.lengths[at]).min(rest.len()));
        // Its NUL.
        rest = after.get(1..).unwrap_or_default();
        Text {
            bytes,
            truncated: event.truncated >> at & 1 == 1,
            unreadable: event.unreadable >> at & 1 == 1,
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strings_come_apart_again() {
        let mut record = vec![0; size_of::<Event>()];
        let head = std::mem::offset_of!(Event, strings);
        record[head..head + 4].copy_from_slice(&[3, 0b100, 0b010, 1]);
        let lengths = std::mem::offset_of!(Event, lengths);
        record[lengths..lengths + 3].copy_from_slice(&[2, 0, 3]);
        record[EVENT_HEAD..EVENT_HEAD + 7].copy_from_slice(b"ab\0\0xyz");
        let event = decode(&record).unwrap();
        let texts: Vec<_> = texts(&event)
            .map(|text| (text.bytes, text.truncated, text.unreadable))
            .collect();
        assert_eq!(
            texts,
            [
                (&b"ab"[..], false, false),
                (b"", false, true),
                (b"xyz", true, false)
            ]
        );
        assert_eq!(event.more, 1);
        // Strings that are not there.
        assert_eq!(decode(&record[..EVENT_HEAD]), None);
        assert_eq!(decode(&record[..EVENT_HEAD - 1]), None);
    }

    proptest! {
        #[test]
        fn no_record_is_too_wild(record in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(event) = decode(&record) {
                prop_assert!(texts(&event).map(|text| text.bytes.len()).sum::<usize>() <= event.text.len());
            }
        }
    }
}
