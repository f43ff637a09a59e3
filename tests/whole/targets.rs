//! Programs that start late, restart, are replaced, or run twice.

use std::fs;
use std::path::Path;

use crate::support::demo::{Demo, Forms, I32_SITES, play, program};
use crate::support::exporter::{Exporter, Place, Setup, wait_for};

const BURST: &[&str] = &["--rate", "0", "--wait-attached"];
const HEIGHT: &str = "fibre_last_block_height";

fn burst<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [BURST, more].concat()
}

/// Starts an exporter that counts the probe `i32` of this program.
fn counts_forms(place: &Place, binary: &Path, selector: &str) -> Exporter {
    let yaml = format!(
        "targets:\n\
         - name: forms\n  \
           binary: {}\n  \
           {selector}\n  \
           probes:\n  \
           - on: usdt:forms:i32\n    \
             args: {{value: 0}}\n    \
             metrics:\n    \
             - {{counter: forms_fired_total, help: Fired.}}\n    \
             - {{gauge: forms_value, help: The last value., value: value}}\n",
        binary.display()
    );
    Setup::new(place, yaml).start()
}

fn fired(exporter: &Exporter) -> f64 {
    exporter.scrape().value("forms_fired_total", &[])
}

#[test]
fn file_created_later_is_traced() {
    let place = Place::new();
    let demo = place.path("bitcoind");
    let exporter = Setup::fibre(&place, &demo).start();
    let (status, body) = exporter.health("/ready");
    assert_eq!(status, 503);
    assert!(body.contains("bitcoind: udp:block_reconstructed is waiting: "), "{body}");
    assert!(body.contains("No such file or directory"), "{body}");
    let scrape = exporter.scrape();
    assert_eq!(scrape.value("fibre_exporter_probes_attached", &[]), 0.0);
    assert_eq!(scrape.select("fibre_exporter_probe_state", &[("state", "waiting")]).len(), 6);
    exporter.wait_for_log("[WARNING] exporter: Target bitcoind: ");

    // Atomically, as a package manager does it.
    let new = place.copy_of(&program("fibre-demo"), "bitcoind.new");
    fs::rename(new, &demo).expect("rename");
    exporter.wait_until_ready();
    let totals = play(&demo, &burst(&["--blocks", "100"]));
    exporter.scrape().measured().assert_same(&totals.series("demo"));
}

#[test]
fn later_and_repeated_starts_continue_the_counters() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).start();
    exporter.wait_until_ready();
    let first = play(&demo, &burst(&["--blocks", "60"]));
    exporter.scrape().measured().assert_same(&first.series("demo"));
    let second = play(&demo, &burst(&["--blocks", "40", "--seed", "2", "--start-height", "900060"]));
    let both = first.series("demo").and(&second.series("demo"), &[HEIGHT]);
    exporter.scrape().measured().assert_same(&both);
}

#[test]
fn two_processes_of_one_file_are_summed() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).start();
    exporter.wait_until_ready();
    let first = Demo::start(&demo, &burst(&["--blocks", "1000", "--seed", "3"]));
    let second = Demo::start(&demo, &burst(&["--blocks", "1000", "--seed", "4"]));
    let (first, second) = (first.end().series("demo"), second.end().series("demo"));
    let scrape = exporter.scrape().measured();
    scrape.without(HEIGHT).assert_same(&first.and(&second, &[]).without(HEIGHT));
    assert_eq!(scrape.value(HEIGHT, &[]), 900_999.0, "the last of either");
}

#[test]
fn killed_program_loses_no_hit() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let exporter = counts_forms(&place, &binary, "");
    exporter.wait_until_ready();
    let mut sum = 0.0;
    for count in [1000, 1, 50] {
        let mut forms = Forms::start(&binary);
        forms.fire("i32", count);
        // Killed with SIGKILL on drop.
        drop(forms);
        sum += count as f64;
        assert_eq!(fired(&exporter), sum);
    }
    assert_eq!(exporter.health("/ready").0, 200, "whether it runs does not matter");
}

#[test]
fn replaced_file_counts_in_both_versions() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let exporter = counts_forms(&place, &binary, "");
    exporter.wait_until_ready();
    let mut old = Forms::start(&binary);
    old.fire("i32", 10);
    assert_eq!(fired(&exporter), 10.0);

    // The new file is another build: its sites are at other places, and so are its arguments.
    fs::rename(place.copy_of(&program("forms-no-pie"), "forms.new"), &binary).expect("rename");
    wait_for("the new file to be traced", || exporter.log().matches("Attached 1/1 probes").count() == 2);
    let mut new = Forms::start(&binary);
    assert_eq!((old.semaphore("forms:i32"), new.semaphore("forms:i32")), (I32_SITES, I32_SITES));
    old.fire("i32", 20);
    new.fire("i32", 300);
    assert_eq!(fired(&exporter), 330.0);
    assert_eq!(exporter.health("/ready").0, 200);

    // Once no process runs the old file any more, its probes are detached; those of the new file stay.
    drop(old);
    wait_for("the old file to be let go", || exporter.log().contains("no process runs"));
    new.fire("i32", 4000);
    assert_eq!(fired(&exporter), 4330.0);
    assert_eq!(new.semaphore("forms:i32"), I32_SITES);
}

#[test]
fn deleted_file_counts_while_running_and_is_found_again() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let exporter = counts_forms(&place, &binary, "");
    exporter.wait_until_ready();
    let mut old = Forms::start(&binary);
    fs::remove_file(&binary).expect("remove a file");
    old.fire("i32", 7);
    assert_eq!(fired(&exporter), 7.0);
    place.copy_of(&program("forms"), "forms");
    wait_for("the new file to be traced", || exporter.log().matches("Attached 1/1 probes").count() == 2);
    Forms::start(&binary).fire("i32", 8);
    old.fire("i32", 9);
    assert_eq!(fired(&exporter), 24.0);
}

#[test]
fn pid_restricts_counting_to_that_process() {
    let place = Place::new();
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    let wanted = Demo::start(&binary, &burst(&["--blocks", "30", "--linger", "60", "--seed", "5"]));
    let other = Demo::start(&binary, &burst(&["--blocks", "50", "--seed", "6"]));
    let exporter = Setup::fibre(&place, &binary).arguments(&["--pid", &wanted.pid().to_string()]).start();
    exporter.wait_until_ready();
    other.end();
    let connected = || exporter.scrape().sum("bitcoin_blocks_connected_total", &[]);
    wait_for("the blocks of one process", || connected() == 30.0);
    let totals = wanted.stop();
    let scrape = exporter.scrape();
    scrape.measured().assert_same(&totals.series("demo"));
    assert_eq!(
        scrape.value("fibre_exporter_probe_filtered_total", &[("probe", "validation:block_connected")]),
        50.0
    );
}

#[test]
fn reasons_that_alternate_are_logged_once_each() {
    let place = Place::new();
    let name = format!("brief-{}", std::process::id() % 100_000);
    let program = place.copy_of(Path::new("/bin/sleep"), &name);
    let yaml = format!(
        "targets:\n\
         - name: none\n  \
           library: libnone.so.9\n  \
           process: {name}\n  \
           probes:\n  \
           - on: usdt:none:none\n    \
             metrics: [{{counter: none_total}}]\n"
    );
    let exporter = Setup::new(&place, yaml).start();
    let until_shown = |reason: &str| wait_for(reason, || exporter.health("/ready").1.contains(reason));
    let [without, unlike] = ["no selected process is running", "none of the selected processes has loaded"];
    for _ in 0..3 {
        until_shown(without);
        let mut process = std::process::Command::new(&program).arg("600").spawn().expect("start it");
        until_shown(unlike);
        process.kill().expect("end it");
        process.wait().expect("wait for it");
    }
    until_shown(without);
    let log = exporter.log();
    assert_eq!(log.matches("[WARNING] exporter: Target none: ").count(), 2, "{log}");
}
