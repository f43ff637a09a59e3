//! Metrics about the exporter itself as the encoder takes them: families that are described as they are filled.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// The families of one scrape.
#[derive(Default)]
pub struct Families(Vec<MetricFamily>);

/// One family that is being filled.
pub struct Rows<'a> {
    family: &'a mut MetricFamily,
    counter: bool,
}

impl Families {
    pub fn gauge(&mut self, name: &str, help: &str) -> Rows<'_> {
        self.family(name, help, MetricType::GAUGE)
    }

    pub fn counter(&mut self, name: &str, help: &str) -> Rows<'_> {
        self.family(name, help, MetricType::COUNTER)
    }

    /// Those that have rows: the encoder refuses a family without.
    pub fn done(mut self) -> Vec<MetricFamily> {
        self.0.retain(|family| !family.get_metric().is_empty());
        self.0
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType) -> Rows<'_> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_string());
        family.set_help(help.to_string());
        family.set_field_type(kind);
        self.0.push(family);
        let family = self.0.last_mut().expect("one was just pushed");
        Rows { family, counter: kind == MetricType::COUNTER }
    }
}

impl Rows<'_> {
    pub fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let labels = labels
            .iter()
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_string());
                pair.set_value((*value).to_string());
                pair
            })
            .collect();
        let mut metric = Metric::from_label(labels);
        if self.counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.family.mut_metric().push(metric);
    }
}
