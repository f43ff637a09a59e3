//! Kinds of metric: a module for each, with everything that is particular to it.
//!
//! A kind defines how it is configured, how many slots one series has and how the kernel updates them, does the same in
//! user space, reads the slots at a scrape, and draws the metric's panel. All other code treats all kinds alike,
//! through the trait [`Kind`]; they are listed only in this file: in [`FORMS`], [`MetricKind`] and [`of`].

mod counter;
mod extreme;
mod histogram;
mod last;
pub(crate) mod panel;
mod timestamp;
mod up_down;
mod value;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::abi::action_kind;
use crate::exposition;
use crate::store::{Store, UserStore};
use panel::{Panel, Selection};

pub use value::Scale;
pub(crate) use value::Total;

/// The kind of a metric, as configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MetricKind {
    Counter,
    Gauge(GaugeKind),
    /// A gauge that some metrics of this name raise and others lower.
    UpDown,
    /// Upper bounds, ascending, without +Inf, in the metric's unit.
    Histogram(Vec<f64>),
    /// The time of the latest hit.
    Timestamp,
}

/// Which value a gauge shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GaugeKind {
    #[default]
    Last,
    /// The minimum of the last one to two minutes.
    Min,
    /// The maximum of the last one to two minutes.
    Max,
}

/// How a kind is configured: by a key whose value is the metric's name.
#[derive(Debug)]
pub struct KindSyntax {
    pub key: &'static str,
    /// The key's description in the reference.
    pub about: &'static str,
    /// Whether the metric takes a `value`.
    pub value: ValueUse,
    /// The keys valid for this form that are not valid for all forms.
    pub options: &'static [&'static str],
    /// The conventional suffix of names.
    pub suffix: Option<&'static str>,
    pub kind: fn(Options) -> MetricKind,
}

impl KindSyntax {
    /// Whether it has a key that is valid only for some forms.
    pub fn has(&self, option: &str) -> bool {
        self.options.contains(&option)
    }
}

/// Whether a metric takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueUse {
    Required,
    /// Without a value, it counts hits.
    Optional,
    None,
}

/// The values of those [`KindSyntax::options`] that decide the kind.
#[derive(Debug, Default)]
pub struct Options {
    pub mode: GaugeKind,
    pub bounds: Vec<f64>,
}

/// All forms, in the order in which the reference lists them.
pub const FORMS: &[&KindSyntax] =
    &[&counter::FORM, &last::FORM, &histogram::FORM, &up_down::FORM, &timestamp::FORM];

/// Values of a gauge's `mode`.
pub const MODES: &[(&str, GaugeKind)] =
    &[("last", GaugeKind::Last), ("min", GaugeKind::Min), ("max", GaugeKind::Max)];

/// The implementation of a kind.
pub(crate) fn of(kind: &MetricKind) -> Arc<dyn Kind> {
    match kind {
        MetricKind::Counter => Arc::new(counter::Counter),
        MetricKind::Gauge(GaugeKind::Last) => Arc::new(last::Last),
        MetricKind::Gauge(GaugeKind::Min) => Arc::new(extreme::Extreme::Min),
        MetricKind::Gauge(GaugeKind::Max) => Arc::new(extreme::Extreme::Max),
        MetricKind::UpDown => Arc::new(up_down::UpDown),
        MetricKind::Timestamp => Arc::new(timestamp::Timestamp),
        MetricKind::Histogram(bounds) => Arc::new(histogram::Histogram { bounds: bounds.clone() }),
    }
}

/// Everything that is particular to a kind of metric. `has_value` is whether an action adds or sets a value, or counts
/// hits.
pub(crate) trait Kind: fmt::Debug + Send + Sync {
    /// How it is configured.
    fn form(&self) -> &'static KindSyntax;

    /// Its type in the exposition.
    fn exposed_as(&self) -> exposition::Kind;

    /// Slots of one series; their meaning is documented at the action.
    fn slots(&self, has_value: bool) -> u32;

    /// How the kernel updates them.
    fn action(&self, has_value: bool) -> action_kind;

    /// A histogram's upper bounds, in the unit of the values that are read.
    fn raw_bounds(&self, _scale: Scale) -> Vec<i64> {
        Vec::new()
    }

    /// Whether negative values are rejected because the metric can only grow.
    fn refuses_negative(&self) -> bool {
        false
    }

    /// Whether signed and unsigned 64-bit values are displayed alike.
    fn shows_any_word(&self) -> bool {
        false
    }

    /// Whether it equals the number of hits if it has no value, no conditions and no variable labels.
    fn counts_hits(&self) -> bool {
        false
    }

    /// Whether the latest of several updates counts, so that each needs its time.
    fn needs_time(&self) -> bool {
        false
    }

    /// Whether it is fractional even where its action's numbers are whole.
    fn has_fractions(&self) -> bool {
        false
    }

    /// Whether a process's contribution ends with the process, so that each process has slots of its own.
    fn ends_with_process(&self) -> bool {
        false
    }

    /// Whether missed hits make it wrong permanently, so that its probes are never shed.
    fn needs_every_hit(&self) -> bool {
        false
    }

    /// Whether its slots start from zero with each time window.
    fn is_windowed(&self) -> bool {
        false
    }

    /// Whether it is 0 from the start, where its labels are known in advance.
    fn starts_at_zero(&self) -> bool;

    /// Updates, in user space, the slots of the series that begin at `slot`, as the kernel does by its action.
    fn update(&self, store: &UserStore, slot: u32, by: &Update<'_>);

    /// The number in the slots, whose meaning depends on the kind; `None` if nothing has updated them.
    fn read(&self, from: &Slots<'_>) -> Option<u64>;

    /// Adds such a number to the series' total, which several actions may feed; for a histogram, the buckets too.
    fn merge(&self, number: u64, from: &Slots<'_>, format: NumberFormat, to: &mut Total, buckets: &mut [u64]);

    /// How a dashboard shows it.
    fn panel(&self, of: &Selection<'_>) -> Panel;
}

/// One update by an event.
#[derive(Debug)]
pub(crate) struct Update<'a> {
    /// 1 if hits are counted.
    pub value: i64,
    pub has_value: bool,
    /// In the kernel's clock.
    pub time: u64,
    /// See [`Kind::raw_bounds`].
    pub bounds: &'a [i64],
}

/// The slots of one series.
pub(crate) struct Slots<'a> {
    pub store: &'a dyn Store,
    pub first: u32,
    pub number: u32,
    /// With windows, the value of the first slot at the end of the previous one.
    pub previous: u64,
}

impl Slots<'_> {
    fn total(&self, slot: u32) -> u64 {
        self.store.total(self.first + slot)
    }

    fn single(&self, slot: u32) -> u64 {
        self.store.single(self.first + slot)
    }
}

/// How an action's numbers are interpreted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NumberFormat {
    pub scale: Scale,
    /// Whether their 64 bits are unsigned.
    pub unsigned: bool,
}
