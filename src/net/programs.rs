//! The packet programs of one network namespace, each loaded once, and the interfaces that they count.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libbpf_rs::MapCore;
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};

use crate::logging::log_libbpf;
use crate::pins::PinDir;

use super::abi::generated::{NetSkel, NetSkelBuilder};
use super::abi::{FAST_BLOCKS, Link, net_fast};
use super::attach::HeldLink;
use super::block::Blocklist;
use super::counter_maps::CounterMaps;
use super::interface_table::{Entry, InterfaceTable};
use super::sys::{program_id, set_operand};

/// A packet program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    /// XDP with the fast path.
    Fast,
    /// XDP with the fast path and a blocklist.
    FastBlocklist,
    /// XDP without the fast path.
    Slow,
    Talkers,
    /// XDP with multi-buffer support, which native mode requires for a large MTU.
    Pieces,
    TcIngress,
    TcEgress,
}

impl Program {
    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "net_ingress",
            Self::FastBlocklist => "net_ingress_blocklist",
            Self::Slow => "net_ingress_slow",
            Self::Talkers => "net_ingress_talkers",
            Self::Pieces => "net_ingress_frags",
            Self::TcIngress => "net_tc_ingress",
            Self::TcEgress => "net_egress",
        }
    }
}

/// The programs and tables of a network namespace. Interfaces are identified by their index, which is unique only
/// within it.
#[derive(Debug)]
pub(crate) struct Programs {
    counter_maps: Arc<CounterMaps>,
    switches: u32,
    fast: bool,
    known: Arc<InterfaceTable>,
    /// Interfaces that a previous exporter added, by index, with its links.
    earlier: Mutex<BTreeMap<i32, (Entry, Vec<HeldLink>)>>,
    loaded: Mutex<BTreeMap<Program, Arc<OwnedFd>>>,
}

impl Programs {
    /// Creates the tables for one namespace; `fast` is the maximum number of interfaces with fast-path counters,
    /// `switches` are the optional statistics ([`super::stats::program_switches`]). State in `pins` is taken over.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory.
    pub fn new(
        counter_maps: Arc<CounterMaps>,
        fast: usize,
        switches: u32,
        pins: PinDir,
    ) -> libbpf_rs::Result<Self> {
        let known = Arc::new(InterfaceTable::new(fast, &counter_maps, pins)?);
        let earlier = Mutex::new(known.earlier(&counter_maps));
        Ok(Self { counter_maps, switches, fast: fast > 0, known, earlier, loaded: Mutex::default() })
    }

    /// Prepares counters for this many interfaces at once, and frees those of deleted interfaces.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn reserve(&self, interfaces: usize) -> libbpf_rs::Result<()> {
        self.counter_maps.reserve(interfaces)
    }

    /// Adds an interface before anything is attached to it; with fast-path counters if any are left. An interface that
    /// a previous exporter added keeps its counters and links.
    ///
    /// # Errors
    /// If the kernel creates no counters.
    pub fn enter(&self, ifindex: i32, link: Link, fast: bool) -> libbpf_rs::Result<(Entry, Vec<HeldLink>)> {
        let earlier = self.lock_earlier().remove(&ifindex);
        if let Some((entry, links)) = earlier.filter(|(entry, _)| entry.link() == link) {
            return Ok((entry, links));
        }
        let slot = self.counter_maps.open(&self.known.pins)?;
        Ok((self.known.enter(slot, ifindex as u32, link, fast)?, Vec::new()))
    }

    /// Removes interfaces of a previous exporter that are no longer configured.
    pub fn forget_earlier_but(&self, wanted: &BTreeSet<i32>) {
        self.lock_earlier().retain(|index, _| wanted.contains(index));
    }

    fn lock_earlier(&self) -> MutexGuard<'_, BTreeMap<i32, (Entry, Vec<HeldLink>)>> {
        self.earlier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of pinned links.
    pub fn pins(&self) -> &PinDir {
        &self.known.pins
    }

    /// Whether the fast path counts everything that is configured.
    pub fn have_fast_path(&self) -> bool {
        self.fast
    }

    /// A program, loaded at its first use.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted (`CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`), or out of memory.
    pub fn get(&self, program: Program) -> libbpf_rs::Result<Arc<OwnedFd>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = loaded.get(&program) {
            return Ok(Arc::clone(found));
        }
        let new = Arc::new(self.load(program)?);
        loaded.insert(program, Arc::clone(&new));
        Ok(new)
    }

    /// Whether there is a blocklist.
    pub fn with_blocklist(&self) -> bool {
        self.counter_maps.block.is_some()
    }

    /// Whether they track talkers.
    pub fn with_talkers(&self) -> bool {
        self.counter_maps.tables.is_some()
    }

    /// Whether the kernel's program with this id is one of these.
    pub fn are(&self, id: u32) -> bool {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.values().any(|program| program_id(program.as_fd()) == Some(id))
    }

    fn load(&self, which: Program) -> libbpf_rs::Result<OwnedFd> {
        log_libbpf();
        let mut storage = MaybeUninit::uninit();
        let mut open = NetSkelBuilder::default().open(&mut storage)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.switches = self.switches;
        }
        if let (Some(constants), Some(tables)) =
            (open.maps.rodata_data.as_deref_mut(), &self.counter_maps.tables)
        {
            constants.with_talkers = true;
            constants.with_flows = tables.with_flows;
            constants.talker_sets_mask = tables.talkers.max_entries() - 1;
            constants.flow_sets_mask = tables.flows.max_entries() - 1;
            constants.hash_keys = tables.keys;
        }
        if let Some(tables) = &self.counter_maps.tables {
            open.maps.talkers.reuse_fd(tables.talkers.as_fd())?;
            open.maps.flows.reuse_fd(tables.flows.as_fd())?;
            open.maps.sketch.reuse_fd(tables.sketch.as_fd())?;
        }
        if let Some(cidrs) = &self.counter_maps.cidrs {
            if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
                constants.with_cidrs = true;
            }
            open.maps.cidrs.set_max_entries(cidrs.max_entries())?;
            open.maps.cidrs.reuse_fd(cidrs.as_fd())?;
        }
        let with_blocklist = self.counter_maps.block.is_some();
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.with_blocklist = with_blocklist;
        }
        let shared = self.counter_maps.block.iter().flat_map(|block| block.shared());
        let shared: BTreeMap<_, _> = shared.collect();
        for mut map in open.open_object_mut().maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            match shared.get(name.as_str()) {
                Some(fd) => map.reuse_fd(*fd)?,
                None if Blocklist::MAPS.contains(&name.as_str()) => map.set_autocreate(false)?,
                None => {}
            }
        }
        let [ports, more] = self.known.ports();
        open.maps.bss_ports.reuse_fd(ports.as_fd())?;
        open.maps.more_ports.reuse_fd(more.as_fd())?;
        open.maps.strays.reuse_fd(self.counter_maps.strays_map())?;
        open.maps.counters.reuse_fd(self.counter_maps.counters())?;
        match self.known.fast() {
            Some((fast, blocks)) if matches!(which, Program::Fast | Program::FastBlocklist) => {
                // The size is set first: libbpf has mapped the map's memory and unmaps as much as the map's current
                // size.
                open.maps.bss_fast.set_value_size((blocks * size_of::<net_fast>()) as u32)?;
                open.maps.bss_fast.reuse_fd(fast.as_fd())?;
                let program = match which {
                    Program::Fast => &mut open.progs.net_ingress,
                    _ => &mut open.progs.net_ingress_blocklist,
                };
                set_operand(program, FAST_BLOCKS, blocks as i32 - 1)?;
            }
            _ => open.maps.bss_fast.set_autocreate(false)?,
        }
        for mut program in open.open_object_mut().progs_mut() {
            let wanted = program.name() == which.name();
            program.set_autoload(wanted);
        }
        let skel = open.load()?;
        Ok(program(&skel, which.name())?)
    }
}

fn program(skel: &NetSkel<'_>, name: &str) -> io::Result<OwnedFd> {
    let program = skel.object().progs().find(|program| program.name() == name);
    program
        .ok_or_else(|| io::Error::other(format!("the BPF object has no program {name}")))?
        .as_fd()
        .try_clone_to_owned()
}
