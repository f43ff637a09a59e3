//! What the log tells of a file that was attached to.

use super::TargetFile;
use super::attached_file::AttachedFile;
use super::status::ProbeState;
use crate::plan::{Plan, TargetPlan};

/// Probes that are named together.
const NAMED: usize = 4;

/// With `elsewhere`, what this file lacks is in libraries that its process has loaded.
pub(super) fn announce(
    plan: &Plan,
    planned: &TargetPlan,
    file: &TargetFile,
    new_file: &AttachedFile,
    elsewhere: bool,
) {
    let mut attached = 0;
    let mut others = NotAttached::default();
    for outcome in &new_file.probes {
        let name = &plan.probes[outcome.probe].name;
        match &outcome.state {
            ProbeState::Attached => {
                attached += 1;
                let sites = if outcome.sites == 1 { "" } else { "s" };
                log::info!("Attached probe: {name} ({} site{sites})", outcome.sites);
            }
            ProbeState::Partly(reason) => {
                attached += 1;
                log::warn!("Partly attached probe: {name}: {reason}");
            }
            ProbeState::Absent(_) if elsewhere => {}
            state => others.add(name, state),
        }
    }
    others.lines().for_each(|line| log::warn!("{line}"));
    let line = format!(
        "Attached {attached}/{} probes to {} ({})",
        new_file.probes.len(),
        planned.name,
        file.display
    );
    if attached == 0 && elsewhere {
        log::debug!("{line}");
    } else if attached == 0 {
        log::error!("{line}; `exporter probes {}` lists the probes of the file", file.display);
    } else {
        log::info!("{line}");
    }
}

/// Probes that are not attached, those with the same reason together: a file that cannot be read has many.
#[derive(Debug, Default)]
struct NotAttached<'a>(Vec<(&'a ProbeState, Vec<&'a str>)>);

impl<'a> NotAttached<'a> {
    fn add(&mut self, name: &'a str, state: &'a ProbeState) {
        let same = |known: &ProbeState| known.word() == state.word() && known.reason() == state.reason();
        match self.0.iter_mut().find(|(known, _)| same(known)) {
            Some((_, names)) => names.push(name),
            None => self.0.push((state, vec![name])),
        }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(state, names)| {
            let is = if names.len() == 1 { "is" } else { "are" };
            let probes = if names.len() == 1 { "Probe" } else { "Probes" };
            let shown = names[..names.len().min(NAMED)].join(", ");
            let more = match names.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{probes} {shown}{more} {is} {}: {}", state.word(), state.reason())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_told_once() {
        let damaged = ProbeState::Refused("the file is damaged".to_string());
        let (no_a, no_b) = (ProbeState::Absent("no a".to_string()), ProbeState::Absent("no b".to_string()));
        let mut others = NotAttached::default();
        for name in ["p", "q", "r", "s", "t"] {
            others.add(name, &damaged);
        }
        others.add("a", &no_a);
        others.add("b", &no_b);
        let lines: Vec<String> = others.lines().collect();
        assert_eq!(
            lines,
            [
                "Probes p, q, r, s and 1 more are refused: the file is damaged",
                "Probe a is absent: no a",
                "Probe b is absent: no b"
            ]
        );
    }
}
