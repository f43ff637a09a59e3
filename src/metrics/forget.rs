//! Series of processes that have ended go away, and give their places back.

use std::path::Path;

use super::registry::{Family, Registry, Source, UNKNOWN};
use crate::abi::label_id;
use crate::bank::Bank;
use crate::layout::LabelLayout;
use crate::plan;

impl Registry {
    /// Forgets the series of metrics with a label `pid` or `tid` whose process or thread is gone. Metrics with so many
    /// labels that label sets are numbered keep theirs; these are bounded like any other.
    pub(super) fn forget_ended(&mut self) {
        for source in &mut self.sources {
            let probe = &self.plan.probes[source.probe];
            let Some(laid) = source.laid.clone().filter(|laid| laid.family.is_none()) else { continue };
            let bank: &dyn Bank = if laid.in_kernel { &*self.kernel } else { &*self.user };
            let action = &probe.actions[source.action];
            for label in &laid.labels {
                let of_process =
                    matches!(probe.values[label.value].source, plan::Source::Pid | plan::Source::Tid);
                let (true, Some(dictionary)) = (of_process, label.dictionary) else { continue };
                let plan::LabelPlan::From { mapping, .. } = &action.labels[label.label] else { continue };
                let first = label_id::ID_PATTERN.0 + mapping.len() as u32;
                for number in 0..label.radix - first {
                    if bank.name(dictionary, number, &mut self.scratch.name) && is_gone(&self.scratch.name) {
                        let family = &mut self.families[action.metric];
                        source.forget(label, first + number, bank, family);
                        bank.forget(dictionary, number);
                    }
                }
            }
        }
    }
}

/// Whether no thread has this number any more.
fn is_gone(name: &[u8]) -> bool {
    name.first_chunk()
        .is_some_and(|id| !Path::new("/proc").join(u64::from_le_bytes(*id).to_string()).exists())
}

impl Source {
    /// Clears all series in which the label has this number.
    fn forget(&mut self, label: &LabelLayout, id: u32, bank: &dyn Bank, family: &mut Family) {
        let Some(laid) = &self.laid else { return };
        for number in (0..laid.series).filter(|number| number / label.multiplier % label.radix == id) {
            let cell = laid.cell + number * laid.stride;
            (cell..cell + laid.stride).for_each(|cell| bank.clear(cell));
            let known = std::mem::replace(&mut self.series[number as usize], UNKNOWN);
            if known != UNKNOWN {
                family.release(known);
            }
        }
    }
}
