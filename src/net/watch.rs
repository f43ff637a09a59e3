//! The threads that attach in each network namespace, and queries of what is counted there.

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
use super::refusal::AttachRefusal;
use super::selection::InterfaceSelection;
use super::sockets::tcp_connections;
use super::stack::Stack;
use super::status::{NetworkStatus, labels};
use super::sys::monotonic;
use super::tables::{self, read_flows, read_talkers, unix_seconds};
use super::totals;
use super::traffic::TrafficReader;
use super::visit::{MIN_INTERVAL, Reporter, Stop, Visit};
use crate::clock::unix_now;
use crate::exposition::Family;
use crate::pins::PinDir;

/// How often the blocklist and the names of cgroups are maintained.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// Entries of a blocklist that are read to find those with the most hits.
const MAX_ENTRIES: usize = 4096;

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
    /// Attaches to all existing configured interfaces, and starts a thread for each network namespace that follows
    /// changes. `tell` is called with every event to be logged, at first on this thread.
    ///
    /// Must be called in the exporter's network namespace, with `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`, and for
    /// other namespaces with `CAP_SYS_ADMIN`. They are needed as long as new interfaces are to be attached.
    ///
    /// # Errors
    /// If the kernel creates no tables, does not list its interfaces, or starts no thread. A failure to attach to an
    /// interface is not an error: it is reported, exported and retried.
    pub fn start(
        config: NetworkConfig,
        report: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, NetworkError> {
        Self::start_in(config, PinDir::default(), report)
    }

    /// As [`Network::start`], with all kernel state pinned in a directory; takes over what a previous exporter left
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
            network.maintain_blocklist(block)?;
        }
        if let Some(attribution) = attribution {
            network.maintain("attribution", MAINTENANCE_INTERVAL, move || attribution.maintain())?;
        }
        Ok(network)
    }

    /// Starts the thread that maintains the blocklist periodically, and updates the protected addresses as soon as they
    /// change.
    fn maintain_blocklist(&mut self, block: Arc<Blocklist>) -> Result<(), NetworkError> {
        let stop = Arc::clone(&self.stop);
        let changes = block::ProtectedChanges::listen();
        if let Err(err) = &changes {
            log::warn!(
                "blocklist: changes to protected addresses are noticed only after some seconds: {err}"
            );
        }
        let thread = std::thread::Builder::new().name("blocklist".to_string()).spawn(move || {
            let fds = changes.as_ref().map(|changes| changes.fds().to_vec()).unwrap_or_default();
            let mut next = Instant::now() + MAINTENANCE_INTERVAL;
            while !stop.wait_for_any(&fds, next.saturating_duration_since(Instant::now())) {
                if changes.as_ref().is_ok_and(|changes| changes.take()) {
                    block.update_protected();
                    // However often they change.
                    stop.wait_for(MIN_INTERVAL);
                }
                if Instant::now() >= next {
                    block.maintain();
                    next = Instant::now() + MAINTENANCE_INTERVAL;
                }
            }
        });
        self.threads.push(thread.map_err(NetworkError::Thread)?);
        Ok(())
    }

    /// Starts a thread for periodic maintenance.
    fn maintain(
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

    /// The input of detection.
    pub(crate) fn traffic(&self) -> TrafficReader {
        let (counter_maps, status) = (Arc::clone(&self.counter_maps), Arc::clone(&self.status));
        TrafficReader { counter_maps, status }
    }

    /// Connects detection to these counters and to the blocklist, if there is one. In the calling thread's network
    /// namespace.
    pub fn detect(&self, detections: &Detections, report: impl Fn(Detection) + Send + 'static) {
        let traffic = self.traffic();
        detections.start(self.blocklist().cloned(), move |wanted| traffic.read(wanted), report);
    }

    /// The blocklist, if there is one.
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
            // Before this returns, so that packets from now on are counted.
            Some(visit.begin().map_err(NetworkError::Begin)?)
        } else {
            visit.absent("not looked for yet");
            None
        };
        let thread = std::thread::Builder::new()
            .name("network".to_string())
            .spawn(move || match here {
                Some(follower) => visit.stay(follower, None, &|| true),
                None => visit.run_while_present(),
            })
            .map_err(NetworkError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Applies another configuration, which may differ only in interfaces and the blocklist
    /// ([`NetworkConfig::differs_in`]). Counters of interfaces that are in both continue. Returns when the new
    /// interfaces have been attached.
    ///
    /// # Errors
    /// If the kernel rejects the blocklist; the previous one stays in effect.
    pub fn change(&self, config: &NetworkConfig) -> libbpf_rs::Result<()> {
        let scopes = config.scopes();
        self.selections.iter().zip(scopes).for_each(|(selection, scope)| selection.change(scope));
        self.selections.iter().for_each(|selection| selection.wait());
        match (self.blocklist(), &config.block) {
            (Some(list), Some(wanted)) => list.change(wanted).map(|()| list.follow()),
            _ => Ok(()),
        }
    }

    /// All metrics. Reads a few maps per interface; talkers only if top sources are configured.
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

    /// The counted interfaces: name, and hook of received packets.
    pub fn attached(&self) -> Vec<(String, Option<Hook>)> {
        self.status.all().iter().map(|interface| (interface.name.clone(), interface.hook)).collect()
    }

    /// What is not attached although it is configured, in words.
    pub fn refusals(&self) -> Vec<AttachRefusal> {
        let all = self.status.all();
        all.iter()
            .flat_map(|interface| interface.refusals.iter().map(|(_, refusal)| refusal.clone()))
            .collect()
    }

    /// Why not everything that is configured is counted; empty if it is.
    pub fn not_ready(&self) -> Vec<String> {
        self.status.not_ready()
    }

    /// The remote hosts with most bytes, in descending order; empty if talkers are not counted.
    pub fn top_talkers(&self, most: usize) -> Vec<TalkerRow> {
        let mut rows = self.talker_rows();
        rows.sort_by_key(|row| (std::cmp::Reverse(row.bytes), row.address));
        rows.truncate(most);
        rows
    }

    /// The blocked prefixes with most packets, in descending order. Empty for a list with more than [`MAX_ENTRIES`]
    /// entries, because each is read from the kernel.
    pub(crate) fn busiest_blocked(&self, most: usize) -> Vec<BlockRow> {
        let Some(list) = self.blocklist().filter(|list| list.len() <= MAX_ENTRIES) else {
            return Vec::new();
        };
        let mut rows = list.rows(0, MAX_ENTRIES);
        rows.retain(|row| row.packets > 0);
        rows.sort_by_key(|row| (std::cmp::Reverse(row.packets), row.prefix));
        rows.truncate(most);
        rows
    }

    /// The response to `/api/v1/talkers?query`, JSON.
    ///
    /// # Errors
    /// If the query is invalid.
    pub fn talkers(&self, query: &str) -> Result<String, QueryError> {
        Ok(Query::parse(query)?.answer(self.talker_rows()))
    }

    /// The response to `/api/v1/flows?query`, JSON.
    ///
    /// # Errors
    /// If the query is invalid.
    pub fn flows(&self, query: &str) -> Result<String, QueryError> {
        Ok(Query::parse(query)?.answer(self.flow_rows()))
    }

    /// The response to `/api/v1/stats`, JSON.
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

    /// The response to `/api/v1/blocklist?query`, JSON.
    ///
    /// # Errors
    /// If the query is invalid.
    pub fn blocked(&self, query: &str) -> Result<String, QueryError> {
        let nothing = || QueryError("network.block is not configured".to_string());
        block::page(self.blocklist().ok_or_else(nothing)?, query)
    }

    /// The response to `/api/v1/blocklist/PREFIX`, JSON; `None` if the prefix is not listed.
    pub fn blocked_entry(&self, prefix: Prefix) -> Option<String> {
        block::entry(self.blocklist()?, prefix)
    }

    /// Labels of interfaces, by id.
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

    /// The sources that sent most, at most as many as configured.
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
            // A thread that panicked has dropped its attachments.
            let _ = thread.join();
        }
    }
}
