//! Files with USDT probes that processes have loaded: shared libraries, and those that a program creates in a memfd at
//! run time, as the bindings of libstapsdt do.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object::elf::{DT_SONAME, DT_STRTAB, FileHeader64, PT_LOAD};
use object::read::ReadCache;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};

use crate::elf::{Headers, notes};
use crate::procfs::{Mapping, living_thread, text};
use crate::regular;
use crate::selectors::{FileSelector, Pattern, Selector};

/// Cached files; when full, the cache is cleared.
const CACHE_SIZE: usize = 4096;

/// Maximum length of a soname.
const SONAME_BYTES: u64 = 256;

/// A cache of what is known about files.
#[derive(Debug, Default)]
pub struct Libraries {
    /// By device, inode and ctime.
    files: HashMap<FileTimes, LibraryNames>,
    /// Library names that targets select.
    wanted: Vec<Pattern>,
}

/// The probes and the soname of a file.
type LibraryNames = (Names, Option<Arc<str>>);

/// Device, inode and ctime.
type FileTimes = (u64, u64, i64, i64);

/// USDT probes as `provider:name`.
type Names = Arc<BTreeSet<String>>;

/// A file with probes that a process has loaded.
#[derive(Debug, Clone)]
pub struct Library {
    /// A path that opens it.
    pub path: PathBuf,
    pub display: String,
    /// Identifies the file.
    pub file: FileTimes,
    probes: Names,
    soname: Option<Arc<str>>,
}

impl Library {
    /// Whether its file name or soname matches.
    pub fn is_called(&self, name: &Pattern) -> bool {
        is_called(&self.display, self.soname.as_deref(), name)
    }

    /// Whether it has any of these probes.
    pub fn has_any(&self, wanted: &[String]) -> bool {
        wanted.iter().any(|name| self.probes.contains(name))
    }
}

fn is_called(path: &str, soname: Option<&str>, name: &Pattern) -> bool {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let base = path.rsplit('/').next().unwrap_or(path);
    // With the kernel's prefix, too, which the names of processes have.
    let of_memory = base.strip_prefix("memfd:");
    name.matches(base)
        || of_memory.is_some_and(|base| name.matches(base))
        || soname.is_some_and(|soname| name.matches(soname))
}

impl Libraries {
    /// Files of this name are relevant, whether they have probes or not.
    pub fn select(&mut self, selector: &Selector) {
        if let FileSelector::Library(name) = &selector.file {
            self.wanted.push(name.clone());
        }
    }

    /// The relevant files that a process has loaded, and the directories from which it loaded anything. `loading` are
    /// addresses of mappings whose code segment is not mapped yet.
    pub fn of(&mut self, pid: u32, loading: &[u64]) -> (Vec<Library>, BTreeSet<PathBuf>) {
        let pid = living_thread(pid);
        let maps = text(format!("/proc/{pid}/maps")).unwrap_or_default();
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let (mut found, mut directories) = (Vec::new(), BTreeSet::new());
        // Files can have the same name, as memfds do.
        let mut seen = HashSet::new();
        let is_code =
            |of: &Mapping<'_>| of.is_executable() || loading.iter().any(|address| of.contains(*address));
        for mapping in maps.lines().filter_map(of_file).filter(is_code) {
            if !seen.insert((mapping.device, mapping.inode, mapping.name)) {
                continue;
            }
            directories.extend(Path::new(mapping.name).parent().map(Path::to_path_buf));
            if exe.as_os_str() != mapping.name {
                let library = self.library(pid, &mapping);
                found.extend(library.filter(|of| self.is_wanted(of) || !of.probes.is_empty()));
            }
        }
        (found, directories)
    }

    /// The file that a process has mapped at this address, whether it is code, relevant, or neither.
    pub fn at(&mut self, pid: u32, address: u64) -> Option<Library> {
        let pid = living_thread(pid);
        let maps = text(format!("/proc/{pid}/maps")).ok()?;
        let mut mappings = maps.lines().filter_map(Mapping::parse);
        let mapping = mappings.find(|mapping| mapping.contains(address) && mapping.name.starts_with('/'))?;
        self.library(pid, &mapping)
    }

    fn library(&mut self, pid: u32, mapping: &Mapping<'_>) -> Option<Library> {
        let display = mapping.name;
        let paths = [
            format!("/proc/{pid}/map_files/{}", mapping.entry()),
            format!("/proc/{pid}/root{}", display.trim_end_matches(" (deleted)")),
        ];
        let mut opened = paths
            .into_iter()
            .filter_map(|path| Some((regular::open(path.as_ref()).ok()?, PathBuf::from(path))));
        let (mut file, path) = opened.next()?;
        let meta = file.metadata().ok()?;
        let times = (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec());
        let (probes, soname) = self.names_of(&mut file, times);
        Some(Library { path, display: (*display).to_string(), file: times, probes, soname })
    }

    fn is_wanted(&self, library: &Library) -> bool {
        self.wanted.iter().any(|name| library.is_called(name))
    }

    fn names_of(&mut self, file: &mut File, times: FileTimes) -> LibraryNames {
        if self.files.len() >= CACHE_SIZE {
            self.files.clear();
        }
        let wants_soname = !self.wanted.is_empty();
        let look = || {
            let soname = wants_soname.then(|| soname(&ReadCache::new(&mut *file)).ok().flatten()).flatten();
            (Arc::new(probes(file).unwrap_or_default()), soname)
        };
        self.files.entry(times).or_insert_with(look).clone()
    }
}

/// Whether the file has any of the probes.
pub fn has_any(path: &Path, wanted: &[String]) -> bool {
    let found = || probes(&mut regular::open(path).ok()?);
    !wanted.is_empty() && found().is_some_and(|found| wanted.iter().any(|name| found.contains(name)))
}

/// Whether the file has probes; reads only its headers.
pub(crate) fn has_probes(path: &Path) -> bool {
    regular::open(path).is_ok_and(|mut file| has_notes(&ReadCache::new(&mut file)).unwrap_or(false))
}

/// None if the file has no probes; that holds for most files, whose headers only are read.
fn probes(file: &mut File) -> Option<BTreeSet<String>> {
    if !has_notes(&ReadCache::new(&mut *file)).unwrap_or(false) {
        return None;
    }
    let bytes = regular::read_all(file).ok()?;
    let found = notes(&Headers::parse(&bytes).ok()?).ok()?;
    Some(found.into_iter().map(|note| format!("{}:{}", note.provider, note.name)).collect())
}

fn has_notes<'data>(data: impl ReadRef<'data>) -> object::Result<bool> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    Ok(header.sections(endian, data)?.section_by_name(endian, b".note.stapsdt").is_some())
}

/// The name by which other files refer to it.
fn soname<'data>(data: impl ReadRef<'data>) -> object::Result<Option<Arc<str>>> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    let dynamic =
        segments.iter().find_map(|segment| segment.dynamic(endian, data).transpose()).transpose()?;
    let entry = |tag| {
        let mut entries = dynamic.unwrap_or_default().iter();
        entries.find(|of| of.tag(endian) == tag).map(|of| of.val(endian))
    };
    let (Some(name), Some(table)) = (entry(DT_SONAME), entry(DT_STRTAB)) else { return Ok(None) };
    let in_file = segments.iter().find_map(|segment| {
        let past = table.checked_sub(segment.p_vaddr(endian))?;
        let is_here = segment.p_type(endian) == PT_LOAD && past < segment.p_filesz(endian);
        is_here.then(|| segment.p_offset(endian).checked_add(past)).flatten()
    });
    let Some(at) = in_file.and_then(|table| table.checked_add(name)) else { return Ok(None) };
    let bytes = data.read_bytes_at_until(at..at.saturating_add(SONAME_BYTES), 0).unwrap_or_default();
    Ok(std::str::from_utf8(bytes).ok().map(Arc::from))
}

/// Parses a line of /proc/PID/maps if it is of a file.
fn of_file(line: &str) -> Option<Mapping<'_>> {
    Mapping::parse(line).filter(|mapping| mapping.name.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::mapping::CodeView;

    #[test]
    fn parses_file_mappings() {
        let line = "7f10-7f20 r-xp 00001000 00:01 2053      /memfd:libprobe (deleted)";
        let found = of_file(line).unwrap();
        assert_eq!((found.entry(), found.name), ("7f10-7f20".to_string(), "/memfd:libprobe (deleted)"));
        assert_eq!(of_file("7f10-7f20 r-xp 00000000 00:00 0          [vdso]"), None);
        assert_eq!(of_file("7f10-7f20 r-xp 00000000 00:00 0 "), None);
    }

    #[test]
    fn library_in_memory_is_called_with_or_without_the_prefix() {
        let is = |name| is_called("/memfd:jit (deleted)", None, &Pattern::literal(name));
        assert!(is("jit") && is("memfd:jit") && !is("memfd"));
    }

    #[test]
    fn finds_the_library_being_loaded_by_address() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap().join("libheld.so");
        fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        let file = File::open(&path).unwrap();
        let _mapped = CodeView::new(file.as_fd(), 0, 1).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let address = maps.lines().filter_map(of_file).find(|of| path == Path::new(of.name)).unwrap().start;
        let mut libraries =
            Libraries { wanted: vec![Pattern::literal("libheld.so")], ..Libraries::default() };
        let mut found = |loading: &[u64]| {
            let (found, directories) = libraries.of(std::process::id(), loading);
            (found.len(), directories.contains(directory.path()))
        };
        assert_eq!(found(&[]), (0, false));
        assert_eq!(found(&[address]), (1, true));
    }

    #[test]
    fn most_files_have_no_probes() {
        let mut exe = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(probes(&mut exe), None);
        assert_eq!(soname(&ReadCache::new(&mut exe)).unwrap(), None);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps.lines().filter_map(of_file).find(|of| of.name.ends_with("/libc.so.6")).unwrap();
        let mut libc = File::open(libc.name).unwrap();
        assert_eq!(soname(&ReadCache::new(&mut libc)).unwrap().as_deref(), Some("libc.so.6"));
        let mut text = File::open(file!()).unwrap();
        assert_eq!(probes(&mut text), None);
    }
}
