//! The bounded queue of alerts for CrowdSec. Every alert that is not sent is counted. Pure.

use std::collections::VecDeque;

use super::push::{Alert, MAX_ALERTS_PER_REQUEST};

/// Alerts that may be queued.
const MAX_QUEUED: usize = 4096;

/// Counts of alerts by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct AlertNumbers {
    pub sent: u64,
    /// Rejected by CrowdSec.
    pub refused: u64,
    /// The ban expired before it was sent.
    pub late: u64,
    /// The queue was full.
    pub full: u64,
    pub waiting: u64,
}

/// The queued alerts, oldest first.
#[derive(Debug, Default)]
pub(super) struct Alerts {
    waiting: VecDeque<Alert>,
    /// How many were taken by [`Self::next`] and have no outcome yet.
    sending: usize,
    numbers: AlertNumbers,
}

impl Alerts {
    pub fn add(&mut self, alert: Alert) {
        if self.waiting.len() + self.sending < MAX_QUEUED {
            self.waiting.push_back(alert);
        } else {
            self.numbers.full += 1;
        }
    }

    /// Takes the next batch. Batches of two senders (an old one that is ending after a reload and its successor) never
    /// overlap. The sender must report the outcome.
    pub fn next(&mut self) -> Vec<Alert> {
        let next: Vec<Alert> = self.waiting.drain(..MAX_ALERTS_PER_REQUEST.min(self.waiting.len())).collect();
        self.sending += next.len();
        next
    }

    /// `sent` of `of` taken alerts were sent; the others had expired.
    pub fn sent(&mut self, of: usize, sent: usize) {
        self.sending -= of;
        self.numbers.sent += sent as u64;
        self.numbers.late += of.saturating_sub(sent) as u64;
    }

    /// This many taken alerts were rejected for good.
    pub fn refused(&mut self, of: usize) {
        self.sending -= of;
        self.numbers.refused += of as u64;
    }

    /// Puts taken alerts back at the front of the queue.
    pub fn again(&mut self, alerts: Vec<Alert>) {
        self.sending -= alerts.len();
        alerts.into_iter().rev().for_each(|alert| self.waiting.push_front(alert));
    }

    pub fn numbers(&self) -> AlertNumbers {
        AlertNumbers { waiting: (self.waiting.len() + self.sending) as u64, ..self.numbers }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::cidr::Prefix;
    use super::*;

    #[test]
    fn every_alert_is_counted() {
        let mut alerts = Alerts::default();
        let prefix = Prefix::parse("192.0.2.7").unwrap();
        for deadline in 0..MAX_QUEUED as u64 + 10 {
            alerts.add(Alert { prefix, kind: String::new(), count: 1.0, time: 0, deadline });
        }
        let next = alerts.next();
        assert_eq!((next.len(), next[0].deadline), (MAX_ALERTS_PER_REQUEST, 0));
        alerts.sent(MAX_ALERTS_PER_REQUEST, MAX_ALERTS_PER_REQUEST - 3);
        assert_eq!(alerts.next()[0].deadline, MAX_ALERTS_PER_REQUEST as u64);
        alerts.refused(2);
        let (third, fourth) = (alerts.next(), alerts.next());
        assert_eq!(
            fourth[0].deadline,
            3 * MAX_ALERTS_PER_REQUEST as u64,
            "nobody takes what another one is sending"
        );
        alerts.again(third);
        assert_eq!(alerts.next()[0].deadline, 2 * MAX_ALERTS_PER_REQUEST as u64);
        let AlertNumbers { sent, refused, late, full, waiting } = alerts.numbers();
        assert_eq!((sent, refused, late, full), (MAX_ALERTS_PER_REQUEST as u64 - 3, 2, 3, 10));
        assert_eq!(sent + refused + late + full + waiting, MAX_QUEUED as u64 + 10);
    }
}
