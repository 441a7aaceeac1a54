use proptest::prelude::*;

use super::*;
use crate::syscalls::call::Abi;

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 360;

/// A workload fed window by window.
struct Series {
    baseline: Baseline,
    now: u64,
    seed: u64,
}

impl Series {
    fn new() -> Self {
        let now = 1_000_000 * SECOND;
        Self {
            baseline: Baseline::new(BaselineLimits::default(), now),
            now,
            seed: 7,
        }
    }

    fn workload() -> Workload {
        Workload {
            unit: "a.service".to_owned(),
            ..Workload::default()
        }
    }

    fn call(number: u16) -> Call {
        Call {
            abi: Abi::native(),
            number,
        }
    }

    /// A number from 0 to 1, the same each time.
    fn chance(&mut self) -> f64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 40) as f64 / (1u64 << 24) as f64
    }

    /// A window of ten intervals, in which the workload makes calls at these rates.
    fn window(&mut self, rates: &[(u16, f64)]) -> Vec<Verdict> {
        let mut found = Vec::new();
        for _ in 0..10 {
            self.now += SECOND;
            let calls: Vec<_> = rates
                .iter()
                .map(|&(number, rate)| (Self::call(number), rate as u64))
                .filter(|(_, count)| *count > 0)
                .collect();
            self.baseline.add(&Self::workload(), &calls, self.now);
            found.extend(self.baseline.end_interval(self.now));
        }
        found
    }

    /// So many windows around a rate, give or take a fifth of it.
    fn around(&mut self, windows: u64, rate: f64) -> Vec<Verdict> {
        (0..windows)
            .flat_map(|_| {
                let rate = rate * (0.8 + 0.4 * self.chance());
                self.window(&[(0, rate)])
            })
            .collect()
    }
}

#[test]
fn a_steady_workload_has_no_verdicts() {
    let mut series = Series::new();
    assert_eq!(series.around(48 * HOUR, 1000.0), []);
    assert_eq!(
        series.baseline.watched(&Series::workload()),
        Some(Duration::from_secs(48 * 3600))
    );
}

#[test]
fn a_rate_that_rises_or_falls_for_good_is_told_once() {
    let mut series = Series::new();
    series.around(2 * HOUR, 1000.0);
    let found = series.around(HOUR, 5000.0);
    let [verdict] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(verdict.change, Change::Anomaly);
    assert!(verdict.score > SCORE && verdict.rate > 3500.0, "{verdict:?}");
    assert!((900.0..1100.0).contains(&verdict.mean), "{verdict:?}");
    assert!(verdict.deviation >= verdict.mean / 10.0);
    assert!(
        ((verdict.rate - verdict.mean) / verdict.deviation - verdict.score).abs() < 1e-9,
        "{verdict:?}"
    );
    let text = verdict.explanation();
    assert!(
        text.contains("a.service makes read") || text.contains("a.service makes io_setup"),
        "{text}"
    );
    assert!(
        text.contains("above its mean of") && text.contains("2h"),
        "{text}"
    );

    let mut series = Series::new();
    series.around(6 * HOUR, 1000.0);
    // Something else goes on: the workload is still there.
    let found: Vec<_> = (0..HOUR)
        .flat_map(|_| series.window(&[(1, 10.0), (0, 0.0)]))
        .collect();
    let fell: Vec<_> = found.iter().filter(|it| it.change == Change::Anomaly).collect();
    assert_eq!(fell.len(), 1, "{found:?}");
    assert!(fell[0].score < -SCORE && fell[0].rate == 0.0);
    assert!(fell[0].explanation().contains("below its mean"));
}

#[test]
fn one_window_alone_is_no_anomaly() {
    let mut series = Series::new();
    series.around(2 * HOUR, 1000.0);
    assert_eq!(series.around(1, 9000.0), []);
    assert_eq!(series.around(10, 1000.0), []);
}

#[test]
fn bursts_explain_bursts() {
    let mut series = Series::new();
    let mut of_cycle = |rate: f64| {
        let mut found = series.around(57, 10.0);
        found.extend(series.around(3, rate));
        found
    };
    // The first burst after the warm-up is one that nothing explains; not so those after it.
    for cycle in 0..50 {
        let found = of_cycle(1000.0);
        assert!(cycle < 2 || found.is_empty(), "{cycle}: {found:?}");
    }
    // Ten times as high is another matter.
    assert_eq!(of_cycle(20_000.0).len(), 1);
}

#[test]
fn the_second_day_is_explained_by_the_first() {
    let mut series = Series::new();
    let mut day = || {
        let mut found = series.around(12 * HOUR, 100.0);
        found.extend(series.around(12 * HOUR, 1000.0));
        found
    };
    assert_eq!(day().len(), 1);
    for _ in 0..6 {
        assert_eq!(day(), []);
    }
}

#[test]
fn a_workload_that_comes_and_goes_is_watched_while_it_is_there() {
    let mut series = Series::new();
    for _ in 0..20 {
        assert_eq!(series.around(HOUR / 2, 1000.0), []);
        // Nothing is counted: scaled to zero, or the agent is away.
        for _ in 0..600 {
            series.now += SECOND;
            assert_eq!(series.baseline.end_interval(series.now), []);
        }
    }
    let watched = series.baseline.watched(&Series::workload()).unwrap();
    assert_eq!(watched, Duration::from_secs(10 * 3600));
}

#[test]
fn new_calls_are_told_once_and_after_the_warm_up_only() {
    let mut series = Series::new();
    // 590 seconds: not warm yet.
    for _ in 0..59 {
        assert_eq!(series.window(&[(0, 10.0)]), []);
    }
    assert_eq!(series.window(&[(0, 10.0), (1, 1.0)]), []);
    let found = series.window(&[(0, 10.0), (1, 1.0), (2, 3.0)]);
    let [verdict] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(
        (verdict.change, verdict.call, verdict.count),
        (Change::New, Series::call(2), 3)
    );
    assert!(
        verdict.explanation().contains("3 times"),
        "{}",
        verdict.explanation()
    );
    assert!(verdict.explanation().contains("10m"), "{}", verdict.explanation());
    // A call that has just come has no rate to be judged against.
    for _ in 0..59 {
        assert_eq!(series.window(&[(0, 10.0), (2, 300.0)]), []);
    }
    assert_eq!(series.baseline.counts().new, 1);
    assert_eq!(series.baseline.verdicts().count(), 1);
    // Numbers that are not known are no new calls.
    let unknown = [(Call::unknown(), 5)];
    series.baseline.add(&Series::workload(), &unknown, series.now);
    assert_eq!(series.baseline.end_interval(series.now), []);
}

#[test]
fn a_clock_that_jumps_is_no_anomaly() {
    let mut series = Series::new();
    series.around(2 * HOUR, 1000.0);
    series.now += 86_400 * SECOND;
    assert_eq!(series.around(10, 1000.0), []);
    series.now -= 3 * 86_400 * SECOND;
    assert_eq!(series.around(10, 1000.0), []);
    // Counting was off for half of a window.
    series.baseline.restart_window(series.now);
    assert_eq!(series.around(10, 1000.0), []);
}

#[test]
fn what_has_no_room_is_counted() {
    let limits = BaselineLimits {
        workloads: 2,
        calls: 3,
        ..BaselineLimits::default()
    };
    let mut baseline = Baseline::new(limits, 0);
    let unit = |name: &str| Workload {
        unit: name.to_owned(),
        ..Workload::default()
    };
    let calls = |numbers: &[u16]| -> Vec<_> { numbers.iter().map(|&n| (Series::call(n), 1)).collect() };
    baseline.add(&unit("a"), &calls(&[0, 1]), SECOND);
    baseline.add(&unit("b"), &calls(&[0, 1]), 2 * SECOND);
    assert_eq!((baseline.calls(), baseline.counts().turned_away), (3, 1));
    baseline.add(&unit("c"), &calls(&[0]), 3 * SECOND);
    assert_eq!((baseline.warm().0, baseline.counts().turned_away), (2, 2));
    // The quiet one gives its room.
    let later = 100_000 * SECOND;
    baseline.add(&unit("c"), &calls(&[0]), later);
    assert_eq!(baseline.counts().forgotten, 1);
    assert!(baseline.watched(&unit("a")).is_none() && baseline.watched(&unit("c")).is_some());
}

proptest! {
    /// Whatever comes: no panic, no number that is none, and a set of calls as a plain set has it.
    #[test]
    fn any_series_is_taken(
        windows in proptest::collection::vec((0u64..200, proptest::collection::vec((0u16..580, any::<u64>()), 0..8)), 1..200),
    ) {
        let mut baseline = Baseline::new(BaselineLimits { warmup: Duration::from_secs(60), ..BaselineLimits::default() }, 0);
        let mut model = std::collections::BTreeSet::new();
        let mut now = 0;
        for (seconds, calls) in windows {
            now += seconds * SECOND;
            let calls: Vec<_> = calls.into_iter().map(|(number, count)| (Series::call(number), count)).collect();
            baseline.add(&Series::workload(), &calls, now);
            let known = |call: &Call| call.number < 575;
            let mut news: Vec<_> = calls.iter().filter(|(call, n)| *n > 0 && known(call)).map(|(call, _)| *call).collect();
            news.retain(|call| model.insert(*call));
            for verdict in baseline.end_interval(now) {
                prop_assert!(verdict.rate.is_finite() && verdict.mean.is_finite());
                prop_assert!(verdict.deviation.is_finite() && verdict.score.is_finite());
                if verdict.change == Change::New {
                    prop_assert!(news.contains(&verdict.call));
                }
            }
        }
        prop_assert_eq!(baseline.calls(), model.len());
    }
}
