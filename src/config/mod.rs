//! Turns command line, environment and YAML file into a [`model::Config`], or reports all errors at once.
//!
//! Nothing but the files that the configuration names is accessed here: no program, no kernel. Later stages report
//! their own errors with the same [`Place`] and [`Diagnostics`].

mod args;
pub mod ban;
mod buckets;
mod conditions;
pub mod diagnose;
pub mod endpoint;
pub mod fields;
pub mod keys;
mod labels;
mod layers;
pub mod limits;
mod metrics;
pub mod model;
pub mod place;
mod points;
mod probes;
mod profile;
mod scalars;
pub mod section;
mod settings;
mod slow;
mod targets;
pub mod tree;
mod web;
mod words;
mod yaml;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::regular;

pub use diagnose::{Diagnostic, Diagnostics};
pub use fields::{Fields, Node};
pub use layers::{Environment, Overrides};
pub use model::Config;
pub use place::{ConfigSource, Place, Step};
pub(crate) use points::is_probe_word;
pub use profile::{PROFILE, Profile, parse_profile};
pub(crate) use scalars::{duration, go_duration, size};
pub(crate) use settings::default_state_directory;
pub(crate) use slow::default_file as default_events_file;
pub use web::read_again;
pub use words::{did_you_mean, nearest};
#[cfg(test)]
pub(crate) use yaml::decode_text;

use layers::Layers;
use section::{Schema, Section};
use tree::Position;
use yaml::Document;

/// The top-level keys of a file: those that have flags, and the others.
pub static TOP: LazyLock<Section> = LazyLock::new(|| {
    let of_flag = |key: &keys::SettingKey| {
        let form = match key.name {
            "pid" => Schema::Integer(i64::from(*limits::PID.start()), i64::from(*limits::PID.end())),
            "metrics_port" | "health_port" => {
                Schema::Integer(i64::from(*limits::PORT.start()), i64::from(*limits::PORT.end()))
            }
            "verbose" | "web_systemd_socket" => Schema::Boolean,
            "web_listen_address" => Schema::OneOrList(&Schema::Text),
            "log_level" => Schema::Words(settings::levels),
            name if name.ends_with("_file") || name.ends_with("_path") || name.starts_with("tls_") => {
                Schema::Path
            }
            _ => Schema::Text,
        };
        section::Key { default: key.default, ..section::Key::new(key.name, form, key.help) }
    };
    let others = [
        section::Key::new(
            "ring",
            Schema::Section(|| &settings::RING),
            "The ring buffer between the kernel and the exporter.",
        ),
        section::Key::new("limits", Schema::Section(|| &settings::LIMITS), "Resource limits."),
        section::Key::new("attach", Schema::Words(settings::attach_modes), "How to attach probes.")
            .or("auto"),
        section::Key::new(
            "keep_privileges",
            Schema::Words(settings::kept_privileges),
            "Capabilities to keep once everything is attached: those that attaching again needs, or none.",
        )
        .or("needed"),
        section::Key::new(
            "state",
            Schema::Words(settings::states),
            "What happens when the exporter ends. `volatile`: everything is detached. `pinned`: probes stay \
             attached and keep counting, and the next start takes them over.",
        )
        .or("volatile"),
        section::Key::new(
            "state_directory",
            Schema::Path,
            "Directory for `state: pinned`, on a BPF file system. Default: `/sys/fs/bpf/exporter-PORT`, with the metrics port.",
        ),
        section::Key::new(
            "targets",
            Schema::List(&Schema::Section(|| &targets::TARGET)),
            "Programs to trace.",
        ),
        section::Key::new(
            "web",
            Schema::Section(|| &web::WEB),
            "How the endpoints are secured, as in Prometheus's exporters.",
        ),
        section::Key::new(
            "web_writers",
            Schema::OneOrList(&Schema::Text),
            "Users who may also change the blocklist (`network.block`) over HTTP. Default: none.",
        ),
        section::Key::new("network", Schema::Other("network"), "Packet statistics."),
        section::Key::new(
            "slow_events",
            Schema::Section(|| &slow::SLOW_EVENTS),
            "Where events of metrics with `slow` are kept, and how many.",
        ),
    ];
    Section {
        name: "configuration",
        what: "the file",
        about: "The configuration file. Flags override environment variables, which override the file. Keys \
             that begin with `x-` are ignored; use them for YAML anchors.",
        keys: keys::KEYS.iter().map(of_flag).chain(others).collect(),
        one_of: &[],
    }
});

/// A configuration, and warnings about it.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    pub config: Config,
    /// One line each.
    pub warnings: Vec<String>,
}

/// The valid part of a configuration, and the errors so far. Placeholders replace whatever could not be read, so that
/// the next stage finds the errors in the rest.
#[derive(Debug)]
pub struct Draft {
    loaded: LoadedConfig,
    errors: Diagnostics,
}

impl Draft {
    /// Returns the configuration if there are no errors, otherwise the errors.
    pub fn finish(self) -> Result<LoadedConfig, Diagnostics> {
        self.errors.into_result(self.loaded)
    }

    /// Returns the settings as far as they could be read.
    pub fn settings(&self) -> &model::Settings {
        &self.loaded.config.settings
    }

    /// Returns the settings, mutably.
    pub(crate) fn settings_mut(&mut self) -> &mut model::Settings {
        &mut self.loaded.config.settings
    }

    /// Adds an error about something that the configuration refers to.
    pub fn error(&self, at: &Place, message: impl Into<String>) {
        self.errors.error(at, message);
    }

    pub(crate) fn into_parts(self) -> (LoadedConfig, Diagnostics) {
        (self.loaded, self.errors)
    }
}

/// Returns the relevant environment variables of this process.
pub fn environment() -> Environment {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    std::env::vars_os().filter_map(text).filter(|(name, _)| name.starts_with("FIBRE_")).collect()
}

/// Reads the file named by `overrides` or the environment, if any, and merges it with both. Precedence: flags,
/// environment, file, defaults.
pub fn load(overrides: &Overrides, env: &Environment) -> Result<LoadedConfig, Diagnostics> {
    read(overrides, env).finish()
}

/// Like [`load`], for the stage that continues in spite of errors: [`crate::plan::plan_draft`].
pub fn read(overrides: &Overrides, env: &Environment) -> Draft {
    let named_by_env = env.get(keys::CONFIG_ENV).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (path, at, what) = match (&overrides.config, named_by_env) {
        (Some(path), _) => {
            (path.clone(), Place::top(ConfigSource::File(path.clone())), "the file".to_owned())
        }
        (None, Some(path)) => (path.clone(), Place::env(keys::CONFIG_ENV), path.display().to_string()),
        (None, None) => return resolve(FileInput::None, overrides, env),
    };
    match content(&path) {
        Ok(bytes) => resolve(FileInput::Read(path, bytes), overrides, env),
        Err(err) => {
            resolve(FileInput::Unreadable(at, format!("failed to read {what}: {err}")), overrides, env)
        }
    }
}

/// Like [`load`], with the content of the file given; `path` is used for messages and relative paths.
pub fn load_bytes(
    path: impl Into<PathBuf>,
    bytes: Vec<u8>,
    overrides: &Overrides,
    env: &Environment,
) -> Result<LoadedConfig, Diagnostics> {
    read_bytes(path, bytes, overrides, env).finish()
}

/// Like [`read`], with the content of the file given.
pub fn read_bytes(
    path: impl Into<PathBuf>,
    bytes: Vec<u8>,
    overrides: &Overrides,
    env: &Environment,
) -> Draft {
    resolve(FileInput::Read(path.into(), bytes), overrides, env)
}

enum FileInput {
    /// No file was requested.
    None,
    Read(PathBuf, Vec<u8>),
    /// The place that named the file, and why it cannot be read.
    Unreadable(Place, String),
}

fn resolve(input: FileInput, overrides: &Overrides, env: &Environment) -> Draft {
    let diags = Diagnostics::new();
    // The content of an unreadable file is unknown, so nothing is reported as missing.
    let (top, value, complete) = match input {
        FileInput::None => (Place::none(), None, true),
        FileInput::Unreadable(at, err) => {
            diags.error(&at, err);
            (Place::none(), None, false)
        }
        FileInput::Read(path, bytes) => {
            let top = Place::top(ConfigSource::File(path));
            match text(bytes) {
                Ok(text) => {
                    let Document { tree, is_complete } = yaml::parse(&top.source, &text, &diags);
                    (top.at(tree.position), Some(tree), is_complete)
                }
                Err((position, err)) => {
                    diags.error(&top.clone().at(position), err);
                    (top, None, false)
                }
            }
        }
    };
    let node = value.as_ref().map(|value| Node::new(top.clone(), value, &diags));
    let file = node.and_then(|node| {
        if node.value.is_mapping() {
            return node.fields_and(&TOP, |key| key.starts_with("x-"));
        }
        // The text may contain anything, so it is not quoted.
        node.error("expected `key: value` lines").help("see config.example.yaml");
        None
    });
    let complete = complete && (file.is_some() || value.is_none());
    let layers = Layers { overrides, env, file, diags: &diags };
    let settings = settings::decode(&layers, complete);
    let targets = all_targets(&layers, &top, complete);
    let network = layers.file.as_ref().and_then(|f| f.get("network")).map(|n| (n.at, n.value.clone()));
    drop(layers);
    let config = Config { settings, targets, network };
    Draft { loaded: LoadedConfig { config, warnings: layers::unknown_variables(env) }, errors: diags }
}

/// Reads up to one byte more than [`text`] accepts, to tell a file of the maximum size from one that is too large.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    regular::open_or_pipe(path)?.take(limits::FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Converts the content of a file to text, or returns what is wrong with it and where.
fn text(bytes: Vec<u8>) -> Result<String, (Option<Position>, String)> {
    if bytes.len() > limits::FILE_BYTES {
        return Err((
            None,
            format!("the file is larger than the maximum of {} MiB", limits::FILE_BYTES >> 20),
        ));
    }
    let position = |bytes: &[u8]| {
        let before = String::from_utf8_lossy(bytes);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Some(Position { line, column })
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let (valid, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
        let what = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                "the file is encoded as UTF-16; save it as UTF-8".to_owned()
            }
            _ => format!("invalid UTF-8 (byte {:#04x}); save the file as UTF-8", bytes[valid]),
        };
        (position(&bytes[..valid]), what)
    })?;
    match text.find('\0') {
        None => Ok(text),
        // The parser would take it for the end of the text. UTF-16 without a byte order mark is full of them.
        Some(at) => Err((position(&text.as_bytes()[..at]), "a NUL byte: save the file as UTF-8".to_owned())),
    }
}

/// Returns the target implied by `bitcoind_path`, and those of `targets:`.
fn all_targets(layers: &Layers<'_>, top: &Place, complete: bool) -> Vec<model::Target> {
    let binary = layers.read("bitcoind_path", |n| n.path());
    let pid = layers.read("pid", targets::pid);
    let listed = layers.file.as_ref().and_then(|f| f.get("targets"));
    if let (Some(pid), true) = (&pid, complete && !layers.has("bitcoind_path")) {
        layers
            .diags
            .error(&pid.at, "`pid` needs bitcoind_path")
            .help("set bitcoind_path, or write `pid` inside a target");
    }
    let lacks = |key| layers.file.as_ref().is_none_or(|f| f.lacks(key));
    let is_empty = |n: &Node<'_>| n.is_null() || n.value.as_sequence().is_some_and(<[_]>::is_empty);
    let no_list = lacks("targets") || listed.as_ref().is_some_and(is_empty);
    if complete && !layers.has("bitcoind_path") && no_list && lacks("network") {
        layers.diags.error(top, "nothing to trace: no target is configured").help(
            "set bitcoind_path (or --bitcoind, FIBRE_BITCOIND_PATH) to a bitcoind, or write `targets:` or `network:`; \
             see config.example.yaml",
        );
    }
    let short = binary.map(|given| targets::bitcoind(given.at, given.value, pid.map(|pid| pid.value)));
    let listed = listed.filter(|n| !n.is_null()).map(|n| targets::decode(&n)).unwrap_or_default();
    targets::check_names(short.iter().chain(&listed), layers.diags);
    short.into_iter().chain(listed).collect()
}
