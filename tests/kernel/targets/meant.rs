//! A target that selects some processes counts those and no others.

use std::fs;

use super::support::*;
use exporter::targets::ProbeState;

use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

#[test]
fn other_name_of_the_same_file_is_not_counted() {
    let (builds, directory) = (builds(), directory());
    let [alpha, beta] = ["alpha", "beta"].map(|name| format!("{name}-{}", std::process::id() % 100_000));
    let [alpha_path, beta_path] = [&alpha, &beta].map(|name| directory.path().join(name));
    copy(&builds.path().join("first"), &alpha_path);
    fs::hard_link(&alpha_path, &beta_path).unwrap();
    let (mut first, mut other) = (Program::start(&alpha_path), Program::start(&beta_path));
    let tracer = Tracer::start(&config(&[("alpha", &format!("process: {alpha}"))]));
    first.fire(1);
    other.fire(10_000);
    assert_eq!(count(&tracer, "alpha_total"), 1);

    // From the first hit, however short-lived the process; children too; and any process named alpha, as long as it has
    // that name.
    fire_at_once(&alpha_path, 10);
    first.say("fork 100");
    other.say("fork 10_000");
    other.say(&format!("name {alpha}"));
    other.fire(1000);
    other.say("name something");
    other.fire(10_000);
    assert_eq!(count(&tracer, "alpha_total"), 1111);
    // Executing the same file under another name means no longer being alpha, and vice versa.
    first.tell(&format!("exec {}", beta_path.display()));
    first.fire(20_000);
    other.tell(&format!("exec {}", alpha_path.display()));
    other.fire(5000);
    assert_eq!(count(&tracer, "alpha_total"), 6111);
    // Hits that were filtered out are reported.
    let accounting = tracer.accounting_at_rest().remove(0);
    assert_eq!(accounting.hits, 6111 + 10_000 + 10 + 10_000 + 20_000, "{accounting:?}");
}

#[test]
fn long_name_is_matched_by_the_executable() {
    let (builds, directory) = (builds(), directory());
    let name =
        format!("a-name-that-is-longer-than-any-word-of-it-and-than-sixty-four-bytes-{}", std::process::id());
    let (path, other) = (directory.path().join(&name), directory.path().join(name.replace("any", "all")));
    copy(&builds.path().join("first"), &path);
    fs::hard_link(&path, &other).unwrap();
    let mut program = Program::start(&path);
    let tracer = Tracer::start(&config(&[("long", &format!("process: {name}"))]));
    program.fire(7);
    fire_at_once(&other, 100);
    assert_eq!(count(&tracer, "long_total"), 7);
}

/// The kernel stores the same fifteen bytes of both names.
#[test]
fn name_does_not_match_a_longer_one() {
    let (builds, directory) = (builds(), directory());
    let name = format!("{:0>15}", std::process::id());
    let (path, longer) = (directory.path().join(&name), directory.path().join(name.clone() + "-helper"));
    copy(&builds.path().join("first"), &path);
    fs::hard_link(&path, &longer).unwrap();
    let (mut program, mut helper) = (Program::start(&path), Program::start(&longer));
    let tracer = Tracer::start(&config(&[
        ("name", &format!("process: \"{name}\"")),
        ("glob", &format!("process: \"?{}\"", &name[1..])),
        ("longer", &format!("process: \"{name}-*\"")),
    ]));
    program.fire(7);
    helper.fire(100);
    let counts = ["name_total", "glob_total", "longer_total"].map(|metric| count(&tracer, metric));
    assert_eq!(counts, [7, 7, 100]);
}

#[test]
fn container_includes_its_nested_cgroups() {
    let (builds, directory) = (builds(), directory());
    let program = directory.path().join("image");
    copy(&builds.path().join("first"), &program);
    let id = |n: u32| {
        format!("{:08x}{}", std::process::id() ^ n << 24, "0123456789abcdef".repeat(4)[..56].to_owned())
    };
    let (one, two) = (id(1), id(2));
    let first = Cgroup::new(hierarchy().join(format!("docker-{one}.scope")));
    let inner = Cgroup::new(first.0.join("inner/deeper"));
    let watcher = Cgroup::new(hierarchy().join(format!("libpod-conmon-{one}.scope")));
    let second = Cgroup::new(hierarchy().join(format!("docker-{two}.scope")));
    let mut programs = [&first, &inner, &second, &watcher].map(|cgroup| cgroup.start(&program));
    programs.iter_mut().for_each(|program| program.fire(0));
    let tracer = Tracer::start(&config(&[
        // In quotes, as an ID can look like a number.
        ("one", &format!("container: \"{}\"", &one[..12])),
        ("two", &format!("container: \"{two}\"")),
    ]));
    for (program, times) in programs.iter_mut().zip([1, 10, 100, 1000]) {
        program.fire(times);
    }
    fire_at_once(&program, 10_000);
    assert_eq!((count(&tracer, "one_total"), count(&tracer, "two_total")), (11, 100));
    // A process that starts later, in a new cgroup.
    let newer = Cgroup::new(first.0.join("newer"));
    newer.start(&program).fire(5);
    assert_eq!((count(&tracer, "one_total"), count(&tracer, "two_total")), (16, 100));
    assert_eq!(tracer.accounting_at_rest()[0].hits, 11_116);
}

/// LXC and systemd-nspawn give containers names but no ids.
#[test]
fn containers_without_ids_are_selected_by_name() {
    let (builds, directory) = (builds(), directory());
    let program = directory.path().join("image");
    copy(&builds.path().join("first"), &program);
    let name = format!("web{}", std::process::id());
    let root = hierarchy();
    let groups = [
        format!("lxc.payload.{name}/inner"),
        format!("machine-{name}.scope/payload/system.slice"),
        format!(r"machine-a\x2d{name}.scope"),
        // Not in the container: its monitor, and a container whose name only begins with this one.
        format!("lxc.monitor.{name}"),
        format!("lxc.payload.{name}x"),
    ]
    .map(|path| Cgroup::new(root.join(path)));
    let mut early = groups[0].start(&program);
    early.fire(0);
    let tracer = Tracer::start_unready(
        &config(&[
            ("both", &format!("container: {name}")),
            ("escaped", &format!("container: a-{name}")),
            ("by_id", &format!("container: machine-{name}.scope")),
        ]),
        false,
    );
    early.fire(1);
    for (group, times) in groups.iter().zip([10, 100, 1000, 10_000, 100_000]) {
        group.start(&program).fire(times);
    }
    let counts = ["both_total", "escaped_total", "by_id_total"].map(|series| count(&tracer, series));
    assert_eq!(counts, [111, 1000, 100]);
}

/// As on hosts with both cgroup versions: the container exists only in version 1, which the kernel's programs do not
/// use.
#[test]
fn container_in_cgroup_v1_only_is_reported() {
    let (builds, directory) = (builds(), directory());
    let mounted = Mounted::version_1(directory.path());
    let id = format!("{:08x}{}", std::process::id(), "0123456789abcdef".repeat(4)[..56].to_owned());
    let container = Cgroup::new(mounted.at.join(&id));
    let mut program = container.start(&builds.path().join("first"));
    program.fire(1);
    let tracer = Tracer::start_unready(&config(&[("one", &format!("container: \"{id}\""))]), false);
    eventually(
        "the version to be told",
        || matches!(tracer.state(0), (ProbeState::Missing(reason), 0) if reason.contains("only has cgroup v1")),
    );
}

#[test]
fn reused_pid_is_not_the_same_process() {
    let (builds, directory) = (builds(), directory());
    let program = directory.path().join("numbered");
    copy(&builds.path().join("first"), &program);
    let mut first = Program::start(&program);
    let pid = first.pid();
    let tracer = Tracer::start(&config(&[
        ("alone", &format!("pid: {pid}")),
        ("of_file", &format!("binary: {}\n  pid: {pid}", program.display())),
    ]));
    first.fire(3);
    drop(first);
    let mut again = Program::start_as(pid, &program).expect("the number is free");
    again.fire(100);
    assert_eq!((count(&tracer, "alone_total"), count(&tracer, "of_file_total")), (3, 3));
    assert_eq!(tracer.accounting(1).filtered, 100);
    eventually(
        "the end of the process to be told",
        || matches!(tracer.state(0), (ProbeState::Missing(reason), 0) if reason.contains("was reused")),
    );
}

/// `/proc/PID` shows nothing for such a process, only its threads' entries do.
#[test]
fn process_without_its_main_thread_is_traced() {
    let (builds, directory) = (builds(), directory());
    let name = format!("led-{}", std::process::id() % 100_000);
    let path = directory.path().join(&name);
    copy(&builds.path().join("first"), &path);
    build(&directory.path().join("library"), &["-O1", "-DLIBRARY", "-shared", "-fPIC"]);
    let mut program = Program::start(&path);
    program.say(&format!("load {}", directory.path().join("library").display()));
    program.say("retire");
    let pid = program.pid();
    assert!(fs::read_link(format!("/proc/{pid}/exe")).is_err());
    let function = "  - function: padded\n    metrics: [{ counter: calls_total, labels: { pid: pid, comm: comm, caller: caller } }]\n";
    let library = "  - on: usdt:lib:hit\n    metrics: [{ counter: late_total }]\n";
    let text = config(&[("name", &format!("process: {name}")), ("number", &format!("pid: {pid}"))]);
    let tracer = Tracer::start(&format!("{text}{function}{library}"));
    program.fire(7);
    for series in ["name_total", "number_total", "late_total"] {
        assert_eq!(count(&tracer, series), 7, "{series}");
    }
    let labels = format!("calls_total{{pid=\"{pid}\",comm=\"{name}\",caller=\"hit\"}}");
    assert_eq!(count(&tracer, &labels), 7, "{:?}", tracer.render());
    // Children have a first thread again, and a thread that executes a program becomes it.
    program.say("fork 10");
    program.tell(&format!("exec {}", path.display()));
    program.fire(100);
    assert_eq!([count(&tracer, "name_total"), count(&tracer, "number_total")], [117, 107]);
}
