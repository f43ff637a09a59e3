//! Blocked sources, from the network's metrics, and the most active of them.

use super::families::{ByName, cut};
use super::history::History;
use super::model::{BlockedSource, BlocklistSummary};
use crate::net::BlockRow;

/// `None` without a blocklist.
pub(super) fn blocklist(
    families: &ByName<'_>,
    busiest: &[BlockRow],
    now: f64,
    history: &mut History,
) -> Option<BlocklistSummary> {
    let is_enforced = families.value("xdp_blocklist_enforced")? == 1.0;
    let sources = families.rows("xdp_blocklist_entries");
    let entries = sources.iter().map(|row| row.value).fold(0.0, std::ops::Add::add);
    let sources = sources.iter().filter(|row| row.value > 0.0);
    // Of the two counters, only one can grow at a time.
    let both = |names: [&str; 2]| names.iter().map(|name| families.sum(name, |_| true)).sum::<f64>();
    let dropped = both(["xdp_drops_total", "tc_egress_drops_total"]);
    let would_drop = both(["xdp_would_drop_total", "tc_egress_would_drop_total"]);
    let shown = if is_enforced { dropped } else { would_drop };
    let unread = families.rows("xdp_blocklist_file_readable").into_iter().filter(|row| row.value == 0.0);
    let is_invalid = |row: &super::families::Row| row.value > 0.0;
    let invalid = families.rows("xdp_blocklist_file_invalid_lines").into_iter().filter(is_invalid);
    let ages = families.rows("xdp_blocklist_source_age_seconds");
    let age = |source: &str| ages.iter().find(|row| row.label("source") == source).map(|row| row.value);
    let silent = families.rows("xdp_blocklist_source_up").into_iter().filter(|row| row.value == 0.0);
    Some(BlocklistSummary {
        is_enforced,
        entries,
        sources: sources.map(|row| (cut(&row.label("source")), row.value)).collect(),
        allowed: families.value("xdp_allowlist_entries").unwrap_or(0.0),
        dropped,
        would_drop,
        packets_per_second: history.trend("blocked".to_owned(), shown).per_second,
        is_stored: families.value("xdp_blocklist_stored").map(|stored| stored == 1.0),
        unreadable_files: unread.map(|row| row.label("file")).collect(),
        invalid_lines: invalid.map(|row| (row.label("file"), row.value)).collect(),
        silent_sources: silent.map(|row| row.label("source")).map(|name| (cut(&name), age(&name))).collect(),
        busiest: busiest.iter().map(|row| source(row, now)).collect(),
    })
}

fn source(row: &BlockRow, now: f64) -> BlockedSource {
    BlockedSource {
        prefix: row.prefix.to_string(),
        source: cut(&row.source.name),
        reason: cut(&row.reason),
        expires_in: row.expires_in,
        is_unconfirmed: row.is_unconfirmed,
        packets: row.packets,
        bytes: row.bytes,
        last_seen: row.last_seen.map(|ago| now - ago),
    }
}
