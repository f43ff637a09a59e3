//! The names that are known in one probe: arguments and built-in values, and the metrics that use them.

use super::CgroupName;
use super::carried::{CarriedValues, unnamed_length};
use super::{
    ActionPlan, ComputedIn, ConditionPlan, LabelPlan, ProbePlan, Scale, ValueKind, ValuePlan, ValueSource,
};
use crate::config::model::{
    Arg, ArgKind, ArgOf, BUILT_INS, Ban, Condition, IntType, Label, LabelPattern, LabelValue, Metric, Named,
    Op, Operand, Point, Probe, Unit,
};
use crate::config::place::Place;
use crate::config::{Diagnostics, did_you_mean};
use crate::kinds;

/// A signed 64-bit integer.
const WORD: IntType = IntType { bytes: 8, signed: true };

/// The names that are known in one probe, and the plan that is being filled.
pub(super) struct Scope<'a> {
    pub probe: &'a Probe,
    pub plan: &'a mut ProbePlan,
    pub diags: &'a Diagnostics,
    /// Set at the end of a span or the return of a function.
    pub late: Option<CarriedValues>,
}

impl Scope<'_> {
    pub(super) fn action(&mut self, metric: &Metric) -> Option<ActionPlan> {
        // All parts are checked before the first error returns.
        let value = metric.value.as_ref().map(|named| self.number(named));
        let when: Vec<_> = metric.when.iter().map(|condition| self.condition(condition)).collect();
        let labels: Vec<_> = metric.labels.iter().map(|label| self.label(label)).collect();
        let value = match value {
            Some(value) => Some(value?),
            None => None,
        };
        let mut scale = value.map_or(Scale::ONE, |value| unit_scale(self.plan.values[value].unit));
        scale.mul *= metric.scale.unwrap_or(1.0);
        if metric.lowers {
            scale = scale.negated();
        }
        let mut labels: Vec<LabelPlan> = labels.into_iter().collect::<Option<_>>()?;
        if kinds::of(&metric.kind).ends_with_process() && !self.distinguishes_processes(&labels) {
            let value = self.value(&metric.at, "pid")?;
            labels.push(LabelPlan::From { value, mapping: Vec::new(), default: None, limit: u32::MAX });
        }
        let kind = kinds::of(&metric.kind);
        let is_unsigned = value.is_some_and(|value| self.plan.values[value].kind.is_unsigned_word());
        Some(ActionPlan {
            at: metric.at.clone(),
            metric: 0,
            value,
            scale,
            refuses_negative: kind.refuses_negative()
                || metric.native
                || is_unsigned && !kind.shows_any_word(),
            when: when.into_iter().collect::<Option<_>>()?,
            labels,
            computed_in: ComputedIn::Kernel,
        })
    }

    fn distinguishes_processes(&self, labels: &[LabelPlan]) -> bool {
        labels.iter().any(|label| match label {
            LabelPlan::From { value, mapping, default: None, .. } => {
                mapping.is_empty() && self.plan.values[*value].source == ValueSource::Pid
            }
            LabelPlan::From { .. } | LabelPlan::Const(_) => false,
        })
    }

    /// The index of a metric's value.
    fn number(&mut self, named: &Named) -> Option<usize> {
        let index = self.value(&named.at, &named.name)?;
        if is_number(&self.plan.values[index].kind) {
            return Some(index);
        }
        let message = format!("\"{}\" is not a number and cannot be a metric's value", named.name);
        self.diags.error(&named.at, message);
        None
    }

    pub(super) fn condition(&mut self, condition: &Condition) -> Option<ConditionPlan> {
        let value = self.value(&condition.at, &condition.value)?;
        let kind = &self.plan.values[value].kind;
        if kind.is_only_shown() {
            self.refuse_comparison(&condition.at, &condition.value);
            return None;
        }
        let text = kind.is_text() || kind.is_symbol();
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
                ("a number", "==, !=, <, <=, > and >= and a number")
            };
            self.diags.error(
                &condition.at,
                format!("\"{}\" is {is}; it can only be compared with {may}", condition.value),
            );
            return None;
        }
        let is_unsigned = self.plan.values[value].kind.is_unsigned_word();
        if let Operand::Int(number) = condition.with
            && i64::try_from(number).is_err()
            && !(is_unsigned && u64::try_from(number).is_ok())
        {
            let sign = if is_unsigned { "" } else { " with a sign" };
            self.diags.error(&condition.at, format!("{number} does not fit in a 64-bit integer{sign}"));
        }
        let (mut op, mut with) = (condition.op, condition.with.clone());
        // Any number other than 0 is true.
        if self.plan.values[value].kind == ValueKind::Arg(ArgKind::Bool) && with == Operand::Int(1) {
            match op {
                Op::Eq => (op, with) = (Op::Ne, Operand::Int(0)),
                Op::Ne => (op, with) = (Op::Eq, Operand::Int(0)),
                _ => {}
            }
        }
        Some(ConditionPlan { value, op, with })
    }

    pub(super) fn label(&mut self, label: &Label) -> Option<LabelPlan> {
        let name = match &label.value {
            LabelValue::Const(text) => return Some(LabelPlan::Const(text.clone())),
            LabelValue::From(name) => name,
        };
        let value = self.value(&label.at, name)?;
        let kind = &self.plan.values[value].kind;
        if kind.is_only_shown() && !label.mapping.is_empty() {
            self.refuse_comparison(&label.at, name);
            return None;
        }
        let mut mapping = Vec::new();
        for (pattern, display) in &label.mapping {
            match fit_pattern(pattern, kind) {
                Some(pattern) => mapping.push((pattern, display.clone())),
                None => {
                    self.diags.error(
                        &label.at,
                        format!("\"{name}\" is a number; {} can never match it", describe(pattern)),
                    );
                }
            }
        }
        let limit = label.limit.unwrap_or(u32::MAX);
        if *kind == ValueKind::Arg(ArgKind::Bool) {
            // Any number other than 0 is true, so there are only two values.
            let display = |number, plain: &str| {
                let found = mapping.iter().find(|(pattern, _)| *pattern == LabelPattern::Int(number));
                found.map_or_else(
                    || label.default.clone().unwrap_or_else(|| plain.to_string()),
                    |(_, display)| display.clone(),
                )
            };
            let (no, yes) = (display(0, "false"), display(1, "true"));
            let mapping = vec![(LabelPattern::Int(0), no)];
            return Some(LabelPlan::From { value, mapping, default: Some(yes), limit });
        }
        Some(LabelPlan::From { value, mapping, default: label.default.clone(), limit })
    }

    /// Reports that this value is resolved only when it is displayed.
    fn refuse_comparison(&self, at: &Place, name: &str) {
        let help = match name {
            "function" => "give each of the functions its own probe",
            _ => "give these processes a target of their own, by `process` or `cmdline`",
        };
        self.diags
            .error(at, format!("\"{name}\" is resolved to a name only for display and cannot be compared"))
            .help(help);
    }

    /// As [`Self::value`], for what is shown outside of labels.
    pub(super) fn shown(&mut self, at: &Place, name: &str) -> Option<usize> {
        let value = self.value(at, name)?;
        if self.plan.values[value].kind != ValueKind::ProcessText {
            return Some(value);
        }
        self.diags.error(at, format!("\"{name}\" can only be a label")).help("use \"pid\" or \"comm\" here");
        None
    }

    /// The index of the value called `name`, which is added to those that are read.
    pub(super) fn value(&mut self, at: &Place, name: &str) -> Option<usize> {
        if let Some(known) = self.plan.values.iter().position(|value| value.name == name) {
            return Some(known);
        }
        let planned = if let Some(arg) = self.probe.args.iter().find(|arg| arg.name == name) {
            let kind = match &arg.kind {
                // Text carried from the start includes its length.
                ArgKind::StrLen { max, .. } if self.is_carried(arg) => {
                    ValueKind::Arg(ArgKind::Str { max: *max })
                }
                ArgKind::StrLen { length, max } => {
                    let len = self.length(arg, *length)?;
                    ValueKind::StrLen { len, max: *max }
                }
                kind => ValueKind::Arg(kind.clone()),
            };
            ValuePlan {
                at: arg.at.clone(),
                name: name.to_string(),
                source: self.source(arg)?,
                kind,
                unit: arg.unit,
            }
        } else if let Some((source, kind, unit)) = self.built_in(name) {
            ValuePlan { at: at.clone(), name: name.to_string(), source, kind, unit }
        } else {
            let known = self.probe.args.iter().map(|arg| arg.name.as_str()).chain(BUILT_INS.iter().copied());
            let near = did_you_mean(name, known);
            if is_unread(self.probe, name) {
                // Its error has been reported.
            } else if BUILT_INS.contains(&name) {
                let help = match name {
                    "retval" => "only functions return; use `function: NAME`",
                    "duration" => "only functions (`function: NAME`) and spans have a duration",
                    _ => "it is only known at function entries; use `function: NAME`",
                };
                self.diags.error(at, format!("\"{name}\" is not available at this kind of probe")).help(help);
            } else {
                self.diags
                    .error(
                        at,
                        format!(
                            "\"{name}\" is neither an argument of this probe nor a built-in \
                         value{near}"
                        ),
                    )
                    .help(format!("add it to args: {{ {name}: {{ index: ... }} }}"));
            }
            return None;
        };
        self.plan.values.push(planned);
        Some(self.plan.values.len() - 1)
    }

    /// Whether the argument is read at the start and used at the end.
    fn is_carried(&self, arg: &Arg) -> bool {
        self.late.is_some() && arg.to_index.is_none() && !arg.at_return
    }

    /// The length of a text: the argument at that position, named or not.
    fn length(&mut self, text: &Arg, of: ArgOf) -> Option<usize> {
        let known = self.probe.args.iter().find(|other| other.of == of && other.offset.is_none());
        let at_return = of == ArgOf::Result;
        let unnamed = || match of {
            ArgOf::Call(_) => unnamed_length(text),
            ArgOf::Result => Arg { kind: ArgKind::Int(self.probe.returns), ..unnamed_length(text) },
        };
        let of = known.cloned().unwrap_or_else(|| Arg { of, at_return, ..unnamed() });
        if let Some(known) = self.plan.values.iter().position(|value| value.name == of.name) {
            return Some(known);
        }
        let source = self.source(&of)?;
        let kind = ValueKind::Arg(ArgKind::Int(None));
        self.plan.values.push(ValuePlan { at: of.at, name: of.name, source, kind, unit: Unit::None });
        Some(self.plan.values.len() - 1)
    }

    /// Where an argument is read: here, or at the start of the span, which carries it.
    fn source(&mut self, arg: &Arg) -> Option<ValueSource> {
        let Some(late) = &mut self.late else { return Some(ValueSource::of(arg, arg.of)) };
        match arg.to_index {
            Some(index) => Some(ValueSource::of(arg, ArgOf::Call(index))),
            None => late.source(arg, &self.probe.args, self.diags),
        }
    }

    fn built_in(&mut self, name: &str) -> Option<(ValueSource, ValueKind, Unit)> {
        let int = ValueKind::Arg(ArgKind::Int(Some(WORD)));
        let is_function = matches!(self.plan.point, Point::Function(_));
        let cgroup = |what| (ValueSource::Cgroup, ValueKind::Cgroup(what), Unit::None);
        Some(match (name, &mut self.late) {
            ("pid", _) => (ValueSource::Pid, int, Unit::None),
            ("tid", _) => (ValueSource::Tid, int, Unit::None),
            ("cpu", _) => (ValueSource::Cpu, int, Unit::None),
            ("cgroup", _) => cgroup(CgroupName::Path),
            ("container", _) => cgroup(CgroupName::Container),
            ("container_id", _) => cgroup(CgroupName::ContainerId),
            ("image", _) => cgroup(CgroupName::Image),
            ("pod", _) => cgroup(CgroupName::Pod),
            ("namespace", _) => cgroup(CgroupName::Namespace),
            ("unit", _) => cgroup(CgroupName::Unit),
            ("comm", _) => (ValueSource::Comm, ValueKind::Comm, Unit::None),
            ("exe", _) => (ValueSource::Exe, ValueKind::ProcessText, Unit::None),
            ("cmdline", _) => (ValueSource::Cmdline, ValueKind::ProcessText, Unit::None),
            ("duration", Some(late)) => {
                late.uses_duration = true;
                (ValueSource::Duration, int, Unit::Nanoseconds)
            }
            ("retval", Some(late)) if late.is_return => {
                let returns = self.probe.returns;
                (ValueSource::Retval(returns), ValueKind::Arg(ArgKind::Int(returns)), Unit::None)
            }
            ("function", _) if is_function => (ValueSource::Function, ValueKind::Function, Unit::None),
            ("caller", None) if is_function => {
                (ValueSource::Caller, ValueKind::Arg(ArgKind::Symbol), Unit::None)
            }
            _ => return None,
        })
    }
}

/// Whether the name may be unknown only because of an error that has been reported.
pub(super) fn is_unread(probe: &Probe, name: &str) -> bool {
    let unread = &probe.unread;
    let is_built_in = BUILT_INS.contains(&name);
    unread.all_args && !is_built_in || unread.args.iter().any(|arg| arg == name) || unread.on && is_built_in
}

fn is_number(kind: &ValueKind) -> bool {
    matches!(kind, ValueKind::Arg(ArgKind::Int(_) | ArgKind::Bool))
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

/// The pattern for values of this kind; `None` if it can match none of them.
fn fit_pattern(pattern: &LabelPattern, kind: &ValueKind) -> Option<LabelPattern> {
    if kind.is_text() || kind.is_symbol() {
        return Some(match pattern {
            LabelPattern::Int(number) => LabelPattern::Exact(number.to_string()),
            other => other.clone(),
        });
    }
    match pattern {
        LabelPattern::Int(number) if kind.is_unsigned_word() => {
            u64::try_from(*number).ok().map(|_| pattern.clone())
        }
        LabelPattern::Int(number) if i64::try_from(*number).is_ok() => Some(pattern.clone()),
        LabelPattern::Exact(text) if *kind == ValueKind::Arg(ArgKind::Bool) => match text.as_str() {
            "true" => Some(LabelPattern::Int(1)),
            "false" => Some(LabelPattern::Int(0)),
            _ => None,
        },
        _ => None,
    }
}

fn describe(pattern: &LabelPattern) -> String {
    match pattern {
        LabelPattern::Int(number) => number.to_string(),
        LabelPattern::Exact(text) | LabelPattern::Glob(text) => format!("\"{text}\""),
        LabelPattern::Prefix(text) => format!("\"{text}*\""),
    }
}

/// The names that a metric mentions.
pub(super) fn mentioned(metric: &Metric) -> impl Iterator<Item = &str> {
    let labels = metric.labels.iter().filter_map(|label| match &label.value {
        LabelValue::From(name) => Some(name.as_str()),
        LabelValue::Const(_) => None,
    });
    let value = metric.value.iter().map(|named| named.name.as_str());
    let kept = metric.slow.iter().flat_map(|slow| slow.fields.iter().flatten().chain(&slow.key));
    let value = value.chain(kept.map(|named| named.name.as_str()));
    value.chain(metric.when.iter().map(|condition| condition.value.as_str())).chain(labels)
}

/// The names that a ban mentions.
pub(super) fn mentioned_by(ban: &Ban) -> impl Iterator<Item = &str> {
    let conditions = ban.when.iter().map(|condition| condition.value.as_str());
    std::iter::once(ban.address.name.as_str()).chain(conditions)
}

/// Warns about arguments that nothing mentions: likely a mistake, though they cost nothing.
pub(super) fn warn_of_unused(probe: &Probe, key: Option<&str>, warnings: &Diagnostics) {
    let template = probe.log.as_deref().unwrap_or_default();
    if probe.metrics.iter().any(|metric| metric.slow.as_ref().is_some_and(|slow| slow.fields.is_none())) {
        // All arguments are recorded.
        return;
    }
    for arg in &probe.args {
        let is_length = probe
            .args
            .iter()
            .any(|other| matches!(other.kind, ArgKind::StrLen { length, .. } if length == arg.of));
        let used = probe.metrics.iter().flat_map(mentioned).any(|name| name == arg.name)
            || probe.bans.iter().flat_map(mentioned_by).any(|name| name == arg.name)
            || template.contains(&format!("{{{}}}", arg.name))
            || key == Some(&arg.name)
            || is_length;
        if !used && !probe.from_profile {
            let name = &arg.name;
            warnings.error(&arg.at, format!("argument \"{name}\" is not used by any metric or log line"));
        }
    }
}
