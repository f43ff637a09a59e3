//! The profiles that are compiled into the program.

use crate::config::{Diagnostics, Profile};

/// Every profile: name and text. A new one is a file in `profiles/` and a line here.
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

/// Names and texts of all profiles, in the order they are listed.
pub fn profiles() -> &'static [(&'static str, &'static str)] {
    TEXTS
}

/// The profile called `name`, or `None` if there is none; the inner error lists what is wrong with its text, which
/// a test keeps from happening.
pub fn profile(name: &str) -> Option<Result<Profile, Diagnostics>> {
    let (name, text) = TEXTS.iter().find(|(known, _)| *known == name)?;
    Some(crate::config::parse_profile(name, text))
}
