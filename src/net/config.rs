//! What of the network is counted.

use crate::glob;

/// The section `network:` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Names or globs (`*`, `?`) of interfaces. They may appear later.
    pub interfaces: Vec<String>,
    pub mode: Mode,
    pub count: Count,
}

/// How XDP is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// In the driver, or not at all.
    Native,
    /// In the network stack, with any driver; costs a copy of many packets.
    Generic,
    /// Native, and where the driver cannot, generic. `xdp_mode` says which.
    #[default]
    Auto,
}

/// What is counted beside packets and bytes, sizes and TCP flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Export `xdp_packet_size_bytes`. It is always counted, for it costs nothing.
    pub sizes: bool,
    /// Export `xdp_tcp_flags_total`.
    pub flags: bool,
    /// Remote hosts kept by each CPU; zero for none.
    pub talkers: u32,
    /// Flows kept by each CPU, of talkers that are kept; zero for none.
    pub flows: u32,
    /// Series of `xdp_top_source_bytes` at most; zero for none. Needs talkers.
    pub top_sources: u32,
    /// Export `network_tcp_connections`.
    pub tcp_connections: bool,
}

/// Entries of a table that can be asked for.
pub const TABLE_ENTRIES: std::ops::RangeInclusive<u32> = 8..=1 << 20;

/// Series of top sources that can be asked for.
pub const TOP_SOURCES: std::ops::RangeInclusive<u32> = 1..=1000;

impl Default for Count {
    fn default() -> Self {
        Self { sizes: true, flags: true, talkers: 0, flows: 0, top_sources: 0, tcp_connections: false }
    }
}

impl NetworkConfig {
    /// Whether the interface is one of those to count on.
    pub fn wants(&self, name: &str) -> bool {
        self.interfaces.iter().any(|pattern| glob::matches(pattern, name))
    }

    /// Names that are written out and so are expected to be there.
    pub fn exact_names(&self) -> impl Iterator<Item = &str> {
        self.interfaces.iter().map(String::as_str).filter(|name| !name.contains(['*', '?']))
    }

    /// Kernel memory of one interface's counters on a machine with so many CPUs, in bytes.
    pub fn interface_memory(&self, cpus: usize) -> u64 {
        super::load::memory(self.count.talkers > 0, cpus)
    }

    /// Kernel memory of the tables of talkers and flows on a machine with so many CPUs, in bytes.
    pub fn table_memory(&self, cpus: usize) -> u64 {
        super::tables::memory(&self.count, cpus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_globs() {
        let config = NetworkConfig {
            interfaces: vec!["eth0".into(), "veth*".into()],
            mode: Mode::Auto,
            count: Count::default(),
        };
        for (name, wanted) in [("eth0", true), ("eth01", false), ("veth1a", true), ("xveth", false)] {
            assert_eq!(config.wants(name), wanted, "{name}");
        }
        assert_eq!(config.exact_names().collect::<Vec<_>>(), ["eth0"]);
    }

    #[test]
    fn memory_grows_with_entries_and_cpus() {
        let mut config = NetworkConfig { interfaces: vec![], mode: Mode::Auto, count: Count::default() };
        assert_eq!(config.table_memory(8), 0);
        config.count.talkers = 4096;
        let talkers = config.table_memory(1);
        assert!((4096 * 56..4096 * 80).contains(&talkers), "{talkers}");
        config.count.flows = 4096;
        assert!(config.table_memory(2) > 4 * talkers);
        // Plain frames are only counted apart where there are no talkers.
        let with_talkers = config.interface_memory(3);
        config.count.talkers = 0;
        assert_eq!(config.interface_memory(3), with_talkers + (4 << 16));
    }
}
