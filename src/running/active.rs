//! The state that belongs to one configuration.

use std::sync::{Arc, Mutex};

use crate::config::model::Settings;
use crate::engine::Engines;
use crate::kernel::KernelError;
use crate::metrics::Registry;
use crate::pins::StateDirectory;
use crate::plan::Plan;
use crate::slow::SlowRecorder;
use crate::targets::Attaching;

/// The state that belongs to one configuration.
pub(crate) struct ActiveConfig {
    pub(super) engines: Arc<Engines>,
    pub(super) registry: Registry,
    pub(super) overflows: Arc<Mutex<Vec<u64>>>,
}

impl ActiveConfig {
    fn new(engines: Arc<Engines>) -> Self {
        let (stores, probe_refs) = engines.stores();
        let registry = Registry::of(engines.plan.clone(), stores, probe_refs);
        Self { engines, registry, overflows: Arc::default() }
    }

    /// Loads and attaches the probes, or continues with what an earlier exporter has left in the directory.
    ///
    /// # Errors
    /// If the kernel refuses the programs.
    pub fn begin(
        plan: Plan,
        settings: &Settings,
        attaching: &Attaching,
        directory: Option<StateDirectory>,
        recorder: &Arc<SlowRecorder>,
    ) -> Result<Self, KernelError> {
        let Some(directory) = directory.map(Arc::new) else {
            return Ok(Self::new(Arc::new(Engines::start(plan, attaching, None, recorder)?)));
        };
        let reason = match Engines::take_over(&directory, settings, attaching, recorder) {
            Ok(Some((engines, carried))) => {
                let mut before = Self::new(Arc::new(engines));
                before.registry.carry_on(carried);
                let after = before.engines.changed_to(plan, attaching, recorder)?;
                let (kept, all) = (after.kept_of(&before.engines), after.plan.probes.len());
                if kept < all {
                    log::info!("{kept} probes unchanged, {} new or changed", all - kept);
                }
                let mut state = before.changed_to(Arc::new(after));
                let settled = state.engines.settled();
                state.settle(settled);
                return Ok(state);
            }
            Ok(None) => {
                directory.has_engines().then(|| "the record of what it contains is missing".to_string())
            }
            Err(err) => Some(err.to_string()),
        };
        if let Some(reason) = reason {
            log::warn!(
                "The pinned state in {} cannot be taken over; counts start from zero: {reason}",
                directory.path().display()
            );
        }
        if let Err(err) = directory.remove_but(&[]) {
            log::warn!("{err}");
        }
        let state = Self::new(Arc::new(Engines::start(plan, attaching, Some(directory), recorder)?));
        state.save();
        Ok(state)
    }

    /// Switches to these engines, and carries the series over.
    pub(super) fn changed_to(&mut self, engines: Arc<Engines>) -> Self {
        let (before, now) = (self.engines.status().facts(), engines.status().facts());
        let mut next = Self::new(engines);
        next.registry.take_over(&mut self.registry, &before, &now);
        next.save();
        next
    }

    /// Records that probes that are no longer configured have been detached.
    pub(super) fn settle(&mut self, settled: Engines) {
        self.registry.forget_stores(settled.stores().0.len());
        self.engines = Arc::new(settled);
        self.save();
    }

    fn save(&self) {
        self.engines.save(self.registry.carried());
    }
}
