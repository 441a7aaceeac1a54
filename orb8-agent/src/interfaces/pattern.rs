//! Which interfaces a person means.

use std::{fmt, str::FromStr};

/// Longest name of an interface (`IFNAMSIZ` less the final zero).
const MAX_NAME: usize = 15;

/// A name of an interface, or a pattern in which `*` stands for any text and `?` for one character.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct InterfacePattern(String);

/// Not an interface's name or pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// Nothing there.
    #[error("an interface pattern is empty; give a name such as eth0, or a pattern such as 'eth*'")]
    Empty,
    /// No interface can have such a name.
    #[error("interface pattern '{0}' can match nothing: names have at most {MAX_NAME} bytes")]
    TooLong(
        /// The pattern.
        String,
    ),
    /// No interface can have such a name.
    #[error(
        "interface pattern '{0}' can match nothing: names have no space, '/' or ':' and no control characters"
    )]
    Character(
        /// The pattern.
        String,
    ),
}

impl InterfacePattern {
    /// Whether it matches the whole of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut done) = (0, 0);
        // Where to go on if the last `*` has to take one character more.
        let mut retry = None;
        while done < name.len() {
            match pattern.get(at) {
                Some('*') => {
                    retry = Some((at, done));
                    at += 1;
                }
                Some(&char) if char == '?' || char == name[done] => {
                    at += 1;
                    done += 1;
                }
                _ => match retry {
                    Some((star, from)) => {
                        retry = Some((star, from + 1));
                        at = star + 1;
                        done = from + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[at..].iter().all(|&char| char == '*')
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfacePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A `*` can stand for nothing.
        let least: usize = text.split('*').map(str::len).sum();
        if text.is_empty() {
            Err(PatternError::Empty)
        } else if least > MAX_NAME || text.len() > 2 * MAX_NAME + 1 {
            Err(PatternError::TooLong(text.to_owned()))
        } else if text
            .chars()
            .any(|char| char.is_whitespace() || char.is_control() || matches!(char, '/' | ':'))
        {
            Err(PatternError::Character(text.to_owned()))
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<InterfacePattern>().unwrap().matches(name)
    }

    #[test]
    fn globs() {
        assert!(matches("eth0", "eth0"));
        assert!(!matches("eth0", "eth01"));
        assert!(!matches("eth0", "eth"));
        assert!(matches("eth*", "eth"));
        assert!(matches("*", "lo"));
        assert!(matches("e*h?.1*", "ethh7.10"));
        assert!(matches("*a*b", "aabab"));
        assert!(!matches("*a*b", "aaba"));
        assert!(matches("?", "é"));
    }

    #[test]
    fn refuses_what_matches_nothing() {
        assert_eq!("".parse::<InterfacePattern>(), Err(PatternError::Empty));
        for text in [
            "0123456789abcdef",
            "????????????????",
            "0123456*89abcdefg",
            &"*".repeat(40),
        ] {
            assert_eq!(
                text.parse::<InterfacePattern>(),
                Err(PatternError::TooLong(text.to_owned()))
            );
        }
        assert!("0123456*789abcde".parse::<InterfacePattern>().is_ok());
        assert!(matches!(
            "a b".parse::<InterfacePattern>(),
            Err(PatternError::Character(_))
        ));
        assert!(matches!(
            "a/b".parse::<InterfacePattern>(),
            Err(PatternError::Character(_))
        ));
    }

    /// The definition, slowly.
    fn model(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), _) => model(&pattern[1..], name) || (!name.is_empty() && model(pattern, &name[1..])),
            (Some(b'?'), Some(_)) => model(&pattern[1..], &name[1..]),
            (Some(a), Some(b)) => a == b && model(&pattern[1..], &name[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{1,8}", name in "[ab]{0,8}") {
            prop_assert_eq!(matches(&pattern, &name), model(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn any_text(text in ".{0,40}", name in ".{0,20}") {
            if let Ok(pattern) = text.parse::<InterfacePattern>() {
                let _ = pattern.matches(&name);
                prop_assert_eq!(pattern.to_string(), text);
            }
        }
    }
}
