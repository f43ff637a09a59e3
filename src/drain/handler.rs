//! Handles each event of the ring buffer: metrics that the kernel could not compute, slow events, the verbose log.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::DrainStats;
use super::slow::SlowSelection;
use crate::clock::wall_at;
use crate::config::model::Settings;
use crate::decode::{EventValue, ProbeEvent};
use crate::exposition::Exemplar;
use crate::kernel::KernelStore;
use crate::kinds;
use crate::layout::{ActionLayout, Layout};
use crate::metrics::evaluate::{Evaluation, all_hold, evaluate, fitting, found_slow};
use crate::metrics::event_series::labels_of;
use crate::metrics::show::{show, show_exactly, show_with_unit};
use crate::net::{BanRule, Sighting};
use crate::plan::{ActionPlan, LabelPlan, LogPart, Plan, ProbePlan, STACK, SlowPlan, ValueSource};
use crate::slow::{self, EventFields, Related, RelatedCriteria, SlowCounters, SlowRecorder};
use crate::store::UserStore;
use crate::symbols::{Symbols, UNKNOWN};

/// Handles each record.
pub(super) struct Handler {
    pub(super) plan: Arc<Plan>,
    pub(super) store: Arc<UserStore>,
    pub(super) stats: Arc<DrainStats>,
    /// How the events of each probe are used.
    evaluations: Vec<ProbeEvaluation>,
    verbose: bool,
    symbols: Symbols,
    /// The values of the current event that are shown by name.
    names: Vec<(usize, Arc<str>)>,
    scratch: String,
    line: String,
    /// Records slow events.
    recorder: Option<Arc<SlowRecorder>>,
}

impl Handler {
    pub(super) fn new(
        plan: Arc<Plan>,
        evaluations: Vec<ProbeEvaluation>,
        store: Arc<UserStore>,
        stats: Arc<DrainStats>,
        recorder: Option<Arc<SlowRecorder>>,
    ) -> Self {
        let Settings { verbose, .. } = plan.settings;
        Self {
            plan,
            store,
            stats,
            evaluations,
            verbose,
            symbols: Symbols::new(),
            names: Vec::new(),
            scratch: String::new(),
            line: String::new(),
            recorder,
        }
    }

    /// Called from libbpf's C code, through which no panic may unwind: nothing in here panics on any input, and the
    /// crate that calls it would abort if it did.
    pub(super) fn record(&mut self, record: &[u8]) {
        // Only this thread writes it.
        let events = self.stats.events.load(Ordering::Relaxed);
        self.stats.events.store(events + 1, Ordering::Relaxed);
        let event = match ProbeEvent::decode(record) {
            Ok(event) => event,
            Err(_) => {
                self.stats.undecodable.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let (Some(probe), Some(evaluation)) =
            (self.plan.probes.get(event.probe), self.evaluations.get_mut(event.probe))
        else {
            self.stats.undecodable.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let number = |at: Option<usize>| at.and_then(|at| event.value(at, false).word()).unwrap_or(0);
        let time = number(evaluation.time);
        self.names.clear();
        for (value, is_caller) in &evaluation.symbols {
            if let Some(address) = event.value(*value, false).word() {
                let pid = number(evaluation.pid) as u32;
                let name = match is_caller {
                    true => self.symbols.caller(pid, address),
                    false => self.symbols.name(pid, address),
                };
                self.names.push((*value, name));
            }
        }
        let names = &self.names;
        let read = |value: usize| match names.iter().find(|(named, _)| *named == value) {
            Some((_, name)) => EventValue::Text(name.as_bytes()),
            None => event.value(value, evaluation.texts & 1 << value != 0),
        };
        for layout in &evaluation.actions {
            let lost = match evaluate(&self.store, layout, probe, time, &read, &mut self.scratch) {
                Evaluation::Done => continue,
                Evaluation::Unreadable => &self.stats.unreadable,
                Evaluation::Negative => &self.stats.negative,
            };
            lost.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(selection) = &mut evaluation.slow {
            let is_told = probe.is_slow_in_kernel();
            let mut found = || found_slow(probe, &read, &mut self.scratch);
            let first = || {
                let slow = probe.slow.first()?;
                Some((slow, event.value(slow.value, false).word().map_or(0, u64::cast_signed)))
            };
            let all = if is_told && !event.is_slow() { Vec::new() } else { found() };
            // It is kept once, and becomes an exemplar of each histogram for which it is slow.
            let kept_for = all.first().copied();
            if let Some((slow, value)) = kept_for.or_else(|| first().filter(|_| is_told && event.is_slow())) {
                let counters = SlowCounters { store: self.store.clone(), slots: selection.slots };
                if !is_told {
                    counters.seen();
                }
                let target = &self.plan.targets[probe.target].name;
                if let Some(recorder) = &self.recorder {
                    for (slow, value) in all {
                        record_exemplar(recorder, &self.plan, probe, slow, value, time, &read);
                    }
                }
                let frames = evaluation.stack.filter(|_| slow.stack).map(|at| event.value(at, true));
                let stack = frames.map(|frames| {
                    let EventValue::Text(frames) = frames else { return UNKNOWN.to_owned() };
                    let returns_to = evaluation.return_address.and_then(|at| event.value(at, false).word());
                    self.symbols.stack(number(evaluation.pid) as u32, frames, returns_to)
                });
                let event = || kept(probe, target, slow, value, time, stack, &read);
                selection.record(time, value, event, counters, self.recorder.as_deref());
            }
        }
        for (ban, rule) in probe.bans.iter().zip(&evaluation.bans) {
            match all_hold(&ban.when, probe, &read, &mut self.scratch) {
                Some(false) => continue,
                Some(true) => {}
                None => {
                    self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            }
            if let Some(recorder) = &self.recorder {
                recorder.detections.submit(Sighting {
                    rule: rule.clone(),
                    target: self.plan.targets[probe.target].name.clone(),
                    probe: probe.name.clone(),
                    address: shown(probe, ban.address, &read),
                    time,
                });
            }
        }
        if let (Some(related), Some(recorder)) = (&probe.related, &self.recorder) {
            recorder.offer_related(|| {
                let key = |at: &usize| (probe.values[*at].name.clone(), shown(probe, *at, &read));
                Related {
                    time: wall_at(time),
                    target: self.plan.targets[probe.target].name.clone(),
                    process: shown(probe, related.process, &read),
                    point: probe.point.clone(),
                    probe: probe.name.clone(),
                    keys: related.keys.iter().map(key).collect(),
                    fields: fields(probe, &related.kept, &read),
                }
            });
        }
        if self.verbose {
            self.line.clear();
            describe(probe, &read, &mut self.line);
            log::info!("{}", self.line);
        }
    }
}

/// What is known about a probe's events in advance.
#[derive(Debug)]
pub(super) struct ProbeEvaluation {
    /// The actions that are computed in user space.
    actions: Vec<ActionLayout>,
    /// Indices of the values that are the kernel's time and the process.
    time: Option<usize>,
    pid: Option<usize>,
    /// Indices of the values that are the call stack, and the function's return address.
    stack: Option<usize>,
    return_address: Option<usize>,
    /// Values that are shown as the name of a function, and whether each is a return address.
    symbols: Vec<(usize, bool)>,
    /// Bit i: value i is text.
    texts: u32,
    /// How its slow events are handled, if it has any.
    slow: Option<SlowSelection>,
    /// The rules of its bans.
    bans: Vec<Arc<BanRule>>,
}

/// The evaluations of all probes.
pub(super) fn evaluations(plan: &Plan, layout: &Layout, store: &Arc<KernelStore>) -> Vec<ProbeEvaluation> {
    let evaluation = |(number, probe): (usize, &ProbePlan)| {
        let here = |action: &&ActionLayout| action.probe == number && !action.in_kernel;
        let place = |source| probe.values.iter().position(|value| value.source == source);
        let values = || probe.values.iter().enumerate();
        let slow = layout.slow.iter().find(|slow| slow.probe == number);
        ProbeEvaluation {
            actions: layout.actions.iter().filter(here).cloned().collect(),
            time: place(ValueSource::Time),
            pid: place(ValueSource::Pid),
            stack: place(ValueSource::Stack),
            return_address: place(ValueSource::ReturnAddress),
            symbols: values()
                .filter(|(_, value)| value.kind.is_symbol())
                .map(|(at, value)| (at, value.source == ValueSource::Caller))
                .collect(),
            texts: values().map(|(at, value)| u32::from(value.kind.is_text()) << at).sum(),
            slow: slow.map(|slow| SlowSelection::new(slow, probe, store)),
            bans: probe.bans.iter().map(|ban| Arc::new(ban.rule.clone())).collect(),
        }
    };
    plan.probes.iter().enumerate().map(evaluation).collect()
}

/// The record of a slow event; `time` is the kernel's.
fn kept<'a>(
    probe: &ProbePlan,
    target: &str,
    slow: &SlowPlan,
    value: i64,
    time: u64,
    stack: Option<String>,
    read: &dyn Fn(usize) -> EventValue<'a>,
) -> slow::EventRecord {
    let mut fields = fields(probe, &slow.kept, read);
    fields.0.extend(stack.map(|stack| (STACK.to_owned(), stack)));
    let wanted = slow.related.as_ref().map(|by| RelatedCriteria {
        process: shown(probe, by.process, read),
        key: (probe.values[by.key].name.clone(), shown(probe, by.key, read)),
        with: by.with.clone(),
    });
    slow::EventRecord {
        time: wall_at(time),
        target: target.to_owned(),
        probe: probe.name.clone(),
        metric: slow.metric.clone(),
        value: slow.scale.apply(value as f64),
        over: slow.over,
        worst: slow.worst,
        fields,
        related: Vec::new(),
        wanted,
        ranked: None,
    }
}

/// Notes the event as an exemplar of its histogram bucket.
fn record_exemplar<'a>(
    recorder: &SlowRecorder,
    plan: &Plan,
    probe: &ProbePlan,
    slow: &SlowPlan,
    value: i64,
    time: u64,
    read: &dyn Fn(usize) -> EventValue<'a>,
) {
    let is_it = |action: &&ActionPlan| plan.metrics[action.metric].name == slow.metric;
    let Some(action) = probe.actions.iter().find(is_it) else { return };
    let metric = &plan.metrics[action.metric];
    let Some(key) = labels_of(metric, action, probe, read) else { return };
    let bounds = kinds::of(&metric.kind).raw_bounds(action.scale);
    let bucket = bounds.partition_point(|bound| *bound < value);
    // The value that it shares with other events is the most useful one.
    let first = slow.related.as_ref().map(|by| by.key);
    let kept = first.into_iter().chain(slow.kept.iter().copied().filter(|at| Some(*at) != first));
    let fields = fields(probe, &kept.collect::<Vec<_>>(), read);
    let labels = fields.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let exemplar = Exemplar::new(labels, slow.scale.apply(value as f64), wall_at(time) as f64 / 1e9);
    recorder.record_exemplar(|all| all.record(&metric.name, key, (bucket, bounds.len() + 1), exemplar));
}

/// Values by name, as they are recorded.
fn fields<'a>(probe: &ProbePlan, kept: &[usize], read: &dyn Fn(usize) -> EventValue<'a>) -> EventFields {
    EventFields(kept.iter().map(|at| (probe.values[*at].name.clone(), shown(probe, *at, read))).collect())
}

fn shown<'a>(probe: &ProbePlan, at: usize, read: &dyn Fn(usize) -> EventValue<'a>) -> String {
    let mut text = String::new();
    show_exactly(&probe.values[at].kind, probe.values[at].unit, read(at), &mut text);
    text
}

/// Writes an event's line of the verbose log.
fn describe<'a>(probe: &ProbePlan, read: &dyn Fn(usize) -> EventValue<'a>, to: &mut String) {
    for part in &probe.log {
        match part {
            LogPart::Text(text) => to.push_str(text),
            LogPart::Value(index) => {
                let Some(planned) = probe.values.get(*index) else { continue };
                let value = read(*index);
                // Appended at the end: the limit on a label's length must not truncate the text before it.
                let mut text = String::new();
                show_with_unit(&planned.kind, planned.unit, value, &mut text);
                to.push_str(&text);
            }
            LogPart::Label(LabelPlan::Const(text)) => to.push_str(text),
            LogPart::Label(LabelPlan::From { value, mapping, default, .. }) => {
                let kind = &probe.values[*value].kind;
                let seen = read(*value);
                let mut text = String::new();
                let known = fitting(mapping, kind, seen, &mut text).map(|at| &mapping[at].1);
                text.clear();
                match known.or(default.as_ref()) {
                    Some(display) => to.push_str(display),
                    None => {
                        show(kind, seen, false, &mut text);
                        to.push_str(&text);
                    }
                }
            }
        }
    }
}
