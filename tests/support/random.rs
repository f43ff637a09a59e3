//! Numbers of chance.

/// A fixed sequence of numbers, so that a failure can be met again (xorshift64, Marsaglia 2003).
pub struct Xorshift(pub u64);

impl Xorshift {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
