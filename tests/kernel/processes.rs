//! Metrics with a process label: bounded by the number of live processes, not of all processes that ever lived.

use std::path::Path;
use std::time::{Duration, Instant};

use exporter::metrics::WINDOW;

use crate::support::demo::{Forms, private_copy};
use crate::support::program::directory;
use crate::support::tracer::Tracer;

/// The maximum number of processes with a series at once.
const LIMIT: usize = 3;

/// Runs more processes than the limit, one after the other, and checks the series shown after each.
fn one_after_the_other(all_to_ring: bool) {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let yaml = format!(
        "node_name: test\ntargets:\n- name: forms\n  binary: {}\n  probes:\n  - on: usdt:forms:i32\n    args: {{ v: 0 }}\n    \
         metrics:\n    - counter: fired_total\n      labels: {{ pid: {{ value: pid, limit: {LIMIT} }} }}\n    \
         - histogram: sizes\n      value: v\n      buckets: [0, 10]\n      labels: {{ pid: {{ value: pid, limit: {LIMIT} }} }}\n",
        binary.display()
    );
    let tracer = Tracer::start_by(&yaml, all_to_ring);
    let shown = |tracer: &Tracer| -> Vec<(String, String)> {
        let of = |(name, value): (String, String)| name.starts_with("fired_total{").then_some((name, value));
        tracer.render().into_iter().filter_map(of).collect()
    };
    for _ in 0..4 * LIMIT {
        let mut forms = Forms::start(&binary);
        let fired = forms.fire("i32", 5)["fired"].as_u64().unwrap();
        let pid = forms.pid();
        forms.kill();
        drop(forms);
        let label = format!("pid=\"{pid}\"");
        for reader in ["one", "another"] {
            let last = shown(&tracer);
            assert_eq!(last.len(), 1, "{reader} sees a process that has ended, and no other: {last:?}");
            assert!(
                last[0].0.contains(&label) && last[0].1 == fired.to_string(),
                "{label} {fired}: {last:?}"
            );
        }
        // This scrape still shows the series; after it, it is removed.
        tracer.render_at(Instant::now() + WINDOW);
        assert_eq!(shown(&tracer), []);
        assert!(tracer.render().keys().all(|name| !name.contains(&label)));
    }
}

#[test]
fn series_of_ended_processes_are_removed_in_the_kernel() {
    one_after_the_other(false);
}

#[test]
fn series_of_ended_processes_are_removed_in_user_space() {
    one_after_the_other(true);
}

/// Starts a tracer that counts hits of one probe by process.
fn counting_by_process(binary: &Path) -> Tracer {
    let yaml = format!(
        "node_name: test\ntargets:\n- name: forms\n  binary: {}\n  probes:\n  - on: usdt:forms:i32\n    metrics:\n    \
         - counter: fired_total\n      labels: {{ pid: {{ value: pid, limit: {LIMIT} }} }}\n",
        binary.display()
    );
    Tracer::start(&yaml)
}

/// Small process numbers have their own table in the kernel: a freed number must be removed from it too, or a later
/// process with the same number would be counted as the one that has its slot now.
#[test]
fn small_pid_is_reused() {
    // Another process that stays may have been faster with the number.
    assert!((0..5).any(|_| reuses_a_small_pid()), "no process got the number that was asked for");
}

/// Returns whether the numbers were free.
fn reuses_a_small_pid() -> bool {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let tracer = counting_by_process(&binary);
    let shown =
        |tracer: &Tracer| tracer.render().into_iter().find(|(name, _)| name.starts_with("fired_total{"));
    let Some(mut first) = start_as(&binary, |pid| (300..1000).contains(&pid)) else { return false };
    let again = first.pid();
    for _ in 0..2 {
        let fired = first.fire("i32", 5)["fired"].as_u64().unwrap();
        first.kill();
        drop(first);
        let (name, value) = shown(&tracer).unwrap();
        assert!(name.contains(&format!("pid=\"{again}\"")) && value == fired.to_string(), "{name} {value}");
        tracer.render_at(Instant::now() + WINDOW);
        assert_eq!(shown(&tracer), None);
        // Another process takes the freed slot and keeps it.
        let mut other = Forms::start(&binary);
        other.fire("i32", 3);
        let Some(next) = start_as(&binary, |pid| pid == again) else { return false };
        first = next;
        other.kill();
        tracer.render();
        tracer.render_at(Instant::now() + WINDOW);
    }
    first.kill();
    true
}

/// Starts the program as a process whose number is `right`, by setting the kernel's next free number; `None` if that
/// stays taken.
fn start_as(binary: &Path, right: impl Fn(u32) -> bool) -> Option<Forms> {
    for _ in 0..500 {
        let next = (300..1000).find(|pid| right(*pid)).unwrap();
        std::fs::write("/proc/sys/kernel/ns_last_pid", (next - 1).to_string()).unwrap();
        let mut forms = Forms::start(binary);
        if right(forms.pid()) {
            return Some(forms);
        }
        forms.kill();
        // Another process has that number, and may live for seconds.
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

#[test]
fn slots_of_ended_processes_are_reused_on_demand() {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let tracer = counting_by_process(&binary);
    for _ in 0..4 {
        let mut processes: Vec<Forms> = (0..LIMIT).map(|_| Forms::start(&binary)).collect();
        let mut fired: Vec<_> = processes
            .iter_mut()
            .map(|forms| {
                let fired = forms.fire("i32", 5)["fired"].as_u64().unwrap();
                (format!("fired_total{{pid=\"{}\"}}", forms.pid()), fired.to_string())
            })
            .collect();
        fired.sort();
        processes.iter_mut().for_each(Forms::kill);
        drop(processes);
        let shown: Vec<_> =
            tracer.render().into_iter().filter(|(name, _)| name.starts_with("fired_total{")).collect();
        assert_eq!(shown, fired);
    }
}

#[test]
fn processes_beyond_the_limit_count_as_other() {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let tracer = counting_by_process(&binary);
    let mut processes: Vec<Forms> = (0..=LIMIT).map(|_| Forms::start(&binary)).collect();
    let fired: Vec<u64> =
        processes.iter_mut().map(|forms| forms.fire("i32", 5)["fired"].as_u64().unwrap()).collect();
    let series = tracer.render();
    let of = |label: &str| {
        series.iter().find(|(name, _)| name.contains(&format!("pid=\"{label}\""))).map(|(_, v)| v.clone())
    };
    for (forms, fired) in processes.iter().zip(&fired).take(LIMIT) {
        assert_eq!(of(&forms.pid().to_string()), Some(fired.to_string()), "{series:?}");
    }
    assert_eq!(of("other"), Some(fired[LIMIT].to_string()), "{series:?}");
}
