//! Handling of a probe's slow events.

use std::sync::Arc;

use crate::abi::floor_slot;
use crate::clock::wall_at;
use crate::kernel::KernelStore;
use crate::layout::SlowLayout;
use crate::plan::ProbePlan;
use crate::slow::{EventRecord, SlowCounters, SlowRecorder, Worst, end_of_hour};

/// Where a probe's slow events are counted, and which of them are kept.
#[derive(Debug)]
pub(super) struct SlowSelection {
    /// The first slot, see [`SlowLayout::user`].
    pub slots: u32,
    /// If only the worst events of an hour are kept: these, and where the kernel reads their threshold.
    worst: Option<(Worst, Floor)>,
}

/// The slots of the kernel's store that `enum floor_slot` names.
#[derive(Debug)]
struct Floor {
    store: Arc<KernelStore>,
    first: u32,
}

impl SlowSelection {
    pub fn new(layout: &SlowLayout, probe: &ProbePlan, store: &Arc<KernelStore>) -> Self {
        let worst = probe.slow.iter().find_map(|slow| slow.worst).zip(layout.floor);
        let worst = worst.map(|(most, first)| {
            // The threshold of an earlier run, which ranked other events.
            store.set(first + floor_slot::FLOOR_UNTIL.0, 0);
            (Worst::new(most), Floor { store: store.clone(), first })
        });
        Self { slots: layout.user, worst }
    }

    /// Records the probe's event at this time of the kernel's clock, unless it does not rank among the worst. The
    /// kernel gets the threshold even without a recorder, so that it sends no more events than with one.
    pub fn record(
        &mut self,
        time: u64,
        value: i64,
        event: impl FnOnce() -> EventRecord,
        counters: SlowCounters,
        recorder: Option<&SlowRecorder>,
    ) {
        let Some((worst, floor)) = &mut self.worst else {
            if let Some(recorder) = recorder {
                recorder.offer(event(), counters);
            }
            return;
        };
        let number = recorder.map_or(0, SlowRecorder::number);
        let until = || end_of_hour(time, wall_at(time));
        let keep = |ranked| {
            let event = || EventRecord { ranked: Some(ranked), ..event() };
            recorder.is_none_or(|recorder| recorder.offer(event(), counters.clone()))
        };
        if !worst.offer(time, until, value, number, keep) {
            return counters.outdone();
        }
        if let Some(now) = worst.floor() {
            floor.store.set(floor.first + floor_slot::FLOOR_ABOVE.0, now.above.cast_unsigned());
            floor.store.set(floor.first + floor_slot::FLOOR_UNTIL.0, now.until);
        }
    }
}
