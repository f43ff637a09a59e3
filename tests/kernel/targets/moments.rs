//! Programs that start at the very moment in which their file replaces the target's: they wait for the probes.

use std::fs;
use std::path::Path;
use std::process::Command;

use exporter::kernel::{PidNamespace, ProcessEvents, Wanted};

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::Tracer;

/// Hits of a program that is started once.
const HITS: u64 = 300;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// In each round, a new file from elsewhere ($0) replaces the target's ($1), and the same shell starts it.
fn started_by(script: &str) {
    let (builds, directory) = (builds(), directory());
    let name = format!("moment{}", std::process::id());
    let program = directory.path().join(&name);
    copy(&builds.path().join("first"), &program);
    let tracer = Tracer::start(&config(&[("p", &format!("binary: {}", program.display()))]));
    counted_from_the_first_hit(&tracer, "p_total", HITS, |turn| {
        let elsewhere = directory.path().join(turn.to_string());
        fs::create_dir(&elsewhere).unwrap();
        let new = elsewhere.join("other-name");
        copy(&builds.path().join(if turn % 2 == 0 { "second" } else { "first" }), &new);
        run("sh", &["-ec", script, text(&new), text(&program), &HITS.to_string()]);
    });
    assert_eq!(tracer.stray(), 0);
}

#[test]
fn moved_from_another_directory() {
    started_by("mv $0 $1; exec $1 $2");
}

#[test]
fn overwritten_in_place() {
    started_by("cp $0 $1; exec $1 $2");
}

#[test]
fn installed() {
    started_by("install -m 755 $0 $1; exec $1 $2");
}

#[test]
fn replaced_by_a_copy() {
    started_by("cp --remove-destination $0 $1; exec $1 $2");
}

#[test]
fn hard_linked() {
    started_by("ln -f $0 $1; exec $1 $2");
}

#[test]
fn symlinked() {
    started_by("ln -sfn $0 $1; exec $1 $2");
}

/// The name of the file that the link points to is known from the previous round.
#[test]
fn symlinked_and_started_by_its_real_path() {
    started_by("ln -sfn $0 $1; exec $0 $2");
}

#[test]
fn bind_mounted() {
    started_by("mount --bind $0 $1; s=0; $1 $2 || s=$?; umount -l $1; exit $s");
}

/// Detaching probes waits for programs that are held, and vice versa, unless separate threads do the work.
#[test]
fn detaching_does_not_deadlock_with_held_programs() {
    let (builds, directory) = (builds(), directory());
    let [held, overwritten, started] =
        ["held", "over", "start"].map(|what| format!("{what}{}", std::process::id()));
    let [held_path, overwritten_path] =
        [&held, &overwritten].map(|name| directory.path().join(name.as_str()));
    let [first, second] = ["first", "second"].map(|build| builds.path().join(build));
    copy(Path::new("/bin/true"), &held_path);
    copy(&first, &overwritten_path);
    let tracer = Tracer::start_unready(
        &config(&[
            ("o", &format!("binary: {}", overwritten_path.display())),
            ("s", &format!("process: {started}")),
        ]),
        false,
    );
    until_sites(&tracer, 0, 1);
    // This program is only released when its maximum hold time is over; until then no probe can be detached.
    let wanted = Wanted { names: vec![held], ..Wanted::default() };
    let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
    let mut saw_both = false;
    for turn in 0..30 {
        if saw_both || !can_make_wait() {
            return;
        }
        let new = directory.path().join(turn.to_string());
        fs::create_dir(&new).unwrap();
        copy(&first, &new.join(&started));
        let mut holding = Command::new(&held_path).spawn().unwrap();
        let from = if turn % 2 == 0 { &second } else { &first };
        let mut writing = Command::new("cp").args([from, &overwritten_path]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let before = count(&tracer, "s_total");
        fire_at_once(&new.join(&started), HITS);
        let counted = count(&tracer, "s_total") - before;
        let are_going_on = [&mut holding, &mut writing].map(|child| child.try_wait().unwrap().is_none());
        saw_both = are_going_on == [true; 2] && counted == HITS;
        assert!(holding.wait().unwrap().success() && writing.wait().unwrap().success());
        drop(events.take());
        events.answer();
        until_sites(&tracer, 0, 1);
    }
    panic!("no program started while probes were taken out");
}
