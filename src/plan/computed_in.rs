//! Where each metric is computed: in the kernel wherever possible, because that neither copies data nor wakes anyone;
//! in user space, from events, where it is not.

use super::{
    ActionPlan, ComputedIn, ConditionPlan, LabelPlan, MetricPlan, ProbePlan, ValueKind, ValuePlan,
    ValueSource,
};
use crate::abi::{
    LONG_TEXTS, MAX_ACTIONS, MAX_BYTES, MAX_CONDITIONS, MAX_LABELS, MAX_PATTERNS, MAX_VALUES, PATTERN_WORDS,
    TEXT_WORDS,
};
use crate::config::diagnose::Diagnostics;
use crate::config::model::{ArgKind, LabelPattern, MetricKind, Operand, Point, Settings, Unit};
use crate::kinds;

/// The longest text that is compared with patterns in the kernel. One byte less than its words, so that a longer text,
/// which is truncated there, is not mistaken for it; and one for the NUL.
const MAX_PATTERN: usize = 8 * PATTERN_WORDS - 2;

/// The longest text that can be a label value in the kernel, including its NUL.
const MAX_TEXT: usize = 8 * TEXT_WORDS;

/// Decides for all metrics of a probe, and whether its hits must be sent to user space.
pub(super) fn decide(
    probe: &mut ProbePlan,
    metrics: &[MetricPlan],
    settings: &Settings,
    all_to_ring: bool,
    diags: &Diagnostics,
) {
    let reason = probe.slow.iter().find_map(|slow| refuse_conditions(&slow.when, probe));
    let reason = if all_to_ring { Some("asked for".to_string()) } else { reason };
    // Each slow metric takes a place; if user space decides about them, none does.
    let most = MAX_ACTIONS - if reason.is_none() { probe.slow.len().min(MAX_ACTIONS) } else { 0 };
    for slow in &mut probe.slow {
        slow.computed_in = reason.clone().map_or(ComputedIn::Kernel, ComputedIn::Ring);
    }
    let mut in_kernel = 0;
    for n in 0..probe.actions.len() {
        let action = &probe.actions[n];
        let kind = &metrics[action.metric].kind;
        let computed_in = if all_to_ring {
            ComputedIn::Ring("asked for".to_string())
        } else if counts_hits(action, kind) {
            ComputedIn::Hits
        } else {
            match refuse(action, probe) {
                Some(reason) => ComputedIn::Ring(reason),
                None if in_kernel == most => {
                    ComputedIn::Ring(format!("the kernel computes at most {most} metrics of this probe"))
                }
                None => {
                    in_kernel += 1;
                    ComputedIn::Kernel
                }
            }
        };
        let action = &mut probe.actions[n];
        for label in &mut action.labels {
            if let LabelPlan::From { limit, .. } = label
                && *limit == u32::MAX
            {
                *limit = settings.limits.label_values;
            }
        }
        action.computed_in = computed_in;
    }
    let ring = probe.actions.iter().find_map(|action| match &action.computed_in {
        ComputedIn::Ring(reason) => Some(reason.clone()),
        _ => None,
    });
    let ring = ring.or_else(|| reason.filter(|_| !probe.slow.is_empty()));
    let ring = ring.or_else(|| probe.related.as_ref().map(|_| "kept with slow events".to_string()));
    let ring =
        ring.or_else(|| (!probe.bans.is_empty()).then(|| "`ban` is decided in user space".to_string()));
    let late = (0..probe.actions.len()).any(|n| {
        let action = &probe.actions[n];
        matches!(action.computed_in, ComputedIn::Ring(_))
            && kinds::of(&metrics[action.metric].kind).needs_time()
    });
    if late || !probe.slow.is_empty() || probe.related.is_some() || !probe.bans.is_empty() {
        // The latest value is the latest by the kernel's clock, whether it came from the kernel or from an event.
        probe.values.push(unnamed(probe, ValueSource::Time));
    }
    let has_stack = probe.slow.iter().any(|slow| slow.stack);
    if has_stack {
        if matches!(probe.point, Point::Function(_)) {
            probe.values.push(unnamed(probe, ValueSource::ReturnAddress));
        }
        // The last text, because it is the longest.
        probe.values.push(ValuePlan { kind: ValueKind::Stack, ..unnamed(probe, ValueSource::Stack) });
    }
    if has_stack || probe.values.iter().any(|value| value.kind.is_symbol()) {
        // An address has a meaning only in its process.
        probe.values.push(unnamed(probe, ValueSource::Pid));
    }
    if probe.values.len() > MAX_VALUES {
        let message =
            format!("{} values are needed; the limit is {MAX_VALUES} per probe", probe.values.len());
        let help = if probe.slow.is_empty() {
            "split the metrics over two entries of this probe"
        } else {
            "name the values to keep, `slow: { over: ..., fields: [...] }`, or split the metrics over two entries of this probe"
        };
        diags.error(&probe.at, message).help(help);
    }
    if let [first, second, ..] = &probe.slow[..]
        && probe.slow.iter().any(|slow| slow.worst.is_some())
    {
        diags
            .error(
                &probe.at,
                format!(
                    "{} and {} both have `slow`, one of them with `worst`: an event is stored for one metric only",
                    first.metric, second.metric
                ),
            )
            .help("write the two metrics in two entries of this probe");
    }
    if probe.slow.len() > MAX_ACTIONS {
        diags.error(
            &probe.at,
            format!("{} metrics with `slow`; the limit is {MAX_ACTIONS}", probe.slow.len()),
        );
    }
    probe.emit = ring.or_else(|| settings.verbose.then(|| "`verbose` logs every event".to_string()));
    if probe.emit.is_some() || !probe.slow.is_empty() {
        refuse_long_events(probe, diags);
    }
    for value in &probe.values {
        let bytes = value.kind.max_bytes() as usize;
        if bytes > MAX_BYTES {
            diags.error(&value.at, format!("{bytes} bytes; the limit is {MAX_BYTES}"));
        }
    }
}

/// Reports texts that are too long. In an event, a text starts only where the longest possible one would fit.
fn refuse_long_events(probe: &ProbePlan, diags: &Diagnostics) {
    let texts = probe.values.iter().map(|value| value.kind.max_bytes() as usize).filter(|bytes| *bytes > 0);
    let before_last: usize = texts.rev().skip(1).sum();
    if before_last > LONG_TEXTS - MAX_BYTES {
        let room = LONG_TEXTS - MAX_BYTES;
        diags
            .error(
                &probe.at,
                format!(
                    "the texts except the last can have {before_last} bytes; the limit per event is {room}"
                ),
            )
            .help("lower their `max`, or split the metrics over two entries of this probe");
    }
}

/// A value that no metric names.
fn unnamed(probe: &ProbePlan, source: ValueSource) -> ValuePlan {
    let kind = ValueKind::Arg(ArgKind::Int(None));
    ValuePlan {
        at: probe.at.clone(),
        name: format!("{source:?}").to_lowercase(),
        source,
        kind,
        unit: Unit::None,
    }
}

/// Whether it is a counter without conditions and variable labels, which is the number of hits and counted anyway.
fn counts_hits(action: &ActionPlan, kind: &MetricKind) -> bool {
    kinds::of(kind).counts_hits()
        && action.value.is_none()
        && action.when.is_empty()
        && action.labels.iter().all(|label| matches!(label, LabelPlan::Const(_)))
}

/// Why the kernel cannot compute this metric, or `None` if it can.
fn refuse(action: &ActionPlan, probe: &ProbePlan) -> Option<String> {
    if let Some(reason) = refuse_conditions(&action.when, probe) {
        return Some(reason);
    }
    let variable: Vec<_> =
        action.labels.iter().filter(|label| matches!(label, LabelPlan::From { .. })).collect();
    if variable.len() > MAX_LABELS {
        return Some(format!("more than {MAX_LABELS} variable labels"));
    }
    variable.into_iter().find_map(|label| match label {
        LabelPlan::Const(_) => None,
        LabelPlan::From { value, mapping, default, .. } => {
            let value = &probe.values[*value];
            refuse_label(&value.name, &value.kind, mapping, default.is_none())
        }
    })
}

fn refuse_conditions(when: &[ConditionPlan], probe: &ProbePlan) -> Option<String> {
    if when.len() > MAX_CONDITIONS {
        return Some(format!("more than {MAX_CONDITIONS} conditions"));
    }
    for condition in when {
        let value = &probe.values[condition.value];
        if value.kind.is_compared_as_displayed() {
            return Some(format!("{}: compared by its text", value.name));
        }
        if let Operand::Str(text) = &condition.with
            && text.len() > MAX_PATTERN
        {
            return Some(format!("\"{text}\" is longer than {MAX_PATTERN} bytes"));
        }
    }
    None
}

fn refuse_label(
    name: &str,
    kind: &ValueKind,
    mapping: &[(LabelPattern, String)],
    raw: bool,
) -> Option<String> {
    if kind.is_symbol() {
        return Some(format!("{name}: symbol names are only known in user space"));
    }
    if mapping.len() > MAX_PATTERNS {
        return Some(format!("{name}: more than {MAX_PATTERNS} patterns"));
    }
    for (pattern, _) in mapping {
        match pattern {
            LabelPattern::Glob(glob) => {
                return Some(format!("{name}: the glob \"{glob}\" is matched in user space"));
            }
            LabelPattern::Exact(text) | LabelPattern::Prefix(text) if text.len() > MAX_PATTERN => {
                return Some(format!("{name}: \"{text}\" is longer than {MAX_PATTERN} bytes"));
            }
            _ => {}
        }
    }
    if kind.is_compared_as_displayed() && !mapping.is_empty() {
        return Some(format!("{name}: patterns are matched against its text"));
    }
    if raw && kind.max_bytes() as usize > MAX_TEXT {
        return Some(format!("{name}: text longer than {MAX_TEXT} bytes"));
    }
    None
}
