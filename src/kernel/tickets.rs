//! Tasks that the kernel makes wait until user space has answered their tickets: see `bpf/wait.bpf.h`.

use std::time::Duration;

/// Who waits with these tickets goes on. `answered` is the kernel's table of turnstiles, each with the ticket answered last, and
/// `is_unanswered` what keeps others from waiting in vain.
pub(super) fn answer(answered: &mut [u64], is_unanswered: &mut u64, tickets: impl IntoIterator<Item = u64>) {
    let turnstiles = answered.len().max(1) as u64;
    for ticket in tickets {
        if let Some(answered) = answered.get_mut((ticket % turnstiles) as usize) {
            *answered = ticket.max(*answered);
        }
        *is_unanswered = 0;
    }
}

/// Nobody waits any more.
pub(super) fn answer_all(answered: &mut [u64]) {
    answered.fill(u64::MAX);
}

/// Loads programs that can make tasks wait for so long, or, before Linux 6.18, the same programs that make nobody wait.
pub(super) fn load_waiting<T, E>(longest: Duration, load: impl Fn(Duration) -> Result<T, E>) -> Result<T, E> {
    load(longest).or_else(|_| load(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turnstile_lets_all_through_up_to_its_latest_ticket() {
        let (mut answered, mut is_unanswered) = ([0; 4], 1);
        answer(&mut answered, &mut is_unanswered, []);
        assert_eq!((answered, is_unanswered), ([0; 4], 1));
        answer(&mut answered, &mut is_unanswered, [6, 2, 7]);
        assert_eq!((answered, is_unanswered), ([0, 0, 6, 7], 0));
        answer_all(&mut answered);
        assert_eq!(answered, [u64::MAX; 4]);
        answer(&mut [], &mut is_unanswered, [1]);
    }
}
