//! Links that attach probes for their lifetime, or longer if they are pinned.

use std::path::{Path, PathBuf};

use libbpf_rs::Link;

/// A link. Dropping it detaches, unless it is pinned: then it stays until [`release`].
#[derive(Debug)]
pub struct PinnableLink {
    link: Option<Link>,
    pin: Option<PathBuf>,
}

impl PinnableLink {
    pub(crate) fn new(link: Link) -> Self {
        Self { link: Some(link), pin: None }
    }

    /// Pins the link: it stays when the exporter ends.
    pub(super) fn pin(&mut self, path: &Path) -> libbpf_rs::Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.pin(path)?;
        self.pin = Some(path.to_path_buf());
        Ok(())
    }

    /// Opens a pinned link.
    pub(super) fn open(path: &Path) -> libbpf_rs::Result<Self> {
        Ok(Self { link: Some(Link::open(path)?), pin: Some(path.to_path_buf()) })
    }

    /// Its name among its engine's links.
    pub fn name(&self) -> Option<String> {
        Some(self.pin.as_ref()?.file_name()?.to_string_lossy().into_owned())
    }

    fn into_link(mut self) -> Option<Link> {
        if let Some(pin) = self.pin.take()
            && let Err(err) = std::fs::remove_file(&pin)
        {
            log::warn!("failed to remove {}: {err}", pin.display());
        }
        self.link.take()
    }
}

impl Drop for PinnableLink {
    fn drop(&mut self) {
        if self.pin.is_some()
            && let Some(link) = &mut self.link
        {
            // Otherwise libbpf would disable a perf event before releasing it.
            link.disconnect();
        }
    }
}

/// Detaches, whether pinned or not.
pub fn release(links: Vec<PinnableLink>) {
    detach(links.into_iter().filter_map(PinnableLink::into_link).collect());
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
            // Without a thread, they are dropped here.
            let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(some));
        }
    });
}
