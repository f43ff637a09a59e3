//! What is not about a target: merged, checked against each other, and defaults filled in.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::fields::{Fields, Node};
use super::layers::{Layers, Said};
use super::model::{AttachMode, Auth, Limits, LogLevel, Settings, TlsFiles};
use super::place::Place;
use super::scalars;
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

const PAGE: u64 = 4096;
/// Largest password file that is read, in bytes.
const MAX_PASSWORD: u64 = 4096;

/// The settings of all sources. With `complete` false a source is missing, so that nothing is said about
/// what is not there.
pub(super) fn decode(layers: &Layers<'_>, complete: bool) -> Settings {
    let node_name = layers.read("node_name", |n| n.text_as("a name").map(str::to_owned));
    let (metrics_port, health_port) = ports(layers);
    Settings {
        node_name: node_name.map_or_else(|| "localhost".to_owned(), |said| said.value),
        bind: layers.read("bind", address).map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |said| said.value),
        metrics_port,
        health_port,
        verbose: layers.read("verbose", |n| n.boolean()).is_some_and(|said| said.value),
        log_level: layers
            .read("log_level", |n| n.one_of("log level", LEVELS))
            .map_or(LogLevel::Info, |said| said.value),
        log_file: layers.read("log_file", |n| n.path()).map(|said| said.value),
        auth: auth(layers, complete),
        tls: tls(layers, complete),
        limits: limits(layers.file.as_ref()),
        attach: layers
            .file
            .as_ref()
            .and_then(|file| file.get("attach"))
            .and_then(|n| n.one_of("way to attach", MODES))
            .unwrap_or(AttachMode::Auto),
    }
}

fn address(node: &Node<'_>) -> Option<IpAddr> {
    let text = node.text_as("an IP address")?;
    let address = text.trim().parse().ok();
    if address.is_none() {
        node.expected("an IP address")
            .help("write 127.0.0.1 for this machine only, 0.0.0.0 or :: for everyone");
    }
    address
}

fn ports(layers: &Layers<'_>) -> (u16, u16) {
    let port = |name| layers.read(name, |n| n.integer("a port", 1..=u16::MAX));
    let (metrics, health) = (port("metrics_port"), port("health_port"));
    let value = |said: &Option<Said<u16>>, default| said.as_ref().map_or(default, |said| said.value);
    let ports = (value(&metrics, 9435), value(&health, 9436));
    if ports.0 == ports.1 {
        // The defaults differ, so at least one of the two was given.
        let (said, other) = match (&health, &metrics) {
            (Some(said), _) => (said, "metrics"),
            (None, Some(said)) => (said, "health"),
            (None, None) => return ports,
        };
        layers
            .diags
            .error(&said.at, format!("port {} is the port of {other} already", ports.0))
            .help("metrics and health are served on two ports: give each its own");
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
                .error(&file.at, "a password and a file with the password are given side by side")
                .help("keep one of the two; the file is the safer one");
            return None;
        }
        (Some(inline), file) if file.as_ref().is_none_or(|file| file.rank < inline.rank) => Some(inline),
        (_, Some(file)) => {
            let value = read_password(layers, &file)?;
            Some(Said { at: file.at, value, rank: file.rank })
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
                .error(&username.at, "a user without a password")
                .help("set metrics_auth_password_file (or metrics_auth_password) too, or remove the user");
            None
        }
        (None, Some(password)) if complete && !layers.has("metrics_auth_username") => {
            layers
                .diags
                .error(&password.at, "a password without a user")
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
        node.error(format!("{} cannot be a user name: basic auth allows no colon in it", quote(name)));
        return None;
    }
    Some(name.to_owned())
}

/// The content of a password file without the line end that editors leave there.
fn read_password(layers: &Layers<'_>, file: &Said<PathBuf>) -> Option<String> {
    let path = file.value.display();
    let error = |why: String| layers.diags.error(&file.at, why);
    let mut text = String::new();
    let read = File::open(&file.value).and_then(|f| f.take(MAX_PASSWORD + 1).read_to_string(&mut text));
    if let Err(why) = read {
        error(format!("cannot read the password from {path}: {why}"));
        return None;
    }
    let password =
        text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if text.len() as u64 > MAX_PASSWORD {
        error(format!("{path} is too large for a password: at most {MAX_PASSWORD} bytes are read"));
    } else if password.is_empty() {
        error(format!("{path} is empty: it must hold the password"));
    } else if password.contains('\n') {
        error(format!("{path} has more than one line: it must hold the password alone"));
    } else {
        return Some(password.to_owned());
    }
    None
}

fn tls(layers: &Layers<'_>, complete: bool) -> Option<TlsFiles> {
    let cert = layers.read("tls_cert", |n| n.path());
    let key = layers.read("tls_key", |n| n.path());
    let errors = layers.diags.len();
    for (said, what) in [(&cert, "the certificate"), (&key, "the private key")] {
        if let Some(said) = said {
            check_readable(layers, &said.at, &said.value, what);
        }
    }
    let readable = layers.diags.len() == errors;
    let alone = |said: &Said<PathBuf>, what: &str, other: &str| {
        if complete && !layers.has(other) {
            layers
                .diags
                .error(&said.at, what)
                .help(format!("set {other} too, or remove this to serve plain HTTP"));
        }
    };
    match (cert, key) {
        (Some(cert), Some(key)) => {
            readable.then_some(TlsFiles { cert: cert.value, key: key.value, at: cert.at })
        }
        (Some(cert), None) => {
            alone(&cert, "a certificate without its private key", "tls_key");
            None
        }
        (None, Some(key)) => {
            alone(&key, "a private key without its certificate", "tls_cert");
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
        Err(why) => layers.diags.error(at, format!("cannot read {what} {}: {why}", path.display())),
    };
}

fn limits(file: Option<&Fields<'_>>) -> Limits {
    let ring =
        file.and_then(|f| f.get("ring")).and_then(|n| n.fields("the ring's settings", &["size", "poll"]));
    let limits = file.and_then(|f| f.get("limits"));
    let limits = limits.and_then(|n| n.fields("the limits", &["label_values", "sites", "starts"]));
    let limit = |key: &str, what: &str, most: u32, default| {
        let node = limits.as_ref().and_then(|f| f.get(key));
        node.and_then(|n| n.integer(what, 1..=most)).unwrap_or(default)
    };
    Limits {
        ring_bytes: ring.as_ref().and_then(|f| f.get("size")).and_then(|n| ring_size(&n)).unwrap_or(4 << 20),
        ring_poll_ms: ring.as_ref().and_then(|f| f.get("poll")).and_then(|n| poll(&n)).unwrap_or(10),
        label_values: limit("label_values", "a number of label values", 100_000, 200),
        sites: limit("sites", "a number of probe sites", 65_536, 8192),
        starts: limit("starts", "a number of open spans and calls", 4_194_304, 32_768),
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
    if !bytes.is_power_of_two() || !(PAGE..=1 << 30).contains(&bytes) {
        node.error(format!("the ring's size must be a power of two from 4KiB to 1GiB, found {bytes} bytes"))
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
    let milliseconds = (seconds * 1000.0).round();
    if !(1.0..=10_000.0).contains(&milliseconds) {
        node.expected("a duration from 1ms to 10s");
        return None;
    }
    Some(milliseconds as u32)
}
