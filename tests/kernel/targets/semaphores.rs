//! Semaphores that the kernel does not raise where the program reads them: those of programs linked by lld, which are
//! on a page that two segments load, in processes that start later; and those of a library's additional copies in one
//! process.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

/// Returns how often the program's semaphore is raised.
fn raised(program: &mut Program) -> u32 {
    program.say("raised").parse().unwrap()
}

fn until_raised(program: &mut Program) {
    eventually("the semaphore to be raised", || raised(program) > 0);
}

#[test]
fn later_processes_count_and_semaphores_are_lowered() {
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
    // It is raised once per breakpoint, and possibly once more where code shares a page with data that has become
    // read-only meanwhile.
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
fn two_targets_raise_a_semaphore_once() {
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
fn remaining_probe_counts_later_processes_after_shedding() {
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

/// The library of such a build, in a process that loads it: none of its code runs before its semaphore is raised.
#[test]
fn library_counts_from_the_first_call_of_each_process() {
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
        let is_late = asked.elapsed() >= MAX_HOLD;
        let before = std::mem::replace(&mut counted, count(&tracer, "p_total"));
        if is_late {
            // Its wait timed out, and no process is held until this one has been handled.
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
    // The semaphores are lowered again, and raised for the next exporter.
    drop(tracer);
    tracer = Tracer::start(&target);
    for program in &mut programs {
        program.fire(3);
    }
    assert_eq!(count(&tracer, "p_total"), 3 * programs.len() as u64);
}

/// A library with a semaphore, linked as usual.
fn library(directory: &Path) -> PathBuf {
    let library = directory.join("libagain.so");
    build(&library, &["-O1", "-DLIBRARY", "-DSEMAPHORE", "-DPAD=1", "-shared", "-fPIC"]);
    library
}

fn raised_in_library(program: &mut Program) -> u32 {
    program.say("lib raised").parse().unwrap()
}

#[test]
fn all_copies_of_a_library_are_counted_and_lowered() {
    let directory = directory();
    let (path, library) = (directory.path().join("program"), library(directory.path()));
    build(&path, &["-O1", "-DPAD=1"]);
    let target = config(&[("p", &format!("binary: {}", library.display()))]);
    let target = target.replace("usdt:t:hit", "usdt:lib:hit");
    let mut before = Program::start(&path);
    before.say(&format!("open {}", library.display()));
    (0..2).for_each(|_| drop(before.say(&format!("again {}", library.display()))));
    assert_eq!(raised_in_library(&mut before), 0);

    let mut tracer = Tracer::start(&target);
    before.fire(10);
    assert_eq!(count(&tracer, "p_total"), 10);
    // Processes that load it again later are counted from the first call, unless the exporter is not scheduled for
    // longer than they wait.
    let mut later = Vec::new();
    counted_from_the_first_hit(&tracer, "p_total", 10, |_| {
        let mut program = Program::start(&path);
        program.say(&format!("open {}", library.display()));
        program.tell(&format!("again {}\n10", library.display()));
        (0..2).for_each(|_| drop(program.answer()));
        later.push(program);
    });
    for program in later.iter_mut().chain([&mut before]) {
        eventually("the semaphore to be raised", || raised_in_library(program) > 0);
        // In the end, the kernel lowers the copy that is the first at that time.
        program.say("close");
        let counted = count(&tracer, "p_total");
        program.fire(5);
        assert_eq!(count(&tracer, "p_total") - counted, 5);
    }

    for _ in 0..2 {
        drop(tracer);
        for program in later.iter_mut().chain([&mut before]) {
            assert_eq!(raised_in_library(program), 0);
        }
        tracer = Tracer::start(&target);
        for program in later.iter_mut().chain([&mut before]) {
            program.fire(3);
        }
        assert_eq!(count(&tracer, "p_total"), 3 * (later.len() as u64 + 1));
    }
}
