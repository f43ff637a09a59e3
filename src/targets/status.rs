//! How each probe is doing, for the log, `/ready` and the self-metrics.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kernel::Sweep;
use crate::metrics::registry::Seen;
use crate::plan::Plan;

/// State of every probe of the plan.
#[derive(Debug)]
pub struct Status {
    probes: Mutex<Vec<ProbeStatus>>,
    hz: Mutex<Option<Ticks>>,
    spans: Mutex<Vec<Sweep>>,
}

/// One probe's state.
#[derive(Debug, Clone)]
pub struct ProbeStatus {
    pub state: ProbeState,
    /// Sites attached now, in all files.
    pub sites: usize,
    pub seen: Seen,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeState {
    /// The target's file or process is not there yet.
    Waiting(String),
    /// The file has no such probe.
    Absent(String),
    /// It is there but cannot be used, or the kernel refuses.
    Refused(String),
    Attached,
}

impl ProbeState {
    /// One word, as a label.
    pub fn word(&self) -> &'static str {
        match self {
            ProbeState::Waiting(_) => "waiting",
            ProbeState::Absent(_) => "absent",
            ProbeState::Refused(_) => "refused",
            ProbeState::Attached => "attached",
        }
    }

    /// Why it is not attached; empty if it is.
    pub fn reason(&self) -> &str {
        match self {
            ProbeState::Waiting(why) | ProbeState::Absent(why) | ProbeState::Refused(why) => why,
            ProbeState::Attached => "",
        }
    }
}

/// The kernel's tick: which jiffies went with which time, and how many there are in a second.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    pub jiffies: u64,
    /// Seconds since 1970.
    pub unix: f64,
    pub hz: f64,
}

impl Status {
    pub fn new(plan: &Plan) -> Self {
        let waiting = ProbeStatus {
            state: ProbeState::Waiting("not looked for yet".to_string()),
            sites: 0,
            seen: Seen::default(),
        };
        Self {
            probes: Mutex::new(vec![waiting; plan.probes.len()]),
            hz: Mutex::new(None),
            spans: Mutex::new(vec![Sweep::default(); plan.spans as usize]),
        }
    }

    /// A copy of all states, in the plan's order.
    pub fn probes(&self) -> Vec<ProbeStatus> {
        self.lock().clone()
    }

    /// What the measured series need to know.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().iter().map(|probe| probe.seen.clone()).collect()
    }

    /// Sets one state; whether it is another than before.
    pub(super) fn set(&self, probe: usize, state: ProbeState, sites: usize, unsigned: Option<u32>) -> bool {
        let mut probes = self.lock();
        let Some(at) = probes.get_mut(probe) else { return false };
        let changed = at.state != state || at.sites != sites;
        at.seen.attached |= state == ProbeState::Attached;
        if let Some(unsigned) = unsigned {
            at.seen.unsigned = unsigned;
        }
        (at.state, at.sites) = (state, sites);
        changed
    }

    /// Why the targets are not ready; empty when they are. Every target needs a probe attached, and every probe that
    /// the user wrote, while a profile's probe may be absent from this build of the application.
    pub fn not_ready(&self, plan: &Plan) -> Vec<String> {
        let probes = self.lock();
        let mut why = Vec::new();
        for target in &plan.targets {
            let attached = target.probes.iter().any(|probe| probes[*probe].state == ProbeState::Attached);
            for number in &target.probes {
                let (planned, state) = (&plan.probes[*number], &probes[*number].state);
                let excused = attached && planned.optional && matches!(state, ProbeState::Absent(_));
                if *state != ProbeState::Attached && !excused {
                    why.push(format!(
                        "{}: {} is {}: {}",
                        target.name,
                        planned.name,
                        state.word(),
                        state.reason()
                    ));
                }
            }
        }
        why
    }

    /// The number of a function's name at this probe, given now if it is new.
    pub(super) fn function(&self, probe: usize, name: &str) -> u32 {
        let mut probes = self.lock();
        let Some(at) = probes.get_mut(probe) else { return 0 };
        let names = &mut at.seen.functions;
        let number = names.iter().position(|known| known == name).unwrap_or_else(|| {
            Arc::make_mut(names).push(name.to_string());
            names.len() - 1
        });
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Of each span, by number: how many starts were open at the latest look, and how many were forgotten so far.
    pub fn spans(&self) -> Vec<Sweep> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add_sweep(&self, found: &[Sweep]) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        for (span, found) in spans.iter_mut().zip(found) {
            span.open = found.open;
            span.expired += found.expired;
        }
    }

    pub fn ticks(&self) -> Option<Ticks> {
        *self.hz.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_ticks(&self, ticks: Ticks) {
        *self.hz.lock().unwrap_or_else(PoisonError::into_inner) = Some(ticks);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ProbeStatus>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
