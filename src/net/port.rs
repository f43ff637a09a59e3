//! One interface with its programs.

use std::os::fd::AsFd;

use super::attach::{Attached, ONE_PIECE_MTU, Refusal, XdpMode, attach_egress, attach_xdp, xdp_is_there};
use super::collect::Reading;
use super::config::Mode;
use super::links::Interface;
use super::load::{Loaded, Pieces, load_egress, load_ingress};
use super::tables::Tables;

/// An interface that is counted on, as far as the kernel lets us. Dropping it detaches.
#[derive(Debug)]
pub(crate) struct Port {
    pub on: Interface,
    ingress: Result<Ingress, Refusal>,
    egress: Result<Egress, Refusal>,
}

#[derive(Debug)]
struct Ingress {
    _attached: Attached,
    mode: XdpMode,
    loaded: Loaded,
}

#[derive(Debug)]
struct Egress {
    _attached: Attached,
    loaded: Loaded,
}

impl Port {
    /// Loads and attaches both directions, each for itself: one that is refused leaves the other.
    pub fn open(on: Interface, mode: Mode, tables: Option<&Tables>) -> Self {
        let ingress = open_ingress(&on, mode, tables);
        let egress = open_egress(&on, tables);
        Self { on, ingress, egress }
    }

    /// Tries again what was refused. True if something changed.
    pub fn retry(&mut self, mode: Mode, tables: Option<&Tables>) -> bool {
        let gone = self
            .ingress
            .as_ref()
            .is_ok_and(|ingress| !xdp_is_there(ingress.loaded.program.as_fd(), self.on.index));
        let mut changed = false;
        if self.ingress.is_err() || gone {
            let again = open_ingress(&self.on, mode, tables);
            changed |= gone || again.is_ok();
            self.ingress = again;
        }
        if self.egress.is_err() {
            self.egress = open_egress(&self.on, tables);
            changed |= self.egress.is_ok();
        }
        changed
    }

    /// The mode of XDP, if it is attached.
    pub fn mode(&self) -> Option<XdpMode> {
        self.ingress.as_ref().ok().map(|ingress| ingress.mode)
    }

    /// Direction and reason of what is not attached.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, &Refusal)> {
        let ingress = self.ingress.as_ref().err().map(|refusal| ("ingress", refusal));
        let egress = self.egress.as_ref().err().map(|refusal| ("egress", refusal));
        ingress.into_iter().chain(egress)
    }

    /// What was counted so far.
    pub fn read(&self) -> Reading {
        Reading {
            name: self.on.name.clone(),
            ingress: self
                .ingress
                .as_ref()
                .ok()
                .map(|ingress| (ingress.loaded.counters(), Some(ingress.mode))),
            egress: self.egress.as_ref().ok().map(|egress| egress.loaded.counters()),
            refused: self.refusals().map(|(direction, refusal)| (direction, refusal.reason)).collect(),
        }
    }
}

fn refuse_load(on: &Interface) -> impl Fn(libbpf_rs::Error) -> Refusal + '_ {
    |error| {
        let denied = error.kind() == libbpf_rs::ErrorKind::PermissionDenied;
        let next = "loading needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and a kernel of 5.18 or later";
        Refusal {
            reason: if denied { "permission" } else { "other" },
            text: format!("{}: the packet programs are not loaded: {error:#}; {next}", on.name),
        }
    }
}

fn open_ingress(on: &Interface, mode: Mode, tables: Option<&Tables>) -> Result<Ingress, Refusal> {
    let attempt = |pieces, mode| {
        let loaded = load_ingress(on.index, pieces, tables).map_err(refuse_load(on))?;
        let (attached, mode) = attach_xdp(loaded.program.as_fd(), on, mode)?;
        Ok(Ingress { _attached: attached, mode, loaded })
    };
    if mode == Mode::Generic || on.mtu <= ONE_PIECE_MTU {
        return attempt(Pieces::One, mode);
    }
    // Above a page, a driver takes programs that know frames in pieces, if it knows them itself.
    match attempt(Pieces::Several, Mode::Native) {
        Err(refusal) if mode == Mode::Auto && refusal.reason != "busy" => attempt(Pieces::One, Mode::Generic),
        result => result,
    }
}

fn open_egress(on: &Interface, tables: Option<&Tables>) -> Result<Egress, Refusal> {
    let loaded = load_egress(on.index, tables).map_err(refuse_load(on))?;
    let attached = attach_egress(loaded.program.as_fd(), on)?;
    Ok(Egress { _attached: attached, loaded })
}
