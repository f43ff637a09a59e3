//! Programs, files and machines that misbehave: counts stay exact, or the exporter reports what is missing.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::support::exporter::{Place, Port, Setup, send_signal, wait_for, wait_for_end};
use crate::support::exposition::Metrics;
use crate::support::program::{compile, run};
use crate::support::random::Xorshift;

/// `program N K WHEN`: N children that each call `counted` K times and exit; WHEN is `each` (one after the other) or
/// `all` (all at the same time; they call when the input ends, and `up` is printed once they are running). `program K`
/// makes the calls itself.
pub const CHILDREN: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noipa)) int counted(int n) { return n + 1; }
static void call(int times) {
    for (int n = 0; n < times; n++)
        counted(n);
}
int main(int argc, char **argv) {
    if (argc == 2) {
        call(atoi(argv[1]));
        return 0;
    }
    int children = atoi(argv[1]), times = atoi(argv[2]), all = !strcmp(argv[3], "all");
    for (int n = 0; n < children; n++) {
        pid_t child = fork();
        if (child < 0)
            return perror("fork"), 1;
        if (child == 0) {
            char byte;
            if (all && read(0, &byte, 1) != 0)
                _exit(1);
            call(times);
            _exit(0);
        }
        if (!all && waitpid(child, 0, 0) != child)
            return 1;
    }
    if (all) {
        puts("up");
        fflush(stdout);
        for (int n = 0; n < children; n++)
            if (wait(0) < 0)
                return 1;
    }
}
"#;

pub fn compiled(place: &Place) -> PathBuf {
    compile("gcc", "children.c", CHILDREN, &[], &place.path("."))
}

/// Starts the program with `children` concurrent children; each calls `counted` `calls` times once the input is
/// dropped.
pub fn with_children(program: &Path, children: u32, calls: u32) -> Child {
    let mut parent = Command::new(program)
        .args([&children.to_string(), &calls.to_string(), "all"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start it");
    let mut up = [0; 3];
    parent.stdout.take().expect("its output").read_exact(&mut up).expect("its word");
    parent
}

/// Returns a target that counts calls of `counted`: all calls, and the calls per process, both in the kernel.
pub fn counting(selector: &str) -> String {
    format!(
        "node_name: test\ntargets:\n- name: t\n  {selector}\n  probes:\n  - function: counted\n    args: {{ n: 0 }}\n    \
         metrics:\n    - {{ counter: calls_total }}\n    \
         - {{ counter: by_process_total, labels: {{ pid: {{ value: pid, limit: 50 }} }} }}\n"
    )
}

/// Indices into the result of [`held`].
pub const DESCRIPTORS: usize = 0;
pub const THREADS: usize = 1;
pub const MAPPINGS: usize = 2;
pub const BPF_MAPS: usize = 3;

/// Returns the numbers of a process's descriptors, threads, mappings, and BPF maps among the descriptors.
pub fn held(pid: u32) -> [usize; 4] {
    let entries = |directory: &str| fs::read_dir(format!("/proc/{pid}/{directory}")).expect("list").count();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings").lines().count();
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("list descriptors");
    let is_map = |path: PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("map_id:"));
    [
        entries("fd"),
        entries("task"),
        maps,
        infos.filter(|at| is_map(at.as_ref().expect("one").path())).count(),
    ]
}

/// Checks that exactly this many calls were counted and none was lost; label sets that exceed the limit must be
/// reported as overflow.
#[track_caller]
pub fn is_exact(scrape: &Metrics, calls: f64) {
    assert_eq!(scrape.value("calls_total", &[]), calls);
    assert_eq!(scrape.sum("fibre_exporter_probe_hits_total", &[("probe", "counted")]), calls);
    assert_eq!(scrape.sum("fibre_exporter_probe_lost_total", &[]), 0.0);
    let series = scrape.select("by_process_total", &[]);
    assert!(series.len() <= 51, "{} series of a limit of 50", series.len());
    assert!(scrape.sum("by_process_total", &[]) <= calls);
}

#[test]
fn thousands_of_children_with_distinct_labels() {
    const CHILDREN: u32 = 3000;
    let place = Place::new();
    let program = compiled(&place);
    let exporter = Setup::new(&place, counting(&format!("binary: {}", program.display()))).start();
    exporter.wait_until_ready();
    exporter.scrape();
    let before = held(exporter.pid());
    let mut forking =
        Command::new(&program).args([&CHILDREN.to_string(), "3", "each"]).spawn().expect("start it");
    // Each scrape releases the numbers of processes that have ended.
    while forking.try_wait().expect("wait for it").is_none() {
        exporter.scrape();
    }
    is_exact(&exporter.scrape(), f64::from(3 * CHILDREN));
    // A connection may remain open for a moment after it has ended.
    wait_for("descriptors and BPF maps to be what they were", || {
        let after = held(exporter.pid());
        [DESCRIPTORS, BPF_MAPS].iter().all(|what| after[*what] <= before[*what])
    });
}

#[test]
fn ten_thousand_concurrent_processes() {
    const CHILDREN: u32 = 10_000;
    let place = Place::new();
    let program = compiled(&place);
    // A name that no other test uses.
    let program = place.copy_of(&program, "tenthousand");
    let exporter = Setup::new(&place, counting("process: tenthousand")).start();
    let mut parent = with_children(&program, CHILDREN, 1);
    exporter.wait_until_ready();
    drop(parent.stdin.take());
    assert!(wait_for_end(&mut parent).success());
    is_exact(&exporter.scrape(), f64::from(CHILDREN));
}

/// Finds a BPF map of a process by its name.
fn map_of(pid: u32, name: &str) -> MapHandle {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("list descriptors");
    let id = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse::<u32>().ok())
    };
    let mut all = infos.filter_map(|at| MapHandle::from_map_id(id(at.ok()?.path())?).ok());
    all.find(|map| map.name() == name).expect("a map of this name")
}

/// Processes that do not fit into the table of children are not counted, and this is reported.
#[test]
fn children_beyond_the_table_size_are_reported() {
    let place = Place::new();
    let program = compiled(&place);
    let boss = place.copy_of(Path::new("/bin/dash"), "overflowing");
    let selector = format!("binary: {}\n  process: overflowing\n  children: true", program.display());
    let exporter = Setup::new(&place, counting(&selector)).start();
    exporter.wait_until_ready();
    let start = |calls: &str| {
        run(Command::new(&boss).args(["-c", "\"$0\" $1; true"]).arg(&program).arg(calls));
    };
    let told =
        |scrape: &Metrics| scrape.value("fibre_exporter_errors_total", &[("error_type", "child_lost")]);
    start("100");
    is_exact(&exporter.scrape(), 100.0);
    let children = map_of(exporter.pid(), "children");
    // Nonexistent processes.
    let is_room = |n: u32| {
        let key = [u32::MAX - n, u32::MAX].map(u32::to_ne_bytes).concat();
        children.update(&key, &1u32.to_ne_bytes(), MapFlags::NO_EXIST).is_ok()
    };
    assert!((0..1 << 20).any(|n| !is_room(n)), "the table is never full");
    start("7");
    let scrape = exporter.scrape_until("the loss to be told", |scrape| told(scrape) > 0.0);
    assert_eq!((told(&scrape), scrape.value("calls_total", &[])), (1.0, 100.0));
    assert_eq!(scrape.sum("fibre_exporter_probe_filtered_total", &[]), 7.0);
    exporter.wait_for_log("Targets with `children: true` have more descendants than can be tracked");
    children.delete(&[u32::MAX, u32::MAX].map(u32::to_ne_bytes).concat()).expect("make room");
    start("30");
    assert_eq!(exporter.scrape().value("calls_total", &[]), 130.0);
}

/// While the exporter is stopped, the kernel keeps counting; events that find the ring full are lost, and are counted
/// as lost.
#[test]
fn every_hit_is_accounted_for_while_stopped() {
    const CALLS: u32 = 50_000;
    let place = Place::new();
    let program = compiled(&place);
    let yaml = counting(&format!("binary: {}", program.display()));
    // The kernel does not match globs: this is counted from events, in the smallest ring.
    let yaml = format!(
        "{yaml}    - {{ counter: by_event_total, labels: {{ comm: {{ value: comm, match: {{ \"p?o*\": yes }}, default: no }} }} }}\n\
         ring: {{ size: 64KiB }}\n"
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    send_signal(exporter.pid(), "STOP");
    run(Command::new(&program).arg(CALLS.to_string()));
    send_signal(exporter.pid(), "CONT");
    let calls = f64::from(CALLS);
    let lost = |scrape: &Metrics| scrape.sum("fibre_exporter_probe_lost_total", &[]);
    let scrape = exporter.scrape_until("each event to be counted or lost", |scrape| {
        scrape.sum("by_event_total", &[]) + lost(scrape) == calls
    });
    assert_eq!(scrape.value("calls_total", &[]), calls);
    assert_eq!(scrape.sum("fibre_exporter_probe_hits_total", &[]), calls);
    assert!(lost(&scrape) > 0.0, "the ring took everything");
    assert_eq!(exporter.health("/ready").0, 200);
}

/// A file that is different each time it is read: truncated, extended, or half overwritten.
#[test]
fn file_changes_while_being_read() {
    let place = Place::new();
    let program = compiled(&place);
    let good = fs::read(&program).expect("read the program");
    let library = place.path("changing");
    fs::write(&library, &good).expect("write it");
    let exporter = Setup::new(&place, counting(&format!("binary: {}", library.display()))).start();
    let mut random = Xorshift(7);
    for n in 0..150 {
        let at = random.below(good.len());
        let mut bad = good.clone();
        match n % 3 {
            0 => bad.truncate(at),
            1 => bad[at..].fill(0xff),
            _ => bad.rotate_left(at),
        }
        fs::write(&library, bad).expect("write it");
        if n % 10 == 0 {
            exporter.scrape();
        }
    }
    // Removed first: a reader may still hold the file that would be overwritten.
    fs::remove_file(&library).expect("remove it");
    place.copy_of(&program, "changing");
    exporter.wait_until_ready();
    run(Command::new(&library).arg("1000"));
    is_exact(&exporter.scrape(), 1000.0);
}

/// An accept(2) without a free descriptor: requests are served again once there are some, and counting continues.
#[test]
fn serving_resumes_after_running_out_of_descriptors() {
    let place = Place::new();
    let program = compiled(&place);
    let exporter = Setup::new(&place, counting(&format!("binary: {}", program.display()))).start();
    exporter.wait_until_ready();
    let limit = |files: &str| {
        run(Command::new("prlimit").args(["--pid", &exporter.pid().to_string(), files]));
    };
    limit("--nofile=3:20000");
    let refused = exporter.fetch("/metrics", &["--max-time", "1"]);
    assert!(!refused.status.success(), "{refused:?}");
    run(Command::new(&program).arg("1000"));
    limit("--nofile=20000:20000");
    wait_for("an answer", || exporter.fetch("/metrics", &["--fail", "--max-time", "5"]).status.success());
    is_exact(&exporter.scrape(), 1000.0);
}

/// A private cgroup, version 1 or 2. Dropping it removes it.
struct Group(PathBuf);

impl Group {
    fn new(memory: &str) -> Self {
        let roots = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists()).expect("control groups");
        // In case the controller is not delegated yet.
        let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        let group = Self(root.join(format!("exporter-test-{}-{memory}", std::process::id())));
        fs::create_dir(&group.0).expect("make a control group");
        let limit = ["memory.max", "memory.limit_in_bytes"].map(|name| group.0.join(name));
        let limit = limit.iter().find(|limit| limit.exists()).expect("a limit of memory");
        fs::write(limit, memory).expect("limit its memory");
        group
    }

    /// Returns a script that runs its arguments in the cgroup.
    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        wait_for("the control group to be empty", || fs::remove_dir(&self.0).is_ok());
    }
}

/// With too little memory, the exporter fails to start and says so, or is killed by the kernel. The traced program is
/// not affected.
#[test]
fn out_of_memory_spares_the_traced_program() {
    let place = Place::new();
    let binary = compiled(&place);
    let yaml = format!("{}bind: 127.0.0.1\n", counting(&format!("binary: {}", binary.display())));
    let config = place.write("tight.yaml", &yaml);
    let mut traced = with_children(&binary, 100, 10);
    let ports = [Port::claim(), Port::claim()];
    let [port, health] = ports.each_ref().map(Port::to_string);
    // The first is too little for anything, the others for later stages.
    for memory in ["4M", "10M", "18M", "26M"] {
        let group = Group::new(memory);
        let enter = group.enter();
        let log = place.path("tight.log");
        let mut child = Command::new("sh")
            .args(["-c", &enter, env!("CARGO_BIN_EXE_exporter"), "--port", &port, "--health-port", &health])
            .arg("--config")
            .arg(&config)
            .stdout(fs::File::create(&log).expect("a log"))
            .stderr(fs::File::options().append(true).open(&log).expect("a log"))
            .spawn()
            .expect("start the exporter");
        let text = || fs::read_to_string(&log).expect("the log");
        let mut status = None;
        wait_for("its end, or that it serves", || {
            status = child.try_wait().expect("wait for it");
            status.is_some() || text().contains("Waiting for events")
        });
        match status {
            None => {
                // The memory was sufficient. It may be killed at any time.
                child.kill().expect("end it");
                child.wait().expect("wait for it");
            }
            Some(status) => {
                let is_told =
                    status.code().is_some_and(|code| code == 1 || code == 3) && text().contains("memory");
                assert!(status.signal() == Some(9) || is_told, "{memory}: {status}\n{}", text());
            }
        }
        assert!(memory != "4M" || status.is_some(), "{memory} were enough");
    }
    drop(traced.stdin.take());
    assert!(wait_for_end(&mut traced).success(), "the traced program");
    // With the limit of the shipped unit, everything works.
    let group = Group::new("512M");
    let enter = group.enter();
    let exporter = Setup::new(&place, yaml).through(&["sh", "-c", &enter]).start();
    exporter.wait_until_ready();
    run(Command::new(&binary).arg("1000"));
    is_exact(&exporter.scrape(), 1000.0);
    drop(exporter);
}

/// `CLOCK_REALTIME` jumps by days, forward and back: nothing is counted twice, forgotten, or considered long past.
#[test]
fn clock_jumps_are_harmless() {
    let library = Path::new("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1");
    assert!(library.exists(), "scripts/install-deps.sh --tests installs libfaketime");
    let place = Place::new();
    let binary = compiled(&place);
    let offset = place.write("offset", "+0");
    let exporter = Setup::new(&place, counting(&format!("binary: {}", binary.display())))
        .environment("LD_PRELOAD", &library.display().to_string())
        .environment("FAKETIME_TIMESTAMP_FILE", &offset.display().to_string())
        .environment("FAKETIME_NO_CACHE", "1")
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start();
    exporter.wait_until_ready();
    let mut calls = 0.0;
    for step in ["+40d", "-20d", "+0"] {
        // Replaced atomically: with an empty file, libfaketime would end the exporter.
        fs::rename(place.write("offset.new", step), &offset).expect("set the clock");
        run(Command::new(&binary).arg("1000"));
        calls += 1000.0;
        is_exact(&exporter.scrape(), calls);
        assert_eq!(exporter.health("/ready").0, 200, "{step}");
        // The exporter has noticed the step, and a new hit has the new time.
        let days = match step {
            "+40d" => 40.0,
            "-20d" => -20.0,
            _ => 0.0,
        };
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now").as_secs_f64();
        let is_near = |scrape: &Metrics| {
            let last = scrape.select("fibre_exporter_probe_last_hit_timestamp_seconds", &[]);
            !last.is_empty() && last.iter().all(|(_, at)| (at - now - days * 86_400.0).abs() < 3600.0)
        };
        exporter.scrape_until("the time of the last hit by the new clock", is_near);
    }
}

/// BPF programs read the kernel's own clock, and the exporter one that is ahead of it by a day.
#[test]
fn times_are_right_in_a_time_namespace() {
    let place = Place::new();
    let binary = compiled(&place);
    let exporter = Setup::new(&place, counting(&format!("binary: {}", binary.display())))
        .through(&["unshare", "--time", "--monotonic", "100000"])
        .start();
    exporter.wait_until_ready();
    run(Command::new(&binary).arg("1000"));
    let name = "fibre_exporter_probe_last_hit_timestamp_seconds";
    let scrape =
        exporter.scrape_until("the time of the last hit", |scrape| !scrape.select(name, &[]).is_empty());
    is_exact(&scrape, 1000.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now").as_secs_f64();
    let last = scrape.select(name, &[]);
    assert!(last.iter().all(|(_, at)| (at - now).abs() < 3600.0), "{last:?} at {now}");
    assert!(scrape.sum("fibre_exporter_unprobed_seconds_total", &[]) < 3600.0);
}

#[test]
fn file_names_do_not_reach_the_terminal_as_commands() {
    let place = Place::new();
    let odd = place.copy_of(&compiled(&place), "odd\u{1b}[31m");
    let path = odd.display().to_string().replace('\u{1b}', "\\e");
    let exporter = Setup::new(&place, counting(&format!("binary: \"{path}\""))).start();
    exporter.wait_until_ready();
    exporter.wait_for_log("odd [31m");
    assert!(!exporter.log().contains('\u{1b}'), "{:?}", exporter.log());
}
