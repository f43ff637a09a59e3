//! Interfaces of one network namespace that come, go and change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::abi::Direction;
use super::board::{Board, Missing};
use super::config::{Mode, Scope};
use super::event::Event;
use super::hook::{Hook, choose};
use super::links::{Changed, Interface, interfaces, kernel_counts};
use super::port::{Change, Port};
use super::programs::Programs;

/// What happens to the interfaces of a namespace, and what is done about it. Belongs to a thread that is in it.
pub(crate) struct Follower {
    scope: Scope,
    mode: Mode,
    /// Number of the namespace on the board.
    number: usize,
    labels: Vec<(&'static str, String)>,
    board: Arc<Board>,
    programs: Programs,
    /// By index, which a rename leaves alone.
    ports: BTreeMap<i32, Port>,
    missing: Option<Vec<String>>,
    is_blind: bool,
}

impl Follower {
    pub fn new(
        scope: Scope,
        mode: Mode,
        number: usize,
        labels: Vec<(&'static str, String)>,
        board: Arc<Board>,
        programs: Programs,
    ) -> Self {
        Self {
            scope,
            mode,
            number,
            labels,
            board,
            programs,
            ports: BTreeMap::new(),
            missing: None,
            is_blind: false,
        }
    }

    /// Makes what is attached fit the interfaces that there are.
    pub fn follow(&mut self, changed: &Changed, tell: &mut dyn FnMut(Event)) {
        for index in &changed.gone {
            self.forget(*index, tell);
        }
        let present = match interfaces() {
            Ok(present) => present,
            Err(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    tell(Event::Blind { error: error.to_string() });
                }
                return;
            }
        };
        self.is_blind = false;
        let wanted: Vec<&Interface> =
            lower_first(&present).into_iter().filter(|there| self.wants(there)).collect();
        let indexes: BTreeSet<i32> = wanted.iter().map(|there| there.index).collect();
        let gone: Vec<i32> = self.ports.keys().filter(|index| !indexes.contains(index)).copied().collect();
        for index in gone {
            self.forget(index, tell);
        }
        for there in wanted {
            self.meet(there, changed.touched.contains(&there.index), tell);
        }
        self.note_missing(&present, tell);
    }

    /// Looks after what is attached: is it there, is it first, does it see what the kernel counts?
    pub fn verify(&mut self, retry: bool, compare: bool, tell: &mut dyn FnMut(Event)) {
        let counts = if compare { kernel_counts().unwrap_or_default() } else { Default::default() };
        let indexes: Vec<i32> = self.ports.keys().copied().collect();
        for index in indexes {
            let Some(port) = self.ports.get_mut(&index) else { continue };
            let lost = port.is_lost();
            let mut changes = port.lead();
            if lost || retry {
                changes.extend(port.retry(self.mode, &self.programs));
            }
            if let Some(count) = counts.get(&index) {
                changes.extend(port.compare(*count));
            }
            if !changes.is_empty() {
                self.told(index, changes, lost, tell);
                self.show(index);
            }
        }
    }

    fn wants(&self, there: &Interface) -> bool {
        self.scope.wants(&there.name, &there.altnames)
    }

    /// One that is new is attached to; of one that is known, what was refused is tried again if anything happened to it.
    fn meet(&mut self, there: &Interface, touched: bool, tell: &mut dyn FnMut(Event)) {
        match self.ports.get_mut(&there.index) {
            None => match Port::open(there.clone(), self.mode, &self.programs) {
                Ok(port) => {
                    let changes = port.told();
                    self.ports.insert(there.index, port);
                    self.show(there.index);
                    self.told(there.index, changes, false, tell);
                }
                Err(error) => tell(Event::Blind { error: format!("{}: no counters: {error:#}", there.name) }),
            },
            Some(port) => {
                let from = port.on.name.clone();
                let changed = port.on != *there;
                port.on = there.clone();
                if from != there.name {
                    tell(Event::Renamed { from, to: there.name.clone() });
                }
                let lost = port.is_lost();
                let changes =
                    if touched || changed || lost { port.retry(self.mode, &self.programs) } else { vec![] };
                if changed || !changes.is_empty() {
                    self.show(there.index);
                }
                self.told(there.index, changes, lost, tell);
            }
        }
    }

    fn forget(&mut self, index: i32, tell: &mut dyn FnMut(Event)) {
        if let Some(port) = self.ports.remove(&index) {
            self.board.remove(self.number, index);
            tell(Event::Gone { interface: self.shown_name(&port.on.name) });
        }
    }

    fn show(&self, index: i32) {
        if let Some(port) = self.ports.get(&index) {
            let exact = self.scope.names(&port.on.name, &port.on.altnames);
            self.board.show(self.number, &self.labels, port, exact);
        }
    }

    fn note_missing(&mut self, present: &[Interface], tell: &mut dyn FnMut(Event)) {
        let is_there = |name: &str| present.iter().any(|there| there.is_called(name));
        let names: Vec<String> =
            self.scope.exact_names().filter(|name| !is_there(name)).map(String::from).collect();
        if self.missing.as_ref() == Some(&names) {
            return;
        }
        for name in &names {
            if self.missing.as_ref().is_none_or(|before| !before.contains(name)) {
                tell(Event::Missing { interface: self.shown_name(name) });
            }
        }
        self.board
            .missing(self.number, Missing { labels: self.labels.clone(), names: names.clone(), error: None });
        self.missing = Some(names);
    }

    fn shown_name(&self, name: &str) -> String {
        let place = self.labels.iter().map(|(kind, of)| format!(" ({kind} {of})")).collect::<String>();
        format!("{name}{place}")
    }

    fn told(&self, index: i32, changes: Vec<Change>, lost: bool, tell: &mut dyn FnMut(Event)) {
        let Some(port) = self.ports.get(&index) else { return };
        let name = || self.shown_name(&port.on.name);
        let mut attached: Option<(Direction, Option<Hook>, String)> = None;
        for change in changes {
            match change {
                Change::Attached { direction, .. } if lost => {
                    tell(Event::Restored { interface: name(), direction: direction.label() });
                }
                Change::Attached { direction: Direction::Ingress, hook, reason } => {
                    attached = Some((Direction::Ingress, Some(hook), reason));
                }
                Change::Attached { direction, .. } => {
                    attached.get_or_insert((direction, port.hook(), String::new()));
                }
                Change::Refused { direction, refusal } => {
                    tell(Event::Refused { interface: name(), direction: direction.label(), refusal });
                }
                Change::Moved { direction, before } => {
                    tell(Event::Moved { interface: name(), direction: direction.label(), before });
                }
                Change::Hidden { direction, packets } => {
                    tell(Event::Hidden { interface: name(), direction: direction.label(), packets });
                }
                Change::Seen { direction } => {
                    tell(Event::Seen { interface: name(), direction: direction.label() })
                }
            }
        }
        if let Some((_, hook, reason)) = attached {
            tell(Event::Attached { interface: name(), hook, reason });
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.board.clear(self.number);
    }
}

/// Devices before those above them: the kernel takes no XDP program below one that has one.
fn lower_first(all: &[Interface]) -> Vec<&Interface> {
    let masters: BTreeSet<i32> = all.iter().filter_map(|one| one.master).collect();
    let mut sorted: Vec<&Interface> = all.iter().collect();
    // A bridge may be the port of no bridge, but a bond may: those with a master and none below come first.
    sorted.sort_by_key(|one| (masters.contains(&one.index), one.master.is_none(), one.index));
    sorted
}

/// For each interface of the configuration that is there: what it will be counted by, and why. Attaches nothing.
///
/// # Errors
/// If the kernel does not list its interfaces.
pub fn preview(scope: &Scope, mode: Mode) -> std::io::Result<Vec<String>> {
    let all = interfaces()?;
    let mut lines: Vec<String> = all
        .iter()
        .filter(|there| scope.wants(&there.name, &there.altnames))
        .map(|there| match choose(there, mode) {
            Ok(choice) => {
                let hooks: Vec<_> = choice.hooks.iter().map(|hook| hook.phrase()).collect();
                format!("{}: {} ({})", there.name, hooks.join(", else "), choice.reason)
            }
            Err(why) => format!("{}: nothing that comes in: {why}", there.name),
        })
        .collect();
    let missing = scope.exact_names().filter(|name| !all.iter().any(|there| there.is_called(name)));
    lines.extend(missing.map(|name| format!("{name}: there is no such interface (yet)")));
    Ok(lines)
}
