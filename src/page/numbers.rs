//! Numbers and times as text, for a glance.

/// Three digits are enough at a glance; whole numbers are shown exactly.
pub(super) fn number(value: f64) -> String {
    // An empty sum may be -0.
    let value = value + 0.0;
    if !value.is_finite() || value.abs() < 1e15 && value.fract() == 0.0 {
        return value.to_string();
    }
    let digits = 2 - value.abs().log10().floor().clamp(-6.0, 2.0) as i32;
    format!("{value:.*}", digits.max(0) as usize)
}

pub(super) fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "\u{2013}".to_owned(), number)
}

pub(super) fn ago(time: Option<f64>, now: f64) -> String {
    time.map_or_else(|| "never".to_owned(), |time| format!("{} ago", duration(now - time)))
}

pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match () {
        () if seconds < 120.0 => format!("{seconds:.0} s"),
        () if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        () if seconds < 172_800.0 => format!("{:.0} h", seconds / 3600.0),
        () => format!("{:.0} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_accurate() {
        let shown =
            [0.0, 12.0, 905_123.0, 0.123_456, 1234.5, 0.000_012_34, f64::INFINITY, -2.5, -0.0].map(number);
        assert_eq!(shown, ["0", "12", "905123", "0.123", "1234", "0.0000123", "inf", "-2.50", "0"]);
    }
}
