//! Hands the probes over to the next exporter, and takes them over from the previous one.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::retired::RetiredCounts;
use super::{Engine, Engines};
use crate::config::model::Settings;
use crate::kernel::{KernelError, Losses, Pinning};
use crate::layout::Layout;
use crate::metrics::{CarriedSeries, ProbeRef};
use crate::pins::{EnginePins, PinError, StateDirectory, VersionStamp};
use crate::plan::{InconsistentPlan, SavedPlan};
use crate::slow::SlowRecorder;
use crate::targets::{Attaching, EngineRecord, StartState};

/// Why the state of an earlier exporter is not taken over.
#[derive(Debug)]
pub(crate) enum TakeoverError {
    Pins(PinError),
    Kernel(KernelError),
    Plan(InconsistentPlan),
    /// It was left by an exporter of this version.
    Version(String),
    /// This setting, on which tables depend, has changed.
    Setting(&'static str),
    /// This engine has no document.
    Incomplete(String),
    Layout,
}

impl fmt::Display for TakeoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pins(err) => err.fmt(f),
            Self::Kernel(err) => err.fmt(f),
            Self::Plan(err) => err.fmt(f),
            Self::Version(version) => {
                write!(f, "version {version} wrote it, whose tables differ")
            }
            Self::Setting(name) => write!(f, "`{name}` has changed"),
            Self::Incomplete(engine) => write!(f, "engine {engine} is incomplete"),
            Self::Layout => f.write_str("its series have another layout"),
        }
    }
}

impl Error for TakeoverError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Pins(err) => err.source(),
            Self::Kernel(err) => err.source(),
            Self::Plan(_) | Self::Version(_) | Self::Setting(_) | Self::Incomplete(_) | Self::Layout => None,
        }
    }
}

impl From<PinError> for TakeoverError {
    fn from(err: PinError) -> Self {
        Self::Pins(err)
    }
}

impl From<KernelError> for TakeoverError {
    fn from(err: KernelError) -> Self {
        Self::Kernel(err)
    }
}

impl From<InconsistentPlan> for TakeoverError {
    fn from(err: InconsistentPlan) -> Self {
        Self::Plan(err)
    }
}

/// What is saved about all engines together, for the next exporter.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    stamp: VersionStamp,
    plan: SavedPlan,
    /// For each probe, its engine and its index there.
    probe_refs: Vec<(String, usize)>,
    losses: Losses,
    events: BTreeMap<String, u64>,
    carried: Vec<CarriedSeries>,
    since: f64,
}

/// Resumes one engine that an earlier exporter has left.
fn resume(
    pins: EnginePins,
    settings: &Settings,
    attaching: &Attaching,
    recorder: &Arc<SlowRecorder>,
) -> Result<Engine, TakeoverError> {
    let none = || TakeoverError::Incomplete(pins.dir().name());
    let record: EngineRecord = pins.dir().load()?.ok_or_else(none)?;
    let plan = record.plan.plan(settings)?;
    if Layout::new(&plan).fingerprint() != record.layout {
        return Err(TakeoverError::Layout);
    }
    let pinning = Some(Pinning { pins: Arc::new(pins), taken: Some(record.shape) });
    Ok(Engine::start(plan, attaching, StartState { pinning, record: Some(record) }, recorder)?)
}

impl Engines {
    /// Takes over the engines that an earlier exporter has left in the directory, and the contributions to its series
    /// by probes that no longer exist; `None` if there are none.
    ///
    /// # Errors
    /// Why they cannot be taken over.
    pub fn take_over(
        directory: &Arc<StateDirectory>,
        settings: &Settings,
        attaching: &Attaching,
        recorder: &Arc<SlowRecorder>,
    ) -> Result<Option<(Self, Vec<CarriedSeries>)>, TakeoverError> {
        let Some(stamp) = directory.dir().load::<VersionStamp>()? else { return Ok(None) };
        if stamp.abi != VersionStamp::this().abi {
            return Err(TakeoverError::Version(stamp.version));
        }
        let Some(record) = directory.dir().load::<Record>()? else { return Ok(None) };
        if let Some(setting) = record.plan.differs_from(settings) {
            return Err(TakeoverError::Setting(setting));
        }
        let plan = record.plan.plan(settings)?;
        if record.probe_refs.len() != plan.probes.len() {
            return Err(InconsistentPlan.into());
        }
        let (mut all, mut names): (Vec<Arc<Engine>>, Vec<String>) = (Vec::new(), Vec::new());
        let mut probe_refs = Vec::new();
        for (name, probe) in record.probe_refs {
            let engine = match names.iter().position(|known| *known == name) {
                Some(engine) => engine,
                None => {
                    all.push(Arc::new(resume(directory.engine(&name), settings, attaching, recorder)?));
                    names.push(name);
                    all.len() - 1
                }
            };
            if probe >= all[engine].plan.probes.len() {
                return Err(InconsistentPlan.into());
            }
            probe_refs.push(ProbeRef { engine, probe });
        }
        if all.is_empty() {
            return Ok(None);
        }
        directory.remove_but(&names)?;
        log::info!(
            "Took over the probes that version {} left attached ({})",
            stamp.version,
            directory.path().display()
        );
        let (losses, events, since) = (record.losses, record.events, record.since);
        let retired = RetiredCounts { losses, events, since, ..RetiredCounts::default() };
        let engines = Self::of(Arc::new(plan), all, probe_refs, retired, Some(directory.clone()));
        Ok(Some((engines, record.carried)))
    }

    /// Saves what the next exporter needs.
    pub fn save(&self, carried: Vec<CarriedSeries>) {
        let Some(directory) = &self.directory else { return };
        let name = |probe_ref: &ProbeRef| {
            self.all[probe_ref.engine].pins.as_ref().map_or_else(String::new, |pins| pins.dir().name())
        };
        let retired = self.retired();
        let record = Record {
            stamp: VersionStamp::this(),
            plan: SavedPlan::of(&self.plan),
            probe_refs: self.probe_refs.iter().map(|probe_ref| (name(probe_ref), probe_ref.probe)).collect(),
            losses: retired.losses,
            events: retired.events,
            carried,
            since: retired.since,
        };
        if let Err(err) = directory.dir().save(&record) {
            log::error!("the pinned state cannot be taken over later: {err}");
        }
    }
}
