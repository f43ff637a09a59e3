//! The blocklist, `network.block`: remote addresses whose packets are dropped, or would be.

mod alerts;
mod apply;
mod blocklist;
mod changes;
mod config;
mod crowdsec;
mod decisions;
mod decode;
mod decode_feeds;
mod entry;
mod feed;
mod fetch;
mod file;
mod follow;
mod followed;
mod gateways;
mod kept;
mod list;
mod maps;
mod marks;
mod metrics;
mod page;
mod preview;
mod protect;
mod protection;
mod push;
mod redirected;
mod replace;
mod requests;
mod rules;
mod sessions;
mod sources;
mod stamp;
mod state;
mod summary;

pub(super) use alerts::AlertNumbers;
pub use blocklist::Blocklist;
pub(super) use blocklist::PROTECTED_INTERVAL;
pub(super) use changes::ProtectedChanges;
pub use config::{
    BlockConfig, BlockDirection, BlockEntry, BlockFile, BlockMode, BlockProtocol, BlockRule, BlockScope,
    parse_ports, parse_ttl,
};
pub use crowdsec::CrowdsecConfig;
pub(crate) use crowdsec::NAME as CROWDSEC;
pub use decisions::DecisionScope;
pub(super) use decode::{BLOCK, decode};
pub use entry::{Asker, BlockError, BlockRow, Blocked, Source};
pub(super) use feed::FeedSummary;
pub use fetch::{ContentCheck, UrlConfig};
pub(super) use kept::PastBan;
pub(super) use metrics::families;
pub(super) use page::{entry, page};
pub(super) use preview::describe;
pub(super) use push::Alert;
pub(super) use summary::Summary;
