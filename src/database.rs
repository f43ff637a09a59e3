//! SQLite databases of the exporter, readable only by their owner.

use std::error::Error;
use std::fmt::{self, Write};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::clock::wall_seconds;

/// How long one process waits for another one that is writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Larger files are not checked completely before they are used.
const CHECKED_BYTES: u64 = 256 << 20;

/// The content of a file.
#[derive(Debug)]
pub(crate) struct DatabaseKind {
    /// In words: "slow events".
    pub what: &'static str,
    /// The setting with the path of the file.
    pub setting: &'static str,
    /// The application id of the database, for `file(1)` and for the exporter itself.
    pub application: i32,
    /// The version of the tables.
    pub version: i32,
    pub tables: &'static str,
    /// Upgrades from earlier versions: statements that convert a file of that version into the current one.
    pub upgrades: &'static [(u64, &'static [&'static str])],
}

/// Why a file cannot be used.
#[derive(Debug)]
pub struct DatabaseError {
    what: String,
    source: Option<rusqlite::Error>,
    next: String,
}

impl DatabaseError {
    pub(crate) fn new(what: String, source: rusqlite::Error, next: impl Into<String>) -> Self {
        Self { what, source: Some(source), next: next.into() }
    }

    pub(crate) fn without_source(what: String, next: impl Into<String>) -> Self {
        Self { what, source: None, next: next.into() }
    }
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if !self.next.is_empty() {
            write!(f, "; {}", self.next)?;
        }
        Ok(())
    }
}

impl Error for DatabaseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// Why an existing file cannot be used.
enum Unusable {
    /// It is renamed.
    Damaged(String),
    /// It is left unchanged.
    Foreign(DatabaseError),
    Error(rusqlite::Error),
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Damaged(error.to_string()) } else { Self::Error(error) }
    }
}

/// Whether the error means that the database is damaged.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// The identity of the file at a path: device and inode.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|data| (data.dev(), data.ino()))
}

pub(crate) fn pragma(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    number(db, &format!("PRAGMA {name}"))
}

/// The result of a query that counts.
pub(crate) fn number(db: &Connection, query: &str) -> rusqlite::Result<u64> {
    db.query_row(query, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

/// Opens a file of this kind, or creates it. A damaged file is renamed.
///
/// # Errors
/// If it cannot be opened, or belongs to another program.
pub(crate) fn open(path: &Path, kind: &DatabaseKind) -> Result<Connection, DatabaseError> {
    let db = match connect(path, kind) {
        Err(Unusable::Damaged(reason)) => {
            let aside = set_aside(path, kind)?;
            log::warn!(
                "The file of {} {} is damaged ({reason}): it was renamed to {}, and a new one was created",
                kind.what,
                path.display(),
                aside.display()
            );
            connect(path, kind)
        }
        other => other,
    };
    let what = || format!("failed to open the file of {} {}", kind.what, path.display());
    db.map_err(|unusable| match unusable {
        Unusable::Foreign(err) => err,
        Unusable::Error(err) => DatabaseError::new(what(), err, kind.next()),
        Unusable::Damaged(reason) => {
            DatabaseError::without_source(format!("{}: {reason}", what()), kind.next())
        }
    })
}

/// Checks that [`open`] can succeed, as far as possible without creating or changing anything, and regardless of
/// permissions: the caller may be a different user from the exporter's.
///
/// # Errors
/// As [`open`].
pub(crate) fn check(path: &Path, kind: &DatabaseKind) -> Result<(), DatabaseError> {
    reach(path, kind, false)?;
    // Another exporter may be using the file. One that is damaged, locked or not there yet is no error.
    let foreign = read_only(path, true).map_err(Unusable::from).and_then(|db| version_of(&db, path, kind));
    match foreign {
        Err(Unusable::Foreign(err)) => Err(err),
        _ => Ok(()),
    }
}

/// Opens an existing file for reading. With `immutable`, SQLite assumes that nothing changes it and leaves nothing
/// beside it.
pub(crate) fn read_only(path: &Path, immutable: bool) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte))
            }
            byte => {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    uri.push_str(if immutable { "?immutable=1" } else { "" });
    let db = Connection::open_with_flags(uri, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    Ok(db)
}

/// The version of the tables; `None` if there are none yet.
///
/// # Errors
/// If they are another program's, or those of a version that cannot be used.
fn version_of(db: &Connection, path: &Path, kind: &DatabaseKind) -> Result<Option<u64>, Unusable> {
    let foreign = |what: &str| {
        let next = format!("set {} to another path", kind.setting);
        Unusable::Foreign(DatabaseError::without_source(format!("{} {what}", path.display()), next))
    };
    if number(db, "SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(None);
    }
    if pragma(db, "application_id")? != kind.application as u64 {
        return Err(foreign("is a database of another program"));
    }
    let version = pragma(db, "user_version")?;
    if version != kind.version as u64 && kind.upgrade_from(version).is_none() {
        return Err(foreign("was made by another version of the exporter"));
    }
    Ok(Some(version))
}

impl DatabaseKind {
    fn upgrade_from(&self, version: u64) -> Option<&'static [&'static str]> {
        self.upgrades.iter().find(|(from, _)| *from == version).map(|(_, steps)| *steps)
    }

    fn next(&self) -> String {
        format!("see {} in the configuration", self.setting)
    }
}

fn connect(path: &Path, kind: &DatabaseKind) -> Result<Connection, Unusable> {
    reach(path, kind, true).map_err(Unusable::Foreign)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    // It is a new file until it has tables; two exporters may create them at the same time.
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    let begun = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match version_of(&begun, path, kind)? {
        None => {
            begun.execute_batch(kind.tables)?;
            begun.pragma_update(None, "application_id", kind.application)?;
            begun.pragma_update(None, "user_version", kind.version)?;
        }
        Some(version) => {
            if let Some(steps) = kind.upgrade_from(version) {
                steps.iter().try_for_each(|step| begun.execute_batch(step))?;
                begun.pragma_update(None, "user_version", kind.version)?;
            }
        }
    }
    begun.commit()?;
    // The directory of temporary files may belong to others.
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.pragma_update(None, "synchronous", "NORMAL")?;
    db.pragma_update(None, "journal_size_limit", 1 << 20)?;
    // In pages of the write-ahead log, 1 MiB altogether.
    db.pragma_update(None, "wal_autocheckpoint", 256)?;
    let size = path.metadata().map_or(0, |data| data.len());
    if size <= CHECKED_BYTES {
        let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            return Err(Unusable::Damaged(found.lines().last().unwrap_or_default().to_owned()));
        }
    }
    Ok(db)
}

/// Creates the file and its directory if necessary, readable only by their owner. Without `create`, only checks whether
/// that is possible.
fn reach(path: &Path, kind: &DatabaseKind, create: bool) -> Result<(), DatabaseError> {
    let ignored = |err: &io::Error| match err.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied => !create,
        _ => false,
    };
    let failed = |what: &str, err: io::Error| {
        let what = format!("failed to {what} of {} {}: {err}", kind.what, path.display());
        Err(DatabaseError::without_source(what, kind.next()))
    };
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    if let Some(directory) = directory.filter(|directory| !directory.exists()) {
        let made = if create {
            DirBuilder::new().mode(0o700).create(directory)
        } else {
            let above = directory.parent().filter(|above| !above.as_os_str().is_empty());
            above.map_or(Ok(()), |above| above.metadata().map(drop))
        };
        made.or_else(|err| failed("make the directory for the file", err))?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| file.metadata());
    match file {
        Ok(data) if data.is_file() => Ok(()),
        Ok(_) => Err(DatabaseError::without_source(
            format!("{} is not a regular file", path.display()),
            kind.next(),
        )),
        Err(err) if ignored(&err) => Ok(()),
        Err(err) => failed("open the file", err),
    }
}

/// Renames the file, with its log, to an unused name.
fn set_aside(path: &Path, kind: &DatabaseKind) -> Result<PathBuf, DatabaseError> {
    let with = |path: &Path, suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let now = wall_seconds();
    let aside =
        (0..).map(|more| with(path, &format!(".damaged-{}", now + more))).find(|aside| !aside.exists());
    let aside = aside.unwrap_or_default();
    std::fs::rename(path, &aside).map_err(|err| {
        let what = format!("failed to move the damaged file {} aside: {err}", path.display());
        DatabaseError::without_source(what, kind.next())
    })?;
    for log in ["-wal", "-shm"] {
        // They may not exist.
        let _ = std::fs::rename(with(path, log), with(&aside, log));
    }
    Ok(aside)
}
