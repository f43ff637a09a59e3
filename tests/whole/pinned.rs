//! `state: pinned`: probes stay attached when the exporter ends, keep counting, and are taken over.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_rs::MapCore;

use crate::process::{all_in_kernel, forms_config, held_in_kernel};
use crate::reload::{COUNTED, OTHER, OTHER_BY_NAME, STEADY, Steady, TIMED, compiled, target};
use crate::support::bpffs::{BpfFs, unpin};
use crate::support::demo::{Forms, I32_SITES, program};
use crate::support::exporter::{Exporter, Place, Port, Setup, exporter, finish, wait_for};

/// Creates a directory, a BPF file system in it, and a program to trace.
fn set_up() -> (Place, BpfFs, PathBuf) {
    let place = Place::new();
    let bpf = BpfFs::mount(&place);
    let program = compiled(&place, STEADY);
    (place, bpf, program)
}

fn start(place: &Place, bpf: &BpfFs, program: &Path, probes: &[&str], more: &str) -> Exporter {
    let yaml = target(program, probes);
    let exporter = Setup::new(place, yaml).yaml(&bpf.config()).yaml(more).start();
    exporter.wait_until_ready();
    exporter
}

const TAKEN_OVER: &str = "Took over the probes that version";

/// The exporter computes the series from events.
const FROM_EVENTS: &str = "      - function: other\n        metrics: [{ counter: globbed_total, labels: { comm: { value: comm, match: { 'no*': no, 'p*g*m': ours } }, tid: tid } }]\n";

#[test]
fn restart_loses_no_hit_after_any_exit() {
    for attach in ["auto", "perf"] {
        let (place, bpf, program) = set_up();
        let more = format!("attach: {attach}\n");
        let probes = [COUNTED, TIMED, OTHER, OTHER_BY_NAME, FROM_EVENTS];
        let mut exporter = start(&place, &bpf, &program, &probes, &more);
        let steady = Steady::start(&program);
        for signal in ["TERM", "KILL"] {
            let before = exporter.scrape().value("counted_total", &[]);
            exporter.end(signal);
            exporter = start(&place, &bpf, &program, &probes, &more);
            exporter.wait_for_log(TAKEN_OVER);
            assert!(exporter.scrape().value("counted_total", &[]) >= before);
        }
        let calls = steady.end();
        let scrape = exporter.scrape();
        for name in ["counted_total", "timed_seconds_count", "other_total"] {
            assert_eq!(scrape.value(name, &[]), calls, "{name} with {attach}: {}", exporter.log());
        }
        assert_eq!(scrape.value("named_total", &[("comm", "program")]), calls, "{}", exporter.log());
        // Events that do not fit into the ring while no exporter reads it are counted as lost; and an exporter that is
        // killed may already have counted one event that is still in the ring.
        let from_events = scrape.value("globbed_total", &[("comm", "ours")]);
        let lost = scrape.sum("fibre_exporter_probe_lost_total", &[]);
        assert_eq!(lost, scrape.sum("fibre_exporter_probe_lost_total", &[("reason", "ring_full")]));
        let all = from_events + lost;
        assert!((calls..=calls + 1.0).contains(&all), "{all}, not {calls}: {}", exporter.log());
        let events = scrape.sum("fibre_exporter_events_processed_total", &[]);
        assert!(events >= calls, "{events}");
        exporter.stop();
        unpin(&bpf.state());
    }
}

#[test]
fn pinned_file_cannot_be_overwritten_without_an_exporter() {
    let (place, bpf, program) = set_up();
    let copy = place.copy_of(&program, "again");
    let open = || std::fs::OpenOptions::new().write(true).open(&program).map(drop);
    for signal in ["KILL", "TERM"] {
        let mut exporter = start(&place, &bpf, &program, &[COUNTED], "");
        // The exporter's lease makes a writer wait until the probes are detached; they are attached again afterwards.
        open().expect("the file is written");
        exporter.wait_until_ready();
        exporter.end(signal);
        // Where the kernel refuses the program that guards the file, the exporter warns; elsewhere, opening the file
        // for writing fails as for a running program.
        if !exporter.log().contains("do not overwrite a traced file in place") {
            let refused = open().expect_err("the file has breakpoints");
            assert_eq!(refused.kind(), std::io::ErrorKind::ExecutableFileBusy, "{refused}");
            assert!(std::fs::File::open(&program).is_ok());
            let truncated =
                Command::new("truncate").args(["--size", "0"]).arg(&program).output().expect("run truncate");
            assert!(!truncated.status.success());
        }
        // A replacement is another file, which the next exporter finds.
        std::fs::copy(&copy, place.path("new")).expect("copy a file");
        std::fs::rename(place.path("new"), &program).expect("put a file in its place");
        let steady = Steady::start(&program);
        let mut exporter = start(&place, &bpf, &program, &[COUNTED], "");
        exporter.wait_for_log(TAKEN_OVER);
        exporter.scrape_until("hits in the new file", |scrape| scrape.value("counted_total", &[]) > 0.0);
        steady.end();
        exporter.end(signal);
    }
    unpin(&bpf.state());
    wait_for("the file to be free", || open().is_ok());
}

#[test]
fn sibling_of_a_pinned_file_stays_leased_after_restart() {
    let (place, bpf, program) = set_up();
    let mut exporter = start(&place, &bpf, &program, &[COUNTED], "");
    let beside = place.copy_of(&program, "program.new");
    let inode = std::fs::metadata(&beside).expect("the file").ino();
    let is_guarded = || {
        let locks = std::fs::read_to_string("/proc/locks").expect("the locks");
        let of_it = |line: &str| line.contains("LEASE") && line.contains(&format!(":{inode} "));
        locks.lines().any(of_it)
    };
    wait_for("the file to be attached to before it takes the other's place", is_guarded);
    // It finishes attaching before it ends.
    exporter.end("TERM");
    assert!(!is_guarded());
    let exporter = start(&place, &bpf, &program, &[COUNTED], "");
    exporter.wait_for_log(TAKEN_OVER);
    wait_for("the file to be guarded again", is_guarded);
    exporter.stop();
    unpin(&bpf.state());
}

#[test]
fn unpin_removes_everything() {
    let place = Place::new();
    let bpf = BpfFs::mount(&place);
    let binary = place.copy_of(&program("forms"), "forms");
    let mut forms = Forms::start(&binary);
    let mut exporter = Setup::new(&place, forms_config(&binary)).yaml(&bpf.config()).start();
    exporter.wait_until_ready();
    let held = held_in_kernel(exporter.pid());
    let (status, _, err) = finish(crate::support::exporter::exporter().arg("unpin").arg(bpf.state()));
    assert_eq!(status, Some(1));
    assert!(err.contains("a running exporter uses it"), "{err}");
    exporter.end("KILL");
    // A process that starts while no exporter runs is counted, too.
    assert_eq!(forms.semaphore("forms:i32"), I32_SITES);
    let mut later = Forms::start(&binary);
    assert_eq!(later.semaphore("forms:i32"), I32_SITES);
    forms.fire("i32", 5);
    later.fire("i32", 7);
    let mut exporter = Setup::new(&place, forms_config(&binary)).yaml(&bpf.config()).start();
    exporter.wait_until_ready();
    assert_eq!(exporter.scrape().value("forms_fired_total", &[]), 12.0);
    exporter.end("TERM");
    assert_eq!(forms.semaphore("forms:i32"), I32_SITES);
    assert!(!held.is_disjoint(&all_in_kernel()));
    unpin(&bpf.state());
    wait_for("the semaphore to be lowered", || forms.semaphore("forms:i32") == 0);
    wait_for("links, programs and maps to go", || held.is_disjoint(&all_in_kernel()));
    forms.fire("i32", 5);
    // Unpinning again is not an error.
    unpin(&bpf.state());
}

#[test]
fn unchanged_probes_survive_a_config_change() {
    let (place, bpf, program) = set_up();
    let mut exporter = start(&place, &bpf, &program, &[COUNTED, TIMED, OTHER], "");
    let steady = Steady::start(&program);
    let sets: [&[&str]; 4] =
        [&[COUNTED, OTHER_BY_NAME], &[OTHER_BY_NAME, COUNTED, TIMED], &[COUNTED], &[OTHER, COUNTED]];
    for (n, probes) in sets.into_iter().enumerate() {
        exporter.end(if n % 2 == 0 { "TERM" } else { "KILL" });
        exporter = start(&place, &bpf, &program, probes, "");
        exporter.wait_for_log(TAKEN_OVER);
        let scrape = exporter.scrape();
        assert_eq!(scrape.select("named_total", &[]).is_empty(), !probes.contains(&OTHER_BY_NAME), "{n}");
        assert_eq!(scrape.select("timed_seconds_count", &[]).is_empty(), !probes.contains(&TIMED), "{n}");
    }
    let calls = steady.end();
    assert_eq!(exporter.scrape().value("counted_total", &[]), calls, "{}", exporter.log());
    exporter.stop();
    unpin(&bpf.state());
}

#[test]
fn incompatible_state_is_reset_and_reported() {
    let (place, bpf, program) = set_up();
    let mut exporter = start(&place, &bpf, &program, &[COUNTED], "");
    let steady = Steady::start(&program);
    exporter.scrape_until("hits", |scrape| scrape.value("counted_total", &[]) > 0.0);
    exporter.end("TERM");
    let calls = steady.end();
    let held = held_by(&bpf);
    let exporter = start(&place, &bpf, &program, &[COUNTED], "ring: { size: 1MiB }\n");
    exporter.wait_for_log("cannot be taken over; counts start from zero: `ring.size` has changed");
    assert!(exporter.scrape().value("counted_total", &[]) < calls);
    assert_begun_anew(&exporter, &program, &held);
    exporter.stop();
    unpin(&bpf.state());
}

#[test]
fn state_without_its_record_is_reset_and_reported() {
    let (place, bpf, program) = set_up();
    let mut exporter = start(&place, &bpf, &program, &[COUNTED], "");
    exporter.end("TERM");
    let held = held_by(&bpf);
    std::fs::remove_file(bpf.state().join("state")).expect("remove the record");
    let exporter = start(&place, &bpf, &program, &[COUNTED], "");
    exporter.wait_for_log("counts start from zero: the record of what it contains is missing");
    assert_begun_anew(&exporter, &program, &held);
    exporter.stop();
    unpin(&bpf.state());
}

/// Alters the document as if another version of the exporter had written it.
fn alter(document: &Path, key: &str) {
    let map = libbpf_rs::MapHandle::from_pinned_path(document).expect("the document");
    let mut text = map.lookup(&[0; 4], libbpf_rs::MapFlags::ANY).expect("read it").expect("its first piece");
    let key = format!("\"{key}\":\"");
    let at = text.windows(key.len()).position(|part| part == key.as_bytes()).expect("the key") + key.len();
    text[at] = if text[at] == b'0' { b'1' } else { b'0' };
    map.update(&[0; 4], &text, libbpf_rs::MapFlags::ANY).expect("write it");
}

#[test]
fn state_of_another_version_is_not_adopted() {
    let (place, bpf, program) = set_up();
    let mut exporter = start(&place, &bpf, &program, &[COUNTED, TIMED], "");
    for (document, key, reason) in
        [("state", "abi", "whose tables differ"), ("0/state", "layout", "its series have another layout")]
    {
        exporter.end("KILL");
        let held = held_by(&bpf);
        alter(&bpf.state().join(document), key);
        let config = place.path("config.yaml");
        let (status, shown, err) = finish(crate::support::exporter::exporter().arg("check").arg(&config));
        assert_eq!(status, Some(0), "{err}");
        assert!(shown.contains("no exporter runs"), "{shown}");
        assert_eq!(shown.contains("cannot take over"), key == "abi", "{shown}");
        exporter = start(&place, &bpf, &program, &[COUNTED, TIMED], "");
        exporter.wait_for_log(reason);
        assert_begun_anew(&exporter, &program, &held);
    }
    exporter.stop();
    unpin(&bpf.state());
}

/// Checks that the previous links are gone and that calls are counted from zero.
#[track_caller]
fn assert_begun_anew(exporter: &Exporter, program: &Path, held: &[u32]) {
    wait_for("the links of before to go", || {
        held.iter().all(|link| !all_in_kernel().contains(&("link_id:", *link)))
    });
    let steady = Steady::start(program);
    let calls = steady.end();
    assert_eq!(exporter.scrape().value("counted_total", &[]), calls, "{}", exporter.log());
}

/// Returns the IDs of the pinned links.
fn held_by(bpf: &BpfFs) -> Vec<u32> {
    let links = std::fs::read_dir(bpf.state().join("0/links")).expect("the pinned links");
    let open = |path: PathBuf| libbpf_rs::Link::open(path).and_then(|link| link.info()).expect("a link").id;
    links.map(|link| open(link.expect("a link").path())).collect()
}

#[test]
fn rejects_state_of_another_user_or_file_system() {
    let (place, bpf, program) = set_up();
    let refused = |state: &Path| {
        let [port, health_port] = [Port::claim(), Port::claim()];
        let yaml = format!(
            "{}state: pinned\nstate_directory: {}\nmetrics_port: {port}\nhealth_port: {health_port}\n",
            target(&program, &[COUNTED]),
            state.display()
        );
        let (status, out, err) = finish(exporter().arg("--config").arg(place.write("config.yaml", &yaml)));
        assert_eq!(status, Some(1), "{out}{err}");
        out + &err
    };
    let told = refused(&place.path("state"));
    assert!(told.contains("is not on a BPF file system") && told.contains("mount -t bpf bpf"), "{told}");
    std::fs::create_dir(bpf.state()).expect("make a directory");
    std::os::unix::fs::chown(bpf.state(), Some(65534), None).expect("give it away");
    let told = refused(&bpf.state());
    assert!(told.contains("is one of user 65534"), "{told}");
    std::os::unix::fs::chown(bpf.state(), Some(0), None).expect("take it back");
    let told = refused(&bpf.state());
    assert!(told.contains("with mode 0755") || told.contains("with mode 07"), "{told}");
}
