//! Compares what a program has counted with what the kernel has.

/// Packets of the kernel that are enough for a judgement. Some pass between the two readings.
const MIN_PACKETS: u64 = 32;
/// Comparisons that are taken together if there are fewer packets. Not more, because few packets over a long time may
/// be ones that no program sees.
const MAX_ROUNDS: u32 = 5;

/// The same for a device of this kind: WireGuard counts its keepalives, and with many idle peers there is nothing else.
pub(crate) fn max_rounds(kind: Option<&str>) -> u32 {
    if kind == Some("wireguard") { 1 } else { MAX_ROUNDS }
}

/// One direction of an interface.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// Packets at the last judgement, counted by the kernel and here.
    since: Option<(u64, u64)>,
    /// Comparisons since then.
    rounds: u32,
    /// Consecutive judgements with missing packets.
    missing: u32,
}

impl Comparison {
    /// Whether the program sees less than half of the packets. A single comparison may have fallen into a burst.
    pub fn is_hidden(&self) -> bool {
        self.missing >= 2
    }

    /// Compares the numbers of packets; returns how many are missing since the last judgement.
    pub fn compare(&mut self, kernel: u64, ours: u64, max_rounds: u32) -> u64 {
        let (kernel_before, ours_before) = *self.since.get_or_insert((kernel, ours));
        let (theirs, seen) = (kernel.wrapping_sub(kernel_before), ours.wrapping_sub(ours_before));
        self.rounds += 1;
        if theirs < MIN_PACKETS && self.rounds < max_rounds {
            return 0;
        }
        (self.since, self.rounds) = (Some((kernel, ours)), 0);
        if seen >= theirs.div_ceil(2) {
            if seen > 0 {
                self.missing = 0;
            }
        } else if theirs >= MIN_PACKETS {
            self.missing += 1;
        }
        theirs.saturating_sub(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state of a veth after comparisons with these packets of the kernel and of the program.
    fn after(rounds: &[(u64, u64)]) -> bool {
        on("veth", rounds)
    }

    fn on(kind: &str, rounds: &[(u64, u64)]) -> bool {
        let (mut comparison, mut kernel, mut ours) = (Comparison::default(), 7, 3);
        let most = max_rounds(Some(kind));
        comparison.compare(kernel, ours, most);
        for (theirs, seen) in rounds {
            (kernel, ours) = (kernel + theirs, ours + seen);
            comparison.compare(kernel, ours, most);
        }
        comparison.is_hidden()
    }

    #[test]
    fn missing_packets_are_noticed_and_their_return() {
        assert!(!after(&[(100, 0)]));
        assert!(after(&[(100, 0), (100, 49)]));
        assert!(!after(&[(100, 0), (100, 50), (100, 0)]));
        assert!(!after(&[(100, 0), (100, 0), (40, 40)]));
    }

    #[test]
    fn few_packets_are_taken_together() {
        assert!(after(&[(10, 0); 8]));
        assert!(!on("wireguard", &[(10, 0); 1000]));
        // Less than that may be packets that no program sees.
        assert!(!after(&[(1, 0); 1000]));
        // One that is seen among many that are not does not mean that they are seen again.
        let mut rounds = vec![(100, 0), (100, 0), (9, 1)];
        assert!(after(&rounds));
        rounds.resize(20, (0, 0));
        assert!(after(&rounds));
        rounds.resize(40, (2, 2));
        assert!(!after(&rounds));
    }
}
