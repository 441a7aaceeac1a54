//! Makes text of others (process names, interface names, agents' answers) harmless on a terminal.
//!
//! A process may be called anything, escape sequences included; and direction marks can make a line read as what
//! it is not.

use std::borrow::Cow;

/// Characters that steer a terminal or the order of text: C0, DEL, C1, line separators, bidirectional and
/// zero-width controls, tags.
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` with each hostile character replaced by `?`.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    if text.contains(is_hostile) {
        Cow::Owned(
            text.chars()
                .map(|c| if is_hostile(c) { '?' } else { c })
                .collect(),
        )
    } else {
        Cow::Borrowed(text)
    }
}

/// A JSON text, with hostile characters that JSON lets pass inside of its strings written as `\u` escapes: the
/// same data, harmless on a terminal.
pub(crate) fn json(text: String) -> String {
    if !text.contains(is_hostile) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hostile(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_sequences_lose_their_power() {
        assert_eq!(line("a\x1b[2Jb\u{9b}c\r\n\u{202e}"), "a?[2Jb?c???");
        assert_eq!(line("naïve 名"), "naïve 名");
    }

    proptest! {
        #[test]
        fn nothing_hostile_is_left(text in any::<String>()) {
            prop_assert!(!line(&text).contains(is_hostile));
            prop_assert_eq!(line(&text).chars().count(), text.chars().count());
        }

        #[test]
        fn json_means_the_same(text in any::<String>()) {
            let escaped = json(serde_json::to_string(&text).unwrap());
            prop_assert!(!escaped.contains(is_hostile));
            prop_assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        }
    }
}
