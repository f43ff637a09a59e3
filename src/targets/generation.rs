//! The probes of one target in one file: resolved, attached, and detached when dropped.

use std::fs;

use libbpf_rs::Link;

use super::find::{Found, Identity, Stamp};
use super::status::{ProbeState, Status};
use crate::elf::Image;
use crate::kernel::{Kernel, detach};
use crate::plan::{Plan, TargetPlan};
use crate::resolve::{Resolved, resolve};

/// Numbers of sites, given back when a file is no longer probed.
#[derive(Debug)]
pub struct Cookies {
    free: Vec<u32>,
}

impl Cookies {
    pub fn new(sites: u32) -> Self {
        Self { free: (0..sites).rev().collect() }
    }

    fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        let left = self.free.len().checked_sub(n)?;
        Some(self.free.split_off(left))
    }
}

/// One file's probes.
#[derive(Debug)]
pub struct Generation {
    pub shown: String,
    pub identity: Identity,
    pub stamp: Stamp,
    /// In the target's order.
    pub probes: Vec<Outcome>,
    links: Vec<Link>,
    cookies: Vec<u32>,
}

/// How one probe fared in this file.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub probe: usize,
    pub state: ProbeState,
    pub sites: usize,
    pub unsigned: u32,
}

impl Generation {
    /// Resolves and attaches all probes of the target in this file, as many as can be.
    pub fn attach(
        kernel: &Kernel,
        plan: &Plan,
        status: &Status,
        target: &TargetPlan,
        found: &Found,
        cookies: &mut Cookies,
    ) -> Self {
        let mut made = Self {
            shown: found.shown.clone(),
            identity: found.identity,
            stamp: found.stamp,
            probes: Vec::new(),
            links: Vec::new(),
            cookies: Vec::new(),
        };
        let mut resolved = made.resolve(plan, status, target, found);
        if let Err(why) = made.attach_all(kernel, found, &resolved, cookies)
            && resolved.len() > 1
        {
            // One site can spoil the link of all: find out which probes it is, and do without them.
            log::warn!("{why}; trying each probe alone");
            resolved.retain(|(at, resolved)| {
                let alone = made.attach_all(kernel, found, &[(*at, resolved.clone())], cookies);
                made.detach(cookies);
                alone.map_err(|why| made.probes[*at].refuse(why)).is_ok()
            });
            if let Err(why) = made.attach_all(kernel, found, &resolved, cookies) {
                resolved.iter().for_each(|(at, _)| made.probes[*at].refuse(why.clone()));
            }
        }
        made
    }

    /// Fills in how each probe fares before the kernel is asked; returns those that have sites.
    fn resolve(
        &mut self,
        plan: &Plan,
        status: &Status,
        target: &TargetPlan,
        found: &Found,
    ) -> Vec<(usize, Resolved)> {
        let bytes = fs::read(&found.path).map_err(|why| format!("{} cannot be read: {why}", found.shown));
        let image = bytes
            .as_ref()
            .map_err(String::clone)
            .and_then(|bytes| Image::parse(bytes).map_err(|why| format!("{}: {why}", found.shown)));
        let mut good = Vec::new();
        for &number in &target.probes {
            let mut outcome = Outcome { probe: number, state: ProbeState::Attached, sites: 0, unsigned: 0 };
            let mut name = |name: &str| status.function(number, name);
            let found =
                image.as_ref().map(|image| resolve(image, number as u32, &plan.probes[number], &mut name));
            match found {
                Err(why) => outcome.state = ProbeState::Refused(why.clone()),
                Ok(Err(why)) if why.is_absent() => outcome.state = ProbeState::Absent(why.to_string()),
                Ok(Err(why)) => outcome.state = ProbeState::Refused(why.to_string()),
                Ok(Ok(resolved)) => {
                    outcome.sites = resolved.sites.len();
                    outcome.unsigned = resolved.unsigned;
                    good.push((self.probes.len(), resolved));
                }
            }
            self.probes.push(outcome);
        }
        good
    }

    fn attach_all(
        &mut self,
        kernel: &Kernel,
        found: &Found,
        resolved: &[(usize, Resolved)],
        cookies: &mut Cookies,
    ) -> Result<(), String> {
        let sites: Vec<_> = resolved.iter().flat_map(|(_, resolved)| &resolved.sites).collect();
        if sites.is_empty() {
            return Ok(());
        }
        let refuse = |this: &mut Self, why: String| {
            resolved.iter().for_each(|(at, _)| this.probes[*at].refuse(why.clone()));
            Err(why)
        };
        let Some(numbers) = cookies.take(sites.len()) else {
            let why = format!("{} more probe sites than limits.sites allows; raise it", sites.len());
            return refuse(self, why);
        };
        self.cookies.extend(&numbers);
        let sites: Vec<_> = numbers.into_iter().zip(sites).collect();
        let done = sites
            .iter()
            .try_for_each(|(cookie, site)| kernel.set_site(*cookie, site))
            .and_then(|()| kernel.attach(&found.path, &sites));
        match done {
            Ok(links) => {
                self.links.extend(links);
                for (at, resolved) in resolved {
                    self.probes[*at].state = ProbeState::Attached;
                    self.probes[*at].sites = resolved.sites.len();
                }
                Ok(())
            }
            Err(why) => {
                self.detach(cookies);
                refuse(self, why.to_string())
            }
        }
    }

    /// Takes the probes out of the file. Site numbers are given back only then: until it is detached, a hit could
    /// still name them.
    pub fn detach(&mut self, cookies: &mut Cookies) {
        detach(std::mem::take(&mut self.links));
        cookies.free.append(&mut self.cookies);
    }

    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }
}

impl Outcome {
    fn refuse(&mut self, why: String) {
        self.state = ProbeState::Refused(why);
        self.sites = 0;
    }
}
