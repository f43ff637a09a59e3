//! To which series of a metric an event belongs, by the event alone.

use super::evaluate::fitting;
use super::show::{UNREADABLE, show};
use crate::decode::EventValue;
use crate::exposition::push_label;
use crate::plan::{ActionPlan, HIDDEN, LabelPlan, MetricPlan, ProbePlan, ValueKind};

/// The series' labels, as the registry has them; `None` if they depend on more than the event. Of a label whose values are too many,
/// the series is another one, which has no such event then.
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
            (_, None) if matches!(kind, ValueKind::Function | ValueKind::Cgroup(_)) => return None,
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
