//! Programs linked by lld, whose semaphores are on a page that two segments load: the kernel raises the wrong copy in those that
//! start later.

use std::time::{Duration, Instant};

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

/// As long as a loader waits at most.
const LONGEST_HOLD: Duration = Duration::from_millis(500);

/// How often the program's semaphore is raised.
fn raised(program: &mut Program) -> u32 {
    program.say("raised").parse().unwrap()
}

fn until_raised(program: &mut Program) {
    eventually("the semaphore to be raised", || raised(program) > 0);
}

#[test]
fn processes_that_start_later_are_counted_too_and_nothing_stays_raised() {
    let directory = directory();
    let (path, other) = (directory.path().join("lld"), directory.path().join("other"));
    build(&path, &["-O1", "-fuse-ld=lld", "-DSEMAPHORE", "-DPAD=1"]);
    std::fs::hard_link(&path, &other).unwrap();
    let mut before = Program::start(&path);
    assert_eq!(raised(&mut before), 0);
    let target = [("p", format!("binary: {}", path.display()))];
    let target = target.each_ref().map(|(name, selector)| (*name, selector.as_str()));
    let mut tracer = Tracer::start(&config(&target));
    assert!(raised(&mut before) > 0, "the kernel raises it");
    let mut later = Program::start(&path);
    until_raised(&mut later);
    let mut named_otherwise = Program::start(&other);
    until_raised(&mut named_otherwise);
    // Once for each breakpoint. There can be one more where code shares a page with what has become read-only meanwhile.
    for program in [&mut before, &mut later, &mut named_otherwise] {
        assert!(raised(program) > 0);
        program.fire(100);
        program.say("fork 1000");
    }
    assert_eq!(count(&tracer, "p_total"), 3300);
    // Another program in the same process.
    later.tell(&format!("exec {}", path.display()));
    until_raised(&mut later);
    later.fire(5);
    assert_eq!(count(&tracer, "p_total"), 3305);

    // The kernel lowers what was raised here, and raises all of it for the next exporter.
    for _ in 0..2 {
        drop(tracer);
        for program in [&mut before, &mut later, &mut named_otherwise] {
            assert_eq!(raised(program), 0);
        }
        tracer = Tracer::start(&config(&target));
        let mut fresh = Program::start(&path);
        until_raised(&mut fresh);
        for program in [&mut before, &mut later, &mut named_otherwise, &mut fresh] {
            assert!(raised(program) > 0);
            program.fire(10);
        }
        assert_eq!(count(&tracer, "p_total"), 40);
    }
}

#[test]
fn two_targets_of_one_file_raise_it_once() {
    let directory = directory();
    let path = directory.path().join("lld-twice");
    build(&path, &["-O1", "-fuse-ld=lld", "-DSEMAPHORE", "-DPAD=1"]);
    let (binary, process) = (format!("binary: {}", path.display()), "process: lld-twice".to_string());
    let tracer = Tracer::start_unready(&config(&[("a", &binary), ("b", &process)]), false);
    let mut program = Program::start(&path);
    until_sites(&tracer, 1, 1);
    until_raised(&mut program);
    program.fire(8);
    assert_eq!((count(&tracer, "a_total"), count(&tracer, "b_total")), (8, 8));
    drop(tracer);
    assert_eq!(raised(&mut program), 0);
}

#[test]
fn what_stays_where_another_probe_was_shed_is_counted_in_processes_that_start_later() {
    let directory = directory();
    let path = directory.path().join("lld-shed");
    build(&path, &["-O1", "-fuse-ld=lld", "-DSEMAPHORE", "-DPAD=1"]);
    let target = config(&[("p", &format!("binary: {}", path.display()))]);
    let tracer =
        Tracer::start(&format!("{target}  - on: usdt:t:hit\n    metrics: [{{ counter: kept_total }}]\n"));
    tracer.shed(0);
    let mut later = Program::start(&path);
    until_raised(&mut later);
    later.fire(7);
    assert_eq!((count(&tracer, "p_total"), count(&tracer, "kept_total")), (0, 7));
    drop(tracer);
    assert_eq!(raised(&mut later), 0);
}

/// The library of such a build in a process that loads it: nothing of it runs before its semaphore is raised.
#[test]
fn a_library_is_counted_from_the_first_call_of_each_process_that_loads_it() {
    let directory = directory();
    let [program, library] = ["program", "liblld.so"].map(|name| directory.path().join(name));
    build(&program, &["-O1", "-DPAD=1"]);
    let options = ["-O1", "-DLIBRARY", "-DSEMAPHORE", "-DPAD=1", "-shared", "-fPIC", "-fuse-ld=lld"];
    build(&library, &options);
    let target = config(&[("p", &format!("binary: {}", library.display()))]);
    let target = target.replace("usdt:t:hit", "usdt:lib:hit");
    let mut tracer = Tracer::start(&target);
    let (mut programs, mut counted, mut in_time) = (Vec::new(), 0, 0);
    for _ in 0..200 {
        let mut program = Program::start(&program);
        let asked = Instant::now();
        program.tell(&format!("open {}\n10", library.display()));
        (0..2).for_each(|_| drop(program.answer()));
        let is_late = asked.elapsed() >= LONGEST_HOLD;
        let before = std::mem::replace(&mut counted, count(&tracer, "p_total"));
        if is_late {
            // It has waited in vain, and nobody waits before it was looked at.
            eventually("the semaphore to be raised", || {
                program.fire(1);
                count(&tracer, "p_total") > counted
            });
            counted = count(&tracer, "p_total");
        } else {
            assert_eq!(counted - before, 10);
            in_time += 1;
        }
        programs.push(program);
        if in_time == 10 {
            break;
        }
    }
    assert_eq!(in_time, 10, "the exporter was never in time");
    // They are lowered again, and raised for the next exporter.
    drop(tracer);
    tracer = Tracer::start(&target);
    for program in &mut programs {
        program.fire(3);
    }
    assert_eq!(count(&tracer, "p_total"), 3 * programs.len() as u64);
}
