//! Threads that attach in each network namespace, and everything that is asked of what is there.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::attribution::Attribution;
use super::block::{self, BlockRow, Blocklist};
use super::cidr::Prefix;
use super::collect::{TopSource, families};
use super::config::{NetworkConfig, Scope, Space};
use super::counter_maps::CounterMaps;
use super::detect::{Detection, Detections};
use super::error::NetworkError;
use super::event::Event;
use super::hook::Hook;
use super::pinned_spaces::forget_others;
use super::query::{FlowRow, Query, QueryError, TalkerRow, tcp_state};
use super::refusal::Refusal;
use super::selection::InterfaceSelection;
use super::sockets::tcp_connections;
use super::stack::Stack;
use super::status::{NetworkStatus, labels};
use super::sys::monotonic;
use super::tables::{self, read_flows, read_talkers, unix_seconds};
use super::totals;
use super::traffic::TrafficReader;
use super::visit::{Reporter, Stop, Visit};
use crate::clock::unix_now;
use crate::exposition::Family;
use crate::pins::PinDir;

/// How often the blocklist and the names of control groups are looked after.
const ATTEND: Duration = Duration::from_secs(1);

/// From one look at what is protected to the next, at least.
const SETTLE: Duration = Duration::from_millis(100);

/// Entries of a blocklist that are read to find those that are hit most.
const MOST_LOOKED_AT: usize = 4096;

/// The packet counters of a running exporter. Dropping it detaches all programs that are not pinned.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    counter_maps: Arc<CounterMaps>,
    status: Arc<NetworkStatus>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
    /// In the order of the configuration's scopes.
    selections: Vec<Arc<InterfaceSelection>>,
    stack: Option<Stack>,
    attribution: Option<Arc<Attribution>>,
}

impl Network {
    /// Attaches to all configured interfaces that are there, and starts a thread for each network namespace that watches for
    /// others. `tell` is called with everything worth a log line, from this thread first and from those later.
    ///
    /// Must be called in the network namespace that is meant, with `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`, for other
    /// namespaces `CAP_SYS_ADMIN` too. They are needed as long as interfaces are to be attached to that appear later.
    ///
    /// # Errors
    /// If the kernel makes no tables, does not list its interfaces, or there is no thread. An interface that refuses is no
    /// error: it is told, exported, and tried again.
    pub fn start(
        config: NetworkConfig,
        report: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, NetworkError> {
        Self::start_in(config, PinDir::default(), report)
    }

    /// As [`Network::start`], with all that is in the kernel pinned in a directory; goes on with what an earlier exporter has left
    /// there.
    ///
    /// # Errors
    /// As [`Network::start`].
    pub(crate) fn start_in(
        config: NetworkConfig,
        pins: PinDir,
        report: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, NetworkError> {
        let block = config.block.as_ref().map(Blocklist::new).transpose().map_err(NetworkError::Blocklist)?;
        let block = block.map(Arc::new);
        let counter_maps = CounterMaps::create(&config.count, block.clone(), pins).map_err(|source| {
            let bytes = tables::memory(&config.count, libbpf_rs::num_possible_cpus().unwrap_or(1));
            NetworkError::Tables { bytes, source }
        })?;
        let event = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| NetworkError::Eventfd(error.into()))?;
        let stack = Stack::load(&config.count, &counter_maps.pins).map_err(NetworkError::Stack)?;
        let attribution = Attribution::load(&config.count).map_err(NetworkError::Attribution)?.map(Arc::new);
        let scopes = config.scopes();
        forget_others(&counter_maps, &scopes.iter().map(|scope| &scope.space).collect::<Vec<_>>());
        let mut network = Self {
            stack,
            attribution: attribution.clone(),
            status: Arc::default(),
            stop: Arc::new(Stop { asked: AtomicBool::new(false), event }),
            threads: Vec::new(),
            selections: Vec::new(),
            counter_maps,
            config,
        };
        let report: Reporter = Arc::new(Mutex::new(report));
        for (number, scope) in scopes.into_iter().enumerate() {
            network.watch(number, scope, &report)?;
        }
        if let Some(block) = block {
            block.follow();
            network.attend_blocklist(block)?;
        }
        if let Some(attribution) = attribution {
            network.attend("attribution", ATTEND, move || attribution.attend())?;
        }
        Ok(network)
    }

    /// Starts a thread that looks after the blocklist every so often, and after what is protected as soon as that changes.
    fn attend_blocklist(&mut self, block: Arc<Blocklist>) -> Result<(), NetworkError> {
        let stop = Arc::clone(&self.stop);
        let changes = block::ProtectedChanges::listen();
        if let Err(err) = &changes {
            log::warn!(
                "blocklist: changes to protected addresses are noticed only after some seconds: {err}"
            );
        }
        let thread = std::thread::Builder::new().name("blocklist".to_string()).spawn(move || {
            let fds = changes.as_ref().map(|changes| changes.fds().to_vec()).unwrap_or_default();
            let mut next = Instant::now() + ATTEND;
            while !stop.wait_for_any(&fds, next.saturating_duration_since(Instant::now())) {
                if changes.as_ref().is_ok_and(|changes| changes.take()) {
                    block.look_again();
                    // However often they change.
                    stop.wait_for(SETTLE);
                }
                if Instant::now() >= next {
                    block.attend();
                    next = Instant::now() + ATTEND;
                }
            }
        });
        self.threads.push(thread.map_err(NetworkError::Thread)?);
        Ok(())
    }

    /// Starts a thread that looks after something every so often.
    fn attend(
        &mut self,
        name: &str,
        every: Duration,
        mut look: impl FnMut() + Send + 'static,
    ) -> Result<(), NetworkError> {
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::Builder::new().name(name.to_string()).spawn(move || {
            while !stop.wait_for(every) {
                look();
            }
        });
        self.threads.push(thread.map_err(NetworkError::Thread)?);
        Ok(())
    }

    /// What detection looks at.
    pub(crate) fn traffic(&self) -> TrafficReader {
        let (counter_maps, status) = (Arc::clone(&self.counter_maps), Arc::clone(&self.status));
        TrafficReader { counter_maps, status }
    }

    /// Has detection look at what is counted here, and bans put on the list, if there is one. In the thread's network namespace.
    pub fn detect(&self, detections: &Detections, report: impl Fn(Detection) + Send + 'static) {
        let traffic = self.traffic();
        detections.start(self.blocklist().cloned(), move |wanted| traffic.read(wanted), report);
    }

    /// The list of what is blocked, if there is one.
    pub fn blocklist(&self) -> Option<&Arc<Blocklist>> {
        self.counter_maps.block.as_ref()
    }

    fn watch(&mut self, number: usize, scope: Scope, report: &Reporter) -> Result<(), NetworkError> {
        let space = scope.space.clone();
        let selection = Arc::new(InterfaceSelection::new(scope));
        self.selections.push(Arc::clone(&selection));
        let visit = Visit {
            labels: labels(&space),
            space,
            selection,
            number,
            config: self.config.clone(),
            counter_maps: Arc::clone(&self.counter_maps),
            status: Arc::clone(&self.status),
            stop: Arc::clone(&self.stop),
            report: Arc::clone(report),
        };
        let here = if visit.space == Space::Own {
            // Before this returns, so that what comes from now on is counted.
            Some(visit.begin().map_err(NetworkError::Begin)?)
        } else {
            visit.absent("not looked for yet");
            None
        };
        let thread = std::thread::Builder::new()
            .name("network".to_string())
            .spawn(move || match here {
                Some(follower) => visit.stay(follower, &|| true),
                None => visit.come_and_go(),
            })
            .map_err(NetworkError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Counts on the interfaces of another configuration, which differs in nothing else ([`NetworkConfig::differs_in`]). Counters
    /// of those that are in both go on. Returns when they have been looked for.
    ///
    /// # Errors
    /// If the kernel refuses to block what is to be blocked now: what was blocked before stays so.
    pub fn change(&self, config: &NetworkConfig) -> libbpf_rs::Result<()> {
        let scopes = config.scopes();
        self.selections.iter().zip(scopes).for_each(|(selection, scope)| selection.change(scope));
        self.selections.iter().for_each(|selection| selection.wait());
        match (self.blocklist(), &config.block) {
            (Some(list), Some(wanted)) => list.change(wanted).map(|()| list.follow()),
            _ => Ok(()),
        }
    }

    /// All metrics, now. Reads a few maps for each interface; of talkers, only if top sources are asked for.
    pub fn collect(&self) -> Vec<Family> {
        let connections = self.config.count.tcp_connections.then(tcp_connections).and_then(Result::ok);
        let mut all = families(
            &self.config.count,
            &self.status.readings(),
            &self.top_sources(),
            connections.as_ref().map(|counts| &counts[..]),
            self.counter_maps.strays(),
            self.blocklist().map(|block| block.summary()).as_ref(),
        );
        all.extend(self.stack.iter().flat_map(Stack::families));
        all.extend(self.attribution.iter().flat_map(|attribution| attribution.families()));
        all
    }

    /// Interfaces that are counted on: name, and where what comes in is counted.
    pub fn attached(&self) -> Vec<(String, Option<Hook>)> {
        self.status.all().iter().map(|interface| (interface.name.clone(), interface.hook)).collect()
    }

    /// What is not attached though it should be, in words.
    pub fn refusals(&self) -> Vec<Refusal> {
        let all = self.status.all();
        all.iter()
            .flat_map(|interface| interface.refusals.iter().map(|(_, refusal)| refusal.clone()))
            .collect()
    }

    /// Why not everything is counted that the configuration names; nothing if it is.
    pub fn not_ready(&self) -> Vec<String> {
        self.status.not_ready()
    }

    /// The remote hosts with most bytes, the first first; none if talkers are not counted.
    pub fn top_talkers(&self, most: usize) -> Vec<TalkerRow> {
        let mut rows = self.talker_rows();
        rows.sort_by_key(|row| (std::cmp::Reverse(row.bytes), row.address));
        rows.truncate(most);
        rows
    }

    /// The blocked sources that came most, the first first. None of a list with more than [`MOST_LOOKED_AT`] entries: each is read
    /// from the kernel.
    pub(crate) fn busiest_blocked(&self, most: usize) -> Vec<BlockRow> {
        let Some(list) = self.blocklist().filter(|list| list.len() <= MOST_LOOKED_AT) else {
            return Vec::new();
        };
        let mut rows = list.rows(0, MOST_LOOKED_AT);
        rows.retain(|row| row.packets > 0);
        rows.sort_by_key(|row| (std::cmp::Reverse(row.packets), row.prefix));
        rows.truncate(most);
        rows
    }

    /// The answer to `/api/v1/talkers?query`, JSON.
    ///
    /// # Errors
    /// If the query is not understood: an error of the request.
    pub fn talkers(&self, query: &str) -> Result<String, QueryError> {
        Ok(Query::parse(query)?.answer(self.talker_rows()))
    }

    /// The answer to `/api/v1/flows?query`, JSON.
    ///
    /// # Errors
    /// If the query is not understood: an error of the request.
    pub fn flows(&self, query: &str) -> Result<String, QueryError> {
        Ok(Query::parse(query)?.answer(self.flow_rows()))
    }

    /// The answer to `/api/v1/stats`, JSON.
    ///
    /// # Errors
    /// If there is a query.
    pub fn statistics(&self, query: &str) -> Result<String, QueryError> {
        if !query.is_empty() {
            return Err(QueryError("there are no parameters".to_string()));
        }
        let blocked = self.blocklist().map(|block| block.summary());
        Ok(totals::shown(&self.status.readings(), blocked.as_ref()))
    }

    /// The answer to `/api/v1/blocklist?query`, JSON.
    ///
    /// # Errors
    /// If the query is not understood: an error of the request.
    pub fn blocked(&self, query: &str) -> Result<String, QueryError> {
        let nothing = || QueryError("network.block is not configured".to_string());
        block::page(self.blocklist().ok_or_else(nothing)?, query)
    }

    /// The answer to `/api/v1/blocklist/PREFIX`, JSON; `None` if the prefix is not listed.
    pub fn blocked_entry(&self, prefix: Prefix) -> Option<String> {
        block::entry(self.blocklist()?, prefix)
    }

    /// Labels of interfaces by id.
    fn interfaces(&self) -> BTreeMap<u32, Vec<(&'static str, String)>> {
        self.status.all().iter().map(|interface| (interface.entry.id(), interface.labels.clone())).collect()
    }

    fn talker_rows(&self) -> Vec<TalkerRow> {
        let (ports, monotonic, unix) = (self.interfaces(), monotonic(), unix_now());
        let tables = self.counter_maps.tables.as_ref();
        let all = tables.and_then(|tables| read_talkers(&tables.talkers).ok()).unwrap_or_default();
        all.into_iter()
            .filter_map(|(key, talker)| {
                Some(TalkerRow {
                    place: ports.get(&key.port)?.into(),
                    address: key.address,
                    bytes: talker.received.bytes + talker.sent.bytes,
                    packets: talker.received.packets + talker.sent.packets,
                    received_bytes: talker.received.bytes,
                    received_packets: talker.received.packets,
                    sent_bytes: talker.sent.bytes,
                    sent_packets: talker.sent.packets,
                    first_seen: unix_seconds(talker.first, monotonic, unix),
                    last_seen: unix_seconds(talker.last, monotonic, unix),
                })
            })
            .collect()
    }

    fn flow_rows(&self) -> Vec<FlowRow> {
        let (ports, monotonic, unix) = (self.interfaces(), monotonic(), unix_now());
        let with_flows = self.counter_maps.tables.as_ref().filter(|tables| tables.with_flows);
        let all = with_flows.and_then(|tables| read_flows(&tables.flows).ok()).unwrap_or_default();
        all.into_iter()
            .filter_map(|(key, flow)| {
                Some(FlowRow {
                    place: ports.get(&key.port)?.into(),
                    direction: if key.egress { "egress" } else { "ingress" },
                    protocol: match i32::from(key.protocol) {
                        libc::IPPROTO_TCP => "tcp".to_string(),
                        libc::IPPROTO_UDP => "udp".to_string(),
                        libc::IPPROTO_ICMP => "icmp".to_string(),
                        libc::IPPROTO_ICMPV6 => "icmpv6".to_string(),
                        number => number.to_string(),
                    },
                    source: key.source,
                    source_port: key.source_port,
                    destination: key.destination,
                    destination_port: key.destination_port,
                    bytes: flow.sum.bytes,
                    packets: flow.sum.packets,
                    first_seen: unix_seconds(flow.first, monotonic, unix),
                    last_seen: unix_seconds(flow.last, monotonic, unix),
                    tcp_state: (i32::from(key.protocol) == libc::IPPROTO_TCP)
                        .then(|| tcp_state(flow.tcp_flags, flow.tcp_data)),
                })
            })
            .collect()
    }

    /// The sources that sent most, at most as many as were asked for.
    fn top_sources(&self) -> Vec<TopSource> {
        let wanted = self.config.count.top_sources as usize;
        if wanted == 0 {
            return Vec::new();
        }
        let mut rows = self.talker_rows();
        rows.retain(|row| row.received_bytes > 0);
        rows.sort_by_key(|row| (std::cmp::Reverse(row.received_bytes), row.address));
        rows.truncate(wanted);
        rows.into_iter()
            .map(|row| TopSource {
                labels: row.place.labels(),
                address: row.address.to_string(),
                bytes: row.received_bytes,
            })
            .collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.counter_maps.pins.keep();
        self.stop.now();
        for thread in self.threads.drain(..) {
            // One that panicked has dropped what it had attached.
            let _ = thread.join();
        }
    }
}
