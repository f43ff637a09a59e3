//! Files that are replaced or overwritten: the program must run as without the exporter, and be counted from its start
//! wherever possible.

use std::path::Path;

use caps::{CapSet, Capability};

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

/// Overwrites one build with the other repeatedly, starting it at once. How many of its hits are seen is a race, but it
/// must run, and must be counted once it is attached again.
fn in_place(write: impl Fn(&Path, &Path)) {
    let (builds, directory) = (builds(), directory());
    let program = directory.path().join("program");
    let both = ["first", "second"].map(|build| builds.path().join(build));
    copy(&both[0], &program);
    let tracer = Tracer::start(&config(&[("p", &format!("binary: {}", program.display()))]));
    for turn in 1..8 {
        write(&both[turn % 2], &program);
        fire_at_once(&program, 5);
        counted_again(&tracer, &program);
        let before = count(&tracer, "p_total");
        fire_at_once(&program, 7);
        assert_eq!(count(&tracer, "p_total"), before + 7);
    }
    assert_eq!(tracer.stray(), 0);
}

/// Waits until hits are seen, and checks again a while later: the last operation on the file, such as touch(1), may
/// have triggered a detach a moment ago that is still in progress.
fn counted_again(tracer: &Tracer, program: &Path) {
    let is_counted = || {
        let before = count(tracer, "p_total");
        fire_at_once(program, 1);
        count(tracer, "p_total") > before
    };
    eventually("the file to be traced again", || {
        is_counted() && {
            std::thread::sleep(std::time::Duration::from_millis(250));
            is_counted()
        }
    });
}

#[test]
fn overwritten_by_cp() {
    in_place(copy);
}

#[test]
fn overwritten_by_dd_without_truncation() {
    in_place(|from, to| {
        // truncate(1) does not wait until the probes are detached, and has to be retried.
        let script = "dd if=$0 of=$1 conv=notrunc bs=512 status=none; until truncate -r $0 $1 2>$1.err; do sleep 0.01; done";
        run("sh", &["-c", script, from.to_str().unwrap(), to.to_str().unwrap()]);
    });
}

#[test]
fn overwritten_slowly_with_preserved_times() {
    in_place(|from, to| {
        let script =
            "touch -r $1 $1.times; cat $0 > $1; sleep 0.1; cat /dev/null >> $1; touch -r $1.times $1";
        run("sh", &["-c", script, from.to_str().unwrap(), to.to_str().unwrap()]);
    });
}

/// Opening a pipe would wait for its other end and block the exporter.
#[test]
fn pipe_next_to_the_file_does_not_block() {
    let (builds, directory) = (builds(), directory());
    let [program, pipe] = ["program", "pipe"].map(|name| directory.path().join(name));
    copy(&builds.path().join("first"), &program);
    let tracer = Tracer::start(&config(&[("p", &format!("binary: {}", program.display()))]));
    run("mkfifo", &[pipe.to_str().unwrap()]);
    // Written to, like a file that may replace the target.
    run("sh", &["-c", "exec 3<>$0; echo >&3; exec 3>&-", pipe.to_str().unwrap()]);
    let new = directory.path().join("program.new");
    copy(&builds.path().join("second"), &new);
    run("mv", &[new.to_str().unwrap(), program.to_str().unwrap()]);
    counted_again(&tracer, &program);
}

/// Every hit of a file that replaces the target is counted from the first one, and the old file is still counted.
fn by_rename(target: impl Fn(&Path) -> String, beside: impl Fn(&str) -> String) {
    let (builds, directory) = (builds(), directory());
    let name = format!("up{}", std::process::id());
    let program = directory.path().join(&name);
    let both = ["first", "second"].map(|build| builds.path().join(build));
    copy(&both[0], &program);
    let mut old = Program::start(&program);
    let tracer = Tracer::start(&config(&[("p", &target(&program))]));
    let mut expected = 0;
    for turn in 1..6 {
        let beside = directory.path().join(beside(&name));
        copy(&both[turn % 2], &beside);
        // As with dpkg, some time passes. Trial runs under the other name do not belong to the target.
        eventually("the file to be attached before it takes the other's place", || {
            let before = tracer.accounting_at_rest()[0].hits;
            fire_at_once(&beside, 10);
            tracer.accounting_at_rest()[0].hits > before
        });
        let script = "mv $0 $1 && exec $1 300";
        run("sh", &["-c", script, beside.to_str().unwrap(), program.to_str().unwrap()]);
        old.fire(1000);
        expected += 1300;
        assert_eq!(count(&tracer, "p_total"), expected, "turn {turn}");
    }
    // Also of files that the first process still runs.
    assert_eq!(tracer.targets().reattached, [[5, 0]]);
}

#[test]
fn renamed_over_a_configured_file() {
    by_rename(|program| format!("binary: {}", program.display()), |name| format!("{name}.dpkg-new"));
}

#[test]
fn renamed_over_the_executable_of_a_process() {
    by_rename(|program| format!("process: {}", program.file_name().unwrap().display()), |_| "tmpX8f2".into());
}

#[test]
fn symlink_is_switched_to_another_directory() {
    let (builds, directory) = (builds(), directory());
    let at = directory.path();
    for (version, build) in [("v1", "first"), ("v2", "second")] {
        std::fs::create_dir_all(at.join(version).join("bin")).unwrap();
        copy(&builds.path().join(build), &at.join(version).join("bin/app"));
    }
    let turn = |to: &str| run("ln", &["-sfn", to, at.join("current").to_str().unwrap()]);
    turn("v1");
    let app = at.join("current/bin/app");
    let tracer = Tracer::start(&config(&[("p", &format!("binary: {}", app.display()))]));
    fire_at_once(&app, 3);
    turn("v2");
    counted_again(&tracer, &app);
    let before = count(&tracer, "p_total");
    fire_at_once(&app, 50);
    assert_eq!(count(&tracer, "p_total"), before + 50);
}

#[test]
fn metadata_changes_do_not_reattach() {
    let (builds, directory) = (builds(), directory());
    let program = directory.path().join("program");
    copy(&builds.path().join("first"), &program);
    let tracer = Tracer::start(&config(&[("p", &format!("binary: {}", program.display()))]));
    let mut running = Program::start(&program);
    let mut fired = 0;
    for turn in 0..20 {
        match turn % 3 {
            0 => run("chmod", &[if turn % 2 == 0 { "700" } else { "755" }, program.to_str().unwrap()]),
            1 => run("touch", &[program.to_str().unwrap()]),
            _ => run(
                "ln",
                &["-f", program.to_str().unwrap(), directory.path().join("other").to_str().unwrap()],
            ),
        }
        for _ in 0..20 {
            running.fire(10);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        fired += 200;
    }
    assert_eq!(count(&tracer, "p_total"), fired);
}

/// Files are rarely checked while there are no notifications.
#[test]
fn changes_after_idle_are_noticed_immediately() {
    let (builds, directory) = (builds(), directory());
    let path = |name: &str| directory.path().join(name);
    let both = ["first", "second"].map(|build| builds.path().join(build));
    copy(&both[0], &path("there"));
    let name = format!("rest{}", std::process::id());
    copy(&both[0], &path(&name));
    let binary = |name: &str| format!("binary: {}", path(name).display());
    let targets =
        [("p", binary("there")), ("absent", binary("absent")), ("named", format!("process: {name}"))];
    let targets = targets.each_ref().map(|(name, selector)| (*name, selector.as_str()));
    let tracer = Tracer::start_unready(&config(&targets), false);
    std::thread::sleep(REST);
    fire_at_once(&path("there"), 3);
    assert_eq!(count(&tracer, "p_total"), 3);
    let mut named = Program::start(&path(&name));
    named.fire(5);
    assert_eq!(count(&tracer, "named_total"), 5);
    copy(&both[0], &path("absent.new"));
    std::fs::rename(path("absent.new"), path("absent")).unwrap();
    fire_at_once(&path("absent"), 7);
    assert_eq!(count(&tracer, "absent_total"), 7);
    std::thread::sleep(REST);
    copy(&both[1], &path("there"));
    counted_again(&tracer, &path("there"));
    std::thread::sleep(REST);
    copy(&both[0], &path("there.new"));
    std::fs::rename(path("there.new"), path("there")).unwrap();
    let before = count(&tracer, "p_total");
    fire_at_once(&path("there"), 9);
    assert_eq!(count(&tracer, "p_total"), before + 9);
}

/// Longer than the manager takes to notice that nothing happens.
const REST: std::time::Duration = std::time::Duration::from_secs(11);

/// Without a lease, the probes are removed once the exporter detects that the file may have been written, and set again
/// after that.
#[test]
fn starts_during_probe_removal_are_counted_or_reported() {
    let directory = directory();
    let program = directory.path().join("touched");
    build(&program, &["-O1", "-DPAD=1"]);
    std::os::unix::fs::chown(&program, Some(65534), None).unwrap();
    caps::drop(None, CapSet::Effective, Capability::CAP_LEASE).unwrap();
    let tracer = Tracer::start(&config(&[("p", &format!("binary: {}", program.display()))]));
    let mut lost = 0;
    for _ in 0..20 {
        let before = count(&tracer, "p_total");
        run("touch", &[program.to_str().unwrap()]);
        (0..40).for_each(|_| fire_at_once(&program, 1));
        lost += 40 - (count(&tracer, "p_total") - before);
        counted_again(&tracer, &program);
        if lost > 0 {
            break;
        }
    }
    assert!(lost > 0, "the probes were never on the way out");
    assert!(!tracer.targets().unprobed[0].is_zero(), "{lost} hits were lost without a word");
}
