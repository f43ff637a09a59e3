//! Programs that were never seen before and start from a path that is not watched: they wait for the probes.

use std::fs;
use std::path::Path;

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::Tracer;

/// Hits of a program's only run.
const HITS: u64 = 300;

/// Each program that `start` creates is a file of its own that fires at once.
fn first_starts(name: &str, start: impl Fn(u32)) {
    let tracer = Tracer::start_unready(&config(&[("p", &format!("process: {name}"))]), false);
    counted_from_the_first_hit(&tracer, "p_total", HITS, start);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn in_its_own_mount_namespace() {
    let (builds, directory) = (builds(), directory());
    let name = format!("ns{}", std::process::id());
    let program = directory.path().join(&name);
    fs::write(&program, "").unwrap();
    first_starts(&name, |turn| {
        let new = directory.path().join(turn.to_string());
        copy(&builds.path().join("first"), &new);
        let script = "mount --bind $0 $1 && exec $1 $2";
        run("unshare", &["-m", "sh", "-c", script, text(&new), text(&program), &HITS.to_string()]);
    });
}

#[test]
fn in_a_chroot() {
    let directory = directory();
    let name = format!("root{}", std::process::id());
    build(&directory.path().join("static"), &["-O1", "-static", "-DPAD=1"]);
    first_starts(&name, |turn| {
        let root = directory.path().join(turn.to_string());
        fs::create_dir(&root).unwrap();
        copy(&directory.path().join("static"), &root.join(&name));
        run("chroot", &[text(&root), &format!("/{name}"), &HITS.to_string()]);
    });
}

#[test]
fn in_memory() {
    let builds = builds();
    let name = format!("memory{}", std::process::id());
    let first = builds.path().join("first");
    let script = "import os, sys\nfile = os.memfd_create(sys.argv[1])\nos.write(file, open(sys.argv[2], 'rb').read())\n\
                  os.execve(file, [sys.argv[1], sys.argv[3]], {})";
    first_starts(&format!("memfd:{name}"), |_| {
        run("python3", &["-c", script, &name, text(&first), &HITS.to_string()])
    });
}
