//! From configuration to plan: resolves names, and collects all errors.

mod check;
mod metrics;
mod slow;

use std::collections::{BTreeSet, HashMap};

use self::slow::{Related, point_of};
use crate::config::model::{
    ArgOf, Ban, Config, Metric, Named, On, Point, Probe, ReturnsBy, Settings, SpanKey, Target,
};
use crate::config::place::Place;
use crate::config::{Diagnostics, did_you_mean};
use crate::config::{Draft, LoadedConfig, Node};
use crate::kinds;
use crate::plan::ban::refuse_without_blocklist;
use crate::plan::carried::{CarriedValues, raw};
use crate::plan::computed_in;
use crate::plan::scope::{Scope, is_unread, mentioned, mentioned_by, warn_of_unused};
use crate::plan::{
    ActionPlan, MetricPlan, Pairing, Plan, ProbeHook, ProbePlan, SpanEnd, SpanPlan, TargetPlan, profile,
    profiles,
};

/// Returns the plan for a configuration, or every error in it.
///
/// With `all_to_ring` every metric is computed in user space, which tests use to compare both ways.
pub fn plan(config: Config, all_to_ring: bool) -> Result<Plan, Diagnostics> {
    plan_in_spite(config, all_to_ring, Diagnostics::new())
}

/// Returns the plan for a configuration that has been read, or every error of both stages.
pub fn plan_draft(draft: Draft) -> Result<(LoadedConfig, Plan), Diagnostics> {
    let (loaded, errors) = draft.into_parts();
    let plan = plan_in_spite(loaded.config.clone(), false, errors)?;
    Ok((loaded, plan))
}

/// Returns the plan if there are no errors at the end. If `diags` has errors of the reader, parts of the configuration
/// are placeholders, which must not cause further errors.
fn plan_in_spite(config: Config, all_to_ring: bool, diags: Diagnostics) -> Result<Plan, Diagnostics> {
    let warnings = Diagnostics::new();
    let mut builder = Builder {
        diags: &diags,
        warnings: &warnings,
        settings: &config.settings,
        probes: Vec::new(),
        metrics: Vec::new(),
        places: Vec::new(),
        names: HashMap::new(),
        profile: None,
        fed: HashMap::new(),
        described: HashMap::new(),
        spans: 0,
        units: 0,
        slow_by_name: BTreeSet::new(),
        related: Vec::new(),
    };
    let mut targets = Vec::new();
    for (number, target) in config.targets.iter().enumerate() {
        let probes = builder.target(number, target);
        targets.push(TargetPlan {
            at: target.at.clone(),
            name: target.name.clone(),
            selector: target.selector.clone(),
            optional: target.optional,
            probes,
        });
    }
    builder.distinguish_targets(&config.targets);
    builder.refuse_clashing_names();
    builder.refuse_unknown_slow();
    let (mut probes, metrics, spans) = (builder.probes, builder.metrics, builder.spans);
    for probe in &mut probes {
        computed_in::decide(probe, &metrics, &config.settings, all_to_ring, &diags);
    }
    let network = config
        .network
        .as_ref()
        .and_then(|(at, value)| crate::net::decode(&Node::new(at.clone(), value, &diags)));
    let warnings = warnings.render().lines().map(str::to_owned).collect();
    keep_whole(&mut probes, &metrics);
    let mut plan = Plan { settings: config.settings, targets, probes, metrics, spans, network, warnings };
    plan.bound_units();
    let all = config.targets.iter().flat_map(|target| &target.probes).flat_map(|probe| &probe.bans);
    let enforced: Vec<_> = all.filter(|ban| ban.enforce).map(|ban| ban.at.clone()).collect();
    refuse_without_blocklist(&plan, &enforced, &diags);
    diags.into_result(plan)
}

/// Probes of metrics that missed hits make wrong permanently are never shed.
fn keep_whole(probes: &mut [ProbePlan], metrics: &[MetricPlan]) {
    let is_one = |action: &ActionPlan| kinds::of(&metrics[action.metric].kind).needs_every_hit();
    let units: BTreeSet<usize> = probes
        .iter()
        .filter(|probe| probe.keep || probe.actions.iter().any(is_one))
        .map(|probe| probe.unit)
        .collect();
    probes.iter_mut().for_each(|probe| probe.keep = units.contains(&probe.unit));
}

struct Builder<'a> {
    diags: &'a Diagnostics,
    warnings: &'a Diagnostics,
    settings: &'a Settings,
    probes: Vec<ProbePlan>,
    metrics: Vec<MetricPlan>,
    /// Where each metric was first described.
    places: Vec<Place>,
    /// Metric name to index.
    names: HashMap<String, usize>,
    /// The current profile.
    profile: Option<String>,
    /// The first profile that fed a metric by a probe of a target.
    fed: HashMap<(usize, String, String), String>,
    /// Where each target's metrics are described, by everything that they are computed from.
    described: HashMap<(usize, String), Place>,
    spans: u32,
    /// Number of units so far.
    units: usize,
    /// Indices of the metrics in `slow_events` that some probe updates.
    slow_by_name: BTreeSet<usize>,
    /// Probes whose events are kept with slow ones of the current target.
    related: Vec<Related>,
}

impl Builder<'_> {
    /// Adds the target's own probes and those of its profiles; returns their indices.
    fn target(&mut self, number: usize, target: &Target) -> Vec<usize> {
        let first = self.probes.len();
        let mut all = Vec::new();
        for (n, named) in target.profiles.iter().enumerate() {
            if target.profiles[..n].iter().any(|other| other.name == named.name) {
                let message = format!("duplicate profile \"{}\"", named.name);
                self.diags.error(&named.at, message).help("remove one of them");
                continue;
            }
            let probes = self.profile_probes(named).into_iter();
            all.extend(probes.map(|probe| (Some(named.name.clone()), probe)));
        }
        all.extend(target.probes.iter().map(|probe| (None, probe.clone())));
        if all.is_empty() && target.profiles.is_empty() {
            self.warnings
                .error(&target.at, format!("target \"{}\" has no probes: nothing is traced", target.name));
        }
        all.iter_mut().for_each(|(_, probe)| self.add_slow(probe));
        self.relate(all.iter().map(|(_, probe)| probe));
        for (profile, probe) in all {
            self.profile = profile;
            self.probe(number, target, &probe);
        }
        self.profile = None;
        (first..self.probes.len()).collect()
    }

    fn profile_probes(&self, named: &Named) -> Vec<Probe> {
        match profile(&named.name) {
            Some(Ok(profile)) => profile.probes,
            Some(Err(wrong)) => {
                self.diags.append(wrong);
                Vec::new()
            }
            None => {
                let known = profiles().iter().map(|(name, _)| *name);
                self.diags
                    .error(
                        &named.at,
                        format!("unknown profile \"{}\"{}", named.name, did_you_mean(&named.name, known)),
                    )
                    .help("`exporter profiles` lists them");
                Vec::new()
            }
        }
    }

    fn probe(&mut self, number: usize, target: &Target, probe: &Probe) {
        self.units += 1;
        let key = match &probe.on {
            On::Span { by: SpanKey::Arg(name), .. } => Some(name.as_str()),
            _ => None,
        };
        if self.related_keys(&point_of(&probe.on)).is_empty() {
            warn_of_unused(probe, key, self.warnings);
        }
        self.refuse_repeated(number, probe);
        if probe.unread.on {
            let plan = self.described(number, probe, &Point::Function(String::new()), ProbeHook::Entry);
            self.filled(target, probe, plan, None, true);
            return;
        }
        if !matches!(probe.on, On::Function(_)) {
            self.refuse_at_return(probe);
        }
        match &probe.on {
            On::Usdt(point) => self.single(number, target, probe, point, &probe.metrics),
            On::Function(name) => self.function(number, target, probe, &Point::Function(name.clone())),
            On::Span { from, to, .. } => {
                let late = self.described(number, probe, to, ProbeHook::Entry);
                self.pair(number, target, probe, from, late, (&[], &[]), key);
            }
        }
    }

    /// Computes metrics that need the return there, and the others at the entry.
    fn function(&mut self, number: usize, target: &Target, probe: &Probe, point: &Point) {
        let read_late = |name: &str| probe.args.iter().any(|arg| arg.name == name && arg.at_return);
        let is_late = |name: &str| name == "retval" || name == "duration" || read_late(name);
        let template = probe.log.as_deref().unwrap_or_default();
        let late_names = probe.args.iter().filter(|arg| arg.at_return).map(|arg| arg.name.as_str());
        let logs_late =
            late_names.chain(["retval", "duration"]).any(|name| template.contains(&format!("{{{name}}}")));
        let (late, early): (Vec<_>, Vec<_>) = probe
            .metrics
            .iter()
            .cloned()
            .partition(|metric| metric.at_return || mentioned(metric).any(is_late));
        let (late_bans, early_bans): (Vec<_>, Vec<_>) =
            probe.bans.iter().cloned().partition(|ban| mentioned_by(ban).any(is_late));
        if late.is_empty() && late_bans.is_empty() && !logs_late {
            return self.single(number, target, probe, point, &probe.metrics);
        }
        let mut plan = self.described(number, probe, point, ProbeHook::Return);
        plan.name.push_str(":return");
        let returning = Probe { metrics: late, bans: late_bans, ..probe.clone() };
        self.pair(number, target, &returning, point, plan, (&early, &early_bans), None);
    }

    /// Adds a probe without a counterpart.
    fn single(&mut self, number: usize, target: &Target, probe: &Probe, point: &Point, metrics: &[Metric]) {
        let plan = self.described(number, probe, point, ProbeHook::Entry);
        let own = Probe { metrics: metrics.to_vec(), ..probe.clone() };
        let (plan, _) = self.filled(target, &own, plan, None, true);
        self.add(plan);
    }

    /// Adds the end of a span or a function's return, and its start if anything is needed from it.
    #[allow(clippy::too_many_arguments)]
    fn pair(
        &mut self,
        number: usize,
        target: &Target,
        probe: &Probe,
        from: &Point,
        mut late_plan: ProbePlan,
        (early, early_bans): (&[Metric], &[Ban]),
        key: Option<&str>,
    ) {
        let is_return = late_plan.hook == ProbeHook::Return;
        let key_arg = key.and_then(|key| probe.args.iter().find(|arg| arg.name == key));
        if let (Some(key), None) = (key, key_arg)
            && !is_unread(probe, key)
        {
            let near = did_you_mean(key, probe.args.iter().map(|arg| arg.name.as_str()));
            self.diags
                .error(&probe.at, format!("the span's key \"{key}\" is not an argument of the span{near}"))
                .help(format!("add it to args: {{ {key}: {{ index: ... }} }}, or use by: thread"));
        }
        if !is_return {
            self.refuse_useless_key(&probe.at, key_arg, from == &late_plan.point);
        }
        late_plan.values.extend(key_arg.map(|arg| raw(arg, arg.to_index.map_or(arg.of, ArgOf::Call))));
        let late = CarriedValues { is_return, ..CarriedValues::default() };
        let (mut late_plan, late) = self.filled(target, probe, late_plan, Some(late), true);
        let late = late.unwrap_or_default();
        // An exit of the function may also be one of other functions: only the entry tells which call it belongs to.
        let by_exits = is_return && late_plan.returns_by == ReturnsBy::Exits;
        let needs_start = late.uses_duration || !late.carried.is_empty() || !is_return || by_exits;
        let reads_result = is_return && late_plan.values.iter().any(|value| value.source.is_result());
        let by = match key {
            _ if is_return => Pairing::Frame,
            Some(_) => Pairing::Value,
            None => Pairing::Thread,
        };
        if needs_start || !early.is_empty() || !early_bans.is_empty() {
            let mut start = self.described(number, probe, from, ProbeHook::Entry);
            if !is_return {
                start.name =
                    format!("{} (start of {})", start.name, probe.metrics.first().map_or("", |m| &m.name));
            }
            start.event_type.clone_from(&start.name);
            if needs_start {
                start.values.extend(key_arg.map(|arg| raw(arg, arg.of)));
                let only_time = is_return && late.carried.is_empty();
                let (carried, texts) = (late.carried.len(), late.has_texts());
                late.refuse_long(&probe.at, self.diags);
                late.read_at_start(&mut start.values);
                let number = self.spans;
                let span = |end| Some(SpanPlan { number, end, by, only_time, carried, texts, reads_result });
                start.span = span(SpanEnd::Start);
                late_plan.span = span(SpanEnd::End);
                self.spans += 1;
            }
            let own =
                Probe { metrics: early.to_vec(), bans: early_bans.to_vec(), log: None, ..probe.clone() };
            let (start, _) = self.filled(target, &own, start, None, false);
            self.add(start);
        }
        self.add(late_plan);
    }

    /// Returns a plan that reads nothing and does nothing.
    fn described(&self, target: usize, probe: &Probe, point: &Point, hook: ProbeHook) -> ProbePlan {
        let name = match point {
            Point::Usdt { provider, name } => format!("{provider}:{name}"),
            Point::Function(name) => name.clone(),
        };
        ProbePlan {
            at: probe.at.clone(),
            target,
            unit: self.units,
            event_type: probe.event_type.clone().unwrap_or_else(|| name.clone()),
            name,
            point: point.clone(),
            hook,
            returns_by: probe.returns_by,
            span: None,
            keep: probe.keep,
            optional: probe.from_profile,
            values: Vec::new(),
            actions: Vec::new(),
            log: Vec::new(),
            slow: Vec::new(),
            related: None,
            bans: Vec::new(),
            emit: None,
        }
    }

    /// Resolves the metrics, and the log line if requested.
    fn filled(
        &mut self,
        target: &Target,
        probe: &Probe,
        mut plan: ProbePlan,
        late: Option<CarriedValues>,
        logs: bool,
    ) -> (ProbePlan, Option<CarriedValues>) {
        let keys = if logs { self.related_keys(&plan.point) } else { Vec::new() };
        let mut scope = Scope { probe, plan: &mut plan, diags: self.diags, late };
        let mut build = |metric| {
            let action = scope.action(metric)?;
            let slow = scope.slow(metric, &action);
            Some((metric, action, slow))
        };
        let built: Vec<_> = probe.metrics.iter().map(&mut build).collect();
        if self.settings.verbose && logs {
            scope.log();
        }
        let related = if logs { scope.related(&keys) } else { None };
        let bans = probe.bans.iter().filter_map(|ban| scope.ban(ban)).collect();
        let late = scope.late;
        plan.related = related;
        plan.bans = bans;
        probe.metrics.iter().for_each(|metric| self.check(target, metric));
        for (metric, mut action, slow) in built.into_iter().flatten() {
            if metric.unread || target.unread_labels || self.is_fed_already(&plan, metric) {
                continue;
            }
            action.metric = self.metric(target, metric, &mut action);
            plan.actions.push(action);
            plan.slow.extend(slow);
        }
        (plan, late)
    }

    /// Two profiles of one target may describe the same metric with the same probe; it is counted once.
    fn is_fed_already(&mut self, plan: &ProbePlan, metric: &Metric) -> bool {
        let Some(profile) = self.profile.clone() else { return false };
        let fed = (plan.target, plan.name.clone(), metric.name.clone());
        *self.fed.entry(fed).or_insert_with(|| profile.clone()) != profile
    }

    fn add(&mut self, mut plan: ProbePlan) {
        // The exporter's own metrics tell probes apart by name.
        let plain = plan.name.clone();
        let mut number = 1;
        while self.probes.iter().any(|known| known.target == plan.target && known.name == plan.name) {
            number += 1;
            plan.name = format!("{plain}#{number}");
        }
        self.probes.push(plan);
    }
}
