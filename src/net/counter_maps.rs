//! Counters of all interfaces in all network namespaces, and the tables of talkers and flows.

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

/// Counters created in advance of the interfaces that will use them. Inserting counters into the table takes 8 ms,
/// because the kernel waits until no program can use the old ones; a new interface would miss its first packets. One
/// wait covers all that are inserted together.
const SPARE_COUNTERS: usize = 4;

/// Memory limit of fast-path counters in all namespaces together, in bytes. Interfaces beyond it use only the slow
/// path, which takes 3 ns more per packet: on a machine with many CPUs, a hundred veths would need as many megabytes.
pub(crate) const FAST_BUDGET: usize = 16 << 20;

/// The number of CPUs that the fast path counts for: all possible CPU numbers of this machine, rounded up to a power of
/// two.
///
/// # Errors
/// If the system does not report the possible CPUs.
pub fn cpu_slots() -> io::Result<usize> {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = ranges.trim_end().rsplit(['-', ',']).next().and_then(|number| number.parse::<usize>().ok());
    last.map(|number| (number + 1).next_power_of_two())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, ranges.clone()))
}

/// Kernel memory of one interface's counters in both directions, in bytes, without fast-path counters.
pub(crate) fn memory(cpus: usize) -> u64 {
    (2 * cpus * size_of::<net_stats>()) as u64
}

/// Maximum memory of fast-path counters for this many interfaces, in bytes.
pub(crate) fn fast_memory(interfaces: usize, cpus: usize) -> u64 {
    if interfaces == 0 {
        return 0;
    }
    let wanted = (interfaces * cpus.next_power_of_two()).next_power_of_two() * size_of::<net_fast>();
    wanted.min(FAST_BUDGET) as u64
}

/// The maps that programs count into.
#[derive(Debug)]
pub(crate) struct CounterMaps {
    /// Counters of an interface by slot. Each interface gets a new map, so that a reused slot starts at zero.
    counters: MapHandle,
    pub tables: Option<TrafficTables>,
    /// Maps prefixes to the counters of their group; `None` if there are no groups.
    pub cidrs: Option<MapHandle>,
    /// `None` if no blocklist is configured.
    pub block: Option<Arc<Blocklist>>,
    slots: Mutex<Slots>,
    /// Slot 0: packets of interfaces that are not in the table.
    strays: MapHandle,
    /// The used part of [`FAST_BUDGET`], in bytes.
    fast_bytes: AtomicUsize,
    /// The pin directory, if state outlives the exporter.
    pub pins: PinDir,
}

/// A part of [`FAST_BUDGET`]; returned when dropped.
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
    /// Slots without counters.
    empty: VecDeque<u32>,
    /// Slots with unused counters.
    ready: VecDeque<(u32, MapHandle)>,
    /// Slots with counters of deleted interfaces.
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
    /// Creates the table of counters and the configured tables, or takes over those in `pins`.
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
            // Written last: without it, the state is not taken over.
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

    /// Reserves a part of [`FAST_BUDGET`], if enough is left or it is in use already.
    pub fn take_fast_bytes(self: &Arc<Self>, bytes: usize, in_use: bool) -> Option<FastBytes> {
        let before = self.fast_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Returned when dropped.
        let taken = FastBytes { counter_maps: Arc::clone(self), bytes };
        (in_use || before + bytes <= FAST_BUDGET).then_some(taken)
    }

    /// The table of counters.
    pub fn counters(&self) -> BorrowedFd<'_> {
        self.counters.as_fd()
    }

    /// The counters of unknown interfaces, in slot 0.
    pub fn strays_map(&self) -> BorrowedFd<'_> {
        self.strays.as_fd()
    }

    /// Packets of unknown interfaces.
    pub fn strays(&self) -> u64 {
        Direction::ALL.iter().map(|direction| read(&self.strays, *direction).total_packets()).sum()
    }

    /// Creates counters for this many interfaces and some spare ones, and frees the memory of deleted interfaces.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn reserve(&self, interfaces: usize) -> libbpf_rs::Result<()> {
        let mut slots = self.lock();
        let wanted = interfaces + SPARE_COUNTERS;
        if slots.ready.len() >= wanted.div_ceil(2).max(interfaces) && slots.used.is_empty() {
            return Ok(());
        }
        let missing = wanted.saturating_sub(slots.ready.len());
        let used = std::mem::take(&mut slots.used);
        let take = missing.saturating_sub(used.len()).min(slots.empty.len());
        let again = used.len().min(missing);
        let fill: Vec<u32> =
            used[..again].iter().copied().chain(slots.empty.drain(..take)).collect::<Vec<_>>();
        // Not held while the kernel works: the end of a scrape may be what frees the counters of a deleted interface.
        drop(slots);
        let maps = fill.iter().map(|_| stats("stats").create()).collect::<libbpf_rs::Result<Vec<_>>>();
        let put = maps.and_then(|maps| {
            let fresh = fill.iter().copied().zip(&maps);
            let cleared = used[again..].iter().map(|slot| (*slot, &self.strays));
            self.put(&fresh.chain(cleared).collect::<Vec<_>>())?;
            Ok(maps)
        });
        let mut slots = self.lock();
        match put {
            Ok(maps) => {
                slots.ready.extend(fill.into_iter().zip(maps));
                slots.empty.extend(&used[again..]);
                Ok(())
            }
            Err(error) => {
                // Old contents are replaced before a slot is used again.
                slots.empty.extend(fill);
                slots.empty.extend(&used[again..]);
                Err(error)
            }
        }
    }

    /// Counters for a new interface, all zero; pinned in the directory of its namespace.
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
        // The bits above the slot are never all zero: an id of zero means no interface.
        slots.next = (slots.next + 1) % (u32::MAX / SLOTS as u32 + 1);
        slots.next = slots.next.max(1);
        drop(slots);
        let name = pinned::stats_name(id);
        let mut slot = Slot { id, stats, pin: pins.pin(&name), counter_maps: Arc::clone(self) };
        // Packets of evicted entries are added to the counters of the slot, if its id still matches.
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

    /// Counters of an interface that a previous exporter left in the directory of its namespace.
    ///
    /// # Errors
    /// If they do not exist.
    pub fn reopen(self: &Arc<Self>, id: u32, pins: &PinDir) -> libbpf_rs::Result<Slot> {
        let name = pinned::stats_name(id);
        let path = pins.path(&name).unwrap_or_default();
        let stats = MapHandle::from_pinned_path(path)?;
        Ok(Slot { id, stats, pin: pins.pin(&name), counter_maps: Arc::clone(self) })
    }

    /// Removes counters of a previous exporter that are no longer used.
    pub fn give_back(&self, ids: Vec<u32>, pins: &PinDir) {
        ids.iter().for_each(|id| drop(pins.pin(&pinned::stats_name(*id))));
        self.lock().used.extend(ids.iter().map(|id| id % SLOTS as u32));
    }

    /// Inserts counters into the table, all at once.
    fn put(&self, entries: &[(u32, &MapHandle)]) -> libbpf_rs::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let keys: Vec<u8> = entries.iter().flat_map(|(slot, _)| slot.to_ne_bytes()).collect();
        let values: Vec<u8> = entries.iter().flat_map(|(_, map)| raw(map.as_fd()).to_ne_bytes()).collect();
        self.counters.update_batch(&keys, &values, entries.len() as u32, MapFlags::ANY, MapFlags::ANY)
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Values are whole at any time, even after a panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The counters, without those of the fast path.
    pub fn counters(&self, direction: Direction) -> Counters {
        read(&self.stats, direction)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.pin.is_kept() {
            return;
        }
        // The table holds the counters until they are replaced together with others.
        self.counter_maps.lock().used.push(self.id % SLOTS as u32);
    }
}

/// Maps given to programs must have the names used in the object.
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

/// The longest matching prefix wins.
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

/// A per-CPU array can always be read; if it cannot, zeros are shown rather than the scrape failing.
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
    fn reused_slots_start_at_zero_as_root() {
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
    /// As root. The machine may be busy, so that no counters are given back meanwhile; then it is tried again.
    #[test]
    fn counters_are_given_back_while_others_are_created_as_root() {
        let given_back = (0..20).any(|_| {
            let counter_maps = CounterMaps::create(&Count::default(), None, PinDir::default())
                .expect("this test needs root");
            let slots: Vec<Slot> = (0..10).map(|_| counter_maps.open(&PinDir::default()).unwrap()).collect();
            let before = counter_maps.lock().empty.len();
            std::thread::scope(|scope| {
                scope.spawn(|| counter_maps.reserve(2000).unwrap());
                while counter_maps.slots.try_lock().is_ok_and(|slots| slots.empty.len() == before) {
                    std::thread::yield_now();
                }
                drop(slots);
                counter_maps.lock().ready.len() < 2000
            })
        });
        assert!(given_back, "giving back waits until others are created");
    }
}
