//! The exporter's memory use with ten thousand series, in the kernel's tables and in its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::exporter::{Exporter, Place, Setup};
use crate::support::program::{compile, directory, run};

const SERIES: usize = 10_000;

/// Excludes the pages of the executable itself, of which a debug build has more than twice as many, and which are in
/// the page cache anyway.
const MOST: u64 = 32 << 20;

/// A program that fires with as many numbers and texts as there are to be series.
const SOURCE: &str = r#"
#include <stdio.h>
#include <sys/sdt.h>
int main(void) {
    for (int n = 0; n < 5000; n++) {
        char text[64];
        snprintf(text, sizeof text, "peer-%d.of-the-node.example.org:%d", n, 8333 + n);
        DTRACE_PROBE2(many, series, n, text);
    }
    return 0;
}
"#;

/// Scrapes more than once, as buffers grow with the first scrape. `more` is appended to both metrics.
fn footprint(more: &str, route: &str) {
    let directory = directory();
    let program = compile("gcc", "many.c", SOURCE, &[], directory.path());
    let exporter = Exporter::tracing(&format!(
        "  - name: many\n    binary: {}\n    probes:\n    - on: usdt:many:series\n      \
         args: {{ n: 0, text: {{ index: 1, type: string }} }}\n      metrics:\n      \
         - {{ counter: numbers_total, labels: {{ n: {{ value: n, limit: {SERIES} }} }}{more} }}\n      \
         - {{ counter: texts_total, labels: {{ text: {{ value: text, limit: {SERIES} }} }}{more} }}\n",
        program.display()
    ));
    run(&mut Command::new(program));
    for _ in 0..3 {
        let samples = exporter.scrape();
        let series: usize =
            ["numbers_total", "texts_total"].map(|name| samples.select(name, &[]).len()).iter().sum();
        assert_eq!(series, SERIES);
        assert_eq!(samples.sum(&format!("fibre_exporter_probe_{route}_total"), &[]), 5000.0);
        samples.assert_nothing_lost();
    }
    let proc = Path::new("/proc").join(exporter.pid().to_string());
    let lines = |path: &Path, head: &str| -> u64 {
        let text = fs::read_to_string(path).unwrap_or_default();
        let number = |line: &str| line.strip_prefix(head)?.trim().trim_end_matches(" kB").parse::<u64>().ok();
        text.lines().filter_map(number).sum()
    };
    let status = proc.join("status");
    // The peak, including loading and attaching.
    let resident = (lines(&status, "VmHWM:") - lines(&status, "RssFile:")) << 10;
    // The memory that the kernel holds for the exporter: maps and programs; mapped maps count twice.
    let held = fs::read_dir(proc.join("fdinfo")).expect("list descriptors");
    let mut maps = BTreeMap::new();
    for held in held.map(|held| held.expect("a descriptor").path()) {
        for kind in ["map_id:", "prog_id:"] {
            if let id @ 1.. = lines(&held, kind) {
                maps.insert((kind, id), lines(&held, "memlock:"));
            }
        }
    }
    let kernel: u64 = maps.values().sum();
    println!("{route}: {:.1} MiB resident, {:.1} MiB in the kernel", mib(resident), mib(kernel));
    assert!(resident > 0 && kernel > 0);
    assert!(resident + kernel < MOST, "{} + {} MiB", mib(resident), mib(kernel));
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[test]
fn ten_thousand_kernel_series_fit_in_32_mib() {
    footprint("", "aggregated");
}

#[test]
fn ten_thousand_event_series_fit_in_32_mib() {
    // Too long for the kernel to compare.
    let long = "no peer is called so ".repeat(5);
    footprint(&format!(", when: 'text != \"{long}\"'"), "delivered");
}

/// Returns the largest number of instructions that the kernel verified for one of the exporter's programs.
fn verified(probe: &str) -> u64 {
    let directory = directory();
    let program = compile("gcc", "many.c", SOURCE, &[], directory.path());
    let exporter = Exporter::tracing(&format!(
        "  - name: many\n    binary: {}\n    probes:\n    - on: usdt:many:series\n      \
         args: {{ n: 0, text: {{ index: 1, type: string }} }}\n{probe}",
        program.display()
    ));
    let held = fs::read_dir(format!("/proc/{}/fdinfo", exporter.pid())).expect("list descriptors");
    let texts = held.flatten().filter_map(|file| fs::read_to_string(file.path()).ok());
    let number = |text: String| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix("verified_insns:")?.trim().parse().ok())
    };
    texts.filter_map(number).max().expect("the kernel tells how many instructions it verified")
}

#[test]
fn unused_features_are_not_verified() {
    let counter = verified("      metrics:\n      - { counter: hits_total }\n");
    let plain = verified(
        "      metrics:\n      - { histogram: sizes, value: n, buckets: [1, 10], labels: { n: { value: n, limit: 5 } } }\n",
    );
    let all = verified(
        "      metrics:\n      - { counter: texts_total, labels: { text: text, process: { value: comm, match: { \"m*n?\": x } } } }\n      \
         - { counter: programs_total, labels: { exe: exe, cmdline: cmdline } }\n    \
         - on: function:main\n      metrics:\n      - { histogram: main_seconds, value: duration, buckets: [1] }\n",
    );
    println!(
        "instructions: {counter} of a counter, {plain} of a histogram, {all} with texts, paths, events and durations"
    );
    assert!(counter <= plain && plain * 3 < all * 2, "{counter}, {plain} and {all} instructions");
    // The limit is a million, and other kernels follow other paths.
    assert!(all < 500_000, "{all} instructions");
}

/// Nothing is attached before loading completes, which takes seconds on a busy machine.
#[test]
fn loading_time_is_logged() {
    let place = Place::new();
    let program = compile("gcc", "many.c", SOURCE, &[], &place.path(""));
    let yaml = format!(
        "log_level: debug\ntargets:\n  - {{ name: many, binary: {}, probes: [{{ on: 'usdt:many:series', metrics: [{{ counter: all_total }}] }}] }}\n",
        program.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_for_log("Loading the BPF programs took ");
}
