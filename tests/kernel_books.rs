//! The books balance: random configurations, bursts from several processes at once, rings and dictionaries that are
//! far too small, and processes that are killed in the middle. The seed is fixed.

#[path = "common/tracer.rs"]
mod tracer;

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use exporter::metrics::own::Books;
use exporter::plan::{ProbePlan, Route};
use tracer::{Forms, Series, Tracer, folder, private_copy};

/// As many random configurations as these fit into the time, but no fewer than the first and no more than the last.
const ROUNDS: std::ops::Range<usize> = 12..40;
const TIME: Duration = Duration::from_secs(30);

/// Forms of one argument, and whether it is text.
const FORMS: [(&str, bool); 10] = [
    ("i32", false),
    ("u8", false),
    ("i64", false),
    ("plain", false),
    ("sites", false),
    ("string", true),
    ("cold", true),
    ("null", true),
    ("plain_string", true),
    ("long_string", true),
];

/// The generator SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// A random configuration; the form of each probe is returned too.
fn configuration(random: &mut Random, binary: &Path, pid: Option<u32>) -> (String, Vec<&'static str>) {
    let mut text = format!(
        "node_name: test\nattach: {}\nverbose: {}\nring: {{ size: {}, poll: {}ms }}\nlimits: {{ label_values: {} }}\n\
         targets:\n- name: forms\n  binary: {}\n",
        random.pick(&["auto", "auto", "perf"]),
        random.chance(4),
        random.pick(&[4096, 4096, 8192, 65_536, 1 << 20]),
        random.pick(&[1, 10, 100]),
        random.pick(&[1, 2, 5, 200]),
        binary.display()
    );
    if let Some(pid) = pid {
        writeln!(text, "  pid: {pid}").unwrap();
    }
    text += "  probes:\n";
    let mut forms = Vec::new();
    for n in 0..1 + random.below(5) {
        let (form, is_text) = random.pick(&FORMS);
        forms.push(form);
        let kind =
            if is_text { format!("string, max: {}", random.pick(&[8, 64, 200])) } else { "int".into() };
        writeln!(text, "  - on: usdt:forms:{form}\n    args: {{ v: {{ index: 0, type: {kind} }} }}").unwrap();
        writeln!(text, "    metrics:\n    - counter: p{n}_hits_total").unwrap();
        // A pattern of this form is matched in user space only.
        let glob = if random.chance(4) { "match: { \"x*y\": z }, " } else { "" };
        let glob = if is_text { glob } else { "" };
        let limit = random.pick(&["limit: 1", "limit: 2", "limit: 100", ""]);
        writeln!(
            text,
            "    - {{ counter: p{n}_by_total, labels: {{ v: {{ value: v, {glob}{limit} }}, cpu: cpu }} }}"
        )
        .unwrap();
        let more: &[&str] = if is_text {
            &[
                "counter: p_is_total, when: v == \"a string\"",
                "counter: p_comm_total, labels: { c: comm, v: v }",
            ]
        } else {
            &[
                "counter: p_sum_total, value: v",
                "gauge: p_last, value: v, labels: { v: v }",
                "gauge: p_max, value: v, mode: max",
                "histogram: p_values, value: v, buckets: [-5, 0, 5, 100], labels: { v: { value: v, limit: 3 } }",
                "counter: p_some_total, when: v > 3",
            ]
        };
        for _ in 0..random.below(4) {
            let metric = random.pick(more).replace(" p_", &format!(" p{n}_{}_", random.below(1 << 32)));
            writeln!(text, "    - {{ {metric} }}").unwrap();
        }
    }
    (text, forms)
}

/// What one process was told to fire, and what it says that it did.
struct Work {
    forms: Forms,
    pid: u32,
    asked: Vec<(&'static str, u64)>,
    fired: HashMap<&'static str, u64>,
    killed: bool,
}

impl Work {
    fn count(&self, form: &str) -> (u64, u64) {
        let fired = self.fired.get(form).copied().unwrap_or_default();
        let asked = self.asked.iter().filter(|(name, _)| *name == form).map(|(_, count)| count).sum();
        (fired, if self.killed { asked } else { fired })
    }
}

#[test]
fn the_books_balance_whatever_happens() {
    let mut random = Random(2026);
    let began = Instant::now();
    let mut seen = Books::default();
    let mut killed = 0;
    for round in 0..ROUNDS.end {
        if round >= ROUNDS.start && began.elapsed() > TIME {
            break;
        }
        let (books, kills) = one_round(&mut random, round);
        for of in books {
            seen.aggregated += of.aggregated;
            seen.delivered += of.delivered;
            seen.filtered += of.filtered;
            seen.lost += of.lost;
        }
        killed += kills;
    }
    // Every way to end was gone, and many times.
    assert!(
        seen.aggregated > 1000 && seen.delivered > 1000 && seen.filtered > 1000 && seen.lost > 1000,
        "{seen:?}"
    );
    assert!(killed > 3);
}

fn one_round(random: &mut Random, round: usize) -> (Vec<Books>, usize) {
    let folder = folder();
    let program = random.pick(&["forms", "forms-no-pie"]);
    let binary = private_copy(program, folder.path());
    let mut work: Vec<_> = (0..1 + random.below(4))
        .map(|_| {
            let forms = Forms::start(&binary);
            Work { pid: forms.pid(), forms, asked: Vec::new(), fired: HashMap::new(), killed: false }
        })
        .collect();
    let only = random.chance(3).then(|| work[0].pid);
    let (config, forms) = configuration(random, &binary, only);
    eprintln!("round {round}: {program}, {} processes\n{config}", work.len());
    let tracer = Tracer::start_by(&config, random.chance(4));
    for process in &mut work {
        for _ in 0..1 + random.below(3) {
            for form in &forms {
                process.asked.push((form, random.below(4000)));
            }
        }
        for (form, count) in &process.asked {
            process.forms.begin(form, *count);
        }
    }
    let victims = if work.len() > 1 { random.below(2) as usize } else { 0 };
    let mut before = tracer.render();
    let mut books_before = vec![Books::default(); forms.len()];
    for n in 0..5 {
        std::thread::sleep(Duration::from_millis(random.below(8)));
        for process in work.iter_mut().rev().take(if n == 2 { victims } else { 0 }) {
            process.forms.kill();
            process.killed = true;
        }
        let now = tracer.render();
        grows(&before, &now);
        before = now;
        for (probe, before) in books_before.iter_mut().enumerate() {
            let now = tracer.books(probe);
            *before = check_in_between(*before, now);
        }
    }
    for process in &mut work {
        for (form, _) in process.asked.clone() {
            let Some(answer) = process.forms.answer() else { break };
            assert_eq!(answer["damaged"], 0, "{answer}");
            *process.fired.entry(form).or_default() += answer["fired"].as_u64().unwrap();
        }
        assert!(
            process.killed
                || process.fired.values().sum::<u64>() == process.asked.iter().map(|a| a.1).sum::<u64>()
        );
    }
    let books = tracer.books_at_rest();
    let (drained, undecodable) = tracer.drained();
    let series = tracer.render();
    grows(&before, &series);
    assert_eq!((undecodable, tracer.stray()), (0, 0));
    for (probe, form) in forms.iter().enumerate() {
        check_in_between(books_before[probe], books[probe]);
        check_counts(form, &work, only, books[probe]);
        check_series(&tracer.plan.probes[probe], probe, &series, books[probe]);
    }
    let delivered: u64 = books.iter().map(|books| books.delivered).sum();
    let lossy = tracer.plan.probes.iter().zip(&books).filter(|(probe, _)| loses_in_kernel(probe));
    let may_be_more: u64 = lossy.map(|(_, books)| books.lost).sum();
    assert!(
        (delivered..=delivered + may_be_more).contains(&drained),
        "{drained} drained, {delivered} delivered"
    );
    (books, victims)
}

/// True of the books at any moment, and between two of them.
fn check_in_between(before: Books, now: Books) -> Books {
    assert_eq!(now.hits, now.aggregated + now.delivered + now.filtered + now.lost);
    assert_eq!(now.begun, now.hits + now.in_flight, "more came out than went in: {now:?}");
    let columns = |b: Books| [b.hits, b.begun, b.aggregated, b.delivered, b.filtered, b.lost];
    assert!(columns(before).iter().zip(columns(now)).all(|(old, new)| *old <= new), "{before:?} {now:?}");
    now
}

/// What the programs say that they fired.
fn check_counts(form: &str, work: &[Work], only: Option<u32>, books: Books) {
    let count = |wanted: &dyn Fn(u32) -> bool| {
        let counts = work.iter().filter(|process| wanted(process.pid)).map(|process| process.count(form));
        let (least, most) = counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        least..=most
    };
    assert_eq!((books.in_flight, books.begun), (0, books.hits));
    let all = count(&|_| true);
    assert!(all.contains(&books.hits), "{form}: fired {all:?}: {books:?}");
    let others = count(&|pid| only.is_some_and(|only| pid != only));
    assert!(others.contains(&books.filtered), "{form}: others fired {others:?}: {books:?}");
}

/// A hit that some metric in the kernel misses is lost, but goes to user space all the same.
fn loses_in_kernel(probe: &ProbePlan) -> bool {
    let in_kernel = probe.actions.iter().filter(|action| action.route == Route::Kernel);
    in_kernel.into_iter().any(|action| action.value.is_some() || !action.when.is_empty())
}

fn check_series(plan: &ProbePlan, probe: usize, series: &Series, books: Books) {
    let sum = |metric: &str| -> u64 {
        let name = format!("p{probe}_{metric}");
        let rows = series.iter().filter(|(series, _)| series.split('{').next() == Some(&name));
        rows.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
    };
    let wanted = books.hits - books.filtered;
    let delivered =
        if loses_in_kernel(plan) { books.delivered..=wanted } else { books.delivered..=books.delivered };
    for (metric, action) in ["hits_total", "by_total"].into_iter().zip(&plan.actions) {
        match action.route {
            Route::Hits | Route::Kernel => assert_eq!(sum(metric), wanted, "{metric}: {books:?}"),
            Route::Ring(_) => {
                assert!(delivered.contains(&sum(metric)), "{metric}: {} {books:?}", sum(metric))
            }
        }
    }
    match (&plan.emit, loses_in_kernel(plan)) {
        (None, _) => assert_eq!(books.delivered, 0),
        (Some(_), _) => assert_eq!(books.aggregated, 0, "{books:?}"),
    }
    assert!(plan.emit.is_some() || loses_in_kernel(plan) || books.lost == 0, "{books:?}");
}

/// Counters never fall, and never leap to where only a difference below zero leads.
fn grows(before: &Series, now: &Series) {
    for (series, count) in
        now.iter().filter(|(series, _)| series.contains("_hits_total") || series.contains("_by_total"))
    {
        let number = |text: &str| text.parse::<i128>().unwrap();
        let before = before.get(series).map_or(0, |count| number(count));
        let now = number(count);
        assert!(before <= now && now < 1 << 40, "{series}: {before} before, {now} now");
    }
}

/// Nothing but hits of other processes: a count of them must not show at any moment.
#[test]
fn filtered_hits_never_show() {
    let folder = folder();
    let binary = private_copy("forms", folder.path());
    let (one, mut two) = (Forms::start(&binary), Forms::start(&binary));
    let tracer = Tracer::start(&format!(
        "node_name: test\ntargets:\n- name: forms\n  binary: {}\n  pid: {}\n  probes:\n\
         \x20 - on: usdt:forms:i32\n    metrics: [{{ counter: hits_total }}]\n",
        binary.display(),
        one.pid()
    ));
    two.begin("i32", 200_000);
    while tracer.books(0).hits < 200_000 {
        assert_eq!(tracer.render()["hits_total"], "0");
    }
    assert_eq!(tracer.books_at_rest()[0].filtered, 200_000);
}
