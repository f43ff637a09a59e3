//! The kernel reports processes: those that start, are renamed or moved are attached to, with only one scan of /proc.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use exporter::targets::ProbeState;

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

fn start(targets: &[(&str, &str)]) -> Tracer {
    let tracer = Tracer::start_unready(&config(targets), false);
    assert_eq!(tracer.targets().walks, 1);
    tracer
}

fn until_attached(tracer: &Tracer, probe: usize) {
    eventually(&format!("the probe to be attached, {:?} now", tracer.state(probe)), || {
        tracer.state(probe).0 == ProbeState::Attached
    });
}

fn named(what: &str) -> String {
    format!("{what}{}", std::process::id() % 100_000)
}

/// Creates a program file of its own with this name.
fn program(builds: &Path, directory: &Path, name: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    copy(&builds.join("first"), &path);
    path
}

#[test]
fn started_renamed_and_moved_processes_are_found_by_events() {
    let (builds, directory) = (builds(), directory());
    let at = |name: &str| program(builds.path(), directory.path(), name);
    let id = format!("{:08x}{}", std::process::id(), "fedcba9876543210".repeat(4)[..56].to_owned());
    let [started, renamed] = ["ev-a", "ev-b"].map(named);
    // Both are already running, under other names and in no container.
    let (mut other, mut outside) = (Program::start(&at("before")), Program::start(&at("outside")));
    let tracer = start(&[
        ("started", &format!("process: {started}")),
        ("renamed", &format!("process: {renamed}")),
        ("moved", &format!("container: {id}")),
    ]);
    let mut first = Program::start(&at(&started));
    until_attached(&tracer, 0);
    first.fire(3);
    other.say(&format!("name {renamed}"));
    until_attached(&tracer, 1);
    other.fire(5);
    // A new container, whose first process joins by exec and another by being moved.
    let container = Cgroup::new(hierarchy().join(format!("docker-{id}.scope")));
    let mut inside = container.start(&at("inside"));
    until_sites(&tracer, 2, 1);
    inside.fire(7);
    std::fs::write(container.0.join("cgroup.procs"), outside.pid().to_string()).unwrap();
    until_sites(&tracer, 2, 2);
    outside.fire(11);
    let counts = ["started", "renamed", "moved"].map(|name| count(&tracer, &format!("{name}_total")));
    assert_eq!(counts, [3, 5, 18]);
    assert_eq!(tracer.targets().walks, 1, "all that was told");
    drop((inside, outside));
}

#[test]
fn processes_matching_a_glob_are_found_by_events() {
    let (builds, directory) = (builds(), directory());
    let at = |name: &str| program(builds.path(), directory.path(), name);
    let [started, line, renamed] = ["ev-g", "ev-line", "ev-r"].map(named);
    let mut other = Program::start(&at("before"));
    let tracer = start(&[
        ("started", &format!("process: \"{started}?[a-c]*\"")),
        ("line", &format!("cmdline: \"*{line}*\"")),
        ("renamed", &format!("process: \"*{renamed}\"")),
        ("both", &format!("process: \"nobody*\"\n  cmdline: \"*{line}*\"")),
    ]);
    // Matches no target, though almost; started twice.
    let nearly = at(&format!("{started}-d"));
    let mut nearly = [Program::start(&nearly), Program::start(&nearly)];
    let mut first = Program::start(&at(&format!("{started}-bc")));
    until_attached(&tracer, 0);
    first.fire(3);
    let mut by_line = Program::of(Command::new(at("lined")).arg0(format!("lined {line} more")));
    until_attached(&tracer, 1);
    by_line.fire(5);
    other.say(&format!("name x-{renamed}"));
    until_attached(&tracer, 2);
    other.fire(7);
    nearly.iter_mut().for_each(|program| program.fire(11));
    let counts = ["started", "line", "renamed", "both"].map(|name| count(&tracer, &format!("{name}_total")));
    assert_eq!(counts, [3, 5, 7, 0]);
    assert_eq!(tracer.targets().walks, 1, "all that was told");
}

/// What is known about a file from one target's processes does not apply to another target, whose processes run it
/// under the same name.
#[test]
fn targets_share_a_program_by_command_line_or_parent() {
    let (builds, directory) = (builds(), directory());
    let at = |name: &str| program(builds.path(), directory.path(), name);
    let [name, line, parent] = ["ev-n", "ev-also", "ev-p"].map(named);
    let shell = at(&parent);
    std::fs::copy("/bin/dash", &shell).unwrap();
    let tracer = start(&[
        ("named", &format!("process: {name}")),
        ("line", &format!("cmdline: \"*{line}*\"")),
        ("child", &format!("process: {parent}\n  children: true")),
    ]);
    let path = at(&name);
    let mut first = Program::start(&path);
    until_attached(&tracer, 0);
    first.fire(3);
    let mut by_line = Program::of(Command::new(&path).arg0(format!("lined {line} more")));
    until_attached(&tracer, 1);
    by_line.fire(5);
    let mut by_parent = Program::of(Command::new(&shell).args(["-c", "$0; exit"]).arg(&path));
    until_sites(&tracer, 2, 1);
    by_parent.fire(7);
    let counts = ["named", "line", "child"].map(|name| count(&tracer, &format!("{name}_total")));
    assert_eq!(counts, [15, 5, 7]);
    assert_eq!(tracer.targets().walks, 1, "all that was told");
}

#[test]
fn short_lived_program_counts_from_its_second_start() {
    let (builds, directory) = (builds(), directory());
    let name = named("ev-short");
    let path = program(builds.path(), directory.path(), &name);
    let tracer = start(&[("short", &format!("process: {name}"))]);
    fire_at_once(&path, 1);
    until_attached(&tracer, 0);
    let before = count(&tracer, "short_total");
    for _ in 0..20 {
        fire_at_once(&path, 5);
    }
    assert_eq!(count(&tracer, "short_total"), before + 100);
    assert_eq!(tracer.targets().walks, 1);
}

#[test]
fn short_lived_program_is_found_relative_to_its_parent() {
    let (builds, directory) = (builds(), directory());
    let name = named("ev-near");
    let path = program(builds.path(), directory.path(), &name);
    let tracer = start(&[("near", &format!("process: {name}"))]);
    let script = "cd $0 && ./$1 1 < /dev/null > /dev/null && echo ended && read answer";
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", script]).args([directory.path(), Path::new(&name)]);
    let mut stays = Program::of(shell);
    // Attaching may have waited for that, so fire only then.
    until_attached(&tracer, 0);
    assert_eq!(stays.answer(), "ended");
    let before = count(&tracer, "near_total");
    fire_at_once(&path, 5);
    assert_eq!(count(&tracer, "near_total"), before + 5);
}

#[test]
fn waits_for_a_process_with_a_given_pid() {
    let (builds, directory) = (builds(), directory());
    let path = program(builds.path(), directory.path(), "numbered");
    // A number that is free now.
    let pid = Program::start(&path).pid();
    let tracer = start(&[("one", &format!("pid: {pid}"))]);
    assert!(matches!(tracer.state(0).0, ProbeState::Missing(_)));
    let mut it = Program::start_as(pid, &path).expect("the number is free");
    until_attached(&tracer, 0);
    it.fire(9);
    assert_eq!((count(&tracer, "one_total"), tracer.targets().walks), (9, 1));
}

#[test]
fn children_stay_traced_after_their_parent_exits() {
    let (builds, directory) = (builds(), directory());
    let name = named("ev-child");
    let path = program(builds.path(), directory.path(), &name);
    let tracer = start(&[("family", &format!("process: {name}"))]);
    let mut parent = Program::start(&path);
    until_attached(&tracer, 0);
    // The shell has ended before its child fires; the child never executed anything.
    parent.say("leave 2000");
    drop(parent);
    eventually("the child's hits", || count(&tracer, "family_total") == 2000);
    assert_eq!(tracer.state(0), (ProbeState::Attached, 1));
    assert_eq!(tracer.targets().walks, 1);
}

#[test]
fn reattachments_are_counted_by_reason() {
    let (builds, directory) = (builds(), directory());
    let both = ["first", "second"].map(|build| builds.path().join(build));
    let path = program(builds.path(), directory.path(), "upgraded");
    let tracer = start(&[("p", &format!("binary: {}", path.display()))]);
    assert_eq!(tracer.targets().reattached, [[0, 0]]);
    let beside = directory.path().join("other");
    copy(&both[1], &beside);
    run("mv", &[beside.to_str().unwrap(), path.to_str().unwrap()]);
    eventually("the new file", || tracer.targets().reattached == [[1, 0]]);
    copy(&both[0], &path);
    eventually("the file with other contents", || tracer.targets().reattached == [[1, 1]]);
    fire_at_once(&path, 4);
    assert_eq!(count(&tracer, "p_total"), 4);
}

#[test]
fn one_file_under_several_names_is_several_programs() {
    let (builds, directory) = (builds(), directory());
    let [one, other] = ["ev-one", "ev-two"].map(named);
    let path = program(builds.path(), directory.path(), &one);
    let tracer = start(&[("one", &format!("process: {one}")), ("other", &format!("process: {other}"))]);
    let mut running = Program::start(&path);
    until_attached(&tracer, 0);
    running.fire(3);
    // A hard link, as busybox's commands are.
    let link = directory.path().join(&other);
    std::fs::hard_link(&path, &link).unwrap();
    fire_at_once(&link, 1);
    until_attached(&tracer, 1);
    let before = count(&tracer, "other_total");
    for _ in 0..10 {
        fire_at_once(&link, 7);
    }
    let counts = ["one_total", "other_total"].map(|name| count(&tracer, name));
    assert_eq!(counts, [3, before + 70]);
    assert_eq!(tracer.targets().walks, 1);
}
