//! The file of slow events: an SQLite database with bounds on rows, bytes and age.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, params};

use super::event::{Event, Fields, Row};
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
    /// How many rows there are, in this version of the data. Only what others write makes it another version.
    counted: Option<(u64, u64)>,
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

impl Store {
    /// Opens the file, or makes it, readable by its owner alone. One that is damaged is moved aside.
    ///
    /// # Errors
    /// If it cannot be had, or is another program's.
    pub fn open(path: &Path, bounds: Bounds) -> Result<Self, SlowError> {
        let db = database::open(path, &KIND)?;
        let identity = identity(path);
        Ok(Self { db, path: path.to_owned(), bounds, clock: Clock::start(), identity, counted: None })
    }

    /// Adds events, and takes out these rows and what is too much or too old. Returns the rows that were added.
    pub fn write(&mut self, node: &str, events: &[&Event], gone: &[i64]) -> rusqlite::Result<Vec<i64>> {
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
        // Room is made before it is taken, so that the file need not grow first.
        let wanted: u64 = events.iter().map(|event| room(event)).sum();
        let most = bounds.bytes.saturating_sub(wanted.min(bounds.bytes / 2));
        take_oldest_until(most, &begun, &mut count)?;
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
        count = (count + rows.len()).saturating_sub(begun.execute(most, [bounds.rows])?);
        take_oldest_until(bounds.bytes, &begun, &mut count)?;
        begun.commit()?;
        self.counted = Some((version, count as u64));
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

    pub fn rows(&mut self) -> rusqlite::Result<u64> {
        Ok(self.counted()?.1 as u64)
    }

    /// The version of the data and the number of rows, which are only counted if others have written.
    fn counted(&mut self) -> rusqlite::Result<(u64, usize)> {
        let version = pragma(&self.db, "data_version")?;
        let rows = match self.counted {
            Some((known, rows)) if known == version => rows,
            _ => number(&self.db, "SELECT count(*) FROM events")?,
        };
        self.counted = Some((version, rows));
        Ok((version, rows as usize))
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

fn used_bytes(db: &Transaction<'_>) -> rusqlite::Result<u64> {
    Ok((pragma(db, "page_count")? - pragma(db, "freelist_count")?) * pragma(db, "page_size")?)
}

/// Bytes that an event takes of the file, or somewhat more.
fn room(event: &Event) -> u64 {
    let of =
        |fields: &Fields| fields.0.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>();
    let related: usize = event.related.iter().map(|row| of(&row.fields) + row.probe.len() + 64).sum();
    ((of(&event.fields) + related) as u64 + 512).next_multiple_of(1 << 11)
}

/// Takes out the oldest of so many events, a part at a time, until the others need no more bytes than this.
fn take_oldest_until(bytes: u64, db: &Transaction<'_>, count: &mut usize) -> rusqlite::Result<()> {
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

#[cfg(test)]
pub(super) mod tests;
