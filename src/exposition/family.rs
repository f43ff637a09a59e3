//! The model that every format is written from.

use std::borrow::Cow;
use std::sync::OnceLock;

use super::labels::push_label;
use super::native::Native;
use super::sample::{Kind, Number, Sample, SampleValue};
use super::{Format, openmetrics, text};

/// What of a family does not change from scrape to scrape.
#[derive(Debug)]
pub struct Head {
    pub(super) name: Cow<'static, str>,
    pub(super) help: Cow<'static, str>,
    pub(super) kind: Kind,
    pub(super) text: text::Parts,
    /// Its series began with 0 when the exporter did.
    pub(super) is_counted_here: bool,
    /// Of a counter: OpenMetrics has another family of a name that it would have there.
    pub(super) is_homonym: bool,
    /// Of a histogram that is a native one, too.
    pub(super) native: Option<Native>,
    /// Made when the format is first asked for.
    openmetrics: OnceLock<openmetrics::Parts>,
}

impl Head {
    pub fn new(name: impl Into<Cow<'static, str>>, help: impl Into<Cow<'static, str>>, kind: Kind) -> Self {
        let (name, help) = (name.into(), help.into());
        let text = text::Parts::new(&name, &help, &kind);
        Self {
            name,
            help,
            kind,
            text,
            is_counted_here: true,
            is_homonym: false,
            native: None,
            openmetrics: OnceLock::new(),
        }
    }

    /// Beside families with other names: in OpenMetrics the counter `x_total` is of the family `x`, which can be another's name, and the
    /// time of creation of `x` has the name `x_created`.
    pub fn beside(mut self, is_taken: impl Fn(&str) -> bool) -> Self {
        let family = openmetrics::family_name(&self.name, &self.kind).unwrap_or(&self.name);
        let is_created_taken =
            openmetrics::created_name(&self.name, &self.kind).is_some_and(|name| is_taken(&name));
        self.is_homonym = family != self.name && (is_taken(family) || is_created_taken);
        self.is_counted_here &= !is_created_taken;
        self
    }

    /// With this, a histogram whose bounds are such is a native one, too.
    pub fn native_if(mut self, native: bool) -> Self {
        self.native = match &self.kind {
            Kind::Histogram(bounds) if native => Native::of(bounds),
            _ => None,
        };
        self
    }

    pub(super) fn openmetrics(&self) -> &openmetrics::Parts {
        self.openmetrics.get_or_init(|| {
            let has_own_family = !self.is_homonym;
            openmetrics::Parts::new(&self.name, &self.help, &self.kind, self.is_counted_here, has_own_family)
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn help(&self) -> &str {
        &self.help
    }

    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Buckets of one series, that beyond all bounds included; 0 unless it is a histogram.
    pub fn buckets(&self) -> usize {
        match &self.kind {
            Kind::Histogram(bounds) => bounds.len() + 1,
            Kind::Counter | Kind::Gauge => 0,
        }
    }

    /// What is kept of a series from scrape to scrape, so that a line costs little more than its bytes. `labels` is
    /// `a="x",b="y"`, as [`push_label`] makes it. Of a histogram the key is just this; of others it is all that stands
    /// before the number in a line of text.
    pub fn key(&self, labels: &str) -> String {
        match &self.kind {
            Kind::Histogram(_) => labels.to_string(),
            Kind::Counter | Kind::Gauge if labels.is_empty() => format!("{} ", self.name),
            Kind::Counter | Kind::Gauge => format!("{}{{{labels}}} ", self.name),
        }
    }

    /// The labels in a key.
    pub fn labels<'a>(&self, key: &'a str) -> &'a str {
        match &self.kind {
            Kind::Histogram(_) => key,
            Kind::Counter | Kind::Gauge => {
                key.get(self.name.len() + 1..key.len().saturating_sub(2)).unwrap_or_default()
            }
        }
    }
}

/// A family that is made anew at every scrape.
#[derive(Debug)]
pub struct Family {
    head: Head,
    /// Key, and the number or a histogram's sum.
    series: Vec<(String, Number)>,
    /// Of all series, buckets after buckets.
    counts: Vec<u64>,
    scratch: String,
}

/// Labels of a series, and others that follow them.
type Labels<'a> = [(&'static str, &'a str)];

impl Family {
    /// A family without series yet.
    pub fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self {
            head: Head::new(name, help, kind),
            series: Vec::new(),
            counts: Vec::new(),
            scratch: String::new(),
        }
    }

    /// Its series are somebody else's, who may have begun to count long before the exporter: no time of creation is told.
    pub fn counted_elsewhere(mut self) -> Self {
        self.head.is_counted_here = false;
        self
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    pub fn name(&self) -> &str {
        self.head.name()
    }

    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Adds a series of a counter or gauge.
    pub fn number(&mut self, labels: &Labels<'_>, value: impl Into<Number>) {
        self.number_of(&[], labels, value);
    }

    /// Adds a series of a counter or gauge that belongs to something, whose labels `of` come first.
    pub fn number_of(
        &mut self,
        of: &[(&'static str, String)],
        labels: &Labels<'_>,
        value: impl Into<Number>,
    ) {
        let key = self.key(of, labels);
        self.series.push((key, value.into()));
    }

    /// Adds a series of a histogram, as [`SampleValue::Histogram`] has it.
    pub fn histogram_of(
        &mut self,
        of: &[(&'static str, String)],
        labels: &Labels<'_>,
        counts: &[u64],
        sum: impl Into<Number>,
    ) {
        debug_assert_eq!(counts.len(), self.head.buckets());
        let key = self.key(of, labels);
        self.series.push((key, sum.into()));
        self.counts.extend_from_slice(counts);
    }

    fn key(&mut self, of: &[(&'static str, String)], labels: &Labels<'_>) -> String {
        self.scratch.clear();
        let of = of.iter().map(|(name, value)| (*name, value.as_str()));
        of.chain(labels.iter().copied()).for_each(|(name, value)| push_label(name, value, &mut self.scratch));
        self.head.key(&self.scratch)
    }

    pub fn samples(&self) -> impl Iterator<Item = Sample<'_>> {
        let buckets = self.head.buckets();
        self.series.iter().enumerate().map(move |(at, (key, number))| {
            let value = match buckets {
                0 => SampleValue::Number(*number),
                _ => SampleValue::Histogram {
                    counts: &self.counts[at * buckets..][..buckets],
                    sum: *number,
                    exemplars: &[],
                },
            };
            Sample { key, value }
        })
    }

    /// Appends it in this format; without series, nothing.
    pub fn write(&self, format: Format, to: &mut Vec<u8>) {
        format.write(&self.head, self.samples(), to);
    }
}

/// The families of one scrape, in the order in which they are served.
#[derive(Debug, Default)]
pub struct Families(Vec<Family>);

impl Families {
    /// Begins a family of gauges.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(Family::new(name, Kind::Gauge, help))
    }

    /// Begins a family of counters.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(Family::new(name, Kind::Counter, help))
    }

    fn family(&mut self, family: Family) -> &mut Family {
        self.0.push(family);
        self.0.last_mut().expect("one was just pushed")
    }

    pub fn iter(&self) -> impl Iterator<Item = &Family> {
        self.0.iter()
    }

    /// Appends all that have series.
    pub fn write(&self, format: Format, to: &mut Vec<u8>) {
        self.0.iter().for_each(|family| family.write(format, to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_labels() {
        for kind in [Kind::Counter, Kind::Gauge, Kind::Histogram(vec![1.0])] {
            let head = Head::new("n", "", kind);
            for labels in ["", "a=\"x\"", "a=\"x\",b=\"}\""] {
                assert_eq!(head.labels(&head.key(labels)), labels);
            }
        }
    }
}
