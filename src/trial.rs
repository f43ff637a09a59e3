//! `check --attach`: attaches all probes for a moment, and tells what came of it and what it costs.

use std::sync::Arc;
use std::time::Duration;

use crate::costs::until_now;
use crate::drain::Drain;
use crate::kernel::{Accounting, Attach, Prices, choose, measure_prices};
use crate::layout::Layout;
use crate::plan::Plan;
use crate::run::{RunError, failed_to};
use crate::table::Table;
use crate::targets::{ProbeManager, ProbeState, Usage};

/// What came of attaching.
#[derive(Debug)]
pub struct TrialReport {
    pub table: String,
    /// Whether the kernel refused a probe that is in its file.
    pub refused: bool,
}

/// Attaches all probes, counts for `time`, and detaches.
///
/// # Errors
/// If the kernel refuses the programs.
pub fn try_out(plan: Plan, time: Duration) -> Result<TrialReport, RunError> {
    let attach = choose(plan.settings.attach);
    let plan = Arc::new(plan);
    let layout = Arc::new(Layout::new(&plan));
    let prices = measure_prices(attach);
    let manager = ProbeManager::start(plan.clone(), layout.clone(), attach)?;
    // Without it the ring would fill, and hits would be lost that a run does not lose.
    let user = Arc::new(layout.user_store(plan.probes.len()));
    let drain = Drain::start(plan.clone(), &layout, user, manager.shared(), None)
        .map_err(failed_to("start the thread that drains the ring buffer"))?;
    std::thread::sleep(time);
    let shared = manager.shared();
    let how = match attach {
        Attach::Multi => "uprobe_multi links",
        Attach::Perf => "perf events",
    };
    let states = manager.status().probes();
    let mut table = Table::new(2, &["TARGET", "PROBE", "STATE", "SITES", "HITS", "LOST", "COST"]);
    for (number, (probe, status)) in plan.probes.iter().zip(&states).enumerate() {
        let accounting = Accounting::read(&shared, number);
        let state = &status.state;
        table.row([
            plan.targets[probe.target].name.clone(),
            probe.name.clone(),
            state.word().to_string(),
            status.sites.to_string(),
            accounting.hits.to_string(),
            accounting.lost.to_string(),
            milliseconds(until_now(&plan, &shared, number)),
        ]);
        if !state.reason().is_empty() {
            table.line(state.reason());
        }
    }
    let usage = manager.status().targets().usage;
    drop(drain);
    drop(manager);
    let refused = states.iter().any(|status| matches!(status.state, ProbeState::Refused(_)));
    let costs = costs(&plan, &usage, &prices);
    let text = format!("\nAttached for {} s by {how}:\n{table}{costs}", time.as_secs());
    Ok(TrialReport { table: text, refused })
}

fn milliseconds(seconds: f64) -> String {
    if seconds > 0.0 { format!("{:.3} ms", seconds * 1e3) } else { "0".to_string() }
}

/// What tracing costs each target, a line each; those without hits cost nothing.
fn costs(plan: &Plan, usage: &[Usage], prices: &Prices) -> String {
    let mut lines = Vec::new();
    for (target, usage) in plan.targets.iter().zip(usage).filter(|(_, usage)| usage.tracing > 0.0) {
        lines.push(match usage.share {
            Some(share) => {
                format!("{}: tracing takes about {:.1} % of its CPU time", target.name, share * 100.0)
            }
            None => format!("{}: its CPU time is not known (its processes end too soon)", target.name),
        });
    }
    if !prices.is_measured {
        lines.push("The cost of a hit could not be measured, and is assumed.".to_string());
    }
    lines.iter().map(|line| format!("  {line}\n")).collect()
}
