//! `/api/v1/blocklist`: requests to show, block and unblock, and their responses.

mod client;
mod parameters;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use serde::Serialize;

use self::parameters::Parameters;
use crate::http::{self, Access, Caller, Limiter, Rate, Reply, RequestInfo, Route};
use crate::net::{
    Asker, BlockConfig, BlockDirection, BlockEntry, BlockError, BlockProtocol, BlockRule, BlockScope,
    Blocked, Blocklist,
};
use crate::net::{Network, parse_ports, parse_ttl};

pub use self::client::Command;
pub(crate) use self::client::command;

const PATH: &str = "/api/v1/blocklist";
const ENTRY_PATH: &str = "/api/v1/blocklist/*";

/// Rate of changes that one client may request.
const CHANGE_RATE: Rate = Rate { interval: Duration::from_millis(20), burst: 200 };

/// Characters of a reason that are stored.
const MAX_REASON: usize = 200;

/// The longest time that a change may wait for its confirmation.
const MAX_CONFIRM: Duration = Duration::from_secs(3600);

/// The parameters of a request to block.
const BLOCK: &[&str] = &["prefix", "reason", "ttl", "direction", "protocol", "ports", "confirm"];

/// Status and text of an error.
#[derive(Debug, PartialEq, Eq)]
struct Refused(StatusCode, String);

/// The outcome of a change.
#[derive(Serialize)]
struct Changed {
    prefix: String,
    blocked: bool,
    /// Whether it was different before.
    changed: bool,
    enforced: bool,
    /// Addresses within the prefix that are never dropped, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    except: BTreeMap<String, String>,
    /// Seconds within which it must be confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm_within: Option<u64>,
}

/// The control socket of an exporter with this port.
pub(crate) fn socket(block: Option<&BlockConfig>, metrics_port: u16) -> PathBuf {
    let configured = block.and_then(|block| block.socket.clone());
    configured.unwrap_or_else(|| format!("/run/fibre-exporter/control-{metrics_port}.sock").into())
}

/// The routes, if there is a blocklist.
pub(crate) fn routes(network: &Arc<Network>) -> Vec<Route> {
    let Some(list) = network.blocklist() else { return Vec::new() };
    let limiter = Arc::new(Limiter::default());
    let change = |path, method, change: fn(&Blocklist, &RequestInfo) -> Result<Changed, Refused>| {
        let (list, limiter) = (list.clone(), limiter.clone());
        let handler = move |request: &RequestInfo| {
            if !may_change(&limiter, &request.caller, Instant::now()) {
                let text = "too many changes of the blocklist; try again later\n";
                return Reply::new(StatusCode::TOO_MANY_REQUESTS, text);
            }
            let changed = change(&list, request);
            reply(changed.map(|changed| serde_json::to_string(&changed).unwrap_or_default()))
        };
        Route::get(path, "", http::JSON, handler).open_to(Access::Writer).with_method(method)
    };
    let show = |path, about, show: fn(&Network, &RequestInfo) -> Result<String, Refused>| {
        let network = network.clone();
        let handler = move |request: &RequestInfo| reply(show(&network, request));
        Route::get(path, about, http::JSON, handler)
    };
    vec![
        show(PATH, "Blocked sources with their hits (JSON; paged)", |network, request| {
            network.blocked(request.query.as_deref().unwrap_or_default()).map_err(|err| invalid(err.0))
        }),
        show(ENTRY_PATH, "", |network, request| {
            let prefix = Parameters::read(request, &[])?.prefix()?;
            network.blocked_entry(prefix).ok_or_else(|| BlockError::Absent(prefix).into())
        }),
        change(PATH, Method::POST, block),
        change(PATH, Method::DELETE, unblock),
        change(ENTRY_PATH, Method::POST, block),
        change(ENTRY_PATH, Method::DELETE, unblock),
    ]
}

fn reply(done: Result<String, Refused>) -> Reply {
    match done {
        Ok(json) => Reply::ok(json),
        Err(Refused(status, text)) => Reply::new(status, format!("{text}\n")),
    }
}

/// Whether a client is within its rate of changes.
fn may_change(limiter: &Limiter, caller: &Caller, now: Instant) -> bool {
    let (address, is_remote) = match caller {
        Caller::Remote(_, address) => (*address, true),
        Caller::Local(_) => (Ipv4Addr::LOCALHOST.into(), false),
    };
    limiter.allows(CHANGE_RATE, address, is_remote, now)
}

fn invalid(text: impl Into<String>) -> Refused {
    Refused(StatusCode::BAD_REQUEST, text.into())
}

impl From<BlockError> for Refused {
    fn from(error: BlockError) -> Self {
        let status = match &error {
            BlockError::Absent(_) => StatusCode::NOT_FOUND,
            BlockError::Elsewhere(..) | BlockError::Protected(..) | BlockError::Settled(_) => {
                StatusCode::CONFLICT
            }
            BlockError::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            BlockError::Kernel(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

fn block(list: &Blocklist, request: &RequestInfo) -> Result<Changed, Refused> {
    let parameters = Parameters::read(request, BLOCK)?;
    let (entry, confirm) = asked_for(&parameters)?;
    let asker = match request.caller {
        Caller::Local(_) => Asker::Command,
        Caller::Remote(..) => Asker::Api,
    };
    let done = match confirm {
        None => list.block(&entry, asker),
        Some(within) => list.block_unless_unconfirmed(&entry, asker, within),
    };
    let within = confirm.map(|within| format!(", to be confirmed within {}s", within.as_secs()));
    let what = format!("block {}{}", described(&entry), within.unwrap_or_default());
    audit(request, &what, done.as_ref().err());
    let Blocked { is_new, except } = done?;
    Ok(Changed {
        prefix: entry.prefix.to_string(),
        blocked: true,
        changed: is_new,
        enforced: list.is_enforced(),
        except: except.into_iter().map(|(prefix, reason)| (prefix.to_string(), reason)).collect(),
        confirm_within: confirm.map(|within| within.as_secs()),
    })
}

fn asked_for(parameters: &Parameters) -> Result<(BlockEntry, Option<Duration>), Refused> {
    let prefix = parameters.prefix()?;
    let ttl = parameters.get("ttl").map(parse_ttl).transpose().map_err(invalid)?;
    let confirm = parameters.get("confirm").map(parse_ttl).transpose().map_err(invalid)?;
    if confirm.is_some_and(|within| within > MAX_CONFIRM) {
        return Err(invalid("confirm: at most 1h is possible"));
    }
    let ports = parameters.get("ports").map(parse_ports).transpose().map_err(invalid)?;
    let protocol = |text| {
        BlockProtocol::of(text).ok_or_else(|| invalid(format!("protocol is tcp, udp or icmp, not {text:?}")))
    };
    let protocol = parameters.get("protocol").map(protocol).transpose()?;
    if ports.is_some() && !matches!(protocol, Some(BlockProtocol::Tcp | BlockProtocol::Udp)) {
        return Err(invalid("ports needs protocol=tcp or protocol=udp"));
    }
    let scope = protocol.map(|protocol| BlockScope::new(protocol, ports));
    let direction = |text| {
        let unknown = || invalid(format!("direction is ingress, egress or both, not {text:?}"));
        BlockDirection::of(text).ok_or_else(unknown)
    };
    let direction = parameters.get("direction").map(direction).transpose()?;
    let reason = parameters.get("reason").unwrap_or_default().chars().take(MAX_REASON).collect();
    Ok((BlockEntry { prefix, rule: BlockRule { reason, ttl, direction, scope } }, confirm))
}

/// A prefix that is not listed is not blocked, as requested.
fn unblock(list: &Blocklist, request: &RequestInfo) -> Result<Changed, Refused> {
    let prefix = Parameters::read(request, &["prefix"])?.prefix()?;
    let done = list.unblock(prefix);
    let changed = !matches!(done, Err(BlockError::Absent(_)));
    if changed {
        audit(request, &format!("unblock {prefix}"), done.as_ref().err());
        done?;
    }
    Ok(Changed {
        prefix: prefix.to_string(),
        blocked: false,
        changed,
        enforced: list.is_enforced(),
        except: BTreeMap::new(),
        confirm_within: None,
    })
}

/// Describes an entry for the log.
fn described(entry: &BlockEntry) -> String {
    let BlockEntry { prefix, rule } = entry;
    let scope = rule.scope.map(|scope| format!(" {scope}")).unwrap_or_default();
    let direction = rule.direction.map(|of| format!(" {}", of.word())).unwrap_or_default();
    let time = rule.ttl.map_or_else(|| "permanently".to_string(), |ttl| format!("for {}s", ttl.as_secs()));
    let reason = if rule.reason.is_empty() { String::new() } else { format!(", reason {:?}", rule.reason) };
    format!("{prefix}{direction}{scope} {time}{reason}")
}

/// Logs each requested change: who, what, from where.
fn audit(request: &RequestInfo, what: &str, error: Option<&BlockError>) {
    let caller = &request.caller;
    match error {
        None => log::info!("blocklist: {what}: by {caller}"),
        Some(error) => log::warn!("blocklist: {what}: by {caller}: refused: {error}"),
    }
}

#[cfg(test)]
mod random_requests;

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Result<(BlockEntry, Option<Duration>), Refused> {
        let caller = Caller::Remote(None, Ipv4Addr::LOCALHOST.into());
        let request = RequestInfo {
            query: Some(query.to_string()),
            accept: None,
            below: "192.0.2.7".to_string(),
            caller,
            body: Default::default(),
        };
        asked_for(&Parameters::read(&request, BLOCK)?)
    }

    #[test]
    fn changes_are_rate_limited_per_client() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let from = |address: [u8; 4]| Caller::Remote(Some("a".into()), address.into());
        let busy = from([127, 0, 0, 1]);
        let allowed = (0..1000).filter(|_| may_change(&limiter, &busy, now)).count();
        assert_eq!(allowed, CHANGE_RATE.burst as usize);
        assert!(may_change(&limiter, &from([192, 0, 2, 1]), now));
        assert!(may_change(&limiter, &busy, now + Duration::from_secs(1)));
    }

    #[test]
    fn parses_requests_and_explains_errors() {
        let (entry, confirm) =
            asked("ttl=1h&reason=port+scan%0a&direction=both&protocol=tcp&ports=1-9&confirm=60s").unwrap();
        assert_eq!(confirm, Some(Duration::from_secs(60)));
        assert_eq!(described(&entry), "192.0.2.7/32 both tcp 1-9 for 3600s, reason \"port scan\\n\"");
        assert_eq!(described(&asked("").unwrap().0), "192.0.2.7/32 permanently");
        for (query, expected) in [
            ("ttl=1w", "write 90s"),
            ("ttl=0", "from 1s"),
            ("confirm=2h", "at most 1h"),
            ("ports=22", "needs protocol"),
            ("protocol=icmp&ports=22", "needs protocol"),
            ("protocol=sctp", "tcp, udp or icmp"),
            ("direction=out", "ingress, egress or both"),
            ("protocol=tcp&ports=0", "neither a port"),
        ] {
            let Refused(status, text) = asked(query).unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
            assert!(text.contains(expected), "{query}: {text}");
        }
    }
}
