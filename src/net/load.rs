//! Loads the packet programs for one interface.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::kernel::Mapping;

use super::abi::generated::NetSkelBuilder;
use super::abi::net_plain;
use super::counters::Counters;
use super::tables::Tables;

/// Which of the XDP programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// Frames of one piece.
    One,
    /// Frames of several pieces, which native mode needs for an MTU above [`super::attach::ONE_PIECE_MTU`].
    Several,
}

/// What is in the kernel. Programs live as long as this or a link to them, maps as long as a program uses them.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub ingress: OwnedFd,
    pub egress: OwnedFd,
    pub egress_stats: MapHandle,
    ingress_stats: MapHandle,
    /// What is counted apart from `ingress_stats`, if the program has the short way for plain frames.
    plain: Option<Mapping>,
}

impl Loaded {
    /// What came in so far.
    pub fn ingress_counters(&self) -> Counters {
        let words = self.plain.iter().flat_map(Mapping::words).map(|word| word.load(Ordering::Relaxed));
        counters(&self.ingress_stats).with_plain(words)
    }
}

/// A per-CPU array of one value can always be read; should it not be, zeros are shown rather than nothing served.
pub(crate) fn counters(map: &MapHandle) -> Counters {
    let values = map.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
    Counters::sum(&values.unwrap_or_default())
}

/// One more than the largest number that a CPU of this machine can have.
fn cpu_numbers() -> io::Result<usize> {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = ranges.trim_end().rsplit(['-', ',']).next().and_then(|number| number.parse::<usize>().ok());
    last.map(|number| number + 1).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, ranges.clone()))
}

/// Loads both directions' programs with this interface's constants.
///
/// # Errors
/// If the kernel refuses: not permitted (`CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`), or out of memory.
pub(crate) fn load(ifindex: i32, pieces: Pieces, tables: Option<&Tables>) -> libbpf_rs::Result<Loaded> {
    let mut storage = MaybeUninit::uninit();
    let mut open = NetSkelBuilder::default().open(&mut storage)?;
    let several = pieces == Pieces::Several;
    let has_plain = !several && tables.is_none();
    let slots = if has_plain { cpu_numbers()?.next_power_of_two() } else { 1 };
    if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
        constants.ifindex = ifindex as u32;
        constants.cpu_mask = slots as u64 - 1;
        if let Some(tables) = tables {
            constants.with_talkers = true;
            constants.with_flows = tables.with_flows;
            constants.talker_sets_mask = tables.talkers.max_entries() - 1;
            constants.flow_sets_mask = tables.flows.max_entries() - 1;
            constants.seed = tables.seed;
        }
    }
    if let Some(tables) = tables {
        open.maps.talkers.reuse_fd(tables.talkers.as_fd())?;
        open.maps.flows.reuse_fd(tables.flows.as_fd())?;
        open.maps.sketch.reuse_fd(tables.sketch.as_fd())?;
    }
    open.maps.bss_plain.set_value_size((slots * size_of::<net_plain>()) as u32)?;
    open.progs.net_ingress.set_autoload(has_plain);
    open.progs.net_ingress_talkers.set_autoload(!several && tables.is_some());
    open.progs.net_ingress_frags.set_autoload(several);
    let skel = open.load()?;
    let ingress = match (several, tables.is_some()) {
        (true, _) => &skel.progs.net_ingress_frags,
        (false, true) => &skel.progs.net_ingress_talkers,
        (false, false) => &skel.progs.net_ingress,
    };
    let plain = has_plain.then(|| Mapping::new(skel.maps.bss_plain.as_fd(), slots, size_of::<net_plain>()));
    Ok(Loaded {
        ingress: ingress.as_fd().try_clone_to_owned()?,
        egress: skel.progs.net_egress.as_fd().try_clone_to_owned()?,
        ingress_stats: MapHandle::try_from(&skel.maps.ingress_stats)?,
        plain: plain.transpose()?,
        egress_stats: MapHandle::try_from(&skel.maps.egress_stats)?,
    })
}
