//! Statistics of the network stack in the exporter's network namespace: drop reasons and TCP connections, from
//! tracepoints (`bpf/stack.bpf.c`) and from `/proc` where there is no tracepoint.

use std::collections::BTreeMap;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use libbpf_rs::MapHandle;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Enum;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use crate::exposition::{Family, Kind, Number};
use crate::logging::log_libbpf;
use crate::pins::PinDir;

use super::config::Count;
use super::counter_maps::of_every_cpu;
use super::counters::sum_words;
use super::pinned::stack_directory;
use super::sockets::STATES;
use super::sys::{open_pinned, pin};

include!(concat!(env!("OUT_DIR"), "/stack.skel.rs"));

use generated::StackSkelBuilder;
use generated::types::{stack_histogram, stack_stats};

/// The exponent of the first bound and the unit, for histograms of microseconds and of milliseconds.
pub(super) const TIMES: (u32, f64) = (4, 1e-6);
const DURATIONS: (u32, f64) = (0, 1e-3);

/// Reasons with a counter of their own; the last counts all others.
const REASONS: usize = offset_of!(stack_stats, states) / 8;
const ROW: usize = 16;
const SLOTS: usize = size_of::<stack_histogram>() / 8 - 1;

/// Tracepoints, and whether it is the one of drops.
const TRACEPOINTS: [(&str, bool); 5] = [
    ("kfree_skb", true),
    ("inet_sock_set_state", false),
    ("tcp_retransmit_skb", false),
    ("tcp_send_reset", false),
    ("tcp_receive_reset", false),
];

/// The programs on the stack's tracepoints. Dropping it detaches those that are not pinned.
#[derive(Debug)]
pub(crate) struct Stack {
    drops: bool,
    tcp: bool,
    stats: MapHandle,
    reasons: BTreeMap<usize, String>,
    _links: Vec<OwnedFd>,
}

/// Counters and links of a previous exporter, if all the required ones exist.
fn earlier(pins: &PinDir, wanted: &[&str]) -> Option<(MapHandle, Vec<OwnedFd>)> {
    let stats = MapHandle::from_pinned_path(pins.path("stats").filter(|path| path.exists())?).ok()?;
    let links = wanted.iter().map(|name| open_pinned(&pins.path(name)?).ok()).collect::<Option<Vec<_>>>()?;
    Some((stats, links))
}

fn attach(count: &Count, wanted: &[&str], pins: &PinDir) -> libbpf_rs::Result<(MapHandle, Vec<OwnedFd>)> {
    log_libbpf();
    let mut storage = MaybeUninit::uninit();
    let mut open = StackSkelBuilder::default().open(&mut storage)?;
    if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
        constants.namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino() as u32;
    }
    open.progs.drop.set_autoload(count.drop_reasons);
    let progs = &mut open.progs;
    for program in [&mut progs.state, &mut progs.retransmit, &mut progs.reset_sent, &mut progs.reset_received]
    {
        program.set_autoload(count.tcp);
    }
    let skel = open.load()?;
    let progs = &skel.progs;
    let all = [&progs.drop, &progs.state, &progs.retransmit, &progs.reset_sent, &progs.reset_received];
    let mut stats = MapHandle::try_from(&skel.maps.stats)?;
    if let Some(path) = pins.path("stats") {
        stats.pin(path)?;
    }
    let mut links = Vec::new();
    for ((name, _), program) in TRACEPOINTS.iter().zip(all).filter(|((name, _), _)| wanted.contains(name)) {
        let link = program.attach_raw_tracepoint(*name)?.as_fd().try_clone_to_owned()?;
        if let Some(path) = pins.path(name) {
            pin(link.as_fd(), &path)?;
        }
        links.push(link);
    }
    Ok((stats, links))
}

impl Stack {
    /// Attaches what is configured in the calling thread's network namespace, or takes over what a previous exporter
    /// left in `pins`;
    /// `None` if nothing is configured.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load(count: &Count, pins: &PinDir) -> libbpf_rs::Result<Option<Self>> {
        let pins = stack_directory(pins, count)?;
        if !count.drop_reasons && !count.tcp {
            return Ok(None);
        }
        let wanted: Vec<&str> = TRACEPOINTS
            .iter()
            .filter(|(_, is_drop)| if *is_drop { count.drop_reasons } else { count.tcp })
            .map(|(name, _)| *name)
            .collect();
        let (stats, links) = match earlier(&pins, &wanted) {
            Some(all) => all,
            None => {
                pins.clear()?;
                attach(count, &wanted, &pins)?
            }
        };
        let reasons = if count.drop_reasons { drop_reasons()? } else { BTreeMap::new() };
        Ok(Some(Self { drops: count.drop_reasons, tcp: count.tcp, stats, reasons, _links: links }))
    }

    /// The metrics. Those from `/proc` are of the calling thread's namespace.
    pub fn families(&self) -> Vec<Family> {
        let sum = sum_words(&of_every_cpu(&self.stats, 0), size_of::<stack_stats>() / 8);
        let at = |offset: usize| &sum[offset / 8..];
        let mut all = Vec::new();
        if self.drops {
            all.push(drops(&self.reasons, at(offset_of!(stack_stats, drops))));
        }
        if self.tcp {
            all.push(state_changes(at(offset_of!(stack_stats, states))));
            all.extend(tcp_counters(at));
            all.extend(tcp_times(at));
            // Without /proc, they are left out.
            let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
            all.extend(listen_counters(|name| netstat(&text, name)));
        }
        all
    }
}

/// All families of [`Stack::families`], each with a series that has all its labels.
pub(super) fn every_family() -> Vec<Family> {
    let zeros = vec![0; size_of::<stack_stats>() / 8];
    let at = |offset: usize| &zeros[offset / 8..];
    let mut all = vec![drops(&BTreeMap::new(), at(0)), state_changes(at(0))];
    all.extend(tcp_counters(at));
    all.extend(tcp_times(at));
    all.extend(listen_counters(|_| Some(0)));
    all
}

/// Only reasons that have occurred: there are more than a hundred.
fn drops(reasons: &BTreeMap<usize, String>, counts: &[u64]) -> Family {
    let help = "Packets dropped by the kernel, by its drop reason.";
    let mut family = Family::new("network_kernel_drops_total", Kind::Counter, help);
    let mut others = 0;
    for (reason, count) in counts[..REASONS].iter().enumerate().filter(|(_, count)| **count > 0) {
        match reasons.get(&reason) {
            Some(name) => family.number(&[("reason", name)], *count),
            None => others += count,
        }
    }
    family.number(&[("reason", "other")], others);
    family
}

fn state_changes(counts: &[u64]) -> Family {
    let help = "TCP socket state changes; syn_sent to close is a failed connect.";
    let mut family = Family::new("network_tcp_state_changes_total", Kind::Counter, help);
    for (from, name_from) in STATES.iter().enumerate() {
        for (to, name_to) in STATES.iter().enumerate() {
            // States are numbered from one.
            let count = counts[(from + 1) * ROW + to + 1];
            if count > 0 || (*name_from, *name_to) == ("syn_sent", "close") {
                family.number(&[("from", name_from), ("to", name_to)], count);
            }
        }
    }
    family
}

fn tcp_counters<'a>(at: impl Fn(usize) -> &'a [u64]) -> Vec<Family> {
    let help = "Retransmitted TCP segments.";
    let mut retransmits = Family::new("network_tcp_retransmits_total", Kind::Counter, help);
    retransmits.number(&[], at(offset_of!(stack_stats, retransmits))[0]);
    let help = "TCP connections reset, by this host (sent) or by the peer (received).";
    let mut resets = Family::new("network_tcp_resets_total", Kind::Counter, help);
    resets.number(&[("direction", "sent")], at(offset_of!(stack_stats, resets_sent))[0]);
    resets.number(&[("direction", "received")], at(offset_of!(stack_stats, resets_received))[0]);
    let help =
        "TCP connections missing from network_tcp_connection_duration_seconds because the table was full.";
    let mut untimed = Family::new("network_tcp_untimed_connections_total", Kind::Counter, help);
    untimed.number(&[], at(offset_of!(stack_stats, untimed))[0]);
    vec![retransmits, resets, untimed]
}

fn tcp_times<'a>(at: impl Fn(usize) -> &'a [u64]) -> Vec<Family> {
    let of = |name, help, (shift, unit): (u32, f64), series: &[(&[(&'static str, &str)], usize)]| {
        let mut family = Family::new(name, Kind::Histogram(bounds(shift, unit)), help);
        for (labels, offset) in series {
            observe(&mut family, labels, at(*offset), unit);
        }
        family
    };
    let handshake = offset_of!(stack_stats, handshake);
    vec![
        of(
            "network_tcp_handshake_duration_seconds",
            "Round-trip time of the TCP handshake, by the side that opened the connection.",
            TIMES,
            &[
                (&[("opened_by", "self")], handshake),
                (&[("opened_by", "peer")], handshake + size_of::<stack_histogram>()),
            ],
        ),
        of(
            "network_tcp_rtt_seconds",
            "Smoothed round-trip time of TCP connections at the start of their close.",
            TIMES,
            &[(&[], offset_of!(stack_stats, rtt))],
        ),
        of(
            "network_tcp_connection_duration_seconds",
            "Duration of TCP connections, from the handshake to the close.",
            DURATIONS,
            &[(&[], offset_of!(stack_stats, duration))],
        ),
    ]
}

/// The bounds of a histogram of `bpf/histogram.bpf.h`.
pub(super) fn bounds(shift: u32, unit: f64) -> Vec<f64> {
    (0..SLOTS as u32 - 1).map(|slot| f64::from(slot + shift).exp2() * unit).collect()
}

/// Adds a histogram, given its words.
pub(super) fn observe(family: &mut Family, labels: &[(&'static str, &str)], words: &[u64], unit: f64) {
    let sum = words[offset_of!(stack_histogram, sum) / 8] as f64 * unit;
    family.histogram_of(&[], labels, &words[..SLOTS], Number::Real(sum));
}

/// The kernel's names of drop reasons, in lower case.
fn drop_reasons() -> libbpf_rs::Result<BTreeMap<usize, String>> {
    let btf = Btf::from_vmlinux()?;
    let Some(all) = btf.type_by_name::<Enum<'_>>("skb_drop_reason") else {
        let text = "this kernel's type information has no skb_drop_reason (Linux 5.17)";
        return Err(io::Error::other(text).into());
    };
    let named = all.iter().filter_map(|member| {
        let name = member.name?.to_str()?.trim_start_matches("SKB_").trim_start_matches("DROP_REASON_");
        Some((usize::try_from(member.value).ok()?, name.to_lowercase()))
    });
    Ok(named.filter(|(number, _)| *number < REASONS - 1).collect())
}

/// Connections dropped because a listening socket's queue was full, and those dropped for any reason. Missing counters
/// are left out.
fn listen_counters(value: impl Fn(&str) -> Option<u64>) -> Vec<Family> {
    let counters = [
        (
            "network_tcp_listen_overflows_total",
            "TCP connections dropped because the accept queue of the listening socket was full (ListenOverflows).",
            "ListenOverflows",
        ),
        (
            "network_tcp_listen_drops_total",
            "TCP connections dropped by a listening socket for any reason (ListenDrops).",
            "ListenDrops",
        ),
    ];
    let families = counters.into_iter().filter_map(|(name, help, key)| {
        let mut family = Family::new(name, Kind::Counter, help).counted_elsewhere();
        family.number(&[], value(key)?);
        Some(family)
    });
    families.collect()
}

/// A counter of `/proc/net/netstat`, which has a line of names and a line of values for each protocol.
pub(super) fn netstat(text: &str, name: &str) -> Option<u64> {
    let lines: Vec<&str> = text.lines().collect();
    lines.as_chunks::<2>().0.iter().find_map(|pair| {
        let at = pair[0].split_whitespace().position(|one| one == name)?;
        pair[1].split_whitespace().nth(at)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_counters_by_name() {
        let text = "TcpExt: A ListenOverflows B\nTcpExt: 1 22 3\nIpExt: C D\nIpExt: 4 5\n";
        assert_eq!(netstat(text, "ListenOverflows"), Some(22));
        assert_eq!(netstat(text, "D"), Some(5));
        assert_eq!(netstat(text, "E"), None);
        assert_eq!(netstat("", "A"), None);
    }

    #[test]
    fn drop_reasons_use_kernel_names() {
        let reasons = drop_reasons().expect("this kernel has type information");
        assert!(reasons.values().any(|name| name == "no_socket"), "{reasons:?}");
        assert!(reasons.values().any(|name| name == "not_specified"), "{reasons:?}");
    }
}
