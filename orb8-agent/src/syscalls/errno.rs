//! Errors by their names.

use std::borrow::Cow;

use ::syscalls::Errno;

/// Errors are 1 to this (`MAX_ERRNO`, include/linux/err.h).
pub const MAX: u16 = 4095;

/// Name of an error; `#N` for one that has none.
#[must_use]
pub fn name(errno: u16) -> Cow<'static, str> {
    match Errno::new(i32::from(errno)).name() {
        Some(name) => name.into(),
        None => format!("#{errno}").into(),
    }
}

/// An error by its name (`ENOENT`, in any case) or number (`2`, `#2`).
///
/// # Errors
/// [`ErrnoError`], with the nearest name.
pub fn parse(text: &str) -> Result<u16, ErrnoError> {
    let text = text.trim();
    let digits = text.strip_prefix('#').unwrap_or(text);
    if let Ok(number) = digits.parse::<u16>() {
        return (1..=MAX)
            .contains(&number)
            .then_some(number)
            .ok_or_else(|| ErrnoError::new(text, None));
    }
    let wanted = text.to_ascii_uppercase();
    let names = || (1..=MAX).filter_map(|number| Some((Errno::new(i32::from(number)).name()?, number)));
    if let Some((_, number)) = names().find(|(name, _)| *name == wanted) {
        return Ok(number);
    }
    // Two errors with two names each on Linux.
    match &*wanted {
        "EWOULDBLOCK" => return parse("EAGAIN"),
        "EDEADLOCK" => return parse("EDEADLK"),
        "ENOTSUP" => return parse("EOPNOTSUPP"),
        _ => {}
    }
    let nearest = (wanted.len() <= 32)
        .then(|| {
            names()
                .map(|(name, _)| (strsim::damerau_levenshtein(&wanted, name), name))
                .min()
        })
        .flatten()
        .filter(|&(distance, _)| distance <= 2)
        .map(|(_, name)| name);
    Err(ErrnoError::new(text, nearest))
}

/// Why a text means no error.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{text}` is not an error of a system call{}; allowed: a name such as ENOENT, or a number from 1 to {MAX}",
    nearest.map(|nearest| format!(" (did you mean `{nearest}`?)")).unwrap_or_default()
)]
pub struct ErrnoError {
    text: String,
    nearest: Option<&'static str>,
}

impl ErrnoError {
    fn new(text: &str, nearest: Option<&'static str>) -> Self {
        Self {
            text: text.to_owned(),
            nearest,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn errors_have_names() {
        assert_eq!(name(2), "ENOENT");
        assert_eq!(name(11), "EAGAIN");
        assert_eq!(name(4000), "#4000");
        for text in ["ENOENT", "enoent", "2", "#2", " ENOENT "] {
            assert_eq!(parse(text), Ok(2), "{text}");
        }
        assert_eq!(parse("EWOULDBLOCK"), Ok(11));
        let error = |text| parse(text).unwrap_err().to_string();
        assert!(error("ENOENTT").contains("did you mean `ENOENT`?"));
        assert!(error("0").contains("1 to 4095") && error("70000").contains("1 to 4095"));
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(number in 1..=MAX) {
            prop_assert_eq!(parse(&name(number)), Ok(number));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
