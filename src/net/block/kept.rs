//! The file of entries added at run time: they survive a restart with their remaining time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::super::cidr::Prefix;
use super::config::{BlockDirection, BlockProtocol, BlockRule, BlockScope, parse_ports};
use super::entry::Asker;
use crate::clock::wall_seconds;
use crate::database::{self, DatabaseError, DatabaseKind, identity};

const KIND: DatabaseKind = DatabaseKind {
    what: "the blocklist's entries",
    setting: "network: { block: { file: ... } }",
    // "fibl".
    application: 0x6669_626c,
    version: 2,
    tables: "
        CREATE TABLE entries (
            prefix TEXT PRIMARY KEY,
            source TEXT NOT NULL,
            reason TEXT NOT NULL,
            protocol TEXT,
            ports TEXT,
            since INTEGER NOT NULL, -- seconds since 1970
            until INTEGER, -- NULL: for good
            direction TEXT -- NULL: that of the list
        );
    ",
    upgrades: &[(1, &["ALTER TABLE entries ADD COLUMN direction TEXT"])],
};

/// The number of bans of each address. Created if missing; versions that do not know the table ignore it.
const BANS: &str = "
    CREATE TABLE IF NOT EXISTS bans (
        prefix TEXT PRIMARY KEY,
        number INTEGER NOT NULL,
        since INTEGER NOT NULL, -- seconds since 1970, like the others
        until INTEGER NOT NULL,
        forgotten INTEGER NOT NULL
    );
    CREATE INDEX IF NOT EXISTS bans_forgotten ON bans (forgotten);
";

/// Addresses whose past bans are stored.
const MAX_PAST_BANS: i64 = 1 << 16;

/// The past bans of an address. Times are in seconds from now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct PastBan {
    pub prefix: Prefix,
    /// The number of bans, the last one included.
    pub number: u32,
    /// When the last ban ends; negative if it has ended.
    pub ends_in: i64,
    /// When the count starts again from zero.
    pub forgotten_in: i64,
}

/// An entry with its remaining time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredEntry {
    pub prefix: Prefix,
    pub by: Asker,
    pub rule: BlockRule,
}

/// The file.
#[derive(Debug)]
pub(super) struct EntryStore {
    db: Connection,
    path: PathBuf,
    /// Device and inode number.
    identity: Option<(u64, u64)>,
}

/// How soon a file that could not be opened or written is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// The configured file, as far as it can be used: another process may lock it for a while, its disk may be full, or not be
/// mounted yet.
#[derive(Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    /// `None` while it cannot be opened.
    store: Option<EntryStore>,
    /// Whether the entries in it are known.
    is_read: bool,
    /// When it was last tried in vain; the file lacks changes since.
    failed: Option<Instant>,
}

impl KeptFile {
    /// Opens the file and reads it.
    pub fn open(path: &Path) -> (Self, Vec<StoredEntry>) {
        let mut file = Self { path: path.to_owned(), store: None, is_read: false, failed: None };
        let kept = file.reopen().unwrap_or_else(|err| {
            log::warn!(
                "blocklist: entries added at run time are not stored, which is tried again every {} s: {err}",
                RETRY_INTERVAL.as_secs()
            );
            // Enough to block what was blocked.
            let kept = read_only(path).and_then(|db| load_from(&db, wall_seconds()));
            file.is_read = kept.is_ok();
            kept.unwrap_or_default()
        });
        if !kept.is_empty() {
            log::info!("blocklist: restored {} entries from {}", kept.len(), path.display());
        }
        (file, kept)
    }

    /// Opens the file if it is not open; returns the entries in it that are not known yet.
    pub fn reopen(&mut self) -> Result<Vec<StoredEntry>, String> {
        let opened = match self.store {
            Some(_) => Ok(Vec::new()),
            None => EntryStore::open(&self.path).map_err(|err| err.to_string()).and_then(|store| {
                let failed = |err| format!("failed to read {}: {err}", self.path.display());
                let kept = if self.is_read { Vec::new() } else { store.load().map_err(failed)? };
                (self.store, self.is_read) = (Some(store), true);
                Ok(kept)
            }),
        };
        if opened.is_err() {
            self.failed = Some(Instant::now());
        }
        opened
    }

    /// Whether the file has everything.
    pub fn is_current(&self) -> bool {
        self.store.is_some() && self.failed.is_none()
    }

    /// Whether it is time to try again.
    pub fn is_due(&self) -> bool {
        !self.is_current() && self.failed.is_none_or(|then| then.elapsed() >= RETRY_INTERVAL)
    }

    /// Changes the file. `all` returns all entries, for a file that was deleted, or that lacks earlier changes.
    pub fn change(
        &mut self,
        all: impl FnOnce() -> Vec<StoredEntry>,
        change: impl FnOnce(&mut EntryStore) -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(store) = &mut self.store else { return Err("its file is not open".to_string()) };
        let done = store.renew().and_then(|renewed| {
            if renewed || self.failed.is_some() {
                store.write(&all(), wall_seconds(), true).map_err(|err| err.to_string())?;
            }
            change(store)
        });
        self.failed = done.is_err().then(Instant::now);
        done
    }

    /// The past bans of all addresses, if the file is open.
    pub fn past_bans(&mut self) -> rusqlite::Result<Vec<PastBan>> {
        self.store.as_mut().map_or(Ok(Vec::new()), EntryStore::past_bans)
    }
}

/// Opens a file for reading that cannot be opened for writing. On a read-only disk, SQLite needs to be told that nothing
/// changes it.
fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    let open = |immutable| {
        let db = database::read_only(path, immutable)?;
        let is_ours = database::pragma(&db, "application_id")? == KIND.application as u64;
        is_ours.then_some(db).ok_or(rusqlite::Error::InvalidQuery)
    };
    open(false).or_else(|_| open(true))
}

/// The entries in a file that have not expired.
fn load_from(db: &Connection, now: i64) -> rusqlite::Result<Vec<StoredEntry>> {
    let columns = "prefix, source, reason, protocol, ports, since, until, direction";
    let mut select =
        db.prepare(&format!("SELECT {columns} FROM entries WHERE until IS NULL OR until > ?"))?;
    let mut rows = select.query([now])?;
    let mut kept = Vec::new();
    while let Some(row) = rows.next()? {
        let (prefix, source): (String, String) = (row.get(0)?, row.get(1)?);
        let (protocol, ports): (Option<String>, Option<String>) = (row.get(3)?, row.get(4)?);
        let (since, until): (i64, Option<i64>) = (row.get(5)?, row.get(6)?);
        let direction: Option<String> = row.get(7)?;
        // A clock that was set back must not extend any entry.
        let remaining = until.map(|until| (until - now).min(until - since).max(1));
        let protocol = protocol.as_deref().and_then(BlockProtocol::of);
        let ports = ports.and_then(|ports| parse_ports(&ports).ok());
        let by = Asker::ALL.into_iter().find(|by| by.word() == source).unwrap_or(Asker::Api);
        let Ok(prefix) = Prefix::parse(&prefix) else { continue };
        let rule = BlockRule {
            reason: row.get(2)?,
            ttl: remaining.map(|seconds| Duration::from_secs(seconds.unsigned_abs())),
            direction: direction.as_deref().and_then(BlockDirection::of),
            scope: protocol.map(|protocol| BlockScope::new(protocol, ports)),
        };
        kept.push(StoredEntry { prefix, by, rule });
    }
    Ok(kept)
}

impl EntryStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// If it cannot be opened, or belongs to another program.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        let db = database::open(path, &KIND)?;
        // An entry is on disk before its request is answered.
        let full = db.pragma_update(None, "synchronous", "FULL").and_then(|()| db.execute_batch(BANS));
        full.map_err(|err| DatabaseError::new(format!("failed to set up {}", path.display()), err, ""))?;
        Ok(Self { db, path: path.to_owned(), identity: identity(path) })
    }

    /// The entries that have not expired.
    pub fn load(&self) -> rusqlite::Result<Vec<StoredEntry>> {
        self.load_at(wall_seconds())
    }

    fn load_at(&self, now: i64) -> rusqlite::Result<Vec<StoredEntry>> {
        self.db.execute("DELETE FROM entries WHERE until <= ?", [now])?;
        load_from(&self.db, now)
    }

    /// Stores entries.
    pub fn put(&mut self, entries: &[StoredEntry]) -> Result<(), String> {
        self.write(entries, wall_seconds(), false).map_err(|err| err.to_string())
    }

    /// Stores entries; with `is_all`, the file has no others afterwards.
    fn write(&mut self, entries: &[StoredEntry], now: i64, is_all: bool) -> rusqlite::Result<()> {
        let begun = self.db.transaction()?;
        if is_all {
            begun.execute("DELETE FROM entries", [])?;
        }
        for StoredEntry { prefix, by, rule } in entries {
            let until = rule.ttl.map(|ttl| now.saturating_add(ttl.as_secs() as i64));
            let protocol = rule.scope.map(|scope| scope.protocol.word());
            let ports = rule.scope.and_then(|scope| scope.port_range());
            let direction = rule.direction.map(BlockDirection::word);
            begun.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                params![prefix.to_string(), by.word(), rule.reason, protocol, ports, now, until, direction],
            )?;
        }
        begun.commit()
    }

    /// Removes entries.
    pub fn remove(&mut self, prefixes: &[Prefix]) -> Result<(), String> {
        self.remove_now(prefixes).map_err(|err| err.to_string())
    }

    fn remove_now(&mut self, prefixes: &[Prefix]) -> rusqlite::Result<()> {
        let begun = self.db.transaction()?;
        for prefix in prefixes {
            begun.execute("DELETE FROM entries WHERE prefix = ?", [prefix.to_string()])?;
        }
        begun.commit()
    }

    /// The past bans of all addresses.
    pub fn past_bans(&mut self) -> rusqlite::Result<Vec<PastBan>> {
        self.past_bans_at(wall_seconds())
    }

    fn past_bans_at(&mut self, now: i64) -> rusqlite::Result<Vec<PastBan>> {
        self.db.execute("DELETE FROM bans WHERE forgotten <= ?", [now])?;
        let mut select =
            self.db.prepare("SELECT prefix, number, since, until, forgotten FROM bans ORDER BY forgotten")?;
        let mut rows = select.query([])?;
        let mut bans = Vec::new();
        while let Some(row) = rows.next()? {
            let (prefix, number): (String, u32) = (row.get(0)?, row.get(1)?);
            let (since, until, forgotten): (i64, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
            let Ok(prefix) = Prefix::parse(&prefix) else { continue };
            // As for entries, a clock that was set back extends nothing.
            let left = |then: i64| (then - now).min(then - since);
            bans.push(PastBan { prefix, number, ends_in: left(until), forgotten_in: left(forgotten) });
        }
        Ok(bans)
    }

    /// Stores the past bans of an address.
    pub fn remember(&mut self, ban: &PastBan) -> Result<(), String> {
        self.remember_at(ban, wall_seconds()).map_err(|err| err.to_string())
    }

    fn remember_at(&mut self, ban: &PastBan, now: i64) -> rusqlite::Result<()> {
        let PastBan { prefix, number, ends_in, forgotten_in } = ban;
        let begun = self.db.transaction()?;
        begun.execute(
            "INSERT OR REPLACE INTO bans VALUES (?, ?, ?, ?, ?)",
            params![
                prefix.to_string(),
                number,
                now,
                now.saturating_add(*ends_in),
                now.saturating_add(*forgotten_in)
            ],
        )?;
        begun.execute("DELETE FROM bans WHERE forgotten <= ?", [now])?;
        // Exceeds the limit by one at most.
        begun.execute(
            "DELETE FROM bans WHERE (SELECT count(*) FROM bans) > ? \
             AND prefix = (SELECT prefix FROM bans ORDER BY forgotten LIMIT 1)",
            [MAX_PAST_BANS],
        )?;
        begun.commit()
    }

    /// Opens the file again if it was deleted or replaced; returns whether it was.
    fn renew(&mut self) -> Result<bool, String> {
        if identity(&self.path) == self.identity {
            return Ok(false);
        }
        *self = Self::open(&self.path).map_err(|err| err.to_string())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_bans_survive_restart_and_expire() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blocklist.db");
        let ban = |prefix: &str, number, ends_in, forgotten_in| PastBan {
            prefix: Prefix::parse(prefix).unwrap(),
            number,
            ends_in,
            forgotten_in,
        };
        let mut store = EntryStore::open(&path).unwrap();
        store.remember_at(&ban("192.0.2.7", 1, 10, 100), 1000).unwrap();
        store.remember_at(&ban("192.0.2.7", 2, 20, 110), 1010).unwrap();
        store.remember_at(&ban("2001:db8::7", 1, 10, 50), 1010).unwrap();
        drop(store);
        let mut store = EntryStore::open(&path).unwrap();
        let expected = [ban("2001:db8::7", 1, -10, 30), ban("192.0.2.7", 2, 0, 90)];
        assert_eq!(store.past_bans_at(1030).unwrap(), expected);
        assert_eq!(
            store.past_bans_at(10).unwrap()[1],
            ban("192.0.2.7", 2, 20, 110),
            "a clock that is set back"
        );
        assert_eq!(store.past_bans_at(1060).unwrap().len(), 1);

        // A file of a version without the table.
        store.db.execute_batch("DROP TABLE bans").unwrap();
        store.write(&[kept("192.0.2.0/24", None)], 1000, false).unwrap();
        drop(store);
        let mut store = EntryStore::open(&path).unwrap();
        assert_eq!((store.load_at(1000).unwrap().len(), store.past_bans_at(1000).unwrap().len()), (1, 0));
    }

    fn kept(prefix: &str, ttl: Option<u64>) -> StoredEntry {
        let scope = Some(BlockScope { protocol: BlockProtocol::Tcp, ports: (22, 23) });
        let direction = ttl.map(|_| BlockDirection::Egress);
        let rule = BlockRule { reason: "a\"b".into(), ttl: ttl.map(Duration::from_secs), direction, scope };
        StoredEntry { prefix: Prefix::parse(prefix).unwrap(), by: Asker::Detection, rule }
    }

    #[test]
    fn entries_survive_restart_with_their_remaining_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/blocklist.db");
        let mut store = EntryStore::open(&path).unwrap();
        let all = [kept("192.0.2.0/24", Some(100)), kept("2001:db8::/32", None), kept("192.0.2.7", Some(10))];
        store.write(&all, 1000, false).unwrap();
        store.write(&[kept("192.0.2.7", Some(20))], 1000, false).unwrap();
        drop(store);
        let mut store = EntryStore::open(&path).unwrap();
        let loaded = |store: &EntryStore, now| {
            let mut loaded = store.load_at(now).unwrap();
            loaded.sort_by_key(|kept| kept.prefix);
            loaded
        };
        let [first, second, third] =
            [kept("192.0.2.0/24", Some(90)), kept("192.0.2.7", Some(10)), kept("2001:db8::/32", None)];
        assert_eq!(loaded(&store, 1010), [first, second, third.clone()]);
        // The clock is set back.
        assert_eq!(loaded(&store, 10)[0], kept("192.0.2.0/24", Some(100)));
        assert_eq!(loaded(&store, 1020), [kept("192.0.2.0/24", Some(80)), third.clone()]);
        store.remove(&[Prefix::parse("192.0.2.0/24").unwrap()]).unwrap();
        assert_eq!(loaded(&store, 1020), std::slice::from_ref(&third));

        drop(store);

        // A file that is deleted while it is open is created again with all entries.
        let (mut file, found) = KeptFile::open(&path);
        assert_eq!(found, std::slice::from_ref(&third));
        std::fs::remove_dir_all(directory.path().join("made")).unwrap();
        file.change(|| vec![third.clone()], |store| store.put(&[kept("::1", None)])).unwrap();
        drop(file);
        let store = EntryStore::open(&path).unwrap();
        assert_eq!(loaded(&store, 1020), [kept("::1", None), third]);
    }

    #[test]
    fn what_could_not_be_stored_is_stored_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blocklist.db");
        let entry = |prefix: &str| kept(prefix, None);
        let add = |file: &mut KeptFile, all: &[StoredEntry], new: &str| {
            file.change(|| all.to_vec(), |store| store.put(&[entry(new)]))
        };
        let stored = || {
            let mut all = EntryStore::open(&path).unwrap().load().unwrap();
            all.sort_by_key(|kept| kept.prefix);
            all.iter().map(|kept| kept.prefix.to_string()).collect::<Vec<_>>()
        };
        let (mut file, _) = KeptFile::open(&path);
        add(&mut file, &[], "192.0.2.1").unwrap();

        // Another process locks it for a while.
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        add(&mut file, &[], "192.0.2.2").unwrap_err();
        assert!(!file.is_current());
        other.execute_batch("ROLLBACK").unwrap();
        add(&mut file, &[entry("192.0.2.1"), entry("192.0.2.2")], "192.0.2.3").unwrap();
        assert!(file.is_current());
        drop(file);
        assert_eq!(stored(), ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"]);

        // It is locked when it is opened: the entries are known all the same.
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (mut file, found) = KeptFile::open(&path);
        assert_eq!((found.len(), file.is_current()), (3, false));
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(file.reopen(), Ok(Vec::new()));
        file.change(|| found[..2].to_vec(), |_| Ok(())).unwrap();
        drop(file);
        assert_eq!(stored().len(), 2);
        drop(other);

        // Its disk is not mounted yet.
        let elsewhere = directory.path().join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        std::fs::create_dir(&path).unwrap();
        let (mut file, found) = KeptFile::open(&path);
        assert_eq!((found.len(), file.is_current()), (0, false));
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&elsewhere, &path).unwrap();
        assert_eq!(file.reopen().unwrap().len(), 2);
    }

    #[test]
    fn migrates_a_file_without_directions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blocklist.db");
        let before = Connection::open(&path).unwrap();
        let (columns, _) = KIND.tables.split_once("until INTEGER").unwrap();
        before.execute_batch(&format!("{columns} until INTEGER)")).unwrap();
        before
            .execute_batch("INSERT INTO entries VALUES ('192.0.2.7/32', 'api', 'x', NULL, NULL, 1, NULL)")
            .unwrap();
        before.pragma_update(None, "application_id", KIND.application).unwrap();
        before.pragma_update(None, "user_version", 1).unwrap();
        drop(before);
        let mut store = EntryStore::open(&path).unwrap();
        let [only] = &store.load().unwrap()[..] else { panic!("one entry") };
        assert_eq!((only.rule.direction, only.by), (None, Asker::Api));
        store.write(&[kept("192.0.2.8", Some(10))], 1000, false).unwrap();
        assert_eq!(store.load_at(1000).unwrap().len(), 2);
    }
}
