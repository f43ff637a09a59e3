//! The `check` command: what the plan resolves to in the current files, and whether the kernel accepts it.

use std::collections::BTreeSet;

use crate::arguments::name;
use crate::config::Diagnostics;
use crate::config::model::Point;
use crate::debug_symbols::DebugFiles;
use crate::elf::{ElfError, Image, SiteError, SymbolIndex};
use crate::kinds;
use crate::net::BanRule;
use crate::net::NetworkConfig;
use crate::pins;
use crate::plan::{
    ActionPlan, BanPlan, ComputedIn, MetricPlan, Pairing, Plan, ProbePlan, SlowPlan, SpanEnd, SpanPlan,
    TargetPlan,
};
use crate::probes::{arguments, foreign, no_notes};
use crate::resolve::{ResolveError, Resolved, resolve};
use crate::selectors::Predicate;
use crate::slow::shown_value;
use crate::table::{TextTable, wrap};
use crate::targets::{TargetFile, find};
use crate::unusable::reasons;

mod places;

use places::Notes;

/// The plan as a table, and its errors.
#[derive(Debug)]
pub struct CheckReport {
    pub table: String,
    /// Probes that are missing from a target's file, or cannot be used there. A file that does not exist yet is not an
    /// error.
    pub errors: Diagnostics,
}

/// Resolves every probe of the plan in the files that its targets currently select.
///
/// Rows wider than `screen` are printed as blocks.
pub fn check(plan: &Plan, screen: Option<usize>) -> CheckReport {
    let mut checker = Checker { plan, screen, text: String::new(), errors: Diagnostics::new() };
    for target in &plan.targets {
        if !checker.text.is_empty() {
            checker.text.push('\n');
        }
        checker.target(target);
    }
    if let Some(network) = &plan.network {
        checker.network(network);
    }
    let settings = &plan.settings.slow_events;
    let sent = settings.webhook.as_ref().map(|webhook| format!(", and sent to {}", webhook.shown()));
    for (what, are_kept, sent) in [
        ("slow events", plan.probes.iter().any(|probe| !probe.slow.is_empty()), sent.unwrap_or_default()),
        ("bans", plan.probes.iter().any(|probe| !probe.bans.is_empty()), String::new()),
    ] {
        if are_kept {
            let file = settings.file.display();
            checker.text.push('\n');
            checker.line(&format!("{what}: kept in {file}{sent}"));
        }
    }
    if let Some(directory) = &plan.settings.pinned {
        checker.text.push('\n');
        checker.line(&format!("state: pinned in {}", pins::describe(directory)));
    }
    CheckReport { table: checker.text, errors: checker.errors }
}

struct Checker<'a> {
    plan: &'a Plan,
    screen: Option<usize>,
    text: String,
    errors: Diagnostics,
}

impl Checker<'_> {
    fn network(&mut self, network: &NetworkConfig) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        crate::net::describe(network).iter().for_each(|line| self.line(line));
    }

    /// Adds a line, wrapped to the width of the screen.
    fn line(&mut self, line: &str) {
        let text = line.trim_start();
        wrap(text, line.len() - text.len(), self.screen.unwrap_or(usize::MAX), &mut self.text);
    }

    fn target(&mut self, target: &TargetPlan) {
        let who = &target.selector.processes;
        let only = match who.predicates.as_slice() {
            [] => String::new(),
            [Predicate::Pid(pid)] if !who.children => {
                let absent = if who.absent_pid().is_some() { " (no process has this id)" } else { "" };
                format!(", process {pid} only{absent}")
            }
            _ => format!(", only processes {who}"),
        };
        let name = &target.name;
        match find(&target.selector) {
            Err(err) => {
                let optional = if target.optional { " (optional)" } else { "" };
                self.line(&format!("{name}: {err}; waiting for it{optional}{only}"));
                self.table(target, None);
            }
            Ok(files) => {
                for found in files {
                    self.line(&format!("{name}: {}{only}", found.display));
                    self.file(target, &found);
                }
            }
        }
    }

    fn file(&mut self, target: &TargetPlan, found: &TargetFile) {
        let bytes = match found.read() {
            Ok(bytes) => bytes,
            Err(err) => {
                self.errors.error(&target.at, format!("failed to read {}: {err}", found.display));
                return;
            }
        };
        match Image::parse(&bytes) {
            Err(err) => {
                self.errors.error(&target.at, format!("{}: {err}", found.display));
            }
            Ok(image) if foreign(image.arch()) => {
                let message =
                    format!("{} is built for another architecture than this machine's", found.display);
                self.errors.error(&target.at, message);
            }
            Ok(image) => {
                let is_function =
                    |probe: &usize| matches!(self.plan.probes[*probe].point, Point::Function(_));
                let wants_names = target.probes.iter().any(is_function);
                let debug = DebugFiles::of(&image, wants_names, &found.path, &found.display);
                let index = debug.index(image);
                self.probes(target, &index, found);
                if wants_names {
                    self.inlined(target, &index);
                }
            }
        }
    }

    /// Reports functions that the compiler has also inlined elsewhere: a probe sees none of these calls.
    fn inlined(&mut self, target: &TargetPlan, index: &SymbolIndex<'_>) {
        let mut reported = BTreeSet::new();
        for reason in index.debug_info_lacks() {
            self.text.push_str(&format!(
                "  note: {reason}; types of arguments and inlined copies may be unknown for that\n"
            ));
        }
        if index.debug_info().is_none() && index.debug_info_lacks().is_empty() {
            self.text.push_str(
                "  note: inlined calls are not counted, and without debug information it is unknown which are inlined\n",
            );
        }
        for probe in target.probes.iter().map(|number| &self.plan.probes[*number]) {
            let Point::Function(name) = &probe.point else { continue };
            let copies = if reported.insert(name) { index.inlined_copies(name) } else { 0 };
            if copies > 0 {
                self.text.push_str(&format!(
                    "  note: {name} is inlined at {copies} place{} in its callers; inlined calls are not \
                     counted\n",
                    if copies == 1 { "" } else { "s" }
                ));
            }
        }
    }

    /// Lists the probes of a program; if none of them is found, that is a single error.
    fn probes(&mut self, target: &TargetPlan, index: &SymbolIndex<'_>, found: &TargetFile) {
        let image = index.image();
        let before = self.errors.len();
        let there = self.table(target, Some((index, found)));
        let is_usdt = |probe: &usize| matches!(self.plan.probes[*probe].point, Point::Usdt { .. });
        let damaged = image.notes().err().filter(|_| target.probes.iter().any(is_usdt));
        let reason = match damaged {
            Some(ElfError::NoNotes) => no_notes(found, image, &target.selector),
            Some(reason) => reason.to_string(),
            None if there == 0 && !target.probes.is_empty() && self.errors.len() == before => {
                format!(
                    "it has none of the target's probes; `exporter probes {}` lists its probes",
                    found.display
                )
            }
            None => return,
        };
        self.errors.error(&target.at, format!("{}: {reason}", found.display));
    }

    /// Lists the target's probes; returns how many are in the file.
    fn table(&mut self, target: &TargetPlan, file: Option<(&SymbolIndex<'_>, &TargetFile)>) -> usize {
        let mut table =
            TextTable::new(2, &["PROBE", "SITES", "SEMAPHORES", "ARGUMENTS", "METRIC", "COMPUTED IN"])
                .explained_unless("kernel");
        let mut there = 0;
        for &number in &target.probes {
            let probe = &self.plan.probes[number];
            let resolved = file.map(|(index, _)| resolve(index, number as u32, self.plan, &mut |_| 0));
            let notes = Notes::of(file.map(|(index, _)| index.image()), probe, resolved.as_ref());
            let (sites, semaphores, reason) = match &resolved {
                None if matches!(probe.point, Point::Function(_)) => ("?".to_string(), String::new(), None),
                None => ("?".to_string(), "?".to_string(), None),
                // Reported once, for the file.
                Some(Err(ResolveError::Site(SiteError::Elf(_)))) => ("0".to_string(), String::new(), None),
                Some(Ok(resolved)) => {
                    let semaphores = if notes.is_function { String::new() } else { semaphores(resolved) };
                    (resolved.sites.len().to_string(), semaphores, not_all(resolved))
                }
                Some(Err(err)) if err.is_absent() && probe.optional => {
                    let reason = format!("absent (optional in its profile): {err}");
                    ("0".to_string(), String::new(), Some(reason))
                }
                Some(Err(err)) => ("0".to_string(), String::new(), Some(err.to_string())),
            };
            there += usize::from(matches!(resolved, Some(Ok(_))));
            if let (Some(Err(err)), Some((_, found))) = (&resolved, file)
                && !(err.is_absent() && probe.optional)
                && !matches!(err, ResolveError::Site(SiteError::Elf(_)))
            {
                self.unresolved(probe, err, found, &notes);
            }
            self.rows(&mut table, probe, sites, semaphores, &notes);
            if let Some(reason) = reason {
                table.line(reason);
            }
            if probe.related.is_some() {
                table.line("kept with slow events of other probes, so every hit is sent to user space");
            }
            for ban in &probe.bans {
                table.line(described_ban(probe, ban));
            }
            for slow in &probe.slow {
                table.line(self.slow(probe, slow));
            }
            if let Some(how) = pairing(probe) {
                table.line(how);
            }
            let remarks = resolved.iter().flatten().flat_map(|resolved| &resolved.remarks);
            remarks.for_each(|remark| table.line(format!("note: {remark}")));
            if let Some(Ok(resolved)) = &resolved
                && notes.in_general_registers()
            {
                arguments(&probe.values, &resolved.untyped)
                    .for_each(|note| table.line(format!("note: {note}")));
            }
            if let Some(Ok(Resolved { untyped_result: true, .. })) = &resolved {
                table.line(
                    "note: retval is read as a signed 64-bit integer; for C's int write `returns: i32`, for unsigned \
                     `returns: u32`"
                        .to_string(),
                );
            }
            let warnings = resolved.iter().flatten().flat_map(|resolved| &resolved.warnings);
            warnings.for_each(|warning| table.line(format!("warning: {warning}")));
        }
        self.text.push_str(&table.fitted(self.screen));
        there
    }

    /// Which events are kept, with which values, and where that is decided.
    fn slow(&self, probe: &ProbePlan, slow: &SlowPlan) -> String {
        let kept: Vec<_> = slow.kept.iter().map(|value| probe.values[*value].name.as_str()).collect();
        let related = slow.related.as_ref().map_or_else(String::new, |by| {
            let count = by.with.len();
            let events =
                if count == 1 { "one other probe".to_string() } else { format!("{count} other probes") };
            format!(", and with events of {events} that have the same {}", probe.values[by.key].name)
        });
        let decided = match &slow.computed_in {
            ComputedIn::Ring(reason) => format!("decided in user space: {reason}"),
            ComputedIn::Kernel | ComputedIn::Hits => {
                "decided in the kernel; only slow hits are sent".to_string()
            }
        };
        let stack = if slow.stack { ", and the call stack" } else { "" };
        format!("slow: {} with {}{stack}{related} ({decided})", slow_events(slow), kept.join(", "))
    }

    fn rows(
        &self,
        table: &mut TextTable,
        probe: &ProbePlan,
        sites: String,
        semaphores: String,
        notes: &Notes,
    ) {
        let args: Vec<String> = probe.values.iter().map(|value| notes.describe(value, probe)).collect();
        let metrics: Vec<[String; 2]> = probe
            .actions
            .iter()
            .map(|action| [described(&self.plan.metrics[action.metric]), place(action)])
            .collect();
        for line in 0..args.len().max(metrics.len()).max(1) {
            let first = |cell: &str| if line == 0 { cell.to_string() } else { String::new() };
            let arg = args.get(line).cloned().unwrap_or_default();
            let [metric, place] = match metrics.get(line) {
                Some(both) => both.clone(),
                None if metrics.is_empty() && line == 0 => {
                    ["-".to_string(), without_metrics(probe).to_string()]
                }
                None => [String::new(), String::new()],
            };
            table.row([first(&probe.name), first(&sites), first(&semaphores), arg, metric, place]);
        }
    }

    fn unresolved(&self, probe: &ProbePlan, err: &ResolveError, found: &TargetFile, notes: &Notes) {
        let named = match err {
            ResolveError::Value { name, .. } | ResolveError::Missing { name, .. } => Some(name),
            _ => None,
        };
        let value = named.and_then(|named| probe.values.iter().find(|value| name(value) == *named));
        let at = value.map_or(&probe.at, |value| &value.at);
        let mut message = format!("{} in {}: {err}", probe.name, found.display);
        if let (Some(_), Some(note)) = (named, &notes.whole) {
            message.push_str(&format!("; the probe's note reads `{note}`"));
        }
        let added = self.errors.error(at, message);
        if err.is_absent() {
            let functions = matches!(probe.point, Point::Function(_));
            added.help(match functions {
                true => format!(
                    "`exporter probes {} --functions '*'` lists the functions of the file",
                    found.display
                ),
                false => format!("`exporter probes {}` lists the probes of the file", found.display),
            });
        } else if named.is_some() {
            added.help("use another argument; unused arguments need not be readable");
        }
    }
}

/// Which sites are not probed, and why.
fn not_all(resolved: &Resolved) -> Option<String> {
    let (unusable, all) = (resolved.unusable.len(), resolved.unusable.len() + resolved.sites.len());
    (unusable > 0)
        .then(|| format!("partly: {unusable} of {all} sites are not probed: {}", reasons(&resolved.unusable)))
}

/// How many of the sites have a semaphore.
fn semaphores(resolved: &Resolved) -> String {
    match resolved.sites.iter().filter(|site| site.ref_ctr_offset != 0).count() {
        0 => "none".to_string(),
        all if all == resolved.sites.len() => "all".to_string(),
        some => format!("at {some}"),
    }
}

/// How an end finds its start, where that is not obvious.
fn pairing(probe: &ProbePlan) -> Option<&'static str> {
    let span = probe.span.filter(|span| span.end == SpanEnd::End)?;
    match span.by {
        Pairing::Thread => Some(
            "by thread: an end is matched with the latest open start of its thread. If a thread interleaves \
             requests (event loop, coroutines), that may be the start of another request: use `by: ARGUMENT` \
             instead",
        ),
        Pairing::Frame | Pairing::Value => None,
    }
}

/// Which address is banned, when, and for how long.
fn described_ban(probe: &ProbePlan, ban: &BanPlan) -> String {
    let BanRule { kind, after, within, terms } = &ban.rule;
    let mode = if terms.enforce { "enforce" } else { "observe" };
    format!(
        "ban: the address in {} after {after} hits within {}s, for {}s up to {}s, reason {kind:?} (mode {mode}); every hit is sent to \
         user space",
        probe.values[ban.address].name,
        within.as_secs(),
        terms.ttl.as_secs(),
        terms.max_ttl.as_secs()
    )
}

/// Which hits are slow for a metric.
fn slow_events(slow: &SlowPlan) -> String {
    let above =
        slow.over.map(|over| format!(" above {}", shown_value(&slow.metric, over))).unwrap_or_default();
    match slow.worst {
        None => format!("{}{above} is kept", slow.metric),
        Some(worst) => format!("of {}{above}, the worst {worst} of each hour are kept", slow.metric),
    }
}

/// The purpose of a probe that feeds no metric.
fn without_metrics(probe: &ProbePlan) -> &'static str {
    match probe.span {
        Some(SpanPlan { end: SpanEnd::Start, .. }) => "kernel: starts a span",
        Some(SpanPlan { end: SpanEnd::End, .. }) => "kernel: ends a span",
        None => "kernel: counts hits only",
    }
}

/// Kind, name and labels: `counter a_total{peer}`. The label `node` is on all metrics, and left out.
fn described(metric: &MetricPlan) -> String {
    let labels: Vec<_> = metric.displayed_labels().filter(|name| *name != "node").collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(", ")) };
    format!("{} {}{labels}", kinds::of(&metric.kind).exposed_as().word(), metric.name)
}

/// Where a metric is computed, and why there.
fn place(action: &ActionPlan) -> String {
    match &action.computed_in {
        ComputedIn::Hits => "kernel: equal to the number of hits".to_string(),
        ComputedIn::Kernel => "kernel".to_string(),
        ComputedIn::Ring(reason) => format!("user space: {reason}"),
    }
}
