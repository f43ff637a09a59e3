//! Recent values of counters, for rates: recorded only while the status is requested.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Samples of the last minute are kept,
const RETENTION: Duration = Duration::from_secs(62);
/// at least this far apart,
const MIN_STEP: Duration = Duration::from_millis(1900);
/// and a rate covers these seconds, so that it does not fluctuate,
const WINDOW: Duration = Duration::from_secs(12);
/// or a longer time if there were no requests meanwhile.
const MAX_SPAN: Duration = Duration::from_secs(62);
/// Rates over a shorter time mean nothing.
const MIN_SPAN: Duration = Duration::from_millis(500);

/// The recent values of each counter.
#[derive(Debug, Default)]
pub(super) struct History {
    tracks: HashMap<String, Track>,
    now: Option<Instant>,
}

#[derive(Debug, Default)]
struct Track {
    points: VecDeque<(Instant, f64)>,
    latest: Option<(Instant, f64)>,
}

/// How fast a counter grows.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Trend {
    /// `None` until the counter has been seen twice.
    pub per_second: Option<f64>,
    /// Each step of the last minute, the latest last.
    pub recent: Vec<f64>,
}

impl History {
    /// Starts a new observation of all counters.
    pub fn begin(&mut self, now: Instant) {
        self.now = Some(now);
    }

    /// Records a counter, once per observation.
    pub fn trend(&mut self, key: String, value: f64) -> Trend {
        let Some(now) = self.now else { return Trend::default() };
        let track = self.tracks.entry(key).or_default();
        if track.latest.is_some_and(|(_, before)| value < before) {
            // The counter was reset.
            track.points.clear();
        }
        track.latest = Some((now, value));
        let age = |at: Instant| now.saturating_duration_since(at);
        track.points.retain(|(at, _)| age(*at) <= RETENTION);
        let in_window = track.points.iter().find(|(at, _)| age(*at) <= WINDOW && age(*at) >= MIN_SPAN);
        let longer = || track.points.iter().rfind(|(at, _)| age(*at) <= MAX_SPAN && age(*at) >= MIN_SPAN);
        let per_second =
            in_window.or_else(longer).map(|(at, before)| (value - before) / age(*at).as_secs_f64());
        if track.points.back().is_none_or(|(at, _)| age(*at) >= MIN_STEP) {
            track.points.push_back((now, value));
        }
        let steps = track.points.iter().zip(track.points.iter().skip(1));
        let recent = steps.map(|((from, before), (to, after))| {
            (after - before) / to.saturating_duration_since(*from).as_secs_f64().max(1e-3)
        });
        Trend { per_second, recent: recent.collect() }
    }

    /// Forgets counters that no longer exist.
    pub fn end(&mut self) {
        let now = self.now;
        self.tracks.retain(|_, track| track.latest.map(|(at, _)| at) == now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(history: &mut History, at: Instant, value: f64) -> Trend {
        history.begin(at);
        let trend = history.trend("a".into(), value);
        history.end();
        trend
    }

    #[test]
    fn rate_needs_two_samples_and_follows_recent_seconds() {
        let (mut history, began) = (History::default(), Instant::now());
        assert_eq!(look(&mut history, began, 100.0), Trend::default());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        assert_eq!(look(&mut history, at(2), 120.0).per_second, Some(10.0));
        for second in (4..=40).step_by(2) {
            look(&mut history, at(second), 120.0);
        }
        let trend = look(&mut history, at(42), 120.0 + 120.0);
        assert_eq!(trend.per_second, Some(10.0), "of the last twelve seconds");
        assert_eq!((trend.recent.first(), trend.recent.last()), (Some(&10.0), Some(&60.0)));
    }

    #[test]
    fn rapid_samples_share_one_step() {
        let (mut history, began) = (History::default(), Instant::now());
        for look_number in 0..100u32 {
            look(&mut history, began + Duration::from_millis(10) * look_number, 0.0);
        }
        assert_eq!(look(&mut history, began + Duration::from_secs(1), 5.0).recent, Vec::<f64>::new());
    }

    #[test]
    fn reset_counter_has_no_rate_and_removed_one_is_forgotten() {
        let (mut history, began) = (History::default(), Instant::now());
        look(&mut history, began, 100.0);
        let later = began + Duration::from_secs(5);
        assert_eq!(look(&mut history, later, 1.0), Trend::default());
        history.begin(later);
        history.end();
        assert_eq!(history.tracks.len(), 1);
        history.begin(later + MIN_STEP);
        history.end();
        assert!(history.tracks.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut history, began) = (History::default(), Instant::now());
        for second in 0..1000 {
            look(&mut history, began + Duration::from_secs(2) * second, f64::from(second));
        }
        assert!(history.tracks["a"].points.len() <= 32);
    }
}
