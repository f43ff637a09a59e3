//! Slow events of metrics that are named elsewhere, and related events.

use super::Builder;
use crate::config::did_you_mean;
use crate::config::model::{Named, On, Point, Probe};

/// A probe whose events are kept with slow ones, and the argument that they share.
#[derive(Debug)]
pub(super) struct Related {
    pub point: Point,
    /// Its place is that where the probe is named.
    pub key: Named,
}

/// Where the values of a probe's events are read.
pub(super) fn point_of(on: &On) -> Point {
    match on {
        On::Usdt(point) => point.clone(),
        On::Function(name) => Point::Function(name.clone()),
        On::Span { to, .. } => to.clone(),
    }
}

impl Builder<'_> {
    /// Applies `slow_events` to metrics that have no setting of their own.
    pub(super) fn add_slow(&mut self, probe: &mut Probe) {
        for metric in &mut probe.metrics {
            let by_name = &self.settings.slow_events.metrics;
            if let Some(number) = by_name.iter().position(|(named, _)| named.name == metric.name) {
                self.slow_by_name.insert(number);
                metric.slow.get_or_insert_with(|| by_name[number].1.clone());
            }
        }
    }

    /// Reports metrics in `slow_events` that do not exist.
    pub(super) fn refuse_unknown_slow(&self) {
        for (number, (named, _)) in self.settings.slow_events.metrics.iter().enumerate() {
            if !self.slow_by_name.contains(&number) {
                let known = self.metrics.iter().map(|metric| metric.name.as_str());
                let near = did_you_mean(&named.name, known);
                let message = format!("no probe updates a metric \"{}\"{near}", named.name);
                self.diags.error(&named.at, message);
            }
        }
    }

    /// Records which of a target's probes are related to slow events, and reports those that it does not have.
    pub(super) fn relate<'p>(&mut self, probes: impl Iterator<Item = &'p Probe> + Clone) {
        self.related.clear();
        for slow in probes.clone().flat_map(|probe| &probe.metrics).filter_map(|metric| metric.slow.as_ref())
        {
            let Some(key) = &slow.key else { continue };
            for (at, point) in &slow.with {
                let known =
                    self.related.iter().any(|other| other.point == *point && other.key.name == key.name);
                if probes.clone().any(|probe| !probe.unread.on && point_of(&probe.on) == *point) {
                    let key = Named { at: at.clone(), name: key.name.clone() };
                    self.related.extend((!known).then(|| Related { point: point.clone(), key }));
                } else if probes.clone().all(|probe| !probe.unread.on) {
                    let name = match point {
                        Point::Usdt { provider, name } => format!("usdt:{provider}:{name}"),
                        Point::Function(name) => format!("function:{name}"),
                    };
                    self.diags.error(at, format!("the target has no probe {name}")).help(format!(
                        "add it to `probes`, with its arguments: {{ on: {name}, args: {{ {}: ... }} }}",
                        key.name
                    ));
                }
            }
        }
    }

    /// What events at this point have in common with slow ones, by name.
    pub(super) fn related_keys(&self, point: &Point) -> Vec<Named> {
        self.related
            .iter()
            .filter(|related| related.point == *point)
            .map(|related| related.key.clone())
            .collect()
    }
}
