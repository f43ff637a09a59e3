//! Counters of all interfaces of all namespaces, and the tables of talkers and flows.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::pins::{MapSpec, Pin, PinDir};

use super::abi::{Direction, HASH_KEYS, SLOTS, net_cidr_key, net_fast, net_stats};
use super::block::Blocklist;
use super::cidr::CidrGroup;
use super::config::Count;
use super::counters::Counters;
use super::pinned;
use super::tables::TrafficTables;

/// Counters that are made ahead of the interfaces they are for. The kernel waits for 8 ms, until no program can still be in
/// the old ones, when they are put into the table, so that a new interface would miss its first packets; and it waits once
/// for all that are put there together.
const SPARE: usize = 4;

/// What fast-path counters may take of all namespaces together, in bytes. Interfaces beyond are counted by the slow path
/// only, which takes 3 ns more for a packet: a hundred veths on many CPUs would take as many megabytes.
pub(crate) const FAST_BUDGET: usize = 16 << 20;

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
    (2 * cpus * size_of::<net_stats>()) as u64
}

/// The most that fast-path counters take for so many interfaces, in bytes.
pub(crate) fn fast_memory(interfaces: usize, cpus: usize) -> u64 {
    if interfaces == 0 {
        return 0;
    }
    let wanted = (interfaces * cpus.next_power_of_two()).next_power_of_two() * size_of::<net_fast>();
    wanted.min(FAST_BUDGET) as u64
}

/// What programs count into.
#[derive(Debug)]
pub(crate) struct CounterMaps {
    /// By slot, the counters of an interface: made for it, so that one with a slot that another had begins at zero.
    counters: MapHandle,
    pub tables: Option<TrafficTables>,
    /// From prefixes to counters of their groups; `None` if there are no groups.
    pub cidrs: Option<MapHandle>,
    /// `None` if nothing can be blocked.
    pub block: Option<Arc<Blocklist>>,
    slots: Mutex<Slots>,
    /// Slot 0: packets of interfaces that programs do not know.
    strays: MapHandle,
    /// Bytes of [`FAST_BUDGET`] in use.
    fast_bytes: AtomicUsize,
    /// Where all of them are, if they outlive the exporter.
    pub pins: PinDir,
}

/// A part of [`FAST_BUDGET`]. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct FastBytes {
    counter_maps: Arc<CounterMaps>,
    bytes: usize,
}

impl Drop for FastBytes {
    fn drop(&mut self) {
        self.counter_maps.fast_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Slots {
    /// Those that nothing is in.
    empty: VecDeque<u32>,
    /// Those with counters that nobody has used.
    ready: VecDeque<(u32, MapHandle)>,
    /// Those with counters of an interface that is gone.
    used: Vec<u32>,
    next: u32,
}

/// The counters of one interface. Dropping it frees their slot.
#[derive(Debug)]
pub(crate) struct Slot {
    id: u32,
    stats: MapHandle,
    pin: Pin,
    counter_maps: Arc<CounterMaps>,
}

impl CounterMaps {
    /// Makes the counters' table and the tables that are wanted, or takes over those in `pins`.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory.
    pub fn create(
        count: &Count,
        block: Option<Arc<Blocklist>>,
        pins: PinDir,
    ) -> libbpf_rs::Result<Arc<Self>> {
        let earlier = pinned::earlier(&pins, count)?;
        let made = match Self::make(count, block.clone(), earlier, pins.clone()) {
            Err(err) if earlier.is_some() => {
                pinned::begin_anew(&pins, &format!("{err:#}"))?;
                Self::make(count, block, None, pins)
            }
            made => made,
        }?;
        if earlier.is_none() {
            // Last: without it what is there is not taken over.
            let keys = made.tables.as_ref().map_or([0; HASH_KEYS], |tables| tables.keys);
            pinned::save(&made.pins, count, keys)?;
        }
        Ok(Arc::new(made))
    }

    fn make(
        count: &Count,
        block: Option<Arc<Blocklist>>,
        keys: Option<[u64; HASH_KEYS]>,
        pins: PinDir,
    ) -> libbpf_rs::Result<Self> {
        let strays = pins.map("strays", &stats("strays"))?;
        let inner = MapSpec {
            kind: MapType::ArrayOfMaps,
            name: "counters",
            key: 4,
            value: 4,
            entries: SLOTS,
            flags: 0,
            inner: Some(strays.as_fd()),
        };
        let counters = pins.map("counters", &inner)?;
        let all = pinned::spaces(&pins);
        let taken: Vec<u32> = all.iter().flat_map(|(_, space)| pinned::counters_of(space)).collect();
        let is_taken: BTreeSet<u32> = taken.iter().map(|id| id % SLOTS as u32).collect();
        let slots = Slots {
            empty: (1..SLOTS as u32).filter(|slot| !is_taken.contains(slot)).collect(),
            ready: VecDeque::new(),
            used: Vec::new(),
            next: taken.iter().map(|id| id / SLOTS as u32 + 1).max().unwrap_or(1),
        };
        let counter_maps = Self {
            counters,
            tables: TrafficTables::create(count, keys, &pins)?,
            cidrs: cidrs(&count.cidrs, &pins)?,
            block,
            slots: Mutex::new(slots),
            strays,
            fast_bytes: AtomicUsize::new(0),
            pins,
        };
        counter_maps.put(&[(0, &counter_maps.strays)])?;
        Ok(counter_maps)
    }

    /// So many bytes of [`FAST_BUDGET`], if they are free, or in use already.
    pub fn take_fast_bytes(self: &Arc<Self>, bytes: usize, in_use: bool) -> Option<FastBytes> {
        let before = self.fast_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Gives them back if it is dropped.
        let taken = FastBytes { counter_maps: Arc::clone(self), bytes };
        (in_use || before + bytes <= FAST_BUDGET).then_some(taken)
    }

    /// The table of counters.
    pub fn counters(&self) -> BorrowedFd<'_> {
        self.counters.as_fd()
    }

    /// Those of no known interface, which the table has first.
    pub fn strays_map(&self) -> BorrowedFd<'_> {
        self.strays.as_fd()
    }

    /// Packets that no interface was found for.
    pub fn strays(&self) -> u64 {
        Direction::ALL.iter().map(|direction| read(&self.strays, *direction).total_packets()).sum()
    }

    /// Makes counters for so many interfaces and some to spare, and gives back the memory of those that are gone.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn reserve(&self, interfaces: usize) -> libbpf_rs::Result<()> {
        let mut slots = self.lock();
        let wanted = interfaces + SPARE;
        if slots.ready.len() >= wanted.div_ceil(2).max(interfaces) && slots.used.is_empty() {
            return Ok(());
        }
        let missing = wanted.saturating_sub(slots.ready.len());
        let used = std::mem::take(&mut slots.used);
        let take = missing.saturating_sub(used.len()).min(slots.empty.len());
        let again = used.len().min(missing);
        let fill: Vec<u32> =
            used[..again].iter().copied().chain(slots.empty.drain(..take)).collect::<Vec<_>>();
        let maps = fill.iter().map(|_| stats("stats").create()).collect::<libbpf_rs::Result<Vec<_>>>();
        let put = maps.and_then(|maps| {
            let fresh = fill.iter().copied().zip(&maps);
            let cleared = used[again..].iter().map(|slot| (*slot, &self.strays));
            self.put(&fresh.chain(cleared).collect::<Vec<_>>())?;
            Ok(maps)
        });
        match put {
            Ok(maps) => {
                slots.ready.extend(fill.into_iter().zip(maps));
                slots.empty.extend(&used[again..]);
                Ok(())
            }
            Err(error) => {
                // What is in them now is replaced before they are given out.
                slots.empty.extend(fill);
                slots.empty.extend(&used[again..]);
                Err(error)
            }
        }
    }

    /// Counters for one more interface, all zero; pinned in the directory of its namespace.
    ///
    /// # Errors
    /// If there are too many, or no memory.
    pub fn open(self: &Arc<Self>, pins: &PinDir) -> libbpf_rs::Result<Slot> {
        if self.lock().ready.is_empty() {
            self.reserve(1)?;
        }
        let mut slots = self.lock();
        let (slot, stats) = slots.ready.pop_front().ok_or_else(|| {
            let text = format!("the maximum of {} interfaces is reached", SLOTS - 1);
            libbpf_rs::Error::from(std::io::Error::other(text))
        })?;
        let id = slots.next * SLOTS as u32 + slot;
        // Not zero in any bit above the slot: zero is no interface.
        slots.next = (slots.next + 1) % (u32::MAX / SLOTS as u32 + 1);
        slots.next = slots.next.max(1);
        drop(slots);
        let name = pinned::stats_name(id);
        let mut slot = Slot { id, stats, pin: pins.pin(&name), counter_maps: Arc::clone(self) };
        // What is evicted from a table is counted for whoever has the slot, if it is the same.
        let mut first = vec![0u8; size_of::<net_stats>()];
        first[std::mem::offset_of!(net_stats, port)..][..8].copy_from_slice(&u64::from(id).to_ne_bytes());
        let values = vec![first; libbpf_rs::num_possible_cpus()?];
        for direction in Direction::ALL {
            slot.stats.update_percpu(&key(*direction), &values, MapFlags::ANY)?;
        }
        if let Some(path) = pins.path(&name) {
            slot.stats.pin(path)?;
        }
        Ok(slot)
    }

    /// Counters of an interface that an earlier exporter has left in the directory of its namespace.
    ///
    /// # Errors
    /// If they are not there.
    pub fn reopen(self: &Arc<Self>, id: u32, pins: &PinDir) -> libbpf_rs::Result<Slot> {
        let name = pinned::stats_name(id);
        let path = pins.path(&name).unwrap_or_default();
        let stats = MapHandle::from_pinned_path(path)?;
        Ok(Slot { id, stats, pin: pins.pin(&name), counter_maps: Arc::clone(self) })
    }

    /// Removes counters that an earlier exporter has left and nobody wants any more.
    pub fn give_back(&self, ids: Vec<u32>, pins: &PinDir) {
        ids.iter().for_each(|id| drop(pins.pin(&pinned::stats_name(*id))));
        self.lock().used.extend(ids.iter().map(|id| id % SLOTS as u32));
    }

    /// Puts counters into the table, all of them at once.
    fn put(&self, entries: &[(u32, &MapHandle)]) -> libbpf_rs::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let keys: Vec<u8> = entries.iter().flat_map(|(slot, _)| slot.to_ne_bytes()).collect();
        let values: Vec<u8> = entries.iter().flat_map(|(_, map)| raw(map.as_fd()).to_ne_bytes()).collect();
        self.counters.update_batch(&keys, &values, entries.len() as u32, MapFlags::ANY, MapFlags::ANY)
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // A panic elsewhere leaves whole entries.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What was counted, that of fast-path frames left out.
    pub fn counters(&self, direction: Direction) -> Counters {
        read(&self.stats, direction)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.pin.is_kept() {
            return;
        }
        // The table keeps the counters until they are replaced, together with others.
        self.counter_maps.lock().used.push(self.id % SLOTS as u32);
    }
}

/// Maps that are given to programs must have the names that they have there.
fn stats(name: &str) -> MapSpec<'_> {
    MapSpec {
        kind: MapType::PercpuArray,
        name,
        key: 4,
        value: size_of::<net_stats>(),
        entries: Direction::ALL.len(),
        flags: 0,
        inner: None,
    }
}

/// A prefix of which another is a part leaves that to it: the longest that matches is found.
fn cidrs(groups: &[CidrGroup], pins: &PinDir) -> libbpf_rs::Result<Option<MapHandle>> {
    if groups.is_empty() {
        return Ok(None);
    }
    let spec = MapSpec {
        kind: MapType::LpmTrie,
        name: "cidrs",
        key: size_of::<net_cidr_key>(),
        value: 4,
        entries: groups.iter().map(|group| group.prefixes.len()).sum::<usize>().max(1),
        flags: libbpf_sys::BPF_F_NO_PREALLOC,
        inner: None,
    };
    let map = pins.map("cidrs", &spec)?;
    for (group, number) in groups.iter().zip(1u32..) {
        for prefix in &group.prefixes {
            map.update(&prefix.key(), &number.to_ne_bytes(), MapFlags::ANY)?;
        }
    }
    Ok(Some(map))
}

/// A per-CPU array can always be read; should it not be, zeros are shown rather than nothing served.
pub(super) fn of_every_cpu(array: &MapHandle, key: u32) -> Vec<Vec<u8>> {
    array.lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY).ok().flatten().unwrap_or_default()
}

fn read(stats: &MapHandle, direction: Direction) -> Counters {
    Counters::sum(&of_every_cpu(stats, direction as u32))
}

fn key(direction: Direction) -> [u8; 4] {
    (direction as u32).to_ne_bytes()
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As root.
    #[test]
    fn slots_are_given_out_again_with_counters_that_are_zero_as_root() {
        let counter_maps =
            CounterMaps::create(&Count::default(), None, PinDir::default()).expect("this test needs root");
        counter_maps.reserve(20).unwrap();
        let mut first: Vec<Slot> = (0..20).map(|_| counter_maps.open(&PinDir::default()).unwrap()).collect();
        let gone = first.remove(7);
        let (slot, id) = (gone.id() % SLOTS as u32, gone.id());
        let mut value = vec![0u8; size_of::<net_stats>()];
        value[0] = 1;
        let values = vec![value; libbpf_rs::num_possible_cpus().unwrap()];
        gone.stats.update_percpu(&key(Direction::Ingress), &values, MapFlags::ANY).unwrap();
        assert!(gone.counters(Direction::Ingress).total_packets() > 0);
        drop(gone);
        let taken: BTreeSet<u32> = first.iter().map(|slot| slot.id() % SLOTS as u32).collect();
        assert!(!taken.contains(&slot) && !taken.contains(&0));
        counter_maps.reserve(10).unwrap();
        first.extend((0..10).map(|_| counter_maps.open(&PinDir::default()).unwrap()));
        let again = first.iter().find(|one| one.id() % SLOTS as u32 == slot).expect("its slot is given out");
        assert_ne!(again.id(), id);
        assert_eq!(again.counters(Direction::Ingress).total_packets(), 0);
        let slots: BTreeSet<u32> = first.iter().map(|slot| slot.id() % SLOTS as u32).collect();
        assert_eq!(slots.len(), first.len());
    }
}
