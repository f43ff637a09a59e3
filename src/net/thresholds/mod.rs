//! What is allowed, and what happens to whoever does more: `ban:` of a probe.

mod ban;

pub use ban::{BanRule, BanTerms};
