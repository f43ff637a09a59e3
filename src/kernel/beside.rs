//! Attaches where another tracer holds the site.

use std::collections::BTreeSet;
use std::path::Path;

use libbpf_rs::Link;

use super::links::{AttachPoint, LinkType, NO_SITE};
use super::load::Kernel;
use super::pinnable_link::detach;
use super::placed::Attached;
use super::refusal::{Refusal, RefusalKind};

impl Kernel {
    /// Attaches where another tracer holds the site without the semaphore: the kernel keeps one semaphore per site, so
    /// this attaches without it, too. The semaphores are raised by probes that refer to them at places which no process
    /// ever executes, so that the kernel itself raises them in every process, now and later.
    pub(super) fn attach_beside(
        &self,
        result: &mut Attached,
        kind: LinkType,
        path: &Path,
        spots: &[AttachPoint],
        idle: &[u64],
    ) -> Result<(), Refusal> {
        let semaphores: BTreeSet<u64> = spots.iter().map(|spot| spot.semaphore).collect();
        for semaphore in semaphores {
            let without: Vec<AttachPoint> = spots
                .iter()
                .filter(|spot| spot.semaphore == semaphore)
                .map(|spot| AttachPoint { semaphore: 0, ..*spot })
                .collect();
            let (links, bad) = self.each_alone(kind, path, &without)?;
            let raised = if links.is_empty() { None } else { self.raise(path, semaphore, idle)? };
            let attached = without.iter().filter(|spot| !bad.contains_key(&spot.position));
            match raised {
                Some(raised) => {
                    result.beside += attached.count();
                    result.links.extend(links);
                    result.links.extend(raised);
                }
                None => {
                    detach(links);
                    let refusal = Refusal::new(
                        RefusalKind::Held,
                        "another tracer (an older BCC program?) has attached it without its semaphore, and \
                         the file has no spare place for a second probe that raises it; retrying, attached \
                         once that tracer exits",
                    );
                    result.refused.extend(attached.map(|spot| (spot.position, refusal.clone())));
                }
            }
            result.refused.extend(bad);
        }
        Ok(())
    }

    /// Raises a semaphore in all processes for the lifetime of the links. None if there is no place to do it from.
    fn raise(&self, path: &Path, semaphore: u64, idle: &[u64]) -> Result<Option<Vec<Link>>, Refusal> {
        // Another target's or exporter's semaphore may occupy a place already: each starts at another one.
        let first = (semaphore / 2) as usize % idle.len().max(1);
        for offset in idle[first..].iter().chain(&idle[..first]) {
            let spot = AttachPoint { position: 0, offset: *offset, semaphore, cookie: NO_SITE };
            match self.link(LinkType::Entry, path, &[spot]) {
                Ok(links) => return Ok(Some(links)),
                Err(refusal) if refusal.kind.is_of_a_site() => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(None)
    }
}
