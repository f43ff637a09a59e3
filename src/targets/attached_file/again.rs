//! When failed attachments are retried.

use std::time::{Duration, Instant};

/// When failed attachments are retried.
#[derive(Debug)]
pub(super) struct RetrySchedule {
    due: Instant,
    pause: Duration,
}

const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

impl RetrySchedule {
    pub(super) fn new() -> Self {
        Self { due: Instant::now() + MIN_PAUSE, pause: MIN_PAUSE }
    }

    /// Whether a retry is due; if so, the next pause is twice as long.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.due;
        if is_due {
            self.pause = (self.pause * 2).min(MAX_PAUSE);
            self.due = now + self.pause;
        }
        is_due
    }
}
