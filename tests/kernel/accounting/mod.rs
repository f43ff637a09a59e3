//! The accounting balance under stress: random configurations, bursts from several processes at once, far too small
//! rings, interners and tables of span starts, and processes that are killed midway. Every round prints its seed:
//! `ACCOUNTING_SEED=7` runs only that round.

mod configuration;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use self::configuration::{Probed, Random, Role, configuration};

use crate::support::demo::{Forms, private_copy};
use crate::support::program::directory;
use crate::support::tracer::{Series, Tracer};
use exporter::kernel::Accounting;
use exporter::plan::{ActionPlan, ComputedIn, ProbePlan};

/// The bounds of the number of random configurations: as many as fit into the time, but at least the first and at most
/// the second.
const ROUNDS: std::ops::Range<u64> = 24..60;
const TIME: Duration = Duration::from_secs(30);

/// The seed of the first round; each further round adds one.
const SEED: u64 = 2026;

/// What one process was requested to fire, and what it reports having fired.
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
fn accounting_always_balances() {
    if let Ok(seed) = std::env::var("ACCOUNTING_SEED") {
        one_round(seed.parse().expect("ACCOUNTING_SEED is a number"));
        return;
    }
    let began = Instant::now();
    let (mut seen, mut of_spans) = (Accounting::default(), Accounting::default());
    let mut killed = 0;
    for round in 0..ROUNDS.end {
        if round >= ROUNDS.start && began.elapsed() > TIME {
            break;
        }
        let (accounting, kills) = one_round(SEED + round);
        for (role, of) in accounting {
            let sums = if matches!(role, Role::Return | Role::End) { &mut of_spans } else { &mut seen };
            sums.aggregated += of.aggregated;
            sums.delivered += of.delivered;
            sums.filtered += of.filtered;
            sums.lost += of.lost;
        }
        killed += kills;
    }
    // Every outcome occurred, and many times.
    for sums in [seen, of_spans] {
        assert!(
            sums.aggregated > 1000 && sums.delivered > 1000 && sums.filtered > 1000 && sums.lost > 1000,
            "{sums:?}"
        );
    }
    assert!(killed > 3);
}

fn one_round(seed: u64) -> (Vec<(Role, Accounting)>, usize) {
    let random = &mut Random(seed);
    let directory = directory();
    let program = random.pick(&["forms", "forms-no-pie"]);
    let binary = private_copy(program, directory.path());
    let mut work: Vec<_> = (0..1 + random.below(4))
        .map(|_| {
            let forms = Forms::start(&binary);
            Work { pid: forms.pid(), forms, asked: Vec::new(), fired: HashMap::new(), killed: false }
        })
        .collect();
    let only = random.chance(3).then(|| work[0].pid);
    let (config, probed) = configuration(random, &binary, only);
    eprintln!("ACCOUNTING_SEED={seed}: {program}, {} processes\n{config}", work.len());
    let tracer = Tracer::start_by(&config, random.chance(4));
    assert_eq!(tracer.plan.probes.len(), probed.len());
    let forms: BTreeSet<_> = probed.iter().map(|probed| probed.form).collect();
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
    let mut before_all = vec![Accounting::default(); probed.len()];
    for n in 0..5 {
        std::thread::sleep(Duration::from_millis(random.below(8)));
        for process in work.iter_mut().rev().take(if n == 2 { victims } else { 0 }) {
            process.forms.kill();
            process.killed = true;
        }
        let now = tracer.render();
        grows(&before, &now);
        before = now;
        for (probe, before) in before_all.iter_mut().enumerate() {
            let now = tracer.accounting(probe);
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
    let accounting = tracer.accounting_at_rest();
    let (drained, undecodable) = tracer.drained();
    let series = tracer.render();
    grows(&before, &series);
    assert_eq!((undecodable, tracer.stray()), (0, 0));
    for (n, probed) in probed.iter().enumerate() {
        check_in_between(before_all[n], accounting[n]);
        check_counts(probed.form, &work, only, accounting[n]);
        check_series(&tracer.plan.probes[n], probed, &series, accounting[n], victims == 0);
        if probed.role == Role::Return {
            // Only a process that was killed inside the function can have a call without its return.
            let open = accounting[n - 1].hits - accounting[n].hits;
            assert!(
                open <= victims as u64,
                "{open} calls without a return: {:?} {:?}",
                accounting[n - 1],
                accounting[n]
            );
        }
    }
    let delivered: u64 = accounting.iter().map(|accounting| accounting.delivered).sum();
    let lossy = tracer.plan.probes.iter().zip(&probed).zip(&accounting);
    let lossy = lossy.filter(|((plan, probed), _)| loses_in_kernel(plan) || probed.role.is_start());
    let may_be_more: u64 = lossy.map(|(_, accounting)| accounting.lost).sum();
    assert!(
        (delivered..=delivered + may_be_more).contains(&drained),
        "{drained} drained, {delivered} delivered"
    );
    (probed.iter().map(|probed| probed.role).zip(accounting).collect(), victims)
}

/// Checks what holds for the accounting at any moment, and between two moments.
fn check_in_between(before: Accounting, now: Accounting) -> Accounting {
    assert_eq!(now.hits, now.aggregated + now.delivered + now.filtered + now.lost);
    assert_eq!(now.begun, now.hits + now.in_flight, "more came out than went in: {now:?}");
    let columns = |b: Accounting| [b.hits, b.begun, b.aggregated, b.delivered, b.filtered, b.lost];
    assert!(columns(before).iter().zip(columns(now)).all(|(old, new)| *old <= new), "{before:?} {now:?}");
    now
}

/// Compares the accounting with what the programs report having fired.
fn check_counts(form: &str, work: &[Work], only: Option<u32>, accounting: Accounting) {
    let count = |wanted: &dyn Fn(u32) -> bool| {
        let counts = work.iter().filter(|process| wanted(process.pid)).map(|process| process.count(form));
        let (least, most) = counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        least..=most
    };
    assert_eq!((accounting.in_flight, accounting.begun), (0, accounting.hits));
    let all = count(&|_| true);
    assert!(all.contains(&accounting.hits), "{form}: fired {all:?}: {accounting:?}");
    let others = count(&|pid| only.is_some_and(|only| pid != only));
    assert!(others.contains(&accounting.filtered), "{form}: others fired {others:?}: {accounting:?}");
}

/// Returns whether an in-kernel metric can miss a hit, which then counts as lost, but still goes to user space.
fn loses_in_kernel(probe: &ProbePlan) -> bool {
    let in_kernel = probe.actions.iter().filter(|action| action.computed_in == ComputedIn::Kernel);
    in_kernel.into_iter().any(|action| action.value.is_some() || !action.when.is_empty())
}

fn check_series(plan: &ProbePlan, probed: &Probed, series: &Series, accounting: Accounting, all_live: bool) {
    let sum = |metric: &str| -> u64 {
        let name = format!("p{}_{metric}", probed.number);
        let rows = series.iter().filter(|(series, _)| series.split('{').next() == Some(&name));
        rows.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
    };
    let ends_span = matches!(probed.role, Role::Return | Role::End);
    let wanted = accounting.hits - accounting.filtered;
    // A hit that lost something in the kernel still went to user space, except for an end without its start.
    let delivered = if loses_in_kernel(plan) {
        accounting.delivered..=wanted
    } else {
        accounting.delivered..=accounting.delivered
    };
    let check = |metric: &str, action: &ActionPlan| {
        let found = sum(metric);
        let of_the_dead = metric == "pid_total" && !all_live;
        match action.computed_in {
            // The series of a process that has ended are removed.
            _ if of_the_dead => assert!(found <= wanted, "{metric}: {found} {accounting:?}"),
            ComputedIn::Hits | ComputedIn::Kernel if ends_span && plan.emit.is_none() => {
                assert_eq!(found, accounting.aggregated, "{metric}: {accounting:?}")
            }
            ComputedIn::Hits | ComputedIn::Kernel if ends_span => {
                assert!((accounting.delivered..=wanted).contains(&found), "{metric}: {found} {accounting:?}")
            }
            ComputedIn::Hits | ComputedIn::Kernel => assert_eq!(found, wanted, "{metric}: {accounting:?}"),
            ComputedIn::Ring(_) => assert!(delivered.contains(&found), "{metric}: {found} {accounting:?}"),
        }
    };
    for (metric, action) in probed.counting.iter().zip(&plan.actions) {
        check(metric, action);
    }
    match (&plan.emit, loses_in_kernel(plan)) {
        (None, _) => assert_eq!(accounting.delivered, 0),
        (Some(_), _) => assert_eq!(accounting.aggregated, 0, "{accounting:?}"),
    }
    let loses = plan.emit.is_some() || loses_in_kernel(plan) || probed.role.is_start();
    assert!(loses || accounting.lost == 0, "{accounting:?}");
    if probed.role == Role::Return && probed.has_room && plan.emit.is_none() {
        assert_eq!(accounting.lost, 0, "every return has its call: {accounting:?}");
    }
}

/// Asserts that counters never fall, and never jump to the huge values that an underflow would produce.
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

/// With only hits of other processes, the counter must never show any of them.
#[test]
fn filtered_hits_are_never_visible() {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let (one, mut two) = (Forms::start(&binary), Forms::start(&binary));
    let tracer = Tracer::start(&format!(
        "node_name: test\ntargets:\n- name: forms\n  binary: {}\n  pid: {}\n  probes:\n\
         \x20 - on: usdt:forms:i32\n    metrics: [{{ counter: hits_total }}]\n",
        binary.display(),
        one.pid()
    ));
    two.begin("i32", 200_000);
    while tracer.accounting(0).hits < 200_000 {
        assert_eq!(tracer.render()["hits_total"], "0");
    }
    assert_eq!(tracer.accounting_at_rest()[0].filtered, 200_000);
}
