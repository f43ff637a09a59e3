//! What does not depend on one hit: losses at full speed, the drain, attaching and detaching.

use std::time::{Duration, Instant};

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

/// Events a second of all processes together, and how many processes.
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
    if options.wants("attach and detach 1,000 sites") {
        attach(options, target, report)?;
    }
    Ok(())
}

/// Fills the ring, then starts the thread that empties it.
fn drain(options: &Options, target: &Target, report: &mut Report) -> Result<(), String> {
    const EVENTS: u64 = 40_000;
    for (name, probes) in
        [("drain of an event of 64 bytes, counted", EVENT), ("and with three conditions", CONDITIONS)]
    {
        let mut ns = Vec::new();
        for _ in 0..options.rounds {
            let mut exporter = Exporter::load_without_drain(target, probes, true)?;
            let links = exporter.attach()?;
            target.run("ints3", EVENTS, 1, None)?;
            drop(links);
            let before = cpu_ns();
            exporter.start_drain()?;
            exporter.scrape();
            ns.push((cpu_ns() - before) as f64 / EVENTS as f64);
            if exporter.total("hits_total") != EVENTS {
                return Err("the ring is smaller than the events that were sent".to_string());
            }
        }
        report.fact(name, format!("{:.1} ns of CPU", median(&ns)));
    }
    Ok(())
}

fn attach(options: &Options, target: &Target, report: &mut Report) -> Result<(), String> {
    let started = Instant::now();
    let exporter = Exporter::load(target, SITES, false)?;
    report.fact("plan, find the sites, load the programs", format!("{:.0} ms", ms(started.elapsed())));
    let verified: u32 = ProgInfoIter::default()
        .filter(|info| info.name == "probe_multi")
        .map(|info| info.verified_insns)
        .last()
        .unwrap_or(0);
    report.fact("instructions that the kernel verified", verified.to_string());
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let started = Instant::now();
        let links = exporter.attach()?;
        attach.push(ms(started.elapsed()));
        let started = Instant::now();
        exporter::kernel::detach(links);
        detach.push(ms(started.elapsed()));
    }
    report.fact(
        format!("{} sites", exporter.sites()),
        format!("attached in {:.1} ms, detached in {:.1} ms", median(&attach), median(&detach)),
    );
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
