//! Which hits of a probe are slow, and what is kept of them.

use serde::{Deserialize, Serialize};

use super::scope::Scope;
use super::{ActionPlan, ConditionPlan, ProbePlan, Route, Scale};
use crate::config::model::{Metric, MetricKind, Named};

/// The slow hits of one histogram.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlowPlan {
    pub metric: String,
    /// Slow is what is above this, in the metric's unit.
    pub over: f64,
    /// The same as the integer that is read.
    pub above: i64,
    /// As of the histogram's [`ActionPlan`].
    pub value: usize,
    pub scale: Scale,
    pub refuses_negative: bool,
    pub when: Vec<ConditionPlan>,
    /// Values that are kept, by index.
    pub kept: Vec<usize>,
    /// Where it is decided that a hit is slow; the same for all of a probe.
    pub route: Route,
}

impl ProbePlan {
    /// Whether the kernel decides which hits are slow, and sends only these.
    pub(crate) fn is_slow_in_kernel(&self) -> bool {
        self.slow.iter().any(|slow| slow.route == Route::Kernel)
    }
}

impl Scope<'_> {
    /// What the metric's `slow:` means, with everything it keeps read from now on.
    pub(super) fn slow(&mut self, metric: &Metric, action: &ActionPlan) -> Option<SlowPlan> {
        let slow = metric.slow.as_ref()?;
        let (Some(value), MetricKind::Histogram(_)) = (action.value, &metric.kind) else {
            if metric.unread {
                // Its error has been reported.
                return None;
            }
            self.diags.error(
                &slow.at,
                format!("{} is no histogram: only events of histograms are kept", metric.name),
            );
            return None;
        };
        let all = || {
            // What is read when the function returns is not known at its entry.
            let args = self.probe.args.iter().filter(|arg| !arg.at_return || self.late.is_some());
            let named = args.map(|arg| Named { at: arg.at.clone(), name: arg.name.clone() });
            named.chain([Named { at: slow.at.clone(), name: "pid".to_owned() }]).collect()
        };
        let fields = slow.fields.clone().unwrap_or_else(all);
        let kept: Vec<_> = fields.iter().map(|field| self.value(&field.at, &field.name)).collect();
        Some(SlowPlan {
            metric: metric.name.clone(),
            over: slow.over,
            above: action.scale.raw_bound(slow.over),
            value,
            scale: action.scale,
            refuses_negative: action.refuses_negative,
            when: action.when.clone(),
            kept: kept.into_iter().collect::<Option<_>>()?,
            route: Route::Kernel,
        })
    }
}
