//! The page as served: a summary that can be read without JavaScript.

use std::fmt::Write;

use super::model::{
    Attention, BlocklistSummary, Health, MetricSummary, NetworkSummary, ProbeSummary, Scrapes, Severity,
    SlowEvent, Status, TargetSummary,
};
use super::numbers::{ago, duration, number, optional};
use crate::slow::shown_reason;

/// Renders the page. All text of other origin is escaped.
pub(super) fn page(status: &Status) -> String {
    let mut main = String::new();
    totals(status, &mut main);
    attention(&status.attention, &mut main);
    probes(status, &mut main);
    metrics(status, &mut main);
    slow(&status.slow, status.time, &mut main);
    status.network.iter().for_each(|network| self::network(network, &mut main));
    status.blocklist.iter().for_each(|list| blocklist(list, status.time, &mut main));
    scrapes(&status.scrapes, status.time, &mut main);
    let (state, word) = match status.state {
        Health::Working => ("working", "working"),
        Health::Degraded => ("degraded", "needs attention"),
        Health::NotReady => ("not_ready", "not ready"),
    };
    let mut links = String::new();
    for link in &status.links {
        let (path, about) = (escape(link.path), escape(link.about));
        let _ = write!(links, "<a href=\"{path}\" title=\"{about}\">{path}</a> ");
    }
    let node = escape(&status.exporter.node);
    let (version, kernel) = (escape(&status.exporter.exporter_version), escape(&status.exporter.kernel));
    let (summary, config) = (escape(&status.summary), escape(&status.connect.scrape_config));
    let up = duration(status.time - status.exporter.started);
    let head = head(
        &format!("exporter on {node}: {word}"),
        "<script src=\"/page.js\" defer></script>
<noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>
",
    );
    format!(
        "{head}<body>
<a class=\"skip\" href=\"#main\">Skip to the status</a>
<header>
<h1>exporter <span id=\"badge\" class=\"badge {state}\">{word}</span></h1>
<p id=\"about\">node {node} \u{b7} version {version} \u{b7} Linux {kernel} \u{b7} up {up}</p>
<nav aria-label=\"Data\">{links}<button id=\"pause\" type=\"button\" hidden>Pause</button></nav>
</header>
<main id=\"main\" tabindex=\"-1\">
<p id=\"summary\" role=\"status\">{summary}</p>
<p id=\"trouble\" role=\"alert\" hidden></p>
<p id=\"search\" hidden><label for=\"find\">Find</label>
<input id=\"find\" type=\"search\" autocomplete=\"off\" spellcheck=\"false\" placeholder=\"target, probe, state, metric, interface\">
<span id=\"found\" role=\"status\"></span></p>
<div id=\"live\">
{main}</div>
<section aria-labelledby=\"h-connect\">
<h2 id=\"h-connect\">Connect Prometheus</h2>
<p>Add this to <code>prometheus.yml</code>, with the address by which Prometheus reaches this machine.
<button id=\"copy\" type=\"button\" hidden>Copy</button> <span id=\"copied\" role=\"status\"></span></p>
<pre id=\"config\" tabindex=\"0\">{config}</pre>
<p class=\"muted\"><code>exporter dashboard FILE</code> prints a Grafana dashboard for this configuration,
<code>exporter dashboard --alerts FILE</code> its <a href=\"/alerts\">alerts</a>.</p>
</section>
</main>
</body>
</html>
"
    )
}

/// The head of each page, with additional lines. The title is not escaped.
pub(super) fn head(title: &str, more: &str) -> String {
    format!(
        "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"color-scheme\" content=\"light dark\">
<title>{title}</title>
<link rel=\"icon\" href=\"/page.svg\" type=\"image/svg+xml\">
<link rel=\"stylesheet\" href=\"/page.css\">
{more}</head>
"
    )
}

/// Escapes text, also for attributes in double quotes. Characters that would change the direction of the surrounding
/// text are shown as their code points.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let _ = write!(escaped, "\\u{:x}", u32::from(character));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

/// Escapes text, and formats parts in backticks as code.
fn prose(text: &str) -> String {
    let parts = text.split('`').map(escape).enumerate();
    parts.map(|(at, part)| if at % 2 == 0 { part } else { format!("<code>{part}</code>") }).collect()
}

/// Adds a section with a heading and this content.
fn section(id: &str, title: &str, content: &str, to: &mut String) {
    let _ = write!(
        to,
        "<section aria-labelledby=\"h-{id}\">\n<h2 id=\"h-{id}\">{title}</h2>\n{content}</section>\n"
    );
}

/// A table in a region that scrolls on narrow screens.
fn table(name: &str, columns: &[&str], rows: &str) -> String {
    let head: String = columns.iter().map(|column| format!("<th scope=\"col\">{column}</th>")).collect();
    format!(
        "<div class=\"table\" role=\"region\" aria-label=\"{name}\" tabindex=\"0\"><table>\n<thead><tr>{head}</tr></thead>\n\
         <tbody>\n{rows}</tbody></table></div>\n"
    )
}

fn totals(status: &Status, to: &mut String) {
    let totals = &status.totals;
    if totals.probes > 0 {
        let _ = writeln!(
            to,
            "<p>{} of {} probes attached; {} hits a second, the last hit {}; {} hits lost; {} series.</p>",
            totals.attached,
            totals.probes,
            optional(totals.hits_per_second),
            totals.last_hit.map_or_else(|| "not seen yet".to_owned(), |at| ago(Some(at), status.time)),
            number(totals.lost),
            totals.series
        );
    }
}

fn attention(all: &[Attention], to: &mut String) {
    if all.is_empty() {
        return;
    }
    let mut items = String::new();
    for one in all {
        let (class, word) = match one.severity {
            Severity::Error => ("error", "Error"),
            Severity::Warning => ("warning", "Warning"),
            Severity::Note => ("note", "Note"),
        };
        let (subject, reason, action) = (escape(&one.subject), prose(&one.reason), prose(&one.action));
        let _ = writeln!(
            items,
            "<li class=\"{class}\"><strong><span class=\"word\">{word}:</span> {subject}</strong><p>{reason}</p>\
             <p>{action}</p></li>"
        );
    }
    section("attention", "Needs attention", &format!("<ul class=\"attention\">\n{items}</ul>\n"), to);
}

fn probes(status: &Status, to: &mut String) {
    let mut rows = String::new();
    let (absent, shown) = fold(&status.targets, |target| {
        target.attached == 0 && target.shed == 0 && target.hits == 0.0 && target.lost == 0.0
    });
    for target in shown {
        target_row(target, status.time, &mut rows);
        let (quiet, shown) = fold(&target.probes, |probe| probe.hits == 0.0 && probe.lost.is_empty());
        shown.iter().for_each(|probe| probe_row(probe, status.time, &mut rows));
        if !quiet.is_empty() {
            let names =
                quiet.iter().map(|probe| format!("{} ({})", escape(&probe.name), escape(&probe.state)));
            let folded = folded(&format!("{} probes without a hit", quiet.len()), names);
            let _ = writeln!(rows, "<tr class=\"folded\"><td colspan=\"6\">{folded}</td></tr>");
        }
    }
    if !absent.is_empty() {
        let why = |target: &TargetSummary| {
            let state =
                target.probes.first().map(|probe| escape(&format!("{}: {}", probe.state, probe.reason)));
            state.unwrap_or_default()
        };
        let names = absent.iter().map(|target| format!("{} ({})", escape(&target.name), why(target)));
        let folded = folded(&format!("{} targets without an attached probe", absent.len()), names);
        let _ = writeln!(rows, "<tr class=\"folded\"><td colspan=\"6\">{folded}</td></tr>");
    }
    if rows.is_empty() {
        return;
    }
    let columns = ["Target / probe", "State", "Hits", "Per second", "Last hit", "Lost"];
    let mut content = table("Probes", &columns, &rows);
    more(status.left_out.probes, "probes", &mut content);
    section("probes", "Probes", &content, to);
}

/// More entries than this that have nothing to show are folded.
const MANY: usize = 8;

/// Returns the entries that are folded, and those that are shown.
fn fold<T>(all: &[T], is_quiet: impl Fn(&T) -> bool) -> (Vec<&T>, Vec<&T>) {
    let (quiet, shown): (Vec<_>, Vec<_>) = all.iter().partition(|one| is_quiet(one));
    if quiet.len() > MANY { (quiet, shown) } else { (Vec::new(), all.iter().collect()) }
}

/// Renders names, escaped, in a list that a click on a line expands.
fn folded(words: &str, names: impl Iterator<Item = String>) -> String {
    let items: String = names.map(|name| format!("<li>{name}</li>")).collect();
    format!("<details><summary>{words}</summary><ul class=\"names\">{items}</ul></details>")
}

fn target_row(target: &TargetSummary, now: f64, to: &mut String) {
    let _ = writeln!(
        to,
        "<tr class=\"group\"><th scope=\"row\">{}</th><td>{} of {} attached</td><td>{}</td><td>{}</td><td>{}</td>\
         <td>{}</td></tr>",
        escape(&target.name),
        target.attached,
        target.configured,
        number(target.hits),
        optional(target.hits_per_second),
        ago(target.last_hit, now),
        number(target.lost)
    );
}

fn probe_row(probe: &ProbeSummary, now: f64, to: &mut String) {
    let lost = probe.lost.iter().map(|lost| lost.hits).sum();
    let _ = writeln!(
        to,
        "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        escape(&probe.name),
        escape(&probe.state),
        number(probe.hits),
        optional(probe.hits_per_second),
        ago(probe.last_hit, now),
        number(lost)
    );
}

fn metrics(status: &Status, to: &mut String) {
    if status.metrics.is_empty() {
        return;
    }
    let (empty, shown) = fold(&status.metrics, |metric| {
        metric.series_total == 0 || metric.kind != "gauge" && metric.total == Some(0.0)
    });
    let (mut rows, mut content) = (String::new(), String::new());
    shown.iter().for_each(|metric| metric_rows(metric, &mut rows));
    if !rows.is_empty() {
        content = table("Metrics", &["Metric", "Labels", "Value"], &rows);
    }
    if !empty.is_empty() {
        let names = empty.iter().map(|metric| escape(&metric.name));
        content.push_str(&folded(&format!("{} metrics without a value yet", empty.len()), names));
    }
    more(status.left_out.metrics, "metrics", &mut content);
    section("metrics", "What was measured", &content, to);
}

fn metric_rows(metric: &MetricSummary, to: &mut String) {
    let name = escape(&metric.name);
    let row = |labels: &str, value: &str| {
        format!("<tr><th scope=\"row\">{name}</th><td>{labels}</td><td>{value}</td></tr>\n")
    };
    if metric.series.is_empty() {
        to.push_str(&row("", "none yet"));
    }
    for series in &metric.series {
        let labels: Vec<_> =
            series.labels.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value))).collect();
        let value = match (&series.value, &series.distribution) {
            (Some(value), _) => number(*value),
            (None, Some(distribution)) => {
                let quantiles: String = distribution
                    .quantiles
                    .iter()
                    .map(|one| {
                        let than = if one.is_beyond { "&gt;" } else { "\u{2248}" };
                        format!(", {:.0} % {than} {}", one.quantile * 100.0, number(one.value))
                    })
                    .collect();
                format!("{} values{quantiles}", number(distribution.count))
            }
            (None, None) => String::new(),
        };
        to.push_str(&row(&labels.join(" "), &value));
    }
    let rest = metric.series_total - metric.series.len();
    if rest > 0 {
        to.push_str(&row("", &format!("and {rest} more series")));
    }
}

fn network(network: &NetworkSummary, to: &mut String) {
    let (quiet, shown) = fold(&network.interfaces, |interface| {
        interface.is_counted && interface.malformed == 0.0 && interface.packets_per_second == Some(0.0)
    });
    let mut rows = String::new();
    for interface in shown {
        let place: Vec<_> = interface.labels.iter().map(|(_, value)| escape(value)).collect();
        let state = if interface.is_counted { "" } else { "not counted: " };
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{state}{}</td><td>{}</td><td>{}</td></tr>",
            place.join(" "),
            interface.direction,
            escape(&interface.hook),
            optional(interface.bytes_per_second),
            optional(interface.packets_per_second)
        );
    }
    let columns = ["Interface", "Direction", "Hook", "Bytes/s", "Packets/s"];
    let mut content = if rows.is_empty() { String::new() } else { table("Interfaces", &columns, &rows) };
    if !quiet.is_empty() {
        let names = quiet.iter().map(|one| {
            let place: Vec<_> = one.labels.iter().map(|(_, value)| escape(value)).collect();
            format!("{} {}", place.join(" "), one.direction)
        });
        content.push_str(&folded(&format!("{} without packets lately", quiet.len()), names));
    }
    more(network.left_out, "interfaces", &mut content);
    section("network", "Packets", &content, to);
}

fn blocklist(list: &BlocklistSummary, now: f64, to: &mut String) {
    let by: Vec<_> =
        list.sources.iter().map(|(source, count)| format!("{} {}", escape(source), number(*count))).collect();
    let by = if by.is_empty() { String::new() } else { format!(" ({})", by.join(", ")) };
    let (packets, what) = match list.is_enforced {
        true => (list.dropped, "of their packets were dropped"),
        false => (list.would_drop, "of their packets would have been dropped: nothing is, in mode observe"),
    };
    let mut content = format!(
        "<p>{} entries{by}, {} that are never dropped. {} {what}, {} a second.</p>\n",
        number(list.entries),
        number(list.allowed),
        number(packets),
        optional(list.packets_per_second)
    );
    let mut rows = String::new();
    for source in &list.busiest {
        let ends =
            source.expires_in.map_or_else(|| "never".to_owned(), |left| format!("in {}", duration(left)));
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{ends}</td><td>{}</td><td>{}</td></tr>",
            escape(&source.prefix),
            escape(&source.source),
            escape(&source.reason),
            source.packets,
            ago(source.last_seen, now)
        );
    }
    if !rows.is_empty() {
        let columns = ["Source", "Listed by", "Reason", "Ends", "Packets", "Last seen"];
        content.push_str(&table("Blocked sources", &columns, &rows));
    }
    section("blocklist", "Blocked sources", &content, to);
}

fn slow(events: &[SlowEvent], now: f64, to: &mut String) {
    if events.is_empty() {
        return;
    }
    let mut rows = String::new();
    for event in events {
        let fields: Vec<_> =
            event.fields.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value))).collect();
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&event.metric),
            escape(&event.target),
            number(event.value),
            escape(&shown_reason(&event.metric, event.over, event.worst)),
            ago(Some(event.time), now),
            fields.join(" ")
        );
    }
    let content = table("Slow events", &["Metric", "Target", "Value", "Over", "When", "Event"], &rows);
    section("slow", "Slow events", &content, to);
}

fn scrapes(scrapes: &Scrapes, now: f64, to: &mut String) {
    let times = match scrapes.total {
        0.0 => "not requested yet".to_owned(),
        1.0 => "requested once".to_owned(),
        total => format!("requested {} times", number(total)),
    };
    let mut content = format!("<p>/metrics was {times}.</p>\n");
    let mut rows = String::new();
    for scrape in &scrapes.recent {
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{:.1} ms</td><td>{}</td><td>{}</td></tr>",
            escape(&scrape.peer),
            escape(scrape.user.as_deref().unwrap_or("")),
            escape(&scrape.agent),
            ago(Some(scrape.time), now),
            scrape.seconds * 1000.0,
            scrape.bytes,
            scrape.status
        );
    }
    if !rows.is_empty() {
        let columns = ["Who", "User", "Client", "When", "Took", "Bytes", "Status"];
        content.push_str(&table("Scrapes", &columns, &rows));
    }
    section("scrapes", "Who scrapes", &content, to);
}

fn more(number: usize, what: &str, to: &mut String) {
    if number > 0 {
        let _ = writeln!(to, "<p class=\"muted\">and {number} more {what}; /metrics has all.</p>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a href='x\">&"), "&lt;a href=&#39;x&quot;&gt;&amp;");
        assert_eq!(escape("a\u{202e}b\u{2069}\u{5d0}"), "a\\u202eb\\u2069\u{5d0}");
        assert_eq!(prose("a `<b>` c`"), "a <code>&lt;b&gt;</code> c<code></code>");
    }
}
