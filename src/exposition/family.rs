//! The data model that all formats are written from.

use std::borrow::Cow;
use std::sync::OnceLock;

use super::labels::push_label;
use super::native::Native;
use super::sample::{Kind, Number, Sample, SampleValue};
use super::{Format, openmetrics, text};

/// The part of a family that does not change from scrape to scrape.
#[derive(Debug)]
pub struct Head {
    pub(super) name: Cow<'static, str>,
    pub(super) help: Cow<'static, str>,
    pub(super) kind: Kind,
    pub(super) text: text::Parts,
    /// Its series started at 0 when the exporter started.
    pub(super) is_counted_here: bool,
    /// Counters only: the family name or the `_created` name that OpenMetrics would use is another metric's name.
    pub(super) is_homonym: bool,
    /// Set if a histogram is exposed as a native histogram, too.
    pub(super) native: Option<Native>,
    /// Built on first use of the format.
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

    /// Checks for name collisions with other families: in OpenMetrics the counter `x_total` belongs to the family `x`,
    /// which may be another family's name, and the creation time of `x` is named `x_created`.
    pub fn beside(mut self, is_taken: impl Fn(&str) -> bool) -> Self {
        let family = openmetrics::family_name(&self.name, &self.kind).unwrap_or(&self.name);
        let is_created_taken =
            openmetrics::created_name(&self.name, &self.kind).is_some_and(|name| is_taken(&name));
        self.is_homonym = family != self.name && (is_taken(family) || is_created_taken);
        self.is_counted_here &= !is_created_taken;
        self
    }

    /// If `native` is set, exposes the histogram as a native one too, provided its bounds fit a schema.
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

    /// The number of buckets per series, including +Inf; 0 unless it is a histogram.
    pub fn buckets(&self) -> usize {
        match &self.kind {
            Kind::Histogram(bounds) => bounds.len() + 1,
            Kind::Counter | Kind::Gauge => 0,
        }
    }

    /// The part of a series that is cached between scrapes, so that writing a line costs little more than copying its
    /// bytes. `labels` is formatted as `a="x",b="y"` by [`push_label`]. For a histogram the key is exactly that; for
    /// other kinds it is everything before the number in a line of the text format.
    pub fn key(&self, labels: &str) -> String {
        match &self.kind {
            Kind::Histogram(_) => labels.to_string(),
            Kind::Counter | Kind::Gauge if labels.is_empty() => format!("{} ", self.name),
            Kind::Counter | Kind::Gauge => format!("{}{{{labels}}} ", self.name),
        }
    }

    /// Extracts the labels from a key.
    pub fn labels<'a>(&self, key: &'a str) -> &'a str {
        match &self.kind {
            Kind::Histogram(_) => key,
            Kind::Counter | Kind::Gauge => {
                key.get(self.name.len() + 1..key.len().saturating_sub(2)).unwrap_or_default()
            }
        }
    }
}

/// A family that is rebuilt at every scrape.
#[derive(Debug)]
pub struct Family {
    head: Head,
    /// The key, with the value or the histogram's sum.
    series: Vec<(String, Number)>,
    /// The bucket counts of all series, concatenated.
    counts: Vec<u64>,
    scratch: String,
}

/// Labels of one series.
type Labels<'a> = [(&'static str, &'a str)];

impl Family {
    /// Creates a family without series.
    pub fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self {
            head: Head::new(name, help, kind),
            series: Vec::new(),
            counts: Vec::new(),
            scratch: String::new(),
        }
    }

    /// Marks its series as counted by something else, which may have started long before the exporter: no creation time
    /// is exposed.
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

    /// Adds a counter or gauge series.
    pub fn number(&mut self, labels: &Labels<'_>, value: impl Into<Number>) {
        self.number_of(&[], labels, value);
    }

    /// Adds a counter or gauge series of an entity, whose labels `of` come first.
    pub fn number_of(
        &mut self,
        of: &[(&'static str, String)],
        labels: &Labels<'_>,
        value: impl Into<Number>,
    ) {
        let key = self.key(of, labels);
        self.series.push((key, value.into()));
    }

    /// Adds a histogram series; `counts` and `sum` are as in [`SampleValue::Histogram`].
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

    /// Appends the family in this format, or nothing if it has no series.
    pub fn write(&self, format: Format, to: &mut Vec<u8>) {
        format.write(&self.head, self.samples(), to);
    }
}

/// The families of one scrape, in the order in which they are served.
#[derive(Debug, Default)]
pub struct Families(Vec<Family>);

impl Families {
    /// Adds a gauge family.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(Family::new(name, Kind::Gauge, help))
    }

    /// Adds a counter family.
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

    /// Appends all families that have series.
    pub fn write(&self, format: Format, to: &mut Vec<u8>) {
        self.0.iter().for_each(|family| family.write(format, to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_contains_its_labels() {
        for kind in [Kind::Counter, Kind::Gauge, Kind::Histogram(vec![1.0])] {
            let head = Head::new("n", "", kind);
            for labels in ["", "a=\"x\"", "a=\"x\",b=\"}\""] {
                assert_eq!(head.labels(&head.key(labels)), labels);
            }
        }
    }
}
