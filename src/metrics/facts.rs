//! What a scrape needs to know of a probe.

use std::sync::Arc;

/// What the exporter knows of a probe besides its slots.
#[derive(Debug, Clone, Default)]
pub struct ProbeFacts {
    /// It has been attached once, so that "never hit" can be told from "not there".
    pub attached: bool,
    /// Bit i: value i is shown without a sign.
    pub unsigned: u32,
    /// The functions that the probe's pattern has stood for, by their numbers.
    pub functions: Arc<Vec<String>>,
}
