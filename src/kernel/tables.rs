//! Converts plan and layout into the tables of `bpf/abi.h`. Pure.

use super::filters::words;
use crate::abi::{
    ACCT_SLOTS, MAX_BOUNDS, PATTERN_WORDS, SHORT_TEXT, SHORT_TEXTS, abi_none, action, action_kind, bounds,
    condition, condition_op, event_class, interner, label, label_flag, pattern, probe, probe_flag, slow_slot,
    value, value_kind,
};
use crate::config::model::{ArgKind, LabelPattern, Op, Operand};
use crate::layout::{ActionLayout, InternerLayout, LabelLayout, Layout, SlowLayout};
use crate::plan::{
    ActionPlan, ComputedIn, ConditionPlan, LabelPlan, Pairing, Plan, ProbePlan, SlowPlan, SpanEnd, ValueKind,
    ValueSource,
};

/// Added to a signed number, it makes unsigned comparison correct.
pub(crate) const BIAS: u64 = 1 << 63;

/// The tables that do not depend on the sites.
#[derive(Debug, Default)]
pub(crate) struct ProbeTables {
    pub probes: Vec<probe>,
    pub actions: Vec<action>,
    pub patterns: Vec<pattern>,
    pub bounds: Vec<bounds>,
    pub interners: Vec<interner>,
}

impl ProbeTables {
    pub(crate) fn new(plan: &Plan, layout: &Layout) -> Self {
        let mut tables = ProbeTables {
            interners: layout.kernel.interners.iter().map(interner_entry).collect(),
            ..ProbeTables::default()
        };
        for (number, probe) in plan.probes.iter().enumerate() {
            let first = tables.actions.len();
            for action in layout.actions.iter().filter(|action| action.probe == number && action.in_kernel) {
                let row = tables.action(probe, action);
                tables.actions.push(row);
            }
            let counted = layout.slow.iter().find(|slow| slow.probe == number);
            for slow in probe.slow.iter().filter(|slow| slow.computed_in == ComputedIn::Kernel) {
                let row = counted.map(|counted| tables.slow(probe, slow, counted));
                tables.actions.extend(row);
            }
            let filtered = plan.targets[probe.target].selector.needs_filter();
            let mut row = probe_entry(number, probe, filtered, first, tables.actions.len() - first);
            row.slow = counted.map_or(0, |counted| counted.kernel);
            tables.probes.push(row);
        }
        tables
    }

    /// The union of all probes' flags, and likewise below: code that no row uses is left out of the programs
    /// (`bpf/maps.bpf.h`).
    pub(crate) fn probe_flags(&self) -> u32 {
        self.probes.iter().fold(0, |all, probe| all | probe.flags)
    }

    /// The union of all labels' flags.
    pub(crate) fn label_flags(&self) -> u32 {
        let labels = self.actions.iter().flat_map(|action| &action.labels);
        labels.fold(0, |all, label| all | u32::from(label.flags))
    }

    /// The classes of all events, one bit each.
    pub(crate) fn events(&self) -> u32 {
        let sent = probe_flag::PROBE_EMIT.0 | probe_flag::PROBE_SLOW.0;
        let sending = self.probes.iter().filter(|probe| probe.flags & sent != 0);
        sending.fold(0, |all, probe| all | 1 << probe.event_class)
    }

    fn action(&mut self, probe: &ProbePlan, layout: &ActionLayout) -> action {
        let planned = &probe.actions[layout.action];
        let has_value = planned.value.is_some();
        let mut row = action {
            kind: small(layout.kind.action(has_value).0),
            value: planned.value.map_or(small(abi_none::NO_VALUE.0), small),
            nconditions: small(planned.when.len()),
            nlabels: small(layout.labels.len()),
            needs_nonnegative: u8::from(planned.refuses_negative && has_value),
            slot: layout.slot,
            stride: layout.stride,
            label_sets: layout.label_sets.unwrap_or(abi_none::NO_LABEL_SETS.0),
            bias: BIAS,
            ..action::default()
        };
        if !layout.bounds.is_empty() {
            row.bounds = self.bounds_of(&layout.bounds);
        }
        self.conditions(&mut row, &planned.when, probe);
        for (at, label) in row.labels.iter_mut().zip(&layout.labels) {
            *at = self.label(planned, probe, label);
        }
        row
    }

    /// The rows that detect slow hits.
    fn slow(&mut self, probe: &ProbePlan, plan: &SlowPlan, counted: &SlowLayout) -> action {
        let floor = counted.floor.filter(|_| plan.worst.is_some());
        let kind = if floor.is_some() { action_kind::ACTION_WORST } else { action_kind::ACTION_SLOW };
        let mut row = action {
            kind: small(kind.0),
            value: small(plan.value),
            nconditions: small(plan.when.len()),
            needs_nonnegative: u8::from(plan.refuses_negative),
            slot: counted.kernel,
            bounds: floor.unwrap_or_default(),
            stride: slow_slot::SLOW_SLOTS.0,
            label_sets: abi_none::NO_LABEL_SETS.0,
            bias: plan.above.cast_unsigned(),
            ..action::default()
        };
        self.conditions(&mut row, &plan.when, probe);
        row
    }

    fn conditions(&mut self, to: &mut action, when: &[ConditionPlan], probe: &ProbePlan) {
        for (at, condition) in to.conditions.iter_mut().zip(when) {
            let unsigned = probe.values[condition.value].kind.is_unsigned_word();
            *at = self.condition(small(condition.value), condition.op, &condition.with, unsigned);
        }
    }

    fn bounds_of(&mut self, upper: &[i64]) -> u32 {
        let mut row = bounds { upper: [u64::MAX; MAX_BOUNDS + 1] };
        for (at, bound) in row.upper.iter_mut().zip(upper) {
            *at = biased(*bound);
        }
        let known = self.bounds.iter().position(|other| other.upper == row.upper);
        index(known.unwrap_or_else(|| {
            self.bounds.push(row);
            self.bounds.len() - 1
        }))
    }

    fn condition(&mut self, value: u8, op: Op, with: &Operand, unsigned: bool) -> condition {
        let mut bias = BIAS;
        let (op, operand) = match with {
            Operand::Int(number) if unsigned => {
                bias = 0;
                unsigned_comparison(op, *number)
            }
            Operand::Int(number) => (comparison(op), biased(i64::try_from(*number).unwrap_or_default())),
            Operand::Str(text) => {
                self.patterns.push(text_pattern(text, op != Op::StartsWith));
                let op = if op == Op::Ne { condition_op::COND_NOT_STRING } else { condition_op::COND_STRING };
                (op, self.patterns.len() as u64 - 1)
            }
        };
        condition { operand, bias, value, op: small(op.0), ..condition::default() }
    }

    fn label(&mut self, action: &ActionPlan, probe: &ProbePlan, layout: &LabelLayout) -> label {
        let LabelPlan::From { mapping, .. } = &action.labels[layout.label] else {
            return label::default();
        };
        let kind = &probe.values[layout.value].kind;
        let first_pattern = index(self.patterns.len());
        self.patterns.extend(mapping.iter().map(|(pattern, _)| pattern_entry(pattern)));
        let mut flags = 0;
        if layout.interner.is_some() {
            flags |= label_flag::LABEL_RAW.0;
        }
        let mut words = 0;
        if kind.is_text() {
            flags |= label_flag::LABEL_TEXT.0;
            // Whether it had a length when the start stored it is unknown here.
            let is_carried = matches!(probe.values[layout.value].source, ValueSource::Carried(_));
            if matches!(kind, ValueKind::StrLen { .. }) || kind.is_characters() && is_carried {
                flags |= label_flag::LABEL_NUL.0;
            }
            let free = kind.max_bytes().div_ceil(8) as usize;
            let compared = if mapping.is_empty() { 0 } else { PATTERN_WORDS };
            words = if layout.interner.is_some() { free.max(compared) } else { compared };
        }
        label {
            interner: layout.interner.unwrap_or_default(),
            first_pattern,
            multiplier: layout.multiplier,
            npatterns: small(mapping.len()),
            value: small(layout.value),
            flags: small(flags),
            words: small(words),
        }
    }
}

fn probe_entry(number: usize, plan: &ProbePlan, filtered: bool, first: usize, nactions: usize) -> probe {
    let mut row = probe {
        filter: index(plan.target),
        accounting: index(number * ACCT_SLOTS),
        first_action: index(first),
        nactions: small(nactions),
        nvalues: small(plan.values.len()),
        event_class: small(class_of(plan).0),
        ..probe::default()
    };
    if filtered {
        row.flags |= probe_flag::PROBE_FILTER.0;
    }
    if plan.emit.is_some() {
        row.flags |= probe_flag::PROBE_EMIT.0;
    } else if nactions == 0 && plan.span.is_none() {
        row.flags |= probe_flag::PROBE_COUNT_ONLY.0;
    }
    if plan.is_slow_in_kernel() {
        row.flags |= probe_flag::PROBE_SLOW.0;
    }
    if plan.values.iter().any(|value| value.kind == ValueKind::Stack) {
        row.flags |= probe_flag::PROBE_STACK.0;
    }
    if let Some(span) = plan.span {
        row.span = span.number;
        row.flags |= match span.end {
            SpanEnd::Start => probe_flag::PROBE_START.0,
            SpanEnd::End => probe_flag::PROBE_END.0,
        };
        row.flags |= match span.by {
            Pairing::Frame => probe_flag::PROBE_BY_FRAME.0,
            Pairing::Thread => probe_flag::PROBE_BY_THREAD.0,
            Pairing::Value => 0,
        };
        row.ncarried = small(span.carried);
        if span.texts {
            row.flags |= probe_flag::PROBE_TEXTS.0;
        }
        if span.only_time {
            row.flags |= probe_flag::PROBE_SESSION.0;
        }
    }
    for (at, planned) in row.values.iter_mut().zip(&plan.values) {
        let (kind, len_value) = match &planned.kind {
            kind if kind.is_text() && matches!(planned.source, ValueSource::Carried(_)) => {
                (value_kind::VALUE_CARRIED, 0)
            }
            _ if planned.source == ValueSource::Time => (value_kind::VALUE_TIME, 0),
            ValueKind::Comm => (value_kind::VALUE_COMM, 0),
            ValueKind::Stack => (value_kind::VALUE_STACK, 0),
            ValueKind::StrLen { len, .. } => (value_kind::VALUE_STRING_LEN, small(*len)),
            ValueKind::Arg(ArgKind::Str { .. }) => (value_kind::VALUE_STRING, 0),
            ValueKind::Arg(ArgKind::SockAddr) => (value_kind::VALUE_SOCKADDR, 0),
            kind if kind.is_text() => (value_kind::VALUE_BYTES, 0),
            _ => (value_kind::VALUE_INT, 0),
        };
        let max = u16::try_from(planned.kind.max_bytes()).unwrap_or(u16::MAX);
        *at = value { kind: small(kind.0), len_value, max };
    }
    row
}

/// The smallest event class that holds the probe's values. A text is placed only where the class's longest one would
/// fit.
fn class_of(plan: &ProbePlan) -> event_class {
    let texts: Vec<_> =
        plan.values.iter().map(|value| value.kind.max_bytes() as usize).filter(|max| *max > 0).collect();
    let before_last: usize = texts.iter().rev().skip(1).sum();
    if texts.is_empty() && plan.values.len() <= 6 {
        event_class::EVENT_6
    } else if texts.is_empty() {
        event_class::EVENT_12
    } else if texts.iter().all(|max| *max <= SHORT_TEXT) && before_last <= SHORT_TEXTS - SHORT_TEXT {
        event_class::EVENT_SHORT_TEXTS
    } else {
        event_class::EVENT_LONG_TEXTS
    }
}

fn comparison(op: Op) -> condition_op {
    match op {
        Op::Eq | Op::StartsWith => condition_op::COND_EQ,
        Op::Ne => condition_op::COND_NE,
        Op::Lt => condition_op::COND_LT,
        Op::Le => condition_op::COND_LE,
        Op::Gt => condition_op::COND_GT,
        Op::Ge => condition_op::COND_GE,
    }
}

/// Translates a comparison of unsigned numbers with any number: all of them are greater than a negative one.
fn unsigned_comparison(op: Op, with: i128) -> (condition_op, u64) {
    match (u64::try_from(with), op) {
        (Ok(with), op) => (comparison(op), with),
        (Err(_), Op::Ne | Op::Gt | Op::Ge) => (condition_op::COND_GE, 0),
        (Err(_), Op::Eq | Op::StartsWith | Op::Lt | Op::Le) => (condition_op::COND_LT, 0),
    }
}

fn interner_entry(layout: &InternerLayout) -> interner {
    interner {
        first_entry: layout.first_entry,
        capacity: layout.capacity,
        limit: layout.limit,
        ..interner::default()
    }
}

fn pattern_entry(wanted: &LabelPattern) -> pattern {
    match wanted {
        LabelPattern::Int(number) => {
            let mut row = pattern::default();
            // Unsigned values can be 2^63 and more; the plan has checked that it fits into 64 bits.
            row.word[0] = *number as u64;
            row.mask[0] = u64::MAX;
            row
        }
        LabelPattern::Prefix(text) => text_pattern(text, false),
        LabelPattern::Exact(text) | LabelPattern::Glob(text) => text_pattern(text, true),
    }
}

/// An exact pattern covers the NUL after its text, too.
fn text_pattern(text: &str, exact: bool) -> pattern {
    let covered = vec![0xff; text.len() + usize::from(exact)];
    pattern { word: words(text.as_bytes()), mask: words(&covered) }
}

/// Order-preserving, and never `u64::MAX`, which means "no bound".
fn biased(number: i64) -> u64 {
    (number as u64).wrapping_add(BIAS).min(u64::MAX - 1)
}

/// A number that the plan keeps small; the plan rejects what would not fit.
fn small<T: TryInto<u8>>(number: T) -> u8 {
    number.try_into().unwrap_or(u8::MAX)
}

fn index(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
