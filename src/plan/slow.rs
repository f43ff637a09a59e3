//! Which hits of a probe are slow, and what is recorded of them.

use serde::{Deserialize, Serialize};

use super::scope::Scope;
use super::{ActionPlan, ComputedIn, ConditionPlan, ProbePlan, Scale};
use crate::config::model::{Metric, Named, Point};
use crate::config::place::Place;
use crate::kinds;

/// The name of the call stack in an event's fields.
pub(crate) const STACK: &str = "stack";

/// The slow hits of one histogram.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlowPlan {
    pub metric: String,
    /// Values above this are slow, in the metric's unit; if absent, all are.
    pub over: Option<f64>,
    /// The same in the unit of the integer that is read.
    pub above: i64,
    /// Keep only this many of each hour, those with the largest values.
    pub worst: Option<u32>,
    /// As in the histogram's [`ActionPlan`].
    pub value: usize,
    pub scale: Scale,
    pub refuses_negative: bool,
    pub when: Vec<ConditionPlan>,
    /// Values that are recorded, by index.
    pub kept: Vec<usize>,
    /// How related events of other probes are found.
    pub related: Option<RelatedBy>,
    /// Whether the call stack is recorded, too.
    pub stack: bool,
    /// Where it is decided whether a hit is slow; the same for all of a probe.
    pub computed_in: ComputedIn,
}

/// Which events of other probes are related to a slow one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelatedBy {
    /// The value that must be equal, by index, and the process.
    pub key: usize,
    pub process: usize,
    /// The related probes.
    pub with: Vec<Point>,
}

/// What is recorded of an event that may be related to slow ones of other probes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelatedPlan {
    /// Values that may be equal, by index, and the process.
    pub keys: Vec<usize>,
    pub process: usize,
    /// Values that are recorded.
    pub kept: Vec<usize>,
}

impl ProbePlan {
    /// Whether the kernel decides which hits are slow, and sends only these.
    pub(crate) fn is_slow_in_kernel(&self) -> bool {
        self.slow.iter().any(|slow| slow.computed_in == ComputedIn::Kernel)
    }
}

impl Scope<'_> {
    /// Plans the metric's `slow:`, and adds the values that it needs to those that are read.
    pub(super) fn slow(&mut self, metric: &Metric, action: &ActionPlan) -> Option<SlowPlan> {
        let slow = metric.slow.as_ref()?;
        let is_kept = kinds::of(&metric.kind).form().has("slow");
        let Some(value) = action.value.filter(|_| is_kept) else {
            if metric.unread {
                // Its error has been reported.
                return None;
            }
            self.diags.error(
                &slow.at,
                format!("{} is not a histogram: only events of histograms can be kept", metric.name),
            );
            return None;
        };
        if slow.stack && self.probe.args.iter().any(|arg| arg.name == STACK) {
            let message =
                format!("an argument is called \"{STACK}\", which is the name of the call stack in an event");
            self.diags.error(&slow.at, message).help("rename the argument");
        }
        let fields = slow.fields.clone().unwrap_or_else(|| self.all_fields(&slow.at));
        let mut kept: Vec<_> = fields.iter().map(|field| self.shown(&field.at, &field.name)).collect();
        let related = match &slow.key {
            Some(key) => {
                let (number, process) = (self.shown(&key.at, &key.name), self.value(&slow.at, "pid"));
                if !kept.contains(&number) {
                    kept.push(number);
                }
                let with = slow.with.iter().map(|(_, point)| point.clone()).collect();
                Some(RelatedBy { key: number?, process: process?, with })
            }
            None => None,
        };
        Some(SlowPlan {
            metric: metric.name.clone(),
            over: slow.over,
            above: slow.over.map_or(i64::MIN, |over| action.scale.raw_bound(over)),
            worst: slow.worst,
            value,
            scale: action.scale,
            refuses_negative: action.refuses_negative,
            when: action.when.clone(),
            kept: kept.into_iter().collect::<Option<_>>()?,
            related,
            stack: slow.stack,
            computed_in: ComputedIn::Kernel,
        })
    }

    /// All arguments that can be read here, and the process.
    fn all_fields(&self, at: &Place) -> Vec<Named> {
        // Values that are read when the function returns are not available at its entry.
        let args = self.probe.args.iter().filter(|arg| !arg.at_return || self.late.is_some());
        let named = args.map(|arg| Named { at: arg.at.clone(), name: arg.name.clone() });
        named.chain([Named { at: at.clone(), name: "pid".to_owned() }]).collect()
    }

    /// Plans to record this probe's events with slow ones that have the same value of one of these names.
    pub(super) fn related(&mut self, keys: &[Named]) -> Option<RelatedPlan> {
        let at = &keys.first()?.at;
        let numbers: Vec<_> = keys.iter().map(|key| self.value(&key.at, &key.name)).collect();
        let process = self.value(at, "pid");
        let fields = self.all_fields(at);
        let kept: Vec<_> = fields.iter().filter(|field| field.name != "pid").collect();
        let kept: Vec<_> = kept.iter().map(|field| self.value(&field.at, &field.name)).collect();
        Some(RelatedPlan {
            keys: numbers.into_iter().collect::<Option<_>>()?,
            process: process?,
            kept: kept.into_iter().collect::<Option<_>>()?,
        })
    }
}
