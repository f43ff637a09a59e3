//! Metrics of the blocklist. Packets are counted per interface, with the other packet statistics.

use super::super::abi::Verdict;
use super::super::sys::monotonic;
use super::summary::Summary;
use crate::exposition::{Family, Kind};

/// All families.
pub(in super::super) fn families(summary: &Summary) -> Vec<Family> {
    let family = |name, kind, help| Family::new(name, kind, help);
    let mut enforced = family(
        "xdp_blocklist_enforced",
        Kind::Gauge,
        "1 if packets of blocked sources are dropped, 0 if only counted.",
    );
    enforced.number(&[], u64::from(summary.enforce));
    let mut entries = family(
        "xdp_blocklist_entries",
        Kind::Gauge,
        "Entries of the blocklist, by the source that lists them.",
    );
    for (source, count) in &summary.entries {
        entries.number(&source.labels(), *count);
    }
    let mut packets = family(
        "xdp_blocklist_packets_total",
        Kind::Counter,
        "Packets that entries of a source matched: dropped, or passed because the blocklist only observes.",
    );
    let mut bytes = family(
        "xdp_blocklist_bytes_total",
        Kind::Counter,
        "Bytes of the packets that entries of a source matched.",
    );
    for (source, sums) in &summary.packets {
        for verdict in Verdict::ALL {
            let sum = sums[*verdict as usize];
            let labels = [source.labels(), vec![("verdict", verdict.label())]].concat();
            packets.number(&labels, sum.packets);
            bytes.number(&labels, sum.bytes);
        }
    }
    let mut up = family(
        "xdp_blocklist_source_up",
        Kind::Gauge,
        "1 if the last request to a remote source was answered; if 0, its last response stays in effect.",
    );
    let mut age = family(
        "xdp_blocklist_source_age_seconds",
        Kind::Gauge,
        "Time since the last successful response of a remote source.",
    );
    let mut ignored = family(
        "xdp_blocklist_ignored_decisions_total",
        Kind::Counter,
        "Decisions of CrowdSec that were received and are not applied, by reason.",
    );
    let now = monotonic();
    for source in &summary.feeds {
        let labels = [("source", source.source.as_str())];
        up.number(&labels, u64::from(source.feed.is_up));
        if let Some(seconds) = source.feed.age(now) {
            age.number(&labels, seconds);
        }
        for (reason, count) in &source.feed.ignored {
            ignored.number(&[labels[0], ("reason", reason)], *count);
        }
    }
    let mut allowed = family(
        "xdp_allowlist_entries",
        Kind::Gauge,
        "Addresses and prefixes that are never dropped, the protected ones included.",
    );
    allowed.number(&[], summary.allowed);
    let mut spared = family(
        "xdp_spared_connections",
        Kind::Gauge,
        "Established SSH connections whose packets are never dropped.",
    );
    spared.number(&[], summary.spared);
    let mut invalid = family(
        "xdp_blocklist_file_invalid_lines",
        Kind::Gauge,
        "Invalid lines of a blocklist file when it was last read.",
    );
    let mut readable = family(
        "xdp_blocklist_file_readable",
        Kind::Gauge,
        "1 if the blocklist file was read; if 0, the entries read before stay in effect.",
    );
    for (path, lines, is_read) in &summary.files {
        invalid.number(&[("file", path)], *lines);
        readable.number(&[("file", path)], u64::from(*is_read));
    }
    let mut errors = family(
        "xdp_blocklist_errors_total",
        Kind::Counter,
        "Changes of the blocklist that the kernel refused.",
    );
    errors.number(&[], summary.errors);
    let mut unread = family(
        "xdp_blocklist_unread_tables_total",
        Kind::Counter,
        "Replaced tables of the blocklist whose hits could not be read any more; entries show fewer hits than they had.",
    );
    unread.number(&[], summary.unread);
    let mut kept = family(
        "xdp_blocklist_stored",
        Kind::Gauge,
        "1 if entries added while the exporter runs are stored for after a restart; 0 if that failed.",
    );
    if let Some(is_kept) = summary.is_kept {
        kept.number(&[], u64::from(is_kept));
    }
    let mut alerts = family(
        "xdp_blocklist_alerts_total",
        Kind::Counter,
        "Bans by detection to be reported to CrowdSec: sent; not sent because it rejected them (refused), \
         because they expired first (late), or because the queue was full (full).",
    );
    let mut waiting = family(
        "xdp_blocklist_alerts_waiting",
        Kind::Gauge,
        "Bans that are still to be reported to CrowdSec.",
    );
    if let Some(numbers) = &summary.alerts {
        for (result, count) in [
            ("sent", numbers.sent),
            ("refused", numbers.refused),
            ("late", numbers.late),
            ("full", numbers.full),
        ] {
            alerts.number(&[("result", result)], count);
        }
        waiting.number(&[], numbers.waiting);
    }
    vec![
        enforced, entries, packets, bytes, up, age, ignored, alerts, waiting, kept, allowed, spared, invalid,
        readable, errors, unread,
    ]
}
