//! What does not depend on a single hit: losses at full speed, the drain, startup.

use std::time::Instant;

use libbpf_rs::query::ProgInfoIter;

use crate::Options;
use crate::ours::Exporter;
use crate::report::{Report, median};
use crate::rows::cpu_ns;
use crate::target::Target;

const EVENT: &str = "\
- on: usdt:bench:ints3
  metrics: [{ counter: hits_total }]";
const CONDITIONS: &str = "\
- on: usdt:bench:ints3
  args: { a: 0, b: 1, c: 2 }
  metrics: [{ counter: hits_total, when: a >= 0 and b >= 0 and c >= 0 }]";
const SITES: &str = "\
- on: usdt:bench:site
  metrics: [{ counter: hits_total }]";

/// The total events per second of all processes, and the number of processes.
const RATES: [(u64, usize); 2] = [(1_000_000, 1), (1_800_000, 2)];

pub fn measure(options: &Options, target: &Target, report: &mut Report) -> Result<(), String> {
    for (rate, processes) in RATES {
        let name = format!("events lost at {:.1} M/s from {processes} process(es)", rate as f64 / 1e6);
        if options.wants(&name) {
            let each = rate / processes as u64;
            let mut exporter = Exporter::load(target, CONDITIONS, true)?;
            let _links = exporter.attach()?;
            let before = cpu_ns();
            let costs = target.run("ints3", 3 * each, processes, Some(each))?;
            let wall = costs.iter().map(|cost| cost.wall_seconds).fold(0.0, f64::max);
            let sent = 3 * each * processes as u64;
            let lost = sent - exporter.total("hits_total").min(sent);
            let spent = (cpu_ns() - before) as f64 / sent as f64;
            let reached = sent as f64 / wall / 1e6;
            report.fact(
                name,
                format!("{lost} of {sent}; {reached:.2} M/s reached; {spent:.0} ns of CPU an event"),
            );
        }
    }
    if options.wants("drain of an event") {
        drain(options, target, report)?;
    }
    if options.wants("start") {
        start(target, report)?;
    }
    Ok(())
}

/// Measures the CPU time of the thread that drains the ring, under a steady load.
fn drain(options: &Options, target: &Target, report: &mut Report) -> Result<(), String> {
    const EVENTS: u64 = 500_000;
    for (name, probes) in
        [("drain of an event of 64 bytes, counted", EVENT), ("and with three conditions", CONDITIONS)]
    {
        let mut exporter = Exporter::load(target, probes, true)?;
        let _links = exporter.attach()?;
        let mut ns = Vec::new();
        // In the first round the ring's memory is new to the process, so that each page costs a fault.
        for round in 0..=options.rounds {
            let before = drain_ns()?;
            target.run("ints3", EVENTS, 1, Some(1_000_000))?;
            exporter.scrape();
            if round > 0 {
                ns.push((drain_ns()? - before) as f64 / EVENTS as f64);
            }
        }
        let sent = EVENTS * (options.rounds as u64 + 1);
        let lost = sent - exporter.total("hits_total").min(sent);
        report.fact(name, format!("{:.1} ns of CPU, {lost} of {sent} lost", median(&ns)));
    }
    Ok(())
}

/// Returns the CPU time of the thread that drains the ring.
fn drain_ns() -> Result<u64, String> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|err| format!("/proc/self/task: {err}"))?;
    let read = |task: &std::path::Path, file: &str| std::fs::read_to_string(task.join(file)).ok();
    tasks
        .flatten()
        .map(|task| task.path())
        .find(|task| read(task, "comm").is_some_and(|name| name.trim() == "drain"))
        .and_then(|task| read(&task, "schedstat")?.split(' ').next()?.parse().ok())
        .ok_or("there is no thread that drains".to_string())
}

/// Measures startup. Attaching itself is measured by `benches/attach.rs`.
fn start(target: &Target, report: &mut Report) -> Result<(), String> {
    let started = Instant::now();
    let _exporter = Exporter::load(target, SITES, false)?;
    let ms = started.elapsed().as_secs_f64() * 1e3;
    report.fact("plan, find 1,000 sites, load the programs", format!("{ms:.0} ms"));
    let verified: u32 = ProgInfoIter::default()
        .filter(|info| info.name == "probe_multi")
        .map(|info| info.verified_insns)
        .last()
        .unwrap_or(0);
    report.fact("instructions that the kernel verified", verified.to_string());
    Ok(())
}
