//! The web configuration of Prometheus exporters, as defined by exporter-toolkit: in a separate file
//! (`web_config_file`) or under `web:`; and the exporter's own keys for the same settings.
//!
//! Format: <https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md>.

mod keys;
mod listen;
mod sections;
mod tls;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::diagnose::Diagnostics;
use super::endpoint::{Auth, Origin, TlsSettings, Web};
use super::fields::{Fields, Node};
use super::layers::Layers;
use super::place::{ConfigSource, Place};
use super::scalars::go_duration;
use super::words::{did_you_mean, quote};
use super::yaml;
use crate::http::{Rate, is_hash};

pub(super) use keys::read_secret;
pub(super) use listen::listen;
pub use sections::WEB;

/// A decoded web configuration.
#[derive(Default)]
struct Part {
    users: Vec<Auth>,
    /// Set if there are users, valid or not.
    users_at: Option<Place>,
    tls: Option<TlsSettings>,
    tls_at: Option<Place>,
    headers: Vec<(&'static str, String)>,
    rate_limit: Option<Rate>,
    http2: bool,
}

/// Decodes how the endpoints are secured. If `complete` is false, a source could not be read, so nothing is reported as
/// missing.
pub(super) fn decode(layers: &Layers<'_>, complete: bool) -> Web {
    let errors = layers.diags.len();
    let (auth, password_file) = keys::auth(layers, complete);
    let tls = keys::tls(layers, complete);
    let file = layers.read("web_config_file", |n| n.path());
    let inline = layers.file.as_ref().and_then(|file| file.get("web")).filter(|node| !node.is_null());
    let part = match (&file, &inline) {
        (Some(file), Some(inline)) => {
            layers.diags.error(&inline.at, "`web` and web_config_file are mutually exclusive").help(format!(
                "move this into {} and remove it here, or the other way round",
                file.value.display()
            ));
            Part::default()
        }
        (Some(file), None) => read_file(&file.at, &file.value, layers.diags).unwrap_or_default(),
        (None, Some(inline)) => part(inline).unwrap_or_default(),
        (None, None) => Part::default(),
    };
    if let Some(at) = &part.users_at {
        let own = ["metrics_auth_username", "metrics_auth_password", "metrics_auth_password_file"];
        refuse_both(own.into_iter().find(|name| layers.has(name)), at, layers.diags);
    }
    if let Some(at) = &part.tls_at {
        refuse_both(["tls_cert", "tls_key"].into_iter().find(|name| layers.has(name)), at, layers.diags);
    }
    let file = file.map(|file| (file.at, file.value));
    let origin = Origin { auth, password_file, tls, file, writers: writers(layers) };
    let is_sound = complete && layers.diags.len() == errors;
    let web = combine(origin, part);
    if is_sound {
        refuse_unknown_writers(&web, layers.diags);
    }
    web
}

/// Returns the same settings with the files among their sources read again.
///
/// # Errors
/// What is wrong with one of the files.
pub fn read_again(web: &Web) -> Result<Web, Diagnostics> {
    let diags = Diagnostics::new();
    let mut origin = web.origin.clone();
    if let (Some((at, path)), Some(auth)) = (&origin.password_file, &mut origin.auth)
        && let Some(password) = keys::read_secret(at, path, "password", &diags)
    {
        auth.password = password;
    }
    let part = match &origin.file {
        Some((at, path)) => read_file(at, path, &diags).unwrap_or_default(),
        // Settings in the configuration itself are not read again.
        None => Part {
            users: web.users.clone(),
            tls: web.tls.clone(),
            headers: web.headers.clone(),
            rate_limit: web.rate_limit,
            http2: web.http2,
            ..Part::default()
        },
    };
    if let (Some(at), true) = (&part.users_at, origin.auth.is_some()) {
        refuse_both(Some("metrics_auth_username"), at, &diags);
    }
    if let (Some(at), true) = (&part.tls_at, origin.tls.is_some()) {
        refuse_both(Some("tls_cert"), at, &diags);
    }
    let combined = combine(origin, part);
    // A writer who is no longer a user is not an error: it must not prevent the removal of the user.
    diags.into_result(combined)
}

fn refuse_both(own: Option<&str>, at: &Place, diags: &Diagnostics) {
    let Some(own) = own else { return };
    diags
        .error(at, format!("{own} and the web configuration both say this"))
        .help(format!("keep one of the two: remove this, or {own} and what belongs to it"));
}

fn combine(origin: Origin, part: Part) -> Web {
    let users = origin.auth.clone().map_or(part.users, |auth| vec![auth]);
    let tls = origin.tls.clone().or(part.tls);
    let writers = origin.writers.iter().map(|(_, name)| name.clone()).collect();
    let Part { headers, rate_limit, http2, .. } = part;
    Web { users, writers, tls, headers, rate_limit, http2, origin }
}

/// Decodes `web_writers`. It is not a key of the web configuration file, which other exporters may read too.
fn writers(layers: &Layers<'_>) -> Vec<(Place, String)> {
    let node = layers.file.as_ref().and_then(|file| file.get("web_writers")).filter(|node| !node.is_null());
    let names = node.map(|node| node.one_or_list()).unwrap_or_default();
    names.iter().filter_map(|node| Some((node.at.clone(), node.text_as("a user name")?.to_owned()))).collect()
}

fn refuse_unknown_writers(web: &Web, diags: &Diagnostics) {
    for (at, name) in &web.origin.writers {
        if web.users.iter().all(|user| user.username != *name) {
            let near = did_you_mean(name, web.users.iter().map(|user| user.username.as_str()));
            diags.error(at, format!("web_writers: there is no user {}{near}", quote(name))).help(
                "name users of basic_auth_users, or the one of metrics_auth_username; without users nobody may write",
            );
        }
    }
}

/// Reads a web configuration file.
fn read_file(at: &Place, path: &Path, diags: &Diagnostics) -> Option<Part> {
    let bytes = match super::content(path) {
        Ok(bytes) => bytes,
        Err(err) => {
            diags.error(at, format!("failed to read the web configuration {}: {err}", path.display()));
            return None;
        }
    };
    let top = Place::top(ConfigSource::File(path.to_owned()));
    let text = match super::text(bytes) {
        Ok(text) => text,
        Err((position, reason)) => {
            diags.error(&top.at(position), reason);
            return None;
        }
    };
    let document = yaml::parse(&Arc::clone(&top.source), &text, diags);
    part(&Node::new(top, &document.tree, diags))
}

fn part(node: &Node<'_>) -> Option<Part> {
    let fields = mapping(node, &WEB)?;
    let mut part = Part::default();
    if let Some(node) = present(&fields, "tls_server_config") {
        let errors = node.diags.len();
        part.tls = tls::decode(&node);
        part.tls_at = (part.tls.is_some() || node.diags.len() > errors).then(|| node.at.clone());
    }
    if let Some(fields) = present(&fields, "http_server_config").and_then(|n| mapping(&n, &sections::HTTP)) {
        part.headers = http(&fields);
        part.http2 = present(&fields, "http2").and_then(|n| n.boolean()).unwrap_or(false);
    }
    if let Some(node) = present(&fields, "basic_auth_users") {
        part.users = users(&node);
        part.users_at = (!part.users.is_empty()).then(|| node.at.clone());
    }
    if let Some(fields) = present(&fields, "rate_limit").and_then(|n| mapping(&n, &sections::RATE_LIMIT)) {
        part.rate_limit = rate_limit(&fields);
    }
    Some(part)
}

/// Like [`Node::fields`], but does not quote a value that is not a mapping: it may be a secret.
fn mapping<'a>(node: &Node<'a>, section: &'static super::section::Section) -> Option<Fields<'a>> {
    if node.value.is_mapping() {
        return node.fields(section);
    }
    let names: Vec<_> = section.names().collect();
    node.error(format!("expected {} (a mapping)", section.what))
        .help(format!("valid keys: {}", names.join(", ")));
    None
}

/// Returns the value of a key; an empty value or empty text counts as absent.
fn present<'a>(fields: &Fields<'a>, key: &str) -> Option<Node<'a>> {
    fields.get(key).filter(|node| !node.is_null() && node.value.as_str() != Some(""))
}

fn users(node: &Node<'_>) -> Vec<Auth> {
    if !node.value.is_mapping() {
        node.error("expected a mapping of user names to bcrypt hashes (the value is not shown)")
            .help("write `name: $2y$10$...` lines; `exporter hash-password` prints a hash");
        return Vec::new();
    }
    let user = |(name, node): (&super::tree::Scalar, Node<'_>)| {
        let password = node.secret()?.to_owned();
        if name.text.is_empty() || name.text.contains(':') || name.text.chars().any(char::is_control) {
            node.error("the user name is empty or has a colon, which basic authentication does not allow");
            return None;
        }
        if !is_hash(&password) {
            node.error("expected a bcrypt hash (the value is not shown)")
                .help("`exporter hash-password` reads a password and prints its hash");
            return None;
        }
        Some(Auth { at: node.at.clone(), username: name.text.clone(), password })
    };
    node.entries("users").unwrap_or_default().into_iter().filter_map(user).collect()
}

fn http(fields: &Fields<'_>) -> Vec<(&'static str, String)> {
    let Some(fields) = present(fields, "headers").and_then(|n| mapping(&n, &sections::HEADERS)) else {
        return Vec::new();
    };
    let header = |name: &'static str| {
        let node = present(&fields, name)?;
        let value = node.label_text()?;
        let allowed = sections::header_values(name);
        if !allowed.is_empty() && !allowed.contains(&value.as_str()) {
            let near = did_you_mean(&value, allowed.iter().copied());
            node.error(format!("unknown value{near}; expected one of {}", allowed.join(", ")));
            return None;
        }
        if value.chars().any(|c| !matches!(c, '\t' | ' '..='~')) {
            node.error("a header can only have printable ASCII characters, on one line");
            return None;
        }
        Some((name, value))
    };
    sections::HEADERS.names().filter_map(header).collect()
}

fn rate_limit(fields: &Fields<'_>) -> Option<Rate> {
    let go = |node: &Node<'_>| Duration::try_from_secs_f64(go_duration(node.value.as_str()?)?).ok();
    let interval = present(fields, "interval").map(|node| {
        let zero = node.value.as_integer() == Some(0);
        let interval = if zero { Some(Duration::ZERO) } else { go(&node) };
        if interval.is_none() {
            node.expected("a duration such as 1s or 500ms")
                .help("the units are ns, us, ms, s, m and h; 0 means no limit");
        }
        interval
    });
    let burst =
        present(fields, "burst").map_or(Some(0), |node| node.integer("a number of requests", 0..=1_000_000));
    let interval = interval.unwrap_or_default()?;
    Some(Rate { interval, burst: burst? }).filter(|limit| !limit.interval.is_zero())
}
