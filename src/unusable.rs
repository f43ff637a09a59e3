//! Sites without a probe, and why. Pure.

use serde::{Deserialize, Serialize};

use crate::elf::Site;

/// Why no probe can be placed at a site; `None` if one can be.
pub fn unusable_reason(site: &Site) -> Option<String> {
    if let Some(reason) = site.shape.unprobeable() {
        return Some(reason);
    }
    site.shape.is_replaced_by_call().then(|| {
        "Linux 6.18 replaces this five-byte nop by a call, which overwrites the program's red zone, and which ends a process that \
         the program forks; probe another place"
            .to_string()
    })
}

/// A place where a probe would never fire, or would harm the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusableSite {
    /// The function, or the file offset of a USDT probe's site.
    pub name: String,
    pub reason: String,
}

impl std::fmt::Display for UnusableSite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// Lists each reason once, with its sites.
pub fn reasons(sites: &[UnusableSite]) -> String {
    summary(sites.iter().map(|site| (site.name.as_str(), site.reason.as_str())))
}

/// Sites that are named for each reason.
const MAX_NAMES: usize = 5;

/// Reasons that are listed.
const MAX_REASONS: usize = 4;

/// Lists each reason once, with its sites, up to a limit of both. Takes names and reasons.
pub fn summary<'a>(refused: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, reason) in refused {
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(name),
            None => reasons.push((reason, vec![name])),
        }
    }
    let more = reasons.len().saturating_sub(MAX_REASONS);
    let mut lines: Vec<String> = reasons
        .iter()
        .take(MAX_REASONS)
        .map(|(reason, names)| {
            let listed = names[..names.len().min(MAX_NAMES)].join(", ");
            let others = match names.len().saturating_sub(MAX_NAMES) {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            format!("{listed}{others}: {reason}")
        })
        .collect();
    if more > 0 {
        lines.push(format!("and {more} more reasons"));
    }
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_grouped_and_bounded() {
        let names: Vec<String> = (0..8).map(|n| format!("f{n}")).collect();
        let same = names.iter().map(|name| (name.as_str(), "bad"));
        assert_eq!(summary(same.clone()), "f0, f1, f2, f3, f4 and 3 more: bad");
        assert_eq!(summary(same.take(1).chain([("g", "worse")])), "f0: bad; g: worse");
        let each = names.iter().map(|name| (name.as_str(), name.as_str()));
        assert_eq!(summary(each), "f0: f0; f1: f1; f2: f2; f3: f3; and 4 more reasons");
    }
}
