//! Samples and metric kinds.

use super::exemplar::Exemplar;

/// The kind of a metric, as exposed to Prometheus.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// Upper bounds in ascending order, without +Inf.
    Histogram(Vec<f64>),
}

/// The value of one series at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// See [`super::Head::key`].
    pub key: &'a str,
    pub value: SampleValue<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SampleValue<'a> {
    /// The value of a counter or gauge.
    Number(Number),
    /// `counts` are per bucket (not cumulative) and one more than the bounds: the last is for values above all bounds.
    /// `exemplars` are for the same buckets, or empty.
    Histogram { counts: &'a [u64], sum: Number, exemplars: &'a [Option<Exemplar>] },
}

/// A number; integers of any size are exact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Int(i128),
    Real(f64),
}

impl Kind {
    /// The name of the kind in the exposition formats.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }

    /// The suffixes of its series' names, besides the metric's plain name.
    pub fn suffixes(&self) -> &'static [&'static str] {
        match self {
            Kind::Counter | Kind::Gauge => &[],
            Kind::Histogram(_) => &["_bucket", "_sum", "_count"],
        }
    }
}

impl Number {
    /// Converts to the nearest `f64`.
    pub fn as_real(self) -> f64 {
        match self {
            Number::Int(number) => number as f64,
            Number::Real(number) => number,
        }
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Number::Int(number.into())
    }
}

impl From<i64> for Number {
    fn from(number: i64) -> Self {
        Number::Int(number.into())
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Number::Real(number)
    }
}
