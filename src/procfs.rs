//! Reading of processes in /proc; see proc(5).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// Reads a file below /proc as text: names of programs and files can be arbitrary bytes.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn text(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(String::from_utf8(fs::read(path)?)
        .unwrap_or_else(|other| String::from_utf8_lossy(other.as_bytes()).into_owned()))
}

/// The ids of all processes; none if /proc cannot be read.
pub(crate) fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// A line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping<'a> {
    pub start: u64,
    pub end: u64,
    permissions: &'a str,
    /// Offset in the file at which it starts.
    pub offset: u64,
    /// Major and minor number, which stat(2) reports differently on file systems without a block device.
    pub device: (u32, u32),
    /// 0 if it is not of a file.
    pub inode: u64,
    /// The file's path where the process runs, followed by ` (deleted)` if it has none anymore.
    pub name: &'a str,
}

impl<'a> Mapping<'a> {
    pub fn parse(line: &'a str) -> Option<Self> {
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let offset = hex(fields.next()?)?;
        let (major, minor) = fields.next()?.split_once(':')?;
        Some(Self {
            start: hex(start)?,
            end: hex(end)?,
            permissions,
            offset,
            device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
            inode: fields.next()?.parse().ok()?,
            name: fields.next().unwrap_or_default().trim_start(),
        })
    }

    /// The name of its entry in `map_files`: without the leading zeros that `maps` has for low addresses.
    pub fn entry(&self) -> String {
        format!("{:x}-{:x}", self.start, self.end)
    }

    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Whether it is shared (`MAP_SHARED`), as no loader makes it: probes are not set in it.
    pub fn is_shared(&self) -> bool {
        self.permissions.ends_with('s')
    }

    pub fn is_executable(&self) -> bool {
        self.permissions.contains('x')
    }

    /// Whether the process can write to it without writing to the file.
    pub fn is_data(&self) -> bool {
        self.permissions.contains('w') && self.permissions.ends_with('p')
    }
}

/// The id under which /proc shows what a process executes and maps: its own, or that of one of its threads if the
/// leader has exited before the others and shows nothing anymore.
pub(crate) fn living_thread(pid: u32) -> u32 {
    let runs = |id: u32| match fs::read_link(format!("/proc/{id}/exe")) {
        Ok(_) => true,
        Err(err) => err.kind() != io::ErrorKind::NotFound,
    };
    if runs(pid) {
        return pid;
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let others = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    others.filter(|id| *id != pid).find(|id| runs(*id)).unwrap_or(pid)
}

/// Opens the memory of a process for reading and writing; `thread` is as from [`living_thread`].
///
/// # Errors
/// If it has ended, or must not be inspected.
pub(crate) fn writable_memory(thread: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(format!("/proc/{thread}/mem"))
}

/// Returns whether permission to inspect the process is missing. /proc reports the same error for a process that has
/// just ended, which does not count.
pub(crate) fn is_denied(pid: u32, err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::PermissionDenied && Path::new("/proc").join(pid.to_string()).exists()
}

/// Ticks since boot, including suspended time, as in [`Stat::start_ticks`].
pub(crate) fn uptime_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let hz = rustix::param::clock_ticks_per_second();
    now.tv_sec as u64 * hz + now.tv_nsec as u64 * hz / 1_000_000_000
}

/// The content of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub parent: u32,
    pub cpu_ticks: u64,
    pub threads: u64,
    /// When it started, in ticks since boot.
    pub start_ticks: u64,
    pub virtual_bytes: u64,
    pub resident_pages: u64,
}

impl Stat {
    /// Reads the file of a process.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = text(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(text: &str) -> Option<Self> {
        // The name, in parentheses, may contain anything; field 3 follows it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_maps_lines() {
        let line =
            "55d0a000-55d0b000 r-xp 00002000 fe:10 247003                     /usr/bin/a file (deleted)";
        let right = Mapping {
            start: 0x55d0_a000,
            end: 0x55d0_b000,
            permissions: "r-xp",
            offset: 0x2000,
            device: (0xfe, 0x10),
            inode: 247_003,
            name: "/usr/bin/a file (deleted)",
        };
        assert_eq!(Mapping::parse(line), Some(right.clone()));
        assert!(right.is_executable() && !right.is_data());
        let low = Mapping::parse("00400000-00401000 r--p 00000000 fe:10 7 /usr/bin/a").unwrap();
        assert_eq!(low.entry(), "400000-401000");
        assert!(right.contains(0x55d0_a010) && !right.contains(0x55d0_b000));
        assert!(Mapping::parse(&line.replace("r-xp", "rw-p")).unwrap().is_data());
        assert!(!Mapping::parse(&line.replace("r-xp", "rw-s")).unwrap().is_data());
        let stack = Mapping::parse("7ffd1000-7ffd2000 rw-p 00000000 00:00 0 [stack]").unwrap();
        assert_eq!((stack.inode, stack.name), (0, "[stack]"));
        assert_eq!(Mapping::parse("7f10-7f20 r-xp 00000000 00:00 0 ").unwrap().name, "");
        assert_eq!(Mapping::parse("nonsense"), None);
    }

    #[test]
    fn ended_process_is_not_reported_as_denied() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(is_denied(std::process::id(), &denied) && !is_denied(u32::MAX, &denied));
        assert!(!is_denied(std::process::id(), &io::ErrorKind::NotFound.into()));
    }

    #[test]
    fn stat_fields_follow_the_last_parenthesis() {
        let text = "77 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 150 33 11 12 20 0 5 0 9000 4096000 250 1844 1 1 0 0";
        let stat = Stat {
            parent: 1,
            cpu_ticks: 183,
            threads: 5,
            start_ticks: 9000,
            virtual_bytes: 4_096_000,
            resident_pages: 250,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("77 (a) S 1"), None);
        assert!(Stat::of(std::process::id()).unwrap().start_ticks > 0 && Stat::of(u32::MAX).is_err());
    }
}
