//! Processes that have ended, of which series are still shown.

use std::collections::HashMap;
use std::time::Instant;

/// When a process was first seen to have ended: by the probe, the action and the label that it has a number of, and
/// that number.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) since: HashMap<(usize, usize, usize, u32), Instant>,
}

/// Which labels of processes are looked at: those that series show, or those that only tell slots apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LabelVisibility {
    Never,
    ForAWhile,
}
