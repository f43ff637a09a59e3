//! `src/mapping.rs` by itself, for Miri (`just miri`).
#![allow(dead_code)]

#[path = "../../src/mapping.rs"]
mod mapping;
