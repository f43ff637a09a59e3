//! What a scrape reads. The threads that attach update it, so that a scrape never waits for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::abi::Direction;
use super::collect::Reading;
use super::config::Space;
use super::hook::Hook;
use super::interface_table::Entry;
use super::port::Port;
use super::refusal::AttachRefusal;
use crate::mutex::lock;

/// The state of one interface at its last check.
#[derive(Debug, Clone)]
pub(crate) struct InterfaceStatus {
    pub labels: Labels,
    pub name: String,
    /// Whether it is configured by its exact name.
    pub exact: bool,
    pub hook: Option<Hook>,
    pub egress: bool,
    /// The link speed in bytes per second, from its driver.
    pub speed: Option<u64>,
    /// For either direction.
    pub refusals: Vec<(Direction, AttachRefusal)>,
    pub entry: Arc<Entry>,
}

#[derive(Debug, Default)]
pub(crate) struct NetworkStatus {
    ports: Mutex<Ports>,
    /// By namespace: exact names without an interface; or why the namespace cannot be entered.
    missing: Mutex<BTreeMap<usize, Missing>>,
}

#[derive(Debug, Default)]
struct Ports {
    /// By namespace and index.
    known: BTreeMap<(usize, i32), Arc<InterfaceStatus>>,
    /// Labels of interfaces that remain to be attached, in order.
    waiting: BTreeMap<usize, VecDeque<(i32, Labels)>>,
}

/// Names and values of the labels that identify an interface.
pub(crate) type Labels = Vec<(&'static str, String)>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Missing {
    pub labels: Labels,
    pub names: Vec<String>,
    pub error: Option<String>,
}

/// The labels that identify a namespace.
pub(crate) fn labels(space: &Space) -> Labels {
    match space {
        Space::Own => Vec::new(),
        Space::Netns(name) => vec![("netns", name.clone())],
        Space::Container(name) => vec![("container", name.clone())],
    }
}

impl NetworkStatus {
    pub fn show(&self, space: usize, labels: Labels, port: &Port, exact: bool) {
        let refusals =
            Direction::ALL.iter().filter_map(|direction| Some((*direction, port.refusal(*direction)?)));
        let interface = InterfaceStatus {
            labels,
            name: port.on.name.clone(),
            exact,
            hook: port.hook(),
            egress: port.is_sending(),
            speed: port.on.speed(),
            refusals: refusals.collect(),
            entry: port.entry(),
        };
        let mut ports = lock(&self.ports);
        if let Some(waiting) = ports.waiting.get_mut(&space) {
            waiting.retain(|(index, _)| *index != port.on.index);
        }
        ports.known.insert((space, port.on.index), Arc::new(interface));
    }

    pub fn remove(&self, space: usize, index: i32) {
        let removed = lock(&self.ports).known.remove(&(space, index));
        // Kernel memory is freed without holding the lock.
        drop(removed);
    }

    pub fn clear(&self, space: usize) {
        let mut ports = lock(&self.ports);
        ports.waiting.remove(&space);
        let (removed, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut ports.known).into_iter().partition(|((of, _), _)| *of == space);
        ports.known = kept;
        drop(ports);
        drop(removed);
    }

    /// Sets the index and labels of the interfaces that remain to be attached.
    pub fn waiting(&self, space: usize, interfaces: impl Iterator<Item = (i32, Labels)>) {
        lock(&self.ports).waiting.insert(space, interfaces.collect());
    }

    pub fn missing(&self, space: usize, missing: Missing) {
        lock(&self.missing).insert(space, missing);
    }

    /// All interfaces, by name.
    pub fn all(&self) -> Vec<Arc<InterfaceStatus>> {
        self.all_and_waiting().0
    }

    fn all_and_waiting(&self) -> (Vec<Arc<InterfaceStatus>>, Vec<Labels>) {
        let ports = lock(&self.ports);
        let mut all: Vec<_> = ports.known.values().map(Arc::clone).collect();
        let waiting = ports.waiting.values().flatten().map(|(_, labels)| labels.clone()).collect();
        drop(ports);
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        (all, waiting)
    }

    /// The current counters, and what is missing.
    pub fn readings(&self) -> Vec<Reading> {
        let (all, waiting) = self.all_and_waiting();
        let mut readings: Vec<Reading> = all.iter().map(|interface| interface.read()).collect();
        readings.extend(waiting.into_iter().map(|labels| not_counted(labels, "pending")));
        for missing in lock(&self.missing).values() {
            readings.extend(missing.names.iter().map(|name| {
                let mut labels = vec![("interface", name.clone())];
                labels.extend_from_slice(&missing.labels);
                not_counted(labels, "missing")
            }));
        }
        readings
    }

    /// Why not everything that is configured is counted. What only matches a glob is not required.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for missing in lock(&self.missing).values() {
            let place =
                missing.labels.iter().map(|(kind, name)| format!(" in {kind} {name}")).collect::<String>();
            match &missing.error {
                Some(error) => reasons.push(format!("network{place}: {error}")),
                None => reasons
                    .extend(missing.names.iter().map(|name| format!("network: no interface {name}{place}"))),
            }
        }
        let (all, waiting) = self.all_and_waiting();
        if let Some(next) = waiting.first() {
            let next = next.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(" of ");
            reasons.push(format!("network: {} interfaces not attached yet, next is {next}", waiting.len()));
        }
        for interface in all {
            let failed = interface
                .refusals
                .iter()
                .filter(|(_, refusal)| interface.exact || refusal.reason != "no_hook");
            reasons.extend(failed.map(|(direction, refusal)| {
                format!("network: {} of {}: {refusal}", direction.label(), interface.name)
            }));
        }
        reasons
    }
}

fn not_counted(labels: Labels, reason: &'static str) -> Reading {
    let refused = Direction::ALL.iter().map(|direction| (direction.label(), reason)).collect();
    Reading { labels, refused, ..Reading::default() }
}

impl InterfaceStatus {
    fn read(&self) -> Reading {
        Reading {
            labels: self.labels.clone(),
            ingress: self.hook.map(|hook| (self.entry.counters(Direction::Ingress), hook)),
            speed: self.speed,
            egress: self.egress.then(|| self.entry.counters(Direction::Egress)),
            refused: self
                .refusals
                .iter()
                .map(|(direction, refusal)| (direction.label(), refusal.reason))
                .collect(),
        }
    }
}
