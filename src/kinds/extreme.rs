//! Gauges of the minimum or maximum over the last one to two windows.

use super::last::{self, gauge_panel};
use super::panel::{Panel, Selection};
use super::{Kind, KindSyntax, NumberFormat, Slots, Total, Update};
use crate::abi::action_kind;
use crate::exposition;
use crate::store::UserStore;

/// Its slot holds an encoded value, and 0 for none; not sharded.
#[derive(Debug)]
pub(super) enum Extreme {
    Min,
    Max,
}

impl Extreme {
    /// The more extreme one of two codes.
    fn further(&self, a: u64, b: u64) -> u64 {
        match self {
            Extreme::Min if a != 0 && b != 0 => a.min(b),
            Extreme::Min | Extreme::Max => a.max(b),
        }
    }
}

impl Kind for Extreme {
    fn form(&self) -> &'static KindSyntax {
        &last::FORM
    }

    fn exposed_as(&self) -> exposition::Kind {
        exposition::Kind::Gauge
    }

    fn slots(&self, _: bool) -> u32 {
        1
    }

    fn action(&self, _: bool) -> action_kind {
        match self {
            Extreme::Min => action_kind::ACTION_MIN,
            Extreme::Max => action_kind::ACTION_MAX,
        }
    }

    fn is_windowed(&self) -> bool {
        true
    }

    fn starts_at_zero(&self) -> bool {
        false
    }

    fn update(&self, store: &UserStore, slot: u32, by: &Update<'_>) {
        store.update(slot, |old| self.further(old, code_of(by.value)));
    }

    /// Returns the code.
    fn read(&self, from: &Slots<'_>) -> Option<u64> {
        Some(self.further(from.previous, from.single(0))).filter(|code| *code != 0)
    }

    fn merge(&self, code: u64, _: &Slots<'_>, format: NumberFormat, to: &mut Total, _: &mut [u64]) {
        let new = number_of(code);
        let mut scaled = Total::default();
        scaled.set(new, format.scale);
        let order = scaled.compared(to);
        let better = match self {
            Extreme::Min => order.is_lt(),
            Extreme::Max => order.is_gt(),
        };
        if !to.live || better {
            to.set(new, format.scale);
        }
    }

    fn panel(&self, of: &Selection<'_>) -> Panel {
        let about = match self {
            Extreme::Min => "minimum over the last one to two minutes.",
            Extreme::Max => "maximum over the last one to two minutes.",
        };
        gauge_panel(of, about)
    }
}

/// The encoding of the kernel's minima and maxima: ordered like the number, and never 0.
fn code_of(number: i64) -> u64 {
    (number as u64).wrapping_add(1 << 63).saturating_add(1)
}

/// The number of a code, which is not 0. The two greatest numbers share a code, and are the same to Prometheus.
fn number_of(code: u64) -> i64 {
    if code == u64::MAX { i64::MAX } else { code.saturating_sub(1).wrapping_sub(1 << 63) as i64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_preserve_order_and_are_never_zero() {
        let numbers = [i64::MIN, -5, -1, 0, 1, 7, i64::MAX];
        let codes = numbers.map(code_of);
        assert!(codes.is_sorted() && codes[0] > 0);
        assert_eq!(codes.map(number_of), numbers);
        assert_eq!(Extreme::Min.further(0, codes[2]), codes[2]);
        assert_eq!(Extreme::Min.further(codes[1], codes[2]), codes[1]);
        assert_eq!(Extreme::Max.further(codes[1], codes[2]), codes[2]);
    }
}
