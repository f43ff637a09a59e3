//! Removes series of processes that have ended, and frees their slots.
//!
//! They stay until all scrapers have seen their last numbers, unless their slots are needed.

use std::path::Path;
use std::time::Instant;

use super::ended::LabelVisibility;
use super::labels::{Scratch, ids};
use super::registry::{MeasuredFamily, Registry, SeriesSource, UNKNOWN, WINDOW};
use crate::abi::label_id;
use crate::layout::ActionLayout;
use crate::plan;
use crate::store::Store;

impl Registry {
    /// Forgets processes and threads that no longer exist. A series that shows one in a label stays for [`WINDOW`], or
    /// for one scrape if more than three quarters of the label's values are in use; a hidden one is removed at once.
    pub(super) fn forget_ended(&mut self, now: Instant, visibility: LabelVisibility) {
        for source in &mut self.sources {
            let probe = &self.plan.probes[source.probe];
            let Some(layout) = source.layout.clone() else { continue };
            let engine = &self.stores[source.probe_ref.engine];
            let store: &dyn Store = if layout.in_kernel { &*engine.kernel } else { &*engine.user };
            let action = &probe.actions[source.action];
            for (position, label) in layout.labels.iter().enumerate() {
                let hidden = self.plan.metrics[action.metric].labels[label.label] == plan::HIDDEN;
                let of_process = matches!(
                    probe.values[label.value].source,
                    plan::ValueSource::Pid | plan::ValueSource::Tid
                );
                let (true, Some(interner)) =
                    (of_process && hidden == (visibility == LabelVisibility::Never), label.interner)
                else {
                    continue;
                };
                let plan::LabelPlan::From { mapping, limit, .. } = &action.labels[label.label] else {
                    continue;
                };
                let first = label_id::ID_PATTERN.0 + mapping.len() as u32;
                let (probe_number, action_number) = (source.probe, source.action);
                let key = |number| (probe_number, action_number, label.label, number);
                let (mut taken, mut gone) = (0, Vec::new());
                for number in 0..label.radix - first {
                    if !store.name(interner, number, &mut self.scratch.name) {
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
                let at_once = hidden || taken * 4 > limit.saturating_mul(3);
                let over: Vec<u32> = gone
                    .into_iter()
                    .filter(|(_, ago)| at_once || *ago >= WINDOW)
                    .map(|(number, _)| number)
                    .collect();
                if over.is_empty() {
                    continue;
                }
                let is_over = |id: u32| id >= first && over.contains(&(id - first));
                let family = &mut self.families[action.metric];
                source.forget(&layout, position, is_over, store, family, &mut self.scratch);
                for number in over {
                    self.ended.since.remove(&key(number));
                    store.forget(interner, number);
                }
            }
        }
    }
}

/// Whether no thread has this number anymore. Processes outside the exporter's pid namespace all have the number 0.
fn is_gone(name: &[u8]) -> bool {
    name.first_chunk().is_some_and(|id| {
        let id = u64::from_le_bytes(*id);
        id != 0 && !Path::new("/proc").join(id.to_string()).exists()
    })
}

impl SeriesSource {
    /// Clears all series in which the label at this position has the number of an ended process.
    fn forget(
        &mut self,
        layout: &ActionLayout,
        position: usize,
        is_over: impl Fn(u32) -> bool,
        store: &dyn Store,
        family: &mut MeasuredFamily,
        scratch: &mut Scratch,
    ) {
        for number in 0..layout.series {
            if !ids(layout, number, store, scratch) || !is_over(scratch.ids[position]) {
                continue;
            }
            let slot = layout.slot + number * layout.stride;
            (slot..slot + layout.stride).for_each(|slot| store.clear(slot));
            if let Some(previous) = self.previous.get_mut(number as usize) {
                *previous = 0;
            }
            let known = std::mem::replace(&mut self.series[number as usize], UNKNOWN);
            if known != UNKNOWN {
                family.release(known);
            }
            // Series 0 has no label set; the sets are those of the series from 1 on.
            if let (Some(sets), Some(set)) = (layout.label_sets, number.checked_sub(1)) {
                store.forget(sets, set);
            }
        }
    }
}
