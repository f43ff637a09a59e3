//! Configuration to plan: names resolved, all mistakes collected.

use std::collections::HashMap;

use super::route::route;
use super::{
    ActionPlan, ConditionPlan, LabelPlan, LogPart, MetricPlan, Plan, ProbePlan, Scale, Source, TargetPlan,
    ValueKind, ValuePlan, profile, profiles,
};
use crate::abi::{MAX_BOUNDS, MAX_VALUES};
use crate::config::diagnose::{Diagnostics, did_you_mean};
use crate::config::model::{
    Arg, ArgKind, BUILT_INS, Condition, Config, Label, LabelValue, Metric, MetricKind, Named, On, Op,
    Operand, Pattern, Point, Probe, Settings, Target, Unit,
};
use crate::config::place::Place;

/// Prefixes of the names that the exporter gives to its own metrics.
const RESERVED: &[&str] = &["fibre_exporter_", "process_"];

/// The plan for a configuration, or every mistake in it.
///
/// With `all_to_ring` every metric is computed in user space, which tests use to compare both ways.
pub fn plan(config: Config, all_to_ring: bool) -> Result<Plan, Diagnostics> {
    let diags = Diagnostics::new();
    let mut builder = Builder {
        diags: &diags,
        settings: &config.settings,
        probes: Vec::new(),
        metrics: Vec::new(),
        places: Vec::new(),
        names: HashMap::new(),
    };
    let mut targets = Vec::new();
    for (number, target) in config.targets.iter().enumerate() {
        let probes = builder.target(number, target);
        targets.push(TargetPlan {
            at: target.at.clone(),
            name: target.name.clone(),
            selector: target.selector.clone(),
            pid: target.pid,
            probes,
        });
    }
    builder.tell_targets_apart(&config.targets);
    builder.refuse_clashing_names();
    let (mut probes, metrics) = (builder.probes, builder.metrics);
    for probe in &mut probes {
        route(probe, &metrics, &config.settings, all_to_ring, &diags);
    }
    diags.into_result(Plan { settings: config.settings, targets, probes, metrics })
}

struct Builder<'a> {
    diags: &'a Diagnostics,
    settings: &'a Settings,
    probes: Vec<ProbePlan>,
    metrics: Vec<MetricPlan>,
    /// Where each metric was first described.
    places: Vec<Place>,
    /// Metric name to index.
    names: HashMap<String, usize>,
}

impl Builder<'_> {
    /// Adds the target's own probes and those of its profiles; returns their indices.
    fn target(&mut self, number: usize, target: &Target) -> Vec<usize> {
        let first = self.probes.len();
        for named in &target.profiles {
            for probe in self.profile_probes(named) {
                self.probe(number, target, &probe);
            }
        }
        for probe in &target.probes {
            self.probe(number, target, probe);
        }
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
        let (point, name) = match &probe.on {
            On::Usdt(point @ Point::Usdt { provider, name }) => (point.clone(), format!("{provider}:{name}")),
            On::Usdt(Point::Function(function)) | On::Function(function) => {
                (Point::Function(function.clone()), function.clone())
            }
            On::Span { .. } => {
                self.diags.error(&probe.at, "spans are not available in this version");
                return;
            }
        };
        let mut plan = ProbePlan {
            at: probe.at.clone(),
            target: number,
            event_type: probe.event_type.clone().unwrap_or_else(|| name.clone()),
            name,
            point,
            optional: probe.from_profile,
            values: Vec::new(),
            actions: Vec::new(),
            log: Vec::new(),
            emit: None,
        };
        let mut scope = Scope { args: &probe.args, plan: &mut plan, diags: self.diags };
        let mut made = Vec::new();
        for metric in &probe.metrics {
            made.extend(scope.action(metric).map(|action| (metric, action)));
        }
        scope.check_unused(probe);
        if self.settings.verbose {
            scope.log(probe);
        }
        for (metric, mut action) in made {
            action.metric = self.metric(target, metric, &mut action);
            plan.actions.push(action);
        }
        if plan.values.len() > MAX_VALUES {
            self.diags
                .error(&probe.at, format!("{} values are read here; {MAX_VALUES} are possible", plan.values.len()))
                .help("leave out arguments that no metric uses, or split the metrics over two entries of this probe");
        }
        self.probes.push(plan);
    }

    /// The metric's number. On its first appearance it is described; later ones must agree, and get their labels
    /// into the first one's order. The labels that every series has are put in front.
    fn metric(&mut self, target: &Target, metric: &Metric, action: &mut ActionPlan) -> usize {
        let mut labels = vec![("node".to_string(), LabelPlan::Const(self.settings.node_name.clone()))];
        labels.extend(
            target.labels.iter().map(|(name, value)| (name.clone(), LabelPlan::Const(value.clone()))),
        );
        for (label, plan) in metric.labels.iter().zip(std::mem::take(&mut action.labels)) {
            if labels.iter().any(|(name, _)| *name == label.name) {
                self.diags.error(
                    &label.at,
                    format!(
                        "label \"{}\" is already given by the exporter or the target's own labels",
                        label.name
                    ),
                );
            }
            labels.push((label.name.clone(), plan));
        }
        if let Some(prefix) = RESERVED.iter().find(|prefix| metric.name.starts_with(**prefix)) {
            self.diags
                .error(&metric.at, format!("names that begin with {prefix} are the exporter's own metrics"));
        }
        let Some(&known) = self.names.get(&metric.name) else {
            let (names, plans) = labels.into_iter().unzip();
            action.labels = plans;
            self.metrics.push(MetricPlan {
                name: metric.name.clone(),
                help: metric.help.clone(),
                kind: metric.kind.clone(),
                labels: names,
            });
            self.places.push(metric.at.clone());
            self.names.insert(metric.name.clone(), self.metrics.len() - 1);
            return self.metrics.len() - 1;
        };
        let first = &mut self.metrics[known];
        if first.help.is_empty() {
            first.help.clone_from(&metric.help);
        }
        let first = &self.metrics[known];
        if first.kind != metric.kind {
            self.diags.error(
                &metric.at,
                format!(
                    "{} is described differently at {}: probes that feed one metric give the same kind and buckets",
                    metric.name, self.places[known]
                ),
            );
        }
        let mut sorted = Vec::new();
        for name in &first.labels {
            if let Some(at) = labels.iter().position(|(label, _)| label == name) {
                sorted.push(labels.swap_remove(at).1);
            }
        }
        if sorted.len() != first.labels.len() || !labels.is_empty() {
            self.diags.error(
                &metric.at,
                format!(
                    "{} has other labels here than at {}, where they are: {}",
                    metric.name,
                    self.places[known],
                    first.labels.join(", ")
                ),
            );
        }
        action.labels = sorted;
        known
    }

    /// Two targets that feed one metric must not add up by accident: unless their own labels differ, each series
    /// says which target it is of.
    fn tell_targets_apart(&mut self, targets: &[Target]) {
        for metric in 0..self.metrics.len() {
            let mut feeding: Vec<usize> = Vec::new();
            for probe in &self.probes {
                if probe.actions.iter().any(|action| action.metric == metric)
                    && !feeding.contains(&probe.target)
                {
                    feeding.push(probe.target);
                }
            }
            let alike = feeding
                .iter()
                .enumerate()
                .any(|(n, a)| feeding[n + 1..].iter().any(|b| targets[*a].labels == targets[*b].labels));
            if !alike || self.metrics[metric].labels.iter().any(|label| label == "target") {
                continue;
            }
            self.metrics[metric].labels.push("target".to_string());
            for probe in &mut self.probes {
                let name = &targets[probe.target].name;
                for action in probe.actions.iter_mut().filter(|action| action.metric == metric) {
                    action.labels.push(LabelPlan::Const(name.clone()));
                }
            }
        }
    }

    /// A histogram is several names to Prometheus.
    fn refuse_clashing_names(&self) {
        for (metric, at) in self.metrics.iter().zip(&self.places) {
            if !matches!(metric.kind, MetricKind::Histogram(_)) {
                continue;
            }
            for suffix in ["_bucket", "_sum", "_count"] {
                if let Some(&other) = self.names.get(&format!("{}{suffix}", metric.name)) {
                    self.diags.error(
                        &self.places[other],
                        format!(
                            "{} is a part of the histogram {} at {at}",
                            self.metrics[other].name, metric.name
                        ),
                    );
                }
            }
        }
    }
}

/// The names that are known inside one probe.
struct Scope<'a> {
    args: &'a [Arg],
    plan: &'a mut ProbePlan,
    diags: &'a Diagnostics,
}

impl Scope<'_> {
    fn action(&mut self, metric: &Metric) -> Option<ActionPlan> {
        let mut scale = Scale::ONE;
        let mut value = None;
        if let Some(named) = &metric.value {
            let index = self.value(&named.at, &named.name)?;
            let found = &self.plan.values[index];
            if !is_number(&found.kind) {
                let message =
                    format!("\"{}\" is not a number, so it cannot be the metric's value", named.name);
                self.diags.error(&named.at, message);
                return None;
            }
            scale = unit_scale(found.unit);
            value = Some(index);
        }
        let factor = metric.scale.unwrap_or(1.0);
        if !(factor > 0.0 && factor.is_finite()) {
            self.diags.error(
                &metric.at,
                format!("scale {factor}: only a number above 0 keeps counters and buckets in order"),
            );
            return None;
        }
        scale.mul *= factor;
        if let MetricKind::Histogram(bounds) = &metric.kind
            && bounds.len() > MAX_BOUNDS
        {
            self.diags.error(&metric.at, format!("{} buckets; {MAX_BOUNDS} are possible", bounds.len()));
        }
        let when: Vec<_> = metric.when.iter().map(|condition| self.condition(condition)).collect();
        let labels: Vec<_> = metric.labels.iter().map(|label| self.label(label)).collect();
        Some(ActionPlan {
            at: metric.at.clone(),
            metric: 0,
            value,
            scale,
            when: when.into_iter().collect::<Option<_>>()?,
            labels: labels.into_iter().collect::<Option<_>>()?,
            route: super::Route::Kernel,
        })
    }

    fn condition(&mut self, condition: &Condition) -> Option<ConditionPlan> {
        let value = self.value(&condition.at, &condition.value)?;
        let text = self.plan.values[value].kind.is_text();
        let fits = match (&condition.with, condition.op) {
            (Operand::Str(_), Op::Eq | Op::Ne | Op::StartsWith) => text,
            (Operand::Str(_), _) => false,
            (Operand::Int(_), Op::StartsWith) => false,
            (Operand::Int(_), _) => !text,
        };
        if !fits {
            let (is, may) = if text {
                ("text", "== \"...\", != \"...\" and starts_with \"...\"")
            } else {
                ("a number", "==, !=, <, <=, > and >= with a number")
            };
            self.diags.error(
                &condition.at,
                format!("\"{}\" is {is}: it can be compared by {may}", condition.value),
            );
            return None;
        }
        if let Operand::Int(number) = condition.with
            && i64::try_from(number).is_err()
        {
            self.diags.error(&condition.at, format!("{number} does not fit into 64 bits with a sign"));
        }
        let (mut op, mut with) = (condition.op, condition.with.clone());
        // Whatever is not 0 is true.
        if self.plan.values[value].kind == ValueKind::Arg(ArgKind::Bool) && with == Operand::Int(1) {
            match op {
                Op::Eq => (op, with) = (Op::Ne, Operand::Int(0)),
                Op::Ne => (op, with) = (Op::Eq, Operand::Int(0)),
                _ => {}
            }
        }
        Some(ConditionPlan { value, op, with })
    }

    fn label(&mut self, label: &Label) -> Option<LabelPlan> {
        let name = match &label.value {
            LabelValue::Const(text) => return Some(LabelPlan::Const(text.clone())),
            LabelValue::From(name) => name,
        };
        let value = self.value(&label.at, name)?;
        let kind = &self.plan.values[value].kind;
        let mut mapping = Vec::new();
        for (pattern, shown) in &label.mapping {
            match fit_pattern(pattern, kind) {
                Some(pattern) => mapping.push((pattern, shown.clone())),
                None => {
                    self.diags.error(
                        &label.at,
                        format!("\"{name}\" is a number: {} cannot match it", describe(pattern)),
                    );
                }
            }
        }
        let limit = label.limit.unwrap_or(u32::MAX);
        if *kind == ValueKind::Arg(ArgKind::Bool) {
            // Whatever is not 0 is true, so there are two values, however many numbers.
            let shown = |number, plain: &str| {
                let found = mapping.iter().find(|(pattern, _)| *pattern == Pattern::Int(number));
                found.map_or_else(
                    || label.default.clone().unwrap_or_else(|| plain.to_string()),
                    |(_, shown)| shown.clone(),
                )
            };
            let (no, yes) = (shown(0, "false"), shown(1, "true"));
            let mapping = vec![(Pattern::Int(0), no)];
            return Some(LabelPlan::From { value, mapping, default: Some(yes), limit });
        }
        Some(LabelPlan::From { value, mapping, default: label.default.clone(), limit })
    }

    /// The index of the value called `name`, which is read from now on.
    fn value(&mut self, at: &Place, name: &str) -> Option<usize> {
        if let Some(known) = self.plan.values.iter().position(|value| value.name == name) {
            return Some(known);
        }
        let made = if let Some(arg) = self.args.iter().find(|arg| arg.name == name) {
            let kind = match &arg.kind {
                ArgKind::StrLen { len_index, max } => {
                    let len = self.length(arg, *len_index);
                    ValueKind::StrLen { len, max: *max }
                }
                ArgKind::F64 => {
                    let message =
                        format!("\"{name}\" is a floating-point number, which no probe program can read");
                    self.diags.error(at, message);
                    return None;
                }
                kind => ValueKind::Arg(kind.clone()),
            };
            ValuePlan {
                at: arg.at.clone(),
                name: name.to_string(),
                source: Source::Arg(arg.index),
                kind,
                unit: arg.unit,
            }
        } else if let Some((source, kind)) = built_in(name) {
            ValuePlan { at: at.clone(), name: name.to_string(), source, kind, unit: Unit::None }
        } else {
            let known = self.args.iter().map(|arg| arg.name.as_str()).chain(BUILT_INS.iter().copied());
            let near = did_you_mean(name, known);
            if BUILT_INS.contains(&name) {
                self.diags.error(at, format!("\"{name}\" is not known at this kind of probe"));
            } else {
                self.diags
                    .error(at, format!("\"{name}\" is neither an argument of this probe nor built in{near}"))
                    .help(format!("name it under args: {{ {name}: {{ index: ... }} }}"));
            }
            return None;
        };
        self.plan.values.push(made);
        Some(self.plan.values.len() - 1)
    }

    /// The value that holds the length of a text: the argument at that position, named or not.
    fn length(&mut self, arg: &Arg, index: usize) -> usize {
        let name = self.args.iter().find(|other| other.index == index).map(|other| other.name.clone());
        let name = name.unwrap_or_else(|| format!("length of {}", arg.name));
        let source = Source::Arg(index);
        if let Some(known) = self.plan.values.iter().position(|value| value.source == source) {
            return known;
        }
        let kind = ValueKind::Arg(ArgKind::Int(None));
        self.plan.values.push(ValuePlan { at: arg.at.clone(), name, source, kind, unit: Unit::None });
        self.plan.values.len() - 1
    }

    /// `{name}` in a template is the value of that name; without a template all named arguments are shown.
    fn log(&mut self, probe: &Probe) {
        let template = probe.log.clone().unwrap_or_else(|| {
            let shown: Vec<_> = probe.args.iter().map(|arg| format!(" {0}={{{0}}}", arg.name)).collect();
            format!("{}{}", self.plan.name, shown.concat())
        });
        let mut rest = template.as_str();
        while let Some(open) = rest.find('{') {
            let Some(close) = rest[open..].find('}') else { break };
            self.plan.log.push(LogPart::Text(rest[..open].to_string()));
            if let Some(value) = self.value(&probe.at, &rest[open + 1..open + close]) {
                self.plan.log.push(LogPart::Value(value));
            }
            rest = &rest[open + close + 1..];
        }
        self.plan.log.push(LogPart::Text(rest.to_string()));
    }

    /// A metric-less probe still counts its hits; an argument that nothing mentions is likely a slip.
    fn check_unused(&self, probe: &Probe) {
        if probe.from_profile || self.plan.values.len() > MAX_VALUES {
            return;
        }
        let template = probe.log.as_deref().unwrap_or_default();
        for arg in &probe.args {
            let used = self
                .plan
                .values
                .iter()
                .any(|value| value.name == arg.name || value.source == Source::Arg(arg.index));
            let logged = probe.log.is_none() || template.contains(&format!("{{{}}}", arg.name));
            if !used && !logged {
                self.diags
                    .error(
                        &arg.at,
                        format!("argument \"{}\" is not used by any metric or by the log line", arg.name),
                    )
                    .help("remove it, or use it");
            }
        }
    }
}

fn is_number(kind: &ValueKind) -> bool {
    matches!(kind, ValueKind::Arg(ArgKind::Int(_) | ArgKind::Bool))
}

fn built_in(name: &str) -> Option<(Source, ValueKind)> {
    let int = ValueKind::Arg(ArgKind::Int(None));
    Some(match name {
        "pid" => (Source::Pid, int),
        "tid" => (Source::Tid, int),
        "cpu" => (Source::Cpu, int),
        "cgroup" => (Source::Cgroup, int),
        "comm" => (Source::Comm, ValueKind::Comm),
        _ => return None,
    })
}

fn unit_scale(unit: Unit) -> Scale {
    let (mul, div) = match unit {
        Unit::None | Unit::Seconds | Unit::Bytes => (1.0, 1.0),
        Unit::Nanoseconds => (1.0, 1e9),
        Unit::Microseconds => (1.0, 1e6),
        Unit::Milliseconds => (1.0, 1e3),
        Unit::Kibibytes => (1024.0, 1.0),
        Unit::Mebibytes => (1024.0 * 1024.0, 1.0),
        Unit::Pages => (4096.0, 1.0),
    };
    Scale { mul, div }
}

/// The pattern as one for values of this kind; `None` if it can match none of them.
fn fit_pattern(pattern: &Pattern, kind: &ValueKind) -> Option<Pattern> {
    if kind.is_text() {
        return Some(match pattern {
            Pattern::Int(number) => Pattern::Exact(number.to_string()),
            other => other.clone(),
        });
    }
    match pattern {
        Pattern::Int(number) if i64::try_from(*number).is_ok() => Some(pattern.clone()),
        Pattern::Exact(text) if *kind == ValueKind::Arg(ArgKind::Bool) => match text.as_str() {
            "true" => Some(Pattern::Int(1)),
            "false" => Some(Pattern::Int(0)),
            _ => None,
        },
        _ => None,
    }
}

fn describe(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Int(number) => number.to_string(),
        Pattern::Exact(text) | Pattern::Glob(text) => format!("\"{text}\""),
        Pattern::Prefix(text) => format!("\"{text}*\""),
    }
}
