//! The profile `postgresql` compared with a real server's own accounting: pgbench's report, the server's log and its
//! statistics.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::exporter::{Exporter, TIMEOUT};
use crate::support::program::{directory, finish, private, run};

/// Debian's directory for the server programs.
const BIN: &str = "/usr/lib/postgresql/15/bin";

/// The server refuses to run as root; Debian's package creates this user.
const USER: &str = "postgres";

/// A cluster in its own directory, without a TCP port and without background activity. Dropping it kills it.
pub struct Cluster {
    postmaster: Child,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts a server from a private copy of the executable; `options` are added to its configuration.
    pub fn start(options: &[&str]) -> Cluster {
        let directory = directory();
        let server = private(Path::new(BIN).join("postgres"), directory.path());
        Self::start_from(&server, directory, options)
    }

    /// Starts another server from the same executable.
    pub fn start_beside(other: &Cluster) -> Cluster {
        Self::start_from(&other.file(), directory(), &[])
    }

    fn start_from(server: &Path, directory: tempfile::TempDir, options: &[&str]) -> Cluster {
        run(Command::new("chown").arg(USER).arg(directory.path()));
        let data = directory.path().join("data");
        run(as_user(&format!("{BIN}/initdb")).args(["--no-sync", "--auth=trust", "-D"]).arg(&data));
        // Autovacuum and the like would add transactions of their own at any time.
        let quiet = ["autovacuum=off", "max_logical_replication_workers=0", "checkpoint_timeout=1h"];
        let log = fs::File::create(directory.path().join("log")).expect("make the log");
        let mut command = as_user(server.to_str().expect("a path in UTF-8"));
        command.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-c", "listen_addresses="]);
        for option in quiet.iter().chain(options) {
            command.args(["-c", option]);
        }
        let postmaster =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("start the server");
        let cluster = Cluster { postmaster, directory };
        let deadline = Instant::now() + TIMEOUT;
        while !finish(cluster.client("psql").args(["-c", "SELECT 1"])).status.success() {
            assert!(Instant::now() < deadline, "the server does not answer:\n{}", cluster.log());
            sleep(Duration::from_millis(100));
        }
        cluster
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("postgres")
    }

    /// Returns the data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Returns the lines currently in the log that contain `text`.
    fn log_lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// Returns the command of a client program, connected to this server.
    pub fn client(&self, name: &str) -> Command {
        let mut command = as_user(&format!("{BIN}/{name}"));
        command.env("PGHOST", self.directory.path()).env("PGDATABASE", "postgres").env("PGUSER", USER);
        command
    }

    /// Runs statements in one session and returns their rows.
    pub fn sql(&self, statements: &[&str]) -> String {
        let mut psql = self.client("psql");
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1"]);
        for statement in statements {
            psql.args(["-c", statement]);
        }
        run(&mut psql)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGQUIT is an immediate shutdown, which also ends the server's children.
        let pid = fs::read_to_string(self.directory.path().join("data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = pid.lines().next() {
            let _ = Command::new("kill").args(["-QUIT", pid]).status();
        } else {
            let _ = self.postmaster.kill();
        }
        let _ = self.postmaster.wait();
    }
}

fn as_user(program: &str) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", USER, "--", program]).current_dir("/");
    command
}

/// Parses the number that follows `before` in `text`.
fn number_after(text: &str, before: &str) -> f64 {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text:?}"));
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|_| panic!("no number after {before:?} in {text:?}"))
}

#[test]
fn pgbench_transactions_and_queries() {
    let cluster = Cluster::start(&["log_statement=all"]);
    run(cluster.client("pgbench").args(["-i", "-q", "-s", "1"]));
    let exporter = Exporter::with_profile(&cluster.file(), "postgresql");
    let statements_before = cluster.log_lines("statement: ").len();
    let ended = "SELECT sum(xact_commit), sum(xact_rollback) FROM pg_stat_database";
    let statistics_before = cluster.sql(&[ended]);
    let before = exporter.scrape();

    // Without -n, pgbench would vacuum first.
    let report = run(cluster.client("pgbench").args(["-n", "-t", "500", "-c", "2"]));
    assert_eq!(number_after(&report, "transactions actually processed: "), 1000.0, "{report}");
    // Failing statements: each aborts its transaction and starts a query that never completes.
    for _ in 0..3 {
        assert!(!finish(cluster.client("psql").args(["-Xqc", "SELECT 1/0"])).status.success());
    }

    let after = exporter.scrape();
    let statistics_after = cluster.sql(&[ended]);
    let count = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    // Besides the thousand: pgbench's two queries for the table sizes and the startup of its three connections; then
    // three psql connections.
    assert_eq!(count("postgresql_transactions_total", &[("result", "commit")]), 1005.0 + 3.0);
    assert_eq!(count("postgresql_transactions_total", &[("result", "abort")]), 3.0);
    assert_eq!(count("postgresql_transactions_started_total", &[]), 1011.0);

    for (result, ended) in [("commit", 1008.0), ("abort", 3.0)] {
        assert_eq!(count("postgresql_transaction_duration_seconds_count", &[("result", result)]), ended);
    }

    // The server's statistics do not yet include the session that queries them, but they include the previous one that
    // did: one transaction for its startup, one for its query.
    let pair = |text: &str| {
        let (commits, rollbacks) = text.trim().split_once('|').expect("two columns");
        (commits.parse::<f64>().expect("a number"), rollbacks.parse::<f64>().expect("a number"))
    };
    let ((c0, r0), (c1, r1)) = (pair(&statistics_before), pair(&statistics_after));
    assert_eq!(count("postgresql_transactions_total", &[("result", "commit")]), c1 - c0 - 2.0);
    assert_eq!(count("postgresql_transactions_total", &[("result", "abort")]), r1 - r0);

    // Seven statements per transaction, plus the two for the sizes; the log has a line for each.
    assert_eq!(count("postgresql_queries_total", &[]), 7002.0);
    assert_eq!(count("postgresql_queries_started_total", &[]), 7002.0 + 3.0);
    let logged = cluster.log_lines("statement: ").len() - statements_before;
    // The sessions that queried the statistics before and after are both in the log; the first is not included in
    // `before`.
    assert_eq!(logged as f64, 7002.0 + 3.0 + 2.0);
    assert_eq!(count("postgresql_query_duration_seconds_count", &[]), 7002.0);
    assert!(count("postgresql_query_duration_seconds_sum", &[]) > 0.0);
    // Every statement except BEGIN and END is planned, and all are executed.
    assert_eq!(count("postgresql_plan_duration_seconds_count", &[]), 5002.0);
    assert_eq!(count("postgresql_execute_duration_seconds_count", &[]), 7002.0);
    after.assert_nothing_lost();
}

#[test]
fn failing_queries_do_not_affect_other_durations() {
    let cluster = Cluster::start(&[]);
    let exporter = Exporter::with_profile(&cluster.file(), "postgresql");
    // One session, with a failing statement before each valid one.
    let mut psql = cluster.client("psql");
    psql.args(["-XqAt"]);
    for n in 0..20 {
        psql.args(["-c", "SELECT 1/0", "-c", &format!("SELECT {n}")]);
    }
    let output = finish(&mut psql);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 20, "{output:?}");

    let samples = exporter.scrape();
    assert_eq!(samples.sum("postgresql_queries_started_total", &[]), 40.0);
    assert_eq!(samples.sum("postgresql_queries_total", &[]), 20.0);
    assert_eq!(samples.sum("postgresql_query_duration_seconds_count", &[]), 20.0);
    samples.assert_nothing_lost();
}

#[test]
fn checkpoints_sorts_and_lock_waits_as_logged() {
    let cluster = Cluster::start(&[
        "log_checkpoints=on",
        "trace_sort=on",
        "log_lock_waits=on",
        "deadlock_timeout=10ms",
        "max_parallel_workers_per_gather=0",
        "work_mem=256kB",
    ]);
    let exporter = Exporter::with_profile(&cluster.file(), "postgresql");

    let make = |rows: u32| {
        format!("CREATE TABLE t{rows} AS SELECT i, md5(i::text) AS m FROM generate_series(1, {rows}) AS i")
    };
    for rows in [100, 20_000] {
        cluster.sql(&[&make(rows), "CHECKPOINT"]);
    }
    // One sort in memory, two on disk, and one to build an index.
    cluster.sql(&["SELECT max(m) FROM (SELECT * FROM t100 ORDER BY m OFFSET 0) AS s"]);
    cluster.sql(&["SELECT max(m) FROM (SELECT * FROM t20000 ORDER BY m OFFSET 0) AS s"]);
    cluster.sql(&["SELECT max(i) FROM (SELECT * FROM t20000 ORDER BY m DESC OFFSET 0) AS s"]);
    cluster.sql(&["CREATE INDEX ON t100 (m)"]);

    // One session holds a lock on the table until the other waits for it.
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let wait = "DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted) LOOP \
                        PERFORM pg_sleep(0.01); END LOOP; END $$";
            cluster.sql(&[&format!("BEGIN; LOCK TABLE t100; {wait}; SELECT pg_sleep(0.3); COMMIT")])
        });
        let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted \
                    AND relation = 't100'::regclass";
        let deadline = Instant::now() + TIMEOUT;
        while cluster.sql(&[held]).trim() != "1" {
            assert!(Instant::now() < deadline && !holder.is_finished(), "the table was never locked");
        }
        cluster.sql(&["SELECT count(*) FROM t100"]);
        holder.join().expect("the other session");
    });

    let checkpoints = cluster.log_lines("checkpoint complete: ");
    let samples = exporter.scrape_until("the checkpoints", |samples| {
        samples.sum("postgresql_checkpoints_total", &[]) == checkpoints.len() as f64
    });
    assert_eq!(checkpoints.len(), 2, "{checkpoints:?}");
    let logged = |before: &str| checkpoints.iter().map(|line| number_after(line, before)).sum::<f64>();
    let metric = |name: &str| samples.sum(name, &[]);
    assert!(logged("wrote ") > 100.0);
    assert_eq!(metric("postgresql_checkpoint_buffers_written_total"), logged("wrote "));
    // A line reads: 0 WAL file(s) added, 0 removed, 1 recycled.
    assert_eq!(metric("postgresql_checkpoint_wal_files_added_total"), logged("%); "));
    assert_eq!(metric("postgresql_checkpoint_wal_files_removed_total"), logged("added, "));
    assert_eq!(metric("postgresql_checkpoint_wal_files_recycled_total"), logged("removed, "));
    let buffers = cluster.sql(&["SELECT setting FROM pg_settings WHERE name = 'shared_buffers'"]);
    assert_eq!(metric("postgresql_shared_buffers"), buffers.trim().parse::<f64>().expect("a number"));
    assert_eq!(metric("postgresql_checkpoint_duration_seconds_count"), 2.0);

    let memory = cluster.log_lines("internal sort of worker -1 ended, ");
    let disk = cluster.log_lines("external sort of worker -1 ended, ");
    assert!(memory.len() >= 2 && disk.len() == 2, "{memory:?} {disk:?}");
    let space = |lines: &[String]| lines.iter().map(|line| number_after(line, " ended, ")).sum::<f64>();
    let sorts = |place: &str| samples.sum("postgresql_sorts_total", &[("place", place)]);
    assert_eq!(sorts("memory"), memory.len() as f64);
    assert_eq!(sorts("disk"), disk.len() as f64);
    assert_eq!(metric("postgresql_sort_memory_bytes_sum"), space(&memory) * 1024.0);
    assert_eq!(metric("postgresql_sort_disk_bytes_sum"), space(&disk) * 8192.0);
    // Creating a table also sorts for the index of its TOAST table, so there are more index sorts than the test
    // requested.
    let begun = |kind: &str| samples.sum("postgresql_sorts_started_total", &[("kind", kind)]);
    assert_eq!(begun("heap"), cluster.log_lines("begin tuple sort: ").len() as f64);
    assert_eq!(begun("index"), cluster.log_lines("begin index sort: ").len() as f64);
    assert!(begun("heap") == 3.0 && begun("index") > 1.0);

    let waits = cluster.log_lines("still waiting for AccessShareLock on relation");
    assert_eq!(waits.len(), 1, "{waits:?}");
    let wanted = [("object", "relation"), ("mode", "AccessShare")];
    assert_eq!(samples.sum("postgresql_lock_waits_total", &wanted), 1.0);
    assert_eq!(metric("postgresql_lock_waits_total"), 1.0);
    assert_eq!(metric("postgresql_lock_wait_duration_seconds_count"), 1.0);
    samples.assert_nothing_lost();
}
