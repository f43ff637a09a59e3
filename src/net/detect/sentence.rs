//! The duration of bans, which grows with each repetition. Pure.

use std::time::Duration;

use super::super::cidr::Prefix;
use super::super::thresholds::BanTerms;
use super::bounded::Bounded;
use super::hits::nanoseconds;

/// Addresses that are tracked.
const MAX_ADDRESSES: usize = 1 << 16;

/// The outcome of a detection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BanOutcome {
    Banned(Duration),
    /// It would have been banned for this long (`observe`).
    Observed(Duration),
    /// The reason as a word and as a sentence.
    Refused(&'static str, String),
    /// There is no single source to ban.
    Reported,
}

/// The blocklist, as this module needs it.
pub(super) trait Ban {
    /// Whether the source is still banned by detection.
    fn is_banned(&self, source: Prefix) -> bool;

    /// # Errors
    /// Why it was not banned, as a word and as a sentence.
    fn ban(&self, source: Prefix, reason: &str, time: Duration) -> Result<(), (&'static str, String)>;
}

/// The ban history of sources.
#[derive(Debug)]
pub(super) struct Sentences {
    of: Bounded<Prefix, Option<Sentence>>,
}

#[derive(Debug, Clone, Copy)]
struct Sentence {
    /// The number of bans, this one included.
    number: u32,
    until: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Observed,
    Banned,
    Refused,
}

impl Sentences {
    pub fn new() -> Self {
        Self { of: Bounded::new(MAX_ADDRESSES) }
    }

    /// Bans a source that crossed a threshold, if the terms say so. `None` if it is banned or was reported already.
    pub fn pass(
        &mut self,
        source: Prefix,
        reason: &str,
        terms: &BanTerms,
        now: u64,
        by: &dyn Ban,
    ) -> Option<BanOutcome> {
        let longest = nanoseconds(terms.max_ttl);
        let before = self.of.get(&source).copied().flatten();
        let holds = before.filter(|before| now < before.until).is_some_and(|before| match before.state {
            State::Observed => !terms.enforce,
            State::Banned => !terms.enforce || by.is_banned(source),
            State::Refused => true,
        });
        if holds {
            return None;
        }
        // After a quiet time as long as the longest ban, the history is forgotten.
        let before = before.filter(|before| now < before.until.saturating_add(longest));
        let before = before.map_or(0, |before| before.number);
        let time = terms.time(before);
        let (state, outcome) = if terms.enforce {
            match by.ban(source, reason, time) {
                Ok(()) => (State::Banned, BanOutcome::Banned(time)),
                Err((cause, why)) => (State::Refused, BanOutcome::Refused(cause, why)),
            }
        } else {
            (State::Observed, BanOutcome::Observed(time))
        };
        let (number, time) = match state {
            // It is reported again after the shortest time.
            State::Refused => (before, terms.ttl),
            State::Observed | State::Banned => (before.saturating_add(1), time),
        };
        let sentence = Sentence { number, until: now.saturating_add(nanoseconds(time)), state };
        let is_live = |other: &Option<Sentence>| other.is_some_and(|other| now < other.until);
        *self.of.entry(source, is_live) = Some(sentence);
        Some(outcome)
    }

    /// The number of bans of a source, this one included.
    pub fn number(&self, source: &Prefix) -> u32 {
        self.of.get(source).copied().flatten().map_or(0, |sentence| sentence.number)
    }

    /// Restores the history of a source from an earlier run.
    pub fn restore(&mut self, source: Prefix, number: u32, until: u64) {
        *self.of.entry(source, |_| false) = Some(Sentence { number, until, state: State::Banned });
    }

    /// Evicted addresses.
    pub fn evicted(&self) -> u64 {
        self.of.evicted
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Default)]
    struct List {
        banned: RefCell<BTreeSet<Prefix>>,
        refuses: bool,
    }

    impl Ban for List {
        fn is_banned(&self, source: Prefix) -> bool {
            self.banned.borrow().contains(&source)
        }

        fn ban(&self, source: Prefix, _: &str, _: Duration) -> Result<(), (&'static str, String)> {
            if self.refuses {
                return Err(("protected", "own address".into()));
            }
            self.banned.borrow_mut().insert(source);
            Ok(())
        }
    }

    const SECOND: u64 = 1_000_000_000;

    fn terms(enforce: bool) -> BanTerms {
        BanTerms { enforce, ttl: Duration::from_secs(10), max_ttl: Duration::from_secs(30) }
    }

    fn banned(seconds: u64) -> Option<BanOutcome> {
        Some(BanOutcome::Banned(Duration::from_secs(seconds)))
    }

    #[test]
    fn repeat_offenders_get_longer_bans_that_expire() {
        let (mut sentences, list) = (Sentences::new(), List::default());
        let source = Prefix::parse("192.0.2.7").unwrap();
        let mut pass = |second: u64| sentences.pass(source, "r", &terms(true), second * SECOND, &list);
        assert_eq!(pass(100), banned(10));
        assert_eq!(pass(109), None, "it is banned already");
        assert_eq!(pass(110), banned(20));
        assert_eq!(pass(140), banned(30));
        assert_eq!(pass(180), banned(30), "no longer than the longest");
        assert_eq!(pass(240), banned(10), "it was quiet for as long as the longest ban");
        list.banned.borrow_mut().clear();
        assert_eq!(pass(241), banned(20), "somebody has unblocked it, and it goes on");
        assert_eq!(sentences.number(&source), 2);
        let mut next = Sentences::new();
        next.restore(source, 2, 261 * SECOND);
        let mut pass = |second: u64| next.pass(source, "r", &terms(true), second * SECOND, &list);
        assert_eq!((pass(260), pass(261)), (None, banned(30)), "after a restart");
    }

    #[test]
    fn observed_and_refused_bans_are_reported_once() {
        let (mut sentences, list) = (Sentences::new(), List { refuses: true, ..List::default() });
        let source = Prefix::parse("2001:db8::/64").unwrap();
        let mut pass =
            |enforce, second: u64| sentences.pass(source, "r", &terms(enforce), second * SECOND, &list);
        assert_eq!(pass(false, 0), Some(BanOutcome::Observed(Duration::from_secs(10))));
        assert_eq!(pass(false, 9), None);
        assert!(matches!(pass(true, 9), Some(BanOutcome::Refused("protected", _))), "to observe bans nobody");
        assert_eq!(pass(true, 18), None);
        assert!(matches!(pass(true, 19), Some(BanOutcome::Refused(..))));
        assert_eq!(pass(false, 30), Some(BanOutcome::Observed(Duration::from_secs(20))));
    }
}
