//! Running beside another tracer: the kernel keeps one semaphore per site and refuses a tracer that brings a different
//! one, or none.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use exporter::elf::{Headers, Image, usdt_sites};
use exporter::targets::ProbeState;

use crate::support::demo::{Forms, private_copy};
use crate::support::program::{Running, directory};
use crate::support::tracer::{Tracer, eventually};

/// A program that holds sites either like a tracer that does not use the kernel's reference counters (older BCC), or
/// with some semaphore.
const HOLD: &str = r#"
#define _GNU_SOURCE
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	struct perf_event_attr attr = { .size = sizeof(attr), .sample_period = 1 };
	FILE *type = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
	unsigned int number;
	if (argc < 4 || !type || fscanf(type, "%u", &number) != 1)
		return 2;
	attr.type = number;
	attr.config = strtoul(argv[2], 0, 0) << 32;
	attr.config1 = (unsigned long)argv[1];
	for (int i = 3; i < argc; i++) {
		attr.config2 = strtoul(argv[i], 0, 0);
		if (syscall(SYS_perf_event_open, &attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC) < 0) {
			perror("perf_event_open");
			return 1;
		}
	}
	puts("up");
	fflush(stdout);
	pause();
}
"#;

fn hold(directory: &Path, file: &Path, offsets: &[u64], semaphore: u64) -> Running {
    let (source, program) = (directory.join("hold.c"), directory.join("hold"));
    std::fs::write(&source, HOLD).unwrap();
    assert!(Command::new("cc").arg("-o").args([&program, &source]).status().unwrap().success());
    let mut child = Command::new(&program)
        .arg(file)
        .arg(semaphore.to_string())
        .args(offsets.iter().map(u64::to_string))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut up).expect("it holds the place");
    Running(child)
}

/// Returns the offsets of a probe's sites and of its semaphore.
fn places_of(binary: &Path, probe: &str) -> (Vec<u64>, u64) {
    let bytes = std::fs::read(binary).unwrap();
    let sites = usdt_sites(&Image::parse(&bytes).unwrap(), "forms", probe).unwrap();
    assert!(sites.iter().all(|site| site.ref_ctr_offset != 0), "{sites:?}");
    (sites.iter().map(|site| site.offset).collect(), sites[0].ref_ctr_offset)
}

fn tracing(binary: &Path, attach: &str) -> String {
    format!(
        "node_name: t\nattach: {attach}\ntargets:\n- name: forms\n  binary: {}\n  probes:\n  - on: usdt:forms:i32\n    metrics: [{{ \
         counter: fired_total }}]\n",
        binary.display()
    )
}

#[test]
fn raises_semaphores_next_to_a_tracer_without_them() {
    for attach in ["auto", "perf"] {
        let directory = directory();
        let binary = private_copy("forms", directory.path());
        let (offsets, _) = places_of(&binary, "i32");
        let mut before = Forms::start(&binary);
        let other = hold(directory.path(), &binary, &offsets, 0);
        let tracer = Tracer::start(&tracing(&binary, attach));
        assert_eq!(tracer.state(0), (ProbeState::Attached, offsets.len()), "{attach}");
        let mut after = Forms::start(&binary);
        for forms in [&mut before, &mut after] {
            let raised: Vec<_> = forms.semaphores().into_iter().filter(|(_, value)| *value != 0).collect();
            assert_eq!(raised, [("forms:i32".to_string(), 1)], "{attach}");
        }
        let fired = before.fire("i32", 7)["fired"].as_u64().unwrap()
            + after.fire("i32", 5)["fired"].as_u64().unwrap();
        drop(other);
        let fired = fired + after.fire("i32", 3)["fired"].as_u64().unwrap();
        assert_eq!(tracer.render()["fired_total"], fired.to_string(), "{attach}");
        assert_eq!(tracer.stray(), 0, "the places that raise semaphores are never run");
        drop(tracer);
        for forms in [&mut before, &mut after] {
            assert!(forms.semaphores().values().all(|value| *value == 0), "{attach}");
        }
    }
}

#[test]
fn waits_for_a_tracer_with_another_semaphore() {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let (offsets, semaphore) = places_of(&binary, "i32");
    let other = hold(directory.path(), &binary, &offsets, semaphore + 2);
    let mut forms = Forms::start(&binary);
    let tracer = Tracer::start_unready(&tracing(&binary, "auto"), false);
    let (state, _) = tracer.state(0);
    assert!(matches!(&state, ProbeState::Refused(reason) if reason.contains("another tracer")), "{state:?}");
    drop(other);
    eventually("the probe to be attached", || tracer.state(0) == (ProbeState::Attached, offsets.len()));
    let fired = forms.fire("i32", 4)["fired"].as_u64().unwrap();
    assert_eq!(tracer.render()["fired_total"], fired.to_string());
}

/// With so many breakpoints in all processes together, the exporter first finds out in its own process which ones the
/// kernel refuses.
#[test]
fn functions_held_by_another_tracer_do_not_affect_others() {
    const HELD: [&str; 3] = ["getppid", "getpgrp", "geteuid"];
    let directory = directory();
    let libc = directory.path().join("libc.so.6");
    std::fs::copy("/lib/x86_64-linux-gnu/libc.so.6", &libc).unwrap();
    let bytes = std::fs::read(&libc).unwrap();
    let headers = Headers::parse(&bytes).unwrap();
    let listed = Command::new("nm").args(["-D", "--defined-only"]).arg(&libc).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    let address = |name: &str| {
        let line = listed.lines().find(|line| line.split('@').next().unwrap().ends_with(&format!(" {name}")));
        u64::from_str_radix(line.unwrap().split(' ').next().unwrap(), 16).unwrap()
    };
    let offsets = HELD.map(|name| headers.file_offset(address(name)).unwrap());
    let data = headers.file_offset(address("environ") & !7).unwrap_or_else(|| bytes.len() as u64 / 8 * 8);
    let other = hold(directory.path(), &libc, &offsets, data);
    let sleepers: Vec<Running> = (0..90)
        .map(|_| {
            let sleep = Command::new("sleep").arg("600").env("LD_LIBRARY_PATH", directory.path()).spawn();
            Running(sleep.unwrap())
        })
        .collect();
    let yaml = format!(
        "node_name: t\nlimits: {{ sites: 20000 }}\ntargets:\n- name: libc\n  binary: {}\n  probes:\n  - function: \"*get*\"\n    \
         metrics: [{{ counter: called_total }}]\n  - function: getppid\n    metrics: [{{ counter: held_total }}]\n",
        libc.display()
    );
    let tracer = Tracer::start_unready(&yaml, false);
    eventually("the kernel to attach", || !matches!(tracer.state(0).0, ProbeState::Waiting(_)));
    let (state, sites) = tracer.state(0);
    assert!(matches!(&state, ProbeState::Partly(reason) if reason.contains("another tracer")), "{state:?}");
    assert!(sites * sleepers.len() > 10_000, "{sites}");
    assert!(matches!(tracer.state(1), (ProbeState::Refused(_), 0)), "{:?}", tracer.state(1));
    drop(other);
    eventually("the others to be attached", || {
        let (state, all) = tracer.state(0);
        (state, all) == (ProbeState::Attached, sites + HELD.len()) && tracer.state(1).1 == 1
    });
    let counted = |calls: u32| {
        let total = || tracer.render().get("held_total").map_or(0, |calls| calls.parse::<u32>().unwrap());
        let before = total();
        let script = format!("import os\nfor _ in range({calls}): os.getppid()");
        let mut python = Command::new("python3");
        let ended = python.args(["-c", &script]).env("LD_LIBRARY_PATH", directory.path()).status();
        assert!(ended.unwrap().success());
        total() - before
    };
    let others = counted(0);
    assert_eq!(counted(100), others + 100);
    assert_eq!(tracer.stray(), 0);
}
