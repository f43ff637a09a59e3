//! The content of `/api/v1/status`, as described in docs/status.md. Units are base units: seconds, bytes; times are
//! Unix times in seconds.

use serde::Serialize;

/// Incremented when a field is removed or changes its meaning, not when one is added.
pub const VERSION: u32 = 1;

/// The status page and the JSON of `/api/v1/status`.
#[derive(Debug, Serialize)]
pub struct Status {
    pub version: u32,
    pub time: f64,
    pub state: Health,
    /// The state in a sentence.
    pub summary: String,
    pub exporter: Exporter,
    pub totals: Totals,
    /// What needs attention, the worst first.
    pub attention: Vec<Attention>,
    pub targets: Vec<TargetSummary>,
    pub metrics: Vec<MetricSummary>,
    /// Number of probes and metrics that are not shown.
    pub left_out: LeftOut,
    /// `None` without `network:` in the configuration.
    pub network: Option<NetworkSummary>,
    /// `None` without `network: { block: ... }`.
    pub blocklist: Option<BlocklistSummary>,
    /// Recorded slow events, the latest first.
    pub slow: Vec<SlowEvent>,
    pub scrapes: Scrapes,
    pub connect: Connect,
    pub links: Vec<Link>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Everything is attached, and nothing is lost.
    Working,
    /// It counts, but not everything that it should.
    Degraded,
    /// Some of the configuration is not attached: `/ready` answers 503.
    NotReady,
}

#[derive(Debug, Serialize)]
pub struct Exporter {
    pub exporter_version: String,
    pub node: String,
    pub kernel: String,
    pub attach: String,
    pub started: f64,
    /// CPUs that the exporter itself keeps busy; `None` until measured twice.
    pub cpu_ratio: Option<f64>,
    pub memory_bytes: Option<f64>,
    /// The minimum cost of a hit to a traced program, by how its instruction is executed.
    pub hit_cost_seconds: Vec<HitCost>,
}

#[derive(Debug, Serialize)]
pub struct HitCost {
    pub form: String,
    /// `measured` or `assumed`.
    pub source: String,
    pub seconds: f64,
}

#[derive(Debug, Serialize)]
pub struct Totals {
    pub probes: usize,
    pub attached: usize,
    /// Probes that `/ready` waits for.
    pub missing: usize,
    /// Probes detached because of `limits.overhead`.
    pub shed: usize,
    pub hits: f64,
    pub hits_per_second: Option<f64>,
    pub last_hit: Option<f64>,
    pub lost: f64,
    pub series: usize,
}

/// The importance of an item in [`Status::attention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Error,
    Warning,
    Note,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Attention {
    pub severity: Severity,
    pub subject: String,
    /// Why, as far as known.
    pub reason: String,
    /// What to do.
    pub action: String,
}

#[derive(Debug, Serialize)]
pub struct TargetSummary {
    pub name: String,
    /// Number of its probes in the configuration.
    pub configured: usize,
    pub attached: usize,
    #[serde(skip)]
    pub shed: usize,
    pub hits: f64,
    pub hits_per_second: Option<f64>,
    pub last_hit: Option<f64>,
    pub lost: f64,
    /// Tracing's recent share of its processes' CPU time; `None` if the processes are not known.
    pub overhead_ratio: Option<f64>,
    /// CPU time that tracing has taken from its processes so far.
    pub overhead_seconds: f64,
    /// In the order of the configuration. If there are too many, those that are not attached and the busiest.
    pub probes: Vec<ProbeSummary>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ProbeSummary {
    pub name: String,
    /// As in `fibre_exporter_probe_state`.
    pub state: String,
    /// Whether `/ready` waits for it.
    pub is_missing: bool,
    pub reason: String,
    pub sites: f64,
    /// As in `fibre_exporter_probe_hits_total`.
    pub hits: f64,
    /// How many of them were in other processes.
    pub filtered: f64,
    pub hits_per_second: Option<f64>,
    /// Hits per second during the last minute, latest last, for the times at which the status was requested.
    pub recent: Vec<f64>,
    pub last_hit: Option<f64>,
    pub lost: Vec<Lost>,
    /// CPU time that it takes from the programs, per second.
    pub cost_ratio: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lost {
    pub reason: String,
    pub hits: f64,
}

#[derive(Debug, Serialize)]
pub struct MetricSummary {
    pub name: String,
    pub help: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// `seconds`, `bytes`, `timestamp`, or empty.
    pub unit: &'static str,
    /// For a counter, the sum of all series; for a histogram, the number of values.
    pub total: Option<f64>,
    pub per_second: Option<f64>,
    /// Upper bounds of a histogram's buckets; the last bucket is beyond all of them.
    pub bounds: Vec<f64>,
    /// Number of all series.
    pub series_total: usize,
    /// The series with the largest values, in descending order.
    pub series: Vec<SeriesSummary>,
}

#[derive(Debug, Serialize)]
pub struct SeriesSummary {
    /// Name and value, without `node`.
    pub labels: Vec<(String, String)>,
    pub value: Option<f64>,
    pub distribution: Option<Distribution>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Distribution {
    pub count: f64,
    pub mean: Option<f64>,
    /// The count of each bucket, not cumulative.
    pub counts: Vec<u64>,
    pub quantiles: Vec<Quantile>,
}

/// An estimate from the buckets, as by `histogram_quantile`.
#[derive(Debug, PartialEq, Serialize)]
pub struct Quantile {
    pub quantile: f64,
    pub value: f64,
    /// It exceeds the last bound, which `value` is then.
    pub is_beyond: bool,
}

#[derive(Debug, Default, Serialize)]
pub struct LeftOut {
    pub probes: usize,
    pub metrics: usize,
}

#[derive(Debug, Serialize)]
pub struct NetworkSummary {
    pub received_bytes_per_second: Option<f64>,
    pub sent_bytes_per_second: Option<f64>,
    pub interfaces: Vec<InterfaceSummary>,
    /// Number of interfaces that are not shown.
    pub left_out: usize,
    pub talkers: Vec<TalkerSummary>,
}

#[derive(Debug, Serialize)]
pub struct InterfaceSummary {
    /// The labels that identify it: `interface`, `netns`, `container`.
    pub labels: Vec<(String, String)>,
    /// `ingress` or `egress`.
    pub direction: &'static str,
    pub is_counted: bool,
    /// Where packets are counted, or why they are not.
    pub hook: String,
    pub bytes: Option<f64>,
    pub packets: Option<f64>,
    pub bytes_per_second: Option<f64>,
    pub packets_per_second: Option<f64>,
    /// Bytes per second in the last minute.
    pub recent: Vec<f64>,
    pub speed_bytes_per_second: Option<f64>,
    pub malformed: f64,
}

#[derive(Debug, Serialize)]
pub struct TalkerSummary {
    pub address: String,
    pub interface: String,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub packets: u64,
    pub last_seen: f64,
}

#[derive(Debug, Serialize)]
pub struct BlocklistSummary {
    /// Packets are dropped, not only counted.
    pub is_enforced: bool,
    pub entries: f64,
    /// The sources of entries, and how many each lists.
    pub sources: Vec<(String, f64)>,
    /// Addresses and prefixes that are never dropped.
    pub allowed: f64,
    /// Number of packets.
    pub dropped: f64,
    pub would_drop: f64,
    /// Of the packets that are dropped, or would be.
    pub packets_per_second: Option<f64>,
    /// Whether changes at run time survive a restart; `None` if there are none.
    pub is_stored: Option<bool>,
    pub unreadable_files: Vec<String>,
    /// Invalid lines in files.
    pub invalid_lines: Vec<(String, f64)>,
    /// Remote sources that do not answer, and the age of their last good response.
    pub silent_sources: Vec<(String, Option<f64>)>,
    /// The entries with the most packets, in descending order; empty for a list with very many entries.
    pub busiest: Vec<BlockedSource>,
}

#[derive(Debug, Serialize)]
pub struct BlockedSource {
    pub prefix: String,
    pub source: String,
    pub reason: String,
    /// `None` if it does not expire.
    pub expires_in: Option<f64>,
    pub is_unconfirmed: bool,
    pub packets: u64,
    pub bytes: u64,
    pub last_seen: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct SlowEvent {
    pub time: f64,
    pub target: String,
    pub probe: String,
    pub metric: String,
    /// As [`MetricSummary::unit`], of the value and its bound.
    pub unit: &'static str,
    pub value: f64,
    /// Why it was recorded: it is above this, or among this many worst of its hour.
    pub over: Option<f64>,
    pub worst: Option<u32>,
    pub fields: Vec<(String, String)>,
    /// Other events with the same key, if configured.
    pub related: Vec<RelatedEvent>,
}

#[derive(Debug, Serialize)]
pub struct RelatedEvent {
    /// Seconds after the slow event; negative if before it.
    pub after: f64,
    pub probe: String,
    pub fields: Vec<(String, String)>,
}

#[derive(Debug, Serialize)]
pub struct Scrapes {
    pub total: f64,
    /// Scrapes not answered with 200.
    pub failed: f64,
    /// The scrapes, the latest first.
    pub recent: Vec<Scrape>,
}

/// The latest scrape of one client.
#[derive(Debug, Serialize)]
pub struct Scrape {
    pub peer: String,
    pub user: Option<String>,
    pub agent: String,
    pub time: f64,
    pub seconds: f64,
    pub bytes: usize,
    pub status: u16,
    pub scrapes: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Connect {
    /// Host and port in [`Self::scrape_config`], as far as the exporter knows them.
    pub address: String,
    pub scrape_config: String,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Link {
    pub path: &'static str,
    pub about: &'static str,
}
