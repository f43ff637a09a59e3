//! Programs that put a copy of their code in its place: what can be counted of them is said, and they are not ended again and
//! again by breakpoints in the copy.

use std::os::unix::process::ExitStatusExt;

use super::support::*;
use crate::support::exporter::{Place, Setup};

#[test]
fn code_that_was_moved_before_is_told_of() {
    let place = Place::new();
    let path = place.path("moved");
    build(&path, &["-O1", "-DPAD=1"]);
    let (mut moved, mut other) = (Program::start(&path), Program::start(&path));
    moved.say("move");
    let selector = format!("binary: {}", path.display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    exporter.wait_for_log(&format!("process {} has replaced the code at 1 of 1 traced places", moved.pid()));
    moved.fire(1000);
    other.fire(3);
    assert_eq!(exporter.scrape().value("p_total", &[]), 3.0);
    assert!(!exporter.log().contains(&format!("process {} has", other.pid())), "{}", exporter.log());
}

#[test]
fn a_program_that_breakpoints_end_is_not_traced_any_more() {
    let place = Place::new();
    let path = place.path("moves");
    build(&path, &["-O1", "-DPAD=1"]);
    let selector = format!("binary: {}", path.display());
    let exporter = Setup::new(&place, config(&[("p", &selector)])).start();
    exporter.wait_until_ready();
    for _ in 0..2 {
        let mut program = Program::start(&path);
        program.fire(1);
        program.say("move");
        program.tell("1");
        assert_eq!(program.end().signal(), Some(libc::SIGTRAP));
    }
    exporter.wait_for_log("not traced any more");
    let mut program = Program::start(&path);
    program.say("move");
    program.fire(10_000);
    assert_eq!(exporter.scrape().value("p_total", &[]), 2.0);
    let (status, reason) = exporter.health("/ready");
    assert!(status == 503 && reason.contains("were ended by SIGTRAP"), "{reason}");
    // Another version may have turned that off.
    let new = place.path("moves.new");
    build(&new, &["-O3", "-DPAD=40"]);
    std::fs::rename(new, &path).unwrap();
    exporter.wait_until_ready();
    Program::start(&path).fire(5);
    assert_eq!(exporter.scrape().value("p_total", &[]), 7.0);
}
