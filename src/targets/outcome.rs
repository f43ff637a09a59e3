//! The result of one probe in one file, site by site.

use super::probe_state::ProbeState;
use crate::kernel::Refusal;
use crate::resolve::ResolvedSite;
use crate::unusable::{UnusableSite, summary};

/// The result of one probe in one file.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub probe: usize,
    pub state: ProbeState,
    /// The number of attached sites.
    pub sites: usize,
    /// See [`crate::resolve::Resolved::unsigned`].
    pub unsigned: u32,
    /// Sites that can never be attached.
    pub unusable: Vec<UnusableSite>,
    /// Sites that failed temporarily.
    pub open: Vec<(ResolvedSite, Refusal)>,
}

impl Outcome {
    pub fn new(probe: usize) -> Self {
        let state = ProbeState::Attached;
        Self { probe, state, sites: 0, unsigned: 0, unusable: Vec::new(), open: Vec::new() }
    }

    /// Sites that are in the file and not attached.
    pub fn refused(&self) -> usize {
        self.unusable.len() + self.open.len()
    }

    /// Records a failure; [`settle`](Self::settle) then derives the probe's state.
    pub fn refuse(&mut self, site: ResolvedSite, refusal: Refusal) {
        if refusal.kind.passes() {
            self.open.push((site, refusal));
        } else {
            self.unusable.push(UnusableSite { name: site.name, reason: refusal.text });
        }
    }

    /// Derives the state from the results of the sites.
    pub fn settle(&mut self) {
        let all = self.sites + self.refused();
        let unusable = self.unusable.iter().map(|site| (site.name.as_str(), site.reason.as_str()));
        let open = self.open.iter().map(|(site, refusal)| (site.name.as_str(), refusal.text.as_str()));
        self.state = match (self.sites, self.refused()) {
            (_, 0) => ProbeState::Attached,
            (0, _) => ProbeState::Refused(summary(unusable.chain(open))),
            (_, refused) => {
                let reason = summary(unusable.chain(open));
                ProbeState::Partly(format!("{refused} of {all} sites failed: {reason}"))
            }
        };
    }
}
