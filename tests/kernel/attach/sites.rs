//! One bad site costs only that site, and all reports on a probe agree.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use exporter::targets::ProbeState;

use crate::support::exporter::{Place, Setup, wait_for};
use crate::support::program::{Running, directory};
use crate::support::tracer::Tracer;

const FUNCTIONS: usize = 300;

/// Builds a program with 300 functions. Number 123 begins with a lock prefix, as atomic counters do, in an instruction
/// that changes an argument, so that its probe cannot be moved to the next instruction either. For each line that it
/// reads, the program calls all of them.
fn many(directory: &Path) -> PathBuf {
    let mut source = "#include <stdio.h>\nlong total;\n".to_string();
    for n in 0..FUNCTIONS {
        let body = if n == 123 {
            "__asm__ volatile(\"lock xaddq %%rdi, total(%%rip)\" ::: \"rdi\", \"memory\");".to_string()
        } else {
            format!("__asm__ volatile(\"\" :: \"r\"({n}));")
        };
        source += &format!("__attribute__((noinline)) void many_{n:03}(void) {{ {body} }}\n");
    }
    source += "int main(void) { puts(\"up\"); fflush(stdout); while (getchar() != EOF) {\n";
    source += &(0..FUNCTIONS).map(|n| format!("many_{n:03}();\n")).collect::<String>();
    source += "puts(\"done\"); fflush(stdout); } return 0; }\n";
    let (file, binary) = (directory.join("many.c"), directory.join("many"));
    std::fs::write(&file, source).unwrap();
    assert!(Command::new("cc").args(["-O2", "-o"]).args([&binary, &file]).status().unwrap().success());
    binary
}

/// Runs the program to its end, with one round of calls.
fn run_once(binary: &Path) {
    let mut child = Command::new(binary).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"x").unwrap();
    assert!(child.wait().unwrap().success());
}

/// Starts a process that maps the file.
fn start(binary: &Path) -> Running {
    let mut child = Command::new(binary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
    Running(child)
}

#[test]
fn glob_skips_one_unprobeable_function() {
    let directory = directory();
    let binary = many(directory.path());
    // There is one perf event per site, and the kernel detaches them one after the other: use fewer of them.
    for (attach, glob, all) in [("auto", "many_*", FUNCTIONS), ("perf", "many_12*", 10)] {
        for running in [false, true] {
            let _running = running.then(|| start(&binary));
            let tracer = Tracer::start(&format!(
                "node_name: t\nattach: {attach}\ntargets:\n- name: many\n  binary: {}\n  probes:\n  - function: \"{glob}\"\n    \
                 metrics: [{{ counter: calls_total, labels: {{ f: {{ value: function, limit: 400 }} }} }}]\n",
                binary.display()
            ));
            let (state, sites) = tracer.state(0);
            assert_eq!(sites, all - 1, "{attach}, running {running}: {state:?}");
            assert!(
                matches!(&state, ProbeState::Partly(reason)
                    if reason.starts_with(&format!("1 of {all} sites failed: many_123: ")) && reason.contains("lock prefix")),
                "{state:?}"
            );
            run_once(&binary);
            let series = tracer.render();
            let called = series.iter().filter(|(name, _)| name.starts_with("calls_total{"));
            let counts: Vec<&str> = called.map(|(_, count)| count.as_str()).collect();
            assert_eq!((counts.len(), counts.iter().all(|count| *count == "1")), (all - 1, true), "{attach}");
        }
    }
}

/// The log, `/ready`, the metrics and `check` agree on a probe that is partly attached and on one that cannot be
/// attached.
#[test]
fn log_ready_metrics_and_check_agree() {
    let place = Place::new();
    let binary = many(place.path("").as_path());
    let yaml = format!(
        "node_name: t\ntargets:\n- name: many\n  binary: {}\n  probes:\n  - function: \"many_12*\"\n    metrics: [{{ counter: \
         some_total }}]\n  - function: many_123\n    metrics: [{{ counter: none_total }}]\n",
        binary.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_for_log("Attached 1/2 probes to many");
    exporter.wait_for_log("Partly attached probe: many_12*: 1 of 10 sites failed: many_123: ");
    exporter.wait_for_log("Probe many_123 is refused");
    let (status, text) = exporter.health("/ready");
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("many: many_123 is refused:") && text.contains("lock prefix"), "{text}");
    let text = exporter.text();
    let has = |series: &str| assert!(text.lines().any(|line| line == series), "{series} in {text}");
    has("fibre_exporter_probes_attached 1");
    for (name, glob, one) in [("attached", 1, 0), ("sites", 9, 0), ("sites_failed", 1, 1)] {
        has(&format!("fibre_exporter_probe_{name}{{target=\"many\",probe=\"many_12*\"}} {glob}"));
        has(&format!("fibre_exporter_probe_{name}{{target=\"many\",probe=\"many_123\"}} {one}"));
    }
    assert!(
        text.contains("probe=\"many_12*\",state=\"partly\",reason=\"1 of 10 sites failed: many_123: "),
        "{text}"
    );
    assert!(text.contains("probe=\"many_123\",state=\"refused\""), "{text}");
    run_once(&binary);
    wait_for("the calls to be counted", || {
        exporter.text().lines().any(|line| line == "some_total{node=\"t\"} 9")
    });
}

/// A probe that is partly attached is ready, and `/ready` reports what it leaves out.
#[test]
fn partially_attached_probe_is_ready_with_a_warning() {
    let place = Place::new();
    let binary = many(place.path("").as_path());
    let yaml = format!(
        "node_name: t\ntargets:\n- name: many\n  binary: {}\n  probes:\n  - function: \"many_12*\"\n    metrics: [{{ counter: \
         some_total }}]\n",
        binary.display()
    );
    let exporter = Setup::new(&place, yaml.clone()).start();
    exporter.wait_until_ready();
    let (_, text) = exporter.health("/ready");
    assert!(text.starts_with("ready\nmany: many_12* is partly attached: 1 of 10 sites"), "{text}");
    let config = place.write("check.yaml", &yaml);
    let checked = crate::support::exporter::exporter().arg("check").arg(&config).output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains("partly: 1 of 10 sites are not probed: many_123:"), "{said}");
    assert!(checked.status.success(), "{said}");
}

/// A realistic glob: hundreds of functions of libcrypto, some of which begin with a reference count under a lock
/// prefix, where no probe can be set, while a process maps the library.
#[test]
fn traces_library_functions_with_any_first_instruction() {
    let directory = directory();
    let library = directory.path().join("libcrypto.so.3");
    let original = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3";
    assert!(Command::new("cp").arg(original).arg(&library).status().unwrap().success());
    let script = format!(
        "import ctypes,sys\nc = ctypes.CDLL('{}')\nprint('up', flush=True)\nsys.stdin.read(1)\nfor _ in range(9): \
         (c.EVP_MD_get_size(c.EVP_sha256), c.EVP_KDF_up_ref(ctypes.create_string_buffer(64)))\nprint('done', flush=True)\nsys.stdin.read()\n",
        library.display()
    );
    let mut python = Command::new("python3")
        .arg("-c")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(python.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let tracer = Tracer::start(&format!(
        "node_name: t\ntargets:\n- name: crypto\n  binary: {}\n  probes:\n  - function: \"EVP_*\"\n    metrics: [{{ counter: \
         evp_total, labels: {{ f: {{ value: function, limit: 2000 }} }} }}]\n",
        library.display()
    ));
    let (state, sites) = tracer.state(0);
    assert!(sites > 500, "{state:?}");
    assert_eq!(state, ProbeState::Attached);
    std::io::Write::write_all(python.stdin.as_mut().unwrap(), b"x").unwrap();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    for name in ["EVP_MD_get_size", "EVP_KDF_up_ref"] {
        assert_eq!(tracer.render()[&format!("evp_total{{f=\"{name}\"}}")], "9");
    }
    drop(python.stdin.take());
    assert!(python.wait().unwrap().success());
}
