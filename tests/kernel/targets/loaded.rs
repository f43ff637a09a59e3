//! Libraries that processes load at run time.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use exporter::targets::ProbeState;

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

fn library(at: &Path) -> PathBuf {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    build(at, &["-O1", "-DLIBRARY", "-DPAD=1", "-shared", "-fPIC"]);
    at.to_path_buf()
}

fn program(directory: &Path, what: &str) -> (PathBuf, String) {
    let name = format!("{what}{}", std::process::id() % 100_000);
    let path = directory.join(&name);
    build(&path, &["-O1", "-DPAD=1"]);
    (path, name)
}

fn of_library(library: &str, process: &str) -> Tracer {
    Tracer::start_unready(
        &format!(
            "node_name: test\ntargets:\n- name: l\n  library: {library:?}\n  process: {process}\n  probes:\n  - on: usdt:lib:hit\n    \
             metrics: [{{ counter: l_total }}]\n"
        ),
        false,
    )
}

fn until_ahead(tracer: &Tracer, file: &Path) {
    let told = format!("; {} is attached, in case one does", file.display());
    eventually(
        "the library to be attached to ahead",
        || matches!(tracer.state(0).0, ProbeState::Missing(why) if why.ends_with(&told)),
    );
}

#[test]
fn library_next_to_the_program_counts_from_its_first_call() {
    let directory = directory();
    let ((path, name), (other, _)) =
        (program(directory.path(), "ahead"), program(directory.path(), "not-it"));
    let library = library(&directory.path().join("libahead.so"));
    let tracer = of_library("libahead.so", &name);
    let mut program = Program::start(&path);
    until_ahead(&tracer, &library);
    // A process outside the target loads it first.
    let mut foreign = Program::start(&other);
    foreign.say(&format!("open {}", library.display()));
    foreign.fire(1000);
    // Both lines are sent at once, so that nothing happens in between.
    program.tell(&format!("open {}\n700", library.display()));
    (0..2).for_each(|_| drop(program.answer()));
    assert_eq!(count(&tracer, "l_total"), 700);
    until_sites(&tracer, 0, 1);
    program.fire(20);
    assert_eq!((count(&tracer, "l_total"), tracer.accounting_at_rest()[0].filtered), (720, 1000));
    assert_eq!(tracer.stray(), 0);
}

#[test]
fn plugin_next_to_a_loaded_one_counts_from_its_first_call() {
    let directory = directory();
    let ((path, name), (other, _)) =
        (program(directory.path(), "plugs"), program(directory.path(), "not-it"));
    let [first, second] =
        ["liba-plug.so", "libb-plug.so"].map(|name| library(&directory.path().join("plugins").join(name)));
    let tracer = of_library("lib?-plug.so", &name);
    let mut program = Program::start(&path);
    program.say(&format!("open {}", first.display()));
    until_sites(&tracer, 0, 1);
    program.fire(5);
    assert_eq!(count(&tracer, "l_total"), 5);
    // A program outside the target reveals when the second library has breakpoints.
    let mut foreign = Program::start(&other);
    foreign.say(&format!("open {}", second.display()));
    eventually("the second library to be attached to ahead", || {
        foreign.fire(1);
        tracer.accounting_at_rest()[0].filtered > 0
    });
    program.tell(&format!("open {}\n300", second.display()));
    (0..2).for_each(|_| drop(program.answer()));
    assert_eq!(count(&tracer, "l_total"), 305);
}

#[test]
fn finds_all_memfd_libraries_of_the_same_name() {
    let directory = directory();
    let (path, name) = program(directory.path(), "alike");
    let file = library(&directory.path().join("source.so"));
    let tracer = of_library("made-at-run-time", &name);
    let mut program = Program::start(&path);
    for (loaded, times) in [(1, 3), (2, 40), (3, 500)] {
        program.say(&format!("load {}", file.display()));
        until_sites(&tracer, 0, loaded);
        program.fire(times);
    }
    assert_eq!(count(&tracer, "l_total"), 543);
}

#[test]
fn library_from_anywhere_counts_from_its_first_call() {
    let directory = directory();
    let (path, name) = program(directory.path(), "anywhere");
    let file = library(&directory.path().join("source.so"));
    for (called, how) in [("made-at-run-time", "load"), ("libfar.so", "open")] {
        let tracer = of_library(called, &name);
        let mut program = Program::start(&path);
        counted_from_the_first_hit(&tracer, "l_total", 300, |turn| {
            let far = directory.path().join(turn.to_string()).join(called);
            fs::create_dir_all(far.parent().unwrap()).unwrap();
            copy(&file, &far);
            program.tell(&format!("{how} {}\n300", far.display()));
            (0..2).for_each(|_| drop(program.answer()));
        });
    }
}

/// Unlike glibc's loader, musl's does not mark its calls.
#[test]
fn library_loaded_by_musl_counts_from_its_first_call() {
    const PROGRAM: &str = r#"
        #include <dlfcn.h>
        #include <stdio.h>
        #include <string.h>
        int main(void) {
            char line[4096];
            while (fgets(line, sizeof(line), stdin)) {
                line[strcspn(line, "\n")] = 0;
                void *library = dlopen(line, RTLD_NOW);
                if (!library)
                    return puts(dlerror()), 1;
                int (*work)(int) = (int (*)(int))dlsym(library, "work");
                for (int n = 0; n < 300; n++)
                    work(n);
                puts("done");
                fflush(stdout);
            }
        }"#;
    let directory = directory();
    let name = format!("musl{}", std::process::id() % 100_000);
    let [path, library, source] = [&name, "libmade.so", "source.c"].map(|name| directory.path().join(name));
    let make = |text: &str, options: &[&str], to: &Path| {
        fs::write(&source, text).unwrap();
        run("musl-gcc", &[&["-O1", "-o", to.to_str().unwrap(), source.to_str().unwrap()], options].concat());
    };
    make(PROGRAM, &[], &path);
    make(
        "int v; __attribute__((noinline)) int work(int n) { return v += n; }",
        &["-shared", "-fPIC"],
        &library,
    );
    let tracer = Tracer::start_unready(
        &format!(
            "node_name: test\ntargets:\n- name: l\n  library: libfar.so\n  process: {name}\n  probes:\n  - function: work\n    \
             metrics: [{{ counter: l_total }}]\n"
        ),
        false,
    );
    let mut program = Program::start(&path);
    counted_from_the_first_hit(&tracer, "l_total", 300, |turn| {
        let far = directory.path().join(turn.to_string()).join("libfar.so");
        fs::create_dir(far.parent().unwrap()).unwrap();
        copy(&library, &far);
        assert_eq!(program.say(far.to_str().unwrap()), "done");
    });
}

#[test]
fn names_may_contain_any_bytes() {
    let directory = directory();
    let (built, name) = program(directory.path(), "bytes");
    let odd = [name.as_bytes(), b"\xff \n(deleted)"].concat();
    let inner = directory.path().join(OsStr::from_bytes(b"in \xc3\xff (deleted)"));
    fs::create_dir(&inner).unwrap();
    let path = inner.join(OsStr::from_bytes(&odd));
    fs::rename(&built, &path).unwrap();
    let file = library(&directory.path().join("libodd.so"));
    let odd_library = inner.join(OsStr::from_bytes(b"libodd\xfe.so"));
    fs::copy(&file, &odd_library).unwrap();
    let mut before = Program::start(&path);
    before.say(&format!("name {name}"));
    let yaml = format!(
        "node_name: test\ntargets:\n- name: l\n  process: \"{name}*\"\n  probes:\n  - on: usdt:t:hit\n    metrics: [{{ \
         counter: t_total }}]\n  - on: usdt:lib:hit\n    metrics: [{{ counter: lib_total }}]\n"
    );
    let tracer = Tracer::start_unready(&yaml, false);
    until_sites(&tracer, 0, 1);
    before.fire(3);
    let mut after = Program::start(&path);
    after.fire(40);
    assert_eq!(count(&tracer, "t_total"), 43);
    // A symlink, since the program's input is text.
    let link = directory.path().join("link.so");
    std::os::unix::fs::symlink(&odd_library, &link).unwrap();
    after.say(&format!("open {}", link.display()));
    until_sites(&tracer, 1, 1);
    after.fire(500);
    assert_eq!(["t_total", "lib_total"].map(|of| count(&tracer, of)), [543, 500]);
    assert_eq!(tracer.targets().walks, 1);
}
