//! The labels of a series, by its number.

use super::facts::ProbeFacts;
use super::show::{OTHER, UNREADABLE, show};
use crate::abi::{PROCESS_TEXT, label_id};
use crate::cgroups;
use crate::config::model::ArgKind;
use crate::decode::EventValue;
use crate::exposition::push_label;
use crate::kernel::KernelStore;
use crate::layout::ActionLayout;
use crate::plan::{HIDDEN, LabelPlan, Plan, ProbePlan, ValueKind};
use crate::store::Store;

/// Buffers that are reused for each series.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub labels: String,
    text: String,
    pub name: Vec<u8>,
    pub ids: Vec<u32>,
}

pub(super) fn const_labels(probe: &ProbePlan, action: usize, plan: &Plan, to: &mut String) {
    to.clear();
    let action = &probe.actions[action];
    for (name, label) in plan.metrics[action.metric].labels.iter().zip(&action.labels) {
        if let LabelPlan::Const(value) = label {
            push_label(name, value, to);
        }
    }
}

/// Writes the labels of series `number`; returns false if a name is not known yet. `texts` has the texts of processes.
#[allow(clippy::too_many_arguments)]
pub(super) fn labels(
    layout: &ActionLayout,
    number: u32,
    probe: &ProbePlan,
    action: usize,
    plan: &Plan,
    store: &dyn Store,
    texts: &KernelStore,
    facts: &ProbeFacts,
    scratch: &mut Scratch,
) -> bool {
    if !ids(layout, number, store, scratch) {
        return false;
    }
    scratch.labels.clear();
    let action = &probe.actions[action];
    for (n, (name, label)) in plan.metrics[action.metric].labels.iter().zip(&action.labels).enumerate() {
        let (value, mapping, default) = match label {
            LabelPlan::Const(value) => {
                push_label(name, value, &mut scratch.labels);
                continue;
            }
            LabelPlan::From { .. } if name == HIDDEN => continue,
            LabelPlan::From { value, mapping, default, .. } => (*value, mapping, default),
        };
        let Some(at) = layout.labels.iter().position(|label| label.label == n) else { return false };
        let id = scratch.ids.get(at).copied().unwrap_or(label_id::ID_OTHER.0);
        let text = match id {
            id if id == label_id::ID_OTHER.0 => OTHER,
            id if id == label_id::ID_UNREADABLE.0 => UNREADABLE,
            id => {
                let past = (id - label_id::ID_PATTERN.0) as usize;
                match (mapping.get(past), default, layout.labels[at].interner) {
                    (Some((_, display)), ..) => display,
                    (None, Some(default), _) => default,
                    (None, None, Some(interner)) => {
                        let number = (past - mapping.len()) as u32;
                        if !store.name(interner, number, &mut scratch.name) {
                            return false;
                        }
                        let Scratch { name, text, .. } = scratch;
                        match &probe.values[value].kind {
                            ValueKind::ProcessText => show_process_text(integer(name) as u64, texts, text),
                            kind => show_name(kind, name, value, facts, text),
                        }
                        &scratch.text
                    }
                    (None, None, None) => OTHER,
                }
            }
        };
        push_label(name, text, &mut scratch.labels);
    }
    true
}

/// Puts the ids of the labels of series `number` into `scratch.ids`; returns false if they are not known yet.
pub(super) fn ids(layout: &ActionLayout, number: u32, store: &dyn Store, scratch: &mut Scratch) -> bool {
    scratch.ids.clear();
    match layout.label_sets {
        None => scratch.ids.extend(layout.labels.iter().map(|label| number / label.multiplier % label.radix)),
        Some(_) if number == 0 => scratch.ids.extend(layout.labels.iter().map(|_| label_id::ID_OTHER.0)),
        Some(sets) => {
            if !store.name(sets, number - 1, &mut scratch.name) {
                return false;
            }
            let words = scratch.name.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            scratch.ids.extend(words.take(layout.labels.len()).map(|id| id as u32));
        }
    }
    true
}

/// An interner's bytes as the original integer.
fn integer(name: &[u8]) -> i64 {
    name.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes))
}

/// Shows an interner's bytes as the original value.
fn show_name(kind: &ValueKind, name: &[u8], value: usize, facts: &ProbeFacts, to: &mut String) {
    to.clear();
    let display = if kind.is_symbol() {
        EventValue::Text(name)
    } else if kind.is_text() {
        EventValue::Text(&name[..name.len().min(kind.max_bytes() as usize)])
    } else {
        EventValue::Int(integer(name))
    };
    match (kind, display) {
        (ValueKind::Function, EventValue::Int(number)) => {
            let function = usize::try_from(number).ok().and_then(|number| facts.functions.get(number));
            to.push_str(function.map_or(OTHER, String::as_str));
        }
        (ValueKind::Cgroup(what), EventValue::Int(number)) => {
            if !cgroups::push(number as u64, *what, to) {
                to.push_str(UNREADABLE);
            }
        }
        _ => show(kind, display, facts.unsigned & (1 << value) != 0, to),
    }
}

/// Shows the text of the process with this number.
fn show_process_text(number: u64, texts: &KernelStore, to: &mut String) {
    to.clear();
    let Some(mut bytes) = texts.process_text(number) else {
        to.push_str(OTHER);
        return;
    };
    // Arguments end with a NUL; a process that overwrites them may leave more.
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(length);
    bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    let max = u32::try_from(PROCESS_TEXT).unwrap_or(u32::MAX);
    show(&ValueKind::Arg(ArgKind::Str { max }), EventValue::Text(&bytes), false, to);
}
