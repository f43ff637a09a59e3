//! Packet statistics: packets and bytes by interface, counted by XDP or TC on ingress and TC on egress.
//!
//! [`Network::start`] attaches to the configured interfaces and follows changes; [`Network::collect`] returns the
//! metrics for a scrape; dropping it detaches everything that is not pinned.

mod abi;
mod attach;
mod attribution;
mod block;
mod cidr;
mod collect;
mod comparison;
mod config;
mod counter_maps;
mod counters;
mod decode;
mod detect;
mod dns;
mod error;
mod event;
mod follow;
mod hook;
mod interface_table;
mod links;
mod namespace;
mod netlink;
mod open_sockets;
mod owners;
mod paging;
mod pinned;
mod pinned_spaces;
mod port;
mod preview;
mod programs;
mod query;
mod reference;
mod refusal;
mod selection;
mod socket_abi;
mod sockets;
mod spaces;
mod stack;
mod stats;
mod status;
mod sys;
mod tables;
mod thresholds;
mod totals;
mod traffic;
mod visit;
mod watch;

pub use abi::{
    AddressFamily, Direction, FAST_BLOCKS, Link, ParseError, Protocol, SIZE_BOUNDS, SIZES, Verdict,
};
pub(crate) use block::CROWDSEC;
pub use block::{
    Asker, BlockConfig, BlockDirection, BlockEntry, BlockError, BlockFile, BlockMode, BlockProtocol,
    BlockRow, BlockRule, BlockScope, Blocked, Blocklist, ContentCheck, CrowdsecConfig, DecisionScope, Source,
    UrlConfig, parse_ports, parse_ttl,
};
pub use cidr::{CidrGroup, Prefix};
pub use config::{Count, Mode, NetworkConfig, Scope, Space, TABLE_ENTRIES, TOP_SOURCES};
pub use counter_maps::cpu_slots;
pub use counters::{Counters, Sum, combinations};
pub use decode::{NETWORK, decode};
pub use detect::{BanOutcome, Detection, Detections, Sighting};
pub use error::{BeginError, NetworkError};
pub use event::Event;
pub use hook::Hook;
pub(crate) use links::interfaces_in;
pub(crate) use pinned::{detach_filters, remove_pinned};
pub use preview::describe;
pub use query::{FlowRow, InterfaceName, MAX_PER_PAGE, QueryError, TalkerRow};
pub(crate) use reference::every_family;
pub use refusal::AttachRefusal;
pub use stats::{Reason, TcpKind};
pub use sys::set_operand;
pub use tables::{Flow, FlowKey, Talker, TalkerKey, read_flows, read_talkers};
pub use thresholds::{BanRule, BanTerms, DetectConfig, PortScan, Rates, SynFlood, TcpAnomalies};
pub use watch::Network;
