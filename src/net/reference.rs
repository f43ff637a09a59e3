//! Every packet metric once, for the reference of metrics. Nothing is attached.

use super::block::{AlertNumbers, FeedSummary, Source, Summary};
use super::cidr::CidrGroup;
use super::collect::{Reading, TopSource, families};
use super::config::Count;
use super::counters::Counters;
use super::hook::Hook;
use super::sockets::STATES;
use super::{attribution, detect, dns, stack, stats};
use crate::exposition::Family;

/// All families, each with a series that has all its labels.
pub(crate) fn every_family() -> Vec<Family> {
    let count = Count {
        statistics: stats::switches().map(|switch| switch.key).collect(),
        talkers: 8,
        flows: 8,
        top_sources: 1,
        cidrs: vec![CidrGroup { name: String::new(), prefixes: Vec::new() }],
        tcp_connections: true,
        drop_reasons: true,
        tcp: true,
        cgroups: true,
        processes: true,
        dns: true,
    };
    let labels = vec![("interface", String::new())];
    let reading = Reading {
        labels: labels.clone(),
        ingress: Some((Counters::default(), Hook::Tcx)),
        egress: Some(Counters::default()),
        speed: Some(0),
        refused: vec![("ingress", "missing")],
    };
    let top = TopSource { labels, address: String::new(), bytes: 0 };
    let decided = Source { name: String::new(), origin: Some(String::new()) };
    let blocked = Summary {
        entries: vec![(decided.clone(), 0)],
        packets: vec![(decided, Default::default())],
        feeds: vec![FeedSummary::with_everything()],
        alerts: Some(AlertNumbers::default()),
        files: vec![(String::new(), 0, true)],
        is_kept: Some(true),
        ..Summary::default()
    };
    let mut all = families(&count, &[reading], &[top], Some(&[0; STATES.len()]), 1, Some(&blocked));
    all.extend(stack::every_family());
    all.extend(attribution::every_family());
    all.extend(dns::every_family());
    all.extend(detect::every_family());
    all
}
