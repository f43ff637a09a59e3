//! Everything at once, over and over, for `SOAK_SECONDS` (`scripts/soak.sh`: an hour): counts are exact in each round,
//! and the exporter's resource usage does not grow.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::hostile::{BPF_MAPS, DESCRIPTORS, MAPPINGS, THREADS, compiled, counting, held, is_exact};
use crate::support::exporter::{Exporter, Place, Setup, send_signal, wait_for};
use crate::support::program::run;

/// The duration in the test command.
const SECONDS: u64 = 300;

/// How long the exporter is stopped while a program makes calls at full speed.
const STOPPED: Duration = Duration::from_secs(30);

/// Rounds until everything that is created only once exists: caches, the allocator's arenas, request threads.
const WARM_UP: u32 = 8;

/// Until then, memory grows with each process that ends, whose last values stay for a minute.
const STEADY: Duration = Duration::from_secs(90);

/// Returns the anonymous resident memory in kilobytes, without pages of the executable, which the kernel evicts and
/// rereads at its discretion.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn replaced(exporter: &Exporter) -> f64 {
    exporter.scrape().sum("fibre_exporter_reattach_total", &[("reason", "replaced")])
}

/// Runs the program while the exporter is stopped, and returns the number of calls. Meanwhile, the buffer of events
/// about processes overflows.
fn while_stopped(exporter: &Exporter, program: &Path) -> u32 {
    const AT_ONCE: u32 = 100_000;
    send_signal(exporter.pid(), "STOP");
    let (until, mut calls) = (Instant::now() + STOPPED, 0);
    while Instant::now() < until {
        run(Command::new(program).arg(AT_ONCE.to_string()));
        run(Command::new(program).args(["20", "5", "each"]));
        calls += AT_ONCE + 100;
    }
    send_signal(exporter.pid(), "CONT");
    calls
}

#[test]
fn what_it_takes_does_not_grow() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(seconds);
    let place = Place::new();
    let program = compiled(&place);
    let binary = place.copy_of(&program, "soaked");
    let plain = counting(&format!("binary: {}", binary.display()));
    let exporter = Setup::new(&place, plain.clone()).start();
    exporter.wait_until_ready();
    let ports = format!("metrics_port: {}\nhealth_port: {}\n", exporter.port, exporter.health_port);
    let with_main = format!("{plain}  - function: main\n    metrics:\n    - {{ counter: mains_total }}\n");
    let reloads =
        || exporter.scrape().value("fibre_exporter_config_last_reload_success_timestamp_seconds", &[]);
    let reload = |yaml: &str| {
        let before = reloads();
        place.write("config.yaml", &format!("{yaml}{ports}"));
        send_signal(exporter.pid(), "HUP");
        wait_for("the reload", || reloads() > before);
    };
    let (mut calls, mut round, mut early) = (0, 0, None);
    while early.is_none() || Instant::now() < until {
        round += 1;
        // Short-lived processes, one that makes many calls, and one that is killed.
        run(Command::new(&binary).args(["100", "5", "each"]));
        run(Command::new(&binary).arg("20000"));
        let mut killed = Command::new(&binary)
            // Its child keeps running, and calls nothing.
            .args(["1", "0", "all"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("start it");
        killed.kill().expect("kill it");
        killed.wait().expect("wait for it");
        calls += 100 * 5 + 20_000;
        is_exact(&exporter.scrape(), f64::from(calls));
        // A reload that adds or removes a probe.
        reload(if round % 2 == 1 { &with_main } else { &plain });
        exporter.wait_until_ready();
        // An upgrade.
        if round % 4 == 0 {
            let before = replaced(&exporter);
            let new = place.copy_of(&program, "soaked.new");
            fs::rename(new, &binary).expect("replace it");
            wait_for("the new file to be attached", || replaced(&exporter) > before);
            exporter.wait_until_ready();
        }
        if round == WARM_UP {
            calls += while_stopped(&exporter, &binary);
        }
        if early.is_none() && round > WARM_UP && round % 4 == 0 && begun.elapsed() > STEADY {
            early = Some((held(exporter.pid()), memory(exporter.pid())));
        }
    }
    let (early, memory_early) = early.expect("it was measured");
    // After an even round, the probes are these.
    reload(&plain);
    let is_flat = |now: [usize; 4]| {
        now[DESCRIPTORS] <= early[DESCRIPTORS]
            && now[BPF_MAPS] <= early[BPF_MAPS]
            && now[THREADS] <= early[THREADS] + 16
            && now[MAPPINGS] <= early[MAPPINGS] + 64
    };
    // Files that no process runs any more are released at the next check.
    wait_for("descriptors, threads and mappings to be what they were", || is_flat(held(exporter.pid())));
    let (now, memory) = (held(exporter.pid()), memory(exporter.pid()));
    println!("{round} rounds, {calls} calls: {early:?} {memory_early} kB, then {now:?} {memory} kB");
    assert!(memory < memory_early + memory_early / 4 + 2048, "{memory_early} kB, then {memory} kB");
}
