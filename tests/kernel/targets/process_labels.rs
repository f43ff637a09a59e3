//! The labels `exe` and `cmdline`: for ended processes as well as others, and the same in the kernel and in user space.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

/// Starts two tracers that count hits of these processes by both labels, one in the kernel and one entirely in user
/// space.
fn tracers(selector: &str) -> [Tracer; 2] {
    let yaml = format!(
        "node_name: test\ntargets:\n- name: t\n  {selector}\n  probes:\n  - on: usdt:t:hit\n    metrics:\n    - {{ \
         counter: hits_total, labels: {{ exe: exe, cmdline: cmdline }} }}\n"
    );
    [false, true].map(|all_to_ring| Tracer::start_by(&yaml, all_to_ring))
}

/// Asserts that there are exactly these series: path, command line, hits.
fn assert_hits(tracers: &[Tracer], expected: &[(&str, &str, u64)]) {
    let expected: BTreeMap<String, String> = expected
        .iter()
        .map(|(exe, cmdline, hits)| {
            let labels = format!("hits_total{{exe=\"{exe}\",cmdline=\"{cmdline}\"}}");
            (labels, hits.to_string())
        })
        .collect();
    for tracer in tracers {
        let mut series = tracer.render();
        series.retain(|name, _| name.starts_with("hits_total"));
        assert_eq!(series, expected);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn short_lived_processes_retain_both_names() {
    let (builds, directory) = (builds(), directory());
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    copy(&builds.path().join("first"), &one);
    fs::hard_link(&one, &two).unwrap();
    let tracers = tracers(&format!("binary: {}", one.display()));
    fire_at_once(&one, 3);
    fire_at_once(&one, 3);
    run(text(&one), &["5", "--and", "what follows"]);
    fire_at_once(&two, 7);
    let (one, two) = (text(&one), text(&two));
    assert_hits(
        &tracers,
        &[
            (one, &format!("{one} 3"), 6),
            (one, &format!("{one} 5 --and what follows"), 5),
            (two, &format!("{two} 7"), 7),
        ],
    );
}

#[test]
fn names_are_read_at_the_first_hit_after_exec() {
    let (builds, directory) = (builds(), directory());
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    copy(&builds.path().join("first"), &one);
    fs::hard_link(&one, &two).unwrap();
    let mut program = Program::start(&one);
    let tracers = tracers(&format!("binary: {}", one.display()));
    program.fire(1);
    // Overwriting its command line afterwards creates no new series.
    program.say("title changed");
    program.fire(10);
    program.tell(&format!("exec {}", two.display()));
    program.fire(100);
    // A child is a process of its own, with a later first hit.
    program.say("title child");
    program.say("fork 1000");
    // After an upgrade by rename, it is the same program.
    let new = directory.path().join("one.new");
    copy(&builds.path().join("second"), &new);
    fs::rename(&new, &one).unwrap();
    for tracer in &tracers {
        eventually("the new file to be attached", || tracer.targets().reattached[0][0] == 1);
    }
    fire_at_once(&one, 10_000);
    let (one, two) = (text(&one), text(&two));
    assert_hits(
        &tracers,
        &[(one, one, 11), (two, two, 100), (two, "child", 1000), (one, &format!("{one} 10000"), 10_000)],
    );
}

#[test]
fn paths_cross_mounts_and_are_cut_at_a_component() {
    let (builds, directory) = (builds(), directory());
    let work = directory.path().join("work");
    let lower = directory.path().join("lower");
    fs::create_dir_all(lower.join("bin")).unwrap();
    copy(&builds.path().join("first"), &lower.join("bin/mounted"));
    let overlay = Mounted::overlay(&lower, &work);
    let mounted = overlay.at.join("bin/mounted");
    let overlaid = tracers(&format!("binary: {}", mounted.display()));
    fire_at_once(&mounted, 2);
    assert_hits(&overlaid, &[(text(&mounted), &format!("{} 2", mounted.display()), 2)]);

    let name = "n".repeat(100);
    let deep = directory.path().join(&name).join(&name).join(&name);
    fs::create_dir_all(deep.parent().unwrap()).unwrap();
    copy(&builds.path().join("first"), &deep);
    let deeper = tracers(&format!("binary: {}", deep.display()));
    fire_at_once(&deep, 2);
    let [exe, cmdline] = [format!("/{name}/{name}"), text(&deep)[..256].to_owned()];
    assert_hits(&deeper, &[(&exe, &cmdline, 2)]);
}

#[test]
fn program_without_a_path_uses_the_kernel_name() {
    let builds = builds();
    let name = format!("made-{}", std::process::id());
    let script = "import os, sys\nfd = os.memfd_create(sys.argv[1], 0)\nos.write(fd, open(sys.argv[2], 'rb').read())\n\
                  os.execv(f'/proc/self/fd/{fd}', ['made', '0', sys.argv[1]])";
    let mut command = Command::new("python3");
    command.args(["-c", script, &name]).arg(builds.path().join("first"));
    let mut program = Program::of(&mut command);
    program.fire(0);
    let tracers = tracers(&format!("pid: {}", program.pid()));
    program.fire(4);
    assert_hits(&tracers, &[(&format!("/memfd:{name}"), &format!("made 0 {name}"), 4)]);
}
