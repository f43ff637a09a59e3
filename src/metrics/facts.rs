//! What a scrape needs to know about a probe.

use std::sync::Arc;

/// What the exporter knows about a probe besides its slots.
#[derive(Debug, Clone, Default)]
pub struct ProbeFacts {
    /// Whether it has been attached at some time, so that "never hit" can be told from "not in the file".
    pub attached: bool,
    /// Bit i: value i is shown as unsigned.
    pub unsigned: u32,
    /// The functions that the probe's pattern has matched, by number.
    pub functions: Arc<Vec<String>>,
}
