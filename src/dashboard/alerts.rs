//! Prometheus rules for what makes the metrics untrue: an exporter that is gone, probes that are not attached, hits
//! that were lost. What a metric's own value should be, only its user knows.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::plan::{LabelPlan, Plan, ProbePlan};

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
}

/// A rule file, in YAML.
pub fn alerts(plan: &Plan) -> String {
    let node = quoted(&plan.settings.node_name);
    let targets = one_of(plan.targets.iter().map(|target| target.name.as_str()));
    let rule = |alert, expr, lasting, severity, summary: &str, description| Rule {
        alert,
        expr,
        lasting,
        labels: Labels { severity },
        annotations: Annotations { summary: summary.to_string(), description },
    };
    let mut rules = vec![rule(
        "ExporterGone",
        format!("absent(fibre_exporter_info{{node={node}}})"),
        Some("5m"),
        "critical",
        &format!(
            "Prometheus has no metrics of the exporter of node {}.",
            template_safe(&plan.settings.node_name)
        ),
        "It does not run, cannot be reached, refuses the password, or is no target of Prometheus.",
    )];
    if plan.settings.tls.is_some() {
        rules.push(rule(
            "ExporterCertificateEnds",
            "fibre_exporter_tls_certificate_not_after_seconds - time() < 21 * 86400".to_string(),
            None,
            "warning",
            "The certificate of the exporter on {{ $labels.instance }} ends in {{ $value | humanizeDuration }}.",
            "After that Prometheus cannot scrape it. A new pair of files is taken up within 30 seconds, without a restart.",
        ));
    }
    rules.push(rule(
        "ExporterProbeNotAttached",
        format!("fibre_exporter_probe_state{{target=~{targets}, state=~\"waiting|refused\"}} == 1"),
        Some("5m"),
        "warning",
        "{{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} is {{ $labels.state }}: {{ $labels.reason }}.",
        "Its metrics stay as they are whatever the program does. `exporter check FILE` tells more.",
    ));
    let own: Vec<&ProbePlan> = plan.probes.iter().filter(|probe| !probe.optional).collect();
    if !own.is_empty() {
        let names = one_of(own.iter().map(|probe| probe.name.as_str()));
        let of = one_of(own.iter().map(|probe| plan.targets[probe.target].name.as_str()));
        rules.push(rule(
            "ExporterProbeAbsent",
            format!("fibre_exporter_probe_state{{target=~{of}, probe=~{names}, state=\"absent\"}} == 1"),
            Some("5m"),
            "warning",
            "{{ $labels.probe }} is not in the file of {{ $labels.target }} on {{ $labels.instance }}.",
            "The program may have been replaced by another version or build; `exporter probes FILE` lists what it has.",
        ));
    }
    rules.push(rule(
        "ExporterHitsLost",
        format!("increase(fibre_exporter_probe_lost_total{{target=~{targets}}}[10m]) > 0"),
        None,
        "warning",
        "Hits of {{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} were lost ({{ $labels.reason }}).",
        "Counts of this probe are too low by what was lost. A full ring wants a larger `ring: { size }`.",
    ));
    rules.push(rule(
        "ExporterReadFaults",
        format!("increase(fibre_exporter_probe_read_faults_total{{target=~{targets}}}[10m]) > 0"),
        None,
        "warning",
        "Arguments of {{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} could not be read.",
        "The memory that the probe pointed to was not there, or the argument is no pointer: see its `type`.",
    ));
    let free = metrics_with_free_labels(plan);
    if !free.is_empty() {
        rules.push(rule(
            "ExporterLabelOverflow",
            format!(
                "increase(fibre_exporter_label_overflow_total{{metric=~{}}}[1h]) > 0",
                one_of(free.into_iter())
            ),
            None,
            "warning",
            "{{ $labels.metric }} on {{ $labels.instance }} has more label values than it may show.",
            "The rest is counted as \"other\". Map the values, or raise the label's `limit`.",
        ));
    }
    let rules = Rules { groups: [Group { name: "exporter".to_string(), rules }] };
    // Strings and lists only: nothing of it can fail.
    serde_yaml::to_string(&rules).unwrap_or_default()
}

/// Those with a label whose values the program chooses.
fn metrics_with_free_labels(plan: &Plan) -> Vec<&str> {
    let is_free = |label: &LabelPlan| matches!(label, LabelPlan::From { default: None, .. });
    let actions = plan.probes.iter().flat_map(|probe| &probe.actions);
    let free: BTreeSet<usize> =
        actions.filter(|action| action.labels.iter().any(is_free)).map(|action| action.metric).collect();
    free.into_iter().map(|metric| plan.metrics[metric].name.as_str()).collect()
}

/// A PromQL string. Its escapes are Go's, of which JSON's are a part.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// A PromQL string with a regular expression that matches these texts only.
fn one_of<'a>(texts: impl Iterator<Item = &'a str>) -> String {
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
