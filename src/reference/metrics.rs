//! The page of all metrics, from the families that are served: those of the profiles by their plans, the exporter's own
//! and those of packets by the code that runs at a scrape, with counts of zero.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use crate::abi::accounting_slot;
use crate::config::{self, Environment, Overrides};
use crate::exposition::Family;
use crate::http::HttpStats;
use crate::kernel::{Attach, Counts, Prices, SlowCounts};
use crate::kinds;
use crate::net;
use crate::plan::{self, Plan};
use crate::slow::SlowNumbers;
use crate::targets::{TargetsStatus, Ticks, Usage};
use crate::telemetry::{Reloads, Telemetry};
use crate::webhook::WebhookNumbers;

/// A kernel that has counted nothing.
#[derive(Debug)]
struct Nothing;

impl Counts for Nothing {
    fn accounting(&self, _: usize, _: accounting_slot) -> u64 {
        0
    }

    fn last_hit(&self, _: usize) -> u64 {
        // Without a hit it would have no series.
        1
    }

    fn stray(&self) -> u64 {
        0
    }

    fn slow(&self, _: usize) -> Option<SlowCounts> {
        Some(SlowCounts::default())
    }

    fn misses(&self) -> Vec<(&'static str, u64)> {
        vec![("", 0)]
    }
}

/// Returns the documentation page, as Markdown.
///
/// # Panics
/// If a profile, or the configuration in here, is invalid.
pub fn metrics_page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Made from the program's own metrics by tests/unprivileged/reference.rs: run it with UPDATE_EXPECT=1. -->\n\n\
         What the help texts say, and the labels of each. A histogram is `_bucket`, `_sum` and `_count`. Metrics of probes have\n\
         the label `node`, and those of a target's `labels:`; one that two targets feed has the label `target`, unless the targets'\n\
         own labels tell them apart. Metrics of other network namespaces have the label `netns` or `container`.\n",
    );
    for (name, _) in plan::profiles() {
        let plan = planned(&format!("    profile: {name}\n"));
        begin(&mut page, &format!("Profile `{name}`"));
        for metric in &plan.metrics {
            let labels: Vec<_> = metric.displayed_labels().collect();
            let kind = kinds::of(&metric.kind).exposed_as();
            row(&mut page, &metric.name, kind.word(), &labels, &metric.help);
        }
    }
    begin(&mut page, "The exporter itself");
    telemetry().collect().iter().for_each(|family| row_of(&mut page, family));
    begin(&mut page, "Packets");
    net::every_family().iter().for_each(|family| row_of(&mut page, family));
    page.push_str("\nWhich of these are counted, and what their labels say: [Packets](network.md).\n");
    page
}

fn begin(page: &mut String, title: &str) {
    let _ = write!(page, "\n## {title}\n\n| metric | type | labels | |\n|---|---|---|---|\n");
}

fn row_of(page: &mut String, family: &Family) {
    let head = family.head();
    let mut labels = Vec::new();
    for sample in family.samples() {
        for name in label_names(head.labels(sample.key)) {
            if !labels.contains(&name) {
                labels.push(name);
            }
        }
    }
    assert!(!family.is_empty(), "{} has no series here, so that its labels are not known", family.name());
    row(page, family.name(), head.kind().word(), &labels, head.help());
}

fn row(page: &mut String, name: &str, kind: &str, labels: &[&str], help: &str) {
    let help = help.trim().replace('|', "\\|");
    let _ = writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
}

/// The names in `a="x",b="y"`.
fn label_names(mut text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        names.push(name.trim_start_matches(','));
        let mut is_escaped = false;
        let end = rest.find(|c| {
            let is_end = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        text = end.map_or("", |end| &rest[end + 1..]);
    }
    names
}

/// The plan of one target.
fn planned(rest: &str) -> Plan {
    let text = format!("targets:\n  - name: any\n    binary: /bin/true\n{rest}");
    let read = config::read_bytes("reference", text.into_bytes(), &Overrides::default(), &Environment::new());
    plan::plan_draft(read).unwrap_or_else(|wrong| panic!("{}", wrong.render())).1
}

/// All of the exporter's own metrics, with every feature enabled.
fn telemetry() -> Telemetry {
    let plan = Arc::new(planned(
        "    probes:\n      - span: wait_seconds\n        from: usdt:a:begin\n        to: usdt:a:end\n",
    ));
    let status = TargetsStatus::new(&plan);
    status.add_usage(0, Usage { share: Some(0.0), ..Usage::default() });
    status.set_ticks(Ticks { jiffies: 0, unix: 0.0, hz: 100.0 });
    let http = [Arc::new(HttpStats::default()), Arc::new(HttpStats::default())];
    http[0].answered("/metrics", 200);
    http[0].certificate_not_after.store(1, std::sync::atomic::Ordering::Relaxed);
    Telemetry {
        overflows: Arc::new(Mutex::new(vec![0; plan.metrics.len()])),
        plan,
        counts: Arc::new(Nothing),
        status: Arc::new(status),
        drain: Arc::default(),
        http,
        attach: Attach::Multi,
        prices: Prices::default(),
        logging: None,
        reloads: Arc::new(Reloads::started()),
        started: 0.0,
        series: Arc::default(),
        slow: Some(SlowNumbers { webhook: Some(WebhookNumbers::default()), ..SlowNumbers::default() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_label_names_despite_quoted_values() {
        assert_eq!(label_names(r#"a="x",b="y=\"z\",c=\"1\\",d="""#), ["a", "b", "d"]);
        assert!(label_names("").is_empty());
    }
}
