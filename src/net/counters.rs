//! The counters of one interface in one direction, summed over all CPUs.

use std::mem::offset_of;

use super::abi::{
    AddressFamily, FAST_ROWS, Protocol, SIZE_BOUNDS, SIZES, Verdict, net_fast_row, net_row, net_stats,
};

/// A number of packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    pub packets: u64,
    pub bytes: u64,
}

impl Sum {
    pub(super) fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

const WORDS: usize = size_of::<net_stats>() / 8;
const ROW_WORDS: usize = size_of::<net_row>() / 8;
/// `NET_PROTOCOL_SLOTS`.
const PROTOCOL_SLOTS: usize =
    (offset_of!(net_stats, drops) / size_of::<net_row>()) / (Verdict::ALL.len() * AddressFamily::ALL.len());

/// Words of one row of fast-path frames: one per frame size.
const FAST_STEPS: usize = size_of::<net_fast_row>() / 8;

/// The counters of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    words: Vec<u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { words: vec![0; WORDS] }
    }
}

impl Counters {
    /// Sums the values of a per-CPU map, given one slice per CPU. Missing bytes count as zero.
    pub fn sum(per_cpu: &[Vec<u8>]) -> Self {
        Self { words: sum_words(per_cpu, WORDS) }
    }

    /// Adds fast-path frames, given the words of one `struct net_fast` per CPU.
    #[must_use]
    pub fn with_fast(mut self, words: impl IntoIterator<Item = u64>) -> Self {
        for (index, frames) in words.into_iter().enumerate().filter(|(_, frames)| *frames > 0) {
            let (family, protocol, shortest) = FAST_ROWS[index / FAST_STEPS % FAST_ROWS.len()];
            let size = shortest + (index % FAST_STEPS) as u32;
            let row = Self::row(Verdict::Pass, family, protocol);
            let mut add = |word: usize, count: u64| self.words[word] = self.words[word].wrapping_add(count);
            add(row + SIZE_BOUNDS.partition_point(|bound| *bound < size), frames);
            add(row + offset_of!(net_row, bytes) / 8, frames.wrapping_mul(u64::from(size)));
        }
        self
    }

    /// The 64-bit word at an offset in `struct net_stats`, plus `index` words.
    pub(super) fn at(&self, offset: usize, index: usize) -> u64 {
        self.words.get(offset / 8 + index).copied().unwrap_or(0)
    }

    fn row(verdict: Verdict, family: AddressFamily, protocol: Protocol) -> usize {
        let cell = (verdict as usize * AddressFamily::ALL.len() + family as usize) * PROTOCOL_SLOTS
            + protocol as usize;
        cell * ROW_WORDS
    }

    /// The number of frames.
    pub fn packets(&self, verdict: Verdict, family: AddressFamily, protocol: Protocol) -> u64 {
        let row = Self::row(verdict, family, protocol);
        (0..SIZES).map(|size| self.at(0, row + size)).sum()
    }

    /// The bytes of these frames, including the Ethernet header.
    pub fn bytes(&self, verdict: Verdict, family: AddressFamily, protocol: Protocol) -> u64 {
        self.at(offset_of!(net_row, bytes), Self::row(verdict, family, protocol))
    }

    /// All frames by size: the buckets of [`super::SIZE_BOUNDS`] and an unbounded one.
    pub fn sizes(&self) -> [u64; SIZES] {
        let mut sizes = [0; SIZES];
        for (verdict, family, protocol) in combinations() {
            for (size, sum) in sizes.iter_mut().enumerate() {
                *sum += self.at(0, Self::row(verdict, family, protocol) + size);
            }
        }
        sizes
    }

    /// The number of all frames.
    pub fn total_packets(&self) -> u64 {
        self.sizes().iter().sum()
    }

    /// The bytes of all frames.
    pub fn total_bytes(&self) -> u64 {
        combinations().map(|(verdict, family, protocol)| self.bytes(verdict, family, protocol)).sum()
    }
}

/// Sums the 64-bit words of a per-CPU map's value. Missing bytes count as zero.
pub(super) fn sum_words(per_cpu: &[Vec<u8>], count: usize) -> Vec<u64> {
    let mut words = vec![0u64; count];
    for bytes in per_cpu {
        for (word, part) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = word.wrapping_add(u64::from_ne_bytes(*part));
        }
    }
    words
}

/// Every combination of verdict, family and protocol that a frame can have.
pub fn combinations() -> impl Iterator<Item = (Verdict, AddressFamily, Protocol)> {
    Verdict::ALL.iter().flat_map(|verdict| {
        AddressFamily::ALL
            .iter()
            .flat_map(|family| Protocol::ALL.iter().map(|protocol| (*verdict, *family, *protocol)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_summed_and_cells_do_not_overlap() {
        let words: Vec<u8> = (0..WORDS as u64).flat_map(|word| (1u64 << (word % 8)).to_ne_bytes()).collect();
        let counters = Counters::sum(&[words.clone(), words]);
        assert_eq!(counters.total_packets(), counters.sizes().iter().sum::<u64>());
        let mut at = std::collections::BTreeSet::new();
        for (verdict, family, protocol) in combinations() {
            assert!(at.insert(Counters::row(verdict, family, protocol)));
        }
        assert!(at.last().unwrap() + ROW_WORDS <= offset_of!(net_stats, drops) / 8);
        assert_eq!(
            counters.at(offset_of!(net_stats, drops), 1),
            2 << ((offset_of!(net_stats, drops) / 8 + 1) % 8)
        );
    }

    #[test]
    fn fast_path_frames_fill_rows_and_buckets() {
        // On the second CPU, in the third row (IPv6, TCP): five frames of 74 bytes, two of 128 bytes, one of 129 bytes.
        let mut words = vec![0; 2 * 4 * FAST_STEPS];
        let row = &mut words[6 * FAST_STEPS..][..FAST_STEPS];
        (row[0], row[54], row[55]) = (5, 2, 1);
        let counters = Counters::default().with_fast(words);
        assert_eq!(counters.packets(Verdict::Pass, AddressFamily::Ipv6, Protocol::Tcp), 8);
        assert_eq!(counters.bytes(Verdict::Pass, AddressFamily::Ipv6, Protocol::Tcp), 5 * 74 + 2 * 128 + 129);
        assert_eq!((counters.total_packets(), counters.total_bytes()), (8, 755));
        assert_eq!(counters.sizes()[..4], [0, 7, 1, 0]);
    }

    #[test]
    fn short_values_read_as_zero() {
        assert_eq!(Counters::sum(&[vec![1; 3]]), Counters::default());
        assert_eq!(Counters::sum(&[]).total_bytes(), 0);
    }
}
