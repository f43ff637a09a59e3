//! Gauges of the time of the latest hit: the time since something happened is `time() - NAME` in PromQL.

use super::last::{read_time, set_with_time};
use super::panel::{Panel, Query, Selection};
use super::{Kind, KindSyntax, MetricKind, NumberFormat, Scale, Slots, Total, Update, ValueUse};
use crate::abi::action_kind;
use crate::clock::wall_at;
use crate::exposition;
use crate::store::UserStore;

pub(super) const FORM: KindSyntax = KindSyntax {
    key: "timestamp",
    about: "Name of a gauge of the time of the latest hit, in seconds since the Unix epoch.",
    value: ValueUse::None,
    options: &[],
    suffix: Some("_timestamp_seconds"),
    kind: |_| MetricKind::Timestamp,
};

/// Slots as of a latest value, of which only the time is used; not sharded.
#[derive(Debug)]
pub(super) struct Timestamp;

impl Kind for Timestamp {
    fn form(&self) -> &'static KindSyntax {
        &FORM
    }

    fn exposed_as(&self) -> exposition::Kind {
        exposition::Kind::Gauge
    }

    fn slots(&self, _: bool) -> u32 {
        2
    }

    fn action(&self, _: bool) -> action_kind {
        action_kind::ACTION_LAST
    }

    fn needs_time(&self) -> bool {
        true
    }

    fn has_fractions(&self) -> bool {
        true
    }

    fn starts_at_zero(&self) -> bool {
        false
    }

    fn update(&self, store: &UserStore, slot: u32, by: &Update<'_>) {
        set_with_time(store, slot, by);
    }

    /// Returns the time.
    fn read(&self, from: &Slots<'_>) -> Option<u64> {
        read_time(from)
    }

    fn merge(&self, time: u64, _: &Slots<'_>, _: NumberFormat, to: &mut Total, _: &mut [u64]) {
        if time >= to.time {
            to.time = time;
            to.set(milliseconds(wall_at(time)), Scale { mul: 1.0, div: 1e3 });
        }
    }

    fn panel(&self, of: &Selection<'_>) -> Panel {
        let expr = of.most(format!("time() - {}", of.series(of.name)));
        let queries = vec![Query { expr, legend: of.legend.to_string() }];
        Panel { unit: "s", about: "time since the latest hit.", queries }
    }
}

/// Rounds to milliseconds, so that the imprecise comparison of the two clocks does not show from scrape to scrape.
fn milliseconds(nanoseconds: i64) -> i64 {
    nanoseconds.saturating_add(500_000).div_euclid(1_000_000)
}
