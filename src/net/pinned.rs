//! What of the packet counters stays in the kernel when the exporter ends (`state: pinned`), and how the next one finds it.
//!
//! ```text
//! network/
//!     state                       what the tables were made for (a document)
//!     counters, talkers, ...      maps of all network namespaces
//!     stack-COOKIE-SWITCHES/      programs at the stack's tracepoints
//!     SPACE-COOKIE/               a network namespace, by the kernel's number, which is given out once
//!         ports, more_ports, fast
//!         stats-ID                counters of an interface
//!         INDEX-ingress-HOOK      link to the interface of this index
//!         INDEX-egress-tcx        likewise
//!         INDEX-egress-filter     the program that is a filter of the interface, for kernels before 6.6
//! ```
//!
//! Names tell all, so that nothing has to be written down of an interface: an exporter may be killed at any moment.

use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use crate::pins::{PinDir, PinError, code_of, fingerprint};

use super::abi::{Direction, HASH_KEYS};
use super::attach::{Attached, HeldLink, detach_filter, is_on};
use super::config::{Count, Space};
use super::hook::Hook;
use super::sys::{link_target, netns_cookie, open_pinned};

const STATS: &str = "stats-";
const STACK: &str = "stack-";
const FILTER: &str = "-egress-filter";

/// What the tables were created for. Tables created for something else are not taken over.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Layout {
    /// Of the ABI shared with the programs.
    abi: String,
    talkers: u32,
    flows: u32,
    /// Group counters are identified by number.
    cidrs: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: String,
    layout: Layout,
    /// The hash keys of the tables of talkers and flows.
    keys: [u64; HASH_KEYS],
}

impl Layout {
    fn of(count: &Count) -> Self {
        let texts = [
            include_str!("../../bpf/net_abi.h"),
            include_str!("../../bpf/histogram.bpf.h"),
            include_str!("../../bpf/port.bpf.h"),
            include_str!("../../bpf/socket.bpf.h"),
            include_str!("../../bpf/stack.bpf.c"),
            include_str!("../../bpf/talkers.bpf.h"),
            include_str!("stats/all.bpf.h"),
            include_str!("stats/cidrs.bpf.h"),
            include_str!("stats/drops.bpf.h"),
            include_str!("stats/fragments.bpf.h"),
            include_str!("stats/packets.bpf.h"),
            include_str!("stats/parse_errors.bpf.h"),
            include_str!("stats/tcp_flags.bpf.h"),
            include_str!("stats/tcp_trouble.bpf.h"),
            include_str!("stats/tracked.bpf.h"),
        ];
        Self {
            abi: fingerprint(&code_of(&texts)),
            talkers: count.talkers,
            flows: count.flows,
            cidrs: fingerprint(&format!("{:?}", count.cidrs)),
        }
    }

    /// The difference, as a continuation of "because".
    fn differs_from(&self, now: &Self, version: &str) -> Option<String> {
        if self.abi != now.abi {
            Some(format!("version {version} made it, whose tables differ"))
        } else if (self.talkers, self.flows) != (now.talkers, now.flows) {
            Some("`network.count.talkers` or `flows` has changed".to_string())
        } else if self.cidrs != now.cidrs {
            Some("`network.count.cidrs` has changed".to_string())
        } else {
            None
        }
    }
}

/// The hash keys of a previous exporter's tables; `None` if there are no matching ones, in which case the others have
/// been removed.
///
/// # Errors
/// If they cannot be removed.
pub(super) fn earlier(pins: &PinDir, count: &Count) -> Result<Option<[u64; HASH_KEYS]>, PinError> {
    let reason = match pins.load::<Record>() {
        Ok(None) => None,
        Ok(Some(record)) => match record.layout.differs_from(&Layout::of(count), &record.version) {
            None => {
                log::info!("Took over the packet counters that version {} left attached", record.version);
                return Ok(Some(record.keys));
            }
            Some(reason) => Some(reason),
        },
        Err(err) => Some(err.to_string()),
    };
    match reason {
        Some(reason) => begin_anew(pins, &reason)?,
        None => remove_pinned(pins)?,
    }
    Ok(None)
}

/// Removes state that does not match.
///
/// # Errors
/// If it cannot be removed.
pub(super) fn begin_anew(pins: &PinDir, reason: &str) -> Result<(), PinError> {
    log::warn!("The pinned packet counters are not taken over: {reason}; they start from zero");
    remove_pinned(pins)
}

/// Removes all pinned state, which detaches everything.
///
/// # Errors
/// If it cannot be removed.
pub(crate) fn remove_pinned(pins: &PinDir) -> Result<(), PinError> {
    warn_of_filters(&detach_filters(pins));
    pins.clear()
}

/// Writes the layout once the tables exist.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn save(pins: &PinDir, count: &Count, keys: [u64; HASH_KEYS]) -> Result<(), PinError> {
    pins.save(&Record { version: env!("CARGO_PKG_VERSION").to_string(), layout: Layout::of(count), keys })
}

/// The name of a network namespace's directory, without its cookie.
pub(super) fn label(space: &Space) -> String {
    match space {
        Space::Own => "own-".to_string(),
        Space::Netns(name) => format!("{}-", fingerprint(&format!("netns {name}"))),
        Space::Container(name) => format!("{}-", fingerprint(&format!("container {name}"))),
    }
}

pub(super) fn warn_of_filters(left: &[i32]) {
    for index in left {
        log::warn!("the TC filter on interface {index} of another network namespace is left attached");
    }
}

/// Directories of network namespaces, by name.
pub(super) fn spaces(pins: &PinDir) -> Vec<(String, PinDir)> {
    let is_space =
        |name: &String| !name.starts_with(STACK) && pins.path(name).is_some_and(|path| path.is_dir());
    let names = pins.names().into_iter().filter(is_space);
    names.filter_map(|name| Some((name.clone(), pins.child(&name).ok()?))).collect()
}

/// The name of an interface's counters.
pub(super) fn stats_name(id: u32) -> String {
    format!("{STATS}{id}")
}

/// Ids of the interfaces with pinned counters.
pub(super) fn counters_of(space: &PinDir) -> Vec<u32> {
    space.names().iter().filter_map(|name| name.strip_prefix(STATS)?.parse().ok()).collect()
}

/// The directory for programs on tracepoints in the calling thread's network namespace; others are removed.
///
/// # Errors
/// If it cannot be created.
pub(super) fn stack_directory(pins: &PinDir, count: &Count) -> libbpf_rs::Result<PinDir> {
    if !pins.is_pinned() {
        return Ok(PinDir::default());
    }
    let switches = u8::from(count.drop_reasons) + 2 * u8::from(count.tcp);
    let name = format!("{STACK}{}-{switches}", netns_cookie()?);
    for other in pins.names().iter().filter(|other| other.starts_with(STACK) && **other != name) {
        pins.remove(other)?;
    }
    Ok(if switches == 0 { PinDir::default() } else { pins.child(&name)? })
}

/// The name of a pinned link.
pub(super) fn link_name(index: i32, direction: Direction, hook: Hook) -> String {
    format!("{index}-{}-{}", direction.label(), hook.label())
}

/// The name of a pinned filter program.
fn filter_name(index: i32) -> String {
    format!("{index}{FILTER}")
}

/// A previous exporter's links that are still attached to the interface, and whether any of its programs is. Other pins
/// of the interface are removed.
pub(super) fn held_links(pins: &PinDir, index: i32) -> (Vec<HeldLink>, bool) {
    let mut links = Vec::new();
    for direction in Direction::ALL {
        for hook in Hook::ALL {
            let name = link_name(index, *direction, hook);
            let Some(path) = pins.path(&name).filter(|path| path.exists()) else { continue };
            let pin = pins.pin(&name);
            let Ok(link) = open_pinned(&path) else { continue };
            let target = link_target(link.as_fd());
            if target.is_ok_and(|(at, program)| {
                at == index as u32 && is_on(link.as_fd(), index, *direction, hook, program)
            }) {
                links.push(HeldLink { direction: *direction, hook, link, pin });
            }
        }
    }
    let has_any = !links.is_empty() || has_filter(pins, index);
    (links, has_any)
}

fn has_filter(pins: &PinDir, index: i32) -> bool {
    let path = pins.path(&filter_name(index)).filter(|path| path.exists());
    let program = path.and_then(|path| open_pinned(&path).ok());
    program.is_some_and(|program| super::attach::has_filter(program.as_fd(), index))
}

/// Pins an attachment, so that it outlives the exporter. A filter is pinned only in the exporter's own network
/// namespace, where `unpin` can find it again.
pub(super) fn keep(pins: &PinDir, attached: &mut Attached, index: i32, direction: Direction, hook: Hook) {
    let is_own = || pins.name().starts_with(&label(&Space::Own));
    let name = match attached {
        Attached::Link { .. } => link_name(index, direction, hook),
        Attached::Filter { .. } if is_own() => filter_name(index),
        Attached::Filter { .. } => return,
    };
    let Some(path) = pins.path(&name) else { return };
    // A stale pin.
    let _ = std::fs::remove_file(&path);
    if let Err(err) = attached.pin(&path, pins.pin(&name)) {
        log::warn!("failed to pin {}: {err}; packets are not counted while no exporter runs", path.display());
    }
}

/// Detaches filters that remain although nothing is pinned any more. Returns the indexes of interfaces in other network
/// namespaces, whose filters stay.
pub(crate) fn detach_filters(pins: &PinDir) -> Vec<i32> {
    spaces(pins).iter().flat_map(|(name, space)| detach_filters_in(name, space)).collect()
}

pub(super) fn detach_filters_in(name: &str, space: &PinDir) -> Vec<i32> {
    let is_here = netns_cookie().is_ok_and(|cookie| name == format!("{}{cookie}", label(&Space::Own)));
    let mut left = Vec::new();
    for file in space.names() {
        let Some(index) = file.strip_suffix(FILTER).and_then(|index| index.parse().ok()) else { continue };
        match space.path(&file).map(|path| open_pinned(&path)) {
            Some(Ok(program)) if is_here => detach_filter(program, index),
            _ => left.push(index),
        }
    }
    left
}
