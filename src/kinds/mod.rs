//! Kinds of metric: a module each, with all that is particular to the kind.
//!
//! A kind says how the configuration asks for it, how many slots one series has and how the kernel updates them, does
//! the same in user space, reads the slots at a scrape, and draws the metric's panel. Everything else treats all kinds
//! alike, by the trait [`Kind`]; they are listed in this file only: in [`FORMS`], [`MetricKind`] and [`of`].

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

/// What a configuration asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MetricKind {
    Counter,
    Gauge(GaugeKind),
    /// A gauge that some metrics of this name raise and others lower.
    UpDown,
    /// Upper bounds, ascending, without +Inf, in the metric's own unit.
    Histogram(Vec<f64>),
    /// Of the latest hit.
    Timestamp,
}

/// Which of the values a gauge shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GaugeKind {
    #[default]
    Last,
    /// Of the last one to two minutes.
    Min,
    /// Of the last one to two minutes.
    Max,
}

/// How the configuration asks for a kind: by a key whose value is the metric's name.
#[derive(Debug)]
pub struct Form {
    pub key: &'static str,
    /// What the key is, for the reference.
    pub about: &'static str,
    /// Whether the metric has a `value`.
    pub value: ValueUse,
    /// The keys of a metric that are valid for some forms only: those for this one.
    pub options: &'static [&'static str],
    /// What names end with by convention.
    pub suffix: Option<&'static str>,
    pub kind: fn(Options) -> MetricKind,
}

impl Form {
    /// Whether a key that only some forms have is valid.
    pub fn has(&self, option: &str) -> bool {
        self.options.contains(&option)
    }
}

/// Whether a metric has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueUse {
    Required,
    /// Without one, it counts hits.
    Optional,
    None,
}

/// What [`Form::options`] say that decide the kind.
#[derive(Debug, Default)]
pub struct Options {
    pub mode: GaugeKind,
    pub bounds: Vec<f64>,
}

/// All forms, in the order of the reference.
pub const FORMS: &[&Form] =
    &[&counter::FORM, &last::FORM, &histogram::FORM, &up_down::FORM, &timestamp::FORM];

/// Words for `mode` of a gauge.
pub const MODES: &[(&str, GaugeKind)] =
    &[("last", GaugeKind::Last), ("min", GaugeKind::Min), ("max", GaugeKind::Max)];

/// All that is particular to a kind.
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

/// What is particular to a kind of metric. `has_value` is whether an action adds or sets a value, or counts hits.
pub(crate) trait Kind: fmt::Debug + Send + Sync {
    /// How the configuration asks for it.
    fn form(&self) -> &'static Form;

    /// What Prometheus is told it is.
    fn exposed_as(&self) -> exposition::Kind;

    /// Slots of one series; what they are is said at the action.
    fn slots(&self, has_value: bool) -> u32;

    /// How the kernel updates them.
    fn action(&self, has_value: bool) -> action_kind;

    /// A histogram's upper bounds, in the unit that is read.
    fn raw_bounds(&self, _scale: Scale) -> Vec<i64> {
        Vec::new()
    }

    /// Whether a negative value is refused, because the metric can only grow.
    fn refuses_negative(&self) -> bool {
        false
    }

    /// Whether it shows 64 bits with a sign and without one alike.
    fn shows_any_word(&self) -> bool {
        false
    }

    /// Whether it is the number of hits, if it has no value, conditions or labels that vary.
    fn counts_hits(&self) -> bool {
        false
    }

    /// Whether the latest of several updates counts, so that each needs its time.
    fn needs_time(&self) -> bool {
        false
    }

    /// Whether it has fractions even where its action's numbers are whole.
    fn has_fractions(&self) -> bool {
        false
    }

    /// Whether what a process has done to it ends with the process, so that each process has slots of its own.
    fn ends_with_process(&self) -> bool {
        false
    }

    /// Whether it stays wrong once it has missed hits, so that its probes are never detached to save time.
    fn needs_every_hit(&self) -> bool {
        false
    }

    /// Whether its slots start from zero with each window of time.
    fn is_windowed(&self) -> bool {
        false
    }

    /// Whether it shows 0 from the start, where its labels are known beforehand.
    fn starts_at_zero(&self) -> bool;

    /// Updates the slots of the series that begin at `slot`, in user space, as the kernel does by its action.
    fn update(&self, store: &UserStore, slot: u32, by: &Update<'_>);

    /// The number in the slots, whose meaning is the kind's own; `None` if nothing has updated them.
    fn read(&self, from: &Slots<'_>) -> Option<u64>;

    /// Takes such a number into the series' total, which several actions may feed; of a histogram the buckets too.
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
    /// By the kernel's clock.
    pub time: u64,
    /// See [`Kind::raw_bounds`].
    pub bounds: &'a [i64],
}

/// The slots of one series.
pub(crate) struct Slots<'a> {
    pub store: &'a dyn Store,
    pub first: u32,
    pub number: u32,
    /// Where there are windows, what the first slot was at the end of the one before.
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

/// How an action's numbers are understood.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NumberFormat {
    pub scale: Scale,
    /// Their 64 bits have no sign.
    pub unsigned: bool,
}
