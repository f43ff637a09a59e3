//! Follows the interfaces of one network namespace as they appear, disappear and change.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::abi::Direction;
use super::config::{Mode, Scope};
use super::event::Event;
use super::hook::{Hook, receives_nothing};
use super::links::{Changed, Changes, Interface, interfaces, interfaces_and_counts};
use super::port::{Change, Port};
use super::programs::Programs;
use super::refusal::AttachRefusal;
use super::status::{Missing, NetworkStatus};

/// Interfaces that are attached in one step regardless of the time it takes. The kernel needs 12 ms to attach or detach
/// a TC program, during which it waits for an RCU grace period while holding the lock for network configuration; the
/// others follow as time allows.
const MIN_BATCH: usize = 4;

/// The counted part of a network namespace.
#[derive(Debug)]
pub(crate) struct Area {
    pub scope: Scope,
    pub mode: Mode,
    /// The number of the namespace in the status.
    pub number: usize,
    pub labels: Vec<(&'static str, String)>,
}

/// Follows the interfaces of a namespace, on a thread that is in it.
pub(crate) struct Follower {
    area: Area,
    status: Arc<NetworkStatus>,
    programs: Programs,
    changes: Changes,
    /// Reported changes that are not handled yet.
    reported: Changed,
    /// By index, which survives a rename.
    ports: BTreeMap<i32, Port>,
    /// Interfaces to be attached, in order.
    waiting: VecDeque<Interface>,
    missing: Option<Vec<String>>,
    is_unlisted: bool,
}

impl Follower {
    /// `changes` must be subscribed before the interfaces are first listed.
    pub fn new(area: Area, status: Arc<NetworkStatus>, programs: Programs, changes: Changes) -> Self {
        Self {
            area,
            status,
            programs,
            changes,
            reported: Changed::default(),
            ports: BTreeMap::new(),
            waiting: VecDeque::new(),
            missing: None,
            is_unlisted: false,
        }
    }

    /// Selects the interfaces to be counted. Those that are counted already and still selected are not touched.
    pub fn select(&mut self, scope: Scope, report: &mut dyn FnMut(Event)) {
        self.area.scope = scope;
        self.follow(report);
        // Exact names are expected to exist.
        self.ports.keys().for_each(|index| self.show(*index));
    }

    /// What to poll for changes.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Whether changes were reported since the last [`Self::follow`].
    pub fn has_news(&mut self) -> bool {
        self.listen();
        self.reported != Changed::default()
    }

    fn listen(&mut self) {
        let more = self.changes.take();
        self.reported.gone.extend(more.gone);
        self.reported.touched.extend(more.touched);
        self.reported.overrun |= more.overrun;
    }

    /// Adapts attachments to the existing interfaces; new ones are attached by [`Self::attach_more`].
    pub fn follow(&mut self, report: &mut dyn FnMut(Event)) {
        // The kernel reports a deletion before it reuses the index. Reports taken after the list was read therefore
        // show which entries of the list are new interfaces, or deleted since; the next list shows the latter.
        let mut present = interfaces();
        self.listen();
        for _ in 0..2 {
            let is_old = |there: &Interface| self.reported.gone.contains(&there.index);
            if !present.as_ref().is_ok_and(|present| present.iter().any(is_old)) {
                break;
            }
            present = interfaces();
            self.listen();
        }
        let changed = std::mem::take(&mut self.reported);
        for index in &changed.gone {
            self.forget(*index, |interface| Event::Gone { interface }, report);
        }
        match present {
            Ok(present) => self.apply(&present, &changed, report),
            Err(error) => self.unlisted(&error, report),
        }
    }

    fn unlisted(&mut self, error: &std::io::Error, report: &mut dyn FnMut(Event)) {
        if !std::mem::replace(&mut self.is_unlisted, true) {
            report(Event::Unlisted { error: error.to_string() });
        }
    }

    fn apply(&mut self, present: &[Interface], changed: &Changed, report: &mut dyn FnMut(Event)) {
        self.is_unlisted = false;
        let wanted: Vec<&Interface> =
            lower_first(present).into_iter().filter(|there| self.wants(there)).collect();
        let indexes: BTreeSet<i32> = wanted.iter().map(|there| there.index).collect();
        self.programs.forget_earlier_but(&indexes);
        let gone: Vec<i32> = self.ports.keys().filter(|index| !indexes.contains(index)).copied().collect();
        for index in gone {
            let is_there = present.iter().any(|there| there.index == index);
            let event = |interface| {
                if is_there { Event::Unwanted { interface } } else { Event::Gone { interface } }
            };
            self.forget(index, event, report);
        }
        for there in &wanted {
            let touched = changed.overrun || changed.touched.contains(&there.index);
            self.update(there, touched, report);
        }
        let is_new = |there: &&&Interface| !self.ports.contains_key(&there.index);
        let (exact, others): (Vec<&Interface>, Vec<&Interface>) = wanted
            .iter()
            .filter(is_new)
            .partition(|there| self.area.scope.names(&there.name, &there.altnames));
        self.waiting = exact.into_iter().chain(others).cloned().collect();
        let waiting = self.waiting.iter().map(|there| (there.index, self.labels_of(&there.name)));
        self.status.waiting(self.area.number, waiting);
        self.report_missing(present, report);
    }

    /// Whether interfaces remain to be attached.
    pub fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Attaches new interfaces: a few in any case, the others until `end`.
    pub fn attach_more(&mut self, end: Instant, report: &mut dyn FnMut(Event)) {
        if self.waiting.is_empty() {
            return;
        }
        if let Err(error) = self.programs.reserve(self.waiting.len()) {
            report(Event::NoCounters { interface: None, error: format!("{error:#}") });
        }
        for number in 0.. {
            if number >= MIN_BATCH && Instant::now() >= end {
                break;
            }
            let Some(there) = self.waiting.pop_front() else { break };
            match Port::open(there.clone(), self.area.mode, &self.programs) {
                Ok(port) => {
                    let changes = port.reported();
                    self.ports.insert(there.index, port);
                    self.show(there.index);
                    self.log(there.index, changes, false, report);
                }
                Err(error) => {
                    report(Event::NoCounters { interface: Some(there.name), error: format!("{error:#}") });
                }
            }
        }
    }

    /// Verifies attachments: still attached and first in the chain; with `compare`, also that programs see what the
    /// kernel counts and that no interface was missed. The kernel sends no message when an interface that is down is
    /// renamed.
    pub fn verify(&mut self, retry: bool, compare: bool, report: &mut dyn FnMut(Event)) {
        let mut counts = HashMap::new();
        if compare {
            match interfaces_and_counts() {
                Ok(found) => {
                    let (present, found): (Vec<_>, Vec<_>) = found.into_iter().unzip();
                    counts = present.iter().map(|there| there.index).zip(found).collect();
                    self.apply(&present, &Changed::default(), report);
                }
                Err(error) => self.unlisted(&error, report),
            }
        }
        // Creates counters for later interfaces in advance. A failure is reported when they are needed.
        let _ = self.programs.reserve(0);
        let indexes: Vec<i32> = self.ports.keys().copied().collect();
        for index in indexes {
            let Some(port) = self.ports.get_mut(&index) else { continue };
            let places = port.look();
            let lost = places.any_lost();
            let mut changes = port.lead(&places);
            if lost || retry {
                changes.extend(port.retry(self.area.mode, &self.programs, &places));
            }
            if let Some(Some(count)) = counts.get(&index) {
                changes.extend(port.compare(*count));
            }
            if !changes.is_empty() && !self.is_another(index, lost) {
                self.show(index);
                self.log(index, changes, lost, report);
            }
        }
    }

    /// Whether a lost attachment belongs to a deleted interface whose index another one has now: its deletion is
    /// reported later.
    fn is_another(&mut self, index: i32, lost: bool) -> bool {
        if lost {
            self.listen();
        }
        lost && self.reported.gone.contains(&index)
    }

    fn wants(&self, there: &Interface) -> bool {
        self.area.scope.wants(&there.name, &there.altnames)
    }

    /// Updates a known interface. If anything about it changed, failed attachments are retried.
    fn update(&mut self, there: &Interface, touched: bool, report: &mut dyn FnMut(Event)) {
        let Some(port) = self.ports.get_mut(&there.index) else { return };
        let from = port.on.name.clone();
        let changed = port.on != *there;
        port.on = there.clone();
        if from != there.name {
            report(Event::Renamed { from, to: there.name.clone() });
        }
        let places = port.look();
        let lost = places.any_lost();
        let changes = if touched || changed || lost {
            port.retry(self.area.mode, &self.programs, &places)
        } else {
            vec![]
        };
        if self.is_another(there.index, lost) {
            return;
        }
        // The link speed may have changed, too.
        if touched || changed || !changes.is_empty() {
            self.show(there.index);
        }
        self.log(there.index, changes, lost, report);
    }

    fn forget(&mut self, index: i32, event: impl Fn(String) -> Event, report: &mut dyn FnMut(Event)) {
        if let Some(port) = self.ports.remove(&index) {
            self.status.remove(self.area.number, index);
            report(event(self.display_name(&port.on.name)));
        }
    }

    fn show(&self, index: i32) {
        if let Some(port) = self.ports.get(&index) {
            // A device that never receives is no reason to be not ready.
            let exact = self.area.scope.names(&port.on.name, &port.on.altnames)
                && receives_nothing(&port.on).is_none();
            self.status.show(self.area.number, self.labels_of(&port.on.name), port, exact);
        }
    }

    fn labels_of(&self, name: &str) -> Vec<(&'static str, String)> {
        std::iter::once(("interface", name.to_string())).chain(self.area.labels.iter().cloned()).collect()
    }

    fn report_missing(&mut self, present: &[Interface], report: &mut dyn FnMut(Event)) {
        let is_there = |name: &str| present.iter().any(|there| there.is_called(name));
        let names: Vec<String> =
            self.area.scope.exact_names().filter(|name| !is_there(name)).map(String::from).collect();
        if self.missing.as_ref() == Some(&names) {
            return;
        }
        for name in &names {
            if self.missing.as_ref().is_none_or(|before| !before.contains(name)) {
                report(Event::Missing { interface: self.display_name(name) });
            }
        }
        self.status.missing(
            self.area.number,
            Missing { labels: self.area.labels.clone(), names: names.clone(), error: None },
        );
        self.missing = Some(names);
    }

    fn display_name(&self, name: &str) -> String {
        let place = self.area.labels.iter().map(|(kind, of)| format!(" ({kind} {of})")).collect::<String>();
        format!("{name}{place}")
    }

    fn log(&self, index: i32, changes: Vec<Change>, lost: bool, report: &mut dyn FnMut(Event)) {
        let Some(port) = self.ports.get(&index) else { return };
        let name = || self.display_name(&port.on.name);
        let mut attached: Option<(Direction, Option<Hook>, String)> = None;
        let mut refused: Option<AttachRefusal> = None;
        for change in changes {
            match change {
                Change::Attached { direction, .. } if lost => {
                    report(Event::Restored { interface: name(), direction: direction.label() });
                }
                Change::Attached { direction: Direction::Ingress, hook, reason } => {
                    attached = Some((Direction::Ingress, Some(hook), reason));
                }
                Change::Attached { direction, .. } => {
                    attached.get_or_insert((direction, port.hook(), String::new()));
                }
                // What concerns both directions is reported once.
                Change::Refused { refusal, .. } if refused.as_ref() == Some(&refusal) => {}
                Change::Refused { direction, refusal } => {
                    refused = Some(refusal.clone());
                    report(Event::Refused { interface: name(), direction: direction.label(), refusal });
                }
                Change::Moved { direction, before } => {
                    report(Event::Moved { interface: name(), direction: direction.label(), before });
                }
                Change::Behind { direction, before } => {
                    report(Event::Behind { interface: name(), direction: direction.label(), before });
                }
                Change::Hidden { direction, packets } => {
                    report(Event::Hidden { interface: name(), direction: direction.label(), packets });
                }
                Change::Seen { direction } => {
                    report(Event::Seen { interface: name(), direction: direction.label() })
                }
            }
        }
        if let Some((_, hook, reason)) = attached {
            report(Event::Attached { interface: name(), hook, reason });
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.status.clear(self.area.number);
    }
}

/// Orders lower devices before upper ones, because the kernel rejects XDP below a device that has it, and those that are
/// up, which may have traffic already, before others.
fn lower_first(all: &[Interface]) -> Vec<&Interface> {
    let masters: BTreeSet<i32> = all.iter().filter_map(|one| one.master).collect();
    let mut sorted: Vec<&Interface> = all.iter().collect();
    // A bridge cannot be a port of a bridge, but a bond can: devices with a master and without lower ones come first.
    sorted.sort_by_key(|one| (masters.contains(&one.index), one.master.is_none(), !one.is_up, one.index));
    sorted
}

#[cfg(test)]
mod tests {
    use super::super::abi::Link;
    use super::*;

    #[test]
    fn lower_devices_and_those_that_are_up_come_first() {
        let interface = |index, master, is_up| Interface {
            name: format!("eth{index}"),
            altnames: Vec::new(),
            index,
            mtu: 1500,
            link: Link::Ethernet,
            loopback: false,
            kind: None,
            bus: None,
            master,
            is_up,
        };
        let all = [
            interface(1, None, false),
            interface(2, None, true),
            interface(3, None, true),
            interface(4, Some(3), false),
            interface(5, Some(3), true),
        ];
        let order: Vec<i32> = lower_first(&all).iter().map(|one| one.index).collect();
        assert_eq!(order, [5, 4, 2, 1, 3]);
    }
}
