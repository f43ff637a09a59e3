//! Mounts that change in this mount namespace, after which a path may lead to another file.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The share of the time, as one part in so many, that may be spent on reading the mount table where mounts come and
/// go all the time.
const MAX_SHARE: u32 = 20;

/// The mount table.
#[derive(Debug)]
pub struct Mounts {
    table: File,
    known: HashSet<Mount>,
    /// When it may be read next.
    due: Instant,
}

/// Its id and mount point.
type Mount = (u64, PathBuf);

impl Mounts {
    /// Reads the current table.
    ///
    /// # Errors
    /// From the kernel.
    pub fn new() -> io::Result<Self> {
        let table = File::open("/proc/self/mountinfo")?;
        let mut mounts = Self { table, known: HashSet::new(), due: Instant::now() };
        mounts.known = mounts.read()?;
        Ok(mounts)
    }

    /// How long to wait before it may be read again.
    pub fn pause(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    /// Mount points that were added or removed since.
    pub fn changed(&mut self) -> Vec<PathBuf> {
        let began = Instant::now();
        let Ok(now) = self.read() else { return Vec::new() };
        self.due = Instant::now() + began.elapsed() * MAX_SHARE;
        let changed = now.symmetric_difference(&self.known).map(|(_, point)| point.clone()).collect();
        self.known = now;
        changed
    }

    fn read(&mut self) -> io::Result<HashSet<Mount>> {
        let mut bytes = Vec::new();
        self.table.rewind()?;
        self.table.read_to_end(&mut bytes)?;
        Ok(bytes.split(|byte| *byte == b'\n').filter_map(parse).collect())
    }
}

/// Has an exceptional condition ([`PollFlags::PRI`](rustix::event::PollFlags::PRI)) once after each change.
impl AsFd for Mounts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }
}

/// Parses a line of `/proc/PID/mountinfo`; see proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    Some((number, unescaped(fields.nth(3)?)))
}

/// Spaces and other special characters are escaped as a backslash and three octal digits.
fn unescaped(mut text: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    while let [first, rest @ ..] = text {
        let digits = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                text = &rest[3..];
            }
            None => {
                path.push(*first);
                text = rest;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn parses_mountinfo_lines() {
        let line = b"36 35 98:0 /mnt1 /mnt/with\\040space\\134 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(parse(line), Some((36, PathBuf::from("/mnt/with space\\"))));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn slow_mount_table_is_read_less_often() {
        let mut mounts = Mounts::new().unwrap();
        assert!(mounts.known.iter().any(|(_, point)| point == Path::new("/proc")));
        assert!(mounts.pause().is_zero());
        mounts.known.insert((u64::MAX, PathBuf::from("/gone")));
        assert!(mounts.changed().contains(&PathBuf::from("/gone")));
        assert!(!mounts.pause().is_zero());
    }
}
