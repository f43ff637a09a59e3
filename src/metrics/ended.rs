//! Processes that have ended but whose series are still shown.

use std::collections::HashMap;
use std::time::Instant;

/// When a process was first seen to have ended: by probe, action, label and the process's number in that label.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) since: HashMap<(usize, usize, usize, u32), Instant>,
}

/// Which process labels are processed: those that series show for a while longer, or hidden ones that only tell slots
/// apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LabelVisibility {
    Never,
    ForAWhile,
}
