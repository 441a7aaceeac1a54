//! Time, as the history counts it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// Nanoseconds since 1970.
pub(crate) type Nanos = u64;

/// Of a clock; what is before 1970 or too far away is the nearest that can be told.
pub(crate) fn nanos(time: SystemTime) -> Nanos {
    time.duration_since(UNIX_EPOCH).map_or(0, length)
}

/// Of a duration.
pub(crate) fn length(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// For the protocol.
pub(crate) fn timestamp(time: Nanos) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(time / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(time % 1_000_000_000).unwrap_or_default(),
    }
}

/// Of the protocol; what is before 1970 is 1970.
pub(crate) fn of_timestamp(time: Timestamp) -> Nanos {
    let Ok(seconds) = u64::try_from(time.seconds) else {
        return 0;
    };
    let nanos = u64::try_from(time.nanos).unwrap_or_default().min(999_999_999);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// For the protocol.
pub(crate) fn duration(length: Nanos) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(length / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(length % 1_000_000_000).unwrap_or_default(),
    }
}

/// From `start` to `end`, which is not before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: Nanos,
    pub(crate) end: Nanos,
}

impl Span {
    /// How long it is.
    pub(crate) const fn length(self) -> Nanos {
        self.end.saturating_sub(self.start)
    }

    /// What both have in common: maybe of no length.
    pub(crate) fn common(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start <= end).then_some(Self { start, end })
    }

    /// How much both have in common.
    pub(crate) fn overlap(self, other: Self) -> Nanos {
        self.common(other).map_or(0, Self::length)
    }

    /// Whether all of `other` is in it.
    pub(crate) const fn holds(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Spans that neither overlap nor touch, in order, of any.
    pub(crate) fn union(mut spans: Vec<Self>) -> Vec<Self> {
        spans.sort_unstable_by_key(|span| (span.start, span.end));
        let mut apart: Vec<Self> = Vec::with_capacity(spans.len());
        for span in spans {
            match apart.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => apart.push(span),
            }
        }
        apart
    }
}
