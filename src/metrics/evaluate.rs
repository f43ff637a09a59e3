//! Metrics computed from events in user space, following `bpf/aggregate.bpf.h` in the kernel step by step.

use crate::abi::label_id;
use crate::config::model::{LabelPattern, Op, Operand};
use crate::decode::EventValue;
use crate::kinds::Update;
use crate::layout::ActionLayout;
use crate::metrics::show::show;
use crate::plan::{ActionPlan, ConditionPlan, LabelPlan, ProbePlan, SlowPlan, ValueKind};
use crate::store::UserStore;
use crate::symbols::UNKNOWN;

/// Labels of one metric that are distinguished; a metric with more variable ones than this is of no use.
const MAX_SET_LABELS: usize = 32;

/// The outcome of an event for one metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evaluation {
    /// The event was counted, or the conditions do not hold.
    Done,
    /// A number or a condition was unreadable.
    Unreadable,
    /// A negative amount for a counter, which can only grow.
    Negative,
}

/// Adds an event to one metric. `time` is the kernel's, `read` returns its values by index; `scratch` is reused for
/// each event.
pub fn evaluate<'a>(
    store: &UserStore,
    layout: &ActionLayout,
    probe: &ProbePlan,
    time: u64,
    read: &impl Fn(usize) -> EventValue<'a>,
    scratch: &mut String,
) -> Evaluation {
    let action = &probe.actions[layout.action];
    for condition in &action.when {
        match holds(condition, read(condition.value), &probe.values[condition.value].kind, scratch) {
            None => return Evaluation::Unreadable,
            Some(false) => return Evaluation::Done,
            Some(true) => {}
        }
    }
    let value = match action.value.map(read) {
        None => 1,
        Some(EventValue::Int(number)) => number,
        Some(EventValue::Large(number)) if layout.kind.shows_any_word() => number as i64,
        Some(EventValue::Large(_)) => return Evaluation::Negative,
        Some(EventValue::Text(_) | EventValue::Unreadable) => return Evaluation::Unreadable,
    };
    if action.refuses_negative && value < 0 {
        return Evaluation::Negative;
    }
    let slot = layout.slot + series(store, layout, action, probe, read, scratch) * layout.stride;
    let update = Update { value, has_value: action.value.is_some(), time, bounds: &layout.bounds };
    layout.kind.update(store, slot, &update);
    Evaluation::Done
}

/// Whether all these conditions hold; `None` if one of them is unreadable.
pub fn all_hold<'a>(
    conditions: &[ConditionPlan],
    probe: &ProbePlan,
    read: &impl Fn(usize) -> EventValue<'a>,
    scratch: &mut String,
) -> Option<bool> {
    for condition in conditions {
        let kind = &probe.values[condition.value].kind;
        if !holds(condition, read(condition.value), kind, scratch)? {
            return Some(false);
        }
    }
    Some(true)
}

/// The histograms for which the event is slow, and its value in each.
pub fn found_slow<'p, 'a>(
    probe: &'p ProbePlan,
    read: &impl Fn(usize) -> EventValue<'a>,
    scratch: &mut String,
) -> Vec<(&'p SlowPlan, i64)> {
    let slow = probe.slow.iter().filter_map(|slow| {
        let EventValue::Int(value) = read(slow.value) else { return None };
        let mut all = slow.when.iter();
        let meant = all.all(|condition| {
            let kind = &probe.values[condition.value].kind;
            holds(condition, read(condition.value), kind, scratch) == Some(true)
        });
        (meant && value > slow.above && (value >= 0 || !slow.refuses_negative)).then_some((slow, value))
    });
    slow.collect()
}

/// The value as a number, if it is one.
fn integer(kind: &ValueKind, value: EventValue<'_>) -> Option<i128> {
    match value {
        EventValue::Int(number) => Some(kind.integer(number)),
        EventValue::Large(number) => Some(number.into()),
        EventValue::Text(_) | EventValue::Unreadable => None,
    }
}

fn holds(
    condition: &ConditionPlan,
    value: EventValue<'_>,
    kind: &ValueKind,
    scratch: &mut String,
) -> Option<bool> {
    match (&condition.with, value) {
        (Operand::Int(with), EventValue::Int(_) | EventValue::Large(_)) => {
            let value = integer(kind, value)?;
            let with = *with;
            Some(match condition.op {
                Op::Eq | Op::StartsWith => value == with,
                Op::Ne => value != with,
                Op::Lt => value < with,
                Op::Le => value <= with,
                Op::Gt => value > with,
                Op::Ge => value >= with,
            })
        }
        (Operand::Str(with), EventValue::Text(text)) => {
            // A thread's name is padded with zeros, and text with a length ends at a NUL, as displayed.
            let mut text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            if kind.is_compared_as_displayed() {
                scratch.clear();
                show(kind, value, false, scratch);
                text = scratch.as_bytes();
            }
            // An unknown name neither equals a name nor differs from it.
            if kind.is_symbol() && text == UNKNOWN.as_bytes() {
                return None;
            }
            Some(match condition.op {
                Op::StartsWith => text.starts_with(with.as_bytes()),
                Op::Ne => text != with.as_bytes(),
                _ => text == with.as_bytes(),
            })
        }
        _ => None,
    }
}

fn series<'a>(
    store: &UserStore,
    layout: &ActionLayout,
    action: &ActionPlan,
    probe: &ProbePlan,
    read: &impl Fn(usize) -> EventValue<'a>,
    scratch: &mut String,
) -> u32 {
    if layout.labels.is_empty() {
        return 0;
    }
    let mut number = 0;
    let mut overflow = false;
    let mut ids = [0u8; 8 * MAX_SET_LABELS];
    for (n, label) in layout.labels.iter().enumerate() {
        let LabelPlan::From { value, mapping, .. } = &action.labels[label.label] else { continue };
        let kind = &probe.values[*value].kind;
        let current = read(*value);
        let id = match current {
            EventValue::Unreadable => label_id::ID_UNREADABLE.0,
            current => {
                let found = fitting(mapping, kind, current, scratch);
                match (found, label.interner) {
                    (Some(found), _) => label_id::ID_PATTERN.0 + found as u32,
                    (None, None) => label_id::ID_PATTERN.0 + mapping.len() as u32,
                    (None, Some(interner)) => {
                        let number = match current {
                            EventValue::Int(number) => store.number(interner, &number.to_le_bytes()),
                            EventValue::Large(number) => store.number(interner, &number.to_le_bytes()),
                            // Bytes after a NUL are not shown, and do not make a different value.
                            EventValue::Text(text) if kind.is_characters() => store
                                .number(interner, text.split(|byte| *byte == 0).next().unwrap_or_default()),
                            EventValue::Text(text) => store.number(interner, text),
                            EventValue::Unreadable => None,
                        };
                        number.map_or(label_id::ID_OTHER.0, |number| {
                            label_id::ID_PATTERN.0 + mapping.len() as u32 + number
                        })
                    }
                }
            }
        };
        overflow |= id == label_id::ID_OTHER.0;
        number = id.wrapping_mul(label.multiplier).wrapping_add(number);
        if let Some(at) = ids.get_mut(8 * n..8 * n + 8) {
            at.copy_from_slice(&u64::from(id).to_le_bytes());
        }
    }
    let (number, overflow) = match layout.label_sets {
        None => (number, overflow),
        // Beyond the limit of label sets, everything is "other", which is series 0.
        Some(sets) => match store.number(sets, &ids[..8 * layout.labels.len().min(MAX_SET_LABELS)]) {
            Some(number) => (number + 1, overflow),
            None => (0, true),
        },
    };
    if overflow {
        store.count_overflow(layout.probe);
    }
    number
}

/// The index of the first pattern that matches the value.
pub fn fitting(
    mapping: &[(LabelPattern, String)],
    kind: &ValueKind,
    current: EventValue<'_>,
    scratch: &mut String,
) -> Option<usize> {
    mapping.iter().position(|(pattern, _)| {
        scratch.clear();
        match (pattern, current) {
            (LabelPattern::Int(wanted), current) => integer(kind, current) == Some(*wanted),
            _ => fits(pattern, |to| show(kind, current, false, to), scratch),
        }
    })
}

fn fits(pattern: &LabelPattern, show: impl FnOnce(&mut String), scratch: &mut String) -> bool {
    show(scratch);
    match pattern {
        LabelPattern::Exact(wanted) => scratch == wanted,
        LabelPattern::Prefix(wanted) => scratch.starts_with(wanted.as_str()),
        LabelPattern::Glob(glob) => crate::glob::matches(glob, scratch),
        LabelPattern::Int(_) => false,
    }
}
