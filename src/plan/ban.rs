//! Which addresses are banned because of a probe's hits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::scope::Scope;
use super::{ConditionPlan, Plan, ValueKind};
use crate::config::ban::BAN;
use crate::config::model::{ArgKind, Ban, Named};
use crate::config::{Diagnostics, Place};
use crate::net::{BanRule, BanTerms, parse_ttl};

/// The longest window in which hits are counted together: the times are held in memory only.
const MAX_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// One `ban:` entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BanPlan {
    /// The value that is the address, by index.
    pub address: usize,
    pub when: Vec<ConditionPlan>,
    pub rule: BanRule,
}

impl Scope<'_> {
    /// Plans one of the probe's bans, and adds the values that it needs to those that are read.
    pub(super) fn ban(&mut self, ban: &Ban) -> Option<BanPlan> {
        let address = self.value(&ban.address.at, &ban.address.name);
        let when: Vec<_> = ban.when.iter().map(|condition| self.condition(condition)).collect();
        let within = self.time("within", ban.within.as_ref());
        if let (Some(within), Some(written)) = (within, &ban.within)
            && within > MAX_WITHIN
        {
            self.diags.error(&written.at, "at most 1d is possible");
        }
        let (ttl, max_ttl) = (self.time("ttl", ban.ttl.as_ref()), self.time("max_ttl", ban.max_ttl.as_ref()));
        if let (Some(ttl), Some(max_ttl), Some(written)) = (ttl, max_ttl, &ban.max_ttl)
            && max_ttl < ttl
        {
            self.diags.error(&written.at, "`max_ttl` is shorter than `ttl`");
        }
        let address = address?;
        let kind = &self.plan.values[address].kind;
        if !may_be_an_address(kind) {
            self.diags
                .error(&ban.address.at, format!("\"{}\" is not an address", ban.address.name))
                .help("give the argument the type string, ipv4, ipv6 or sockaddr");
            return None;
        }
        let (ttl, max_ttl) = (ttl?, max_ttl?.max(ttl?));
        Some(BanPlan {
            address,
            when: when.into_iter().collect::<Option<_>>()?,
            rule: BanRule {
                kind: ban.reason.clone().unwrap_or_else(|| self.plan.name.clone()),
                after: ban.after,
                within: within?,
                terms: BanTerms { enforce: ban.enforce, ttl, max_ttl },
            },
        })
    }

    fn time(&self, key: &str, written: Option<&Named>) -> Option<Duration> {
        let Some(Named { at, name }) = written else {
            return BAN.default(key, |text| parse_ttl(text).ok());
        };
        parse_ttl(name).map_err(|error| self.diags.error(at, error)).ok()
    }
}

fn may_be_an_address(kind: &ValueKind) -> bool {
    matches!(
        kind,
        ValueKind::StrLen { .. }
            | ValueKind::Arg(
                ArgKind::Str { .. }
                    | ArgKind::StrLen { .. }
                    | ArgKind::Ipv4
                    | ArgKind::Ipv6
                    | ArgKind::SockAddr
            )
    )
}

/// Reports enforced bans if there is no blocklist; `at` are the places of these bans.
pub(super) fn refuse_without_blocklist(plan: &Plan, at: &[Place], diags: &Diagnostics) {
    let has_list = plan.network.as_ref().is_some_and(|network| network.block.is_some());
    if has_list {
        return;
    }
    for at in at {
        diags
            .error(at, "`mode: enforce` needs a blocklist")
            .help("add network: { interfaces: [...], block: { mode: enforce } }");
    }
}
