//! The blocklist: entries of all sources, and their state in the kernel.
//!
//! Sources are the configuration, its files, and requests at run time. A prefix belongs to the first source in this
//! order that lists it, so that no source removes an entry of another one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::cidr::Prefix;
use super::super::namespace::Namespace;
use super::super::sys::monotonic;
use super::alerts::Alerts;
use super::config::{BlockConfig, BlockMode};
use super::entry::{BlockRow, Source};
use super::file::{Read, WatchedFile};
use super::followed::{Followers, fetched};
use super::kept::KeptFile;
use super::maps::BlockMaps;
use super::protect::{Elsewhere, Protected};
use super::rules::RuleTables;
use super::sources::Sources;
use super::state::{ListState, Requested, deadline, has_expired};
use super::summary::Summary;

/// How often the protected addresses are determined, and how old they may be when something is to be blocked.
pub(in super::super) const PROTECTED_INTERVAL: Duration = Duration::from_secs(5);
const PROTECTED_MAX_AGE: Duration = Duration::from_secs(1);

/// The blocklist of a running exporter.
#[derive(Debug)]
pub struct Blocklist {
    pub(super) maps: BlockMaps,
    /// Held while requested entries change, so that the file records changes in their order. Locked before the state.
    pub(super) store: Mutex<Option<KeptFile>>,
    state: Mutex<ListState>,
    /// What a scrape reads, without waiting for the state's lock.
    pub(super) summary: Mutex<Summary>,
    pub(super) followers: Mutex<Followers>,
    /// Bans to be reported to CrowdSec.
    alerts: Mutex<Alerts>,
    /// Whether saving decisions failed the last time.
    pub(super) has_unsaved_decisions: Mutex<bool>,
}

impl Blocklist {
    /// Creates the maps and adds the entries of the configuration and its files. Protected addresses are determined in
    /// the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory. Errors in files are logged.
    pub fn new(config: &BlockConfig) -> libbpf_rs::Result<Self> {
        let maps = BlockMaps::create()?;
        let tables = RuleTables::new(&maps)?;
        let (store, kept) = config.file.as_deref().map(KeptFile::open).unzip();
        let now = monotonic();
        let asked = kept.into_iter().flatten().map(|entry| Requested::restored(entry, now));
        let mut state = ListState {
            config: BlockConfig::default(),
            deadlines: Vec::new(),
            files: Vec::new(),
            file_sources: Vec::new(),
            decided: BTreeMap::new(),
            feeds: BTreeMap::new(),
            asked: asked.collect(),
            protected: Protected::default(),
            elsewhere: BTreeMap::new(),
            sessions: BTreeSet::new(),
            sessions_unknown: false,
            tables,
            held: BTreeMap::new(),
            sources: Sources::new(),
            by_source: Vec::new(),
            allowed: BTreeSet::new(),
            carried_hits: BTreeMap::new(),
            marks_stale: false,
            protected_at: None,
            errors: 0,
            unread: 0,
        };
        state.restore_decisions(config, now);
        let summary = Summary { is_kept: store.as_ref().map(KeptFile::is_current), ..Summary::default() };
        let list = Self {
            maps,
            store: Mutex::new(store),
            state: Mutex::new(state),
            summary: Mutex::new(summary),
            followers: Mutex::default(),
            alerts: Mutex::default(),
            has_unsaved_decisions: Mutex::default(),
        };
        list.change(config)?;
        Ok(list)
    }

    /// The names in [`Self::shared`].
    pub const MAPS: [&'static str; 7] =
        [".bss.blocklist", ".bss.marks4", ".bss.marks6", "block_sources", "rules4", "rules6", "spared"];

    pub(super) fn lock(&self) -> MutexGuard<'_, ListState> {
        // Entries are whole at any time, even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn alerts(&self) -> MutexGuard<'_, Alerts> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The maps that programs share, by their names in the object.
    pub fn shared(&self) -> [(&'static str, BorrowedFd<'_>); 7] {
        let mut maps = self.maps.shared();
        maps.sort_by_key(|(name, _)| *name);
        maps
    }

    /// Numbers for a scrape.
    pub(crate) fn summary(&self) -> Summary {
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let numbers = std::mem::take(&mut summary.numbers).into_iter();
        if summary.is_told {
            summary.alerts = Some(self.alerts().numbers());
        }
        summary.packets = numbers.map(|(number, source)| (source, self.maps.of_source(number))).collect();
        summary
    }

    /// Applies another configuration. Entries added at run time stay.
    ///
    /// # Errors
    /// If the kernel refuses; the previous configuration stays in effect.
    pub fn change(&self, config: &BlockConfig) -> libbpf_rs::Result<()> {
        let now = monotonic();
        let mut files: Vec<WatchedFile> = config.files.iter().map(WatchedFile::new).collect();
        let ages = fetched(config, &mut files);
        // Files that were configured before are not read again, and keep their entries if they are unreadable at the
        // moment.
        for file in &mut files {
            let state = self.lock();
            let known = state.files.iter().find(|known| known.path == file.path && known.name == file.name);
            if let Some(known) = known {
                let reason = std::mem::replace(file, known.clone()).reason;
                file.reason = reason;
            }
        }
        files.iter_mut().for_each(WatchedFile::read_first);
        let protected = Protected::find();
        let mut state = self.lock();
        let own_ports = if config.own_ports.is_empty() {
            state.config.own_ports.clone()
        } else {
            config.own_ports.clone()
        };
        let deadlines = config.entries.iter().map(|entry| deadline(&entry.rule, now)).collect();
        // Protected addresses come first, before anything is dropped.
        self.maps.set_own_ports(&own_ports);
        let config_now = BlockConfig { own_ports, ..config.clone() };
        let sources = files.iter().map(|file| Source::named(file.name.clone()));
        let file_sources = sources.map(|source| state.sources.number(source)).collect();
        let decided = match config.crowdsec {
            Some(_) => state.decided.clone(),
            None => BTreeMap::new(),
        };
        let before = (
            std::mem::replace(&mut state.deadlines, deadlines),
            std::mem::replace(&mut state.config, config_now),
            std::mem::replace(&mut state.files, files),
            std::mem::replace(&mut state.file_sources, file_sources),
            std::mem::replace(&mut state.decided, decided),
        );
        state.protected_at = Some(now);
        let wanted = state.wanted(now);
        state.protected = protected;
        let done = state.protect(&self.maps);
        let done = done.and_then(|()| {
            state.sparing_sessions(&self.maps, |state| {
                state.replace_all(&self.maps, wanted, now)?;
                self.maps.set_enforce(config.mode == BlockMode::Enforce);
                Ok(())
            })
        });
        if let Err(error) = done {
            (state.deadlines, state.config, state.files, state.file_sources, state.decided) = before;
            return Err(error);
        }
        state.retain_feeds(config, ages, now);
        self.log(&state);
        self.publish(&state);
        Ok(())
    }

    fn log(&self, state: &ListState) {
        let config = &state.config;
        let what = match config.mode {
            BlockMode::Enforce => "packets of its sources are dropped",
            BlockMode::Observe => "nothing is dropped (mode: observe)",
        };
        let entries = if state.held.len() == 1 { "entry" } else { "entries" };
        log::info!("blocklist: {} {entries}; {what}", state.held.len());
        state.protected.log(&config.own_ports, &state.sessions);
    }

    /// Determines the protected addresses if they were last determined longer ago than `oldest`. It reads files and
    /// kernel tables, so no lock is held meanwhile.
    fn find_protected(&self, now: u64, oldest: Duration) -> Option<Protected> {
        let is_due = self.lock().is_update_due(now, oldest);
        is_due.then(Protected::find)
    }

    /// Locks what is stored, and then the list: its protected addresses were determined at most a moment ago, so that
    /// something may be blocked.
    pub(super) fn lock_protected(
        &self,
        now: u64,
    ) -> (MutexGuard<'_, Option<KeptFile>>, MutexGuard<'_, ListState>) {
        let found = self.find_protected(now, PROTECTED_MAX_AGE);
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        (store, self.lock_with(found, now))
    }

    /// Locks the list, and applies the protected addresses that were found at this time, if they were determined.
    fn lock_with(&self, found: Option<Protected>, now: u64) -> MutexGuard<'_, ListState> {
        let mut state = self.lock();
        if let Some(found) = found {
            state.protect_found(&self.maps, found, now);
        }
        state
    }

    /// Determines the protected addresses now, because something changed that they depend on. In the calling thread's
    /// network namespace.
    pub fn update_protected(&self) {
        let now = monotonic();
        let state = self.lock_with(Some(Protected::find()), now);
        self.publish(&state);
    }

    /// Determines what is protected in another namespace, in which the calling thread is: before its interfaces are
    /// counted, after changes, and from time to time. `name` is how the configuration calls it.
    pub(in super::super) fn protect_in(&self, number: usize, name: &str, namespace: &Arc<Namespace>) {
        let protected = Protected::find_in(namespace);
        let (name, namespace) = (format!(" in {name}"), Arc::clone(namespace));
        let found = Elsewhere { name, namespace, protected };
        let mut state = self.lock();
        let is_new = !state.elsewhere.contains_key(&number);
        state.protect_elsewhere(&self.maps, number, Some(found));
        // Afterwards, those of all namespaces are determined together.
        if is_new {
            state.protect_sessions(&self.maps);
        }
        self.publish(&state);
    }

    /// Ends the protection of what another namespace depends on, and releases it.
    pub(in super::super) fn leave(&self, number: usize) {
        let mut state = self.lock();
        state.protect_elsewhere(&self.maps, number, None);
        self.publish(&state);
    }

    /// Periodic maintenance: removes expired entries, reads files that have changed, and determines the protected
    /// addresses. In the calling thread's network namespace.
    pub fn maintain(&self) {
        let now = monotonic();
        // Files are read without holding the lock.
        let mut looks: Vec<(usize, WatchedFile, Read)> = Vec::new();
        let files: Vec<WatchedFile> = self.lock().files.iter().map(WatchedFile::without_entries).collect();
        for (number, mut file) in files.into_iter().enumerate() {
            let read = file.check();
            if read != Read::Same {
                looks.push((number, file, read));
            }
        }
        // Protected addresses must be current before anything else is blocked.
        let found =
            self.find_protected(now, if looks.is_empty() { PROTECTED_INTERVAL } else { PROTECTED_MAX_AGE });
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        let (mut changed, mut is_news) = (false, !looks.is_empty() || found.is_some());
        for (number, file, read) in looks {
            if let Some(known) = state.files.get_mut(number).filter(|known| known.path == file.path) {
                changed |= read == Read::New;
                known.update(file, read);
            }
        }
        if let Some(found) = found {
            state.protect_found(&self.maps, found, now);
            state.protect_sessions(&self.maps);
        }
        let over = state.asked.iter().filter(|(_, asked)| has_expired(asked.until(), now));
        let over: Vec<Prefix> = over.map(|(prefix, _)| *prefix).collect();
        state.asked.retain(|_, asked| !has_expired(asked.until(), now));
        let mut touched = state.over(now);
        touched.extend(over.iter().copied());
        if changed || !touched.is_empty() {
            is_news = true;
            let done = state.sparing_sessions(&self.maps, |state| {
                if changed {
                    let wanted = state.wanted(now);
                    state.apply(&self.maps, wanted, now)
                } else {
                    state.refresh(&self.maps, &touched, now)
                }
            });
            state.count_failure(done);
        }
        if std::mem::take(&mut state.marks_stale) {
            self.maps.set_marks(&state.marks());
        }
        if is_news {
            self.publish(&state);
        }
        drop(state);
        let Some(file) = &mut *store else { return };
        if file.is_due() {
            self.catch_up(file);
        } else if file.is_current() && !over.is_empty() {
            self.record_stored(file.change(|| self.stored_entries(), |store| store.remove(&over)));
        }
    }

    /// Tries again to store entries in a file that could not be opened or written, and blocks what was in it.
    fn catch_up(&self, file: &mut KeptFile) {
        let Ok(found) = file.reopen() else { return };
        if !found.is_empty() {
            let now = monotonic();
            let mut state = self.lock_with(self.find_protected(now, PROTECTED_MAX_AGE), now);
            for (prefix, entry) in found.into_iter().map(|entry| Requested::restored(entry, now)) {
                state.asked.entry(prefix).or_insert(entry);
            }
            let wanted = state.wanted(now);
            let done = state.sparing_sessions(&self.maps, |state| state.apply(&self.maps, wanted, now));
            state.count_failure(done);
            self.publish(&state);
        }
        if file.change(|| self.stored_entries(), |_| Ok(())).is_ok() {
            log::info!("blocklist: entries added at run time are stored again");
            self.record_stored(Ok(()));
        }
    }

    /// Updates the summary that a scrape reads.
    pub(super) fn publish(&self, state: &ListState) {
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        *summary = Summary::of(state, summary.is_kept);
    }

    /// Whether packets are dropped.
    pub fn is_enforced(&self) -> bool {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner).enforce
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Whether nothing is blocked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `count` entries in order of prefixes, beginning with number `first`.
    pub fn rows(&self, first: usize, count: usize) -> Vec<BlockRow> {
        let (now, state) = (monotonic(), self.lock());
        state
            .held
            .iter()
            .skip(first)
            .take(count)
            .map(|(prefix, origin)| state.row(*prefix, *origin, now))
            .collect()
    }

    /// One entry.
    pub fn row(&self, prefix: Prefix) -> Option<BlockRow> {
        let (now, state) = (monotonic(), self.lock());
        state.held.get(&prefix).map(|origin| state.row(prefix, *origin, now))
    }
}
