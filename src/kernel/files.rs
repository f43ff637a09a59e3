//! What only the kernel knows about files and processes: see `bpf/files.bpf.c`.
//!
//! The iterators need the kernel's BTF, as all programs here do. Without them, files are distinguished by stat(2),
//! which is right except on overlayfs and other file systems that report numbers of their own.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{AsRawLibbpf, Iter, Link, ProgramMut};
use serde::{Deserialize, Serialize};

use super::error::{KernelError, loading};
use super::storage::{Storage, new_storage};
use crate::abi::files::generated::{FilesSkel, FilesSkelBuilder};
use crate::abi::files::{mapped_file, process};

/// The kernel's identity of a file, whatever its name and through whatever mount it is reached: probes belong to this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Inode {
    pub device: u64,
    pub number: u64,
    /// Address of the kernel's structure, which stays the same while the file is in use; 0 if unknown. Subvolumes of
    /// btrfs share device and inode numbers.
    pub address: u64,
}

/// A mapping of a file by a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedPart {
    pub pid: u32,
    pub memory: Range<u64>,
    /// The offset in the file at which it begins.
    pub offset: u64,
}

/// The pid namespace of /proc, whose numbers identify processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidNamespace {
    /// Address of the kernel's structure; 0 for the first namespace, whose numbers are the kernel's own.
    pub address: u64,
    pub level: u32,
}

self_cell::self_cell!(
    struct LoadedFiles {
        owner: Storage,
        #[covariant]
        dependent: FilesSkel,
    }
);

/// The loaded iterators.
pub struct Files {
    loaded: LoadedFiles,
    /// The exporter's own process, whose mappings do not count as use.
    own: Option<u32>,
    namespace: PidNamespace,
    /// The depth of the exporter's namespace below that of /proc: the iterators identify processes by numbers there.
    depth: usize,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

const PAGE: usize = crate::mapping::PAGE as usize;

impl Files {
    /// Loads the iterators, and determines the pid namespace of /proc.
    ///
    /// # Errors
    /// If the kernel rejects them, or /proc does not show this process.
    pub fn load() -> Result<Self, KernelError> {
        crate::logging::log_libbpf();
        let loaded = LoadedFiles::try_new(new_storage(), |storage| {
            FilesSkelBuilder::default().open(storage.borrow_mut()).and_then(OpenSkel::load)
        });
        let (own, namespace, depth) = (None, PidNamespace::default(), 0);
        let mut files = Self { loaded: loaded.map_err(loading)?, own, namespace, depth };
        files.look_up_namespace().map_err(|err| KernelError {
            what: "find the pid namespace of /proc".to_string(),
            source: err.into(),
            next: "run in the host's pid namespace".to_string(),
        })?;
        Ok(files)
    }

    /// The file's real inode: on overlayfs, that of the layer below.
    ///
    /// # Errors
    /// If the file cannot be mapped, or the iterator fails.
    pub fn inode(&mut self, file: &File) -> io::Result<Inode> {
        let page = Page::of(file)?;
        let address = page.0.as_ptr() as u64;
        self.set(0, self.namespace.level)?;
        let link = attach(&self.loaded.borrow_dependent().progs.mappings, std::process::id())?;
        let mut found = None;
        for_each(&link, |mapping: mapped_file| {
            if mapping.start == address {
                found = Some(mapping);
            }
            found.is_none()
        })?;
        let found = found.ok_or_else(|| io::Error::other("the kernel does not list the new mapping"))?;
        self.own = Some(found.tgid);
        Ok(inode_of(&found))
    }

    /// The inode and address of each mapping of a process.
    ///
    /// # Errors
    /// If there is no such process in the exporter's pid namespace, or the iterator fails.
    pub fn mapped_by(&mut self, pid: u32) -> io::Result<Vec<(u64, Inode)>> {
        self.set(0, self.namespace.level)?;
        let link = attach(&self.loaded.borrow_dependent().progs.mappings, self.number_here(pid)?)?;
        let mut found = Vec::new();
        for_each(&link, |mapping: mapped_file| {
            found.push((mapping.start, inode_of(&mapping)));
            true
        })?;
        Ok(found)
    }

    /// Whether any process except the exporter maps the file privately, among those in the exporter's pid namespace.
    ///
    /// # Errors
    /// If the iterator fails.
    pub fn is_mapped(&mut self, inode: Inode) -> io::Result<bool> {
        self.set(inode.address, self.namespace.level)?;
        let own = self.own;
        let link = attach(&self.loaded.borrow_dependent().progs.mappings, 0)?;
        let mut found = false;
        for_each(&link, |mapping: mapped_file| {
            found = inode_of(&mapping) == inode && Some(mapping.tgid) != own;
            !found
        })?;
        Ok(found)
    }

    /// The processes that map the file, among those in the exporter's pid namespace.
    ///
    /// # Errors
    /// If the iterator fails.
    pub fn mapping(&mut self, inode: Inode) -> io::Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        self.for_each_mapping(inode, |mapping| {
            found.insert(mapping.tgid);
        })?;
        Ok(found)
    }

    /// All mappings of the file by other processes, sorted by process, as far as the exporter's pid namespace reaches.
    ///
    /// If there are few, they are read from the inode, which takes 0.1 ms; a walk through the mappings of all processes takes 15 us
    /// for each process, and the program that has just executed the file waits for that. What is read from the inode
    /// without its lock is believed if it is read twice.
    ///
    /// # Errors
    /// If the iterators fail.
    pub fn mappings(&mut self, inode: Inode) -> io::Result<Vec<MappedPart>> {
        let read = self.mappings_of_inode(inode)?;
        if let Some(read) =
            read.filter(|read| self.mappings_of_inode(inode).is_ok_and(|again| again.as_ref() == Some(read)))
        {
            return Ok(read);
        }
        let (mut found, own) = (Vec::new(), self.own);
        self.for_each_mapping(inode, |mapping| found.extend(part_of_other(&mapping, own)))?;
        found.sort_by_key(|part| part.pid);
        Ok(found)
    }

    /// None if there are too many, or if they change meanwhile.
    fn mappings_of_inode(&mut self, inode: Inode) -> io::Result<Option<Vec<MappedPart>>> {
        self.set(inode.address, self.namespace.level)?;
        let link = attach(&self.loaded.borrow_dependent().progs.mappings_of_inode, std::process::id())?;
        let (mut found, mut is_whole, own) = (Vec::new(), false, self.own);
        let read = for_each(&link, |mapping: mapped_file| {
            is_whole = mapping.inode == 0;
            if inode_of(&mapping) == inode {
                found.extend(part_of_other(&mapping, own));
            }
            !is_whole
        });
        if let Err(err) = read {
            log::trace!("the mappings of an inode do not fit: {err}");
            return Ok(None);
        }
        found.sort_by_key(|part| part.pid);
        Ok(is_whole.then_some(found))
    }

    /// The processes that map the same code of the file more than once, as far as the exporter's pid namespace reaches.
    ///
    /// # Errors
    /// If the iterator fails.
    pub fn mapping_twice(&mut self, inode: Inode) -> io::Result<BTreeSet<u32>> {
        let (mut seen, mut twice) = (BTreeSet::new(), BTreeSet::new());
        self.for_each_mapping(inode, |mapping| {
            if mapping.is_code > 0 && !seen.insert((mapping.tgid, mapping.page)) {
                twice.insert(mapping.tgid);
            }
        })?;
        Ok(twice)
    }

    fn for_each_mapping(&mut self, inode: Inode, mut take: impl FnMut(mapped_file)) -> io::Result<()> {
        self.set(inode.address, self.namespace.level)?;
        let link = attach(&self.loaded.borrow_dependent().progs.mappings, 0)?;
        for_each(&link, |mapping: mapped_file| {
            if inode_of(&mapping) == inode {
                take(mapping);
            }
            true
        })
    }

    /// The start time of a process in nanoseconds since boot, which distinguishes it from a later one with the same
    /// number.
    ///
    /// # Errors
    /// If there is no such process in the exporter's pid namespace, or the iterator fails.
    pub fn began(&mut self, pid: u32) -> io::Result<u64> {
        Ok(self.process(self.number_here(pid)?, 0)?.began)
    }

    /// The pid namespace of /proc.
    pub fn pid_namespace(&self) -> PidNamespace {
        self.namespace
    }

    /// Whether all processes in /proc can be examined: those outside of the exporter's own pid namespace cannot.
    pub fn sees_all(&self) -> bool {
        self.depth == 0
    }

    fn look_up_namespace(&mut self) -> io::Result<()> {
        let numbers = numbers("self").map_err(|err| {
            io::Error::new(
                err.kind(),
                format!(
                    "/proc does not show this process ({err}): it belongs to another pid namespace; mount \
                     the /proc of this one"
                ),
            )
        })?;
        self.depth = numbers.len().saturating_sub(1);
        let own = self.process(std::process::id(), 0)?.level;
        let level = own.saturating_sub(self.depth as u32);
        if level > 0 {
            let address = self.process(std::process::id(), level)?.pid_namespace;
            self.namespace = PidNamespace { address, level };
        }
        Ok(())
    }

    /// Converts a number in /proc to the number in the exporter's own namespace.
    fn number_here(&self, pid: u32) -> io::Result<u32> {
        if self.depth == 0 || pid == 0 {
            return Ok(pid);
        }
        let outside = || io::Error::from_raw_os_error(libc::ESRCH);
        numbers(&pid.to_string())?.get(self.depth).copied().ok_or_else(outside)
    }

    fn process(&mut self, pid: u32, at_level: u32) -> io::Result<process> {
        self.set(0, at_level)?;
        let link = attach(&self.loaded.borrow_dependent().progs.processes, pid)?;
        let mut found = None;
        for_each(&link, |process: process| {
            found = Some(process);
            false
        })?;
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// Sets the iterators' parameters.
    fn set(&mut self, only_inode: u64, at_level: u32) -> io::Result<()> {
        self.loaded.with_dependent_mut(|_, skel| {
            let bss = skel.maps.bss_data.as_deref_mut();
            let bss = bss.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            (bss.only_inode, bss.at_level) = (only_inode, at_level);
            Ok(())
        })
    }
}

/// A process's numbers: in the namespace of /proc, and in each one below it, down to its own.
fn numbers(process: &str) -> io::Result<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    Ok(numbers.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect())
}

fn part_of_other(mapping: &mapped_file, own: Option<u32>) -> Option<MappedPart> {
    let (offset, memory) = (mapping.page * PAGE as u64, mapping.start..mapping.end);
    (Some(mapping.tgid) != own).then_some(MappedPart { pid: mapping.tgid, memory, offset })
}

fn inode_of(mapping: &mapped_file) -> Inode {
    Inode { device: mapping.device.into(), number: mapping.number, address: mapping.inode }
}

/// One page of a file, private and only readable.
struct Page(NonNull<u8>);

impl Page {
    fn of(file: &File) -> io::Result<Self> {
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches no memory of ours, and is never
        // looked into; the result is checked.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(memory.cast()).map(Self).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: exactly the region that `of` mapped.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

/// Attaches an iterator to one process, or to all of them for 0: libbpf-rs has no options for that.
fn attach(program: &ProgramMut<'_>, pid: u32) -> io::Result<Link> {
    let mut info = libbpf_sys::bpf_iter_link_info::default();
    info.task.pid = pid;
    let opts = libbpf_sys::bpf_iter_attach_opts {
        sz: size_of::<libbpf_sys::bpf_iter_attach_opts>() as _,
        link_info: &raw mut info,
        link_info_len: size_of::<libbpf_sys::bpf_iter_link_info>() as _,
        ..Default::default()
    };
    // SAFETY: the program is loaded, and libbpf reads the options only during the call.
    let link =
        unsafe { libbpf_sys::bpf_program__attach_iter(program.as_libbpf_object().as_ptr(), &raw const opts) };
    let link = NonNull::new(link).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: libbpf has just made this link, and nothing else has it.
    Ok(unsafe { Link::from_ptr(link) })
}

/// Reads the rows of an iterator until `take` returns false.
fn for_each<T: Copy + Default>(link: &Link, mut take: impl FnMut(T) -> bool) -> io::Result<()> {
    let mut rows = Iter::new(link).map_err(io::Error::other)?;
    let mut bytes = vec![0u8; size_of::<T>() * 1024];
    let mut kept = 0;
    loop {
        let read = match rows.read(&mut bytes[kept..]) {
            // The kernel asks for a retry after skipping many.
            Err(err) if matches!(err.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => continue,
            read => read?,
        };
        if read == 0 {
            return Ok(());
        }
        let whole = (kept + read) / size_of::<T>() * size_of::<T>();
        for row in bytes[..whole].chunks_exact(size_of::<T>()) {
            // SAFETY: the bytes are one row as the program wrote it, of numbers only, for which every bit pattern is valid.
            if !take(unsafe { std::ptr::read_unaligned(row.as_ptr().cast()) }) {
                return Ok(());
            }
        }
        bytes.copy_within(whole..kept + read, 0);
        kept = kept + read - whole;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Starts a process that maps the file as a linker maps its output.
    fn mapping_to_write(path: &Path) -> Child {
        let code = "import mmap, sys, time; file = open(sys.argv[1], 'r+b'); mapped = mmap.mmap(file.fileno(), 0); \
                    print('mapped', flush=True); time.sleep(60)";
        let mut command = Command::new("python3");
        command.args(["-c", code]).arg(path).stdout(Stdio::piped());
        let mut writer = command.spawn().unwrap();
        writer.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        writer
    }

    #[test]
    fn reads_kernel_inodes_and_processes_as_root() {
        let mut files = Files::load().expect("these tests need root and a kernel that takes probe programs");
        let exe = std::env::current_exe().unwrap();
        let known = files.inode(&File::open(&exe).unwrap()).unwrap();
        let copy = tempfile::NamedTempFile::new().unwrap();
        fs::copy(&exe, copy.path()).unwrap();
        let other = files.inode(&File::open(copy.path()).unwrap()).unwrap();
        assert_ne!(known, other);
        assert!(known.address != 0 && known.number != 0);
        let own = files.mapped_by(std::process::id()).unwrap();
        assert!(own.iter().any(|(_, inode)| *inode == known));
        let held = Page::of(&File::open(copy.path()).unwrap()).unwrap();
        assert!(!files.is_mapped(other).unwrap(), "what the exporter itself maps does not count");
        drop(held);
        let mut writer = mapping_to_write(copy.path());
        assert!(!files.is_mapped(other).unwrap() && files.mappings(other).unwrap().is_empty());
        writer.kill().unwrap();
        writer.wait().unwrap();
        let sleep = File::open("/bin/sleep").unwrap();
        let sleep = files.inode(&sleep).unwrap();
        let mut running = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        while !files.mapped_by(running.id()).unwrap().iter().any(|(_, inode)| *inode == sleep) {}
        assert!(files.is_mapped(sleep).unwrap());
        // Other tests run it too.
        let of_running = |mut all: Vec<MappedPart>| {
            all.retain(|part| part.pid == running.id());
            all.sort_by_key(|part| part.memory.start);
            all
        };
        let mut walked = Vec::new();
        files.for_each_mapping(sleep, |mapping| walked.extend(part_of_other(&mapping, None))).unwrap();
        let read = files.mappings_of_inode(sleep).unwrap().expect("few processes run sleep");
        assert!(!walked.is_empty());
        assert_eq!(of_running(read), of_running(walked));
        running.kill().unwrap();
        running.wait().unwrap();
        let began = files.began(std::process::id()).unwrap();
        assert_eq!(files.began(std::process::id()).unwrap(), began);
        assert!(files.began(u32::MAX >> 2).is_err());
        assert_eq!(files.pid_namespace(), PidNamespace::default());
    }
}
