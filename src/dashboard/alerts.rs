//! Prometheus rules for conditions that make the metrics incorrect: an exporter that is down, probes that are not
//! attached, hits that were lost. Which values a metric should have, only its user knows.
//!
//! Every rule covers the exporters with this configuration's node name, each by its instance: two of the same name are
//! told apart, and exporters with another configuration have rules of their own.

mod network;
mod probes;

use std::collections::BTreeSet;

use serde::Serialize;

use super::scheme;
use crate::plan::{LabelPlan, Plan, ProbePlan};

/// Where each alert is explained, in a section of its name: in the source tree, and on every exporter's page.
const SOURCES: &str = "docs/alerts.md";
pub(crate) const ALERTS: &str = "/alerts";

/// Selects lost hits, without spans that began before their probe was attached: after every start there are some.
pub(super) const BUT_NO_START: &str = "reason!=\"no_start\"";

/// How long an exporter that has disappeared is still expected.
const ABSENCE_WINDOW: &str = "7d";

#[derive(Serialize)]
struct Rules {
    groups: [Group; 1],
}

#[derive(Serialize)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Serialize)]
struct Rule {
    alert: &'static str,
    expr: String,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    lasting: Option<&'static str>,
    labels: Labels,
    annotations: Annotations,
    /// The exporter that the rule is about cannot be queried.
    #[serde(skip)]
    is_gone: bool,
}

#[derive(Serialize)]
struct Labels {
    severity: &'static str,
}

#[derive(Serialize)]
struct Annotations {
    summary: String,
    description: &'static str,
    runbook_url: String,
}

impl Rule {
    fn new(
        alert: &'static str,
        severity: &'static str,
        expr: String,
        summary: &str,
        reason: &'static str,
    ) -> Self {
        let annotations =
            Annotations { summary: summary.to_string(), description: reason, runbook_url: String::new() };
        Self { alert, expr, lasting: None, labels: Labels { severity }, annotations, is_gone: false }
    }

    /// The runbook must come from another exporter.
    fn of_absent_exporter(mut self) -> Self {
        self.is_gone = true;
        self
    }

    /// Its section of the page at `base`. Without a base, the exporter explains it itself, at the address by which
    /// Prometheus knows it.
    fn runbook(&self, base: Option<&str>, scheme: &str) -> String {
        let page = |instance: &str| format!("{scheme}://{instance}{ALERTS}");
        let base = match base {
            Some(base) => template_safe(base),
            None if self.is_gone => format!(
                "{{{{ with query \"fibre_exporter_info\" }}}}{}{{{{ else }}}}{SOURCES}{{{{ end }}}}",
                page("{{ . | first | label \"instance\" }}")
            ),
            None => page("{{ $labels.instance }}"),
        };
        format!("{base}#{}", self.alert.to_lowercase())
    }

    /// Makes the rule fire only after it has held for this long.
    fn lasting(mut self, time: &'static str) -> Self {
        self.lasting = Some(time);
        self
    }
}

/// Returns a rule file, in YAML. `runbooks` is the address of a page whose sections explain the alerts, if not the
/// exporters' own page.
pub fn alerts(plan: &Plan, runbooks: Option<&str>) -> String {
    let mut rules = rules(plan);
    for rule in &mut rules {
        rule.annotations.runbook_url = rule.runbook(runbooks, scheme(plan));
    }
    let rules = Rules { groups: [Group { name: format!("exporter {}", plan.settings.node_name), rules }] };
    // Only strings and lists, which cannot fail to serialize.
    serde_yaml::to_string(&rules).unwrap_or_default()
}

fn rules(plan: &Plan) -> Vec<Rule> {
    let node = quoted(&plan.settings.node_name);
    let info = format!("fibre_exporter_info{{node={node}}}");
    // Restricts an expression to the exporters with this node name.
    let ours = |expr: &str| format!("{expr} and on (job, instance) {info}");
    let mut rules = vec![
        Rule::new(
            "ExporterDown",
            "critical",
            format!("up == 0 and on (job, instance) max by (job, instance) (max_over_time({info}[{ABSENCE_WINDOW}]))"),
            &format!(
                "The exporter of node {} on {{{{ $labels.instance }}}} cannot be scraped.",
                template_safe(&plan.settings.node_name)
            ),
            "The exporter is down, unreachable, or rejects the password. The Targets page of Prometheus shows \
             the last error.",
        )
        .lasting("2m")
        .of_absent_exporter(),
        Rule::new(
            "ExporterNotScraped",
            "critical",
            format!("absent_over_time({info}[{ABSENCE_WINDOW}])"),
            &format!(
                "Prometheus has no metrics of any exporter of node {}.",
                template_safe(&plan.settings.node_name)
            ),
            "The exporter is not a Prometheus target, or was never scraped successfully.",
        )
        .lasting("10m")
        .of_absent_exporter(),
        Rule::new(
            "ExporterScrapeSlow",
            "warning",
            ours("scrape_duration_seconds > 2"),
            "Scrapes of {{ $labels.instance }} take {{ $value | humanizeDuration }}.",
            "The machine is overloaded, the network is slow, or there are too many series (see \
             fibre_exporter_series).",
        )
        .lasting("15m"),
        Rule::new(
            "ExporterReloadFailed",
            "warning",
            ours(
                "(fibre_exporter_config_last_reload_successful == 0 or \
                 fibre_exporter_tls_certificate_last_reload_successful == 0)",
            ),
            "The exporter on {{ $labels.instance }} failed to reload its configuration or TLS certificate.",
            "What was loaded before is still in use. The exporter's log has the reason.",
        ),
    ];
    if plan.settings.web.tls.is_some() {
        rules.push(Rule::new(
            "ExporterCertificateEnds",
            "warning",
            ours("fibre_exporter_tls_certificate_not_after_seconds - time() < 21 * 86400"),
            "The TLS certificate of the exporter on {{ $labels.instance }} expires in {{ $value | \
             humanizeDuration }}.",
            "Prometheus cannot scrape the exporter after that. Replace the files; they are reloaded within \
             seconds, without a restart.",
        ));
    }
    if !plan.targets.is_empty() {
        rules.extend(probes::rules(plan, &ours));
    }
    if plan.probes.iter().any(|probe| !probe.slow.is_empty()) {
        rules.extend(probes::slow_rules(plan, &ours));
    }
    if detects(plan) {
        rules.extend(network::detection_rules(&ours));
    }
    if let Some(network) = &plan.network {
        rules.extend(network::rules(network, &ours));
    }
    rules
}

/// Whether attackers are detected, by probes or in packets.
pub(super) fn detects(plan: &Plan) -> bool {
    plan.probes.iter().any(|probe| !probe.bans.is_empty())
        || plan.network.as_ref().is_some_and(|network| network.detect.is_on())
}

/// Matchers of the probes that must be in their files; `None` if all probes are optional.
pub(super) fn absence_matters(plan: &Plan) -> Option<String> {
    let own: Vec<&ProbePlan> = plan.probes.iter().filter(|probe| !probe.optional).collect();
    if own.is_empty() {
        return None;
    }
    let names = one_of(own.iter().map(|probe| probe.name.as_str()));
    let of = one_of(own.iter().map(|probe| plan.targets[probe.target].name.as_str()));
    Some(format!("target=~{of}, probe=~{names}"))
}

/// Metrics with a label whose values the program chooses.
pub(super) fn metrics_with_free_labels(plan: &Plan) -> BTreeSet<usize> {
    let is_free = |label: &LabelPlan| matches!(label, LabelPlan::From { default: None, .. });
    let actions = plan.probes.iter().flat_map(|probe| &probe.actions);
    actions.filter(|action| action.labels.iter().any(is_free)).map(|action| action.metric).collect()
}

/// A PromQL string. Its escapes are those of Go, a superset of JSON's.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// A PromQL string with a regular expression that matches only these texts.
pub(super) fn one_of<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut all: Vec<String> = Vec::new();
    for text in texts {
        let mut escaped = String::new();
        for c in text.chars() {
            if c.is_ascii_punctuation() && !"_-:/ ".contains(c) {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        if !all.contains(&escaped) {
            all.push(escaped);
        }
    }
    quoted(&all.join("|"))
}

/// Escapes text for an annotation, which is a template.
fn template_safe(text: &str) -> String {
    text.replace("{{", "{ {")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_literally() {
        assert_eq!(one_of(["a.b", "udp:x", "a.b"].into_iter()), r#""a\\.b|udp:x""#);
        assert_eq!(one_of(["f(int*)+0x10"].into_iter()), r#""f\\(int\\*\\)\\+0x10""#);
    }
}
