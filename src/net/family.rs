//! Metrics as plain data, for any encoder.

/// A metric with all its series.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub labels: Vec<(&'static str, String)>,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of counters and gauges.
    Number(u64),
    /// `counts` of each bucket alone, one more than there are `bounds`: the last is beyond all.
    Histogram { bounds: &'static [u32], counts: Vec<u64>, sum: u64 },
}

impl Family {
    /// A metric without series yet.
    pub fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, help, kind, samples: Vec::new() }
    }

    /// Adds a series.
    pub fn push(&mut self, labels: &[(&'static str, &str)], value: Value) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_string())).collect();
        self.samples.push(Sample { labels, value });
    }

    /// Adds a series of an interface: its labels come first.
    pub fn push_of(&mut self, of: &[(&'static str, String)], labels: &[(&'static str, &str)], value: Value) {
        let own = labels.iter().map(|(name, value)| (*name, (*value).to_string()));
        self.samples.push(Sample { labels: of.iter().cloned().chain(own).collect(), value });
    }

    /// Adds a series of an interface's counter or gauge.
    pub fn number_of(&mut self, of: &[(&'static str, String)], labels: &[(&'static str, &str)], value: u64) {
        self.push_of(of, labels, Value::Number(value));
    }

    /// Adds a series of a counter or gauge.
    pub fn number(&mut self, labels: &[(&'static str, &str)], value: u64) {
        self.push(labels, Value::Number(value));
    }
}
