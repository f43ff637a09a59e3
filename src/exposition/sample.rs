//! Samples, and the kinds of metric that they are of.

use super::exemplar::Exemplar;

/// The kind of metric that Prometheus is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// Upper bounds, ascending, +Inf not among them.
    Histogram(Vec<f64>),
}

/// One series at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// See [`super::Head::key`].
    pub key: &'a str,
    pub value: SampleValue<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SampleValue<'a> {
    /// Of counters and gauges.
    Number(Number),
    /// `counts` of each bucket alone, one more than there are bounds: the last is beyond all.
    /// `exemplars` are of the same buckets, or none at all.
    Histogram { counts: &'a [u64], sum: Number, exemplars: &'a [Option<Exemplar>] },
}

/// Whole numbers are exact, whatever their size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Int(i128),
    Real(f64),
}

impl Kind {
    /// What Prometheus calls it.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }

    /// What the names of its series end with, beside those with the name of the metric itself.
    pub fn suffixes(&self) -> &'static [&'static str] {
        match self {
            Kind::Counter | Kind::Gauge => &[],
            Kind::Histogram(_) => &["_bucket", "_sum", "_count"],
        }
    }
}

impl Number {
    /// As near as a real number comes.
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
