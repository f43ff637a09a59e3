//! A plan as it is saved for an exporter that continues from it.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MetricPlan, Plan, ProbePlan, TargetPlan};
use crate::config::model::{Limits, Settings};

/// A plan with indices out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InconsistentPlan;

impl fmt::Display for InconsistentPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its numbers are inconsistent")
    }
}

impl Error for InconsistentPlan {}

/// The parts of a plan that decide what programs and tables mean, with the settings that determine their sizes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedPlan {
    limits: Limits,
    verbose: bool,
    targets: Vec<TargetPlan>,
    probes: Vec<ProbePlan>,
    metrics: Vec<MetricPlan>,
    spans: u32,
}

impl SavedPlan {
    pub fn of(plan: &Plan) -> Self {
        Self {
            limits: plan.settings.limits.clone(),
            verbose: plan.settings.verbose,
            targets: plan.targets.clone(),
            probes: plan.probes.clone(),
            metrics: plan.metrics.clone(),
            spans: plan.spans,
        }
    }

    /// The name of a setting that was different and cannot change while the tables stay, if any.
    pub fn differs_from(&self, settings: &Settings) -> Option<&'static str> {
        let (before, now) = (&self.limits, &settings.limits);
        [
            ("ring.size", before.ring_bytes == now.ring_bytes),
            ("limits.sites", before.sites == now.sites),
            ("limits.starts", before.starts == now.starts),
            ("verbose", self.verbose == settings.verbose),
        ]
        .into_iter()
        .find_map(|(name, is_same)| (!is_same).then_some(name))
    }

    /// Returns the plan, with the current settings.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn plan(&self, settings: &Settings) -> Result<Plan, InconsistentPlan> {
        let is_sound = self.probes.iter().all(|probe| {
            probe.target < self.targets.len()
                && probe.span.is_none_or(|span| span.number < self.spans)
                && probe.actions.iter().all(|action| action.metric < self.metrics.len())
        }) && self
            .targets
            .iter()
            .flat_map(|target| &target.probes)
            .all(|probe| *probe < self.probes.len());
        if !is_sound {
            return Err(InconsistentPlan);
        }
        Ok(Plan {
            settings: settings.clone(),
            targets: self.targets.clone(),
            probes: self.probes.clone(),
            metrics: self.metrics.clone(),
            spans: self.spans,
            network: None,
            warnings: Vec::new(),
        })
    }
}
