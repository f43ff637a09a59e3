//! The list of what is blocked, from all sources, and how it is kept in the kernel.
//!
//! Sources are the configuration, its files, and whoever asks at run time. A prefix is held once, for the first of these that
//! lists it, so that nobody takes away what another one has put there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::abi::{List, TICK_NANOSECONDS};
use super::super::cidr::Prefix;
use super::super::sys::monotonic;
use super::config::{BlockConfig, BlockEntry, BlockFile, BlockMode, BlockProtocol, BlockRule, BlockScope};
use super::file::{Read, WatchedFile};
use super::maps::{BlockMaps, Hits, Rule, Tables};
use super::marks::Marks;
use super::protect::Protected;

/// Changes that are made one by one; with more, the tables are made anew.
const FEW: usize = 1024;

/// How often what is protected is looked for, and how long ago that may have been when something is to be blocked.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_FIRST: Duration = Duration::from_secs(1);

/// The blocklist of a running exporter.
#[derive(Debug)]
pub struct Blocklist {
    maps: BlockMaps,
    state: Mutex<State>,
    /// For a scrape, which waits for nobody.
    summary: Mutex<Summary>,
}

/// Numbers for a scrape.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub enforce: bool,
    /// By source.
    pub entries: Vec<(String, u64)>,
    pub allowed: u64,
    pub spared: u64,
    /// Path, lines that were not understood, and whether the file could be read.
    pub files: Vec<(String, u64, bool)>,
    /// Changes that the kernel refused.
    pub errors: u64,
}

#[derive(Debug)]
struct State {
    config: BlockConfig,
    /// Until when each of the configuration's entries holds, by the monotonic clock.
    deadlines: Vec<Option<u64>>,
    files: Vec<WatchedFile>,
    asked: BTreeMap<Prefix, Asked>,
    protected: Protected,
    tables: Tables,
    held: BTreeMap<Prefix, Origin>,
    /// How many of them each origin has: the configuration, whoever asked, and each file.
    by_origin: Vec<u64>,
    allowed: BTreeSet<Prefix>,
    /// What rules met that are not in the kernel any more though their prefix is still listed.
    met: BTreeMap<Prefix, Hits>,
    /// Whether bits are set in the bitmaps that no entry needs.
    marks_stale: bool,
    looked: Option<u64>,
    errors: u64,
}

/// Blocked because somebody asked for it at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    rule: BlockRule,
    deadline: Option<u64>,
}

/// Whose entry it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Config(u32),
    File(u32),
    Asked,
}

/// Why the list is not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockError {
    /// It is not listed.
    Absent(Prefix),
    /// It is listed elsewhere: where.
    Elsewhere(Prefix, String),
    /// All its packets pass, because of this.
    Protected(Prefix, String),
    /// The kernel refuses.
    Kernel(String),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(prefix) => write!(f, "{prefix} is not in the blocklist"),
            Self::Elsewhere(prefix, place) => {
                write!(f, "{prefix} is listed in {place}; remove it there, or list it in network.block.allow")
            }
            Self::Protected(prefix, why) => write!(f, "{prefix} is never dropped: {why}"),
            Self::Kernel(error) => write!(f, "the kernel refused the change: {error}"),
        }
    }
}

impl std::error::Error for BlockError {}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Whether it was not listed before.
    pub is_new: bool,
    /// What within the prefix is never dropped, and why.
    pub except: Vec<(Prefix, String)>,
}

/// An entry to show. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockRow {
    pub prefix: Prefix,
    /// `config`, `api`, or the path of a file.
    pub source: String,
    pub reason: String,
    pub scope: Option<BlockScope>,
    /// How long it will hold.
    pub expires_in: Option<f64>,
    pub packets: u64,
    pub bytes: u64,
    /// How long ago the last packet came.
    pub last_seen: Option<f64>,
}

fn tick(nanoseconds: u64) -> u32 {
    // Zero is no tick.
    ((nanoseconds / TICK_NANOSECONDS) as u32).max(1)
}

fn deadline(rule: &BlockRule, now: u64) -> Option<u64> {
    rule.ttl.map(|ttl| now.saturating_add(ttl.as_nanos() as u64))
}

fn is_over(deadline: Option<u64>, now: u64) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

fn kernel_rule(prefix: Prefix, scope: Option<BlockScope>, deadline: Option<u64>) -> Rule {
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

impl Blocklist {
    /// Makes the maps and puts in what the configuration and its files list. In the thread's network namespace it is looked
    /// for what must not be blocked.
    ///
    /// # Errors
    /// If the kernel refuses: not permitted, or out of memory. What is wrong with files is logged.
    pub fn new(config: &BlockConfig) -> libbpf_rs::Result<Self> {
        let maps = BlockMaps::create()?;
        let tables = Tables::new(&maps)?;
        let state = State {
            config: BlockConfig::default(),
            deadlines: Vec::new(),
            files: Vec::new(),
            asked: BTreeMap::new(),
            protected: Protected::default(),
            tables,
            held: BTreeMap::new(),
            by_origin: Vec::new(),
            allowed: BTreeSet::new(),
            met: BTreeMap::new(),
            marks_stale: false,
            looked: None,
            errors: 0,
        };
        let list = Self { maps, state: Mutex::new(state), summary: Mutex::default() };
        list.apply_config(config)?;
        Ok(list)
    }

    /// The names of [`Self::shared`].
    pub const MAPS: [&'static str; 6] =
        [".bss.blocklist", ".bss.marks4", ".bss.marks6", "rules4", "rules6", "spared"];

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole entries.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The maps that programs are loaded with, by the names that they have there.
    pub fn shared(&self) -> [(&'static str, BorrowedFd<'_>); 6] {
        let mut maps = self.maps.shared();
        maps.sort_by_key(|(name, _)| *name);
        maps
    }

    pub(crate) fn summary(&self) -> Summary {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Blocks what another configuration says. What was asked for at run time stays.
    ///
    /// # Errors
    /// If the kernel refuses: then what was blocked before stays so.
    pub fn change(&self, config: &BlockConfig) -> libbpf_rs::Result<()> {
        self.apply_config(config)
    }

    fn apply_config(&self, config: &BlockConfig) -> libbpf_rs::Result<()> {
        let now = monotonic();
        let mut files: Vec<WatchedFile> = config.files.iter().map(WatchedFile::new).collect();
        {
            // Files that stay are not read again, and lose nothing if they cannot be read just now.
            let mut state = self.lock();
            for file in &mut files {
                if let Some(known) = state.files.iter_mut().find(|known| known.path == file.path) {
                    file.take_over(known);
                }
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
        let deadlines = config.entries.iter().map(|entry| deadline(&entry.rule, now));
        // Whoever is protected is so before anything is dropped.
        self.maps.set_own_ports(&own_ports);
        let deadlines = deadlines.collect();
        let config_now = BlockConfig { own_ports, ..config.clone() };
        let before = (
            std::mem::replace(&mut state.deadlines, deadlines),
            std::mem::replace(&mut state.config, config_now),
            std::mem::replace(&mut state.files, files),
        );
        state.looked = Some(now);
        let wanted = state.wanted(now);
        let done = state.protect(&self.maps, protected).and_then(|()| state.replace_all(&self.maps, wanted));
        if let Err(error) = done {
            (state.deadlines, state.config, state.files) = before;
            return Err(error);
        }
        self.maps.set_enforce(config.mode == BlockMode::Enforce);
        self.say(&state);
        self.note(&state);
        Ok(())
    }

    fn say(&self, state: &State) {
        let config = &state.config;
        let what = match config.mode {
            BlockMode::Enforce => "packets of its sources are dropped",
            BlockMode::Observe => "nothing is dropped (mode: observe)",
        };
        log::info!("blocklist: {} entries; {what}", state.held.len());
        state.protected.say(&config.own_ports);
    }

    /// Blocks a prefix from now on, as this says; again if it is blocked already.
    ///
    /// # Errors
    /// If it is protected, or the kernel refuses.
    pub fn block(&self, entry: &BlockEntry) -> Result<Blocked, BlockError> {
        let now = monotonic();
        let mut state = self.lock();
        state.look(&self.maps, now, LOOK_FIRST);
        let prefix = entry.prefix;
        if let Some((by, why)) = state.reasons_to_pass().find(|(by, _)| by.contains(prefix)) {
            return Err(BlockError::Protected(prefix, format!("{by} is {why}")));
        }
        let except = state.reasons_to_pass().filter(|(by, _)| prefix.contains(*by)).collect();
        let asked = Asked { rule: entry.rule.clone(), deadline: deadline(&entry.rule, now) };
        let rule = kernel_rule(prefix, entry.rule.scope, asked.deadline);
        let (is_new, is_ours) = match state.held.get(&prefix) {
            None => (true, true),
            Some(Origin::Asked) => (false, true),
            Some(_) => (false, false),
        };
        if is_ours {
            let done = state.set(&self.maps, prefix, Origin::Asked, rule);
            if let Err(error) = done {
                state.errors += 1;
                self.note(&state);
                return Err(BlockError::Kernel(format!("{error:#}")));
            }
        }
        state.asked.insert(prefix, asked);
        self.note(&state);
        Ok(Blocked { is_new, except })
    }

    /// Blocks a prefix no longer, if somebody asked for it at run time.
    ///
    /// # Errors
    /// If it is not listed, or by the configuration or a file; or the kernel refuses.
    pub fn unblock(&self, prefix: Prefix) -> Result<(), BlockError> {
        let mut state = self.lock();
        let was_asked = state.asked.remove(&prefix).is_some();
        let done = match state.held.get(&prefix).copied() {
            None => Err(BlockError::Absent(prefix)),
            Some(Origin::Asked) => {
                state.unset(&self.maps, prefix).map_err(|error| BlockError::Kernel(format!("{error:#}")))
            }
            Some(origin) => {
                let place = state.place(origin);
                let place = if was_asked { format!("{place} too") } else { place };
                Err(BlockError::Elsewhere(prefix, place))
            }
        };
        self.note(&state);
        done
    }

    /// What is to be done from time to time: entries whose time is over are taken away, files that have changed are read, and
    /// what is protected is looked for. In the thread's network namespace.
    pub fn attend(&self) {
        let now = monotonic();
        // Files are read without the lock.
        let mut looks: Vec<(usize, WatchedFile, Read)> = Vec::new();
        let files: Vec<WatchedFile> = self.lock().files.iter().map(WatchedFile::without_entries).collect();
        for (number, mut file) in files.into_iter().enumerate() {
            let read = file.look();
            if read != Read::Same {
                looks.push((number, file, read));
            }
        }
        let mut state = self.lock();
        let (mut changed, mut is_news) = (false, !looks.is_empty());
        for (number, file, read) in looks {
            if let Some(known) = state.files.get_mut(number).filter(|known| known.path == file.path) {
                changed |= read == Read::New;
                known.update(file, read);
            }
        }
        is_news |= state.look(&self.maps, now, LOOK);
        let asked = state.asked.len();
        state.asked.retain(|_, asked| !is_over(asked.deadline, now));
        if changed || state.asked.len() < asked || state.has_over(now) {
            is_news = true;
            let wanted = state.wanted(now);
            if let Err(error) = state.fit(&self.maps, wanted) {
                state.errors += 1;
                log::error!("blocklist: the kernel refused a change: {error:#}");
            }
        }
        if std::mem::take(&mut state.marks_stale) {
            self.maps.set_marks(&state.marks());
        }
        if is_news {
            self.note(&state);
        }
    }

    /// Puts down what a scrape is shown.
    fn note(&self, state: &State) {
        let names = ["config".to_string(), "api".to_string()].into_iter();
        let names = names.chain(state.files.iter().map(|file| file.path.display().to_string()));
        let files = state
            .files
            .iter()
            .map(|file| (file.path.display().to_string(), file.invalid as u64, file.error.is_none()));
        let summary = Summary {
            enforce: state.config.mode == BlockMode::Enforce,
            entries: names.zip(state.by_origin.iter().copied()).collect(),
            allowed: state.allowed.len() as u64,
            spared: state.protected.connections.len() as u64,
            files: files.collect(),
            errors: state.errors,
        };
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner) = summary;
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Whether nothing is blocked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the entries, in their order: so many, from this one on.
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

impl State {
    /// What is to be blocked by all sources.
    fn wanted(&self, now: u64) -> BTreeMap<Prefix, Origin> {
        let mut wanted: BTreeMap<Prefix, Origin> = BTreeMap::new();
        let asked = self.asked.iter().filter(|(_, asked)| !is_over(asked.deadline, now));
        wanted.extend(asked.map(|(prefix, _)| (*prefix, Origin::Asked)));
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
    fn has_over(&self, now: u64) -> bool {
        self.config.entries.iter().zip(&self.deadlines).zip(0..).any(|((entry, deadline), number)| {
            is_over(*deadline, now) && self.held.get(&entry.prefix) == Some(&Origin::Config(number))
        })
    }

    fn count(&mut self, origin: Origin) -> &mut u64 {
        let at = match origin {
            Origin::Config(_) => 0,
            Origin::Asked => 1,
            Origin::File(number) => 2 + number as usize,
        };
        if self.by_origin.len() < 2 + self.files.len() {
            self.by_origin.resize(2 + self.files.len(), 0);
        }
        &mut self.by_origin[at]
    }

    fn rule(&self, prefix: Prefix, origin: Origin) -> Rule {
        match origin {
            Origin::Config(number) => {
                let (entry, deadline) =
                    (&self.config.entries[number as usize], self.deadlines[number as usize]);
                kernel_rule(prefix, entry.rule.scope, deadline)
            }
            Origin::File(_) => Rule::default(),
            Origin::Asked => match self.asked.get(&prefix) {
                Some(asked) => kernel_rule(prefix, asked.rule.scope, asked.deadline),
                None => Rule::default(),
            },
        }
    }

    fn place(&self, origin: Origin) -> String {
        match origin {
            Origin::Config(_) => "network.block.entries".to_string(),
            Origin::File(number) => self.files[number as usize].path.display().to_string(),
            Origin::Asked => "the API".to_string(),
        }
    }

    fn marks(&self) -> Marks {
        marks(self.held.keys(), &self.allowed)
    }

    /// Holds these and nothing else, with the fewest changes.
    fn fit(&mut self, maps: &BlockMaps, wanted: BTreeMap<Prefix, Origin>) -> libbpf_rs::Result<()> {
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

    fn set(&mut self, maps: &BlockMaps, prefix: Prefix, origin: Origin, rule: Rule) -> libbpf_rs::Result<()> {
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

    fn unset(&mut self, maps: &BlockMaps, prefix: Prefix) -> libbpf_rs::Result<()> {
        self.tables.remove(maps, List::Blocked, prefix)?;
        if let Some(before) = self.held.remove(&prefix) {
            *self.count(before) -= 1;
        }
        self.met.remove(&prefix);
        self.marks_stale = true;
        Ok(())
    }

    fn replace_all(&mut self, maps: &BlockMaps, wanted: BTreeMap<Prefix, Origin>) -> libbpf_rs::Result<()> {
        let rules: Vec<_> =
            wanted.iter().map(|(prefix, origin)| (*prefix, self.rule(*prefix, *origin))).collect();
        let marks = marks(wanted.keys(), &self.allowed);
        let met = self.tables.replace(maps, List::Blocked, &rules, &marks)?;
        for (prefix, hits) in met {
            self.met.entry(prefix).or_default().add(hits);
        }
        self.met.retain(|prefix, _| wanted.contains_key(prefix));
        self.by_origin = vec![0; 2 + self.files.len()];
        wanted.values().for_each(|origin| *self.count(*origin) += 1);
        self.held = wanted;
        self.marks_stale = false;
        Ok(())
    }

    /// What is never dropped by the configuration, and what was found.
    fn reasons_to_pass(&self) -> impl Iterator<Item = (Prefix, String)> {
        let allowed = self.config.allow.iter().map(|prefix| (*prefix, "in network.block.allow".to_string()));
        allowed.chain(
            self.protected.prefixes.iter().map(|(prefix, why)| (*prefix, format!("protected ({why})"))),
        )
    }

    /// Looks for what must not be blocked if that was not done just now; whether it was.
    fn look(&mut self, maps: &BlockMaps, now: u64, oldest: Duration) -> bool {
        let age = self.looked.map(|looked| Duration::from_nanos(now.saturating_sub(looked)));
        if age.is_some_and(|age| age < oldest) {
            return false;
        }
        self.looked = Some(now);
        if let Err(error) = self.protect(maps, Protected::find()) {
            self.errors += 1;
            log::error!("blocklist: the kernel refused to protect addresses: {error:#}");
        }
        true
    }

    fn protect(&mut self, maps: &BlockMaps, protected: Protected) -> libbpf_rs::Result<()> {
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

    fn row(&self, prefix: Prefix, origin: Origin, now: u64) -> BlockRow {
        let mut hits = self.tables.hits(List::Blocked, prefix).unwrap_or_default();
        let last = hits.last;
        if let Some(met) = self.met.get(&prefix) {
            hits.add(*met);
            hits.last = if last == 0 { met.last } else { last };
        }
        let (rule, deadline) = match origin {
            Origin::Config(number) => {
                (self.config.entries[number as usize].rule.clone(), self.deadlines[number as usize])
            }
            Origin::File(number) => {
                let BlockFile { reason, .. } = &self.config.files[number as usize];
                (BlockRule { reason: reason.clone(), ..BlockRule::default() }, None)
            }
            Origin::Asked => {
                self.asked.get(&prefix).map(|asked| (asked.rule.clone(), asked.deadline)).unwrap_or_default()
            }
        };
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        let age = u64::from(tick(now).wrapping_sub(hits.last)) * TICK_NANOSECONDS;
        BlockRow {
            prefix,
            source: match origin {
                Origin::Config(_) => "config".to_string(),
                Origin::Asked => "api".to_string(),
                Origin::File(_) => self.place(origin),
            },
            reason: rule.reason,
            scope: rule.scope,
            expires_in: deadline.map(|deadline| seconds(deadline.saturating_sub(now))),
            packets: hits.packets,
            bytes: hits.bytes,
            last_seen: (hits.last != 0).then(|| seconds(age)),
        }
    }
}

fn marks<'a>(held: impl Iterator<Item = &'a Prefix>, allowed: &BTreeSet<Prefix>) -> Marks {
    let mut marks = Marks::new();
    held.for_each(|prefix| marks.blocked(*prefix));
    allowed.iter().for_each(|prefix| marks.allowed(*prefix));
    marks
}
