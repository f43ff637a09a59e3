//! The whole path from a configuration's text to its series, within this process; shared by the tests of the kernel
//! side. It needs root, and fails where the kernel refuses.

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

/// A running tracer. Dropping it detaches everything.
pub struct Tracer {
    pub plan: Arc<Plan>,
    manager: ProbeManager,
    drain: Drain,
    registry: Mutex<Registry>,
}

/// Values by series, as written in the exposition format; the label `node` is left out.
pub type Series = BTreeMap<String, String>;

impl Tracer {
    /// Starts tracing according to the configuration. Every probe must be attached.
    pub fn start(yaml: &str) -> Self {
        Self::start_by(yaml, false)
    }

    /// Like [`Tracer::start`]; with `all_to_ring`, nothing is computed in the kernel.
    pub fn start_by(yaml: &str, all_to_ring: bool) -> Self {
        let tracer = Self::start_unready(yaml, all_to_ring);
        let reason = tracer.manager.status().not_ready(&tracer.plan);
        assert!(reason.is_empty(), "not attached: {reason:#?}");
        tracer
    }

    /// Like [`Tracer::start`], but probes may be missing.
    pub fn start_unready(yaml: &str, all_to_ring: bool) -> Self {
        Self::start_recording(yaml, all_to_ring, None)
    }

    /// Like [`Tracer::start_unready`], with a recorder of slow events.
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

    /// Returns the series that a scrape would show.
    pub fn render(&self) -> Series {
        self.render_at(Instant::now())
    }

    /// Returns the series that a scrape at the given time would show.
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

    /// Returns the current accounting of a probe.
    pub fn accounting(&self, probe: usize) -> Accounting {
        Accounting::read(&self.manager.shared(), probe)
    }

    /// Returns the accounting of all probes once no hit is in progress.
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

    /// Returns the number of events that user space has taken from the ring buffer, once it has caught up, and how many
    /// of them could not be decoded.
    pub fn drained(&self) -> (u64, u64) {
        self.drain.catch_up(TIMEOUT);
        let stats = self.drain.stats();
        (stats.events.load(Ordering::Relaxed), stats.undecodable.load(Ordering::Relaxed))
    }

    /// Returns the number of metric updates that user space could not make: because of unreadable values, and because
    /// of negative amounts.
    pub fn refused_in_user_space(&self) -> (u64, u64) {
        let stats = self.drain.stats();
        (stats.unreadable.load(Ordering::Relaxed), stats.negative.load(Ordering::Relaxed))
    }

    /// Returns the number of hits for which the kernel reports that it did not run the program.
    pub fn misses(&self) -> u64 {
        self.manager.shared().programs.iter().map(|program| program.misses().unwrap()).sum()
    }

    /// Returns the state and the number of sites of a probe.
    pub fn state(&self, probe: usize) -> (ProbeState, usize) {
        let probe = &self.manager.status().probes()[probe];
        (probe.state.clone(), probe.sites)
    }

    /// Sheds a probe: detaches it temporarily.
    pub fn shed(&self, probe: usize) {
        self.manager.shed([(probe, "it is too dear".to_string())].into());
    }

    /// Returns the counts of the targets' files and processes.
    pub fn targets(&self) -> TargetCounts {
        self.manager.status().targets()
    }

    /// Returns the number of hits that belong to no known site, which would be a bug in the exporter.
    pub fn stray(&self) -> u64 {
        self.manager.shared().control.stray()
    }
}

/// Compares all series of this metric, sorted by name.
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

/// Returns the plan for a configuration's text, or its errors.
pub fn plan_of(yaml: &str, all_to_ring: bool) -> Result<Plan, String> {
    load_bytes("test.yaml", yaml.into(), &Overrides::default(), &Environment::new())
        .and_then(|loaded| plan(loaded.config, all_to_ring))
        .map_err(|wrong| wrong.to_string())
}

/// Waits until the condition holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < TIMEOUT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
