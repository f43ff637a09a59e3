//! The tables by which the programs of a network namespace find an interface and its counters.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::mapping::Mapped;
use crate::pins::{MapSpec, PinDir};

use super::abi::{Direction, Link, PORTS, SLOTS, net_fast, net_port, net_ports};
use super::attach::HeldLink;
use super::counter_maps::{CounterMaps, FastBytes, Slot, cpu_slots, fast_memory};
use super::counters::Counters;
use super::pinned::{counters_of, held_links};

/// Words of one interface in the table.
const PORT_WORDS: usize = size_of::<net_port>() / 4;

#[derive(Debug)]
pub(crate) struct InterfaceTable {
    ports: (MapHandle, Mapped<AtomicU32>),
    more: MapHandle,
    fast: Option<Fast>,
    /// The interface index at each place of `ports`, or zero.
    places: Mutex<Vec<u32>>,
    /// The pin directory, if state outlives the exporter.
    pub pins: PinDir,
}

/// Fast-path counters.
#[derive(Debug)]
struct Fast {
    map: MapHandle,
    words: Mapped<AtomicU64>,
    /// Blocks per interface: one per CPU.
    slots: usize,
    blocks: usize,
    /// Free first blocks. The longest unused one is taken, so that no CPU still counts there.
    free: Mutex<VecDeque<u16>>,
    /// Its part of the budget of all namespaces.
    _bytes: FastBytes,
}

/// An interface in the tables. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Entry {
    index: u32,
    slot: Slot,
    link: Link,
    block: Option<u16>,
    known: Arc<InterfaceTable>,
}

impl InterfaceTable {
    /// `fast` is the maximum number of interfaces with fast-path counters.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory.
    pub fn new(fast: usize, counter_maps: &Arc<CounterMaps>, pins: PinDir) -> libbpf_rs::Result<Self> {
        let one = MapSpec {
            kind: MapType::Array,
            name: ".bss.ports",
            key: 4,
            value: size_of::<net_ports>(),
            entries: 1,
            flags: libbpf_sys::BPF_F_MMAPABLE,
            inner: None,
        };
        let ports = pins.map("ports", &one)?;
        let words: Mapped<AtomicU32> = Mapped::new(ports.as_fd(), size_of::<net_ports>() / 4)?;
        let more = MapSpec {
            kind: MapType::Hash,
            name: "more_ports",
            value: size_of::<net_port>(),
            entries: SLOTS,
            flags: libbpf_sys::BPF_F_NO_PREALLOC,
            ..one
        };
        let more = pins.map("more_ports", &more)?;
        let index = |place: usize| {
            words[place * PORT_WORDS + offset_of!(net_port, ifindex) / 4].load(Ordering::Acquire)
        };
        let places = (0..PORTS).map(index).collect();
        let mut known = Self { ports: (ports, words), more, fast: None, places: Mutex::new(places), pins };
        let taken: BTreeSet<u16> = known.entered().iter().filter_map(block).collect();
        known.fast = Fast::new(fast, &taken, counter_maps, &known.pins)?;
        Ok(known)
    }

    /// Adds an interface with its counters, and with fast-path counters if any are left.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn enter(
        self: &Arc<Self>,
        slot: Slot,
        index: u32,
        link: Link,
        fast: bool,
    ) -> libbpf_rs::Result<Entry> {
        let place = index as usize % PORTS;
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let direct = places[place] == 0;
        let fast = self.fast.as_ref().filter(|_| fast && direct && link == Link::Ethernet);
        let block = fast.and_then(Fast::take);
        let port = net_port {
            ifindex: index,
            id: slot.id(),
            block: block.unwrap_or(0),
            link: link as u8,
            fast: block.is_some().into(),
            ..Default::default()
        };
        if direct {
            let words = &self.ports.1[place * PORT_WORDS..];
            words[offset_of!(net_port, id) / 4].store(port.id, Ordering::Relaxed);
            let packed = u32::from(port.block) | u32::from(port.link) << 16 | u32::from(port.fast) << 24;
            words[offset_of!(net_port, block) / 4].store(packed, Ordering::Relaxed);
            // Written last, because it makes the entry valid.
            words[offset_of!(net_port, ifindex) / 4].store(index, Ordering::Release);
            places[place] = index;
        } else {
            let mut bytes = vec![0u8; size_of::<net_port>()];
            bytes[offset_of!(net_port, ifindex)..][..4].copy_from_slice(&index.to_ne_bytes());
            bytes[offset_of!(net_port, id)..][..4].copy_from_slice(&port.id.to_ne_bytes());
            bytes[offset_of!(net_port, link)] = port.link;
            self.more.update(&index.to_ne_bytes(), &bytes, MapFlags::ANY)?;
        }
        Ok(Entry { index, slot, link, block, known: Arc::clone(self) })
    }

    /// Interfaces that a previous exporter added, by index. An interface without any of its links is another one with
    /// the same index, and is removed.
    pub fn earlier(
        self: &Arc<Self>,
        counter_maps: &Arc<CounterMaps>,
    ) -> BTreeMap<i32, (Entry, Vec<HeldLink>)> {
        let mut all = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for port in self.entered() {
            let link = Link::ALL.get(usize::from(port.link)).copied().unwrap_or(Link::Opaque);
            match counter_maps.reopen(port.id, &self.pins) {
                Ok(slot) => {
                    ids.insert(port.id);
                    let (index, block) = (port.ifindex, block(&port));
                    let entry = Entry { index, slot, link, block, known: Arc::clone(self) };
                    let (links, is_on) = held_links(&self.pins, index as i32);
                    if is_on {
                        all.insert(index as i32, (entry, links));
                    }
                }
                // The previous exporter was killed before it pinned the counters.
                Err(_) => self.forget(port.ifindex),
            }
        }
        counter_maps.give_back(
            counters_of(&self.pins).into_iter().filter(|id| !ids.contains(id)).collect(),
            &self.pins,
        );
        all
    }

    /// The entries of the tables.
    fn entered(&self) -> Vec<net_port> {
        let direct = self.ports.1.as_chunks::<PORT_WORDS>().0.iter().map(|words| {
            let word = |offset: usize| words[offset / 4].load(Ordering::Acquire);
            let packed = word(offset_of!(net_port, block));
            net_port {
                ifindex: word(offset_of!(net_port, ifindex)),
                id: word(offset_of!(net_port, id)),
                block: packed as u16,
                link: (packed >> 16) as u8,
                fast: (packed >> 24) as u8,
                ..Default::default()
            }
        });
        let more = self.more.keys().filter_map(|key| {
            let bytes = self.more.lookup(&key, MapFlags::ANY).ok()??;
            let word = |offset: usize| Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?));
            Some(net_port {
                ifindex: word(offset_of!(net_port, ifindex))?,
                id: word(offset_of!(net_port, id))?,
                link: *bytes.get(offset_of!(net_port, link))?,
                ..Default::default()
            })
        });
        direct.filter(|port| port.ifindex != 0).chain(more).collect()
    }

    fn forget(&self, index: u32) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = index as usize % PORTS;
        if places[place] == index {
            places[place] = 0;
            let words = &self.ports.1[place * PORT_WORDS..];
            words[offset_of!(net_port, ifindex) / 4].store(0, Ordering::Release);
        } else {
            // Fails only if there is no such entry.
            let _ = self.more.delete(&index.to_ne_bytes());
        }
    }

    /// The tables of interfaces that every program has: by place, and by index for the others.
    pub fn ports(&self) -> [&MapHandle; 2] {
        [&self.ports.0, &self.more]
    }

    /// The fast-path counters and their number of blocks.
    pub fn fast(&self) -> Option<(&MapHandle, usize)> {
        self.fast.as_ref().map(|fast| (&fast.map, fast.blocks))
    }
}

/// The first fast-path block of an interface, if it has any.
fn block(port: &net_port) -> Option<u16> {
    (port.fast != 0).then_some(port.block)
}

impl Fast {
    /// `None` if there is not room for a single interface. `taken` are the blocks in use.
    fn new(
        interfaces: usize,
        taken: &BTreeSet<u16>,
        counter_maps: &Arc<CounterMaps>,
        pins: &PinDir,
    ) -> libbpf_rs::Result<Option<Self>> {
        let slots = cpu_slots()?;
        // A previous exporter's counters keep their size.
        let earlier = pins.path("fast").filter(|path| path.exists());
        let earlier = earlier.map(MapHandle::from_pinned_path).transpose()?;
        let bytes = earlier
            .as_ref()
            .map_or_else(|| fast_memory(interfaces, slots) as usize, |map| map.value_size() as usize);
        if bytes < slots * size_of::<net_fast>() {
            return Ok(None);
        }
        let Some(part) = counter_maps.take_fast_bytes(bytes, earlier.is_some()) else { return Ok(None) };
        let spec = MapSpec {
            kind: MapType::Array,
            name: ".bss.fast",
            key: 4,
            value: bytes,
            entries: 1,
            flags: libbpf_sys::BPF_F_MMAPABLE,
            inner: None,
        };
        let map = pins.map("fast", &spec)?;
        let words = Mapped::new(map.as_fd(), bytes / 8)?;
        let blocks = bytes / size_of::<net_fast>();
        let free = (0..blocks as u16).step_by(slots).filter(|block| !taken.contains(block)).collect();
        Ok(Some(Self { map, words, slots, blocks, free: Mutex::new(free), _bytes: part }))
    }

    /// Takes a first block; its counters are zero.
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
    /// The id by which programs and the tables of talkers refer to it.
    pub fn id(&self) -> u32 {
        self.slot.id()
    }

    /// The link layer.
    pub fn link(&self) -> Link {
        self.link
    }

    /// Whether it has fast-path counters.
    pub fn has_fast_path(&self) -> bool {
        self.block.is_some()
    }

    /// The counters.
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
        if self.known.pins.is_kept() {
            return;
        }
        self.known.forget(self.index);
        if let (Some(fast), Some(block)) = (&self.known.fast, self.block) {
            fast.free.lock().unwrap_or_else(PoisonError::into_inner).push_back(block);
        }
    }
}
