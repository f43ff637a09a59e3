//! Loads the probe programs.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, ProgramInput};
use serde::{Deserialize, Serialize};

use super::control::{Clock, Control};
use super::error::{KernelError, loading};
use super::files::PidNamespace;
use super::filters::FilterIndex;
use super::link_kind::Attach;
use super::misses::{LoadedProgram, loaded as hit_programs};
use super::pinnable_link::{PinnableLink, release};
use super::pinned_maps::{pin_maps, reuse};
use super::placed::{AttachMethod, PlacedSite};
use super::refusal::{Refusal, RefusalKind};
use super::sizes::{count, has_process_texts, shards, size};
use super::starts::{StartMaps, Sweep};
use super::storage::{Storage, new_storage};
use super::store::{KernelStore, Parts};
use super::tables::ProbeTables;
use crate::abi::generated::{ProbeProgs, ProbeSkel, ProbeSkelBuilder};
use crate::abi::{Plain, bytes_of, site};
use crate::config::model::ReturnsBy;
use crate::layout::Layout;
use crate::logging::log_libbpf;
use crate::mapping::Mapped;
use crate::mutex::lock;
use crate::pins::EnginePins;
use crate::plan::{Pairing, Plan, ProbeHook, ProbePlan};

/// The parts of the loaded programs that other threads use.
#[derive(Debug, Clone)]
pub struct SharedHandles {
    pub store: Arc<KernelStore>,
    pub control: Arc<Control>,
    pub ring: Arc<MapHandle>,
    /// The programs that hits run.
    pub programs: Arc<[LoadedProgram]>,
}

self_cell::self_cell!(
    struct ProbePrograms {
        owner: Storage,
        #[covariant]
        dependent: ProbeSkel,
    }
);

/// The loaded programs. Dropping it removes everything from the kernel.
pub struct Kernel {
    loaded: ProbePrograms,
    /// Maximum number of open starts.
    limit: u32,
    shared: SharedHandles,
    pub(super) filters: FilterIndex,
    pins: Option<Arc<EnginePins>>,
    shape: Shape,
    /// Tracks the children of selected processes.
    family: Mutex<Vec<PinnableLink>>,
}

/// Decisions made when the programs were loaded, which an exporter that takes them over must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    sessions: bool,
    shards: u32,
    attach: Attach,
    namespace: PidNamespace,
}

/// Where maps and links are pinned, and what a previous exporter left there.
#[derive(Debug, Clone)]
pub(crate) struct Pinning {
    pub pins: Arc<EnginePins>,
    pub taken: Option<Shape>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("attach", &self.shape.attach).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the programs with tables of the right size, and fills these.
    ///
    /// # Errors
    /// If the kernel refuses: too old, not permitted, or out of memory.
    pub fn load(
        plan: &Plan,
        layout: &Layout,
        attach: Attach,
        namespace: PidNamespace,
    ) -> Result<Self, KernelError> {
        Self::load_pinned(plan, layout, attach, namespace, None)
    }

    /// As [`Kernel::load`], with maps and links that are pinned, or taken over.
    ///
    /// # Errors
    /// As there, and if what is taken over does not match.
    pub(crate) fn load_pinned(
        plan: &Plan,
        layout: &Layout,
        attach: Attach,
        namespace: PidNamespace,
        pinning: Option<&Pinning>,
    ) -> Result<Self, KernelError> {
        if let Some(shape) = pinning.and_then(|pinning| pinning.taken) {
            if (shape.attach, shape.namespace) != (attach, namespace) {
                return Err(unfit("it was created with another attach mode or in another pid namespace"));
            }
            return Self::load_with(plan, layout, shape, pinning);
        }
        let shape = |sessions| Shape { sessions, shards: shards(layout.kernel.slots), attach, namespace };
        let wants_sessions = plan.probes.iter().any(|probe| by_trampoline(probe) && probe.span.is_some());
        if attach == Attach::Multi && wants_sessions {
            // Session functions had other signatures in other kernels; where they are rejected, returns have links of
            // their own.
            match Self::load_with(plan, layout, shape(true), pinning) {
                Ok(kernel) => return Ok(kernel),
                Err(err) => log::debug!("session uprobes are not available: {err}"),
            }
        }
        Self::load_with(plan, layout, shape(false), pinning)
    }

    fn load_with(
        plan: &Plan,
        layout: &Layout,
        shape: Shape,
        pinning: Option<&Pinning>,
    ) -> Result<Self, KernelError> {
        let Shape { sessions, shards, attach, namespace } = shape;
        let taken = pinning.filter(|pinning| pinning.taken.is_some());
        let tables = ProbeTables::new(plan, layout);
        let filters = FilterIndex::of(plan);
        let has_families = !filters.families.is_empty();
        log_libbpf();
        let loaded = ProbePrograms::try_new(new_storage(), |storage| {
            let mut open = ProbeSkelBuilder::default().open(storage.borrow_mut()).map_err(loading)?;
            open.progs.probe_multi.set_autoload(attach == Attach::Multi);
            open.progs.probe_perf.set_autoload(attach == Attach::Perf);
            open.progs.probe_session.set_autoload(sessions);
            size(&mut open, plan, layout, &tables, &filters, shards).map_err(loading)?;
            if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
                (rodata.pid_namespace, rodata.pid_level) = (namespace.address, namespace.level);
                rodata.candidate_filters = count(plan.targets.len());
                rodata.families[..filters.families.len()].copy_from_slice(&filters.families);
                rodata.nfamilies = filters.families.len() as u32;
                (rodata.used_probe_flags, rodata.used_events) = (tables.probe_flags(), tables.events());
                (rodata.used_label_flags, rodata.used_globs) =
                    (tables.label_flags(), filters.globs.len() as u32);
                rodata.used_process_texts = has_process_texts(plan).into();
            }
            open.progs.family_forked.set_autoload(has_families);
            open.progs.family_ended.set_autoload(has_families);
            if let Some(Pinning { pins, .. }) = taken {
                reuse(open.open_object_mut(), pins).map_err(|err| unfit(&format!("{err:#}")))?;
            }
            open.load().map_err(loading)
        })?;
        let skel = loaded.borrow_dependent();
        if taken.is_none() {
            fill_all(skel, &tables, &filters).map_err(loading)?;
        }
        let mut family = Vec::new();
        if has_families {
            let programs =
                [("family_forked", &skel.progs.family_forked), ("family_ended", &skel.progs.family_ended)];
            for (name, program) in programs {
                family.push(match taken {
                    Some(Pinning { pins, .. }) => PinnableLink::open(&pins.link(name)).map_err(loading)?,
                    None => PinnableLink::new(program.attach().map_err(loading)?),
                });
                if let Some((Pinning { pins, .. }, link)) = pinning.zip(family.last_mut())
                    && taken.is_none()
                {
                    link.pin(&pins.link(name)).map_err(pinning_failed)?;
                }
            }
        }
        if let Some(Pinning { pins, taken: None }) = pinning {
            pin_maps(skel.object(), pins).map_err(pinning_failed)?;
        }
        let programs = hit_programs(&skel.progs, attach, sessions);
        let shared = programs.and_then(|programs| share(skel, layout, shards, programs)).map_err(|err| {
            KernelError {
                what: "map the counters into memory".to_string(),
                source: err.into(),
                next: "raise the memory limit, or lower `limits`".to_string(),
            }
        })?;
        Ok(Self {
            loaded,
            limit: plan.settings.limits.starts,
            shared,
            filters,
            pins: pinning.map(|pinning| pinning.pins.clone()),
            shape,
            family: Mutex::new(family),
        })
    }

    pub(super) fn skel(&self) -> &ProbeSkel<'_> {
        self.loaded.borrow_dependent()
    }

    /// What the drain thread and scrapes need.
    pub fn shared(&self) -> SharedHandles {
        self.shared.clone()
    }

    pub fn attach_kind(&self) -> Attach {
        self.shape.attach
    }

    /// Adds a site to the kernel's table, with the time since when it counts. It must be there before the first hit.
    pub(super) fn describe(&self, placed: &PlacedSite<'_>, since: u64) -> Result<(), Refusal> {
        let mut entry = site { since, ..placed.site.entry };
        if let AttachMethod::Session { on_return } = placed.method {
            entry.on_return = on_return;
        }
        update(&self.skel().maps.sites, placed.cookie, &entry).map_err(|err| {
            let text = format!("failed to register site {}: {err:#}; raise limits.sites", placed.cookie);
            Refusal::new(RefusalKind::Sites, text)
        })
    }

    /// What an exporter that takes over the programs' maps and links must know.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Where maps and links are pinned; `None`: they are not.
    pub(crate) fn pins(&self) -> Option<&Arc<EnginePins>> {
        self.pins.as_ref()
    }

    /// Wraps a link, and pins it if state is pinned.
    pub(crate) fn hold(&self, link: Link) -> PinnableLink {
        let mut held = PinnableLink::new(link);
        if let Some(pins) = &self.pins
            && let Err(err) = held.pin(&pins.link(&pins.new_link()))
        {
            log::warn!("a probe is detached when the exporter ends, as it cannot be pinned: {err:#}");
        }
        held
    }

    /// Opens a pinned link.
    ///
    /// # Errors
    /// If it does not exist any more.
    pub(crate) fn held(&self, name: &str) -> libbpf_rs::Result<PinnableLink> {
        let none = || libbpf_rs::Error::from(io::Error::from(io::ErrorKind::NotFound));
        PinnableLink::open(&self.pins.as_ref().ok_or_else(none)?.link(name))
    }

    /// Removes all pins.
    pub(crate) fn unpin(&self) {
        release(std::mem::take(&mut *lock(&self.family)));
        if let Some(pins) = &self.pins
            && let Err(err) = pins.remove()
        {
            log::warn!("{err}");
        }
    }

    pub(super) fn programs(&self) -> &ProbeProgs<'_> {
        &self.skel().progs
    }

    /// Whether one link can serve a function's entry and return.
    pub fn has_sessions(&self) -> bool {
        self.shape.sessions
    }

    /// Discards starts whose end cannot come any more. Returns for each span, by number, how many are open and how many
    /// were discarded.
    pub fn sweep_starts(&self, spans: &[Pairing]) -> Vec<Sweep> {
        let maps = &self.skel().maps;
        let maps = StartMaps { starts: &maps.starts, nestings: &maps.nestings, texts: &maps.start_texts };
        maps.sweep(spans, self.limit, self.clock().map_or(0, |clock| clock.nanoseconds))
    }

    /// Discards the starts of these spans; returns how many, by the number of the span.
    pub fn forget_starts(&self, spans: &BTreeSet<u32>, all: u32) -> Vec<u64> {
        let maps = &self.skel().maps;
        StartMaps { starts: &maps.starts, nestings: &maps.nestings, texts: &maps.start_texts }
            .forget(spans, all)
    }

    /// The current jiffies; `None` if the kernel did not run the program that reads them.
    pub fn clock(&self) -> Option<Clock> {
        self.skel().progs.clock.test_run(ProgramInput::default()).ok()?;
        Some(self.shared.control.clock())
    }
}

/// Why pinned state is not taken over.
fn unfit(reason: &str) -> KernelError {
    KernelError {
        what: "take over the pinned state".to_string(),
        source: io::Error::other(reason.to_string()).into(),
        next: String::new(),
    }
}

fn pinning_failed(source: libbpf_rs::Error) -> KernelError {
    let next = "make the state directory writable for this user".to_string();
    KernelError { what: "pin maps and links".to_string(), source, next }
}

fn fill_all(skel: &ProbeSkel<'_>, tables: &ProbeTables, filters: &FilterIndex) -> libbpf_rs::Result<()> {
    fill(&skel.maps.globs, &filters.globs)?;
    fill(&skel.maps.probes, &tables.probes)?;
    fill(&skel.maps.actions, &tables.actions)?;
    fill(&skel.maps.patterns, &tables.patterns)?;
    fill(&skel.maps.bounds, &tables.bounds)?;
    fill(&skel.maps.interners, &tables.interners)
}

/// Whether it is a return that the kernel traces by replacing the return address.
fn by_trampoline(probe: &ProbePlan) -> bool {
    probe.hook == ProbeHook::Return && probe.returns_by == ReturnsBy::Trampoline
}

fn share(
    skel: &ProbeSkel<'_>,
    layout: &Layout,
    shards: u32,
    programs: Vec<LoadedProgram>,
) -> io::Result<SharedHandles> {
    let maps = &skel.maps;
    let entries = layout.kernel.entries.max(1) as usize;
    let interners = layout.kernel.interners.len().max(1);
    let handle = |map| MapHandle::try_from(map).map_err(io::Error::other);
    let parts = Parts {
        slots: Mapped::new(maps.slots.as_fd(), (layout.kernel.slots * shards) as usize)?,
        shards,
        entries: Mapped::new(maps.entries.as_fd(), entries)?,
        interners: Mapped::new(maps.interners.as_fd(), interners)?,
        small_integers: Mapped::new(maps.small_integers.as_fd(), interners)?,
        numbers: [handle(&maps.numbers)?, handle(&maps.integers)?],
        process_texts: handle(&maps.process_texts)?,
    };
    let control = Mapped::new(maps.control.as_fd(), 1)?;
    let ring = MapHandle::try_from(&maps.ring).map_err(io::Error::other)?;
    Ok(SharedHandles {
        store: Arc::new(KernelStore::new(parts, &layout.kernel)),
        control: Arc::new(Control::new(control)),
        ring: Arc::new(ring),
        programs: programs.into(),
    })
}

fn fill<T: Plain>(map: &impl MapCore, rows: &[T]) -> libbpf_rs::Result<()> {
    rows.iter().zip(0u32..).try_for_each(|(row, number)| update(map, number, row))
}

pub(super) fn update<T: Plain>(map: &impl MapCore, number: u32, row: &T) -> libbpf_rs::Result<()> {
    map.update(&number.to_ne_bytes(), bytes_of(row), MapFlags::ANY)
}
