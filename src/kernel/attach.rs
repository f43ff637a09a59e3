//! Attaching: one link for all sites of a file, less those that the kernel refuses, and proof that the rest can be hit.
//!
//! The kernel takes a probe on a file that no process maps without a look at the instruction, and later drops what it
//! cannot probe without a word. So the exporter maps the file first, which makes it check at once, and then looks for each
//! breakpoint in that mapping.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use libbpf_rs::Link;

use super::armed::{check_breakpoints, refuse_noexec, view};
use super::error::{has_filtered_trampoline, kernel_release};
use super::link_kind::Attach;
use super::links::{AttachPoint, LinkType};
use super::load::Kernel;
use super::pinnable_link::detach;
use super::placed::{AttachMethod, Attached, PlacedSite};
use super::refusal::{Refusal, RefusalKind};

/// Attempts of finding which sites spoil a set, before each is tried alone.
const HALVINGS: usize = 64;

/// The links, and the spots that could not be attached.
type Accepted = (Vec<Link>, BTreeMap<usize, Refusal>);

impl Kernel {
    /// Attaches to the sites of one file: for all processes that run it, now or later.
    ///
    /// `idle` are places in the file's code that no process ever runs (see [`crate::elf::Image::idle_code`]); they are
    /// needed where another tracer holds a site without its semaphore.
    /// Those in `without` are refused already.
    pub fn attach(
        &self,
        file: &File,
        sites: &[PlacedSite<'_>],
        mut without: BTreeMap<usize, Refusal>,
        idle: &[u64],
    ) -> Attached {
        without.extend(refuse_trampolines(sites, &kernel_release()));
        let mut known = 0;
        // More than once if the kernel has taken a probe and set no breakpoint, or half of a function: then without it.
        for _ in 0..3 {
            let mut attached = Attached { refused: without.clone(), ..Attached::default() };
            if let Err(refusal) = self.attach_to(&mut attached, file, sites, idle) {
                detach(attached.links);
                let all = (0..sites.len()).map(|position| (position, refusal.clone())).collect();
                return Attached { refused: all, ..Attached::default() };
            }
            let unarmed =
                attached.refused.values().filter(|refusal| refusal.kind == RefusalKind::Unarmed).count();
            if refuse_halves(&mut attached, sites) || unarmed > known {
                known = unarmed;
                detach(attached.links);
                without = attached.refused;
            } else {
                return attached;
            }
        }
        let refusal = Refusal::new(RefusalKind::Busy, "the kernel's answers are inconsistent; retrying");
        let all = (0..sites.len()).map(|position| (position, refusal.clone())).collect();
        Attached { refused: all, ..Attached::default() }
    }

    fn attach_to(
        &self,
        attached: &mut Attached,
        file: &File,
        sites: &[PlacedSite<'_>],
        idle: &[u64],
    ) -> Result<(), Refusal> {
        let now = self.clock().map_or(0, |clock| clock.nanoseconds);
        sites.iter().try_for_each(|placed| self.describe(placed, now))?;
        refuse_noexec(file)?;
        // The file that is looked at is the one that is attached to, whatever the path names by then.
        let opened = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let view = view(file, sites).map_err(|err| Refusal::of_file(&err))?;
        // Returns first: a call that is under way then has an end without a start, which is counted; the other way round
        // its start would wait for ever.
        for kind in [LinkType::Return, LinkType::Session, LinkType::Entry] {
            let of_kind = sites.iter().enumerate().filter(|(position, placed)| {
                kind.is_of(placed.method) && !attached.refused.contains_key(position)
            });
            let mut spots: Vec<AttachPoint> =
                of_kind.map(|(position, placed)| AttachPoint::of(position, placed)).collect();
            spots.sort_by_key(|spot| !sites[spot.position].site.is_exit);
            self.attach_kind_of(attached, kind, &opened, spots, idle)?;
        }
        if let Some(view) = view {
            check_breakpoints(attached, &view, sites);
        }
        Ok(())
    }

    /// All spots that can be, of one kind.
    fn attach_kind_of(
        &self,
        attached: &mut Attached,
        kind: LinkType,
        path: &Path,
        spots: Vec<AttachPoint>,
        idle: &[u64],
    ) -> Result<(), Refusal> {
        let (links, bad) = match self.attach_kind() {
            Attach::Multi => self.in_one_link(kind, path, &spots)?,
            Attach::Perf => self.each_alone(kind, path, &spots)?,
        };
        attached.links.extend(links);
        let is_held =
            |spot: &AttachPoint| spot.semaphore != 0 && bad[&spot.position].kind == RefusalKind::Held;
        let (beside, others): (Vec<AttachPoint>, Vec<AttachPoint>) =
            spots.into_iter().filter(|spot| bad.contains_key(&spot.position)).partition(is_held);
        attached.refused.extend(others.iter().map(|spot| (spot.position, bad[&spot.position].clone())));
        self.attach_beside(attached, kind, path, &beside, idle)
    }

    fn in_one_link(&self, kind: LinkType, path: &Path, spots: &[AttachPoint]) -> Result<Accepted, Refusal> {
        let mut bad = BTreeMap::new();
        // More than twice only if the kernel changes its mind.
        for _ in 0..4 {
            let good: Vec<AttachPoint> =
                spots.iter().filter(|spot| !bad.contains_key(&spot.position)).copied().collect();
            if good.is_empty() {
                break;
            }
            match self.link(kind, path, &good) {
                Ok(links) => return Ok((links, bad)),
                Err(refusal) if !refusal.kind.is_of_a_site() => return Err(refusal),
                Err(_) => bad.extend(self.causes(kind, path, &good)?),
            }
        }
        Ok((Vec::new(), bad))
    }

    /// Perf events are one for each site anyway.
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

    /// Which spots spoil the set.
    fn causes(
        &self,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
    ) -> Result<BTreeMap<usize, Refusal>, Refusal> {
        let mut bad = BTreeMap::new();
        // Detaching waits for the kernel, so what could be attached stays until all is known.
        let mut kept = Vec::new();
        let mut open = vec![spots.to_vec()];
        let mut halved = 0;
        let mut whole = Ok(());
        while let Some(set) = open.pop() {
            match self.link(kind, path, &set) {
                Ok(links) => kept.extend(links),
                Err(refusal) if !refusal.kind.is_of_a_site() => {
                    whole = Err(refusal);
                    break;
                }
                Err(refusal) => match set.as_slice() {
                    [] => {}
                    [one] => {
                        bad.insert(one.position, refusal);
                    }
                    _ if halved < HALVINGS => {
                        halved += 1;
                        let (one, other) = set.split_at(set.len() / 2);
                        open.extend([one.to_vec(), other.to_vec()]);
                    }
                    _ => open.extend(set.iter().map(|spot| vec![*spot])),
                },
            }
        }
        detach(kept);
        whole.map(|()| bad)
    }
}

/// Refuses returns that would end processes with a seccomp filter.
fn refuse_trampolines(sites: &[PlacedSite<'_>], release: &str) -> BTreeMap<usize, Refusal> {
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

/// Refuses what belongs together with what is refused. Whether any of that is attached.
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
