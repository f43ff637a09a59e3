//! Assigns numbers to everything that is counted: the slots, interners and pattern numbers of each metric.
//!
//! Metrics computed in the kernel and those computed from events are laid out alike, each in a [`StoreLayout`] of its
//! own, so that one reader serves both and both yield the same series.

use std::sync::Arc;

use ring::digest::{SHA256, digest};

use crate::abi::{ACCT_SLOTS, floor_slot, label_id, slow_slot};
use crate::kinds::{self, Kind};
use crate::plan::{ActionPlan, ComputedIn, LabelPlan, Plan};
use crate::store::UserStore;

/// Ids that an interner may waste when two CPUs draw one for the same new value at once.
const SPARE_IDS: u32 = 16;

/// The most slots of a metric with several free labels; with more, label sets are numbered instead of label values.
const DENSE_SLOTS: u64 = 65_536;

/// Slots of 8 bytes in two cache lines, which x86 prefetches together.
const SLOTS_IN_A_LINE: u32 = 16;

/// Label sets of such a metric, excluding `other`.
const MAX_SETS: u32 = 10_000;

/// The layout of a plan.
#[derive(Debug, Clone)]
pub struct Layout {
    pub kernel: StoreLayout,
    pub user: StoreLayout,
    /// One for each action of the plan that needs slots, in the plan's order.
    pub actions: Vec<ActionLayout>,
    /// One for each probe with slow events, in the plan's order.
    pub slow: Vec<SlowLayout>,
}

/// Where a probe's slow events are counted.
#[derive(Debug, Clone, Copy)]
pub struct SlowLayout {
    pub probe: usize,
    /// The first of the slots that `enum slow_slot` of the ABI names, in the kernel's store.
    pub kernel: u32,
    /// The first of [`SLOW_SLOTS`] slots in the user-space store.
    pub user: u32,
    /// The first of the slots that `enum floor_slot` names, in the kernel's store, if only the worst of an hour are
    /// kept.
    pub floor: Option<u32>,
}

/// Slots from [`SlowLayout::user`] on: found slow in user space and not in the kernel, kept, refused by a full queue,
/// not written; not among the worst of the hour on arrival, and displaced from them before they were written.
pub(crate) const SLOW_SLOTS: u32 = 6;
pub(crate) const SLOW_SEEN: u32 = 0;
pub(crate) const SLOW_KEPT: u32 = 1;
pub(crate) const SLOW_REFUSED: u32 = 2;
pub(crate) const SLOW_UNWRITTEN: u32 = 3;
pub(crate) const SLOW_OUTDONE: u32 = 4;
pub(crate) const SLOW_DISPLACED: u32 = 5;

/// What one store must provide.
#[derive(Debug, Clone, Default)]
pub struct StoreLayout {
    /// Slots of one shard; the kernel's store starts with the accounting of every probe.
    pub slots: u32,
    pub interners: Vec<InternerLayout>,
    /// Names of all interners together.
    pub entries: u32,
}

/// An interner: numbers below `capacity`, of which `limit` may be in use.
#[derive(Debug, Clone, Copy)]
pub struct InternerLayout {
    pub first_entry: u32,
    pub capacity: u32,
    pub limit: u32,
}

/// One metric's update by one probe.
#[derive(Debug, Clone)]
pub struct ActionLayout {
    pub probe: usize,
    /// Index into the probe's actions.
    pub action: usize,
    pub in_kernel: bool,
    pub slot: u32,
    /// Slots of one series.
    pub stride: u32,
    /// The maximum number of series.
    pub series: u32,
    /// Only the variable labels.
    pub labels: Vec<LabelLayout>,
    /// The interner of label sets, if series are not numbered directly by their labels.
    pub label_sets: Option<u32>,
    /// For a histogram: upper bounds in the unit of the values that are read.
    pub bounds: Vec<i64>,
    pub(crate) kind: Arc<dyn Kind>,
}

/// One variable label.
#[derive(Debug, Clone, Copy)]
pub struct LabelLayout {
    /// Index into the action's labels.
    pub label: usize,
    /// Index into the probe's values.
    pub value: usize,
    pub multiplier: u32,
    /// The number of possible ids of the label's value.
    pub radix: u32,
    /// The interner that numbers free values.
    pub interner: Option<u32>,
}

impl Layout {
    /// Lays out all metrics of the plan.
    pub fn new(plan: &Plan) -> Self {
        let accounting =
            u32::try_from(plan.probes.len().max(1) * ACCT_SLOTS).expect("far fewer probes than slots");
        let mut layout = Layout {
            kernel: StoreLayout { slots: accounting, ..StoreLayout::default() },
            user: StoreLayout::default(),
            actions: Vec::new(),
            slow: Vec::new(),
        };
        for (probe, plan_probe) in plan.probes.iter().enumerate() {
            for (action, plan_action) in plan_probe.actions.iter().enumerate() {
                let in_kernel = match plan_action.computed_in {
                    ComputedIn::Hits => continue,
                    ComputedIn::Kernel => true,
                    ComputedIn::Ring(_) => false,
                };
                let store = if in_kernel { &mut layout.kernel } else { &mut layout.user };
                let kind = kinds::of(&plan.metrics[plan_action.metric].kind);
                let mut laid_out = store.action(kind, plan_action);
                (laid_out.probe, laid_out.action, laid_out.in_kernel) = (probe, action, in_kernel);
                layout.actions.push(laid_out);
            }
        }
        for (probe, _) in plan.probes.iter().enumerate().filter(|(_, probe)| !probe.slow.is_empty()) {
            let (kernel, user) = (layout.kernel.slots, layout.user.slots);
            layout.kernel.slots += slow_slot::SLOW_SLOTS.0;
            layout.user.slots += SLOW_SLOTS;
            layout.slow.push(SlowLayout { probe, kernel, user, floor: None });
        }
        // Whole cache lines, so that two CPUs never share one.
        layout.kernel.slots = layout.kernel.slots.next_multiple_of(SLOTS_IN_A_LINE);
        layout.floors(plan);
        layout
    }

    /// Separates floors from slots that are written all the time: every hit reads them.
    fn floors(&mut self, plan: &Plan) {
        let slots = &mut self.kernel.slots;
        for slow in &mut self.slow {
            if plan.probes[slow.probe].slow.iter().any(|slow| slow.worst.is_some()) {
                slow.floor = Some(*slots);
                *slots += floor_slot::FLOOR_SLOTS.0;
            }
        }
        *slots = slots.next_multiple_of(SLOTS_IN_A_LINE);
    }

    /// A hash of the layout: layouts with the same one are identical.
    pub fn fingerprint(&self) -> String {
        let hash = digest(&SHA256, format!("{self:?}").as_bytes());
        hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Creates the store of metrics computed from events, for this number of probes.
    pub fn user_store(&self, probes: usize) -> UserStore {
        UserStore::new(self.user.slots, self.user.interners.iter().map(|interner| interner.limit), probes)
    }
}

impl StoreLayout {
    fn action(&mut self, kind: Arc<dyn Kind>, plan: &ActionPlan) -> ActionLayout {
        let bounds = kind.raw_bounds(plan.scale);
        let stride = kind.slots(plan.value.is_some());
        let mut labels = Vec::new();
        let (mut series, mut free) = (1u64, 0);
        for (number, label) in plan.labels.iter().enumerate() {
            let LabelPlan::From { value, mapping, default, limit } = label else { continue };
            let raw = default.is_none();
            let interner = raw.then(|| self.interner(*limit));
            let radix = label_id::ID_PATTERN.0
                + u32::try_from(mapping.len()).unwrap_or(u32::MAX - 3)
                + if raw { limit.saturating_add(SPARE_IDS) } else { 1 };
            free += u32::from(raw);
            let multiplier = u32::try_from(series).unwrap_or(u32::MAX);
            labels.push(LabelLayout { label: number, value: *value, multiplier, radix, interner });
            series = series.saturating_mul(u64::from(radix));
        }
        let mut label_sets = None;
        if free > 1 && series * u64::from(stride) > DENSE_SLOTS {
            let widest = labels.iter().map(|label| label.radix).max().unwrap_or(0);
            let limit = MAX_SETS.max(widest);
            label_sets = Some(self.interner(limit));
            series = u64::from(limit + SPARE_IDS) + 1;
        }
        let series = u32::try_from(series).unwrap_or(u32::MAX);
        let slot = self.slots;
        self.slots = self.slots.saturating_add(series.saturating_mul(stride));
        ActionLayout {
            probe: 0,
            action: 0,
            in_kernel: false,
            slot,
            stride,
            series,
            labels,
            label_sets,
            bounds,
            kind,
        }
    }

    fn interner(&mut self, limit: u32) -> u32 {
        let capacity = limit.saturating_add(SPARE_IDS);
        self.interners.push(InternerLayout { first_entry: self.entries, capacity, limit });
        self.entries = self.entries.saturating_add(capacity);
        u32::try_from(self.interners.len() - 1).expect("one for each label")
    }
}
