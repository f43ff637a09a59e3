//! Sources whose packets are dropped, or would be: `network.block`.

mod blocklist;
mod config;
mod decode;
mod entry;
mod file;
mod kept;
mod list;
mod maps;
mod marks;
mod metrics;
mod page;
mod preview;
mod protect;
mod rules;
mod state;

pub use blocklist::Blocklist;
pub(super) use blocklist::Summary;
pub use config::{
    BlockConfig, BlockEntry, BlockFile, BlockMode, BlockProtocol, BlockRule, BlockScope, parse_ports,
    parse_ttl,
};
pub(super) use decode::{BLOCK, decode};
pub use entry::{Asker, BlockError, BlockRow, Blocked};
pub(super) use metrics::families;
pub(super) use page::{entry, page};
pub(super) use preview::describe;
