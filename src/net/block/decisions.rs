//! CrowdSec's decisions, as its Local API sends them and as they are stored for a restart. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::super::cidr::Prefix;
use super::list::{are_too_wide, lenient};
use crate::config::go_duration;

/// Characters of an origin, a scenario, and of quotations in messages.
const MAX_CHARACTERS: usize = 100;

/// The scope of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DecisionScope {
    /// An address.
    Ip,
    /// A prefix.
    Range,
}

impl DecisionScope {
    pub const WORDS: &'static [(&'static str, Self)] = &[("ip", Self::Ip), ("range", Self::Range)];

    /// The word used by CrowdSec.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Range => "range",
        }
    }

    fn of(text: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(word, _)| text.eq_ignore_ascii_case(word)).map(|(_, scope)| *scope)
    }
}

/// Identifies a decision: there can be several about one prefix. The number is the Local API's id.
pub(super) type About = (Prefix, DecisionScope, i64);

/// The terms of a decision.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ban {
    /// The remaining time.
    pub seconds: f64,
    /// CrowdSec's name for who decided.
    pub origin: Arc<str>,
    pub scenario: Arc<str>,
}

/// A parsed response.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answered {
    pub bans: BTreeMap<About, Ban>,
    /// Decisions that have ended.
    pub ended: Vec<About>,
    /// Decisions that are not applied: count and one example by reason.
    pub ignored: BTreeMap<String, (u64, String)>,
}

#[derive(Deserialize)]
struct Stream {
    // Required: a response without this key is an error whatever its status, so that nothing is unblocked because of
    // it.
    #[serde(deserialize_with = "nullable")]
    new: Vec<Wire>,
    #[serde(deserialize_with = "nullable")]
    deleted: Vec<Wire>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    id: i64,
    duration: String,
    origin: String,
    scenario: String,
    scope: String,
    simulated: Option<bool>,
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

fn nullable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Wire>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARACTERS).collect()
}

impl Wire {
    /// The key of the decision, or why it is not applied.
    fn about(&self) -> Result<About, String> {
        if !self.kind.eq_ignore_ascii_case("ban") {
            return Err(format!("type {}", short(&self.kind)));
        }
        if self.simulated == Some(true) {
            return Err("simulated".to_string());
        }
        let scope = DecisionScope::of(&self.scope).ok_or_else(|| format!("scope {}", short(&self.scope)))?;
        let (prefix, _) = lenient(&self.value).map_err(|_| "invalid value".to_string())?;
        // A typing error that blocks most addresses must not reach a whole fleet.
        if are_too_wide(&[prefix]) { Err("too wide".to_string()) } else { Ok((prefix, scope, self.id)) }
    }
}

impl Answered {
    /// Parses the body of a response. `is_whole`: it is the full list.
    ///
    /// # Errors
    /// If it is not a valid response.
    pub fn parse(body: &[u8], is_whole: bool) -> Result<Self, String> {
        let stream: Stream = serde_json::from_slice(body).map_err(|err| {
            format!(
                "the response is not a stream of decisions: {err}; is this the URL of CrowdSec's Local API?"
            )
        })?;
        let mut answered = Self::default();
        let mut texts: BTreeMap<String, Arc<str>> = BTreeMap::new();
        let mut shared = |text: String| texts.entry(text.clone()).or_insert_with(|| text.into()).clone();
        for wire in stream.new {
            let read = wire.about().and_then(|about| {
                let seconds = go_duration(&wire.duration).ok_or("invalid duration")?;
                Ok((about, seconds))
            });
            let (about, seconds) = match read {
                Ok(read) => read,
                Err(why) => {
                    let (count, _) = answered.ignored.entry(why).or_insert_with(|| (0, short(&wire.value)));
                    *count += 1;
                    continue;
                }
            };
            if seconds <= 0.0 {
                continue;
            }
            // All subscribed lists share one origin; the list's name is in the scenario.
            let origin = match wire.origin.as_str() {
                "lists" => format!("lists:{}", short(&wire.scenario)),
                origin => short(origin),
            };
            let ban = Ban { seconds, origin: shared(origin), scenario: shared(short(&wire.scenario)) };
            // Without ids, the longest of equal decisions is used.
            let longest = answered.bans.entry(about).or_insert_with(|| ban.clone());
            if longest.seconds < ban.seconds {
                *longest = ban;
            }
        }
        if !is_whole {
            answered.ended = stream.deleted.iter().filter_map(|wire| wire.about().ok()).collect();
        }
        Ok(answered)
    }
}

/// Stored decisions, used at the start while the Local API is unreachable.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    /// The URL of the Local API.
    pub url: String,
    /// When the response arrived, in seconds since 1970.
    pub answered: i64,
    /// Prefix, scope, origin, scenario, and expiry in seconds since 1970.
    decisions: Vec<(String, String, String, String, i64)>,
    /// The id of each.
    #[serde(default)]
    ids: Vec<i64>,
}

impl Saved {
    pub fn new<'a>(
        url: String,
        now: i64,
        bans: impl Iterator<Item = (About, &'a str, &'a str, f64)>,
    ) -> Self {
        let row = |((prefix, scope, id), origin, scenario, seconds): (About, &str, &str, f64)| {
            let until = now.saturating_add(seconds.ceil() as i64);
            let (origin, scenario) = (origin.to_string(), scenario.to_string());
            ((prefix.to_string(), scope.word().to_string(), origin, scenario, until), id)
        };
        let (decisions, ids) = bans.map(row).unzip();
        Self { url, answered: now, decisions, ids }
    }

    /// The decisions that have not expired.
    pub fn bans(&self, now: i64) -> BTreeMap<About, Ban> {
        // Files of earlier versions have no ids; those of the Local API are never negative.
        let ids = self.ids.iter().copied().chain((0..).map(|number: i64| -1 - number));
        let ban = |((prefix, scope, origin, scenario, until), id): (
            &(String, String, String, String, i64),
            i64,
        )| {
            // A clock that was set back must not extend any decision.
            let seconds = (*until - now).min(*until - self.answered);
            let about = (Prefix::parse(prefix).ok()?, DecisionScope::of(scope)?, id);
            let ban = Ban {
                seconds: seconds as f64,
                origin: origin.as_str().into(),
                scenario: scenario.as_str().into(),
            };
            (seconds > 0).then_some((about, ban))
        };
        self.decisions.iter().zip(ids).filter_map(ban).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(prefix: &str, scope: DecisionScope, id: i64) -> About {
        (Prefix::parse(prefix).unwrap(), scope, id)
    }

    fn wire(kind: &str, scope: &str, value: &str, duration: &str) -> String {
        format!(
            "{{\"id\":1,\"origin\":\"cscli\",\"scenario\":\"a\\nb\",\"scope\":\"{scope}\",\"type\":\"{kind}\",\
             \"value\":\"{value}\",\"duration\":\"{duration}\",\"uuid\":\"x\"}}"
        )
    }

    #[test]
    fn accepts_ip_and_range_bans_and_reports_others() {
        let new = [
            wire("ban", "Ip", "192.0.2.7", "3h59m49.5s"),
            wire("ban", "ip", "192.0.2.7", "10m"),
            wire("ban", "ip", "192.0.2.7", "10m").replace("\"id\":1", "\"id\":2"),
            wire("ban", "Range", "2001:db8::1/32", "1h"),
            wire("ban", "Range", "192.0.2.7/32", "1h"),
            wire("captcha", "Ip", "192.0.2.8", "1h"),
            wire("ban", "Country", "FR", "1h"),
            wire("ban", "Ip", "nobody", "1h"),
            wire("ban", "Range", "0.0.0.0/0", "1h"),
            wire("ban", "Ip", "192.0.2.9", "1 hour"),
            wire("ban", "Ip", "192.0.2.10", "-5s"),
            wire("ban", "Ip", "192.0.2.12", "1h").replace("\"id\"", "\"simulated\":true,\"id\""),
        ];
        let gone = [wire("ban", "Ip", "192.0.2.11", "-1s"), wire("captcha", "Ip", "192.0.2.7", "-1s")];
        let body = format!("{{\"new\":[{}],\"deleted\":[{}]}}", new.join(","), gone.join(","));
        let answered = Answered::parse(body.as_bytes(), false).unwrap();
        let bans: Vec<_> = answered.bans.iter().map(|(about, ban)| (*about, ban.seconds)).collect();
        assert_eq!(
            bans,
            [
                (about("192.0.2.7", DecisionScope::Ip, 1), 14_389.5),
                (about("192.0.2.7", DecisionScope::Ip, 2), 600.0),
                (about("192.0.2.7", DecisionScope::Range, 1), 3600.0),
                (about("2001:db8::/32", DecisionScope::Range, 1), 3600.0),
            ]
        );
        assert_eq!(&*answered.bans.values().next().unwrap().scenario, "a b");
        assert_eq!(answered.ended, [about("192.0.2.11", DecisionScope::Ip, 1)]);
        let ignored: Vec<_> = answered.ignored.keys().map(String::as_str).collect();
        assert_eq!(
            ignored,
            ["invalid duration", "invalid value", "scope Country", "simulated", "too wide", "type captcha"]
        );
        // A full list contains all ended decisions, too, which are ignored.
        assert_eq!(Answered::parse(body.as_bytes(), true).unwrap().ended, []);
    }

    #[test]
    fn rejects_responses_without_decisions() {
        assert_eq!(Answered::parse(b"{\"new\":null,\"deleted\":null}", true), Ok(Answered::default()));
        for body in [
            "",
            "[]",
            "{}",
            "{\"message\":\"access forbidden\"}",
            "{\"new\":null}",
            "{\"new\":[],\"deleted\":[}",
        ] {
            assert!(Answered::parse(body.as_bytes(), true).is_err(), "{body}");
        }
    }

    #[test]
    fn saved_bans_expire_on_time() {
        let about = about("192.0.2.7", DecisionScope::Ip, 7);
        let saved = Saved::new("u".into(), 1000, [(about, "CAPI", "ssh", 99.5)].into_iter());
        let saved: Saved = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
        let seconds = |now| saved.bans(now).get(&about).map(|ban| ban.seconds);
        assert_eq!((seconds(1000), seconds(1060), seconds(1100)), (Some(100.0), Some(40.0), None));
        assert_eq!(seconds(10), Some(100.0));
        assert_eq!(&*saved.bans(1000)[&about].origin, "CAPI");
        // The format of an earlier version.
        let row = "[\"192.0.2.7\",\"ip\",\"CAPI\",\"ssh\",1100]";
        let text = format!("{{\"url\":\"u\",\"answered\":1000,\"decisions\":[{row},{row}]}}");
        assert_eq!(serde_json::from_str::<Saved>(&text).unwrap().bans(1000).len(), 2);
    }
}
