//! Targets by what they are, of real programs: counted is what those that are meant say of themselves, and nothing of others that run
//! the same files.

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

/// What the exporter left out because its process is not meant.
fn filtered(scrape: &Metrics) -> f64 {
    scrape.sum("fibre_exporter_probe_filtered_total", &[])
}

/// A program that says `up`, and then something to each line. Dropping it ends it.
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

/// A backend writes over its command line, and another server runs the same file.
#[test]
fn backends_of_a_postmaster_are_its_children() {
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
    // Each session that asks is in the statistics of the next one, with its beginning and its question; and what a backend did is there
    // once it has ended.
    wait_for("the server's statistics to be the exporter's", || {
        let counted = committed(&exporter.scrape()) - committed(&before);
        counted == commits() - commits_before - 2.0
    });
    let after = exporter.scrape();
    assert!(committed(&after) - committed(&before) >= 600.0, "{}", committed(&after));
    assert!(filtered(&after) - filtered(&before) >= 200.0, "{}", filtered(&after));
    after.assert_nothing_lost();
}

/// Collects as often as it is told.
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
fn a_jar_is_told_from_another_by_its_command_line() {
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
    // One that starts now.
    let mut later = start("shop.jar");
    later.tell(7);
    assert_eq!(collections(), 12.0);
    let scrape = exporter.scrape();
    assert_eq!(scrape.sum("openjdk_vm_starts_total", &[]), 1.0, "that of the later one");
    assert!(filtered(&scrape) >= 100.0);
    scrape.assert_nothing_lost();
}

/// Collects as often as it is told, and says how often it has.
const PYTHON: &str = "
import gc, sys
gc.disable()
print('up', flush=True)
for line in sys.stdin:
    for _ in range(int(line)): gc.collect()
    print(gc.get_stats()[2]['collections'], flush=True)
";

#[test]
fn a_script_is_told_from_another_by_its_command_line() {
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
    // By what is in its first line: the kernel starts the interpreter.
    let mut second = Told::start(&mut Command::new(&app));
    let at_start = counted() - 4.0;
    let before = own(&mut second, 0);
    assert_eq!(own(&mut second, 9) - before, 9.0);
    drop(Told::start(&mut Command::new(&other)));
    assert_eq!(counted(), 4.0 + at_start + 9.0);
    assert!(filtered(&exporter.scrape()) >= 100.0);
}

/// A control group as systemd makes it for a unit, and a program in it.
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

/// Redis, which has neither probes nor symbols, by what it calls. Dropping it ends it.
struct Redis {
    server: Child,
    socket: PathBuf,
}

impl Redis {
    /// In this control group, or where this test is. Its libraries are the directory's.
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

    /// Connections until now, that of this question among them.
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
fn a_library_of_a_unit_counts_what_the_unit_does() {
    let directory = directory();
    // Debian's server is this program by another name; it says which it is by that.
    run(Command::new("cp").arg("/usr/bin/redis-check-rdb").arg(directory.path().join("redis-server")));
    private("/lib/x86_64-linux-gnu/libc.so.6", directory.path());
    let name = format!("redis{}", std::process::id());
    let unit = Unit::new(&format!("{name}.service"));
    let outside = Redis::start(directory.path(), "outside", None);
    let first = Redis::start(directory.path(), "first", Some(&unit));
    // It accepts until there is nobody left, of which it is told by an error.
    let exporter = Exporter::tracing(&format!(
        "  - name: redis\n    unit: {name}\n    library: libc.so.6\n    probes:\n    - function: accept4\n      metrics:\n      \
         - {{ counter: accepted_total, when: retval >= 0 and retval < 100000 }}\n"
    ));
    let accepted = || exporter.scrape().sum("accepted_total", &[]);
    let (own, counted) = (first.connections(), accepted());
    first.ask(7);
    outside.ask(20);
    assert_eq!((first.connections() - own, accepted() - counted), (8.0, 8.0));
    // The service starts again: from its first connection on.
    drop(first);
    let counted = accepted();
    let second = Redis::start(directory.path(), "second", Some(&unit));
    second.ask(3);
    assert_eq!(second.connections(), accepted() - counted);
    exporter.scrape().assert_nothing_lost();
}
