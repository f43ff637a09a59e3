//! Slow events seen from the outside: what is stored, shown, and counted, even where events cannot be stored.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use serde_json::Value;

use crate::reload::write;
use crate::support::demo::{Forms, play, program};
use crate::support::exporter::{Exporter, Place, Setup, exporter, finish, wait_for};
use crate::support::exposition::Metrics;

/// Runs `exporter events --format json` with these options.
pub fn events(options: &[&str]) -> Vec<Value> {
    let (code, text, told) = finish(exporter().args(["events", "--format", "json"]).args(options));
    assert_eq!((code, told.as_str()), (Some(0), ""), "{options:?}");
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{err}: {text}"))
}

/// Scrapes until no event is waiting or in the ring: seen = kept + outdone + lost.
fn settled(exporter: &Exporter) -> Metrics {
    let all = |scrape: &Metrics, what: &str| scrape.sum(&format!("fibre_exporter_slow_events_{what}"), &[]);
    exporter.scrape_until("every slow event to be kept or lost", |scrape| {
        all(scrape, "waiting") == 0.0
            && all(scrape, "total")
                == all(scrape, "kept_total") + all(scrape, "outdone_total") + all(scrape, "lost_total")
    })
}

fn kept_in(file: &Path, metric: &str, over: &str) -> String {
    format!("slow_events:\n  file: {}\n  metrics:\n    {metric}: {over}\n", file.display())
}

#[test]
fn records_slow_blocks_with_the_unit_settings() {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fibre-exporter.service"));
    let unit = unit.expect("read the unit");
    assert!(unit.contains("\nStateDirectory=fibre-exporter\n"), "where the file is by default");
    let names =
        unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities=")).expect("its capabilities");
    let names: Vec<_> = names.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    // Its own directory, the only one that it could write to.
    let directory = place.path("state");
    fs::create_dir(&directory).expect("make a directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).expect("protect it");
    chown(&directory, Some(65534), Some(65534)).expect("give it away");
    let file = directory.join("events.db");
    let metric = "fibre_block_reconstruction_duration_seconds";
    let setup = || {
        Setup::fibre(&place, &demo)
            .yaml(&kept_in(&file, metric, "250ms"))
            .nobody_with(&format!("-all,+{}", names.join(",+")))
    };
    let first = setup().start();
    first.wait_until_ready();
    let totals = play(&demo, &["--rate", "0", "--blocks", "3000", "--wait-attached"]);
    let scrape = settled(&first);
    scrape.measured().assert_same(&totals.series("demo"));
    // The number of values beyond the bucket with that bound.
    let bucket = |le: &str| scrape.value(&format!("{metric}_bucket"), &[("le", le)]);
    let slow = bucket("+Inf") - bucket("0.25");
    assert!(slow > 10.0, "{slow}");
    let of = |what: &str| scrape.sum(&format!("fibre_exporter_slow_events_{what}"), &[]);
    assert_eq!((of("total"), of("kept_total"), of("stored"), of("writable")), (slow, slow, slow, 1.0));
    assert_eq!(scrape.sum("fibre_exporter_probe_delivered_total", &[]), 0.0, "only slow hits are sent");
    let config = place.path("config.yaml").display().to_string();
    let while_it_runs = events(&["--config", &config, "--limit", "100000"]);
    assert_eq!(while_it_runs.len() as f64, slow);
    for row in &while_it_runs {
        let value = row["value"].as_f64().expect("a number");
        assert!(
            value > 0.25 && row["over"] == 0.25 && row["metric"] == metric && row["node"] == "demo",
            "{row}"
        );
        let fields: Vec<_> = row["fields"].as_object().expect("fields").keys().collect();
        for name in ["hash", "peer", "chunks_used", "chunks_received", "elapsed", "height", "pid"] {
            assert!(fields.iter().any(|field| *field == name), "{row}");
        }
    }
    let height = while_it_runs[0]["fields"]["height"].as_str().expect("a height");
    let one = events(&["--config", &config, "--where", &format!("height={height}")]);
    assert!(!one.is_empty() && one.iter().all(|row| row["fields"]["height"] == height));
    assert_eq!(events(&["--config", &config, "--probe", "udp:nothing"]), [] as [Value; 0]);
    let (code, table, _) = finish(exporter().args(["events", "--config", &config, "--limit", "3"]));
    println!("{table}");
    assert_eq!((code, table.lines().count()), (Some(0), 7));
    assert!(table.contains("\n    udp:block_reconstructed: hash="), "{table}");
    assert_eq!(fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    first.stop();
    // Read by another user with permission, while nothing writes to the file, and in a directory of someone else.
    let copy = place.path("copy.db");
    fs::copy(&file, &copy).expect("copy the file");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).expect("let it be read");
    let mut read = std::process::Command::new("setpriv");
    read.args(["--reuid=12345", "--regid=12345", "--clear-groups", "--"]).arg(exporter().get_program());
    read.args(["events", "--format", "json", "--limit", "100000", "--file"]).arg(&copy);
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).expect("let others in");
    let (code, text, told) = finish(&mut read);
    assert_eq!((code, told.as_str()), (Some(0), ""));
    assert_eq!(serde_json::from_str::<Vec<Value>>(&text).expect("JSON"), while_it_runs);
    // Stored events remain, and the counters start from zero.
    let second = setup().start();
    second.wait_until_ready();
    let scrape = second.scrape();
    let of = |what: &str| scrape.sum(&format!("fibre_exporter_slow_events_{what}"), &[]);
    assert_eq!((of("stored"), of("total")), (slow, 0.0));
    second.stop();
}

/// Compared with all events of the same blocks: the worst of each hour are exactly the largest of them.
#[test]
fn keeps_the_worst_blocks_of_an_hour() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let file = place.path("events.db");
    let entry = |metric: &str, slow: &str| {
        format!(
            "  - on: usdt:udp:block_reconstructed\n    args: {{ height: 6, elapsed: {{ index: 5, unit: us }} }}\n    metrics:\n    - {{ histogram: {metric}, value: elapsed, buckets: [1], slow: {slow} }}\n"
        )
    };
    let yaml = format!(
        "node_name: demo\nslow_events: {{ file: {} }}\ntargets:\n- name: bitcoind\n  binary: {}\n  probes:\n{}{}",
        file.display(),
        demo.display(),
        entry("all_seconds", "{ over: -1 }"),
        entry("worst_seconds", "{ worst: 9 }")
    );
    let running = Setup::new(&place, yaml).start();
    running.wait_until_ready();
    let totals = play(&demo, &["--rate", "200", "--blocks", "400"]);
    let scrape = settled(&running);
    scrape.assert_nothing_lost();
    let fired = totals.fired("udp:block_reconstructed");
    assert!(fired > 100, "{fired}");
    let rows = events(&["--file", &file.display().to_string(), "--limit", "10000"]);
    let (_, table, _) = finish(exporter().arg("events").arg("--file").arg(&file).args(["--limit", "2"]));
    println!("{table}");
    let mut all: std::collections::BTreeMap<String, [Vec<f64>; 2]> = std::collections::BTreeMap::new();
    for row in &rows {
        let hour = row["time"].as_str().expect("a time")[..13].to_owned();
        let is_worst = row["metric"] == "worst_seconds";
        assert_eq!((row["worst"].is_null(), row["over"].is_null()), (!is_worst, is_worst), "{row}");
        all.entry(hour).or_default()[usize::from(is_worst)].push(row["value"].as_f64().expect("a number"));
    }
    for [all, worst] in all.values_mut() {
        [&mut *all, worst].into_iter().for_each(|values| values.sort_by(|a, b| b.total_cmp(a)));
        all.truncate(9);
        assert_eq!(all, worst);
    }
    // The accounting of the metric that keeps all events, and of the other one, for which few were sent.
    let of = |what: &str| scrape.sum(&format!("fibre_exporter_slow_events_{what}"), &[]);
    assert!(of("total") >= fired as f64 + 9.0 && of("stored") == rows.len() as f64, "{}", of("total"));
    println!("{} sent of {}, {} outdone", of("total") - fired as f64, fired, of("outdone_total"));
    let (code, shown, told) = finish(exporter().args(["check"]).arg(place.path("config.yaml")));
    assert_eq!(code, Some(0), "{told}");
    assert!(
        shown.contains("slow: of worst_seconds, the worst 9 of each hour are kept with height"),
        "{shown}"
    );
    running.stop();
}

/// The duration, what was missing, who won the race, and how long connecting the block took are in one row.
#[test]
fn one_row_explains_a_slow_block() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let file = place.path("events.db");
    let with = ["block_reconstruction_detail", "block_race_winner", "block_race_time"];
    let with = with.map(|name| format!("usdt:udp:{name}")).join(", ");
    let slow = format!("{{ over: 0, key: height, with: [{with}, usdt:validation:block_connected] }}");
    let metric = "fibre_block_reconstruction_duration_seconds";
    let running = Setup::fibre(&place, &demo).yaml(&kept_in(&file, metric, &slow)).start();
    running.wait_until_ready();
    // Two nodes that run the same file count the same heights.
    let totals: Vec<_> = std::thread::scope(|scope| {
        let play = || play(&demo, &["--rate", "50", "--blocks", "60", "--wait-attached"]);
        let both = [scope.spawn(play), scope.spawn(play)];
        both.map(|one| one.join().expect("a demo")).into()
    });
    let scrape = settled(&running);
    scrape.assert_nothing_lost();
    let of = |what: &str| scrape.sum(&format!("fibre_exporter_slow_events_{what}"), &[]);
    let fired: u64 = totals.iter().map(|totals| totals.fired("udp:block_reconstructed")).sum();
    assert!(fired > 10, "{fired}");
    assert_eq!((of("kept_total"), of("related_lost_total")), (fired as f64, 0.0));
    let rows = events(&["--file", &file.display().to_string(), "--limit", "1000"]);
    let (_, table, _) = finish(exporter().arg("events").arg("--file").arg(&file).args(["--limit", "2"]));
    println!("{table}");
    assert_eq!(rows.len() as u64, fired);
    let text = |of: &Value, name: &str| of["fields"][name].as_str().unwrap_or_default().to_owned();
    for row in &rows {
        let related = row["related"].as_array().expect("a list");
        assert!(related.iter().all(|other| text(other, "height") == text(row, "height")), "{row}");
        let count = |probe: &str| related.iter().filter(|other| other["probe"] == probe).count();
        assert_eq!(
            (count("udp:block_reconstruction_detail"), count("validation:block_connected")),
            (1, 1),
            "{row}"
        );
        assert_eq!(count("udp:block_race_winner"), 1, "{row}");
        assert!(related.iter().all(|other| other["after"].as_f64().expect("a number").abs() < 60.0), "{row}");
    }
    let check = place.path("config.yaml").display().to_string();
    let (code, shown, told) = finish(exporter().args(["check", &check]));
    assert_eq!(code, Some(0), "{told}");
    assert!(shown.contains("kept with slow events of other probes, so every hit is sent"), "{shown}");
    assert!(shown.contains("and with events of 4 other probes that have the same height"), "{shown}");
    running.stop();
}

const FORMS: &str = "node_name: test\ntargets:\n- name: forms\n  binary: {binary}\n  probes:\n  - on: usdt:forms:i32\n    args: { n: 0 }\n    metrics:\n    - { histogram: forms_n, value: n, buckets: [0], {slow} }\n";

fn forms(binary: &Path, slow: &str) -> String {
    FORMS.replace("{binary}", &binary.display().to_string()).replace("{slow}", slow)
}

/// Every event is slow, and there is little room for them.
#[test]
fn accounting_balances_when_slow_events_overflow() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let file = place.path("events.db");
    let more = format!(
        "ring: {{ size: 16KiB, poll: 100ms }}\nslow_events: {{ file: {}, rows: 500 }}\n",
        file.display()
    );
    let yaml = forms(&binary, "slow: -3000000000");
    let exporter = Setup::new(&place, yaml + &more).start();
    exporter.wait_until_ready();
    let mut program = Forms::start(&binary);
    for _ in 0..5 {
        program.fire("i32", 40_000);
    }
    let scrape = settled(&exporter);
    let hits = scrape.value("fibre_exporter_probe_hits_total", &[]);
    assert_eq!(scrape.value("fibre_exporter_probe_aggregated_total", &[]), hits);
    assert_eq!(scrape.value("forms_n_count", &[]), hits, "whatever becomes of its event, a hit is counted");
    let seen =
        scrape.value("fibre_exporter_slow_events_total", &[("probe", "forms:i32"), ("target", "forms")]);
    let kept = scrape.value("fibre_exporter_slow_events_kept_total", &[]);
    let lost = |reason: &str| scrape.value("fibre_exporter_slow_events_lost_total", &[("reason", reason)]);
    println!("seen {seen}, kept {kept}, {:?}", ["ring_full", "queue_full", "write_failed"].map(lost));
    assert_eq!(seen, hits);
    assert!(kept > 0.0 && lost("ring_full") > 0.0);
    assert_eq!(scrape.value("fibre_exporter_slow_events_stored", &[]), kept.min(500.0));
    assert_eq!(
        events(&["--file", &file.display().to_string(), "--limit", "1000"]).len() as f64,
        kept.min(500.0)
    );
    // A cleanup that deletes the file does not affect its metrics.
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(format!("{}{suffix}", file.display())).expect("remove the file");
    }
    program.fire("i32", 10);
    exporter.wait_for_log("was deleted or moved");
    wait_for("the file to be there again", || file.exists());
    settled(&exporter);
    assert!(!events(&["--file", &file.display().to_string()]).is_empty());
    exporter.stop();
}

/// Files cannot grow any further, as on a full disk.
#[test]
fn unwritable_events_are_queued_and_overflow_is_counted() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let file = place.path("events.db");
    let yaml =
        forms(&binary, "slow: -3000000000") + &format!("slow_events: {{ file: {} }}\n", file.display());
    let exporter = Setup::new(&place, yaml)
        .through(&["sh", "-c", "trap '' XFSZ; ulimit -f 200; exec \"$@\"", "sh"])
        .start();
    exporter.wait_until_ready();
    let mut program = Forms::start(&binary);
    let of = |scrape: &Metrics, what: &str| scrape.sum(&format!("fibre_exporter_slow_events_{what}"), &[]);
    wait_for("a write to fail", || {
        program.fire("i32", 200);
        of(&exporter.scrape(), "writable") == 0.0
    });
    let lost =
        |scrape: &Metrics| scrape.value("fibre_exporter_slow_events_lost_total", &[("reason", "queue_full")]);
    wait_for("the queue to be full", || {
        program.fire("i32", 200);
        lost(&exporter.scrape()) > 0.0
    });
    exporter.wait_for_log("failed to write slow events");
    let scrape = exporter.scrape_until("every event to be somewhere", |scrape| {
        of(scrape, "total") == of(scrape, "kept_total") + of(scrape, "lost_total") + of(scrape, "waiting")
    });
    assert!(of(&scrape, "waiting") > 1000.0);
    assert_eq!(scrape.value("forms_n_count", &[]), scrape.value("fibre_exporter_probe_hits_total", &[]));
    let log = exporter.log();
    assert_eq!(log.matches("failed to write slow events").count(), 1, "said once: {log}");
    exporter.stop();
}

#[test]
fn reload_starts_and_stops_recording_slow_events() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let file = place.path("events.db");
    let with = |slow: &str| forms(&binary, slow) + &format!("slow_events: {{ file: {} }}\n", file.display());
    let exporter = Setup::new(&place, with("help: x")).start();
    exporter.wait_until_ready();
    assert!(
        !file.exists() && !exporter.text().contains("slow_events"),
        "without `slow` there is nothing of it"
    );
    let mut program = Forms::start(&binary);
    let fired = |program: &mut Forms| program.fire("i32", 100);
    let reload = |yaml: &str| {
        write(&place, &exporter, yaml);
        let output = exporter.fetch("/-/reload", &["--request", "POST"]);
        String::from_utf8(output.stdout).expect("a text")
    };
    let kept = || exporter.scrape().sum("fibre_exporter_slow_events_kept_total", &[]);
    assert!(reload(&with("slow: -3000000000")).contains("1 new or changed"));
    exporter.wait_until_ready();
    fired(&mut program);
    settled(&exporter);
    let first = kept();
    assert!(first > 0.0);
    // A different threshold makes a different probe, whose counts start from zero.
    assert!(reload(&with("slow: 3000000000")).contains("1 new or changed"));
    exporter.wait_until_ready();
    fired(&mut program);
    settled(&exporter);
    assert_eq!(kept(), 0.0);
    assert!(reload(&with("help: x")).contains("1 new or changed"));
    exporter.wait_until_ready();
    fired(&mut program);
    // Everything that it counted in the meantime is there.
    let scrape = exporter.scrape();
    assert_eq!(scrape.value("forms_n_count", &[]), 3.0 * first);
    // The events stored earlier are still in the file.
    exporter.stop();
    assert_eq!(events(&["--file", &file.display().to_string(), "--limit", "100000"]).len() as f64, first);
}

#[test]
fn unusable_event_files_are_reported_with_a_reason() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let run = |slow_events: &str| {
        let yaml = forms(&binary, "slow: 5") + "metrics_port: 19399\nhealth_port: 19398\n" + slow_events;
        let config = place.write("config.yaml", &yaml).display().to_string();
        finish(exporter().args(["--config", &config]))
    };
    let (code, out, told) = run(&format!("slow_events: {{ file: {} }}\n", place.path("a/b/c.db").display()));
    assert_eq!(code, Some(2), "{out}{told}");
    assert!(format!("{out}{told}").contains("a/b/c.db: No such file"), "{out}{told}");
    let text = place.write("text.db", "SQLite format 3\0 but no more of it");
    let (code, _, told) = finish(exporter().arg("events").arg("--file").arg(&text));
    assert_eq!(code, Some(1));
    assert!(told.contains("failed to read slow events from") && told.contains("text.db"), "{told}");
    let (code, _, told) = finish(exporter().arg("events").arg("--file").arg(place.path("none.db")));
    assert_eq!(code, Some(1));
    assert!(told.contains("none.db: No such file"), "{told}");
}
