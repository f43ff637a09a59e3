//! Prometheus rules for what makes the metrics untrue: an exporter that is gone, probes that are not attached, hits
//! that were lost. What a metric's own value should be, only its user knows.
//!
//! Every rule is about the exporters with this configuration's node name, each by its instance: two of the same name are
//! told apart, and exporters with another configuration have rules of their own.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::net::NetworkConfig;
use crate::plan::{LabelPlan, Plan, ProbePlan};

/// Where each alert is explained, in a section of its name.
const RUNBOOK: &str = "docs/alerts.md";

/// The part of a program's time that tracing may take before somebody is told.
const MOST_OVERHEAD: f64 = 0.05;

/// The part of DNS queries that may fail before somebody is told.
const MOST_FAILING: f64 = 0.2;

/// How long an exporter is remembered that is gone.
const MEMORY: &str = "7d";

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
        let runbook_url = format!("{RUNBOOK}#{}", alert.to_lowercase());
        let annotations = Annotations { summary: summary.to_string(), description: reason, runbook_url };
        Self { alert, expr, lasting: None, labels: Labels { severity }, annotations }
    }

    /// Fires only after it has held for so long.
    fn lasting(mut self, time: &'static str) -> Self {
        self.lasting = Some(time);
        self
    }
}

/// A rule file, in YAML.
pub fn alerts(plan: &Plan) -> String {
    let rules = Rules {
        groups: [Group { name: format!("exporter {}", plan.settings.node_name), rules: rules(plan) }],
    };
    // Strings and lists only: nothing of it can fail.
    serde_yaml::to_string(&rules).unwrap_or_default()
}

fn rules(plan: &Plan) -> Vec<Rule> {
    let node = quoted(&plan.settings.node_name);
    let info = format!("fibre_exporter_info{{node={node}}}");
    // Of the exporters with this node name.
    let ours = |expr: &str| format!("{expr} and on (job, instance) {info}");
    let mut rules = vec![
        Rule::new(
            "ExporterDown",
            "critical",
            format!("up == 0 and on (job, instance) max by (job, instance) (max_over_time({info}[{MEMORY}]))"),
            &format!(
                "The exporter of node {} on {{{{ $labels.instance }}}} cannot be scraped.",
                template_safe(&plan.settings.node_name)
            ),
            "The exporter is down, unreachable, or rejects the password. The Targets page of Prometheus shows \
             the last error.",
        )
        .lasting("2m"),
        Rule::new(
            "ExporterNotScraped",
            "critical",
            format!("absent_over_time({info}[{MEMORY}])"),
            &format!(
                "Prometheus has no metrics of any exporter of node {}.",
                template_safe(&plan.settings.node_name)
            ),
            "The exporter is not a Prometheus target, or was never scraped successfully.",
        )
        .lasting("10m"),
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
            "Prometheus cannot scrape the exporter after that. Replace the files; they are reloaded within 30 \
             seconds, without a restart.",
        ));
    }
    if !plan.targets.is_empty() {
        rules.extend(probe_rules(plan, &ours));
    }
    if let Some(network) = &plan.network {
        rules.extend(network_rules(network, &ours));
    }
    rules
}

/// Rules of packets: of what is not counted, and of what the blocklist does not do.
fn network_rules(network: &NetworkConfig, ours: &dyn Fn(&str) -> String) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new(
            "ExporterInterfaceNotCounted",
            "warning",
            ours("network_attach_failed{reason!=\"pending\"} == 1"),
            "{{ $labels.direction }} of {{ $labels.interface }} on {{ $labels.instance }} is not counted: {{ $labels.reason }}.",
            "Packets of this interface and direction are missing from all metrics. See the exporter's log and /ready.",
        )
        .lasting("5m"),
    ];
    if network.block.is_some() {
        rules.push(
            Rule::new(
                "ExporterBlocklistFileUnreadable",
                "warning",
                ours("xdp_blocklist_file_readable == 0"),
                "The blocklist file {{ $labels.file }} on {{ $labels.instance }} cannot be read.",
                "The entries read before still hold, and become old. The exporter's log has the reason.",
            )
            .lasting("10m"),
        );
        rules.push(Rule::new(
            "ExporterBlocklistNotStored",
            "warning",
            ours("xdp_blocklist_stored == 0"),
            "Entries added to the blocklist of {{ $labels.instance }} are not stored.",
            "They hold now, and are gone after a restart. The disk is full or the file cannot be written; see the log.",
        ));
        rules.push(Rule::new(
            "ExporterBlocklistErrors",
            "warning",
            ours("increase(xdp_blocklist_errors_total[10m]) > 0"),
            "The kernel refused changes of the blocklist of {{ $labels.instance }}.",
            "What was listed before is still blocked; what was added may not be. The exporter's log has the reason.",
        ));
    }
    if network.count.tcp {
        rules.push(Rule::new(
            "ExporterListenOverflows",
            "warning",
            ours("increase(network_tcp_listen_overflows_total[10m]) > 0"),
            "A listening socket on {{ $labels.instance }} dropped connections: its accept queue was full.",
            "A server accepts too slowly, or its backlog is too short.",
        ));
    }
    if network.count.dns {
        let rate = |matcher: &str| {
            format!("sum by (job, instance, server) (rate(network_dns_queries_total{{{matcher}}}[10m]))")
        };
        let failing = rate("result=~\"timeout|servfail|refused\"");
        rules.push(
            Rule::new(
                "ExporterDnsFailing",
                "warning",
                ours(&format!("({failing} / {} > {MOST_FAILING} and {failing} > 0.05)", rate(""))),
                "{{ $value | humanizePercentage }} of the DNS queries of {{ $labels.instance }} to {{ $labels.server }} servers fail.",
                "They time out, or the answer is SERVFAIL or REFUSED.",
            )
            .lasting("10m"),
        );
    }
    rules
}

/// Rules of probes, and of their hits.
fn probe_rules(plan: &Plan, ours: &dyn Fn(&str) -> String) -> Vec<Rule> {
    let targets = one_of(plan.targets.iter().map(|target| target.name.as_str()));
    let mut rules = vec![
        Rule::new(
            "ExporterProbeNotAttached",
            "warning",
            ours(&format!("fibre_exporter_probe_state{{target=~{targets}, state=~\"waiting|refused\"}} == 1")),
            "{{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} is {{ $labels.state }}: {{ $labels.reason }}.",
            "The probe's metrics do not change until it is attached. `exporter check FILE` shows details.",
        )
        .lasting("5m"),
        Rule::new(
            "ExporterProbePartlyAttached",
            "info",
            ours(&format!("fibre_exporter_probe_state{{target=~{targets}, state=\"partly\"}} == 1")),
            "{{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} is only partly attached: \
             {{ $labels.reason }}.",
            "Its counts are correct but incomplete: hits at the other sites are missing.",
        )
        .lasting("15m"),
    ];
    rules.push(Rule::new(
        "ExporterProbeShed",
        "warning",
        ours(&format!("increase(fibre_exporter_probe_shed_seconds_total{{target=~{targets}}}[10m]) > 0")),
        "{{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} was detached for {{ $value | humanizeDuration }} of the \
         last ten minutes.",
        "Tracing took more of the program's CPU time than limits.overhead allows. The probe's counts are too low.",
    ));
    let rate =
        |name: &str| format!("rate(fibre_exporter_target_{name}_seconds_total{{target=~{targets}}}[10m])");
    rules.push(
        Rule::new(
            "ExporterTracingOverhead",
            "warning",
            ours(&format!("{} / {} > {MOST_OVERHEAD}", rate("tracing"), rate("cpu"))),
            "Tracing takes {{ $value | humanizePercentage }} of the CPU time of {{ $labels.target }} on {{ $labels.instance }}.",
            "The program is slower by that. fibre_exporter_probe_cost_seconds_total shows which probes cost most.",
        )
        .lasting("15m"),
    );
    if let Some(probes) = absence_matters(plan) {
        let absent = format!("fibre_exporter_probe_state{{{probes}, state=\"absent\"}} == 1");
        rules.push(
            Rule::new(
                "ExporterProbeAbsent",
                "warning",
                ours(&absent),
                "The file of {{ $labels.target }} on {{ $labels.instance }} has no probe {{ $labels.probe }}.",
                "The program may have been replaced by another version or build. `exporter probes FILE` lists \
                 its probes.",
            )
            .lasting("5m"),
        );
    }
    rules.push(Rule::new(
        "ExporterHitsLost",
        "warning",
        ours(&format!("increase(fibre_exporter_probe_lost_total{{target=~{targets}}}[10m]) > 0")),
        "Hits of {{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} were lost ({{ $labels.reason }}).",
        "The metrics of this probe are too low. If the reason is ring_full, raise `ring: { size }`.",
    ));
    rules.push(Rule::new(
        "ExporterReadFaults",
        "warning",
        ours(&format!("increase(fibre_exporter_probe_read_faults_total{{target=~{targets}}}[10m]) > 0")),
        "Arguments of {{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} could not be read.",
        "The memory was not mapped, or the argument is not a pointer: check its `type`.",
    ));
    let free = metrics_with_free_labels(plan);
    if !free.is_empty() {
        let of = one_of(free.into_iter().map(|metric| plan.metrics[metric].name.as_str()));
        rules.push(Rule::new(
            "ExporterLabelOverflow",
            "info",
            ours(&format!("increase(fibre_exporter_label_overflow_total{{metric=~{of}}}[1h]) > 0")),
            "{{ $labels.metric }} on {{ $labels.instance }} has reached the limit of a label.",
            "Further values are counted as \"other\". Map the values to fewer, or raise the label's `limit`.",
        ));
    }
    rules
}

/// Matchers of the probes that must be in their files; `None` if a program may do without any of them.
pub(super) fn absence_matters(plan: &Plan) -> Option<String> {
    let own: Vec<&ProbePlan> = plan.probes.iter().filter(|probe| !probe.optional).collect();
    if own.is_empty() {
        return None;
    }
    let names = one_of(own.iter().map(|probe| probe.name.as_str()));
    let of = one_of(own.iter().map(|probe| plan.targets[probe.target].name.as_str()));
    Some(format!("target=~{of}, probe=~{names}"))
}

/// Those with a label whose values the program chooses.
pub(super) fn metrics_with_free_labels(plan: &Plan) -> BTreeSet<usize> {
    let is_free = |label: &LabelPlan| matches!(label, LabelPlan::From { default: None, .. });
    let actions = plan.probes.iter().flat_map(|probe| &probe.actions);
    actions.filter(|action| action.labels.iter().any(is_free)).map(|action| action.metric).collect()
}

/// A PromQL string. Its escapes are Go's, of which JSON's are a part.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// A PromQL string with a regular expression that matches these texts only.
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

/// Text that stands for itself in an annotation, which is a template.
fn template_safe(text: &str) -> String {
    text.replace("{{", "{ {")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_as_they_are() {
        assert_eq!(one_of(["a.b", "udp:x", "a.b"].into_iter()), r#""a\\.b|udp:x""#);
        assert_eq!(one_of(["f(int*)+0x10"].into_iter()), r#""f\\(int\\*\\)\\+0x10""#);
    }
}
