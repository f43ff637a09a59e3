//! Sending what waits, and when to try again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::outbox::Outbox;
use super::receiver::{ATTEMPT, Failure};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// One attempt, from the look-up of the name to the answer's head.
    pub attempt: Duration,
    /// From the first failure in a row to the next attempt; twice as long after each further one, up to the longest.
    pub first: Duration,
    pub longest: Duration,
    /// As long as the receiver asks for, up to this.
    pub asked: Duration,
    /// How long an event is worth sending.
    pub max_age: Duration,
    /// How long the exporter's end is put off for what waits.
    pub last: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            attempt: ATTEMPT,
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            asked: Duration::from_secs(600),
            max_age: Duration::from_secs(3600),
            last: Duration::from_secs(2),
        }
    }
}

impl Pace {
    /// How long to wait after so many failures in a row: give or take a quarter, so that many exporters do not come all at once.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let pause = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.longest);
        let random = RandomState::new().hash_one(failures) % 512;
        pause.mul_f64(0.75 + random as f64 / 1024.0)
    }
}

/// Sends what is in the outbox, until its end.
pub(super) async fn deliver(outbox: &Outbox, pace: Pace) {
    let mut failures = 0;
    let mut not_before = Instant::now();
    // What was told of the receiver last, so that it is told once.
    let mut told = String::new();
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
            // One more time.
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
                if !told.is_empty() {
                    log::info!("The webhook {} accepts slow events again", batch.receiver);
                }
                outbox.sent(&batch);
                (failures, told) = (0, String::new());
            }
            Err(Failure::Rejected(reason)) => {
                if told != reason {
                    log::error!(
                        "The webhook {} rejects slow events: {reason}; {} are dropped, as are others that it rejects",
                        batch.receiver,
                        batch.events
                    );
                }
                outbox.request_failed();
                outbox.rejected(&batch);
                (failures, told) = (0, reason);
            }
            Err(Failure::Temporary(reason, asked)) => {
                outbox.request_failed();
                failures += 1;
                let pause = pace.pause(failures).max(asked.unwrap_or_default().min(pace.asked));
                not_before = Instant::now() + pause;
                if told != reason {
                    log::warn!(
                        "Slow events were not sent to the webhook {}: {reason}; it is tried again",
                        batch.receiver
                    );
                    told = reason;
                }
                if outbox.is_ending() {
                    break;
                }
            }
        }
    }
    let left = outbox.give_up();
    if left > 0 {
        log::error!(
            "{left} slow events could not be sent to the webhook before the exporter ended; the file has them"
        );
    }
}
