//! Targets: which program, and what to trace in it.

use std::borrow::Cow;
use std::path::PathBuf;

use super::fields::{Fields, Node};
use super::limits;
use super::model::{Named, Selector, Target};
use super::place::Place;
use super::section::{Key, Schema, Section};
use super::words::quote;
use super::{labels, probes};

/// An element of `targets:`.
pub static TARGET: Section = Section {
    name: "target",
    what: "a target",
    about: "A program to trace. `binary`, `process`, `pid` or `container` selects it; `profile` and `probes` \
         say what to trace in it.",
    keys: Cow::Borrowed(&[
        Key::new("name", Schema::Text, "Short name, used in messages and in the exporter's own metrics.")
            .required(),
        Key::new(
            "binary",
            Schema::Path,
            "Path of an executable or library: every process that uses it, also \
             after the file is replaced.",
        ),
        Key::new(
            "process",
            Schema::Text,
            "Processes with this name, or whose executable has this base name.",
        ),
        Key::new(
            "pid",
            Schema::Integer(*limits::PID.start() as i64, *limits::PID.end() as i64),
            "One process by id. Together with `binary`: count only this process.",
        ),
        Key::new("container", Schema::Text, "Processes of the container with this name or id."),
        Key::new(
            "labels",
            Schema::Map(&Schema::LabelText),
            "Constant labels, added to every series of the \
             target.",
        ),
        Key::new(
            "profile",
            Schema::OneOrList(&Schema::Text),
            "Predefined probes; `exporter profiles` lists the profiles.",
        ),
        Key::new("probes", Schema::List(&Schema::Either(probes::FORMS)), "Custom probes."),
    ]),
    one_of: &[],
};

const HELP: &str = "write binary: PATH, process: NAME, pid: NUMBER or container: NAME";

/// The targets of `targets:`.
pub(super) fn decode(node: &Node<'_>) -> Vec<Target> {
    node.list("a list of targets").unwrap_or_default().iter().filter_map(target).collect()
}

/// The target that `bitcoind_path` is short for.
pub(super) fn bitcoind(at: Place, binary: PathBuf, pid: Option<u32>) -> Target {
    let profile = Named { at: at.clone(), name: "fibre".to_owned() };
    Target {
        at,
        name: "bitcoind".to_owned(),
        selector: Selector::Binary(binary),
        pid,
        labels: Vec::new(),
        unread_labels: false,
        profiles: vec![profile],
        probes: Vec::new(),
    }
}

/// A process id.
pub(super) fn pid(node: &Node<'_>) -> Option<u32> {
    node.integer("a process id", limits::PID)
}

/// Reports every target whose name another one has already.
pub(super) fn check_names<'a>(targets: impl Iterator<Item = &'a Target>, diags: &super::Diagnostics) {
    let mut seen: Vec<&Target> = Vec::new();
    // A name that could not be read is empty.
    for target in targets.filter(|target| !target.name.is_empty()) {
        match seen.iter().find(|other| other.name == target.name) {
            Some(other) => {
                let other = match other.at.to_string() {
                    path if path.is_empty() => other.at.source.to_string(),
                    path => path,
                };
                diags
                    .error(
                        &target.at,
                        format!("duplicate target name {}: also used at {other}", quote(&target.name)),
                    )
                    .help("give each target a unique name");
            }
            None => seen.push(target),
        }
    }
}

fn target(node: &Node<'_>) -> Option<Target> {
    let fields = node.fields(&TARGET)?;
    let name = fields
        .require("name", "set a short name, used in messages and metrics: name: bitcoind")
        .and_then(|n| n.text_as("a name"))
        .map(str::to_owned);
    let (selector, pid) = selector(&fields);
    let errors = node.diags.len();
    let labels = fields.get("labels").map(|n| labels::constants(&n)).unwrap_or_default();
    let unread_labels = node.diags.len() > errors || (!fields.has("labels") && !fields.lacks("labels"));
    let profiles = fields.get("profile").map(|n| profiles(&n)).unwrap_or_default();
    let probes = fields.get("probes").map(|n| probes::decode(&n, false)).unwrap_or_default();
    if fields.lacks("profile") && fields.lacks("probes") {
        fields.error("the target has no probes").help("set profile: NAME or probes: [...]");
    }
    Some(Target {
        at: node.at.clone(),
        name: name.unwrap_or_default(),
        selector: selector.unwrap_or(Selector::Binary(PathBuf::new())),
        pid,
        labels,
        unread_labels,
        profiles,
        probes,
    })
}

/// The selector, and the process filter that may stand beside `binary`.
fn selector(fields: &Fields<'_>) -> (Option<Selector>, Option<u32>) {
    if fields.has("binary") {
        let binary = fields.exactly_one(&["binary", "process", "container"], HELP);
        let path = binary.and_then(|(_, n)| n.path());
        return (path.map(Selector::Binary), fields.get("pid").and_then(|n| pid(&n)));
    }
    let found = fields.exactly_one(&["binary", "process", "pid", "container"], HELP);
    let selector = found.and_then(|(form, node)| match form {
        "pid" => pid(&node).map(Selector::Pid),
        "process" => node.text_as("the name of a process").map(|name| Selector::Process(name.to_owned())),
        _ => node.text_as("the name or id of a container").map(|name| Selector::Container(name.to_owned())),
    });
    (selector, None)
}

fn profiles(node: &Node<'_>) -> Vec<Named> {
    let named = |node: Node<'_>| {
        let name = node.text_as("the name of a profile")?.to_owned();
        Some(Named { at: node.at, name })
    };
    node.one_or_list().into_iter().filter_map(named).collect()
}
