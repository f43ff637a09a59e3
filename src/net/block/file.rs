//! A file of the blocklist: read when it has changed, but not while it is being written.

use std::path::{Path, PathBuf};

use super::super::cidr::Prefix;
use super::config::BlockFile;
use super::fetch::UrlConfig;
use super::list::ListFile;
use super::stamp::Stamp;
use crate::regular;

/// Larger files are not read.
const MAX_FILE: u64 = 256 << 20;

/// A file and the result of the last successful reading.
#[derive(Debug, Clone, Default)]
pub(crate) struct WatchedFile {
    pub path: PathBuf,
    /// Its name in messages and metrics: the path, or the URL that it is downloaded from.
    pub name: String,
    /// The reason shown with its entries.
    pub reason: String,
    /// Whether it is downloaded: it may be missing before the first download.
    is_fetched: bool,
    /// The content for the first reading, if it is known already.
    first: Option<(Stamp, Vec<u8>)>,
    /// From the last successful reading.
    pub prefixes: Vec<Prefix>,
    pub invalid: usize,
    /// Why the last reading failed.
    pub error: Option<String>,
    /// Why its content was rejected.
    refused: Option<String>,
    seen: Option<Stamp>,
    /// The stamp of a change that was noticed: the file is read once the stamp is stable.
    changing: Option<Stamp>,
}

fn read(stamp: Stamp, path: &Path) -> Result<ListFile, String> {
    if stamp.size > MAX_FILE {
        return Err(format!("it has {} bytes; at most {MAX_FILE} are read", stamp.size));
    }
    regular::read_small(path, MAX_FILE)
        .map(|content| ListFile::parse(&content))
        .map_err(|error| error.to_string())
}

/// Reads a file.
///
/// # Errors
/// Why it could not be read.
pub(super) fn read_list(path: &Path) -> Result<ListFile, String> {
    read(Stamp::of(path)?, path)
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// The file is unchanged.
    Same,
    /// It is being written or unreadable: the previous entries stay.
    Kept,
    /// It was read.
    New,
}

impl WatchedFile {
    pub fn new(file: &BlockFile) -> Self {
        let BlockFile { path, reason } = file.clone();
        Self { name: path.display().to_string(), path, reason, ..Self::default() }
    }

    /// A file that is downloaded. `verified` returns its content, if it may be used.
    pub fn fetched(list: &UrlConfig, path: PathBuf, verified: impl FnOnce(&Path) -> Option<Vec<u8>>) -> Self {
        let (name, reason) = (list.url.to_string(), list.reason.clone());
        // What replaces the content meanwhile has another stamp.
        let first = Stamp::of(&path).ok().and_then(|stamp| Some((stamp, verified(&path)?)));
        Self { path, name, reason, is_fetched: true, first, ..Self::default() }
    }

    /// A copy without the entries, enough to check the file.
    pub fn without_entries(&self) -> Self {
        let Self { path, name, reason, is_fetched, invalid, error, refused, seen, changing, .. } = self;
        Self {
            path: path.clone(),
            name: name.clone(),
            reason: reason.clone(),
            is_fetched: *is_fetched,
            first: None,
            prefixes: Vec::new(),
            invalid: *invalid,
            error: error.clone(),
            refused: refused.clone(),
            seen: *seen,
            changing: *changing,
        }
    }

    /// Applies the result of a check.
    pub fn update(&mut self, looked: Self, read: Read) {
        let prefixes = std::mem::take(&mut self.prefixes);
        *self = looked;
        if read != Read::New {
            self.prefixes = prefixes;
        }
    }

    /// Reads it for the first time.
    pub fn read_first(&mut self) {
        if self.seen.is_some() {
            return;
        }
        let first = self.first.take().map(|(stamp, content)| (stamp, Ok(ListFile::parse(&content))));
        match first.map_or_else(|| Stamp::of(&self.path).map(|now| (now, read(now, &self.path))), Ok) {
            Ok((now, list)) => drop(self.take(now, list)),
            Err(error) => drop(self.fail(error)),
        }
    }

    /// Reads the file if it has changed and was the same at the previous check.
    pub fn check(&mut self) -> Read {
        let now = match Stamp::of(&self.path) {
            Ok(now) => now,
            Err(error) => return self.fail(error),
        };
        if self.seen == Some(now) {
            // The file is readable again, or its content is still rejected.
            let before = std::mem::replace(&mut self.error, self.refused.clone());
            return if before == self.error { Read::Same } else { Read::Kept };
        }
        if self.changing.replace(now) != Some(now) {
            return Read::Kept;
        }
        self.take(now, read(now, &self.path))
    }

    fn take(&mut self, now: Stamp, list: Result<ListFile, String>) -> Read {
        let list = match list {
            Ok(list) => list,
            Err(error) => return self.fail(error),
        };
        self.changing = None;
        self.seen = Some(now);
        let name = &self.name;
        for (line, text) in &list.reported {
            log::warn!("blocklist: {name}:{line}: {text}");
        }
        if list.warnings > list.reported.len() {
            log::warn!("blocklist: {name}: {} more lines like these", list.warnings - list.reported.len());
        }
        self.invalid = list.invalid;
        self.refused = list.is_none().then(|| {
            let all = list.invalid + list.prefixes.len();
            format!("most of its lines are not entries ({} of {all})", list.invalid)
        });
        if let Some(error) = self.refused.clone() {
            return self.fail(error);
        }
        log::info!("blocklist: {name}: {} entries read", list.prefixes.len());
        self.error = None;
        self.prefixes = list.prefixes;
        Read::New
    }

    fn fail(&mut self, error: String) -> Read {
        if self.error.as_ref() != Some(&error) {
            if !(self.is_fetched && self.seen.is_none()) {
                log::warn!(
                    "blocklist: failed to read {}: {error}; its previous entries stay in use",
                    self.name
                );
            }
            self.error = Some(error);
            return Read::Kept;
        }
        Read::Same
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn file_is_read_when_stable_and_keeps_its_last_good_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drop");
        let mut file = WatchedFile::new(&BlockFile { path: path.clone(), reason: String::new() });
        file.read_first();
        assert!(file.error.is_some() && file.prefixes.is_empty());
        fs::write(&path, "192.0.2.1\n").unwrap();
        assert_eq!((file.check(), file.check(), file.check()), (Read::Kept, Read::New, Read::Same));
        assert_eq!((file.prefixes.len(), &file.error), (1, &None));
        fs::write(&path, "192.0.2.1\n192.0.2.3\n").unwrap();
        assert_eq!(file.check(), Read::Kept);
        fs::write(&path, "192.0.2.1\n192.0.2.3\n192.0.2.5\n").unwrap();
        assert_eq!((file.check(), file.check()), (Read::Kept, Read::New));
        assert_eq!(file.prefixes.len(), 3);
        fs::write(&path, "<html>\n<head>\n<title>\nNot found\n").unwrap();
        assert_eq!((file.check(), file.check(), file.check()), (Read::Kept, Read::Kept, Read::Same));
        assert!(file.error.is_some());
        assert_eq!((file.prefixes.len(), file.invalid), (3, 4));
        fs::remove_file(&path).unwrap();
        assert_eq!((file.check(), file.check()), (Read::Kept, Read::Same));
        assert_eq!(file.prefixes.len(), 3);
    }
}
