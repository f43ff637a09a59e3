//! The cost of a hit to the traced program.

use crate::Options;
use crate::ours::Exporter;
use crate::report::{FLOOR, Samples};
use crate::rivals::{Bpftrace, Rivals};
use crate::target::Target;

/// One comparison: a probe, and what is attached to it.
pub struct Row {
    pub name: &'static str,
    /// A probe of the traced program's provider, or one of its functions.
    probe: &'static str,
    processes: usize,
    /// The exporter's configuration of the probe; the metric below must equal the number of calls.
    probes: &'static str,
    metric: &'static str,
    all_to_ring: bool,
    /// Hand-written programs besides the empty one.
    programs: &'static [&'static str],
    bpftrace: Option<(&'static str, &'static str)>,
}

/// bpftrace takes part in every fifth round only.
const BPFTRACE_EVERY: usize = 5;

pub const OURS: &str = "this exporter";

const COUNTER: &str = "\
- on: usdt:bench:ints3
  metrics: [{ counter: hits_total }]";
const BARE: &str = "\
- on: usdt:bench:bare
  metrics: [{ counter: hits_total }]";
const LABELLED: &str = "\
- on: usdt:bench:labelled
  args: { kind: 0, size: 1 }
  metrics:
    - histogram: sizes
      value: size
      labels: { kind: kind }
      buckets: { exponential: { start: 1, factor: 2, count: 16 } }";
const NAMED: &str = "\
- on: usdt:bench:named
  args: { peer: { index: 0, type: string, max: 32 }, size: 1 }
  metrics:
    - histogram: sizes
      value: size
      labels: { peer: peer }
      buckets: { exponential: { start: 1, factor: 2, count: 16 } }";
const INTS3: &str = "\
- on: usdt:bench:ints3
  args: { a: 0, b: 1, c: 2 }
  metrics: [{ counter: hits_total, when: a >= 0 and b >= 0 and c >= 0 }]";
const INTS6: &str = "\
- on: usdt:bench:ints6
  args: { a: 0, b: 1, c: 2, d: 3, e: 4, f: 5 }
  metrics: [{ counter: hits_total, when: a >= 0 and b >= 0 and c >= 0 and d >= 0 and e >= 0 and f >= 0 }]";
const FIVE: &str = "\
- on: usdt:bench:five
  args: { a: 0, b: 1, c: 2, d: { index: 3, type: string, max: 64 }, e: { index: 4, type: hex, len: 32 } }
  metrics: [{ counter: hits_total, when: a >= 0 and b >= 0 and c >= 0 and d != \"x\" and e != \"x\" }]";
const STRINGS3: &str = "\
- on: usdt:bench:strings3
  args:
    a: { index: 0, type: string, max: 64 }
    b: { index: 1, type: string, max: 64 }
    c: { index: 2, type: string, max: 64 }
  metrics: [{ counter: hits_total, when: a != \"x\" and b != \"x\" and c != \"x\" }]";

const CALLED: &str = "\
- function: called
  returns_by: trampoline
  metrics: [{ histogram: call_seconds, value: duration }]";

const CALLED_BY_EXITS: &str = "\
- function: called
  metrics: [{ histogram: call_seconds, value: duration }]";

const CHECKED: &str = "\
- function: checked
  metrics: [{ histogram: call_seconds, value: duration }]";

const PLAIN: Row = Row {
    name: "",
    probe: "",
    processes: 1,
    probes: "",
    metric: "hits_total",
    all_to_ring: false,
    programs: &[],
    bpftrace: None,
};

/// Returns all comparisons. To add a row, add an entry.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "counter",
            probe: "ints3",
            probes: COUNTER,
            programs: &["empty_sleepable", "count"],
            bpftrace: Some(("bpftrace count()", "@ = count();")),
            ..PLAIN
        },
        Row {
            name: "counter, probe in a bare loop",
            probe: "bare",
            probes: BARE,
            programs: &["count"],
            ..PLAIN
        },
        Row {
            name: "histogram of 16 buckets by integer label",
            probe: "labelled",
            probes: LABELLED,
            metric: "sizes",
            bpftrace: Some(("bpftrace hist()", "@[arg0] = hist(arg1);")),
            ..PLAIN
        },
        Row {
            name: "histogram of 16 buckets by 32-byte string label",
            probe: "named",
            probes: NAMED,
            metric: "sizes",
            programs: &["string", "string_or_sleep"],
            bpftrace: Some(("bpftrace hist()", "@[str(arg0)] = hist(arg1);")),
            ..PLAIN
        },
        Row {
            name: "event of 3 integers",
            probe: "ints3",
            probes: INTS3,
            all_to_ring: true,
            programs: &["naive"],
            ..PLAIN
        },
        Row { name: "event of 6 integers", probe: "ints6", probes: INTS6, all_to_ring: true, ..PLAIN },
        Row {
            name: "event of 3 integers, a string and 32 bytes",
            probe: "five",
            probes: FIVE,
            all_to_ring: true,
            ..PLAIN
        },
        Row { name: "event of 3 strings", probe: "strings3", probes: STRINGS3, all_to_ring: true, ..PLAIN },
        Row {
            name: "duration of a function by the kernel's trampoline, against its entry alone",
            probe: "called",
            probes: CALLED,
            metric: "call_seconds",
            programs: &["empty_session"],
            ..PLAIN
        },
        Row {
            name: "duration of a function by its exits, against its entry alone",
            probe: "called",
            probes: CALLED_BY_EXITS,
            metric: "call_seconds",
            ..PLAIN
        },
        Row {
            name: "duration of a function by the jump before its exit, against its entry alone",
            probe: "checked",
            probes: CHECKED,
            metric: "call_seconds",
            ..PLAIN
        },
        Row {
            name: "histogram by integer label, two processes at once",
            probe: "labelled",
            processes: 2,
            probes: LABELLED,
            metric: "sizes",
            ..PLAIN
        },
        Row {
            name: "event of 3 integers, two processes at once",
            probe: "ints3",
            processes: 2,
            probes: INTS3,
            all_to_ring: true,
            programs: &["naive"],
            ..PLAIN
        },
    ]
}

/// Measures all contenders of a row in turn, round after round.
pub fn compare(
    row: &Row,
    options: &Options,
    target: &Target,
    rivals: &Rivals,
) -> Result<Vec<Samples>, String> {
    let sites = target.sites(row.probe)?;
    let run = |calls| -> Result<f64, String> {
        let costs = target.run(row.probe, calls, row.processes, None)?;
        Ok(costs.iter().map(|cost| cost.ns_per_call).sum::<f64>() / costs.len() as f64)
    };
    let mut exporter = Exporter::load(target, row.probes, row.all_to_ring)?;
    let mut all = vec![Samples::new("no tracer"), Samples::new(FLOOR)];
    all.extend(row.programs.iter().map(|name| Samples::new(name)));
    all.extend(row.bpftrace.map(|(name, _)| Samples::new(name)));
    all.push(Samples::new(OURS));
    for round in 0..options.rounds {
        for samples in &mut all {
            let name = samples.name.clone();
            let name = name.as_str();
            let mut calls = options.calls;
            let bpftrace = row.bpftrace.filter(|(known, _)| *known == name);
            if name == OURS {
                let links = exporter.attach()?;
                let (before, cost) = (cpu_ns(), exporter.cost());
                let hits = calls * row.processes as u64;
                samples.add(round, run(calls)?);
                exporter.scrape();
                samples.spent(cpu_ns() - before, hits);
                samples.estimated((exporter.cost() - cost) * 1e9 / hits as f64);
                drop(links);
            } else if name == "no tracer" {
                samples.add(round, run(calls)?);
            } else if let Some((_, action)) = bpftrace {
                // bpftrace takes a second to start, so it runs in some rounds only.
                if round % BPFTRACE_EVERY != 0 {
                    continue;
                }
                match Bpftrace::start(target, row.probe, action) {
                    Err(err) => samples.note = err,
                    Ok(bpftrace) => {
                        samples.add(round, run(calls)?);
                        let counted = bpftrace.finish();
                        samples.lost += (calls * row.processes as u64).saturating_sub(counted);
                    }
                }
            } else {
                let consumer = if name == "naive" { Some(rivals.consume()?) } else { None };
                let link = rivals.attach(name, &sites)?;
                let before = cpu_ns();
                // Waking up for every event takes so long that fewer events have to do.
                if consumer.is_some() {
                    calls /= 4;
                }
                samples.add(round, run(calls)?);
                if consumer.is_some() {
                    samples.spent(cpu_ns() - before, calls * row.processes as u64);
                }
                drop(link);
            }
        }
    }
    let hits = options.calls * row.processes as u64 * options.rounds as u64;
    let counted = exporter.total(row.metric);
    if let Some(samples) = all.last_mut() {
        samples.lost = hits.saturating_sub(counted);
    }
    eprintln!("{}: done", row.name);
    Ok(all)
}

/// Returns the CPU time of all threads of this process.
pub fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel only fills in the given structure.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
