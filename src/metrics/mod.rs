//! From slots to the text of a scrape.

pub mod evaluate;
mod forget;
mod labels;
pub mod registry;
pub mod show;

pub use registry::{Registry, WINDOW};
