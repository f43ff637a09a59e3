//! Gauges of the latest value.

use super::panel::{Panel, Query, Selection};
use super::{Kind, KindSyntax, MetricKind, NumberFormat, Slots, Total, Update, ValueUse};
use crate::abi::action_kind;
use crate::exposition;
use crate::store::UserStore;

/// The form of all gauges of a value.
pub(super) const FORM: KindSyntax = KindSyntax {
    key: "gauge",
    about: "Name of a gauge.",
    value: ValueUse::Required,
    options: &["mode"],
    suffix: None,
    kind: |options| MetricKind::Gauge(options.mode),
};

/// The value and its time; not sharded.
#[derive(Debug)]
pub(super) struct Last;

impl Kind for Last {
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

    fn shows_any_word(&self) -> bool {
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

    fn merge(&self, time: u64, from: &Slots<'_>, format: NumberFormat, to: &mut Total, _: &mut [u64]) {
        // Several probes may feed it: the latest value counts.
        if time >= to.time {
            to.time = time;
            let raw = from.single(0);
            if format.unsigned { to.set(raw, format.scale) } else { to.set(raw as i64, format.scale) }
        }
    }

    fn panel(&self, of: &Selection<'_>) -> Panel {
        gauge_panel(of, "the latest value.")
    }
}

/// Sets the value and its time.
pub(super) fn set_with_time(store: &UserStore, slot: u32, by: &Update<'_>) {
    store.set(slot, by.value as u64);
    store.set(slot + 1, by.time);
}

/// Returns the time of the value, unless none was set.
pub(super) fn read_time(from: &Slots<'_>) -> Option<u64> {
    Some(from.single(1)).filter(|time| *time != 0)
}

/// A panel of the series; timestamps are shown as dates.
pub(super) fn gauge_panel(of: &Selection<'_>, about: &'static str) -> Panel {
    let mut expr = of.most(of.series(of.name));
    if of.is_timestamp() {
        // Grafana's dates are in milliseconds.
        expr.push_str(" * 1000");
    }
    Panel { unit: of.unit(), about, queries: vec![Query { expr, legend: of.legend.to_string() }] }
}
