//! Values as text: in labels, and in the verbose log.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::model::{ArgKind, Unit};
use crate::decode::EventValue;
use crate::plan::ValueKind;

/// The text of a value that could not be read from the application's memory.
pub const UNREADABLE: &str = "unreadable";

/// The text of values beyond a label's limit.
pub const OTHER: &str = "other";

/// The longest label value, in bytes of UTF-8.
const LABEL_BYTES: usize = 512;

/// Appends the value as a label shows it: always valid UTF-8 without control characters, and of limited length. If
/// `unsigned`, the 64 bits of an integer are unsigned.
pub fn show(kind: &ValueKind, value: EventValue<'_>, unsigned: bool, to: &mut String) {
    match (kind, value) {
        (_, EventValue::Unreadable) => to.push_str(UNREADABLE),
        (ValueKind::Arg(ArgKind::Bool), EventValue::Int(number)) => {
            to.push_str(if number == 0 { "false" } else { "true" });
        }
        (ValueKind::Arg(ArgKind::Bool), EventValue::Large(_)) => to.push_str("true"),
        (_, EventValue::Int(number)) if unsigned => push(to, format_args!("{}", number as u64)),
        (kind, EventValue::Int(number)) => push(to, format_args!("{}", kind.integer(number))),
        (_, EventValue::Large(number)) => push(to, format_args!("{number}")),
        (ValueKind::Arg(ArgKind::Hex { reverse, .. }), EventValue::Text(bytes)) => {
            show_hex(bytes, *reverse, to)
        }
        (ValueKind::Arg(ArgKind::Ipv4), EventValue::Text(bytes)) => match bytes.first_chunk::<4>() {
            Some(octets) => push(to, format_args!("{}", Ipv4Addr::from(*octets))),
            None => to.push_str(UNREADABLE),
        },
        (ValueKind::Arg(ArgKind::Ipv6), EventValue::Text(bytes)) => match bytes.first_chunk::<16>() {
            Some(octets) => push(to, format_args!("{}", Ipv6Addr::from(*octets))),
            None => to.push_str(UNREADABLE),
        },
        (ValueKind::Arg(ArgKind::SockAddr), EventValue::Text(bytes)) => show_socket_address(bytes, to),
        (kind, EventValue::Text(text)) => show_text(text, kind.max_bytes() as usize, to),
    }
}

/// As [`show`], but with its unit, for a log line: 12.3ms.
pub fn show_with_unit(kind: &ValueKind, unit: Unit, value: EventValue<'_>, to: &mut String) {
    let nanoseconds = match unit {
        Unit::Nanoseconds => 1.0,
        Unit::Microseconds => 1e3,
        Unit::Milliseconds => 1e6,
        Unit::Seconds => 1e9,
        _ => return show(kind, value, false, to),
    };
    let number = match value {
        EventValue::Int(number) => kind.integer(number) as f64,
        EventValue::Large(number) => number as f64,
        _ => return show(kind, value, false, to),
    };
    push(to, format_args!("{:.1}ms", number * nanoseconds / 1e6));
}

/// As [`show`], but shows numbers with a unit in a readable one without loss, such as 612ms, or in bytes.
pub fn show_exactly(kind: &ValueKind, unit: Unit, value: EventValue<'_>, to: &mut String) {
    let number = match value {
        EventValue::Int(number) => kind.integer(number),
        EventValue::Large(number) => i128::from(number),
        _ => return show(kind, value, false, to),
    };
    // Each unit, and how many of it make the next one.
    let times: &[(&str, i128)] = &[("ns", 1000), ("us", 1000), ("ms", 1000), ("s", i128::MAX)];
    let (times, factor) = match unit {
        Unit::Nanoseconds => (times, 1),
        Unit::Microseconds => (&times[1..], 1),
        Unit::Milliseconds => (&times[2..], 1),
        Unit::Seconds => (&times[3..], 1),
        Unit::Kibibytes => (&times[..0], 1 << 10),
        Unit::Mebibytes => (&times[..0], 1 << 20),
        Unit::Pages => (&times[..0], 1 << 12),
        Unit::None | Unit::Bytes => return show(kind, value, false, to),
    };
    let mut parts = 1;
    for (unit, next) in times {
        let shown = number / parts;
        if shown.abs() < *next {
            let fraction = number.abs() % parts;
            let digits = parts.ilog10() as usize;
            push(to, format_args!("{}{}", if number < 0 { "-" } else { "" }, shown.abs()));
            if fraction > 0 {
                push(to, format_args!(".{}", format!("{fraction:0digits$}").trim_end_matches('0')));
            }
            to.push_str(unit);
            return;
        }
        parts *= next;
    }
    push(to, format_args!("{}", number * factor));
}

fn push(to: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = to.write_fmt(text);
}

/// An application's text can contain anything: invalid UTF-8 and whatever would break a line are replaced. If the text
/// was truncated to `max` bytes within a character, the partial character is omitted.
fn show_text(bytes: &[u8], max: usize, to: &mut String) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let mut bytes = &bytes[..end];
    // One of the bytes of a C string is its NUL.
    if bytes.len() + 1 >= max
        && let Some(last) = bytes.utf8_chunks().last()
        && std::str::from_utf8(last.invalid()).is_err_and(|error| error.error_len().is_none())
    {
        bytes = &bytes[..bytes.len() - last.invalid().len()];
    }
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if to.len() >= LABEL_BYTES {
                return;
            }
            to.push(if character.is_control() { '\u{fffd}' } else { character });
        }
        if !chunk.invalid().is_empty() {
            to.push('\u{fffd}');
        }
    }
}

fn show_hex(bytes: &[u8], reverse: bool, to: &mut String) {
    // Uses a table: the formatter takes 25 ns per byte, and a hash may be shown for every event.
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    to.reserve(2 * bytes.len());
    let mut digits = |byte: &u8| {
        to.push(char::from(DIGITS[usize::from(byte >> 4)]));
        to.push(char::from(DIGITS[usize::from(byte & 15)]));
    };
    if reverse { bytes.iter().rev().for_each(&mut digits) } else { bytes.iter().for_each(&mut digits) }
}

/// Shows an Internet address; for other families, only the family.
fn show_socket_address(bytes: &[u8], to: &mut String) {
    match (socket_address(bytes), bytes.first_chunk()) {
        (Some(address), _) => push(to, format_args!("{address}")),
        (None, None) => to.push_str(UNREADABLE),
        (None, Some(family)) => match i32::from(u16::from_ne_bytes(*family)) {
            libc::AF_UNIX => to.push_str("unix"),
            libc::AF_INET | libc::AF_INET6 => to.push_str(UNREADABLE),
            other => push(to, format_args!("family {other}")),
        },
    }
}

/// Parses a `struct sockaddr_in` or `sockaddr_in6`: the family is in host byte order, port and address in network byte
/// order.
fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    match i32::from(family) {
        libc::AF_INET => Some((Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?), port).into()),
        libc::AF_INET6 => Some((Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?), port).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::IntType;

    fn display(kind: ArgKind, value: EventValue<'_>) -> String {
        let mut to = String::new();
        show(&ValueKind::Arg(kind), value, false, &mut to);
        to
    }

    #[test]
    fn text_is_a_single_line_of_utf8() {
        let string = || ArgKind::Str { max: 64 };
        assert_eq!(display(string(), EventValue::Text(b"plain\0behind")), "plain");
        assert_eq!(display(string(), EventValue::Text(b"a\xffb\nc")), "a\u{fffd}b\u{fffd}c");
        assert_eq!(display(string(), EventValue::Text(&[0xf0, 0x9f, 0x98])), "\u{fffd}");
        assert!(display(string(), EventValue::Text(&[b'x'; 4000])).len() <= LABEL_BYTES);
        assert_eq!(display(string(), EventValue::Unreadable), "unreadable");
    }

    #[test]
    fn shows_bytes_and_addresses() {
        assert_eq!(
            display(ArgKind::Hex { len: 3, reverse: true }, EventValue::Text(&[1, 0xab, 0])),
            "00ab01"
        );
        assert_eq!(display(ArgKind::Ipv4, EventValue::Text(&[127, 0, 0, 1])), "127.0.0.1");
        let v6: [u8; 16] = std::array::from_fn(|n| u8::from(n == 15));
        assert_eq!(display(ArgKind::Ipv6, EventValue::Text(&v6)), "::1");
        let mut address = vec![0; 28];
        address[..8].copy_from_slice(&[2, 0, 0x1f, 0x90, 10, 0, 0, 7]);
        assert_eq!(display(ArgKind::SockAddr, EventValue::Text(&address)), "10.0.0.7:8080");
        // The number of bytes that the kernel reads for each family.
        assert_eq!(display(ArgKind::SockAddr, EventValue::Text(&address[..8])), "10.0.0.7:8080");
        let mut mapped = [0; 24];
        mapped[..4].copy_from_slice(&[10, 0, 0, 80]);
        mapped[18..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 7]);
        assert_eq!(display(ArgKind::SockAddr, EventValue::Text(&mapped)), "[::ffff:10.0.0.7]:80");
        assert_eq!(display(ArgKind::SockAddr, EventValue::Text(&[1, 0])), "unix");
        assert_eq!(display(ArgKind::SockAddr, EventValue::Text(&[16, 0])), "family 16");
        assert_eq!(display(ArgKind::SockAddr, EventValue::Text(&[2, 0, 1])), "unreadable");
        assert_eq!(display(ArgKind::SockAddr, EventValue::Text(&[])), "unreadable");
    }

    #[test]
    fn unsigned_numbers_are_shown_unsigned() {
        let u64 = || ArgKind::Int(Some(IntType { bytes: 8, signed: false }));
        assert_eq!(display(u64(), EventValue::Int(-1)), "18446744073709551615");
        assert_eq!(display(ArgKind::Int(None), EventValue::Int(-1)), "-1");
        assert_eq!(display(ArgKind::Int(None), EventValue::Large(1 << 63)), "9223372036854775808");
        assert_eq!(display(ArgKind::Bool, EventValue::Large(1 << 63)), "true");
        let mut to = String::new();
        show_with_unit(&ValueKind::Arg(u64()), Unit::Bytes, EventValue::Int(-1), &mut to);
        assert_eq!(to, "18446744073709551615");
    }

    #[test]
    fn character_cut_by_the_limit_is_dropped() {
        let string = |max| ArgKind::Str { max };
        // With its NUL, it has the maximum length.
        assert_eq!(display(string(4), EventValue::Text("aü".as_bytes())), "aü");
        assert_eq!(display(string(4), EventValue::Text(b"ab\xc3")), "ab");
        assert_eq!(display(string(8), EventValue::Text(b"abcd\xf0\x9f\x98")), "abcd");
        // A shorter one is invalid rather than truncated.
        assert_eq!(display(string(8), EventValue::Text(b"ab\xc3")), "ab\u{fffd}");
        assert_eq!(display(string(4), EventValue::Text(b"ab\xff")), "ab\u{fffd}");
    }

    #[test]
    fn numbers_with_a_unit_are_shown_without_loss() {
        let exactly = |unit, number| {
            let mut to = String::new();
            show_exactly(&ValueKind::Arg(ArgKind::Int(None)), unit, EventValue::Int(number), &mut to);
            to
        };
        for (unit, number, shown) in [
            (Unit::Microseconds, 612_000, "612ms"),
            (Unit::Microseconds, 612_345, "612.345ms"),
            (Unit::Microseconds, 999, "999us"),
            (Unit::Nanoseconds, 1_000_000_001, "1.000000001s"),
            (Unit::Nanoseconds, -1, "-1ns"),
            (Unit::Nanoseconds, -1_500, "-1.5us"),
            (Unit::Nanoseconds, i64::MIN, "-9223372036.854775808s"),
            (Unit::Seconds, 90, "90s"),
            (Unit::Kibibytes, 4, "4096"),
            (Unit::Bytes, 7, "7"),
            (Unit::None, -7, "-7"),
        ] {
            assert_eq!(exactly(unit, number), shown);
        }
        let mut to = String::new();
        show_exactly(&ValueKind::Arg(ArgKind::Bool), Unit::None, EventValue::Int(1), &mut to);
        assert_eq!(to, "true");
    }

    #[test]
    fn logged_durations_are_in_milliseconds() {
        let mut to = String::new();
        let kind = ValueKind::Arg(ArgKind::Int(None));
        show_with_unit(&kind, Unit::Nanoseconds, EventValue::Int(12_345_678), &mut to);
        assert_eq!(to, "12.3ms");
    }
}
