//! Verifies that hits are possible: whether the file system permits execution, and whether the breakpoints are set.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::links::{AttachPoint, LinkType, NO_SITE};
use super::load::Kernel;
use super::pinnable_link::detach;
use super::placed::{Attached, PlacedSite};
use super::refusal::{Refusal, RefusalKind};
use crate::abi::events::event_limit;
use crate::mapping::CodeView;

/// The x86 breakpoint.
pub const BREAKPOINT: u8 = event_limit::BREAKPOINT.0 as u8;

impl Kernel {
    /// The places of a file, which no process may map, at which the kernel sets a breakpoint: it accepts all of them,
    /// and drops those that it cannot probe when the file is mapped. Used to verify the tables of
    /// [`crate::elf::probeable`].
    ///
    /// # Errors
    /// If the kernel does not even accept them.
    pub fn arms(&self, path: &Path, offsets: &[u64]) -> Result<Vec<bool>, Refusal> {
        let spot = |(position, offset): (usize, &u64)| AttachPoint {
            position,
            offset: *offset,
            semaphore: 0,
            cookie: NO_SITE,
        };
        let spots: Vec<AttachPoint> = offsets.iter().enumerate().map(spot).collect();
        let links = self.link(LinkType::Entry, path, &spots)?;
        let (first, last) = (offsets.iter().min(), offsets.iter().max());
        let (first, last) = (first.copied().unwrap_or(0), last.copied().unwrap_or(0));
        let view = File::open(path).and_then(|file| CodeView::new(file.as_fd(), first, last));
        let view = view.map_err(|err| Refusal::of_file(&err))?;
        let armed = offsets.iter().map(|offset| view.byte(*offset) == Some(BREAKPOINT)).collect();
        detach(links);
        Ok(armed)
    }
}

/// Maps the pages of the file that contain the sites. None if the file system lets no process map them: then none can
/// execute the file from there, and there is nothing to verify.
pub(super) fn view(file: &File, sites: &[PlacedSite<'_>]) -> std::io::Result<Option<CodeView>> {
    let offsets = || sites.iter().map(|placed| placed.site.offset);
    let (Some(first), Some(last)) = (offsets().min(), offsets().max()) else { return Ok(None) };
    match CodeView::new(file.as_fd(), first, last) {
        Ok(view) => Ok(Some(view)),
        Err(err) if err.raw_os_error() == Some(libc::ENOMEM) => Err(err),
        Err(err) => {
            log::debug!("failed to map the file to verify its breakpoints: {err}");
            Ok(None)
        }
    }
}

/// On a file system that is mounted `noexec`, no process can execute the file, and the kernel would verify nothing.
pub(super) fn refuse_noexec(file: &File) -> Result<(), Refusal> {
    let flags = rustix::fs::fstatvfs(file).map(|about| about.f_flag);
    if !flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC)) {
        return Ok(());
    }
    let text = "its file system is mounted with `noexec`, so no process can run it from there; use the path \
         that processes run, or remount without `noexec`";
    Err(Refusal::new(RefusalKind::File, text))
}

/// Marks sites as failed that the kernel accepted without setting a breakpoint.
pub(super) fn check_breakpoints(attached: &mut Attached, view: &CodeView, sites: &[PlacedSite<'_>]) {
    for position in unarmed(&attached.refused, view, sites) {
        let text = "the kernel accepted the probe but set no breakpoint; probe another place";
        attached.refused.insert(position, Refusal::new(RefusalKind::Unarmed, text));
    }
}

/// Returns the sites without a breakpoint, except for refused ones.
pub(super) fn unarmed(
    refused: &BTreeMap<usize, Refusal>,
    view: &CodeView,
    sites: &[PlacedSite<'_>],
) -> Vec<usize> {
    let lacks = |site: u64| view.byte(site).is_some_and(|byte| byte != BREAKPOINT);
    let all = sites.iter().enumerate();
    let lacking = all.filter(|(at, placed)| !refused.contains_key(at) && lacks(placed.site.offset));
    lacking.map(|(at, _)| at).collect()
}
