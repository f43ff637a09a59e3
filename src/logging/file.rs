//! The log file: appended to, and reopened when it is renamed; lines that cannot be written are counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is checked whether the path still refers to the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A log file. As it is opened before privileges are dropped, it may belong to any user.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    checked: Instant,
    /// Whether the last line was truncated, by a full disk for example.
    torn: bool,
    /// Whether it could not be reopened, which is reported once.
    stuck: bool,
}

impl LogFile {
    /// Opens the file for appending, and creates it if necessary.
    ///
    /// # Errors
    /// If open(2) fails.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = append(&path)?;
        Ok(Self { path, file, checked: Instant::now(), torn: false, stuck: false })
    }

    /// Checks that it can be opened, as far as possible without creating it, and regardless of permissions: the caller
    /// may be a different user from the exporter's.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn check(path: &Path) -> io::Result<()> {
        let opened = match OpenOptions::new().append(true).open(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                std::fs::metadata(directory.unwrap_or(Path::new("."))).map(drop)
            }
            opened => opened.map(drop),
        };
        opened.or_else(|err| if err.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(err) })
    }

    /// Appends a line to the file that the path refers to now: `logrotate` renames the previous one.
    ///
    /// # Errors
    /// If the line was not written, or not completely.
    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        self.write_at(line, Instant::now())
    }

    fn write_at(&mut self, line: &str, now: Instant) -> io::Result<()> {
        if now.saturating_duration_since(self.checked) >= CHECK_INTERVAL {
            self.checked = now;
            self.reopen_if_renamed();
        }
        if std::mem::take(&mut self.torn) {
            self.append("\n")?;
        }
        self.append(line)
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => {
                    self.torn |= rest.len() < text.len();
                    return Err(err);
                }
            }
        }
        Ok(())
    }

    fn reopen_if_renamed(&mut self) {
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let here = self.file.metadata().map(identity);
        if let (Ok(here), Ok(there)) = (&here, std::fs::metadata(&self.path).map(identity))
            && *here == there
        {
            return;
        }
        match append(&self.path) {
            Ok(file) => (self.file, self.torn, self.stuck) = (file, false, false),
            Err(err) if !std::mem::replace(&mut self.stuck, true) => {
                // On standard output, too: nobody may read the previous file.
                log::error!(
                    "failed to reopen {}: {err}; still logging to the previous file",
                    self.path.display()
                );
            }
            Err(_) => {}
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn renamed_file_is_reopened() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut file = LogFile::open(&path).unwrap();
        let began = Instant::now();
        file.write_at("one\n", began).unwrap();
        fs::rename(&path, &old).unwrap();
        // The path is not checked for every line.
        file.write_at("two\n", began).unwrap();
        file.write_at("three\n", began + CHECK_INTERVAL).unwrap();
        // As with logrotate's `create`, and then after a rotation with `copytruncate`.
        fs::rename(&path, directory.path().join("log.2")).unwrap();
        fs::write(&path, "").unwrap();
        file.write_at("four\n", began + 2 * CHECK_INTERVAL).unwrap();
        fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        file.write_at("five\n", began + 3 * CHECK_INTERVAL).unwrap();
        let read = |path| fs::read_to_string(path).unwrap();
        assert_eq!(
            (read(old), read(directory.path().join("log.2"))),
            ("one\ntwo\n".into(), "three\n".into())
        );
        assert_eq!(read(path), "five\n");
    }

    #[test]
    fn failed_reopen_keeps_the_previous_file() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let path = inner.join("log");
        let mut file = LogFile::open(&path).unwrap();
        let began = file.checked;
        let moved = directory.path().join("moved");
        fs::rename(&inner, &moved).unwrap();
        for n in 1..=3 {
            file.write_at(&format!("{n}\n"), began + n * CHECK_INTERVAL).unwrap();
        }
        let text = fs::read_to_string(moved.join("log")).unwrap();
        assert_eq!(text, "1\n2\n3\n");
    }

    #[test]
    fn full_disk_is_a_recoverable_error() {
        let mut file = LogFile::open("/dev/full").unwrap();
        for _ in 0..2 {
            assert_eq!(file.write("line\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
