//! Series of processes that have ended go away, and give their places back.
//!
//! They stay for as long as it takes that everybody who scrapes has seen their last numbers, unless their places are
//! needed.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use super::registry::{Family, Registry, Source, UNKNOWN, WINDOW};
use crate::abi::label_id;
use crate::bank::Bank;
use crate::layout::LabelLayout;
use crate::plan;

/// When a process was first seen to have ended: by the probe, the action and the label that it has a number of, and
/// that number.
#[derive(Debug, Default)]
pub(super) struct Ended {
    since: HashMap<(usize, usize, usize, u32), Instant>,
}

impl Registry {
    /// Forgets the series of metrics with a label `pid` or `tid` whose process or thread has been gone for [`WINDOW`], or
    /// has been shown once if three quarters of the label's places are taken. Metrics with so many labels that label
    /// sets are numbered keep theirs; these are bounded like any other.
    pub(super) fn forget_ended(&mut self, now: Instant) {
        for source in &mut self.sources {
            let probe = &self.plan.probes[source.probe];
            let Some(laid) = source.laid.clone().filter(|laid| laid.family.is_none()) else { continue };
            let bank: &dyn Bank = if laid.in_kernel { &*self.kernel } else { &*self.user };
            let action = &probe.actions[source.action];
            for label in &laid.labels {
                let of_process =
                    matches!(probe.values[label.value].source, plan::Source::Pid | plan::Source::Tid);
                let (true, Some(dictionary)) = (of_process, label.dictionary) else { continue };
                let plan::LabelPlan::From { mapping, limit, .. } = &action.labels[label.label] else {
                    continue;
                };
                let first = label_id::ID_PATTERN.0 + mapping.len() as u32;
                let (probe_number, action_number) = (source.probe, source.action);
                let key = |number| (probe_number, action_number, label.label, number);
                let (mut taken, mut gone) = (0, Vec::new());
                for number in 0..label.radix - first {
                    if !bank.name(dictionary, number, &mut self.scratch.name) {
                        continue;
                    }
                    taken += 1;
                    if is_gone(&self.scratch.name) {
                        let since = *self.ended.since.entry(key(number)).or_insert(now);
                        gone.push((number, now.saturating_duration_since(since)));
                    } else {
                        self.ended.since.remove(&key(number));
                    }
                }
                let crowded = taken * 4 > limit.saturating_mul(3);
                for (number, _) in gone.iter().filter(|(_, ago)| crowded || *ago >= WINDOW) {
                    self.ended.since.remove(&key(*number));
                    source.forget(label, first + number, bank, &mut self.families[action.metric]);
                    bank.forget(dictionary, *number);
                }
            }
        }
    }
}

/// Whether no thread has this number any more. Processes outside of the exporter's pid namespace have the number 0 together.
fn is_gone(name: &[u8]) -> bool {
    name.first_chunk().is_some_and(|id| {
        let id = u64::from_le_bytes(*id);
        id != 0 && !Path::new("/proc").join(id.to_string()).exists()
    })
}

impl Source {
    /// Clears all series in which the label has this number.
    fn forget(&mut self, label: &LabelLayout, id: u32, bank: &dyn Bank, family: &mut Family) {
        let Some(laid) = &self.laid else { return };
        for number in (0..laid.series).filter(|number| number / label.multiplier % label.radix == id) {
            let cell = laid.cell + number * laid.stride;
            (cell..cell + laid.stride).for_each(|cell| bank.clear(cell));
            if let Some(previous) = self.previous.get_mut(number as usize) {
                *previous = 0;
            }
            let known = std::mem::replace(&mut self.series[number as usize], UNKNOWN);
            if known != UNKNOWN {
                family.release(known);
            }
        }
    }
}
