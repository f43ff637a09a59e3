//! Counters: the number of hits, or the sum of a value.

use super::panel::{Panel, Query, Selection};
use super::{Kind, KindSyntax, MetricKind, NumberFormat, Slots, Total, Update, ValueUse};
use crate::abi::action_kind;
use crate::exposition;
use crate::store::UserStore;

pub(super) const FORM: KindSyntax = KindSyntax {
    key: "counter",
    about: "Name of a counter.",
    value: ValueUse::Optional,
    options: &[],
    suffix: Some("_total"),
    kind: |_| MetricKind::Counter,
};

#[derive(Debug)]
pub(super) struct Counter;

impl Kind for Counter {
    fn form(&self) -> &'static KindSyntax {
        &FORM
    }

    fn exposed_as(&self) -> exposition::Kind {
        exposition::Kind::Counter
    }

    fn slots(&self, has_value: bool) -> u32 {
        sum_slots(has_value)
    }

    fn action(&self, has_value: bool) -> action_kind {
        if has_value { action_kind::ACTION_ADD } else { action_kind::ACTION_COUNT }
    }

    fn refuses_negative(&self) -> bool {
        true
    }

    fn counts_hits(&self) -> bool {
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

    fn merge(&self, number: u64, _: &Slots<'_>, format: NumberFormat, to: &mut Total, _: &mut [u64]) {
        // No negative value was ever added.
        to.add(number, format.scale);
    }

    fn panel(&self, of: &Selection<'_>) -> Panel {
        let expr = of.most(of.sum(&of.increase(of.name)));
        let queries = vec![Query { expr, legend: of.legend.to_string() }];
        Panel { unit: of.unit(), about: "increase over the selected window.", queries }
    }
}

/// Slots of a sum: the sum, and the number of values, if there are values, as they may add up to 0.
pub(super) fn sum_slots(has_value: bool) -> u32 {
    if has_value { 2 } else { 1 }
}

/// Adds to a sum.
pub(super) fn add(store: &UserStore, slot: u32, by: &Update<'_>) {
    store.add(slot, by.value as u64);
    if by.has_value {
        store.add(slot + 1, 1);
    }
}

/// Returns the sum, unless nothing was added.
pub(super) fn read_sum(from: &Slots<'_>) -> Option<u64> {
    let last = from.total(from.number - 1);
    if last == 0 {
        return None;
    }
    Some(if from.number == 1 { last } else { from.total(0) })
}
