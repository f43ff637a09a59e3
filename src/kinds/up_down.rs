//! Gauges that some probes raise and others lower: open connections, requests in flight.

use super::counter::{add, read_sum, sum_slots};
use super::last::gauge_panel;
use super::panel::{Panel, Selection};
use super::{Kind, KindSyntax, MetricKind, NumberFormat, Slots, Total, Update, ValueUse};
use crate::abi::action_kind;
use crate::exposition;
use crate::store::UserStore;

pub(super) const FORM: KindSyntax = KindSyntax {
    key: "up_down",
    about: "Name of a gauge that probes increment and decrement.",
    value: ValueUse::Optional,
    options: &["direction"],
    suffix: None,
    kind: |_| MetricKind::UpDown,
};

/// Each action has its own sum, like a counter; an action that lowers has a negative scale.
#[derive(Debug)]
pub(super) struct UpDown;

impl Kind for UpDown {
    fn form(&self) -> &'static KindSyntax {
        &FORM
    }

    fn exposed_as(&self) -> exposition::Kind {
        exposition::Kind::Gauge
    }

    fn slots(&self, has_value: bool) -> u32 {
        sum_slots(has_value)
    }

    fn action(&self, has_value: bool) -> action_kind {
        if has_value { action_kind::ACTION_ADD } else { action_kind::ACTION_COUNT }
    }

    /// A process that has exited no longer closes anything.
    fn ends_with_process(&self) -> bool {
        true
    }

    /// If a hit that raises or lowers it were missed, it would be wrong forever.
    fn needs_every_hit(&self) -> bool {
        true
    }

    fn starts_at_zero(&self) -> bool {
        true
    }

    fn update(&self, store: &UserStore, slot: u32, by: &Update<'_>) {
        add(store, slot, by);
    }

    fn read(&self, from: &Slots<'_>) -> Option<u64> {
        read_sum(from)
    }

    fn merge(&self, sum: u64, _: &Slots<'_>, format: NumberFormat, to: &mut Total, _: &mut [u64]) {
        to.add(sum as i64, format.scale);
    }

    fn panel(&self, of: &Selection<'_>) -> Panel {
        gauge_panel(of, "difference of increments and decrements since the exporter started.")
    }
}
