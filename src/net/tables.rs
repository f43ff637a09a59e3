//! The tables of talkers and flows: creation, and reading the entries of all CPUs as one.

use std::collections::HashMap;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::pins::{MapSpec, PinDir};

use super::abi::{
    HASH_KEYS, SKETCH_BYTES, TICK_NANOSECONDS, WAYS, net_flow, net_flow_key, net_flows, net_set, net_talker,
    net_talkers,
};
use super::config::Count;
use super::counters::Sum;
use super::sys::random;

/// Tables shared by all interfaces.
#[derive(Debug)]
pub(crate) struct TrafficTables {
    pub talkers: MapHandle,
    pub flows: MapHandle,
    pub sketch: MapHandle,
    /// Random keys, so that hash collisions cannot be produced on purpose.
    pub keys: [u64; HASH_KEYS],
    pub with_flows: bool,
}

/// The key of a talker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TalkerKey {
    /// The interface's id.
    pub port: u32,
    pub address: IpAddr,
}

/// A remote host. Times are ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Talker {
    pub received: Sum,
    pub sent: Sum,
    pub first: u32,
    pub last: u32,
}

/// The key of a flow; ports in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The interface's id.
    pub port: u32,
    pub egress: bool,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    /// IANA number.
    pub protocol: u8,
}

/// One direction of a conversation. Times are ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    pub sum: Sum,
    pub first: u32,
    pub last: u32,
    pub tcp_flags: u8,
    pub tcp_data: bool,
}

/// The number of sets in which this many entries really fit: with a choice of two sets for each entry, two thirds of
/// all places can be used before a set overflows.
pub(crate) fn sets(entries: u32) -> u32 {
    (entries + entries / 2).div_ceil(WAYS as u32).next_power_of_two().max(2)
}

/// Kernel memory of the tables, in bytes.
pub(crate) fn memory(count: &Count, cpus: usize) -> u64 {
    let table =
        |entries: u32, size: usize| if entries == 0 { 0 } else { u64::from(sets(entries)) * size as u64 };
    let sketch = if count.talkers == 0 { 0 } else { u64::from(SKETCH_BYTES) };
    cpus as u64
        * (table(count.talkers, size_of::<net_talkers>())
            + table(count.flows, size_of::<net_flows>())
            + sketch)
}

impl TrafficTables {
    /// Creates the tables, or takes over those in `pins`, which use these keys; `None` if talkers are not configured.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory.
    pub fn create(
        count: &Count,
        keys: Option<[u64; HASH_KEYS]>,
        pins: &PinDir,
    ) -> libbpf_rs::Result<Option<Self>> {
        if count.talkers == 0 {
            return Ok(None);
        }
        let table = |name: &str, value: usize, sets: u32| {
            let kind = MapType::PercpuArray;
            let entries = sets as usize;
            pins.map(name, &MapSpec { kind, name, key: 4, value, entries, flags: 0, inner: None })
        };
        Ok(Some(Self {
            talkers: table("talkers", size_of::<net_talkers>(), sets(count.talkers))?,
            flows: table("flows", size_of::<net_flows>(), sets(count.flows.max(1)))?,
            sketch: table("sketch", SKETCH_BYTES as usize, 1)?,
            keys: keys.map_or_else(random, Ok)?,
            with_flows: count.flows > 0,
        }))
    }
}

/// All talkers of a table, summed over CPUs.
///
/// # Errors
/// If the map cannot be read.
pub fn read_talkers(map: &MapHandle) -> libbpf_rs::Result<HashMap<TalkerKey, Talker>> {
    let mut all: HashMap<TalkerKey, Talker> = HashMap::new();
    each_entry(map, size_of::<net_talker>(), |seen, entry| {
        let Some((key, talker)) = talker(entry, seen) else { return };
        let sum = all.entry(key).or_insert(Talker { first: talker.first, ..Talker::default() });
        sum.received.add(talker.received);
        sum.sent.add(talker.sent);
        sum.first = sum.first.min(talker.first);
        sum.last = sum.last.max(talker.last);
    })?;
    Ok(all)
}

/// All flows of a table, summed over CPUs.
///
/// # Errors
/// If the map cannot be read.
pub fn read_flows(map: &MapHandle) -> libbpf_rs::Result<HashMap<FlowKey, Flow>> {
    let mut all: HashMap<FlowKey, Flow> = HashMap::new();
    each_entry(map, size_of::<net_flow>(), |seen, entry| {
        let Some((key, flow)) = flow(entry, seen) else { return };
        let sum = all.entry(key).or_insert(Flow { first: flow.first, ..Flow::default() });
        sum.sum.add(flow.sum);
        sum.first = sum.first.min(flow.first);
        sum.last = sum.last.max(flow.last);
        sum.tcp_flags |= flow.tcp_flags;
        sum.tcp_data |= flow.tcp_data;
    })?;
    Ok(all)
}

/// Converts a tick to Unix seconds, given the tables' clock and the Unix time of the same moment.
pub(crate) fn unix_seconds(tick: u32, monotonic: u64, unix: f64) -> f64 {
    let age = (monotonic / TICK_NANOSECONDS).saturating_sub(u64::from(tick)) * TICK_NANOSECONDS;
    unix - age as f64 / 1e9
}

/// Calls `each` for every used entry of every CPU, with its last tick.
fn each_entry(map: &MapHandle, size: usize, mut each: impl FnMut(u32, &[u8])) -> libbpf_rs::Result<()> {
    for set in 0..map.max_entries() {
        for bytes in map.lookup_percpu(&set.to_ne_bytes(), MapFlags::ANY)?.unwrap_or_default() {
            let entries = bytes.get(size_of::<net_set>()..).unwrap_or_default();
            for (way, entry) in entries.chunks_exact(size).enumerate() {
                match u32_at(&bytes, offset_of!(net_set, seen) + 4 * way) {
                    Some(seen) if seen != 0 => each(seen, entry),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn talker(entry: &[u8], last: u32) -> Option<(TalkerKey, Talker)> {
    let key = TalkerKey {
        port: u32_at(entry, offset_of!(net_talker, port))?,
        address: address_at(entry, offset_of!(net_talker, address))?,
    };
    let talker = Talker {
        received: sum_at(entry, offset_of!(net_talker, r#in))?,
        sent: sum_at(entry, offset_of!(net_talker, out))?,
        first: u32_at(entry, offset_of!(net_talker, first))?,
        last,
    };
    Some((key, talker))
}

fn flow(entry: &[u8], last: u32) -> Option<(FlowKey, Flow)> {
    let key = |offset: usize| offset_of!(net_flow, key) + offset;
    let port = |offset: usize| Some(u16::from_be_bytes(entry.get(offset..offset + 2)?.try_into().ok()?));
    let found = FlowKey {
        port: u32_at(entry, key(offset_of!(net_flow_key, port)))?,
        egress: *entry.get(key(offset_of!(net_flow_key, egress)))? != 0,
        source: address_at(entry, key(offset_of!(net_flow_key, source)))?,
        destination: address_at(entry, key(offset_of!(net_flow_key, destination)))?,
        source_port: port(key(offset_of!(net_flow_key, source_port)))?,
        destination_port: port(key(offset_of!(net_flow_key, destination_port)))?,
        protocol: *entry.get(key(offset_of!(net_flow_key, ip_protocol)))?,
    };
    let flow = Flow {
        sum: sum_at(entry, offset_of!(net_flow, sum))?,
        first: u32_at(entry, offset_of!(net_flow, first))?,
        last,
        tcp_flags: *entry.get(offset_of!(net_flow, tcp_flags))?,
        tcp_data: *entry.get(offset_of!(net_flow, tcp_data))? != 0,
    };
    Some((found, flow))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn sum_at(bytes: &[u8], at: usize) -> Option<Sum> {
    let word = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some(Sum { packets: word(at)?, bytes: word(at + 8)? })
}

/// An address in network byte order; mapped IPv4 addresses are returned as IPv4.
fn address_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_count_is_a_power_of_two() {
        for (entries, expected) in [(0, 2), (1, 2), (8, 2), (12, 4), (4096, 1024), (5000, 1024)] {
            assert_eq!(sets(entries), expected, "{entries}");
        }
    }

    #[test]
    fn entry_is_parsed_by_the_abi_layout() {
        let mut entry = vec![0u8; size_of::<net_flow>()];
        entry[offset_of!(net_flow_key, source)..][..16]
            .copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets();
        entry[offset_of!(net_flow_key, destination)..][..16].copy_from_slice(&mapped);
        entry[offset_of!(net_flow_key, destination_port)..][..2].copy_from_slice(&443u16.to_be_bytes());
        entry[offset_of!(net_flow_key, ip_protocol)] = 6;
        entry[offset_of!(net_flow, sum)..][..8].copy_from_slice(&7u64.to_ne_bytes());
        let (key, flow) = flow(&entry, 5).unwrap();
        assert_eq!(
            (key.source.to_string(), key.destination.to_string()),
            ("2001:db8::1".into(), "192.0.2.7".into())
        );
        assert_eq!((key.destination_port, key.protocol, flow.sum.packets, flow.last), (443, 6, 7, 5));
        assert!(super::flow(&entry[..40], 5).is_none());
    }

    #[test]
    fn ticks_convert_to_unix_time() {
        let now = 100 * TICK_NANOSECONDS;
        assert_eq!(unix_seconds(100, now, 1000.0), 1000.0);
        assert!(
            (unix_seconds(40, now, 1000.0) - (1000.0 - 60.0 * TICK_NANOSECONDS as f64 / 1e9)).abs() < 1e-9
        );
        assert_eq!(unix_seconds(101, now, 1000.0), 1000.0);
    }
}
