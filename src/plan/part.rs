//! Parts of a plan: what two plans have in common, and a plan of a subset of the probes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Plan, ProbePlan, TargetPlan};
use crate::config::model::MetricKind;
use crate::config::place::Place;
use crate::selectors::Selector;

/// Everything about a probe that decides what is counted: without its places in the configuration, and with indices
/// resolved.
#[derive(PartialEq)]
struct ProbeKey<'a> {
    target: (&'a str, &'a Selector),
    probe: ProbePlan,
    metrics: Vec<(&'a str, &'a MetricKind, &'a [String])>,
}

/// Maximum number of units of a plan. Each has links of its own in a file, and when the exporter is killed the kernel
/// closes links one after the other, each in about 70 ms.
const MAX_UNITS: usize = 16;

/// The same where shedding of expensive probes is configured explicitly: joined units are shed together.
const MAX_UNITS_TO_SHED: usize = 64;

impl Plan {
    /// Joins units if there are too many. By name, so that a new entry leaves the other units unchanged.
    pub(super) fn bound_units(&mut self) {
        let units = self.units();
        let is_asked_for = self.settings.limits.overhead.is_some_and(|overhead| !overhead.is_default);
        let most = if is_asked_for { MAX_UNITS_TO_SHED } else { MAX_UNITS };
        if units.len() <= most {
            return;
        }
        for probes in units.into_values() {
            let first = &self.probes[probes[0]];
            let mut hasher = DefaultHasher::new();
            (&self.targets[first.target].name, &first.name).hash(&mut hasher);
            // Units that are never shed are not joined with others.
            let unit = 2 * (hasher.finish() % (most as u64 / 2)) as usize + usize::from(first.keep);
            probes.into_iter().for_each(|probe| self.probes[probe].unit = unit);
        }
    }

    /// For each probe of this plan, the same probe in the other one. Either all probes of a unit have a counterpart, or
    /// none.
    pub fn same_in(&self, other: &Plan) -> Vec<Option<usize>> {
        let mut unchanged = vec![None; self.probes.len()];
        let mut left: Vec<(Vec<usize>, Vec<ProbeKey<'_>>)> =
            other.units().into_values().map(|unit| (unit.clone(), other.probe_keys(&unit))).collect();
        for unit in self.units().into_values() {
            let here = self.probe_keys(&unit);
            if let Some(at) = left.iter().position(|(_, there)| *there == here) {
                for (probe, twin) in unit.iter().zip(left.swap_remove(at).0) {
                    unchanged[*probe] = Some(twin);
                }
            }
        }
        unchanged
    }

    /// A plan of only these probes, in this order. It has all metrics.
    #[must_use]
    pub fn part(&self, probes: &[usize]) -> Plan {
        let mut copy = Plan {
            settings: self.settings.clone(),
            targets: Vec::new(),
            probes: Vec::new(),
            metrics: self.metrics.clone(),
            spans: 0,
            network: None,
            warnings: Vec::new(),
        };
        let (mut targets, mut spans) = (BTreeMap::new(), BTreeMap::new());
        for number in probes {
            let mut probe = self.probes[*number].clone();
            let target = *targets.entry(probe.target).or_insert_with(|| {
                copy.targets.push(TargetPlan { probes: Vec::new(), ..self.targets[probe.target].clone() });
                copy.targets.len() - 1
            });
            renumber_span(&mut probe, &mut spans);
            probe.target = target;
            copy.targets[target].probes.push(copy.probes.len());
            copy.probes.push(probe);
        }
        copy.spans = spans.len() as u32;
        copy
    }

    fn units(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut units: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (number, probe) in self.probes.iter().enumerate() {
            units.entry(probe.unit).or_default().push(number);
        }
        units
    }

    fn probe_keys(&self, unit: &[usize]) -> Vec<ProbeKey<'_>> {
        let mut spans = BTreeMap::new();
        unit.iter().map(|number| self.probe_key(*number, &mut spans)).collect()
    }

    fn probe_key(&self, number: usize, spans: &mut BTreeMap<u32, u32>) -> ProbeKey<'_> {
        let mut probe = self.probes[number].clone();
        let target = &self.targets[probe.target];
        let metrics = probe.actions.iter().map(|action| &self.metrics[action.metric]);
        let metrics =
            metrics.map(|metric| (metric.name.as_str(), &metric.kind, &metric.labels[..])).collect();
        (probe.at, probe.target, probe.unit, probe.keep) = (Place::none(), 0, 0, false);
        renumber_span(&mut probe, spans);
        probe.values.iter_mut().for_each(|value| value.at = Place::none());
        for action in &mut probe.actions {
            (action.at, action.metric) = (Place::none(), 0);
        }
        ProbeKey { target: (&target.name, &target.selector), probe, metrics }
    }
}

/// Numbers spans in the order in which they are encountered.
fn renumber_span(probe: &mut ProbePlan, spans: &mut BTreeMap<u32, u32>) {
    if let Some(span) = &mut probe.span {
        let next = spans.len() as u32;
        span.number = *spans.entry(span.number).or_insert(next);
    }
}

#[cfg(test)]
mod tests {
    use super::MAX_UNITS;
    use crate::config::{Environment, Overrides, load_bytes};
    use crate::plan::{Plan, plan};

    fn planned(probes: &str) -> Plan {
        let yaml = format!("targets:\n  - name: t\n    binary: /bin/true\n    probes:\n{probes}");
        let loaded = load_bytes("a.yaml", yaml.into(), &Overrides::default(), &Environment::new()).unwrap();
        plan(loaded.config, false).unwrap()
    }

    const COUNTED: &str = "      - on: usdt:p:a\n        metrics: [counter: a_total]\n";
    const TIMED: &str = "      - function: f\n        metrics: [{ histogram: f_seconds, value: duration }]\n";
    const SLOW: &str = "      - function: g\n        metrics: [{ histogram: g_seconds, value: duration, buckets: [1, 2] }]\n";

    #[test]
    fn probe_identity_is_independent_of_position() {
        let (before, after) =
            (planned(&[COUNTED, TIMED].concat()), planned(&[SLOW, TIMED, COUNTED].concat()));
        // A function's duration takes two probes.
        assert_eq!(after.same_in(&before), [None, None, Some(1), Some(2), Some(0)]);
        assert_eq!(before.same_in(&before), [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn different_counting_makes_a_different_probe() {
        let before = planned(COUNTED);
        for (from, to) in [
            ("p:a", "p:b"),
            ("a_total", "b_total"),
            ("counter: a_total", "{ counter: a_total, when: pid > 1 }"),
            ("counter: a_total", "{ counter: a_total, labels: { comm: comm } }"),
        ] {
            let after = planned(&COUNTED.replace(from, to));
            assert_eq!(after.same_in(&before), [None], "{to}");
        }
        let helped =
            planned(&COUNTED.replace("counter: a_total", "{ counter: a_total, help: Other words. }"));
        assert_eq!(helped.same_in(&before), [Some(0)]);
    }

    #[test]
    fn part_has_its_own_numbering() {
        let whole = planned(&[COUNTED, TIMED, SLOW].concat());
        let part = whole.part(&[3, 4]);
        assert_eq!((part.probes.len(), part.spans, part.targets[0].probes.len()), (2, 1, 2));
        assert!(part.probes.iter().all(|probe| probe.span.is_some_and(|span| span.number == 0)));
        assert_eq!(part.same_in(&whole), [Some(3), Some(4)]);
    }

    #[test]
    fn change_affects_only_a_few_of_many_entries() {
        let entry = |of: usize| {
            format!(
                "      - function: f{of}\n        metrics: [{{ histogram: f{of}_seconds, value: duration }}]\n"
            )
        };
        let before = planned(&(1..200).map(entry).collect::<String>());
        assert!(before.units().len() <= MAX_UNITS);
        // A new one before all others, so that all others have new indices.
        let after = planned(&(0..200).map(entry).collect::<String>());
        let unchanged = after.same_in(&before);
        let unit = after.probes[0].unit;
        for (probe, twin) in after.probes.iter().zip(&unchanged) {
            assert_eq!(twin.is_none(), probe.unit == unit, "{}", probe.name);
        }
        let (changed, all) = (unchanged.iter().filter(|twin| twin.is_none()).count(), unchanged.len());
        assert!(changed < all / 4, "{changed} of {all}");
    }
}
