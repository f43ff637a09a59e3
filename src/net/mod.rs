//! What crosses the wire: packets and bytes by interface, counted by XDP on the way in and TC on the way out.
//!
//! [`Network::start`] attaches to the configured interfaces and keeps watching for them; [`Network::collect`] gives the
//! metrics at a scrape; dropping it detaches everything.

mod abi;
mod attach;
mod collect;
mod config;
mod counters;
mod decode;
mod family;
mod links;
mod load;
mod netlink;
mod port;
mod query;
mod sockets;
mod sys;
mod tables;
mod watch;

pub use abi::{AddressFamily, Fault, Protocol, Reason, SIZE_BOUNDS, SIZES, TcpKind, Verdict};
pub use attach::{Refusal, XdpMode};
pub use config::{Count, Mode, NetworkConfig, TABLE_ENTRIES, TOP_SOURCES};
pub use counters::{Counters, cells};
pub use decode::decode;
pub use family::{Family, Kind, Sample, Value};
pub use load::cpu_slots;
pub use query::{FlowRow, PER_PAGE, QueryError, TalkerRow};
pub use tables::{Flow, FlowKey, Sum, Talker, TalkerKey, read_flows, read_talkers};
pub use watch::{Event, Network, NetworkError};
