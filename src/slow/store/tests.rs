//! Tests of limits, damaged files and clocks.

use std::os::unix::fs::PermissionsExt;

use super::*;

pub(in super::super) fn event(time: i64, value: f64, text: &str) -> EventRecord {
    EventRecord {
        time,
        target: "t".into(),
        probe: "p:q".into(),
        metric: "m_seconds".into(),
        value,
        over: Some(0.5),
        worst: None,
        fields: EventFields(vec![("z".into(), text.into()), ("a".into(), "1".into())]),
        related: Vec::new(),
        wanted: None,
        ranked: None,
    }
}

const WIDE: Bounds = Bounds { rows: 1000, bytes: 64 << 20, age: Duration::from_secs(3600) };

fn values(store: &EventStore) -> Vec<f64> {
    store.latest(usize::MAX).unwrap().iter().map(|row| row.event.value).collect()
}

fn write(store: &mut EventStore, events: &[EventRecord]) {
    store.write("n", &events.iter().collect::<Vec<_>>(), &[]).unwrap();
    assert_eq!(store.rows().unwrap(), values(store).len() as u64);
}

#[test]
fn events_survive_reopening_and_are_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made/events.db");
    let mut store = EventStore::open(&path, WIDE).unwrap();
    let now = wall();
    let events = [event(now, 1.5, "tab\tand \"quote\""), event(now + 1, 2.5, "é")];
    write(&mut store, &events);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
    // Next to the first one; it may belong to another exporter.
    let mut other = EventStore::open(&path, WIDE).unwrap();
    write(&mut other, &[event(now + 2, 3.5, "")]);
    write(&mut store, &[event(now + 3, 4.5, "")]);
    assert_eq!(values(&other), [4.5, 3.5, 2.5, 1.5]);
    assert_eq!(other.rows().unwrap(), 4);
    drop((store, other));
    let mut store = EventStore::open(&path, WIDE).unwrap();
    let rows = store.latest(10).unwrap();
    assert_eq!(rows[3].event, events[0]);
    assert_eq!((rows[3].id, rows[3].node.as_str()), (1, "n"));
    assert_eq!(store.rows().unwrap(), 4);
}

/// A version 1 file, which had only events above a bound.
const FIRST: &str = "
    CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, node TEXT NOT NULL, target TEXT NOT NULL,
        probe TEXT NOT NULL, metric TEXT NOT NULL, value REAL NOT NULL, over REAL NOT NULL, fields TEXT NOT NULL,
        related TEXT NOT NULL DEFAULT '[]');
    CREATE INDEX events_by_time ON events (time);
    INSERT INTO events (time, node, target, probe, metric, value, over, fields) VALUES
        (9000000000000000000, 'n', 't', 'p:q', 'm_seconds', 1.5, 0.5, '{\"z\":\"x\",\"a\":\"1\"}');
";

#[test]
fn migrates_a_file_of_the_first_version() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("e.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(FIRST).unwrap();
    db.pragma_update(None, "application_id", KIND.application).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    let first = event(9_000_000_000_000_000_000, 1.5, "x");
    let mut seen = Vec::new();
    scan(&db, i64::MIN, |row| {
        seen.push(row.event);
        true
    })
    .unwrap();
    assert_eq!(seen, std::slice::from_ref(&first));
    drop(db);
    let mut store = EventStore::open(&path, WIDE).unwrap();
    let worst = EventRecord { over: None, worst: Some(20), ..event(wall(), 2.5, "") };
    write(&mut store, std::slice::from_ref(&worst));
    let rows: Vec<_> = store.latest(9).unwrap().into_iter().map(|row| (row.id, row.event)).collect();
    assert_eq!(rows, [(2, worst), (1, first)]);
    drop(store);
    assert_eq!(values(&EventStore::open(&path, WIDE).unwrap()), [2.5, 1.5]);
}

#[test]
fn removes_rows_by_id() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = EventStore::open(&directory.path().join("e.db"), WIDE).unwrap();
    let events: Vec<_> = (0..3).map(|n| event(wall(), f64::from(n), "")).collect();
    let rows = store.write("n", &events.iter().collect::<Vec<_>>(), &[]).unwrap();
    assert_eq!(rows, [1, 2, 3]);
    assert_eq!(store.write("n", &[&events[0]], &[rows[1], 77]).unwrap(), [4]);
    assert_eq!(values(&store), [0.0, 2.0, 0.0]);
}

#[test]
fn removes_rows_beyond_count_or_age() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = EventStore::open(&directory.path().join("e.db"), Bounds { rows: 3, ..WIDE }).unwrap();
    let now = wall();
    let all: Vec<_> = (0..5).map(|n| event(now + n, n as f64, "")).collect();
    write(&mut store, &all);
    assert_eq!(values(&store), [4.0, 3.0, 2.0]);
    let old = now - Duration::from_secs(3700).as_nanos() as i64;
    write(&mut store, &[event(old, 5.0, ""), event(now, 6.0, "")]);
    // Its expiry is noticed at the next write.
    assert_eq!(values(&store), [6.0, 5.0, 4.0]);
    write(&mut store, &[]);
    assert_eq!(values(&store), [6.0, 4.0]);
}

#[test]
fn file_size_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("e.db");
    let bounds = Bounds { rows: 1_000_000, bytes: 1 << 20, ..WIDE };
    let mut store = EventStore::open(&path, bounds).unwrap();
    let now = wall();
    let text = "x".repeat(2000);
    for batch in 0..30 {
        let events: Vec<_> = (0..50).map(|n| event(now, f64::from(batch * 50 + n), &text)).collect();
        write(&mut store, &events);
        assert!(store.file_bytes().unwrap() <= bounds.bytes + (100 << 10), "{}", store.file_bytes().unwrap());
    }
    let kept = values(&store);
    assert!(kept.len() > 200 && kept.len() < 300, "{}", kept.len());
    // The latest ones, without gaps.
    assert!(kept.iter().rev().zip(1500 - kept.len()..).all(|(value, n)| *value == n as f64));
    // A lowered limit applies to existing rows.
    drop(store);
    let mut store = EventStore::open(&path, Bounds { bytes: 512 << 10, ..bounds }).unwrap();
    write(&mut store, &[event(now, 1.0, "")]);
    assert!(store.file_bytes().unwrap() <= 512 << 10);
}

#[test]
fn deleted_file_is_recreated() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("e.db");
    let mut store = EventStore::open(&path, WIDE).unwrap();
    write(&mut store, &[event(wall(), 1.0, "")]);
    assert!(!store.is_gone());
    for name in ["e.db", "e.db-wal", "e.db-shm"] {
        std::fs::remove_file(directory.path().join(name)).unwrap();
    }
    assert!(store.is_gone());
    store.renew().unwrap();
    write(&mut store, &[event(wall(), 2.0, "")]);
    assert_eq!(values(&EventStore::open(&path, WIDE).unwrap()), [2.0]);
    // Moved away and replaced by another file.
    std::fs::rename(&path, directory.path().join("old.db")).unwrap();
    assert!(store.is_gone());
    drop(EventStore::open(&path, WIDE).unwrap());
    assert!(store.is_gone());
    store.renew().unwrap();
    write(&mut store, &[event(wall(), 3.0, "")]);
    assert!(!store.is_gone());
}

#[test]
fn clock_set_ahead_expires_nothing() {
    let clock = Clock::start();
    let year = Duration::from_secs(365 * 86_400).as_nanos() as i64;
    let ahead = clock.now_with(wall() + year);
    assert!(ahead - wall() < year / 1000, "{ahead}");
    // A clock set back expires nothing early.
    assert_eq!(clock.now_with(5), 5);
}

#[test]
fn moves_damaged_files_aside_and_leaves_foreign_ones() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("e.db");
    for garbage in
        [&b"no database at all, but quite long enough to be looked at by SQLite"[..], &[0xff; 9000]]
    {
        std::fs::write(&path, garbage).unwrap();
        let mut store = EventStore::open(&path, WIDE).unwrap();
        write(&mut store, &[event(wall(), 1.0, "")]);
        assert_eq!(values(&store), [1.0]);
        drop(store);
        std::fs::remove_file(&path).unwrap();
    }
    // A page in the middle is overwritten.
    let mut store = EventStore::open(&path, WIDE).unwrap();
    let events: Vec<_> = (0..500).map(|n| event(wall(), f64::from(n), &"y".repeat(500))).collect();
    write(&mut store, &events);
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let all = bytes.len();
    bytes[all / 2 / 4096 * 4096..][..8192].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(values(&EventStore::open(&path, WIDE).unwrap()), Vec::<f64>::new());
    let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let aside = names.filter(|name| name.to_string_lossy().contains(".damaged-")).count();
    assert_eq!(aside, 3);

    let foreign = directory.path().join("foreign.db");
    Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
        .unwrap();
    let err = EventStore::open(&foreign, WIDE).unwrap_err().to_string();
    assert!(err.contains("another program"), "{err}");
    let there: i64 =
        Connection::open(&foreign).unwrap().query_row("SELECT a FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(there, 1);
    let later = directory.path().join("later.db");
    EventStore::open(&later, WIDE).unwrap().db.pragma_update(None, "user_version", KIND.version + 1).unwrap();
    assert!(EventStore::open(&later, WIDE).unwrap_err().to_string().contains("another version"));
    let missing = directory.path().join("a/b/c.db");
    assert!(EventStore::open(&missing, WIDE).unwrap_err().to_string().contains("slow_events"));
    assert!(EventStore::open(directory.path(), WIDE).is_err());
    let link = directory.path().join("link.db");
    std::os::unix::fs::symlink(&foreign, &link).unwrap();
    assert!(EventStore::open(&link, WIDE).is_err());
}
