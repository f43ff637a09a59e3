//! Measures attaching to and detaching from many sites of one file, with and without processes that map it, and how
//! long the kernel holds on to an exporter's links and programs after it has ended, whether cleanly or killed.
//!
//! Usage: `cargo bench --bench attach -- [--rounds N] [--markdown FILE]`
//!
//! Needs root, cc and sys/sdt.h; also measures OpenJDK's libjvm.so where it is installed. This benchmark neither passes
//! nor fails.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use exporter::config::{Environment, Overrides, load_bytes, model::AttachMode};
use exporter::elf::{Image, SymbolIndex};
use exporter::kernel::{AttachRequest, Kernel, PidNamespace, choose, detach};
use exporter::layout::Layout;
use exporter::plan::{Plan, plan};
use exporter::resolve::resolve;
use exporter::targets::place;
use libbpf_rs::query::{LinkInfoIter, ProgInfoIter};
use support::{Exporter, Options, Result, held};

const LIBJVM: &str = "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so";

/// A program with a thousand sites of one probe, all sharing one semaphore, whose value it prints for every line that
/// it reads. It loads the given library and does nothing else.
const HOLD: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#define _SDT_HAS_SEMAPHORES 1
__extension__ unsigned short bench_site_semaphore __attribute__((section(".probes")));
#include <sys/sdt.h>
#define SITE STAP_PROBE(bench, site);
#define TEN(x) x x x x x x x x x x
int main(int argc, char **argv) {
    if (argc > 1 && !dlopen(argv[1], RTLD_NOW)) return fprintf(stderr, "%s\n", dlerror());
    if (argc > 2) { TEN(TEN(TEN(SITE))) }
    for (int c; (c = getchar()) != EOF;)
        if (c == '\n') { printf("%d\n", *(volatile unsigned short *)&bench_site_semaphore); fflush(stdout); }
    return 0;
}
"#;

/// The numbers of processes that map the file.
const PROCESSES: [usize; 2] = [0, 50];

fn main() -> Result<()> {
    let options = Options::from_args()?;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let hold = compile(directory.path())?;
    let mut table =
        String::from("| what | processes that map it | median, ms | most, ms |\n|---|---:|---:|---:|\n");
    let mut files = vec![("1,000 sites", hold.clone(), "      - on: usdt:bench:site\n".to_string())];
    if Path::new(LIBJVM).exists() {
        let copy = directory.path().join("libjvm.so");
        fs::copy(LIBJVM, &copy)?;
        let probes = every_probe(&copy)?;
        files.push(("libjvm.so, every site", copy, probes));
    }
    for (name, file, probes) in &files {
        for processes in PROCESSES {
            let mut holders = Holders::start(&hold, file, processes)?;
            links(&options, name, file, probes, &mut holders, &mut table)?;
            for signal in ["TERM", "KILL"] {
                ends(&options, name, file, probes, &mut holders, signal, &mut table)?;
            }
        }
    }
    print!("{table}");
    if let Some(path) = &options.markdown {
        fs::write(path, table)?;
    }
    Ok(())
}

/// Measures the links alone, attached and detached as the exporter does it.
fn links(
    options: &Options,
    name: &str,
    file: &Path,
    probes: &str,
    holders: &mut Holders,
    table: &mut String,
) -> Result<()> {
    let plan = planned(file, probes)?;
    let kernel = Kernel::load(&plan, &Layout::new(&plan), choose(AttachMode::Auto), PidNamespace::default())?;
    let opened = fs::File::open(file)?;
    let bytes = fs::read(file)?;
    let image = Image::parse(&bytes)?;
    let index = SymbolIndex::of(&image);
    let resolved = plan
        .probes
        .iter()
        .zip(0..)
        .map(|(_, n)| resolve(&index, n, &plan, &mut |_| 0).map_err(|err| err.to_string()))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let sites: Vec<_> = resolved.iter().flat_map(|resolved| &resolved.sites).collect();
    let numbers: Vec<u32> = (0..).take(sites.len()).collect();
    let sites = place(&plan, kernel.has_sessions(), &sites, &numbers);
    let request = AttachRequest { file: &opened, sites: &sites, idle: &[], processes: 0 };
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let began = Instant::now();
        let links = kernel.attach(request, BTreeMap::new()).links;
        on.push(began.elapsed());
        if holders
            .semaphores()
            .iter()
            .any(|value| *value != sites.iter().filter(|site| site.site.ref_ctr_offset != 0).count())
        {
            return Err("not attached in every process".into());
        }
        let began = Instant::now();
        detach(links);
        off.push(began.elapsed());
    }
    row(table, &format!("{name} ({}): attach", sites.len()), holders, on);
    row(table, &format!("{name} ({}): detach", sites.len()), holders, off);
    Ok(())
}

/// Measures the end of a whole exporter: from the signal until its process and links are gone and all semaphores are
/// zero, and until its programs, which no hit runs any more, are freed too.
fn ends(
    options: &Options,
    name: &str,
    file: &Path,
    probes: &str,
    holders: &mut Holders,
    signal: &str,
    table: &mut String,
) -> Result<()> {
    let (mut out, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let mut exporter = Exporter::start(&file.with_extension("yaml"), &config(file, probes))?;
        let held = held(exporter.process.id())?;
        let links: BTreeSet<_> = held.iter().filter(|(kind, _)| *kind == "link_id:").copied().collect();
        if links.is_empty() {
            return Err("the exporter holds nothing in the kernel".into());
        }
        let began = Instant::now();
        Command::new("kill").arg(format!("-{signal}")).arg(exporter.process.id().to_string()).status()?;
        exporter.process.wait()?;
        while !links.is_disjoint(&in_kernel()) || holders.semaphores().iter().any(|value| *value != 0) {}
        out.push(began.elapsed());
        while !held.is_disjoint(&in_kernel()) {}
        gone.push(began.elapsed());
    }
    row(table, &format!("{name}: SIG{signal}, its probes are out"), holders, out);
    row(table, &format!("{name}: SIG{signal}, its programs are freed too"), holders, gone);
    Ok(())
}

fn row(table: &mut String, what: &str, holders: &Holders, mut times: Vec<Duration>) {
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (middle, most) = (ms(times[times.len() / 2]), ms(times[times.len() - 1]));
    eprintln!("{what}, {} processes: {middle:.1} ms, at most {most:.1}", holders.0.len());
    let _ = writeln!(table, "| {what} | {} | {middle:.1} | {most:.1} |", holders.0.len());
}

fn compile(directory: &Path) -> Result<PathBuf> {
    let (source, program) = (directory.join("hold.c"), directory.join("hold"));
    fs::write(&source, HOLD)?;
    let built = Command::new("cc").args(["-O2", "-o"]).args([&program, &source]).arg("-ldl").status()?;
    built.success().then_some(program).ok_or_else(|| "cc failed; install gcc and systemtap-sdt-dev".into())
}

/// Returns the YAML of probes for everything that the exporter lists for a file.
fn every_probe(file: &Path) -> Result<String> {
    let listed =
        Command::new(env!("CARGO_BIN_EXE_exporter")).arg("probes").arg(file).arg("--yaml").output()?;
    let yaml: serde_yaml::Value = serde_yaml::from_slice(&listed.stdout)?;
    let probes = yaml["targets"][0]["probes"].as_sequence().ok_or("no probes")?;
    let names = probes.iter().filter_map(|probe| probe["on"].as_str());
    Ok(names.map(|name| format!("      - on: {name}\n")).collect())
}

fn config(file: &Path, probes: &str) -> String {
    format!(
        "limits: {{ sites: 2048 }}\ntargets:\n  - name: bench\n    binary: {}\n    probes:\n{probes}",
        file.display()
    )
}

fn planned(file: &Path, probes: &str) -> Result<Plan> {
    load_bytes("bench.yaml", config(file, probes).into_bytes(), &Overrides::default(), &Environment::new())
        .and_then(|loaded| plan(loaded.config, false))
        .map_err(|wrong| wrong.render().into())
}

/// Processes that map the file.
struct Holders(Vec<(Child, BufReader<ChildStdout>)>);

impl Holders {
    fn start(hold: &Path, file: &Path, count: usize) -> Result<Self> {
        let mut all = Self(Vec::new());
        for _ in 0..count {
            let mut command = Command::new(hold);
            if file != hold {
                command.arg(file);
            }
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let answers = BufReader::new(child.stdout.take().ok_or("no output")?);
            all.0.push((child, answers));
        }
        all.semaphores();
        Ok(all)
    }

    /// Returns the semaphore's value in each process; an answer also means that the process has loaded the file.
    fn semaphores(&mut self) -> Vec<usize> {
        for (child, _) in &mut self.0 {
            let _ = child.stdin.as_mut().map(|ask| ask.write_all(b"\n"));
        }
        let mut line = String::new();
        let answer = |(_, answers): &mut (Child, BufReader<_>)| {
            line.clear();
            answers.read_line(&mut line).ok()?;
            line.trim().parse().ok()
        };
        self.0.iter_mut().filter_map(answer).collect()
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns all links and programs in the kernel, whichever process holds them.
fn in_kernel() -> BTreeSet<(&'static str, u32)> {
    let links = LinkInfoIter::default().map(|link| ("link_id:", link.id));
    links.chain(ProgInfoIter::default().map(|program| ("prog_id:", program.id))).collect()
}
