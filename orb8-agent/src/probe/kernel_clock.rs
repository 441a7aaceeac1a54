//! From the kernel's monotonic nanoseconds to Unix time.

use std::time::{SystemTime, UNIX_EPOCH};

/// `CLOCK_REALTIME - CLOCK_MONOTONIC` at one moment. Taken anew for each epoch, so that a step of the clock moves
/// only what comes after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelClock {
    offset_ns: i128,
}

impl KernelClock {
    /// The offset now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            offset_ns: i128::from(unix_now_ns()) - i128::from(monotonic_now_ns()),
        }
    }

    /// Unix nanoseconds of a monotonic time.
    #[must_use]
    pub fn unix_ns(self, monotonic_ns: u64) -> u64 {
        u64::try_from(i128::from(monotonic_ns) + self.offset_ns).unwrap_or(0)
    }
}

/// Unix time in nanoseconds.
#[must_use]
pub fn unix_now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic_now_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    time.tv_sec()
        .cast_unsigned()
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec().cast_unsigned())
}
