//! What needs attention, why, and what to do about it.

use super::families::{ByName, Row};
use super::history::History;
use super::model::{Attention, BlocklistSummary, ProbeSummary, Scrape, Severity, TargetSummary};
use super::targets::sum;
use crate::kernel::LOST;

/// The maximum number of items.
const MAX_ITEMS: usize = 40;
/// Names of probes or targets in one line.
const MAX_NAMES: usize = 8;
/// If more targets than this have the same problem, they share an item.
const MAX_ALIKE: usize = 5;

const MINUTE: f64 = 60.0;
const DAY: f64 = 86_400.0;
/// A certificate that expires within this time is reported, as in the log.
const CERTIFICATE: f64 = 30.0 * DAY;
/// Prometheus scrapes more often than this, and programs are hit sooner.
const SCRAPE_TIMEOUT: f64 = 5.0 * MINUTE;
/// From this share on, the overhead of tracing is reported, if it is more than this part of a core: in a program that hardly
/// runs, a few hits are a large share.
const OVERHEAD: f64 = 0.05;
const MIN_OVERHEAD: f64 = 0.005;

/// The input of the assessment.
pub(super) struct AttentionInput<'a> {
    pub time: f64,
    pub started: f64,
    pub own: &'a ByName<'a>,
    pub targets: &'a [TargetSummary],
    /// The network conditions that `/ready` waits for, in words.
    pub network: &'a [String],
    pub blocklist: Option<&'a BlocklistSummary>,
    pub scrapes: &'a [Scrape],
}

/// Returns all items, the worst first.
pub(super) fn attention(facts: &AttentionInput<'_>, history: &mut History) -> Vec<Attention> {
    let mut all = Vec::new();
    targets(facts, &mut all);
    for text in facts.network {
        let (subject, reason) = text.split_once(": ").unwrap_or(("network", text));
        let action = "The exporter retries; `network:` in docs/network.md says what each hook needs.";
        all.push(error(format!("Network: {subject}"), reason, action));
    }
    lost(facts, history, &mut all);
    labels(facts, &mut all);
    exporter(facts, &mut all);
    slow(facts, history, &mut all);
    facts.blocklist.iter().for_each(|list| blocklist(list, &mut all));
    scrapes(facts, &mut all);
    all.sort_by_key(|one| one.severity);
    if all.len() > MAX_ITEMS {
        let more = all.len() - MAX_ITEMS;
        all.truncate(MAX_ITEMS);
        all.push(note(format!("{more} more"), "", "`/ready` and `/metrics` have all."));
    }
    all
}

fn item(
    severity: Severity,
    subject: impl Into<String>,
    reason: impl Into<String>,
    action: impl Into<String>,
) -> Attention {
    Attention { severity, subject: subject.into(), reason: reason.into(), action: action.into() }
}

fn error(subject: impl Into<String>, reason: impl Into<String>, action: impl Into<String>) -> Attention {
    item(Severity::Error, subject, reason, action)
}

fn warning(subject: impl Into<String>, reason: impl Into<String>, action: impl Into<String>) -> Attention {
    item(Severity::Warning, subject, reason, action)
}

fn note(subject: impl Into<String>, reason: impl Into<String>, action: impl Into<String>) -> Attention {
    item(Severity::Note, subject, reason, action)
}

/// A problem that several targets may have.
struct Problem<'a> {
    target: &'a TargetSummary,
    /// What it is, as in "three targets have probes that *are refused*".
    words: String,
    item: Attention,
}

/// Adds the problems of targets; one that many have is one item.
fn targets(facts: &AttentionInput<'_>, all: &mut Vec<Attention>) {
    let mut problems = Vec::new();
    facts.targets.iter().for_each(|target| of_target(target, facts, &mut problems));
    let mut alike: Vec<Vec<Problem<'_>>> = Vec::new();
    for problem in problems {
        let is_same = |first: &Problem<'_>| {
            (&first.words, &first.item.action) == (&problem.words, &problem.item.action)
        };
        match alike.iter_mut().find(|group| is_same(&group[0])) {
            Some(group) => group.push(problem),
            None => alike.push(vec![problem]),
        }
    }
    for group in alike {
        if group.len() <= MAX_ALIKE {
            all.extend(group.into_iter().map(|problem| problem.item));
            continue;
        }
        let names: Vec<&str> = group.iter().map(|problem| problem.target.name.as_str()).collect();
        let first = &group[0];
        all.push(item(
            first.item.severity,
            format!("{} targets have probes that {}: {}", names.len(), first.words, list(&names)),
            format!("{}: {}", names[0], first.item.reason),
            first.item.action.clone(),
        ));
    }
}

/// Adds probes by state, with what can be done about it.
fn of_target<'a>(target: &'a TargetSummary, facts: &AttentionInput<'_>, all: &mut Vec<Problem<'a>>) {
    let mut groups: Vec<(&ProbeSummary, bool, Vec<&str>)> = Vec::new();
    for probe in target.probes.iter().filter(|probe| probe.state != "attached") {
        let missing = probe.is_missing;
        let same = |group: &&mut (&ProbeSummary, bool, Vec<&str>)| {
            (&group.0.state, &group.0.reason, group.1) == (&probe.state, &probe.reason, missing)
                // The reason of an absent probe contains its own name.
                || (group.0.state == "absent" && probe.state == "absent" && group.1 == missing)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.2.push(&probe.name),
            None => groups.push((probe, missing, vec![&probe.name])),
        }
    }
    for (probe, missing, names) in groups {
        let subject = format!("{}: {} {}", target.name, list(&names), words(&probe.state, names.len()));
        let (severity, action) = match probe.state.as_str() {
            "waiting" => (
                Severity::Error,
                "It is attached as soon as the file or process exists. If it should exist: check the target's \
                 `binary:`, `process:` or `pid:`.",
            ),
            "not_running" => (
                Severity::Note,
                "The target is optional: it is attached as soon as the file or process exists.",
            ),
            "absent" if !missing => (
                Severity::Note,
                "Optional in the profile: the metrics of these probes stay at 0, the rest works.",
            ),
            "absent" => (
                Severity::Error,
                "Check the name: `exporter probes FILE` lists what the file has. After an upgrade of the program, a \
                 probe may have been removed or renamed.",
            ),
            "partly" => (
                Severity::Warning,
                "What is counted is right, but hits at the other places are missing; `exporter check --attach` shows \
                 each.",
            ),
            "shed" => (
                Severity::Warning,
                "Detached because of `limits.overhead`, and retried automatically; its counts do not change meanwhile. Raise the limit, \
                 or set `keep: true` for what must be counted.",
            ),
            _ => (
                Severity::Error,
                "`exporter check --attach` shows each place; docs/costs.md explains what is refused and why.",
            ),
        };
        let item = item(severity, subject, probe.reason.clone(), action);
        all.push(Problem { target, words: words(&probe.state, 2), item });
    }
    let silent: Vec<&str> = target
        .probes
        .iter()
        .filter(|probe| probe.is_attached() && probe.hits == 0.0)
        .map(|probe| probe.name.as_str())
        .collect();
    if !silent.is_empty() && facts.time - facts.started > SCRAPE_TIMEOUT {
        let item = note(
            format!("{}: {} never hit", target.name, list(&silent)),
            "Attached, but not hit since the exporter started.",
            "Nothing to do if it is rare. Otherwise: does the process run this file, and was it started with what makes it \
             fire the probe?",
        );
        all.push(Problem { target, words: "were never hit".to_owned(), item });
    }
    let of_core = sum(target.probes.iter().map(|probe| probe.cost_ratio)).unwrap_or(0.0);
    if let Some(share) = target.overhead_ratio.filter(|share| *share > OVERHEAD && of_core > MIN_OVERHEAD) {
        let item = warning(
            format!("{}: tracing takes {:.0} % of its CPU time", target.name, share * 100.0),
            "Each hit stops the program for a moment.",
            "See which probe is hit most below, and leave it out; or set `limits: { overhead: 5% }`, above which the most \
             expensive ones are detached for a while.",
        );
        all.push(Problem { target, words: "take much of its CPU time".to_owned(), item });
    }
}

fn words(state: &str, number: usize) -> String {
    let state = match state {
        "waiting" | "not_running" => "not attached yet",
        "partly" => "attached in part",
        other => other,
    };
    if number == 1 { format!("is {state}") } else { format!("are {state}") }
}

fn list(names: &[&str]) -> String {
    match names.len() {
        more if more > MAX_NAMES => {
            format!("{} and {} more", names[..MAX_NAMES].join(", "), more - MAX_NAMES)
        }
        _ => names.join(", "),
    }
}

fn lost(facts: &AttentionInput<'_>, history: &mut History, all: &mut Vec<Attention>) {
    for target in facts.targets {
        let mut reasons: Vec<(&str, f64)> = Vec::new();
        for lost in target.probes.iter().flat_map(|probe| &probe.lost) {
            match reasons.iter_mut().find(|(reason, _)| *reason == lost.reason) {
                Some((_, hits)) => *hits += lost.hits,
                None => reasons.push((&lost.reason, lost.hits)),
            }
        }
        for (reason, hits) in reasons {
            let trend = history.trend(format!("lost\0{}\0{reason}", target.name), hits);
            let (cause, action) = loss_advice(reason);
            let subject = format!("{}: {hits} hits lost ({reason})", target.name);
            // Without an earlier observation, it is not known when.
            let is_over = trend.per_second == Some(0.0) && trend.recent.iter().all(|step| *step == 0.0);
            let (severity, when) = match reason {
                "no_start" => (Severity::Note, ""),
                _ if is_over => (Severity::Note, " None while this page was watched."),
                _ => (Severity::Warning, ""),
            };
            all.push(item(severity, subject, format!("{cause}{when}"), action));
        }
    }
}

/// Advice on each reason for lost hits, as in docs/accounting.md.
fn loss_advice(reason: &str) -> (&str, &str) {
    match reason {
        "ring_full" => ("The ring buffer was full.", "Raise `ring: { size: 16MiB }`."),
        "read_fault" => {
            ("A number could not be read from the program's memory.", "Check the argument's `type`.")
        }
        "no_start" => (
            "The end of a span or call whose start was not seen.",
            "Normal right after attaching; otherwise the start has another key or thread.",
        ),
        "starts_full" => ("Too many spans and calls were open.", "Raise `limits: { starts: 65536 }`."),
        "negative" => {
            ("A negative amount for a counter, or a u64 of 2^63 or more.", "Check the argument's type.")
        }
        other => (other, "See docs/accounting.md."),
    }
}

fn labels(facts: &AttentionInput<'_>, all: &mut Vec<Attention>) {
    let rows = facts.own.rows("fibre_exporter_label_overflow_total");
    for row in rows.iter().filter(|row| row.value > 0.0) {
        all.push(warning(
            format!("{}: a label has more values than its limit", row.label("metric")),
            format!("{} hits are counted as \"other\".", row.value),
            "Raise the label's `limit`, or map its values to fewer.",
        ));
    }
    let faults = facts.own.sum("fibre_exporter_probe_read_faults_total", |_| true);
    if faults > 0.0 {
        all.push(note(
            format!("{faults} hits had a value that could not be read"),
            "A pointer was not valid at that moment, or the argument's type is not what the program passes.",
            "`fibre_exporter_probe_read_faults_total` tells which probe; check its `args`.",
        ));
    }
}

fn exporter(facts: &AttentionInput<'_>, all: &mut Vec<Attention>) {
    let own = facts.own;
    if own.value("fibre_exporter_config_last_reload_successful") == Some(0.0) {
        all.push(warning(
            "The configuration was not reloaded",
            "It has an error; the one in use stays.",
            "The log names it; `exporter check FILE` does, too.",
        ));
    }
    if own.value("fibre_exporter_tls_certificate_last_reload_successful") == Some(0.0) {
        all.push(warning(
            "The certificate was not reloaded",
            "The new pair cannot be used; the previous one stays in use.",
            "The log says what is wrong with it.",
        ));
    }
    let left = own.value("fibre_exporter_tls_certificate_not_after_seconds").map(|end| end - facts.time);
    let renew = "Renew it (`generate-certs.sh --renew`); the new one is loaded without a restart.";
    match left {
        Some(left) if left <= 0.0 => {
            all.push(error("The TLS certificate has expired", "Prometheus refuses it.", renew))
        }
        Some(left) if left < CERTIFICATE => all.push(warning(
            format!("The TLS certificate expires in {:.0} days", (left / DAY).floor()),
            "Prometheus refuses it then.",
            renew,
        )),
        _ => {}
    }
    // Losses are reported by target.
    let is_loss = |row: &Row| LOST.iter().any(|(reason, _)| *reason == row.label("error_type"));
    for row in own.rows("fibre_exporter_errors_total").iter().filter(|row| row.value > 0.0 && !is_loss(row)) {
        all.push(warning(
            format!("{} of {}", row.value, row.label("error_type")),
            "Counted in fibre_exporter_errors_total.",
            "The log says more; docs/troubleshooting.md lists causes.",
        ));
    }
    let misses = own.sum("fibre_exporter_program_misses_total", |_| true);
    if misses > 0.0 {
        all.push(warning(
            format!("The kernel missed {misses} hits"),
            "A tracing program was running on that CPU already.",
            "Look for other tracers of the same functions.",
        ));
    }
}

fn slow(facts: &AttentionInput<'_>, history: &mut History, all: &mut Vec<Attention>) {
    if facts.own.value("fibre_exporter_slow_events_writable") == Some(0.0) {
        all.push(warning(
            "Slow events are not written",
            "The last write to their file failed; they are queued, and further ones are lost when the queue is full.",
            "The log says why; is the disk full?",
        ));
    }
    let failed = facts.own.value("fibre_exporter_webhook_requests_failed_total").unwrap_or(0.0);
    let dropped = facts.own.sum("fibre_exporter_webhook_events_dropped_total", |_| true);
    let waiting = facts.own.value("fibre_exporter_webhook_events_waiting").unwrap_or(0.0);
    let trend = history.trend("webhook".to_owned(), failed);
    let is_failing = trend.per_second.is_some_and(|failures| failures > 0.0);
    if dropped > 0.0 || failed > 0.0 && waiting > 0.0 {
        let lost =
            if dropped > 0.0 { format!("{dropped} slow events were dropped. ") } else { String::new() };
        let severity = if is_failing || waiting > 0.0 { Severity::Warning } else { Severity::Note };
        all.push(item(
            severity,
            "The webhook does not accept all slow events",
            format!("{lost}{failed} requests failed, {waiting} events are queued."),
            "The log has its receiver's response; `exporter events` has all events.",
        ));
    }
}

fn blocklist(list: &BlocklistSummary, all: &mut Vec<Attention>) {
    for file in &list.unreadable_files {
        all.push(warning(
            format!("Blocklist: {file} cannot be read"),
            "The entries read before stay in effect.",
            "The exporter reads it again when it changes; the log says what is wrong.",
        ));
    }
    for (file, lines) in &list.invalid_lines {
        all.push(note(
            format!("Blocklist: {lines} lines of {file} are invalid"),
            "The others hold.",
            "`exporter check` lists them.",
        ));
    }
    for (source, age) in &list.silent_sources {
        let since = age.map_or_else(
            || "It has not answered since the exporter started.".to_owned(),
            |age| {
                format!(
                    "It last answered {:.0} minutes ago; its entries from then stay in force.",
                    age / MINUTE
                )
            },
        );
        all.push(warning(
            format!("Blocklist: {source} does not answer"),
            since,
            "The exporter retries; the log says why it fails.",
        ));
    }
    if list.is_stored == Some(false) {
        all.push(warning(
            "Blocklist: changes at run time are not stored",
            "Entries added by commands or over HTTP are lost at a restart.",
            "The log says why its file cannot be written: see `network.block.file`.",
        ));
    }
}

fn scrapes(facts: &AttentionInput<'_>, all: &mut Vec<Attention>) {
    let latest = facts.scrapes.iter().max_by(|a, b| a.time.total_cmp(&b.time));
    match latest {
        None if facts.time - facts.started > SCRAPE_TIMEOUT => all.push(note(
            "/metrics has not been scraped yet",
            "This exporter is not a target of Prometheus, or Prometheus cannot reach it or has the wrong password.",
            "Add it to Prometheus (see below), and look at its page Status > Targets.",
        )),
        Some(scrape) if facts.time - scrape.time > SCRAPE_TIMEOUT && scrape.scrapes > 10 => {
            all.push(warning(
                format!(
                    "{} has not scraped for {:.0} minutes",
                    scrape.peer,
                    (facts.time - scrape.time) / MINUTE
                ),
                "It did so before.",
                "Is Prometheus running? Its page Status > Targets says what it sees.",
            ))
        }
        _ => {}
    }
}
