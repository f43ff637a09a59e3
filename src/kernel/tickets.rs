//! Tasks that the kernel makes wait until user space answers their tickets: see `bpf/wait.bpf.h`.

use std::time::Duration;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;

/// The function that makes a task wait; the kernel's BTF shows whether it exists.
const CALL: &str = "bpf_task_work_schedule_resume_impl";

/// Whether the kernel can make a task wait before its system call returns: since Linux 6.18.
pub fn can_make_wait() -> bool {
    Btf::from_vmlinux().is_ok_and(|btf| btf.type_by_name::<Func<'_>>(CALL).is_some())
}

/// Lets the tasks with these tickets continue. `answered` is the kernel's table of turnstiles, each with the last
/// answered ticket.
pub(super) fn answer(answered: &mut [u64], tickets: impl IntoIterator<Item = u64>) {
    let turnstiles = answered.len().max(1) as u64;
    for ticket in tickets {
        if let Some(answered) = answered.get_mut((ticket % turnstiles) as usize) {
            *answered = ticket.max(*answered);
        }
    }
}

/// Lets all tasks continue.
pub(super) fn answer_all(answered: &mut [u64]) {
    answered.fill(u64::MAX);
}

/// Loads programs that can make tasks wait up to a limit, or, before Linux 6.18, the same programs without waiting.
pub(super) fn load_waiting<T, E>(longest: Duration, load: impl Fn(Duration) -> Result<T, E>) -> Result<T, E> {
    load(longest).or_else(|_| load(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turnstile_releases_up_to_the_latest_ticket() {
        let mut answered = [0; 4];
        answer(&mut answered, []);
        assert_eq!(answered, [0; 4]);
        answer(&mut answered, [6, 2, 7]);
        assert_eq!(answered, [0, 0, 6, 7]);
        answer_all(&mut answered);
        assert_eq!(answered, [u64::MAX; 4]);
        answer(&mut [], [1]);
    }
}
