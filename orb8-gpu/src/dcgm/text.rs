//! Lines of Prometheus' text format, version 0.0.4.
//!
//! No crate fits: those that are kept up take label values apart at commas and equals signs within quotes and drop what they
//! do not understand, or give up a whole page for one bad line; one is LGPL. A reader that lives with hostile pages has to
//! say, line by line, what is wrong.

use std::borrow::Cow;

/// Labels of one sample; a line that has more is refused.
const MAX_LABELS: usize = 10_000;

/// A sample.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    /// The metric's.
    pub(super) name: &'a str,
    labels: Vec<(&'a str, Cow<'a, str>)>,
    pub(super) value: Value,
    /// Milliseconds since 1970; dcgm-exporter writes none, a federating Prometheus does.
    pub(super) timestamp: Option<i64>,
}

impl Sample<'_> {
    /// A label that is there and not empty, which means the same to Prometheus as one that is not there.
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, value)| &**value)
            .filter(|value| !value.is_empty())
    }
}

/// A sample's value. A counter may be larger than a float can tell exactly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub(super) number: f64,
    /// The same, where it was written as a whole number.
    pub(super) whole: Option<u64>,
}

impl PartialEq for Value {
    /// A Prometheus in between writes whole numbers as floats: `1e+03` is 1000.
    fn eq(&self, other: &Self) -> bool {
        match (self.whole, other.whole) {
            (Some(one), Some(other)) => one == other,
            _ => self.number.total_cmp(&other.number).is_eq(),
        }
    }
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("is not UTF-8")]
    Utf8,
    #[error("does not begin with a metric's name")]
    Name,
    #[error("has labels that cannot be read")]
    Labels,
    #[error("has one label twice")]
    Twice,
    #[error("has more labels than are read")]
    Many,
    #[error("has no number for a value")]
    Value,
    #[error("has a timestamp that cannot be read")]
    Timestamp,
    #[error("goes on after its end")]
    Rest,
}

/// Reads a line without its newline; none: a comment or nothing.
pub(super) fn sample(line: &[u8]) -> Result<Option<Sample<'_>>, LineError> {
    let line = std::str::from_utf8(line).map_err(|_| LineError::Utf8)?;
    let line = blank(line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, rest) = name(line, |byte| byte == b':').ok_or(LineError::Name)?;
    let rest = blank(rest);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split([' ', '\t']).filter(|word| !word.is_empty());
    let value = words.next().and_then(value).ok_or(LineError::Value)?;
    let timestamp = words
        .next()
        .map(|word| word.parse().map_err(|_| LineError::Timestamp))
        .transpose()?;
    if words.next().is_some() {
        return Err(LineError::Rest);
    }
    Ok(Some(Sample {
        name,
        labels,
        value,
        timestamp,
    }))
}

fn value(word: &str) -> Option<Value> {
    Some(Value {
        number: word.parse().ok()?,
        whole: word.parse().ok(),
    })
}

/// Labels after the opening brace, and what follows the closing one.
#[expect(clippy::type_complexity, reason = "it is taken apart at once")]
fn labels(mut rest: &str) -> Result<(Vec<(&str, Cow<'_, str>)>, &str), LineError> {
    let mut labels: Vec<(&str, Cow<'_, str>)> = Vec::new();
    loop {
        rest = blank(rest);
        if let Some(rest) = rest.strip_prefix('}') {
            let mut names: Vec<&str> = labels.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            if names.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(LineError::Twice);
            }
            return Ok((labels, rest));
        }
        if labels.len() == MAX_LABELS {
            return Err(LineError::Many);
        }
        let (name, after) = name(rest, |_| false).ok_or(LineError::Labels)?;
        let quoted = blank(after)
            .strip_prefix('=')
            .and_then(|rest| blank(rest).strip_prefix('"'))
            .ok_or(LineError::Labels)?;
        let (value, after) = unquote(quoted).ok_or(LineError::Labels)?;
        labels.push((name, value));
        rest = blank(after);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return Err(LineError::Labels),
        }
    }
}

/// A name of letters, digits and underlines, and what follows it.
fn name(text: &str, also: impl Fn(u8) -> bool) -> Option<(&str, &str)> {
    let length = text
        .bytes()
        .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || also(*byte))
        .count();
    let (name, rest) = text.split_at(length);
    (!name.is_empty() && !name.starts_with(|first: char| first.is_ascii_digit())).then_some((name, rest))
}

/// Text up to the closing quote, and what follows that. dcgm-exporter does not escape at all; so a backslash that escapes
/// nothing is itself.
fn unquote(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = text.find(['"', '\\'])?;
    if text.as_bytes()[end] == b'"' {
        return Some((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = String::new();
    let mut rest = text;
    loop {
        let end = rest.find(['"', '\\'])?;
        value.push_str(&rest[..end]);
        let after = &rest[end + 1..];
        if rest.as_bytes()[end] == b'"' {
            return Some((Cow::Owned(value), after));
        }
        rest = match after.as_bytes().first() {
            Some(b'n') => {
                value.push('\n');
                &after[1..]
            }
            Some(b'"' | b'\\') => {
                value.push_str(&after[..1]);
                &after[1..]
            }
            _ => {
                value.push('\\');
                after
            }
        };
    }
}

fn blank(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Result<Option<Sample<'_>>, LineError> {
        sample(line.as_bytes())
    }

    #[test]
    fn lines_are_read_as_prometheus_reads_them() {
        let sample = read(r#"  a:b_1 {x="1", y = "a,b=\"c\"} \\ \n \d é",} 1e3 -5 "#)
            .unwrap()
            .unwrap();
        assert_eq!(sample.name, "a:b_1");
        assert_eq!(sample.label("x"), Some("1"));
        assert_eq!(sample.label("y"), Some("a,b=\"c\"} \\ \n \\d é"));
        assert_eq!((sample.value.number, sample.value.whole), (1000.0, None));
        assert_eq!(sample.timestamp, Some(-5));
        let sample = read("a 18446744073709551615\r").unwrap().unwrap();
        assert_eq!(sample.value.whole, Some(u64::MAX));
        assert!(read("a{} +Inf").unwrap().unwrap().value.number.is_infinite());
        assert!(read("a NaN").unwrap().unwrap().value.number.is_nan());
        for nothing in ["", "  ", "# HELP a b", "#", "\r", "\t# EOF"] {
            assert_eq!(read(nothing), Ok(None));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, wrong) in [
            ("{a=\"b\"} 1", LineError::Name),
            ("1a 1", LineError::Name),
            ("é 1", LineError::Name),
            ("a{b} 1", LineError::Labels),
            ("a{b=c} 1", LineError::Labels),
            ("a{b=\"c} 1", LineError::Labels),
            ("a{b=\"c\" d=\"e\"} 1", LineError::Labels),
            ("a{b:c=\"d\"} 1", LineError::Labels),
            ("a{b=\"c\",,} 1", LineError::Labels),
            ("a{b=\"c\\", LineError::Labels),
            ("a{b=\"c\",b=\"d\"} 1", LineError::Twice),
            ("a{b=\"c\"}", LineError::Value),
            ("a", LineError::Value),
            ("a x", LineError::Value),
            ("a{b=\"c\"} ERROR - FAILED", LineError::Value),
            ("a 1 x", LineError::Timestamp),
            ("a 1 2 3", LineError::Rest),
            ("a 1 2 # {}", LineError::Rest),
        ] {
            assert_eq!(read(line), Err(wrong), "{line}");
        }
        assert_eq!(sample(b"a{b=\"\xff\"} 1"), Err(LineError::Utf8));
    }

    #[test]
    fn thousands_of_labels_are_read_and_no_more() {
        let line = |count: usize| {
            let labels: String = (0..count).map(|n| format!("l{n}=\"{n}\",")).collect();
            format!("a{{{labels}}} 1")
        };
        let text = line(MAX_LABELS);
        assert_eq!(read(&text).unwrap().unwrap().label("l9999"), Some("9999"));
        assert_eq!(read(&line(MAX_LABELS + 1)), Err(LineError::Many));
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_read(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = sample(&line);
        }

        #[test]
        fn bytes_of_the_right_alphabet_are_read(line in r#"[a1_:{}="\\,. \t#Nn+-]{0,60}"#) {
            let _ = sample(line.as_bytes());
        }

        #[test]
        fn what_is_written_is_read(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,20}",
            labels in proptest::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,10}", ".+", 0..5),
            number in any::<f64>(),
            timestamp in proptest::option::of(any::<i64>()),
        ) {
            prop_assume!(labels.values().all(|value| !value.contains('\r')));
            let mut line = name.clone();
            line.push('{');
            for (label, value) in &labels {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                line.push_str(&format!("{label}=\"{value}\","));
            }
            line.push_str(&format!("}} {number:?}"));
            if let Some(timestamp) = timestamp {
                line.push_str(&format!(" {timestamp}"));
            }
            let sample = read(&line).unwrap().unwrap();
            prop_assert_eq!(sample.name, name);
            for (label, value) in &labels {
                prop_assert_eq!(sample.label(label), Some(value.as_str()));
            }
            prop_assert!(sample.value.number == number || number.is_nan());
            prop_assert_eq!(sample.timestamp, timestamp);
        }
    }
}
