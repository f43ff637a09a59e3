//! Everything at once and over and over, for as long as `SOAK_SECONDS` says (`scripts/soak.sh`: an hour): counts are exact in each
//! round, and what the exporter takes does not grow.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::hostile::{BPF_MAPS, DESCRIPTORS, MAPPINGS, THREADS, compiled, counting, held, is_exact};
use crate::support::exporter::{Exporter, Place, Setup, send_signal, wait_for};
use crate::support::program::run;

/// In the test command.
const SECONDS: u64 = 300;

/// How long the exporter is stopped while a program calls as often as it can.
const STOPPED: Duration = Duration::from_secs(30);

/// Rounds until everything has been made that is made once: caches, the allocator's arenas, threads for requests.
const WARM_UP: u32 = 8;

/// Resident, in kilobytes: what is its own, without pages of the executable, which the kernel drops and reads again as it likes.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn replaced(exporter: &Exporter) -> f64 {
    exporter.scrape().sum("fibre_exporter_reattach_total", &[("reason", "replaced")])
}

/// Has the program call while the exporter is stopped; as often as this. What is told of processes meanwhile finds no room.
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
    let until = Instant::now() + Duration::from_secs(seconds);
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
    while round <= WARM_UP || Instant::now() < until {
        round += 1;
        // Processes that come and go, one that calls often, one that is killed.
        run(Command::new(&binary).args(["100", "5", "each"]));
        run(Command::new(&binary).arg("20000"));
        let mut killed = Command::new(&binary)
            // Its child goes on, and calls nothing.
            .args(["1", "0", "all"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("start it");
        killed.kill().expect("kill it");
        killed.wait().expect("wait for it");
        calls += 100 * 5 + 20_000;
        is_exact(&exporter.scrape(), f64::from(calls));
        // A reload that brings a probe or takes it away.
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
        if round == WARM_UP + 1 {
            calls += while_stopped(&exporter, &binary);
        }
        if round == WARM_UP {
            early = Some((held(exporter.pid()), memory(exporter.pid())));
        }
    }
    let (early, memory_early) = early.expect("as many rounds");
    // An even round has the probes of the last of the warm-up.
    reload(&plain);
    let is_flat = |now: [usize; 4]| {
        now[DESCRIPTORS] <= early[DESCRIPTORS]
            && now[BPF_MAPS] <= early[BPF_MAPS]
            && now[THREADS] <= early[THREADS] + 16
            && now[MAPPINGS] <= early[MAPPINGS] + 64
    };
    // Files that nobody runs any more go when it is looked at them.
    wait_for("descriptors, threads and mappings to be what they were", || is_flat(held(exporter.pid())));
    let (now, memory) = (held(exporter.pid()), memory(exporter.pid()));
    println!("{round} rounds, {calls} calls: {early:?} {memory_early} kB, then {now:?} {memory} kB");
    assert!(memory < memory_early + memory_early / 4 + 8192, "{memory_early} kB, then {memory} kB");
}
