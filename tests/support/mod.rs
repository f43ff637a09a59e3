//! What the tests of all tiers share.
#![allow(dead_code, reason = "each tier uses a part of it")]

pub mod bitcoin;
pub mod bpffs;
pub mod dashboard;
pub mod demo;
pub mod documentation;
pub mod exporter;
pub mod exposition;
pub mod harm;
pub mod http;
pub mod http2;
pub mod names;
pub mod on_kernel;
pub mod program;
pub mod prometheus;
pub mod protobuf;
pub mod random;
pub mod siege;
pub mod tracer;
