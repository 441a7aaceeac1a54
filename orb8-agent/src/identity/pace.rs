//! How often something expensive may be done on demand.

use std::time::{Duration, Instant};

/// At most every so often, and at most a twentieth of the time.
#[derive(Debug)]
pub(crate) struct Pace {
    least: Duration,
    next: Option<Instant>,
}

impl Pace {
    pub(crate) const fn new(least: Duration) -> Self {
        Self { least, next: None }
    }

    pub(crate) fn allows(&self) -> bool {
        self.next.is_none_or(|next| Instant::now() >= next)
    }

    /// Called when it was done, with the time that it took.
    pub(crate) fn took(&mut self, time: Duration) {
        let pause = (time * 20).max(self.least);
        self.next = Some(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_longer_after_long_work() {
        let mut pace = Pace::new(Duration::ZERO);
        assert!(pace.allows());
        pace.took(Duration::ZERO);
        assert!(pace.allows());
        pace.took(Duration::from_secs(1));
        assert!(!pace.allows());
        assert!(pace.next.unwrap() > Instant::now() + Duration::from_secs(19));
    }
}
