//! Decoders of bytes from outside, for the fuzz targets in `fuzz/`, which cannot access private modules.

use crate::decode::{EventValue, ProbeEvent};
use crate::{kernel, net};

/// A record of the hits' ring buffer: the length of each of its values read as text; `None` if it is not an event.
pub fn event(record: &[u8]) -> Option<Vec<usize>> {
    let event = ProbeEvent::decode(record).ok()?;
    let values = (0..=crate::abi::MAX_VALUES).map(|value| match event.value(value, true) {
        EventValue::Text(text) => text.len(),
        EventValue::Int(_) | EventValue::Large(_) | EventValue::Unreadable => 0,
    });
    Some(values.collect())
}

/// A record of the processes' ring buffer: whether it is an event.
pub fn process_event(record: &[u8]) -> bool {
    kernel::process_event(record).is_some()
}

/// An rtnetlink datagram: the names of the interfaces in it; `None` if it is malformed, or reports an error.
pub fn interfaces(datagram: &[u8]) -> Option<Vec<String>> {
    net::interfaces_in(datagram).ok()
}
