//! `src/mapping.rs` on its own, for Miri (`just miri`).
#![allow(dead_code)]

#[path = "../../src/mapping.rs"]
mod mapping;
