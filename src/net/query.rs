//! `/api/v1/talkers` and `/api/v1/flows`: from a query string to JSON.
//!
//! `?sort=bytes&order=desc&page=1&per_page=50&interface=eth0&address=192.0.2.1`; all parameters are optional.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::abi::{ACK, FIN, RST, SYN};
use super::paging::Paging;
use crate::percent;

/// Rows of one page at most.
pub const MAX_PER_PAGE: u32 = 1000;

const DEFAULT_PER_PAGE: u32 = 50;

/// The interface of a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub struct InterfaceName {
    pub interface: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

impl From<&Vec<(&'static str, String)>> for InterfaceName {
    fn from(labels: &Vec<(&'static str, String)>) -> Self {
        let find = |key: &str| labels.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
        Self {
            interface: find("interface").unwrap_or_default(),
            netns: find("netns"),
            container: find("container"),
        }
    }
}

impl InterfaceName {
    /// As labels.
    pub fn labels(self) -> Vec<(&'static str, String)> {
        let others = [("netns", self.netns), ("container", self.container)];
        let others = others.into_iter().filter_map(|(name, value)| Some((name, value?)));
        std::iter::once(("interface", self.interface)).chain(others).collect()
    }
}

/// A remote host. Times are Unix seconds with a resolution of 17 ms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TalkerRow {
    #[serde(flatten)]
    pub place: InterfaceName,
    pub address: IpAddr,
    pub bytes: u64,
    pub packets: u64,
    pub received_bytes: u64,
    pub received_packets: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
    pub first_seen: f64,
    pub last_seen: f64,
}

/// One direction of a conversation. Times are Unix seconds with a resolution of 17 ms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlowRow {
    #[serde(flatten)]
    pub place: InterfaceName,
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the IANA number.
    pub protocol: String,
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub destination_port: u16,
    pub bytes: u64,
    pub packets: u64,
    pub first_seen: f64,
    pub last_seen: f64,
    /// For TCP: the state as far as this direction's segments show it.
    pub tcp_state: Option<&'static str>,
}

/// An invalid query string; the text says what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError(pub String);

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for QueryError {}

impl QueryError {
    pub(super) fn expected(key: &str, expected: &str) -> Self {
        Self(format!("{key}: expected {expected}"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Bytes,
    Packets,
    FirstSeen,
    LastSeen,
}

/// A parsed query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Query {
    sort: Sort,
    ascending: bool,
    paging: Paging,
    interface: Option<String>,
    address: Option<IpAddr>,
}

/// How rows of both kinds are sorted and filtered.
pub(crate) trait Row: Serialize {
    fn interface(&self) -> &str;
    fn has_address(&self, address: IpAddr) -> bool;
    fn numbers(&self) -> (u64, u64);
    fn times(&self) -> (f64, f64);
    /// Breaks ties, so that pages do not overlap.
    fn identity(&self) -> impl Ord;
}

impl Row for TalkerRow {
    fn interface(&self) -> &str {
        &self.place.interface
    }
    fn has_address(&self, address: IpAddr) -> bool {
        self.address == address
    }
    fn numbers(&self) -> (u64, u64) {
        (self.bytes, self.packets)
    }
    fn times(&self) -> (f64, f64) {
        (self.first_seen, self.last_seen)
    }
    fn identity(&self) -> impl Ord {
        (self.place.clone(), self.address)
    }
}

impl Row for FlowRow {
    fn interface(&self) -> &str {
        &self.place.interface
    }
    fn has_address(&self, address: IpAddr) -> bool {
        self.source == address || self.destination == address
    }
    fn numbers(&self) -> (u64, u64) {
        (self.bytes, self.packets)
    }
    fn times(&self) -> (f64, f64) {
        (self.first_seen, self.last_seen)
    }
    fn identity(&self) -> impl Ord {
        let ends = (self.source, self.source_port, self.destination, self.destination_port);
        (self.place.clone(), self.direction, self.protocol.clone(), ends)
    }
}

#[derive(Serialize)]
struct Page<'a, R> {
    /// The number of rows on all pages.
    total: usize,
    page: u32,
    per_page: u32,
    rows: Vec<&'a R>,
}

impl Query {
    /// Parses a query string without its question mark.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let mut query = Self {
            sort: Sort::Bytes,
            ascending: false,
            paging: Paging::new(DEFAULT_PER_PAGE, MAX_PER_PAGE),
            interface: None,
            address: None,
        };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value =
                percent::decode(value).ok_or_else(|| QueryError::expected(key, "percent-encoded UTF-8"))?;
            if query.paging.take(key, &value).map_err(QueryError)? {
                continue;
            }
            match key {
                "sort" => {
                    query.sort = match value.as_str() {
                        "bytes" => Sort::Bytes,
                        "packets" => Sort::Packets,
                        "first_seen" => Sort::FirstSeen,
                        "last_seen" => Sort::LastSeen,
                        _ => {
                            return Err(QueryError::expected(key, "bytes, packets, first_seen or last_seen"));
                        }
                    };
                }
                "order" => {
                    query.ascending = match value.as_str() {
                        "asc" => true,
                        "desc" => false,
                        _ => return Err(QueryError::expected(key, "asc or desc")),
                    };
                }
                "interface" => query.interface = Some(value),
                "address" => {
                    let address: IpAddr =
                        value.parse().map_err(|_| QueryError::expected(key, "an IP address"))?;
                    // Packets of a mapped IPv4 address are counted under the IPv4 address.
                    query.address = Some(address.to_canonical());
                }
                _ => {
                    let known = "sort, order, page, per_page, interface and address";
                    return Err(QueryError(format!("unknown parameter {key:?}; valid parameters: {known}")));
                }
            }
        }
        Ok(query)
    }

    /// The page as JSON: `{"total": .., "page": .., "per_page": .., "rows": [..]}`.
    pub fn answer<R: Row>(&self, mut rows: Vec<R>) -> String {
        rows.retain(|row| {
            self.interface.as_deref().is_none_or(|name| name == row.interface())
                && self.address.is_none_or(|address| row.has_address(address))
        });
        rows.sort_by(|a, b| {
            let order = self.compare(a, b);
            let order = if self.ascending { order } else { order.reverse() };
            order.then_with(|| a.identity().cmp(&b.identity()))
        });
        let Paging { page, per_page, .. } = self.paging;
        let shown = rows.iter().skip(self.paging.skipped()).take(per_page as usize).collect();
        let page = Page { total: rows.len(), page, per_page, rows: shown };
        // Plain data with text keys always serializes.
        serde_json::to_string(&page).unwrap_or_else(|_| "{}".to_string())
    }

    fn compare<R: Row>(&self, a: &R, b: &R) -> Ordering {
        match self.sort {
            Sort::Bytes => a.numbers().0.cmp(&b.numbers().0),
            Sort::Packets => a.numbers().1.cmp(&b.numbers().1),
            Sort::FirstSeen => a.times().0.total_cmp(&b.times().0),
            Sort::LastSeen => a.times().1.total_cmp(&b.times().1),
        }
    }
}

/// The state of a flow according to its TCP segments.
pub(crate) fn tcp_state(flags: u8, data: bool) -> &'static str {
    match () {
        () if flags & RST != 0 => "reset",
        () if flags & FIN != 0 => "closing",
        () if data => "established",
        () if flags & SYN != 0 && flags & ACK != 0 => "syn_received",
        () => "syn_sent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(address: &str, bytes: u64, packets: u64) -> TalkerRow {
        TalkerRow {
            place: InterfaceName { interface: "eth0".into(), ..InterfaceName::default() },
            address: address.parse().unwrap(),
            bytes,
            packets,
            received_bytes: bytes,
            received_packets: packets,
            sent_bytes: 0,
            sent_packets: 0,
            first_seen: 1.0,
            last_seen: packets as f64,
        }
    }

    fn addresses(query: &str, rows: Vec<TalkerRow>) -> (u64, Vec<String>) {
        let json: serde_json::Value =
            serde_json::from_str(&Query::parse(query).unwrap().answer(rows)).unwrap();
        let rows = json["rows"].as_array().unwrap();
        let addresses = rows.iter().map(|row| row["address"].as_str().unwrap().to_string()).collect();
        (json["total"].as_u64().unwrap(), addresses)
    }

    #[test]
    fn sorts_pages_and_filters() {
        let rows = || vec![row("192.0.2.1", 10, 5), row("192.0.2.2", 30, 1), row("2001:db8::1", 20, 9)];
        let all = ["192.0.2.2", "2001:db8::1", "192.0.2.1"].map(String::from).to_vec();
        assert_eq!(addresses("", rows()), (3, all.clone()));
        assert_eq!(addresses("order=asc", rows()).1, all.iter().rev().cloned().collect::<Vec<_>>());
        assert_eq!(addresses("sort=packets", rows()).1[0], "2001:db8::1");
        assert_eq!(addresses("sort=last_seen&per_page=1&page=2", rows()), (3, vec!["192.0.2.1".into()]));
        assert_eq!(addresses("page=9", rows()), (3, vec![]));
        assert_eq!(addresses("address=2001%3Adb8%3a%3A1", rows()), (1, vec!["2001:db8::1".into()]));
        assert_eq!(addresses("address=::ffff:192.0.2.1", rows()), (1, vec!["192.0.2.1".into()]));
        assert_eq!(addresses("interface=eth1", rows()), (0, vec![]));
    }

    #[test]
    fn equal_rows_have_a_stable_order() {
        let rows: Vec<_> = (0..100).map(|n| row(&format!("192.0.2.{n}"), 7, 7)).collect();
        let mut reversed = rows.clone();
        reversed.reverse();
        assert_eq!(addresses("per_page=60&page=2", rows), addresses("per_page=60&page=2", reversed));
    }

    #[test]
    fn errors_state_the_expected_values() {
        for (query, text) in [
            ("sort=size", "sort: expected bytes, packets, first_seen or last_seen"),
            ("page=0", "page: expected a number from 1"),
            ("per_page=1001", "per_page: expected a number from 1 to 1000"),
            ("address=here", "address: expected an IP address"),
            ("interface=%f", "interface: expected percent-encoded UTF-8"),
            (
                "pages=1",
                "unknown parameter \"pages\"; valid parameters: sort, order, page, per_page, interface and address",
            ),
        ] {
            assert_eq!(Query::parse(query).unwrap_err().to_string(), text, "{query}");
        }
    }

    #[test]
    fn tcp_state_from_one_direction() {
        for (flags, data, state) in [
            (0x02, false, "syn_sent"),
            (0x12, false, "syn_received"),
            (0x12, true, "established"),
            (0x10, true, "established"),
            (0x13, true, "closing"),
            (0x17, true, "reset"),
        ] {
            assert_eq!(tcp_state(flags, data), state, "{flags:x}");
        }
    }
}
