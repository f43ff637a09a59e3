//! The exporter itself, from its configuration language to the text of a scrape; only HTTP is left out.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use exporter::bank::UserBank;
use exporter::config::{self, Overrides, model::AttachMode};
use exporter::drain::Drain;
use exporter::kernel::choose;
use exporter::layout::Layout;
use exporter::metrics::Registry;
use exporter::plan::{Plan, plan};
use exporter::targets::{Keeper, ProbeState};

/// The running exporter. Dropping it stops it.
pub struct Exporter {
    pub registry: Registry,
    pub keeper: Keeper,
    drain: Drain,
    text: Vec<u8>,
}

/// A plan for these probes of the program; with `all_to_ring` no metric is computed in the kernel.
pub fn planned(target: &Path, probes: &str, all_to_ring: bool) -> Result<Plan, String> {
    let mut yaml = "limits: { label_values: 100000, sites: 2048 }\ntargets:\n".to_string();
    let _ = write!(yaml, "  - name: bench\n    binary: {}\n    probes:\n", target.display());
    for line in probes.lines() {
        let _ = writeln!(yaml, "      {line}");
    }
    config::load_bytes("bench.yaml", yaml.into_bytes(), &Overrides::default(), &config::Environment::new())
        .and_then(|loaded| plan(loaded.config, all_to_ring))
        .map_err(|wrong| wrong.render())
}

impl Exporter {
    pub fn start(target: &Path, probes: &str, all_to_ring: bool) -> Result<Self, String> {
        let plan = Arc::new(planned(target, probes, all_to_ring)?);
        let layout = Arc::new(Layout::new(&plan));
        let keeper = Keeper::start(plan.clone(), layout.clone(), choose(AttachMode::Auto))
            .map_err(|why| why.to_string())?;
        if let Some(probe) = keeper.status().probes().iter().find(|probe| probe.state != ProbeState::Attached)
        {
            return Err(format!("{:?}", probe.state));
        }
        let user = Arc::new(UserBank::new(&layout.user));
        let drain = Drain::start(plan.clone(), &layout, user.clone(), keeper.shared())
            .map_err(|why| why.to_string())?;
        let registry = Registry::new(plan, &layout, keeper.shared().bank, user);
        Ok(Self { registry, keeper, drain, text: Vec::new() })
    }

    /// Waits for the events that are still in the ring, then renders all series.
    pub fn scrape(&mut self) -> &[u8] {
        self.drain.catch_up(Duration::from_secs(10));
        let seen = self.keeper.status().seen();
        self.text.clear();
        self.registry.render(&seen, &mut self.text);
        &self.text
    }

    /// The sum of a metric's series: of a histogram, of their counts.
    pub fn total(&mut self, metric: &str) -> u64 {
        let text = String::from_utf8_lossy(self.scrape());
        let of_metric = |line: &&str| {
            line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{') || rest.starts_with("_count{"))
        };
        let number = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok());
        text.lines().filter(of_metric).filter_map(number).sum()
    }
}
