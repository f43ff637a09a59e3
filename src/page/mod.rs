//! The page at `/` and `/api/v1/status`: the state of the exporter, for people who have only a browser.
//!
//! Everything is taken from the metrics of a scrape ([`Snapshot`]), once for all clients ([`StatusCache`]); viewing the
//! page does not change what scrapers see. The page is a summary that needs no JavaScript, which `page.js` replaces
//! with what it renders from the JSON.

mod attention;
mod blocklist;
mod cache;
mod connect;
mod families;
mod history;
mod html;
mod measured;
mod model;
mod network;
mod numbers;
mod runbook;
mod slow;
mod targets;

use std::ops::Add;
use std::sync::Arc;
use std::time::Instant;

use crate::exposition::{Families, Family};
use crate::http::Visitor;
use crate::net::{BlockRow, TalkerRow};
use crate::slow::StoredEvent;
use attention::{AttentionInput, attention};
use families::ByName;
use history::History;
use model::{Exporter, Health, HitCost, LeftOut, Scrape, Scrapes, Severity, Status, Totals, VERSION};
use targets::{sum, targets};

pub(crate) use cache::StatusCache;
pub(crate) use connect::{ScrapeAccess, connect};
pub(crate) use measured::metric;
pub(crate) use model::{Connect, Link, MetricSummary};
pub(crate) use network::interfaces;
pub(crate) use runbook::runbook;

/// Other files that the page loads.
pub(crate) const STYLE: &str = include_str!("page.css");
pub(crate) const SCRIPT: &str =
    concat!(include_str!("elements.js"), include_str!("find.js"), "\n", include_str!("page.js"));
pub(crate) const ICON: &str = include_str!("page.svg");

/// Configured metrics that are shown.
pub(crate) const MAX_METRICS: usize = 200;

/// Remote hosts that are shown, and blocked sources.
pub(crate) const MAX_TALKERS: usize = 8;

/// The data for the status.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub at: Instant,
    /// The same as a Unix time in seconds.
    pub time: f64,
    /// Names of the targets, in the order of the configuration.
    pub targets: Vec<String>,
    /// Targets and probes for which `/ready` is waiting.
    pub missing: Vec<(String, String)>,
    /// The exporter's own metrics.
    pub own: Families,
    /// The configured metrics, at most [`MAX_METRICS`].
    pub metrics: Vec<MetricSummary>,
    /// Number of configured metrics beyond those.
    pub more_metrics: usize,
    /// Number of series of all configured metrics.
    pub series: usize,
    /// Metrics of packets, if they are counted, and what `/ready` says about them.
    pub network: Option<(Vec<Family>, Vec<String>)>,
    pub talkers: Vec<TalkerRow>,
    /// The most active blocked sources.
    pub blocked: Vec<BlockRow>,
    /// Slow events, the latest first.
    pub slow: Vec<Arc<StoredEvent>>,
    pub visitors: Vec<Visitor>,
    pub connect: Connect,
    pub links: Vec<Link>,
}

/// Derives the status from a snapshot.
fn status(snapshot: Snapshot, history: &mut History) -> Status {
    history.begin(snapshot.at);
    let own = ByName::of(snapshot.own.iter());
    let (targets, more_probes) = targets(&snapshot.targets, &snapshot.missing, &own, history);
    let network = snapshot
        .network
        .as_ref()
        .map(|(families, _)| network::network(&ByName::of(families), &snapshot.talkers, history));
    let blocklist = snapshot.network.as_ref().and_then(|(families, _)| {
        blocklist::blocklist(&ByName::of(families), &snapshot.blocked, snapshot.time, history)
    });
    let mut metrics = snapshot.metrics;
    for metric in &mut metrics {
        let key = format!("metric\0{}", metric.name);
        metric.per_second = metric.total.and_then(|total| history.trend(key, total).per_second);
    }
    let info = own.rows("fibre_exporter_info");
    let info_label = |label: &str| info.first().map(|row| row.label(label)).unwrap_or_default();
    let started = own.value("fibre_exporter_start_time_seconds").unwrap_or(snapshot.time);
    let cpu = own.value("process_cpu_seconds_total");
    let exporter = Exporter {
        exporter_version: info_label("version"),
        node: info_label("node"),
        kernel: info_label("kernel"),
        attach: info_label("attach"),
        started,
        cpu_ratio: cpu.and_then(|cpu| history.trend("cpu".to_owned(), cpu).per_second),
        memory_bytes: own.value("process_resident_memory_bytes"),
        hit_cost_seconds: own
            .rows("fibre_exporter_hit_cost_seconds")
            .iter()
            .map(|row| HitCost { form: row.label("form"), source: row.label("source"), seconds: row.value })
            .collect(),
    };
    let totals = Totals {
        probes: targets.iter().map(|target| target.configured).sum(),
        attached: targets.iter().map(|target| target.attached).sum(),
        missing: snapshot.missing.len(),
        shed: targets.iter().map(|target| target.shed).sum(),
        hits: targets.iter().map(|target| target.hits).fold(0.0, Add::add),
        hits_per_second: sum(targets.iter().map(|target| target.hits_per_second)),
        last_hit: targets.iter().filter_map(|target| target.last_hit).max_by(f64::total_cmp),
        lost: targets.iter().map(|target| target.lost).fold(0.0, Add::add),
        series: snapshot.series,
    };
    let scrapes = scrapes(&own, snapshot.visitors);
    let facts = AttentionInput {
        time: snapshot.time,
        started,
        own: &own,
        targets: &targets,
        network: snapshot.network.as_ref().map(|(_, missing)| &missing[..]).unwrap_or_default(),
        blocklist: blocklist.as_ref(),
        scrapes: &scrapes.recent,
    };
    let attention = attention(&facts, history);
    let state = match attention.first().map(|first| first.severity) {
        _ if totals.missing > 0 || !facts.network.is_empty() => Health::NotReady,
        Some(Severity::Error | Severity::Warning) => Health::Degraded,
        Some(Severity::Note) | None => Health::Working,
    };
    let problems = attention.iter().filter(|one| one.severity != Severity::Note).count();
    let summary = summary(state, &totals, facts.network.len(), problems);
    history.end();
    Status {
        version: VERSION,
        time: snapshot.time,
        state,
        summary,
        exporter,
        totals,
        attention,
        targets,
        metrics,
        left_out: LeftOut { probes: more_probes, metrics: snapshot.more_metrics },
        network,
        blocklist,
        slow: slow::slow(&snapshot.slow),
        scrapes,
        connect: snapshot.connect,
        links: snapshot.links,
    }
}

/// Returns a sentence or two without constantly changing numbers, suitable for screen readers. The numbers are those of
/// the tiles.
fn summary(state: Health, totals: &Totals, network: usize, problems: usize) -> String {
    let things = |number: usize| match number {
        1 => "1 thing needs attention".to_owned(),
        more => format!("{more} things need attention"),
    };
    let word = match state {
        Health::Working if totals.probes == 0 => return "Working: nothing needs attention.".to_owned(),
        Health::Working if totals.attached == totals.probes => {
            let probes = match totals.probes {
                1 => "the probe is".to_owned(),
                all => format!("all {all} probes are"),
            };
            return format!("Working: {probes} attached, and nothing needs attention.");
        }
        Health::Working => "Working",
        Health::Degraded if totals.shed == 0 => {
            return format!("Working, but {}.", things(problems));
        }
        Health::Degraded => "Working in part",
        Health::NotReady if totals.missing == 0 => {
            return format!("Not ready: {} in the network.", things(network));
        }
        Health::NotReady => "Not ready",
    };
    format!("{word}: {}.", not_attached(totals))
}

/// Returns how many probes are attached, and the states of the others.
fn not_attached(totals: &Totals) -> String {
    let optional = totals.probes.saturating_sub(totals.attached + totals.missing + totals.shed);
    let are = |number: usize| if number == 1 { "is" } else { "are" };
    let others: Vec<String> = [
        (totals.missing, "missing"),
        (totals.shed, "detached for the time that tracing takes"),
        (optional, "optional"),
    ]
    .into_iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, words)| format!("{number} {} {words}", are(number)))
    .collect();
    format!(
        "{} of {} probes {} attached; {}",
        totals.attached,
        totals.probes,
        are(totals.attached),
        others.join(", ")
    )
}

fn scrapes(own: &ByName<'_>, visitors: Vec<Visitor>) -> Scrapes {
    let answered = |is_meant: fn(&str) -> bool| {
        own.sum("fibre_exporter_http_requests_total", |row| {
            row.label("route") == "/metrics" && is_meant(&row.label("status"))
        })
    };
    let recent = visitors.into_iter().map(|visitor| Scrape {
        peer: visitor.peer.to_string(),
        user: visitor.user,
        agent: visitor.agent,
        time: visitor.at,
        seconds: visitor.took.as_secs_f64(),
        bytes: visitor.bytes,
        status: visitor.status,
        scrapes: visitor.requests,
    });
    Scrapes {
        total: answered(|_| true),
        failed: answered(|status| status != "200"),
        recent: recent.collect(),
    }
}

#[cfg(test)]
mod tests;
