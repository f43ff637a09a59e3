//! Loads the packet programs for one interface.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

/// What counters of plain frames may take of all interfaces together, in bytes. Those that come later are counted the long
/// way only, which takes 3 ns more for a packet: a hundred veths on many CPUs would take as many megabytes.
const PLAIN_BUDGET: usize = 16 << 20;

/// A part of [`PLAIN_BUDGET`] for so many CPUs, given back when dropped.
#[derive(Debug)]
struct Share {
    slots: usize,
}

static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Share {
    fn take(slots: usize) -> Option<Self> {
        let more = |taken| Some(taken + plain_bytes(slots)).filter(|sum| *sum <= PLAIN_BUDGET);
        TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self { slots })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        TAKEN.fetch_sub(plain_bytes(self.slots), Ordering::Relaxed);
    }
}

const fn plain_bytes(slots: usize) -> usize {
    slots * size_of::<net_plain>()
}

/// A program in the kernel. It lives as long as this or a link to it, its maps as long as it uses them.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub program: OwnedFd,
    stats: MapHandle,
    /// What is counted apart from `stats`, if the program has the short way for plain frames.
    plain: Option<(Mapping, Share)>,
}

impl Loaded {
    /// What it counted so far.
    pub fn counters(&self) -> Counters {
        // A per-CPU array of one value can always be read; should it not be, zeros are shown rather than nothing served.
        let values = self.stats.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
        let words =
            self.plain.iter().flat_map(|(plain, _)| plain.words()).map(|word| word.load(Ordering::Relaxed));
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

/// Kernel memory of the counters of one interface in both directions, in bytes: as long as [`PLAIN_BUDGET`] lasts.
pub(crate) fn memory(with_talkers: bool, cpus: usize) -> u64 {
    let plain = if with_talkers { 0 } else { plain_bytes(cpus.next_power_of_two()) };
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
    if pieces == Pieces::Several {
        return load("net_ingress_frags", ifindex, tables, None);
    }
    if tables.is_some() {
        return load("net_ingress_talkers", ifindex, tables, None);
    }
    for masked in [false, true] {
        if MASKED.load(Ordering::Relaxed) && !masked {
            continue;
        }
        let Some(share) = Share::take(cpu_slots()?) else { break };
        let name = if masked { "net_ingress_masked" } else { "net_ingress" };
        match load(name, ifindex, None, Some(share)) {
            Ok(loaded) => {
                MASKED.store(masked, Ordering::Relaxed);
                return Ok(loaded);
            }
            Err(why) => log::debug!("{name}: {why:#}"),
        }
    }
    load("net_ingress_long", ifindex, None, None)
}

/// The same of what counts on the way out.
///
/// # Errors
/// As for [`load_ingress`].
pub(crate) fn load_egress(ifindex: i32, tables: Option<&Tables>) -> libbpf_rs::Result<Loaded> {
    load("net_egress", ifindex, tables, None)
}

fn load(
    name: &str,
    ifindex: i32,
    tables: Option<&Tables>,
    share: Option<Share>,
) -> libbpf_rs::Result<Loaded> {
    log_libbpf();
    let mut storage = MaybeUninit::uninit();
    let mut open = NetSkelBuilder::default().open(&mut storage)?;
    let slots = share.as_ref().map_or(1, |share| share.slots);
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
    open.maps.bss_plain.set_value_size(plain_bytes(slots) as u32)?;
    for mut program in open.open_object_mut().progs_mut() {
        let wanted = program.name() == name;
        program.set_autoload(wanted);
    }
    let skel = open.load()?;
    let map = skel.maps.bss_plain.as_fd();
    let plain =
        share.map(|share| Mapping::new(map, slots, size_of::<net_plain>()).map(|plain| (plain, share)));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As root: on the loopback interface, to which nothing is attached.
    #[test]
    fn counters_of_plain_frames_keep_to_their_budget() {
        let slots = cpu_slots().unwrap();
        let all = Share::take(PLAIN_BUDGET / size_of::<net_plain>()).unwrap();
        assert!(Share::take(slots).is_none());
        let beyond = load_ingress(1, Pieces::One, None).expect("the kernel refused; this test needs root");
        assert!(beyond.plain.is_none());
        drop(all);
        let within = load_ingress(1, Pieces::One, None).unwrap();
        assert!(within.plain.is_some());
        assert_eq!(TAKEN.load(Ordering::Relaxed), plain_bytes(slots));
        drop(within);
        assert_eq!(TAKEN.load(Ordering::Relaxed), 0);
    }
}
