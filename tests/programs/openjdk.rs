//! The profile `openjdk` compared with a real JVM's own accounting: its logs, and what the program is known to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::exporter::Exporter;
use crate::support::program::{directory, private, run};

pub const JDK: &str = "/usr/lib/jvm/java-17-openjdk-amd64";

/// A program with known counts.
const PROGRAM: &str = r#"
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.locks.LockSupport;

public class Program {
    static class Contended {}

    public static void main(String[] args) throws Exception {
        for (int i = 0; i < 3; i++) System.gc();
        for (int i = 0; i < 5; i++) Thread.sleep(20);
        for (int i = 0; i < 4; i++) LockSupport.parkNanos(1_000_000);
        Object lock = new Contended();
        for (int i = 0; i < 6; i++) {
            CountDownLatch held = new CountDownLatch(1);
            Thread waits = new Thread(() -> {
                try { held.await(); } catch (InterruptedException e) {}
                synchronized (lock) {}
            });
            waits.start();
            synchronized (lock) {
                held.countDown();
                while (waits.getState() != Thread.State.BLOCKED) Thread.onSpinWait();
            }
            waits.join();
        }
    }
}
"#;

/// Creates a JDK of symbolic links, except for the files that decide which libjvm.so is used: these are private copies.
pub fn private_jdk(directory: &Path) -> PathBuf {
    let jdk = directory.join("jdk");
    run(Command::new("cp").arg("-as").arg(JDK).arg(&jdk));
    for file in ["bin/java", "lib/libjli.so", "lib/server/libjvm.so"] {
        let link = jdk.join(file);
        fs::remove_file(&link).expect("remove a link");
        private(Path::new(JDK).join(file), link.parent().expect("a directory"));
    }
    jdk
}

#[test]
fn collections_classes_threads_and_monitors_as_logged() {
    let directory = directory();
    let jdk = private_jdk(directory.path());
    let source = directory.path().join("Program.java");
    fs::write(&source, PROGRAM).expect("write the program");
    run(Command::new(Path::new(JDK).join("bin/javac")).arg("-d").arg(directory.path()).arg(&source));
    let exporter = Exporter::with_profile(&jdk.join("lib/server/libjvm.so"), "openjdk");

    let log = |name: &str| directory.path().join(name);
    run(Command::new(jdk.join("bin/java"))
        .args(["-XX:+UseSerialGC", "-XX:+DTraceMonitorProbes"])
        .arg(format!("-Xlog:class+load=info:file={}", log("classes").display()))
        .arg(format!("-Xlog:gc=info:file={}", log("gc").display()))
        .arg(format!("-Xlog:safepoint=info:file={}", log("safepoints").display()))
        .arg("-cp")
        .arg(directory.path())
        .arg("Program"));
    let lines = |name: &str, text: &str| {
        let log = fs::read_to_string(log(name)).expect("read the JVM's log");
        log.lines().filter(|line| line.contains(text)).count() as f64
    };
    let samples = exporter.scrape();
    let metric = |name: &str| samples.sum(name, &[]);

    // Classes: one line each.
    assert!(lines("classes", " source: ") > 400.0);
    assert_eq!(metric("openjdk_classes_loaded_total"), lines("classes", " source: "));
    let shared = samples.sum("openjdk_classes_loaded_total", &[("shared", "true")]);
    assert_eq!(shared, lines("classes", " source: shared objects file"));

    // Collections: one line per pause.
    assert_eq!(lines("gc", "Pause Full (System.gc())"), 3.0);
    assert_eq!(samples.sum("openjdk_gc_total", &[("full", "true")]), lines("gc", "Pause Full"));
    assert_eq!(metric("openjdk_gc_total"), lines("gc", " Pause "));
    let pauses = samples.sum("openjdk_gc_pause_duration_seconds_count", &[("full", "true")]);
    assert_eq!(pauses, lines("gc", "Pause Full"));
    assert!(metric("openjdk_gc_pause_duration_seconds_sum") > 0.0);
    let pools = samples.by("openjdk_memory_pool_used_after_gc_bytes", "pool");
    assert!(pools.contains_key("Eden Space") && pools["Tenured Gen"] > 0.0, "{pools:?}");

    // Threads: the program's six, and the JVM's own.
    for name in ["openjdk_threads_started_total", "openjdk_threads_stopped_total"] {
        assert_eq!(samples.sum(name, &[("daemon", "false")]), 6.0, "{name}");
    }
    assert!(samples.sum("openjdk_threads_started_total", &[("daemon", "true")]) > 0.0);
    assert_eq!(metric("openjdk_thread_sleep_duration_seconds_count"), 5.0);
    assert!(metric("openjdk_thread_sleep_duration_seconds_sum") >= 0.1);
    assert!(metric("openjdk_thread_park_duration_seconds_count") >= 4.0);

    // Monitors: the six waits for our lock, found by its class.
    let ours = samples.sum("openjdk_monitor_contentions_total", &[("class", "Program$Contended")]);
    assert_eq!(ours, 6.0, "{:?}", samples.by("openjdk_monitor_contentions_total", "class"));
    let all = metric("openjdk_monitor_contentions_total");
    assert_eq!(metric("openjdk_monitor_contention_duration_seconds_count"), all);

    // The virtual machine: one start, one stop, one line per safepoint.
    assert_eq!(metric("openjdk_vm_starts_total"), 1.0);
    assert_eq!(metric("openjdk_vm_stops_total"), 1.0);
    assert_eq!(metric("openjdk_safepoint_duration_seconds_count"), lines("safepoints", "Safepoint \""));
    assert!(metric("openjdk_vm_operations_total") >= lines("safepoints", "Safepoint \""));
    assert!(metric("openjdk_compilations_total") > 0.0);
    samples.assert_nothing_lost();
}
