//! Loads the packet programs for one interface.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::kernel::{Mapping, log_libbpf};

use super::abi::generated::{NetSkel, NetSkelBuilder};
use super::abi::{net_plain, net_stats};
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

/// A program in the kernel. It lives as long as this or a link to it, its maps as long as it uses them.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub program: OwnedFd,
    pub stats: MapHandle,
    /// What is counted apart from `stats`, if the program has the short way for plain frames.
    plain: Option<Mapping>,
}

impl Loaded {
    /// What it counted so far.
    pub fn counters(&self) -> Counters {
        // A per-CPU array of one value can always be read; should it not be, zeros are shown rather than nothing served.
        let values = self.stats.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
        let words = self.plain.iter().flat_map(Mapping::words).map(|word| word.load(Ordering::Relaxed));
        Counters::sum(&values.unwrap_or_default()).with_plain(words)
    }
}

/// For how many CPUs plain frames are counted: all numbers that a CPU of this machine can have, as a power of two.
///
/// # Errors
/// If the system does not say which CPUs are possible.
pub fn cpu_slots() -> io::Result<usize> {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = ranges.trim_end().rsplit(['-', ',']).next().and_then(|number| number.parse::<usize>().ok());
    last.map(|number| (number + 1).next_power_of_two())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, ranges.clone()))
}

/// Kernel memory of the counters of one interface in both directions, in bytes.
pub(crate) fn memory(with_talkers: bool, cpus: usize) -> u64 {
    let plain = if with_talkers { 0 } else { cpus.next_power_of_two() * size_of::<net_plain>() };
    (2 * cpus * size_of::<net_stats>() + plain) as u64
}

/// Loads what counts on the way in, with this interface's constants.
///
/// # Errors
/// If the kernel refuses: not permitted (`CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`), or out of memory.
pub(crate) fn load_ingress(
    ifindex: i32,
    pieces: Pieces,
    tables: Option<&Tables>,
) -> libbpf_rs::Result<Loaded> {
    /// Whether the verifier was found not to know a bound of a CPU's number.
    static MASKED: AtomicBool = AtomicBool::new(false);
    match (pieces, tables.is_some()) {
        (Pieces::Several, _) => load("net_ingress_frags", ifindex, tables),
        (Pieces::One, true) => load("net_ingress_talkers", ifindex, tables),
        (Pieces::One, false) => {
            if !MASKED.load(Ordering::Relaxed) {
                match load("net_ingress", ifindex, tables) {
                    Ok(loaded) => return Ok(loaded),
                    Err(why) => log::debug!("no packet program without a mask: {why:#}"),
                }
            }
            let loaded = load("net_ingress_masked", ifindex, tables)?;
            MASKED.store(true, Ordering::Relaxed);
            Ok(loaded)
        }
    }
}

/// The same of what counts on the way out.
///
/// # Errors
/// As for [`load_ingress`].
pub(crate) fn load_egress(ifindex: i32, tables: Option<&Tables>) -> libbpf_rs::Result<Loaded> {
    load("net_egress", ifindex, tables)
}

fn load(name: &str, ifindex: i32, tables: Option<&Tables>) -> libbpf_rs::Result<Loaded> {
    log_libbpf();
    let mut storage = MaybeUninit::uninit();
    let mut open = NetSkelBuilder::default().open(&mut storage)?;
    let has_plain = matches!(name, "net_ingress" | "net_ingress_masked");
    let slots = if has_plain { cpu_slots()? } else { 1 };
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
    for mut program in open.open_object_mut().progs_mut() {
        let wanted = program.name() == name;
        program.set_autoload(wanted);
    }
    let skel = open.load()?;
    let plain = has_plain.then(|| Mapping::new(skel.maps.bss_plain.as_fd(), slots, size_of::<net_plain>()));
    let stats = if name == "net_egress" { &skel.maps.egress_stats } else { &skel.maps.ingress_stats };
    Ok(Loaded {
        program: program(&skel, name)?,
        stats: MapHandle::try_from(stats)?,
        plain: plain.transpose()?,
    })
}

fn program(skel: &NetSkel<'_>, name: &str) -> io::Result<OwnedFd> {
    let program = skel.object().progs().find(|program| program.name() == name);
    program.ok_or_else(|| io::Error::other(format!("no program {name}")))?.as_fd().try_clone_to_owned()
}
