//! Processes that read traced files as memory, from the kernel's events: see `bpf/readers.bpf.c`.

use std::collections::BTreeSet;
use std::fmt;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, ProgramImpl};

use super::bytes::{long, text, word};
use super::error::{KernelError, loading};
use super::files::PidNamespace;
use super::ring::EventRing;
use super::storage::{Storage, new_storage};
use super::tickets::{answer, answer_all, load_waiting};
use crate::abi::readers::generated::{ReadersSkel, ReadersSkelBuilder};
use crate::abi::readers::{reader_event, reader_event_kind, reader_limit};

/// How long a reader waits at most. It waits this long only while the exporter is stopped.
pub const MAX_READER_WAIT: Duration = Duration::from_millis(250);

/// An event of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderEvent {
    pub pid: u32,
    pub comm: String,
    pub change: ReaderChange,
    /// The process waits until this is answered, unless it is 0.
    pub ticket: u64,
    /// From `CLOCK_MONOTONIC`, in nanoseconds.
    pub time: u64,
}

/// See [`ReaderEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderChange {
    /// It maps the traced file with this inode at this address, only to read it.
    Maps { inode: u64, address: u64 },
    /// It runs a translator.
    Translates,
    /// A translator has mapped something, which may be of a traced file.
    TranslatesMore,
}

self_cell::self_cell!(
    struct Loaded {
        owner: Storage,
        #[covariant]
        dependent: ReadersSkel,
    }
);

/// The attached programs.
pub struct Readers {
    loaded: Loaded,
    ring: EventRing<ReaderEvent>,
    map: MapHandle,
    files: BTreeSet<u64>,
    of_translators: Option<Link>,
    links: Vec<Link>,
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Readers {
    /// Loads and attaches the programs. `translators` are names of executables.
    ///
    /// # Errors
    /// From the kernel.
    pub fn start<'a>(
        translators: impl IntoIterator<Item = &'a str>,
        namespace: PidNamespace,
    ) -> Result<Self, KernelError> {
        crate::logging::log_libbpf();
        let load = |wait| Loaded::try_new(new_storage(), |storage| load(storage, namespace, wait));
        let loaded = load_waiting(MAX_READER_WAIT, load).map_err(loading)?;
        let skel = loaded.borrow_dependent();
        for name in translators {
            let mut key = [0; reader_limit::EXE_NAME.0 as usize];
            key[..name.len()].copy_from_slice(name.as_bytes());
            skel.maps.translators.update(&key, &1u32.to_ne_bytes(), MapFlags::ANY).map_err(loading)?;
        }
        let programs = &skel.progs;
        let links = [&programs.reads, &programs.executed, &programs.forked].map(ProgramImpl::attach);
        let links = links.into_iter().collect::<Result<Vec<_>, _>>().map_err(loading)?;
        let map = MapHandle::try_from(&skel.maps.ring).map_err(loading)?;
        let ring = EventRing::new(&map, event).map_err(loading)?;
        Ok(Self { loaded, ring, map, files: BTreeSet::new(), of_translators: None, links })
    }

    /// Sets whether mappings of translators are reported; while they are, all system calls of all processes take a
    /// little longer.
    ///
    /// # Errors
    /// From the kernel.
    pub fn follow_translators(&mut self, follow: bool) -> Result<(), KernelError> {
        if follow != self.of_translators.is_some() {
            let attach = || self.loaded.borrow_dependent().progs.translates.attach().map_err(loading);
            self.of_translators = follow.then(attach).transpose()?;
        }
        Ok(())
    }

    /// The process runs a translator already.
    pub fn add_translator(&self, pid: u32) {
        let translating = &self.loaded.borrow_dependent().maps.translating;
        if let Err(err) = translating.update(&pid.to_ne_bytes(), &1u32.to_ne_bytes(), MapFlags::ANY) {
            log::debug!("failed to note a translator: {err}");
        }
    }

    /// The events since the previous call.
    pub fn take(&mut self) -> Vec<ReaderEvent> {
        self.ring.take()
    }

    /// Lets the process with this ticket continue.
    pub fn answer(&mut self, ticket: u64) {
        self.loaded.with_dependent_mut(|_, skel| {
            let bss = skel.maps.bss_data.as_deref_mut();
            let Some(bss) = bss.filter(|_| ticket > 0) else { return };
            answer(&mut bss.answered, [ticket]);
        });
    }

    /// Sets the traced files, by the addresses of their inodes.
    pub fn set_files(&mut self, files: BTreeSet<u64>) {
        let traced = &self.loaded.borrow_dependent().maps.traced;
        for file in files.difference(&self.files) {
            if let Err(err) = traced.update(&file.to_ne_bytes(), &1u32.to_ne_bytes(), MapFlags::ANY) {
                log::warn!(
                    "programs that copy a traced file through a mapping may copy breakpoints: {err:#}"
                );
            }
        }
        self.files.difference(&files).for_each(|file| drop(traced.delete(&file.to_ne_bytes())));
        self.files = files;
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.links.clear();
        self.of_translators = None;
        self.loaded.with_dependent_mut(|_, skel| {
            let bss = skel.maps.bss_data.as_deref_mut();
            bss.into_iter().for_each(|bss| answer_all(&mut bss.answered));
        });
    }
}

impl AsFd for Readers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

fn load(storage: &Storage, namespace: PidNamespace, wait: Duration) -> libbpf_rs::Result<ReadersSkel<'_>> {
    let mut open = ReadersSkelBuilder::default().open(storage.borrow_mut())?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        (rodata.pid_namespace, rodata.pid_level) = (namespace.address, namespace.level);
        rodata.own_pid = std::process::id();
        rodata.longest_wait = wait.as_nanos() as u64;
    }
    open.load()
}

/// Decodes one record of the ring buffer; `None` if it is not an event.
fn event(record: &[u8]) -> Option<ReaderEvent> {
    let change = match reader_event_kind(word(record, offset_of!(reader_event, kind))?) {
        reader_event_kind::READER_MAPS => ReaderChange::Maps {
            inode: long(record, offset_of!(reader_event, inode))?,
            address: long(record, offset_of!(reader_event, address))?,
        },
        reader_event_kind::READER_TRANSLATES => ReaderChange::Translates,
        reader_event_kind::READER_TRANSLATES_MORE => ReaderChange::TranslatesMore,
        _ => return None,
    };
    let comm = text(record.get(offset_of!(reader_event, comm)..)?.get(..16)?);
    let (ticket, time) =
        (long(record, offset_of!(reader_event, ticket))?, long(record, offset_of!(reader_event, time))?);
    Some(ReaderEvent { pid: word(record, offset_of!(reader_event, pid))?, comm, change, ticket, time })
}
