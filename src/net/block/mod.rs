//! Sources whose packets are dropped, or would be: `network.block`.

mod blocklist;
mod config;
mod decode;
mod file;
mod list;
mod maps;
mod marks;
mod metrics;
mod protect;

pub(super) use blocklist::Summary;
pub use blocklist::{BlockError, BlockRow, Blocked, Blocklist};
pub use config::{
    BlockConfig, BlockEntry, BlockFile, BlockMode, BlockProtocol, BlockRule, BlockScope, parse_ports,
    parse_ttl,
};
pub(super) use decode::{BLOCK, decode};
pub(super) use metrics::families;
