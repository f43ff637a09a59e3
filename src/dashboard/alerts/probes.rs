//! Rules for probes, their hits, and slow events.

use super::{BUT_NO_START, Rule, absence_matters, metrics_with_free_labels, one_of};
use crate::plan::Plan;

/// The share of a program's CPU time that tracing may take before the alert fires.
const MAX_OVERHEAD: f64 = 0.05;

/// Overhead below this share of a core never fires it: in a program that hardly runs, a few hits are a large share.
const MIN_OVERHEAD: f64 = 0.005;

/// The share of the ends of spans that may lack a start before the alert fires: they do if they began before the probe was
/// attached, and always if their key is wrong.
const MAX_WITHOUT_START: f64 = 0.5;

/// Selects probes in such a state, without the labels that explain it: these change while the state lasts, for example
/// with the number of processes examined, and a series whose labels change restarts the alert's waiting time.
fn in_state(matchers: &str) -> String {
    format!("max without (state, reason) (fibre_exporter_probe_state{{{matchers}}} == 1)")
}

/// Shows what the latest scrape contains about the probe that an alert concerns.
fn state_now(shown: &str) -> String {
    format!(
        "{{{{ with printf \"fibre_exporter_probe_state{{job=%q, instance=%q, target=%q, probe=%q}} == 1\" $labels.job \
         $labels.instance $labels.target $labels.probe | query }}}}{shown}{{{{ end }}}}"
    )
}

const PROBE: &str = "{{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }}";
const REASON: &str = "{{ . | first | label \"reason\" }}";

/// Rules for probes and their hits.
pub(super) fn rules(plan: &Plan, ours: &dyn Fn(&str) -> String) -> Vec<Rule> {
    let targets = one_of(plan.targets.iter().map(|target| target.name.as_str()));
    let mut rules = vec![
        Rule::new(
            "ExporterProbeNotAttached",
            "warning",
            ours(&in_state(&format!("target=~{targets}, state=~\"waiting|refused\""))),
            &format!(
                "{PROBE} is {}.",
                state_now(&format!("{{{{ . | first | label \"state\" }}}}: {REASON}"))
            ),
            "The probe's metrics do not change until it is attached. `exporter check FILE` shows details.",
        )
        .lasting("5m"),
        Rule::new(
            "ExporterProbePartlyAttached",
            "info",
            ours(&in_state(&format!("target=~{targets}, state=\"partly\""))),
            &format!("{PROBE} is only partly attached: {}.", state_now(REASON)),
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
            ours(&format!(
                "({tracing} / {} > {MAX_OVERHEAD} and {tracing} > {MIN_OVERHEAD})",
                rate("cpu"),
                tracing = rate("tracing")
            )),
            "Tracing takes {{ $value | humanizePercentage }} of the CPU time of {{ $labels.target }} on {{ $labels.instance }}.",
            "The program is slower by that. fibre_exporter_probe_cost_seconds_total shows which probes cost most.",
        )
        .lasting("15m"),
    );
    if let Some(probes) = absence_matters(plan) {
        let absent = in_state(&format!("{probes}, state=\"absent\""));
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
    let lost = |reasons: &str, window: &str| {
        format!("increase(fibre_exporter_probe_lost_total{{target=~{targets}, {reasons}}}[{window}])")
    };
    rules.push(Rule::new(
        "ExporterHitsLost",
        "warning",
        ours(&format!(
            "({} > 0 or {} > ignoring (reason) group_left {MAX_WITHOUT_START} * \
             increase(fibre_exporter_probe_hits_total{{target=~{targets}}}[1h]) \
             and on (job, instance) time() - fibre_exporter_start_time_seconds > 3600)",
            lost(BUT_NO_START, "10m"),
            lost("reason=\"no_start\"", "1h"),
        )),
        "Hits of {{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} were lost ({{ $labels.reason }}).",
        "The metrics of this probe are too low. If the reason is ring_full, raise `ring: { size }`; if it is no_start, the \
         span's start has another key or thread than its end.",
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

/// Rules for slow events and their notifications.
pub(super) fn slow_rules(plan: &Plan, ours: &dyn Fn(&str) -> String) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new(
            "ExporterSlowEventsNotWritten",
            "warning",
            ours("fibre_exporter_slow_events_writable == 0"),
            "The exporter on {{ $labels.instance }} cannot write slow events to their file.",
            "They are in the metrics, and not in `exporter events`. The disk is full, or the file cannot be written; see the log.",
        )
        .lasting("5m"),
        Rule::new(
            "ExporterSlowEventsLost",
            "warning",
            ours("increase(fibre_exporter_slow_events_lost_total[10m]) > 0"),
            "Slow events of {{ $labels.probe }} of {{ $labels.target }} on {{ $labels.instance }} were not kept ({{ $labels.reason }}).",
            "They are in the metrics, and not in `exporter events`. If there are too many, raise the threshold of `slow`.",
        ),
    ];
    if plan.settings.slow_events.webhook.is_some() {
        rules.push(
            Rule::new(
                "ExporterWebhookFailing",
                "warning",
                ours(
                    "(fibre_exporter_webhook_events_waiting > 0 unless on (job, instance) \
                     increase(fibre_exporter_webhook_events_sent_total[15m]) > 0)",
                ),
                "The webhook's receiver accepts nothing from the exporter on {{ $labels.instance }}.",
                "Slow events wait for it and are dropped after an hour; their file has them. The exporter's log has the reason.",
            )
            .lasting("15m"),
        );
        rules.push(Rule::new(
            "ExporterWebhookEventsDropped",
            "warning",
            ours("increase(fibre_exporter_webhook_events_dropped_total[10m]) > 0"),
            "Slow events on {{ $labels.instance }} were not sent to the webhook ({{ $labels.reason }}).",
            "The file of slow events has them: `exporter events`.",
        ));
    }
    rules
}
