//! Loads the packet programs for one interface.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapHandle};

use super::abi::generated::NetSkelBuilder;
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
    pub ingress_stats: MapHandle,
    pub egress_stats: MapHandle,
}

/// Loads both directions' programs with this interface's constants.
///
/// # Errors
/// If the kernel refuses: not permitted (`CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`), or out of memory.
pub(crate) fn load(ifindex: i32, pieces: Pieces, tables: Option<&Tables>) -> libbpf_rs::Result<Loaded> {
    let mut storage = MaybeUninit::uninit();
    let mut open = NetSkelBuilder::default().open(&mut storage)?;
    if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
        constants.ifindex = ifindex as u32;
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
    let several = pieces == Pieces::Several;
    open.progs.net_ingress.set_autoload(!several && tables.is_none());
    open.progs.net_ingress_talkers.set_autoload(!several && tables.is_some());
    open.progs.net_ingress_frags.set_autoload(several);
    let skel = open.load()?;
    let ingress = match (several, tables.is_some()) {
        (true, _) => &skel.progs.net_ingress_frags,
        (false, true) => &skel.progs.net_ingress_talkers,
        (false, false) => &skel.progs.net_ingress,
    };
    Ok(Loaded {
        ingress: ingress.as_fd().try_clone_to_owned()?,
        egress: skel.progs.net_egress.as_fd().try_clone_to_owned()?,
        ingress_stats: MapHandle::try_from(&skel.maps.ingress_stats)?,
        egress_stats: MapHandle::try_from(&skel.maps.egress_stats)?,
    })
}
