//! Measures the cost of tracking processes: an exporter that is idle beside many of them, how long a program runs
//! before its probe is attached, programs that start all the time, and whether the cost that the exporter reports is
//! the actual slowdown of the traced programs.
//!
//! Usage: `cargo bench --bench processes -- [--rounds N] [--markdown FILE]`
//!
//! Needs root and cc. This benchmark neither passes nor fails.

#[path = "../support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use libbpf_rs::query::ProgInfoIter;
use rustix::time::{ClockId, clock_gettime};
use support::{Exporter, Options, Result, held};

const PROCESSES: u32 = 5000;
const TARGETS: u32 = 50;
const IDLE: Duration = Duration::from_secs(20);
/// The pause between starts of two new programs.
const APART: Duration = Duration::from_millis(500);
/// Program starts per round.
const STARTS: u32 = 3000;
/// The rate of starts per second for which costs are reported.
const STARTS_PER_SECOND: f64 = 3000.0;

struct Bench {
    directory: tempfile::TempDir,
    program: PathBuf,
    rounds: usize,
    table: String,
}

fn main() -> Result<()> {
    let Options { rounds, markdown } = Options::from_args()?;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let program = compile(directory.path())?;
    let table = String::from("| what | result | goal |\n|---|---:|---:|\n");
    let mut bench = Bench { directory, program, rounds, table };
    bench.idle()?;
    bench.attach()?;
    bench.starts()?;
    bench.costs()?;
    print!("{}", bench.table);
    if let Some(path) = markdown {
        fs::write(path, bench.table)?;
    }
    Ok(())
}

impl Bench {
    fn row(&mut self, what: &str, result: &str, goal: &str) {
        eprintln!("{what}: {result}");
        let _ = writeln!(self.table, "| {what} | {result} | {goal} |");
    }

    /// Starts the exporter with this configuration.
    fn exporter(&self, config: &str) -> Result<Exporter> {
        Exporter::start(&self.directory.path().join("config.yaml"), config)
    }

    /// Copies the program to a file of this name.
    fn named(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::copy(&self.program, &path)?;
        Ok(path)
    }

    /// Measures idle processes, half of them targets, with targets by process, container and library.
    fn idle(&mut self) -> Result<()> {
        let (meant, other) = (self.named("bench-meant")?, self.named("bench-other")?);
        let _processes = [Processes::start(&meant, PROCESSES / 2)?, Processes::start(&other, PROCESSES / 2)?];
        let exporter = self.exporter(&many_targets())?;
        // Wait for the work that follows startup to finish: files of ended processes, marks on directories, rechecks of
        // what may still change.
        thread::sleep(Duration::from_secs(12));
        let before = Used::of(exporter.process.id())?;
        thread::sleep(IDLE);
        let used = Used::of(exporter.process.id())?.since(before);
        let what =
            format!("idle, {PROCESSES} processes, {TARGETS} targets by process, container and library");
        let seconds = IDLE.as_secs();
        let result = format!("{} ticks, {:.1} ms of CPU in {seconds} s", used.ticks, used.seconds * 1e3);
        self.row(&what, &result, "0 ticks");
        Ok(())
    }

    /// Measures the time from execve(2) of a new file until the breakpoint is set in that process.
    fn attach(&mut self) -> Result<()> {
        let exporter =
            self.exporter(&target("process: bench-new", "probed", "metrics: [counter: c_total]"))?;
        let mut times = Vec::new();
        for turn in 0..3 * self.rounds {
            let own = self.directory.path().join(format!("new-{turn}"));
            fs::create_dir(&own)?;
            let file = own.join("bench-new");
            fs::copy(&self.program, &file)?;
            // The kernel waits for a grace period only if it has not done so a moment ago: pause, to measure what a
            // single start takes.
            thread::sleep(APART);
            let now = clock_gettime(ClockId::Monotonic);
            let now = now.tv_sec * 1_000_000_000 + now.tv_nsec;
            times.push(said(Command::new(&file).args(["wait", &now.to_string()]))? / 1e6);
        }
        drop(exporter);
        let (middle, most) = middle_and_most(times);
        self.row(
            "exec of a new file to its breakpoint",
            &format!("{middle:.1} ms, at most {most:.1}"),
            "20 ms",
        );
        Ok(())
    }

    /// Measures programs that start and end all the time, with 51 targets: once programs that match none of them, once
    /// programs that match one.
    fn starts(&mut self) -> Result<()> {
        let statistics = Statistics::enable()?;
        for (what, name) in
            [("of programs that are no target", "bench-other"), ("of a target", "bench-short")]
        {
            let file = self.named(name)?;
            let storm = || said(Command::new(&self.program).args(["storm", &STARTS.to_string()]).arg(&file));
            let (mut without, mut with, mut kernel, mut own) = (vec![], vec![], vec![], vec![]);
            for _ in 0..self.rounds {
                without.push(storm()? / f64::from(STARTS));
                let config = many_targets()
                    + &one("short", "process: bench-short", "probed", "metrics: [counter: d_total]");
                let exporter = self.exporter(&config)?;
                // Makes the exporter know the file, as it does for all but the first process of a kind.
                said(Command::new(&self.program).args(["storm", "1"]).arg(&file))?;
                thread::sleep(Duration::from_millis(500));
                let pid = exporter.process.id();
                let before = (Used::of(pid)?, statistics.of(pid)?);
                with.push(storm()? / f64::from(STARTS));
                thread::sleep(Duration::from_millis(1500));
                let used = Used::of(pid)?.since(before.0);
                own.push(used.seconds * 1e9 / f64::from(STARTS));
                kernel.push((statistics.of(pid)? - before.1) / f64::from(STARTS));
            }
            let [without, with, kernel, own] = [without, with, kernel, own].map(|all| middle_and_most(all).0);
            let share = (kernel + own) * STARTS_PER_SECOND / 1e9 * 100.0;
            let result = format!(
                "{:.1} us in its programs, {:.1} us in the exporter: {share:.2} % of a core at {STARTS_PER_SECOND} a second; {:.0} us \
                 each without the exporter, ratio {:.3}",
                kernel / 1e3,
                own / 1e3,
                without / 1e3,
                with / without,
            );
            self.row(&format!("fork, exec and exit {what}"), &result, "2 %");
        }
        Ok(())
    }

    /// Compares the cost of tracing that the exporter reports with the actual slowdown of the program.
    fn costs(&mut self) -> Result<()> {
        for (what, function, calls, metrics) in [
            ("at an instruction that is emulated", "cheap", 500_000, "metrics: [counter: c_total]"),
            ("at one that is single-stepped", "dear", 100_000, "metrics: [counter: c_total]"),
            (
                "duration of a function",
                "returns",
                100_000,
                "metrics: [{ histogram: c_seconds, value: duration }]",
            ),
            (
                "a histogram and a label",
                "cheap",
                300_000,
                "metrics: [{ counter: c_total, labels: { pid: pid } }, { counter: d_total, labels: { cpu: cpu } }]",
            ),
        ] {
            let call = || said(Command::new(&self.program).args(["call", function, &calls.to_string()]));
            let (mut slower, mut ratios) = (Vec::new(), Vec::new());
            for _ in 0..self.rounds {
                let without = call()?;
                let binary = format!("binary: {}", self.program.display());
                let exporter = self.exporter(&target(&binary, function, metrics))?;
                let cost = call()? - without;
                let told = exporter.sum("fibre_exporter_probe_cost_seconds_total")? * 1e9;
                slower.push(cost / f64::from(calls));
                ratios.push(told / cost);
            }
            let ((slower, _), (ratio, _)) = (middle_and_most(slower), middle_and_most(ratios));
            let result = format!("{slower:.0} ns a call slower, estimated: {ratio:.2} of that");
            self.row(&format!("cost, {what}"), &result, "1");
        }
        Ok(())
    }
}

fn compile(directory: &Path) -> Result<PathBuf> {
    let program = directory.join("program");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/processes/program.c");
    let built = Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(source).status()?;
    built.success().then_some(program).ok_or_else(|| "cc failed; install gcc".into())
}

fn one(name: &str, selector: &str, function: &str, metrics: &str) -> String {
    format!("- name: {name}\n  {selector}\n  probes:\n  - function: {function}\n    {metrics}\n")
}

fn target(selector: &str, function: &str, metrics: &str) -> String {
    format!("targets:\n{}", one("bench", selector, function, metrics))
}

/// Returns a configuration of many targets, only one of which is running.
fn many_targets() -> String {
    let selector = |n: u32| match n {
        0 => "process: bench-meant".to_string(),
        n if n % 3 == 0 => format!("process: bench-{n}"),
        n if n % 3 == 1 => format!("container: bench-{n}"),
        n => format!("process: bench-*{n}\n  library: libz.so.1"),
    };
    let metrics = |n| format!("metrics: [counter: c{n}_total]");
    let of = |n: u32| match n % 3 {
        2 => format!("- name: t{n}\n  {}\n  probes:\n  - on: usdt:a:b\n    {}\n", selector(n), metrics(n)),
        _ => one(&format!("t{n}"), &selector(n), "probed", &metrics(n)),
    };
    format!("targets:\n{}", (0..TARGETS).map(of).collect::<String>())
}

/// Runs a program and returns the number that it prints.
fn said(command: &mut Command) -> Result<f64> {
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn middle_and_most(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_unstable_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() - 1])
}

/// A parent with its children.
struct Processes(Child);

impl Processes {
    fn start(program: &Path, number: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["idle", &number.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut processes = Self(command.spawn()?);
        let mut line = String::new();
        BufReader::new(processes.0.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        (line == "up\n").then_some(processes).ok_or_else(|| "not all could be started".into())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // All processes end when their input is closed.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// CPU time of a process.
#[derive(Clone, Copy)]
struct Used {
    ticks: u64,
    seconds: f64,
}

impl Used {
    fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit(") ").next().ok_or("no name")?;
        let ticks =
            after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Self { ticks, seconds: Duration::from_nanos(nanoseconds).as_secs_f64() })
    }

    fn since(self, before: Self) -> Self {
        Self { ticks: self.ticks - before.ticks, seconds: self.seconds - before.seconds }
    }
}

/// Enables the kernel's run time statistics of BPF programs while it lives.
struct Statistics(String);

impl Statistics {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn enable() -> Result<Self> {
        let before = fs::read_to_string(Self::SWITCH)?;
        fs::write(Self::SWITCH, "1")?;
        Ok(Self(before))
    }

    /// Returns the total run time of this process's BPF programs, in nanoseconds.
    fn of(&self, pid: u32) -> Result<f64> {
        let held = held(pid)?;
        let own = ProgInfoIter::default().filter(|program| held.contains(&("prog_id:", program.id)));
        Ok(own.map(|program| program.run_time_ns as f64).sum())
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = fs::write(Self::SWITCH, &self.0);
    }
}
