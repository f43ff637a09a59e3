//! Counters of all interfaces of all namespaces, and the tables of talkers and flows.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use super::abi::{Direction, SLOTS, net_stats};
use super::config::Count;
use super::counters::Counters;
use super::programs::options;
use super::tables::Tables;

/// What programs count into.
#[derive(Debug)]
pub(crate) struct Books {
    /// By slot, the counters of an interface: made with it, so that one with a slot that another had begins at zero.
    counters: MapHandle,
    pub tables: Option<Tables>,
    slots: Mutex<Slots>,
    /// Slot 0: packets of interfaces that programs do not know.
    strays: MapHandle,
}

#[derive(Debug)]
struct Slots {
    /// By slot; the first is taken.
    taken: Vec<bool>,
    next: u32,
}

/// The counters of one interface. Dropping it frees their slot.
#[derive(Debug)]
pub(crate) struct Slot {
    id: u32,
    stats: MapHandle,
    books: Arc<Books>,
}

impl Books {
    /// Makes the counters' table and the tables that are wanted.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory.
    pub fn create(count: &Count) -> libbpf_rs::Result<Arc<Self>> {
        let strays = stats("strays")?;
        let inner = libbpf_sys::bpf_map_create_opts { inner_map_fd: raw(strays.as_fd()), ..options(0) };
        let counters = MapHandle::create(MapType::ArrayOfMaps, Some("counters"), 4, 4, SLOTS as u32, &inner)?;
        put(&counters, 0, &strays)?;
        let mut taken = vec![false; SLOTS];
        taken[0] = true;
        let slots = Mutex::new(Slots { taken, next: 1 });
        Ok(Arc::new(Self { counters, tables: Tables::create(count)?, slots, strays }))
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

    /// Counters for one more interface, all zero.
    ///
    /// # Errors
    /// If there are too many, or no memory.
    pub fn open(self: &Arc<Self>) -> libbpf_rs::Result<Slot> {
        let full = || {
            libbpf_rs::Error::from(std::io::Error::other(format!(
                "{} interfaces are counted on already",
                SLOTS - 1
            )))
        };
        let stats = stats("stats")?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.taken.iter().position(|taken| !taken).ok_or_else(full)? as u32;
        let id = slots.next * SLOTS as u32 + slot;
        // Not zero in any bit above the slot: zero is no interface.
        slots.next = (slots.next + 1) % (u32::MAX / SLOTS as u32 + 1);
        slots.next = slots.next.max(1);
        // What is evicted from a table is counted for whoever has the slot, if it is the same.
        let mut first = vec![0u8; size_of::<net_stats>()];
        first[std::mem::offset_of!(net_stats, port)..][..8].copy_from_slice(&u64::from(id).to_ne_bytes());
        let values = vec![first; libbpf_rs::num_possible_cpus()?];
        for direction in Direction::ALL {
            stats.update_percpu(&key(*direction), &values, MapFlags::ANY)?;
        }
        put(&self.counters, slot, &stats)?;
        slots.taken[slot as usize] = true;
        Ok(Slot { id, stats, books: Arc::clone(self) })
    }
}

impl Slot {
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What was counted, that of plain frames left out.
    pub fn counters(&self, direction: Direction) -> Counters {
        read(&self.stats, direction)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let slot = self.id % SLOTS as u32;
        let mut slots = self.books.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only if it is not there.
        let _ = self.books.counters.delete(&slot.to_ne_bytes());
        slots.taken[slot as usize] = false;
    }
}

/// Maps that are given to programs must have the names that they have there.
fn stats(name: &str) -> libbpf_rs::Result<MapHandle> {
    let value = size_of::<net_stats>() as u32;
    MapHandle::create(MapType::PercpuArray, Some(name), 4, value, Direction::ALL.len() as u32, &options(0))
}

/// A per-CPU array can always be read; should it not be, zeros are shown rather than nothing served.
fn read(stats: &MapHandle, direction: Direction) -> Counters {
    let values = stats.lookup_percpu(&key(direction), MapFlags::ANY).ok().flatten();
    Counters::sum(&values.unwrap_or_default())
}

fn key(direction: Direction) -> [u8; 4] {
    (direction as u32).to_ne_bytes()
}

fn put(counters: &MapHandle, slot: u32, stats: &MapHandle) -> libbpf_rs::Result<()> {
    counters.update(&slot.to_ne_bytes(), &raw(stats.as_fd()).to_ne_bytes(), MapFlags::ANY)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd) as u32
}
