//! Asking an agent whether it lives, which also tells what time it has.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use orb8_fleet::Clock;
use orb8_proto::v1::{ListNodesRequest, NodeInfo, orbit_service_client::OrbitServiceClient};
use tonic::{Code, Status, transport::Channel};

use crate::wall_clock;

/// The clock is measured by the best of so many heartbeats.
const SAMPLES: usize = 8;

/// What an agent answers to the question whether it lives.
pub(super) struct Beat {
    pub(super) info: NodeInfo,
    /// Its clock minus ours, if it told the time.
    offset_ns: Option<i64>,
    round_trip: Duration,
}

pub(super) async fn heartbeat(
    client: &mut OrbitServiceClient<Channel>,
    deadline: Duration,
) -> Result<Beat, Status> {
    let ask = async {
        let (sent, clock) = (wall_clock::now_ns(), Instant::now());
        let answer = client.list_nodes(ListNodesRequest::default()).await;
        let info = match answer {
            Ok(stream) => stream.into_inner().message().await?.unwrap_or_default(),
            // It lives, and is older than this question.
            Err(status) if status.code() == Code::Unimplemented => NodeInfo::default(),
            Err(status) => return Err(status),
        };
        let round_trip = clock.elapsed();
        let middle = sent + round_trip.as_nanos().cast_signed() / 2;
        let offset_ns = info
            .time
            .as_ref()
            .and_then(|time| i64::try_from(wall_clock::ns(time) - middle).ok());
        Ok(Beat {
            info,
            offset_ns,
            round_trip,
        })
    };
    tokio::time::timeout(deadline, ask).await.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!(
            "nothing heard for {} s",
            deadline.as_secs_f64()
        )))
    })
}

/// What an agent's clock was found to be, lately.
#[derive(Debug, Default)]
pub(super) struct ClockSamples(VecDeque<(Duration, i64)>);

impl ClockSamples {
    pub(super) fn add(&mut self, beat: &Beat) {
        if let Some(offset) = beat.offset_ns {
            if self.0.len() == SAMPLES {
                self.0.pop_front();
            }
            // A clock that was set makes what was measured before wrong.
            let was_set = |(round_trip, old): &(Duration, i64)| {
                let most = (*round_trip + beat.round_trip).as_nanos() / 2 + 1_000_000;
                u128::from(old.abs_diff(offset)) > most
            };
            if self.0.iter().any(was_set) {
                self.0.clear();
            }
            self.0.push_back((beat.round_trip, offset));
        }
    }

    /// That of the shortest round trip: the less time there is to be divided, the less can be wrong.
    pub(super) fn clock(&self) -> Clock {
        self.0
            .iter()
            .min()
            .map_or_else(Clock::default, |(round_trip, offset)| Clock {
                offset_ns: *offset,
                error_ns: u64::try_from(round_trip.as_nanos() / 2).unwrap_or(u64::MAX),
            })
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.0.iter().map(|(round_trip, _)| *round_trip).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_round_trip_tells_the_clock() {
        let mut clock = ClockSamples::default();
        let mut beat = |ms, offset_ns| {
            clock.add(&Beat {
                info: NodeInfo::default(),
                offset_ns: Some(offset_ns),
                round_trip: Duration::from_millis(ms),
            });
            clock.clock()
        };
        assert_eq!(beat(10, 4_000_000).offset_ns, 4_000_000);
        assert_eq!(beat(2, 100_000).offset_ns, 100_000);
        let clock_now = beat(8, 3_000_000);
        assert_eq!((clock_now.offset_ns, clock_now.error_ns), (100_000, 1_000_000));
        assert_eq!(clock_now.correction_ns(), 0);
        // Set by an hour.
        let clock_now = beat(8, 3_600_000_000_000);
        assert_eq!(clock_now.correction_ns(), 3_600_000_000_000);
    }
}
