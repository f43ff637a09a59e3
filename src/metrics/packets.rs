//! Packet statistics as text.

use super::encode::{Head, Number, push_label};
use crate::config::model::{GaugeKind, MetricKind};
use crate::net::{Family, Kind, Value};

/// Appends a family; one without series is left out.
pub fn write(family: &Family, to: &mut Vec<u8>) {
    let Some(first) = family.samples.first() else { return };
    let kind = match (&family.kind, &first.value) {
        (Kind::Counter, _) => MetricKind::Counter,
        (Kind::Histogram, Value::Histogram { bounds, .. }) => {
            MetricKind::Histogram(bounds.iter().copied().map(f64::from).collect())
        }
        _ => MetricKind::Gauge(GaugeKind::Last),
    };
    let head = Head::new(family.name, family.help, &kind);
    head.intro(to);
    let mut labels = String::new();
    for sample in &family.samples {
        labels.clear();
        for (name, value) in &sample.labels {
            push_label(name, value, &mut labels);
        }
        match &sample.value {
            Value::Number(number) => {
                head.value(&head.start(&labels), Number::Int((*number).into()), to);
            }
            Value::Histogram { counts, sum, .. } => {
                head.histogram(&labels, counts, Number::Int((*sum).into()), to);
            }
        }
    }
}
