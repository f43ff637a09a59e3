//! Creates the links of one file: at once if that is quick, and otherwise on a thread of its own.
//!
//! The kernel sets a breakpoint in each process that maps the file, one after the other: libc's functions in a thousand
//! processes take it many seconds, during which the manager has other targets to attend to.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use super::patched_code::CodeComparison;
use crate::kernel::{
    AttachMethod, AttachRequest, Attached, Kernel, MappedPart, PinnableLink, PlacedSite, Refusal,
    RefusalKind, is_large,
};
use crate::plan::Plan;
use crate::resolve::ResolvedSite;

/// Everything that creating the links needs.
pub(super) struct Work {
    pub kernel: Arc<Kernel>,
    pub plan: Arc<Plan>,
    pub file: File,
    /// For messages.
    pub display: String,
    /// The mappings of the file, sorted by process.
    pub mappings: Vec<MappedPart>,
    /// Places in the file's code that no process ever executes.
    pub idle: Vec<u64>,
    pub units: Vec<UnitSites>,
}

/// The sites of one unit of probes, which has links of its own, so that it can be detached without touching the others.
#[derive(Debug, Clone)]
pub(super) struct UnitSites {
    pub unit: usize,
    /// Each with the index of its probe.
    pub sites: Vec<(usize, ResolvedSite)>,
    pub numbers: Vec<u32>,
}

/// The result, by unit.
pub(super) type Links = Vec<(UnitSites, Attached)>;

/// A thread that creates the links of a file.
#[derive(Debug)]
pub(super) struct AttachJob {
    /// What it attaches to.
    pub(super) units: Vec<UnitSites>,
    pub(super) processes: usize,
    links: Receiver<Links>,
    /// What has arrived.
    done: Option<Links>,
}

/// The threads of one manager that attach.
#[derive(Debug, Default)]
pub(super) struct Jobs(Arc<()>);

/// At a time: they wait for one another in the kernel. One more file is attached by the manager itself.
const MAX_JOBS: usize = 16;

impl Jobs {
    /// A token that a thread keeps while it runs; none if there are enough of them.
    fn enter(&self) -> Option<Arc<()>> {
        let running = Arc::strong_count(&self.0) - 1;
        (running < MAX_JOBS).then(|| self.0.clone())
    }
}

impl Work {
    pub fn processes(&self) -> usize {
        self.mappings.chunk_by(|one, next| one.pid == next.pid).count()
    }

    /// Whether this would keep the manager from other targets.
    pub fn is_large(&self) -> bool {
        is_large(self.units.iter().map(|unit| unit.sites.len()).sum(), self.processes())
    }

    /// # Errors
    /// With itself, if no thread can be started.
    pub fn start(self, jobs: &Jobs) -> Result<AttachJob, Self> {
        let Some(entered) = jobs.enter() else { return Err(self) };
        let (units, processes) = (self.units.clone(), self.processes());
        let (give, given) = sync_channel::<Self>(1);
        let (tell, links) = sync_channel(1);
        let work = move || {
            let _entered = entered;
            for work in given {
                // Nothing of this thread refers to the programs any more when the manager goes on.
                let _ = tell.send(work.run());
            }
        };
        match std::thread::Builder::new().name("attach".to_string()).spawn(work) {
            Ok(_) => {
                let _ = give.send(self);
                Ok(AttachJob { units, processes, links, done: None })
            }
            Err(err) => {
                log::debug!("failed to start a thread that attaches: {err}");
                Err(self)
            }
        }
    }

    pub fn run(self) -> Links {
        let Self { kernel, plan, file, display, mappings, idle, units } = self;
        let places = units.iter().flat_map(|of| &of.sites).map(|(_, site)| site.offset).collect();
        let compared = CodeComparison::of(&mappings, &file, &places);
        if compared.left_out > 0 {
            log::warn!(
                "{display}: the code of {} of {} processes that map it was not compared with the file before attaching, which would \
                 have taken too long; they are checked in turn afterwards",
                compared.left_out,
                compared.processes
            );
        }
        let attach = |of: UnitSites| {
            let sites: Vec<_> = of.sites.iter().map(|(_, site)| site).collect();
            let placed = place(&plan, kernel.has_sessions(), &sites, &of.numbers);
            let patched = patched(&sites, &compared.patched);
            let request =
                AttachRequest { file: &file, sites: &placed, idle: &idle, processes: compared.processes };
            let attached = kernel.attach(request, patched);
            (of, attached)
        };
        units.into_iter().map(attach).collect()
    }
}

impl AttachJob {
    /// Whether the thread has finished.
    pub(super) fn is_done(&mut self) -> bool {
        if self.done.is_none() {
            match self.links.try_recv() {
                Ok(links) => self.done = Some(links),
                Err(TryRecvError::Empty) => {}
                // It has panicked, and its links are gone.
                Err(TryRecvError::Disconnected) => self.done = Some(self.failed()),
            }
        }
        self.done.is_some()
    }

    /// Its sites, each with the index of its probe.
    pub(super) fn sites(&self) -> impl Iterator<Item = &(usize, ResolvedSite)> {
        self.units.iter().flat_map(|of| &of.sites)
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.units.iter().flat_map(|of| &of.numbers).copied()
    }

    /// Waits for the thread.
    pub(super) fn wait_until_done(&mut self) {
        if self.done.is_none() {
            self.done = Some(self.links.recv().unwrap_or_else(|_| self.failed()));
        }
    }

    /// Waits for the thread, and returns its result.
    pub(super) fn wait(mut self) -> Links {
        self.wait_until_done();
        self.done.unwrap_or_default()
    }

    /// All links, to be detached, when the thread has created them.
    pub(super) fn into_links(self) -> Vec<PinnableLink> {
        let links = |(_, attached): (UnitSites, Attached)| attached.links.into_iter().chain(attached.tried);
        self.wait().into_iter().flat_map(links).map(PinnableLink::new).collect()
    }

    fn failed(&self) -> Links {
        let refusal =
            Refusal::new(RefusalKind::Other, "the thread that attaches ended unexpectedly; retrying");
        let all = |of: &UnitSites| (0..of.sites.len()).map(|position| (position, refusal.clone())).collect();
        let none = |of: &UnitSites| (of.clone(), Attached { refused: all(of), ..Attached::default() });
        self.units.iter().map(none).collect()
    }
}

/// Refuses sites where a process has other code than the file.
fn patched(sites: &[&ResolvedSite], patched: &BTreeMap<u64, u32>) -> BTreeMap<usize, Refusal> {
    let refused = |(position, site): (usize, &&ResolvedSite)| {
        let pid = patched.get(&site.offset)?;
        let text = format!(
            "process {pid} has other code there than the file (a live patch, XRay), which a probe would break; \
             attached once that process has ended"
        );
        Some((position, Refusal::new(RefusalKind::Patched, text)))
    };
    sites.iter().enumerate().filter_map(refused).collect()
}

/// Assigns each site its number and attach point. Where the kernel has session uprobes, the return of a function whose
/// entry is traced needs no link of its own: the entry's site refers to it.
pub fn place<'a>(
    plan: &Plan,
    sessions: bool,
    sites: &[&'a ResolvedSite],
    numbers: &[u32],
) -> Vec<PlacedSite<'a>> {
    let mut placed: Vec<PlacedSite<'a>> = Vec::new();
    let span = |site: &ResolvedSite| plan.probes[site.entry.probe as usize].span.map(|span| span.number);
    for (&site, &cookie) in sites.iter().zip(numbers) {
        let mut method = if site.is_return { AttachMethod::Return } else { AttachMethod::Entry };
        if sessions && site.is_return && span(site).is_some() {
            let entry = placed.iter_mut().find(|other| {
                other.method == AttachMethod::Entry
                    && other.site.offset == site.offset
                    && span(other.site) == span(site)
            });
            if let Some(entry) = entry {
                entry.method = AttachMethod::Session { on_return: cookie };
                method = AttachMethod::InSession;
            }
        }
        placed.push(PlacedSite { cookie, site, method, span: span(site) });
    }
    placed
}
