//! Gauges that probes increment and decrement, in a program whose threads open and close.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::assert_same;
use crate::support::program::directory;
use crate::support::tracer::{Series, Tracer};

/// Lines on standard input are done and answered with "done":
/// - `work THREADS OPENED CLOSED`: each thread calls so often `opened` and `closed`, with sizes 100 and 10 and its number.
/// - `enter THREADS`: threads that stay inside `handle`; `leave` lets all of them return.
const SOURCE: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
static int opens, closes;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int inside, leaving;
__attribute__((noinline)) void opened(long thread, long size) { __asm__ volatile("" :: "r"(thread), "r"(size)); }
__attribute__((noinline)) void closed(long thread, long size) { __asm__ volatile("" :: "r"(thread), "r"(size)); }
__attribute__((noinline)) int handle(void) {
    pthread_mutex_lock(&lock);
    inside++;
    pthread_cond_broadcast(&changed);
    while (!leaving) pthread_cond_wait(&changed, &lock);
    inside--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return 1;
}
static void *work(void *number) {
    for (int i = 0; i < opens || i < closes; i++) {
        if (i < opens) opened((long)number, 100);
        if (i < closes) closed((long)number, 10);
    }
    return NULL;
}
static void *enter(void *unused) { (void)unused; handle(); return NULL; }
int main(void) {
    char line[100];
    pthread_t threads[16], entered[16];
    int n, held = 0;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "work %d %d %d", &n, &opens, &closes) == 3) {
            for (int i = 0; i < n; i++) pthread_create(&threads[i], NULL, work, (void *)(long)i);
            for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
        } else if (sscanf(line, "enter %d", &held) == 1) {
            for (int i = 0; i < held; i++) pthread_create(&entered[i], NULL, enter, NULL);
            pthread_mutex_lock(&lock);
            while (inside < held) pthread_cond_wait(&changed, &lock);
            pthread_mutex_unlock(&lock);
        } else if (!strncmp(line, "leave", 5)) {
            pthread_mutex_lock(&lock);
            leaving = 1;
            pthread_cond_broadcast(&changed);
            pthread_mutex_unlock(&lock);
            for (int i = 0; i < held; i++) pthread_join(entered[i], NULL);
        }
        puts("done");
        fflush(stdout);
    }
    return 0;
}
"#;

const PROBES: &str = "
  - function: opened
    args: { thread: 0, size: 1 }
    metrics:
    - { up_down: open, direction: up }
    - { up_down: open_bytes, direction: up, value: size }
    - { up_down: open_by_thread, direction: up, labels: { thread: thread } }
    - { up_down: open_by_process, direction: up, labels: { pid: pid } }
    - { up_down: open_here, direction: up, labels: { thread: { value: thread, match: { 0: first }, default: rest } } }
    - { up_down: open_sets, direction: up, labels: { thread: { value: thread, limit: 2000 }, size: { value: size, limit: 100 } } }
    - { up_down: open_seconds, direction: up, value: size, scale: 0.5, when: thread < 2 }
  - function: closed
    args: { thread: 0, size: 1 }
    metrics:
    - { up_down: open, direction: down }
    - { up_down: open_bytes, direction: down, value: size }
    - { up_down: open_by_thread, direction: down, labels: { thread: thread } }
    - { up_down: open_by_process, direction: down, labels: { pid: pid } }
    - { up_down: open_here, direction: down, labels: { thread: { value: thread, match: { 0: first }, default: rest } } }
    - { up_down: open_sets, direction: down, labels: { thread: { value: thread, limit: 2000 }, size: { value: size, limit: 100 } } }
    - { up_down: open_seconds, direction: down, value: size, scale: 0.5, when: thread < 2 }
  - function: handle
    metrics:
    - { up_down: in_flight, direction: up }
    - { up_down: in_flight, direction: down, at: return }
";

struct Program {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Program {
    fn start(path: &Path) -> Self {
        let mut child =
            Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
        let ask = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, ask, answers }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.ask, "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Returns the program and two tracers of it: one counts in the kernel, one in user space from events.
fn traced(directory: &Path) -> (PathBuf, [Tracer; 2]) {
    let (source, program) = (directory.join("opens.c"), directory.join("opens"));
    std::fs::write(&source, SOURCE).unwrap();
    let built =
        Command::new("cc").args(["-O1", "-pthread", "-o"]).args([&program, &source]).status().unwrap();
    assert!(built.success());
    let config = format!(
        "node_name: test\ntargets:\n- name: opens\n  binary: {}\n  probes:{PROBES}",
        program.display()
    );
    let tracers = [false, true].map(|all_to_ring| Tracer::start_by(&config, all_to_ring));
    (program, tracers)
}

/// Returns the series that both show.
fn shown(tracers: &[Tracer; 2]) -> Series {
    tracers.iter().for_each(|tracer| drop(tracer.accounting_at_rest()));
    let [kernel, user] = tracers.each_ref().map(Tracer::render);
    assert_same(&kernel, &user);
    kernel
}

#[test]
fn threads_share_a_gauge_and_exit_releases_open_counts() {
    let directory = directory();
    let (path, tracers) = traced(directory.path());
    let before = shown(&tracers);
    assert_eq!((before["open"].as_str(), before["in_flight"].as_str()), ("0", "0"), "it begins at 0");
    assert!(!before.keys().any(|name| name.contains("pid=") || name.contains("=\"\"")), "{before:?}");

    let (mut one, mut two) = (Program::start(&path), Program::start(&path));
    one.tell("work 4 1000 700");
    two.tell("work 3 500 0");
    two.tell("work 2 0 100");
    let series = shown(&tracers);
    assert_eq!(series["open"], (4 * 300 + 3 * 500 - 2 * 100).to_string());
    assert_eq!(series["open_bytes"], (100 * (4000 + 1500) - 10 * (2800 + 200)).to_string());
    assert_eq!(series["open_by_thread{thread=\"0\"}"], (300 + 500 - 100).to_string());
    assert_eq!(series["open_by_thread{thread=\"3\"}"], "300");
    assert_eq!(series["open_here{thread=\"first\"}"], "700");
    assert_eq!(series["open_here{thread=\"rest\"}"], (2500 - 700).to_string());
    // For the first two threads: 3,000 opened with half of 100 each, 1,600 closed with half of 10.
    assert_eq!(series["open_seconds"], (3000 * 50 - 1600 * 5).to_string());
    // So many label sets are possible that they are numbered in order of appearance.
    assert_eq!(series["open_sets{thread=\"3\",size=\"100\"}"], "1000");
    assert_eq!(series["open_sets{thread=\"3\",size=\"10\"}"], "-700");
    let by_process = |series: &Series, process: &Program| {
        series.get(&format!("open_by_process{{pid=\"{}\"}}", process.child.id())).cloned()
    };
    assert_eq!(by_process(&series, &one).as_deref(), Some("1200"));
    assert_eq!(by_process(&series, &two).as_deref(), Some("1300"));

    let first = one.child.id();
    one.kill();
    let series = shown(&tracers);
    assert_eq!(series["open"], "1300", "what the other process has open");
    assert_eq!(series["open_by_thread{thread=\"0\"}"], "400");
    assert!(!series.contains_key("open_by_thread{thread=\"3\"}"), "{series:?}");
    assert_eq!(series["open_sets{thread=\"0\",size=\"100\"}"], "500");
    assert!(!series.contains_key("open_sets{thread=\"3\",size=\"100\"}"), "{series:?}");
    assert_eq!(
        series[&format!("open_by_process{{pid=\"{first}\"}}")],
        "1200",
        "shown by process: for a while"
    );
    two.kill();
    let series = shown(&tracers);
    assert_eq!((series["open"].as_str(), series["open_bytes"].as_str()), ("0", "0"));
    assert!(!series.keys().any(|name| name.starts_with("open_by_thread")), "{series:?}");
}

#[test]
fn decrement_without_increment_is_negative() {
    let directory = directory();
    let (path, tracers) = traced(directory.path());
    let mut program = Program::start(&path);
    program.tell("work 4 0 25");
    let series = shown(&tracers);
    assert_eq!(series["open"], "-100", "they were opened before anybody counted");
    assert_eq!(series["open_bytes"], "-1000");
    assert_eq!(series["open_by_thread{thread=\"1\"}"], "-25");
    program.tell("work 4 30 0");
    assert_eq!(shown(&tracers)["open"], "20");
}

#[test]
fn calls_in_flight_have_not_returned() {
    let directory = directory();
    let (path, tracers) = traced(directory.path());
    let mut program = Program::start(&path);
    program.tell("enter 7");
    assert_eq!(shown(&tracers)["in_flight"], "7");
    program.tell("leave");
    assert_eq!(shown(&tracers)["in_flight"], "0");
}
