//! The configuration of packet counting.

use std::collections::BTreeSet;

use crate::glob;

use super::block::BlockConfig;
use super::cidr::CidrGroup;
use super::stats;
use super::thresholds::DetectConfig;

/// The section `network:` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkConfig {
    /// Names or globs (`*`, `?`, `[...]`) of interfaces in the exporter's own network namespace. They may appear later.
    pub interfaces: Vec<String>,
    /// Names or globs of interfaces that are excluded in all namespaces.
    pub exclude: Vec<String>,
    /// Interfaces of other network namespaces.
    pub elsewhere: Vec<(Space, Vec<String>)>,
    pub mode: Mode,
    pub count: Count,
    /// The blocklist; `None` if it is not configured.
    pub block: Option<BlockConfig>,
    pub detect: DetectConfig,
}

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Space {
    /// The exporter's own.
    Own,
    /// By name, as used by `ip netns`, or by path.
    Netns(String),
    /// The namespace of a container, by name or id.
    Container(String),
}

/// The configured interfaces of one network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub space: Space,
    interfaces: Vec<String>,
    exclude: Vec<String>,
}

/// How received packets are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// By XDP in the driver, or not at all.
    Native,
    /// By XDP in the network stack, with any driver; costs a copy of many packets.
    Generic,
    /// By TC ingress.
    Tcx,
    /// By the cheapest hook; `xdp_mode` shows which.
    #[default]
    Auto,
}

/// What is counted beside packets and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Keys of the enabled optional statistics ([`super::stats`]).
    pub statistics: BTreeSet<&'static str>,
    /// Remote hosts tracked per CPU; zero: none.
    pub talkers: u32,
    /// Flows of tracked hosts that are tracked per CPU; zero: none.
    pub flows: u32,
    /// Maximum number of `xdp_top_source_bytes` series; zero: none. Requires talkers.
    pub top_sources: u32,
    /// Prefix groups.
    pub cidrs: Vec<CidrGroup>,
    /// Export `network_tcp_connections`.
    pub tcp_connections: bool,
    /// Export the kernel's drop reasons.
    pub drop_reasons: bool,
    /// Export statistics of TCP connections.
    pub tcp: bool,
    /// Export traffic by cgroup.
    pub cgroups: bool,
    /// Export traffic by process.
    pub processes: bool,
    /// Export results of DNS queries.
    pub dns: bool,
}

/// Valid sizes of the tables of talkers and flows.
pub const TABLE_ENTRIES: std::ops::RangeInclusive<u32> = 8..=1 << 20;

/// Valid numbers of top source series.
pub const TOP_SOURCES: std::ops::RangeInclusive<u32> = 1..=1000;

impl Default for Count {
    fn default() -> Self {
        let on = stats::switches().filter(|switch| switch.default).map(|switch| switch.key);
        Self {
            statistics: on.collect(),
            talkers: 0,
            flows: 0,
            top_sources: 0,
            cidrs: Vec::new(),
            tcp_connections: false,
            drop_reasons: false,
            tcp: false,
            cgroups: false,
            processes: false,
            dns: false,
        }
    }
}

impl Count {
    /// Whether an optional statistic is enabled.
    pub fn has(&self, key: &str) -> bool {
        self.statistics.contains(key)
    }

    /// Whether the fast path counts everything that is configured.
    pub(crate) fn fits_fast_path(&self) -> bool {
        self.talkers == 0 && self.cidrs.is_empty() && stats::program_switches(&self.statistics) == 0
    }
}

impl NetworkConfig {
    /// The interfaces by network namespace, the own one first.
    pub fn scopes(&self) -> Vec<Scope> {
        let scope = |space: &Space, interfaces: &Vec<String>| Scope {
            space: space.clone(),
            interfaces: interfaces.clone(),
            exclude: self.exclude.clone(),
        };
        let own = Some(scope(&Space::Own, &self.interfaces)).filter(|own| !own.interfaces.is_empty());
        own.into_iter()
            .chain(self.elsewhere.iter().map(|(space, interfaces)| scope(space, interfaces)))
            .collect()
    }
}

impl NetworkConfig {
    /// The first key, other than interfaces and the blocklist, in which another configuration differs.
    pub fn differs_in(&self, other: &Self) -> Option<&'static str> {
        let spaces = |of: &Self| of.scopes().into_iter().map(|scope| scope.space).collect::<Vec<_>>();
        if self.mode != other.mode {
            Some("mode")
        } else if self.count != other.count {
            Some("count")
        } else if self.block.is_some() != other.block.is_some() {
            Some("block")
        } else if self.block.as_ref().map(|block| &block.socket)
            != other.block.as_ref().map(|block| &block.socket)
        {
            Some("block.socket")
        } else if self.block.as_ref().map(|block| &block.file)
            != other.block.as_ref().map(|block| &block.file)
        {
            Some("block.file")
        } else if spaces(self) != spaces(other) {
            Some("network namespaces")
        } else {
            None
        }
    }
}

impl Scope {
    /// Whether the interface is selected.
    pub fn wants(&self, name: &str, altnames: &[String]) -> bool {
        let any = |patterns: &[String]| {
            let is = |name: &str| patterns.iter().any(|pattern| selects(pattern, name));
            is(name) || altnames.iter().any(|other| is(other))
        };
        any(&self.interfaces) && !any(&self.exclude)
    }

    /// Whether the interface is selected by an exact name.
    pub fn names(&self, name: &str, altnames: &[String]) -> bool {
        self.exact_names().any(|exact| exact == name || altnames.iter().any(|other| exact == other))
    }

    /// The exact names, which are expected to exist.
    pub fn exact_names(&self) -> impl Iterator<Item = &str> {
        let exact = self.interfaces.iter().map(String::as_str).filter(|name| !name.contains(['*', '?', '[']));
        exact.filter(|name| !self.exclude.iter().any(|pattern| selects(pattern, name)))
    }
}

/// Whether a name or glob of the configuration selects a name: a name may have the characters of a glob.
fn selects(pattern: &str, name: &str) -> bool {
    pattern == name || glob::matches(pattern, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_match_by_name_and_glob() {
        let config = NetworkConfig {
            interfaces: vec!["eth0".into(), "veth*".into(), "wan".into()],
            exclude: vec!["veth9*".into()],
            elsewhere: vec![(Space::Netns("blue".into()), vec!["*".into()])],
            ..NetworkConfig::default()
        };
        let scopes = config.scopes();
        for (name, wanted) in
            [("eth0", true), ("eth01", false), ("veth1a", true), ("xveth", false), ("veth91", false)]
        {
            assert_eq!(scopes[0].wants(name, &[]), wanted, "{name}");
        }
        assert!(scopes[0].wants("enp3s0", &["wan".into()]) && scopes[0].names("enp3s0", &["wan".into()]));
        assert_eq!(scopes[0].exact_names().collect::<Vec<_>>(), ["eth0", "wan"]);
        let odd = Scope { interfaces: vec!["[x]".into(), "p[0-3]".into()], ..scopes[0].clone() };
        for (name, wanted) in [("[x]", true), ("x", true), ("p3", true), ("p4", false)] {
            assert_eq!(odd.wants(name, &[]), wanted, "{name}");
        }
        assert_eq!(odd.exact_names().count(), 0);
        assert_eq!(scopes[1].space, Space::Netns("blue".into()));
        assert!(scopes[1].wants("lo", &[]) && !scopes[1].wants("veth91", &[]));
    }
}
