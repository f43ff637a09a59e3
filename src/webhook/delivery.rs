//! Delivery of queued events, and the timing of retries.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::outbox::Outbox;
use super::receiver::{ATTEMPT_TIMEOUT, Failure};

/// Timeouts and delays.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// The timeout of one attempt, from the name lookup to the end of the response.
    pub attempt: Duration,
    /// The delay after the first failure; it doubles with each further failure in a row, up to `longest`.
    pub first: Duration,
    pub longest: Duration,
    /// The longest delay that a receiver may request.
    pub asked: Duration,
    /// The maximum age of an event; older ones are dropped.
    pub max_age: Duration,
    /// How long shutdown is delayed to deliver queued events.
    pub last: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            attempt: ATTEMPT_TIMEOUT,
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            asked: Duration::from_secs(600),
            max_age: Duration::from_secs(3600),
            last: Duration::from_secs(2),
        }
    }
}

impl Pace {
    /// Returns the delay after this many failures in a row, randomized by up to a quarter so that many exporters do not
    /// retry at once.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let pause = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.longest);
        let random = RandomState::new().hash_one(failures) % 512;
        pause.mul_f64(0.75 + random as f64 / 1024.0)
    }
}

/// Delivers the outbox until it ends.
pub(super) async fn deliver(outbox: &Outbox, pace: Pace) {
    let mut failures = 0;
    let mut not_before = Instant::now();
    // The last reported reason, so that each is logged once.
    let mut last_reason = String::new();
    loop {
        let expired = outbox.expire(pace.max_age);
        if expired > 0 {
            log::warn!("{expired} slow events waited too long for the webhook and were dropped");
        }
        let Some(batch) = outbox.next() else {
            if outbox.is_ending() {
                return;
            }
            outbox.changed().await;
            continue;
        };
        tokio::select! {
            () = sleep_until(not_before) => {}
            // One last attempt.
            () = outbox.ending() => {}
        }
        let out_of_time = async {
            outbox.ending().await;
            sleep(pace.last).await;
        };
        let attempt = tokio::select! {
            attempt = batch.receiver.send(batch.body.clone(), pace.attempt) => attempt,
            () = out_of_time => break,
        };
        match attempt {
            Ok(()) => {
                if !last_reason.is_empty() {
                    log::info!("The webhook {} accepts slow events again", batch.receiver);
                }
                outbox.sent(&batch);
                (failures, last_reason) = (0, String::new());
            }
            Err(Failure::Rejected(reason)) => {
                if last_reason != reason {
                    log::error!(
                        "The webhook {} rejects slow events: {reason}; {} are dropped, as are others that it rejects",
                        batch.receiver,
                        batch.events
                    );
                }
                outbox.request_failed();
                outbox.rejected(&batch);
                (failures, last_reason) = (0, reason);
            }
            Err(Failure::Temporary(reason, asked)) => {
                outbox.request_failed();
                failures += 1;
                let pause = pace.pause(failures).max(asked.unwrap_or_default().min(pace.asked));
                not_before = Instant::now() + pause;
                if last_reason != reason {
                    log::warn!(
                        "Slow events were not sent to the webhook {}: {reason}; retrying",
                        batch.receiver
                    );
                    last_reason = reason;
                }
                if outbox.is_ending() {
                    break;
                }
            }
        }
    }
    let left = outbox.drop_all();
    if left > 0 {
        log::error!(
            "{left} slow events could not be sent to the webhook before the exporter ended; the file has them"
        );
    }
}
