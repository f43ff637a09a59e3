//! Pseudo-random numbers.

/// A deterministic sequence of numbers, so that failures are reproducible (xorshift64, Marsaglia 2003).
pub struct Xorshift(pub u64);

impl Xorshift {
    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
