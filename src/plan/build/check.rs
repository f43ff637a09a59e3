//! Errors in probes and metrics that are each valid on their own.

use std::collections::hash_map::Entry;

use super::Builder;
use crate::config::model::{Arg, ArgOf, Metric, Probe, Target};
use crate::config::place::Place;
use crate::kinds;
use crate::plan::ValueKind;
use crate::plan::scope::mentioned;

impl Builder<'_> {
    /// Reports metrics that are computed at the return of a probe that has none.
    pub(super) fn refuse_at_return(&self, probe: &Probe) {
        for metric in probe.metrics.iter().filter(|metric| metric.at_return) {
            self.diags.error(&metric.at, "`at: return` is not valid here: only functions return".to_string());
        }
    }

    /// Reports a key that cannot tell the starts of a span apart. Without an argument, the key is the thread.
    pub(super) fn refuse_useless_key(&self, span: &Place, key: Option<&Arg>, one_probe: bool) {
        if let Some(key) = key.filter(|key| ValueKind::Arg(key.kind.clone()).is_text()) {
            self.diags
                .error(
                    &key.at,
                    format!(
                        "\"{}\" cannot be the span's key: starts and ends are paired by numbers",
                        key.name
                    ),
                )
                .help(
                    "use an argument that is a number at both ends, such as an id or the request's address",
                );
        }
        let is_alike = key.is_none_or(|key| key.to_index.is_none_or(|index| ArgOf::Call(index) == key.of));
        if one_probe && is_alike {
            self.diags
                .error(span, "the span would begin and end at the same hit: `from` and `to` are one probe".to_string())
                .help("use two different probes, or a key that is a different argument at the end: { index: 0, to_index: 1 }");
        }
    }

    /// Reports the same metric repeated in the same probe of a target, which would count each hit twice. Repeating a
    /// metric with other conditions, values or labels is intended.
    pub(super) fn refuse_repeated(&mut self, target: usize, probe: &Probe) {
        for metric in probe.metrics.iter().filter(|metric| !metric.unread && !probe.unread.on) {
            let arg = |name: &str| {
                let arg = probe.args.iter().find(|arg| arg.name == name);
                arg.map(|arg| (arg.of, arg.to_index, arg.offset, &arg.kind, arg.unit))
            };
            let names: Vec<_> = mentioned(metric).map(|name| (arg(name), name)).collect();
            let when: Vec<_> = metric.when.iter().map(|one| (one.op, &one.with)).collect();
            let labels: Vec<_> = metric
                .labels
                .iter()
                .map(|one| (&one.name, &one.value, &one.mapping, &one.default, one.limit))
                .collect();
            let all = format!(
                "{:?}",
                (&probe.on, &metric.name, metric.scale, metric.lowers, metric.at_return, names, when, labels)
            );
            match self.described.entry((target, all)) {
                // The same metric in two profiles is handled elsewhere.
                Entry::Occupied(first) if self.profile.is_none() => {
                    let message = format!(
                        "{} is already updated the same way at {}: each hit would count twice",
                        metric.name,
                        first.get()
                    );
                    self.diags.error(&metric.at, message).help("remove one of them");
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(vacant) => {
                    vacant.insert(metric.at.clone());
                }
            }
        }
    }

    /// Reports invalid label names of the metric.
    pub(super) fn check(&self, target: &Target, metric: &Metric) {
        for label in &metric.labels {
            if target.labels.iter().any(|(name, _)| *name == label.name) {
                let message = format!("label \"{}\" is already a label of the target", label.name);
                self.diags.error(&label.at, message);
            }
        }
    }

    /// Reports name clashes: a histogram has several names in Prometheus.
    pub(super) fn refuse_clashing_names(&self) {
        for (metric, at) in self.metrics.iter().zip(&self.places) {
            for suffix in kinds::of(&metric.kind).exposed_as().suffixes() {
                if let Some(&other) = self.names.get(&format!("{}{suffix}", metric.name)) {
                    self.diags.error(
                        &self.places[other],
                        format!(
                            "{} is a series name of the histogram {} at {at}",
                            self.metrics[other].name, metric.name
                        ),
                    );
                }
            }
        }
    }
}
