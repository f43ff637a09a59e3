//! Selecting real programs by process properties: the exporter counts what the selected processes report themselves,
//! and nothing from other processes that run the same files.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::openjdk::{JDK, private_jdk};
use crate::postgresql::Cluster;
use crate::support::exporter::{Exporter, wait_for};
use crate::support::exposition::Metrics;
use crate::support::program::{directory, finish, private, run};

/// Returns the number of hits that the exporter filtered out because their process is not selected.
fn filtered(scrape: &Metrics) -> f64 {
    scrape.sum("fibre_exporter_probe_filtered_total", &[])
}

/// A program that prints `up`, and then a response to each input line. Dropping it kills it.
struct Told {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Told {
    fn start(command: &mut Command) -> Told {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("{command:?}: {err}"));
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut program = Told { child, output };
        assert_eq!(program.answer(), "up");
        program
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its answer");
        line.trim_end().to_owned()
    }

    fn tell(&mut self, number: u32) -> String {
        writeln!(self.child.stdin.as_mut().expect("its input"), "{number}").expect("tell it");
        self.answer()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A backend overwrites its command line, and another server runs the same file.
#[test]
fn postgresql_backends_are_children_of_the_postmaster() {
    let cluster = Cluster::start(&[]);
    let other = Cluster::start_beside(&cluster);
    for cluster in [&cluster, &other] {
        run(cluster.client("pgbench").args(["-i", "-q", "-s", "1"]));
    }
    let exporter = Exporter::tracing(&format!(
        "  - name: first\n    process: postgres\n    cmdline: '* -D {} *'\n    children: true\n    profile: postgresql\n",
        cluster.data().display()
    ));
    let commits = || {
        let text = cluster.sql(&["SELECT sum(xact_commit) FROM pg_stat_database"]);
        text.trim().parse::<f64>().expect("a number")
    };
    let commits_before = commits();
    let before = exporter.scrape();
    run(cluster.client("pgbench").args(["-n", "-t", "200", "-c", "3"]));
    run(other.client("pgbench").args(["-n", "-t", "100", "-c", "2"]));
    let committed = |scrape: &Metrics| scrape.sum("postgresql_transactions_total", &[("result", "commit")]);
    // The statistics include the previous session that queried them, with its startup and its query; and a backend's
    // counts only appear once it has ended.
    wait_for("the server's statistics to be the exporter's", || {
        let counted = committed(&exporter.scrape()) - committed(&before);
        counted == commits() - commits_before - 2.0
    });
    let after = exporter.scrape();
    assert!(committed(&after) - committed(&before) >= 600.0, "{}", committed(&after));
    assert!(filtered(&after) - filtered(&before) >= 200.0, "{}", filtered(&after));
    after.assert_nothing_lost();
}

/// Runs the garbage collector as many times as each input line says.
const JAVA: &str = r#"
public class Shop {
    public static void main(String[] args) throws Exception {
        var input = new java.io.BufferedReader(new java.io.InputStreamReader(System.in));
        System.out.println("up");
        for (String line; (line = input.readLine()) != null; System.out.println("done"))
            for (int n = Integer.parseInt(line); n > 0; n--) System.gc();
    }
}
"#;

#[test]
fn distinguishes_jars_by_command_line() {
    let directory = directory();
    let jdk = private_jdk(directory.path());
    let at = |name: &str| directory.path().join(name);
    fs::write(at("Shop.java"), JAVA).expect("write the program");
    let tool = |name: &str| {
        let mut command = Command::new(Path::new(JDK).join("bin").join(name));
        command.current_dir(directory.path());
        command
    };
    run(tool("javac").arg("Shop.java"));
    run(tool("jar").args(["cfe", "shop.jar", "Shop", "Shop.class"]));
    private(at("shop.jar"), &{
        fs::create_dir(at("copies")).expect("make a directory");
        at("copies")
    });
    fs::rename(at("copies/shop.jar"), at("other.jar")).expect("rename it");
    let start = |jar: &str| {
        let mut java = Command::new(jdk.join("bin/java"));
        Told::start(java.args(["-XX:+UseSerialGC", "-jar"]).arg(at(jar)).arg("--port=1"))
    };
    let (mut shop, mut other) = (start("shop.jar"), start("other.jar"));
    let exporter = Exporter::tracing(
        "  - name: shop\n    library: libjvm.so\n    cmdline: '*java* -jar */shop.jar *'\n    profile: openjdk\n",
    );
    let collections = || exporter.scrape().sum("openjdk_gc_total", &[("full", "true")]);
    shop.tell(5);
    other.tell(100);
    assert_eq!(collections(), 5.0);
    // A process that starts now.
    let mut later = start("shop.jar");
    later.tell(7);
    assert_eq!(collections(), 12.0);
    let scrape = exporter.scrape();
    assert_eq!(scrape.sum("openjdk_vm_starts_total", &[]), 1.0, "that of the later one");
    assert!(filtered(&scrape) >= 100.0);
    scrape.assert_nothing_lost();
}

/// Runs the garbage collector as many times as each input line says, and prints the total.
const PYTHON: &str = "
import gc, sys
gc.disable()
print('up', flush=True)
for line in sys.stdin:
    for _ in range(int(line)): gc.collect()
    print(gc.get_stats()[2]['collections'], flush=True)
";

#[test]
fn distinguishes_scripts_by_command_line() {
    let directory = directory();
    let python = private("/usr/bin/python3.11", directory.path());
    let script = |name: &str| {
        let path = directory.path().join(name);
        fs::write(&path, format!("#!{} -I\n{PYTHON}", python.display())).expect("write it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it a program");
        path
    };
    let (app, other) = (script("app.py"), script("other.py"));
    let with =
        |script: &str| Told::start(Command::new(&python).arg("-I").arg(script).current_dir(directory.path()));
    let (mut first, mut stranger) = (with("app.py"), with("other.py"));
    let exporter =
        Exporter::tracing("  - name: app\n    cmdline: '*python3* *app.py'\n    profile: python\n");
    let counted = || exporter.scrape().sum("python_gc_total", &[("generation", "2")]);
    let own = |program: &mut Told, times: u32| program.tell(times).parse::<f64>().expect("its own count");
    let before = own(&mut first, 0);
    assert_eq!(own(&mut first, 4) - before, 4.0);
    own(&mut stranger, 100);
    assert_eq!(counted(), 4.0);
    // Started through its shebang line: the kernel runs the interpreter.
    let mut second = Told::start(&mut Command::new(&app));
    let at_start = counted() - 4.0;
    let before = own(&mut second, 0);
    assert_eq!(own(&mut second, 9) - before, 9.0);
    drop(Told::start(&mut Command::new(&other)));
    assert_eq!(counted(), 4.0 + at_start + 9.0);
    assert!(filtered(&exporter.scrape()) >= 100.0);
}

/// A cgroup such as systemd creates for a unit, in which a program runs.
struct Unit(PathBuf);

impl Unit {
    fn new(name: &str) -> Unit {
        let mounts = fs::read_to_string("/proc/mounts").expect("what is mounted");
        let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let root = line.and_then(|line| line.split(' ').nth(1)).expect("control groups of version 2");
        let group = Path::new(root).join(name);
        fs::create_dir(&group).expect("make a control group");
        Unit(group)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            wait_for("the control group to be empty", || fs::remove_dir(&self.0).is_ok());
        }
    }
}

/// Redis, which has neither probes nor symbols, traced through the library functions that it calls. Dropping it kills
/// it.
struct Redis {
    server: Child,
    socket: PathBuf,
}

impl Redis {
    /// Starts Redis in this cgroup, or in the test's own. It loads its libraries from `directory`.
    fn start(directory: &Path, name: &str, group: Option<&Unit>) -> Redis {
        let socket = directory.join(format!("{name}.socket"));
        let enter = match group {
            Some(group) => format!("echo $$ > {}/cgroup.procs && ", group.0.display()),
            None => String::new(),
        };
        let server = Command::new("sh")
            .args(["-c", &format!("{enter}exec \"$0\" \"$@\"")])
            .arg(directory.join("redis-server"))
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .env("LD_LIBRARY_PATH", directory)
            .current_dir(directory)
            .stdout(Stdio::null())
            .spawn()
            .expect("start redis");
        let redis = Redis { server, socket };
        wait_for("redis to answer", || finish(redis.client().arg("PING")).status.success());
        redis
    }

    fn client(&self) -> Command {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(&self.socket);
        command
    }

    fn ask(&self, times: u32) {
        for _ in 0..times {
            assert_eq!(run(self.client().arg("PING")).trim(), "PONG");
        }
    }

    /// Returns the number of connections so far, including the one of this query.
    fn connections(&self) -> f64 {
        let text = run(self.client().args(["INFO", "stats"]));
        let line = text.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.expect("a number of connections").trim().parse().expect("a number")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn library_of_a_unit_counts_only_that_unit() {
    let directory = directory();
    // Debian's server is this program under another name, which selects what it does.
    run(Command::new("cp").arg("/usr/bin/redis-check-rdb").arg(directory.path().join("redis-server")));
    private("/lib/x86_64-linux-gnu/libc.so.6", directory.path());
    let name = format!("redis{}", std::process::id());
    let unit = Unit::new(&format!("{name}.service"));
    let outside = Redis::start(directory.path(), "outside", None);
    let first = Redis::start(directory.path(), "first", Some(&unit));
    // Redis accepts connections until none is pending, which an error tells it.
    let exporter = Exporter::tracing(&format!(
        "  - name: redis\n    unit: {name}\n    library: libc.so.6\n    probes:\n    - function: accept4\n      metrics:\n      \
         - {{ counter: accepted_total, when: retval >= 0 and retval < 100000 }}\n"
    ));
    let accepted = || exporter.scrape().sum("accepted_total", &[]);
    let (own, counted) = (first.connections(), accepted());
    first.ask(7);
    outside.ask(20);
    assert_eq!((first.connections() - own, accepted() - counted), (8.0, 8.0));
    // The service restarts: its connections are counted from the first one on.
    drop(first);
    let counted = accepted();
    let second = Redis::start(directory.path(), "second", Some(&unit));
    second.ask(3);
    assert_eq!(second.connections(), accepted() - counted);
    exporter.scrape().assert_nothing_lost();
}
