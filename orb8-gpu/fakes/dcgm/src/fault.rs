//! In which way it misbehaves.

use std::{str::FromStr, time::Duration};

/// What a scrape meets instead of the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is wrong.
    #[default]
    None,
    /// The request is taken, and never answered.
    Silent,
    /// Half of the page comes at once, the rest after this time.
    Slow(Duration),
    /// The page is compressed, which is no fault at all.
    Gzip,
    /// The page is said to be compressed, and is not.
    NotGzip,
    /// The connection breaks after so many bytes of the page.
    Truncated(usize),
    /// The compressed page ends after so many bytes, as if it were whole.
    TruncatedGzip(usize),
    /// The page goes on until it has so many bytes.
    Huge(u64),
    /// The same, compressed.
    GzipBomb(u64),
    /// An error of HTTP.
    Status(u16),
    /// The page is said to be elsewhere.
    Redirect(String),
    /// A page of HTML.
    WrongContent,
}

/// The text names no fault.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no fault; these are: silent, slow=SECONDS, gzip, not-gzip, truncated=BYTES, truncated-gzip=BYTES, huge=BYTES, \
     gzip-bomb=BYTES, status=CODE, redirect=URL, wrong-content"
)]
pub struct FaultError(String);

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let wrong = || FaultError(text.to_owned());
        fn number<T: FromStr>(text: &str) -> Option<T> {
            text.parse().ok()
        }
        let fault = match text.split_once('=') {
            None => match text {
                "none" => Some(Self::None),
                "silent" => Some(Self::Silent),
                "gzip" => Some(Self::Gzip),
                "not-gzip" => Some(Self::NotGzip),
                "wrong-content" => Some(Self::WrongContent),
                _ => None,
            },
            Some(("slow", seconds)) => number(seconds)
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .map(Self::Slow),
            Some(("truncated", bytes)) => number(bytes).map(Self::Truncated),
            Some(("truncated-gzip", bytes)) => number(bytes).map(Self::TruncatedGzip),
            Some(("huge", bytes)) => number(bytes).map(Self::Huge),
            Some(("gzip-bomb", bytes)) => number(bytes).map(Self::GzipBomb),
            Some(("status", code)) => number(code)
                .filter(|code| (200..600).contains(code))
                .map(Self::Status),
            Some(("redirect", url)) if url.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Some(Self::Redirect(url.to_owned()))
            }
            Some(_) => None,
        };
        fault.ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        for (text, fault) in [
            ("silent", Fault::Silent),
            ("slow=0.5", Fault::Slow(Duration::from_millis(500))),
            ("truncated=10", Fault::Truncated(10)),
            ("gzip-bomb=1000000000000", Fault::GzipBomb(1_000_000_000_000)),
            ("status=500", Fault::Status(500)),
            (
                "redirect=http://a/?b=c",
                Fault::Redirect("http://a/?b=c".to_owned()),
            ),
        ] {
            assert_eq!(text.parse::<Fault>().unwrap(), fault);
        }
        for text in [
            "",
            "slow",
            "slow=-1",
            "slow=x",
            "gzip=1",
            "status=99",
            "huge=1k",
            "redirect=a b",
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains("gzip-bomb=BYTES"), "{error}");
        }
    }
}
