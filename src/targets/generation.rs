//! The probes of one target in one file: resolved, attached, and detached when dropped.

use std::fs;
use std::path::{Path, PathBuf};

use libbpf_rs::Link;

use super::find::{Found, Identity, Stamp};
use super::status::{ProbeState, Status};
use crate::config::model::Point;
use crate::elf::{Image, debug_file_candidates};
use crate::kernel::{How, Kernel, Placed, detach};
use crate::plan::{Plan, TargetPlan};
use crate::resolve::{Resolved, ResolvedSite, resolve};

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
        if let Err(why) = made.attach_all(kernel, plan, found, &resolved, cookies)
            && resolved.len() > 1
        {
            // One site can spoil the link of all: find out which probes it is, and do without them.
            log::warn!("{why}; trying each probe alone");
            resolved.retain(|(at, resolved)| {
                let alone = made.attach_all(kernel, plan, found, &[(*at, resolved.clone())], cookies);
                made.detach(cookies);
                alone.is_ok()
            });
            // Whatever is refused has been noted with its probe.
            let _ = made.attach_all(kernel, plan, found, &resolved, cookies);
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
        let wants_names =
            target.probes.iter().any(|probe| matches!(plan.probes[*probe].point, Point::Function(_)));
        let debug =
            image.as_ref().ok().filter(|_| wants_names).and_then(|image| debug_file(image, &found.shown));
        let image = image.map(|image| with_names(image, debug.as_deref()));
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
        plan: &Plan,
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
        let placed = place(plan, kernel.has_sessions(), &sites, &numbers);
        let done = kernel.attach(&found.path, &placed);
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

/// The separate debug file of a program that was stripped, if one is installed.
pub(crate) fn debug_file(image: &Image<'_>, shown: &str) -> Option<Vec<u8>> {
    let read = |path: PathBuf| fs::read(path).ok();
    let fits =
        |bytes: &Vec<u8>| Image::parse(bytes).is_ok_and(|debug| image.with_debug_symbols(&debug).is_ok());
    debug_file_candidates(image, Path::new(shown)).into_iter().filter_map(read).find(fits)
}

/// The program with the symbols of its debug file.
pub(crate) fn with_names<'a>(image: Image<'a>, debug: Option<&'a [u8]>) -> Image<'a> {
    let debug = debug.and_then(|bytes| Image::parse(bytes).ok());
    debug.and_then(|debug| image.with_debug_symbols(&debug).ok()).unwrap_or(image)
}

/// Gives every site its number and says how it is attached. The return of a function whose entry is traced too needs no
/// link of its own where the kernel has session uprobes: the entry's site names the return's.
pub fn place<'a>(
    plan: &Plan,
    sessions: bool,
    sites: &[&'a ResolvedSite],
    numbers: &[u32],
) -> Vec<Placed<'a>> {
    let mut placed: Vec<Placed<'a>> = Vec::new();
    let span = |site: &ResolvedSite| plan.probes[site.entry.probe as usize].span.map(|span| span.number);
    for (&site, &cookie) in sites.iter().zip(numbers) {
        let mut how = if site.is_return { How::Return } else { How::Entry };
        if sessions && site.is_return && span(site).is_some() {
            let entry = placed.iter_mut().find(|other| {
                other.how == How::Entry && other.site.offset == site.offset && span(other.site) == span(site)
            });
            if let Some(entry) = entry {
                entry.how = How::Session { on_return: cookie };
                how = How::InSession;
            }
        }
        placed.push(Placed { cookie, site, how });
    }
    placed
}

impl Outcome {
    fn refuse(&mut self, why: String) {
        self.state = ProbeState::Refused(why);
        self.sites = 0;
    }
}
