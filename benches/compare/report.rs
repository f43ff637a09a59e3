//! The result tables.

use std::fmt::Write;

/// The floor: an empty program on the same probe.
pub const FLOOR: &str = "empty";

/// The measurements of one contender in a row.
pub struct Samples {
    pub name: String,
    /// Nanoseconds per call, by round.
    ns: Vec<(usize, f64)>,
    /// The tracer's own CPU time per hit.
    tracer_ns: Vec<f64>,
    /// The tracer's own estimate of the cost of a hit, in nanoseconds.
    estimates: Vec<f64>,
    /// Hits that the tracer did not report, over all rounds.
    pub lost: u64,
    /// Why there is no figure.
    pub note: String,
}

/// All results so far.
pub struct Report {
    rounds: usize,
    rows: Vec<(String, Vec<Samples>)>,
    facts: Vec<(String, String)>,
}

impl Samples {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_string(),
            ns: Vec::new(),
            tracer_ns: Vec::new(),
            estimates: Vec::new(),
            lost: 0,
            note: String::new(),
        }
    }

    /// Adds one round's nanoseconds per call.
    pub fn add(&mut self, round: usize, ns: f64) {
        self.ns.push((round, ns));
    }

    /// Adds the CPU time that the tracer itself spent on one round's hits.
    pub fn spent(&mut self, ns: u64, hits: u64) {
        self.tracer_ns.push(ns as f64 / hits as f64);
    }

    /// Adds the tracer's own estimate of the cost of a hit in one round.
    pub fn estimated(&mut self, ns: f64) {
        self.estimates.push(ns);
    }

    fn all(&self) -> Vec<f64> {
        self.ns.iter().map(|(_, ns)| *ns).collect()
    }

    /// Returns each round's ratio to the floor of the same round, which cancels out slow changes of the machine.
    fn ratios(&self, floor: &Samples) -> Vec<f64> {
        let in_round = |round| floor.ns.iter().find(|(at, _)| *at == round).map(|(_, ns)| *ns);
        self.ns.iter().filter_map(|(round, ns)| Some(ns / in_round(*round)?)).collect()
    }
}

impl Report {
    pub fn new(rounds: usize) -> Self {
        Self { rounds, rows: Vec::new(), facts: Vec::new() }
    }

    pub fn row(&mut self, name: &str, samples: Vec<Samples>) {
        self.rows.push((name.to_string(), samples));
    }

    /// Adds a result that is not a comparison with the floor.
    pub fn fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        eprintln!("{name}: {value}");
        self.facts.push((name, value));
    }

    /// Returns the report for the terminal.
    pub fn text(&self) -> String {
        self.markdown()
    }

    /// Returns the report for a file.
    pub fn markdown(&self) -> String {
        let mut to = String::new();
        let _ = writeln!(
            to,
            "{}. Medians of {} interleaved rounds, ratios taken within a round; spread is the middle half.\n",
            machine(),
            self.rounds
        );
        if !self.rows.is_empty() {
            to.push_str(
                "| probe | tracer | ns per hit | spread | x empty | tracer's estimate | tracer's CPU, ns per hit | lost |\n",
            );
            to.push_str("|---|---|---:|---:|---:|---:|---:|---:|\n");
        }
        for (row, all) in &self.rows {
            let floor = all.iter().find(|samples| samples.name == FLOOR);
            for samples in all {
                let _ = write!(to, "| {row} | {} ", samples.name.replace('_', " "));
                let mut ns = samples.all();
                if ns.is_empty() {
                    let _ = writeln!(to, "| {} |||||| ", samples.note);
                    continue;
                }
                let middle = median(&ns);
                let (low, high) = quartiles(&mut ns);
                let ratio = floor.filter(|_| samples.name != "no tracer").map(|floor| samples.ratios(floor));
                let _ = writeln!(
                    to,
                    "| {middle:.0} | {low:.0}-{high:.0} | {} | {} | {} | {} |",
                    ratio.map_or(String::new(), |ratios| format!("{:.2}", median(&ratios))),
                    whole(&samples.estimates),
                    whole(&samples.tracer_ns),
                    samples.lost
                );
            }
        }
        if !self.facts.is_empty() {
            to.push_str("\n| measure | result |\n|---|---|\n");
        }
        for (name, value) in &self.facts {
            let _ = writeln!(to, "| {name} | {value} |");
        }
        to
    }
}

/// Returns the median, rounded to an integer, or an empty string if there are no numbers.
fn whole(numbers: &[f64]) -> String {
    if numbers.is_empty() { String::new() } else { format!("{:.0}", median(numbers)) }
}

/// Returns the median, or 0 if there are no numbers.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn quartiles(numbers: &mut [f64]) -> (f64, f64) {
    numbers.sort_by(f64::total_cmp);
    let at = |part: usize| numbers[(numbers.len() - 1) * part / 4];
    (at(1), at(3))
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let virtual_machine = if cpuinfo.contains(" hypervisor") { ", virtual machine" } else { "" };
    format!(
        "{} x {}{virtual_machine}, Linux {}",
        std::thread::available_parallelism().map_or(1, usize::from),
        model.map_or("unknown CPU", |(_, name)| name.trim()),
        exporter::kernel::kernel_release()
    )
}
