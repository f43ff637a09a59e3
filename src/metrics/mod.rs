//! From slots to the text of a scrape.

mod carry;
mod ended;
pub mod evaluate;
pub mod event_series;
mod facts;
mod forget;
mod labels;
pub mod registry;
pub mod show;

pub use carry::CarriedSeries;
pub use facts::ProbeFacts;
pub use registry::{CounterStore, ProbeRef, Registry, WINDOW};
