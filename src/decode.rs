//! From bytes of the ring buffer to events. Pure; nothing is copied.

use crate::abi::{LARGE_VALUE, LONG_TEXTS, MAX_VALUES, SHORT_TEXTS, SLOW_HIT, event_class};

const HEADER: usize = 16;

/// One hit of a probe.
#[derive(Debug, Clone, Copy)]
pub struct ProbeEvent<'a> {
    /// Index into the plan's probes.
    pub probe: usize,
    faults: u32,
    values: &'a [u8],
    text: &'a [u8],
}

/// A value of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventValue<'a> {
    Int(i64),
    /// 2^63 or more, of an unsigned argument.
    Large(u64),
    /// Without the terminating NUL.
    Text(&'a [u8]),
    /// It could not be read.
    Unreadable,
}

impl EventValue<'_> {
    /// The 64 bits of a number.
    pub fn word(&self) -> Option<u64> {
        match self {
            EventValue::Int(number) => Some(*number as u64),
            EventValue::Large(number) => Some(*number),
            EventValue::Text(_) | EventValue::Unreadable => None,
        }
    }
}

/// Why a record is not an event; only a bug in the exporter itself causes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError(String);

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DecodeError {}

impl<'a> ProbeEvent<'a> {
    /// Decodes one record, laid out as `struct event` in `bpf/abi.h`.
    ///
    /// # Errors
    /// If the record is shorter than its own header says.
    pub fn decode(record: &'a [u8]) -> Result<Self, DecodeError> {
        let header: &[u8; HEADER] = record
            .first_chunk()
            .ok_or_else(|| DecodeError(format!("event of {} bytes is too short", record.len())))?;
        let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|n| header[at + n]));
        let (nvalues, room) = match event_class(u32::from(header[10])) {
            event_class::EVENT_6 => (6, 0),
            event_class::EVENT_12 => (MAX_VALUES, 0),
            event_class::EVENT_SHORT_TEXTS => (MAX_VALUES, SHORT_TEXTS),
            event_class::EVENT_LONG_TEXTS => (MAX_VALUES, LONG_TEXTS),
            event_class(other) => return Err(DecodeError(format!("unknown event class {other}"))),
        };
        let used = usize::from(u16::from_ne_bytes([header[8], header[9]]));
        let text_at = HEADER + 8 * nvalues;
        let (Some(values), Some(text)) =
            (record.get(HEADER..text_at), record.get(text_at..text_at + used.min(room)))
        else {
            return Err(DecodeError(format!("event truncated at {} bytes", record.len())));
        };
        Ok(Self { probe: half(0) as usize, faults: half(4), values, text })
    }

    /// Whether the kernel decided that the hit is slow.
    pub fn is_slow(&self) -> bool {
        self.faults >> SLOW_HIT & 1 == 1
    }

    /// Value number `index`; the plan says whether it is text.
    pub fn value(&self, index: usize, is_text: bool) -> EventValue<'a> {
        let Some(word) = self.values.get(8 * index..8 * index + 8) else { return EventValue::Unreadable };
        if self.faults & (1 << index) != 0 {
            return EventValue::Unreadable;
        }
        let word = u64::from_ne_bytes(std::array::from_fn(|n| word[n]));
        if !is_text {
            let is_large = self.faults >> LARGE_VALUE >> index & 1 == 1;
            return if is_large { EventValue::Large(word) } else { EventValue::Int(word as i64) };
        }
        let (from, len) = ((word >> 32) as usize, (word & 0xffff_ffff) as usize);
        self.text.get(from..from.saturating_add(len)).map_or(EventValue::Unreadable, EventValue::Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(class: u32, values: &[u64], text: &[u8], room: usize, faults: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for half in [3u32, faults] {
            bytes.extend(half.to_ne_bytes());
        }
        bytes.extend(u16::try_from(text.len()).unwrap().to_ne_bytes());
        bytes.extend([class as u8, 0, 0, 0, 0, 0]);
        let n = if class == 0 { 6 } else { 12 };
        for i in 0..n {
            bytes.extend(values.get(i).copied().unwrap_or(0).to_ne_bytes());
        }
        bytes.extend(text);
        bytes.resize(bytes.len() + room - text.len(), 0);
        bytes
    }

    #[test]
    fn decodes_integers_text_and_faults() {
        let bytes = record(2, &[u64::MAX, 3 << 32 | 4, 9], b"abcdefg", 256, 0b100);
        let event = ProbeEvent::decode(&bytes).unwrap();
        assert_eq!(event.probe, 3);
        assert_eq!(event.value(0, false), EventValue::Int(-1));
        assert_eq!(event.value(1, true), EventValue::Text(b"defg"));
        assert_eq!(event.value(2, false), EventValue::Unreadable);
        let bytes = record(0, &[u64::MAX, u64::MAX], b"", 0, 1 << (LARGE_VALUE + 1));
        let event = ProbeEvent::decode(&bytes).unwrap();
        assert_eq!(
            (event.value(0, false), event.value(1, false)),
            (EventValue::Int(-1), EventValue::Large(u64::MAX))
        );
        let bytes = record(1, &[], b"", 0, 0);
        let event = ProbeEvent::decode(&bytes).unwrap();
        assert_eq!(event.value(11, false), EventValue::Int(0));
        assert_eq!(event.value(12, false), EventValue::Unreadable);
    }

    #[test]
    fn out_of_bounds_text_is_unreadable() {
        let bytes = record(2, &[250 << 32 | 250], b"abc", 256, 0);
        assert_eq!(ProbeEvent::decode(&bytes).unwrap().value(0, true), EventValue::Unreadable);
    }

    #[test]
    fn rejects_truncated_records() {
        let bytes = record(1, &[1; 12], b"", 0, 0);
        for len in 0..bytes.len() {
            assert!(ProbeEvent::decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut odd = bytes;
        odd[10] = 9;
        assert!(ProbeEvent::decode(&odd).is_err());
    }
}
