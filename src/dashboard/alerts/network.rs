//! Rules for packets, the blocklist, and detection.

use std::time::Duration;

use super::{Rule, quoted};
use crate::net::{BlockConfig, CROWDSEC, NetworkConfig};

/// The share of DNS queries that may fail before the alert fires.
const MAX_FAILING: f64 = 0.2;

/// Refresh intervals of a blocklist source that may be missed before the alert fires, and the least time.
const MAX_MISSED: u32 = 4;
const MIN_AGE: Duration = Duration::from_secs(900);

/// Rules for packets that are not counted, and for failures of the blocklist.
pub(super) fn rules(network: &NetworkConfig, ours: &dyn Fn(&str) -> String) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new(
            "ExporterInterfaceNotCounted",
            "warning",
            // The reason may change while the condition lasts, which would restart the alert's waiting time.
            ours("max without (reason) (network_attach_failed{reason!=\"pending\"} == 1)"),
            "{{ $labels.direction }} of {{ $labels.interface }} on {{ $labels.instance }} is not counted: {{ with printf \
             \"network_attach_failed{job=%q, instance=%q, interface=%q, direction=%q} == 1\" $labels.job $labels.instance \
             $labels.interface $labels.direction | query }}{{ . | first | label \"reason\" }}{{ end }}.",
            "Packets of this interface and direction are missing from all metrics. See the exporter's log and /ready.",
        )
        .lasting("5m"),
    ];
    if let Some(block) = &network.block {
        rules.push(
            Rule::new(
                "ExporterBlocklistFileUnreadable",
                "warning",
                ours("xdp_blocklist_file_readable == 0"),
                "The blocklist file {{ $labels.file }} on {{ $labels.instance }} cannot be read.",
                "The entries read before stay in effect, and become stale. The exporter's log has the reason.",
            )
            .lasting("10m"),
        );
        rules.push(Rule::new(
            "ExporterBlocklistNotStored",
            "warning",
            ours("xdp_blocklist_stored == 0"),
            "Entries added to the blocklist of {{ $labels.instance }} are not stored.",
            "They are in effect now, and lost at a restart. The disk is full or the file cannot be written; see the log.",
        ));
        rules.extend(source_rules(block, ours));
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
                ours(&format!("({failing} / {} > {MAX_FAILING} and {failing} > 0.05)", rate(""))),
                "{{ $value | humanizePercentage }} of the DNS queries of {{ $labels.instance }} to {{ $labels.server }} servers fail.",
                "They time out, or the answer is SERVFAIL or REFUSED.",
            )
            .lasting("10m"),
        );
    }
    rules
}

/// Rules for the blocklist's remote sources.
fn source_rules(block: &BlockConfig, ours: &dyn Fn(&str) -> String) -> Vec<Rule> {
    let urls = block.urls.iter().map(|list| (list.url.to_string(), list.interval));
    let crowdsec = block.crowdsec.iter().map(|crowdsec| (CROWDSEC.to_string(), crowdsec.interval));
    let sources: Vec<_> = urls.chain(crowdsec).collect();
    if sources.is_empty() {
        return Vec::new();
    }
    let old = sources.iter().map(|(source, interval)| {
        let most = (*interval * MAX_MISSED).max(MIN_AGE).as_secs();
        format!("xdp_blocklist_source_age_seconds{{source={}}} > {most}", quoted(source))
    });
    vec![
        Rule::new(
            "ExporterBlocklistSourceFailing",
            "warning",
            ours("xdp_blocklist_source_up == 0"),
            "{{ $labels.source }} does not respond to the exporter on {{ $labels.instance }}.",
            "Its last response stays in effect, and becomes stale. The exporter's log has the reason.",
        )
        .lasting("15m"),
        Rule::new(
            "ExporterBlocklistSourceOld",
            "warning",
            ours(&format!("({})", old.collect::<Vec<_>>().join(" or "))),
            "The last response of {{ $labels.source }} to the exporter on {{ $labels.instance }} is {{ $value | humanizeDuration }} old.",
            "Current attackers are not blocked, and addresses blocked by mistake still are. The exporter's log has the reason.",
        )
        .lasting("5m"),
    ]
}

/// Rules for attackers that are not detected or not banned.
pub(super) fn detection_rules(ours: &dyn Fn(&str) -> String) -> Vec<Rule> {
    vec![
        Rule::new(
            "ExporterBansFailed",
            "warning",
            ours("increase(security_bans_refused_total{cause=~\"full|kernel|too_many\"}[10m]) > 0"),
            "Addresses that crossed the threshold of {{ $labels.kind }} on {{ $labels.instance }} were not banned: {{ $labels.cause }}.",
            "They were detected and continue. The blocklist is full, the kernel refused the change, or there were too many at once.",
        ),
        Rule::new(
            "ExporterDetectionIncomplete",
            "warning",
            ours(
                "(increase(security_lost_hits_total[10m]) > 0 or increase(security_evicted_total[10m]) > 0)",
            ),
            "Detection on {{ $labels.instance }} does not keep up: {{ $labels.kind }}{{ $labels.table }}.",
            "There were more hits or addresses at once than it can follow. Some attackers may not be found.",
        ),
    ]
}
