//! The Prometheus text format, version 0.0.4.
//!
//! Everything that does not change from scrape to scrape (names, labels, bounds) is stored as text and copied, so a
//! line costs little more than its bytes, and nothing is allocated once the output buffer has grown.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write;

use super::exemplar::Exemplar;
use super::sample::{Kind, Number, Sample, SampleValue};

/// The invariant text of a family.
#[derive(Debug)]
pub struct Parts {
    /// `# HELP` and `# TYPE` lines.
    intro: String,
    /// Histogram: `name_bucket{`.
    bucket: String,
    /// Histogram: `,le="0.1"} ` for each bucket, +Inf last.
    bounds: Vec<String>,
    /// Histogram: `name_sum` and `name_count`.
    sum: String,
    count: String,
}

impl Parts {
    pub fn new(name: &str, help: &str, kind: &Kind) -> Self {
        Self::with_bounds(name, help, kind, |bound| bound.to_string())
    }

    /// Formats the bounds with `show`.
    pub fn with_bounds(name: &str, help: &str, kind: &Kind, show: impl Fn(f64) -> String) -> Self {
        let help = help.trim().replace('\\', "\\\\").replace('\n', "\\n");
        let mut intro = String::new();
        if !help.is_empty() {
            let _ = writeln!(intro, "# HELP {name} {help}");
        }
        let _ = writeln!(intro, "# TYPE {name} {}", kind.word());
        let Kind::Histogram(bounds) = kind else {
            return Self {
                intro,
                bucket: String::new(),
                bounds: Vec::new(),
                sum: String::new(),
                count: String::new(),
            };
        };
        let mut texts: Vec<String> =
            bounds.iter().map(|bound| format!(",le=\"{}\"}} ", show(*bound))).collect();
        texts.push(",le=\"+Inf\"} ".to_string());
        Self {
            intro,
            bucket: format!("{name}_bucket{{"),
            bounds: texts,
            sum: format!("{name}_sum"),
            count: format!("{name}_count"),
        }
    }

    /// Appends a histogram series. `labels` come without braces; `exemplars` has one entry per bucket, or is empty.
    pub fn histogram(
        &self,
        labels: &str,
        counts: &[u64],
        sum: Number,
        exemplars: &[Option<Exemplar>],
        to: &mut Vec<u8>,
    ) {
        let mut total = 0u64;
        // Without other labels, `le` is not preceded by a comma.
        let skip = usize::from(labels.is_empty());
        let exemplars = exemplars.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        for ((count, bound), exemplar) in counts.iter().zip(&self.bounds).zip(exemplars) {
            total = total.wrapping_add(*count);
            to.extend_from_slice(self.bucket.as_bytes());
            to.extend_from_slice(labels.as_bytes());
            to.extend_from_slice(&bound.as_bytes()[skip..]);
            end(total.into(), to);
            if let Some(exemplar) = exemplar.filter(|_| *count > 0) {
                end_with(exemplar, to);
            }
        }
        for (name, number) in [(&self.sum, sum), (&self.count, total.into())] {
            to.extend_from_slice(name.as_bytes());
            if !labels.is_empty() {
                to.push(b'{');
                to.extend_from_slice(labels.as_bytes());
                to.push(b'}');
            }
            to.push(b' ');
            end(number, to);
        }
    }
}

/// Appends a family; a family without samples is omitted.
pub fn write<'a>(parts: &Parts, samples: impl Iterator<Item = Sample<'a>>, to: &mut Vec<u8>) {
    let mut first = true;
    for sample in samples {
        if std::mem::take(&mut first) {
            to.extend_from_slice(parts.intro.as_bytes());
        }
        write_sample(parts, &sample, to);
    }
}

/// Appends the lines of one sample.
pub fn write_sample(parts: &Parts, sample: &Sample<'_>, to: &mut Vec<u8>) {
    match sample.value {
        SampleValue::Number(number) => {
            to.extend_from_slice(sample.key.as_bytes());
            end(number, to);
        }
        SampleValue::Histogram { counts, sum, .. } => parts.histogram(sample.key, counts, sum, &[], to),
    }
}

/// Appends a number and a line feed.
fn end(number: Number, to: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = match number {
        Number::Int(number) => match u64::try_from(number) {
            Ok(small) => {
                end_digits(small, to);
                Ok(())
            }
            Err(_) => std::io::Write::write_fmt(to, format_args!("{number}\n")),
        },
        Number::Real(number) => std::io::Write::write_fmt(to, format_args!("{number}\n")),
    };
}

/// Appends an exemplar to the last line.
fn end_with(exemplar: &Exemplar, to: &mut Vec<u8>) {
    to.pop();
    let Exemplar { labels, value, time } = exemplar;
    let _ = std::io::Write::write_fmt(to, format_args!(" # {{{labels}}} {value} {time:.6}\n"));
}

/// Fast path for the most common numbers: two digits at a time and a single copy.
fn end_digits(mut number: u64, to: &mut Vec<u8>) {
    let mut text = [b'\n'; 21];
    let mut at = text.len() - 1;
    while number >= 10 {
        at -= 2;
        text[at..at + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        number /= 100;
    }
    // One digit is left, or the number is 0.
    if number > 0 || at == text.len() - 1 {
        at -= 1;
        text[at] = b'0' + number as u8;
    }
    to.extend_from_slice(&text[at..]);
}

/// "00" to "99".
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut n = 0;
    while n < 100 {
        pairs[n] = [b'0' + n as u8 / 10, b'0' + n as u8 % 10];
        n += 1;
    }
    pairs
};

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::*;

    fn written(head: &Head, key: &str, value: SampleValue<'_>) -> String {
        let mut to = Vec::new();
        write(&head.text, std::iter::once(Sample { key, value }), &mut to);
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn histogram_is_cumulative() {
        let head = Head::new("h", "Help\nof \\ h.", Kind::Histogram(vec![0.001, 1.0]));
        let value = SampleValue::Histogram { counts: &[1, 2, 4], sum: Number::Real(0.5), exemplars: &[] };
        assert_eq!(
            written(&head, "node=\"a\"", value),
            "# HELP h Help\\nof \\\\ h.\n# TYPE h histogram\n\
             h_bucket{node=\"a\",le=\"0.001\"} 1\nh_bucket{node=\"a\",le=\"1\"} 3\nh_bucket{node=\"a\",le=\"+Inf\"} 7\n\
             h_sum{node=\"a\"} 0.5\nh_count{node=\"a\"} 7\n"
        );
        let bare = written(
            &head,
            "",
            SampleValue::Histogram { counts: &[1, 0, 0], sum: 3u64.into(), exemplars: &[] },
        );
        assert!(bare.ends_with(
            "h_bucket{le=\"0.001\"} 1\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 3\nh_count 1\n"
        ));
    }

    #[test]
    fn empty_family_is_omitted() {
        let mut to = Vec::new();
        write(&Head::new("g", "Help.", Kind::Gauge).text, std::iter::empty(), &mut to);
        assert!(to.is_empty());
        let gauge = Head::new("g", "", Kind::Gauge);
        assert_eq!(
            written(&gauge, &gauge.key(""), SampleValue::Number(7u64.into())),
            "# TYPE g gauge\ng 7\n"
        );
    }

    #[test]
    fn numbers_are_exact() {
        for (number, text) in [
            (Number::Int(0), "0"),
            (Number::Int(7), "7"),
            (Number::Int(10), "10"),
            (Number::Int(100), "100"),
            (Number::Int(1009), "1009"),
            (Number::Int(12_345), "12345"),
            (Number::Int(u64::MAX.into()), "18446744073709551615"),
            (Number::Int(-7), "-7"),
            (Number::Real(0.012_345), "0.012345"),
        ] {
            let mut to = Vec::new();
            end(number, &mut to);
            assert_eq!(to, format!("{text}\n").as_bytes());
        }
    }
}
