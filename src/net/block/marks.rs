//! The bitmaps in which a packet's address is looked up first (`bpf/block.bpf.h`). Pure.
//!
//! A set bit only means that the tables must be searched, so superfluous bits cost time and nothing else.

use std::net::IpAddr;

use super::super::abi::{ALLOWED_BYTES, List, MARK_BYTES, MARK_FACTOR};
use super::super::cidr::Prefix;

/// Words of one bitmap.
pub(crate) const WORDS: usize = MARK_BYTES / 8;
const BITS: u32 = (MARK_BYTES * 8) as u32;
/// Words of the bitmap of the allowlist.
pub(crate) const ALLOWED_WORDS: usize = ALLOWED_BYTES / 8;
const ALLOWED_BITS: u32 = (ALLOWED_BYTES * 8) as u32;

/// Shorter IPv6 prefixes set all bits: they would set most of them one by one.
const MIN_PREFIX_6: u8 = 12;

/// The bitmaps. Bit `n` is bit `n % 64` of word `n / 64`, which is where programs expect it when they address bytes.
#[derive(Debug)]
pub(crate) struct Marks {
    pub v4: Vec<u64>,
    pub v6: Vec<u64>,
    pub allowed: Vec<u64>,
}

/// A bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bitmap {
    V4,
    V6,
    /// The bitmap of the allowlist.
    Allowed,
}

impl Marks {
    pub fn new() -> Self {
        Self { v4: vec![0; WORDS], v6: vec![0; WORDS], allowed: vec![0; ALLOWED_WORDS] }
    }

    pub fn add(&mut self, list: List, prefix: Prefix) {
        each_word(list, prefix, |bitmap, word, bits| {
            let words = match bitmap {
                Bitmap::V4 => &mut self.v4,
                Bitmap::V6 => &mut self.v6,
                Bitmap::Allowed => &mut self.allowed,
            };
            words[word] |= bits;
        });
    }
}

/// Calls `set` with bitmap, word and bits for a prefix of a list.
pub(crate) fn each_word(list: List, prefix: Prefix, mut set: impl FnMut(Bitmap, usize, u64)) {
    let range = |bitmap: Bitmap, first: u32, count: u32| {
        let (first, last) = (first as usize, (first + count - 1) as usize);
        for word in first / 64..=last / 64 {
            let from = if word == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
            let to = if word == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
            set(bitmap, word, from & to);
        }
    };
    match list {
        List::Blocked => each_blocked(prefix, range),
        List::Allowed => each_allowed(prefix, range),
    }
}

/// Calls `set` with bitmap, first bit and number of bits for an allowed prefix.
fn each_allowed(prefix: Prefix, mut set: impl FnMut(Bitmap, u32, u32)) {
    match prefix.address() {
        IpAddr::V4(address) => {
            set(Bitmap::Allowed, address.to_bits() >> 16, 1 << 16u8.saturating_sub(prefix.bits()));
        }
        IpAddr::V6(_) if prefix.bits() < MIN_PREFIX_6 => set(Bitmap::Allowed, 0, ALLOWED_BITS),
        IpAddr::V6(address) => {
            let first = (address.to_bits() >> 96) as u32;
            // The upper bits of the index used for the blocklist.
            (0..1u32 << 32u8.saturating_sub(prefix.bits()))
                .for_each(|more| set(Bitmap::Allowed, first_bit(first + more) >> 8, 1));
        }
    }
    if let Some(bit) = hashed(prefix) {
        set(Bitmap::V6, bit, 1);
    }
}

/// Calls `set` for a blocked prefix.
fn each_blocked(prefix: Prefix, mut set: impl FnMut(Bitmap, u32, u32)) {
    match prefix.address() {
        IpAddr::V4(address) => {
            let count = 1 << 24u8.saturating_sub(prefix.bits());
            set(Bitmap::V4, address.to_bits() >> 8, count);
        }
        IpAddr::V6(_) if prefix.bits() < MIN_PREFIX_6 => set(Bitmap::V6, 0, BITS),
        IpAddr::V6(address) => {
            let first = (address.to_bits() >> 96) as u32;
            for more in 0..1u32 << 32u8.saturating_sub(prefix.bits()) {
                set(Bitmap::V6, first_bit(first + more), 1);
            }
            if let Some(bit) = hashed(prefix) {
                set(Bitmap::V6, bit, 1);
            }
        }
    }
}

/// The bit for the first 32 bits of an IPv6 address.
fn first_bit(first: u32) -> u32 {
    // In the byte order in which a program loads it.
    u32::from_le_bytes(first.to_be_bytes()).wrapping_mul(MARK_FACTOR) >> 8
}

/// The bit for an IPv6 prefix and its length.
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
    fn prefix_sets_one_bit_per_24() {
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
            "what is allowed is not looked for there"
        );
        let allowed = |text: &str| {
            let mut marks = Marks::new();
            marks.add(List::Allowed, Prefix::parse(text).unwrap());
            marks.allowed.iter().map(|word| word.count_ones()).sum::<u32>()
        };
        let numbers =
            ["10.2.0.0/16", "10.2.3.4", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::1", "::/0"].map(allowed);
        assert_eq!(numbers, [1, 1, 256, 1 << 16, 1, 1 << 16]);
    }
}
