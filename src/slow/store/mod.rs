//! The file of slow events: an SQLite database with bounds on rows, bytes and age.

use std::error::Error;
use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, params};

use super::event::{Event, Fields, Row};
use crate::config::model::SlowEvents;

/// "fibe": marks a database as the exporter's, for `file(1)` and for the exporter itself.
const APPLICATION: i32 = 0x6669_6265;
/// Of the tables.
const VERSION: i32 = 2;

/// How long one process waits for another that writes.
const PATIENCE: Duration = Duration::from_secs(2);

/// A larger file is not read as a whole before it is used.
const CHECKED_BYTES: u64 = 256 << 20;

/// From version 1, which had only events above a bound.
const UPGRADE: &str = "
    DROP INDEX events_by_time;
    ALTER TABLE events RENAME TO earlier;
";
const UPGRADED: &str = "
    INSERT INTO events SELECT id, time, node, target, probe, metric, value, over, NULL, fields, related FROM earlier;
    DROP TABLE earlier;
";

const TABLES: &str = "
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time INTEGER NOT NULL, -- nanoseconds since 1970
        node TEXT NOT NULL,
        target TEXT NOT NULL,
        probe TEXT NOT NULL,
        metric TEXT NOT NULL,
        value REAL NOT NULL,
        over REAL, -- the bound, if there is one
        worst INTEGER, -- one of so many of its hour
        fields TEXT NOT NULL, -- a JSON object of texts
        related TEXT NOT NULL DEFAULT '[]' -- a JSON array
    );
    CREATE INDEX events_by_time ON events (time);
";

/// Why the file cannot be used.
#[derive(Debug)]
pub struct SlowError {
    what: String,
    source: Option<rusqlite::Error>,
    next: &'static str,
}

impl SlowError {
    pub(super) fn new(what: String, source: rusqlite::Error, next: &'static str) -> Self {
        Self { what, source: Some(source), next }
    }

    pub(super) fn told(what: String, next: &'static str) -> Self {
        Self { what, source: None, next }
    }
}

impl fmt::Display for SlowError {
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

impl Error for SlowError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// Bounds of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub rows: u32,
    pub bytes: u64,
    pub age: Duration,
}

impl Bounds {
    pub(super) fn of(settings: &SlowEvents) -> Self {
        Self { rows: settings.rows, bytes: settings.bytes, age: settings.age }
    }
}

/// The database, open to be written.
#[derive(Debug)]
pub(super) struct Store {
    db: Connection,
    path: PathBuf,
    pub bounds: Bounds,
    clock: Clock,
    /// Which file it is: device and inode.
    identity: Option<(u64, u64)>,
}

/// Time for what is too old, in nanoseconds since 1970: a clock that is set ahead while the exporter runs makes nothing old.
#[derive(Debug)]
struct Clock {
    wall: i64,
    at: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { wall: wall(), at: Instant::now() }
    }

    fn now(&self) -> i64 {
        self.now_with(wall())
    }

    fn now_with(&self, wall: i64) -> i64 {
        let passed = i64::try_from(self.at.elapsed().as_nanos()).unwrap_or(i64::MAX);
        self.wall.saturating_add(passed).min(wall)
    }
}

/// Nanoseconds since 1970.
pub(super) fn wall() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// What keeps an existing file from being used.
enum Unusable {
    /// It is moved aside.
    Damaged(String),
    /// It is left alone.
    Foreign(SlowError),
    Error(rusqlite::Error),
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Damaged(error.to_string()) } else { Self::Error(error) }
    }
}

/// Whether the database itself is at fault.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

impl Store {
    /// Opens the file, or makes it, readable by its owner alone. One that is damaged is moved aside.
    ///
    /// # Errors
    /// If it cannot be had, or is another program's.
    pub fn open(path: &Path, bounds: Bounds) -> Result<Self, SlowError> {
        let db = match Self::connect(path) {
            Err(Unusable::Damaged(reason)) => {
                let aside = set_aside(path)?;
                log::warn!(
                    "The file of slow events {} is damaged ({reason}): it is kept as {}, and a new one is begun",
                    path.display(),
                    aside.display()
                );
                Self::connect(path)
            }
            other => other,
        };
        let what = || format!("failed to open the file of slow events {}", path.display());
        match db {
            Ok(db) => {
                let (path, identity, clock) = (path.to_owned(), identity(path), Clock::start());
                Ok(Self { db, path, bounds, clock, identity })
            }
            Err(Unusable::Foreign(err)) => Err(err),
            Err(Unusable::Error(err)) => Err(SlowError::new(what(), err, NEXT)),
            Err(Unusable::Damaged(reason)) => Err(SlowError::told(format!("{}: {reason}", what()), NEXT)),
        }
    }

    fn connect(path: &Path) -> Result<Connection, Unusable> {
        create(path).map_err(Unusable::Foreign)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(PATIENCE)?;
        let foreign = |what: &str| {
            let what = format!("{} {what}", path.display());
            Unusable::Foreign(SlowError::told(what, "set slow_events: { file: ... } to another path"))
        };
        // It is a new file until there are tables; two exporters may meet here.
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        let begun = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let tables: i64 = begun.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            begun.execute_batch(TABLES)?;
            begun.pragma_update(None, "application_id", APPLICATION)?;
            begun.pragma_update(None, "user_version", VERSION)?;
        } else if pragma(&begun, "application_id")? != APPLICATION as u64 {
            return Err(foreign("is a database of another program"));
        } else {
            match pragma(&begun, "user_version")? {
                1 => {
                    [UPGRADE, TABLES, UPGRADED].iter().try_for_each(|step| begun.execute_batch(step))?;
                    begun.pragma_update(None, "user_version", VERSION)?;
                }
                version if version == VERSION as u64 => {}
                _ => return Err(foreign("was made by another version of the exporter")),
            }
        }
        begun.commit()?;
        // The directory of temporary files may not be one's own.
        db.pragma_update(None, "temp_store", "MEMORY")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "journal_size_limit", 1 << 20)?;
        // Pages of the write-ahead log, 1 MiB of them.
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

    /// Adds events, and takes out these rows and what is too much or too old. Returns the rows that were added.
    pub fn write(&mut self, node: &str, events: &[&Event], gone: &[i64]) -> rusqlite::Result<Vec<i64>> {
        let oldest =
            self.clock.now().saturating_sub(i64::try_from(self.bounds.age.as_nanos()).unwrap_or(i64::MAX));
        let bounds = self.bounds;
        let begun = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        begun.prepare("DELETE FROM events WHERE time < ?")?.execute([oldest])?;
        for row in gone {
            begun.prepare("DELETE FROM events WHERE id = ?")?.execute([row])?;
        }
        // Room is made before it is taken, so that the file need not grow first.
        let wanted: u64 = events.iter().map(|event| room(event)).sum();
        let most = bounds.bytes.saturating_sub(wanted.min(bounds.bytes / 2));
        while used_bytes(&begun)? > most && take_oldest(&begun)? > 0 {}
        let mut rows = Vec::with_capacity(events.len());
        {
            let mut insert = begun.prepare(
                "INSERT INTO events (time, node, target, probe, metric, value, over, worst, fields, related) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?;
            for event in events {
                let Event { time, target, probe, metric, value, over, worst, fields, related, .. } = event;
                let related = serde_json::to_string(related).unwrap_or_default();
                let fields = serde_json::to_string(fields).unwrap_or_default();
                let values = params![time, node, target, probe, metric, value, over, worst, fields, related];
                rows.push(insert.insert(values)?);
            }
        }
        let most = "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?";
        begun.prepare(most)?.execute([bounds.rows])?;
        while used_bytes(&begun)? > bounds.bytes && take_oldest(&begun)? > 0 {}
        begun.commit()?;
        if pragma(&self.db, "freelist_count")? > 0 && self.file_bytes()? > bounds.bytes {
            // Each row that it gives is a page given back.
            let mut vacuum = self.db.prepare("PRAGMA incremental_vacuum")?;
            let mut pages = vacuum.query([])?;
            while pages.next()?.is_some() {}
        }
        Ok(rows)
    }

    /// Whether the file was deleted or exchanged, so that nobody would find what is written to the open one.
    pub fn is_gone(&self) -> bool {
        identity(&self.path) != self.identity
    }

    /// Opens the file again, or begins a new one beside it if it is damaged.
    pub fn renew(&mut self) -> Result<(), SlowError> {
        *self = Self::open(&self.path, self.bounds)?;
        Ok(())
    }

    pub fn rows(&self) -> rusqlite::Result<u64> {
        number(&self.db, "SELECT count(*) FROM events")
    }

    /// Of the database, without its log.
    pub fn file_bytes(&self) -> rusqlite::Result<u64> {
        Ok(pragma(&self.db, "page_count")? * pragma(&self.db, "page_size")?)
    }

    /// The latest events, the last one first.
    pub fn latest(&self, most: usize) -> rusqlite::Result<Vec<Row>> {
        let mut found = Vec::new();
        scan(&self.db, i64::MIN, |row| {
            found.push(row);
            found.len() < most
        })?;
        Ok(found)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

const NEXT: &str = "see slow_events: { file: ... } in the configuration";

fn pragma(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    number(db, &format!("PRAGMA {name}"))
}

/// What a query gives that counts.
fn number(db: &Connection, query: &str) -> rusqlite::Result<u64> {
    db.query_row(query, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

fn used_bytes(db: &Transaction<'_>) -> rusqlite::Result<u64> {
    Ok((pragma(db, "page_count")? - pragma(db, "freelist_count")?) * pragma(db, "page_size")?)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|data| (data.dev(), data.ino()))
}

/// Bytes that an event takes of the file, or somewhat more.
fn room(event: &Event) -> u64 {
    let of =
        |fields: &Fields| fields.0.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>();
    let related: usize = event.related.iter().map(|row| of(&row.fields) + row.probe.len() + 64).sum();
    ((of(&event.fields) + related) as u64 + 512).next_multiple_of(1 << 11)
}

/// Takes out a part of the events, the oldest; returns how many.
fn take_oldest(db: &Transaction<'_>) -> rusqlite::Result<usize> {
    let all: i64 = db.query_row("SELECT count(*) FROM events", [], |row| row.get(0))?;
    let some = "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?)";
    db.prepare(some)?.execute([(all / 16).max(1)])
}

/// Calls `each` with the events since then, the last one first, until it returns false.
pub(super) fn scan(db: &Connection, since: i64, mut each: impl FnMut(Row) -> bool) -> rusqlite::Result<()> {
    // Of a file that nobody has opened since an earlier version wrote it.
    let worst = if pragma(db, "user_version")? == 1 { "NULL" } else { "worst" };
    let mut select = db.prepare(&format!(
        "SELECT id, time, node, target, probe, metric, value, over, {worst}, fields, related FROM events WHERE time >= ? ORDER BY id DESC",
    ))?;
    let mut rows = select.query([since])?;
    while let Some(row) = rows.next()? {
        let (fields, related): (String, String) = (row.get(9)?, row.get(10)?);
        let event = Event {
            time: row.get(1)?,
            target: row.get(3)?,
            probe: row.get(4)?,
            metric: row.get(5)?,
            value: row.get(6)?,
            over: row.get(7)?,
            worst: row.get(8)?,
            fields: serde_json::from_str(&fields).unwrap_or_default(),
            related: serde_json::from_str(&related).unwrap_or_default(),
            wanted: None,
            ranked: None,
        };
        if !each(Row { id: row.get(0)?, node: row.get(2)?, event }) {
            break;
        }
    }
    Ok(())
}

/// Makes the file if it is not there, and its directory. Nobody else may read what is in it: arguments of a program.
fn create(path: &Path) -> Result<(), SlowError> {
    let failed = |what: &str, err: std::io::Error| {
        SlowError::told(format!("failed to {what} of slow events {}: {err}", path.display()), NEXT)
    };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
        && !directory.exists()
    {
        DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .map_err(|err| failed("make the directory for the file", err))?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| file.metadata());
    match file {
        Ok(data) if data.is_file() => Ok(()),
        Ok(_) => Err(SlowError::told(format!("{} is not a regular file", path.display()), NEXT)),
        Err(err) => Err(failed("open the file", err)),
    }
}

/// Moves the file, with its log, to a name that is free.
fn set_aside(path: &Path) -> Result<PathBuf, SlowError> {
    let with = |path: &Path, suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let now = wall() / 1_000_000_000;
    let aside =
        (0..).map(|more| with(path, &format!(".damaged-{}", now + more))).find(|aside| !aside.exists());
    let aside = aside.unwrap_or_default();
    std::fs::rename(path, &aside).map_err(|err| {
        SlowError::told(format!("failed to move the damaged file {} aside: {err}", path.display()), NEXT)
    })?;
    for log in ["-wal", "-shm"] {
        // They may not be there.
        let _ = std::fs::rename(with(path, log), with(&aside, log));
    }
    Ok(aside)
}

#[cfg(test)]
pub(super) mod tests;
