//! Metrics: their values, conditions and labels.

use serde::{Deserialize, Serialize};

use super::{MetricKind, Named, Slow};
use crate::config::place::Place;

/// A metric updated by a probe.
#[derive(Debug, Clone)]
pub struct Metric {
    pub at: Place,
    pub name: String,
    /// One line, never empty: defaults to the name in words.
    pub help: String,
    pub kind: MetricKind,
    /// The name of an argument or a built-in value; `None` counts hits.
    pub value: Option<Named>,
    /// Factor applied to the value after unit conversion.
    pub scale: Option<f64>,
    /// Whether it decrements; only for [`MetricKind::UpDown`].
    pub lowers: bool,
    /// Whether it is updated on return, even if it uses nothing that is only known then.
    pub at_return: bool,
    pub when: Vec<Condition>,
    pub labels: Vec<Label>,
    /// Which hits are recorded in full.
    pub slow: Option<Slow>,
    /// Whether a histogram is also a native one.
    pub native: bool,
    /// Whether a part could not be read. The rest is still resolved to find its errors, but not compared with other
    /// definitions of the metric.
    pub unread: bool,
}

/// A comparison; all conditions of a metric must hold.
#[derive(Debug, Clone)]
pub struct Condition {
    pub at: Place,
    /// An argument or built-in value.
    pub value: String,
    pub op: Op,
    pub with: Operand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    StartsWith,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    Int(i128),
    Str(String),
}

/// A label of a metric.
#[derive(Debug, Clone)]
pub struct Label {
    pub at: Place,
    pub name: String,
    pub value: LabelValue,
    /// Patterns and label values; the first match wins.
    pub mapping: Vec<(LabelPattern, String)>,
    /// The value if no pattern matches; if `None`, the original value is used.
    pub default: Option<String>,
    /// The maximum number of distinct values; further ones are counted as `other`.
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelValue {
    Const(String),
    /// An argument or built-in value.
    From(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelPattern {
    Int(i128),
    Exact(String),
    /// `F*`.
    Prefix(String),
    /// A pattern with `*`, `?` or `[` elsewhere.
    Glob(String),
}
