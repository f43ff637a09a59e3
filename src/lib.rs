//! Traces USDT probes, functions and packets and serves the results as Prometheus metrics.
//!
//! Data flows one way: config -> plan -> layout -> sites -> attach -> (kernel) -> drain -> decode -> metrics -> HTTP.
#![deny(unsafe_code)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the exporter only supports x86-64: its BPF programs read the registers of that architecture");

mod abi;
mod arguments;
mod blocking;
mod budget;
mod cgroups;
mod check;
pub mod cli;
mod clock;
pub mod commands;
pub mod config;
mod containers;
pub mod costs;
mod dashboard;
mod database;
mod debug_symbols;
mod decode;
pub mod drain;
pub mod elf;
mod engine;
pub mod exposition;
mod file_size;
mod glob;
mod hierarchy;
mod http;
#[allow(dead_code, reason = "each user needs a part of it")]
mod http_client;
pub mod kernel;
mod kinds;
pub mod layout;
mod loading;
mod logging;
mod mapping;
pub mod metrics;
mod mutex;
pub mod net;
mod page;
mod percent;
mod pins;
mod places;
pub mod plan;
mod privileges;
mod probes;
mod procfs;
pub mod reference;
mod regular;
pub mod resolve;
mod returns;
mod routes;
mod run;
mod running;
pub mod selectors;
mod service;
pub mod slow;
mod store;
mod symbols;
mod table;
pub mod targets;
mod telemetry;
mod terminal;
mod trial;
mod truncated;
pub mod untrusted;
mod unusable;
mod webhook;
