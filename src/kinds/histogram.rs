//! Histograms: the number of values up to each bound, and their sum.

use super::panel::{Panel, Query, Selection};
use super::{Kind, KindSyntax, MetricKind, NumberFormat, Scale, Slots, Total, Update, ValueUse};
use crate::abi::action_kind;
use crate::exposition;
use crate::store::UserStore;

pub(super) const FORM: KindSyntax = KindSyntax {
    key: "histogram",
    about: "Name of a histogram.",
    value: ValueUse::Required,
    options: &["buckets", "native", "slow"],
    suffix: None,
    kind: |options| MetricKind::Histogram(options.bounds),
};

/// The sum, and a slot for each bucket; the last is for values beyond all bounds.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Upper bounds in the metric's unit.
    pub bounds: Vec<f64>,
}

impl Kind for Histogram {
    fn form(&self) -> &'static KindSyntax {
        &FORM
    }

    fn exposed_as(&self) -> exposition::Kind {
        exposition::Kind::Histogram(self.bounds.clone())
    }

    fn slots(&self, _: bool) -> u32 {
        u32::try_from(self.bounds.len()).expect("few buckets") + 2
    }

    fn action(&self, _: bool) -> action_kind {
        action_kind::ACTION_HISTOGRAM
    }

    fn raw_bounds(&self, scale: Scale) -> Vec<i64> {
        self.bounds.iter().map(|bound| scale.raw_bound(*bound)).collect()
    }

    fn starts_at_zero(&self) -> bool {
        true
    }

    fn update(&self, store: &UserStore, slot: u32, by: &Update<'_>) {
        store.add(slot, by.value as u64);
        let bucket = by.bounds.partition_point(|bound| *bound < by.value);
        store.add(slot + 1 + bucket as u32, 1);
    }

    /// Returns the sum.
    fn read(&self, from: &Slots<'_>) -> Option<u64> {
        (1..from.number).any(|bucket| from.total(bucket) != 0).then(|| from.total(0))
    }

    fn merge(&self, sum: u64, from: &Slots<'_>, format: NumberFormat, to: &mut Total, buckets: &mut [u64]) {
        for (slot, bucket) in (1..).zip(buckets) {
            *bucket += from.total(slot);
        }
        to.add(sum as i64, format.scale);
    }

    fn panel(&self, of: &Selection<'_>) -> Panel {
        let part = |part: &str| of.increase(&format!("{}_{part}", of.name));
        let quantile = |q: &str, name: &str| Query {
            expr: of.most(format!("histogram_quantile({q}, {})", of.sum_with("le", &part("bucket")))),
            legend: format!("{name} {}", of.legend),
        };
        let mean = of.most(format!("{} / {}", of.sum(&part("sum")), of.sum(&part("count"))));
        let mean = Query { expr: mean, legend: format!("mean {}", of.legend) };
        Panel {
            unit: of.unit(),
            about: "median, 95th percentile and mean over the selected window.",
            queries: vec![quantile("0.50", "p50"), quantile("0.95", "p95"), mean],
        }
    }
}
