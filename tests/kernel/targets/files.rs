//! One attachment per file, as the kernel identifies it.

use std::os::unix::fs::symlink;
use std::process::Command;

use super::support::*;
use crate::support::exporter::Exporter;
use crate::support::program::directory;
use crate::support::tracer::Tracer;

#[test]
fn containers_share_image_files_until_copied_up() {
    let (builds, directory) = (builds(), directory());
    let lower = directory.path().join("lower");
    std::fs::create_dir(&lower).unwrap();
    let name = format!("image-{}", std::process::id());
    copy(&builds.path().join("first"), &lower.join(&name));
    let mounts: Vec<Mounted> =
        (0..3).map(|n| Mounted::overlay(&lower, &directory.path().join(n.to_string()))).collect();
    let mut programs: Vec<Program> =
        mounts.iter().map(|mount| Program::start(&mount.at.join(&name))).collect();
    let tracer = Tracer::start(&config(&[("all", &format!("process: {name}"))]));
    assert_eq!(tracer.state(0).1, 1, "one site of one file");
    programs.iter_mut().for_each(|program| program.fire(100));
    assert_eq!(count(&tracer, "all_total"), 300);

    // chmod creates a new file in the upper layer, which shows the same numbers. The old process continues with the old
    // file.
    let copied_up = mounts[0].at.join(&name);
    run("chmod", &["700", copied_up.to_str().unwrap()]);
    let mut new = Program::start(&copied_up);
    until_sites(&tracer, 0, 2);
    new.fire(1000);
    programs.iter_mut().for_each(|program| program.fire(10));
    assert_eq!(count(&tracer, "all_total"), 1330);
    assert_eq!(tracer.stray(), 0);
}

/// In containers of two images, one path leads to two files, neither of which has replaced the other.
#[test]
fn same_path_in_two_containers_is_not_a_replacement() {
    let (builds, directory) = (builds(), directory());
    let name = format!("both-{}", std::process::id());
    // Each container sees its own image at the same path.
    let in_its_own = |image: &str| {
        let at = directory.path().join(image);
        std::fs::create_dir(&at).unwrap();
        copy(&builds.path().join("first"), &at.join(&name));
        let script = format!("mount --bind {image} root && exec root/{name}");
        Program::of(Command::new("unshare").current_dir(directory.path()).args(["-m", "sh", "-c", &script]))
    };
    std::fs::create_dir(directory.path().join("root")).unwrap();
    let mut first = in_its_own("one");
    first.fire(0);
    let tracer = Tracer::start(&config(&[("all", &format!("process: {name}"))]));
    let mut second = in_its_own("two");
    second.fire(10);
    first.fire(1);
    assert_eq!(count(&tracer, "all_total"), 11);
    assert_eq!(tracer.targets().reattached, [[0, 0]]);
}

/// Container engines mount their own helpers this way.
#[test]
fn file_without_path_is_shown_by_process_name() {
    let (builds, directory) = (builds(), directory());
    let name = format!("alone-{}", std::process::id() % 100_000);
    copy(&builds.path().join("first"), &directory.path().join(&name));
    let script = "touch at && mount --bind $0 at && exec 9< at && umount -l at && exec /proc/self/fd/9";
    let mut program = Program::of(
        Command::new("unshare").current_dir(directory.path()).args(["-m", "sh", "-c", script, &name]),
    );
    program.fire(0);
    let exporter = Exporter::tracing(&format!(
        "  - name: alone\n    pid: {}\n    probes:\n    - on: usdt:t:hit\n      metrics: [{{ counter: alone_total }}]\n",
        program.pid()
    ));
    exporter.wait_until_ready();
    let shown = format!("(/proc/{}/exe, a file without a path, as ", program.pid());
    assert!(exporter.log().contains(&shown), "{}", exporter.log());
    program.fire(7);
    exporter.scrape_until("all hits", |metrics| metrics.sum("alone_total", &[]) == 7.0);
}

/// Although the overlay shows the same inode as before, and executing the old file did not have to wait.
#[test]
fn copied_up_file_counts_from_its_first_hit() {
    let (builds, directory) = (builds(), directory());
    let lower = directory.path().join("lower");
    std::fs::create_dir(&lower).unwrap();
    let name = format!("up-{}", std::process::id());
    copy(&builds.path().join("first"), &lower.join(&name));
    let tracer = Tracer::start_unready(&config(&[("all", &format!("process: {name}"))]), false);
    for change in ["chmod 711", "chown 1", "touch", "true >>"] {
        counted_from_the_first_hit(&tracer, "all_total", 110, |turn| {
            let mounted = Mounted::overlay(&lower, &directory.path().join(format!("{change}{turn}")));
            let path = mounted.at.join(&name);
            fire_at_once(&path, 100);
            run("sh", &["-c", &format!("{change} \"$0\""), path.to_str().unwrap()]);
            fire_at_once(&path, 10);
        });
    }
}

#[test]
fn several_paths_of_one_file_count_once() {
    let (builds, directory) = (builds(), directory());
    let at = directory.path();
    let name = format!("many-{}", std::process::id());
    let file = at.join(&name);
    copy(&builds.path().join("first"), &file);
    std::fs::create_dir(at.join("linked")).unwrap();
    std::fs::hard_link(&file, at.join("linked").join(&name)).unwrap();
    symlink(&file, at.join("link")).unwrap();
    let mut programs =
        [file.clone(), at.join("linked").join(&name), at.join("link")].map(|path| Program::start(&path));
    let tracer = Tracer::start(&config(&[
        ("named", &format!("process: {name}")),
        ("linked", &format!("binary: {}", at.join("link").display())),
    ]));
    programs.iter_mut().for_each(|program| program.fire(5));
    assert_eq!((tracer.state(0).1, tracer.state(1).1), (1, 1));
    assert_eq!((count(&tracer, "named_total"), count(&tracer, "linked_total")), (15, 15));
}

#[test]
fn traces_forty_files_of_the_same_name() {
    let (builds, directory) = (builds(), directory());
    let name = format!("forty-{}", std::process::id());
    let mut programs: Vec<Program> = (0..40)
        .map(|n| {
            let own = directory.path().join(n.to_string());
            std::fs::create_dir(&own).unwrap();
            copy(&builds.path().join("first"), &own.join(&name));
            Program::start(&own.join(&name))
        })
        .collect();
    let tracer = Tracer::start(&config(&[("all", &format!("process: {name}"))]));
    programs.iter_mut().for_each(|program| program.fire(3));
    assert_eq!((tracer.state(0).1, count(&tracer, "all_total")), (40, 120));
}

#[test]
fn finds_probes_of_a_memfd_library_loaded_later() {
    let directory = directory();
    let name = format!("memfd-{}", std::process::id());
    let (program, library) = (directory.path().join(&name), directory.path().join("library.so"));
    build(&program, &["-O1", "-DPAD=1"]);
    build(&library, &["-O1", "-DLIBRARY", "-shared", "-fPIC"]);
    let load = format!("load {}", library.display());
    let (mut early, mut late) = (Program::start(&program), Program::start(&program));
    early.say(&load);
    // `exporter probes PID` shows the location of in-memory files.
    let probes = |of: &str| {
        let listed = Command::new(env!("CARGO_BIN_EXE_exporter")).args(["probes", of]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap() + std::str::from_utf8(&listed.stderr).unwrap()
    };
    let listed = probes(&early.pid().to_string());
    let remark = listed.lines().find(|line| line.contains("memfd:made-at-run-time"));
    let command = remark.unwrap_or_else(|| panic!("{listed}")).split('`').nth(1).unwrap();
    let listed = probes(command.rsplit(' ').next().unwrap());
    assert!(listed.contains("lib: 1 USDT probe"), "{listed}");
    let yaml = format!(
        "node_name: test\ntargets:\n- name: made\n  process: {name}\n  probes:\n  - on: usdt:lib:hit\n    metrics: \
         [{{ counter: made_total }}]\n"
    );
    let tracer = Tracer::start(&yaml);
    early.fire(100);
    assert_eq!(count(&tracer, "made_total"), 100);
    late.say(&load);
    until_sites(&tracer, 0, 2);
    late.fire(1000);
    early.fire(10_000);
    assert_eq!(count(&tracer, "made_total"), 11_100);
}
