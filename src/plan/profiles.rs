//! The built-in profiles.

use std::sync::OnceLock;

use crate::config::{Diagnostics, Profile, parse_profile};

/// The name and text of every profile. A new one is a file in `profiles/` and a line here.
const TEXTS: &[(&str, &str)] = &[
    ("fibre", include_str!("../../profiles/fibre.yaml")),
    ("bitcoin-core", include_str!("../../profiles/bitcoin-core.yaml")),
    ("postgresql", include_str!("../../profiles/postgresql.yaml")),
    ("openjdk", include_str!("../../profiles/openjdk.yaml")),
    ("python", include_str!("../../profiles/python.yaml")),
    ("php", include_str!("../../profiles/php.yaml")),
    ("ruby", include_str!("../../profiles/ruby.yaml")),
    ("libstdcxx", include_str!("../../profiles/libstdcxx.yaml")),
    ("openssl", include_str!("../../profiles/openssl.yaml")),
    ("malloc", include_str!("../../profiles/malloc.yaml")),
    ("pam", include_str!("../../profiles/pam.yaml")),
];

/// Names and texts of all profiles, in listing order.
pub fn profiles() -> &'static [(&'static str, &'static str)] {
    TEXTS
}

/// The profile called `name`, or `None` if there is none; the inner error lists the errors in its text, which a test
/// rules out.
pub fn profile(name: &str) -> Option<Result<Profile, Diagnostics>> {
    let at = TEXTS.iter().position(|(known, _)| *known == name)?;
    if let Some(parsed) = PARSED[at].get() {
        return Some(Ok(parsed.clone()));
    }
    let (name, text) = TEXTS[at];
    Some(parse_profile(name, text).map(|profile| PARSED[at].get_or_init(|| profile).clone()))
}

/// The built-in profiles that have been used: their texts are constant, so each is parsed once per process.
static PARSED: [OnceLock<Profile>; TEXTS.len()] = [const { OnceLock::new() }; TEXTS.len()];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{ArgKind, LabelValue};

    #[test]
    fn every_profile_is_valid_and_documented() {
        for (name, text) in profiles() {
            let profile = profile(name).unwrap().unwrap_or_else(|wrong| panic!("{}", wrong.render()));
            assert!(!profile.binaries.is_empty() && text.starts_with("# "), "{name}");
            for metric in profile.probes.iter().flat_map(|probe| &probe.metrics) {
                assert!(metric.help.ends_with('.') && metric.help.contains(' '), "{name}: {}", metric.name);
            }
        }
    }

    #[test]
    fn every_profile_label_is_bounded() {
        for (name, _) in profiles() {
            for probe in profile(name).unwrap().unwrap().probes {
                let labels = probe.metrics.iter().flat_map(|metric| &metric.labels);
                for label in labels {
                    let LabelValue::From(from) = &label.value else { continue };
                    let is_bool = probe.args.iter().any(|arg| arg.name == *from && arg.kind == ArgKind::Bool);
                    let bounded = label.limit.is_some() || label.default.is_some() || is_bool;
                    assert!(bounded, "{name}: label {} has neither limit nor default", label.name);
                }
            }
        }
    }
}
