//! The bitmaps that packets are looked up in before anything else (`bpf/block.bpf.h`). Pure.
//!
//! A bit that is set says only that it is worth looking further, so that too many cost time and nothing else.

use std::net::IpAddr;

use super::super::abi::{List, MARK_BYTES, MARK_FACTOR};
use super::super::cidr::Prefix;

/// Words of one bitmap.
pub(crate) const WORDS: usize = MARK_BYTES / 8;
const BITS: u32 = (MARK_BYTES * 8) as u32;

/// Shorter IPv6 prefixes set all bits: they would set most of them one by one.
const SHORTEST_6: u8 = 12;

/// Both bitmaps. The bit `n` is the bit `n % 64` of the word `n / 64`, which is where programs find it in bytes.
#[derive(Debug)]
pub(crate) struct Marks {
    pub v4: Vec<u64>,
    pub v6: Vec<u64>,
}

impl Marks {
    pub fn new() -> Self {
        Self { v4: vec![0; WORDS], v6: vec![0; WORDS] }
    }

    pub fn add(&mut self, list: List, prefix: Prefix) {
        each_word(list, prefix, |is_v4, word, bits| {
            let words = if is_v4 { &mut self.v4 } else { &mut self.v6 };
            words[word] |= bits;
        });
    }
}

/// What a prefix of a list sets: whether in the bitmap of IPv4, in which word, and bits of it.
pub(crate) fn each_word(list: List, prefix: Prefix, mut set: impl FnMut(bool, usize, u64)) {
    let mut range = |is_v4: bool, first: u32, count: u32| {
        let (first, last) = (first as usize, (first + count - 1) as usize);
        for word in first / 64..=last / 64 {
            let from = if word == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
            let to = if word == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
            set(is_v4, word, from & to);
        }
    };
    match list {
        List::Blocked => each_blocked(prefix, range),
        List::Allowed => hashed(prefix).into_iter().for_each(move |bit| range(false, bit, 1)),
    }
}

/// What a blocked prefix sets: whether in the bitmap of IPv4, the first bit, and how many.
fn each_blocked(prefix: Prefix, mut set: impl FnMut(bool, u32, u32)) {
    match prefix.address() {
        IpAddr::V4(address) => {
            let count = 1 << 24u8.saturating_sub(prefix.bits());
            set(true, address.to_bits() >> 8, count);
        }
        IpAddr::V6(_) if prefix.bits() < SHORTEST_6 => set(false, 0, BITS),
        IpAddr::V6(address) => {
            let first = (address.to_bits() >> 96) as u32;
            for more in 0..1u32 << 32u8.saturating_sub(prefix.bits()) {
                set(false, first_bit(first + more), 1);
            }
            if let Some(bit) = hashed(prefix) {
                set(false, bit, 1);
            }
        }
    }
}

/// The bit of the first 32 bits of an IPv6 address.
fn first_bit(first: u32) -> u32 {
    // As a program loads it from a packet.
    u32::from_le_bytes(first.to_be_bytes()).wrapping_mul(MARK_FACTOR) >> 8
}

/// The bit of an IPv6 prefix with its length.
fn hashed(prefix: Prefix) -> Option<u32> {
    let IpAddr::V6(address) = prefix.address() else { return None };
    let bits = address.to_bits();
    let (high, low) = ((bits >> 64) as u64, bits as u64);
    let hash = (high ^ u64::from(prefix.bits())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ (hash >> 32) ^ low).wrapping_mul(0xd6e8_feb8_6659_fd93);
    Some((hash >> 40) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> (u32, u32) {
        let mut marks = Marks::new();
        marks.add(List::Blocked, Prefix::parse(text).unwrap());
        let count = |words: &[u64]| words.iter().map(|word| word.count_ones()).sum();
        (count(&marks.v4), count(&marks.v6))
    }

    #[test]
    fn a_prefix_sets_a_bit_for_each_24() {
        for (text, v4, v6) in [
            ("192.0.2.7", 1, 0),
            ("192.0.2.0/24", 1, 0),
            ("192.0.0.0/16", 256, 0),
            ("10.0.0.0/7", 1 << 17, 0),
            ("0.0.0.0/0", 1 << 24, 0),
            ("255.255.255.255", 1, 0),
            ("2001:db8::1", 0, 2),
            ("::/0", 0, 1 << 24),
        ] {
            assert_eq!(set(text), (v4, v6), "{text}");
        }
        let mut marks = Marks::new();
        marks.add(List::Blocked, Prefix::parse("10.1.2.0/24").unwrap());
        assert_eq!(marks.v4[0x0a_01_02 / 64], 1 << (0x0a_01_02 % 64));
        marks.add(List::Allowed, Prefix::parse("10.2.0.0/16").unwrap());
        assert_eq!(
            marks.v4.iter().filter(|word| **word > 0).count(),
            1,
            "what is allowed is only asked then"
        );
    }
}
