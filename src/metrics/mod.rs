//! From cells to the text of a scrape.

pub mod encode;
pub mod evaluate;
mod families;
mod forget;
pub mod own;
pub mod packets;
pub mod registry;
pub mod show;

pub use registry::{Registry, WINDOW};
