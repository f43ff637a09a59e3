//! Attaching to so many sites in so many processes that it takes the kernel long: meanwhile other targets are found and
//! counted, the state says what is going on, and the file may be replaced, the configuration changed and the exporter
//! ended. What is "meanwhile" is checked: where the kernel was faster, there are more processes in the next try.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::*;
use crate::support::exporter::{Exporter, Place, Setup, send_signal, wait_for};
use crate::support::program::compile;

/// Has 1,024 functions, or 64 in its second version, and as many processes as its argument says. `call` calls each function;
/// `traced` answers at how many of them there is a breakpoint.
const LARGE: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#define FOUR(M, n) M(n##0) M(n##1) M(n##2) M(n##3)
#define SIXTEEN(M, n) FOUR(M, n##0) FOUR(M, n##1) FOUR(M, n##2) FOUR(M, n##3)
#define MANY(M, n) SIXTEEN(M, n##0) SIXTEEN(M, n##1) SIXTEEN(M, n##2) SIXTEEN(M, n##3)
#if VERSION == 2
#define ALL(M) MANY(M, f_0)
#else
#define ALL(M) MANY(M, f_0) MANY(M, f_1) MANY(M, f_2) MANY(M, f_3) MANY(M, f_4) MANY(M, f_5) MANY(M, f_6) MANY(M, f_7) \
	MANY(M, f_8) MANY(M, f_9) MANY(M, f_a) MANY(M, f_b) MANY(M, f_c) MANY(M, f_d) MANY(M, f_e) MANY(M, f_f)
#endif
#define DEFINE(f) __attribute__((noipa)) int f(int n) { return n + VERSION; }
#define NAME(f) f,
ALL(DEFINE)
static int (*const all[])(int) = { ALL(NAME) };
#define COUNT (sizeof(all) / sizeof(*all))
int main(int argc, char **argv)
{
	char line[16];
	for (int n = 1; n < atoi(argv[1]); n++)
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(1);
			for (;;)
				pause();
		}
	while (fgets(line, sizeof(line), stdin)) {
		int answer = 0;
		for (unsigned n = 0; n < COUNT; n++)
			answer += *line == 'c' ? all[n](0) == VERSION : *(volatile unsigned char *)all[n] == 0xcc;
		printf("%d\n", answer);
		fflush(stdout);
	}
	return 0;
}
"#;

const FUNCTIONS: f64 = 1024.0;

fn large(place: &Place, version: u32) -> PathBuf {
    let directory = place.path(&format!("version-{version}"));
    fs::create_dir_all(&directory).unwrap();
    let options = [format!("-DVERSION={version}"), "-fcf-protection=none".into(), "-no-pie".into()];
    compile("gcc", "large.c", LARGE, &options.each_ref().map(String::as_str), &directory)
}

fn start(program: &Path, processes: u32) -> Program {
    Program::of(Command::new(program).arg(processes.to_string()))
}

fn target(program: &Path) -> String {
    format!(
        "node_name: test\ntargets:\n- name: large\n  binary: {}\n  probes:\n  - {{ function: \"f_*\", metrics: [{{ counter: \
         large_total }}] }}\n",
        program.display()
    )
}

fn is_under_way(exporter: &Exporter) -> bool {
    let scrape = exporter.scrape();
    let attached = scrape.value("fibre_exporter_probe_attached", &[("target", "large")]);
    let (status, body) = exporter.health("/ready");
    let is_told = status == 503 && body.contains("the kernel is attaching it at 1024 sites in");
    // It may have ended between the two.
    assert!(status == 200 || is_told, "{status} {body}");
    attached == 0.0 && is_told
}

/// Starts an exporter, and calls `then` while it is attaching, with its program; with ever more processes, until `then` says that
/// it was early enough.
fn while_attaching(
    yaml: impl Fn(&Place, &Path) -> String,
    then: impl Fn(&Place, &Path, Exporter, &mut Program) -> bool,
) {
    for processes in [200, 500, 1000, 2000] {
        let place = Place::new();
        let program = place.path("program");
        fs::copy(large(&place, 1), &program).unwrap();
        let mut running = start(&program, processes);
        let exporter = Setup::new(&place, yaml(&place, &program)).start();
        if is_under_way(&exporter) && then(&place, &program, exporter, &mut running) {
            return;
        }
    }
    panic!("it was attached before the rest of the test");
}

#[test]
fn other_targets_do_not_wait_for_a_large_one() {
    let yaml = |place: &Place, program: &Path| {
        build(&place.path("small"), &["-O1", "-DPAD=1"]);
        let small = config(&[("small", "process: small")]).replace("node_name: test\ntargets:\n", "");
        target(program) + &small
    };
    while_attaching(yaml, |place, _, exporter, running| {
        let mut small = Program::start(&place.path("small"));
        wait_for("the probe of the small target", || {
            exporter.scrape().value("fibre_exporter_probe_attached", &[("target", "small")]) == 1.0
        });
        small.fire(3);
        let counted = exporter.scrape().value("small_total", &[]);
        if !is_under_way(&exporter) {
            return false;
        }
        assert_eq!(counted, 3.0);
        exporter.wait_until_ready();
        assert_eq!(running.say("traced"), "1024");
        assert_eq!(running.say("call"), "1024");
        assert_eq!(exporter.scrape().value("large_total", &[]), FUNCTIONS);
        exporter.stop();
        assert_eq!(running.say("traced"), "0");
        assert_eq!(running.say("call"), "1024");
        true
    });
}

#[test]
fn file_can_be_replaced_while_it_is_attached() {
    // In a directory where it is not taken for the next version yet.
    let yaml = |place: &Place, program: &Path| {
        large(place, 2);
        target(program)
    };
    while_attaching(yaml, |place, program, exporter, old| {
        fs::rename(place.path("version-2/program"), program).unwrap();
        let mut new = start(program, 1);
        exporter.wait_for_log("Attached probe: f_* (64 sites)");
        let (_, body) = exporter.health("/ready");
        if old.say("traced") == "1024" {
            return false;
        }
        assert!(body.contains("is partly attached: the kernel is attaching"), "{body}");
        wait_for("both files to be attached", || old.say("traced") == "1024" && new.say("traced") == "64");
        let before = exporter.scrape().value("large_total", &[]);
        for _ in 0..3 {
            assert_eq!((old.say("call"), new.say("call")), ("1024".into(), "64".into()));
        }
        assert_eq!(exporter.scrape().value("large_total", &[]), before + 3.0 * (FUNCTIONS + 64.0));
        exporter.stop();
        assert_eq!((old.say("traced"), new.say("traced")), ("0".into(), "0".into()));
        true
    });
}

#[test]
fn exporter_that_ends_while_attaching_leaves_nothing_behind() {
    for signal in ["TERM", "KILL"] {
        while_attaching(
            |_, program| target(program),
            |_, _, mut exporter, running| {
                exporter.end(signal);
                let is_early = !exporter.log().contains("Attached probe");
                wait_for("the breakpoints to be removed", || running.say("traced") == "0");
                assert_eq!(running.say("call"), "1024");
                is_early
            },
        );
    }
}

#[test]
fn configuration_can_change_while_a_target_is_attached() {
    while_attaching(
        |_, program| target(program),
        |place, _, exporter, running| {
            build(&place.path("small"), &["-O1", "-DPAD=1"]);
            let yaml = fs::read_to_string(place.path("config.yaml")).unwrap();
            let (_, ports) = yaml.split_once("metrics_port").unwrap();
            let small = config(&[("small", &format!("binary: {}", place.path("small").display()))]);
            place.write("config.yaml", &format!("{small}metrics_port{ports}"));
            let is_early = is_under_way(&exporter);
            send_signal(exporter.pid(), "HUP");
            let mut small = Program::start(&place.path("small"));
            exporter.wait_for_log("Configuration reloaded");
            exporter.wait_until_ready();
            small.fire(3);
            assert_eq!(exporter.scrape().value("small_total", &[]), 3.0);
            wait_for("the removed probes to be detached", || running.say("traced") == "0");
            is_early
        },
    );
}
