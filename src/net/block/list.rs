//! Parses published lists of addresses and prefixes. Pure.
//!
//! One entry per line: an address, a prefix (also with a netmask, `ADDRESS MASK`), or a range `FIRST-LAST`; `#` and `;`
//! begin comments. Columns of numbers after it are ignored, and so are all columns after a range with its prefix length
//! (DShield). A line with commas is a row of a table in which one column is the entry (abuse.ch). Or one JSON object per
//! line, with the prefix as `cidr` (Spamhaus DROP).

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::super::cidr::Prefix;

/// Invalid lines that are reported one by one.
const MAX_REPORTED: usize = 10;

/// With this many invalid lines or fewer, a file is accepted whatever their share is.
const TOLERATED: usize = 3;

/// A parsed file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ListFile {
    /// Sorted and without duplicates.
    pub prefixes: Vec<Prefix>,
    /// The number of invalid lines.
    pub invalid: usize,
    /// The first few warnings, with their lines.
    pub reported: Vec<(usize, String)>,
    /// The number of all warnings.
    pub warnings: usize,
}

impl ListFile {
    pub fn parse(content: &[u8]) -> Self {
        let mut file = Self::default();
        let content = utf8(content);
        for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let end = line.iter().position(|byte| matches!(byte, b'#' | b';')).unwrap_or(line.len());
            let text = String::from_utf8_lossy(&line[..end]);
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            let parsed = match text.strip_prefix('{') {
                Some(_) => json(text, &mut file.prefixes),
                None => entry(text, &mut file.prefixes),
            };
            match parsed {
                Ok(None) => {}
                Ok(Some(warning)) => file.warn(number + 1, warning),
                Err(error) => {
                    file.invalid += 1;
                    file.warn(number + 1, error);
                }
            }
        }
        file.prefixes.sort_unstable();
        file.prefixes.dedup();
        file
    }

    /// Whether the content is not a list, but an HTML page, for example. That may be a single line.
    pub fn is_none(&self) -> bool {
        self.invalid > self.prefixes.len() && (self.invalid > TOLERATED || self.prefixes.is_empty())
    }

    fn warn(&mut self, line: usize, text: String) {
        self.warnings += 1;
        if self.reported.len() < MAX_REPORTED {
            self.reported.push((line, text));
        }
    }
}

/// The content without a byte order mark, which says whether it is UTF-16, as Windows PowerShell writes it.
fn utf8(content: &[u8]) -> Cow<'_, [u8]> {
    let (rest, unit): (_, fn([u8; 2]) -> u16) = match content {
        [0xff, 0xfe, rest @ ..] => (rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => (rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => return rest.into(),
        _ => return content.into(),
    };
    let units: Vec<u16> = rest.as_chunks::<2>().0.iter().map(|pair| unit(*pair)).collect();
    String::from_utf16_lossy(&units).into_bytes().into()
}

/// Parses a line with a JSON object, the last of which may describe the list.
fn json(text: &str, to: &mut Vec<Prefix>) -> Result<Option<String>, String> {
    let object: Value = serde_json::from_str(text).map_err(|error| format!("{text:?}: {error}"))?;
    match object.get("cidr").and_then(Value::as_str) {
        Some(prefix) => entry(prefix, to),
        None if object.get("type").and_then(Value::as_str) == Some("metadata") => Ok(None),
        None => Err(format!("{text:?} has no text \"cidr\"")),
    }
}

/// Parses a line that is not empty; returns a warning if it had to be corrected.
fn entry(text: &str, to: &mut Vec<Prefix>) -> Result<Option<String>, String> {
    if let Some(column) = only_column(text) {
        return single(column, to);
    }
    let mut words = text.split([' ', '\t', ',']).filter(|word| !word.is_empty());
    let first = words.next().unwrap_or_default();
    let rest: Vec<&str> = words.collect();
    let with_mask = rest.first().filter(|mask| is_masked(first, mask)).map(|mask| format!("{first}/{mask}"));
    let (first, last) = match (first.split_once('-'), rest.as_slice()) {
        (None, [_, others @ ..]) if with_mask.is_some() && numbers(others) => {
            (with_mask.as_deref().unwrap_or_default(), None)
        }
        (Some((first, last)), []) => (first, Some(last)),
        (None, ["-", last]) => (first, Some(*last)),
        (None, [last, others @ ..]) if address(last).is_some() && !first.contains('/') && numbers(others) => {
            (first, Some(*last))
        }
        (None, [last, bits, ..]) if is_range_of(first, last, bits) => (first, Some(*last)),
        (None, others) if numbers(others) => (first, None),
        _ => return Err(format!("{text:?}: unexpected text after the address")),
    };
    if let Some(last) = last {
        let ends = address(first).zip(address(last));
        let ends = ends.filter(|(first, last)| first.is_ipv4() == last.is_ipv4() && first <= last);
        let (first, last) = ends.ok_or_else(|| format!("{text:?} is not a range of addresses"))?;
        let before = to.len();
        range(first, last, to);
        if are_too_wide(&to[before..]) {
            to.truncate(before);
            return Err(too_wide(text));
        }
        return Ok(None);
    }
    single(first, to)
}

/// Parses an address or prefix.
fn single(text: &str, to: &mut Vec<Prefix>) -> Result<Option<String>, String> {
    let (prefix, warning) = lenient(text)?;
    if are_too_wide(&[prefix]) {
        return Err(too_wide(text));
    }
    to.push(prefix);
    Ok(warning)
}

/// Whether an entry is more likely a mistake than meant: it contains a quarter of all IPv4 addresses, or all global IPv6
/// addresses. Published lists have 224.0.0.0/3 and, of IPv6, prefixes of any length that are in no use.
pub(super) fn are_too_wide(prefixes: &[Prefix]) -> bool {
    let global = Prefix::new(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0).into(), 3);
    let ipv4 = prefixes.iter().filter(|prefix| prefix.address().is_ipv4());
    let addresses: u64 = ipv4.map(|prefix| 1 << (32 - prefix.bits())).sum();
    addresses >= 1 << 30 || prefixes.iter().any(|prefix| prefix.contains(global))
}

fn too_wide(text: &str) -> String {
    format!(
        "{text:?} covers a quarter of all IPv4 addresses or more, or all global IPv6 addresses; list it in \
         `network.block.entries` if that is intended"
    )
}

/// The column of a row with commas that is an address or a prefix, if exactly one is.
fn only_column(text: &str) -> Option<&str> {
    let columns = text.contains(',').then(|| text.split(',').map(|column| column.trim().trim_matches('"')));
    let mut found = columns?.filter(|column| lenient(column).is_ok());
    found.next().filter(|_| found.next().is_none())
}

/// Whether a range is exactly the prefix of this length.
fn is_range_of(first: &str, last: &str, bits: &str) -> bool {
    let (Some(first), Some(last), Ok(bits)) = (address(first), address(last), bits.parse()) else {
        return false;
    };
    let mut prefixes = Vec::new();
    range(first, last, &mut prefixes);
    prefixes == [Prefix::new(first, bits)]
}

/// Whether `ADDRESS LAST` is an address with its netmask, and not a range: nothing after 223.255.255.255 is the source
/// of a packet, so no range leads from there to a mask of three bits or more.
fn is_masked(address: &str, last: &str) -> bool {
    let is_source = address.parse().is_ok_and(|address: Ipv4Addr| address.octets()[0] < 224);
    is_source && netmask(last).is_some_and(|bits| bits == 0 || bits >= 3)
}

/// The prefix length of a netmask such as 255.255.255.0.
fn netmask(text: &str) -> Option<u8> {
    let mask = text.parse::<Ipv4Addr>().ok()?.to_bits();
    (mask.count_ones() == mask.leading_ones()).then_some(mask.count_ones() as u8)
}

fn numbers(words: &[&str]) -> bool {
    words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_digit()))
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Parses a prefix leniently: host bits may be set, IPv4 may be mapped to IPv6, or have a netmask instead of a length.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn lenient(text: &str) -> Result<(Prefix, Option<String>), String> {
    let with_mask = text.split_once('/').and_then(|(address, mask)| {
        let address = address.parse::<Ipv4Addr>().ok()?;
        Some(format!("{address}/{}", netmask(mask)?))
    });
    let text = with_mask.as_deref().unwrap_or(text);
    let parsed = match Prefix::parse(text) {
        Ok(prefix) => Ok((prefix, None)),
        Err(error) => text
            .split_once('/')
            .and_then(|(address, bits)| Some((address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?)))
            .filter(|(address, bits)| *bits <= if address.is_ipv4() { 32 } else { 128 })
            .map(|(address, bits)| Prefix::new(address, bits))
            .map(|prefix| {
                (prefix, Some(format!("{text:?} has bits set after its prefix length; read as {prefix}")))
            })
            .ok_or(error),
    };
    let (prefix, warning) = parsed?;
    Ok((prefix.canonical(), warning))
}

/// Adds the smallest set of prefixes that covers a range.
fn range(first: IpAddr, last: IpAddr, to: &mut Vec<Prefix>) {
    let (width, mut first, last): (u8, u128, u128) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (32, first.to_bits().into(), last.to_bits().into()),
        (IpAddr::V6(first), IpAddr::V6(last)) => (128, first.to_bits(), last.to_bits()),
        _ => return,
    };
    loop {
        let mut size = first.trailing_zeros().min(u32::from(width));
        // Shrinks until it ends within the range.
        while size > 0 && last_of(first, size) > last {
            size -= 1;
        }
        let address = if width == 32 {
            Ipv4Addr::from_bits(first as u32).into()
        } else {
            Ipv6Addr::from_bits(first).into()
        };
        to.push(Prefix::new(address, width - size as u8));
        let end = last_of(first, size);
        if end >= last {
            return;
        }
        first = end + 1;
    }
}

/// The last address of the block that begins at `first` and has this many host bits.
fn last_of(first: u128, bits: u32) -> u128 {
    first | 1u128.checked_shl(bits).map_or(u128::MAX, |size| size - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(content: &str) -> Vec<String> {
        ListFile::parse(content.as_bytes()).prefixes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn parses_published_list_formats() {
        let list = "\u{feff}# drop list\r\n\r\n192.0.2.0/24 ; SBL1\r\n 198.51.100.7\t12\r\n2001:db8::/32#x\n\
                    203.0.113.0-203.0.113.130\n203.0.113.200 - 203.0.113.201\n10.0.0.0\t10.0.0.255\t24\t99\n\
                    ::ffff:192.0.2.77\n192.0.2.0/24";
        assert_eq!(
            prefixes(list),
            [
                "10.0.0.0/24",
                "192.0.2.0/24",
                "192.0.2.77/32",
                "198.51.100.7/32",
                "203.0.113.0/25",
                "203.0.113.128/31",
                "203.0.113.130/32",
                "203.0.113.200/31",
                "2001:db8::/32"
            ]
        );
    }

    #[test]
    fn parses_json_lines() {
        let list = "{\"cidr\":\"192.0.2.0/24\",\"sblid\":\"SBL1\",\"rir\":\"apnic\"}\n{\"cidr\":\"2001:db8::/32\"}\r\n\
                    {\"type\":\"metadata\",\"timestamp\":1732579200,\"size\":98765}\n";
        assert_eq!(prefixes(list), ["192.0.2.0/24", "2001:db8::/32"]);
        assert_eq!(ListFile::parse(list.as_bytes()).invalid, 0);
        let wrong = "{\"cidr\":\"0.0.0.0/0\"}\n{\"cidr\":7}\n{\"ip\":\"192.0.2.1\"}\n{\n";
        assert_eq!((prefixes(wrong).len(), ListFile::parse(wrong.as_bytes()).invalid), (0, 4));
    }

    #[test]
    fn netmasks_are_not_ends_of_ranges() {
        let list = "10.9.7.0 255.255.255.0\n10.9.8.1 255.255.255.255\n10.10.0.0\t255.255.0.0\t1\n192.0.2.0/255.255.255.128\n\
                    198.51.100.0 198.51.100.1\n240.0.0.0 240.0.0.1\n";
        assert_eq!(
            prefixes(list),
            ["10.9.7.0/24", "10.9.8.1/32", "10.10.0.0/16", "192.0.2.0/25", "198.51.100.0/31", "240.0.0.0/31"]
        );
        let file = ListFile::parse(b"10.9.7.1 255.255.255.0\n10.0.0.0/255.0.255.0\n");
        assert_eq!(file.prefixes, [Prefix::parse("10.9.7.0/24").unwrap()]);
        assert_eq!((file.invalid, file.warnings), (1, 2), "{:?}", file.reported);
    }

    #[test]
    fn tables_and_utf16_are_read() {
        let dshield = "Start\tEnd\tNetblock\tAttacks\tName\tCountry\temail\n\
                       192.0.2.0\t192.0.2.255\t24\t3054\tEXAMPLE NET\tGB\tabuse@example.net\n\
                       198.51.100.0\t198.51.100.255\t24\t12\t\t\t\n";
        assert_eq!(prefixes(dshield), ["192.0.2.0/24", "198.51.100.0/24"]);
        let csv = "\"2026-01-17 07:30:05\",\"192.0.2.7\",\"443\",\"online\",\"Example\"\n\
                   2026-01-17,198.51.100.9,8080\n203.0.113.0/24,AS64500,\"Example, Inc.\"\n2001:db8::/32,x\n";
        assert_eq!(prefixes(csv), ["192.0.2.7/32", "198.51.100.9/32", "203.0.113.0/24", "2001:db8::/32"]);
        let two = "192.0.2.1,10.0.0.1,443,blocked\n192.0.2.1 example.org\n192.0.2.0\t192.0.2.255\t25\tx\n";
        assert_eq!((prefixes(two).len(), ListFile::parse(two.as_bytes()).invalid), (0, 3));
        for (mark, bytes) in
            [([0xff, 0xfe], u16::to_le_bytes as fn(u16) -> [u8; 2]), ([0xfe, 0xff], u16::to_be_bytes)]
        {
            let text = "192.0.2.1\r\n2001:db8::/32\r\n".encode_utf16().flat_map(bytes);
            let file = ListFile::parse(&mark.into_iter().chain(text).collect::<Vec<u8>>());
            assert_eq!((file.prefixes.len(), file.invalid), (2, 0), "{file:?}");
        }
    }

    #[test]
    fn entries_too_wide_to_be_meant_are_refused() {
        for all in [
            "0.0.0.0/0",
            "128.0.0.0/1",
            "64.0.0.0/2",
            "0.0.0.0-255.255.255.255",
            "1.0.0.0-126.255.255.255",
            "0.0.0.0 0.0.0.0",
            "::/0",
            "::/1",
            "2000::/3",
            "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "x,0.0.0.0/1",
            "{\"cidr\":\"::/2\"}",
        ] {
            let file = ListFile::parse(all.as_bytes());
            assert!(file.prefixes.is_empty() && file.reported[0].1.contains("a quarter"), "{all}: {file:?}");
        }
        // As lists of unassigned addresses have them.
        let bogons = ["::/8", "4000::/2", "8000::/1", "224.0.0.0/3", "10.0.0.0/8"];
        assert_eq!(ListFile::parse(bogons.join("\n").as_bytes()).prefixes.len(), bogons.len());
    }

    #[test]
    fn reports_errors_by_line() {
        let file = ListFile::parse(
            b"192.0.2.1/24\nexample.org\n\n10.0.0.0/33\n0.0.0.0/0\n10.0.0.9-10.0.0.1\n192.0.2.1 evil.example\n010.0.0.1\n",
        );
        assert_eq!(file.prefixes, [Prefix::parse("192.0.2.0/24").unwrap()]);
        assert_eq!(file.invalid, 6);
        let lines: Vec<usize> = file.reported.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 4, 5, 6, 7, 8]);
        assert!(file.reported[0].1.contains("read as 192.0.2.0/24"), "{:?}", file.reported);
        assert!(file.is_none());
        assert!(ListFile::parse(b"<html>\n<body>\nNot found\n</body>\n</html>\n").is_none());
        assert!(ListFile::parse(b"<html>404</html>").is_none() && !ListFile::parse(b"# none\n").is_none());
        assert!(!ListFile::parse(b"x\n192.0.2.1\n").is_none());
    }

    #[test]
    fn range_prefixes_cover_each_address_once() {
        for (first, last, expected) in [
            (0u32, u32::MAX, 1),
            (0, u32::MAX - 1, 32),
            (1, 1, 1),
            (1, 6, 4),
            (255, 256, 2),
            (u32::MAX, u32::MAX, 1),
        ] {
            let mut all = Vec::new();
            range(Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(last).into(), &mut all);
            assert_eq!(all.len(), expected, "{first} {last}");
            let sum: u64 = all.iter().map(|prefix| 1u64 << (32 - prefix.bits())).sum();
            assert_eq!(sum, u64::from(last) - u64::from(first) + 1);
        }
        let mut all = Vec::new();
        range("::".parse().unwrap(), Ipv6Addr::from_bits(u128::MAX).into(), &mut all);
        assert_eq!(all, [Prefix::parse("::/0").unwrap()]);
    }
}
