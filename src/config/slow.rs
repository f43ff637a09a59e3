//! `slow:` of a metric, and `slow_events:`: which hits are slow, and where they are stored.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use super::buckets::{self, BOUND};
use super::fields::{Fields, Node};
use super::limits::{
    DEFAULT_SLOW_AGE, DEFAULT_SLOW_BYTES, DEFAULT_SLOW_ROWS, SLOW_AGE, SLOW_BYTES, SLOW_ROWS, SLOW_WORST,
};
use super::model::{Named, Slow, SlowEvents, WebhookSettings};
use super::points::point;
use super::scalars;
use super::section::{Key, Schema, Section};
use super::web::read_secret;
use crate::http_client::Url;
use crate::webhook::shown;

/// The `slow:` key of a metric.
pub(super) const SLOW_KEY: Key = Key::new(
    "slow",
    Schema::Either(&[BOUND, Schema::Section(|| &SLOW)]),
    "Of a histogram: keep every event above this value, whole. `slow: 500ms` is short for `slow: { over: 500ms }`.",
);

/// The `slow:` section.
pub static SLOW: Section = Section {
    name: "slow",
    what: "`slow`",
    about: "Which events of a histogram are kept, and what of them. `exporter events` shows them.",
    keys: Cow::Borrowed(&[
        Key::new("over", BOUND, "Keep events whose value is above this, in the metric's unit."),
        Key::new(
            "worst",
            Schema::Integer(*SLOW_WORST.start() as i64, *SLOW_WORST.end() as i64),
            "Keep this many events of each hour of the clock: those with the largest values, with `over` only those above it.",
        ),
        Key::new(
            "fields",
            Schema::OneOrList(&Schema::Name),
            "Arguments and built-in values to keep. Default: all `args` of the probe, and `pid`.",
        ),
        Key::new(
            "key",
            Schema::Name,
            "An argument that relates events of other probes to a slow one, such as the height of a block.",
        ),
        Key::new(
            "with",
            Schema::OneOrList(&Schema::Text),
            "Probes of the target whose events with the same key are kept with a slow event. They need an argument with the name of the key.",
        ),
        Key::new(
            "stack",
            Schema::Boolean,
            "Keep the call stack, too: the functions that were running, as far as frame pointers lead.",
        )
        .or("false"),
    ]),
    one_of: &[],
};

/// The `slow_events:` section.
pub static SLOW_EVENTS: Section = Section {
    name: "slow_events",
    what: "the settings of slow events",
    about: "Where slow events are kept, and how many: an SQLite file that only its owner can read. The oldest go first.",
    keys: Cow::Borrowed(&[
        Key::new(
            "file",
            Schema::Path,
            "The file. Default: `/var/lib/fibre-exporter/events-PORT.db`, with the metrics port.",
        ),
        Key::new("rows", Schema::Integer(*SLOW_ROWS.start() as i64, *SLOW_ROWS.end() as i64), "Most events.")
            .or("10000"),
        Key::new("size", Schema::Size, "Largest size of the file, from 1MiB to 16GiB.").or("64MiB"),
        Key::new("age", Schema::Duration, "How long an event is kept, from 1min to 87600h.").or("720h"),
        Key::new(
            "metrics",
            Schema::Map(&Schema::Either(&[BOUND, Schema::Section(|| &SLOW)])),
            "`slow:` of histograms by name, for those of profiles.",
        ),
        Key::new("webhook", Schema::Section(|| &WEBHOOK), "Receiver of every slow event."),
    ]),
    one_of: &[],
};

/// The `slow_events: { webhook: ... }` section.
pub static WEBHOOK: Section = Section {
    name: "webhook",
    what: "a webhook",
    about: "Receiver of every slow event, by signed HTTP requests; docs/slow.md describes them.",
    keys: Cow::Borrowed(&[
        Key::new(
            "url",
            Schema::Text,
            "Where requests go. `http://` only to this machine, or with `plain_http`.",
        )
        .required(),
        Key::new(
            "secret_file",
            Schema::Path,
            "A file with the secret that requests are signed with (HMAC-SHA256), on one line.",
        )
        .required(),
        Key::new(
            "ca_file",
            Schema::Path,
            "Certificates of the authority that issued the receiver's. Default: those that the system trusts.",
        ),
        Key::new("plain_http", Schema::Boolean, "Events may be sent to another machine without encryption.")
            .or("false"),
    ]),
    one_of: &[],
};

/// Decodes the `slow:` key of a metric.
pub(super) fn of_metric(fields: &Fields<'_>) -> Option<Slow> {
    slow(&fields.get("slow")?)
}

fn slow(node: &Node<'_>) -> Option<Slow> {
    let at = node.at.clone();
    if !node.value.is_mapping() {
        let over = buckets::bound(node)?;
        let over = Some(over);
        return Some(Slow { at, over, worst: None, fields: None, key: None, with: Vec::new(), stack: false });
    }
    let fields = node.fields(&SLOW)?;
    let over = fields.get("over").map(|n| buckets::bound(&n));
    let worst = fields.get("worst").map(|n| n.integer("a number of events", SLOW_WORST));
    if fields.lacks("over") && fields.lacks("worst") {
        fields
            .error("`over` and `worst` are missing: one of them is needed")
            .help("write over: 500ms, or worst: 20");
    }
    let kept = fields.get("fields").map(|n| names(&n));
    let key = fields.get("key").and_then(|n| Some(Named { name: n.name()?.to_owned(), at: n.at }));
    let with: Vec<_> = fields.get("with").map(|n| n.one_or_list()).unwrap_or_default();
    if fields.has("with") && fields.lacks("key") {
        fields
            .error("`key` is missing: `with` needs one")
            .help("write key: NAME, an argument that all of these probes have");
    }
    if fields.has("key") && fields.lacks("with") {
        fields
            .error("`with` is missing: `key` has no effect without it")
            .help("write with: [usdt:PROVIDER:NAME]");
    }
    let with = with.iter().filter_map(|n| Some((n.at.clone(), point(n)?))).collect();
    let stack = fields.get("stack").and_then(|n| n.boolean()).unwrap_or(false);
    // Errors have been reported.
    let is_wrong = matches!(over, Some(None)) || matches!(worst, Some(None)) || (over, worst) == (None, None);
    let (over, worst) = (over.flatten(), worst.flatten());
    (!is_wrong).then_some(Slow { at, over, worst, fields: kept, key, with, stack })
}

fn names(node: &Node<'_>) -> Vec<Named> {
    let named = |n: Node<'_>| Some(Named { name: n.name()?.to_owned(), at: n.at });
    node.one_or_list().into_iter().filter_map(named).collect()
}

/// Decodes `slow_events:` for an exporter with this port.
pub(super) fn decode(file: Option<&Fields<'_>>, metrics_port: u16) -> SlowEvents {
    let fields = file.and_then(|file| file.get("slow_events")).and_then(|n| n.fields(&SLOW_EVENTS));
    let get = |key: &str| fields.as_ref().and_then(|fields| fields.get(key));
    let of_metric = |(key, node): (&super::tree::Scalar, Node<'_>)| {
        Some((Named { at: node.at.clone(), name: key.text.clone() }, slow(&node)?))
    };
    let metrics = get("metrics").and_then(|n| n.entries("metrics by name"));
    SlowEvents {
        file: get("file").and_then(|n| n.path()).unwrap_or_else(|| default_file(metrics_port)),
        rows: get("rows")
            .and_then(|n| n.integer("a number of events", SLOW_ROWS))
            .unwrap_or(DEFAULT_SLOW_ROWS),
        bytes: get("size").and_then(|n| size(&n)).unwrap_or(DEFAULT_SLOW_BYTES),
        age: get("age").and_then(|n| age(&n)).unwrap_or(DEFAULT_SLOW_AGE),
        metrics: metrics.unwrap_or_default().into_iter().filter_map(of_metric).collect(),
        webhook: get("webhook").and_then(|n| webhook(&n)),
    }
}

fn webhook(node: &Node<'_>) -> Option<WebhookSettings> {
    let fields = node.fields(&WEBHOOK)?;
    let secret =
        fields.require("secret_file", "write secret_file: PATH; `openssl rand -hex 32` prints a secret");
    let secret = secret.and_then(|n| read_secret(&n.at, &n.path()?, "secret", n.diags));
    let authority = fields.get("ca_file").map(|n| n.path());
    let is_plain = fields.get("plain_http").map_or(Some(false), |n| n.boolean());
    let url = fields.require("url", "write url: https://HOST/PATH")?;
    let address = match Url::parse(url.text_as("a URL")?) {
        Ok(address) => address,
        Err(reason) => {
            url.error(reason).help("write url: https://HOST/PATH");
            return None;
        }
    };
    if !address.is_private() && is_plain == Some(false) {
        url.error(format!(
            "{} is another machine: events would be sent there without encryption",
            shown(&address)
        ))
        .help("use https://, or add plain_http: true if that is what you want");
        return None;
    }
    let authority = match authority {
        Some(path) => Some(path?),
        None => None,
    };
    Some(WebhookSettings { at: node.at.clone(), url: address, secret: secret?, authority })
}

/// Returns the default file of slow events for an exporter with this port.
pub(crate) fn default_file(metrics_port: u16) -> PathBuf {
    PathBuf::from(format!("/var/lib/fibre-exporter/events-{metrics_port}.db"))
}

fn size(node: &Node<'_>) -> Option<u64> {
    let bytes = node.value.as_str().and_then(scalars::size).filter(|bytes| SLOW_BYTES.contains(bytes));
    if bytes.is_none() {
        let (least, most) = (scalars::show_size(*SLOW_BYTES.start()), scalars::show_size(*SLOW_BYTES.end()));
        node.expected(format!("a size from {least} to {most}"))
            .help(format!("the units are {}", scalars::SIZE_UNITS));
    }
    bytes
}

fn age(node: &Node<'_>) -> Option<Duration> {
    let seconds = node.value.as_str().and_then(scalars::duration);
    let age = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let age = age.filter(|age| SLOW_AGE.contains(age));
    if age.is_none() {
        node.expected("a duration from 1min to 87600h")
            .help(format!("the units are {}", scalars::DURATION_UNITS));
    }
    age
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_defaults_and_limits_match_the_code() {
        let key = |name: &str| SLOW_EVENTS.keys.iter().find(|key| key.name == name).unwrap();
        assert_eq!(key("rows").default, Some(DEFAULT_SLOW_ROWS.to_string().as_str()));
        assert_eq!(key("size").default.and_then(scalars::size), Some(DEFAULT_SLOW_BYTES));
        assert_eq!(key("age").default.and_then(scalars::duration), Some(DEFAULT_SLOW_AGE.as_secs_f64()));
        let (least, most) = (scalars::show_size(*SLOW_BYTES.start()), scalars::show_size(*SLOW_BYTES.end()));
        assert!(key("size").about.contains(&format!("from {least} to {most}")));
        assert_eq!(scalars::duration("87600h"), Some(SLOW_AGE.end().as_secs_f64()));
    }
}
