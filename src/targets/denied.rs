//! Explains why a process cannot be inspected.

use std::fs;

use crate::procfs::text;

/// From `linux/capability.h`.
const CAP_SYS_PTRACE: u32 = 19;

/// The reason, and what to do about it, after the kernel has denied access.
pub(super) fn why_denied() -> &'static str {
    let status = text("/proc/thread-self/status").unwrap_or_default();
    let users = fs::read_to_string("/proc/thread-self/uid_map").unwrap_or_default();
    reason(&status, &users)
}

/// The reason why /proc may not show a process, if processes of other users are missing in it: the first process always exists.
pub(super) fn why_not_shown() -> Option<String> {
    let is_shown = fs::metadata("/proc/1/comm").is_ok();
    (!is_shown)
        .then(|| format!("/proc hides processes of other users (mount option `hidepid`): {}", why_denied()))
}

fn reason(status: &str, users: &str) -> &'static str {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective =
        effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or_default();
    let is_first = users.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    match (effective & 1 << CAP_SYS_PTRACE != 0, is_first) {
        (false, _) => "CAP_SYS_PTRACE is needed",
        (true, false) => {
            "CAP_SYS_PTRACE only counts in the exporter's own user namespace: run the exporter outside of it"
        }
        (true, true) => {
            "the kernel denies it although the exporter has CAP_SYS_PTRACE: a security module (SELinux, AppArmor, \
             Landlock) may forbid it; allow it there"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capability_is_named_only_when_missing() {
        let (all, none) = ("Name:\tx\nCapEff:\t000001ffffffffff\n", "CapEff:\t00000000fff7ffff\n");
        let (first, other) = ("         0          0 4294967295\n", "         0       1000          1\n");
        assert_eq!(reason(none, first), "CAP_SYS_PTRACE is needed");
        assert_eq!(reason(none, other), "CAP_SYS_PTRACE is needed");
        assert!(reason(all, other).contains("user namespace"));
        assert!(reason(all, first).contains("although the exporter has"));
    }
}
