//! Decodes process events from the ring buffer.

use std::mem::offset_of;
use std::path::PathBuf;

use super::super::bytes::{long, text, word};
use super::super::files::Inode;
use crate::abi::events::{file_key, file_use, known_use, named_file, process_event, process_event_kind};

/// A file as processes open it: on overlayfs, that of the overlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    pub inode: u64,
    pub number: u64,
    device: u32,
    generation: u32,
}

/// A file, and the attributes of the executing process by which targets select.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FileUse {
    pub file: FileKey,
    /// 0 if no target selects by cgroup.
    pub cgroup: u64,
    pub comm: [u8; 16],
}

/// A file by one of its names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct NamedFile {
    pub file: FileKey,
    /// The kernel's hash of name and directory.
    pub name: u64,
}

/// Which processes are reported although the file that they execute is known: those that another target may select.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KnownUnless {
    /// Those with a matching command line.
    pub line: bool,
    /// Those whose parent is reported.
    pub child: bool,
}

/// A process event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessEvent {
    pub pid: u32,
    pub change: ProcessChange,
}

/// See [`ProcessEvent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessChange {
    /// It executed a program. The path is the argument of execve(2), and empty if the file is known, as is its parent.
    /// The time is from `CLOCK_MONOTONIC`, in nanoseconds. The process waits until the ticket is answered, unless that
    /// is 0.
    Executed {
        file: FileUse,
        path: PathBuf,
        parent: u32,
        cgroup: u64,
        /// Whether its command line matches one of the globs.
        fits_line: bool,
        time: u64,
        ticket: u64,
    },
    /// It was forked by this process.
    Forked { parent: u32 },
    /// Ended, by this signal unless it is 0. The time is as above.
    Ended { signal: u32, time: u64 },
    /// Its leader changed its name.
    Renamed { comm: String },
    /// It moved to another cgroup.
    Moved { cgroup: u64 },
    /// It mapped a file that is not known, at this address, and waits as for an execution.
    Mapped { file: NamedFile, address: u64, ticket: u64 },
    /// It has mapped all segments of the file with this inode address, of which nothing has run yet, and waits
    /// likewise.
    Loaded { inode: u64, ticket: u64 },
    /// It ends after it has reached a breakpoint that belongs to no probe or debugger, and maps the file with this inode
    /// address; the code from the breakpoint on.
    Trapped { inode: u64, code: TrappedCode },
}

/// See [`ProcessChange::Trapped`].
pub type TrappedCode = [u8; 16];

impl ProcessEvent {
    /// The ticket that the process waits for, or 0.
    pub(super) fn ticket(&self) -> u64 {
        match self.change {
            ProcessChange::Executed { ticket, .. }
            | ProcessChange::Mapped { ticket, .. }
            | ProcessChange::Loaded { ticket, .. } => ticket,
            _ => 0,
        }
    }
}

impl FileKey {
    /// The mapped file, unless it is on a stacked file system.
    pub fn unstacked(self) -> Inode {
        Inode { device: self.device.into(), number: self.number, address: self.inode }
    }

    pub(super) fn key(self) -> file_key {
        let Self { inode, number, device, generation } = self;
        file_key { inode, number, device, generation }
    }
}

impl FileUse {
    pub(super) fn key(self) -> file_use {
        file_use { file: self.file.key(), cgroup: self.cgroup, comm: self.comm }
    }
}

impl KnownUnless {
    pub(super) fn known_use(self) -> u32 {
        let line = if self.line { known_use::KNOWN_UNLESS_LINE.0 } else { 0 };
        let child = if self.child { known_use::KNOWN_UNLESS_CHILD.0 } else { 0 };
        known_use::KNOWN.0 | line | child
    }
}

impl NamedFile {
    pub(super) fn key(self) -> named_file {
        named_file { file: self.file.key(), name: self.name }
    }
}

/// Decodes one record of the ring buffer; `None` if it is not an event.
pub(crate) fn process_event(record: &[u8]) -> Option<ProcessEvent> {
    let at = offset_of!(process_event, file);
    let file = FileKey {
        inode: long(record, at + offset_of!(file_key, inode))?,
        number: long(record, at + offset_of!(file_key, number))?,
        device: word(record, at + offset_of!(file_key, device))?,
        generation: word(record, at + offset_of!(file_key, generation))?,
    };
    let cgroup = long(record, offset_of!(process_event, cgroup))?;
    let comm = offset_of!(process_event, comm);
    let path = record.get(offset_of!(process_event, path)..).unwrap_or_default();
    let change = match process_event_kind(word(record, offset_of!(process_event, kind))?) {
        process_event_kind::PROCESS_EXECUTED => {
            let time = long(record, offset_of!(process_event, time))?;
            let comm = record.get(comm..comm + 16)?.try_into().ok()?;
            let file = FileUse { file, cgroup, comm };
            let parent = word(record, offset_of!(process_event, parent))?;
            let ticket = long(record, offset_of!(process_event, ticket))?;
            let fits_line = word(record, offset_of!(process_event, fits_line))? != 0;
            ProcessChange::Executed { file, path: text(path).into(), parent, cgroup, fits_line, time, ticket }
        }
        process_event_kind::PROCESS_FORKED => {
            ProcessChange::Forked { parent: word(record, offset_of!(process_event, parent))? }
        }
        process_event_kind::PROCESS_ENDED => {
            let time = long(record, offset_of!(process_event, time))?;
            ProcessChange::Ended { signal: word(record, offset_of!(process_event, signal))?, time }
        }
        process_event_kind::PROCESS_RENAMED => {
            ProcessChange::Renamed { comm: text(record.get(comm..comm + 16)?) }
        }
        process_event_kind::PROCESS_MOVED => ProcessChange::Moved { cgroup },
        process_event_kind::PROCESS_MAPPED => ProcessChange::Mapped {
            file: NamedFile { file, name: long(record, offset_of!(process_event, name))? },
            address: long(record, offset_of!(process_event, address))?,
            ticket: long(record, offset_of!(process_event, ticket))?,
        },
        process_event_kind::PROCESS_LOADED => ProcessChange::Loaded {
            inode: long(record, offset_of!(process_event, address))?,
            ticket: long(record, offset_of!(process_event, ticket))?,
        },
        process_event_kind::PROCESS_TRAPPED => ProcessChange::Trapped {
            inode: long(record, offset_of!(process_event, address))?,
            code: *record.get(comm..)?.first_chunk()?,
        },
        _ => return None,
    };
    Some(ProcessEvent { pid: word(record, offset_of!(process_event, pid))?, change })
}
