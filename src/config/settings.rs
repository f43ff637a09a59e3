//! What is not about a target: merged, checked against each other, and defaults filled in.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::fields::{Fields, Node};
use super::layers::{Given, Layers};
use super::limits::{
    DEFAULT_LABEL_VALUES, DEFAULT_RING_BYTES, DEFAULT_RING_POLL, DEFAULT_SITES, DEFAULT_STARTS, LABEL_VALUES,
    PASSWORD_FILE_BYTES, PORT, RING_BYTES, RING_POLL, SITES, STARTS,
};
use super::model::{AttachMode, Auth, KeepPrivileges, Limits, LogLevel, Settings, TlsFiles};
use super::place::Place;
use super::scalars;
use super::section::{Key, Schema, Section, words};
use super::words::quote;

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

/// `ring:`.
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

/// `limits:`.
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
    ]),
    one_of: &[],
};

const fn limit(name: &'static str, range: &RangeInclusive<u32>, about: &'static str) -> Key {
    Key::new(name, Schema::Integer(*range.start() as i64, *range.end() as i64), about)
}

/// What may be kept of its rights.
pub(super) fn kept_privileges() -> Vec<&'static str> {
    words(KEEP)
}

/// Ways to attach.
pub(super) fn attach_modes() -> Vec<&'static str> {
    words(MODES)
}

/// Levels of the log.
pub(super) fn levels() -> Vec<&'static str> {
    words(LEVELS)
}

/// The settings of all sources. With `complete` false a source is missing, so that nothing is given about
/// what is not there.
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
        auth: auth(layers, complete),
        tls: tls(layers, complete),
        limits: limits(layers.file.as_ref()),
        attach: layers
            .file
            .as_ref()
            .and_then(|file| file.get("attach"))
            .and_then(|n| n.one_of("way to attach", MODES))
            .unwrap_or(AttachMode::Auto),
        keep_privileges: keep_privileges(layers.file.as_ref()),
    }
}

fn keep_privileges(file: Option<&Fields<'_>>) -> KeepPrivileges {
    let Some(node) = file.and_then(|file| file.get("keep_privileges")) else { return KeepPrivileges::Needed };
    let keep = node.one_of("extent of privileges", KEEP).unwrap_or(KeepPrivileges::Needed);
    if keep == KeepPrivileges::None && file.is_some_and(|file| file.has("network")) {
        node.error("`none` is not possible with `network`")
            .help("interfaces come and go; attaching to them and detaching needs CAP_NET_ADMIN");
    }
    keep
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
    let value = |given: &Option<Given<u16>>, name| {
        given
            .as_ref()
            .map_or_else(|| layers.default(name, |n| n.integer("a port", PORT)), |given| given.value)
    };
    let ports = (value(&metrics, "metrics_port"), value(&health, "health_port"));
    if ports.0 == ports.1 {
        // The defaults differ, so at least one of the two was given.
        let (given, other) = match (&health, &metrics) {
            (Some(given), _) => (given, "metrics"),
            (None, Some(given)) => (given, "health"),
            (None, None) => return ports,
        };
        layers
            .diags
            .error(&given.at, format!("port {} is already used by {other}", ports.0))
            .help("metrics_port and health_port must differ");
    }
    ports
}

fn auth(layers: &Layers<'_>, complete: bool) -> Option<Auth> {
    let username = layers.read("metrics_auth_username", username);
    let inline = layers.read("metrics_auth_password", |n| n.secret().map(str::to_owned));
    let file = layers.read("metrics_auth_password_file", |n| n.path());
    let password = match (inline, file) {
        (Some(inline), Some(file)) if inline.rank == file.rank => {
            layers
                .diags
                .error(
                    &file.at,
                    "metrics_auth_password and metrics_auth_password_file are mutually exclusive",
                )
                .help("keep one of them; the file is safer");
            return None;
        }
        (Some(inline), file) if file.as_ref().is_none_or(|file| file.rank < inline.rank) => Some(inline),
        (_, Some(file)) => {
            let value = read_password(layers, &file)?;
            Some(Given { at: file.at, value, rank: file.rank })
        }
        (_, None) => None,
    };
    match (username, password) {
        (Some(username), Some(password)) => {
            Some(Auth { at: password.at, username: username.value, password: password.value })
        }
        (Some(username), None) if complete && !gave_password(layers) => {
            layers
                .diags
                .error(&username.at, "metrics_auth_username is set without a password")
                .help("set metrics_auth_password_file (or metrics_auth_password) too, or remove the user");
            None
        }
        (None, Some(password)) if complete && !layers.has("metrics_auth_username") => {
            layers
                .diags
                .error(&password.at, "a password is set without metrics_auth_username")
                .help("set metrics_auth_username too, or remove the password");
            None
        }
        _ => None,
    }
}

/// Whether a password was given at all: a wrong one has been reported, and is not missing.
fn gave_password(layers: &Layers<'_>) -> bool {
    layers.has("metrics_auth_password") || layers.has("metrics_auth_password_file")
}

fn username(node: &Node<'_>) -> Option<String> {
    let name = node.text_as("a user name")?;
    if name.contains(':') || name.chars().any(char::is_control) {
        node.error(format!(
            "{} is not a valid user name: basic authentication does not allow a colon",
            quote(name)
        ));
        return None;
    }
    Some(name.to_owned())
}

/// The content of a password file without the line end that editors leave there.
fn read_password(layers: &Layers<'_>, file: &Given<PathBuf>) -> Option<String> {
    let path = file.value.display();
    let error = |err: String| layers.diags.error(&file.at, err);
    let mut text = String::new();
    let read =
        File::open(&file.value).and_then(|f| f.take(PASSWORD_FILE_BYTES + 1).read_to_string(&mut text));
    if let Err(err) = read {
        error(format!("failed to read the password from {path}: {err}"));
        return None;
    }
    let password =
        text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if text.len() as u64 > PASSWORD_FILE_BYTES {
        error(format!("{path} is too large for a password file: at most {PASSWORD_FILE_BYTES} bytes"));
    } else if password.is_empty() {
        error(format!("{path} is empty; it must contain the password"));
    } else if password.contains('\n') {
        error(format!("{path} has more than one line; it must contain only the password"));
    } else {
        return Some(password.to_owned());
    }
    None
}

fn tls(layers: &Layers<'_>, complete: bool) -> Option<TlsFiles> {
    let cert = layers.read("tls_cert", |n| n.path());
    let key = layers.read("tls_key", |n| n.path());
    let errors = layers.diags.len();
    for (given, what) in [(&cert, "the certificate"), (&key, "the private key")] {
        if let Some(given) = given {
            check_readable(layers, &given.at, &given.value, what);
        }
    }
    let readable = layers.diags.len() == errors;
    let alone = |given: &Given<PathBuf>, what: &str, other: &str| {
        if complete && !layers.has(other) {
            layers
                .diags
                .error(&given.at, what)
                .help(format!("set {other} too, or remove this setting to serve plain HTTP"));
        }
    };
    match (cert, key) {
        (Some(cert), Some(key)) => {
            readable.then_some(TlsFiles { cert: cert.value, key: key.value, at: cert.at })
        }
        (Some(cert), None) => {
            alone(&cert, "tls_cert is set without tls_key", "tls_key");
            None
        }
        (None, Some(key)) => {
            alone(&key, "tls_key is set without tls_cert", "tls_cert");
            None
        }
        (None, None) => None,
    }
}

/// Reports a file that cannot be opened and read. A folder can be opened, so a byte is read too.
fn check_readable(layers: &Layers<'_>, at: &Place, path: &Path, what: &str) {
    let read = File::open(path).and_then(|mut file| file.read(&mut [0]));
    match read {
        Ok(0) => layers.diags.error(at, format!("{what} {} is empty", path.display())),
        Ok(_) => return,
        Err(err) => layers.diags.error(at, format!("failed to read {what} {}: {err}", path.display())),
    };
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
    }
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
    fn documented_defaults_and_limits_are_those_that_hold() {
        let default = |section: &Section, name: &str| {
            let key = section.keys.iter().find(|key| key.name == name);
            key.and_then(|key| key.default).unwrap_or_else(|| panic!("{name}"))
        };
        assert_eq!(default(&LIMITS, "label_values"), DEFAULT_LABEL_VALUES.to_string());
        assert_eq!(default(&LIMITS, "sites"), DEFAULT_SITES.to_string());
        assert_eq!(default(&LIMITS, "starts"), DEFAULT_STARTS.to_string());
        assert_eq!(scalars::size(default(&RING, "size")), Some(u64::from(DEFAULT_RING_BYTES)));
        assert_eq!(default(&RING, "poll"), format!("{DEFAULT_RING_POLL}ms"));
        assert_eq!(default(&ARGUMENT, "max"), limits::DEFAULT_TEXT_BYTES.to_string());
        let sizes = (scalars::show_size(*RING_BYTES.start()), scalars::show_size(*RING_BYTES.end()));
        assert!(RING.keys[0].about.contains(&format!("from {} to {}", sizes.0, sizes.1)));
        let poll = format!("from {}ms to {}s", RING_POLL.start(), RING_POLL.end() / 1000);
        assert!(RING.keys[1].about.contains(&poll));
    }
}
