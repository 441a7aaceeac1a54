//! XID errors, by which the driver says what went wrong on a GPU.

use std::collections::VecDeque;

use crate::span::Nanos;

/// What an XID number means, in short; empty: not known to orb8. NVIDIA's own list tells more.
#[must_use]
pub const fn meaning(xid: u32) -> &'static str {
    match xid {
        8 => "the GPU stopped processing",
        13 => {
            "exception of the graphics engine: as a rule the application's access out of bounds, or an illegal instruction"
        }
        31 => "page fault of GPU memory: as a rule the application's illegal address",
        32 => "the commands sent to the GPU were invalid or corrupted: driver, PCIe or memory",
        38 => "the driver's firmware failed",
        43 => "the GPU stopped an application's work after a fault in it; the GPU itself is well",
        45 => "an application's work was ended, as after a kill, or after an earlier error",
        46 => "the GPU stopped processing: a time-out",
        48 => "double-bit memory error (ECC), not correctable",
        61 | 62 => "an internal microcontroller halted or hit a breakpoint",
        63 => "a faulty memory page or row was taken out of use (recorded)",
        64 => "a faulty memory page or row could not be taken out of use",
        66 => "illegal access by the driver",
        68 => "exception of the video decoder",
        69 => "error of the graphics engine's class",
        74 => "error of NVLink",
        79 => "the GPU has fallen off the bus: it can't be reached",
        92 => "many single-bit memory errors (ECC)",
        94 => "memory error (ECC), contained: applications that used the memory are ended, others go on",
        95 => {
            "memory error (ECC), not contained: all applications on the GPU are affected, it has to be reset"
        }
        109 => "a switch of contexts timed out",
        110 => "fault of the security processor",
        119 => "the GPU's system processor (GSP) did not answer in time",
        120 => "error of the GPU's system processor (GSP)",
        121 => "error of the chip-to-chip link, corrected",
        140 => "memory error (ECC), not recovered",
        143 => "the GPU could not be initialised",
        144..=150 => "error of NVLink, in one of its layers",
        154 => "what it takes to recover the GPU has changed: a reset, a restart of the node, or nothing",
        _ => "",
    }
}

/// An error, and who has told of it: a bit for each.
#[derive(Clone, Copy, Debug)]
struct Told {
    time: Nanos,
    xid: u32,
    by: u8,
}

/// The driver's events, beside the sources by their numbers.
const EVENTS: usize = 7;

/// What is known of a device's errors. A source keeps showing the last one: that is an event only when it changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Errors {
    /// As each source showed it last.
    shown: [Option<u32>; 2],
    /// Those that others may tell of too, the oldest first.
    recent: VecDeque<Told>,
}

/// Events of a device that are remembered, so that none is told twice.
const RECENT: usize = 16;

impl Errors {
    /// A source shows this number. Whether that is an event: not at first sight, for it may be old.
    pub(crate) fn shows(&mut self, source: usize, xid: u32, time: Nanos, max_age: Nanos) -> bool {
        let Some(shown) = self.shown.get_mut(source) else {
            return false;
        };
        let before = shown.replace(xid);
        if xid == 0 || before.is_none_or(|before| before == xid) {
            return false;
        }
        self.is_new(xid, time, source, max_age)
    }

    /// The driver says that it happens now. Whether it has not been told yet.
    pub(crate) fn happens(&mut self, xid: u32, time: Nanos, max_age: Nanos) -> bool {
        xid != 0 && self.is_new(xid, time, EVENTS, max_age)
    }

    fn is_new(&mut self, xid: u32, time: Nanos, by: usize, max_age: Nanos) -> bool {
        self.recent
            .retain(|told| told.time.abs_diff(time) <= max_age.saturating_mul(2));
        let by = 1 << by;
        // What one told, another tells once more.
        let known = self
            .recent
            .iter_mut()
            .find(|told| told.xid == xid && told.by & by == 0);
        if let Some(known) = known {
            known.by |= by;
            return false;
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Told { time, xid, by });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_told_once() {
        let mut errors = Errors::default();
        assert!(!errors.shows(0, 79, 0, 10), "maybe of last week");
        assert!(!errors.shows(0, 79, 1, 10));
        assert!(errors.shows(0, 48, 2, 10));
        assert!(!errors.shows(0, 48, 3, 10));
        assert!(!errors.shows(0, 0, 4, 10), "none is no error");
        assert!(errors.shows(0, 48, 100, 10), "again, after none");
    }

    #[test]
    fn an_event_and_the_value_that_follows_are_one() {
        let mut errors = Errors::default();
        assert!(!errors.shows(1, 0, 0, 10));
        assert!(errors.happens(79, 1, 10));
        assert!(errors.happens(79, 2, 10), "each event is an error of its own");
        assert!(!errors.shows(1, 79, 3, 10), "the same, shown");
        assert!(errors.shows(1, 13, 4, 10));
        assert!(!errors.happens(13, 5, 10), "the same, told late");
        assert!(errors.happens(13, 6, 10));
        let mut two = Errors::default();
        assert!(!two.shows(0, 0, 0, 10) && !two.shows(1, 0, 0, 10));
        assert!(two.shows(0, 31, 1, 10) && !two.shows(1, 31, 2, 10) && !two.happens(31, 3, 10));
        let mut fresh = Errors::default();
        assert!(fresh.happens(31, 0, 10), "at the first sight too: it happens now");
        assert!(!fresh.happens(0, 0, 10));
    }

    #[test]
    fn known_numbers_have_a_meaning() {
        for xid in [13, 31, 43, 45, 48, 63, 64, 74, 79, 94, 95, 119] {
            assert!(!meaning(xid).is_empty(), "{xid}");
        }
        assert!(meaning(0).is_empty() && meaning(u32::MAX).is_empty());
    }
}
