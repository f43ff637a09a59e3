//! Metrics that several probes or targets feed.

use super::Builder;
use crate::config::model::{Metric, Target};
use crate::plan::{ActionPlan, HIDDEN, LabelPlan, MetricPlan};

impl Builder<'_> {
    /// Returns the metric's index. Its first appearance describes it; later ones must agree, and have their labels
    /// reordered accordingly. The labels that every series has come first.
    pub(super) fn metric(&mut self, target: &Target, metric: &Metric, action: &mut ActionPlan) -> usize {
        let mut labels = vec![("node".to_string(), LabelPlan::Const(self.settings.node_name.clone()))];
        labels.extend(
            target.labels.iter().map(|(name, value)| (name.clone(), LabelPlan::Const(value.clone()))),
        );
        let mut plans = std::mem::take(&mut action.labels).into_iter();
        for (label, plan) in metric.labels.iter().zip(plans.by_ref()) {
            labels.push((label.name.clone(), plan));
        }
        labels.extend(plans.map(|plan| (HIDDEN.to_string(), plan)));
        let Some(&known) = self.names.get(&metric.name) else {
            let (names, plans) = labels.into_iter().unzip();
            action.labels = plans;
            self.metrics.push(MetricPlan {
                name: metric.name.clone(),
                help: metric.help.clone(),
                kind: metric.kind.clone(),
                native: metric.native,
                labels: names,
            });
            self.places.push(metric.at.clone());
            self.names.insert(metric.name.clone(), self.metrics.len() - 1);
            return self.metrics.len() - 1;
        };
        let first = &mut self.metrics[known];
        if first.help.is_empty() {
            first.help.clone_from(&metric.help);
        }
        let first = &self.metrics[known];
        if (&first.kind, first.native) != (&metric.kind, metric.native) {
            self.diags.error(
                &metric.at,
                format!(
                    "{} is defined differently at {}: all probes that update a metric must define the same \
                     type and buckets",
                    metric.name, self.places[known]
                ),
            );
        }
        let mut sorted = Vec::new();
        for name in &first.labels {
            if let Some(at) = labels.iter().position(|(label, _)| label == name) {
                sorted.push(labels.swap_remove(at).1);
            }
        }
        if sorted.len() != first.labels.len() || !labels.is_empty() {
            self.diags.error(
                &metric.at,
                format!(
                    "{} has different labels at {}: {}",
                    metric.name,
                    self.places[known],
                    first.displayed_labels().collect::<Vec<_>>().join(", ")
                ),
            );
        }
        action.labels = sorted;
        known
    }

    /// Two targets that feed one metric must not be added up by accident: unless their own labels differ, each series
    /// gets a label with its target.
    pub(super) fn distinguish_targets(&mut self, targets: &[Target]) {
        for metric in 0..self.metrics.len() {
            let mut feeding: Vec<usize> = Vec::new();
            for probe in &self.probes {
                if probe.actions.iter().any(|action| action.metric == metric)
                    && !feeding.contains(&probe.target)
                {
                    feeding.push(probe.target);
                }
            }
            let alike = feeding
                .iter()
                .enumerate()
                .any(|(n, a)| feeding[n + 1..].iter().any(|b| same_labels(&targets[*a], &targets[*b])));
            if !alike || self.metrics[metric].labels.iter().any(|label| label == "target") {
                continue;
            }
            self.metrics[metric].labels.push("target".to_string());
            for probe in &mut self.probes {
                let name = &targets[probe.target].name;
                for action in probe.actions.iter_mut().filter(|action| action.metric == metric) {
                    action.labels.push(LabelPlan::Const(name.clone()));
                }
            }
        }
    }
}

/// Whether the targets' own labels are equal, in any order.
fn same_labels(a: &Target, b: &Target) -> bool {
    a.labels.len() == b.labels.len() && a.labels.iter().all(|label| b.labels.contains(label))
}
