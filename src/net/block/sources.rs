//! Sources of entries, and the numbers by which the kernel counts their packets. Pure.

use super::super::abi::SOURCES;
use super::entry::{Asker, Source};

/// Assigns each source a number for the exporter's lifetime.
#[derive(Debug)]
pub(super) struct Sources {
    known: Vec<Source>,
}

/// The first numbers are reserved: the configuration's own entries, and each kind of [`Asker`].
pub(super) const FIXED: usize = 1 + Asker::ALL.len();

/// The name of the last number, which is shared once there are more sources than numbers.
const OVERFLOW: &str = "other";

impl Sources {
    /// The number of the configuration's own entries.
    pub const CONFIG: u16 = 0;

    pub fn new() -> Self {
        let askers = Asker::ALL.map(|by| Source::named(by.word()));
        Self { known: std::iter::once(Source::named("config")).chain(askers).collect() }
    }

    /// The number of entries added at run time.
    pub fn of_asker(by: Asker) -> u16 {
        Self::CONFIG + 1 + by as u16
    }

    /// The number of a source, assigned if it has none yet.
    pub fn number(&mut self, source: Source) -> u16 {
        let at = self.known.iter().position(|known| *known == source).unwrap_or_else(|| {
            if self.known.len() < SOURCES {
                let is_last = self.known.len() == SOURCES - 1;
                self.known.push(if is_last { Source::named(OVERFLOW) } else { source });
            }
            self.known.len() - 1
        });
        at as u16
    }

    /// The source with this number.
    pub fn of(&self, number: u16) -> Option<&Source> {
        self.known.get(usize::from(number))
    }

    /// All sources by number.
    pub fn all(&self) -> impl Iterator<Item = (u16, &Source)> {
        (0..).zip(&self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_numbers_are_stable_and_the_last_is_shared() {
        let mut sources = Sources::new();
        let decided = |by: usize| Source { name: "crowdsec".into(), origin: Some(by.to_string()) };
        assert_eq!(sources.of(Sources::of_asker(Asker::Detection)), Some(&Source::named("detection")));
        let first = sources.number(decided(0));
        let numbers: Vec<u16> = (0..2 * SOURCES).map(|by| sources.number(decided(by))).collect();
        assert_eq!((numbers[0], sources.number(decided(0))), (first, first));
        assert_eq!(usize::from(*numbers.last().unwrap()), SOURCES - 1);
        assert_eq!(sources.of(*numbers.last().unwrap()), Some(&Source::named("other")));
        assert_eq!(sources.all().count(), SOURCES);
        assert_eq!(decided(7).labels(), [("source", "crowdsec"), ("origin", "7")]);
    }
}
