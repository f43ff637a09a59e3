//! Results of DNS queries sent by programs on this machine (`bpf/sockets.bpf.c`).

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::exposition::{Family, Kind};

use super::counter_maps::of_every_cpu;
use super::counters::sum_words;
use super::socket_abi::generated::types::{dns_query, dns_result, dns_stats, stack_histogram};
use super::stack::{TIMES, bounds, observe};
use super::sys::monotonic;

/// Nanoseconds after which a query counts as unanswered.
const QUERY_TIMEOUT: u64 = 10_000_000_000;

/// In the order of `enum dns_result`.
const RESULTS: [&str; 9] =
    ["noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "other", "timeout", "untracked"];
const _: () = assert!(RESULTS.len() == dns_result::DNS_RESULTS.0 as usize);
const TIMEOUT: usize = dns_result::DNS_TIMEOUT.0 as usize;

/// Where the server is.
const SERVERS: [&str; 2] = ["remote", "local"];

#[derive(Debug)]
pub(super) struct Dns {
    stats: MapHandle,
    asked: MapHandle,
    /// Unanswered queries, by server.
    unanswered: [AtomicU64; 2],
}

impl Dns {
    pub fn new(stats: MapHandle, asked: MapHandle) -> Self {
        Self { stats, asked, unanswered: Default::default() }
    }

    /// Times out overdue queries.
    pub fn maintain(&self) {
        for key in self.asked.keys() {
            let Ok(Some(query)) = self.asked.lookup(&key, MapFlags::ANY) else { continue };
            let word = |at: usize| {
                query.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
            };
            let asked = word(offset_of!(dns_query, asked));
            // Fails if the answer has just arrived.
            if monotonic().saturating_sub(asked) > QUERY_TIMEOUT && self.asked.delete(&key).is_ok() {
                let server = usize::from(word(offset_of!(dns_query, local)) != 0);
                self.unanswered[server].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub fn families(&self) -> [Family; 2] {
        let mut words = sum_words(&of_every_cpu(&self.stats, 0), size_of::<dns_stats>() / 8);
        for (server, unanswered) in self.unanswered.iter().enumerate() {
            words[server * RESULTS.len() + TIMEOUT] += unanswered.load(Ordering::Relaxed);
        }
        families(&words)
    }
}

fn families(words: &[u64]) -> [Family; 2] {
    let help = "DNS queries over UDP by result and by where the server is.";
    let mut queries = Family::new("network_dns_queries_total", Kind::Counter, help);
    let help = "Time from a DNS query to its response.";
    let (shift, unit) = TIMES;
    let mut times = Family::new("network_dns_duration_seconds", Kind::Histogram(bounds(shift, unit)), help);
    for (server, name) in SERVERS.iter().enumerate() {
        for (result, label) in RESULTS.iter().enumerate() {
            queries.number(&[("server", name), ("result", label)], words[server * RESULTS.len() + result]);
        }
        let at = offset_of!(dns_stats, times) / 8 + server * size_of::<stack_histogram>() / 8;
        observe(&mut times, &[("server", name)], &words[at..], unit);
    }
    [queries, times]
}

/// All families, each with a series that has all its labels.
pub(super) fn every_family() -> [Family; 2] {
    families(&vec![0; size_of::<dns_stats>() / 8])
}
