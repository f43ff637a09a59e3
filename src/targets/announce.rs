//! Log messages about attached files.

use log::Level;

use super::attached_file::AttachedFile;
use super::probe_state::ProbeState;
use crate::plan::{Plan, TargetPlan};

/// Probes that one message names.
const MAX_NAMED: usize = 4;

/// With `elsewhere`, the probes missing from this file are in libraries that its process has loaded.
pub(super) fn announce(plan: &Plan, planned: &TargetPlan, new_file: &AttachedFile, elsewhere: bool) {
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
    let whatever_runs = planned.selector.matches_any_program();
    let has_none = new_file.probes.iter().all(|of| matches!(of.state, ProbeState::Absent(_)));
    let level = level(attached, elsewhere, whatever_runs && has_none);
    let of_others = if whatever_runs && has_none { Level::Info } else { Level::Warn };
    others.lines().for_each(|line| log::log!(of_others, "{line}"));
    let line = format!(
        "Attached {attached}/{} probes to {} ({})",
        new_file.probes.len(),
        planned.name,
        new_file.display
    );
    match level {
        Level::Error => {
            log::error!("{line}; `exporter probes {}` lists the probes of the file", new_file.display)
        }
        level => log::log!(level, "{line}"),
    }
}

/// The log level. A container also runs shells, and first of all its engine's own helper; that these have none of the
/// probes is not an error.
fn level(attached: usize, elsewhere: bool, is_other_program: bool) -> Level {
    match attached {
        0 if elsewhere => Level::Debug,
        0 if is_other_program => Level::Info,
        0 => Level::Error,
        _ => Level::Info,
    }
}

/// Probes that are not attached, grouped by reason: an unreadable file has many.
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
            let shown = names[..names.len().min(MAX_NAMED)].join(", ");
            let more = match names.len().saturating_sub(MAX_NAMED) {
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
    use crate::selectors::{Pattern, Predicate, Selector};

    #[test]
    fn unprobed_helper_in_a_container_is_not_an_error() {
        let container = Predicate::Container(Pattern::literal("web"));
        let mut selector = Selector::of(container);
        assert!(selector.matches_any_program());
        assert_eq!(level(0, false, true), Level::Info);
        selector.processes.predicates.push(Predicate::Process(Pattern::literal("nginx")));
        assert!(!selector.matches_any_program(), "this one is meant");
        assert!(!Selector::process("nginx").matches_any_program());
        assert!(!Selector::binary("/bin/true").matches_any_program());
        assert_eq!(level(0, false, false), Level::Error);
        assert_eq!((level(0, true, false), level(1, false, true)), (Level::Debug, Level::Info));
    }

    #[test]
    fn shared_reason_is_reported_once() {
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
