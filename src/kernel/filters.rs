//! Filters of target processes, in the form that the kernel uses.

use std::collections::BTreeSet;

use crate::abi::{FILTER_WORDS, MAX_FAMILIES, bytes_of, filter, filter_flag, filter_kind, glob, member_key};
use crate::plan::Plan;
use crate::selectors::{Automaton, KernelTest, Pattern, Predicate, ProcessSelector};

/// Words of a full container id.
const ID_WORDS: usize = 8;

/// A target's filter: a row of the filter table for each predicate, all of which must match.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Filter {
    rows: Vec<Row>,
    children: bool,
}

#[derive(Debug, Clone)]
struct Row {
    is: filter,
    /// Ids of containers or pods.
    members: BTreeSet<String>,
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        bytes_of(&self.is) == bytes_of(&other.is) && self.members == other.members
    }
}

/// The rows and globs of all targets.
#[derive(Debug, Default)]
pub(crate) struct FilterIndex {
    /// The rows of each target, and the glob that each of them uses. A target's first row has its own number; further
    /// rows and those of candidates come after all of these.
    rows: Vec<Vec<(u32, u32)>>,
    /// The number of rows.
    pub(super) count: u32,
    /// The globs that the kernel evaluates, by number.
    pub(super) globs: Vec<glob>,
    /// Targets with children.
    pub(super) families: Vec<u32>,
    /// Whether any row has members, or uses the cgroup or command line.
    pub(super) has_members: bool,
    pub(super) is_by_cgroup: bool,
    pub(super) has_lines: bool,
}

impl FilterIndex {
    pub(crate) fn of(plan: &Plan) -> Self {
        let targets = plan.targets.len() as u32;
        let mut made = Self { count: 2 * targets, ..Self::default() };
        for (target, planned) in (0..).zip(&plan.targets) {
            let processes = &planned.selector.processes;
            let mut rows = Vec::new();
            for predicate in &processes.predicates {
                rows.push((if rows.is_empty() { target } else { made.count }, made.globs.len() as u32));
                made.count += u32::from(rows.len() > 1);
                let automaton = pattern_of(predicate).and_then(Automaton::of);
                made.globs.extend(automaton.as_ref().map(as_glob));
                made.has_members |= matches!(predicate.test(), KernelTest::Members { .. });
            }
            made.rows.push(rows);
            made.is_by_cgroup |= processes.is_by_cgroup();
            made.has_lines |= processes.uses_cmdline();
            made.families.extend(processes.children.then_some(target));
        }
        // The configuration rejects more.
        made.families.truncate(MAX_FAMILIES);
        made
    }

    /// The entries of the target's filter: numbers and rows, and the members of each.
    pub(super) fn place<'a>(
        &self,
        target: usize,
        of: &'a Filter,
        edition: u32,
    ) -> Vec<(u32, filter, &'a BTreeSet<String>)> {
        let numbers = self.rows.get(target).map_or(&[][..], Vec::as_slice);
        let row = |(n, row): (usize, &'a Row)| {
            let (number, glob) = numbers.get(n).copied().unwrap_or((target as u32, 0));
            let mut made = filter { edition, glob, ..row.is };
            made.next = numbers.get(n + 1).map_or(0, |(next, _)| *next);
            made.flags = if n == 0 && of.children { filter_flag::FILTER_CHILDREN.0 } else { 0 };
            (number, made, &row.members)
        };
        // The first row last, because it leads to the others.
        of.rows.iter().enumerate().map(row).rev().collect()
    }
}

/// The pattern, if the kernel evaluates it as an automaton.
fn pattern_of(predicate: &Predicate) -> Option<&Pattern> {
    match predicate.test() {
        KernelTest::Name(name) => Some(name).filter(|name| name.as_literal().is_none()),
        KernelTest::Cmdline(pattern) | KernelTest::Cgroup(pattern) => Some(pattern),
        KernelTest::Pid(_) | KernelTest::Members { .. } => None,
    }
}

impl Filter {
    /// The filter for a selector. `began` is the start time of the single process, or 0 for the first process that hits
    /// a probe;
    /// `members` are the containers or pods of each predicate.
    pub(crate) fn of(processes: &ProcessSelector, began: u64, members: &[BTreeSet<String>]) -> Self {
        let row = |(n, predicate): (usize, &Predicate)| {
            let is = match predicate.test() {
                KernelTest::Pid(pid) => {
                    filter { kind: filter_kind::FILTER_PROCESS.0, tgid: pid, began, ..filter::default() }
                }
                KernelTest::Name(name) => match name.as_literal() {
                    Some(name) => filter { kind: filter_kind::FILTER_NAME.0, ..named(name) },
                    None => of_kind(filter_kind::FILTER_NAME_GLOB),
                },
                KernelTest::Cmdline(_) => of_kind(filter_kind::FILTER_CMDLINE),
                KernelTest::Cgroup(_) => of_kind(filter_kind::FILTER_CGROUP),
                KernelTest::Members { begin } => container(begin.unwrap_or_default()),
            };
            Row { is, members: members.get(n).cloned().unwrap_or_default() }
        };
        Self {
            rows: processes.predicates.iter().enumerate().map(row).collect(),
            children: processes.children,
        }
    }

    /// Matches processes by the name of the leader or executable.
    pub(crate) fn name(name: &str) -> Self {
        let is = filter { kind: filter_kind::FILTER_NAME.0, ..named(name) };
        Self { rows: vec![Row { is, members: BTreeSet::new() }], children: false }
    }

    /// The start time of the single process, if known.
    pub(crate) fn began(&self) -> u64 {
        self.rows.iter().map(|row| row.is.began).max().unwrap_or_default()
    }
}

fn of_kind(kind: filter_kind) -> filter {
    filter { kind: kind.0, ..filter::default() }
}

/// Matches members, and containers whose id begins with `id`; none if it is empty.
fn container(id: &str) -> filter {
    let mut made = filter { kind: filter_kind::FILTER_MEMBERS.0, ..named(id) };
    let mask = words::<FILTER_WORDS>(&vec![0xff; id.len().min(8 * ID_WORDS)]);
    made.name[ID_WORDS..2 * ID_WORDS].copy_from_slice(&mask[..ID_WORDS]);
    made
}

/// The key of a member of the filter with this number.
pub(super) fn member(number: u32, id: &str) -> member_key {
    member_key { filter: number, id: words(id.as_bytes()), ..member_key::default() }
}

fn named(name: &str) -> filter {
    filter { length: name.len() as u32, name: words(name.as_bytes()), ..filter::default() }
}

/// The bytes in the kernel's words, padded with zeros.
pub(super) fn words<const COUNT: usize>(bytes: &[u8]) -> [u64; COUNT] {
    let mut words = [0; COUNT];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(all);
    }
    words
}

/// The automaton in the kernel's form.
pub(super) fn as_glob(of: &Automaton) -> glob {
    let halves = |states: u128| [states as u64, (states >> 64) as u64];
    glob { any: halves(of.any), within: halves(of.within), end: of.end, to: of.to.map(halves), pad: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_id_is_compared_as_a_prefix() {
        let row = container("0123456789");
        assert_eq!(row.name[ID_WORDS..ID_WORDS + 3], [u64::MAX, 0xffff, 0]);
        assert_eq!(row.length, 10);
        assert_eq!(row.name[0], u64::from_ne_bytes(*b"01234567"));
    }

    #[test]
    fn glob_matches_the_kernel_layout() {
        let automaton = Automaton::of(&Pattern::new("a*").unwrap()).unwrap();
        let made = as_glob(&automaton);
        let bytes = bytes_of(&made);
        assert_eq!(bytes.len(), size_of::<glob>());
        assert_eq!(bytes[std::mem::offset_of!(glob, end)], 1);
        assert_eq!(bytes[std::mem::offset_of!(glob, to) + 16 * usize::from(b'a')], 2);
    }
}
