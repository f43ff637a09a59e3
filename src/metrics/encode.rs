//! The Prometheus text format, version 0.0.4, for series that are measured.
//!
//! What does not change from scrape to scrape (names, labels, bounds) is kept as text and copied, so a line costs little
//! more than its bytes, and nothing is allocated once the output buffer has grown.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write;

use crate::config::model::MetricKind;

/// One metric's text that never changes.
#[derive(Debug)]
pub struct Head {
    /// `# HELP` and `# TYPE` lines.
    intro: String,
    /// `name{`; of a histogram `name_bucket{`.
    open: String,
    /// Histogram: `,le="0.1"} ` for each bucket, +Inf the last.
    bounds: Vec<String>,
    /// Histogram: `name_sum{` and `name_count{`.
    sum: String,
    count: String,
}

/// A number of the output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Int(i128),
    Real(f64),
}

impl Head {
    pub fn new(name: &str, help: &str, kind: &MetricKind) -> Self {
        let help = help.trim().replace('\\', "\\\\").replace('\n', "\\n");
        let (word, bounds) = match kind {
            MetricKind::Counter => ("counter", None),
            MetricKind::Gauge(_) => ("gauge", None),
            MetricKind::Histogram(bounds) => ("histogram", Some(bounds)),
        };
        let mut intro = String::new();
        if !help.is_empty() {
            let _ = writeln!(intro, "# HELP {name} {help}");
        }
        let _ = writeln!(intro, "# TYPE {name} {word}");
        let open = if bounds.is_some() { format!("{name}_bucket{{") } else { format!("{name}{{") };
        let mut texts: Vec<String> =
            bounds.into_iter().flatten().map(|bound| format!(",le=\"{bound}\"}} ")).collect();
        if bounds.is_some() {
            texts.push(",le=\"+Inf\"} ".to_string());
        }
        Self { intro, open, bounds: texts, sum: format!("{name}_sum{{"), count: format!("{name}_count{{") }
    }

    /// The lines before the first series.
    pub fn intro(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.intro.as_bytes());
    }

    /// What is kept of a series for its lines. `labels` is `a="x",b="y"`: of a counter or gauge this makes all that
    /// stands before the number, of a histogram it is the labels alone.
    pub fn start(&self, labels: &str) -> String {
        if self.bounds.is_empty() { format!("{}{labels}}} ", self.open) } else { labels.to_string() }
    }

    /// One counter or gauge, by its [`Head::start`].
    pub fn value(&self, start: &str, number: Number, to: &mut Vec<u8>) {
        to.extend_from_slice(start.as_bytes());
        end(number, to);
    }

    /// One histogram: `counts` of each bucket alone, the last beyond all bounds.
    pub fn histogram(&self, labels: &str, counts: &[u64], sum: Number, to: &mut Vec<u8>) {
        let mut total = 0u64;
        for (count, bound) in counts.iter().zip(&self.bounds) {
            total = total.wrapping_add(*count);
            line(&self.open, labels, bound, Number::Int(total.into()), to);
        }
        line(&self.sum, labels, "} ", sum, to);
        line(&self.count, labels, "} ", Number::Int(total.into()), to);
    }
}

fn line(open: &str, labels: &str, close: &str, number: Number, to: &mut Vec<u8>) {
    to.extend_from_slice(open.as_bytes());
    to.extend_from_slice(labels.as_bytes());
    to.extend_from_slice(close.as_bytes());
    end(number, to);
}

/// The number, and the end of its line.
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

/// What most numbers are, two digits at a time and in one copy.
fn end_digits(mut number: u64, to: &mut Vec<u8>) {
    let mut text = [b'\n'; 21];
    let mut at = text.len() - 1;
    while number >= 10 {
        at -= 2;
        text[at..at + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        number /= 100;
    }
    // One digit is left, or is all there is.
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

/// Appends `name="value"`, and a comma before it unless it is the first.
pub fn push_label(name: &str, value: &str, to: &mut String) {
    if !to.is_empty() {
        to.push(',');
    }
    to.push_str(name);
    to.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => to.push_str("\\\\"),
            '"' => to.push_str("\\\""),
            '\n' => to.push_str("\\n"),
            other => to.push(other),
        }
    }
    to.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative() {
        let head = Head::new("h", "Help\nof \\ h.", &MetricKind::Histogram(vec![0.001, 1.0]));
        let mut to = Vec::new();
        head.intro(&mut to);
        head.histogram("node=\"a\"", &[1, 2, 4], Number::Real(0.5), &mut to);
        assert_eq!(
            String::from_utf8(to).unwrap(),
            "# HELP h Help\\nof \\\\ h.\n# TYPE h histogram\n\
             h_bucket{node=\"a\",le=\"0.001\"} 1\nh_bucket{node=\"a\",le=\"1\"} 3\nh_bucket{node=\"a\",le=\"+Inf\"} 7\n\
             h_sum{node=\"a\"} 0.5\nh_count{node=\"a\"} 7\n"
        );
    }

    #[test]
    fn labels_are_escaped_and_numbers_exact() {
        let mut labels = String::new();
        push_label("a", "x\"y\\z\n", &mut labels);
        push_label("b", "", &mut labels);
        assert_eq!(labels, "a=\"x\\\"y\\\\z\\n\",b=\"\"");
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
