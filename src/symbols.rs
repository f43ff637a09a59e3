//! Names of code addresses in running processes.
//!
//! A path in `/proc/PID/maps` is a path of that process: for a process in a container, the same path may refer to
//! another file here, or to none. So the file is opened through the process, and used only if it is the one that is
//! mapped.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};

use crate::debug_symbols::{debug_symbols, with_names};
use crate::elf::{AddressNames, Image, shown_name};
use crate::procfs::{Mapping, Stat, living_thread, text};
use crate::regular;
use crate::truncated;

/// Cached addresses; when full, the cache is cleared.
const CACHE_SIZE: usize = 16_384;

/// How long the name of an address is cached: unloaded code makes room for other code.
const VALID_FOR: Duration = Duration::from_secs(60);

/// Files whose symbols are cached, and their total bytes; the least recently used file is evicted.
const MAX_FILES: usize = 16;
const MAX_CACHED_BYTES: usize = 64 << 20;

/// Larger files are not read into memory, which would delay events for seconds: blazesym maps them and reads what it
/// needs.
const MAX_READ: u64 = 256 << 20;

/// How long a process is assumed to be the same without checking.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Characters of a function's name in a call stack.
const FRAME_NAME: usize = 200;

/// The mapping in which return addresses lie that the kernel has replaced to trace returns.
const TRAMPOLINE: &str = "[uprobes]";

/// The name of an address that belongs to no known function.
pub const UNKNOWN: &str = "unknown";

/// Looks up names, and caches them.
pub struct Symbols {
    /// With the time of each lookup.
    known: HashMap<(u32, u64), (Arc<str>, Instant)>,
    /// When each process started, and when that was checked: its id may have been reused.
    began: HashMap<u32, (u64, Instant)>,
    /// In the order of their last use.
    files: Vec<Mapped>,
}

/// A file that some process has mapped, with its symbols.
struct Mapped {
    identity: Identity,
    names: Names,
}

/// Names of a file's functions by file offset.
enum Names {
    /// The same names as for probing.
    Table(AddressNames),
    /// Blazesym's names, for a file that is too large to be read.
    Blazesym(Box<Symbolizer>, File),
}

/// Identifies a file, and a version of its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Symbols {
    pub fn new() -> Self {
        Self { known: HashMap::new(), began: HashMap::new(), files: Vec::new() }
    }

    /// The function that contains the call before this return address. A call that never returns may be a function's
    /// last instruction, so that the next function begins at its return address.
    pub fn caller(&mut self, pid: u32, return_address: u64) -> Arc<str> {
        self.name(pid, return_address.saturating_sub(1))
    }

    /// The functions that were running in a thread of the process, the innermost first: `c <- b <- a`. `frames` are
    /// addresses of 8 bytes each: the position of the thread, and the return addresses of its calls. The innermost
    /// function's return address is missing if the function has no frame yet, or no longer has one. Addresses outside
    /// code are not frames, and end the stack.
    pub fn stack(&mut self, pid: u32, frames: &[u8], returns_to: Option<u64>) -> String {
        let mut addresses: Vec<u64> =
            frames.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        if let Some(address) = returns_to.filter(|address| addresses.get(1) != Some(address)) {
            addresses.insert(addresses.len().min(1), address);
        }
        let thread = living_thread(pid);
        let maps = text(format!("/proc/{thread}/maps")).unwrap_or_default();
        let mappings: Vec<_> =
            maps.lines().filter_map(Mapping::parse).filter(|mapping| mapping.is_executable()).collect();
        let mut names = Vec::new();
        for (number, address) in addresses.into_iter().enumerate() {
            let at = if number > 0 { address.saturating_sub(1) } else { address };
            let Some(mapping) = mappings.iter().find(|mapping| mapping.contains(at)) else { break };
            // In place of a return address that the kernel has replaced.
            if mapping.name == TRAMPOLINE {
                continue;
            }
            let name = self.name_by(pid, at, |symbols| symbols.look_up_in(thread, at, mapping));
            let file = mapping.name.rsplit('/').next().unwrap_or_default();
            names.push(match &*name {
                UNKNOWN if !file.is_empty() => format!("{file}+{:#x}", mapping.offset + (at - mapping.start)),
                name => name.chars().take(FRAME_NAME).collect(),
            });
        }
        if names.is_empty() { UNKNOWN.to_owned() } else { names.join(" <- ") }
    }

    /// The function that contains the address in this process, demangled; `unknown` if it cannot be determined, as for
    /// a process that exited before the lookup.
    pub fn name(&mut self, pid: u32, address: u64) -> Arc<str> {
        self.name_by(pid, address, |symbols| symbols.look_up(pid, address))
    }

    /// The cached name, or else the result of `look_up`.
    fn name_by(
        &mut self,
        pid: u32,
        address: u64,
        look_up: impl FnOnce(&mut Self) -> Option<Arc<str>>,
    ) -> Arc<str> {
        if self.is_another(pid) {
            self.known.retain(|(known, _), _| *known != pid);
        }
        let remembered = self.known.get(&(pid, address));
        if let Some((name, _)) = remembered.filter(|(_, at)| at.elapsed() < VALID_FOR) {
            return name.clone();
        }
        let name: Arc<str> = look_up(self).unwrap_or_else(|| UNKNOWN.into());
        if self.known.len() >= CACHE_SIZE {
            self.known.clear();
        }
        self.known.insert((pid, address), (name.clone(), Instant::now()));
        name
    }

    /// Whether the process id has been reused by another process.
    fn is_another(&mut self, pid: u32) -> bool {
        let known = self.began.get(&pid).copied();
        if known.is_some_and(|(_, looked)| looked.elapsed() < RECHECK_INTERVAL) {
            return false;
        }
        if self.began.len() >= CACHE_SIZE {
            self.began.clear();
        }
        let now =
            Stat::of(pid).ok().map(|stat| stat.start_ticks).or(known.map(|(began, _)| began)).unwrap_or(0);
        self.began.insert(pid, (now, Instant::now()));
        known.is_some_and(|(before, _)| before != now)
    }

    fn look_up(&mut self, pid: u32, address: u64) -> Option<Arc<str>> {
        let pid = living_thread(pid);
        let maps = text(format!("/proc/{pid}/maps")).ok()?;
        let mut mappings = maps.lines().filter_map(Mapping::parse);
        let mapping = mappings.find(|mapping| mapping.contains(address))?;
        self.look_up_in(pid, address, &mapping)
    }

    /// The name of an address in this mapping.
    fn look_up_in(&mut self, pid: u32, address: u64, mapping: &Mapping<'_>) -> Option<Arc<str>> {
        if mapping.inode == 0 {
            return None;
        }
        let file = open(pid, mapping)?;
        if is_written_anew(pid, &file, mapping, address) {
            return None;
        }
        let meta = file.metadata().ok()?;
        let identity = Identity {
            device: meta.dev(),
            inode: meta.ino(),
            changed: (meta.ctime(), meta.ctime_nsec()),
            bytes: meta.len(),
        };
        let mapped = match self.files.iter().position(|known| known.identity == identity) {
            Some(at) => self.files.remove(at),
            None => Mapped { identity, names: Names::of(pid, file, mapping, identity.bytes > MAX_READ)? },
        };
        let name = mapped.names.name(mapping.offset + (address - mapping.start));
        self.files.push(mapped);
        let taken = |files: &[Mapped]| files.iter().map(|known| known.names.bytes()).sum::<usize>();
        while self.files.len() > MAX_FILES || self.files.len() > 1 && taken(&self.files) > MAX_CACHED_BYTES {
            self.files.remove(0);
        }
        name
    }
}

impl Names {
    /// The names in a file; `None` if it cannot be read now.
    fn of(pid: u32, file: File, mapping: &Mapping<'_>, is_large: bool) -> Option<Self> {
        if is_large {
            return Some(Self::Blazesym(Box::new(Symbolizer::new()), file));
        }
        table_of(pid, &file, mapping).map(Self::Table)
    }

    fn name(&self, offset: u64) -> Option<Arc<str>> {
        match self {
            Self::Table(names) => names.name(offset).map(Into::into),
            Self::Blazesym(symbolizer, file) => {
                let source = Source::Elf(Elf::new(format!("/proc/self/fd/{}", file.as_raw_fd())));
                let offset = Input::FileOffset(offset);
                match truncated::reading(|| symbolizer.symbolize_single(&source, offset)) {
                    Ok(Symbolized::Sym(symbol)) => Some(shown_name(&symbol.name).into()),
                    Ok(Symbolized::Unknown(_)) | Err(_) => None,
                }
            }
        }
    }

    /// Their size in memory, in bytes; the pages of a mapped file are not counted.
    fn bytes(&self) -> usize {
        match self {
            Self::Table(names) => names.bytes(),
            Self::Blazesym(..) => 0,
        }
    }
}

/// The functions of a file, from its debug file if it has no symbols itself; none if it is not a program. `None` if it
/// cannot be read now.
fn table_of(pid: u32, file: &File, mapping: &Mapping<'_>) -> Option<AddressNames> {
    let bytes = regular::read_all(file).ok()?;
    let Ok(image) = Image::parse(&bytes) else { return Some(AddressNames::default()) };
    let path = format!("/proc/{pid}/root{}", mapping.name);
    let symbols =
        image.is_stripped().then(|| debug_symbols(&image, Path::new(&path), mapping.name)).flatten();
    Some(AddressNames::of(&with_names(image, symbols.as_ref())))
}

impl Default for Symbols {
    fn default() -> Self {
        Self::new()
    }
}

/// Opens the mapped file: through its entry in `map_files`, if permitted, or by its path below the process's root if
/// that is still the same file.
fn open(pid: u32, mapping: &Mapping<'_>) -> Option<File> {
    if let Ok(file) = regular::open(format!("/proc/{pid}/map_files/{}", mapping.entry()).as_ref()) {
        return Some(file);
    }
    let file = regular::open(format!("/proc/{pid}/root{}", mapping.name).as_ref()).ok()?;
    let meta = file.metadata().ok()?;
    // stat(2) numbers file systems without a block device differently.
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let same_device = mapping.device.0 == 0 || major == 0 || mapping.device == (major, minor);
    (meta.ino() == mapping.inode && same_device).then_some(file)
}

/// Whether the code in the process's memory differs from the file, as with a JIT compiler in the process. Less than
/// half is a patch, or breakpoints.
fn is_written_anew(pid: u32, file: &File, mapping: &Mapping<'_>, address: u64) -> bool {
    const AROUND: u64 = 8;
    let from = address.saturating_sub(AROUND).max(mapping.start);
    let length = address.saturating_add(AROUND).min(mapping.end).saturating_sub(from) as usize;
    let [mut here, mut there] = [[0; 2 * AROUND as usize]; 2];
    let (here, there) = (&mut here[..length], &mut there[..length]);
    let memory = File::open(format!("/proc/{pid}/mem"));
    if memory.and_then(|memory| memory.read_exact_at(here, from)).is_err()
        || file.read_exact_at(there, mapping.offset + (from - mapping.start)).is_err()
    {
        return false;
    }
    here.iter().zip(there.iter()).filter(|(here, there)| here != there).count() > length / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    extern "C" fn a_function_of_the_test() -> u64 {
        std::hint::black_box(7)
    }

    #[test]
    fn resolves_a_function_of_this_process() {
        let mut symbols = Symbols::new();
        let address = a_function_of_the_test as *const () as u64;
        for _ in 0..2 {
            let name = symbols.name(std::process::id(), address + 1);
            assert!(name.contains("a_function_of_the_test"), "{name}");
        }
        assert_eq!(&*symbols.name(std::process::id(), 8), "unknown");
        assert_eq!(&*symbols.name(u32::MAX >> 1, address), "unknown");
        assert_eq!(symbols.files.len(), 1);
    }

    #[test]
    fn stack_is_resolved_as_far_as_possible() {
        let mut symbols = Symbols::new();
        let address = a_function_of_the_test as *const () as u64;
        let me = std::process::id();
        let mut stack = |frames: &[u64], returns_to| {
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.to_ne_bytes()).collect();
            let text = symbols.stack(me, &bytes, returns_to);
            text.split(" <- ").map(|name| name.contains("a_function_of_the_test")).collect::<Vec<_>>()
        };
        // The thread's position is used unchanged; a return address belongs to the instruction before it.
        assert_eq!(stack(&[address], None), [true]);
        assert_eq!(stack(&[address, address + 1, address + 1], None), [true, true, true]);
        assert_eq!(stack(&[address, address], None).len(), 2);
        assert!(!stack(&[address, address], None)[1]);
        // The caller's address is inserted if it is missing, but not twice.
        assert_eq!(stack(&[address, 8], Some(address + 1)), [true, true]);
        assert_eq!(stack(&[address, address + 1], Some(address + 1)), [true, true]);
        // An address outside code ends the stack.
        assert_eq!(stack(&[address, 8, address + 1], None), [true]);
        let mut of_none = Symbols::new();
        assert_eq!(of_none.stack(u32::MAX >> 1, &address.to_ne_bytes(), None), UNKNOWN);
        assert_eq!(of_none.stack(me, &[], None), UNKNOWN);
    }

    #[test]
    fn resolves_names_in_a_large_mapped_file() {
        let me = std::process::id();
        let address = a_function_of_the_test as *const () as u64;
        let maps = text(format!("/proc/{me}/maps")).unwrap();
        let mapping =
            maps.lines().filter_map(Mapping::parse).find(|mapping| mapping.contains(address)).unwrap();
        let offset = mapping.offset + (address - mapping.start);
        let [read, mapped] = [false, true].map(|is_large| {
            let names = Names::of(me, open(me, &mapping).unwrap(), &mapping, is_large).unwrap();
            assert_eq!(matches!(names, Names::Blazesym(..)), is_large);
            names.name(offset + 1).unwrap()
        });
        assert!(mapped.contains("a_function_of_the_test"), "{mapped}");
        assert_eq!(read, mapped);
    }

    #[test]
    fn ignores_another_file_at_the_same_path() {
        let me = std::process::id();
        let exe = std::env::current_exe().unwrap();
        let meta = std::fs::metadata(&exe).unwrap();
        let device = (libc::major(meta.dev()), libc::minor(meta.dev()));
        let path = exe.to_str().unwrap();
        let line = |inode| format!("0-1 r-xp 0 {:x}:{:x} {inode} {path}", device.0, device.1);
        assert!(open(me, &Mapping::parse(&line(meta.ino())).unwrap()).is_some());
        assert!(open(me, &Mapping::parse(&line(meta.ino() + 1)).unwrap()).is_none());
    }
}
