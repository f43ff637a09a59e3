//! Attaches one link for all sites of a file, except those that the kernel rejects, and verifies that the others can be
//! hit.
//!
//! If no process maps the file, the kernel accepts a probe without decoding the instruction, and later silently drops
//! what it cannot probe. So the exporter maps the file first, which makes the kernel decode at once, and then looks for
//! each breakpoint in that mapping.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use libbpf_rs::Link;

use super::armed::{check_breakpoints, refuse_noexec, unarmed, view};
use super::error::{has_filtered_trampoline, kernel_release};
use super::link_kind::Attach;
use super::links::{ALL_PROCESSES, AttachPoint, LinkType, NO_SITE};
use super::load::Kernel;
use super::pinnable_link::detach;
use super::placed::{AttachMethod, Attached, PlacedSite};
use super::refusal::{Refusal, RefusalKind};

/// From this many breakpoints on, in all processes together, attaching is first tried in the exporter alone: the kernel
/// sets one in some 5 us, and removes all of them again if it refuses one.
const MANY: usize = 10_000;

/// Whether the kernel takes noticeably long to attach to this many sites in this many processes.
pub fn is_large(sites: usize, processes: usize) -> bool {
    sites.saturating_mul(processes) >= MANY
}

/// Sets of up to this many places are tried one by one to find the ones that the kernel refuses: it refuses a single
/// one at once, but of a set it first removes those that it has already accepted, and waits for that.
const ALONE: usize = 64;

/// Keyed by the position in the list of sites.
type Refused = BTreeMap<usize, Refusal>;

/// What to attach to.
#[derive(Debug, Clone, Copy)]
pub struct AttachRequest<'a> {
    pub file: &'a File,
    pub sites: &'a [PlacedSite<'a>],
    /// Places in the file's code that no process ever executes (see [`crate::elf::Image::idle_code`]). They are needed
    /// where another tracer holds a site without its semaphore.
    pub idle: &'a [u64],
    /// The number of processes that map the file.
    pub processes: usize,
}

/// What trials have shown.
#[derive(Default)]
struct Rehearsal {
    /// The sites that another tracer holds, if that is known.
    held: Option<Refused>,
    /// The links of the trials.
    tried: Vec<Link>,
}

/// The links, and the points that could not be attached.
type Accepted = (Vec<Link>, Refused);

impl Kernel {
    /// Attaches to the sites of one file, for all processes that run it, now or later. Sites in `without` are already
    /// refused.
    pub fn attach(&self, request: AttachRequest<'_>, mut without: Refused) -> Attached {
        let sites = request.sites;
        without.extend(refuse_trampolines(sites, &kernel_release()));
        let mut rehearsal = Rehearsal::default();
        let attached = self.attach_except(request, without, &mut rehearsal).unwrap_or_else(|refusal| {
            let all = (0..sites.len()).map(|position| (position, refusal.clone())).collect();
            Attached { refused: all, ..Attached::default() }
        });
        Attached { tried: rehearsal.tried, ..attached }
    }

    fn attach_except(
        &self,
        request: AttachRequest<'_>,
        mut without: Refused,
        rehearsal: &mut Rehearsal,
    ) -> Result<Attached, Refusal> {
        let sites = request.sites;
        if self.attach_kind() == Attach::Multi && is_large(sites.len(), request.processes) {
            self.rehearse(request, &mut without, rehearsal)?;
        }
        let mut known = 0;
        // Repeated if the kernel has refused a site, accepted a probe without setting a breakpoint, or attached only
        // half of a function: then without it.
        for _ in 0..4 {
            let mut attached = Attached { refused: without.clone(), ..Attached::default() };
            match self.attach_to(&mut attached, request, rehearsal) {
                Ok(true) => {}
                Ok(false) => {
                    detach(attached.links);
                    self.rehearse(request, &mut without, rehearsal)?;
                    continue;
                }
                Err(refusal) => {
                    detach(attached.links);
                    return Err(refusal);
                }
            }
            let unarmed =
                attached.refused.values().filter(|refusal| refusal.kind == RefusalKind::Unarmed).count();
            if refuse_halves(&mut attached, sites) || unarmed > known {
                known = unarmed;
                detach(attached.links);
                without = attached.refused;
            } else {
                return Ok(attached);
            }
        }
        Err(Refusal::new(RefusalKind::Busy, "the kernel's answers are inconsistent; retrying"))
    }

    /// Finds out what the kernel refuses by attaching in the exporter's own process, where the kernel has to set and
    /// remove each breakpoint only once, and nothing is counted. Adds the sites that cannot be attached to `without`.
    fn rehearse(
        &self,
        request: AttachRequest<'_>,
        without: &mut Refused,
        rehearsal: &mut Rehearsal,
    ) -> Result<(), Refusal> {
        let AttachRequest { file, sites, .. } = request;
        let mut held = BTreeMap::new();
        let mut rehearsed = Attached { refused: std::mem::take(without), ..Attached::default() };
        for kind in LinkType::ALL {
            let spots = nobodys(&spots_of(kind, sites, &rehearsed.refused));
            let bad = self.causes(own_process(), kind, &opened(file), &spots, &mut rehearsal.tried)?;
            let can_be_beside = |(position, refusal): &(usize, Refusal)| {
                refusal.kind == RefusalKind::Held && sites[*position].site.ref_ctr_offset != 0
            };
            let (beside, refused): (Refused, Refused) = bad.into_iter().partition(can_be_beside);
            held.extend(beside);
            rehearsed.refused.extend(refused);
        }
        // The kernel now decodes the instructions that it accepted without decoding, and omits those that it cannot
        // probe.
        if let Some(view) = view(file, sites).map_err(|err| Refusal::of_file(&err))? {
            let unarmed = unarmed(&rehearsed.refused, &view, sites).into_iter();
            let refused = unarmed.filter(|at| !held.contains_key(at));
            rehearsed.refused.extend(refused.map(|at| (at, Refusal::of_instruction())));
        }
        refuse_halves(&mut rehearsed, sites);
        *without = rehearsed.refused;
        rehearsal.held = Some(held);
        Ok(())
    }

    /// Returns false if the kernel refuses a site and it is not known yet which one.
    fn attach_to(
        &self,
        attached: &mut Attached,
        request: AttachRequest<'_>,
        rehearsal: &mut Rehearsal,
    ) -> Result<bool, Refusal> {
        let AttachRequest { file, sites, .. } = request;
        let now = self.clock().map_or(0, |clock| clock.nanoseconds);
        sites.iter().try_for_each(|placed| self.describe(placed, now))?;
        refuse_noexec(file)?;
        // The file that is examined is the one that is attached, whatever the path leads to by then.
        let opened = opened(file);
        let view = view(file, sites).map_err(|err| Refusal::of_file(&err))?;
        // In this order, returns first: a call already in progress then has an end without a start, which is counted;
        // in the opposite order, its start would wait forever.
        for kind in LinkType::ALL {
            let spots = spots_of(kind, sites, &attached.refused);
            if !self.attach_kind_of(attached, kind, &opened, spots, rehearsal, request.idle)? {
                return Ok(false);
            }
        }
        if let Some(view) = view {
            check_breakpoints(attached, &view, sites);
        }
        Ok(true)
    }

    /// Attaches all points of one kind that can be attached.
    fn attach_kind_of(
        &self,
        attached: &mut Attached,
        kind: LinkType,
        path: &Path,
        spots: Vec<AttachPoint>,
        rehearsal: &mut Rehearsal,
        idle: &[u64],
    ) -> Result<bool, Refusal> {
        let accepted = match self.attach_kind() {
            Attach::Multi => self.in_one_link(kind, path, &spots, rehearsal)?,
            Attach::Perf => Some(self.each_alone(kind, path, &spots)?),
        };
        let Some((links, bad)) = accepted else { return Ok(false) };
        attached.links.extend(links);
        let is_held =
            |spot: &AttachPoint| spot.semaphore != 0 && bad[&spot.position].kind == RefusalKind::Held;
        let (beside, others): (Vec<AttachPoint>, Vec<AttachPoint>) =
            spots.into_iter().filter(|spot| bad.contains_key(&spot.position)).partition(is_held);
        attached.refused.extend(others.iter().map(|spot| (spot.position, bad[&spot.position].clone())));
        self.attach_beside(attached, kind, path, &beside, idle)?;
        Ok(true)
    }

    fn in_one_link(
        &self,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
        rehearsal: &mut Rehearsal,
    ) -> Result<Option<Accepted>, Refusal> {
        let Rehearsal { held, tried } = rehearsal;
        let is_held = |at: usize| held.as_ref().and_then(|held| Some((at, held.get(&at)?.clone())));
        let mut bad: Refused = spots.iter().filter_map(|spot| is_held(spot.position)).collect();
        // Repeated more than once only if the kernel's answers change.
        for _ in 0..4 {
            let good: Vec<AttachPoint> =
                spots.iter().filter(|spot| !bad.contains_key(&spot.position)).copied().collect();
            if good.is_empty() {
                break;
            }
            match self.link(kind, path, &good) {
                Ok(links) => return Ok(Some((links, bad))),
                Err(refusal) if !refusal.kind.is_of_a_site() => return Err(refusal),
                Err(_) if held.is_none() => return Ok(None),
                // Something interferes in another process.
                Err(_) => bad.extend(self.causes(ALL_PROCESSES, kind, path, &nobodys(&good), tried)?),
            }
        }
        Ok(Some((Vec::new(), bad)))
    }

    /// Perf events are one per site anyway.
    pub(super) fn each_alone(
        &self,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
    ) -> Result<Accepted, Refusal> {
        let (mut links, mut bad) = (Vec::new(), BTreeMap::new());
        for spot in spots {
            match self.link(kind, path, std::slice::from_ref(spot)) {
                Ok(attached) => links.extend(attached),
                Err(refusal) if refusal.kind.is_of_a_site() => {
                    bad.insert(spot.position, refusal);
                }
                Err(refusal) => {
                    detach(links);
                    return Err(refusal);
                }
            }
        }
        Ok((links, bad))
    }

    /// Returns the points for which the kernel refuses the set. Adds the links that could be attached to `tried`,
    /// because detaching takes long.
    fn causes(
        &self,
        pid: i32,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
        tried: &mut Vec<Link>,
    ) -> Result<Refused, Refusal> {
        let mut bad = BTreeMap::new();
        // If another tracer interferes at a point, the point has a semaphore, or ought to have one.
        let (with, without): (Vec<_>, Vec<_>) = spots.iter().copied().partition(|spot| spot.semaphore != 0);
        let mut open = vec![with, without];
        while let Some(set) = open.pop() {
            if set.is_empty() {
                continue;
            }
            match self.link_in(pid, kind, path, &set) {
                Ok(links) => tried.extend(links),
                Err(refusal) if !refusal.kind.is_of_a_site() => return Err(refusal),
                Err(refusal) => match set.as_slice() {
                    [one] => drop(bad.insert(one.position, refusal)),
                    _ if set.len() <= ALONE => open.extend(set.iter().map(|spot| vec![*spot])),
                    _ => {
                        let (one, other) = set.split_at(set.len() / 2);
                        open.extend([one.to_vec(), other.to_vec()]);
                    }
                },
            }
        }
        Ok(bad)
    }
}

/// Returns a path to the file that was examined, whatever its own path leads to by now.
fn opened(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn own_process() -> i32 {
    std::process::id() as i32
}

/// Returns the points that one kind of link has to attach to.
fn spots_of(kind: LinkType, sites: &[PlacedSite<'_>], refused: &Refused) -> Vec<AttachPoint> {
    let of_kind = sites
        .iter()
        .enumerate()
        .filter(|(position, placed)| kind.is_of(placed.method) && !refused.contains_key(position));
    let mut spots: Vec<AttachPoint> =
        of_kind.map(|(position, placed)| AttachPoint::of(position, placed)).collect();
    spots.sort_by_key(|spot| !sites[spot.position].site.is_exit);
    spots
}

/// Returns the same points for trials: hits belong to no site.
fn nobodys(spots: &[AttachPoint]) -> Vec<AttachPoint> {
    spots.iter().map(|spot| AttachPoint { cookie: NO_SITE, ..*spot }).collect()
}

/// Rejects returns that would kill processes with a seccomp filter.
fn refuse_trampolines(sites: &[PlacedSite<'_>], release: &str) -> Refused {
    if !has_filtered_trampoline(release) {
        return BTreeMap::new();
    }
    let is_return = |placed: &PlacedSite<'_>| !matches!(placed.method, AttachMethod::Entry);
    let refusal = Refusal::new(
        RefusalKind::Missing,
        format!(
            "on Linux {release} a return by the kernel's trampoline ends processes with a seccomp filter (containers, services \
             with SystemCallFilter=); remove `returns_by: trampoline`, or use Linux 6.12.14, 6.13.3 or later"
        ),
    );
    let returns = sites.iter().enumerate().filter(|(_, placed)| is_return(placed));
    returns.map(|(position, _)| (position, refusal.clone())).collect()
}

/// Rejects the counterparts of rejected sites; returns whether any of them is attached.
fn refuse_halves(attached: &mut Attached, sites: &[PlacedSite<'_>]) -> bool {
    let whole = |placed: &PlacedSite<'_>| placed.span.map(|span| (span, placed.site.function));
    let refused: BTreeMap<_, Refusal> = attached
        .refused
        .iter()
        .filter_map(|(position, refusal)| Some((whole(&sites[*position])?, refusal.clone())))
        .collect();
    let mut is_attached = false;
    for (position, placed) in sites.iter().enumerate() {
        let Some(refusal) = whole(placed).and_then(|whole| refused.get(&whole)) else { continue };
        attached.refused.entry(position).or_insert_with(|| {
            is_attached |= placed.method != AttachMethod::InSession;
            refusal.clone()
        });
    }
    is_attached
}
