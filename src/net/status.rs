//! What a scrape is shown. Whoever attaches puts it here, so that a scrape waits for nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::abi::Direction;
use super::collect::Reading;
use super::config::Space;
use super::hook::Hook;
use super::interface_table::Entry;
use super::port::Port;
use super::refusal::Refusal;

/// One interface, as it was when it was last looked at.
#[derive(Debug, Clone)]
pub(crate) struct InterfaceStatus {
    pub labels: Labels,
    pub name: String,
    /// Whether the configuration has its name, and not only a pattern that fits.
    pub exact: bool,
    pub hook: Option<Hook>,
    pub egress: bool,
    /// Of the link, in bytes per second, as its driver says.
    pub speed: Option<u64>,
    /// Of both directions.
    pub refusals: Vec<(Direction, Refusal)>,
    pub entry: Arc<Entry>,
}

#[derive(Debug, Default)]
pub(crate) struct NetworkStatus {
    ports: Mutex<Ports>,
    /// By namespace: names of the configuration that no interface has; or why the namespace cannot be seen at all.
    missing: Mutex<BTreeMap<usize, Missing>>,
}

#[derive(Debug, Default)]
struct Ports {
    /// By namespace and index.
    known: BTreeMap<(usize, i32), Arc<InterfaceStatus>>,
    /// Labels of those that are yet to be attached to, in that order.
    waiting: BTreeMap<usize, VecDeque<(i32, Labels)>>,
}

/// Name and value of labels that tell an interface from others.
pub(crate) type Labels = Vec<(&'static str, String)>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Missing {
    pub labels: Labels,
    pub names: Vec<String>,
    pub error: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values are only replaced whole, so that a panic elsewhere leaves them usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The labels by which series of a namespace are told from those of others.
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
        // Memory of the kernel is given back without the lock.
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

    /// Index and labels of interfaces that are yet to be attached to.
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

    /// What was counted so far, and what is missing.
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

    /// Why not all is counted that the configuration names. What only fits a pattern may be what no program can see.
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
