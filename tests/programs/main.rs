//! The exporter's numbers compared with the accounting of real programs. Needs root and the programs:
//! `scripts/install-deps.sh --tests`.

#[path = "../support/mod.rs"]
mod support;

mod bitcoin;
mod bitcoin_harness;
mod debugger;
mod failing_calls;
mod golang;
mod libraries;
mod openjdk;
mod postgresql;
mod qemu;
mod scripts;
mod selected;
mod sites;
mod texts;
