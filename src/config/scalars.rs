//! Text with further structure: durations, sizes, names.

/// Time units as divisors of a second: `100us` is 100 / 10^6, which is exact where a product is not.
const DURATIONS: &[(&str, f64)] = &[("ns", 1e9), ("us", 1e6), ("µs", 1e6), ("ms", 1e3), ("s", 1.0)];
const LONG_DURATIONS: &[(&str, f64)] = &[("min", 60.0), ("h", 3600.0)];
const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

pub(super) const DURATION_UNITS: &str = "ns, us, ms, s, min, h";
pub(super) const SIZE_UNITS: &str = "B, KiB, MiB, GiB, kB, MB, GB";

/// Parses a duration such as `100us` or `2.5s` to seconds.
pub(crate) fn duration(text: &str) -> Option<f64> {
    let (number, unit) = number_and_unit(text)?;
    let shorter = DURATIONS.iter().find(|(name, _)| *name == unit).map(|(_, divisor)| number / divisor);
    let seconds = shorter.or_else(|| {
        LONG_DURATIONS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| number * factor)
    })?;
    seconds.is_finite().then_some(seconds)
}

/// Parses a duration in Go's format to seconds: `1h2m3.5s`, `-1.5ms`, `0`. Source: Go's time.ParseDuration, which also
/// rejects durations that do not fit into 64 bits of nanoseconds.
pub(crate) fn go_duration(text: &str) -> Option<f64> {
    const UNITS: &[(&str, f64)] = &[
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return Some(0.0);
    }
    let (mut rest, mut seconds) = (unsigned, 0.0);
    while !rest.is_empty() {
        let (number, behind) = rest.split_at(rest.find(|c| !is_number(c))?);
        let (unit, behind) = behind.split_at(behind.find(is_number).unwrap_or(behind.len()));
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * factor;
        rest = behind;
    }
    let is_possible = !unsigned.is_empty() && seconds * 1e9 < i64::MAX as f64;
    is_possible.then_some(if text.starts_with('-') { -seconds } else { seconds })
}

/// Parses a size such as `4MiB` to bytes. It must be a whole number of bytes.
pub(crate) fn size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let (_, factor) = SIZES.iter().find(|(name, _)| *name == unit)?;
    let bytes = number * *factor as f64;
    // Below 2^53 every integer has an exact f64.
    ((0.0..=9e15).contains(&bytes) && bytes.fract() == 0.0).then_some(bytes as u64)
}

/// Formats a size in whole KiB, MiB or GiB, as read by [`size`].
pub(super) fn show_size(bytes: u64) -> String {
    let unit =
        SIZES.iter().rev().find(|(name, factor)| name.ends_with("iB") && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{bytes}B"), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// Splits `2.5 s`. Only digits, a decimal point and a minus sign: no exponent, no infinity.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'))?;
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

/// Whether it is a valid metric name: `[a-zA-Z_:][a-zA-Z0-9_:]*`. Source: Prometheus, "Data model", metric names and
/// labels.
pub(super) fn is_metric_name(name: &str) -> bool {
    is_word(name, |c| c == '_' || c == ':')
}

/// Whether it is a valid name of a label, argument or built-in value: `[a-zA-Z_][a-zA-Z0-9_]*`.
pub(super) fn is_name(name: &str) -> bool {
    is_word(name, |c| c == '_')
}

fn is_word(name: &str, extra: impl Fn(char) -> bool) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || extra(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_durations() {
        let good = [
            ("100us", 0.0001),
            ("100µs", 0.0001),
            ("1ns", 1e-9),
            ("2.5s", 2.5),
            ("2.5 s", 2.5),
            ("250ms", 0.25),
            ("5min", 300.0),
            ("1h", 3600.0),
            ("0s", 0.0),
            ("-1s", -1.0),
        ];
        for (text, seconds) in good {
            assert_eq!(duration(text), Some(seconds), "{text}");
        }
        for text in ["", "s", "1", "1 ", "1m", "1S", "1.2.3s", "--1s", "1e3s", "infs", "1s2", "٣s", ".s"] {
            assert_eq!(duration(text), None, "{text:?}");
        }
        assert_eq!(duration(&format!("{}h", "9".repeat(308))), None);
    }

    #[test]
    fn parses_go_durations() {
        for (text, seconds) in [
            ("1h0m0s", 3600.0),
            ("1m30s", 90.0),
            ("1.5h", 5400.0),
            ("250ms", 0.25),
            ("3µs", 3e-6),
            ("1s.5s", 1.5),
            ("+1s", 1.0),
            ("-1m1s", -61.0),
            ("0", 0.0),
            ("0s", 0.0),
            ("2540400h", 9_145_440_000.0),
        ] {
            assert_eq!(go_duration(text), Some(seconds), "{text}");
        }
        let nines = format!("{}h", "9".repeat(400));
        for text in
            ["", "-", "+", "1", "s", "h", "1d", "1h 1m", "1..2s", "1.2.3s", ".s", "s1", "9999999999h", &nines]
        {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    #[test]
    fn parses_sizes() {
        let good = [("4MiB", 4 << 20), ("1 KiB", 1024), ("1.5KiB", 1536), ("10B", 10), ("2MB", 2_000_000)];
        for (text, bytes) in good {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for (bytes, text) in [(4096, "4KiB"), (4 << 20, "4MiB"), (1 << 30, "1GiB"), (1500, "1500B")] {
            assert_eq!((show_size(bytes).as_str(), size(text)), (text, Some(bytes)));
        }
        for text in ["", "4", "4M", "4mib", "0.1B", "-1B", "99999999999GiB", "MiB"] {
            assert_eq!(size(text), None, "{text:?}");
        }
    }

    #[test]
    fn validates_names() {
        assert!(is_metric_name("a:b_total") && is_metric_name("_a") && is_metric_name("A9"));
        assert!(!is_metric_name("") && !is_metric_name("9a") && !is_metric_name("a-b"));
        assert!(is_name("peer_2") && !is_name("a:b") && !is_name("é"));
    }
}
