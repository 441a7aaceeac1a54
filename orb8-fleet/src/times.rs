//! Times by one clock and another.

use std::cmp::Ordering;

use orb8_proto::v1::{
    Flow, GpuDevice, GpuEvent, GpuHolder, NetworkEvent, SyscallEvent, SyscallRow,
    stream_events_response::Event,
};
use prost_types::Timestamp;

const SECOND: i128 = 1_000_000_000;

/// `time`, so many nanoseconds earlier. What has no room stays at the end of the calendar.
pub(crate) fn earlier_by(time: Timestamp, ns: i64) -> Timestamp {
    if ns == 0 {
        return time;
    }
    let all = i128::from(time.seconds) * SECOND + i128::from(time.nanos) - i128::from(ns);
    Timestamp {
        seconds: i64::try_from(all.div_euclid(SECOND)).unwrap_or(i64::MAX),
        nanos: i32::try_from(all.rem_euclid(SECOND)).unwrap_or(0),
    }
}

/// Takes `ns` off, if there is a time.
pub(crate) fn shift(time: &mut Option<Timestamp>, ns: i64) {
    if ns != 0 {
        *time = time.map(|time| earlier_by(time, ns));
    }
}

/// Takes `ns` off the times of a flow.
pub(crate) fn shift_flow(flow: &mut Flow, ns: i64) {
    shift(&mut flow.first, ns);
    shift(&mut flow.last, ns);
}

/// Takes `ns` off the times of a row.
pub(crate) fn shift_row(row: &mut SyscallRow, ns: i64) {
    shift(&mut row.first, ns);
    shift(&mut row.last, ns);
    if let Some(change) = &mut row.change {
        shift(&mut change.time, ns);
    }
}

/// Takes `ns` off the times of a device and its holders.
pub(crate) fn shift_device(device: &mut GpuDevice, ns: i64) {
    shift(&mut device.last, ns);
    shift_holders(&mut device.holders, ns);
}

fn shift_holders(holders: &mut [GpuHolder], ns: i64) {
    for holder in holders {
        shift(&mut holder.since, ns);
        shift(&mut holder.until, ns);
    }
}

/// Takes `ns` off the times of an event.
pub(crate) fn shift_event(event: &mut Event, ns: i64) {
    match event {
        Event::Network(NetworkEvent { time, flow, .. }) => {
            shift(time, ns);
            if let Some(flow) = flow {
                shift_flow(flow, ns);
            }
        }
        Event::Syscall(SyscallEvent { time, change, .. }) => {
            shift(time, ns);
            if let Some(change) = change {
                shift(&mut change.time, ns);
            }
        }
        Event::Gpu(GpuEvent { time, holders, .. }) => {
            shift(time, ns);
            shift_holders(holders, ns);
        }
        Event::Loss(_) | Event::Node(_) | Event::Batch(_) => {}
    }
}

/// The earliest of these times.
pub(crate) fn earliest(times: impl IntoIterator<Item = Option<Timestamp>>) -> Option<Timestamp> {
    times.into_iter().flatten().min_by(|a, b| in_time(*a, *b))
}

/// The latest of these times.
pub(crate) fn latest(times: impl IntoIterator<Item = Option<Timestamp>>) -> Option<Timestamp> {
    times.into_iter().flatten().max_by(|a, b| in_time(*a, *b))
}

fn in_time(a: Timestamp, b: Timestamp) -> Ordering {
    (a.seconds, a.nanos).cmp(&(b.seconds, b.nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn across_seconds_and_ends() {
        let at = |seconds, nanos| Timestamp { seconds, nanos };
        assert_eq!(earlier_by(at(5, 1), 2), at(4, 999_999_999));
        assert_eq!(earlier_by(at(5, 999_999_999), -2), at(6, 1));
        assert_eq!(earlier_by(at(0, 0), 1), at(-1, 999_999_999));
        assert_eq!(earlier_by(at(i64::MAX, 0), -SECOND as i64).seconds, i64::MAX);
    }
}
