//! The cost of a scrape of 100,000 series: the exporter's own registry against that of the prometheus crate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use exporter::exposition::{Format, Head, Kind, Number, Sample, SampleValue};
use prometheus::{Encoder, IntCounterVec, Opts, Registry, TextEncoder};

use crate::Options;
use crate::ours::Exporter;
use crate::report::{Report, median};
use crate::rows::cpu_ns;
use crate::target::Target;

const SERIES: u64 = 100_000;

const DISTINCT: &str = "\
- on: usdt:bench:labelled
  args: { kind: 0, size: 1 }
  metrics:
    - counter: sizes_total
      value: size
      labels: { kind: { value: kind, limit: 100000 } }";

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is delegated to the system allocator; this only increments a counter.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: upheld by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: upheld by the caller.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: upheld by the caller.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

pub fn measure(options: &Options, target: &Target, report: &mut Report) -> Result<(), String> {
    if !options.wants("scrape of 100,000 series") {
        return Ok(());
    }
    let mut exporter = Exporter::load(target, DISTINCT, false)?;
    let _links = exporter.attach()?;
    target.run("distinct", SERIES, 1, None)?;
    let first = cpu_ns();
    let lines = exporter.scrape().split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"s")).count();
    let first = cpu_ns() - first;
    let theirs = Registry::new();
    let counters = IntCounterVec::new(Opts::new("sizes_total", "Sizes total."), &["kind", "node"])
        .map_err(|err| err.to_string())?;
    theirs.register(Box::new(counters.clone())).map_err(|err| err.to_string())?;
    for series in 0..SERIES {
        counters.with_label_values(&[series.to_string().as_str(), "localhost"]).inc_by(series);
    }
    let head = Head::new("sizes_total", "Sizes total.", Kind::Counter);
    let keys: Vec<_> =
        (0..SERIES).map(|kind| head.key(&format!("node=\"localhost\",kind=\"{kind}\""))).collect();
    let mut text = Vec::new();
    let mut encoding_cost = Cost::default();
    let mut ours_cost = Cost::default();
    let mut theirs_cost = Cost::default();
    for _ in 0..options.rounds {
        ours_cost.measure(|| Ok(exporter.scrape().len()))?;
        encoding_cost.measure(|| {
            text.clear();
            let samples = keys
                .iter()
                .enumerate()
                .map(|(number, key)| Sample { key, value: SampleValue::Number(Number::Int(number as i128)) });
            Format::Text.write(&head, samples, &mut text);
            Ok(text.len())
        })?;
        theirs_cost.measure(|| {
            text.clear();
            TextEncoder::new().encode(&theirs.gather(), &mut text).map_err(|err| err.to_string())?;
            Ok(text.len())
        })?;
    }
    report.fact(format!("first scrape of {lines} series"), format!("{:.0} ms", first as f64 / 1e6));
    report.fact(format!("scrape of {lines} series"), ours_cost.show(lines));
    report.fact("of which encoding", encoding_cost.show(lines));
    report.fact(
        format!("prometheus crate, gather and text, {SERIES} series"),
        theirs_cost.show(SERIES as usize),
    );
    Ok(())
}

#[derive(Default)]
struct Cost {
    ns: Vec<f64>,
    allocations: Vec<f64>,
}

impl Cost {
    fn measure(&mut self, mut scrape: impl FnMut() -> Result<usize, String>) -> Result<(), String> {
        let (cpu, allocations) = (cpu_ns(), ALLOCATIONS.load(Ordering::Relaxed));
        std::hint::black_box(scrape()?);
        self.ns.push((cpu_ns() - cpu) as f64);
        self.allocations.push((ALLOCATIONS.load(Ordering::Relaxed) - allocations) as f64);
        Ok(())
    }

    fn show(&self, lines: usize) -> String {
        let ns = median(&self.ns);
        format!(
            "{:.1} ms of CPU, {:.0} ns a line, {:.0} allocations",
            ns / 1e6,
            ns / lines as f64,
            median(&self.allocations)
        )
    }
}
