//! The names of cgroups and processes in [`super::attribution`], and the counts of those that no longer exist.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::selectors::Belongs;

use super::counters::Sum;
use super::socket_abi::generated::types::holder;

/// Owners with series of their own; later ones are counted together.
const OWNERS: usize = 1000;

/// How many times an engine is asked for a container's name: it may write it down a moment later.
const MAX_LOOKUPS: u32 = 10;

/// The label value of owners without series of their own.
const OTHER: &str = "other";

/// The process label of a socket without a known process.
const UNKNOWN: &str = "unknown";

/// The key of one counter in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Holder {
    pub cgroup: u64,
    /// Empty if unknown.
    process: [u8; 16],
}

impl Holder {
    /// The key for everything that the kernel's table had no room for.
    pub const OTHERS: Self = Self { cgroup: 0, process: [0; 16] };

    pub fn from_bytes(key: &[u8]) -> Option<Self> {
        let (cgroup, process) = key.split_at_checked(8)?;
        Some(Self { cgroup: u64::from_ne_bytes(cgroup.try_into().ok()?), process: process.try_into().ok()? })
    }

    pub fn to_bytes(self) -> [u8; size_of::<holder>()] {
        let mut key = [0; size_of::<holder>()];
        key[..8].copy_from_slice(&self.cgroup.to_ne_bytes());
        key[8..].copy_from_slice(&self.process);
        key
    }

    fn process(&self) -> String {
        let name = self.process.split(|byte| *byte == 0).next().unwrap_or_default();
        if name.is_empty() { UNKNOWN.to_owned() } else { String::from_utf8_lossy(name).into_owned() }
    }
}

/// The owner of packets, as in labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Owner {
    /// Empty unless packets are counted by process.
    pub process: String,
    /// The systemd unit; outside of any unit, container or pod, the cgroup's path.
    pub unit: String,
    pub container: String,
    pub pod: String,
    pub namespace: String,
}

impl Owner {
    fn of(belongs: &Belongs) -> Self {
        let pod = belongs.pod.as_ref();
        let container = belongs.containers.last().map(ToString::to_string);
        // The unit of a container exists for it alone and is named by its id.
        let is_boxed = pod.is_some() || container.is_some();
        let unit = || belongs.unit().map_or_else(|| belongs.path.clone(), str::to_owned);
        Self {
            process: String::new(),
            unit: if is_boxed { String::new() } else { unit() },
            container: container.unwrap_or_default(),
            pod: pod.map(ToString::to_string).unwrap_or_default(),
            namespace: pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
        }
    }
}

/// By direction.
pub(super) type Sums = [Sum; 2];

fn add(to: &mut Sums, more: &Sums) {
    to.iter_mut().zip(more).for_each(|(to, more)| to.add(*more));
}

/// The names of holders, and the counts of those that were removed from the kernel's table.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Whether packets are counted by process.
    pub by_process: bool,
    owners: HashMap<Holder, Owner>,
    /// Containers without a name yet, and the number of look-ups.
    unnamed: BTreeMap<Holder, u32>,
    kept: BTreeMap<Owner, Sums>,
    /// Owners that have series.
    shown: BTreeSet<Owner>,
}

impl Names {
    pub fn new(by_process: bool) -> Self {
        Self { by_process, ..Self::default() }
    }

    fn other(&self) -> Owner {
        let other = || OTHER.to_owned();
        Owner {
            process: if self.by_process { other() } else { String::new() },
            unit: other(),
            ..Owner::default()
        }
    }

    /// Whether the name of a holder must be looked up.
    pub fn needs_name(&self, id: Holder) -> bool {
        !self.owners.contains_key(&id) || self.unnamed.get(&id).is_some_and(|asked| *asked < MAX_LOOKUPS)
    }

    /// Stores the owner of a holder; `None` if its cgroup no longer exists.
    pub fn learn(&mut self, id: Holder, belongs: Option<&Belongs>) {
        match belongs {
            Some(belongs) => {
                let process = if self.by_process { id.process() } else { String::new() };
                self.owners.insert(id, Owner { process, ..Owner::of(belongs) });
                if belongs.is_unnamed() {
                    *self.unnamed.entry(id).or_default() += 1;
                } else {
                    self.unnamed.remove(&id);
                }
            }
            None => {
                let other = self.other();
                self.owners.entry(id).or_insert(other);
                self.unnamed.remove(&id);
            }
        }
    }

    /// Sums by owner, including removed holders. Holders that were not looked up yet are left out: otherwise they would
    /// be counted under `other` for a moment, and that counter would then decrease.
    pub fn sum(&mut self, groups: impl IntoIterator<Item = (Holder, Sums)>) -> BTreeMap<Owner, Sums> {
        let other = self.other();
        let mut all: BTreeMap<Owner, Sums> = BTreeMap::new();
        let groups = groups.into_iter().filter_map(|(id, sums)| {
            let without_room = || (id == Holder::OTHERS).then(|| other.clone());
            Some((self.owners.get(&id).cloned().or_else(without_room)?, sums))
        });
        let kept = self.kept.iter().map(|(owner, sums)| (owner.clone(), *sums));
        for (owner, sums) in groups.chain(kept) {
            let has_series = self.shown.contains(&owner)
                || (self.shown.len() < OWNERS && self.shown.insert(owner.clone()));
            add(all.entry(if has_series { owner } else { other.clone() }).or_default(), &sums);
        }
        all
    }

    /// Stores the counts of a holder that is removed from the kernel's table.
    pub fn retire(&mut self, id: Holder, sums: &Sums) {
        let other = self.other();
        let owner = self.owners.remove(&id).unwrap_or_else(|| other.clone());
        self.unnamed.remove(&id);
        let has_series = self.shown.contains(&owner);
        add(self.kept.entry(if has_series { owner } else { other }).or_default(), sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(packets: u64) -> Sums {
        [Sum { packets, bytes: 100 * packets }, Sum::default()]
    }

    fn group(cgroup: u64) -> Holder {
        Holder { cgroup, ..Holder::OTHERS }
    }

    #[test]
    fn owner_names_are_the_longest_lived() {
        let id = "0123456789abcdef".repeat(4);
        let of = |path: &str| Owner::of(&Belongs::parse(path));
        assert_eq!(of("/system.slice/nginx.service").unit, "nginx.service");
        assert_eq!((of("/").unit.as_str(), of("/jobs/7").unit.as_str()), ("/", "/jobs/7"));
        let docker = of(&format!("/system.slice/docker-{id}.scope"));
        assert_eq!((docker.unit.as_str(), docker.container.as_str()), ("", id.as_str()));
        let uid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
        let pod = of(&format!("/kubepods/burstable/pod{uid}/{id}"));
        assert_eq!((pod.unit.as_str(), pod.pod.as_str()), ("", uid));
    }

    #[test]
    fn removed_owners_keep_their_counts() {
        let mut names = Names::default();
        let learn = |names: &mut Names, id, path: &str| names.learn(group(id), Some(&Belongs::parse(path)));
        let other = names.other();
        let sum = |names: &mut Names, groups: &[(u64, Sums)]| {
            names.sum(groups.iter().map(|(id, sums)| (group(*id), *sums)))
        };
        learn(&mut names, 5, "/a.service");
        learn(&mut names, 6, "/b.service");
        let before = sum(&mut names, &[(0, some(1)), (9, some(40))]);
        assert_eq!(before[&other][0].packets, 1, "what is not known yet is not among the others");
        // It disappeared before it was looked up.
        assert!(names.needs_name(group(9)));
        names.learn(group(9), None);
        assert!(!names.needs_name(group(9)) && !names.needs_name(group(5)));
        let total = |all: &BTreeMap<Owner, Sums>| all.values().map(|sums| sums[0].packets).sum::<u64>();
        let unit = |name: &str| Owner { unit: name.to_owned(), ..Owner::default() };
        let all = sum(&mut names, &[(0, some(1)), (5, some(10)), (6, some(20)), (9, some(40))]);
        assert_eq!((all[&other][0].packets, all[&unit("b.service")][0].packets), (41, 20));
        // The service restarts in a new cgroup.
        names.retire(group(5), &some(10));
        learn(&mut names, 7, "/a.service");
        let all = sum(&mut names, &[(0, some(1)), (7, some(3)), (6, some(20)), (9, some(40))]);
        assert_eq!((all[&unit("a.service")], total(&all)), (some(13), 74));
        // More than can have series.
        let many = 100..100 + 2 * OWNERS as u64;
        many.clone().for_each(|id| learn(&mut names, id, &format!("/{id}.service")));
        let all = names.sum(many.map(|id| (group(id), some(1))).chain([(group(6), some(21))]));
        assert_eq!((total(&all), all.len()), (2 * OWNERS as u64 + 21 + 10, OWNERS));
        assert_eq!(all[&unit("b.service")][0].packets, 21);
        // A container is looked up until its engine has had time to write its name.
        let container = format!("/docker/{}", "0123456789abcdef".repeat(4));
        for _ in 0..MAX_LOOKUPS {
            assert!(names.needs_name(group(3)));
            learn(&mut names, 3, &container);
        }
        assert!(!names.needs_name(group(3)));
    }

    #[test]
    fn unit_processes_are_distinguished_and_summed() {
        let mut names = Names::new(true);
        let of = |name: &[u8]| {
            let mut process = [0; 16];
            process[..name.len()].copy_from_slice(name);
            Holder { cgroup: 5, process }
        };
        let all = [of(b"a"), of(b""), of(b"exactly sixteen."), of(b"\xff")];
        all.iter().for_each(|id| assert_eq!(Holder::from_bytes(&id.to_bytes()), Some(*id)));
        all.iter().for_each(|id| names.learn(*id, Some(&Belongs::parse("/a.service"))));
        let sums = names.sum(all.iter().map(|id| (*id, some(1))).chain([(Holder::OTHERS, some(7))]));
        let shown: Vec<(&str, &str, u64)> = sums
            .iter()
            .map(|(owner, sums)| (owner.process.as_str(), owner.unit.as_str(), sums[0].packets))
            .collect();
        let expected = [
            ("a", "a.service", 1),
            ("exactly sixteen.", "a.service", 1),
            ("other", "other", 7),
            ("unknown", "a.service", 1),
            ("\u{fffd}", "a.service", 1),
        ];
        assert_eq!(shown, expected);
    }
}
