//! The entries of each source, and which of them are active.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::super::abi::{Direction, List, TICK_NANOSECONDS};
use super::super::cidr::Prefix;
use super::config::{BlockConfig, BlockDirection, BlockEntry, BlockProtocol, BlockRule, BlockScope};
use super::decisions::{About, DecisionScope};
use super::entry::{Asker, BlockRow, Source};
use super::feed::Feed;
use super::file::WatchedFile;
use super::kept::StoredEntry;
use super::maps::{BOTH, Connection, Hits, Rule};
use super::protect::{Elsewhere, Protected};
use super::rules::RuleTables;
use super::sources::Sources;

/// The list's state, behind its lock.
#[derive(Debug)]
pub(super) struct ListState {
    pub config: BlockConfig,
    /// When each of the configuration's entries expires, by the monotonic clock.
    pub deadlines: Vec<Option<u64>>,
    pub files: Vec<WatchedFile>,
    /// The source number of each file.
    pub file_sources: Vec<u16>,
    pub decided: BTreeMap<About, Decision>,
    /// The state of remote sources by name.
    pub feeds: BTreeMap<String, Feed>,
    pub asked: BTreeMap<Prefix, Requested>,
    pub protected: Protected,
    /// What is protected in other network namespaces, by the numbers of their scopes.
    pub elsewhere: BTreeMap<usize, Elsewhere>,
    /// Protected connections, and whether they could not be determined the last time.
    pub sessions: BTreeSet<Connection>,
    pub sessions_unknown: bool,
    pub tables: RuleTables,
    pub held: BTreeMap<Prefix, Origin>,
    pub sources: Sources,
    /// The number of active entries by source.
    pub by_source: Vec<u64>,
    pub allowed: BTreeSet<Prefix>,
    /// Hits of rules that are no longer in the kernel although their prefix is still listed.
    pub carried_hits: BTreeMap<Prefix, Hits>,
    /// Whether the bitmaps have bits that no entry needs.
    pub marks_stale: bool,
    pub protected_at: Option<u64>,
    pub errors: u64,
    /// Replaced tables whose hits could not be read.
    pub unread: u64,
}

/// A decision of CrowdSec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub deadline: u64,
    pub source: u16,
    pub scenario: Arc<str>,
}

/// An entry added at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Requested {
    pub rule: BlockRule,
    pub by: Asker,
    pub deadline: Option<u64>,
    /// When it expires unless it is confirmed.
    pub confirm_by: Option<u64>,
}

impl Requested {
    /// An entry from the file.
    pub fn restored(entry: StoredEntry, now: u64) -> (Prefix, Self) {
        let StoredEntry { prefix, by, rule } = entry;
        let deadline = deadline(&rule, now);
        (prefix, Self { rule, by, deadline, confirm_by: None })
    }

    /// As it is stored in the file. An unconfirmed entry is not stored.
    pub fn kept(&self, prefix: Prefix, now: u64) -> Option<StoredEntry> {
        let ttl = self.deadline.map(|deadline| Duration::from_nanos(deadline.saturating_sub(now)));
        let rule = BlockRule { ttl, ..self.rule.clone() };
        self.confirm_by.is_none().then_some(StoredEntry { prefix, by: self.by, rule })
    }

    /// When it expires.
    pub fn until(&self) -> Option<u64> {
        self.deadline.into_iter().chain(self.confirm_by).min()
    }
}

/// The source of an active entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Config(u32),
    File(u32),
    /// By source number.
    Decision(u16),
    Requested(Asker),
}

fn tick(nanoseconds: u64) -> u32 {
    // Zero is not a valid tick.
    ((nanoseconds / TICK_NANOSECONDS) as u32).max(1)
}

pub(super) fn deadline(rule: &BlockRule, now: u64) -> Option<u64> {
    rule.ttl.map(|ttl| now.saturating_add(ttl.as_nanos() as u64))
}

pub(super) fn has_expired(deadline: Option<u64>, now: u64) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

pub(super) fn kernel_rule(
    prefix: Prefix,
    direction: BlockDirection,
    scope: Option<BlockScope>,
    deadline: Option<u64>,
    source: u16,
) -> Rule {
    let number = |protocol| match protocol {
        BlockProtocol::Tcp => libc::IPPROTO_TCP,
        BlockProtocol::Udp => libc::IPPROTO_UDP,
        BlockProtocol::Icmp if prefix.address().is_ipv4() => libc::IPPROTO_ICMP,
        BlockProtocol::Icmp => libc::IPPROTO_ICMPV6,
    };
    Rule {
        expires: deadline.map_or(0, tick),
        scope: scope.map(|scope| (number(scope.protocol) as u8, scope.ports.0, scope.ports.1)),
        source,
        directions: match direction {
            BlockDirection::Ingress => 1 << Direction::Ingress as u8,
            BlockDirection::Egress => 1 << Direction::Egress as u8,
            BlockDirection::Both => BOTH,
        },
    }
}

impl ListState {
    /// The entries of all sources, merged.
    pub fn wanted(&self, now: u64) -> BTreeMap<Prefix, Origin> {
        let mut wanted: BTreeMap<Prefix, Origin> = BTreeMap::new();
        let asked = self.asked.iter().filter(|(_, asked)| !has_expired(asked.until(), now));
        wanted.extend(asked.map(|(prefix, asked)| (*prefix, Origin::Requested(asked.by))));
        for (prefix, ..) in self.decided.keys() {
            wanted.extend(self.decision(*prefix, now).map(|by| (*prefix, Origin::Decision(by.source))));
        }
        for (number, file) in self.files.iter().enumerate().rev() {
            let origin = Origin::File(number as u32);
            if wanted.is_empty() {
                // The input is sorted, so this is fast.
                wanted = file.prefixes.iter().map(|prefix| (*prefix, origin)).collect();
            } else {
                wanted.extend(file.prefixes.iter().map(|prefix| (*prefix, origin)));
            }
        }
        for (number, (entry, deadline)) in self.config.entries.iter().zip(&self.deadlines).enumerate().rev() {
            if !has_expired(*deadline, now) {
                wanted.insert(entry.prefix, Origin::Config(number as u32));
            }
        }
        wanted
    }

    /// The source that blocks one prefix, by the same order as [`Self::wanted`].
    pub fn wanted_for(&self, prefix: Prefix, now: u64) -> Option<Origin> {
        let mut config = self.config.entries.iter().zip(&self.deadlines);
        let is_it = |(entry, deadline): (&BlockEntry, &Option<u64>)| {
            entry.prefix == prefix && !has_expired(*deadline, now)
        };
        if let Some(number) = config.position(is_it) {
            return Some(Origin::Config(number as u32));
        }
        if let Some(number) = self.files.iter().position(|file| file.prefixes.binary_search(&prefix).is_ok())
        {
            return Some(Origin::File(number as u32));
        }
        if let Some(by) = self.decision(prefix, now) {
            return Some(Origin::Decision(by.source));
        }
        let asked = self.asked.get(&prefix).filter(|asked| !has_expired(asked.until(), now));
        asked.map(|asked| Origin::Requested(asked.by))
    }

    /// The decision that blocks a prefix: of several, the longest.
    pub fn decision(&self, prefix: Prefix, now: u64) -> Option<&Decision> {
        let about = (prefix, DecisionScope::Ip, i64::MIN)..=(prefix, DecisionScope::Range, i64::MAX);
        let hold = self.decided.range(about).map(|(_, by)| by).filter(|by| by.deadline > now);
        hold.max_by_key(|by| by.deadline)
    }

    /// Prefixes whose active entry has expired, whatever its source.
    pub fn over(&mut self, now: u64) -> BTreeSet<Prefix> {
        let config = self.config.entries.iter().zip(&self.deadlines).zip(0..);
        let mut over: BTreeSet<Prefix> = config
            .filter(|((entry, deadline), number)| {
                has_expired(**deadline, now) && self.held.get(&entry.prefix) == Some(&Origin::Config(*number))
            })
            .map(|((entry, _), _)| entry.prefix)
            .collect();
        self.decided.retain(|(prefix, ..), by| {
            let holds = by.deadline > now;
            if !holds {
                over.insert(*prefix);
            }
            holds
        });
        over
    }

    /// The source number of an entry.
    fn source(&self, origin: Origin) -> u16 {
        match origin {
            Origin::Config(_) => Sources::CONFIG,
            Origin::Requested(by) => Sources::of_asker(by),
            Origin::File(number) => self.file_sources[number as usize],
            Origin::Decision(source) => source,
        }
    }

    pub fn count(&mut self, origin: Origin) -> &mut u64 {
        let at = usize::from(self.source(origin));
        if self.by_source.len() <= at {
            self.by_source.resize(at + 1, 0);
        }
        &mut self.by_source[at]
    }

    pub fn rule(&self, prefix: Prefix, origin: Origin, now: u64) -> Rule {
        let source = self.source(origin);
        let default = self.config.direction;
        let rule = |wanted: Option<&BlockRule>, deadline| {
            let direction = wanted.and_then(|rule| rule.direction).unwrap_or(default);
            kernel_rule(prefix, direction, wanted.and_then(|rule| rule.scope), deadline, source)
        };
        let asked = self.asked.get(&prefix);
        match origin {
            Origin::Config(number) => {
                rule(Some(&self.config.entries[number as usize].rule), self.deadlines[number as usize])
            }
            Origin::File(_) => rule(None, None),
            // The entry added at run time takes its place without a gap.
            Origin::Decision(_) => {
                let decided = self.decision(prefix, now).map_or(now, |by| by.deadline);
                let is_same =
                    |rule: &BlockRule| rule.scope.is_none() && rule.direction.is_none_or(|of| of == default);
                let deadline = match asked.filter(|asked| is_same(&asked.rule)) {
                    Some(asked) => asked.until().map(|until| until.max(decided)),
                    None => Some(decided),
                };
                rule(None, deadline)
            }
            Origin::Requested(_) => rule(asked.map(|asked| &asked.rule), asked.and_then(Requested::until)),
        }
    }

    pub fn place(&self, origin: Origin) -> String {
        match origin {
            Origin::Config(_) => "network.block.entries".to_string(),
            Origin::File(number) => self.files[number as usize].name.clone(),
            Origin::Decision(source) => {
                let origin = self.sources.of(source).and_then(|source| source.origin.clone());
                format!("CrowdSec's decisions (origin {})", origin.unwrap_or_default())
            }
            Origin::Requested(by) => by.word().to_string(),
        }
    }

    pub fn row(&self, prefix: Prefix, origin: Origin, now: u64) -> BlockRow {
        let mut hits = self.carried_hits.get(&prefix).copied().unwrap_or_default();
        hits.add(self.tables.hits(List::Blocked, prefix).unwrap_or_default());
        let asked = self.asked.get(&prefix).filter(|_| matches!(origin, Origin::Requested(_)));
        let (rule, deadline) = match origin {
            Origin::Config(number) => {
                (self.config.entries[number as usize].rule.clone(), self.deadlines[number as usize])
            }
            Origin::File(number) => {
                let reason = self.files[number as usize].reason.clone();
                (BlockRule { reason, ..BlockRule::default() }, None)
            }
            Origin::Decision(_) => {
                let by = self.decision(prefix, now);
                let reason = by.map(|by| by.scenario.to_string()).unwrap_or_default();
                (BlockRule { reason, ..BlockRule::default() }, by.map(|by| by.deadline))
            }
            Origin::Requested(_) => {
                asked.map(|asked| (asked.rule.clone(), asked.until())).unwrap_or_default()
            }
        };
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        let age = u64::from(tick(now).wrapping_sub(hits.last)) * TICK_NANOSECONDS;
        BlockRow {
            prefix,
            source: self.sources.of(self.source(origin)).cloned().unwrap_or_else(|| Source::named("")),
            reason: rule.reason,
            direction: rule.direction.unwrap_or(self.config.direction),
            scope: rule.scope,
            is_unconfirmed: asked.is_some_and(|asked| asked.confirm_by.is_some()),
            expires_in: deadline.map(|deadline| seconds(deadline.saturating_sub(now))),
            packets: hits.packets,
            bytes: hits.bytes,
            last_seen: (hits.last != 0).then(|| seconds(age)),
        }
    }
}
