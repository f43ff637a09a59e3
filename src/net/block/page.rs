//! `/api/v1/blocklist`: entries with their hits, as JSON.

use serde::Serialize;

use super::super::cidr::Prefix;
use super::super::paging::Paging;
use super::super::query::QueryError;
use super::blocklist::Blocklist;
use super::entry::BlockRow;

/// Entries per page by default and at most.
const DEFAULT_PER_PAGE: u32 = 100;
const MAX_PER_PAGE: u32 = 10_000;

/// An entry in JSON.
#[derive(Serialize)]
struct Row {
    prefix: String,
    source: String,
    /// For CrowdSec: the origin of its decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    reason: String,
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<String>,
    /// In seconds from now; null: never.
    expires_in: Option<f64>,
    /// Whether it expires unless it is confirmed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unconfirmed: bool,
    packets: u64,
    bytes: u64,
    /// In seconds before now; null: no packet matched.
    last_seen: Option<f64>,
}

#[derive(Serialize)]
struct Page {
    total: usize,
    page: u32,
    per_page: u32,
    enforced: bool,
    entries: Vec<Row>,
}

/// The response to `?page=1&per_page=100`.
///
/// # Errors
/// What is wrong with the query.
pub(in super::super) fn page(list: &Blocklist, query: &str) -> Result<String, QueryError> {
    let mut paging = Paging::new(DEFAULT_PER_PAGE, MAX_PER_PAGE);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if !paging.take(key, value).map_err(QueryError)? {
            let text = format!("unknown parameter {key:?}; valid parameters: page and per_page");
            return Err(QueryError(text));
        }
    }
    let Paging { page, per_page, .. } = paging;
    let entries = list.rows(paging.skipped(), per_page as usize).into_iter().map(Row::from).collect();
    let shown = Page { total: list.len(), page, per_page, enforced: list.is_enforced(), entries };
    Ok(json(&shown))
}

/// One entry.
pub(in super::super) fn entry(list: &Blocklist, prefix: Prefix) -> Option<String> {
    list.row(prefix).map(|row| json(&Row::from(row)))
}

/// Plain data with text keys always serializes.
fn json(shown: &impl Serialize) -> String {
    serde_json::to_string(shown).unwrap_or_else(|_| "{}".to_string())
}

impl From<BlockRow> for Row {
    fn from(row: BlockRow) -> Self {
        Self {
            prefix: row.prefix.to_string(),
            source: row.source.name,
            origin: row.source.origin,
            reason: row.reason,
            direction: row.direction.word(),
            protocol: row.scope.map(|scope| scope.protocol.word()),
            ports: row.scope.and_then(|scope| scope.port_range()),
            expires_in: row.expires_in,
            unconfirmed: row.is_unconfirmed,
            packets: row.packets,
            bytes: row.bytes,
            last_seen: row.last_seen,
        }
    }
}
