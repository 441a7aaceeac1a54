//! Points in time: of the protocol, as text, and between them.

use std::time::SystemTime;

use prost_types::Timestamp;

/// RFC 3339 in UTC with nine digits of a second; nothing if it is unset or out of range.
pub(crate) fn rfc3339(time: Option<&Timestamp>) -> Option<String> {
    Some(format!("{:.9}", instant(time?)?))
}

/// Time of day in UTC with `digits` of a second, without the date; `-` if unset.
pub(crate) fn clock(time: Option<&Timestamp>, digits: usize) -> String {
    time.and_then(instant).map_or_else(
        || "-".to_owned(),
        |time| {
            let text = format!("{time:.digits$}");
            text.split_once('T')
                .map_or(text.clone(), |(_, clock)| clock.trim_end_matches('Z').to_owned())
        },
    )
}

/// Date and time in UTC to the second; `-` if unset.
pub(crate) fn date_clock(time: Option<&Timestamp>) -> String {
    time.and_then(instant)
        .map_or_else(|| "-".to_owned(), |time| format!("{time:.0}").replace('T', " "))
}

fn instant(time: &Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

/// Seconds from `from` to `to`; negative if they are in the other order.
pub(crate) fn seconds_between(from: &Timestamp, to: &Timestamp) -> f64 {
    (i128::from(to.seconds) - i128::from(from.seconds)) as f64
        + (f64::from(to.nanos) - f64::from(from.nanos)) / 1e9
}

/// Whether `a` is later than `b`.
pub(crate) fn is_after(a: &Timestamp, b: &Timestamp) -> bool {
    (a.seconds, a.nanos) > (b.seconds, b.nanos)
}

/// From the machine's clock. Before 1970 is 1970.
pub(crate) fn of(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nine_digits_and_z() {
        let time = Timestamp {
            seconds: 1_767_323_045,
            nanos: 123_456_789,
        };
        assert_eq!(rfc3339(Some(&time)).unwrap(), "2026-01-02T03:04:05.123456789Z");
        let whole = Timestamp { nanos: 0, ..time };
        assert_eq!(rfc3339(Some(&whole)).unwrap(), "2026-01-02T03:04:05.000000000Z");
        assert_eq!(clock(Some(&time), 6), "03:04:05.123456");
        assert_eq!(clock(Some(&time), 0), "03:04:05");
        assert_eq!(date_clock(Some(&whole)), "2026-01-02 03:04:05Z");
        assert_eq!(rfc3339(None), None);
    }

    proptest! {
        #[test]
        fn any_timestamp_is_survived(seconds in any::<i64>(), nanos in any::<i32>()) {
            let time = Timestamp { seconds, nanos };
            let _ = (rfc3339(Some(&time)), clock(Some(&time), 3), date_clock(Some(&time)));
            let _ = seconds_between(&time, &Timestamp::default());
        }
    }
}
