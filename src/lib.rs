//! Traces USDT probes, functions and packets and serves what it sees as Prometheus metrics.
//!
//! Data flows one way: config -> plan -> layout -> sites -> attach -> (kernel) -> drain -> decode -> metrics -> HTTP.
#![deny(unsafe_code)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "the exporter runs on x86-64 only: its probe programs read the registers of that processor, and would read wrong ones here"
);

mod abi;
pub mod bank;
pub mod cgroups;
pub mod check;
pub mod cli;
pub mod commands;
pub mod config;
pub mod containers;
pub mod dashboard;
pub mod decode;
pub mod drain;
pub mod elf;
pub mod exposition;
pub mod glob;
pub mod http;
pub mod kernel;
mod kinds;
pub mod layout;
pub mod logging;
mod mapping;
pub mod metrics;
pub mod net;
mod places;
pub mod plan;
pub mod privileges;
pub mod probes;
pub mod resolve;
mod returns;
pub mod run;
mod service;
pub mod symbols;
mod table;
pub mod targets;
pub mod telemetry;
