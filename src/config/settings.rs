//! Settings that do not belong to a target: merges them, checks them against each other, and fills in defaults.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::fields::{Fields, Node};
use super::layers::{Layers, Sourced};
use super::limits::{
    DEFAULT_LABEL_VALUES, DEFAULT_OVERHEAD, DEFAULT_RING_BYTES, DEFAULT_RING_POLL, DEFAULT_SITES,
    DEFAULT_STARTS, LABEL_VALUES, PORT, RING_BYTES, RING_POLL, SITES, STARTS,
};
use super::model::{AttachMode, KeepPrivileges, Limits, LogLevel, Overhead, Settings};
use super::scalars;
use super::section::{Key, Schema, Section, words};
use super::slow;
use super::web;

const LEVELS: &[(&str, LogLevel)] = &[
    ("DEBUG", LogLevel::Debug),
    ("INFO", LogLevel::Info),
    ("WARNING", LogLevel::Warning),
    ("WARN", LogLevel::Warning),
    ("ERROR", LogLevel::Error),
];

const MODES: &[(&str, AttachMode)] =
    &[("auto", AttachMode::Auto), ("multi", AttachMode::Multi), ("perf", AttachMode::Perf)];

const KEEP: &[(&str, KeepPrivileges)] = &[("needed", KeepPrivileges::Needed), ("none", KeepPrivileges::None)];
const STATES: &[(&str, bool)] = &[("volatile", false), ("pinned", true)];

/// The values of `state`.
pub(super) fn states() -> Vec<&'static str> {
    words(STATES)
}

/// The `ring:` section.
pub static RING: Section = Section {
    name: "ring",
    what: "the ring's settings",
    about: "The ring buffer of events between the kernel and the exporter.",
    keys: Cow::Borrowed(&[
        Key::new(
            "size",
            Schema::Either(&[Schema::Size, Schema::Integer(4096, 1 << 30)]),
            "A power of two from 4KiB to 1GiB.",
        )
        .or("4MiB"),
        Key::new("poll", Schema::Duration, "Maximum time that events wait in the buffer, from 1ms to 10s.")
            .or("10ms"),
    ]),
    one_of: &[],
};

/// The `limits:` section.
pub static LIMITS: Section = Section {
    name: "limits",
    what: "the limits",
    about: "Resource limits of the exporter.",
    keys: Cow::Borrowed(&[
        limit(
            "label_values",
            &LABEL_VALUES,
            "Maximum number of values per label; further values are counted as `other`.",
        )
        .or("200"),
        limit("sites", &SITES, "Maximum number of attached probe sites.").or("8192"),
        limit("starts", &STARTS, "Maximum number of open spans and calls.").or("32768"),
        Key::new(
            "overhead",
            Schema::Text,
            "Share of a target's CPU time that tracing may take, such as `5%`. Above it, the most expensive probes are detached \
             for a while, and do not count: within seconds if it is given here, by default after a minute, and only if they take more than \
             5 % of a processor. `off`, and with `state: pinned`: never.",
        )
        .or("2%"),
    ]),
    one_of: &[],
};

const fn limit(name: &'static str, range: &RangeInclusive<u32>, about: &'static str) -> Key {
    Key::new(name, Schema::Integer(*range.start() as i64, *range.end() as i64), about)
}

/// The values of `keep_privileges`.
pub(super) fn kept_privileges() -> Vec<&'static str> {
    words(KEEP)
}

/// The values of `attach`.
pub(super) fn attach_modes() -> Vec<&'static str> {
    words(MODES)
}

/// The log levels.
pub(super) fn levels() -> Vec<&'static str> {
    words(LEVELS)
}

/// Decodes the settings from all sources. If `complete` is false, a source could not be read, so nothing is reported as
/// missing.
pub(super) fn decode(layers: &Layers<'_>, complete: bool) -> Settings {
    let (metrics_port, health_port) = ports(layers);
    Settings {
        node_name: layers.read_or_default("node_name", |n| n.text_as("a name").map(str::to_owned)),
        bind: layers.read_or_default("bind", address),
        metrics_port,
        health_port,
        verbose: layers.read_or_default("verbose", |n| n.boolean()),
        log_level: layers.read_or_default("log_level", |n| n.one_of("log level", LEVELS)),
        log_file: layers.read("log_file", |n| n.path()).map(|given| given.value),
        listen: web::listen(layers, health_port),
        web: web::decode(layers, complete),
        limits: limits(layers.file.as_ref()),
        attach: layers
            .file
            .as_ref()
            .and_then(|file| file.get("attach"))
            .and_then(|n| n.one_of("attach mode", MODES))
            .unwrap_or(AttachMode::Auto),
        keep_privileges: keep_privileges(layers.file.as_ref()),
        pinned: pinned(layers, metrics_port),
        slow_events: slow::decode(layers.file.as_ref(), metrics_port),
    }
}

fn keep_privileges(file: Option<&Fields<'_>>) -> KeepPrivileges {
    let Some(node) = file.and_then(|file| file.get("keep_privileges")) else { return KeepPrivileges::Needed };
    let keep = node.one_of("privilege setting", KEEP).unwrap_or(KeepPrivileges::Needed);
    if keep == KeepPrivileges::None && file.is_some_and(|file| file.has("network")) {
        node.error("`none` is not possible with `network`")
            .help("interfaces come and go; attaching to them and detaching needs CAP_NET_ADMIN");
    }
    if keep == KeepPrivileges::None && is_pinned(file) {
        node.error("`none` is not possible with `state: pinned`")
            .help("pinned state is updated after every change, which needs CAP_BPF");
    }
    keep
}

fn is_pinned(file: Option<&Fields<'_>>) -> bool {
    let state = file.and_then(|file| file.get("state"));
    state.is_some_and(|node| node.value.as_str().is_some_and(|word| word.eq_ignore_ascii_case("pinned")))
}

/// Returns the directory for pinned state, if state is pinned when the exporter ends.
fn pinned(layers: &Layers<'_>, metrics_port: u16) -> Option<PathBuf> {
    let file = layers.file.as_ref()?;
    let directory = file.get("state_directory").map(|node| (node.path(), node));
    let is_pinned = file.get("state").and_then(|node| node.one_of("kind of state", STATES)).unwrap_or(false);
    if !is_pinned {
        if let Some((_, node)) = directory {
            node.error("`state_directory` has no effect without `state: pinned`");
        }
        return None;
    }
    match directory {
        Some((path, _)) => path,
        None => Some(default_state_directory(metrics_port)),
    }
}

/// Returns the default of `state_directory` for an exporter with this port.
pub(crate) fn default_state_directory(metrics_port: u16) -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/exporter-{metrics_port}"))
}

fn address(node: &Node<'_>) -> Option<IpAddr> {
    let text = node.text_as("an IP address")?;
    let address = text.trim().parse().ok();
    if address.is_none() {
        node.expected("an IP address")
            .help("use 127.0.0.1 to serve only this machine, 0.0.0.0 or :: to serve every network");
    }
    address
}

fn ports(layers: &Layers<'_>) -> (u16, u16) {
    let port = |name| layers.read(name, |n| n.integer("a port", PORT));
    let (metrics, health) = (port("metrics_port"), port("health_port"));
    let value = |given: &Option<Sourced<u16>>, name| {
        given
            .as_ref()
            .map_or_else(|| layers.default(name, |n| n.integer("a port", PORT)), |given| given.value)
    };
    let ports = (value(&metrics, "metrics_port"), value(&health, "health_port"));
    if ports.0 == ports.1 {
        // The defaults differ, so at least one of the two was set.
        let (given, other) = match (&health, &metrics) {
            (Some(given), _) => (given, "metrics_port"),
            (None, Some(given)) => (given, "health_port"),
            (None, None) => return ports,
        };
        layers
            .diags
            .error(&given.at, format!("port {} is already used by {other}", ports.0))
            .help("metrics_port and health_port must differ");
    }
    ports
}

fn limits(file: Option<&Fields<'_>>) -> Limits {
    let ring = file.and_then(|f| f.get("ring")).and_then(|n| n.fields(&RING));
    let limits = file.and_then(|f| f.get("limits"));
    let limits = limits.and_then(|n| n.fields(&LIMITS));
    let limit = |key: &str, what: &str, range, default| {
        let node = limits.as_ref().and_then(|f| f.get(key));
        node.and_then(|n| n.integer(what, range)).unwrap_or(default)
    };
    let of_ring = |key: &str| ring.as_ref().and_then(|f| f.get(key));
    Limits {
        ring_bytes: of_ring("size").and_then(|n| ring_size(&n)).unwrap_or(DEFAULT_RING_BYTES),
        ring_poll_ms: of_ring("poll").and_then(|n| poll(&n)).unwrap_or(DEFAULT_RING_POLL),
        label_values: limit("label_values", "a number of label values", LABEL_VALUES, DEFAULT_LABEL_VALUES),
        sites: limit("sites", "a number of probe sites", SITES, DEFAULT_SITES),
        starts: limit("starts", "a number of open spans and calls", STARTS, DEFAULT_STARTS),
        overhead: match limits.as_ref().and_then(|f| f.get("overhead")) {
            Some(node) => overhead(&node, is_pinned(file)),
            None => (!is_pinned(file)).then_some(Overhead { share: DEFAULT_OVERHEAD, is_default: true }),
        },
    }
}

/// Returns None also for an invalid value, which has been reported.
fn overhead(node: &Node<'_>, is_pinned: bool) -> Option<Overhead> {
    if node.value.as_str() == Some("off") {
        return None;
    }
    let percent = node.value.as_str().and_then(|text| text.strip_suffix('%')?.trim().parse::<f64>().ok());
    let percent = percent.filter(|percent| *percent > 0.0 && *percent <= 100.0);
    if percent.is_none() {
        node.expected("a percentage such as 2%, or off");
    }
    if is_pinned {
        node.error("`overhead` is not possible with `state: pinned`")
            .help("pinned probes keep counting while no exporter runs, so nothing would limit their cost");
    }
    percent.map(|percent| Overhead { share: percent / 100.0, is_default: false })
}

fn ring_size(node: &Node<'_>) -> Option<u32> {
    let bytes = match node.value.as_str() {
        Some(text) => scalars::size(text),
        None => node.value.as_u64(),
    };
    let Some(bytes) = bytes else {
        node.expected("a size such as 4MiB").help(format!("the units are {}", scalars::SIZE_UNITS));
        return None;
    };
    if !bytes.is_power_of_two() || !RING_BYTES.contains(&bytes) {
        let (least, most) = (scalars::show_size(*RING_BYTES.start()), scalars::show_size(*RING_BYTES.end()));
        node.error(format!(
            "the ring's size must be a power of two from {least} to {most}, found {bytes} bytes"
        ))
        .help("write 4MiB, 8MiB, 16MiB and so on");
        return None;
    }
    Some(bytes as u32)
}

fn poll(node: &Node<'_>) -> Option<u32> {
    let Some(seconds) = node.value.as_str().and_then(scalars::duration) else {
        node.expected("a duration such as 10ms").help(format!("the units are {}", scalars::DURATION_UNITS));
        return None;
    };
    let milliseconds = (seconds * 1000.0).round().clamp(0.0, f64::from(u32::MAX)) as u32;
    if !RING_POLL.contains(&milliseconds) {
        node.expected(format!("a duration from {}ms to {}s", RING_POLL.start(), RING_POLL.end() / 1000));
        return None;
    }
    Some(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::args::ARGUMENT;
    use crate::config::limits;

    #[test]
    fn documented_defaults_and_limits_match_the_code() {
        let default = |section: &Section, name: &str| {
            let key = section.keys.iter().find(|key| key.name == name);
            key.and_then(|key| key.default).unwrap_or_else(|| panic!("{name}"))
        };
        assert_eq!(default(&LIMITS, "label_values"), DEFAULT_LABEL_VALUES.to_string());
        assert_eq!(default(&LIMITS, "sites"), DEFAULT_SITES.to_string());
        assert_eq!(default(&LIMITS, "starts"), DEFAULT_STARTS.to_string());
        assert_eq!(default(&LIMITS, "overhead"), format!("{}%", DEFAULT_OVERHEAD * 100.0));
        assert_eq!(scalars::size(default(&RING, "size")), Some(u64::from(DEFAULT_RING_BYTES)));
        assert_eq!(default(&RING, "poll"), format!("{DEFAULT_RING_POLL}ms"));
        assert_eq!(default(&ARGUMENT, "max"), limits::DEFAULT_TEXT_BYTES.to_string());
        let sizes = (scalars::show_size(*RING_BYTES.start()), scalars::show_size(*RING_BYTES.end()));
        assert!(RING.keys[0].about.contains(&format!("from {} to {}", sizes.0, sizes.1)));
        let poll = format!("from {}ms to {}s", RING_POLL.start(), RING_POLL.end() / 1000);
        assert!(RING.keys[1].about.contains(&poll));
    }
}
