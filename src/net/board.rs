//! What a scrape is shown. Whoever attaches puts it here, so that a scrape waits for nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::abi::Direction;
use super::attach::Refusal;
use super::collect::Reading;
use super::config::Space;
use super::hook::Hook;
use super::port::Port;
use super::programs::Entry;

/// One interface, as it was when it was last looked at.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub labels: Labels,
    pub name: String,
    /// Whether the configuration has its name, and not only a pattern that fits.
    pub exact: bool,
    pub hook: Option<Hook>,
    pub egress: bool,
    /// Of both directions.
    pub refusals: Vec<(Direction, Refusal)>,
    pub entry: Arc<Entry>,
}

#[derive(Debug, Default)]
pub(crate) struct Board {
    /// By namespace and index.
    ports: Mutex<BTreeMap<(usize, i32), Arc<Shown>>>,
    /// By namespace: names of the configuration that no interface has; or why the namespace cannot be seen at all.
    missing: Mutex<BTreeMap<usize, Missing>>,
    /// By namespace, the labels of interfaces that are yet to be attached to.
    waiting: Mutex<BTreeMap<usize, Vec<Labels>>>,
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

impl Board {
    pub fn show(&self, space: usize, labels: Labels, port: &Port, exact: bool) {
        let refusals =
            Direction::ALL.iter().filter_map(|direction| Some((*direction, port.refusal(*direction)?)));
        let shown = Shown {
            labels,
            name: port.on.name.clone(),
            exact,
            hook: port.hook(),
            egress: port.is_sending(),
            refusals: refusals.collect(),
            entry: port.entry(),
        };
        lock(&self.ports).insert((space, port.on.index), Arc::new(shown));
    }

    pub fn remove(&self, space: usize, index: i32) {
        let removed = lock(&self.ports).remove(&(space, index));
        // Memory of the kernel is given back without the lock.
        drop(removed);
    }

    pub fn clear(&self, space: usize) {
        let all = std::mem::take(&mut *lock(&self.ports));
        let (removed, mut kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|((of, _), _)| *of == space);
        lock(&self.ports).append(&mut kept);
        lock(&self.waiting).remove(&space);
        drop(removed);
    }

    pub fn waiting(&self, space: usize, interfaces: Vec<Labels>) {
        lock(&self.waiting).insert(space, interfaces);
    }

    pub fn missing(&self, space: usize, missing: Missing) {
        lock(&self.missing).insert(space, missing);
    }

    /// All interfaces, by name.
    pub fn all(&self) -> Vec<Arc<Shown>> {
        let mut all: Vec<_> = lock(&self.ports).values().map(Arc::clone).collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        all
    }

    /// What was counted so far, and what is missing.
    pub fn readings(&self) -> Vec<Reading> {
        let mut readings: Vec<Reading> = self.all().iter().map(|shown| shown.read()).collect();
        for missing in lock(&self.missing).values() {
            readings.extend(missing.names.iter().map(|name| {
                let mut labels = vec![("interface", name.clone())];
                labels.extend_from_slice(&missing.labels);
                not_counted(labels, "missing")
            }));
        }
        readings.extend(
            lock(&self.waiting).values().flatten().map(|labels| not_counted(labels.clone(), "pending")),
        );
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
                None => reasons.extend(
                    missing.names.iter().map(|name| format!("network: there is no interface {name}{place}")),
                ),
            }
        }
        for waiting in lock(&self.waiting).values().filter(|waiting| !waiting.is_empty()) {
            let first = waiting[0].iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(" of ");
            reasons.push(format!(
                "network: {} interfaces are yet to be attached to, {first} is next",
                waiting.len()
            ));
        }
        for shown in self.all() {
            let told =
                shown.refusals.iter().filter(|(_, refusal)| shown.exact || refusal.reason != "no_hook");
            reasons.extend(told.map(|(direction, refusal)| {
                format!("network: {} of {}: {refusal}", direction.label(), shown.name)
            }));
        }
        reasons
    }
}

fn not_counted(labels: Labels, reason: &'static str) -> Reading {
    let refused = Direction::ALL.iter().map(|direction| (direction.label(), reason)).collect();
    Reading { labels, refused, ..Reading::default() }
}

impl Shown {
    fn read(&self) -> Reading {
        Reading {
            labels: self.labels.clone(),
            ingress: self.hook.map(|hook| (self.entry.counters(Direction::Ingress), hook)),
            egress: self.egress.then(|| self.entry.counters(Direction::Egress)),
            refused: self
                .refusals
                .iter()
                .map(|(direction, refusal)| (direction.label(), refusal.reason))
                .collect(),
        }
    }
}
