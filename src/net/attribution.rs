//! Attributes packets to the cgroup of their socket (a systemd unit, container or pod) and to the process that uses it.
//! The programs are attached to the root cgroup (`bpf/sockets.bpf.c`), so packets of all network namespaces are
//! counted.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramMut};

use crate::containers::Containers;
use crate::exposition::{Family, Kind};
use crate::hierarchy::{cgroup_root, cgroups};
use crate::logging::log_libbpf;
use crate::mutex::lock;
use crate::selectors::Belongs;

use super::abi::Direction;
use super::config::Count;
use super::counters::{Sum, sum_words};
use super::dns::Dns;
use super::open_sockets::name_open_sockets;
use super::owners::{Holder, Names, Owner, Sums};
use super::socket_abi::generated::SocketsSkelBuilder;
use super::socket_abi::generated::types::group_traffic;
use super::sys::{create_link, link_target};

/// Entries of the kernel's cgroup table above which those of removed cgroups are deleted: half its capacity.
const CLEAN_UP_ABOVE: usize = 2048;

/// The kernel's table of packets by cgroup and process.
#[derive(Debug)]
struct Table {
    map: MapHandle,
    names: Mutex<Names>,
}

impl Table {
    fn new(map: MapHandle, by_process: bool) -> libbpf_rs::Result<Self> {
        let nothing = vec![vec![0; size_of::<group_traffic>()]; libbpf_rs::num_possible_cpus()?];
        map.update_percpu(&Holder::OTHERS.to_bytes(), &nothing, MapFlags::ANY)?;
        Ok(Self { map, names: Mutex::new(Names::new(by_process)) })
    }

    fn holders(&self) -> impl Iterator<Item = Holder> {
        self.map.keys().filter_map(|key| Holder::from_bytes(&key))
    }

    fn sums(&self, holder: Holder) -> Option<Sums> {
        let cpus = self.map.lookup_percpu(&holder.to_bytes(), MapFlags::ANY).ok()??;
        let words = sum_words(&cpus, size_of::<group_traffic>() / 8);
        Some([0, 1].map(|at| Sum { packets: words[2 * at], bytes: words[2 * at + 1] }))
    }

    /// Looks up new names, and removes entries of deleted cgroups when the table fills up. Files are read without
    /// holding the lock that a scrape needs.
    fn maintain(&self, root: &Path, containers: &mut Containers) {
        let holders: Vec<Holder> = self.holders().filter(|holder| *holder != Holder::OTHERS).collect();
        let names = lock(&self.names);
        let wanted: Vec<Holder> =
            holders.iter().copied().filter(|holder| names.needs_name(*holder)).collect();
        drop(names);
        if wanted.is_empty() && holders.len() < CLEAN_UP_ABOVE {
            return;
        }
        let present: HashMap<u64, String> = cgroups(root).collect();
        for holder in wanted {
            let belongs = present.get(&holder.cgroup).map(|path| {
                let mut belongs = Belongs::parse(path);
                containers.describe(&mut belongs);
                belongs
            });
            lock(&self.names).learn(holder, belongs.as_ref());
        }
        if holders.len() < CLEAN_UP_ABOVE {
            return;
        }
        for holder in holders.into_iter().filter(|holder| !present.contains_key(&holder.cgroup)) {
            let Some(sums) = self.sums(holder) else { continue };
            let mut names = lock(&self.names);
            if self.map.delete(&holder.to_bytes()).is_ok() {
                names.retire(holder, &sums);
            }
        }
    }

    fn families(&self) -> [Family; 2] {
        let groups: Vec<(Holder, Sums)> =
            self.holders().filter_map(|holder| Some((holder, self.sums(holder)?))).collect();
        let mut names = lock(&self.names);
        let sums = names.sum(groups);
        families(&sums, names.by_process)
    }
}

/// A program on the root cgroup. Dropping it detaches the program.
#[derive(Debug)]
struct SocketLink {
    name: String,
    program: OwnedFd,
    /// The attach type.
    kind: u32,
    link: OwnedFd,
}

impl SocketLink {
    fn attach(program: &ProgramMut<'_>, group: &File) -> io::Result<Self> {
        let kind = program.attach_type() as u32;
        let link = create_link(program.as_fd(), group.as_raw_fd(), kind, 0)?;
        let name = program.name().to_string_lossy().into_owned();
        Ok(Self { name, program: program.as_fd().try_clone_to_owned()?, kind, link })
    }

    /// Attaches it again if it was detached by force.
    fn restore(&mut self, group: &File) {
        if link_target(self.link.as_fd()).is_ok_and(|(target, _)| target != 0) {
            return;
        }
        let again = create_link(self.program.as_fd(), group.as_raw_fd(), self.kind, 0);
        match again {
            Ok(link) => {
                self.link = link;
                log::warn!(
                    "{}: the program was detached from the root cgroup by another program and is attached again; packets \
                     in between are not attributed",
                    self.name
                );
            }
            Err(err) => {
                log::error!("{}: failed to attach the program to the root cgroup again: {err}", self.name)
            }
        }
    }
}

/// The programs on packets of sockets. Dropping it detaches them.
#[derive(Debug)]
pub(crate) struct Attribution {
    root: PathBuf,
    /// The configured tables.
    tables: Vec<Table>,
    containers: Mutex<Containers>,
    dns: Option<Dns>,
    /// The root cgroup, and what is attached to it.
    group: File,
    links: Mutex<Vec<SocketLink>>,
}

impl Attribution {
    /// Attaches what is configured; `None` if nothing is. DNS queries are counted in the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// If the kernel refuses, or has no cgroup v2.
    pub fn load(count: &Count) -> libbpf_rs::Result<Option<Self>> {
        if !count.cgroups && !count.processes && !count.dns {
            return Ok(None);
        }
        log_libbpf();
        let root = cgroup_root().ok_or_else(|| {
            io::Error::other("no process that the exporter may inspect has cgroup2 mounted")
        })?;
        let group = File::open(&root)?;
        // The process through which it was found may end.
        let root = PathBuf::from(format!("/proc/self/fd/{}", group.as_raw_fd()));
        let mut storage = MaybeUninit::uninit();
        let mut open = SocketsSkelBuilder::default().open(&mut storage)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.with_cgroups = count.cgroups;
            constants.with_processes = count.processes;
            constants.with_dns = count.dns;
            constants.namespace = fs::metadata("/proc/thread-self/ns/net")?.ino() as u32;
        }
        for mut program in open.open_object_mut().progs_mut() {
            let is_of_users = !program.section().to_string_lossy().starts_with("cgroup_skb/");
            program.set_autoload(count.processes || !is_of_users);
        }
        let skel = open.load()?;
        let mut tables = Vec::new();
        if count.cgroups {
            tables.push(Table::new(MapHandle::try_from(&skel.maps.by_cgroup)?, false)?);
        }
        if count.processes {
            tables.push(Table::new(MapHandle::try_from(&skel.maps.by_process)?, true)?);
        }
        let dns = if count.dns {
            Some(Dns::new(MapHandle::try_from(&skel.maps.dns)?, MapHandle::try_from(&skel.maps.asked)?))
        } else {
            None
        };
        let mut links = Vec::new();
        if count.processes {
            let progs = &skel.progs;
            for program in [
                &progs.socket_created,
                &progs.connected4,
                &progs.connected6,
                &progs.sent4,
                &progs.sent6,
                &progs.received4,
                &progs.received6,
            ] {
                links.push(SocketLink::attach(program, &group)?);
            }
            // Only now, so that no socket opened meanwhile is missed.
            name_open_sockets(&MapHandle::try_from(&skel.maps.users)?);
        }
        for program in [&skel.progs.sockets_ingress, &skel.progs.sockets_egress] {
            links.push(SocketLink::attach(program, &group)?);
        }
        let links = Mutex::new(links);
        let attribution = Self { root, tables, containers: Mutex::default(), dns, group, links };
        attribution.maintain();
        Ok(Some(attribution))
    }

    /// Periodic maintenance of names and the kernel's tables, and of what is attached.
    pub fn maintain(&self) {
        lock(&self.links).iter_mut().for_each(|link| link.restore(&self.group));
        if let Some(dns) = &self.dns {
            dns.maintain();
        }
        let mut containers = lock(&self.containers);
        self.tables.iter().for_each(|table| table.maintain(&self.root, &mut containers));
    }

    /// The metrics.
    pub fn families(&self) -> Vec<Family> {
        let of_tables = self.tables.iter().flat_map(Table::families);
        of_tables.chain(self.dns.iter().flat_map(Dns::families)).collect()
    }
}

fn families(all: &BTreeMap<Owner, Sums>, by_process: bool) -> [Family; 2] {
    let (packets, bytes, help) = if by_process {
        (
            "network_process_packets_total",
            "network_process_bytes_total",
            "IP packets of sockets, by process and its systemd unit, container and pod.",
        )
    } else {
        (
            "network_cgroup_packets_total",
            "network_cgroup_bytes_total",
            "IP packets of sockets, by the systemd unit, container and pod that the socket belongs to.",
        )
    };
    let mut packets = Family::new(packets, Kind::Counter, help);
    let mut bytes = Family::new(bytes, Kind::Counter, "Bytes of those packets, without link headers.");
    for (owner, sums) in all {
        for (direction, sum) in Direction::ALL.iter().zip(sums) {
            let labels = [
                ("direction", direction.label()),
                ("process", owner.process.as_str()),
                ("unit", owner.unit.as_str()),
                ("container", owner.container.as_str()),
                ("pod", owner.pod.as_str()),
                ("namespace", owner.namespace.as_str()),
            ];
            let labels: Vec<_> =
                labels.into_iter().filter(|(name, _)| by_process || *name != "process").collect();
            packets.number(&labels, sum.packets);
            bytes.number(&labels, sum.bytes);
        }
    }
    [packets, bytes]
}

/// All families, each with a series that has all its labels.
pub(super) fn every_family() -> [Family; 4] {
    let one = BTreeMap::from([(Owner::default(), Sums::default())]);
    let ([packets, bytes], [of_processes, their_bytes]) = (families(&one, false), families(&one, true));
    [packets, bytes, of_processes, their_bytes]
}
