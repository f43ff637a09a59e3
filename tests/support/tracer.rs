//! The whole way from a configuration's text to its series, in this process: what the tests of the kernel's side
//! share. It needs root, and fails where the kernel refuses.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use exporter::config::{Environment, Overrides, load_bytes};
use exporter::drain::Drain;
use exporter::exposition::Format;
use exporter::kernel::Accounting;
use exporter::kernel::choose;
use exporter::layout::Layout;
use exporter::metrics::Registry;
use exporter::plan::{Plan, plan};
use exporter::slow::SlowRecorder;
use exporter::targets::{ProbeManager, ProbeState, TargetCounts};

use super::exporter::TIMEOUT;

/// A tracer at work. Dropping it detaches everything.
pub struct Tracer {
    pub plan: Arc<Plan>,
    manager: ProbeManager,
    drain: Drain,
    registry: Mutex<Registry>,
}

/// Series by their name and labels, as they are written in the exposition format; the label `node` is left out.
pub type Series = BTreeMap<String, String>;

impl Tracer {
    /// Starts tracing what the configuration says. Every probe must be attached.
    pub fn start(yaml: &str) -> Self {
        Self::start_by(yaml, false)
    }

    /// As [`Tracer::start`]; with `all_to_ring` nothing is computed in the kernel.
    pub fn start_by(yaml: &str, all_to_ring: bool) -> Self {
        let tracer = Self::start_unready(yaml, all_to_ring);
        let reason = tracer.manager.status().not_ready(&tracer.plan);
        assert!(reason.is_empty(), "not attached: {reason:#?}");
        tracer
    }

    /// As [`Tracer::start`], but probes may be missing.
    pub fn start_unready(yaml: &str, all_to_ring: bool) -> Self {
        Self::start_recording(yaml, all_to_ring, None)
    }

    /// As [`Tracer::start_unready`]; who keeps slow events is at work.
    pub fn start_recording(yaml: &str, all_to_ring: bool, recorder: Option<Arc<SlowRecorder>>) -> Self {
        let plan = plan_of(yaml, all_to_ring).unwrap_or_else(|wrong| panic!("{wrong}\n{yaml}"));
        let attach = choose(plan.settings.attach);
        let plan = Arc::new(plan);
        let layout = Arc::new(Layout::new(&plan));
        let manager = ProbeManager::start(plan.clone(), layout.clone(), attach).unwrap_or_else(|err| {
            panic!("these tests need root and a kernel that takes probe programs: {err}")
        });
        let user = Arc::new(layout.user_store(plan.probes.len()));
        if let Some(recorder) = &recorder {
            recorder.keep_for(&plan).and_then(|()| recorder.start()).unwrap();
        }
        let drain = Drain::start(plan.clone(), &layout, user.clone(), manager.shared(), recorder).unwrap();
        let registry = Mutex::new(Registry::new(plan.clone(), layout.clone(), manager.shared().store, user));
        Self { plan, manager, drain, registry }
    }

    /// The series as a scrape would show them.
    pub fn render(&self) -> Series {
        self.render_at(Instant::now())
    }

    /// The series as a scrape at another time would show them.
    pub fn render_at(&self, now: Instant) -> Series {
        self.drain.catch_up(TIMEOUT);
        let mut text = Vec::new();
        self.registry.lock().unwrap().render(&self.manager.status().facts(), now, Format::Text, &mut text);
        let text = String::from_utf8(text).expect("the exposition format is UTF-8");
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        let node = format!("node=\"{}\"", self.plan.settings.node_name);
        rows.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series has a value");
            let series = series.replace(&format!("{{{node}}}"), "").replace(&format!("{{{node},"), "{");
            (series, value.to_string())
        })
        .collect()
    }

    /// The probe's accounting now.
    pub fn accounting(&self, probe: usize) -> Accounting {
        Accounting::read(&self.manager.shared(), probe)
    }

    /// The accounting of all probes once no hit is being dealt with.
    pub fn accounting_at_rest(&self) -> Vec<Accounting> {
        let began = Instant::now();
        loop {
            let accounting: Vec<_> =
                (0..self.plan.probes.len()).map(|probe| self.accounting(probe)).collect();
            if accounting.iter().all(|accounting| accounting.in_flight == 0) {
                return accounting;
            }
            assert!(began.elapsed() < TIMEOUT, "hits are never dealt with: {accounting:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Events that user space has taken from the ring buffer, after it has caught up; and those among them that
    /// were no events.
    pub fn drained(&self) -> (u64, u64) {
        self.drain.catch_up(TIMEOUT);
        let stats = self.drain.stats();
        (stats.events.load(Ordering::Relaxed), stats.undecodable.load(Ordering::Relaxed))
    }

    /// Metric updates that user space could not make: for unreadable values, and for negative amounts.
    pub fn refused_in_user_space(&self) -> (u64, u64) {
        let stats = self.drain.stats();
        (stats.unreadable.load(Ordering::Relaxed), stats.negative.load(Ordering::Relaxed))
    }

    /// Hits that the kernel says it kept from the programs.
    pub fn misses(&self) -> u64 {
        self.manager.shared().programs.iter().map(|program| program.misses().unwrap()).sum()
    }

    /// State and number of sites of a probe.
    pub fn state(&self, probe: usize) -> (ProbeState, usize) {
        let probe = &self.manager.status().probes()[probe];
        (probe.state.clone(), probe.sites)
    }

    /// Takes a probe out for a while.
    pub fn shed(&self, probe: usize) {
        self.manager.shed([(probe, "it is too dear".to_string())].into());
    }

    /// How the targets' files and processes were found.
    pub fn targets(&self) -> TargetCounts {
        self.manager.status().targets()
    }

    /// Hits that named no site: a fault of the exporter.
    pub fn stray(&self) -> u64 {
        self.manager.shared().control.stray()
    }
}

/// Compares all series of this metric, in the order of their names.
#[track_caller]
pub fn assert_all(series: &Series, metric: &str, expected: &[(&str, &str)]) {
    let mut found: Vec<_> = series
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(metric)?, value.as_str())))
        .filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'))
        .collect();
    found.sort_unstable();
    assert_eq!(found, expected, "{metric} in {series:#?}");
}

/// The plan for a configuration's text, or what is wrong with it.
pub fn plan_of(yaml: &str, all_to_ring: bool) -> Result<Plan, String> {
    load_bytes("test.yaml", yaml.into(), &Overrides::default(), &Environment::new())
        .and_then(|loaded| plan(loaded.config, all_to_ring))
        .map_err(|wrong| wrong.to_string())
}

/// Waits until it holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < TIMEOUT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
