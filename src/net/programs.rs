//! The packet programs of one network namespace, each loaded once, and the interfaces that they know.

use std::collections::BTreeMap;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::logging::log_libbpf;
use crate::mapping::Mapped;

use super::abi::generated::{NetSkel, NetSkelBuilder};
use super::abi::{Direction, FAST_BLOCKS, Link, PORTS, net_fast, net_port, net_ports};
use super::counter_maps::{CounterMaps, FAST_BUDGET, FastBytes, Slot};
use super::counters::Counters;
use super::sys::{options, program_id, set_operand};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    /// XDP with the fast path.
    Fast,
    /// XDP without it.
    Slow,
    Talkers,
    /// XDP for frames of several pieces, which native mode needs for a large MTU.
    Pieces,
    TcIngress,
    TcEgress,
}

impl Program {
    /// As the kernel knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "net_ingress",
            Self::Slow => "net_ingress_slow",
            Self::Talkers => "net_ingress_talkers",
            Self::Pieces => "net_ingress_frags",
            Self::TcIngress => "net_tc_ingress",
            Self::TcEgress => "net_egress",
        }
    }
}

/// For how many CPUs the fast path counts: all numbers that a CPU of this machine can have, as a power of two.
///
/// # Errors
/// If the system does not say which CPUs are possible.
pub fn cpu_slots() -> io::Result<usize> {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = ranges.trim_end().rsplit(['-', ',']).next().and_then(|number| number.parse::<usize>().ok());
    last.map(|number| (number + 1).next_power_of_two())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, ranges.clone()))
}

/// Kernel memory of the counters of one interface in both directions, in bytes, those of fast-path frames left out.
pub(crate) fn memory(cpus: usize) -> u64 {
    (2 * cpus * size_of::<super::abi::net_stats>()) as u64
}

/// The most that fast-path counters take for so many interfaces, in bytes.
pub(crate) fn fast_memory(interfaces: usize, cpus: usize) -> u64 {
    if interfaces == 0 {
        return 0;
    }
    let wanted = (interfaces * cpus.next_power_of_two()).next_power_of_two() * size_of::<net_fast>();
    wanted.min(FAST_BUDGET) as u64
}

/// Programs and tables of a network namespace. Interfaces are told apart by their index, which is the namespace's own.
#[derive(Debug)]
pub(crate) struct Programs {
    counter_maps: Arc<CounterMaps>,
    switches: u32,
    known: Arc<Known>,
    loaded: Mutex<BTreeMap<Program, Arc<OwnedFd>>>,
}

/// The tables by which programs find an interface.
#[derive(Debug)]
struct Known {
    ports: (MapHandle, Mapped<AtomicU32>),
    more: MapHandle,
    fast: Option<Fast>,
    /// Who has which place in `ports`: an interface's index, or zero.
    places: Mutex<Vec<u32>>,
}

/// Fast-path counters.
#[derive(Debug)]
struct Fast {
    map: MapHandle,
    words: Mapped<AtomicU64>,
    /// Of one interface: as many as there are CPUs.
    slots: usize,
    blocks: usize,
    /// First blocks that no interface has. The one that was longest unused is taken, so that no CPU still counts there.
    free: Mutex<std::collections::VecDeque<u16>>,
    /// Its part of the budget of all namespaces.
    _bytes: FastBytes,
}

/// An interface that programs know. Dropping it makes them forget it.
#[derive(Debug)]
pub(crate) struct Entry {
    index: u32,
    slot: Slot,
    block: Option<u16>,
    known: Arc<Known>,
}

impl Programs {
    /// Tables for the interfaces of one namespace; `fast` are how many at most have fast-path counters, `switches` what
    /// else is counted ([`super::stats::program_switches`]).
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory.
    pub fn new(counter_maps: Arc<CounterMaps>, fast: usize, switches: u32) -> libbpf_rs::Result<Self> {
        let shared = options(libbpf_sys::BPF_F_MMAPABLE);
        let ports = MapHandle::create(
            MapType::Array,
            Some(".bss.ports"),
            4,
            size_of::<net_ports>() as u32,
            1,
            &shared,
        )?;
        let mapping = Mapped::new(ports.as_fd(), size_of::<net_ports>() / 4)?;
        let more = MapHandle::create(
            MapType::Hash,
            Some("more_ports"),
            4,
            size_of::<net_port>() as u32,
            super::abi::SLOTS as u32,
            &options(libbpf_sys::BPF_F_NO_PREALLOC),
        )?;
        let known = Known {
            ports: (ports, mapping),
            more,
            fast: Fast::new(fast, &counter_maps)?,
            places: Mutex::new(vec![0; PORTS]),
        };
        Ok(Self { counter_maps, switches, known: Arc::new(known), loaded: Mutex::default() })
    }

    /// Gets counters for so many interfaces ready, all at once, and gives back those of interfaces that are gone.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn reserve(&self, interfaces: usize) -> libbpf_rs::Result<()> {
        self.counter_maps.reserve(interfaces)
    }

    /// Enters an interface, before anything is attached to it; with fast-path counters if there are any left.
    ///
    /// # Errors
    /// If the kernel makes no counters for it.
    pub fn enter(&self, ifindex: i32, link: Link, fast: bool) -> libbpf_rs::Result<Entry> {
        let index = ifindex as u32;
        let slot = self.counter_maps.open()?;
        let place = index as usize % PORTS;
        let mut places = self.known.places.lock().unwrap_or_else(PoisonError::into_inner);
        let direct = places[place] == 0;
        let block = self
            .known
            .fast
            .as_ref()
            .filter(|_| fast && direct && link == Link::Ethernet)
            .and_then(Fast::take);
        let port = net_port {
            ifindex: index,
            id: slot.id(),
            block: block.unwrap_or(0),
            link: link as u8,
            ..Default::default()
        };
        if direct {
            let words = &self.known.ports.1[place * size_of::<net_port>() / 4..];
            words[offset_of!(net_port, id) / 4].store(port.id, Ordering::Relaxed);
            let packed = u32::from(port.block) | u32::from(port.link) << 16;
            words[offset_of!(net_port, block) / 4].store(packed, Ordering::Relaxed);
            // Last, for it makes the rest valid.
            words[offset_of!(net_port, ifindex) / 4].store(index, Ordering::Release);
            places[place] = index;
        } else {
            let mut bytes = vec![0u8; size_of::<net_port>()];
            bytes[offset_of!(net_port, ifindex)..][..4].copy_from_slice(&index.to_ne_bytes());
            bytes[offset_of!(net_port, id)..][..4].copy_from_slice(&port.id.to_ne_bytes());
            bytes[offset_of!(net_port, link)] = port.link;
            self.known.more.update(&index.to_ne_bytes(), &bytes, MapFlags::ANY)?;
        }
        Ok(Entry { index, slot, block, known: Arc::clone(&self.known) })
    }

    /// A program in the kernel; loaded when it is first asked for.
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

    /// Whether they keep talkers.
    pub fn with_talkers(&self) -> bool {
        self.counter_maps.tables.is_some()
    }

    /// Whether the kernel's program of this id is one of these.
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
        open.maps.bss_ports.reuse_fd(self.known.ports.0.as_fd())?;
        open.maps.more_ports.reuse_fd(self.known.more.as_fd())?;
        open.maps.strays.reuse_fd(self.counter_maps.strays_map())?;
        open.maps.counters.reuse_fd(self.counter_maps.counters())?;
        match &self.known.fast {
            Some(fast) if which == Program::Fast => {
                // The size first: libbpf has mapped the map's memory, and unmaps as much as the map is large.
                open.maps.bss_fast.set_value_size((fast.blocks * size_of::<net_fast>()) as u32)?;
                open.maps.bss_fast.reuse_fd(fast.map.as_fd())?;
                set_operand(&mut open.progs.net_ingress, FAST_BLOCKS, fast.blocks as i32 - 1)?;
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

impl Fast {
    /// `None` if there is no room for one interface.
    fn new(interfaces: usize, counter_maps: &Arc<CounterMaps>) -> libbpf_rs::Result<Option<Self>> {
        if interfaces == 0 {
            return Ok(None);
        }
        let slots = cpu_slots()?;
        let bytes = fast_memory(interfaces, slots) as usize;
        if bytes < slots * size_of::<net_fast>() {
            return Ok(None);
        }
        let Some(taken) = counter_maps.take_fast_bytes(bytes) else { return Ok(None) };
        let shared = options(libbpf_sys::BPF_F_MMAPABLE);
        let map = MapHandle::create(MapType::Array, Some(".bss.fast"), 4, bytes as u32, 1, &shared)?;
        let words = Mapped::new(map.as_fd(), bytes / 8)?;
        let blocks = bytes / size_of::<net_fast>();
        let free = (0..blocks as u16).step_by(slots).collect();
        Ok(Some(Self { map, words, slots, blocks, free: Mutex::new(free), _bytes: taken }))
    }

    /// A first block, all of whose counters are zero.
    fn take(&self) -> Option<u16> {
        let block = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        self.words_of(block).iter().for_each(|word| word.store(0, Ordering::Relaxed));
        Some(block)
    }

    fn words_of(&self, block: u16) -> &[AtomicU64] {
        let each = size_of::<net_fast>() / 8;
        &self.words[usize::from(block) * each..][..self.slots * each]
    }
}

impl Entry {
    /// By which programs know it, and tables of talkers.
    pub fn id(&self) -> u32 {
        self.slot.id()
    }

    /// Whether it has fast-path counters.
    pub fn has_fast_path(&self) -> bool {
        self.block.is_some()
    }

    /// What was counted so far.
    pub fn counters(&self, direction: Direction) -> Counters {
        let sum = self.slot.counters(direction);
        match (&self.known.fast, self.block) {
            (Some(fast), Some(block)) if direction == Direction::Ingress => {
                sum.with_fast(fast.words_of(block).iter().map(|word| word.load(Ordering::Relaxed)))
            }
            _ => sum,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut places = self.known.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.index as usize % PORTS;
        if places[place] == self.index {
            places[place] = 0;
            let words = &self.known.ports.1[place * size_of::<net_port>() / 4..];
            words[offset_of!(net_port, ifindex) / 4].store(0, Ordering::Release);
        } else {
            // It fails only if it is not there.
            let _ = self.known.more.delete(&self.index.to_ne_bytes());
        }
        if let (Some(fast), Some(block)) = (&self.known.fast, self.block) {
            fast.free.lock().unwrap_or_else(PoisonError::into_inner).push_back(block);
        }
    }
}

fn program(skel: &NetSkel<'_>, name: &str) -> io::Result<OwnedFd> {
    let program = skel.object().progs().find(|program| program.name() == name);
    program
        .ok_or_else(|| io::Error::other(format!("the BPF object has no program {name}")))?
        .as_fd()
        .try_clone_to_owned()
}
