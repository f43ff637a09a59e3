//! What is held of each source, and how it is brought into the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::abi::{List, TICK_NANOSECONDS};
use super::super::cidr::Prefix;
use super::config::{BlockConfig, BlockFile, BlockProtocol, BlockRule, BlockScope};
use super::entry::{Asker, BlockRow};
use super::file::WatchedFile;
use super::kept::Kept;
use super::maps::{BlockMaps, Hits, Rule};
use super::marks::Marks;
use super::protect::Protected;
use super::rules::RuleTables;

/// Changes that are made one by one; with more, the tables are made anew.
const FEW: usize = 1024;

/// The list behind its lock.
#[derive(Debug)]
pub(super) struct ListState {
    pub config: BlockConfig,
    /// Until when each of the configuration's entries holds, by the monotonic clock.
    pub deadlines: Vec<Option<u64>>,
    pub files: Vec<WatchedFile>,
    pub asked: BTreeMap<Prefix, Asked>,
    pub protected: Protected,
    pub tables: RuleTables,
    pub held: BTreeMap<Prefix, Origin>,
    /// How many of them each origin has: the configuration, whoever asked, and each file.
    pub by_origin: Vec<u64>,
    pub allowed: BTreeSet<Prefix>,
    /// What rules met that are not in the kernel any more though their prefix is still listed.
    pub met: BTreeMap<Prefix, Hits>,
    /// Whether bits are set in the bitmaps that no entry needs.
    pub marks_stale: bool,
    pub looked: Option<u64>,
    pub errors: u64,
    /// Exchanged tables whose hits could not be read any more.
    pub unread: u64,
}

/// Blocked because somebody asked for it at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub rule: BlockRule,
    pub by: Asker,
    pub deadline: Option<u64>,
    /// When it goes away unless it is confirmed.
    pub confirm_by: Option<u64>,
}

impl Asked {
    /// As it is kept in a file. One that is to be confirmed is not.
    pub fn kept(&self, prefix: Prefix, now: u64) -> Option<Kept> {
        let ttl = self.deadline.map(|deadline| Duration::from_nanos(deadline.saturating_sub(now)));
        let rule = BlockRule { ttl, ..self.rule.clone() };
        self.confirm_by.is_none().then_some(Kept { prefix, by: self.by, rule })
    }

    /// When it goes away.
    pub fn until(&self) -> Option<u64> {
        self.deadline.into_iter().chain(self.confirm_by).min()
    }
}

/// Whose entry it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Config(u32),
    File(u32),
    Asked(Asker),
}

/// Where files begin in [`State::by_origin`].
pub(super) const FIRST_FILE: usize = 1 + Asker::ALL.len();

fn tick(nanoseconds: u64) -> u32 {
    // Zero is no tick.
    ((nanoseconds / TICK_NANOSECONDS) as u32).max(1)
}

pub(super) fn deadline(rule: &BlockRule, now: u64) -> Option<u64> {
    rule.ttl.map(|ttl| now.saturating_add(ttl.as_nanos() as u64))
}

pub(super) fn is_over(deadline: Option<u64>, now: u64) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

pub(super) fn kernel_rule(prefix: Prefix, scope: Option<BlockScope>, deadline: Option<u64>) -> Rule {
    let number = |protocol| match protocol {
        BlockProtocol::Tcp => libc::IPPROTO_TCP,
        BlockProtocol::Udp => libc::IPPROTO_UDP,
        BlockProtocol::Icmp if prefix.address().is_ipv4() => libc::IPPROTO_ICMP,
        BlockProtocol::Icmp => libc::IPPROTO_ICMPV6,
    };
    Rule {
        expires: deadline.map_or(0, tick),
        scope: scope.map(|scope| (number(scope.protocol) as u8, scope.ports.0, scope.ports.1)),
    }
}

impl ListState {
    /// What is to be blocked by all sources.
    pub fn wanted(&self, now: u64) -> BTreeMap<Prefix, Origin> {
        let mut wanted: BTreeMap<Prefix, Origin> = BTreeMap::new();
        let asked = self.asked.iter().filter(|(_, asked)| !is_over(asked.until(), now));
        wanted.extend(asked.map(|(prefix, asked)| (*prefix, Origin::Asked(asked.by))));
        for (number, file) in self.files.iter().enumerate().rev() {
            let origin = Origin::File(number as u32);
            if wanted.is_empty() {
                // Sorted already: this is quick.
                wanted = file.prefixes.iter().map(|prefix| (*prefix, origin)).collect();
            } else {
                wanted.extend(file.prefixes.iter().map(|prefix| (*prefix, origin)));
            }
        }
        for (number, (entry, deadline)) in self.config.entries.iter().zip(&self.deadlines).enumerate().rev() {
            if !is_over(*deadline, now) {
                wanted.insert(entry.prefix, Origin::Config(number as u32));
            }
        }
        wanted
    }

    /// Whether entries of the configuration are held whose time is over.
    pub fn has_over(&self, now: u64) -> bool {
        self.config.entries.iter().zip(&self.deadlines).zip(0..).any(|((entry, deadline), number)| {
            is_over(*deadline, now) && self.held.get(&entry.prefix) == Some(&Origin::Config(number))
        })
    }

    pub fn count(&mut self, origin: Origin) -> &mut u64 {
        let at = match origin {
            Origin::Config(_) => 0,
            Origin::Asked(by) => 1 + by as usize,
            Origin::File(number) => FIRST_FILE + number as usize,
        };
        if self.by_origin.len() < FIRST_FILE + self.files.len() {
            self.by_origin.resize(FIRST_FILE + self.files.len(), 0);
        }
        &mut self.by_origin[at]
    }

    pub fn rule(&self, prefix: Prefix, origin: Origin) -> Rule {
        match origin {
            Origin::Config(number) => {
                let (entry, deadline) =
                    (&self.config.entries[number as usize], self.deadlines[number as usize]);
                kernel_rule(prefix, entry.rule.scope, deadline)
            }
            Origin::File(_) => Rule::default(),
            Origin::Asked(_) => match self.asked.get(&prefix) {
                Some(asked) => kernel_rule(prefix, asked.rule.scope, asked.until()),
                None => Rule::default(),
            },
        }
    }

    pub fn place(&self, origin: Origin) -> String {
        match origin {
            Origin::Config(_) => "network.block.entries".to_string(),
            Origin::File(number) => self.files[number as usize].path.display().to_string(),
            Origin::Asked(by) => by.word().to_string(),
        }
    }

    pub fn marks(&self) -> Marks {
        marks(self.held.keys(), &self.allowed)
    }

    /// Holds these and nothing else, with the fewest changes.
    pub fn fit(&mut self, maps: &BlockMaps, wanted: BTreeMap<Prefix, Origin>) -> libbpf_rs::Result<()> {
        let gone: Vec<Prefix> =
            self.held.keys().filter(|prefix| !wanted.contains_key(prefix)).take(FEW + 1).copied().collect();
        let new: Vec<(Prefix, Origin)> = (wanted.iter())
            .filter(|(prefix, origin)| self.held.get(prefix) != Some(origin))
            .take(FEW + 1)
            .map(|(prefix, origin)| (*prefix, *origin))
            .collect();
        if gone.len() + new.len() > FEW || !self.tables.has_room(List::Blocked, new.len()) {
            return self.replace_all(maps, wanted);
        }
        for (prefix, origin) in new {
            let rule = self.rule(prefix, origin);
            self.set(maps, prefix, origin, rule)?;
        }
        gone.into_iter().try_for_each(|prefix| self.unset(maps, prefix))
    }

    pub fn set(
        &mut self,
        maps: &BlockMaps,
        prefix: Prefix,
        origin: Origin,
        rule: Rule,
    ) -> libbpf_rs::Result<()> {
        if !self.held.contains_key(&prefix) && !self.tables.has_room(List::Blocked, 1) {
            // Room for a quarter more.
            let same = self.held.clone();
            self.replace_all(maps, same)?;
        }
        self.tables.set(maps, List::Blocked, prefix, rule)?;
        if let Some(before) = self.held.insert(prefix, origin) {
            *self.count(before) -= 1;
        }
        *self.count(origin) += 1;
        Ok(())
    }

    pub fn unset(&mut self, maps: &BlockMaps, prefix: Prefix) -> libbpf_rs::Result<()> {
        self.tables.remove(maps, List::Blocked, prefix)?;
        if let Some(before) = self.held.remove(&prefix) {
            *self.count(before) -= 1;
        }
        self.met.remove(&prefix);
        self.marks_stale = true;
        Ok(())
    }

    pub fn replace_all(
        &mut self,
        maps: &BlockMaps,
        wanted: BTreeMap<Prefix, Origin>,
    ) -> libbpf_rs::Result<()> {
        let rules: Vec<_> =
            wanted.iter().map(|(prefix, origin)| (*prefix, self.rule(*prefix, *origin))).collect();
        let marks = marks(wanted.keys(), &self.allowed);
        let met = self.tables.replace(maps, List::Blocked, &rules, &marks)?;
        self.unread += u64::from(!met.is_whole);
        for (prefix, hits) in met.hits {
            self.met.entry(prefix).or_default().add(hits);
        }
        self.met.retain(|prefix, _| wanted.contains_key(prefix));
        self.by_origin = vec![0; FIRST_FILE + self.files.len()];
        wanted.values().for_each(|origin| *self.count(*origin) += 1);
        self.held = wanted;
        self.marks_stale = false;
        Ok(())
    }

    /// What is never dropped by the configuration, and what was found.
    pub fn reasons_to_pass(&self) -> impl Iterator<Item = (Prefix, String)> {
        let allowed = self.config.allow.iter().map(|prefix| (*prefix, "in network.block.allow".to_string()));
        allowed.chain(
            self.protected.prefixes.iter().map(|(prefix, why)| (*prefix, format!("protected ({why})"))),
        )
    }

    /// Looks for what must not be blocked if that was not done just now; whether it was.
    pub fn look(&mut self, maps: &BlockMaps, now: u64, oldest: Duration) -> bool {
        let age = self.looked.map(|looked| Duration::from_nanos(now.saturating_sub(looked)));
        if age.is_some_and(|age| age < oldest) {
            return false;
        }
        self.looked = Some(now);
        if let Err(error) = self.protect(maps, Protected::find()) {
            self.errors += 1;
            log::error!("blocklist: failed to protect addresses: {error:#}");
        }
        true
    }

    pub fn protect(&mut self, maps: &BlockMaps, protected: Protected) -> libbpf_rs::Result<()> {
        let allowed: BTreeSet<Prefix> =
            self.config.allow.iter().copied().chain(protected.prefixes.keys().copied()).collect();
        let new: Vec<Prefix> = allowed.difference(&self.allowed).copied().collect();
        let gone: Vec<Prefix> = self.allowed.difference(&allowed).copied().collect();
        if new.len() > FEW || !self.tables.has_room(List::Allowed, new.len()) {
            let rules: Vec<_> = allowed.iter().map(|prefix| (*prefix, Rule::default())).collect();
            self.tables.replace(maps, List::Allowed, &rules, &marks(self.held.keys(), &allowed))?;
        } else {
            for prefix in new {
                self.tables.set(maps, List::Allowed, prefix, Rule::default())?;
            }
            for prefix in gone {
                self.tables.remove(maps, List::Allowed, prefix)?;
                self.marks_stale = true;
            }
        }
        self.allowed = allowed;
        self.tables.spare(maps, protected.connections.clone())?;
        self.protected = protected;
        Ok(())
    }

    pub fn row(&self, prefix: Prefix, origin: Origin, now: u64) -> BlockRow {
        let mut hits = self.met.get(&prefix).copied().unwrap_or_default();
        hits.add(self.tables.hits(List::Blocked, prefix).unwrap_or_default());
        let asked = self.asked.get(&prefix).filter(|_| matches!(origin, Origin::Asked(_)));
        let (rule, deadline) = match origin {
            Origin::Config(number) => {
                (self.config.entries[number as usize].rule.clone(), self.deadlines[number as usize])
            }
            Origin::File(number) => {
                let BlockFile { reason, .. } = &self.config.files[number as usize];
                (BlockRule { reason: reason.clone(), ..BlockRule::default() }, None)
            }
            Origin::Asked(_) => asked.map(|asked| (asked.rule.clone(), asked.until())).unwrap_or_default(),
        };
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        let age = u64::from(tick(now).wrapping_sub(hits.last)) * TICK_NANOSECONDS;
        BlockRow {
            prefix,
            source: match origin {
                Origin::Config(_) => "config".to_string(),
                Origin::Asked(_) | Origin::File(_) => self.place(origin),
            },
            reason: rule.reason,
            scope: rule.scope,
            is_unconfirmed: asked.is_some_and(|asked| asked.confirm_by.is_some()),
            expires_in: deadline.map(|deadline| seconds(deadline.saturating_sub(now))),
            packets: hits.packets,
            bytes: hits.bytes,
            last_seen: (hits.last != 0).then(|| seconds(age)),
        }
    }
}

fn marks<'a>(held: impl Iterator<Item = &'a Prefix>, allowed: &BTreeSet<Prefix>) -> Marks {
    let mut marks = Marks::new();
    held.for_each(|prefix| marks.add(List::Blocked, *prefix));
    allowed.iter().for_each(|prefix| marks.add(List::Allowed, *prefix));
    marks
}
