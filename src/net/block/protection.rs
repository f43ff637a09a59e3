//! What the list must never drop, brought into the kernel.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::abi::{List, SPARED};
use super::super::cidr::Prefix;
use super::apply::{MAX_SINGLE_CHANGES, marks};
use super::maps::{BlockMaps, Rule};
use super::protect::{Elsewhere, Protected};
use super::sessions::sessions;
use super::state::ListState;

/// Sessions that are protected in another namespace: a container may open any number, and must leave room for the
/// machine's own.
const MAX_SESSIONS_ELSEWHERE: usize = 256;

impl ListState {
    /// The allowlist of the configuration, and the protected addresses.
    pub fn reasons_to_pass(&self) -> impl Iterator<Item = (Prefix, String)> {
        let allowed = self.config.allow.iter().map(|prefix| (*prefix, "in network.block.allow".to_string()));
        let all = self.all_protected().flat_map(|(protected, place)| {
            protected.prefixes.iter().map(move |(prefix, why)| (*prefix, format!("protected ({why}{place})")))
        });
        // Loopback, for example, is protected in each namespace.
        let mut seen = BTreeSet::new();
        allowed.chain(all).filter(move |(prefix, _)| seen.insert(*prefix))
    }

    /// What is protected in each namespace, and its name as a continuation of a reason.
    fn all_protected(&self) -> impl Iterator<Item = (&Protected, &str)> {
        let elsewhere = self.elsewhere.values().map(|other| (&other.protected, other.name.as_str()));
        std::iter::once((&self.protected, "")).chain(elsewhere)
    }

    /// What is never dropped within a prefix, and why.
    pub fn exceptions(&self, prefix: Prefix) -> Vec<(Prefix, String)> {
        let peers = self.sessions.iter().map(|(peer, ..)| Prefix::new(*peer, 128));
        let sessions = peers.map(|peer| (peer, "its established SSH connections".to_string()));
        sessions.chain(self.reasons_to_pass()).filter(|(by, _)| prefix.contains(*by)).collect()
    }

    /// Whether the protected addresses were determined longer ago than `oldest`.
    pub fn is_update_due(&self, now: u64, oldest: Duration) -> bool {
        let age = self.protected_at.map(|looked| Duration::from_nanos(now.saturating_sub(looked)));
        age.is_none_or(|age| age >= oldest)
    }

    /// Applies the addresses that were found at this time.
    pub fn protect_found(&mut self, maps: &BlockMaps, found: Protected, now: u64) {
        if self.protected_at.is_some_and(|looked| looked > now) {
            // A newer result has been applied meanwhile.
            return;
        }
        self.protected_at = Some(now);
        found.log_new(&self.allowed, "");
        self.protected = found;
        self.protect_all(maps);
    }

    /// Applies what was found in another namespace; nothing if it is no longer counted in.
    pub fn protect_elsewhere(&mut self, maps: &BlockMaps, number: usize, found: Option<Elsewhere>) {
        match found {
            Some(found) => {
                found.protected.log_new(&self.allowed, &found.name);
                self.elsewhere.insert(number, found);
            }
            None => drop(self.elsewhere.remove(&number)),
        }
        self.protect_all(maps);
    }

    fn protect_all(&mut self, maps: &BlockMaps) {
        if let Err(error) = self.protect(maps) {
            self.errors += 1;
            log::error!("blocklist: failed to protect addresses: {error:#}");
        }
    }

    /// Brings what is protected, and the configuration's allowlist, into the kernel.
    pub fn protect(&mut self, maps: &BlockMaps) -> libbpf_rs::Result<()> {
        let protected = self.all_protected().flat_map(|(protected, _)| protected.prefixes.keys());
        let allowed: BTreeSet<Prefix> = self.config.allow.iter().chain(protected).copied().collect();
        let new: Vec<Prefix> = allowed.difference(&self.allowed).copied().collect();
        let gone: Vec<Prefix> = self.allowed.difference(&allowed).copied().collect();
        if new.len() > MAX_SINGLE_CHANGES || !self.tables.has_room(List::Allowed, new.len()) {
            let rules: Vec<_> = allowed.iter().map(|prefix| (*prefix, Rule::ALWAYS)).collect();
            self.tables.replace(maps, List::Allowed, &rules, &marks(self.held.keys(), &allowed))?;
        } else {
            for prefix in new {
                self.tables.set(maps, List::Allowed, prefix, Rule::ALWAYS)?;
            }
            for prefix in gone {
                self.tables.remove(maps, List::Allowed, prefix)?;
                self.marks_stale = true;
            }
        }
        self.allowed = allowed;
        Ok(())
    }

    /// Makes a change that may block more. The SSH connections that are established before it are protected first, and
    /// those opened meanwhile right after it.
    pub fn sparing_sessions<T>(&mut self, maps: &BlockMaps, change: impl FnOnce(&mut Self) -> T) -> T {
        self.protect_sessions(maps);
        let done = change(self);
        self.protect_sessions(maps);
        done
    }

    /// Protects the SSH connections that are established now.
    pub fn protect_sessions(&mut self, maps: &BlockMaps) {
        let own = sessions(&self.protected.ssh_ports).map(|mut found| {
            found.extend(self.protected.own_session);
            found
        });
        // Where they are not known, those that were protected before stay.
        let (mut found, mut failed) = match own {
            Ok(found) => (found, None),
            Err(err) => (self.sessions.clone(), Some(err)),
        };
        for other in self.elsewhere.values() {
            let room = MAX_SESSIONS_ELSEWHERE.min(SPARED.saturating_sub(found.len()));
            match other.namespace.run(|| sessions(&other.protected.ssh_ports)).and_then(|found| found) {
                Ok(more) => found.extend(more.into_iter().take(room)),
                Err(err) => failed = Some(err),
            }
        }
        match self.tables.spare(maps, found.clone()) {
            Ok(()) => self.sessions = found,
            Err(err) => failed = Some(std::io::Error::other(err)),
        }
        let was_unknown = std::mem::replace(&mut self.sessions_unknown, failed.is_some());
        if let (Some(err), false) = (failed, was_unknown) {
            log::warn!("blocklist: new SSH connections are not protected: failed to determine them: {err}");
        }
    }
}
