//! How one probe fares in one file, site by site.

use super::status::ProbeState;
use crate::kernel::Refusal;
use crate::resolve::{ResolvedSite, UnfitSite};

/// Sites that are named for each reason.
const MOST_NAMES: usize = 5;

/// Reasons that are given.
const MOST_REASONS: usize = 4;

/// How one probe fares in one file.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub probe: usize,
    pub state: ProbeState,
    /// Sites that are attached.
    pub sites: usize,
    /// See [`crate::resolve::Resolved::unsigned`].
    pub unsigned: u32,
    /// Sites that are not attached, and never will be.
    pub unfit: Vec<UnfitSite>,
    /// Sites that were refused for a reason that can pass.
    pub open: Vec<(ResolvedSite, Refusal)>,
}

impl Outcome {
    pub fn new(probe: usize) -> Self {
        let state = ProbeState::Attached;
        Self { probe, state, sites: 0, unsigned: 0, unfit: Vec::new(), open: Vec::new() }
    }

    /// Sites that are in the file and not attached.
    pub fn refused(&self) -> usize {
        self.unfit.len() + self.open.len()
    }

    /// Notes a refusal; [`settle`](Self::settle) then says what it means for the probe.
    pub fn refuse(&mut self, site: ResolvedSite, refusal: Refusal) {
        if refusal.kind.passes() {
            self.open.push((site, refusal));
        } else {
            self.unfit.push(UnfitSite { name: site.name, why: refusal.text });
        }
    }

    /// Derives the state from what became of the sites.
    pub fn settle(&mut self) {
        let all = self.sites + self.refused();
        let unfit = self.unfit.iter().map(|site| (site.name.as_str(), site.why.as_str()));
        let open = self.open.iter().map(|(site, refusal)| (site.name.as_str(), refusal.text.as_str()));
        self.state = match (self.sites, self.refused()) {
            (_, 0) => ProbeState::Attached,
            (0, _) => ProbeState::Refused(summary(unfit.chain(open), all)),
            (_, refused) => {
                let why = summary(unfit.chain(open), all);
                ProbeState::Partly(format!("{refused} of {all} sites are not: {why}"))
            }
        };
    }
}

/// Each reason once, with the sites that have it; only the reason where it is that of all.
pub fn summary<'a>(refused: impl Iterator<Item = (&'a str, &'a str)>, all: usize) -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, why) in refused {
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(name),
            None => reasons.push((why, vec![name])),
        }
    }
    if let [(why, names)] = reasons.as_slice()
        && names.len() == all
    {
        return (*why).to_string();
    }
    let more = reasons.len().saturating_sub(MOST_REASONS);
    let mut lines: Vec<String> = reasons
        .iter()
        .take(MOST_REASONS)
        .map(|(why, names)| {
            let shown = names[..names.len().min(MOST_NAMES)].join(", ");
            let others = match names.len().saturating_sub(MOST_NAMES) {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            format!("{shown}{others}: {why}")
        })
        .collect();
    if more > 0 {
        lines.push(format!("and {more} more reasons"));
    }
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_grouped_and_bounded() {
        let names: Vec<String> = (0..8).map(|n| format!("f{n}")).collect();
        let same = names.iter().map(|name| (name.as_str(), "bad"));
        assert_eq!(summary(same.clone(), 8), "bad");
        assert_eq!(summary(same.clone(), 9), "f0, f1, f2, f3, f4 and 3 more: bad");
        assert_eq!(summary(same.take(1).chain([("g", "worse")]), 9), "f0: bad; g: worse");
        let each: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
        assert_eq!(summary(each.into_iter(), 9), "f0: f0; f1: f1; f2: f2; f3: f3; and 4 more reasons");
    }
}
