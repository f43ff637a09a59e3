//! Random requests, malformed ones among them, compared with a simple model of the list.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::*;
use crate::net::Prefix;

/// A deterministic sequence of numbers (xorshift64), so that failures can be reproduced.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// The model of an entry: reason, whether it expires, protocol and ports.
type Entry = (String, bool, Option<(String, Option<String>)>);

fn request(below: &str, query: &str, body: Vec<u8>) -> RequestInfo {
    RequestInfo {
        query: Some(query.to_string()),
        accept: None,
        below: below.to_string(),
        caller: Caller::Remote(Some("writer".into()), Ipv4Addr::LOCALHOST.into()),
        body: body.into(),
    }
}

/// One of few prefixes, so that they repeat: its text, and the parsed prefix if it may be blocked.
fn prefix(chance: &mut Chance) -> (String, Option<Prefix>) {
    let low = 1 + chance.below(3) as u8;
    let v4 = Ipv4Addr::new(198, 51, 100, low);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, low.into());
    let of = |address: IpAddr, bits| Some(Prefix::new(address, bits));
    match chance.below(16) {
        0 => (v4.to_string(), of(v4.into(), 32)),
        1 => (format!("{v4}/32"), of(v4.into(), 32)),
        2 => (format!("::ffff:{v4}"), of(v4.into(), 32)),
        3 => (format!("::FFFF:{v4}/128"), of(v4.into(), 32)),
        4 => (format!("198.51.100.{}/31", low & 2), of(Ipv4Addr::new(198, 51, 100, low & 2).into(), 31)),
        5 => ("::ffff:198.51.100.0/120".into(), of(Ipv4Addr::new(198, 51, 100, 0).into(), 24)),
        6 => ("0.0.0.0/0".into(), of(Ipv4Addr::UNSPECIFIED.into(), 0)),
        7 => (v6.to_string(), of(v6.into(), 128)),
        8 => (format!("2001:0DB8:0:0::{low}/128"), of(v6.into(), 128)),
        9 => ("2001:db8::/32".into(), of(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0).into(), 32)),
        // Nothing, or a prefix that must not be blocked.
        10 => (format!("{v4}/{}", 8 + chance.below(16)), None),
        11 => (format!("{v6}/64"), None),
        12 => ("127.0.0.1".into(), None),
        13 => (format!("{v4}/{}", ["33", "-1", "+8", "08x", ""][chance.below(5)]), None),
        14 => (
            ["fe80::1%eth0", "1.2.3", "[::1]", "0x7f.1", "\u{0}", "é", "::ffff:0:0:0:0/1/2"][chance.below(7)]
                .into(),
            None,
        ),
        _ => ("1".repeat(1 + chance.below(5000)), None),
    }
}

/// Percent-encodes text, more or less of it.
fn encoded(text: &str, chance: &mut Chance) -> String {
    let may_stay = |byte: &u8| byte.is_ascii_alphanumeric() || b".:".contains(byte);
    let every = chance.below(3) == 0;
    let byte =
        |byte: u8| if may_stay(&byte) && !every { char::from(byte).into() } else { format!("%{byte:02x}") };
    text.bytes().map(byte).collect()
}

/// A request to block, and the resulting entry; `None` if it must be refused.
fn wish(chance: &mut Chance) -> (RequestInfo, Option<(Prefix, Entry)>) {
    let (text, meant) = prefix(chance);
    let mut pairs: Vec<(&str, String)> = Vec::new();
    let mut entry = (String::new(), false, None);
    let mut is_wrong = false;
    if chance.below(2) == 0 {
        entry.0 = ["scans", "a&b=c", "\"quoted\"\n", "é", "+ +"][chance.below(5)].to_string();
        pairs.push(("reason", entry.0.clone()));
    }
    if chance.below(2) == 0 {
        let ttl = *chance.of(&["1h", "86400", "365d", "0", "1w", "366d", "99999999999999999999s", ""]);
        entry.1 = true;
        is_wrong |= !["1h", "86400", "365d"].contains(&ttl);
        pairs.push(("ttl", ttl.into()));
    }
    if chance.below(3) == 0 {
        let ports = *chance.of(&["22", "1-65535", "0", "9-8", "65536"]);
        let protocol = *chance.of(&["tcp", "udp", "icmp", "TCP", "6"]);
        is_wrong |= !["tcp", "udp"].contains(&protocol) || !["22", "1-65535"].contains(&ports);
        entry.2 = Some((protocol.to_string(), Some(ports.to_string())));
        pairs.extend([("protocol", protocol.to_string()), ("ports", ports.to_string())]);
    }
    match chance.below(30) {
        0 => pairs.push(("time", "1h".into())),
        1 if !pairs.is_empty() => pairs.push(pairs[0].clone()),
        2 => pairs.push(("direction", "in".into())),
        _ => pairs.push(("direction", chance.of(&["ingress", "egress", "both"]).to_string())),
    }
    let names: std::collections::BTreeSet<&str> = pairs.iter().map(|(name, _)| *name).collect();
    is_wrong |= names.contains("time") || names.len() < pairs.len();
    is_wrong |= pairs.iter().any(|(name, value)| *name == "direction" && value == "in");
    let in_path = chance.below(2) == 0;
    if !in_path {
        pairs.push(("prefix", text.clone()));
    }
    let below = if in_path { encoded(&text, chance) } else { String::new() };
    let form = |chance: &mut Chance| {
        let one = |(name, value): &(&str, String)| format!("{name}={}", encoded(value, chance));
        pairs.iter().map(one).collect::<Vec<_>>().join("&")
    };
    let asked = match chance.below(3) {
        0 => request(&below, &form(chance), Vec::new()),
        1 => request(&below, "", form(chance).into_bytes()),
        _ => {
            let members = pairs
                .iter()
                .map(|(name, value)| format!("{}:{}", Value::from(*name), Value::from(value.as_str())));
            let body = format!(" {{{}}}\r\n", members.collect::<Vec<_>>().join(","));
            request(&below, "", body.into_bytes())
        }
    };
    (asked, meant.filter(|_| !is_wrong).map(|prefix| (prefix, entry)))
}

/// A meaningless body.
fn noise(chance: &mut Chance) -> Vec<u8> {
    match chance.below(6) {
        0 => "[".repeat(10_000).into_bytes(),
        1 => format!("{{\"ttl\":{}1{}}}", "[".repeat(200), "]".repeat(200)).into_bytes(),
        2 => vec![0xff, 0xfe],
        3 => b"{\"reason\":\"\\ud800\"}".to_vec(),
        4 => format!("{{\"ttl\":1e{}}}", chance.below(400)).into_bytes(),
        _ => {
            (0..64).map(|_| 32 + chance.below(95) as u8).filter(|byte| *byte != b'&').chain(*b"%z").collect()
        }
    }
}

/// The entries in the list, page by page.
fn shown(network: &Network, per_page: usize) -> BTreeMap<String, Entry> {
    let mut all = BTreeMap::new();
    for page in 1.. {
        let page: Value =
            serde_json::from_str(&network.blocked(&format!("page={page}&per_page={per_page}")).unwrap())
                .unwrap();
        let rows = page["entries"].as_array().unwrap();
        for row in rows {
            let text = |key: &str| row[key].as_str().map(str::to_string);
            let scope = text("protocol").map(|protocol| (protocol, text("ports")));
            let entry = (text("reason").unwrap(), !row["expires_in"].is_null(), scope);
            assert_eq!(all.insert(text("prefix").unwrap(), entry), None, "an entry is on two pages");
        }
        if rows.len() < per_page {
            assert_eq!(page["total"], all.len());
            break;
        }
    }
    all
}

fn network() -> Network {
    let config = crate::net::NetworkConfig {
        interfaces: vec!["exnone0".to_string()],
        block: Some(BlockConfig::default()),
        ..Default::default()
    };
    Network::start(config, |_| {}).expect("counting starts; this test needs root")
}

#[test]
fn random_requests_match_the_model_as_root() {
    let network = network();
    let list = network.blocklist().unwrap();
    let mut model: BTreeMap<String, Entry> = BTreeMap::new();
    let chance = &mut Chance(0x9e37_79b9_7f4a_7c15);
    let mut counts = [0; 2];
    for number in 0..6000 {
        if chance.below(3) > 0 {
            let (mut asked, mut meant) = wish(chance);
            if chance.below(10) == 0 {
                (asked.body, meant) = (noise(chance).into(), None);
            }
            let done = block(list, &asked);
            counts[usize::from(meant.is_some())] += 1;
            match (done, meant) {
                (Ok(changed), Some((prefix, entry))) => {
                    let is_new = model.insert(prefix.to_string(), entry).is_none();
                    assert_eq!((changed.prefix, changed.changed), (prefix.to_string(), is_new), "{asked:?}");
                }
                (Err(Refused(status, text)), None) => {
                    assert!(status.is_client_error() && !text.is_empty(), "{asked:?}: {status} {text}");
                }
                (done, meant) => {
                    panic!("{number}: {asked:?}: {:?}, but {meant:?} was meant", done.map(|done| done.prefix))
                }
            }
        } else {
            let (text, meant) = prefix(chance);
            let asked = request(&encoded(&text, chance), "", Vec::new());
            match (unblock(list, &asked), meant) {
                (Ok(changed), Some(prefix)) => {
                    assert_eq!(changed.changed, model.remove(&prefix.to_string()).is_some(), "{asked:?}");
                }
                // A protected address is not listed, as requested.
                (Ok(changed), None) => assert!(!changed.changed && text == "127.0.0.1", "{asked:?}"),
                (Err(Refused(status, _)), meant) => {
                    assert!(status.is_client_error() && meant.is_none(), "{asked:?}")
                }
            }
        }
        if number % 50 == 0 {
            assert_eq!(shown(&network, 1 + chance.below(7)), model);
        }
    }
    assert_eq!(shown(&network, 3), model);
    assert!(counts.iter().all(|count| *count > 500), "{counts:?}");
    for query in [
        "page=0",
        "page=-1",
        "page=4294967296",
        "per_page=10001",
        "per_page=",
        "page",
        "offset=1",
        "page=1%00",
    ] {
        assert!(network.blocked(query).is_err(), "{query}");
    }
    let beyond: Value =
        serde_json::from_str(&network.blocked("page=4294967295&per_page=10000").unwrap()).unwrap();
    assert_eq!((&beyond["entries"], &beyond["total"]), (&Value::Array(Vec::new()), &model.len().into()));
}

#[test]
fn concurrent_changes_leave_a_consistent_list_as_root() {
    let network = network();
    let list = network.blocklist().unwrap();
    // At the end, a listed address has been added once more than it was removed.
    let balance = std::sync::Mutex::new(BTreeMap::<usize, i64>::new());
    std::thread::scope(|scope| {
        for seed in 1..=4u64 {
            let balance = &balance;
            scope.spawn(move || {
                let chance = &mut Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                for _ in 0..400 {
                    let number = chance.below(4);
                    let asked = request(&format!("198.51.100.{number}"), "", Vec::new());
                    let (done, sign) = if chance.below(2) == 0 {
                        (block(list, &asked), 1)
                    } else {
                        (unblock(list, &asked), -1)
                    };
                    if done.unwrap().changed {
                        *balance.lock().unwrap().entry(number).or_default() += sign;
                    }
                }
            });
        }
    });
    let listed = shown(&network, 2);
    for (number, balance) in balance.into_inner().unwrap() {
        let is_listed = listed.contains_key(&format!("198.51.100.{number}/32"));
        assert_eq!(balance, i64::from(is_listed), "{number}: {listed:?}");
    }
    (0..4).for_each(|number| {
        unblock(list, &request(&format!("198.51.100.{number}"), "", Vec::new())).unwrap();
    });
    assert!(list.is_empty() && shown(&network, 2).is_empty());
}
