//! The exporter itself, from its configuration to the text of a scrape; only HTTP is left out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use exporter::config::{self, Overrides, model::AttachMode};
use exporter::costs::so_far;
use exporter::drain::Drain;
use exporter::elf::{Image, SymbolIndex};
use exporter::kernel::{AttachRequest, Kernel, PidNamespace, Prices, SharedPrices, choose};
use exporter::layout::Layout;
use exporter::metrics::Registry;
use exporter::plan::{Plan, plan};
use exporter::resolve::{ResolvedSite, resolve};
use exporter::targets::place;
use libbpf_rs::Link;

use crate::target::Target;

/// The exporter with its programs loaded. Attaching is left to the measurement, in which the contenders take turns.
pub struct Exporter {
    pub kernel: Kernel,
    prices: Prices,
    target: PathBuf,
    sites: Vec<ResolvedSite>,
    registry: Registry,
    plan: Arc<Plan>,
    drain: Drain,
    text: Vec<u8>,
}

/// Plans these probes of the program; with `all_to_ring`, no metric is computed in the kernel.
fn planned(target: &Path, probes: &str, all_to_ring: bool) -> Result<Plan, String> {
    // Room for 100 ms of the fastest rate used here: a virtual machine can keep a thread off its CPU for that long.
    let mut yaml =
        "ring: { size: 16MiB }\nlimits: { label_values: 100000, sites: 2048 }\ntargets:\n".to_string();
    let _ = write!(yaml, "  - name: bench\n    binary: {}\n    probes:\n", target.display());
    for line in probes.lines() {
        let _ = writeln!(yaml, "      {line}");
    }
    config::load_bytes("bench.yaml", yaml.into_bytes(), &Overrides::default(), &config::Environment::new())
        .and_then(|loaded| plan(loaded.config, all_to_ring))
        .map_err(|wrong| wrong.render())
}

impl Exporter {
    pub fn load(target: &Target, probes: &str, all_to_ring: bool) -> Result<Self, String> {
        let prices = SharedPrices::default().measure(choose(AttachMode::Auto));
        let plan = Arc::new(planned(&target.path, probes, all_to_ring)?);
        let layout = Arc::new(Layout::new(&plan));
        let kernel = Kernel::load(&plan, &layout, choose(AttachMode::Auto), PidNamespace::default())
            .map_err(|err| err.to_string())?;
        let image = Image::parse(target.bytes()).map_err(|err| err.to_string())?;
        let index = SymbolIndex::of(&image);
        let mut sites = Vec::new();
        for number in (0u32..).take(plan.probes.len()) {
            let resolved = resolve(&index, number, &plan, &mut |_| 0).map_err(|err| err.to_string())?;
            sites.extend(resolved.sites);
        }
        let user = Arc::new(layout.user_store(plan.probes.len()));
        let registry = Registry::new(plan.clone(), layout.clone(), kernel.shared().store, user.clone());
        let drain = Drain::start(plan.clone(), &layout, user, kernel.shared(), None)
            .map_err(|err| err.to_string())?;
        let target = target.path.clone();
        Ok(Self { kernel, prices, target, sites, registry, plan, drain, text: Vec::new() })
    }

    /// Attaches to all sites. Dropping the links detaches.
    pub fn attach(&self) -> Result<Vec<Link>, String> {
        let sites: Vec<_> = self.sites.iter().collect();
        let numbers: Vec<u32> = (0u32..).take(sites.len()).collect();
        let placed = place(&self.plan, self.kernel.has_sessions(), &sites, &numbers);
        let target = std::fs::File::open(&self.target).map_err(|err| err.to_string())?;
        let request = AttachRequest { file: &target, sites: &placed, idle: &[], processes: 0 };
        let attached = self.kernel.attach(request, BTreeMap::new());
        match attached.refused.values().next() {
            None => Ok(attached.links),
            Some(refusal) => Err(refusal.to_string()),
        }
    }

    /// Returns the exporter's own estimate of what its hits have cost so far, in seconds.
    pub fn cost(&self) -> f64 {
        let shared = self.kernel.shared();
        (0..self.plan.probes.len()).map(|probe| so_far(&self.plan, &shared, &self.prices, probe)).sum()
    }

    /// Waits until the ring is drained, then renders all series.
    pub fn scrape(&mut self) -> &[u8] {
        self.drain.catch_up(Duration::from_secs(10));
        self.text.clear();
        self.registry.render(&[], Instant::now(), exporter::exposition::Format::Text, &mut self.text);
        &self.text
    }

    /// Returns the sum of a metric's series; for a histogram, the sum of their counts.
    pub fn total(&mut self, metric: &str) -> u64 {
        let text = String::from_utf8_lossy(self.scrape());
        let of_metric = |line: &&str| {
            line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{') || rest.starts_with("_count{"))
        };
        let number = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok());
        text.lines().filter(of_metric).filter_map(number).sum()
    }
}
