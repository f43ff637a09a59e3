//! Determines which series of a metric an event belongs to, from the event alone.

use super::evaluate::fitting;
use super::show::{UNREADABLE, show};
use crate::decode::EventValue;
use crate::exposition::push_label;
use crate::plan::{ActionPlan, HIDDEN, LabelPlan, MetricPlan, ProbePlan, ValueKind};

/// The series' labels, as the registry has them; `None` if they depend on more than the event. If a label has
/// overflowed, the event was counted in another series than this one.
pub fn labels_of<'a>(
    metric: &MetricPlan,
    action: &ActionPlan,
    probe: &ProbePlan,
    read: &dyn Fn(usize) -> EventValue<'a>,
) -> Option<String> {
    let (mut labels, mut text) = (String::new(), String::new());
    for (name, label) in metric.labels.iter().zip(&action.labels) {
        let (value, mapping, default) = match label {
            LabelPlan::Const(value) => {
                push_label(name, value, &mut labels);
                continue;
            }
            LabelPlan::From { .. } if name == HIDDEN => continue,
            LabelPlan::From { value, mapping, default, .. } => (*value, mapping, default),
        };
        let kind = &probe.values.get(value)?.kind;
        let current = read(value);
        let found = fitting(mapping, kind, current, &mut text).map(|at| &mapping[at].1);
        let shown = match (current, found.or(default.as_ref())) {
            (EventValue::Unreadable, _) => UNREADABLE,
            (_, Some(display)) => display,
            (_, None) if kind.is_only_shown() || matches!(kind, ValueKind::Cgroup(_)) => return None,
            (current, None) => {
                text.clear();
                show(kind, current, false, &mut text);
                &text
            }
        };
        push_label(name, shown, &mut labels);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, read_bytes};
    use crate::plan::plan_draft;

    #[test]
    fn labels_that_need_a_name_lookup_are_omitted() {
        let of = |label: &str| {
            let text = format!(
                "targets:\n- name: a\n  binary: x\n  probes:\n  - function: f\n    metrics:\n    - {{ histogram: h, value: pid, \
                 buckets: [1], labels: {{ l: {label} }} }}\n"
            );
            let draft = read_bytes("c.yaml", text.into(), &Overrides::default(), &Environment::new());
            let (_, plan) = plan_draft(draft).unwrap_or_else(|errors| panic!("{errors}"));
            let probe = &plan.probes[0];
            labels_of(&plan.metrics[0], &probe.actions[0], probe, &|_| EventValue::Int(7))
        };
        assert_eq!(of("tid").as_deref(), Some("node=\"localhost\",l=\"7\""));
        for name in ["exe", "cmdline", "function", "container"] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
