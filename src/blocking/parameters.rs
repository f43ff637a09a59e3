//! The parameters of a request: in its path, its query, and its body. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::{Refused, invalid};
use crate::http::RequestInfo;
use crate::net::Prefix;
use crate::percent;

/// Names and values; each name occurs once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    named: BTreeMap<String, String>,
    /// The path below the route's.
    below: String,
}

impl Parameters {
    /// Reads the query and the body, which is a form, or a JSON object of strings and numbers.
    pub fn read(request: &RequestInfo, known: &[&str]) -> Result<Self, Refused> {
        let below = percent::decode(&request.below.replace('+', "%2B"));
        let below = below.ok_or_else(|| invalid("the path is not well encoded"))?;
        let mut pairs = form(request.query.as_deref().unwrap_or_default())?;
        let body = std::str::from_utf8(&request.body).map_err(|_| invalid("the body is not text"))?.trim();
        if body.starts_with('{') {
            pairs.extend(object(body)?);
        } else {
            pairs.extend(form(body)?);
        }
        let mut named = BTreeMap::new();
        for (name, value) in pairs {
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
                return Err(invalid(format!("unknown parameter {name:?}; possible: {known}")));
            }
            if named.insert(name.clone(), value).is_some() {
                return Err(invalid(format!("{name} is there twice")));
            }
        }
        Ok(Self { named, below })
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// The requested prefix: from the path, or by name.
    pub fn prefix(&self) -> Result<Prefix, Refused> {
        let text = match (self.below.as_str(), self.get("prefix")) {
            ("", Some(text)) => text,
            ("", None) => {
                let text = "name a prefix: /api/v1/blocklist/192.0.2.0/24, or prefix=192.0.2.0/24";
                return Err(invalid(text));
            }
            (_, Some(_)) => return Err(invalid("the prefix is both in the path and a parameter")),
            (text, None) => text,
        };
        Prefix::parse(text).map(Prefix::canonical).map_err(invalid)
    }
}

/// `name=value&..`, percent-encoded.
fn form(text: &str) -> Result<Vec<(String, String)>, Refused> {
    let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        percent::decode(name).zip(percent::decode(value))
    });
    pairs.collect::<Option<_>>().ok_or_else(|| invalid("a parameter is not well encoded"))
}

fn object(text: &str) -> Result<Vec<(String, String)>, Refused> {
    let Members(read) =
        serde_json::from_str(text).map_err(|err| invalid(format!("the body is not JSON: {err}")))?;
    let text = |(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        Value::Number(number) => Ok((name, number.to_string())),
        other => Err(invalid(format!("{name} is a text or a number, not {other}"))),
    };
    read.into_iter().filter(|(_, value)| !value.is_null()).map(text).collect()
}

/// The members of a JSON object, including duplicates, which a map would silently drop.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members, M::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Members(all))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hyper::StatusCode;

    use super::*;
    use crate::http::Caller;

    fn prefix(below: &str, query: &str, body: &str) -> Result<String, Refused> {
        let request = RequestInfo {
            query: Some(query.to_string()),
            accept: None,
            below: below.to_string(),
            caller: Caller::Remote(None, Ipv4Addr::LOCALHOST.into()),
            body: body.as_bytes().to_vec().into(),
        };
        Parameters::read(&request, super::super::BLOCK)?.prefix().map(|prefix| prefix.to_string())
    }

    #[test]
    fn prefix_may_come_from_path_query_or_body() {
        for (below, query, body, expected) in [
            ("192.0.2.0/24", "", "", "192.0.2.0/24"),
            ("192.0.2.0%2F24", "", "", "192.0.2.0/24"),
            ("", "prefix=2001:db8::/32&ttl=1h", "", "2001:db8::/32"),
            ("::ffff:192.0.2.1", "", "", "192.0.2.1/32"),
            ("2001%3adb8::1", "reason=a+b", "", "2001:db8::1/128"),
            ("", "", "prefix=192.0.2.1&reason=x", "192.0.2.1/32"),
            ("", "", " {\"prefix\": \"192.0.2.1\", \"ttl\": 60, \"reason\": null}", "192.0.2.1/32"),
        ] {
            assert_eq!(prefix(below, query, body).unwrap(), expected);
        }
    }

    #[test]
    fn invalid_parameters_are_explained() {
        for (below, query, body, expected) in [
            ("", "", "", "name a prefix"),
            ("::1", "prefix=::1", "", "both"),
            ("192.0.2.1/24", "", "", "did you mean"),
            ("%zz", "", "", "not well encoded"),
            ("::1", "reason=%zz", "", "not well encoded"),
            ("::1", "time=1h", "", "unknown parameter"),
            ("::1", "ttl=1h&ttl=2h", "", "twice"),
            ("::1", "ttl=1h", "{\"ttl\": \"1h\"}", "twice"),
            ("::1", "", "{\"ttl\": \"1h\", \"ttl\": \"2h\"}", "twice"),
            ("::1", "", "{\"ttl\": [1]}", "a text or a number"),
            ("::1", "", "{\"ttl\"", "not JSON"),
            ("example.org", "", "", "neither an IP address"),
        ] {
            let Refused(status, text) = prefix(below, query, body).unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(text.contains(expected), "{text}");
        }
    }
}
