//! Targets and their probes, from the exporter's own metrics.

use std::collections::{HashMap, HashSet};
use std::ops::Add;

use super::families::{ByName, Row, cut_to};
use super::history::History;
use super::model::{Lost, ProbeSummary, TargetSummary};

/// Probes that are shown, of all targets together.
const MAX_PROBES: usize = 300;
const MAX_REASON: usize = 1000;

/// A number for each probe, by target and name.
type Column = HashMap<(String, String), f64>;

struct Columns {
    sites: Column,
    hits: Column,
    filtered: Column,
    last_hit: Column,
    cost: Column,
    lost: HashMap<(String, String), Vec<Lost>>,
}

impl Columns {
    fn of(own: &ByName<'_>) -> Self {
        let mut lost: HashMap<_, Vec<Lost>> = HashMap::new();
        for row in own.rows("fibre_exporter_probe_lost_total").into_iter().filter(|row| row.value > 0.0) {
            let of = lost.entry((row.label("target"), row.label("probe"))).or_default();
            of.push(Lost { reason: row.label("reason"), hits: row.value });
        }
        Self {
            sites: own.by_probe("fibre_exporter_probe_sites"),
            hits: own.by_probe("fibre_exporter_probe_hits_total"),
            filtered: own.by_probe("fibre_exporter_probe_filtered_total"),
            last_hit: own.by_probe("fibre_exporter_probe_last_hit_timestamp_seconds"),
            cost: own.by_probe("fibre_exporter_probe_cost_seconds_total"),
            lost,
        }
    }

    fn probe(&self, row: &Row, missing: &HashSet<&(String, String)>, history: &mut History) -> ProbeSummary {
        let key = (row.label("target"), row.label("probe"));
        let of = |column: &Column| column.get(&key).copied().unwrap_or(0.0);
        let track = |what: &str| format!("{what}\0{}\0{}", key.0, key.1);
        let trend = history.trend(track("hits"), of(&self.hits));
        let cost = history.trend(track("cost"), of(&self.cost));
        ProbeSummary {
            name: cut_to(&key.1, MAX_REASON),
            state: row.label("state"),
            is_missing: missing.contains(&key),
            reason: cut_to(&row.label("reason"), MAX_REASON),
            sites: of(&self.sites),
            hits: of(&self.hits),
            filtered: of(&self.filtered),
            hits_per_second: trend.per_second,
            recent: trend.recent,
            last_hit: self.last_hit.get(&key).copied(),
            lost: self.lost.get(&key).cloned().unwrap_or_default(),
            cost_ratio: cost.per_second,
        }
    }
}

/// Returns all targets in the order of the configuration, and how many of their probes are omitted. `missing` are the
/// probes that `/ready` waits for.
pub(super) fn targets(
    names: &[String],
    missing: &[(String, String)],
    own: &ByName<'_>,
    history: &mut History,
) -> (Vec<TargetSummary>, usize) {
    let missing = missing.iter().collect();
    let columns = Columns::of(own);
    let ratio = own.by_target("fibre_exporter_target_tracing_ratio");
    let seconds = own.by_target("fibre_exporter_target_tracing_seconds_total");
    let mut of_target: HashMap<String, Vec<ProbeSummary>> = HashMap::new();
    for row in own.rows("fibre_exporter_probe_state") {
        let probe = columns.probe(&row, &missing, history);
        of_target.entry(row.label("target")).or_default().push(probe);
    }
    let mut targets: Vec<TargetSummary> = names
        .iter()
        .map(|name| {
            let probes = of_target.remove(name).unwrap_or_default();
            TargetSummary {
                name: name.clone(),
                configured: probes.len(),
                attached: probes.iter().filter(|probe| probe.is_attached()).count(),
                shed: probes.iter().filter(|probe| probe.state == "shed").count(),
                hits: probes.iter().map(|probe| probe.hits).fold(0.0, Add::add),
                hits_per_second: sum(probes.iter().map(|probe| probe.hits_per_second)),
                last_hit: probes.iter().filter_map(|probe| probe.last_hit).max_by(f64::total_cmp),
                lost: probes.iter().flat_map(|probe| &probe.lost).map(|lost| lost.hits).fold(0.0, Add::add),
                overhead_ratio: ratio.get(name).copied(),
                overhead_seconds: seconds.get(name).copied().unwrap_or(0.0),
                probes,
            }
        })
        .collect();
    let left_out = leave_out(&mut targets);
    (targets, left_out)
}

impl ProbeSummary {
    /// Whether hits are counted, at least at some of its sites.
    pub(super) fn is_attached(&self) -> bool {
        matches!(self.state.as_str(), "attached" | "partly")
    }

    /// What is shown first: probes that are not attached, then the busiest.
    fn weight(&self) -> f64 {
        if self.state == "attached" { self.hits } else { f64::INFINITY }
    }
}

/// The sum, if all terms are known.
pub(super) fn sum(all: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut all = all;
    all.try_fold(0.0, |sum, one| Some(sum + one?))
}

/// Keeps the most important probes, in their original order.
fn leave_out(targets: &mut [TargetSummary]) -> usize {
    let mut weights: Vec<f64> =
        targets.iter().flat_map(|target| &target.probes).map(ProbeSummary::weight).collect();
    if weights.len() <= MAX_PROBES {
        return 0;
    }
    let left_out = weights.len() - MAX_PROBES;
    weights.sort_by(|a, b| b.total_cmp(a));
    let least = weights[MAX_PROBES - 1];
    let mut equal = weights[..MAX_PROBES].iter().filter(|weight| **weight == least).count();
    for target in targets {
        target.probes.retain(|probe| {
            let weight = probe.weight();
            if weight == least && equal > 0 {
                equal -= 1;
                return true;
            }
            weight > least
        });
    }
    left_out
}
