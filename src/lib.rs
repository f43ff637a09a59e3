//! Traces USDT probes, functions and packets and serves what it sees as Prometheus metrics.

pub mod cli;
pub mod config;
