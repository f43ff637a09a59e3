//! Traces USDT probes, functions and packets and serves what it sees as Prometheus metrics.
//!
//! Data flows one way: config -> plan -> layout -> sites -> attach -> (kernel) -> drain -> decode -> metrics -> HTTP.
#![deny(unsafe_code)]

mod abi;
pub mod bank;
pub mod config;
pub mod elf;
pub mod kernel;
pub mod layout;
pub mod net;
pub mod plan;
pub mod resolve;
