//! Whose packets they are: by the control group of a socket, which is of a unit of systemd, of a container or of a pod. By programs
//! at the hooks of the outermost control group (`bpf/sockets.bpf.c`), so that the packets of all network namespaces are counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::containers::{Containers, cgroup_root, cgroups};
use crate::exposition::{Family, Kind};
use crate::logging::log_libbpf;
use crate::selectors::Belongs;

use super::abi::Direction;
use super::config::Count;
use super::counters::{Sum, sum_words};
use super::dns::Dns;
use super::socket_abi::generated::SocketsSkelBuilder;
use super::socket_abi::generated::types::group_traffic;

/// Owners that have series of their own; what comes later is counted for none of them.
const OWNERS: usize = 1000;

/// Control groups in the kernel's table from which on those are taken out that are gone: half of what it holds.
const CROWDED: usize = 2048;

/// How often an engine is asked what a container is called: it may write that down a moment later.
const ASKED: u32 = 10;

/// The label of what has no series of its own.
const OTHER: &str = "other";

/// Who a control group is of, as labels show it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Owner {
    /// Of systemd; of what is neither in a unit nor in a container or pod, the path.
    unit: String,
    container: String,
    pod: String,
    namespace: String,
}

impl Owner {
    fn of(belongs: &Belongs) -> Self {
        let pod = belongs.pod.as_ref();
        let container = belongs.containers.last().map(ToString::to_string);
        // The unit of a container is made for it alone, and called by its id.
        let is_boxed = pod.is_some() || container.is_some();
        let unit = || belongs.unit().map_or_else(|| belongs.path.clone(), str::to_owned);
        Self {
            unit: if is_boxed { String::new() } else { unit() },
            container: container.unwrap_or_default(),
            pod: pod.map(ToString::to_string).unwrap_or_default(),
            namespace: pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
        }
    }

    fn other() -> Self {
        Self { unit: OTHER.to_owned(), ..Self::default() }
    }
}

/// By direction.
type Sums = [Sum; 2];

fn add(to: &mut Sums, more: &Sums) {
    to.iter_mut().zip(more).for_each(|(to, more)| to.add(*more));
}

/// What control groups are called, and what was counted of those that the kernel's table has no more.
#[derive(Debug, Default)]
struct Names {
    owners: HashMap<u64, Owner>,
    /// Those that an engine may yet say the names of, and how often it was asked.
    unnamed: BTreeMap<u64, u32>,
    kept: BTreeMap<Owner, Sums>,
    /// Those that have series.
    shown: BTreeSet<Owner>,
}

impl Names {
    /// Whether it is to be looked up what a control group is called.
    fn want(&self, id: u64) -> bool {
        !self.owners.contains_key(&id) || self.unnamed.get(&id).is_some_and(|asked| *asked < ASKED)
    }

    /// What one belongs to now; nothing, if it is not there any more.
    fn learn(&mut self, id: u64, belongs: Option<&Belongs>) {
        match belongs {
            Some(belongs) => {
                self.owners.insert(id, Owner::of(belongs));
                if belongs.is_unnamed() {
                    *self.unnamed.entry(id).or_default() += 1;
                } else {
                    self.unnamed.remove(&id);
                }
            }
            None => {
                self.owners.entry(id).or_insert_with(Owner::other);
                self.unnamed.remove(&id);
            }
        }
    }

    /// By owner, those that were taken out included. One that was not looked up yet is left out: it would be counted among the others
    /// for a moment, and their counters would go back.
    fn sum(&mut self, groups: impl IntoIterator<Item = (u64, Sums)>) -> BTreeMap<Owner, Sums> {
        let mut all: BTreeMap<Owner, Sums> = BTreeMap::new();
        let groups = groups.into_iter().filter_map(|(id, sums)| {
            let without_room = || (id == 0).then(Owner::other);
            Some((self.owners.get(&id).cloned().or_else(without_room)?, sums))
        });
        let kept = self.kept.iter().map(|(owner, sums)| (owner.clone(), *sums));
        for (owner, sums) in groups.chain(kept) {
            let has_series = self.shown.contains(&owner)
                || (self.shown.len() < OWNERS && self.shown.insert(owner.clone()));
            add(all.entry(if has_series { owner } else { Owner::other() }).or_default(), &sums);
        }
        all
    }

    /// Remembers what was counted of one that is taken out of the kernel's table.
    fn keep(&mut self, id: u64, sums: &Sums) {
        let owner = self.owners.remove(&id).unwrap_or_else(Owner::other);
        self.unnamed.remove(&id);
        let has_series = self.shown.contains(&owner);
        add(self.kept.entry(if has_series { owner } else { Owner::other() }).or_default(), sums);
    }
}

/// The programs at the sockets' packets. Dropping it takes them away.
#[derive(Debug)]
pub(crate) struct Attribution {
    root: PathBuf,
    /// `None` if they are not asked for.
    traffic: Option<MapHandle>,
    names: Mutex<Names>,
    containers: Mutex<Containers>,
    dns: Option<Dns>,
    _links: Vec<OwnedFd>,
}

impl Attribution {
    /// Attaches what is wanted; `None` if nothing is. DNS queries are those of the thread's network namespace.
    ///
    /// # Errors
    /// If the kernel refuses, or has no control groups of version 2.
    pub fn load(count: &Count) -> libbpf_rs::Result<Option<Self>> {
        if !count.cgroups && !count.dns {
            return Ok(None);
        }
        log_libbpf();
        let root = cgroup_root()
            .ok_or_else(|| io::Error::other("no cgroup2 file system is mounted on this machine"))?;
        let group = File::open(&root)?;
        let mut storage = MaybeUninit::uninit();
        let mut open = SocketsSkelBuilder::default().open(&mut storage)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.with_cgroups = count.cgroups;
            constants.with_dns = count.dns;
            constants.namespace = fs::metadata("/proc/thread-self/ns/net")?.ino() as u32;
        }
        let skel = open.load()?;
        let traffic = MapHandle::try_from(&skel.maps.traffic)?;
        let nothing = vec![vec![0; size_of::<group_traffic>()]; libbpf_rs::num_possible_cpus()?];
        traffic.update_percpu(&0u64.to_ne_bytes(), &nothing, MapFlags::ANY)?;
        let dns = if count.dns {
            Some(Dns::new(MapHandle::try_from(&skel.maps.dns)?, MapHandle::try_from(&skel.maps.asked)?))
        } else {
            None
        };
        let programs = [&skel.progs.sockets_ingress, &skel.progs.sockets_egress];
        let links = programs.map(|program| {
            let link = program.attach_cgroup(group.as_raw_fd())?;
            Ok(link.as_fd().try_clone_to_owned()?)
        });
        let attribution = Self {
            root,
            traffic: count.cgroups.then_some(traffic),
            names: Mutex::default(),
            containers: Mutex::default(),
            dns,
            _links: links.into_iter().collect::<libbpf_rs::Result<_>>()?,
        };
        attribution.attend();
        Ok(Some(attribution))
    }

    /// Looks after names and the kernel's tables, now and then.
    pub fn attend(&self) {
        if let Some(dns) = &self.dns {
            dns.attend();
        }
        let Some(traffic) = &self.traffic else { return };
        let ids: Vec<u64> = ids(traffic).filter(|id| *id != 0).collect();
        let names = lock(&self.names);
        let wanted: Vec<u64> = ids.iter().copied().filter(|id| names.want(*id)).collect();
        drop(names);
        if wanted.is_empty() && ids.len() < CROWDED {
            return;
        }
        // Files are read without the lock that a scrape needs.
        let present: HashMap<u64, String> = cgroups(&self.root).collect();
        let mut containers = lock(&self.containers);
        for id in wanted {
            let belongs = present.get(&id).map(|path| {
                let mut belongs = Belongs::parse(path);
                containers.describe(&mut belongs);
                belongs
            });
            lock(&self.names).learn(id, belongs.as_ref());
        }
        if ids.len() < CROWDED {
            return;
        }
        for id in ids.into_iter().filter(|id| !present.contains_key(id)) {
            let Some(sums) = sums(traffic, id) else { continue };
            let mut names = lock(&self.names);
            if traffic.delete(&id.to_ne_bytes()).is_ok() {
                names.keep(id, &sums);
            }
        }
    }

    /// What was counted so far.
    pub fn families(&self) -> Vec<Family> {
        let mut all = Vec::new();
        if let Some(traffic) = &self.traffic {
            let groups: Vec<(u64, Sums)> =
                ids(traffic).filter_map(|id| Some((id, sums(traffic, id)?))).collect();
            let sums = lock(&self.names).sum(groups);
            all.extend(families(&sums));
        }
        all.extend(self.dns.iter().flat_map(Dns::families));
        all
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves whole entries.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ids(traffic: &MapHandle) -> impl Iterator<Item = u64> {
    traffic.keys().filter_map(|key| Some(u64::from_ne_bytes(key.try_into().ok()?)))
}

fn sums(traffic: &MapHandle, id: u64) -> Option<Sums> {
    let cpus = traffic.lookup_percpu(&id.to_ne_bytes(), MapFlags::ANY).ok()??;
    let words = sum_words(&cpus, size_of::<group_traffic>() / 8);
    Some([0, 1].map(|at| Sum { packets: words[2 * at], bytes: words[2 * at + 1] }))
}

fn families(all: &BTreeMap<Owner, Sums>) -> [Family; 2] {
    let help = "IP packets of sockets, by the systemd unit, container and pod that the socket belongs to.";
    let mut packets = Family::new("network_cgroup_packets_total", Kind::Counter, help);
    let help = "Bytes of those packets, without link headers.";
    let mut bytes = Family::new("network_cgroup_bytes_total", Kind::Counter, help);
    for (owner, sums) in all {
        for (direction, sum) in Direction::ALL.iter().zip(sums) {
            let labels = [
                ("direction", direction.label()),
                ("unit", owner.unit.as_str()),
                ("container", owner.container.as_str()),
                ("pod", owner.pod.as_str()),
                ("namespace", owner.namespace.as_str()),
            ];
            packets.number(&labels, sum.packets);
            bytes.number(&labels, sum.bytes);
        }
    }
    [packets, bytes]
}

/// All that there can be, each with a series that has its labels.
pub(super) fn every_family() -> [Family; 2] {
    families(&BTreeMap::from([(Owner::default(), Sums::default())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(packets: u64) -> Sums {
        [Sum { packets, bytes: 100 * packets }, Sum::default()]
    }

    #[test]
    fn owners_are_named_by_what_is_theirs_for_longest() {
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
    fn what_is_gone_is_counted_on_and_nothing_gets_lost() {
        let mut names = Names::default();
        let learn = |names: &mut Names, id, path: &str| names.learn(id, Some(&Belongs::parse(path)));
        learn(&mut names, 5, "/a.service");
        learn(&mut names, 6, "/b.service");
        let before = names.sum([(0, some(1)), (9, some(40))]);
        assert_eq!(before[&Owner::other()][0].packets, 1, "what is not known yet is not among the others");
        // It was gone before it was looked for.
        assert!(names.want(9));
        names.learn(9, None);
        assert!(!names.want(9) && !names.want(5));
        let total = |all: &BTreeMap<Owner, Sums>| all.values().map(|sums| sums[0].packets).sum::<u64>();
        let unit = |name: &str| Owner { unit: name.to_owned(), ..Owner::default() };
        let all = names.sum([(0, some(1)), (5, some(10)), (6, some(20)), (9, some(40))]);
        assert_eq!((all[&Owner::other()][0].packets, all[&unit("b.service")][0].packets), (41, 20));
        // The service is started again, in another control group.
        names.keep(5, &some(10));
        learn(&mut names, 7, "/a.service");
        let all = names.sum([(0, some(1)), (7, some(3)), (6, some(20)), (9, some(40))]);
        assert_eq!((all[&unit("a.service")], total(&all)), (some(13), 74));
        // More than have series.
        let many = 100..100 + 2 * OWNERS as u64;
        many.clone().for_each(|id| learn(&mut names, id, &format!("/{id}.service")));
        let all = names.sum(many.map(|id| (id, some(1))).chain([(6, some(21))]));
        assert_eq!((total(&all), all.len()), (2 * OWNERS as u64 + 21 + 10, OWNERS));
        assert_eq!(all[&unit("b.service")][0].packets, 21);
        // A container is asked for until its engine has had time enough to say its name.
        let container = format!("/docker/{}", "0123456789abcdef".repeat(4));
        for _ in 0..ASKED {
            assert!(names.want(3));
            learn(&mut names, 3, &container);
        }
        assert!(!names.want(3));
    }
}
