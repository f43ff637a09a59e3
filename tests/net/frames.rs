//! Valid frames of all kinds, and random modifications of them.

/// A small generator with a fixed seed: the same frames in every run (xorshift64*, Vigna 2014).
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// Returns true once in `n` times on average.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Returns a valid packet of TCP with options, UDP, ICMP, ICMPv6 or another protocol.
fn transport(chance: &mut Chance, number: u8) -> Vec<u8> {
    let payload = chance.below(60) as usize;
    let mut bytes = match number {
        6 => {
            let words = 5 + chance.below(11) as u8;
            let mut header = vec![0u8; usize::from(words) * 4];
            header[12] = words << 4;
            header[13] = if chance.once_in(2) { 0x10 } else { chance.next() as u8 };
            header
        }
        17 => vec![0, 0, 0, 0, 0, 8 + payload as u8, 0, 0],
        _ => vec![0; 8],
    };
    if matches!(number, 6 | 17) {
        bytes[..2].copy_from_slice(&(chance.below(4) as u16 + 1000).to_be_bytes());
        bytes[2..4].copy_from_slice(&(chance.below(4) as u16 + 2000).to_be_bytes());
    }
    if number == 17 && chance.once_in(8) {
        let (from, to) = chance.pick(&[(67u16, 68u16), (68, 67), (547, 546), (546, 547)]);
        bytes[..2].copy_from_slice(&from.to_be_bytes());
        bytes[2..4].copy_from_slice(&to.to_be_bytes());
    }
    bytes.resize(bytes.len() + payload, 0x5a);
    bytes
}

fn ipv4(chance: &mut Chance) -> Vec<u8> {
    let number = chance.pick(&[6, 6, 17, 17, 1, 58, 2, 47]);
    let options = if chance.once_in(4) { chance.below(11) as u8 * 4 } else { 0 };
    let body = transport(chance, number);
    let mut bytes = vec![0u8; 20 + usize::from(options)];
    bytes[0] = 0x45 + options / 4;
    bytes[8] = 64;
    bytes[9] = number;
    if chance.once_in(8) {
        let fragment = chance.pick(&[0x2000u16, 0x2001, 0x0003, 0x4000, 0x8000]);
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
    }
    bytes[12..20].copy_from_slice(&[10, 0, 0, chance.below(4) as u8, 10, 0, 1, chance.below(4) as u8]);
    bytes.extend_from_slice(&body);
    let total = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    bytes
}

fn ipv6(chance: &mut Chance) -> Vec<u8> {
    let number = chance.pick(&[6, 6, 17, 17, 58, 1, 59, 50]);
    let mut body = transport(chance, number);
    let mut next = number;
    if chance.once_in(3) {
        for _ in 0..chance.below(11) {
            let kind = chance.pick(&[0u8, 43, 44, 51, 60, 135, 139, 140]);
            let units = chance.below(3) as u8;
            let size = match kind {
                44 => 8,
                51 => (usize::from(units) + 2) * 4,
                _ => (usize::from(units) + 1) * 8,
            };
            let mut header = vec![0u8; size.max(8)];
            header[0] = next;
            header[1] = if kind == 44 { 0 } else { units };
            if kind == 44 && chance.once_in(2) {
                let fragment = chance.pick(&[0x0001u16, 0x0010, 0x0011, 0x0006]);
                header[2..4].copy_from_slice(&fragment.to_be_bytes());
            }
            header.extend_from_slice(&body);
            body = header;
            next = kind;
        }
    }
    let mut bytes = vec![0u8; 40];
    bytes[0] = 0x60;
    let length = if next == 0 && chance.once_in(8) { 0 } else { body.len() as u16 };
    bytes[4..6].copy_from_slice(&length.to_be_bytes());
    bytes[6] = next;
    bytes[8] = 0xfd;
    bytes[23] = chance.below(4) as u8;
    bytes[24] = 0xfd;
    bytes[39] = chance.below(4) as u8;
    bytes.extend_from_slice(&body);
    bytes
}

/// Returns a valid frame of any kind.
pub fn sound(chance: &mut Chance) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if chance.once_in(4) {
        for _ in 0..=chance.below(3) {
            bytes.extend_from_slice(&chance.pick(&[0x8100u16, 0x88a8]).to_be_bytes());
            bytes.extend_from_slice(&[0, 7]);
        }
    }
    let (kind, packet) = match chance.below(16) {
        0 => (chance.pick(&[0x0806u16, 0x88cc, 0x0026]), vec![0; 46]),
        1..=8 => (0x0800, ipv4(chance)),
        _ => (0x86dd, ipv6(chance)),
    };
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&packet);
    if chance.once_in(4) {
        // Mostly a few bytes of padding; sometimes as many as a test run accepts, so that all sizes occur.
        let padding = if chance.once_in(16) { chance.below(3000) } else { chance.below(20) };
        bytes.resize(bytes.len() + padding as usize, 0);
    }
    bytes
}

/// Returns any kind of frame: valid, modified in a few bytes that matter, truncated, or pure noise. It has at least 14
/// bytes, the minimum of a test run.
pub fn any(chance: &mut Chance) -> Vec<u8> {
    if chance.once_in(32) {
        let length = 14 + chance.below(120) as usize;
        return (0..length).map(|_| chance.next() as u8).collect();
    }
    let mut bytes = sound(chance);
    match chance.below(4) {
        0 => {}
        1 => {
            for _ in 0..=chance.below(3) {
                // Length fields are in the bytes between the addresses and the beginning of the transport header.
                let at = (12 + chance.below(70) as usize).min(bytes.len() - 1);
                bytes[at] =
                    if chance.once_in(2) { chance.next() as u8 } else { bytes[at] ^ (1 << chance.below(8)) };
            }
        }
        2 => {
            let length = 14 + chance.below(bytes.len() as u64 - 13) as usize;
            bytes.truncate(length);
        }
        _ => {
            let at = chance.below(bytes.len() as u64) as usize;
            bytes[at] = chance.pick(&[0, 1, 4, 6, 17, 44, 51, 0x45, 0x60, 0x7f, 0xff]);
        }
    }
    bytes
}
