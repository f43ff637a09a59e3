//! Targets: the program, and what to trace in it.

use std::borrow::Cow;
use std::path::PathBuf;

use super::fields::{Fields, Node};
use super::limits;
use super::model::{Named, Target};
use super::place::Place;
use super::section::{Key, Schema, Section};
use super::words::quote;
use super::{labels, probes};
use crate::selectors::{FileSelector, KEYS, Pattern, Predicate, ProcessSelector, Selector};

/// An element of `targets:`.
pub static TARGET: Section = Section {
    name: "target",
    what: "a target",
    about: "A program to trace. `binary` selects a file, whatever process runs it. The other keys up to `children` select processes; \
            if several are given, all must match. What these processes run is traced, or, with `binary` or `library`, only that \
            file. Names and command lines may be globs of `*`, `?` and `[...]`. `profile` and `probes` say what to trace.",
    keys: Cow::Borrowed(&[
        Key::new("name", Schema::Text, "Short name, used in messages and in the exporter's own metrics.")
            .required(),
        Key::new(
            "binary",
            Schema::Path,
            "Path of an executable or library: every process that uses it, also after the file is replaced.",
        ),
        Key::new(
            "library",
            Schema::Text,
            "The files of this name or soname (`libssl.so.3`) that the processes have loaded, each container's own.",
        ),
        Key::new(
            "process",
            Schema::Text,
            "Processes with this name, or whose executable has this base name.",
        ),
        Key::new(
            "cmdline",
            Schema::Text,
            "Processes with this command line, all of it, with one space between arguments: `java * shop.jar`, `*app.py*`.",
        ),
        Key::new(
            "pid",
            Schema::Integer(*limits::PID.start() as i64, *limits::PID.end() as i64),
            "One process by id. Together with `binary`: count only this process.",
        ),
        Key::new("container", Schema::Text, "Processes of the container with this name or id."),
        Key::new(
            "image",
            Schema::Text,
            "Processes in containers of this image: its name without registry, directories, tag or digest is enough.",
        ),
        Key::new(
            "unit",
            Schema::Text,
            "Processes in this unit of systemd, also of a user's: `nginx`, `app.slice`, and `postgresql@` for all instances.",
        ),
        Key::new("pod", Schema::Text, "Processes in the pod of Kubernetes with this name."),
        Key::new("namespace", Schema::Text, "Processes in pods of this namespace of Kubernetes."),
        Key::new(
            "children",
            Schema::Boolean,
            "Also their child processes and descendants, whatever these run.",
        )
        .or("false"),
        Key::new(
            "optional",
            Schema::Boolean,
            "The program may be absent: until its file or process exists, its probes are `not_running`, and neither /ready nor \
             an alert waits for them.",
        )
        .or("false"),
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

const HELP: &str = "write binary: PATH, process: NAME, cmdline: GLOB, pid: NUMBER, container: NAME, image: NAME, unit: NAME, \
                    pod: NAME or namespace: NAME";

/// Decodes `targets:`.
pub(super) fn decode(node: &Node<'_>) -> Vec<Target> {
    node.list("a list of targets").unwrap_or_default().iter().filter_map(target).collect()
}

/// Returns the target that `bitcoind_path` is short for.
pub(super) fn bitcoind(at: Place, binary: PathBuf, pid: Option<u32>) -> Target {
    let profile = Named { at: at.clone(), name: "fibre".to_owned() };
    Target {
        at,
        name: "bitcoind".to_owned(),
        selector: Selector {
            file: FileSelector::Path(binary),
            processes: ProcessSelector {
                predicates: pid.map(Predicate::Pid).into_iter().collect(),
                children: false,
            },
        },
        optional: false,
        labels: Vec::new(),
        unread_labels: false,
        profiles: vec![profile],
        probes: Vec::new(),
    }
}

/// Decodes a process id.
pub(super) fn pid(node: &Node<'_>) -> Option<u32> {
    node.integer("a process id", limits::PID)
}

/// Reports duplicate target names.
pub(super) fn check_names<'a>(targets: impl Iterator<Item = &'a Target>, diags: &super::Diagnostics) {
    let mut seen: Vec<&Target> = Vec::new();
    let targets: Vec<&Target> = targets.collect();
    let with_children = targets.iter().filter(|target| target.selector.processes.children);
    if let Some(more) = with_children.into_iter().nth(limits::FAMILIES) {
        diags
            .error(
                &more.at,
                format!("{} targets can have `children: true`, and this is one more", limits::FAMILIES),
            )
            .help("give them by `unit`, `container` or `cmdline` instead");
    }
    // An invalid name is empty.
    for target in targets.into_iter().filter(|target| !target.name.is_empty()) {
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
    let selector = selector(node, &fields);
    let optional = fields.get("optional").and_then(|node| node.boolean()).unwrap_or(false);
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
        selector,
        optional,
        labels,
        unread_labels,
        profiles,
        probes,
    })
}

/// Decodes the file and process selectors. Invalid ones are reported and left out.
fn selector(node: &Node<'_>, fields: &Fields<'_>) -> Selector {
    let errors = node.diags.len();
    let file = match ["binary", "library"].iter().any(|key| fields.has(key)) {
        true => fields.exactly_one(&["binary", "library"], HELP),
        false => None,
    };
    let file = match file {
        Some(("binary", node)) => node.path().map_or(FileSelector::Executable, FileSelector::Path),
        Some((_, node)) => pattern(&node, "the name of a library", Pattern::new)
            .map_or(FileSelector::Executable, FileSelector::Library),
        None => FileSelector::Executable,
    };
    let by_text =
        KEYS.iter().filter_map(|key| pattern(&fields.get(key.name)?, key.what, |text| key.read(text)));
    let mut predicates: Vec<Predicate> = by_text.collect();
    predicates.extend(fields.get("pid").and_then(|node| pid(&node)).map(Predicate::Pid));
    let children = fields.get("children").and_then(|node| node.boolean()).unwrap_or(false);
    let is_whole =
        predicates.is_empty() && KEYS.iter().all(|key| fields.lacks(key.name)) && fields.lacks("pid");
    if node.diags.len() > errors || !is_whole {
        // Nothing is missing, or an error has been reported.
    } else if matches!(file, FileSelector::Executable) {
        if ["binary", "library"].iter().all(|key| fields.lacks(key)) {
            fields.error("no program is selected").help(HELP);
        }
    } else if matches!(file, FileSelector::Library(_)) {
        fields.error("no processes are selected that load the library").help(
            "add a process selector such as `process: NAME`, or use `binary: PATH` for one file, whichever process loads it",
        );
    } else if children {
        fields
            .error("`children` has no effect here: all processes that run the file are traced")
            .help("leave it out");
    }
    Selector { file, processes: ProcessSelector { predicates, children } }
}

fn pattern<T>(
    node: &Node<'_>,
    what: &str,
    read: impl FnOnce(&str) -> Result<T, crate::selectors::PatternError>,
) -> Option<T> {
    let text = node.text_as(what)?;
    match read(text) {
        Ok(pattern) => Some(pattern),
        Err(err) => {
            node.error(format!("{} {err}", quote(text)));
            None
        }
    }
}

fn profiles(node: &Node<'_>) -> Vec<Named> {
    let named = |node: Node<'_>| {
        let name = node.text_as("the name of a profile")?.to_owned();
        Some(Named { at: node.at, name })
    };
    node.one_or_list().into_iter().filter_map(named).collect()
}
