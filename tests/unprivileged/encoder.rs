//! The text format, compared byte for byte with the output of the widely used `prometheus` crate.

use exporter::exposition::{Families, Family, Format, Kind};
use prometheus::{
    CounterVec, Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::support::random::Xorshift;

/// Returns integers and fractions of any magnitude, all of which the crate stores exactly.
fn real(random: &mut Xorshift) -> f64 {
    match random.below(4) {
        0 => random.below(1000) as f64,
        1 => random.below(1 << 53) as f64 / 1e6,
        2 => random.below(1 << 53) as f64 * 1e9,
        _ => random.below(1 << 30) as f64 / (1u64 << 40) as f64,
    }
}

fn text(random: &mut Xorshift) -> String {
    const PARTS: [&str; 12] =
        ["", "a", "Z_9", "\"", "\\", "\n", "{}", "=,", " ", "größe", "\u{1f980}", "\\n\"\n"];
    (0..random.below(5)).map(|_| PARTS[random.below(PARTS.len())]).collect()
}

/// Leaks the text: names live as long as the program, as they do there.
fn fixed(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[test]
fn text_matches_the_prometheus_crate() {
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    let registry = Registry::new();
    let mut ours = Vec::new();
    for number in 0..400 {
        // The crate sorts families by name and series by label values; ours are generated in that order.
        let name = fixed(format!("family_{number:03}_total"));
        let help = fixed(format!("Help {}.", text(&mut random)).trim().to_owned());
        let labels: &[&'static str] = [&[][..], &["a"], &["a", "b"]][random.below(3)];
        let series = if labels.is_empty() { 1 } else { 1 + random.below(4) };
        let values: Vec<Vec<String>> = (0..series)
            .map(|number| labels.iter().map(|_| format!("{number}{}", text(&mut random))).collect())
            .collect();
        let of = |values: &Vec<String>| -> Vec<(&'static str, String)> {
            labels.iter().copied().zip(values.iter().cloned()).collect()
        };
        let opts = Opts::new(name, help);
        let mut family = match number % 5 {
            0 | 1 => Family::new(name, Kind::Counter, help),
            2 | 3 => Family::new(name, Kind::Gauge, help),
            _ => {
                let mut bounds: Vec<f64> = (0..random.below(8)).map(|_| real(&mut random)).collect();
                bounds.push(real(&mut random));
                bounds.sort_by(f64::total_cmp);
                bounds.dedup();
                Family::new(name, Kind::Histogram(bounds), help)
            }
        };
        macro_rules! numbers {
            ($theirs:expr, $set:ident, $value:expr) => {{
                let theirs = $theirs;
                registry.register(Box::new(theirs.clone())).unwrap();
                for values in &values {
                    let value = $value;
                    theirs.with_label_values(values).$set(value);
                    family.number_of(&of(values), &[], value);
                }
            }};
        }
        match number % 5 {
            0 => numbers!(IntCounterVec::new(opts, labels).unwrap(), inc_by, random.below(1 << 53) as u64),
            1 => numbers!(CounterVec::new(opts, labels).unwrap(), inc_by, real(&mut random)),
            2 => {
                let value = |random: &mut Xorshift| random.below(1 << 50) as i64 - (1 << 49);
                numbers!(IntGaugeVec::new(opts, labels).unwrap(), set, value(&mut random))
            }
            3 => numbers!(GaugeVec::new(opts, labels).unwrap(), set, -real(&mut random)),
            _ => {
                let Kind::Histogram(bounds) = family.head().kind().clone() else { unreachable!() };
                let opts = HistogramOpts::from(opts).buckets(bounds.clone());
                let theirs = HistogramVec::new(opts, labels).unwrap();
                registry.register(Box::new(theirs.clone())).unwrap();
                for values in &values {
                    let (mut counts, mut sum) = (vec![0; bounds.len() + 1], 0.0);
                    let observed = theirs.with_label_values(values);
                    for _ in 0..random.below(20) {
                        let value = real(&mut random);
                        observed.observe(value);
                        counts[bounds.partition_point(|bound| *bound < value)] += 1;
                        sum += value;
                    }
                    family.histogram_of(&of(values), &[], &counts, sum);
                }
            }
        }
        family.write(Format::Text, &mut ours);
    }
    let mut theirs = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut theirs).unwrap();
    let (ours, theirs) = (String::from_utf8(ours).unwrap(), String::from_utf8(theirs).unwrap());
    for (number, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(ours, theirs, "line {}", number + 1);
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.lines().count() > 2000, "{}", ours.lines().count());
    // Without families, the output is empty.
    let mut nothing = Vec::new();
    Families::default().write(Format::Text, &mut nothing);
    assert!(nothing.is_empty());
}
