//! What a search for processes could not see.

use crate::targets::denied::{why_denied, why_not_shown};

/// Processes that might match but could not be inspected.
#[derive(Debug, Default)]
pub struct SearchGaps {
    pub(super) hidden: usize,
    pub(super) version_1: bool,
}

impl SearchGaps {
    /// Why the search may be incomplete; `refused` are selected processes.
    pub fn sentence(&self, refused: &[u32]) -> Option<String> {
        let denied = || format!("cannot be inspected: {}", why_denied());
        if let Some(first) = refused.first() {
            return Some(match refused.len() {
                1 => format!("the matching process {first} {}", denied()),
                many => format!("{many} matching processes (such as {first}) {}", denied()),
            });
        }
        if self.version_1 {
            return Some("it only has cgroup v1, and containers need cgroup v2".into());
        }
        match self.hidden {
            0 => why_not_shown(),
            1 => Some(format!("1 process {}", denied())),
            many => Some(format!("{many} processes {}", denied())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uninspectable_processes_are_reported() {
        let hidden = SearchGaps { hidden: 3, version_1: false };
        assert!(hidden.sentence(&[]).unwrap().starts_with("3 processes cannot be inspected"));
        assert!(hidden.sentence(&[7]).unwrap().starts_with("the matching process 7 cannot be inspected"));
        assert!(hidden.sentence(&[7, 8]).unwrap().contains("(such as 7)"));
        // On a machine with `hidepid`, an ordinary user is told about that.
        assert_eq!(SearchGaps::default().sentence(&[]), why_not_shown());
    }
}
