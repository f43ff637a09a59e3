//! Links: one for many sites of a file, or a perf event for each.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use libbpf_rs::{Link, UprobeMultiOpts, UprobeOpts};

use super::link_kind::Attach;
use super::load::Kernel;
use super::pinnable_link::{PinnableLink, detach};
use super::placed::{AttachMethod, PlacedSite};
use super::refusal::Refusal;

/// The cookie of probes that are never hit.
pub(super) const NO_SITE: u64 = u32::MAX as u64;

/// libbpf's value for all processes.
pub(super) const ALL_PROCESSES: i32 = -1;

/// A site in a file at which a breakpoint must be set again, and the offset of its semaphore, or 0.
#[derive(Debug, Clone, Copy)]
pub struct Rearmed {
    pub offset: u64,
    pub semaphore: u64,
}

/// A place to attach, and its index in the given list.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttachPoint {
    pub(super) position: usize,
    pub(super) offset: u64,
    pub(super) semaphore: u64,
    pub(super) cookie: u64,
}

/// Which sites of a file a link contains; all its hits are of one of these kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkType {
    Entry,
    Return,
    Session,
}

impl Kernel {
    /// Attaches to all of these, or to none.
    pub(super) fn link(
        &self,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
    ) -> Result<Vec<Link>, Refusal> {
        self.link_in(ALL_PROCESSES, kind, path, spots)
    }

    /// Sets breakpoints again that one process has lost although the kernel considers them set, by attaching like
    /// another tracer, whose hits are ignored. The result can be dropped at once: a breakpoint stays as long as any
    /// tracer needs it.
    ///
    /// # Errors
    /// If the kernel rejects one of them.
    pub fn rearm(&self, pid: u32, file: &File, places: &[Rearmed]) -> Result<Vec<PinnableLink>, Refusal> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let spots = places.iter().enumerate().map(|(position, place)| AttachPoint {
            position,
            offset: place.offset,
            semaphore: place.semaphore,
            cookie: NO_SITE,
        });
        let links = self.link_in(pid as i32, LinkType::Entry, &path, &spots.collect::<Vec<_>>())?;
        Ok(links.into_iter().map(PinnableLink::new).collect())
    }

    pub(super) fn link_in(
        &self,
        pid: i32,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
    ) -> Result<Vec<Link>, Refusal> {
        let created = match self.attach_kind() {
            Attach::Multi => self.link_multi(pid, kind, path, spots).map(|link| vec![link]),
            Attach::Perf => self.link_perf(pid, kind, path, spots),
        };
        created.map_err(|err| Refusal::of_attaching(&err, self.attach_kind()))
    }

    fn link_multi(
        &self,
        pid: i32,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
    ) -> libbpf_rs::Result<Link> {
        let has_semaphores = spots.iter().any(|spot| spot.semaphore != 0);
        let semaphores = spots.iter().filter(|_| has_semaphores);
        let opts = UprobeMultiOpts {
            offsets: spots.iter().map(|spot| spot.offset as usize).collect(),
            ref_ctr_offsets: semaphores.map(|spot| spot.semaphore as usize).collect(),
            cookies: spots.iter().map(|spot| spot.cookie).collect(),
            retprobe: kind == LinkType::Return,
            session: kind == LinkType::Session,
            ..UprobeMultiOpts::default()
        };
        let programs = self.programs();
        let program = if kind == LinkType::Session { &programs.probe_session } else { &programs.probe_multi };
        program.attach_uprobe_multi_with_opts(pid, path, "", opts)
    }

    fn link_perf(
        &self,
        pid: i32,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
    ) -> libbpf_rs::Result<Vec<Link>> {
        let mut links = Vec::with_capacity(spots.len());
        for spot in spots {
            let opts = UprobeOpts {
                ref_ctr_offset: spot.semaphore as usize,
                cookie: spot.cookie,
                retprobe: kind == LinkType::Return,
                ..UprobeOpts::default()
            };
            match self.programs().probe_perf.attach_uprobe_with_opts(pid, path, spot.offset as usize, opts) {
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

impl AttachPoint {
    pub(super) fn of(position: usize, placed: &PlacedSite<'_>) -> Self {
        let site = placed.site;
        Self {
            position,
            offset: site.offset,
            semaphore: site.ref_ctr_offset,
            cookie: u64::from(placed.cookie),
        }
    }
}

impl LinkType {
    /// In the order in which they are attached.
    pub(super) const ALL: [Self; 3] = [LinkType::Return, LinkType::Session, LinkType::Entry];

    pub(super) fn is_of(self, method: AttachMethod) -> bool {
        match method {
            AttachMethod::Entry => self == LinkType::Entry,
            AttachMethod::Return => self == LinkType::Return,
            AttachMethod::Session { .. } => self == LinkType::Session,
            AttachMethod::InSession => false,
        }
    }
}
