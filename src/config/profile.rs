//! Profile files: the probes of a known program, in the same language.

use std::borrow::Cow;
use std::path::PathBuf;

use super::diagnose::Diagnostics;
use super::fields::Node;
use super::model::Probe;
use super::place::{ConfigSource, Place};
use super::section::{Key, Schema, Section};
use super::words::quote;
use super::{probes, yaml};

/// A profile file.
pub static PROFILE: Section = Section {
    name: "profile",
    what: "a profile",
    about: "A file of `profiles/`: probes of a known program.",
    keys: Cow::Borrowed(&[
        Key::new("profile", Schema::Text, "Name of the profile; must match the file name.").required(),
        Key::new("description", Schema::Text, "What it measures, in one line.").required(),
        Key::new("binaries", Schema::List(&Schema::Path), "Usual paths of the program or library."),
        Key::new("probes", Schema::List(&Schema::Either(probes::FORMS)), "Probes of the profile.").required(),
    ]),
    one_of: &[],
};

/// A profile. The plan expands it into targets.
#[derive(Debug, Clone)]
pub struct Profile {
    pub name: String,
    /// What it measures, as a one-line text for humans.
    pub description: String,
    /// Where distributions install the program or library.
    pub binaries: Vec<PathBuf>,
    /// The probes, all marked as coming from a profile.
    pub probes: Vec<Probe>,
}

/// Parses the profile `name`; errors refer to places in its text.
pub fn parse_profile(name: &str, text: &str) -> Result<Profile, Diagnostics> {
    let top = Place::top(ConfigSource::Profile(name.to_owned()));
    let diags = Diagnostics::new();
    let tree = yaml::parse(&top.source, text, &diags).tree;
    let profile = decode(name, &Node::new(top, &tree, &diags));
    match profile {
        Some(profile) => diags.into_result(profile),
        None => Err(diags),
    }
}

fn decode(name: &str, node: &Node<'_>) -> Option<Profile> {
    let fields = node.fields(&PROFILE)?;
    let declared = fields.require("profile", "write the profile's name").and_then(|n| {
        let declared = n.text()?;
        if declared != name {
            n.error(format!("the profile is named {} here but {} elsewhere", quote(declared), quote(name)));
        }
        Some(declared)
    });
    let description = fields
        .require("description", "describe in one sentence what the profile measures")
        .and_then(|n| Some(n.text()?.split_whitespace().collect::<Vec<_>>().join(" ")));
    let binaries = fields.get("binaries").and_then(|n| n.list("a list of paths")).unwrap_or_default();
    let binaries = binaries.iter().filter_map(|n| n.path()).collect();
    let probes = fields.require("probes", "add at least one probe").map(|n| {
        let probes = probes::decode(&n, true);
        if probes.is_empty() && n.value.as_sequence().is_some_and(<[_]>::is_empty) {
            n.error("the profile has no probes");
        }
        probes
    });
    Some(Profile { name: declared?.to_owned(), description: description?, binaries, probes: probes? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_a_profile() {
        let text = "profile: demo\ndescription: >\n  What the\n  demo does.\nbinaries: [/usr/bin/demo]\n\
                    probes:\n  - on: usdt:demo:hit\n";
        let profile = parse_profile("demo", text).unwrap();
        assert_eq!((profile.name.as_str(), profile.description.as_str()), ("demo", "What the demo does."));
        assert_eq!(profile.binaries, [PathBuf::from("/usr/bin/demo")]);
        assert!(profile.probes.iter().all(|probe| probe.from_profile) && profile.probes.len() == 1);
    }

    #[test]
    fn errors_are_located_in_the_profile() {
        let text = "profile: demo\ndescription: d\nprobes:\n  - on: a:b\n";
        let found = parse_profile("other", text).unwrap_err().render();
        assert!(found.starts_with("profile other:1:10: profile: the profile is named \"demo\""), "{found}");
        assert!(found.contains("profile other:4:9: probes[0].on: unknown probe source"), "{found}");
        let found = parse_profile("x", "").unwrap_err().render();
        assert_eq!(found.matches("is missing").count(), 3, "{found}");
        assert!(parse_profile("x", "[").is_err());
    }
}
