//! Attaching: one link for all sites of a file, less those that the kernel refuses, and proof that the rest can be hit.
//!
//! The kernel takes a probe on a file that no process maps without a look at the instruction, and later drops what it
//! cannot probe without a word. So the exporter maps the file first, which makes it check at once, and then looks for each
//! breakpoint in that mapping.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use libbpf_rs::{Link, UprobeMultiOpts, UprobeOpts};

use super::load::{Attach, Kernel};
use super::refusal::{Refusal, RefusalKind};
use crate::mapping::CodeView;
use crate::resolve::ResolvedSite;

/// How a site is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Entry,
    Return,
    /// At the entry and the return of a function, by one link. The return has a site of its own, with this number.
    Session {
        on_return: u32,
    },
    /// The return of a session: no link of its own.
    InSession,
}

/// A site and its number.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    pub cookie: u32,
    pub site: &'a ResolvedSite,
    pub how: How,
    /// The span that the site begins or ends. Without its ends a start would wait in vain, so the sites of a function that
    /// belong to a span are attached together or not at all.
    pub span: Option<u32>,
}

/// What came of attaching. Dropping the links detaches.
#[derive(Debug, Default)]
pub struct Attached {
    pub links: Vec<Link>,
    /// By position in the list of sites.
    pub refused: BTreeMap<usize, Refusal>,
    /// Sites that another tracer holds without their semaphore, which is raised by a probe elsewhere in the file.
    pub beside: usize,
}

/// The number of no site: of probes that are never hit.
const NO_SITE: u64 = u32::MAX as u64;

/// The x86 breakpoint.
const BREAKPOINT: u8 = 0xcc;

/// Attempts of finding which sites spoil a set, before each is tried alone.
const HALVINGS: usize = 64;

/// A place to attach at, and its position in the list that was asked for.
#[derive(Debug, Clone, Copy)]
struct Spot {
    position: usize,
    offset: u64,
    semaphore: u64,
    cookie: u64,
}

/// The links, and the spots that could not be attached.
type Accepted = (Vec<Link>, BTreeMap<usize, Refusal>);

/// The part of the sites that one link takes, by its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Entry,
    Return,
    Session,
}

impl Kernel {
    /// Attaches to the sites of one file: for all processes that run it, now or later.
    ///
    /// `idle` are places in the file's code that no process ever runs (see [`crate::elf::Image::idle_code`]); they are
    /// needed where another tracer holds a site without its semaphore.
    pub fn attach(&self, file: &File, sites: &[Placed<'_>], idle: &[u64]) -> Attached {
        let (mut without, mut known) = (BTreeMap::new(), 0);
        // More than once if the kernel has taken a probe and set no breakpoint, or half of a function: then without it.
        for _ in 0..3 {
            let mut made = Attached { refused: without.clone(), ..Attached::default() };
            if let Err(refusal) = self.attach_to(&mut made, file, sites, idle) {
                detach(made.links);
                let all = (0..sites.len()).map(|position| (position, refusal.clone())).collect();
                return Attached { refused: all, ..Attached::default() };
            }
            let unarmed =
                made.refused.values().filter(|refusal| refusal.kind == RefusalKind::Unarmed).count();
            if refuse_halves(&mut made, sites) || unarmed > known {
                known = unarmed;
                detach(made.links);
                without = made.refused;
            } else {
                return made;
            }
        }
        let refusal =
            Refusal::new(RefusalKind::Busy, "the kernel keeps changing what it takes; it is tried again");
        let all = (0..sites.len()).map(|position| (position, refusal.clone())).collect();
        Attached { refused: all, ..Attached::default() }
    }

    /// At which places of a file, which no process may map, the kernel sets a breakpoint: it takes them all, and drops what
    /// it cannot probe when the file is mapped. The tables of [`crate::elf::probeable`] are held against this.
    ///
    /// # Errors
    /// If the kernel refuses even to take them.
    pub fn arms(&self, path: &Path, offsets: &[u64]) -> Result<Vec<bool>, Refusal> {
        let spot = |(position, offset): (usize, &u64)| Spot {
            position,
            offset: *offset,
            semaphore: 0,
            cookie: NO_SITE,
        };
        let spots: Vec<Spot> = offsets.iter().enumerate().map(spot).collect();
        let links = self.link(Kind::Entry, path, &spots)?;
        let (first, last) = (offsets.iter().min(), offsets.iter().max());
        let (first, last) = (first.copied().unwrap_or(0), last.copied().unwrap_or(0));
        let view = File::open(path).and_then(|file| CodeView::new(file.as_fd(), first, last));
        let view = view.map_err(|err| Refusal::of_file(&err))?;
        let armed = offsets.iter().map(|offset| view.byte(*offset) == Some(BREAKPOINT)).collect();
        detach(links);
        Ok(armed)
    }

    fn attach_to(
        &self,
        made: &mut Attached,
        file: &File,
        sites: &[Placed<'_>],
        idle: &[u64],
    ) -> Result<(), Refusal> {
        sites.iter().try_for_each(|placed| self.describe(placed))?;
        refuse_noexec(file)?;
        // The file that is looked at is the one that is attached to, whatever the path names by then.
        let opened = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let view = view(file, sites).map_err(|err| Refusal::of_file(&err))?;
        // Returns first: a call that is under way then has an end without a start, which is counted; the other way round
        // its start would wait for ever.
        for kind in [Kind::Return, Kind::Session, Kind::Entry] {
            let of_kind = sites
                .iter()
                .enumerate()
                .filter(|(position, placed)| kind.is_of(placed.how) && !made.refused.contains_key(position));
            let mut spots: Vec<Spot> = of_kind.map(|(position, placed)| Spot::of(position, placed)).collect();
            spots.sort_by_key(|spot| !sites[spot.position].site.is_exit);
            self.attach_kind_of(made, kind, &opened, spots, idle)?;
        }
        if let Some(view) = view {
            check_breakpoints(made, &view, sites);
        }
        Ok(())
    }

    /// All spots that can be, of one kind.
    fn attach_kind_of(
        &self,
        made: &mut Attached,
        kind: Kind,
        path: &Path,
        spots: Vec<Spot>,
        idle: &[u64],
    ) -> Result<(), Refusal> {
        let (links, bad) = match self.attach_kind() {
            Attach::Multi => self.in_one_link(kind, path, &spots)?,
            Attach::Perf => self.each_alone(kind, path, &spots)?,
        };
        made.links.extend(links);
        let is_held = |spot: &Spot| spot.semaphore != 0 && bad[&spot.position].kind == RefusalKind::Held;
        let (beside, others): (Vec<Spot>, Vec<Spot>) =
            spots.into_iter().filter(|spot| bad.contains_key(&spot.position)).partition(is_held);
        made.refused.extend(others.iter().map(|spot| (spot.position, bad[&spot.position].clone())));
        self.attach_beside(made, kind, path, &beside, idle)
    }

    fn in_one_link(&self, kind: Kind, path: &Path, spots: &[Spot]) -> Result<Accepted, Refusal> {
        let mut bad = BTreeMap::new();
        // More than twice only if the kernel changes its mind.
        for _ in 0..4 {
            let good: Vec<Spot> =
                spots.iter().filter(|spot| !bad.contains_key(&spot.position)).copied().collect();
            if good.is_empty() {
                break;
            }
            match self.link(kind, path, &good) {
                Ok(links) => return Ok((links, bad)),
                Err(refusal) if !refusal.kind.is_of_a_site() => return Err(refusal),
                Err(_) => bad.extend(self.culprits(kind, path, &good)?),
            }
        }
        Ok((Vec::new(), bad))
    }

    /// Perf events are one for each site anyway.
    fn each_alone(&self, kind: Kind, path: &Path, spots: &[Spot]) -> Result<Accepted, Refusal> {
        let (mut links, mut bad) = (Vec::new(), BTreeMap::new());
        for spot in spots {
            match self.link(kind, path, std::slice::from_ref(spot)) {
                Ok(made) => links.extend(made),
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
    fn culprits(&self, kind: Kind, path: &Path, spots: &[Spot]) -> Result<BTreeMap<usize, Refusal>, Refusal> {
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

    /// Attaches where another tracer holds the place without the semaphore, which the kernel keeps one of for each place: so
    /// without it, too. The semaphores are raised by probes that name them at places which no process ever runs; so it is
    /// the kernel that counts them, in every process of now and later.
    fn attach_beside(
        &self,
        made: &mut Attached,
        kind: Kind,
        path: &Path,
        spots: &[Spot],
        idle: &[u64],
    ) -> Result<(), Refusal> {
        let semaphores: BTreeSet<u64> = spots.iter().map(|spot| spot.semaphore).collect();
        for semaphore in semaphores {
            let without: Vec<Spot> = spots
                .iter()
                .filter(|spot| spot.semaphore == semaphore)
                .map(|spot| Spot { semaphore: 0, ..*spot })
                .collect();
            let (links, bad) = self.each_alone(kind, path, &without)?;
            let raised = if links.is_empty() { None } else { self.raise(path, semaphore, idle)? };
            let attached = without.iter().filter(|spot| !bad.contains_key(&spot.position));
            match raised {
                Some(raised) => {
                    made.beside += attached.count();
                    made.links.extend(links);
                    made.links.extend(raised);
                }
                None => {
                    detach(links);
                    let refusal = Refusal::new(
                        RefusalKind::Held,
                        "another tracer (an older BCC program?) holds it without its semaphore, and the file has no place \
                         from which to raise that; it is tried again, and is attached once that tracer has ended",
                    );
                    made.refused.extend(attached.map(|spot| (spot.position, refusal.clone())));
                }
            }
            made.refused.extend(bad);
        }
        Ok(())
    }

    /// Raises a semaphore in all processes, for as long as the links live. None if there is no place to do it from.
    fn raise(&self, path: &Path, semaphore: u64, idle: &[u64]) -> Result<Option<Vec<Link>>, Refusal> {
        // Another target's semaphore, or another exporter's, may have its place already: begin elsewhere for each.
        let first = (semaphore / 2) as usize % idle.len().max(1);
        for offset in idle[first..].iter().chain(&idle[..first]) {
            let spot = Spot { position: 0, offset: *offset, semaphore, cookie: NO_SITE };
            match self.link(Kind::Entry, path, &[spot]) {
                Ok(links) => return Ok(Some(links)),
                Err(refusal) if refusal.kind.is_of_a_site() => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(None)
    }

    /// Attaches at all of these, or at none.
    fn link(&self, kind: Kind, path: &Path, spots: &[Spot]) -> Result<Vec<Link>, Refusal> {
        let made = match self.attach_kind() {
            Attach::Multi => self.link_multi(kind, path, spots).map(|link| vec![link]),
            Attach::Perf => self.link_perf(kind, path, spots),
        };
        made.map_err(|err| Refusal::of_attaching(&err, self.attach_kind()))
    }

    fn link_multi(&self, kind: Kind, path: &Path, spots: &[Spot]) -> libbpf_rs::Result<Link> {
        let has_semaphores = spots.iter().any(|spot| spot.semaphore != 0);
        let semaphores = spots.iter().filter(|_| has_semaphores);
        let opts = UprobeMultiOpts {
            offsets: spots.iter().map(|spot| spot.offset as usize).collect(),
            ref_ctr_offsets: semaphores.map(|spot| spot.semaphore as usize).collect(),
            cookies: spots.iter().map(|spot| spot.cookie).collect(),
            retprobe: kind == Kind::Return,
            session: kind == Kind::Session,
            ..UprobeMultiOpts::default()
        };
        let programs = self.programs();
        let program = if kind == Kind::Session { &programs.probe_session } else { &programs.probe_multi };
        program.attach_uprobe_multi_with_opts(-1, path, "", opts)
    }

    fn link_perf(&self, kind: Kind, path: &Path, spots: &[Spot]) -> libbpf_rs::Result<Vec<Link>> {
        let mut links = Vec::with_capacity(spots.len());
        for spot in spots {
            let opts = UprobeOpts {
                ref_ctr_offset: spot.semaphore as usize,
                cookie: spot.cookie,
                retprobe: kind == Kind::Return,
                ..UprobeOpts::default()
            };
            match self.programs().probe_perf.attach_uprobe_with_opts(-1, path, spot.offset as usize, opts) {
                Ok(link) => links.push(link),
                Err(err) => {
                    detach(links);
                    return Err(err);
                }
            }
        }
        Ok(links)
    }
}

impl Spot {
    fn of(position: usize, placed: &Placed<'_>) -> Self {
        let site = placed.site;
        Self {
            position,
            offset: site.offset,
            semaphore: site.ref_ctr_offset,
            cookie: u64::from(placed.cookie),
        }
    }
}

impl Kind {
    fn is_of(self, how: How) -> bool {
        match how {
            How::Entry => self == Kind::Entry,
            How::Return => self == Kind::Return,
            How::Session { .. } => self == Kind::Session,
            How::InSession => false,
        }
    }
}

/// The pages of the file that the sites are on. None where the file system lets no process map it: then none can run it
/// from there, and there is nothing to see.
fn view(file: &File, sites: &[Placed<'_>]) -> std::io::Result<Option<CodeView>> {
    let offsets = || sites.iter().map(|placed| placed.site.offset);
    let (Some(first), Some(last)) = (offsets().min(), offsets().max()) else { return Ok(None) };
    match CodeView::new(file.as_fd(), first, last) {
        Ok(view) => Ok(Some(view)),
        Err(err) if err.raw_os_error() == Some(libc::ENOMEM) => Err(err),
        Err(err) => {
            log::debug!("the file cannot be mapped to check its breakpoints: {err}");
            Ok(None)
        }
    }
}

/// On a file system that is mounted `noexec` no process can run the file, nor would the kernel check anything.
fn refuse_noexec(file: &File) -> Result<(), Refusal> {
    let flags = rustix::fs::fstatvfs(file).map(|about| about.f_flag);
    if !flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC)) {
        return Ok(());
    }
    let text = "its file system is mounted with `noexec`, so that no process can run it from there; name the path that \
                processes run, or mount it without";
    Err(Refusal::new(RefusalKind::File, text))
}

/// Refuses sites that the kernel has taken without setting a breakpoint.
fn check_breakpoints(made: &mut Attached, view: &CodeView, sites: &[Placed<'_>]) {
    for (position, placed) in sites.iter().enumerate() {
        if !made.refused.contains_key(&position)
            && view.byte(placed.site.offset).is_some_and(|byte| byte != BREAKPOINT)
        {
            let text = "the kernel took the probe and set no breakpoint; probe another place";
            made.refused.insert(position, Refusal::new(RefusalKind::Unarmed, text));
        }
    }
}

/// Refuses what belongs together with what is refused. Whether any of that is attached.
fn refuse_halves(made: &mut Attached, sites: &[Placed<'_>]) -> bool {
    let whole = |placed: &Placed<'_>| placed.span.map(|span| (span, placed.site.function));
    let refused: BTreeMap<_, Refusal> = made
        .refused
        .iter()
        .filter_map(|(position, refusal)| Some((whole(&sites[*position])?, refusal.clone())))
        .collect();
    let mut is_attached = false;
    for (position, placed) in sites.iter().enumerate() {
        let Some(refusal) = whole(placed).and_then(|whole| refused.get(&whole)) else { continue };
        made.refused.entry(position).or_insert_with(|| {
            is_attached |= placed.how != How::InSession;
            refusal.clone()
        });
    }
    is_attached
}

/// Detaching waits for the kernel, so many links are dropped at once.
pub fn detach(links: Vec<Link>) {
    const THREADS: usize = 32;
    if links.len() < 2 {
        return;
    }
    let each = links.len().div_ceil(THREADS);
    let mut links = links;
    std::thread::scope(|scope| {
        while !links.is_empty() {
            let some = links.split_off(links.len().saturating_sub(each));
            scope.spawn(move || drop(some));
        }
    });
}
