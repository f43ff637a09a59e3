//! Interfaces that come and go, and everything that is asked of those that are there.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::attach::{Refusal, XdpMode};
use super::collect::{Reading, TopSource, families};
use super::config::NetworkConfig;
use super::family::Family;
use super::links::{Interface, interfaces};
use super::port::Port;
use super::query::{FlowRow, Query, QueryError, TalkerRow, tcp_state};
use super::sockets::tcp_connections;
use super::sys::monotonic;
use super::tables::{Tables, read_flows, read_talkers, unix_seconds};

/// How often interfaces are looked for.
const POLL: Duration = Duration::from_secs(2);

/// Every so many polls, what was refused is tried again.
const RETRY: u32 = 15;

/// Something worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An interface is counted on; `mode` is `None` if only what leaves it is.
    Attached { interface: String, mode: Option<XdpMode> },
    /// One direction of an interface is not counted.
    Refused { interface: String, direction: &'static str, refusal: Refusal },
    /// An interface is gone, and its counts with it.
    Gone { interface: String },
    /// A name of the configuration that no interface has yet.
    Missing { interface: String },
    /// The kernel does not say which interfaces there are.
    Blind { error: String },
}

impl Event {
    /// Whether something is not as the configuration wants it.
    pub fn is_problem(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Missing { .. } | Self::Blind { .. })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached { interface, mode: Some(mode) } => {
                write!(f, "{interface}: counting packets, XDP in {} mode", mode.label())
            }
            Self::Attached { interface, mode: None } => {
                write!(f, "{interface}: counting packets that leave only")
            }
            Self::Refused { refusal, .. } => refusal.fmt(f),
            Self::Gone { interface } => write!(f, "{interface}: the interface is gone"),
            Self::Missing { interface } => {
                write!(
                    f,
                    "{interface}: there is no such interface (yet); it will be counted on when it appears"
                )
            }
            Self::Blind { error } => write!(f, "the interfaces cannot be listed: {error}"),
        }
    }
}

/// Why nothing can be counted at all.
#[derive(Debug)]
pub struct NetworkError(String);

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NetworkError {}

/// The packet counters of a running exporter. Dropping it detaches all programs.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    /// Dropped first, which ends the watch.
    stop: Option<Sender<()>>,
    watch: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    config: NetworkConfig,
    tables: Option<Tables>,
    /// By name.
    ports: Mutex<BTreeMap<String, Port>>,
}

impl Network {
    /// Attaches to all configured interfaces that are there, and starts a thread that watches for others. `tell` is
    /// called with everything worth a log line, from this thread first and from that one later.
    ///
    /// Must be called in the network namespace that is meant, with `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`.
    /// They are needed as long as interfaces are to be attached to that appear later.
    ///
    /// # Errors
    /// If the kernel makes no tables for talkers, does not list its interfaces, or there is no thread. An interface that
    /// refuses is no error: it is told, exported, and tried again.
    pub fn start(
        config: NetworkConfig,
        mut tell: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, NetworkError> {
        let seed = RandomState::new().hash_one(std::process::id()) | 1;
        let tables = Tables::create(&config.count, seed).map_err(|error| {
            let bytes = config.table_memory(libbpf_rs::num_possible_cpus().unwrap_or(1));
            NetworkError(format!(
                "the tables of talkers and flows ({bytes} bytes of kernel memory) cannot be made: {error:#}; lower \
                 network.count.talkers.entries and flows.entries, or run with CAP_BPF"
            ))
        })?;
        let shared = Arc::new(Shared { config, tables, ports: Mutex::default() });
        let present = interfaces()
            .map_err(|error| NetworkError(format!("the interfaces cannot be listed: {error}")))?;
        for name in shared.config.exact_names() {
            if !present.iter().any(|interface| interface.name == name) {
                tell(Event::Missing { interface: name.to_string() });
            }
        }
        shared.follow(present, false, &mut tell);
        let (stop, stopped) = channel::<()>();
        let watched = Arc::clone(&shared);
        let watch = std::thread::Builder::new()
            .name("network".to_string())
            .spawn(move || {
                let mut polls = 0u32;
                while stopped.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                    polls = polls.wrapping_add(1);
                    match interfaces() {
                        Ok(present) => watched.follow(present, polls.is_multiple_of(RETRY), &mut tell),
                        Err(error) if polls.is_multiple_of(RETRY) => {
                            tell(Event::Blind { error: error.to_string() })
                        }
                        Err(_) => {}
                    }
                }
            })
            .map_err(|error: io::Error| NetworkError(format!("no thread can be started: {error}")))?;
        Ok(Self { shared, stop: Some(stop), watch: Some(watch) })
    }

    /// All metrics, now. Reads a few maps for each interface; of talkers, only if top sources are asked for.
    pub fn collect(&self) -> Vec<Family> {
        let readings: Vec<Reading> = self.shared.ports().values().map(Port::read).collect();
        let top = self.shared.top_sources();
        let connections = self.shared.config.count.tcp_connections.then(tcp_connections).and_then(Result::ok);
        families(&self.shared.config.count, &readings, &top, connections.as_ref().map(|counts| &counts[..]))
    }

    /// Interfaces that are counted on: name, and the mode of XDP if that is attached.
    pub fn attached(&self) -> Vec<(String, Option<XdpMode>)> {
        self.shared.ports().iter().map(|(name, port)| (name.clone(), port.mode())).collect()
    }

    /// What is not attached though it should be, in words.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.shared
            .ports()
            .values()
            .flat_map(|port| port.refusals().map(|(_, refusal)| refusal.clone()))
            .collect()
    }

    /// The answer to `/api/v1/talkers?query`, JSON.
    ///
    /// # Errors
    /// If the query is not understood: a fault of the request.
    pub fn talkers(&self, query: &str) -> Result<String, QueryError> {
        Ok(Query::parse(query)?.answer(self.shared.talkers()))
    }

    /// The answer to `/api/v1/flows?query`, JSON.
    ///
    /// # Errors
    /// If the query is not understood: a fault of the request.
    pub fn flows(&self, query: &str) -> Result<String, QueryError> {
        Ok(Query::parse(query)?.answer(self.shared.flows()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(watch) = self.watch.take() {
            // A watch that panicked has nothing left to detach with; the ports are dropped below in any case.
            let _ = watch.join();
        }
        self.shared.ports().clear();
    }
}

impl Shared {
    fn ports(&self) -> MutexGuard<'_, BTreeMap<String, Port>> {
        // Ports are only inserted and removed whole, so that a panic elsewhere leaves them usable.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of interfaces that are gone, and takes those that are new. An interface that was deleted and made again
    /// has another index, and starts at zero like the kernel's own counters.
    fn follow(&self, present: Vec<Interface>, retry: bool, tell: &mut impl FnMut(Event)) {
        let mut ports = self.ports();
        let gone: Vec<String> = ports
            .values()
            .filter(|port| {
                !present.iter().any(|there| there.name == port.on.name && there.index == port.on.index)
            })
            .map(|port| port.on.name.clone())
            .collect();
        for interface in gone {
            ports.remove(&interface);
            tell(Event::Gone { interface });
        }
        for there in present.into_iter().filter(|there| self.config.wants(&there.name)) {
            match ports.get_mut(&there.name) {
                None => {
                    let name = there.name.clone();
                    let port = Port::open(there, self.config.mode, self.tables.as_ref());
                    report(&port, tell);
                    ports.insert(name, port);
                }
                Some(port) => {
                    port.on.mtu = there.mtu;
                    if retry && port.retry(self.config.mode, self.tables.as_ref()) {
                        report(port, tell);
                    }
                }
            }
        }
    }

    fn names(&self) -> BTreeMap<u32, String> {
        self.ports().values().map(|port| (port.on.index as u32, port.on.name.clone())).collect()
    }

    fn talkers(&self) -> Vec<TalkerRow> {
        let (names, monotonic, unix) = (self.names(), monotonic(), unix_now());
        let all =
            self.tables.as_ref().and_then(|tables| read_talkers(&tables.talkers).ok()).unwrap_or_default();
        all.into_iter()
            .filter_map(|(key, talker)| {
                Some(TalkerRow {
                    interface: names.get(&key.ifindex)?.clone(),
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

    fn flows(&self) -> Vec<FlowRow> {
        let (names, monotonic, unix) = (self.names(), monotonic(), unix_now());
        let with_flows = self.tables.as_ref().filter(|tables| tables.with_flows);
        let all = with_flows.and_then(|tables| read_flows(&tables.flows).ok()).unwrap_or_default();
        all.into_iter()
            .filter_map(|(key, flow)| {
                Some(FlowRow {
                    interface: names.get(&key.ifindex)?.clone(),
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
        let mut rows = self.talkers();
        rows.retain(|row| row.received_bytes > 0);
        rows.sort_by_key(|row| (std::cmp::Reverse(row.received_bytes), row.address));
        rows.truncate(wanted);
        rows.into_iter()
            .map(|row| TopSource {
                interface: row.interface,
                address: row.address.to_string(),
                bytes: row.received_bytes,
            })
            .collect()
    }
}

fn report(port: &Port, tell: &mut impl FnMut(Event)) {
    let interface = || port.on.name.clone();
    let mut refused = 0;
    for (direction, refusal) in port.refusals() {
        refused += 1;
        tell(Event::Refused { interface: interface(), direction, refusal: refusal.clone() });
    }
    if refused < 2 {
        tell(Event::Attached { interface: interface(), mode: port.mode() });
    }
}

/// Unix time in seconds.
fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
