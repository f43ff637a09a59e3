//! The rules of both lists in the kernel: hash tables that are changed entry by entry, or replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::super::abi::{List, SPARED, net_rule};
use super::super::cidr::Prefix;
use super::maps::{BlockMaps, Connection, Hits, Rule, rule_map};
use super::marks::Marks;

/// Rules in one batched update.
const BATCH_RULES: usize = 8192;

/// The smallest capacity of a table.
const MIN_CAPACITY: u32 = 1024;

/// The table of one list and address family.
#[derive(Debug)]
struct RuleTable {
    map: MapHandle,
    capacity: u32,
    count: u32,
    /// The number of rules by prefix length.
    lengths: [u32; 129],
}

/// The tables of both lists.
#[derive(Debug)]
pub(crate) struct RuleTables {
    /// By list, then IPv4 and IPv6.
    tables: [[RuleTable; 2]; 2],
    spared: BTreeSet<Connection>,
}

/// The hits of replaced tables.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Met {
    pub hits: BTreeMap<Prefix, Hits>,
    /// Whether all of them could be read.
    pub is_whole: bool,
}

impl RuleTable {
    /// A table with those of the rules that are of this family.
    fn new(is_v4: bool, rules: &[(Prefix, Rule)]) -> libbpf_rs::Result<Self> {
        let rules = rules.iter().copied().filter(|(prefix, _)| prefix.address().is_ipv4() == is_v4);
        let count = rules.clone().count() as u32;
        let capacity = (count + count / 4).max(MIN_CAPACITY);
        let map = rule_map(is_v4, capacity)?;
        let mut table = Self { map, capacity, count: 0, lengths: [0; 129] };
        table.fill(rules)?;
        Ok(table)
    }

    fn fill(&mut self, rules: impl Iterator<Item = (Prefix, Rule)>) -> libbpf_rs::Result<()> {
        let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0u32);
        let mut rules = rules.peekable();
        while let Some((prefix, rule)) = rules.next() {
            keys.extend(key(prefix));
            values.extend(value(prefix, rule, Hits::default()));
            self.lengths[usize::from(prefix.bits())] += 1;
            self.count += 1;
            count += 1;
            if count as usize == BATCH_RULES || rules.peek().is_none() {
                self.map.update_batch(&keys, &values, count, MapFlags::ANY, MapFlags::ANY)?;
                keys.clear();
                values.clear();
                count = 0;
            }
        }
        Ok(())
    }
}

impl RuleTables {
    /// Creates two empty lists and installs them.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(maps: &BlockMaps) -> libbpf_rs::Result<Self> {
        let pair = || Ok::<_, libbpf_rs::Error>([RuleTable::new(true, &[])?, RuleTable::new(false, &[])?]);
        let tables = Self { tables: [pair()?, pair()?], spared: BTreeSet::new() };
        for list in List::ALL {
            tables.put(maps, list)?;
        }
        Ok(tables)
    }

    /// Installs the tables of a list. The kernel waits until no program uses the old ones.
    fn put(&self, maps: &BlockMaps, list: List) -> libbpf_rs::Result<()> {
        let [v4, v6] = &self.tables[list as usize];
        for (outer, table) in [(&maps.rules4, v4), (&maps.rules6, v6)] {
            outer.update(&(list as u32).to_ne_bytes(), &raw(&table.map).to_ne_bytes(), MapFlags::ANY)?;
        }
        Ok(())
    }

    fn of(&self, list: List, prefix: Prefix) -> &RuleTable {
        &self.tables[list as usize][usize::from(prefix.address().is_ipv6())]
    }

    /// Whether this many more rules fit.
    pub fn has_room(&self, list: List, more: usize) -> bool {
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.tables[list as usize].iter().all(|table| table.capacity - table.count >= more)
    }

    /// Sets a rule; the hits of the rule that it replaces are carried over.
    ///
    /// # Errors
    /// If there is no room, or no memory.
    pub fn set(&mut self, maps: &BlockMaps, list: List, prefix: Prefix, rule: Rule) -> libbpf_rs::Result<()> {
        let table = &mut self.tables[list as usize][usize::from(prefix.address().is_ipv6())];
        let key = key(prefix);
        let before = table.map.lookup(&key, MapFlags::ANY)?;
        let hits = before.as_deref().map(hits).unwrap_or_default();
        table.map.update(&key, &value(prefix, rule, hits), MapFlags::ANY)?;
        if before.is_none() {
            table.count += 1;
            table.lengths[usize::from(prefix.bits())] += 1;
        }
        let (word, bit) = maps.length(list, prefix);
        word.fetch_or(bit, Ordering::Release);
        maps.mark(list, prefix);
        Ok(())
    }

    /// Removes a rule. Its bits stay set until the bitmaps are rebuilt.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&mut self, maps: &BlockMaps, list: List, prefix: Prefix) -> libbpf_rs::Result<()> {
        let table = &mut self.tables[list as usize][usize::from(prefix.address().is_ipv6())];
        table.map.delete(&key(prefix))?;
        table.count -= 1;
        let same = &mut table.lengths[usize::from(prefix.bits())];
        *same -= 1;
        if *same == 0 {
            let (word, bit) = maps.length(list, prefix);
            word.fetch_and(!bit, Ordering::Release);
        }
        Ok(())
    }

    /// Replaces all rules of a list; returns the hits of the old ones. `marks` are those of both lists with the new
    /// rules. What is blocked both before and after is blocked at every moment in between.
    ///
    /// # Errors
    /// If there is no memory; the old rules stay.
    pub fn replace(
        &mut self,
        maps: &BlockMaps,
        list: List,
        rules: &[(Prefix, Rule)],
        marks: &Marks,
    ) -> libbpf_rs::Result<Met> {
        let new = [RuleTable::new(true, rules)?, RuleTable::new(false, rules)?];
        maps.add_marks(marks);
        for (prefix, _) in rules {
            let (word, bit) = maps.length(list, *prefix);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Release);
            }
        }
        let old = std::mem::replace(&mut self.tables[list as usize], new);
        if let Err(error) = self.put(maps, list) {
            self.tables[list as usize] = old;
            // Undoes as much as possible of what is installed already.
            let _ = self.put(maps, list);
            return Err(error);
        }
        let families: [(IpAddr, u8); 2] = [([0; 4].into(), 32), ([0; 16].into(), 128)];
        for ((table, old), (any, longest)) in self.tables[list as usize].iter().zip(&old).zip(families) {
            for bits in 0..=longest {
                if table.lengths[usize::from(bits)] == 0 && old.lengths[usize::from(bits)] > 0 {
                    let (word, bit) = maps.length(list, Prefix::new(any, bits));
                    word.fetch_and(!bit, Ordering::Release);
                }
            }
        }
        maps.set_marks(marks);
        Ok(met(old.iter().map(|table| hits_of(&table.map))))
    }

    /// The hits of a rule; `None` if there is no such rule.
    pub fn hits(&self, list: List, prefix: Prefix) -> Option<Hits> {
        let value = self.of(list, prefix).map.lookup(&key(prefix), MapFlags::ANY).ok()??;
        Some(hits(&value))
    }

    /// Sets the protected connections.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn spare(&mut self, maps: &BlockMaps, connections: BTreeSet<Connection>) -> libbpf_rs::Result<()> {
        let connections: BTreeSet<_> = connections.into_iter().take(SPARED).collect();
        for gone in self.spared.difference(&connections) {
            // It fails only if the entry does not exist.
            let _ = maps.spared.delete(&connection_key(*gone));
        }
        maps.set_spares(self.spared.len().max(connections.len()));
        for new in connections.difference(&self.spared) {
            maps.spared.update(&connection_key(*new), &1u32.to_ne_bytes(), MapFlags::ANY)?;
        }
        self.spared = connections;
        maps.set_spares(self.spared.len());
        Ok(())
    }
}

/// The hits of tables that were replaced. The new ones are in effect already, so unreadable hits are lost.
fn met(tables: impl Iterator<Item = libbpf_rs::Result<Vec<(Prefix, Hits)>>>) -> Met {
    let mut met = Met { hits: BTreeMap::new(), is_whole: true };
    for read in tables {
        match read {
            Ok(hits) => met.hits.extend(hits),
            Err(error) => {
                log::warn!("blocklist: hits counted before a change are lost: {error:#}");
                met.is_whole = false;
            }
        }
    }
    met
}

/// The hits of all rules of a map that have any.
fn hits_of(map: &MapHandle) -> libbpf_rs::Result<Vec<(Prefix, Hits)>> {
    let mut found = Vec::new();
    for (key, value) in map.lookup_batch(BATCH_RULES as u32, MapFlags::ANY, MapFlags::ANY)? {
        let hits = hits(&value);
        let bits = value.get(offset_of!(net_rule, length)).copied().unwrap_or(0);
        let address: Option<IpAddr> = match key.len() {
            4..=8 => key.first_chunk::<4>().map(|octets| (*octets).into()),
            _ => key.first_chunk::<16>().map(|octets| (*octets).into()),
        };
        if let (true, Some(address)) = (hits.packets > 0, address) {
            found.push((Prefix::new(address, bits), hits));
        }
    }
    Ok(found)
}

fn key(prefix: Prefix) -> Vec<u8> {
    let bits = u32::from(prefix.bits()).to_ne_bytes();
    match prefix.address() {
        IpAddr::V4(address) => [&address.octets()[..], &bits].concat(),
        IpAddr::V6(address) => [&address.octets()[..], &bits, &[0; 4]].concat(),
    }
}

fn value(prefix: Prefix, rule: Rule, hits: Hits) -> [u8; size_of::<net_rule>()] {
    let mut bytes = [0; size_of::<net_rule>()];
    let mut put = |at: usize, part: &[u8]| bytes[at..][..part.len()].copy_from_slice(part);
    put(offset_of!(net_rule, packets), &hits.packets.to_ne_bytes());
    put(offset_of!(net_rule, bytes), &hits.bytes.to_ne_bytes());
    put(offset_of!(net_rule, last), &hits.last.to_ne_bytes());
    put(offset_of!(net_rule, expires), &rule.expires.to_ne_bytes());
    put(offset_of!(net_rule, length), &[prefix.bits()]);
    // The number of sources is bounded by `SOURCES`.
    put(offset_of!(net_rule, source), &[u8::try_from(rule.source).unwrap_or(u8::MAX)]);
    put(offset_of!(net_rule, directions), &[rule.directions]);
    if let Some((protocol, first, last)) = rule.scope {
        put(offset_of!(net_rule, protocol), &[protocol]);
        put(offset_of!(net_rule, first_port), &first.to_ne_bytes());
        put(offset_of!(net_rule, last_port), &last.to_ne_bytes());
    }
    bytes
}

fn hits(value: &[u8]) -> Hits {
    let word = |at: usize| {
        value.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
    };
    let last = offset_of!(net_rule, last);
    Hits {
        packets: word(offset_of!(net_rule, packets)),
        bytes: word(offset_of!(net_rule, bytes)),
        last: value.get(last..last + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes),
    }
}

fn connection_key((peer, from, to): Connection) -> Vec<u8> {
    let octets = match peer {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    [&octets[..], &from.to_ne_bytes(), &to.to_ne_bytes()].concat()
}

fn raw(map: &MapHandle) -> i32 {
    map.as_fd().as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_hits_are_skipped() {
        let hits = |packets| Hits { packets, ..Hits::default() };
        let prefix = |text| Prefix::parse(text).unwrap();
        let broken = std::io::Error::from_raw_os_error(libc::EFAULT);
        let read = [
            Ok(vec![(prefix("192.0.2.1"), hits(1))]),
            Err(broken.into()),
            Ok(vec![(prefix("::1"), hits(2))]),
        ];
        let met = met(read.into_iter());
        assert!(!met.is_whole);
        assert_eq!(
            met.hits.into_iter().collect::<Vec<_>>(),
            [(prefix("192.0.2.1"), hits(1)), (prefix("::1"), hits(2))]
        );
    }
}
