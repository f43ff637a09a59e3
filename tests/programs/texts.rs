//! Strings that no longer exist when a call returns or a span ends, in real programs: compared with the programs' own
//! counters.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::exporter::{Exporter, TIMEOUT};
use crate::support::program::{Running, directory, finish, private, run};

/// A MariaDB server with a private executable and directory, and without a TCP port. Dropping it kills it.
struct MariaDb {
    process: Child,
    directory: tempfile::TempDir,
}

impl MariaDb {
    fn start() -> Self {
        let directory = directory();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let server = private("/usr/sbin/mariadbd", directory.path());
        let data = format!("--datadir={}", at("data"));
        run(Command::new("mariadb-install-db").args([
            "--no-defaults",
            "--user=root",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            &data,
        ]));
        let log = fs::File::create(directory.path().join("log")).expect("make the log");
        let process = Command::new(server)
            .args([
                "--no-defaults",
                "--user=root",
                "--skip-networking",
                "--innodb-buffer-pool-size=16M",
                &data,
            ])
            .args([format!("--socket={}", at("socket")), format!("--pid-file={}", at("pid"))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start the server");
        let server = Self { process, directory };
        let deadline = Instant::now() + TIMEOUT;
        while !finish(server.client().args(["-e", "SELECT 1"])).status.success() {
            let log = fs::read_to_string(server.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server does not answer:\n{log}");
            sleep(Duration::from_millis(100));
        }
        server
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("mariadbd")
    }

    fn client(&self) -> Command {
        let mut client = Command::new("mariadb");
        client.args(["--no-defaults", "--batch", "--skip-column-names"]);
        client.arg(format!("--socket={}", self.directory.path().join("socket").display()));
        client
    }

    /// Runs statements in one session and returns their rows.
    fn sql(&self, statements: &str) -> String {
        run(self.client().args(["-e", statements]))
    }

    /// Returns how many statements of each kind the server has run.
    fn statements(&self) -> Vec<(String, f64)> {
        let rows = self.sql(
            "SHOW GLOBAL STATUS WHERE Variable_name IN ('Com_insert', 'Com_update', 'Com_delete', 'Com_create_table')",
        );
        rows.lines()
            .map(|row| {
                let (name, count) = row.split_once('\t').expect("a name and a count");
                (name.trim_start_matches("Com_").to_string(), count.parse().expect("a number"))
            })
            .collect()
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The server reads a query into a buffer that it reuses for the response.
#[test]
fn mariadb_queries_by_verb() {
    let server = MariaDb::start();
    let exporter = Exporter::tracing(&format!(
        r#"  - name: mariadb
    binary: {}
    probes:
    - function: dispatch_command
      args:
        command: {{ index: 0, type: u32 }}
        query: {{ index: 2, type: string_len, length: 3, max: 32 }}
      metrics:
      - histogram: query_seconds
        value: duration
        when: command == 3
        labels:
          verb: {{ value: query, match: {{ "insert *": insert, "update *": update, "delete *": delete, "create table *": create_table }}, default: other }}
"#,
        server.file().display()
    ));
    let before = server.statements();
    let inserts: String =
        (0..300).map(|n| format!("insert into t values ({n}, repeat('x', 500));")).collect();
    let updates: String =
        (0..200).map(|n| format!("update t set b = repeat('y', 400) where a = {n};")).collect();
    let deletes: String = (0..100).map(|n| format!("delete from t where a = {n};")).collect();
    server.sql(&format!(
        "create database d; use d; create table t (a int primary key, b varchar(500)); {inserts}{updates}{deletes}"
    ));
    let after = server.statements();
    let scrape = exporter.scrape();
    scrape.assert_nothing_lost();
    let by_verb = scrape.by("query_seconds_count", "verb");
    for ((verb, before), (_, after)) in before.iter().zip(&after) {
        assert_eq!(by_verb.get(verb), Some(&(after - before)), "{verb}: {by_verb:?}");
    }
    assert_eq!(by_verb["insert"], 300.0);
}

/// memcached splits the command line into words in place, and reads the next command into the same buffer.
#[test]
fn memcached_commands_by_name() {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(&std::env::var("HOME").expect("a home")).join(".cache"));
    let directory = directory();
    let file = private(cache.join("exporter/memcached/memcached"), directory.path());
    let socket = directory.path().join("socket");
    let server = Command::new(&file).args(["-u", "root", "-t", "2", "-s"]).arg(&socket).spawn();
    let mut server = Running(server.expect("start memcached"));
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break BufReader::new(stream),
            Err(err) => assert!(Instant::now() < deadline, "memcached does not answer: {err}"),
        }
        sleep(Duration::from_millis(20));
    };
    let exporter = Exporter::tracing(&format!(
        r#"  - name: memcached
    binary: {}
    probes:
    - function: process_command_ascii
      args: {{ command: {{ index: 1, type: string, max: 64 }} }}
      metrics:
      - histogram: command_seconds
        value: duration
        labels:
          command: {{ value: command, match: {{ "get *": get, "set *": set, "delete *": delete, "touch *": touch }}, default: other }}
"#,
        file.display()
    ));
    let mut ask = |command: &str| {
        stream.get_mut().write_all(command.as_bytes()).expect("ask memcached");
        let mut answer = String::new();
        while !["STORED", "END", "DELETED", "TOUCHED", "NOT_FOUND"]
            .iter()
            .any(|end| answer.ends_with(&format!("{end}\r\n")))
        {
            assert!(stream.read_line(&mut answer).expect("hear memcached") > 0, "{command}: {answer}");
        }
        answer
    };
    for n in 0..300 {
        ask(&format!("set key{n} 0 0 5\r\nvalue\r\n"));
        ask(&format!("get key{}\r\n", n / 2));
        ask(&format!("touch key{n} 0\r\n"));
        if n % 3 == 0 {
            ask(&format!("get none{n} key{n}\r\n"));
            ask(&format!("delete key{n}\r\n"));
        }
    }
    let stats = ask("stats\r\n");
    let stat = |name: &str| -> f64 {
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("STAT {name} ")));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {stats}"))
    };
    // The answer is sent before the function that has produced it returns.
    let scrape = exporter.scrape_until("the last command", |scrape| {
        scrape.sum("command_seconds_count", &[("command", "other")]) == 1.0
    });
    scrape.assert_nothing_lost();
    let by_command = scrape.by("command_seconds_count", "command");
    assert_eq!(by_command["set"], stat("cmd_set"));
    assert_eq!(by_command["touch"], stat("cmd_touch"));
    assert_eq!(by_command["delete"], stat("delete_hits"));
    // memcached counts keys, and every fourth command has two.
    assert_eq!(by_command["get"], stat("cmd_get") - 100.0);
    assert_eq!(by_command["other"], 1.0, "{by_command:?}");
    server.0.kill().expect("end memcached");
}

/// Builds a separate Cargo project of this directory and returns the path of its program.
fn build(project: &str, program: &str) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(project);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(project);
    run(Command::new("cargo")
        .args(["build", "--locked", "--quiet", "--manifest-path"])
        .arg(manifest.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target));
    target.join("debug").join(program)
}

/// The crate `usdt` serializes a string argument as JSON into memory that is freed after the probe.
#[test]
fn rust_usdt_strings_are_temporaries() {
    let directory = directory();
    let file = private(build("rust_usdt", "queries"), directory.path());
    // Rust's linker lets the read-only and the writable data share a page of the file; in a process that starts later,
    // the kernel raises the semaphores in the wrong mapping.
    let mut queries = Command::new(&file).stdin(Stdio::piped()).spawn().expect("start the program");
    let exporter = Exporter::tracing(&format!(
        r#"  - name: queries
    binary: {}
    probes:
    - span: query_seconds
      from: usdt:queries:query-begin
      to: usdt:queries:query-done
      args: {{ text: {{ index: 0, type: string }} }}
      labels: {{ text: text }}
      buckets: [10]
"#,
        file.display()
    ));
    drop(queries.stdin.take());
    assert!(queries.wait().expect("wait for the program").success());
    let scrape = exporter.scrape();
    scrape.assert_nothing_lost();
    let by_text = scrape.by("query_seconds_count", "text");
    let expected = [("select * from users", 34.0), ("insert into users", 33.0), ("delete from users", 33.0)];
    let expected = expected.map(|(text, count)| (text.to_string(), count)).into();
    assert_eq!(by_text, expected);
}

/// The crate `diesel` builds each query's text anew, passes a copy of it to SQLite, and drops both. Its own
/// instrumentation counts queries by verb.
#[test]
fn diesel_queries_by_verb() {
    let directory = directory();
    let program = private(build("rust_diesel", "diesel_queries"), directory.path());
    let library = private("/usr/lib/x86_64-linux-gnu/libsqlite3.so.0", directory.path());
    let verbs = "match: { \"INSERT *\": insert, \"SELECT *\": select, \"select *\": select, \"UPDATE *\": update, \
                 \"DELETE *\": delete, \"pragma *\": pragma }, default: other";
    let exporter = Exporter::tracing(&format!(
        r#"  - name: program
    binary: {}
    probes:
    - function: diesel::sqlite::connection::stmt::Statement::prepare
      args: {{ sql: {{ index: 2, type: string_len, length: 3, max: 32 }} }}
      metrics:
      - histogram: prepare_seconds
        value: duration
        labels: {{ verb: {{ value: sql, {verbs} }} }}
  - name: sqlite
    binary: {}
    probes:
    - function: sqlite3_prepare_v3
      args: {{ sql: {{ index: 1, type: string_len, length: 2, max: 32 }} }}
      returns: i32
      metrics:
      - histogram: sqlite_prepare_seconds
        value: duration
        labels: {{ verb: {{ value: sql, {verbs} }}, result: retval }}
"#,
        program.display(),
        library.display()
    ));
    let told = run(Command::new(&program).env("LD_LIBRARY_PATH", directory.path()));
    let mut expected: BTreeMap<_, _> = told
        .lines()
        .map(|line| {
            let (verb, count) = line.split_once(' ').expect("a verb and a count");
            (verb.to_string(), count.parse::<f64>().expect("a number"))
        })
        .collect();
    assert_eq!((expected.len(), expected["insert"]), (5, 250.0), "{told}");
    let scrape = exporter.scrape();
    scrape.assert_nothing_lost();
    // The table was created before diesel started to count.
    expected.insert("other".to_string(), 1.0);
    assert_eq!(scrape.by("prepare_seconds_count", "verb"), expected);
    assert_eq!(scrape.by("sqlite_prepare_seconds_count", "verb"), expected);
    let results = scrape.by("sqlite_prepare_seconds_count", "result");
    assert_eq!(results["1"], 20.0, "{results:?}");
}
