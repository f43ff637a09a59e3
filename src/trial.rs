//! `check --attach`: attaches all probes for a moment, and reports the results and the costs.

use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{interval, sleep};

use crate::costs::so_far;
use crate::drain::Drain;
use crate::kernel::{Accounting, Attach, Prices, choose};
use crate::layout::Layout;
use crate::net::Network;
use crate::page::interfaces;
use crate::plan::Plan;
use crate::run::{RunError, failed_to};
use crate::table::TextTable;
use crate::targets::{Attaching, ProbeManager, ProbeState, StartState, Usage};
use crate::terminal;

/// The result of attaching.
#[derive(Debug)]
pub struct TrialReport {
    pub table: String,
    /// Whether the kernel refused a probe that is in its file, or an interface.
    pub refused: bool,
}

/// How often progress is printed.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Attaches all probes and interfaces, counts for `time` or until Ctrl-C, and detaches.
///
/// # Errors
/// If the kernel refuses the programs.
pub fn try_out(plan: Plan, time: Duration) -> Result<TrialReport, RunError> {
    let attach = choose(plan.settings.attach);
    let plan = Arc::new(plan);
    let layout = Arc::new(Layout::new(&plan));
    let attaching = Attaching::new(attach);
    let prices = attaching.prices.measure(attach);
    // From now on, Ctrl-C loses no counts.
    let mut interrupt = Interrupt::new()?;
    let network = plan.network.clone().map(|config| Network::start(config, |_| {})).transpose();
    let network = network.map_err(RunError::Network)?;
    let manager = ProbeManager::begin(plan.clone(), layout.clone(), &attaching, StartState::default())?;
    manager.wait_until_attached();
    // Without it, the ring would fill up, and hits would be lost that are not lost in a normal run.
    let user = Arc::new(layout.user_store(plan.probes.len()));
    let drain = Drain::start(plan.clone(), &layout, user, manager.shared(), None)
        .map_err(failed_to("start the thread that drains the ring buffer"))?;
    let shared = manager.shared();
    let counted = interrupt.or_after(time, || {
        let all = (0..plan.probes.len()).map(|probe| Accounting::read(&shared, probe));
        all.fold((0, 0), |(hits, lost), one| (hits + one.hits, lost + one.lost))
    });
    let how = match attach {
        Attach::Multi => "uprobe_multi links",
        Attach::Perf => "perf events",
    };
    let states = manager.status().probes();
    let mut table =
        TextTable::new(2, &["TARGET", "PROBE", "STATE", "SITES", "HITS", "LOST", "COST"]).named_by(2);
    for (number, (probe, status)) in plan.probes.iter().zip(&states).enumerate() {
        let accounting = Accounting::read(&shared, number);
        let state = status.state.clone().shown_for(&plan.targets[probe.target]);
        table.row([
            plan.targets[probe.target].name.clone(),
            probe.name.clone(),
            state.word().to_string(),
            status.sites.to_string(),
            accounting.hits.to_string(),
            accounting.lost.to_string(),
            milliseconds(so_far(&plan, &shared, &prices, number)),
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
    let screen = terminal::width();
    let early = if counted < time { " (interrupted)" } else { "" };
    let mut text = format!("\nAttached for {:.0} s{early} by {how}:\n", counted.as_secs_f64());
    if !plan.probes.is_empty() {
        text.push_str(&table.fitted(screen));
    }
    text.push_str(&costs);
    if let Some(network) = &network {
        text.push_str(&packets(network).fitted(screen));
        network.not_ready().iter().for_each(|reason| text.push_str(&format!("  {reason}\n")));
    }
    Ok(TrialReport { table: text, refused })
}

/// Waits for Ctrl-C, which ends the counting instead of the program.
struct Interrupt {
    runtime: Runtime,
    signals: Signal,
}

impl Interrupt {
    fn new() -> Result<Self, RunError> {
        let failed = failed_to("wait for Ctrl-C");
        let runtime = Builder::new_current_thread().enable_all().build().map_err(&failed)?;
        let signals = {
            let _inside = runtime.enter();
            signal(SignalKind::interrupt()).map_err(&failed)?
        };
        Ok(Self { runtime, signals })
    }

    /// Waits for the signal, or until `time` is over. On a terminal, it reports hits and losses meanwhile. Returns the
    /// elapsed time.
    fn or_after(&mut self, time: Duration, counts: impl Fn() -> (u64, u64)) -> Duration {
        let is_watched = std::io::stderr().is_terminal();
        // It does not matter if the terminal is closed.
        let tell = |text: &str| {
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
        };
        let signals = &mut self.signals;
        self.runtime.block_on(async {
            let began = Instant::now();
            let mut ticks = interval(PROGRESS_INTERVAL);
            let mut end = pin!(sleep(time));
            let counted = loop {
                tokio::select! {
                    () = &mut end => break time,
                    _ = signals.recv() => break began.elapsed().min(time),
                    _ = ticks.tick(), if is_watched => {
                        let (hits, lost) = counts();
                        let (at, all) = (began.elapsed().as_secs(), time.as_secs());
                        tell(&format!("{at} of {all} s: {hits} hits, {lost} lost; Ctrl-C ends it and shows the counts"));
                    }
                }
            };
            if is_watched {
                tell("");
            }
            counted
        })
    }
}

/// The counts of each interface.
fn packets(network: &Network) -> TextTable {
    let mut table = TextTable::new(2, &["INTERFACE", "DIRECTION", "HOOK", "PACKETS", "BYTES"]).named_by(2);
    for interface in interfaces(&network.collect()) {
        let place: Vec<_> = interface.labels.into_iter().map(|(_, value)| value).collect();
        let hook =
            if interface.is_counted { interface.hook } else { format!("not counted: {}", interface.hook) };
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        table.row([
            place.join(" "),
            interface.direction.to_owned(),
            hook,
            number(interface.packets),
            number(interface.bytes),
        ]);
    }
    table
}

fn milliseconds(seconds: f64) -> String {
    if seconds > 0.0 { format!("{:.3} ms", seconds * 1e3) } else { "0".to_string() }
}

/// The cost of tracing each target, one per line; targets without hits cost nothing.
fn costs(plan: &Plan, usage: &[Usage], prices: &Prices) -> String {
    let mut lines = Vec::new();
    for (target, usage) in plan.targets.iter().zip(usage).filter(|(_, usage)| usage.tracing > 0.0) {
        lines.push(match usage.share {
            Some(share) => {
                format!("{}: tracing takes about {:.1} % of its CPU time", target.name, share * 100.0)
            }
            None => format!("{}: its CPU time is unknown (its processes end too soon)", target.name),
        });
    }
    if !prices.is_measured {
        lines.push("The cost of a hit could not be measured; an estimate is used.".to_string());
    }
    lines.iter().map(|line| format!("  {line}\n")).collect()
}
