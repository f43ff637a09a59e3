//! The kernel's side of the blocklist (`bpf/block.bpf.h`): bitmaps, hash tables of rules, and shared settings.

use std::mem::offset_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use super::super::abi::{
    Direction, List, MARK_BYTES, OWN_PORTS, SOURCES, SPARED, Verdict, net_blocklist, net_connection,
    net_prefix4, net_prefix6, net_rule, net_source,
};
use super::super::cidr::Prefix;
use super::super::counters::{Sum, sum_words};
use super::marks::{ALLOWED_WORDS, Bitmap, Marks, each_word};
use crate::mapping::Mapped;
use crate::pins::MapSpec;

/// A rule in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The tick at which it expires; zero: never.
    pub expires: u32,
    /// IANA number of the protocol, first and last destination port; `None`: all packets.
    pub scope: Option<(u8, u16, u16)>,
    /// The number of its source.
    pub source: u16,
    /// A bit for each [`Direction`] that it applies to.
    pub directions: u8,
}

impl Rule {
    /// Never expires and matches all packets.
    pub const ALWAYS: Self = Self { expires: 0, scope: None, source: 0, directions: BOTH };
}

/// Both directions.
pub(super) const BOTH: u8 = 1 << Direction::Ingress as u8 | 1 << Direction::Egress as u8;

/// The hits of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hits {
    pub packets: u64,
    pub bytes: u64,
    /// The tick of the last packet; zero if there was none.
    pub last: u32,
}

impl Hits {
    pub fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        if other.last != 0 {
            self.last = other.last;
        }
    }
}

/// A protected connection: remote address, remote port, local port.
pub(crate) type Connection = (IpAddr, u16, u16);

/// The maps that all programs share.
#[derive(Debug)]
pub(crate) struct BlockMaps {
    common: (MapHandle, Mapped<AtomicU64>),
    marks4: (MapHandle, Mapped<AtomicU64>),
    marks6: (MapHandle, Mapped<AtomicU64>),
    pub(super) rules4: MapHandle,
    pub(super) rules6: MapHandle,
    pub(super) spared: MapHandle,
    sources: MapHandle,
}

fn shared_array(name: &str, bytes: usize) -> libbpf_rs::Result<(MapHandle, Mapped<AtomicU64>)> {
    let flags = libbpf_sys::BPF_F_MMAPABLE;
    let spec = MapSpec { kind: MapType::Array, name, key: 4, value: bytes, entries: 1, flags, inner: None };
    let map = spec.create()?;
    let words = Mapped::new(map.as_fd(), bytes.div_ceil(8))?;
    Ok((map, words))
}

fn hash(name: &str, key: usize, value: usize, entries: usize) -> libbpf_rs::Result<MapHandle> {
    let flags = libbpf_sys::BPF_F_NO_PREALLOC;
    MapSpec { kind: MapType::Hash, name, key, value, entries, flags, inner: None }.create()
}

pub(super) fn rule_map(is_v4: bool, capacity: u32) -> libbpf_rs::Result<MapHandle> {
    let (name, key) =
        if is_v4 { ("rules4", size_of::<net_prefix4>()) } else { ("rules6", size_of::<net_prefix6>()) };
    hash(name, key, size_of::<net_rule>(), capacity as usize)
}

impl BlockMaps {
    /// Creates empty maps.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory.
    pub fn create() -> libbpf_rs::Result<Self> {
        let outer = |name: &str, inner: &MapHandle| {
            let spec = MapSpec {
                kind: MapType::ArrayOfMaps,
                name,
                key: 4,
                value: 4,
                entries: List::ALL.len(),
                flags: 0,
                inner: Some(inner.as_fd()),
            };
            spec.create()
        };
        Ok(Self {
            common: shared_array(".bss.blocklist", size_of::<net_blocklist>())?,
            marks4: shared_array(".bss.marks4", MARK_BYTES)?,
            marks6: shared_array(".bss.marks6", MARK_BYTES)?,
            rules4: outer("rules4", &rule_map(true, 1)?)?,
            rules6: outer("rules6", &rule_map(false, 1)?)?,
            spared: hash("spared", size_of::<net_connection>(), 4, SPARED)?,
            sources: MapSpec {
                kind: MapType::PercpuArray,
                name: "block_sources",
                key: 4,
                value: size_of::<net_source>(),
                entries: SOURCES,
                flags: 0,
                inner: None,
            }
            .create()?,
        })
    }

    /// The maps that programs share, by their names in the object.
    pub fn shared(&self) -> [(&'static str, BorrowedFd<'_>); 7] {
        [
            (".bss.blocklist", self.common.0.as_fd()),
            (".bss.marks4", self.marks4.0.as_fd()),
            (".bss.marks6", self.marks6.0.as_fd()),
            ("rules4", self.rules4.as_fd()),
            ("rules6", self.rules6.as_fd()),
            ("spared", self.spared.as_fd()),
            ("block_sources", self.sources.as_fd()),
        ]
    }

    /// Packets that matched entries of a source, by verdict; zero if they cannot be read.
    pub fn of_source(&self, number: u16) -> [Sum; Verdict::ALL.len()] {
        let per_cpu = self.sources.lookup_percpu(&u32::from(number).to_ne_bytes(), MapFlags::ANY);
        let words = sum_words(&per_cpu.ok().flatten().unwrap_or_default(), size_of::<net_source>() / 8);
        std::array::from_fn(|verdict| Sum { packets: words[2 * verdict], bytes: words[2 * verdict + 1] })
    }

    /// Sets whether packets are dropped.
    pub fn set_enforce(&self, enforce: bool) {
        self.half(offset_of!(net_blocklist, enforce), u32::from(enforce));
    }

    /// Sets the number of protected connections; with zero, the look-up is skipped.
    pub(super) fn set_spares(&self, number: usize) {
        self.half(offset_of!(net_blocklist, spares), number as u32);
    }

    /// Sets the TCP ports that always pass: the first eight.
    pub fn set_own_ports(&self, ports: &[u16]) {
        for at in 0..OWN_PORTS {
            let port = ports.get(at).copied().unwrap_or(0);
            self.half(offset_of!(net_blocklist, own_ports) + 4 * at, port.into());
        }
    }

    /// There is one writer at a time.
    fn half(&self, offset: usize, value: u32) {
        let word = &self.common.1[offset / 8];
        let shift = offset % 8 * 8;
        let others = word.load(Ordering::Relaxed) & !(u64::from(u32::MAX) << shift);
        word.store(others | u64::from(value) << shift, Ordering::Release);
    }

    /// The word with the bit of a prefix length, and the bit.
    pub(super) fn length(&self, list: List, prefix: Prefix) -> (&AtomicU64, u64) {
        let base = list as usize * size_of::<super::super::abi::net_lengths>() / 8;
        let (word, bit) = match (prefix.address(), prefix.bits()) {
            (IpAddr::V4(_), bits) => (0, bits),
            (IpAddr::V6(_), bits) => (1 + usize::from(bits / 64), bits % 64),
        };
        (&self.common.1[base + word], 1 << bit)
    }

    pub(super) fn mark(&self, list: List, prefix: Prefix) {
        each_word(list, prefix, |bitmap, word, bits| {
            self.bitmap(bitmap)[word].fetch_or(bits, Ordering::Release);
        });
    }

    fn bitmap(&self, bitmap: Bitmap) -> &[AtomicU64] {
        match bitmap {
            Bitmap::V4 => &self.marks4.1,
            Bitmap::V6 => &self.marks6.1,
            Bitmap::Allowed => &self.common.1[offset_of!(net_blocklist, allowed) / 8..][..ALLOWED_WORDS],
        }
    }

    fn bitmaps<'a>(&'a self, marks: &'a Marks) -> impl Iterator<Item = (&'a AtomicU64, u64)> {
        [(Bitmap::V4, &marks.v4), (Bitmap::V6, &marks.v6), (Bitmap::Allowed, &marks.allowed)]
            .into_iter()
            .flat_map(|(bitmap, words)| self.bitmap(bitmap).iter().zip(words.iter().copied()))
    }

    /// Sets the bits of `marks` and keeps those that are set.
    pub fn add_marks(&self, marks: &Marks) {
        for (word, new) in self.bitmaps(marks).filter(|(_, new)| *new != 0) {
            word.fetch_or(new, Ordering::Release);
        }
    }

    /// Sets exactly the bits of `marks`.
    pub fn set_marks(&self, marks: &Marks) {
        for (word, new) in self.bitmaps(marks).filter(|(word, new)| word.load(Ordering::Relaxed) != *new) {
            word.store(new, Ordering::Release);
        }
    }
}
