//! The file of slow events: an SQLite database limited in rows, bytes and age.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, params};

use super::event::{EventFields, EventRecord, StoredEvent};
use crate::clock::wall;
use crate::config::model::SlowEvents;
pub use crate::database::DatabaseError as SlowError;
pub(super) use crate::database::is_damage;
use crate::database::{self, DatabaseKind, identity, number, pragma};

const KIND: DatabaseKind = DatabaseKind {
    what: "slow events",
    setting: "slow_events: { file: ... }",
    // "fibe".
    application: 0x6669_6265,
    version: 2,
    tables: TABLES,
    upgrades: &[(1, &[UPGRADE, TABLES, UPGRADED])],
};

/// Upgrades from version 1, which had only events above a bound.
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

/// The limits of the file.
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

/// The database, open for writing.
#[derive(Debug)]
pub(super) struct EventStore {
    db: Connection,
    path: PathBuf,
    pub bounds: Bounds,
    clock: Clock,
    /// The identity of the open file: device and inode.
    identity: Option<(u64, u64)>,
    /// The data version, and the number of rows in it. Only writes by other connections change the version.
    counted: Option<(u64, u64)>,
}

/// The clock for expiry, in nanoseconds since 1970: setting the system clock ahead while the exporter runs does not
/// expire anything.
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

/// Checks that [`EventStore::open`] can succeed, without creating the file.
///
/// # Errors
/// As [`EventStore::open`].
pub(super) fn check(path: &Path) -> Result<(), SlowError> {
    database::check(path, &KIND)
}

impl EventStore {
    /// Opens or creates the file, readable by its owner only. A damaged file is moved aside.
    ///
    /// # Errors
    /// If it cannot be opened or created, or belongs to another program.
    pub fn open(path: &Path, bounds: Bounds) -> Result<Self, SlowError> {
        let db = database::open(path, &KIND)?;
        let identity = identity(path);
        Ok(Self { db, path: path.to_owned(), bounds, clock: Clock::start(), identity, counted: None })
    }

    /// Adds events, and deletes the rows `gone` and whatever exceeds the limits. Returns the IDs of the new rows.
    pub fn write(&mut self, node: &str, events: &[&EventRecord], gone: &[i64]) -> rusqlite::Result<Vec<i64>> {
        let oldest =
            self.clock.now().saturating_sub(i64::try_from(self.bounds.age.as_nanos()).unwrap_or(i64::MAX));
        let bounds = self.bounds;
        let (version, mut count) = self.counted()?;
        let begun = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        count = count.saturating_sub(begun.execute("DELETE FROM events WHERE time < ?", [oldest])?);
        {
            let mut delete = begun.prepare("DELETE FROM events WHERE id = ?")?;
            for row in gone {
                count = count.saturating_sub(delete.execute([row])?);
            }
        }
        // Free the space before using it, so that the file need not grow first.
        let wanted: u64 = events.iter().map(|event| room(event)).sum();
        let most = bounds.bytes.saturating_sub(wanted.min(bounds.bytes / 2));
        evict_oldest_until(most, &begun, &mut count)?;
        let mut rows = Vec::with_capacity(events.len());
        {
            let mut insert = begun.prepare(
                "INSERT INTO events (time, node, target, probe, metric, value, over, worst, fields, related) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?;
            for event in events {
                let EventRecord { time, target, probe, metric, value, over, worst, fields, related, .. } =
                    event;
                let related = serde_json::to_string(related).unwrap_or_default();
                let fields = serde_json::to_string(fields).unwrap_or_default();
                let values = params![time, node, target, probe, metric, value, over, worst, fields, related];
                rows.push(insert.insert(values)?);
            }
        }
        let most = "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?";
        count = (count + rows.len()).saturating_sub(begun.execute(most, [bounds.rows])?);
        evict_oldest_until(bounds.bytes, &begun, &mut count)?;
        begun.commit()?;
        self.counted = Some((version, count as u64));
        if pragma(&self.db, "freelist_count")? > 0 && self.file_bytes()? > bounds.bytes {
            // Each returned row is a page that was freed.
            let mut vacuum = self.db.prepare("PRAGMA incremental_vacuum")?;
            let mut pages = vacuum.query([])?;
            while pages.next()?.is_some() {}
        }
        Ok(rows)
    }

    /// Whether the file was deleted or replaced, so that anything written to the open one would be lost.
    pub fn is_gone(&self) -> bool {
        identity(&self.path) != self.identity
    }

    /// Opens the file again; a damaged one is moved aside and a new one created.
    pub fn renew(&mut self) -> Result<(), SlowError> {
        *self = Self::open(&self.path, self.bounds)?;
        Ok(())
    }

    pub fn rows(&mut self) -> rusqlite::Result<u64> {
        Ok(self.counted()?.1 as u64)
    }

    /// Returns the data version and the number of rows. Rows are counted only if another connection has written.
    fn counted(&mut self) -> rusqlite::Result<(u64, usize)> {
        let version = pragma(&self.db, "data_version")?;
        let rows = match self.counted {
            Some((known, rows)) if known == version => rows,
            _ => number(&self.db, "SELECT count(*) FROM events")?,
        };
        self.counted = Some((version, rows));
        Ok((version, rows as usize))
    }

    /// The size of the database, without the write-ahead log.
    pub fn file_bytes(&self) -> rusqlite::Result<u64> {
        Ok(pragma(&self.db, "page_count")? * pragma(&self.db, "page_size")?)
    }

    /// Returns the latest events, latest first.
    pub fn latest(&self, most: usize) -> rusqlite::Result<Vec<StoredEvent>> {
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

fn used_bytes(db: &Transaction<'_>) -> rusqlite::Result<u64> {
    Ok((pragma(db, "page_count")? - pragma(db, "freelist_count")?) * pragma(db, "page_size")?)
}

/// Returns an upper estimate of the space that an event takes in the file, in bytes.
fn room(event: &EventRecord) -> u64 {
    let of = |fields: &EventFields| {
        fields.0.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>()
    };
    let related: usize = event.related.iter().map(|row| of(&row.fields) + row.probe.len() + 64).sum();
    ((of(&event.fields) + related) as u64 + 512).next_multiple_of(1 << 11)
}

/// Deletes the oldest of `count` events, a fraction at a time, until the rest takes no more than `bytes`.
fn evict_oldest_until(bytes: u64, db: &Transaction<'_>, count: &mut usize) -> rusqlite::Result<()> {
    while used_bytes(db)? > bytes {
        let some = "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?)";
        let taken = db.execute(some, [(*count as i64 / 16).max(1)])?;
        if taken == 0 {
            break;
        }
        *count = count.saturating_sub(taken);
    }
    Ok(())
}

/// Calls `each` for the events since `since`, latest first, until it returns false.
pub(super) fn scan(
    db: &Connection,
    since: i64,
    mut each: impl FnMut(StoredEvent) -> bool,
) -> rusqlite::Result<()> {
    // The file was written by an earlier version and not opened for writing since.
    let worst = if pragma(db, "user_version")? == 1 { "NULL" } else { "worst" };
    let mut select = db.prepare(&format!(
        "SELECT id, time, node, target, probe, metric, value, over, {worst}, fields, related FROM events WHERE time >= ? ORDER BY id DESC",
    ))?;
    let mut rows = select.query([since])?;
    while let Some(row) = rows.next()? {
        let (fields, related): (String, String) = (row.get(9)?, row.get(10)?);
        let event = EventRecord {
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
        if !each(StoredEvent { id: row.get(0)?, node: row.get(2)?, event }) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
