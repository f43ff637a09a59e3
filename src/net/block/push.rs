//! Reports bans of the exporter's own detection to CrowdSec's Local API, as alerts with a decision, so that all its
//! bouncers block the source.

use std::fmt;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat};
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderValue};
use serde::{Deserialize, Serialize};

use super::super::cidr::Prefix;
use super::crowdsec::{CrowdsecConfig, PushConfig, client, read_secret};
use crate::http_client::{Answer, Client, Request};

/// The origin of decisions made by exporters.
pub(super) const ORIGIN: &str = "fibre-exporter";

/// Alerts in one request.
pub(super) const MAX_ALERTS_PER_REQUEST: usize = 100;

/// A token is valid for an hour; it is renewed earlier.
const TOKEN_LIFETIME: Duration = Duration::from_secs(1800);

/// A ban to report.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Alert {
    pub prefix: Prefix,
    pub kind: String,
    pub count: f64,
    /// In nanoseconds since 1970.
    pub time: i64,
    /// When the ban ends, by the monotonic clock.
    pub deadline: u64,
}

/// Why alerts were not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PushError {
    /// They may be accepted later.
    Later(String),
    /// They never will be.
    Refused(String),
}

/// The client that sends alerts.
pub(super) struct Pusher {
    config: CrowdsecConfig,
    push: PushConfig,
    client: Client,
    /// The access token and when it was issued.
    token: Option<(HeaderValue, Instant)>,
}

impl fmt::Debug for Pusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher").field("url", &self.config.url).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Login<'a> {
    machine_id: &'a str,
    password: &'a str,
    scenarios: [&'a str; 0],
}

#[derive(Deserialize)]
struct LoggedIn {
    token: String,
}

#[derive(Serialize)]
struct WireAlert {
    scenario: String,
    scenario_hash: &'static str,
    scenario_version: &'static str,
    message: String,
    events_count: i32,
    events: [(); 0],
    start_at: String,
    stop_at: String,
    capacity: i32,
    leakspeed: &'static str,
    simulated: bool,
    source: WireSource,
    decisions: [WireDecision; 1],
}

#[derive(Serialize)]
struct WireSource {
    scope: &'static str,
    value: String,
}

#[derive(Serialize)]
struct WireDecision {
    duration: String,
    origin: &'static str,
    scenario: String,
    scope: &'static str,
    r#type: &'static str,
    value: String,
}

/// The alert in the Local API's format; `None` if the ban has expired.
fn wire(alert: &Alert, now: u64) -> Option<WireAlert> {
    let remaining = Duration::from_nanos(alert.deadline.saturating_sub(now)).as_secs();
    let (scope, value) = match alert.prefix.is_single() {
        true => ("Ip", alert.prefix.address().to_string()),
        false => ("Range", alert.prefix.to_string()),
    };
    let scenario = format!("{ORIGIN}/{}", alert.kind);
    let time = DateTime::from_timestamp_nanos(alert.time).to_rfc3339_opts(SecondsFormat::Secs, true);
    let message = format!("{} by {value}", alert.kind);
    (remaining > 0).then(|| WireAlert {
        scenario: scenario.clone(),
        scenario_hash: "",
        scenario_version: "",
        message,
        events_count: alert.count as i32,
        events: [],
        start_at: time.clone(),
        stop_at: time,
        capacity: 0,
        leakspeed: "0",
        simulated: false,
        source: WireSource { scope, value: value.clone() },
        decisions: [WireDecision {
            duration: format!("{remaining}s"),
            origin: ORIGIN,
            scenario,
            scope,
            r#type: "ban",
            value,
        }],
    })
}

fn later(answer: &Answer, hint: &str) -> PushError {
    PushError::Later(answer.described() + hint)
}

impl Pusher {
    /// `None` if alerts are not configured.
    pub fn new(config: &CrowdsecConfig) -> Option<Self> {
        let push = config.push.clone()?;
        Some(Self { client: client(config), config: config.clone(), push, token: None })
    }

    /// Sends alerts; returns how many were sent. The others had expired.
    ///
    /// # Errors
    /// Why none was accepted.
    pub fn send(&mut self, alerts: &[Alert], now: u64) -> Result<usize, PushError> {
        let wires: Vec<WireAlert> = alerts.iter().filter_map(|alert| wire(alert, now)).collect();
        if wires.is_empty() {
            return Ok(0);
        }
        let body = serde_json::to_vec(&wires).map_err(|err| PushError::Refused(err.to_string()))?;
        let url = self.config.url.below("v1/alerts");
        let request = Request::post(url, "application/json", body).with(AUTHORIZATION, self.token()?);
        let answer = self.client.send(request).map_err(|err| PushError::Later(err.to_string()))?;
        match answer.status {
            status if status.is_success() => Ok(wires.len()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                // The machine was deleted, or the Local API's secret changed with a restart.
                self.token = None;
                Err(later(&answer, ""))
            }
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(PushError::Refused(answer.described()))
            }
            _ => Err(later(&answer, "")),
        }
    }

    /// The access token, requested if there is none yet.
    fn token(&mut self) -> Result<HeaderValue, PushError> {
        if let Some((token, since)) = &self.token
            && since.elapsed() < TOKEN_LIFETIME
        {
            return Ok(token.clone());
        }
        let password = read_secret(&self.push.password_file).map_err(PushError::Later)?;
        let login = Login { machine_id: &self.push.machine, password: &password, scenarios: [] };
        let body = serde_json::to_vec(&login).map_err(|err| PushError::Later(err.to_string()))?;
        let request = Request::post(self.config.url.below("v1/watchers/login"), "application/json", body);
        let answer = self.client.send(request).map_err(|err| PushError::Later(err.to_string()))?;
        if answer.status != StatusCode::OK {
            let hint = match answer.status {
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                    "; the machine or its password is not known there: `cscli machines add NAME --password ...` adds one"
                }
                _ => "",
            };
            return Err(later(&answer, hint));
        }
        let token = serde_json::from_slice::<LoggedIn>(&answer.body).map_err(|err| err.to_string());
        let token = token.and_then(|answer| {
            HeaderValue::try_from(format!("Bearer {}", answer.token)).map_err(|err| err.to_string())
        });
        let mut token = token.map_err(|err| PushError::Later(format!("the answer has no token: {err}")))?;
        token.set_sensitive(true);
        self.token = Some((token.clone(), Instant::now()));
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_match_the_local_api_format() {
        let alert = |prefix: &str, seconds: u64| Alert {
            prefix: Prefix::parse(prefix).unwrap(),
            kind: "failed \"logins\"".to_string(),
            count: 3.0,
            time: 1_700_000_000_000_000_000,
            deadline: seconds * 1_000_000_000,
        };
        let sent = serde_json::to_value(wire(&alert("192.0.2.7", 100), 40_000_000_000).unwrap()).unwrap();
        assert_eq!(sent["scenario"], "fibre-exporter/failed \"logins\"");
        assert_eq!((&sent["start_at"], &sent["events_count"]), (&"2023-11-14T22:13:20Z".into(), &3.into()));
        let decision = &sent["decisions"][0];
        assert_eq!((&decision["scope"], &decision["value"]), (&"Ip".into(), &"192.0.2.7".into()));
        assert_eq!((&decision["duration"], &decision["origin"]), (&"60s".into(), &ORIGIN.into()));
        let sent = serde_json::to_value(wire(&alert("2001:db8::/64", 100), 0).unwrap()).unwrap();
        assert_eq!(
            (&sent["source"]["scope"], &sent["source"]["value"]),
            (&"Range".into(), &"2001:db8::/64".into())
        );
        assert!(wire(&alert("192.0.2.7", 40), 40_000_000_000).is_none(), "it is over");
    }
}
